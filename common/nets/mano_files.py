"""Reading of `MANO_RIGHT.pkl` and `MANO_LEFT.pkl` without chumpy, and without trusting them.

The official files are Python 2 pickles of chumpy, scipy and numpy objects. Every name in `_ALLOWED` becomes an inert
record, any other is refused before anything runs (see `common.utils.pickles`), and the arrays are computed from the
records afterwards.
"""

import io
import math
import pickle
import re
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError, error_context, is_out_of_memory, one_line
from common.types import SIDES
from common.utils.files import foreign_kind, read_file
from common.utils.joints import FINGERS, FINGERTIP_VERTICES, MANO_JOINTS, WRIST
from common.utils.pickles import BoundedUnpickler, Record, Refused, check_tree

MAX_BYTES = 256 << 20  # of a file; the official ones have 4 MB
MAX_ELEMENTS = 10_000_000  # of all arrays; the official files hold less than a million
MAX_RECORDS = 8  # within one another; the official files have 4
MIRROR_TOLERANCE = 0.01  # m, of any vertex of the left template from the right one's mirror image
WHERE_TO_GET = (
    "Get 'Models & Code' from https://mano.is.tue.mpg.de (free, after registration) and put MANO_RIGHT.pkl and "
    "MANO_LEFT.pkl there, or name their folder with --mano, or make a stand-in hand: python tool/make_standin_hand.py"
)


@dataclass(frozen=True)
class HandModel:
    """The MANO arrays of one hand in metres, as in the files (the shape directions of the left corrected).

    Attributes:
        v_template: (778, 3).
        shapedirs: (778, 3, 10).
        posedirs: (778, 3, 135).
        J_regressor: (16, 778) dense.
        weights: (778, 16).
        parents: (16,) int64, -1 for the root.
        faces: (1538, 3) int64.
        hands_mean: (45,) axis-angle, the pose that a hand pose of zeros means.
        name: the name in the file, or "MANO". A generated stand-in says that it is one.
    """

    v_template: np.ndarray
    shapedirs: np.ndarray
    posedirs: np.ndarray
    J_regressor: np.ndarray
    weights: np.ndarray
    parents: np.ndarray
    faces: np.ndarray
    hands_mean: np.ndarray
    name: str


class _Record(Record):
    """In place of an object of numpy, scipy or chumpy."""

    def value(self, plain: "_Evaluator") -> Any:
        """The array (or text) that the object holds; `plain` evaluates records within it."""
        raise Refused(f"a {type(self).__name__.strip('_')} has no value")


class _Dtype(_Record):
    """numpy.dtype(code, align, copy), state (version, byte order, ...): plain numbers only."""

    def value(self, plain: "_Evaluator") -> np.dtype:
        code, order = plain(self.args[0]), "|"
        if isinstance(self.state, tuple):
            order = plain(self.state[1])
        if not re.fullmatch("[fiu][1248]|b1", code) or order not in tuple("<>|="):
            raise Refused(f"it holds an array of type {reprlib.repr(code)}")
        return np.dtype(order + code)


class _Array(_Record):
    """numpy's `_reconstruct(ndarray, (0,), b'b')`, state (version, shape, dtype, Fortran order, data)."""

    def value(self, plain: "_Evaluator") -> np.ndarray:
        _, shape, dtype, fortran, data = self.state
        return np.frombuffer(plain.bytes(data), plain(dtype)).reshape(shape, order="F" if fortran else "C")


class _BufferArray(_Record):
    """numpy's `_frombuffer(data, dtype, shape, order)` of pickle protocol 5."""

    def value(self, plain: "_Evaluator") -> np.ndarray:
        data, dtype, shape, order = self.args[:4]
        return np.frombuffer(plain.bytes(data), plain(dtype)).reshape(shape, order="F" if order == "F" else "C")


class _Scalar(_Record):
    """numpy's `scalar(dtype, data)`."""

    def value(self, plain: "_Evaluator") -> Any:
        dtype, data = self.args
        return np.frombuffer(plain.bytes(data), plain(dtype))[0]


class _Class(_Record):
    """numpy.ndarray as an argument of `_reconstruct`."""


class _Set(_Record):
    """A set, of which chumpy's objects have some: never made, because its elements would be hashed."""

    def value(self, plain: "_Evaluator") -> None:
        return None


class _Chumpy(_Record):
    """chumpy.ch.Ch: state `x` is the value."""

    def value(self, plain: "_Evaluator") -> np.ndarray:
        return plain.array(self.state["x"])


class _ChumpySelect(_Record):
    """chumpy.reordering.Select: entries `idxs` of the ravelled `a`. chumpy never stores the result itself."""

    def value(self, plain: "_Evaluator") -> np.ndarray:
        selected = plain.array(self.state["a"]).ravel()[plain.array(self.state["idxs"])]
        shape = self.state.get("preferred_shape")
        return selected if shape is None else selected.reshape(plain(shape))


class _Csc(_Record):
    """scipy's compressed sparse columns."""

    def value(self, plain: "_Evaluator") -> np.ndarray:
        data, rows, starts = (plain.array(self.state[key]) for key in ("data", "indices", "indptr"))
        shape = tuple(int(n) for n in self.state["_shape"])
        counts = np.diff(starts)
        if len(shape) != 2 or min(shape) < 0 or math.prod(shape) > MAX_ELEMENTS:
            raise Refused("it holds a sparse matrix of an impossible size")
        if len(counts) != shape[1] or (counts < 0).any() or counts.sum() != len(rows):
            raise Refused("it holds a sparse matrix whose columns do not add up")
        dense = np.zeros(shape)
        np.add.at(dense, (rows, np.repeat(np.arange(shape[1]), counts)), data)
        return dense


class _Bytes(_Record):
    """`_codecs.encode(text, 'latin1')`: bytes that Python 3 wrote with pickle protocol 2."""

    def value(self, plain: "_Evaluator") -> bytes:
        return plain.bytes(self.args[0])


_ALLOWED: dict[tuple[str, str], type] = {
    ("__builtin__", "set"): _Set,
    ("builtins", "set"): _Set,
    ("_codecs", "encode"): _Bytes,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Class,
    ("chumpy.ch", "Ch"): _Chumpy,
    ("chumpy.reordering", "Select"): _ChumpySelect,
    # numpy 2 and scipy 1.8 moved their modules; a file has the names of the version that wrote it.
    ("scipy.sparse.csc", "csc_matrix"): _Csc,
    ("scipy.sparse._csc", "csc_matrix"): _Csc,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _Scalar,
    ("numpy._core.multiarray", "scalar"): _Scalar,
    ("numpy.core.numeric", "_frombuffer"): _BufferArray,
    ("numpy._core.numeric", "_frombuffer"): _BufferArray,
}


class _Evaluator:
    """Evaluates the records of one file: records within records, and elements of all arrays, up to a limit."""

    def __init__(self) -> None:
        self.elements = self.depth = 0

    def __call__(self, value: Any) -> Any:
        """A record's value; any other as it is, if it is not a container that is too large."""
        if not isinstance(value, _Record):
            check_tree(value)
            return value
        self.depth += 1
        if self.depth > MAX_RECORDS:
            raise Refused("it holds too many objects within objects")
        value = value.value(self)
        self.depth -= 1
        self.elements += 1 + np.size(value)
        if self.elements > MAX_ELEMENTS:
            raise Refused("it holds more numbers than any hand model")
        return value

    def array(self, value: Any) -> np.ndarray:
        return np.asarray(self(value))

    def bytes(self, data: Any) -> bytes:
        """Byte strings of Python 2 are read as latin1 text."""
        data = self(data)
        if isinstance(data, str):
            return data.encode("latin1")
        if not isinstance(data, bytes):  # of a number, `bytes` would make as many zeros
            raise Refused("it holds an array without data")
        return data


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a MANO file as arrays, numbers and texts.

    Raises:
        UserError: the file is missing, unreadable or truncated, or holds other types than a MANO file.
    """
    if not path.exists():
        raise UserError(f"MANO file not found: {path}. {WHERE_TO_GET}")
    data = read_file(path, MAX_BYTES)
    try:
        content = BoundedUnpickler(io.BytesIO(data), _ALLOWED).load()
        if not isinstance(content, dict):
            raise Refused("it does not hold a dictionary")
        plain = _Evaluator()
        return {key: plain(value) for key, value in content.items() if isinstance(key, str)}
    except Exception as error:  # a damaged or hostile pickle can raise anything; its text would tell nobody anything
        if is_out_of_memory(error):
            raise
        reason = str(error) if isinstance(error, Refused) else "it is damaged"
        if not isinstance(error, Refused) and not data.endswith(pickle.STOP):
            reason = "it is cut short: get it again"
        raise UserError(f"cannot use MANO file {path}: {foreign_kind(data) or reason}. {WHERE_TO_GET}") from error


_MIRROR = np.array([-1.0, 1.0, 1.0])
_SHAPES = {
    "v_template": (778, 3),
    "posedirs": (778, 3, 135),
    "J_regressor": (16, 778),
    "weights": (778, 16),
    "f": (1538, 3),
    "hands_mean": (45,),
    "kintree_table": (2, 16),
}


def _read_hand(path: Path) -> HandModel:
    content = read_pickle(path)
    missing = [key for key in (*_SHAPES, "shapedirs") if key not in content]
    if missing:
        raise UserError(f"MANO file {path} lacks {', '.join(missing)}. {WHERE_TO_GET}")
    with error_context(f"MANO file {path}", ValueError, advice=WHERE_TO_GET):  # lists of different lengths
        arrays = {key: np.asarray(content[key]) for key in (*_SHAPES, "shapedirs")}
    for key, array in arrays.items():
        expected = _SHAPES.get(key, (778, 3, "at least 10"))
        fits = array.shape == expected if key in _SHAPES else array.shape[:2] == (778, 3) and array.shape[2:] >= (10,)
        if not fits or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise UserError(f"MANO file {path}: {key} is {array.dtype} {array.shape}, expected finite {expected}")
    # Row 0 of the tree holds the parents; that of the root is -1 as an unsigned number.
    parents = arrays["kintree_table"][0].astype(np.int64)
    parents[0] = -1
    if not all(0 <= parent < joint for joint, parent in enumerate(parents[1:], 1)):
        raise UserError(f"MANO file {path}: kintree_table is not a tree of joints")
    if arrays["f"].min() < 0 or arrays["f"].max() >= 778:
        raise UserError(f"MANO file {path}: a face names a vertex that does not exist")
    name = content.get("model_name")
    return HandModel(
        **{key: arrays[key].astype(np.float64) for key in ("v_template", "posedirs", "J_regressor", "weights")},
        shapedirs=arrays["shapedirs"][..., :10].astype(np.float64),
        parents=parents,
        faces=arrays["f"].astype(np.int64),
        hands_mean=arrays["hands_mean"].astype(np.float64),
        name=one_line(name[:100]) if isinstance(name, str) else "MANO",
    )


def read_hand_models(folder: Path) -> tuple[HandModel, HandModel]:
    """Read both hands, and correct the left.

    In the official left file the shape directions have the same sign in x as in the right file, although the hands are
    mirror images, so that equal betas give different hands (github.com/vchoutas/smplx/issues/48). Where that is so, the
    sign is changed.

    Args:
        folder: holds MANO_RIGHT.pkl and MANO_LEFT.pkl, or a folder `mano` that does.

    Returns:
        right, left.

    Raises:
        UserError: see `read_pickle`; also if an array has another shape than MANO's, a file holds the other hand, or
            the two hands are not mirror images.
    """
    if not (folder / "MANO_RIGHT.pkl").exists() and (folder / "mano" / "MANO_RIGHT.pkl").exists():
        folder = folder / "mano"
    paths = [folder / f"MANO_{side.upper()}.pkl" for side in SIDES]
    right, left = map(_read_hand, paths)
    if (left.parents != right.parents).any():
        raise UserError(f"the two MANO files in {folder} have different joint trees. {WHERE_TO_GET}")
    for path, hand, side in zip(paths, (right, left), SIDES, strict=True):
        _check_side(path, hand, side)
    if np.abs(left.v_template * _MIRROR - right.v_template).max() > MIRROR_TOLERANCE:
        raise UserError(f"the hands of the two MANO files in {folder} are not mirror images. {WHERE_TO_GET}")
    if np.abs(left.shapedirs[:, 0] - right.shapedirs[:, 0]).sum() < 1:
        left.shapedirs[:, 0] *= -1
    return right, left


def _check_side(path: Path, hand: HandModel, side: str) -> None:
    """Check that a file holds the hand of its name: MANO's right hand points to -x, with its thumb at +z.

    Raises:
        UserError: it is the other hand, or its fingers are not in MANO's order.
    """
    template = hand.v_template * (1 if side == "right" else _MIRROR)
    joints = hand.J_regressor @ template
    tips = template[[FINGERTIP_VERTICES[f"{finger}_4"] for finger in FINGERS]]
    last_joints = joints[[MANO_JOINTS.index(f"{finger}_3") for finger in FINGERS]]
    if (tips[:, 0] > joints[WRIST, 0]).all():
        other = SIDES[1 - SIDES.index(side)]
        raise UserError(f"{path} holds a {other} hand; each file needs its own hand. {WHERE_TO_GET}")
    nearest = np.linalg.norm(tips[:, None] - last_joints, axis=-1).argmin(1)
    # From the thumb to the pinky, each finger is at a smaller z.
    if (nearest != np.arange(len(FINGERS))).any() or (np.diff(tips[:, 2]) >= 0).any():
        raise UserError(f"{path} does not hold MANO's hand: its thumb or fingers are in other places. {WHERE_TO_GET}")
