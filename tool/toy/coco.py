"""The toy MSCOCO (COCO-WholeBody): a person in an everyday photo; no 3D but MANO fits in camera space."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from common.types import LEFT, RIGHT, SIDES
from common.utils.camera import CaptureCamera, project_capture
from data.layouts import COCO_IMAGES, COCO_JSON, COCO_MANO
from tool.toy.backdrops import paint, sample_backdrop
from tool.toy.formats import Plan, box_of, clip_box, mano_record, put, rounded, sample_present
from tool.toy.rendering import Look, add_arm, sample_look
from tool.toy.scene import Hands, View, move_hands, sample_hands, sample_hands_apart, scaled_view, to_image

SET = 2  # of the random numbers
SPLITS = ("train", "val")
SIZES = ((480, 640), (640, 480), (427, 640), (640, 427))
FIRST_ID = {"train": 100000, "val": 500000}
LEAST_INSIDE = 0.6  # of a hand's vertices
SMALLEST_BOX = 6  # px; a smaller hand is not annotated
NO_MANO_EVERY, ODD_EVERY = 9, 6  # persons: one of them has no fit; and one more follows that nobody can use
BODY_KEYPOINTS = (
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist "
    "right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle"
).split()
CATEGORY = {"supercategory": "person", "id": 1, "name": "person", "keypoints": BODY_KEYPOINTS, "skeleton": []}
# Keypoints from the chest, in metres, on the left (in the image on the right, as the person faces the camera).
BODY_PARTS = {"eye": (0.033, -0.215), "ear": (0.075, -0.2), "shoulder": (0.18, -0.02), "hip": (0.14, 0.48)}


class _Scene(NamedTuple):
    """A person in front of the camera."""

    hands: Hands  # in `cam`
    view: View
    look: Look
    body_image: dict[str, np.ndarray]  # (2,) px; those of BODY_KEYPOINTS that are known
    metre: float  # px of a metre at the person


def write(root: Path, plan: Plan) -> None:
    """Write data/MSCOCO."""
    for split, count in zip(SPLITS, (plan.train, plan.test), strict=True):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        fits: dict[str, dict[str, Any]] = {}
        for k in range(count):
            rng = plan.random(SET, SPLITS.index(split), k)
            scene = _sample_scene(rng, plan)
            backdrop = sample_backdrop(rng, scene.view.size)
            _draw_person(rng, backdrop, scene)
            image = plan.photograph(rng, backdrop, scene.hands, scene.view, scene.look, noise=0.035)
            ident = FIRST_ID[split] + 7 * k
            images.append(_image_record(ident, scene.view.size))
            folder = root / COCO_IMAGES.format(split=split)
            put(folder / images[-1]["file_name"], image, quality=int(rng.integers(75, 97)))
            annotation = _annotation(rng, scene, ident + 3, ident)
            annotations.append(annotation)
            if k % NO_MANO_EVERY != NO_MANO_EVERY - 1:
                fits[str(ident + 3)] = _fits(scene, annotation)
            if k % ODD_EVERY == ODD_EVERY - 1:
                annotations.append(_odd_annotation(k // ODD_EVERY, annotation, ident + 4, scene.view.size))
        content = {
            "info": {"description": "toy data, generated hands", "version": "1.0"},
            "licenses": [],
            "categories": [CATEGORY],
            "images": images,
            "annotations": annotations,
        }
        put(root / COCO_JSON.format(split=split), content)
        if split == "train":
            put(root / COCO_MANO, fits)


def _sample_scene(rng: np.random.Generator, plan: Plan) -> _Scene:
    """A scene whose hands are within the image, or nearly."""
    while True:
        scene = _draw_scene(rng, plan)
        points = to_image(scene.view, scene.hands.vertices[scene.hands.present])
        if ((points >= 0) & (points < scene.view.size[::-1])).all(-1).mean(-1).min() > LEAST_INSIDE:
            return scene


def _draw_scene(rng: np.random.Generator, plan: Plan) -> _Scene:
    size = SIZES[rng.integers(len(SIZES))]
    metre = rng.uniform(420, 760)  # px
    focal = np.round(np.full(2, rng.uniform(600, 1300)), 3)
    present = sample_present(rng, 0.75)
    if rng.random() < 0.5:
        hands = sample_hands(rng, plan.rig, present, variety=plan.variety)
    else:
        wrists = np.array([[-0.2, 0.05, 0], [0.2, 0.05, 0]]) + rng.normal(0, 0.07, (2, 3)) * (1, 1.2, 0.6)
        hands = sample_hands_apart(rng, plan.rig, present, wrists, plan.variety)
    princpt = np.round(np.array(size[::-1]) / 2 + rng.normal(0, 2, 2), 3)
    view = View(CaptureCamera(focal, princpt, np.eye(3), np.zeros(3)), size)
    at = np.array([size[1] * rng.uniform(0.38, 0.62), size[0] * rng.uniform(0.5, 0.72)])
    depth = focal[0] / metre
    hands = move_hands(hands, np.eye(3), np.append((at - princpt) * depth / focal, depth))
    view = scaled_view(view, plan.scale)
    scale = view.size[0] / size[0]
    metre *= scale
    look = sample_look(rng)
    look = look._replace(cuff=min(look.cuff, rng.uniform(0.01, 0.24)), stripes=0.0, has_upper_arm=False)
    chest = at * scale - np.array([0, rng.uniform(0.22, 0.34)]) * metre
    body = {"nose": chest + np.array([rng.normal(0, 0.02), -0.18]) * metre}
    for side, name in enumerate(SIDES):
        outward = -1 if side == RIGHT else 1
        for part, (x, y) in BODY_PARTS.items():
            body[f"{name}_{part}"] = chest + np.array([x * outward, y]) * metre
        if hands.present[side]:
            elbow = add_arm(plan.skin, side, hands.vertices[side], look)[-1]
            body[f"{name}_elbow"] = project_capture(elbow, view.camera)
            body[f"{name}_wrist"] = to_image(view, hands.joints[side, 0])
    return _Scene(hands, view, look, body, metre)


def _draw_person(rng: np.random.Generator, image: np.ndarray, scene: _Scene) -> None:
    """Torso, head and upper arms, in place; the forearms belong to the hands."""
    points, metre = scene.body_image, scene.metre
    light = (0.25 + 0.75 * scene.look.lamp_linear.mean()) ** (1 / 2.2)
    cloth, skin = (part ** (1 / 2.2) * light for part in (scene.look.sleeve_linear, scene.look.skin_linear))
    hair = np.clip(rng.uniform(0.05, 0.5) * np.array([1, 0.8, 0.6]), 0, 1)

    def ellipse(colour: np.ndarray, offset: tuple[float, float], half: tuple[float, float]) -> None:
        """Of half-axes `half` m, `offset` m from the nose."""
        centre, axes = points["nose"] + np.array(offset) * metre, np.maximum(1, np.round(np.array(half) * metre))
        shape = centre.astype(int).tolist(), axes.astype(int).tolist(), 0, 0, 360, 255, -1
        _fill(rng, image, colour, lambda mask: cv2.ellipse(mask, *shape))

    def bar(colour: np.ndarray, ends: list[np.ndarray], width: float) -> None:
        """`width` m wide."""
        start, end = np.clip(ends, -10000, 10000).astype(int).tolist()
        _fill(
            rng, image, colour, lambda mask: cv2.line(mask, start, end, 255, max(2, round(width * metre)), cv2.LINE_AA)
        )

    right, left = points["right_shoulder"], points["left_shoulder"]
    hips = np.stack((points["left_hip"], points["right_hip"])) + np.array([0, 0.25]) * metre
    corners = np.array([(-0.05, 0.02), (0.1, -0.04), (-0.1, -0.04), (0.05, 0.02)]) * metre + (right, right, left, left)
    torso = np.concatenate((corners, hips)).astype(np.int32)
    _fill(rng, image, cloth, lambda mask: cv2.fillPoly(mask, [torso], 255, cv2.LINE_AA))
    bar(skin * 0.85, [(right + left) / 2, points["nose"] - (0, 0.03 * metre)], 0.1)  # neck
    ellipse(hair, (0, -0.06), (0.083, 0.121))
    ellipse(skin, (0, -0.018), (0.075, 0.11))
    for side in (-0.033, 0.033):
        ellipse(np.array([0.1, 0.08, 0.07]), (side, -0.035), (0.011, 0.011))
    ellipse(skin * (0.75, 0.55, 0.55), (0, 0.032), (0.024, 0.007))  # lips
    bar(skin * 0.82, [points["nose"] - (0, 0.03 * metre), points["nose"]], 0.012)
    for side in SIDES:
        shoulder = points[f"{side}_shoulder"] + (0, 0.03 * metre)
        elbow = points.get(f"{side}_elbow", shoulder + (0, 0.33 * metre))
        bar(cloth * 0.93, [shoulder, elbow], 0.095)


def _fill(
    rng: np.random.Generator, image: np.ndarray, colour: np.ndarray, draw: Callable[[np.ndarray], object]
) -> None:
    """Paint a shape that `draw` puts on a mask, darker towards its edge as round things are."""

    def shade(mask: np.ndarray, _: np.ndarray) -> np.ndarray:
        h, w = mask.shape
        small = cv2.resize(mask, (w // 8 + 2, h // 8 + 2), interpolation=cv2.INTER_AREA)
        inner = cv2.GaussianBlur(small, (0, 0), max(1.0, min(w, h) / 64), borderType=cv2.BORDER_CONSTANT)
        inner = cv2.resize(inner, (w, h)).astype(np.float32)[..., None] / 255
        weave = 0.03 * cv2.resize(rng.standard_normal((h // 3 + 2, w // 3 + 2), np.float32), (w, h))[..., None]
        return np.clip(colour * (0.45 + 0.55 * inner + weave), 0, 1)

    paint(image, draw, shade)


def _image_record(ident: int, size: tuple[int, int]) -> dict[str, Any]:
    names = dict.fromkeys(("coco_url", "date_captured", "flickr_url"), "")
    return {"license": 1, "file_name": f"{ident:012d}.jpg", "height": size[0], "width": size[1], **names, "id": ident}


def _annotation(rng: np.random.Generator, scene: _Scene, ident: int, image_id: int) -> dict[str, Any]:
    metre, body = scene.metre, np.stack([scene.body_image.get(name, np.full(2, -1.0)) for name in BODY_KEYPOINTS])
    seen = ((body >= 0) & (body < scene.view.size[::-1])).all(1)
    points = [body[seen], to_image(scene.view, scene.hands.vertices[scene.hands.present]).reshape(-1, 2)]
    points.append(body[:1] - (0, 0.15 * metre))
    points += [
        scene.body_image[f"{name}_shoulder"][None] + (x * metre, 0)
        for name, x in zip(SIDES, (-0.07, 0.07), strict=True)
    ]
    bbox = clip_box(box_of(np.concatenate(points), 1.04), scene.view.size)
    x, y, w, h = rounded(bbox, 2)
    record = {
        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        "num_keypoints": int(seen.sum()),
        "area": round(float(bbox[2] * bbox[3]), 2),
        "iscrowd": 0,
        "keypoints": np.round(np.column_stack((body, np.full(len(body), 2))) * seen[:, None]).astype(int).ravel(),
        "image_id": image_id,
        "bbox": [x, y, w, h],
        "category_id": 1,
        "id": ident,
    }
    for part, numbers in (("face", 204), ("foot", 18)):
        record |= {f"{part}_kpts": [0.0] * numbers, f"{part}_valid": False}
    record["face_box"] = [0.0] * 4
    for side in (LEFT, RIGHT):
        record |= _hand_fields(rng, scene, side)
    return record


def _hand_fields(rng: np.random.Generator, scene: _Scene, side: int) -> dict[str, Any]:
    """`lefthand_*` or `righthand_*`; a hand that cannot be seen is not valid, and 0 throughout."""
    prefix = f"{SIDES[side]}hand"
    box = clip_box(box_of(to_image(scene.view, scene.hands.vertices[side])), scene.view.size)
    if not scene.hands.present[side] or box[2:].min() < SMALLEST_BOX:
        return {f"{prefix}_box": [0.0] * 4, f"{prefix}_kpts": [0.0] * 63, f"{prefix}_valid": False}
    joints = rounded(to_image(scene.view, scene.hands.joints[side]), 3)
    height, width = scene.view.size
    # As in the original, scores are 1, 2 or something small; ints and floats in one list.
    scores = [2, 1, round(rng.uniform(0.02, 0.4), 4)]
    keypoints: list[float] = []
    for (x, y), score in zip(joints, rng.choice(3, len(joints), p=(0.5, 0.38, 0.12)), strict=True):
        inside = 0 <= x < width and 0 <= y < height
        keypoints += [x, y, scores[score]] if inside else [0.0, 0.0, 0.0]
    return {f"{prefix}_box": rounded(box, 2), f"{prefix}_kpts": keypoints, f"{prefix}_valid": True}


def _fits(scene: _Scene, annotation: dict[str, Any]) -> dict[str, Any]:
    camera = {"focal": rounded(scene.view.camera.focal, 4), "princpt": rounded(scene.view.camera.princpt, 4)}
    fits = {
        name: {"mano_param": mano_record(scene.hands, side), "cam_param": camera} for side, name in enumerate(SIDES)
    }
    return {name: fit if annotation[f"{name}hand_valid"] else None for name, fit in fits.items()}


def _odd_annotation(k: int, annotation: dict[str, Any], ident: int, size: tuple[int, int]) -> dict[str, Any]:
    """A person of a kind that readers must skip: a crowd, one without keypoints, one without hands."""
    odd = annotation | {"id": ident, "lefthand_valid": False, "righthand_valid": False}
    for name in SIDES:
        odd |= {f"{name}hand_box": [0.0] * 4, f"{name}hand_kpts": [0.0] * 63}
    if k % 3 == 0:
        area = size[0] * size[1]
        odd |= {"iscrowd": 1, "segmentation": {"counts": [area - 9, 9], "size": list(size)}}
    if k % 3 < 2:
        odd |= {"num_keypoints": 0, "keypoints": [0] * 51}
    return odd
