"""The life of a plugin as nginx sees it: each step is served when its command ends, and where an app refuses, nothing changes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .conftest import until

if TYPE_CHECKING:
    from .conftest import Live

pytestmark = pytest.mark.timeout(120)


def tag(directory: Path, word: str) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "plugin.toml").write_text(f'[plugin]\nname = "tag"\n[plugin.config]\nword = "{word}"\n')
    (directory / "nginx-server-snippet").write_text('#!/bin/sh\necho "add_header X-Tag \\"$CONFIG_WORD\\";"\n')
    (directory / "nginx-server-snippet").chmod(0o755)
    return directory


def tags(live: Live, apps: Sequence[str] = ("blog", "shop")) -> list[str | None]:
    return [live.get(f"{app}.test").headers.get("x-tag") for app in apps]


def test_every_step_of_its_life_is_served_when_the_command_ends(two_apps: Live, isolated: Path) -> None:
    source = tag(isolated / "tag", "one")
    two_apps.done("plugins:install", source)
    assert tags(two_apps) == ["one", "one"]
    two_apps.done("plugins:set", "tag", "word", "own", "--app", "blog")
    assert tags(two_apps) == ["own", "one"]
    two_apps.done("plugins:set", "tag", "word", "host")
    assert tags(two_apps) == ["own", "host"]
    two_apps.done("plugins:disable", "tag")
    assert tags(two_apps) == [None, None]
    two_apps.done("plugins:enable", "tag")
    assert tags(two_apps) == ["own", "host"]
    two_apps.done("plugins:set", "tag", "word")
    tag(source, "two")
    two_apps.done("plugins:update", "tag")
    assert tags(two_apps) == ["own", "two"]
    assert two_apps.done("plugins:uninstall", "tag").err
    assert tags(two_apps) == [None, None]
    two_apps.serves_current()
    two_apps.is_consistent()


def test_one_reload_for_all_apps(two_apps: Live, isolated: Path) -> None:
    two_apps.done("plugins:install", tag(isolated / "tag", "one"))
    assert two_apps.journal()[-1]["reloads"] == 1 and two_apps.journal()[-1]["apps"] == ["blog", "shop"]


def bad(source: Path, script: str = 'echo "no_such $1;"') -> None:
    """Make what the plugin says of blog one that nginx, or nobody, can take."""
    text = f'#!/bin/sh\n[ $1 = blog ] && {{ {script}; exit; }}\necho "add_header X-Tag shop;"\n'
    (source / "nginx-server-snippet").write_text(text)


def installed(live: Live) -> dict[str, bytes]:
    """Every file below plugins/: copies that wait for their turn are to be gone again."""
    found = live.paths.plugins.rglob("*")
    return {str(path): path.read_bytes() for path in found if path.is_file() and "__pycache__" not in path.parts}


@contextlib.contextmanager
def nothing_changes(live: Live) -> Iterator[None]:
    """What happens meanwhile changes neither plugins nor apps, and every app can be changed afterwards."""
    before, served, reloads = installed(live), tags(live), sum(line["reloads"] for line in live.journal())
    with live.unchanged():
        yield
    assert installed(live) == before and tags(live) == served
    assert sum(line["reloads"] for line in live.journal()) == reloads, "nginx never saw it"
    assert live.journal()[-1]["result"] in ("failed", "refused")
    live.serves_current()
    number = len(live.journal())
    for app in ("blog", "shop"):
        live.done("domains:add", app, f"n{number}.{app}.test")
    assert tags(live) == served


REFUSALS = [
    ('echo "no_such $1;"', 8, 'nginx rejected nginx-server-snippet of plugin tag:1: [emerg] unknown directive "no_such"'),
    ("echo the licence ran out >&2; exit 1", 11, "failed nginx-server-snippet of 'blog': the licence ran out"),
    ("kill -9 $$", 11, "SIGKILL"),
]


@pytest.mark.parametrize(("script", "code", "said"), REFUSALS, ids=["rejected by nginx", "fails", "dies"])
def test_an_update_that_an_app_refuses_changes_nothing(two_apps: Live, isolated: Path, script: str, code: int, said: str) -> None:
    source = tag(isolated / "tag", "one")
    two_apps.done("plugins:install", source)
    bad(source, script)
    with nothing_changes(two_apps):
        result = two_apps("plugins:update", "tag")
    assert result.code == code and "plugin tag was not updated: " in result.err and "blog" in result.err and said in result.err, result
    tag(source, "two")
    two_apps.done("plugins:update", "tag")
    assert tags(two_apps) == ["two", "two"]


@pytest.mark.parametrize(("script", "code", "said"), REFUSALS[:2], ids=["rejected by nginx", "fails"])
def test_a_plugin_that_an_app_refuses_is_not_installed(two_apps: Live, isolated: Path, script: str, code: int, said: str) -> None:
    source = tag(isolated / "tag", "one")
    bad(source, script)
    with nothing_changes(two_apps):
        result = two_apps("plugins:install", source)
    assert result.code == code and "plugin tag was not installed: " in result.err and "blog" in result.err and said in result.err, result
    assert "tag" not in two_apps.done("plugins:list").out.split()


def test_a_plugin_that_an_app_refuses_stays_switched_off(two_apps: Live, isolated: Path) -> None:
    two_apps.done("plugins:install", tag(isolated / "tag", "one"))
    two_apps.done("plugins:disable", "tag")
    bad(two_apps.paths.plugins / "tag")
    with nothing_changes(two_apps):
        result = two_apps("plugins:enable", "tag")
    assert result.code == 8 and "plugin tag was not enabled: app blog" in result.err and "no_such" in result.err, result
    assert two_apps.done("plugins:report", "tag", "--state").out.strip() == "disabled"


def test_a_value_that_an_app_refuses_is_not_set(two_apps: Live, isolated: Path) -> None:
    two_apps.done("plugins:install", tag(isolated / "tag", "one"))
    two_apps.done("plugins:set", "tag", "word", "mine", "--app", "shop")
    with nothing_changes(two_apps):
        result = two_apps("plugins:set", "tag", "word", 'x"; no_such "')
    assert result.code == 8 and "app blog" in result.err and "no_such" in result.err, result
    with nothing_changes(two_apps):
        assert two_apps("plugins:set", "tag", "word", 'x"; no_such "', "--app", "blog").code == 8
    two_apps.done("plugins:set", "tag", "word", "host")
    assert tags(two_apps) == ["host", "mine"]


@pytest.mark.parametrize("verb", ["disable", "uninstall"])
def test_a_plugin_that_an_app_needs_stays(two_apps: Live, isolated: Path, verb: str) -> None:
    source = isolated / "shapes"
    (source / "shapes").mkdir(parents=True)
    (source / "plugin.toml").write_text('[plugin]\nname = "shapes"\n')
    (source / "template-dirs").write_text("#!/bin/sh\necho shapes\n")
    (source / "template-dirs").chmod(0o755)
    (source / "shapes/extra.j2").write_text("# shaped by a plugin\n")
    two_apps.done("plugins:install", source)
    shipped = (Path(__file__).parents[2] / "templates/vhost.conf.j2").read_text()
    two_apps.write("apps/blog/nginx.conf.j2", "{% include 'extra.j2' %}\n" + shipped)
    two_apps.done("reconcile", "blog")
    before = installed(two_apps)
    with two_apps.unchanged():
        result = two_apps(f"plugins:{verb}", "shapes")
    assert result.code == 7 and f"plugin shapes was not {verb}" in result.err and "extra.j2" in result.err, result
    assert installed(two_apps) == before
    result = two_apps.done(f"plugins:{verb}", "shapes", "--force")
    assert "warning: app blog stays as it was" in result.err and "extra.j2" in result.err, result
    assert [row["app"] for row in two_apps("status", "--format", "json").json["stale"]] == ["blog"]
    assert "# shaped by a plugin" in two_apps.done("nginx:show-config", "blog").out


def test_by_force_one_app_stays_as_it_was_and_is_named(two_apps: Live, isolated: Path) -> None:
    source = tag(isolated / "tag", "one")
    bad(source)
    result = two_apps.done("plugins:install", source, "--force")
    assert "warning: app blog stays as it was" in result.err and "no_such" in result.err, result
    assert tags(two_apps) == [None, "shop"]
    assert [row["app"] for row in two_apps("status", "--format", "json").json["stale"]] == ["blog"]
    two_apps.done("plugins:uninstall", "tag")
    two_apps.serves_current()


def test_an_app_that_was_wrong_before_is_named_and_holds_nothing_up(two_apps: Live, isolated: Path) -> None:
    two_apps.snippet("blog", "no_such_directive on;\n")
    source = tag(isolated / "tag", "one")
    result = two_apps.done("plugins:install", source)
    assert "warning: app blog stays as it was" in result.err and "no_such_directive" in result.err, result
    assert tags(two_apps) == [None, "one"]
    two_apps.done("plugins:set", "tag", "word", "host")
    assert tags(two_apps) == [None, "host"]
    (two_apps.paths.app("blog") / "nginx.conf.d/own.conf").unlink()
    two_apps.done("reconcile")
    assert tags(two_apps) == ["host", "host"]
    two_apps.snippet("blog", "nobody_took_this_up on;\n")
    result = two_apps.done("plugins:set", "tag", "word", "again")
    assert "warning: app blog stays as it was" in result.err and "nobody_took_this_up" in result.err, result
    assert tags(two_apps) == ["host", "again"]


def test_an_update_that_fails_as_the_old_version_did_is_no_update(two_apps: Live, isolated: Path) -> None:
    source = tag(isolated / "tag", "one")
    bad(source)
    two_apps.done("plugins:install", source, "--force")
    bad(source, 'echo "neither_nor;"')
    before = installed(two_apps)
    result = two_apps("plugins:update", "tag")
    assert result.code == 8 and "neither_nor" in result.err, result
    assert installed(two_apps) == before
    tag(source, "two")
    two_apps.done("plugins:update", "tag")
    assert tags(two_apps) == ["two", "two"]
    two_apps.serves_current()


def test_of_several_the_others_are_updated(two_apps: Live, isolated: Path) -> None:
    sources = [tag(isolated / "tag", "one"), isolated / "other"]
    sources[1].mkdir()
    (sources[1] / "plugin.toml").write_text('[plugin]\nname = "other"\n')
    for source in sources:
        two_apps.done("plugins:install", source)
    (sources[1] / "plugin.toml").write_text('[plugin]\nname = "other"\nversion = "2"\n')
    bad(sources[0])
    result = two_apps("plugins:update")
    assert result.code == 8 and "plugin tag was not updated" in result.err and "plugin other 2 updated" in result.err, result
    assert tags(two_apps) == ["one", "one"]


#: Well while it is looked at, and another in its place.
TURNCOAT = '#!/bin/sh\ncase $0 in */.new-*) echo "add_header X-Tag looked;" ;; *) {} ;; esac\n'


def test_what_only_its_place_shows_is_taken_back(two_apps: Live, isolated: Path) -> None:
    source = tag(isolated / "tag", "one")
    snippet = source / "nginx-server-snippet"
    good = snippet.read_text()
    snippet.write_text(TURNCOAT.format('[ $1 != blog ] || echo "no_such;"'))
    with nothing_changes(two_apps):
        result = two_apps("plugins:install", source)
    assert result.code == 8 and "plugin tag was not installed: app blog" in result.err and "no_such" in result.err, result
    snippet.write_text(good)
    two_apps.done("plugins:install", source)
    snippet.write_text(TURNCOAT.format("exit 1"))
    with nothing_changes(two_apps):
        result = two_apps("plugins:update", "tag")
    assert result.code == 11 and "plugin tag was not updated: plugin tag failed" in result.err, result
    assert tags(two_apps) == ["one", "one"]


@pytest.mark.parametrize("verb", ["install", "update"])
def test_a_command_that_is_ended_takes_the_plugin_back(two_apps: Live, isolated: Path, verb: str) -> None:
    source = tag(isolated / "tag", "one")
    if verb == "update":
        two_apps.done("plugins:install", source)
    (source / "nginx-server-snippet").write_text(TURNCOAT.format("kill -TERM $PPID; sleep 20"))
    before = installed(two_apps)
    with two_apps.unchanged():
        result = two_apps(f"plugins:{verb}", "tag" if verb == "update" else source)
    assert result.code == 143 and result.seconds < 15, result
    assert installed(two_apps) == before


def test_a_command_that_is_killed_leaves_what_harms_nobody(two_apps: Live, isolated: Path) -> None:
    source = tag(isolated / "tag", "one")
    two_apps.done("plugins:install", source)
    snippet = source / "nginx-server-snippet"
    good = snippet.read_text()

    # while it is looked at: the old one is there, and the next one who comes removes the copy
    snippet.write_text('#!/bin/sh\ncase $0 in */.new-*) kill -9 $PPID ;; *) echo "add_header X-Tag broken;" ;; esac\n')
    before = (two_apps.paths.plugins / "tag/nginx-server-snippet").read_text()
    with two_apps.unchanged():
        assert two_apps("plugins:update", "tag").code == -9
    assert (two_apps.paths.plugins / "tag/nginx-server-snippet").read_text() == before
    assert list(two_apps.paths.plugins.glob(".new-*"))

    # in its place: every app was found to go along with it, and does at its next change
    snippet.write_text(TURNCOAT.format(f'[ -e {isolated}/calm ] || kill -9 $PPID; echo "add_header X-Tag two;"'))
    assert two_apps("plugins:update", "tag").code == -9
    (isolated / "calm").touch()
    assert tags(two_apps) == ["one", "one"]
    two_apps.done("domains:add", "blog", "next.blog.test")
    assert tags(two_apps) == ["two", "one"]
    two_apps.done("reconcile", "--all")
    assert tags(two_apps) == ["two", "two"]
    snippet.write_text(good)
    two_apps.done("plugins:update", "tag")
    assert not list(two_apps.paths.plugins.glob(".new-*"))
    two_apps.is_consistent()


def test_one_after_the_other(two_apps: Live, isolated: Path) -> None:
    source = tag(isolated / "tag", "one")
    snippet = source / "nginx-server-snippet"
    wait = f"touch {isolated}/asked; while [ ! -e {isolated}/go ]; do sleep 0.05; done"
    snippet.write_text(f'#!/bin/sh\n{wait}; echo "add_header X-Tag one;"\n')
    first = two_apps.begin("plugins:install", source)
    until((isolated / "asked").exists)
    result = two_apps("plugins:install", source, "--lock-timeout", "0.2")
    assert result.code == 5 and "plugins:install" in result.err, result
    (isolated / "go").touch()
    assert first.wait().code == 0
    assert tags(two_apps) == ["one", "one"]


def test_a_plugin_that_nobodys_vhost_depends_on_reloads_nothing(two_apps: Live, isolated: Path) -> None:
    source = isolated / "quiet"
    source.mkdir()
    (source / "plugin.toml").write_text('[plugin]\nname = "quiet"\n')
    (source / "post-deploy").write_text("#!/bin/sh\n")
    (source / "post-deploy").chmod(0o755)
    number = two_apps.generations.current_number()
    two_apps.write("apps/blog/DOMAINS", "blog.test\nedited.test\n")
    two_apps.done("plugins:install", source)
    assert two_apps.generations.current_number() == number, "and hand edits of apps are not taken up"


def test_installing_waits_for_who_holds_the_host(two_apps: Live, isolated: Path) -> None:
    with two_apps.locked():
        result = two_apps("plugins:install", tag(isolated / "tag", "one"), "--lock-timeout", "0.3")
        assert result.code == 5, result
        assert not (two_apps.paths.plugins / "tag").exists()
    two_apps.done("plugins:install", isolated / "tag")


def test_an_update_never_leaves_a_moment_without_the_plugin(two_apps: Live, isolated: Path) -> None:
    source = tag(isolated / "tag", "0")
    two_apps.done("plugins:install", source)
    watched = two_apps.paths.plugins / "tag/plugin.toml"
    for word in ("1", "2", "3"):
        tag(source, word)
        command = two_apps.begin("plugins:update", "tag")
        while command.process.poll() is None:
            assert watched.exists()
        assert command.wait().code == 0
    until(lambda: tags(two_apps) == ["3", "3"])


def test_rejected_by_a_hook_of_another_plugin_nothing_is_half_done(two_apps: Live, isolated: Path) -> None:
    two_apps.plugin("strict", pre_apply='[ "$2" = blog ] && { echo "blog is frozen" >&2; exit 1; } || exit 0')
    before = installed(two_apps)
    with two_apps.unchanged():
        result = two_apps("plugins:install", tag(isolated / "tag", "one"))
    assert result.code == 6 and "plugin tag was not installed: plugin strict refused" in result.err and "blog is frozen" in result.err, (
        result
    )
    assert installed(two_apps) == before
    two_apps.done("plugins:install", isolated / "tag", "--force")
    assert tags(two_apps) == [None, "one"]
