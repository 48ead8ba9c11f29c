"""An earlier generation's configuration comes back as a new generation; endpoints stay where the instances are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Live
    from .instances import Backend

pytestmark = pytest.mark.timeout(60)


def number(live: Live) -> int:
    found = live.generations.current_number()
    assert found is not None
    return found


def test_domains_properties_and_snippets_come_back_and_endpoints_stay(two_apps: Live, backend: Callable[[str], Backend]) -> None:
    live = two_apps
    live.snippet("blog", "add_header X-Version one;\n")
    live.done("reconcile", "blog")
    good = number(live)
    files = {path: data for path, data in live.files().items() if path.startswith("apps/blog/") and not path.endswith("UPSTREAMS")}
    live.snippet("blog", "add_header X-Version two;\n")
    live.write("apps/blog/nginx.conf.d/more.conf", "add_header X-More yes;\n")
    live.done("domains:set", "blog", "other.blog.test")
    live.done("apps:nginx:set", "blog", "client-max-body-size", "9m")
    new = backend("new")
    live.done("upstreams:set", "blog", new)
    live.done("domains:add", "shop", "new.shop.test")
    assert live.get("other.blog.test").headers["x-version"] == "two"

    live.done("generations:rollback", good, "blog")
    answer = live.get("blog.test")
    assert (answer.body, answer.headers["x-version"], "x-more" in answer.headers) == ("new", "one", False)
    assert live.get("other.blog.test").status == 0
    now = {path: data for path, data in live.files().items() if path.startswith("apps/blog/") and not path.endswith("UPSTREAMS")}
    assert {p: d for p, d in now.items() if p != "apps/blog/app.toml"} == files, "the directories hold it too"
    assert (live.paths.app("blog") / "UPSTREAMS").read_text().split() == [str(new)]
    assert live.get("new.shop.test").body == "shop", "other apps stay"
    assert number(live) > good
    live.is_consistent()
    live.serves_current()
    # and forward again
    live.done("generations:rollback", number(live) - 1, "blog")
    assert live.get("other.blog.test").headers["x-version"] == "two"


def test_a_name_that_another_app_owns_now_is_a_conflict(two_apps: Live) -> None:
    live = two_apps
    before = number(live)
    live.done("domains:set", "blog", "other.blog.test")
    live.done("domains:add", "shop", "blog.test")
    with live.unchanged():
        result = live("generations:rollback", before, "blog")
    assert result.code == 4 and "blog.test" in result.err and "app shop" in result.err, result
    assert (live.get("blog.test").body, live.get("other.blog.test").body) == ("shop", "blog")
    # of several apps each stands for itself: shop gives the name up, or stays; blog is named
    live.done("domains:add", "shop", "new.shop.test")
    result = live("generations:rollback", before, "--all")
    assert live.get("new.shop.test").status == 0 and live.get("shop.test").body == "shop", result
    live.is_consistent()
    live.serves_current()


def test_an_app_that_was_destroyed_comes_back_without_endpoints_when_it_is_named(two_apps: Live) -> None:
    live = two_apps
    before = number(live)
    live.done("apps:destroy", "shop", "--force")
    live.done("apps:create", "young")
    live.done("generations:rollback", before, "--all")
    assert live.store.names() == ["blog", "young"], "not by itself, and younger apps stay"
    live.done("generations:rollback", before, "shop")
    assert live.store.names() == ["blog", "shop", "young"]
    assert live.get("shop.test").status == 502
    assert not (live.paths.app("shop") / "UPSTREAMS").read_text().strip()
    live.is_consistent()
    live.serves_current()


def test_endpoints_come_back_when_they_are_asked_for_and_answer(two_apps: Live, backend: Callable[[str], Backend]) -> None:
    live = two_apps
    before, old = number(live), (live.paths.app("blog") / "UPSTREAMS").read_text()
    new = backend("new")
    live.done("upstreams:set", "blog", new)
    live.done("generations:rollback", before, "blog", "--endpoints")
    assert live.get("blog.test").body == "blog" and (live.paths.app("blog") / "UPSTREAMS").read_text() == old
    gone = number(live) - 1
    new.close()
    with live.unchanged():
        result = live("generations:rollback", gone, "blog", "--endpoints", "--check-timeout", "1")
    assert result.code == 12 and str(new.name) not in live.get("blog.test").body, result
    assert live.get("blog.test").body == "blog"


def test_endpoints_that_come_back_are_asked_as_a_deploy_would(two_apps: Live, backend: Callable[[str], Backend]) -> None:
    live = two_apps
    live.done("checks:set", "blog", "path", "/health")
    live.done("checks:set", "blog", "status", "204")
    before = number(live)
    live.done("upstreams:set", "blog", backend("new"))
    with live.unchanged():
        result = live("generations:rollback", before, "blog", "--endpoints", "--check-timeout", "1")
    assert result.code == 12 and "GET /health" in result.err and "HTTP 200" in result.err, result
    live.done("generations:rollback", before, "blog", "--endpoints", "--check", "/")
    assert live.get("blog.test").body == "blog"


def test_the_endpoints_of_a_locked_app_stay(two_apps: Live, backend: Callable[[str], Backend]) -> None:
    live = two_apps
    before = number(live)
    live.done("apps:lock", "blog", "moving its database")
    live.done("domains:add", "blog", "more.blog.test")
    live.done("generations:rollback", before, "blog", "--endpoints")  # it has these
    live.done("upstreams:set", "blog", backend("new"))
    for more in ((), ("--dry-run",)):
        with live.unchanged():
            result = live("generations:rollback", before, "blog", "--endpoints", *more)
        assert result.code == 4 and "moving its database" in result.err, result
    result = live("generations:rollback", before, "--all", "--endpoints")
    assert result.code == 4 and live.get("blog.test").body == "new", result
    live.done("generations:rollback", before, "blog")
    assert live.get("more.blog.test").status == 0 and live.get("blog.test").body == "new"


def test_what_is_not_there_ends_in_3(two_apps: Live) -> None:
    with two_apps.unchanged():
        assert two_apps("generations:rollback", 99).code == 3
        assert two_apps("generations:rollback", number(two_apps), "blok").code == 3
