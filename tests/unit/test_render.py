from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nginx_router.balancing import upstream_name
from nginx_router.errors import TemplateError, UsageProblem
from nginx_router.files import FileLock
from nginx_router.model import App, Facts, Globals, HostFacts, parse_app
from nginx_router.processes import children, is_alive
from nginx_router.render import Include, Renderer, commented, quoted

ROOT = Path("/srv/router")
TEXTS = {"DOMAINS": "blog.example.com\n", "UPSTREAMS": "10.0.0.3:80\n"}


def app_of(**texts: str) -> App:
    names = {"toml": "app.toml", "template": "nginx.conf.j2"}
    return parse_app("blog", TEXTS | {names.get(k, k): v for k, v in texts.items()})


def vhost(app: App, *, facts: Facts | None = None, includes: tuple[Include, ...] = (), host: HostFacts | None = None, **proxy: str) -> str:
    settings = Globals(proxy={name.replace("_", "-"): value for name, value in proxy.items()})
    return Renderer(ROOT, settings, host or HostFacts()).vhost(app, facts or Facts(), includes)


def lines_with(text: str, word: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip().startswith(word)]


def test_the_header_names_the_app_and_its_files_and_nothing_that_changes_by_itself() -> None:
    made = vhost(app_of(toml="[nginx]\nproxy-keepalive = 1\n"))
    assert made.startswith("# app blog, from apps/blog/DOMAINS, UPSTREAMS, app.toml; made by router: edits here are lost\n")


def test_an_app_with_nothing_to_serve_has_no_vhost() -> None:
    assert vhost(parse_app("blog", {})) == ""


def test_listeners_are_on_ipv6_too_where_the_host_has_it() -> None:
    assert lines_with(vhost(app_of(), host=HostFacts(ipv6=True)), "listen") == ["listen 8080;", "listen [::]:8080;"]
    assert lines_with(vhost(app_of()), "listen") == ["listen 8080;"]
    assert lines_with(vhost(app_of(), host=HostFacts(ipv6=True), bind_address="127.0.0.1 ::1"), "listen") == [
        "listen 127.0.0.1:8080;",
        "listen [::1]:8080;",
    ]
    assert lines_with(vhost(app_of(), mode="host"), "listen") == ["listen 80;"]


def test_the_ports_of_an_app() -> None:
    app = app_of(toml='ports = ["http", "http:9000", "http:9001:api"]\n')
    assert Renderer(ROOT, Globals(), HostFacts()).ports(app) == {8080: "web", 9000: "web", 9001: "api"}
    again = app_of(toml='ports = ["http", "http:8080"]\n')
    assert Renderer(ROOT, Globals(), HostFacts()).ports(again) == {8080: "web"}


def test_one_port_is_not_given_to_two_processes_by_two_names() -> None:
    with pytest.raises(UsageProblem) as refused:
        vhost(app_of(toml='ports = ["http", "http:8080:api"]\n'))
    assert refused.value.app == "blog"
    assert "port 8080 is given to web and to api" in refused.value.message


def test_a_property_of_the_app_counts_before_one_of_the_host_before_the_default() -> None:
    settings = Globals(nginx={"proxy-read-timeout": "5m", "client-max-body-size": "8m"})
    made = Renderer(ROOT, settings, HostFacts()).vhost(app_of(toml='[nginx]\nclient-max-body-size = "2m"\n'), Facts(), ())
    assert lines_with(made, "client_max_body_size") == ["client_max_body_size 2m;"]
    assert lines_with(made, "proxy_read_timeout") == ["proxy_read_timeout 5m;"]
    assert lines_with(made, "keepalive ") == ["keepalive 32;"]
    assert not lines_with(made, "gzip")  # nginx's own defaults are not repeated: a snippet may say them


def test_keepalive_zero_keeps_none() -> None:
    assert "keepalive" not in vhost(app_of(toml="[nginx]\nproxy-keepalive = 0\n")).partition("server {")[0]


def nginx_toml(**values: str) -> str:
    return "[nginx]\n" + "".join(f"{name.replace('_', '-')} = '{value}'\n" for name, value in values.items())


def test_where_the_hosts_http_block_says_something_the_default_is_said_against_it() -> None:
    made = vhost(app_of(), mode="host", host=HostFacts(host_has=("gzip on", "gzip", "keepalive_timeout 65", "keepalive_timeout")))
    assert lines_with(made, "gzip") == ["gzip off;"]
    assert "    keepalive_timeout 75s;" in made.splitlines()
    assert not lines_with(vhost(app_of(), mode="host"), "gzip")


@pytest.mark.parametrize(
    ("values", "busy"),
    [({}, "8k"), ({"proxy_buffer_size": "16k"}, "28k"), ({"proxy_buffers": "4 64k"}, "128k"), ({"proxy_buffers": "2 8k"}, "8k")],
)
def test_buffers_that_are_busy_fit_by_themselves(values: dict[str, str], busy: str) -> None:
    made = vhost(app_of(toml=nginx_toml(**values)))
    found = lines_with(made, "proxy_busy_buffers_size")
    assert found == ([f"proxy_busy_buffers_size {busy};"] if busy != "8k" else [])


@pytest.mark.parametrize(
    ("values", "said", "hint"),
    [
        (
            {"proxy_buffer_size": "64k"},
            "proxy-buffer-size 64k is more than all but one of the proxy-buffers (8 4k)",
            "proxy-buffers '17 4k'",
        ),
        ({"proxy_busy_buffers_size": "2k"}, "proxy-busy-buffers-size 2k is less than a buffer", ""),
        ({"proxy_busy_buffers_size": "32k"}, "proxy-busy-buffers-size 32k is more than all but one of the proxy-buffers (8 4k)", ""),
        (
            {"x_forwarded_proto_value": "$http_x_forwarded_proto"},
            "what any client claims: trusted-proxies is off",
            "trusted-proxies NETWORK",
        ),
        ({"x_forwarded_for_value": "$proxy_add_x_forwarded_for"}, "what any client claims: trusted-proxies is off", ""),
        ({"bind_address_ipv4": "off"}, "leave of the host's addresses (everywhere) is nothing", ""),
        ({"bind_address_ipv4": "10.0.0.1"}, "would serve no other app there any more", "proxy:set --global bind-address"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(values: dict[str, str], said: str, hint: str) -> None:
    with pytest.raises(UsageProblem) as refused:
        vhost(app_of(toml=nginx_toml(**values)))
    assert said in refused.value.message and hint in refused.value.hint
    assert refused.value.app == "blog"


def test_an_app_is_served_on_the_addresses_it_chose_among_the_hosts() -> None:
    def listens(bound: str, **values: str) -> list[str]:
        made = vhost(app_of(toml=nginx_toml(**values)), host=HostFacts(ipv6=True), bind_address=bound)
        return [line.removeprefix("listen ").removesuffix(";") for line in lines_with(made, "listen")]

    assert listens("", bind_address_ipv6="off") == ["8080"]
    assert listens("", bind_address_ipv4="off") == ["[::]:8080"]
    assert listens("", bind_address_ipv4="0.0.0.0", bind_address_ipv6="::") == ["8080", "[::]:8080"]
    assert listens("10.0.0.1 10.0.0.2 ::1", bind_address_ipv4="10.0.0.2") == ["10.0.0.2:8080", "[::1]:8080"]
    with pytest.raises(UsageProblem) as refused:
        listens("10.0.0.1", bind_address_ipv4="10.0.0.3")
    assert "10.0.0.3 is not among the host's addresses (10.0.0.1)" in refused.value.message


def test_the_way_of_choosing_knows_backups_or_says_that_it_does_not() -> None:
    upstreams = "10.0.0.3:80\n10.0.0.4:80 backup\n"
    for method in ("ip_hash", "random two", "cookie"):
        with pytest.raises(UsageProblem) as refused:
            vhost(app_of(UPSTREAMS=upstreams, toml=nginx_toml(load_balancing=method)))
        assert f"load-balancing {method} knows no backups, and 10.0.0.4:80 is one" in refused.value.message
        vhost(app_of(UPSTREAMS="10.0.0.4:80 backup\n", toml=nginx_toml(load_balancing=method)))
    made = vhost(app_of(UPSTREAMS=upstreams, toml=nginx_toml(load_balancing="least_conn")))
    block = made.partition("upstream")[2]
    assert block.index("zone ") < block.index("least_conn;") < block.index("server ") < block.index("keepalive ")


@pytest.mark.parametrize(
    ("upstreams", "made"),
    [
        ("10.0.0.3:80\n10.0.0.4:80\n", "random two least_conn"),
        ("10.0.0.3:80 weight=4\n10.0.0.4:80 weight=4\n10.0.0.5:80 down\n", "random two least_conn"),
        ("10.0.0.3:80 weight=4\n10.0.0.4:80\n", "least_conn"),  # nginx's random two does not keep unequal weights
    ],
)
def test_two_at_random_are_of_equal_weight(upstreams: str, made: str) -> None:
    assert f"    {made};" in vhost(app_of(UPSTREAMS=upstreams, toml=nginx_toml(load_balancing="random two"))).splitlines()


def test_clients_that_stay_have_a_mark_and_a_ring_that_is_fine_enough() -> None:
    made = vhost(app_of(UPSTREAMS="10.0.0.3:80\n10.0.0.4:80 weight=3\n", toml=nginx_toml(load_balancing="cookie")))
    assert "    hash $router_client consistent;" in made
    assert "    server 10.0.0.3:80 weight=8;" in made and "    server 10.0.0.4:80 weight=24;" in made
    assert "    add_header Set-Cookie $router_client_cookie always;" in made
    assert "Set-Cookie" not in vhost(app_of(UPSTREAMS="10.0.0.3:80\n"))
    with pytest.raises(UsageProblem) as refused:
        vhost(app_of(UPSTREAMS="".join(f"10.0.0.{n}:80 weight=1000\n" for n in (1, 2, 3)), toml=nginx_toml(load_balancing="cookie")))
    assert "weights up to 2000 in all, and these are 3000" in refused.value.message


def test_apps_behind_the_hosts_proxies_share_its_variables() -> None:
    shared = Renderer(ROOT, Globals(nginx={"trusted-proxies": "10.0.0.0/8"}), HostFacts())
    made = shared.vhost(app_of(), Facts(), ())
    assert "geo" not in made and "proxy_set_header X-Forwarded-Proto $router_proto_all;" in made
    assert "    10.0.0.0/8 1;" in shared.http(1, "1-x", (8080,), {}).splitlines()
    own = shared.vhost(app_of(toml=nginx_toml(trusted_proxies="192.0.2.1")), Facts(), ())
    assert lines_with(own, "set_real_ip_from") == ["set_real_ip_from 192.0.2.1;"]
    assert "192.0.2.1 1;" in own and "_all" not in own
    off = shared.vhost(app_of(toml=nginx_toml(trusted_proxies="off")), Facts(), ())
    assert "real_ip" not in off and "proxy_set_header X-Forwarded-Proto $scheme;" in off


def test_every_text_that_may_be_set_stands_in_one_place_of_the_vhost() -> None:
    evil = '$status;} server { listen 1; # "'
    made = vhost(app_of(toml=nginx_toml(access_log_format=evil)))
    assert f"log_format router_blog escape=default '{evil}';" in made
    json_like = vhost(app_of(toml=nginx_toml(access_log_format='{"s":"$status"}')))
    assert "escape=json" in json_like


def test_a_custom_config_can_be_disabled() -> None:
    assert vhost(app_of(template="# own")) == "# own"
    assert vhost(app_of(template="# own", toml=nginx_toml(disable_custom_config="true"))).startswith("# app blog")


def servers(upstreams: str, **resolved: tuple[str, ...]) -> list[str]:
    made = vhost(app_of(UPSTREAMS=upstreams), facts=Facts({k.replace("_", "."): v for k, v in resolved.items()}))
    return [line.removeprefix("server ").removesuffix(";") for line in lines_with(made, "server ") if line != "server {"]


def test_what_drains_is_gone_and_what_is_down_stays_in_the_rotation_as_down() -> None:
    assert servers("10.0.0.3:80\n10.0.0.4:80 drain\n10.0.0.5:80 down\n") == ["10.0.0.3:80", "10.0.0.5:80 down"]


def test_backups_alone_serve_because_nginx_refuses_an_upstream_of_backups() -> None:
    assert servers("10.0.0.3:80 backup\n10.0.0.4:80 backup weight=2\n") == ["10.0.0.3:80", "10.0.0.4:80 weight=2"]


@pytest.mark.parametrize("upstreams", ["10.0.0.3:80 down\n", "10.0.0.3:80 drain\n", "10.0.0.3:80 drain\n10.0.0.4:80 down\n", "# none\n"])
def test_without_an_instance_that_serves_a_page_says_so(upstreams: str) -> None:
    made = vhost(app_of(UPSTREAMS=upstreams))
    assert not lines_with(made, "upstream") and "proxy_pass" not in made
    assert "return 502" in made


def test_host_names_are_resolved_before_nginx_sees_them() -> None:
    assert servers("web1.lan:80 weight=2\n", web1_lan=("fd00::1", "10.0.0.3")) == [
        "10.0.0.3:80 weight=2;  # web1.lan",
        "[fd00::1]:80 weight=2;  # web1.lan",
    ]


def test_two_names_of_one_instance_are_one_server() -> None:
    assert len(servers("10.0.0.3:80\nweb1.lan:80\nweb2.lan:80\n", web1_lan=("10.0.0.3",), web2_lan=("10.0.0.3",))) == 1


def test_a_name_that_was_not_resolved_is_named() -> None:
    with pytest.raises(UsageProblem) as refused:
        vhost(app_of(UPSTREAMS="nowhere.invalid:80\n"))
    assert "nowhere.invalid:80 does not resolve" in refused.value.message


def test_the_order_of_the_lines_does_not_change_the_bytes() -> None:
    assert vhost(app_of(UPSTREAMS="10.0.0.3:80\n10.0.0.4:80\n")) == vhost(app_of(UPSTREAMS="10.0.0.4:80\n# x\n10.0.0.3:80\n"))


@pytest.mark.parametrize(("count", "zone"), [(1, "64k"), (31, "64k"), (32, "128k"), (100, "256k"), (500, "1024k")])
def test_the_zone_grows_with_the_upstream(count: int, zone: str) -> None:
    made = vhost(app_of(UPSTREAMS="".join(f"10.0.{n // 250}.{n % 250}:80\n" for n in range(count))))
    assert lines_with(made, "zone") == [f"zone router_blog.web {zone};"]


def test_names_of_upstreams_differ_also_where_an_app_has_a_dot_in_its_name() -> None:
    assert len({upstream_name(app, p) for app in ("a", "a.web", "a.web.web") for p in ("web", "api", "a-web")}) == 9


# what a text from outside could do


def test_a_source_cannot_end_its_comment() -> None:
    made = vhost(app_of(), includes=(Include("/o/1", "apps/blog/nginx.conf.d/x\nserver_tokens on;.conf"),))
    assert "\nserver_tokens" not in made
    assert commented("a\nb\rc\u2028d") == "a?b?c?d"


@pytest.mark.parametrize(
    ("value", "word"), [("/a/b.c", "/a/b.c"), ("a b", '"a b"'), ("", '""'), ('a"b\\', '"a\\"b\\\\"'), ("a;b", '"a;b"'), (5, "5")]
)
def test_quoted_is_one_word(value: object, word: str) -> None:
    assert quoted(value) == word


@pytest.mark.parametrize("value", ["a\nb", "$host", "a\rb", "a\x00b"])
def test_what_nginx_would_read_otherwise_is_refused(value: str) -> None:
    with pytest.raises(UsageProblem):
        quoted(value)


# templates of apps


def test_an_own_template_is_given_everything_the_shipped_one_is() -> None:
    shipped = (Path(__file__).parents[2] / "templates/vhost.conf.j2").read_text()
    assert vhost(app_of(template=shipped)) == vhost(app_of())


def test_a_template_of_a_plugin_stands_behind_the_apps_own() -> None:
    facts = Facts(template=("fancy", "# fancy {{ app }}"))
    assert vhost(app_of(), facts=facts) == "# fancy blog"
    assert vhost(app_of(template="# own"), facts=facts) == "# own"


def test_a_wrong_variable_is_named_with_file_and_line_and_what_there_is() -> None:
    with pytest.raises(TemplateError) as refused:
        vhost(app_of(template="# {{ app }}\n\n{{ ap }}\n"))
    assert refused.value.message == "app blog: apps/blog/nginx.conf.j2:3: 'ap' is undefined"
    assert " servers " in refused.value.hint
    assert refused.value.app == "blog"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("\n{% if %}", "apps/blog/nginx.conf.j2:2: Expected an expression"),
        ("\n{{ 1 / 0 }}", ":2: division by zero"),
        ("{{ app + 1 }}", ":1: can only concatenate"),
        ("{{ app | nonsense }}", "No filter named 'nonsense'"),
        ("{% include 'vhost.conf.j2' %}", "no plugin brings a template 'vhost.conf.j2'"),
        ("{{ '$host' | q }}", "cannot stand in nginx's configuration"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "recursion"),
    ],
)
def test_whatever_a_template_does_wrong_is_its_apps_error(template: str, said: str) -> None:
    with pytest.raises(TemplateError) as refused:
        vhost(app_of(template=template))
    assert said in refused.value.message
    assert refused.value.exit_code == 7


@pytest.mark.parametrize(
    "template",
    [
        "{{ app.__class__ }}",
        "{{ app.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__'] }}",
        "{{ ('' | attr('__class__')) }}",
        "{{ quoted.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ joiner.__init__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ '{0.__class__}'.format(app) }}",
        "{{ '%s' | format(app.__class__) }}",
        "{{ (servers | map(attribute='__class__') | list)[0] }}",
        "{% set x = servers.append(1) %}",
        "{% set x = nginx.update({'proxy-keepalive': '1; evil'}) %}",
        "{% set x = nginx.clear() %}",
        "{{ lipsum.__globals__ }}",
    ],
)
def test_nothing_leads_out_of_the_sandbox(template: str) -> None:
    with pytest.raises(TemplateError):
        vhost(app_of(template=template))


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{{ 'x' * 10 ** 9 }}",
        "{{ 'x' * 1000000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ ('x' * 1000000 * 100 * 100) | length }}",
        "{{ 'x' | center(1000000000) }}",
        "{{ 'x' | center(200000000) }}",
        "{% set a = 99999999 * 99999999 * 99999999 %}{{ a * a }}",
        "{% set ns = namespace(x='x' * 1000) %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        # what C does at a stretch: it looks at no clock and takes no signal
        "{{ ([[1]] * 1000000) | sum(start=[]) | length }}",
        "{% set ns = namespace(a=[1], b=[1]) %}"
        "{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}",
        "{% set ns = namespace(a=(1,)) %}{% for i in range(60) %}{% set ns.a = (ns.a, ns.a) %}{% endfor %}{{ {ns.a: 1} }}",
    ],
)
def test_a_template_can_neither_hang_nor_eat_the_host(template: str) -> None:
    began = time.monotonic()
    with pytest.raises(TemplateError) as refused:
        vhost(app_of(template=template))
    assert time.monotonic() - began < 20  # 2 s of CPU time at most, on a machine that does more than this
    assert refused.value.message.startswith("app blog: apps/blog/nginx.conf.j2:")


def test_a_template_that_outlives_its_command_keeps_the_host_lock_from_nobody(tmp_path: Path) -> None:
    script = """if True:
        import pathlib, sys
        from nginx_router.files import FileLock
        from nginx_router.sandbox import Sandbox
        lock = FileLock(pathlib.Path(sys.argv[1]))
        lock.acquire(1.0, "the host")
        print("held", flush=True)
        Sandbox().render("{{ ([[1]] * 1000000) | sum(start=[]) }}", {})
    """
    command = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "lock")], stdout=subprocess.PIPE)
    assert command.stdout and command.stdout.readline() == b"held\n"
    deadline = time.monotonic() + 10
    while not (rendering := children(command.pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)  # it lets go of what it inherited before it begins
    command.kill()
    command.wait(10)
    command.stdout.close()
    assert rendering and is_alive(rendering[0]), "the template is rendered still"
    lock = FileLock(tmp_path / "lock")
    assert lock.try_acquire()
    lock.release()


# router.conf and nginx.conf


def http(settings: dict[str, str], ports: tuple[int, ...] = (8080,), **host: Any) -> str:
    return Renderer(ROOT, Globals(proxy=settings), HostFacts(**host)).http(7, "7-x", ports, {"b": "/o/2", "a": "/o/1"})


def test_the_whole_lists_vhosts_by_name() -> None:
    assert lines_with(http({}), "include") == ["include /o/1;  # a", "include /o/2;  # b"]


@pytest.mark.parametrize(
    ("site", "answer"), [("444", "444"), ("404", "404"), ("421", "421"), ("https://example.com/?a=b", "302 https://example.com/?a=b")]
)
def test_unknown_names_get_the_default_site_on_every_port(site: str, answer: str) -> None:
    made = http({"default-site": site}, (8080, 9000), ipv6=True)
    assert lines_with(made, "return")[1:] == [f"return {answer};", f"return {answer};"]
    assert [line for line in lines_with(made, "listen") if "default_server" in line] == [
        "listen 8080 default_server;",
        "listen [::]:8080 default_server;",
        "listen 9000 default_server;",
        "listen [::]:9000 default_server;",
    ]


def test_a_default_server_of_the_host_is_left_to_it_listener_by_listener() -> None:
    made = http({"mode": "host"}, (80, 81), ipv6=True, host_has=("default_server:80",), probe_name="p.invalid")
    assert [line for line in lines_with(made, "listen") if "default_server" in line] == [
        "listen [::]:80 default_server;",
        "listen 81 default_server;",
        "listen [::]:81 default_server;",
    ]
    made = http({"mode": "host", "bind-address": "0.0.0.0"}, (80,), host_has=("default_server:80",), probe_name="p.invalid")
    assert "default_server" not in made


def test_what_the_host_has_at_http_level_is_left_out() -> None:
    has = ("server_names_hash_bucket_size", "server_names_hash_max_size", "server_tokens")
    made = http({"mode": "host"}, host_has=has, probe_name="p.invalid")
    for word in ("server_names_hash", "server_tokens"):
        assert word not in made


def test_in_host_mode_nothing_at_http_level_changes_the_hosts_own_sites() -> None:
    made = http({"mode": "host"}, probe_name="p.invalid")
    level, names = 0, []
    for line in made.splitlines():
        if level == 0 and line and line[0] not in "# }'":
            names.append(line.split()[0])
        level += line.count("{") - line.count("}")
    assert set(names) == {"log_format", "server_names_hash_bucket_size", "server_names_hash_max_size", "map", "server", "include"}
    assert all(
        line.split()[2].startswith("$router_") for line in made.replace('"$host $http_host"', "x").splitlines() if line.startswith("map")
    )
    assert "server_tokens off;" in vhost(app_of(), mode="host")
    assert "server_tokens" not in vhost(app_of(), mode="host", host=HostFacts(host_has=("server_tokens",)))
    assert "server_tokens" not in vhost(app_of())  # managed: once, in nginx.conf


def test_the_probe_is_a_unix_socket_or_a_secret_name() -> None:
    assert "listen unix:/srv/router/run/probe.sock;" in http({})
    deep = Renderer(Path("/" + "x" * 100), Globals(), HostFacts(probe_name="p.invalid"))
    assert deep.probe_socket() == ""
    for made in (deep.http(7, "7-x", (9000,), {}), http({"mode": "host"}, (9000,), probe_name="p.invalid")):
        assert "unix:" not in made
        assert "server_name p.invalid;" in made
        # the probe listens on the global port: an unknown name must not reach it for want of a default site
        port = "8080" if "xxx" in str(deep.root) and made.count("listen 8080") else "80"
        assert f"listen {port} default_server;" in made


def test_main_of_a_managed_nginx() -> None:
    made = Renderer(ROOT, Globals(), HostFacts(nofile=65536, user="www-data")).main(7, ROOT / "generations/000007")
    assert "user www-data;" in made
    assert "worker_connections 16384;" in made
    assert "include /srv/router/generations/000007/router.conf;" in made
    assert "daemon" not in made
    assert "user " not in Renderer(ROOT, Globals(), HostFacts(nofile=1024)).main(7, ROOT)
    assert "worker_connections 512;" in Renderer(ROOT, Globals(), HostFacts(nofile=1024)).main(7, ROOT)


def test_a_root_with_a_space_is_quoted() -> None:
    made = Renderer(Path("/srv/my router"), Globals(), HostFacts())
    assert 'listen "unix:/srv/my router/run/probe.sock";' in made.http(1, "1-x", (8080,), {})
    assert 'access_log "/srv/my router/log/blog-access.log" router_main;' in made.vhost(app_of(), Facts(), ())
    assert 'pid "/srv/my router/run/nginx.pid";' in made.main(1, Path("/srv/my router/generations/000001"))
