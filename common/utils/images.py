"""Images: from file to RGB array, from array to crop."""

from pathlib import Path

import cv2
import numpy as np

from common.errors import UserError


def quiet_opencv() -> None:
    """Silence OpenCV's log on stderr; errors are reported as `UserError`. Called by scripts, not at import."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def load_image(path: Path) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB. EXIF orientation is ignored, as in the published system.

    Raises:
        UserError: the file cannot be read, is not an image, is truncated, or is larger than OpenCV allows.
    """
    try:
        if path.is_fifo() or path.is_char_device():  # reading might never end
            raise UserError(f"cannot read {path}: it is not a file")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # a path that no file can have
        raise UserError(f"cannot read {path}: {error}") from None
    if not data:
        raise UserError(f"cannot read {path}: the file is empty")
    try:
        # Not imread, which returns the top of a truncated JPEG as if it were complete.
        image_bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        reason = "it has too many pixels; make it smaller" if "CV_IO_MAX" in error.err else error.err
        raise UserError(f"cannot read {path}: {reason or 'OpenCV refuses it'}") from None
    if image_bgr is None:
        raise UserError(f"cannot read {path}: it is not an image, or it is damaged or cut short")
    return cv2.cvtColor(image_bgr, cv2.COLOR_BGR2RGB)


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
