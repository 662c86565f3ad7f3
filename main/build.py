"""From the configuration to datasets and networks."""

from pathlib import Path

from common.errors import UserError
from data.dataset import HandDataset, MixedDataset, Source
from data.HIC.HIC import HIC
from data.InterHand26M.InterHand26M import InterHand26M
from data.layouts import DATASETS
from data.MSCOCO.MSCOCO import MSCOCO
from data.ReInterHand.ReInterHand import ReInterHand
from main.config import Config


def open_source(
    name: str, split: str, config: Config, data_folder: Path, cache: Path | None = None, rebuild: bool = False
) -> Source:
    """A dataset by its official name.

    Args:
        split: train or test.
        data_folder: the folder with one folder for each dataset.
        cache: where annotation caches go; default: `cache` in the dataset's folder.
        rebuild: make the cache anew.

    Raises:
        UserError: there is no such dataset or split, or files are missing (what and where to get them).
    """
    root = data_folder / name
    if name == "InterHand26M":
        subset = {"train": config.interhand_train_subset, "test": config.interhand_test_subset}[split]
        return InterHand26M(root, split, subset, cache, rebuild)
    if name == "ReInterHand":
        return ReInterHand(root, split, config.cam_mode, config.envmap_mode)
    if name == "MSCOCO":
        return MSCOCO(root, split, cache, rebuild)
    if name == "HIC":
        return HIC(root, split, cache, rebuild)
    raise UserError(f"there is no dataset {name!r}; there are: {', '.join(DATASETS)}")


def open_dataset(
    name: str, split: str, config: Config, data_folder: Path, cache: Path | None = None, rebuild: bool = False
) -> HandDataset:
    """`open_source` as a dataset of samples. Raises UserError also if it is empty."""
    source = open_source(name, split, config, data_folder, cache, rebuild)
    if not len(source):
        raise UserError(f"{name}: the {split} split in {data_folder / name} holds no annotation that can be used")
    return HandDataset(
        source, config.frames, config.wild_box_extension if source.in_the_wild else config.studio_box_extension
    )


def open_training(
    config: Config,
    data_folder: Path,
    seed: int,
    skip_bad: bool = False,
    cache: Path | None = None,
    rebuild: bool = False,
) -> MixedDataset:
    """The training sets of a configuration, mixed. Raises UserError like `open_source`, or if none is named."""
    groups = [
        [open_dataset(name, "train", config, data_folder, cache, rebuild) for name in names]
        for names in (config.trainset_3d, config.trainset_2d)
    ]
    if not any(groups):
        raise UserError("no training set is named; set trainset_3d or trainset_2d")
    return MixedDataset(*groups, seed, config.augmentation, skip_bad)
