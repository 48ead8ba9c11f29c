"""`router`, and `python -m nginx_router`."""

import signal


def main() -> int:
    """Run the command line of this process; the exit code."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the rest is imported: an end, and no traceback
    from .cli import main as run

    return run()


if __name__ == "__main__":
    raise SystemExit(main())
