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
from tool.benchmarks.network import Backbones, backbone_inputs, cost_by_batch, describe_reference
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


def make_backbone_step(run: Run, batch: int, dtype: str) -> Callable[[], None]:
    """Forward and backward pass of the backbones alone.

    The gradient comes from outside, and none goes to the inputs: no loss, no optimizer, no norm.
    """
    backbones, inputs = Backbones(run.state.model, with_deconv=False), backbone_inputs(run.state.model, batch)
    network = torch.compile(backbones) if dtype == "compiled" else backbones
    gradients: list[torch.Tensor] = []

    def step() -> None:
        backbones.zero_grad(set_to_none=True)
        with autocast(dtype, run.process.device):
            outputs = network(*inputs)
        gradients[:] = gradients or [torch.full_like(output, 1e-6) for output in outputs]
        torch.autograd.backward(outputs, gradients)

    return step


def training_step(bench: Bench) -> list[Measurement]:
    """The step against its backbones, and its memory, for each dtype."""
    measurements, batch = [], bench.args.step_batch
    for dtype in bench.args.dtypes:
        run = open_run(bench, dtype)
        whole, model = make_step(run, batch), run.state.model
        ratio = bench.clock.compare(
            "step",
            f"training step / its backbones, {dtype}, batch {batch}",
            whole,
            make_backbone_step(run, batch, dtype),
            limit=bench.limit(STEP_LIMIT),
            detail=f"images, targets, network, losses, backward, gradient norm, Adam; {describe_reference(model)}; "
            "forward and backward",
        )
        what, detail = f"  memory of a step, {dtype}, batch {batch}", "beyond weights and optimizer state"
        memory = peak_memory(whole, bench.device) / 1e6
        measurements += [ratio, Measurement("step", what, memory, "MB", detail=detail)]
        if bench.args.profile and dtype == bench.args.dtypes[0]:
            bench.notes[f"training step, {dtype}"] = run_profile(whole, model, bench.device)
        if dtype == bench.args.dtypes[-1]:
            cost_by_batch(bench, "training step", "samples", partial(make_step, run), batch)
        del run, whole, model  # before the next one takes memory
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    return measurements
