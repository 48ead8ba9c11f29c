"""What the holder of the host lock makes of failures: those that are nobody's end there, all others are somebody's alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nginx_router import leader, transaction
from nginx_router.candidate import Candidate
from nginx_router.controller import Router
from nginx_router.errors import NginxRejected, ReloadFailed
from nginx_router.settings import Paths

APPS = ("blog", "docs", "news", "shop")


@pytest.fixture
def router(router_root: Path) -> Router:
    for name in APPS:
        (router_root / "apps" / name).mkdir(parents=True)
        (router_root / "apps" / name / "DOMAINS").write_text(f"{name}.test\n")
    return Router(Paths(router_root))


def failing(monkeypatch: pytest.MonkeyPatch, why: Exception, *guilty: str) -> list[set[str]]:
    """Validation fails with `why` where one of the guilty is; the apps of each try."""
    tries: list[set[str]] = []

    def validate(candidate: Candidate, plane: Any, apps: Mapping[str, Any]) -> None:
        tries.append(set(apps))
        if not guilty or {*guilty} & {*apps}:
            raise why

    monkeypatch.setattr(transaction, "validate", validate)
    monkeypatch.setattr(transaction.starting, "check", lambda candidate, plane: None)
    return tries


def codes(router: Router) -> dict[str | None, int]:
    return {o.app: o.error.exit_code if o.error else 0 for o in router.reconcile() if o.app}


def test_an_unexpected_error_that_one_app_brings_about_is_that_apps_alone(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ZeroDivisionError("by zero"), "news")
    assert codes(router) == {"blog": 0, "docs": 0, "news": 1, "shop": 0}
    assert "ZeroDivisionError" in (router.paths.log / "router.log").read_text()


def test_of_two_that_nobody_names_each_is_found(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, NginxRejected("something is wrong somewhere"), "docs", "shop")
    assert codes(router) == {"blog": 0, "docs": 8, "news": 0, "shop": 8}


def test_a_failure_that_is_nobodys_is_tried_once(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = failing(monkeypatch, ReloadFailed("nginx ended during the reload"))
    assert codes(router) == dict.fromkeys(APPS, 9)
    assert tries == [{*APPS}], "each try could be the end of nginx once more"
    assert router.stale() == {}


def test_thousands_may_be_broken_at_once(router_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, tried = leader.Leader(Paths(router_root), ()), []

    def blame_the_first(a: Any) -> list[Any]:
        tried.append(len(a.units))
        return [leader._Try(a.units[:1]), leader._Try(a.units[1:])] if len(a.units) > 1 else []

    monkeypatch.setattr(held, "_try", blame_the_first)
    held._settle(list(range(3000)))  # type: ignore[arg-type]  # only counted
    assert len(tried) == 5999
