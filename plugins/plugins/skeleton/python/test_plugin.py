"""Installs this plugin into a root of its own and asks it; `router` is on PATH, or is what ROUTER_BIN says."""

import os
import subprocess
import tempfile
import unittest
from pathlib import Path

ROUTER = os.environ.get("ROUTER_BIN", "router").split()


class Test(unittest.TestCase):
    """The plugin as router runs it."""

    def setUp(self):
        """A root with the plugin and an app."""
        root = tempfile.TemporaryDirectory()
        self.addCleanup(root.cleanup)
        self.environment = {**os.environ, "ROUTER_ROOT": root.name}
        self.router("plugins:install", str(Path(__file__).parent.absolute()))
        self.router("apps:create", "blog")

    def router(self, *words):
        """What a command prints; it must succeed."""
        done = subprocess.run([*ROUTER, *words], env=self.environment, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.strip()

    def test_the_header(self):
        """It is the default's."""
        self.assertEqual(self.router("plugins:trigger", "nginx-server-snippet", "blog"), 'add_header __HEADER__ "hello" always;')

    def test_an_app_has_its_own(self):
        """It is the app's."""
        self.router("plugins:set", "__NAME__", "value", "good-day", "--app", "blog")
        self.assertIn("good-day", self.router("plugins:trigger", "nginx-server-snippet", "blog"))

    def test_the_command(self):
        """It says the host's."""
        self.assertEqual(self.router("__NAME__:hello"), "hello")


if __name__ == "__main__":
    unittest.main()
