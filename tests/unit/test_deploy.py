"""Deploy, scale, retire and drain against a router that has no nginx: the order of things, and what failures leave."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nginx_router import deploy as engine
from nginx_router import drain
from nginx_router.errors import Busy, ChecksFailed, Conflict, NotDrained, NotFound, PluginBroken, Refused, UsageProblem
from nginx_router.events import Event, reduce
from nginx_router.generations import Generations
from nginx_router.handover import Handover, Options
from nginx_router.model import Globals, parse_app, parse_globals
from nginx_router.plugins import Plugins
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

    def change(self, events: Sequence[Event], *, gated: bool = False, served: Any = lambda: None, then: Any = None) -> list[FakeOutcome]:
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
        served()
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
def router(router_root: Path) -> Any:
    return FakeRouter(router_root)


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


def answered(call: Callable[[Callable[[Handover], None]], None]) -> Handover:
    shown: list[Handover] = []
    call(shown.append)
    assert len(shown) == 1
    return shown[0]


@pytest.fixture
def never_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old workers hold two connections for ever."""
    monkeypatch.setattr(drain, "held", lambda *_: {1: 2})


# deploy


def test_new_instances_take_over_and_the_old_ones_are_told(router: Any, listening: Callable[[], str]) -> None:
    new = listening()
    an_app(router, "# mine\n10.0.0.1:80\napi 10.0.0.9:80\n")
    done = deploy(router, new)
    assert upstreams(router) == f"# mine\n{new}\napi 10.0.0.9:80\n"
    assert router.steps == ["gate deploy", "change deploy"]
    assert done.as_json() | {"seconds": 0} == {
        "app": "blog",
        "generation": 42,
        "kind": "endpoints",
        "retired": ["10.0.0.1:80"],
        "forced": 0,
        "reloads": 1,
        "closed_connections": 3,
        "kept_connections": 2,
        "websockets": 0,
        "seconds": 0,
        "still_running": ["10.0.0.1:80"],
        "canary": None,
    }
    assert router.plugins.of("endpoints-retired") == [
        {"app": "blog", "action": "retire", "command": "as typed", "endpoints": ["10.0.0.1:80"]}
    ]


def test_several_processes_are_one_swap(router: Any, listening: Callable[[], str]) -> None:
    web, api = listening(), listening()
    an_app(router, "10.0.0.1:80\napi 10.0.0.2:80\nworker 10.0.0.3:80\n")
    done = deploy(router, web, f"api={api}")
    assert set(done.swap.retired) == {"10.0.0.1:80", "10.0.0.2:80"}
    assert upstreams(router) == f"{web}\napi {api}\nworker 10.0.0.3:80\n"


def test_an_equal_address_keeps_its_flags(router: Any, listening: Callable[[], str]) -> None:
    kept, new = listening(), listening()
    an_app(router, f"{kept} weight=3 backup  # slow\n10.0.0.1:80 weight=5\n")
    assert deploy(router, kept, new).swap.retired == ("10.0.0.1:80",)
    assert upstreams(router) == f"{kept} weight=3 backup  # slow\n{new}\n"


def test_what_was_draining_gets_requests_again_when_a_deploy_names_it(router: Any, listening: Callable[[], str]) -> None:
    named, other, passing = listening(), listening(), listening()
    an_app(router, f"{named} weight=3 drain\n{other} down\napi {other} drain\n")
    assert deploy(router, named, other).swap.retired == ()
    assert upstreams(router) == f"{named} weight=3\n{other}\napi {other} drain\n", "the other process was not named"
    router.plugins.hooks["scale"] = lambda event: f"{named}\n{passing}\n"
    (router.paths.app("blog") / "UPSTREAMS").write_text(f"{named} drain\n")
    scale(router, "web=2")
    assert upstreams(router) == f"{named} drain\n{passing}\n", "a scale names no instance"


def test_the_same_set_again_is_checked_and_changes_nothing(router: Any, listening: Callable[[], str]) -> None:
    same = listening()
    an_app(router, f"{same}\n")
    done = deploy(router, same)
    assert (done.swap.kind, done.swap.retired, done.still_running) == ("nothing", (), ())
    assert router.said[0].startswith(f"{same}: accepts connections")
    assert not router.plugins.of("endpoints-retired")


def test_an_instance_that_does_not_answer_changes_nothing(router: Any, free_port: Callable[[], int]) -> None:
    an_app(router, "10.0.0.1:80\n")
    with pytest.raises(ChecksFailed, match="Connection refused"):
        deploy(router, f"127.0.0.1:{free_port()}", check_timeout=0.1)
    assert upstreams(router) == "10.0.0.1:80\n"
    assert router.steps == ["gate deploy"]


def test_a_refusal_comes_before_the_checks(router: Any, free_port: Callable[[], int]) -> None:
    an_app(router)

    def refuse(event: Event) -> None:
        raise Refused("not today")

    router.refuse = refuse
    with pytest.raises(Refused):
        deploy(router, f"127.0.0.1:{free_port()}")
    assert router.said == []


def test_while_a_canary_is_under_way_neither_a_deploy_nor_a_scale_begins(router: Any) -> None:
    an_app(router, "10.0.0.1:80\n10.0.0.2:80 canary\n")
    router.plugins.hooks["scale"] = lambda event: "10.0.0.3:80\n"
    for begin in (lambda: deploy(router, "10.0.0.3:80"), lambda: scale(router, "web=2")):
        with pytest.raises(Conflict, match="canary under way"):
            begin()
    assert router.steps == [], "no gate, no check, no runner was asked"
    assert router.plugins.of("scale") == []


def test_a_locked_app_refuses_before_all_else_with_its_reason(router: Any) -> None:
    an_app(router, toml='locked = "moving its database"\n')
    with pytest.raises(Conflict, match="moving its database"):
        deploy(router, "127.0.0.1:1")
    assert router.steps == []


def test_an_app_that_does_not_exist_is_named(router: Any) -> None:
    an_app(router)
    with pytest.raises(NotFound, match=r"no app 'blok'; did you mean blog\?"):
        deploy(router, "127.0.0.1:1", app="blok")


def test_create_makes_the_app_with_its_first_domains(router: Any, listening: Callable[[], str]) -> None:
    router.paths.global_domains.write_text("example.com\n")
    new = listening()
    deploy(router, new, app="shop", create=True)
    assert upstreams(router, "shop") == f"{new}\n"
    assert (router.paths.app("shop") / "DOMAINS").read_text() == "shop.example.com\n"
    assert deploy(router, new, app="shop", create=True).swap.kind == "nothing"


def test_the_check_asks_for_the_first_exact_domain(router: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(engine.checks, "run_each", lambda *args: asked.append(args))
    an_app(router)
    deploy(router, "10.0.0.1:80", check="/up", check_timeout=7)
    (check,) = asked[0][1].values()
    assert (check.path, check.host, check.timeout, check.statuses) == ("/up", "blog.example.com", 7, ((200, 399),))


def test_the_check_is_as_the_files_say_and_the_commands_own_word_counts_first(router: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(engine.checks, "run_each", lambda *args: asked.append(args[1]))
    keys = Plugins(router.paths, router.said.append, dict).tables()
    monkeypatch.setattr(router, "tables", lambda: keys)
    monkeypatch.setattr(router, "app", lambda name: parse_app(name, router.store.texts(name) or {}, keys))
    monkeypatch.setattr(router, "parse", lambda name, texts: parse_app(name, texts, keys))
    directory = an_app(router)
    (directory / "app.toml").write_text('[checks]\npath = "/up"\nstatus = 204\ntimeout = 2\n[checks.api]\npath = "off"\nhost = "a.io"\n')
    deploy(router, "10.0.0.1:80", "api=10.0.0.2:80")
    web, api = asked[0].values()
    assert (web.path, web.host, web.each, web.statuses) == ("/up", "blog.example.com", 2, ((204, 204),))
    assert (api.path, api.host, api.each) == (None, "a.io", 2)
    deploy(router, "10.0.0.3:80", "api=10.0.0.4:80", check="/own")
    assert [(check.path, check.host, check.each, check.statuses) for check in asked[1].values()] == [
        ("/own", "blog.example.com", None, ((200, 399),)),
        ("/own", "a.io", None, ((200, 399),)),
    ]


def test_endpoints_that_were_changed_during_the_checks_are_a_conflict(router: Any, listening: Callable[[], str]) -> None:
    directory = an_app(router, "10.0.0.1:80\n")
    router.before_change = lambda: (directory / "UPSTREAMS").write_text("10.0.0.5:80\n")
    with pytest.raises(Conflict, match="changed during the checks"):
        deploy(router, listening())


def test_what_was_made_during_the_checks_already_is_none(router: Any, listening: Callable[[], str]) -> None:
    directory, new = an_app(router, "10.0.0.1:80\n"), listening()
    router.before_change = lambda: (directory / "UPSTREAMS").write_text(f"{new} weight=2\n")
    deploy(router, new)
    assert (directory / "UPSTREAMS").read_text() == f"{new} weight=2\n"


def test_a_second_deploy_of_the_same_app_is_told_who_is_at_it(router: Any, listening: Callable[[], str]) -> None:
    an_app(router)
    an_app(router, name="shop")
    script = """
import sys; from pathlib import Path; from nginx_router.files import FileLock
FileLock(Path(sys.argv[1])).acquire(1, "")
print(flush=True); input()"""
    (router.paths.run / "deploy").mkdir(parents=True)
    with subprocess.Popen(
        [sys.executable, "-c", script, str(router.paths.run / "deploy/blog.lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout and other.stdout.readline()
        with pytest.raises(Busy, match=rf"app blog is being deployed by pid {other.pid} "):
            deploy(router, listening())
        deploy(router, listening(), app="shop")
        other.communicate(b"\n", timeout=10)
    deploy(router, listening())


def test_the_apps_lock_is_held_until_the_answer_is_given(router: Any, listening: Callable[[], str]) -> None:
    an_app(router)

    def again(_: Handover) -> None:
        with pytest.raises(Busy):
            engine.deploy(router, "blog", {"web": ["127.0.0.1:1"]}, Options(), lambda _: None)

    engine.deploy(router, "blog", {"web": [listening()]}, Options(), again)


@pytest.mark.usefixtures("never_drained")
def test_at_the_deadline_the_old_are_told_all_the_same_and_what_was_left_is_counted(router: Any, listening: Callable[[], str]) -> None:
    an_app(router, "10.0.0.1:80\n")
    done = deploy(router, listening(), drain=0.05)
    assert (done.swap.left, done.still_running) == (2, ("10.0.0.1:80",))
    assert router.said[-1] == "2 connections left after 0.05 s on 10.0.0.1:80"


@pytest.mark.usefixtures("never_drained")
def test_strict_is_deployed_and_not_drained(router: Any, listening: Callable[[], str]) -> None:
    new = listening()
    an_app(router, "10.0.0.1:80\n")
    with pytest.raises(NotDrained, match=r"^deployed as generation 42, not drained: 10\.0\.0\.1:80$"):
        deploy(router, new, drain=0.05, strict=True)
    assert upstreams(router) == f"{new}\n"
    assert not router.plugins.of("endpoints-retired")


@pytest.mark.usefixtures("never_drained")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_wait_ends_the_wait_alone(router: Any, listening: Callable[[], str], number: int) -> None:
    new = listening()
    an_app(router, "10.0.0.1:80\n")
    before = signal.getsignal(number)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), number))
    timer.start()
    with pytest.raises(NotDrained, match=r"^deployed as generation 42, not drained: 10\.0\.0\.1:80$"):
        deploy(router, new, drain=20)
    timer.join()
    assert upstreams(router) == f"{new}\n"
    assert signal.getsignal(number) is before


@pytest.mark.usefixtures("never_drained")
def test_a_signal_that_the_controller_swallows_ends_the_wait(router: Any, listening: Callable[[], str]) -> None:
    an_app(router, "10.0.0.1:80\n")

    def taken() -> None:  # by a leader: what is taken is done
        with contextlib.suppress(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)

    router.before_change = taken
    with pytest.raises(NotDrained):
        deploy(router, listening(), drain=20)


def test_a_signal_before_the_change_ends_the_command(router: Any, listening: Callable[[], str]) -> None:
    an_app(router, "10.0.0.1:80\n")
    router.before_change = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        deploy(router, listening())
    assert ended.value.code == 143
    assert upstreams(router) == "10.0.0.1:80\n"


@pytest.mark.parametrize("options", [{"drain": -1}, {"drain": float("nan")}, {"check": "up"}, {"check_timeout": 0}])
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageProblem):
        Options(**options)


# scale


def a_runner(router: FakeRouter, *endpoints: str) -> None:
    router.plugins.hooks |= {"scale": lambda event: "".join(f"{e}\n" for e in endpoints), "stop": lambda event: ""}


def test_scale_routes_to_what_the_runner_answers_and_stops_the_rest(router: Any, listening: Callable[[], str]) -> None:
    kept, new = listening(), listening()
    an_app(router, f"{kept}\n10.0.0.1:80\n")
    a_runner(router, kept, new)
    done = scale(router, "web=2")
    assert router.plugins.of("scale")[0] == {
        "app": "blog", "action": "scale", "command": "as typed", "process": "web", "count": 2, "endpoints": [kept, "10.0.0.1:80"],
    }  # fmt: skip
    assert router.plugins.of("stop")[0]["endpoints"] == ["10.0.0.1:80"]
    assert [hook for hook, _ in router.plugins.told] == ["scale", "endpoints-retired", "stop"]
    assert (done.swap.retired, done.still_running) == (("10.0.0.1:80",), ())
    assert router.app("blog").counts == {"web": 2}


def test_what_could_not_be_stopped_is_told(router: Any, listening: Callable[[], str]) -> None:
    new = listening()
    an_app(router, "10.0.0.1:80\n10.0.0.2:80\n")
    a_runner(router, new)
    router.plugins.hooks["stop"] = lambda event: "10.0.0.2:80\n"
    assert scale(router, "web=1").still_running == ("10.0.0.2:80",)
    del router.plugins.hooks["stop"]
    a_runner2 = listening()
    router.plugins.hooks["scale"] = lambda event: a_runner2
    assert scale(router, "web=1").still_running == (new,)
    assert router.said[-1] == f"warning: no plugin stops instances (hook stop); still running: {new}"


def test_to_nothing_is_allowed(router: Any) -> None:
    an_app(router, "10.0.0.1:80\n", 'ports = ["http:9000"]\n')
    a_runner(router)
    assert scale(router, "web=0").swap.retired == ("10.0.0.1:80",)
    assert router.app("blog").endpoints == ()


def test_what_was_started_and_does_not_answer_is_stopped_again(router: Any, free_port: Callable[[], int]) -> None:
    an_app(router, "10.0.0.1:80\n")
    new = f"127.0.0.1:{free_port()}"
    a_runner(router, "10.0.0.1:80", new)
    with pytest.raises(ChecksFailed):
        scale(router, "web=2", check_timeout=0.1)
    assert router.plugins.of("stop")[0]["endpoints"] == [new]
    assert upstreams(router) == "10.0.0.1:80\n"
    assert router.app("blog").counts == {}


def test_a_signal_before_the_change_stops_what_was_started(router: Any, listening: Callable[[], str]) -> None:
    new = listening()
    an_app(router)
    a_runner(router, new)
    router.before_change = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SystemExit):
        scale(router, "web=1")
    assert router.plugins.of("stop")[0]["endpoints"] == [new]


@pytest.mark.usefixtures("never_drained")
def test_scaled_and_not_drained_stops_nothing(router: Any, listening: Callable[[], str]) -> None:
    new = listening()
    an_app(router, "10.0.0.1:80\n")
    a_runner(router, new)
    with pytest.raises(NotDrained, match=r"^scaled as generation 42, not drained"):
        scale(router, "web=1", drain=0, strict=True)
    assert not router.plugins.of("stop")


@pytest.mark.parametrize("answer", ["", "started 3 of them\n", "10.0.0.7:80\nnonsense\n"])
def test_an_answer_that_cannot_be_used_is_the_runners_fault(router: Any, answer: str) -> None:
    an_app(router, "10.0.0.1:80\n")
    router.plugins.hooks |= {"scale": lambda event: answer, "stop": lambda event: ""}
    with pytest.raises(PluginBroken, match="plugin runner answered"):
        scale(router, "web=2")
    assert upstreams(router) == "10.0.0.1:80\n"
    assert [e["endpoints"] for e in router.plugins.of("stop")] == ([["10.0.0.7:80"]] if "10.0.0.7" in answer else [])


def test_a_runner_that_fails_at_the_second_process_loses_the_first(router: Any, listening: Callable[[], str]) -> None:
    web = listening()
    an_app(router)

    def run(event: dict[str, Any]) -> str:
        if event["process"] == "api":
            raise Refused("no memory")
        return web

    router.plugins.hooks |= {"scale": run, "stop": lambda event: ""}
    with pytest.raises(Refused):
        scale(router, "web=1", "api=1")
    assert router.plugins.of("stop")[0]["endpoints"] == [web]


def test_without_a_runner_the_way_by_hand_is_named(router: Any) -> None:
    an_app(router)
    with pytest.raises(NotFound) as caught:
        scale(router, "web=3")
    assert "apps:upstreams:add blog" in caught.value.hint


@pytest.mark.parametrize("word", ["web", "web=", "web=-1", "web=x", "3", "Web=1", "3=1", "web=²"])
def test_a_count_that_is_none_is_refused(word: str) -> None:
    with pytest.raises(UsageProblem):
        engine.counts_of([word])


# retire and drain


def retire(router: Any, *addresses: str, **options: Any) -> Handover:
    return answered(lambda show: engine.retire(router, "blog", addresses, Options(**options), show))


def test_drain_sets_the_flag_and_keeps_the_line(router: Any) -> None:
    an_app(router, "10.0.0.1:80 weight=2\n10.0.0.2:80\n")
    done = answered(lambda show: engine.drain_endpoints(router, "blog", ["10.0.0.1:80"], Options(), show))
    assert upstreams(router) == "10.0.0.1:80 weight=2 drain\n10.0.0.2:80\n"
    assert (done.swap.retired, done.still_running) == ((), ())


def test_drain_of_what_is_not_there_is_not_found(router: Any) -> None:
    an_app(router, "10.0.0.1:80\n")
    with pytest.raises(NotFound):
        engine.drain_endpoints(router, "blog", ["10.0.0.2:80"], Options(), lambda _: None)


def test_retire_drains_then_removes_and_tells(router: Any) -> None:
    an_app(router, "10.0.0.1:80\napi 10.0.0.1:80\n10.0.0.2:80\n")
    done = retire(router, "10.0.0.1:80")
    assert router.steps == ["change upstreams drain", "change upstreams remove"]
    assert upstreams(router) == "10.0.0.2:80\n"
    assert (done.swap.retired, done.still_running, done.swap.generation) == (("10.0.0.1:80",), ("10.0.0.1:80",), 43)
    assert router.plugins.of("endpoints-retired")[0]["endpoints"] == ["10.0.0.1:80"]


def test_retire_tells_only_of_those_that_still_drain(router: Any) -> None:
    an_app(router, "10.0.0.1:80\n10.0.0.2:80\n")

    def let_in() -> None:
        if router.steps:  # the wait is over, and it was not seen to serve again
            (router.paths.app("blog") / "UPSTREAMS").write_text("10.0.0.1:80\n10.0.0.2:80 drain\n")

    router.before_change = let_in
    shown: list[Handover] = []
    with pytest.raises(NotDrained, match=r"^10\.0\.0\.1:80 does not drain any more: left on blog$"):
        engine.retire(router, "blog", ["10.0.0.1:80", "10.0.0.2:80"], Options(), shown.append)
    assert upstreams(router) == "10.0.0.1:80\n" and [each.still_running for each in shown] == [("10.0.0.2:80",)]
    assert [each["endpoints"] for each in router.plugins.of("endpoints-retired")] == [["10.0.0.2:80"]]


def test_a_removal_that_fails_is_not_drained_for_the_flag_is_set(router: Any) -> None:
    an_app(router, "10.0.0.1:80\n10.0.0.2:80\n")

    def full() -> None:
        if router.steps:
            raise Busy("the host lock is held by pid 7", hint="it is free when that has ended")

    router.before_change = full
    with pytest.raises(NotDrained, match=r"^draining as generation 42, their lines are not removed: the host lock is held") as caught:
        engine.retire(router, "blog", ["10.0.0.1:80"], Options(), lambda _: pytest.fail("nothing was retired"))
    assert caught.value.hint == "again: router apps:retire blog 10.0.0.1:80"
    assert upstreams(router) == "10.0.0.1:80 drain\n10.0.0.2:80\n" and not router.plugins.told


def test_drain_of_what_is_let_in_again_is_not_drained_whether_the_flag_was_new_or_not(router: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router.generations, "served_at", lambda places: ["blog"] if "10.0.0.1:80" in places else [])
    an_app(router, "10.0.0.1:80\n10.0.0.2:80\n")
    for _ in range(2):
        with pytest.raises(NotDrained, match=r"^10\.0\.0\.1:80 gets requests of blog again: not drained$"):
            engine.drain_endpoints(router, "blog", ["10.0.0.1:80", "10.0.0.2:80"], Options(), lambda _: None)


def held_at(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Old workers hold two connections to each of these for ever."""
    monkeypatch.setattr(drain, "held", lambda workers, retired, ports: {1: 2 * len(retired.intersection(addresses))})


def served_at(router: Any, monkeypatch: pytest.MonkeyPatch, places: str, apps: Sequence[str], *, from_look: int = 0) -> None:
    """Other apps have this address, from that look on."""
    looks: list[None] = []

    def found(asked: Sequence[str]) -> Sequence[str]:
        looks.append(None)
        return apps if places in asked and len(looks) > from_look else []

    monkeypatch.setattr(router.generations, "served_at", found)


def test_what_another_app_serves_is_neither_told_nor_stopped_nor_waited_for(
    router: Any, listening: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    new = listening()
    an_app(router, "10.0.0.1:80\n10.0.0.2:80\n")
    a_runner(router, new)
    held_at(monkeypatch, "10.0.0.1:80")
    served_at(router, monkeypatch, "10.0.0.1:80", ["shop"])
    done = scale(router, "web=1", drain=60, strict=True)
    assert (done.swap.retired, done.still_running, done.swap.left) == (("10.0.0.2:80",), (), 0)
    assert router.said[1:] == ["10.0.0.1:80 still serves shop: left running"], "no word of what is left there, which nobody stops"
    assert done.seconds < 10
    told = [event["endpoints"] for name in ("stop", "endpoints-retired") for event in router.plugins.of(name)]
    assert told == [["10.0.0.2:80"]] * 2
    an_app(router, "10.0.0.1:80\n", name="news")
    assert deploy(router, new, app="news", drain=60, strict=True).swap.retired == (), "nobody is to stop it, so that nothing is left"


def test_what_serves_again_behind_the_wait_is_not_counted(
    router: Any, listening: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    an_app(router, "10.0.0.1:80\n10.0.0.2:80\n10.0.0.3:80\n")
    held_at(monkeypatch, "10.0.0.1:80", "10.0.0.3:80")
    served_at(router, monkeypatch, "10.0.0.1:80", ["shop"], from_look=1)
    done = deploy(router, listening(), drain=0.05)
    assert (done.swap.retired, done.swap.left) == (("10.0.0.2:80", "10.0.0.3:80"), 2)
    assert router.said[-2:] == ["10.0.0.1:80 still serves shop: left running", "2 connections left after 0.05 s on 10.0.0.2:80 10.0.0.3:80"]


@pytest.mark.parametrize("is_ended", [False, True])
def test_the_rest_is_drained_where_only_what_serves_again_held_it_up(
    router: Any, listening: Callable[[], str], monkeypatch: pytest.MonkeyPatch, is_ended: bool
) -> None:
    an_app(router, "10.0.0.1:80\n10.0.0.2:80\n")
    held_at(monkeypatch, "10.0.0.1:80")
    served_at(router, monkeypatch, "10.0.0.1:80", ["shop"], from_look=1)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)) if is_ended else None
    if timer:
        timer.start()
    done = deploy(router, listening(), drain=20 if is_ended else 0.05, strict=True)
    assert (done.swap.retired, done.swap.left) == (("10.0.0.2:80",), 0), "what is drained is told, also strictly, also when a signal came"
    if timer:
        timer.join()


def test_a_signal_ends_the_wait_also_where_one_of_those_serves_again(
    router: Any, listening: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    an_app(router, "10.0.0.1:80\n10.0.0.2:80\n")
    held_at(monkeypatch, "10.0.0.2:80")
    served_at(router, monkeypatch, "10.0.0.1:80", ["shop"], from_look=1)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(NotDrained, match=r"^deployed as generation 42, not drained: 10\.0\.0\.2:80$"):
        deploy(router, listening(), drain=20)
    timer.join()


@pytest.mark.parametrize("begin", ["deploy", "scale", "retire"])
def test_what_another_app_gets_behind_the_wait_is_not_handed_out(
    router: Any, listening: Callable[[], str], monkeypatch: pytest.MonkeyPatch, begin: str
) -> None:
    """While post-deploy hooks ran, or while the removal waited for the host lock."""
    new = listening()
    an_app(router, "10.0.0.1:80\n10.0.0.2:80\n")
    a_runner(router, new)
    served_at(router, monkeypatch, "10.0.0.1:80", ["shop"], from_look=2)
    done = {
        "deploy": lambda: deploy(router, new),
        "scale": lambda: scale(router, "web=1"),
        "retire": lambda: retire(router, "10.0.0.1:80", "10.0.0.2:80"),
    }[begin]()
    assert done.swap.retired == ("10.0.0.2:80",) and set(done.still_running) <= {"10.0.0.2:80"}
    assert router.said[-1] == "10.0.0.1:80 still serves shop: left running"
    assert [event["endpoints"] for name in ("stop", "endpoints-retired") for event in router.plugins.of(name)] == [["10.0.0.2:80"]] * (
        2 if begin == "scale" else 1
    )


def test_a_retired_line_goes_and_what_another_app_serves_goes_on(router: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    an_app(router, "10.0.0.1:80\n10.0.0.2:80\n")
    monkeypatch.setattr(router.generations, "served_at", lambda places: ["news", "shop"] if "10.0.0.1:80" in places else [])
    assert retire(router, "10.0.0.1:80", "10.0.0.2:80").still_running == ("10.0.0.2:80",)
    assert upstreams(router) == "" and router.said == ["10.0.0.1:80 still serves news and shop: left running"]


def test_retiring_what_is_not_there_is_quiet(router: Any) -> None:
    an_app(router, "10.0.0.1:80\n")
    assert retire(router, "10.0.0.2:80").swap.kind == "nothing"
    assert router.said == ["10.0.0.2:80 is not on blog"]
    assert upstreams(router) == "10.0.0.1:80\n"


@pytest.mark.usefixtures("never_drained")
def test_retiring_what_a_deploy_did_not_drain_waits_for_it(router: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    an_app(router, "10.0.0.1:80\n")
    with pytest.raises(NotDrained, match=r"not drained: 10\.0\.0\.2:80$"):
        retire(router, "10.0.0.2:80", drain=0, strict=True)
    monkeypatch.setattr(drain, "held", lambda *_: {})
    assert retire(router, "10.0.0.2:80", "10.0.0.1:80").swap.retired == ("10.0.0.1:80",)


@pytest.mark.usefixtures("never_drained")
def test_not_drained_the_lines_stay_and_a_second_call_goes_on(router: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    an_app(router, "10.0.0.1:80\n")
    with pytest.raises(NotDrained, match=r"^draining as generation 42, not drained"):
        retire(router, "10.0.0.1:80", drain=0, strict=True)
    assert upstreams(router) == "10.0.0.1:80 drain\n"
    monkeypatch.setattr(drain, "held", lambda *_: {})
    assert retire(router, "10.0.0.1:80").swap.retired == ("10.0.0.1:80",)
    assert upstreams(router) == ""


# what is told of nothing


def test_a_dry_run_writes_nothing_and_retires_nothing(router: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    an_app(router, "10.0.0.1:80\n")
    router.request.dry_run = True
    monkeypatch.setattr(router, "change", lambda events, **_: [FakeOutcome(events[0], 41, "endpoints", {})])
    assert deploy(router, "127.0.0.1:1").still_running == ()
    assert retire(router, "10.0.0.1:80").still_running == ()
    a_runner(router)
    engine.scale(router, "blog", {"web": 1}, Options(), lambda _: None)
    assert not router.plugins.told
    assert not (router.paths.run / "deploy").exists()
