"""Evaluation: errors of single items, and the averages over a test set under the published names.

| metric   | item  | error of an item                                                  | evaluated where    |
|----------|-------|-------------------------------------------------------------------|--------------------|
| bbox IoU | hand  | IoU of predicted and true box, in the image                       | has a true box     |
| MRRPE    | image | left wrist - right wrist                                          | both wrists known  |
| MPVPE    | hand  | mean over vertices, wrists (regressed from the meshes) aligned    | has a true mesh    |
| RRVE     | image | mean over both hands' vertices, right wrists aligned              | both true meshes   |
| MPJPE    | joint | wrists aligned                                                    | joint is annotated |
| COCO box | hand  | average precision and recall, see `common.box_ap` (MSCOCO only)   | all                |

MPJPE averages each of the 42 joints over its images, then the 42. A dataset's `EvalProtocol` selects its metrics.
Items are in metres; the averages are in mm, IoU in percent.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from common.box_ap import Detections, box_precision
from common.nets.mano import TwoHandMano
from common.types import HAND_TYPES, LEFT, RIGHT, SIDES, GroundTruth, Prediction
from common.utils.affine import apply_affine
from common.utils.boxes import iou, restore_box
from common.utils.frames import Frames, rescale
from common.utils.joints import JOINTS, WRIST

KNUCKLE = JOINTS.index("Middle_1")
T = TypeVar("T")
INTERACTING = HAND_TYPES.index("interacting")
MM, PERCENT = 1000.0, 100.0


@dataclass(frozen=True)
class EvalProtocol:
    """Which metrics a dataset has, and over which hands they are averaged.

    Attributes:
        true_joints: MPJPE against "keypoints", or against "mesh": joints regressed from the true mesh. None: no MPJPE.
        meshes: there are MRRPE, MPVPE and RRVE.
        by_hand_type: averages over single and over interacting hands, beside those over all. A single hand is the one
            that the annotation names; RRVE needs both.
        missing_as_zeros: as published, a hand without a mesh is evaluated against one of zeros. Results without such
            hands are given beside the published ones.
        wrists_of_meshes: MRRPE is between the wrists of the meshes. As published, the wrist of a missing mesh is at
            the origin; MRRPE over the pairs with both meshes is given beside it.
    """

    true_joints: str | None = None
    meshes: bool = True
    by_hand_type: bool = True
    missing_as_zeros: bool = False
    wrists_of_meshes: bool = False


PROTOCOLS = {
    "InterHand26M": EvalProtocol(true_joints="keypoints"),
    "HIC": EvalProtocol(wrists_of_meshes=True),
    "ReInterHand": EvalProtocol(true_joints="mesh", by_hand_type=False, missing_as_zeros=True),
    "MSCOCO": EvalProtocol(meshes=False),
}


class Estimate(NamedTuple):
    """The part of a prediction that is evaluated."""

    boxes_image: Tensor  # (N, 2, 4) xyxy
    vertices_rel: Tensor  # (N, 2, V, 3) m
    joints_rel: Tensor  # (N, 2, J, 3) m
    rel_transl: Tensor  # (N, 3) m
    box_scores: Tensor  # (N, 2) confidences


def to_estimate(prediction: Prediction, crop_to_image: Tensor, frames: Frames) -> Estimate:
    """The part of a prediction that is evaluated, boxes in the image.

    Args:
        crop_to_image: (N, 2, 3), of the sample.
    """
    boxes_body = restore_box(
        prediction.box_centers_body_hm.float(), prediction.box_sizes_body_hm.float(), frames, aspect=None, extension=1.0
    )
    return Estimate(
        boxes_to_image(boxes_body, crop_to_image, frames),
        prediction.vertices_rel.float(),
        prediction.joints_rel.float(),
        prediction.rel_transl.float(),
        prediction.box_scores.float(),
    )


def boxes_to_image(boxes_body: Tensor, crop_to_image: Tensor, frames: Frames) -> Tensor:
    """(N, 2, 4) xyxy in `body` -> (N, 2, 4) xyxy in `image`, by two corner points as published."""
    corners_crop = rescale(boxes_body.unflatten(-1, (2, 2)), frames.body, frames.crop)
    return apply_affine(crop_to_image[:, None], corners_crop).flatten(-2)


# ---- Errors of items, m ----


def joint_error(predicted_rel: Tensor, true_rel: Tensor) -> Tensor:
    """(..., P, 3) x (..., P, 3) -> (..., P) distances, in the unit of the points."""
    x, y, z = (predicted_rel - true_rel).unbind(-1)  # several times faster than a norm over an axis of 3
    return (x * x).addcmul_(y, y).addcmul_(z, z).sqrt_()


def vertex_error(predicted_rel: Tensor, true_rel: Tensor) -> Tensor:
    """(..., V, 3) x (..., V, 3) -> (...) mean distance, in the unit of the points."""
    return joint_error(predicted_rel, true_rel).mean(-1)


def align_root(points: Tensor, joints: Tensor, root: int = WRIST) -> Tensor:
    """Points (..., P, 3), relative to joint `root` of `joints` (..., J, 3)."""
    return points - joints[..., root : root + 1, :]


def bone_scale(predicted_joints: Tensor, true_joints: Tensor) -> Tensor:
    """(..., J, 3) x (..., J, 3) -> (..., 1, 1): true over predicted length from the wrist to the middle knuckle."""

    def length(joints: Tensor) -> Tensor:
        return torch.linalg.vector_norm(joints[..., KNUCKLE, :] - joints[..., WRIST, :], dim=-1)

    return (length(true_joints) / length(predicted_joints).clamp(min=1e-9))[..., None, None]


def procrustes(predicted: Tensor, true: Tensor, mask: Tensor | None = None) -> Tensor:
    """The predicted points after the translation, rotation and scale (no reflection) that fit them best to the true.

    Least squares; Umeyama, "Least-squares estimation of transformation parameters between two point patterns", 1991.

    Args:
        predicted, true: (..., P, 3).
        mask: (..., P) bool, the points to fit; default: all.

    Returns:
        (..., P, 3), in the frame of `true`.
    """
    if mask is None:
        mean_predicted, mean_true = predicted.mean(-2, keepdim=True), true.mean(-2, keepdim=True)
        weighted = centered = predicted - mean_predicted
    else:
        weights = mask[..., None].to(predicted.dtype)
        number = weights.sum(-2, keepdim=True).clamp(min=1)
        mean_predicted = (predicted * weights).sum(-2, keepdim=True) / number
        mean_true = (true * weights).sum(-2, keepdim=True) / number
        centered = predicted - mean_predicted
        weighted = centered * weights
    # Only the 3 x 3 matrix needs double precision, which Apple's GPUs lack.
    host = "cpu" if predicted.device.type == "mps" else predicted.device
    covariance = (weighted.transpose(-1, -2) @ (true - mean_true)).to(host).double()
    u, singular, vt = torch.linalg.svd(covariance)
    sign = torch.ones_like(singular)
    sign[..., 2] = torch.linalg.det(u @ vt).sign()
    rotation = (u * sign[..., None, :]) @ vt  # for row vectors
    variance = (centered * weighted).sum((-1, -2)).to(host).double().clamp(min=1e-18)
    scale = (singular * sign).sum(-1) / variance
    linear = (rotation * scale[..., None, None]).to(predicted.dtype).to(predicted.device)
    return (linear.transpose(-1, -2) @ centered.transpose(-1, -2)).transpose(-1, -2).add_(mean_true)


@torch.no_grad()
def compute_errors(
    protocol: EvalProtocol,
    mano: TwoHandMano,
    estimate: Estimate,
    truth: GroundTruth,
    joints_known: Tensor | None = None,
) -> dict[str, Tensor]:
    """Errors of all items of a batch (m; IoU from 0 to 1), and which are evaluated (bool). Nothing is modified.

    Args:
        mano: regresses the joints of meshes.
        truth: from `common.targets.complete_truth`.
        joints_known: (N, 2, J), joints with a true position in 3D. The published results include joints that are only
            annotated in 2D; the others do not.
    """
    items = {
        "hand_type": truth.hand_type,
        "box_iou": iou(estimate.boxes_image, truth.boxes_image),
        "box_mask": truth.boxes_valid.bool(),
    }
    if not protocol.meshes:
        return items | {"box": estimate.boxes_image, "box_score": estimate.box_scores, "true_box": truth.boxes_image}
    mesh_mask = truth.vertices_valid.bool()
    predicted, true = _axes_apart(estimate.vertices_rel), _axes_apart(truth.vertices_cam)
    predicted_joints, true_joints = mano.regress_joints(predicted), mano.regress_joints(true)
    predicted, true = align_root(predicted, predicted_joints), align_root(true, true_joints)
    vertex_errors = vertex_error(predicted, true)
    moved_left_error = vertex_error(
        predicted[:, LEFT] + estimate.rel_transl[:, None], true[:, LEFT] + truth.rel_transl[:, None]
    )
    items |= {
        "mesh_mask": mesh_mask,
        "pair_mask": mesh_mask.all(1),
        "vertex_error": vertex_errors,
        "rel_error": joint_error(estimate.rel_transl, truth.rel_transl),
        "rel_mask": truth.rel_transl_valid.bool(),
        "pair_error": (vertex_errors[:, RIGHT] + moved_left_error) / 2,
        "knuckle_vertex_error": _knuckle_error(predicted, true, predicted_joints, true_joints).mean(-1),
        "procrustes_vertex_error": vertex_error(procrustes(predicted, true), true),
    }
    if protocol.true_joints is None:
        return items

    if protocol.true_joints == "keypoints":
        true_joints, mask = truth.joints_cam, truth.joints_scored.bool()
        known = mask if joints_known is None else mask & joints_known.bool()
    else:
        mask = torch.ones_like(truth.joints_scored, dtype=torch.bool)
        known = mesh_mask[..., None].expand_as(mask)
    predicted, true = align_root(estimate.joints_rel, estimate.joints_rel), align_root(true_joints, true_joints)
    return items | {
        "joint_error": joint_error(predicted, true),
        "joint_mask": mask,
        "knuckle_joint_error": _knuckle_error(predicted, true, predicted, true),
        "knuckle_joint_mask": known & (known[..., WRIST] & known[..., KNUCKLE])[..., None],
        "procrustes_joint_error": joint_error(procrustes(predicted, true, known), true),
        "procrustes_joint_mask": known & (known.sum(-1) >= 3)[..., None],
    }


def _axes_apart(points: Tensor) -> Tensor:
    """(..., P, 3), the same points with all x before all y before all z in memory: what follows is 5 times faster."""
    return points.transpose(-1, -2).contiguous().transpose(-1, -2)


def _knuckle_error(points: Tensor, true_points: Tensor, joints: Tensor, true_joints: Tensor) -> Tensor:
    """Middle knuckle on middle knuckle, at the true bone length; each hand's points are relative to its own wrist."""
    scaled = align_root(points, align_root(joints, joints), KNUCKLE).mul_(bone_scale(joints, true_joints))
    return joint_error(scaled, align_root(true_points, align_root(true_joints, true_joints), KNUCKLE))


# ---- Averages over a test set ----


@dataclass(frozen=True)
class MetricResult:
    """One line of the evaluation."""

    label: str  # as published; our own where the metric is not among the published
    value: float | None  # None: there is no sample
    unit: str  # " mm" or ""
    count: int  # items averaged
    left_out: str = ""  # the part of the average without samples; where there is one, the published value is NaN
    published: bool = True

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.label}: no sample"
        return f"{self.label}: {self.value:.2f}{self.unit}{f' ({self.left_out})' if self.left_out else ''}"


class Evaluator:
    """Collects the errors of items and averages them.

    The results depend on neither the order nor the grouping of the items: they are sorted by their index in the
    dataset before anything is summed. Evaluators of several processes can be merged.

    Args:
        protocol: of `PROTOCOLS`.
        mano: on the device of predictions and truth.
    """

    def __init__(self, protocol: EvalProtocol, mano: TwoHandMano) -> None:
        self.protocol, self.mano = protocol, mano
        self._items: dict[str, np.ndarray] = {}  # longer than `_count`: there is room for more
        self._count = 0

    def update(
        self,
        indices: Sequence[int] | Tensor,
        estimate: Estimate,
        truth: GroundTruth,
        joints_known: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            indices: (N,) of the samples in their dataset; each may be added once.
            estimate, truth, joints_known: as in `compute_errors`.
        """
        items = compute_errors(self.protocol, self.mano, estimate, truth, joints_known)
        part = {name: values.cpu().numpy() for name, values in items.items()}
        self._append({"index": np.asarray(indices, np.int64), **part})

    def _append(self, part: dict[str, np.ndarray]) -> None:
        # Not a list of parts: many small arrays that stay, between large ones that are freed, fragment the heap.
        count = self._count + len(part["index"])
        for name, values in part.items():
            held = self._items.get(name)
            if held is None or len(held) < count:
                larger = np.empty((max(2 * count, 1024), *values.shape[1:]), values.dtype)
                if held is not None:
                    larger[: self._count] = held[: self._count]
                self._items[name] = held = larger
            held[self._count : count] = values
        self._count = count

    def state(self) -> dict[str, np.ndarray]:
        """All items, sorted by index: plain arrays, to be sent to another process.

        Raises:
            ValueError: a sample was added twice.
        """
        if not self._count:
            return {}
        order = np.argsort(self._items["index"][: self._count], kind="stable")
        items = {name: values[: self._count][order] for name, values in self._items.items()}
        twice = items["index"][1:][np.diff(items["index"]) == 0]
        if len(twice):
            raise ValueError(f"sample {twice[0]} of the dataset was evaluated twice")
        return items

    def merge(self, states: Iterable[dict[str, np.ndarray]]) -> None:
        """Add the `state()` of other evaluators of the same protocol."""
        for state in states:
            if state:
                self._append(state)

    def __len__(self) -> int:
        return self._count

    def compute(self) -> dict[str, float]:
        """Label as printed -> value, mm or percent. Metrics without samples are left out."""
        return {result.label: result.value for result in self.results() if result.value is not None}

    def summary(self) -> str:
        """The results, one per line: first those of the published evaluation, in its wording."""
        results = self.results()
        published = [str(result) for result in results if result.published]
        more = [f"  {result}" for result in results if not result.published]
        return "\n".join([*published, *(["not among the published figures:", *more] if more else [])])

    def results(self) -> list[MetricResult]:
        """All results of the protocol, those of the published evaluation first."""
        items = self.state()
        if not items:
            return []
        protocol = self.protocol
        results = [_mean("bbox IoU", items["box_iou"], items["box_mask"], PERCENT)]
        if not protocol.meshes:
            found = self.detections()
            return results + (_box_precision(found) if found else [])
        results.append(_mean("MRRPE", items["rel_error"], items["rel_mask"]))
        hands = self._hands(items, items["mesh_mask"] | protocol.missing_as_zeros)
        results += [_mean(f"MPVPE{name}", items["vertex_error"], mask) for name, mask in hands.items()]
        both = items["pair_mask"] & (items["hand_type"] == INTERACTING)
        if protocol.by_hand_type:
            results.append(_mean("RRVE for interacting hand sequences", items["pair_error"], both))
        else:
            results.append(_mean("RRVE", items["pair_error"], both | protocol.missing_as_zeros))
        if protocol.true_joints:
            results += self._joint_results(items, items["joint_mask"])
        more = self._without_missing(items) + self._aligned(items)
        return results + [replace(result, published=False) for result in more]

    def detections(self) -> Detections | None:
        """The hand boxes with the samples' indices as image ids; None where the protocol is not of boxes alone."""
        items = self.state()
        if self.protocol.meshes or not items:
            return None
        return Detections(*(items[name] for name in ("index", "box", "box_score", "true_box", "box_mask")))

    def _hands(self, items: dict[str, np.ndarray], mask: np.ndarray) -> dict[str, np.ndarray]:
        """End of the label -> (N, 2) bool: the hands of `mask` that are averaged."""
        if not self.protocol.by_hand_type:
            return {"": mask}
        types = items["hand_type"][:, None]
        single, interacting = mask & (types == [[RIGHT, LEFT]]), mask & (types == INTERACTING)
        return _by_class(single | interacting, single, interacting)

    def _joint_results(self, items: dict[str, np.ndarray], mask: np.ndarray) -> list[MetricResult]:
        """MPJPE. Here all annotated joints of an image of a single hand are evaluated, of whichever hand."""
        if not self.protocol.by_hand_type:
            return [_mean_of_joints("MPJPE", items["joint_error"], [mask])]
        is_pair = (items["hand_type"] == INTERACTING)[:, None, None]
        single, interacting = mask & ~is_pair, mask & is_pair
        classes = _by_class([single, interacting], [single], [interacting])
        return [_mean_of_joints(f"MPJPE{name}", items["joint_error"], masks) for name, masks in classes.items()]

    def _without_missing(self, items: dict[str, np.ndarray]) -> list[MetricResult]:
        """The published results in which a missing mesh takes part, without such hands."""
        mesh_mask = items["mesh_mask"]
        if self.protocol.wrists_of_meshes:
            return [_mean("MRRPE (both meshes only)", items["rel_error"], items["rel_mask"] & items["pair_mask"])]
        if not self.protocol.missing_as_zeros:
            return []
        results = [
            _mean("MPVPE (visible hands only)", items["vertex_error"], mesh_mask),
            _mean("RRVE (both hands visible only)", items["pair_error"], items["pair_mask"]),
        ]
        if self.protocol.true_joints:
            mask = items["joint_mask"] & mesh_mask[..., None]
            results.append(_mean_of_joints("MPJPE (visible hands only)", items["joint_error"], [mask]))
        return results

    def _aligned(self, items: dict[str, np.ndarray]) -> list[MetricResult]:
        """Under other alignments: plain means over the hands that have a mesh, and over the joints known in 3D."""
        results = []
        for kind, title in (
            ("knuckle", "middle-knuckle root, bone-length scale"),
            ("procrustes", "Procrustes-aligned"),
        ):
            for name, mask in self._hands(items, items["mesh_mask"]).items():
                results.append(_mean(f"MPVPE ({title}){name}", items[f"{kind}_vertex_error"], mask))
            if self.protocol.true_joints:
                all_hands = np.ones_like(items["mesh_mask"])
                for name, hands in self._hands(items, all_hands).items():
                    mask = items[f"{kind}_joint_mask"] & hands[..., None]
                    results.append(_mean(f"MPJPE ({title}){name}", items[f"{kind}_joint_error"], mask))
        return results

    # ---- Single samples ----

    def table(self) -> dict[str, np.ndarray]:
        """Columns with one number per sample, mm or percent, sorted by index; NaN where nothing is evaluated."""
        items = self.state()
        if not items:
            return {}
        columns = {"index": items["index"], "hand_type": items["hand_type"]}

        def by_hand(name: str, values: np.ndarray, mask: np.ndarray, factor: float) -> None:
            for hand, side in enumerate(SIDES):
                columns[f"{name}_{side}"] = np.where(mask[:, hand], values[:, hand] * factor, np.nan)

        by_hand("box_iou", items["box_iou"], items["box_mask"], PERCENT)
        if self.protocol.meshes:
            by_hand("mpvpe", items["vertex_error"], items["mesh_mask"], MM)
            columns["mrrpe"] = np.where(items["rel_mask"], items["rel_error"] * MM, np.nan)
            columns["rrve"] = np.where(items["pair_mask"], items["pair_error"] * MM, np.nan)
        if self.protocol.true_joints:
            mask = items["joint_mask"]
            if self.protocol.missing_as_zeros:
                mask = mask & items["mesh_mask"][..., None]
            total, number = (items["joint_error"] * mask).sum(-1), mask.sum(-1)
            by_hand("mpjpe", total / np.maximum(number, 1), number > 0, MM)
        return columns

    def worst(self, count: int) -> list[int]:
        """Indices of the samples with the largest MPVPE of a hand, or the smallest IoU where there are no meshes."""
        table = self.table()
        if not table:
            return []
        name, sign = ("mpvpe", 1) if self.protocol.meshes else ("box_iou", -1)
        columns = sign * np.stack([table[f"{name}_{side}"] for side in SIDES])
        score = np.where(np.isnan(columns), -np.inf, columns).max(0)
        order = np.argsort(-score, kind="stable")
        return table["index"][order[np.isfinite(score[order])][:count]].tolist()


def _box_precision(found: Detections) -> list[MetricResult]:
    """COCO's AP and AR of the hand boxes, percent: of each side, and their mean."""
    hands = {side: found.annotated[:, index] for index, side in enumerate(SIDES)} | {"both": found.annotated}
    return [
        MetricResult(f"COCO box {name} ({side})", value * PERCENT, "", int(hands[side].sum()), published=False)
        for side, values in box_precision(found).items()
        for name, value in values.items()
    ]


def _by_class(all_hands: T, single: T, interacting: T) -> dict[str, T]:
    return {
        " for all hand sequences": all_hands,
        " for single hand sequences": single,
        " for interacting hand sequences": interacting,
    }


def _mean(label: str, errors: np.ndarray, mask: np.ndarray, factor: float = MM) -> MetricResult:
    unit = " mm" if factor == MM else ""
    number = int(mask.sum())
    if not number:
        return MetricResult(label, None, unit, 0)
    return MetricResult(label, float(errors[mask].mean(dtype=np.float64) * factor), unit, number)


def _mean_of_joints(label: str, errors: np.ndarray, classes: list[np.ndarray]) -> MetricResult:
    """The mean over the means of the joints.

    Args:
        errors: (N, 2, J).
        classes: (N, 2, J) bool each; every joint of every class has its own mean.
    """
    totals = np.concatenate([np.where(mask, errors, 0).sum(0, dtype=np.float64).ravel() for mask in classes])
    numbers = np.concatenate([mask.sum(0).ravel() for mask in classes])
    found = numbers > 0
    if not found.any():
        return MetricResult(label, None, " mm", 0)
    value = float((totals[found] / numbers[found]).mean() * MM)
    missing = int((~found).sum())
    left_out = f"{missing} of {len(found)} joint averages have no sample and are left out" if missing else ""
    return MetricResult(label, value, " mm", int(numbers.sum()), left_out)
