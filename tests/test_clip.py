"""Toy videos with known truth, and what the video pipeline makes of them with an observer that tells the truth."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from common.nets.mano import TwoHandMano
from common.types import LEFT, RIGHT, ManoParams
from common.utils.camera import Camera, project
from demo.motion import BRIDGED, SEEN, Observations
from demo.predictor import HandPredictor
from demo.video import VideoReader
from demo.video_hands import VideoOptions, draw_frame, process_video, scan
from main.build import build_model
from main.config import Config
from main.options import preset_config
from tool.toy import clip as clip_module
from tool.toy.backdrops import sample_backdrop
from tool.toy.clip import Clip, draw_clip, encode, make_clip, noisy_boxes, true_table, write_clip
from tool.toy.rendering import Skin, build_skin
from tool.toy.scene import HandRig

SCALE, SECONDS = 0.4, 0.8


@pytest.fixture(scope="module")
def skin(rig: HandRig) -> Skin:
    return build_skin(rig)


def write(folder: Path, name: str, rig: HandRig, skin: Skin, seconds: float = SECONDS) -> Clip:
    clip = make_clip(name, rig, seconds, scale=SCALE)
    write_clip(folder, name, clip, rig, skin)
    return clip


@pytest.fixture(scope="module")
def two(rig: HandRig, skin: Skin, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Clip]:
    folder = tmp_path_factory.mktemp("two")
    return folder, write(folder, "two", rig, skin)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames without hands, for tests of everything else: drawing takes long."""

    def draw_backgrounds(clip: Clip, rig: HandRig, skin: Skin) -> Iterator[np.ndarray]:
        for number, shot in enumerate(clip.shots):
            yield from [np.full((*shot.view.size, 3), (40, 180 * number, 90), np.uint8)] * len(shot.people[0])

    monkeypatch.setattr(clip_module, "draw_clip", draw_backgrounds)


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


class TruthTeller(HandPredictor):
    """Reports the true hands of the frame and of the person whose box is nearest."""

    def __init__(self, truth: dict[str, np.ndarray], mano: TwoHandMano) -> None:
        config: Config = preset_config("small")
        super().__init__(build_model(config, mano), config, [torch.device("cpu")])
        self.truth, self.frame, self.last = truth, -1, None
        self.boxes: dict[int, np.ndarray] = {}

    def prepare(self, image, box_xywh=None, intrinsics=None):
        if image is not self.last:
            self.frame, self.last = self.frame + 1, image
        box = (0, 0, *image.shape[1::-1]) if box_xywh is None else box_xywh
        return self.frame, np.asarray(box, float), intrinsics

    def observe(self, photos, hand="both", min_confidence=0.0):
        return [self.tell(*photo) for photo in photos]

    def tell(self, frame: int, box_xywh: np.ndarray, intrinsics: Camera | None) -> Observations:
        here = np.flatnonzero(self.truth["frame"] == frame)
        middles = self.truth["person_box_image"][here].reshape(-1, 2, 2).mean(1)
        away = np.linalg.norm(middles - (box_xywh[:2] + box_xywh[2:] / 2), axis=1)
        person = self.truth["person"][here][np.argmin(away)]
        both = {name: self.truth[name][here[self.truth["person"][here] == person]]
                for name in self.truth if self.truth[name].shape[:1] == self.truth["frame"].shape}  # fmt: skip
        wrist, focal = both["joints_cam"][:, 0], both["focal"]
        return Observations(
            kept=both["state"] == 0,
            confidence=both["confidence"],
            box_image=both["box_image"],
            joints_image=both["joints_image"],
            joints_depth_rel=both["joints_depth_rel"],
            global_orient=both["global_orient"],
            hand_pose=both["hand_pose"],
            betas=both["betas"],
            wrist_image=both["joints_image"][:, 0],
            hand_focal=focal / wrist[:, 2:],
            pair_focal=focal[0] / wrist[:, 2].mean(),
            root_depth=wrist[:, 2],
            rel_transl=both["rel_transl"][0],
            pair=both["pair"][0],
            joints_cam=both["joints_cam"],
            focal=focal,
            princpt=both["princpt"],
            person_box_image=np.zeros(4, np.float32),
        )


def follow(
    folder: Path, name: str, rig: HandRig, out: Path, noise: float = 0.0, **options: object
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict]:
    """The demo on a clip whose people's boxes are given: table, truth and summary."""
    truth = load(folder / "truth.npz")
    camera = Camera(truth["focal"][0], truth["princpt"][0], orthographic=False)
    settings = VideoOptions(boxes=noisy_boxes(truth, noise), intrinsics=lambda size: camera, draw=(), **options)
    assert process_video(folder / f"{name}.mp4", out, TruthTeller(truth, rig.mano), settings) == []
    return load(out / "hands.npz"), truth, json.loads((out / "summary.json").read_text())


def test_the_truth_is_a_table_whose_rows_are_mano_hands(two: tuple[Path, Clip], rig: HandRig) -> None:
    truth = load(two[0] / "truth.npz")
    assert len(truth["frame"]) == 24 * 2 * 2 and truth["image_size"].tolist() == [144, 256]
    params = [torch.from_numpy(np.repeat(truth[name][:, None], 2, 1)) for name in
              ("global_orient", "hand_pose", "betas")]  # fmt: skip
    with torch.inference_mode():
        joints = rig.mano(ManoParams(*params))[1].numpy()[np.arange(len(truth["side"])), truth["side"]]
    np.testing.assert_allclose(joints + truth["transl"][:, None], truth["joints_cam"], atol=1e-5)
    shown = project(truth["joints_cam"][0], Camera(truth["focal"][0], truth["princpt"][0], orthographic=False))
    np.testing.assert_allclose(shown, truth["joints_image"][0], atol=1e-2)


def test_motion_is_smooth(rig: HandRig) -> None:
    """A C2 spline: with steps half as long the second difference is a quarter."""
    fine = make_clip("two", rig, 2.0)
    joints = np.stack([hands.joints for hands in fine.shots[0].people[0]])
    one, two = (np.linalg.norm(np.diff(joints[::step], 2, axis=0), axis=-1).max() for step in (1, 2))
    assert 0.2 < one / two < 0.35


def test_the_true_hands_drawn_lie_on_the_image(two: tuple[Path, Clip], rig: HandRig, skin: Skin) -> None:
    """Their silhouette fits best where it is, not half a pixel beside: the arms leave it open on one side only."""
    folder, clip = two
    truth = load(folder / "truth.npz")
    frames, teller = list(draw_clip(clip, rig, skin)), TruthTeller(truth, rig.mano)
    background = 255 * sample_backdrop(np.random.default_rng([clip.shots[0].seed, 77]), frames[0].shape[:2])
    for frame in (0, 23):
        changed = (np.abs(frames[frame] - background).max(-1) > 15).astype(np.float32)
        rows = np.flatnonzero(truth["frame"] == frame)
        black = draw_frame(np.zeros_like(frames[0]), truth, rows, teller, ("mesh",), virtual=False)
        mask = (black.max(-1) > 0).astype(np.float32)
        outside = {}
        for x in (-1, -0.5, 0, 0.5, 1):
            for y in (-1, -0.5, 0, 0.5, 1):
                moved = cv2.warpAffine(mask, np.float32([[1, 0, x], [0, 1, y]]), mask.shape[::-1])
                outside[x, y] = float((moved * (1 - changed)).sum() / mask.sum())
        assert outside[0, 0] < 0.05 and outside[0, 0] <= min(outside.values()) + 0.004, outside


@pytest.mark.parametrize("name", ["two", "cross"])
def test_people_keep_their_ids_and_the_overlay_is_the_truth(
    name: str, rig: HandRig, skin: Skin, tmp_path: Path, plain: None
) -> None:
    """With the true parameters and camera, frame by frame: less than half a pixel, also where people cross."""
    write(tmp_path, name, rig, skin, 1.2)
    table, truth, summary = follow(tmp_path, name, rig, tmp_path / "out", smooth=0)
    assert [(person["id"], person["source"]) for person in summary["people"]] == [(1, "boxes"), (2, "boxes")]
    assert len(table["frame"]) > (0.999 if name == "two" else 0.8) * len(truth["frame"]), (
        "one hand before another is one"
    )
    true_row = {key: row for row, key in enumerate(zip(truth["frame"], truth["person"], truth["side"], strict=True))}
    away = np.empty((len(table["frame"]), 2))
    for row in range(len(away)):
        camera = Camera(table["focal"][row], table["princpt"][row], orthographic=False)
        shown = project(table["joints_cam"][row], camera)
        for person in (1, 2):
            other = true_row[table["frame"][row], person, table["side"][row]]
            away[row, person - 1] = np.abs(shown - truth["joints_image"][other]).max()
    same = away[np.arange(len(away)), table["person"] - 1].max()
    exchanged = away[np.arange(len(away)), 2 - table["person"]].max()
    assert min(same, exchanged) < 0.5, (same, exchanged)


def test_smoothing_moves_true_hands_little(two: tuple[Path, Clip], rig: HandRig, tmp_path: Path) -> None:
    table, truth, _ = follow(two[0], "two", rig, tmp_path)
    shown = np.stack([project(joints, Camera(focal, princpt, orthographic=False)) for joints, focal, princpt in
                      zip(table["joints_cam"], table["focal"], table["princpt"], strict=True)])  # fmt: skip
    away = np.linalg.norm(shown - truth["joints_image"], axis=-1)
    assert np.median(away) < 0.5 and (table["state"] != BRIDGED).all()


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05])
def test_given_boxes_are_smoothed(two: tuple[Path, Clip], noise: float) -> None:
    """Ids hold, and most of the boxes' jitter goes."""
    truth = load(two[0] / "truth.npz")
    given = noisy_boxes(truth, noise, seed=3)
    found = scan(VideoReader(two[0] / "two.mp4"), VideoOptions(boxes=given), {"detect": 0.0})
    assert [(person, len(rows)) for _, person, _, rows, _ in found.people] == [(1, 24), (2, 24)]
    true = np.stack(noisy_boxes(truth))
    for number, (_, _, _, _, boxes) in enumerate(found.people):
        person = int(np.argmin(np.abs(true[0] - boxes[0]).sum(-1)))
        raw = np.abs(np.diff(np.stack([frame[person] for frame in given]), 2, axis=0)).mean()
        assert np.abs(np.diff(boxes, 2, axis=0)).mean() < max(0.2 * raw, 1.0), number
        size = true[:, person, 2:] - true[:, person, :2]
        assert (np.abs(boxes - true[:, person]) / np.tile(size, 2)).mean() < 0.02 + 0.5 * noise


def test_a_cut_begins_a_shot_and_new_ids(rig: HandRig, skin: Skin, tmp_path: Path, plain: None) -> None:
    write(tmp_path, "cut", rig, skin)
    table, truth, summary = follow(tmp_path, "cut", rig, tmp_path / "out", smooth=0)
    assert summary["shots"] == 2 and [person["id"] for person in summary["people"]] == [1, 2]
    for column in ("frame", "shot", "person", "side"):
        np.testing.assert_array_equal(table[column], truth[column])


def test_a_hand_outside_the_image_for_a_moment_is_bridged(
    rig: HandRig, skin: Skin, tmp_path: Path, plain: None
) -> None:
    """0.3 s are bridged, 1.2 s are not."""
    clip = write(tmp_path, "gone", rig, skin, 4.0)
    truth_state = true_table(clip)["state"].reshape(-1, 2)
    gaps = np.flatnonzero(np.diff(truth_state[:, RIGHT]))
    lengths = (np.diff(gaps)[::2] / 30).tolist()
    assert len(lengths) == 2 and 0.15 < lengths[0] < 0.45 and 0.9 < lengths[1] < 1.5
    table, truth, _ = follow(tmp_path, "gone", rig, tmp_path / "out")
    right = table["side"] == RIGHT
    state = np.full(len(clip.ticks), -1)
    state[table["frame"][right]] = table["state"][right]
    first, second = (slice(gaps[k] + 1, gaps[k + 1] + 1) for k in (0, 2))
    assert (state[first] == BRIDGED).all() and (state[second] == -1).all()
    assert (state[(truth_state[:, RIGHT] == 0)] != -1).all() and (state == BRIDGED).sum() == first.stop - first.start
    assert (table["state"][table["side"] == LEFT] == SEEN).mean() > 0.9


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_turned_files_give_the_same_frames(rotation: int, rig: HandRig, skin: Skin, tmp_path: Path) -> None:
    """All coordinates are of the upright frame."""
    clip = make_clip("turned", rig, 0.2, scale=SCALE)
    frames = list(draw_clip(clip, rig, skin))
    encode(tmp_path / "a.mp4", frames, clip.ticks, rotation)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.width > stream.height) == (rotation == 180) and next(container.decode(stream)).rotation % 360
    reader = VideoReader(tmp_path / "a.mp4")
    assert reader.size == frames[0].shape[:2]
    for frame, original in zip(reader, frames, strict=True):
        assert np.abs(frame.image.astype(int) - original).mean() < 8


def test_uneven_stamps_and_sound_reach_the_overlay(rig: HandRig, skin: Skin, tmp_path: Path, plain: None) -> None:
    clip = write(tmp_path / "uneven", "uneven", rig, skin)
    table, truth, _ = follow(tmp_path / "uneven", "uneven", rig, tmp_path / "out")
    assert len(set(np.round(np.diff(clip.times), 4))) == 3
    np.testing.assert_allclose(np.unique(table["time"]), clip.times, atol=1e-6)
    stamps = [frame.time for frame in VideoReader(tmp_path / "out" / "overlay.mp4")]
    np.testing.assert_allclose(stamps, clip.times, atol=1e-6)
    write(tmp_path / "sound", "sound", rig, skin)
    follow(tmp_path / "sound", "sound", rig, tmp_path / "loud")

    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(container.streams.audio[0])]

    sound = packets(tmp_path / "sound" / "sound.mp4")
    assert len(sound) > 10 and packets(tmp_path / "loud" / "overlay.mp4") == sound


@pytest.mark.parametrize("file", ["damaged.mp4", "damaged.webm"])
def test_damaged_clips_are_done_as_far_as_they_go(
    file: str, rig: HandRig, skin: Skin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can be decoded has its rows and its overlay, and the damage is said with the time reached."""
    noise = np.random.default_rng(0).integers(0, 255, (45, 144, 256, 3), np.uint8)
    monkeypatch.setattr(clip_module, "draw_clip", lambda *clip: noise)  # the decoder must feel the damage
    write(tmp_path, "damaged", rig, skin, 1.5)
    truth = load(tmp_path / "truth.npz")
    options = VideoOptions(boxes=noisy_boxes(truth), draw=())
    problems = process_video(tmp_path / file, tmp_path / "out", TruthTeller(truth, rig.mano), options)
    assert len(problems) == 1 and ("damaged" in problems[0] or "cut short" in problems[0]) and " s" in problems[0]
    table, frames = load(tmp_path / "out" / "hands.npz"), list(VideoReader(tmp_path / "out" / "overlay.mp4"))
    assert 5 < len(np.unique(table["frame"])) == len(frames) < 45
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["problems"] == problems


def test_the_command(
    standin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The same command writes the same truth; boxes.json holds a list of boxes for each frame."""
    monkeypatch.setattr(clip_module, "encode", lambda path, frames, *rest, **more: list(frames))
    argv = ["make_toy_clip.py", "--clips", "two", "--seconds", "0.1", "--scale", "0.2", "--mano", str(standin)]
    for name in ("a", "b"):
        monkeypatch.setattr(sys, "argv", [*argv, "--output", str(tmp_path / name)])
        clip_module.main()
    assert (tmp_path / "a/two/boxes.json").read_text() == (tmp_path / "b/two/boxes.json").read_text()
    boxes = json.loads((tmp_path / "a/two/boxes.json").read_text())["two.mp4"]
    assert np.array(boxes).shape == (3, 2, 4)
    first, second = (load(tmp_path / name / "two/truth.npz") for name in ("a", "b"))
    assert all(np.array_equal(first[column], second[column]) for column in first)
    monkeypatch.setattr(sys, "argv", [*argv, "--output", str(tmp_path), "--clips", "three"])
    with pytest.raises(SystemExit):
        clip_module.main()
    assert "there is no 'three'; there are: two, cross" in capsys.readouterr().err
