"""Two interacting hands in 3D from one photo, as one package.

    from interwild import HandPredictor

    predictor = HandPredictor.load("snapshot_6.pth", mano="mano")
    photo = predictor("photo.jpg")

The code stands in `interwild.common`, `interwild.data`, `interwild.main`, `interwild.demo` and `interwild.tool`. In a
checkout they are the folders beside this one, and `setup.py` copies them below it.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Command `interwild-NAME` -> the module whose `main` it runs, below the package or the checkout.
COMMANDS = {
    "demo": "demo.demo",
    "web": "demo.web",
    "train": "main.train",
    "test": "main.test",
    "doctor": "tool.doctor",
    "export": "tool.export",
    "standin": "tool.make_standin_hand",
}
PREFIX = "interwild."
PREDICTOR = "demo.predictor"
__all__ = ["Hand", "HandPredictor", "PhotoHands"]  # see __init__.pyi


def __getattr__(name: str) -> Any:
    """Import what `__all__` names when it is used: PyTorch takes seconds, and `interwild-demo --help` needs none."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(PREFIX + PREDICTOR), name)
