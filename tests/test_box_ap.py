"""COCO's box AP against a computation by hand."""

import numpy as np
import pytest

from common.box_ap import Detections, box_precision, coco_results


def iou(a: np.ndarray, b: np.ndarray) -> float:
    size = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = size.prod() if (size > 0).all() else 0.0
    return shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared)


def by_hand(found: Detections, side: int, threshold: float) -> tuple[float, float]:
    """AP and recall of one category at one threshold, as COCO defines them: precision at 101 recalls."""
    order = np.argsort(-found.scores[:, side], kind="stable")
    hits = [
        found.annotated[n, side] and iou(found.boxes_image[n, side], found.true_boxes_image[n, side]) >= threshold
        for n in order
    ]
    true = np.cumsum(hits)
    recall, precision = true / found.annotated[:, side].sum(), true / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
    return float(np.mean([precision[place] if place < len(precision) else 0.0 for place in at])), recall[-1]


@pytest.fixture
def found() -> Detections:
    """20 images: boxes of all qualities, hands that are not annotated, confidences that tell them apart by half."""
    rng = np.random.default_rng(3)
    corner = rng.uniform(0, 300, (20, 2, 2))
    true = np.concatenate([corner, corner + rng.uniform(30, 90, (20, 2, 2))], -1)
    boxes = true + rng.normal(0, 1, (20, 2, 4)) * rng.choice([0.5, 4, 12], (20, 2, 1))
    annotated = rng.random((20, 2)) < 0.7
    scores = rng.random((20, 2)) * np.where(annotated, 1, 0.6)
    return Detections(np.arange(100, 120), boxes, scores, true * annotated[..., None], annotated)


def test_equals_a_computation_by_hand(found: Detections) -> None:
    results = box_precision(found)
    for side, name in enumerate(("right", "left")):
        values = {t: by_hand(found, side, t) for t in np.linspace(0.5, 0.95, 10).round(2)}
        assert 0.05 < results[name]["AP"] < 0.95 and results[name]["AP50"] > results[name]["AP75"]
        assert results[name]["AP"] == pytest.approx(np.mean([ap for ap, _ in values.values()]))
        assert results[name]["AR"] == pytest.approx(np.mean([recall for _, recall in values.values()]))
        assert results[name]["AP50"] == pytest.approx(values[0.5][0])
        assert results[name]["AP75"] == pytest.approx(values[0.75][0])
    for key, value in results["both"].items():
        assert value == pytest.approx((results["right"][key] + results["left"][key]) / 2)


def test_perfect_boxes_and_no_boxes(found: Detections) -> None:
    perfect = found._replace(boxes_image=found.true_boxes_image, annotated=np.ones_like(found.annotated))
    perfect = perfect._replace(true_boxes_image=found.boxes_image, boxes_image=found.boxes_image)
    assert box_precision(perfect)["both"] == {"AP": 1.0, "AP50": 1.0, "AP75": 1.0, "AR": 1.0}
    right_only = found._replace(annotated=found.annotated & [True, False])
    assert set(box_precision(right_only)) == {"right", "both"}
    assert box_precision(found._replace(annotated=np.zeros_like(found.annotated))) == {}


def test_a_result_file_has_what_coco_reads(found: Detections) -> None:
    entries = coco_results(found)
    assert len(entries) == 40 and set(entries[0]) == {"image_id", "category_id", "bbox", "score"}
    x0, y0, x1, y1 = found.boxes_image[0, 1]
    assert entries[1]["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0])
    assert (entries[1]["image_id"], entries[1]["category_id"]) == (100, 2)
