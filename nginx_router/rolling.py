"""Deploy in batches: the new instances take over a few at a time, so that no more than a few old ones are ever missing.

Each batch is a deploy of its own: its new instances answer, it is served, the old ones that it replaces are drained and
printed, so that a script may stop them and have room for the next.  A batch that fails ends it there: what serves then is said,
and that is a whole state like any other, from which the same command goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from . import interrupts
from .deploy import Wanted, check_new, takeover
from .errors import NotDrained, RouterError, Terminated, UsageProblem
from .handover import Handover, Options, Show, Swap, hand_out, swap_and_wait, turn
from .names import instance

if TYPE_CHECKING:
    from .controller import Router

#: Is given the retired of one batch, as soon as they may be stopped.
Tell = Callable[[Sequence[str]], None]


def plan(now: Wanted, wanted: Wanted, size: int) -> list[dict[str, list[str]]]:
    """The addresses of each process after each batch, in which `size` of its instances come and as many go."""
    coming = {process: [a for a in wanted[process] if a not in now[process]] for process in wanted}
    leaving = {process: [a for a in now[process] if a not in wanted[process]] for process in wanted}
    most = max(len(each) for group in (coming, leaving) for each in group.values())
    return [
        {p: [a for a in now[p] if a not in leaving[p][: n * size]] + coming[p][: n * size] for p in wanted}
        for n in range(1, max(1, -(-most // size)) + 1)
    ]


def deploy(router: Router, app: str, wanted: Wanted, size: int, options: Options, tell: Tell, show: Show) -> None:
    """Let the addresses `wanted` take over, `size` of each process at a time.

    Raises:
        UsageProblem: `size` is no number of instances.
        NotDrained: a batch was served and not drained, or one behind the first came to nothing (its error is the message): what was
            deployed until then serves, and the batches behind it were not begun.
        RouterError: all else that a deploy raises, of the first batch; nothing was changed.
    """
    began = time.monotonic()
    if size < 1:
        raise UsageProblem(f"--batch {size} is not a number of instances")
    with turn(router, app):
        whole = takeover(router, app, wanted, options)
        with router.journalled(whole):
            router.gate(whole)
        existed = whole.args["existed"]
        now = {p: [e.address.text for e in router.app(app).of_process(p)] if existed else [] for p in wanted}
        batches = plan(now, wanted, size)
        if router.request.dry_run:
            router.request.say(f"would go in {len(batches)} batch{'' if len(batches) == 1 else 'es'}")
            batches = [{p: list(a) for p, a in wanted.items()}]
        done = Swap(None, "nothing", ())
        there = now
        for number, batch in enumerate(batches):
            # those that stay are looked at once, as by any deploy
            asked = {p: [a for a in batch[p] if (a in wanted[p] if number == 0 else a not in there[p])] for p in batch}
            try:
                interrupts.resume()  # until this batch is served
                if interrupts.came():
                    raise Terminated
                event = takeover(router, app, batch, options, named=asked)
                with router.journalled(event):
                    check_new(router, replace(event, args={**event.args, "processes": asked}), options)
                swap = swap_and_wait(router, event, "deployed", options)
            except (RouterError, Terminated, KeyboardInterrupt) as why:
                if not number and not isinstance(why, NotDrained):
                    raise
                interrupts.hold()  # what the batches before it changed is to be told
                if number and router.out.is_json:
                    show(Handover.since(began, app, done))
                what = why.message if isinstance(why, RouterError) else "ended by a signal"
                is_served = isinstance(why, NotDrained)
                said = what if is_served else f"deployed in part, batch {number + 1} of {len(batches)} is not: {what}"
                # the app is not read again: what ended it may be that nobody can
                _say_serving(router, app, now, batch if is_served else there, f"{number + is_served} of {len(batches)}")
                raise NotDrained(said, hint=_ways(app, now, wanted, size, options), app=app) from why
            there = batch
            swap = hand_out(router, app, swap)
            if not router.request.dry_run:
                tell(swap.retired)
            done = done.and_then(swap)
        show(Handover.since(began, app, done))


def _say_serving(router: Router, app: str, now: Wanted, serving: Wanted, batch: str) -> None:
    new = {p: [a for a in addresses if a not in now[p]] for p, addresses in serving.items()}
    old = {p: [a for a in addresses if a in now[p]] for p, addresses in serving.items()}
    router.request.say(f"app {app} serves {_words(new) or 'none'} (new) and {_words(old) or 'none'} (old) as of batch {batch}")


def _ways(app: str, now: Wanted, wanted: Wanted, size: int, options: Options) -> str:
    """How to go on or back."""
    on = f"router apps:deploy {app} {_words(wanted)} --batch {size}{options.words()}"
    # how the new ones are checked need not be how the old ones answer
    back = f"router apps:deploy {app} {_words(now)} --batch {size}{replace(options, check=None).words()}"
    return f"go on: {on}" + (f"; or back: {back}" if all(now.values()) else "")


def _words(addresses: Mapping[str, Sequence[str]]) -> str:
    return " ".join(instance(p, a) for p, each in addresses.items() for a in each)
