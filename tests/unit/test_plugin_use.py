"""What plugins bring is seen and used: hooks in their order, commands, templates, rows and names; and a new one works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nginx_router import hookspecs
from nginx_router.errors import UsageProblem

from .installing import Run, blog, config, done, make, source

__all__ = ["blog", "source"]  # fixtures


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


@pytest.mark.usefixtures("blog")
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


@pytest.mark.usefixtures("blog")
def test_trigger_is_for_apps_that_exist(run: Run, tmp_path: Path) -> None:
    note = f"echo called >>{tmp_path}/calls"
    hooks = ("pre_deploy", "nginx_server_snippet", "post_rename", "pre_create", "app_hostname", "post_destroy")
    done(run("plugins:install", str(make(tmp_path / "t", toml="", **dict.fromkeys(hooks, note)))))
    (tmp_path / "calls").unlink()
    for words in (
        ["pre-deploy", "blgo"],
        ["nginx-server-snippet", "../blog"],
        ["post-rename", "blog", "blgo"],
        ["pre-deploy", "--event", '{"app": 1}'],
    ):
        got = run("plugins:trigger", *words)
        assert got.code == 3 and "there is no app" in got.err, got
    assert not (tmp_path / "calls").exists()
    for hook in ("pre-create", "app-hostname", "post-destroy"):  # there is none yet, or not any more
        done(run("plugins:trigger", hook, "news"))
    done(run("plugins:trigger", "post-rename", "news", "blog"))
    assert len((tmp_path / "calls").read_text().split()) == 4
    assert run("plugins:trigger", "pre-create", "../news").code == 2


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
