"""The kinds of values that a property may have: the rule in words, and the check that gives a value its one spelling.

A check raises ValueError for what breaks the rule.  What it lets through is safe in nginx's configuration as `render.quoted` writes it.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Callable, Collection, Mapping
from typing import Any

from .errors import UsageProblem
from .names import domain, ip_address, port_number

Check = Callable[[str], str]

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_SECONDS = {"ms": 0.001, "": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST = 365 * 86400

#: Files below log/ that are not an app's to write.
_LOGS_OF_OTHERS = re.compile(r"(error|router)\.log.*|.*-(access|error)\.log.*")

#: The variables that a log format may hold: none gives a secret away that a request carries in a header or a cookie.
_LOG_VARIABLES = """
body_bytes_sent bytes_sent connection connection_requests gzip_ratio host http_host http_referer http_user_agent
http_x_forwarded_for http_x_request_id msec pipe realip_remote_addr remote_addr remote_port remote_user request request_id
request_length request_method request_time request_uri scheme server_name server_port server_protocol ssl_cipher ssl_protocol
status time_iso8601 time_local upstream_addr upstream_bytes_received upstream_bytes_sent upstream_connect_time
upstream_header_time upstream_response_length upstream_response_time upstream_status uri
"""
LOG_VARIABLES = frozenset(_LOG_VARIABLES.split())
#: The log formats that have a name.
LOG_FORMATS = ("main", "json", "combined")


def matching(pattern: str) -> Check:
    """The check that a text matches as a whole."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):  # compiled where it is used: the table has many, and a command asks for few
            raise ValueError(text)
        return text

    return check


def whole(low: int, high: int) -> Check:
    """The check of a whole number between two others."""

    def check(text: str) -> str:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise ValueError(text)
        return str(int(text))

    return check


def port(text: str) -> str:
    """Check a port."""
    try:
        return str(port_number(text))
    except UsageProblem:
        raise ValueError(text) from None


def ports(text: str) -> str:
    """Check ports and ranges of them."""
    found = re.findall(r"[^\s,]+", text)
    for word in found:
        low, dash, high = word.partition("-")
        if int(port(low)) > int(port(high) if dash else low):
            raise ValueError(text)
    return " ".join(dict.fromkeys(found)) if found else _refuse(text)


def is_among(number: int, text: str) -> bool:
    """Whether a port is one of those that `ports` let through."""
    return any(int(low) <= number <= int(high or low) for low, _, high in (word.partition("-") for word in text.split()))


def addresses(text: str) -> str:
    """Check IP addresses; each is kept once."""
    # a second listen on the same address is refused by nginx
    return " ".join(dict.fromkeys(ip_address(word.removeprefix("[").removesuffix("]")) for word in text.split()))


def command(text: str) -> str:
    """Check a command that is run without a shell: what only a shell understands would not do what it says."""
    if not re.fullmatch(r"[^\n;&|<>$`]+", text) or not shlex.split(text):
        raise ValueError(text)
    return text


PATH = matching(r"/[^\s;{}'\"\\$#]+")
SITE = matching(r"444|404|421|https?://[A-Za-z0-9.-]+(:[0-9]+)?(/[A-Za-z0-9._~/?&=%-]*)?")


def size_in_bytes(text: str) -> int:
    """What a size such as 8k means."""
    return int(text.rstrip("kKmMgG")) * _UNITS[text.lstrip("0123456789").lower()]


def _size(low: str, high: str) -> Check:
    def check(text: str) -> str:
        if not re.fullmatch(r"[0-9]{1,9}[kKmMgG]?", text) or not size_in_bytes(low) <= size_in_bytes(text) <= size_in_bytes(high):
            raise ValueError(text)
        return text.lower()

    return check


def _time(*, zero: bool) -> Check:
    def check(text: str) -> str:
        found = re.fullmatch(r"([0-9]{1,9})(ms|s|m|h|d|)", text)
        if not found or int(found[1]) * _SECONDS[found[2]] > _LONGEST or not (zero or int(found[1])):
            raise ValueError(text)
        return f"{int(found[1])}{found[2]}"

    return check


def seconds(text: str) -> float:
    """A time as nginx writes it (`500ms`, `10s`, `1m`) in seconds."""
    found = re.fullmatch(r"([0-9]+)(ms|s|m|h|d|)", text)
    assert found is not None
    return int(found[1]) * float(_SECONDS[found[2]])


def share(text: str) -> str:
    """Check a share in percent, to two places."""
    found = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,2})?)%?", text)
    return f"{float(found[1]):.2f}".rstrip("0").rstrip(".") + "%" if found and float(found[1]) <= 100 else _refuse(text)


def as_seconds(text: str) -> float:
    """What a duration (`0.5s`) means."""
    return float(text.removesuffix("s"))


def duration(low: float, high: float, *, off: bool = False) -> Check:
    """The check of seconds between two others, with or without a unit; `off`: that word too."""

    def check(text: str) -> str:
        if off and text == "off":
            return text
        found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(ms|s|m|h|)", text)
        length = float(found[1]) * _SECONDS[found[2]] if found else -1.0
        return f"{length:.6f}".rstrip("0").rstrip(".") + "s" if low <= length <= high else _refuse(text)

    return check


def status_ranges(text: str) -> tuple[tuple[int, int], ...]:
    """What statuses such as `200-299 304` mean: the first and the last of each range."""
    return tuple((int(low), int(high or low)) for low, _, high in (word.partition("-") for word in text.split()))


def _statuses(text: str) -> str:
    words = list(dict.fromkeys(re.split(r"[\s,]+", text.strip())))
    if not all(re.fullmatch(r"[1-5][0-9]{2}(-[1-5][0-9]{2})?", word) for word in words):
        raise ValueError(text)
    if len(words) > 20 or any(low > high or low < 200 for low, high in status_ranges(" ".join(words))):
        raise ValueError(text)
    return " ".join(words)


def _url_path(text: str) -> str:
    if text == "off":
        return text
    if not re.fullmatch(r"/[!-~]{0,1023}", text) or "#" in text:
        raise ValueError(text)
    return text


def _host(*, auto: bool) -> Check:
    def check(text: str) -> str:
        if auto and text == "auto":
            return text
        try:
            name = domain(text)
        except UsageProblem:
            raise ValueError(text) from None
        return name if "*" not in name else _refuse(text)

    return check


def _flag(text: str) -> str:
    # a TOML file may say true without quotes, which comes as `on`
    return {"true": "true", "on": "true", "false": "false", "off": "false"}.get(text) or _refuse(text)


def _refuse(text: str) -> str:
    raise ValueError(text)


def _one_of(known: Collection[str]) -> Check:
    def check(text: str) -> str:
        return text if text in known else _refuse(text)

    return check


def _words(known: Collection[str], alone: Collection[str]) -> Check:
    def check(text: str) -> str:
        given = list(dict.fromkeys(text.split()))
        if not given or not set(given) <= {*known, *alone} or (len(given) > 1 and set(given) & set(alone)):
            raise ValueError(text)
        return " ".join(given)

    return check


def _networks(text: str) -> str:
    if text == "off":
        return text
    # everybody is nobody's proxy: whoever asks could then say who they are
    found = [ipaddress.ip_network(word) for word in text.split()]
    if not found or any(network.prefixlen == 0 for network in found) or "%" in text:
        raise ValueError(text)
    return " ".join(dict.fromkeys(str(n) if n.num_addresses > 1 else str(n.network_address) for n in found))


def _family(version: int) -> Check:
    def check(text: str) -> str:
        if text == "off":
            return text
        words = [word.removeprefix("[").removesuffix("]") for word in text.split()]
        if not words:
            raise ValueError(text)
        return " ".join(dict.fromkeys(ip_address(word, version=version) for word in words))

    return check


def _log(text: str) -> str:
    if text in ("off", "default"):
        return text
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text) or _LOGS_OF_OTHERS.fullmatch(text):
        raise ValueError(text)
    return text


def _log_format(text: str) -> str:
    if text in LOG_FORMATS:
        return text
    variables = re.findall(r"\$([a-z_0-9]*)", text)
    plain = re.sub(r"\$[a-z_0-9]*", "", text)
    # it stands between ' and ': neither that nor what escapes it may be in it
    if not variables or not set(variables) <= LOG_VARIABLES or not re.fullmatch(r"[ !-#%-&(-\[\]-~]*", plain):
        raise ValueError(text)
    return text


def _buffers(text: str) -> str:
    found = re.fullmatch(r"([0-9]{1,4}) +([0-9]{1,9}[kKmM]?)", text)
    if not found or int(found[1]) < 2 or not 1024 <= size_in_bytes(found[2]) <= 16 << 20:
        raise ValueError(text)
    if int(found[1]) * size_in_bytes(found[2]) > 256 << 20:
        raise ValueError(text)  # one slow client of one app would have that much memory of all
    return f"{int(found[1])} {found[2].lower()}"


def _types(text: str) -> str:
    # nginx has text/html in any case, and warns where it is named again
    words = [word for word in dict.fromkeys(text.lower().split()) if word != "text/html"] or text.split()[:1]
    if not words or not all(re.fullmatch(r"\*|[a-z0-9!#&^_+-]+/[a-z0-9!#&^_.+-]+", word) for word in words):
        raise ValueError(text)
    return " ".join(words)


#: Kind -> rule and check, of a property that a plugin declares.
KINDS: Mapping[str, Callable[[Mapping[str, Any]], tuple[str, Check]]] = {
    "size": lambda row: (
        f"a size such as 2m, from {row['min']} to {row['max']}" if "max" in row else "a size such as 2m, 0 for no limit",
        _size(row.get("min", "0"), row.get("max", "999999999g")),
    ),
    "time": lambda row: (
        "a time such as 60s or 500ms, at most 365d" + (", or 0" if row.get("zero") else ""),
        _time(zero=bool(row.get("zero"))),
    ),
    "duration": lambda row: (
        f"seconds from {row['min']:g} to {row['max']:g}, such as 10, 0.5 or 500ms" + (", or off" if row.get("off") else ""),
        duration(row["min"], row["max"], off=bool(row.get("off"))),
    ),
    "statuses": lambda row: ("HTTP statuses and ranges of them, such as 200 or 200-299 304", _statuses),
    "url-path": lambda row: ("a path such as /health, or off", _url_path),
    "host": lambda row: ("a host name" + (", or auto" if row.get("auto") else ""), _host(auto=bool(row.get("auto")))),
    "number": lambda row: (f"a number from {row['min']} to {row['max']}", whole(row["min"], row["max"])),
    "word": lambda row: (" or ".join(row["words"]), _one_of(frozenset(row["words"]))),
    "flag": lambda row: ("true or false", _flag),
    "words": lambda row: (
        f"some of {' '.join(row['words'])}{''.join(f', or {word}' for word in row.get('alone', ()))}",
        _words(row["words"], row.get("alone", ())),
    ),
    "share": lambda row: ("a share such as 10% or 2.5%", share),
    "networks": lambda row: ("IP addresses and networks such as 10.0.0.0/8 (not everybody's), or off", _networks),
    "family": lambda row: (f"IPv{row['version']} addresses of the host, or off", _family(row["version"])),
    "header": lambda row: ("the name of a header", matching(r"[A-Za-z][A-Za-z0-9-]{0,63}")),
    "log": lambda row: ("off, default, or the name of a file below log/ that is no app's default", _log),
    "log-format": lambda row: ("main, json, combined, or a text with variables of nginx such as $status (docs/properties.md)", _log_format),
    "buffers": lambda row: ("a number from 2 and a size of 1k to 16m, such as 8 16k, and 256m in all", _buffers),
    "types": lambda row: ("MIME types such as text/css, or *", _types),
}
