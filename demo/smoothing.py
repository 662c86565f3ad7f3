"""Removes jitter from tracks without adding lag: one smoother for positions, rotations, boxes and cameras.

Everything here is a pure function of arrays. A track is sampled at time stamps, which may be uneven.

The smoothed track x of samples y with weights w minimises

    integral of w |y - x|^2 dt  +  (2 pi f)^-4  integral of |x''|^2 dt,

a cubic smoothing spline (Reinsch, "Smoothing by spline functions", 1967), which is also what a Kalman smoother of a
constant-velocity model computes. As a low-pass filter it has half gain at the frequency f and no phase shift.
"""

from typing import NamedTuple

import numpy as np
from scipy.linalg import solveh_banded

# Robust weights of a hand: an outlier is further from the smoothed track than what is usual for the hand.
REWEIGHT_ROUNDS = 2
TUKEY_SIGMAS = 3.0  # a sample further away than this many sigmas counts nothing
MIN_SIGMA = np.deg2rad(1.0)  # of a hand that hardly moves
REJECTED_BELOW = 0.1  # of its weight left: the sample is reported as rejected
MAX_RELATIVE_CONFIDENCE = 1.5  # confidence / the track's median is cut here, then squared
MAX_GAP = 0.5  # s; a longer gap inside a track is not bridged
WINDOW = 0.5  # s; a hand's presence and its pairing are decided on the median of this
HISTORY = 0.8  # s of the past that a camera's filter uses
BLOCK = 4096  # rotations that are smoothed at once; all of a long track would take several times their memory
SHORT_DELAY = 1e-3  # s; with less delay than this a camera's filter halves its frequency
MIN_STEP, MAX_STEP = 1e-3, 10.0  # s; equations of steps further apart than these would be singular in float64
_FLAT = 1e-9  # weight of the slope: with fewer than two weighted samples the smoothest curve is not unique


def smooth(values: np.ndarray, times: np.ndarray, weights: np.ndarray, cutoff: float) -> np.ndarray:
    """The curve that minimises the functional above, at the time stamps.

    Args:
        values: (T, ...) samples; rows of weight 0 may hold anything finite or not.
        times: (T,) s, rising; smaller or larger steps count as `MIN_STEP` or `MAX_STEP`.
        weights: (T,) from 0.
        cutoff: f in Hz; 0 or below returns the values as they are.

    Returns:
        (T, ...) float64. NaN everywhere if no sample has a weight.
    """
    values, times = np.asarray(values, np.float64), np.asarray(times, np.float64)
    count = len(values)
    if cutoff <= 0:
        return values.copy()
    if not np.any(weights > 0):
        return np.full_like(values, np.nan)
    known = np.where((weights > 0).reshape(-1, *[1] * (values.ndim - 1)), values, 0.0).reshape(count, -1)
    if count == 1:
        return known.reshape(values.shape)
    steps = np.clip(np.diff(times), MIN_STEP, MAX_STEP)
    span = np.empty(count)  # trapezoid rule
    span[0], span[-1], span[1:-1] = steps[0] / 2, steps[-1] / 2, (steps[:-1] + steps[1:]) / 2
    bands = np.zeros((3, count))  # upper form: bands[2] is the diagonal
    bands[2] = span * weights
    slope = _FLAT * np.max(bands[2]) / steps * np.min(steps)
    bands[2, :-1] += slope
    bands[2, 1:] += slope
    bands[1, 1:] -= slope
    if count > 2:
        # Divided second differences a, b, c of neighbours, squared, times the span and the penalty.
        a, c = 1 / (steps[:-1] * span[1:-1]), 1 / (steps[1:] * span[1:-1])
        b, factor = -(a + c), (2 * np.pi * cutoff) ** -4 * span[1:-1]
        for offset, term in ((0, a), (1, b), (2, c)):
            bands[2, offset : count - 2 + offset] += factor * term * term
        bands[1, 1:-1] += factor * a * b
        bands[1, 2:] += factor * b * c
        bands[0, 2:] += factor * a * c
    solved = solveh_banded(bands, (span * weights)[:, None] * known, check_finite=False)
    return solved.reshape(values.shape)


def project_to_rotations(matrices: np.ndarray) -> np.ndarray:
    """(..., 3, 3) -> the nearest rotations in the Frobenius norm, by SVD."""
    u, _, vt = np.linalg.svd(matrices)
    u[..., 2] *= np.linalg.det(u @ vt)[..., None]
    return u @ vt


def rotation_angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(..., 3, 3) x (..., 3, 3) -> (...) angle between rotations, radians."""
    chord = np.linalg.norm(a - b, axis=(-2, -1)) / np.sqrt(8)  # sin(angle / 2)
    return 2 * np.arcsin(np.clip(chord, 0, 1))


def confidence_weights(confidences: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Weights of a hand's samples: (confidence / the track's median)^2, 0 where the hand is missing.

    Confidences are not calibrated, so only their ratio within a track means something.

    Args:
        confidences: (T,).
        present: (T,) bool.
    """
    weights = np.zeros(len(confidences))
    if present.any():
        median = np.median(confidences[present])
        relative = confidences[present] / median if median > 0 else np.ones(int(present.sum()))
        weights[present] = np.minimum(relative, MAX_RELATIVE_CONFIDENCE) ** 2
    return weights


class SmoothRotations(NamedTuple):
    """A hand's smoothed rotations."""

    rotations: np.ndarray  # (T, K, 3, 3)
    weights: np.ndarray  # (T,) after robust reweighting, for what else is smoothed of this hand
    rejected: np.ndarray  # (T,) bool: seen, but an outlier


def smooth_rotations(rotations: np.ndarray, times: np.ndarray, weights: np.ndarray, cutoff: float) -> SmoothRotations:
    """Smooth a hand's rotations as matrices, with outliers weighted down.

    Axis-angle vectors are never averaged: through pi they fail. The nine numbers of a matrix are smoothed, then put
    back on SO(3). After each round, samples are reweighted by Tukey's biweight of the hand's RMS angle to the
    smoothed hand.

    Args:
        rotations: (T, K, 3, 3), all of one hand.
        times: (T,) s.
        weights: (T,), as from `confidence_weights`.
        cutoff: Hz; 0 or below returns the rotations as they are.
    """
    present, first = weights > 0, weights
    nothing = np.zeros(len(weights), bool)
    if cutoff <= 0 or not present.any():
        return SmoothRotations(np.array(rotations, np.float64), weights, nothing)
    result, joints = np.empty(rotations.shape), rotations.shape[1]
    block = max(1, BLOCK // len(rotations))
    for remaining in range(REWEIGHT_ROUNDS, -1, -1):
        squared_angles = np.zeros(int(present.sum()))
        for start in range(0, joints, block):
            part = slice(start, start + block)
            result[:, part] = project_to_rotations(smooth(rotations[:, part], times, weights, cutoff))
            squared_angles += (rotation_angles(result[present, part], rotations[present, part]) ** 2).sum(-1)
        away = np.sqrt(squared_angles / joints)
        sigma = max(1.4826 * np.median(away), MIN_SIGMA)
        reweighted = first.copy()
        reweighted[present] *= np.clip(1 - (away / (TUKEY_SIGMAS * sigma)) ** 2, 0, None) ** 2
        if not remaining or not np.any(reweighted > 0):
            break
        weights = reweighted
    return SmoothRotations(result, weights, present & (weights < REJECTED_BELOW * first))


def window_at(times: np.ndarray, row: int, delay: float) -> slice:
    """The rows that a camera uses for one frame."""
    tolerance = 1e-9
    first = int(np.searchsorted(times, times[row] - HISTORY - tolerance))
    return slice(first, int(np.searchsorted(times, times[row] + delay + tolerance, side="right")))


def cutoff_at(cutoff: float, delay: float) -> float:
    """The frequency of a camera's filter, Hz."""
    return cutoff / 2 if delay < SHORT_DELAY else cutoff


def running_majority(flags: np.ndarray, times: np.ndarray, window: float = WINDOW) -> np.ndarray:
    """(T,) bool -> (T,) bool: the median of the samples within `window` seconds, the sample in the middle; so that a
    hand does not blink. A tie keeps the sample's own value."""
    first = np.searchsorted(times, times - window / 2 - 1e-9)
    last = np.searchsorted(times, times + window / 2 + 1e-9, side="right")
    total = np.concatenate(([0], np.cumsum(flags)))
    votes, number = 2 * (total[last] - total[first]), last - first
    return np.where(votes == number, flags, votes > number)


def bridge_gaps(present: np.ndarray, times: np.ndarray, longest: float = MAX_GAP) -> np.ndarray:
    """(T,) bool: missing samples inside a track between two present ones at most `longest` seconds apart."""
    bridged = np.zeros(len(present), bool)
    rows = np.flatnonzero(present)
    for before, after in zip(rows[:-1], rows[1:], strict=True):
        # The gap is what is missing: from the first missing sample to the next present one.
        if after - before > 1 and times[after] - times[before + 1] <= longest + 1e-9:
            bridged[before + 1 : after] = True
    return bridged


def mean_betas(betas: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(T, 10) -> (10,): a person's shape does not change within a track."""
    return np.average(betas, axis=0, weights=weights) if weights.sum() > 0 else np.full(betas.shape[1], np.nan)
