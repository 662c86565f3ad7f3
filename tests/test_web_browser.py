"""The page in a real browser: what a user does there, and that nothing is asked of another host."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
from chromium import CHROMIUM, Browser
from inputs import smooth_image_uint8
from test_video import write_clip

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
    pytest.mark.skipif(os.name == "nt", reason="the browser is driven over inherited pipes"),
]

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def address(small_snapshot: Path, mano_folder: Path) -> Iterator[str]:
    command = [sys.executable, "demo/web.py", "--gpu", "cpu", "--port", "0"]
    command += ["--checkpoint", str(small_snapshot), "--mano", str(mano_folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if found := re.match(r"ready: (\S+)", line):
                yield found[1]
                break
        else:
            pytest.fail("the page did not start")
        process.terminate()
        process.wait(30)


@pytest.fixture
def browser(address: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Browser]:
    browser = Browser(address, tmp_path, **getattr(request, "param", {}))
    yield browser
    browser.close()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "two hands.png"
    cv2.imwrite(str(path), smooth_image_uint8(4, 240, 300))
    return path


def status(browser: Browser) -> str:
    return browser.run("document.querySelector('#status').textContent")


def wait_for_hands(browser: Browser, photo: Path) -> None:
    text = f"{photo.name.removesuffix('.png')}: right hand and left hand."
    browser.wait(lambda: status(browser) == text, f"the result; the status is {status(browser)!r}", 120)


def choose_view(browser: Browser, view: str) -> None:
    browser.run(f"document.querySelector('[name=view][value=\"{view}\"]').click()")


def pixels(browser: Browser) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(browser.screenshot(), np.uint8), cv2.IMREAD_COLOR)


def test_drop_turn_and_download(browser: Browser, photo: Path, address: str) -> None:
    browser.drop("#drop", photo)
    wait_for_hands(browser, photo)
    size = "[document.querySelector('#image').naturalWidth, document.querySelector('#image').naturalHeight]"
    browser.wait(lambda: browser.run(size) == [300, 240], "the overlay")

    choose_view(browser, "3d")
    x, y, width, height = (int(value) for value in browser.place("#frame"))

    def frame() -> np.ndarray:
        return pixels(browser)[y : y + height, x : x + width].astype(int)

    browser.wait(lambda: np.ptp(frame().reshape(-1, 3), axis=0).max() > 100, "the hands in 3D")
    before = frame()
    browser.drag("#frame", 120, 40)
    browser.wait(lambda: (np.abs(frame() - before).max(2) > 30).mean() > 0.005, "the hands to turn")

    for save_as in ("two hands.json", "two hands.glb"):
        browser.run(f"[...document.querySelectorAll('#downloads a')].find(a => a.textContent === {save_as!r}).click()")
        file = browser.downloads / save_as
        browser.wait(lambda file=file: file.is_file() and file.stat().st_size, save_as)
    assert json.loads((browser.downloads / "two hands.json").read_bytes())["name"] == "two hands"
    assert (browser.downloads / "two hands.glb").read_bytes()[:4] == b"glTF"

    asked = browser.requests()
    assert len(asked) >= 6 and {urlsplit(url).netloc for url in asked} == {urlsplit(address).netloc}, asked


def test_a_bad_photo_is_explained_and_the_keyboard_suffices(browser: Browser, photo: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.png"
    text.write_text("not a photo")
    browser.drop("#drop", text)
    browser.wait(lambda: "not an image" in status(browser), "the reason")
    assert browser.run("document.querySelector('#status').getAttribute('aria-live')") == "polite"
    browser.drop("#drop", photo)
    wait_for_hands(browser, photo)
    order = []
    browser.run("document.activeElement.blur(); document.querySelector('#file').focus()")
    for _ in range(14):
        name = "(e => e.id || e.name || e.download || e.tagName)(document.activeElement)"
        order.append(browser.run(name))
        browser.press("Tab", 9)
    expected = ["file", "hand", "min_confidence", "focal", "again", "view", "two hands.json", "two hands.glb"]
    assert [name for name in order if name in expected][: len(expected)] == expected, order  # then from the start
    browser.run("document.querySelector('[name=view]:checked').focus()")
    browser.press("ArrowRight", 39)
    assert browser.run("document.querySelector('[name=view]:checked').value") == "side"


def wait_for_a_frame(browser: Browser) -> None:
    browser.wait(lambda: browser.run("document.querySelector('#image').src.startsWith('data:')"), "a frame", 120)


def test_a_clip_plays(browser: Browser, tmp_path: Path, address: str) -> None:
    browser.drop("#drop", write_clip(tmp_path / "two hands.mp4", 30, (240, 320), sound=True))
    wait_for_a_frame(browser)
    assert "step" in status(browser) and "of 30" in browser.run("document.querySelector('#step').textContent")
    browser.wait(lambda: status(browser) == "two hands: done.", "the end", 120)
    video = "document.querySelector('#video')"
    browser.run(f"{video}.play()")
    browser.wait(lambda: browser.run(f"{video}.ended"), "the video to play to its end")
    assert browser.run(f"[{video}.videoWidth, {video}.videoHeight, {video}.error]") == [320, 240, None]
    browser.run("[...document.querySelectorAll('#downloads a')].find(a => a.textContent === 'hands.npz').click()")
    file = browser.downloads / "hands.npz"
    browser.wait(lambda: file.is_file() and file.stat().st_size, "the table")
    assert {urlsplit(url).netloc for url in browser.requests()} == {urlsplit(address).netloc}


def test_cancel_by_the_keyboard_and_a_photo_after_it(browser: Browser, photo: Path, tmp_path: Path) -> None:
    browser.drop("#drop", write_clip(tmp_path / "long.mp4", 1500, (240, 320)))
    wait_for_a_frame(browser)
    browser.run("document.querySelector('#cancel').focus()")
    browser.press("Enter", 13, "\r")
    browser.wait(lambda: status(browser) == "Cancelled: nothing of long.mp4 is kept.", "the end")
    assert browser.run("document.querySelector('#result').hidden")
    browser.drop("#drop", photo)
    wait_for_hands(browser, photo)


@pytest.mark.parametrize("browser", [{"width": 390, "height": 844, "dark": True}], indirect=True)
def test_a_phone_in_the_dark(browser: Browser, photo: Path) -> None:
    browser.drop("#drop", photo)
    wait_for_hands(browser, photo)
    assert browser.run("document.documentElement.scrollWidth") == 390  # nothing reaches beyond the screen
    assert pixels(browser)[2, 2].max() < 60
