"""A router that has no nginx behind it, and what deploys of its apps come to."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nginx_router import deploy as engine
from nginx_router import drain, interrupts
from nginx_router.events import Event, reduce
from nginx_router.generations import Generations
from nginx_router.handover import Handover, Options
from nginx_router.model import Globals, parse_app, parse_globals
from nginx_router.settings import Paths
from nginx_router.store import Store


@dataclass
class FakeOutcome:
    event: Event
    generation: int | None
    kind: str
    answer: Mapping[str, Any]
    old_workers: tuple[tuple[int, int], ...] = ((1, 0),)  # pid 1 began at another time: gone
    serving: int | None = 42
    reloads: int = 1
    closed_connections: int = 3
    kept_connections: int = 2
    websockets: int | None = 0


class FakePlugins:
    """The hooks that a test gives, and what each was told."""

    def __init__(self) -> None:
        self.hooks: dict[str, Callable[[dict[str, Any]], str]] = {}
        self.told: list[tuple[str, dict[str, Any]]] = []

    def has(self, hook: str) -> bool:
        return hook in self.hooks

    def run(self, hook: str, event: dict[str, Any]) -> tuple[str, str] | None:
        self.told.append((hook, event))
        return ("runner", self.hooks[hook](event)) if hook in self.hooks else None

    first = run

    def notify(self, hook: str, event: dict[str, Any]) -> list[str]:
        self.told.append((hook, event))
        return []

    def of(self, hook: str) -> list[dict[str, Any]]:
        return [event for name, event in self.told if name == hook]


class FakeRouter:
    """Changes the directories as the real one does; there is no nginx behind it."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths(root)
        self.store = Store(self.paths)
        self.store.prepare()
        self.generations = Generations(self.paths)
        self.said: list[str] = []
        self.request = SimpleNamespace(command="as typed", dry_run=False, lock_timeout=1.0, say=self.said.append)
        self.plugins = FakePlugins()
        self.steps: list[str] = []
        self.number = 41
        self.before_change: Callable[[], None] = lambda: None
        self.refuse: Callable[[Event], None] = lambda event: None
        self.owners: dict[str, str] = {}
        self.config = self.global_domains = ""
        self.out = SimpleNamespace(is_json=False)

    # what the engines use

    def settings(self) -> Globals:
        return parse_globals(*self.store.globals())

    def app(self, name: str) -> Any:
        self.store.require(name)
        return parse_app(name, self.store.texts(name) or {})

    def index(self) -> None:
        return None

    def tables(self) -> dict[str, Any]:
        return {}

    def plane(self) -> Any:
        return SimpleNamespace(master=lambda: None, workers=list, in_flight=lambda addresses: {})

    def journalled(self, event: Event) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def mend(self, app: str) -> None:
        """No command was killed."""

    def gate(self, event: Event) -> None:
        self.steps.append(f"gate {event.action}")
        self.refuse(event)

    def change(self, events: Sequence[Event], *, gated: bool = False, then: Any = None) -> list[FakeOutcome]:
        self.before_change()
        outcomes = []
        for event in events:
            edit = reduce(event, self)
            kind = "nothing"
            for name, texts in edit.apps.items():
                old = self.store.texts(name)
                if texts != old:
                    kind = "endpoints"
                    self.store.apply(self.store.steps(name, old, texts))
            self.number += kind != "nothing"
            self.steps.append(f"change {event.action} {event.args.get('verb', '')}".strip())
            self.said.extend(edit.notes)
            outcomes.append(FakeOutcome(event, self.number, kind, edit.answer))
        interrupts.hold()
        if then:
            then(outcomes)
        return outcomes

    # the world of reduce

    def texts(self, app: str) -> Any:
        return self.store.texts(app)

    def parse(self, app: str, texts: Any) -> Any:
        return parse_app(app, texts)

    def names(self) -> list[str]:
        return self.store.names()

    def unhealthy(self, app: str) -> Mapping[str, str]:
        return {}


@pytest.fixture
def router(router_root: Path) -> Iterator[Any]:
    with interrupts.unwinding(is_last=False):  # as in a command
        yield FakeRouter(router_root)


@pytest.fixture
def listening() -> Iterator[Callable[[], str]]:
    """The address of something that accepts connections."""
    with contextlib.ExitStack() as opened:

        def make() -> str:
            listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
            return f"127.0.0.1:{listener.getsockname()[1]}"

        yield make


def an_app(router: FakeRouter, upstreams: str = "", toml: str = "", name: str = "blog") -> Path:
    directory = router.paths.app(name)
    directory.mkdir(parents=True)
    (directory / "DOMAINS").write_text("*.blog.example.com\nblog.example.com\n")
    (directory / "UPSTREAMS").write_text(upstreams)
    if toml:
        (directory / "app.toml").write_text(toml)
    return directory


def upstreams(router: FakeRouter, name: str = "blog") -> str:
    return (router.paths.app(name) / "UPSTREAMS").read_text()


def deploy(router: Any, *words: str, app: str = "blog", **options: Any) -> Handover:
    return answered(lambda show: engine.deploy(router, app, engine.wanted_of(words), Options(**options), show))


def scale(router: Any, *words: str, **options: Any) -> Handover:
    return answered(lambda show: engine.scale(router, "blog", engine.counts_of(words), Options(**options), show))


def retire(router: Any, *addresses: str, **options: Any) -> Handover:
    return answered(lambda show: engine.retire(router, "blog", addresses, Options(**options), show))


def answered(call: Callable[[Callable[[Handover], None]], None]) -> Handover:
    shown: list[Handover] = []
    call(shown.append)
    assert len(shown) == 1
    return shown[0]


def a_runner(router: FakeRouter, *endpoints: str) -> None:
    router.plugins.hooks |= {"scale": lambda event: "".join(f"{e}\n" for e in endpoints), "stop": lambda event: ""}


@pytest.fixture
def never_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old workers hold two connections for ever."""
    monkeypatch.setattr(drain, "held", lambda *_: {1: 2})
