"""The annotation store: columns of numbers and strings, built once from a dataset's files, then memory-mapped.

A column is an array of one fact with the annotations along its first axis. All columns of a split are kept in one file,
which every later start and every loader worker maps into memory: opening takes no time whatever the size, and all
processes share one copy.

    cache/InterHand26M_train/
        lock                   held by the process that builds
        000001-3f9c2a41.npz    a generation; the highest number is the current one

A generation is an uncompressed .npz file, which has a CRC-32 of each column. It takes its name when it is whole, so a
reader sees all of a store or none, whenever a builder is killed.
"""

import io
import mmap
import os
import secrets
import struct
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from stat import S_ISDIR
from typing import Any
from zlib import crc32

import msgspec
import numpy as np
from filelock import FileLock, Timeout

from common.errors import UserError, error_context
from common.utils.files import atomic_path, check_is_file, mark_in_use, remove_unused

LAYOUT = 2  # of the file; stores of another layout are rebuilt
HEADER, LOCK, ENDING = "HEADER", "lock", ".npz"
CHECKED_AT_OPEN = 1 << 20  # bytes; larger columns are checked by `Store.check` alone
SAMPLE_BYTES = 64 << 10  # of the head, the middle and the tail of an input, to tell its content
YOUNG_S = 600  # an old generation stays at least so long: a process on another machine may be about to map it

DAMAGED = (zipfile.BadZipFile, struct.error, msgspec.DecodeError)  # what reading a file beside its own errors raises

Columns = dict[str, Any]  # name -> np.ndarray or StringColumn


class StringColumn:
    """N strings as one byte array: a Python object exists only for the string that is asked for.

    Attributes:
        text: (B,) uint8, the strings in UTF-8 one after another.
        ends: (N,) int64, where each string ends in `text`.
    """

    def __init__(self, text: np.ndarray, ends: np.ndarray) -> None:
        self.text, self.ends = text, ends

    @classmethod
    def pack(cls, strings: Iterable[str]) -> "StringColumn":
        """Strings to a column. A generator will do, so that no list of them has to exist."""
        text, ends = bytearray(), []
        for string in strings:
            # Surrogates: what Python makes of file names that are not UTF-8.
            text += string.encode("utf-8", "surrogatepass")
            ends.append(len(text))
        return cls(np.frombuffer(bytes(text), np.uint8), np.array(ends, np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        index = range(len(self))[index]  # negative from the end; IndexError beyond either end
        start = self.ends[index - 1] if index else 0
        return self.text[start : self.ends[index]].tobytes().decode("utf-8", "surrogatepass")


class Header(msgspec.Struct, frozen=True):
    """What a generation was built from. Paths are relative to it, so it stays valid when a dataset folder moves."""

    layout: int
    name: str
    version: int
    inputs: list[tuple[str, str]]  # path and fingerprint
    arrays: dict[str, str]  # type and shape of each


class Unusable(UserError):
    """Why a store cannot be used as it is."""


class Store(Columns):
    """The columns of a generation, as read-only maps of its file.

    It pickles as the file's path: a loader worker maps the file in its turn instead of getting a copy. What is taken
    from its columns pickles as data.

    Raises:
        Unusable: the file is damaged.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        arrays: dict[str, np.ndarray] = {}
        try:
            with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
                mark_in_use(file)  # for as long as it is mapped: `mmap` duplicates the descriptor
                data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                for entry in archive.infolist():
                    archive.open(entry).close()  # whether its name and its place are right
                    # 30 bytes, the name and an extra field, whose length stands only here.
                    start = entry.header_offset + 30 + sum(struct.unpack_from("<HH", data, entry.header_offset + 26))
                    content = data[start : start + entry.file_size]
                    if entry.file_size <= CHECKED_AT_OPEN and crc32(content) != entry.CRC:
                        raise ValueError(f"{entry.filename} is not as it was written")
                    head = io.BytesIO(content[:4096])
                    np.lib.format.read_magic(head)
                    shape, fortran, dtype = np.lib.format.read_array_header_1_0(head)
                    array = np.ndarray(shape, dtype, data, start + head.tell(), order="F" if fortran else "C")
                    arrays[entry.filename.removesuffix(".npy")] = array
            self.header = msgspec.json.decode(arrays.pop(HEADER).tobytes(), type=Header)
            if _describe(arrays) != self.header.arrays:
                raise ValueError("its arrays are not as they were written")
            for stem, array in arrays.items():
                column, _, part = stem.partition(".")
                if not part:
                    self[column] = array
                elif part == "text":
                    self[column] = StringColumn(array, arrays[f"{column}.ends"])
        except (*DAMAGED, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
            raise Unusable(f"the annotation cache {path} is damaged or gone ({error})") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.path,)

    def check(self) -> None:
        """Compare all columns, of every size, with their checksums. Raises UserError if one is damaged."""
        with error_context(f"the annotation cache {self.path}", zipfile.BadZipFile, advice="delete it, start again"):
            with zipfile.ZipFile(self.path) as archive:
                if damaged := archive.testzip():
                    raise zipfile.BadZipFile(f"{damaged} is damaged")


def open_store(cache: Path, name: str, inputs: Sequence[Path], version: int, build: Callable[[], Columns]) -> Store:
    """The columns of a dataset split, from the cache; built first where the cache does not hold them.

    They are rebuilt if an input changed, appeared or went, if `version` differs, or if the file is damaged. Where
    several processes start at once, also on several machines, one builds and the others wait for it. A build is
    reported in one printed line; a valid cache is opened silently.

    Args:
        cache: folder of stores, created if necessary. If it cannot be written, the user's cache folder is used.
        name: of this store, e.g. InterHand26M_train.
        inputs: files, or folders (their entries count), that the columns are built from. One may be missing.
        version: the source raises it when its columns change.
        build: returns the columns. Names are identifiers; arrays hold no Python objects.

    Raises:
        UserError: neither `cache` nor the user's cache folder can be written, the disk is full, or an input changed
            while it was read.
    """
    homes = (Path(os.path.abspath(cache)) / name, _user_home(cache, name))
    for home in homes:
        with suppress(Unusable):
            store = _read(home, name, version, inputs)
            _remove_old(home)
            return store
    home = _writable(homes, name)
    with _locked(home, name):
        try:
            # Another process may have built it while this one waited.
            return _read(home, name, version, inputs)
        except Unusable as reason:
            print(f"{name}: {reason}; building it once, in {home}", flush=True)
        states = _states(inputs, home)
        columns = build()
        if changed := set(_states(inputs, home)) - set(states):
            changed_name = Path(changed.pop()[0]).name
            raise UserError(f"{changed_name} changed while it was read; start again when nothing writes to it")
        arrays = _flatten(columns)
        header = Header(LAYOUT, name, version, states, _describe(arrays))
        newest = _newest(home)
        number = int(newest.name[:6]) + 1 if newest else 1
        with atomic_path(home / f"{number:06d}-{secrets.token_hex(4)}{ENDING}") as temporary:
            with open(temporary, "wb") as file:
                arrays[HEADER] = np.frombuffer(msgspec.json.encode(header), np.uint8)
                np.savez(file, **arrays)  # type: ignore[arg-type]  # it takes the names for options
        _remove_old(home)
        return _read(home, name, version, inputs)


def _read(home: Path, name: str, version: int, inputs: Sequence[Path]) -> Store:
    """The store that `home` holds. Raises Unusable if there is none or it is not of these inputs."""
    path = _newest(home)
    if path is None:
        raise Unusable("the annotation cache does not exist yet")
    store = Store(str(path))
    built = store.header
    if (built.layout, built.name, built.version) != (LAYOUT, name, version):
        raise Unusable("the annotation cache is of another version of this program")
    states = _states(inputs, home)
    if states != built.inputs:
        names = sorted(Path(input).name for input, _ in set(states) ^ set(built.inputs)) or ["the order of the files"]
        raise Unusable(f"the annotation cache is out of date ({names[0]} changed)")
    return store


def _flatten(columns: Columns) -> dict[str, np.ndarray]:
    """Columns as arrays: that of strings is two of them."""
    arrays: dict[str, np.ndarray] = {}
    for column, values in columns.items():
        if not column.isidentifier():
            raise ValueError(f"column name {column!r} is not an identifier")
        parts = {".text": values.text, ".ends": values.ends} if isinstance(values, StringColumn) else {"": values}
        if any(array.dtype.hasobject for array in parts.values()):
            raise ValueError(f"column {column!r} holds Python objects")
        arrays |= {column + part: array for part, array in parts.items()}
    return arrays


def _describe(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    return {name: f"{array.dtype.str} {array.shape}" for name, array in arrays.items()}


def _newest(home: Path) -> Path | None:
    """The current generation, if there is one."""
    return max(home.glob(f"[0-9]*{ENDING}"), default=None)


def _remove_old(home: Path) -> None:
    """Remove the generations that are not current, not young and not mapped by a process."""
    for path in sorted(home.glob(f"[0-9]*{ENDING}"))[:-1]:
        with suppress(OSError):  # it has gone
            if time.time() - path.stat().st_mtime > YOUNG_S:
                remove_unused(path)


def _states(inputs: Sequence[Path], home: Path) -> list[tuple[str, str]]:
    return [(_path_from(home, path), fingerprint(path)) for path in inputs]


def _path_from(home: Path, path: Path) -> str:
    """The relative path, so that a moved dataset keeps its cache; the absolute one to another drive of Windows."""
    try:
        return os.path.relpath(path, home)
    except ValueError:
        return os.path.abspath(path)


def fingerprint(path: Path) -> str:
    """What tells the content of a file: size, time, inode and some pieces; of a folder: its entries; "" if missing.

    Raises:
        UserError: it exists but cannot be read.
    """
    with error_context(f"cannot read {path}"):
        if not os.path.exists(path):
            return ""
        status = os.stat(path)
        digest = blake2b(repr((status.st_size, status.st_mtime_ns, status.st_ino)).encode(), digest_size=16)
        if S_ISDIR(status.st_mode):
            for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
                found = entry.stat(follow_symlinks=os.path.exists(entry.path))
                digest.update(repr((entry.name, found.st_size, found.st_mtime_ns)).encode())
            return digest.hexdigest()
        check_is_file(path)
        with open(path, "rb") as file:
            for place in (0, status.st_size // 2, max(0, status.st_size - SAMPLE_BYTES)):
                file.seek(place)
                digest.update(file.read(SAMPLE_BYTES))
        return digest.hexdigest()


def _user_home(cache: Path, name: str) -> Path:
    """Where a store goes if it cannot be in `cache`; datasets of one name in different folders are kept apart."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = blake2b(os.path.abspath(cache).encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
    return Path(base) / "interwild" / f"{name}-{folder}"


def _writable(homes: Sequence[Path], name: str) -> Path:
    """The first folder that can be written; created if necessary."""
    reasons: list[str] = []
    for home in homes:
        try:
            home.mkdir(parents=True, exist_ok=True)
            (home / LOCK).touch()  # only trying tells: permissions say nothing of read-only mounts
        except OSError as error:
            reasons.append(f"{home} ({error.strerror or error})")
            continue
        if reasons:
            print(f"{name}: cannot write {reasons[0]}; the annotation cache is kept in {home} instead", flush=True)
        return home
    raise UserError(f"cannot write the annotation cache, neither in {' nor in '.join(reasons)}; choose a cache folder")


@contextmanager
def _locked(home: Path, name: str) -> Iterator[None]:
    """Exclude other builders. The lock is the system's, so it ends with its process however that ends.

    Where the disk has no locks, two builders do the same work, each in a file of its own.
    """
    lock = FileLock(home / LOCK)
    with suppress(OSError, NotImplementedError):
        try:
            lock.acquire(blocking=False)
        except Timeout:
            print(f"{name}: another process is building the annotation cache; waiting for it", flush=True)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
