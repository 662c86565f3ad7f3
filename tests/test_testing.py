"""`main/test.py` end to end on the recorded datasets, with a small network."""

import csv
import json
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from test_data_targets import recorded  # noqa: F401

from common import metrics
from common.checkpoint import read_checkpoint
from common.distributed import launch
from common.drawing.charts import histograms
from common.drawing.sheets import contact_sheet
from common.errors import UserError
from data.dataset import loader_workers
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
    """Results in the published wording, the same as JSON, and a line per sample that they can be computed from."""
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
    """11 samples over 2 processes, in batches of another size: each counts once, the results are the same."""
    run(monkeypatch, arguments, "--testset", "InterHand26M")
    alone, lines = read_results(tmp_path, "InterHand26M_6")
    monkeypatch.setattr(sys, "argv", ["test.py", *arguments, "--testset", "InterHand26M", "--batch_size", "3"])
    assert launch(partial(script.run, script.parse_args()), [torch.device("cpu")] * 2) == 0
    shared, shared_lines = read_results(tmp_path, "InterHand26M_6")
    assert shared["counts"] == alone["counts"] and shared["samples"] == 11
    assert [line["id"] for line in shared_lines] == [line["id"] for line in lines]
    assert shared["metrics"] == pytest.approx(alone["metrics"], rel=1e-4)


def test_images(monkeypatch, arguments, tmp_path):
    """--visualize: some samples, the worst, histograms; written only on request."""
    run(monkeypatch, arguments, "--testset", "HIC")
    assert not list((tmp_path / "result").glob("*.jpg"))
    run(monkeypatch, arguments, "--testset", "HIC", "--visualize", "3")
    for kind in ("samples.jpg", "worst.jpg", "errors.png"):
        image = cv2.imread(str(tmp_path / "result" / f"HIC_6_{kind}"))
        assert image is not None and image.std() > 10


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
    detections = json.loads((tmp_path / "result" / "MSCOCO_2_coco.json").read_bytes())
    assert len(detections) == 2 * SETS["MSCOCO"] and {entry["category_id"] for entry in detections} == {1, 2}
    assert {f"COCO box {name} (both)" for name in ("AP", "AP50", "AP75", "AR")} <= set(content["beyond_published"])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_a_broken_network_is_named_not_averaged(monkeypatch, arguments, tmp_path, small_snapshot, value):
    """Predictions that are not finite, or whose squares are not: one line that names a sample, and no results file."""
    content = read_checkpoint(small_snapshot)
    content["network"]["hand_trans_net.fc.0.bias"] = torch.full((3,), value)
    torch.save(content, tmp_path / "broken.pth")
    with pytest.raises(UserError, match="rel_transl of HIC .* NaN or infinite"):
        run(monkeypatch, arguments, "--checkpoint", str(tmp_path / "broken.pth"))
    assert not list((tmp_path / "result").iterdir())


def test_mistakes_are_one_line(monkeypatch, arguments, tmp_path):
    for more, message in (
        (["--testset", "HICC"], "there is no dataset 'HICC'"),
        (["--data", str(tmp_path)], "HIC.json is missing"),
        (["--batch_size", "0"], "test_batch_size cannot be '0': expected int >= 1"),
        (["--hand_backbone", "resnet50"], "does not fit this network"),
    ):
        with pytest.raises(UserError, match=message):
            run(monkeypatch, arguments, *more)
    for missing in (["test.py"], ["test.py", "--test_epoch", "6", "--visualize", "-1"]):
        monkeypatch.setattr(sys, "argv", missing)
        with pytest.raises(SystemExit) as left:
            script.main()
        assert left.value.code == 2


def test_results_that_are_not_finite_are_a_message(monkeypatch, arguments, tmp_path):
    """JSON has no infinity: the metric is named, and no file is written."""
    mean = metrics._mean
    monkeypatch.setattr(metrics, "_mean", lambda *given: replace(mean(*given), value=float("inf")))
    with pytest.raises(UserError, match="MRRPE.* is not finite"):
        run(monkeypatch, arguments)
    assert not list((tmp_path / "result").iterdir())


@pytest.fixture
def damaged(recorded: Path, tmp_path: Path) -> Path:  # noqa: F811
    """The datasets with one image of HIC emptied."""
    shutil.copytree(recorded / "data" / "HIC", tmp_path / "data" / "HIC")
    image = sorted((tmp_path / "data" / "HIC").rglob("*.jpg"))[0]
    image.write_bytes(b"")
    return tmp_path / "data"


@pytest.mark.parametrize("batch_size", ["1", "4"])
def test_unreadable_samples_are_left_out_on_request(monkeypatch, arguments, tmp_path, capsys, damaged, batch_size):
    """--skip_bad: named once, counted, in no average and no image; without it, or with nothing left, an error."""
    run(monkeypatch, arguments)
    whole, lines = read_results(tmp_path, "HIC_6")
    more = ["--data", str(damaged), "--batch_size", batch_size]
    with pytest.raises(UserError, match="HIC .*cannot read"):
        run(monkeypatch, arguments, *more)
    capsys.readouterr()
    run(monkeypatch, arguments, *more, "--skip-bad", "--visualize", "20")
    printed = capsys.readouterr()
    content, left = read_results(tmp_path, "HIC_6")
    assert whole["skipped"] == 0 and content["skipped"] == 1 == len(lines) - len(left)
    assert content["samples"] == len(left) and all(line["id"] in {row["id"] for row in lines} for line in left)
    assert printed.err.count("skipped HIC") == 1 and "left out: 1 of 10 samples" in printed.out
    assert (tmp_path / "result" / "HIC_6_samples.jpg").exists()
    for image in damaged.rglob("*.jpg"):
        image.write_bytes(b"")
    with pytest.raises(UserError, match="none of the 10 samples of HIC can be read"):
        run(monkeypatch, arguments, *more, "--skip_bad")


def test_help_shows_what_a_test_uses(monkeypatch, capsys):
    """No option of training; those of the whole configuration stay accepted, with - and _."""
    monkeypatch.setattr(sys, "argv", ["test.py", "--help"])
    with pytest.raises(SystemExit):
        script.parse_args()
    shown = {word.strip("[],") for word in capsys.readouterr().out.split() if word.strip("[").startswith("--")}
    assert {"--test_epoch", "--test_batch_size", "--amp", "--cam_mode", "--skip_bad"} <= shown
    assert not shown & {"--lr", "--accumulate", "--trainset_3d", "--end_epoch", "--batch_size", "--hand_backbone"}
    monkeypatch.setattr(
        sys, "argv", ["test.py", "--test-epoch=3", "--lr", "1", "--batch-size", "2", "--cam-mode", "x-y"]
    )
    args = script.parse_args()
    assert (args.test_epoch, args.config_lr, args.config_test_batch_size, args.config_cam_mode) == (3, "1", "2", "x-y")


@pytest.mark.parametrize(
    ("limit", "processes", "batches", "expected"),
    [(16, 1, 100, 8), (16, 3, 100, 2), (16, 20, 100, 1), (2, 1, 100, 2), (16, 1, 3, 3), (0, 1, 9, 0)],
)
def test_loader_workers_share_the_cores(monkeypatch, limit, processes, batches, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert loader_workers(limit, processes, batches) == expected


def test_sheets_and_histograms():
    """Any number of samples makes a sheet; NaN and sets without numbers make no mark."""
    image = np.zeros((40, 30, 3), np.uint8)
    one, two, five = (contact_sheet([[image, image]] * n, ["caption"] * n, ["a", "b"], 80) for n in (1, 2, 5))
    strip = two.shape[0] - one.shape[0]
    assert two.shape[1] == one.shape[1] and five.shape == (one.shape[0] + 2 * strip, 2 * one.shape[1], 3)
    assert (one == 0).all(2).sum() >= 2 * 80 * 60  # both images, at twice their size
    wide = contact_sheet([[image, image[:20]]], [""], ["a", "b"], 80, "a note")
    assert (wide == 0).all(2).sum() >= 80 * 60 + 40 * 60  # the second fills its place in width

    units = {"a": "mm", "b": "mm"}
    alone = histograms({"a": np.array([1.0, 2, 3])}, units)
    assert np.array_equal(alone, histograms({"a": np.array([1, np.nan, 2, 3]), "b": np.array([np.nan])}, units))
    assert histograms({"a": np.zeros(5), "b": np.ones(1)}, units).shape[1] == 2 * alone.shape[1]
    assert histograms({}, units).std() == 0
