"""What the demo writes for a photo: images, meshes, parameters, and everything as data.

Frames and units are the same in every file: pixels of the photo, centers at integers, x right, y down; metres in the
camera's axes, x right, y down, z away; rotations as axis-angle in radians. Only GLB has y up, as viewers expect.
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from common.drawing.export import merge_into_shared_camera, write_glb, write_html, write_obj, write_ply
from common.drawing.overlay import draw_boxes, draw_skeletons
from common.drawing.raster import HandMesh
from common.drawing.render import HAND_RGB, render_hands
from common.errors import UserError, brief
from common.options import MESH_FORMATS, RENDERERS
from common.types import SIDES
from common.utils.camera import Camera
from common.utils.files import check_writable, write_image, write_json
from common.utils.images import TURNS
from common.utils.joints import JOINTS
from demo.hands import Hand, PersonHands, PhotoHands
from demo.side_view import draw_side_view

MAX_NAME = 255  # characters of a file name, where the system does not tell
FOLDERS = ("boxes", "meshes", "params", "renders", "results")
UNITS = {
    "image": "pixels of the photo, centres at integers, x right, y down",
    "cam": "metres, x right, y down, z away from the camera",
    "rotations": "axis-angle, radians",
}
# Of all people in a photo.
SHARED_KEYS = ("name", "image_size", "units", "hand_model", "network_note", "confidence_kind", "joint_names")
CONFIDENCE_KIND = "height of the detector's heatmap at the box centre, 0 to 1; not a probability"
DEPTH_METRIC = "metric: the hands stand before the given camera"
DEPTH_VIRTUAL = "virtual: the camera is unknown, only differences in depth within one camera mean anything"


class ResultWriter:
    """Writes the results of photos to one folder. Threads may share it.

    Args:
        folder: where the folders of `FOLDERS` go.
        hand_model: the hand model's name, which stands in every file that depends on it.
        mesh_formats: of obj, ply, glb.
        html: also write an interactive page.
        renderer: see `common.drawing.render.render_hands`.
        note: what must be said with the network's results.

    Raises:
        UserError: a folder cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        hand_model: str,
        mesh_formats: Sequence[str] = MESH_FORMATS,
        html: bool = False,
        renderer: str = "auto",
        note: str = "",
    ) -> None:
        self.folder, self.hand_model, self.note = folder, hand_model, note
        self.mesh_formats, self.html, self.renderer = tuple(mesh_formats), html, renderer
        self._people_before: dict[str, int] = {}  # photo's name -> people of an earlier run
        self._files: dict[str, str] = {}  # photo's name -> its file
        # A missing renderer or a read-only folder is found now, not after the network has run.
        render_hands(np.zeros((1, 1, 3), np.uint8), [], renderer)
        for name in FOLDERS:
            check_writable(folder / name)

    def begin(self, name: str, people: int = 1, file: Path | None = None) -> None:
        """Remove `results/NAME.json` of an earlier run: where it exists, a photo's other files are of the same run.

        Args:
            people: how many there may be.
            file: the photo; default: it has none.

        Raises:
            UserError: the results' names would be too long, or an earlier run wrote those of another photo there.
            OSError: the old file cannot be removed.
        """
        endings = ("_skeleton.jpg", f"_person{people}_right.json" if people > 1 else "")
        longest = len(os.fsencode(name)) + max(map(len, endings))
        limit = os.pathconf(self.folder, "PC_NAME_MAX") if hasattr(os, "pathconf") else MAX_NAME
        if longest > limit:
            raise UserError(f"its results' file names would have {longest} bytes, of at most {limit}; "
                            "choose a shorter name")  # fmt: skip
        old = self._path("results", name, ".json")
        if file:
            self._files[name] = os.path.abspath(file)
        earlier = read_earlier(old, file, "photo")
        with suppress(Exception):  # an old file may hold anything
            self._people_before[name] = len(earlier["people"])
        old.unlink(missing_ok=True)

    def write(
        self,
        name: str,
        image: np.ndarray,
        photo: PhotoHands | Sequence[PersonHands] | Exception,
        orientation: int = 1,
        title: str | None = None,
    ) -> None:
        """Write all files of one photo. Nothing is written if its results are not finite or cannot be drawn.

        Args:
            name: the files' name.
            image: (H, W, 3) uint8 RGB.
            photo: the hands of the photo's one person, or of each of its people; an exception is raised here.
            orientation: the EXIF orientation that was undone, see `common.utils.images.load_photo`.
            title: the photo's name inside the files (default: `name`).

        Raises:
            UserError: a file cannot be written, or the network's output is not finite.
        """
        if isinstance(photo, Exception):
            raise photo
        people = [photo] if isinstance(photo, PhotoHands) else list(photo)
        content = people_to_dict(title or name, people, self.hand_model, self.note)
        if name in self._files:
            content["file"] = self._files[name]
        if orientation != 1:
            content |= {"exif_orientation": orientation, "turned": TURNS[orientation]}
        meshes = [one.meshes() for one in people]
        scene = merge_into_shared_camera([hand for hands in meshes for hand in hands])
        images = self._draw(image, people, meshes)
        stems = [name if len(people) == 1 else f"{name}_person{number}" for number in range(1, len(people) + 1)]
        self._remove_stale(name, dict(zip(stems, people, strict=True)), bool(scene))
        for kind, drawn in images.items():
            write_image(self._path("renders", name, f"_{kind}.jpg"), drawn)
        for stem, one in zip(stems, people, strict=True):
            for hand in one.hands:
                self._write_hand(stem, hand, one)
        if "glb" in self.mesh_formats and scene:
            write_glb(self._path("meshes", name, ".glb"), scene)
        if self.html and scene:
            notes = (f"Hand model: {self.hand_model}.", self.note)
            write_html(self._path("renders", name, ".html"), scene, title or name, image, notes)
        boxes = [
            _person_to_dict(one)
            | {
                side: {"box": one.boxes_image[index].tolist(), "confidence": float(one.confidences[index])}
                for index, side in enumerate(SIDES)
            }
            for one in people
        ]
        write_json(self._path("boxes", name, ".json"), boxes[0] if len(boxes) == 1 else {"people": boxes})
        write_json(self._path("results", name, ".json"), content)  # last: where it is, the others are

    def _path(self, folder: str, name: str, ending: str) -> Path:
        return self.folder / folder / (name + ending)

    def _remove_stale(self, name: str, people: Mapping[str, PhotoHands], any_hand: bool) -> None:
        """Remove an earlier run's files of people and hands that are left out now. `people`: stem of files -> hands."""
        before = self._people_before.pop(name, 0)
        stale = []
        for stem in {name, *(f"{name}_person{number}" for number in range(1, before + 1)), *people}:
            for side in SIDES:
                if stem not in people or side in people[stem].dropped:
                    stale.append(self._path("params", stem, f"_{side}.json"))
                    stale += [self._path("meshes", stem, f"_{side}.{suffix}") for suffix in ("obj", "ply")]
        if not any_hand:
            stale += [self._path("meshes", name, ".glb"), self._path("renders", name, ".html")]
        for path in stale:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _draw(
        self, image: np.ndarray, people: Sequence[PhotoHands], meshes: Sequence[list[HandMesh]]
    ) -> dict[str, np.ndarray]:
        """Kind -> (H, W, 3) uint8 RGB. All people together; larger boxes, which are nearer, on top."""
        box, skeleton, mesh = image, image, image
        nearest_last = sorted(zip(people, meshes, strict=True), key=lambda pair: _box_area(pair[0]))
        for one, hands in nearest_last:
            shown = np.array([name not in one.dropped for name in SIDES])
            joints = np.zeros((2, len(JOINTS), 2))
            for hand in one.hands:
                joints[SIDES.index(hand.side)] = hand.joints_image
            box = draw_boxes(box, one.boxes_image, None, shown)
            skeleton = draw_skeletons(skeleton, joints, shown)
            mesh = render_hands(mesh, hands, self.renderer)
        side = draw_side_view(image.shape[:2], [(hands, one.pair) for one, hands in nearest_last], self.renderer)
        return {"box": box, "skeleton": skeleton, "mesh": mesh, "side": side}

    def _write_hand(self, name: str, hand: Hand, photo: PhotoHands) -> None:
        stem, faces = f"_{hand.side}", hand.faces
        if "obj" in self.mesh_formats:
            write_obj(self._path("meshes", name, f"{stem}.obj"), hand.vertices_cam, faces)
        if "ply" in self.mesh_formats:
            colour = np.array(HAND_RGB[SIDES.index(hand.side)])
            write_ply(self._path("meshes", name, f"{stem}.ply"), hand.vertices_cam, faces, colour)
        params = {
            # The published names come first.
            "root_pose": hand.global_orient.tolist(),
            "hand_pose": hand.hand_pose.reshape(-1).tolist(),
            "shape": hand.betas.tolist(),
            "root_trans": [0, 0, 0] if hand.side == "right" else photo.rel_transl.tolist(),
            "hand_model": self.hand_model,
        }
        write_json(self._path("params", name, f"{stem}.json"), params)


def read_earlier(old: Path, file: Path | None, kind: str) -> Any:
    """What an earlier run's `old`, JSON, holds; {} if nothing that can be read.

    Args:
        file: what the results of this run are of, if it is a file.
        kind: "photo" or "video".

    Raises:
        UserError: they are of another file, which still exists.
    """
    earlier: Any = {}
    before: Any = ""
    with suppress(Exception):  # it may hold anything
        earlier = json.loads(old.read_bytes())
        before = earlier["file"]
    is_other = file and isinstance(before, str) and before not in ("", os.path.abspath(file))
    if is_other and Path(before).is_file():
        raise UserError(f"{old.parent} holds the results of another {kind} of this name, {before}; "
                        "choose another --output")  # fmt: skip
    return earlier


def save_photo(
    photo: PhotoHands,
    folder: Path,
    name: str | None,
    mesh_formats: Sequence[str],
    html: bool,
    renderer: str,
    file: Path | None,
    orientation: int,
    hand_model: str,
    note: str,
) -> None:
    """Write the files of one photo, or of one of its people; see `PhotoHands.save` and `ResultWriter`."""
    assert photo.image is not None
    if name is None:
        person = f"_person{photo.id}" if isinstance(photo, PersonHands) else ""
        name = (file.stem if file else "photo") + person
    if not name or name != Path(name).name:
        raise ValueError(f"name must be a file name without folders, not {name!r}")
    if isinstance(mesh_formats, str) or not set(mesh_formats) <= set(MESH_FORMATS):
        raise ValueError(f"mesh_formats must be some of {', '.join(MESH_FORMATS)} in a list, not {brief(mesh_formats)}")
    if renderer not in RENDERERS:
        raise ValueError(f"renderer must be one of {', '.join(RENDERERS)}, not {brief(renderer)}")
    writer = ResultWriter(folder, hand_model, mesh_formats, html, renderer, note)
    writer.begin(name, 1, file)
    writer.write(name, photo.image, photo, orientation)


def depth_note(photo: PhotoHands) -> str:
    """What the hands' depths mean: "metric: ..." or "virtual: ..."."""
    return DEPTH_METRIC if photo.metric else DEPTH_VIRTUAL


def camera_to_dict(camera: Camera) -> dict[str, Any]:
    """A camera as data, with its projection formula."""
    kind, unit, formula = ("pinhole", "px", "x = focal_x * X / Z + princpt_x, y likewise")
    if camera.orthographic:
        kind, unit, formula = ("orthographic", "px per metre", "x = focal_x * X + princpt_x, y likewise")
    return {
        "type": kind,
        "virtual": camera.orthographic,
        "focal": [float(value) for value in camera.focal],
        "focal_unit": unit,
        "princpt": [float(value) for value in camera.princpt],
        "projection": formula,
    }


def people_to_dict(name: str, people: Sequence[PhotoHands], hand_model: str, note: str = "") -> dict[str, Any]:
    """`photo_to_dict` of the photo's one person; of several under "people", with what they share beside it."""
    contents = [_person_to_dict(one) | photo_to_dict(name, one, hand_model, note) for one in people]
    if len(contents) == 1:
        return contents[0]
    shared = {key: contents[0][key] for key in SHARED_KEYS}
    own = [{key: value for key, value in content.items() if key not in shared} for content in contents]
    return shared | {"people": own}


def _person_to_dict(one: PhotoHands) -> dict[str, Any]:
    """Who it is; nothing where the photo was taken as one person's crop."""
    if not isinstance(one, PersonHands):
        return {}
    return {"id": one.id, "source": one.source, "score": one.score, "box_image": one.box_image.tolist()}


def _box_area(one: PhotoHands) -> float:
    return float((one.box_image[2:] - one.box_image[:2]).prod()) if isinstance(one, PersonHands) else 0.0


def photo_to_dict(name: str, photo: PhotoHands, hand_model: str, note: str = "") -> dict[str, Any]:
    """One photo's hands as plain data, without the vertices (they are in the mesh files).

    Raises:
        UserError: a number is not finite.
    """
    hands: dict[str, Any] = {}
    for index, side in enumerate(SIDES):
        hands[side] = {"confidence": float(photo.confidences[index]), "box_image": photo.boxes_image[index].tolist()}
        hand = getattr(photo, side)
        if hand is None:
            hands[side]["dropped"] = photo.dropped[side]
            continue
        hands[side] |= {
            "joints_image": hand.joints_image.tolist(),
            "joints_depth_rel": hand.joints_depth_rel.tolist(),
            "joints_cam": hand.joints_cam.tolist(),
            "camera": camera_to_dict(hand.camera),
            "global_orient": hand.global_orient.tolist(),
            "hand_pose": hand.hand_pose.tolist(),
            "betas": hand.betas.tolist(),
        }
    _check_finite(photo)
    return {
        "name": name,
        "image_size": {"width": photo.image_size[1], "height": photo.image_size[0]},
        "units": UNITS,
        "hand_model": hand_model,
        "network_note": note,
        "confidence_kind": CONFIDENCE_KIND,
        "depth": depth_note(photo),
        "joint_names": JOINTS,
        "body_box_image_xywh": photo.body_box_image.tolist(),
        "pair": photo.pair,
        "box_iou": photo.box_iou,
        "rel_transl": photo.rel_transl.tolist(),
        "hands": hands,
    }


def _check_finite(photo: PhotoHands) -> None:
    arrays = [photo.boxes_image, photo.confidences, photo.rel_transl]
    for hand in photo.hands:
        arrays += [hand.vertices_cam, hand.joints_image, hand.joints_depth_rel, hand.camera.focal, hand.camera.princpt]
        arrays += [hand.global_orient, hand.hand_pose, hand.betas]
    if not all(np.isfinite(array).all() for array in arrays):
        raise UserError("the network's output is not finite; the checkpoint may be damaged")
