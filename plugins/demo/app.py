#!/usr/bin/env python3
"""A small web app that says which version and which instance of it answered.

`demo_app.py blog v1` listens on a free loopback port (`--port N`: on that one) and prints its address when it is ready.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType


class Server(ThreadingHTTPServer):
    """Threads that do not outlive it, and a backlog for a burst of new connections."""

    daemon_threads = True
    request_queue_size = 128
    app = version = ""


class Handler(BaseHTTPRequestHandler):
    """Says who answers."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        """The app, its version and its address; in headers too, with the pid."""
        address = f"127.0.0.1:{self.server.server_port}"
        body = f"{self.server.app} {self.server.version} from {address}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-App", self.server.app)
        self.send_header("X-Version", self.server.version)
        self.send_header("X-Instance", address)
        self.send_header("X-Pid", str(os.getpid()))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing: the router's access log has it."""


def main() -> None:
    """Serve until TERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("app")
    parser.add_argument("version")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)
    with Server(("127.0.0.1", options.port), Handler) as server:
        server.app, server.version = options.app, options.version
        print(f"127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
