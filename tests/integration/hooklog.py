"""A plugin that has every hook, and what it was called with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from nginx_router.hookspecs import COMMON, HOOKS

if TYPE_CHECKING:
    from .conftest import Live

#: Keeps each call as one line of JSON: its arguments and its stdin; then answers with what lies in answers/HOOK.
LOG = """
argv=; for word in "$@"; do argv="$argv,\\"$word\\""; done
printf '{"hook": "%s", "argv": [%s], "event": %s}\\n' "$ROUTER_HOOK" "${argv#,}" "$(cat)" >>"$ROUTER_PLUGIN_DATA/calls"
cat "$ROUTER_PLUGIN_DATA/$ROUTER_HOOK" 2>/dev/null || true
"""


class Log:
    """A plugin that has every hook and remembers each call."""

    def __init__(self, live: Live) -> None:
        self.live, self.data = live, live.paths.root / "data/log"
        self.data.mkdir(parents=True)
        live.plugin("log", **{hook.replace("-", "_"): LOG for hook in HOOKS})
        self.seen: set[str] = set()

    def answers(self, **answers: str) -> None:
        for hook, text in answers.items():
            (self.data / hook.replace("_", "-")).write_text(text)

    def calls(self, *command: object, code: int = 0) -> list[dict[str, Any]]:
        """The calls that one command makes, in their order."""
        file = self.data / "calls"
        file.unlink(missing_ok=True)
        result = self.live(*command)
        assert result.code == code, result
        found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        for call in found:
            event, hook = call["event"], HOOKS[call["hook"]]
            assert set(event) >= {*COMMON, *hook.keys}, f"{hook.name} has every key that it promises"
            assert (event["api"], event["hook"], event["user"], event["uid"]) == (1, hook.name, "root", 0)
            assert event["command"].split()[0] == str(command[0])
            assert call["argv"] == hook.arguments(event)
        self.seen |= {call["hook"] for call in found}
        return found

    def words(self, *command: object, code: int = 0) -> list[str]:
        """The same as hook and arguments, in one string each."""
        return [" ".join([call["hook"], *call["argv"]]) for call in self.calls(*command, code=code)]


@pytest.fixture
def log(two_apps: Live) -> Iterator[Log]:
    yield Log(two_apps)


def asked_and_told(words: list[str]) -> list[str]:
    """Of hooks and their arguments those of gates and notify hooks that are not about each change."""
    return [word for word in words if word.startswith(("pre-", "post-")) and "-apply " not in word]
