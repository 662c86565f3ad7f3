"""The training stage of tool/benchmark.py: the step of main/train.py against its backbones alone."""

import argparse
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from msgspec.structs import replace
from torch.utils.data import default_collate

from common.distributed import ProcessInfo
from data.dataset import to_device
from main import train
from main.training import Training, build_training
from tool.benchmarks.core import Figure, peak_memory
from tool.benchmarks.network import Backbones, Bench, count_operations, describe_trunks, rate, trunk_inputs
from tool.benchmarks.profile import run_profile

if TYPE_CHECKING:
    from common.types import Sample

STEP_LIMIT = 1.25


def open_run(bench: Bench, dtype: str, data: Path, mano: Path, output: Path) -> Training:
    """A training as main/train.py sets it up, with untrained backbones."""
    args: argparse.Namespace = train.parse_args(
        ["--data", str(data), "--mano", str(mano), "--output", str(output), "--init", "random"]
    )
    args.channels_last, args.compile = bench.channels_last, dtype == "compiled"
    amp = "bf16" if dtype == "bf16" or (dtype == "compiled" and bench.device.type == "cuda") else "none"
    config = replace(bench.config, amp=amp, train_batch_size=1, num_thread=0)  # the batch is made once, here
    return build_training(args, ProcessInfo(0, 1, 0, bench.device), config, None)


def make_batch(run: Training, batch: int, device: torch.device) -> "Sample":
    """Samples of the training sets, over and over if there are fewer."""
    keys = [key for keys in run.sampler for key in keys]
    cached = {key: run.loader.dataset[key] for key in keys[:batch]}
    return to_device(default_collate([cached[keys[index % len(cached)]] for index in range(batch)]), device)


def step(run: Training, sample: "Sample", number: int = 0) -> None:
    """One step, with its numbers read, as the loop does."""
    stop = SimpleNamespace(asked=False, asked_of_all=False)
    train.collect(run, train.train_step(run, sample), stop, 0, number)


class TrunkStep:
    """Forward and backward of the backbones alone.

    The gradient comes from outside, and none goes to the inputs: no loss, no optimiser, no norm.
    """

    def __init__(self, run: Training, batch: int, bench: Bench, dtype: str, with_deconv: bool) -> None:
        model, self.bench, self.dtype = run.parts.model, bench, dtype
        self.backbones = Backbones(model, with_deconv)
        self.network = torch.compile(self.backbones) if dtype == "compiled" else self.backbones
        self.inputs = trunk_inputs(model, batch, bench)
        self.gradients: list[torch.Tensor] | None = None

    def __call__(self) -> None:
        self.backbones.zero_grad(set_to_none=True)
        with self.bench.autocast(self.dtype):
            outputs = self.network(*self.inputs)
        if self.gradients is None:
            self.gradients = [torch.full_like(output, 1e-6) for output in outputs]
        torch.autograd.backward(outputs, self.gradients)


def training_step(bench: Bench, batch: int, data: Path, mano: Path, output: Path, profile: bool) -> list[Figure]:
    """The step against its backbones, for each dtype."""
    figures = []
    for dtype in bench.dtypes:
        run = open_run(bench, dtype, data, mano, output / f"training_{dtype}")
        try:
            sample = make_batch(run, batch, bench.device)
            reference = TrunkStep(run, batch, bench, dtype, with_deconv=False)
            figure = bench.clock.compare(
                "step",
                f"training step / its backbones, {dtype}, batch {batch}",
                lambda run=run, sample=sample: step(run, sample),
                reference,
                limit=bench.limit(STEP_LIMIT),
                detail=f"images, targets, network, losses, backward, gradient norm, Adam; "
                f"{describe_trunks(run.parts.model, bench)}; forward and backward",
            )
            figures.append(figure)
            figures.append(with_deconv(run, batch, bench, dtype, reference))
            operations = 3 * count_operations(reference.backbones, reference.inputs)
            figures.append(rate("step", dtype, operations, figure, bench))
            figures.append(memory(run, sample, bench, dtype, batch))
            if profile and dtype == bench.dtypes[0]:
                found = run_profile(lambda run=run, sample=sample: step(run, sample), run.parts.model, bench.device)
                bench.notes[f"training step, {dtype}"] = found
            if bench.growth and dtype == bench.dtypes[-1]:
                bench.notes["training step, by batch"] = step_growth(run, bench, batch)
        finally:
            run.close()
        del run
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    return figures


def with_deconv(run: Training, batch: int, bench: Bench, dtype: str, backbones: TrunkStep) -> Figure:
    """What of the ratio is the detector's deconv, which is convolutions as large as a backbone's."""
    return bench.clock.compare(
        "step",
        f"  of that: backbones and deconv / backbones, {dtype}",
        TrunkStep(run, batch, bench, dtype, with_deconv=True),
        backbones,
        detail="a step cannot be nearer to its backbones than this",
    )


def memory(run: Training, sample: "Sample", bench: Bench, dtype: str, batch: int) -> Figure:
    """The most that a step holds beyond weights and optimiser state."""
    used = peak_memory(lambda: step(run, sample), bench.device)
    return Figure("step", f"  memory of a step, {dtype}, batch {batch}", used / 1e6, "MB", detail="beyond the weights")


def step_growth(run: Training, bench: Bench, largest: int) -> dict[str, dict[str, float]]:
    """Samples a second, and memory, against the batch."""
    found, batch = {}, 1
    while batch <= min(largest, bench.max_batch):
        sample = make_batch(run, batch, bench.device)
        step(run, sample)
        begun = time.perf_counter()
        step(run, sample)  # reading its numbers waits for the device
        seconds = time.perf_counter() - begun
        used = peak_memory(lambda sample=sample: step(run, sample), bench.device)
        found[str(batch)] = {"samples_per_s": batch / seconds, "memory_MB": used / 1e6}
        bench.clock.progress(f"steps with batch {batch}")
        batch *= 2
    return found
