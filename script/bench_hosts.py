"""What a bench measures beside one another: hosts of this router, an nginx and an HAProxy configured by hand, and small servers."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
NGINX = shutil.which("nginx", path=PATH) or "nginx"
HAPROXY = shutil.which("haproxy", path=PATH) or "haproxy"


@dataclass
class Host:
    """One root with a managed nginx on free loopback ports."""

    root: Path
    port: int
    environment: dict[str, str] = field(default_factory=dict)

    def router(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([BIN / "router", *words], env=self.environment, capture_output=True, text=True, timeout=900, check=False)
        if check and done.returncode:
            raise SystemExit(f"router {' '.join(words)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def host(apps: int, backend: int = 0, *, updates: str = "reload") -> Iterator[Host]:
    """A root with `apps` apps of two domains and one endpoint each, nginx running."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        made = Host(Path(name) / "r", free_port())
        made.environment = {**os.environ, "ROUTER_ROOT": str(made.root)}
        made.router("proxy:set", "--global", "bind-address", "127.0.0.1")
        made.router("proxy:set", "--global", "http-port", str(made.port))
        made.router("proxy:set", "--global", "updates", updates)
        for number in range(apps):
            directory = made.root / f"apps/app{number:05d}"
            directory.mkdir(parents=True)
            (directory / "DOMAINS").write_text(f"app{number:05d}.example.com\nwww.app{number:05d}.example.com\n")
            (directory / "UPSTREAMS").write_text(f"127.0.0.1:{backend or 20000 + number}\n")
        made.router("reconcile", "--all")
        made.router("proxy:start")
        try:
            yield made
        finally:
            made.router("proxy:stop", check=False)


@contextlib.contextmanager
def nginx(directory: Path, conf: str) -> Iterator[Path]:
    """A hand-made nginx in `directory`."""
    (directory / "tmp").mkdir(parents=True, exist_ok=True)
    file = directory / "nginx.conf"
    file.write_text(conf)
    subprocess.run([NGINX, "-e", "stderr", "-c", file, "-g", "daemon on;"], check=True, timeout=60)
    try:
        yield file
    finally:
        pid = int((directory / "nginx.pid").read_text())
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.01)


@contextlib.contextmanager
def haproxy(directory: Path, port: int, backend: int) -> Iterator[int]:
    """A hand-made HAProxy in `directory`; its pid."""
    directory.mkdir()
    text = (HERE / "bench_haproxy.cfg").read_text()
    file = directory / "haproxy.cfg"
    file.write_text(text.replace("@DIRECTORY@", str(directory)).replace("@PORT@", str(port)).replace("@BACKEND@", str(backend)))
    with (directory / "access.log").open("w") as log, subprocess.Popen([HAPROXY, "-f", file], stdout=log, stderr=log) as process:
        try:
            deadline = time.monotonic() + 10
            while not (directory / "admin.sock").is_socket():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"bench: HAProxy does not start:\n{(directory / 'access.log').read_text()}")
                time.sleep(0.01)
            yield process.pid
        finally:
            process.terminate()


def tell(admin: Path, *commands: str) -> None:
    """HAProxy's Runtime API: one connection, one line."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect(str(admin))
        connection.sendall("; ".join(commands).encode() + b"\n")
        said = b""
        while piece := connection.recv(4096):
            said += piece
    unknown = [
        line for line in said.decode().splitlines() if line.strip() and line.strip() not in ("New server registered.", "Server deleted.")
    ]
    if unknown:
        raise SystemExit(f"bench: HAProxy: {unknown}")


def by_hand(directory: Path, servers: str, *, workers: str = "auto") -> str:
    """The main and http level of a hand-made nginx: what router's has."""
    user = "user www-data;" if os.geteuid() == 0 else ""
    temp = "".join(f"{kind}_temp_path {directory}/tmp/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    log = (
        'log_format main \'$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "$http_referer" '
        '"$http_user_agent" $host $upstream_addr $upstream_response_time $request_time $request_id\';'
    )
    return f"""{user}
worker_processes {workers};
worker_rlimit_nofile 65536;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{ worker_connections 32768; }}
http {{
access_log off;
keepalive_timeout 75s;
server_tokens off;
server_names_hash_bucket_size 512;
server_names_hash_max_size 65536;
{log}
map $http_upgrade $connection_header {{ default upgrade; "" ""; }}
{temp}
{servers}
}}
"""


def default_server(port: int) -> str:
    """What every host of several apps has, so that a name nobody owns reaches none of them."""
    return f"server {{ listen 127.0.0.1:{port} default_server; server_name _; access_log off; return 444; }}\n"


@contextlib.contextmanager
def small_server(seconds: float = 0.0) -> Iterator[int]:
    """An HTTP server that answers `ok` after `seconds`; its port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            time.sleep(seconds)
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of all their threads, to the nanosecond."""
    return sum(int(task.read_text().split()[0]) for pid in pids for task in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def workers_of(master: int) -> list[int]:
    """The workers of an nginx that has started a moment ago."""
    deadline = time.monotonic() + 10
    while True:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    if int(fields[1]) == master and b"worker process" in (entry / "cmdline").read_bytes():
                        found.append(int(entry.name))
        if len(found) == os.cpu_count() or time.monotonic() > deadline:
            return found
        time.sleep(0.01)
