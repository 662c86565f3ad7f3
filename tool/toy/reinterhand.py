"""The toy Re:InterHand: captures of one person each, seen by fixed (Mugsy) and worn (Ego, fisheye) cameras, relit.

World coordinates are in mm, but MANO's translation in m. The requested number of samples is that of the Mugsy images
relit in each frame (`envmap_per_frame`), which readers take by default; the other kinds follow from it.
"""

from pathlib import Path

import numpy as np

from common.types import SIDES
from common.utils.camera import CaptureCamera
from common.utils.joints import JOINTS, REINTERHAND_JOINTS
from data.layouts import TEST_CAPTURES, TRAIN_CAPTURES
from tool.toy.backdrops import sample_backdrop
from tool.toy.formats import Plan, mano_record, put, rounded
from tool.toy.rendering import Look, sample_look
from tool.toy.scene import Hands, View, look_at, move_hands, orbit, sample_betas, sample_hands, scaled_view, to_image

SET = 4  # of the random numbers
MOST_TRAIN_CAPTURES = 4
CAMERAS = ("400262", "400279")
ENVMAPS = ("envmap_per_frame", "envmap_per_segment")
MUGSY_SIZE, EGO_SIZE = (1024, 667), (480, 640)
FRAME_STEP, SEGMENT = 3, 5  # between the numbers of frames; frames that share their light in envmap_per_segment
CENTRE = np.array([0.02, -0.03, 0.05])  # m in the world, where the hands are
HIDDEN_EVERY = 8  # frames: in one of them the worn camera looks away from the hands
# What is not among our joints, as a mix of them.
MIXED_JOINTS = {
    "Thumb_0": {"Wrist": 0.5, "Thumb_1": 0.5},
    "Pinky_0": {"Wrist": 0.6, "Pinky_1": 0.4},
    "Forearm_Stub": {"Wrist": 1.5, "Middle_1": -0.5},
}


def write(root: Path, plan: Plan) -> None:
    """Write data/ReInterHand."""
    for split, names in enumerate((TRAIN_CAPTURES[:MOST_TRAIN_CAPTURES], TEST_CAPTURES)):
        for k, count in enumerate(_shares((plan.train, plan.test)[split], len(names))):
            _Capture(root / "data" / names[k], plan, split, k).write(count)


def count_images(train: int, test: int) -> int:
    """How many images `write` makes for these numbers of samples."""
    shares = _shares(train, MOST_TRAIN_CAPTURES) + _shares(test, len(TEST_CAPTURES))
    return sum(share + _frames(share) * (len(CAMERAS) + len(ENVMAPS)) for share in shares)


def _shares(count: int, most: int) -> list[int]:
    """Samples of each capture: at least four, if there are that many."""
    captures = int(np.clip(count // 4, 1, most))
    return [count // captures + (k < count % captures) for k in range(captures)]


def _frames(share: int) -> int:
    """The frames that give a number of samples."""
    return -(-share // len(CAMERAS))


class _Capture:
    """One person's folder."""

    def __init__(self, folder: Path, plan: Plan, split: int, index: int) -> None:
        self.folder, self.plan, self.numbers = folder, plan, (SET, split, index)
        rng = self._random(0)
        self.betas, self.look = sample_betas(rng), sample_look(rng)
        self.views = {name: self._mugsy_view(rng) for name in CAMERAS}

    def _random(self, *numbers: int) -> np.random.Generator:
        return self.plan.random(*self.numbers, *numbers)

    def _mugsy_view(self, rng: np.random.Generator) -> View:
        yaw, pitch, distance = rng.uniform(-0.9, 0.9), rng.uniform(-0.5, 0.7), rng.uniform(1.0, 1.15)
        rotation, transl = look_at(CENTRE + orbit(yaw, pitch, distance), CENTRE, rng.normal(0, 0.1))
        focal = rng.normal(2050, 20) + rng.normal(0, 1, 2)
        princpt = np.array(MUGSY_SIZE[::-1]) / 2 + rng.normal(0, 6, 2)
        return self._view(focal, princpt, rotation, transl, None, MUGSY_SIZE)

    def _ego_view(self, rng: np.random.Generator, hidden: bool) -> View:
        """A camera on the person's head: behind the hands as others see them, and above."""
        eye = CENTRE + np.array([0, -0.22, 0.36]) + rng.normal(0, 0.04, 3)
        target = CENTRE + rng.normal(0, 0.04, 3)
        if hidden:
            target = target + np.array([rng.choice([-1.0, 1.0]) * 1.0, -0.4, 0.1])
        rotation, transl = look_at(eye, target, rng.normal(0, 0.1))
        distortion = np.round(np.array([0.04, -0.02, 0.006, -0.001]) * rng.normal(1, 0.15, 4), 6)
        princpt = np.array(EGO_SIZE[::-1]) / 2 + rng.normal(0, 5, 2)
        return self._view(np.full(2, rng.normal(300, 5)), princpt, rotation, transl, distortion, EGO_SIZE)

    def _view(
        self, focal: np.ndarray, princpt: np.ndarray, rotation: np.ndarray, transl: np.ndarray,
        distortion: np.ndarray | None, size: tuple[int, int],
    ) -> View:  # fmt: skip
        """A camera as the files will hold it, rounded."""
        numbers = np.round(focal, 4), np.round(princpt, 4), np.round(rotation, 8), np.round(transl, 7)
        return scaled_view(View(CaptureCamera(*numbers, distortion), size), self.plan.scale)

    def write(self, count: int) -> None:
        """Write `count` Mugsy images relit in each frame, and everything else that belongs to their frames."""
        ratios: dict[str, dict[str, float]] = {envmap: {} for envmap in ENVMAPS}
        for k in range(_frames(count)):
            rng = self._random(1, k)
            hands = sample_hands(rng, self.plan.rig, (True, True), self.betas, self.plan.variety)
            hands = move_hands(hands, np.eye(3), CENTRE + rng.normal(0, 0.012, 3))
            frame = 12 + FRAME_STEP * k
            self._write_fits(frame, hands)
            for e, envmap in enumerate(ENVMAPS):
                for c, name in enumerate(CAMERAS):
                    if e == 1 or k * len(CAMERAS) + c < count:
                        folder = self.folder / "Mugsy_cameras" / envmap / "images" / name
                        self._write_image(folder, k, frame, e, hands, self.views[name], c)
                ratios[envmap][f"{frame:06d}"] = self._write_ego(k, frame, e, hands)
        for envmap, values in ratios.items():
            put(self.folder / "Ego_cameras" / envmap / "truncation_ratio.json", values)
        put(self.folder / "Mugsy_cameras" / "cam_params.json", {k: _record(v) for k, v in self.views.items()})
        lines = [f"segment{k // SEGMENT:02d} {12 + FRAME_STEP * k:06d}\n" for k in range(_frames(count))]
        put(self.folder / "frame_list.txt", "".join(lines))

    def _write_fits(self, frame: int, hands: Hands) -> None:
        mix = np.zeros((len(REINTERHAND_JOINTS), len(JOINTS)))
        for row, name in zip(mix, REINTERHAND_JOINTS, strict=True):
            for part, share in MIXED_JOINTS.get(name, {name: 1.0}).items():
                row[JOINTS.index(part)] = share
        for side, name in enumerate(SIDES):
            keypoints = rounded(mix @ hands.joints[side] * 1000, 4)
            put(self.folder / "orig_fits" / name / "Keypoints" / f"keypoint-{frame:06d}.json", keypoints)
            put(self.folder / "mano_fits" / "params" / f"{frame}_{name}.json", mano_record(hands, side))

    def _write_image(
        self, folder: Path, k: int, frame: int, envmap: int, hands: Hands, view: View, camera: int
    ) -> None:
        rng = self._random(2, k, envmap, camera)
        look = self._relit(k, envmap)
        image = self.plan.photograph(rng, sample_backdrop(rng, view.size), hands, view, look, noise=0)
        put(folder / f"{frame:06d}.png", image)

    def _write_ego(self, k: int, frame: int, envmap: int, hands: Hands) -> float:
        """Write a worn camera's image and calibration; return the share of the hands' vertices that it sees."""
        view = self._ego_view(self._random(3, k, envmap), hidden=k % HIDDEN_EVERY == 3)
        folder = self.folder / "Ego_cameras" / ENVMAPS[envmap]
        put(folder / "cam_params" / f"{frame:06d}.json", _record(view))
        self._write_image(folder / "images", k, frame, envmap, hands, view, len(CAMERAS))
        points = to_image(view, hands.vertices).reshape(-1, 2)
        return round(float(((points >= 0) & (points < view.size[::-1])).all(1).mean()), 4)

    def _relit(self, k: int, envmap: int) -> Look:
        """The capture's person in the light of a frame or of a segment."""
        light = sample_look(self._random(4, envmap, k if envmap == 0 else k // SEGMENT))
        fields = ("skin_linear", "sleeve_linear", "cuff", "stripes", "gloss", "wrist_bend")
        return light._replace(**{field: getattr(self.look, field) for field in fields})


def _record(view: View) -> dict[str, list]:
    """A camera; t is a translation in mm, not the camera's centre."""
    camera = view.camera
    record = {
        "R": camera.rotation.tolist(),
        "t": rounded(camera.transl * 1000, 4),
        "focal": rounded(camera.focal, 4),
        "princpt": rounded(camera.princpt, 4),
    }
    return record if camera.distortion is None else record | {"D": camera.distortion.tolist()}
