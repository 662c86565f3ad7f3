"""The toy MSCOCO (COCO-WholeBody): a person in an everyday picture; no 3D but MANO fits in camera space."""

from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from common.types import LEFT, RIGHT, SIDES
from common.utils.camera import CaptureCamera, project_capture
from common.utils.files import make_folder, write_image, write_json
from data.layouts import COCO_IMAGES, COCO_JSON, COCO_MANO
from tool.toy.formats import (
    Plan,
    box_of,
    clip_box,
    generator,
    mano_record,
    photograph,
    rounded,
    sample_present,
    sized,
    toy_folder,
)
from tool.toy.picture import Look, add_forearm, sample_backdrop, sample_look
from tool.toy.scene import Hands, View, move_hands, sample_hands, sample_hands_apart, to_image

SET = 2  # of the random numbers
SPLITS = ("train", "val")
SIZES = ((480, 640), (640, 480), (427, 640), (640, 427))
FIRST_ID = {"train": 100000, "val": 500000}
LEAST_INSIDE = 0.6  # of a hand's vertices
SMALLEST_BOX = 6  # px; a hand of less is not annotated
NO_MANO_EVERY, ODD_EVERY = 9, 6  # every so many persons one has no fit; and there is one that nobody can use
BODY_KEYPOINTS = (
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist "
    "right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle"
).split()
CATEGORY = {"supercategory": "person", "id": 1, "name": "person", "keypoints": BODY_KEYPOINTS, "skeleton": []}


class _Scene(NamedTuple):
    """A person before the camera."""

    hands: Hands  # in `cam`
    view: View
    look: Look
    body_image: dict[str, np.ndarray]  # (2,) px; those of BODY_KEYPOINTS that are known
    metre: float  # px that a metre takes at the person


def write(folder: Path, plan: Plan) -> None:
    """Write data/MSCOCO."""
    with toy_folder(folder) as root:
        for split, count in zip(SPLITS, (plan.train, plan.test), strict=True):
            _write_split(root, plan, split, count)


def _write_split(root: Path, plan: Plan, split: str, count: int) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    fits: dict[str, dict[str, Any]] = {}
    pictures = root / COCO_IMAGES.format(split=split)
    make_folder(pictures)
    make_folder((root / COCO_JSON).parent)
    for k in range(count):
        rng = generator(plan, SET, SPLITS.index(split), k)
        scene = _sample_scene(rng, plan)
        backdrop = sample_backdrop(rng, scene.view.size)
        _draw_person(rng, backdrop, scene)
        picture = photograph(plan, rng, backdrop, scene.hands, scene.view, scene.look, noise=0.035)
        ident = FIRST_ID[split] + 7 * k
        image = _image_record(ident, scene.view.size)
        write_image(pictures / image["file_name"], picture, quality=int(rng.integers(75, 97)))
        images.append(image)
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
    write_json(root / COCO_JSON.format(split=split), content)
    if split == "train":
        write_json(root / COCO_MANO, fits)


# ---- the scene ----


def _sample_scene(rng: np.random.Generator, plan: Plan) -> _Scene:
    """A scene whose hands are not cut off, or little."""
    while True:
        scene = _draw_scene(rng, plan)
        inside = [_inside(scene, side) for side in (RIGHT, LEFT) if scene.hands.present[side]]
        if min(inside) > LEAST_INSIDE:
            return scene


def _inside(scene: _Scene, side: int) -> float:
    """The share of a hand's vertices that are in the picture."""
    points = to_image(scene.view, scene.hands.vertices[side])
    return float(((points >= 0) & (points < scene.view.size[::-1])).all(1).mean())


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
    view = sized(plan, view)
    metre *= view.size[0] / size[0]
    look = sample_look(rng)
    look = look._replace(cuff=min(look.cuff, rng.uniform(0.01, 0.24)), stripes=0.0, arm_length=0.25)
    chest = at * view.size[0] / size[0] - np.array([0, rng.uniform(0.22, 0.34)]) * metre
    return _Scene(hands, view, look, _body_points(rng, plan, hands, view, look, chest, metre), metre)


def _body_points(
    rng: np.random.Generator, plan: Plan, hands: Hands, view: View, look: Look, chest: np.ndarray, metre: float
) -> dict[str, np.ndarray]:
    """Where the rest of the person is, (2,) px each. The person faces the camera: the right is on the left."""
    points = {"nose": chest + np.array([rng.normal(0, 0.02), -0.18]) * metre}
    for side, name in enumerate(SIDES):
        out = -1 if side == RIGHT else 1
        offsets = {"eye": (0.033, -0.215), "ear": (0.075, -0.2), "shoulder": (0.18, -0.02), "hip": (0.14, 0.48)}
        for part, (x, y) in offsets.items():
            points[f"{name}_{part}"] = chest + np.array([x * out, y]) * metre
        if hands.present[side]:
            mesh = add_forearm(plan.skin, side, hands.vertices[side], look)
            points[f"{name}_elbow"] = project_capture(mesh[-1], view.camera)
            points[f"{name}_wrist"] = to_image(view, hands.joints[side, 0])
    return points


def _draw_person(rng: np.random.Generator, picture: np.ndarray, scene: _Scene) -> None:
    """Torso, head and upper arms, in place; the forearms belong to the hands."""
    points, metre = scene.body_image, scene.metre
    light = (0.25 + 0.75 * scene.look.lamp_linear.mean()) ** (1 / 2.2)
    cloth = scene.look.sleeve_linear ** (1 / 2.2) * light
    skin = scene.look.skin_linear ** (1 / 2.2) * light
    right, left = points["right_shoulder"], points["left_shoulder"]
    hips = (points["left_hip"], points["right_hip"])
    drop, half = np.array([0, 0.25]) * metre, np.array([0.05, 0.02]) * metre
    torso = np.stack((right - half * (1, -1), right + half * (2, -2), left + half * (-2, -2), left + half * (1, 1)))
    torso = np.concatenate((torso, (hips[0] + drop, hips[1] + drop)))
    _fill(rng, picture, cloth, lambda mask: cv2.fillPoly(mask, [torso.astype(np.int32)], 255, cv2.LINE_AA))
    neck = (right + left) / 2
    head = points["nose"] - np.array([0, 0.03]) * metre
    axes = (np.array([0.075, 0.11]) * metre).astype(int).tolist()
    hair = np.clip(rng.uniform(0.05, 0.5) * np.array([1, 0.8, 0.6]), 0, 1)
    _fill(rng, picture, skin * 0.85, lambda mask: _bar(mask, neck, head, 0.1 * metre))
    above = (head - np.array([0, 0.03]) * metre).astype(int).tolist()
    _fill(rng, picture, hair, lambda mask: cv2.ellipse(mask, above, [round(a * 1.1) for a in axes], 0, 0, 360, 255, -1))
    middle = (head + np.array([0, 0.012]) * metre).astype(int).tolist()
    _fill(rng, picture, skin, lambda mask: cv2.ellipse(mask, middle, axes, 0, 0, 360, 255, -1))
    for name, size in (("left_eye", 0.011), ("right_eye", 0.011)):
        cv2.circle(picture, points[name].astype(int).tolist(), max(1, round(size * metre)), (0.1, 0.08, 0.07), -1)
    mouth = (points["nose"] + np.array([0, 0.032]) * metre).astype(int).tolist()
    lips = tuple((skin * (0.75, 0.55, 0.55)).tolist())
    cv2.ellipse(picture, mouth, [round(0.024 * metre), round(0.007 * metre)], 0, 0, 360, lips, -1)
    ends = [(points["nose"] - np.array([0, up]) * metre).astype(int).tolist() for up in (0.03, 0)]
    cv2.line(picture, *ends, tuple((skin * 0.82).tolist()), max(1, round(0.012 * metre)), cv2.LINE_AA)
    for side in SIDES:
        shoulder = points[f"{side}_shoulder"] + (0, 0.03 * metre)
        elbow = points.get(f"{side}_elbow", shoulder + (0, 0.33 * metre))
        _fill(rng, picture, cloth * 0.93, lambda mask, a=shoulder, b=elbow: _bar(mask, a, b, 0.095 * metre))


def _bar(mask: np.ndarray, start: np.ndarray, end: np.ndarray, width: float) -> None:
    ends = np.clip(np.stack((start, end)), -10000, 10000).astype(int).tolist()
    cv2.line(mask, ends[0], ends[1], 255, max(2, round(width)), cv2.LINE_AA)


def _fill(rng: np.random.Generator, picture: np.ndarray, colour: np.ndarray, draw: Any) -> None:
    """Paint a shape that `draw` puts on a mask, darker towards its edge as round things are."""
    mask = np.zeros(picture.shape[:2], np.uint8)
    draw(mask)
    x, y, w, h = cv2.boundingRect(mask)
    if not w or not h:
        return
    mask = mask[y : y + h, x : x + w]
    small = cv2.resize(mask, (w // 8 + 2, h // 8 + 2), interpolation=cv2.INTER_AREA)
    inner = cv2.GaussianBlur(small, (0, 0), max(1.0, min(w, h) / 64), borderType=cv2.BORDER_CONSTANT)
    inner = cv2.resize(inner, (w, h)).astype(np.float32)[..., None] / 255
    weave = 0.03 * cv2.resize(rng.standard_normal((h // 3 + 2, w // 3 + 2), np.float32), (w, h))[..., None]
    shaded = np.clip(colour * (0.45 + 0.55 * inner + weave), 0, 1)
    part = picture[y : y + h, x : x + w]
    part += mask[..., None].astype(np.float32) / 255 * (shaded.astype(np.float32) - part)


# ---- the records ----


def _image_record(ident: int, size: tuple[int, int]) -> dict[str, Any]:
    return {
        "license": 1,
        "file_name": f"{ident:012d}.jpg",
        "coco_url": "",
        "height": size[0],
        "width": size[1],
        "date_captured": "",
        "flickr_url": "",
        "id": ident,
    }


def _annotation(rng: np.random.Generator, scene: _Scene, ident: int, image_id: int) -> dict[str, Any]:
    size = scene.view.size
    body, seen = _body_keypoints(scene)
    points = [body[seen]] + [to_image(scene.view, scene.hands.vertices[h]) for h in (0, 1) if scene.hands.present[h]]
    points.append(body[:1] - (0, 0.15 * scene.metre))
    points += [
        scene.body_image[f"{name}_shoulder"][None] + (out * 0.07 * scene.metre, 0)
        for name, out in (("right", -1), ("left", 1))
    ]
    bbox = clip_box(box_of(np.concatenate(points), 1.04), size)
    record = {
        "segmentation": [_corners(bbox)],
        "num_keypoints": int(seen.sum()),
        "area": round(float(bbox[2] * bbox[3]), 2),
        "iscrowd": 0,
        "keypoints": [round(n) for x, y, v in np.column_stack((body, 2 * seen)) for n in (x * (v > 0), y * (v > 0), v)],
        "image_id": image_id,
        "bbox": rounded(bbox, 2),
        "category_id": 1,
        "id": ident,
    }
    for part, numbers in (("face", 204), ("foot", 18)):
        record |= {f"{part}_kpts": [0.0] * numbers, f"{part}_valid": False}
    record["face_box"] = [0.0] * 4
    for side in (LEFT, RIGHT):
        record |= _hand_fields(rng, scene, side)
    return record


def _body_keypoints(scene: _Scene) -> tuple[np.ndarray, np.ndarray]:
    """(17, 2) px and (17,) whether a keypoint is in the picture."""
    nowhere = np.full(2, -1.0)
    points = np.stack([scene.body_image.get(name, nowhere) for name in BODY_KEYPOINTS])
    return points, ((points >= 0) & (points < scene.view.size[::-1])).all(1)


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
    return {
        name: {"mano_param": mano_record(scene.hands, side), "cam_param": camera}
        if annotation[f"{name}hand_valid"]
        else None
        for side, name in enumerate(SIDES)
    }


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


def _corners(box: np.ndarray) -> list[float]:
    x, y, w, h = rounded(box, 2)
    return [x, y, x + w, y, x + w, y + h, x, y + h]
