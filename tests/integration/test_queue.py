"""Changes that wait for the host lock share one transaction, and each gets its own true answer."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from .callers import callers, together
from .conftest import until

if TYPE_CHECKING:
    from .conftest import Live


@pytest.fixture
def apps(live: Live) -> Live:
    """Twenty apps without endpoints: each domain of them answers 502, an unknown name nothing."""
    for number in range(20):
        live.app(f"app{number}", [f"app{number}.test"])
    live.done("reconcile")
    return live


def is_served(live: Live, domain: str) -> bool:
    return live.get(domain).status == 502


@pytest.mark.timeout(240)
def test_a_hundred_commands_that_wait_share_their_reloads(apps: Live) -> None:
    commands = [[["domains:add", f"app{n}", f"d{n}-{m}.test", "--format", "json"] for m in range(5)] for n in range(20)]
    before = len(apps.journal())
    results = together(apps, commands)
    assert [r for r in results if r[0] != 0] == []
    answers = [json.loads(out) for _, out, _ in results]
    current = apps.generations.current_number()
    for answer, command in zip(answers, [c for own in commands for c in own], strict=True):
        assert answer["app"] == command[1] and answer["kind"] == "structure" and answer["serving"] == answer["generation"] <= (current or 0)
        texts, _ = apps.generations.app_state(apps.generations.index(answer["generation"]).apps[command[1]])
        assert command[2] in texts["DOMAINS"].split(), "the generation that the answer names has it"
        assert is_served(apps, command[2])
    lines = apps.journal()[before:]
    assert len(lines) == 100
    assert 1 <= sum(line["reloads"] for line in lines) <= 2
    apps.is_consistent()
    apps.serves_current()


@pytest.mark.timeout(240)
def test_commands_that_run_freely_are_all_applied(apps: Live, record_property: pytest.RecordProperty) -> None:
    commands = [[["domains:add", f"app{n % 5}", f"d{n}-{m}.test"] for m in range(6)] for n in range(10)]
    before = len(apps.journal())
    with callers(apps, commands, at_once=False) as running:
        results = running.results()
    assert [r for r in results if r[0] != 0] == []
    domains = [command[2] for own in commands for command in own]
    assert [d for d in domains if not is_served(apps, d)] == []
    reloads = sum(line["reloads"] for line in apps.journal()[before:])
    record_property("reloads", reloads)
    print(f"{len(domains)} changes by {len(commands)} processes took {reloads} reloads")
    assert len(apps.journal()) == before + 60 and 1 <= reloads <= 60
    apps.is_consistent()
    apps.serves_current()


@pytest.mark.timeout(60)
def test_a_lock_that_is_held_ends_in_5_naming_the_holder_and_withdraws(two_apps: Live) -> None:
    holder = subprocess.Popen([shutil.which("flock") or "flock", "--no-fork", str(two_apps.paths.lock), "sleep", "60"])
    try:
        until(lambda: subprocess.run(["flock", "-n", str(two_apps.paths.lock), "true"], check=False).returncode == 1)
        with two_apps.unchanged():
            result = two_apps("domains:add", "blog", "new.blog.test", "--lock-timeout", "1")
            assert result.code == 5 and f"pid {holder.pid} (sleep 60" in result.err, result
            assert 1.0 <= result.seconds < 4
            assert two_apps.queued() == 0
        # what only reads does not wait
        assert two_apps.done("apps:report", "blog").seconds < 3
        two_apps.done("status")
    finally:
        holder.kill()
        holder.wait(10)
    two_apps.done("domains:add", "shop", "new.shop.test")
    assert two_apps.get("new.blog.test").status == 0, "a withdrawn change does not come later"
    assert two_apps.get("new.shop.test").body == "shop"
    two_apps.is_consistent()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"])
@pytest.mark.timeout(60)
def test_a_signal_ends_a_command_that_waits_and_nothing_changes(two_apps: Live, number: signal.Signals, code: int) -> None:
    with two_apps.locked(), two_apps.unchanged():
        waiting = two_apps.begin("domains:add", "blog", "new.blog.test")
        until(lambda: two_apps.queued() == 1)
        waiting.process.send_signal(number)
        result = waiting.wait()
        assert result.code == code and "Traceback" not in result.err, result
        assert two_apps.queued() == 0
    two_apps.done("domains:add", "shop", "new.shop.test")
    assert two_apps.get("new.blog.test").status == 0
    two_apps.is_consistent()


@pytest.mark.timeout(60)
def test_a_command_whose_place_in_the_queue_is_gone_ends(two_apps: Live) -> None:
    with two_apps.locked():
        waiting = two_apps.begin("domains:add", "blog", "new.blog.test")
        until(lambda: two_apps.queued() == 1)
        for path in two_apps.paths.queue.glob("*.json"):
            path.unlink()
    result = waiting.wait(30)
    assert result.code == 5 and "was taken and not answered" in result.err and "router status" in result.err, result
    assert two_apps.get("new.blog.test").status == 0


@pytest.mark.timeout(60)
def test_a_command_that_was_killed_while_it_waited_is_forgotten(two_apps: Live) -> None:
    with two_apps.locked():
        waiting = two_apps.begin("domains:add", "blog", "new.blog.test")
        until(lambda: two_apps.queued() == 1)
        waiting.process.kill()
        assert waiting.wait().code == -signal.SIGKILL
    two_apps.done("domains:add", "shop", "new.shop.test")
    assert two_apps.get("new.blog.test").status == 0
    two_apps.is_consistent()


@pytest.mark.timeout(240)
def test_bad_changes_among_good_ones_get_their_own_reasons(apps: Live) -> None:
    live = apps
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        good = [["domains:add", f"app{n}", f"good{n}-{m}.test"] for n in range(15) for m in range(2)]
        # names that two ask for: whoever comes first has it, and the queue alone can tell
        rivals = [["domains:add", app, f"rival{n}.test"] for n in range(3) for app in ("app0", "app15")]
        live.snippet("app16", "gzip perhaps;\n")
        live.snippet("app17", "no_such_directive;\n")
        bad = {
            ("domains:add", "app16", "bad16.test"): (8, 'invalid value "perhaps"'),
            ("domains:add", "app17", "bad17.test"): (8, 'unknown directive "no_such_directive"'),
            ("ports:add", "app18", "http", f"http:{port}"): (9, f"bind() to 127.0.0.1:{port} failed"),
            ("ports:add", "app19", "http", f"http:{port}"): (9, f"bind() to 127.0.0.1:{port} failed"),
            ("apps:nginx:set", "app16", "client-max-body-size", "2m"): (8, 'invalid value "perhaps"'),
            ("domains:add", "app17", "also17.test"): (8, 'unknown directive "no_such_directive"'),
            ("upstreams:add", "app16", "127.0.0.1:9"): (8, 'invalid value "perhaps"'),
        }
        commands = [*good[:15], *map(list, bad), *rivals, *good[15:]]
        assert len(commands) == 43
        results = together(live, [commands[n::10] for n in range(10)])
    by_command: dict[tuple[str, ...], tuple[int, str, str]] = {}
    for command, result in zip([c for n in range(10) for c in commands[n::10]], results, strict=True):
        by_command[tuple(command)] = result
    for command in good:
        code, _, err = by_command[tuple(command)]
        assert code == 0, err
        assert is_served(live, command[2])
    for words, (code, reason) in bad.items():
        found = by_command[words]
        assert (found[0], reason in found[2], words[1] in found[2]) == (code, True, True), found
    for number in range(3):
        both = {app: by_command["domains:add", app, f"rival{number}.test"] for app in ("app0", "app15")}
        assert sorted(code for code, _, _ in both.values()) == [0, 4], both
        winner = next(app for app, (code, _, _) in both.items() if code == 0)
        loser = next(app for app in both if app != winner)
        assert f"app {winner}" in both[loser][2], "the owner is named"
        assert f"rival{number}.test" in (live.paths.app(winner) / "DOMAINS").read_text()
    for name in ("app16", "app17"):
        shutil.rmtree(live.paths.app(name) / "nginx.conf.d")
    live.done("reconcile")
    live.is_consistent()
    live.serves_current()
