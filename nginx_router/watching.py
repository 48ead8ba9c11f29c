"""What `router watch` looks at, and what a changed path means: watchdog's observer, and what it cannot say itself.

watchdog watches a tree, but passes over directories below it for which the kernel has no room, and only logs that events were lost.
So the kernel is asked whether it has room, and watchdog's warnings are listened to.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from watchdog import events
from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify import InotifyObserver
from watchdog.observers.polling import PollingObserver

from .discovery import DISABLED
from .errors import UsageProblem
from .model import APP_TOML, DOMAINS, SNIPPETS, TEMPLATE, UPSTREAMS
from .names import app_name
from .resources import shipped
from .settings import Paths

#: Seconds between two looks where inotify cannot be had.
POLL = 2.0

#: What changes mean that are not an app's; no app has such a name.
HOST, CODE, ROOT, INTENT, LOST = "/host", "/code", "/root", "/intent", "/lost"

#: The files of an app's directory that are read; all others in it are their owner's affair.
_APP_FILES = (DOMAINS, UPSTREAMS, APP_TOML, TEMPLATE)


class Touch(NamedTuple):
    """One change that was seen."""

    what: str  # an app, or one of the words above
    file: str
    is_held: bool  # its writer has not closed it


Report = Callable[[Touch], None]


class InotifyFull(Exception):
    """The kernel has no room for another watch; the setting that limits it."""


@dataclass(frozen=True)
class Tree:
    """One directory that is looked at."""

    path: Path
    meaning: Callable[[str, bool], str | None]  # relative path, is it a directory -> what it is a change of
    is_recursive: bool = True


def trees(paths: Paths) -> list[Tree]:
    """All that is looked at: the apps, the host's own files, plugins, and the program itself with its templates."""
    code = [Tree(Path(__file__).parent, _of_code, is_recursive=False), Tree(paths.plugins, _of_code)]
    with contextlib.suppress(FileNotFoundError):  # while an upgrade is under way they may be missing
        code += [Tree(shipped("templates"), _of_code), Tree(shipped("plugins"), _of_code)]
    return [
        Tree(paths.root, _of_root, is_recursive=False),
        Tree(paths.apps, _of_apps),
        Tree(paths.run, _of_run, is_recursive=False),
        *(tree for tree in code if tree.path.is_dir()),
    ]


class Watching:
    """The observer of one root; `report` is called from its threads."""

    def __init__(self, paths: Paths, report: Report) -> None:
        self._paths, self._report = paths, report
        self._observer: BaseObserver | None = None
        self._listener = _Listener(report)
        self.is_polling = False

    def start(self, *, polling: bool = False) -> None:
        """Look from now on: by inotify, or by comparing every `POLL` seconds.

        Raises:
            InotifyFull: the kernel has no room; nothing is looked at.
            OSError: a directory is gone.
        """
        self.stop()
        logging.getLogger("watchdog").addHandler(self._listener)
        try:
            observer: BaseObserver = PollingObserver(timeout=POLL) if polling else InotifyObserver()
            try:
                for tree in trees(self._paths):
                    # the kernel does not follow a link; paths are reported as they are given here
                    path = os.path.realpath(tree.path)
                    observer.schedule(_Handler(path, tree.meaning, self._report), path, recursive=tree.is_recursive, event_filter=_SEEN)
                observer.start()
                self._observer, self.is_polling = observer, polling
                if not polling:
                    refuse_full_table()
            except BaseException:
                self._observer = None
                _end(observer)
                raise
        except OSError as why:
            if why.errno in _LIMITS and not polling:
                raise InotifyFull(_LIMITS[why.errno]) from None
            raise

    def is_short(self) -> bool:
        """Whether the kernel may have had no room for a directory that was made since."""
        if self.is_polling:
            return False
        try:
            refuse_full_table()
        except OSError as why:
            return why.errno in _LIMITS
        return False

    def stop(self) -> None:
        """Look no more."""
        logging.getLogger("watchdog").removeHandler(self._listener)
        observer, self._observer = self._observer, None
        if observer is not None:
            _end(observer)


def refuse_full_table() -> None:
    """Make sure that the kernel has room for another watch: else some that were asked for may not have been had.

    Raises:
        OSError: it has not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_CLOEXEC)
    try:
        if fd < 0 or libc.inotify_add_watch(fd, b"/", _IN_MOVE_SELF) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        if fd >= 0:
            os.close(fd)


#: What is only opened, read or listed is no change: we do so ourselves.
_SEEN: list[type[events.FileSystemEvent]] = [
    events.FileCreatedEvent,
    events.FileDeletedEvent,
    events.FileModifiedEvent,
    events.FileMovedEvent,
    events.FileClosedEvent,
    events.FileAttribEvent,
    events.DirCreatedEvent,
    events.DirDeletedEvent,
    events.DirMovedEvent,
]
_IN_MOVE_SELF = 0x800  # <sys/inotify.h>
_LIMITS = {errno.ENOSPC: "fs.inotify.max_user_watches", errno.EMFILE: "fs.inotify.max_user_instances"}


class _Listener(logging.Handler):
    """watchdog logs that events were lost; whatever it warns of is reported."""

    def __init__(self, report: Report) -> None:
        super().__init__(logging.WARNING)
        self._tell = report

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(Touch(LOST, record.getMessage(), is_held=False))


class _Handler(events.FileSystemEventHandler):
    """Translates the events of one tree; what means nothing wakes nobody."""

    def __init__(self, base: str, meaning: Callable[[str, bool], str | None], report: Report) -> None:
        self._base, self._meaning, self._report = base, meaning, report

    def dispatch(self, event: events.FileSystemEvent) -> None:
        """Called by watchdog for each event."""
        is_held = not event.is_directory and event.event_type in ("created", "modified")
        for path in dict.fromkeys((event.src_path, event.dest_path)):
            if path:
                text = os.fsdecode(path)
                what = self._meaning(os.path.relpath(text, self._base), event.is_directory)
                if what is not None:
                    self._report(Touch(what, text, is_held))


def _end(observer: BaseObserver) -> None:
    # one that was not started, or not wholly, has threads all the same
    with contextlib.suppress(RuntimeError):
        observer.stop()
    with contextlib.suppress(RuntimeError):
        observer.join(5)


def _of_root(path: str, is_directory: bool) -> str | None:
    if path in (".", "apps", "run"):
        return ROOT
    if path == "plugins":
        return CODE
    return HOST if path in ("router.toml", "DOMAINS") else None


def _of_apps(path: str, is_directory: bool) -> str | None:
    if path == ".":
        return ROOT
    name, _, rest = path.partition("/")
    if not _is_app(name):
        return None
    if not rest or is_directory or rest in _APP_FILES:
        return name
    if "/" not in rest or _is_by_the_way(rest):
        return None
    return name if not rest.startswith(SNIPPETS) or rest.endswith(".conf") else None


def _of_run(path: str, is_directory: bool) -> str | None:
    return ROOT if path == "." else INTENT if path in ("intent.json", "changing") else None


def _of_code(path: str, is_directory: bool) -> str | None:
    # Python writes its caches itself, and editors and git what is not the plugin
    return None if _is_by_the_way(path) else CODE


def _is_by_the_way(path: str) -> bool:
    parts = [part for part in path.split("/") if part != "."]
    return any(
        part == "__pycache__" or (part.startswith(".") and part != DISABLED) or part.endswith(("~", ".swp", ".tmp", ".pyc"))
        for part in parts
    )


def _is_app(name: str) -> bool:
    try:
        return bool(app_name(name))
    except UsageProblem:
        return False
