"""A plugin that is installed, from a directory or a repository, never gets in half or broken."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .installing import Run, about, blog, config, done, make, source

__all__ = ["blog", "source"]  # fixtures


def git(directory: Path, *words: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | {"GIT_CONFIG_GLOBAL": "/dev/null", "HOME": str(directory)}
    argv = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *words]
    return subprocess.run(argv, cwd=directory, env=clean, check=True, capture_output=True, text=True).stdout.strip()


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
