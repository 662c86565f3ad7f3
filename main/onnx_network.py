"""An exported network on onnxruntime. `main/export.py` writes its two files, network.onnx and network.json."""

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError, error_context, one_line
from common.nets.mano import TwoHandMano
from common.nets.mano_files import read_hand_models
from common.types import ManoParams, Parameters, Prediction
from common.utils.frames import Frames
from common.weights import file_sha256
from main.config import Config
from main.model import pose_meshes
from main.options import config_of_checkpoint

MAX_BATCH = 64  # crops of one call
INPUT = "image_crop"
# Output -> its shape without N, and its meaning: `Parameters`, flat and in its order.
OUTPUTS: dict[str, tuple[tuple[int, ...], str]] = {
    "box_centers_body_hm": ((2, 2), "x, y of each hand's box center in body_hm"),
    "box_sizes_body_hm": ((2, 2), "w, h in body_hm"),
    "box_scores": ((2,), "0 to 1"),
    "crop_to_hand": ((2, 2, 3), "affine map from crop to each hand's crop"),
    "joints_hand_hm": ((2, 21, 3), "x, y, root-relative depth bin in hand_hm"),
    "global_orient": ((2, 3), "MANO, axis-angle, rad"),
    "hand_pose": ((2, 15, 3), "MANO, axis-angle, rad, without the mean pose"),
    "betas": ((2, 10), "MANO"),
    "root_transl": ((2, 3), "m, wrist in the hand's own virtual camera"),
    "rel_transl": ((3,), "m, left wrist - right wrist"),
}
FORMAT = "InterWild network 1"
AGAIN = "export it again with tool/export.py"
MAX_NOTE = 500  # letters


class OnnxNetwork(nn.Module):
    """Calls an exported network in place of `InterWild`: the same input, the same `Prediction`. Runs on the CPU.

    Args:
        session: onnxruntime's.
        mano: both hands' MANO layers.
        frames: the network's.
    """

    def __init__(self, session: Any, mano: TwoHandMano, frames: Frames) -> None:
        super().__init__()
        self.session, self.mano_layer, self.frames = session, mano, frames

    def forward(self, image_crop: Tensor) -> Prediction:
        """(N, 3, H, W) RGB in [0, 1] -> `Prediction`."""
        batches = [self.session.run(list(OUTPUTS), {INPUT: part.numpy()}) for part in image_crop.split(MAX_BATCH)]
        values = [torch.cat([torch.from_numpy(part) for part in parts]) for parts in zip(*batches, strict=True)]
        named = dict(zip(OUTPUTS, values, strict=True))
        mano = ManoParams(**{name: named.pop(name) for name in ManoParams._fields})
        return pose_meshes(Parameters(mano=mano, **named), self.mano_layer, self.frames)


def optional_packages(*names: str) -> list[Any]:
    """Import packages that only exported networks need.

    Raises:
        UserError: one is not installed, with the command that installs all.
    """
    try:
        return [importlib.import_module(name) for name in names]
    except ModuleNotFoundError as error:
        raise UserError(
            f"exported networks need the package {error.name}: pip install onnx onnxscript onnxruntime"
        ) from None


def load_onnx(path: Path, mano: Path) -> tuple[OnnxNetwork, Config, str]:
    """Open an exported network; network.json must be beside it.

    Args:
        path: network.onnx.
        mano: folder of MANO_RIGHT.pkl and MANO_LEFT.pkl.

    Returns:
        The network, its configuration, and what must be said with its results.

    Raises:
        UserError: a package or a file is missing, damaged, or of another network, or the file needs other files or
            other code than onnxruntime's.
    """
    onnx, onnxruntime = optional_packages("onnx", "onnxruntime")
    config, note = _read_record(path)
    layer = TwoHandMano(*read_hand_models(mano))
    with error_context(f"cannot use {path}", Exception, advice=AGAIN):  # each library has exceptions of its own
        _check_graph(onnx, onnx.load(path, load_external_data=False), config.frames)
        session = open_session(onnxruntime, path)
    return OnnxNetwork(session, layer, config.frames), config, note


def open_session(onnxruntime: Any, path: Path) -> Any:
    """An `InferenceSession` on the CPU, with as many threads as PyTorch."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that spin while they wait take the time of other programs, and of our own threads beside the network.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _read_record(path: Path) -> tuple[Config, str]:
    """The configuration and the note in network.json. Raises UserError if it is missing, or not that of this file."""
    if not path.is_file():
        raise UserError(f"exported network not found: {path}; make it with tool/export.py")
    record_path = path.with_suffix(".json")
    with error_context(f"cannot read {record_path}, which describes {path.name}", ValueError, advice=AGAIN):
        record = json.loads(record_path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or record.get("format") != FORMAT or not isinstance(record.get("config"), dict):
            raise UserError(f"it is not of the format {FORMAT!r}")
    digest = file_sha256(path)
    if record.get("sha256") != digest:
        raise UserError(
            f"refused {path}: its SHA-256 is {digest}, but {record_path.name} was written for "
            f"{str(record.get('sha256'))[:64]}; it is another network's, damaged, or cut short: copy both files again"
        )
    return config_of_checkpoint(record, record_path) or Config(), one_line(str(record.get("note", ""))[:MAX_NOTE])


def _check_graph(onnx: Any, model: Any, frames: Frames) -> None:
    """Raises UserError unless a model is self-contained, and has our input and outputs."""
    graph = model.graph
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    tensors = [*graph.initializer, *(a.t for a in attributes), *(t for a in attributes for t in a.tensors)]
    if any(tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
        raise UserError("refused: its weights are in other files, which it names")
    if foreign := {node.domain for node in graph.node} - {"", "ai.onnx"}:
        raise UserError(f"refused: it has operators that are not ONNX's own, of {', '.join(sorted(foreign))}")
    if model.functions or graph.sparse_initializer or any(a.HasField("g") or a.graphs for a in attributes):
        raise UserError("refused: it has functions, subgraphs or sparse tensors, which no exported network has")

    def sizes(value: Any) -> tuple[int | str, ...]:
        return tuple(size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim)[1:]

    found = {value.name: sizes(value) for value in [*graph.input, *graph.output]}
    expected = {INPUT: (3, *frames.crop), **{name: shape for name, (shape, _) in OUTPUTS.items()}}
    differences = [
        f"{name} is {found.get(name, 'missing')}, expected {shape}"
        for name, shape in expected.items()
        if found.get(name) != shape
    ]
    if len(graph.input) != 1:
        differences.append(f"it has {len(graph.input)} inputs, expected 1")
    if differences:
        raise UserError(f"it is not a network of this system: {'; '.join(differences)}")
