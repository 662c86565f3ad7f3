"""How a scene becomes an image: skin, sleeves, light, shadows and an imperfect camera.

Pure functions; colours are sRGB in 0..1 unless a name says `linear`. The geometry is that of `common.drawing.raster`.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from common.drawing.raster import HandMesh, rasterize, vertex_normals
from common.errors import UserError
from common.types import RIGHT
from common.utils.camera import Camera, project_capture
from common.utils.joints import FINGERS, JOINTS
from tool.toy.backdrops import SKIN_RGB, noise, paint
from tool.toy.scene import HandRig, Hands, View, to_cam

HAND_VERTICES = 778
# The arm: distances of its rings from the wrist, m, and their size relative to the wrist's. The last but one is the
# elbow, the last is the end of the upper arm, outside the image.
ELBOW, UPPER_ARM = 0.26, 1.0
ARM = np.array([0.012, 0.03, 0.06, 0.10, 0.16, 0.23, ELBOW, ELBOW + UPPER_ARM])
ARM_GROWTH = np.array([1.0, 1.04, 1.13, 1.25, 1.38, 1.46, 1.5, 1.6])
SLEEVE_THICKNESS = 0.14  # a sleeve is wider than the arm by this
# The skin's map: metres of the right hand at rest (x along the hand, z across) to texels.
TEXEL, MAP_ORIGIN, MAP_SIZE = 0.0004, np.array([-0.13, -0.09]), (500, 650)
# What is painted on it: distance behind the fingertip and half-axes in texels, colour factors, blur.
NAIL = (
    (15, (15, 13), (0.80, 0.66, 0.64), 1.5),
    (15, (13, 11), (1.52, 1.62, 1.72), 0.8),
    (4, (3, 9), (1.15, 1.18, 1.18), 0.8),
)
SHADOW_SIZE, SHADOW_BIAS, SHADOW_LIFT = 256, 0.004, 0.004  # texels, m, m along the normal
SHADOW_TAPS = ((0, 0), (1, 2), (-2, 1), (-1, -2), (2, -1))  # for a soft edge
OCCLUSION_REACH, OCCLUSION_DEPTH = 0.012, 0.016  # m
WRAP = np.array([0.38, 0.18, 0.12], np.float32)  # light wraps around a corner in skin, red most
MOST_SAMPLES = {3: 120_000, 2: 300_000}  # supersampling per side -> samples that an image may take with it
TO_EYE = np.array([0.0, 0.0, -1.0], np.float32)


class Look(NamedTuple):
    """What a scene looks like, apart from its shapes."""

    skin_linear: np.ndarray  # (3,)
    sleeve_linear: np.ndarray  # (3,)
    cuff: float  # m from the wrist to where the sleeve begins
    stripes: float  # strength of the sleeve's pattern
    to_lamp: np.ndarray  # (3,) unit, in `cam`
    lamp_linear: np.ndarray  # (3,)
    ambient_linear: np.ndarray  # (3,) from above
    ground_linear: np.ndarray  # (3,) from below
    gloss: float
    wrist_bend: np.ndarray  # (2, 3) m that the forearms lean sideways, per metre
    has_upper_arm: bool = True


class Skin(NamedTuple):
    """What all images of a rig share; see `build_skin`."""

    faces: np.ndarray  # (2, F, 3) hand and arm
    loops: np.ndarray  # (2, L) vertices around the wrist
    surface: (
        np.ndarray
    )  # (V, 4) x and z m of the right hand at rest; 1 on the hand's back, 0 on its palm; m along the arm
    back_map: np.ndarray  # (h * w, 3) float32, factors on the colour
    palm_map: np.ndarray


def to_linear(srgb: np.ndarray) -> np.ndarray:
    """sRGB 0..1 -> proportional to light (a power of 2.2 is close enough here)."""
    return np.asarray(srgb) ** 2.2


# ---- what is built once ----


def build_skin(rig: HandRig) -> Skin:
    """Close the hands' wrists with arms and paint the skin's maps."""
    loops = [_wrist_loop(model.faces) for model in rig.models]
    count = len(rig.models[RIGHT].v_template)
    faces = [np.concatenate((m.faces, _arm_faces(loop, count))) for m, loop in zip(rig.models, loops, strict=True)]
    model, loop = rig.models[RIGHT], loops[RIGHT]
    back = np.clip(0.5 + 1.6 * vertex_normals(model.v_template, model.faces)[:, 1], 0, 1)
    hand = np.column_stack((model.v_template[:, [0, 2]], back, np.zeros(count)))
    rings = [hand[loop] + (d, 0, 0, d) for d in ARM]
    return Skin(np.stack(faces), np.stack(loops), np.concatenate([hand, *rings, rings[-1][:1]]), *_skin_maps(rig))


def _wrist_loop(faces: np.ndarray) -> np.ndarray:
    """The open edge of a hand as a ring of vertices, in the order of its faces' edges.

    Raises:
        UserError: the mesh is not open at the wrist and closed elsewhere, as MANO's is.
    """
    half = {(a, b) for face in faces.tolist() for a, b in zip(face, face[1:] + face[:1], strict=True)}
    following = {a: b for a, b in half if (b, a) not in half}
    loop = [min(following, default=-1)]
    while len(loop) < len(following) and following.get(loop[-1], loop[0]) != loop[0]:
        loop.append(following[loop[-1]])
    if len(loop) < 3 or len(loop) != len(following) or following.get(loop[-1]) != loop[0]:
        raise UserError(
            "the hand's mesh is not open at the wrist and closed elsewhere, as MANO's is; "
            "name other files with --mano, or make a stand-in hand: python tool/make_standin_hand.py"
        )
    return np.array(loop)


def _arm_faces(loop: np.ndarray, count: int) -> np.ndarray:
    """Faces of a closed tube that continues from the wrist; its vertices follow the hand's `count`, ring by ring."""
    n = len(loop)
    rings = np.stack((loop, *(count + np.arange(len(ARM) * n).reshape(-1, n)), np.full(n, count + len(ARM) * n)))
    a, b = rings[:-1], np.roll(rings[:-1], -1, 1)
    c, d = rings[1:], np.roll(rings[1:], -1, 1)
    first, second = np.stack((b, a, c), -1), np.stack((b, c, d), -1)[:-1]  # the last ring is one vertex
    return np.concatenate((first.reshape(-1, 3), second.reshape(-1, 3)))


def _skin_maps(rig: HandRig) -> list[np.ndarray]:
    """Back and palm of the right hand at rest, seen from above: nails, knuckles, creases, veins, mottling."""
    joints = rig.regressor @ rig.models[RIGHT].v_template
    texels = {name: (joints[k, [0, 2]] - MAP_ORIGIN) / TEXEL for k, name in enumerate(JOINTS)}
    rng = np.random.default_rng(1)
    maps = []
    for paint_side in (_paint_back, _paint_palm):
        mottle = sum(noise(rng, MAP_SIZE, cell) * s for cell, s in ((80, 0.05), (25, 0.05), (6, 0.04), (2, 0.05)))
        canvas = np.ones((*MAP_SIZE, 3), np.float32) * (1 + mottle)
        paint_side(canvas, texels)
        maps.append(cv2.GaussianBlur(canvas, (0, 0), 0.9).reshape(-1, 3))
    return maps


def _stain(canvas: np.ndarray, rgb: tuple[float, float, float], blur: float, draw: Callable, *shape: object) -> None:
    """Multiply a colour onto the map where a function of OpenCV draws a shape."""

    def draw_soft(mask: np.ndarray) -> None:
        draw(mask, *shape, cv2.LINE_AA)
        cv2.GaussianBlur(mask, (0, 0), blur, mask)

    paint(canvas, draw_soft, lambda mask, below: below * np.array(rgb))


def _line(canvas: np.ndarray, points: list[np.ndarray], width: int, rgb: tuple, blur: float) -> None:
    """A line through points on the map."""
    _stain(canvas, rgb, blur, cv2.polylines, [np.round(np.array(points)).astype(np.int32)], False, 255, width)


def _spot(canvas: np.ndarray, centre: np.ndarray, along: np.ndarray, half: np.ndarray, rgb: tuple, blur: float) -> None:
    """An ellipse on the map, of half-axes `half` (2,) along and across a direction."""
    ellipse = (centre.tolist(), (2 * half).tolist(), float(np.degrees(np.arctan2(along[1], along[0]))))
    _stain(canvas, rgb, blur, cv2.ellipse, ellipse, 255, -1)


def _frame_of(texels: dict[str, np.ndarray], finger: str, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joint k of a finger on the map, the unit directions along and across the bone that ends there."""
    along = texels[f"{finger}_{k}"] - texels[f"{finger}_{k - 1}" if k > 1 else "Wrist"]
    along = along / np.linalg.norm(along)
    return texels[f"{finger}_{k}"], along, np.array([-along[1], along[0]])


def _paint_back(canvas: np.ndarray, texels: dict[str, np.ndarray]) -> None:
    for finger in FINGERS:
        size = {"Thumb": 1.2, "Pinky": 0.8}.get(finger, 1.0)
        for k in (1, 2, 3):
            joint, along, across = _frame_of(texels, finger, k)
            _spot(canvas, joint, along, size * np.array([18, 20]), (0.97, 0.84, 0.82), 7)
            for offset in (-7, -2, 3, 8) if k > 1 else ():
                middle = joint + along * offset * size
                ends = [middle + across * s * 13 * size for s in (-1, 1)]
                points = [ends[0], middle + along * 2 * np.sign(offset), ends[1]]
                _line(canvas, points, 1, (0.72, 0.62, 0.58), 0.8)
        tip, along, _ = _frame_of(texels, finger, 4)
        for behind, half, rgb, blur in NAIL:
            _spot(canvas, tip - along * behind * size, along, size * np.array(half), rgb, blur)
    for finger in FINGERS[1:]:
        start, end = 0.65 * texels["Wrist"] + 0.35 * texels[f"{finger}_1"], texels[f"{finger}_1"]
        _line(canvas, [start, (start + end) / 2 + (0, 6), end], 5, (0.93, 0.95, 0.99), 3)


def _paint_palm(canvas: np.ndarray, texels: dict[str, np.ndarray]) -> None:
    canvas *= np.array([1.10, 1.03, 1.02], np.float32)
    for finger in FINGERS:
        for k in (1, 2, 3) if finger != "Thumb" else (2, 3):
            joint, along, across = _frame_of(texels, finger, k)
            joint = joint + along * 26 if k == 1 else joint  # where the finger leaves the palm
            for offset in (-2, 3):
                points = [joint + along * offset + across * s * 18 for s in (-1, 1)]
                _line(canvas, points, 2, (0.7, 0.55, 0.5), 1)
        tip, along, _ = _frame_of(texels, finger, 4)
        _spot(canvas, tip - along * 14, along, np.array([18, 16]), (1.08, 0.90, 0.90), 7)
    wrist, index, middle, ring, pinky = (texels[name] for name in ("Wrist", *(f"{f}_1" for f in FINGERS[1:])))
    side = index * 0.8 + wrist * 0.2 + (0, 22)
    for points in (
        [side, 0.6 * middle + 0.4 * wrist + (0, 10), 0.15 * middle + 0.85 * wrist + (0, 8)],
        [side, 0.62 * middle + 0.38 * wrist, 0.55 * pinky + 0.45 * wrist - (0, 12)],
        [middle + (12, 24), ring + (26, 0), pinky + (28, -24)],
    ):
        _line(canvas, points, 2, (0.66, 0.50, 0.46), 1.2)


# ---- what is drawn once per scene ----


def sample_look(rng: np.random.Generator) -> Look:
    """Skin, sleeve and light of a scene."""
    tone = rng.uniform(0, len(SKIN_RGB) - 1.001)
    low, part = int(tone), tone % 1
    skin = SKIN_RGB[low] * (1 - part) + SKIN_RGB[low + 1] * part
    skin = np.clip(skin * rng.uniform(0.94, 1.05, 3), 0, 1)
    direction = np.array([rng.normal(0, 0.7), rng.normal(-0.7, 0.5), -1.0])
    strength = rng.uniform(0.55, 1.5)
    warm = 1 + rng.normal(0, 0.12) * np.array([1, 0.1, -1]) + rng.normal(0, 0.02, 3)
    ambient = rng.uniform(0.12, 0.45) * (1 + rng.normal(0, 0.12) * np.array([1, 0, -1]))
    cloth = np.clip(rng.uniform(0.08, 0.85) + rng.normal(0, 0.13, 3), 0.04, 0.95)  # mostly dull
    return Look(
        skin_linear=to_linear(skin),
        sleeve_linear=to_linear(cloth),
        cuff=float(rng.choice([rng.uniform(0.004, 0.05), rng.uniform(0.06, 0.16), ELBOW + 0.15])),
        stripes=float(rng.choice([0.0, rng.uniform(0.1, 0.5)])),
        to_lamp=direction / np.linalg.norm(direction),
        lamp_linear=np.clip(strength * warm, 0.1, None),
        ambient_linear=np.clip(ambient, 0.02, None),
        ground_linear=np.clip(ambient * rng.uniform(0.3, 0.8), 0.02, None),
        gloss=rng.uniform(0.02, 0.16),
        wrist_bend=rng.normal(0, 0.25, (2, 3)),
    )


# ---- drawing ----


def draw_hands(backdrop: np.ndarray, rig: HandRig, skin: Skin, hands: Hands, view: View, look: Look) -> np.ndarray:
    """Draw hands in front of a background.

    Args:
        backdrop: (H, W, 3) float32, left as it is; H, W are the view's.
        hands: in the view's world.

    Returns:
        (H, W, 3) float32.
    """
    image = backdrop.copy()
    sides = np.flatnonzero(hands.present)
    meshes = [add_arm(skin, side, to_cam(view, hands.vertices[side]), look) for side in sides]
    # An arm may reach beside the camera: what is less than 5 cm in front of it is moved there.
    depths = [np.maximum(mesh[:, 2:], 0.05) for mesh in meshes]
    points_image = [
        project_capture(np.concatenate((mesh[:, :2], depth), 1), view.camera)
        for mesh, depth in zip(meshes, depths, strict=True)
    ]
    # The part of the image that the hands cover.
    reach = np.concatenate(points_image)
    x0, y0 = np.clip(np.floor(reach.min(0)) - 2, 0, view.size[::-1]).astype(int).tolist()
    x1, y1 = np.clip(np.ceil(reach.max(0)) + 3, 0, view.size[::-1]).astype(int).tolist()
    area = (x1 - x0) * (y1 - y0)
    if not area:
        return image
    fineness = next((n for n, most in MOST_SAMPLES.items() if area * n * n <= most), 1)
    # Wherever the lens puts a vertex, a plain pinhole can be given a vertex that it puts there.
    flat = []
    for side, depth, points in zip(sides, depths, points_image, strict=True):
        samples = (points - (x0, y0) + 0.5) * fineness - 0.5
        vertices = np.concatenate((samples * depth, depth), 1)
        flat.append(HandMesh(vertices, skin.faces[side], int(side), Camera(np.ones(2), np.zeros(2), False)))
    raster = rasterize(flat, (y1 - y0) * fineness, (x1 - x0) * fineness)
    seen = raster.hand >= 0
    if not seen.any():
        return image
    row, column = np.nonzero(seen)
    surface = np.zeros((len(row), 10), np.float32)
    for k, (mesh, plane) in enumerate(zip(meshes, flat, strict=True)):
        values = np.concatenate((vertex_normals(mesh, plane.faces), mesh, skin.surface), 1)
        mine = raster.hand[row, column] == k
        surface[mine] = _interpolate(values, plane, raster.face[row[mine], column[mine]], row[mine], column[mine])
    occlusion = _occlusion(raster.depth, seen, view.camera.focal[0] * fineness)[row, column]
    layer = np.zeros((*seen.shape, 4), np.float32)
    layer[row, column, :3] = _shade(skin, surface, look, occlusion, meshes, [plane.faces for plane in flat])
    layer[..., 3] = seen
    if fineness == 1:
        layer = cv2.GaussianBlur(layer, (0, 0), 0.55)
    layer = cv2.resize(layer, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
    image[y0:y1, x0:x1] = image[y0:y1, x0:x1] * (1 - layer[..., 3:]) + layer[..., :3]
    return image


def finish(rng: np.random.Generator, image: np.ndarray, noise: float, blur: float, grey: bool = False) -> np.ndarray:
    """A camera's faults: blur up to `blur` px, noise up to `noise` (in 0..1), and 8 bits. -> (H, W, 3) uint8."""
    sigma = rng.uniform(0, blur)
    if sigma > 0.25:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    if grey:
        image = np.repeat(image @ np.array([[0.3], [0.59], [0.11]], np.float32), 3, axis=-1)
    strength = np.float32(rng.uniform(0, noise))
    if noise:
        image = image + strength * rng.standard_normal((*image.shape[:2], 1 if grey else 3), np.float32)
    return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)


def add_arm(skin: Skin, side: int, vertices_cam: np.ndarray, look: Look) -> np.ndarray:
    """A hand's vertices and those of its arm.

    The forearm continues from the wrist and leans a little. At the elbow, the last vertex without an upper arm, the arm
    turns into the image plane and a little down, and runs out of the image.
    """
    ring = vertices_cam[skin.loops[side]]
    centre = ring.mean(0)
    ring = ring - centre
    fore = np.cross(ring, np.roll(ring, -1, 0)).sum(0)
    # The ring's sense decides where its normal points; the arm goes away from the hand.
    fore *= np.sign(fore @ (centre - vertices_cam.mean(0))) / np.linalg.norm(fore)
    upper = fore * (1, 1, 0) + (0, 0.3, 0) if look.has_upper_arm else fore
    upper = upper / np.linalg.norm(upper)
    lean = look.wrist_bend[side] - (look.wrist_bend[side] @ fore) * fore
    vertices = [vertices_cam]
    for distance, growth in zip(ARM, ARM_GROWTH, strict=True):
        along = min(distance, ELBOW)
        beyond = distance - along if look.has_upper_arm else 0
        at = centre + fore * along + lean * max(along - 0.02, 0) + upper * beyond
        # The ring turns with the arm, half of the way at the elbow itself.
        to = upper if distance > ELBOW else fore + upper if distance == ELBOW else fore
        sleeve = SLEEVE_THICKNESS if distance > look.cuff else 0
        vertices.append(at + _turn(ring, fore, to / np.linalg.norm(to)) * (growth + sleeve))
    return np.concatenate([*vertices, at[None]])


def _turn(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(P, 3) turned by the rotation that takes one unit vector to another, not opposite one (Rodrigues)."""
    axis = np.cross(start, end)
    once = np.cross(axis, points)
    return points + once + np.cross(axis, once) / (1 + start @ end)


def _interpolate(
    values: np.ndarray, plane: HandMesh, face: np.ndarray, row: np.ndarray, column: np.ndarray
) -> np.ndarray:
    """(N, C) float32: what the vertices carry, (V, C), at N pixels with the faces seen there.

    Divided by z, it is affine over the image: the rows of `planes` are its slopes along x and y, and its constant.
    """
    seen, which = np.unique(face, return_inverse=True)
    corners, depth = plane.faces[seen], plane.vertices_cam[:, 2:]
    over_z = np.concatenate((values, np.ones((len(values), 1))), 1) / depth
    planes = np.linalg.inv((plane.vertices_cam / depth)[corners]) @ over_z[corners]
    pixels = np.stack((column, row, np.ones(len(row))), -1).astype(np.float32)
    mixed = np.einsum("nk,nkc->nc", pixels, planes.astype(np.float32)[which])
    return mixed[:, :-1] / np.maximum(mixed[:, -1:], 1e-6)


def _occlusion(depth: np.ndarray, seen: np.ndarray, focal: float) -> np.ndarray:
    """(H, W) 0..1: how far a point lies behind the surface around it, which ambient light reaches less."""
    reach = int(np.clip(OCCLUSION_REACH * focal / np.median(depth[seen]), 1, 80))
    here = np.where(seen, depth, 0).astype(np.float32)
    share = cv2.blur(seen.astype(np.float32), (2 * reach + 1, 2 * reach + 1))
    around = cv2.blur(here, (2 * reach + 1, 2 * reach + 1)) / np.maximum(share, 1e-3)
    return np.clip((here - around) / OCCLUSION_DEPTH, 0, 1)


def _lit(meshes: list[np.ndarray], faces: list[np.ndarray], to_lamp: np.ndarray, position: np.ndarray) -> np.ndarray:
    """(N,) share of the lamp that (N, 3) m points see, from a depth map of the scene as the lamp sees it."""
    x = np.cross(-to_lamp, [1.0, 0, 0] if abs(to_lamp[0]) < 0.7 else [0, 1.0, 0])
    x /= np.linalg.norm(x)
    axes = np.stack((x, np.cross(-to_lamp, x), -to_lamp))
    points = [mesh @ axes.T for mesh in meshes]
    # As fine as the hands allow: the parts of the arms outside the map are lit.
    on_hands = np.concatenate([part[:HAND_VERTICES, :2] for part in points])
    scale = (SHADOW_SIZE - 7) / np.ptp(on_hands, axis=0).max()
    offset = 3 - on_hands.min(0) * scale
    camera = Camera(np.full(2, scale), offset, True)
    hands = [HandMesh(p, f, k, camera) for k, (p, f) in enumerate(zip(points, faces, strict=True))]
    depth = rasterize(hands, SHADOW_SIZE, SHADOW_SIZE).depth
    there = position @ axes.T.astype(np.float32)
    texel = np.round(there[:, :2] * np.float32(scale) + offset.astype(np.float32)).astype(np.int32)
    x, y = np.clip(texel, 2, SHADOW_SIZE - 3).T
    closer = [there[:, 2] - SHADOW_BIAS < depth[y + down, x + right] for right, down in SHADOW_TAPS]
    return np.where((texel == np.stack((x, y), -1)).all(1), np.mean(closer, axis=0, dtype=np.float32), np.float32(1))


def _shade(
    skin: Skin, surface: np.ndarray, look: Look, occlusion: np.ndarray, meshes: list[np.ndarray],
    faces: list[np.ndarray],
) -> np.ndarray:  # fmt: skip
    """Colours of surface points, (N, 3): `surface` (N, 10) is normal, position m in `cam`, and as `Skin.surface`."""
    normal, position, rest, back, arm = np.split(surface, [3, 6, 8, 9], 1)
    normal = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)
    x, y = ((rest - MAP_ORIGIN.astype(np.float32)) / np.float32(TEXEL)).astype(np.int32).T
    texel = np.clip(y, 0, MAP_SIZE[0] - 1) * MAP_SIZE[1] + np.clip(x, 0, MAP_SIZE[1] - 1)
    palm = skin.palm_map[texel]
    albedo = (palm + back * (skin.back_map[texel] - palm)) * look.skin_linear.astype(np.float32)
    cloth = (1 + look.stripes * np.sin(arm * 420)) * look.sleeve_linear.astype(np.float32)
    is_sleeve = arm > look.cuff
    albedo = np.where(is_sleeve, cloth, albedo)

    lamp = look.to_lamp.astype(np.float32)
    lit = _lit(meshes, faces, look.to_lamp, position + np.float32(SHADOW_LIFT) * normal)[:, None]
    open_sky = (1 - 0.65 * occlusion).astype(np.float32)[:, None]
    direct = np.clip(((normal @ lamp)[:, None] + WRAP) / (1 + WRAP), 0, 1) * lit * (0.4 + 0.6 * open_sky)
    up = 0.5 - 0.5 * normal[:, 1:2]
    ambient = look.ground_linear + (look.ambient_linear - look.ground_linear) * up
    half = lamp + TO_EYE
    shine = np.clip(normal @ (half / np.linalg.norm(half)), 0, 1)[:, None] ** 22 * lit
    shine *= np.where(is_sleeve, 0.1, 1) * look.gloss
    light = direct * look.lamp_linear + ambient * open_sky
    linear = albedo * light.astype(np.float32) + shine * look.lamp_linear
    return np.clip(linear, 0, 1).astype(np.float32) ** np.float32(1 / 2.2)
