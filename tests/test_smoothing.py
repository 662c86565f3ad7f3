"""The smoother: what it minimises, what it leaves alone, and how it treats outliers, gaps and uneven time stamps."""

import numpy as np
import pytest

from demo.smoothing import (
    bridge_gaps,
    confidence_weights,
    project_to_rotations,
    rotation_angles,
    running_majority,
    smooth,
    smooth_rotations,
    window_at,
)

RNG = np.random.default_rng(0)


def rotations_about(axis: int, degrees: np.ndarray) -> np.ndarray:
    """(T,) -> (T, 1, 3, 3)."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    result = np.tile(np.eye(3), (len(degrees), 1, 1, 1))
    i, j = [k for k in range(3) if k != axis]
    result[:, 0, i, i] = result[:, 0, j, j] = cos
    result[:, 0, i, j], result[:, 0, j, i] = -sin, sin
    return result


def dense_solution(values: np.ndarray, times: np.ndarray, weights: np.ndarray, cutoff: float) -> np.ndarray:
    """The same functional written with dense matrices."""
    steps, count = np.diff(times), len(times)
    span = np.concatenate(([steps[0]], steps[:-1] + steps[1:], [steps[-1]])) / 2
    second = np.zeros((count - 2, count))
    for row in range(count - 2):
        before, after = steps[row], steps[row + 1]
        second[row, row : row + 3] = np.array([1 / before, -1 / before - 1 / after, 1 / after]) * 2 / (before + after)
    penalty = (2 * np.pi * cutoff) ** -4 * second.T @ np.diag(span[1:-1]) @ second
    data = np.diag(span * weights)
    return np.linalg.solve(data + penalty, data @ values)


def test_it_minimises_the_functional() -> None:
    times = np.cumsum(RNG.uniform(0.01, 0.1, 60))
    weights = RNG.uniform(0, 1.5, 60) * (RNG.random(60) > 0.2)
    values = RNG.standard_normal((60, 4))
    assert np.abs(smooth(values, times, weights, 2.0) - dense_solution(values, times, weights, 2.0)).max() < 1e-6


def test_a_straight_line_stays_and_a_gap_is_bridged_by_it() -> None:
    times = np.cumsum(RNG.uniform(0.01, 0.1, 40))
    values = np.stack((3 * times - 1, np.full(40, 7.0)), 1)
    weights = np.ones(40)
    weights[10:15] = 0
    broken = values.copy()
    broken[10:15] = np.nan
    np.testing.assert_allclose(smooth(broken, times, weights, 3.0), values, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_short_tracks(count: int) -> None:
    values = np.arange(count, dtype=float)[:, None]
    np.testing.assert_allclose(smooth(values, np.arange(count) / 30, np.ones(count), 3.0), values, atol=1e-6)


def test_one_weighted_sample_gives_a_constant() -> None:
    weights = np.zeros(30)
    weights[7] = 1
    result = smooth(np.full((30, 1), 5.0), np.arange(30) / 30, weights, 3.0)
    np.testing.assert_allclose(result, 5.0, rtol=1e-3)


def test_no_weighted_sample_gives_nan() -> None:
    assert np.isnan(smooth(np.ones((5, 2)), np.arange(5) / 30, np.zeros(5), 3.0)).all()


def test_half_gain_at_the_cutoff_and_no_lag() -> None:
    times = np.arange(3000) / 100
    for frequency in (0.5, 3.0, 10.0):
        wave = np.exp(2j * np.pi * frequency * times)
        result = smooth(np.stack((wave.real, wave.imag), 1), times, np.ones(3000), 3.0)[1000:2000]
        gain = np.mean((result[:, 0] + 1j * result[:, 1]) / wave[1000:2000])
        expected = 1 / (1 + (frequency / 3.0) ** 4)
        assert abs(gain.real - expected) < 0.02 and abs(gain.imag) < 1e-3


def test_zero_switches_it_off() -> None:
    values = RNG.standard_normal((9, 2))
    np.testing.assert_array_equal(smooth(values, np.arange(9.0), np.ones(9), 0), values)
    rotations = rotations_about(0, np.arange(9.0) * 40)
    np.testing.assert_array_equal(smooth_rotations(rotations, np.arange(9.0), np.ones(9), 0).rotations, rotations)


def test_rotations_pass_through_half_a_turn() -> None:
    """Where axis-angle vectors jump from pi to -pi, matrices do not."""
    times = np.arange(90) / 30
    degrees = 120 + 40 * times  # through 180
    noisy = rotations_about(2, degrees + RNG.normal(0, 4, 90))
    result = smooth_rotations(noisy, times, np.ones(90), 2.0).rotations
    assert np.rad2deg(rotation_angles(result, rotations_about(2, degrees))).max() < 5
    np.testing.assert_allclose(np.linalg.det(result), 1, atol=1e-9)


def test_an_outlier_is_rejected_and_leaves_no_trace() -> None:
    times = np.arange(60) / 30
    true = rotations_about(1, 20 * np.sin(2 * np.pi * 0.5 * times))
    noisy = true @ rotations_about(0, RNG.normal(0, 3, 60))
    noisy[30:32] = rotations_about(0, np.array([70.0, 80.0]))
    result = smooth_rotations(noisy, times, np.ones(60), 3.0)
    assert result.rejected[30:32].all() and result.rejected.sum() <= 4
    assert np.rad2deg(rotation_angles(result.rotations, true))[30:32].max() < 4


def test_projection_gives_rotations() -> None:
    result = project_to_rotations(RNG.standard_normal((50, 3, 3)))
    np.testing.assert_allclose(result @ result.transpose(0, 2, 1), np.tile(np.eye(3), (50, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(result), 1)


def test_confidences_count_by_their_ratio() -> None:
    """The same track with confidences a thousand times smaller has the same weights."""
    confidences, present = RNG.uniform(0.5, 1, 20), RNG.random(20) > 0.3
    weights = confidence_weights(confidences, present)
    np.testing.assert_allclose(weights, confidence_weights(confidences * 1e-3, present))
    assert (weights[~present] == 0).all() and weights.max() <= 1.5**2
    assert (confidence_weights(np.zeros(20), present)[present] == 1).all()


def test_a_camera_sees_only_its_window() -> None:
    times = np.arange(120) / 30
    values = RNG.standard_normal((120, 2))
    changed = values.copy()
    changed[70:] += 100

    def smoothed(values: np.ndarray) -> np.ndarray:
        windows = [(row, window_at(times, row, 0.14)) for row in range(120)]
        return np.array([smooth(values[at], times[at], np.ones(120)[at], 3.0)[row - at.start] for row, at in windows])

    before, after = smoothed(values), smoothed(changed)
    np.testing.assert_array_equal(before[:65], after[:65])
    assert np.abs(before[67:70] - after[67:70]).min() > 0.1


def test_presence_does_not_blink() -> None:
    times = np.arange(30) / 30
    flags = np.ones(30, bool)
    flags[[7, 8, 20]] = False
    assert running_majority(flags, times).all()
    assert not running_majority(~flags, times).any()


def test_short_gaps_inside_a_track_are_bridged() -> None:
    times = np.arange(100) / 30
    present = np.ones(100, bool)
    present[:5] = present[20:30] = present[50:80] = False
    bridged = bridge_gaps(present, times)
    assert bridged[20:30].all() and bridged.sum() == 10
