"""The server of the page: photos and videos in, one after another through the network, results out. See `web.py`.

A client's bytes are read by `load_photo` and `VideoReader` alone, and its file name never reaches a path: uploads and
results have random names in a temporary folder. Requests by other sites, and under other host names than ours, are
refused.
"""

import argparse
import asyncio
import base64
import hmac
import json
import secrets
import shutil
import socket
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import cv2
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
from demo.results import DEPTH_METRIC, DEPTH_VIRTUAL, ResultWriter, depth_note
from demo.run import real_camera

MAX_PHOTO = 20_000_000  # bytes
MAX_VIDEO = 200_000_000  # bytes
MAX_VIDEO_PIXELS = 4096 * 2304  # of a frame; an encoder holds dozens of them
WAITING = 8  # photos and videos, beside the one in the network
KEPT = 50  # results
REPORT_EVERY = 0.5  # s, between lines about a video's progress
PREVIEW = 640  # px, longer side at most
RETRY_AFTER = 5  # s
LONGEST_NAME = 200  # characters of a file's name in its results
PAGE = Path(__file__).resolve().parent / "page"
VIEWS = ("box", "skeleton", "mesh", "side")
VIDEO_FILES = ("overlay.mp4", "hands.npz", "summary.json")

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src 'self'; connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
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
    file: str  # the name with its suffix
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
        self.ending: Callable[[], bool] = lambda: False  # the program was asked to end; videos do not hold it up

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
        routes.append(Route("/video", VideoEndpoint(self), methods=["POST"]))
        handlers: Any = {HTTPException: _refusal, Exception: _failure}
        return Starlette(
            routes=routes, exception_handlers=handlers, middleware=[Middleware(Guard, hosts=hosts, token=token)]
        )

    async def photo(self, request: Request) -> Response:
        """An upload -> its hands, and the addresses of its files."""
        options = read_options(request)
        try:
            async with self.upload(request, MAX_PHOTO, "photo") as upload:
                await self.wait(request)
                try:
                    return JSONResponse(await run_in_threadpool(self._work, upload, options))
                finally:
                    self.turn.release()
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it

    async def result(self, request: Request) -> Response:
        """A file of a result."""
        files = self.files.get(request.path_params["id"], {})
        path = request.path_params["path"]
        if path not in files:
            raise HTTPException(404, f"there is no such file; the last {KEPT} results are kept")
        return FileResponse(files[path], headers={"Content-Security-Policy": FRAME_POLICY} if path == "3d" else None)

    @asynccontextmanager
    async def upload(self, request: Request, limit: int, what: str) -> AsyncIterator[Path]:
        """A request's body as a file, and a place in the queue. Raises HTTPException, see `_receive`; 503: it is full.

        Args:
            limit: bytes.
        """
        if self.inside > WAITING:
            raise HTTPException(503, f"{WAITING} others are waiting already; try again in a few seconds",
                                {"Retry-After": str(RETRY_AFTER)})  # fmt: skip
        self.inside += 1
        upload = self.folder / "uploads" / secrets.token_hex(16)
        try:
            await _receive(request, upload, limit, what)
            yield upload
        except OSError as error:  # no room for it
            raise HTTPException(500, error.strerror or f"cannot store the {what}") from error
        finally:
            upload.unlink(missing_ok=True)
            self.inside -= 1

    async def wait(self, request: Request) -> None:
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
            self.remove(id)
            raise HTTPException(500, self.explain(error)) from error
        return self._describe(id, photo, options.name)

    def explain(self, error: BaseException) -> str:
        """The line for a failure, without a path of this machine."""
        reason = explain_failure(error) or f"{type(error).__name__}: {error}"
        return reason.replace(str(self.folder), "the results' folder")

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

    def _describe(self, id: str, photo: PhotoHands, name: str) -> dict[str, Any]:
        """Keep a photo's results, and describe them for the page."""
        sides = [hand.side for hand in photo.hands]
        places = {"json": f"results/{id}.json", **{f"render/{view}": f"renders/{id}_{view}.jpg" for view in VIEWS}}
        if sides:
            places |= {"glb": f"meshes/{id}.glb", "3d": f"renders/{id}.html"}
        places |= {f"{side}.obj": f"meshes/{id}_{side}.obj" for side in sides}
        self.keep(id, {path: self.folder / place for path, place in places.items()})
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

    def keep(self, id: str, files: dict[str, Path]) -> None:
        """Serve a result's files, and delete the oldest result's."""
        self.files[id] = files
        self.order.append(id)
        if len(self.order) > KEPT:
            oldest = self.order.popleft()
            del self.files[oldest]
            self.remove(oldest)

    def remove(self, id: str) -> None:
        """Delete a result's files."""
        for path in self.folder.glob(f"*/{id}*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


class VideoRun:
    """A video in the network, as the page is told of it. The network's thread writes, the server's reads."""

    def __init__(self) -> None:
        self.gone = False  # the client
        self.state: dict[str, Any] = {"stage": "people"}
        self.preview: str | None = None  # not sent yet
        self._next_preview = 0.0  # s

    def watch(self, stage: str, done: int, total: int | None) -> None:
        """See `VideoOptions.watch`. Raises ClientDisconnect."""
        if self.gone:
            raise ClientDisconnect
        self.state = {"stage": stage, "frame": done, "frames": total}

    def show(self, image: np.ndarray) -> None:
        """See `VideoOptions.preview`."""
        if time.monotonic() >= self._next_preview:
            self._next_preview = time.monotonic() + REPORT_EVERY
            height, width = image.shape[:2]
            scale = min(1.0, PREVIEW / max(height, width))
            size = max(1, round(scale * width)), max(1, round(scale * height))
            small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            jpeg = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))[1]
            self.preview = "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()

    def line(self) -> dict[str, Any]:
        """The progress, with the newest preview once."""
        preview, self.preview = self.preview, None
        return self.state | ({"preview": preview} if preview else {})


class VideoEndpoint:
    """POST /video: a video -> lines of JSON: progress with previews, at last the result or {"error": ...}.

    The whole frame is one person, so no detector's weights are needed. A client that goes, as by the page's Cancel,
    ends the work at the next frame; nothing of it is kept.
    """

    def __init__(self, page: Page) -> None:
        self.page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        options = read_options(request)

        async def write(line: dict[str, Any]) -> None:
            await send({"type": "http.response.body", "body": json.dumps(line).encode() + b"\n", "more_body": True})

        with suppress(ClientDisconnect):
            async with self.page.upload(request, MAX_VIDEO, "video") as upload:
                await run_in_threadpool(_check_video, upload)
                headers = [(b"content-type", b"application/x-ndjson")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                if self.page.turn.locked():
                    await write({"stage": "waiting"})
                await self.page.wait(request)
                run = VideoRun()
                work = asyncio.ensure_future(self._run(run, upload, options))
                gone = asyncio.ensure_future(receive())
                try:
                    while not work.done() and not self.page.ending():
                        await asyncio.wait((work, gone), timeout=REPORT_EVERY, return_when=asyncio.FIRST_COMPLETED)
                        if gone.done():
                            raise ClientDisconnect
                        await write(work.result() if work.done() else run.line())
                finally:
                    gone.cancel()
                    run.gone = True
                    await asyncio.wait((work,))  # the upload is open until then
                await send({"type": "http.response.body", "body": b""})

    async def _run(self, run: VideoRun, upload: Path, options: Options) -> dict[str, Any]:
        """The work. The next may begin when it ends, not when a slow client has read its lines."""
        try:
            return await run_in_threadpool(self._work, run, upload, options)
        finally:
            self.page.turn.release()

    def _work(self, run: VideoRun, upload: Path, options: Options) -> dict[str, Any]:
        """One video, in a thread: its result, or the error."""
        from demo.video_hands import VideoOptions, process_video  # PyAV is needed for videos alone

        page, id = self.page, secrets.token_hex(16)
        folder = page.folder / "videos" / id
        video_options = VideoOptions(
            hand=options.hand,
            min_confidence=options.min_confidence,
            intrinsics=partial(real_camera, [options.focal] if options.focal else None, None),
            watch=run.watch,
            preview=run.show,
            title=options.file,
        )
        try:
            problems = process_video(upload, folder, page.predictor, video_options)
            if run.gone:
                raise ClientDisconnect
        except (Exception, KeyboardInterrupt) as error:  # KeyboardInterrupt is of the library: nothing was written
            page.remove(id)
            return {"error": one_line(page.explain(error).replace(str(upload), "the video"))}
        page.keep(id, {name: folder / name for name in VIDEO_FILES})
        summary = json.loads((folder / "summary.json").read_text())
        return {
            "id": id,
            "name": options.name,
            "hand_model": summary["hand_model"],
            "depth": DEPTH_METRIC if options.focal else DEPTH_VIRTUAL,
            "note": summary["network_note"],
            "video": {key: summary[key] for key in ("frames", "seconds", "shots")}
            | {"hands": sum(person["hands"] for person in summary["people"])},
            "problems": [one_line(problem) for problem in problems],
            "files": [{"path": name, "save_as": name} for name in VIDEO_FILES],
        }


def _check_video(upload: Path) -> None:
    """Raises HTTPException 422 for a file that is not a video, 501 if PyAV is not installed."""
    try:
        from demo.video import VideoReader  # PyAV is needed for videos alone
    except ModuleNotFoundError as error:
        raise HTTPException(501, f"videos need the package {error.name}: pip install av") from None
    try:
        VideoReader(upload, MAX_VIDEO_PIXELS)
    except UserError as error:
        raise HTTPException(422, str(error).replace(str(upload), "the video")) from None


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
    file = PurePosixPath(query.get("name", "").replace("\\", "/"))
    name = file.stem[:LONGEST_NAME] or "photo"
    return Options(name, name + file.suffix[:LONGEST_NAME], hand, min_confidence, focal)


async def _receive(request: Request, upload: Path, limit: int, what: str) -> None:
    """Write a request's body to a file. Raises HTTPException 413 at the limit, 422 for a wrong length."""
    too_large = HTTPException(413, f"a {what} may have at most {limit // 1_000_000} MB")
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > limit:
        raise too_large
    size = 0
    with open(upload, "xb") as file:
        async for part in request.stream():
            size += len(part)
            if size > limit:
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
        server = uvicorn.Server(config)
        page.ending = lambda: server.should_exit
        server.run(sockets=[listener])
