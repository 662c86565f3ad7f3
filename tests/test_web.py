"""The page: every upload that must be refused, what keeps others out, the queue, and the same bytes as demo.py's."""

import asyncio
import io
import json
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from demo.server import KEPT, MAX_UPLOAD, WAITING, Page  # noqa: E402

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
    "too many bytes": (lambda: bytes(MAX_UPLOAD + 1), 413, "20 MB"),
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


async def call(app: Any, messages: list[dict], **headers: str) -> tuple[list[dict], int]:
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
    scope = {"type": "http", "method": "POST", "path": "/photo", "query_string": b"", "headers": fields}
    await app({**scope, "http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 80)}, receive, send)
    return sent, read


def test_a_stream_is_read_to_the_limit_and_no_further(page: Page) -> None:
    part = {"type": "http.request", "body": bytes(1_000_000), "more_body": True}
    sent, read = asyncio.run(call(page.app(HOSTS), [part] * 100))
    assert sent[0]["status"] == 413 and read == MAX_UPLOAD // 1_000_000 + 1
    assert not list((page.folder / "uploads").iterdir())


def test_a_client_that_goes_while_waiting_is_forgotten(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "_work", lambda *args: pytest.fail("its work was not dropped"))

    async def scenario() -> None:
        await page.turn.acquire()  # another photo is in the network
        await call(page.app(HOSTS), [{"type": "http.request", "body": PHOTO}, {"type": "http.disconnect"}])
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
