"""Shows images in a browser as they come: motion JPEG, to this machine alone."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

import cv2
import numpy as np

from common.errors import error_context

ADDRESS = "127.0.0.1"  # nobody else may look
QUALITY = 85  # of a JPEG
PAGE = b"""<!doctype html><meta charset="utf-8"><title>Hands</title>
<style>body{margin:0;background:#111;display:grid;place-items:center;height:100vh}
img{max-width:100vw;max-height:100vh}</style><img src="/stream" alt="overlay">"""


class LiveView:
    """Serves the newest image under `url`. Use as a context manager.

    Args:
        port: 0 takes a free one.

    Raises:
        UserError: the port is taken.
    """

    def __init__(self, port: int = 0) -> None:
        self._changed = threading.Condition()
        self._jpeg, self._number, self._closed = b"", 0, False
        view = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                view._answer(self)

            def log_message(self, *_: object) -> None:
                """The terminal belongs to the demo."""

        with error_context(f"cannot show on port {port}", OverflowError, advice="choose another --show PORT"):
            self._server = ThreadingHTTPServer((ADDRESS, port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://{ADDRESS}:{self.port}"

    def publish(self, image: np.ndarray) -> None:
        """Show an (H, W, 3) uint8 RGB image."""
        _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        with self._changed:
            self._jpeg, self._number = data.tobytes(), self._number + 1
            self._changed.notify_all()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        # A page of another host that resolves to this machine must not see the camera.
        if request.headers.get("Host", "") not in (f"{ADDRESS}:{self.port}", f"localhost:{self.port}"):
            request.send_error(403)
        elif request.path == "/":
            request.send_response(200)
            request.send_header("Content-Type", "text/html")
            request.send_header("Content-Length", str(len(PAGE)))
            request.end_headers()
            request.wfile.write(PAGE)
        elif request.path == "/stream":
            request.send_response(200)
            request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            request.send_header("Cache-Control", "no-store")
            request.end_headers()
            self._stream(request)
        else:
            request.send_error(404)

    def _stream(self, request: BaseHTTPRequestHandler) -> None:
        """Images until the browser leaves; a slow one skips some."""
        shown = 0
        while True:
            with self._changed:
                while self._number == shown and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                jpeg, shown = self._jpeg, self._number
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            try:
                request.wfile.write(head.encode() + jpeg + b"\r\n")
            except OSError:  # the browser has gone
                return

    def __enter__(self) -> "LiveView":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
