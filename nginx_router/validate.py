"""`nginx -t` of the vhosts that change, in a small configuration of their own: its cost does not grow with the number of apps."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .candidate import Candidate
from .confinement import confine
from .dataplane import DataPlane
from .draft import Draft
from .errors import Conflict, HostProblem, NginxRejected, NotPermitted, RouterError, UsageProblem
from .examples import examples, served
from .live import ways_out
from .model import SNIPPETS, TEMPLATE
from .processes import is_alive
from .properties import of_directive
from .rendering import Rendered
from .vetting import http_variables, vet_snippet, vet_template

_PLACE = re.compile(r"^(?P<text>.*) in (?P<path>/\S+):(?P<line>\d+)$")
_LACKS = re.compile(r'"(?P<path>/[^"]*)" failed \((?P<errno>\d+): ')
_OF_THE_HOST = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EIO)
_DENIED = re.compile(r"bind\(\) to (?P<address>\S+:(?P<port>\d+)) failed \(13: ")
_PRIVILEGED = 1024
_DUPLICATE = re.compile(r'"(?P<directive>[a-z_]+)" directive is duplicate')
_CONFLICT = re.compile(r'conflicting server name "(?P<name>[^"]+)"')
_LOCATION_TWICE = re.compile(r'duplicate location "(?P<name>[^"]+)"')
_UNKNOWN_VARIABLE = re.compile(r'unknown "(?P<name>\w+)" variable')
_NAMED = re.compile(r'zone "(?P<zone>[^"]+)"|"(?P<path>/[^"]+)"')  # what else nginx names without a file and a line
_COMMENT = re.compile(r"(?:^|(?<=\s))#.*")
_JINJA_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)


def validate(candidate: Candidate, plane: DataPlane, apps: Mapping[str, Rendered]) -> None:
    """Let crossplane and nginx judge the vhosts of `apps`, snippets that nothing serves yet, and what new templates make of other states.

    The directory that this takes is left to the caller, who does a `sweep` when nobody waits for it.

    Raises:
        NginxRejected: one is not acceptable; app, file, line and nginx's words are in the message.
        TemplateError: a template does not render in a state that its app may come to.
        ProxyDown: there is no nginx on this host.
    """
    if apps:
        judge(candidate, plane, apps)
    for rendered in candidate.changed.values():
        if rendered is None:
            continue
        if _is_new_template(candidate, rendered):
            check_template(candidate, plane, rendered)
        elif _has_new_snippet(candidate, rendered):
            check_unserved(candidate, plane, rendered)


def _is_new_template(candidate: Candidate, rendered: Rendered) -> bool:
    """Whether an app has a template of its own (or a plugin's) that is not the one it is served by."""
    if rendered.template is None:
        return False
    texts, facts = candidate.served(rendered.app.name)
    try:
        return candidate.renderer.template_of(candidate.parse(rendered.app.name, texts), facts) != rendered.template
    except UsageProblem:
        return True  # a property that this version does not know any more


def _has_new_snippet(candidate: Candidate, rendered: Rendered) -> bool:
    """Whether an app has a snippet of its own that is not as in the base."""
    known = candidate.served(rendered.app.name)[0] if rendered.app.snippets else {}
    return any(known.get(f"{SNIPPETS}{file}") != text for file, text in rendered.app.snippets.items())


def check_unserved(candidate: Candidate, plane: DataPlane, rendered: Rendered) -> None:
    """Try the snippets of an app that has no server block yet to include them: the first domain is not to find them broken.

    Raises:
        NginxRejected: nginx would not take them.
    """
    if rendered.app.snippets and not rendered.app.served_domains:
        name = rendered.app.name
        judge(candidate, plane, {name: candidate.render(name, served(rendered.app, rendered.texts), rendered.facts)})


def check_template(candidate: Candidate, plane: DataPlane, rendered: Rendered) -> None:
    """Try the template of an app on the states of `examples`: it must hold when endpoints go and processes come.

    Raises:
        NginxRejected: nginx would not take what it makes of one; which state that is, file and line are said.
        TemplateError: it does not render there.
    """
    for state, texts in examples(rendered.app, rendered.texts):
        try:
            made = candidate.render(rendered.app.name, texts, rendered.facts)
            if made.vhost:
                judge(candidate, plane, {rendered.app.name: made})
        except RouterError as why:
            why.message = f"{why.message} (the template, tried with {state})"
            raise


def judge(candidate: Candidate, plane: DataPlane, apps: Mapping[str, Rendered]) -> None:
    """Let crossplane and nginx judge the vhosts of `apps`, changed or not; the caller does a `sweep`.

    Raises:
        NginxRejected: one is not acceptable; app, file, line and nginx's words are in the message.
        HostProblem: nginx cannot load its Lua module, whatever the vhosts are.
        ProxyDown: there is no nginx on this host.
    """
    try:
        _validate(candidate, plane, apps, scratch(candidate.store.paths.run))
    except NginxRejected as why:
        if ways := ways_out(candidate.facts.modules, why.message):  # no vhost would do
            words = why.message.partition(" rejected its vhost: ")[2] or why.message
            raise HostProblem(f"nginx does not load its Lua module: {words}", hint=ways) from None
        raise


def scratch(run: Path) -> Path:
    """An empty directory for what `nginx -t` reads, and for what it makes: as root it gives temp directories to the workers' user.

    Its next use empties it again, and `sweep` removes it.
    """
    directory = run / f"validate-{os.getpid()}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700, parents=True)  # copies of snippets are nobody else's affair
    for name in ("tmp", "log"):
        (directory / name).mkdir()
    return directory


def sweep(run: Path) -> None:
    """Remove what the validations of this process and killed ones left.

    Those of others that live, without the host lock (a dry run, `nginx:validate`), may be under way.
    """
    for name in os.listdir(run):  # noqa: PTH208 - names only, and a pattern takes longer than they do
        pid = name.removeprefix("validate-")
        if pid != name and (not pid.isdigit() or int(pid) == os.getpid() or not is_alive(int(pid))):
            shutil.rmtree(run / name, ignore_errors=True)


def _validate(candidate: Candidate, plane: DataPlane, apps: Mapping[str, Rendered], directory: Path) -> None:
    places: dict[str, tuple[str, str]] = {}  # file -> app, source
    doubts = []
    objects = str(candidate.store.paths.objects)
    for rendered in apps.values():
        _confine(candidate, rendered)
    for name, rendered in apps.items():
        for sha, (source, data) in rendered.includes.items():
            (directory / sha).write_bytes(data)
            places[str(directory / sha)] = (name, source)
            doubts.append(vet_snippet(name, source, directory / sha))
        # the objects are not kept yet: the vhost includes the copies
        text = rendered.vhost.decode(errors="surrogateescape")
        for sha in rendered.includes:
            text = text.replace(f"{objects}/{sha}", f"{directory}/{sha}")
        text = _without_new_logs(text, candidate.store.paths.log, directory / "log")
        path = directory / str(rendered.entry.vhost)
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        source = rendered.template_source
        places[str(path)] = (name, source or "its vhost")
        if source:
            doubts.append(
                vet_template(
                    name,
                    source,
                    path,
                    ports=rendered.entry.ports,
                    listens=candidate.listens(rendered.app),
                    domains=rendered.app.served_domains,
                    own=[str(directory / sha) for sha in rendered.includes],
                    http=[str(directory / sha) for sha in rendered.http_includes],
                )
            )
    wrapper = Draft(candidate).wrapper(directory, apps)
    _vet_variables(candidate, apps, wrapper["router.conf"])
    for file, content in wrapper.items():
        (directory / file).write_text(content, encoding="utf-8", errors="surrogateescape")
    result = plane.test(directory / "nginx.conf")
    conflict = next((m for m in result.messages if _CONFLICT.search(m)), None)
    for message in () if result.ok else result.messages:
        if (lacks := _LACKS.search(message)) and int(lacks["errno"]) in _OF_THE_HOST:
            # of the host and not of the app: its vhost was not judged at all
            raise OSError(int(lacks["errno"]), os.strerror(int(lacks["errno"])), lacks["path"])
        if (denied := _DENIED.search(message)) and int(denied["port"]) < _PRIVILEGED:
            raise _not_permitted(candidate, apps, denied["address"], int(denied["port"]))
    if not result.ok or conflict:
        raise _rejection(candidate, apps, places, result.messages, conflict, directory)
    for doubt in doubts:
        if doubt:
            raise NginxRejected(doubt, app=doubt.split()[1].rstrip(":"))


def _not_permitted(candidate: Candidate, apps: Mapping[str, Rendered], address: str, port: int) -> NotPermitted:
    start = shlex.join(["sudo", f"ROUTER_ROOT={candidate.store.paths.root}", "router", "proxy:start"])
    why = NotPermitted(
        f"nginx may not listen on {address}: ports below 1024 are root's",
        hint=f"take a port from 1024 on, or let root start nginx: router proxy:stop, then {start}",
    )
    why.is_of_the_host = port == candidate.settings.http_port
    if not why.is_of_the_host:
        why.app = next((name for name, rendered in apps.items() if port in rendered.entry.ports), None)
    return why


def _without_new_logs(text: str, log: Path, directory: Path) -> str:
    """A vhost whose logs are made in `directory` unless they are there: `nginx -t` makes them, and what is tried may never be served."""

    def place(match: re.Match[str]) -> str:
        return match[0] if (log / match[1]).exists() else f"{directory}/{match[1]}"

    return re.sub(rf"{re.escape(str(log))}/([^/\s\";]+)", place, text)


def _confine(candidate: Candidate, rendered: Rendered) -> None:
    """Hold what others than the host's own people may write to what cannot leave the app; before nginx, which opens logs."""
    app = rendered.app
    confined = candidate.confined(app.name) if (app.snippets or app.template) and rendered.vhost else None
    if not confined:
        return
    own = candidate.own(rendered)
    for file, text in app.snippets.items():
        if SNIPPETS + file in confined:
            confine(f"apps/{app.name}/{SNIPPETS}{file}", text, own, is_template=False)
    if TEMPLATE in confined and rendered.template_source == f"apps/{app.name}/{TEMPLATE}":
        confine(rendered.template_source, rendered.vhost.decode(errors="surrogateescape"), own, is_template=True)


def _vet_variables(candidate: Candidate, apps: Mapping[str, Rendered], router_conf: str) -> None:
    """Of two that make one variable nginx takes the last and says nothing, so that nothing else finds it.

    Raises:
        Conflict: an app makes one that another has, the router or the host; whose it is, is said.
    """
    if not any(rendered.entry.variables for rendered in apps.values()):
        return
    makers = {has.partition(" $")[2]: "the host's own nginx" for has in candidate.facts.host_has if has.startswith("variable $")}
    makers |= dict.fromkeys(http_variables(router_conf), "router itself")
    changed = candidate.changed
    # whoever has it served keeps it
    for name, entry in (candidate.base.apps if candidate.base else {}).items():
        rendered = changed.get(name)
        now = rendered.entry.variables if rendered else () if name in changed else entry.variables
        makers |= {each: f"app {name}" for each in entry.variables if each in now}
    for name, new in apps.items():
        for each in new.entry.variables:
            if makers.setdefault(each, f"app {name}") != f"app {name}":
                raise Conflict(
                    f"app {name}: ${each} is made by {makers[each]}: a variable at http level is one for all apps",
                    hint=f"give it a name with the app's in it, as ${each}_{re.sub('[^a-z0-9]', '_', name)}",
                    app=name,
                )


def _rejection(
    candidate: Candidate,
    apps: Mapping[str, Rendered],
    places: Mapping[str, tuple[str, str]],
    messages: tuple[str, ...],
    conflict: str | None,
    scratch: Path,
) -> NginxRejected:
    text = next(
        (m for m in messages if m.startswith("[emerg]")), conflict or (messages[-1] if messages else "nginx -t failed and said nothing")
    )
    match = _PLACE.match(text)
    if match and match["path"] in places:
        app, source = places[match["path"]]
        if source == "its vhost" and (cause := _behind(apps[app], match["text"], Path(match["path"]).parent)):
            return _caused(app, cause, match["text"])
        excerpt = _line(Path(match["path"]), int(match["line"]))
        hint = _property_hint(app, match["text"], excerpt) or excerpt
        return NginxRejected(f"app {app}: nginx rejected {source}:{match['line']}: {match['text']}", hint=hint, app=app)
    taken = _CONFLICT.search(text)
    if taken:
        owner = candidate.owners.get(taken["name"])
        thief = next((name for name, r in apps.items() if name != owner and taken["name"].encode() in r.vhost), None)
        thief = thief or next((n for n, r in apps.items() for _, d in r.includes.values() if taken["name"].encode() in d), None)
        if thief is None and owner is not None and owner in apps:
            source = apps[owner].template_source or "its vhost"
            return NginxRejected(f"app {owner}: nginx rejected {source}: {text}", hint="two of its own servers have that name", app=owner)
        who = f"app {thief}: nginx rejected its vhost" if thief else "nginx rejected the change"
        return NginxRejected(f"{who}: {text}", hint=f"{taken['name']} belongs to app {owner}" if owner else "", app=thief)
    if len(apps) == 1:
        app, rendered = next(iter(apps.items()))
        if not match and (cause := _naming(rendered, text, scratch)):
            return _caused(app, cause, text)
        return NginxRejected(f"app {app}: nginx rejected its vhost: {text}", app=app)
    # a file that several apps include, or something that only stands in their sum: the caller divides
    return NginxRejected(f"nginx rejected the change: {text}")


def _caused(app: str, cause: tuple[str, int, str], said: str) -> NginxRejected:
    source, line, excerpt = cause
    return NginxRejected(f"app {app}: nginx rejected {source}:{line}: {said}", hint=f"{line}: {excerpt[:120]}", app=app)


def _behind(rendered: Rendered, said: str, copies: Path) -> tuple[str, int, str] | None:
    """Which snippet says first what nginx found a second time in a line of the shipped template: source, line, text.

    Only one at the same level counts: a directive of `location /` is no duplicate of one in the server.
    """
    location, twice = _LOCATION_TWICE.search(said), _DUPLICATE.search(said)
    for sha, (source, data) in rendered.includes.items():
        is_of_location = source.startswith("nginx-location-snippet ")
        for each in _parsed(copies / sha):
            is_location = each["directive"] == "location" and each["args"][-1:] == [location["name"] if location else ""]
            # `location = /` stands beside `location /`
            again = is_location and each["args"][0] not in ("=", "~", "~*") and not is_of_location
            if again or (twice and is_of_location and each["directive"] == twice["directive"]):
                return source, each["line"], _text_at(data, each["line"])
    return None


def _naming(rendered: Rendered, said: str, copies: Path) -> tuple[str, int, str] | None:
    """Where the app's snippets, those of plugins or its own template name what nginx names without a file: source, line, text."""
    if variable := _UNKNOWN_VARIABLE.search(said):
        name = re.escape(variable["name"])
        wanted = re.compile(rf"\$(?:{name}(?!\w)|\{{{name}\}})", re.IGNORECASE | re.ASCII)  # nginx says it in small letters
    elif named := _NAMED.search(said):
        wanted = re.compile(rf"(?<![^\s=\"']){re.escape(named['zone'] or named['path'])}(?![^\s;:\"'])")
    else:
        return None
    for sha, (source, data) in rendered.includes.items():
        for each in _flat(_parsed(copies / sha)):
            # the first word of a location is no place for a variable, and Lua is not nginx's language
            is_read = each["directive"] != "location" and not each["directive"].endswith("_by_lua_block")
            if is_read and any(wanted.search(word) for word in each["args"]):
                return source, each["line"], _text_at(data, each["line"])
    source, template = rendered.template or ("", "")
    template = _JINJA_COMMENT.sub(lambda m: "\n" * m[0].count("\n"), template)
    for number, line in enumerate(template.split("\n"), 1):
        if wanted.search(_COMMENT.sub("", line)):
            return source, number, line.strip()
    return None


def _parsed(path: Path) -> list[dict[str, Any]]:
    import crossplane  # 30 ms: only on the way out

    try:
        payload = crossplane.parse(str(path), single=True, strict=False, check_ctx=False, check_args=False, comments=False)
    except Exception:  # whatever a parser of hostile text raises, nginx's words are enough
        return []
    return [each for config in payload["config"] for each in config["parsed"]]


def _flat(directives: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for each in directives:
        yield each
        yield from _flat(each.get("block") or [])


def _text_at(data: bytes, number: int) -> str:
    rows = data.decode(errors="replace").split("\n")
    return rows[number - 1].strip() if 0 < number <= len(rows) else ""


def _property_hint(app: str, said: str, excerpt: str) -> str:
    """A snippet that says what a property says already: the command that sets the property to what the snippet wants."""
    twice = _DUPLICATE.search(said)
    known = of_directive(twice["directive"]) if twice else None
    if known is None:
        return ""
    written = re.search(rf"\b{known.directive}\s+([^;{{}}]+);", excerpt)
    value = written[1].strip() if written else "VALUE"
    return f"{known.name} is a property: take it out of the snippet, and: router nginx:set {app} {known.name} {shlex.quote(value)}"


def _line(path: Path, number: int) -> str:
    lines = path.read_text(errors="replace").splitlines()
    return f"{number}: {lines[number - 1].strip()[:120]}" if 0 < number <= len(lines) else ""
