"""Samples in the names, layouts and units of the published system, for comparisons with it."""

import numpy as np
import torch
from torch import Tensor

from common.types import GroundTruth, ManoParams, Sample, Targets
from common.utils.frames import Frames, rescale
from common.utils.heatmaps import bin_to_depth, depth_to_bin

SIDES = ("r", "l")


def official_sample(
    sample: Sample, images: Tensor, targets: Targets, frames: Frames
) -> dict[str, dict[str, np.ndarray]]:
    """A batch as {"inputs", "targets", "meta_info"} of the published training sample, stacked over N.

    2D targets are in cells of `body_hm`, depths in its bins, the rest in m and radians; right hand first.

    Args:
        sample, images, targets: collated, see `common.targets`.
    """

    def flat(values: Tensor) -> Tensor:  # (N, 2, K, ...) -> (N, 2 K, ...)
        return values.flatten(1, 2)

    def per_hand(values: Tensor, count: int) -> Tensor:  # (N, 2) -> (N, 2 count)
        return values[..., None].expand(*values.shape, count).flatten(1)

    pose = torch.cat((targets.mano.global_orient[:, :, None], targets.mano.hand_pose), 2)
    mano_valid = targets.mano_valid
    vertex_count = targets.vertices_rel.shape[2]
    target_values = {
        "joint_img": flat(_to_body_hm(targets.joints_crop, frames)),
        "mano_joint_img": flat(_to_body_hm(targets.mano_joints_crop, frames)),
        "joint_cam": flat(targets.joints_rel),
        "mano_mesh_cam": flat(targets.vertices_rel),
        "rel_trans": targets.rel_transl,
        "mano_pose": pose.flatten(1),
        "mano_shape": targets.mano.betas.flatten(1),
    }
    meta = {
        "bb2img_trans": sample.crop_to_image,
        "joint_valid": flat(targets.joints_valid)[..., None],
        "joint_trunc": flat(targets.joints_inside)[..., None],
        "mano_joint_trunc": flat(targets.mano_joints_inside)[..., None],
        "mano_mesh_valid": per_hand(mano_valid, vertex_count)[..., None],
        "rel_trans_valid": targets.rel_transl_valid[:, None],
        "mano_pose_valid": per_hand(mano_valid, pose.shape[2]),
        "mano_shape_valid": per_hand(mano_valid, targets.mano.betas.shape[-1]),
        "is_3D": targets.has_depth,
    }
    corners = rescale(targets.boxes_crop.unflatten(-1, (2, 2)), frames.crop, frames.body_hm)
    for hand, side in enumerate(SIDES):
        target_values[f"{side}hand_bbox_center"] = corners[:, hand].mean(1)
        target_values[f"{side}hand_bbox_size"] = corners[:, hand, 1] - corners[:, hand, 0]
        meta[f"{side}hand_bbox_valid"] = targets.boxes_valid[:, hand]
    return {
        group: {name: value.cpu().numpy() for name, value in values.items()}
        for group, values in (("inputs", {"img": images}), ("targets", target_values), ("meta_info", meta))
    }


# What of the training sample the published system gives for a test; None: all.
TEST_KEYS = {
    "MSCOCO": {"lhand_bbox_center", "lhand_bbox_size", "rhand_bbox_center", "rhand_bbox_size", "img", "bb2img_trans"},
    "HIC": {"mano_mesh_cam", "img", "bb2img_trans"},
    "InterHand26M": None,
    "ReInterHand": None,
}


def official_eval_sample(
    dataset: str, sample: Sample, images: Tensor, targets: Targets, truth: GroundTruth, frames: Frames
) -> dict[str, dict[str, np.ndarray]]:
    """Likewise for a test set.

    Args:
        dataset: its name, which decides what there is.
        truth: from `common.targets.complete_truth`.
    """
    view = official_sample(sample, images, targets, frames)
    keys = TEST_KEYS[dataset]
    if keys is not None:
        view = {group: {name: v for name, v in values.items() if name in keys} for group, values in view.items()}
    if dataset == "HIC":  # absolute, not relative to the wrist
        view["targets"]["mano_mesh_cam"] = truth.vertices_cam.flatten(1, 2).cpu().numpy()
    if dataset == "ReInterHand":
        missing = truth.boxes_image.new_tensor([0, 0, 1, 1])
        boxes = torch.where(truth.boxes_valid[..., None].bool(), truth.boxes_image, missing).cpu().numpy()
        for hand, side in enumerate(SIDES):
            view["targets"][f"{side}hand_bbox"] = boxes[:, hand]
    return view


def _to_body_hm(joints_crop: Tensor, frames: Frames) -> Tensor:
    """2.5D joints, (..., 3): px and m -> cells and bins."""
    xy = rescale(joints_crop[..., :2], frames.crop, frames.body_hm)
    return torch.cat((xy, depth_to_bin(joints_crop[..., 2:], frames.hand_bins, frames.depth_range)), -1)


def targets_from_official(targets: dict[str, np.ndarray], meta: dict[str, np.ndarray], frames: Frames) -> Targets:
    """The inverse of `official_sample`: "targets" and "meta_info" of a batch -> ours."""

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(values, np.float32))

    def hands(values: np.ndarray) -> Tensor:  # (N, 2 K, ...) -> (N, 2, K, ...)
        return tensor(values).unflatten(1, (2, -1))

    def joints(name: str) -> Tensor:
        cells = hands(targets[name])
        xy = rescale(cells[..., :2], frames.body_hm, frames.crop)
        return torch.cat((xy, bin_to_depth(cells[..., 2:], frames.hand_bins, frames.depth_range)), -1)

    def by_side(values: dict[str, np.ndarray], name: str) -> Tensor:
        return torch.stack([tensor(values[f"{side}{name}"]) for side in SIDES], 1)

    center, half = by_side(targets, "hand_bbox_center"), by_side(targets, "hand_bbox_size") / 2
    corners = rescale(torch.stack((center - half, center + half), 2), frames.body_hm, frames.crop)
    pose = hands(targets["mano_pose"]).unflatten(-1, (-1, 3))
    return Targets(
        boxes_crop=corners.flatten(2),
        boxes_valid=by_side(meta, "hand_bbox_valid"),
        joints_crop=joints("joint_img"),
        joints_inside=hands(meta["joint_trunc"])[..., 0],
        joints_rel=hands(targets["joint_cam"]),
        joints_valid=hands(meta["joint_valid"])[..., 0],
        mano=ManoParams(pose[:, :, 0], pose[:, :, 1:], hands(targets["mano_shape"])),
        mano_valid=hands(meta["mano_pose_valid"])[..., 0],
        mano_joints_crop=joints("mano_joint_img"),
        mano_joints_inside=hands(meta["mano_joint_trunc"])[..., 0],
        vertices_rel=hands(targets["mano_mesh_cam"]),
        rel_transl=tensor(targets["rel_trans"]),
        rel_transl_valid=tensor(meta["rel_trans_valid"])[:, 0],
        has_depth=tensor(meta["is_3D"]),
    )
