"""What a training writes down: a text log, the losses of each step as JSON lines, and TensorBoard."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.utils.files import atomic_write, make_folder

TENSORBOARD_EVERY = 10  # steps


class TrainLog:
    """Writes into a folder; a training that goes on from an earlier step takes back what was written after it.

        train.txt       what is printed, with the time
        losses.jsonl    one line a step: epoch, step, lr, total, every term, ...
        tensorboard/    the same, every so many steps

    Args:
        folder: made if missing.
        start: (epoch, step) of the first step that is going to be written.
        steps_per_epoch: to number all steps.

    Raises:
        UserError: a file cannot be written, here and in all methods.
    """

    def __init__(self, folder: Path, start: tuple[int, int], steps_per_epoch: int) -> None:
        make_folder(folder)
        self.steps_per_epoch = steps_per_epoch
        losses = folder / "losses.jsonl"
        _cut(losses, start)
        try:
            self._text = open(folder / "train.txt", "a", encoding="utf-8")  # noqa: SIM115 - open until `close`
            self._losses = open(losses, "a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise UserError(f"cannot write into {folder}: {error.strerror or error}; choose another --output") from None
        self._board = _tensorboard(folder / "tensorboard", start[0] * steps_per_epoch + start[1])

    def say(self, text: str) -> None:
        """Print a line, above a progress bar where there is one, and write it down."""
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)
        with _one_line(self._text.name):
            self._text.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
            self._text.flush()

    def step(self, epoch: int, step: int, values: dict[str, Any]) -> None:
        """Write the numbers of a step."""
        with _one_line(self._losses.name):
            self._losses.write(json.dumps({"epoch": epoch, "step": step, **values}) + "\n")
            self._losses.flush()
        at = epoch * self.steps_per_epoch + step
        if self._board and at % TENSORBOARD_EVERY == 0:
            with _one_line("the TensorBoard log"):
                for name, value in values.items():
                    if value is None:
                        continue
                    self._board.add_scalar(f"train/{name}", value, at)

    def image(self, epoch: int, step: int, picture_rgb: Any) -> None:
        """Show (H, W, 3) uint8 in TensorBoard."""
        if self._board:
            with _one_line("the TensorBoard log"):
                at = epoch * self.steps_per_epoch + step
                self._board.add_image("train/predictions", picture_rgb, at, dataformats="HWC")

    def close(self) -> None:
        """Write what is still in memory."""
        with _one_line(self._losses.name):
            self._text.close()
            self._losses.close()
            if self._board:
                self._board.close()


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Turns a failed write into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {what}: {error.strerror or error}; free some space, then go on with --continue"
        ) from None


def _cut(path: Path, start: tuple[int, int]) -> None:
    """Leave only lines of steps before `start`; a line that a kill cut short goes, too."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}; move it away") from None
    kept = [line for line in lines if _place(line) < start]
    if len(kept) < len(lines) or not lines:
        atomic_write(path, "".join(f"{line}\n" for line in kept).encode())


def _place(line: str) -> tuple[float, float]:
    """(epoch, step) of a line; of a broken one the end of all times."""
    try:
        values = json.loads(line)
        return values["epoch"], values["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf"), float("inf")


def _tensorboard(folder: Path, first_step: int) -> Any:
    """A writer, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("TensorBoard is not installed (pip install tensorboard): losses go to losses.jsonl only", file=sys.stderr)
        return None
    return SummaryWriter(str(folder), purge_step=first_step)
