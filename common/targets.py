"""Annotations become samples and targets here, for all datasets, in two steps.

`make_sample` runs in a loader worker: the image and everything that needs no hand model. `build_images`,
`build_targets` and `complete_truth` run on collated samples, for the whole batch and on any device.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.nets.mano import TwoHandMano, to_wrist
from common.types import (
    HAND_TYPES,
    LEFT,
    RIGHT,
    Annotation,
    EvalSample,
    GroundTruth,
    HandCameras,
    ManoParams,
    Sample,
    Targets,
)
from common.utils.affine import apply_affine, image_to_crop, invert_affine_np
from common.utils.augment import IDENTITY, Augmentation, warp_augmented
from common.utils.boxes import body_box
from common.utils.camera import CaptureCamera, distort_fisheye
from common.utils.frames import Frames
from common.utils.joints import JOINTS, WRIST
from common.utils.mirror import mirror_rotation, mirror_translation
from common.utils.rotations import axis_angle_to_matrix, matrix_to_axis_angle

HANDS, JOINT_COUNT, VERTEX_COUNT = 2, len(JOINTS), 778
LARGEST_SQUARE = 1e30  # sum of the squares of an annotation's numbers: px, m and radians
NO_CAMERA = CaptureCamera(np.ones(2), np.zeros(2))


# ---- In the worker: one annotation ----


def make_sample(
    annotation: Annotation,
    image: np.ndarray,
    augmentation: Augmentation,
    frames: Frames,
    box_extension: float,
    id: str = "",
    replaced: int = 0,
    float_crop: bool = False,
) -> Sample:
    """The image side of a sample: a pure function of its arguments.

    Args:
        image: (H, W, 3) uint8 RGB, the annotated image.
        box_extension: the body box is enlarged by this.
        id: the sample's name in messages.
        replaced: see `Sample`.
        float_crop: sample the crop in float32, as published, instead of uint8. A float crop takes four times the
            memory, so handing it from a loader worker to the training process costs more than making it.

    Raises:
        UserError: the image does not have the annotated size, a number is not finite, or the body box is outside the
            image.
    """
    check_annotation(annotation, image.shape[:2])
    flip, width = augmentation.flip, annotation.image_size[1]
    to_crop = _image_to_crop(annotation, augmentation, frames, box_extension)
    crop = warp_augmented(image.astype(np.float32) if float_crop else image, to_crop, augmentation, frames.crop)
    boxes_crop, boxes_valid = _boxes(annotation, to_crop, flip, width, frames)
    joints_crop, joints_rel, joints_valid, rel_transl = _joints(annotation, to_crop, augmentation, width)
    inside = joints_valid & is_inside(joints_crop, frames)
    mano, mano_transl, mano_valid = _mano(annotation)
    return Sample(
        crop=torch.from_numpy(crop),
        color=_float(augmentation.color),
        id=id,
        replaced=_tensor(replaced),
        flip=_tensor(flip),
        rot=_float(np.deg2rad(augmentation.rot)),
        image_width=_float(width),
        image_to_crop=_float(to_crop),
        crop_to_image=_float(invert_affine_np(to_crop)),
        boxes_crop=_float(boxes_crop),
        boxes_valid=_float(boxes_valid),
        joints_crop=_float(joints_crop),
        joints_inside=_float(inside),
        joints_rel=_float(joints_rel),
        joints_valid=_float(joints_valid),
        rel_transl=_float(rel_transl),
        rel_transl_valid=_float(annotation.rel_transl_valid),
        has_depth=_float(annotation.joints_cam is not None),
        mano=ManoParams(*(_float(x) for x in mano)),
        mano_transl=_float(mano_transl),
        mano_valid=torch.from_numpy(np.array(mano_valid, bool)),
        cameras=_cameras(annotation.cameras or (NO_CAMERA, NO_CAMERA)),
    )


def make_eval_sample(
    annotation: Annotation, image: np.ndarray, frames: Frames, box_extension: float, id: str = ""
) -> EvalSample:
    """An item of a test set, without augmentation. Raises UserError like `make_sample`."""
    sample = make_sample(annotation, image, IDENTITY, frames, box_extension, id, float_crop=True)
    no_boxes, no_joints = np.zeros((HANDS, 4)), np.zeros((HANDS, JOINT_COUNT, 3))
    boxes_valid = _or(annotation.boxes_valid, np.zeros(HANDS))
    scored = _or(annotation.joints_scored, np.zeros((HANDS, JOINT_COUNT)))
    joints_cam = _or(annotation.joints_cam, no_joints)
    if annotation.joints_cam is None:
        # HIC: `complete_truth` takes it from the meshes; the published evaluation includes all two-hand images.
        rel_transl_valid = annotation.vertices_cam is not None and annotation.hand_type == "interacting"
    else:
        rel_transl_valid = bool(scored[:, WRIST].all())
    return EvalSample(
        sample,
        GroundTruth(
            boxes_image=_float(np.where(boxes_valid[:, None], _or(annotation.boxes_image, no_boxes), 0)),
            boxes_valid=_float(boxes_valid),
            joints_cam=_float(joints_cam),
            joints_scored=_float(scored),
            vertices_cam=_float(_or(annotation.vertices_cam, np.zeros((HANDS, VERTEX_COUNT, 3)))),
            vertices_valid=_float(_or(annotation.vertices_valid, np.zeros(HANDS))),
            rel_transl=_float(joints_cam[LEFT, WRIST] - joints_cam[RIGHT, WRIST]),
            rel_transl_valid=_float(rel_transl_valid),
            hand_type=_tensor(HAND_TYPES.index(annotation.hand_type) if annotation.hand_type else -1),
        ),
    )


def check_annotation(annotation: Annotation, image_size: tuple[int, int]) -> None:
    """Raises UserError if the image has another size than annotated, or an annotated number is not finite."""
    if tuple(image_size) not in (tuple(annotation.image_size), tuple(annotation.image_size)[::-1]):  # see HandDataset
        found, annotated = (f"{width} x {height}" for height, width in (image_size, annotation.image_size))
        raise UserError(f"{annotation.image_path} is {found} pixels, the annotation says {annotated}")
    parts = (
        ("body box", annotation.body_box_image),
        ("hand box", annotation.boxes_image),
        ("joint", annotation.joints_image),
        ("3D joint", annotation.joints_cam),
        ("mesh", annotation.vertices_cam),
        ("MANO translation", annotation.mano_transl),
        *zip(("MANO rotation", "MANO pose", "MANO shape"), annotation.mano or (), strict=False),
    )
    for name, value in parts:
        # One pass: the sum of squares shows NaN, infinity and numbers too large for single precision alike.
        if value is not None and not np.vdot(value, value) < LARGEST_SQUARE:
            raise UserError(f"{annotation.image_path}: a {name} value in its annotation is NaN or infinite")


def is_inside(joints_crop: np.ndarray | Tensor, frames: Frames) -> np.ndarray | Tensor:
    """(..., 3) 2.5D joints in `crop` -> (...) bool: inside the crop, and inside the depth range around the wrist."""
    height, width = frames.crop
    x, y, z = joints_crop[..., 0], joints_crop[..., 1], joints_crop[..., 2]
    half = frames.depth_range / 2
    return (x >= 0) & (x < width) & (y >= 0) & (y < height) & (z >= -half) & (z < half)


def body_box_of(annotation: Annotation, frames: Frames, box_extension: float) -> np.ndarray:
    """(4,) xywh that the crop is taken from, before augmentation. Raises UserError if there is none."""
    height, width = annotation.image_size
    box = annotation.body_box_image
    if box is None:
        box = np.array([0.0, 0.0, width, height])  # floats: the published studio datasets truncate nothing
    box = body_box(box, annotation.image_size, frames.crop, box_extension)
    if box is None:
        raise UserError("its body box is empty or outside the image")
    return box


def _image_to_crop(
    annotation: Annotation, augmentation: Augmentation, frames: Frames, box_extension: float
) -> np.ndarray:
    """(2, 3), from the mirrored image if the augmentation flips."""
    box = body_box_of(annotation, frames, box_extension)
    if augmentation.flip:
        box[0] = annotation.image_size[1] - 1 - box[0] - box[2]
    return image_to_crop(box, frames.crop, augmentation.scale, augmentation.rot)


def _boxes(
    annotation: Annotation, to_crop: np.ndarray, flip: bool, width: int, frames: Frames
) -> tuple[np.ndarray, np.ndarray]:
    """Hand boxes (2, 4) xyxy in `crop`, the axis-aligned hull of the rotated box; valid (2,) bool."""
    boxes, valid = np.zeros((HANDS, 4)), np.zeros(HANDS, bool)
    if annotation.boxes_image is not None:
        boxes, valid = np.asarray(annotation.boxes_image, np.float64), _known(annotation.boxes_valid)
    if flip:
        boxes, valid = boxes[::-1, [2, 1, 0, 3]] * (-1, 1, -1, 1) + (width - 1, 0, width - 1, 0), valid[::-1]
    corners = boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]] @ to_crop[:, :2].T + to_crop[:, 2]
    hull = np.concatenate((corners.min(1), corners.max(1)), 1)
    # The published value of a missing box: the first cell of the detector's heatmap.
    cell = (0.0, 0.0, frames.crop[1] / frames.body_hm[1], frames.crop[0] / frames.body_hm[0])
    return np.where(valid[:, None], hull, cell), valid


def _joints(
    annotation: Annotation, to_crop: np.ndarray, augmentation: Augmentation, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """joints_crop (2, J, 3), joints_rel (2, J, 3), valid (2, J), rel_transl (3,). Invalid joints are moved, too."""
    shape = (HANDS, JOINT_COUNT)
    if annotation.joints_image is None:
        return np.zeros((*shape, 3)), np.zeros((*shape, 3)), np.zeros(shape, bool), np.zeros(3)
    xy, valid = np.asarray(annotation.joints_image, np.float64), _known(annotation.joints_valid)
    cam = np.zeros((*shape, 3)) if annotation.joints_cam is None else annotation.joints_cam
    if augmentation.flip:
        xy = xy[::-1] * (-1, 1) + (width - 1, 0)
        valid, cam = valid[::-1], cam[::-1] * (-1, 1, 1)
    rel = cam - cam[:, WRIST : WRIST + 1]
    joints_crop = np.concatenate((xy @ to_crop[:, :2].T + to_crop[:, 2], rel[..., 2:]), -1)
    rotation = rotation_of_crop(np.deg2rad(augmentation.rot))
    return joints_crop, rel @ rotation.T, valid, rotation @ (cam[LEFT, WRIST] - cam[RIGHT, WRIST])


def rotation_of_crop(angle: float) -> np.ndarray:
    """(3, 3) rotation of `cam` when the body box is rotated by `angle` radians: -angle about the optical axis."""
    cos, sin = np.cos(-angle), np.sin(-angle)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def _mano(annotation: Annotation) -> tuple[ManoParams, np.ndarray, np.ndarray]:
    """Parameters as arrays, translation (2, 3), validity (2,); a missing hand is all zeros."""
    if annotation.mano is None:
        zeros = ManoParams(np.zeros((HANDS, 3)), np.zeros((HANDS, 15, 3)), np.zeros((HANDS, 10)))
        return zeros, np.zeros((HANDS, 3)), np.zeros(HANDS, bool)
    valid = _known(annotation.mano_valid)
    params = ManoParams(*(_zero_invalid(x, valid) for x in annotation.mano))
    return params, _zero_invalid(_known(annotation.mano_transl), valid), valid


def _cameras(cameras: tuple[CaptureCamera, CaptureCamera]) -> HandCameras:
    """As tensors. Rotation, translation and distortion are the same for both hands of an image."""
    camera = cameras[RIGHT]
    has_extrinsics, has_distortion = camera.rotation is not None, camera.distortion is not None
    return HandCameras(
        rotation=_float(camera.rotation if has_extrinsics else np.eye(3)),
        transl=_float(camera.transl if has_extrinsics else np.zeros(3)),
        has_extrinsics=_tensor(has_extrinsics),
        focal=_float(np.stack([each.focal for each in cameras])),
        princpt=_float(np.stack([each.princpt for each in cameras])),
        distortion=_float(camera.distortion if has_distortion else np.zeros(4)),
        has_distortion=_tensor(has_distortion),
    )


def _float(values: object) -> Tensor:
    return torch.from_numpy(np.array(values, np.float32))


def _tensor(value: bool | int) -> Tensor:
    return torch.from_numpy(np.array(value))  # several times faster than torch.tensor


def _or(value: np.ndarray | None, default: np.ndarray) -> np.ndarray:
    return default if value is None else np.asarray(value)


def _known(value: np.ndarray | None) -> np.ndarray:
    """A part that every source gives along with another one: flags with values, translations with rotations."""
    assert value is not None
    return value


def _zero_invalid(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(2, ...) with zeros for the hands that are not valid."""
    return np.where(valid.reshape(-1, *[1] * (values.ndim - 1)), values, 0)


# ---- On the device: a whole batch ----


def build_images(sample: Sample) -> Tensor:
    """The network's input of collated samples: (N, 3, h, w) float32 RGB in [0, 1]."""
    images = sample.crop.permute(0, 3, 1, 2).float() * sample.color[:, :, None, None]
    return images.clamp_(0, 255).div_(255)


class PosedHands(NamedTuple):
    """Both hands of N samples, posed by MANO, after the flip and before the rotation. Missing hands are zeros."""

    params: ManoParams  # (N, 2, ...), camera axes
    valid: Tensor  # (N, 2) bool
    vertices_rel: Tensor  # (N, 2, V, 3) m
    joints_rel: Tensor  # (N, 2, J, 3) m
    wrists_cam: Tensor  # (N, 2, 3) m
    joints_image: Tensor  # (N, 2, J, 2) px, of the mirrored image if flipped


def pose_hands(sample: Sample, mano: TwoHandMano) -> PosedHands:
    """Annotated MANO parameters -> hands in `cam`. A mirrored right hand is a left hand, posed by the left model."""
    flip, cameras = sample.flip[:, None, None], sample.cameras
    extrinsics = cameras.has_extrinsics[:, None, None]

    def swap(values: Tensor) -> Tensor:
        return torch.where(sample.flip.view(-1, *[1] * (values.ndim - 1)), values.flip(1), values)

    rotation = cameras.rotation[:, None]  # (N, 1, 3, 3)
    in_cam = matrix_to_axis_angle(rotation @ axis_angle_to_matrix(sample.mano.global_orient))
    rotates = extrinsics & sample.mano_valid[..., None]  # a missing hand is not rotated
    global_orient = swap(torch.where(rotates, in_cam, sample.mano.global_orient))
    hand_pose, transl = swap(sample.mano.hand_pose), swap(sample.mano_transl)
    params = ManoParams(
        torch.where(flip, mirror_rotation(global_orient), global_orient),
        torch.where(flip[..., None], mirror_rotation(hand_pose), hand_pose),
        swap(sample.mano.betas),
    )
    vertices, joints = mano(params)
    vertices_rel, joints_rel = to_wrist(vertices, joints)

    # The published steps all move a hand as a whole, so only its wrist has to go through them: it is mirrored back to
    # where it was annotated, moved to `cam`, and mirrored there about the middle of the image.
    wrist = joints[:, :, WRIST] + torch.where(flip, mirror_translation(transl), transl)
    wrist = torch.where(flip, mirror_translation(wrist), wrist)
    wrist = torch.where(extrinsics, wrist @ rotation[:, 0].transpose(-1, -2) + cameras.transl[:, None], wrist)
    focal, princpt = swap(cameras.focal), swap(cameras.princpt)
    middle = (sample.image_width[:, None] - 1) / 2 - princpt[..., 0]  # (N, 2) px
    mirrored_x = 2 * middle / focal[..., 0] * wrist[..., 2] - wrist[..., 0]
    wrist = torch.where(flip, torch.cat((mirrored_x[..., None], wrist[..., 1:]), -1), wrist)

    joints_image = project_posed(joints_rel + wrist[:, :, None], sample)
    valid = swap(sample.mano_valid)

    def mask(values: Tensor) -> Tensor:  # not a product: masked values may be infinite
        return torch.where(valid.view(*valid.shape, *[1] * (values.ndim - 2)), values, 0)

    return PosedHands(params, valid, *map(mask, (vertices_rel, joints_rel, wrist, joints_image)))


def project_posed(points_cam: Tensor, sample: Sample) -> Tensor:
    """(N, 2, P, 3) m of posed hands -> (N, 2, P, 2) px of `image`, of the mirrored image if flipped."""
    cameras, flip = sample.cameras, sample.flip[:, None, None]
    focal, princpt = (torch.where(flip, values.flip(1), values) for values in (cameras.focal, cameras.princpt))
    xy = points_cam[..., :2] / points_cam[..., 2:]
    bent = distort_fisheye(xy, cameras.distortion[:, None, None])
    xy = torch.where(cameras.has_distortion[:, None, None, None], bent, xy)
    return xy * focal[:, :, None] + princpt[:, :, None]


@torch.no_grad()
def build_targets(sample: Sample, mano: TwoHandMano, frames: Frames) -> Targets:
    """Pose both hands of every sample at once and complete the targets.

    Args:
        sample: N collated samples on the device of `mano`. All devices give the same targets up to rounding.
    """
    hands = pose_hands(sample, mano)
    joints_crop = apply_affine(sample.image_to_crop[:, None], hands.joints_image)
    joints_crop = torch.cat((joints_crop, hands.joints_rel[..., 2:]), -1)
    rotation = _rotations_of_crops(sample.rot)[:, None]  # (N, 1, 3, 3)
    orient = hands.params.global_orient
    rotated = matrix_to_axis_angle(rotation @ axis_angle_to_matrix(orient))
    # Missing hands are rotated too, as in the published system; the result is not used.
    orient = torch.where((sample.rot != 0)[:, None, None], rotated, orient)
    valid = hands.valid.float()
    return Targets(
        boxes_crop=sample.boxes_crop,
        boxes_valid=sample.boxes_valid,
        joints_crop=sample.joints_crop,
        joints_inside=sample.joints_inside,
        joints_rel=sample.joints_rel,
        joints_valid=sample.joints_valid,
        mano=hands.params._replace(global_orient=orient),
        mano_valid=valid,
        mano_joints_crop=joints_crop,
        mano_joints_inside=valid[..., None] * torch.as_tensor(is_inside(joints_crop, frames)),
        vertices_rel=hands.vertices_rel @ rotation.transpose(-1, -2),
        rel_transl=sample.rel_transl,
        rel_transl_valid=sample.rel_transl_valid,
        has_depth=sample.has_depth,
    )


@torch.no_grad()
def complete_truth(batch: EvalSample, mano: TwoHandMano) -> GroundTruth:
    """The ground truth of a collated batch with all its meshes: from files as they are, the others posed by `mano`.

    With meshes from files, `rel_transl` is measured between the wrists of the meshes. The wrist of a missing hand is
    the origin, as in the published evaluation.
    """
    sample, truth = batch
    from_file = truth.vertices_valid.bool()
    if from_file.any():
        wrists = mano.regress_wrist(truth.vertices_cam)
        between = wrists[:, LEFT] - wrists[:, RIGHT]
        truth = truth._replace(rel_transl=torch.where(from_file.any(1, keepdim=True), between, truth.rel_transl))
    if not sample.mano_valid.any():  # MSCOCO scores no mesh, HIC has its meshes from files
        return truth
    hands = pose_hands(sample, mano)
    posed = hands.vertices_rel + torch.where(hands.valid[..., None], hands.wrists_cam, 0)[:, :, None]
    return truth._replace(
        vertices_cam=torch.where(from_file[..., None, None], truth.vertices_cam, posed),
        vertices_valid=(from_file | hands.valid).float(),
    )


def _rotations_of_crops(rot: Tensor) -> Tensor:
    """(N,) radians -> (N, 3, 3), like `rotation_of_crop`."""
    cos, sin, zero = rot.cos(), rot.sin(), torch.zeros_like(rot)
    return torch.stack((cos, sin, zero, -sin, cos, zero, zero, zero, zero + 1), -1).unflatten(-1, (3, 3))
