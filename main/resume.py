"""The checkpoints of a training: what they hold beside the network, which ones exist, and resuming from the latest.

    model_dump/snapshot_{epoch}.pth       after each epoch, kept; the published layout and more
    model_dump/step_{epoch}_{step}.pth    within an epoch, the last few are kept

Both hold `training`: the position in the training and all that the next step depends on.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.checkpoint import check_tensor, load_network, read_checkpoint, save_checkpoint
from common.errors import UserError, brief
from common.utils.files import make_folder
from data.dataset import MixedSampler
from main.config import Config, config_to_dict
from main.model import InterWild
from main.options import config_of_checkpoint

KEPT_STEPS = 2  # step checkpoints: the latest, and one before it in case the latest is damaged
# Values of the configuration that may change without an effect on what is learned up to a step.
SAME_RESULT = ("end_epoch", "num_thread", "testset", "interhand_test_subset", "test_batch_size")
# What reading a malformed file raises.
MALFORMED = (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, NotImplementedError)
EPOCH_FILE, STEP_FILE = re.compile(r"snapshot_(\d{1,9})\.pth"), re.compile(r"step_(\d{1,9})_(\d{1,9})\.pth")


class Progress(NamedTuple):
    """The next step, both numbers counted from 0."""

    epoch: int
    step: int

    def next(self, steps_per_epoch: int) -> "Progress":
        """The step after this one."""
        return Progress(self.epoch, self.step + 1) if self.step + 1 < steps_per_epoch else Progress(self.epoch + 1, 0)

    def __str__(self) -> str:
        return f"epoch {self.epoch}, step {self.step}"


@dataclass
class TrainState:
    """What training changes, apart from the order of the data, which is a function of `Progress`.

    The learning rate is not part of it: it is a function of the epoch.
    """

    model: InterWild
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler


@dataclass
class ResumePoint:
    """A checkpoint to resume from. `training` is None in files of other programs, such as the published ones."""

    path: Path
    progress: Progress
    content: dict[str, Any]
    config: Config | None
    training: Mapping[str, Any] | None


# ---- Which checkpoints exist ----


def list_snapshots(folder: Path) -> list[tuple[Progress, Path]]:
    """All checkpoints in a folder by their names, the latest first."""
    found = []
    for path in folder.glob("*.pth"):
        if match := EPOCH_FILE.fullmatch(path.name):
            found.append((Progress(int(match[1]) + 1, 0), path))
        elif match := STEP_FILE.fullmatch(path.name):
            found.append((Progress(int(match[1]), int(match[2])), path))
    return sorted(found, reverse=True)


def latest_valid_checkpoint(folder: Path, tell: Callable[[str], None]) -> Path | None:
    """The latest checkpoint that can be read; `tell` names each later one that cannot.

    Raises:
        UserError: there are checkpoints, but none can be read.
    """
    snapshots = list_snapshots(folder)
    for _, path in snapshots:
        try:
            read_checkpoint(path)
        except UserError as error:
            tell(f"skipped: {error}")
        else:
            return path
    if snapshots:
        raise UserError(f"no checkpoint in {folder} can be read (of {len(snapshots)}); start over with --overwrite")
    return None


def prepare_folder(folder: Path, keep: bool, overwrite: bool) -> None:
    """Make the folder of checkpoints and remove what interrupted saves left; the caller holds the lock.

    Args:
        keep: resume from the checkpoints that exist.
        overwrite: remove the checkpoints that exist.

    Raises:
        UserError: there are checkpoints, and neither option is set.
        OSError: a file cannot be removed.
    """
    make_folder(folder)
    snapshots = [] if keep else list_snapshots(folder)
    if snapshots and not overwrite:
        raise UserError(
            f"{folder} holds checkpoints of a training ({snapshots[0][1].name}); resume with --continue, replace them "
            "with --overwrite, or choose another folder with --output"
        )
    for path in [*(path for _, path in snapshots), *folder.glob(".*.tmp")]:
        path.unlink(missing_ok=True)


# ---- Save and restore ----


def data_order(sampler: MixedSampler) -> dict[str, Any]:
    """The numbers that the order of the data depends on; checkpoints hold them."""
    return {"global_batch": sampler.global_batch, "group_sizes": sampler.group_sizes, "seed": sampler.seed}


def describe_changes(resume: ResumePoint, config: Config, options: Mapping[str, Any]) -> str | None:
    """A line on what differs from the run that wrote a checkpoint and changes the result, at least by rounding.

    Args:
        config: of this run.
        options: of this run, apart from the configuration; see `save_progress`.
    """
    saved = resume.training.get("options") if resume.training else None
    was = dict(saved) if isinstance(saved, Mapping) else {}
    now = {name: value for name, value in options.items() if name in was}
    if resume.config:
        was |= {name: getattr(resume.config, name) for name in config.__struct_fields__ if name not in SAME_RESULT}
        now |= {name: getattr(config, name) for name in config.__struct_fields__ if name not in SAME_RESULT}
    changed = [f"{name} was {brief(was[name])}, is {now[name]}" for name in now if brief(was[name]) != brief(now[name])]
    return f"the result will differ from an uninterrupted run: {', '.join(changed)}" if changed else None


def save_progress(
    folder: Path,
    progress: Progress,
    state: TrainState,
    config: Config,
    order: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint: of the epoch if one has just ended, else of the step. Older step checkpoints are removed.

    Args:
        progress: the next step.
        order: of the data, see `data_order`.
        options: what else the result depends on.
        data: what it is trained on, see `main.build.training_record`.

    Raises:
        UserError: it cannot be written, or would hold numbers that are not finite; existing checkpoints stay.
    """
    values = [value for value in state.model.state_dict().values() if value.is_floating_point()]
    if not torch.stack([value.isfinite().all() for value in values]).all():
        raise UserError(
            f"weights or batch norm statistics are not finite before {progress}; lower --lr; the "
            "last checkpoint is from before that, --continue resumes there"
        )
    name = f"step_{progress.epoch}_{progress.step}.pth" if progress.step else f"snapshot_{progress.epoch - 1}.pth"
    cuda = torch.cuda.get_rng_state() if is_on_gpu(state.model) else None
    save_checkpoint(
        folder / name,
        state.model,
        epoch=progress.epoch - 1,  # the last complete one, as published
        optimizer=state.optimizer.state_dict(),
        config=config_to_dict(config),
        data=data,
        training={
            **order,
            **progress._asdict(),
            "options": dict(options or {}),
            "scaler": state.scaler.state_dict(),
            "random": {"cpu": torch.get_rng_state(), "cuda": cuda},
        },
    )
    steps = [path for at, path in list_snapshots(folder) if at.step and at <= progress]
    for path in steps[KEPT_STEPS:]:
        path.unlink(missing_ok=True)
    return folder / name


def read_resume_point(path: Path) -> ResumePoint:
    """Read what `latest_valid_checkpoint` found.

    Raises:
        UserError: it is not a checkpoint, or its epoch or step is not valid.
    """
    content = read_checkpoint(path, whole=False)
    config, training = config_of_checkpoint(content, path), content.get("training")
    if not isinstance(training, Mapping):
        training = None
    epoch: Any
    step: Any
    epoch, step = (content.get("epoch"), 0) if training is None else (training.get("epoch"), training.get("step"))
    if not all(type(number) is int and 0 <= number < 10**9 for number in (epoch, step)):
        raise UserError(f"checkpoint {path} does not say how long it was trained: {brief((epoch, step))}")
    progress = Progress(epoch + 1, 0) if training is None else Progress(epoch, step)
    return ResumePoint(path, progress, content, config, training)


def check_order(resume: ResumePoint, order: Mapping[str, Any], steps_per_epoch: int) -> None:
    """Raises UserError if a checkpoint within an epoch belongs to another order of the data."""
    if not resume.training or not resume.progress.step:
        return
    was = resume.training
    changed = ", ".join(
        f"{key} was {brief(was.get(key))}, is {value}"
        for key, value in order.items()
        if brief(was.get(key)) != brief(value) or was[key] != value
    )
    if changed or resume.progress.step >= steps_per_epoch:
        raise UserError(
            f"{resume.path} is from within an epoch, and the order of the data would change ({changed}); set these "
            "as they were (global_batch is train_batch_size x GPUs, group_sizes come from the datasets), or delete "
            "the step_*.pth files to resume from the last complete epoch"
        )


def restore(resume: ResumePoint, state: TrainState) -> str | None:
    """Restore the state of a training exactly.

    Returns:
        For a file of another program, a line that says how much of the optimizer was restored.

    Raises:
        UserError: it belongs to another network or optimizer.
    """
    load_network(state.model, resume.content["network"], resume.path)
    published = resume.training is None
    try:
        if published and not resume.content["optimizer"]["state"]:
            raise ValueError("it is empty")
        load_optimizer(state.optimizer, resume.content["optimizer"])
        if published:
            return (
                "published checkpoint: weights and Adam's moments and steps are restored; the learning rate follows "
                "the configuration and the epoch"
            )
        training: Any = resume.training
        load_scaler(state.scaler, training["scaler"])
        random = training["random"]
        if not isinstance(random, Mapping):  # indexing a tensor with a string only warns
            raise TypeError("its random state is not a dictionary")
        torch.set_rng_state(random["cpu"])
        if is_on_gpu(state.model) and random["cuda"] is not None:
            torch.cuda.set_rng_state(random["cuda"])
    except MALFORMED as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not published:
            raise UserError(f"the training state in {resume.path} does not fit: {reason}") from None
        return (
            f"published checkpoint without a usable optimizer state ({reason}): only the weights are restored and Adam "
            "starts from zero, as in the published system; results will differ from an uninterrupted training"
        )
    return None


def is_on_gpu(model: torch.nn.Module) -> bool:
    """Whether the weights are on a CUDA GPU. Does not itself start CUDA, unlike `torch.cuda.is_available`."""
    return next(model.parameters()).is_cuda


def load_scaler(scaler: torch.amp.GradScaler, saved: Any) -> None:
    """Restore the loss scale of fp16, if the scaler is enabled. Its settings stay as they are.

    Args:
        saved: the `state_dict()` of a GradScaler, which is empty where it was not enabled.

    Raises:
        TypeError, ValueError: it is not.
    """
    if not isinstance(saved, Mapping):
        raise TypeError(f"its scaler is {brief(saved)}")
    if not saved:
        return
    scale, tracker = saved.get("scale"), saved.get("_growth_tracker")
    if type(scale) is not float or not 0 < scale <= torch.finfo(torch.float32).max:
        raise ValueError(f"its loss scale is {brief(scale)}")
    if type(tracker) is not int or not 0 <= tracker < 2**31:
        raise ValueError(f"its scaler has counted {brief(tracker)} steps")
    if scaler.is_enabled():
        scaler.load_state_dict({**scaler.state_dict(), "scale": scale, "_growth_tracker": tracker})


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Any) -> None:
    """Restore the steps and moments of Adam. Its settings stay, because they follow from the configuration.

    States belong to weights by position, in the order of `parameters()`, as in `Optimizer.load_state_dict`. A file
    holds all weights, as published, or only those that are trained, as older files of this program. Unlike there,
    each moment is copied into the memory layout of its weight: fused Adam reads both in memory order.

    Args:
        optimizer: has one parameter group; untouched if the state does not fit.
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
        step = states[index]["step"]  # a plain number before PyTorch 1.12
        step = torch.tensor(float(step)) if type(step) in (int, float) else step
        restored[weight] = {}
        for name, value, like in (
            ("step", step, torch.zeros((), device=weight.device)),
            ("exp_avg", states[index]["exp_avg"], weight),
            ("exp_avg_sq", states[index]["exp_avg_sq"], weight),
        ):
            check_tensor(f"{name} of weight {number} in the optimizer state", value, like)
            restored[weight][name] = torch.empty_like(like).copy_(value.detach())
    optimizer.state.clear()
    optimizer.state.update(restored)
