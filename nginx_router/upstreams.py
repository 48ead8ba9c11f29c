"""Edits of an UPSTREAMS text: what each verb makes of it, by process and address; comments and order stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from . import lines
from .errors import NotFound, nearest
from .names import Endpoint, endpoint_line


def edited(text: str, verb: str, wanted: Sequence[Endpoint], args: Mapping[str, Any], app: str) -> tuple[str, list[str]]:
    """`text` after `verb` (add, set, remove, clear, drain) of the endpoints `wanted`, and what was so already.

    Raises:
        NotFound: drain: an endpoint is not there.
    """
    return _VERBS[verb](text, wanted, args, app)


def swapped(text: str, process: str, addresses: Sequence[str]) -> tuple[str, list[str]]:
    """`text` with `addresses` as the endpoints of `process`, and the addresses that left; those that stay keep their flags."""
    old = [a for p, a in _endpoints(text) if p == process]
    leaving = [a for a in old if a not in addresses]
    coming = [endpoint_line(f"{process} {a}").line() for a in dict.fromkeys(addresses) if a not in old]
    # each newcomer takes the place of one that leaves, so that the order a person gave the file stays
    instead = {(process, a): coming[n] if n < len(coming) else None for n, a in enumerate(leaving)}

    def exchange(entry: str) -> str | None:
        key = _key(entry)
        if key not in instead:
            return entry
        new, instead[key] = instead[key], None  # a second line of an endpoint that leaves only goes
        return new

    return lines.add(lines.edit(text, exchange), coming[len(leaving) :]), leaving


def let_in(text: str, process: str, addresses: Sequence[str]) -> tuple[str, list[str]]:
    """`text` with these endpoints of `process` without the flags that keep requests from them, and what was taken off; other flags stay."""
    notes: dict[str, None] = {}

    def lift(entry: str) -> str:
        endpoint = endpoint_line(entry)
        flags = [flag for flag in ("drain", "down") if getattr(endpoint, flag)]
        if endpoint.process != process or endpoint.address.text not in addresses or not flags:
            return entry
        notes[f"{endpoint.address} had the flag{'s' * (len(flags) > 1)} {' and '.join(flags)}: taken off, it gets requests again"] = None
        return replace(endpoint, drain=False, down=False).line()

    return lines.edit(text, lift), list(notes)


def addresses(text: str) -> set[str]:
    """Every address in the text, of whichever process."""
    return {a for _, a in _endpoints(text)}


def endpoint_lines(text: str, process: str) -> list[str]:
    """The lines of one process in an UPSTREAMS text, sorted: what `expected` of a deploy holds.

    Raises:
        UsageProblem: a line is no endpoint.
    """
    return sorted({entry for _, entry in lines.entries(text) if _key(entry)[0] == process})


def _endpoints(text: str) -> dict[tuple[str, str], Endpoint]:
    # of two lines for one endpoint the last counts, as in `parse_app`; edits go by key and so reach both
    return {endpoint.key: endpoint for _, entry in lines.entries(text) for endpoint in [endpoint_line(entry)]}


def _key(entry: str) -> tuple[str, str]:
    return endpoint_line(entry).key


def _add(text: str, wanted: Sequence[Endpoint], args: Mapping[str, Any], app: str) -> tuple[str, list[str]]:
    have = _endpoints(text)
    # what it is of a canary no command says but those of canaries, and so none takes it away
    wanted = [replace(e, canary=e.canary or (e.key in have and have[e.key].canary)) for e in wanted]
    notes = [f"{e.address} is there already on {app}" for e in dict.fromkeys(wanted) if have.get(e.key) == e]
    changed = {e.key: e.line() for e in wanted if e.key in have and have[e.key] != e}
    new = {e.key: e.line() for e in wanted if e.key not in have}
    return lines.add(lines.edit(text, lambda entry: changed.get(_key(entry), entry)), new.values()), notes


def _set(text: str, wanted: Sequence[Endpoint], args: Mapping[str, Any], app: str) -> tuple[str, list[str]]:
    processes = {e.process for e in wanted}
    keys = {e.key for e in wanted}
    kept = lines.keep(text, lambda entry: _key(entry)[0] not in processes or _key(entry) in keys)
    new, _ = _add(kept, wanted, args, app)
    return new, [] if new != text else [f"the endpoints of {app} are these already"]


def _remove(text: str, wanted: Sequence[Endpoint], args: Mapping[str, Any], app: str) -> tuple[str, list[str]]:
    have = _endpoints(text)
    found = {e: _meant(e, have, args) for e in wanted}
    notes = [f"{e.address} is not on {app}" for e, keys in found.items() if not keys]
    # somebody may have let one in again that was drained to be removed
    gone = {key for keys in found.values() for key in keys if have[key].drain or not args.get("only_draining")}
    return lines.keep(text, lambda entry: _key(entry) not in gone), notes


def _meant(wanted: Endpoint, have: Mapping[tuple[str, str], Endpoint], args: Mapping[str, Any]) -> list[tuple[str, str]]:
    # an address alone means every process that has it; `api=ADDRESS` means that one
    is_named = wanted.process in args.get("named_processes", [])
    return [(p, a) for p, a in have if a == wanted.address.text and (p == wanted.process or not is_named)]


def _clear(text: str, wanted: Sequence[Endpoint], args: Mapping[str, Any], app: str) -> tuple[str, list[str]]:
    only = args.get("process")
    new = lines.keep(text, lambda entry: only is not None and _key(entry)[0] != only)
    return new, [] if new != text else [f"{app} has no endpoints"]


def _drain(text: str, wanted: Sequence[Endpoint], args: Mapping[str, Any], app: str) -> tuple[str, list[str]]:
    have = _endpoints(text)
    instead: dict[tuple[str, str], str] = {}
    notes = []
    for e in wanted:
        found = _meant(e, have, args)
        if not found:
            raise NotFound(
                f"{e.address} is no endpoint of {app}{nearest(e.address.text, [a for _, a in have])}",
                hint=f"router upstreams:report {app}",
                app=app,
            )
        for key in found:
            if have[key].drain:
                notes.append(f"{e.address} is draining already")
            else:
                instead[key] = replace(have[key], drain=True).line()
    return lines.edit(text, lambda entry: instead.get(_key(entry), entry)), notes


_VERBS: Mapping[str, Callable[[str, Sequence[Endpoint], Mapping[str, Any], str], tuple[str, list[str]]]] = {
    "add": _add,
    "set": _set,
    "remove": _remove,
    "clear": _clear,
    "drain": _drain,
}
