"""What systemd wants to hear of a service of `Type=notify`: sd_notify(3), by the standard library alone."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Mapping

#: How long the service may be at one thing before its watchdog is no longer told that it lives: a change of ten thousand
#: apps behind somebody who holds the host lock for a minute is no reason to be killed.
LONGEST_STEP = 600.0


class Notifier:
    """Tells systemd how the service is; where nobody listens it does nothing."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        env = os.environ if environ is None else environ
        self._address = env.get("NOTIFY_SOCKET", "")
        usec, pid = env.get("WATCHDOG_USEC", ""), env.get("WATCHDOG_PID", "")
        is_asked = usec.isdigit() and int(usec) > 0 and pid in ("", str(os.getpid()))
        #: Seconds within which systemd wants a sign of life; 0: it does not.
        self.watchdog = int(usec) / 1e6 if is_asked and self._address else 0.0
        self._good_until = 0.0
        self._ended = threading.Event()
        self._pulse: threading.Thread | None = None

    def ready(self, status: str) -> None:
        """The service does its work, or does it again after `reloading`."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self, status: str) -> None:
        """It takes its configuration up anew; `ready` follows."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", f"STATUS={status}")

    def status(self, status: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={status}")

    def stopping(self, status: str) -> None:
        """It is about to end."""
        self._ended.set()
        self._send("STOPPING=1", f"STATUS={status}")

    def lives(self) -> None:
        """The service went on: systemd hears so twice within its deadline, until this was not called for `LONGEST_STEP`."""
        self._good_until = time.monotonic() + LONGEST_STEP
        if self.watchdog and not self._ended.is_set() and not (self._pulse and self._pulse.is_alive()):
            # a thread: the service may wait for the host lock for longer than systemd waits for it
            self._pulse = threading.Thread(target=self._beat, daemon=True)
            self._pulse.start()

    def _beat(self) -> None:
        while time.monotonic() < self._good_until:
            self._send("WATCHDOG=1")
            if self._ended.wait(self.watchdog / 2):
                return

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address  # @: the abstract namespace of Linux
        # a service manager that does not read must not hold the service up
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(1)
            sender.connect(address)
            sender.send("\n".join(line.replace("\n", " ") for line in lines).encode(errors="replace"))
