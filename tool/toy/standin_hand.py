"""Write a stand-in for the licensed MANO files, so that everything runs without them. It is NOT MANO.

    python tool/make_standin_hand.py [--output DIR] [--seed N] [--left_shapedirs published|repaired]

Writes MANO_RIGHT.pkl and MANO_LEFT.pkl into DIR (default: where the other commands look for MANO). A file there that
is not a stand-in is never overwritten. `--left_shapedirs published` (the default) gives the left hand's
shape modes the wrong sign in x, as in the published left file, which readers repair; `repaired` gives the right one.
Exit code: 0; 2 with one line on stderr if a file cannot be written or is not a stand-in.
"""

# The geometry is generated from rough proportions of an adult hand (`tool.toy.hand_mesh`). Weights, joints, shape modes
# and pose correctives follow from the same anatomy. Numbers measured with this hand say nothing about MANO.
#
# The left hand is the mirror image in x. For the index to the pinky of the RIGHT hand, a positive rotation about +z
# flexes; for the LEFT hand a negative one. The thumb's axes are oblique: see `flexion_axes`.

import argparse
import pickle
from pathlib import Path

import numpy as np

from common.errors import UserError, error_context
from common.options import MANO_FOLDER, Parser, shown
from common.utils.files import atomic_write, make_folder
from common.utils.joints import FINGERS, MANO_JOINTS
from tool.toy.hand_mesh import FIRST_JOINT, LONG_FINGERS, MM, Anatomy, Mesh, build_anatomy, build_mesh, surface_parts

MODEL_NAME = "stand-in hand (generated; not MANO)"
FILE_NAMES = {"right": "MANO_RIGHT.pkl", "left": "MANO_LEFT.pkl"}
PARENTS = np.array([4294967295, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14], dtype=np.uint32)
MIRROR = np.array([-1.0, 1.0, 1.0])

THUMB, INDEX, PINKY, RING = (
    list(range(FIRST_JOINT[f], FIRST_JOINT[f] + 3)) for f in ("Thumb", "Index", "Pinky", "Ring")
)
LONG, LAST, ALL = list(range(1, 13)), [3, 6, 9, 12, 15], list(range(16))
# Shape modes: which bones stretch along which of their axes (0 along, 1 sideways, 2 front to back) at what rate.
SHAPE_MODES = (
    [(ALL, [0, 1, 2], 0.035)],  # size
    [(LONG, [0], 0.035)],  # length of the fingers
    [([0], [1], 0.035), (LONG, [1], 0.015)],  # width of the palm
    [(ALL, [2], 0.045)],  # thickness
    [(THUMB, [0, 1, 2], 0.035)],  # size of the thumb
    [(ALL[1:], [1, 2], 0.045)],  # girth of the fingers
    [([0], [0], 0.03), (LONG, [0], -0.015)],  # length of the palm against that of the fingers
    [(PINKY, [0], 0.05), (RING, [0], 0.02)],  # length of the pinky and the ring finger
    [(INDEX, [0], 0.035), (RING, [0], -0.025)],  # index against ring finger
    [(ALL[1:], [1, 2], 0.02), (LAST, [1, 2], -0.05)],  # tapering fingers
)
# Degrees of flexion of a hand at rest, more so towards the pinky.
MEAN_POSE = {
    "Index": (10, 17, 9),
    "Middle": (14, 20, 11),
    "Ring": (16, 22, 12),
    "Pinky": (17, 22, 12),
    "Thumb": (4, 8, 12),
}
SPREAD = {"Index": 1.0, "Middle": 0.2, "Ring": -0.6, "Pinky": -1.2, "Thumb": 0.8}

Hand = dict[str, np.ndarray | str]


def main() -> None:
    """The command."""
    args = parse_args()
    for path in write_standin(args.output, args.seed, args.left_shapedirs):
        print(f"wrote {path}: {MODEL_NAME}")


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__, {"--out": "--output"})
    parser.add_argument(
        "--output", type=Path, default=MANO_FOLDER, help=f"folder of the two files (default: {shown(MANO_FOLDER)})"
    )
    parser.add_argument("--seed", type=int, default=0, help="varies the proportions slightly (default: 0)")
    parser.add_argument(
        "--left_shapedirs",
        choices=("published", "repaired"),
        default="published",
        help="sign of the left hand's shape modes (default: published)",
    )
    return parser.parse_args()


def build_standin(seed: int = 0, left_shapedirs: str = "published") -> dict[str, Hand]:
    """Both stand-in hands as the contents of their files: 'right' and 'left', in metres and radians.

    Args:
        seed: varies the proportions by one or two per cent and draws the example poses.
        left_shapedirs: 'published' keeps the right hand's sign of x in the left shape modes, as the published left
            file does, so that a reader has to repair it; 'repaired' holds the mirrored modes.
    """
    if left_shapedirs not in ("published", "repaired"):
        raise ValueError(f"left_shapedirs is {left_shapedirs!r}, not 'published' or 'repaired'")
    rng = np.random.default_rng(seed)
    anatomy = build_anatomy(1 + 0.012 * rng.standard_normal((len(FINGERS), 2)))
    mesh = build_mesh(anatomy)
    vertices, weights = mesh.vertices, _skinning_weights(anatomy, mesh)
    regressor = _joint_regressor(vertices, anatomy.joints)
    components, coeffs = _pose_space(anatomy, rng)
    right = {
        "model_name": MODEL_NAME,
        "v_template": vertices,  # (778, 3)
        "f": mesh.faces,  # (1538, 3) uint32
        "weights": weights,  # (778, 16)
        "J_regressor": regressor,  # (16, 778)
        "J": regressor @ vertices,
        "kintree_table": np.stack((PARENTS, np.arange(len(PARENTS), dtype=np.uint32))),
        "shapedirs": _shape_modes(anatomy, vertices, weights),
        "posedirs": _pose_correctives(anatomy, vertices, weights),
        "hands_mean": _flexion(anatomy, MEAN_POSE).reshape(-1),
        "hands_components": components,  # (45, 45)
        "hands_coeffs": coeffs,  # (N, 45)
        "bs_type": "lrotmin",
        "bs_style": "lbs",
    }
    return {"right": right, "left": _mirrored(right, left_shapedirs)}


def write_standin(folder: Path, seed: int = 0, left_shapedirs: str = "published") -> list[Path]:
    """Write MANO_RIGHT.pkl and MANO_LEFT.pkl into `folder`, which is made if missing; return the two paths.

    Only plain numpy arrays and strings are pickled. Each file is written whole or not at all, over an older stand-in.

    Raises:
        UserError: a file there is not a stand-in (then nothing is written), or cannot be written.
    """
    paths = {side: Path(folder) / name for side, name in FILE_NAMES.items()}
    with error_context(f"cannot look into {folder}"):
        foreign = [path for path in paths.values() if path.exists() and not is_standin_file(path)]
    if foreign:
        raise UserError(f"{foreign[0]} is not a stand-in, so it is left alone: choose another folder or move it away")
    hands = build_standin(seed, left_shapedirs)
    make_folder(Path(folder))
    for side, path in paths.items():
        atomic_write(path, pickle.dumps(hands[side], protocol=2))
    return list(paths.values())


def is_standin_file(path: Path) -> bool:
    """Whether a MANO file is one of this module's. Looks for the name's bytes: an unknown pickle is never loaded."""
    return MODEL_NAME.encode() in Path(path).read_bytes()


def flexion_axes(side: str = "right") -> np.ndarray:
    """(15, 3) unit axes, in the hand's own axes and MANO's joint order, about which a positive angle flexes."""
    axes = build_anatomy(np.ones((len(FINGERS), 2))).bone_axes[1:, 1]
    return axes if side == "right" else axes * -MIRROR  # rotation axes mirror as pseudo-vectors


def _ramp(x: np.ndarray, start: float, end: float) -> np.ndarray:
    """Smooth step from 0 at `start` to 1 at `end`."""
    t = np.clip((x - start) / (end - start), 0, 1)
    return t * t * (3 - 2 * t)


def _skinning_weights(anatomy: Anatomy, mesh: Mesh) -> np.ndarray:
    """(778, 16) rows sum to 1: ramps across each joint, shared between neighbouring fingers on the palm."""
    vertices, on_palm = mesh.vertices, mesh.finger == -1
    local = {f: (vertices - d.limb.origin) @ d.limb.axes.T for f, d in anatomy.digits.items()}
    nearness = {f: np.exp(-0.5 * (local[f][:, 1] / (8 * MM)) ** 2) + 1e-9 for f in LONG_FINGERS}
    weights = np.zeros((len(vertices), len(MANO_JOINTS)))
    for k, finger in enumerate(FINGERS):
        stations, along, is_own = anatomy.digits[finger].stations[:-1], local[finger][:, 0], mesh.finger == k
        first = FIRST_JOINT[finger]
        if finger == "Thumb":
            # On the palm a vertex belongs to the thumb as far as the surface there is the thumb's, not the palm's.
            palm, thumb, _ = surface_parts(anatomy, vertices)
            base = (vertices - anatomy.joints[first]) @ anatomy.bone_axes[first, 0]
            past = [_ramp(palm - thumb, -12 * MM, 8 * MM) * _ramp(base, -8 * MM, 26 * MM) * on_palm]
            past[0] += _ramp(base, -10 * MM, 20 * MM) * is_own
            past += [_ramp(along, s - 9 * MM, s + 9 * MM) * is_own for s in stations]
        else:
            share = np.where(on_palm, nearness[finger] / sum(nearness.values()), is_own)
            past = [_ramp(along, stations[0] - 11 * MM, stations[0] + 15 * MM) * share]
            past += [_ramp(along, s - 7 * MM, s + 7 * MM) * is_own for s in stations[1:]]
        # What is past a joint and not past the next one belongs to the bone between them.
        following = [*past[1:], np.zeros(len(vertices))]
        weights[:, first : first + 3] = np.stack([a * (1 - b) for a, b in zip(past, following, strict=True)], -1)
    weights[:, 1:] /= np.maximum(weights[:, 1:].sum(1, keepdims=True), 1)
    weights[:, 0] = 1 - weights[:, 1:].sum(1)
    for _ in range(3):
        weights = 0.5 * (weights + mesh.neighbours @ weights)
    weights[weights < 0.01] = 0
    return weights / weights.sum(1, keepdims=True)


def _joint_regressor(vertices: np.ndarray, joints: np.ndarray, nearest: int = 24) -> np.ndarray:
    """(16, 778) non-negative rows that sum to 1 and give `joints` (16, 3) m from nearby vertices.

    Of all such rows, the closest to a bell around the joint: bell * exp(linear), whose linear part Newton finds.
    """
    regressor = np.zeros((len(joints), len(vertices)))
    for row, joint in zip(regressor, joints, strict=True):
        offset = vertices - joint
        distance = np.linalg.norm(offset, axis=1)
        near = np.argsort(distance, kind="stable")[:nearest]
        local = offset[near] / distance[near].mean()
        bell = np.exp(-0.5 * (distance[near] / distance[near].mean()) ** 2)
        slope = np.zeros(3)
        for _ in range(30):
            weight = bell * np.exp(local @ slope)
            weight /= weight.sum()
            mean = weight @ local
            spread = (local * weight[:, None]).T @ local - np.outer(mean, mean)
            slope -= 0.8 * np.linalg.solve(spread + 1e-9 * np.eye(3), mean)
        row[near] = weight
    return regressor


def _shape_modes(anatomy: Anatomy, vertices: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(778, 3, 10) m per unit: each mode stretches bones along their own axes, and the joints follow."""
    modes = np.zeros((len(vertices), 3, len(SHAPE_MODES)))
    for mode, entries in enumerate(SHAPE_MODES):
        rates = np.zeros((len(MANO_JOINTS), 3))
        for joints, axes, rate in entries:
            rates[np.ix_(joints, axes)] = rate
        stretch = np.einsum("ja,jab,jac->jbc", rates, anatomy.bone_axes, anatomy.bone_axes)
        shift = np.zeros((len(MANO_JOINTS), 3))
        for j, parent in list(enumerate(PARENTS.tolist()))[1:]:
            shift[j] = shift[parent] + stretch[parent] @ (anatomy.joints[j] - anatomy.joints[parent])
        moved = np.einsum("jab,vjb->vja", stretch, vertices[:, None] - anatomy.joints) + shift
        modes[:, :, mode] = np.einsum("vj,vja->va", weights, moved)
    return modes


def _pose_correctives(anatomy: Anatomy, vertices: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(778, 3, 135) m: push a bent joint's back and pad out, where linear blending would thin it.

    A joint's feature is R - I; along^T (R - I) along = cos(bend) - 1, so it is linear in the feature and 0 at rest.
    """
    correctives = []
    for j, parent in list(enumerate(PARENTS.tolist()))[1:]:
        along, sideways, back = anatomy.bone_axes[j]
        both = 4 * weights[:, j] * weights[:, parent]  # 1 in the middle of the joint, 0 away from it
        offset = vertices - anatomy.joints[j]
        push = 0.4 * both * (offset @ back)
        if parent == 0:  # a knuckle stands out of the fist, the skin between two knuckles does not
            push *= 1.8 * np.exp(-0.5 * (offset @ sideways / (6 * MM)) ** 2) - 0.3
        correctives.append(push[:, None, None] * back[:, None] * -np.outer(along, along).reshape(-1))
    return np.concatenate(correctives, -1)


def _flexion(anatomy: Anatomy, degrees: dict[str, tuple[float, float, float]]) -> np.ndarray:
    """(15, 3) rad: axis-angles that flex each finger's joints by these degrees."""
    pose = np.zeros((len(MANO_JOINTS), 3))
    for finger, angles in degrees.items():
        first = FIRST_JOINT[finger]
        pose[first : first + 3] = np.radians(angles)[:, None] * anatomy.bone_axes[first : first + 3, 1]
    return pose[1:]


def _pose_space(anatomy: Anatomy, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(45, 45) orthonormal rows, the common movements of fingers first, and (N, 45) example coefficients."""
    bend = (1.0, 1.1, 0.7)
    spread = np.zeros((len(MANO_JOINTS), 3))
    for finger, amount in SPREAD.items():
        spread[FIRST_JOINT[finger]] = amount * anatomy.bone_axes[FIRST_JOINT[finger], 2]
    movements = [
        _flexion(anatomy, dict.fromkeys(LONG_FINGERS, bend)),
        _flexion(anatomy, {"Thumb": (0.6, 0.8, 1.0)}),
        spread[1:],
        _flexion(anatomy, dict.fromkeys(LONG_FINGERS, (1.0, -0.8, -0.5))),
        *(_flexion(anatomy, {finger: bend}) for finger in ("Index", "Middle", "Pinky")),
    ]
    rows = rng.standard_normal((45, 45))
    rows[: len(movements)] = np.reshape(movements, (len(movements), 45))
    q, r = np.linalg.qr(rows.T)
    coeffs = rng.standard_normal((100, 45)) * (0.8 / (1 + 0.4 * np.arange(45)))
    return (q * np.sign(np.diag(r))).T, coeffs


def _mirrored(right: Hand, left_shapedirs: str) -> Hand:
    """The left hand's file from the right one's."""
    axis_angle_sign = np.tile(-MIRROR, 15)
    signs = {
        "v_template": MIRROR,
        "J": MIRROR,
        "shapedirs": MIRROR[:, None] if left_shapedirs == "repaired" else 1,
        "posedirs": MIRROR[:, None] * np.tile(np.outer(MIRROR, MIRROR).reshape(9), 15),  # R mirrored is M R M
        "hands_mean": axis_angle_sign,
        "hands_components": axis_angle_sign,
    }
    left = {key: right[key] * signs[key] if key in signs else right[key] for key in right}
    left["f"] = right["f"][:, [0, 2, 1]].copy()  # a mirror turns faces inside out
    return left
