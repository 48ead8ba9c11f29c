"""Generations: numbered, immutable lists of objects, and the one link that says which is current.

    objects/SHA256           a rendered vhost, a snippet, or an app's texts and facts; written once, 0444
    generations/000042/      router.conf, state.json, manifest.json; managed: nginx.conf; `updates live`: live.lua, live.tsv, endpoints.log
    current -> generations/000042

Staging costs what changed: an unchanged object is neither rendered nor written again.  `current` is exchanged by one
rename, so that a crash leaves the old generation or the new one.  What may come to a generation later stands in its
endpoints.log alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from . import endpointlog
from .entries import Entries, values_of
from .errors import NotFound, StateCorrupt
from .files import inherit_owner, replace_link, sync_directory, write_atomic
from .index import SCHEMA, Index, objects_in, objects_named
from .model import UPSTREAMS, Entry, Facts, Texts, asked, parse_app
from .recent import Recent
from .settings import Paths
from .times import stamp

#: A file's identity: it is another after any write.
_Identity = tuple[int, int, int] | None
#: Generations that this process has read, by directory: a command looks at the current one half a dozen times, and reading
#: 5,000 apps takes 30 ms.
_read: Recent[Path, tuple[_Identity, Index]] = Recent(4)


@dataclass(frozen=True)
class Manifest:
    """How a generation came about (manifest.json)."""

    generation: int
    parent: int | None
    time: str
    command: str
    apps: tuple[str, ...]  # the apps it changed
    added: tuple[str, ...]  # objects its parent does not have
    removed: tuple[str, ...]  # objects of its parent that it does not have
    digest: str  # of router.conf and state.json
    submissions: Mapping[str, Any]  # id -> answers, so that a crash behind the commit loses none


class Generations:
    """The generations of one root."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths

    def current_number(self) -> int | None:
        """The number `current` points to; None before the first generation.

        Raises:
            StateCorrupt: it points to something else.
        """
        try:
            target = str(self.paths.current.readlink())
        except FileNotFoundError:
            # the very first change may have been cut off behind its staging; then its intent says so
            if self.paths.intent.exists() or not self.numbers():
                return None
            newest = self.directory(self.numbers()[-1])
            raise StateCorrupt(
                f"{self.paths.current} is gone, and the generations are not",
                hint=f"ln -s generations/{newest.name} {self.paths.current}, then router reconcile --all",
            ) from None
        except OSError:
            raise StateCorrupt(
                f"{self.paths.current} is no link to a generation", hint=f"move it away, then: ln -s generations/N {self.paths.current}"
            ) from None
        name = Path(target).name
        if not name.isdigit() or not (self.paths.generations / name / "state.json").is_file():
            raise StateCorrupt(
                f"{self.paths.current} points to {target}, which is no generation",
                hint=f"link it to the newest directory in {self.paths.generations}, then router reconcile --all",
            )
        return int(name)

    def current(self) -> Index | None:
        """The current generation; None before the first."""
        number = self.current_number()
        return None if number is None else self.index(number)

    def index(self, number: int) -> Index:
        """What generation `number` is made of, with the changes of its endpoints since.

        Raises:
            NotFound: there is none (any more).
            StateCorrupt: its state.json cannot be read.
        """
        directory = self.directory(number)
        index = self._made(number)
        if not index.live:
            return index
        log = endpointlog.read(directory / endpointlog.NAME, index.live)
        try:
            apps = Entries.of(index.apps).overlaid(log.apps) if log.apps else index.apps
        except ValueError as why:
            raise self._corrupt(number, endpointlog.NAME, str(why)) from None
        behind = log.version if log.last and log.is_done else ""
        return replace(
            index, apps=apps, live=log.version, log=log.size, is_lost=not log.is_whole, last=log.last, since=log.begins, behind=behind
        )

    def named(self, number: int) -> set[str]:
        """Every object that generation `number` names; its log names none, and where that is lost these are needed.

        Raises:
            NotFound: there is none (any more).
            StateCorrupt: its state.json cannot be read.
        """
        return objects_in(self._made(number))

    def _made(self, number: int) -> Index:
        """What generation `number` was when it was made."""
        directory = self.directory(number)
        key = _identity(directory / "state.json")
        made = _read.get(directory)
        if key is None or made is None or made[0] != key:
            made = key, self._read_state(number)
            if key is not None and key == _identity(directory / "state.json"):
                _read.put(directory, made)
        return made[1]

    def _read_state(self, number: int) -> Index:
        raw = self._json(number, "state.json")
        try:
            return Index.from_json(raw)
        except (KeyError, TypeError, AttributeError, ValueError) as why:
            raise self._corrupt(number, "state.json", repr(why)) from None

    def manifest(self, number: int) -> Manifest:
        """How generation `number` came about.

        Raises:
            NotFound: there is none (any more).
            StateCorrupt: its manifest.json cannot be read.
        """
        raw = self._json(number, "manifest.json")
        try:
            return Manifest(**(raw | {k: tuple(raw[k]) for k in ("apps", "added", "removed")}))
        except (KeyError, TypeError) as why:
            raise self._corrupt(number, "manifest.json", repr(why)) from None

    def numbers(self) -> list[int]:
        """Every generation that is kept, oldest first."""
        try:
            return sorted(int(p.name) for p in self.paths.generations.iterdir() if p.name.isdigit() and (p / "state.json").exists())
        except FileNotFoundError:
            return []

    def directories(self) -> list[int]:
        """The numbers of all directories of generations, those too that hold no state.json any more."""
        try:
            return sorted(int(p.name) for p in self.paths.generations.iterdir() if p.name.isdigit() and p.is_dir())
        except FileNotFoundError:
            return []

    def directory(self, number: int) -> Path:
        """Where generation `number` lies."""
        return self.paths.generations / f"{number:06d}"

    def app_state(self, entry: Entry) -> tuple[Texts, Facts]:
        """The texts and facts an app had in a generation.

        Raises:
            StateCorrupt: the object is gone or not what its name says.
        """
        raw = json.loads(entry.inline or self.object(entry.state))
        return raw["texts"], Facts.from_json(raw["facts"])

    def served_at(self, places: Collection[str]) -> list[str]:
        """The apps whose requests may go to one of these places: addresses, as UPSTREAMS spells them or as they were resolved.

        Raises:
            StateCorrupt: what the current generation says cannot be read.
        """
        index = self.current()
        found, wanted = [], {*places}
        for name, each in values_of(index.apps if index else {}).items():
            addresses = each.get("addresses")
            if addresses is None:  # of an earlier version; a state that is lost says nothing, and is in nobody's way
                with contextlib.suppress(StateCorrupt):
                    texts, facts = self.app_state(Entries({name: each})[name])
                    addresses = asked(parse_app(name, {UPSTREAMS: texts.get(UPSTREAMS, "")}), facts)
            if not wanted.isdisjoint(addresses or ()):
                found.append(name)
        return sorted(found)

    def object_path(self, sha: str) -> Path:
        """Where an object lies."""
        return self.paths.objects / sha

    def object(self, sha: str) -> bytes:
        """The bytes of an object.

        Raises:
            StateCorrupt: it is gone or not what its name says.
        """
        path = self.object_path(sha)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise StateCorrupt(f"object {path} is missing", hint="restore it from a backup, or: router reconcile --all") from None
        if hashlib.sha256(data).hexdigest() != sha:
            raise StateCorrupt(f"object {path} was changed", hint="remove it, then: router reconcile --all")
        return data

    def put(self, data: bytes) -> str:
        """Keep `data` as an object; the name under which it is found."""
        sha = hashlib.sha256(data).hexdigest()
        path = self.object_path(sha)
        if not self.is_intact(sha):
            write_atomic(path, data, mode=0o444)
        return sha

    def is_intact(self, sha: str) -> bool:
        """Whether an object is there and what its name says."""
        try:
            return hashlib.sha256(self.object_path(sha).read_bytes()).hexdigest() == sha
        except FileNotFoundError:
            return False

    def damaged(self, index: Index, *, is_read_by_nginx: bool = False) -> dict[str, dict[str, str]]:
        """The objects of each app that are gone or not what their names say, and which of the two.

        `is_read_by_nginx`: without the states, which only a change reads.
        """
        found: dict[str, dict[str, str]] = {}
        for name, each in values_of(index.apps).items():
            for sha in objects_named(each):
                if is_read_by_nginx and sha == each["state"]:
                    continue
                try:
                    with open(f"{self.paths.objects}/{sha}", "rb", buffering=0) as file:  # noqa: PTH123 - no Path: thousands a reload
                        if hashlib.sha256(file.readall()).hexdigest() != sha:
                            found.setdefault(name, {})[sha] = "was changed"
                except OSError:
                    found.setdefault(name, {})[sha] = "is missing"
        return found

    def stage(self, number: int, files: Mapping[str, str]) -> None:
        """Write the directory of generation `number`; nothing points to it yet."""
        final = self.directory(number)
        shutil.rmtree(final, ignore_errors=True)  # left by a crash before its commit
        fresh = final.with_name(f".{final.name}.tmp")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        inherit_owner(fresh)
        for name, text in files.items():
            with (fresh / name).open("w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            inherit_owner(fresh / name)
        sync_directory(fresh)
        fresh.rename(final)
        sync_directory(final.parent)

    def remake_manifest(self, number: int) -> None:
        """Write the manifest of generation `number` again: what it brought is what its state has and the one before has not.

        Raises:
            NotFound: there is no such generation.
            StateCorrupt: its state, or that of the one before, cannot be read.
        """
        index, directory = self.index(number), self.directory(number)
        parent = max((n for n in self.numbers() if n < number), default=None)
        before = self.index(parent) if parent is not None else None
        was, has = (self.named(parent) if parent is not None else set()), self.named(number)
        apps = before.apps if before else {}
        made = datetime.fromtimestamp((directory / "state.json").stat().st_mtime, UTC)
        manifest = Manifest(
            generation=number,
            parent=parent,
            time=stamp(made),
            command="(not known: its manifest was damaged)",
            apps=tuple(sorted(name for name in {*apps, *index.apps} if apps.get(name) != index.apps.get(name))),
            added=tuple(sorted(has - was)),
            removed=tuple(sorted(was - has)),
            digest=hashlib.sha256((directory / "router.conf").read_bytes() + (directory / "state.json").read_bytes()).hexdigest(),
            submissions={},
        )
        write_atomic(directory / "manifest.json", json.dumps(asdict(manifest)).encode())

    def commit(self, number: int) -> None:
        """Make generation `number` the current one, by one rename.

        nginx keeps what it runs until it is reloaded; the caller owns that step and commits the parent again when it fails.
        """
        replace_link(self.paths.current, f"generations/{number:06d}")

    def log_path(self, number: int) -> Path:
        """Where the changes of endpoints stand that came to generation `number` without another one."""
        return self.directory(number) / endpointlog.NAME

    def uncommit(self, parent: int | None) -> None:
        """Make `parent` current again; None: there was none."""
        if parent is not None:
            self.commit(parent)
            return
        with contextlib.suppress(FileNotFoundError):
            self.paths.current.unlink()
            sync_directory(self.paths.root)

    def discard(self, number: int, objects: Iterable[str]) -> None:
        """Remove a generation that did not come to serve, and the `objects` that it brought.

        What the current one names stays: a root that was restored from a backup has a current generation that the intent
        of a killed command knew nothing of.
        """
        with contextlib.suppress(StateCorrupt, NotFound):  # what is named is not known then: nothing goes
            current = self.current_number()
            for sha in set(objects) - (self.named(current) if current is not None else set()):
                self.object_path(sha).unlink(missing_ok=True)
        shutil.rmtree(self.directory(number), ignore_errors=True)

    def prune(self, keep: int) -> list[int]:
        """Remove all but the last `keep` generations, and the objects that only the removed ones name.

        Raises:
            StateCorrupt: what a generation names cannot be read; nothing was removed.
        """
        numbers = self.numbers()
        if len(numbers) <= keep:
            return []
        spared = {self.current_number()}
        if None not in spared:
            with contextlib.suppress(NotFound, StateCorrupt):
                spared.add(self.manifest(next(n for n in spared if n is not None)).parent)
        gone = [n for n in numbers[:-keep] if n not in spared]
        if not gone:
            return []
        kept = [n for n in numbers if n not in gone]
        for sha in self._only_in(gone, kept):
            self.object_path(sha).unlink(missing_ok=True)
        for n in gone:
            shutil.rmtree(self.directory(n), ignore_errors=True)
        return gone

    def _only_in(self, gone: Sequence[int], kept: Sequence[int]) -> set[str]:
        """The objects that generations in `gone` name and none in `kept`."""
        numbers = sorted([*gone, *kept])
        manifests = {n: self.manifest(n) for n in numbers}
        if any(manifests[newer].parent != older for older, newer in pairwise(numbers)):
            # somebody changed `current` by hand or removed a generation: what came and went is not what lies between the two
            named = {n: self.named(n) for n in numbers}
            return set().union(*(named[n] for n in gone)) - set().union(*(named[n] for n in kept))
        # an object leaves the chain in the generation after the last that names it, and may have come back later
        unnamed = {sha for n in numbers if n <= kept[0] for sha in manifests[n].removed}
        # generations that go but lie behind the first that stays count too: what they brought may still be named later
        return unnamed - {sha for n in numbers if n > kept[0] for sha in manifests[n].added} - self.named(kept[0])

    def _json(self, number: int, name: str) -> dict[str, Any]:
        path = self.directory(number) / name
        try:
            raw = json.loads(path.read_text())
        except FileNotFoundError:
            raise NotFound(f"there is no generation {number}", hint="router generations:list") from None
        except ValueError as why:
            raise self._corrupt(number, name, str(why)) from None
        if not isinstance(raw, dict):
            raise self._corrupt(number, name, "no object")
        if name == "state.json" and raw.get("schema") != SCHEMA:
            raise self._corrupt(number, name, f"schema {raw.get('schema')} is not {SCHEMA}")
        return dict(raw)

    def _corrupt(self, number: int, name: str, why: str) -> StateCorrupt:
        return StateCorrupt(
            f"{self.directory(number) / name}: {why}", hint=f"restore it from a backup, or link {self.paths.current} to another"
        )


def _identity(path: Path) -> _Identity:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
