"""Write a network for use without PyTorch.

    python tool/export.py --checkpoint demo/snapshot_6.pth --output exported
    python tool/export.py --checkpoint FILE --output DIR --input YOUR_PHOTO.jpg
    python tool/export.py --checkpoint FILE --output DIR --format pt2

Written are network.onnx, one file of opset 20 for 1 to 64 crops at once, and network.json, which describes it. It
computes everything that the checkpoint does: boxes, 2.5D joints, MANO parameters, translations. It holds nothing of
MANO, unless --with_hands adds the meshes. `demo.py --checkpoint network.onnx` and docs/onnx_example.py run it.

The file is checked before it gets its name: batches of 1, 2 and 5 generated crops, and those of --input, go through
PyTorch, the file, and PyTorch in float64. It passes if the error of each output is at most twice PyTorch's + 1e-6 of
its largest value. Exit code: 0; 1 if it fails, and then no file is written; 2 with one line if something is wrong.
"""

import argparse
import copy
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from common.errors import UserError
from common.options import MANO_FOLDER, MANO_HELP, Parser
from common.utils.affine import image_to_crop
from common.utils.boxes import body_box
from common.utils.files import atomic_path, make_folder, write_json
from common.utils.images import load_image, quiet_opencv, warp_image
from common.weights import file_sha256
from main.build import LoadedModel, load_model, prepare_inference
from main.config import Config, config_to_dict
from main.model import InterWild, pose_meshes
from main.onnx_network import FORMAT, INPUT, MAX_BATCH, OUTPUTS, open_session, optional_packages

OPSET = 20  # the first whose GridSample takes what PyTorch's does
CHECKED_BATCHES = (1, 2, 5)
ERROR_FACTOR, ERROR_FLOOR = 2.0, 1e-6  # of PyTorch's own error; of the output's largest value
HAND_OUTPUTS = {
    "vertices_rel": ((2, 778, 3), "m, own wrist at the origin"),
    "joints_rel": ((2, 21, 3), "m, own wrist at the origin"),
    "joints_proj_hand_hm": ((2, 21, 2), "the joints of the mesh, projected, in hand_hm"),
}
NOTICE = "contains MANO data: not to be passed on"


class FlatNetwork(nn.Module):
    """The network with a flat tuple of outputs: `OUTPUTS`, and `HAND_OUTPUTS` where it has hand models."""

    def __init__(self, network: InterWild, with_hands: bool) -> None:
        super().__init__()
        self.network, self.with_hands = network, with_hands

    def forward(self, image_crop: Tensor) -> tuple[Tensor, ...]:
        parameters = self.network.predict_parameters(image_crop)
        named = parameters._asdict() | parameters.mano._asdict()
        flat = tuple(named[name] for name in OUTPUTS)
        if not self.with_hands:
            return flat
        hands = pose_meshes(parameters, self.network.mano_layer, self.network.frames)
        return (*flat, hands.vertices_rel, hands.joints_rel, hands.joints_proj_hand_hm)


@dataclass(frozen=True)
class Row:
    """The check of one output: worst errors against float64, relative to its largest value."""

    output: str
    file_error: float
    eager_error: float

    @property
    def passed(self) -> bool:
        return self.file_error <= ERROR_FACTOR * self.eager_error + ERROR_FLOOR  # False for NaN


def main() -> int:
    args = parse_args()
    targets = [args.output / f"network.{args.format}", args.output / "network.json"]
    if existing := [path for path in targets if path.exists()]:
        if not args.overwrite:
            raise UserError(f"{existing[0]} exists; name another folder with --output, or replace it with --overwrite")
    if args.format == "onnx":
        optional_packages("onnx", "onnxscript", "onnxruntime")
    quiet_opencv()
    loaded = load_model(args.checkpoint, args.mano if args.with_hands else None)
    photos = [crop_photo(path, loaded.config) for path in args.input]
    network = FlatNetwork(loaded.model, args.with_hands).eval()
    record = describe(network, loaded, args.checkpoint)
    make_folder(args.output)
    try:
        with atomic_path(targets[0]) as file, atomic_path(targets[1]) as record_file:
            print("exporting; this takes about a minute for the full network", flush=True)
            write, open_file = (write_onnx, open_onnx) if args.format == "onnx" else (write_pt2, open_pt2)
            write(network, file, record["hand_model"])
            rows = check(network, open_file(file), make_batches(loaded.config.frames.crop, photos))
            print(table(rows))
            if not all(row.passed for row in rows):
                raise CheckFailed
            record |= {"file": targets[0].name, "sha256": file_sha256(file), "check": [vars(row) for row in rows]}
            write_json(record_file, record)
    except CheckFailed:
        print(
            "the file does not compute what the checkpoint does: not written (if errors are just above the limit,"
            " more crops to check with, --input, tell PyTorch's own error better)"
        )
        return 1
    print(f"wrote {targets[0]} and {targets[1].name}")
    return 0


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__, {"--out": "--output", "--snapshot": "--checkpoint"})
    files, processing, _ = parser.standard_groups()
    files.add_argument("--input", type=Path, nargs="+", default=[], help="photos to check with, too")
    files.add_argument(
        "--checkpoint", type=Path, required=True, help="the network: a published checkpoint or one of ours"
    )
    files.add_argument("--mano", type=Path, default=MANO_FOLDER, help=MANO_HELP)
    files.add_argument("--output", type=Path, required=True, help="folder for the files")
    files.add_argument("--overwrite", action="store_true", help="replace existing files")
    processing.add_argument(
        "--format", choices=("onnx", "pt2"), default="onnx", help="of the file; pt2: torch.export (default: onnx)"
    )
    processing.add_argument("--with_hands", action="store_true", help="include the hand models and output meshes")
    return parser.parse_args()


def crop_photo(path: Path, config: Config) -> Tensor:
    """A whole photo as the network's input, (3, H, W). Raises UserError if it cannot be read or is too small."""
    image, crop_size = load_image(path), config.frames.crop
    box_image = body_box(np.array([0, 0, *image.shape[1::-1]]), image.shape[:2], crop_size, config.wild_box_extension)
    if box_image is None:
        raise UserError(f"cannot use {path}: it has {image.shape[1]} x {image.shape[0]} pixels")
    crop = warp_image(image.astype(np.float32), image_to_crop(box_image, crop_size), crop_size)
    return torch.from_numpy(crop).permute(2, 0, 1) / 255


def make_batches(crop_size: tuple[int, int], photos: Sequence[Tensor]) -> list[Tensor]:
    """The crops to check with: colored blobs with noise, then photos."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for number in CHECKED_BATCHES:
        blobs = F.interpolate(torch.rand(number, 3, 8, 6, generator=generator), crop_size, mode="bicubic")
        noise = torch.rand(number, 3, *crop_size, generator=generator)
        batches.append((0.9 * blobs + 0.1 * noise).clamp(0, 1))
    return batches + [torch.stack([*photos[n : n + 5]]) for n in range(0, len(photos), 5)]


# ---- The files ----


def describe(network: FlatNetwork, loaded: LoadedModel, checkpoint: Path) -> dict[str, Any]:
    """What network.json says before the file is written."""
    hand_model = None
    outputs = dict(OUTPUTS)
    if network.with_hands:
        name = network.network.mano_layer.name
        hand_model = {"name": name, "notice": NOTICE if name == "MANO" else "a generated hand, not MANO"}
        outputs |= HAND_OUTPUTS
    return {
        "format": FORMAT,
        "checkpoint": {"sha256": file_sha256(checkpoint), "epoch": loaded.epoch},
        "note": loaded.note,
        "hand_model": hand_model,
        "input": {
            INPUT: {"shape": ["N", 3, *loaded.config.frames.crop], "meaning": f"RGB in [0, 1]; N is 1 to {MAX_BATCH}"}
        },
        "outputs": {name: {"shape": ["N", *shape], "meaning": meaning} for name, (shape, meaning) in outputs.items()},
        "config": config_to_dict(loaded.config),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "opset": OPSET},
    }


def _example(network: FlatNetwork) -> tuple[tuple[Tensor], dict[str, Any]]:
    """The input to trace with, and which of its sizes vary."""
    crops = torch.rand(2, 3, *network.network.frames.crop)
    return (crops,), {INPUT: {0: torch.export.Dim("N", min=1, max=MAX_BATCH)}}


def write_onnx(network: FlatNetwork, file: Path, hand_model: dict[str, str] | None) -> None:
    arguments, dynamic_shapes = _example(network)
    try:
        program = torch.onnx.export(
            network,
            arguments,
            input_names=[INPUT],
            output_names=[*OUTPUTS, *(HAND_OUTPUTS if network.with_hands else ())],
            opset_version=OPSET,
            dynamic_shapes=dynamic_shapes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:  # PyTorch 2.6 stops at batch norm
        raise UserError(
            f"PyTorch {torch.__version__} cannot write this network as ONNX: {type(error).__name__}; "
            "a newer one may: pip install --upgrade torch torchvision"
        ) from error
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # stack traces, with the paths of this machine
    texts = hand_model or {"name": "none", "notice": "contains no hand model"}
    program.model.metadata_props.update({"format": FORMAT, "hand_model": texts["name"], "notice": texts["notice"]})
    program.save(file, external_data=False)


def open_onnx(file: Path) -> Callable[[Tensor], Sequence[Tensor]]:
    session = open_session(optional_packages("onnxruntime")[0], file)
    return lambda crops: [torch.from_numpy(value) for value in session.run(None, {INPUT: crops.numpy()})]


def write_pt2(network: FlatNetwork, file: Path, hand_model: dict[str, str] | None) -> None:
    arguments, dynamic_shapes = _example(network)
    program = torch.export.export(network, arguments, dynamic_shapes=dynamic_shapes)
    for module in program.graph_module.modules():  # parts of the network with their own precision are graphs inside
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # with the paths of this machine
    with open(file, "wb") as opened:
        torch.export.save(program, opened, extra_files={"hand_model": str(hand_model)})


def open_pt2(file: Path) -> Callable[[Tensor], Sequence[Tensor]]:
    with open(file, "rb") as opened:
        return torch.export.load(opened).module()


# ---- The check ----


class CheckFailed(Exception):
    """A file does not compute what the checkpoint does."""


@torch.inference_mode()
def check(network: FlatNetwork, run_file: Callable[[Tensor], Sequence[Tensor]], batches: Iterable[Tensor]) -> list[Row]:
    """Compare a file and the network in float32 with the network in float64.

    Where the network amplifies rounding, as in `rel_transl`, memory layout and batch size alone change PyTorch's own
    error by a factor of 2 and more. So it is the worst of two layouts, each with whole batches and crops one by one.
    """
    names = [*OUTPUTS, *(HAND_OUTPUTS if network.with_hands else ())]
    exact_network, contiguous = copy.deepcopy(network).double(), copy.deepcopy(network)
    prepare_inference(network, torch.device("cpu"))  # channels-last
    errors = torch.zeros(len(names), 2)
    scales = torch.zeros(len(names), 1)
    for crops in tqdm([*batches], desc="check", unit="batch"):
        exact = exact_network(crops.double())
        eager = [_run_split(own, crops, size) for own in (network, contiguous) for size in {len(crops), 1}]
        for number, (true, found, *own) in enumerate(zip(exact, run_file(crops), *eager, strict=True)):
            own_error = torch.stack([(value - true).abs().max() for value in own]).max()
            worst = torch.stack(((found - true).abs().max(), own_error))
            errors[number] = torch.maximum(errors[number], worst)  # keeps NaN
            scales[number] = torch.maximum(scales[number], true.abs().max().float())
    return [Row(name, *map(float, pair)) for name, pair in zip(names, errors / scales, strict=True)]


def _run_split(network: FlatNetwork, crops: Tensor, size: int) -> list[Tensor]:
    """The network's outputs, computed `size` crops at a time."""
    return [torch.cat(parts) for parts in zip(*map(network, crops.split(size)), strict=True)]


def table(rows: Sequence[Row]) -> str:
    """One line per output."""
    lines = [f"{'error relative to float64':26s}{'file':>10s}{'PyTorch':>10s}"]
    lines += [
        f"{row.output:26s}{row.file_error:10.1e}{row.eager_error:10.1e}  {'' if row.passed else 'FAILED'}".rstrip()
        for row in rows
    ]
    return "\n".join(lines)
