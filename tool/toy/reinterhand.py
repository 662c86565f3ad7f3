"""The toy Re:InterHand: captures of one person each, seen by fixed (Mugsy) and worn (Ego, fisheye) cameras, relit.

World coordinates are in mm, but MANO's translation in m. The number of samples asked for is that of the Mugsy pictures
lit anew each frame (`envmap_per_frame`), which readers take unless told otherwise; the other kinds follow from it.
"""

from pathlib import Path

import numpy as np

from common.types import SIDES
from common.utils.camera import CaptureCamera
from common.utils.files import atomic_write, make_folder, write_image, write_json
from common.utils.joints import JOINTS, REINTERHAND_JOINTS
from data.layouts import TEST_CAPTURES, TRAIN_CAPTURES
from tool.toy.formats import Plan, generator, mano_record, photograph, rounded, sized, toy_folder
from tool.toy.picture import Look, sample_backdrop, sample_look
from tool.toy.scene import Hands, View, look_at, move_hands, sample_betas, sample_hands, to_image

SET = 4  # of the random numbers
MOST_TRAIN_CAPTURES = 4
CAMERAS = ("400262", "400279")
ENVMAPS = ("envmap_per_frame", "envmap_per_segment")
MUGSY_SIZE, EGO_SIZE = (1024, 667), (480, 640)
FRAME_STEP, SEGMENT = 3, 5  # frames are numbered in steps; so many frames are lit alike in envmap_per_segment
CENTRE = np.array([0.02, -0.03, 0.05])  # m in the world, where the hands are
HIDDEN_EVERY = 8  # every so many frames the worn camera looks away from the hands
# What is not among our joints, as a mix of them.
MIXED_JOINTS = {
    "Thumb_0": {"Wrist": 0.5, "Thumb_1": 0.5},
    "Pinky_0": {"Wrist": 0.6, "Pinky_1": 0.4},
    "Forearm_Stub": {"Wrist": 1.5, "Middle_1": -0.5},
}


def write(folder: Path, plan: Plan) -> None:
    """Write data/ReInterHand."""
    with toy_folder(folder) as root:
        for split, names in enumerate((TRAIN_CAPTURES[:MOST_TRAIN_CAPTURES], TEST_CAPTURES)):
            shares = _shares((plan.train, plan.test)[split], len(names))
            for k, share in enumerate(shares):
                _Capture(root / "data" / names[k], plan, split, k).write(share)


def pictures(train: int, test: int) -> int:
    """How many pictures `write` makes for so many samples."""
    shares = _shares(train, MOST_TRAIN_CAPTURES) + _shares(test, len(TEST_CAPTURES))
    return sum(share + _frames(share) * (len(CAMERAS) + len(ENVMAPS)) for share in shares)


def _shares(count: int, most: int) -> list[int]:
    """Samples of each capture: no capture has fewer than four, if there are enough for one."""
    captures = int(np.clip(count // 4, 1, most))
    return [count // captures + (k < count % captures) for k in range(captures)]


def _frames(share: int) -> int:
    """How many frames make so many samples."""
    return -(-share // len(CAMERAS))


class _Capture:
    """One person's folder."""

    def __init__(self, folder: Path, plan: Plan, split: int, index: int) -> None:
        self.folder, self.plan, self.numbers = folder, plan, (SET, split, index)
        rng = generator(plan, *self.numbers, 0)
        self.betas = sample_betas(rng)
        self.look = sample_look(rng)
        self.views = {name: self._mugsy_view(rng) for name in CAMERAS}

    def _mugsy_view(self, rng: np.random.Generator) -> View:
        yaw, pitch = rng.uniform(-0.9, 0.9), rng.uniform(-0.5, 0.7)
        towards = np.array([np.sin(yaw) * np.cos(pitch), -np.sin(pitch), -np.cos(yaw) * np.cos(pitch)])
        rotation, transl = look_at(CENTRE + rng.uniform(1.0, 1.15) * towards, CENTRE, rng.normal(0, 0.1))
        focal = np.round(rng.normal(2050, 20) + rng.normal(0, 1, 2), 4)
        princpt = np.round(np.array(MUGSY_SIZE[::-1]) / 2 + rng.normal(0, 6, 2), 4)
        return sized(
            self.plan, View(CaptureCamera(focal, princpt, np.round(rotation, 8), np.round(transl, 7)), MUGSY_SIZE)
        )

    def _ego_view(self, rng: np.random.Generator, hidden: bool) -> View:
        """A camera on the person's head: behind the hands as others see them, and above."""
        eye = CENTRE + np.array([0, -0.22, 0.36]) + rng.normal(0, 0.04, 3)
        target = CENTRE + rng.normal(0, 0.04, 3)
        if hidden:
            target = target + np.array([rng.choice([-1.0, 1.0]) * 1.0, -0.4, 0.1])
        rotation, transl = look_at(eye, target, rng.normal(0, 0.1))
        distortion = np.round(np.array([0.04, -0.02, 0.006, -0.001]) * rng.normal(1, 0.15, 4), 6)
        princpt = np.round(np.array(EGO_SIZE[::-1]) / 2 + rng.normal(0, 5, 2), 4)
        focal = np.round(np.full(2, rng.normal(300, 5)), 4)
        camera = CaptureCamera(focal, princpt, np.round(rotation, 8), np.round(transl, 7), distortion)
        return sized(self.plan, View(camera, EGO_SIZE))

    def write(self, count: int) -> None:
        """Write `count` pictures of the Mugsy cameras lit anew each frame, and all that belongs to their frames."""
        frames = _frames(count)
        ratios: dict[str, dict[str, float]] = {envmap: {} for envmap in ENVMAPS}
        for k in range(frames):
            rng = generator(self.plan, *self.numbers, 1, k)
            hands = sample_hands(rng, self.plan.rig, (True, True), self.betas, self.plan.variety)
            hands = move_hands(hands, np.eye(3), CENTRE + rng.normal(0, 0.012, 3))
            frame = 12 + FRAME_STEP * k
            self._write_fits(frame, hands)
            for e, envmap in enumerate(ENVMAPS):
                for c, name in enumerate(CAMERAS):
                    if e == 1 or k * len(CAMERAS) + c < count:
                        folder = self.folder / "Mugsy_cameras" / envmap / "images" / name
                        self._write_picture(folder, k, frame, e, hands, self.views[name], c)
                ratios[envmap][f"{frame:06d}"] = self._write_ego(k, frame, e, hands)
        for envmap, values in ratios.items():
            write_json(self.folder / "Ego_cameras" / envmap / "truncation_ratio.json", values)
        write_json(self.folder / "Mugsy_cameras" / "cam_params.json", {k: _record(v) for k, v in self.views.items()})
        lines = [f"segment{k // SEGMENT:02d} {12 + FRAME_STEP * k:06d}\n" for k in range(frames)]
        atomic_write(self.folder / "frame_list.txt", "".join(lines).encode())

    def _write_fits(self, frame: int, hands: Hands) -> None:
        mix = np.zeros((len(REINTERHAND_JOINTS), len(JOINTS)))
        for row, name in zip(mix, REINTERHAND_JOINTS, strict=True):
            for part, share in MIXED_JOINTS.get(name, {name: 1.0}).items():
                row[JOINTS.index(part)] = share
        for side, name in enumerate(SIDES):
            keypoints, params = self.folder / "orig_fits" / name / "Keypoints", self.folder / "mano_fits" / "params"
            make_folder(keypoints)
            make_folder(params)
            write_json(keypoints / f"keypoint-{frame:06d}.json", rounded(mix @ hands.joints[side] * 1000, 4))
            write_json(params / f"{frame}_{name}.json", mano_record(hands, side))

    def _write_picture(
        self, folder: Path, k: int, frame: int, envmap: int, hands: Hands, view: View, camera: int
    ) -> None:
        rng = generator(self.plan, *self.numbers, 2, k, envmap, camera)
        light = self._light(k, envmap)
        picture = photograph(self.plan, rng, sample_backdrop(rng, view.size), hands, view, light, noise=0)
        make_folder(folder)
        write_image(folder / f"{frame:06d}.png", picture)

    def _write_ego(self, k: int, frame: int, envmap: int, hands: Hands) -> float:
        """Write a worn camera's picture and calibration; return the share of the hands that it sees."""
        rng = generator(self.plan, *self.numbers, 3, k, envmap)
        view = self._ego_view(rng, hidden=k % HIDDEN_EVERY == 3)
        folder = self.folder / "Ego_cameras" / ENVMAPS[envmap]
        make_folder(folder / "cam_params")
        write_json(folder / "cam_params" / f"{frame:06d}.json", _record(view))
        self._write_picture(folder / "images", k, frame, envmap, hands, view, len(CAMERAS))
        points = to_image(view, hands.vertices).reshape(-1, 2)
        return round(float(((points >= 0) & (points < view.size[::-1])).all(1).mean()), 4)

    def _light(self, k: int, envmap: int) -> Look:
        """The capture's person in the light of a frame or of a segment."""
        number = k if envmap == 0 else k // SEGMENT
        light = sample_look(generator(self.plan, *self.numbers, 4, envmap, number))
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
