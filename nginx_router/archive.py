"""The archive that `export` writes and `import` reads: a tar file that begins with the list of what is in it.

    manifest.json     format, router, time, generation, and of every file and directory its mode, its owner and (files) the
                      size and the SHA-256 of its bytes
    router.toml DOMAINS apps/… plugins/… data/…

It is written so that `tar -x` understands it, and read by nothing that does more than this format needs: a header that
`export` would not have written is refused, whatever a tar program makes of it.  Nothing is believed before the list was
checked, no name is used that is not in it, and no more bytes are read than it says; nothing is compressed, so that a small
file stays a small file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol

from .errors import UsageProblem
from .names import app_name, shown

#: The shape of the archive; a later program reads all earlier ones.
FORMAT = 1
MANIFEST = "manifest.json"

#: The largest file, all files together, and how many there may be.
LARGEST, LARGEST_TOTAL, MOST = 64 << 20, 1 << 30, 500_000
_LARGEST_MANIFEST = 128 << 20
_PIECE = 1 << 20
_BLOCK = 512
_TOPS = ("apps", "plugins", "data")
_SHA = re.compile(r"[0-9a-f]{64}")
_COMPRESSED = {b"\x1f\x8b": "zcat", b"BZ": "bzcat", b"\xfd7": "xzcat", b"\x28\xb5": "zstdcat"}
_KINDS = {b"1": "a hard link", b"2": "a link", b"3": "a device", b"4": "a device", b"6": "a FIFO"}


@dataclass(frozen=True)
class File:
    """What an archive says of one file, or of a directory (without size and digest)."""

    mode: int
    owner: str = ""
    group: str = ""
    size: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Manifest:
    """The list at the beginning of an archive."""

    router: str  # the version that wrote it
    time: str
    root: str
    generation: int | None  # that was current
    is_whole: bool  # with the host's own settings; else some apps alone
    apps: tuple[str, ...]
    left_out: tuple[str, ...] = ()  # what was there and is no file or directory that can be restored
    directories: Mapping[str, File] = field(default_factory=dict)
    files: Mapping[str, File] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain values for the archive."""
        return {
            "format": FORMAT,
            **vars(self),
            "directories": {path: {"mode": f.mode, "owner": f.owner, "group": f.group} for path, f in self.directories.items()},
            "files": {path: vars(f) for path, f in self.files.items()},
        }


class Source(Protocol):
    """What gives the bytes of a file, once each, in the order of the manifest."""

    def __call__(self, path: str) -> Iterator[bytes]:
        """The bytes of `path` in pieces."""


def is_name(path: str) -> bool:
    """Whether a path may stand in an archive: relative, printable, without `.` and `..`, of a length that tar has room for."""
    parts = path.split("/")
    return (
        path.isprintable()
        and len(path.encode(errors="surrogateescape")) <= 1000
        and all(part not in ("", ".", "..") and len(part.encode(errors="surrogateescape")) <= 255 for part in parts)
    )


def write(manifest: Manifest, source: Source, out: Callable[[bytes], None]) -> int:
    """Write an archive; how many bytes it has."""
    written = 0

    def put(data: bytes) -> None:
        nonlocal written
        written += len(data)
        out(data)

    text = json.dumps(manifest.as_json(), indent=1, sort_keys=True).encode()
    put(_header(MANIFEST, File(0o600, size=len(text)), manifest.time) + text + _filling(len(text)))
    for path, found in manifest.directories.items():
        put(_header(f"{path}/", found, manifest.time, is_directory=True))
    for path, found in manifest.files.items():
        put(_header(path, found, manifest.time))
        for piece in source(path):
            put(piece)
        put(_filling(found.size))
    put(bytes(2 * _BLOCK))
    put(bytes(-written % 10240))  # as tar does, for tapes
    return written


class Reading:
    """An archive that is read: its list at once, its files one after the other."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        """Read the list.

        Raises:
            UsageProblem: this is no archive of `export`, or its list breaks a rule.
        """
        self._stream, self._name = stream, name
        found = self._next()
        if found is None or found[0] != MANIFEST or found[2]:
            raise self._refuse(f"it does not begin with {MANIFEST}", "router export writes archives")
        if found[1] > _LARGEST_MANIFEST:
            raise self._refuse(f"{MANIFEST} has {found[1]} bytes")
        text = b"".join(self._pieces(found[1]))
        try:
            raw = json.loads(text, object_pairs_hook=_each_once)
        except (ValueError, RecursionError) as why:
            raise self._refuse(f"{MANIFEST}: {why}") from None
        self.manifest = self._manifest(raw)

    def files(self) -> Iterator[tuple[str, File, Iterator[bytes]]]:
        """Each file of the list, once, with its bytes, which are there until the next one is asked for.

        Raises:
            UsageProblem: the archive holds something else than its list says.
        """
        seen: set[str] = set()
        while (found := self._next()) is not None:
            path, size, is_directory = found
            known = (self.manifest.directories if is_directory else self.manifest.files).get(path)
            if known is None:
                raise self._refuse(f"{shown(path)} is not in its {MANIFEST}")
            if path in seen:
                raise self._refuse(f"{shown(path)} is in it twice")
            seen.add(path)
            if is_directory:
                continue
            if size != known.size:
                raise self._refuse(f"{shown(path)} has {size} bytes, and {known.size} by its {MANIFEST}")
            digest = hashlib.sha256()
            pieces = self._digested(size, digest)
            yield path, known, pieces
            for _ in pieces:  # what nobody wanted is looked at all the same
                pass
            if digest.hexdigest() != known.sha256:
                raise self._refuse(f"{shown(path)} is not what it was: its digest differs")
        missing = [path for path in self.manifest.files if path not in seen]
        if missing:
            raise self._refuse(f"{shown(missing[0])} is missing" + (f", and {len(missing) - 1} others" if missing[1:] else ""))

    # private

    def _digested(self, size: int, digest: Any) -> Iterator[bytes]:
        for piece in self._pieces(size):
            digest.update(piece)
            yield piece

    def _manifest(self, raw: Any) -> Manifest:
        if not isinstance(raw, dict) or not isinstance(raw.get("format"), int):
            raise self._refuse(f"{MANIFEST} says no format")
        if raw["format"] != FORMAT:
            raise self._refuse(f"its format is {raw['format']}, and this router reads {FORMAT}", "import it with the router that wrote it")
        try:
            apps = tuple(str(app_name(_text(name))) for name in _listed(raw["apps"]))
            manifest = Manifest(
                _text(raw["router"]),
                _text(raw["time"]),
                _text(raw["root"]),
                raw["generation"] if raw["generation"] is None else _number(raw["generation"], 1 << 62),
                raw["is_whole"] is True,
                apps,
                tuple(map(_text, _listed(raw["left_out"]))),
                {path: _file(f, is_directory=True) for path, f in _table(raw["directories"]).items()},
                {path: _file(f) for path, f in _table(raw["files"]).items()},
            )
        except (KeyError, TypeError, ValueError, UsageProblem) as why:
            what = why.message if isinstance(why, UsageProblem) else f"{type(why).__name__} {why}"
            raise self._refuse(f"{MANIFEST}: {what}") from None
        self._check_names(manifest)
        return manifest

    def _check_names(self, manifest: Manifest) -> None:
        """No name leads out of the root, to what is not restored, or through a file."""
        for path in (*manifest.files, *manifest.directories):
            top, *below = path.split("/")
            if not is_name(path):
                raise self._refuse(f"{shown(path)} is no name of a file below the root")
            is_ours = path in ("router.toml", "DOMAINS") or (top in _TOPS and len(below) > (0 if path in manifest.directories else 1))
            if not is_ours or (path in manifest.directories and not below):
                raise self._refuse(f"{shown(path)} is none of the router's files")
            if top == "apps" and below[0] not in manifest.apps:
                raise self._refuse(f"{shown(path)} is of no app that it names")
            if not manifest.is_whole and top != "apps":
                raise self._refuse(f"{shown(path)} is of the host, and these are apps alone")
            parents = ["/".join([top, *below][:n]) for n in range(1, len(below) + 1)]
            if through := next((parent for parent in parents if parent in manifest.files), None):
                raise self._refuse(f"{shown(through)} is a file, and {shown(path)} is below it")
            if path in manifest.files and path in manifest.directories:
                raise self._refuse(f"{shown(path)} is a file and a directory")
        if len(manifest.files) + len(manifest.directories) > MOST:
            raise self._refuse(f"it holds more than {MOST} files")
        if sum(f.size for f in manifest.files.values()) > LARGEST_TOTAL:
            raise self._refuse(f"it holds more than {LARGEST_TOTAL} bytes")

    def _next(self) -> tuple[str, int, bool] | None:
        """Name, size and whether it is a directory, of the next member; None: the end."""
        long = None
        while True:
            block = self._take(_BLOCK)
            if not any(block):
                self._see_the_end(is_whole=long is None)
                return None
            kind, size = block[156:157], self._size(block)
            if kind == b"x" and long is None:
                if not 0 < size <= 8192:
                    raise self._refuse(f"a header has {size} bytes")
                long = self._long_name(b"".join(self._pieces(size)))
                continue
            if kind not in (b"0", b"5"):
                name = shown(_decoded(block[:100]))
                raise self._refuse(
                    f"{name} is {_KINDS.get(kind, f'of the kind {kind!r}')}, and an archive holds files and directories alone"
                )
            prefix = _decoded(block[345:500])
            name = long if long is not None else f"{prefix}/{_decoded(block[:100])}" if prefix else _decoded(block[:100])
            if kind == b"5":
                if size:
                    raise self._refuse(f"{shown(name)} is a directory of {size} bytes")
                return name.removesuffix("/"), 0, True
            return name, size, False

    def _size(self, block: bytes) -> int:
        magic = next((tool for start, tool in _COMPRESSED.items() if block.startswith(start)), None)
        if magic and block[257:262] != b"ustar":
            raise self._refuse("it is compressed", f"{magic} FILE | router import -")
        fields = block[124:136], block[148:156]
        texts = [field.rstrip(b"\0 ") for field in fields]
        if block[257:265] != b"ustar\x0000" or not all(re.fullmatch(rb"[0-7]{1,11}", text) for text in texts):
            raise self._refuse("it is no tar file that router wrote", "router export writes archives")
        if int(texts[1], 8) != sum(block[:148]) + sum(block[156:]) + 8 * ord(" "):
            raise self._refuse("a header is damaged")
        return int(texts[0], 8)

    def _long_name(self, data: bytes) -> str:
        """The name in a pax header: the one thing that export puts there."""
        found = None
        while data:
            match = re.match(rb"([1-9][0-9]{0,4}) ([a-z]+)=", data)
            end = int(match[1]) if match else 0
            if (
                match is None
                or not match.end() < end <= len(data)
                or data[end - 1 : end] != b"\n"
                or match[2] not in (b"path", b"uname", b"gname")
            ):
                raise self._refuse("a pax header says something that router does not write")
            if match[2] == b"path":
                found = _decoded(data[match.end() : end - 1])
            data = data[end:]
        return found or ""

    def _see_the_end(self, *, is_whole: bool) -> None:
        rest = self._stream.read(1 << 20)
        if not is_whole or len(rest) < _BLOCK or any(rest) or self._stream.read(1):
            raise self._refuse("something else than its end follows its last file")

    def _pieces(self, size: int) -> Iterator[bytes]:
        left = size
        while left:
            piece = self._take(min(left, _PIECE))
            left -= len(piece)
            yield piece
        self._take(-size % _BLOCK)

    def _take(self, count: int) -> bytes:
        data = self._stream.read(count) if count else b""
        if len(data) != count:
            raise self._refuse("it ends in the middle" if data or count != _BLOCK else "its end is missing")
        return data

    def _refuse(self, what: str, hint: str = "") -> UsageProblem:
        return UsageProblem(f"{self._name}: {what}; nothing was changed", hint=hint)


def _header(path: str, found: File, time: str, *, is_directory: bool = False) -> bytes:
    import tarfile  # 8 ms that nothing else needs
    from datetime import datetime

    header = tarfile.TarInfo(path)
    header.type = tarfile.DIRTYPE if is_directory else tarfile.REGTYPE
    header.mode, header.size, header.uname, header.gname = found.mode, found.size, found.owner, found.group
    header.mtime = int(datetime.fromisoformat(time).timestamp())
    return header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _filling(size: int) -> bytes:
    return bytes(-size % _BLOCK)


def _decoded(data: bytes) -> str:
    return data.partition(b"\0")[0].decode(errors="surrogateescape")


def _each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{shown(next(name for name in names if names.count(name) > 1))} is in it twice")
    return found


def _file(raw: Any, *, is_directory: bool = False) -> File:
    mode, owner, group = _number(raw["mode"], 0o7777), _text(raw["owner"]), _text(raw["group"])
    if is_directory:
        return File(mode, owner, group)
    if not _SHA.fullmatch(_text(raw["sha256"])):
        raise ValueError(f"{shown(raw['sha256'])} is no digest")
    return File(mode, owner, group, _number(raw["size"], LARGEST), raw["sha256"])


def _number(value: Any, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"{value!r:.40} is no number up to {most}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > 4096:
        raise ValueError(f"{value!r:.40} is no text")
    return value


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r:.40} is no list")
    return value


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r:.40} is no table")
    return value
