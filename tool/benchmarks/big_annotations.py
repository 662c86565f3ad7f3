"""Write InterHand2.6M annotations of any size, made up, to try at full scale what reads them. There are no images.

    python tool/benchmarks/big_annotations.py --out /tmp/big --count 1000000
    python tool/benchmarks/big_annotations.py --out /tmp/small --count 10000 --split test --seed 1

writes OUT/annotations/SPLIT/InterHand2.6M_SPLIT_{data,camera,joint_3d,MANO_NeuralAnnot}.json in the official format,
about 0.7 kB an annotation, little by little, so that memory stays small, and makes the images' folder, empty. The same
arguments give the same files.

The proportions are those of the real set: captures of 80-140 cameras, each frame seen by about 73 of them, the order
capture, sequence, camera, frame; both hands in half of the frames; some joints invalid, sometimes a wrist; a few frames
without MANO parameters; numbers with as many digits. The hands stand in front of their cameras and their joints project
into the images, but the MANO parameters are noise and belong to no joints.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from common.errors import UserError, run_main  # noqa: E402
from common.utils.files import atomic_path, make_folder, write_json  # noqa: E402

FILES = ("data", "camera", "joint_3d", "MANO_NeuralAnnot")
SEQUENCE_FRAMES = 60  # frames of a sequence, about
CAPTURE_FRAMES = 900  # frames of a capture, about
MIN_CAMERAS, MAX_CAMERAS = 80, 140
SEEN = 0.66  # share of a frame's cameras that have an annotation
FRAME_STEP = 6  # 30 fps thinned to 5
HAND_TYPES = ("right", "left", "interacting")
HAND_TYPE_SHARES = (0.25, 0.25, 0.5)
JOINTS = 42  # right then left; a hand: five fingers from tip to base, then the wrist
NO_MANO = 0.01  # share of frames


@dataclass(frozen=True)
class Sequence:
    """One take, seen by all cameras of a capture. F frames, 42 joints.

    Attributes:
        frames: (F,) frame numbers.
        hand_types: (F,) indices into HAND_TYPES.
        joints_world: (F, 42, 3) float32, mm; (1, 1, 1) for an absent hand.
        joints_valid: (F, 42) bool.
    """

    name: str
    frames: np.ndarray
    hand_types: np.ndarray
    joints_world: np.ndarray
    joints_valid: np.ndarray


@dataclass(frozen=True)
class Camera:
    """`rotation` takes world to camera axes, `position` is the camera's centre in mm, `image_size` width, height."""

    name: str
    position: np.ndarray
    rotation: np.ndarray
    focal: np.ndarray
    princpt: np.ndarray
    image_size: tuple[int, int]


@dataclass(frozen=True)
class Capture:
    number: int
    cameras: list[Camera]
    sequences: list[Sequence]


def main() -> None:
    args = parse_args()
    if args.count < 1:
        raise UserError("--count must be 1 or more")
    folder = args.out / "annotations" / args.split
    paths = {what: folder / f"InterHand2.6M_{args.split}_{what}.json" for what in FILES}
    for path in paths.values():
        if path.exists() and not args.overwrite:
            raise UserError(f"{path} exists; name another folder with --out, or replace it with --overwrite")
    make_folder(folder)
    make_folder(args.out / "images" / args.split)

    rng = np.random.default_rng(args.seed)
    captures = make_captures(rng, args.count)
    write_json(paths["camera"], camera_file(captures))
    write_json(paths["joint_3d"], joint_file(captures))
    write_json(paths["MANO_NeuralAnnot"], mano_file(rng, captures))
    write_data(paths["data"], captures, args.count, args.seed)
    size = sum(path.stat().st_size for path in paths.values())
    frames = sum(len(sequence.frames) for capture in captures for sequence in capture.sequences)
    print(f"{args.count} annotations of {frames} frames in {len(captures)} captures, {size / 1e6:.0f} MB: {folder}")


def make_captures(rng: np.random.Generator, count: int) -> list[Capture]:
    """Captures with at least `count` pairs of a frame and a camera."""
    frames = math.ceil(count / (SEEN * (MIN_CAMERAS + MAX_CAMERAS) / 2))
    captures: list[Capture] = []
    pairs = 0
    while pairs * SEEN < count:
        cameras = [make_camera(rng, index) for index in range(rng.integers(MIN_CAMERAS, MAX_CAMERAS + 1))]
        left = min(CAPTURE_FRAMES, max(1, frames), math.ceil((count / SEEN - pairs) / len(cameras)))
        sequences = []
        frame = 0
        while left > 0:
            length = min(left, int(rng.integers(SEQUENCE_FRAMES // 2, SEQUENCE_FRAMES * 3 // 2)))
            frame += int(rng.integers(100, 2000))
            sequences.append(make_sequence(rng, len(sequences), frame + FRAME_STEP * np.arange(length)))
            frame = int(sequences[-1].frames[-1])
            left -= length
        captures.append(Capture(len(captures), cameras, sequences))
        pairs += len(cameras) * sum(len(sequence.frames) for sequence in sequences)
    return captures


def make_camera(rng: np.random.Generator, index: int) -> Camera:
    """A camera on a sphere of about 1 m, which looks at the point where the hands are."""
    position = rng.normal(size=3)
    position *= rng.uniform(950, 1150) / np.linalg.norm(position)
    forward = -position / np.linalg.norm(position)
    right = np.cross(forward, rng.normal(size=3))
    right /= np.linalg.norm(right)
    rotation = np.stack((right, np.cross(forward, right), forward))
    size = (334, 512) if rng.random() < 0.9 else (512, 334)
    return Camera(
        name=str((400000 if index % 2 else 410000) + 2 + index // 2),
        position=position.astype(np.float32),
        rotation=rotation.astype(np.float32),
        focal=rng.normal(1275, 8, 2).astype(np.float32),
        princpt=(np.array(size) / 2 + rng.normal(0, 6, 2)).astype(np.float32),
        image_size=size,
    )


def make_sequence(rng: np.random.Generator, index: int, frames: np.ndarray) -> Sequence:
    length = len(frames)
    hand_type = int(rng.choice(3, p=HAND_TYPE_SHARES))
    joints = np.ones((length, 2, JOINTS // 2, 3))
    valid = np.zeros((length, 2, JOINTS // 2), bool)
    for side in (0, 1):
        if hand_type in (side, 2):
            joints[:, side] = make_hands(rng, length, side)
            valid[:, side] = rng.random((length, JOINTS // 2)) > 0.02
    return Sequence(
        name=f"{index:04d}_{('rh', 'lh', 'dh')[hand_type]}_madeup{rng.integers(100):02d}",
        frames=frames,
        hand_types=np.full(length, hand_type),
        joints_world=joints.reshape(length, JOINTS, 3).astype(np.float32),
        joints_valid=valid.reshape(length, JOINTS),
    )


def make_hands(rng: np.random.Generator, count: int, side: int) -> np.ndarray:
    """(count, 21, 3) mm: hands of plausible size, turned at random, around the rig's middle."""
    angles = np.radians((60, 25, 5, -12, -30)) * (1 if side == 0 else -1)
    lengths = np.array(
        [(120, 90, 65, 35), (175, 150, 125, 90), (185, 155, 130, 90), (170, 145, 120, 85), (145, 125, 110, 80)]
    )
    hand = np.zeros((JOINTS // 2, 3))
    hand[:-1, :2] = (np.stack((np.sin(angles), np.cos(angles)), -1)[:, None] * lengths[..., None]).reshape(-1, 2)
    hand[:, 1] -= 90
    rotations = np.stack([cv2.Rodrigues(turn)[0] for turn in rng.normal(0, 1, (count, 3))])
    middle = rng.normal(0, 15, (count, 1, 3)) + (-35 if side == 0 else 35, 0, 0)
    return 0.75 * np.einsum("nij,kj->nki", rotations, hand) + middle + rng.normal(0, 4, (count, *hand.shape))


def camera_file(captures: list[Capture]) -> dict:
    def by_name(capture: Capture, attribute: str) -> dict:
        return {camera.name: getattr(camera, attribute) for camera in capture.cameras}

    keys = {"campos": "position", "camrot": "rotation", "focal": "focal", "princpt": "princpt"}
    return {str(capture.number): {key: by_name(capture, name) for key, name in keys.items()} for capture in captures}


def joint_file(captures: list[Capture]) -> dict:
    content: dict = {}
    for capture in captures:
        frames = content[str(capture.number)] = {}
        for sequence in capture.sequences:
            for index, frame in enumerate(sequence.frames):
                frames[str(frame)] = {
                    "world_coord": sequence.joints_world[index],
                    "joint_valid": sequence.joints_valid[index, :, None],
                    "hand_type": HAND_TYPES[sequence.hand_types[index]],
                    "hand_type_valid": True,
                }
    return content


def mano_file(rng: np.random.Generator, captures: list[Capture]) -> dict:
    def parameters() -> dict:
        pose = np.concatenate((rng.normal(0, 1, 3), rng.normal(0, 0.3, 45)))
        values = {"pose": pose, "shape": rng.normal(0, 0.8, 10), "trans": rng.normal(0, 0.1, 3)}
        return {key: value.astype(np.float32) for key, value in values.items()}

    content: dict = {}
    for capture in captures:
        frames = content[str(capture.number)] = {}
        for sequence in capture.sequences:
            for hand_type, frame in zip(sequence.hand_types, sequence.frames, strict=True):
                if rng.random() >= NO_MANO:
                    has = (hand_type in (0, 2), hand_type in (1, 2))
                    frames[str(frame)] = {
                        side: parameters() if there else None
                        for side, there in zip(("right", "left"), has, strict=True)
                    }
    return content


def write_data(path: Path, captures: list[Capture], count: int, seed: int) -> None:
    """The large file: all images, then all annotations, written as they are made."""
    with atomic_path(path) as temporary, open(temporary, "w") as file, progress_bar(2 * count) as progress:
        file.write('{"images": [')
        for image_id, (capture, sequence, camera, rows) in views(captures, count, seed):
            separator = ", " if image_id else ""
            file.write(separator + ", ".join(image_texts(image_id, capture, sequence, camera, rows)))
            progress.update(len(rows))
        file.write('], "annotations": [')
        rng = np.random.default_rng(seed + 1)
        for image_id, (_, sequence, camera, rows) in views(captures, count, seed):
            separator = ", " if image_id else ""
            file.write(separator + ", ".join(annotation_texts(image_id, sequence, camera, rows, rng)))
            progress.update(len(rows))
        file.write("]}")


@contextmanager
def progress_bar(total: int) -> Iterator[tqdm]:
    with tqdm(total=total, unit="row", desc="writing", leave=False, unit_scale=True) as progress:
        yield progress


def views(
    captures: list[Capture], count: int, seed: int
) -> Iterator[tuple[int, tuple[Capture, Sequence, Camera, np.ndarray]]]:
    """Which frames each camera has annotations of: exactly `count`, the same at each call.

    Yields:
        The id of the first annotation, and capture, sequence, camera and the (K,) indices of its frames, K > 0.
    """
    pairs = sum(len(c.cameras) * len(sequence.frames) for c in captures for sequence in c.sequences)
    keep = np.zeros(pairs, bool)
    keep[np.random.default_rng(seed).choice(pairs, count, replace=False)] = True
    start = image_id = 0
    for capture in captures:
        for sequence in capture.sequences:
            for camera in capture.cameras:
                rows = np.flatnonzero(keep[start : start + len(sequence.frames)])
                start += len(sequence.frames)
                if len(rows):
                    yield image_id, (capture, sequence, camera, rows)
                    image_id += len(rows)


def image_texts(image_id: int, capture: Capture, sequence: Sequence, camera: Camera, rows: np.ndarray) -> Iterator[str]:
    width, height = camera.image_size
    folder = f"Capture{capture.number}/{sequence.name}/cam{camera.name}"
    for offset, frame in enumerate(sequence.frames[rows]):
        yield (
            f'{{"id": {image_id + offset}, "file_name": "{folder}/image{frame}.jpg", "width": {width}, '
            f'"height": {height}, "capture": {capture.number}, "subject": {capture.number}, '
            f'"seq_name": "{sequence.name}", "camera": "{camera.name}", "frame_idx": {frame}}}'
        )


def annotation_texts(
    image_id: int, sequence: Sequence, camera: Camera, rows: np.ndarray, rng: np.random.Generator
) -> Iterator[str]:
    joints_cam = (sequence.joints_world[rows] - camera.position) @ camera.rotation.T
    joints_image = joints_cam[..., :2] / joints_cam[..., 2:] * camera.focal + camera.princpt
    there = np.repeat(np.stack((sequence.hand_types != 1, sequence.hand_types != 0), -1), JOINTS // 2, 1)[rows]
    low = np.where(there[..., None], joints_image, np.inf).min(1)
    high = np.where(there[..., None], joints_image, -np.inf).max(1)
    boxes_xywh = np.concatenate((low - 0.1 * (high - low), 1.2 * (high - low)), 1).astype(np.float32).astype(float)
    valid = there & (rng.random(there.shape) > 0.03)
    for offset, (row, box) in enumerate(zip(rows, boxes_xywh.tolist(), strict=True)):
        flags = ", ".join("[1]" if flag else "[0]" for flag in valid[offset].tolist())
        yield (
            f'{{"id": {image_id + offset}, "image_id": {image_id + offset}, "bbox": {json.dumps(box)}, '
            f'"joint_valid": [{flags}], "hand_type": "{HAND_TYPES[sequence.hand_types[row]]}", "hand_type_valid": 1}}'
        )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write annotations/SPLIT into")
    parser.add_argument("--count", type=int, default=1_000_000, help="annotations (default: 1000000)")
    parser.add_argument("--split", choices=("train", "test"), default="train", help="(default: train)")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)
