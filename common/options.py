"""Choices, defaults and kinds of numbers that command lines offer.

Nothing heavy is imported here, so that --help answers at once, and nothing that an older Python does not understand.
"""

import argparse
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Where the MANO files belong unless a command is told otherwise.
MANO_FOLDER = ROOT / "common" / "utils" / "human_model_files" / "mano"

GPU_HELP = "GPUs to use, e.g. 0, 0-3 or 0,2; cpu for none (default: all there are, else the CPU)"

# Which hands are reported; see `demo.predictor.HandPredictor.predict`.
HAND_MODES = ("both", "right", "left", "auto")
MESH_FORMATS = ("obj", "ply", "glb")
RENDERERS = ("auto", "numpy", "pytorch3d")

# What OpenCV reads; used where a folder is searched for images.
IMAGE_SUFFIXES = frozenset(
    f".{suffix}" for suffix in "jpg jpeg jpe png bmp dib webp tif tiff gif jp2 avif ppm pgm pnm".split()
)


def count(text: str) -> int:
    """A whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value
