from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from nginx_router.entries import Entries
from nginx_router.errors import NotFound, StateCorrupt
from nginx_router.generations import Generations, Manifest
from nginx_router.index import Index, objects_in
from nginx_router.model import Entry, Facts, HostFacts
from nginx_router.settings import Paths
from nginx_router.store import Store

HOST = HostFacts(True, 1024, "www-data", "router-probe-x.invalid", ("server_tokens",))


@pytest.fixture
def generations(router_root: Path) -> Generations:
    Store(Paths(router_root)).prepare()
    return Generations(Paths(router_root))


def make(generations: Generations, number: int, apps: Mapping[str, str], *, parent: int | None = None, commit: bool = True) -> Index:
    """A generation in which each app has one vhost and one state of the given text."""
    entries = {}
    for name, text in apps.items():
        state = json.dumps({"texts": {"DOMAINS": text}, "facts": Facts().as_json()}).encode()
        entries[name] = Entry(generations.put(state), generations.put(f"# {text}".encode()), number, (f"{name}.com",), (8080,))
    index = Index(number, f"{number}-x", "[proxy]\n", "example.com\n", HOST, entries)
    parent = number - 1 if parent is None else parent
    before = objects_in(generations.index(parent)) if parent in generations.numbers() else set()
    after = objects_in(index)
    manifest = Manifest(
        number, parent, "2026-01-01T00:00:00Z", "test", tuple(apps), tuple(sorted(after - before)), tuple(sorted(before - after)), "", {}
    )
    generations.stage(
        number, {"router.conf": "# caf\udce9", "state.json": json.dumps(index.as_json()), "manifest.json": json.dumps(asdict(manifest))}
    )
    if commit:
        generations.commit(number)
    return index


def everything_named_is_there(generations: Generations) -> None:
    for number in generations.numbers():
        for sha in objects_in(generations.index(number)):
            generations.object(sha)


def test_before_the_first_there_is_none(generations: Generations) -> None:
    assert generations.current() is None
    assert generations.numbers() == []
    with pytest.raises(NotFound):
        generations.index(1)


def test_a_generation_is_read_as_it_was_made(generations: Generations) -> None:
    index = make(generations, 1, {"blog": "a", "shop": "b"})
    assert generations.current() == index
    assert generations.current_number() == 1
    assert index.owners == {"blog.com": "blog", "shop.com": "shop"}
    assert generations.manifest(1).apps == ("blog", "shop")
    texts, facts = generations.app_state(index.apps["blog"])
    assert (texts, facts) == ({"DOMAINS": "a"}, Facts())
    assert (generations.directory(1) / "router.conf").read_bytes() == b"# caf\xe9"


def with_addresses(generations: Generations, addresses: Mapping[str, Any]) -> None:
    """A current generation; None: an entry of an earlier version."""
    made = make(generations, 1, dict.fromkeys(addresses, "a")).as_json()
    for name, each in made["apps"].items():
        if addresses[name] is None:
            each.pop("addresses", None)
            texts = {"UPSTREAMS": "web1.lan:80\n10.0.0.9:80 drain\n10.0.0.8:80 down\n"}
            each["state"] = generations.put(json.dumps({"texts": texts, "facts": {"resolved": {"web1.lan": ["10.0.0.7"]}}}).encode())
        else:
            each["addresses"] = addresses[name]
    (generations.directory(1) / "state.json").write_text(json.dumps(made))


def test_whose_requests_go_to_an_address(generations: Generations) -> None:
    assert generations.served_at(["10.0.0.3:80"]) == [], "before the first"
    with_addresses(generations, {"blog": ["10.0.0.3:80", "10.0.0.4:8000"], "shop": ["10.0.0.3:80"], "news": []})
    assert generations.served_at(["10.0.0.4:80", "0.0.0.4:8000"]) == []
    assert generations.served_at(["10.0.0.5:80", "10.0.0.3:80"]) == ["blog", "shop"]
    assert generations.served_at(["10.0.0.4:8000"]) == ["blog"] and generations.served_at(["10.0.0.5:80"]) == []


def test_an_entry_of_an_earlier_version_says_it_by_its_state(generations: Generations) -> None:
    with_addresses(generations, {"blog": None, "shop": ["10.0.0.3:80"]})
    assert [generations.served_at([f"10.0.0.{n}:80"]) for n in (9, 8, 7, 3)] == [[], [], ["blog"], ["shop"]]
    assert generations.served_at(["web1.lan:80"]) == ["blog"]
    generations.object_path(generations.index(1).apps["blog"].state).unlink()
    assert generations.served_at(["web1.lan:80", "10.0.0.3:80"]) == ["shop"], "one that is lost is in nobody's way"


def test_what_an_earlier_version_did_not_say_is_not_made_to_none() -> None:
    entries = Entries({"blog": {"state": "a", "vhost": None, "generation": 1, "inline": "text"}})
    assert entries["blog"].addresses is None
    folded = entries.changed({"blog": replace(entries["blog"], inline="")})
    assert "addresses" not in folded.plain()["blog"], "else nobody would look into its state"
    assert folded["blog"].addresses is None


def test_an_object_is_written_once_and_for_reading_only(generations: Generations) -> None:
    sha = generations.put(b"server {}")
    inode = generations.object_path(sha).stat().st_ino
    assert generations.put(b"server {}") == sha
    assert generations.object_path(sha).stat().st_ino == inode
    assert generations.object_path(sha).stat().st_mode & 0o777 == 0o444
    assert generations.object(sha) == b"server {}"


def test_an_object_that_is_gone_or_was_changed_is_corrupt(generations: Generations) -> None:
    sha = generations.put(b"server {}")
    generations.object_path(sha).unlink()
    with pytest.raises(StateCorrupt, match="missing"):
        generations.object(sha)
    generations.object_path(sha).write_bytes(b"server { }")
    with pytest.raises(StateCorrupt, match="changed"):
        generations.object(sha)


def test_commit_and_uncommit_are_one_rename_each(generations: Generations, router_root: Path) -> None:
    make(generations, 1, {"blog": "a"})
    make(generations, 2, {"blog": "b"})
    generations.uncommit(1)
    assert generations.current_number() == 1
    assert str((router_root / "current").readlink()) == "generations/000001"
    generations.uncommit(None)
    with pytest.raises(StateCorrupt, match=r"current is gone, and the generations are not"):
        generations.current()
    generations.paths.intent.parent.mkdir(exist_ok=True)
    generations.paths.intent.touch()
    assert generations.current() is None, "the very first change is being put back"
    generations.uncommit(None)


def test_a_staged_generation_of_a_crash_is_replaced(generations: Generations) -> None:
    make(generations, 1, {"blog": "a"})
    make(generations, 2, {"blog": "half"}, commit=False)
    make(generations, 2, {"blog": "b"})
    assert generations.app_state(generations.index(2).apps["blog"])[0] == {"DOMAINS": "b"}
    assert sorted(path.name for path in generations.paths.generations.iterdir()) == ["000001", "000002"]


def test_discard_takes_what_it_brought(generations: Generations) -> None:
    one = make(generations, 1, {"blog": "a"})
    two = make(generations, 2, {"blog": "b"}, commit=False)
    generations.discard(2, objects_in(two) - objects_in(one))
    assert generations.numbers() == [1]
    assert {p.name for p in generations.paths.objects.iterdir()} == objects_in(one)
    generations.discard(2, objects_in(two))  # a crash in the undo: the next one is quiet


@pytest.mark.parametrize("target", ["generations/000009", "nowhere", "generations/abc"])
def test_a_current_that_points_nowhere_is_corrupt(generations: Generations, router_root: Path, target: str) -> None:
    make(generations, 1, {"blog": "a"})
    (router_root / "current").unlink()
    (router_root / "current").symlink_to(target)
    with pytest.raises(StateCorrupt) as corrupt:
        generations.current()
    assert target in corrupt.value.message


def test_a_current_that_is_no_link_is_corrupt(generations: Generations, router_root: Path) -> None:
    (router_root / "current").mkdir()
    with pytest.raises(StateCorrupt):
        generations.current()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2}', '{"schema": 1, "apps": []}', '{"schema": 1, "apps": {"a": {}}}'])
def test_an_unreadable_state_is_corrupt_and_names_the_file(generations: Generations, text: str) -> None:
    make(generations, 1, {"blog": "a"})
    (generations.directory(1) / "state.json").write_text(text)
    with pytest.raises(StateCorrupt) as corrupt:
        generations.current()
    assert "000001/state.json" in corrupt.value.message


def test_an_unreadable_manifest_is_corrupt(generations: Generations) -> None:
    make(generations, 1, {"blog": "a"})
    (generations.directory(1) / "manifest.json").write_text('{"apps": []}')
    with pytest.raises(StateCorrupt):
        generations.manifest(1)


# prune


def test_the_last_generations_and_all_they_name_are_kept(generations: Generations) -> None:
    for number in range(1, 8):
        # shop comes back to an earlier text every other time: its object leaves and returns
        make(generations, number, {"blog": f"v{number}", "shop": f"s{number % 2}", "same": "x"})
        assert generations.prune(3) == ([number - 3] if number > 3 else [])
        everything_named_is_there(generations)
    assert generations.numbers() == [5, 6, 7]
    named = set().union(*(objects_in(generations.index(n)) for n in (5, 6, 7)))
    assert {p.name for p in generations.paths.objects.iterdir()} == named


def test_current_and_its_parent_are_never_pruned(generations: Generations) -> None:
    for number in range(1, 7):
        make(generations, number, {"blog": f"v{number}"})
    generations.commit(2)
    assert generations.prune(2) == [3, 4]
    assert generations.numbers() == [1, 2, 5, 6]
    everything_named_is_there(generations)


def test_an_object_that_left_before_the_gap_and_came_back_in_it_is_kept(generations: Generations) -> None:
    make(generations, 1, {"blog": "x"})
    make(generations, 2, {"blog": "y"})
    make(generations, 3, {"blog": "x"})
    for number in (4, 5, 6):
        make(generations, number, {"blog": "x", "n": str(number)})
    make(generations, 7, {"blog": "z"}, parent=2)  # somebody linked `current` to generation 2
    assert generations.prune(2) == [1, 3, 4, 5]
    everything_named_is_there(generations)


def test_nothing_is_removed_when_a_manifest_cannot_be_read(generations: Generations) -> None:
    for number in range(1, 5):
        make(generations, number, {"blog": f"v{number}"})
    (generations.directory(2) / "manifest.json").write_text("{")
    with pytest.raises(StateCorrupt):
        generations.prune(2)
    assert generations.numbers() == [1, 2, 3, 4]
