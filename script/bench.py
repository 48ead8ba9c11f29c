"""What the router costs, beside what it replaces: interleaved rounds on this machine, medians, ratios.

Absolute figures belong to the machine they were measured on; the ratios are what a reader can expect elsewhere.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench_hosts import (
    BIN,
    HERE,
    NGINX,
    by_hand,
    cpu_seconds,
    default_server,
    free_port,
    haproxy,
    host,
    nginx,
    small_server,
    tell,
    workers_of,
)

MARKS = ("<!-- bench:begin -->", "<!-- bench:end -->")


@dataclass
class Row:
    what: str
    router: str
    beside: str
    ratio: str
    bound: str = ""


def median(values: list[float]) -> float:
    return statistics.median(values)


def timed(words: list[str], environment: dict[str, str]) -> float:
    # no timeout: with one, CPython looks for the end in growing pauses of up to 50 ms
    began = time.perf_counter()
    subprocess.run(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - began


def cli_start(rounds: int) -> Iterator[Row]:
    """`router WORD` against `python -c "import typer"`."""
    with host(20) as one:
        words = {
            "version": ["version"],
            "help": ["help"],
            "apps:exists": ["apps:exists", "app00003"],
            "apps:list": ["apps:list"],
        }
        times: dict[str, list[float]] = {name: [] for name in ("typer", *words)}
        for _ in range(rounds * 5):
            times["typer"].append(timed([sys.executable, "-c", "import typer"], one.environment))
            for name, arguments in words.items():
                times[name].append(timed([str(BIN / "router"), *arguments], one.environment))
        base = median(times["typer"])
        for name in words:
            took = median(times[name])
            yield Row(
                f"start: router {name} / import typer", f"{took * 1000:.0f} ms", f"{base * 1000:.0f} ms", f"{took / base:.2f}", "≤ 1.5"
            )


class LastOld(threading.Thread):
    """Asks with fresh connections, all the time, and remembers when the last old answer came."""

    def __init__(self, port: int, name: str) -> None:
        super().__init__(daemon=True)
        self.port, self.host_name = port, name
        self.stop = threading.Event()
        self.last_old = 0.0

    def run(self) -> None:
        while not self.stop.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            try:
                connection.request("GET", "/", headers={"Host": self.host_name})
                new = connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                new = False
            finally:
                connection.close()
            if not new:
                self.last_old = time.perf_counter()
            time.sleep(0.0005)


def until_last_old(
    port: int, name: str, change: list[str] | None, environment: dict[str, str], edit: tuple[Path, str] | None = None
) -> float:
    """Seconds from the start of the change until the last answer of the old configuration."""
    asker = LastOld(port, name)
    asker.start()
    time.sleep(0.05)
    began = time.perf_counter()
    if edit:
        edit[0].write_text(edit[1])
    subprocess.run(change, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120)
    ended = time.perf_counter()
    while time.perf_counter() < max(ended + 0.3, asker.last_old + 0.3):
        time.sleep(0.01)
    asker.stop.set()
    asker.join()
    return max(0.0, asker.last_old - began)


def changes(rounds: int) -> Iterator[Row]:
    """`domains:add` until the last old answer, against a hand edit and `nginx -s reload` timed the same way."""
    more: dict[int, float] = {}
    with small_server() as backend:
        for apps in (10, 100, 1000):
            with host(apps, backend) as one, tempfile.TemporaryDirectory(prefix="hand-", dir="/tmp", ignore_cleanup_errors=True) as name:
                hand = Path(name)
                hand.chmod(0o755)
                sites = hand / "sites"
                sites.mkdir()
                port = free_port()
                template = (HERE / "bench_vhost.conf").read_text()

                def vhost(number: int, extra: str = "", template: str = template, port: int = port, hand: Path = hand) -> str:
                    text = (
                        template.replace("@BACKEND@", str(backend))
                        .replace("@PORT@", str(port))
                        .replace("@LOG@", str(hand))
                        .replace("@DEFAULT@", "")
                    )
                    text = re.sub(r"\bblog\b(?=[ ;{])", f"app{number:05d}", text).replace("http://blog", f"http://app{number:05d}")
                    text = text.replace("blog-access", f"app{number:05d}-access").replace("blog-error", f"app{number:05d}-error")
                    return text.replace("blog.localhost", f"app{number:05d}.example.com www.app{number:05d}.example.com{extra}")

                for number in range(apps):
                    (sites / f"app{number:05d}.conf").write_text(vhost(number))
                with nginx(hand, by_hand(hand, f"{default_server(port)}include {sites}/*.conf;")) as conf:
                    ours, theirs = [], []
                    for number in range(rounds):
                        new = f"new{number}.example.com"
                        ours.append(until_last_old(one.port, new, [str(BIN / "router"), "domains:add", "app00003", new], one.environment))
                        extra = "".join(f" new{n}.example.com" for n in range(number + 1))
                        theirs.append(
                            until_last_old(
                                port,
                                new,
                                [NGINX, "-e", "stderr", "-s", "reload", "-c", str(conf)],
                                one.environment,
                                (sites / "app00003.conf", vhost(3, extra)),
                            )
                        )
                router, beside = median(ours), median(theirs)
                more[apps] = router - beside
                yield Row(
                    f"domains:add until the last old answer, {apps} apps / hand edit and nginx -s reload",
                    f"{router * 1000:.0f} ms",
                    f"{beside * 1000:.0f} ms",
                    f"+{(router - beside) * 1000:.0f} ms",
                    "≤ +350 ms" if apps == 1000 else "",
                )
    yield Row(
        "domains:add without the reload, 1,000 apps / 10 apps",
        f"{more[1000] * 1000:.0f} ms",
        f"{more[10] * 1000:.0f} ms",
        f"{more[1000] / more[10]:.2f}",
        "≤ 1.5",
    )


def deploys(rounds: int) -> Iterator[Row]:
    """Whole `apps:deploy` commands whose requests last 150 ms at most, under 15 clients."""
    with host(20) as one, small_server(0.15) as first, small_server(0.15) as second:
        one.router("apps:create", "blog")
        one.router("domains:add", "blog", "blog.localhost")
        one.router("apps:deploy", "blog", f"127.0.0.1:{first}")
        stop = threading.Event()
        failed: list[str] = []
        count = [0]

        def client() -> None:
            while not stop.is_set():
                connection = http.client.HTTPConnection("127.0.0.1", one.port, timeout=10)
                try:
                    connection.request("GET", "/", headers={"Host": "blog.localhost"})
                    status = connection.getresponse().status
                    if status != 200:
                        failed.append(str(status))
                    count[0] += 1
                except (OSError, http.client.HTTPException) as why:
                    failed.append(repr(why))
                finally:
                    connection.close()

        clients = [threading.Thread(target=client, daemon=True) for _ in range(15)]
        for thread in clients:
            thread.start()
        took = []
        for number in range(max(rounds * 2, 6)):
            began = time.perf_counter()
            one.router("apps:deploy", "blog", f"127.0.0.1:{(second, first)[number % 2]}")
            took.append(time.perf_counter() - began)
        stop.set()
        for thread in clients:
            thread.join()
        yield Row(
            f"apps:deploy until the old address is printed, 15 clients, requests of 150 ms ({count[0]} requests)",
            f"{median(took):.2f} s",
            "",
            f"{len(failed)} failed",
            "≤ 1.2 s, 0 failed",
        )


def requests(rounds: int) -> Iterator[Row]:
    """CPU of the workers per request, and requests/s, against the hand-written vhost; wrk loads both in turn."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise SystemExit("bench: wrk is missing: sudo apt-get install wrk")
    with tempfile.TemporaryDirectory(prefix="hand-", dir="/tmp", ignore_cleanup_errors=True) as name:
        base = Path(name)
        base.chmod(0o755)
        (base / "up").mkdir()
        backend, port, other = free_port(), free_port(), free_port()
        answer = f"server {{ listen 127.0.0.1:{backend}; keepalive_requests 1000000; location / {{ return 200 ok; }} }}"

        def written_by_hand(directory: Path, port: int) -> str:
            directory.mkdir()
            text = (HERE / "bench_vhost.conf").read_text().replace("@BACKEND@", str(backend)).replace("@PORT@", str(port))
            return by_hand(directory, text.replace("@LOG@", str(directory)).replace("@DEFAULT@", default_server(port)))

        third = free_port()
        with (
            nginx(base / "up", by_hand(base / "up", answer, workers="1")),
            haproxy(base / "haproxy", third, backend) as balancer,
            nginx(base / "hand", written_by_hand(base / "hand", port)),
            nginx(base / "twin", written_by_hand(base / "twin", other)),
            host(0) as one,
            host(0, updates="live") as lively,
        ):
            sides = {}
            for side, each in (("router", one), ("live", lively)):
                each.router("apps:create", "blog")
                each.router("domains:add", "blog", "blog.localhost")
                each.router("upstreams:add", "blog", f"127.0.0.1:{backend}")
                status = json.loads(each.router("status", "--format", "json").stdout)
                sides[side] = (each.port, workers_of(status["proxy"]["pid"]))
            sides |= {
                "hand": (port, workers_of(int((base / "hand/nginx.pid").read_text()))),
                "twin": (other, workers_of(int((base / "twin/nginx.pid").read_text()))),
                "haproxy": (third, [balancer]),
            }
            rate: dict[str, list[float]] = {side: [] for side in sides}
            cost: dict[str, list[float]] = {side: [] for side in sides}
            for number in range(4 * rounds + 1):
                for side in sorted(sides, key=lambda side: (list(sides).index(side) + number) % len(sides)):
                    to, pids = sides[side]
                    before = cpu_seconds(pids)
                    load = [wrk, "-t1", "-c32", "-d1s", "-H", "Host: blog.localhost", f"http://127.0.0.1:{to}/"]
                    said = subprocess.run(load, capture_output=True, text=True, check=True, timeout=60).stdout
                    used = cpu_seconds(pids) - before
                    done = re.search(r"(\d+) requests in", said)
                    speed = re.search(r"Requests/sec:\s+([\d.]+)", said)
                    if "Non-2xx" in said or not done or not speed:
                        raise SystemExit(f"bench: {side} did not answer well:\n{said}")
                    if number:  # the first round warms up
                        rate[side].append(float(speed[1]))
                        cost[side].append(used / int(done[1]) * 1e6)
    bounds = {"router": "≤ 1.05", "live": "≤ 1.15", "twin": "the noise"}
    names = {"router": "", "live": ", updates live", "haproxy": " of HAProxy", "twin": " of a second nginx with that vhost"}
    for side, name in names.items():
        ours, theirs = median(cost[side]), median(cost["hand"])
        ratio = median([a / b for a, b in zip(cost[side], cost["hand"], strict=True)])
        yield Row(f"CPU per request{name} / hand-written vhost", f"{ours:.1f} µs", f"{theirs:.1f} µs", f"{ratio:.3f}", bounds.get(side, ""))
        ours, theirs = median(rate[side]), median(rate["hand"])
        ratio = median([a / b for a, b in zip(rate[side], rate["hand"], strict=True)])
        yield Row(
            f"requests per second{name} / hand-written vhost",
            f"{ours:,.0f}",
            f"{theirs:,.0f}",
            f"{ratio:.3f}",
            "≥ 0.92" if side == "live" else "",
        )


def first_new(port: int, wanted: str, change: Callable[[], object]) -> float:
    """Seconds from the start of a change until the first answer `wanted`, to fresh connections."""
    stop = threading.Event()
    seen: list[float] = []

    def ask() -> None:
        while not stop.is_set() and not seen:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request("GET", "/", headers={"Host": "blog.localhost"})
                if connection.getresponse().read().decode() == wanted:
                    seen.append(time.perf_counter())
            except (OSError, http.client.HTTPException):
                pass
            finally:
                connection.close()
            time.sleep(0.0005)

    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    time.sleep(0.02)
    began = time.perf_counter()
    change()
    asker.join(10)
    stop.set()
    if not seen:
        raise SystemExit("bench: the new instance did not answer within 10 s")
    return seen[0] - began


def swaps(rounds: int) -> Iterator[Row]:
    """One instance takes over from another: a whole command, a hand edit with a reload, HAProxy's Runtime API."""
    with tempfile.TemporaryDirectory(prefix="hand-", dir="/tmp", ignore_cleanup_errors=True) as name:
        base = Path(name)
        base.chmod(0o755)
        (base / "up").mkdir()
        (base / "hand").mkdir()
        ports = free_port(), free_port()
        answer = "".join(f"server {{ listen 127.0.0.1:{port}; location / {{ return 200 {port}; }} }}" for port in ports)
        hand, third = free_port(), free_port()
        vhost = (HERE / "bench_vhost.conf").read_text().replace("@PORT@", str(hand)).replace("@LOG@", str(base / "hand"))
        vhost = vhost.replace("@DEFAULT@", default_server(hand))
        with (
            nginx(base / "up", by_hand(base / "up", answer, workers="1")),
            nginx(base / "hand", by_hand(base / "hand", vhost.replace("@BACKEND@", str(ports[0])))) as conf,
            haproxy(base / "haproxy", third, ports[0]),
            host(10) as one,
            host(10, updates="live") as lively,
        ):
            for each in (one, lively):
                each.router("apps:create", "blog")
                each.router("domains:add", "blog", "blog.localhost")
                each.router("apps:deploy", "blog", f"127.0.0.1:{ports[0]}")

            def by_editor(new: int, number: int, vhost: str = vhost, conf: Path = conf) -> None:
                conf.write_text(by_hand(base / "hand", vhost.replace("@BACKEND@", str(new))))
                subprocess.run([NGINX, "-e", "stderr", "-s", "reload", "-c", str(conf)], check=True, timeout=60)

            def by_runtime_api(new: int, number: int) -> None:
                admin = base / "haproxy/admin.sock"
                tell(admin, f"add server blog/s{number} 127.0.0.1:{new}", f"enable server blog/s{number}")
                tell(admin, f"set server blog/s{number - 1} state maint")

            ways: dict[str, tuple[int, Callable[[int, int], object]]] = {
                "apps:deploy": (one.port, lambda new, number: one.router("apps:deploy", "blog", f"127.0.0.1:{new}")),
                "apps:deploy, updates live": (lively.port, lambda new, number: lively.router("apps:deploy", "blog", f"127.0.0.1:{new}")),
                "hand": (hand, by_editor),
                "HAProxy": (third, by_runtime_api),
            }
            took: dict[str, list[float]] = {way: [] for way in ways}
            for number in range(1, 4 * rounds + 1):
                new = ports[number % 2]
                for way, (port, change) in ways.items():
                    took[way].append(first_new(port, str(new), lambda change=change, new=new, number=number: change(new, number)))
                if number > 1:  # nothing is connected to it any more
                    with contextlib.suppress(SystemExit):
                        tell(base / "haproxy/admin.sock", f"del server blog/s{number - 2}")
    beside = median(took["hand"])
    for way, name in (
        ("apps:deploy",) * 2,
        ("apps:deploy, updates live",) * 2,
        ("HAProxy", "add server, enable server of HAProxy's Runtime API"),
    ):
        ours = median(took[way])
        yield Row(
            f"{name}: until the first new answer / hand edit and nginx -s reload",
            f"{ours * 1000:.1f} ms",
            f"{beside * 1000:.1f} ms",
            f"{(ours - beside) * 1000:+.0f} ms",
        )


def served(rounds: int) -> Iterator[Row]:
    """Deploys in live mode, as the journal times them."""
    sizes = (10, 5000) if HEAVY else (10,)
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(small_server()) for _ in range(2)]
        hosts = [stack.enter_context(host(size, ports[0], updates="live")) for size in sizes]
        count = max(100, 20 * rounds)
        for number in range(count):
            for each in hosts:
                each.router("apps:deploy", "app00003", f"127.0.0.1:{ports[(number + 1) % 2]}")
        lines = []
        for each in hosts:
            lines.append([json.loads(line) for line in (each.root / "journal.jsonl").read_text().splitlines()[-count:]])
            if {line["kind"] for line in lines[-1]} != {"endpoints"} or sum(line["reloads"] for line in lines[-1]):
                raise SystemExit("bench: a deploy reloaded nginx")
    # the whole command but for Python's start; the part of it in which the files are written and nginx is told and asked
    for key, what in (("seconds", "checks, change and drain"), ("served_seconds", "change until nginx acknowledges it")):
        found = [sorted(line[key] for line in some) for some in lines]
        for size, seconds in zip(sizes, found, strict=True):
            p50, p99 = median(seconds), seconds[int(len(seconds) * 0.99)]
            name = f"apps:deploy, updates live, {size:,} apps: {what}: p50, p99"
            yield Row(name, f"{p50 * 1000:.0f} ms", f"{p99 * 1000:.0f} ms", "")
        if len(found) > 1:
            small, large = map(median, found)
            name = f"apps:deploy, updates live: {what}, 5,000 apps / 10 apps"
            yield Row(name, f"{large * 1000:.0f} ms", f"{small * 1000:.0f} ms", f"{large / small:.2f}", "≤ 1.5")


PARTS = {"cli": cli_start, "change": changes, "deploy": deploys, "swap": swaps, "served": served, "request": requests}
HEAVY = False


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the router beside what it replaces.")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, by commas: %(default)s")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="also write the table into docs/performance.md")
    parser.add_argument("--heavy", action="store_true", help="also live deploys among 5,000 apps: some minutes more")
    options = parser.parse_args()
    global HEAVY
    HEAVY = options.heavy
    rows = []
    print(f"{'what':<88} {'router':>9} {'beside':>9} {'ratio':>10}  bound")
    for part in options.only.split(","):
        for row in PARTS[part](options.rounds):
            rows.append(row)
            print(f"{row.what:<88} {row.router:>9} {row.beside:>9} {row.ratio:>10}  {row.bound}", flush=True)
    if options.write:
        page = HERE.parent / "docs/performance.md"
        table = ["| what | router | beside | ratio | bound |", "|---|---|---|---|---|"]
        table += [f"| {r.what} | {r.router} | {r.beside} | {r.ratio} | {r.bound} |" for r in rows]
        text = page.read_text()
        head, _, rest = text.partition(MARKS[0])
        page.write_text(f"{head}{MARKS[0]}\n" + "\n".join(table) + f"\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")


if __name__ == "__main__":
    main()
