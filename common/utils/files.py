"""Read the files that a user names, and write files whole or not at all."""

import errno
import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import IO, Any

import cv2
import numpy as np
from filelock import FileLock, Timeout

from common.errors import UserError, error_context

try:
    import fcntl
except ImportError:  # Windows, where a file that is open or mapped cannot be deleted anyway
    fcntl = None  # type: ignore[assignment]  # an optional module

# What to do about a failure, where the reason does not say so.
ADVICE = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some space or choose another folder",
    errno.EFBIG: "raise the limit on file sizes or choose another folder",
    errno.ENOENT: "make the folder first",
    errno.ENOTDIR: "a part of the path is a file; choose another folder",
    errno.EISDIR: "a folder has this name; move it or choose another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
}


# What a failed download leaves in a file's place, by its first bytes.
FOREIGN_KINDS = (
    (b"<!doctype html", "it is a web page, not the file: the download failed, or needs a login"),
    (b"<html", "it is a web page, not the file: the download failed, or needs a login"),
    (b"<?xml", "it is an XML page, not the file: the download failed"),
    (b'{"', "it is a JSON text, perhaps a server's error, not the file"),
    (b"version https://git-lfs", "it is a Git LFS pointer, not the file itself: get it with git lfs pull"),
    (b"pk\x03\x04", "it is a zip archive: unpack it"),
    (b"\x1f\x8b", "it is gzip-compressed: unpack it"),
    (b"rar!", "it is a rar archive: unpack it"),
    (b"7z\xbc\xaf", "it is a 7z archive: unpack it"),
)


def check_is_file(path: Path) -> None:
    """Refuse pipes and devices, of which reading may never end; every reader of a file that a user names calls this.

    Raises:
        OSError: it is one, or a folder, or does not exist.
    """
    mode = path.stat().st_mode
    if S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device; save it to a file first", str(path))


def read_file(path: Path, limit: int | None = None) -> bytes:
    """Read a whole file that a user named.

    Args:
        limit: bytes.

    Raises:
        UserError: it cannot be read, is not a file, or is larger than `limit`.
    """
    with error_context(f"cannot read {path}", ValueError):  # ValueError: a path that no file can have
        check_is_file(path)
        if limit and path.stat().st_size > limit:
            raise UserError(f"it has more than {limit >> 20} MB, so it is not what is expected")
        return path.read_bytes()


def foreign_kind(data: bytes) -> str | None:
    """What stands in a file's place after a failed download, by its first bytes; None if none of these."""
    if not data.strip(b"\0 \r\n"):
        return "it is empty: the download failed"
    head = data[:100].lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    return next((what for start, what in FOREIGN_KINDS if head.startswith(start)), None)


def mark_in_use(file: IO) -> None:
    """Keep `remove_unused` from deleting an open file, readable, until it is closed and no longer mapped."""
    if fcntl:
        with suppress(OSError):  # a disk without locks
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def remove_unused(path: Path) -> None:
    """Delete a file unless it is in use, see `mark_in_use`, or this process may not."""
    with suppress(OSError):
        if not fcntl:
            path.unlink()
            return
        with open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block succeeds.

    A reader, or the next run after a crash, sees the old content or the new, never a part. If the block fails or is
    interrupted, the temporary file is removed and the old one stays as it was. That of a killed run is removed by the
    next run that writes into the folder.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(f"cannot write {path}: it is a device or a pipe, which a file would replace; name a file")
        _remove_leftovers(path.parent.absolute())
        # Not `tempfile`: only the owner could read the file.
        with open(temporary, "x+b") as file:
            mark_in_use(file)
            yield temporary
            os.fsync(file.fileno())  # the content is on the disk before the file has its name
        os.replace(temporary, path)
    except OSError as error:
        advice = ADVICE.get(error.errno or 0, "check the folder's permissions or choose another folder")
        raise UserError(f"cannot write {path}: {error.strerror or error} ({advice})") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@cache
def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of killed runs; once per process."""
    for leftover in folder.glob(f".{'[0-9a-f]' * 16}.tmp"):
        remove_unused(leftover)


def atomic_write(path: str | os.PathLike, data: bytes) -> None:
    """Write a file whole or not at all. Raises UserError, see `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, if they are missing.

    Raises:
        UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make folder {path}: {error.strerror or error}; choose another folder") from error


def check_writable(folder: Path) -> None:
    """Make a folder, and fail now if files cannot be written into it. Raises UserError."""
    make_folder(folder)
    probe = folder / ".writable"
    atomic_write(probe, b"")
    probe.unlink(missing_ok=True)


@contextmanager
def exclusive(lock: Path, problem: str) -> Iterator[None]:
    """Keep other processes out of a folder until the block or this process ends, however it ends.

    Where the file system has no locks it only warns.

    Args:
        lock: a file, whose folder must exist.
        problem: the message if another process holds it.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    if lock.exists() and not lock.is_file():  # to open a pipe might never end
        raise UserError(f"{lock} is not a file; remove it, or choose another --output")
    with error_context(f"cannot lock {lock.parent}", advice="choose another --output"):
        open(lock, "ab").close()
    held = FileLock(lock, timeout=0)
    try:
        held.acquire()
    except Timeout:
        raise UserError(problem) from None
    except (OSError, NotImplementedError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        text = f"warning: {lock.parent} cannot be locked ({reason}); start no second run in it"
        print(text, file=sys.stderr, flush=True)
    try:
        yield
    finally:
        held.release()


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write JSON; numpy arrays and numbers become lists and numbers.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot express: the caller decides what null means.
        UserError: see `atomic_write`.
    """
    text = json.dumps(content, allow_nan=False, ensure_ascii=False, default=_from_numpy)
    # File names that are not UTF-8 contain lone surrogates, which JSON can only hold as escapes.
    atomic_write(path, (text + "\n").encode("utf-8", "backslashreplace"))


def _from_numpy(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def write_image(path: str | os.PathLike, image_rgb: np.ndarray, quality: int = 95) -> None:
    """Write an image, (H, W, 3) uint8 RGB, in the format of the suffix.

    Args:
        quality: of a JPEG or WebP, up to 100.

    Raises:
        UserError: OpenCV does not know the format or cannot store so large an image in it; see also `atomic_write`.
    """
    path = Path(path)
    option = {".jpg": cv2.IMWRITE_JPEG_QUALITY, ".jpeg": cv2.IMWRITE_JPEG_QUALITY, ".webp": cv2.IMWRITE_WEBP_QUALITY}
    suffix = path.suffix.lower()
    options = [option[suffix], quality] if suffix in option else []
    try:
        done, data = cv2.imencode(path.suffix, cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR), options)
    except cv2.error as error:
        raise UserError(f"cannot write {path}: {error.err or error} (use another image format)") from error
    if not done:
        raise UserError(f"cannot write {path}: OpenCV could not encode it (use another image format)")
    atomic_write(path, data.tobytes())
