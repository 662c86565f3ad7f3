"""COCO's average precision of the hand detector, by pycocotools.

Each sample is an image of COCO's: one person, with the annotated hand boxes as truth and the network's two boxes as
detections. A box of a hand that is not annotated counts as a false positive, so the confidences matter. The categories
are right (1) and left (2).
"""

import contextlib
import io
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from common.types import SIDES

CATEGORIES = [{"id": number, "name": f"{side} hand"} for number, side in enumerate(SIDES, 1)]
IOU_THRESHOLDS = {"AP50": 0.5, "AP75": 0.75}


class Detections(NamedTuple):
    """Hand boxes of a test set, N samples.

    Attributes:
        image_ids: (N,) int, each once.
        boxes_image: (N, 2, 4) xyxy px, predicted.
        scores: (N, 2) confidences.
        true_boxes_image: (N, 2, 4) xyxy px.
        annotated: (N, 2) bool.
    """

    image_ids: np.ndarray
    boxes_image: np.ndarray
    scores: np.ndarray
    true_boxes_image: np.ndarray
    annotated: np.ndarray


def box_precision(found: Detections) -> dict[str, dict[str, float]]:
    """AP (mean over IoU 0.50 to 0.95), AP50, AP75 and AR, from 0 to 1.

    Returns:
        "right", "left", and "both" (their mean, as COCO averages over categories) -> name -> value; a side without an
        annotated box is left out.
    """
    truth = COCO()
    truth.dataset = {
        "images": [{"id": image} for image in found.image_ids.tolist()],
        "categories": CATEGORIES,
        "annotations": _boxes(found.image_ids, found.true_boxes_image, found.annotated),
    }
    with contextlib.redirect_stdout(io.StringIO()):  # both print their progress
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(coco_results(found)), "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, -1]  # (IoU thresholds, recall thresholds, categories)
    recall = evaluation.eval["recall"][..., 0, -1]  # (IoU thresholds, categories)
    at = {name: np.isclose(evaluation.params.iouThrs, value) for name, value in IOU_THRESHOLDS.items()}
    results = {}
    for index, side in enumerate(SIDES):
        if found.annotated[:, index].any():
            values = {"AP": precision[..., index], **{name: precision[rows, :, index] for name, rows in at.items()}}
            results[side] = {name: float(x.mean()) for name, x in {**values, "AR": recall[:, index]}.items()}
    if results:
        results["both"] = {name: float(np.mean([x[name] for x in results.values()])) for name in ("AP", *at, "AR")}
    return results


def coco_results(found: Detections) -> list[dict[str, Any]]:
    """The detections as the list of a COCO result file."""
    everything = np.ones_like(found.annotated)
    boxes = _boxes(found.image_ids, found.boxes_image, everything)
    scores = found.scores.ravel().tolist()
    keys = ("image_id", "category_id", "bbox")
    return [{key: box[key] for key in keys} | {"score": score} for box, score in zip(boxes, scores, strict=True)]


def _boxes(image_ids: np.ndarray, boxes_image: np.ndarray, mask: np.ndarray) -> list[dict[str, Any]]:
    """COCO's annotations of the boxes in the mask: x, y, w, h."""
    boxes_xywh = np.concatenate([boxes_image[..., :2], boxes_image[..., 2:] - boxes_image[..., :2]], -1).astype(float)
    rows, sides = np.nonzero(mask)
    return [
        {
            "id": number,
            "image_id": int(image_ids[row]),
            "category_id": int(side) + 1,
            "bbox": boxes_xywh[row, side].tolist(),
            "area": float(boxes_xywh[row, side, 2:].prod()),
            "iscrowd": 0,
        }
        for number, (row, side) in enumerate(zip(rows, sides, strict=True), 1)  # 0 would mean: not matched
    ]
