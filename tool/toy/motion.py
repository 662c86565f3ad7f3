"""Hands in motion, and what a noisy estimator makes of them: for measuring steadiness without a network.

Motion is a C2 spline on SO(3) through key poses, so its true second difference is known. All arrays are numpy, hands
are an axis: right 0, left 1.
"""

from typing import NamedTuple

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation, RotationSpline

from tool.toy.scene import HandRig, sample_betas, sample_hand_pose


class Motion(NamedTuple):
    """Two hands at T times."""

    times: np.ndarray  # (T,) s
    rotations: np.ndarray  # (T, 2, 16, 3, 3), global orientation first
    wrist: np.ndarray  # (T, 2, 3) m in `cam`
    betas: np.ndarray  # (T, 2, 10)
    present: np.ndarray  # (T, 2) bool


class Noise(NamedTuple):
    """What an estimator adds. Standard deviations."""

    root: float = 4.0  # degrees
    fingers: float = 5.0  # degrees
    wrist: tuple[float, float, float] = (0.003, 0.003, 0.015)  # m
    betas: float = 0.3
    slow_share: float = 0.6  # of the variance of the betas that changes slowly
    memory: float = 0.95  # AR(1) coefficient of the slow part
    outliers: float = 0.02  # share of frames in which an outlier of one or two frames begins
    outlier: tuple[float, float, tuple[float, float, float]] = (45.0, 20.0, (0.03, 0.03, 0.1))  # root, fingers, wrist
    gaps: float = 0.02  # share of frames in which a gap of 1 to 7 frames begins


def sample_motion(rng: np.random.Generator, rig: HandRig, times: np.ndarray, key_seconds: float = 0.7) -> Motion:
    """Two hands that move through random key poses.

    Args:
        times: (T,) s from 0.
        key_seconds: between key poses; smaller is faster.
    """
    keys = np.arange(-key_seconds, times[-1] + 2 * key_seconds, key_seconds)
    rotations = np.empty((len(times), 2, 16, 3, 3))
    wrist = np.empty((len(times), 2, 3))
    for side in (0, 1):
        poses = np.stack([sample_hand_pose(rng, rig, side) for _ in keys])
        poses = poses + rig.models[side].hands_mean.reshape(15, 3)
        start = Rotation.random(random_state=int(rng.integers(2**31)))
        turns = start * Rotation.from_rotvec(rng.normal(0, 0.35, (len(keys), 3)))
        joints = [turns, *(Rotation.from_rotvec(poses[:, joint]) for joint in range(15))]
        for joint, rotation in enumerate(joints):
            rotations[:, side, joint] = RotationSpline(keys, rotation)(times).as_matrix()
        places = rng.normal(0, 0.04, (len(keys), 3)) + ((-0.1, 0.1)[side], 0, 0.8)
        wrist[:, side] = CubicSpline(keys, places)(times)
    betas = np.tile(sample_betas(rng), (len(times), 2, 1))
    return Motion(times, rotations, wrist, betas, np.ones((len(times), 2), bool))


def add_noise(rng: np.random.Generator, motion: Motion, noise: Noise | None = None) -> Motion:
    """What an estimator would report of a motion."""
    noise = noise or Noise()
    count = len(motion.times)
    spread = np.full((count, 2, 16, 1), noise.fingers)
    spread[:, :, 0] = noise.root
    offset = np.tile(np.array(noise.wrist), (count, 2, 1))
    present = motion.present.copy()
    for side in (0, 1):
        for frame in np.flatnonzero(rng.random(count) < noise.outliers):
            rows = slice(frame, frame + int(rng.integers(1, 3)))
            spread[rows, side] = np.where(np.arange(16)[:, None] == 0, noise.outlier[0], noise.outlier[1])
            offset[rows, side] = noise.outlier[2]
        for frame in np.flatnonzero(rng.random(count) < noise.gaps):
            present[frame : frame + int(rng.integers(1, 8)), side] = False
    # A rotation whose angle's root mean square is the given one has a third of its variance about each axis.
    vectors = rng.normal(0, 1, (count, 2, 16, 3)) * np.deg2rad(spread) / np.sqrt(3)
    turned = Rotation.from_matrix(motion.rotations.reshape(-1, 3, 3)) * Rotation.from_rotvec(vectors.reshape(-1, 3))
    slow = np.empty((count, 2, 10))
    slow[0] = rng.normal(0, 1, (2, 10))
    for frame in range(1, count):
        slow[frame] = noise.memory * slow[frame - 1]
        slow[frame] += np.sqrt(1 - noise.memory**2) * rng.normal(0, 1, (2, 10))
    quick = rng.normal(0, 1, slow.shape)
    betas = noise.betas * (np.sqrt(noise.slow_share) * slow + np.sqrt(1 - noise.slow_share) * quick)
    return Motion(
        motion.times,
        turned.as_matrix().reshape(motion.rotations.shape),
        motion.wrist + rng.normal(0, 1, offset.shape) * offset,
        motion.betas + betas,
        present,
    )
