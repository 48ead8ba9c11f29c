"""What the log of endpoints leaves."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest

from nginx_router.generations import objects_in

from .test_endpoint_log import blog, log_of, sound
from .test_updates import HOST, lively, spread, three

if TYPE_CHECKING:
    from .conftest import Backend, Live

__all__ = ["blog", "lively", "three"]
pytestmark = pytest.mark.timeout(120)


def test_objects_leak(blog: Live, three: list[Backend]) -> None:
    blog.done("proxy:set", "--global", "generations-keep", "2")
    for n in range(8):
        blog.done("apps:deploy", "blog", three[(n + 1) % 3])
        blog.done("apps:domains:add", "blog", f"w{n}.blog.test")
        blog.done("apps:deploy", "blog", three[(n + 2) % 3])
        blog.done("apps:deploy", "blog", three[(n + 1) % 3])
    on_disk = {path.name for path in blog.paths.objects.iterdir() if path.is_file()}
    named = set()
    print(blog.generations.numbers())
    for n in blog.generations.numbers():
        named |= objects_in(blog.generations.index(n)) | objects_in(blog.generations._read_state(n))
    print(len(on_disk), len(named), len(on_disk - named), blog("doctor").out)
    assert on_disk == named


def test_taken_port(lively: Live, three: list[Backend], free_port) -> None:
    port = free_port()
    lively.app("shop", ["shop.test"], [three[2]], **{"app.toml": f'ports = ["http:{port}"]\n'})
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    lively.done("apps:deploy", "blog", three[1])
    lively.done("proxy:stop")
    with socket.create_server(("127.0.0.1", port)):
        result = lively("proxy:start", seconds=30)
        print(result)
        assert spread(lively, 4) == {"two": 4}


@pytest.mark.parametrize("name", ["router.conf", "nginx.conf", "live.tsv", "live.lua"])
def test_lost_conf(blog: Live, three: list[Backend], name) -> None:
    blog.done("apps:deploy", "blog", three[1])
    (blog.paths.root / "current" / name).unlink()
    print(blog("doctor").out)
    print(blog("doctor", "--fix"))
    print(blog("reconcile", "--all"))
    print(blog("doctor").out)
    assert (blog.paths.root / "current" / name).is_file()
    sound(blog, "two")


def test_half_a_change_behind(blog: Live, three: list[Backend]) -> None:
    blog.done("apps:deploy", "blog", three[1])
    path = blog.generations.log_path(blog.generations.current_number() or 0)
    with path.open("ab") as file:
        file.write(b'by {"time": "half')
    blog.done("apps:deploy", "blog", three[2])
    assert not blog.generations.current().is_lost
    blog.done("proxy:stop")
    blog.done("proxy:start")
    sound(blog, "three")
