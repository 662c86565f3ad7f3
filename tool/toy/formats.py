"""What the writers of the four toy datasets share: folders that cannot harm real data, numbers, boxes, drawing.

A dataset is made in a hidden folder beside its place and moved there when it is whole. `TOY_MARK` marks it as
ours and lists its files; a folder with any other file in it is left alone.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.errors import UserError
from common.types import SIDES
from common.utils.boxes import bbox_from_points, xywh_to_xyxy
from common.utils.files import atomic_write, make_folder
from data.layouts import TOY_MARK
from tool.toy.picture import Look, Skin, draw_hands, finish
from tool.toy.scene import HandRig, Hands, View, scaled_view

PARTIAL = ".toy_partial"
# What a dataset's folder holds besides data: the project's own files, and what readers make of the data.
NO_DATA = (".gitkeep", "__pycache__", "cache", TOY_MARK, PARTIAL)
HEADER = """Toy data: pictures of generated hands, written by tool/make_toy_data.py. These are NOT the real data.
The command replaces them only if this folder holds no other files than these (size in bytes, path):
"""


class Plan(NamedTuple):
    """What every writer is told."""

    rig: HandRig
    skin: Skin
    seed: int
    train: int  # samples
    test: int
    scale: float  # of the pictures' size
    variety: float  # of poses and views, 0 to 1
    tick: Callable[[], None]  # called after each picture


# ---- folders ----


def check_folder(folder: Path) -> None:
    """See that a dataset's folder may be written.

    Raises:
        UserError: it holds files which are not toy data.
    """
    known = _read_marker(folder)
    try:
        foreign = (
            path.relative_to(folder)
            for path in _data_files(folder)
            if known.get(path.relative_to(folder).as_posix()) != path.lstat().st_size
        )
        found = next(foreign, None)
    except OSError as error:
        raise UserError(f"cannot look into {folder}: {error.strerror or error}") from error
    if found:
        raise UserError(
            f"{folder} holds something else than toy data ({found}), so it is left alone; "
            "choose another folder with --out, or move it away"
        )


@contextmanager
def toy_folder(folder: Path) -> Iterator[Path]:
    """A folder to write a dataset into, which takes the place of the old toy data when the block ends well.

    Raises:
        UserError: see `check_folder`; also if it cannot be written.
    """
    check_folder(folder)
    make_folder(folder)
    staging = folder / PARTIAL
    with _alone(folder):
        shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
        make_folder(staging)
        try:
            yield staging
            check_folder(folder)
            _publish(staging, folder)
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror or error}; choose another folder") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second command out. The lock is on the folder itself, so that no file of it stays behind."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(
            f"another command writes toy data into {folder}; wait for it, or choose another --out"
        ) from None
    finally:
        os.close(descriptor)


def _publish(staging: Path, folder: Path) -> None:
    """At any moment the files that are there are among those the marker lists, so that a next run may go on."""
    for path in _data_files(folder):
        path.unlink()
    for path in _entries(folder):
        shutil.rmtree(path)  # empty folders
    files = sorted(path for path in staging.rglob("*") if path.is_file())
    lines = [f"{path.stat().st_size} {path.relative_to(staging).as_posix()}\n" for path in files]
    atomic_write(folder / TOY_MARK, (HEADER + "".join(lines)).encode())
    for path in sorted(staging.iterdir()):
        os.replace(path, folder / path.name)


def _entries(folder: Path) -> list[Path]:
    """What a dataset's folder holds of data, at the top."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in entries if path.name not in NO_DATA and path.suffix != ".py"]


def _data_files(folder: Path) -> Iterator[Path]:
    for entry in _entries(folder):
        if entry.is_symlink() or not entry.is_dir():
            yield entry
        else:
            yield from (path for path in entry.rglob("*") if path.is_symlink() or not path.is_dir())


def _read_marker(folder: Path) -> dict[str, int]:
    """path -> size of the files that are ours."""
    try:
        lines = (folder / TOY_MARK).read_text().splitlines()[len(HEADER.splitlines()) :]
    except (OSError, UnicodeDecodeError):
        return {}
    entries = [line.split(" ", 1) for line in lines]
    return {entry[1]: int(entry[0]) for entry in entries if len(entry) == 2 and entry[0].isdigit()}


# ---- numbers ----


def rounded(values: np.ndarray, digits: int) -> list:
    """Nested lists."""
    return np.round(np.asarray(values, np.float64), digits).tolist()


def mano_record(hands: Hands, side: int) -> dict[str, list[float]]:
    """One hand as the files have it: pose (48), shape (10), trans (3) in metres; every number a float32."""
    pose = np.concatenate((hands.global_orient[side], hands.hand_pose[side].reshape(-1)))
    parts = {"pose": pose, "shape": hands.betas[side], "trans": hands.transl[side]}
    return {key: value.astype(np.float32).tolist() for key, value in parts.items()}


def mano_records(hands: Hands) -> dict[str, dict[str, list[float]] | None]:
    """Both hands; None for one that is not there."""
    return {name: mano_record(hands, side) if hands.present[side] else None for side, name in enumerate(SIDES)}


def hand_type(present: np.ndarray) -> str:
    """(2,) -> right, left or interacting."""
    return "interacting" if present.all() else SIDES[int(np.argmax(present))]


def box_of(points_image: np.ndarray, extension: float = 1.0) -> np.ndarray:
    """(..., 2) px -> (4,) xywh around all points, enlarged about its centre."""
    points = points_image.reshape(-1, 2)
    return bbox_from_points(points, np.ones(len(points), bool), extension)[0]


def clip_box(box_xywh: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The part of a box within a picture of `size` (h, w)."""
    low, high = np.clip(xywh_to_xyxy(box_xywh).reshape(2, 2), 0, size[::-1])
    return np.concatenate((low, high - low))


# ---- scenes ----


def generator(plan: Plan, *numbers: int) -> np.random.Generator:
    """Random numbers of one thing: independent of how many others there are."""
    return np.random.default_rng([plan.seed, *numbers])


def sample_present(rng: np.random.Generator, both: float) -> tuple[bool, bool]:
    """Which hands there are; `both` is the share of scenes with two."""
    draw = rng.random()
    return (True, True) if draw < both else ((True, False) if draw < both + (1 - both) / 2 else (False, True))


def sized(plan: Plan, view: View) -> View:
    """The camera with pictures of the size that was asked for."""
    return scaled_view(view, plan.scale)


def photograph(
    plan: Plan,
    rng: np.random.Generator,
    backdrop: np.ndarray,
    hands: Hands,
    view: View,
    look: Look,
    noise: float,
    grey: bool = False,
) -> np.ndarray:
    """The scene as a camera with some faults gives it, (H, W, 3) uint8."""
    picture = draw_hands(backdrop, plan.rig, plan.skin, hands, view, look)
    plan.tick()
    return finish(rng, picture, noise=noise, blur=0.8 * plan.scale, grey=grey)
