"""Every number of the experiment, with the published values as defaults."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from common.utils.frames import Frames


@dataclass(frozen=True)
class Config:
    """Passed to the builders; modules take plain numbers and never see it."""

    # Network. Trunk names are torchvision's, see common/nets/resnet.py.
    body_backbone: str = "resnet50"
    hand_backbone: str = "resnet50"
    trans_backbone: str = "resnet18"
    frames: Frames = field(default_factory=Frames)
    hand_box_extension: float = 2.0  # the predicted hand box is enlarged by this before it is cropped

    # The person's box is enlarged by this before it is cropped.
    wild_box_extension: float = 1.25  # photos: MSCOCO and the demo
    studio_box_extension: float = 1.0  # InterHand26M, HIC, ReInterHand


def config_to_dict(config: Config) -> dict[str, Any]:
    """Plain numbers, texts and lists, as a checkpoint keeps them."""
    return asdict(config)


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """The inverse of `config_to_dict`.

    Raises:
        TypeError: an entry that no config has.
    """
    frames = {key: tuple(value) if isinstance(value, list) else value for key, value in values["frames"].items()}
    return Config(**{**values, "frames": Frames(**frames)})
