"""Hooks in sh and Python: who is called, in which order, and what a failure means."""

import contextlib
import os

import pytest

from nginx_router import plugins
from nginx_router.errors import Busy, NotFound, PluginBroken, Refused
from nginx_router.failures import Failure
from nginx_router.plugins import Plugins
from nginx_router.settings import Paths

from .plugged import HOOKIMPL, blog, python, world

__all__ = ["world"]  # a fixture


# order


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


@pytest.mark.parametrize("end", ["exit 1", "kill -9 $$", "exec sleep 60"])
def test_what_a_runner_printed_before_it_failed_is_kept(world, end):
    world.add("runner", "timeout = 0.3\n", scale=f"echo 10.0.0.1:80; {end}")
    with pytest.raises((Refused, PluginBroken)) as failed:
        world.plugins().run("scale", blog(process="web", count=2))
    assert isinstance(failed.value.__cause__, Failure)
    assert failed.value.__cause__.out == "10.0.0.1:80\n"


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


@pytest.mark.parametrize("end", ["return ''", "raise ValueError('no')"])
def test_what_a_python_hook_prints_is_never_the_commands_answer(world, capfd, end):
    hooks = {"gate": "pre_deploy", "collect": "report_rows", "first": "certificate_for", "run": "stop", "notify": "post_deploy"}
    bodies = "".join(
        f"@hookimpl\ndef {hook}(event):\n    print('printed {kind}')\n    subprocess.run(['echo', 'started {kind}'])\n    {end}\n"
        for kind, hook in hooks.items()
    )
    world.add("a", plugin_py=f"import subprocess\n{HOOKIMPL}print('imported')\n{bodies}")
    opened = world.plugins()
    print("answer", end="")  # stands in a buffer while hooks are called
    for kind, hook in hooks.items():
        with contextlib.suppress(Refused, PluginBroken):
            getattr(opened, kind)(hook.replace("_", "-"), blog(endpoints=[]))
    print(" and its end")
    printed = capfd.readouterr()
    assert printed.out == "answer and its end\n"
    words = [line for line in printed.err.splitlines() if line]
    assert sorted(words) == sorted(["imported", *(f"{how} {kind}" for how in ("printed", "started") for kind in hooks)])


def test_a_python_hook_may_print_where_stdout_is_closed(world):
    world.add("a", plugin_py=HOOKIMPL + "@hookimpl\ndef pre_deploy(event):\n    print('x')\n")
    answer = os.dup(1)
    os.close(1)
    try:
        world.plugins().gate("pre-deploy", blog())
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(1)
    finally:
        os.dup2(answer, 1)
        os.close(answer)


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


def test_timeout_is_for_executables_and_ends_no_python_code(world):
    world.add(
        "a",
        "timeout = 0.1\n",
        plugin_py=f"import time\n{HOOKIMPL}@hookimpl\ndef report_rows(event):\n    time.sleep(0.3)\n    return 'late'\n",
    )
    world.add("b", "timeout = 0.1\n", report_rows="exec sleep 60")
    opened = world.plugins()
    (late, ended) = opened.survey("report-rows", blog())
    assert late == ("a", "late") and ended[1].reason == "no answer within 0.1 s"


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


def test_an_unknown_hook_names_the_nearest(world):
    with pytest.raises(NotFound, match="did you mean pre-deploy"):
        world.plugins().has("pre-deploi")
