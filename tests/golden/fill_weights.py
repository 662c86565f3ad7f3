"""Deterministic weights from the state_dict key alone (numpy only).

fill_state_dict({key: shape}, salt=0) -> {key: float32/int64 ndarray}

`key` is the checkpoint key without 'module.'. Every tensor is drawn from
np.random.default_rng(zlib.crc32(key) + salt * 1000003), standard_normal /
uniform in float64, then cast to float32. Same key, shape and salt give the
same tensor. `shape` may be a tuple or anything with .shape.
"""

import re
import zlib

import numpy as np

# (pattern, gain of weight, bias offset) for the layers that make final estimates
HEADS = [
    (r"body_box_net\.bbox_center\.0\.", 1.3, 0.0),
    (r"body_box_net\.[rl]hand_size\.2\.", 0.6, 12.5),
    (r"hand_position_net\.conv\.0\.", 0.8, 0.0),
    (r"hand_rotation_net\.root_pose_out\.0\.", 0.15, None),
    (r"hand_rotation_net\.pose_out\.0\.", 0.06, None),
    (r"hand_rotation_net\.shape_out\.0\.", 0.30, 0.0),
    (r"hand_rotation_net\.cam_out\.0\.", 0.03, 0.0),
    (r"hand_trans_net\.fc\.0\.", 0.04, 0.0),
]
SIX_D = np.array([1.0, 0.0, 0.0, 0.0, 1.0, 0.0])


def _fan_in(key, shape):
    if re.search(r"body_box_net\.deconv\.\d+\.weight$", key):  # ConvTranspose2d (in,out,4,4), stride 2
        return shape[0] * shape[2] * shape[3] / 4.0
    return float(np.prod(shape[1:]))


def fill_tensor(key, shape, salt=0):
    shape = tuple(shape)
    rng = np.random.default_rng(zlib.crc32(key.encode()) + salt * 1000003)
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, dtype=np.int64)
    if key.endswith("running_mean"):
        return (0.05 * rng.standard_normal(shape)).astype(np.float32)
    if key.endswith("running_var"):
        return rng.uniform(0.7, 1.3, shape).astype(np.float32)
    head = next((h for h in HEADS if re.match(h[0], key)), None)
    if key.endswith("bias"):
        b = 0.1 * rng.standard_normal(shape)
        if head is not None:
            if head[2] is None:  # 6D rotation: identity + noise
                b = 0.15 * rng.standard_normal(shape) + np.tile(SIX_D, shape[0] // 6)
            else:
                b = 0.2 * b + head[2]
        return b.astype(np.float32)
    if len(shape) == 1:  # BN gamma
        residual_tail = re.search(r"layer\d\.\d+\.bn3\.weight$", key) or re.search(
            r"trans_net\.backbone\.layer\d\.\d+\.bn2\.weight$", key
        )
        g = rng.uniform(0.8, 1.2, shape) * (0.35 if residual_tail else 1.0)
        return g.astype(np.float32)
    w = rng.standard_normal(shape) * np.sqrt(2.0 / _fan_in(key, shape))
    if key == "hand_trans_net.conv.0.weight":  # its input is a 0..255 heatmap
        w *= 0.15
    if re.match(r"(body_backbone|hand_roi_net\.backbone)\.conv1\.weight", key):
        w *= 2.0
    if head is not None:  # zero-mean rows: do not respond to the common mode of the features
        w = w.reshape(shape[0], -1)
        w = (head[1] * (w - w.mean(1, keepdims=True))).reshape(shape)
    return w.astype(np.float32)


def fill_state_dict(named, salt=0):
    out = {}
    for k, s in named.items():
        assert not k.startswith("module.")
        out[k] = fill_tensor(k, getattr(s, "shape", s), salt)
    return out
