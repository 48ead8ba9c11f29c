"""Which plugins there are, and what their files say: one that is broken is named, and the others work."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nginx_router import discovery
from nginx_router.errors import PluginBroken

from .plugged import HOOKIMPL, blog, world

__all__ = ["world"]  # a fixture


# broken plugins


BROKEN_CODE = {
    "syntax": ("def broken(:\n", "SyntaxError"),
    "raises": ("raise RuntimeError('no licence')\n", "RuntimeError: no licence"),
    "exits": ("raise SystemExit(3)\n", "SystemExit: 3"),
    "imports": ("import no_such_module_anywhere\n", "No module named 'no_such_module_anywhere'"),
    "typo": (HOOKIMPL + "@hookimpl\ndef pre_deplyo(event):\n    pass\n", "there is no hook 'pre-deplyo'; did you mean pre-deploy?"),
    "arguments": (HOOKIMPL + "@hookimpl\ndef pre_deploy(app, event):\n    pass\n", "'app'"),
    "wrapper": (HOOKIMPL + "@hookimpl(wrapper=True)\ndef pre_deploy(event):\n    return (yield)\n", "no wrapper"),
    "tryfirst": (HOOKIMPL + "@hookimpl(tryfirst=True)\ndef pre_deploy(event):\n    pass\n", "by its priority"),
}


@pytest.mark.parametrize("case", BROKEN_CODE)
def test_one_broken_plugin_py_is_named_once_and_the_others_work(world, case):
    code, words = BROKEN_CODE[case]
    world.add("bad", plugin_py=code, post_deploy="echo never")
    world.add("good", pre_deploy="echo good", post_deploy="echo told")
    opened = world.plugins()
    opened.gate("pre-deploy", blog())
    opened.notify("post-deploy", blog())
    warning, *rest = world.said
    assert warning.startswith("warning: plugin bad is broken and left out: ")
    assert words in warning
    assert rest == ["good", "told"]
    assert words in opened.broken()["bad"]


BROKEN_TOML = [
    ('[plugin]\nname = "bad"\nname = "bad"\n', "plugin.toml"),
    ("[plugin]\n", "name is missing"),
    ("plugin = 1\n", "plugin is not a table"),
    ('[plugin]\nname = "Bad Name"\n', "a-z 0-9"),
    ('[plugin]\nname = "bad"\ntimout = 3\n', "no key 'timout'; did you mean timeout?"),
    ('[plugin]\nname = "bad"\ntimeout = "3"\n', "timeout is not a whole number or a number"),
    ('[plugin]\nname = "bad"\ntimeout = 0\n', "timeout 0"),
    ('[plugin]\nname = "bad"\npriority = 100\n', "priority 100 is not from 0 to 99"),
    ('[plugin]\nname = "bad"\npriority = true\n', "priority is not a whole number"),
    ('[plugin]\nname = "bad"\napi = 2\n', "needs version 2 of the hooks"),
    ('[plugin]\nname = "bad"\nhooks = ["pre-deplyo"]\n', "did you mean pre-deploy?"),
    ('[plugin]\nname = "bad"\nhooks = "pre-deploy"\n', "hooks is not a list"),
    ('[plugin]\nname = "bad"\n[plugin.commands]\n"a b" = {run = "x"}\n', "not a command"),
    ('[plugin]\nname = "bad"\n[plugin.commands]\n"a:b" = "x"\n', "needs {help"),
    ('[plugin]\nname = "bad"\n[plugin.commands]\n"a:b" = {help = "x"}\n', "run = ''"),
    ('[plugin]\nname = "bad"\n[plugin.commands]\n"a:b" = {run = "../x"}\n', "neither FILE.py:FUNCTION"),
    ('[plugin]\nname = "bad"\n[plugin.commands]\n"a:b" = {run = "x", kind = "chnage"}\n', "kind is change or report"),
]


@pytest.mark.parametrize(("toml", "words"), BROKEN_TOML)
def test_one_broken_plugin_toml_is_named_and_the_others_work(world, toml, words):
    (world.add("bad") / "plugin.toml").write_text(toml)
    world.add("good", '[plugin.commands]\n"good:day" = {help = "Greet", run = "subcommands/day"}\n')
    opened = world.plugins()
    assert list(opened.commands()) == ["good:day"]
    assert words in opened.broken()["bad"]


def test_keys_of_the_author_are_allowed(world):
    world.add("a", 'authors = ["Ann"]\nlicense = "MIT"\nhomepage = "https://a.example.com"\n')
    assert world.plugins().broken(all=True) == {}


def test_a_directory_without_plugin_toml_is_named(world):
    (world.root / "plugins/empty").mkdir()
    (world.root / "plugins/.git").mkdir()
    (world.root / "plugins/README").touch()
    assert list(world.plugins().broken()) == ["empty"]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("pre-domain-update", "pre-domains-update"),
        ("pre_deploy", "pre-deploy"),
        ("post-deploy.sh", "post-deploy"),
        ("nginx-server-snippets", "nginx-server-snippet"),
        ("endpoint-retired", "endpoints-retired"),
    ],
)
def test_an_executable_that_is_almost_a_hook_makes_its_plugin_broken(world, name, near):
    directory = world.add("bad", pre_deploy="exit 1")
    shutil.copy(directory / "pre-deploy", directory / name)
    opened = world.plugins()
    opened.notify("post-create", blog())  # any hook: it would never be called itself
    assert f"there is no hook '{name}'; did you mean {near}?" in world.said[0]
    opened.gate("pre-deploy", blog())


def test_other_executables_are_nobodys_business(world):
    directory = world.add("a", post_deploy="./helper-script")
    for name in ("helper-script", "install", "pre-deploy~"):
        (directory / name).write_text("#!/bin/sh\necho helped\n")
        (directory / name).chmod(0o755)
    (directory / "pre-flight.md").write_text("notes\n")
    opened = world.plugins()
    opened.notify("post-deploy", blog())
    assert world.said == ["helped"]
    assert opened.broken(all=True) == {}


def test_a_hook_that_is_not_executable_makes_its_plugin_broken(world):
    directory = world.add("a", post_deploy="true")
    (directory / "post-deploy").chmod(0o644)
    world.plugins().notify("post-deploy", blog())
    assert f"{directory}/post-deploy is not executable; chmod +x" in world.said[0]


def test_a_broken_plugin_that_is_known_to_bring_a_snippet_stops_the_change(world):
    world.add("access", nginx_server_snippet="echo 'deny all;'", plugin_py="raise RuntimeError('oops')\n")
    opened = world.plugins()
    opened.gate("pre-deploy", blog())
    with pytest.raises(PluginBroken, match="plugin access is broken, and nginx-server-snippet of 'blog' needs it: RuntimeError: oops"):
        opened.collect("nginx-server-snippet", blog())
    assert opened.has("nginx-server-snippet")  # who asks before calling must not pass it over
    assert not opened.has("report-rows")
    assert opened.collect("report-rows", blog()) == []


def test_a_broken_runner_is_not_no_runner(world):
    world.add("runner", "priority = 500\n", scale="true", stop="true")
    opened = world.plugins()
    assert opened.has("scale")
    with pytest.raises(PluginBroken, match="priority 500"):
        opened.run("scale", blog(process="web", count=1))
    assert not opened.has("stop")
    assert opened.run("stop", blog(endpoints=["10.0.0.1:80"])) is None


def test_names_and_commands_are_taken_by_who_comes_first(world):
    commands = '[plugin.commands]\n"apps:list" = {help = "List", run = "plugin.py:list"}\n'
    world.add("apps", commands, parent=world.built_in)
    world.add("apps", post_deploy="echo impostor")
    world.add("other", commands)
    opened = world.plugins()
    assert opened.commands()["apps:list"].plugin == "apps"
    assert "the name 'apps' is taken" in opened.broken()["apps (second)"]
    assert "the command apps:list belongs to plugin apps" in opened.broken()["other"]
    opened.notify("post-deploy", blog())
    assert "impostor" not in world.said


def test_switched_off(world):
    world.add("a", post_deploy="echo a")
    world.add("b", post_deploy="echo b")
    (world.add("c") / "plugin.toml").write_text("not toml")
    (world.root / "plugins/.disabled").write_text("a\nc\n")
    opened = world.plugins()
    opened.notify("post-deploy", blog())
    assert world.said == ["b"]
    assert opened.broken(all=True) == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root must not run what others may write")
@pytest.mark.parametrize("what", [".", "..", "plugin.toml", "post-deploy", "lib/words.py"])
@pytest.mark.parametrize("how", ["g+w", "o+w", "owner"])
def test_root_runs_nothing_that_others_may_write(world, what, how):
    directory = world.add("a", post_deploy="echo run")
    (directory / "lib").mkdir()
    (directory / "lib/words.py").touch()
    path = directory / what
    if how == "owner":
        os.chown(path, 65534, -1)
    else:
        path.chmod(path.stat().st_mode | (0o020 if how == "g+w" else 0o002))
    opened = world.plugins()
    opened.notify("post-deploy", blog())
    assert len(world.said) == 1
    assert "plugin a is broken and left out" in world.said[0]
    assert ("belongs to uid 65534" if how == "owner" else "can be written by others; chmod go-w") in world.said[0]


def test_others_than_root_run_what_they_like(tmp_path):
    (tmp_path / "open").touch()
    (tmp_path / "open").chmod(0o666)
    plugin = discovery.Plugin("a", tmp_path)
    discovery.refuse_foreign(plugin, euid=1000)
    with pytest.raises(discovery.Unusable):
        discovery.refuse_foreign(plugin, euid=0)


# laziness


def test_commands_come_from_plugin_toml_alone(world):
    world.add(
        "apps",
        'hooks = []\n[plugin.commands]\n"apps:create" = {help = "Create", run = "plugin.py:create", kind = "change", usage = "APP"}\n'
        '"apps:hello" = {help = "Greet", run = "subcommands/hello"}\n',
        plugin_py="def create(router):\n    return 'created'\n",
    )
    program = (
        "import sys; from pathlib import Path; from nginx_router.plugins import Plugins; from nginx_router.settings import Paths\n"
        f"p = Plugins(Paths(Path({str(world.root)!r})), print, dict, built_in=Path({str(world.built_in)!r}))\n"
        "assert p.commands()['apps:create'].help == 'Create'\n"
        "print([m for m in ('pluggy', 'importlib.metadata', 'nginx_router_plugins.apps.plugin', 'typer') if m in sys.modules])\n"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
    opened = world.plugins()
    command = opened.commands()["apps:create"]
    assert (command.plugin, command.kind, command.usage, command.is_python) == ("apps", "change", "APP", True)
    assert not opened.commands()["apps:hello"].is_python
    assert opened.function(command)(None) == "created"


def test_a_plugin_without_the_hook_is_not_imported_for_it(world):
    world.add("a", "hooks = []\n", plugin_py="raise RuntimeError('imported')\n")
    world.add("b", 'hooks = ["post-deploy"]\n', plugin_py="raise RuntimeError('imported')\n")
    opened = world.plugins()
    opened.gate("pre-deploy", blog())
    assert world.said == []
    opened.notify("post-deploy", blog())
    assert len(world.said) == 1
    assert "plugin b is broken" in world.said[0]


def test_a_command_that_cannot_be_had_names_its_plugin(world):
    toml = '[plugin.commands]\n"a:gone" = {help = "x", run = "plugin.py:gone"}\n"a:bad" = {help = "x", run = "bad.py:bad"}\n'
    directory = world.add("a", toml + '"a:run" = {help = "x", run = "subcommands/run"}\n', plugin_py="x = 1\n")
    (directory / "bad.py").write_text("\n\n1 / 0\n")
    opened = world.plugins()
    commands = opened.commands()
    with pytest.raises(PluginBroken, match=r"plugin a: plugin\.py has no function 'gone'"):
        opened.function(commands["a:gone"])
    with pytest.raises(PluginBroken, match=r"plugin a: ZeroDivisionError: .*bad\.py:3"):
        opened.function(commands["a:bad"])
    with pytest.raises(PluginBroken, match="subcommands/run is not an executable file"):
        opened.executable(commands["a:run"])


def test_an_executable_command_gets_the_contracts_environment(world):
    directory = world.add("a", '[plugin.config]\nkey = "v"\n[plugin.commands]\n"a:run" = {help = "x", run = "subcommands/run"}\n')
    (directory / "subcommands").mkdir()
    (directory / "subcommands/run").write_text("#!/bin/sh\necho $ROUTER_PLUGIN $CONFIG_KEY\n")
    (directory / "subcommands/run").chmod(0o755)
    opened = world.plugins()
    path, env = opened.executable(opened.commands()["a:run"])
    assert subprocess.run([path], env=env, capture_output=True, text=True, check=True).stdout == "a v\n"
    assert "ROUTER_HOOK" not in env
    assert Path(env["ROUTER_PLUGIN_DATA"]).is_dir()
