"""A hook that failed is remembered until the same call goes well, and nothing rests on the memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nginx_router.failures import Failures
from nginx_router.output import Output

from .conftest import Result

Run = Callable[..., Result]

#: Fails while `data/chat/down` is there.
SCRIPT = '#!/bin/sh\nset -eu\n[ ! -e "$ROUTER_PLUGIN_DATA/down" ] || { echo "the chat $1 is down" >&2; exit 3; }\n'


@pytest.fixture
def chat(run: Run, router_root: Path, tmp_path: Path) -> Callable[[bool], None]:
    """An installed plugin with hooks of each kind; whether they fail."""
    source = tmp_path / "chat"
    source.mkdir()
    (source / "plugin.toml").write_text('[plugin]\nname = "chat"\n')
    for hook in ("pre-domains-update", "nginx-server-snippet", "endpoint-resolve", "post-domains-update"):
        (source / hook).write_text(SCRIPT)
        (source / hook).chmod(0o755)
    assert run("plugins:install", str(source)).code == 0
    data = router_root / "data/chat"
    data.mkdir(parents=True)

    def down(is_down: bool) -> None:
        (data / "down").touch() if is_down else (data / "down").unlink()

    return down


def failed(run: Run) -> list[tuple[str, str | None, str]]:
    found = run("plugins:report", "chat", "--format", "json").json()["failed"]
    return [(each["hook"], each["app"], each["problem"]) for each in found]


def checks(run: Run) -> dict[str, tuple[str, str]]:
    found = run("doctor", "--format", "json").json()["checks"]
    return {each["problem"]: (each["state"], each["fix"]) for each in found if each["name"] == "plugins" and each["problem"]}


def test_what_failed_last_is_shown_until_it_goes_well(
    run: Run, chat: Callable[[bool], None], router_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("apps:create", "blog").code == run("apps:create", "shop").code == 0
    assert failed(run) == [] and run("plugins:report", "chat", "--state").out == "enabled\n"
    chat(True)
    assert run("plugins:trigger", "post-domains-update", "blog", "add").code == 0
    assert failed(run) == [("post-domains-update", "blog", "the chat blog is down")]
    assert (router_root / "run/failed").stat().st_mode & 0o777 == 0o700
    assert run("plugins:trigger", "nginx-server-snippet", "blog").code == 11
    assert run("plugins:report", "chat", "--state").out == "failing\n"
    got = run("plugins:list")
    assert "chat" in got.lines and "plugin chat is failing: " in got.err and "the chat blog is down" in got.err, got
    found = checks(run)
    (notify,) = [each for each in found if "post-domains-update of blog failed at 2" in each and each.endswith("the chat blog is down")]
    (collect,) = [each for each in found if "nginx-server-snippet of blog failed" in each]
    assert (found[notify][0], found[collect][0]) == ("warning", "problem")
    assert "router plugins:trigger nginx-server-snippet blog" in found[collect][1]
    monkeypatch.setattr(Output, "is_terminal", True)
    got = run("plugins:list")
    assert got.lines[0].split() == ["name", "version", "state"] and ["chat", "failing"] in [line.split() for line in got.lines]
    assert ["apps", "built-in"] in [line.split() for line in got.lines]
    monkeypatch.undo()
    monkeypatch.setenv("ROUTER_ROOT", str(router_root))

    chat(False)
    assert run("plugins:trigger", "nginx-server-snippet", "shop").code == 0
    assert len(failed(run)) == 2, "that another app's call went well says nothing of this one"
    assert run("plugins:trigger", "nginx-server-snippet", "blog").code == 0
    assert failed(run) == [("post-domains-update", "blog", "the chat blog is down")]
    assert run("domains:add", "blog", "x.test").code == 0
    assert failed(run) == [] and checks(run) == {}
    assert not list((router_root / "run/failed").iterdir())


def test_a_no_is_no_failure(run: Run, chat: Callable[[bool], None]) -> None:
    assert run("apps:create", "blog").code == 0
    chat(True)
    assert run("domains:add", "blog", "x.test").code == 6
    assert run("plugins:trigger", "endpoint-resolve", "blog").code == 0
    assert failed(run) == []


def test_an_app_that_is_gone_and_a_version_that_is_gone_are_forgotten(
    run: Run, chat: Callable[[bool], None], router_root: Path, tmp_path: Path
) -> None:
    assert run("apps:create", "blog").code == run("apps:create", "shop").code == 0
    chat(True)
    for app in ("blog", "shop", "nobody", "../../x", ".."):
        run("plugins:trigger", "post-domains-update", app, "add")
    assert {app for _, app, _ in failed(run)} == {"blog", "shop"}
    chat(False)
    assert run("apps:destroy", "shop", "--force").code == 0
    assert {app for _, app, _ in failed(run)} == {"blog"}
    (tmp_path / "chat/plugin.toml").write_text('[plugin]\nname = "chat"\nversion = "2"\n')
    assert run("plugins:update", "chat").code == 0
    assert failed(run) == [] and not list((router_root / "run/failed").iterdir())


def test_a_version_that_is_only_looked_at_leaves_nothing(run: Run, chat: Callable[[bool], None], router_root: Path, tmp_path: Path) -> None:
    assert run("apps:create", "blog").code == 0
    (tmp_path / "chat/nginx-server-snippet").write_text("#!/bin/sh\nexit 1\n")
    assert run("plugins:update", "chat").code == 11
    assert failed(run) == []
    (tmp_path / "chat/plugin.toml").write_text('[plugin]\nname = "other"\n')
    assert run("plugins:install", str(tmp_path / "chat")).code == 11
    assert not (router_root / "run/failed").exists()


def test_where_nothing_can_be_kept_the_failure_is_said_all_the_same(run: Run, chat: Callable[[bool], None], router_root: Path) -> None:
    assert run("apps:create", "blog").code == 0
    (router_root / "run/failed").write_text("in the way\n")
    chat(True)
    got = run("plugins:trigger", "post-domains-update", "blog", "add")
    assert got.code == 0 and "warning: plugin chat failed" in got.err
    chat(False)
    assert run("domains:add", "blog", "x.test").code == 0
    assert run("plugins:report", "chat").code == 0 and failed(run) == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"hook": 1}', json.dumps({"hook": "gone", "app": None, "time": "", "command": "", "problem": ""})]
)
def test_what_was_spoilt_is_not_shown(tmp_path: Path, text: str) -> None:
    (tmp_path / "chat:post-deploy:").write_text(text)
    assert Failures(tmp_path).of("chat", lambda app: True) == []


def test_what_a_hook_says_that_exits_with_0_is_said_by_its_name(run: Run, chat: Callable[[bool], None], router_root: Path) -> None:
    hook = router_root / "plugins/chat/nginx-server-snippet"
    hook.write_text("#!/bin/sh\nno_such_program\nexit 0\n")
    got = run("apps:create", "blog")
    assert got.code == 0
    (line,) = [line for line in got.talk if "no_such_program" in line]
    assert line.startswith("chat: ") and "not found" in line
