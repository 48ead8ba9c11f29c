"""What plugins declare for router.toml and app.toml: which tables may stand there, and the keys that are directives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from .discovery import Plugin
from .keys import Keys
from .registry import HookEvent, Registry


class KnownTables(Mapping[str, Keys]):
    """Plugin -> the keys it declares; those of installed Python packages are looked for last, because that takes 10 ms."""

    def __init__(self, registry: Registry, data: Path) -> None:
        self._registry, self._data = registry, data

    def __getitem__(self, name: str) -> Keys:
        registry = self._registry
        for _ in range(2):
            if name in registry.plugins():
                return registry.plugins()[name].keys
            if name in registry.broken or name in registry.disabled or (self._data / name).is_dir():
                return {}
            registry.scan_entry_points()
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        self._registry.scan_entry_points()
        kept = {path.name for path in self._data.glob("*") if path.is_dir()}
        return iter(sorted({*self._registry.plugins(), *self._registry.broken, *self._registry.disabled, *kept}))

    def __len__(self) -> int:
        return len(list(iter(self)))


def has_directives(plugin: Plugin) -> bool:
    """Whether a property of it is a directive of nginx."""
    return any(key.directive for key in plugin.keys.values())


def directives(plugin: Plugin) -> Callable[[HookEvent], str]:
    """What the properties of a plugin that are directives come to, as if it had said so itself."""

    def answer(event: HookEvent) -> str:
        from .render import quoted  # with jinja2, which a change loads anyway

        return "".join(f"{key.directive} {quoted(event.config[key.name])};\n" for key in plugin.keys.values() if key.directive)

    return answer
