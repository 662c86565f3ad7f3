"""The checkpoints of a training: what is in them beside the network, which there are, and going on from the newest.

    model_dump/snapshot_{epoch}.pth       after each epoch, kept; the published layout and more
    model_dump/step_{epoch}_{step}.pth    within an epoch, the last few are kept

Both hold `training`: where the training stands and all that the next step depends on.
"""

import copy
import re
import reprlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from common.checkpoint import check_tensor, load_network, read_checkpoint, save_checkpoint
from common.errors import UserError
from common.utils.files import make_folder
from main.config import Config, config_to_dict
from main.options import config_of_checkpoint

KEPT_STEPS = 2  # step checkpoints: the newest, and one before it in case the newest is damaged
# What reading a file of unknown content raises where it is not as expected.
MISFITS = (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, NotImplementedError)
EPOCH_FILE, STEP_FILE = re.compile(r"snapshot_(\d{1,9})\.pth"), re.compile(r"step_(\d{1,9})_(\d{1,9})\.pth")


class Progress(NamedTuple):
    """The step that comes next, both counted from 0."""

    epoch: int
    step: int


@dataclass
class Parts:
    """What changes while training, apart from the data's order, which is a function of `Progress`.

    The learning rate is no part: it is a function of the epoch.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler


@dataclass
class Start:
    """A checkpoint to go on from. `training` is None in files of other programs, the published ones among them."""

    path: Path
    progress: Progress
    content: dict[str, Any]
    config: Config | None
    training: dict[str, Any] | None


def list_snapshots(folder: Path) -> list[tuple[Progress, Path]]:
    """All checkpoints in a folder by their names, the newest first."""
    found = []
    for path in folder.glob("*.pth"):
        if match := EPOCH_FILE.fullmatch(path.name):
            found.append((Progress(int(match[1]) + 1, 0), path))
        elif match := STEP_FILE.fullmatch(path.name):
            found.append((Progress(int(match[1]), int(match[2])), path))
    return sorted(found, reverse=True)


def newest_whole(folder: Path, tell: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that can be read; each newer one that cannot is named.

    Raises:
        UserError: there are checkpoints and none can be read.
    """
    snapshots = list_snapshots(folder)
    for _, path in snapshots:
        try:
            read_checkpoint(path)
        except UserError as error:
            tell(f"passed over: {error}")
        else:
            return path
    if snapshots:
        raise UserError(
            f"no checkpoint in {folder} can be read (there are {len(snapshots)}); start anew with --overwrite"
        )
    return None


def read_start(path: Path) -> Start:
    """What `newest_whole` found. Raises UserError if it is no checkpoint, or says nonsense of where it stands."""
    content = read_checkpoint(path, whole=False)
    config, training = config_of_checkpoint(content, path), content.get("training")
    if not isinstance(training, Mapping):
        training = None
    at = (content.get("epoch"), -1) if training is None else (training.get("epoch"), training.get("step"))
    if not all(type(number) is int and -1 <= number < 10**9 for number in at):
        raise UserError(f"checkpoint {path} does not say how long it was trained: epoch and step {reprlib.repr(at)}")
    progress = Progress(at[0] + 1, 0) if training is None else Progress(*at)
    if min(progress) < 0:
        raise UserError(f"checkpoint {path} says that it comes from before the start: epoch and step {at}")
    return Start(path, progress, content, config, training)


def restore(start: Start, parts: Parts) -> str | None:
    """Put a checkpoint's state into the parts, exactly as it was.

    Returns:
        For a file of another program, a line that says how much of the optimizer was restored.

    Raises:
        UserError: it is of another network or optimizer.
    """
    load_network(parts.model, start.content["network"], start.path)
    if start.training is None:
        return restore_published(start, parts.optimizer)
    try:
        load_optimizer(parts.optimizer, start.content["optimizer"])
        if parts.scaler.is_enabled() and start.training["scaler"]:
            parts.scaler.load_state_dict(copy.deepcopy(start.training["scaler"]))
        random = start.training["random"]
        if not isinstance(random, Mapping):  # indexing a tensor with a string only warns
            raise TypeError("its random state is not a dictionary")
        torch.set_rng_state(random["cpu"])
        if torch.cuda.is_available() and random["cuda"] is not None:
            torch.cuda.set_rng_state(random["cuda"])
    except MISFITS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"the training state in {start.path} does not fit: {reason}") from None
    return None


def restore_published(start: Start, optimizer: torch.optim.Optimizer) -> str:
    """Restore the optimizer of a published checkpoint where it fits. Returns the line that says so."""
    try:
        if not start.content["optimizer"]["state"]:
            raise ValueError("it is empty")
        load_optimizer(optimizer, start.content["optimizer"])
    except MISFITS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return (
            f"published checkpoint without a usable optimizer state ({reason}): only the weights are restored and Adam "
            "starts from zero, as in the published system; results will differ from an uninterrupted training"
        )
    return (
        "published checkpoint: weights and Adam's moments and steps are restored; the learning rate follows the "
        "configuration and the epoch"
    )


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Any) -> None:
    """Restore the steps and moments of Adam. Its settings stay, because they follow from the configuration.

    States belong to weights by position, in the order of `parameters()`, as in `Optimizer.load_state_dict`. A file
    holds all weights, as published, or only those that are trained, as older files of this program. Unlike there,
    each moment is copied into the memory layout of its weight: fused Adam reads both in the order of memory.

    Args:
        optimizer: one parameter group; untouched if the state does not fit.
        saved: the `state_dict()` of an Adam.

    Raises:
        ValueError, or what reading a malformed mapping raises: it does not belong to these weights.
    """
    every = optimizer.param_groups[0]["params"]
    trained = [weight for weight in every if weight.requires_grad]
    (group,), states = saved["param_groups"], saved["state"]
    indices = group["params"]
    weights = {len(trained): trained, len(every): every}.get(len(indices))
    if weights is None or not states.keys() <= set(indices):
        raise ValueError(f"the optimizer state is of {len(indices)} weights, expected {len(every)}")
    restored: dict[Tensor, dict[str, Tensor]] = {}
    for number, (index, weight) in enumerate(zip(indices, weights, strict=True)):
        if index not in states:
            if weight.requires_grad and states:
                raise ValueError(f"the optimizer state lacks weight {number} of {len(indices)}")
            continue
        if states[index].keys() != {"step", "exp_avg", "exp_avg_sq"}:
            raise ValueError("the optimizer state is not Adam's")
        restored[weight] = {"step": torch.zeros((), device=weight.device)}
        step = states[index]["step"]  # a plain number before PyTorch 1.12
        for name, value, like in (
            ("step", torch.tensor(float(step)) if type(step) in (int, float) else step, restored[weight]["step"]),
            *((name, states[index][name], weight) for name in ("exp_avg", "exp_avg_sq")),
        ):
            check_tensor(f"{name} of weight {number} in the optimizer state", value, like)
            restored[weight][name] = torch.empty_like(like).copy_(value.detach())
    optimizer.state.clear()
    optimizer.state.update(restored)


def save_progress(folder: Path, progress: Progress, parts: Parts, config: Config, **more: Any) -> Path:
    """Write a checkpoint: of the epoch if one has just ended, else of the step. Older step checkpoints are removed.

    Args:
        progress: the step that comes next.
        more: further entries of `training`.

    Raises:
        UserError: it cannot be written; those that were there stay.
    """
    name = f"step_{progress.epoch}_{progress.step}.pth" if progress.step else f"snapshot_{progress.epoch - 1}.pth"
    training = {
        **more,
        **progress._asdict(),
        "scaler": parts.scaler.state_dict(),
        "random": {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        },
    }
    save_checkpoint(
        folder / name,
        parts.model,
        epoch=progress.epoch - 1,  # the last one that is finished, as published
        optimizer=parts.optimizer.state_dict(),
        config=config_to_dict(config),
        training=training,
    )
    steps = [path for at, path in list_snapshots(folder) if at.step and at <= progress]
    for path in steps[KEPT_STEPS:]:
        path.unlink(missing_ok=True)
    return folder / name


def prepare_folder(folder: Path, keep: bool, overwrite: bool) -> None:
    """Make the folder of checkpoints, and clear away what killed savings left; the caller holds the lock.

    Args:
        keep: go on with what is there.
        overwrite: remove what is there.

    Raises:
        UserError: there are checkpoints, and neither was asked for; or a file cannot be removed.
    """
    make_folder(folder)
    snapshots = [] if keep else list_snapshots(folder)
    if snapshots and not overwrite:
        raise UserError(
            f"{folder} holds checkpoints of a training ({snapshots[0][1].name}); go on with --continue, replace them "
            "with --overwrite, or choose another folder with --output"
        )
    try:
        for path in [*(path for _, path in snapshots), *folder.glob(".*.tmp")]:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot remove {path}: {error.strerror or error}") from None


def tell(text: str) -> None:
    """To the user, before there is a log."""
    print(text, file=sys.stderr, flush=True)
