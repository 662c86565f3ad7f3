"""How the toy datasets' scenes become pictures: skin, sleeves, light, shadows, backgrounds, a camera's faults.

Pure functions; colours are sRGB in 0..1 unless a name says `linear`. The geometry is that of `common.drawing.render`.
"""

from typing import NamedTuple

import cv2
import numpy as np

from common.drawing.raster import HandMesh, rasterize, vertex_normals
from common.errors import UserError
from common.types import LEFT, RIGHT
from common.utils.camera import Camera, project_capture
from common.utils.joints import FINGERS, JOINTS
from tool.toy.scene import HandRig, Hands, View, to_cam

SKIN_RGB = np.array(
    [
        [0.96, 0.80, 0.70],
        [0.91, 0.70, 0.57],
        [0.82, 0.59, 0.45],
        [0.66, 0.43, 0.30],
        [0.45, 0.28, 0.19],
        [0.31, 0.20, 0.15],
    ]
)
HAND_VERTICES = 778
# The forearm: distances of its rings from the wrist, m, and their size against the wrist's.
RINGS, RING_GROWTH = np.array([0.012, 0.03, 0.06, 0.10, 0.16, 0.28]), np.array([1.0, 1.04, 1.13, 1.25, 1.38, 1.5])
SLEEVE_THICKNESS = 0.14  # a sleeve is wider than the arm by this
# The skin's map: metres of the right hand at rest (x along the hand, z across) to texels.
TEXEL, MAP_ORIGIN, MAP_SIZE = 0.0004, np.array([-0.13, -0.09]), (500, 650)
SHADOW_SIZE, SHADOW_BIAS, SHADOW_LIFT = 256, 0.004, 0.004  # texels, m, m along the normal
OCCLUSION_REACH, OCCLUSION_DEPTH = 0.012, 0.016  # m
WRAP = np.array([0.38, 0.18, 0.12], np.float32)  # light goes round a corner in skin, red most
MOST_SAMPLES = {3: 120_000, 2: 300_000}  # samples a picture may take with so many a pixel's side
DISTANCE_OF_EYE = np.array([0.0, 0.0, -1.0], np.float32)


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
    wrist_bend: np.ndarray  # (2, 3) m the forearms lean aside, a metre
    arm_length: float  # m of the forearms that is drawn


class Skin(NamedTuple):
    """What all pictures of a rig share; see `build_skin`."""

    faces: np.ndarray  # (2, F, 3) hand and forearm
    loops: np.ndarray  # (2, L) vertices around the wrist
    rest: np.ndarray  # (V, 3) m, right hand; the forearm's follow the hand's
    back: np.ndarray  # (V,) 1 on the back of the hand, 0 on the palm
    arm: np.ndarray  # (V,) m along the forearm
    back_map: np.ndarray  # (h * w, 3) float32, factors on the colour
    palm_map: np.ndarray


def to_linear(srgb: np.ndarray) -> np.ndarray:
    """sRGB 0..1 -> proportional to light (a power of 2.2 is near enough here)."""
    return np.asarray(srgb) ** 2.2


# ---- what is made once ----


def build_skin(rig: HandRig) -> Skin:
    """Close the hands' wrists with forearms and paint the skin's maps."""
    faces, loops = [], []
    for model in rig.models:
        loop = _wrist_loop(model.faces)
        faces.append(np.concatenate((model.faces, _forearm_faces(loop, len(model.v_template)))))
        loops.append(loop)
    model = rig.models[RIGHT]
    loop = loops[RIGHT]
    normal_y = vertex_normals(model.v_template, model.faces)[:, 1]
    back = np.clip(0.5 + 1.6 * normal_y, 0, 1)
    ring = model.v_template[loop]
    rest = np.concatenate([model.v_template, *(ring + (d, 0, 0) for d in RINGS), ring[:1]])
    arm = np.concatenate((np.zeros(len(model.v_template)), np.repeat(RINGS, len(loop)), RINGS[-1:]))
    back = np.concatenate([back, *([back[loop]] * len(RINGS)), back[loop[:1]]])
    return Skin(np.stack(faces), np.stack(loops), rest, back, arm, *_skin_maps(rig))


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


def _forearm_faces(loop: np.ndarray, count: int) -> np.ndarray:
    """Faces of a tube that goes on from the wrist; its vertices follow the hand's `count`, ring by ring."""
    n = len(loop)
    rings = [loop, *(count + k * n + np.arange(n) for k in range(len(RINGS)))]
    faces = []
    for near, far in zip(rings, rings[1:], strict=False):
        a, b, c, d = near, np.roll(near, -1), far, np.roll(far, -1)
        faces += [np.stack((b, a, c), -1), np.stack((b, c, d), -1)]
    last, end = rings[-1], np.full(n, count + len(RINGS) * n)
    faces.append(np.stack((np.roll(last, -1), last, end), -1))
    return np.concatenate(faces)


def _skin_maps(rig: HandRig) -> tuple[np.ndarray, np.ndarray]:
    """Back and palm of the right hand at rest, seen from above: nails, knuckles, creases, veins, mottling."""
    joints = rig.regressor @ rig.models[RIGHT].v_template
    texels = {name: (joints[k, [0, 2]] - MAP_ORIGIN) / TEXEL for k, name in enumerate(JOINTS)}
    rng = np.random.default_rng(1)
    maps = []
    for is_back in (True, False):
        mottle = sum(_noise(rng, MAP_SIZE, cell, 1) * s for cell, s in ((80, 0.05), (25, 0.05), (6, 0.04), (2, 0.05)))
        canvas = np.ones((*MAP_SIZE, 3), np.float32) * (1 + mottle)
        (_paint_back if is_back else _paint_palm)(canvas, texels)
        maps.append(cv2.GaussianBlur(canvas, (0, 0), 0.9).reshape(-1, 3))
    return maps[0], maps[1]


def _stain(canvas: np.ndarray, mask: np.ndarray, rgb: tuple[float, float, float], blur: float) -> None:
    """Multiply a colour onto the map where `mask` (h, w) uint8 is set."""
    x, y, w, h = cv2.boundingRect(mask)
    reach = int(4 * blur) + 1
    part = np.s_[max(y - reach, 0) : y + h + reach, max(x - reach, 0) : x + w + reach]
    amount = cv2.GaussianBlur(mask[part], (0, 0), blur).astype(np.float32)[..., None] / 255
    canvas[part] *= 1 + amount * (np.array(rgb, np.float32) - 1)


def _line(texels: list[np.ndarray], width: int) -> np.ndarray:
    mask = np.zeros(MAP_SIZE, np.uint8)
    cv2.polylines(mask, [np.round(np.array(texels)).astype(np.int32)], False, 255, width, cv2.LINE_AA)
    return mask


def _ellipse(centre: np.ndarray, along: np.ndarray, half: tuple[float, float]) -> np.ndarray:
    mask = np.zeros(MAP_SIZE, np.uint8)
    angle = float(np.degrees(np.arctan2(along[1], along[0])))
    cv2.ellipse(mask, (tuple(centre.tolist()), (2 * half[0], 2 * half[1]), angle), 255, -1, cv2.LINE_AA)
    return mask


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
            _stain(canvas, _ellipse(joint, along, (18 * size, 20 * size)), (0.97, 0.84, 0.82), 7)
            for offset in (-7, -2, 3, 8) if k > 1 else ():
                ends = [joint + along * offset * size + across * s * 13 * size for s in (-1, 0, 1)]
                ends[1] = ends[1] + along * 2 * np.sign(offset)
                _stain(canvas, _line(ends, 1), (0.72, 0.62, 0.58), 0.8)
        tip, along, across = _frame_of(texels, finger, 4)
        nail = tip - along * 15 * size
        _stain(canvas, _ellipse(nail, along, (15 * size, 13 * size)), (0.80, 0.66, 0.64), 1.5)
        _stain(canvas, _ellipse(nail, along, (13 * size, 11 * size)), (1.52, 1.62, 1.72), 0.8)
        _stain(canvas, _ellipse(tip - along * 4 * size, along, (3 * size, 9 * size)), (1.15, 1.18, 1.18), 0.8)
    for finger in FINGERS[1:]:
        start, end = 0.65 * texels["Wrist"] + 0.35 * texels[f"{finger}_1"], texels[f"{finger}_1"]
        middle = (start + end) / 2 + (0, 6)
        _stain(canvas, _line([start, middle, end], 5), (0.93, 0.95, 0.99), 3)


def _paint_palm(canvas: np.ndarray, texels: dict[str, np.ndarray]) -> None:
    canvas *= np.array([1.10, 1.03, 1.02], np.float32)
    for finger in FINGERS:
        for k in (1, 2, 3) if finger != "Thumb" else (2, 3):
            joint, along, across = _frame_of(texels, finger, k)
            joint = joint + along * 26 if k == 1 else joint  # where the finger leaves the palm
            for offset in (-2, 3):
                _stain(
                    canvas, _line([joint + along * offset + across * s * 18 for s in (-1, 1)], 2), (0.7, 0.55, 0.5), 1
                )
        tip, along, _ = _frame_of(texels, finger, 4)
        _stain(canvas, _ellipse(tip - along * 14, along, (18, 16)), (1.08, 0.90, 0.90), 7)
    knuckle = {finger: texels[f"{finger}_1"] for finger in FINGERS}
    wrist = texels["Wrist"]
    side = knuckle["Index"] * 0.8 + wrist * 0.2 + (0, 22)
    lines = (
        [side, 0.6 * knuckle["Middle"] + 0.4 * wrist + (0, 10), 0.15 * knuckle["Middle"] + 0.85 * wrist + (0, 8)],
        [side, 0.62 * knuckle["Middle"] + 0.38 * wrist, 0.55 * knuckle["Pinky"] + 0.45 * wrist - (0, 12)],
        [knuckle["Middle"] + (12, 24), knuckle["Ring"] + (26, 0), knuckle["Pinky"] + (28, -24)],
    )
    for line in lines:
        _stain(canvas, _line(line, 2), (0.66, 0.50, 0.46), 1.2)


# ---- what is drawn a scene ----


def sample_look(rng: np.random.Generator) -> Look:
    """Skin, sleeve and light of a scene."""
    tone = rng.uniform(0, len(SKIN_RGB) - 1.001)
    low, part = int(tone), tone % 1
    skin = SKIN_RGB[low] * (1 - part) + SKIN_RGB[low + 1] * part
    skin = np.clip(skin * rng.uniform(0.94, 1.05, 3), 0, 1)
    direction = np.array([rng.normal(0, 0.7), rng.normal(-0.7, 0.5), -1.0])
    strength = rng.uniform(0.55, 1.5)
    warm = np.array([1.0, 1.0, 1.0]) + rng.normal(0, 0.12) * np.array([1, 0.1, -1]) + rng.normal(0, 0.02, 3)
    ambient = rng.uniform(0.12, 0.45) * (1 + rng.normal(0, 0.12) * np.array([1, 0, -1]))
    return Look(
        skin_linear=to_linear(skin),
        sleeve_linear=to_linear(sample_cloth(rng)),
        cuff=float(rng.choice([rng.uniform(0.004, 0.05), rng.uniform(0.06, 0.16), 1.0])),
        stripes=float(rng.choice([0.0, rng.uniform(0.1, 0.5)])),
        to_lamp=direction / np.linalg.norm(direction),
        lamp_linear=np.clip(strength * warm, 0.1, None),
        ambient_linear=np.clip(ambient, 0.02, None),
        ground_linear=np.clip(ambient * rng.uniform(0.3, 0.8), 0.02, None),
        gloss=rng.uniform(0.02, 0.16),
        wrist_bend=rng.normal(0, 0.25, (2, 3)),
        arm_length=0.45,
    )


def sample_cloth(rng: np.random.Generator) -> np.ndarray:
    """A colour of clothes, (3,) sRGB: mostly dull."""
    grey = rng.uniform(0.08, 0.85)
    return np.clip(grey + rng.normal(0, 0.13, 3), 0.04, 0.95)


def sample_backdrop(rng: np.random.Generator, size: tuple[int, int], studio: bool = False) -> np.ndarray:
    """A background without hands, (h, w, 3) float32 sRGB: noise, stripes, blobs or clutter; or a dark studio."""
    small = (max(2, size[0] // 2), max(2, size[1] // 2))
    if studio:
        picture = _studio(rng, small)
    else:
        makers = (_smooth, _stripes, _blobs, _clutter)
        picture = makers[rng.choice(len(makers), p=(0.25, 0.2, 0.2, 0.35))](rng, small)
    picture = cv2.GaussianBlur(picture, (0, 0), rng.choice([0.4, rng.uniform(0.5, 3)]) * max(size) / 512)
    return np.clip(cv2.resize(picture, size[::-1], interpolation=cv2.INTER_LINEAR), 0, 1)


def _noise(rng: np.random.Generator, size: tuple[int, int], cell: float, channels: int) -> np.ndarray:
    """(h, w, channels) float32 smooth noise of deviation about 1, its waves `cell` px long."""
    grid = (max(2, round(size[0] / cell) + 1), max(2, round(size[1] / cell) + 1), channels)
    values = rng.standard_normal(grid, np.float32)
    return cv2.resize(values, size[::-1], interpolation=cv2.INTER_CUBIC).reshape(*size, channels)


def _colour(rng: np.random.Generator) -> np.ndarray:
    return np.clip(rng.uniform(0.05, 0.9) + rng.choice([0.02, 0.05, 0.12]) * rng.standard_normal(3), 0, 1).astype(
        np.float32
    )


def _smooth(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    reach = max(size)
    picture = _colour(rng) + 0.09 * _noise(rng, size, reach / rng.uniform(1, 4), 1)
    picture += rng.choice([0.01, 0.03, 0.06]) * _noise(rng, size, reach / rng.uniform(1, 4), 3)
    for cell in (12, 5, 2):
        picture += rng.uniform(0, 0.05) * _noise(rng, size, reach / 250 * cell, 1)
    return picture


def _stripes(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32) / max(size)
    bent = 0.02 * _noise(rng, size, max(size) / 4, 2)
    picture = np.broadcast_to(_colour(rng), (*size, 3)).copy()
    angle = rng.uniform(0, np.pi)
    for turn in (0, np.pi / 2)[: rng.integers(1, 3)]:
        across = (x + bent[..., 0]) * np.cos(angle + turn) + (y + bent[..., 1]) * np.sin(angle + turn)
        wave = np.sin(across * rng.uniform(30, 160))
        band = np.clip(0.5 + rng.uniform(0.7, 3) * wave, 0, 1)[..., None] * rng.uniform(0.3, 0.9)
        picture = picture * (1 - band) + _colour(rng) * band
    return picture * (1 + 0.08 * _noise(rng, size, max(size) / 3, 1)) + 0.02 * _noise(rng, size, 2, 1)


def _blobs(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    picture = _smooth(rng, size)
    for _ in range(rng.integers(8, 40)):
        centre = (int(rng.uniform(0, size[1])), int(rng.uniform(0, size[0])))
        half = (np.exp(rng.uniform(np.log(0.01), np.log(0.16), 2)) * max(size)).astype(int) + 1
        colour = tuple(float(c) for c in _colour(rng))
        cv2.ellipse(picture, centre, tuple(half.tolist()), rng.uniform(0, 180), 0, 360, colour, -1, cv2.LINE_AA)
    return picture


def _clutter(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A wall, a table and things: boxes, cylinders in light from one side, cables; some of them skin-coloured."""
    height, width = size
    picture = _smooth(rng, size)
    if rng.random() < 0.6:
        edge = int(height * rng.uniform(0.4, 0.85))
        picture[edge:] = _colour(rng) + 0.06 * _noise(rng, size, max(size) / 8, 1)[edge:]
    shade = np.linspace(rng.uniform(0.5, 0.9), rng.uniform(1.0, 1.2), 64, dtype=np.float32)[None, :, None]
    for _ in range(rng.integers(6, 22)):
        w, h = (np.exp(rng.uniform(np.log(0.03), np.log(0.35), 2)) * max(size)).astype(int) + 2
        box = cv2.boxPoints(((rng.uniform(0, width), rng.uniform(0, height)), (int(w), int(h)), rng.uniform(-30, 30)))
        mask = np.zeros(size, np.uint8)
        cv2.fillConvexPoly(mask, np.round(box).astype(np.int32), 255, cv2.LINE_AA)
        x0, y0, bw, bh = cv2.boundingRect(np.round(box).astype(np.int32))
        x1, y1, x0, y0 = min(x0 + bw, width), min(y0 + bh, height), max(x0, 0), max(y0, 0)
        if x0 >= x1 or y0 >= y1:
            continue
        colour = _skin_like(rng) if rng.random() < 0.2 else _colour(rng)
        ramp = cv2.resize(shade, (x1 - x0, 1)).reshape(1, -1, 1) * colour
        part = mask[y0:y1, x0:x1, None].astype(np.float32) / 255
        picture[y0:y1, x0:x1] += part * (ramp - picture[y0:y1, x0:x1])
    for _ in range(rng.integers(0, 4)):
        points = np.cumsum(rng.normal(0, 0.12, (5, 2)), 0) * max(size) + rng.uniform(0, 1, 2) * (width, height)
        colour = tuple(float(c) for c in _colour(rng))
        cv2.polylines(picture, [points.astype(np.int32)], False, colour, int(rng.integers(1, 5)), cv2.LINE_AA)
    return picture


def _skin_like(rng: np.random.Generator) -> np.ndarray:
    return np.clip(SKIN_RGB[rng.integers(len(SKIN_RGB))] * rng.uniform(0.7, 1.1), 0, 1).astype(np.float32)


def _studio(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Dark, with a clothed body in the middle and the lamps of a capture stage out of focus."""
    height, width = size
    reach = max(size)
    picture = np.full((*size, 3), rng.uniform(0.0, 0.08), np.float32) * (1 + 0.2 * _noise(rng, size, reach / 3, 1))
    for _ in range(rng.integers(3, 14)):
        at = (int(rng.uniform(0, width)), int(rng.uniform(0, height)))
        light = float(rng.uniform(0.3, 1))
        cv2.circle(
            picture, at, int(reach * rng.uniform(0.005, 0.02)) + 1, (light, light, light * 0.95), -1, cv2.LINE_AA
        )
    picture = cv2.GaussianBlur(picture, (0, 0), reach * 0.004)
    if rng.random() < 0.8:
        middle, half = width * rng.uniform(0.2, 0.8), reach * rng.uniform(0.18, 0.3)
        top = height * rng.uniform(-0.2, 0.25)
        outline = [(-0.5, 0), (0.5, 0), (1, 0.25), (1.1, 3), (-1.1, 3), (-1, 0.25)]
        body = np.array([(middle + half * x, top + half * y) for x, y in outline])
        mask = np.zeros(size, np.uint8)
        cv2.fillPoly(mask, [body.astype(np.int32)], 255, cv2.LINE_AA)
        cloth = _stripes(rng, size) if rng.random() < 0.4 else _smooth(rng, size)
        mask = cv2.GaussianBlur(mask, (0, 0), reach * 0.004).astype(np.float32)[..., None] / 255
        picture += mask * (np.clip(cloth, 0, 1) * rng.uniform(0.3, 0.8) - picture)
    return picture


# ---- drawing ----


def draw_hands(backdrop: np.ndarray, rig: HandRig, skin: Skin, hands: Hands, view: View, look: Look) -> np.ndarray:
    """Draw hands before a background.

    Args:
        backdrop: (H, W, 3) float32 sRGB, left as it is; H, W are the view's.
        hands: in the view's world.

    Returns:
        (H, W, 3) float32 sRGB.
    """
    sides = [side for side in (RIGHT, LEFT) if hands.present[side]]
    meshes = [add_forearm(skin, side, to_cam(view, hands.vertices[side]), look) for side in sides]
    corners = [_clip_depth(mesh) for mesh in meshes]
    points_image = [project_capture(mesh, view.camera) for mesh in corners]
    window = _window(points_image, view.size)
    if window is None:
        return backdrop.copy()
    x0, y0, x1, y1 = window
    area = (x1 - x0) * (y1 - y0)
    fineness = next((n for n, most in MOST_SAMPLES.items() if area * n * n <= most), 1)
    camera = Camera(np.ones(2), np.zeros(2), False)
    flat = []
    for side, mesh, image in zip(sides, corners, points_image, strict=True):
        samples = (image - (x0, y0) + 0.5) * fineness - 0.5
        # Wherever the lens puts a vertex, a plain pinhole can be given a vertex that it puts there.
        placed = np.concatenate((samples * mesh[:, 2:], mesh[:, 2:]), 1)
        flat.append(HandMesh(placed, skin.faces[side], side, camera))
    raster = rasterize(flat, (y1 - y0) * fineness, (x1 - x0) * fineness)
    seen = raster.hand >= 0
    if not seen.any():
        return backdrop.copy()
    occlusion = _occlusion(raster.depth, seen, view.camera.focal[0] * fineness)
    shadows = _ShadowMap(meshes, [skin.faces[side] for side in sides], look.to_lamp)
    layer = np.zeros((*seen.shape, 4), np.float32)
    layer[..., 3] = seen
    for k, (mesh, plane) in enumerate(zip(meshes, flat, strict=True)):
        row, column = np.nonzero(raster.hand == k)
        if len(row):
            surface = _surface(skin, mesh, plane, raster.face[row, column], row, column)
            layer[row, column, :3] = _shade(skin, surface, look, occlusion[row, column], shadows, plane.side)
    if fineness == 1:
        layer = cv2.GaussianBlur(layer, (0, 0), 0.55)
    layer = cv2.resize(layer, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
    picture = backdrop.copy()
    picture[y0:y1, x0:x1] = picture[y0:y1, x0:x1] * (1 - layer[..., 3:]) + layer[..., :3]
    return picture


def finish(rng: np.random.Generator, picture: np.ndarray, noise: float, blur: float, grey: bool = False) -> np.ndarray:
    """A camera's faults: blur up to `blur` px, noise up to `noise` (in 0..1), and 8 bits. -> (H, W, 3) uint8."""
    sigma = rng.uniform(0, blur)
    if sigma > 0.25:
        picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    if grey:
        picture = np.repeat(picture @ np.array([[0.3], [0.59], [0.11]], np.float32), 3, axis=-1)
    strength = np.float32(rng.uniform(0, noise))
    if noise:
        picture = picture + strength * rng.standard_normal((*picture.shape[:2], 1 if grey else 3), np.float32)
    return np.clip(picture * 255 + 0.5, 0, 255).astype(np.uint8)


def _clip_depth(mesh_cam: np.ndarray) -> np.ndarray:
    """A forearm may reach beside the camera; what is less than 5 cm before it stays there."""
    return np.concatenate((mesh_cam[:, :2], np.maximum(mesh_cam[:, 2:], 0.05)), 1)


def add_forearm(skin: Skin, side: int, vertices_cam: np.ndarray, look: Look) -> np.ndarray:
    """A hand's vertices and those of its forearm, which goes on from the wrist and leans a little; last the elbow."""
    ring = vertices_cam[skin.loops[side]]
    centre = ring.mean(0)
    normal = np.cross(ring - centre, np.roll(ring, -1, 0) - centre).sum(0)
    normal /= np.linalg.norm(normal)
    # The ring's sense decides where its normal points; the arm goes away from the hand.
    normal *= np.sign(normal @ (centre - vertices_cam.mean(0)))
    rings = []
    for distance, growth in zip((*RINGS[:-1], look.arm_length), RING_GROWTH, strict=True):
        lean = look.wrist_bend[side] - (look.wrist_bend[side] @ normal) * normal
        sleeve = SLEEVE_THICKNESS if distance > look.cuff else 0
        at = centre + normal * distance + lean * max(distance - 0.02, 0)
        rings.append(at + (ring - centre) * (growth + sleeve))
    return np.concatenate([vertices_cam, *rings, at[None]])


def _window(points_image: list[np.ndarray], size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """x0, y0, x1, y1 of the part of the picture that the hands cover, or None."""
    points = np.concatenate(points_image)
    x0, y0 = np.clip(np.floor(points.min(0)) - 2, 0, size[::-1]).astype(int).tolist()
    x1, y1 = np.clip(np.ceil(points.max(0)) + 3, 0, size[::-1]).astype(int).tolist()
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


class _Surface(NamedTuple):
    """Surface points of one hand, all float32."""

    normal: np.ndarray  # (N, 3) unit, in `cam`
    position: np.ndarray  # (N, 3) m, in `cam`
    rest: np.ndarray  # (N, 2) m, x and z of the right hand at rest
    back: np.ndarray  # (N,)
    arm: np.ndarray  # (N,) m


def _surface(
    skin: Skin, mesh: np.ndarray, plane: HandMesh, face: np.ndarray, row: np.ndarray, column: np.ndarray
) -> _Surface:
    """Interpolate what the vertices carry, with perspective: divided by z, it is affine over the picture."""
    values = np.concatenate(
        (vertex_normals(mesh, plane.faces), mesh, skin.rest[:, [0, 2]], skin.back[:, None], skin.arm[:, None]), 1
    )
    values = np.concatenate((values, np.ones((len(values), 1))), 1) / plane.vertices_cam[:, 2:]
    corners = (plane.vertices_cam[:, :2] / plane.vertices_cam[:, 2:])[plane.faces]
    e1, e2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = e1[:, 0] * e2[:, 1] - e1[:, 1] * e2[:, 0]
    area = np.where(np.abs(area) < 1e-9, 1e-9, area)[:, None]
    first, second, third = (values[plane.faces[:, k]] for k in range(3))
    d1, d2 = second - first, third - first
    slope_x = (d1 * e2[:, 1:] - d2 * e1[:, 1:]) / area
    slope_y = (d2 * e1[:, :1] - d1 * e2[:, :1]) / area
    constant = first - slope_x * corners[:, 0, :1] - slope_y * corners[:, 0, 1:]
    mixed = np.take(slope_x.astype(np.float32), face, 0) * column[:, None].astype(np.float32)
    mixed += np.take(slope_y.astype(np.float32), face, 0) * row[:, None].astype(np.float32)
    mixed += np.take(constant.astype(np.float32), face, 0)
    mixed = mixed[:, :-1] / np.maximum(mixed[:, -1:], 1e-6)
    normal = mixed[:, :3] / np.maximum(np.sqrt((mixed[:, :3] ** 2).sum(1, keepdims=True)), 1e-6)
    return _Surface(normal, mixed[:, 3:6], mixed[:, 6:8], mixed[:, 8], mixed[:, 9])


def _occlusion(depth: np.ndarray, seen: np.ndarray, focal: float) -> np.ndarray:
    """(H, W) 0..1: how far a point lies behind the surface around it, as light from everywhere notices."""
    reach = int(np.clip(OCCLUSION_REACH * focal / np.median(depth[seen]), 1, 80))
    here = np.where(seen, depth, 0).astype(np.float32)
    share = cv2.blur(seen.astype(np.float32), (2 * reach + 1, 2 * reach + 1))
    around = cv2.blur(here, (2 * reach + 1, 2 * reach + 1)) / np.maximum(share, 1e-3)
    return np.clip((here - around) / OCCLUSION_DEPTH, 0, 1)


class _ShadowMap:
    """The scene as the lamp sees it, to know what lies in the shade."""

    def __init__(self, meshes: list[np.ndarray], faces: list[np.ndarray], to_lamp: np.ndarray) -> None:
        z = -to_lamp
        x = np.cross(z, [1.0, 0, 0] if abs(z[0]) < 0.7 else [0, 1.0, 0])
        x /= np.linalg.norm(x)
        axes = np.stack((x, np.cross(z, x), z))
        points = [mesh @ axes.T for mesh in meshes]
        # As fine as the hands allow: what the map does not hold of the forearms is lit.
        hands_only = np.concatenate([part[:HAND_VERTICES] for part in points])
        low = hands_only.min(0)
        self.scale = (SHADOW_SIZE - 7) / (hands_only.max(0) - low)[:2].max()
        self.axes, self.low = axes.astype(np.float32), low.astype(np.float32)
        camera = Camera(np.full(2, self.scale), 3 - low[:2] * self.scale, True)
        hands = [HandMesh(p, f, k, camera) for k, (p, f) in enumerate(zip(points, faces, strict=True))]
        self.depth = rasterize(hands, SHADOW_SIZE, SHADOW_SIZE).depth.ravel()

    def lit(self, position: np.ndarray) -> np.ndarray:
        """(N, 3) m -> (N,) share of the lamp that is seen from there, a soft edge included."""
        there = position @ self.axes.T
        x, y = ((there[:, :2] - self.low[:2]) * np.float32(self.scale) + 3.5).astype(np.int32).T
        inside = np.clip(x, 2, SHADOW_SIZE - 3), np.clip(y, 2, SHADOW_SIZE - 3)
        texel = inside[1] * SHADOW_SIZE + inside[0]
        depth = there[:, 2] - np.float32(SHADOW_BIAS)
        lit = np.zeros(len(depth), np.float32)
        taps = ((0, 0), (1, 2), (-2, 1), (-1, -2), (2, -1))
        for right, down in taps:
            lit += depth < np.take(self.depth, texel + (down * SHADOW_SIZE + right))
        return np.where((inside[0] == x) & (inside[1] == y), lit / np.float32(len(taps)), np.float32(1))


def _albedo(skin: Skin, surface: _Surface, look: Look, side: int) -> np.ndarray:
    """(N, 3) linear: the skin's map, or the sleeve."""
    x, y = ((surface.rest - MAP_ORIGIN.astype(np.float32)) / np.float32(TEXEL)).astype(np.int32).T
    texel = np.clip(y, 0, MAP_SIZE[0] - 1) * MAP_SIZE[1] + np.clip(x, 0, MAP_SIZE[1] - 1)
    palm = np.take(skin.palm_map, texel, 0)
    factor = palm + surface.back[:, None] * (np.take(skin.back_map, texel, 0) - palm)
    albedo = factor * look.skin_linear.astype(np.float32)
    if look.cuff < RINGS[-1]:
        wave = 1 + look.stripes * np.sin(surface.arm * 420) if look.stripes else np.ones_like(surface.arm)
        cloth = wave[:, None] * look.sleeve_linear.astype(np.float32)
        albedo = np.where(surface.arm[:, None] > look.cuff, cloth, albedo)
    return albedo


def _shade(
    skin: Skin, surface: _Surface, look: Look, occlusion: np.ndarray, shadows: _ShadowMap, side: int
) -> np.ndarray:
    """Colours of surface points, (N, 3) sRGB."""
    lamp = look.to_lamp.astype(np.float32)
    facing = surface.normal @ lamp
    lit = shadows.lit(surface.position + np.float32(SHADOW_LIFT) * surface.normal)
    open_sky = (1 - 0.65 * occlusion).astype(np.float32)
    direct = np.clip((facing[:, None] + WRAP) / (1 + WRAP), 0, 1) * (lit * (0.4 + 0.6 * open_sky))[:, None]
    up = (0.5 - 0.5 * surface.normal[:, 1])[:, None]
    ambient = look.ground_linear + (look.ambient_linear - look.ground_linear) * up
    half = lamp + DISTANCE_OF_EYE
    shine = np.clip(surface.normal @ (half / np.linalg.norm(half)), 0, 1) ** 22 * lit
    shine *= np.where(surface.arm > look.cuff, 0.1, 1) * look.gloss
    light = direct * look.lamp_linear + ambient * open_sky[:, None]
    linear = _albedo(skin, surface, look, side) * light.astype(np.float32) + shine[:, None] * look.lamp_linear
    return np.clip(linear, 0, 1).astype(np.float32) ** np.float32(1 / 2.2)
