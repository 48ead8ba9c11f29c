"""Health: what settings mean, when an endpoint is taken out and in, and what is left when all fail."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nginx_router import balancing, health
from nginx_router.controller import Router
from nginx_router.directives import computed
from nginx_router.errors import UsageProblem
from nginx_router.events import Event, reduce
from nginx_router.files import FileLock
from nginx_router.health import CALM, MOST_RELAPSES, Health, Settings
from nginx_router.model import App, Facts, parse_app
from nginx_router.names import Address, AppName, endpoint_line
from nginx_router.prober import MOST_OF_AN_APP, Prober, Verdict
from nginx_router.probing import MOST_OPEN, Answer, Asker, Found, Target, ask_once
from nginx_router.settings import Paths
from nginx_router.tomltext import set_key

SETTINGS = Settings(interval=1.0)


# the state of one endpoint


def after(answers: str, *, health: Health | None = None, every: float = 1.0, settings: Settings = SETTINGS) -> Health:
    """What `answers` (`+` good, `-` bad), one each `every` seconds, come to."""
    found = health or Health()
    for number, answer in enumerate(answers):
        found = found.after(answer == "+", number * every, settings)
    return found


@pytest.mark.parametrize(
    ("answers", "is_up"),
    [
        ("", True),
        ("--", True),
        ("---", False),
        ("--+--", True),
        ("---+", False),
        ("---++", True),
        ("---+-+-+", False),
        ("---++---", False),
        ("---++---++", False),  # after a relapse two are not enough
        ("---++---++++", True),
        ("---++---++++---++++++++", True),
    ],
)
def test_so_many_in_a_row_take_an_endpoint_out_and_in(answers: str, is_up: bool) -> None:
    assert after(answers).is_up is is_up


def test_one_that_fell_long_ago_is_taken_in_as_soon_as_the_first_time() -> None:
    came_back = after("---++")
    for later, relapses in ((0, 1), (CALM - 1, 1), (CALM, 0)):
        fell = came_back
        for _ in range(3):
            fell = fell.after(False, 4 + later, SETTINGS)
        assert (fell.is_up, fell.relapses) == (False, relapses)


def test_relapses_are_forgotten_one_by_one() -> None:
    bad = Health(True, 0, MOST_RELAPSES, 0.0)
    for calm in range(1, MOST_RELAPSES + 2):
        fell = bad
        for _ in range(3):
            fell = fell.after(False, CALM * calm, SETTINGS)
        assert fell.relapses == max(0, MOST_RELAPSES - calm)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_an_endpoint_answers_its_changes_are_few_and_each_has_its_reason(seed: int) -> None:
    chance = random.Random(seed)
    settings = Settings(interval=1.0, rise=chance.randint(1, 5), fall=chance.randint(1, 5))
    good = chance.random()
    found, history, changes = Health(), [], []
    for now in range(2000):
        passed = chance.random() < good if chance.random() < 0.7 or not history else history[-1]
        needed, was = found.needed(settings), found
        history.append(passed)
        found = found.after(passed, float(now), settings)
        assert 0 <= found.relapses <= MOST_RELAPSES
        assert found.needed(settings) <= max(settings.fall, settings.rise * 2**MOST_RELAPSES), "it is bounded: who is well comes back"
        if found.is_up != was.is_up:
            changes.append(now)
            assert history[-needed:] == [not was.is_up] * needed, "only answers in a row change it"
        else:
            assert found.streak < found.needed(settings)
    # within any stretch of 300 s: the doubling leaves room for a few changes, however often its answers change
    for first in changes:
        assert sum(first <= change < first + CALM for change in changes) <= 2 * (MOST_RELAPSES + 2) + 2 * CALM / (
            settings.rise * 2**MOST_RELAPSES + settings.fall
        )


def test_an_endpoint_that_is_well_from_now_on_always_comes_back() -> None:
    found = after("---++" + "---++++" + "---" + "+" * 8 + "-" * 40)
    assert not found.is_up
    assert after("+" * found.needed(SETTINGS), health=found).is_up


# settings


@pytest.fixture
def keys(router_root: Path) -> Mapping[str, Any]:
    tables = Router(Paths(router_root)).tables()
    assert isinstance(tables, Mapping)
    return tables


def settings_of(keys: Mapping[str, Any], toml: str, process: str = "web", **everywhere: object) -> Settings | None:
    app = parse_app("blog", {"DOMAINS": "*.blog.io\nblog.io\n", "UPSTREAMS": "a:1\n", "app.toml": toml}, keys)
    return health.settings_of(keys, app, process, {"checks": everywhere} if everywhere else {})


def test_what_is_set_counts_from_the_process_to_the_host(keys: Mapping[str, Any]) -> None:
    toml = '[checks]\npath = "/app"\nfall = 4\n[checks.api]\npath = "/api"\n'
    web, api = settings_of(keys, toml, fall=9, rise=7), settings_of(keys, toml, "api", fall=9, rise=7)
    assert web and api
    assert (web.path, web.fall, web.rise, web.interval, web.host) == ("/app", 4, 7, 10.0, "blog.io")
    assert (api.path, api.fall, api.rise) == ("/api", 4, 7)


@pytest.mark.parametrize(
    ("toml", "interval"),
    [
        ("", None),
        ('[checks]\npath = "/"\n', 10.0),
        ("[checks]\ninterval = 0.2\n", 0.2),
        ('[checks]\ninterval = "500ms"\n', 0.5),
        ('[checks]\ninterval = "1m"\npath = "/"\n', 60.0),
        ('[checks]\npath = "/"\ninterval = "off"\n', None),
        ('[checks]\npath = "/"\n[checks.web]\npath = "off"\n', None),
        ("[checks]\nrise = 5\n", None),
        ('[checks]\npath = "/"\n[checks.web]\ninterval = "off"\n', None),
    ],
)
def test_a_path_or_an_interval_has_the_watch_ask(keys: Mapping[str, Any], toml: str, interval: float | None) -> None:
    found = settings_of(keys, toml)
    assert found and found.interval == interval


def test_a_plugin_that_is_switched_off_checks_nothing(keys: Mapping[str, Any]) -> None:
    assert settings_of({"checks": {}}, '[checks]\npath = "/"\n') is None


def test_a_wrong_value_for_the_host_is_named_with_its_file(keys: Mapping[str, Any]) -> None:
    with pytest.raises(UsageProblem, match=r"router\.toml: \[checks\] rise: '0' is not a number from 1 to 100"):
        settings_of(keys, "", rise=0)
    with pytest.raises(UsageProblem, match=r"router\.toml: \[checks\] plugin checks has no key 'api'"):
        settings_of(keys, "", api={"path": "/"})


@pytest.mark.parametrize("value", ["health", "/a b", "/a\r\nX: y", "/ä", "/a#b", ""])
def test_a_path_that_is_none_is_refused(keys: Mapping[str, Any], value: str) -> None:
    with pytest.raises(UsageProblem, match="is not a path such as /health"):
        keys["checks"]["path"].parse(value)


@pytest.mark.parametrize(("given", "kept"), [("200", "200"), ("200-299, 304", "200-299 304"), ("204 204", "204")])
def test_statuses_have_one_spelling(keys: Mapping[str, Any], given: str, kept: str) -> None:
    assert keys["checks"]["status"].parse(given) == kept


@pytest.mark.parametrize("value", ["", "2xx", "100", "299-200", "600", "200-", "99"])
def test_statuses_that_are_none_are_refused(keys: Mapping[str, Any], value: str) -> None:
    with pytest.raises(UsageProblem, match="is not HTTP statuses"):
        keys["checks"]["status"].parse(value)


@pytest.mark.parametrize("value", ["a b", "*.a.io", "a.io:80", "a\r\nb"])
def test_a_host_that_is_none_is_refused(keys: Mapping[str, Any], value: str) -> None:
    with pytest.raises(UsageProblem, match="is not a host name, or auto"):
        keys["checks"]["host"].parse(value)


# what is written


def test_a_key_of_a_process_is_set_and_unset_in_a_table_of_its_own() -> None:
    text = '# mine\n[checks]\npath = "/a"  # why\n\n[nginx]\nkeepalive = "1"\n'
    one = set_key(text, "checks", "path", "/b", inner="api")
    assert one.startswith('# mine\n[checks]\npath = "/a"  # why\n') and '[checks.api]\npath = "/b"\n' in one and "[nginx]" in one
    assert set_key(one, "checks", "path", None, inner="api").strip() == text.strip()
    alone = set_key("", "checks", "path", "/b", inner="api")
    assert alone == '[checks.api]\npath = "/b"\n'
    assert set_key(alone, "checks", "path", None, inner="api") == ""
    assert set_key(alone, "checks", "path", None) == alone
    inline = set_key('checks = {path = "/a"}\n', "checks", "path", "/b", inner="api")
    assert parse_app("blog", {"app.toml": inline}, ["checks"]).plugins["checks"] == {"path": "/a", "api": {"path": "/b"}}


def test_health_changes_no_file() -> None:
    class World:
        def __getattr__(self, name: str) -> object:
            raise AssertionError("the files are not looked at")

    edit = reduce(Event("health", "blog", {"endpoints": {"10.0.0.1:80": "why"}}), World())  # type: ignore[arg-type]  # nothing of it is asked
    assert edit.unhealthy == {"blog": {"10.0.0.1:80": "why"}} and not edit.apps


# what nginx is told


def an_app(*lines: str) -> App:
    return App(AppName("blog"), endpoints=tuple(map(endpoint_line, lines)))


def rotation(app: App, *failing: str, process: str = "web") -> dict[str, str]:
    """Who gets requests: address -> flags."""
    facts = Facts(unhealthy=dict.fromkeys(failing, "HTTP 503"))
    (found,) = balancing.blocks(app, process, facts, computed({}, {}))
    return {each["address"]: " ".join(each["flags"].split()) for each in found["servers"]}


def test_one_that_fails_is_down_and_the_others_are_not() -> None:
    found = rotation(an_app("10.0.0.1:80", "10.0.0.2:80"), "10.0.0.1:80")
    assert "down" in found["10.0.0.1:80"] and "down" not in found["10.0.0.2:80"]


def test_if_none_were_left_all_stay() -> None:
    app = an_app("10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80 down", "10.0.0.4:80 drain")
    found = rotation(app, "10.0.0.1:80", "10.0.0.2:80")
    assert [address for address, flags in found.items() if "down" not in flags] == ["10.0.0.1:80", "10.0.0.2:80"]


def test_a_backup_is_enough_to_be_left() -> None:
    found = rotation(an_app("10.0.0.1:80", "10.0.0.2:80 backup"), "10.0.0.1:80")
    assert "down" in found["10.0.0.1:80"] and "down" not in found["10.0.0.2:80"]


def test_the_same_address_of_another_process_is_another_endpoint() -> None:
    app = an_app("10.0.0.1:80", "10.0.0.2:80", "api 10.0.0.1:80", "api 10.0.0.2:80")
    assert "down" in rotation(app, "api 10.0.0.1:80", process="api")["10.0.0.1:80"]
    assert "down" not in rotation(app, "api 10.0.0.1:80")["10.0.0.1:80"]


def test_what_is_known_of_an_endpoint_goes_with_it(keys: Mapping[str, Any]) -> None:
    facts = Facts(unhealthy={"10.0.0.1:80": "why", "10.0.0.2:80": "why", "api 10.0.0.3:80": "why", "10.0.0.9:80": "why"})
    texts = {"UPSTREAMS": "10.0.0.1:80\n10.0.0.2:80 drain\napi 10.0.0.3:80\n", "app.toml": "[checks.web]\ninterval = 1\n"}
    app = parse_app("blog", texts, keys)
    assert health.still_out(facts, app, keys, {}) == {"10.0.0.1:80": "why"}, "there, asked for, and checked"
    assert health.still_out(facts, app, {}, {}) == {}, "the plugin is switched off"
    assert Facts.from_json(facts.as_json()) == facts
    assert "unhealthy" not in Facts().as_json(), "what an app is made of is what it was, without checks"


def test_every_other_change_keeps_what_is_known(run: Callable[..., Any], router_root: Path) -> None:
    def states(app: str) -> list[str]:
        return [each["state"] for each in run("apps:report", app, "--format", "json").json()["endpoints"]]

    run("apps:create", "blog.io")
    run("upstreams:add", "blog.io", "10.0.0.1:80", "10.0.0.2:80")
    run("checks:set", "blog.io", "path", "/health")
    files = {path: path.read_bytes() for path in (router_root / "apps").rglob("*") if path.is_file()}
    router = Router(Paths(router_root))
    (outcome,) = router.change([Event("health", "blog.io", {"endpoints": {"10.0.0.1:80": "HTTP 503"}})], independent=True)
    assert (outcome.error, outcome.kind) == (None, "endpoints")
    assert {path: path.read_bytes() for path in (router_root / "apps").rglob("*") if path.is_file()} == files
    assert states("blog.io") == ["down", "active"]
    assert run("upstreams:report", "blog.io", "--format", "json").json()["upstreams"]["web"][0]["problem"] == "HTTP 503"
    assert run("checks:report", "blog.io", "--format", "json").json()["endpoints"][0]["problem"] == "HTTP 503"
    for command in (
        ("nginx:set", "blog.io", "keepalive-timeout", "9s"),
        ("upstreams:add", "blog.io", "10.0.0.3:80"),
        ("nginx:set", "--global", "keepalive-timeout", "8s"),
        ("generations:rollback", "3", "blog.io"),
        ("reconcile", "--all"),
    ):
        assert run(*command).code == 0
        assert states("blog.io")[:2] == ["down", "active"], command
    assert run("apps:rename", "blog.io", "shop.io").code == 0
    assert states("shop.io")[:2] == ["down", "active"]
    (router_root / "apps/shop.io/DOMAINS").write_text("a..b\n")  # an edit that cannot be taken up is in nobody's way
    (outcome,) = router.change([Event("health", "shop.io", {"endpoints": {}})], independent=True)
    assert (outcome.error, states("shop.io")[:2]) == (None, ["active", "active"])
    (outcome,) = router.change([Event("health", "blog.io", {"endpoints": {}})], independent=True)
    assert outcome.error is not None and outcome.error.exit_code == 4, "an app that is gone"


# asking


class Server:
    """Answers each connection with `answer`; None: never."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer = answer
        self.asked: list[bytes] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.held: list[socket.socket] = []
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    @property
    def address(self) -> Address:
        return Address(f"127.0.0.1:{self.listener.getsockname()[1]}")

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.held.append(connection)
                if self.answer is not None:
                    connection.settimeout(5)
                    self.asked.append(connection.recv(4096))
                    with contextlib.suppress(OSError):
                        connection.sendall(self.answer)
                    connection.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join(10)
        for one in (self.listener, *self.held):
            one.close()


@pytest.fixture
def serve() -> Iterator[Callable[[bytes | None], Server]]:
    with contextlib.ExitStack() as opened:

        def make(answer: bytes | None) -> Server:
            server = Server(answer)
            opened.callback(server.close)
            return server

        yield make


def target(address: Address, name: str = "one", *, app: str = "blog", **more: Any) -> Target:
    settings = replace(Settings(path="/health", interval=0.1, timeout=0.5, fall=2, host="blog.io"), **more)
    return Target((app, name), address, (address,), settings)


def ask(address: Address, **more: Any) -> Found:
    return ask_once([target(address, **more)])["blog", "one"]


@pytest.mark.parametrize(
    ("answer", "passed", "text"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", True, "answers 200"),
        (b"HTTP/1.0 302 Found\r\nLocation: /\r\n\r\n", True, "answers 302"),
        (b"HTTP/1.1 204\n\n", True, "answers 204"),
        (b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", True, "answers 200"),
        (b"HTTP/1.1 503 No\r\nContent-Length: 5\r\n\r\nno\ndb", False, "HTTP 503: 'no db'"),
        (b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nno \r\n2\r\ndb\r\n0\r\n\r\n", False, "HTTP 503: 'no db'"),
        (b"HTTP/1.1 404 \r\n\r\n", False, "HTTP 404"),
        (b"HTTP/1.1 500 X\r\n\r\n" + b"\x1b[31m" * 9, False, "HTTP 500: " + repr("\x1b[31m" * 9)),
        (b"SSH-2.0-OpenSSH\r\n", False, "no HTTP answer ('SSH-2.0-OpenSSH')"),
        (b"HTTP/1.1 20 OK\r\n\r\n", False, "no HTTP answer ('HTTP/1.1 20 OK')"),
        (b"", False, "the connection was closed without an answer"),
    ],
)
def test_an_answer_is_understood_however_it_comes(serve: Callable[..., Server], answer: bytes, passed: bool, text: str) -> None:
    server = serve(answer)
    found = ask(server.address)
    assert (found.passed, found.text) == (passed, text)
    assert server.asked[0].startswith(b"GET /health HTTP/1.1\r\nHost: blog.io\r\n") and server.asked[0].endswith(b"\r\n\r\n")
    for size in (1, 7):
        piecewise = Answer(((200, 399),))
        for at in range(0, len(answer), size):
            if piecewise.feed(answer[at : at + size]):
                break
        else:
            piecewise.feed(b"")
        assert piecewise.is_good == passed and (piecewise.is_good or piecewise.text.startswith(text[:8]))


def test_statuses_are_those_that_were_set(serve: Callable[..., Server]) -> None:
    server = serve(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")
    assert ask(server.address, statuses=((200, 200), (401, 403))).text == "answers 401"
    assert not ask(server.address, statuses=((200, 200),)).passed


def test_without_a_path_a_connection_is_enough(serve: Callable[..., Server], free_port: Callable[[], int]) -> None:
    assert ask(serve(None).address, path=None).text == "accepts connections"
    assert ask(Address(f"127.0.0.1:{free_port()}"), path=None).text == "Connection refused"


def test_what_an_endpoint_does_not_answer_in_time_it_does_not_answer(serve: Callable[..., Server]) -> None:
    began = time.monotonic()
    assert ask(serve(None).address, timeout=0.2).text == "Connection timed out: no answer within 0.2 s"
    assert time.monotonic() - began < 5


def test_one_of_the_addresses_of_a_name_is_enough(serve: Callable[..., Server], free_port: Callable[[], int]) -> None:
    server, dead = serve(b"HTTP/1.1 200 OK\r\n\r\n"), Address(f"127.0.0.9:{free_port()}")
    named = replace(target(Address("blog.internal:80")), places=(dead, server.address))
    assert ask_once([named])["blog", "one"].passed
    assert ask_once([replace(named, places=())])["blog", "one"].text == "the host name does not resolve"


def test_a_unix_socket_is_asked_too(isolated: Path) -> None:
    found = ask(Address(f"unix:{isolated}/nobody.sock"))
    assert found.text == "No such file or directory"


def test_a_thousand_silent_ones_hold_up_nobody(serve: Callable[..., Server]) -> None:
    good, silent = serve(b"HTTP/1.1 200 OK\r\n\r\n"), serve(None)
    targets = [target(silent.address, f"silent{n}", timeout=0.3) for n in range(300)] + [target(good.address, "good")]
    found = ask_once(targets)
    assert len(found) == 301 and found["blog", "good"].passed and not found["blog", "silent299"].passed


def test_what_this_host_lacks_is_held_against_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> socket.socket:
        raise OSError(24, "Too many open files")

    told: list[Found] = []
    asker = Asker(lambda target, found: told.append(found))
    monkeypatch.setattr("nginx_router.probing.socket.socket", none)
    asker.begin(target(Address("127.0.0.1:9")))
    monkeypatch.undo()
    asker.close()
    assert told[0].is_ours and told[0].text == "Too many open files"


# again and again


def until(said: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not said():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def prober() -> Iterator[tuple[Prober, list[Verdict]]]:
    told: list[Verdict] = []
    one = Prober(told.append, chance=lambda: 0.1)
    yield one, told
    one.stop()


def test_only_what_changes_is_told(serve: Callable[..., Server], prober: tuple[Prober, list[Verdict]]) -> None:
    one, told = prober
    server = serve(b"HTTP/1.1 200 OK\r\n\r\n")
    one.watch("blog", {"one": target(server.address)}, ())
    until(lambda: len(server.asked) > 3)
    assert told == []
    server.answer = b"HTTP/1.1 503 No\r\n\r\nno"
    until(lambda: told)
    server.answer = b"HTTP/1.1 200 OK\r\n\r\n"
    until(lambda: len(told) > 1)
    assert told == [Verdict(("blog", "one"), "HTTP 503: 'no'"), Verdict(("blog", "one"), None)]
    one.watch("blog", {}, ())
    asked = len(server.asked)
    time.sleep(0.4)  # that nobody asks can only be waited for
    assert len(server.asked) <= asked + 1
    assert one.is_up(("blog", "one"))


def test_one_that_was_out_has_to_rise_first(serve: Callable[..., Server], prober: tuple[Prober, list[Verdict]]) -> None:
    one, told = prober
    server = serve(b"HTTP/1.1 200 OK\r\n\r\n")
    one.watch("blog", {"one": target(server.address)}, ["one"])
    assert not one.is_up(("blog", "one"))
    until(lambda: told)
    assert told == [Verdict(("blog", "one"), None)] and len(server.asked) >= 2


def test_the_silent_instances_of_one_app_hold_up_no_other(serve: Callable[..., Server], prober: tuple[Prober, list[Verdict]]) -> None:
    one, _ = prober
    good, silent = serve(b"HTTP/1.1 200 OK\r\n\r\n"), serve(None)
    one.watch("shop", {str(n): target(silent.address, str(n), app="shop", timeout=60.0) for n in range(MOST_OPEN + 50)}, ())
    until(lambda: len(silent.held) >= MOST_OF_AN_APP)
    one.watch("blog", {"one": target(good.address)}, ())
    until(lambda: len(good.asked) >= 3)
    assert len(silent.held) <= MOST_OF_AN_APP + 1
    asked = len(good.asked)
    one.watch("shop", {"one": target(good.address, app="shop")}, ())
    until(lambda: len(good.asked) >= asked + 10)
    assert one.is_up(("shop", "one")), "those that are gone hold up nobody either"


def test_all_of_an_app_have_their_turn(serve: Callable[..., Server], prober: tuple[Prober, list[Verdict]]) -> None:
    one, told = prober
    good = serve(b"HTTP/1.1 503 No\r\n\r\n")
    names = [str(n) for n in range(3 * MOST_OF_AN_APP)]
    one.watch("blog", {name: target(good.address, name) for name in names}, ())
    until(lambda: len(told) >= len(names), 30)
    assert {verdict.key[1] for verdict in told} == {*names}


def test_without_anything_to_ask_there_is_no_thread(prober: tuple[Prober, list[Verdict]]) -> None:
    before = threading.active_count()
    prober[0].watch("blog", {}, ())
    assert threading.active_count() == before


def test_one_that_somebody_else_took_in_is_asked_at_once_and_has_to_fall(
    serve: Callable[..., Server], prober: tuple[Prober, list[Verdict]]
) -> None:
    one, told = prober
    server = serve(b"HTTP/1.1 503 No\r\n\r\nno")
    one.watch("blog", {"one": target(server.address, interval=30.0)}, ["one"])
    one.take_in("blog", ["one", "another"])
    assert one.is_up(("blog", "one"))
    until(lambda: server.asked, 2)
    assert one.is_up(("blog", "one")) and told == [], "once is not often enough"
    one.watch("blog", {"one": target(server.address, interval=0.1)}, ())
    until(lambda: told)
    assert told == [Verdict(("blog", "one"), "HTTP 503: 'no'")]


def test_checks_of_many_are_spread_over_the_interval(serve: Callable[..., Server]) -> None:
    server = serve(b"HTTP/1.1 200 OK\r\n\r\n")
    chance = random.Random(1)
    one = Prober(lambda verdict: None, chance=chance.random)
    began = time.monotonic()
    one.watch("blog", {str(n): target(server.address, str(n), interval=1.0) for n in range(20)}, ())
    try:
        until(lambda: len(server.asked) >= 3)
        assert len(server.asked) < 20 or time.monotonic() - began > 0.5, "they do not begin all at once"
        until(lambda: len(server.asked) >= 20)
    finally:
        one.stop()


def test_whether_a_lock_is_held_is_seen_without_taking_it(isolated: Path) -> None:
    path = isolated / "lock"
    assert not FileLock(path).is_held()
    lock = FileLock(path)
    assert lock.try_acquire() and FileLock(path).is_held()
    lock.release()
    assert not FileLock(path).is_held()


# the commands


def test_settings_are_set_and_unset_by_words(run: Callable[..., Any], router_root: Path) -> None:
    assert run("apps:create", "blog").code == 0
    file = router_root / "apps/blog/app.toml"
    assert run("checks:set", "blog", "path", "/health").code == 0
    assert run("checks:set", "blog", "interval", "500ms").code == 0
    assert run("checks:set", "blog", "--process", "api", "status", "204", "301").code == 0
    text = file.read_text()
    assert text == '[checks]\npath = "/health"\ninterval = "0.5s"\n\n[checks.api]\nstatus = "204 301"\n'
    assert run("checks:set", "blog", "interval", "0.5").talk[0] == "interval is 0.5s already"
    for wrong in (
        ("blog", "path", "health"),
        ("blog", "rise", "0"),
        ("blog", "interval", "0.01"),
        ("blog", "pth", "/"),
        ("blog", "--process", "80", "rise", "1"),
        ("blog", "--process", "path", "rise", "1"),
        ("--global", "--process", "api", "rise", "1"),
        ("blog",),
    ):
        assert run("checks:set", *wrong).code == 2, wrong
    assert run("checks:set", "blgo", "path", "/").code == 3
    assert file.read_text() == text and not (router_root / "router.toml").exists(), "nothing changed"
    assert run("checks:set", "--global", "fall", "5").code == 0
    report = run("checks:report", "blog", "--format", "json").json()
    assert (report["path"], report["computed-path"], report["fall"], report["global-fall"], report["computed-fall"]) == (
        "/health",
        "/health",
        None,
        "5",
        "5",
    )
    assert report["computed-interval"] == "0.5s"
    assert report["processes"]["api"] | {"status": "204 301", "path": "/health", "fall": "5"} == report["processes"]["api"]
    assert run("checks:report", "--global", "--computed-fall").lines == ["5"]
    for words in (("blog", "path"), ("blog", "interval"), ("blog", "--process", "api", "status"), ("--global", "fall")):
        assert run("checks:set", *words).code == 0
    assert file.read_text().strip() == "" and (router_root / "router.toml").read_text().strip() == ""
    assert run("checks:report", "blog", "--computed-interval").lines == ["off"], "without a path nobody asks all the time"
    assert run("checks:set", "--global", "path", "/").code == 0
    assert run("checks:report", "blog", "--computed-interval").lines == ["10s"]
    assert run("checks:set", "blog", "path").talk[0] == "path is unset already"


def test_a_look_at_once_names_who_fails(run: Callable[..., Any], serve: Callable[..., Server], free_port: Callable[[], int]) -> None:
    good, dead = serve(b"HTTP/1.1 200 OK\r\n\r\n").address, f"127.0.0.1:{free_port()}"
    run("apps:create", "blog")
    run("upstreams:add", "blog", str(good), f"api={dead}")
    run("checks:set", "blog", "path", "/health")
    assert run("checks:run", "blog", "--process", "web").code == 0
    got = run("checks:run", "blog")
    assert got.code == 12 and got.lines[1] == f"api {dead}: Connection refused"
    assert got.talk[0] == f"router: app blog: endpoint {dead} failed its check (GET /health): Connection refused"
    assert [(each["address"], each["ok"]) for each in run("checks:run", "blog", "--format", "json").json()] == [
        (str(good), True),
        (dead, False),
    ]
    assert run("checks:run", "blog", "--process", "ap").code == 3


def test_what_is_told_of_those_that_fail_is_what_becomes_of_them() -> None:
    app = parse_app("blog", {"UPSTREAMS": "10.0.0.3:80\n10.0.0.4:80\napi 10.0.0.5:80 drain\n"})
    three, four = "10.0.0.3:80", "10.0.0.4:80"
    none, one, other = Facts(), Facts(unhealthy={three: "why"}), Facts(unhealthy={four: "why"})
    both = Facts(unhealthy={three: "why", four: "why"})
    all_the_same = "why; it gets requests all the same: no other endpoint of web is up"
    everybody = "all of web fail, and get requests all the same"
    assert health.moves(app, none, one) == [f"{three} is out: why"]
    assert health.moves(app, one, none) == [f"{three} is in again"]
    assert health.moves(app, none, both) == [f"{three} fails: {all_the_same}", f"{four} fails: {all_the_same}", everybody], "nobody is out"
    assert health.moves(app, one, both) == [f"{four} fails: {all_the_same}", everybody]
    assert health.moves(app, both, one) == [f"{three} is out: why", f"{four} is well again"], "it was never out"
    assert health.moves(app, both, none) == [f"{three} is well again", f"{four} is well again"]
    assert health.moves(app, one, other) == [f"{three} is in again", f"{four} is out: why"]
    assert health.moves(app, both, both) == []
