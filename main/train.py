"""Train the network.

    python train.py --gpu 0-3                     # or 0,1,2,3; default: all GPUs there are, else the CPU
    python train.py --gpu 0-3 --continue          # go on from the newest checkpoint, exactly where it stands
    python train.py --trainset_3d InterHand26M --lr 5e-5 --end_epoch 3      # any value of config.py; see --help
    python train.py --gpu cpu --preset small --init random                  # a small network, for a CPU
    python train.py --gpu 0-3 --amp bf16 --accumulate 2                     # faster, and half the memory
    python train.py --gpu 0-3 --parallel dp       # one process for all GPUs, as the published system
    torchrun --nproc_per_node 4 train.py          # the processes started by torchrun, on one machine
    torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint HOST:29500 train.py     # or several

Written into --output (which several machines must share):

    model_dump/snapshot_{epoch}.pth      after each epoch; for test.py, demo.py and --continue
    model_dump/step_{epoch}_{step}.pth   every --save_every steps, the last two; for --continue
    log/train.txt, log/losses.jsonl, log/tensorboard
    vis/{epoch}_{step}.jpg               every --visualize_every steps: annotation, prediction and meshes of samples

A step takes train_batch_size samples for each GPU. The losses are means over all of them, whichever way they are
shared out; batch norm sees the samples of its own GPU (and part, with --accumulate), as in the published system,
unless --sync_bn true.

Exit code: 0; 2 with one line on stderr if something is wrong, a loss that is not finite among it; Ctrl-C (130),
SIGTERM and SIGHUP (0) save a checkpoint first. --continue takes the values of config.py from the checkpoint; what is
given beside it changes them.
"""

import argparse
import math
import os
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# torch and OpenCV are imported where they are used, so that --help and mistakes are answered at once.
from common.errors import UserError, run_main  # noqa: E402
from common.options import GPU_HELP, MANO_FOLDER, count  # noqa: E402
from main.config import Config  # noqa: E402
from main.options import add_config_options, read_config  # noqa: E402

if TYPE_CHECKING:
    import torch

    from common.distributed import ProcessInfo, StopSignal
    from common.types import Sample
    from main.resume import Progress
    from main.training import StepResult, Training

AMP_TYPES = {"none": "float32", "bf16": "bfloat16", "fp16": "float16"}
NAMED_SAMPLES = 8  # a message names at most so many


def main() -> int:
    args = parse_args()
    if args.processes > 1 or "LOCAL_WORLD_SIZE" in os.environ:
        # Before torch is loaded. Threads that wait in a loop are faster by a third where there are cores for all, and
        # slow down by as much whatever shares the cores with them.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")

    from common.devices import parse_devices
    from common.distributed import launch

    devices = parse_devices(args.gpu)
    check_processes(args, devices)
    if devices[0].type == "cpu":
        devices *= args.processes
    if args.parallel == "dp":
        args.dp_devices, devices = devices, devices[:1]
    return launch(partial(train, args), devices)


def check_processes(args: argparse.Namespace, devices: "list[torch.device]") -> None:
    """Raises UserError if the options name two ways to share the work out."""
    from common.distributed import under_torchrun

    on_cpu = devices[0].type == "cpu"
    if args.parallel == "dp" and under_torchrun():
        raise UserError("--parallel dp is one process for all GPUs: start it with python instead of torchrun")
    if args.parallel == "dp" and on_cpu:
        raise UserError("--parallel dp is for GPUs; on the CPU leave it out, and set --processes if you like")
    if args.processes > 1 and under_torchrun():
        raise UserError("torchrun starts the processes: give it --nproc_per_node instead of --processes")
    if args.processes > 1 and not on_cpu:
        raise UserError("--processes is for the CPU: each GPU has one process; choose GPUs with --gpu")


def train(args: argparse.Namespace, place: "ProcessInfo") -> int:
    """The whole training, in one of its processes. Returns the exit code."""
    import torch

    from common.distributed import StopSignal
    from common.utils.images import quiet_opencv
    from main.resume import Progress
    from main.training import build_training, open_output

    quiet_opencv()
    torch.backends.cudnn.benchmark = True  # all batches have the same size
    lock, start = open_output(args, place)  # noqa: F841 - the lock is held until this function ends
    config = read_config(args, start.config if start else None)
    now = start.progress if start else Progress(0, 0)
    run = build_training(args, place, config, start)
    try:
        with StopSignal() as stop:
            while now.epoch < config.end_epoch:
                now = train_epoch(run, now, stop)
                if stop.asked_of_all:
                    run.say(f"stopped and saved before epoch {now.epoch}, step {now.step}; go on with --continue")
                    return stop.exit_code
        run.say(f"done: {config.end_epoch} epochs; checkpoints are in {args.output / 'model_dump'}")
    except torch.OutOfMemoryError:
        raise UserError(
            "the GPU's memory does not suffice; try --amp bf16, --accumulate 2 (then 4, ...) or a smaller "
            "--train_batch_size"
        ) from None
    finally:
        run.close()
    return 0


def train_epoch(run: "Training", now: "Progress", stop: "StopSignal") -> "Progress":
    """Train to the end of an epoch, or until asked to stop. Returns the step that comes next."""
    from tqdm import tqdm

    from main.resume import Progress
    from main.training import save, show, timed_batches

    args, steps = run.args, run.sampler.steps_per_epoch
    lr = learning_rate(run.config, now.epoch)
    for group in run.parts.optimizer.param_groups:
        group["lr"] = lr
    begun, waited = time.monotonic(), 0.0
    bar = tqdm(total=steps, initial=now.step, desc=f"epoch {now.epoch}", unit="step", dynamic_ncols=True,
               leave=False, disable=run.log is None)  # fmt: skip
    with bar:
        for step, (sample, seconds) in enumerate(timed_batches(run, now), now.step):
            result = train_step(run, sample)
            values = collect(run, result, stop, now.epoch, step)
            waited += seconds
            waiting = f"{waited / (time.monotonic() - begun):.0%} of the time waiting for data"
            if run.log:
                run.log.step(now.epoch, step, {"lr": lr, **values})
                if args.visualize_every and step % args.visualize_every == 0:
                    show(run, result, now.epoch, step)
                bar.set_postfix_str(f"loss {values['total']:.3f}, {waiting}", refresh=False)
                bar.update()

            following = Progress(now.epoch, step + 1) if step + 1 < steps else Progress(now.epoch + 1, 0)
            if following.step % args.save_every == 0 or stop.asked_of_all:  # an epoch's end is step 0 of the next
                save(run, following)
            if stop.asked_of_all:
                return following
    took = time.monotonic() - begun
    run.say(f"epoch {now.epoch}: {took:.0f} s, {waiting}; last loss {values['total']:.3f}")
    return following


def train_step(run: "Training", sample: "Sample") -> "StepResult":
    """Forward, backward and the optimiser, for this process's samples of one step."""
    import torch

    from common.targets import build_images, build_targets
    from common.types import take
    from main.training import StepResult

    config, parts, device = run.config, run.parts, run.place.device
    amp = torch.autocast(device.type, getattr(torch, AMP_TYPES[config.amp]), enabled=config.amp != "none")
    result = StepResult()
    parts.optimizer.zero_grad(set_to_none=True)
    for part in range(config.accumulate):
        # Every so-many-th sample: what so many processes would get.
        share = take(sample, slice(part, None, config.accumulate))
        images = build_images(share)
        if run.args.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        targets = build_targets(share, parts.model.mano_layer, config.frames)
        more = part + 1 < config.accumulate and run.place.world > 1
        with run.network.no_sync() if more else nullcontext():  # gradients are exchanged once a step
            with amp:
                prediction = run.network(images)
            terms = run.criterion(prediction, targets)
            parts.scaler.scale(sum(terms.values()) / config.accumulate).backward()
        for name, value in terms.items():
            result.terms[name] = result.terms.get(name, 0) + value.detach() / config.accumulate
        for kept, value in zip(
            (result.samples, result.images, result.targets, result.predictions),
            (share, images, targets, prediction),
            strict=True,
        ):
            kept.append(value)

    parts.scaler.unscale_(parts.optimizer)
    weights = (weight for group in parts.optimizer.param_groups for weight in group["params"])
    result.gradient_norm = torch.nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
    parts.scaler.step(parts.optimizer)
    parts.scaler.update()
    return result


def collect(
    run: "Training", result: "StepResult", stop: "StopSignal", epoch: int, step: int
) -> dict[str, float | None]:
    """The step's numbers over all processes, which also agree here on whether to stop.

    The numbers are read only now, with the whole step under way: until then the device does not wait for the host.

    Raises:
        UserError: a loss or the gradient is not finite; names the terms and the samples.
    """
    import torch

    from common.distributed import mean_over_processes
    from main.training import find_culprits

    device, world = run.place.device, run.place.world
    replaced = sum(share.replaced.sum() for share in result.samples)
    ours = [*result.terms.values(), result.gradient_norm, replaced, torch.tensor(float(stop.asked))]
    values = mean_over_processes(torch.stack([value.to(device, torch.float32) for value in ours]), run.place)
    *losses, gradient_norm, replaced, stopping = values.tolist()
    stop.asked_of_all = stopping > 0

    terms = dict(zip(result.terms, losses, strict=True))
    bad = [name for name, value in terms.items() if not math.isfinite(value)]
    if not bad and not math.isfinite(gradient_norm):
        gradient_norm = None
        if run.config.amp != "fp16":  # there an overflow is part of the method: the scaler leaves the step out
            bad = ["gradient"]
    if bad:
        culprits = find_culprits(run, result, bad)
        more = f" and {len(culprits) - NAMED_SAMPLES} more" if len(culprits) > NAMED_SAMPLES else ""
        raise UserError(
            f"not finite at epoch {epoch}, step {step}: {', '.join(bad)}; samples: "
            f"{', '.join(culprits[:NAMED_SAMPLES])}{more}. Check them, or lower --lr; what was saved is from before "
            "this step, --continue goes on there"
        )
    return {"total": sum(losses), **terms, "gradient_norm": gradient_norm, "replaced": replaced * world}


def learning_rate(config: Config, epoch: int) -> float:
    """A plain function of the epoch: there is no state to save."""
    return config.lr / config.lr_dec_factor ** sum(epoch >= begin for begin in config.lr_dec_epoch)


# ---- The command line ----


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--gpu", help=GPU_HELP)
    parser.add_argument("--continue", dest="go_on", action="store_true", help="go on from the newest checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="start anew; remove older checkpoints in --output")
    parser.add_argument("--output", type=Path, default=ROOT / "output", help="folder to write into (default: output)")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder of the datasets (default: data)")
    parser.add_argument("--mano", type=Path, default=MANO_FOLDER, help="folder of MANO_RIGHT.pkl and MANO_LEFT.pkl")
    parser.add_argument(
        "--init", choices=("imagenet", "random"), default="imagenet", help="the untrained backbones (default: imagenet)"
    )
    parser.add_argument("--skip-bad", action="store_true", help="replace samples that cannot be read")
    parser.add_argument("--save_every", type=count, default=500, metavar="N", help="steps (default: %(default)s)")
    parser.add_argument(
        "--visualize_every", type=int, default=500, metavar="N", help="steps; 0: never (default: %(default)s)"
    )
    parser.add_argument(
        "--parallel", choices=("ddp", "dp"), default="ddp", help="one process a GPU, or one for all (default: ddp)"
    )
    parser.add_argument("--processes", type=count, default=1, help="on the CPU (default: 1)")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    parser.add_argument("--channels_last", action="store_true", help="memory layout; faster with --amp on most GPUs")
    add_config_options(parser)
    args = parser.parse_args(argv)
    args.dp_devices = None
    if args.go_on and args.overwrite:
        parser.error("--continue goes on, --overwrite starts anew: choose one")
    return args


if __name__ == "__main__":
    run_main(main)
