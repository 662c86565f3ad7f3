"""The server of the page: photos in, one after another through the network, results out. `web.py` is its command line.

A client's bytes are read by `load_photo` alone, and its file name never reaches a path: uploads and results have random
names in a temporary folder. Requests by other sites, and under other host names than ours, are refused.
"""

import argparse
import asyncio
import hmac
import secrets
import socket
import tempfile
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.devices import parse_devices
from common.errors import UserError, explain_failure, one_line
from common.options import HAND_MODES
from common.types import SIDES
from common.utils.files import make_folder
from common.utils.images import image_size, is_animation, load_photo, quiet_opencv
from demo.demo import fraction, positive
from demo.predictor import HandPredictor, PhotoHands, PreparedPhoto
from demo.results import ResultWriter, depth_note
from demo.run import real_camera

MAX_UPLOAD = 20_000_000  # bytes
WAITING = 8  # photos, beside the one in the network
KEPT = 50  # results
RETRY_AFTER = 5  # s
LONGEST_NAME = 200  # characters of a photo's name in its results
PAGE = Path(__file__).resolve().parent / "page"
VIEWS = ("box", "skeleton", "mesh", "side")

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# The 3D view is one file with its scripts inside. It runs in an origin of its own and can load nothing.
FRAME_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "connect-src data: blob:; sandbox allow-scripts; frame-ancestors 'self'"
)


class Options(NamedTuple):
    """What a client asks for; see `HandPredictor.predict`. `name` stands in the results, as demo.py's NAME does."""

    name: str
    hand: str
    min_confidence: float
    focal: float | None


class Page:
    """The handlers, and the queue before the network.

    Args:
        folder: private to this program.
        max_pixels: larger photos are refused before they are decoded.
    """

    def __init__(self, predictor: HandPredictor, folder: Path, max_pixels: int, renderer: str = "auto") -> None:
        self.predictor, self.folder, self.max_pixels = predictor, folder, max_pixels
        make_folder(folder / "uploads")
        self.writer = ResultWriter(
            folder,
            predictor.hand_model_name,
            ("obj", "glb"),
            html=True,
            renderer=renderer,
            note=predictor.note,
        )
        self.files: dict[str, dict[str, Path]] = {}  # id of a result -> path of the address -> file
        self.order: deque[str] = deque()
        self.inside = 0
        self.turn = asyncio.Lock()

    def app(self, hosts: frozenset[str] | None, token: str | None = None) -> Starlette:
        """The application.

        Args:
            hosts: names under which it may be reached; None: any, for which a token is needed.
            token: what clients must know.
        """

        def file(name: str) -> Route:
            return Route(f"/{name}", lambda request: FileResponse(PAGE / (name or "index.html")))

        routes = [file(""), file("page.css"), file("page.js")]
        routes += [Route("/photo", self.photo, methods=["POST"]), Route("/result/{id}/{path:path}", self.result)]
        handlers: Any = {HTTPException: _refusal, Exception: _failure}
        return Starlette(
            routes=routes, exception_handlers=handlers, middleware=[Middleware(Guard, hosts=hosts, token=token)]
        )

    async def photo(self, request: Request) -> Response:
        """An upload -> its hands, and the addresses of its files."""
        options = read_options(request)
        try:
            async with self._place():
                upload = self.folder / "uploads" / secrets.token_hex(16)
                try:
                    await _receive(request, upload)
                    await self._wait(request)
                    try:
                        return JSONResponse(await run_in_threadpool(self._work, upload, options))
                    finally:
                        self.turn.release()
                finally:
                    upload.unlink(missing_ok=True)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except OSError as error:  # no room for the upload
            raise HTTPException(500, error.strerror or "cannot store the photo") from error

    async def result(self, request: Request) -> Response:
        """A file of a result."""
        files = self.files.get(request.path_params["id"], {})
        path = request.path_params["path"]
        if path not in files:
            raise HTTPException(404, f"there is no such file; the last {KEPT} results are kept")
        return FileResponse(files[path], headers={"Content-Security-Policy": FRAME_POLICY} if path == "3d" else None)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        if self.inside > WAITING:
            raise HTTPException(503, f"{WAITING} photos are waiting already; try again in a few seconds",
                                {"Retry-After": str(RETRY_AFTER)})  # fmt: skip
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    async def _wait(self, request: Request) -> None:
        """Wait for the network, first come, first served. Raises ClientDisconnect when the client has gone."""
        turn = asyncio.ensure_future(self.turn.acquire())
        gone = asyncio.ensure_future(request.receive())  # after the body it ends only when the client goes
        try:
            await asyncio.wait((turn, gone), return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                if not turn.cancel():
                    self.turn.release()
                raise ClientDisconnect
        finally:
            gone.cancel()

    def _work(self, upload: Path, options: Options) -> dict[str, Any]:
        """One photo, in a thread. Raises HTTPException with the reason if it cannot be done."""
        try:
            image, orientation, prepared = self._read(upload, options)
        except UserError as error:
            raise HTTPException(422, str(error).replace(str(upload), "the photo")) from None
        finally:
            upload.unlink(missing_ok=True)
        id = secrets.token_hex(16)
        try:
            photo = self.predictor.predict([prepared], options.hand, options.min_confidence)[0]
            self.writer.write(id, image, photo, orientation, options.name)
        except Exception as error:
            self._remove(id)
            reason = explain_failure(error) or f"{type(error).__name__}: {error}"
            raise HTTPException(500, reason.replace(str(self.folder), "the results' folder")) from error
        return self._keep(id, photo, options.name)

    def _read(self, upload: Path, options: Options) -> tuple[np.ndarray, int, PreparedPhoto]:
        height, width = image_size(upload) or (0, 0)
        if height * width > self.max_pixels:
            raise UserError(
                f"it has {width} x {height} pixels; at most {self.max_pixels / 1e6:.0f} megapixels are read"
            )
        if is_animation(upload):
            raise UserError("it is an animation; choose a photo, or one of its frames")
        image, orientation = load_photo(upload)
        camera = real_camera([options.focal] if options.focal else None, None, image.shape[:2])
        return image, orientation, self.predictor.prepare(image, intrinsics=camera)

    def _keep(self, id: str, photo: PhotoHands, name: str) -> dict[str, Any]:
        """Remember a result's files, forget the oldest, and describe it for the page."""
        sides = [hand.side for hand in photo.hands]
        places = {"json": f"results/{id}.json", **{f"render/{view}": f"renders/{id}_{view}.jpg" for view in VIEWS}}
        if sides:
            places |= {"glb": f"meshes/{id}.glb", "3d": f"renders/{id}.html"}
        places |= {f"{side}.obj": f"meshes/{id}_{side}.obj" for side in sides}
        self.files[id] = {path: self.folder / place for path, place in places.items()}
        self.order.append(id)
        if len(self.order) > KEPT:
            oldest = self.order.popleft()
            del self.files[oldest]
            self._remove(oldest)
        saved = {"json": ".json", "glb": ".glb", **{f"{side}.obj": f"_{side}.obj" for side in SIDES}}
        return {
            "id": id,
            "name": name,
            "hand_model": self.predictor.hand_model_name,
            "depth": depth_note(photo),
            "note": self.predictor.note,
            "pair": photo.pair,
            "has_3d": bool(sides),
            "hands": {
                side: {"confidence": float(photo.confidences[index]), "dropped": photo.dropped.get(side)}
                for index, side in enumerate(SIDES)
            },
            "files": [{"path": path, "save_as": name + end} for path, end in saved.items() if path in places],
        }

    def _remove(self, id: str) -> None:
        for file in self.folder.glob(f"*/{id}*"):
            file.unlink(missing_ok=True)


class Guard:
    """Refuses requests that do not come from our own page, and adds `HEADERS` to every answer."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None, token: str | None) -> None:
        self.app, self.hosts, self.token = app, hosts, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if self.token and connection.query_params.get("token") and not refused:
                    headers["Set-Cookie"] = f"token={self.token}; HttpOnly; SameSite=Strict; Path=/"
            await send(message)

        connection = HTTPConnection(scope)
        refused = self._refuse(connection)
        await (refused or self.app)(scope, receive, send_with_headers)

    def _refuse(self, connection: HTTPConnection) -> Response | None:
        host = connection.headers.get("host", "")
        if self.hosts is not None and _name_of_host(f"//{host}") not in self.hosts:
            return _error(400, "this program is not reached under that host name")
        site = connection.headers.get("sec-fetch-site", "none")
        origin = connection.headers.get("origin")
        if site not in ("same-origin", "none") or (origin and urlsplit(origin).netloc != host):
            return _error(403, "requests of other sites are refused")
        known = connection.query_params.get("token") or connection.cookies.get("token") or ""
        if self.token and not hmac.compare_digest(known.encode(), self.token.encode()):
            return _error(403, "add ?token=... to the address, as the one who started this program says")
        return None


def _name_of_host(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def read_options(request: Request) -> Options:
    """The options of an upload, from its address. Raises HTTPException 400."""
    query = request.query_params
    hand = query.get("hand", "both")
    if hand not in HAND_MODES:
        raise HTTPException(400, f"hand must be one of {', '.join(HAND_MODES)}")
    try:
        min_confidence = fraction(query.get("min_confidence", "0"))
        focal = positive(query["focal"]) if "focal" in query else None
    except (ValueError, argparse.ArgumentTypeError):
        raise HTTPException(400, "min_confidence must be from 0 to 1, focal a number of pixels above 0") from None
    # As `demo.name_outputs` does it for a file of this name.
    name = PurePosixPath(query.get("name", "").replace("\\", "/")).stem[:LONGEST_NAME]
    return Options(name or "photo", hand, min_confidence, focal)


async def _receive(request: Request, upload: Path) -> None:
    """Write a request's body to a file. Raises HTTPException 413 at the limit, 422 for a wrong length."""
    too_large = HTTPException(413, f"a photo may have at most {MAX_UPLOAD // 1_000_000} MB")
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > MAX_UPLOAD:
        raise too_large
    size = 0
    with open(upload, "xb") as file:
        async for part in request.stream():
            size += len(part)
            if size > MAX_UPLOAD:
                raise too_large
            file.write(part)


def _error(status: int, text: str, headers: Any = None) -> JSONResponse:
    return JSONResponse({"error": one_line(text)}, status, headers)


async def _refusal(request: Request, error: HTTPException) -> Response:
    return _error(error.status_code, error.detail, error.headers)


async def _failure(request: Request, error: Exception) -> Response:
    return _error(500, explain_failure(error) or f"{type(error).__name__}: {error}")


def serve(args: argparse.Namespace, listener: socket.socket, max_pixels: int) -> None:
    """Load the network, and answer requests until Ctrl-C.

    Args:
        args: from `web.parse_args`.
        listener: bound to the address.

    Raises:
        UserError: the network cannot be loaded.
    """
    quiet_opencv()
    devices = parse_devices(args.gpu)
    predictor = HandPredictor.load(args.checkpoint, args.mano, devices[:1], args.sha256)
    host, port = listener.getsockname()[:2]
    with tempfile.TemporaryDirectory(prefix="interwild-") as folder:
        page = Page(predictor, Path(folder), max_pixels, args.renderer)
        # Who knows the token may come under any name of this machine.
        hosts = None if args.token else frozenset(("127.0.0.1", "localhost", "::1", host))
        app = page.app(hosts, args.token)
        print(f"on {devices[0]}; hand model: {predictor.hand_model_name}\nready: http://{host}:{port}", flush=True)
        config = uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=5)
        uvicorn.Server(config).run(sockets=[listener])
