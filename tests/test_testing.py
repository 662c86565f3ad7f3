"""`main/test.py` end to end on the recorded datasets, with a small network."""

import csv
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from test_data_targets import recorded  # noqa: F401

from common.checkpoint import read_checkpoint
from common.distributed import launch
from common.drawing.sheets import contact_sheet, histograms
from common.errors import UserError
from main import test as script

SETS = {"HIC": 10, "InterHand26M": 11, "MSCOCO": 10, "ReInterHand": 6}  # samples


@pytest.fixture
def arguments(recorded: Path, mano_folder: Path, small_snapshot: Path, tmp_path: Path) -> list[str]:  # noqa: F811
    options = {"data": recorded / "data", "mano": mano_folder, "output": tmp_path, "checkpoint": small_snapshot}
    return ["--gpu", "cpu", "--workers", "0", *(x for k, v in options.items() for x in (f"--{k}", str(v)))]


def run(monkeypatch: pytest.MonkeyPatch, arguments: list[str], *more: str) -> int:
    monkeypatch.setattr(sys, "argv", ["test.py", *arguments, *more])
    return script.main()


def read_results(folder: Path, stem: str) -> tuple[dict, list[dict[str, str]]]:
    with open(folder / "result" / f"{stem}.csv", newline="") as file:
        return json.loads((folder / "result" / f"{stem}.json").read_text()), list(csv.DictReader(file))


@pytest.mark.parametrize("name", SETS)
def test_every_test_set(monkeypatch, arguments, tmp_path, capsys, name):
    """Figures in the published wording, the same as JSON, and a line a sample that they can be computed from."""
    run(monkeypatch, arguments, "--testset", name, "--batch_size", "4")
    printed = capsys.readouterr().out
    content, lines = read_results(tmp_path, f"{name}_6")
    assert content["samples"] == len(lines) == len({line["id"] for line in lines}) == SETS[name]
    for label, value in content["metrics"].items():
        unit = "" if label == "bbox IoU" else " mm"
        assert f"\n{label}: {value:.2f}{unit}" in printed

    def column(beginning: str) -> np.ndarray:
        values = [float(text) for line in lines for key, text in line.items() if key.startswith(beginning) and text]
        assert len(values) == content["counts"]["bbox IoU" if beginning == "box_iou" else beginning.upper()]
        return np.array(values)

    assert column("box_iou").mean() == pytest.approx(content["metrics"]["bbox IoU"], abs=1e-3)
    if name != "MSCOCO":
        assert column("mrrpe").mean() == pytest.approx(content["metrics"]["MRRPE"], abs=1e-3)


def test_processes_share_the_samples(monkeypatch, arguments, tmp_path):
    """11 samples over 2 processes, in batches of another size: each counts once, the figures are the same."""
    run(monkeypatch, arguments, "--testset", "InterHand26M")
    alone, lines = read_results(tmp_path, "InterHand26M_6")
    monkeypatch.setattr(sys, "argv", ["test.py", *arguments, "--testset", "InterHand26M", "--batch_size", "3"])
    assert launch(partial(script.run, script.parse_args()), [torch.device("cpu")] * 2) == 0
    shared, shared_lines = read_results(tmp_path, "InterHand26M_6")
    assert shared["counts"] == alone["counts"] and shared["samples"] == 11
    assert [line["id"] for line in shared_lines] == [line["id"] for line in lines]
    assert shared["metrics"] == pytest.approx(alone["metrics"], rel=1e-4)


def test_pictures(monkeypatch, arguments, tmp_path):
    """--visualize: some samples, the worst, histograms; there when asked for."""
    run(monkeypatch, arguments, "--testset", "HIC")
    assert not list((tmp_path / "result").glob("*.jpg"))
    run(monkeypatch, arguments, "--testset", "HIC", "--visualize", "3")
    for kind in ("samples.jpg", "worst.jpg", "errors.png"):
        picture = cv2.imread(str(tmp_path / "result" / f"HIC_6_{kind}"))
        assert picture is not None and picture.std() > 10


def test_the_epoch_names_the_snapshot(monkeypatch, arguments, tmp_path, small_snapshot):
    """--test_epoch takes the file that training wrote there; one that is not there is named."""
    at = arguments.index("--checkpoint")
    arguments = arguments[:at] + arguments[at + 2 :]
    with pytest.raises(UserError, match="snapshot_2.pth"):
        run(monkeypatch, arguments, "--test_epoch", "2", "--testset", "MSCOCO")
    (tmp_path / "model_dump").mkdir()
    (tmp_path / "model_dump" / "snapshot_2.pth").write_bytes(small_snapshot.read_bytes())
    run(monkeypatch, arguments, "--test_epoch", "2", "--testset", "MSCOCO")
    content, _ = read_results(tmp_path, "MSCOCO_2")
    assert content["epoch"] == 2 and content["checkpoint"].endswith("model_dump/snapshot_2.pth")


def test_a_broken_network_is_named_not_averaged(monkeypatch, arguments, tmp_path, small_snapshot):
    """NaN weights: one line that names a sample, and no file of figures."""
    content = read_checkpoint(small_snapshot)
    content["network"]["hand_trans_net.fc.0.bias"] = torch.full((3,), torch.nan)
    torch.save(content, tmp_path / "broken.pth")
    with pytest.raises(UserError, match="rel_transl of HIC .* NaN or infinite"):
        run(monkeypatch, arguments, "--checkpoint", str(tmp_path / "broken.pth"))
    assert not list((tmp_path / "result").iterdir())


def test_mistakes_are_one_line(monkeypatch, arguments, tmp_path):
    for more, message in (
        (["--testset", "HICC"], "there is no dataset 'HICC'"),
        (["--data", str(tmp_path)], "HIC.json is missing"),
        (["--batch_size", "0"], "test_batch_size must be at least 1"),
        (["--hand_backbone", "resnet50"], "does not fit this network"),
    ):
        with pytest.raises(UserError, match=message):
            run(monkeypatch, arguments, *more)
    for missing in (["test.py"], ["test.py", "--test_epoch", "6", "--visualize", "-1"]):
        monkeypatch.setattr(sys, "argv", missing)
        with pytest.raises(SystemExit) as left:
            script.main()
        assert left.value.code == 2


def test_help_answers_at_once():
    """Nothing heavy is imported for it."""
    code = (
        "import runpy, sys; sys.argv = ['test.py', '--help']\n"
        f"try: runpy.run_path({str(Path(script.__file__))!r}, run_name='__main__')\n"
        "except SystemExit: print('heavy:', sorted({'torch', 'cv2', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "--test_epoch" in done.stdout and "heavy: []" in done.stdout, done.stderr


def test_sheets_and_histograms():
    """Any number of samples makes a sheet; NaN and sets without numbers make no mark."""
    picture = np.zeros((40, 30, 3), np.uint8)
    one, three = (contact_sheet([[picture, picture]] * n, ["caption"] * n, height=80) for n in (1, 3))
    assert three.shape[1] == 2 * one.shape[1] and three.shape[0] == 2 * one.shape[0]
    assert (one == 0).all(2).sum() >= 2 * 80 * 60  # both pictures, at twice their size

    units = {"a": "mm", "b": "mm"}
    alone = histograms({"a": np.array([1.0, 2, 3])}, units)
    assert np.array_equal(alone, histograms({"a": np.array([1, np.nan, 2, 3]), "b": np.array([np.nan])}, units))
    assert histograms({"a": np.zeros(5), "b": np.ones(1)}, units).shape[1] == 2 * alone.shape[1]
    assert histograms({}, units).std() == 0
