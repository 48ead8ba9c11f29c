"""Access and error logs of an app: off, named, in JSON that is valid whatever was asked, and followed through a rotation."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .echoing import blog, instance, logged, seen, setting, status

if TYPE_CHECKING:
    from .conftest import Live

__all__ = ["blog", "instance"]  # fixtures

pytestmark = pytest.mark.timeout(90)


def test_logs_off_named_and_in_json(blog: Live) -> None:
    assert seen(blog, path="/before")
    assert len(logged(blog, "blog-access.log", "/before")) == 1
    setting(blog, "access-log-path", "off")
    assert seen(blog, path="/meanwhile")
    result = blog("nginx:access-logs", "blog")
    assert result.code == 3 and "the access log of blog is off" in result.err and "access-log-path default" in result.err
    setting(blog, "access-log-path", "blog.json")
    setting(blog, "access-log-format", "json")
    assert blog.get("blog.test", '/a"b?c=\\', **{"User-Agent": 'evil " \\ \x7f ü'}).status == 200
    raw = b'GET /\xff\x01 HTTP/1.1\r\nHost: blog.test\r\nReferer: \xc3\x28"}\r\nConnection: close\r\n\r\n'
    assert status(blog, raw) in (200, 400)
    assert seen(blog, path="/last")
    found = [json.loads(line) for line in logged(blog, "blog.json", "/last")]
    assert found[0]["status"] == "200" and found[0]["host"] == "blog.test" and found[0]["upstream_addr"].startswith("127.0.0.1:")
    assert isinstance(found[0]["request_time"], float) and 'evil " \\' in found[0]["http_user_agent"]
    setting(blog, "access-log-format", "$remote_addr [$status] $request_uri")
    assert seen(blog, path="/x")
    assert logged(blog, "blog.json", "] /x\n")[-1] == "127.0.0.1 [200] /x"
    assert len(logged(blog, "blog-access.log", "/before")) == 1
    setting(blog, "error-log-path", "off")
    assert not (blog.paths.root / "off").exists()
    assert blog("nginx:error-logs", "blog").code == 3


def test_logs_are_shown_and_followed_through_a_rotation(blog: Live) -> None:
    assert blog.done("nginx:access-logs", "blog").out == ""
    for number in range(30):
        seen(blog, path=f"/{number}")
    logged(blog, "blog-access.log", "/29 ")
    shown = blog.done("nginx:access-logs", "blog").out.splitlines()
    assert len(shown) == 20 and "GET /29 " in shown[-1] and "GET /10 " in shown[0]
    assert len(blog.done("nginx:access-logs", "blog", "--lines", "3").out.splitlines()) == 3
    assert len(blog.done("nginx:access-logs", "blog", "--lines", "100").out.splitlines()) == 30
    assert blog.done("nginx:access-logs", "blog", "--lines", "0").out == ""
    assert blog("nginx:access-logs", "blg").code == 3
    command = blog.begin("nginx:access-logs", "blog", "-f", "--lines", "1")
    assert command.process.stdout
    lines = iter(command.process.stdout.readline, "")
    assert "GET /29 " in next(lines)
    seen(blog, path="/followed")
    assert "GET /followed " in next(lines)
    log = blog.paths.log / "blog-access.log"
    log.rename(f"{log}.1")
    master = blog.master
    assert master
    os.kill(master, 10)  # USR1: reopen the logs
    deadline = time.monotonic() + 10
    while not log.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    seen(blog, path="/rotated")
    assert "GET /rotated " in next(lines)
    command.process.terminate()
    assert command.process.wait(10) == 143
    blog.app("sad", ["sad.test"], ["127.0.0.1:1"])
    blog.done("reconcile", "sad")
    assert blog.get("sad.test").status == 502
    logged(blog, "sad-error.log", "connect() failed")
    assert "connect() failed" in blog.done("nginx:error-logs", "sad").out


def test_a_json_line_is_valid_for_an_http_0_9_request_too(blog: Live) -> None:
    setting(blog, "access-log-format", "json")
    with socket.create_connection(("127.0.0.1", blog.port), timeout=10) as client:
        client.sendall(b"GET http://blog.test/\r\n")
        client.recv(65536)
    log = Path(blog.paths.log / "blog-access.log")
    deadline = time.monotonic() + 5
    while not log.exists() or not log.read_text():
        if time.monotonic() > deadline:
            pytest.skip("this nginx answers HTTP/0.9 from the default site")
        time.sleep(0.01)
    assert all(json.loads(line) for line in log.read_text().splitlines())
