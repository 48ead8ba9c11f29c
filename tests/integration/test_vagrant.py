"""The Vagrantfile's provisioning commands make a router host of a bare Debian.

The machine is a debootstrap tree.  What the commands install comes from the registries, so `script/bootstrap`, their first
step, is run once with the network of this machine and without services.  Then the tree is booted with a network of its own,
where port 80 is nobody else's, and the commands of the Vagrantfile are run exactly as they stand there.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
# The environment of a login on the machine; it has nothing of ours.
LOGIN = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


class Machine:
    """A Debian tree that was booted, in namespaces of its own."""

    def __init__(self, tree: Path) -> None:
        with (tree.parent / "boot.log").open("w") as log:
            self._nspawn = subprocess.Popen(
                [*nspawn(tree), "--boot", "--private-network", "--console=pipe"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._pid = 0

    def wait_until_up(self, seconds: float = 120) -> None:
        """Wait for its systemd to have started everything."""
        deadline = time.monotonic() + seconds
        state = ""
        while state not in ("running", "degraded"):
            assert self._nspawn.poll() is None, "the machine went down"
            assert time.monotonic() < deadline, f"not up after {seconds:g} s: {state}"
            time.sleep(0.2)
            children = subprocess.run(["pgrep", "-P", str(self._nspawn.pid)], capture_output=True, text=True, check=False).stdout.split()
            if children:
                self._pid = int(children[0])
                state = self.run("systemctl is-system-running", check=False).strip()

    def run(self, command: str, *, check: bool = True) -> str:
        """Run a command line as root in the machine, and give what it printed."""
        done = subprocess.run(
            ["nsenter", "--all", "--target", str(self._pid), "env", "-i", *LOGIN, "bash", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert not check or done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}"
        return done.stdout

    def get(self, host: str) -> str:
        """What the machine's port 80 answers to a request for `host`, asked from inside, as its forwarded port does."""
        program = (
            "import http.client as h, sys; c = h.HTTPConnection('127.0.0.1', 80, timeout=10);"
            " c.request('GET', '/', headers={'Host': sys.argv[1]}); r = c.getresponse(); print(r.status, r.read().decode())"
        )
        return self.run(f'python3 -c "{program}" {host}')

    def power_off(self) -> None:
        """Shut it down, by force if it must be."""
        if self._nspawn.poll() is None:
            self._nspawn.send_signal(signal.SIGTERM)  # nspawn asks the machine's systemd
            try:
                self._nspawn.wait(60)
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait(10)


def nspawn(tree: Path) -> list[str]:
    """The beginning of a command that runs something in the tree; no part of it needs this machine's systemd."""
    return ["systemd-nspawn", "--quiet", f"--directory={tree}", "--register=no", "--keep-unit", "--resolv-conf=off"]


def mirror() -> str:
    """Where this machine's apt finds Debian bookworm, else Debian's own address."""
    for source in sorted(Path("/etc/apt/sources.list.d").glob("*.sources")):
        for stanza in source.read_text().split("\n\n"):
            fields = dict(re.findall(r"^(\w[\w-]*):\s*(.*)$", stanza, re.MULTILINE))
            if "bookworm" in fields.get("Suites", "").split():
                return fields["URIs"].split()[0]
    return "http://deb.debian.org/debian"


def carry_registries(tree: Path) -> dict[str, str]:
    """Let apt and pip reach in the tree what they reach on this machine; gives the environment that pip needs."""
    shutil.copy("/etc/resolv.conf", tree / "etc/resolv.conf")
    for setting in Path("/etc/apt/apt.conf.d").iterdir():
        if re.search(r"^\s*Acquire::", setting.read_text(), re.MULTILINE):
            shutil.copy(setting, tree / "etc/apt/apt.conf.d")
    environment = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name.lower().endswith("_proxy")}
    # a name of its own: the package ca-certificates writes the usual one
    shutil.copy(CA_BUNDLE, tree / "etc/this-machine.crt")
    environment["PIP_CERT"] = "/etc/this-machine.crt"
    if Path("/etc/pip.conf").exists():
        shutil.copy("/etc/pip.conf", tree / "etc/pip.conf")
    return environment


def provisioning_commands() -> list[str]:
    """What the Vagrantfile has a machine run, in its order."""
    text = (PROJECT / "Vagrantfile").read_text()
    commands = re.findall(r'^\s*config\.vm\.provision "shell", inline: "([^"]+)"$', text, re.MULTILINE)
    assert len(commands) == text.count("config.vm.provision"), "a provisioner that this test does not understand"
    return commands


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A bare Debian 12 with the project in /vagrant, booted."""
    lacking = [tool for tool in ("debootstrap", "systemd-nspawn", "nsenter") if not shutil.which(tool)]
    if os.geteuid() != 0 or lacking:
        reason = f"needs root and debootstrap, systemd-container, util-linux; not here: {lacking or 'root'}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    tree = tmp_path_factory.mktemp("machine") / "tree"
    # what the box has and a minimal tree has not: it boots
    debootstrap = ["debootstrap", "--variant=minbase", "--include=systemd-sysv,dbus", "bookworm", str(tree), mirror()]
    done = subprocess.run(debootstrap, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    environment = carry_registries(tree)
    ignored = shutil.ignore_patterns(".git", ".venv", ".vagrant", "*_cache", "__pycache__")
    shutil.copytree(PROJECT, tree / "vagrant", ignore=ignored, symlinks=True)
    settings = [f"--setenv={name}={value}" for name, value in environment.items()]
    wheels = ["--bind-ro=/opt"] if Path("/opt").is_dir() else []  # where this machine's pip may find packages
    done = subprocess.run(
        [*nspawn(tree), *settings, *wheels, "--as-pid2", "--pipe", "/vagrant/script/bootstrap"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tree / "usr/sbin/policy-rc.d").exists(), "apt's services are let go again"
    booted = Machine(tree)
    try:
        booted.wait_until_up()
        yield booted
    finally:
        booted.power_off()
        shutil.rmtree(tree)


def test_provisioned_machine_serves_the_demo_apps_and_provisioning_again_changes_nothing(machine: Machine) -> None:
    assert machine.run("systemctl is-enabled nginx", check=False).strip() == "disabled", "bootstrap starts no server"
    for command in provisioning_commands():
        machine.run(command)
    for app in ("blog", "shop"):
        assert machine.get(f"{app}.localhost").startswith(f"200 {app} v1 from 127.0.0.1:")
    assert "Welcome to nginx" in machine.get("localhost"), "the distribution's own site is untouched"
    report = machine.run("router apps:report blog --format json")
    assert '"serving": true' in report

    before = machine.run("router status --generation")
    for command in provisioning_commands():
        machine.run(command)
    assert machine.run("router status --generation") == before
    assert machine.get("shop.localhost").startswith("200 shop v1")
