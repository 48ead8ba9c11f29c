"""Adds a header to every answer."""

import pluggy

hookimpl = pluggy.HookimplMarker("router")


@hookimpl
def nginx_server_snippet(event):
    """What this returns stands in each server block of the app; `event` is a dict, `event.config` its keys."""
    return f'add_header __HEADER__ "{event.config["value"]}" always;\n'


def hello(router):
    """Say the value of the header.

    Example: router __NAME__:hello
    """
    router.out.data(router.plugins.config("__NAME__")["value"])
