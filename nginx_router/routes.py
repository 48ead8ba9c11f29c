"""Where requests go, in the words of `templates/live/routes.lua`: what endpoint changes alter without a reload (`updates live`).

    route NAME<TAB>METHOD MAX_FAILS FAIL_TIMEOUT HOST|PORT|WEIGHT|KIND ...     one process of one app
                                                 canary=SHARE behind these: of 10,000 clients so many get the canaries
    gone NAME                                                                a process that nothing serves any more

A snapshot holds all routes between a line `version VERSION` and a line `end COUNT`: one that was cut is told by that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .kinds import seconds
from .names import address

#: The name of a process's upstream -> its line.
Routes = Mapping[str, str]

_METHODS = {"random two": "random_two"}


def line(values: Mapping[str, str], peers: Iterable[tuple[str, int, str]], share: int | None = None) -> str:
    """The line of a process: how an instance is chosen, and among which (address, weight, kind); `share` of canaries, in 1/10,000."""
    words = [_METHODS.get(values["load-balancing"], values["load-balancing"]), values["max-fails"], f"{seconds(values['fail-timeout']):g}"]
    for text, weight, kind in peers:
        one = address(text)
        host = one.text if one.is_unix else one.text.rpartition(":")[0]
        words.append(f"{host}|{0 if one.is_unix else one.port}|{weight}|{kind}")
    words += [f"canary={share}"] if share is not None else []
    return " ".join(words)


def peers(line: str) -> list[tuple[str, int, str]]:
    """What `line` was made of: address, weight and kind of each instance."""
    found = []
    for word in line.split()[3:]:
        if "|" in word:
            host, port, weight, kind = word.rsplit("|", 3)
            found.append((host if port == "0" else f"{host}:{port}", int(weight), kind))
    return found


def lines(before: Routes, after: Routes) -> str:
    """What changes between two, for nginx that has the first."""
    changed = [f"route {name}\t{text}\n" for name, text in sorted(after.items()) if before.get(name) != text]
    return "".join([*changed, *(f"gone {name}\n" for name in sorted(before) if name not in after)])


def snapshot(version: str, routes: Routes) -> str:
    """All routes, as nginx reads them when it starts."""
    return f"version {version}\n{lines({}, routes)}end {len(routes)}\n"
