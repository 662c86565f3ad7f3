"""The page: every upload that must be refused, what keeps others out, the queue, the files of demo.py; videos."""

import asyncio
import base64
import io
import json
import re
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import httpx
import numpy as np
import pytest
from inputs import smooth_image_uint8
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
from starlette.testclient import TestClient  # noqa: E402

from demo import demo, web  # noqa: E402
from demo.predictor import HandPredictor  # noqa: E402
from demo.run import real_camera  # noqa: E402
from demo.server import KEPT, MAX_PHOTO, WAITING, Page, VideoEndpoint  # noqa: E402
from demo.video import VideoReader  # noqa: E402
from demo.video_hands import VideoOptions, process_video  # noqa: E402

ADDRESS = "http://127.0.0.1:7861"
HOSTS = frozenset(("127.0.0.1", "localhost"))


def encode(image: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


PHOTO = encode(smooth_image_uint8(4, 120, 160))


@pytest.fixture(scope="module")
def predictor(small_snapshot: Path, mano_folder: Path) -> HandPredictor:
    return HandPredictor.load(small_snapshot, mano_folder, ["cpu"])


@pytest.fixture
def page(predictor: HandPredictor, tmp_path: Path) -> Page:
    return Page(predictor, tmp_path / "private", web.MAX_PHOTO_PIXELS)


@pytest.fixture
def client(page: Page) -> TestClient:
    return TestClient(page.app(HOSTS), base_url=ADDRESS)


def test_the_page_and_its_bounds(client: TestClient) -> None:
    """All that it loads is its own; scripts only from files; the 3D view runs in an origin of its own."""
    html = client.get("/")
    assert html.status_code == 200 and "<h1>" in html.text
    assert "script-src 'self'" in html.headers["content-security-policy"]
    assert html.headers["x-content-type-options"] == "nosniff"
    for name in ("page.css", "page.js"):
        answer = client.get(name)
        assert answer.status_code == 200 and name in html.text
    assert not re.findall(r"https?://|<script>|style=| on\w+=", html.text + client.get("page.css").text)
    id = client.post("/photo", content=PHOTO).json()["id"]
    frame = client.get(f"/result/{id}/3d").headers["content-security-policy"]
    assert "sandbox allow-scripts;" in frame and "default-src 'none'" in frame


def test_same_bytes_as_the_demo(
    client: TestClient,
    tmp_path: Path,
    small_snapshot: Path,
    mano_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photo = tmp_path / "my photo.png"
    photo.write_bytes(PHOTO)
    out = tmp_path / "out"
    monkeypatch.setattr(
        sys,
        "argv",
        ["demo.py", "--gpu", "cpu", "--html", "--hand", "auto", "--focal", "300", "--input", str(photo)]
        + ["--output", str(out), "--checkpoint", str(small_snapshot), "--mano", str(mano_folder)],
    )
    demo.main()
    answer = client.post("/photo?name=my%20photo.png&hand=auto&focal=300", content=PHOTO).json()
    assert answer["name"] == "my photo" and answer["depth"].startswith("metric")
    names = {file["path"]: file["save_as"] for file in answer["files"]}
    sides = [side for side, hand in answer["hands"].items() if not hand["dropped"]]
    assert names["json"] == "my photo.json" and set(names) == {"json", "glb", *(f"{side}.obj" for side in sides)}
    written = {"json": "results/my photo.json", "glb": "meshes/my photo.glb"}
    written |= {f"{side}.obj": f"meshes/my photo_{side}.obj" for side in sides}
    written |= {f"render/{kind}": f"renders/my photo_{kind}.jpg" for kind in ("box", "skeleton", "mesh", "side")}
    for path, name in written.items():
        found, expected = client.get(f"/result/{answer['id']}/{path}").content, (out / name).read_bytes()
        if path == "json":  # but for the path of the photo, which the page does not have
            content = json.loads(expected)
            assert content.pop("file") and content == json.loads(found)
        else:
            assert found == expected, path


def test_what_was_left_out_and_why(client: TestClient) -> None:
    answer = client.post("/photo?hand=right&min_confidence=0", content=PHOTO).json()
    assert answer["hands"]["right"]["dropped"] is None and "right" in answer["hands"]["left"]["dropped"]
    assert answer["depth"].startswith("virtual") and answer["hand_model"]
    answer = client.post("/photo?min_confidence=1", content=PHOTO).json()
    assert not answer["has_3d"] and [file["path"] for file in answer["files"]] == ["json"]


def animation() -> bytes:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    data = io.BytesIO()
    frames[0].save(data, "GIF", save_all=True, append_images=frames[1:])
    return data.getvalue()


def huge() -> bytes:
    """A file of few bytes with 56 megapixels."""
    data = io.BytesIO()
    Image.new("1", (8000, 7000)).save(data, "PNG")
    return data.getvalue()


BAD_UPLOADS: dict[str, tuple[Callable[[], bytes], int, str]] = {
    "text": (lambda: b"not a photo", 422, "not an image"),
    "empty": (lambda: b"", 422, "empty"),
    "cut short": (lambda: PHOTO[: len(PHOTO) // 2], 422, "cut short|damaged"),
    "cut short jpg": (lambda: encode(smooth_image_uint8(4, 120, 160), ".jpg")[:900], 422, "cut short|damaged"),
    "animation": (animation, 422, "animation"),
    "1 x 1": (lambda: encode(np.zeros((1, 1, 3), np.uint8)), 422, "1 x 1"),
    "huge": (huge, 422, "megapixels"),
    "too many bytes": (lambda: bytes(MAX_PHOTO + 1), 413, "20 MB"),
}


@pytest.mark.parametrize("kind", BAD_UPLOADS)
def test_bad_uploads(client: TestClient, page: Page, kind: str) -> None:
    make, status, reason = BAD_UPLOADS[kind]
    answer = client.post("/photo", content=make())
    error = answer.json()["error"]
    assert answer.status_code == status and re.search(reason, error), error
    assert "\n" not in error and str(page.folder) not in error and "/" not in error
    assert not list((page.folder / "uploads").iterdir())
    assert client.post("/photo", content=PHOTO).status_code == 200


@pytest.mark.parametrize(
    "query",
    ["hand=foot", "focal=0", "focal=nan", "focal=x", "focal=-3", "focal=", "min_confidence=2", "min_confidence=nan"],
)
def test_bad_options(client: TestClient, query: str) -> None:
    answer = client.post(f"/photo?{query}", content=PHOTO)
    assert answer.status_code == 400 and answer.json()["error"]


async def call(app: Any, messages: list[dict], path: str = "/photo", **headers: str) -> tuple[list[dict], int]:
    """One upload by ASGI messages. Returns what was sent, and how many messages were read."""
    sent: list[dict] = []
    read = 0

    async def receive() -> dict:
        nonlocal read
        read += 1
        return messages[read - 1]

    async def send(message: dict) -> None:
        sent.append(message)

    fields = [(b"host", b"127.0.0.1"), *((key.encode(), value.encode()) for key, value in headers.items())]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": fields}
    await app({**scope, "http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 80)}, receive, send)
    return sent, read


def test_a_stream_is_read_to_the_limit_and_no_further(page: Page) -> None:
    part = {"type": "http.request", "body": bytes(1_000_000), "more_body": True}
    sent, read = asyncio.run(call(page.app(HOSTS), [part] * 100))
    assert sent[0]["status"] == 413 and read == MAX_PHOTO // 1_000_000 + 1
    assert not list((page.folder / "uploads").iterdir())


@pytest.mark.parametrize("path", ["/photo", "/video"])
def test_a_client_that_goes_while_waiting_is_forgotten(
    path: str, page: Page, clip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for endpoint in (Page, VideoEndpoint):
        monkeypatch.setattr(endpoint, "_work", lambda *args: pytest.fail("its work was not dropped"))
    body = PHOTO if path == "/photo" else clip

    async def scenario() -> None:
        await page.turn.acquire()  # another photo is in the network
        messages = [{"type": "http.request", "body": body}, {"type": "http.disconnect"}]
        sent, _ = await call(page.app(HOSTS), messages, path)
        assert path == "/photo" or json.loads(sent[1]["body"]) == {"stage": "waiting"}
        page.turn.release()
        await asyncio.wait_for(page.turn.acquire(), 1)

    asyncio.run(scenario())
    assert page.inside == 0 and not list((page.folder / "uploads").iterdir())


def test_twenty_at_once_are_answered_or_refused(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """One works and eight wait, so eleven of twenty are refused, at once, and none is lost."""
    begun, running, at_once = threading.Event(), [0], []
    work = page._work

    def slow(*args: Any) -> Any:
        running[0] += 1
        at_once.append(running[0])
        assert begun.wait(30)
        try:
            return work(*args)
        finally:
            running[0] -= 1

    monkeypatch.setattr(page, "_work", slow)

    async def scenario() -> list[httpx.Response]:
        transport = httpx.ASGITransport(page.app(HOSTS))
        async with httpx.AsyncClient(transport=transport, base_url=ADDRESS, timeout=60) as client:
            posts = [asyncio.ensure_future(client.post("/photo", content=PHOTO)) for _ in range(20)]
            while sum(post.done() for post in posts) < 20 - WAITING - 1:
                await asyncio.sleep(0.01)
            begun.set()
            return await asyncio.gather(*posts)

    answers = asyncio.run(scenario())
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(refused) == 20 - WAITING - 1 and all(int(answer.headers["retry-after"]) > 0 for answer in refused)
    assert [answer.status_code for answer in answers].count(200) == WAITING + 1 and max(at_once) == 1


def test_others_are_kept_out(client: TestClient, page: Page) -> None:
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/", headers={"Host": "[::1"}).status_code == 400
    for site in ("cross-site", "same-site"):
        assert client.post("/photo", content=PHOTO, headers={"Sec-Fetch-Site": site}).status_code == 403
    assert client.post("/photo", content=PHOTO, headers={"Origin": "http://evil.example"}).status_code == 403
    own = {"Origin": ADDRESS, "Sec-Fetch-Site": "same-origin"}
    assert client.post("/photo", content=PHOTO, headers=own).status_code == 200
    id = next(iter(page.files))
    for path in ("/result/none/json", f"/result/{id}/none", f"/result/{id}/..%2f..%2fetc", "/%2e%2e/%2e%2e/etc/passwd"):
        answer = client.get(path)
        assert answer.status_code == 404 and answer.json()["error"], path
    assert client.get("/photo").status_code == 405


def test_a_token_for_other_hosts(page: Page) -> None:
    client = TestClient(page.app(None, "secret"), base_url="http://lab:7861")
    assert client.get("/").status_code == 403 and client.get("/?token=wrong").status_code == 403
    assert client.get("/?token=secret").status_code == 200
    assert client.get("/page.js").status_code == 200  # by the cookie


def test_a_failure_of_the_network_is_said_and_the_next_photo_works(
    client: TestClient, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, text in ((RuntimeError("bad kernel"), "RuntimeError: bad kernel"), (MemoryError(), "out of memory")):

        def fail(*args: Any, error: Exception = error) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(page.predictor, "predict", fail)
            answer = client.post("/photo", content=PHOTO)
        assert answer.status_code == 500 and text in answer.json()["error"]
    assert client.post("/photo", content=PHOTO).status_code == 200


def test_names_reach_no_path_and_old_results_go(
    client: TestClient, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("demo.server.KEPT", 2)
    assert KEPT == 50
    name = "..%2F..%2F%3Cscript%3E%00.png"
    answers = [client.post(f"/photo?name={name}", content=PHOTO).json() for _ in range(4)]
    assert answers[0]["name"] == "<script>\0"
    assert b"<script>\0" not in client.get(f"/result/{answers[3]['id']}/3d").content
    stems = {path.name[:32] for path in page.folder.rglob("*") if path.is_file()}
    assert stems == {answer["id"] for answer in answers[2:]}
    assert client.get(f"/result/{answers[0]['id']}/json").status_code == 404


def write_video(path: Path, count: int, kind: str = "mp4", sound_only: bool = False) -> bytes:
    with av.open(str(path), "w", format=kind) as container:
        if sound_only:
            sound = container.add_stream("aac", rate=16000)
            audio = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.int16), format="s16", layout="mono")
            audio.rate, audio.pts = 16000, 0
            container.mux([*sound.encode(audio), *sound.encode()])
        else:
            stream = container.add_stream("libx264", rate=30)
            stream.height, stream.width, stream.pix_fmt, stream.gop_size = 120, 160, "yuv420p", 4
            image = smooth_image_uint8(4, 120, 160)
            for index in range(count):
                frame = np.ascontiguousarray(np.roll(image, index, 1))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    return path.read_bytes()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_video(tmp_path_factory.mktemp("video") / "a.mp4", 2)


def follow(answer: httpx.Response) -> list[dict]:
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def test_a_video_comes_frame_by_frame_and_gives_the_files_of_the_demo(
    client: TestClient, page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("demo.server.REPORT_EVERY", 0.001)
    clip = write_video(tmp_path / "my clip.mp4", 9)
    *lines, result = follow(client.post("/video?name=my%20clip.mp4&focal=300", content=clip))
    stages = [line["stage"] for line in lines]
    assert {"hands", "overlay"} <= set(stages) <= {"people", "hands", "overlay"}
    assert all(line["frame"] <= line["frames"] == 9 for line in lines if line["stage"] in ("hands", "overlay"))
    for stage in ("hands", "overlay"):
        preview = next(line["preview"] for line in lines if line["stage"] == stage and "preview" in line)
        data = base64.b64decode(preview.removeprefix("data:image/jpeg;base64,"))
        assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape == (120, 160, 3)
    assert result["name"] == "my clip" and result["depth"].startswith("metric") and not result["problems"]
    assert result["video"]["frames"] == 9 and result["video"]["hands"] == 18
    assert not list((page.folder / "uploads").iterdir())

    address = f"/result/{result['id']}/"
    assert [file["path"] for file in result["files"]] == ["overlay.mp4", "hands.npz", "summary.json"]
    assert client.get(address + "overlay.mp4", headers={"Range": "bytes=0-9"}).status_code == 206  # players seek
    options = VideoOptions(intrinsics=partial(real_camera, [300.0], None))
    process_video(tmp_path / "my clip.mp4", tmp_path / "out", page.predictor, options)
    assert client.get(address + "hands.npz").content == (tmp_path / "out" / "hands.npz").read_bytes()
    (tmp_path / "page.mp4").write_bytes(client.get(address + "overlay.mp4").content)
    videos = (tmp_path / "page.mp4", tmp_path / "out" / "overlay.mp4", tmp_path / "my clip.mp4")
    ours, demos, source = (np.stack([frame.image for frame in VideoReader(path)]).astype(int) for path in videos)
    # The same but for the encoder, which is not deterministic.
    assert 3 * np.abs(ours - demos).mean() < np.abs(ours - source).mean()
    found = client.get(address + "summary.json").json()
    expected = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert expected.pop("file")  # the page does not have the path
    assert found | {"processing_seconds": 0} == expected | {"processing_seconds": 0}

    monkeypatch.setattr("demo.server.KEPT", 1)
    client.post("/photo", content=PHOTO)
    assert client.get(address + "overlay.mp4").status_code == 404 and not list((page.folder / "videos").iterdir())


BAD_VIDEOS: dict[str, tuple[Callable[[Path], bytes], int, str]] = {
    "empty": (lambda path: b"", 422, "empty"),
    "text": (lambda path: b"not a video", 422, "not a video"),
    "a photo": (lambda path: PHOTO, 422, "not a video"),
    "a list of files": (lambda path: b"ffconcat version 1.0\nfile a.mp4\n", 422, "not a video"),
    "sound only": (lambda path: write_video(path, 0, sound_only=True), 422, "no video but sound"),
    "no index": (lambda path: write_video(path, 30)[:-2000], 422, "its index is missing"),
    "too many pixels": (lambda path: write_video(path, 2), 422, "160 x 120 pixels; at most"),
    "too many bytes": (lambda path: bytes(3_000_001), 413, "3 MB"),
}


@pytest.mark.parametrize("kind", BAD_VIDEOS)
def test_bad_videos(
    client: TestClient, page: Page, clip: bytes, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, status, reason = BAD_VIDEOS[kind]
    with monkeypatch.context() as patch:
        patch.setattr("demo.server.MAX_VIDEO", 3_000_000)
        if kind == "too many pixels":
            patch.setattr("demo.server.MAX_VIDEO_PIXELS", 1000)
        answer = client.post("/video", content=make(tmp_path / "a.mp4"))
    error = answer.json()["error"]
    assert answer.status_code == status and re.search(reason, error), error
    assert "\n" not in error and str(page.folder) not in error and "/" not in error
    assert not list((page.folder / "uploads").iterdir()) and page.inside == 0
    assert client.post("/photo", content=PHOTO).status_code == 200


def test_a_video_that_is_damaged_is_done_as_far_as_it_goes(client: TestClient, page: Page, tmp_path: Path) -> None:
    content = write_video(tmp_path / "a.mkv", 12, "matroska")
    result = follow(client.post("/video?name=a.mkv", content=content[: len(content) * 6 // 10]))[-1]
    assert 0 < result["video"]["frames"] < 12 and re.search("^it is (cut short|damaged)", result["problems"][0])
    files = {file["path"]: client.get(f"/result/{result['id']}/{file['path']}").content for file in result["files"]}
    assert str(page.folder) not in files["summary.json"].decode()
    (tmp_path / "o.mp4").write_bytes(files["overlay.mp4"])
    assert len(list(VideoReader(tmp_path / "o.mp4"))) == result["video"]["frames"]


def test_a_video_without_hands(client: TestClient, clip: bytes, capfd: pytest.CaptureFixture) -> None:
    result = follow(client.post("/video?min_confidence=1", content=clip))[-1]
    assert result["video"]["hands"] == 0 and result["files"]
    assert "frame" not in "".join(capfd.readouterr())  # the terminal is not the page's


def test_a_failure_in_a_video_is_its_last_line_and_the_next_works(
    client: TestClient, page: Page, clip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError(f"bad kernel\nat {page.folder}")

    with monkeypatch.context() as patch:
        patch.setattr(page.predictor, "observe", fail)
        result = follow(client.post("/video", content=clip))[-1]
    assert result == {"error": "RuntimeError: bad kernel\\nat the results' folder"}
    assert not list(page.folder.glob("videos/*")) and not list((page.folder / "uploads").iterdir())
    assert "id" in follow(client.post("/video", content=clip))[-1]


def test_videos_without_pyav(client: TestClient, clip: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)  # importing it fails
    monkeypatch.delitem(sys.modules, "demo.video")
    answer = client.post("/video", content=clip)
    assert answer.status_code == 501 and answer.json()["error"] == "videos need the package av: pip install av"
    assert client.post("/photo", content=PHOTO).status_code == 200


def test_a_client_that_goes_ends_its_video(
    page: Page, client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by Cancel: at the next frame, and nothing of it is kept."""
    monkeypatch.setattr("demo.server.REPORT_EVERY", 0.01)
    observe, batches, seen, left = page.predictor.observe, [], asyncio.Event(), threading.Event()

    def slow(*args: Any) -> Any:
        batches.append(len(args[0]))
        assert len(batches) == 1 or left.wait(30)
        return observe(*args)

    async def scenario() -> None:
        messages = [{"type": "http.request", "body": write_video(tmp_path / "a.mp4", 40)}]

        async def receive() -> dict:
            if messages:
                return messages.pop()
            await seen.wait()
            assert page.turn.locked()  # photos wait
            asyncio.get_running_loop().call_later(0.2, left.set)
            return {"type": "http.disconnect"}

        async def send(message: dict) -> None:
            if b"preview" in message.get("body", b""):
                seen.set()

        scope = {"type": "http", "method": "POST", "path": "/video", "query_string": b"", "http_version": "1.1"}
        scope |= {"headers": [(b"host", b"127.0.0.1")], "scheme": "http", "server": ("127.0.0.1", 80)}
        await asyncio.wait_for(page.app(HOSTS)(scope, receive, send), 60)

    with monkeypatch.context() as patch:
        patch.setattr(page.predictor, "observe", slow)
        asyncio.run(scenario())
    assert batches in ([8], [8, 8]) and page.inside == 0 and not page.turn.locked() and not page.files
    assert not list(page.folder.glob("videos/*")) and not list((page.folder / "uploads").iterdir())
    assert client.post("/photo", content=PHOTO).status_code == 200


def test_the_end_of_the_program_ends_a_video(client: TestClient, page: Page, clip: bytes) -> None:
    page.ending = lambda: True
    assert follow(client.post("/video", content=clip)) == []
    assert not page.turn.locked() and not page.files and not list(page.folder.glob("videos/*"))


@pytest.mark.parametrize(
    ("argv", "text"), [(["--host", "0.0.0.0"], "--token"), (["--port", "99999"], "port"), (["--port", "x"], "invalid")]
)
def test_the_command_line(
    argv: list[str], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["web.py", *argv])
    monkeypatch.setenv("OPENCV_IO_MAX_IMAGE_PIXELS", "0")  # restored afterwards
    with pytest.raises((SystemExit, demo.UserError)) as error:
        web.main()
    assert text in str(error.value) + capsys.readouterr().err
