"""One call of one hook: what the plugin is given (settings, environment, a directory of its own), and what its answer is worth.

Which plugins are called, and what a failure means for a change, is the rule of the hook's kind (`plugins`).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import discovery
from .discovery import Plugin
from .errors import RouterError, Terminated, UsageProblem
from .failures import Failure, Failures
from .files import LARGEST
from .hookspecs import API, Hook, lookup
from .inside import marked
from .printed import beside_the_talk
from .registry import HookEvent, Implementation, words
from .settings import Paths

#: Plugin -> its keys and their values, as router.toml or an app.toml has them.
Tables = Mapping[str, Mapping[str, Any]]


class Calls:
    """How the plugins of one root are called; `failures`: where what fails is kept, None: nowhere."""

    def __init__(
        self,
        paths: Paths,
        say: Callable[[str], None],
        settings: Callable[[], Tables],
        app_settings: Callable[[str], Tables],
        failures: Failures | None,
    ) -> None:
        self._paths = paths
        self._say = say
        self._settings = settings
        self._app_settings = app_settings
        self._failures = failures
        self._foreseen: tuple[Tables, Mapping[str, Tables]] | None = None

    @contextlib.contextmanager
    def foreseeing(self, host: Tables, apps: Mapping[str, Tables]) -> Iterator[None]:
        """Within it plugins have these settings, which a change is about to write, and not those in the files."""
        before, self._foreseen = self._foreseen, (host, apps)
        try:
            yield
        finally:
            self._foreseen = before

    def call(self, each: Implementation, event: Mapping[str, Any]) -> str:
        """The answer of one plugin to a complete event; a failure is kept until the same call goes well.

        Raises:
            Failure: there is none; why, and whether that is the plugin's own decision.
        """
        try:
            answer = self.look(each, event)
        except Failure as why:
            # a gate that says no and a first hook that has nothing to say did their work
            if self._failures and (why.crashed or lookup(event["hook"]).kind not in ("gate", "first")):
                self._failures.keep(each.plugin.name, event, why.reason)
            raise
        if self._failures:
            self._failures.forget(each.plugin.name, event)
        return answer

    def look(self, each: Implementation, event: Mapping[str, Any]) -> str:
        """The same for what only shows something: nothing is kept.

        Raises:
            Failure: as above.
        """
        own = HookEvent(json.loads(json.dumps(event)))  # its own copy: what it does to it is its own affair
        try:
            config = self.config(each.plugin, event["app"])
        except UsageProblem as why:
            raise Failure(f"router.toml: {why.message}", crashed=True, hint=f"router plugins:set {each.plugin.name} KEY VALUE") from None
        own.plugin, own.config, own.data = each.plugin.name, config, self.data(each.plugin)
        try:
            with marked(lookup(event["hook"]).kind, event["app"]), beside_the_talk():
                answer = each.call(own)
        except (Failure, Terminated):
            raise
        except RouterError as why:
            raise Failure(why.message, crashed=False, hint=why.hint) from why
        except (Exception, SystemExit) as why:  # a plugin boundary: whatever a stranger's code raises
            raise Failure(words(why, each.plugin), crashed=True) from why
        return _text(answer)

    def execute(self, plugin: Plugin, hook: Hook, path: Path, event: HookEvent) -> str:
        """Run the executable of a hook, and give what it printed; its stderr is shown under the plugin's name.

        Raises:
            Failure: it could not be run, or did not end with 0.
        """
        from . import executables  # with what starts processes, 4 ms

        answer = executables.run(
            [str(path), *hook.arguments(event)],
            stdin=json.dumps(event).encode() + b"\n",
            env={**self.environment(plugin, event.config, event.data), "ROUTER_HOOK": hook.name},
            directory=path.parent,
            timeout=plugin.timeout,
        )
        for line in answer.talk:
            self._say(f"{plugin.name}: {line}")
        return answer.out

    def environment(self, plugin: Plugin, config: Mapping[str, str], data: Path) -> dict[str, str]:
        """What the contract promises an executable, added to what the caller has."""
        from . import executables

        # the configuration and the name of a hook around this one are not this one's
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("CONFIG_") and key != "ROUTER_HOOK"}
        return {
            **inherited,
            "ROUTER_API": str(API),
            "ROUTER_ROOT": str(self._paths.root),
            "ROUTER_BIN": executables.router_bin(),
            "ROUTER_PLUGIN": plugin.name,
            "ROUTER_PLUGIN_DATA": str(data),
            **{f"CONFIG_{key.upper().replace('-', '_')}": value for key, value in config.items()},
        }

    def config(self, plugin: Plugin, app: str | None) -> dict[str, str]:
        """The values of its keys: the app's over the host's over the default.

        Raises:
            UsageProblem: one is of another type; an app.toml with such a one is never taken up, so that it stands in router.toml.
        """
        if self._foreseen is None:
            host, own = self._settings(), self._app_settings(app) if app else {}
        else:
            host, own = self._foreseen[0], self._foreseen[1].get(app or "", {})
        values = {**host.get(plugin.name, {}), **own.get(plugin.name, {})}
        for name, value in values.items():
            if name in plugin.keys:
                values[name] = plugin.keys[name].accept(value)
        return {**plugin.config, **discovery.as_config(values)}

    def data(self, plugin: Plugin) -> Path:
        """The directory that is the plugin's own; it exists from now on."""
        data = self._paths.root / "data" / plugin.name
        if not data.is_dir():
            data.parent.mkdir(parents=True, exist_ok=True)
            data.mkdir(mode=0o700, exist_ok=True)
        return data


def _text(answer: object) -> str:
    """What a hook answered, if it is text."""
    if answer is None:
        return ""
    if not isinstance(answer, str):
        raise Failure(f"answered with {type(answer).__name__}, not with text or None", crashed=True)
    try:
        size = len(answer.encode())
    except UnicodeEncodeError:  # lone surrogates
        size = -1
    if size < 0 or "\0" in answer:
        raise Failure("answered with what is not UTF-8 text", crashed=True)
    if size > LARGEST:
        raise Failure(f"answered with more than {LARGEST} bytes", crashed=True)
    return answer
