"""From the configuration to datasets and networks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from common.checkpoint import data_record, load_network, network_note, read_checkpoint
from common.errors import UserError
from common.nets.mano import TwoHandMano
from common.nets.mano_files import read_hand_models
from common.nets.resnet import load_imagenet
from data.dataset import HandDataset, MixedDataset, Source
from data.HIC.HIC import HIC
from data.InterHand26M.InterHand26M import InterHand26M
from data.layouts import DATASETS, TOY_MARK
from data.MSCOCO.MSCOCO import MSCOCO
from data.ReInterHand.ReInterHand import ReInterHand
from main.config import Config
from main.model import InterWild
from main.options import config_of_checkpoint

Network = TypeVar("Network", bound=nn.Module)

# ---- Datasets ----


def open_source(name: str, split: str, config: Config, data_folder: Path, cache: Path | None = None) -> Source:
    """A dataset by its official name.

    Args:
        split: train or test.
        data_folder: the folder with one folder for each dataset.
        cache: where annotation caches go; default: `cache` in the dataset's folder.

    Raises:
        UserError: the name or the split is unknown, or files are missing (which, and where to get them).
    """
    root = data_folder / name
    if name == "InterHand26M":
        subset = {"train": config.interhand_train_subset, "test": config.interhand_test_subset}[split]
        return InterHand26M(root, split, subset, cache)
    if name == "ReInterHand":
        return ReInterHand(root, split, config.cam_mode, config.envmap_mode)
    if name == "MSCOCO":
        return MSCOCO(root, split, cache)
    if name == "HIC":
        return HIC(root, split, cache)
    raise UserError(f"there is no dataset {name!r}; choose from {', '.join(DATASETS)}")


def open_dataset(name: str, split: str, config: Config, data_folder: Path, cache: Path | None = None) -> HandDataset:
    """`open_source` as a dataset of samples. Raises UserError also if it is empty."""
    source = open_source(name, split, config, data_folder, cache)
    if not len(source):
        raise UserError(f"{name}: the {split} split in {data_folder / name} has no usable annotation")
    return HandDataset(
        source, config.frames, config.wild_box_extension if source.in_the_wild else config.studio_box_extension
    )


def open_training(
    config: Config,
    data_folder: Path,
    seed: int,
    skip_bad: bool = False,
    cache: Path | None = None,
    hold_out: bool = False,
) -> MixedDataset:
    """The training sets of a configuration, mixed. Raises UserError like `open_source`, or if none is named."""
    sets_3d, sets_2d = (
        [open_dataset(name, "train", config, data_folder, cache) for name in names]
        for names in (config.trainset_3d, config.trainset_2d)
    )
    if not sets_3d and not sets_2d:
        raise UserError("no training set is named; set trainset_3d or trainset_2d")
    return MixedDataset(sets_3d, sets_2d, seed, config.augmentation, skip_bad, hold_out)


def training_record(config: Config, data_folder: Path, hand_model: str) -> dict[str, Any]:
    """The record of a training's data for its checkpoints, see `common.checkpoint.data_record`."""
    sets = (*config.trainset_3d, *config.trainset_2d)
    return data_record(sets, [name for name in sets if (data_folder / name / TOY_MARK).exists()], hand_model)


# ---- Networks ----


def build_model(config: Config, mano: TwoHandMano | None) -> InterWild:
    """The network of `config`, its heads initialised, backbones as torchvision initialises them."""
    model = InterWild(
        mano=mano,
        frames=config.frames,
        body_backbone=config.body_backbone,
        hand_backbone=config.hand_backbone,
        trans_backbone=config.trans_backbone,
        box_channels=config.box_channels,
        hand_box_extension=config.hand_box_extension,
    )
    if config.rotation_init == "identity":
        model.hand_rotation_net.init_identity()
    return model


def init_backbones(model: InterWild, init: str) -> None:
    """Initialise the three backbones for training.

    Args:
        init: "imagenet" (torchvision's weights, as published) or "random" (as built).

    Raises:
        UserError: the ImageNet weights cannot be downloaded.
    """
    if init == "imagenet":
        for backbone in (model.body_backbone, model.hand_roi_net.backbone, model.hand_trans_net.backbone):
            load_imagenet(backbone)


def prepare_inference(model: Network, device: torch.device) -> Network:
    """The network on its device, ready to predict."""
    model = model.to(device).eval()
    # On CPUs this layout saves 5 to 20 percent of the time, more for larger batches; results change by rounding only.
    return model.to(memory_format=torch.channels_last) if device.type == "cpu" else model


class LoadedModel(NamedTuple):
    """A network with a checkpoint's weights.

    Attributes:
        epoch: of the checkpoint, 0 where it has none.
        ignored: keys of the checkpoint that the network does not use, or may lack.
        note: what must be said with its results, see `common.checkpoint.network_note`.
    """

    model: InterWild
    config: Config
    epoch: int
    ignored: list[str]
    note: str


def load_model(
    checkpoint: Path, mano: Path | None, configure: Callable[[Config], Config] = lambda config: config
) -> LoadedModel:
    """Build the network of a checkpoint and load its weights, on the CPU; then see `prepare_inference`.

    Args:
        checkpoint: published, which has the published configuration, or ours, which holds its own.
        mano: folder of MANO_RIGHT.pkl and MANO_LEFT.pkl; None: without hand models, for a look at the weights.
        configure: changes the checkpoint's configuration before the network is built.

    Raises:
        UserError: a file is missing, damaged, or does not fit.
    """
    layer = TwoHandMano(*read_hand_models(mano)) if mano else None
    content = read_checkpoint(checkpoint)
    config = configure(config_of_checkpoint(content, checkpoint) or Config())
    model = build_model(config, layer)
    ignored = load_network(model, content["network"], checkpoint)
    epoch = content.get("epoch")
    epoch = epoch if type(epoch) is int and 0 <= epoch < 10**9 else 0
    return LoadedModel(model, config, epoch, ignored, network_note(content))
