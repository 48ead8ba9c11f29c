"""`router selftest` on a real nginx: short, at full size, and against a router that is broken on purpose."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nginx_router.processes import all_pids, children, command_line, is_alive

from .conftest import NGINX, until

if TYPE_CHECKING:
    from .conftest import Result, Root

pytestmark = [pytest.mark.timeout(300), pytest.mark.skipif(NGINX is None, reason="no nginx on this machine")]

COUNTS = {"requests", "messages", "failures", "stale", "wrong_app", "cut", "ended", "reconnects"}
#: What each command of the selftest runs before anything else.
TOO_EARLY = "import nginx_router.drain as drain\ndrain.wait = lambda *a, **k: drain.Drained(0)\n"
NOT_SENT = "from nginx_router.live import Live\nLive.take = lambda *a, **k: None\n"


@pytest.fixture
def own(isolated: Path) -> Path:
    """Where the selftest makes its directories."""
    (isolated / "t").mkdir()
    return isolated / "t"


def selftest(router: Root, own: Path, *words: str, code: int = 0, sabotage: str = "", seconds: float = 290.0) -> Result:
    environment = {"TMPDIR": str(own)}
    if sabotage:
        (own.parent / "sitecustomize.py").write_text(sabotage)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(own.parent), os.environ.get("PYTHONPATH")]))
    result = router("selftest", "--format", "json", *words, seconds=seconds, **environment)
    assert result.code == code, f"exit {result.code}, not {code}, in {result.seconds:.0f} s: {result.err}"
    return result


def nothing_is_left(own: Path) -> None:
    assert list(own.iterdir()) == []
    assert not [line for pid in all_pids() if str(own) in (line := command_line(pid))]


def all_asked(mode: dict[str, Any]) -> None:
    assert set(mode["clients"]) == {"fresh", "repeating", "unrepeating", "websocket", "slow", "events"}
    for counts in mode["clients"].values():
        assert counts["requests"] > 0 and set(counts) > COUNTS
    assert mode["clients"]["websocket"]["messages"] > 10 < mode["clients"]["events"]["messages"]


def test_a_short_run_of_everything_in_both_modes(router: Root, own: Path) -> None:
    found = selftest(router, own, "--apps", "8", "--operations", "8", "--seconds", "20", "--seed", "3").json
    assert found["broken"] == [] and found["seed"] == 3 and found["nginx"].startswith("nginx/")
    assert [mode["updates"] for mode in found["modes"]] == ["live", "reload"]
    for mode in found["modes"]:
        all_asked(mode)
        assert sum(mode["operations"].values()) >= 1 and mode["same_master"] and mode["broken"] == []
    assert found["modes"][1]["reloads"] > 0
    nothing_is_left(own)
    assert not router.paths.journal.exists(), "the root of the user is not touched"


def test_what_does_not_fit_into_the_time_is_left_and_counted(router: Root, own: Path) -> None:
    words = ("--updates", "reload", "--apps", "4", "--operations", "500", "--only", "domain", "--seconds", "1")
    (mode,) = selftest(router, own, *words).json["modes"]
    assert mode["operations"]["domain"] >= 1 < mode["left"] and mode["operations"]["domain"] + mode["left"] == 500
    nothing_is_left(own)


@pytest.mark.slow
def test_deploys_in_live_mode_reload_nothing_and_lose_nothing(router: Root, own: Path) -> None:
    result = selftest(router, own, "--updates", "live", "--only", "deploy", "--apps", "6", "--operations", "6")
    (mode,) = result.json["modes"]
    all_asked(mode)
    assert mode["operations"] == {"deploy": 6} and mode["served"]["count"] == mode["deploys"]["count"] == 6
    assert mode["reloads"] == 0 and mode["same_workers"] and 0 < mode["served"]["p50"] <= mode["served"]["p99"]
    assert mode["clients"]["unrepeating"]["failures"] == mode["clients"]["repeating"]["reconnects"] == 0
    nothing_is_left(own)


@pytest.mark.parametrize(("sabotage", "what"), [(TOO_EARLY, "cut"), (NOT_SENT, "status 502")], ids=["told too early", "not sent"])
def test_it_fails_where_the_router_does_not_do_what_it_says(router: Root, own: Path, sabotage: str, what: str) -> None:
    words = ("--updates", "live", "--only", "deploy", "--apps", "8", "--operations", "4", "--seed", "4", "--keep")
    result = selftest(router, own, *words, code=1, sabotage=sabotage)
    assert any(what in words for words in result.json["broken"]), result
    assert "promise" in result.err and "router selftest --updates live --apps 8 --operations 4 --seed 4" in result.err
    (kept,) = own.iterdir()
    assert (kept / "r/journal.jsonl").exists() and str(kept) in result.err
    assert not [line for pid in all_pids() if str(own) in (line := command_line(pid))], "nginx and the instances have ended all the same"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_leaves_nothing(router: Root, own: Path, number: signal.Signals) -> None:
    command = router.begin("selftest", "--apps", "4", "--updates", "reload", TMPDIR=str(own))
    until(lambda: any("nginx: master" in command_line(pid) and str(own) in command_line(pid) for pid in all_pids()), 60, "its nginx")
    command.process.send_signal(number)
    result = command.wait()
    assert result.code == 128 + number and "Traceback" not in result.err, result
    assert not is_alive(command.process.pid)
    nothing_is_left(own)


@pytest.mark.parametrize(("number", "said"), [(signal.SIGINT, "router: interrupted\n"), (signal.SIGTERM, "")])
def test_a_signal_while_commands_run_leaves_nothing_to_say(router: Root, own: Path, number: signal.Signals, said: str) -> None:
    words = ("--apps", "8", "--updates", "reload", "--only", "deploy", "--operations", "500")
    command = router.begin("selftest", *words, TMPDIR=str(own))
    pid = command.process.pid
    for _ in range(2):  # both operators, each behind its first
        until(lambda: sum("apps:deploy" in command_line(child) for child in children(pid)) == 2, 60, "two deploys")
        until(lambda: sum("apps:deploy" in command_line(child) for child in children(pid)) < 2, 60, "the end of one")
    until(lambda: any("apps:deploy" in command_line(child) for child in children(pid)), 60, "a deploy")
    command.process.send_signal(number)
    result = command.wait()
    assert (result.code, result.out, result.err) == (128 + number, "", said)
    nothing_is_left(own)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--updates", "life"), "live"),
        (("--only", "deplo"), "deploy"),
        (("--apps", "3"), "3"),
        (("--seconds", "0"), "0"),
    ],
)
def test_what_it_is_given_must_make_sense(router: Root, words: tuple[str, ...], said: str) -> None:
    result = router("selftest", *words)
    assert result.code == 2 and said in result.err, result


def test_without_the_lua_module_it_says_so_and_runs_the_other_mode(router: Root, own: Path) -> None:
    fake = router.write(
        "bin/nginx", '#!/bin/sh\n[ "$1" = -V ] && { echo "configure arguments: --modules-path=/nowhere" >&2; exit 0; }\nexec nginx "$@"\n'
    )
    fake.chmod(0o755)
    router.write("router.toml", f'[proxy]\nnginx-binary = "{fake}"\n')
    result = selftest(router, own, "--apps", "4", "--operations", "1", "--only", "domain")
    assert [mode["updates"] for mode in result.json["modes"]] == ["reload"]
    assert "libnginx-mod-http-lua" in result.err
    result = selftest(router, own, "--updates", "live", code=2)
    assert "libnginx-mod-http-lua" in result.err
    nothing_is_left(own)


@pytest.mark.slow
@pytest.mark.timeout(1300)
def test_two_hundred_deploys_in_live_mode(router: Root, own: Path, record_property: pytest.RecordProperty) -> None:
    result = selftest(router, own, "--updates", "live", "--only", "deploy", "--operations", "200", "--seconds", "1000", seconds=1250)
    (mode,) = result.json["modes"]
    record_property("seed", f"seed {result.json['seed']}: served {mode['served']}, deploys {mode['deploys']}")
    all_asked(mode)
    assert mode["operations"] == {"deploy": 200} and mode["reloads"] == 0 and mode["same_workers"]
    assert mode["clients"]["unrepeating"]["failures"] == mode["clients"]["repeating"]["reconnects"] == 0


@pytest.mark.slow
@pytest.mark.timeout(1300)
def test_a_hundred_operations_of_all_kinds_in_both_modes(router: Root, own: Path, record_property: pytest.RecordProperty) -> None:
    result = selftest(router, own, "--operations", "100", "--seconds", "500", seconds=1250)
    record_property("seed", f"seed {result.json['seed']}")
    for mode in result.json["modes"]:
        all_asked(mode)
        assert set(mode["operations"]) == {"deploy", "scale", "domain", "bad", "kill"}
