"""Checks of what Python callers give to `HandPredictor`: each mistake is one TypeError or ValueError."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from common.errors import brief
from common.options import HAND_MODES
from common.utils.camera import Camera
from common.utils.images import ORIENTATION_TAG, TURNS, load_photo, turn_upright

PhotoLike = str | Path | np.ndarray | Image.Image
WIDE_MODES = ("I", "F")  # of PIL; their range is unknown, and convert("RGB") would cut it at 255


class LoadedPhoto(NamedTuple):
    """An upright photo: (H, W, 3) uint8 RGB, the EXIF orientation that was undone (1: none), and its file."""

    image: np.ndarray
    orientation: int
    file: Path | None


def read_devices(devices: Any) -> list[torch.device]:
    """One device or several, as `torch.device` or its text. Raises ValueError or TypeError."""
    several = list(devices) if isinstance(devices, list | tuple) else [devices]
    if not several:
        raise ValueError("devices must not be empty; for example 'cpu', or ['cuda:0', 'cuda:1']")
    found = []
    for device in several:
        if not isinstance(device, str | torch.device):
            raise TypeError(
                f"a device must be a text such as 'cpu' or 'cuda:0', or a torch.device, not {brief(device)}"
            )
        try:
            found.append(torch.device(device))
        except RuntimeError:
            raise ValueError(f"there is no device {device!r}; for example 'cpu' or 'cuda:0'") from None
        if found[-1].type == "cuda" and (found[-1].index or 0) >= torch.cuda.device_count():
            raise ValueError(f"there is no GPU {device}; this machine has {torch.cuda.device_count()}")
    return found


def read_photo(photo: Any, ignore_exif: bool) -> LoadedPhoto:
    """A path, a PIL image or an array as an upright photo. Arrays are taken as they are.

    Raises:
        TypeError, ValueError: it is none of these, or has another shape or range.
        UserError: the file cannot be read.
    """
    if isinstance(photo, str | Path):
        return LoadedPhoto(*load_photo(Path(photo), ignore_exif), Path(photo))
    if isinstance(photo, Image.Image):
        if photo.mode.startswith(WIDE_MODES):
            raise ValueError(f"a PIL image of mode {photo.mode} has no 8-bit colours; convert it to RGB first")
        orientation = 1 if ignore_exif else photo.getexif().get(ORIENTATION_TAG, 1)
        orientation = orientation if orientation in TURNS else 1
        return LoadedPhoto(turn_upright(np.array(photo.convert("RGB")), orientation), orientation, None)
    check_image(photo)
    return LoadedPhoto(np.ascontiguousarray(photo), 1, None)  # OpenCV draws on no other


def check_image(image: Any) -> None:
    """(H, W, 3) uint8."""
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"a photo must be a path, a PIL image or an (H, W, 3) uint8 RGB array, not {type(image).__name__}"
        )
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"an image must be (H, W, 3) uint8 RGB, not {image.shape} {image.dtype}")


def check_box(box_xywh: Any) -> None:
    """(4,) finite numbers."""
    if not _finite(box_xywh, (4,)):
        raise ValueError(f"box_xywh must be four finite numbers x, y, w, h in px, not {brief(box_xywh)}")


def check_camera(camera: Any) -> None:
    """A pinhole camera with a focal length above 0."""
    if not isinstance(camera, Camera):
        raise TypeError(
            f"intrinsics must be a Camera, not {type(camera).__name__}; of a 3 x 3 matrix K: "
            "Camera(K[[0, 1], [0, 1]], K[:2, 2], orthographic=False)"
        )
    if camera.orthographic:
        raise ValueError("intrinsics must be a pinhole camera: Camera(..., orthographic=False)")
    if not _finite(camera.focal, (2,)) or min(camera.focal) <= 0:
        raise ValueError(f"focal must be two numbers above 0 in px, fx and fy, not {brief(camera.focal)}")
    if not _finite(camera.princpt, (2,)):
        raise ValueError(f"princpt must be two finite numbers in px, cx and cy, not {brief(camera.princpt)}")


def check_choice(hand: Any, min_confidence: Any) -> None:
    """The hands to report."""
    if not isinstance(hand, str) or hand not in HAND_MODES:
        raise ValueError(f"hand must be one of {', '.join(HAND_MODES)}, not {brief(hand)}")
    check_fraction("min_confidence", min_confidence)


def check_fraction(name: str, value: Any) -> None:
    """A number from 0 to 1."""
    if not _finite(value, ()) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, not {brief(value)}")


def check_people(detector: Any, boxes: Any, min_person: Any, max_people: Any) -> None:
    """Arguments of `HandPredictor.people`. Boxes that are not finite are left out later, with a warning."""
    if not isinstance(detector, str) and not callable(detector):
        raise TypeError(f"detector must be a name or a function, not {type(detector).__name__}")
    if boxes is not None:
        shape: tuple[int, ...] = np.shape(boxes) if _numeric(boxes) else ()
        if shape != (0,) and (len(shape) != 2 or shape[1] != 4):
            raise ValueError("boxes must be (P, 4) numbers, x1, y1, x2, y2 in px of each person")
    check_fraction("min_person", min_person)
    if not isinstance(max_people, int | np.integer) or max_people < 1:
        raise ValueError(f"max_people must be a whole number from 1, not {brief(max_people)}")


def one_each(name: str, values: Any, number: int) -> list[Any]:
    """A value for each photo of a list, from None or a list of that length."""
    if values is None:
        return [None] * number
    if not isinstance(values, list | tuple | np.ndarray) or len(values) != number:
        raise ValueError(f"{name} must have one entry for each of the {number} photos")
    return list(values)


def _numeric(values: Any) -> bool:
    try:
        return np.asarray(values).dtype.kind in "iuf"
    except ValueError:  # lists of different lengths
        return False


def _finite(values: Any, shape: tuple[int, ...]) -> bool:
    return _numeric(values) and np.shape(values) == shape and bool(np.isfinite(values).all())
