"""The texts of app.toml and router.toml with a key changed: what people wrote around it stays."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from typing import Any

from .errors import UsageProblem


def edit_toml(text: str, edit: Callable[[Any], None]) -> str:
    """`text` with `edit` applied to its document; comments and order survive.

    Raises:
        UsageProblem: `text` is no TOML; the line is in the message.
    """
    import tomlkit  # 10 ms, and only changes of app.toml and router.toml need it
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(text)
    except TOMLKitError as why:
        raise UsageProblem(f"{why}") from None
    edit(document)
    made: str = tomlkit.dumps(document)
    if not text.endswith("\n") and not _is_toml(made):
        # tomlkit wrote a key into the last line, which had no end: `a.b = 1` as the whole file
        return edit_toml(f"{text}\n", edit)
    return made


def _is_toml(text: str) -> bool:
    try:
        tomllib.loads(text)
    except ValueError:
        return False
    return True


def set_key(text: str, table: str, key: str, value: Any, *, inner: str = "") -> str:
    """`text` with `key` of `table` ("": top level), or of the table `inner` in that, set, or unset where `value` is None.

    A table that is left empty goes with its last key, unless it holds a comment.

    Raises:
        UsageProblem: `text` is no TOML; the line is in the message.
    """

    def edit(document: Any) -> None:
        import tomlkit

        if not table:
            if value is None:
                document.pop(key, None)
            else:
                document[key] = value
            return
        if value is not None:
            if table not in document:
                document[table] = tomlkit.table(is_super_table=bool(inner))
            if inner and inner not in document[table]:
                is_inline = isinstance(document[table], tomlkit.items.InlineTable)
                document[table][inner] = tomlkit.inline_table() if is_inline else tomlkit.table()
            (document[table][inner] if inner else document[table])[key] = value
        elif inner and inner in document.get(table, {}):
            document[table][inner].pop(key, None)
            _drop_empty(document[table], inner)
            _drop_empty(document, table)
        elif table in document and not inner:
            document[table].pop(key, None)
            _drop_empty(document, table)

    return edit_toml(text, edit)


def _drop_empty(parent: Any, table: str) -> None:
    if not parent[table] and "#" not in parent[table].as_string():
        del parent[table]
