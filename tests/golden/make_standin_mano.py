"""Write the crude stand-in hand with which the recorded figures were made (MANO_RIGHT.pkl, MANO_LEFT.pkl).

Tubes around a stick figure; fully determined by (seed, variant).

variant 'trigger': the left shapedirs keep the right hand's x component, as the published left file does, so that the
    repair of the left hand must fire.
variant 'plain': the left shapedirs are a true mirror image, and the repair must not fire.
After the (conditional) repair both variants are exact mirror images.

Also holds `lbs`, an independent numpy version of MANO's skinning.
"""

import os
import pickle  # writing only

import numpy as np
import scipy.optimize
import scipy.sparse

NV, NF = 778, 1538
PARENTS = np.array([4294967295, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14], dtype=np.uint32)
# joint order: wrist, index 1-3, middle 1-3, pinky 1-3, ring 1-3, thumb 1-3
FINGERS = {  # name: (first joint, first vertex, one past last vertex, fingertip vertex)
    "index": (1, 220, 346, 317),
    "middle": (4, 346, 461, 445),
    "ring": (10, 461, 576, 556),
    "pinky": (7, 576, 691, 673),
    "thumb": (13, 691, 778, 745),
}
BASE = {
    "index": (0.006, 0.006, 0.026),
    "middle": (0.0, 0.007, 0.004),
    "ring": (0.006, 0.006, -0.016),
    "pinky": (0.016, 0.003, -0.034),
    "thumb": (0.068, -0.006, 0.028),
}
DIR = {
    "index": (-1, 0.02, 0.10),
    "middle": (-1, 0.02, 0.0),
    "ring": (-1, 0.02, -0.08),
    "pinky": (-1, 0.02, -0.20),
    "thumb": (-0.72, -0.18, 0.67),
}
LEN = {
    "index": (0.034, 0.023, 0.021),
    "middle": (0.037, 0.026, 0.023),
    "ring": (0.033, 0.024, 0.022),
    "pinky": (0.025, 0.018, 0.018),
    "thumb": (0.036, 0.030, 0.026),
}
RADIUS = {"index": 0.0085, "middle": 0.0088, "ring": 0.0082, "pinky": 0.0070, "thumb": 0.0100}
WRIST = np.array([0.092, 0.006, 0.004])


def _frame(d):
    d = d / np.linalg.norm(d)
    u = np.cross(d, [0.0, 1.0, 0.0])
    u /= np.linalg.norm(u)
    return d, u, np.cross(d, u)


def build_right(seed):
    rng = np.random.default_rng(seed)
    v = np.zeros((NV, 3))
    w = np.zeros((NV, 16))
    J = np.zeros((16, 3))
    J[0] = WRIST
    faces = []

    # palm: 11 elliptic rings of 20 vertices from behind the wrist to the knuckles
    for k in range(220):
        r, a = divmod(k, 20)
        s = r / 10.0
        x = 0.103 - s * (0.103 + 0.002)
        half_z = 0.022 + 0.017 * np.sin(np.pi * min(1.0, 0.15 + 0.6 * s))
        half_y = 0.015 - 0.004 * s
        th = 2 * np.pi * a / 20
        v[k] = (x, 0.005 + half_y * np.sin(th), -0.004 + half_z * np.cos(th))
        w[k, 0] = 1.0
        if r:
            p, q = (r - 1) * 20 + a, (r - 1) * 20 + (a + 1) % 20
            faces += [(p, q, k), (q, r * 20 + (a + 1) % 20, k)]

    for name, (j0, lo, hi, tip) in FINGERS.items():
        d, u, n = _frame(np.array(DIR[name], float))
        L = np.array(LEN[name])
        base = np.array(BASE[name], float)
        cum = np.concatenate(([0], np.cumsum(L)))
        for i in range(3):
            J[j0 + i] = base + d * cum[i]
        ids = [k for k in range(lo, hi) if k != tip]
        nring = (len(ids) + 7) // 8
        for m, k in enumerate(ids):
            r, a = divmod(m, 8)
            s = (r + 0.5) / nring * cum[3]
            rad = RADIUS[name] * (1.05 - 0.35 * (s / cum[3]) ** 2)
            th = 2 * np.pi * (a + 0.5 * (r % 2)) / 8
            v[k] = base + d * s + rad * (np.cos(th) * u + 0.9 * np.sin(th) * n)
            if r:
                p, q = ids[m - 8], ids[(r - 1) * 8 + (a + 1) % 8]
                nxt = r * 8 + (a + 1) % 8
                faces.append((p, q, k))
                if nxt < len(ids):
                    faces.append((q, ids[nxt], k))
        v[tip] = base + d * (cum[3] + 0.6 * RADIUS[name])
        for a in range(8):
            faces.append((ids[len(ids) - 8 + a], ids[len(ids) - 8 + (a + 1) % 8], tip))
        # blend skinning weights linearly across each joint (12 mm wide)
        for k in range(lo, hi):
            s = (v[k] - base) @ d
            h = 0.012
            act = [np.clip((s - c) / h + 0.5, 0, 1) for c in cum[:3]]
            lv = [1 - act[0], act[0] * (1 - act[1]), act[1] * (1 - act[2]), act[2] * act[1]]
            lv = np.array(lv) + 1e-12
            lv[0], lv[1:] = lv[0], lv[1:]
            w[k, 0] += lv[0]
            w[k, j0 : j0 + 3] += lv[1:]
    v += rng.normal(0, 0.0004, v.shape)  # break symmetries
    w[w < 1e-6] = 0
    w /= w.sum(1, keepdims=True)

    faces = np.array(faces, dtype=np.int64)
    if len(faces) < NF:  # pad with a second (differently split) layer of palm quads
        extra = []
        for k in range(20, 220):
            r, a = divmod(k, 20)
            p, q = (r - 1) * 20 + a, (r - 1) * 20 + (a + 1) % 20
            extra.append((p, q, r * 20 + (a + 1) % 20))
        faces = np.concatenate((faces, np.array(extra)))[:NF]
    faces = faces[:NF]
    assert faces.shape == (NF, 3), faces.shape

    # J_regressor: convex weights over the 24 nearest vertices
    Jr = np.zeros((16, NV))
    for j in range(16):
        near = np.argsort(((v - J[j]) ** 2).sum(1))[:24]
        A = np.concatenate((v[near].T * 100, np.full((1, 24), 10.0)))
        sol, _ = scipy.optimize.nnls(
            np.concatenate((A, 0.05 * np.eye(24))), np.concatenate((J[j] * 100, [10.0], np.zeros(24)))
        )
        Jr[j, near] = sol / sol.sum()

    # 10 smooth shape modes: size, length, width, thickness, and random low-frequency fields
    c = v - v.mean(0)
    sd = np.zeros((NV, 3, 10))
    sd[:, :, 0] = c * 0.030
    sd[:, 0, 1] = c[:, 0] * 0.025
    sd[:, 2, 2] = c[:, 2] * 0.030
    sd[:, 1, 3] = c[:, 1] * 0.040
    for b in range(10):
        f = rng.normal(0, 22.0, (3, 3))
        ph = rng.uniform(0, 2 * np.pi, 3)
        amp = rng.normal(0, 0.0006 if b < 4 else 0.0012, 3)
        sd[:, :, b] += np.cos(c @ f + ph) * amp

    # pose blend shapes: each pose feature moves vertices near its joint
    pd = np.zeros((NV, 3, 135))
    for j in range(1, 16):
        near = np.exp(-((v - J[j]) ** 2).sum(1) / (2 * 0.015**2))
        for e in range(9):
            f = rng.normal(0, 30.0, 3)
            amp = rng.normal(0, 0.0015, 3)
            pd[:, :, (j - 1) * 9 + e] = (near * np.cos(c @ f + rng.uniform(0, 6.28)))[:, None] * amp

    mean = np.zeros((15, 3))
    mean[:, 2] = rng.uniform(0.05, 0.35, 15)  # mild flexion
    mean[:, :2] = rng.normal(0, 0.06, (15, 2))
    mean[12:] = rng.normal(0, 0.12, (3, 3))
    comps = np.linalg.qr(rng.normal(size=(45, 45)))[0]
    return {
        "v_template": v,
        "shapedirs": sd,
        "posedirs": pd,
        "weights": w,
        "Jr": Jr,
        "f": faces,
        "hands_mean": mean.reshape(45),
        "hands_components": comps,
        "hands_coeffs": rng.normal(0, 1, (10, 45)),
    }


def mirror(m, trigger_bug):
    S = np.array([-1.0, 1.0, 1.0])
    s9 = np.tile((S[:, None] * S[None, :]).reshape(9), 15)
    aa = np.tile([1.0, -1.0, -1.0], 15)
    out = dict(m)
    out["v_template"] = m["v_template"] * S
    out["shapedirs"] = m["shapedirs"] * S[None, :, None]
    if trigger_bug:
        out["shapedirs"] = m["shapedirs"].copy()
    out["posedirs"] = m["posedirs"] * S[None, :, None] * s9[None, None, :]
    out["f"] = m["f"][:, [0, 2, 1]]
    out["hands_mean"] = m["hands_mean"] * aa
    out["hands_components"] = m["hands_components"] * aa[None, :]
    return out


def to_schema(m):
    Jr = scipy.sparse.csc_matrix(m["Jr"])
    return {
        "v_template": m["v_template"].astype(np.float64),
        "shapedirs": m["shapedirs"].astype(np.float64),
        "posedirs": m["posedirs"].astype(np.float64),
        "J_regressor": Jr,
        "J": m["Jr"] @ m["v_template"],
        "weights": m["weights"].astype(np.float64),
        "kintree_table": np.stack((PARENTS, np.arange(16, dtype=np.uint32))).astype(np.uint32),
        "f": m["f"].astype(np.uint32),
        "hands_components": m["hands_components"],
        "hands_mean": m["hands_mean"],
        "hands_coeffs": m["hands_coeffs"],
        "bs_type": "lrotmin",
        "bs_style": "lbs",
    }


def write(out, seed=0, variant="trigger"):
    assert variant in ("trigger", "plain")
    os.makedirs(out, exist_ok=True)
    right = build_right(seed)
    left = mirror(right, variant == "trigger")
    for name, m in (("MANO_RIGHT.pkl", right), ("MANO_LEFT.pkl", left)):
        with open(os.path.join(out, name), "wb") as f:
            pickle.dump(to_schema(m), f, protocol=2)


def rodrigues(aa):
    aa = np.asarray(aa, float).reshape(-1, 3)
    ang = np.linalg.norm(aa, axis=1)[:, None, None] + 1e-12
    k = aa / ang[:, 0]
    K = np.zeros((len(aa), 3, 3))
    K[:, 0, 1], K[:, 0, 2] = -k[:, 2], k[:, 1]
    K[:, 1, 0], K[:, 1, 2] = k[:, 2], -k[:, 0]
    K[:, 2, 0], K[:, 2, 1] = -k[:, 1], k[:, 0]
    return np.eye(3)[None] + np.sin(ang) * K + (1 - np.cos(ang)) * (K @ K)


TIP_VERTS = {"Thumb_4": 745, "Index_4": 317, "Middle_4": 445, "Ring_4": 556, "Pinky_4": 673}
ORIG_NAMES = (
    "Wrist",
    "Index_1",
    "Index_2",
    "Index_3",
    "Middle_1",
    "Middle_2",
    "Middle_3",
    "Pinky_1",
    "Pinky_2",
    "Pinky_3",
    "Ring_1",
    "Ring_2",
    "Ring_3",
    "Thumb_1",
    "Thumb_2",
    "Thumb_3",
)


def lbs(m, pose48, shape10, trans3, flat_hand_mean=False):
    """-> (verts (778,3), joints dict name->(3,)), metres. pose48: root + 15 axis angles (mean is added to the 15)."""
    pose = np.array(pose48, float).reshape(16, 3).copy()
    if not flat_hand_mean:
        pose[1:] += m["hands_mean"].reshape(15, 3)
    vs = m["v_template"] + m["shapedirs"] @ np.asarray(shape10, float)
    J = m["Jr"] @ vs
    R = rodrigues(pose)
    vp = vs + m["posedirs"] @ (R[1:] - np.eye(3)).reshape(135)
    G = np.zeros((16, 4, 4))
    for j in range(16):
        p = int(m["kintree_table"][0, j]) if j else -1
        T = np.eye(4)
        T[:3, :3] = R[j]
        T[:3, 3] = J[j] - (J[p] if j else 0)
        G[j] = G[p] @ T if j else T
    A = G.copy()
    A[:, :3, 3] -= np.einsum("jab,jb->ja", G[:, :3, :3], J)
    T = np.einsum("vj,jab->vab", m["weights"], A)
    v = np.einsum("vab,vb->va", T[:, :3, :3], vp) + T[:, :3, 3] + np.asarray(trans3, float).reshape(1, 3)
    reg = m["Jr"] @ v
    joints = {n: reg[i] for i, n in enumerate(ORIG_NAMES)}
    for n, i in TIP_VERTS.items():
        joints[n] = v[i]
    return v, joints
