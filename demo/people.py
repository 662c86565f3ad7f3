"""Finds people in photos and frames, and says which person a hand belongs to.

A person is a box, and a box enters at one place: the predictor's body box. Nothing here knows the network.

A detector is a function: list of (H, W, 3) uint8 RGB images -> for each (boxes (P, 4) xyxy px, scores (P,)), people
only, doubles removed.
"""

import importlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import nn
from torchvision.models.detection import (
    FasterRCNN_MobileNet_V3_Large_FPN_Weights,
    FasterRCNN_ResNet50_FPN_V2_Weights,
    fasterrcnn_mobilenet_v3_large_fpn,
    fasterrcnn_resnet50_fpn_v2,
)

from common.errors import UserError, error_context, is_out_of_memory
from common.options import VIDEO_SUFFIXES
from common.types import SIDES
from common.utils.files import check_is_file
from common.weights import fetch_weights, weights_file
from demo.hands import PersonHands, PhotoHands

Boxes = TypeVar("Boxes")  # of a photo or of a video's frames
Detections = tuple[np.ndarray, np.ndarray]  # boxes (P, 4) xyxy px, scores (P,)
Detector = Callable[[list[np.ndarray]], Sequence[Detections]]

DETECTORS = {
    "fast": (fasterrcnn_mobilenet_v3_large_fpn, FasterRCNN_MobileNet_V3_Large_FPN_Weights.COCO_V1),
    "accurate": (fasterrcnn_resnet50_fpn_v2, FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1),
}
PERSON = 1  # COCO's class
LOWEST_SCORE = 0.1  # of what a detector reports; a tracker uses also what is below `min_person`
MIN_SIDE = 48  # px; in a smaller box hands cannot be seen
SAME_HAND = 0.3  # two people's hands whose joints' centres are nearer than this share of the hand's size are one


class Person(NamedTuple):
    """One person's box in one image."""

    id: int  # from 1
    source: str  # "photo" (the whole image), "detector" or "boxes" (given)
    score: float  # of the detector; 1 where there is none
    box_image: np.ndarray  # (4,) xyxy px


# ---- Detectors ----


def load_detector(name: str, device: torch.device) -> Detector:
    """A detector by its name: "fast", "accurate" or "MODULE:FUNCTION".

    Raises:
        UserError: its weights are not to be found or are damaged, or there is no such function.
    """
    if name in DETECTORS:
        return TorchvisionDetector(name, device)
    module, _, function = name.partition(":")
    if not function:
        raise UserError(f"--detector {name}: choose {', '.join(DETECTORS)}, or name your own as MODULE:FUNCTION")
    with error_context(f"--detector {name}", ImportError, AttributeError, advice="check its name and PYTHONPATH"):
        found = getattr(importlib.import_module(module), function)
    if not callable(found):
        raise UserError(f"--detector {name} is not a function")
    return found


class TorchvisionDetector:
    """A COCO detector of torchvision, people only.

    Args:
        name: of `DETECTORS`.
        device: where it runs.

    Raises:
        UserError: the weights cannot be downloaded, or are not of this network.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        build, weights = DETECTORS[name]
        self.device = device
        # torchvision's own loading would unpickle without weights_only.
        self.network: nn.Module = build(weights=None, weights_backbone=None, box_score_thresh=LOWEST_SCORE)
        state = fetch_weights(weights.url, f"the {name} person detector", "use --people one")
        own = self.network.state_dict()
        # Files with frozen batch norm do not count batches.
        missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
        odd = [key for key, value in state.items() if key not in own or getattr(value, "shape", ()) != own[key].shape]
        if missing or odd:
            raise UserError(
                f"the weights of the {name} person detector do not fit it ({len(missing)} tensors missing, "
                f"{len(odd)} unexpected); delete {weights_file(weights.url)} and start again"
            )
        self.network.load_state_dict({**own, **state})
        self.network.to(device).eval()

    @torch.inference_mode()
    def __call__(self, images: list[np.ndarray]) -> list[Detections]:
        tensors = [torch.from_numpy(image).to(self.device).permute(2, 0, 1).float() / 255 for image in images]
        found = []
        for result in self.network(tensors):
            people = result["labels"] == PERSON
            found.append((result["boxes"][people].cpu().numpy(), result["scores"][people].cpu().numpy()))
        return found


# ---- Boxes ----


def detect_people(detector: Detector, images: list[np.ndarray]) -> list[Detections]:
    """Run a detector and check what it returns. Boxes may still be unusable, see `usable_boxes`.

    Raises:
        UserError: the detector fails, or returns something else than boxes and scores for each image.
    """
    try:
        found = list(detector(images))
    except UserError:
        raise
    except Exception as error:  # a user's function may raise anything
        if is_out_of_memory(error):
            raise
        raise UserError(f"the person detector failed: {type(error).__name__}: {error}") from error
    if len(found) != len(images):
        raise UserError(f"the person detector returned {len(found)} results for {len(images)} images")
    checked = []
    for item in found:
        with error_context("the person detector must return (boxes, scores) for each image", TypeError, ValueError):
            boxes, scores = item
            boxes, scores = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(scores, np.float64).reshape(-1)
            if len(boxes) != len(scores):
                raise ValueError(f"{len(boxes)} boxes and {len(scores)} scores")
        checked.append((boxes, scores))
    return checked


def usable_boxes(boxes: np.ndarray, image_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Cut boxes to the image, and find those that are large enough.

    They are cut here because the published body box shifts a box that crosses the left or the upper border.

    Args:
        boxes: (P, 4) xyxy px.
        image_size: (h, w).

    Returns:
        boxes (P, 4) cut; usable (P,) bool; what is wrong with boxes that no detector should report.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    height, width = image_size
    finite = np.asarray(np.isfinite(boxes).all(1))
    cut = np.clip(np.where(finite[:, None], boxes, 0), 0, (width, height, width, height))
    upright = finite & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    sides = cut[:, 2:] - cut[:, :2]
    problems = []
    for index in np.flatnonzero(~upright | (sides.min(1) <= 0)):
        reason = "not finite" if not finite[index] else "reversed or empty" if not upright[index] else "outside"
        problems.append(f"box {np.round(boxes[index], 1).tolist()} is {reason}: left out")
    return cut, upright & (sides.min(1) >= MIN_SIDE), problems


def largest_people(
    detections: Detections, image_size: tuple[int, int], min_score: float, max_people: int
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Those whose boxes can be used and whose score is high enough, the largest first, at most `max_people`.

    Returns:
        boxes (P, 4) xyxy px, cut to the image; scores (P,); and what was wrong with boxes.
    """
    boxes, usable, problems = usable_boxes(detections[0], image_size)
    usable &= np.nan_to_num(detections[1], nan=-1.0) >= min_score
    rows = np.flatnonzero(usable)
    areas = (boxes[rows, 2:] - boxes[rows, :2]).prod(1)
    rows = rows[np.argsort(-areas, kind="stable")[:max_people]]
    return boxes[rows], detections[1][rows], problems


def choose_people(
    detections: Detections, image_size: tuple[int, int], min_score: float = 0.5, max_people: int = 8
) -> tuple[list[Person], list[str]]:
    """The people of one photo, ids from left to right; the whole photo if nobody is found.

    A detector often finds nobody in photos of hands, arms or headless bodies, which the network can read as a whole.

    Args:
        detections: of `detect_people`.
        image_size: (h, w).
        min_score: people below are left out.
        max_people: the largest are kept.

    Returns:
        The people, and what was wrong with boxes.
    """
    boxes, scores, problems = largest_people(detections, image_size, min_score, max_people)
    found = [("detector", float(score), box) for score, box in zip(scores, boxes, strict=True)]
    return number_people(found) or [whole_photo(image_size)], problems


def number_people(found: list[tuple[str, float, np.ndarray]]) -> list[Person]:
    """(source, score, box) -> people with ids 1, 2, ... from left to right."""
    ordered = sorted(found, key=lambda item: (item[2][0] + item[2][2], item[2][1]))
    return [Person(number, *item) for number, item in enumerate(ordered, 1)]


def whole_photo(image_size: tuple[int, int]) -> Person:
    """The whole photo as one person's crop, as published."""
    height, width = image_size
    return Person(1, "photo", 1.0, np.array([0, 0, width, height]))


def read_boxes(path: Path) -> dict[str, np.ndarray]:
    """`--boxes FILE`: photo's name -> (P, 4) xyxy px. Videos in it are left to `read_video_boxes`.

    Raises:
        UserError: the file cannot be read, or is not {"photo.jpg": [[x1, y1, x2, y2], ...]}.
    """
    return {name: _boxes(path, name, rows) for name, rows in _read_json(path).items() if not _is_video(name)}


def read_video_boxes(path: Path) -> dict[str, list[np.ndarray]]:
    """`--boxes FILE`: video's name -> of each frame (P, 4) xyxy px. Photos in it are left to `read_boxes`.

    Raises:
        UserError: the file cannot be read, or is not {"clip.mp4": [[[x1, y1, x2, y2], ...], ...]}.
    """
    videos = {}
    for name, frames in _read_json(path).items():
        if _is_video(name):
            if not isinstance(frames, list):
                raise UserError(f"--boxes {path}: {name} must have a list of boxes for each of its frames")
            videos[name] = [_boxes(path, name, rows) for rows in frames]
    return videos


def _is_video(name: str) -> bool:
    return Path(name).suffix.lower() in VIDEO_SUFFIXES


def _read_json(path: Path) -> dict[str, Any]:
    with error_context(f"cannot read --boxes {path}", ValueError, RecursionError):
        check_is_file(path)
        content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise UserError(f'--boxes {path} must hold {{"photo.jpg": [[x1, y1, x2, y2], ...], ...}}')
    return content


def _boxes(path: Path, name: str, rows: Any) -> np.ndarray:
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 4 for row in rows):
        raise UserError(
            f'--boxes {path} must hold {{"photo.jpg": [[x1, y1, x2, y2], ...], ...}}, of a video a list of boxes for '
            f"each frame; {name} has something else"
        )
    if not all(type(value) in (int, float) and math.isfinite(value) for row in rows for value in row):
        raise UserError(f"--boxes {path}: a box of {name} holds something that is not a finite number")
    return np.array(rows, np.float64).reshape(-1, 4)


def given_people(boxes: np.ndarray, image_size: tuple[int, int]) -> tuple[list[Person], list[str]]:
    """The people of given boxes, numbered from left to right; the whole photo if none can be used.

    Returns:
        The people, and what is wrong with the boxes that are left out.
    """
    cut, usable, problems = usable_boxes(boxes, image_size)
    problems += [
        f"box {np.round(box, 1).tolist()} is smaller than {MIN_SIDE} px: left out"
        for box, good in zip(cut, usable, strict=True)
        if not good and 0 < (box[2:] - box[:2]).min() < MIN_SIDE
    ]
    return number_people([("boxes", 1.0, box) for box in cut[usable]]) or [whole_photo(image_size)], problems


def boxes_of(boxes: Mapping[str, Boxes], photo: Path) -> Boxes:
    """The boxes of a photo from `read_boxes`, or of a video: by its path, or else by its file name.

    Raises:
        UserError: it is not named.
    """
    for name in (str(photo), photo.name):
        if name in boxes:
            return boxes[name]
    what = "video" if _is_video(photo.name) else "photo"
    raise UserError(f'--boxes does not name this {what}: add "{photo.name}": [[x1, y1, x2, y2], ...]')


# ---- Whose hand? ----


def report_people(people: Sequence[Person], results: Sequence[PhotoHands]) -> list[PersonHands]:
    """Each person's hands with the person's box, without the hands of neighbours."""
    own = drop_neighbours_hands(people, results)
    return [PersonHands(**vars(result), **person._asdict()) for person, result in zip(people, own, strict=True)]


def drop_neighbours_hands(people: Sequence[Person], results: Sequence[PhotoHands]) -> list[PhotoHands]:
    """Leave out hands that a person's crop shows of a neighbour.

    Crops overlap, so one hand may be reported for two people. Two hands of two people whose 2D joints' centres are
    nearer than `SAME_HAND` of the hand's size are one. It belongs to the person whose box centre is nearer, in units
    of that box.

    Args:
        people: with their boxes.
        results: the hands of each.
    """
    joints = np.zeros((len(results), 2, 21, 2))
    shown = np.zeros((len(results), 2), bool)
    for index, result in enumerate(results):
        for hand in result.hands:
            side = SIDES.index(hand.side)
            joints[index, side], shown[index, side] = hand.joints_image, True
    owners = neighbours_hands(joints, shown, np.stack([person.box_image for person in people]))
    return [
        _without(
            result,
            {
                SIDES[side]: f"this is person {people[owner].id}'s hand"
                for side, owner in enumerate(owners[index].tolist())
                if owner >= 0
            },
        )
        for index, result in enumerate(results)
    ]


def neighbours_hands(joints_image: np.ndarray, shown: np.ndarray, boxes_image: np.ndarray) -> np.ndarray:
    """Which hands belong to somebody else, see `drop_neighbours_hands`.

    Args:
        joints_image: (P, 2, J, 2) px.
        shown: (P, 2) bool.
        boxes_image: (P, 4) xyxy px.

    Returns:
        (P, 2) int: index of the person whose hand it is; -1 where it is the person's own, or not shown.
    """
    owners = np.full(shown.shape, -1)
    hands = np.argwhere(shown).tolist()
    middles, sizes = joints_image.mean(2), np.ptp(joints_image, axis=2).max(-1)
    for place, (p, side_p) in enumerate(hands):
        for q, side_q in hands[place + 1 :]:
            if p == q or owners[p, side_p] >= 0 or owners[q, side_q] >= 0:
                continue
            a, b = middles[p, side_p], middles[q, side_q]
            # Nothing is said of a hand that is not finite.
            if not np.linalg.norm(a - b) < SAME_HAND * (sizes[p, side_p] + sizes[q, side_q]) / 2:
                continue
            to_p, to_q = (_distance_in_boxes((a + b) / 2, boxes_image[n]) for n in (p, q))
            if to_p <= to_q:
                owners[q, side_q] = p
            else:
                owners[p, side_p] = q
    return owners


def _distance_in_boxes(point: np.ndarray, box: np.ndarray) -> float:
    """From a box's centre, in units of its width and height."""
    return float(np.linalg.norm((point - (box[:2] + box[2:]) / 2) / np.maximum(box[2:] - box[:2], 1e-6)))


def _without(result: PhotoHands, gone: dict[str, str]) -> PhotoHands:
    if not gone:
        return result
    right, left = (None if side in gone else getattr(result, side) for side in SIDES)
    return replace(result, right=right, left=left, dropped={**result.dropped, **gone}, pair=False)
