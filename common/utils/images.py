"""Images: from file to RGB array, from array to crop."""

from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import cv2
import numpy as np
from PIL import Image

from common.errors import MAX_PIXELS, UserError
from common.utils.files import check_is_file, foreign_kind, read_file

T = TypeVar("T")

ORIENTATION_TAG = 0x0112  # of EXIF
# EXIF orientation -> the turn that makes the image upright.
TURNS = {
    2: "mirrored left to right",
    3: "rotated by 180 degrees",
    4: "mirrored top to bottom",
    5: "mirrored about the diagonal from the upper left",
    6: "rotated by 90 degrees clockwise",
    7: "mirrored about the diagonal from the upper right",
    8: "rotated by 90 degrees counterclockwise",
}
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
ANIMATIONS = ("GIF", "WEBP", "PNG", "AVIF")  # not MPO, in which phones keep a depth image beside the photo


def quiet_opencv() -> None:
    """Silence OpenCV's log on stderr; errors are reported as `UserError`. Called by scripts, not at import."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def load_image(path: Path) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB.

    As in the published system, EXIF orientation is ignored (see `load_photo`), and so is transparency: what is under it
    is returned. HEIC needs the package pillow-heif, and comes upright.

    Raises:
        UserError: the file cannot be read, is not an image, is truncated, or has more than `MAX_PIXELS`.
    """
    data = read_file(path)
    if not data:
        raise UserError(f"cannot read {path}: the file is empty")
    header = _open_header(BytesIO(data))
    if header and header.height * header.width > MAX_PIXELS:
        raise UserError(f"cannot read {path}: it has too many pixels; make it smaller")
    image_bgr = None
    try:
        # What has no known size is not decoded, as it may take all memory. Pillow knows AVIF from 11.3 on.
        if header or data[4:12] == b"ftypavif":
            # Not imread, which returns the top of a truncated JPEG as if it were complete.
            image_bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        reason = "it has too many pixels; make it smaller" if "CV_IO_MAX" in error.err else error.err
        raise UserError(f"cannot read {path}: {reason or 'OpenCV refuses it'}") from None
    if image_bgr is None and data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS:
        return _decode_heic(path, data)
    if image_bgr is None:
        kind = foreign_kind(data) or "it is not an image, or it is damaged or cut short"
        raise UserError(f"cannot read {path}: {kind}")
    return cv2.cvtColor(image_bgr, cv2.COLOR_BGR2RGB)


def _decode_heic(path: Path, data: bytes) -> np.ndarray:
    try:
        import pillow_heif  # an optional package
    except ImportError:
        raise UserError(f"cannot read {path}: for HEIC, pip install pillow-heif, or convert it to JPEG") from None
    try:
        file = pillow_heif.open_heif(data)
        if file.size[0] * file.size[1] > MAX_PIXELS:
            raise ValueError("it has too many pixels; make it smaller")
        return np.array(file.to_pillow().convert("RGB"))
    except Exception as error:  # its kinds are not documented
        raise UserError(f"cannot read {path}: {error}; it may be damaged, convert it to JPEG") from error


def load_photo(path: Path, ignore_exif: bool = False) -> tuple[np.ndarray, int]:
    """Read a photo and turn it upright by its EXIF orientation.

    Args:
        ignore_exif: leave it as it is stored, as `load_image` does.

    Returns:
        (H, W, 3) uint8 RGB; the EXIF orientation that was undone, a key of `TURNS`, or 1 if none was.

    Raises:
        UserError: see `load_image`.
    """
    image = load_image(path)
    orientation = 1 if ignore_exif else exif_orientation(path)
    return turn_upright(image, orientation), orientation


def exif_orientation(path: Path) -> int:
    """The EXIF orientation that `load_image` leaves in an image, 1 to 8; 1 where there is none, or it is damaged."""

    def read(header: Any) -> int:
        # OpenCV turns TIFF images by itself.
        orientation = header.getexif().get(ORIENTATION_TAG) if header.format != "TIFF" else 1
        return orientation if orientation in TURNS else 1

    return _read_header(path, read, 1)


def turn_upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation: (H, W, 3) -> (H, W, 3), or (W, H, 3) from 5 on."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def image_size(path: Path) -> tuple[int, int] | None:
    """(h, w) by the file's header; None where it tells nothing."""
    return _read_header(path, lambda header: (header.height, header.width), None)


def has_alpha(path: Path) -> bool:
    """Whether an image has pixels that are not opaque; False where it is damaged: `load_image` judges that."""

    def read(header: Any) -> bool:
        return header.has_transparency_data and header.convert("RGBA").getextrema()[3][0] < 255

    return _read_header(path, read, False)


def is_animation(path: Path) -> bool:
    """Whether a file holds several images to be shown one after another, by its header."""
    return _read_header(path, lambda header: bool(header.format in ANIMATIONS and header.is_animated), False)


def _read_header(path: Path, read: Callable[[Any], T], default: T) -> T:
    """What `read` finds in Pillow's image of a file, not decoded; the default if that fails."""
    with suppress(Exception):  # Pillow's parsers and decoders raise almost anything
        check_is_file(path)
        with open(path, "rb") as file:
            header = _open_header(file)
            return default if header is None else read(header)
    return default


def _open_header(file: BinaryIO) -> Any:
    """Pillow's image, not decoded, or None. Not by `Image.open`: its limit of pixels is lower, and global."""
    Image.init()
    start = file.read(16)
    for factory, accept in list(Image.OPEN.values()):
        with suppress(Exception):  # damaged headers raise almost anything
            if accept is not None and accept(start) is True:
                file.seek(0)
                return factory(file, "")
    return None


def warp_image(image: np.ndarray, image_to_crop: np.ndarray, crop_size: tuple[int, int]) -> np.ndarray:
    """Sample a crop from an image, bilinear, 0 outside.

    Args:
        image: (H, W, 3) uint8 or float32.
        image_to_crop: (2, 3).
        crop_size: (h, w).

    Returns:
        (h, w, 3) in the image's dtype. uint8 is rounded, so within half a gray level of float32.
    """
    height, width = crop_size
    return cv2.warpAffine(image, image_to_crop, (width, height), flags=cv2.INTER_LINEAR)
