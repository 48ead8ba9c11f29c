"""What two states of an app differ in: where its requests go, or what nginx reads.

A change is *nothing*, *endpoints* (which nginx may take up as it runs) or *structure*.
"""

from __future__ import annotations

from dataclasses import replace

from . import canaries, lines
from .errors import UsageProblem
from .model import APP_TOML, UPSTREAMS, Entry, Facts, Texts


def is_same(entry: Entry, other: Entry | None) -> bool:
    """Whether two entries are of the same texts, facts and vhost, whichever generation made them."""
    return other is not None and replace(entry, generation=0, inline="") == replace(other, generation=0, inline="")


def but_routes(entry: Entry) -> Entry:
    """An entry without what nginx takes up as it runs."""
    return replace(entry, state="", routes=(), unhealthy=0, generation=0, inline="", canary="", aborted="", addresses=())


def but_endpoints_of(facts: Facts) -> Facts:
    """Facts without those of single endpoints."""
    return replace(facts, resolved={}, unhealthy={})


def endpoints(texts: Texts) -> list[str]:
    """The lines of UPSTREAMS, in whatever order they stand there."""
    return sorted(entry for _, entry in lines.entries(texts.get(UPSTREAMS, "")))


def but_endpoints(texts: Texts) -> dict[str, str]:
    """Texts without what says which endpoints there are and how much each gets."""
    kept = {path: text for path, text in texts.items() if path not in (UPSTREAMS, APP_TOML)}
    # counts say how many endpoints there are to be and render nothing; the share of a canary says how much its endpoints get
    from .tomltext import set_key

    toml = texts.get(APP_TOML, "")
    if any(word in toml for word in ("count", "locked", canaries.TABLE)):
        try:
            toml = set_key(set_key(set_key(toml, "", "count", None), "", "locked", None), "", canaries.TABLE, None)
        except (ValueError, UsageProblem):
            return {**kept, APP_TOML: toml}
    return {**kept, APP_TOML: toml.strip()}
