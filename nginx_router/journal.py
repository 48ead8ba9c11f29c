"""The journal: its last lines, and the lines of commands that were killed behind the commit of their change.

All others write their own.
"""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .generations import Generations
from .queue import Queue

#: How much of the journal's end is looked at: first, and at most (a line of a change of all apps may be long).
_NEAR, _FAR = 1 << 14, 1 << 23


def of_killed(generations: Generations, number: int, queue: Queue, *, reloads: int) -> Iterator[dict[str, Any]]:
    """A line for each change in generation `number` whose asker is gone; `reloads` are counted with the first.

    Who it was is known by the owner of the generation's files alone, and how long it took not at all.

    Raises:
        StateCorrupt: the generation's manifest cannot be read.
    """
    manifest = generations.manifest(number)
    uid = generations.directory(number).stat().st_uid
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    for ident, answers in manifest.submissions.items():
        if queue.is_waited_for(ident):
            continue
        kinds = {answer["kind"] for answer in answers.values()}
        yield {
            "time": manifest.time,
            "user": user,
            "uid": uid,
            "command": queue.command(ident) or manifest.command,
            "apps": sorted({answer["app"] for answer in answers.values() if answer["app"]}),
            "kind": next((k for k in ("structure", "endpoints") if k in kinds), "nothing"),
            "generation": number,
            "result": "done",
            "exit": 0,
            "seconds": 0.0,
            "reloads": reloads,
        }
        reloads = 0


def last(journal: Path, count: int) -> list[dict[str, Any]]:
    """The last `count` lines of the journal, newest first; read from its end, for it only grows."""
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
    except FileNotFoundError:
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
