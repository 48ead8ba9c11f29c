"""A plugin comes, is switched, configured, updated and goes, and never gets in half or broken."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nginx_router import hookspecs
from nginx_router.errors import UsageProblem

from .conftest import Result

Run = Callable[..., Result]

HEADER = 'echo "add_header X-Tag \\"$CONFIG_WORD $1\\";"'
TOML = '[plugin.config]\nword = "hi"\nlevel = 3\nloud = false\ndays = ["mon"]\n'


def make(directory: Path, name: str | None = None, toml: str = TOML, **files: str) -> Path:
    """A plugin to be installed; `nginx_server_snippet="text of a shell script"`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "plugin.toml").write_text(f'[plugin]\nname = "{name or directory.name}"\n{toml}')
    for file, text in files.items():
        path = directory / ("plugin.py" if file == "plugin_py" else file.replace("__", "/").replace("_", "-"))
        path.parent.mkdir(exist_ok=True)
        path.write_text(text if file == "plugin_py" else f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    return directory


def git(directory: Path, *words: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | {"GIT_CONFIG_GLOBAL": "/dev/null", "HOME": str(directory)}
    argv = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *words]
    return subprocess.run(argv, cwd=directory, env=clean, check=True, capture_output=True, text=True).stdout.strip()


def done(result: Result) -> Result:
    assert result.code == 0, result
    return result


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make(tmp_path / "tag", nginx_server_snippet=HEADER)


@pytest.fixture
def blog(run: Run) -> None:
    for line in ("apps:create blog", "domains:add blog blog.test", "upstreams:add blog 127.0.0.1:5000"):
        done(run(*line.split()))


def config(run: Run, app: str = "blog") -> str:
    """The vhost of an app and all that is included there."""
    text = done(run("nginx:show-config", app)).out
    included = [line.split()[1].rstrip(";") for line in text.splitlines() if line.strip().startswith("include /") and "/objects/" in line]
    return text + "".join(Path(path).read_text() for path in included)


def about(run: Run, name: str) -> dict[str, object]:
    found: dict[str, object] = done(run("plugins:report", name, "--format", "json")).json()
    return found


# install


@pytest.mark.usefixtures("blog")
def test_install_copies_says_what_it_brings_and_asks_every_app(run: Run, source: Path, router_root: Path) -> None:
    got = done(run("plugins:install", str(source)))
    assert "plugin tag installed: hooks nginx-server-snippet, no commands" in got.err or "hooks nginx-server-snippet" in got.err
    assert 'X-Tag "hi blog"' in config(run)
    shutil.rmtree(source)
    assert (router_root / "plugins/tag/nginx-server-snippet").is_file(), "it does not need where it came from"
    assert sorted(p.name for p in (router_root / "plugins").iterdir()) == [".origins.json", "tag"], "nothing else is left"


@pytest.mark.usefixtures("blog")
def test_a_dry_run_shows_what_the_vhosts_would_be_and_installs_nothing(run: Run, source: Path, router_root: Path) -> None:
    before = config(run)
    got = done(run("plugins:install", str(source), "--dry-run"))
    assert "+    include" in got.out and "nginx-server-snippet of plugin tag" in got.out
    assert "would be installed" in got.err
    assert not (router_root / "plugins/tag").exists() and config(run) == before


@pytest.mark.usefixtures("blog")
def test_what_its_hooks_say_while_they_are_looked_at_is_said_once(run: Run, source: Path) -> None:
    (source / "nginx-server-snippet").write_text("#!/bin/sh\necho heard >&2\n")
    assert done(run("plugins:install", str(source))).err.count("tag: heard\n") == 1


@pytest.mark.usefixtures("blog")
def test_a_dry_run_says_what_would_be_refused(run: Run, source: Path, router_root: Path) -> None:
    (source / "nginx-server-snippet").write_text("#!/bin/sh\necho 'no_such on;'\n")
    got = run("plugins:install", str(source), "--dry-run")
    assert got.code == 8 and "plugin tag was not installed: app blog" in got.err and "no_such" in got.err, got
    assert not list((router_root / "plugins").iterdir())


@pytest.mark.parametrize("verb", ["install", "enable", "uninstall"])
def test_a_disk_that_is_full_on_the_way_takes_everything_back(
    run: Run, source: Path, router_root: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    plugins = router_root / "plugins"
    if verb != "install":
        done(run("plugins:install", str(source)))
    plugins.mkdir(exist_ok=True)
    (plugins / ".disabled").write_text("tag\n")
    before = {path.name: path.read_bytes() if path.is_file() else b"" for path in plugins.iterdir()}
    run("plugins:enable", "nobody")  # imports what is about to break

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(sys.modules["nginx_router_plugins.plugins.switching"], "write_atomic", full)
    got = run(f"plugins:{verb}", str(source) if verb == "install" else "tag")
    assert got.code == 1 and "No space left" in got.err, got
    assert {path.name: path.read_bytes() if path.is_file() else b"" for path in plugins.iterdir()} == before


def test_a_signal_that_comes_on_the_way_takes_everything_back(
    run: Run, source: Path, router_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("plugins:enable", "nobody")  # imports what is interrupted
    switching = sys.modules["nginx_router_plugins.plugins.switching"]
    take = switching._take

    def interrupted(steps: object) -> None:
        take(steps)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(switching, "_take", interrupted)
    assert run("plugins:install", str(source)).code == 143
    assert not list((router_root / "plugins").iterdir())


@pytest.mark.usefixtures("blog")
def test_what_cannot_be_taken_back_is_said(run: Run, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "nginx-server-snippet").write_text("#!/bin/sh\ncase $0 in */.new-*) ;; *) exit 1 ;; esac\n")
    run("plugins:enable", "nobody")  # imports what is about to break

    def full(steps: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.modules["nginx_router_plugins.plugins.switching"], "_take_back", full)
    got = run("plugins:install", str(source))
    assert got.code == 11 and "is installed, and could not be put back ([Errno 28] No space left" in got.err, got
    assert "failed nginx-server-snippet of 'blog'" in got.err and "router reconcile --all" in got.err


def test_by_force_a_plugin_is_switched_off_although_nothing_can_be_asked(run: Run, source: Path, router_root: Path) -> None:
    done(run("plugins:install", str(source)))
    done(run("apps:create", "blog"))
    (router_root / "router.toml").write_text("[proxy\n")
    got = run("plugins:disable", "tag")
    assert got.code == 2 and "router.toml" in got.err and not (router_root / "plugins/.disabled").exists(), got
    got = done(run("plugins:disable", "tag", "--force"))
    assert "warning: apps were not asked anew" in got.err and "reconcile --all" in got.err, got
    assert (router_root / "plugins/.disabled").read_text() == "tag\n"


def test_names_that_are_taken_are_refused(run: Run, source: Path, tmp_path: Path, router_root: Path) -> None:
    done(run("plugins:install", str(source)))
    again = run("plugins:install", str(source))
    assert again.code == 4 and "plugins:update tag" in again.err
    assert run("plugins:install", str(make(tmp_path / "apps"))).code == 4
    for name in ("nginx", "count", "locked", "Bad", "a/b", ".."):
        got = run("plugins:install", str(make(tmp_path / "x", name)))
        assert got.code in (4, 11) and not got.out, (name, got)
    assert sorted(p.name for p in (router_root / "plugins").iterdir()) == [".origins.json", "tag"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"toml": "timeout = -1\n"}, "timeout"),
        ({"pre_deplyo": "true"}, "pre-deploy"),
        ({"plugin_py": "1/0\n"}, "ZeroDivisionError"),
        ({"plugin_py": "import pluggy\n@pluggy.HookimplMarker('router')\ndef pre_deplyo(event): pass\n"}, "pre-deploy"),
        ({"toml": '[plugin.commands]\n"x:y" = {help = "h", run = "subcommands/y"}\n'}, "not an executable"),
        ({"toml": '[plugin.commands]\n"x:y" = {help = "h", run = "plugin.py:y"}\n', "plugin_py": ""}, "no function 'y'"),
        (
            {"toml": '[plugin.commands]\n"apps:list" = {help = "h", run = "subcommands/y"}\n', "subcommands__y": "true"},
            "belongs to plugin apps",
        ),
        ({"toml": '[plugin.properties.size]\ntype = "size"\n'}, "lacks"),
        ({"toml": '[plugin.properties.size]\ntype = "size"\ndefault = "huge"\nhelp = "h"\n'}, "huge"),
        ({"toml": "[plugin.config]\nsize = 1\n[plugin.properties.size]\n"}, "stands in"),
        ({"toml": 'version = "1"\nversion = "2"\n'}, 'plugin.toml:4: version = "2" says again what is said above'),
        ({"toml": "[plugin]\ntimeout = 3\n"}, "plugin.toml:3: [plugin] says again"),
        ({"toml": '[plugin.commands]\n"x:y" = {help = "h", help = "i"}\n'}, "plugin.toml:4: "),
        ({"toml": "timeout =\n"}, "plugin.toml:3: Invalid value: timeout ="),
        ({"toml": "hooks = [\n\n"}, "plugin.toml:4: Invalid value"),
    ],
)
def test_one_that_could_not_be_used_does_not_get_in(run: Run, tmp_path: Path, router_root: Path, files: dict[str, str], words: str) -> None:
    got = run("plugins:install", str(make(tmp_path / "bad", **files)))
    assert got.code == 11 and words in got.err, got
    assert list((router_root / "plugins").iterdir()) == []
    assert "bad" not in run("plugins:list").out


def test_what_is_no_plugin_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run("plugins:install", str(tmp_path / "empty")).code == 2
    assert run("plugins:install", str(tmp_path / "none")).code == 3
    for url in ("ext::sh -c true", "git://example.com/x", "http://example.com/x"):
        got = run("plugins:install", url)
        assert got.code == 2 and "https" in got.err, got


@pytest.mark.parametrize("link", ["/etc/passwd", "../../outside", "sub/../../outside"])
def test_links_that_lead_out_of_it_are_refused(run: Run, source: Path, link: str) -> None:
    (source / "inner").symlink_to("plugin.toml")
    (source / "link").symlink_to(link)
    got = run("plugins:install", str(source))
    assert got.code == 2 and "leads out" in got.err
    (source / "link").unlink()
    done(run("plugins:install", str(source)))


def test_a_plugin_made_under_another_umask_can_be_used_by_root(run: Run, source: Path, router_root: Path) -> None:
    for path in (source, source / "plugin.toml", source / "nginx-server-snippet"):
        path.chmod(0o777)
    done(run("plugins:install", str(source)))
    assert about(run, "tag")["problem"] is None
    assert not any(path.stat().st_mode & 0o022 for path in (router_root / "plugins").rglob("*"))


def test_a_fifo_or_the_root_itself_cannot_be_copied(run: Run, source: Path, router_root: Path) -> None:
    os.mkfifo(source / "pipe")
    assert run("plugins:install", str(source)).code == 2
    make(router_root, "whole")
    assert run("plugins:install", str(router_root)).code == 2


def test_what_a_killed_install_left_is_swept(run: Run, source: Path, router_root: Path) -> None:
    left = router_root / "plugins/.new-999999999-x"
    left.mkdir(parents=True)
    done(run("plugins:install", str(source)))
    assert not left.exists()


def test_what_is_wrong_is_said_of_the_place_that_the_user_gave(run: Run, source: Path, tmp_path: Path) -> None:
    hook = source / "nginx-server-snippet"
    hook.chmod(0o644)
    got = run("plugins:install", str(source))
    assert got.code == 11 and f"{hook} is not executable; chmod +x {hook}\n" in got.err, got
    hook.chmod(0o755)
    done(run("plugins:install", str(source)))
    (source / "plugin.py").write_text("\n1/0\n")
    got = run("plugins:update", "tag")
    assert got.code == 11 and f"({source}/plugin.py:2)" in got.err, got
    (source / "plugin.toml").write_text("[plugin\n")
    got = run("plugins:update", "tag")
    assert got.code == 11 and f"{source}/plugin.toml:1: " in got.err, got
    assert ".new-" not in got.err


def test_of_a_repository_the_file_in_it_is_named(run: Run, repository: Path) -> None:
    (repository / "nginx-server-snippet").chmod(0o644)
    git(repository, "commit", "-qam", "three")
    got = run("plugins:install", f"file://{repository}")
    assert got.code == 11 and "nginx-server-snippet is not executable; chmod +x nginx-server-snippet (in file://" in got.err, got
    assert ".new-" not in got.err


# git


@pytest.fixture
def repository(source: Path) -> Path:
    git(source, "init", "-q", "-b", "main", ".")
    git(source, "add", "-A")
    git(source, "commit", "-qm", "one")
    git(source, "tag", "v1")
    (source / "nginx-server-snippet").write_text('#!/bin/sh\necho "add_header X-Two $1;"\n')
    git(source, "commit", "-qam", "two")
    return source


@pytest.mark.usefixtures("blog")
@pytest.mark.parametrize("form", ["{}", "file://{}", "{}/.git"])
def test_a_ref_of_a_repository(run: Run, repository: Path, router_root: Path, form: str) -> None:
    done(run("plugins:install", form.format(repository), "--ref", "v1"))
    assert "X-Tag" in config(run)
    assert about(run, "tag")["revision"] == git(repository, "rev-parse", "v1")
    assert not (router_root / "plugins/tag/.git").exists()
    assert "as it was" in done(run("plugins:update", "tag")).err, "it stays at its ref"
    done(run("plugins:update", "tag", "--ref", "main"))
    assert "X-Two" in config(run)
    (repository / "nginx-server-snippet").write_text('#!/bin/sh\necho "add_header X-Three $1;"\n')
    git(repository, "commit", "-qam", "three")
    done(run("plugins:update"))
    assert "X-Three" in config(run)


def test_a_repository_or_ref_that_is_not_there(run: Run, repository: Path) -> None:
    got = run("plugins:install", f"file://{repository}", "--ref", "v9")
    assert got.code == 3 and "v9" in got.err
    assert run("plugins:install", f"file://{repository}", "--ref", "--upload-pack=x").code == 2
    got = run("plugins:install", f"file://{repository}-not")
    assert got.code == 3 and "clone" in got.err


def test_a_git_hook_may_install(run: Run, repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other.git"))
    done(run("plugins:install", f"file://{repository}"))


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


# looking


def test_the_true_order_with_priority_and_place(run: Run, source: Path, tmp_path: Path, router_root: Path) -> None:
    late, early = make(tmp_path / "a-late", toml="priority = 60\n", pre_deploy="true"), make(tmp_path / "z-early", toml="priority = 5\n")
    (early / "plugin.py").write_text("import pluggy\n@pluggy.HookimplMarker('router')\ndef pre_deploy(event): return 'x'\n")
    for each in (late, early):
        done(run("plugins:install", str(each)))
    plugins = router_root / "plugins"
    assert done(run("plugins:hooks", "pre-deploy")).lines == [
        f"5 z-early {plugins}/z-early/plugin.py",
        f"60 a-late {plugins}/a-late/pre-deploy",
    ]
    assert f"pre-deploy 60 a-late {plugins}/a-late/pre-deploy" in done(run("plugins:hooks")).lines
    found = done(run("plugins:hooks", "pre-deploy", "--format", "json")).json()[0]
    assert found["plugins"] == ["z-early", "a-late"] and found["calls"][0]["priority"] == 5


def test_list_has_the_promised_keys(run: Run, source: Path) -> None:
    done(run("plugins:install", str(source)))
    rows = {row["name"]: row for row in done(run("plugins:list", "--format", "json")).json()}
    assert {"name", "version", "description", "enabled", "built_in", "problem"} <= set(rows["tag"])
    assert rows["apps"]["built_in"] is True and rows["tag"]["built_in"] is False
    assert "tag" in done(run("plugins:list")).lines


def test_trigger_shows_answers_and_refusals(run: Run, tmp_path: Path) -> None:
    note = 'echo "$*"; cat'
    files = {"nginx_server_snippet": 'echo "# $1"', "pre_deploy": f"{note} >&2; echo no >&2; exit 1", "endpoint_resolve": note}
    done(run("plugins:install", str(make(tmp_path / "t", toml="", **files))))
    got = done(run("plugins:trigger", "nginx-server-snippet", "blog"))
    assert (got.out, got.err) == ("# blog\n", "t:\n")
    got = run("plugins:trigger", "pre-deploy", "blog", "web=10.0.0.1:80", "api=10.0.0.2:80")
    assert got.code == 6 and "no" in got.err
    got = done(run("plugins:trigger", "endpoint-resolve", "blog", "--event", '{"host": "db.internal"}', "--format", "json"))
    assert '"host": "db.internal"' in got.json()["answers"][0]["answer"]
    assert "no plugin" in done(run("plugins:trigger", "certificate-for", "blog")).err
    assert run("plugins:trigger", "pre-deplo").code == 3
    assert run("plugins:trigger", "nginx-server-snippet", "blog", "more").code == 2
    assert run("plugins:trigger", "endpoint-resolve", "blog", "--event", "[]").code == 2


@pytest.mark.parametrize("hook", [hook for hook in hookspecs.HOOKS.values()], ids=lambda hook: hook.name)
def test_what_trigger_makes_of_its_words_gives_them_back(hook: hookspecs.Hook) -> None:
    sample = {
        "APP": ["blog"],
        "ACTION": ["add"],
        "DOMAIN...": ["a.test", "b.test"],
        "PROCESS=ADDRESS...": ["web=1.2.3.4:80", "web=1.2.3.5:80"],
    }
    sample |= {
        "PROCESS": ["web"],
        "COUNT": ["3"],
        "ADDRESS...": ["1.2.3.4:80"],
        "OLD": ["a"],
        "NEW": ["b"],
        "GENERATION": ["7"],
        "APP...": ["x", "y"],
    }
    words = [word for part in hook.argv.split() for word in sample[part]]
    assert hook.arguments(hook.complete(hook.event(words))) == words
    assert hook.event([]) == {}
    if not hook.argv.endswith("..."):
        with pytest.raises(UsageProblem):
            hook.event([*words, "more"])


# commands, templates, rows


def test_a_command_of_a_plugin_gets_the_contracts_environment(run: Run, tmp_path: Path) -> None:
    commands = '[plugin.commands]\n"greet:all" = {help = "Greets", run = "plugin.py:greet", kind = "report", usage = "NAME"}\n'
    code = "def greet(router, name):\n    router.out.data(f'hello {name} from {router.paths.root.name}')\n"
    got = done(run("plugins:install", str(make(tmp_path / "greet", toml=commands, plugin_py=code))))
    assert "commands greet:all" in got.err
    assert done(run("greet:all", "you")).out == "hello you from r\n"
    done(run("plugins:disable", "greet"))
    assert run("greet:all", "you").code == 2


@pytest.mark.usefixtures("blog")
def test_templates_of_a_plugin(run: Run, tmp_path: Path, router_root: Path) -> None:
    source = make(tmp_path / "shapes", toml="", template_dirs="echo templates")
    (source / "templates").mkdir()
    (source / "templates/extra.j2").write_text("# extra for {{ app }}\n")
    done(run("plugins:install", str(source)))
    shipped = Path(__file__).parents[2] / "templates/vhost.conf.j2"
    (router_root / "apps/blog/nginx.conf.j2").write_text("{% include 'extra.j2' %}\n" + shipped.read_text())
    done(run("reconcile", "blog"))
    assert "# extra for blog" in config(run)
    shutil.rmtree(router_root / "plugins/shapes/templates")
    got = run("domains:add", "blog", "x.test")
    assert got.code == 11 and "shapes" in got.err and "template-dirs" in got.err
    got = done(run("plugins:disable", "shapes"))
    assert "warning: app blog stays as it was" in got.err and "extra.j2" in got.err, "it was wrong with the plugin too"
    assert "# extra for blog" in config(run), "and stays as it was"


@pytest.mark.usefixtures("blog")
def test_rows_of_a_report(run: Run, tmp_path: Path) -> None:
    done(run("plugins:install", str(make(tmp_path / "owner", toml="", report_rows='echo "team: web"; echo "on call: ann"'))))
    done(run("plugins:install", str(make(tmp_path / "zfails", toml="", report_rows="echo broken >&2; exit 1"))))
    got = done(run("apps:report", "blog", "--format", "json"))
    assert got.json()["owner"] == {"team": "web", "on call": "ann"} and got.json()["zfails"] is None
    assert "zfails" in got.err and "broken" in got.err
    assert "team=web" in done(run("apps:report", "blog")).out.replace("team: web", "team=web")
    got = done(run("apps:report", "blog", "--urls"))
    assert "zfails" not in got.err, "whoever wants one key does not wait for plugins"
    assert json.loads(done(run("apps:report", "blog", "--owner")).out)["team"] == "web"


def test_a_plugin_names_the_domain_of_a_new_app(run: Run, tmp_path: Path) -> None:
    answer = '[ "$1" = blog ] && echo blog.corp.test www.blog.corp.test || exit 1'
    done(run("plugins:install", str(make(tmp_path / "corp", toml="", app_hostname=answer))))
    done(run("domains:add-global", "example.com"))
    for app in ("blog", "shop"):
        done(run("apps:create", app))
    assert run("apps:report", "blog", "--domains").lines == ["blog.corp.test", "www.blog.corp.test"]
    assert run("apps:report", "shop", "--domains").lines == ["shop.example.com"]


# new


@pytest.mark.parametrize(("lang", "test"), [("sh", ["./test.sh"]), ("python", [sys.executable, "test_plugin.py"])])
def test_a_new_plugin_works_and_its_test_passes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lang: str, test: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    directory = Path(done(run("plugins:new", "my-first", "--lang", lang)).out.strip())
    assert directory == tmp_path / "my-first" and (directory / "README.md").is_file()
    assert not [
        p
        for p in directory.rglob("*")
        if p.is_file() and "__" in p.read_text().replace("__name__", "").replace("__main__", "").replace("__file__", "")
    ]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    programs = [path for path in directory.rglob("*") if path.is_file() and path.read_text().startswith("#!")]
    assert all(path.stat().st_mode & 0o777 == 0o755 for path in programs) and len(programs) == (3 if lang == "sh" else 0)
    assert all("\nset -eu\n" in path.read_text() for path in programs)
    passed = subprocess.run(test, cwd=directory, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert passed.returncode == 0, passed.stderr
    assert lang != "sh" or passed.stdout + passed.stderr == "", "a test that has nothing to say says nothing"
    source = next(path for path in (directory / "nginx-server-snippet", directory / "plugin.py") if path.is_file())
    source.write_text(source.read_text().replace("X-My-First", "X-Other"))
    failed = subprocess.run(test, cwd=directory, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert failed.returncode != 0 and "X-Other" in failed.stdout + failed.stderr, "its test tests it"
    if lang == "sh":
        source.write_text("#!/bin/sh\nset -eu\necho no_such >&2; false\n")
        failed = subprocess.run(test, cwd=directory, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert failed.returncode != 0 and "no_such" in failed.stderr, "and shows what router said"
    assert run("plugins:new", "my-first").code == 4
    assert run("plugins:new", "apps").code == 4
    assert run("plugins:new", "../x").code == 2
    assert run("plugins:new", "x", "--lang", "cobol").code == 2
