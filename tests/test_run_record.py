"""The record of a run, and the services that show its results."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_train import run, toy  # noqa: F401 - a fixture

from common import run_record
from common.errors import UserError
from common.logger import TrainLog
from main import test as test_program
from main.config import config_to_dict
from main.options import preset_config

pytest.importorskip("tensorboard")


def events(folder: Path) -> Any:
    """What TensorBoard reads from a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def test_a_training_and_its_test_leave_their_record(
    toy: Path,  # noqa: F811 - the fixture
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """run.json has an entry for each start; TensorBoard shows the latest, and a test's results at its epoch."""
    assert run(toy, tmp_path, "--end_epoch", "1") == 0
    assert run(toy, tmp_path, "--end_epoch", "2", "--continue") == 0
    first, second = json.loads((tmp_path / "run.json").read_text())["starts"]
    assert first["samples"] == {"InterHand26M": 4, "MSCOCO": 4} and first["config"]["end_epoch"] == 1
    assert first["data"]["generated"] == ["InterHand26M", "MSCOCO"] and first["options"]["processes"] == 1
    assert first["versions"]["torch"] == torch.__version__ and first["resumed_from"] is None
    assert second["resumed_from"].endswith("snapshot_0.pth") and second["config"]["end_epoch"] == 2
    shown = events(tmp_path / "log" / "tensorboard")
    assert '"end_epoch": 2' in shown.Tensors("run/text_summary")[-1].tensor_proto.string_val[0].decode()

    assert run(toy, tmp_path, "--end_epoch", "1", "--overwrite") == 0
    assert len(json.loads((tmp_path / "run.json").read_text())["starts"]) == 1

    arguments = ["--gpu", "cpu", "--mano", toy / "mano", "--data", toy / "data", "--output", tmp_path]
    monkeypatch.setattr(sys, "argv", ["test.py", *map(str, arguments), "--test_epoch", "0", "--testset", "MSCOCO"])
    assert test_program.main() == 0
    shown = events(tmp_path / "result" / "tensorboard")
    written = json.loads((tmp_path / "result" / "MSCOCO_0.json").read_text())["metrics"]
    tag = next(tag for tag in shown.Tags()["scalars"] if tag.startswith("MSCOCO/"))
    (point,) = shown.Scalars(tag)
    assert point.step == 0 and point.value == pytest.approx(written[tag.removeprefix("MSCOCO/")], rel=1e-6)
    assert '"testset": "MSCOCO"' in shown.Tensors("run/text_summary")[0].tensor_proto.string_val[0].decode()


def test_the_git_state_is_of_this_checkout_alone(tmp_path: Path) -> None:
    """A package in a virtual environment inside someone's repository must not report that repository."""
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b")
    for command in (("init", "-q"), ("commit", "-q", "--allow-empty", "-m", "one")):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    (tmp_path / "site-packages").mkdir()
    assert run_record.git_state(tmp_path / "site-packages") is None
    (tmp_path / "a file").write_text("1")
    subprocess.run([*git, "add", "a file"], cwd=tmp_path, check=True)
    state = run_record.git_state(tmp_path)
    assert state and len(state["commit"]) == 40 and [name.strip('"') for name in state["changed"]] == ["a file"]
    (tmp_path / ".git" / "HEAD").unlink()
    assert run_record.git_state(tmp_path) is None


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_service_gets_the_record_and_the_numbers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Imported only when asked for, offline, on steps that TensorBoard gets too; absent, it is one line."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"--log_to {name} needs the package {name}: pip install {name}"):
        run_record.import_service(name)
    calls: list[tuple[str, Any]] = []

    def note(what: str) -> Any:
        return lambda *values, **more: calls.append((what, {**dict(enumerate(values)), **more})) or fake

    names = ("init", "log", "finish", "set_tracking_uri", "set_experiment", "start_run", "log_params", "log_metrics",
             "end_run")  # fmt: skip
    fake = SimpleNamespace(**{method: note(method) for method in names})
    monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    record = run_record.run_record(config_to_dict(preset_config("small")), {}, torch.device("cpu"))
    log = TrainLog(tmp_path, (0, 0), 100, record, name)
    for step in range(11):
        log.step((0, step), {"total": 1.0 + step, "a (b)": None}, 0.0)
    log.close()
    by_name = {what: [values for other, values in calls if other == what] for what, _ in calls}
    if name == "wandb":
        assert os.environ["WANDB_MODE"] == "offline" and by_name["init"][0]["config"] == record
        assert [call[0] for call in by_name["log"]] == [
            {"train/total": 1.0, "step": 0}, {"train/total": 11.0, "step": 10},
        ]  # fmt: skip
        assert len(by_name["finish"]) == 1
    else:
        assert (
            by_name["set_tracking_uri"][0][0].startswith("sqlite:///")
            and by_name["log_params"][0][0]["lr"] == record["config"]["lr"]
        )
        assert [(call[0], call["step"]) for call in by_name["log_metrics"]] == [
            ({"train/total": 1.0}, 0), ({"train/total": 11.0}, 10),
        ]  # fmt: skip
        assert len(by_name["end_run"]) == 1
