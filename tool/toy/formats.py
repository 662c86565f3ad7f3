"""What the writers of the four toy datasets share: folders that cannot harm real data, numbers, boxes, images.

A dataset is written into a hidden folder inside its own and moved into place when it is whole. `TOY_MARK` marks it as
ours and lists its files; a folder with any other file in it is left alone.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.errors import UserError
from common.types import SIDES
from common.utils.boxes import bbox_from_points, xywh_to_xyxy
from common.utils.files import atomic_write, exclusive, make_folder, write_image, write_json
from data.layouts import TOY_MARK
from tool.toy.rendering import Look, Skin, draw_hands, finish
from tool.toy.scene import HandRig, Hands, View

NEW, OLD = ".toy_partial", ".toy_old"  # folders inside a dataset's: the set being written, the set being replaced
# What a dataset's folder holds besides data: the project's own files, and what readers make of the data.
NO_DATA = (".gitkeep", "__pycache__", "cache", TOY_MARK, NEW, OLD)
HEADER = """Toy data: images of generated hands, written by tool/make_toy_data.py. These are NOT the real data.
The command replaces them only if this folder holds no other files than these (size in bytes, path):
"""


class Plan(NamedTuple):
    """What every writer gets."""

    rig: HandRig
    skin: Skin
    seed: int
    train: int  # samples
    test: int
    scale: float  # of the images' size
    variety: float  # of poses and views, 0 to 1
    tick: Callable[[], object]  # called after each image

    def random(self, *numbers: int) -> np.random.Generator:
        """Random numbers of one thing, independent of how many others there are."""
        return np.random.default_rng([self.seed, *numbers])

    def photograph(
        self, rng: np.random.Generator, backdrop: np.ndarray, hands: Hands, view: View, look: Look, noise: float,
        grey: bool = False,
    ) -> np.ndarray:  # fmt: skip
        """The scene as an imperfect camera sees it, (H, W, 3) uint8."""
        image = draw_hands(backdrop, self.rig, self.skin, hands, view, look)
        self.tick()
        return finish(rng, image, noise=noise, blur=0.8 * self.scale, grey=grey)


def check_folder(folder: Path) -> None:
    """Check that a dataset's folder may be written.

    Raises:
        UserError: it holds files that are not toy data.
    """
    known = _listed(folder) | _listed(folder / NEW)  # both, where a switch was interrupted
    files = ((path.relative_to(folder).as_posix(), path.lstat().st_size) for path in _data_files(folder))
    foreign = next((file for file in files if file not in known), None)
    if foreign:
        raise UserError(
            f"{folder} holds something else than toy data ({foreign[0]}), so it is left alone; "
            "choose another folder with --output, or move it away"
        )


@contextmanager
def toy_folder(folder: Path) -> Iterator[Path]:
    """A folder to write a dataset into. When the block ends well, its content replaces the old toy data.

    Raises:
        UserError: see `check_folder`; also if another command writes there.
    """
    check_folder(folder)
    make_folder(folder)
    problem = f"another command writes toy data into {folder}; wait for it, or choose another --output"
    with exclusive(folder.with_name(f".{folder.name}.toy_lock"), problem):  # beside the folder, which holds data alone
        _finish_switch(folder)  # of a run that was killed
        make_folder(folder / NEW)
        try:
            yield folder / NEW
            check_folder(folder)
            files = sorted(path for path in (folder / NEW).rglob("*") if path.is_file())
            lines = [f"{path.stat().st_size} {path.relative_to(folder / NEW).as_posix()}\n" for path in files]
            put(folder / NEW / TOY_MARK, HEADER + "".join(lines))
        finally:
            try:
                _finish_switch(folder)
            except BaseException:  # a signal: finish first what has begun
                _finish_switch(folder)
                raise


def _finish_switch(folder: Path) -> None:
    """Replace the old set by the new one, if that is whole; remove what is left of either.

    The new set is whole once its marker is written, and the marker moves last. Until then every file of both sets is on
    the disk, and a call that was interrupted can be repeated.
    """
    new, old = folder / NEW, folder / OLD
    if (new / TOY_MARK).exists():
        old.mkdir(exist_ok=True)
        arrived = {path.split("/")[0] for path, _ in _listed(new)} - {path.name for path in new.iterdir()}
        for entry in _entries(folder):
            if entry.name not in arrived:
                os.replace(entry, old / entry.name)
        for entry in sorted(new.iterdir(), key=lambda path: (path.name == TOY_MARK, path.name)):
            os.replace(entry, folder / entry.name)
    for leftover in (new, old):
        if leftover.exists():
            shutil.rmtree(leftover)


def _entries(folder: Path) -> list[Path]:
    """What a dataset's folder holds of data, at the top."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in entries if path.name not in NO_DATA and path.suffix != ".py"]


def _data_files(folder: Path) -> Iterator[Path]:
    for entry in _entries(folder):
        is_folder = entry.is_dir() and not entry.is_symlink()
        inside = entry.rglob("*") if is_folder else [entry]
        yield from (path for path in inside if path.is_symlink() or not path.is_dir())


def _listed(folder: Path) -> set[tuple[str, int]]:
    """Path and size of the files that a marker lists."""
    try:
        lines = (folder / TOY_MARK).read_text().splitlines()[len(HEADER.splitlines()) :]
    except (OSError, UnicodeDecodeError):
        return set()
    entries = [line.split(" ", 1) for line in lines]
    return {(entry[1], int(entry[0])) for entry in entries if len(entry) == 2 and entry[0].isdigit()}


def put(path: Path, content: Any, quality: int = 95) -> None:
    """Write a file, and make its folder: an array as an image, text as it is, anything else as JSON."""
    make_folder(path.parent)
    if isinstance(content, np.ndarray):
        write_image(path, content, quality)
    elif isinstance(content, str):
        atomic_write(path, content.encode())
    else:
        write_json(path, content)


def rounded(values: np.ndarray, digits: int) -> list:
    """Nested lists."""
    return np.round(np.asarray(values, np.float64), digits).tolist()


def mano_record(hands: Hands, side: int) -> dict[str, list[float]]:
    """One hand as the files have it: pose (48), shape (10), trans (3) in metres; every number a float32."""
    pose = np.concatenate((hands.global_orient[side], hands.hand_pose[side].reshape(-1)))
    parts = {"pose": pose, "shape": hands.betas[side], "trans": hands.transl[side]}
    return {key: value.astype(np.float32).tolist() for key, value in parts.items()}


def hand_type(present: np.ndarray) -> str:
    """(2,) -> right, left or interacting."""
    return "interacting" if present.all() else SIDES[int(np.argmax(present))]


def box_of(points_image: np.ndarray, extension: float = 1.0) -> np.ndarray:
    """(..., 2) px -> (4,) xywh around all points, enlarged about its centre."""
    points = points_image.reshape(-1, 2)
    return bbox_from_points(points, np.ones(len(points), bool), extension)[0]


def clip_box(box_xywh: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The part of a box within an image of `size` (h, w)."""
    low, high = np.clip(xywh_to_xyxy(box_xywh).reshape(2, 2), 0, size[::-1])
    return np.concatenate((low, high - low))


def sample_present(rng: np.random.Generator, both: float) -> tuple[bool, bool]:
    """Which hands there are; `both` is the share of scenes with two."""
    draw = rng.random()
    return (True, True) if draw < both else ((True, False) if draw < both + (1 - both) / 2 else (False, True))
