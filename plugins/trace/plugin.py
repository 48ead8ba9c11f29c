"""Who would answer a request, and why: from the state, and by asking nginx."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from nginx_router import trace as engine
from nginx_router.errors import NotFound, ProxyDown, ReloadFailed
from nginx_router.names import shown
from nginx_router.routing import target as parsed

if TYPE_CHECKING:
    from nginx_router.controller import Router

KEYS = (
    "host",
    "path",
    "port",
    "generation",
    "serving",
    "app",
    "domain",
    "rule",
    "server",
    "location",
    "process",
    "endpoints",
    "itself",
    "answer",
    "stale",
    "notes",
    "problems",
)


def trace(
    router: Router,
    target: Annotated[str, typer.Argument(metavar="HOST[/PATH]", help="What a client asks for; a whole http:// URL will do.")],
    port: Annotated[int | None, typer.Option("--port", metavar="N", help="The port; else the one of apps without ports.")] = None,
    get: Annotated[bool, typer.Option("--get", help="Ask by GET, where an instance does not answer HEAD.")] = False,
) -> None:
    """Which vhost, process and endpoints would answer a request, and why: from the state, and by a request to nginx whose
    line in the access log says who did. Exit 3 if no app owns the host, 9 if the two contradict each other, 13 if nginx
    should run and does not answer.

    Example: router trace blog.example.com/about
    """
    found = engine.trace(router, parsed(target, port), method="GET" if get else "HEAD")
    if router.out.is_json or router.out.key is not None:
        router.out.report(KEYS, iter([found.as_json()]), single=True)
    else:
        router.out.facts(_rows(found))
    if found.down:
        raise ProxyDown("nginx should run and does not", hint=found.down)
    if found.problems:
        raise ReloadFailed(
            f"the state and nginx contradict each other about {found.target.host}: {found.problems[0]}",
            hint="router status, router doctor",
        )
    if found.expected.app is None:
        raise NotFound(
            f"no app serves {shown(found.target.host)} on port {found.expected.port}{found.nearest}", hint="router domains:report"
        )


def _rows(found: engine.Trace) -> Iterator[tuple[str, str]]:
    expected = found.expected
    yield "request", f"http://{found.target.host}:{expected.port}{found.target.path}"
    yield "state", f"generation {expected.generation}" if expected.generation is not None else "no generation"
    yield "app", expected.app or "none"
    yield "rule", expected.rule
    if expected.server:
        path, _, line = expected.server.rpartition(":")
        yield "server", f"line {line} of objects/{path.rpartition('/')[2][:12]}… (router nginx:show-config {expected.app})"
    if expected.location:
        yield "location", expected.location
    if expected.process:
        yield "process", expected.process
    for endpoint in expected.endpoints:
        resolved = "" if endpoint["address"] in endpoint["addresses"] else f" ({', '.join(endpoint['addresses'])})"
        yield "endpoint", f"{endpoint['address']}{resolved} {endpoint['flags'] or endpoint['state']}"
    if expected.itself:
        yield "answer", f"nginx itself: {expected.itself}"
    if found.stale:
        yield "stale", f"{' '.join(found.stale.split())}; what was served last is still served"
    if found.answered:
        answered = found.answered
        what = answered.status if answered.status is not None else answered.error
        by = f", app {answered.app}" if answered.app else ""
        at = f", endpoint {' then '.join(answered.tried)}" if answered.tried else ""
        yield "asked", f"{answered.asked}: {what} in {answered.seconds:.3f} s{by}{at}"
        if answered.request_id:
            yield "asked", f"request id {answered.request_id}"
    for note in found.notes:
        yield "note", note
    for problem in found.problems:
        yield "problem", problem
