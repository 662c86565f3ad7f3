"""Reading of `MANO_RIGHT.pkl` and `MANO_LEFT.pkl` without chumpy, and without trusting them.

The official files are Python 2 pickles of chumpy, scipy and numpy objects. A pickle is a program: unpickling calls
whatever the file names. Here every name in `_ALLOWED` becomes an inert record of this module, any other name is refused
before anything runs, and the arrays are computed from the records afterwards.
"""

import io
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError, one_line
from common.types import SIDES

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


class _Record:
    """In place of an object of another library: keeps its constructor arguments and state, runs nothing."""

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def value(self) -> Any:
        """The array (or text) that the object holds."""
        raise ValueError(f"a {type(self).__name__.strip('_')} has no value")


class _Dtype(_Record):
    """numpy.dtype(code, align, copy), state (version, byte order, ...): plain numbers only."""

    def value(self) -> np.dtype:
        code, order = _plain(self.args[0]), "|"
        if isinstance(self.state, tuple):
            order = _plain(self.state[1])
        if not re.fullmatch("[fiu][1248]|b1", code) or order not in tuple("<>|="):
            raise ValueError(f"array of type {code!r}")
        return np.dtype(order + code)


class _Array(_Record):
    """numpy's `_reconstruct(ndarray, (0,), b'b')`, state (version, shape, dtype, Fortran order, data)."""

    def value(self) -> np.ndarray:
        _, shape, dtype, fortran, data = self.state
        return np.frombuffer(_raw(data), dtype.value()).reshape(shape, order="F" if fortran else "C")


class _BufferArray(_Record):
    """numpy's `_frombuffer(data, dtype, shape, order)` of pickle protocol 5."""

    def value(self) -> np.ndarray:
        data, dtype, shape, order = self.args[:4]
        return np.frombuffer(_raw(data), dtype.value()).reshape(shape, order="F" if order == "F" else "C")


class _Scalar(_Record):
    """numpy's `scalar(dtype, data)`."""

    def value(self) -> Any:
        dtype, data = self.args
        return np.frombuffer(_raw(data), dtype.value())[0]


class _Class(_Record):
    """numpy.ndarray as an argument of `_reconstruct`."""


class _Chumpy(_Record):
    """chumpy.ch.Ch: state `x` is the value."""

    def value(self) -> np.ndarray:
        return _plain(self.state["x"])


class _ChumpySelect(_Record):
    """chumpy.reordering.Select: entries `idxs` of the ravelled `a`. chumpy never stores the result itself."""

    def value(self) -> np.ndarray:
        inner = np.asarray(_plain(self.state["a"]))
        selected = inner.ravel()[_plain(self.state["idxs"])]
        shape = self.state.get("preferred_shape")
        return selected if shape is None else selected.reshape(_plain(shape))


class _Csc(_Record):
    """scipy's compressed sparse columns."""

    def value(self) -> np.ndarray:
        data, rows, starts = (np.asarray(_plain(self.state[key])) for key in ("data", "indices", "indptr"))
        dense = np.zeros(tuple(int(n) for n in self.state["_shape"]))
        np.add.at(dense, (rows, np.repeat(np.arange(dense.shape[1]), np.diff(starts))), data)
        return dense


class _Bytes(_Record):
    """`_codecs.encode(text, 'latin1')`: bytes that Python 3 wrote with pickle protocol 2."""

    def value(self) -> bytes:
        return _raw(self.args[0])


_ALLOWED: dict[tuple[str, str], type] = {
    ("__builtin__", "set"): set,
    ("builtins", "set"): set,
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


def _plain(value: Any) -> Any:
    return value.value() if isinstance(value, _Record) else value


def _raw(data: Any) -> bytes:
    """Byte strings of Python 2 are read as latin1 text."""
    data = _plain(data)
    return data.encode("latin1") if isinstance(data, str) else bytes(data)


# `pickle.Unpickler`, written in C, allocates as many objects and as long a text as a file of a few bytes claims to
# hold. Its twin in Python does not, but has no public name (2026-11).
class _RestrictedUnpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it wants to run {module}.{name}, which no MANO file needs; nothing was run")
        return _ALLOWED[module, name]


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a MANO file as arrays, numbers and texts.

    Raises:
        UserError: the file is missing, unreadable or truncated, or holds other types than a MANO file.
    """
    try:
        content = _RestrictedUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        if not isinstance(content, dict):
            raise ValueError("it does not hold a dictionary")
        return {str(key): _plain(value) for key, value in content.items()}
    except FileNotFoundError:
        raise UserError(f"MANO file not found: {path}. {WHERE_TO_GET}") from None
    except OSError as error:
        raise UserError(f"cannot read MANO file {path}: {error.strerror}") from None
    except Exception as error:  # a damaged or hostile pickle can raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot use MANO file {path}: {reason}. {WHERE_TO_GET}") from None


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
    return HandModel(
        **{key: arrays[key].astype(np.float64) for key in ("v_template", "posedirs", "J_regressor", "weights")},
        shapedirs=arrays["shapedirs"][..., :10].astype(np.float64),
        parents=parents,
        faces=arrays["f"].astype(np.int64),
        hands_mean=arrays["hands_mean"].astype(np.float64),
        name=one_line(str(content.get("model_name", "MANO"))[:100]),
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
        UserError: see `read_pickle`; also if an array has another shape than MANO's.
    """
    if not (folder / "MANO_RIGHT.pkl").exists() and (folder / "mano" / "MANO_RIGHT.pkl").exists():
        folder = folder / "mano"
    right, left = (_read_hand(folder / f"MANO_{side.upper()}.pkl") for side in SIDES)
    if (left.parents != right.parents).any():
        raise UserError(f"the two MANO files in {folder} have different joint trees. {WHERE_TO_GET}")
    if np.abs(left.shapedirs[:, 0] - right.shapedirs[:, 0]).sum() < 1:
        left.shapedirs[:, 0] *= -1
    return right, left
