"""Controls a page in headless Chromium over the pipe of its debugging protocol, without a driver or a library."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = "needs chromium (apt-get install chromium)"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-pipe",
)  # fmt: skip
#: Events that report an error in a page.
_WRONG = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled", "Network.loadingFailed")


class Page:
    """A browser tab.

    Attributes:
      problems: The errors in its console and the failures to load something, so far.
    """

    def __init__(self, to: int, back: int, seconds: float) -> None:
        self._to, self._back, self._seconds = to, back, seconds
        self._number, self._session, self._rest = 0, None, b""
        self.problems: list[str] = []
        self._loaded = False
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")

    def open(self, url: str, width: int = 1280, height: int = 1000) -> None:
        """Opens a page in a window of this size, in CSS pixels, and waits until it is loaded."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._ask("Emulation.setDeviceMetricsOverride", **size)
        self._loaded = False
        self._ask("Page.navigate", url=url)
        while not self._loaded:
            self._heed(self._next())

    def evaluate(self, expression: str) -> Any:
        """Returns the value of a JavaScript expression in the page; that of a promise when it is fulfilled."""
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = self._ask("Runtime.evaluate", **asked)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screenshot(self, seconds: float = 20) -> bytes:
        """Returns a picture of the window once nothing in it moves, or after ``seconds``.

        The format is WebP, which is a few times smaller than PNG.
        """
        ends, before, shown = time.monotonic() + seconds, "", "?"
        while before != shown and time.monotonic() < ends:
            time.sleep(0.7)
            before, shown = shown, self._ask("Page.captureScreenshot", format="webp", quality=80)["data"]
        return base64.b64decode(shown)

    def pdf(self, path: Path) -> None:
        """Prints the page to an A4 PDF file."""
        asked = {"paperWidth": 8.27, "paperHeight": 11.69, "preferCSSPageSize": True}
        path.write_bytes(base64.b64decode(self._ask("Page.printToPDF", **asked)["data"]))

    def _ask(self, method: str, **arguments: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": arguments}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != message["id"]:
            self._heed(answer)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        ends = time.monotonic() + self._seconds
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._back], [], [], max(ends - time.monotonic(), 0))
            read = os.read(self._back, 1 << 20) if ready else b""
            assert read, "Chromium ended, or gave no answer in time"
            self._rest += read
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _heed(self, event: dict[str, Any]) -> None:
        method, told = event.get("method"), event.get("params", {})
        self._loaded |= method == "Page.loadEventFired"
        level = told.get("entry", {}).get("level") or told.get("type")
        if method in _WRONG[::3] or (method in _WRONG and level in ("error", "assert")):
            self.problems.append(json.dumps(told)[:500])


@contextlib.contextmanager
def chromium(seconds: float = 60) -> Iterator[Page]:
    """Starts a browser and yields a tab; the browser ends with the block.

    Args:
      seconds: The time limit for each answer of the browser.
    """
    assert CHROMIUM, MISSING
    (its_in, to), (back, its_out) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # Chromium reads from file descriptor 3 and writes to 4.
        command = [
            "bash",
            "-c",
            f'exec "$@" 3<&{its_in} 4>&{its_out}',
            "",
            CHROMIUM,
            *FLAGS,
            f"--user-data-dir={profile}",
        ]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, pass_fds=(its_in, its_out), **quiet)
        try:
            os.close(its_in)
            os.close(its_out)
            yield Page(to, back, seconds)
        finally:
            process.terminate()
            process.wait(30)
            os.close(to)
            os.close(back)
