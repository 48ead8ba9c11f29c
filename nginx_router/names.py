"""Names and addresses: parsed once at the edge, refused with the rule they break, never repaired.

What nginx, DNS and the file system accept differs; a name that passes here is safe in all three.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from dataclasses import dataclass, replace
from typing import NewType

from .errors import UsageProblem

AppName = NewType("AppName", str)
Domain = NewType("Domain", str)
Process = NewType("Process", str)

WEB = Process("web")

_APP = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_PROCESS = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_SOCKET_PATH = re.compile(r"(/[A-Za-z0-9._+@-]+)+")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_OTHER_DOTS = "\u3002\uff0e\uff61"  # IDNA takes them for dots; a file that holds one would not say what is served
_SOCKET_PATH_BYTES = 107  # sun_path of unix(7), less the final NUL


def app_name(text: str) -> AppName:
    """The name of an app.

    Raises:
        UsageProblem: `text` is no app name; the rule is said.
    """
    if not _APP.fullmatch(text) or text[-1] in ".-":
        raise UsageProblem(
            f"{shown(text)} is not an app name",
            hint="1 to 63 of a-z 0-9 . - beginning with a letter or digit and not ending in . or -",
        )
    return AppName(text)


def instance(process: str, address: str) -> str:
    """An instance as commands take it: `[PROCESS=]ADDRESS`."""
    return address if process == WEB else f"{process}={address}"


def process_name(text: str) -> Process:
    """The name of a process (`web`, `api`).

    Raises:
        UsageProblem: `text` is no process name; the rule is said.
    """
    if not _PROCESS.fullmatch(text) or text.isdigit():
        raise UsageProblem(f"{shown(text)} is not a process name", hint="1 to 63 of a-z 0-9 _ -, not digits alone, such as web or api")
    return Process(text)


def domain(text: str) -> Domain:
    """An exact domain or `*.` before one, lower-cased and in punycode (RFC 5891).

    Raises:
        UsageProblem: `text` is neither; the rule is said.
    """
    rule = _broken_rule(text)
    if rule:
        raise UsageProblem(f"{shown(text)} is not a domain: {rule}", hint="a domain is a.example.com, or *.example.com")
    return Domain(_ascii(text))


def readable(name: str) -> str:
    """`name` for people: punycode shown as it was typed, and the served form behind it."""
    if "xn--" not in name:
        return name
    import idna

    try:
        return f"{idna.decode(name.removeprefix('*.'))} ({name})" if name[0] != "*" else f"*.{idna.decode(name[2:])} ({name})"
    except idna.IDNAError:
        return name


def covers(wildcard: str, name: str) -> bool:
    """Whether `*.a.com` answers for `name` (nginx: at any depth below, never a.com itself)."""
    return wildcard.startswith("*.") and name.endswith(wildcard[1:])


@dataclass(frozen=True, order=True)
class Address:
    """Where an instance listens: `10.0.0.3:80`, `[::1]:80`, `web1.lan:80` or `unix:/path`."""

    text: str

    @property
    def host(self) -> str:
        """The host without brackets; empty for a unix socket."""
        return "" if self.is_unix else self.text.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port; 0 for a unix socket."""
        return 0 if self.is_unix else int(self.text.rpartition(":")[2])

    @property
    def is_unix(self) -> bool:
        """Whether this is the path of a unix socket."""
        return self.text.startswith("unix:")

    @property
    def is_literal(self) -> bool:
        """Whether the kernel can connect to it without asking DNS."""
        if self.is_unix:
            return True
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True

    def at(self, ip: str) -> str:
        """This address with its host replaced by `ip`."""
        return f"[{ip}]:{self.port}" if ":" in ip else f"{ip}:{self.port}"

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, order=True)
class Endpoint:
    """One running instance of a process, with its flags."""

    process: Process
    address: Address
    weight: int = 1
    backup: bool = False
    drain: bool = False
    down: bool = False
    canary: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """What makes it this endpoint, whatever its flags: process and address."""
        return self.process, self.address.text

    @property
    def bare(self) -> str:
        """The same as one word or two, as UPSTREAMS spells it: its line without flags."""
        return Endpoint(self.process, self.address).line()

    @property
    def state(self) -> str:
        """`active`, `draining` or `down`."""
        return "down" if self.down else "draining" if self.drain else "active"

    def line(self) -> str:
        """Its line in UPSTREAMS."""
        words = [self.process, self.address.text] if self.process != WEB else [self.address.text]
        if self.weight != 1:
            words.append(f"weight={self.weight}")
        words += [flag for flag in ("backup", "drain", "down", "canary") if getattr(self, flag)]
        return " ".join(words)


def address(text: str) -> Address:
    """The address of an instance, in one spelling.

    Raises:
        UsageProblem: `text` is no address; the rule is said.
    """

    def refuse(rule: str) -> UsageProblem:
        return UsageProblem(
            f"{shown(text)} is not an endpoint: {rule}", hint="an endpoint is 10.0.0.3:5000, [::1]:5000, host:5000 or unix:/path"
        )

    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not _SOCKET_PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
            raise refuse("a socket path is absolute, of letters, digits and . _ / + @ -, without //, . and ..")
        if len(path) > _SOCKET_PATH_BYTES:
            raise refuse(f"a socket path has at most {_SOCKET_PATH_BYTES} bytes")
        return Address(text)
    if "://" in text:
        raise refuse("no scheme, only where the instance listens")
    host, colon, port = text.rpartition(":")
    if not colon or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        raise refuse("an IPv6 address stands in brackets, and a port follows" if ":" in host else "the port is missing")
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise refuse("the port is a number from 1 to 65535")
    if host.startswith("["):
        try:
            return Address(f"[{ip_address(host[1:-1], version=6)}]:{port}")
        except ValueError:
            raise refuse("what stands in brackets is not an IPv6 address") from None
    if re.fullmatch(r"[0-9.]+", host):
        try:
            return Address(f"{ip_address(host, version=4)}:{port}")
        except ValueError:
            raise refuse("four numbers from 0 to 255 make an IPv4 address") from None
    host = host.lower()
    if len(host) > 253 or not all(_HOST.fullmatch(label) for label in host.split(".")):
        raise refuse("a host name has labels of a-z 0-9 - _, 63 at most each, 253 in all")
    return Address(f"{host}:{port}")


def ip_address(text: str, *, version: int | None = None) -> str:
    """An IP address in its one spelling.

    Scopes (`fe80::1%eth0`) are refused: nginx does not know them, and the standard library takes any text behind the `%`.

    Raises:
        ValueError: it is none.
    """
    parsed = ipaddress.ip_address(text)
    if "%" in text or version not in (None, parsed.version):
        raise ValueError(text)
    return str(parsed)


def endpoint_argument(text: str, *, process: Process = WEB) -> Endpoint:
    """`[PROCESS=]ADDRESS` as given to a command.

    Raises:
        UsageProblem: either part breaks its rule.
    """
    name, equals, rest = text.partition("=")
    if equals and ":" not in name and "/" not in name:
        return Endpoint(process_name(name), address(rest))
    return Endpoint(process, address(text))


def endpoint_line(text: str) -> Endpoint:
    """A line of UPSTREAMS: `[process] ADDRESS [weight=N] [backup] [drain] [down] [canary]`.

    Raises:
        UsageProblem: a word is none of these.
    """
    words = text.split()
    process = WEB
    if words and ":" not in words[0]:
        process = process_name(words.pop(0))
    if not words:
        raise UsageProblem(f"{shown(text)} has no endpoint", hint="a line is [process] ADDRESS [weight=N] [backup] [drain] [down] [canary]")
    endpoint = Endpoint(process, address(words[0]))
    for word in words[1:]:
        key, _, value = word.partition("=")
        if key == "weight":
            endpoint = replace(endpoint, weight=weight(value))
        elif word == "backup":
            endpoint = replace(endpoint, backup=True)
        elif word == "drain":
            endpoint = replace(endpoint, drain=True)
        elif word == "down":
            endpoint = replace(endpoint, down=True)
        elif word == "canary":
            endpoint = replace(endpoint, canary=True)
        else:
            raise UsageProblem(f"{shown(word)} is not known behind an endpoint", hint="weight=N, backup, drain, down and canary are")
    return endpoint


def weight(text: str) -> int:
    """A weight from 1 to 1000.

    Raises:
        UsageProblem: it is something else.
    """
    if not re.fullmatch(r"[1-9][0-9]{0,3}", text) or int(text) > 1000:
        raise UsageProblem(f"weight {shown(text)} is not a number from 1 to 1000")
    return int(text)


def listener(text: str) -> str:
    """An argument of `listen` in one spelling: `80` where all of IPv4 is meant, else `10.0.0.3:80`, `[::]:80`."""
    text = text.lower()
    if re.fullmatch(r"[0-9]+", text):
        return text
    if not re.search(r":[0-9]+$", text):
        text += ":80"
    return text.removeprefix("*:").removeprefix("0.0.0.0:")


def port_number(text: str) -> int:
    """A TCP port.

    Raises:
        UsageProblem: not a number from 1 to 65535.
    """
    if not _PORT.fullmatch(text) or int(text) > 65535:
        raise UsageProblem(f"{shown(text)} is not a port: a number from 1 to 65535")
    return int(text)


@dataclass(frozen=True)
class Port:
    """One `ports` entry: `http` (the global port), `http:9000`, `http:9000:api`, `http::api`."""

    scheme: str
    number: int | None = None
    process: Process = WEB

    def __str__(self) -> str:
        if self.process != WEB:
            return f"{self.scheme}:{self.number or ''}:{self.process}"
        return self.scheme if self.number is None else f"{self.scheme}:{self.number}"


def port_entry(text: str) -> Port:
    """An entry of an app's `ports`.

    Raises:
        UsageProblem: it is no such entry; Dokku's container ports are named as such.
    """
    fields = text.split(":")
    if fields[0] != "http":
        raise UsageProblem(f"{shown(text)} is not a port entry: the scheme is http", hint="http, http:9000 or http:9000:PROCESS")
    if len(fields) > 3:
        raise UsageProblem(f"{shown(text)} is not a port entry", hint="http, http:9000 or http:9000:PROCESS")
    if len(fields) == 3 and fields[2].isdigit():
        raise UsageProblem(
            f"{shown(text)} ends in a container port: endpoints carry their ports here",
            hint=f"`apps:ports:add APP http:{fields[1]}`, and `apps:upstreams:add APP HOST:{fields[2]}`",
        )
    number = port_number(fields[1]) if len(fields) > 1 and fields[1] else None
    if len(fields) == 2 and number is None:
        raise UsageProblem(f"{shown(text)} is not a port entry: the port is missing", hint="http, http:9000 or http:9000:PROCESS")
    return Port("http", number, process_name(fields[2]) if len(fields) == 3 else WEB)


def shown(text: str) -> str:
    """`text` safe on a terminal: quoted, control characters escaped, cut at 80 characters."""
    plain = text if len(text) <= 80 else f"{text[:77]}..."
    return repr(plain) if not plain.isprintable() or not plain else f"'{plain}'"


def _ascii(text: str) -> str:
    lowered = unicodedata.normalize("NFC", text.lower())
    if lowered.isascii():
        return lowered
    import idna

    star, bare = ("*.", lowered[2:]) if lowered.startswith("*.") else ("", lowered)
    return star + idna.encode(bare).decode("ascii")


def _broken_rule(text: str) -> str:
    if not text:
        return "it is empty"
    if any(c.isspace() for c in text) or not text.isprintable():
        return "it holds white space or a control character"
    if "://" in text or "/" in text:
        return "no scheme and no path, only the name"
    if ":" in text:
        return "no port; see apps:ports"
    if text.startswith("~"):
        return "nginx's regular expressions are not taken"
    if any(dot in text for dot in _OTHER_DOTS):
        return "a dot is not an ASCII dot"
    bare = text.removeprefix("*.")
    if "*" in bare:
        return "a * stands alone as the first label, before a domain"
    try:
        name = _ascii(text)
    except UnicodeError as why:  # idna.IDNAError is one
        return f"{why}".rstrip(".").lower()
    if len(name) > 253:
        return f"it has {len(name)} characters, 253 is the most"
    for label in name.removeprefix("*.").split("."):
        if not label:
            return "a label is empty"
        if len(label) > 63:
            return f"the label {shown(label)} has {len(label)} characters, 63 is the most"
        if not _LABEL.fullmatch(label):
            return f"the label {shown(label)} is not of letters, digits and - (not first or last)"
    return ""
