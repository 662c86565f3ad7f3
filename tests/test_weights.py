"""Which file a checkpoint is: a sum that is given must fit, and a remembered one is compared."""

import hashlib
import shutil
import sys
from pathlib import Path

import pytest

from common import weights
from common.errors import UserError
from common.weights import check_sum, remember, remembered
from demo import demo
from demo.predictor import HandPredictor
from tool.checks import doctor
from tool.checks.doctor import check_checkpoints


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(weights, "REMEMBERED", tmp_path / "home" / "weights.json")
    monkeypatch.setattr(doctor, "OUTPUT_FOLDER", tmp_path)  # no training's checkpoints
    return tmp_path / "home"


@pytest.fixture
def checkpoint(small_snapshot: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(small_snapshot, tmp_path / "snapshot_6.pth"))


def test_another_file_is_refused(checkpoint: Path, mano_folder: Path) -> None:
    right = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    HandPredictor.load(checkpoint, mano_folder, ["cpu"], sha256=right.upper())
    with pytest.raises(UserError, match=f"its sha256 is {right}"):
        HandPredictor.load(checkpoint, mano_folder, ["cpu"], sha256="0" * 64)


def test_a_changed_file_is_named(checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    check_sum(checkpoint)
    remember([checkpoint])
    check_sum(checkpoint)
    assert capsys.readouterr().err == "" and list(remembered()) == [str(checkpoint.resolve())]
    with open(checkpoint, "ab") as file:
        file.write(b"more")
    check_sum(checkpoint)
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and "is not the file it was" in warning and "doctor --remember" in warning
    remember([checkpoint])
    check_sum(checkpoint)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', "{"])
def test_a_broken_file_of_sums(home: Path, checkpoint: Path, content: str) -> None:
    home.mkdir()
    (home / "weights.json").write_text(content)
    with pytest.raises(UserError, match="weights.json.*remove it"):
        check_sum(checkpoint)


def test_the_option_is_checked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["demo.py", "--sha256", "123"])
    with pytest.raises(SystemExit):
        demo.parse_args()
    assert "64 hexadecimal digits" in capsys.readouterr().err


def test_doctor_tells_and_remembers(checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    report = check_checkpoints(checkpoint, keep=True)[0]
    sum_now = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    told = "; ".join(report.facts)
    assert f"sha256 {sum_now}" in told and "MB" in told and "epoch 6" in told
    assert "all keys fit" in told and "resnet18" in told and not report.problems
    assert remembered() == {str(checkpoint.resolve()): sum_now}
    weights.write_json(weights.REMEMBERED, {str(checkpoint.resolve()): "0" * 64})
    assert any("not the file it was" in remark for remark in check_checkpoints(checkpoint)[0].remarks)
