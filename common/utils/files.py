"""Write files whole or not at all."""

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from common.errors import UserError

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


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block succeeds.

    A reader, or the next run after a crash, sees the old content or the new, never a part. If the block fails or is
    interrupted, the temporary file is removed and the old one stays as it was.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"cannot write {path}: it is a device or a pipe, which a file would replace; name a file")
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        # Not `tempfile`: only the owner could read the file.
        temporary.touch(exist_ok=False)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # the content is on the disk before the file has its name
        os.replace(temporary, path)
    except OSError as error:
        advice = ADVICE.get(error.errno or 0, "check the folder's permissions or choose another folder")
        raise UserError(f"cannot write {path}: {error.strerror or error} ({advice})") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


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
