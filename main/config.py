"""Every number of the experiment, with the published values as defaults. Importing this file is cheap."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.utils.augment import AugmentationRange
    from common.utils.frames import Frames


def default_frames() -> Frames:
    """The published frames."""
    from common.utils.frames import Frames

    return Frames()


def default_augmentation() -> AugmentationRange:
    """The published augmentation."""
    from common.utils.augment import AugmentationRange

    return AugmentationRange()


@dataclass(frozen=True)
class Config:
    """Passed to the builders; modules take plain numbers and never see it."""

    # Network. Backbone names are torchvision's, see common/nets/resnet.py.
    body_backbone: str = "resnet50"
    hand_backbone: str = "resnet50"
    trans_backbone: str = "resnet18"
    box_channels: int = 256  # width of the box detector's head
    frames: Frames = field(default_factory=default_frames)
    hand_box_extension: float = 2.0  # the predicted hand box is enlarged by this before it is cropped

    # The person's box is enlarged by this before it is cropped.
    wild_box_extension: float = 1.25  # photos: MSCOCO and the demo
    studio_box_extension: float = 1.0  # InterHand26M, HIC, ReInterHand

    # Datasets, by the names of their folders under data/.
    trainset_3d: tuple[str, ...] = ("InterHand26M", "ReInterHand")  # with depth; concatenated
    trainset_2d: tuple[str, ...] = ("MSCOCO",)  # without; the shorter of the two groups is repeated
    testset: str = "HIC"
    interhand_train_subset: str = "all"  # or human: the ids of aid_human_annot_train.txt
    interhand_test_subset: str = "human"  # or all
    cam_mode: str = "Mugsy_cameras"  # ReInterHand: or Ego_cameras
    envmap_mode: str = "envmap_per_frame"  # ReInterHand: or envmap_per_segment
    augmentation: AugmentationRange = field(default_factory=default_augmentation)

    # Training. Epochs count from 0.
    lr: float = 1e-4  # Adam's
    lr_dec_epoch: tuple[int, ...] = (4,)  # as each of these epochs begins, lr is divided ...
    lr_dec_factor: float = 10.0  # ... by this
    end_epoch: int = 7  # how many epochs there are
    train_batch_size: int = 128  # samples of a step on one GPU
    accumulate: int = 1  # a step's samples go through the network in so many parts: less memory, the same losses
    amp: str = "none"  # mixed precision: or bf16, fp16
    sync_bn: bool = False  # batch norm over all GPUs; published: each GPU over its own samples
    seed: int = 0  # of the untrained weights, the order of the data and the augmentation

    # Both training and test.
    test_batch_size: int = 64  # samples at once on one GPU
    num_thread: int = 16  # loader workers of a process, at most; no more are started than there are CPU cores


# Changes to the defaults, by name. "small" learns on two CPU cores within minutes.
PRESETS: dict[str, dict[str, Any]] = {
    "small": {
        "body_backbone": "resnet10_half",
        "hand_backbone": "resnet10_half",
        "trans_backbone": "resnet10_half",
        "box_channels": 64,
        "frames": {
            "crop": [256, 192],
            "body": [128, 96],
            "body_hm": [32, 24],
            "hand": [128, 128],
            "hand_hm": [4, 4],
            "pair_hm": [32, 32],
            "pair_bins": 32,
        },
        "lr": 1e-3,
        "train_batch_size": 16,
        "test_batch_size": 16,
    },
}


def config_to_dict(config: Config) -> dict[str, Any]:
    """Plain numbers, texts and lists, as a checkpoint keeps them."""
    return asdict(config)
