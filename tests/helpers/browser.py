"""A headless Chromium, driven by its DevTools protocol through two pipes; it needs no Python package."""

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run")
AS_ROOT = ("--no-sandbox",)  # the browser's own sandbox refuses root, as in containers
SECONDS = 60.0  # that an answer may take on a busy machine


def find() -> str | None:
    """The browser: that of QRPO_CHROMIUM, or one on the path."""
    return os.environ.get("QRPO_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def high_pipe() -> tuple[int, int]:
    """A pipe whose ends are not among the first files, which the browser's own take the place of."""
    low = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in low]
    for end in low:
        os.close(end)
    return high[0], high[1]


class Browser:
    """One page in a browser; a context manager.

    Attributes:
      requests: addresses that the page has asked for since it was opened last, without those of data.
      messages: what it has written to the console, and errors of its scripts.
    """

    def __init__(self, program: str) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        to_browser, self._write = high_pipe()
        self._read, from_browser = high_pipe()
        flags = [
            *FLAGS,
            *(AS_ROOT if os.geteuid() == 0 else ()),
            f"--user-data-dir={self._profile.name}",
            "--remote-debugging-pipe",
            "about:blank",
        ]
        # The browser reads commands from file 3 and answers on file 4.
        command = ["bash", "-c", f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}', program, *flags]
        self._process = subprocess.Popen(
            command, pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        self._numbers, self._rest, self._session = itertools.count(1), b"", ""
        self.requests: list[str] = []
        self.messages: list[str] = []
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in targets if one["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)
        self._profile.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the protocol, and waits for its answer."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])

    def open(self, path: Path, width: int, height: int = 900, scheme: str = "light") -> None:
        """Opens a file in a window of this width and color scheme, and waits until all of it is there."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.requests.clear()
        self.messages.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        limit = time.monotonic() + SECONDS
        while self.run("document.readyState") != "complete":
            if time.monotonic() > limit:
                raise TimeoutError(f"{path} is not there after {SECONDS} s")
            time.sleep(0.05)
        self.run("Promise.all([...document.images].map((image) => image.decode().catch(() => null))).then(() => 0)")

    def run(self, code: str) -> Any:
        """The value of an expression on the page; a promise is waited for."""
        found = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"])[:1000])
        return found["result"].get("value")

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """What the window shows as PNG, or the whole page."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def _next(self) -> dict[str, Any]:
        """The next message; keeps requests and what the console says."""
        while b"\0" not in self._rest:
            if not select.select([self._read], [], [], SECONDS)[0]:
                raise TimeoutError(f"the browser says nothing for {SECONDS} s")
            part = os.read(self._read, 1 << 20)
            if not part:
                raise RuntimeError("the browser has ended")
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        message = dict(json.loads(line))
        self._note(message)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        method, given = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent" and not given["request"]["url"].startswith("data:"):
            self.requests.append(given["request"]["url"])
        elif method == "Log.entryAdded":
            self.messages.append(given["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.messages.append(json.dumps(given["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled":
            self.messages.append(str(given["args"]))
