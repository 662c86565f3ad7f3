"""A headless Chromium, driven by its debugging protocol over pipes."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One tab, and all requests it made, those of its frames too.

    Args:
        address: the page to open.
        folder: for the profile and downloads.
    """

    def __init__(self, address: str, folder: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        assert CHROMIUM
        self.downloads = folder / "downloads"
        self.events: list[dict[str, Any]] = []
        self._sent, self._buffer, self._session = 0, b"", ""
        read, ours_out = (fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in os.pipe())
        ours_in, write = (fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in os.pipe())
        self._in, self._out = ours_in, ours_out
        flags = ["--headless=new", "--no-sandbox", "--remote-debugging-pipe", "--disable-background-networking"]
        flags += ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-first-run", "--hide-scrollbars"]
        # It reads commands from 3 and writes answers to 4.
        start = f"import os, sys; os.dup2({read}, 3); os.dup2({write}, 4); os.execv(sys.argv[1], sys.argv[1:])"
        command = [sys.executable, "-c", start, CHROMIUM, *flags, f"--user-data-dir={folder / 'profile'}"]
        self._process = subprocess.Popen(command, pass_fds=(read, write), stderr=subprocess.DEVNULL)
        os.close(read)
        os.close(write)
        self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        # Frames of another origin are targets of their own.
        self.send("Target.setAutoAttach", autoAttach=True, waitForDebuggerOnStart=False, flatten=True)
        for domain in ("Page", "Network", "Runtime", "DOM"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = "dark" if dark else "light"
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send("Page.navigate", url=address)
        self.wait(lambda: self.run("document.readyState") == "complete", "the page")

    def send(self, method: str, **params: Any) -> Any:
        """A command's answer. Events that come before it are kept."""
        self._sent += 1
        number = self._sent
        self._post({"id": number, "method": method, "params": params}, self._session)
        while True:
            message = self._receive(60)
            assert message is not None, f"{method}: no answer"
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]

    def _post(self, message: dict[str, Any], session: str) -> None:
        os.write(self._out, json.dumps({**message, **({"sessionId": session} if session else {})}).encode() + b"\0")

    def _receive(self, timeout: float) -> dict[str, Any] | None:
        end = time.monotonic() + timeout
        while b"\0" not in self._buffer:
            if not select.select([self._in], [], [], max(0, end - time.monotonic()))[0]:
                return None
            self._buffer += os.read(self._in, 1 << 20)
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        if "method" in message:
            self.events.append(message)
            if message["method"] == "Target.attachedToTarget":  # a frame: its requests are of interest, too
                self._sent += 1
                self._post({"id": self._sent, "method": "Network.enable"}, message["params"]["sessionId"])
        return message

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, condition: Callable[[], Any], what: str, timeout: float = 60) -> Any:
        """Wait until something is true."""
        end = time.monotonic() + timeout
        while not (value := condition()):
            assert time.monotonic() < end, f"waited in vain for {what}"
            self._receive(0.05)
        return value

    def place(self, selector: str) -> tuple[float, float, float, float]:
        """x, y, width and height of an element in the window, px."""
        box = self.run(f"(e => {{ e.scrollIntoView({{block: 'center'}}); const r = e.getBoundingClientRect();"
                       f"return [r.x, r.y, r.width, r.height] }})(document.querySelector({selector!r}))")  # fmt: skip
        return tuple(box)

    def drop(self, selector: str, file: Path) -> None:
        """Drop a file from outside on an element."""
        x, y, width, height = self.place(selector)
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.send("Input.dispatchDragEvent", type=kind, x=x + width / 2, y=y + height / 2, data=data)

    def drag(self, selector: str, dx: float, dy: float) -> None:
        """Drag with the left button from the middle of an element."""
        x, y, width, height = self.place(selector)
        x, y = x + width / 2, y + height / 2
        self.send("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, button="left", buttons=1, clickCount=1)
        for step in range(1, 6):
            position = {"x": x + dx * step / 5, "y": y + dy * step / 5}
            self.send("Input.dispatchMouseEvent", type="mouseMoved", button="left", buttons=1, **position)
        self.send("Input.dispatchMouseEvent", type="mouseReleased", button="left", x=x + dx, y=y + dy)

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press and release a key."""
        names = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown", **names, **({"text": text} if text else {}))
        self.send("Input.dispatchKeyEvent", type="keyUp", **names)

    def screenshot(self, whole: bool = False) -> bytes:
        """The window, or the whole page, as PNG."""
        return base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=whole)["data"])

    def requests(self) -> set[str]:
        """The addresses asked for so far, without those inside the page itself."""
        sent = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return {url for url in sent if not url.startswith(("data:", "blob:", "about:"))}

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        os.close(self._in)
        os.close(self._out)
