"""Reading what others wrote: JSON and ply files, checked, with messages that name the place."""

import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np

from common.errors import UserError
from data.layouts import DATASETS

T = TypeVar("T")

# Python's json module, with which most annotation files were written, knows three numbers that JSON does not.
_NOT_JSON = re.compile(rb"(?<=[\[,:\s])-?(?:NaN|Infinity)(?=[\],}\s])")

# What decoding raises: the file is no JSON or of another shape, no UTF-8, or nested without end.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

# Numbers that columns can hold, and that mean something: no coordinate, mm or px, is as large as this.
LARGEST = 1e9
Number = Annotated[float, msgspec.Meta(ge=-LARGEST, le=LARGEST)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=LARGEST)]
EntryId = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
FileName = Annotated[str, msgspec.Meta(min_length=1)]
Pixels = Annotated[int, msgspec.Meta(ge=1, le=2**20)]  # a side of a picture


def vector(length: int, item: Any = Number) -> Any:
    """The type of a JSON list of `length` numbers."""
    return Annotated[list[item], msgspec.Meta(min_length=length, max_length=length)]


def matrix(rows: int, columns: int) -> Any:
    """The type of a JSON list of `rows` lists of `columns` numbers."""
    return Annotated[list[vector(columns)], msgspec.Meta(min_length=rows, max_length=rows)]


class HandParams(msgspec.Struct, gc=False):
    """MANO parameters of one hand as NeuralAnnot files hold them."""

    pose: vector(48)
    shape: vector(10)
    trans: vector(3)

    def numbers(self) -> list[float]:
        """61 numbers: pose, shape, trans."""
        return self.pose + self.shape + self.trans


def require(dataset: str, paths: Iterable[Path]) -> None:
    """Stop before the work starts if a file or folder of a dataset is missing.

    Raises:
        UserError: names what is missing, what to download and where it goes.
    """
    missing = [path for path in paths if not path.exists()]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(f"{dataset}: {missing[0]} is missing{more}; {DATASETS[dataset].how_to_get}")


def read_file(path: Path) -> bytes:
    """Raises UserError if the file cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:  # a path that no file can have
        raise UserError(f"cannot read {path}: {error}") from None


def path_in(folder: Path, name: str) -> Path:
    """Where an annotation says that a file of its dataset lies.

    Raises:
        UserError: it leads out of the dataset's folder.
    """
    if not name or name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
        raise UserError(f"its annotation names the file {name!r}, which does not lie in {folder}")
    return folder / name


def read_json(path: Path, type: type[T]) -> T:
    """Read a JSON file whose shape is `type`. NaN and Infinity count as null, so as no number.

    Raises:
        UserError: the file cannot be read, is no JSON, or is of another shape; the place is named.
    """
    data = read_file(path)
    try:
        try:
            return msgspec.json.decode(data, type=type)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            if not _NOT_JSON.search(data):
                raise
            return msgspec.json.decode(_NOT_JSON.sub(b"null", data), type=type)
    except UNREADABLE as error:
        raise UserError(f"{path}: {explain(error)}") from None


def by_id(images: Iterable[T], path: Path) -> dict[int, T]:
    """The entries of a list of images, by their `id`. Raises UserError if one is there twice."""
    found: dict[int, T] = {}
    for image in images:
        if image.id in found:
            raise UserError(f"{path}: the image id {image.id} is there twice")
        found[image.id] = image
    return found


def explain(error: Exception) -> str:
    """An error's message for people: what a decoder calls null may be a NaN in the file."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error).replace("`", "").replace("got null", "got null or NaN")


def read_mesh(path: Path, vertex_count: int) -> np.ndarray:
    """The vertices of a ply file, (V, 3) float64 in the file's units and order.

    Raises:
        UserError: the file cannot be read, is no ply, or holds another number of vertices.
    """
    import trimesh

    data = read_file(path)
    try:
        # From memory and as a ply whatever it is called: by its name trimesh would try other formats, and beside a
        # path open the textures that a file names.
        mesh = trimesh.load(io.BytesIO(data), file_type="ply", process=False)
        vertices = np.asarray(mesh.vertices, np.float64)
    except Exception as error:  # trimesh raises whatever its parsing runs into
        raise UserError(f"{path}: it is no ply file, or it is damaged ({type(error).__name__}: {error})") from None
    if vertices.shape != (vertex_count, 3):
        raise UserError(f"{path}: it holds {len(vertices)} vertices; {vertex_count} are expected")
    return vertices


class Problems:
    """What is wrong with single annotations, as two columns: it comes up when the annotation is asked for.

    A broken annotation among a million neither stops the reading of all nor goes away in silence.
    """

    def __init__(self) -> None:
        self._texts: dict[int, str] = {}

    def add(self, row: int, text: str) -> None:
        """The first problem of an annotation stays."""
        self._texts.setdefault(row, text)

    def rows(self) -> Iterable[int]:
        """Of the annotations with a problem."""
        return self._texts.keys()

    def columns(self, rows: np.ndarray) -> dict[str, Any]:
        """`problem_row` (K,) and `problem_text`, for the annotations `rows` that are kept, in their order."""
        from data.store import StringColumn

        place = {int(row): index for index, row in enumerate(rows)} if self._texts else {}
        kept = sorted((place[row], text) for row, text in self._texts.items() if row in place)
        return {
            "problem_row": np.array([row for row, _ in kept], np.int64),
            "problem_text": StringColumn.pack(text for _, text in kept),
        }


def raise_problem(columns: dict[str, Any], index: int) -> None:
    """Raises UserError if the annotation at `index` was found broken when the files were read."""
    rows = columns["problem_row"]
    if len(rows):
        place = int(np.searchsorted(rows, index))
        if place < len(rows) and rows[place] == index:
            raise UserError(columns["problem_text"][place])


def as_mano(numbers: np.ndarray) -> tuple[Any, np.ndarray]:
    """(2, 61) float as `HandParams.numbers` -> ManoParams of numpy arrays, and transl (2, 3) m."""
    from common.types import ManoParams

    return ManoParams(numbers[:, :3], numbers[:, 3:48].reshape(2, 15, 3), numbers[:, 48:58]), numbers[:, 58:]
