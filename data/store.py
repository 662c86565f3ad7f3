"""The annotation store: columns of numbers and strings, made once from a dataset's files, then mapped from disk.

A dataset's annotation files are read once and turned into columns, one array for each fact with the annotations along
its first axis. The columns are kept as plain .npy files, which every later start, and every loader worker, maps into
memory instead of reading: opening is instant whatever their size, and all processes share one copy.

On disk, in a folder for each store:

    cache/InterHand26M_train/
        manifest.json           which generation holds, what it was made from, the size and type of every file
        lock                    held by the process that builds
        generation-3f9c.../     joints_world.npy, file_name.text.npy, file_name.ends.npy, ...

A build fills a new generation folder and brings it to the disk; replacing the manifest is then the one step that makes
it hold. So a reader sees all of a store or none, whatever was killed and whenever, and folders which the manifest does
not name are leftovers that the next builder removes.

How a source should read a large JSON file: as a list of `msgspec.Raw`, then entry by entry with a typed decoder. For a
million InterHand2.6M annotations (0.6 GB) that took 1/7 of the time and 1/9 of the memory of the json module; orjson
took 2/5 and 5/4, msgspec without types 1/6 and 1, with types but all at once 1/3 and 3/5. Entries never exist as Python
objects all at the same time, progress can be shown, and an error belongs to an entry.
"""

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

import msgspec
import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from common.errors import UserError
from common.utils.files import ADVICE, atomic_write

# Raised when the files' layout below changes; stores of another layout are built again.
LAYOUT = 1

MANIFEST, LOCK, GENERATION = "manifest.json", "lock", "generation-"
WRITE_BYTES = 16 << 20


class MappedArray(np.ndarray):
    """A read-only array in a file, which pickles as the file's path: a loader worker maps it instead of getting a copy.

    Its slices and the results of arithmetic are ordinary values, which pickle as data.
    """

    path: Path | None = None

    @classmethod
    def open(cls, path: Path) -> "MappedArray":
        """Raises OSError, or ValueError if the file is not a whole .npy file."""
        array = np.load(path, mmap_mode="r", allow_pickle=False).view(cls)
        array.path = path
        return array

    def __reduce__(self) -> tuple:
        if self.path is None:
            return np.asarray(self).__reduce__()
        return _reopen, (str(self.path),)


class StringColumn:
    """N strings as one byte array: no Python object exists for a string until it is asked for.

    Attributes:
        text: (B,) uint8, the strings in UTF-8 one after another.
        ends: (N,) int64, where each string ends in `text`.
    """

    def __init__(self, text: np.ndarray, ends: np.ndarray) -> None:
        self.text, self.ends = text, ends

    @classmethod
    def pack(cls, strings: Iterable[str]) -> "StringColumn":
        """Strings to a column; any iterable, so that no list of them need exist."""
        text, ends = bytearray(), []
        for string in strings:
            # Surrogates: what Python makes of file names that are not UTF-8.
            text += string.encode("utf-8", "surrogatepass")
            ends.append(len(text))
        return cls(np.frombuffer(bytes(text), np.uint8), np.array(ends, np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        index = range(len(self))[index]  # from the end if negative; IndexError beyond either end
        start = self.ends[index - 1] if index else 0
        return self.text[start : self.ends[index]].tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))


Columns = dict[str, np.ndarray | StringColumn]


class InputState(msgspec.Struct, frozen=True):
    """A file that columns were made from, as it was then. For a folder, `size` and `mtime_ns` are a sum of its entries.

    `path` is relative to the store, so that a dataset folder which moves with its cache inside stays valid.
    """

    path: str
    size: int  # bytes; -1: there was no such file
    mtime_ns: int
    entries: str = ""  # of a folder: digest of its entries' names, sizes and times


class ColumnFile(msgspec.Struct, frozen=True):
    size: int  # bytes
    shape: tuple[int, ...]
    dtype: str


class Manifest(msgspec.Struct, frozen=True):
    layout: int
    name: str
    version: int
    inputs: tuple[InputState, ...]
    generation: str
    files: dict[str, ColumnFile]


class _Unusable(Exception):
    """Why a store cannot be used as it is, as the end of a sentence."""


def open_store(
    cache: Path,
    name: str,
    inputs: Sequence[Path],
    version: int,
    build: Callable[[], Columns],
    rebuild: bool = False,
) -> Columns:
    """The columns of a dataset split, from the cache; made by `build` where the cache does not hold them.

    They are made again if an input changed, came or went, if `version` is another, if a file of the cache is missing
    or not as it was written, or if `rebuild` asks for it. Where several processes start at once, one builds and the
    others wait for it. If `cache` cannot be written, the store goes to the user's cache folder. What happens is told
    in one printed line; the usual case, a valid cache, is silent.

    Args:
        cache: folder for stores; made if need be.
        name: of this store, for example InterHand26M_train.
        inputs: files, or folders (their entries count), that the columns are made from. One may be missing, which is a
            state like others: a source that needs it says so in `build`.
        version: a number the source raises when its columns change.
        build: makes the columns. Names are identifiers; arrays hold no Python objects. They may not hold absolute
            paths, because a dataset folder may move with its cache.
        rebuild: make them anew even if the cache is valid.

    Returns:
        `build`'s columns, as read-only maps of files. They, and objects that hold them, pickle as paths.

    Raises:
        UserError: neither `cache` nor the user's cache folder can be written, the disk is full, or an input changed
            while it was read.
    """
    homes = (Path(os.path.abspath(cache)) / name, _user_home(cache, name))
    if not rebuild:
        for home in homes:
            with suppress(_Unusable):
                return _read(home, name, version, inputs)
    home = _writable_home(homes, name)
    before = _generation(home)
    with _locked(home, name):
        try:
            # Another process may have built it while this one waited.
            if rebuild and _generation(home) == before:
                raise _Unusable("is made again, as asked")
            return _read(home, name, version, inputs)
        except _Unusable as reason:
            print(f"{name}: the annotation cache {reason}; reading the annotations, once (kept in {home})", flush=True)
        _remove_leftovers(home)
        _build(home, name, version, inputs, build)
        _remove_leftovers(home)
        return _read(home, name, version, inputs)


def _read(home: Path, name: str, version: int, inputs: Sequence[Path]) -> Columns:
    """The columns that `home` holds. Raises _Unusable if there are none or they are not those of these inputs."""
    manifest = _read_manifest(home)
    if (manifest.layout, manifest.name, manifest.version) != (LAYOUT, name, version):
        raise _Unusable("is of another version of this program")
    states = tuple(_input_state(path, home) for path in inputs)
    if states != manifest.inputs:
        changed = set(states) ^ set(manifest.inputs)
        names = sorted({Path(state.path).name for state in changed}) or ["the order of the files"]
        raise _Unusable(f"is out of date ({names[0]} changed)")
    folder = home / manifest.generation
    arrays = {stem: _read_array(folder / f"{stem}.npy", expected) for stem, expected in manifest.files.items()}
    columns: Columns = {}
    for stem, array in arrays.items():
        column, _, part = stem.partition(".")
        if part == "text":
            columns[column] = StringColumn(array, arrays[f"{column}.ends"])
            if array.size != max(arrays[f"{column}.ends"][-1:], default=0):
                raise _Unusable(f"is damaged (column {column} ends too early)")
        elif not part:
            columns[column] = array
    return columns


def _read_manifest(home: Path) -> Manifest:
    try:
        manifest = msgspec.json.decode((home / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise _Unusable("is not there yet") from None
    except (OSError, msgspec.DecodeError) as error:
        raise _Unusable(f"is damaged ({MANIFEST}: {error})") from error
    # The names become paths below.
    if not re.fullmatch(f"{GENERATION}[0-9a-f]+", manifest.generation):
        raise _Unusable(f"is damaged ({MANIFEST} names no generation)")
    for stem in manifest.files:
        column, _, part = stem.partition(".")
        if not column.isidentifier() or part not in ("", "text", "ends"):
            raise _Unusable(f"is damaged ({MANIFEST} names a column {stem!r})")
        if part and {f"{column}.text", f"{column}.ends"} - manifest.files.keys():
            raise _Unusable(f"is damaged ({MANIFEST} has half of column {column})")
    return manifest


def _read_array(path: Path, expected: ColumnFile) -> MappedArray:
    try:
        size = path.stat().st_size
        if size != expected.size:
            raise _Unusable(f"is damaged ({path.name} has {size} bytes instead of {expected.size})")
        array = MappedArray.open(path)
    except (OSError, ValueError) as error:
        raise _Unusable(f"is damaged ({path.name}: {error})") from error
    if (array.shape, str(array.dtype)) != (expected.shape, expected.dtype):
        raise _Unusable(f"is damaged ({path.name} is not the array that was written)")
    return array


def _build(home: Path, name: str, version: int, inputs: Sequence[Path], build: Callable[[], Columns]) -> None:
    """Make a new generation and let it hold."""
    states = tuple(_input_state(path, home) for path in inputs)
    columns = build()
    for path, state in zip(inputs, states, strict=True):
        if _input_state(path, home) != state:
            raise UserError(f"{path} changed while it was read; start again when nothing writes to it")
    generation = f"{GENERATION}{secrets.token_hex(8)}"
    folder = home / generation
    try:
        folder.mkdir()
        files = _write_columns(folder, name, columns)
        _sync_folder(folder)
        _sync_folder(home)
        manifest = Manifest(LAYOUT, name, version, states, generation, files)
        atomic_write(home / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1))
        _sync_folder(home)
    except OSError as error:
        advice = ADVICE.get(error.errno, "check the folder's permissions or choose another cache folder")
        raise UserError(f"cannot write the annotation cache {home}: {error.strerror or error} ({advice})") from error
    finally:
        if _generation(home) != generation:
            shutil.rmtree(folder, ignore_errors=True)


def _write_columns(folder: Path, name: str, columns: Columns) -> dict[str, ColumnFile]:
    arrays: dict[str, np.ndarray] = {}
    for column, values in columns.items():
        if not column.isidentifier():
            raise ValueError(f"column name {column!r} is not an identifier")
        if isinstance(values, StringColumn):
            arrays |= {f"{column}.text": values.text, f"{column}.ends": values.ends}
        else:
            arrays[column] = values
        if arrays.get(column) is not None and arrays[column].dtype.hasobject:
            raise ValueError(f"column {column!r} holds Python objects")
    total = sum(array.nbytes for array in arrays.values())
    # No bar for what takes no time.
    with tqdm(total=total, desc=f"writing {name}", unit="B", unit_scale=True, delay=1, leave=False) as progress:
        return {stem: _write_array(folder / f"{stem}.npy", array, progress) for stem, array in arrays.items()}


def _write_array(path: Path, array: np.ndarray, progress: tqdm) -> ColumnFile:
    """Write a .npy file through to the disk."""
    array = np.ascontiguousarray(array).reshape(array.shape)  # the reshape: ascontiguousarray gives () an axis
    data = array.reshape(-1).view(np.uint8)
    with open(path, "xb") as file:
        # `np.save` would do, but tells neither its progress nor why a write failed.
        np.lib.format.write_array_header_2_0(file, np.lib.format.header_data_from_array_1_0(array))
        for start in range(0, len(data), WRITE_BYTES):
            progress.update(file.write(data[start : start + WRITE_BYTES]))
        file.flush()
        os.fsync(file.fileno())
        return ColumnFile(file.tell(), array.shape, str(array.dtype))


def _input_state(path: Path, home: Path) -> InputState:
    """Raises UserError if the file is there but cannot be looked at."""
    relative = os.path.relpath(path, home)
    try:
        if not os.path.isdir(path):
            status = os.stat(path)
            return InputState(relative, status.st_size, status.st_mtime_ns)
        with os.scandir(path) as found:
            entries = sorted(_entry_state(entry) for entry in found)
    except FileNotFoundError:
        return InputState(relative, -1, 0)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    digest = blake2b(repr(entries).encode(), digest_size=16).hexdigest()
    return InputState(
        relative, sum(size for _, size, _ in entries), max((time for *_, time in entries), default=0), digest
    )


def _entry_state(entry: os.DirEntry) -> tuple[str, int, int]:
    try:
        status = entry.stat()
    except FileNotFoundError:  # a link to nothing
        return entry.name, -1, 0
    return entry.name, status.st_size, status.st_mtime_ns


def _user_home(cache: Path, name: str) -> Path:
    """Where a store goes if it cannot be in `cache`; datasets of the same name in different folders do not meet."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    place = blake2b(os.path.abspath(cache).encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
    return Path(base) / "interwild" / f"{name}-{place}"


def _writable_home(homes: tuple[Path, Path], name: str) -> Path:
    """The first folder that can be written; made if need be."""
    reasons = []
    for home in homes:
        try:
            home.mkdir(parents=True, exist_ok=True)
            # Trying is the only sure test: permissions say nothing of read-only mounts.
            probe = home / f".{secrets.token_hex(8)}.tmp"
            probe.touch(exist_ok=False)
            probe.unlink()
        except OSError as error:
            reasons.append(f"{home} ({error.strerror or error})")
            continue
        if reasons:
            print(f"{name}: cannot write {reasons[0]}; the annotation cache is kept in {home} instead", flush=True)
        return home
    raise UserError(f"cannot write the annotation cache, neither in {' nor in '.join(reasons)}; choose a cache folder")


@contextmanager
def _locked(home: Path, name: str) -> Iterator[None]:
    """Alone in `home`. The lock is the system's, so that it ends with its process however that ends."""
    lock = FileLock(home / LOCK)
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            print(f"{name}: another process is making the annotation cache; waiting for it", flush=True)
            lock.acquire()
    except OSError as error:
        raise UserError(f"cannot lock the annotation cache {home}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def _generation(home: Path) -> str | None:
    """The generation that holds, if any."""
    try:
        return _read_manifest(home).generation
    except _Unusable:
        return None


def _remove_leftovers(home: Path) -> None:
    """Remove what no manifest names. Processes that have files of an old generation open keep them until they end."""
    holds = _generation(home)
    for folder in home.glob(f"{GENERATION}*"):
        if folder.name != holds:
            shutil.rmtree(folder, ignore_errors=True)
    for file in home.glob(".*.tmp"):
        with suppress(OSError):
            file.unlink()


def _sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reopen(path: str) -> MappedArray:
    """A column in another process. Raises UserError if it is gone."""
    try:
        return MappedArray.open(Path(path))
    except (OSError, ValueError) as error:
        raise UserError(f"the annotation cache {path} has gone ({error}); start again") from error
