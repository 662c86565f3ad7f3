"""Made-up InterHand2.6M annotations of any size, to try at full scale what reads them. There are no images.

The proportions are those of the real set: captures of 110 cameras, each frame annotated in two thirds of them, the
order capture, sequence, camera, frame; both hands in half of the sequences; some joints invalid, sometimes a wrist; a
few frames without MANO parameters; numbers with as many digits. Joints are noise in front of the cameras; boxes and
MANO parameters are noise, too. An annotation takes about 0.7 kB.
"""

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.types import HAND_TYPES, SIDES
from common.utils.camera import CaptureCamera
from common.utils.files import make_folder
from data.layouts import INTERHAND_IMAGES
from tool.toy.interhand import Frame, Shot, write_interhand_annotations
from tool.toy.scene import look_at

CAMERAS, SEQUENCE_FRAMES, CAPTURE_FRAMES = 110, 60, 900
HAND_TYPE_SHARES = (0.25, 0.25, 0.5)
NO_MANO = 0.01  # share of frames


def write_annotations(root: Path, count: int, split: str = "train") -> None:
    """Write the four files of a split below `root` in little memory, always the same, and make the images' folder."""
    make_folder(root / INTERHAND_IMAGES.format(split=split))
    rng = np.random.default_rng(0)
    sequences = math.ceil(count / (CAMERAS * SEQUENCE_FRAMES * 2 // 3))
    frames = [frame for sequence in range(sequences) for frame in make_sequence(sequence, rng)]
    cameras = {
        capture: {str(400002 + k): make_camera(rng) for k in range(CAMERAS)}
        for capture in {frame.capture for frame in frames}
    }
    write_interhand_annotations(
        root, split, cameras, frames, lambda: tqdm(shots(frames, count), "writing", count, leave=False)
    )


def make_sequence(sequence: int, rng: np.random.Generator) -> Iterator[Frame]:
    hand_type = rng.choice(HAND_TYPES, p=HAND_TYPE_SHARES)
    present = np.array([hand_type in (side, "interacting") for side in SIDES])
    for number in range(sequence * SEQUENCE_FRAMES, (sequence + 1) * SEQUENCE_FRAMES):
        joints = rng.normal(0, 0.04, (2, 21, 3)) + np.array([[[-0.035, 0, 0]], [[0.035, 0, 0]]])
        valid = present[:, None] & (rng.random((2, 21)) > 0.02)
        parts = {"pose": rng.normal(0, 0.3, (2, 48)), "shape": rng.normal(0, 1, (2, 10)), "trans": joints[:, 0]}
        fits = {
            side: {name: x[hand].round(7).tolist() for name, x in parts.items()} if present[hand] else None
            for hand, side in enumerate(SIDES)
        }
        mano = fits if rng.random() >= NO_MANO else None
        capture = number // CAPTURE_FRAMES
        yield Frame(capture, 1000 + 6 * number, hand_type, joints.reshape(42, 3), valid.ravel(), mano)


def make_camera(rng: np.random.Generator) -> CaptureCamera:
    """A camera on a sphere of about 1 m that looks at the middle of the studio."""
    eye = rng.normal(size=3)
    eye *= rng.uniform(0.95, 1.15) / np.linalg.norm(eye)
    rotation = look_at(eye, np.zeros(3), rng.uniform(-np.pi, np.pi))[0]
    return CaptureCamera(rng.normal(1275, 8, 2), rng.normal((167, 256), 6), rotation, -rotation @ eye)


def shots(frames: list[Frame], count: int) -> Iterator[Shot]:
    """The first `count` annotations, in the order of the real files."""
    rng = np.random.default_rng(1)
    views = (
        (start // SEQUENCE_FRAMES, camera, k)
        for start in range(0, len(frames), SEQUENCE_FRAMES)
        for camera in range(CAMERAS)
        for k in range(start, start + SEQUENCE_FRAMES)
        if (k + camera) % 3
    )
    for ident, (sequence, camera, k) in enumerate(islice(views, count)):
        frame, box = frames[k], rng.uniform(50, 300, 4).round(3).tolist()
        name = f"{sequence:04d}_madeup_{frame.hand_type}"
        yield Shot(
            ident, frame.capture, name, str(400002 + camera), frame.number, (512, 334), frame.hand_type, box,
            frame.joints_valid,
        )  # fmt: skip
