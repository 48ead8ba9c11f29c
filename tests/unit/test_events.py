from __future__ import annotations

import json
from typing import Any

import pytest

from nginx_router.errors import Conflict, NotFound, UsageProblem
from nginx_router.events import Edit, Event, reduce
from nginx_router.model import parse_app
from nginx_router.tomltext import set_key
from nginx_router.upstreams import endpoint_lines

from ..conftest import World


@pytest.fixture
def world() -> World:
    return World(
        {
            "blog": {"DOMAINS": "# ours\nblog.example.com\n\nBücher.example # IDN\n", "UPSTREAMS": "# one\n10.0.0.3:80\napi 10.0.0.3:81\n"},
            "shop": {"DOMAINS": "shop.example.com\n", "UPSTREAMS": "", "app.toml": '# ours\nlocked = "sale" # until May\n'},
        }
    )


# apps


def test_create_copies_the_names_that_nobody_has(world: World) -> None:
    edit = world.apply("create", "news", domains=["news.example.com", "shop.example.com", "news.example.com"])
    assert world.apps["news"] == {"DOMAINS": "news.example.com\n", "UPSTREAMS": ""}
    assert edit.notes == ("shop.example.com belongs to app shop: left out",)


def test_creating_what_is_there_is_said_and_nothing_else(world: World) -> None:
    edit = world.apply("create", "blog", domains=["x.example.com"])
    assert (edit.apps, edit.notes) == ({"blog": world.apps["blog"]}, ("app blog exists already",))


@pytest.mark.parametrize(
    "event",
    [
        Event("destroy", "blok"),
        Event("rename", "blok", {"new": "b", "globals": []}),
        Event("clone", "blok", {"new": "b", "domains": []}),
        Event("domains", "blok", {"verb": "add", "names": ["a.com"]}),
        Event("domains-switch", "blok", {"enabled": True}),
        Event("upstreams", "blok", {"verb": "add", "endpoints": ["10.0.0.3:80"]}),
        Event("deploy", "blok", {"processes": {"web": []}, "expected": {"web": []}, "existed": False}),
        Event("ports", "blok", {"verb": "add", "ports": ["http"]}),
        Event("property", "blok", {"table": "nginx", "key": "proxy-keepalive", "value": "1"}),
        Event("lock", "blok", {"reason": "x"}),
        Event("take-up", "blok"),
    ],
)
def test_a_missing_app_is_not_found_and_the_nearest_named(world: World, event: Event) -> None:
    with pytest.raises(NotFound) as refused:
        reduce(event, world)
    assert "did you mean blog?" in refused.value.message


def test_rename_moves_the_directory_and_changes_the_default_names_alone(world: World) -> None:
    world.apply("domains", "blog", verb="add", names=["www.blog.example.com"])
    edit = world.apply("rename", "blog", new="journal", globals=["example.com"])
    assert edit.moved == ("blog", "journal")
    assert world.apps["journal"]["DOMAINS"] == "# ours\njournal.example.com\n\nBücher.example # IDN\nwww.blog.example.com\n"
    assert "blog" not in world.apps


@pytest.mark.parametrize("action", ["rename", "clone"])
def test_a_name_that_exists_is_a_conflict(world: World, action: str) -> None:
    with pytest.raises(Conflict):
        reduce(Event(action, "blog", {"new": "shop", "globals": [], "domains": []}), world)


def test_clone_takes_settings_snippets_and_template_but_no_names_endpoints_or_lock(world: World) -> None:
    toml = '# ours\nlocked = "sale" # until May\ndomains = "disabled"\n[count]\nweb = 3\n[nginx]\nproxy-keepalive = 8 # few\n'
    world.apps["shop"] = {
        **world.apps["shop"],
        "app.toml": toml,
        "UPSTREAMS": "10.0.0.4:80\n",
        "nginx.conf.d/a.conf": "gzip on;",
        "nginx.conf.j2": "x",
    }
    world.apply("clone", "shop", new="sale", domains=["sale.example.com"])
    made = world.apps["sale"]
    assert (made["DOMAINS"], made["UPSTREAMS"]) == ("sale.example.com\n", "")
    assert (made["nginx.conf.d/a.conf"], made["nginx.conf.j2"]) == ("gzip on;", "x")
    app = parse_app("sale", made)
    assert (app.locked, app.counts, app.domains_enabled, dict(app.nginx)) == (None, {}, True, {"proxy-keepalive": "8"})
    assert "# few" in made["app.toml"]


def test_clone_of_an_app_whose_settings_are_all_its_own_brings_none(world: World) -> None:
    world.apps["shop"] = {"app.toml": 'locked = "sale"\n'}
    world.apply("clone", "shop", new="sale", domains=[])
    assert "app.toml" not in world.apps["sale"]


# domains


def test_adding_and_removing_names_keeps_comments_and_order(world: World) -> None:
    edit = world.apply("domains", "blog", verb="add", names=["a.com", "blog.example.com", "a.com"])
    assert world.apps["blog"]["DOMAINS"] == "# ours\nblog.example.com\n\nBücher.example # IDN\na.com\n"
    assert edit.notes == ("blog.example.com is there already on app blog",)
    edit = world.apply("domains", "blog", verb="remove", names=["blog.example.com", "b.com"])
    assert world.apps["blog"]["DOMAINS"] == "# ours\n\nBücher.example # IDN\na.com\n"
    assert edit.notes == ("b.com is not on app blog",)


def test_a_hand_written_name_in_capitals_or_another_script_is_the_same_name(world: World) -> None:
    world.apps["blog"] = {"DOMAINS": "BLOG.example.com\nBücher.example\nblog.example.com\n"}
    assert world.apply("domains", "blog", verb="add", names=["xn--bcher-kva.example"]).notes
    world.apply("domains", "blog", verb="remove", names=["xn--bcher-kva.example", "blog.example.com"])
    assert world.apps["blog"]["DOMAINS"] == ""


def test_set_keeps_what_stays_where_it_is(world: World) -> None:
    world.apply("domains", "blog", verb="set", names=["a.com", "xn--bcher-kva.example"])
    assert world.apps["blog"]["DOMAINS"] == "# ours\n\nBücher.example # IDN\na.com\n"
    edit = world.apply("domains", "blog", verb="set", names=["xn--bcher-kva.example", "a.com"])
    assert edit.notes == ("nothing to change on app blog",)


def test_clear_leaves_the_comments(world: World) -> None:
    world.apply("domains", "blog", verb="clear", names=[])
    assert world.apps["blog"]["DOMAINS"] == "# ours\n\n"


def test_reset_gives_the_names_a_new_app_would_have(world: World) -> None:
    edit = world.apply("domains", "blog", verb="clear", names=[], reset=["blog.example.com", "shop.example.com"])
    assert world.apps["blog"]["DOMAINS"] == "# ours\nblog.example.com\n\n"
    assert edit.notes == ("shop.example.com belongs to app shop: left out",)
    again = world.apply("domains", "blog", verb="clear", names=[], reset=["blog.example.com"])
    assert again.notes == ("nothing to change on app blog",)


def test_switching_domains_off_and_on_leaves_no_trace(world: World) -> None:
    world.apply("domains-switch", "blog", enabled=False)
    assert not parse_app("blog", world.apps["blog"]).domains_enabled
    assert world.apply("domains-switch", "blog", enabled=False).notes == ("the domains of blog are disabled already",)
    world.apply("domains-switch", "blog", enabled=True)
    assert world.apps["blog"]["app.toml"].strip() == ""


def test_global_names(world: World) -> None:
    world.apply("global-domains", None, verb="add", names=["example.com", "example.org"])
    assert world.global_domains == "example.com\nexample.org\n"
    world.apply("global-domains", None, verb="remove", names=["example.com"])
    assert world.global_domains == "example.org\n"
    with pytest.raises(UsageProblem):
        world.apply("global-domains", None, verb="add", names=["*.example.com"])


# upstreams


def test_an_address_that_is_there_gets_the_new_flags_at_its_place(world: World) -> None:
    edit = world.apply("upstreams", "blog", verb="add", endpoints=["10.0.0.3:80 weight=2", "10.0.0.4:80", "api 10.0.0.3:81"])
    assert world.apps["blog"]["UPSTREAMS"] == "# one\n10.0.0.3:80 weight=2\napi 10.0.0.3:81\n10.0.0.4:80\n"
    assert edit.notes == ("10.0.0.3:81 is there already on blog",)
    assert edit.answer == {"endpoints": ["10.0.0.3:80", "10.0.0.4:80", "10.0.0.3:81"]}


def test_set_replaces_the_processes_that_are_named(world: World) -> None:
    world.apply("upstreams", "blog", verb="set", endpoints=["10.0.0.9:80"])
    assert world.apps["blog"]["UPSTREAMS"] == "# one\napi 10.0.0.3:81\n10.0.0.9:80\n"
    assert world.apply("upstreams", "blog", verb="set", endpoints=["10.0.0.9:80"]).notes == ("the endpoints of blog are these already",)


def test_an_address_is_removed_from_every_process_unless_one_is_named(world: World) -> None:
    both = {"UPSTREAMS": "10.0.0.3:80\napi 10.0.0.3:80\n"}
    world.apps["blog"] = both
    world.apply("upstreams", "blog", verb="remove", endpoints=["10.0.0.3:80"])
    assert world.apps["blog"]["UPSTREAMS"] == ""
    world.apps["blog"] = both
    world.apply("upstreams", "blog", verb="remove", endpoints=["api 10.0.0.3:80"], named_processes=["api"])
    assert world.apps["blog"]["UPSTREAMS"] == "10.0.0.3:80\n"
    assert world.apply("upstreams", "blog", verb="remove", endpoints=["10.0.0.7:80"]).notes == ("10.0.0.7:80 is not on blog",)


def test_two_lines_of_one_endpoint_go_together(world: World) -> None:
    world.apps["blog"] = {"UPSTREAMS": "10.0.0.3:80\n10.0.0.3:80 down # twice\n10.0.0.4:80\n"}
    world.apply("upstreams", "blog", verb="remove", endpoints=["10.0.0.3:80"])
    assert world.apps["blog"]["UPSTREAMS"] == "10.0.0.4:80\n"


def test_clear_takes_all_or_one_process(world: World) -> None:
    world.apply("upstreams", "blog", verb="clear", process="api")
    assert world.apps["blog"]["UPSTREAMS"] == "# one\n10.0.0.3:80\n"
    world.apply("upstreams", "blog", verb="clear")
    assert world.apps["blog"]["UPSTREAMS"] == "# one\n"
    assert world.apply("upstreams", "blog", verb="clear").notes == ("blog has no endpoints",)


def test_drain_sets_the_flag_and_keeps_the_line(world: World) -> None:
    world.apply("upstreams", "blog", verb="drain", endpoints=["10.0.0.3:80"])
    assert world.apps["blog"]["UPSTREAMS"] == "# one\n10.0.0.3:80 drain\napi 10.0.0.3:81\n"
    assert world.apply("upstreams", "blog", verb="drain", endpoints=["10.0.0.3:80"]).notes == ("10.0.0.3:80 is draining already",)
    with pytest.raises(NotFound) as refused:
        world.apply("upstreams", "blog", verb="drain", endpoints=["10.0.0.3:82"])
    assert "did you mean 10.0.0.3:8" in refused.value.message


def test_of_those_that_are_drained_to_be_removed_one_that_was_let_in_again_stays(world: World) -> None:
    world.apps["blog"] = {"UPSTREAMS": "10.0.0.3:80 drain\n10.0.0.4:80\napi 10.0.0.4:80 drain\n10.0.0.5:80 drain\n"}
    endpoints = ["10.0.0.3:80", "10.0.0.4:80", "10.0.0.6:80"]
    edit = world.apply("upstreams", "blog", verb="remove", endpoints=endpoints, only_draining=True)
    assert world.apps["blog"]["UPSTREAMS"] == "10.0.0.4:80\n10.0.0.5:80 drain\n"
    assert edit.answer["left"] == ["10.0.0.4:80"] and edit.notes == ("10.0.0.6:80 is not on blog",)
    assert world.apply("upstreams", "blog", verb="remove", endpoints=["10.0.0.4:80"]).answer["left"] == []


@pytest.mark.parametrize("verb", ["add", "set"])
def test_no_flag_makes_a_canary_an_instance_like_any_other(world: World, verb: str) -> None:
    for flags in ("weight=5", "down", "backup"):
        world.apps["blog"] = {"UPSTREAMS": "10.0.0.3:80 canary drain\napi 10.0.0.3:80\n"}
        world.apply("upstreams", "blog", verb=verb, endpoints=[f"10.0.0.3:80 {flags}"])
        assert world.apps["blog"]["UPSTREAMS"] == f"10.0.0.3:80 {flags} canary\napi 10.0.0.3:80\n"


@pytest.mark.parametrize(
    ("upstreams", "out", "is_refused"),
    [
        ("10.0.0.3:80\n", [], False),
        ("10.0.0.3:80 backup\n", [], False),
        ("10.0.0.3:80 drain\n", [], True),
        ("10.0.0.3:80 down\n", [], True),
        ("", [], True),
        ("10.0.0.3:80\napi 10.0.0.4:80\n", ["10.0.0.3:80"], True),
        ("10.0.0.3:80\n", ["10.0.0.3:80", "10.0.0.9:80"], False),  # all fail, and all get requests
    ],
)
def test_an_abort_takes_no_process_its_last_instance(
    world: World, monkeypatch: pytest.MonkeyPatch, upstreams: str, out: list[str], is_refused: bool
) -> None:
    monkeypatch.setattr(world, "parse", lambda app, texts: parse_app(app, texts, ("traffic",)))
    monkeypatch.setattr(world, "unhealthy", lambda app: dict.fromkeys(out, "HTTP 500"))
    text = f"{upstreams}10.0.0.9:80 canary\n"
    world.apps["blog"] = {"UPSTREAMS": text, "app.toml": '[traffic]\ncanary = "10%"\n'}
    others = [each.split()[0] for each in upstreams.splitlines() if not each.startswith("api")]
    for verb in ("promote", "abort"):
        stays = others if verb == "abort" else ["10.0.0.9:80"]
        args = {"processes": {"web": stays}, "expected": {"web": endpoint_lines(text, "web")}, "existed": True, "canary": {"verb": verb}}
        if verb == "promote" or not is_refused:
            assert reduce(Event("deploy", "blog", args), world).apps
        else:
            with pytest.raises(Conflict, match=r"without its canary no web instance would get requests: 10\.0\.0\.9:80") as refused:
                reduce(Event("deploy", "blog", args), world)
            assert refused.value.hint == "router apps:deploy blog --promote"


def test_an_import_without_endpoints_brings_no_share_and_keeps_ours(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "parse", lambda app, texts: parse_app(app, texts, ("traffic",)))
    theirs = '[traffic]\nmax-errors = "1%"\ncanary = "10%"\nsince = "2026-11-24T20:12:00Z"\naborted = "slow"\n'
    archive = {"UPSTREAMS": "10.0.0.9:80 canary\n", "app.toml": theirs}

    def imported(app: str, endpoints: bool = False) -> Any:
        return reduce(Event("import", app, {"texts": archive, "endpoints": endpoints}), world).apps[app]

    assert imported("news") == {"DOMAINS": "", "UPSTREAMS": "", "app.toml": '[traffic]\nmax-errors = "1%"\n'}
    assert imported("news", endpoints=True) == {"DOMAINS": "", **archive}
    world.apps["blog"] = {"UPSTREAMS": "10.0.0.3:80\n10.0.0.4:80 canary\n", "app.toml": '[traffic]\ncanary = "30%"\n'}
    assert imported("blog")["app.toml"] == '[traffic]\nmax-errors = "1%"\ncanary = "30%"\n'
    assert imported("blog")["UPSTREAMS"] == world.apps["blog"]["UPSTREAMS"]
    world.apps["blog"]["UPSTREAMS"] = "nonsense\n"
    assert imported("blog")["app.toml"] == '[traffic]\nmax-errors = "1%"\n', "what cannot be read keeps no archive out"


def test_the_share_goes_with_the_last_canary(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "parse", lambda app, texts: parse_app(app, texts, ("traffic",)))
    toml = '[traffic]\nmax-errors = "1%"\ncanary = "10%"\nsince = "2026-11-24T20:12:00.000Z"\n'
    text = "10.0.0.3:80\n10.0.0.8:80 canary\n10.0.0.9:80 canary\n"
    for args in ({"verb": "remove", "endpoints": ["10.0.0.9:80"]}, {"verb": "set", "endpoints": ["10.0.0.3:80"]}, {"verb": "clear"}):
        world.apps["blog"] = {"UPSTREAMS": text, "app.toml": toml}
        edit = reduce(Event("upstreams", "blog", {"verb": "remove", "endpoints": ["10.0.0.8:80"]}), world)
        texts = edit.apps["blog"]
        assert texts and texts["app.toml"] == toml and edit.notes == (), "one is left"
        world.apps["blog"] = texts
        edit = reduce(Event("upstreams", "blog", args), world)
        texts = edit.apps["blog"]
        assert texts and texts["app.toml"] == '[traffic]\nmax-errors = "1%"\n'
        assert edit.notes == ("the canary of blog is ended: that was its last instance",)


def test_a_broken_hand_edit_is_named_with_its_line(world: World) -> None:
    world.apps["blog"] = {"UPSTREAMS": "10.0.0.3:80\nnonsense\n"}
    with pytest.raises(UsageProblem) as refused:
        world.apply("upstreams", "blog", verb="add", endpoints=["10.0.0.4:80"])
    assert refused.value.message.startswith("apps/blog/UPSTREAMS:2: ")


# deploy


def deploy(world: World, app: str, existed: bool = True, **processes: list[str]) -> Edit:
    text = (world.texts(app) or {}).get("UPSTREAMS", "")
    expected = {p: endpoint_lines(text, p) for p in processes}
    return world.apply("deploy", app, processes=processes, expected=expected, existed=existed)


def test_a_deploy_puts_newcomers_where_others_leave(world: World) -> None:
    world.apps["blog"] = {"UPSTREAMS": "# a\n10.0.0.3:80 weight=2 # first\napi 10.0.0.3:81\n\n10.0.0.4:80\n10.0.0.5:80 # third\n"}
    edit = deploy(world, "blog", web=["10.0.0.6:80", "10.0.0.4:80"])
    assert world.apps["blog"]["UPSTREAMS"] == "# a\n10.0.0.6:80 # first\napi 10.0.0.3:81\n\n10.0.0.4:80\n"
    assert edit.answer == {"retired": ["10.0.0.3:80", "10.0.0.5:80"]}


def test_an_equal_address_keeps_its_flags_and_the_same_set_changes_nothing(world: World) -> None:
    text = "10.0.0.3:80 weight=2\n10.0.0.4:80 down\n"
    world.apps["blog"] = {"UPSTREAMS": text}
    edit = deploy(world, "blog", web=["10.0.0.4:80", "10.0.0.3:80"])
    assert world.apps["blog"]["UPSTREAMS"] == text
    assert edit.answer == {"retired": []} and edit.notes == ()


def test_what_keeps_requests_from_endpoints_that_a_deploy_names_is_taken_off(world: World) -> None:
    text = "10.0.0.3:80 weight=2 backup drain  # slow\n10.0.0.4:80 drain down\n10.0.0.5:80 down\napi 10.0.0.3:80 drain\n"
    world.apps["blog"] = {"UPSTREAMS": text}
    web = ["10.0.0.3:80", "10.0.0.4:80", "10.0.0.5:80"]
    expected = {"web": endpoint_lines(text, "web")}
    named = {"web": ["10.0.0.3:80", "10.0.0.4:80"]}
    edit = world.apply("deploy", "blog", processes={"web": web}, expected=expected, existed=True, named=named)
    assert world.apps["blog"]["UPSTREAMS"] == "10.0.0.3:80 weight=2 backup  # slow\n10.0.0.4:80\n10.0.0.5:80 down\napi 10.0.0.3:80 drain\n"
    assert edit.notes == (
        "10.0.0.3:80 had the flag drain: taken off, it gets requests again",
        "10.0.0.4:80 had the flags drain and down: taken off, it gets requests again",
    )
    assert edit.answer == {"retired": []}


def test_several_processes_are_swapped_at_once_and_an_address_that_changes_process_is_not_retired(world: World) -> None:
    edit = deploy(world, "blog", web=["10.0.0.3:81"], api=["10.0.0.9:81"])
    assert world.apps["blog"]["UPSTREAMS"] == "# one\n10.0.0.3:81\napi 10.0.0.9:81\n"
    assert edit.answer == {"retired": ["10.0.0.3:80"]}


def test_a_process_that_no_port_leads_to_is_said_once(world: World) -> None:
    edit = deploy(world, "blog", webb=["10.0.0.9:81"])
    (note,) = edit.notes
    assert note.startswith("no port of blog leads to webb; did you mean web?") and note.endswith("router ports:add blog http:PORT:webb")
    world.apply("ports", "blog", verb="add", ports=["http:9000:jobs"])
    assert deploy(world, "blog", jobs=["10.0.0.9:82"]).notes == () == deploy(world, "blog", webb=["10.0.0.9:83"]).notes


def test_scale_to_nothing_and_the_counts(world: World) -> None:
    world.apply("deploy", "blog", processes={"web": []}, expected={"web": ["10.0.0.3:80"]}, existed=True, counts={"web": 0})
    assert world.apps["blog"]["UPSTREAMS"] == "# one\napi 10.0.0.3:81\n"
    assert dict(parse_app("blog", world.apps["blog"]).counts) == {"web": 0}


def test_a_deploy_may_create_the_app(world: World) -> None:
    world.apply(
        "deploy", "news", create=True, domains=["news.example.com"], processes={"web": ["10.0.0.3:80"]}, expected={"web": []}, existed=False
    )
    assert world.apps["news"] == {"DOMAINS": "news.example.com\n", "UPSTREAMS": "10.0.0.3:80\n"}


@pytest.mark.parametrize(
    ("app", "existed", "expected", "said"),
    [
        ("blog", True, ["10.0.0.9:80"], "were changed during the checks"),
        ("blog", True, [], "were changed during the checks"),
        ("blog", False, ["10.0.0.3:80"], "was created during the checks"),
        ("news", True, [], "was destroyed during the checks"),
        ("shop", True, [], "is locked: sale"),
    ],
)
def test_what_changed_during_the_checks_is_a_conflict(world: World, app: str, existed: bool, expected: list[str], said: str) -> None:
    args = {"processes": {"web": ["10.0.0.7:80"]}, "expected": {"web": expected}, "existed": existed}
    with pytest.raises(Conflict) as refused:
        reduce(Event("deploy", app, args), world)
    assert said in refused.value.message


# ports, properties, the lock


def test_the_first_port_of_its_own_says_that_the_global_one_goes(world: World) -> None:
    (note,) = world.apply("ports", "blog", verb="add", ports=["http:9000"]).notes
    assert note.startswith("blog is not served on the global port any more") and note.endswith("router ports:add blog http")
    assert world.apply("ports", "shop", verb="add", ports=["http", "http:9000"]).notes == ()
    assert world.apply("ports", "blog", verb="add", ports=["http:9001"]).notes == ()


def test_ports(world: World) -> None:
    world.apply("ports", "blog", verb="add", ports=["http", "http:9000", "http:9001:api"])
    edit = world.apply("ports", "blog", verb="add", ports=["http:9000", "http:9002"])
    assert edit.notes == ("http:9000 is there already on blog",)
    edit = world.apply("ports", "blog", verb="remove", ports=["9001", "http:9000", "9"])
    assert edit.notes == ("9 is not on blog",)
    assert [str(p) for p in parse_app("blog", world.apps["blog"]).ports] == ["http", "http:9002"]
    assert world.apply("ports", "blog", verb="set", ports=["http", "http:9002"]).notes == ("the ports of blog are these already",)
    world.apply("ports", "blog", verb="clear", ports=[])
    assert parse_app("blog", world.apps["blog"]).ports == ()


def test_a_property_is_set_unset_and_its_comments_survive(world: World) -> None:
    world.apply("property", "shop", table="nginx", key="client-max-body-size", value="2m")
    assert world.apps["shop"]["app.toml"] == '# ours\nlocked = "sale" # until May\n\n[nginx]\nclient-max-body-size = "2m"\n'
    world.apply("property", "shop", table="nginx", key="client-max-body-size", value=None)
    assert world.apps["shop"]["app.toml"].strip() == '# ours\nlocked = "sale" # until May'


def test_setting_what_is_set_changes_no_byte_however_it_is_spelled(world: World) -> None:
    toml = "[nginx]\nproxy-keepalive = 16 # few\n"
    world.apps["blog"] = {"app.toml": toml}
    assert world.apply("property", "blog", table="nginx", key="proxy-keepalive", value="16").notes == ("proxy-keepalive is 16 already",)
    assert world.apply("property", "blog", table="nginx", key="proxy-read-timeout", value=None).notes
    assert world.apps["blog"]["app.toml"] == toml


def test_global_properties(world: World) -> None:
    world.config = "# host\n[proxy]\nhttp-port = 8081 # test\n"
    assert world.apply("property", None, table="proxy", key="http-port", value="8081").config is None
    world.apply("property", None, table="nginx", key="proxy-keepalive", value="0")
    assert world.config == '# host\n[proxy]\nhttp-port = 8081 # test\n\n[nginx]\nproxy-keepalive = "0"\n'


@pytest.mark.parametrize("config", ["[proxy\n", "proxy = 3\n"])
def test_a_property_is_not_set_in_a_file_that_cannot_be_read(world: World, config: str) -> None:
    world.config = config
    with pytest.raises(UsageProblem) as refused:
        world.apply("property", None, table="proxy", key="http-port", value="8081")
    assert refused.value.message.startswith("router.toml")


def test_locking_and_unlocking(world: World) -> None:
    assert world.apply("lock", "shop", reason="sale").notes == ("shop is locked already",)
    world.apply("lock", "shop", reason=None)
    assert parse_app("shop", world.apps["shop"]).locked is None
    assert world.apply("lock", "shop", reason=None).notes == ("shop is unlocked already",)
    assert "# ours" in world.apps["shop"]["app.toml"]


# earlier generations


def test_restore_brings_files_back_but_neither_endpoints_nor_lock_nor_counts(world: World) -> None:
    then = {
        "DOMAINS": "old.example.com\n",
        "UPSTREAMS": "10.9.9.9:80\n",
        "app.toml": "[count]\nweb = 9\n[nginx]\nproxy-keepalive = 1 # x\n",
    }
    world.apps["shop"] = {**world.apps["shop"], "UPSTREAMS": "10.0.0.4:80\n", "nginx.conf.d/new.conf": "gzip on;"}
    world.apply("restore", "shop", texts=then)
    now = world.apps["shop"]
    assert (now["DOMAINS"], now["UPSTREAMS"]) == ("old.example.com\n", "10.0.0.4:80\n")
    assert "nginx.conf.d/new.conf" not in now
    app = parse_app("shop", now)
    assert (app.locked, app.counts, dict(app.nginx)) == ("sale", {}, {"proxy-keepalive": "1"})


def test_restoring_what_is_there_changes_no_byte(world: World) -> None:
    world.apps["shop"] = {**world.apps["shop"], "app.toml": 'locked = "sale" # s\n[count]\nweb  =  3 # c\n'}
    before = dict(world.apps["shop"])
    world.apply("restore", "shop", texts=before)
    assert world.apps["shop"] == before


def test_restore_with_endpoints_expects_those_that_were_there_before_the_checks(world: World) -> None:
    then = {"UPSTREAMS": "10.9.9.9:80\n"}
    with pytest.raises(Conflict):
        world.apply("restore", "blog", texts=then, endpoints=True, expected=["10.0.0.3:80"])
    world.apply("restore", "blog", texts=then, endpoints=True, expected=["api 10.0.0.3:81", "10.0.0.3:80"])
    assert world.apps["blog"]["UPSTREAMS"] == "10.9.9.9:80\n"


def test_a_destroyed_app_comes_back_without_endpoints(world: World) -> None:
    world.apply("restore", "gone", texts={"DOMAINS": "gone.example.com\n", "UPSTREAMS": "10.9.9.9:80\n"})
    assert world.apps["gone"] == {"DOMAINS": "gone.example.com\n", "UPSTREAMS": ""}


def test_taking_up_a_directory_that_is_gone(world: World) -> None:
    assert reduce(Event("take-up", "gone", {"may_be_gone": True}), world).apps == {"gone": None}
    assert reduce(Event("take-up", "blog"), world).apps == {"blog": world.apps["blog"]}


def test_an_event_of_a_newer_program_is_refused(world: World) -> None:
    with pytest.raises(UsageProblem):
        reduce(Event("teleport", "blog"), world)


def test_events_survive_json() -> None:
    event = Event("domains", "blog", {"verb": "add", "names": ["a.com"]}, {"blog": {"resolved": {}}})
    assert Event.from_json(json.loads(json.dumps(event.as_json()))) == event


# TOML


@pytest.mark.parametrize(
    ("before", "change", "after"),
    [
        ("", ("", "locked", "x"), 'locked = "x"\n'),
        ('locked = "x"', ("nginx", "a", "b"), 'locked = "x"\n[nginx]\na = "b"\n'),
        ("[nginx]\na = 1 # keep\n", ("nginx", "a", "b"), '[nginx]\na = "b" # keep\n'),
        ("[nginx]\na = 1\n# why\n", ("nginx", "a", None), "[nginx]\n# why\n"),
        ("[nginx]\na = 1\n", ("nginx", "a", None), ""),
        ("[nginx]\na = 1\n", ("count", "web", None), "[nginx]\na = 1\n"),
        ("a.b = 1", ("", "locked", "x"), 'a.b = 1\nlocked = "x"\n'),
        ("[nginx]\na = 1\n", ("", "ports", ["http"]), 'ports = ["http"]\n\n[nginx]\na = 1\n'),
    ],
)
def test_set_key_keeps_everything_else(before: str, change: tuple[str, str, Any], after: str) -> None:
    assert set_key(before, *change) == after
