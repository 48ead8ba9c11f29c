"""`router watch`: makes serving equal to the directories whenever somebody edits them.

Whatever an event says, what counts is what the directories hold when it is taken up: an event only names what to look at.
So nothing is lost when events are, and what a command wrote itself is no change any more when it is looked at.

    watchdog's threads -> a queue -> still for 100 ms -> differs from the current generation? -> one reconcile, one reload

Everything but the looking happens in the main thread, one thing at a time.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator

from . import anew, interrupts
from .checking import Checking
from .controller import Request, Router
from .endpointlog import NAME as LOG
from .errors import Busy, RouterError, Terminated
from .files import FileLock
from .judging import Aborted, Judging
from .keeping import Keeping
from .prober import Verdict
from .resolving import Addresses
from .stillness import Burst
from .systemd import Notifier
from .takingup import TakingUp
from .times import stamp
from .watching import CODE, HOST, INTENT, LOST, POLL, ROOT, InotifyFull, Touch, Watching

#: Seconds between two resolutions of the host names of endpoints.
RESOLVE = 30.0

#: Seconds between two looks whether the root is still the one that is watched: a renamed parent makes no event.
LOOK = 5.0

#: Seconds between two looks whether nginx still runs: kill -9 of its master makes no event.
NGINX_LOOK = 1.0

#: Seconds after its start before a changed program or plugin makes it start again: a plugin may write into its own directory.
YOUNGEST = 2.0

#: Seconds after which a changed program that did not run is tried again.
LONGEST_INSTALLATION = 30.0

#: Seconds between two looks for the end of a command that is in the middle of a change.
CRASH_LOOK = 0.3

_HANGUP = "/hangup"


class _Gone(Exception):
    """The root is not there, or another one lies in its place."""


class Watcher:
    """Watches one root."""

    def __init__(self, router: Router, *, resolve: float = RESOLVE) -> None:
        self._out = router.out
        self._router = Router(router.paths, Request(command="watch", say=self._say))
        self._paths = router.paths
        self._resolve_every = resolve
        self._systemd = Notifier()
        self._queue: queue.SimpleQueue[Touch | Addresses | Verdict | Aborted] = queue.SimpleQueue()
        self._watching = Watching(self._paths, self._queue.put)
        self._lock = FileLock(self._paths.run / "watch.lock")
        self._burst = Burst()
        self._identity: tuple[tuple[int, int], ...] = ()
        self._taking_up = TakingUp(self._router, tell=self._tell, say=self._say)
        self._keeping = Keeping(self._router, tell=self._tell, say=self._say)
        self._checking = Checking(self._router, self._queue.put, tell=self._tell, say=self._say)
        self._judging = Judging(self._router, self._queue.put, tell=self._tell, say=self._say)
        self._served: tuple[object, ...] = ()
        self._began = time.monotonic()
        self._is_ending = False
        #: When what is done by the clock is next done: absent where it is not.
        self._clock: dict[str, float] = {}

    def run(self) -> None:
        """Watch until TERM or INT; for a process that does nothing else.

        Raises:
            Busy: the root is watched already; by whom.
            RouterError: the root cannot be used at all.
        """
        with _signals(self._leave, lambda: self._queue.put(Touch(_HANGUP, "", is_held=False))):
            # a thread of watchdog's that dies leaves the rest blind; and what it warns of are its own affairs
            threading.excepthook = lambda args: self._queue.put(Touch(LOST, str(args.exc_value), is_held=False))
            warnings.filterwarnings("ignore", module="watchdog")
            try:
                self._router.store.prepare()
                while True:
                    try:
                        self._begin()
                        while True:
                            self._go_on()
                    except _Gone:
                        self._wait_for_root()
            except Terminated:
                pass
            finally:
                self._end()

    # the loop

    def _begin(self) -> None:
        self._systemd.lives()
        try:
            self._router.store.prepare()
            is_free = self._lock.try_acquire()
        except FileNotFoundError:
            raise _Gone from None
        if not is_free:
            raise Busy(f"{self._paths.root} is watched already, by {self._lock.holder()}", hint="one watch a root is enough")
        self._identity = self._identify()
        self._look()
        self._mend()
        self._keep()
        self._end_if_asked()  # what it has started is no reason to ask all plugins first
        self._taking_up.all()
        self._checking.look()
        self._judging.look()
        self._clock["look"] = time.monotonic() + LOOK
        self._tell(f"watching {self._paths.root}{', by looking' if self._watching.is_polling else ''}: {self._taking_up.status()}")
        self._systemd.ready(self._taking_up.status())

    def _leave(self) -> None:
        self._is_ending = True
        if not interrupts.is_held():
            raise Terminated

    def _end_if_asked(self) -> None:
        """Leave, if a signal came in the middle of a change, which was finished; from here on one leaves at once."""
        interrupts.resume()
        if self._is_ending:
            raise Terminated

    def _go_on(self) -> None:
        self._end_if_asked()
        self._systemd.lives()
        try:
            self._step()
        except (RouterError, OSError) as why:
            self._check_root()  # what else would be wrong with it needs no more words
            self._taking_up.left_out(why)

    def _step(self) -> None:
        """Wait for the next thing, and do it."""
        times = [*self._clock.values(), self._burst.due(), self._taking_up.due, self._checking.due, self._judging.due]
        self._gather(max(0.0, min(each for each in times if each is not None) - time.monotonic()))
        now = time.monotonic()
        for what, action in (
            ("look", self._check_root),
            ("intent", self._check_intent),
            ("nginx", self._keep),
            ("names", self._ask_names),
            ("code", self._start_anew),
        ):
            if self._clock.get(what, now + 1) <= now:
                del self._clock[what]
                action()
                self._end_if_asked()
        if self._taking_up.due is not None and self._taking_up.due <= now:
            self._taking_up.again()
            self._checking.look()
            self._end_if_asked()
        if self._checking.due is not None and self._checking.due <= now:
            self._checking.flush()
            self._judging.look()
            self._end_if_asked()
        if self._judging.due is not None and self._judging.due <= now:
            self._judging.judge()
        touched = self._burst.take(time.monotonic())
        if touched:
            self._check_root()
            self._handle(touched)
            self._checking.look()
            self._judging.look()
            self._systemd.status(self._taking_up.status())
        if self._taking_up.names and self._resolve_every > 0:
            self._clock.setdefault("names", time.monotonic() + self._resolve_every)

    def _gather(self, seconds: float) -> None:
        """Wait for the next event, for `seconds` at most, and take in all that have come."""
        with contextlib.suppress(queue.Empty):
            each = self._queue.get(timeout=seconds)
            while True:
                self._take_in(each)
                each = self._queue.get_nowait()

    def _take_in(self, each: Touch | Addresses | Verdict | Aborted) -> None:
        if isinstance(each, Verdict):
            self._checking.found(each)
        elif isinstance(each, Aborted):
            self._judging.ended(each)
        elif not isinstance(each, Touch):
            self._taking_up.resolved(each)
            self._checking.look()
        elif each.what == INTENT:
            self._clock.setdefault("intent", time.monotonic() + CRASH_LOOK)
        elif each.what == ROOT:
            self._clock["look"] = time.monotonic()
        else:
            self._burst.touch(each.what, time.monotonic(), file=each.file, is_held=each.is_held)

    def _handle(self, touched: list[str]) -> None:
        if CODE in touched:
            self._clock["code"] = max(time.monotonic(), self._began + YOUNGEST)
        if _HANGUP in touched or LOST in touched or self._watching.is_short():
            self._look_again("SIGHUP" if _HANGUP in touched else "events were lost")
            return
        apps = [what for what in touched if not what.startswith("/")]
        if self._is_in_hand():
            # a command is in the middle of a change: what it wrote is current in a moment
            for what in (HOST, *apps):
                if what in touched:
                    self._burst.touch(what, time.monotonic())
            return
        self._taking_up.touched(apps, is_host=HOST in touched)

    def _look_again(self, why: str) -> None:
        self._systemd.reloading("everything is looked at again")
        self._tell(f"{why}: everything is looked at again")
        self._look()
        self._taking_up.all()
        self._systemd.ready(self._taking_up.status())

    # what commands leave

    def _is_in_hand(self) -> bool:
        """Whether a command is in the middle of a change; what one left behind that was killed there is mended."""
        if not self._router.store.is_changing():
            return False
        lock = FileLock(self._paths.lock)
        try:
            if not lock.try_acquire():
                return True
        finally:
            lock.release()
        if self._router.store.is_changing():
            self._mend()
        return False

    def _check_intent(self) -> None:
        if self._is_in_hand():
            self._clock["intent"] = time.monotonic() + CRASH_LOOK

    def _mend(self) -> None:
        """Finish or undo what a killed command left; one that has the host lock is not killed, and mends itself what it finds."""
        lock = FileLock(self._paths.lock)
        try:
            try:
                if not lock.try_acquire():
                    return
                found, before, was_changing = self._router.store.intent(), self._router.index(), self._router.store.is_changing()
            finally:
                lock.release()
            if found is None and not was_changing:
                return
            with self._router.locked():
                pass  # whoever has the lock mends first
        except (RouterError, OSError) as why:
            self._taking_up.left_out(why)
            return
        index = self._router.index()
        if found is not None:
            is_finished = index is not None and index.number == found[0]["number"]
            what = f"generation {found[0]['number']}"
        elif was_changing and index is not None and before is not None:
            # a change of endpoints makes no generation: its log has it or has it not
            is_finished = before.is_unfinished and index.live == before.live
            what = f"a change of endpoints of generation {before.number}"
        else:
            return
        self._tell(f"{'finished' if is_finished else 'took back'} {what}, whose command was killed")

    # nginx

    def _keep(self) -> None:
        """Start a managed nginx that ended; what could not be taken up without it is tried again then."""
        self._clock["nginx"] = time.monotonic() + NGINX_LOOK
        if self._keeping.look() and self._taking_up.due is not None:
            self._taking_up.again()
        if (served := self._served_now()) != self._served:
            self._served = served
            self._checking.look()
            self._judging.look()

    def _served_now(self) -> tuple[object, ...]:
        """Another one whenever something else is served: a deploy may take an endpoint in again and write no file of its app."""
        current = self._paths.current
        try:
            target = current.readlink()
        except OSError:
            return ()
        try:
            return target, (current / LOG).stat().st_size
        except OSError:
            return (target,)

    # names

    def _ask_names(self) -> None:
        """Ask for the addresses of all names; the answers come through the queue."""
        self._taking_up.names.ask(self._queue.put)

    # the root, the program and the end

    def _look(self) -> None:
        """Look at everything, by inotify if it can be had."""
        try:
            self._watching.start()
        except InotifyFull as full:
            self._say(
                f"the kernel has no room for another watch: {full} is too small (sysctl {full}); "
                f"looking every {POLL:g} s instead until SIGHUP or a restart"
            )
            self._watching.start(polling=True)
        except FileNotFoundError:
            raise _Gone from None

    def _identify(self) -> tuple[tuple[int, int], ...]:
        try:
            stats = [path.stat() for path in (self._paths.root, self._paths.apps, self._paths.run)]
        except OSError:
            raise _Gone from None
        return tuple((each.st_dev, each.st_ino) for each in stats)

    def _check_root(self) -> None:
        self._clock["look"] = time.monotonic() + LOOK
        if self._identify() != self._identity:
            raise _Gone

    def _wait_for_root(self) -> None:
        """Wait until there are apps again; that all of them are gone at once is nobody's wish."""
        self._end_if_asked()
        self._watching.stop()
        self._lock.release()
        self._clock.clear()
        self._burst = Burst()
        time.sleep(0.2)  # whoever replaces it may be at it
        said = False
        while not self._paths.apps.is_dir():
            if not said:
                self._say(f"{self._paths.apps} is gone: nginx goes on with what it has, nothing is taken up until it is back")
                self._systemd.status(f"{self._paths.apps} is gone")
                said = True
            self._systemd.lives()
            time.sleep(1)
        self._tell(f"{self._paths.root} was replaced: everything is looked at again")
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()

    def _start_anew(self) -> None:
        """Become a new process: templates, plugins or the program itself were changed."""
        if problem := anew.problem():
            self._say(f"the program was changed and does not run, so that this one goes on: {problem}")
            self._clock["code"] = time.monotonic() + LONGEST_INSTALLATION
            return
        self._tell("a template, a plugin or the program was changed: starting anew")
        self._systemd.reloading("starting anew")
        self._watching.stop()
        try:
            anew.become(_SIGNALS)
        except OSError as why:
            self._look_again(f"not started anew ({why})")

    def _end(self) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        self._systemd.stopping("stopping")
        self._checking.stop()
        self._watching.stop()
        self._lock.release()

    # words

    def _tell(self, line: str) -> None:
        self._out.data(f"{stamp()} {line}")
        self._out.flush()

    def _say(self, line: str) -> None:
        self._out.say(f"{stamp()} {line}")


_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextlib.contextmanager
def _signals(leave: Callable[[], None], hangup: Callable[[], None]) -> Iterator[None]:
    """Within it TERM and INT call `leave`, and HUP `hangup`."""
    calls = {signal.SIGTERM: leave, signal.SIGINT: leave, signal.SIGHUP: hangup}
    before = {each: signal.signal(each, lambda number, frame: calls[signal.Signals(number)]()) for each in _SIGNALS}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # one that started anew was born with them blocked
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
