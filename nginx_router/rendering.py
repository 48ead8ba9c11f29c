"""One app, rendered: its vhost, the texts that it includes and what it was made of, each to become an object."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import canaries, health
from .errors import RouterError
from .model import SNIPPETS, App, Entry, Facts, Texts, asked
from .render import Include, Renderer
from .vetting import http_variables

_HTTP, _SERVER, _LOCATION = "nginx-http-snippet", "nginx-server-snippet", "nginx-location-snippet"


@dataclass(frozen=True)
class Rendered:
    """One app with everything nginx needs to serve it."""

    app: App
    texts: Texts
    facts: Facts
    entry: Entry
    vhost: bytes
    includes: Mapping[str, tuple[str, bytes]]  # object -> source, bytes
    state: bytes
    template: tuple[str, str] | None = None  # where its template comes from, and the text; None: the shipped one

    @property
    def template_source(self) -> str:
        """Where its own template comes from; empty for the shipped one."""
        return self.template[0] if self.template else ""

    @property
    def http_includes(self) -> set[str]:
        """The objects that plugins want included at http level."""
        texts = (text for hook, _, text in self.facts.snippets if hook == _HTTP)
        return {sha for text in texts if (sha := hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()) in self.includes}

    def objects(self) -> Iterable[tuple[str, bytes]]:
        """Every object it needs, by its name."""
        yield self.entry.state, self.state
        if self.entry.vhost:
            yield self.entry.vhost, self.vhost
        for sha, (_, data) in self.includes.items():
            yield sha, data


def render(renderer: Renderer, objects: Path, app: App, texts: Texts, facts: Facts) -> Rendered:
    """Render an app; what it includes is named by its place below `objects`.

    Raises:
        RouterError: it cannot be, because of its template for one; the error names the app.
    """
    includes: dict[str, tuple[str, bytes]] = {}
    places: dict[str, list[Include]] = {_HTTP: [], _SERVER: [], _LOCATION: []}
    for place, source, text in [
        *((_SERVER, f"apps/{app.name}/{SNIPPETS}{file}", text) for file, text in app.snippets.items()),
        *((hook, f"{hook} of plugin {plugin}", text) for hook, plugin, text in facts.snippets),
    ]:
        data = text.encode(errors="surrogateescape")
        sha = hashlib.sha256(data).hexdigest()
        includes[sha] = (source, data)
        places[place].append(Include(f"{objects}/{sha}", source))
    try:
        text = renderer.vhost(app, facts, places[_SERVER], http=places[_HTTP], location=places[_LOCATION])
    except RouterError as why:
        why.app = app.name
        raise
    template = renderer.template_of(app, facts)
    # those of the shipped template bear the app's name
    made = http_variables(text) if template else set()
    made |= {name for hook, _, snippet in facts.snippets if hook == _HTTP for name in http_variables(snippet)}
    vhost = text.encode(errors="surrogateescape")
    state = json.dumps({"texts": dict(texts), "facts": facts.as_json()}, sort_keys=True).encode()
    entry = Entry(
        state=hashlib.sha256(state).hexdigest(),
        vhost=hashlib.sha256(vhost).hexdigest() if vhost else None,
        generation=0,
        domains=tuple(app.domains),
        ports=tuple(sorted(renderer.ports(app))) if vhost and app.served_domains else (),
        objects=tuple(sorted(includes)) if vhost else (),
        routes=tuple(sorted(renderer.routes(app, facts).items())) if vhost else (),
        pool=renderer.pool(app, facts) if vhost and app.served_domains else (),
        variables=tuple(sorted(made)) if vhost else (),
        unhealthy=len(facts.unhealthy),
        checked=health.TABLE in app.plugins,
        canary=canaries.share_of(app) if canaries.of_app(app) else "",
        aborted=canaries.aborted(app) or "",
        addresses=asked(app, facts),
    )
    return Rendered(app, texts, facts, entry, vhost, includes if vhost else {}, state, template)
