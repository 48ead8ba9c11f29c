"""What an edit by hand, a rollback and an import change is asked of gates and told to notify hooks as what commands change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .conftest import until
from .hooklog import Log, asked_and_told, log

if TYPE_CHECKING:
    from .conftest import Live
    from .instances import Backend

__all__ = ["log"]  # a fixture

pytestmark = pytest.mark.timeout(120)


def test_edits_by_hand_are_told_as_commands_are_and_asked_of_no_gate(
    two_apps: Live, log: Log, backend: Callable[[str], Backend], isolated: Path
) -> None:
    live, new = two_apps, backend("new")
    old = (live.paths.app("blog") / "UPSTREAMS").read_text().strip()

    def edited(path: str, text: str, app: str = "blog") -> list[str]:
        live.write(f"apps/{app}/{path}", text)
        return asked_and_told(log.words("reconcile", app))

    assert edited("DOMAINS", "blog.test\nx.test\ny.test\n") == ["post-domains-update blog add x.test y.test"]
    assert edited("DOMAINS", "# mine\ny.test\nblog.test\n") == ["post-domains-update blog remove x.test"]
    assert edited("DOMAINS", "y.test\n# mine\nblog.test\n") == []
    assert edited("DOMAINS", "blog.test\nz.test\n") == ["post-domains-update blog set blog.test z.test"]
    assert edited("app.toml", 'domains = "disabled"\n') == ["post-domains-update blog disable blog.test z.test"]
    assert edited("DOMAINS", "blog.test\n") == ["post-domains-update blog remove z.test"], "nginx had nothing to do"
    assert edited("app.toml", "") == ["post-domains-update blog enable blog.test"]
    live.write("apps/blog/UPSTREAMS", f"{old}\n{new}\n")
    told = [call["event"] for call in log.calls("reconcile", "blog") if call["hook"] == "post-upstreams-update"]
    assert [(event["action"], event["endpoints"]) for event in told] == [("add", [str(new)])]
    live.write("apps/blog/UPSTREAMS", f"{old} weight=2\n{new}\n")
    told = [call["event"] for call in log.calls("reconcile", "blog") if call["hook"] == "post-upstreams-update"]
    assert [(event["action"], event["endpoints"]) for event in told] == [("set", [old, str(new)])]
    # what is not served is not told, and then all that came meanwhile is
    live.write("apps/blog/DOMAINS", "blog.test\nx.test\n")
    live.snippet("blog", "no_such_directive on;\n")
    assert asked_and_told(log.words("reconcile", "blog", code=8)) == []
    (live.paths.app("blog") / "nginx.conf.d/own.conf").unlink()
    assert edited("DOMAINS", "blog.test\nx.test\ny.test\n") == ["post-domains-update blog add x.test y.test"]
    # apps that come and go
    live.write("apps/third/DOMAINS", "third.test\n")
    assert edited("UPSTREAMS", f"{new}\n", "third") == ["post-create third", "post-upstreams-update third"]
    live.paths.app("third").rename(live.paths.app("fourth"))
    assert asked_and_told(log.words("reconcile")) == ["post-create fourth", "post-upstreams-update fourth", "post-destroy third"]
    shutil.rmtree(live.paths.app("fourth"))
    assert asked_and_told(log.words("reconcile")) == ["post-destroy fourth"]
    assert asked_and_told(log.words("reconcile")) == []


def test_edits_that_a_command_takes_up_besides_are_told_too(two_apps: Live, log: Log, backend: Callable[[str], Backend]) -> None:
    live, new = two_apps, backend("new")
    live.write("apps/blog/DOMAINS", "blog.test\nx.test\n")
    words = asked_and_told(log.words("upstreams:add", "blog", new))
    assert words == ["post-domains-update blog add x.test", "post-upstreams-update blog"]
    live.write("apps/blog/DOMAINS", "blog.test\nx.test\ny.test\n")
    assert asked_and_told(log.words("domains:add", "blog", "y.test")) == ["post-domains-update blog add y.test"], "once"
    assert asked_and_told(log.words("domains:add", "blog", "z.test"))[1:] == ["post-domains-update blog add z.test"]
    # an app that somebody made by hand is created when it is taken up, and once
    live.write("apps/third/DOMAINS", "third.test\n")
    assert asked_and_told(log.words("apps:create", "third")) == ["post-create third"]
    live.snippet("third", "add_header X-Own yes;\n")
    assert asked_and_told(log.words("apps:create", "third")) == []


def test_edits_that_a_deploy_or_two_changes_of_one_command_take_up_are_told_once(
    two_apps: Live, log: Log, backend: Callable[[str], Backend]
) -> None:
    live = two_apps
    live.write("apps/blog/DOMAINS", "blog.test\nx.test\n")
    told = asked_and_told(log.words("apps:deploy", "blog", backend("new")))
    assert [each for each in told if "domains" in each] == ["post-domains-update blog add x.test"]
    live.done("apps:deploy", "blog", backend("canary"), "--canary", "10%")
    live.write("apps/blog/DOMAINS", "blog.test\n")
    assert asked_and_told(log.words("traffic:set", "blog", "20%", "--max-errors", "1%")) == ["post-domains-update blog remove x.test"]


def test_an_edit_that_two_take_up_is_told_once(two_apps: Live, log: Log) -> None:
    two_apps.write("apps/blog/DOMAINS", "blog.test\nx.test\n")
    with two_apps.locked():
        waiting = [two_apps.begin("reconcile", "blog") for _ in range(2)]
        until(lambda: two_apps.queued() == 2)
    assert [each.wait(30).code for each in waiting] == [0, 0]
    hooks = [json.loads(line)["hook"] for line in (log.data / "calls").read_text().splitlines()]
    assert hooks.count("post-domains-update") == 1


def test_a_rollback_asks_and_tells_what_the_same_commands_would(two_apps: Live, log: Log, backend: Callable[[str], Backend]) -> None:
    live, new = two_apps, backend("new")
    before, old = live.generations.current_number(), (live.paths.app("blog") / "UPSTREAMS").read_text().strip()
    shop = (live.paths.app("shop") / "UPSTREAMS").read_text().strip()
    live.done("domains:add", "blog", "x.test")
    live.done("upstreams:set", "blog", new)
    back = ["generations:rollback", before, "blog"]
    assert asked_and_told(log.words(*back)) == ["pre-domains-update blog remove x.test", "post-domains-update blog remove x.test"]
    assert asked_and_told(log.words(*back)) == [], "nothing changes"
    calls = [call for call in log.calls(*back, "--endpoints") if asked_and_told([f"{call['hook']} "])]
    assert [(call["hook"], *call["argv"]) for call in calls] == [(hook, "blog", f"web={old}") for hook in ("pre-deploy", "post-deploy")]
    for call in calls:
        assert call["event"]["processes"] == {"web": {"old": [str(new)], "new": [old]}} and call["event"]["retired"] == [str(new)]
        assert call["event"]["action"] == "restore"
    live.done("apps:destroy", "shop", "--force")
    calls = log.calls("generations:rollback", before, "shop")
    told = {call["hook"]: call["event"]["domains"] for call in calls if asked_and_told([f"{call['hook']} "])}
    assert told == {"pre-create": ["shop.test"], "post-create": ["shop.test"]}
    live.done("upstreams:add", "shop", shop)
    # whoever says no to a command says no to this
    live.plugin("guard", pre_domains_update="echo 'x.test is not sold' >&2; exit 1")
    with live.unchanged():
        result = live("generations:rollback", int(before or 0) + 1, "blog")
    assert result.code == 6 and "x.test is not sold" in result.err, result


def test_an_import_asks_and_tells_what_the_same_commands_would(
    two_apps: Live, log: Log, backend: Callable[[str], Backend], isolated: Path
) -> None:
    live, new, path = two_apps, backend("new"), isolated / "host.tar"
    old = (live.paths.app("blog") / "UPSTREAMS").read_text().strip()
    shop = (live.paths.app("shop") / "UPSTREAMS").read_text().strip()
    live.done("export", "--output", path)
    live.done("domains:set", "blog", "x.test")
    live.done("upstreams:set", "blog", new)
    live.done("apps:destroy", "shop", "--force")
    words = asked_and_told(log.words("import", path))
    assert words == [
        "pre-domains-update blog set blog.test",
        f"pre-deploy blog web={old}",
        "pre-create shop",
        f"pre-deploy shop web={shop}",
        "post-domains-update blog set blog.test",
        f"post-deploy blog web={old}",
        "post-create shop",
        f"post-deploy shop web={shop}",
    ]
    assert asked_and_told(log.words("import", path)) == []
    live.done("upstreams:set", "blog", f"{old}", "--weight", "2")
    assert asked_and_told(log.words("import", path)) == ["post-upstreams-update blog"], "no instance is another"
    live.write("apps/blog/app.toml", "cannot be read\n")
    assert asked_and_told(log.words("import", path)) == [], "it was served as the archive has it"
    live.plugin("guard", pre_deploy="echo 'not at night' >&2; exit 1")
    live.done("upstreams:set", "blog", new)
    with live.unchanged():
        result = live("import", path)
    assert result.code == 6 and "not at night" in result.err, result
    live.done("import", path, "--no-endpoints")
