"""A sample as images: its crop, the annotation, the prediction, the predicted meshes."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.drawing.overlay import draw_boxes, draw_skeletons
from common.drawing.raster import HandMesh
from common.drawing.render import render_hands
from common.drawing.sheets import contact_sheet
from common.postprocess import to_crop
from common.types import SIDES, Prediction, Sample, Targets, take
from common.utils.camera import Camera
from common.utils.frames import Frames, rescale

ROWS = 6
TITLES = ("image", "target", "predicted", "predicted meshes")
SHEET_HEIGHT = 256  # px, of an image on the sheet of training samples, at least
BOTH = np.ones(len(SIDES), bool)


class Marks(NamedTuple):
    """What is drawn of both hands, as numpy; what is NaN is not drawn."""

    boxes_crop: np.ndarray  # (2, 4) xyxy px
    joints_crop: np.ndarray  # (2, 21, 2) px


def draw_sample(crop: np.ndarray, target: Marks, predicted: Marks, meshes: list[HandMesh]) -> list[np.ndarray]:
    """(h, w, 3) uint8 RGB four times: the crop, with the target, with the prediction, with the meshes."""
    marked = [
        draw_skeletons(draw_boxes(crop, marks.boxes_crop, None, BOTH), marks.joints_crop, BOTH)
        for marks in (target, predicted)
    ]
    return [crop, *marked, render_hands(crop, meshes)]


@torch.no_grad()
def read_prediction(
    prediction: Prediction, faces: Tensor, frames: Frames, together: bool
) -> list[tuple[Marks, list[HandMesh]]]:
    """What to draw of each sample of a batch.

    Args:
        faces: (2, F, 3) of the hand models.
        together: the meshes as a pair in one camera; otherwise each hand in its own.
    """
    placed = to_crop(prediction, frames)
    boxes = rescale(placed.boxes_body.unflatten(-1, (2, 2)), frames.body, frames.crop).flatten(-2)
    transl, focal, princpt = prediction.root_transl, placed.hand_focal_crop, placed.hand_princpt_crop
    if together:
        transl = placed.pair_transl
        focal, princpt = (
            values[:, None].expand(-1, 2, -1) for values in (placed.pair_focal_crop, placed.pair_princpt_crop)
        )
    vertices = prediction.vertices_rel + transl[:, :, None]
    values = (boxes, placed.joints_crop[..., :2], vertices, focal, princpt)
    hand_faces = faces.cpu().numpy()
    found = []
    for *marks, points, focals, princpts in zip(
        *(value.detach().float().cpu().numpy() for value in values), strict=True
    ):
        cameras = [Camera(focals[side], princpts[side], True) for side in range(len(SIDES))]
        meshes = [HandMesh(points[side], hand_faces[side], side, cameras[side]) for side in range(len(SIDES))]
        found.append((Marks(*marks), meshes))
    return found


@torch.no_grad()
def draw_sheet(images: Tensor, prediction: Prediction, targets: Targets, faces: Tensor, frames: Frames) -> np.ndarray:
    """Draw a contact sheet of training samples: the crop, its target and what the network predicts.

    Args:
        images: (N, 3, h, w) RGB in [0, 1]; the first `ROWS` are shown.
        faces: (2, F, 3) of the hand models.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    images, prediction, targets = (take(batch, slice(ROWS)) for batch in (images, prediction, targets))
    crops = (images.permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy()
    boxes = torch.where(targets.boxes_valid[..., None] > 0, targets.boxes_crop, torch.nan)
    joints = torch.where(targets.joints_inside[..., None] > 0, targets.joints_crop[..., :2], torch.nan)
    marks = [x.float().cpu().numpy() for x in (boxes, joints)]
    predicted = read_prediction(prediction, faces, frames, together=False)
    drawn = [draw_sample(crop, Marks(*(values[n] for values in marks)), *predicted[n]) for n, crop in enumerate(crops)]
    return contact_sheet(drawn, [""] * len(drawn), TITLES, max(SHEET_HEIGHT, crops.shape[1]))


def draw_eval_sample(sample: Sample, prediction: Prediction, faces: Tensor, frames: Frames) -> list[np.ndarray]:
    """A test sample as three images of its crop: true boxes and joints, predicted boxes and joints, predicted meshes.

    Args:
        sample: a single one, without a batch axis.
        prediction: of a batch of this sample alone.
        faces: (2, F, 3) of the hand models.
    """
    predicted, meshes = read_prediction(prediction, faces, frames, together=True)[0]
    boxes = np.where(sample.boxes_valid[:, None] > 0, sample.boxes_crop, np.nan)
    joints = np.where(sample.joints_valid[..., None] > 0, sample.joints_crop[..., :2], np.nan)
    return draw_sample(sample.crop.round().byte().numpy(), Marks(boxes, joints), predicted, meshes)[1:]
