"""What the rendered configuration does when the real nginx runs it: hosts, headers, websockets, retries, pages, limits."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nginx_router.files import encoded
from nginx_router.model import Facts, Globals, HostFacts, parse_app
from nginx_router.render import Include, Renderer

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Echo(BaseHTTPRequestHandler):
    """Answers with the request as it came in; a handshake for a websocket is accepted and then echoed byte by byte."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.connections.add(self.client_address)  # type: ignore[attr-defined]
        if self.path == "/slow":
            time.sleep(0.5)
        if self.headers.get("Upgrade"):
            self.send_response(101)
            self.send_header("Upgrade", self.headers["Upgrade"])
            self.send_header("Connection", "upgrade")
            self.end_headers()
            while data := self.connection.recv(100):
                self.connection.sendall(data.upper())
            self.close_connection = True
            return
        length = int(self.headers.get("Content-Length") or 0)
        seen = {"path": self.path, "port": self.server.server_port, "body": len(self.rfile.read(length)), "headers": self.headers.items()}
        body = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def echo() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        server.connections = set()  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class Site:
    """Apps, rendered into one root and served by one nginx."""

    def __init__(self, root: Path, port: int, settings: dict[str, str], facts: HostFacts) -> None:
        self.root, self.port, self.apps, self.facts = root, port, {}, facts
        self.settings = Globals(proxy={"bind-address": "127.0.0.1", "http-port": str(port)} | settings)

    def app(self, name: str, domains: str, upstreams: str = "", toml: str = "", snippet: str = "") -> None:
        self.apps[name] = {"DOMAINS": domains, "UPSTREAMS": upstreams, "app.toml": toml, "snippet": snippet}

    @contextlib.contextmanager
    def serving(self) -> Iterator[Site]:
        assert NGINX, "these tests need nginx: sudo apt-get install nginx"
        for directory in ("log", "run/tmp"):
            (self.root / directory).mkdir(parents=True)
        renderer = Renderer(self.root, self.settings, self.facts)
        vhosts, ports = {}, {self.port}
        for name, texts in self.apps.items():
            snippet = self.root / f"{name}.snippet"
            snippet.write_text(texts.pop("snippet"))
            app = parse_app(name, texts)
            vhosts[name] = str(self.root / f"{name}.conf")
            Path(vhosts[name]).write_bytes(encoded(renderer.vhost(app, Facts(), [Include(str(snippet), "x")])))
            ports |= set(renderer.ports(app))
        (self.root / "router.conf").write_text(renderer.http(1, "1-x", sorted(ports), vhosts))
        (self.root / "nginx.conf").write_text(renderer.main(1, self.root))
        said = self.root / "said"
        with said.open("w") as out:
            command = [NGINX, "-e", "stderr", "-c", str(self.root / "nginx.conf"), "-g", "daemon off;"]
            nginx = subprocess.Popen(command, stderr=out)
        try:
            deadline = time.monotonic() + 10
            while self.raw(b"GET / HTTP/1.0\r\nHost: none.invalid\r\n\r\n") is None:
                assert nginx.poll() is None, said.read_text()
                assert time.monotonic() < deadline, said.read_text()
                time.sleep(0.01)
            yield self
        finally:
            nginx.terminate()
            nginx.wait(10)

    def raw(self, request: bytes, port: int = 0) -> bytes | None:
        try:
            with socket.create_connection(("127.0.0.1", port or self.port), timeout=10) as connection:
                connection.sendall(request)
                answer = b""
                while piece := connection.recv(65536):
                    answer += piece
                return answer
        except ConnectionRefusedError:
            return None

    def ask(self, host: str, line: str = "GET / HTTP/1.1", headers: str = "", body: bytes = b"", port: int = 0) -> tuple[int, str, bytes]:
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        answer = self.raw(f"{line}\r\nHost: {host}\r\nConnection: close\r\n{length}{headers}\r\n".encode() + body, port) or b""
        head, _, content = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]) if head else 0, head.decode(), content

    def seen(self, host: str, line: str = "GET / HTTP/1.1", headers: str = "", body: bytes = b"") -> dict[str, str]:
        status, _, content = self.ask(host, line, headers, body)
        assert status == 200, content
        found = json.loads(content)
        return {"path": found["path"], "port": found["port"], "body": found["body"]} | {k.lower(): v for k, v in found["headers"]}


Make = Callable[..., Site]


@pytest.fixture
def site(router_root: Path, free_port: Callable[[], int]) -> Make:
    def make(settings: dict[str, str] | None = None, facts: HostFacts | None = None) -> Site:
        return Site(router_root, free_port(), settings or {}, facts or HostFacts(nofile=1024, user="root" if os.geteuid() == 0 else ""))

    return make


def test_the_app_is_found_by_host_whatever_its_case_with_port_and_final_dot(site: Make) -> None:
    longest = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])
    made = site()
    with echo() as one, echo() as two:
        made.app("one", f"www.mysupersideproject.com\n*.wild.example\n{longest}\n", f"127.0.0.1:{one.server_port}\n")
        made.app("two", "www.anothersideproject.com\nexact.wild.example\nbücher.example\n", f"127.0.0.1:{two.server_port}\n")
        with made.serving():
            for host in (
                "www.mysupersideproject.com",
                "WWW.MySuperSideProject.COM",
                "www.mysupersideproject.com.",
                "a.b.wild.example",
                longest,
            ):
                assert made.seen(host)["port"] == one.server_port
                assert made.seen(f"{host}:{made.port}")["port"] == one.server_port
            for host in ("www.anothersideproject.com", "exact.wild.example", "xn--bcher-kva.example"):
                assert made.seen(host)["port"] == two.server_port
            assert made.ask("mysupersideproject.com")[0] == 0  # 444: the connection is closed without an answer
            assert made.ask("wild.example")[0] == 0


def test_the_headers_that_an_instance_gets(site: Make) -> None:
    made = site()
    with echo() as server:
        made.app("blog", "blog.example.com\n", f"127.0.0.1:{server.server_port}\n")
        with made.serving():
            lies = "X-Forwarded-For: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n"
            lies += "Proxy: evil\r\nX-Request-ID: mine\r\nX-Forwarded-Proto: https\r\n"
            seen = made.seen(f"Blog.example.com:{made.port}", "GET /a%2Fb//c?d=%20e HTTP/1.1", lies)
            assert seen["path"] == "/a%2Fb//c?d=%20e"
            assert seen["host"] == seen["x-forwarded-host"] == f"blog.example.com:{made.port}"
            assert seen["x-forwarded-for"] == seen["x-real-ip"] == "127.0.0.1"
            assert seen["x-forwarded-proto"] == "http"
            assert seen["x-forwarded-port"] == str(made.port)
            assert len(seen["x-request-id"]) == 32
            assert not {"forwarded", "proxy", "upgrade", "connection"} & set(seen)
            # the server is chosen by the URI: what the app sees is not another name
            assert made.seen("evil.example", "GET http://blog.example.com/x HTTP/1.1")["host"] == "blog.example.com"
            # a link that the app makes of its Host leads to itself: nothing but a port may follow the name
            for host in ("blog.example.com:@evil.example", "blog.example.com:80@evil.example", "blog.example.com:x"):
                status, _, content = made.ask(host)
                assert status == 400 or dict(json.loads(content)["headers"])["Host"] == "blog.example.com", host
            _, head, _ = made.ask("blog.example.com")
            assert "nginx/" not in head


def test_connections_to_an_instance_are_kept(site: Make) -> None:
    made = site()
    with echo() as server:
        made.app("blog", "blog.example.com\n", f"127.0.0.1:{server.server_port}\n")
        with made.serving():
            for _ in range(30):
                made.seen("blog.example.com")
            assert len(server.connections) <= (os.cpu_count() or 1)  # type: ignore[attr-defined]  # one a worker


def test_workers_share_one_rotation(site: Make) -> None:
    made = site()
    with echo() as one, echo() as two, echo() as three:
        made.app("blog", "blog.example.com\n", "".join(f"127.0.0.1:{s.server_port}\n" for s in (one, two, three)))
        with made.serving():
            ports = [made.seen("blog.example.com")["port"] for _ in range(30)]
            assert all(ports.count(s.server_port) == 10 for s in (one, two, three))


def test_a_websocket_passes_and_an_upgrade_to_http2_does_not(site: Make) -> None:
    made = site()
    with echo() as server:
        made.app("chat", "chat.example.com\n", f"127.0.0.1:{server.server_port}\n")
        with made.serving():
            with socket.create_connection(("127.0.0.1", made.port), timeout=10) as client:
                client.sendall(b"GET /ws HTTP/1.1\r\nHost: chat.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    head += client.recv(1)
                assert b" 101 " in head
                client.sendall(b"hello")
                assert client.recv(100) == b"HELLO"
            for offer in ("h2c", "H2C", "websocket, h2c", "h2"):
                seen = made.seen("chat.example.com", headers=f"Upgrade: {offer}\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n")
                assert "upgrade" not in seen


def test_another_endpoint_is_tried_for_a_get_but_never_for_a_post_that_was_sent(site: Make) -> None:
    made = site()
    with socket.socket() as broken, echo() as server:
        broken.bind(("127.0.0.1", 0))
        broken.listen()

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = broken.accept()
                    connection.recv(1000)
                    connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        upstreams = f"127.0.0.1:{broken.getsockname()[1]} weight=1000\n127.0.0.1:{server.server_port}\n"
        made.app("get", "get.example.com\n", upstreams)
        made.app("post", "post.example.com\n", upstreams)
        with made.serving():
            assert made.seen("get.example.com")["port"] == server.server_port
            assert made.ask("post.example.com", "POST / HTTP/1.1", body=b"x")[0] == 502
        broken.shutdown(socket.SHUT_RDWR)


def test_without_an_instance_a_page_says_so(site: Make) -> None:
    made = site()
    made.app("empty", "empty.example.com\n")
    with made.serving():
        status, head, content = made.ask("empty.example.com")
        assert (status, "text/html" in head) == (502, True)
        assert b"The app empty has no web instance" in content
        assert made.ask("empty.example.com", "POST / HTTP/1.1", body=b"x" * 100)[0] == 502


@pytest.mark.parametrize(("default_site", "status"), [("404", 404), ("421", 421), ("https://example.com/none", 302)])
def test_unknown_names_get_the_default_site(site: Make, default_site: str, status: int) -> None:
    made = site({"default-site": default_site})
    made.app("blog", "blog.example.com\n")
    with made.serving():
        found, head, _ = made.ask("nobody.example.com")
        assert found == status
        assert status != 302 or "Location: https://example.com/none" in head


def test_properties_hold(site: Make) -> None:
    made = site()
    with echo() as server:
        toml = '[nginx]\nclient-max-body-size = "1k"\nproxy-read-timeout = "100ms"\n'
        made.app("small", "small.example.com\n", f"127.0.0.1:{server.server_port}\n", toml)
        made.app("large", "large.example.com\n", f"127.0.0.1:{server.server_port}\n", "[nginx]\nclient-max-body-size = 0\n")
        with made.serving():
            assert made.ask("small.example.com", "POST / HTTP/1.1", body=b"x" * 2000)[0] == 413
            assert made.ask("small.example.com", "GET /slow HTTP/1.1")[0] == 504
            assert made.seen("large.example.com", "GET /slow HTTP/1.1")["path"] == "/slow"
            assert made.seen("large.example.com", "POST / HTTP/1.1", body=b"x" * 2_000_000)["body"] == 2_000_000


def test_disabled_domains_are_unknown_and_a_snippet_holds_in_its_server_alone(site: Make) -> None:
    made = site({"default-site": "404"})
    with echo() as server:
        made.app("off", "off.example.com\n", f"127.0.0.1:{server.server_port}\n", 'domains = "disabled"\n')
        made.app("on", "on.example.com\n", f"127.0.0.1:{server.server_port}\n", snippet="add_header X-On yes always;\n")
        made.app("other", "other.example.com\n", f"127.0.0.1:{server.server_port}\n")
        with made.serving():
            assert made.ask("off.example.com")[0] == 404
            assert "X-On: yes" in made.ask("on.example.com")[1]
            assert "X-On" not in made.ask("other.example.com")[1]


def test_the_probe_answers_the_router_and_nobody_else(site: Make) -> None:
    made = site()
    with made.serving(), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(made.root / "run/probe.sock"))
        probe.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert probe.recv(65536).endswith(b"\r\n\r\n1-x")


def test_the_probe_of_host_mode_is_a_secret_name(site: Make) -> None:
    facts = HostFacts(nofile=1024, user="root" if os.geteuid() == 0 else "", probe_name="router-probe-3f9a.invalid")
    made = site({"mode": "host", "default-site": "404"}, facts)
    made.app("blog", "blog.example.com\n")
    with made.serving():
        assert made.ask("router-probe-3f9a.invalid")[2] == b"1-x"
        assert made.ask("127.0.0.1")[0] == 404
        assert made.ask("blog.example.com")[0] == 502


@pytest.mark.parametrize("count", [31, 63, 500, 1000])
def test_the_zone_holds_every_server_of_a_large_app_with_the_longest_names(router_root: Path, count: int) -> None:
    assert NGINX, "these tests need nginx: sudo apt-get install nginx"
    name, process = "a" * 63, "p" * 63
    for directory in ("log", "run/tmp"):
        (router_root / directory).mkdir(parents=True)
    renderer = Renderer(router_root, Globals(proxy={"bind-address": "127.0.0.1", "http-port": "18080"}), HostFacts(nofile=1024))
    upstreams = "".join(f"{process} unix:/{'x' * 99}/{n:05d}\n" for n in range(count))
    texts = {"DOMAINS": "a.com\n", "UPSTREAMS": upstreams, "app.toml": f'ports = ["http::{process}"]\n'}
    vhost = renderer.vhost(parse_app(name, texts), Facts(), ())
    (router_root / "a.conf").write_text(vhost)
    (router_root / "router.conf").write_text(renderer.http(1, "1-x", [18080], {name: str(router_root / "a.conf")}))
    (router_root / "nginx.conf").write_text(renderer.main(1, router_root))
    command = [NGINX, "-e", "stderr", "-t", "-c", str(router_root / "nginx.conf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert f"proxy_pass http://router_{name}.{process};" in vhost
