"""The command line: the parser of all scripts, and the choices and defaults they share.

Nothing heavy is imported here, so that --help is quick, and the syntax stays within Python 3.7 for quickstart.py.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

# Where files are looked for and written unless a command names another place. Commands of a checkout use its own
# folders; those of the installed package use a folder of the user and the current one, never the installation.
HOME = Path(os.environ.get("INTERWILD_HOME") or os.path.expanduser("~/.local/share/interwild"))
if __name__.startswith("interwild."):
    MANO_FOLDER, CHECKPOINT = HOME / "mano", HOME / "snapshot_6.pth"
    DEMO_FOLDER, DATA_FOLDER, OUTPUT_FOLDER = Path("."), Path("data"), Path("output")
else:
    MANO_FOLDER = ROOT / "common" / "utils" / "human_model_files" / "mano"
    DEMO_FOLDER, DATA_FOLDER, OUTPUT_FOLDER = ROOT / "demo", ROOT / "data", ROOT / "output"
    CHECKPOINT = DEMO_FOLDER / "snapshot_6.pth"
UNTRAINED = CHECKPOINT.with_name("untrained.pth")  # what tool/make_checkpoint.py writes


def shown(path: Path) -> str:
    """A default path for --help and messages: from the checkout's root, where it lies in one."""
    return path.relative_to(ROOT).as_posix() if ROOT in path.parents else str(path)


# Trained on InterHand2.6M, MSCOCO and Re:InterHand (Mugsy cameras), the one that the published demo uses.
CHECKPOINT_URL = "https://drive.google.com/file/d/1zZy3L6zrHJtWMUEJFonqDtRG9XGHabN1"

GPU_HELP = "GPUs to use, e.g. 0, 0-3 or 0,2, or cpu, or mps for an Apple GPU (default: all CUDA GPUs, else the CPU)"
MANO_HELP = f"folder of MANO_RIGHT.pkl and MANO_LEFT.pkl (default: {shown(MANO_FOLDER)})"
SHA256_HELP = "what the checkpoint's sha256 must be; doctor prints it"
DATA_HELP = "folder of the datasets (default: data)"

# Which hands are reported; see `demo.predictor.HandPredictor.predict`.
HAND_MODES = ("both", "right", "left", "auto")
MESH_FORMATS = ("obj", "ply", "glb")
RENDERERS = ("auto", "numpy", "pytorch3d")
LOG_SERVICES = ("wandb", "mlflow")
LOG_TO_HELP = "also show the results in this service, which must be installed; offline by default"

# What OpenCV reads; used where a folder is searched for images.
IMAGE_SUFFIXES = frozenset(
    f".{suffix}" for suffix in "jpg jpeg jpe png bmp dib webp tif tiff gif jp2 avif ppm pgm pnm".split()
)

# Files that the demo reads as videos.
VIDEO_SUFFIXES = frozenset((".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi"))


class Parser(argparse.ArgumentParser):
    """Long options take `-` and `_` alike (help shows `_`), and their former names stay accepted.

    Args:
        description: printed as it is, usually the module's docstring.
        former: former name -> name, e.g. {"--out": "--output"}; help does not show them.
    """

    def __init__(self, description: str | None = None, former: dict[str, str] | None = None, **more: Any) -> None:
        more.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(description=description, **more)
        self.former = former or {}

    def standard_groups(self) -> tuple[Any, Any, Any]:
        """The groups of options that --help shows, in this order in all scripts; those of one script follow.

        Returns:
            What is read and written; how it is processed, and where; what is reported.
        """
        add = self.add_argument_group
        return add("files"), add("processing"), add("results")

    def parse_known_args(  # type: ignore[override]  # the overloads for other namespace types are not needed
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As `ArgumentParser` does it; `parse_args` calls this."""
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        return super().parse_known_args([*map(self._current, words[:end]), *words[end:]], namespace)

    def _current(self, word: str) -> str:
        if not word.startswith("--"):
            return word
        name, equals, value = word.partition("=")
        name = "--" + name[2:].replace("-", "_")
        return self.former.get(name, name) + equals + value


def sha256(text: str) -> str:
    """A sha256: 64 hexadecimal digits."""
    if len(text) != 64 or set(text.lower()) - set("0123456789abcdef"):
        raise argparse.ArgumentTypeError(f"{text} is not a sha256, which has 64 hexadecimal digits")
    return text.lower()


def within(kind: Callable[[str], Any], low: float, high: float = math.inf) -> Callable[[str], Any]:
    """The type of an option that takes a number, `kind` int or float, from `low` to `high`; NaN is refused."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not low <= value <= high:
            limits = f"below {low:g}" if high == math.inf else f"not between {low:g} and {high:g}"
            raise argparse.ArgumentTypeError(f"{text} is {limits}")
        return value

    parse.__name__ = kind.__name__  # argparse: "invalid int value: 'x'"
    return parse


count, fraction = within(int, 1), within(float, 0, 1)


def names_from(known: Iterable[str]) -> Callable[[str], list[str]]:
    """The type of an option that takes some of `known`, separated by commas: a list in the order of `known`."""

    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"there is no {name!r}; there are: {', '.join(known)}")
        return [name for name in known if name in names]

    return parse
