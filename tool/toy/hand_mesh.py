"""The shape of the stand-in hand: rounded limbs blended into one implicit surface, and a mesh laid over it.

The limbs are finger bones, metacarpals and muscles. The mesh has a fixed connectivity: a palm tube that opens into four
finger tubes, with a thumb tube on its side. Its rings follow the fingers; the palm is relaxed on the surface.

Axes of the right hand, metres: fingers towards -x, thumb towards +z, back of the hand +y, palm facing -y. The origin is
inside the hand near the knuckles.
"""

from functools import reduce
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from common.utils.joints import FINGERS, FINGERTIP_VERTICES, MANO_JOINTS

LONG_FINGERS = FINGERS[1:]  # index to pinky
FIRST_JOINT = {finger: MANO_JOINTS.index(f"{finger}_1") for finger in FINGERS}
UP = np.array([0.0, 1.0, 0.0])

# ---- anatomy of the right hand; these tables are in millimetres, everything else in metres and radians ----
MM = 1e-3
WRIST_JOINT = (87, -2, 1)
WRIST_LOOP_X = 101

# Joint 1, direction, lengths of the bones, girth relative to the index finger.
LONG_FINGER_TABLE = {
    "Index": ((-3, 4.5, 33.5), (-1, -0.03, 0.09), (40, 22.5, 16), 1.0),
    "Middle": ((-6, 6, 7), (-1, -0.03, 0.005), (44, 26.5, 17.5), 1.03),
    "Ring": ((0, 5, -18.5), (-1, -0.03, -0.085), (41, 25, 17.5), 0.97),
    "Pinky": ((10, 2, -41), (-1, -0.03, -0.20), (32.5, 18, 16), 0.86),
}
THUMB_JOINTS = ((66, -8, 22), (33, -17, 50), (7.5, -22, 68.5))
THUMB_BACK = np.array([0.36, 0.55, 0.74])  # where the nail faces
THUMB_LAST_BONE = 22
TIP_FLESH = 4  # from the end of the last bone to the fingertip

# Cross-sections at these stations, in bones from the digit's first joint, and at the start of the tip's cap.
# Rows: half-width, half-axis to the back, to the pad, and the axis' offset to the back (a finger at ease bends).
PROFILE_STATIONS = (0, 0.5, 1, 1.5, 2, 2.55)
FINGER_PROFILE = (
    (9.6, 9.1, 9.9, 8.5, 8.6, 8.0, 7.0),
    (10.0, 8.2, 9.2, 7.2, 7.1, 5.9, 4.9),
    (9.5, 9.9, 8.2, 8.9, 7.1, 8.0, 6.4),
    (0.0, 0.6, 1.0, 0.9, 0.5, -0.2, -0.8),
)
THUMB_PROFILE = (
    (10.5, 9.8, 10.8, 10.6, 8.6),
    (9.5, 8.8, 9.2, 7.0, 5.4),
    (10.5, 10.2, 9.2, 9.6, 7.4),
    (0.0, 0.4, 0.6, 0.2, -0.4),
)
FINGER_CAP, THUMB_CAP = 8.7, 10

# Limbs of the palm and the thumb's base: from, to, then (half-width, back, pad) at the start, middle and end.
PALM_LIMBS = (
    ((112, -4, 1), (66, -2, 0), ((27, 17, 17), (27.5, 16.5, 17), (30, 14, 15))),  # wrist
    ((76, -2, 16.5), (9, 3.5, 31.5), ((11, 11, 12), (11, 10, 10.5), (10.5, 8.8, 11))),  # metacarpals, index to pinky
    ((76, 0, 6), (6, 5, 7), ((11, 12, 12), (11, 10.5, 10), (10.5, 9, 12))),
    ((76, 0, -5), (12, 4, -18), ((11, 11, 12), (11, 10, 10), (10.5, 8.8, 12))),
    ((76, -2, -14), (22, 1.5, -37), ((11, 11, 12), (10.5, 9.2, 11), (10, 8.2, 11))),
    ((84, -8, -17), (20, -6, -40), ((7, 8, 9), (12, 10, 13.5), (8, 8, 9))),  # mound below the pinky
    ((0, -3, 31.5), (9, -4, -37), ((9, 5, 7), (10, 6, 6), (8, 5, 7))),  # pad below the fingers
    ((104, -5, 13), (62, -8, 24), ((10, 10, 10), (11, 11, 12), (12, 11, 12))),  # wrist to thumb
)
THUMB_LIMBS = (
    (THUMB_JOINTS[0], THUMB_JOINTS[1], ((14, 12, 14), (13, 11, 14), (11, 9.5, 11))),  # metacarpal
    ((74, -11, 9), (30, -12, 36), ((8, 9, 9), (14, 12, 13.5), (9, 9, 9))),  # mound of the thumb
)
WEB_RADII = (6.0, 3.5, 8.0)  # of the webs between the fingers: along the finger, to the back, to the pad
WEB_STATION = 12  # distance from the knuckles
WEB_ANGLES = (58, 18, -18, -62)  # degrees towards the back at which the webs' vertices lie, seen from inside

# Radii of the fillets between neighbouring parts of the surface.
BLEND_PALM, BLEND_THUMB, BLEND_FINGERS, BLEND_THUMB_PALM, BLEND_FINGERS_PALM = 12, 8, 5, 16, 8

# ---- the plan of the mesh ----
VERTICES = 778
PALM_COLUMNS = 22  # around the palm: 9 on the back, 2 on the pinky's side, 9 on the palm, 2 on the thumb's side
PALM_ROWS = (16, 23, *([PALM_COLUMNS] * 10))  # vertices per row, from the wrist to the fingers
# The thumb grows out of a hole of 3 x 3 quads in the palm's rows.
HOLE_ROW, HOLE_COLUMN, HOLE_SIZE = 4, 18, 3
FINGER_SIDES, THUMB_SIDES = 10, 12
# Stations of the rings in bones from joint 1 (thumb: joint 2). The last bone reaches to the fingertip here.
FINGER_RINGS = {
    "Index": (0.67, 0.84, 1.0, 1.2, 1.5, 1.8, 2.0, 2.22, 2.56, 2.87),
    "Middle": (0.64, 0.82, 1.0, 1.2, 1.5, 1.8, 2.0, 2.22, 2.56, 2.87),
    "Ring": (0.67, 0.84, 1.0, 1.2, 1.5, 1.8, 2.0, 2.22, 2.56, 2.87),
    "Pinky": (0.86, 1.02, 1.22, 1.58, 1.88, 2.14, 2.55, 2.86),
}
THUMB_FREE_RINGS = 3  # between the hole and the rings at these stations
THUMB_RINGS = (0.22, 0.52, 0.80, 1.0, 1.2, 1.5, 1.78, 1.94)
RELAX_STEPS = 80


class Limb(NamedTuple):
    """An ellipse swept along a straight axis, with half an ellipsoid at each end; or a stack of M of them."""

    origin: np.ndarray  # (3,) m
    axes: np.ndarray  # (3, 3) unit rows: along, sideways, back
    length: float  # m
    profile: np.ndarray  # (4, K) m over [0, length]: half-width, half-axis to the back, to the pad, offset to the back
    cap: float  # m: half-axis of the ends along the limb


class Digit(NamedTuple):
    """The straight part of a finger: all three bones of a long finger, the last two of the thumb."""

    limb: Limb  # sideways is the flexion axis
    stations: np.ndarray  # (B+1,) m along the limb: each joint, then the end of the last bone

    @property
    def tip(self) -> float:
        """The fingertip's station, m."""
        return self.limb.length + self.limb.cap

    def section(self, station: float) -> np.ndarray:
        """(4,) m: the profile at a station."""
        knots = np.linspace(0, self.limb.length, self.limb.profile.shape[1])
        return interpolate(station, knots, self.limb.profile.T)

    def centre(self, station: float) -> np.ndarray:
        """(3,) m: the middle of the cross-section at a station."""
        along, _, back = self.limb.axes
        return self.limb.origin + station * along + self.section(station)[3] * back

    def outline(self, station: float, angles: np.ndarray) -> np.ndarray:
        """(A, 3) m: the cross-section's outline at `angles` from the side towards the back."""
        width, back, pad, _ = self.section(station)
        shrink = np.sqrt(max(0.0, 1 - (max(0.0, station - self.limb.length) / self.limb.cap) ** 2))
        height = np.sin(angles) * np.where(np.sin(angles) > 0, back, pad)
        ellipse = np.stack((np.cos(angles) * width, height), -1) * shrink
        return self.centre(station) + ellipse @ self.limb.axes[1:]


class Anatomy(NamedTuple):
    """What a hand is made of."""

    digits: dict[str, Digit]
    joints: np.ndarray  # (16, 3) m, in MANO order
    bone_axes: np.ndarray  # (16, 3, 3) unit rows: along, sideways (the flexion axis), back
    limbs: tuple[Limb, Limb, Limb]  # stacks: palm, thumb, fingers


class Layout(NamedTuple):
    """The connectivity of the mesh. `-1` stands for a vertex that the thumb's hole replaces."""

    quads: np.ndarray  # (Q, 4), outward
    triangles: np.ndarray  # (T, 3), outward
    rows: list[np.ndarray]  # of the palm, from the wrist to the fingers
    webs: np.ndarray  # (3, 4) vertices between neighbouring fingers, from the back to the palm
    rings: dict[str, np.ndarray]  # finger -> (R, sides); the first is shared with the palm


class Mesh(NamedTuple):
    """The right hand at rest."""

    vertices: np.ndarray  # (778, 3) m
    faces: np.ndarray  # (1538, 3) uint32, outward
    neighbours: np.ndarray  # (778, 778): row v averages the neighbours of v
    finger: np.ndarray  # (778,) index into FINGERS; -1 on the palm


def build_mesh(anatomy: Anatomy) -> Mesh:
    """Lay the mesh over a hand's surface."""
    layout = _layout()
    neighbours = _neighbour_average(layout)
    vertices = _vertices(anatomy, layout, neighbours)
    finger = np.full(VERTICES, -1)
    for k, name in enumerate(FINGERS):
        finger[layout.rings[name][1:]] = finger[FINGERTIP_VERTICES[f"{name}_4"]] = k
    return Mesh(vertices, _faces(layout, vertices), neighbours, finger)


# ---- anatomy ----


def interpolate(at: float | np.ndarray, knots: np.ndarray, points: np.ndarray) -> np.ndarray:
    """`np.interp` of each column: (...) and (K,), (K, D) -> (..., D)."""
    return np.stack([np.interp(at, knots, column) for column in points.T], -1)


def _unit_axes(along: np.ndarray, back: np.ndarray) -> np.ndarray:
    """(3, 3) unit rows along, sideways, back. A positive rotation about `sideways` turns `along` away from `back`."""
    along = along / np.linalg.norm(along)
    back = back - (back @ along) * along
    back = back / np.linalg.norm(back)
    return np.stack((along, np.cross(back, along), back))


def _profile(knots: np.ndarray, values: np.ndarray, length: float, samples: int = 48) -> np.ndarray:
    """(4, K) values over [0, length] m: linear between the knots, then smoothed so that no crease shows."""
    reach, sigma = 0.25 * length, 3 * MM
    s = np.linspace(-reach, length + reach, samples + samples // 2)
    step = s[1] - s[0]
    half = int(np.ceil(3 * sigma / step))
    kernel = np.exp(-0.5 * (np.arange(-half, half + 1) * step / sigma) ** 2)
    rough = np.pad(interpolate(s, knots, values.T), ((half, half), (0, 0)), mode="edge")
    smooth = np.stack([np.convolve(column, kernel / kernel.sum(), mode="valid") for column in rough.T], -1)
    return interpolate(np.linspace(0, length, samples), s, smooth).T


def _limb(start: np.ndarray, end: np.ndarray, radii: np.ndarray, back: np.ndarray) -> Limb:
    """A limb from (3, 3) radii m: rows start, middle, end; columns half-width, back, pad."""
    length = np.linalg.norm(end - start)
    profile = _profile(np.array([0, length / 2, length]), np.concatenate((radii.T, np.zeros((1, 3)))), length)
    return Limb(start, _unit_axes(end - start, back), length, profile, radii[:, 0].mean())


def _digit(
    origin: np.ndarray, axes: np.ndarray, bones: tuple[float, ...], profile: tuple, cap: float, factors: np.ndarray
) -> Digit:
    """`bones`, `profile` and `cap` are in millimetres; `factors` (2,) multiply the length and the girth."""
    stations = np.append(0, np.cumsum(bones)) * MM * factors[0]
    cap = cap * MM * factors[1]
    length = stations[-1] + TIP_FLESH * MM - cap
    knots = np.interp(PROFILE_STATIONS[: len(profile[0]) - 1], np.arange(len(stations)), stations)
    values = np.array(profile) * MM * factors[1]
    return Digit(Limb(origin, axes, length, _profile(np.append(knots, length), values, length), cap), stations)


def build_anatomy(factors: np.ndarray) -> Anatomy:
    """The right hand. `factors` (5, 2) multiply the length and the girth of each finger."""
    thumb_joints = np.array(THUMB_JOINTS) * MM
    last_bones = np.linalg.norm(thumb_joints[2] - thumb_joints[1]) / MM, THUMB_LAST_BONE
    axes = _unit_axes(thumb_joints[2] - thumb_joints[1], THUMB_BACK)
    digits = {"Thumb": _digit(thumb_joints[1], axes, last_bones, THUMB_PROFILE, THUMB_CAP, factors[0])}
    for (finger, row), factor in zip(LONG_FINGER_TABLE.items(), factors[1:], strict=True):
        knuckle, direction, bones, girth = row
        axes = _unit_axes(np.array(direction), UP)
        digits[finger] = _digit(
            np.array(knuckle) * MM, axes, bones, FINGER_PROFILE, FINGER_CAP, factor * np.array([1, girth])
        )
    joints, bone_axes = np.zeros((len(MANO_JOINTS), 3)), np.zeros((len(MANO_JOINTS), 3, 3))
    joints[0], bone_axes[0] = np.array(WRIST_JOINT) * MM, _unit_axes(np.array([-1.0, 0, 0]), UP)
    for finger, digit in digits.items():
        first = FIRST_JOINT[finger] + (finger == "Thumb")
        joints[first : first + len(digit.stations) - 1] = [digit.centre(s) for s in digit.stations[:-1]]
        bone_axes[first : first + len(digit.stations) - 1] = digit.limb.axes
    thumb = FIRST_JOINT["Thumb"]
    joints[thumb], bone_axes[thumb] = thumb_joints[0], _unit_axes(joints[thumb + 1] - thumb_joints[0], THUMB_BACK)
    return Anatomy(digits, joints, bone_axes, _limbs(digits))


def _limbs(digits: dict[str, Digit]) -> tuple[Limb, Limb, Limb]:
    """The stacks of `Anatomy.limbs`."""
    palm, thumb = (
        [_limb(*(np.array(part) * MM for part in row), back) for row in table]
        for table, back in ((PALM_LIMBS, UP), (THUMB_LIMBS, THUMB_BACK))
    )
    thumb.append(digits["Thumb"].limb)
    centres = [digits[finger].centre(WEB_STATION * MM) for finger in LONG_FINGERS]
    webs = [_limb(*ends, np.array([WEB_RADII] * 3) * MM, UP) for ends in pairwise(centres)]
    fingers = [digits[finger].limb for finger in LONG_FINGERS] + webs
    return tuple(Limb(*(np.array(field) for field in zip(*group, strict=True))) for group in (palm, thumb, fingers))


# ---- the implicit surface ----


def _limb_distances(limbs: Limb, points: np.ndarray) -> np.ndarray:
    """(M, P) m: approximate signed distance from (P, 3) points to each limb of a stack, negative inside."""
    local = np.einsum("mij,mpj->mpi", limbs.axes, points[None] - limbs.origin[:, None])
    along = np.clip(local[..., 0], 0, limbs.length[:, None])
    last = limbs.profile.shape[2] - 1
    position = along / limbs.length[:, None] * last
    cell = np.minimum(position.astype(int), last - 1)
    fraction = (position - cell)[:, None]
    below = np.take_along_axis(limbs.profile, cell[:, None], axis=2)
    above = np.take_along_axis(limbs.profile, cell[:, None] + 1, axis=2)
    width, back, pad, offset = np.moveaxis(below + fraction * (above - below), 1, 0)
    height = local[..., 2] - offset
    radii = np.stack((np.broadcast_to(limbs.cap[:, None], width.shape), width, np.where(height > 0, back, pad)), -1)
    scaled = np.stack((local[..., 0] - along, local[..., 1], height), -1) / radii
    # First-order distance to an ellipsoid.
    k0 = np.linalg.norm(scaled, axis=-1)
    k1 = np.linalg.norm(scaled / radii, axis=-1)
    return k0 * (k0 - 1) / np.maximum(k1, 1e-9)


def _smooth_min(a: np.ndarray, b: np.ndarray, radius: float) -> np.ndarray:
    """Minimum with a fillet: equal to `min` where a and b differ by more than `radius` mm."""
    h = np.maximum(radius * MM - np.abs(a - b), 0) / (radius * MM)
    return np.minimum(a, b) - h * h * (radius * MM) / 4


def surface_parts(anatomy: Anatomy, points: np.ndarray) -> list[np.ndarray]:
    """[(P,)] * 3 m: signed distance from (P, 3) points to the palm, the thumb and the fingers."""
    blends = (BLEND_PALM, BLEND_THUMB, BLEND_FINGERS)
    return [
        reduce(lambda a, b, radius=blend: _smooth_min(a, b, radius), _limb_distances(limbs, points))
        for limbs, blend in zip(anatomy.limbs, blends, strict=True)
    ]


def _surface(anatomy: Anatomy, points: np.ndarray) -> np.ndarray:
    """(P,) m: approximate signed distance from (P, 3) points to the hand, negative inside."""
    palm, thumb, fingers = surface_parts(anatomy, points)
    return _smooth_min(_smooth_min(palm, thumb, BLEND_THUMB_PALM), fingers, BLEND_FINGERS_PALM)


def _project(anatomy: Anatomy, points: np.ndarray, directions: np.ndarray, steps: int = 1) -> np.ndarray:
    """Move (P, 3) points onto the surface by Newton steps. `directions` (P, 3) is 0 for coordinates to keep."""
    eps = 0.05 * MM
    for _ in range(steps):
        shifted = np.concatenate([points] + [points + eps * axis for axis in np.eye(3)])
        value, *ahead = _surface(anatomy, shifted).reshape(4, -1)
        gradient = (np.stack(ahead, -1) - value[:, None]) / eps * directions
        points = points - gradient * (value / np.maximum((gradient**2).sum(-1), 0.05))[:, None]
    return points


# ---- connectivity ----


def _tube(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """(N, 4): quads between two closed rings of the same length."""
    return np.stack((lower, np.roll(lower, -1), np.roll(upper, -1), upper), -1)


def _strip(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """(M + N, 3): triangles between closed rings of M and N vertices; the ring that lags behind takes the next step."""
    m, n = len(lower), len(upper)
    halfway = np.concatenate(((np.arange(n) + 0.5) / n, (np.arange(m) + 0.5) / m))
    on_lower = np.argsort(halfway, kind="stable") >= n
    i, j = np.cumsum(on_lower) - on_lower, np.cumsum(~on_lower) - ~on_lower  # steps taken before
    ahead = np.where(on_lower, lower[(i + 1) % m], upper[(j + 1) % n])
    return np.stack((lower[i % m], ahead, upper[j % n]), -1)


def _layout() -> Layout:
    """Number the vertices and connect them; the fingertips get the numbers that the published system expects."""
    free = iter(range(VERTICES))

    def take(*shape: int) -> np.ndarray:
        return np.array([next(free) for _ in range(np.prod(shape))]).reshape(shape)

    rows = []
    around = (HOLE_COLUMN + np.arange(HOLE_SIZE + 1)) % PALM_COLUMNS
    for r, count in enumerate(PALM_ROWS):
        inside = around[1:-1] if HOLE_ROW < r < HOLE_ROW + HOLE_SIZE else []
        kept = np.setdiff1d(np.arange(count), inside)
        rows.append(np.full(count, -1))
        rows[r][kept] = take(len(kept))
    triangles, quads = [], []
    for lower, upper in pairwise(rows):
        if len(lower) == len(upper):
            quads.append(_tube(lower, upper))
        else:
            triangles.append(_strip(lower, upper))
    front = rows[-1]
    gaps = np.stack((front[[21, 20]], *take(3, 2), front[[9, 10]]))  # beside the fingers, from the back to the palm
    hole = np.stack([row[around] for row in rows[HOLE_ROW : HOLE_ROW + HOLE_SIZE + 1]])
    # The rings that the fingers grow from, seen from the tip: back, pinky's side, pad, thumb's side.
    bases = {
        finger: np.concatenate((front[2 * k : 2 * k + 3], gaps[k + 1], front[17 - 2 * k : 20 - 2 * k], gaps[k][::-1]))
        for k, finger in enumerate(LONG_FINGERS)
    }
    bases["Thumb"] = np.concatenate((hole[0, :-1], hole[:-1, -1], hole[-1, :0:-1], hole[:0:-1, 0]))
    counts = {finger: len(stations) for finger, stations in FINGER_RINGS.items()}
    counts["Thumb"] = THUMB_FREE_RINGS + len(THUMB_RINGS)
    rings, number = {}, np.append(np.arange(VERTICES), -1)
    for finger, base in bases.items():
        rings[finger] = np.concatenate((base[None], take(counts[finger], len(base))))
        tip = int(take(1)[0])
        quads += [_tube(*pair) for pair in pairwise(rings[finger])]
        last = rings[finger][-1]
        triangles.append(np.stack((last, np.roll(last, -1), np.full(len(last), tip)), -1))
        holder = np.flatnonzero(number == FINGERTIP_VERTICES[f"{finger}_4"])[0]
        number[[tip, holder]] = number[[holder, tip]]
    webs = [np.array([front[2 * k + 2], *gaps[k + 1], front[17 - 2 * k]]) for k in range(3)]
    quads = np.concatenate(quads)
    quads = quads[(quads >= 0).all(1)]  # none in the hole
    rings = {finger: number[ring] for finger, ring in rings.items()}
    return Layout(
        number[quads], number[np.concatenate(triangles)], [number[r] for r in rows], number[np.stack(webs)], rings
    )


# ---- positions ----


def _wrist_loop() -> np.ndarray:
    """(16, 3) m: evenly spaced on an ellipse, starting between the back and the thumb's side, back first."""
    angle = np.linspace(0, 2 * np.pi, 721) + np.radians(24.5)
    ellipse = np.stack((WRIST_LOOP_X + 0 * angle, 17 * np.sin(angle) - 4, 27 * np.cos(angle) + 1), -1) * MM
    length = np.append(0, np.cumsum(np.linalg.norm(np.diff(ellipse, axis=0), axis=1)))
    return interpolate(np.arange(PALM_ROWS[0]) / PALM_ROWS[0] * length[-1], length, ellipse)


def _resampled(loop: np.ndarray, count: int) -> np.ndarray:
    """(N, 3) -> (count, 3): a closed loop with another number of vertices."""
    at = np.arange(count) / count * len(loop)
    return interpolate(at, np.arange(len(loop) + 1), np.concatenate((loop, loop[:1])))


def _web_points(anatomy: Anatomy, finger: str, neighbour: str) -> np.ndarray:
    """(4, 3) m on the surface between two fingers: where rays from inside the web leave it, fanned out midway.

    Relaxation cannot place them, because there is no surface between the fingers to hold on to.
    """
    first, second = anatomy.digits[finger], anatomy.digits[neighbour]
    centre = (first.centre(WEB_STATION * MM) + second.centre(WEB_STATION * MM)) / 2
    along, _, back = _unit_axes(*(first.limb.axes + second.limb.axes)[[0, 2]])
    angles = np.radians(WEB_ANGLES)
    rays = np.outer(np.cos(angles), along) + np.outer(np.sin(angles), back)
    reach = np.linspace(0, 25 * MM, 251)
    inside = _surface(anatomy, (centre + reach[:, None, None] * rays).reshape(-1, 3)).reshape(len(reach), -1) < 0
    return centre + reach[np.argmin(inside, axis=0)][:, None] * rays


def _first_guess(anatomy: Anatomy, layout: Layout) -> np.ndarray:
    """(778, 3) m: rings around the fingers, straight lines from the wrist to them, and to the thumb's first ring."""
    vertices = np.zeros((VERTICES, 3))
    for finger, digit in anatomy.digits.items():
        is_thumb = finger == "Thumb"
        units = THUMB_RINGS if is_thumb else FINGER_RINGS[finger]
        stations = np.interp(units, np.arange(len(digit.stations)), np.append(digit.stations[:-1], digit.tip))
        sides, start = (THUMB_SIDES, 0) if is_thumb else (FINGER_SIDES, np.radians(54))
        angles = start + 2 * np.pi / sides * np.arange(sides)
        rings = layout.rings[finger][1 + THUMB_FREE_RINGS * is_thumb :]
        vertices[rings] = [digit.outline(station, angles) for station in stations]
        vertices[FINGERTIP_VERTICES[f"{finger}_4"]] = digit.centre(digit.tip)
        if not is_thumb:
            vertices[layout.rings[finger][0]] = digit.outline(WEB_STATION * MM, angles)
    for web, pair in zip(layout.webs, pairwise(LONG_FINGERS), strict=True):
        vertices[web] = _web_points(anatomy, *pair)
    front, last = vertices[layout.rows[-1]], len(layout.rows) - 1
    for r, row in enumerate(layout.rows[:-1]):
        wrist, ahead = _resampled(_wrist_loop(), len(row)), _resampled(front, len(row))
        vertices[row[row >= 0]] = (wrist + (ahead - wrist) * r / last)[row >= 0]
    rim, *free, ahead = layout.rings["Thumb"][: 2 + THUMB_FREE_RINGS]
    for k, ring in enumerate(free, 1):
        vertices[ring] = vertices[rim] + (vertices[ahead] - vertices[rim]) * k / (THUMB_FREE_RINGS + 1)
    return vertices


def _neighbour_average(layout: Layout) -> np.ndarray:
    """(V, V): row v averages the neighbours of v. Without the quads' diagonals, which would pull to one side."""
    average = np.zeros((VERTICES, VERTICES))
    for polygons in (layout.quads, layout.triangles):
        average[polygons, np.roll(polygons, -1, 1)] = 1
    average = np.maximum(average, average.T)
    return average / average.sum(1, keepdims=True)


def _vertices(anatomy: Anatomy, layout: Layout, neighbours: np.ndarray) -> np.ndarray:
    """(778, 3) m: the template. Fingers keep their rings; the palm and the junctions are relaxed on the surface."""
    vertices = _first_guess(anatomy, layout)
    directions = np.ones((VERTICES, 3))
    directions[layout.rows[0], 0] = 0  # the wrist's loop stays in its plane
    is_free = np.ones(VERTICES, bool)
    is_free[list(FINGERTIP_VERTICES.values())] = is_free[layout.webs] = is_free[layout.rows[0]] = False
    for finger, rings in layout.rings.items():
        is_free[rings[1 + THUMB_FREE_RINGS * (finger == "Thumb") :]] = False
    for _ in range(RELAX_STEPS):
        moved = 0.5 * (vertices[is_free] + neighbours[is_free] @ vertices)
        vertices[is_free] = _project(anatomy, moved, directions[is_free])
    return _project(anatomy, vertices, directions, steps=4)


def _faces(layout: Layout, vertices: np.ndarray) -> np.ndarray:
    """(1538, 3) uint32: each quad cut along its shorter diagonal."""
    a, b, c, d = vertices[layout.quads].swapaxes(0, 1)
    first, second = np.linalg.norm(a - c, axis=1), np.linalg.norm(b - d, axis=1)
    is_first = (first <= 1.03 * second)[:, None, None]  # the margin keeps rounding from deciding between equals
    halves = np.where(is_first, layout.quads[:, [[0, 1, 2], [0, 2, 3]]], layout.quads[:, [[0, 1, 3], [1, 2, 3]]])
    return np.concatenate((halves.reshape(-1, 3), layout.triangles)).astype(np.uint32)
