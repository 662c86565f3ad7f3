"""Made-up InterHand2.6M annotations of any size, to try at full scale what reads them. There are no images.

The proportions are those of the real set: captures of 110 cameras, each frame annotated in two thirds of them, the
order capture, sequence, camera, frame; both hands in half of the sequences; some joints invalid, sometimes a wrist; a
few frames without MANO parameters; numbers with as many digits. Joints are noise in front of the cameras; boxes and
MANO parameters are noise, too. An annotation takes about 0.6 kB.
"""

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common.types import HAND_TYPES
from common.utils.files import atomic_path, make_folder, write_json
from data.layouts import INTERHAND_IMAGES, INTERHAND_JSONS

CAMERAS, SEQUENCE_FRAMES, CAPTURE_FRAMES = 110, 60, 900
SEQUENCE_VIEWS = CAMERAS * SEQUENCE_FRAMES * 2 // 3
HAND_TYPE_SHARES = (0.25, 0.25, 0.5)
NO_MANO = 0.01  # share of frames


def write_annotations(root: Path, count: int, split: str = "train") -> None:
    """Write the four files of a split below `root` in little memory, always the same, and make the images' folder."""
    data_file, camera_file, joint_file, mano_file = (root / name.format(split=split) for name in INTERHAND_JSONS)
    make_folder(data_file.parent)
    make_folder(root / INTERHAND_IMAGES.format(split=split))
    rng = np.random.default_rng(0)
    frames = SEQUENCE_FRAMES * math.ceil(count / SEQUENCE_VIEWS)
    captures = range(math.ceil(frames / CAPTURE_FRAMES))
    types = np.repeat(rng.choice(3, frames // SEQUENCE_FRAMES, p=HAND_TYPE_SHARES), SEQUENCE_FRAMES)
    present = np.stack((types != 1, types != 0), -1)  # (F, 2)
    valid = np.repeat(present, 21, 1) & (rng.random((frames, 42)) > 0.02)
    joints = rng.normal(0, 40, (frames, 42, 3)) + np.repeat([[-35, 0, 0], [35, 0, 0]], 21, 0)
    joints = np.where(np.repeat(present, 21, 1)[..., None], joints, 1).astype(np.float32)

    def by_capture(record: dict[int, Any]) -> dict[str, dict[str, Any]]:
        return {
            str(capture): {str(_frame_number(f)): x for f, x in record.items() if f // CAPTURE_FRAMES == capture}
            for capture in captures
        }

    def mano_record(hands: np.ndarray) -> dict[str, Any]:
        numbers = rng.normal(0, (*[1.0] * 3, *[0.3] * 45, *[0.8] * 10, *[0.1] * 3), (2, 61)).astype(np.float32)
        fits = [dict(zip(("pose", "shape", "trans"), np.split(x, (48, 58)), strict=True)) for x in numbers]
        return {side: fit if there else None for side, fit, there in zip(HAND_TYPES, fits, hands, strict=False)}

    write_json(camera_file, {str(capture): _cameras(rng) for capture in captures})
    joint_records = {
        f: {"world_coord": joints[f], "joint_valid": valid[f, :, None], "hand_type": HAND_TYPES[types[f]],
            "hand_type_valid": True}
        for f in range(frames)
    }  # fmt: skip
    write_json(joint_file, by_capture(joint_records))
    write_json(mano_file, by_capture({f: mano_record(present[f]) for f in range(frames) if rng.random() >= NO_MANO}))

    labels = [
        f'"joint_valid": [{", ".join(f"[{int(flag)}]" for flag in flags)}], "hand_type": "{HAND_TYPES[kind]}", '
        for flags, kind in zip(valid, types, strict=True)
    ]
    with atomic_path(data_file) as temporary, open(temporary, "w") as file:
        for start, records in (
            ('{"images": [', (_image(*view, types) for view in _views(frames, count))),
            ('], "annotations": [', (_annotation(id, labels[f], rng) for id, f, _ in _views(frames, count))),
        ):
            file.write(start)
            for index, record in enumerate(tqdm(records, desc="writing", total=count, leave=False, unit_scale=True)):
                file.write(", " * bool(index) + record)
        file.write("]}")


def _cameras(rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    """A capture's cameras on a sphere of about 1 m, looking at its middle. In mm and px."""
    centers = rng.normal(size=(CAMERAS, 3))
    forward = -centers / np.linalg.norm(centers, axis=-1, keepdims=True)
    right = np.cross(forward, rng.normal(size=(CAMERAS, 3)))
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    values = {
        "campos": -forward * rng.uniform(950, 1150, (CAMERAS, 1)),
        "camrot": np.stack((right, np.cross(forward, right), forward), 1),
        "focal": rng.normal(1275, 8, (CAMERAS, 2)),
        "princpt": rng.normal((167, 256), 6, (CAMERAS, 2)),
    }
    return {
        key: {str(400002 + k): row for k, row in enumerate(rows.astype(np.float32))} for key, rows in values.items()
    }


def _views(frames: int, count: int) -> Iterator[tuple[int, int, int]]:
    """The id, frame and camera of each annotation, in the files' order."""
    views = (
        (frame, camera)
        for start in range(0, frames, SEQUENCE_FRAMES)
        for camera in range(CAMERAS)
        for frame in range(start, start + SEQUENCE_FRAMES)
        if (frame + camera) % 3
    )
    return ((id, *view) for id, view in enumerate(islice(views, count)))


def _frame_number(frame: int) -> int:
    return 1000 + 6 * frame  # 30 fps thinned to 5


def _image(id: int, frame: int, camera: int, types: np.ndarray) -> str:
    capture, name, number = frame // CAPTURE_FRAMES, 400002 + camera, _frame_number(frame)
    sequence = f"{frame // SEQUENCE_FRAMES:04d}_{('rh', 'lh', 'dh')[types[frame]]}_madeup"
    return (
        f'{{"id": {id}, "file_name": "Capture{capture}/{sequence}/cam{name}/image{number}.jpg", "width": 334, '
        f'"height": 512, "capture": {capture}, "subject": {capture}, "seq_name": "{sequence}", '
        f'"camera": "{name}", "frame_idx": {number}}}'
    )


def _annotation(id: int, label: str, rng: np.random.Generator) -> str:
    box = rng.uniform(50, 300, 4).astype(np.float32).astype(float).tolist()
    return f'{{"id": {id}, "image_id": {id}, "bbox": {box}, {label}"hand_type_valid": 1}}'
