"""Changes that wait for the host lock: one file a submission, so that whoever gets the lock takes all of them.

    ID.json    asked, may still be withdrawn by its asker
    ID.taken   a leader works on it (or died doing so: the next one takes it again)
    ID.answer  what became of it, until its asker has read it

Taking and withdrawing are the same rename(2), so exactly one of the two succeeds.  A submission whose asker is gone is
dropped: nobody is left to drain, to notify and to tell.  What needs a reload says how long it may be left where reloads are
spaced (`spacing`); as soon as one of them is taken, all are.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .events import Event
from .processes import is_alive, started_at


@dataclass(frozen=True)
class Submission:
    """What one command asks for: all of its events or none, or (`independent`) each for itself."""

    id: str
    events: tuple[Event, ...]
    independent: bool
    command: str
    pid: int
    started: int
    patient_until: float = 0.0  # it needs a reload, and may wait for it until then (monotonic); 0: it is not to wait


class Queue:
    """The queue of one root."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def put(self, events: Sequence[Event], *, independent: bool, command: str, patient_until: float = 0.0) -> str:
        """Add a submission of this process; its id."""
        pid = os.getpid()
        ident = f"{time.time_ns():020d}-{pid}-{os.urandom(3).hex()}"
        raw = {
            "events": [event.as_json() for event in events],
            "independent": independent,
            "command": command,
            "pid": pid,
            "started": started_at(pid),
            "patient_until": patient_until,
        }
        self._write(f"{ident}.json", raw)
        return ident

    def withdraw(self, ident: str) -> bool:
        """Take a submission back; False: a leader has it already and will answer."""
        try:
            (self.directory / f"{ident}.json").unlink()
        except FileNotFoundError:
            return False
        return True

    def take(self, is_spaced: Callable[[], bool] = lambda: False) -> list[Submission]:
        """All that wait, oldest first; only the holder of the host lock may ask.

        Where reloads are spaced (`is_spaced`), what needs one stays, unless one of them has waited for long enough.
        """
        names = sorted(os.listdir(self.directory))  # noqa: PTH208 - names only
        asked = {name.removesuffix(".json"): None for name in names if name.endswith(".json") and not name.startswith(".")}
        waiting = {ident: found for ident in asked if (found := self._read(ident, "json"))}
        left = self._left(waiting, is_spaced)
        taken = []
        for name in names:
            ident, _, kind = name.rpartition(".")
            if name.startswith("."):
                self._sweep(name)  # being written, or left by a full disk or a killed asker
                continue
            if ident in left:
                continue
            if kind == "json":
                try:
                    (self.directory / name).rename(self.directory / f"{ident}.taken")
                except FileNotFoundError:
                    continue  # withdrawn at this moment
            elif kind == "answer":
                self._sweep(name)
                continue
            elif kind != "taken":
                continue
            found = waiting.get(ident) or self._read(ident)
            if found is None or not is_alive(found.pid, found.started):
                (self.directory / f"{ident}.taken").unlink(missing_ok=True)
            else:
                taken.append(found)
        return taken

    def _left(self, waiting: Mapping[str, Submission], is_spaced: Callable[[], bool]) -> set[str]:
        """What may wait for a later reload; nothing, where one of them may not any longer: they share it."""
        patient = {ident: found.patient_until for ident, found in waiting.items() if found.patient_until}
        if min(patient.values(), default=0.0) <= time.monotonic() or not is_spaced():
            return set()  # whether they are spaced is asked last: it goes through all processes
        return set(patient)

    def drop(self, ident: str) -> None:
        """Take a submission away that its own asker could not lead."""
        (self.directory / f"{ident}.taken").unlink(missing_ok=True)

    def answer(self, ident: str, answers: Sequence[Mapping[str, Any]]) -> None:
        """Tell the asker; the answer is there before the submission is gone."""
        if not (self.directory / f"{ident}.taken").exists():
            return
        self._write(f"{ident}.answer", list(answers))
        (self.directory / f"{ident}.taken").unlink(missing_ok=True)

    def answered(self, ident: str) -> list[dict[str, Any]] | None:
        """The answer, once: it is removed."""
        path = self.directory / f"{ident}.answer"
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        path.unlink(missing_ok=True)
        return list(found)

    def is_waited_for(self, ident: str) -> bool:
        """Whether the asker of a submission that was taken lives."""
        found = self._read(ident)
        pid = ident.split("-")[1]
        return is_alive(found.pid, found.started) if found else pid.isdigit() and is_alive(int(pid))

    def holds(self, ident: str) -> bool:
        """Whether a submission waits or is taken; one that is neither and has no answer will never have one."""
        return any((self.directory / f"{ident}.{kind}").exists() for kind in ("json", "taken"))

    def command(self, ident: str) -> str:
        """The words of a submission that was taken and not answered; else nothing."""
        found = self._read(ident)
        return found.command if found else ""

    def _read(self, ident: str, kind: str = "taken") -> Submission | None:
        try:
            raw = json.loads(self._own_bytes(f"{ident}.{kind}"))
            events = tuple(Event.from_json(e) for e in raw["events"])
            patient_until = float(raw.get("patient_until", 0.0))  # an asker of an earlier version is not to wait
            return Submission(ident, events, raw["independent"], raw["command"], raw["pid"], raw["started"], patient_until)
        except (FileNotFoundError, ValueError, KeyError):
            return None

    def _own_bytes(self, name: str) -> bytes:
        """A file of the queue, if it was asked by root or by whoever the queue belongs to; the directory is nobody else's to write.

        Raises:
            ValueError: somebody else's, or no file.
        """
        try:
            fd = os.open(self.directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as why:
            if why.errno != errno.ELOOP:
                raise
            raise ValueError(name) from None
        with os.fdopen(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid(), self.directory.stat().st_uid):
                raise ValueError(name)
            return file.read()

    def _sweep(self, name: str) -> None:
        # nobody reads or finishes it: its asker was killed
        pid = name.split("-")[1] if name.count("-") >= 2 else ""
        if not pid.isdigit() or not is_alive(int(pid)):
            with contextlib.suppress(FileNotFoundError):
                (self.directory / name).unlink()

    def _write(self, name: str, raw: Any) -> None:
        # no fsync: the queue does not outlive its askers, and they do not outlive a power cut
        fresh = self.directory / f".{name}"
        try:
            fresh.write_text(json.dumps(raw), encoding="utf-8")
            fresh.rename(self.directory / name)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
