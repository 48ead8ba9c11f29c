"""Instances take over from each other: deploy, scale, retire, drain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from nginx_router import canary as canary_engine
from nginx_router import deploy as engine
from nginx_router import rolling
from nginx_router.arguments import existing
from nginx_router.errors import UsageProblem
from nginx_router.handover import Handover, Options, Show, require_counts
from nginx_router.names import app_name, shown
from nginx_router.output import cost

if TYPE_CHECKING:
    from nginx_router.controller import Router

USAGE = "usage: router apps:deploy APP [PROCESS=]ADDRESS... [--canary SHARE], or APP --promote | --abort"

AppArgument = Annotated[str, typer.Argument(metavar="APP", help="The app.")]
AddressArguments = Annotated[
    list[str], typer.Argument(metavar="ADDRESS...", help="Such as 10.0.0.3:5000, [::1]:5000, unix:/run/blog.sock.")
]
CheckOption = Annotated[
    str | None, typer.Option("--check", metavar="/PATH", help="Ask by HTTP GET; 2xx and 3xx pass. Without it: a TCP connect.")
]
CheckTimeoutOption = Annotated[float, typer.Option("--check-timeout", metavar="S", help="Seconds for all checks together (30).")]
DrainOption = Annotated[float, typer.Option("--drain", metavar="S", help="Seconds to wait for requests on old instances (30).")]
StrictOption = Annotated[bool, typer.Option("--drain-strict", help="If they are not done by then: exit 15, and nothing is printed.")]
WebsocketsOption = Annotated[
    str, typer.Option("--websockets", metavar="keep|close", help="Whether websockets to old instances are waited for like requests (keep).")
]


def deploy(
    router: Router,
    app: AppArgument,
    endpoints: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PROCESS=]ADDRESS...", help="All instances of each process, web if none is named: 10.0.0.3:5000, api=10.0.0.3:5001."
        ),
    ] = None,
    check: CheckOption = None,
    check_timeout: CheckTimeoutOption = 30.0,
    drain: DrainOption = 30.0,
    drain_strict: StrictOption = False,
    websockets: WebsocketsOption = "keep",
    create: Annotated[bool, typer.Option("--create", help="Create the app if there is none.")] = False,
    batch: Annotated[int | None, typer.Option("--batch", metavar="N", help="N instances of each process at a time.")] = None,
    canary: Annotated[
        str | None,
        typer.Option("--canary", metavar="SHARE", help="Such as 10%: that share of the clients gets the instances, and the old ones stay."),
    ] = None,
    promote: Annotated[bool, typer.Option("--promote", help="The canary takes over.")] = False,
    abort: Annotated[bool, typer.Option("--abort", help="The canary goes.")] = False,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why it is aborted; kept until the next deploy.")] = "",
) -> None:
    """Check new instances, let them take over, wait until the old ones have finished; stdout: the old ones, one a line.

    Example: router apps:deploy blog 10.0.0.7:5000 --check /health | xargs -r docker stop
    """
    name = app_name(app) if create else existing(router, app)
    options = Options(check, check_timeout, drain, drain_strict, create, websockets)
    require_counts(router, name, options)
    show = _shown(router, "promoted" if promote else "aborted" if abort else "deployed", is_printed=batch is not None)
    flags = (("promote", promote), ("abort", abort), ("create", create), ("reason", reason), ("batch", batch is not None))
    words = [f"--{word}" for word, is_given in (("canary", canary is not None), *flags) if is_given]
    if len(words) > 1 and words not in (["--abort", "--reason"], ["--create", "--batch"]):
        raise UsageProblem(f"{' and '.join(words)} do not go together", hint=USAGE)
    if words == ["--reason"]:
        raise UsageProblem("--reason is one of --abort", hint=USAGE)
    if not reason.isprintable():
        raise UsageProblem(f"{shown(reason)} is not a reason: one line of text")
    if (promote or abort) == bool(endpoints):
        raise UsageProblem(f"{words[0]} takes no ADDRESS" if endpoints else "ADDRESS... is missing", hint=USAGE)
    if promote:
        canary_engine.promote(router, name, options, show)
    elif abort:
        canary_engine.abort(router, name, options, show, reason)
    elif canary is not None:
        canary_engine.begin(router, name, engine.wanted_of(endpoints or ()), canary, options, show)
    elif batch is not None:
        rolling.deploy(router, name, engine.wanted_of(endpoints or ()), batch, options, _printed(router), show)
    else:
        engine.deploy(router, name, engine.wanted_of(endpoints or ()), options, show)


def scale(
    router: Router,
    app: AppArgument,
    counts: Annotated[list[str], typer.Argument(metavar="PROCESS=COUNT...", help="Such as web=3; 0 is allowed.")],
    check: CheckOption = None,
    check_timeout: CheckTimeoutOption = 30.0,
    drain: DrainOption = 30.0,
    drain_strict: StrictOption = False,
    websockets: WebsocketsOption = "keep",
) -> None:
    """Let a runner (a plugin that starts instances) run so many, route to them, and stop what is too many; stdout: what of these
    still runs.

    Example: router apps:scale blog web=3
    """
    name = existing(router, app)
    options = Options(check, check_timeout, drain, drain_strict, websockets=websockets)
    require_counts(router, name, options)
    engine.scale(router, name, engine.counts_of(counts), options, _shown(router, "scaled"))


def retire(
    router: Router,
    app: AppArgument,
    addresses: AddressArguments,
    drain: DrainOption = 30.0,
    drain_strict: StrictOption = False,
    websockets: WebsocketsOption = "keep",
) -> None:
    """Send nothing more to endpoints, wait for their last requests, remove their lines; stdout: what may be stopped, one a line.

    Example: router apps:retire blog 10.0.0.3:5000 | xargs -r docker stop
    """
    options = Options(drain=drain, strict=drain_strict, websockets=websockets)
    engine.retire(router, existing(router, app), addresses, options, _shown(router, "removed"))


def drain(
    router: Router,
    app: AppArgument,
    addresses: AddressArguments,
    drain: DrainOption = 30.0,
    drain_strict: StrictOption = False,
    websockets: WebsocketsOption = "keep",
) -> None:
    """Send nothing more to endpoints and wait until nothing is left on them; their lines stay, with the word drain.

    Example: router apps:upstreams:drain blog 10.0.0.3:5000
    """
    options = Options(drain=drain, strict=drain_strict, websockets=websockets)
    engine.drain_endpoints(router, existing(router, app), addresses, options, _shown(router, "drained"))


def _printed(router: Router) -> rolling.Tell:
    def tell(retired: Sequence[str]) -> None:
        if not router.out.is_json:
            for address in retired:
                router.out.data(address)
            router.out.flush()

    return tell


def _shown(router: Router, done: str, *, is_printed: bool = False) -> Show:
    def show(handover: Handover) -> None:
        if router.out.is_json:
            router.out.json(handover.as_json())
        elif not router.request.dry_run and not is_printed:  # a script stops what is printed
            for address in handover.still_running:
                router.out.data(address)
        router.out.flush()
        if not router.out.is_json and not router.request.dry_run:
            router.out.say(_summary(done, handover))

    return show


def _summary(done: str, handover: Handover) -> str:
    """What became of it, what it cost as every change says it, and how long a person waited."""
    swap = handover.swap
    if swap.kind == "nothing":
        is_new = any(not outcome.event.args.get("existed", True) for outcome in swap.outcomes)
        what = f"created; nothing leads to it before: router domains:add {handover.app} DOMAIN" if is_new else "nothing to change"
    elif any(outcome.serving is not None for outcome in swap.outcomes):
        what = f"{done} as generation {swap.generation}, {swap.kind}, {cost(swap.outcomes)}"
    else:
        what = f"saved as generation {swap.generation}"  # that the proxy is stopped was said
    return f"{handover.app}: {what}, {handover.seconds:.2f} s, retired {len(swap.retired)}"
