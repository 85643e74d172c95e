"""The dashboard's server and a browser's visits to it, as a person makes them.

With `ALTGRAD_PICTURES=1` pictures of all pages are left in `artifacts/dashboard/` (ignored by git) for somebody to look
at: each lays the page out twice and is painted without a GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.servers.polling import PATIENCE, SOON, wait_for
from tests.servers.ray_nodes import free_port

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "artifacts" / "dashboard"
WANTED = os.environ.get("ALTGRAD_PICTURES") == "1"
PAGES = ("Sweep", "Curves", "Compare", "Failures", "Layers", "Formats", "Run")  # besides the overview
CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
ARGUMENTS += ["--disable-component-update", "--disable-sync"]
_SIZE: Any = {"width": 1400, "height": 1000}


@contextmanager
def dashboard_server(results: Path, folder: Path) -> Iterator[str]:
    """The dashboard's address; started from a folder that is not the project's, as users do."""
    port = free_port()
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "dashboard"), "--server.port", str(port)]
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen([*command, "--", str(results)], cwd=folder, stdout=output, stderr=subprocess.STDOUT)
    address = f"http://localhost:{port}"
    try:
        wait_for(lambda: _answers(f"{address}/_stcore/health") or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield address
        assert "Traceback" not in log.read_text()
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=SOON)
    except OSError:
        return False
    return True


class Visit:
    """A browser page that notes console errors and requests to other hosts; `beside`: one whose profile it shares."""

    def __init__(self, browser: Any, server: str, beside: Visit | None = None) -> None:
        self.server = server
        self.errors: list[str] = []
        self.outside: list[str] = []
        if beside is None:
            context = browser.new_context(viewport=_SIZE, color_scheme="light")
            context.set_default_timeout(PATIENCE * 1000)
        else:
            context = beside.page.context
        self._profile = context if beside is None else None
        self.page = context.new_page()
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._request)

    def begin(self) -> None:
        """As a new tab: its size, the light scheme, nothing noted yet."""
        self.page.set_viewport_size(_SIZE)
        self.page.emulate_media(color_scheme="light")
        self.errors.clear()
        self.outside.clear()

    def leave(self) -> None:
        """Close the page, so that it no longer asks the server for news."""
        self.page.goto("about:blank")
        self.page.context.clear_permissions()

    def _note(self, message: Any) -> None:
        # Opened below its root, Streamlit's own front end first asks for its server under the page's path.
        probe = "_stcore" in (message.location or {}).get("url", "")
        if message.type == "error" and not probe:
            self.errors.append(message.text)

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.server, self.server.replace("http", "ws"), "data:", "blob:")):
            self.outside.append(request.url)

    def open(self, path: str) -> None:
        self.page.goto(f"{self.server}/{path}")
        self.settle()

    def go_to(self, page: str) -> None:
        self.page.get_by_role("link", name=page, exact=True).click()
        self.page.locator("h1", has_text=page).wait_for()
        self.settle()

    def settle(self) -> None:
        self.page.wait_for_selector("h1")
        self.page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]")

    def text(self) -> str:
        return self.page.inner_text("[data-testid=stMain]")

    def take_picture(self, name: str) -> None:
        """The whole page, however long, if somebody wants to look at it."""
        if not WANTED:
            return
        self.page.wait_for_timeout(200)
        height = self.page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
        self.page.set_viewport_size({**_SIZE, "height": max(1000, min(height + 40, 5000))})
        self.page.wait_for_timeout(250)
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(PICTURES / f"{name}.png"))
        self.page.set_viewport_size(_SIZE)

    def assert_clean(self) -> None:
        assert not self.outside, f"requests to other hosts: {self.outside}"
        assert not self.errors, f"console errors: {self.errors}"
        assert not self.page.locator("[data-testid=stException]").count()

    def close(self) -> None:
        (self._profile or self.page).close()

    def wait_until(self, condition: str, arg: Any = None, patience: float = PATIENCE) -> None:
        """Until JavaScript says so, asked ten times a second: by default every frame is drawn to ask it."""
        self.page.wait_for_function(condition, arg=arg, polling=100, timeout=patience * 1000)
