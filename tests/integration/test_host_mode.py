"""Host mode: one include in the distribution's nginx; Debian's own configuration, copied into a prefix of its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nginx_router.processes import is_alive

from .conftest import NGINX, Live, until

if TYPE_CHECKING:
    from .instances import Backend

DEBIAN = Path("/etc/nginx")

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(NGINX is None or not (DEBIAN / "sites-available/default").exists(), reason="no nginx as Debian configures it"),
]


class Host(Live):
    """A root and the distribution's nginx, which the test starts and stops as systemd would."""

    def __init__(self, root: Path, port: int, etc: Path) -> None:
        super().__init__(root, port)
        self.etc, self.conf = etc, etc / "nginx.conf"
        shutil.copytree(DEBIAN, etc, symlinks=True)
        (etc / "run").mkdir()
        (etc / "log").mkdir()
        for path in (self.conf, etc / "sites-available/default"):
            text = path.read_text().replace("/etc/nginx", str(etc)).replace("/var/log/nginx", f"{etc}/log")
            text = text.replace("/run/nginx.pid", f"{etc}/run/nginx.pid")
            text = re.sub(r"listen \[::\]:80 default_server;", "", text).replace(
                "listen 80 default_server", f"listen 127.0.0.1:{port} default_server"
            )
            path.write_text(text.replace("root /var/www/html;", f"root {etc}/html;"))
        default = etc / "sites-enabled/default"
        default.unlink()
        default.symlink_to(etc / "sites-available/default")
        (etc / "html").mkdir()
        (etc / "html/index.html").write_text("the host's own site")
        paths = "".join(f"{kind}_temp_path {etc}/run/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        self.write_conf("private", paths)
        self.write("router.toml", f'[proxy]\nbind-address = "127.0.0.1"\nhttp-port = {port}\n')

    @property
    def master(self) -> int | None:
        try:
            pid = int((self.etc / "run/nginx.pid").read_text())
        except (OSError, ValueError):
            return None
        return pid if is_alive(pid) else None

    def write_conf(self, name: str, text: str) -> Path:
        """A file of the host's conf.d."""
        file = self.etc / f"conf.d/{name}.conf"
        file.write_text(text)
        return file

    def systemctl_start(self) -> None:
        command = [str(NGINX), "-e", f"{self.etc}/log/error.log", "-c", str(self.conf), "-g", "daemon on;"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        until(self.workers)

    def end(self) -> None:
        if self.master:
            os.kill(self.master, signal.SIGTERM)
            until(lambda: self.master is None)
        super().end()


@pytest.fixture
def host(router_root: Path, isolated: Path, free_port: Callable[[], int], backend: Callable[[str], Backend]) -> Iterator[Host]:
    found = Host(router_root, free_port(), isolated / "etc")
    found.app("blog", ["blog.test"], [backend("blog")])
    found.app("shop", ["shop.test"], [backend("shop")])
    found.systemctl_start()
    yield found
    found.end()


def is_as_before(host: Host, text: str) -> None:
    """The host's configuration is untouched and served, and router is in managed mode."""
    assert host.conf.read_text() == text
    assert host.get("nobody.test").body == "the host's own site"
    report = host.done("proxy:report", "--format", "json").json
    assert (report["computed-mode"], report["mode"]) == ("managed", None), report


def test_the_distributions_nginx_serves_the_apps_and_its_own_sites(host: Host) -> None:
    text = host.conf.read_text()
    result = host.done("setup", "--nginx-conf", host.conf)
    assert "nginx serves it" in result.err, result
    added = [line for line in host.conf.read_text().splitlines() if line not in text.splitlines()]
    assert len(added) == 1 and f"include {host.paths.root}/current/router.conf;" in added[0]
    host.done("reconcile")
    assert (host.get("blog.test").body, host.get("shop.test").body) == ("blog", "shop")
    assert host.get("nobody.test").body == "the host's own site", "the host has a default server: router adds none"
    master, workers = host.master, set(host.workers())
    result = host.done("domains:add", "blog", "new.blog.test", "--format", "json")
    assert result.json["reloads"] == 1 and result.json["serving"] == result.json["generation"]
    assert host.get("new.blog.test").body == "blog"
    assert host.master == master and not workers & set(host.workers())
    host.serves_current()
    assert host.done("status", "--format", "json").json["proxy"]["mode"] == "host"
    # what only the probe may say is said to nobody else, and there is no unix listener that could go stale
    name = host.generations.current().facts.probe_name  # type: ignore[union-attr]  # there is one: it is served
    assert name and not list(host.paths.run.glob("*.sock"))
    host.done("domains:remove", "blog", "new.blog.test")
    assert host.get("new.blog.test").body == "the host's own site"
    again = host.done("setup", "--nginx-conf", host.conf)
    assert "already" in again.err
    for verb in ("start", "stop"):
        refused = host(f"proxy:{verb}")
        assert refused.code == 2 and f"systemctl {verb} nginx" in refused.err, refused
    host.done("proxy:reload")

    host.done("setup", "--remove")
    is_as_before(host, text)
    assert host.get("blog.test").body == "the host's own site"
    assert host.done("setup", "--remove").err == "host mode is not set up\n"


def test_one_app_never_harms_another_or_the_host(host: Host, free_port: Callable[[], int]) -> None:
    import socket

    host.done("setup", "--nginx-conf", host.conf)
    host.done("reconcile")
    host.snippet("shop", "} server {\n")
    with host.unchanged():
        result = host("domains:add", "shop", "new.shop.test")
    assert result.code == 8 and "shop" in result.err, result
    shutil.rmtree(host.paths.app("shop") / "nginx.conf.d")
    with socket.create_server(("127.0.0.1", 0)) as taken, host.unchanged():
        result = host("ports:add", "shop", "http", f"http:{taken.getsockname()[1]}")
        assert result.code == 9 and "Address already in use" in result.err, result
    assert (host.get("blog.test").body, host.get("nobody.test").body) == ("blog", "the host's own site")
    host.done("domains:add", "shop", "new.shop.test")
    assert host.get("new.shop.test").body == "shop"
    host.serves_current()


def test_after_kill_9_and_a_start_by_systemd_everything_is_served(host: Host) -> None:
    host.done("setup", "--nginx-conf", host.conf)
    host.done("reconcile")
    pids = [host.master or 0, *host.workers()]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(is_alive(pid) for pid in pids))
    result = host("domains:add", "blog", "new.blog.test")
    assert result.code == 13 and "systemctl start nginx" in result.err, result
    host.systemctl_start()
    assert (host.get("blog.test").body, host.get("nobody.test").body) == ("blog", "the host's own site")
    host.done("domains:add", "blog", "new.blog.test")
    assert host.get("new.blog.test").body == "blog"
    host.serves_current()


def test_an_include_that_breaks_the_host_is_taken_back(host: Host) -> None:
    host.done("reconcile")
    clash = host.write_conf("clash", "upstream router_blog.web { server 127.0.0.1:1; }\n")
    text, files = host.conf.read_text(), host.files()
    result = host("setup", "--nginx-conf", host.conf)
    assert result.code == 8 and 'duplicate upstream "router_blog.web"' in result.err and str(host.conf) in result.err, result
    assert host.files() == files
    is_as_before(host, text)
    clash.unlink()
    host.done("setup", "--nginx-conf", host.conf)
    host.done("reconcile")
    assert host.get("blog.test").body == "blog"


def test_a_name_of_routers_that_the_host_has_is_refused_with_file_and_line(host: Host) -> None:
    clash = host.write_conf("clash", "gzip_vary on;\nlog_format router_main '$host';\n")
    text = host.conf.read_text()
    result = host("setup", "--nginx-conf", host.conf)
    assert result.code == 8 and 'duplicate "log_format" name "router_main"' in result.err and f"{clash}:2" in result.err, result
    is_as_before(host, text)


def test_a_host_configuration_that_was_broken_before_is_not_touched(host: Host) -> None:
    broken = host.write_conf("broken", "tcp_nodelay perhaps;\n")
    text = host.conf.read_text()
    result = host("setup", "--nginx-conf", host.conf)
    assert result.code == 8 and "before anything was changed" in result.err and 'invalid value "perhaps"' in result.err, result
    assert host.conf.read_text() == text
    broken.unlink()
    assert host("setup", "--nginx-conf", host.etc / "nowhere.conf").code == 2
    events = host.etc / "events.conf"
    events.write_text("events {}\n")
    assert host("setup", "--nginx-conf", events).code == 2
    assert events.read_text() == "events {}\n"
    is_as_before(host, text)


def test_what_the_host_has_already_is_left_to_it(host: Host) -> None:
    host.write_conf(
        "own",
        "server_names_hash_bucket_size 128;\nserver_names_hash_max_size 1024;\n"
        "log_format main '$host';\nserver_tokens off;\nmap $http_upgrade $own { default 1; }\n",
    )
    host.done("setup", "--nginx-conf", host.conf)
    host.done("reconcile")
    text = (host.paths.current / "router.conf").read_text()
    for line in ("server_names_hash_bucket_size", "server_names_hash_max_size", "server_tokens", "default_server"):
        assert not re.search(rf"^[^#]*\b{line}\b", text, re.MULTILINE), f"{line} is the host's"
    assert (host.get("blog.test").body, host.get("nobody.test").body) == ("blog", "the host's own site")
    # a name that does not fit into the host's hash is found by the whole configuration alone, and put back
    with host.unchanged():
        result = host("domains:add", "shop", "x" * 63 + "." + "y" * 63 + ".test")
    assert result.code == 9 and "shop" in result.err and "server_names_hash" in result.err, result
    host.done("domains:add", "shop", "new.shop.test")
    assert host.get("new.shop.test").body == "shop"


def test_an_nginx_that_does_not_run_is_set_up_and_started_by_the_operator(host: Host) -> None:
    assert host.master
    os.kill(host.master, signal.SIGTERM)
    until(lambda: host.master is None)
    result = host.done("setup", "--nginx-conf", host.conf)
    assert "systemctl start nginx" in result.err, result
    result = host.done("reconcile")
    assert "saved, proxy is stopped" in result.err
    host.systemctl_start()
    host.done("setup", "--nginx-conf", host.conf)
    assert host.get("blog.test").body == "blog"
    host.done("domains:add", "blog", "new.blog.test")
    assert host.get("new.blog.test").body == "blog"
    host.serves_current()


def test_setup_refuses_while_routers_own_nginx_runs(host: Host, free_port: Callable[[], int]) -> None:
    own = free_port()
    host.write("router.toml", f'[proxy]\nbind-address = "127.0.0.1"\nhttp-port = {own}\n')
    host.done("proxy:start")
    text = host.conf.read_text()
    try:
        result = host("setup", "--nginx-conf", host.conf)
        assert result.code == 4 and "proxy:stop" in result.err, result
        is_as_before(host, text)
    finally:
        host.done("proxy:stop")


#: What stands in the host's own http block, a template that chooses the same name, and what nginx says.
HOSTS_OWN = "limit_req_zone $uri zone=shared:1m rate=99r/s;\nlog_format short '$host';\nupstream backend { server 127.0.0.1:1; }\n"
COLLISIONS = {
    "zone": ("limit_req_zone $uri zone=shared:2m rate=99r/s;", 'shared memory zone "shared" conflicts with already declared size'),
    "format": ("log_format short '$uri';", 'duplicate "log_format" name "short"'),
    "upstream": ("upstream backend { server 127.0.0.1:2; }", 'duplicate upstream "backend"'),
}
TEMPLATE = """{outside}
server {{ listen 127.0.0.1:{port}; server_name {{{{ domains | join(" ") }}}}; return 200 own; }}
"""


@pytest.mark.timeout(120)
def test_what_collides_with_the_hosts_own_configuration_is_bisected_to_its_app(host: Host) -> None:
    host.write_conf("own", HOSTS_OWN + "map $uri $answer { default of-the-host; }\n")
    host.done("setup", "--nginx-conf", host.conf)
    host.done("reconcile")
    for name, (outside, words) in COLLISIONS.items():
        own = host.write("apps/blog/nginx.conf.j2", TEMPLATE.format(outside=outside, port=host.port))
        for app in ("blog", "shop"):
            host.write(f"apps/{app}/DOMAINS", f"{app}.test\n{name}.{app}.test\n")
        result = host("reconcile")
        assert result.code == 9 and words in result.err and "app blog: nginx did not take the change up" in result.err, result
        assert [each["app"] for each in host("status", "--format", "json").json["stale"]] == ["blog"]
        assert (host.get("blog.test").body, host.get(f"{name}.shop.test").body) == ("blog", "shop")
        assert host.get(f"{name}.blog.test").body == host.get("nobody.test").body == "the host's own site"
        own.unlink()
        host.done("reconcile")
        assert host.get(f"{name}.blog.test").body == "blog"
    host.write("apps/blog/nginx.conf.j2", TEMPLATE.format(outside="map $host $answer { default of-blog; }", port=host.port))
    result = host("reconcile")
    assert result.code == 4 and "$answer is made by the host's own nginx" in result.err, result


def test_while_the_hosts_nginx_is_stopped_what_collides_with_it_is_found(host: Host) -> None:
    assert host.master
    os.kill(host.master, signal.SIGTERM)
    until(lambda: host.master is None)
    host.write_conf("own", HOSTS_OWN)
    host.done("setup", "--nginx-conf", host.conf)
    host.done("reconcile")
    host.write("apps/blog/nginx.conf.j2", TEMPLATE.format(outside=COLLISIONS["format"][0], port=host.port))
    host.write("apps/shop/DOMAINS", "shop.test\nnew.shop.test\n")
    result = host("reconcile")
    assert result.code == 8 and COLLISIONS["format"][1] in result.err and "app blog" in result.err, result
    assert "saved, proxy is stopped" in result.err, result
    host.systemctl_start()
    assert (host.get("blog.test").body, host.get("new.shop.test").body) == ("blog", "shop")


def test_a_shutdown_timeout_is_a_line_of_the_hosts_own_configuration(host: Host) -> None:
    host.done("setup", "--nginx-conf", host.conf)
    with host.unchanged():
        result = host("proxy:set", "--global", "worker-shutdown-timeout", "8h")
    assert result.code == 2 and f"put `worker_shutdown_timeout 8h;` at the top of {host.conf}" in result.err, result
