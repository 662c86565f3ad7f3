"""The stand-in hand: a sound mesh, a faithful mirror, bends like a hand, and never destroys somebody's own files."""

import os
import pickletools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import smplx
import torch

from common.errors import UserError
from common.utils.joints import FINGERS, FINGERTIP_VERTICES, MANO_JOINTS
from tool.toy import standin_hand

MIRROR = np.array([-1.0, 1.0, 1.0])
TOOL = Path(__file__).resolve().parents[1] / "tool" / "make_standin_hand.py"


@pytest.fixture(scope="module")
def hands() -> dict:
    return standin_hand.build_standin()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mano")
    standin_hand.write_standin(path)
    return path


def half_edges(faces: np.ndarray) -> np.ndarray:
    return np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).astype(int)


def edges(faces: np.ndarray) -> np.ndarray:
    return np.unique(np.sort(half_edges(faces), axis=1), axis=0)


def boundary(faces: np.ndarray) -> dict[int, int]:
    """vertex -> next vertex, over the half-edges without a twin."""
    pairs = {tuple(pair) for pair in half_edges(faces).tolist()}
    return {a: b for a, b in pairs if (b, a) not in pairs}


def capped(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    loop = boundary(faces)
    centre = vertices[list(loop)].mean(0)
    cap = [(b, a, len(vertices)) for a, b in loop.items()]
    return np.concatenate((vertices, centre[None])), np.concatenate((faces.astype(int), cap))


def volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    closed, closed_faces = capped(vertices, faces)
    a, b, c = np.moveaxis(closed[closed_faces], 1, 0)
    return float(np.einsum("fi,fi->", a, np.cross(b, c)) / 6)


def winding_numbers(points: np.ndarray, vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """1 inside, 0 outside: solid angles of the closed mesh's faces."""
    closed, closed_faces = capped(vertices, faces)
    a, b, c = np.moveaxis(closed[closed_faces][None] - points[:, None, None], 2, 0)
    la, lb, lc = (np.linalg.norm(x, axis=-1) for x in (a, b, c))
    top = (a * np.cross(b, c)).sum(-1)
    bottom = la * lb * lc + (a * b).sum(-1) * lc + (b * c).sum(-1) * la + (c * a).sum(-1) * lb
    return 2 * np.arctan2(top, bottom).sum(-1) / (4 * np.pi)


def count_crossings(vertices: np.ndarray, faces: np.ndarray) -> int:
    """How many (edge, face) pairs without a common vertex pass through each other."""
    e, f = edges(faces), faces.astype(int)
    low_e, high_e, low_f, high_f = vertices[e].min(1), vertices[e].max(1), vertices[f].min(1), vertices[f].max(1)
    near = np.ones((len(e), len(f)), bool)
    for k in range(3):
        near &= (low_e[:, None, k] <= high_f[None, :, k]) & (high_e[:, None, k] >= low_f[None, :, k])
    i, j = np.nonzero(near)
    apart = ~(e[i][:, :, None] == f[j][:, None, :]).any((1, 2))
    i, j = i[apart], j[apart]
    start, along = vertices[e[i, 0]], vertices[e[i, 1]] - vertices[e[i, 0]]
    corner = vertices[f[j, 0]]
    side1, side2 = vertices[f[j, 1]] - corner, vertices[f[j, 2]] - corner
    det = np.einsum("pi,pi->p", side1, np.cross(along, side2))
    det = np.where(np.abs(det) < 1e-18, np.nan, det)
    u = np.einsum("pi,pi->p", start - corner, np.cross(along, side2)) / det
    q = np.cross(start - corner, side1)
    w, t = np.einsum("pi,pi->p", along, q) / det, np.einsum("pi,pi->p", side2, q) / det
    return int(((u >= 0) & (w >= 0) & (u + w <= 1) & (t >= 0) & (t <= 1)).sum())


def bend(folder: Path, side: str, degrees: np.ndarray, betas: np.ndarray | None = None) -> np.ndarray:
    """(778, 3) m by smplx. `degrees` (15,): flexion of each joint on top of the flat hand."""
    model = smplx.MANO(str(folder), is_rhand=side == "right", use_pca=False, flat_hand_mean=True)
    pose = np.radians(degrees)[:, None] * standin_hand.flexion_axes(side)
    shape = torch.zeros(1, 10) if betas is None else torch.tensor(betas[None], dtype=torch.float32)
    out = model(betas=shape, hand_pose=torch.tensor(pose.reshape(1, 45), dtype=torch.float32))
    return out.vertices[0].detach().double().numpy()


def joint_slice(finger: str) -> slice:
    first = MANO_JOINTS.index(f"{finger}_1") - 1
    return slice(first, first + 3)


@pytest.mark.parametrize("side", ["right", "left"])
def test_mesh_is_one_sheet_closed_but_for_the_wrist(hands: dict, side: str) -> None:
    vertices, faces = hands[side]["v_template"], hands[side]["f"]
    assert vertices.shape == (778, 3) and faces.shape == (1538, 3) and faces.dtype == np.uint32
    assert len(np.unique(np.sort(faces, axis=1), axis=0)) == 1538
    every = half_edges(faces)
    assert len(np.unique(every, axis=0)) == len(every), "an edge is used twice in the same direction"
    assert len(edges(faces)) == 2315
    loop = boundary(faces)
    assert len(loop) == 16
    at, steps = loop[min(loop)], 1
    while at != min(loop):
        at, steps = loop[at], steps + 1
    assert steps == 16, "the open edges are not one loop"
    assert np.ptp(vertices[list(loop), 0]) < 1e-9, "the wrist's loop is not flat"
    reached = np.zeros(778, bool)
    reached[0] = True
    for _ in range(200):
        touched = reached[every].any(1)
        reached[every[touched]] = True
    assert reached.all()


def test_mesh_is_a_hand_sized_solid_facing_outward(hands: dict) -> None:
    for seed in range(3):
        hand = standin_hand.build_standin(seed)["right"]
        vertices, faces = hand["v_template"], hand["f"]
        assert 0.0002 < volume(vertices, faces) < 0.0005
        assert 0.18 < np.linalg.norm(vertices[FINGERTIP_VERTICES["Middle_4"]] - hand["J"][0]) < 0.20
        index, pinky = (hand["J"][MANO_JOINTS.index(f"{finger}_1")] for finger in ("Index", "Pinky"))
        assert 0.075 < np.linalg.norm(index - pinky) < 0.08, "the palm is too narrow or too wide"
        corners = vertices[faces.astype(int)]
        areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
        assert areas.min() > 2e-6
        lengths = np.linalg.norm(np.diff(vertices[edges(faces)], axis=1), axis=2)
        assert 0.001 < lengths.min() and lengths.max() < 0.022
        assert count_crossings(vertices, faces) == 0


def test_axes_of_the_right_hand(hands: dict) -> None:
    vertices = hands["right"]["v_template"]
    tips = {finger: vertices[FINGERTIP_VERTICES[f"{finger}_4"]] for finger in FINGERS}
    assert tips["Middle"][0] == vertices[:, 0].min()
    assert tips["Thumb"][2] > tips["Index"][2] > tips["Middle"][2] > tips["Ring"][2] > tips["Pinky"][2]
    assert tips["Thumb"][1] < tips["Index"][1], "the thumb lies on the palm's side"
    assert hands["right"]["J"][0, 0] > 0.08


@pytest.mark.parametrize("finger", FINGERS)
def test_tip_vertex_is_the_end_of_its_finger(hands: dict, finger: str) -> None:
    hand = hands["right"]
    last = MANO_JOINTS.index(f"{finger}_3")
    along = hand["J"][last] - hand["J"][last - 1]
    members = np.flatnonzero(hand["weights"][:, last] > 0.5)
    assert members[np.argmax(hand["v_template"][members] @ along)] == FINGERTIP_VERTICES[f"{finger}_4"]


def test_joints_are_regressed_from_nearby_flesh(hands: dict) -> None:
    for side in ("right", "left"):
        hand = hands[side]
        regressor = hand["J_regressor"]
        assert np.allclose(regressor.sum(1), 1) and regressor.min() >= 0
        assert ((regressor > 0).sum(1) <= 40).all()
        assert np.allclose(regressor @ hand["v_template"], hand["J"], atol=1e-12)
        assert np.allclose(winding_numbers(hand["J"], hand["v_template"], hand["f"]), 1, atol=1e-6)
        for row, joint in zip(regressor, hand["J"], strict=True):
            assert np.linalg.norm(hand["v_template"][row > 0] - joint, axis=1).max() < 0.04


def test_weights_are_convex_few_and_stay_on_their_finger(hands: dict) -> None:
    weights = hands["right"]["weights"]
    assert np.allclose(weights.sum(1), 1) and weights.min() >= 0
    assert (weights > 0).sum(1).max() <= 5
    for finger in FINGERS:
        tip = weights[FINGERTIP_VERTICES[f"{finger}_4"]]
        assert tip[MANO_JOINTS.index(f"{finger}_3")] == 1
    across = np.abs(np.diff(weights[edges(hands["right"]["f"])], axis=1))
    assert across.max() < 0.6, "weights jump along an edge"


@pytest.mark.parametrize("left_shapedirs", ["published", "repaired"])
def test_left_hand_mirrors_the_right(left_shapedirs: str) -> None:
    hands = standin_hand.build_standin(1, left_shapedirs)
    right, left = hands["right"], hands["left"]
    assert np.array_equal(left["v_template"], right["v_template"] * MIRROR)
    assert np.array_equal(left["f"], right["f"][:, [0, 2, 1]])
    difference = np.abs(left["shapedirs"][:, 0] - right["shapedirs"][:, 0]).sum()
    # Readers repair the left hand where the sum is below 1.
    if left_shapedirs == "published":
        assert difference == 0
    else:
        assert difference > 5
        assert np.array_equal(left["shapedirs"], right["shapedirs"] * MIRROR[:, None])


def test_left_hand_poses_as_a_mirror_image(folder: Path) -> None:
    degrees = np.linspace(5, 60, 15)
    right, left = bend(folder, "right", degrees), bend(folder, "left", degrees)
    assert np.abs(left - right * MIRROR).max() < 1e-6


def test_same_seed_same_bytes(hands: dict) -> None:
    again, other = standin_hand.build_standin(0), standin_hand.build_standin(1)
    for side, hand in hands.items():
        for key, value in hand.items():
            same = again[side][key]
            assert same == value if isinstance(value, str) else same.tobytes() == value.tobytes(), key
    assert not np.array_equal(other["right"]["v_template"], hands["right"]["v_template"])


@pytest.mark.parametrize("finger", FINGERS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_flexing_bends_one_finger_towards_the_palm(hands: dict, folder: Path, side: str, finger: str) -> None:
    degrees = np.zeros(15)
    degrees[joint_slice(finger)] = (20, 40, 50) if finger == "Thumb" else (60, 80, 50)
    rest, faces = hands[side]["v_template"], hands[side]["f"]
    bent = bend(folder, side, degrees)
    tips = {name: FINGERTIP_VERTICES[f"{name}_4"] for name in FINGERS}
    moved = (bent - rest)[tips[finger]]
    assert moved[1] < -0.004, "the tip does not go down to the palm's side"
    palm = rest[np.argmin(np.abs(hands[side]["weights"][:, 0] - 1) + np.abs(rest[:, 1] + 0.012) + np.abs(rest[:, 0]))]
    assert np.linalg.norm(bent[tips[finger]] - palm) < 0.75 * np.linalg.norm(rest[tips[finger]] - palm)
    for name in set(FINGERS) - {finger}:
        assert np.linalg.norm((bent - rest)[tips[name]]) < 1e-6
    pairs = edges(faces)
    ratio = np.linalg.norm(np.diff(bent[pairs], axis=1), axis=2) / np.linalg.norm(np.diff(rest[pairs], axis=1), axis=2)
    assert ratio.max() < 2.5
    assert abs(volume(bent, faces) / volume(rest, faces) - 1) < 0.05


def test_curved_joint_keeps_its_thickness(hands: dict, folder: Path) -> None:
    """The pose correctives' purpose: without them, linear blending thins a joint bent by 90 degrees."""
    hand = hands["right"]
    degrees = np.zeros(15)
    joint = MANO_JOINTS.index("Middle_2")
    degrees[joint - 1] = 90
    back = np.array([0.0, 1.0, 0.0])
    near = np.flatnonzero((hand["weights"][:, joint] > 0.3) & (hand["weights"][:, joint - 1] > 0.3))
    outer = near[np.argmax(hand["v_template"][near] @ back)]
    bent = bend(folder, "right", degrees)
    before = np.linalg.norm(hand["v_template"][outer] - hand["J"][joint])
    after = np.linalg.norm(bent[outer] - hand["J"][joint])
    assert 0.85 < after / before < 1.3


def test_shape_coefficients_give_hands(hands: dict, folder: Path) -> None:
    rest, faces = hands["right"]["v_template"], hands["right"]["f"]
    size = []
    for mode in range(10):
        for amount in (-2.0, 2.0):
            betas = np.zeros(10)
            betas[mode] = amount
            shaped = bend(folder, "right", np.zeros(15), betas)
            assert 0.0005 < np.linalg.norm(shaped - rest, axis=1).max() < 0.03, mode
            assert count_crossings(shaped, faces) == 0, mode
            if mode == 0:
                size.append(np.ptp(shaped[:, 0]) / np.ptp(rest[:, 0]))
    assert 0.88 < size[0] < 0.96 and 1.04 < size[1] < 1.12


def test_pose_space_is_orthonormal_and_the_mean_flexes_mildly(hands: dict) -> None:
    for side in ("right", "left"):
        hand = hands[side]
        assert np.allclose(hand["hands_components"] @ hand["hands_components"].T, np.eye(45))
        assert hand["hands_coeffs"].shape[1] == 45
        flexion = (hand["hands_mean"].reshape(15, 3) * standin_hand.flexion_axes(side)).sum(1)
        assert (flexion > 0).all() and np.degrees(flexion).max() < 40


def test_files_hold_arrays_and_strings_only(folder: Path) -> None:
    for name in ("MANO_RIGHT.pkl", "MANO_LEFT.pkl"):
        data = (folder / name).read_bytes()
        named = {arg for opcode, arg, _ in pickletools.genops(data) if opcode.name == "GLOBAL"}
        modules = {text.rpartition(" ")[0] for text in named}
        assert modules <= {"numpy", "numpy.core.multiarray", "numpy._core.multiarray", "_codecs"}, named
        assert data[:2] == b"\x80\x02"
        assert b"not MANO" in data
    assert sorted(path.name for path in folder.iterdir()) == ["MANO_LEFT.pkl", "MANO_RIGHT.pkl"]


def test_foreign_files_are_never_overwritten(tmp_path: Path) -> None:
    foreign = tmp_path / "MANO_LEFT.pkl"
    foreign.write_bytes(b"somebody's licensed file")
    with pytest.raises(UserError, match="MANO_LEFT.pkl is not a stand-in"):
        standin_hand.write_standin(tmp_path)
    assert foreign.read_bytes() == b"somebody's licensed file"
    assert not (tmp_path / "MANO_RIGHT.pkl").exists(), "half a pair was written"
    foreign.unlink()
    first = standin_hand.write_standin(tmp_path, seed=0)
    before = first[0].read_bytes()
    assert standin_hand.write_standin(tmp_path, seed=1) == first
    assert first[0].read_bytes() != before


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = standin_hand.write_standin(tmp_path)[0]
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        standin_hand.write_standin(tmp_path, seed=1)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2, "a temporary file was left behind"


def test_command_line(tmp_path: Path) -> None:
    command = [sys.executable, str(TOOL), "--out", str(tmp_path / "new" / "mano"), "--left-shapedirs", "repaired"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("not MANO") == 2
    (tmp_path / "new" / "mano" / "MANO_RIGHT.pkl").write_bytes(b"foreign")
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
