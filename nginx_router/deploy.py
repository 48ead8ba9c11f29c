"""Deploy, scale, retire and drain: how instances take over from each other while requests are served.

Each is one paragraph: the app's own lock, the gates, the checks, the change, the wait for what old workers still hold, the
hook, the answer.  Nothing changes before every new instance has answered; nothing is told as retired before nothing goes to
it any more, or the deadline has come and the connections that were left are counted.

The app's lock (ROOT/run/deploy/APP.lock) is held until the answer is given, so that two deploys of one app cannot interleave;
the host lock is held for the change alone.  Once the change is served, TERM and INT end only the wait.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from . import canaries, checks, health, runners
from .arguments import default_domains
from .checks import Check
from .errors import NotDrained, RouterError, UsageProblem
from .events import Event, refuse_locked
from .handover import Handover, Options, Show, Swap, hand_out, require_counts, swap_and_wait, turn
from .model import UPSTREAMS, App
from .names import WEB, Address, AppName, Domain, Endpoint, address, endpoint_argument, process_name, shown
from .reach import refuse_own_socket
from .upstreams import endpoint_lines

if TYPE_CHECKING:
    from .controller import Router

#: Process -> the addresses it is to have, in the order in which they were given.
Wanted = Mapping[str, Sequence[str]]


def wanted_of(words: Sequence[str]) -> Wanted:
    """`[PROCESS=]ADDRESS...` as given to deploy, by process.

    Raises:
        UsageProblem: one is neither.
    """
    found: dict[str, list[str]] = {}
    for endpoint in map(endpoint_argument, words):
        of_process = found.setdefault(endpoint.process, [])
        if endpoint.address.text not in of_process:
            of_process.append(endpoint.address.text)
    return found


def counts_of(words: Sequence[str]) -> dict[str, int]:
    """`PROCESS=COUNT...` as given to scale.

    Raises:
        UsageProblem: one is something else, or a process is named twice.
    """
    found: dict[str, int] = {}
    for word in words:
        process, equals, count = word.partition("=")
        if not equals or not count.isascii() or not count.isdigit() or len(count) > 4:
            raise UsageProblem(f"{shown(word)} is not PROCESS=COUNT", hint="such as web=3; 0 is allowed")
        if (name := str(process_name(process))) in found:
            raise UsageProblem(f"{name} is named twice: {name}={found[name]} and {word}", hint="one count for each process")
        found[name] = int(count)
    return found


def deploy(router: Router, app: str, wanted: Wanted, options: Options, show: Show) -> None:
    """Let the addresses `wanted` take over from those that their processes have now.

    An endpoint that stays keeps its flags, and the other processes keep theirs; but `drain` and `down` are taken off, and that is said:
    whoever names an endpoint here asks for requests to be sent to it, and has seen it answer.

    Raises:
        NotFound: there is no such app, and it is not to be created.
        Conflict: the app is locked, or its endpoints were changed during the checks.
        Busy: another deploy of this app is under way; its process is named.
        Refused: a plugin said no.
        ChecksFailed: a new instance does not answer; nothing was changed.
        NotDrained: deployed, but the wait was ended by a signal, or at the deadline with `strict`.
    """
    began = time.monotonic()
    with turn(router, app):
        event = takeover(router, app, wanted, options, named=wanted)
        with router.journalled(event):
            router.gate(event)
            check_new(router, event, options)
        swap = hand_out(router, app, swap_and_wait(router, event, "deployed", options))
        show(Handover.since(began, app, swap))


def scale(router: Router, app: str, counts: Mapping[str, int], options: Options, show: Show) -> None:
    """Let the runner have so many instances of each process, and route to what it answers with.

    What the runner started is stopped again where its instances do not answer or the change fails.

    Raises:
        NotFound: there is no such app, or no plugin that starts instances.
        PluginBroken: the runner's answer cannot be used.
        NotDrained: scaled, but not drained: nothing was stopped; and all that `deploy` raises.
    """
    began = time.monotonic()
    refuse_locked(router.app(app))  # whoever unlocks it first is told of a missing runner then
    runners.require(router, app)
    with turn(router, app):
        now = {process: [e.address.text for e in router.app(app).of_process(process)] for process in counts}
        for process, count in counts.items():
            event = takeover(router, app, {process: now[process]}, options, {process: count})
            with router.journalled(event):
                router.gate(event)
        if router.request.dry_run:
            router.request.say(f"would ask the runner for {' '.join(f'{p}={n}' for p, n in counts.items())}")
            return
        with runners.stopping_unused(router, app) as started:
            wanted = {process: runners.start(router, app, process, count, now[process], started) for process, count in counts.items()}
            event = takeover(router, app, wanted, options, counts)
            with router.journalled(event):
                check_new(router, event, options)
            swap = swap_and_wait(router, event, "scaled", options)
        swap = hand_out(router, app, swap)
        show(Handover.since(began, app, swap, still_running=runners.stop(router, app, swap.retired)))


def drain_endpoints(router: Router, app: str, addresses: Sequence[str], options: Options, show: Show) -> None:
    """Send nothing more to these endpoints, and wait until nothing is left on them; their lines stay.

    Raises:
        NotFound: there is no such app, or one is no endpoint of it.
        NotDrained: the wait was ended by a signal, or at the deadline with `strict`; or somebody let one in again meanwhile.
    """
    began = time.monotonic()
    swap = _set_drain(router, app, _addresses(addresses), options)
    if again := [one for one, apps in swap.staying.items() if app in apps]:
        gets = "gets" if len(again) == 1 else "get"
        raise _let_in(app, again, f"{gets} requests of {app} again: not drained", "upstreams:drain")
    show(Handover.since(began, app, replace(swap, retired=())))


def retire(router: Router, app: str, addresses: Sequence[str], options: Options, show: Show) -> None:
    """Drain these endpoints, then remove their lines: those that still drain then.

    One that is no endpoint of the app any more, because a deploy replaced it and did not drain it, is waited for as well, so that it may be
    stopped when this returns; it is not among those that are shown.

    Raises:
        NotFound: there is no such app.
        NotDrained: as for `drain_endpoints`, or the change that removes the lines failed: the lines are still there, and a second call
            goes on.  Or somebody let some in again meanwhile: the others were retired and shown.
    """
    began = time.monotonic()
    require_counts(router, app, options)
    there = {e.address.text for e in router.app(app).endpoints}
    asked = _addresses(addresses)
    for absent in (a for a in asked if a.text not in there):
        router.request.say(f"{absent} is not on {app}")
    given = [a for a in asked if a.text in there]
    again: Sequence[str] = ()
    swap = _set_drain(router, app, given, options, asked)
    swap = replace(swap, retired=tuple(one for one in swap.retired if one in there))
    if given and not router.request.dry_run:
        try:
            outcome = router.change([_upstreams(app, "remove", given, only_draining=True)])[0]
        except RouterError as why:
            what = f"draining as generation {swap.generation}, their lines are not removed: {why.message}"
            raise NotDrained(what, hint=_same_again("apps:retire", app, [a.text for a in given]), app=app) from why
        again = outcome.answer.get("left", ())
        swap = replace(swap.followed_by(outcome), retired=tuple(one for one in swap.retired if one not in again))
        swap = hand_out(router, app, swap)
    show(Handover.since(began, app, swap))
    if again:
        does = "does" if len(again) == 1 else "do"
        raise _let_in(app, again, f"{does} not drain any more: left on {app}", "apps:retire")


def _let_in(app: str, again: Sequence[str], what: str, command: str) -> NotDrained:
    # never a conflict, which would say that nothing was changed: the flag was set and served, whoever took it off again since; and where
    # it stood there before, what a script has to do is the same: it leaves alone what was not printed
    return NotDrained(f"{' '.join(again)} {what}", hint=f"somebody let it in during the wait; {_same_again(command, app, again)}", app=app)


def _same_again(command: str, app: str, addresses: Sequence[str]) -> str:
    return f"again: router {command} {app} {' '.join(addresses)}"


def takeover(
    router: Router, app: str, wanted: Wanted, options: Options, counts: Mapping[str, int] | None = None, *, named: Wanted | None = None
) -> Event:
    """The event of a deploy or scale, with the lines that it expects to replace.

    `named` are those that the command names: they get requests, whatever flag said that they do not.

    Raises:
        NotFound: there is no such app, and it is not to be created.
        Conflict: the app is locked.
    """
    if router.store.exists(app) or not options.create:
        found = router.app(app)
        refuse_locked(found)
        canaries.refuse_under_way(found)
    args = expecting(router, app, wanted, named)
    if options.create:
        args |= {"create": True, "domains": default_domains(router, app)}
    if counts is not None:
        args["counts"] = dict(counts)
    return Event("deploy" if counts is None else "scale", app, args)


def expecting(router: Router, app: str, wanted: Wanted, named: Wanted | None = None) -> dict[str, Any]:
    """What an event says that replaces the lines of these processes: what is to come, and the lines that it expects to replace.

    `named` as for `takeover`; without it flags stay.
    """
    text = (router.store.texts(app) or {}).get(UPSTREAMS, "")
    return {
        "processes": {p: list(a) for p, a in wanted.items()},
        "existed": router.store.exists(app),
        "expected": {process: endpoint_lines(text, process) for process in wanted},
        **({"named": {p: list(a) for p, a in named.items()}} if named else {}),
    }


def check_new(router: Router, event: Event, options: Options) -> None:
    """See every instance answer that the event names.

    Raises:
        ChecksFailed: one does not; nothing was changed.
    """
    if router.request.dry_run:
        return
    assert event.app is not None
    existed = event.args["existed"]
    app = router.app(event.app) if existed else App(AppName(event.app), tuple(map(Domain, event.args["domains"])))
    check_instances(router, app, event.args["processes"], options)


def check_instances(router: Router, app: App, processes: Wanted, options: Options) -> None:
    """See these instances answer, each as it is asked for its process: one that two processes have, in both ways.

    Raises:
        ChecksFailed: one does not.
    """
    asked = []
    index = router.index()
    for process, addresses in processes.items():
        check = replace(_check_of(router, app, process, options), user=index.facts.user if index else "")
        for one in map(address, addresses):
            refuse_own_socket(router.paths.root, app.name, one)
            asked.append((one, check))
    checks.run(app.name, asked, router.request.say, _resolved_by_plugins(router, app.name, [each for each, _ in asked]))


def _check_of(router: Router, app: App, process: str, options: Options) -> Check:
    """How the instances of a process are asked: as the command says, else as the app's files do.

    Raises:
        UsageProblem: what router.toml says of checks breaks a rule.
    """
    found = health.settings_of(router.tables(), app, process, router.settings().plugins)
    host = found.host if found else health.first_domain(app)
    if options.check is not None or found is None:
        return Check(options.check, host, options.check_timeout)
    each = found.timeout if found.is_timeout_set else None
    return Check(found.path, host, options.check_timeout, each, found.statuses)


def _resolved_by_plugins(router: Router, app: str, addresses: Sequence[Address]) -> dict[str, list[str]]:
    """Host name -> IP addresses, of the names that a plugin knows: they are checked where nginx will look for them."""
    found = {}
    if router.plugins.has("endpoint-resolve"):
        for host in sorted({a.host for a in addresses if not a.is_literal}):
            answer = router.plugins.first("endpoint-resolve", runners.told(router, app, "deploy", host=host, endpoints=[host]))
            if answer:
                found[host] = answer[1].split()
    return found


def _addresses(words: Sequence[str]) -> list[Address]:
    return list(dict.fromkeys(map(address, words)))


def _set_drain(
    router: Router, app: str, addresses: Sequence[Address], options: Options, waited_for: Sequence[Address] | None = None
) -> Swap:
    retired = [a.text for a in (addresses if waited_for is None else waited_for)]
    return swap_and_wait(router, _upstreams(app, "drain", addresses), "draining", options, retired)


def _upstreams(app: str, verb: str, addresses: Sequence[Address], **more: Any) -> Event:
    return Event("upstreams", app, {"verb": verb, "endpoints": [Endpoint(WEB, a).line() for a in addresses], **more})
