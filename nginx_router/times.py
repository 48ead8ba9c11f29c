"""Moments as they are written down: RFC 3339 in UTC, to the millisecond."""

from __future__ import annotations

from datetime import UTC, datetime


def stamp(when: datetime | None = None) -> str:
    """A moment in UTC as text; without one, now."""
    return (when or datetime.now(UTC)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
