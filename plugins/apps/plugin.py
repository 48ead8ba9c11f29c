"""The life of an app: create, destroy, rename, clone, lock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from nginx_router.arguments import change, default_domains, existing
from nginx_router.controller import Outcome
from nginx_router.errors import Conflict, HostProblem, NginxRejected, PluginBroken, TemplateError, UsageProblem
from nginx_router.events import Event
from nginx_router.names import app_name, shown

if TYPE_CHECKING:
    from nginx_router.controller import Router

AppArgument = Annotated[str, typer.Argument(metavar="APP", help="The app.")]
NewArgument = Annotated[str, typer.Argument(metavar="NEW", help="The new name.")]


def create(router: Router, app: AppArgument) -> None:
    """Create an app, with the domain APP.GLOBAL for each global domain (an app with a dot in its name gets that name).

    Example: router apps:create blog
    """
    name = app_name(app)
    is_there = router.store.exists(name)
    event = Event("create", name, {"domains": [] if is_there else default_domains(router, name), "existed": is_there})
    try:
        change(router, [event])
    except (UsageProblem, Conflict, TemplateError, NginxRejected, PluginBroken) as why:
        if not is_there or isinstance(why, HostProblem) or not router.store.exists(name):
            raise
        # it was asked for the app, and that is there; what keeps its edits from being served is said by whatever changes it
        notes = (f"app {name} exists already; its files are not taken up: {why.message}",)
        router.out.say(notes[0])
        router.out.changed([Outcome(event, name, router.generations.current_number(), router.serving(), notes=notes)])


def destroy(router: Router, app: AppArgument, force: Annotated[bool, typer.Option("--force", help="Do not ask.")] = False) -> None:
    """Destroy an app: nginx serves it no more, its domains are free, its directory is gone.

    Example: router apps:destroy blog --force
    """
    name = existing(router, app)
    if not force and not router.out.is_dry_run:
        answer = router.out.confirm(f"Destroy app {name} with all its settings?")
        if answer is None:
            raise UsageProblem(f"{name} was kept: nobody is there to confirm it", hint=f"router apps:destroy {name} --force")
        if not answer:
            raise UsageProblem(f"{name} was kept")
    change(router, [Event("destroy", name)])


def rename(router: Router, old: Annotated[str, typer.Argument(metavar="OLD", help="The app.")], new: NewArgument) -> None:
    """Give an app another name; of its domains only OLD.GLOBAL follows.

    Example: router apps:rename blog journal
    """
    name = existing(router, old)
    change(router, [Event("rename", name, {"new": app_name(new), "globals": list(router.settings().domains)})])


def clone(router: Router, app: AppArgument, new: NewArgument) -> None:
    """Create an app with the settings of another, but not its domains and endpoints.

    Example: router apps:clone blog staging
    """
    source, name = existing(router, app), app_name(new)
    change(router, [Event("clone", source, {"new": name, "domains": default_domains(router, name)})])


def lock(
    router: Router,
    app: AppArgument,
    reason: Annotated[str, typer.Argument(metavar="REASON", help="Why; whoever deploys is told.", show_default=False)] = "locked",
) -> None:
    """Refuse deploys and scaling of an app; its domains and settings may still be changed.

    Example: router apps:lock blog 'moving its database'
    """
    name = existing(router, app)
    if not reason.strip() or not reason.isprintable():
        raise UsageProblem(f"{shown(reason)} is not a reason: one line of text")
    change(router, [Event("lock", name, {"reason": reason})])


def unlock(router: Router, app: AppArgument) -> None:
    """Allow deploys and scaling of an app again.

    Example: router apps:unlock blog
    """
    change(router, [Event("lock", existing(router, app), {"reason": None})])
