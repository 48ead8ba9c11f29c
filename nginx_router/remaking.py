"""Objects that the disk lost or somebody changed, made again from what they were made of: the hash in their name proves them.

It is done before nginx reads them.  One app's damaged file would else be in the way of every other app's change, or, where
it is still a configuration, be served.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Mapping

from .candidate import Candidate
from .errors import RouterError
from .model import Facts
from .rendering import Rendered


def remake(candidate: Candidate, damaged: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """Make the `damaged` objects of apps of the candidate's base again; those that could not be, by app."""
    left: dict[str, list[str]] = {}
    for app, bad in damaged.items():
        made = {hashlib.sha256(data).hexdigest(): data for data in _made(candidate, app)}
        for sha in bad:
            if sha in made:
                candidate.generations.object_path(sha).unlink(missing_ok=True)
                candidate.generations.put(made[sha])
            else:
                left.setdefault(app, []).append(sha)
    return left


def _made(candidate: Candidate, app: str) -> Iterable[bytes]:
    """What the app's state says, else what its directory says; either may be what is lost, or have changed."""
    entry = candidate.base.apps.get(app) if candidate.base else None
    if entry is None:
        return
    rendered: list[Rendered] = []
    with contextlib.suppress(RouterError):
        rendered.append(candidate.render(app, *candidate.generations.app_state(entry)))
    if not rendered:
        with contextlib.suppress(RouterError, OSError):
            rendered.append(candidate.render(app, candidate.store.texts(app) or {}, Facts()))
    for each in rendered:
        yield from (data for _, data in each.objects())
