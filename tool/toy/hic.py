"""The toy HIC: one or two hands in front of a fixed depth camera; test only, ground truth as meshes in `cam`."""

from pathlib import Path
from typing import Any

import numpy as np

from common.drawing.export import write_ply
from common.drawing.render import HAND_RGB
from common.types import SIDES
from common.utils.camera import CaptureCamera
from common.utils.files import make_folder
from data.layouts import HIC_FITS, HIC_JSON
from tool.toy.backdrops import sample_backdrop
from tool.toy.formats import Plan, box_of, clip_box, hand_type, put, rounded, sample_present
from tool.toy.rendering import sample_look
from tool.toy.scene import View, look_at, move_hands, sample_hands, to_image

SET = 3  # of the random numbers
# Readers have this camera built in, so images are never of another size.
VIEW = View(CaptureCamera(np.array([525.0, 525.0]), np.array([319.5, 239.5]), np.eye(3), np.zeros(3)), (480, 640))
TWO_HANDS = tuple(f"{n:02d}" for n in range(1, 8))  # names of sequences
ONE_HAND = tuple(f"{n:02d}" for n in range(8, 12))
MESHES = HIC_FITS + "/IJCV16___fakeGT___IJCV___{}___Model_Hand_{}___ncomps45"
FIRST_ID = 2000


def write(root: Path, plan: Plan) -> None:
    """Write data/HIC. It has no train split."""
    images, annotations = zip(*(_write_sample(root / "data", plan, k) for k in range(plan.test)), strict=True)
    put(root / HIC_JSON, {"images": images, "annotations": annotations})


def _write_sample(data: Path, plan: Plan, k: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write an image and its meshes; return the records of the image and of its annotation."""
    rng = plan.random(SET, k)
    hands = sample_hands(rng, plan.rig, sample_present(rng, 0.65), variety=plan.variety)
    eye = plan.variety * np.array([rng.normal(0, 0.5), rng.normal(-0.2, 0.4), 0]) - (0, 0, 1)
    turn, _ = look_at(eye, np.zeros(3), rng.normal(0, 0.2 * plan.variety))
    hands = move_hands(hands, turn, rng.normal(0, 0.03, 3) + (0, 0, rng.uniform(0.5, 0.72)))
    names = TWO_HANDS if hands.present.all() else ONE_HAND
    sequence, frame = names[k % len(names)], 1 + 5 * (k // len(names))
    file_name = f"{sequence}/1/rgb/{frame:03d}.png"
    put(
        data / file_name,
        plan.photograph(rng, sample_backdrop(rng, VIEW.size), hands, VIEW, sample_look(rng), noise=0.012),
    )
    paths: dict[str, str | None] = dict.fromkeys(f"{name}_mano_path" for name in SIDES)
    for side in np.flatnonzero(hands.present):
        path = f"{MESHES.format(sequence, SIDES[side][0].upper())}/{frame:03d}.ply"
        make_folder((data / path).parent)
        write_ply(data / path, hands.vertices[side], plan.rig.models[side].faces, np.array(HAND_RGB[side]))
        paths[f"{SIDES[side]}_mano_path"] = path
    ident = FIRST_ID + 5 * k
    height, width = VIEW.size
    image = {"id": ident, "file_name": file_name, "width": width, "height": height, "seq_name": sequence}
    box = clip_box(box_of(to_image(VIEW, hands.vertices[hands.present]), 1.2), VIEW.size)
    annotation = {"id": ident + 2, "image_id": ident, "bbox": rounded(box, 3), "hand_type": hand_type(hands.present)}
    return image | {"frame_idx": frame}, annotation | paths
