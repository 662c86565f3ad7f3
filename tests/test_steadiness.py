"""Steadiness without a network: hands in motion, an estimator's noise with outliers and gaps, and the smoother."""

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from common.nets.mano import TwoHandMano, to_wrist
from common.nets.mano_files import read_hand_models
from common.types import ManoParams
from demo.smoothing import confidence_weights, mean_betas, smooth, smooth_rotations
from tool.toy.motion import Motion, add_noise, sample_motion
from tool.toy.scene import build_rig
from tool.toy.standin_hand import write_standin

CUTOFF = 3.0  # Hz, the default of --smooth


def pose(motion: Motion, mano: TwoHandMano) -> tuple[np.ndarray, np.ndarray]:
    """vertices_rel (T, 2, V, 3) and joints_cam (T, 2, J, 3), m."""
    vectors = Rotation.from_matrix(motion.rotations.reshape(-1, 3, 3)).as_rotvec().reshape(*motion.rotations.shape[:4])
    rotations = torch.from_numpy(vectors).float()
    params = ManoParams(
        rotations[:, :, 0], rotations[:, :, 1:] - mano.hands_mean, torch.from_numpy(motion.betas).float()
    )
    with torch.inference_mode():
        vertices, joints = to_wrist(*mano(params))
    return vertices.numpy(), joints.numpy() + motion.wrist[:, :, None]


def smooth_motion(noisy: Motion) -> Motion:
    rotations, wrist, betas = (x.copy() for x in (noisy.rotations, noisy.wrist, noisy.betas))
    for side in (0, 1):
        weights = confidence_weights(np.ones(len(noisy.times)), noisy.present[:, side])
        rotations[:, side], weights, _ = smooth_rotations(noisy.rotations[:, side], noisy.times, weights, CUTOFF)
        wrist[:, side] = smooth(noisy.wrist[:, side], noisy.times, weights, CUTOFF)
        betas[:, side] = mean_betas(noisy.betas[:, side], weights)
    return noisy._replace(rotations=rotations, wrist=wrist, betas=betas)


def errors(motion: Motion, true: Motion, seen: np.ndarray, mano: TwoHandMano) -> tuple[float, float]:
    """Acceleration error of the joints, mm / frame^2, and MPVPE, mm."""
    (vertices, joints), (true_vertices, true_joints) = pose(motion, mano), pose(true, mano)
    acceleration = np.linalg.norm(np.diff(joints - true_joints, 2, axis=0), axis=-1)
    inside = seen[:-2] & seen[1:-1] & seen[2:]
    vertex_error = np.linalg.norm(vertices - true_vertices, axis=-1).mean(-1)
    return float(acceleration[inside].mean() * 1000), float(vertex_error[seen].mean() * 1000)


def test_a_track_is_thirty_times_steadier_and_nearer_to_the_truth(tmp_path) -> None:
    write_standin(tmp_path)
    rig = build_rig(read_hand_models(tmp_path))
    rng = np.random.default_rng(0)
    true = sample_motion(rng, rig, np.arange(300) / 30)
    noisy = add_noise(rng, true)
    raw_acceleration, raw_error = errors(noisy, true, noisy.present, rig.mano)
    acceleration, error = errors(smooth_motion(noisy), true, np.ones_like(noisy.present), rig.mano)
    assert raw_acceleration > 30 and raw_error > 6, "the noise is there"
    assert acceleration <= raw_acceleration / 30 and error <= 4.5, (acceleration, raw_acceleration, error)
