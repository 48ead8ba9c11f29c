"""The directories that scripts and people edit: read as texts, written so that every write can be undone.

The order of a change is: intent.json (what is about to be written) -> files -> generation -> `current`.  After a crash
`undo` takes back only files that still hold what the change wrote: somebody may have edited one since.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import NotFound, StateCorrupt, UsageProblem, nearest
from .files import encoded, read_text, write_atomic
from .model import APP_TOML, DOMAINS, SNIPPETS, TEMPLATE, UPSTREAMS, Texts
from .names import app_name
from .settings import Paths


@dataclass(frozen=True)
class Write:
    """One file of the root, before and after (None: not there)."""

    path: str
    old: str | None
    new: str | None


@dataclass(frozen=True)
class Move:
    """One app directory and where it goes; a destroyed app goes to the trash first."""

    old: str
    new: str


Step = Write | Move

#: Where a destroyed app waits until its change is proven; on the same file system, and no app name begins with a dot.
TRASH = "apps/.trash"


class Store:
    """The directories of one root."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths

    def prepare(self) -> None:
        """Make the directories that every change needs."""
        for path in (self.paths.apps, self.paths.objects, self.paths.generations, self.paths.queue, self.paths.log):
            path.mkdir(parents=True, exist_ok=True)

    def names(self) -> list[str]:
        """Every app: each directory below apps/ with the name of one."""
        try:
            with os.scandir(self.paths.apps) as found:
                return sorted(e.name for e in found if e.is_dir(follow_symlinks=False) and _is_name(e.name))
        except FileNotFoundError:
            return []

    def exists(self, app: str) -> bool:
        """Whether there is an app of this name."""
        return self.paths.app(app).is_dir() and not self.paths.app(app).is_symlink()

    def require(self, app: str) -> None:
        """Make sure that there is an app of this name.

        Raises:
            NotFound: there is none; the nearest is named.
        """
        if not self.exists(app):
            raise NotFound(f"there is no app '{app}'{nearest(app, self.names())}", hint="router apps:list", app=app)

    def texts(self, app: str) -> Texts | None:
        """The texts of an app; None where there is no such app.

        Raises:
            UsageProblem: one of its files is no regular file.
        """
        directory = self.paths.app(app)
        if not self.exists(app):
            return None
        found: dict[str, str] = {}
        for name in (DOMAINS, UPSTREAMS, APP_TOML, TEMPLATE):
            text = read_text(directory / name)
            if text is not None:
                found[name] = text
        snippets = directory / SNIPPETS
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if snippets.is_symlink():
                raise UsageProblem(f"{snippets}: a link, not a directory", app=app)
            for name in sorted(os.listdir(snippets)):  # noqa: PTH208 - names only, no Path a file
                if name.endswith(".conf") and not name.startswith("."):
                    text = read_text(snippets / name)
                    if text is not None:
                        found[SNIPPETS + name] = text
        return found

    def globals(self) -> tuple[str, str]:
        """The texts of router.toml and of the global DOMAINS."""
        return read_text(self.paths.config) or "", read_text(self.paths.global_domains) or ""

    def steps(self, app: str, old: Texts | None, new: Texts | None) -> list[Step]:
        """What takes the directory of `app` from `old` to `new`."""
        if new is None:
            return [Move(f"apps/{app}", f"{TRASH}/{app}")] if old is not None else []
        return [
            Write(f"apps/{app}/{path}", (old or {}).get(path), new.get(path))
            for path in sorted({*(old or {}), *new})
            if (old or {}).get(path) != new.get(path)
        ]

    def apply(self, steps: Iterable[Step]) -> None:
        """Write the files."""
        for step in steps:
            if isinstance(step, Move):
                target = self.paths.root / step.new
                target.parent.mkdir(parents=True, exist_ok=True)
                (self.paths.root / step.old).rename(target)
            else:
                self._write(step.path, step.new)

    def undo(self, steps: Iterable[Step]) -> list[str]:
        """Take back what of `steps` was done; the files that were edited since are left and named."""
        left = []
        for step in reversed(list(steps)):
            if isinstance(step, Move):
                source, target = self.paths.root / step.old, self.paths.root / step.new
                if target.exists() and not source.exists():
                    target.rename(source)
                continue
            now = read_text(self.paths.root / step.path)
            if now == step.new and now != step.old:
                self._write(step.path, step.old)
            elif now != step.old:
                left.append(step.path)
        return left

    def write_intent(self, intent: Mapping[str, Any], steps: Iterable[Step]) -> None:
        """Say what is about to be written, so that the next process can finish or undo it."""
        raw = [["move", s.old, s.new] if isinstance(s, Move) else ["write", s.path, s.old, s.new] for s in steps]
        write_atomic(self.paths.intent, json.dumps({**intent, "steps": raw}).encode())

    def intent(self) -> tuple[dict[str, Any], list[Step]] | None:
        """What a crashed change was about to write.

        Raises:
            StateCorrupt: intent.json cannot be read.
        """
        try:
            raw = json.loads(self.paths.intent.read_text())
            steps: list[Step] = [Move(s[1], s[2]) if s[0] == "move" else Write(s[1], s[2], s[3]) for s in raw["steps"]]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, IndexError) as why:
            raise StateCorrupt(f"{self.paths.intent}: {why}", hint="remove it, then: router reconcile --all") from None
        return raw, steps

    def clear_intent(self) -> None:
        """The change is finished or undone."""
        self.paths.intent.unlink(missing_ok=True)
        shutil.rmtree(self.paths.root / TRASH, ignore_errors=True)

    def stale(self) -> dict[str, dict[str, Any]]:
        """The apps whose directory cannot be served: app -> problem and exit code."""
        try:
            return dict(json.loads(self.paths.stale.read_text()))
        except (FileNotFoundError, ValueError):
            return {}

    def mark_stale(self, changes: Mapping[str, Mapping[str, Any] | None]) -> None:
        """Remember or (None) forget why an app's directory cannot be served."""
        was = self.stale()
        now = {app: problem for app, problem in {**was, **changes}.items() if problem is not None}
        if now != was:
            write_atomic(self.paths.stale, json.dumps(now, sort_keys=True).encode())

    def append_journal(self, line: Mapping[str, Any]) -> None:
        """Add one line to the journal; O_APPEND keeps lines of several processes whole."""
        fd = os.open(self.paths.journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, (json.dumps(line) + "\n").encode())
        finally:
            os.close(fd)

    def _write(self, path: str, text: str | None) -> None:
        target: Path = self.paths.root / path
        if text is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(target, encoded(text))
            return
        target.unlink(missing_ok=True)
        if path.startswith("apps/"):
            # directories that a change made and left empty go with it: nginx.conf.d, then the app's own
            for parent in (target.parent, target.parent.parent):
                if parent == self.paths.apps:
                    break
                with contextlib.suppress(OSError):
                    parent.rmdir()


def _is_name(name: str) -> bool:
    try:
        return bool(app_name(name))
    except UsageProblem:
        return False
