"""The network's stages of tool/benchmark.py: inference, the translation network's input, and how they grow."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.nets.mano import TwoHandMano
from common.nets.trans_net import PEAK, SIGMA, convolve_heatmaps
from main.build import build_model, prepare_inference
from main.config import Config
from main.model import InterWild
from tool.benchmarks.core import Clock, Figure, peak_memory
from tool.benchmarks.profile import run_profile
from tool.untrained import show_something

INFERENCE_LIMIT, INPUT_SPEED_LIMIT, INPUT_MEMORY_LIMIT, INPUT_ERROR_LIMIT = 1.15, 10.0, 2.0, 1e-5
MATMUL_SIZE = {"cuda": 8192, "cpu": 1024}


@dataclass
class Bench:
    """What all stages work with.

    Attributes:
        dtypes: of float32, bf16 (autocast) and compiled (as bf16 on a GPU, else float32).
        images: images of one inference call.
        growth: give the figures of how cost grows.
        notes: whatever else is found; goes into the JSON file and is printed.
    """

    config: Config
    mano: TwoHandMano
    clock: Clock
    dtypes: tuple[str, ...]
    images: int
    max_batch: int
    channels_last: bool
    growth: bool
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def published(self) -> bool:
        """Whether the network is the published one, for which the limits are."""
        names = ("body_backbone", "hand_backbone", "trans_backbone", "frames")
        return all(getattr(self.config, name) == getattr(Config(), name) for name in names)

    def limit(self, value: float) -> float | None:
        """A limit of a network's figure."""
        return value if self.published else None

    @property
    def device(self) -> torch.device:
        return self.clock.device

    def autocast(self, dtype: str) -> AbstractContextManager:
        """Mixed precision as `dtype` asks for it."""
        if dtype == "bf16" or (dtype == "compiled" and self.device.type == "cuda"):
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def layout(self, x: nn.Module | Tensor) -> nn.Module | Tensor:
        """A network or its input on the device, in the memory layout that was asked for."""
        if self.channels_last and not (isinstance(x, Tensor) and x.ndim != 4):
            return x.to(self.device, memory_format=torch.channels_last)
        return x.to(self.device)


def untrained(bench: Bench) -> InterWild:
    """A network with plausible answers, for inference."""
    torch.manual_seed(0)
    model = build_model(bench.config, bench.mano)
    show_something(model)
    model = prepare_inference(model, bench.device)
    return bench.layout(model) if bench.channels_last else model


class Backbones(nn.Module):
    """The three backbones of a network, the very same modules, and nothing between them.

    Args:
        with_deconv: the detector's transposed convolutions, too.
    """

    def __init__(self, model: InterWild, with_deconv: bool) -> None:
        super().__init__()
        self.body, self.hand, self.pair = (
            model.body_backbone,
            model.hand_roi_net.backbone,
            model.hand_trans_net.backbone,
        )
        self.deconv = model.body_box_net.deconv if with_deconv else nn.Identity()

    def forward(self, image_body: Tensor, hands: Tensor, pair: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the network gives each backbone: (N, 3, h, w), (2N, 3, h, w), and (N, 64, h, w) from `layer1` on."""
        return self.deconv(self.body(image_body)), self.hand(hands), self.pair.stages(pair)


def trunk_inputs(model: InterWild, batch: int, bench: Bench) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of the shapes that the backbones see for a batch of images."""
    frames, channels = model.frames, model.hand_trans_net.conv[0].out_channels
    shapes = (batch, 3, *frames.body), (2 * batch, 3, *frames.hand), (batch, channels, *frames.pair_hm)
    return tuple(bench.layout(torch.rand(shape)) for shape in shapes)


def describe_trunks(model: InterWild, bench: Bench) -> str:
    """How the reference is made, in words."""
    frames = model.frames
    (body_h, body_w), (hand_h, hand_w), (pair_h, pair_w) = frames.body, frames.hand, frames.pair_hm
    weight = model.hand_roi_net.backbone.conv1.weight
    layout = "channels last" if weight.is_contiguous(memory_format=torch.channels_last) else "channels first"
    return (
        f"backbones alone: the same modules on an image's {body_h} x {body_w} body, two {hand_h} x {hand_w} hands, and "
        f"{pair_h} x {pair_w} x 64 into the pair backbone from layer1 on; same batch, threads and mode, {layout}"
    )


def images_of(batch: int, bench: Bench) -> Tensor:
    """(N, 3, H, W) in [0, 1]."""
    return bench.layout(torch.rand(batch, 3, *bench.config.frames.crop))


def inference(bench: Bench, profile: bool = False) -> list[Figure]:
    """The whole network against its backbones and the deconv."""
    model, figures = untrained(bench), []
    backbones = Backbones(model, with_deconv=True)
    images, inputs = images_of(bench.images, bench), trunk_inputs(model, bench.images, bench)
    operations = count_operations(backbones, inputs)
    for dtype in bench.dtypes:
        whole, parts = (torch.compile(x) if dtype == "compiled" else x for x in (model, backbones))
        with torch.inference_mode(), bench.autocast(dtype):
            figure = bench.clock.compare(
                "inference",
                f"inference / its backbones and deconv, {dtype}, batch {bench.images}",
                lambda whole=whole: whole(images),
                lambda parts=parts: parts(*inputs),
                limit=bench.limit(INFERENCE_LIMIT),
                detail=describe_trunks(model, bench),
            )
        figures.append(figure)
        figures.append(rate("inference", dtype, operations, figure, bench))
    if profile:
        with torch.inference_mode(), bench.autocast(bench.dtypes[0]):
            bench.notes["inference"] = run_profile(lambda: model(images), model, bench.device)
    if bench.growth:
        bench.notes["inference, by batch"] = inference_growth(model, bench)
    return figures


def inference_growth(model: InterWild, bench: Bench) -> dict[str, dict[str, float]]:
    """Images a second, and memory, against the batch, in the last of the dtypes."""
    found, dtype, batch = {}, bench.dtypes[-1], 1
    with torch.inference_mode(), bench.autocast(dtype):
        while batch <= bench.max_batch:
            images = images_of(batch, bench)
            memory = peak_memory(lambda images=images: model(images), bench.device)
            seconds = min(bench.clock.seconds(lambda images=images: model(images))[0] for _ in range(2))
            found[str(batch)] = {"images_per_s": batch / seconds, "memory_MB": memory / 1e6}
            bench.clock.progress(f"inference with batch {batch}")
            batch *= 2
    return found


# ---- The share of what the machine can do ----


def count_operations(network: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Floating-point operations of one forward, a multiplication and an addition counting two."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*inputs)
    return counter.get_total_flops()


def rate(stage: str, dtype: str, operations: int, figure: Figure, bench: Bench) -> Figure:
    """What share of the rate of a large matrix product, measured here, the convolutions of the backbones get."""
    exact = isinstance(bench.autocast(dtype), nullcontext)
    size = MATMUL_SIZE[bench.device.type]
    with torch.no_grad():
        a, b = (
            torch.rand(size, size, device=bench.device, dtype=torch.float32 if exact else torch.bfloat16)
            for _ in range(2)
        )
        seconds = min(bench.clock.seconds(lambda: a @ b, repeat=5)[0] for _ in range(4))
    peak, whole = 2 * size**3 / seconds, operations / figure.parts["measured_s"]
    return Figure(
        stage,
        f"{stage}: backbone operations a second, of a matrix product's, {dtype}",
        100 * whole / peak,
        "%",
        detail=f"{operations / 1e9:.1f} G operations in the time of the whole; {size} x {size} {a.dtype} matrices",
        parts={"Gflops_per_s": whole / 1e9, "matmul_Gflops_per_s": peak / 1e9},
    )


# ---- The input of the translation network ----


def dense_heatmaps(joints: Tensor, weight: Tensor, bias: Tensor, size: tuple[int, int, int]) -> Tensor:
    """What `convolve_heatmaps` stands for: each joint's heatmap, depths as channels, then the convolution."""
    axes = (torch.arange(n, dtype=joints.dtype, device=joints.device) for n in size)
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    heatmaps = torch.zeros(*joints.shape[:2], *size, device=joints.device, dtype=joints.dtype)
    for position, cells in zip(joints.unbind(-1), (x, y, z), strict=True):
        heatmaps += (cells - position[..., None, None, None]).square_()
    heatmaps.div_(-2 * SIGMA**2).exp_().mul_(PEAK)
    return F.conv2d(heatmaps.flatten(1, 2), weight, bias, padding=1)


def trans_input(bench: Bench) -> list[Figure]:
    """The factorised first stage of the translation network against the dense form: time, memory, numbers."""
    frames, convolution = bench.config.frames, untrained(bench).hand_trans_net.conv[0]
    depth, (height, width) = frames.pair_bins, frames.pair_hm
    batch = min(bench.images, 32)
    joints = torch.rand(batch, 42, 3, device=bench.device) * torch.tensor((width, height, depth), device=bench.device)
    weight, bias = convolution.weight.detach().contiguous(), convolution.bias.detach()
    arguments = joints, weight, bias, (depth, height, width)
    calls: tuple[Callable[[], Tensor], ...] = (
        lambda: convolve_heatmaps(*arguments),
        lambda: dense_heatmaps(*arguments),
    )
    what = f"TransNet's input, batch {batch}"
    detail = f"dense: {weight.shape[1]}-channel heatmaps of {height} x {width}, convolution to {weight.shape[0]}"
    with torch.inference_mode():
        expected = calls[1]()
        error = float((calls[0]() - expected).abs().max() / expected.abs().max())
        figure = bench.clock.compare(
            "trans_net",
            f"{what}: times faster than dense",
            *calls,
            inverse=True,
            limit=bench.limit(INPUT_SPEED_LIMIT),
            at_least=True,
            detail=detail,
        )
        memory = [peak_memory(call, bench.device) for call in calls]
    share = Figure(
        "trans_net",
        f"{what}: memory of the dense form's",
        100 * memory[0] / memory[1],
        "%",
        limit=bench.limit(INPUT_MEMORY_LIMIT),
        detail="the most that is held beyond the inputs",
        parts={"measured_MB": memory[0] / 1e6, "reference_MB": memory[1] / 1e6},
    )
    numbers = Figure("trans_net", f"{what}: relative difference", error, "", limit=INPUT_ERROR_LIMIT, detail="largest")
    return [figure, share, numbers]
