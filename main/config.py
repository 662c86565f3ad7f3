"""Every number of the experiment: its meaning, its limits and its default, which is the published value."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from common.utils.augment import AugmentationRange
from common.utils.frames import Frames, Positive

Backbone = Literal["resnet50", "resnet34", "resnet18", "resnet10_half"]  # the keys of `common.nets.resnet.BACKBONES`
Datasets = tuple[str, ...]  # names of the folders under data/
Subset = Annotated[Literal["all", "human"], Meta(description="InterHand26M: all annotations, or those by people only")]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]


class Config(Struct, frozen=True):
    """Passed to the builders; modules take plain numbers and never see it. Descriptions are also the options' help."""

    # Network
    body_backbone: Annotated[Backbone, Meta(description="backbone of the box detector")] = "resnet50"
    hand_backbone: Annotated[Backbone, Meta(description="backbone of the hand networks")] = "resnet50"
    trans_backbone: Annotated[Backbone, Meta(description="backbone of the translation network")] = "resnet18"
    box_channels: Annotated[int, Meta(ge=1, le=1024, description="width of the box detector's head")] = 256
    rotation_init: Annotated[
        Literal["published", "identity"],
        Meta(description="bias of the rotation heads before training: 0, or the rest pose; see docs/reproducing.md"),
    ] = "published"
    frames: Annotated[Frames, Meta(description="sizes of the frames, see common/utils/frames.py")] = Frames()
    hand_box_extension: Annotated[Positive, Meta(description="enlarges the predicted hand box before the crop")] = 2.0
    wild_box_extension: Annotated[Positive, Meta(description="enlarges the person's box in MSCOCO and the demo")] = 1.25
    studio_box_extension: Annotated[Positive, Meta(description="enlarges the person's box in the other datasets")] = 1.0

    # Datasets
    trainset_3d: Annotated[Datasets, Meta(description="training sets with depth")] = ("InterHand26M", "ReInterHand")
    trainset_2d: Annotated[
        Datasets, Meta(description="training sets without depth; the smaller of the two groups is repeated")
    ] = ("MSCOCO",)
    testset: Annotated[str, Meta(description="test set: InterHand26M, HIC, ReInterHand or MSCOCO")] = "HIC"
    interhand_train_subset: Subset = "all"
    interhand_test_subset: Subset = "human"
    cam_mode: Annotated[Literal["Mugsy_cameras", "Ego_cameras"], Meta(description="ReInterHand: the cameras")] = (
        "Mugsy_cameras"
    )
    envmap_mode: Annotated[
        Literal["envmap_per_frame", "envmap_per_segment"], Meta(description="ReInterHand: the lighting")
    ] = "envmap_per_frame"
    augmentation: Annotated[
        AugmentationRange, Meta(description="ranges of the augmentation, see common/utils/augment.py")
    ] = AugmentationRange()

    # Training; epochs count from 0.
    lr: Annotated[Positive, Meta(description="learning rate of Adam")] = 1e-4
    lr_dec_epoch: Annotated[
        tuple[Annotated[int, Meta(ge=0, le=1_000_000)], ...], Meta(description="epochs that begin with a lower lr")
    ] = (4,)
    lr_dec_factor: Annotated[Positive, Meta(description="divides lr at each of these epochs")] = 10.0
    warmup_steps: Annotated[
        int, Meta(ge=0, le=1_000_000, description="steps of the first epoch in which lr rises to its value")
    ] = 0
    end_epoch: Annotated[Count, Meta(description="number of epochs")] = 7
    train_batch_size: Annotated[Count, Meta(description="samples per step on one GPU")] = 128
    accumulate: Annotated[
        Count, Meta(description="microbatches per step: less memory, the same losses; divides train_batch_size")
    ] = 1
    amp: Annotated[Literal["none", "bf16", "fp16"], Meta(description="mixed precision")] = "none"
    sync_bn: Annotated[bool, Meta(description="batch norm over all GPUs instead of each over its own samples")] = False
    seed: Annotated[
        int, Meta(ge=0, le=2**63 - 1, description="seed of the initial weights, the sample order and the augmentation")
    ] = 0

    # Training and test
    test_batch_size: Annotated[Count, Meta(description="samples per batch on one GPU in a test")] = 64
    num_thread: Annotated[
        int, Meta(ge=0, le=10_000, description="loader workers per process, at most; never more than CPU cores")
    ] = 16


# Changes to the defaults, by name. "small" learns on two CPU cores within minutes.
PRESETS: dict[str, dict[str, Any]] = {
    "small": {
        "body_backbone": "resnet10_half",
        "hand_backbone": "resnet10_half",
        "trans_backbone": "resnet10_half",
        "box_channels": 64,
        "rotation_init": "identity",
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
        "warmup_steps": 50,
        "train_batch_size": 16,
        "test_batch_size": 16,
    },
}


def config_to_dict(config: Config) -> dict[str, Any]:
    """Plain numbers, texts and tuples, as a checkpoint keeps them."""
    return msgspec.to_builtins(config)
