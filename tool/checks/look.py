"""Look at samples as training sees them: boxes, joints and the MANO mesh over the crop, on one contact sheet.

    python tool/look.py --set MSCOCO                                  # the first 12 of the training split
    python tool/look.py --set InterHand26M --split test --interhand_subset all --index 0 17 4
    python tool/look.py --set ReInterHand --cam_mode Ego_cameras --augment 3
    python tool/look.py --set InterHand26M --index 5 --scale 1.2 --rot 30 --flip

A row shows one sample twice: with boxes and annotated joints (a filled dot is inside crop and depth range, a ring is
annotated but outside), and with the mesh and joints of its MANO fit. Test samples are never augmented.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from msgspec.structs import replace
from torch import Tensor
from torch.utils.data import default_collate

from common.drawing.overlay import draw_boxes, draw_skeletons
from common.drawing.raster import HandMesh
from common.drawing.render import HAND_RGB, render_hands
from common.drawing.sheets import arrange
from common.errors import UserError
from common.nets.mano import TwoHandMano
from common.nets.mano_files import read_hand_models
from common.options import DATA_FOLDER, MANO_FOLDER, MANO_HELP, Parser
from common.targets import build_images, build_targets, complete_truth, pose_hands, project_posed
from common.types import EvalSample, Sample, Targets
from common.utils.affine import apply_affine
from common.utils.augment import Augmentation, draw_augmentation
from common.utils.camera import Camera
from common.utils.files import write_image
from common.utils.frames import Frames
from common.utils.images import quiet_opencv
from main.build import open_dataset
from main.config import Config

FORMER = {
    "--out": "--output",
    **dict.fromkeys(("--subset", "--interhand_train_subset", "--interhand_test_subset"), "--interhand_subset"),
}


def main() -> None:
    args = parse_args()
    quiet_opencv()
    config = replace(Config(), cam_mode=args.cam_mode, envmap_mode=args.envmap_mode)
    if args.interhand_subset:
        config = replace(config, **{f"interhand_{args.split}_subset": args.interhand_subset})
    mano = TwoHandMano(*read_hand_models(args.mano))
    dataset = open_dataset(args.set, args.split, config, args.data, args.cache)
    indices = args.index or range(min(args.count, len(dataset)))
    rows = []
    for index in indices:
        if not 0 <= index < len(dataset):
            raise UserError(
                f"--index {index}: the {args.split} split of {args.set} has samples 0 to {len(dataset) - 1}"
            )
        augmentation = choose_augmentation(args, index)
        item = dataset[index] if args.split == "test" else dataset.sample(index, augmentation)
        rows.append(np.concatenate(draw(item, mano, config.frames, index), 1))
    write_image(args.output, arrange(rows, 3))
    print(f"{len(rows)} of {len(dataset)} samples of {args.set} {args.split} drawn: {args.output}")


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__, FORMER)
    parser.add_argument("--set", required=True, help="the dataset: InterHand26M, MSCOCO, HIC or ReInterHand")
    parser.add_argument("--split", choices=("train", "test"), default="train", help="part of it (default: train)")
    parser.add_argument("--data", type=Path, default=DATA_FOLDER, help="folder of the datasets (default: data)")
    parser.add_argument("--cache", type=Path, help="folder of the annotation caches (default: the dataset's own)")
    parser.add_argument("--mano", type=Path, default=MANO_FOLDER, help=MANO_HELP)
    parser.add_argument(
        "--interhand_subset",
        choices=("all", "human"),
        help="InterHand26M: all annotations, or those by people only (default: all of train, human of test)",
    )
    parser.add_argument(
        "--cam_mode",
        choices=("Mugsy_cameras", "Ego_cameras"),
        default="Mugsy_cameras",
        help="ReInterHand: the cameras (default: %(default)s)",
    )
    parser.add_argument(
        "--envmap_mode",
        choices=("envmap_per_frame", "envmap_per_segment"),
        default="envmap_per_frame",
        help="ReInterHand: the lighting (default: %(default)s)",
    )
    parser.add_argument(
        "--index", type=int, nargs="+", help="numbers of the samples to draw (default: the first --count)"
    )
    parser.add_argument("--count", type=int, default=12, help="number of samples without --index (default: 12)")
    parser.add_argument(
        "--augment", type=int, metavar="SEED", help="draw augmentations as training does, with this seed"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the body box (default: 1)")
    parser.add_argument("--rot", type=float, default=0.0, help="rotation of the body box, degrees (default: 0)")
    parser.add_argument(
        "--color", type=float, nargs=3, default=(1.0, 1.0, 1.0), metavar=("R", "G", "B"),
        help="factors on red, green and blue (default: 1 1 1)",
    )  # fmt: skip
    parser.add_argument("--flip", action="store_true", help="mirror the images")
    parser.add_argument("--output", type=Path, default=Path("look.jpg"), help="image to write (default: look.jpg)")
    return parser.parse_args()


def choose_augmentation(args: argparse.Namespace, index: int) -> Augmentation:
    """What the command line says, or a draw."""
    if args.augment is not None:
        return draw_augmentation(np.random.default_rng((args.augment, index)))
    return Augmentation(args.scale, args.rot, tuple(args.color), args.flip)


def draw(item: Sample | EvalSample, mano: TwoHandMano, frames: Frames, index: int) -> list[np.ndarray]:
    """One sample -> two images (h, w, 3): as annotated, and with the meshes."""
    if isinstance(item, EvalSample):
        truth = complete_truth(default_collate([item]), mano)
        batch, vertices_cam, valid = default_collate([item.sample]), truth.vertices_cam, truth.vertices_valid
    else:
        batch = default_collate([item])
        hands = pose_hands(batch, mano)
        vertices_cam, valid = hands.vertices_rel + hands.wrists_cam[:, :, None], hands.valid
    image = np.ascontiguousarray(build_images(batch)[0].permute(1, 2, 0).mul(255).round().byte().numpy())
    annotated = draw_annotated(image, build_targets(batch, mano, frames))
    text, place = f"{index}  {batch.id[0]}", (6, image.shape[0] - 8)
    for color, width in ((0, 0, 0), 3), ((255, 255, 255), 1):
        cv2.putText(annotated, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, width, cv2.LINE_AA)
    return [annotated, draw_meshes(image, batch, vertices_cam, valid[0].bool().numpy(), mano)]


def draw_annotated(image: np.ndarray, targets: Targets) -> np.ndarray:
    """Boxes and annotated joints of one sample over its crop."""
    boxes, valid = targets.boxes_crop[0].numpy(), targets.boxes_valid[0].bool().numpy()
    image = draw_boxes(image, boxes, None, valid)
    for hand in range(2):
        color = tuple(round(255 * value) for value in HAND_RGB[hand])
        radius = int(np.clip(np.abs(boxes[hand, 2:] - boxes[hand, :2]).max() / 40, 1, 4)) if valid[hand] else 3
        for joint in np.flatnonzero(targets.joints_valid[0, hand].numpy()):
            x, y = targets.joints_crop[0, hand, joint, :2].clamp(-1e4, 1e4).round().int().tolist()
            filled = bool(targets.joints_inside[0, hand, joint])
            cv2.circle(image, (x, y), radius, color, -1 if filled else 1, cv2.LINE_AA)
    return image


def draw_meshes(
    image: np.ndarray, batch: Sample, vertices_cam: Tensor, valid: np.ndarray, mano: TwoHandMano
) -> np.ndarray:
    """The meshes (1, 2, V, 3) m of one sample, before the crop was turned, and their joints over its crop."""

    def to_crop(points_cam: Tensor) -> np.ndarray:
        return apply_affine(batch.image_to_crop[:, None], project_posed(points_cam, batch))[0].numpy()

    vertices_crop, meshes = to_crop(vertices_cam), []
    for hand in np.flatnonzero(valid):
        # Pixels and a depth of the same scale, seen by a camera that changes nothing: turned crops and fisheye lenses
        # need no camera of their own.
        points_cam = vertices_cam[0, hand].numpy()
        scale = np.ptp(vertices_crop[hand], axis=0).max() / np.ptp(points_cam, axis=0).max()
        points = np.concatenate((vertices_crop[hand], points_cam[:, 2:] * scale), 1)
        camera = Camera(np.ones(2), np.zeros(2), orthographic=True)
        meshes.append(HandMesh(points, mano.faces[hand].numpy(), int(hand), camera))
    joints_crop = to_crop(mano.regress_joints(vertices_cam))
    return draw_skeletons(render_hands(image, meshes), joints_crop, valid)
