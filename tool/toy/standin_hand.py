"""A generated stand-in for the licensed MANO hand, in the layout of its files. It is NOT MANO.

The geometry is invented here from rough proportions of an adult hand. It lets everything run, and be tested, on a
machine without the licensed files; numbers measured with it say nothing about MANO.

How it is made: rounded limbs (finger bones, metacarpals, muscle mounds) are blended into one smooth implicit surface.
A mesh of fixed connectivity (a palm tube which opens into four finger tubes, with a thumb tube on its side) is laid
over that surface and evened out. Weights, joints, shape modes and pose correctives follow from the same anatomy.

Axes of the right hand, metres: fingers towards -x, thumb towards +z, back of the hand +y, palm facing -y; the origin
is inside the hand near the knuckles. The left hand is its mirror image in x.

Which sign flexes: for the index to the pinky of the RIGHT hand a positive rotation about +z bends towards the palm;
for the LEFT hand a negative one. The thumb's axes are oblique; `flexion_axes` gives the exact axis of every joint,
about which a positive angle always flexes.
"""

import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.errors import UserError
from common.utils.files import atomic_write, make_folder
from common.utils.joints import FINGERS, FINGERTIP_VERTICES, MANO_JOINTS

MODEL_NAME = "stand-in hand (generated; not MANO)"
FILE_NAMES = {"right": "MANO_RIGHT.pkl", "left": "MANO_LEFT.pkl"}
PARENTS = np.array([4294967295, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14], dtype=np.uint32)
MIRROR = np.array([-1.0, 1.0, 1.0])
LONG_FINGERS = FINGERS[1:]  # index to pinky: all but the thumb
FIRST_JOINT = {finger: MANO_JOINTS.index(f"{finger}_1") for finger in FINGERS}

# ---- anatomy of the right hand; these tables are in millimetres, everything else in metres and radians ----
MM = 1e-3
WRIST_JOINT = (87, -2, 1)
WRIST_LOOP_X = 101

KNUCKLES = {"Index": (-3, 4.5, 25.5), "Middle": (-6, 6, 4.5), "Ring": (0, 5, -15.5), "Pinky": (10, 2, -33)}
DIRECTIONS = {
    "Index": (-1, -0.03, 0.09),
    "Middle": (-1, -0.03, 0.005),
    "Ring": (-1, -0.03, -0.085),
    "Pinky": (-1, -0.03, -0.20),
}
PHALANGES = {"Index": (40, 22.5, 16), "Middle": (44, 26.5, 17.5), "Ring": (41, 25, 17.5), "Pinky": (32.5, 18, 16)}
GIRTHS = {"Index": 1.0, "Middle": 1.03, "Ring": 0.97, "Pinky": 0.86}
TIP_FLESH = 4  # from the end of the last bone to the fingertip

# Index finger at: joint 1, middle of bone 1, joint 2, middle of bone 2, joint 3, nail, start of the tip's cap.
# Rows: half-width, half-axis to the back, to the pad, and the axis' offset to the back (a finger at ease bends).
FINGER_PROFILE = (
    (9.6, 9.1, 9.9, 8.5, 8.6, 8.0, 7.0),
    (10.0, 8.2, 9.2, 7.2, 7.1, 5.9, 4.9),
    (9.5, 9.9, 8.2, 8.9, 7.1, 8.0, 6.4),
    (0.0, 0.6, 1.0, 0.9, 0.5, -0.2, -0.8),
)
FINGER_CAP = 8.7

THUMB_JOINTS = ((66, -8, 22), (33, -17, 50), (7.5, -22, 68.5))
THUMB_BACK = (0.36, 0.55, 0.74)  # where the nail faces
THUMB_LAST_BONE = 22
# Thumb at: joint 2, middle of the bone, joint 3, nail, start of the tip's cap.
THUMB_PROFILE = (
    (10.5, 9.8, 10.8, 10.6, 8.6),
    (9.5, 8.8, 9.2, 7.0, 5.4),
    (10.5, 10.2, 9.2, 9.6, 7.4),
    (0.0, 0.4, 0.6, 0.2, -0.4),
)
THUMB_CAP = 10

# Limbs of the palm and the thumb's base: from, to, then (half-width, back, pad) at the start, middle and end.
PALM_LIMBS = (
    ((112, -4, 1), (66, -2, 0), ((27, 17, 17), (27.5, 16.5, 17), (30, 14, 15))),  # wrist
    ((76, -2, 12), (9, 3.5, 24), ((11, 11, 12), (11, 10, 10.5), (10.5, 8.8, 11))),  # metacarpals, index to pinky
    ((76, 0, 4), (6, 5, 4.5), ((11, 12, 12), (11, 10.5, 10), (10.5, 9, 12))),
    ((76, 0, -5), (12, 4, -15), ((11, 11, 12), (11, 10, 10), (10.5, 8.8, 12))),
    ((76, -2, -12), (22, 1.5, -30), ((11, 11, 12), (10.5, 9.2, 11), (10, 8.2, 11))),
    ((84, -8, -17), (20, -6, -32.5), ((7, 8, 9), (12, 10, 13.5), (8, 8, 9))),  # mound below the pinky
    ((0, -3, 24), (9, -4, -30), ((9, 5, 7), (10, 6, 6), (8, 5, 7))),  # pad below the fingers
    ((104, -5, 13), (62, -8, 24), ((10, 10, 10), (11, 11, 12), (12, 11, 12))),  # wrist to thumb
)
THUMB_LIMBS = (
    (THUMB_JOINTS[0], THUMB_JOINTS[1], ((14, 12, 14), (13, 11, 14), (11, 9.5, 11))),  # metacarpal
    ((74, -11, 9), (30, -12, 36), ((8, 9, 9), (14, 12, 13.5), (9, 9, 9))),  # mound of the thumb
)
WEB_LIMB = (6.0, 3.5, 8.0)  # half-axes of the webs between the fingers: along the finger, to the back, to the pad
WEB_STATION = 12  # distance from the knuckles
WEB_ANGLES = (58, 18, -18, -62)  # degrees towards the back at which the webs' vertices lie, seen from inside

# Radii over which neighbouring parts of the surface run into each other.
BLEND_PALM, BLEND_THUMB, BLEND_FINGERS, BLEND_THUMB_PALM, BLEND_FINGERS_PALM = 12, 8, 5, 16, 8

# ---- the mesh's plan ----
PALM_COLUMNS = 22  # around the palm: 9 on the back, 2 on the pinky's side, 9 on the palm, 2 on the thumb's side
PALM_ROWS = (16, 23, *([PALM_COLUMNS] * 9))  # vertices a row, wrist first; the row at the fingers comes after these
# The thumb grows out of a hole of 3 x 3 quads in the palm's rows.
THUMB_HOLE_ROW, THUMB_HOLE_COLUMN, THUMB_HOLE_SIZE = 4, 18, 3
THUMB_FIRST_SIDE = 0  # where on the thumb (sides counted from its flexion axis towards its back) the hole's rim starts
FINGER_SIDES, THUMB_SIDES = 10, 12
# Distance of the rings from joint 1 (thumb: joint 2) in units of the bones: 1.5 is halfway along the second bone.
FINGER_RINGS = {
    "Index": (0.67, 0.84, 1.0, 1.2, 1.5, 1.8, 2.0, 2.22, 2.56, 2.87),
    "Middle": (0.64, 0.82, 1.0, 1.2, 1.5, 1.8, 2.0, 2.22, 2.56, 2.87),
    "Ring": (0.67, 0.84, 1.0, 1.2, 1.5, 1.8, 2.0, 2.22, 2.56, 2.87),
    "Pinky": (0.86, 1.02, 1.22, 1.58, 1.88, 2.14, 2.55, 2.86),
}
THUMB_FREE_RINGS = 3
THUMB_RINGS = (0.22, 0.52, 0.80, 1.0, 1.2, 1.5, 1.78, 1.94)
RELAX_STEPS = 80


class Limbs(NamedTuple):
    """M rounded limbs: ellipses swept along a straight axis, with an ellipsoid's end at each side."""

    origins: np.ndarray  # (M, 3) m
    axes: np.ndarray  # (M, 3, 3) unit rows: along, sideways, back
    lengths: np.ndarray  # (M,) m
    profiles: np.ndarray  # (M, 4, K) m: half-width, half-axis to the back, to the pad, offset of the axis to the back
    caps: np.ndarray  # (M,) m: half-axis of the ends along the limb


class Digit(NamedTuple):
    """The straight part of a finger: all three bones of a long finger, the last two of the thumb."""

    origin: np.ndarray  # (3,) m
    axes: np.ndarray  # (3, 3) unit rows: along, sideways (the flexion axis), back
    stations: np.ndarray  # (B+1,) m along the axis: each joint, then the end of the last bone
    tip: float  # m along the axis
    profile: np.ndarray  # (4, K) m, as in `Limbs`, over [0, tip - cap]
    cap: float  # m


class Anatomy(NamedTuple):
    """What a hand is made of."""

    digits: dict[str, Digit]
    joints: np.ndarray  # (16, 3) m, in MANO order
    bone_axes: np.ndarray  # (16, 3, 3) unit rows: along, sideways (the flexion axis), back
    limbs: Limbs
    groups: np.ndarray  # (M,) 0 palm, 1 thumb, 2 fingers


class Layout(NamedTuple):
    """The connectivity of the mesh, in the final numbering."""

    quads: np.ndarray  # (Q, 4), outward
    triangles: np.ndarray  # (T, 3), outward
    rows: list[np.ndarray]  # the palm's rows, wrist first; the last is the row at the fingers
    webs: np.ndarray  # (3, 2) between neighbouring fingers: towards the back, towards the palm
    rings: dict[str, np.ndarray]  # finger -> (R, sides), the first is shared with the palm
    tips: dict[str, int]


def build_standin(seed: int = 0, left_shapedirs: str = "published") -> dict[str, dict[str, np.ndarray | str]]:
    """Both stand-in hands as the contents of their files.

    `seed` varies the proportions by a per cent or two and draws the example poses. `left_shapedirs`: 'published' keeps
    the sign of the right hand's x in the left one's shape modes, as the published left file does, so that a reader has
    to repair it; 'repaired' holds the mirrored modes.

    -> {'right': ..., 'left': ...}, each with v_template (778, 3), f (1538, 3) uint32, J_regressor (16, 778), J (16, 3),
    weights (778, 16), shapedirs (778, 3, 10), posedirs (778, 3, 135), kintree_table (2, 16), hands_mean (45,),
    hands_components (45, 45), hands_coeffs (N, 45), bs_type, bs_style and model_name. Metres, radians.
    """
    if left_shapedirs not in ("published", "repaired"):
        raise ValueError(f"left_shapedirs is {left_shapedirs!r}, not 'published' or 'repaired'")
    rng = np.random.default_rng(seed)
    anatomy = _anatomy(1 + 0.012 * rng.standard_normal((len(FINGERS), 2)))
    layout = _layout()
    vertices = _vertices(anatomy, layout)
    weights = _skinning_weights(anatomy, layout, vertices)
    regressor = _joint_regressor(vertices, anatomy.joints)
    components, coeffs = _pose_space(anatomy, rng)
    right = {
        "model_name": MODEL_NAME,
        "v_template": vertices,
        "f": _faces(layout, vertices),
        "weights": weights,
        "J_regressor": regressor,
        "J": regressor @ vertices,
        "kintree_table": np.stack((PARENTS, np.arange(len(PARENTS), dtype=np.uint32))),
        "shapedirs": _shape_modes(anatomy, vertices, weights),
        "posedirs": _pose_correctives(anatomy, vertices, weights),
        "hands_mean": _mean_pose(anatomy).reshape(-1),
        "hands_components": components,
        "hands_coeffs": coeffs,
        "bs_type": "lrotmin",
        "bs_style": "lbs",
    }
    return {"right": right, "left": _mirrored(right, left_shapedirs)}


def write_standin(folder: Path, seed: int = 0, left_shapedirs: str = "published") -> list[Path]:
    """Write MANO_RIGHT.pkl and MANO_LEFT.pkl into `folder`, made if missing; return the two paths.

    Only plain numpy arrays and strings are pickled. Each file appears whole or not at all. An older stand-in is
    replaced; raises UserError, before anything is written, if a file there is not a stand-in.
    """
    folder = Path(folder)
    paths = {side: folder / name for side, name in FILE_NAMES.items()}
    try:
        foreign = [path for path in paths.values() if path.exists() and not is_standin_file(path)]
    except OSError as error:
        raise UserError(f"cannot look into {folder}: {error}") from error
    if foreign:
        raise UserError(f"{foreign[0]} is not a stand-in, so it is left alone: choose another folder or move it away")
    hands = build_standin(seed, left_shapedirs)
    make_folder(folder)
    for side, path in paths.items():
        atomic_write(path, pickle.dumps(hands[side], protocol=2))
    return list(paths.values())


def is_standin_file(path: Path) -> bool:
    """Whether a MANO file is one of this module's. Looks for the name's bytes: an unknown pickle is never loaded."""
    return MODEL_NAME.encode() in Path(path).read_bytes()


def flexion_axes(side: str = "right") -> np.ndarray:
    """(15, 3) unit axes, in the hand's own axes and MANO's joint order, about which a positive angle flexes."""
    axes = _anatomy(np.ones((len(FINGERS), 2))).bone_axes[1:, 1]
    return axes if side == "right" else axes * -MIRROR  # rotation axes mirror as pseudo-vectors


# ---- anatomy ----


def _axes(along: np.ndarray, back: np.ndarray) -> np.ndarray:
    """(3, 3) unit rows along, sideways, back. A positive rotation about `sideways` turns `along` away from `back`."""
    t = along / np.linalg.norm(along)
    n = back - (back @ t) * t
    n = n / np.linalg.norm(n)
    return np.stack((t, np.cross(n, t), n))


def _profile(knots: np.ndarray, values: np.ndarray, length: float, samples: int = 48) -> np.ndarray:
    """(4, K) values over [0, length] m: linear between the knots, then rounded off, so that no crease shows."""
    reach = 0.25 * length
    s = np.linspace(-reach, length + reach, samples + samples // 2)
    step = s[1] - s[0]
    half = int(np.ceil(3 * 3.0 * MM / step))
    kernel = np.exp(-0.5 * (np.arange(-half, half + 1) * step / (3.0 * MM)) ** 2)
    kernel /= kernel.sum()
    out = []
    for row in values:
        rough = np.pad(np.interp(s, knots, row), half, mode="edge")
        out.append(np.interp(np.linspace(0, length, samples), s, np.convolve(rough, kernel, mode="valid")))
    return np.array(out)


def _long_finger(finger: str, length_factor: float, girth_factor: float) -> Digit:
    stations = np.concatenate(([0.0], np.cumsum(PHALANGES[finger]))) * MM * length_factor
    tip = stations[-1] + TIP_FLESH * MM
    girth = GIRTHS[finger] * girth_factor
    cap = FINGER_CAP * MM * girth
    a, b, c, d = stations
    knots = np.array([a, (a + b) / 2, b, (b + c) / 2, c, c + 0.55 * (d - c), tip - cap])
    profile = _profile(knots, np.array(FINGER_PROFILE) * MM * girth, tip - cap)
    axes = _axes(np.array(DIRECTIONS[finger], float), np.array([0.0, 1.0, 0.0]))
    return Digit(np.array(KNUCKLES[finger]) * MM, axes, stations, tip, profile, cap)


def _thumb_digit(length_factor: float, girth_factor: float) -> Digit:
    joints = np.array(THUMB_JOINTS) * MM
    along = joints[2] - joints[1]
    stations = np.array([0.0, np.linalg.norm(along), np.linalg.norm(along) + THUMB_LAST_BONE * MM]) * length_factor
    tip = stations[-1] + TIP_FLESH * MM
    cap = THUMB_CAP * MM * girth_factor
    a, b, c = stations
    knots = np.array([a, (a + b) / 2, b, b + 0.5 * (c - b), tip - cap])
    profile = _profile(knots, np.array(THUMB_PROFILE) * MM * girth_factor, tip - cap)
    return Digit(joints[1], _axes(along, np.array(THUMB_BACK)), stations, tip, profile, cap)


def _on_axis(digit: Digit, station: float) -> np.ndarray:
    """(3,) m: the middle of a digit, `station` m from its first joint."""
    offset = np.interp(station, np.linspace(0, digit.tip - digit.cap, digit.profile.shape[1]), digit.profile[3])
    return digit.origin + station * digit.axes[0] + offset * digit.axes[2]


def _anatomy(factors: np.ndarray) -> Anatomy:
    """`factors` (5, 2): length and girth of each finger, about 1."""
    digits = {"Thumb": _thumb_digit(*factors[0])}
    for finger, factor in zip(LONG_FINGERS, factors[1:], strict=True):
        digits[finger] = _long_finger(finger, *factor)
    joints = np.zeros((len(MANO_JOINTS), 3))
    bone_axes = np.zeros((len(MANO_JOINTS), 3, 3))
    joints[0] = np.array(WRIST_JOINT) * MM
    bone_axes[0] = _axes(np.array([-1.0, 0, 0]), np.array([0, 1.0, 0]))
    for finger, digit in digits.items():
        first = FIRST_JOINT[finger] + (finger == "Thumb")
        for k, station in enumerate(digit.stations[:-1]):
            joints[first + k] = _on_axis(digit, station)
            bone_axes[first + k] = digit.axes
    thumb = FIRST_JOINT["Thumb"]
    joints[thumb] = np.array(THUMB_JOINTS[0]) * MM
    bone_axes[thumb] = _axes(joints[thumb + 1] - joints[thumb], np.array(THUMB_BACK))
    return Anatomy(digits, joints, bone_axes, *_limbs(digits))


def _limbs(digits: dict[str, Digit]) -> tuple[Limbs, np.ndarray]:
    parts, groups = [], []
    up = np.array([0.0, 1.0, 0.0])
    for group, table, back in ((0, PALM_LIMBS, up), (1, THUMB_LIMBS, np.array(THUMB_BACK))):
        for start, end, radii in table:
            parts.append(_plain_limb(np.array(start) * MM, np.array(end) * MM, np.array(radii) * MM, back))
            groups.append(group)
    for finger, digit in digits.items():
        parts.append((digit.origin, digit.axes, digit.tip - digit.cap, digit.profile, digit.cap))
        groups.append(1 if finger == "Thumb" else 2)
    for finger, neighbour in zip(LONG_FINGERS[:-1], LONG_FINGERS[1:], strict=True):
        ends = [_on_axis(digits[name], WEB_STATION * MM) for name in (finger, neighbour)]
        parts.append(_plain_limb(*ends, np.array([WEB_LIMB] * 3) * MM, up))
        groups.append(2)
    return Limbs(*(np.array(column) for column in zip(*parts, strict=True))), np.array(groups)


def _plain_limb(start: np.ndarray, end: np.ndarray, radii: np.ndarray, back: np.ndarray) -> tuple:
    """One limb's fields from (3, 3) radii m: rows start, middle, end; columns half-width, back, pad."""
    length = np.linalg.norm(end - start)
    values = np.concatenate((radii.T, np.zeros((1, 3))))
    profile = _profile(np.array([0, length / 2, length]), values, length)
    return start, _axes(end - start, back), length, profile, radii[:, 0].mean()


# ---- the implicit surface ----


def _limb_distances(limbs: Limbs, points: np.ndarray) -> np.ndarray:
    """(M, P) m: about the signed distance from (P, 3) points to each limb, negative inside."""
    local = np.einsum("mij,mpj->mpi", limbs.axes, points[None] - limbs.origins[:, None])
    along = np.clip(local[..., 0], 0, limbs.lengths[:, None])
    last = limbs.profiles.shape[2] - 1
    position = along / limbs.lengths[:, None] * last
    cell = np.minimum(position.astype(int), last - 1)
    fraction = (position - cell)[:, None]
    below = np.take_along_axis(limbs.profiles, cell[:, None], axis=2)
    above = np.take_along_axis(limbs.profiles, cell[:, None] + 1, axis=2)
    width, back, pad, offset = np.moveaxis(below + fraction * (above - below), 1, 0)
    height = local[..., 2] - offset
    radii = np.stack((np.broadcast_to(limbs.caps[:, None], width.shape), width, np.where(height > 0, back, pad)), -1)
    scaled = np.stack((local[..., 0] - along, local[..., 1], height), -1) / radii
    k0 = np.linalg.norm(scaled, axis=-1)
    k1 = np.linalg.norm(scaled / radii, axis=-1)
    return k0 * (k0 - 1) / np.maximum(k1, 1e-9)


def _smooth_min(a: np.ndarray, b: np.ndarray, radius: float) -> np.ndarray:
    """Minimum with a fillet: equal to `min` where a and b differ by more than `radius` m."""
    h = np.maximum(radius - np.abs(a - b), 0) / radius
    return np.minimum(a, b) - h * h * radius / 4


def _surface_parts(anatomy: Anatomy, points: np.ndarray) -> list[np.ndarray]:
    """[(P,)] * 3 m: signed distance from (P, 3) points to the palm, the thumb and the fingers."""
    distances = _limb_distances(anatomy.limbs, points)
    parts = []
    for group, radius in enumerate((BLEND_PALM, BLEND_THUMB, BLEND_FINGERS)):
        members = distances[anatomy.groups == group]
        part = members[0]
        for member in members[1:]:
            part = _smooth_min(part, member, radius * MM)
        parts.append(part)
    return parts


def _surface(anatomy: Anatomy, points: np.ndarray) -> np.ndarray:
    """(P,) m: signed distance from (P, 3) points to the hand, about; negative inside."""
    palm, thumb, fingers = _surface_parts(anatomy, points)
    body = _smooth_min(palm, thumb, BLEND_THUMB_PALM * MM)
    return _smooth_min(body, fingers, BLEND_FINGERS_PALM * MM)


def _project(anatomy: Anatomy, points: np.ndarray, directions: np.ndarray, steps: int = 1) -> np.ndarray:
    """Move (P, 3) points onto the surface by Newton steps. `directions` (P, 3) is 0 for coordinates to be kept."""
    eps = 0.05 * MM
    for _ in range(steps):
        shifted = np.concatenate([points] + [points + eps * axis for axis in np.eye(3)])
        value, *ahead = _surface(anatomy, shifted).reshape(4, -1)
        gradient = (np.stack(ahead, -1) - value[:, None]) / eps * directions
        step = gradient * (value / np.maximum((gradient**2).sum(-1), 0.05))[:, None]
        points = points - step
    return points


# ---- the mesh ----


def _finger_base(row: np.ndarray, webs: np.ndarray, k: int) -> list[int]:
    """The ring of vertices out of which long finger k (0 index) grows, seen from its tip: back, pinky side, pad, ..."""
    back, pad = list(row[2 * k : 2 * k + 3]), list(row[17 - 2 * k : 20 - 2 * k])
    pinky_side = list(webs[k]) if k < 3 else list(row[9:11])
    thumb_side = list(webs[k - 1][::-1]) if k > 0 else list(row[20:22])
    return back + pinky_side + pad + thumb_side


def _strip(inner: np.ndarray, outer: np.ndarray) -> list[tuple[int, int, int]]:
    """Triangles between two closed rows of different lengths."""
    triangles, i, j = [], 0, 0
    m, n = len(inner), len(outer)
    while i < m or j < n:
        if j == n or (i < m and (i + 0.5) / m < (j + 0.5) / n):
            triangles.append((inner[i % m], inner[(i + 1) % m], outer[j % n]))
            i += 1
        else:
            triangles.append((inner[i % m], outer[(j + 1) % n], outer[j % n]))
            j += 1
    return triangles


def _tube(lower: np.ndarray, upper: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Quads between two closed rings of the same length."""
    a, b = np.roll(lower, -1), np.roll(upper, -1)
    return list(zip(lower, a, b, upper, strict=True))


def _palm_rows(ids: "_Counter") -> tuple[list[np.ndarray], np.ndarray]:
    """The palm's rows, without the vertices which the thumb's hole swallows (-1), and the hole's rim (12,)."""
    first, column, size = THUMB_HOLE_ROW, THUMB_HOLE_COLUMN, THUMB_HOLE_SIZE
    rows = []
    for r, count in enumerate((*PALM_ROWS, PALM_COLUMNS)):
        swallowed = [(column + k) % PALM_COLUMNS for k in range(1, size)] if first < r < first + size else []
        row = np.full(count, -1)
        kept = np.setdiff1d(np.arange(count), swallowed)
        row[kept] = ids.take(len(kept))
        rows.append(row)
    around = [(column + k) % PALM_COLUMNS for k in range(size + 1)]
    rim = [rows[first][c] for c in around[:-1]] + [rows[first + k][around[-1]] for k in range(size)]
    rim += [rows[first + size][c] for c in around[:0:-1]] + [rows[first + size - k][column] for k in range(size)]
    return rows, np.array(rim)


def _palm_faces(rows: list[np.ndarray]) -> tuple[list[tuple], list[tuple]]:
    """Triangles where the rows' lengths differ, quads elsewhere, none in the thumb's hole."""
    triangles, quads = [], []
    for r, (lower, upper) in enumerate(zip(rows[:-1], rows[1:], strict=True)):
        if len(lower) != len(upper):
            triangles += _strip(lower, upper)
            continue
        in_hole_rows = THUMB_HOLE_ROW <= r < THUMB_HOLE_ROW + THUMB_HOLE_SIZE
        for column, quad in enumerate(_tube(lower, upper)):
            if not (in_hole_rows and (column - THUMB_HOLE_COLUMN) % PALM_COLUMNS < THUMB_HOLE_SIZE):
                quads.append(quad)
    return triangles, quads


class _Counter:
    """Hands out vertex numbers."""

    def __init__(self) -> None:
        self.next = 0

    def take(self, count: int) -> np.ndarray:
        self.next += count
        return np.arange(self.next - count, self.next)


def _layout() -> Layout:
    """Number the vertices and connect them; the fingertips get the numbers which the published system expects."""
    ids = _Counter()
    rows, rim = _palm_rows(ids)
    webs = ids.take(6).reshape(3, 2)
    triangles, quads = _palm_faces(rows)
    rings, tips = {}, {}
    for finger in (*LONG_FINGERS, "Thumb"):
        base = rim if finger == "Thumb" else np.array(_finger_base(rows[-1], webs, LONG_FINGERS.index(finger)))
        count = THUMB_FREE_RINGS + len(THUMB_RINGS) if finger == "Thumb" else len(FINGER_RINGS[finger])
        rings[finger] = np.concatenate((base[None], ids.take(count * len(base)).reshape(count, -1)))
        tips[finger] = int(ids.take(1)[0])
        for lower, upper in zip(rings[finger][:-1], rings[finger][1:], strict=True):
            quads += _tube(lower, upper)
        last = rings[finger][-1]
        triangles += [(a, b, tips[finger]) for a, b in zip(last, np.roll(last, -1), strict=True)]
    number = np.arange(ids.next)
    for finger, tip in tips.items():
        holder = int(np.flatnonzero(number == FINGERTIP_VERTICES[f"{finger}_4"])[0])
        number[[tip, holder]] = number[[holder, tip]]
    return Layout(
        number[np.array(quads)],
        number[np.array(triangles)],
        [np.where(row >= 0, number[row], -1) for row in rows],
        number[webs],
        {finger: number[ring] for finger, ring in rings.items()},
        {finger: int(number[tip]) for finger, tip in tips.items()},
    )


def _digit_ring(digit: Digit, station: float, angles: np.ndarray) -> np.ndarray:
    """(A, 3) m: the outline of a digit `station` m along its axis, at `angles` from its side towards its back."""
    straight = digit.tip - digit.cap
    s = np.linspace(0, straight, digit.profile.shape[1])
    width, back, pad, offset = (np.interp(station, s, row) for row in digit.profile)
    shrink = np.sqrt(max(0.0, 1 - (max(0.0, station - straight) / digit.cap) ** 2))
    height = np.sin(angles) * np.where(np.sin(angles) > 0, back, pad) * shrink + offset
    centre = digit.origin + station * digit.axes[0]
    return centre + np.outer(np.cos(angles) * width * shrink, digit.axes[1]) + np.outer(height, digit.axes[2])


def _ring_stations(digit: Digit, units: tuple[float, ...]) -> np.ndarray:
    """(R,) m from units of bones; the last bone's unit runs to the fingertip."""
    knots = np.append(digit.stations[:-1], digit.tip)
    return np.interp(units, np.arange(len(knots)), knots)


def _wrist_loop() -> np.ndarray:
    """(16, 3) m: evenly spaced on an ellipse, starting between the back and the thumb's side, back first."""
    angle = np.linspace(0, 2 * np.pi, 721) + np.radians(24.5)
    ellipse = np.stack((WRIST_LOOP_X + 0 * angle, 17 * np.sin(angle) - 4, 27 * np.cos(angle) + 1), -1) * MM
    length = np.concatenate(([0.0], np.cumsum(np.linalg.norm(np.diff(ellipse, axis=0), axis=1))))
    at = np.arange(PALM_ROWS[0]) / PALM_ROWS[0] * length[-1]
    return np.stack([np.interp(at, length, ellipse[:, k]) for k in range(3)], -1)


def _start_fingers(anatomy: Anatomy, layout: Layout, vertices: np.ndarray) -> None:
    """Place the long fingers' rings, and a first guess of the ring which they share with the palm."""
    angles = np.radians(54 + 360 / FINGER_SIDES * np.arange(FINGER_SIDES))
    bases: dict[int, list[np.ndarray]] = {}
    for finger in LONG_FINGERS:
        digit = anatomy.digits[finger]
        for ring, station in zip(layout.rings[finger][1:], _ring_stations(digit, FINGER_RINGS[finger]), strict=True):
            vertices[ring] = _digit_ring(digit, station, angles)
        vertices[layout.tips[finger]] = _on_axis(digit, digit.tip)
        for vertex, point in zip(layout.rings[finger][0], _digit_ring(digit, WEB_STATION * MM, angles), strict=True):
            bases.setdefault(int(vertex), []).append(point)
    for vertex, points in bases.items():
        vertices[vertex] = np.mean(points, axis=0)
    for k, ids in enumerate(_web_columns(layout)):
        vertices[ids] = _web_points(anatomy, *LONG_FINGERS[k : k + 2])


def _web_columns(layout: Layout) -> list[np.ndarray]:
    """The four vertices of each web, from the back to the palm."""
    front = layout.rows[-1]
    return [np.array([front[2 * k + 2], *layout.webs[k], front[17 - 2 * k]]) for k in range(3)]


def _web_points(anatomy: Anatomy, finger: str, neighbour: str) -> np.ndarray:
    """(4, 3) m on the surface between two fingers: where rays from inside the web, fanned out midway, leave it.

    Not left to the evening out: between the fingers it has no surface to hold on to.
    """
    first, second = anatomy.digits[finger], anatomy.digits[neighbour]
    centre = (_on_axis(first, WEB_STATION * MM) + _on_axis(second, WEB_STATION * MM)) / 2
    along, _, back = _axes(first.axes[0] + second.axes[0], first.axes[2] + second.axes[2])
    angles = np.radians(WEB_ANGLES)
    rays = np.outer(np.cos(angles), along) + np.outer(np.sin(angles), back)
    reach = np.linspace(0, 25 * MM, 251)
    inside = _surface(anatomy, (centre + reach[:, None, None] * rays).reshape(-1, 3)).reshape(len(reach), -1) < 0
    return centre + reach[np.argmin(inside, axis=0)][:, None] * rays


def _start_palm(layout: Layout, vertices: np.ndarray) -> None:
    """A first guess of the palm: straight lines from the wrist to the row at the fingers."""
    loop = _wrist_loop()
    closed = np.concatenate((loop, loop[:1]))
    front = vertices[layout.rows[-1]]
    front = np.concatenate((front, front[:1]))
    for r, row in enumerate(layout.rows[:-1]):
        at = np.arange(len(row)) / len(row)
        wrist = np.stack([np.interp(at * len(loop), np.arange(len(loop) + 1), closed[:, k]) for k in range(3)], -1)
        ahead = np.stack([np.interp(at * PALM_COLUMNS, np.arange(PALM_COLUMNS + 1), front[:, k]) for k in range(3)], -1)
        kept = row >= 0
        vertices[row[kept]] = (wrist + (ahead - wrist) * r / (len(layout.rows) - 1))[kept]


def _start_thumb(anatomy: Anatomy, layout: Layout, vertices: np.ndarray) -> None:
    """Place the thumb's rings; those of its base between the hole's rim and the first ring of the digit."""
    digit, rings = anatomy.digits["Thumb"], layout.rings["Thumb"]
    rim = vertices[rings[0]]
    stations = _ring_stations(digit, THUMB_RINGS)
    angles = 2 * np.pi / THUMB_SIDES * (np.arange(THUMB_SIDES) + THUMB_FIRST_SIDE)
    for ring, station in zip(rings[1 + THUMB_FREE_RINGS :], stations, strict=True):
        vertices[ring] = _digit_ring(digit, station, angles)
    vertices[layout.tips["Thumb"]] = _on_axis(digit, digit.tip)
    ahead = vertices[rings[1 + THUMB_FREE_RINGS]]
    for k in range(1, THUMB_FREE_RINGS + 1):
        vertices[rings[k]] = rim + (ahead - rim) * k / (THUMB_FREE_RINGS + 1)


def _neighbour_average(layout: Layout, count: int) -> np.ndarray:
    """(V, V): row v averages the neighbours of v. Without the quads' diagonals, which would pull to one side."""
    average = np.zeros((count, count))
    for polygons in (layout.quads, layout.triangles):
        for k in range(polygons.shape[1]):
            average[polygons[:, k], np.roll(polygons, -1, 1)[:, k]] = 1
    average = np.maximum(average, average.T)
    return average / average.sum(1, keepdims=True)


def _vertices(anatomy: Anatomy, layout: Layout) -> np.ndarray:
    """(778, 3) m: the template. Fingers keep their rings; the palm and the junctions are evened out on the surface."""
    count = 1 + max(layout.quads.max(), layout.triangles.max())
    vertices = np.zeros((count, 3))
    _start_fingers(anatomy, layout, vertices)
    _start_palm(layout, vertices)
    _start_thumb(anatomy, layout, vertices)
    directions = np.ones((count, 3))
    directions[layout.rows[0], 0] = 0  # the wrist's loop stays in its plane
    fixed = np.zeros(count, bool)
    fixed[layout.rows[0]] = True
    for finger, rings in layout.rings.items():
        fixed[rings[1 + THUMB_FREE_RINGS * (finger == "Thumb") :]] = True
        fixed[layout.tips[finger]] = True
    fixed[np.concatenate(_web_columns(layout))] = True
    free = np.flatnonzero(~fixed)
    average = _neighbour_average(layout, count)
    for _ in range(RELAX_STEPS):
        moved = 0.5 * (vertices[free] + average[free] @ vertices)
        vertices[free] = _project(anatomy, moved, directions[free])
    return _project(anatomy, vertices, directions, steps=4)


def _faces(layout: Layout, vertices: np.ndarray) -> np.ndarray:
    """(1538, 3) uint32: each quad cut along its shorter diagonal."""
    a, b, c, d = layout.quads.T
    first = np.linalg.norm(vertices[a] - vertices[c], axis=1)
    second = np.linalg.norm(vertices[b] - vertices[d], axis=1)
    cut = (first <= 1.03 * second)[:, None, None]  # the margin keeps rounding from deciding between equals
    along_ac = np.stack((a, b, c, a, c, d), -1).reshape(-1, 2, 3)
    along_bd = np.stack((a, b, d, b, c, d), -1).reshape(-1, 2, 3)
    halves = np.where(cut, along_ac, along_bd).reshape(-1, 3)
    return np.concatenate((halves, layout.triangles)).astype(np.uint32)


# ---- what moves the mesh ----


def _ramp(x: np.ndarray, start: float, end: float) -> np.ndarray:
    """Smooth step from 0 at `start` to 1 at `end`."""
    t = np.clip((x - start) / (end - start), 0, 1)
    return t * t * (3 - 2 * t)


def _chain(activations: list[np.ndarray]) -> list[np.ndarray]:
    """Weights of a chain of bones from how far a vertex is past each joint; what is left belongs to the parent."""
    weights = []
    for k, activation in enumerate(activations):
        following = activations[k + 1] if k + 1 < len(activations) else 0
        weights.append(activation * (1 - following))
    return weights


def _skinning_weights(anatomy: Anatomy, layout: Layout, vertices: np.ndarray) -> np.ndarray:
    """(778, 16) rows sum to 1: ramps across each joint, shared between neighbouring fingers on the palm."""
    weights = np.zeros((len(vertices), len(MANO_JOINTS)))
    owner = np.full(len(vertices), -1)
    for k, finger in enumerate(FINGERS):
        owner[layout.rings[finger][1:]] = k
        owner[layout.tips[finger]] = k
    local = {f: (vertices - d.origin) @ d.axes.T for f, d in anatomy.digits.items()}
    nearness = np.stack([np.exp(-0.5 * (local[f][:, 1] / (8 * MM)) ** 2) for f in LONG_FINGERS]) + 1e-9
    share = nearness / nearness.sum(0)
    for k, finger in enumerate(LONG_FINGERS):
        s = local[finger][:, 0]
        mine = np.where(owner == k + 1, 1.0, np.where(owner == -1, share[k], 0.0))
        joints = anatomy.digits[finger].stations
        past = [_ramp(s, joints[0] - 11 * MM, joints[0] + 15 * MM) * mine]
        past += [_ramp(s, joint - 7 * MM, joint + 7 * MM) * (owner == k + 1) for joint in joints[1:3]]
        first = FIRST_JOINT[finger]
        weights[:, first : first + 3] = np.stack(_chain(past), -1)
    thumb = FIRST_JOINT["Thumb"]
    weights[:, thumb : thumb + 3] = _thumb_weights(anatomy, vertices, owner, local["Thumb"][:, 0])
    weights[:, 1:] /= np.maximum(weights[:, 1:].sum(1, keepdims=True), 1)
    weights[:, 0] = 1 - weights[:, 1:].sum(1)
    average = _neighbour_average(layout, len(vertices))
    for _ in range(3):
        weights = 0.5 * (weights + average @ weights)
    weights[weights < 0.01] = 0
    return weights / weights.sum(1, keepdims=True)


def _thumb_weights(anatomy: Anatomy, vertices: np.ndarray, owner: np.ndarray, along: np.ndarray) -> np.ndarray:
    """(778, 3). On the palm the thumb's base takes what the surface gives to the thumb rather than to the palm.

    `owner` (778,): the finger of a vertex, -1 the palm. `along` (778,) m: distance from joint 2 along the thumb.
    """
    palm, thumb, _ = _surface_parts(anatomy, vertices)
    joint = FIRST_JOINT["Thumb"]
    s = (vertices - anatomy.joints[joint]) @ anatomy.bone_axes[joint, 0]
    belongs = _ramp(palm - thumb, -12 * MM, 8 * MM) * _ramp(s, -8 * MM, 26 * MM) * (owner == -1)
    on_thumb = owner == 0
    past = [belongs + on_thumb * _ramp(s, -10 * MM, 20 * MM)]
    stations = anatomy.digits["Thumb"].stations
    past += [_ramp(along, station - 9 * MM, station + 9 * MM) * on_thumb for station in stations[:2]]
    return np.stack(_chain(past), -1)


def _joint_regressor(vertices: np.ndarray, joints: np.ndarray, nearest: int = 24) -> np.ndarray:
    """(16, 778) rows >= 0 which sum to 1 and give `joints` (16, 3) m from nearby vertices.

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
    """(778, 3, 10) m per unit: each mode stretches bones along, sideways and front to back; joints follow."""
    modes = np.zeros((len(vertices), 3, 10))
    fingers, thumb, last = np.r_[1:13], np.r_[13:16], np.r_[3, 6, 9, 12, 15]
    rates = np.zeros((10, len(MANO_JOINTS), 3))
    rates[0] = 0.035  # size
    rates[1, fingers, 0] = 0.035  # length of the fingers
    rates[2, 0, 1] = 0.035  # width of the palm
    rates[2, fingers, 1] = 0.015
    rates[3, :, 2] = 0.045  # thickness
    rates[4, thumb] = 0.035  # size of the thumb
    rates[5, 1:, 1:] = 0.045  # girth of the fingers
    rates[6, 0, 0] = 0.03  # length of the palm against that of the fingers
    rates[6, fingers, 0] = -0.015
    rates[7, FIRST_JOINT["Pinky"] : FIRST_JOINT["Pinky"] + 3, 0] = 0.05  # length of the pinky and the ring finger
    rates[7, FIRST_JOINT["Ring"] : FIRST_JOINT["Ring"] + 3, 0] = 0.02
    rates[8, FIRST_JOINT["Index"] : FIRST_JOINT["Index"] + 3, 0] = 0.035  # index against ring finger
    rates[8, FIRST_JOINT["Ring"] : FIRST_JOINT["Ring"] + 3, 0] = -0.025
    rates[9, 1:, 1:] = 0.02  # tapering fingers
    rates[9, last, 1:] = -0.05
    for mode, rate in enumerate(rates):
        stretch = np.einsum("ja,jab,jac->jbc", rate, anatomy.bone_axes, anatomy.bone_axes)
        shift = np.zeros((len(MANO_JOINTS), 3))
        for j, parent in enumerate(PARENTS.tolist()):
            if j:
                shift[j] = shift[parent] + stretch[parent] @ (anatomy.joints[j] - anatomy.joints[parent])
        moved = np.einsum("jab,vjb->vja", stretch, vertices[:, None] - anatomy.joints) + shift
        modes[:, :, mode] = np.einsum("vj,vja->va", weights, moved)
    return modes


def _pose_correctives(anatomy: Anatomy, vertices: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(778, 3, 135) m: push a bent joint's back and pad out, where linear blending would thin it.

    A joint's feature is R - I; along^T (R - I) along = cos(bend) - 1, so it is linear in the feature and 0 at rest.
    """
    correctives = np.zeros((len(vertices), 3, 9 * (len(MANO_JOINTS) - 1)))
    for j, parent in enumerate(PARENTS.tolist()):
        if j:
            along, sideways, back = anatomy.bone_axes[j]
            both = 4 * weights[:, j] * weights[:, parent]  # 1 in the middle of the joint, 0 away from it
            offset = vertices - anatomy.joints[j]
            push = 0.4 * both * (offset @ back)
            if parent == 0:  # a knuckle stands out of the fist, the skin between two knuckles does not
                push *= 1.8 * np.exp(-0.5 * (offset @ sideways / (6 * MM)) ** 2) - 0.3
            feature = -np.outer(along, along).reshape(-1)
            correctives[:, :, 9 * (j - 1) : 9 * j] = push[:, None, None] * back[:, None] * feature
    return correctives


def _flexion(anatomy: Anatomy, degrees: dict[str, tuple[float, float, float]]) -> np.ndarray:
    """(15, 3) rad: axis-angles which flex each finger's joints by so many degrees."""
    pose = np.zeros((len(MANO_JOINTS), 3))
    for finger, angles in degrees.items():
        first = FIRST_JOINT[finger]
        pose[first : first + 3] = np.radians(angles)[:, None] * anatomy.bone_axes[first : first + 3, 1]
    return pose[1:]


def _mean_pose(anatomy: Anatomy) -> np.ndarray:
    """(15, 3) rad: a hand at ease, the fingers a little bent, more so towards the pinky."""
    ease = {"Index": (10, 17, 9), "Middle": (14, 20, 11), "Ring": (16, 22, 12), "Pinky": (17, 22, 12)}
    return _flexion(anatomy, {**ease, "Thumb": (4, 8, 12)})


def _pose_space(anatomy: Anatomy, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(45, 45) orthonormal rows, the common movements of fingers first, and (N, 45) example coefficients."""
    bend = (1.0, 1.1, 0.7)
    spread = np.zeros((len(MANO_JOINTS), 3))
    for finger, amount in (("Index", 1.0), ("Middle", 0.2), ("Ring", -0.6), ("Pinky", -1.2), ("Thumb", 0.8)):
        spread[FIRST_JOINT[finger]] = amount * anatomy.bone_axes[FIRST_JOINT[finger], 2]
    movements = [
        _flexion(anatomy, dict.fromkeys(LONG_FINGERS, bend)),
        _flexion(anatomy, {"Thumb": (0.6, 0.8, 1.0)}),
        spread[1:],
        _flexion(anatomy, dict.fromkeys(LONG_FINGERS, (1.0, -0.8, -0.5))),
        _flexion(anatomy, {"Index": bend}),
        _flexion(anatomy, {"Middle": bend}),
        _flexion(anatomy, {"Pinky": bend}),
    ]
    rows = rng.standard_normal((45, 45))
    rows[: len(movements)] = np.reshape(movements, (len(movements), 45))
    q, r = np.linalg.qr(rows.T)
    components = (q * np.sign(np.diag(r))).T
    coeffs = rng.standard_normal((100, 45)) * (0.8 / (1 + 0.4 * np.arange(45)))
    return components, coeffs


def _mirrored(right: dict[str, np.ndarray | str], left_shapedirs: str) -> dict[str, np.ndarray | str]:
    """The left hand's file from the right one's."""
    rotation_sign = np.tile(np.outer(MIRROR, MIRROR).reshape(9), 15)  # R of the mirrored hand is M R M
    axis_angle_sign = np.tile(-MIRROR, 15)
    left = dict(right)
    for key in ("v_template", "J"):
        left[key] = right[key] * MIRROR
    left["f"] = right["f"][:, [0, 2, 1]].copy()  # a mirror turns faces inside out
    if left_shapedirs == "repaired":
        left["shapedirs"] = right["shapedirs"] * MIRROR[:, None]
    left["posedirs"] = right["posedirs"] * MIRROR[:, None] * rotation_sign
    left["hands_mean"] = right["hands_mean"] * axis_angle_sign
    left["hands_components"] = right["hands_components"] * axis_angle_sign
    return {key: value if isinstance(value, str) else np.array(value) for key, value in left.items()}
