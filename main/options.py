"""`main/config.py` from the command line: one option for each of its values. Nothing heavy is imported here."""

import argparse
import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from common.errors import UserError
from main.config import PRESETS, Config

AMP_MODES = ("none", "bf16", "fp16")
# Further names of an option, where another one is usual.
ALIASES = {"num_thread": ("--workers",)}
# Beyond these a network is a mistake, or a trap: it would take all memory.
LARGEST_SIDE, MOST_BINS = 8192, 1024
PARTS = ("frames", "augmentation")  # fields that are dataclasses


def add_config_options(parser: argparse.ArgumentParser, presets: bool = True) -> None:
    """Add --preset, --config and an option for each value of `Config`; `read_config` reads them.

    Args:
        presets: False where a checkpoint says what the network is.
    """
    group = parser.add_argument_group(
        "values of main/config.py", "lists are written a,b,c; the parts of frames and augmentation as name=value"
    )
    if presets:
        group.add_argument("--preset", choices=sorted(PRESETS), help="a set of other defaults; small: for a CPU")
    group.add_argument("--config", type=Path, metavar="FILE", help="JSON file of such values")
    for field in fields(Config):
        part = field.name in PARTS
        group.add_argument(
            f"--{field.name}",
            *ALIASES.get(field.name, ()),
            dest=f"config_{field.name}",
            nargs="+" if part else None,
            metavar="NAME=VALUE" if part else "VALUE",
            help=None if part else f"(default: {_text(_default(field))})",
        )


def _default(field: Field) -> Any:
    return field.default if field.default is not MISSING else field.default_factory()


def _text(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text.replace("%", "%%")


def read_config(args: argparse.Namespace, base: Config | None = None) -> Config:
    """The configuration that the options ask for.

    Args:
        args: of a parser with `add_config_options`.
        base: what the options change; then --preset does nothing. Default: the preset's, or the published values.

    Raises:
        UserError: an unknown name, or a value that makes no sense.
    """
    config = base
    if config is None:
        preset = getattr(args, "preset", None)
        config = change_config(Config(), PRESETS[preset] if preset else {}, "the preset")
    if args.config:
        config = change_config(config, _read_json(args.config), str(args.config))
    given = {field.name: getattr(args, f"config_{field.name}") for field in fields(Config)}
    given = {name: value for name, value in given.items() if value is not None}
    for name in PARTS:
        if name in given:
            given[name] = _pairs(name, given[name])
    config = change_config(config, given, "the command line")
    check_config(config)
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read --config {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"--config {path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f'--config {path} must hold an object such as {{"lr": 5e-5}}')
    return values


def _pairs(name: str, texts: list[str]) -> dict[str, str]:
    """["crop=256,192", ...] -> {"crop": "256,192", ...}."""
    pairs = [text.partition("=") for text in texts]
    if not all(equals for _, equals, _ in pairs):
        raise UserError(f"--{name}: write NAME=VALUE, e.g. --frames crop=512,384")
    return {key: value for key, _, value in pairs}


def change_config(config: Any, changes: Mapping[str, Any], where: str) -> Any:
    """A configuration, or a part of it, with some values changed.

    Args:
        config: a frozen dataclass.
        changes: name -> value, as texts or as JSON has it.
        where: they come from, for messages.

    Raises:
        UserError: an unknown name or a value of the wrong kind.
    """
    names, converted = [field.name for field in fields(config)], {}
    for name, value in changes.items():
        if name not in names:
            close = get_close_matches(str(name), names, 1)
            hint = f"; did you mean {close[0]}?" if close else f"; there are: {', '.join(names)}"
            raise UserError(f"{where}: there is no value {name!r}{hint}")
        converted[name] = _convert(name, value, getattr(config, name), where)
    return replace(config, **converted)


def _convert(name: str, value: Any, like: Any, where: str) -> Any:
    """`value` as the kind of thing that `like` is."""
    wrong = UserError(f"{where}: {name} cannot be {reprlib.repr(value)}; it must be like {_like(like)}")
    if is_dataclass(like):
        if not isinstance(value, Mapping):
            raise wrong
        return change_config(like, value, f"{where}: {name}")
    if isinstance(like, tuple):
        items = [item for item in value.split(",") if item] if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            raise wrong
        return tuple(_convert(name, item, like[0] if like else "", where) for item in items)
    if isinstance(like, str):
        if isinstance(value, str):
            return value
    elif isinstance(like, bool):
        truth = {"true": True, "1": True, "false": False, "0": False}
        if str(value).lower() in truth:
            return truth[str(value).lower()]
    elif not isinstance(value, bool) and isinstance(value, str | int | float):
        try:
            number = type(like)(value)
        except (ValueError, OverflowError):
            raise wrong from None
        if math.isfinite(number) and (isinstance(value, str) or number == value):
            return number
    raise wrong


def config_of_checkpoint(content: Mapping[str, Any], path: Path) -> Config | None:
    """The configuration that a checkpoint holds, with each value checked; None where it holds none, as published.

    Entries that are missing, in older files, have the default.

    Raises:
        UserError: it is not a configuration of this version.
    """
    if content.get("config") is None:
        return None
    try:
        if not isinstance(content["config"], Mapping):
            raise UserError("it is no dictionary")
        config = change_config(Config(), content["config"], "config")
        check_config(config)
    except (UserError, RecursionError) as error:
        raise UserError(f"checkpoint {path}: its config is not of this version ({error})") from None
    return config


def _like(value: Any) -> str:
    return json.dumps(asdict(value) if is_dataclass(value) else value)


def check_config(config: Config) -> None:
    """Raises UserError for numbers that make no sense."""
    for name in ("lr", "lr_dec_factor", "hand_box_extension", "wild_box_extension", "studio_box_extension"):
        if getattr(config, name) <= 0:
            raise UserError(f"{name} must be above 0, not {getattr(config, name)}")
    for name in ("end_epoch", "train_batch_size", "test_batch_size", "accumulate", "box_channels"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} must be at least 1, not {getattr(config, name)}")
    for name in ("num_thread", "seed"):
        if getattr(config, name) < 0:
            raise UserError(f"{name} must not be below 0, it is {getattr(config, name)}")
    for name, most in (("seed", 2**63 - 1), ("end_epoch", 10**6), ("box_channels", 1024)):
        if getattr(config, name) > most:
            raise UserError(f"{name} must not be above {most}, it is {getattr(config, name)}")
    try:
        last = config.lr / config.lr_dec_factor ** len(config.lr_dec_epoch)
    except (OverflowError, ZeroDivisionError):
        last = 0.0
    if not 0 < last < math.inf:
        raise UserError("lr, lr_dec_factor and lr_dec_epoch do not give a learning rate that a computer can hold")
    if config.train_batch_size % config.accumulate:
        raise UserError(
            f"train_batch_size {config.train_batch_size} does not divide into {config.accumulate} parts; "
            "change it or accumulate"
        )
    if config.amp not in AMP_MODES:
        raise UserError(f"amp must be one of {', '.join(AMP_MODES)}, not {config.amp!r}")
    from common.nets.resnet import BACKBONES

    for name in ("body_backbone", "hand_backbone", "trans_backbone"):
        if getattr(config, name) not in BACKBONES:
            raise UserError(f"{name} must be one of {', '.join(BACKBONES)}, not {getattr(config, name)!r}")
    _check_augmentation(config)
    _check_frames(config)


def _check_augmentation(config: Config) -> None:
    limits = config.augmentation
    if not 0 <= limits.scale < 1:
        raise UserError(f"augmentation: scale must be from 0 to below 1, not {limits.scale}")
    if abs(limits.rot) > 360:
        raise UserError(f"augmentation: rot must be from -360 to 360 degrees, not {limits.rot}")
    for name in ("rot_probability", "color", "flip_probability"):
        if not 0 <= getattr(limits, name) <= 1:
            raise UserError(f"augmentation: {name} must be from 0 to 1, not {getattr(limits, name)}")


def _check_frames(config: Config) -> None:
    """The network halves sizes: some follow from others."""
    frames = config.frames
    for name in ("crop", "body", "body_hm", "hand", "hand_hm", "pair_hm"):
        size = getattr(frames, name)
        if len(size) != 2 or min(size) < 1 or max(size) > LARGEST_SIDE:
            raise UserError(f"frames: {name} must be a height and a width, at most {LARGEST_SIDE}, not {size}")
    if min(frames.crop) < 2:
        raise UserError(f"frames: the sides of crop must be at least 2, not {frames.crop}")
    # Halved so often, a smaller picture ends as a single cell: there is no place in it, and batch norm wants two.
    for name in ("body", "hand"):
        if any(side % 32 or side < 64 for side in getattr(frames, name)):
            raise UserError(
                f"frames: the sides of {name} must be multiples of 32, at least 64, not {getattr(frames, name)}"
            )
    expected = {
        "body_hm": tuple(side // 4 for side in frames.body),
        "hand_hm": tuple(side // 32 for side in frames.hand),
    }
    for name, size in expected.items():
        if getattr(frames, name) != size:
            raise UserError(f"frames: {name} must be {size}, which follows from the other sizes")
    if any(side % 8 or side < 16 for side in frames.pair_hm):
        raise UserError(f"frames: the sides of pair_hm must be multiples of 8, at least 16, not {frames.pair_hm}")
    for name in ("hand_bins", "pair_bins"):
        if not 1 <= getattr(frames, name) <= MOST_BINS:
            raise UserError(f"frames: {name} must be from 1 to {MOST_BINS}, not {getattr(frames, name)}")
    for name in ("depth_range", "focal", "camera_depth_size"):
        if not 0 < getattr(frames, name) <= 1e6:
            raise UserError(f"frames: {name} must be above 0, not {getattr(frames, name)}")
