"""A sheet of training samples: what the network was asked and what it said."""

import numpy as np
import torch
from torch import Tensor

from common.postprocess import to_crop
from common.types import SIDES, Prediction, Targets
from common.utils.camera import Camera
from common.utils.frames import Frames, rescale
from common.utils.render import HandMesh, render_hands
from common.utils.visualize import draw_boxes, draw_skeletons

ROWS = 6


@torch.no_grad()
def draw_sheet(images: Tensor, prediction: Prediction, targets: Targets, faces: Tensor, frames: Frames) -> np.ndarray:
    """One row a sample: the crop, the annotation, the prediction, the predicted meshes.

    Args:
        images: (N, 3, h, w) RGB in [0, 1]; the first `ROWS` are shown.
        faces: (2, F, 3) of the hand models.

    Returns:
        (rows * h, 4 * w, 3) uint8 RGB.
    """
    crops = (images[:ROWS].permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy()
    result = to_crop(prediction, frames)
    boxes = rescale(result.boxes_body.unflatten(-1, (2, 2)), frames.body, frames.crop).flatten(-2)
    inside = targets.joints_inside.bool()[..., None]
    true_joints = torch.where(inside, targets.joints_crop[..., :2], torch.nan)  # what is NaN is not drawn

    def numpy(values: Tensor) -> np.ndarray:
        return values[:ROWS].detach().float().cpu().numpy()

    true_boxes, true_valid, true_joints = map(numpy, (targets.boxes_crop, targets.boxes_valid, true_joints))
    boxes, scores, joints = map(numpy, (boxes, prediction.box_scores, result.joints_crop[..., :2]))
    vertices = numpy(prediction.vertices_rel + prediction.root_transl[:, :, None])
    focal, princpt = numpy(result.hand_focal_crop), numpy(result.hand_princpt_crop)
    hand_faces, both = faces.cpu().numpy(), np.ones(len(SIDES), bool)
    rows = []
    for n, crop in enumerate(crops):
        valid = true_valid[n].astype(bool)
        meshes = [
            HandMesh(vertices[n, side], hand_faces[side], side, Camera(focal[n, side], princpt[n, side], True))
            for side in range(len(SIDES))
        ]
        asked = draw_boxes(draw_skeletons(crop, true_joints[n], both), true_boxes[n], true_valid[n], valid)
        said = draw_boxes(draw_skeletons(crop, joints[n], both), boxes[n], scores[n], both)
        rows.append(np.concatenate((crop, asked, said, render_hands(crop, meshes)), 1))
    return np.concatenate(rows, 0)
