"""What a run was: its record, and the services that show its results: TensorBoard, Weights & Biases, MLflow."""

import importlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
import torchvision

from common.errors import UserError
from common.options import LOG_SERVICES, ROOT

GIT_SECONDS = 10  # for git to answer; on a network folder it may take long
# Nothing leaves this machine unless these variables say otherwise.
OFFLINE = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


def run_record(
    config: Mapping[str, Any], samples: Mapping[str, int], device: torch.device, **more: Any
) -> dict[str, Any]:
    """What is needed to repeat a run, and to tell why two runs differ.

    Args:
        config: of the run.
        samples: name of each dataset -> how many of its samples are used.
        more: further entries.
    """
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "git": git_state(ROOT),
        "versions": versions(device),
        "samples": dict(samples),
        **more,
        "config": dict(config),
    }


def versions(device: torch.device) -> dict[str, Any]:
    """The software and hardware that results depend on, at least by rounding."""
    content = {
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "opencv": cv2.__version__,
        "numpy": np.__version__,
        "device": str(device),
    }
    if device.type == "cuda":
        content |= {
            "gpu": torch.cuda.get_device_properties(device).name,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return content


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and changed files of a checkout; None if `folder` is none, as where the package is installed."""
    if not (folder / ".git").exists():  # else git would tell of a checkout further up
        return None
    texts = []
    for command in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no")):
        try:
            done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, timeout=GIT_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode:
            return None
        texts.append(done.stdout)
    return {"commit": texts[0].strip(), "changed": [line[3:] for line in texts[1].splitlines()]}


class Board(Protocol):
    """A service that shows curves."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each curve by its name, e.g. train/total."""

    def close(self) -> None:
        """Write what is still in memory."""


class TensorBoard:
    """Event files in a folder; `record` is shown as text. `first_step` hides what an earlier run wrote from there on.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, record: Mapping[str, Any], first_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # an optional package

        self._writer = SummaryWriter(str(folder), purge_step=first_step)
        self._writer.add_text("run", f"```json\n{json.dumps(record, indent=2)}\n```", first_step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, name: str, image_rgb: np.ndarray, step: int) -> None:
        """Show (H, W, 3) uint8."""
        self._writer.add_image(name, image_rgb, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases. Writes below `folder`/wandb, which `wandb sync` uploads, unless WANDB_MODE is `online`."""

    def __init__(self, wandb: Any, folder: Path, record: Mapping[str, Any]) -> None:
        self._run = wandb.init(project="interwild", dir=str(folder), config=dict(record))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})  # its own `step` must not fall, and a resumed run may begin earlier

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """MLflow. Writes into `folder`/mlflow.db unless MLFLOW_TRACKING_URI names a server; mlflow-skinny needs one."""

    def __init__(self, mlflow: Any, folder: Path, record: Mapping[str, Any]) -> None:
        if "MLFLOW_TRACKING_URI" not in os.environ:
            mlflow.set_tracking_uri(f"sqlite:///{(folder / 'mlflow.db').resolve().as_posix()}")
        mlflow.set_experiment("interwild")
        self._mlflow = mlflow
        mlflow.start_run()
        mlflow.log_params({name: value for name, value in record.items() if name != "config"} | record["config"])

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        allowed = {re.sub(r"[^\w. :/-]", "_", name): value for name, value in values.items()}
        self._mlflow.log_metrics(allowed, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


def import_service(name: str | None) -> Any:
    """The package of --log_to, or None. Raises UserError if it is not installed."""
    if name is None:
        return None
    for variable, value in OFFLINE.items():
        os.environ.setdefault(variable, value)
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"--log_to {name} needs the package {name}: pip install {name}") from None


def open_boards(
    folder: Path, record: Mapping[str, Any], service: str | None = None, first_step: int | None = None
) -> list[Board]:
    """TensorBoard below a folder, if it is installed, and the service of --log_to, if any.

    Raises:
        UserError: the service is not installed.
    """
    assert service is None or service in LOG_SERVICES
    kinds: dict[str, Callable[..., Board]] = {"wandb": Wandb, "mlflow": MLflow}
    boards = [kinds[service](import_service(service), folder, record)] if service else []
    try:
        boards.append(TensorBoard(folder / "tensorboard", record, first_step))
    except ImportError:
        print("TensorBoard is not installed (pip install tensorboard): it will show no curves", file=sys.stderr)
    return boards
