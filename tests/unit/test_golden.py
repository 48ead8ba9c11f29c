"""App directories and the vhosts that they make: reviewed like code, and each judged by the real nginx.

`pytest tests/unit/test_golden.py --update-golden` writes what is rendered now.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from nginx_router.files import encoded
from nginx_router.model import App, Facts, Globals, HostFacts, parse_app
from nginx_router.render import Include, Renderer
from nginx_router.settings import Paths
from nginx_router.store import Store

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(path.name for path in GOLDEN.iterdir())
#: The root that expected.conf is written for; nginx judges the same bytes with a temporary root in its place.
ROOT = Path("/srv/router")
SETTINGS = Globals(proxy={"bind-address": "127.0.0.1", "http-port": "18080"})
FACTS = Facts({"web1.lan": ("10.0.0.21", "10.0.0.20")})
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Cases(Paths):
    """The cases as the apps of a root; expected.conf is none of an app's files, so the store does not see it."""

    @property
    def apps(self) -> Path:
        return GOLDEN


def app_of(case: str) -> App:
    return parse_app(case, Store(Cases(GOLDEN.parent)).texts(case) or {}, ("traffic",))


def objects_of(app: App) -> dict[str, str]:
    return {hashlib.sha256(encoded(text)).hexdigest(): name for name, text in app.snippets.items()}


def rendered(case: str) -> str:
    app = app_of(case)
    includes = [Include(str(ROOT / "objects" / sha), f"apps/{case}/nginx.conf.d/{name}") for sha, name in objects_of(app).items()]
    return Renderer(ROOT, SETTINGS, HostFacts()).vhost(app, FACTS, includes)


@pytest.mark.parametrize("case", CASES)
def test_the_directory_makes_the_expected_vhost(case: str, update_golden: bool) -> None:
    expected = GOLDEN / case / "expected.conf"
    made = rendered(case)
    if update_golden:
        expected.write_text(made)
    assert made == expected.read_text()
    assert made == rendered(case), "the same state makes the same bytes"


def judged(root: Path, cases: Sequence[str]) -> None:
    """nginx -t of the expected files of `cases` inside a whole configuration of a root of their own."""
    assert NGINX, "these tests need nginx: sudo apt-get install nginx"
    for directory in ("objects", "log", "run/tmp"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    renderer = Renderer(root, SETTINGS, HostFacts(nofile=1024))
    vhosts, ports = {}, set()
    for case in cases:
        app = app_of(case)
        for sha, name in objects_of(app).items():
            (root / "objects" / sha).write_bytes(encoded(app.snippets[name]))
        vhosts[case] = str(root / f"{case}.conf")
        Path(vhosts[case]).write_text((GOLDEN / case / "expected.conf").read_text().replace(str(ROOT), str(root)))
        ports |= set(renderer.ports(app))
    (root / "router.conf").write_text(renderer.http(1, "1-x", sorted(ports), vhosts))
    (root / "nginx.conf").write_text(renderer.main(1, root))
    command = [NGINX, "-e", "stderr", "-t", "-c", str(root / "nginx.conf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    # a hash that is too small, a name that is taken, a directive that does nothing: nginx would say so
    assert not [line for line in done.stderr.splitlines() if "[warn]" in line], done.stderr


@pytest.mark.parametrize("case", CASES)
def test_nginx_takes_each(case: str, router_root: Path) -> None:
    judged(router_root, [case])


def test_nginx_takes_all_of_them_together(router_root: Path) -> None:
    assert len(CASES) == 13
    judged(router_root, CASES)
