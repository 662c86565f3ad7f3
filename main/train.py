"""Train the network.

    python train.py --gpu 0-3                     # or 0,1,2,3; default: all GPUs, else the CPU
    python train.py --gpu 0-3 --continue          # resume exactly from the latest checkpoint
    python train.py --trainset_3d InterHand26M --lr 5e-5 --end_epoch 3      # any value of config.py; see --help
    python train.py --gpu cpu --preset small --init random                  # a small network, for a CPU
    python train.py --gpu 0-3 --amp bf16 --accumulate 2                     # faster, in half the memory
    python train.py --gpu 0-3 --parallel dp       # one process for all GPUs, as in the published system
    torchrun --nproc_per_node 4 train.py          # processes started by torchrun, on one machine
    torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint HOST:29500 train.py     # or several

Written into --output (which all machines must share):

    model_dump/snapshot_{epoch}.pth      after each epoch; for test.py, demo.py and --continue
    model_dump/step_{epoch}_{step}.pth   every --save_every steps, the last two; for --continue
    run.json                             configuration, versions, git state, data; an entry for each start
    log/train.txt, log/losses.jsonl, log/tensorboard
    vis/{epoch}_{step}.jpg               every --visualize_every steps: annotation, prediction and meshes of samples
    log/validation.jsonl, log/curve.png  with --validate_every N: errors on a part of the data that is not trained on

A step takes train_batch_size samples for each GPU. The losses are means over all samples of a step, however they are
split; batch norm sees the samples of its own GPU (and microbatch, with --accumulate), as in the published system,
unless --sync_bn true.

Exit code: 0; 2 with one line on stderr for an error, such as a loss that is not finite; after Ctrl-C (130), SIGTERM
and SIGHUP (0) a checkpoint is saved first. A process that torchrun restarts resumes as with --continue, which takes
the values of config.py from the checkpoint; options given with it override them.
"""

import argparse
import json
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial, reduce
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # see demo/__init__.py

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils.data import DataLoader, default_collate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.checkpoint import network_note
from common.criterion import InterWildLoss
from common.devices import parse_devices
from common.distributed import (
    STOP_SIGNALS,
    ProcessInfo,
    StopSignal,
    barrier,
    end_with_parent,
    from_all,
    from_main,
    launch,
    main_first,
    mean_over_processes,
    restarted_by_torchrun,
    under_torchrun,
)
from common.drawing.samples import draw_sheet
from common.errors import UserError, run_main, some
from common.logger import TrainLog
from common.metrics import MM, vertex_error
from common.nets.mano import TwoHandMano
from common.nets.mano_files import read_hand_models
from common.options import (
    DATA_FOLDER,
    DATA_HELP,
    GPU_HELP,
    LOG_SERVICES,
    LOG_TO_HELP,
    MANO_FOLDER,
    MANO_HELP,
    OUTPUT_FOLDER,
    Parser,
    count,
)
from common.precision import AutocastModule
from common.run_record import import_service, run_record
from common.targets import build_images, build_targets
from common.types import Prediction, Sample, Targets, take
from common.utils.files import exclusive, make_folder, write_image, write_json
from common.utils.images import quiet_opencv
from common.utils.joints import MANO_JOINTS
from data.dataset import MixedSampler, check_machine, init_worker, loader_workers, to_device, unwrap_worker_errors
from main.build import build_model, init_backbones, open_training, training_record
from main.config import Config, config_to_dict
from main.model import InterWild
from main.options import add_config_options, read_config
from main.resume import (
    Progress,
    ResumePoint,
    TrainState,
    check_order,
    data_order,
    describe_changes,
    latest_valid_checkpoint,
    prepare_folder,
    read_resume_point,
    restore,
    save_progress,
)

NAMED_SAMPLES = 8  # at most, in a message
# Each step that is skipped halves the loss scale of fp16, which begins at 65536: at the start, 20 skips in a row.
LOWEST_SCALE = 2.0**-3


def main() -> int:
    args = parse_args()
    devices = parse_devices(args.gpu)
    check_processes(args, devices)
    import_service(args.log_to)
    if devices[0].type == "cpu":
        devices *= args.processes
    if args.parallel == "dp":
        args.dp_devices, devices = devices, devices[:1]
    return launch(partial(train, args), devices)


def train(args: argparse.Namespace, process: ProcessInfo) -> int:
    """The whole training, in one of its processes. Returns the exit code."""
    quiet_opencv()
    torch.backends.cudnn.benchmark = True  # all batches have the same size
    with ExitStack() as stack:
        resume = stack.enter_context(open_output(args, process))
        config = read_config(args, resume.config if resume else None)
        progress = resume.progress if resume else Progress(0, 0)
        sampler, loader = build_data(args, process, config)
        stack.callback(shut_down_workers, loader)
        state, restored = build_state(args, process, config, resume, sampler)
        record = training_record(config, args.data, state.model.mano_layer.name)
        network = wrap_model(args, process, state.model, config.amp)
        criterion = InterWildLoss(config.frames)
        log = None
        if process.is_main:
            about = write_record(args, process, config, loader, record, resume)
            new_log = TrainLog(args.output / "log", progress, sampler.steps_per_epoch, about, args.log_to)
            log = stack.enter_context(closing(new_log))
            parameters = sum(weight.numel() for weight in state.model.parameters())
            log.say(
                f"{sampler.total} samples per epoch, {sampler.steps_per_epoch} steps of {sampler.global_batch}; "
                f"{parameters / 1e6:.1f} M parameters; hand model: {state.model.mano_layer.name}; "
                f"{process.world} x {process.device.type}, {loader.num_workers} loader workers each"
            )
            changes = describe_changes(resume, config, run_options(args, process)) if resume else None
            for line in filter(None, (restored, changes)):
                log.say(line)
            if note := network_note({"data": record}):
                log.say(f"the checkpoints will say: {note}")

        stop = stack.enter_context(StopSignal())
        while progress.epoch < config.end_epoch:
            sampler.set_epoch(*progress)
            if log:
                log.start_epoch(progress)
            angles = torch.zeros(2, len(MANO_JOINTS) - 1, device=process.device)  # sums over hands, and how many hands
            for sample, waited in timed_batches(loader, process.device):
                at = progress
                lr = learning_rate(config, at)
                for group in state.optimizer.param_groups:
                    group["lr"] = lr
                is_drawn = log is not None and args.visualize_every > 0 and at.step % args.visualize_every == 0
                result = train_step(network, state, criterion, sample, config, args.channels_last, is_drawn)
                values = reduce_and_check(result, criterion, process, stop, at, state.scaler)
                if log:
                    log.step(at, {"lr": lr, **values}, waited)
                    angles += sum_joint_angles(result)
                    if result.images is not None:
                        log.image(at, write_sheet(result, state.model.mano_layer.faces, config, args.output, at))

                progress = at.next(sampler.steps_per_epoch)
                if log and progress.step == 0:
                    degrees = (angles[0] / angles[1].clamp(min=1)).rad2deg().tolist()
                    log.joint_angles(at, dict(zip(MANO_JOINTS[1:], degrees, strict=True)))
                if progress.step % args.save_every == 0 or stop.asked_of_all:  # step 0 is the end of an epoch
                    if process.is_main:
                        order, options = data_order(sampler), run_options(args, process)
                        save_progress(args.output / "model_dump", progress, state, config, order, options, record)
                    barrier(process)
                if log and args.validate_every and progress.step % args.validate_every == 0:
                    log.validation(at, validate(state.model, loader, criterion, config))
                    if progress.step == 0:
                        log.draw_curve()
                if stop.asked_of_all:
                    if log:
                        log.say(f"stopped and saved before {progress}; resume with --continue")
                    return stop.exit_code
        if log:
            log.say(f"done: {config.end_epoch} epochs; checkpoints are in {args.output / 'model_dump'}")
    return 0


def learning_rate(config: Config, at: Progress) -> float:
    """A function of the progress alone, so that there is no state to save."""
    lr = config.lr / config.lr_dec_factor ** sum(at.epoch >= begin for begin in config.lr_dec_epoch)
    warm = (at.step + 1) / config.warmup_steps if at.epoch == 0 and at.step < config.warmup_steps else 1.0
    return lr * warm


# ---- Before the loop ----


@contextmanager
def open_output(args: argparse.Namespace, process: ProcessInfo) -> Iterator[ResumePoint | None]:
    """Hold the lock on the output folder; yields the checkpoint to resume from, the same in all processes.

    Raises:
        UserError: the folder is in use, holds another training, or none of its checkpoints can be read.
    """
    folder = args.output / "model_dump"
    with ExitStack() as stack:
        path = None
        if process.is_main:
            make_folder(args.output)
            busy = f"another training runs in {args.output}; wait for it, or choose another folder with --output"
            stack.enter_context(exclusive(args.output / ".lock", busy))
            # A process that torchrun restarted has the same options, with --overwrite among them.
            prepare_folder(folder, keep=args.go_on or restarted_by_torchrun(), overwrite=args.overwrite)
            path = latest_valid_checkpoint(folder, tell)
        path = from_main(path and str(path), process)
        resume = read_resume_point(Path(path)) if path else None
        if process.is_main and resume:
            tell(f"resuming from {path} at {resume.progress}")
        elif process.is_main and args.go_on:
            tell(f"--continue: there is no checkpoint in {folder} yet; starting from the beginning")
        yield resume


def run_options(args: argparse.Namespace, process: ProcessInfo) -> dict[str, Any]:
    """What the result depends on, at least by rounding, apart from the configuration and the order of the data."""
    return {
        "device": process.device.type,
        "processes": process.world,
        **{name: getattr(args, name) for name in ("parallel", "compile", "channels_last", "skip_bad")},
    }


def write_record(
    args: argparse.Namespace,
    process: ProcessInfo,
    config: Config,
    loader: DataLoader,
    data: dict[str, Any],
    resume: ResumePoint | None,
) -> dict[str, Any]:
    """Add this start to run.json, which a new training begins. Returns the entry."""
    dataset: Any = loader.dataset
    entry = run_record(
        config_to_dict(config),
        {part.source.name: size for part, size in zip(dataset.parts, dataset.sizes, strict=True)},
        process.device,
        resumed_from=str(resume.path) if resume else None,
        options=run_options(args, process),
        data=data,
    )
    path = args.output / "run.json"
    earlier: list[dict[str, Any]] = []
    with suppress(OSError, ValueError, KeyError, TypeError):
        earlier = json.loads(path.read_bytes())["starts"] if resume else []
    write_json(path, {"starts": [*earlier, entry]})
    return entry


def tell(text: str) -> None:
    """Print a line before there is a log."""
    print(text, file=sys.stderr, flush=True)


def build_data(args: argparse.Namespace, process: ProcessInfo, config: Config) -> tuple[MixedSampler, DataLoader]:
    """The batches of this process: their order, and the loader that follows it.

    Raises:
        UserError: a dataset is missing or unusable.
    """
    with main_first(process):  # annotation caches are built once
        data = open_training(config, args.data, config.seed, args.skip_bad, hold_out=args.validate_every > 0)
    global_batch = config.train_batch_size * (len(args.dp_devices) if args.dp_devices else process.world)
    sampler = MixedSampler(data.group_sizes, global_batch, config.seed, process.rank, process.world)
    workers = loader_workers(config.num_thread, process.local_world, sampler.steps_per_epoch)
    height, width = config.frames.crop
    check_machine(workers, 3 * height * width * config.train_batch_size)
    loader = DataLoader(
        data,
        batch_sampler=sampler,
        num_workers=workers,
        pin_memory=process.device.type == "cuda",
        worker_init_fn=start_worker,
        persistent_workers=workers > 0,
        # The seeds it draws for workers must not move the global random state: a resumed run draws them more often.
        generator=torch.Generator(),
    )
    return sampler, loader


def start_worker(worker: int) -> None:
    """Set up a loader worker. It leaves Ctrl-C and SIGTERM to the process it works for, and dies with that process."""
    init_worker(worker)
    end_with_parent()
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def shut_down_workers(loader: DataLoader) -> None:
    """End persistent loader workers. At exit Python would end them by SIGTERM, which they ignore, and wait for ever."""
    iterator: Any = loader._iterator  # private: PyTorch 2.14 has no public way (November 2026)
    if iterator is not None:
        iterator._shutdown_workers()


def build_state(
    args: argparse.Namespace,
    process: ProcessInfo,
    config: Config,
    resume: ResumePoint | None = None,
    sampler: MixedSampler | None = None,
) -> tuple[TrainState, str | None]:
    """Network, optimizer and gradient scaler on the device, initialised or as in the checkpoint.

    Args:
        sampler: with `resume`, whose order of the data must be that of this sampler.

    Returns:
        The state, and what `restore` reports.

    Raises:
        UserError: hand models or initial weights are missing, or the checkpoint does not fit.
    """
    torch.manual_seed(config.seed)
    model = build_model(config, TwoHandMano(*read_hand_models(args.mano)))
    if not resume:
        with main_first(process):  # weights are downloaded once
            init_backbones(model, args.init)
    if config.sync_bn:
        if process.device.type == "cpu" or args.dp_devices:
            raise UserError("sync_bn is for several GPUs with one process per GPU; leave it out")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(process.device).train()
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    state = TrainState(
        model,
        # All weights, as published, so that states can be exchanged; the unused ones never have a gradient.
        torch.optim.Adam(model.parameters(), lr=config.lr, fused=True),
        torch.amp.GradScaler(process.device.type, enabled=config.amp == "fp16"),
    )
    restored = None
    if resume and sampler:
        check_order(resume, data_order(sampler), sampler.steps_per_epoch)
        restored = restore(resume, state)
        resume.content.clear()  # as large as network and optimizer together
    return state, restored


def wrap_model(args: argparse.Namespace, process: ProcessInfo, model: nn.Module, amp: str = "none") -> nn.Module:
    """The model as the loop calls it, for one or several GPUs, in the precision of a key of `AMP_DTYPES`."""
    if args.compile:
        model.compile()  # in place: names and states stay those of the model
    network = AutocastModule(model, amp)
    if args.dp_devices:
        return DataParallel(network, device_ids=args.dp_devices)
    if process.world > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of the argument, whose new name is too new
            # Each process keeps its own running statistics: those of the first process's samples are saved, as
            # published, and training does not read them.
            return DistributedDataParallel(network, broadcast_buffers=False)
    return network


# ---- The loop ----


def timed_batches(loader: DataLoader, device: torch.device) -> Iterator[tuple[Sample, float]]:
    """The batches on the device, each with the seconds spent waiting for it.

    Raises:
        UserError: a sample cannot be read, or a worker was killed.
    """
    batches = unwrap_worker_errors(loader)
    while True:
        begun = time.monotonic()
        sample = next(batches, None)
        if sample is None:
            return
        yield to_device(sample, device), time.monotonic() - begun


@dataclass
class StepResult:
    """What one optimizer step of this process did; the lists have an item per microbatch.

    Attributes:
        ids, predictions, targets: of the samples, to find those that are not finite.
        images: of the first microbatch, (N, 3, h, w) RGB in [0, 1]; None on steps that are not drawn.
        terms: losses by name, means over the samples of this process.
        gradient_norm: of all weights together.
        replaced: how many broken samples were replaced.
    """

    ids: list[list[str]] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    targets: list[Targets] = field(default_factory=list)
    images: Tensor | None = None
    terms: dict[str, Tensor] = field(default_factory=dict)
    gradient_norm: Tensor = field(default_factory=lambda: torch.zeros(()))
    replaced: Tensor = field(default_factory=lambda: torch.zeros(()))


def train_step(
    network: nn.Module,
    state: TrainState,
    criterion: InterWildLoss,
    sample: Sample,
    config: Config,
    channels_last: bool = False,
    keep_images: bool = False,
) -> StepResult:
    """Forward pass, backward pass and optimizer, for the samples of one step in this process.

    Args:
        network: `state.model`, as `wrap_model` returns it.
        channels_last: memory format of the images.
        keep_images: fill `StepResult.images`.
    """
    result = StepResult(replaced=sample.replaced.sum())
    state.optimizer.zero_grad(set_to_none=True)
    for number in range(config.accumulate):
        microbatch = take(sample, slice(number, None, config.accumulate))  # strided, as across that many processes
        images = build_images(microbatch)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        targets = build_targets(microbatch, state.model.mano_layer, config.frames)
        is_last = number + 1 == config.accumulate
        # Gradients are exchanged once per step.
        with network.no_sync() if isinstance(network, DistributedDataParallel) and not is_last else nullcontext():
            prediction = network(images)
            terms = criterion(prediction, targets)
            state.scaler.scale(reduce(torch.add, terms.values()) / config.accumulate).backward()
        for name, value in terms.items():
            result.terms[name] = result.terms.get(name, 0) + value.detach() / config.accumulate
        result.ids.append(microbatch.id)
        result.predictions.append(prediction)
        result.targets.append(targets)
        if keep_images and number == 0:
            result.images = images

    state.scaler.unscale_(state.optimizer)
    gradients = [weight.grad for weight in state.model.parameters() if weight.grad is not None]
    result.gradient_norm = torch.nn.utils.get_total_norm(gradients)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    return result


@torch.no_grad()
def validate(
    model: InterWild, loader: DataLoader[Sample], criterion: InterWildLoss, config: Config
) -> dict[str, float]:
    """Errors on the samples that are held out: the total loss, and MPVPE in mm.

    Args:
        model: in training mode; nothing of it changes.
        loader: of the training.
    """
    dataset: Any = loader.dataset
    device = next(model.parameters()).device
    samples, loss, number, distance, hands = dataset.held_out(), 0.0, 0, 0.0, 0.0
    network = AutocastModule(model, config.amp)
    model.eval()
    while batch := list(islice(samples, config.test_batch_size)):
        sample = to_device(default_collate(batch), device)
        targets = build_targets(sample, model.mano_layer, config.frames)
        prediction = network(build_images(sample))
        loss += float(sum(criterion(prediction, targets).values())) * len(batch)
        number += len(batch)
        errors = vertex_error(prediction.vertices_rel, targets.vertices_rel) * targets.mano_valid
        distance += float(errors.sum())
        hands += float(targets.mano_valid.sum())
    model.train()
    return {"loss": loss / max(number, 1), "mpvpe": MM * distance / max(hands, 1)}


@torch.no_grad()
def sum_joint_angles(result: StepResult) -> Tensor:
    """Of the hands with a MANO fit in this process: the sum of each joint's predicted angle (rad), and their number.
    (2, 15)."""
    angles = torch.cat([prediction.mano.hand_pose.float().norm(dim=-1) for prediction in result.predictions])
    valid = torch.cat([targets.mano_valid for targets in result.targets])[..., None].expand_as(angles)
    return torch.stack((angles * valid, valid)).flatten(1, 2).sum(1)


def reduce_and_check(
    result: StepResult,
    criterion: InterWildLoss,
    process: ProcessInfo,
    stop: StopSignal,
    at: Progress,
    scaler: torch.amp.GradScaler,
) -> dict[str, float | None]:
    """The numbers of a step over all processes, which also agree here on whether to stop.

    The numbers are read only now, after the whole step was launched: until then the device never waits for the host.

    Args:
        stop: its `asked_of_all` is set.
        at: the step, for messages.
        scaler: of the state. Where it is enabled, with --amp fp16, a gradient may overflow: it skips the step.

    Raises:
        UserError: a loss or the gradient is not finite, names the terms and the samples; or the gradient overflows
            however little it is scaled.
    """
    ours = [*result.terms.values(), result.gradient_norm, result.replaced, torch.tensor(float(stop.asked))]
    values = torch.stack([value.to(process.device, torch.float32) for value in ours])
    *losses, gradient_norm, replaced, stopping = mean_over_processes(values, process).tolist()
    stop.asked_of_all = stopping > 0

    terms = dict(zip(result.terms, losses, strict=True))
    bad = [name for name, value in terms.items() if not math.isfinite(value)]
    if not bad and not math.isfinite(gradient_norm):
        gradient_norm = None
        if not scaler.is_enabled():
            bad = ["gradient"]
        elif scaler.get_scale() < LOWEST_SCALE:
            raise UserError(
                f"the gradient at epoch {at.epoch}, step {at.step} is not finite in float16 even at a loss scale of "
                f"{LOWEST_SCALE:g}, and no step has any effect; use --amp bf16 or none, or lower --lr"
            )
    if bad:
        samples = some(find_nonfinite_samples(result, criterion, process, bad), NAMED_SAMPLES)
        raise UserError(
            f"not finite at epoch {at.epoch}, step {at.step}: {', '.join(bad)}; samples: {samples}. Check them, or "
            "lower --lr; the last checkpoint is from before this step, --continue resumes there"
        )
    return {"total": sum(losses), **terms, "gradient_norm": gradient_norm, "replaced": replaced * process.world}


def find_nonfinite_samples(
    result: StepResult, criterion: InterWildLoss, process: ProcessInfo, bad: list[str]
) -> list[str]:
    """The ids of the samples, of all processes, that make a term not finite; all of the step for the gradient."""
    found = []
    for ids, prediction, targets in zip(result.ids, result.predictions, result.targets, strict=True):
        by_term = criterion.nonfinite(prediction, targets)
        indices = range(len(ids)) if bad == ["gradient"] else sorted(set().union(*by_term.values()))
        found += [ids[index] for index in indices]
    return [id for ids in from_all(found, process) for id in ids]


def write_sheet(result: StepResult, faces: Tensor, config: Config, output: Path, at: Progress) -> np.ndarray:
    """Write and return a contact sheet of the first microbatch, see `draw_sheet`."""
    assert result.images is not None
    sheet = draw_sheet(result.images, result.predictions[0], result.targets[0], faces, config.frames)
    make_folder(output / "vis")
    write_image(output / "vis" / f"{at.epoch}_{at.step:06d}.jpg", sheet)
    return sheet


# ---- The command line ----


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__, allow_abbrev=False)
    files, processing, results = parser.standard_groups()
    files.add_argument("--mano", type=Path, default=MANO_FOLDER, help=MANO_HELP)
    files.add_argument("--data", type=Path, default=DATA_FOLDER, help=DATA_HELP)
    files.add_argument("--output", type=Path, default=OUTPUT_FOLDER, help="folder to write into (default: output)")
    files.add_argument(
        "--continue", dest="go_on", action="store_true", help="resume from the latest checkpoint in --output"
    )
    files.add_argument("--overwrite", action="store_true", help="start over and remove the checkpoints in --output")
    processing.add_argument("--gpu", help=GPU_HELP)
    processing.add_argument("--init", choices=("imagenet", "random"), default="imagenet",
        help="how the backbones are initialised (default: %(default)s)")  # fmt: skip
    processing.add_argument(
        "--skip_bad", action="store_true", help="replace samples that cannot be read, and count them"
    )
    processing.add_argument("--parallel", choices=("ddp", "dp"), default="ddp",
        help="run one process per GPU, or one for all GPUs as published (default: %(default)s)")  # fmt: skip
    processing.add_argument("--processes", type=count, default=1, metavar="N",
        help="split the work among N processes on the CPU (default: %(default)s)")  # fmt: skip
    processing.add_argument("--compile", action="store_true", help="compile the network with torch.compile")
    processing.add_argument(
        "--channels_last", action="store_true", help="use the channels-last memory format; faster with --amp on GPUs"
    )
    results.add_argument("--save_every", type=count, default=500, metavar="N",
        help="save a checkpoint every N steps (default: %(default)s)")  # fmt: skip
    results.add_argument("--visualize_every", type=int, default=500, metavar="N",
        help="draw samples every N steps, never if 0 (default: %(default)s)")  # fmt: skip
    results.add_argument("--validate_every", type=int, default=0, metavar="N",
        help="evaluate on a held-out part of the data every N steps, never if 0 (default: %(default)s)")  # fmt: skip
    results.add_argument("--log_to", choices=LOG_SERVICES, help=LOG_TO_HELP)
    add_config_options(parser)
    args = parser.parse_args(argv)
    args.dp_devices = None
    if args.go_on and args.overwrite:
        parser.error("--continue resumes and --overwrite starts over: choose one")
    return args


def check_processes(args: argparse.Namespace, devices: list[torch.device]) -> None:
    """Raises UserError if the options name two ways to split the work."""
    on_cpu = devices[0].type == "cpu"
    if args.parallel == "dp" and under_torchrun():
        raise UserError("--parallel dp is one process for all GPUs: start it with python instead of torchrun")
    if args.parallel == "dp" and args.compile:
        raise UserError("--parallel dp copies the network in each step, so it cannot be compiled: leave out --compile")
    if args.parallel == "dp" and on_cpu:
        raise UserError("--parallel dp is for GPUs; on the CPU leave it out, or set --processes")
    if args.processes > 1 and under_torchrun():
        raise UserError("torchrun starts the processes: give it --nproc_per_node instead of --processes")
    if args.processes > 1 and not on_cpu:
        raise UserError("--processes is for the CPU: each GPU has one process; choose GPUs with --gpu")


if __name__ == "__main__":
    run_main(main)
