"""Steadiness without a network: hands in motion, an estimator's noise with outliers and gaps, and the smoother."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tool.benchmarks import run as benchmark
from tool.benchmarks import video
from tool.benchmarks.video import errors, one_euro, smooth_live, smooth_motion, table_errors
from tool.toy.clip import make_clip, true_table
from tool.toy.motion import Motion, add_noise, sample_motion
from tool.toy.scene import HandRig


@pytest.fixture(scope="module")
def motion(rig: HandRig) -> tuple[Motion, Motion]:
    """True and noisy, 10 s."""
    rng = np.random.default_rng(0)
    true = sample_motion(rng, rig, np.arange(300) / 30)
    return true, add_noise(rng, true)


def test_a_track_is_thirty_times_steadier_and_nearer_to_the_truth(motion: tuple[Motion, Motion], rig: HandRig) -> None:
    true, noisy = motion
    raw_acceleration, raw_error, _ = errors(noisy, true, noisy.present, rig.mano)
    acceleration, error, lag = errors(smooth_motion(noisy), true, np.ones_like(noisy.present), rig.mano)
    assert raw_acceleration > 30 and raw_error > 6, "the noise is there"
    assert acceleration <= raw_acceleration / 30 and error <= 4.5, (acceleration, raw_acceleration, error)
    assert abs(lag) <= 0.1


@pytest.mark.parametrize(("delay", "share", "most_lag"), [(0.14, 15, 0.1), (0.0, 4, 1.2)])
def test_a_camera_is_steady_without_much_lag(
    delay: float, share: float, most_lag: float, motion: tuple[Motion, Motion], rig: HandRig
) -> None:
    true, noisy = (Motion(*(part[:90] for part in each)) for each in motion)
    raw_acceleration, raw_error, _ = errors(noisy, true, noisy.present, rig.mano)
    acceleration, error, lag = errors(smooth_live(noisy, delay), true, noisy.present, rig.mano)
    assert acceleration <= raw_acceleration / share and abs(lag) <= most_lag
    assert error <= (4.5 if delay else raw_error)


def test_the_filter_to_compare_with(motion: tuple[Motion, Motion], rig: HandRig) -> None:
    """One-Euro leaves a hand at rest alone. It smooths noise, but less than a camera's smoothing without delay."""
    true, noisy = (Motion(*(part[:90] for part in each)) for each in motion)
    still = Motion(true.times, *(np.repeat(part[:1], 90, 0) for part in true[1:]))
    for part, expected in zip(one_euro(still), still, strict=True):
        np.testing.assert_allclose(part, expected, atol=1e-6)
    raw, euro, here = (errors(each, true, noisy.present, rig.mano)
                       for each in (noisy, one_euro(noisy), smooth_live(noisy, 0.0)))  # fmt: skip
    assert here[0] < euro[0] < raw[0] / 2 and 0.5 < euro[2] < 2


def test_fast_motion_and_uneven_stamps(rig: HandRig) -> None:
    assert all(each.met for each in (*video.fast_motion(rig), *video.uneven_stamps(rig)))


def test_errors_of_a_table_that_is_the_truth_are_nothing(rig: HandRig) -> None:
    truth = true_table(make_clip("two", rig, 0.5))
    raw = {name: truth[name] for name in ("global_orient", "hand_pose", "betas", "joints_image")}
    raw["betas"] = raw["betas"] + 1
    errors_raw, errors_smoothed = table_errors(truth | {f"{name}_raw": raw[name] for name in raw}, truth, rig)
    assert max(errors_smoothed) < 1e-3 and errors_raw[2] > 1


def test_memory_is_measured_in_processes_of_their_own(standin: Path, tmp_path: Path) -> None:
    """The network that answers at once passes through the whole pipeline."""
    (row,) = video.memory(tmp_path, standin, (1, 2))
    assert 0.5 < row.value < 1.2 and "MiB" in row.detail


def test_the_command_prints_goals(
    standin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """What is measured takes long and is replaced; a missed goal is said, and with --strict the exit code is 1."""
    monkeypatch.setattr(video, "measure", lambda args: [video.row("a", 1, "mm", 2), video.row("b", 3, "mm", 2)])
    argv = ["benchmark.py", "--what", "video", "--mano", str(standin), "--output", str(tmp_path / "a.json")]
    monkeypatch.setattr(sys, "argv", argv)
    assert benchmark.main() == 0
    assert "NOT MET" in (text := capsys.readouterr().out) and "limits: 1 met, 1 not met" in text
    assert [row["met"] for row in json.loads((tmp_path / "a.json").read_text())["figures"]] == [True, False]
    monkeypatch.setattr(sys, "argv", [*argv, "--strict"])
    assert benchmark.main() == 1
