"""The toy InterHand2.6M: a studio with cameras all around; world coordinates in mm but MANO's translation in m."""

from pathlib import Path
from typing import Any

import numpy as np

from common.utils.camera import CaptureCamera
from common.utils.files import make_folder, write_image, write_json
from common.utils.joints import INTERHAND_JOINTS, JOINTS
from data.layouts import INTERHAND_JSONS, INTERHAND_TEST_IDS
from tool.toy.formats import (
    Plan,
    box_of,
    generator,
    hand_type,
    mano_records,
    photograph,
    rounded,
    sample_present,
    sized,
    toy_folder,
)
from tool.toy.picture import Look, sample_backdrop, sample_look
from tool.toy.scene import Hands, View, look_at, move_hands, sample_hands, to_image

SET = 1  # of the random numbers
SPLITS = ("train", "test")
JOINT_ORDER = [JOINTS.index(name) for name in INTERHAND_JOINTS]
CAMERAS = ("400002", "400013", "400026", "400048", "400064", "410001", "410018")  # 41...: grey
SIZE = (512, 334)
FIRST_ID = {"train": 10000, "test": 80000}
CENTRE = np.array([0.0, 0.0, 1.0])  # m in the world, where the hands are
SECOND_VIEW_EVERY, NO_MANO_EVERY = 4, 25  # every so many pictures


def write(folder: Path, plan: Plan) -> None:
    """Write data/InterHand26M."""
    with toy_folder(folder) as root:
        for split, count in zip(SPLITS, (plan.train, plan.test), strict=True):
            writer = _Split(root, plan, split)
            for k in range(count):
                writer.add(k)
            writer.close()


class _Split:
    """One split's images, and its annotations as they grow."""

    def __init__(self, root: Path, plan: Plan, split: str) -> None:
        self.root, self.plan, self.split = root, plan, split
        self.views = [self._cameras(capture) for capture in range(2)]
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.joints: dict[str, dict[str, Any]] = {"0": {}, "1": {}}
        self.mano: dict[str, dict[str, Any]] = {"0": {}, "1": {}}
        self.last: tuple[int, int, Hands, Look, np.ndarray] | None = None

    def _random(self, *numbers: int) -> np.random.Generator:
        return generator(self.plan, SET, SPLITS.index(self.split), *numbers)

    def _cameras(self, capture: int) -> dict[str, View]:
        rng = self._random(0, capture)
        views = {}
        for name in CAMERAS:
            yaw, pitch = self.plan.variety * np.radians((rng.uniform(-65, 65), rng.uniform(-30, 45)))
            towards = np.array([np.sin(yaw) * np.cos(pitch), -np.sin(pitch), -np.cos(yaw) * np.cos(pitch)])
            target = CENTRE + rng.normal(0, 0.015, 3)
            eye = np.round(target + rng.uniform(0.95, 1.2) * towards, 7)
            rotation = np.round(look_at(eye, target, rng.normal(0, 0.12 * self.plan.variety))[0], 8)
            size = SIZE[::-1] if rng.random() < 0.12 else SIZE
            focal = np.round(rng.normal(1270, 8) + rng.normal(0, 0.5, 2), 4)
            princpt = np.round(np.array(size[::-1]) / 2 + rng.normal(0, 5, 2), 4)
            views[name] = sized(self.plan, View(CaptureCamera(focal, princpt, rotation, -rotation @ eye), size))
        return views

    def add(self, k: int) -> None:
        """The k-th picture: a new moment, or the last one seen by another camera."""
        rng = self._random(1, k)
        if self.last is None or k % SECOND_VIEW_EVERY != SECOND_VIEW_EVERY - 1:
            self._new_moment(rng, k)
        capture, frame, hands, look, valid = self.last
        name = CAMERAS[k % len(CAMERAS)]
        view = self.views[capture][name]
        sequence = f"{frame % 10:04d}_toy_{hand_type(hands.present)}"
        file_name = f"Capture{capture}/{sequence}/cam{name}/image{frame}.jpg"
        picture = self._picture(rng, hands, view, look, name.startswith("41"))
        path = self.root / "images" / self.split / file_name
        make_folder(path.parent)
        write_image(path, picture, quality=int(rng.integers(80, 97)))
        self._annotate(k, hands, view, valid, file_name, capture, sequence, name, frame)

    def _new_moment(self, rng: np.random.Generator, k: int) -> None:
        capture, frame = k % 2, 1000 + 6 * k
        hands = sample_hands(rng, self.plan.rig, sample_present(rng, 0.55), variety=self.plan.variety)
        hands = move_hands(hands, np.eye(3), CENTRE + rng.normal(0, 0.01, 3))
        valid = np.repeat(hands.present, len(JOINTS))
        if rng.random() < 0.1:  # some joints could not be annotated
            hidden = rng.integers(0, len(valid), 3)
            valid[hidden[hidden % len(JOINTS) != len(JOINTS) - 1]] = False
        self.last = capture, frame, hands, sample_look(rng), valid
        world = np.where(valid[:, None], hands.joints[:, JOINT_ORDER].reshape(-1, 3) * 1000, 1.0)
        self.joints[str(capture)][str(frame)] = {
            "world_coord": rounded(world, 4),
            "joint_valid": [[bool(flag)] for flag in valid],
            "hand_type": hand_type(hands.present),
            "hand_type_valid": True,
        }
        if k % NO_MANO_EVERY != NO_MANO_EVERY - 1:
            self.mano[str(capture)][str(frame)] = mano_records(hands)

    def _picture(self, rng: np.random.Generator, hands: Hands, view: View, look: Look, grey: bool) -> np.ndarray:
        backdrop = sample_backdrop(rng, view.size, studio=rng.random() < 0.6)
        return photograph(self.plan, rng, backdrop, hands, view, look, noise=0.03, grey=grey)

    def _annotate(
        self, k: int, hands: Hands, view: View, valid: np.ndarray, file_name: str, capture: int, sequence: str,
        camera: str, frame: int,
    ) -> None:  # fmt: skip
        ident = FIRST_ID[self.split] + 3 * k
        joints_image = to_image(view, hands.joints[:, JOINT_ORDER].reshape(-1, 3))
        self.images.append(
            {
                "id": ident + 1,
                "file_name": file_name,
                "width": view.size[1],
                "height": view.size[0],
                "capture": capture,
                "subject": capture,
                "seq_name": sequence,
                "camera": camera,
                "frame_idx": frame,
            }
        )
        self.annotations.append(
            {
                "id": ident,
                "image_id": ident + 1,
                "bbox": rounded(box_of(joints_image[valid], 1.2), 3),
                "joint_valid": [[int(flag)] for flag in valid],
                "hand_type": hand_type(hands.present),
                "hand_type_valid": 1,
            }
        )

    def close(self) -> None:
        """Write the annotations."""
        contents = (
            {"images": self.images, "annotations": self.annotations},
            {str(capture): _camera_record(views) for capture, views in enumerate(self.views)},
            self.joints,
            self.mano,
        )
        for name, content in zip(INTERHAND_JSONS, contents, strict=True):
            path = self.root / name.format(split=self.split)
            make_folder(path.parent)
            write_json(path, content)
        if self.split == "test":
            ids = "".join(f"{annotation['id']}\n" for annotation in self.annotations)
            (self.root / INTERHAND_TEST_IDS).write_text(ids)


def _camera_record(views: dict[str, View]) -> dict[str, dict[str, list]]:
    """A capture's cameras; campos is the camera's centre in mm, not a translation."""
    cameras = {name: view.camera for name, view in views.items()}
    return {
        "campos": {name: rounded(-camera.rotation.T @ camera.transl * 1000, 4) for name, camera in cameras.items()},
        "camrot": {name: camera.rotation.tolist() for name, camera in cameras.items()},
        "focal": {name: rounded(camera.focal, 4) for name, camera in cameras.items()},
        "princpt": {name: rounded(camera.princpt, 4) for name, camera in cameras.items()},
    }
