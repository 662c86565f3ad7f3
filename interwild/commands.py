"""The commands of the installed package."""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from common.errors import UserError, run_main
from interwild import COMMANDS, PREFIX


def run() -> None:
    """Run the command by whose name the program was started: `interwild-demo`, ..."""
    run_main(lambda: _main(Path(sys.argv[0]).stem.removeprefix("interwild-"))())


def _main(name: str) -> Callable[[], int | None]:
    try:
        return import_module(PREFIX + COMMANDS[name]).main
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("interwild"):
            raise
        raise UserError(f"interwild-{name} needs the package {error.name}: pip install 'interwild[train]'") from None
