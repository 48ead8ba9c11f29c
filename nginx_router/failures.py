"""What failed, and what failed last: a small file for each call of a hook that failed, gone as soon as the same call goes well.

They lie in run/failed/ as `PLUGIN:HOOK:APP`.  Nothing rests on them: where one cannot be written (a full disk, a root of
somebody else), the failure was said all the same.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .files import make_directory, write_atomic
from .hookspecs import HOOKS


class Failure(Exception):
    """A hook said no, or could not say anything.

    `crashed` tells the two apart: a plain non-zero exit is an answer, a timeout, a signal or garbage is none.
    """

    def __init__(self, reason: str, *, crashed: bool, hint: str = "", out: str = "", spoke: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.crashed = crashed
        self.hint = hint
        self.out = out
        self.spoke = spoke  # whether the reason is the hook's own words


@dataclass(frozen=True)
class Failed:
    """One call that failed and did not go well since."""

    hook: str
    app: str | None
    time: str
    command: str  # within which it was called
    problem: str  # the plugin's last words

    @property
    def what(self) -> str:
        """In a line: which call, when, and the last words."""
        return f"{self.hook}{f' of {self.app}' if self.app else ''} failed at {self.time}: {self.problem}"


class Failures:
    """Those of one root."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def keep(self, plugin: str, event: Mapping[str, Any], problem: str) -> None:
        """Remember that this call failed."""
        with contextlib.suppress(OSError, ValueError):
            path = self._path(plugin, event)
            make_directory(path.parent, mode=0o700)  # last words may hold an address with its password
            failed = Failed(event["hook"], event["app"], event["time"], event["command"], problem)
            write_atomic(path, json.dumps(asdict(failed)).encode())

    def forget(self, plugin: str, event: Mapping[str, Any] | None = None) -> None:
        """This call went well; without one, whatever failed was another version's."""
        with contextlib.suppress(OSError, ValueError):
            for path in [self._path(plugin, event)] if event else list(self._directory.glob(f"{plugin}:*")):
                path.unlink(missing_ok=True)

    def of(self, plugin: str, exists: Callable[[str], bool]) -> list[Failed]:
        """What failed last of a plugin, the newest first; what was about an app that does not exist is nobody's any more."""
        found: list[Failed] = []
        paths: list[Path] = []
        with contextlib.suppress(OSError):
            paths = sorted(self._directory.glob(f"{plugin}:*"))
        for path in paths:
            with contextlib.suppress(OSError, ValueError, TypeError):
                failed = Failed(**json.loads(path.read_bytes()))
                if failed.hook in HOOKS and (failed.app is None or exists(failed.app)):
                    found.append(failed)
        return sorted(found, key=lambda failed: failed.time, reverse=True)

    def _path(self, plugin: str, event: Mapping[str, Any]) -> Path:
        app = event["app"] or ""
        if "/" in app or app.startswith("."):  # it would lead out of the directory
            raise ValueError(app)
        return self._directory / f"{plugin}:{event['hook']}:{app}"
