"""Samples in the names, layouts and units of the published system, for comparisons with it."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.types import GroundTruth, ManoParams, Sample, Targets
from common.utils.frames import Frames, rescale
from common.utils.heatmaps import bin_to_depth, depth_to_bin

SIDES = ("r", "l")


class Layout(NamedTuple):
    """How the published system stores a field: our tensor to theirs, and back."""

    encode: Callable[[Tensor, Frames], Tensor]
    decode: Callable[[Tensor, Frames], Tensor]


def _hands(values: Tensor) -> Tensor:
    """(N, 2 K, ...) -> (N, 2, K, ...)."""
    return values.unflatten(1, (2, -1))


def _to_body_hm(joints_crop: Tensor, frames: Frames) -> Tensor:
    """2.5D joints, (N, 2, K, 3): px and m -> (N, 2 K, 3), cells and bins."""
    xy = rescale(joints_crop[..., :2], frames.crop, frames.body_hm)
    depth = depth_to_bin(joints_crop[..., 2:], frames.hand_bins, frames.depth_range)
    return torch.cat((xy, depth), -1).flatten(1, 2)


def _from_body_hm(cells: Tensor, frames: Frames) -> Tensor:
    xy = rescale(cells[..., :2], frames.body_hm, frames.crop)
    depth = bin_to_depth(cells[..., 2:], frames.hand_bins, frames.depth_range)
    return _hands(torch.cat((xy, depth), -1))


def _repeated(count: int, column: bool = False) -> Layout:
    """A flag per hand, (N, 2) -> (N, 2 count), with another axis of one if `column`."""

    def encode(flags: Tensor, frames: Frames) -> Tensor:
        repeated = flags.repeat_interleave(count, 1)
        return repeated[..., None] if column else repeated

    return Layout(encode, lambda x, frames: _hands(x).flatten(2)[..., 0])


SAME = Layout(lambda x, frames: x, lambda x, frames: x)
COLUMN = Layout(lambda x, frames: x[:, None], lambda x, frames: x[:, 0])
FLAT = Layout(lambda x, frames: x.flatten(1, 2), lambda x, frames: _hands(x))
JOINT_FLAGS = Layout(lambda x, frames: x.flatten(1, 2)[..., None], lambda x, frames: _hands(x)[..., 0])
CELLS = Layout(_to_body_hm, _from_body_hm)
POSE = Layout(lambda x, frames: x.flatten(1), lambda x, frames: _hands(x).unflatten(-1, (-1, 3)))
BETAS = Layout(lambda x, frames: x.flatten(1), lambda x, frames: _hands(x))
# Official name -> our tensor of `_tensors`, and the layout.
FIELDS = {
    "targets/joint_img": ("joints_crop", CELLS),
    "targets/mano_joint_img": ("mano_joints_crop", CELLS),
    "targets/joint_cam": ("joints_rel", FLAT),
    "targets/mano_mesh_cam": ("vertices_rel", FLAT),
    "targets/rel_trans": ("rel_transl", SAME),
    "targets/mano_pose": ("pose", POSE),
    "targets/mano_shape": ("betas", BETAS),
    "meta_info/joint_valid": ("joints_valid", JOINT_FLAGS),
    "meta_info/joint_trunc": ("joints_inside", JOINT_FLAGS),
    "meta_info/mano_joint_trunc": ("mano_joints_inside", JOINT_FLAGS),
    "meta_info/mano_mesh_valid": ("mano_valid", _repeated(778, column=True)),
    "meta_info/mano_pose_valid": ("mano_valid", _repeated(16)),
    "meta_info/mano_shape_valid": ("mano_valid", _repeated(10)),
    "meta_info/rel_trans_valid": ("rel_transl_valid", COLUMN),
    "meta_info/is_3D": ("has_depth", SAME),
}
BOXES = tuple(f"targets/{side}hand_bbox_{part}" for side in SIDES for part in ("center", "size"))
# What of the training sample the published system gives for a test; the others give all.
TEST_FIELDS = {
    "MSCOCO": {*BOXES, "inputs/img", "meta_info/bb2img_trans"},
    "HIC": {"targets/mano_mesh_cam", "inputs/img", "meta_info/bb2img_trans"},
}


def official_sample(sample: Sample, images: Tensor, targets: Targets, frames: Frames) -> dict[str, np.ndarray]:
    """A batch as "inputs/", "targets/" and "meta_info/" of the published training sample, stacked over N.

    2D targets are in cells of `body_hm`, depths in its bins, the rest in m and radians; right hand first.

    Args:
        sample, images, targets: collated, see `common.targets`.
    """
    pose = torch.cat((targets.mano.global_orient[:, :, None], targets.mano.hand_pose), 2)
    tensors = targets._asdict() | {"pose": pose, "betas": targets.mano.betas}
    values = {"inputs/img": images, "meta_info/bb2img_trans": sample.crop_to_image}
    values |= {name: layout.encode(tensors[ours], frames) for name, (ours, layout) in FIELDS.items()}
    corners = rescale(targets.boxes_crop.unflatten(-1, (2, 2)), frames.crop, frames.body_hm)
    for hand, side in enumerate(SIDES):
        values[f"targets/{side}hand_bbox_center"] = corners[:, hand].mean(1)
        values[f"targets/{side}hand_bbox_size"] = corners[:, hand, 1] - corners[:, hand, 0]
        values[f"meta_info/{side}hand_bbox_valid"] = targets.boxes_valid[:, hand]
    return {name: value.cpu().numpy() for name, value in values.items()}


def official_eval_sample(
    dataset: str, sample: Sample, images: Tensor, targets: Targets, truth: GroundTruth, frames: Frames
) -> dict[str, np.ndarray]:
    """`official_sample` of a test set.

    Args:
        dataset: its name, which decides what the sample holds.
        truth: from `common.targets.complete_truth`.
    """
    values = official_sample(sample, images, targets, frames)
    values = {name: value for name, value in values.items() if name in TEST_FIELDS.get(dataset, values)}
    if dataset == "HIC":  # absolute, not relative to the wrist
        values["targets/mano_mesh_cam"] = truth.vertices_cam.flatten(1, 2).cpu().numpy()
    if dataset == "ReInterHand":
        missing = truth.boxes_image.new_tensor([0, 0, 1, 1])
        boxes = torch.where(truth.boxes_valid[..., None].bool(), truth.boxes_image, missing).cpu().numpy()
        values |= {f"targets/{side}hand_bbox": boxes[:, hand] for hand, side in enumerate(SIDES)}
    return values


def targets_from_official(arrays: dict[str, np.ndarray], frames: Frames) -> Targets:
    """The inverse of `official_sample`. Raises KeyError if an array is missing."""

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(np.asarray(arrays[name], np.float32))

    def by_side(name: str) -> Tensor:
        return torch.stack([tensor(name.format(side)) for side in SIDES], 1)

    tensors = {ours: layout.decode(tensor(name), frames) for name, (ours, layout) in FIELDS.items()}
    pose, betas = tensors.pop("pose"), tensors.pop("betas")
    center, half = by_side("targets/{}hand_bbox_center"), by_side("targets/{}hand_bbox_size") / 2
    corners = rescale(torch.stack((center - half, center + half), 2), frames.body_hm, frames.crop)
    return Targets(
        boxes_crop=corners.flatten(2),
        boxes_valid=by_side("meta_info/{}hand_bbox_valid"),
        mano=ManoParams(pose[:, :, 0], pose[:, :, 1:], betas),
        **tensors,
    )
