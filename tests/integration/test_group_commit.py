"""Group commit under fire: many commands that wait, some of them bad, and leaders that are killed; every answer is true."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from nginx_router.faults import STEPS

from .callers import callers, together
from .conftest import NGINX, until

if TYPE_CHECKING:
    from .conftest import Live

#: An own template whose upstream another app may have chosen too.
TEMPLATE = """upstream backend {{ server 127.0.0.1:1; }}
server {{
    listen 127.0.0.1:{port};
    server_name {{{{ domains | join(" ") }}}};
    location / {{ proxy_pass http://backend; }}
}}
"""


class Reloads:
    """How often nginx was told to read its configuration anew, whatever came of it."""

    def __init__(self, live: Live) -> None:
        self._log = live.paths.root.parent / "signals"
        self._log.touch()
        binary = live.paths.root.parent / "nginx-that-counts"
        binary.write_text(f'#!/bin/sh\ncase "$*" in *"-s reload"*) echo reload >>{self._log};; esac\nexec {NGINX} "$@"\n')
        binary.chmod(0o755)
        live.done("proxy:set", "--global", "nginx-binary", binary)
        self._before = self._lines()

    def begin(self) -> None:
        """Count from here."""
        self._before = self._lines()

    @property
    def number(self) -> int:
        return self._lines() - self._before

    def _lines(self) -> int:
        return len(self._log.read_text().splitlines())


@pytest.fixture
def apps(live: Live) -> Live:
    """Twenty apps without endpoints: each domain of them answers 502, an unknown name nothing."""
    for number in range(20):
        live.app(f"app{number:02}", [f"app{number:02}.test"])
    live.app("owner", ["owner.test"], **{"nginx.conf.j2": TEMPLATE.format(port=live.port)})
    live.done("reconcile")
    return live


@pytest.fixture
def taken_ports() -> Iterator[tuple[int, int]]:
    """Two ports that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        yield one.getsockname()[1], two.getsockname()[1]


def is_served(live: Live, domain: str) -> bool:
    return live.get(domain).status == 502


#: A bad command, the exit code that it is to end with, and words of its reason.
Bad = dict[tuple[str, ...], tuple[int, str]]


def bad_commands(live: Live, ports: tuple[int, int]) -> Bad:
    """Ten bad commands, each bad in a way that only shows behind the queue: to the wrapper, to the proof, or to the order."""
    for number, text in ((10, "gzip perhaps;\n"), (11, "no_such_directive;\n")):
        live.snippet(f"app{number}", text)
    for name in ("app14", "app15"):
        live.write(f"apps/{name}/nginx.conf.j2", TEMPLATE.format(port=live.port))
    return {
        ("domains:add", "app10", "bad10.test"): (8, 'invalid value "perhaps"'),
        ("ports:add", "app12", "http", f"http:{ports[0]}"): (9, f"bind() to 127.0.0.1:{ports[0]} failed"),
        ("domains:add", "app14", "bad14.test"): (9, 'duplicate upstream "backend"'),
        ("domains:add", "app16", "rival.test"): (4, "app app17"),
        ("domains:add", "app18", "bad18.test"): (3, "app18"),
        ("apps:nginx:set", "app11", "client-max-body-size", "2m"): (8, 'unknown directive "no_such_directive"'),
        ("ports:add", "app13", "http", f"http:{ports[1]}"): (9, f"bind() to 127.0.0.1:{ports[1]} failed"),
        ("upstreams:add", "app15", "127.0.0.1:9"): (9, 'duplicate upstream "backend"'),
        ("apps:rename", "app16", "app09-new"): (4, "app09-new"),
        ("upstreams:add", "app19", "127.0.0.1:9"): (3, "app19"),
    }


#: What is asked for before the bad ones: it is what makes some of them bad.
FIRST = (
    ("domains:add", "app17", "rival.test"),
    ("apps:destroy", "app18", "--force"),
    ("apps:destroy", "app19", "--force"),
    ("apps:create", "app09-new"),
)


@pytest.mark.parametrize(
    ("commands", "bad"),
    [
        pytest.param(40, 5, marks=pytest.mark.timeout(240), id="40 with 5"),
        pytest.param(200, 10, marks=[pytest.mark.slow, pytest.mark.timeout(1200)], id="200 with 10"),
    ],
)
def test_commands_that_wait_with_bad_ones_among_them_are_served_or_end_with_their_own_reason(
    apps: Live, taken_ports: tuple[int, int], commands: int, bad: int
) -> None:
    live = apps
    signals = Reloads(live)
    wrong = dict(list(bad_commands(live, taken_ports).items())[:bad])
    good = [("domains:add", f"app{n % 10:02}", f"good{n}.test") for n in range(commands - bad - len(FIRST))]
    waiting = [list(words) for words in (*good[::2], *wrong, *good[1::2])]
    before = len(live.journal())
    signals.begin()
    results = together(live, [waiting[n::10] for n in range(10)], first=[list(words) for words in FIRST])
    ended = {
        tuple(words): result
        for words, result in zip([*map(list, FIRST), *(w for n in range(10) for w in waiting[n::10])], results, strict=True)
    }
    assert len(ended) == commands
    for words in (*FIRST, *good):
        assert ended[words][0] == 0, (words, ended[words])
    assert [words for words in good if not is_served(live, words[2])] == []
    assert is_served(live, "rival.test") and not live.store.exists("app18")
    for words, (code, reason) in wrong.items():
        found = ended[words]
        assert found[0] == code and reason in found[2] and "Traceback" not in found[2], (words, found)
        assert not words[2].endswith(".test") or words[2] == "rival.test" or live.get(words[2]).status == 0
    lines = live.journal()[before:]
    assert len(lines) == commands
    assert sum(line["reloads"] for line in lines) <= 2, "those who are served share their reloads"
    to_the_proof = [words for words, (code, _) in wrong.items() if code == 9]
    print(f"{commands} commands, {bad} of them bad, {len(to_the_proof)} of those only to the proof: {signals.number} reload signals")
    # one a bad change that only the proof finds; those that collide are tried once more, for themselves
    assert signals.number <= 2 + len(to_the_proof) + sum("backend" in wrong[words][1] for words in to_the_proof)
    mended(live)


@pytest.mark.parametrize(
    ("commands", "steps"),
    [
        pytest.param(3, ("taken", "files", "committed", "answered"), marks=pytest.mark.timeout(240), id="3 at some steps"),
        pytest.param(22, STEPS[STEPS.index("taken") :], marks=[pytest.mark.slow, pytest.mark.timeout(1800)], id="22 at each step"),
    ],
)
def test_when_the_leader_is_killed_the_next_takes_over_and_no_answer_is_false(
    apps: Live, taken_ports: tuple[int, int], commands: int, steps: tuple[str, ...]
) -> None:
    live = apps
    wrong = bad_commands(live, taken_ports)
    bad = [("domains:add", "app10", "bad10.test"), ("domains:add", "app14", "bad14.test")]
    for step in steps:
        before = len(live.journal())
        good = [("domains:add", f"app{n % 9:02}", f"{step}{n}.test") for n in range(commands - 1)]
        waiting = [list(words) for words in (*good, bad[STEPS.index(step) % 2])]
        killed = ["domains:add", "app09", f"{step}.test", "--lock-timeout", "600"]
        with ExitStack() as cleanup:
            with live.locked():
                leader = live.begin(*killed, ROUTER_KILL_AT=step)
                until(lambda: live.queued() == 1, 60, "the leader")
                followers = cleanup.enter_context(callers(live, [[words] for words in waiting]))
                until(lambda: live.queued() == 1 + commands, 400, "a queue of all")
                # only the one may win the lock who dies of it
                followers.send(signal.SIGSTOP)
            assert leader.wait(120).code == -signal.SIGKILL, step
            followers.send(signal.SIGCONT)
            results = followers.results()
        for words, (code, _, err) in zip(waiting, results, strict=True):
            expected, reason = wrong.get(tuple(words), (0, ""))
            assert code == expected and reason in err and "Traceback" not in err, (step, words, code, err)
            assert is_served(live, words[2]) == (code == 0), f"{step}: whoever got exit 0 is served, whoever got another is not"
        is_done = STEPS.index(step) >= STEPS.index("committed")
        assert is_served(live, f"{step}.test") == is_done, f"{step}: behind the commit the killed one's change is served too"
        told = [line["command"] for line in live.journal()[before:] if line["result"] == "done"]
        assert sorted(told) == sorted([*(" ".join([*words, "--lock-timeout", "600"]) for words in good), *[" ".join(killed)] * is_done])
        assert live("status", "--format", "json").json["serving"] == live.generations.current_number()
    mended(live)


def mended(live: Live) -> None:
    """With what was bad taken away all is as if it had never been."""
    for name in ("app10", "app11"):
        (live.paths.app(name) / "nginx.conf.d/own.conf").unlink()
    for name in ("app14", "app15"):
        (live.paths.app(name) / "nginx.conf.j2").unlink()
    live.done("reconcile")
    live.is_consistent()
    live.serves_current()
