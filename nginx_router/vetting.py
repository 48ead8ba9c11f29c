"""The parse that comes before nginx: what an app's snippets and own template may not say, though nginx would take it.

nginx accepts a snippet that names another app's domain or opens a port; the harm shows only to that other app.  A file
is parsed with crossplane; what crossplane cannot parse is left to nginx, whose words are better.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import NginxRejected

#: Files of the distribution that configuration commonly includes; any other file could change or go later.
SHARED_FILES = frozenset(
    f"/etc/nginx/{name}" for name in ("fastcgi.conf", "fastcgi_params", "mime.types", "proxy_params", "scgi_params", "uwsgi_params")
)
_REFUSED_IN_SNIPPETS = {"server": "a server block", "listen": "a listener", "server_name": "a server name"}


def vet_snippet(app: str, source: str, path: Path) -> str | None:
    """Check one snippet; what is wrong with its syntax, if anything: for the case that nginx takes it all the same.

    Raises:
        NginxRejected: it holds a directive that a snippet may not hold; file, line and directive are named.
    """
    directives, problem = _parse(path)
    for directive in directives:
        name = directive["directive"]
        if name in _REFUSED_IN_SNIPPETS:
            raise _refusal(app, source, directive, f"{name}: {_REFUSED_IN_SNIPPETS[name]} cannot stand in a snippet")
        _vet_include(app, source, directive, ())
    return f"app {app}: {source}:{problem}" if problem else None


def vet_template(
    app: str, source: str, path: Path, *, ports: Collection[int], listens: Collection[str], domains: Collection[str], own: Collection[str]
) -> str | None:
    """Check the vhost that an own template made: `ports` and `domains` of the app, `own` files it may include.

    Raises:
        NginxRejected: a `listen` is no port of the app, or a `server_name` not its domain; both are named.
    """
    directives, problem = _parse(path)
    for directive in directives:
        name, args = directive["directive"], directive["args"]
        if name == "listen":
            port = args[0].rpartition(":")[2]
            if args[0].startswith("unix:") or args[0] not in listens or not port.isdigit() or int(port) not in ports:
                allowed = " ".join(sorted(listens))
                raise _refusal(app, source, directive, f"listen {args[0]} is no port of the app; its listeners are: {allowed}")
            if {"default_server", "default"} & set(args[1:]):
                raise _refusal(app, source, directive, "default_server: unknown hosts get the default-site property's answer")
        elif name == "server_name":
            for word in args:
                if word.lower() not in domains:
                    raise _refusal(app, source, directive, f"server_name {word} is not a domain of the app")
        else:
            _vet_include(app, source, directive, own)
    return f"app {app}: {source}:{problem}" if problem else None


def _vet_include(app: str, source: str, directive: Mapping[str, Any], own: Collection[str]) -> None:
    if directive["directive"] == "include" and not set(directive["args"]) <= {*SHARED_FILES, *own}:
        raise _refusal(app, source, directive, f"include {' '.join(directive['args'])}: only {' '.join(sorted(SHARED_FILES))} can be")


def _refusal(app: str, source: str, directive: Mapping[str, Any], what: str) -> NginxRejected:
    return NginxRejected(f"app {app}: {source}:{directive['line']}: {what}", app=app)


def _parse(path: Path) -> tuple[list[dict[str, Any]], str]:
    import crossplane  # 30 ms: only where there is a snippet or an own template

    try:
        payload = crossplane.parse(str(path), single=True, strict=False, check_ctx=False, check_args=False, comments=False)
    except Exception as why:  # whatever a parser of hostile text raises, nginx judges next
        return [], f"1: {why}"
    errors = [f"{e.get('line') or 1}: {str(e['error']).partition(' in /')[0]}" for e in payload["errors"]]
    return [d for config in payload["config"] for d in _flat(config["parsed"])], errors[0] if errors else ""


def _flat(directives: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for directive in directives:
        yield directive
        yield from _flat(directive.get("block") or ())
