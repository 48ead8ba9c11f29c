"""Directories edited by hand are as good a way in as commands, and what is wrong with one app stays with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Live
    from .instances import Backend

pytestmark = pytest.mark.timeout(60)


def stale(live: Live) -> dict[str, str]:
    """The apps that `status` names as stale, and why; its exit code says so too."""
    result = live("status", "--format", "json")
    found = {each["app"]: each["problem"] for each in result.json["stale"]}
    assert result.code == (8 if found else 0), result
    return found


def test_a_line_added_by_hand_is_served_after_reconcile(two_apps: Live) -> None:
    file = two_apps.paths.app("blog") / "DOMAINS"
    text = "# ours since 2019\n\nblog.test\nNew.Blog.Test   # and this one\n"
    file.write_text(text)
    assert two_apps.get("new.blog.test").status == 0
    result = two_apps.done("reconcile")
    assert "blog: structure" in result.err
    assert two_apps.get("new.blog.test").body == "blog"
    assert file.read_text() == text, "what people write stays as they wrote it"
    two_apps.done("domains:add", "blog", "third.blog.test")
    assert file.read_text() == text + "third.blog.test\n"
    two_apps.done("domains:remove", "blog", "new.blog.test")
    assert file.read_text() == "# ours since 2019\n\nblog.test\nthird.blog.test\n"
    two_apps.is_consistent()
    two_apps.serves_current()


def test_a_command_takes_up_hand_edits_of_the_app_it_names_and_of_no_other(two_apps: Live) -> None:
    for app in ("blog", "shop"):
        two_apps.write(f"apps/{app}/DOMAINS", f"{app}.test\nhand.{app}.test\n")
    two_apps.done("domains:add", "blog", "new.blog.test")
    assert (two_apps.get("hand.blog.test").body, two_apps.get("new.blog.test").body) == ("blog", "blog")
    assert two_apps.get("hand.shop.test").status == 0
    two_apps.done("reconcile", "shop")
    assert two_apps.get("hand.shop.test").body == "shop"


def test_a_stale_app_keeps_its_last_good_vhost_and_is_named(two_apps: Live) -> None:
    live = two_apps
    broken = {
        "DOMAINS": "shop.test\n*shop.test\n",
        "UPSTREAMS": "127.0.0.1:70000\n",
        "app.toml": 'ports = ["http"]\ndomainz = 1\n',
        "nginx.conf.d/own.conf": "gzip perhaps;\n",
        "nginx.conf.j2": "{{ domainz }}\n",
    }
    words = {
        "DOMAINS": (2, "apps/shop/DOMAINS:2"),
        "UPSTREAMS": (2, "apps/shop/UPSTREAMS:1"),
        "app.toml": (2, "apps/shop/app.toml:2"),
        "nginx.conf.d/own.conf": (8, "own.conf:1"),
        "nginx.conf.j2": (7, "nginx.conf.j2:1"),
    }
    for path, text in broken.items():
        file = live.paths.app("shop") / path
        before = file.read_text() if file.exists() else None
        live.write(f"apps/shop/{path}", text)
        result = live("reconcile")
        code, said = words[path]
        assert result.code == code and said in result.err, result
        assert file.read_text() == text, "what people write is not taken from them"
        assert live.get("shop.test").body == "shop"
        found = stale(live)
        assert list(found) == ["shop"] and said in found["shop"], found
        report = live.done("apps:report", "shop", "--format", "json").json
        assert report["stale"] is True and said in report["problem"]
        # the others go on
        live.done("domains:add", "blog", "new.blog.test")
        live.done("domains:remove", "blog", "new.blog.test")
        if before is None:
            file.unlink()
        else:
            file.write_text(before)
        live.done("reconcile")
        assert stale(live) == {}
    live.is_consistent()
    live.serves_current()


def test_of_two_apps_that_claim_a_domain_by_hand_the_one_that_serves_it_keeps_it(two_apps: Live) -> None:
    two_apps.write("apps/shop/DOMAINS", "shop.test\nblog.test\n")
    result = two_apps("reconcile")
    assert result.code == 4 and "shop" in result.err and "belongs to app blog" in result.err, result
    assert two_apps.get("blog.test").body == "blog"
    assert list(stale(two_apps)) == ["shop"]
    # the owner gives it up: now the other one has it
    two_apps.write("apps/blog/DOMAINS", "")
    two_apps.done("reconcile")
    assert two_apps.get("blog.test").body == "shop"
    assert stale(two_apps) == {}
    two_apps.is_consistent()


def test_an_emptied_upstreams_file_is_taken_up_with_a_warning(two_apps: Live) -> None:
    two_apps.write("apps/shop/UPSTREAMS", "# nothing here\n")
    result = two_apps.done("reconcile")
    assert "shop: UPSTREAMS is empty now" in result.err, result
    answer = two_apps.get("shop.test")
    assert answer.status == 502 and "shop" in answer.body
    assert two_apps.get("blog.test").body == "blog"
    two_apps.is_consistent()


@pytest.mark.parametrize("command", [("reconcile",), ("reconcile", "shop")], ids=["all", "named"])
def test_a_removed_app_directory_is_an_app_that_is_gone(two_apps: Live, command: tuple[str, ...]) -> None:
    shutil.rmtree(two_apps.paths.app("shop"))
    # nothing happens by itself, and another app's change is not concerned
    two_apps.done("domains:add", "blog", "new.blog.test")
    assert two_apps.get("shop.test").body == "shop"
    two_apps.done(*command)
    assert two_apps.get("shop.test").status == 0
    assert two_apps.get("blog.test").body == "blog"
    two_apps.is_consistent()
    two_apps.serves_current()
    two_apps.done("domains:add", "blog", "shop.test")
    assert two_apps.get("shop.test").body == "blog", "its domain is free"


def test_an_app_made_by_hand_is_served(two_apps: Live, backend: Callable[[str], Backend]) -> None:
    two_apps.app("hand", ["hand.test"], [f"{backend('a')} weight=3", f"web {backend('b')} backup", "api 127.0.0.1:1"])
    two_apps.done("reconcile", "hand")
    assert {two_apps.get("hand.test").body for _ in range(6)} == {"a"}
    two_apps.is_consistent()


def test_the_hosts_own_files_are_taken_up_by_every_command(two_apps: Live) -> None:
    config = two_apps.paths.config
    config.write_text(config.read_text() + 'default-site = "404"\n')
    assert two_apps.get("nobody.test").status == 0
    two_apps.done("domains:add", "blog", "new.blog.test")
    assert two_apps.get("nobody.test").status == 404
    config.write_text(config.read_text().replace('"404"', '"perhaps"'))
    with two_apps.unchanged():
        result = two_apps("domains:add", "blog", "third.blog.test")
    assert result.code == 2 and "router.toml:" in result.err and "default-site" in result.err, result
    assert two_apps.get("new.blog.test").body == "blog"
