"""The examples of docs/plugins.md are installed as they stand there, and do what the page says."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nginx_router.discovery import read
from nginx_router.hookspecs import HOOKS

from ..integration.conftest import ROUTER, backend, live, two_apps, unstarted  # noqa: F401 - fixtures

if TYPE_CHECKING:
    from ..integration.conftest import Live
    from ..integration.instances import Backend

PAGE = (Path(__file__).resolve().parents[2] / "docs/plugins.md").read_text()
EXAMPLES = {name: text for name, text in re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE, re.S)}
#: Example -> the command line that makes its files executable and installs it.
INSTALLS = {line.rpartition("/")[2]: line for line in re.findall(r"<!-- install -->\n```console\n\$ (.*?)\n```", PAGE)}


@pytest.fixture
def install(isolated: Path) -> Callable[[Live, str], None]:
    """Write the files of an example, as an editor does, and install it as the page says."""

    def write(root: Live, name: str) -> None:
        for path, text in EXAMPLES.items():
            if path.startswith(f"{name}/"):
                file = isolated / path
                file.parent.mkdir(exist_ok=True)
                file.write_text(text)
                file.chmod(0o644)
        environment = {**os.environ, "ROUTER_ROOT": str(root.paths.root), "PATH": f"{ROUTER.parent}:{os.environ['PATH']}"}
        done = subprocess.run(INSTALLS[name], shell=True, cwd=isolated, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    return write


@pytest.fixture
def chat() -> Iterator[tuple[str, list[Any]]]:
    """A chat's webhook, and what was posted there."""
    posted: list[Any] = []

    class Webhook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Webhook) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", posted
        server.shutdown()
        thread.join(10)


def test_no_example_is_longer_than_a_screenful() -> None:
    assert len(EXAMPLES) == 8
    for name in {path.partition("/")[0] for path in EXAMPLES}:
        files = {path: text for path, text in EXAMPLES.items() if path.startswith(f"{name}/")}
        assert sum(map(len, map(str.splitlines, files.values()))) < 15
        for path, text in files.items():
            assert text.startswith("#!") == (f"chmod +x {path} " in INSTALLS[name]), path
            assert not text.startswith("#!/bin/sh") or text.startswith("#!/bin/sh\nset -eu\n")


@pytest.mark.parametrize(("name", "header"), [("who", "x-who"), ("who-python", "x-python")])
def test_a_header_for_every_answer(
    two_apps: Live,  # noqa: F811 - a fixture
    install: Callable[[Live, str], None],
    name: str,
    header: str,
) -> None:
    assert header not in two_apps.get("blog.test").headers
    install(two_apps, name)
    assert [two_apps.get(f"{app}.test").headers[header] for app in ("blog", "shop")] == ["blog", "shop"]


@pytest.mark.skipif(shutil.which("perl") is None, reason="no perl on this machine")
def test_no_deploys_at_night(two_apps: Live, install: Callable[[Live, str], None], backend: Callable[[str], Backend]) -> None:  # noqa: F811 - fixtures
    install(two_apps, "office-hours")
    hour = time.localtime().tm_hour
    two_apps.done("plugins:set", "office-hours", "from", hour + 2)
    two_apps.done("plugins:set", "office-hours", "until", hour + 3)
    result = two_apps("apps:deploy", "blog", backend("new"))
    assert result.code == 6 and "office-hours" in result.err and f"from {hour + 2} to {hour + 3} o'clock" in result.err, result
    assert two_apps.get("blog.test").body == "blog"
    two_apps.done("plugins:set", "office-hours", "from", 0, "--app", "blog")
    two_apps.done("plugins:set", "office-hours", "until", 24, "--app", "blog")
    two_apps.done("apps:deploy", "blog", backend("day"))
    assert two_apps.get("blog.test").body == "day"
    assert two_apps("apps:deploy", "shop", backend("new")).code == 6


def test_deploys_are_told_to_a_chat(
    two_apps: Live,  # noqa: F811 - a fixture
    install: Callable[[Live, str], None],
    backend: Callable[[str], Backend],  # noqa: F811 - a fixture
    chat: tuple[str, list[Any]],
) -> None:
    url, posted = chat
    install(two_apps, "chat")
    two_apps.done("plugins:set", "chat", "url", url)
    new = backend("new")
    two_apps.done("apps:deploy", "blog", new)
    assert posted == [{"text": f"root deployed blog: {new}"}]
    two_apps.done("plugins:set", "chat", "url", "http://127.0.0.1:1/")
    result = two_apps.done("apps:deploy", "blog", backend("newer"))
    assert "warning: plugin chat" in result.err and two_apps.get("blog.test").body == "newer"


def test_the_plugin_toml_that_is_shown_is_one(tmp_path: Path) -> None:
    shown = re.search(r"## plugin.toml\n\n```toml\n(.*?)```", PAGE, re.S)
    assert shown
    (tmp_path / "plugin.toml").write_text(shown[1])
    tmp_path.chmod(0o755)
    plugin = read(tmp_path, package="only.to.be.read")
    assert set(plugin.keys) == {"account", "buffer"} and set(plugin.commands) == {"billing:invoice", "billing:export"}


def test_no_example_says_what_the_demo_says() -> None:
    demo = (Path(__file__).resolve().parents[2] / "script/demo_app.py").read_text()
    for header in re.findall(r"add_header (X-[A-Za-z-]+)", "".join(EXAMPLES.values())):
        assert header not in demo


def test_every_hook_and_command_that_is_named_exists() -> None:
    toml = (Path(__file__).resolve().parents[2] / "plugins/plugins/plugin.toml").read_text()
    for name in set(re.findall(r"plugins:([a-z]+)\b", PAGE)) - {"install|enable"}:
        assert f'"plugins:{name}"' in toml, name
    for hook in re.findall(r"`((?:pre|post|nginx|report|template|doctor)-[a-z-]+)`", PAGE):
        assert hook in HOOKS, hook
