"""The forward part of `tool/parity.py`: the network's outputs and intermediates under the recorded names."""

from argparse import Namespace
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import UserError
from common.nets.trans_net import PEAK, gaussian
from common.postprocess import to_crop
from common.precision import autocast
from common.types import Prediction
from common.utils.boxes import restore_box
from common.utils.files import make_folder
from common.utils.frames import Frames
from main.build import load_model
from main.model import InterWild
from tool.published.comparison import Report, compare, largest, load_npz, read_spreads, rotation_matrices


def run(args: Namespace) -> list[Report]:
    """Run the network on the inputs, write `forward_test.npz`, compare. `args` are those of `tool/parity.py`."""
    arrays = load_npz(args.inputs)
    if "images" not in arrays:
        raise UserError(f"{args.inputs} has no array `images`")
    model, _, _, skipped, _ = load_model(args.checkpoint, args.mano)
    print(f"all {len(model.state_dict())} tensors of the network loaded; skipped: {', '.join(skipped) or 'none'}")

    model.to(args.device).eval()
    images = torch.from_numpy(arrays["images"]).float().to(args.device)
    with torch.inference_mode(), autocast(args.device, args.amp):
        outputs, intermediates = forward(model, images)
    make_folder(args.output)
    np.savez(args.output / "forward_test.npz", **outputs)

    recorded, middle = load_npz(args.golden / "forward_test.npz"), args.golden / "forward_mid.npz"
    reports = compare_tensors("", recorded, outputs, read_spreads(args.golden).forward)
    return reports + (compare_tensors("mid/", load_npz(middle), intermediates, {}) if middle.exists() else [])


def compare_tensors(
    prefix: str,
    recorded: dict[str, np.ndarray],
    ours: dict[str, np.ndarray],
    spreads: dict[str, dict[str, dict[str, float]]],
) -> list[Report]:
    """Compare arrays of the same names, rotations as matrices.

    Args:
        spreads: run -> name -> {max_abs}: how far the published system is from itself. Allowed is ten times that, and
            at least 1e-5 of the largest value; where no spread is known, 1e-4 of it.
    """

    def allowed(name: str, expected: np.ndarray) -> float:
        known = [run[name]["max_abs"] for run in spreads.values() if name in run]
        return max(10 * max(known), 1e-5 * largest(expected)) if known else 1e-4 * largest(expected)

    def prepare(name: str, values: np.ndarray) -> np.ndarray:
        return rotation_matrices(values) if name.endswith(("root_pose", "hand_pose")) else values

    return compare(prefix, recorded, ours, allowed, prepare)


def forward(model: InterWild, images: Tensor) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(N, 3, H, W) -> outputs and intermediates by their recorded names."""
    rotation = model.hand_rotation_net
    watched: dict[str, nn.Module] = {
        "body": model.body_backbone,
        "hand": model.hand_roi_net.backbone,
        "position": model.hand_position_net,
        "rotation": rotation,
        "root_6d": rotation.root_pose_out,
        "pose_6d": rotation.pose_out,
        "camera": rotation.cam_out,
        "trans_relu": model.hand_trans_net.conv[2],
        "trans_layer4": model.hand_trans_net.backbone.layer4,
    }
    captured: dict[str, tuple] = {}
    with ExitStack() as hooks:
        for name, module in watched.items():
            hook = module.register_forward_hook(lambda _, x, y, name=name: captured.update({name: (x, y)}))
            hooks.callback(hook.remove)
        prediction = model(images)
    return _official_outputs(prediction, model.frames), _intermediates(model, prediction, captured)


def _official_outputs(prediction: Prediction, frames: Frames) -> dict[str, np.ndarray]:
    crop = to_crop(prediction, frames)
    outputs = {
        "rel_trans": prediction.rel_transl,
        "render_focal": crop.pair_focal_crop,
        "render_princpt": crop.pair_princpt_crop,
    }
    for index, side in enumerate("rl"):
        outputs |= {
            f"{side}hand_bbox": crop.boxes_body[:, index],
            f"{side}hand_bbox_conf": prediction.box_scores[:, index],
            f"{side}joint_img": crop.joints_crop[:, index],
            f"{side}mano_mesh_cam": prediction.vertices_rel[:, index],
            f"{side}mano_joint_cam": prediction.joints_rel[:, index],
            f"{side}mano_root_pose": prediction.mano.global_orient[:, index],
            f"{side}mano_hand_pose": prediction.mano.hand_pose[:, index].flatten(1),
            f"{side}mano_shape": prediction.mano.betas[:, index],
            f"{side}root_cam": prediction.root_transl[:, index],
            f"render_{side}focal": crop.hand_focal_crop[:, index],
            f"render_{side}princpt": crop.hand_princpt_crop[:, index],
        }
    return {name: value.float().cpu().numpy() for name, value in outputs.items()}


def _intermediates(model: InterWild, prediction: Prediction, captured: dict[str, tuple]) -> dict[str, np.ndarray]:
    """Slices as recorded; hands there are all right ones, then all left ones, mirrored."""

    def by_hand(x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1)

    def mean_std(x: Tensor) -> Tensor:
        return torch.stack((x.flatten(2).mean(-1), x.flatten(2).std(-1, unbiased=False)), -1)

    frames = model.frames
    (body_images,), body_features = captured["body"]
    (hand_images,), hand_features = captured["hand"]
    global_orient, hand_pose, betas, root_transl = captured["rotation"][1]
    crop_to_hand = prediction.crop_to_hand.transpose(0, 1).flatten(0, 1).double()
    full = nn.functional.pad(crop_to_hand, (0, 0, 0, 1))
    full[:, 2, 2] = 1
    roi = restore_box(
        prediction.box_centers_body_hm, prediction.box_sizes_body_hm, frames, 1.0, model.hand_box_extension
    )
    joints = model.hand_trans_net.place_joints(prediction.joints_hand_hm, prediction.crop_to_hand).flatten(1, 2)
    x, y, z = (gaussian(joints[..., axis], 64) for axis in range(3))
    heatmaps = PEAK * torch.einsum("njz,njy,njx->njzyx", z, y, x).flatten(1, 2)
    values = {
        "body_img_grid": body_images[:, :, 8::16, 8::16],
        "body_feat_mean_std": mean_std(body_features[:, :256]),
        "body_feat_ch0_32": body_features[:, :32],
        "orig2hand_trans": crop_to_hand,
        "hand2orig_trans": torch.linalg.inv(full)[:, :2],
        "hand_img_grid": by_hand(hand_images)[:, :, 4::8, 4::8],
        "hand_img_mean_std": mean_std(by_hand(hand_images)),
        "hand_feat_ch0_32": by_hand(hand_features)[:, :32],
        "hand_joint_hm": by_hand(captured["position"][1]),
        "rotnet_root_pose": by_hand(global_orient),
        "rotnet_hand_pose": by_hand(hand_pose).flatten(1),
        "rotnet_shape": by_hand(betas),
        "rotnet_root_trans": by_hand(root_transl),
        "root_pose_6d": by_hand(captured["root_6d"][1]),
        "hand_pose_6d": by_hand(captured["pose_6d"][1]),
        "cam_out": by_hand(captured["camera"][1]),
        "trans_hm_grid": heatmaps[:, ::37, ::8, ::8],
        "trans_hm_sum_per_channel": heatmaps.sum((2, 3)),
        "trans_conv_ch0_8_grid": captured["trans_relu"][1][:, :8, ::4, ::4],
        "trans_feat_ch0_32": captured["trans_layer4"][1][:, :32],
    }
    for index, side in enumerate("rl"):
        values |= {
            f"boxnet_{side}hand_center": prediction.box_centers_body_hm[:, index],
            f"boxnet_{side}hand_size": prediction.box_sizes_body_hm[:, index],
            f"boxnet_{side}hand_conf": prediction.box_scores[:, index],
            f"roi_{side}hand_bbox": roi[:, index],
        }
    return {name: value.float().cpu().numpy() for name, value in values.items()}
