"""Recover both hands from a photo without PyTorch: numpy, OpenCV and onnxruntime only.

    python docs/onnx_example.py exported/network.onnx MANO_FOLDER YOUR_PHOTO.jpg hands

Writes hands_right.obj and hands_left.obj (m, camera axes: x right, y down, z away) and hands.json. tool/export.py
writes network.onnx and network.json. The photo shows one person, roughly cropped.
"""

import json
import pickle
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

SAFE = ("dtype", "ndarray", "_reconstruct", "_frombuffer")  # of numpy, the only names that are loaded


class Stub:
    """In place of an object of chumpy or scipy, which the MANO files hold."""

    def __init__(self, *args):
        self.state = {}

    def __setstate__(self, state):
        self.state = state

    def value(self):
        s = self.state
        if "indptr" in s:  # scipy's compressed sparse columns
            dense = np.zeros(s["_shape"])
            dense[s["indices"], np.repeat(np.arange(dense.shape[1]), np.diff(s["indptr"]))] = s["data"]
            return dense
        return np.asarray(s["a"].value()).ravel()[s["idxs"]].reshape(s["preferred_shape"]) if "a" in s else s["x"]


class Reader(pickle.Unpickler):
    """Unpickling runs what a file names; here it can name arrays and stubs only."""

    def find_class(self, module, name):
        if module.startswith(("chumpy.", "scipy.sparse")):
            return Stub
        if (module.split(".")[0] == "numpy" and name in SAFE) or (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"a MANO file needs no {module}.{name}")


def read_mano(path):
    with open(path, "rb") as file:
        hand = Reader(file, encoding="latin1").load()
    return {key: value.value() if isinstance(value, Stub) else value for key, value in hand.items()}


def rotation(axis_angle):
    """(..., 3) -> (..., 3, 3), Rodrigues' formula."""
    angle = np.linalg.norm(axis_angle + 1e-12, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(axis_angle, -1, 0) / angle[..., 0, 0]
    k = np.stack([0 * x, -z, y, z, 0 * x, -x, -y, x, 0 * x], -1).reshape(*x.shape, 3, 3)
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def pose_hand(mano, global_orient, hand_pose, betas):
    """MANO: (3,), (15, 3), (10,) -> vertices (778, 3) m."""
    rotations = rotation(np.concatenate([global_orient[None], hand_pose + mano["hands_mean"].reshape(15, 3)]))
    shaped = mano["v_template"] + mano["shapedirs"][..., :10] @ betas
    posed = shaped + mano["posedirs"] @ (rotations[1:] - np.eye(3)).ravel()
    rest = mano["J_regressor"] @ shaped
    world = np.zeros((16, 4, 4))
    for joint, parent in enumerate(mano["kintree_table"][0]):
        local = np.eye(4)
        local[:3, :3] = rotations[joint]
        local[:3, 3] = rest[joint] - (rest[parent] if joint else 0)
        world[joint] = world[parent] @ local if joint else local
    world[:, :3, 3] -= np.einsum("jab,jb->ja", world[:, :3, :3], rest)  # from the rest pose
    blended = np.einsum("vj,jab->vab", mano["weights"], world[:, :3])
    return np.einsum("vab,vb->va", blended[:, :, :3], posed) + blended[:, :, 3]


def main(network, mano_folder, photo, output):
    config = json.loads(Path(network).with_suffix(".json").read_text())["config"]
    frames = config["frames"]
    (height, width), image = frames["crop"], cv2.cvtColor(cv2.imread(photo), cv2.COLOR_BGR2RGB)

    # The whole photo, brought to the crop's aspect and enlarged; whole pixels, as in demo.py.
    w, h = image.shape[1] - 1, image.shape[0] - 1
    size = np.trunc(np.array([max(w, h * width / height), max(h, w * height / width)]) * config["wild_box_extension"])
    corner = np.trunc(np.array([w, h]) / 2 - size / 2)
    scale = np.array([width, height]) / size  # of photo to crop
    image_to_crop = np.stack([[scale[0], 0, -scale[0] * corner[0]], [0, scale[1], -scale[1] * corner[1]]])
    crop = cv2.warpAffine(image.astype(np.float32), image_to_crop, (width, height)) / 255

    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    values = session.run(None, {"image_crop": crop.transpose(2, 0, 1)[None]})
    found = {output.name: value[0] for output, value in zip(session.get_outputs(), values, strict=True)}

    models = {side: read_mano(Path(mano_folder) / f"MANO_{side.upper()}.pkl") for side in ("right", "left")}
    right, left = models["right"], models["left"]
    if np.abs(left["shapedirs"][:, 0] - right["shapedirs"][:, 0]).sum() < 1:  # a mistake in the official left file
        left["shapedirs"][:, 0] *= -1
    result = {}
    for index, (side, mano) in enumerate(models.items()):
        vertices = pose_hand(mano, *(found[name][index] for name in ("global_orient", "hand_pose", "betas")))
        wrist = found["root_transl"][0] + index * found["rel_transl"]  # the left one is placed relative to the right
        vertices += wrist - right["J_regressor"][0] @ vertices
        lines = [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in vertices]
        lines += [f"f {a} {b} {c}" for a, b, c in mano["f"].astype(int) + 1]
        Path(f"{output}_{side}.obj").write_text("\n".join(lines) + "\n")
        # From cells of the hand's crop to its pixels, to the person's crop, to the photo.
        joints_hand = found["joints_hand_hm"][index, :, :2] / frames["hand_hm"][::-1] * frames["hand"][::-1]
        linear, shift = np.split(found["crop_to_hand"][index], [2], axis=1)
        joints_image = (joints_hand - shift.T) @ np.linalg.inv(linear).T / scale + corner
        result[side] = {"confidence": float(found["box_scores"][index]), "joints_image": joints_image.tolist()}
    Path(f"{output}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
