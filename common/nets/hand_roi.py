"""HandRoI: the crops of both hands, and their features."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.nets.resnet import ResNetBackbone
from common.precision import full_precision
from common.utils.affine import box_to_grid
from common.utils.frames import Frames, rescale
from common.utils.mirror import mirror_image


@torch.no_grad()
@full_precision
def crop_hands(image_crop: Tensor, boxes_crop: Tensor, hand_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Crop both hands of each image by one `grid_sample`. There is no gradient.

    Args:
        image_crop: (N, 3, H, W).
        boxes_crop: (N, 2, 4) xyxy.
        hand_size: (h, w) of a hand crop.

    Returns:
        patches (N, 2, 3, h, w), bilinear, 0 outside the crop, the left not mirrored; crop_to_hand (N, 2, 2, 3).
    """
    (height, width), (crop_height, crop_width) = hand_size, image_crop.shape[-2:]
    crop_to_hand = box_to_grid(boxes_crop, hand_size)

    def source(scale: Tensor, shift: Tensor, size: int, crop_size: int) -> Tensor:
        """The crop coordinate of each patch column (or row), normalised to [-1, 1]. (N, 2, size)."""
        index = torch.arange(size, device=scale.device, dtype=scale.dtype)
        return (index - shift[..., None]) / scale[..., None] / (crop_size - 1) * 2 - 1

    x = source(crop_to_hand[..., 0, 0], crop_to_hand[..., 0, 2], width, crop_width)
    y = source(crop_to_hand[..., 1, 1], crop_to_hand[..., 1, 2], height, crop_height)
    grid = torch.stack(torch.broadcast_tensors(x[:, :, None, :], y[:, :, :, None]), -1)  # (N, 2, h, w, 2)
    patches = F.grid_sample(image_crop, grid.flatten(1, 2), align_corners=True)  # one hand below the other
    return patches.unflatten(2, (2, height)).transpose(1, 2), crop_to_hand


class HandRoI(nn.Module):
    """Crop and hand boxes -> features of both hands; the backbone sees the left mirrored, as a right hand."""

    def __init__(self, backbone: str, frames: Frames) -> None:
        super().__init__()
        self.frames = frames
        self.backbone = ResNetBackbone(backbone)

    def forward(self, image_crop: Tensor, boxes_body: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W), (N, 2, 4) xyxy in `body` -> features (N * 2, C, h, w), both hands of an image together;
        crop_to_hand (N, 2, 2, 3), the left not mirrored."""
        corners = rescale(boxes_body.detach().unflatten(-1, (2, 2)), self.frames.body, self.frames.crop)
        patches, crop_to_hand = crop_hands(image_crop, corners.flatten(-2), self.frames.hand)
        right, left = patches.unbind(1)
        as_right = torch.stack((right, mirror_image(left)), 1).flatten(0, 1)
        return self.backbone(as_right), crop_to_hand
