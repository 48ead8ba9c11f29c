"""The journal: one line a change, kept within bounds.

    journal.jsonl     the newest lines; O_APPEND and a lock of its own keep those of several processes whole
    journal.jsonl.1   the lines before them: a journal that has grown to `LARGEST` takes this name, and the older one goes

Commands write their own lines, and the next holder of the host lock those of commands that were killed behind the commit
of their change.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .queue import Queue
from .times import stamp

#: How large the journal becomes before a new one is begun: some 40,000 changes.
LARGEST = 10 << 20

#: How much of the journal's end is looked at: first, and at most (a line of a change of all apps may be long).
_NEAR, _FAR = 1 << 14, 1 << 23

#: How many of the last lines are looked through for those of askers that had their answer, until they are older: 10,000 may have
#: shared a reload.
_LOOKS = (100, 1_000, 10_000)

#: What the line of a start that nobody typed begins with.
_START = "proxy:start (by "

#: What a line says of the clients of nginx where whoever would have counted them was killed, or none was left to ask.
_UNSEEN = {"closed_connections": 0, "kept_connections": 0, "websockets": None, "served_seconds": None}


def append(journal: Path, line: Mapping[str, Any], *, largest: int = LARGEST) -> None:
    """Add one line to the journal, and begin a new one where it has grown to `largest`.

    Raises:
        OSError: it cannot be written; a full disk, for instance.
    """
    data = (json.dumps(line) + "\n").encode()
    while True:
        fd = os.open(journal, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)  # whoever may open it may lock it
        try:
            # of two who find it too large the second would else rename the new one over what the first has put aside
            fcntl.flock(fd, fcntl.LOCK_EX)
            if not _is_still(journal, fd):
                continue  # put aside while this one waited
            if os.fstat(fd).st_size >= largest:
                with contextlib.suppress(OSError):  # one that cannot be put aside grows on
                    journal.rename(_before(journal))
                    continue
            size = os.fstat(fd).st_size
            # a line that a full disk or a power cut tore would else take this one with it
            os.write(fd, data if size == 0 or os.pread(fd, 1, size - 1) == b"\n" else b"\n" + data)
            return
        finally:
            os.close(fd)


def of_killed(journal: Path, told: Mapping[str, Any], generation: Path, queue: Queue, *, reloads: int) -> Iterator[dict[str, Any]]:
    """A line for each change in the directory `generation` whose asker is gone without one; `reloads` are counted with the first.

    `told`: when it was made, by which words, and the answers of its askers.  Who it was is known by the owner of the
    generation's files alone, and how long it took not at all.
    """
    uid = generation.stat().st_uid
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    # first who is gone, then what is written: one that ends between the two wrote its line before it ended
    gone = {ident for ident in told.get("submissions", {}) if not queue.is_waited_for(ident)}
    # an asker that had its answer before the leader was killed wrote its own, and is as gone as one that was killed
    written = Counter((line.get("command"), line.get("generation")) for line in since(journal, told["time"]))
    for ident, answers in told.get("submissions", {}).items():
        counted, reloads = reloads, 0
        if ident not in gone:
            continue
        command = next((a["command"] for a in answers.values() if a.get("command")), "") or queue.command(ident) or told["command"]
        if written[command, int(generation.name)] > 0:
            written[command, int(generation.name)] -= 1
            continue
        kinds = {answer["kind"] for answer in answers.values()}
        yield {
            "time": told["time"],
            "user": user,
            "uid": uid,
            "command": command,
            "apps": sorted({answer["app"] for answer in answers.values() if answer["app"]}),
            "kind": next((k for k in ("structure", "endpoints") if k in kinds), "nothing"),
            "generation": int(generation.name),
            "result": "done",
            "exit": 0,
            "seconds": 0.0,
            "reloads": counted,
            **_UNSEEN,
        }


def of_start(within: str, user: str, uid: int, generation: int, seconds: float) -> dict[str, Any]:
    """A line for an nginx that a change found dead and started; `within` is that change's command."""
    return {
        "time": stamp(),
        "user": user,
        "uid": uid,
        "command": f"{_START}{within})",
        "apps": [],
        "kind": "nothing",
        "generation": generation,
        "result": "done",
        "exit": 0,
        "seconds": round(seconds, 3),
        "reloads": 0,
        **_UNSEEN,
    }


def has_start(journal: Path, generation: int, moment: str) -> bool:
    """Whether the lines from a moment on tell of an nginx that was started with this generation."""
    return any(line.get("generation") == generation and line.get("command", "").startswith(_START) for line in since(journal, moment))


def since(journal: Path, moment: str) -> list[dict[str, Any]]:
    """The lines from a moment on (as `times.stamp` writes it), newest first."""
    for count in _LOOKS:  # 10,000 lines are 8 MiB and as many objects, which a watch would keep the memory of
        found = last(journal, count)
        if len(found) < count or found[-1].get("time", "") < moment:
            break
    return [line for line in found if line.get("time", "") >= moment]


def last(journal: Path, count: int) -> list[dict[str, Any]]:
    """The last `count` lines of the journal, newest first; read from its end, for it may be long."""
    found = _last_of(journal, count)
    return found if len(found) == count else found + _last_of(_before(journal), count - len(found))


def _before(journal: Path) -> Path:
    """Where the lines before the journal's first are."""
    return journal.with_name(f"{journal.name}.1")


def _is_still(journal: Path, fd: int) -> bool:
    try:
        return os.path.samestat(journal.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def _last_of(journal: Path, count: int) -> list[dict[str, Any]]:
    try:
        with journal.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            wanted = _NEAR
            while True:
                start = max(0, size - wanted)
                file.seek(start)
                rows = file.read(size - start).splitlines()
                whole = rows if start == 0 else rows[1:]
                if len(whole) >= count or start == 0 or wanted >= _FAR:
                    break
                wanted *= 8
    except (FileNotFoundError, PermissionError):  # the words that others typed are not for everybody
        return []
    found = []
    for row in reversed(whole):
        try:
            found.append(json.loads(row))
        except ValueError:
            continue  # a line that a full disk cut
        if len(found) == count:
            break
    return found
