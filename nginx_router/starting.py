"""Whether nginx would start: what is asked of a change while the proxy is stopped, when no reload can prove it.

The wrapper has judged the apps that changed, one beside the other at most.  Here nginx reads the whole, as it will at its
start; and since `nginx -t` is content with a port that is taken, the ports that come new are looked up.
"""

from __future__ import annotations

from . import fitting, listening
from .candidate import Candidate
from .dataplane import DataPlane
from .draft import Draft
from .errors import NginxRejected
from .validate import scratch


def check(candidate: Candidate, plane: DataPlane) -> None:
    """Make sure that nginx would start with `current`, which was made of the candidate.

    Raises:
        NginxRejected: it would not; the app is named, where nginx or the port names one.
    """
    _look_at_ports(candidate)
    directory = scratch(candidate.store.paths.run)
    conf = plane.conf
    if not plane.is_host_mode:
        conf = directory / "nginx.conf"
        conf.write_text(Draft(candidate).main_conf(directory))
    verdict = plane.test(conf)
    if not verdict.ok:
        said = next((m for m in verdict.messages if m.startswith("[emerg]")), "nginx -t failed and said nothing")
        why = NginxRejected(f"nginx would not start with it: {said}")
        apps = fitting.suspects(candidate, why)
        why.app = apps.pop() if len(apps) == 1 else None
        raise why


def _look_at_ports(candidate: Candidate) -> None:
    known = {candidate.settings.http_port}.union(*(entry.ports for entry in candidate.base.apps.values()) if candidate.base else ())
    for name, rendered in candidate.changes_vhosts.items():
        for port in sorted({*rendered.entry.ports} - known):
            bound = {
                at.rpartition(":")[0].strip("[]") for at in candidate.listens(rendered.app) if at.endswith(f":{port}") or at == f"{port}"
            }
            taken = [each for each in listening.listeners().get(port, []) if listening.clashes(each.address, bound - {""})]
            if taken:
                raise NginxRejected(
                    f"app {name}: nginx would not start with it: port {port} is taken by {', '.join(listening.holders(taken))}",
                    hint=f"end that, or: router ports:remove {name} http:{port}",
                    app=name,
                )
