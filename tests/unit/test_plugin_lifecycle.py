"""A plugin that is there is updated, switched, configured and goes, and one that fails at it stays as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from .installing import TOML, Run, about, blog, config, done, make, source

__all__ = ["blog", "source"]  # fixtures


# update


@pytest.mark.usefixtures("blog")
def test_an_update_that_cannot_be_used_leaves_the_old_one(run: Run, source: Path) -> None:
    done(run("plugins:install", str(source)))
    make(source, "tag", pre_deplyo="true")
    assert run("plugins:update", "tag").code == 11
    (source / "pre-deplyo").unlink()
    make(source, "tagged")
    got = run("plugins:update", "tag")
    assert got.code == 11 and "tagged" in got.err
    make(source, "tag", "[plugin.config]\nlevel = 'deep'\n")
    done(run("plugins:set", "tag", "level", "4", "--app", "blog"))
    got = run("plugins:update", "tag")
    assert got.code == 2 and "apps/blog/app.toml" in got.err and "level" in got.err
    assert 'X-Tag "hi blog"' in config(run)


def test_all_are_updated_and_one_that_fails_is_named(run: Run, source: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other", pre_deploy="true")
    done(run("plugins:install", str(source)))
    done(run("plugins:install", str(other)))
    make(source, version := "tag", f'version = "2"\n{TOML}')
    shutil.rmtree(other)
    got = run("plugins:update")
    assert got.code == 3 and str(other) in got.err and version in got.err
    assert about(run, "tag")["version"] == "2" and about(run, "other")["problem"] is None


def test_one_that_was_put_there_by_hand_is_not_updated(run: Run, router_root: Path) -> None:
    make(router_root / "plugins/mine")
    got = run("plugins:update", "mine")
    assert got.code == 2 and "plugins:install" in got.err
    assert run("plugins:update", "nobody").code == 3
    assert run("plugins:update", "--ref", "v1").code == 2


def test_a_disabled_one_stays_disabled(run: Run, source: Path) -> None:
    done(run("plugins:install", str(source)))
    done(run("plugins:disable", "tag"))
    make(source, "tag", f'version = "2"\n{TOML}')
    got = done(run("plugins:update", "tag"))
    assert "plugin tag 2 updated, and still disabled: hooks nginx-server-snippet" in got.err, got
    found = about(run, "tag")
    assert (found["version"], found["enabled"]) == ("2", False)
    got = done(run("plugins:uninstall", "tag"))
    assert "plugin tag 2 uninstalled: hooks nginx-server-snippet" in got.err, got


# enable, disable, uninstall


@pytest.mark.usefixtures("blog")
def test_disable_and_enable_ask_every_app_anew(run: Run, source: Path) -> None:
    done(run("plugins:install", str(source)))
    done(run("plugins:disable", "tag"))
    assert "X-Tag" not in config(run)
    assert "disabled already" in done(run("plugins:disable", "tag")).err
    assert {p["name"]: p["enabled"] for p in run("plugins:list", "--format", "json").json() if not p["built_in"]} == {"tag": False}
    done(run("plugins:enable", "tag"))
    assert "X-Tag" in config(run)
    assert "enabled already" in done(run("plugins:enable", "tag")).err


@pytest.mark.usefixtures("blog")
def test_a_broken_one_can_be_disabled_and_not_enabled(run: Run, source: Path, router_root: Path) -> None:
    done(run("plugins:install", str(source)))
    (router_root / "plugins/tag/plugin.toml").write_text("[plugin\n")
    assert run("domains:add", "blog", "x.test").code == 11, "its snippet is missing"
    assert run("plugins:report", "tag", "--state").out == "broken\n"
    done(run("plugins:disable", "tag"))
    assert run("plugins:report", "tag", "--state").out == "disabled\n"
    done(run("domains:add", "blog", "x.test"))
    assert run("plugins:enable", "tag").code == 11
    assert "X-Tag" not in config(run)
    done(run("plugins:uninstall", "tag"))
    assert not (router_root / "plugins/tag").exists()


def test_the_built_in_ones_stay(run: Run) -> None:
    for verb in ("disable", "uninstall"):
        got = run(f"plugins:{verb}", "plugins")
        assert got.code == 2 and "built in" in got.err
    for verb in ("disable", "enable", "uninstall", "report"):
        got = run(f"plugins:{verb}", "aps")
        assert got.code == 3 and "apps" in got.err


@pytest.mark.usefixtures("blog")
def test_uninstall_keeps_data_and_settings(run: Run, source: Path, router_root: Path) -> None:
    done(run("plugins:install", str(source)))
    done(run("plugins:set", "tag", "word", "bye"))
    done(run("plugins:set", "tag", "level", "9", "--app", "blog"))
    (router_root / "data/tag/kept").write_text("x")
    done(run("plugins:uninstall", "tag"))
    assert "X-Tag" not in config(run) and not (router_root / "plugins/tag").exists()
    done(run("domains:add", "blog", "still.test"))  # its keys in router.toml and app.toml are nobody's slip
    done(run("plugins:install", str(source)))
    assert 'X-Tag "bye blog"' in config(run) and (router_root / "data/tag/kept").exists()


@pytest.mark.usefixtures("blog")
def test_settings_without_data_are_kept_too(run: Run, source: Path, router_root: Path) -> None:
    done(run("plugins:install", str(source)))
    done(run("plugins:set", "tag", "word", "bye"))
    shutil.rmtree(router_root / "data/tag", ignore_errors=True)
    done(run("plugins:uninstall", "tag"))
    done(run("domains:add", "blog", "still.test"))


@pytest.mark.usefixtures("blog")
def test_purge_leaves_nothing_of_it(run: Run, source: Path, router_root: Path) -> None:
    done(run("plugins:install", str(source)))
    done(run("plugins:set", "tag", "word", "bye"))
    done(run("plugins:set", "tag", "word", "ciao", "--app", "blog"))
    (router_root / "router.toml").write_text("# mine\n" + (router_root / "router.toml").read_text())
    done(run("plugins:uninstall", "tag", "--purge"))
    left = "".join(p.read_text(errors="replace") for d in ("apps", "data", "plugins") for p in (router_root / d).rglob("*") if p.is_file())
    assert "tag" not in left and not (router_root / "data/tag").exists()
    assert (router_root / "router.toml").read_text() == "# mine\n"


def test_a_link_put_there_by_hand_goes_and_what_it_points_to_stays(run: Run, source: Path, router_root: Path) -> None:
    (router_root / "plugins").mkdir()
    (router_root / "plugins/tag").symlink_to(source)
    done(run("plugins:uninstall", "tag"))
    assert (source / "plugin.toml").is_file() and not (router_root / "plugins/tag").is_symlink()


def test_each_of_them_leaves_a_journal_line(run: Run, source: Path, router_root: Path) -> None:
    for words in (("install", str(source)), ("disable", "tag"), ("enable", "tag"), ("uninstall", "tag")):
        done(run(f"plugins:{words[0]}", *words[1:]))
    lines = [json.loads(line) for line in (router_root / "journal.jsonl").read_text().splitlines()]
    assert [line["command"].split()[0] for line in lines] == [f"plugins:{verb}" for verb in ("install", "disable", "enable", "uninstall")]
    assert {line["result"] for line in lines} == {"done"}


# set


@pytest.mark.usefixtures("blog")
@pytest.mark.parametrize(
    ("key", "value", "written"),
    [
        ("word", "a b", 'word = "a b"'),
        ("level", "7", "level = 7"),
        ("loud", "on", "loud = true"),
        ("days", '["tue", "wed"]', 'days = ["tue", "wed"]'),
    ],
)
def test_a_value_has_the_type_of_its_default(run: Run, source: Path, router_root: Path, key: str, value: str, written: str) -> None:
    done(run("plugins:install", str(source)))
    done(run("plugins:set", "tag", key, value, "--app", "blog"))
    assert written in (router_root / "apps/blog/app.toml").read_text()
    assert f"{key} is" in done(run("plugins:set", "tag", key, value, "--app", "blog")).err
    done(run("plugins:set", "tag", key, "--app", "blog"))
    assert written not in (router_root / "apps/blog/app.toml").read_text()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("level", "deep"), 2, "whole number"),
        (("level", "true"), 2, "whole number"),
        (("loud", "1"), 2, "true or false"),
        (("days", "mon"), 2, "a list"),
        (("leve", "3"), 2, "level"),
        (("a.b", "3"), 2, "a.b"),
        (("level", "3", "--app", "nobody"), 3, "nobody"),
    ],
)
def test_a_value_or_key_that_it_does_not_take(
    run: Run, source: Path, router_root: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    done(run("plugins:install", str(source)))
    got = run("plugins:set", "tag", *words)
    assert got.code == code and said in got.err, got
    assert not (router_root / "router.toml").exists()


def test_set_names_plugins_that_are_not_there_or_have_no_keys(run: Run, tmp_path: Path, router_root: Path) -> None:
    assert run("plugins:set", "nobody", "a", "b").code == 3
    assert run("plugins:set", "apps", "a", "b").code == 2
    done(run("plugins:install", str(make(tmp_path / "plain", toml="", pre_deploy="true"))))
    done(run("plugins:set", "plain", "any-key", "any value"))
    assert about(run, "plain")["config"] == {"any-key": "any value"}


@pytest.mark.usefixtures("blog")
def test_the_app_counts_before_the_host_and_the_default_last(run: Run, source: Path) -> None:
    done(run("plugins:install", str(source)))
    done(run("apps:clone", "blog", "shop"))
    done(run("domains:add", "shop", "shop.test"))
    done(run("plugins:set", "tag", "word", "host"))
    assert 'X-Tag "host blog"' in config(run) and 'X-Tag "host shop"' in config(run, "shop"), "every app was asked anew"
    done(run("plugins:set", "tag", "word", "own", "--app", "blog"))
    assert 'X-Tag "own blog"' in config(run) and 'X-Tag "host shop"' in config(run, "shop")
    assert about(run, "tag")["apps"] == {"blog": {"word": "own"}}
    done(run("plugins:set", "tag", "word"))
    assert 'X-Tag "own blog"' in config(run) and 'X-Tag "hi shop"' in config(run, "shop")


@pytest.mark.usefixtures("blog")
def test_a_hand_edit_of_another_type_makes_its_app_stale_and_the_host_goes_on(run: Run, source: Path, router_root: Path) -> None:
    done(run("plugins:install", str(source)))
    done(run("apps:create", "shop"))
    (router_root / "apps/blog/app.toml").write_text("\n[tag]\nlevel = 'deep'\n")
    got = run("reconcile", "--all")
    assert got.code == 2 and "apps/blog/app.toml:3" in got.err and "whole number" in got.err, got
    (router_root / "apps/blog/app.toml").write_text("[tag]\nlevle = 3\n")
    got = run("reconcile", "blog")
    assert got.code == 2 and "level" in got.err
    (router_root / "apps/blog/app.toml").unlink()
    (router_root / "router.toml").write_text("[tag]\nlevel = 'deep'\n")
    done(run("apps:list"))
    got = run("domains:add", "blog", "x.test")
    assert got.code == 11 and "router.toml" in got.err and "tag" in got.err
    done(run("plugins:set", "tag", "level", "3"))
    done(run("domains:add", "blog", "x.test"))


@pytest.mark.usefixtures("blog")
def test_a_property_is_checked_and_may_be_a_directive(run: Run, tmp_path: Path) -> None:
    row = '[plugin.properties.buffer]\ntype = "size"\ndefault = "16k"\nhelp = "in memory"\ndirective = "client_body_buffer_size"\n'
    done(run("plugins:install", str(make(tmp_path / "buffers", toml=row))))
    assert "client_body_buffer_size 16k;" in config(run)
    assert run("plugins:set", "buffers", "buffer", "16x").code == 2
    done(run("plugins:set", "buffers", "buffer", "32k", "--app", "blog"))
    assert "client_body_buffer_size 32k;" in config(run)
    assert "buffers" in done(run("plugins:hooks", "nginx-server-snippet")).out
