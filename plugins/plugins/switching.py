"""Putting plugins in, or out of, their place: every app goes along with it, or nothing changes.

Before anything is moved, all apps are judged by what the plugins would say then (hooks, templates, `nginx -t`).  Then one
rename puts the plugin in its place, and all apps are asked there, in one change that nginx takes as a whole or not at all;
where it does not, the plugin goes back.  Apps that were wrong before do not count, and are named.

    killed                      what is there                         who mends it
    --------------------------  ------------------------------------  -----------------------------------------------------
    before the rename           a copy below plugins/.new-PID-*       the next install or update removes it
    after it, or while it is    the plugin, which every app was       nobody has to: each app asks it at its next change;
    taken back                  found to go along with                `reconcile --all` asks for all of them at once
    after an uninstall          plugins/.new-0-NAME                   the next install or update removes it
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nginx_router import interrupts
from nginx_router.asking import FACTS
from nginx_router.discovery import DISABLED, disabled
from nginx_router.errors import RouterError
from nginx_router.events import Event
from nginx_router.files import FileLock, write_atomic
from nginx_router.findings import some

from .origins import Origin, origins, remember

if TYPE_CHECKING:
    from pathlib import Path

    from nginx_router.controller import Outcome, Router
    from nginx_router.plugins import Plugins


@dataclass(frozen=True)
class Step:
    """One thing that is done on the way, and how it is taken back."""

    do: Callable[[], object]
    undo: Callable[[], object]


@dataclass
class Switched:
    """What came of it."""

    plugins: list[dict[str, Any]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)  # of the apps that went along
    left_out: list[Outcome] = field(default_factory=list)


@contextlib.contextmanager
def alone(router: Router) -> Iterator[None]:
    """Within it no other command moves plugins: what is taken back is what was replaced.

    Raises:
        Busy: another one does, and did not end within `--lock-timeout`.
    """
    if router.request.dry_run:
        yield
        return
    router.store.prepare()
    lock = FileLock(router.paths.run / "plugins.lock")
    lock.acquire(router.request.lock_timeout, "the plugins directory")
    try:
        yield
    finally:
        lock.release()


def remembered(router: Router, name: str, origin: Origin | None) -> Step:
    """The step that writes down where a plugin came from."""
    plugins = router.paths.plugins
    before = origins(plugins).get(name)
    return Step(lambda: remember(plugins, {name: origin}), lambda: remember(plugins, {name: before}))


def enabled(router: Router, name: str, is_enabled: bool) -> Step:
    """The step that switches a plugin on or off."""
    plugins, was_enabled = router.paths.plugins, name not in disabled(router.paths.plugins)
    return Step(lambda: _switch_on(plugins, name, is_enabled), lambda: _switch_on(plugins, name, was_enabled))


def moved(path: Path, target: Path) -> Step:
    """The step that takes a directory elsewhere."""
    return Step(lambda: path.rename(target), lambda: target.rename(path))


def switch(
    router: Router,
    done: str,
    name: str,
    steps: Sequence[Step],
    instead: Mapping[str, Path | None],
    off: frozenset[str],
    *,
    before: Sequence[Event] = (),
    finish: Callable[[], None] = lambda: None,
    force: bool = False,
) -> Switched:
    """Take `steps` with every app, or not at all.

    After them the directories `instead` are in their places, and `off` are the plugins that are switched off.  `before` are
    events of its own that go with it; `finish` is called when nothing can be taken back any more.  With `force` an app that
    cannot go along stays as it was.

    Raises:
        RouterError: an app would be worse off, or it could not be done; nothing was changed.
    """
    began, dry = time.monotonic(), router.request.dry_run
    supposed = router.plugins.supposing(instead, off)
    # what it brings, be it switched off or about to go
    shown = router.plugins.supposing({place: path for place, path in instead.items() if path}, off - {name})
    result = Switched([_brings(shown, name) | {"is_enabled": name not in off}])
    asks = _shapes(router.plugins, name) or _shapes(supposed, name)
    own = {event.app for event in before}
    events = [*before, *(event for event in asked_anew(router) if asks and event.app not in own)]
    ailing: Collection[str] = ()
    if not force:
        with router.journalled(Event("take-up", None)):
            ailing = _ailing(router, done, name, (instead, off), [event.app for event in events if event.app])
    is_taken = False
    try:
        if dry:
            router.plugins = supposed
        else:
            with router.locked():  # a signal that comes meanwhile is felt behind it
                _take(steps)
                is_taken = True
            router.rediscover()
        _ask(router, result, events, ailing, force=force)
    except BaseException as why:
        if not is_taken:
            raise
        if not force or not isinstance(why, RouterError):
            _give_back(router, name, done, steps, why)
            raise
        router.out.say(f"warning: apps were not asked anew: {why.message}; then: router reconcile --all")
    if not dry:
        interrupts.hold()
        finish()
        router.plugins.forget_failures(name)
        if not events:
            router.record(began)
    return result


def tell(router: Router, results: Sequence[Switched], done: str) -> None:
    """Say what was done."""
    outcomes = [outcome for result in results for outcome in result.outcomes]
    left_out = [outcome for result in results for outcome in result.left_out]
    plugins = [each for result in results for each in result.plugins]
    dry = router.request.dry_run
    for each in plugins:
        brought = [f"{kind} {' '.join(each[kind])}" for kind in ("hooks", "commands") if each[kind]]
        what = f": {', '.join(brought) or 'no hooks, no commands'}" if each["is_usable"] else ""
        off = ", and still disabled" if done == "updated" and not each["is_enabled"] else ""
        router.out.say(f"plugin {each['name']}{each['version'] and ' '}{each['version']} {'would be ' if dry else ''}{done}{off}{what}")
    name_left_out(router, left_out)
    if results and not outcomes and not left_out:
        router.out.say("dry run, nothing was changed" if dry else "no app's configuration depends on it")
    if outcomes or router.out.is_json:
        about = [{key: each[key] for key in ("name", "version", "hooks", "commands")} for each in plugins]
        left = [{"app": o.app, "problem": o.error.message, "exit": o.error.exit_code} for o in left_out if o.error]
        router.out.changed(outcomes, about={"plugins": about, "done": done, "left_out": left})


def name_left_out(router: Router, left_out: Sequence[Outcome]) -> None:
    """Say which apps did not go along, and why."""
    for outcome in left_out:
        assert outcome.error is not None
        router.out.say(f"warning: app {outcome.app} stays as it was: {outcome.error.message}")


def together(router: Router, event: Event) -> Switched:
    """Make one change of the host and ask every app anew, all of it or nothing.

    Raises:
        RouterError: an app would be worse off; nothing was changed.
    """
    result, events = Switched(), [event, *asked_anew(router)]
    ailing: Collection[str] = set(router.stale())
    try:
        _ask(router, result, events, ailing)
    except RouterError as why:
        if why.app is None or why.app in ailing or router.judge([why.app])[why.app] is None:
            raise
        # an edit by hand that nobody took up
        ailing = {app for app, wrong in router.judge(router.store.names()).items() if wrong}
        _ask(router, result, events, ailing)
    return result


def asked_anew(router: Router) -> list[Event]:
    """The events that ask every app anew."""
    return [Event("take-up", app, {"may_be_gone": True}) for app in router.store.names()]


def shapes(hooks: Collection[str]) -> bool:
    """Whether apps' configuration keeps what one of these hooks answers."""
    return any(hook in FACTS for hook in hooks)


def _ailing(
    router: Router, done: str, name: str, then: tuple[Mapping[str, Path | None], frozenset[str]], apps: Sequence[str]
) -> Collection[str]:
    """The apps that are wrong with and without it.

    Raises:
        RouterError: what an app that is well as things are, or would be without the plugin, could not be served with.
    """
    wrong = {app: why for app, why in _judged(router, apps, *then).items() if why}
    if not wrong:
        return ()
    now = disabled(router.paths.plugins)
    well = {app for without in ({}, _nowhere(router, name)) for app, why in _judged(router, list(wrong), without, now).items() if not why}
    if not well:
        return wrong.keys()
    first, *others = sorted(well)
    why = wrong[first]
    assert why is not None
    why.message = f"plugin {name} was not {done}: {why.message}{f'; nor can {some(others)} go along' if others else ''}"
    why.hint = why.hint or "nothing was changed; with --force apps that cannot go along stay as they are"
    raise why


def _nowhere(router: Router, name: str) -> dict[str, Path | None]:
    listed = router.plugins.roster().get(name)
    directory = listed.plugin.directory if listed and listed.plugin else None
    return {directory.name if directory else name: None}


def _judged(
    router: Router, apps: Sequence[str], instead: Mapping[str, Path | None], off: frozenset[str]
) -> Mapping[str, RouterError | None]:
    """What is wrong with apps if plugins are so; what their hooks say is heard when they are asked in earnest."""
    present = router.plugins
    router.plugins = present.supposing(instead, off, quietly=True)
    try:
        return router.judge(apps) if apps else {}
    finally:
        router.plugins = present


def _ask(router: Router, result: Switched, events: Sequence[Event], ailing: Collection[str], *, force: bool = False) -> None:
    whole = [] if force else [event for event in events if event.app not in ailing]
    single = [event for event in events if force or event.app in ailing]
    outcomes = _whole(router, whole) if whole else []
    outcomes += router.change(single, independent=True) if single else []
    result.outcomes = [outcome for outcome in outcomes if outcome.error is None]
    result.left_out = [outcome for outcome in outcomes if outcome.error is not None]


def _whole(router: Router, events: Sequence[Event]) -> list[Outcome]:
    marks = router.store.stale()
    try:
        return router.change(events)
    except RouterError:
        if not router.request.dry_run:
            # none of them is stale by this: no directory is to blame, and they are served as before
            with contextlib.suppress(RouterError, OSError), router.locked():
                router.store.mark_stale({event.app: marks.get(event.app) for event in events if event.app})
        raise


def _take(steps: Sequence[Step]) -> None:
    taken: list[Step] = []
    try:
        for step in steps:
            step.do()
            taken.append(step)
    except BaseException:
        _take_back(taken)
        raise


def _take_back(steps: Sequence[Step]) -> None:
    problem: OSError | None = None
    for step in reversed(steps):
        try:
            step.undo()
        except OSError as why:  # a full disk: the others are taken back all the same
            problem = problem or why
    if problem is not None:
        raise problem


def _give_back(router: Router, name: str, done: str, steps: Sequence[Step], why: BaseException) -> None:
    """Put things back after apps did not go along, although they were judged able to."""
    try:
        with router.locked():
            _take_back(steps)
        what = f"plugin {name} was not {done}"
    except (RouterError, OSError) as left:
        reason = left.message if isinstance(left, RouterError) else str(left)
        what = f"plugin {name} is {done}, and could not be put back ({reason}), but apps were not asked anew"
        if isinstance(why, RouterError):
            why.hint = "router reconcile --all"
    router.rediscover()
    if isinstance(why, RouterError):
        why.message = f"{what}: {why.message}"
    else:
        router.out.say(what)


def _shapes(plugins: Plugins, name: str) -> bool:
    listed = plugins.roster().get(name)
    return listed is not None and (bool(listed.problem) or shapes(plugins.hooks_of(name)))


def _brings(plugins: Plugins, name: str) -> dict[str, Any]:
    listed = plugins.roster().get(name)
    plugin = listed.plugin if listed else None
    return {
        "name": name,
        "version": plugin.version if plugin else "",
        "hooks": plugins.hooks_of(name),
        "commands": sorted(plugin.commands) if plugin else [],
        "is_usable": plugin is not None and not (listed and listed.problem),
    }


def _switch_on(plugins: Path, name: str, is_enabled: bool) -> None:
    was = disabled(plugins)
    now = was - {name} if is_enabled else was | {name}
    if now != was:
        write_atomic(plugins / DISABLED, "".join(f"{each}\n" for each in sorted(now)).encode())
