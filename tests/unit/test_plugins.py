"""Hooks in sh, Python and perl: who is called, in which order, with what, and what a failure means."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from nginx_router import discovery, executables, plugins
from nginx_router.errors import Busy, NotFound, PluginBroken, Refused
from nginx_router.failures import Failure
from nginx_router.plugins import Plugins
from nginx_router.settings import Paths

PYTHON = f"#!{sys.executable}\n"
HOOKIMPL = "import pluggy\nhookimpl = pluggy.HookimplMarker('router')\n"


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A root without plugins; `add` makes one, `plugins()` opens them."""
    for name in [n for n in os.environ if n.startswith(("ROUTER_", "CONFIG_"))]:
        monkeypatch.delenv(name)
    root, built_in = tmp_path / "root", tmp_path / "built-in"
    (root / "plugins").mkdir(parents=True)
    built_in.mkdir()
    said: list[str] = []
    settings: dict[str, dict[str, object]] = {}

    def add(name, toml="", *, parent=None, **files):
        directory = (parent or root / "plugins") / name
        directory.mkdir()
        (directory / "plugin.toml").write_text(f'[plugin]\nname = "{name}"\n{toml}')
        for file, text in files.items():
            path = directory / ("plugin.py" if file == "plugin_py" else file.replace("_", "-"))
            path.write_text(textwrap.dedent(text) if "\n" in text else f"#!/bin/sh\n{text}\n")
            path.chmod(0o755)
        return directory

    def open_plugins():
        return Plugins(Paths(root), said.append, lambda: settings, built_in=built_in)

    return SimpleNamespace(root=root, built_in=built_in, said=said, settings=settings, add=add, plugins=open_plugins)


def python(text):
    return PYTHON + textwrap.dedent(text) + "\n"


def blog(**keys):
    return {"app": "blog", **keys}


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


# the contract of executables


def test_arguments_stdin_and_environment_are_exactly_the_contract(world, monkeypatch):
    monkeypatch.setenv("CONFIG_LEAKED", "from an outer hook")
    world.add(
        "audit",
        '[plugin.config]\nlog-file = "/tmp/log"\nlevel = 3\nquiet = true\nkept = "yes"\n',
        pre_domains_update=python("""
            import json, os, sys
            data = os.environ["ROUTER_PLUGIN_DATA"]
            seen = {"argv": sys.argv, "stdin": sys.stdin.read(), "env": dict(os.environ), "mode": os.stat(data).st_mode & 0o777}
            seen["session"] = os.getsid(0) == os.getpid()
            json.dump(seen, open(os.path.join(data, "seen"), "w"))
        """),
    )
    world.settings["audit"] = {"level": 5, "new-key": "x"}
    sent = blog(action="add", domains=["a.com", "*.b.com"], command="domains:add blog a.com *.b.com", user="ann", uid=7, time="now")
    world.plugins().gate("pre-domains-update", sent)
    seen = json.loads((world.root / "data/audit/seen").read_text())
    assert seen["argv"] == [str(world.root / "plugins/audit/pre-domains-update"), "blog", "add", "a.com", "*.b.com"]
    assert seen["stdin"].endswith("}\n")
    assert json.loads(seen["stdin"]) == {"api": 1, "hook": "pre-domains-update", **sent}
    assert seen["mode"] == 0o700
    assert seen["session"]
    env = seen["env"]
    assert {k: v for k, v in env.items() if k.startswith(("ROUTER_", "CONFIG_"))} == {
        "ROUTER_API": "1",
        "ROUTER_HOOK": "pre-domains-update",
        "ROUTER_ROOT": str(world.root),
        "ROUTER_BIN": executables.router_bin(),
        "ROUTER_PLUGIN": "audit",
        "ROUTER_PLUGIN_DATA": str(world.root / "data/audit"),
        "ROUTER_INSIDE": "gate:blog",
        "CONFIG_LOG_FILE": "/tmp/log",
        "CONFIG_LEVEL": "5",
        "CONFIG_QUIET": "true",
        "CONFIG_KEPT": "yes",
        "CONFIG_NEW_KEY": "x",
    }
    assert env["PATH"] == os.environ["PATH"]


def test_order_is_priority_then_name_for_executables_and_python_alike(world):
    world.add("zeta", "priority = 10\n", nginx_server_snippet="echo zeta")
    world.add("beta", nginx_server_snippet="echo beta")
    world.add("alpha", plugin_py=HOOKIMPL + "@hookimpl\ndef nginx_server_snippet(event):\n    return 'alpha ' + event['app']\n")
    world.add("first", "priority = 99\n", nginx_server_snippet="echo last")
    world.add("built", "priority = 50\n", parent=world.built_in, nginx_server_snippet="echo built")
    opened = world.plugins()
    assert opened.order("nginx-server-snippet") == ["zeta", "alpha", "beta", "built", "first"]
    assert opened.collect("nginx-server-snippet", blog()) == [
        ("zeta", "zeta\n"),
        ("alpha", "alpha blog"),
        ("beta", "beta\n"),
        ("built", "built\n"),
        ("first", "last\n"),
    ]


def test_a_plugin_may_have_python_and_executables(world):
    world.add(
        "both",
        plugin_py=HOOKIMPL + "@hookimpl\ndef pre_deploy(event):\n    return 'python'\n",
        post_deploy="echo sh",
    )
    opened = world.plugins()
    opened.gate("pre-deploy", blog())
    opened.notify("post-deploy", blog())
    assert world.said == ["python", "sh"]


# gate


def test_a_gate_lets_through_and_its_lines_are_shown(world):
    world.add("a", pre_deploy="echo one; echo two; echo three >&2")
    world.plugins().gate("pre-deploy", blog())
    assert world.said == ["a: three", "one", "two"]


def test_a_veto_names_plugin_hook_app_and_the_last_words(world):
    world.add("a", pre_deploy="touch $ROUTER_PLUGIN_DATA/asked")
    world.add("b", pre_deploy="echo first >&2; echo 'no deploys on Friday' >&2; echo >&2; exit 3")
    world.add("c", pre_deploy="touch $ROUTER_PLUGIN_DATA/asked")
    with pytest.raises(Refused) as refused:
        world.plugins().gate("pre-deploy", blog())
    assert refused.value.message == "plugin b refused pre-deploy of 'blog': no deploys on Friday"
    assert refused.value.app == "blog"
    assert (world.root / "data/a/asked").exists()
    assert not (world.root / "data/c/asked").exists()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 7", "exit 7"),
        ("kill -9 $$", "killed by SIGKILL"),
        ("echo dying >&2; kill -SEGV $$", "killed by SIGSEGV: dying"),
        ("head -c 1048577 /dev/zero | tr '\\0' x", "more than 1048576 bytes"),
        ("printf '\\377\\376'", "UTF-8"),
        ("printf 'a\\000b'", "UTF-8"),
    ],
)
def test_a_gate_that_goes_wrong_refuses_and_a_collect_hook_is_broken(world, script, words):
    world.add("a", pre_deploy=script, nginx_server_snippet=script, post_deploy=script)
    opened = world.plugins()
    with pytest.raises(Refused, match=words):
        opened.gate("pre-deploy", blog())
    with pytest.raises(PluginBroken, match=words):
        opened.collect("nginx-server-snippet", blog())
    (warning,) = opened.notify("post-deploy", blog())
    assert words in warning
    assert world.said[-1] == warning


def test_an_answer_of_exactly_one_mebibyte_is_taken(world):
    world.add("a", nginx_server_snippet="head -c 1048576 /dev/zero | tr '\\0' x")
    ((_, text),) = world.plugins().collect("nginx-server-snippet", blog())
    assert len(text) == 1 << 20


def test_a_file_without_an_interpreter_line_cannot_be_run(world):
    directory = world.add("a", pre_deploy="exit 0")
    (directory / "pre-deploy").write_text("exit 0\n")
    with pytest.raises(Refused, match=r"cannot be run: Exec format error \(no #! line\?\)"):
        world.plugins().gate("pre-deploy", blog())


@pytest.mark.skipif(not shutil.which("perl"), reason="no perl on this host")
def test_perl(world):
    world.add(
        "p",
        nginx_server_snippet=f"#!{shutil.which('perl')}\n"
        + 'local $/; my $event = <STDIN>; print "# $ARGV[0] ", ($event =~ /"hook": "nginx-server-snippet"/ ? "ok" : "bad"), "\\n";\n',
        pre_deploy=f'#!{shutil.which("perl")}\ndie "not now\\n";\n',
    )
    opened = world.plugins()
    assert opened.collect("nginx-server-snippet", blog()) == [("p", "# blog ok\n")]
    with pytest.raises(Refused, match="not now"):
        opened.gate("pre-deploy", blog())


# time, processes and pipes


def test_a_hook_that_hangs_is_ended_with_its_children(world):
    world.add(
        "slow",
        "timeout = 0.4\n",
        pre_deploy="sleep 60 & echo $! >$ROUTER_PLUGIN_DATA/child; echo still waiting >&2; wait",
    )
    began = time.monotonic()
    with pytest.raises(Refused, match=r"no answer within 0\.4 s: still waiting"):
        world.plugins().gate("pre-deploy", blog())
    assert time.monotonic() - began < 2
    child = int((world.root / "data/slow/child").read_text())
    wait_until(lambda: not is_alive(child))


def test_what_ignores_term_is_killed_with_its_children(tmp_path):
    script = tmp_path / "hook"
    script.write_text("#!/bin/sh\ntrap '' TERM\nsleep 60 &\necho $$ $! >pids\nwhile :; do sleep 1; done\n")
    script.chmod(0o755)
    with pytest.raises(Failure) as failed:
        executables.run([str(script)], stdin=b"", env=os.environ, directory=tmp_path, timeout=0.3, grace=0.3)
    assert failed.value.crashed
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        wait_until(lambda pid=pid: not is_alive(pid))


def test_term_comes_first_so_that_a_hook_can_clean_up(tmp_path):
    script = tmp_path / "hook"
    script.write_text("#!/bin/sh\ntrap 'echo cleaned >trace; exit 0' TERM\nwhile :; do sleep 0.05; done\n")
    script.chmod(0o755)
    with pytest.raises(Failure, match="no answer within"):
        executables.run([str(script)], stdin=b"", env=os.environ, directory=tmp_path, timeout=0.3)
    assert (tmp_path / "trace").read_text() == "cleaned\n"


def test_an_interrupted_wait_leaves_no_process(tmp_path):
    script = tmp_path / "hook"
    script.write_text("#!/bin/sh\necho $$ >pid\nsleep 0.2\nkill -INT $PPID\nexec sleep 60\n")
    script.chmod(0o755)
    with pytest.raises(KeyboardInterrupt):
        executables.run([str(script)], stdin=b"", env=os.environ, directory=tmp_path, timeout=20)
    assert not is_alive(int((tmp_path / "pid").read_text()))


def test_a_runner_may_leave_instances_behind_that_hold_its_pipes(world):
    world.add(
        "runner",
        scale="sleep 60 & echo $! >$ROUTER_PLUGIN_DATA/child; echo 10.0.0.1:80",
    )
    began = time.monotonic()
    assert world.plugins().run("scale", blog(process="web", count=1)) == ("runner", "10.0.0.1:80\n")
    assert time.monotonic() - began < 2
    child = int((world.root / "data/runner/child").read_text())
    assert is_alive(child)
    os.kill(child, signal.SIGKILL)


def test_a_hook_need_not_read_its_stdin(world):
    world.add("deaf", nginx_server_snippet="exec <&-; sleep 0.1; echo '# fine'")
    world.add("early", nginx_server_snippet="echo '# early'")
    big = blog(command="x" * 3_000_000)
    assert world.plugins().collect("nginx-server-snippet", big) == [("deaf", "# fine\n"), ("early", "# early\n")]


def test_a_large_event_and_a_large_answer_do_not_wait_for_each_other(world):
    world.add("echo", nginx_server_snippet="exec cat")
    ((_, text),) = world.plugins().collect("nginx-server-snippet", blog(command="x" * 900_000))
    assert json.loads(text)["command"] == "x" * 900_000


# collect, first, run, notify


def test_collect_leaves_out_what_is_empty_and_fails_as_a_whole(world):
    world.add("a", nginx_server_snippet="echo '# a'")
    world.add("b", nginx_server_snippet="true")
    world.add("c", nginx_server_snippet="[ $1 = shop ] || exit 0; echo 'database is away' >&2; exit 1")
    opened = world.plugins()
    assert opened.collect("nginx-server-snippet", blog()) == [("a", "# a\n")]
    with pytest.raises(PluginBroken) as broken:
        opened.collect("nginx-server-snippet", {"app": "shop"})
    assert broken.value.message == "plugin c failed nginx-server-snippet of 'shop': database is away"


def test_first_goes_on_where_there_is_no_answer(world):
    world.add("a", nginx_app_template_source="true")
    world.add("b", nginx_app_template_source='[ "$1" = other ] && echo template')
    world.add("c", nginx_app_template_source="echo 'not mine' >&2; exit 1")
    world.add("d", plugin_py=HOOKIMPL + "@hookimpl\ndef nginx_app_template_source(event):\n    return None\n")
    world.add("e", nginx_app_template_source="echo from e")
    world.add("f", nginx_app_template_source="echo from f")
    assert world.plugins().first("nginx-app-template-source", blog()) == ("e", "from e\n")
    assert world.said == ["warning: plugin c has no answer to nginx-app-template-source of 'blog': not mine"]


def test_first_without_any_answer_is_none(world):
    world.add("a", certificate_for="exit 1")
    assert world.plugins().first("certificate-for", blog()) is None


def test_first_that_crashes_is_not_passed_over(world):
    world.add("a", certificate_for="kill -9 $$")
    world.add("b", certificate_for="echo wrong one")
    with pytest.raises(PluginBroken, match="plugin a failed certificate-for of 'blog': killed by SIGKILL"):
        world.plugins().first("certificate-for", blog())


def test_run_without_a_runner_is_none(world):
    world.add("a", post_deploy="true")
    opened = world.plugins()
    assert opened.run("scale", blog(process="web", count=3)) is None
    assert opened.run("stop", blog(endpoints=["10.0.0.1:80"])) is None
    assert not opened.has("scale")
    assert opened.has("post-deploy")


def test_the_first_runner_scales_and_its_failure_is_told(world):
    world.add("a", scale='[ "$3" -le 3 ] || { echo "no room for $3" >&2; exit 1; }; [ "$3" != 2 ] || kill -9 $$; echo 10.0.0.1:80')
    world.add("b", scale="touch $ROUTER_PLUGIN_DATA/asked")
    opened = world.plugins()
    assert opened.run("scale", blog(process="web", count=3)) == ("a", "10.0.0.1:80\n")
    with pytest.raises(Refused, match="plugin a failed scale of 'blog': no room for 4"):
        opened.run("scale", blog(process="web", count=4))
    with pytest.raises(PluginBroken, match="killed by SIGKILL"):
        opened.run("scale", blog(process="web", count=2))
    assert not (world.root / "data/b/asked").exists()


def test_a_failed_stop_is_a_warning_naming_what_still_runs(world):
    world.add("a", stop='echo "stopped $2"; [ $# = 2 ] && exit 0; echo "$3"; echo "cannot stop $3" >&2; exit 1')
    opened = world.plugins()
    assert opened.run("stop", blog(endpoints=["10.0.0.1:80"])) == ("a", "")
    # "stopped 10.0.0.1:80" holds that address as a word, but it is the line that counts
    assert opened.run("stop", blog(endpoints=["10.0.0.1:80", "10.0.0.2:80"])) == ("a", "10.0.0.2:80\n")
    assert world.said == ["warning: plugin a failed stop of 'blog': cannot stop 10.0.0.2:80; still running: 10.0.0.2:80"]


def test_a_stop_that_crashes_left_everything_running(world):
    world.add("a", "timeout = 0.2\n", stop="echo unix:/b; exec sleep 60")
    assert world.plugins().run("stop", blog(endpoints=["10.0.0.1:80", "unix:/b"])) == ("a", "10.0.0.1:80\nunix:/b\n")
    assert "still running: 10.0.0.1:80 unix:/b" in world.said[0]


def test_notify_tells_the_others_all_the_same(world):
    world.add("a", post_deploy="exit 4")
    world.add("b", plugin_py=HOOKIMPL + "@hookimpl\ndef post_deploy(event):\n    raise SystemExit('bye')\n")
    world.add("c", post_deploy="echo told")
    warnings = world.plugins().notify("post-deploy", blog())
    assert warnings[0] == "warning: plugin a failed post-deploy of 'blog': exit 4"
    assert warnings[1].startswith("warning: plugin b failed post-deploy of 'blog': SystemExit: bye (")
    assert world.said == [*warnings, "told"]


# Python plugins


def test_a_python_gate_refuses_by_raising(world):
    world.add(
        "friday",
        plugin_py=HOOKIMPL
        + "from nginx_router.errors import Refused\n@hookimpl\ndef pre_deploy(event):\n    raise Refused('not today', hint='ask Ann')\n",
    )
    with pytest.raises(Refused) as refused:
        world.plugins().gate("pre-deploy", blog())
    assert refused.value.message == "plugin friday refused pre-deploy of 'blog': not today"
    assert refused.value.hint == "ask Ann"


def test_a_python_hook_gets_its_own_copy_its_data_directory_and_its_configuration(world):
    code = HOOKIMPL + "@hookimpl\ndef pre_domains_update(event):\n    event['domains'].append('x.com')\n"
    code += "    event.data.joinpath('seen').write_text(f\"{event['domains']} {event.config['key']} {event.plugin}\")\n"
    world.add("a", '[plugin.config]\nkey = "1"\n', plugin_py=code)
    world.add("b", '[plugin.config]\nkey = "2"\n', plugin_py=code)
    event = blog(action="add", domains=["a.com"])
    world.plugins().gate("pre-domains-update", event)
    assert event["domains"] == ["a.com"]
    assert (world.root / "data/b/seen").read_text() == "['a.com', 'x.com'] 2 b"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return 1 / 0", "ZeroDivisionError: division by zero (PLUGIN/plugin.py:5)"),
        ("return True", "answered with bool, not with text or None"),
        ("return 'x' * (1 << 20) + 'y'", "answered with more than 1048576 bytes"),
        ("return '\\udc80'", "not UTF-8 text"),
        ("return '\\0'", "not UTF-8 text"),
    ],
)
def test_a_python_hook_that_goes_wrong(world, body, words):
    directory = world.add(
        "a",
        plugin_py=HOOKIMPL + f"@hookimpl\ndef pre_deploy(event):\n    {body}\n@hookimpl\ndef report_rows(event):\n    {body}\n",
    )
    opened = world.plugins()
    with pytest.raises(Refused) as refused:
        opened.gate("pre-deploy", blog())
    assert words.replace("PLUGIN", str(directory)) in refused.value.message
    with pytest.raises(PluginBroken):
        opened.collect("report-rows", blog())


def test_ctrl_c_in_a_python_hook_is_not_swallowed(world):
    world.add("a", plugin_py=HOOKIMPL + "@hookimpl\ndef pre_deploy(event):\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        world.plugins().gate("pre-deploy", blog())
    assert plugins.inside() is None


def test_ctrl_c_in_a_notify_hook_ends_that_hook_alone(world):
    world.add("a", plugin_py=HOOKIMPL + "@hookimpl\ndef post_deploy(event):\n    raise KeyboardInterrupt\n")
    assert world.plugins().notify("post-deploy", blog()) == ["warning: plugin a failed post-deploy of 'blog': interrupted"]
    assert plugins.inside() is None


def test_files_of_a_plugin_import_each_other(world):
    directory = world.add(
        "my-app", plugin_py=HOOKIMPL + "from .words import GREETING\n@hookimpl\ndef post_deploy(event):\n    return GREETING\n"
    )
    (directory / "words.py").write_text("GREETING = 'hello'\n")
    world.plugins().notify("post-deploy", blog())
    assert world.said == ["hello"]


def test_two_roots_may_have_a_plugin_of_one_name(world, tmp_path):
    world.add("a", plugin_py=HOOKIMPL + "@hookimpl\ndef post_deploy(event):\n    return 'first root'\n")
    other = tmp_path / "other"
    other.mkdir()
    world.add("a", parent=other, plugin_py=HOOKIMPL + "@hookimpl\ndef post_deploy(event):\n    return 'second root'\n")
    world.plugins().notify("post-deploy", blog())
    Plugins(Paths(tmp_path / "none"), world.said.append, dict, built_in=other).notify("post-deploy", blog())
    assert world.said == ["first root", "second root"]


def test_an_adapter_takes_exactly_one_argument_named_event(world):
    world.add("a", pre_deploy="true")
    opened = world.plugins()
    assert opened.has("pre-deploy")
    ((caller,),) = [c.get_hookimpls() for c in [opened._registry._manager.hook.pre_deploy]]
    assert caller.argnames == ("event",)
    assert caller.function.__code__.co_varnames[:1] == ("event",)


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


@pytest.mark.parametrize("end", ["exit 1", "kill -9 $$", "exec sleep 60"])
def test_what_a_runner_printed_before_it_failed_is_kept(world, end):
    world.add("runner", "timeout = 0.3\n", scale=f"echo 10.0.0.1:80; {end}")
    with pytest.raises((Refused, PluginBroken)) as failed:
        world.plugins().run("scale", blog(process="web", count=2))
    assert isinstance(failed.value.__cause__, Failure)
    assert failed.value.__cause__.out == "10.0.0.1:80\n"


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


# entry points


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed Python package with an entry point; gives its directory."""
    site = tmp_path / "site"
    about = site / "stranger-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[nginx_router]\nstranger = stranger_pkg\n")
    directory = site / "stranger_pkg"
    directory.mkdir()
    (directory / "__init__.py").write_text(HOOKIMPL + "@hookimpl\ndef post_deploy(event):\n    return 'stranger'\n")
    monkeypatch.syspath_prepend(str(site))
    yield directory
    for name in [name for name in sys.modules if name.partition(".")[0] == "stranger_pkg"]:
        del sys.modules[name]


def test_a_package_brings_hooks(world, package):
    world.add("a", post_deploy="echo a")
    opened = world.plugins()
    opened.notify("post-deploy", blog())
    assert world.said == ["a", "stranger"]
    assert opened.commands(all=True) == {}


def test_a_package_may_describe_itself(world, package):
    (package / "plugin.toml").write_text(
        '[plugin]\nname = "stranger"\npriority = 1\n[plugin.commands]\n"stranger:hi" = {help = "Hi", run = "talk.py:hi"}\n'
    )
    (package / "talk.py").write_text("def hi(router):\n    return 'hi'\n")
    world.add("a", post_deploy="echo a")
    opened = world.plugins()
    assert opened.commands() == {}
    assert opened.function(opened.commands(all=True)["stranger:hi"])(None) == "hi"
    opened.notify("post-deploy", blog())
    assert world.said == ["stranger", "a"]


def test_a_broken_package_is_named_and_the_others_work(world, package):
    (package / "__init__.py").write_text("raise RuntimeError('broken package')\n")
    world.add("a", post_deploy="echo a")
    opened = world.plugins()
    opened.notify("post-deploy", blog())
    assert world.said[0].startswith("warning: plugin stranger is broken and left out: ")
    assert "broken package" in world.said[0]
    assert world.said[1:] == ["a"]


# calling back


CALL_BACK = """
    import os, sys
    from nginx_router.errors import Busy
    from nginx_router.plugins import inside, refuse_inside
    print(inside())
    for app in ("blog", "shop", None):
        try:
            refuse_inside(app)
            print(app, "free")
        except Busy as why:
            print(app, why.exit_code)
"""


def test_what_a_hook_starts_knows_inside_of_what_it_is(world):
    body = python(CALL_BACK)
    world.add("a", pre_deploy=body, nginx_server_snippet=body, scale=body, post_deploy=body)
    opened = world.plugins()
    opened.gate("pre-deploy", blog())
    assert world.said == ["('gate', 'blog')", "blog 5", "shop free", "None free"]
    ((_, collected),) = opened.collect("nginx-server-snippet", {"app": None})
    assert collected.splitlines() == ["('collect', '')", "blog free", "shop free", "None 5"]
    assert opened.run("scale", blog(process="web", count=1))[1].startswith("('run', 'blog')\nblog 5\n")
    world.said.clear()
    opened.notify("post-deploy", blog())
    assert world.said == ["None", "blog free", "shop free", "None free"]
    assert plugins.inside() is None


def test_a_hook_within_a_hook_remembers_both(world, monkeypatch):
    monkeypatch.setenv("ROUTER_INSIDE", "gate:shop")
    world.add("a", pre_deploy=python(CALL_BACK), post_deploy=python(CALL_BACK))
    opened = world.plugins()
    opened.gate("pre-deploy", blog())
    assert world.said == ["('gate', 'blog')", "blog 5", "shop 5", "None free"]
    world.said.clear()
    opened.notify("post-deploy", blog())  # shop's change still waits for us
    assert world.said == ["('gate', 'shop')", "blog free", "shop 5", "None free"]


def test_a_python_hook_is_inside_too(world):
    world.add(
        "a",
        plugin_py=HOOKIMPL
        + "from nginx_router.plugins import refuse_inside\n@hookimpl\ndef pre_deploy(event):\n    refuse_inside(event['app'])\n",
    )
    with pytest.raises(Refused, match="called from a gate hook"):
        world.plugins().gate("pre-deploy", blog())
    plugins.refuse_inside("blog")
    with pytest.raises(Busy), pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROUTER_INSIDE", "run:blog")
        plugins.refuse_inside("blog")


def test_router_bin_is_this_router(tmp_path, monkeypatch):
    program = tmp_path / "bin/router"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    link = tmp_path / "router"
    link.symlink_to(program)
    monkeypatch.setattr(sys, "argv", [str(link), "apps:list"])
    assert executables.router_bin() == str(program)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest"])
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert executables.router_bin() == str(link)  # installed beside the interpreter
    monkeypatch.setattr(sys, "executable", str(tmp_path / "elsewhere/python"))
    monkeypatch.setenv("PATH", str(program.parent))
    assert executables.router_bin() == str(program)
    monkeypatch.setenv("PATH", "/nowhere")
    assert executables.router_bin() == f"{tmp_path}/elsewhere/python -m nginx_router"


def test_an_unknown_hook_names_the_nearest(world):
    with pytest.raises(NotFound, match="did you mean pre-deploy"):
        world.plugins().has("pre-deploi")
