"""The directories that scripts and people edit: read as texts, written so that every write can be undone.

The order of a change is: intent.json (what is about to be written) -> files -> generation -> `current`.  After a crash
`undo` takes back only files that still hold what the change wrote: somebody may have edited one since.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import Conflict, NotFound, NotPermitted, RouterError, StateCorrupt, UsageProblem, nearest
from .files import encoded, inherit_owner, make_directory, read_text, sync_directory, write_atomic
from .model import APP_TOML, DOMAINS, SNIPPETS, TEMPLATE, UPSTREAMS, Texts
from .names import app_name, shown
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

#: Room on the disk for putting a change back and for the answers.
_RESERVE = 256 << 10


class Store:
    """The directories of one root."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths

    def prepare(self) -> None:
        """Make the directories that every change needs."""
        for path in (self.paths.apps, self.paths.objects, self.paths.generations, self.paths.queue, self.paths.log, self.paths.run / "tmp"):
            make_directory(path)
        with contextlib.suppress(OSError):
            if not self.paths.reserve.exists():
                write_atomic(self.paths.reserve, b"\0" * _RESERVE)

    def free_reserve(self) -> None:
        """Give the disk what it needs to put a change back, or to answer for one: nothing may depend on a full disk."""
        with contextlib.suppress(OSError):
            self.paths.reserve.unlink(missing_ok=True)

    def give_back(self) -> None:
        """Give what root left at the top of somebody's root to its owner: the journal, the lock, logs that `nginx -t` made."""
        if os.geteuid() != 0 or self.paths.root.stat().st_uid == 0:
            return
        for directory in (self.paths.root, self.paths.run, self.paths.log):
            for path in directory.iterdir():
                inherit_owner(path)

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
            if os.path.lexists(directory):
                raise UsageProblem(f"apps/{app} is no directory of its own, so it is no app", hint=f"ls -ld {directory}", app=app)
            return None
        try:
            return self._texts(app, directory)
        except (UsageProblem, NotPermitted) as why:
            why.app = app
            raise

    def _texts(self, app: str, directory: Path) -> Texts:
        found: dict[str, str] = {}
        for name in (DOMAINS, UPSTREAMS, APP_TOML, TEMPLATE):
            text = read_text(directory / name)
            if text is not None:
                found[name] = text
        snippets = directory / SNIPPETS
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if snippets.is_symlink():
                raise UsageProblem(f"{snippets}: a link, not a directory")
            for name in sorted(os.listdir(snippets)):  # noqa: PTH208 - names only, no Path a file
                if name.endswith(".conf") and not name.startswith("."):
                    if not name.isprintable():
                        # the name stands in a comment of the vhost: a newline in it would end the comment
                        raise UsageProblem(f"apps/{app}/{SNIPPETS}{shown(name)}: a file name holds no control characters")
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
            # a name of its own: what an earlier one left there may be nobody's to remove
            return [Move(f"apps/{app}", f"{TRASH}/{app}.{time.time_ns()}")] if old is not None else []
        return [
            Write(f"apps/{app}/{path}", (old or {}).get(path), new.get(path))
            for path in sorted({*(old or {}), *new})
            if (old or {}).get(path) != new.get(path)
        ]

    def move(self, old: str, new: str) -> list[Step]:
        """What gives the directory of app `old` the name `new`."""
        return [Move(f"apps/{old}", f"apps/{new}")]

    def global_steps(self, old: tuple[str, str], new: tuple[str, str]) -> list[Step]:
        """What takes router.toml and the global DOMAINS from `old` to `new`."""
        files = (self.paths.config, self.paths.global_domains)
        # one that is not there reads as empty, and is not there again when the change is undone
        return [
            Write(file.name, before or ("" if file.exists() else None), after)
            for file, before, after in zip(files, old, new, strict=True)
            if before != after
        ]

    def apply(self, steps: Iterable[Step]) -> None:
        """Write the files.

        Raises:
            Conflict: one was edited since it was read; those before it are written, `undo` takes them back.
        """
        for step in steps:
            if isinstance(step, Move):
                source, target = self.paths.root / step.old, self.paths.root / step.new
                make_directory(target.parent)
                source.rename(target)
                sync_directory(source.parent)
                sync_directory(target.parent)
            else:
                if (read_text(self.paths.root / step.path) or "") != (step.old or ""):
                    app = step.path.split("/")[1] if step.path.startswith("apps/") else None
                    raise Conflict(f"{step.path} was edited during the change, which was not made", hint="the same command again", app=app)
                self._write(step.path, step.new)

    def undo(self, steps: Iterable[Step]) -> list[str]:
        """Take back what of `steps` was done; the files that were edited since are left and named."""
        left = []
        steps = list(steps)
        # a crash that came before a directory got its new name came before the writes in it too
        not_there = tuple(f"{s.new}/" for s in steps if isinstance(s, Move) and not (self.paths.root / s.new).exists())
        for step in reversed(steps):
            if isinstance(step, Move):
                source, target = self.paths.root / step.old, self.paths.root / step.new
                if target.exists() and not source.exists():
                    target.rename(source)
                continue
            if step.path.startswith(not_there):
                continue
            try:
                now = read_text(self.paths.root / step.path)
                if now == step.new and now != step.old:
                    self._write(step.path, step.old)
                elif now != step.old:
                    left.append(step.path)
            except (RouterError, OSError):
                # somebody put a link there since, or it cannot be written: the others are undone all the same
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
        except (ValueError, KeyError, IndexError, TypeError) as why:
            raise StateCorrupt(f"{self.paths.intent}: {why!r}", hint="remove it, then: router reconcile --all") from None
        return raw, steps

    def clear_intent(self) -> None:
        """The change is finished or undone."""
        self.paths.intent.unlink(missing_ok=True)

    def empty_trash(self) -> None:
        """Remove the directories of destroyed apps; what may not be removed stays in apps/.trash."""
        shutil.rmtree(self.paths.root / TRASH, ignore_errors=True)

    def stale(self) -> dict[str, dict[str, Any]]:
        """The apps whose directory cannot be served: app -> problem and exit code."""
        try:
            return dict(json.loads(self.paths.stale.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
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
            make_directory(target.parent)
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
