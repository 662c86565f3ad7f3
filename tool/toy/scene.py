"""Scenes of the toy datasets: hands in plausible random poses, alone or in contact, and cameras that look at them.

Everything is a pure function of its arguments; randomness comes from the generator that is passed in. Besides the
frames of `common/utils/frames.py` there is one more, `stage`: metres, the hands around its origin, axes as those of a
camera in front of the person (x right in the image, y down, z away from the viewer). A writer takes it for its
dataset's world, or moves the hands to a camera with `move_hands`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from common.nets.mano import TwoHandMano
from common.nets.mano_files import HandModel
from common.types import LEFT, RIGHT, ManoParams
from common.utils.camera import CaptureCamera, project_capture, world_to_cam
from common.utils.joints import FINGERS, JOINTS, MANO_JOINTS, WRIST
from common.utils.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from tool.toy.standin_hand import flexion_axes

MIRROR_AXIS = np.array([1.0, -1.0, -1.0])  # rotation axes mirror as pseudo-vectors

# Bend of the thumb and of index to pinky (0 straight, 1 as in a fist), how far the long fingers are spread, weight.
GESTURES: dict[str, tuple[tuple[float, float, float, float, float], float, float]] = {
    "flat": ((0.1, 0.05, 0.05, 0.05, 0.08), 0.1, 1.5),
    "spread": ((0.0, 0.0, 0.0, 0.0, 0.0), 1.0, 1.5),
    "relaxed": ((0.3, 0.25, 0.32, 0.38, 0.42), 0.2, 2.5),
    "fist": ((0.85, 0.97, 1.0, 1.0, 0.97), 0.0, 1.5),
    "point": ((0.7, 0.05, 0.85, 0.95, 0.95), 0.0, 1.5),
    "two": ((0.8, 0.03, 0.03, 0.9, 0.9), 0.7, 1.0),
    "thumb up": ((-0.1, 0.95, 1.0, 1.0, 0.97), 0.0, 0.8),
    "horns": ((0.7, 0.05, 0.9, 0.9, 0.05), 0.3, 0.5),
    "pinch": ((0.55, 0.52, 0.35, 0.25, 0.2), 0.2, 1.2),
    "grip": ((0.4, 0.55, 0.6, 0.62, 0.65), 0.2, 1.5),
    "three": ((0.8, 0.05, 0.05, 0.08, 0.9), 0.5, 0.7),
}
# Degrees at bend 1 of joints 1 to 3.
FINGER_BEND, THUMB_BEND = (78.0, 98.0, 62.0), (28.0, 42.0, 58.0)
SPREAD_DEGREES = {"Index": 11.0, "Middle": 2.0, "Ring": -7.0, "Pinky": -15.0}

# How two hands lie to each other, and how often.
LAYOUTS = {"near": 0.3, "palms": 0.17, "over": 0.3, "touch": 0.23}

# Balls that fill a hand, on the bones of `JOINTS`: (from, to, at which parts of the way).
_BALL_BONES = (
    *((f"{finger}_{k}", f"{finger}_{k + 1}", (0.0, 0.5)) for finger in FINGERS for k in (1, 2)),
    *((f"{finger}_3", f"{finger}_4", (0.0, 0.4, 0.75)) for finger in FINGERS),
    *(("Wrist", f"{finger}_1", (0.2, 0.45, 0.7, 0.88)) for finger in FINGERS[1:]),
    ("Wrist", "Thumb_1", (0.5, 0.8)),
)
_FOREARM_BALLS = np.array([0.0, 0.025, 0.05, 0.08, 0.11, 0.14])  # m from the wrist
_FOREARM_RADIUS = 0.026  # m


@dataclass(frozen=True)
class HandRig:
    """What the scenes need of a pair of hand models; built once by `build_rig`. Hands are an axis, right 0.

    Attributes:
        mano: the layer that poses the hands.
        models: right, left.
        regressor: (21, 778) of the 21 joints.
        flexion, splay: (2, 15, 3) unit axes in MANO's joint order. A positive angle about the first bends a finger,
            about the second moves it sideways, towards the thumb.
        ball_joints: (B, 21) weights that put the balls on the joints.
        ball_radii: (B,) m.
    """

    mano: TwoHandMano
    models: tuple[HandModel, HandModel]
    regressor: np.ndarray
    flexion: np.ndarray
    splay: np.ndarray
    ball_joints: np.ndarray
    ball_radii: np.ndarray


class Hands(NamedTuple):
    """Two posed hands in some frame; rows of a hand that is not `present` mean nothing."""

    present: np.ndarray  # (2,) bool
    global_orient: np.ndarray  # (2, 3) axis-angle
    hand_pose: np.ndarray  # (2, 15, 3) axis-angle without the mean pose
    betas: np.ndarray  # (2, 10)
    transl: np.ndarray  # (2, 3) m, added to what the layer gives
    pivots: np.ndarray  # (2, 3) m, in the hand's own axes: what the global rotation turns about
    vertices: np.ndarray  # (2, 778, 3) m
    joints: np.ndarray  # (2, 21, 3) m


class View(NamedTuple):
    """A camera that looks at a scene, world_to_cam included, and the size of its images."""

    camera: CaptureCamera
    size: tuple[int, int]  # (h, w) px


def build_rig(models: tuple[HandModel, HandModel]) -> HandRig:
    """Prepare a pair of hand models (see `common.nets.mano_files.read_hand_models`)."""
    mano, template = TwoHandMano(*models), models[RIGHT].v_template
    regressor = mano.joint_regressor.numpy().astype(np.float64)
    rest, joints = models[RIGHT].J_regressor @ template, regressor @ template
    ends = [name[:-1] + str(int(name[-1]) + 1) for name in MANO_JOINTS[1:]]
    along = joints[[JOINTS.index(end) for end in ends]] - rest[1:]
    bend = flexion_axes("right")
    splay = np.cross(along, bend)
    splay /= np.linalg.norm(splay, axis=1, keepdims=True)
    weights = np.zeros((sum(len(parts) for *_, parts in _BALL_BONES), len(JOINTS)))
    bones = [(start, end, part) for start, end, parts in _BALL_BONES for part in parts]
    for row, (start, end, part) in zip(weights, bones, strict=True):
        row[JOINTS.index(start)], row[JOINTS.index(end)] = 1 - part, part
    radii = np.linalg.norm((weights @ joints)[:, None] - template, axis=-1).min(1)
    flexion, splay = (np.stack((axes, axes * MIRROR_AXIS)) for axes in (bend, splay))
    return HandRig(mano, models, regressor, flexion, splay, weights, radii)


def sample_hand_pose(rng: np.random.Generator, rig: HandRig, side: int, gesture: str | None = None) -> np.ndarray:
    """A plausible hand pose, (15, 3) axis-angle without the mean pose.

    `gesture` is a key of `GESTURES`; None draws one. Around it, all fingers vary together and each a little by itself.
    """
    if gesture is None:
        odds = np.array([entry[2] for entry in GESTURES.values()])
        gesture = str(rng.choice(list(GESTURES), p=odds / odds.sum()))
    bends, spread, _ = GESTURES[gesture]
    common = rng.normal(0, 0.07)
    spread += rng.normal(0, 0.2)
    knuckle_share = np.clip(rng.normal(1, 0.2), 0.5, 1.4)  # how much of the bend is in the knuckles
    pose = np.zeros((15, 3))
    for finger, bend in zip(FINGERS, bends, strict=True):
        bend = np.clip(bend + common + rng.normal(0, 0.05), -0.1, 1.03)
        angles = bend * np.array(THUMB_BEND if finger == "Thumb" else FINGER_BEND) + rng.normal(0, 2.5, 3)
        first = MANO_JOINTS.index(f"{finger}_1") - 1
        if finger == "Thumb":
            sideways = rng.normal(4, 6) - 6 * max(bend, 0)
        else:
            # Bent fingers cannot be spread, and close up.
            sideways = SPREAD_DEGREES[finger] * spread * (1 - np.clip(bend, 0, 1)) + rng.normal(0, 1.5)
            angles[0] *= np.clip(knuckle_share, 0.5, 1.05 / max(bend, 0.75))
        pose[first : first + 3] = np.radians(angles)[:, None] * rig.flexion[side, first : first + 3]
        pose[first] += np.radians(sideways) * rig.splay[side, first]
    return pose - rig.models[side].hands_mean.reshape(15, 3)


def sample_betas(rng: np.random.Generator) -> np.ndarray:
    """A person's hand shape, (10,)."""
    return np.clip(rng.normal(0, 0.8, 10), -2, 2)


def palm_rotation(fingers: np.ndarray, palm: np.ndarray, side: int) -> np.ndarray:
    """The rotation of a hand that points its fingers one way and its palm another.

    Args:
        fingers, palm: (3,) directions; only the part of `palm` across `fingers` counts.

    Returns:
        (3, 3), from the hand's own axes (fingers along -x, of the left hand +x; palm -y).
    """
    f = fingers / np.linalg.norm(fingers)
    p = palm - (palm @ f) * f
    p /= np.linalg.norm(p)
    x = -f if side == RIGHT else f
    return np.stack((x, -p, np.cross(x, -p)), axis=1)


def _sample_rotation(rng: np.random.Generator, side: int, variety: float, spread: float = 0.55) -> np.ndarray:
    """(3, 3): fingers roughly up, towards the viewer or inward; the palm anywhere, as a forearm turns. With little
    variety the viewer sees the hand's back."""
    inward = 1.0 if side == RIGHT else -1.0
    fingers = np.array([0.3 * inward, -0.9, -0.25]) + rng.normal(0, spread * variety, 3)
    if fingers[1] > 0.3:  # few arms come from above
        fingers[1] *= -1
    palms = ((0, 0, -1.0), (0, 0, 1.0), (inward, 0, 0), (0, 1.0, 0))
    odds = variety * np.array((0.35, 0.3, 0.25, 0.1)) + (1 - variety) * np.array((0, 1, 0, 0))
    palm = np.array(palms[rng.choice(4, p=odds)]) + rng.normal(0, 0.45 * variety, 3)
    return palm_rotation(fingers, palm, side)


def _bend(
    rng: np.random.Generator,
    rig: HandRig,
    present: tuple[bool, bool],
    betas: np.ndarray | None = None,
    gestures: Sequence[str | None] = (None, None),
    variety: float = 1.0,
) -> Hands:
    """Draw the poses of both hands, and their shape unless it is given: the two hands of a person differ a little.

    Both wrists are at the origin, the axes are the hands' own. Numbers are rounded to float32 first, as the files of
    the datasets hold them.
    """
    pose = variety * np.stack([sample_hand_pose(rng, rig, side, gestures[side]) for side in (RIGHT, LEFT)])
    both = np.stack((betas, betas)) if betas is not None else sample_betas(rng) + rng.normal(0, 0.05, (2, 10))
    pose, both = pose.astype(np.float32), both.astype(np.float32)
    params = ManoParams(torch.zeros(1, 2, 3), torch.from_numpy(pose)[None], torch.from_numpy(both)[None])
    with torch.no_grad():
        vertices = rig.mano(params)[0][0].double().numpy()
    pivots = [m.J_regressor[0] @ (m.v_template + m.shapedirs @ b) for m, b in zip(rig.models, both, strict=True)]
    pivots = np.stack(pivots)
    vertices -= pivots[:, None]
    joints = rig.regressor @ vertices
    return Hands(np.array(present), np.zeros((2, 3)), pose, both, -pivots, pivots, vertices, joints)


def fill_with_balls(rig: HandRig, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Balls that fill one hand and the near part of its forearm: (21, 3) joints -> (B, 3) m, (B,) m."""
    axis = joints[WRIST] - joints[JOINTS.index("Middle_1")]
    forearm = joints[WRIST] + _FOREARM_BALLS[:, None] * axis / np.linalg.norm(axis)
    radii = np.concatenate((rig.ball_radii, np.full(len(forearm), _FOREARM_RADIUS)))
    return np.concatenate((rig.ball_joints @ joints, forearm)), radii


def slide_apart(
    fixed: tuple[np.ndarray, np.ndarray], moving: tuple[np.ndarray, np.ndarray], direction: np.ndarray
) -> float:
    """How far balls must go along a direction until they, and all places farther on, are clear of the others.

    Balls are (B, 3) centres and (B,) radii; `direction` (3,) has length 1. The result may be negative: the balls then
    come closer until they touch. It is 0 where they would pass without touching.
    """
    apart = moving[0][None] - fixed[0][:, None]
    reach = moving[1][None] + fixed[1][:, None]
    # |apart + t direction| = reach, for which the larger t is taken.
    b = apart @ direction
    root = b * b - (apart * apart).sum(-1) + reach * reach
    ends = np.where(root > 0, -b + np.sqrt(np.maximum(root, 0)), -np.inf)
    return float(ends.max()) if np.isfinite(ends).any() else 0.0


def _layout_rotations(rng: np.random.Generator, layout: str, variety: float) -> np.ndarray:
    """(2, 3, 3): with "palms", the palms face each other; else each hand turns as it likes."""
    if layout != "palms":
        return np.stack([_sample_rotation(rng, side, variety) for side in (RIGHT, LEFT)])
    tilt = rng.normal(0, 0.5, 3) * (1, 0, 1)
    rotations = []
    for side, inward in ((RIGHT, 1.0), (LEFT, -1.0)):
        fingers = np.array([0.12 * inward, -1, -0.3]) + tilt + rng.normal(0, 0.2, 3)
        rotations.append(palm_rotation(fingers, np.array([inward, 0, 0]) + rng.normal(0, 0.2, 3), side))
    return np.stack(rotations)


def _palm_centre(joints: np.ndarray) -> np.ndarray:
    """(21, 3) -> (3,) m."""
    return joints[[WRIST, JOINTS.index("Index_1"), JOINTS.index("Pinky_1")]].mean(0)


def _place(rng: np.random.Generator, rig: HandRig, bent: Hands, rotations: np.ndarray, layout: str) -> np.ndarray:
    """Where the wrists go, (2, 3) m: anchors on each other, then apart along a line until the hands touch."""
    joints = np.einsum("hab,hjb->hja", rotations, bent.joints)
    anchors = np.stack([_palm_centre(joints[h]) for h in (RIGHT, LEFT)])
    mover, gap = LEFT, rng.uniform(-0.001, 0.012)
    aside = rng.normal(0, 0.012, 3)
    if layout == "near":
        direction = np.array([1, 0, 0]) + rng.normal(0, 0.2, 3)
        aside, gap = rng.normal(0, 0.03, 3), rng.choice([0.003, rng.uniform(0, 0.04), rng.uniform(0.03, 0.12)])
    elif layout == "palms":
        direction = np.array([1, 0, 0]) + rng.normal(0, 0.1, 3)
    elif layout == "over":
        direction = np.array([0, 0, rng.choice([-1.0, 1.0])]) + rng.normal(0, 0.3, 3)
        aside = rng.normal(0, 0.03, 3)
    else:  # touch
        mover = int(rng.integers(2))
        tip = joints[mover, JOINTS.index("Index_4")]
        anchors[mover] = tip
        direction = joints[mover, JOINTS.index("Index_3")] - tip
        direction = direction / np.linalg.norm(direction) + rng.normal(0, 0.15, 3)
        anchors[1 - mover] = joints[1 - mover, rng.integers(1, 21)] if rng.random() < 0.4 else anchors[1 - mover]
    direction = direction / np.linalg.norm(direction)
    wrists = -anchors
    wrists[mover] += aside
    balls = [fill_with_balls(rig, joints[h] + wrists[h]) for h in (RIGHT, LEFT)]
    wrists[mover] += direction * (slide_apart(balls[1 - mover], balls[mover], direction) + gap)
    return wrists


def sample_hands(
    rng: np.random.Generator,
    rig: HandRig,
    present: tuple[bool, bool],
    betas: np.ndarray | None = None,
    variety: float = 1.0,
) -> Hands:
    """One hand, or two that interact, around the origin of `stage`.

    Args:
        present: right, left.
        betas: (10,) of the person; None draws them.
        variety: 0 to 1, how much hands differ; with less they are closer to rest, upright and side by side.
    """
    layout = str(rng.choice(list(LAYOUTS), p=list(LAYOUTS.values())))
    if variety < 1 and rng.random() > variety:
        layout = "near"
    gestures: list[str | None] = [None, None]
    if all(present) and layout == "touch" and rng.random() < 0.6:
        gestures[int(rng.integers(2))] = "point"
    bent = _bend(rng, rig, present, betas, gestures, variety)
    rotations = _layout_rotations(rng, layout if all(present) else "near", variety)
    wrists = _place(rng, rig, bent, rotations, layout) if all(present) else np.zeros((2, 3))
    hands = move_hands(bent, rotations, wrists)
    seen = hands.joints[hands.present].reshape(-1, 3)
    return move_hands(hands, np.eye(3), -(seen.min(0) + seen.max(0)) / 2)


def sample_hands_apart(
    rng: np.random.Generator, rig: HandRig, present: tuple[bool, bool], wrists: np.ndarray, variety: float = 1.0
) -> Hands:
    """Two unrelated hands, their wrists (2, 3) m at given places of `stage`."""
    bent = _bend(rng, rig, present, variety=variety)
    return move_hands(bent, np.stack([_sample_rotation(rng, side, variety, 0.7) for side in (RIGHT, LEFT)]), wrists)


def move_hands(hands: Hands, rotation: np.ndarray, transl: np.ndarray) -> Hands:
    """The same hands in another frame: x -> rotation x + transl. (3, 3), (3,) m; or (2, 3, 3), (2, 3) for each hand.

    MANO rotates a hand about its wrist, not about the origin, so its translation changes by more than `transl`.
    """
    old = axis_angle_to_matrix(torch.from_numpy(hands.global_orient)).numpy()
    orient = matrix_to_axis_angle(torch.from_numpy(rotation @ old)).float().double().numpy()
    rotation, transl = np.broadcast_to(rotation, (2, 3, 3)), np.broadcast_to(transl, (2, 3))
    vertices, joints, pivots = (
        points @ rotation.swapaxes(1, 2) + transl[:, None]
        for points in (hands.vertices, hands.joints, (hands.pivots + hands.transl)[:, None])
    )
    transl = (pivots[:, 0] - hands.pivots).astype(np.float32).astype(np.float64)
    return hands._replace(global_orient=orient, transl=transl, vertices=vertices, joints=joints)


def look_at(eye: np.ndarray, target: np.ndarray, roll: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """world_to_cam of a camera at `eye` whose axis goes through `target`, upright (-y up) but for `roll` radians.

    Returns:
        rotation (3, 3), transl (3,) m.
    """
    z = (target - eye) / np.linalg.norm(target - eye)
    x = np.cross(np.array([0.0, 1.0, 0.0]), z)
    x /= np.linalg.norm(x)
    y = np.cross(z, x)
    cos, sin = np.cos(roll), np.sin(roll)
    rotation = np.stack((cos * x + sin * y, cos * y - sin * x, z))
    return rotation, -rotation @ eye


def orbit(yaw: float, pitch: float, distance: float) -> np.ndarray:
    """(3,) m from a target to a camera in front of it (-z), `yaw` radians to the right and `pitch` radians above."""
    return distance * np.array([np.sin(yaw) * np.cos(pitch), -np.sin(pitch), -np.cos(yaw) * np.cos(pitch)])


def to_cam(view: View, points_world: np.ndarray) -> np.ndarray:
    """(..., 3) m -> (..., 3) m."""
    return world_to_cam(points_world, view.camera.rotation, view.camera.transl)


def to_image(view: View, points_world: np.ndarray) -> np.ndarray:
    """(..., 3) m -> (..., 2) px."""
    return project_capture(to_cam(view, points_world), view.camera)


def scaled_view(view: View, scale: float) -> View:
    """The same camera with images of another size; the size is rounded."""
    if scale == 1:
        return view
    height, width = (max(8, round(scale * n)) for n in view.size)
    ratio = np.array([width / view.size[1], height / view.size[0]])
    camera = replace(view.camera, focal=view.camera.focal * ratio, princpt=view.camera.princpt * ratio)
    return View(camera, (height, width))
