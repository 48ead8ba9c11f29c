"""The shipped templates, compiled once: what jinja2 makes of them is kept in `__pycache__` beside them, as Python keeps its modules.

To compile them takes 45 ms of each command that changes something.  What is kept is run, so it is taken only from where nobody
but root and this user may write, and only as it was made: of the same text, by the same versions, for the same options.  (Whoever
may write the templates themselves needs no such way: those are rendered without a sandbox.)
Whatever else lies there, or cannot be read or kept, costs those 45 ms and nothing more.  Templates of apps are never kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

import jinja2
from jinja2.bccache import Bucket, BytecodeCache

_DIGEST = hashlib.sha256().digest_size


class Compiled(BytecodeCache):
    """The compiled templates of one directory, for an environment with these options."""

    def __init__(self, templates: Path, options: Mapping[str, object]) -> None:
        self._directory = templates / "__pycache__"
        # the text of a template and its name stand in the bucket
        self._made_by = repr((jinja2.__version__, sys.version, sorted(options.items()))).encode()

    def load_bytecode(self, bucket: Bucket) -> None:
        """Take what is kept of a template, if that may be run."""
        try:
            if not _is_alone_written(self._directory.stat()):
                return
            with self._path(bucket).open("rb") as file:
                if not _is_alone_written(os.fstat(file.fileno())):
                    return
                kept = file.read()
        except OSError:
            return
        if kept[:_DIGEST] == self._digest(kept[_DIGEST:]):  # else it is torn, or another version's
            bucket.bytecode_from_string(kept[_DIGEST:])

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Keep what a template was compiled to, where Python may keep modules."""
        if sys.dont_write_bytecode or sys.pycache_prefix:
            return
        code, path = bucket.bytecode_to_string(), self._path(bucket)
        with contextlib.suppress(OSError):  # a read-only installation, a full disk
            self._directory.mkdir(mode=0o755, exist_ok=True)
            if not _is_alone_written(self._directory.stat()):
                return
            fresh = path.with_name(f".{path.name}.{os.getpid()}")
            try:
                # no fsync: what a power cut tears is compiled anew
                with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644), "wb") as file:
                    file.write(self._digest(code) + code)
                fresh.rename(path)
            finally:
                fresh.unlink(missing_ok=True)

    def _path(self, bucket: Bucket) -> Path:
        return self._directory / f"{bucket.key}.{sys.implementation.cache_tag}.pyc"

    def _digest(self, code: bytes) -> bytes:
        return hashlib.sha256(self._made_by + code).digest()


def _is_alone_written(found: os.stat_result) -> bool:
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
