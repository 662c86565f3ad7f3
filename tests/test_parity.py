"""The network gives the published system's numbers, and `tool/parity.py` notices when it does not."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from inputs import smooth_batch

from common.checkpoint import read_checkpoint
from common.errors import UserError
from tool.published import run as parity
from tool.published.comparison import Report
from tool.published.forward import compare_tensors


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inputs") / "inputs.npz"
    np.savez(path, images=smooth_batch(2, 3))
    return path


def run(monkeypatch: pytest.MonkeyPatch, golden: Path, mano: Path, snapshot: Path, inputs: Path, out: Path) -> int:
    arguments = {"golden": golden, "mano": mano, "snapshot": snapshot, "inputs": inputs, "out": out}
    monkeypatch.setattr(sys, "argv", ["parity.py", *(x for k, v in arguments.items() for x in (f"--{k}", str(v)))])
    return parity.main()


def test_forward_equals_the_published(monkeypatch, golden, mano_folder, golden_snapshot, inputs, tmp_path, capsys):
    """All 25 outputs and 28 intermediates within the published system's distance from itself."""
    code = run(monkeypatch, golden, mano_folder, golden_snapshot, inputs, tmp_path)
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "all 810 tensors of the network loaded; skipped: none" in printed
    assert "53 compared, 0 outside" in printed
    with np.load(golden / "forward_test.npz") as recorded, np.load(tmp_path / "forward_test.npz") as ours:
        assert set(recorded.files) == set(ours.files)
        worst = {key: np.abs(recorded[key] - ours[key]).max() / np.abs(recorded[key]).max() for key in recorded.files}
    assert max(worst.values()) < 1e-4, worst


def test_a_small_change_of_the_network_is_noticed(monkeypatch, golden, mano_folder, golden_snapshot, inputs, tmp_path):
    """One weight of 73 million moved: the command says so by its exit code."""
    content = torch.load(golden_snapshot, weights_only=True)
    content["network"]["module.hand_rotation_net.shape_out.0.bias"][0] += 0.01
    snapshot = tmp_path / "changed.pth"
    torch.save(content, snapshot)
    assert run(monkeypatch, golden, mano_folder, snapshot, inputs, tmp_path) == 1


def test_nan_is_outside(golden, golden_snapshot):
    """A comparison with NaN is false, which must not read as 'within'."""
    recorded = {"x": np.ones(3, np.float32)}
    assert compare_tensors("", recorded, {"x": np.array([1, np.nan, 1], np.float32)}, {})[0].outside
    assert not compare_tensors("", recorded, recorded, {})[0].outside


def test_rotations_are_compared_as_rotations():
    """An axis-angle vector and its complement the other way round are one rotation."""

    def compare_rotation(recorded: np.ndarray, ours: np.ndarray) -> Report:
        return compare_tensors("", {"root_pose": recorded}, {"root_pose": ours}, {})[0]

    vector = np.array([[0.3, -2.0, 1.0]], np.float32)
    angle = np.linalg.norm(vector)
    assert not compare_rotation(vector, vector * (1 - 2 * np.pi / angle)).outside
    assert compare_rotation(vector, -vector).outside


def test_mano_is_not_in_the_file(golden_snapshot, small_snapshot):
    """Licensed arrays never enter a checkpoint."""
    for path in (golden_snapshot, small_snapshot):
        assert not [key for key in read_checkpoint(path)["network"] if "mano" in key]


def test_missing_parts_are_named(monkeypatch, golden, mano_folder, golden_snapshot, inputs, tmp_path, capsys):
    folder = tmp_path / "results"
    folder.mkdir()
    with pytest.raises(UserError, match="forward_test.npz"):
        run(monkeypatch, folder, mano_folder, golden_snapshot, inputs, tmp_path)
    shutil.copy(golden / "forward_test.npz", folder)
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--what", "dance"])
    with pytest.raises(SystemExit):
        parity.main()
    assert "there is no 'dance'; there are: forward, loss, datasets, metrics" in capsys.readouterr().err


def test_gpus_keep_cudnn_and_full_float32(monkeypatch, golden, tmp_path):
    """`torch.backends.cudnn.flags` switches cuDNN off by default."""
    seen = []

    def part(args):
        seen.append((torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32))
        return [Report("x", 0.0, 0.0, 0.0, False)]

    monkeypatch.setitem(parity.PARTS, "forward", parity.PARTS["forward"]._replace(run=part, options=()))
    arguments = ["--golden", golden, "--mano", tmp_path, "--out", tmp_path, "--what", "forward"]
    monkeypatch.setattr(sys, "argv", ["parity.py", *map(str, arguments)])
    assert parity.main() == 0 and seen == [(True, False)]


def test_checkpoint_may_be_called_snapshot(monkeypatch):
    arguments = ["--golden", "a", "--mano", "b", "--out", "c", "--snapshot", "d.pth"]
    monkeypatch.setattr(sys, "argv", ["parity.py", *arguments])
    assert parity.parse_args().checkpoint == Path("d.pth")
