"""Samples in the names, layouts and units of the published system, for comparisons with it."""

from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.nets.mano import TwoHandMano
from common.targets import build_images, build_targets, complete_truth
from common.types import EvalSample, ManoParams, Sample, Targets
from common.utils.frames import Frames, rescale
from common.utils.heatmaps import bin_to_depth, depth_to_bin

SIDES = ("r", "l")


class Field(NamedTuple):
    """A published field, its shape and that of our tensor, for one sample. Flags are repeated to fill their field."""

    ours: str
    published: tuple[int, ...]
    shape: tuple[int, ...]

    def encode(self, values: Tensor) -> Tensor:
        """Ours, (N, *shape) -> (N, *published)."""
        times = prod(self.published) // prod(self.shape)
        return values.reshape(len(values), -1).repeat_interleave(times, 1).reshape(len(values), *self.published)

    def decode(self, values: Tensor) -> Tensor:
        """The inverse of `encode`."""
        return values.reshape(len(values), prod(self.shape), -1)[..., 0].reshape(len(values), *self.shape)


FIELDS = {
    "targets/joint_img": Field("joints_crop", (42, 3), (2, 21, 3)),
    "targets/mano_joint_img": Field("mano_joints_crop", (42, 3), (2, 21, 3)),
    "targets/joint_cam": Field("joints_rel", (42, 3), (2, 21, 3)),
    "targets/mano_mesh_cam": Field("vertices_rel", (1556, 3), (2, 778, 3)),
    "targets/rel_trans": Field("rel_transl", (3,), (3,)),
    "targets/mano_pose": Field("pose", (96,), (2, 16, 3)),
    "targets/mano_shape": Field("betas", (20,), (2, 10)),
    "meta_info/joint_valid": Field("joints_valid", (42, 1), (2, 21)),
    "meta_info/joint_trunc": Field("joints_inside", (42, 1), (2, 21)),
    "meta_info/mano_joint_trunc": Field("mano_joints_inside", (42, 1), (2, 21)),
    "meta_info/mano_mesh_valid": Field("mano_valid", (1556, 1), (2,)),
    "meta_info/mano_pose_valid": Field("mano_valid", (32,), (2,)),
    "meta_info/mano_shape_valid": Field("mano_valid", (20,), (2,)),
    "meta_info/rel_trans_valid": Field("rel_transl_valid", (1,), ()),
    "meta_info/is_3D": Field("has_depth", (), ()),
}
IN_BODY_HM = ("joints_crop", "mano_joints_crop")  # ours in px and m, theirs in cells of `body_hm` and bins
BOXES = tuple(f"targets/{side}hand_bbox_{part}" for side in SIDES for part in ("center", "size"))
INPUTS = ("inputs/img_grid", "inputs/img_mean", "inputs/img_std", "meta_info/bb2img_trans")
# The fields of a test sample, where they are not all of a training sample.
TEST_FIELDS = {"MSCOCO": {*INPUTS, *BOXES}, "HIC": {*INPUTS, "targets/mano_mesh_cam"}}


def to_body_hm(points: Tensor, frames: Frames) -> Tensor:
    """(..., 3), px and m -> cells and bins."""
    xy = rescale(points[..., :2], frames.crop, frames.body_hm)
    return torch.cat((xy, depth_to_bin(points[..., 2:], frames.hand_bins, frames.depth_range)), -1)


def from_body_hm(cells: Tensor, frames: Frames) -> Tensor:
    """The inverse of `to_body_hm`."""
    xy = rescale(cells[..., :2], frames.body_hm, frames.crop)
    return torch.cat((xy, bin_to_depth(cells[..., 2:], frames.hand_bins, frames.depth_range)), -1)


def official_sample(sample: Sample, mano: TwoHandMano, frames: Frames) -> dict[str, np.ndarray]:
    """A batch as "inputs/", "targets/" and "meta_info/" of the published training sample, stacked over N.

    2D targets are in cells of `body_hm`, depths in its bins, the rest in m and radians; right hand first. Of the images
    a grid and the statistics of each channel are recorded.
    """
    images, targets = build_images(sample), build_targets(sample, mano, frames)
    pose = torch.cat((targets.mano.global_orient[:, :, None], targets.mano.hand_pose), 2)
    tensors = targets._asdict() | {"pose": pose, "betas": targets.mano.betas}
    tensors |= {name: to_body_hm(tensors[name], frames) for name in IN_BODY_HM}
    statistics = images.double().mean((2, 3)), images.double().std((2, 3), unbiased=False)
    values = dict(zip(INPUTS, (images[:, :, 16::32, 16::32], *statistics, sample.crop_to_image), strict=True))
    values |= {name: field.encode(tensors[field.ours]) for name, field in FIELDS.items()}
    corners = rescale(targets.boxes_crop.unflatten(-1, (2, 2)), frames.crop, frames.body_hm)
    for hand, side in enumerate(SIDES):
        values[f"targets/{side}hand_bbox_center"] = corners[:, hand].mean(1)
        values[f"targets/{side}hand_bbox_size"] = corners[:, hand, 1] - corners[:, hand, 0]
        values[f"meta_info/{side}hand_bbox_valid"] = targets.boxes_valid[:, hand]
    return {name: value.cpu().numpy() for name, value in values.items()}


def official_eval_sample(dataset: str, batch: EvalSample, mano: TwoHandMano, frames: Frames) -> dict[str, np.ndarray]:
    """A batch as the published sample of a test set, whose name decides what that holds."""
    values, truth = official_sample(batch.sample, mano, frames), complete_truth(batch, mano)
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

    tensors = {field.ours: field.decode(tensor(name)) for name, field in FIELDS.items()}
    tensors |= {name: from_body_hm(tensors[name], frames) for name in IN_BODY_HM}
    pose, betas = tensors.pop("pose"), tensors.pop("betas")
    center, half = by_side("targets/{}hand_bbox_center"), by_side("targets/{}hand_bbox_size") / 2
    corners = rescale(torch.stack((center - half, center + half), 2), frames.body_hm, frames.crop)
    return Targets(
        boxes_crop=corners.flatten(2),
        boxes_valid=by_side("meta_info/{}hand_bbox_valid"),
        mano=ManoParams(pose[:, :, 0], pose[:, :, 1:], betas),
        **tensors,
    )
