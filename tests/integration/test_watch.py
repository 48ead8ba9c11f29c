"""`router watch` on real nginx: whatever is edited is served in a moment, with few reloads, and what is wrong harms its app alone."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .conftest import until
from .watching import SERVED, Watch, served, start, watch

if TYPE_CHECKING:
    from .conftest import Live
    from .instances import Backend

__all__ = ["start", "watch"]  # fixtures

pytestmark = pytest.mark.timeout(120)

REPO = Path(__file__).parents[2]


def test_a_line_echoed_into_a_file_is_served_at_once(two_apps: Live, watch: Watch) -> None:
    with (two_apps.paths.app("blog") / "DOMAINS").open("a") as file:
        file.write("hand.blog.test\n")
    served(two_apps, "hand.blog.test", "blog")
    watch.says("blog: structure, generation ")
    assert [line for line in watch.lines if line.startswith("blog: ")] == [watch.lines[-1]], "one line a change"
    assert watch.said.splitlines()[-1][:4].isdigit() and watch.said.splitlines()[-1].split()[0].endswith("Z")
    until(lambda: watch.reloads == 1, 5)
    watch.is_quiet()
    two_apps.serves_current(SERVED)
    two_apps.is_consistent()


def test_plugins_are_told_of_edits(two_apps: Live, start: Callable[..., Watch], isolated: Path) -> None:
    told, note = isolated / "told", f'echo "$ROUTER_HOOK $*" >>{isolated}/told'
    two_apps.plugin("log", post_create=note, post_destroy=note, post_domains_update=note, post_upstreams_update=note)
    start().begun()
    two_apps.write("apps/blog/DOMAINS", "blog.test\nhand.blog.test\n")
    until(lambda: told.exists() and told.read_text() == "post-domains-update blog add hand.blog.test\n", SERVED, "what is told of a domain")
    two_apps.write("apps/blog/UPSTREAMS", "127.0.0.1:9\n")
    until(lambda: told.read_text().splitlines()[1:] == ["post-upstreams-update blog"], SERVED, "what is told of an endpoint")


def test_fifty_edits_in_twenty_apps_share_a_reload(two_apps: Live, backend: Callable[[str], Backend], start: Callable[..., Watch]) -> None:
    instance = backend("app")
    for n in range(20):
        two_apps.app(f"app{n}", [f"app{n}.test"], [instance])
    two_apps.done("reconcile")
    watch = start().begun()
    for n in range(50):
        with (two_apps.paths.app(f"app{n % 20}") / "DOMAINS").open("a") as file:
            file.write(f"edit{n}.test\n")
    until(lambda: all(two_apps.get(f"edit{n}.test").body == "app" for n in (0, 19, 49)), 5, "the burst")
    until(lambda: watch.reloads, 5)
    assert watch.reloads <= 2, watch.said
    for n in range(50):
        assert two_apps.get(f"edit{n}.test").body == "app"
    watch.is_quiet()
    two_apps.serves_current(SERVED)


def test_an_editor_that_renames_over_the_file_is_seen(two_apps: Live, watch: Watch) -> None:
    app = two_apps.paths.app("blog")
    # as vim does: a swap file, a backup, a new file in the place of the old
    (app / ".DOMAINS.swp").write_text("x")
    (app / "4913").write_text("")
    (app / "4913").unlink()
    (app / "DOMAINS").rename(app / "DOMAINS~")
    (app / "DOMAINS").write_text("blog.test\nvim.test\n")
    (app / "DOMAINS~").unlink()
    served(two_apps, "vim.test", "blog")
    # as sed -i and rsync do: written beside, renamed over
    (app / ".DOMAINS.Xa7d").write_text("blog.test\nsed.test\n")
    (app / ".DOMAINS.Xa7d").rename(app / "DOMAINS")
    served(two_apps, "sed.test", "blog")
    until(lambda: two_apps.get("vim.test").status == 0, SERVED)
    until(lambda: watch.reloads == 2, 5)
    (app / ".DOMAINS.swp").unlink()
    watch.is_quiet()
    two_apps.serves_current(SERVED)


def test_a_removed_and_a_renamed_directory_are_taken_up(two_apps: Live, watch: Watch) -> None:
    shutil.rmtree(two_apps.paths.app("shop"))
    until(lambda: two_apps.get("shop.test").status == 0, SERVED, "the end of shop")
    # the new name comes before the old one, in every order but the right one
    two_apps.paths.app("blog").rename(two_apps.paths.app("a-blog"))
    watch.says("a-blog: structure")
    watch.says(" blog: structure")
    assert "exit" not in watch.said, watch.said
    assert two_apps.get("blog.test").body == "blog"
    assert watch.reloads == 2, "one each"
    watch.is_quiet()
    two_apps.is_consistent()
    two_apps.serves_current(SERVED)


def test_a_domain_moved_by_hand_is_never_missing(two_apps: Live, watch: Watch) -> None:
    # blog is asked before shop, and shop has what blog is given
    two_apps.write("apps/shop/DOMAINS", "other.shop.test\n")
    two_apps.write("apps/blog/DOMAINS", "blog.test\nshop.test\n")
    bodies = {"shop"}
    deadline = time.monotonic() + SERVED
    while "blog" not in bodies and time.monotonic() < deadline:
        bodies.add(two_apps.get("shop.test").body)
    assert bodies == {"shop", "blog"}
    until(lambda: watch.reloads == 1, 5)
    two_apps.serves_current(SERVED)


def test_an_app_directory_whose_files_come_slowly_is_served_when_they_are_there(
    two_apps: Live, backend: Callable[[str], Backend], watch: Watch
) -> None:
    app = two_apps.paths.app("slow")
    app.mkdir()
    time.sleep(0.3)
    instance = str(backend("slow"))
    with (app / "UPSTREAMS").open("w") as file:
        for letter in f"web {instance}\n":
            file.write(letter)
            file.flush()
            time.sleep(0.02)
    (app / "nginx.conf.d").mkdir()
    time.sleep(0.3)
    (app / "nginx.conf.d" / "own.conf").write_text("add_header X-Slow yes;\n")
    time.sleep(0.3)
    (app / "DOMAINS").write_text("slow.test\n")
    served(two_apps, "slow.test", "slow")
    until(lambda: dict(two_apps.get("slow.test").headers).get("x-slow") == "yes", SERVED)
    assert "exit" not in watch.said, watch.said
    two_apps.serves_current(SERVED)


def test_a_file_that_is_being_written_is_not_taken_up_in_the_middle(two_apps: Live, watch: Watch) -> None:
    with (two_apps.paths.app("blog") / "DOMAINS").open("a") as file:
        for letter in "very-long-name.blog.test.and-still-not-whole." + "x" * 30:
            file.write(letter)
            file.flush()
            time.sleep(0.05)
        assert watch.taken_up() == [], watch.said
        file.write(".test\n")
    served(two_apps, f"very-long-name.blog.test.and-still-not-whole.{'x' * 30}.test", "blog")
    until(lambda: watch.reloads == 1, 5)


def test_the_hosts_own_files_are_taken_up(two_apps: Live, watch: Watch) -> None:
    assert two_apps.get("nobody.test").status == 0
    config = two_apps.paths.config
    text = config.read_text()
    config.write_text(text + 'default-site = "404"\n')
    until(lambda: two_apps.get("nobody.test").status == 404, SERVED)
    watch.says("the host's own files: structure")
    config.write_text(text + 'default-site = "perhaps"\n')
    watch.says("router.toml:")
    (two_apps.paths.app("blog") / "DOMAINS").write_text("blog.test\nmeanwhile.test\n")
    time.sleep(0.5)
    assert two_apps.get("meanwhile.test").status in (0, 404), "nothing is changed under broken settings"
    config.write_text(text)
    served(two_apps, "meanwhile.test", "blog")
    until(lambda: two_apps.get("nobody.test").status == 0, SERVED)
    two_apps.write("DOMAINS", "example.test\n")
    until(lambda: two_apps.generations.current().global_domains == "example.test\n", SERVED)  # type: ignore[union-attr]  # there is one
    two_apps.serves_current(SERVED)


def test_a_broken_app_is_named_and_watched_on(two_apps: Live, watch: Watch) -> None:
    domains = two_apps.paths.app("blog") / "DOMAINS"
    for text, words in (("*bad\n", "apps/blog/DOMAINS:1"), ("shop.test\n", "belongs to app shop")):
        domains.write_text(text)
        watch.says(words)
        assert two_apps.get("blog.test").body == "blog", "the last good one stays"
        assert two_apps("status").code == 8
    two_apps.snippet("shop", "gzip perhaps;\n")
    watch.says("own.conf")
    (two_apps.paths.app("shop") / "nginx.conf.d/own.conf").unlink()
    watch.says("shop: mended")
    # who lets go of a domain makes the other whole
    two_apps.write("apps/shop/DOMAINS", "new.shop.test\n")
    served(two_apps, "new.shop.test", "shop")
    served(two_apps, "shop.test", "blog")
    two_apps.serves_current(SERVED)


def test_what_is_no_file_or_too_large_harms_its_app_alone(two_apps: Live, watch: Watch) -> None:
    app = two_apps.paths.app("blog")
    os.mkfifo(app / "pipe")
    (app / "dump.sql").write_bytes(b"x" * (10 << 20))
    (app / "DOMAINS").unlink()
    os.mkfifo(app / "DOMAINS")
    watch.says("not a regular file")
    two_apps.write("apps/shop/DOMAINS", "shop.test\nmore.shop.test\n")
    served(two_apps, "more.shop.test", "shop")
    (app / "DOMAINS").unlink()
    (app / "DOMAINS").write_bytes(b"# " + b"x" * (10 << 20) + b"\n")
    watch.says("larger than")
    (app / "DOMAINS").unlink()
    (app / "DOMAINS").symlink_to("/etc/passwd")
    watch.says("a link or a device")
    (app / "DOMAINS").unlink()
    (app / "DOMAINS").mkdir()
    until(lambda: watch.said.count("not a regular file") >= 2, 5)
    (app / "DOMAINS").rmdir()
    (app / "DOMAINS").write_text("blog.test\nwell.blog.test\n")
    served(two_apps, "well.blog.test", "blog")
    two_apps.serves_current(SERVED)


def test_what_commands_write_makes_no_second_reload(two_apps: Live, watch: Watch) -> None:
    two_apps.done("domains:add", "blog", "one.test")
    two_apps.done("apps:create", "new")
    two_apps.done("upstreams:add", "new", "127.0.0.1:9")
    two_apps.done("domains:add", "new", "new.test")
    two_apps.done("apps:rename", "new", "newer")
    two_apps.done("domains:add-global", "example.test")
    two_apps.done("proxy:set", "--global", "default-site", "404")
    two_apps.done("apps:destroy", "newer", "--force")
    watch.is_quiet()
    assert watch.taken_up() == [], watch.said
    assert len(watch.lines) == 1, watch.said
    two_apps.serves_current(SERVED)


def test_names_are_resolved_again(two_apps: Live, backend: Callable[[str], Backend], start: Callable[..., Watch]) -> None:
    instance = backend("named")
    answer = two_apps.write("answer", "127.0.0.1\n")
    two_apps.plugin("resolver", endpoint_resolve=f'case "$(cat)" in *\'"web.lan"\'*) cat {answer};; esac')
    two_apps.app("named", ["named.test"], [f"web.lan:{instance.port}"])
    watch = start("--resolve", "0.5").begun()
    assert two_apps.get("named.test").body == "named"
    watch.is_quiet(1.2)  # two resolutions
    answer.write_text("127.0.0.9\n")
    watch.says("named: endpoints, generation")
    index = two_apps.generations.current()
    assert index and two_apps.generations.app_state(index.apps["named"])[1].resolved == {"web.lan": ("127.0.0.9",)}
    number = index.number
    answer.write_text("\n")
    watch.is_quiet(1.2)
    assert two_apps.generations.current_number() == number, "one that fails keeps the last"
    answer.write_text("127.0.0.1\n")
    served(two_apps, "named.test", "named", 5)
    # an app that waits for its name
    two_apps.app("later", ["later.test"], [f"later.web.lan.invalid:{instance.port}"])
    watch.says("later.web.lan.invalid", 15)
    answer.with_name("plugins").joinpath("resolver/endpoint-resolve").write_text(f"#!/bin/sh\ncat {answer}\n")
    served(two_apps, "later.test", "named", 15)
    two_apps.serves_current(SERVED)


def test_a_changed_plugin_is_taken_up_in_every_app(two_apps: Live, start: Callable[..., Watch]) -> None:
    watch = start().begun()
    pid = watch.process.pid
    plugin = two_apps.plugin("stamp", nginx_server_snippet='echo "add_header X-Stamp one;"')
    until(lambda: all(two_apps.get(host).headers.get("x-stamp") == "one" for host in ("blog.test", "shop.test")), 8)
    watch.says("starting anew")
    script = plugin / "nginx-server-snippet"
    script.write_text(script.read_text().replace("one", "two"))
    until(lambda: two_apps.get("blog.test").headers.get("x-stamp") == "two", 8)
    # Python code that is loaded already
    two_apps.write("plugins/py/plugin.toml", '[plugin]\nname = "py"\n')
    code = "import pluggy\n\n@pluggy.HookimplMarker('router')\ndef nginx_server_snippet(event):\n    return 'add_header X-Py {};'\n"
    module = two_apps.write("plugins/py/plugin.py", code.format("first"))
    until(lambda: two_apps.get("blog.test").headers.get("x-py") == "first", 8)
    module.write_text(code.format("second-one"))
    until(lambda: two_apps.get("blog.test").headers.get("x-py") == "second-one", 8)
    shutil.rmtree(two_apps.paths.plugins / "py")
    until(lambda: "x-py" not in two_apps.get("blog.test").headers, 8)
    until(lambda: watch.lines[-1].startswith("watching "), 5)
    watch.is_quiet(2.5)
    assert watch.process.pid == pid and watch.process.poll() is None, "systemd sees one process"
    assert two_apps("watch").code == 5, "it is still the one"
    two_apps.serves_current(SERVED)


def test_a_changed_template_is_taken_up(two_apps: Live, start: Callable[..., Watch], isolated: Path) -> None:
    # an installation of its own: what is shipped is everybody's
    for name in ("nginx_router", "templates", "plugins"):
        shutil.copytree(REPO / name, isolated / "installed" / name, ignore=shutil.ignore_patterns("__pycache__"))
    python = (sys.executable, "-m", "nginx_router")
    watch = start(argv=python, PYTHONPATH=str(isolated / "installed")).begun()
    template = isolated / "installed/templates/vhost.conf.j2"
    whole = template.read_text()
    template.write_text(whole.replace("\nserver {", "\nserver {\n    add_header X-Template new;", 1))
    until(lambda: two_apps.get("blog.test").headers.get("x-template") == "new", 10)
    # an own template of an app
    two_apps.write("apps/shop/nginx.conf.j2", f"server {{ listen 127.0.0.1:{two_apps.port}; server_name shop.test; return 203; }}\n")
    until(lambda: two_apps.get("shop.test").status == 203, SERVED)
    # a program that is half installed is not started
    cli = isolated / "installed/nginx_router/cli.py"
    whole = cli.read_text()
    cli.write_text("import nothing_of_this_name\n")
    watch.says("does not run", 10)
    two_apps.write("apps/blog/DOMAINS", "blog.test\nmeanwhile.test\n")
    served(two_apps, "meanwhile.test", "blog")
    anew = watch.said.count("starting anew")
    cli.write_text(whole)
    until(lambda: watch.said.count("starting anew") > anew, 10)
    until(lambda: watch.lines[-1].startswith("watching "), 10)
    two_apps.serves_current(SERVED)
