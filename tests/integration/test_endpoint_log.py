"""`updates live`: endpoint changes make no generation, survive whatever a generation survives, and are folded into the next."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from nginx_router import endpointlog
from nginx_router.controller import Request, Router
from nginx_router.errors import RouterError
from nginx_router.events import Event
from nginx_router.faults import STEPS
from nginx_router.index import objects_in
from nginx_router.processes import is_alive
from nginx_router.store import Store

from .conftest import ROUTER, until
from .spreading import HOST, spread
from .test_power_cut import ALL, comes_back, cut_power
from .watching import Watch

if TYPE_CHECKING:
    from .conftest import Live
    from .instances import Backend

COMMIT = STEPS.index("committed")
pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def blog(lively: Live, three: list[Backend]) -> Live:
    """One app, at the first instance."""
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    return lively


def log_of(live: Live) -> bytes:
    number = live.generations.current_number()
    assert number
    return live.generations.log_path(number).read_bytes()


def sound(live: Live, body: str) -> None:
    """What is served, what is kept and what the directories say is one thing."""
    assert spread(live, 4) == {body: 4}
    live.is_consistent()
    live.serves_current()


def test_endpoint_changes_make_no_generation_and_go_into_the_next(blog: Live, three: list[Backend]) -> None:
    before = blog.generations.numbers()
    objects = {path.name for path in blog.paths.objects.iterdir()}
    for old, new in ((0, 1), (1, 2), (2, 1)):
        result = blog.done("apps:deploy", "blog", three[new], "--format", "json")
        assert (result.json["generation"], result.json["kind"], result.json["retired"]) == (before[-1], "endpoints", [str(three[old])])
    assert blog.generations.numbers() == before
    assert {path.name for path in blog.paths.objects.iterdir()} == objects, "no object either"
    assert log_of(blog).count(b"\nend ") == 3
    sound(blog, "two")
    blog.done("apps:domains:add", "blog", "www.blog.test")
    assert blog.generations.numbers() == [*before, before[-1] + 1]
    assert log_of(blog).count(b"\n") == 1, "the next generation begins with an empty log"
    index = blog.generations.current()
    assert index and objects_in(index) <= {path.name for path in blog.paths.objects.iterdir()}
    sound(blog, "two")
    told = blog.done("generations:rollback", before[-1], "--all", "--endpoints").err
    assert "Traceback" not in told
    sound(blog, "two")


def test_what_changes_no_endpoint_is_a_generation(blog: Live, three: list[Backend]) -> None:
    blog.done("apps:deploy", "blog", three[1])
    number = blog.generations.current_number()
    blog.done("apps:lock", "blog")
    assert blog.generations.current_number() == (number or 0) + 1
    sound(blog, "two")
    blog.done("apps:unlock", "blog")
    blog.done("apps:deploy", "blog", three[2])
    sound(blog, "three")


@pytest.mark.parametrize("steps", [("staged", "committed"), pytest.param(STEPS, marks=pytest.mark.slow)], ids=["some steps", "all steps"])
@pytest.mark.parametrize("again", [("apps:domains:add", "blog", "www.blog.test"), ("proxy:reload",), ("apps:upstreams:add", "blog")])
def test_a_deploy_killed_at_any_step_leaves_old_or_new(
    blog: Live, three: list[Backend], again: tuple[str, ...], steps: tuple[str, ...]
) -> None:
    names, now = ["one", "two", "three"], 0
    for step in steps:
        number = STEPS.index(step)
        if step == "validated" and again[0] != "proxy:reload":
            continue  # once is enough where nothing is validated
        new = (now + 1) % 3
        lines = len(blog.journal())
        result = blog("apps:deploy", "blog", three[new], ROUTER_KILL_AT=step)
        assert result.code == -signal.SIGKILL, f"{step} was not passed: {result}"
        blog.done("status", "--quiet") if number < COMMIT else blog("status")
        words = [*again, three[now if number < COMMIT else new]] if again[0].endswith(":add") and "upstreams" in again[0] else again
        blog.done(*words)
        now = new if number >= COMMIT else now
        sound(blog, names[now])
        made = [line for line in blog.journal()[lines:] if line["command"].startswith("apps:deploy")]
        assert len(made) == (number >= COMMIT), f"{step}: a change that was made has one line"
        assert all(line["kind"] == "endpoints" and line["reloads"] == 0 for line in made)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kept", ["ALL", "NAMES"], ids=["only what was synced", "all names"])
def test_a_power_cut_at_each_step_of_a_deploy_leaves_old_or_new(blog: Live, three: list[Backend], kept: str) -> None:
    names, now = ["one", "two", "three"], 0
    for step in ALL:
        new = (now + 1) % 3
        cut_power(blog, step, kept, "apps:deploy", "blog", str(three[new]))
        comes_back(blog)
        now = new if ALL.index(step) >= COMMIT else now
        sound(blog, names[now])
        assert blog.done("doctor", "--quiet").out == "", step


def test_all_killed_the_log_is_what_nginx_starts_with(blog: Live, three: list[Backend]) -> None:
    blog.done("apps:deploy", "blog", three[1])
    blog.done("apps:deploy", "blog", three[2])
    ending = blog.processes()
    for pid in ending:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(map(is_alive, ending)))
    (blog.paths.run / "live" / "admin.sock").unlink(missing_ok=True)
    blog.done("proxy:start")
    sound(blog, "three")
    assert blog.generations.current().live.encode() in log_of(blog)  # type: ignore[union-attr]  # it is there


def test_nginx_makes_nothing_of_a_change_that_was_cut(blog: Live, three: list[Backend]) -> None:
    blog.done("apps:deploy", "blog", three[1])
    kept = len(log_of(blog))
    blog.done("apps:deploy", "blog", three[2])
    blog.done("proxy:stop")
    path = blog.generations.log_path(blog.generations.current_number() or 0)
    path.write_bytes(path.read_bytes()[: kept + 200])
    assert blog.master is None
    blog.done("proxy:start")
    assert spread(blog, 4) == {"two": 4}


@pytest.mark.parametrize("damage", ["lost", "garbled", "of another"])
def test_where_the_log_is_lost_the_directories_say_where_requests_go(blog: Live, three: list[Backend], damage: str) -> None:
    blog.app("shop", ["shop.test"], [three[2]])
    blog.done("reconcile")
    for number in (1, 2, 1):
        blog.done("apps:deploy", "blog", three[number])
    path = blog.generations.log_path(blog.generations.current_number() or 0)
    data = path.read_bytes()
    if damage == "lost":
        path.unlink()
    else:
        path.write_bytes(data.replace(b"route", b"r\0ute", 1) if damage == "garbled" else b"of 9-9\n" + data.partition(b"\n")[2])
    assert "endpoints.log is lost or was changed" in blog("doctor").out
    assert spread(blog, 4) == {"two": 4}, "nginx has them in its memory"
    result = blog.done("domains:add", "shop", "www.shop.test")
    assert "endpoints.log" in result.err and "taking up 2 app directories" in result.err
    assert blog.get("www.shop.test").body == "three"
    sound(blog, "two")


def test_a_change_that_nginx_does_not_take_is_cut_off_again(blog: Live, three: list[Backend]) -> None:
    blog.done("apps:deploy", "blog", three[1])
    before = log_of(blog)
    admin, aside = blog.paths.run / "live", blog.paths.run / "aside"
    admin.rename(aside)
    result = blog("apps:deploy", "blog", three[2])
    assert result.code == 9, result
    assert log_of(blog) == before
    aside.rename(admin)
    sound(blog, "two")


def killed(live: Live, step: str, *words: object) -> None:
    assert live(*words, ROUTER_KILL_AT=step).code == -signal.SIGKILL, step
    assert live.paths.changing.exists() and not live.paths.intent.exists()


def endpoints(live: Live) -> str:
    return (live.paths.app("blog") / "UPSTREAMS").read_text()


def test_nginx_comes_first_and_the_files_follow(blog: Live, three: list[Backend]) -> None:
    killed(blog, "proven", "apps:deploy", "blog", three[1])
    assert spread(blog, 4) == {"two": 4}
    assert endpoints(blog) == f"{three[0]}\n", "nobody waited for that"
    index = blog.generations.current()
    assert index and index.is_unfinished and b"\ndone " not in log_of(blog)
    assert "run/changing" in blog("doctor").out
    blog.done("reconcile", "blog")
    assert endpoints(blog) == f"{three[1]}\n" and not blog.paths.changing.exists()
    assert log_of(blog).count(b"\ndone ") == 1
    sound(blog, "two")


def test_a_deploy_killed_before_nginx_was_told_is_finished(blog: Live, three: list[Backend]) -> None:
    program = (
        "import os, sys; from nginx_router import cli, live; live.Live.take = lambda *_: os.kill(os.getpid(), 9); cli.main(sys.argv[1:])"
    )
    environment = {**os.environ, "ROUTER_ROOT": str(blog.paths.root)}
    argv = [sys.executable, "-c", program, "apps:deploy", "blog", str(three[1])]
    assert subprocess.run(argv, env=environment, capture_output=True, timeout=60, check=False).returncode == -signal.SIGKILL
    assert spread(blog, 4) == {"one": 4}
    blog.done("apps:domains:add", "blog", "www.blog.test")
    sound(blog, "two")


def test_a_power_cut_before_the_disk_has_the_log_leaves_old(blog: Live, three: list[Backend]) -> None:
    cut_power(blog, "sent", "ALL", "apps:deploy", "blog", str(three[1]))
    comes_back(blog)
    sound(blog, "one")
    blog.done("apps:deploy", "blog", three[2])
    sound(blog, "three")


def test_what_was_edited_behind_a_killed_deploy_stays_and_is_taken_up(blog: Live, three: list[Backend]) -> None:
    killed(blog, "committed", "apps:deploy", "blog", three[1])
    blog.write("apps/blog/UPSTREAMS", f"{three[2]}\n")
    blog.done("reconcile", "blog")
    assert endpoints(blog) == f"{three[2]}\n"
    sound(blog, "three")


def test_what_was_put_back_by_hand_behind_a_deploy_stays(blog: Live, three: list[Backend]) -> None:
    blog.done("apps:deploy", "blog", three[1])
    blog.write("apps/blog/UPSTREAMS", f"{three[0]}\n")  # as it was before: the deploy is done, and nobody writes it once more
    blog.app("shop", ["shop.test"], [three[2]])
    blog.done("reconcile", "shop")
    assert endpoints(blog) == f"{three[0]}\n" and spread(blog, 4) == {"two": 4}
    blog.done("reconcile", "blog")
    sound(blog, "one")


def deployed(live: Live, one: Backend) -> int:
    """Deploy by this very process; its exit code."""
    event = Event("upstreams", "blog", {"verb": "set", "endpoints": [f"web {one}"]})
    try:
        Router(live.paths, Request(command="a test's")).change([event])
    except RouterError as why:
        return why.exit_code
    return 0


@pytest.mark.parametrize("step", ["check", "apply"])
def test_a_deploy_whose_files_cannot_be_written_changes_nothing(
    blog: Live, three: list[Backend], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    blog.done("apps:deploy", "blog", three[1])
    before, served = log_of(blog), []

    def refuse(store: Store, steps: object) -> None:
        served.append(spread(blog, 2))
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "apps/blog")

    with monkeypatch.context() as patched:
        patched.setattr(Store, step, refuse)
        assert deployed(blog, three[2]) == 14
    # what is known to fail is never served; what fails all the same is put back
    assert served == [{"two": 2}] if step == "check" else [{"three": 2}]
    assert log_of(blog) == before and not blog.paths.changing.exists()
    sound(blog, "two")
    assert deployed(blog, three[2]) == 0
    sound(blog, "three")


def test_the_log_of_a_killed_deploy_is_on_the_disk_before_its_files(
    blog: Live, three: list[Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(blog, "committed", "apps:deploy", "blog", three[1])
    order, fsync, log = list[str](), os.fsync, blog.generations.log_path(blog.generations.current_number() or 0)

    def noted(fd: int) -> None:
        order.append(os.readlink(f"/proc/self/fd/{fd}"))  # noqa: PTH115 - a descriptor
        fsync(fd)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", noted)
        with Router(blog.paths).locked():
            pass
    assert order[0] == str(log.resolve()) and any("UPSTREAMS" in path for path in order[1:])
    sound(blog, "two")


def test_a_long_log_is_folded_when_nobody_waits(blog: Live, three: list[Backend], monkeypatch: pytest.MonkeyPatch) -> None:
    blog.done("apps:deploy", "blog", three[1])
    monkeypatch.setattr(endpointlog, "LONG", len(log_of(blog)))
    before = blog.generations.current()
    outcome = Router(blog.paths, Request(command="a test's")).change(
        [Event("upstreams", "blog", {"verb": "set", "endpoints": [f"web {three[2]}"]})]
    )[0]
    index = blog.generations.current()
    assert before and index and (outcome.kind, outcome.reloads, outcome.generation) == ("endpoints", 0, before.number)
    assert index.number == before.number + 1 and log_of(blog).count(b"\n") == 1, "the change itself waited for no generation"
    assert index.probe == before.probe and index.live.startswith(f"{before.number}-"), "nginx has all of it"
    assert blog.generations.manifest(index.number).parent == before.number
    sound(blog, "three")
    blog.done("apps:deploy", "blog", three[0])
    assert blog.generations.current_number() == index.number
    blog.done("proxy:stop")
    blog.done("proxy:start")
    sound(blog, "one")


def test_a_long_log_ends_in_a_generation_without_a_reload(blog: Live, three: list[Backend], monkeypatch: pytest.MonkeyPatch) -> None:
    blog.done("apps:deploy", "blog", three[1])
    monkeypatch.setattr(endpointlog, "LONGEST", len(log_of(blog)))
    number = blog.generations.current_number()
    router = Router(blog.paths, Request(command="a test's"))
    outcome = router.change([Event("upstreams", "blog", {"verb": "set", "endpoints": [f"web {three[2]}"]})])[0]
    assert (outcome.kind, outcome.reloads, outcome.generation) == ("endpoints", 0, (number or 0) + 1)
    assert log_of(blog).count(b"\n") == 1
    sound(blog, "three")


def test_who_asked_together_is_told_together(blog: Live, three: list[Backend], backend: Callable[[str], Backend]) -> None:
    blog.app("shop", ["shop.test"], [three[2]])
    blog.done("reconcile")
    with blog.locked():
        running = [blog.begin("apps:deploy", "blog", three[1]), blog.begin("apps:deploy", "shop", three[0])]
        until(lambda: blog.queued() == 2, what="both wait")
    assert [each.wait().code for each in running] == [0, 0]
    assert log_of(blog).count(b"\nend ") == 1 and blog.get("shop.test").body == "one"
    assert len(json.loads(log_of(blog).split(b"\nby ")[1].split(b"\n")[0])["submissions"]) == 2
    sound(blog, "two")


def test_what_changes_of_endpoints_named_goes_with_the_generations(blog: Live, three: list[Backend]) -> None:
    blog.done("proxy:set", "--global", "generations-keep", "2")
    for n in range(3):
        for new in (1, 2, 0):
            blog.done("apps:deploy", "blog", three[(n + new) % 3])
        blog.done("apps:domains:add", "blog", f"w{n}.blog.test")
        blog.done("apps:deploy", "blog", three[(n + 1) % 3])
        blog.done("apps:lock", "blog")
        blog.done("apps:unlock", "blog")
    kept = blog.generations
    assert len(kept.numbers()) == 2
    named = set().union(*(kept.named(number) for number in kept.numbers()))
    assert {path.name for path in blog.paths.objects.iterdir() if path.is_file()} == named
    sound(blog, "one")


def test_a_change_goes_behind_the_last_whole_one(blog: Live, three: list[Backend]) -> None:
    blog.done("apps:deploy", "blog", three[1])
    path = blog.generations.log_path(blog.generations.current_number() or 0)
    with path.open("ab") as file:
        file.write(b'by {"time": "')  # a copy that was made of a root at work
    blog.done("apps:deploy", "blog", three[2])
    index = blog.generations.current()
    assert index and not index.is_lost and index.live.encode() in log_of(blog)
    blog.done("proxy:stop")
    blog.done("proxy:start")
    sound(blog, "three")


def test_an_app_whose_port_was_taken_is_left_out_at_the_start(blog: Live, three: list[Backend], free_port: Callable[[], int]) -> None:
    port = free_port()
    blog.app("shop", ["shop.test"], [three[2]], **{"app.toml": f'ports = ["http:{port}"]\n'})
    blog.done("reconcile")
    blog.done("apps:deploy", "blog", three[1])
    blog.done("proxy:stop")
    with socket.create_server(("127.0.0.1", port)):
        assert "app shop is left out" in blog.done("proxy:start").err
        assert spread(blog, 4) == {"two": 4}
    blog.done("reconcile", "shop")
    assert blog.get("shop.test", port=port).body == "three"
    sound(blog, "two")


@pytest.mark.parametrize(("step", "said"), [("staged", "took back"), ("committed", "finished")])
def test_the_watch_says_what_became_of_a_killed_deploy(blog: Live, three: list[Backend], step: str, said: str) -> None:
    watch = Watch(blog, [str(ROUTER), "watch"], {})
    try:
        watch.begun()
        number = blog.generations.current_number()
        assert blog("apps:deploy", "blog", three[1], ROUTER_KILL_AT=step).code == -signal.SIGKILL
        watch.says(f"{said} a change of endpoints of generation {number}, whose command was killed", 30)
        sound(blog, "two" if step == "committed" else "one")
    finally:
        watch.end()


def test_a_lost_program_is_written_again(blog: Live, three: list[Backend]) -> None:
    blog.done("apps:deploy", "blog", three[1])
    program = blog.paths.current / "live.lua"
    text = program.read_text()
    program.unlink()
    assert "live.lua is gone" in blog("doctor").out
    blog.done("proxy:stop")
    assert blog("proxy:start").code == 9
    blog.done("doctor", "--fix")
    assert program.read_text() == text and log_of(blog).count(b"\nend ") == 1
    sound(blog, "two")
