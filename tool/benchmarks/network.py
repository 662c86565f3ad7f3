"""The network's stages of tool/benchmark.py: inference and the translation network's input."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.nets.trans_net import PEAK, SIGMA, convolve_heatmaps
from main.build import build_model, prepare_inference
from main.model import InterWild
from tool.benchmarks.core import Bench, Measurement, autocast, peak_memory, tf32
from tool.benchmarks.profile import run_profile
from tool.untrained import show_something

INFERENCE_LIMIT, INPUT_SPEED_LIMIT, INPUT_MEMORY_LIMIT, INPUT_ERROR_LIMIT = 1.15, 10.0, 2.0, 1e-5


def untrained(bench: Bench) -> InterWild:
    """A network with plausible predictions, for inference."""
    torch.manual_seed(0)
    model = build_model(bench.config, bench.mano)
    show_something(model)
    model = prepare_inference(model, bench.device)
    return model.to(memory_format=torch.channels_last) if bench.args.channels_last else model


def memory_format(model: InterWild) -> torch.memory_format:
    """The layout of a network's convolutions; images and the inputs of its backbones take it, too."""
    weight = model.hand_roi_net.backbone.conv1.weight
    last = weight.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def random_images(model: InterWild, *shape: int) -> Tensor:
    """(N, C, h, w) in [0, 1], on the network's device and in its memory layout."""
    return torch.rand(shape).to(model.hand_roi_net.backbone.conv1.weight.device, memory_format=memory_format(model))


class Backbones(nn.Module):
    """The three backbones of a network, sharing its modules, with nothing between them.

    Args:
        with_deconv: include the detector's transposed convolutions.
    """

    def __init__(self, model: InterWild, with_deconv: bool) -> None:
        super().__init__()
        self.body, self.hand = model.body_backbone, model.hand_roi_net.backbone
        self.pair = model.hand_trans_net.backbone
        self.deconv = model.body_box_net.deconv if with_deconv else nn.Identity()

    def forward(self, image_body: Tensor, hands: Tensor, pair: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The backbones' inputs in the network: (N, 3, h, w), (2N, 3, h, w), and (N, 64, h, w) from `layer1` on."""
        return self.deconv(self.body(image_body)), self.hand(hands), self.pair.stages(pair)


def backbone_inputs(model: InterWild, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random inputs of the shapes that the backbones see for a batch of images."""
    frames, channels = model.frames, model.hand_trans_net.conv[0].out_channels
    return (
        random_images(model, batch, 3, *frames.body),
        random_images(model, 2 * batch, 3, *frames.hand),
        random_images(model, batch, channels, *frames.pair_hm),
    )


def describe_reference(model: InterWild) -> str:
    """How the backbones alone are run, in words."""
    body, hand, pair = (f"{h} x {w}" for h, w in (model.frames.body, model.frames.hand, model.frames.pair_hm))
    layout = str(memory_format(model)).removeprefix("torch.").replace("_", " ")
    return (
        f"backbones alone: the same modules on an image's {body} body, two {hand} hands, and {pair} x 64 into the "
        f"pair backbone from layer1 on; same batch, threads, mode and memory layout ({layout})"
    )


def inference(bench: Bench) -> list[Measurement]:
    """The whole network against its backbones and the deconv."""
    model, measurements, batch = untrained(bench), [], bench.args.batch
    backbones = Backbones(model, with_deconv=True)
    images, inputs = random_images(model, batch, 3, *model.frames.crop), backbone_inputs(model, batch)
    for dtype in bench.args.dtypes:
        whole, parts = (torch.compile(x) if dtype == "compiled" else x for x in (model, backbones))
        with torch.inference_mode(), autocast(dtype, bench.device):
            ratio = bench.clock.compare(
                "inference",
                f"inference / its backbones and deconv, {dtype}, batch {batch}",
                partial(whole, images),
                partial(parts, *inputs),
                limit=bench.limit(INFERENCE_LIMIT),
                detail=describe_reference(model),
            )
        measurements.append(ratio)
    if bench.args.profile:
        with torch.inference_mode(), autocast(bench.args.dtypes[0], bench.device):
            bench.notes["inference"] = run_profile(partial(model, images), model, bench.device)
    with torch.inference_mode(), autocast(bench.args.dtypes[-1], bench.device):
        cost_by_batch(
            bench, "inference", "images", lambda n: partial(model, random_images(model, n, 3, *model.frames.crop))
        )
    return measurements


def cost_by_batch(
    bench: Bench, what: str, unit: str, prepare: Callable[[int], Callable[[], object]], largest: int | None = None
) -> None:
    """Note throughput and memory of batches of 1, 2, 4, ... up to --max_batch; `prepare` makes the call for a batch."""
    found, batch = {}, 1
    while batch <= min(largest or bench.args.max_batch, bench.args.max_batch) and not bench.args.no_growth:
        call = prepare(batch)
        memory = peak_memory(call, bench.device)
        seconds = min(bench.clock.seconds(call)[0] for _ in range(2))
        found[str(batch)] = {f"{unit}_per_s": batch / seconds, "memory_MB": memory / 1e6}
        bench.clock.progress(f"batches of {batch} {unit}")
        batch *= 2
    if found:
        bench.notes[f"{what}, by batch"] = found


# ---- The input of the translation network ----


def dense_heatmaps(joints: Tensor, weight: Tensor, bias: Tensor, size: tuple[int, int, int]) -> Tensor:
    """What `convolve_heatmaps` replaces: each joint's heatmap, depths as channels, then the convolution."""
    axes = (torch.arange(n, dtype=joints.dtype, device=joints.device) for n in size)
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    heatmaps = torch.zeros(*joints.shape[:2], *size, device=joints.device, dtype=joints.dtype)
    for position, cells in zip(joints.unbind(-1), (x, y, z), strict=True):
        heatmaps += (cells - position[..., None, None, None]).square_()
    heatmaps.div_(-2 * SIGMA**2).exp_().mul_(PEAK)
    return F.conv2d(heatmaps.flatten(1, 2), weight, bias, padding=1)


def trans_input(bench: Bench) -> list[Measurement]:
    """The factorised first stage of the translation network against the dense form: time, memory, numbers."""
    frames, convolution = bench.config.frames, untrained(bench).hand_trans_net.conv[0]
    size = (frames.pair_bins, *frames.pair_hm)
    batch = min(bench.args.batch, 32)
    joints = torch.rand(batch, 42, 3, device=bench.device) * torch.tensor(size[::-1], device=bench.device)
    weight, bias = convolution.weight.detach().contiguous(), convolution.bias.detach()
    what = f"TransNet's input, batch {batch}"
    factorised = partial(convolve_heatmaps, joints, weight, bias, size)
    dense = partial(dense_heatmaps, joints, weight, bias, size)
    with torch.inference_mode(), tf32(False):  # the numbers are compared
        expected = dense()
        error = float((factorised() - expected).abs().max() / expected.abs().max())
        del expected
        ratio = bench.clock.compare(
            "trans_net",
            f"{what}: times faster than dense",
            factorised,
            dense,
            inverse=True,
            limit=bench.limit(INPUT_SPEED_LIMIT),
            at_least=True,
            detail=f"dense: {weight.shape[1]}-channel heatmaps of {size[1]} x {size[2]}, convolution to "
            f"{weight.shape[0]}; no TF32",
        )
        ours, theirs = (peak_memory(call, bench.device) / 1e6 for call in (factorised, dense))
    share = Measurement(
        "trans_net",
        f"{what}: memory relative to dense",
        100 * ours / theirs,
        "%",
        limit=bench.limit(INPUT_MEMORY_LIMIT),
        detail="peak memory beyond the inputs",
        parts={"measured_MB": ours, "reference_MB": theirs},
    )
    difference = f"{what}: relative difference"
    return [ratio, share, Measurement("trans_net", difference, error, "", limit=INPUT_ERROR_LIMIT, detail="largest")]
