"""Cameras: the newest frame only, one pass, a short delay; the browser's view. Files and functions are the camera."""

import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from common.errors import UserError
from demo import camera, demo
from demo.camera import Live, NewestFrames, box_now, process_camera
from demo.motion import BRIDGED, SEEN
from demo.predictor import HandPredictor
from demo.show import LiveView
from demo.tracking import Track
from demo.video import Frame, VideoReader
from demo.video_hands import VideoOptions, draw_frame, join_rows

SIZE = (120, 160)
BOXES = np.array([[5.0, 5, 80, 115], [82.0, 5, 155, 115]])


class Simulated:
    """A camera of `count` frames, `rate` a second; each frame holds its number."""

    def __init__(self, count: int, rate: float = 40.0) -> None:
        self.count, self.step, self.number = count, 1 / rate, 0
        self.begun = time.monotonic()

    def read(self) -> tuple[bool, np.ndarray | None]:
        if self.number == self.count:
            return False, None
        time.sleep(max(0.0, self.begun + self.number * self.step - time.monotonic()))
        self.number += 1
        return True, np.full((*SIZE, 3), self.number - 1, np.uint8)


def two_people(images: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(BOXES, np.array([0.9, 0.8])) for _ in images]


def load(folder: Path) -> tuple[dict[str, np.ndarray], dict]:
    with np.load(folder / "hands.npz", allow_pickle=False) as file:
        return dict(file), json.loads((folder / "summary.json").read_text())


def test_a_slow_reader_does_not_fall_behind() -> None:
    """Of 60 frames in 1.5 s, a reader of 4 frames a second gets about 6, each as it is then, the last among them."""
    seen, late = [], []
    source = Simulated(60)
    for frame in NewestFrames(source):
        seen.append(int(frame.image[0, 0, 0]))
        late.append(source.number - 1 - seen[-1])
        time.sleep(0.25)
    assert 5 <= len(seen) <= 8 and seen[-1] == 59 and max(late) <= 2


def test_a_camera_that_hangs_or_fails_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(Simulated):
        def read(self) -> tuple[bool, np.ndarray | None]:
            if self.number == 2:
                time.sleep(5)
            return super().read()

    class Failing(Simulated):
        def read(self) -> tuple[bool, np.ndarray | None]:
            raise cv2.error("unplugged")

    monkeypatch.setattr(camera, "STALLED", 0.3)
    frames = NewestFrames(Hanging(9, 5))
    begun = time.monotonic()
    assert 1 <= len(list(frames)) <= 2 and frames.ended and time.monotonic() - begun < 3
    assert not list(NewestFrames(Failing(9)))


def run_live(
    predictor: HandPredictor, images: list[np.ndarray], options: VideoOptions, delay: float, rate: float = 10.0
) -> tuple[list[int], dict[str, np.ndarray], Live]:
    """Frames given one by one -> numbers in the order they come out, the table, the state at the end."""
    live = Live(predictor, options, delay, dict.fromkeys(("detect", "network", "smooth", "overlay"), 0.0))
    numbers, parts, out = [], [], []
    for number, image in enumerate(images):
        out += [(number, *done) for done in live.add(Frame(number, number / rate, number, image))]
    out += [(len(images), *done) for done in live.finish()]
    for now, frame, tables in out:
        numbers.append(frame.number)
        parts += tables
        assert now - frame.number <= delay * rate + 1, "a frame waits for its delay alone"
    return numbers, join_rows(parts), live


def textured(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    still = cv2.GaussianBlur(rng.integers(0, 255, (*SIZE, 3), np.uint8), (0, 0), 5)
    return [np.clip(still.astype(int) + rng.normal(0, 6, still.shape), 0, 255).astype(np.uint8) for _ in range(count)]


@pytest.mark.parametrize(("delay", "steadier"), [(0.0, 2), (0.2, 4)])
def test_people_are_followed_in_one_pass(predictor: HandPredictor, delay: float, steadier: float) -> None:
    options = VideoOptions(detector=two_people)
    numbers, table, live = run_live(predictor, textured(24), options, delay, rate=20.0)
    assert numbers == list(range(24)) and [person.source for person in live.people] == ["detector", "detector"]
    for person in (1, 2):
        for side in (0, 1):
            own = (table["person"] == person) & (table["side"] == side)
            # A track counts from its second detection, after 0.2 s.
            assert table["frame"][own].tolist() == list(range(4, 24))
            smoothed, raw = (np.linalg.norm(np.diff(table[name][own], 2, axis=0), axis=-1).mean()
                             for name in ("joints_image", "joints_image_raw"))  # fmt: skip
            assert smoothed < raw / steadier
    assert (table["state"] != BRIDGED).all()


def test_without_smoothing_a_frame_is_what_the_network_says(predictor: HandPredictor) -> None:
    images = textured(3)
    _, table, live = run_live(predictor, images, VideoOptions(smooth=0), 0.14)
    hand = predictor(images[2]).left
    row = int(np.flatnonzero((table["frame"] == 2) & (table["side"] == 1))[0])
    np.testing.assert_allclose(table["joints_image"][row], hand.joints_image, atol=1e-3)
    np.testing.assert_allclose(table["joints_cam"][row], hand.joints_cam, atol=1e-5)
    assert [person.source for person in live.people] == ["photo"]


def test_a_missing_hand_is_held_for_a_moment(predictor: HandPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.25 s, marked as bridged; then it is not there. The other hand goes on."""
    observe, calls = predictor.observe, []

    def left_goes(*arguments: object) -> list:
        calls.append(0)
        return [one._replace(kept=np.array([True, len(calls) <= 10])) for one in observe(*arguments)]

    monkeypatch.setattr(predictor, "observe", left_goes)
    _, table, _ = run_live(predictor, textured(20), VideoOptions(), delay=0.0, rate=20.0)
    left = table["side"] == 1
    assert table["frame"][~left].tolist() == list(range(20))
    last = table["frame"][left & (table["state"] == SEEN)].max()
    held = table["frame"][left & (table["state"] == BRIDGED)].tolist()
    assert held == list(range(last + 1, last + 6)) and table["frame"][left].max() == last + 5


def test_nobody_for_a_second_is_the_whole_frame(predictor: HandPredictor) -> None:
    def nobody(images: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(np.zeros((0, 4)), np.zeros(0)) for _ in images]

    _, table, live = run_live(predictor, textured(15), VideoOptions(detector=nobody), delay=0.0)
    assert [person.source for person in live.people] == ["photo"] and table["frame"].min() == 11


def test_a_detector_that_fails_is_said_once(predictor: HandPredictor) -> None:
    """And what it found before goes on: it fails at one of the detections."""
    calls = []

    def fails(images: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        calls.append(0)
        if len(calls) in (3, 5):
            raise ValueError("cannot look")
        return two_people(images)

    _, table, live = run_live(predictor, textured(14), VideoOptions(detector=fails), delay=0.0)
    assert live.problems == ["the person detector failed: ValueError: cannot look"]
    assert [person.id for person in live.people] == [1, 2] and set(table["frame"]) == set(range(2, 14))


def test_a_cut_ends_people(predictor: HandPredictor) -> None:
    dark = [np.full((*SIZE, 3), (200, 20, 10), np.uint8)] * 5
    _, table, live = run_live(predictor, textured(6) + dark, VideoOptions(detector=two_people), delay=0.2)
    assert [(person.id, person.shot) for person in live.people] == [(1, 0), (2, 0), (3, 1), (4, 1)]
    assert table["frame"][table["person"] == 3].min() >= 6 and table["frame"][table["person"] == 1].max() == 5


def test_a_box_moves_on_at_its_speed() -> None:
    track = Track(1)
    for index in range(8):
        track.add(index * 0.17, np.array([100.0, 100, 200, 300]) + 17 * index * np.array([1, 0, 1, 0]), 0.9)
    x = box_now(track, track.times[-1] + 0.1)[0]
    assert abs(x - (100 + 100 * (track.times[-1] + 0.1))) < 2


def write_video(path: Path, images: list[np.ndarray]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_the_command_line(
    checkpoint: Path, mano_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A file in the place of a camera, ended by --seconds, shown in a browser: whole files, all of one length."""
    video = write_video(tmp_path / "clip.mp4", textured(60))
    argv = ["demo.py", "--gpu", "cpu", "--checkpoint", str(checkpoint), "--mano", str(mano_folder)]
    argv += ["--camera", str(video), "--people", "one", "--output", str(tmp_path), "--seconds", "1", "--show"]
    monkeypatch.setattr(sys, "argv", argv)
    demo.main()
    table, summary = load(tmp_path / "camera")
    shown = list(VideoReader(tmp_path / "camera" / "overlay.mp4"))
    assert len(shown) == summary["frames"] == table["frame"].max() + 1 and 1 <= summary["seconds"] < 2.5
    np.testing.assert_allclose([frame.time for frame in shown], np.unique(table["time"]), atol=1e-3)
    assert not summary["problems"] and "http://127.0.0.1:" in capsys.readouterr().out


def test_a_camera_that_is_not_there(
    checkpoint: Path, mano_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["demo.py", "--gpu", "cpu", "--checkpoint", str(checkpoint), "--mano", str(mano_folder), "--camera", "77"]
    monkeypatch.setattr(sys, "argv", [*argv, "--output", str(tmp_path / "out"), "--people", "one"])
    with pytest.raises(UserError, match="cannot open camera 77"):
        demo.main()
    assert not (tmp_path / "out").exists()


def test_unplugged_and_stopped(predictor: HandPredictor, tmp_path: Path) -> None:
    """What was seen before is whole; only the unplugged camera is a problem. One that gives no frame writes nothing."""
    problems = process_camera(Simulated(8), "0", tmp_path / "a", predictor, VideoOptions(batch_size=2))
    assert len(problems) == 1 and "camera 0 stopped after" in problems[0]
    asked = time.monotonic() + 0.6
    options = VideoOptions(stop=lambda: time.monotonic() > asked)
    assert process_camera(Simulated(10_000), "0", tmp_path / "b", predictor, options) == []
    for name in ("a", "b"):
        table, summary = load(tmp_path / name)
        assert len(list(VideoReader(tmp_path / name / "overlay.mp4"))) == summary["frames"] > 0 < len(table["frame"])
    with pytest.raises(UserError, match="gives no frame"):
        process_camera(Simulated(0), "0", tmp_path / "c", predictor, VideoOptions())
    assert not (tmp_path / "c").exists()


def test_people_with_larger_boxes_are_drawn_on_top(predictor: HandPredictor) -> None:
    """Two people's same hand at one place, in two shapes: the pixels of both are those of the larger box's."""
    _, table, _ = run_live(predictor, textured(1), VideoOptions(smooth=0), 0.0)
    rows = {name: np.concatenate((values[:1], values[:1])) for name, values in table.items()}
    rows["person"], rows["betas"][1] = np.array([1, 2]), rows["betas"][1] + 0.5
    blank = np.zeros((*SIZE, 3), np.uint8)

    def draw(*chosen: int) -> np.ndarray:
        return draw_frame(blank, rows, np.array(chosen), predictor, ("mesh",), True)

    for larger in (0, 1):
        rows["person_box_image"] = np.array([[0, 0, 50, 50.0]] * 2)
        rows["person_box_image"][larger] = 0, 0, 60, 60
        front = draw(larger)
        inside = cv2.erode((front > 0).any(2).astype(np.uint8), np.ones((3, 3))) > 0
        both, back = draw(0, 1), draw(1 - larger)
        assert (both == front)[inside].mean() > 0.97 > 0.5 > (both == back)[inside].mean()


def test_the_view_in_a_browser() -> None:
    """The newest image as motion JPEG; to this machine's own page alone."""
    with LiveView() as view:
        view.publish(np.full((40, 60, 3), 90, np.uint8))
        assert b'src="/stream"' in urllib.request.urlopen(view.url, timeout=5).read()
        stream = urllib.request.urlopen(f"{view.url}/stream", timeout=5)
        assert stream.headers["Content-Type"].startswith("multipart/x-mixed-replace")
        assert stream.readline() == b"--frame\r\n" and stream.readline() == b"Content-Type: image/jpeg\r\n"
        length = int(stream.readline().split()[1])
        stream.readline()
        image = cv2.imdecode(np.frombuffer(stream.read(length), np.uint8), cv2.IMREAD_COLOR)
        assert image.shape == (40, 60, 3) and abs(int(image.mean()) - 90) < 2
        for path, host, code in (("/", "example.org", 403), ("/other", f"127.0.0.1:{view.port}", 404)):
            with pytest.raises(urllib.error.HTTPError) as raised:
                urllib.request.urlopen(urllib.request.Request(view.url + path, headers={"Host": host}), timeout=5)
            assert raised.value.code == code
        with pytest.raises(UserError, match="cannot show on port"):
            LiveView(view.port)
