"""What a training is made of, and how it is set up; the loop itself is main/train.py."""

import argparse
import os
import signal
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils.data import DataLoader

from common.criterion import InterWildLoss
from common.distributed import (
    STOP_SIGNALS,
    FolderLock,
    ProcessInfo,
    barrier,
    end_with_parent,
    from_all,
    from_main,
    main_first,
)
from common.drawing.samples import draw_sheet
from common.errors import UserError
from common.logger import TrainLog
from common.nets.mano import TwoHandMano
from common.nets.mano_files import read_hand_models
from common.types import Prediction, Sample, Targets
from common.utils.files import make_folder, write_image
from data.dataset import MixedDataset, MixedSampler, init_worker, to_device, unwrap_worker_errors
from main.build import build_model, init_backbones, open_training
from main.config import Config
from main.model import InterWild
from main.resume import (
    Parts,
    Progress,
    Start,
    newest_whole,
    prepare_folder,
    read_start,
    restore,
    save_progress,
    tell,
)


@dataclass
class Training:
    """All that the loop works with, in this process."""

    args: argparse.Namespace
    place: ProcessInfo
    config: Config
    parts: Parts  # model, optimizer, scaler: what a checkpoint holds
    network: nn.Module  # the model, wrapped for several GPUs
    criterion: InterWildLoss
    sampler: MixedSampler
    loader: DataLoader
    log: TrainLog | None  # the main process has one
    origin: dict[str, Any]  # the data's order is that of these numbers; checkpoints hold them

    def say(self, text: str) -> None:
        """Print and write down, in the main process."""
        if self.log:
            self.log.say(text)

    def close(self) -> None:
        """End the loader workers and the log."""
        # Python would end workers by SIGTERM, which they ignore (see `start_worker`), and wait for them for ever.
        iterator = self.loader._iterator  # there where workers persist
        if iterator is not None:
            iterator._shutdown_workers()
        if self.log:
            self.log.close()


@dataclass
class StepResult:
    """What one optimiser step of this process did. The lists have an item for each part of `accumulate`."""

    samples: list[Sample] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    targets: list[Targets] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    terms: dict[str, Tensor] = field(default_factory=dict)  # means over this process's samples
    gradient_norm: Tensor = field(default_factory=lambda: torch.zeros(()))


# ---- Before the loop ----


def open_output(args: argparse.Namespace, place: ProcessInfo) -> tuple[FolderLock | None, Start | None]:
    """The lock on the output folder, and the checkpoint to go on from, the same in all processes.

    Raises:
        UserError: the folder is in use, holds another training, or has no checkpoint that can be read.
    """
    folder, lock, path = args.output / "model_dump", None, None
    if place.is_main:
        make_folder(args.output)
        lock = FolderLock(args.output)
        prepare_folder(folder, keep=args.go_on, overwrite=args.overwrite)
        path = newest_whole(folder, tell)
    path = from_main(path and str(path), place)
    if path is None:
        if args.go_on and place.is_main:
            tell(f"--continue: there is no checkpoint in {folder} yet; starting anew")
        return lock, None
    start = read_start(Path(path))
    if place.is_main:
        tell(f"continuing from {path} with epoch {start.progress.epoch}, step {start.progress.step}")
    return lock, start


def build_training(args: argparse.Namespace, place: ProcessInfo, config: Config, start: Start | None) -> Training:
    """Data, network and optimiser, as new or as in the checkpoint. Raises UserError if one of them cannot be had."""
    mano = TwoHandMano(*read_hand_models(args.mano))
    with main_first(place):  # makes caches of annotations
        data = open_training(config, args.data, config.seed, args.skip_bad)
    global_batch = config.train_batch_size * (len(args.dp_devices) if args.dp_devices else place.world)
    sampler = MixedSampler(data.group_sizes, global_batch, config.seed, place.rank, place.world)

    model = start_model(args, place, config, mano, trained=start is not None)
    parts = Parts(
        model,
        # All weights, as published, so that states can be exchanged; the unused ones never have a gradient.
        torch.optim.Adam(model.parameters(), lr=config.lr, fused=True),
        torch.amp.GradScaler(place.device.type, enabled=config.amp == "fp16"),
    )
    origin = {"global_batch": global_batch, "group_sizes": data.group_sizes, "seed": config.seed}
    restored = None
    if start:
        check_order(start, origin, sampler.steps_per_epoch)
        restored = restore(start, parts)
        start.content.clear()  # it is as large as network and optimiser together

    loader = build_loader(place, config, data, sampler)
    log = None
    if place.is_main:
        log = TrainLog(args.output / "log", start.progress if start else (0, 0), sampler.steps_per_epoch)
        log.say(
            f"{sampler.total} samples an epoch, {sampler.steps_per_epoch} steps of {global_batch}; "
            f"{sum(weight.numel() for weight in model.parameters()) / 1e6:.1f} M parameters; hand model: {mano.name}; "
            f"{place.world} x {place.device.type}, loader workers of each: {loader.num_workers}"
        )
        if restored:
            log.say(restored)
    network = wrap_model(args, place, model)
    return Training(args, place, config, parts, network, InterWildLoss(config.frames), sampler, loader, log, origin)


def start_model(
    args: argparse.Namespace, place: ProcessInfo, config: Config, mano: TwoHandMano, trained: bool
) -> InterWild | nn.Module:
    """The network on its device, with its first weights unless it is `trained`, which come later."""
    torch.manual_seed(config.seed)
    model = build_model(config, mano)
    if not trained:
        with main_first(place):  # downloads weights
            init_backbones(model, args.init)
    if config.sync_bn:
        if place.device.type == "cpu" or args.dp_devices:
            raise UserError("sync_bn is for several GPUs with a process for each; leave it out")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(place.device).train()
    return model.to(memory_format=torch.channels_last) if args.channels_last else model


def check_order(start: Start, origin: dict[str, Any], steps_per_epoch: int) -> None:
    """Raises UserError if a checkpoint within an epoch belongs to another order of the data."""
    if not start.training or not start.progress.step:
        return
    was = start.training
    changed = ", ".join(
        f"{key} was {was.get(key)}, is {value}" for key, value in origin.items() if was.get(key) != value
    )
    if changed or start.progress.step >= steps_per_epoch:
        raise UserError(
            f"{start.path} stands within an epoch, and the order of the data would change there ({changed}); set these "
            "as they were (global_batch is train_batch_size x GPUs, group_sizes come from the datasets), or delete "
            "the step_*.pth files to go on from the last whole epoch"
        )


def wrap_model(args: argparse.Namespace, place: ProcessInfo, model: nn.Module) -> nn.Module:
    """The model for several GPUs. The criterion is not part of it, so each way is a line."""
    network = torch.compile(model) if args.compile else model
    if args.dp_devices:
        return DataParallel(network, device_ids=args.dp_devices)
    if place.world > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the option's new name is too new
            # Running statistics are not sent around: saved are those of the first process's samples, as published,
            # and training does not read them.
            return DistributedDataParallel(network, broadcast_buffers=False)
    return network


def build_loader(place: ProcessInfo, config: Config, data: MixedDataset, sampler: MixedSampler) -> DataLoader:
    """Loader workers share the CPU cores among the processes of this machine."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", place.world))
    workers = min(config.num_thread, max(1, (os.cpu_count() or 1) // here))
    return DataLoader(
        data,
        batch_sampler=sampler,
        num_workers=workers,
        pin_memory=place.device.type == "cuda",
        worker_init_fn=start_worker,
        persistent_workers=workers > 0,
    )


def start_worker(worker: int) -> None:
    """A worker leaves Ctrl-C and SIGTERM, which reach it too, to the process that it works for, and dies with it."""
    init_worker(worker)
    end_with_parent()
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


# ---- Beside the loop ----


def save(run: Training, progress: Progress) -> None:
    """Write a checkpoint, in the main process, and wait for it in the others.

    Raises:
        UserError: it cannot be written, or would hold numbers that are not finite.
    """
    if run.log:
        values = [value for value in run.parts.model.state_dict().values() if value.is_floating_point()]
        if not torch.stack([value.isfinite().all() for value in values]).all():
            raise UserError(
                f"weights or batch norm statistics are not finite before epoch {progress.epoch}, step {progress.step}; "
                "lower --lr; the last checkpoint is from before that, --continue goes on there"
            )
        save_progress(run.args.output / "model_dump", progress, run.parts, run.config, **run.origin)
    barrier(run.place)


def timed_batches(run: Training, now: Progress) -> Iterator[tuple[Sample, float]]:
    """The rest of an epoch's batches on the device, each with the seconds it was waited for.

    Raises:
        UserError: a sample cannot be read, or a worker was killed.
    """
    run.sampler.set_epoch(now.epoch, now.step)
    batches = unwrap_worker_errors(run.loader)
    while True:
        begun = time.monotonic()
        sample = next(batches, None)
        if sample is None:
            return
        yield to_device(sample, run.place.device), time.monotonic() - begun


def find_culprits(run: Training, result: StepResult, bad: list[str]) -> list[str]:
    """The ids of the samples, of all processes, that make a term not finite; for the gradient all of the step."""
    ids = []
    for sample, prediction, targets in zip(result.samples, result.predictions, result.targets, strict=True):
        found = run.criterion.nonfinite(prediction, targets)
        indices = range(len(sample.id)) if bad == ["gradient"] else sorted(set().union(*found.values()))
        ids += [sample.id[index] for index in indices]
    return [id for ids in from_all(ids, run.place) for id in ids]


def show(run: Training, result: StepResult, epoch: int, step: int) -> None:
    """Write a sheet of samples."""
    faces = run.parts.model.mano_layer.faces
    picture = draw_sheet(result.images[0], result.predictions[0], result.targets[0], faces, run.config.frames)
    make_folder(run.args.output / "vis")
    write_image(run.args.output / "vis" / f"{epoch}_{step:06d}.jpg", picture)
    run.log.image(epoch, step, picture)
