from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from nginx_router.errors import Conflict, NotFound, StateCorrupt, UsageProblem
from nginx_router.settings import Paths
from nginx_router.store import Move, Store, Write, plain_steps, steps_of


@pytest.fixture
def store(router_root: Path) -> Store:
    store = Store(Paths(router_root))
    store.prepare()
    blog = router_root / "apps/blog"
    (blog / "nginx.conf.d").mkdir(parents=True)
    (blog / "tls").mkdir()
    (blog / "DOMAINS").write_text("# ours\nblog.example.com\n")
    (blog / "UPSTREAMS").write_text("10.0.0.3:80\n")
    (blog / "nginx.conf.d/b.conf").write_text("gzip on;\n")
    (blog / "nginx.conf.d/a.conf").write_bytes(b"# caf\xe9\n")
    return store


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted((root / "apps").rglob("*")) if p.is_file()}


def test_apps_are_the_directories_with_the_name_of_one(store: Store, router_root: Path) -> None:
    for name in ("Shop", ".trash", "a_b", "shop"):
        (router_root / "apps" / name).mkdir()
    (router_root / "apps/file").write_text("")
    (router_root / "apps/link").symlink_to("blog")
    assert store.names() == ["blog", "shop"]
    assert store.exists("blog")
    assert not store.exists("link")
    with pytest.raises(NotFound) as refused:
        store.require("blok")
    assert "did you mean blog?" in refused.value.message


def test_without_a_root_there_are_no_apps(isolated: Path) -> None:
    assert Store(Paths(isolated / "nowhere")).names() == []
    assert Store(Paths(isolated / "nowhere")).globals() == ("", "")


def test_the_texts_of_an_app(store: Store, router_root: Path) -> None:
    (router_root / "apps/blog/nginx.conf.d/.a.conf.swp").write_text("an editor's")
    (router_root / "apps/blog/nginx.conf.d/c.conf~").write_text("an editor's")
    (router_root / "apps/blog/notes").write_text("nobody's")
    assert store.texts("blog") == {
        "DOMAINS": "# ours\nblog.example.com\n",
        "UPSTREAMS": "10.0.0.3:80\n",
        "nginx.conf.d/a.conf": "# caf\udce9\n",
        "nginx.conf.d/b.conf": "gzip on;\n",
    }
    assert store.texts("shop") is None


@pytest.mark.parametrize("where", ["DOMAINS", "app.toml", "nginx.conf.d/x.conf", "nginx.conf.d"])
def test_a_link_in_an_app_is_refused_with_its_name(store: Store, router_root: Path, where: str) -> None:
    path = router_root / "apps/blog" / where
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to("/etc/passwd" if where != "nginx.conf.d" else "/etc")
    with pytest.raises(UsageProblem) as refused:
        store.texts("blog")
    assert refused.value.app == "blog"
    assert where in refused.value.message


def test_a_snippet_whose_name_would_end_a_comment_is_refused(store: Store, router_root: Path) -> None:
    (router_root / "apps/blog/nginx.conf.d/x\nserver_tokens on;.conf").write_text("")
    with pytest.raises(UsageProblem) as refused:
        store.texts("blog")
    assert refused.value.message.isprintable()


def test_steps_are_what_differs_and_undo_takes_them_back(store: Store, router_root: Path) -> None:
    before, old = tree(router_root), store.texts("blog")
    assert old is not None
    new = {**old, "DOMAINS": "a.com\n", "app.toml": "locked = 'x'\n", "nginx.conf.j2": "x"}
    del new["nginx.conf.d/a.conf"], new["nginx.conf.d/b.conf"]
    steps = store.steps("blog", old, new)
    assert [s.path for s in steps if isinstance(s, Write)] == [
        f"apps/blog/{f}" for f in ("DOMAINS", "app.toml", "nginx.conf.d/a.conf", "nginx.conf.d/b.conf", "nginx.conf.j2")
    ]
    store.apply(steps)
    assert store.texts("blog") == new
    assert not (router_root / "apps/blog/nginx.conf.d").exists()
    assert store.undo(steps) == []
    assert tree(router_root) == before
    assert store.undo(steps) == []  # a crash in the undo: the next one is quiet
    assert tree(router_root) == before


def test_undo_leaves_and_names_what_somebody_edited_since(store: Store, router_root: Path) -> None:
    old = store.texts("blog")
    assert old is not None
    steps = store.steps("blog", old, {**old, "DOMAINS": "a.com\n", "UPSTREAMS": "10.0.0.4:80\n", "app.toml": "x = 1"})
    store.apply(steps)
    (router_root / "apps/blog/DOMAINS").write_text("mine.com\n")
    (router_root / "apps/blog/app.toml").unlink()
    (router_root / "apps/blog/app.toml").symlink_to("/etc/passwd")
    assert sorted(store.undo(steps)) == ["apps/blog/DOMAINS", "apps/blog/app.toml"]
    assert (router_root / "apps/blog/DOMAINS").read_text() == "mine.com\n"
    assert (router_root / "apps/blog/UPSTREAMS").read_text() == "10.0.0.3:80\n"


def test_an_app_that_a_change_made_goes_again_with_its_directory(store: Store, router_root: Path) -> None:
    steps = store.steps("shop", None, {"DOMAINS": "", "nginx.conf.d/a.conf": "x"})
    store.apply(steps)
    assert store.exists("shop")
    store.undo(steps)
    assert not store.exists("shop")


def test_a_destroyed_app_waits_in_the_trash_until_the_change_is_proven(store: Store, router_root: Path) -> None:
    before = tree(router_root)
    steps = store.steps("blog", store.texts("blog"), None)
    assert [(s.old, s.new.rpartition(".")[0]) for s in steps if isinstance(s, Move)] == [("apps/blog", "apps/.trash/blog")]
    store.apply(steps)
    assert store.names() == []
    store.undo(steps)
    assert tree(router_root) == before
    store.apply(steps)
    store.write_intent({}, steps)
    store.clear_intent()
    store.empty_trash()
    assert tree(router_root) == {}


def test_trash_of_an_earlier_crash_is_no_hindrance(store: Store, router_root: Path) -> None:
    (router_root / "apps/.trash/blog").mkdir(parents=True)
    (router_root / "apps/.trash/blog/DOMAINS").write_text("older\n")
    for _ in range(2):
        steps = store.steps("blog", store.texts("blog"), None)
        store.apply(steps)
        assert isinstance(steps[0], Move)
        assert (router_root / steps[0].new / "DOMAINS").read_text() == "# ours\nblog.example.com\n"
        (router_root / "apps/blog").mkdir()
        (router_root / "apps/blog/DOMAINS").write_text("# ours\nblog.example.com\n")


def test_a_file_that_was_edited_since_it_was_read_is_not_overwritten(store: Store, router_root: Path) -> None:
    old = store.texts("blog")
    assert old is not None
    steps = store.steps("blog", old, {**old, "DOMAINS": "ours.example.com\n"})
    (router_root / "apps/blog/DOMAINS").write_text("theirs.example.com\n")
    with pytest.raises(Conflict, match=r"apps/blog/DOMAINS was edited"):
        store.apply(steps)
    assert store.undo(steps) == ["apps/blog/DOMAINS"]
    assert (router_root / "apps/blog/DOMAINS").read_text() == "theirs.example.com\n"


def test_what_can_be_written_is_known_before_it_is(store: Store, router_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, old = tree(router_root), store.texts("blog")
    assert old is not None
    steps = store.steps("blog", old, {**old, "UPSTREAMS": "10.0.0.4:80\n"})
    store.check(steps)
    assert tree(router_root) == before and not list((router_root / "apps/blog").glob(".*")), "nothing of it is seen"

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            store.check(steps)
    (router_root / "apps/blog/UPSTREAMS").write_text("10.0.0.5:80\n")
    with pytest.raises(Conflict, match=r"apps/blog/UPSTREAMS was edited"):
        store.check(steps)


def test_what_a_crash_left_unwritten_is_written_unless_somebody_did_otherwise(store: Store, router_root: Path) -> None:
    old = store.texts("blog")
    assert old is not None
    steps = store.steps("blog", old, {**old, "DOMAINS": "a.com\n", "UPSTREAMS": "10.0.0.4:80\n", "app.toml": "locked = 'x'\n"})
    assert steps_of(json.loads(json.dumps(plain_steps(steps)))) == steps
    store.apply(steps[:1])
    (router_root / "apps/blog/UPSTREAMS").write_text("10.0.0.5:80\n")
    for _ in range(2):
        store.finish(steps)
        assert store.texts("blog") == {**old, "DOMAINS": "a.com\n", "UPSTREAMS": "10.0.0.5:80\n", "app.toml": "locked = 'x'\n"}


@pytest.mark.parametrize("done", range(4))
def test_a_rename_is_undone_from_wherever_it_was_interrupted(store: Store, router_root: Path, done: int) -> None:
    before, old = tree(router_root), store.texts("blog")
    assert old is not None
    new = {**old, "DOMAINS": "journal.example.com\n"}
    del new["nginx.conf.d/b.conf"]
    steps = [*store.move("blog", "journal"), *store.steps("journal", old, new)]
    assert len(steps) == 3
    store.apply(steps[:done])
    assert store.undo(steps) == []
    assert tree(router_root) == before
    assert not (router_root / "apps/journal").exists()


def test_the_host_wide_files(store: Store, router_root: Path) -> None:
    steps = store.global_steps(("", ""), ("[proxy]\n", ""))
    assert steps == [Write("router.toml", None, "[proxy]\n")]
    store.apply(steps)
    assert store.globals() == ("[proxy]\n", "")
    store.undo(steps)
    assert not (router_root / "router.toml").exists(), "it was not there"


def test_the_intent_survives_with_any_bytes(store: Store) -> None:
    steps = [Move("apps/a", "apps/b"), Write("apps/b/DOMAINS", None, "# caf\udce9\n")]
    store.write_intent({"number": 7}, steps)
    found = store.intent()
    assert found is not None
    assert (found[0]["number"], found[1]) == (7, steps)
    store.clear_intent()
    assert store.intent() is None


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"steps": [1]}', '{"steps": [["move"]]}'])
def test_an_unreadable_intent_is_said_and_not_guessed(store: Store, router_root: Path, text: str) -> None:
    (router_root / "run/intent.json").write_text(text)
    with pytest.raises(StateCorrupt) as corrupt:
        store.intent()
    assert "intent.json" in corrupt.value.message


def test_stale_apps_are_remembered_and_forgotten(store: Store, router_root: Path) -> None:
    assert store.stale() == {}
    store.mark_stale({"blog": {"problem": "line 3", "exit": 2}, "shop": None})
    store.mark_stale({"shop": {"problem": "line 4", "exit": 8}})
    store.mark_stale({"blog": None})
    assert store.stale() == {"shop": {"problem": "line 4", "exit": 8}}
    (router_root / "run/stale.json").write_text("[")
    assert store.stale() == {}
