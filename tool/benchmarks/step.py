"""The training stage of tool/benchmark.py: the step of main/train.py against its backbones alone."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from msgspec.structs import replace
from torch import nn
from torch.utils.data import Dataset, default_collate

from common.criterion import InterWildLoss
from common.distributed import ProcessInfo, StopSignal
from common.types import Sample
from data.dataset import SampleKey, to_device
from main import train
from main.config import Config
from main.resume import Progress, TrainState
from tool.benchmarks.core import Measurement, autocast, peak_memory
from tool.benchmarks.network import (
    Backbones,
    Bench,
    backbone_inputs,
    cost_by_batch,
    count_operations,
    describe_reference,
    operation_rate,
)
from tool.benchmarks.profile import run_profile

STEP_LIMIT = 1.25


class Run(NamedTuple):
    """The parts of a training that a step needs."""

    state: TrainState
    network: nn.Module
    criterion: InterWildLoss
    config: Config
    process: ProcessInfo
    samples: Dataset  # whose keys are these
    keys: list[SampleKey]
    channels_last: bool


def open_run(bench: Bench, dtype: str, data: Path, mano: Path, output: Path) -> Run:
    """A training as main/train.py sets it up, with untrained backbones."""
    args = train.parse_args(["--data", str(data), "--mano", str(mano), "--output", str(output), "--init", "random"])
    args.channels_last, args.compile = bench.channels_last, dtype == "compiled"
    amp = "bf16" if dtype == "bf16" or (dtype == "compiled" and bench.device.type == "cuda") else "none"
    config = replace(bench.config, amp=amp, train_batch_size=1, num_thread=0)  # the batch is made once, here
    process = ProcessInfo(0, 1, 0, bench.device)
    sampler, loader = train.build_data(args, process, config)
    state, _ = train.build_state(args, process, config)
    network, criterion = train.wrap_model(args, process, state.model, amp), InterWildLoss(config.frames)
    keys = [key for keys in sampler for key in keys]
    return Run(state, network, criterion, config, process, loader.dataset, keys, args.channels_last)


def make_batch(run: Run, batch: int, device: torch.device) -> Sample:
    """Samples of the training sets, repeated if there are fewer."""
    keys = run.keys
    cached = {key: run.samples[key] for key in keys[:batch]}
    return to_device(default_collate([cached[keys[index % len(cached)]] for index in range(batch)]), device)


def step(run: Run, sample: Sample) -> None:
    """One step, with its numbers read, as the loop does."""
    result = train.train_step(run.network, run.state, run.criterion, sample, run.config, run.channels_last)
    train.reduce_and_check(result, run.criterion, run.process, StopSignal(), Progress(0, 0), run.state.scaler)


class BackboneStep:
    """Forward and backward pass of the backbones alone.

    The gradient comes from outside, and none goes to the inputs: no loss, no optimizer, no norm.
    """

    def __init__(self, run: Run, batch: int, dtype: str, with_deconv: bool) -> None:
        model, self.device, self.dtype = run.state.model, run.process.device, dtype
        self.backbones = Backbones(model, with_deconv)
        self.network = torch.compile(self.backbones) if dtype == "compiled" else self.backbones
        self.inputs = backbone_inputs(model, batch)
        self.gradients: list[torch.Tensor] | None = None

    def __call__(self) -> None:
        self.backbones.zero_grad(set_to_none=True)
        with autocast(self.dtype, self.device):
            outputs = self.network(*self.inputs)
        if self.gradients is None:
            self.gradients = [torch.full_like(output, 1e-6) for output in outputs]
        torch.autograd.backward(outputs, self.gradients)


def training_step(bench: Bench, batch: int, data: Path, mano: Path, output: Path, profile: bool) -> list[Measurement]:
    """The step against its backbones, for each dtype."""
    measurements: list[Measurement] = []
    for dtype in bench.dtypes:
        run = open_run(bench, dtype, data, mano, output / f"training_{dtype}")
        measurements += one_dtype(run, bench, dtype, batch)
        if profile and dtype == bench.dtypes[0]:
            whole = partial(step, run, make_batch(run, batch, bench.device))
            bench.notes[f"training step, {dtype}"] = run_profile(whole, run.state.model, bench.device)
        if bench.growth and dtype == bench.dtypes[-1]:
            bench.notes["training step, by batch"] = step_growth(run, bench, batch)
        del run  # before the next one takes memory
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    return measurements


def one_dtype(run: Run, bench: Bench, dtype: str, batch: int) -> list[Measurement]:
    """The ratio, the part of it that is the detector's deconv, the rate of operations, the memory."""
    model, whole = run.state.model, partial(step, run, make_batch(run, batch, bench.device))
    backbones = BackboneStep(run, batch, dtype, with_deconv=False)
    ratio = bench.clock.compare(
        "step",
        f"training step / its backbones, {dtype}, batch {batch}",
        whole,
        backbones,
        limit=bench.limit(STEP_LIMIT),
        detail=f"images, targets, network, losses, backward, gradient norm, Adam; "
        f"{describe_reference(model)}; forward and backward",
    )
    with_deconv = bench.clock.compare(
        "step",
        f"  of that: backbones and deconv / backbones, {dtype}",
        BackboneStep(run, batch, dtype, with_deconv=True),
        backbones,
        detail="the deconv's convolutions are as large as a backbone's: a step cannot come closer to its backbones",
    )
    rate = operation_rate(bench, dtype, 3 * count_operations(backbones.backbones, backbones.inputs), ratio)
    memory = Measurement(
        "step",
        f"  memory of a step, {dtype}, batch {batch}",
        peak_memory(whole, bench.device) / 1e6,
        "MB",
        detail="beyond weights and optimizer state",
    )
    return [ratio, with_deconv, rate, memory]


def step_growth(run: Run, bench: Bench, largest: int) -> dict[str, dict[str, float]]:
    """Samples per second and memory, by batch."""
    return cost_by_batch(bench, "samples", lambda n: partial(step, run, make_batch(run, n, bench.device)), largest)
