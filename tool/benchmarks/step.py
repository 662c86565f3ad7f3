"""The training stage of tool/benchmark.py: the step of main/train.py against its backbones alone."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from msgspec.structs import replace
from torch import nn
from torch.utils.data import Dataset, default_collate

from common.criterion import InterWildLoss
from common.distributed import ProcessInfo, StopSignal
from data.dataset import SampleKey, to_device
from main import train
from main.config import Config
from main.resume import Progress, TrainState
from tool.benchmarks.core import Bench, Measurement, amp_of, autocast, peak_memory
from tool.benchmarks.network import (
    Backbones,
    backbone_inputs,
    cost_by_batch,
    count_operations,
    describe_reference,
    operation_rate,
)
from tool.benchmarks.profile import run_profile

STEP_LIMIT = 1.25


class Run(NamedTuple):
    """The parts of a training that a step needs, and the keys of its samples."""

    state: TrainState
    network: nn.Module
    criterion: InterWildLoss
    config: Config
    process: ProcessInfo
    samples: Dataset
    keys: list[SampleKey]
    channels_last: bool


def open_run(bench: Bench, dtype: str) -> Run:
    """A training as main/train.py sets it up, with untrained backbones."""
    folders = {"--data": bench.args.data, "--mano": bench.args.mano, "--output": bench.args.scratch / dtype}
    args = train.parse_args(["--init", "random", *(str(word) for pair in folders.items() for word in pair)])
    args.channels_last, args.compile = bench.args.channels_last, dtype == "compiled"
    amp = amp_of(dtype, bench.device)
    config = replace(bench.config, amp=amp, train_batch_size=1, num_thread=0)  # the batch is made once, here
    process = ProcessInfo(0, 1, 0, bench.device)
    sampler, loader = train.build_data(args, process, config)
    state, _ = train.build_state(args, process, config)
    network, criterion = train.wrap_model(args, process, state.model, amp), InterWildLoss(config.frames)
    keys = [key for keys in sampler for key in keys]
    return Run(state, network, criterion, config, process, loader.dataset, keys, args.channels_last)


def make_step(run: Run, batch: int) -> Callable[[], None]:
    """One step on `batch` samples of the training sets, repeated if there are fewer; its numbers are read."""
    samples = [run.samples[key] for key in run.keys[:batch]]
    sample = to_device(default_collate([samples[index % len(samples)] for index in range(batch)]), run.process.device)

    def step() -> None:
        result = train.train_step(run.network, run.state, run.criterion, sample, run.config, run.channels_last)
        train.reduce_and_check(result, run.criterion, run.process, StopSignal(), Progress(0, 0), run.state.scaler)

    return step


class BackboneStep:
    """Forward and backward pass of the backbones alone.

    The gradient comes from outside, and none goes to the inputs: no loss, no optimizer, no norm.
    """

    def __init__(self, run: Run, batch: int, dtype: str, with_deconv: bool) -> None:
        model, self.device, self.dtype = run.state.model, run.process.device, dtype
        self.backbones = Backbones(model, with_deconv)
        self.network = torch.compile(self.backbones) if dtype == "compiled" else self.backbones
        self.inputs = backbone_inputs(model, batch)
        self.gradients: list[torch.Tensor] = []

    def __call__(self) -> None:
        self.backbones.zero_grad(set_to_none=True)
        with autocast(self.dtype, self.device):
            outputs = self.network(*self.inputs)
        self.gradients = self.gradients or [torch.full_like(output, 1e-6) for output in outputs]
        torch.autograd.backward(outputs, self.gradients)


def training_step(bench: Bench) -> list[Measurement]:
    """The step against its backbones, for each dtype."""
    measurements, batch = [], bench.args.step_batch
    for dtype in bench.args.dtypes:
        run = open_run(bench, dtype)
        whole = make_step(run, batch)
        measurements += one_dtype(run, bench, dtype, whole)
        if bench.args.profile and dtype == bench.args.dtypes[0]:
            bench.notes[f"training step, {dtype}"] = run_profile(whole, run.state.model, bench.device)
        if dtype == bench.args.dtypes[-1]:
            cost_by_batch(bench, "training step", "samples", partial(make_step, run), batch)
        del run, whole  # before the next one takes memory
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    return measurements


def one_dtype(run: Run, bench: Bench, dtype: str, whole: Callable[[], None]) -> list[Measurement]:
    """The ratio, the part of it that is the detector's deconv, the rate of operations, the memory."""
    batch = bench.args.step_batch
    backbones = BackboneStep(run, batch, dtype, with_deconv=False)
    ratio = bench.clock.compare(
        "step",
        f"training step / its backbones, {dtype}, batch {batch}",
        whole,
        backbones,
        limit=bench.limit(STEP_LIMIT),
        detail=f"images, targets, network, losses, backward, gradient norm, Adam; "
        f"{describe_reference(run.state.model)}; forward and backward",
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
