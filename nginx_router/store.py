"""The directories that scripts and people edit: read as texts, written so that every write can be undone.

The order of a change is: intent.json (what is about to be written) -> files -> generation -> `current`.  After a crash
`undo` takes back only files that still hold what the change wrote: somebody may have edited one since.  A change of endpoints
that makes no generation (`endpointlog`) comes first and its files second; there `finish` goes on, by the same rule.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .beneath import Directory
from .errors import Conflict, NotFound, NotPermitted, RouterError, StateCorrupt, UsageProblem, nearest
from .files import LARGEST, encoded, inherit_owner, make_directory, read_text, remove_tree, sync_directory, write_atomic
from .model import APP_TOML, DOMAINS, SNIPPETS, TEMPLATE, UPSTREAMS, Texts
from .names import app_name, shown
from .owners import Confined, Hosts
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


def plain_steps(steps: Iterable[Step]) -> list[list[str | None]]:
    """Steps as JSON has them."""
    return [["move", s.old, s.new] if isinstance(s, Move) else ["write", s.path, s.old, s.new] for s in steps]


def steps_of(plain: Iterable[Any]) -> list[Step]:
    """What `plain_steps` made them of."""
    return [Move(s[1], s[2]) if s[0] == "move" else Write(s[1], s[2], s[3]) for s in plain]


#: Where a destroyed app waits until its change is proven; on the same file system, and no app name begins with a dot.
TRASH = "apps/.trash"

#: The most that the files of one app come to, and its app.toml, which is parsed under the host lock.
LARGEST_APP, LARGEST_TOML = 4 * LARGEST, LARGEST >> 4

#: How long the host waits for the removal of what an app's owner left, in seconds; the rest goes with later changes.
_TIDYING = 5.0

#: Room on the disk for putting a change back and for the answers.
_RESERVE = 256 << 10


class Store:
    """The directories of one root."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths

    def prepare(self) -> None:
        """Make the directories that every change needs."""
        for path in (self.paths.apps, self.paths.generations, self.paths.log, self.paths.run / "tmp"):
            make_directory(path)
        # snippets and what waits may hold what is nobody else's affair
        for path in (self.paths.objects, self.paths.queue):
            make_directory(path, mode=0o700)
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
        try:
            with self._apps() as apps, apps.inside(app) as directory:
                return _texts(app, directory)
        except FileNotFoundError:
            return None
        except (UsageProblem, NotPermitted) as why:
            why.app = app
            if not self.exists(app):
                raise UsageProblem(
                    f"apps/{app} is no directory of its own, so it is no app", hint=f"ls -ld {self.paths.app(app)}", app=app
                ) from None
            raise

    def confined(self, app: str) -> Confined:
        """What of an app's directory others than the host's own people may write.

        Whoever may write something can not make it look as if they may not: a directory of theirs stays theirs, whatever
        they put in it, and what lies in one of the host's is exchanged by nobody else.
        """
        with contextlib.suppress(FileNotFoundError, UsageProblem, NotPermitted), self._apps() as apps, apps.inside(app) as directory:
            if not directory.alone_written():
                return Confined(everything=True)
            found = [name for name in (DOMAINS, UPSTREAMS, APP_TOML, TEMPLATE) if not _alone(directory, name)]
            with contextlib.suppress(FileNotFoundError, UsageProblem), directory.inside(SNIPPETS[:-1]) as snippets:
                if not snippets.alone_written():
                    return Confined(snippets=True, files=frozenset(found))
                found += [SNIPPETS + name for name in snippets.names() if not _alone(snippets, name)]
            return Confined(files=frozenset(found))
        return Confined()

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
                self._refuse_edited(step)
                self._write(step.path, step.new)

    def check(self, steps: Iterable[Step]) -> None:
        """See that the files can be written, which they are only when nginx serves what they say.

        Raises:
            Conflict: one was edited since it was read.
            OSError: one cannot be: nobody here may, or the disk is full.
        """
        for step in steps:
            if isinstance(step, Write):
                self._refuse_edited(step)
                _, *names, _name = f"/{step.path}".split("/")
                if names[:1] == ["apps"] and step.new is not None:
                    with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as opened:
                        _walk(opened, self._apps(), names[1:]).try_writing(encoded(step.new))

    def finish(self, steps: Iterable[Step]) -> None:
        """Write what a crash left unwritten; the files that were edited since are left.

        Raises:
            RouterError: one cannot be read.
            OSError: one cannot be written.
        """
        for step in steps:
            if isinstance(step, Write) and step.old != step.new and self._read(step.path) == step.old:
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
                    sync_directory(source.parent)
                    sync_directory(target.parent)
                continue
            if step.path.startswith(not_there):
                continue
            try:
                now = self._read(step.path)
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
        write_atomic(self.paths.intent, json.dumps({**intent, "steps": plain_steps(steps)}).encode(), mode=0o600)

    def intent(self) -> tuple[dict[str, Any], list[Step]] | None:
        """What a crashed change was about to write.

        Raises:
            StateCorrupt: intent.json cannot be read.
        """
        try:
            raw = json.loads(self.paths.intent.read_text())
            steps = steps_of(raw["steps"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, IndexError, TypeError) as why:
            raise StateCorrupt(f"{self.paths.intent}: {why!r}", hint="router doctor --fix puts it aside") from None
        return raw, steps

    def clear_intent(self) -> None:
        """The change is finished or undone."""
        with contextlib.suppress(FileNotFoundError):
            self.paths.intent.unlink()
            # one that a power cut brought back would undo what was written since by hand
            sync_directory(self.paths.run)

    def begin(self) -> None:
        """Say that a change without an intent is under way; what is to become of it after a crash stands in its log."""
        os.close(os.open(self.paths.changing, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))

    def end(self) -> None:
        """It is not any more."""
        self.paths.changing.unlink(missing_ok=True)

    def is_changing(self) -> bool:
        """Whether a change is under way, or a crash left one."""
        return self.paths.intent.exists() or self.paths.changing.exists()

    def is_changing_app(self, app: str) -> bool:
        """The same of one app, as far as it is known: a change of endpoints alone does not say of whom it is, and takes some ms."""
        with contextlib.suppress(StateCorrupt):
            if (found := self.intent()) is not None:
                paths = [path for step in found[1] for path in ([step.path] if isinstance(step, Write) else [step.old, step.new])]
                return any(f"{path}/".startswith(f"apps/{app}/") for path in paths)
        return self.is_changing()

    def empty_trash(self) -> None:
        """Remove the directories of destroyed apps; what may not be removed, or takes too long, stays in apps/.trash."""
        if os.path.lexists(self.paths.root / TRASH):
            remove_tree(self.paths.root / TRASH, _TIDYING)

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

    def _apps(self) -> Directory:
        return Directory.open(self.paths.apps, Hosts.of(self.paths.root))

    def _refuse_edited(self, step: Write) -> None:
        if (self._read(step.path) or "") != (step.old or ""):
            app = step.path.split("/")[1] if step.path.startswith("apps/") else None
            raise Conflict(f"{step.path} was edited during the change, which was not made", hint="the same command again", app=app)

    def _read(self, path: str) -> str | None:
        _, *steps, name = f"/{path}".split("/")
        if steps[:1] != ["apps"]:
            return read_text(self.paths.root / path)
        try:
            with contextlib.ExitStack() as opened:
                return _walk(opened, self._apps(), steps[1:]).read(name)
        except FileNotFoundError:
            return None

    def _write(self, path: str, text: str | None) -> None:
        _, *steps, name = f"/{path}".split("/")
        if steps[:1] != ["apps"]:
            target = self.paths.root / path
            if text is None:
                target.unlink(missing_ok=True)
                sync_directory(target.parent)
            else:
                write_atomic(target, encoded(text))
            return
        with contextlib.ExitStack() as opened:
            if text is not None:
                _walk(opened, self._apps(), steps[1:], make=True).write(name, encoded(text))
                return
            with contextlib.suppress(FileNotFoundError):
                _walk(opened, self._apps(), steps[1:]).remove(name)
        # directories that a change made and left empty go with it: nginx.conf.d, then the app's own
        while len(steps) > 1:
            last = steps.pop()
            with contextlib.suppress(OSError, UsageProblem), contextlib.ExitStack() as opened:
                _walk(opened, self._apps(), steps[1:]).remove_empty(last)


def _walk(opened: contextlib.ExitStack, directory: Directory, steps: Iterable[str], *, make: bool = False) -> Directory:
    opened.enter_context(directory)
    for step in steps:
        directory = opened.enter_context(directory.inside(step, make=make))
    return directory


def _texts(app: str, directory: Directory) -> Texts:
    found: dict[str, str] = {}
    for name in (DOMAINS, UPSTREAMS, APP_TOML, TEMPLATE):
        text = directory.read(name)
        if text is not None:
            found[name] = text
    if len(found.get(APP_TOML, "")) > LARGEST_TOML:
        raise UsageProblem(f"{directory.path / APP_TOML}: larger than {LARGEST_TOML} bytes")
    size = sum(map(len, found.values()))
    with contextlib.suppress(FileNotFoundError), directory.inside(SNIPPETS[:-1]) as snippets:
        for name in snippets.names():
            if not name.endswith(".conf") or name.startswith("."):
                continue
            if not name.isprintable():
                # the name stands in a comment of the vhost: a newline in it would end the comment
                raise UsageProblem(f"apps/{app}/{SNIPPETS}{shown(name)}: a file name holds no control characters")
            text = snippets.read(name)
            if text is not None:
                found[SNIPPETS + name] = text
                size += len(text)
            if size > LARGEST_APP:
                raise UsageProblem(f"{directory.path}: its files come to more than {LARGEST_APP} bytes")
    return found


def _alone(directory: Directory, name: str) -> bool:
    try:
        return directory.alone_written(name)
    except FileNotFoundError:
        return True


def _is_name(name: str) -> bool:
    try:
        return bool(app_name(name))
    except UsageProblem:
        return False
