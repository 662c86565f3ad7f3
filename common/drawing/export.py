"""Hands as 3D files: OBJ and PLY in the frame `cam`, GLB and an interactive page in the frame of those viewers.

Everything is in metres. `cam` has x right, y down and z away from the camera; glTF has y up and z towards the viewer.
"""

import base64
import html
import os
import re
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import trimesh
from trimesh.viewer.notebook import scene_to_html
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from common.drawing.raster import HandMesh, vertex_normals
from common.drawing.render import AMBIENT, DIFFUSE, HAND_RGB, TINT
from common.errors import UserError
from common.types import SIDES
from common.utils.camera import project
from common.utils.files import atomic_write

FRAME = "frame: cam (x right, y down, z away from the camera), unit: metre"
CAM_TO_GLTF = np.array([1.0, -1.0, -1.0])
ROUGHNESS = 0.7  # as dull as skin
PAGE_LAMP = 1.75  # intensity of the lamp in trimesh's page
PAGE_PHOTO = 480  # px, longer side of the photo in the page, at most
PAGE_OVERLAY = """
<style>
.beside {{ position: fixed; left: 8px; right: 8px; font: 14px/1.4 sans-serif; color: #444; overflow-wrap: anywhere;
  pointer-events: none; }}
.beside img {{ display: block; max-width: 30vw; max-height: 28vh; margin-bottom: 8px; border-radius: 4px; }}
.beside button {{ font: inherit; padding: 4px 10px; pointer-events: auto; }}
</style>
<div class="beside" style="top: 8px">{photo}<button onclick="controls.reset(); render()">Reset view</button></div>
<div class="beside" style="bottom: 8px">{caption}</div>
"""
# The camera's angle is that of the height; below an aspect of 3 : 2 it grows, so that the hands fit the width. The
# names are those of trimesh's page.
PAGE_SCRIPT = """<script>
function fitWidth() {
  const angle = camera.userData.angle ??= camera.fov * Math.PI / 180, aspect = innerWidth / innerHeight;
  camera.fov = 2 * Math.atan(Math.tan(angle / 2) / Math.min(1, aspect / 1.5)) * 180 / Math.PI;
  camera.updateProjectionMatrix();
  render();
}
const waiting = setInterval(() => {
  if (!controls) return;
  clearInterval(waiting);
  addEventListener("resize", fitWidth);
  fitWidth();
}, 50);
</script>"""


def write_obj(path: str | os.PathLike, vertices_cam: np.ndarray, faces: np.ndarray) -> None:
    """Write a mesh as OBJ: (V, 3) m, with the digits float32 needs to come back equal, and (F, 3) vertex indices.

    Raises:
        ValueError: a vertex is not finite.
        UserError: the file cannot be written.
    """
    _check(vertices_cam)
    lines = [f"# {FRAME}"]
    lines += ["v {:.9g} {:.9g} {:.9g}".format(*vertex) for vertex in np.asarray(vertices_cam).tolist()]
    lines += ["f {} {} {}".format(*face) for face in (np.asarray(faces, np.int64) + 1).tolist()]
    atomic_write(path, ("\n".join(lines) + "\n").encode())


def write_ply(path: str | os.PathLike, vertices_cam: np.ndarray, faces: np.ndarray, colour: np.ndarray) -> None:
    """Write a mesh as binary PLY: (V, 3) m, stored as float32, (F, 3) vertex indices, one colour (3,) RGB in 0..1.

    Raises:
        ValueError: a vertex is not finite.
        UserError: the file cannot be written.
    """
    _check(vertices_cam)
    rgba = np.append(np.round(np.asarray(colour) * 255), 255).astype(np.uint8)
    mesh = trimesh.Trimesh(
        vertices_cam,
        faces,
        vertex_normals=vertex_normals(vertices_cam, faces),
        vertex_colors=np.tile(rgba, (len(vertices_cam), 1)),
        process=False,  # otherwise vertices are merged and reordered
    )
    data = trimesh.exchange.ply.export_ply(mesh, vertex_normal=True)
    atomic_write(path, data.replace(b" 1.0\n", f" 1.0\ncomment {FRAME}\n".encode(), 1))


def write_glb(path: str | os.PathLike, hands: list[HandMesh]) -> None:
    """Write hands as a GLB scene, see `glb`.

    Raises:
        ValueError: no hands, or a vertex is not finite.
        UserError: the file cannot be written.
    """
    atomic_write(path, glb(hands))


def glb(hands: list[HandMesh]) -> bytes:
    """The content of a GLB file, with a node per hand: `right_hand`, `left_hand`; of more people `right_hand_2`, ...

    The hands' common center is moved to the origin, where viewers look. The scene's extras hold it:
    vertices_cam = (1, -1, -1) * position + centre_cam.

    Raises:
        ValueError: no hands, or a vertex is not finite.
    """
    # A glTF colour is proportional to light; ours are sRGB.
    srgb = np.asarray(HAND_RGB)
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return _scene(hands, linear).export(file_type="glb")


def write_html(
    path: str | os.PathLike,
    hands: list[HandMesh],
    title: str,
    photo_rgb: np.ndarray | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write hands as an interactive page, which loads nothing from a network.

    Args:
        title: of the page and of its caption.
        photo_rgb: (H, W, 3) uint8, shown small beside the hands.
        notes: texts below the caption, such as the hand model's name; empty ones are left out.

    Raises:
        ValueError: no hands, or a vertex is not finite.
        UserError: the file cannot be written.
    """
    title = html.escape(title)
    lines = [f"<b>{title}</b>: {_legend()}", "Drag to turn, scroll to zoom, right-drag to move."]
    lines += [html.escape(note) for note in notes if note]
    overlay = PAGE_OVERLAY.format(photo=_photo_tag(photo_rgb), caption="<br>".join(lines))
    # The page has one lamp and no ambient light; a little emission gives the look of the overlay.
    lit, glow = np.full((2, 3), DIFFUSE / PAGE_LAMP), AMBIENT + TINT * np.asarray(HAND_RGB)
    page = scene_to_html(_scene(hands, lit, glow))
    page = re.sub("<title>.*?</title>", lambda _: f"<title>{title}</title>", page, count=1, flags=re.DOTALL)
    page = page.replace("<body>", f"<body>{overlay}", 1)
    begin, end = page.rsplit("</body>", 1)
    atomic_write(path, f"{begin}{PAGE_SCRIPT}</body>{end}".encode("utf-8", "replace"))


def _photo_tag(photo_rgb: np.ndarray | None) -> str:
    """The photo as an HTML element that holds its data; empty without a photo."""
    if photo_rgb is None:
        return ""
    scale = min(1.0, PAGE_PHOTO / max(photo_rgb.shape[:2]))
    size = [max(1, round(length * scale)) for length in photo_rgb.shape[1::-1]]
    data = cv2.imencode(".jpg", cv2.resize(photo_rgb[..., ::-1], size, interpolation=cv2.INTER_AREA))[1]
    return f'<img alt="photo" src="data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}">'


def merge_into_shared_camera(hands: Sequence[HandMesh]) -> list[HandMesh]:
    """Move hands with several cameras to where the photo shows them, in the first one's camera.

    Hands that share a camera, such as a pair, move together; those of the first camera stay. Sizes do not change. The
    distance between virtual cameras, in units of the first one, is a guess, and depths mean nothing; but the hands do
    not intersect, as they would without it.

    Raises:
        UserError: the first hand's camera sees it as a point.
    """
    groups: dict[int, list[HandMesh]] = {}
    for hand in hands:
        groups.setdefault(id(hand.camera), []).append(hand)
    if len(groups) < 2:
        return list(hands)
    camera = hands[0].camera
    if not np.all(camera.focal):
        raise UserError("the network predicts a hand without extent; the checkpoint may be damaged or untrained")
    depth = hands[0].vertices_cam[:, 2].mean()
    shifts = {id(camera): np.zeros(3)}
    for group in groups.values():
        own = group[0].camera
        if own is not camera:
            middle = np.concatenate([hand.vertices_cam for hand in group]).mean(0)
            xy = (project(middle, own) - camera.princpt) / camera.focal
            shifts[id(own)] = np.append(xy if camera.orthographic else xy * depth, depth) - middle
    return [
        hand
        if hand.camera is camera
        else replace(hand, vertices_cam=hand.vertices_cam + shifts[id(hand.camera)], camera=camera)
        for hand in hands
    ]


def _legend() -> str:
    colours = (f"rgb({', '.join(str(round(255 * c)) for c in rgb)})" for rgb in HAND_RGB)
    return ", ".join(f'<b style="color: {c}">{side} hand</b>' for c, side in zip(colours, SIDES, strict=True))


def _scene(hands: list[HandMesh], colours: np.ndarray, glow: np.ndarray | None = None) -> trimesh.Scene:
    """The hands as a trimesh scene in glTF's axes; `colours` and `glow` (right, left) are in the file's units."""
    if not hands:
        raise ValueError("no hand to export")
    for hand in hands:
        _check(hand.vertices_cam)
    every = np.concatenate([hand.vertices_cam for hand in hands]).astype(np.float64)
    centre_cam = (every.min(0) + every.max(0)) / 2
    scene = trimesh.Scene(
        metadata={"centre_cam": centre_cam.tolist(), "frame": "(1, -1, -1) * position + centre_cam is cam, in metres"}
    )
    for index, hand in enumerate(hands):
        count = sum(other.side == hand.side for other in hands[: index + 1])
        name = f"{SIDES[hand.side]}_hand" + (f"_{count}" if count > 1 else "")
        # The default material is metallic, which looks almost black. Double-sided, because the inside is seen
        # through the wrist.
        material = PBRMaterial(
            name=name,
            baseColorFactor=np.append(colours[hand.side], 1.0),
            emissiveFactor=None if glow is None else glow[hand.side],
            metallicFactor=0.0,
            roughnessFactor=ROUGHNESS,
            doubleSided=True,
        )
        mesh = trimesh.Trimesh(
            (hand.vertices_cam - centre_cam) * CAM_TO_GLTF,
            hand.faces,
            vertex_normals=vertex_normals(hand.vertices_cam, hand.faces) * CAM_TO_GLTF,
            visual=TextureVisuals(material=material),
            process=False,
        )
        scene.add_geometry(mesh, node_name=name, geom_name=name)
    return scene


def _check(vertices: np.ndarray) -> None:
    if not np.isfinite(vertices).all():
        raise ValueError("a vertex is not finite")
