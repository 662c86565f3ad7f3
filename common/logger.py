"""What a training writes down: a text log, the losses of each step as JSON lines, and TensorBoard."""

import json
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common.drawing.charts import training_curve
from common.errors import UserError, error_context
from common.run_record import TensorBoard, open_boards
from common.utils.files import atomic_write, make_folder, write_image

BOARD_EVERY = 10  # steps
TURNED = 120.0  # degrees; no joint of a hand bends that far


class TrainLog:
    """Writes into a folder and shows the progress. When a training resumes, steps logged from there on are removed.

        train.txt       what is printed, with the time
        losses.jsonl    one line per step: epoch, step, lr, total, every term, ...
        validation.jsonl    one line per validation: epoch, step, loss, mpvpe (mm)
        curve.png       both, at the end
        tensorboard/    the same, every `BOARD_EVERY` steps, and the record
        wandb/, mlflow.db   the same, with `service`

    Args:
        folder: made if missing.
        start: (epoch, step) of the first step to be written.
        steps_per_epoch: to number all steps.
        record: of the run, see `common.run_record.run_record`.
        service: of `LOG_SERVICES`.

    Raises:
        UserError: a file cannot be written, here and in all methods; losses.jsonl is not of a training; or the
            service is not installed.
    """

    def __init__(
        self,
        folder: Path,
        start: tuple[int, int],
        steps_per_epoch: int,
        record: Mapping[str, Any] | None = None,
        service: str | None = None,
    ) -> None:
        make_folder(folder)
        self.steps_per_epoch = steps_per_epoch
        self._folder = folder
        text, losses, self._validation = folder / "train.txt", folder / "losses.jsonl", folder / "validation.jsonl"
        for path in (text, losses, self._validation):
            if path.exists() and not path.is_file():  # to open a pipe might never end
                raise UserError(f"{path} is not a file; move it away, or choose another --output")
        for path in (losses, self._validation):
            _remove_steps_from(start, path)
        # UnicodeEncodeError: TensorBoard takes no folder whose name is not text.
        with error_context(f"cannot write into {folder}", UnicodeEncodeError, advice="choose another --output"):
            self._text = open(text, "a", encoding="utf-8", errors="backslashreplace")
            self._losses = open(losses, "a", encoding="utf-8")
            self._boards = open_boards(folder, record or {}, service, self._number(start))
        self._bar: tqdm | None = None
        self._begun = self._waited = 0.0

    def say(self, text: str) -> None:
        """Print a line, above the progress bar if there is one, and write it into the log."""
        tqdm.write(text, file=sys.stderr)
        with _writing(self._text.name):
            self._text.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
            self._text.flush()

    def start_epoch(self, at: tuple[int, int]) -> None:
        """Show the progress of an epoch from a step on."""
        epoch, step = at
        self._bar = tqdm(
            total=self.steps_per_epoch,
            initial=step,
            desc=f"epoch {epoch}",
            unit="step",
            dynamic_ncols=True,
            leave=False,
        )
        self._begun, self._waited = time.monotonic(), 0.0

    def step(self, at: tuple[int, int], values: dict[str, Any], waited: float) -> None:
        """Write the numbers of a step.

        Args:
            at: epoch and step.
            values: `total` among them; None for what is not finite.
            waited: seconds spent waiting for the data.
        """
        epoch, step = at
        with _writing(self._losses.name):
            self._losses.write(json.dumps({"epoch": epoch, "step": step, **values}) + "\n")
            self._losses.flush()
        if self._number(at) % BOARD_EVERY == 0:
            self._scalars("train", values, at)
        if self._bar is None:
            return
        self._waited += waited
        took = time.monotonic() - self._begun
        waiting = f"{self._waited / took:.0%} of the time waiting for data"
        self._bar.set_postfix_str(f"loss {values['total']:.3f}, {waiting}", refresh=False)
        self._bar.update()
        if step + 1 == self.steps_per_epoch:
            self._bar.close()
            self.say(f"epoch {epoch}: {took:.0f} s, {waiting}; last loss {values['total']:.3f}")

    def image(self, at: tuple[int, int], image_rgb: np.ndarray) -> None:
        """Show (H, W, 3) uint8 in TensorBoard."""
        for board in self._boards:
            if isinstance(board, TensorBoard):
                with _writing("the TensorBoard log"):
                    board.image("train/predictions", image_rgb, self._number(at))

    def validation(self, at: tuple[int, int], values: dict[str, float]) -> None:
        """Write the errors on held-out samples after a step; `loss` and `mpvpe` (mm) among them."""
        epoch, step = at
        with _writing(self._validation.name), open(self._validation, "a", encoding="utf-8") as file:
            file.write(json.dumps({"epoch": epoch, "step": step, **values}) + "\n")
        self._scalars("validation", values, at)
        self.say(f"epoch {epoch}, step {step}: held-out loss {values['loss']:.3f}, MPVPE {values['mpvpe']:.1f} mm")

    def draw_curve(self) -> None:
        """Write `curve.png`: losses and held-out errors over the steps."""
        tables = []
        for path, names in ((self._folder / "losses.jsonl", ("total",)), (self._validation, ("loss", "mpvpe"))):
            with error_context(f"cannot read {path}"):
                lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            steps = [self._number((line["epoch"], line["step"])) for line in lines]
            tables.append(np.array([steps, *([line[name] for line in lines] for name in names)], np.float64))
        write_image(self._folder / "curve.png", training_curve(*tables))

    def joint_angles(self, at: tuple[int, int], degrees: dict[str, float]) -> None:
        """Show each joint's mean predicted angle over an epoch, and name those beyond `TURNED`."""
        self._scalars("joint_angle", degrees, at)
        turned = {name: angle for name, angle in degrees.items() if angle > TURNED}
        if turned:
            names = ", ".join(f"{name} ({angle:.0f})" for name, angle in turned.items())
            self.say(
                f"warning: joints turned by more than {TURNED:.0f} degrees on average in epoch {at[0]}: {names}; few "
                'recover: see "Fingers turned by half a turn" in docs/reproducing.md'
            )

    def close(self) -> None:
        """Write what is still in memory."""
        if self._bar is not None:
            self._bar.close()
        with _writing(self._losses.name):
            self._text.close()
            self._losses.close()
            for board in self._boards:
                board.close()

    def _scalars(self, group: str, values: Mapping[str, float | None], at: tuple[int, int]) -> None:
        known = {f"{group}/{name}": value for name, value in values.items() if value is not None}
        for board in self._boards:
            with _writing(f"the {type(board).__name__} log"):
                board.scalars(known, self._number(at))

    def _number(self, at: tuple[int, int]) -> int:
        """A step's number over all epochs."""
        return at[0] * self.steps_per_epoch + at[1]


def _writing(what: str) -> AbstractContextManager[None]:
    return error_context(f"cannot write {what}", advice="free some space, then resume with --continue")


def _remove_steps_from(start: tuple[int, int], path: Path) -> None:
    """Keep the lines of steps before `start`; a last line that a kill cut short is removed, too."""
    if not path.exists():
        return
    with error_context(f"cannot read {path}", UnicodeDecodeError, advice="move it away"):
        lines = path.read_text(encoding="utf-8").splitlines()
    positions = [_position(line) for line in lines]
    if None in positions[:-1]:
        number = positions.index(None) + 1
        raise UserError(f"line {number} of {path} is not of a step of a training; move the file away")
    kept = [line for line, at in zip(lines, positions, strict=True) if at and at < start]
    if len(kept) < len(lines) or not lines:
        atomic_write(path, "".join(f"{line}\n" for line in kept).encode())


def _position(line: str) -> tuple[int, int] | None:
    """(epoch, step) of a line, if it has them."""
    try:
        values = json.loads(line)
        epoch, step = values["epoch"], values["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return (epoch, step) if type(epoch) is int and type(step) is int else None
