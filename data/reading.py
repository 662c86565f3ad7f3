"""What the sources share: reading JSON and ply files that others wrote, and annotations kept in the store.

What is wrong with a file is an error that names the place. What is wrong with a single annotation comes up when it is
used: a broken annotation among a million neither stops the reading of all nor disappears silently.
"""

import io
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import msgspec
import numpy as np
import trimesh

from common.errors import UserError
from common.types import HAND_TYPES, ManoParams
from common.utils.files import read_file
from data.layouts import DATASETS
from data.store import Columns, Store, StringColumn, open_store

T = TypeVar("T")

# Python's json module, with which most annotation files were written, knows three numbers that JSON does not.
_NOT_JSON = re.compile(rb"(?<=[\[,:\s])-?(?:NaN|Infinity)(?=[\],}\s])")

# What decoding raises: not JSON or of another shape, not UTF-8, nested without end.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

# ---- Types of JSON files ----


def exactly(length: int) -> msgspec.Meta:
    """For `Annotated[list[...], exactly(3)]`, a JSON list of this length."""
    return msgspec.Meta(min_length=length, max_length=length)


LARGEST = 1e9  # mm or px: no coordinate is as large as this
Number = Annotated[float, msgspec.Meta(ge=-LARGEST, le=LARGEST)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=LARGEST)]
EntryId = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
FileName = Annotated[str, msgspec.Meta(min_length=1)]
Pixels = Annotated[int, msgspec.Meta(ge=1, le=2**20)]  # a side of an image
Vector2 = Annotated[list[Number], exactly(2)]
Vector3 = Annotated[list[Number], exactly(3)]
Vector4 = Annotated[list[Number], exactly(4)]
Focal = Annotated[list[Positive], exactly(2)]
Matrix3 = Annotated[list[Vector3], exactly(3)]


class HandParams(msgspec.Struct, gc=False):
    """MANO parameters of one hand as NeuralAnnot files hold them."""

    pose: Annotated[list[Number], exactly(48)]
    shape: Annotated[list[Number], exactly(10)]
    trans: Vector3

    def numbers(self) -> list[float]:
        """61 numbers: pose, shape, trans."""
        return self.pose + self.shape + self.trans


class _Id(msgspec.Struct, gc=False):
    id: EntryId = -1


def id_of(raw: msgspec.Raw) -> int:
    """The id of a broken entry, -1 if that is broken too."""
    try:
        return msgspec.json.decode(raw, type=_Id).id
    except UNREADABLE:
        return -1


# ---- Files ----


def require(dataset: str, paths: Iterable[Path]) -> None:
    """Stop before the work starts if a file or folder of a dataset is missing.

    Raises:
        UserError: names what is missing, what to download and where it goes.
    """
    missing = [path for path in paths if not path.exists()]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(f"{dataset}: {missing[0]} is missing{more}; {DATASETS[dataset].how_to_get}")


def path_in(folder: Path, name: str) -> Path:
    """Where an annotation says that a file of its dataset lies.

    Raises:
        UserError: it leads out of the dataset's folder.
    """
    is_absolute = name.startswith(("/", "\\")) or name[1:2] == ":"  # on Windows "C:x" replaces the folder
    if not name or is_absolute or ".." in name.replace("\\", "/").split("/"):
        raise UserError(f"its annotation names the file {name!r}, which does not lie in {folder}")
    return folder / name


def read_json(path: Path, type: type[T]) -> T:
    """Read a JSON file whose shape is `type`. NaN and Infinity are read as null, so they are not accepted as numbers.

    Raises:
        UserError: the file cannot be read, is not JSON, or is of another shape; names the place.
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
        text = explain(error)
        if place := re.search(r"\(byte (\d{1,18})\)", text):
            at = int(place[1])
            text += f", near {data[max(0, at - 30) : at + 20].decode('utf-8', 'replace')!r}"
        elif "truncated" in text:
            text = f"truncated: the file ends after {len(data):,} bytes in the middle of the data"
        raise UserError(f"{path}: {text}") from None


class HasId(Protocol):
    @property
    def id(self) -> int: ...


I = TypeVar("I", bound=HasId)  # noqa: E741


def by_id(images: Iterable[I], path: Path) -> dict[int, I]:
    """The entries of a list of images, by their `id`. Raises UserError if an id occurs twice."""
    found: dict[int, I] = {}
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
        UserError: the file cannot be read, is not a ply, or holds another number of vertices.
    """
    data = read_file(path)
    try:
        # From memory and as a ply whatever its name: by the name trimesh would try other formats, and beside a path it
        # opens the textures that a file names.
        mesh: Any = trimesh.load(io.BytesIO(data), file_type="ply", process=False)
        vertices = np.asarray(mesh.vertices, np.float64)
    except Exception as error:  # trimesh raises whatever its parsing runs into
        raise UserError(f"{path}: it is not a ply file, or it is damaged ({type(error).__name__}: {error})") from None
    if vertices.shape != (vertex_count, 3):
        raise UserError(f"{path}: it holds {len(vertices)} vertices; {vertex_count} are expected")
    return vertices


def as_mano(numbers: np.ndarray) -> tuple[ManoParams, np.ndarray]:
    """(2, 61) float as `HandParams.numbers` -> ManoParams of numpy arrays, and transl (2, 3) m."""
    parts: list[Any] = [numbers[:, :3], numbers[:, 3:48].reshape(2, 15, 3), numbers[:, 48:58]]
    return ManoParams(*parts), numbers[:, 58:]


# ---- Annotations in the store ----


class Problems:
    """What is wrong with single annotations, as two columns."""

    def __init__(self) -> None:
        self._texts: dict[int, str] = {}

    def add(self, row: int, text: str) -> None:
        """The first problem of an annotation stays."""
        self._texts.setdefault(row, text)

    def rows(self) -> Iterable[int]:
        """Of the annotations with a problem."""
        return self._texts.keys()

    def columns(self, rows: np.ndarray) -> Columns:
        """`problem_row` (K,) and `problem_text`, for the annotations `rows` that are kept, in their order."""
        place = {int(row): index for index, row in enumerate(rows)} if self._texts else {}
        kept = sorted((place[row], text) for row, text in self._texts.items() if row in place)
        return {
            "problem_row": np.array([row for row, _ in kept], np.int64),
            "problem_text": StringColumn.pack(text for _, text in kept),
        }


def raise_problem(columns: Columns, row: int) -> None:
    """Raises UserError if the annotation at `row` was found broken when the files were read."""
    rows = columns["problem_row"]
    if len(rows):
        place = int(np.searchsorted(rows, row))
        if place < len(rows) and rows[place] == row:
            raise UserError(columns["problem_text"][place])


class StoredSource:
    """A source whose annotations are columns of the store: `id`, `file_name`, those of `Problems`, and others.

    A subclass sets `split` and `images`, calls `_open`, and sets `_rows` if not all annotations of the store are used.
    """

    name: str
    split: str
    in_the_wild = False
    images: Path  # the folder that `file_name` is relative to
    _columns: Store
    _rows: np.ndarray | None = None

    def _open(
        self, root: Path, cache: Path | None, files: Sequence[Path], version: int, build: Callable[..., Columns]
    ) -> None:
        """Set `_columns`: of `files` in the dataset's folder, by `build(*files)`, or from the cache.

        Args:
            cache: folder of the annotation cache; default: `cache` in `root`.
            version: of the columns.

        Raises:
            UserError: a file or the images' folder is missing, or is not what it should be.
        """
        require(self.name, [*files, self.images])
        stem, build_columns = f"{self.name}_{self.split}", partial(build, *files)
        self._columns = open_store(cache or root / "cache", stem, files, version, build_columns)

    def __len__(self) -> int:
        return len(self._columns["id"] if self._rows is None else self._rows)

    def _row(self, index: int) -> int:
        return int(index if self._rows is None else self._rows[index])

    def id(self, index: int) -> int:
        return int(self._columns["id"][self._row(index)])

    def files(self, index: int) -> list[Path]:
        """The files that a sample is read from, its image first. Raises UserError as `path_in`."""
        return [path_in(self.images, self._columns["file_name"][self._row(index)])]

    def problems(self) -> Sequence[tuple[int, str]]:
        """Index of every annotation that was found broken when the files were read, and what is wrong with it."""
        texts = dict(zip(self._columns["problem_row"].tolist(), self._columns["problem_text"], strict=True))
        if self._rows is None or not texts:
            return list(texts.items())
        return [(index, texts[row]) for index, row in enumerate(self._rows.tolist()) if row in texts]

    def counts(self) -> dict[str, int]:
        """How many annotations there are, of which hands, and with a MANO fit, as far as the columns tell."""
        rows = slice(None) if self._rows is None else self._rows
        counts = {"annotations": len(self)}
        if "hand_type" in self._columns:
            kinds = np.bincount(self._columns["hand_type"][rows], minlength=len(HAND_TYPES)).tolist()
            counts |= dict(zip(HAND_TYPES, kinds, strict=True))
        if "mano_valid" in self._columns:
            fitted = self._columns["mano_valid"].any(1)
            frames = self._columns["frame"][rows] if "frame" in self._columns else rows
            counts["mano_fits"] = int(fitted[frames].sum())
        return counts

    def column(self, name: str) -> np.ndarray:
        """A column of numbers, also of annotations that are not used."""
        return self._columns[name]

    def check_cache(self) -> None:
        """Compare the store with its checksums. Raises UserError if it is damaged."""
        self._columns.check()
