"""`main/config.py` from the command line, from a JSON file and from a checkpoint."""

import argparse
import json
import math
import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import msgspec
from msgspec.inspect import Field, LiteralType, Metadata, StructType, VarTupleType

from common.errors import UserError, brief, error_context
from common.utils.files import check_is_file
from main.config import PRESETS, Config, config_to_dict

ALIASES = {"num_thread": ("--workers",)}  # the usual name beside the published one
TYPE = msgspec.inspect.type_info(Config)
assert isinstance(TYPE, StructType)
FIELDS = {field.name: field for field in TYPE.fields}


def add_config_options(parser: argparse.ArgumentParser, shown: Collection[str] = FIELDS, presets: bool = True) -> None:
    """Add --preset, --config and an option for each value of `Config`; `read_config` reads them.

    Args:
        shown: names of the values that --help lists; the other options are accepted silently.
        presets: False where a checkpoint says what the network is.
    """
    group = parser.add_argument_group(
        "values of main/config.py", "lists are written a,b,c; the entries of frames and augmentation name=value"
    )
    if presets:
        group.add_argument("--preset", choices=sorted(PRESETS), help="other defaults; small: for a CPU")
    group.add_argument("--config", type=Path, metavar="FILE", help="JSON file with any of these values")
    for name, field in FIELDS.items():
        nested = _nested(field)
        group.add_argument(
            f"--{name}",
            *ALIASES.get(name, ()),
            dest=f"config_{name}",
            nargs="+" if nested else None,
            metavar="NAME=VALUE" if nested else "VALUE",
            help=_help(field) if name in shown else argparse.SUPPRESS,
        )


def _kind(field: Field) -> Any:
    return field.type.type if isinstance(field.type, Metadata) else field.type


def _nested(field: Field) -> tuple[str, ...]:
    """The names of the entries, for frames and augmentation."""
    kind = _kind(field)
    return tuple(entry.name for entry in kind.fields) if isinstance(kind, StructType) else ()


def _choices(field: Field) -> str:
    kind = _kind(field)
    return ", ".join(sorted(map(str, kind.values))) if isinstance(kind, LiteralType) else ""


def _help(field: Field) -> str:
    """Description, choices and default."""
    description = (field.type.extra_json_schema or {})["description"] if isinstance(field.type, Metadata) else ""
    if names := _nested(field):
        return f"{description}; NAME is one of {', '.join(names)}"
    default = ",".join(map(str, field.default)) if isinstance(_kind(field), VarTupleType) else str(field.default)
    choices = f"choices: {_choices(field)}; " if _choices(field) else ""
    return f"{description} ({choices}default: {default})".replace("%", "%%")


def read_config(args: argparse.Namespace, base: Config | None = None) -> Config:
    """The configuration that the options give.

    Args:
        args: of a parser with `add_config_options`.
        base: what the options change; --preset then has no effect. Default: the preset's or the published values.

    Raises:
        UserError: an unknown name, or a value out of its limits.
    """
    config = base or preset_config(getattr(args, "preset", None))
    if args.config:
        with error_context(f"cannot read --config {args.config}", ValueError, RecursionError):
            check_is_file(args.config)
            values = json.loads(args.config.read_bytes())
            if not isinstance(values, dict):
                raise UserError('it must hold an object such as {"lr": 5e-5}')
        config = change_config(config, values, str(args.config))
    given = {name: value for name in FIELDS if (value := getattr(args, f"config_{name}")) is not None}
    for name, texts in given.items():
        if _nested(FIELDS[name]):
            if not all("=" in text for text in texts):
                raise UserError(f"--{name}: write NAME=VALUE, e.g. --frames crop=512,384")
            given[name] = dict(text.split("=", 1) for text in texts)
    config = change_config(config, given, "the command line")
    check_config(config)
    return config


def preset_config(preset: str | None) -> Config:
    """The published values, or those of a preset."""
    return change_config(Config(), PRESETS[preset] if preset else {}, "the preset")


def change_config(config: Config, changes: Mapping[str, Any], where: str) -> Config:
    """A configuration with some values changed.

    Args:
        changes: name -> value, as text or as JSON has it.
        where: their origin, for messages.

    Raises:
        UserError: an unknown name, or a value of the wrong type or out of its limits.
    """
    values = config_to_dict(config)
    _merge(values, changes, where)
    try:
        return msgspec.convert(values, Config, strict=False)
    except msgspec.ValidationError as error:
        raise UserError(f"{where}: {_explain(str(error), values)}") from None


def _merge(values: dict[str, Any], changes: Mapping[str, Any], where: str, prefix: str = "") -> None:
    for name, value in changes.items():
        if name not in values:
            close = get_close_matches(str(name), values, 1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"choose from {', '.join(values)}"
            raise UserError(f"{where}: unknown value {prefix}{brief(name).strip(chr(39))}; {hint}")
        if isinstance(values[name], dict) and isinstance(value, Mapping):
            _merge(values[name], value, where, f"{name}.")
        elif isinstance(values[name], tuple) and isinstance(value, str):
            values[name] = [item for item in value.split(",") if item]
        else:
            values[name] = value


def _explain(message: str, values: Any) -> str:
    """msgspec's message, with the value it is about and the choices, e.g. "lr cannot be -1: expected float > 0.0"."""
    reason, _, path = message.rpartition(" - at `$.")
    path = path.rstrip("`")
    keys = re.findall(r"\w+", path)
    for key in keys:
        values = values[int(key) if key.isdigit() else key]
    reason = reason.replace("`", "").replace("array", "list").replace("Expected", "expected")
    if choices := _choices(FIELDS[keys[0]]):
        reason = f"expected one of {choices}"
    return f"{path} cannot be {brief(values)}: {reason}"


def check_config(config: Config) -> None:
    """What the limits of single values cannot say. Raises UserError."""
    for name, source, factor in (("body_hm", "body", 4), ("hand_hm", "hand", 32)):
        size = tuple(side // factor for side in getattr(config.frames, source))
        if getattr(config.frames, name) != size:
            raise UserError(f"frames.{name} must be {size}, which is frames.{source} / {factor}")
    if config.train_batch_size % config.accumulate:
        raise UserError(
            f"train_batch_size {config.train_batch_size} is not a multiple of accumulate {config.accumulate}; "
            "change one of them"
        )
    last_exponent = math.log10(config.lr) - len(config.lr_dec_epoch) * math.log10(config.lr_dec_factor)
    if abs(last_exponent) > 300:
        raise UserError("lr, lr_dec_factor and lr_dec_epoch lead to a learning rate that float64 cannot represent")


def config_of_checkpoint(content: Mapping[str, Any], path: Path) -> Config | None:
    """The configuration in a checkpoint, with each value checked; None where there is none, as in published files.

    Entries that an older file lacks have the default.

    Raises:
        UserError: it is not a configuration of this version.
    """
    values = content.get("config")
    if values is None:
        return None
    with error_context(f"checkpoint {path}: its config is not of this version", RecursionError):
        if not isinstance(values, Mapping):
            raise UserError("it is not a dictionary")
        config = change_config(Config(), values, "config")
        check_config(config)
    return config
