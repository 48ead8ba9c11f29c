"""Host mode: one include in the distribution's nginx, put there, proven, and taken out again.

The order is chosen so that nginx can be started at any moment in between: the generation that the include names is made
for host mode before the include is written, and goes after it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from . import hostconf, interrupts, proxy
from .controller import Router
from .errors import Conflict, NginxRejected, UsageProblem
from .events import Event
from .files import encoded, read_text, write_atomic
from .model import Globals
from .nginx import Nginx


def install(router: Router, conf: Path) -> str:
    """Let the distribution's nginx, whose configuration is `conf`, serve the apps; what was done, in a line.

    Raises:
        UsageProblem: `conf` is no nginx configuration with an http block.
        Conflict: router's own nginx runs.
        NginxRejected: nginx does not take `conf`, before or with the include; it is as before.
        ReloadFailed: nginx did not take the include up; everything is as before.
    """
    settings = router.settings()
    refuse_switch(router, "host")
    conf = conf.resolve()  # a link is kept as one
    text = _text(conf)
    own = _include(router)
    if settings.is_host_mode and settings.get("nginx-conf") == str(conf) and own in text and router.paths.wanted.exists():
        if router.plane().master() is not None:
            proxy.reload(router)
        return f"{conf} includes {router.paths.current}/router.conf already"
    plane = _host_plane(router, conf)
    _accept(plane, conf, "before anything was changed")
    before = settings.proxy.get("mode"), settings.proxy.get("nginx-conf")
    _set(router, "host", str(conf))
    with _undone(lambda: _set(router, *before)):
        fresh = text if own in text else _with_include(text, own, conf)
        with interrupts.waiting(), _undone(lambda: write_atomic(conf, encoded(text))):
            write_atomic(conf, encoded(fresh))
            _accept(plane, conf, "with router's include")
            router.paths.wanted.touch()
            with _undone(lambda: router.paths.wanted.unlink(missing_ok=True)):
                running = router.plane().master() is not None
                if running:
                    proxy.reload(router)
                else:
                    router.paths.wanted.unlink()
    if not running:
        return f"{conf} includes {router.paths.current}/router.conf; nginx does not run: sudo systemctl start nginx, then router setup"
    return f"{conf} includes {router.paths.current}/router.conf, and nginx serves it"


def remove(router: Router) -> str:
    """Take the include out again, if it is there; what was done, in a line.

    Raises:
        NginxRejected: nginx does not take its configuration without the include; it is as before.
    """
    settings = router.settings()
    if not settings.is_host_mode:
        return "host mode is not set up"
    conf = Path(settings.get("nginx-conf")).resolve()
    text = _text(conf)
    own = _include(router)
    plane = Nginx(router.paths, settings)
    with interrupts.waiting(), _undone(lambda: write_atomic(conf, encoded(text))):
        write_atomic(conf, encoded("".join(line for line in text.splitlines(keepends=True) if own not in line)))
        _accept(plane, conf, "without router's include")
        index = router.index()
        if plane.master() is not None and index is not None:
            plane.reload(index.facts, None)
    router.paths.wanted.unlink(missing_ok=True)
    _set(router, None, None)
    return f"{conf} does not include router any more"


def refuse_switch(router: Router, mode: str) -> None:
    """Make sure that the mode can become `mode`: a change of it would leave the nginx that serves alone.

    Raises:
        Conflict: router's own nginx runs, or the distribution's includes router.
    """
    plane = Nginx(router.paths, router.plane().settings)
    if mode == "host" and not plane.is_host_mode and (plane.master() is not None or plane.wanted()):
        raise Conflict("router's own nginx runs", hint="router proxy:stop, then sudo router setup")
    if mode != "host" and plane.host is not None and plane.host.includes_router:
        raise Conflict(f"{plane.conf} includes router", hint="sudo router setup --remove")


def _set(router: Router, mode: str | None, conf: str | None) -> None:
    values = {"mode": mode, "nginx-conf": conf}
    router.change([Event("property", None, {"table": "proxy", "key": key, "value": value}) for key, value in values.items()])


def _host_plane(router: Router, conf: Path) -> Nginx:
    values = {**router.settings().proxy, "mode": "host", "nginx-conf": str(conf)}
    return Nginx(router.paths, Globals(proxy=values))


def _accept(plane: Nginx, conf: Path, when: str) -> None:
    hostconf.read(conf, plane.paths.root, plane.binary)
    result = plane.test(conf)
    if not result.ok:
        raise NginxRejected(f"nginx rejects {conf} {when}: {' / '.join(result.messages[-3:])}", hint=f"nginx -t -c {conf}")


def _include(router: Router) -> str:
    from .render import quoted

    return f"include {quoted(f'{router.paths.current}/router.conf')};"


def _with_include(text: str, own: str, conf: Path) -> str:
    import crossplane

    payload = crossplane.parse(str(conf), single=True, strict=False, check_ctx=False, check_args=False)
    for config in payload["config"]:
        for directive in config["parsed"]:
            if directive["directive"] == "http":
                lines = text.splitlines(keepends=True)
                start = sum(len(line) for line in lines[: directive["line"] - 1])
                brace = text.index("{", text.index("http", start))
                return f"{text[: brace + 1]}\n    {own}  # written by router setup; router setup --remove takes it out{text[brace + 1 :]}"
    raise UsageProblem(f"{conf} has no http block", hint="router setup --nginx-conf PATH")


def _text(conf: Path) -> str:
    text = read_text(conf.resolve())
    if text is None:
        raise UsageProblem(f"{conf}: there is no such nginx configuration", hint="router setup --nginx-conf PATH")
    return text


@contextlib.contextmanager
def _undone(undo: object) -> Iterator[None]:
    """What was done stays unless the block fails: then it is undone, and the failure told."""
    assert callable(undo)
    try:
        yield
    except BaseException:
        undo()
        raise
