"""Videos from file to files: people, ids, the table, smoothing, the overlay; with a small untrained network."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from common.errors import UserError
from common.nets.mano import TwoHandMano
from common.types import ManoParams
from common.utils.camera import Camera, project
from demo import demo
from demo.predictor import HandPredictor
from demo.results import ResultWriter
from demo.run import run
from demo.video import VideoReader, VideoWriter
from demo.video_hands import VideoOptions, draw_frame, process_video

DEMO = Path(demo.__file__)
SIZE = (120, 160)
LEFT_BOX, RIGHT_BOX = [5.0, 5, 80, 115], [82.0, 5, 155, 115]


def write_video(path: Path, frames: list[np.ndarray]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width = SIZE
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "10"}
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def scene(seed: int, count: int) -> list[np.ndarray]:
    """A background that moves and trembles a little."""
    rng = np.random.default_rng(seed)
    wide = cv2.GaussianBlur(rng.integers(0, 255, (SIZE[0] + 8, SIZE[1] + 60, 3), np.uint8), (0, 0), 5)
    wide = cv2.normalize(wide, None, 0, 255, cv2.NORM_MINMAX)
    places = [(int(rng.integers(0, 8)), index + int(rng.integers(0, 4))) for index in range(count)]
    return [np.ascontiguousarray(wide[y : y + SIZE[0], x : x + SIZE[1]]) for y, x in places]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "two.mp4", scene(0, 20))


def two_people(images: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.array([LEFT_BOX, RIGHT_BOX]), np.array([0.9, 0.8])) for _ in images]


def load(folder: Path) -> tuple[dict[str, np.ndarray], dict]:
    with np.load(folder / "hands.npz", allow_pickle=False) as file:
        return dict(file), json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def result(clip: Path, predictor: HandPredictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("result")
    options = VideoOptions(detector=two_people, draw=("boxes", "skeleton", "mesh"))
    assert process_video(clip, folder, predictor, options) == []
    return folder


def test_two_people_are_followed_to_the_end(result: Path) -> None:
    table, summary = load(result)
    assert [person["id"] for person in summary["people"]] == [1, 2] and summary["shots"] == 1
    for person in (1, 2):
        for side in (0, 1):
            own = (table["person"] == person) & (table["side"] == side)
            assert table["frame"][own].tolist() == list(range(20))
    np.testing.assert_allclose(np.unique(table["time"]), np.arange(20) / 30, atol=1e-6)


def test_mano_of_a_row_gives_its_joints(result: Path, mano: TwoHandMano) -> None:
    """Also the wrist in the image: `project` with the row's camera is the overlay."""
    table, _ = load(result)
    params = [
        torch.from_numpy(np.repeat(table[name][:, None], 2, 1)) for name in ("global_orient", "hand_pose", "betas")
    ]
    with torch.inference_mode():
        _, joints = mano(ManoParams(*params))
    for row, side in enumerate(table["side"]):
        np.testing.assert_allclose(
            joints[row, side].numpy() + table["transl"][row], table["joints_cam"][row], atol=1e-5
        )
        camera = Camera(table["focal"][row], table["princpt"][row], orthographic=True)
        wrist = project(table["joints_cam"][row][:1], camera)
        np.testing.assert_allclose(wrist[0], table["wrist_image"][row], atol=0.5)
    assert (np.abs(table["princpt"] - (79.5, 59.5)) < 1e-4).all()


def test_hands_are_steadier_and_shapes_constant(result: Path) -> None:
    table, summary = load(result)
    for person in summary["people"]:
        jitter = person["jitter"]
        assert jitter["after_mm_per_frame2"] < jitter["before_mm_per_frame2"] / 3
        assert jitter["after_px_per_frame2"] < jitter["before_px_per_frame2"] / 3
    own = (table["person"] == 1) & (table["side"] == 0)
    assert np.ptp(table["betas"][own], axis=0).max() < 1e-6 < np.ptp(table["betas_raw"][own], axis=0).max()


def test_the_overlay_keeps_frames_and_stamps(result: Path, clip: Path) -> None:
    overlay, source = VideoReader(result / "overlay.mp4"), VideoReader(clip)
    shown, original = list(overlay), list(source)
    np.testing.assert_allclose([frame.time for frame in shown], [frame.time for frame in original], atol=1e-6)
    assert np.abs(shown[5].image.astype(int) - original[5].image).max() > 50, "something is drawn"


def test_without_smoothing_a_frame_is_the_demo_on_the_same_crop(
    clip: Path, predictor: HandPredictor, tmp_path: Path
) -> None:
    """The published behaviour, frame by frame."""
    process_video(clip, tmp_path, predictor, VideoOptions(smooth=0, batch_size=1))
    table, _ = load(tmp_path)
    frame = list(VideoReader(clip))[7]
    hand = predictor(frame.image, box_xywh=(0, 0, SIZE[1], SIZE[0])).left
    row = int(np.flatnonzero((table["frame"] == 7) & (table["side"] == 1))[0])
    np.testing.assert_array_equal(table["joints_image"][row], hand.joints_image)
    np.testing.assert_array_equal(table["hand_pose"][row], hand.hand_pose)
    np.testing.assert_allclose(table["joints_cam"][row], hand.joints_cam, atol=1e-5)
    np.testing.assert_allclose(table["focal"][row], hand.camera.focal, rtol=1e-6)


def test_a_cut_ends_tracks_and_nobody_found_is_the_whole_frame(predictor: HandPredictor, tmp_path: Path) -> None:
    dark = [np.full((*SIZE, 3), (200, 20, 10), np.uint8)] * 8
    video = write_video(tmp_path / "cut.mp4", [*scene(0, 8), *dark])

    def first_shot_only(images: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(np.zeros((0, 4)), np.zeros(0)) if image[..., 2].mean() < 40 else found
                for image, found in zip(images, two_people(images), strict=True)]  # fmt: skip

    process_video(video, tmp_path / "out", predictor, VideoOptions(detector=first_shot_only))
    table, summary = load(tmp_path / "out")
    assert [(p["id"], p["shot"], p["source"]) for p in summary["people"]] == [
        (1, 0, "detector"), (2, 0, "detector"), (3, 1, "photo")]  # fmt: skip
    assert table["frame"][table["person"] == 3].min() == 8


def test_a_hand_that_is_not_finite_is_missing_in_that_frame(predictor: HandPredictor, clip: Path, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    observe, calls = predictor.observe, []

    def broken(*arguments: object) -> list:
        found = observe(*arguments)
        calls.append(len(found))
        if len(calls) == 2:
            found[0].joints_image[0, 0] = np.nan
        return found

    monkeypatch.setattr(predictor, "observe", broken)
    process_video(clip, tmp_path, predictor, VideoOptions())
    table, summary = load(tmp_path)
    assert summary["people"][0]["not_finite"] == 1 and (table["state"] == 1).sum() == 1
    assert np.isfinite(table["joints_cam"]).all()


def test_the_command_line(
    clip: Path, checkpoint: Path, mano_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """A good and a broken video: the good one is done, the broken one is named, exit code 2."""
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    argv = [
        "demo.py",
        "--gpu",
        "cpu",
        "--input",
        str(bad),
        str(clip),
        "--output",
        str(tmp_path / "out"),
        "--people",
        "one",
    ]
    argv += ["--checkpoint", str(checkpoint), "--mano", str(mano_folder)]
    monkeypatch.setattr(sys, "argv", argv)
    args = demo.parse_args()
    with pytest.raises(Exception, match="1 of 2 videos could not be done"):
        run(args, demo.name_outputs(demo.find_images(args.input)))
    assert "bad.mp4: cannot read" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out" / "two").iterdir()) == [
        "hands.npz", "overlay.mp4", "summary.json"]  # fmt: skip


def test_two_people_without_smoothing_are_the_demo_on_the_same_crops_in_the_same_batches(
    clip: Path, predictor: HandPredictor, tmp_path: Path
) -> None:
    """Bit for bit: given boxes are neither smoothed nor tracked into others."""
    rng = np.random.default_rng(0)
    boxes = [np.array([LEFT_BOX, RIGHT_BOX]) + rng.normal(0, 1, (2, 4)) for _ in range(20)]
    boxes = [np.clip(people, 0, (160, 120, 160, 120)) for people in boxes]
    process_video(clip, tmp_path, predictor, VideoOptions(boxes=boxes, smooth=0, batch_size=8, draw=()))
    table, _ = load(tmp_path)
    prepared = [predictor.prepare(frame.image, (x1, y1, x2 - x1, y2 - y1))
                for frame, people in zip(VideoReader(clip), boxes, strict=True)
                for x1, y1, x2, y2 in people.tolist()]  # fmt: skip
    results = [hands for start in range(0, 40, 8) for hands in predictor.predict(prepared[start : start + 8])]
    for row in range(len(table["frame"])):
        hand = results[2 * table["frame"][row] + table["person"][row] - 1].hands[table["side"][row]]
        for name in ("box_image", "joints_image", "joints_depth_rel", "joints_cam", "global_orient", "hand_pose",
                     "betas"):  # fmt: skip
            np.testing.assert_array_equal(table[name][row], getattr(hand, name), err_msg=name)


@pytest.mark.parametrize("size", [(2, 2), (120, 160)])
def test_one_frame(size: tuple[int, int], predictor: HandPredictor, tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", size) as writer:
        writer.write(np.full((*size, 3), 90, np.uint8), 0)
    options = VideoOptions(detector=two_people if size == SIZE else None)
    assert process_video(tmp_path / "a.mp4", tmp_path / "out", predictor, options) == []
    assert len(list(VideoReader(tmp_path / "out" / "overlay.mp4"))) == 1
    assert load(tmp_path / "out")[0]["frame"].tolist() == [0, 0]


def odd_video(name: str, path: Path) -> None:
    """Six frames in a file whose header or time stamps are odd."""
    codec = {"gif": "gif", "no rate": "mpeg4"}.get(name, "libx264")
    kind = {"gif": "gif", "no rate": "avi", "equal stamps": "matroska"}.get(name, "mp4")
    stamps = {"equal stamps": [0, 0, 0, 1, 1, 1], "10 h apart": [0, 20, 40, 60, 80, 600 * 36000]}.get(name)
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=30)
        stream.height, stream.width = SIZE
        stream.pix_fmt = "rgb8" if name == "gif" else "yuv420p"
        if stamps:
            stream.codec_context.time_base = Fraction(1, 600)
        for index, image in enumerate(scene(0, 6)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if stamps:
                frame.pts, frame.time_base = stamps[index], Fraction(1, 600)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    if name == "no rate":  # microseconds of a frame; scale and rate
        frame_time, header = content.find(b"avih") + 8, content.find(b"strh") + 28
        content[frame_time : frame_time + 4], content[header : header + 8] = bytes(4), bytes(8)
    if name == "10 h declared":
        for box in (b"mvhd", b"mdhd"):
            place = content.find(box) + 16
            content[place + 4 : place + 8] = (36000 * int.from_bytes(content[place : place + 4], "big")).to_bytes(
                4, "big"
            )
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["gif", "no rate", "equal stamps", "10 h apart", "10 h declared"])
def test_odd_files_are_done(name: str, predictor: HandPredictor, tmp_path: Path) -> None:
    odd_video(name, tmp_path / "a.mp4")
    assert process_video(tmp_path / "a.mp4", tmp_path / "out", predictor, VideoOptions()) == []
    table, summary = load(tmp_path / "out")
    assert summary["frames"] == 6 and len(list(VideoReader(tmp_path / "out" / "overlay.mp4"))) == 6
    assert len(table["frame"]) == 12 and np.isfinite(table["joints_cam"]).all()


def test_another_video_of_the_same_name_is_not_overwritten(
    clip: Path, predictor: HandPredictor, tmp_path: Path
) -> None:
    """The same video again is."""
    options, other = VideoOptions(draw=()), tmp_path / "two.mp4"
    shutil.copy(clip, other)
    for _ in range(2):
        process_video(clip, tmp_path / "two", predictor, options)
    written = (tmp_path / "two" / "hands.npz").read_bytes()
    with pytest.raises(UserError, match="results of another video of this name, .*two.mp4; choose another --output"):
        process_video(other, tmp_path / "two", predictor, options)
    assert (tmp_path / "two" / "hands.npz").read_bytes() == written


def test_people_are_drawn_with_their_ids(result: Path, predictor: HandPredictor) -> None:
    table, _ = load(result)
    rows = np.flatnonzero(table["frame"] == 5)
    blank = np.zeros((480, 640, 3), np.uint8)
    table["person_box_image"] = np.where(table["person"][:, None] == 1, [40, 60, 300, 400.0], [340, 60, 600, 400.0])
    table["box_image"] = np.full_like(table["box_image"], np.nan)  # nothing of the hands
    image = draw_frame(blank, table, rows, predictor, ("boxes",), True)
    first, second = image[:, 20:320], image[:, 320:620]
    for side in (first, second):
        assert side[250, 19:23].any() and not side[100:380, 40:260].any()
    labels = np.abs(first[403:].astype(int) - second[403:])
    assert 0 < labels.any(2).sum() < 200, "the same but for the number"


def test_a_signal_closes_the_video(checkpoint: Path, mano_folder: Path, tmp_path: Path) -> None:
    """While the network runs: what it has seen is whole files, and the exit code is the signal's."""
    video = write_video(tmp_path / "long.mp4", scene(0, 50) * 8)
    command = [sys.executable, DEMO, "--gpu", "cpu", "--input", video, "--output", tmp_path, "--people", "one",
               "--checkpoint", checkpoint, "--mano", mano_folder, "--batch_size", 2]  # fmt: skip
    process = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    said = b""
    while b"hands: " not in said or b"0/400" in said[-60:]:
        said += (read := os.read(process.stderr.fileno(), 1000))
        assert read, said.decode()[-500:]
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 143 and "Traceback" not in rest and "long.mp4: stopped after" in rest
    frames = len(list(VideoReader(tmp_path / "long" / "overlay.mp4")))
    assert 0 < frames < 400 and set(load(tmp_path / "long")[0]["frame"]) == set(range(frames))


def test_nobody_gives_the_video_and_an_empty_table(
    clip: Path, predictor: HandPredictor, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert process_video(clip, tmp_path, predictor, VideoOptions(min_confidence=1.0)) == []
    table, summary = load(tmp_path)
    assert len(table["frame"]) == 0 and table["joints_cam"].shape == (0, 21, 3) and summary["people"][0]["hands"] == 0
    assert "no hand was found" in capsys.readouterr().out
    for shown, original in zip(VideoReader(tmp_path / "overlay.mp4"), VideoReader(clip), strict=True):
        assert np.abs(shown.image.astype(int) - original.image).mean() < 4


@pytest.mark.parametrize("after", [30, 45])
def test_a_stop_leaves_a_video_that_plays(after: int, clip: Path, predictor: HandPredictor, tmp_path: Path) -> None:
    """While the network runs, what it has seen is drawn; while it is drawn, the video ends there."""
    calls = iter(range(10_000))
    options = VideoOptions(stop=lambda: next(calls) >= after, batch_size=4)
    problems = process_video(clip, tmp_path, predictor, options)
    frames = list(VideoReader(tmp_path / "overlay.mp4"))
    assert 0 < len(frames) < 20
    if after == 30:
        assert problems == [f"stopped after {(len(frames) - 1) / 30:.2f} s"]
        assert set(load(tmp_path)[0]["frame"]) == set(range(len(frames)))


def test_a_stop_before_the_network_writes_nothing(clip: Path, predictor: HandPredictor, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        process_video(clip, tmp_path / "out", predictor, VideoOptions(stop=lambda: True))
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_line_and_leaves_no_part(clip: Path, predictor: HandPredictor, tmp_path: Path) -> None:
    """As far as the limit on a file's size can stand for it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(UserError, match="cannot write .*overlay.mp4") as raised:
            process_video(clip, tmp_path, predictor, VideoOptions(draw=()))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_a_detector_that_raises_is_named(clip: Path, predictor: HandPredictor, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the person detector failed: ZeroDivisionError"):
        process_video(clip, tmp_path / "out", predictor, VideoOptions(detector=lambda images: [1 / 0]))
    assert not (tmp_path / "out").exists()


def test_boxes_that_no_detector_should_report_are_left_out(
    clip: Path, predictor: HandPredictor, tmp_path: Path
) -> None:
    """Not finite, empty, reversed, outside: named, and the people beside them are followed."""
    wrong = [[np.nan, 0, 50, 50], [80, 5, 5, 115], [30, 30, 30, 90], [500, 500, 600, 700]]
    options = VideoOptions(detector=lambda images: [(np.array([LEFT_BOX, *wrong]), np.full(5, 0.9))], draw=())
    problems = process_video(clip, tmp_path, predictor, options)
    assert {"not finite", "reversed or empty", "outside"} == {
        reason for reason in ("not finite", "reversed or empty", "outside") if any(reason in line for line in problems)
    }
    assert [person["frames"] for person in load(tmp_path)[1]["people"]] == [20]


def test_single_frames_and_comparison(clip: Path, predictor: HandPredictor, tmp_path: Path) -> None:
    def writer(folder: Path) -> ResultWriter:
        return ResultWriter(folder, predictor.hand_model_name, ("obj",))

    options = VideoOptions(boxes=[np.array([LEFT_BOX, RIGHT_BOX])] * 20, frames_every=0.3, writer=writer, compare=True)
    process_video(clip, tmp_path, predictor, options)
    results = sorted((tmp_path / "frames" / "results").glob("*.json"))
    assert [path.stem for path in results] == ["000000", "000009", "000018"]
    people = json.loads(results[1].read_text())["people"]
    assert [person["id"] for person in people] == [1, 2]
    assert (tmp_path / "frames" / "meshes" / "000009_person1_right.obj").is_file()
    reader = VideoReader(tmp_path / "overlay.mp4")
    assert reader.size == (SIZE[0], 2 * SIZE[1])
    left, right = np.split(next(iter(reader)).image.astype(int), 2, axis=1)
    assert np.abs(left - right).max() > 50, "raw hands on the left, smoothed ones on the right"
