"""The Python interface: load once, call on photos, get typed results.

    from demo.predictor import HandPredictor

    predictor = HandPredictor.load("demo/snapshot_6.pth")
    photo = predictor("photo.jpg")
    photo.right.joints_cam, photo.right.camera, photo.confidences
    photo.save("results")
    photos = predictor(["a.jpg", "b.jpg"])
    for person in predictor.people("photo.jpg"):
        person.id, person.box_image, person.hands

docs/python.md explains it; `demo/demo.py` adds options.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import nn

from common.errors import UserError
from common.options import MANO_FOLDER
from common.postprocess import to_crop
from common.types import LEFT, RIGHT, SIDES
from common.utils.affine import image_to_crop, invert_affine_np
from common.utils.boxes import body_box, iou
from common.utils.camera import Camera, place_before_camera
from common.utils.heatmaps import bin_to_depth
from common.utils.images import warp_image
from common.weights import check_sum
from demo.arguments import (
    LoadedPhoto,
    PhotoLike,
    check_box,
    check_camera,
    check_choice,
    check_image,
    check_people,
    one_each,
    read_devices,
    read_photo,
)
from demo.hands import Hand, PersonHands, PhotoHands
from demo.motion import Observations
from demo.people import Detector, Person, choose_people, detect_people, given_people, load_detector, report_people
from demo.results import save_photo
from main.build import load_model, prepare_inference
from main.config import Config
from main.model import InterWild
from main.onnx_network import OnnxNetwork, load_onnx

# With `hand="auto"`, two boxes that overlap by more than this are considered one hand detected twice.
SAME_HAND_IOU = 0.8
BATCH = 16  # photos of a list, or people of a photo, that go through the network together

Arrays = Any  # a named tuple of tensors, such as `Prediction`, with NumPy arrays in their place


@dataclass(frozen=True)
class PreparedPhoto:
    """A photo prepared for the network.

    Attributes:
        crop: (H, W, 3) float32 RGB in [0, 255].
        image_size: (h, w) px of the photo.
        body_box_image: (4,) x, y, w, h px, what the crop shows.
        intrinsics: the photo's real camera, if given.
    """

    crop: np.ndarray
    image_size: tuple[int, int]
    body_box_image: np.ndarray
    intrinsics: Camera | None


class HandPredictor:
    """Photos -> `PhotoHands`.

    Args:
        model: is moved to the first device and set to evaluation mode.
        config: the model's configuration.
        devices: several GPUs share each batch.
        note: what must be said with its results, see `common.checkpoint.network_note`.
    """

    def __init__(
        self, model: InterWild | OnnxNetwork, config: Config, devices: Sequence[torch.device], note: str = ""
    ) -> None:
        self.config = config
        self.note = note
        self.devices = list(devices)
        self.device = devices[0]
        self._detectors: dict[str, Detector] = {}
        self.model = prepare_inference(model, self.device)
        self.network = nn.DataParallel(self.model, self.devices) if len(devices) > 1 else self.model
        self.hand_model_name = model.mano_layer.name
        self.faces = model.mano_layer.faces.cpu().numpy()  # (2, 1538, 3) triangles of vertex indices

    def __repr__(self) -> str:
        config = self.config
        return (
            f"HandPredictor(backbones {config.body_backbone}, {config.hand_backbone} and {config.trans_backbone}; "
            f"hand model: {self.hand_model_name}; on {self.device})"
        )

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        mano: str | Path = MANO_FOLDER,
        devices: Sequence[torch.device | str] | torch.device | str | None = None,
        sha256: str | None = None,
    ) -> "HandPredictor":
        """Read a checkpoint and the MANO files.

        Args:
            checkpoint: published or ours; or network.onnx, written by `tool/export.py`, which runs on the CPU.
            mano: folder of MANO_RIGHT.pkl and MANO_LEFT.pkl.
            devices: one or several, e.g. "cpu" or ["cuda:0", "cuda:1"]; default: the first CUDA GPU, else the CPU.
            sha256: what the checkpoint's sha256 must be.

        Raises:
            UserError: a file is missing, damaged, another, or does not fit.
            ValueError, TypeError: there is no such device.
        """
        chosen = read_devices(("cuda:0" if torch.cuda.is_available() else "cpu") if devices is None else devices)
        check_sum(Path(checkpoint), sha256)
        model: InterWild | OnnxNetwork
        if Path(checkpoint).suffix == ".onnx":
            model, config, note = load_onnx(Path(checkpoint), Path(mano))
            chosen = [torch.device("cpu")]
        else:
            model, config, _, _, note = load_model(Path(checkpoint), Path(mano))
        return cls(model, config, chosen, note)

    def prepare(
        self, image: np.ndarray, box_xywh: Sequence[float] | None = None, intrinsics: Camera | None = None
    ) -> PreparedPhoto:
        """Crop the person from a photo. Thread-safe, so that threads can prepare photos while the network computes.

        Args:
            image: (H, W, 3) uint8 RGB.
            box_xywh: (4,) px, the person; default: the whole photo. As in the published system, the crop depends on
                the numbers' type: if all four are integers, the box is rounded to integers (see
                `common.utils.boxes.body_box`), and the crop moves by less than a pixel of the photo.
            intrinsics: the photo's real pinhole camera; the hands are then placed in metric camera space.

        Raises:
            ValueError, TypeError: an argument has another type, shape or range.
            UserError: no part of the box is inside the photo.
        """
        check_image(image)
        if box_xywh is not None:
            check_box(box_xywh)
        if intrinsics is not None:
            check_camera(intrinsics)
        size, crop_size = image.shape[:2], self.config.frames.crop
        box = (0, 0, size[1], size[0]) if box_xywh is None else box_xywh
        box_image = body_box(np.asarray(box), size, crop_size, self.config.wild_box_extension)
        if box_image is None:
            raise UserError(f"the person's box {tuple(box)} holds nothing of a {size[1]} x {size[0]} photo")
        crop = warp_image(image.astype(np.float32), image_to_crop(box_image, crop_size), crop_size)
        return PreparedPhoto(crop, size, box_image, intrinsics)

    def predict(
        self, photos: Sequence[PreparedPhoto], hand: str = "both", min_confidence: float = 0.0
    ) -> list[PhotoHands]:
        """Run the network on a batch.

        Args:
            photos: from `prepare`.
            hand: "both" (as published: always two hands), "right", "left", or "auto": if both boxes are on the same
                hand, the less confident one is dropped.
            min_confidence: hands below it are dropped.

        Raises:
            ValueError: `hand` is none of these, or `min_confidence` is not from 0 to 1.
            torch.OutOfMemoryError: the batch is too large for the device.
        """
        check_choice(hand, min_confidence)
        return [self._assemble(photo, *answer, hand, min_confidence) for photo, answer in self._run(photos)]

    def observe(
        self, photos: Sequence[PreparedPhoto], hand: str = "both", min_confidence: float = 0.0
    ) -> list[Observations]:
        """Like `predict`, for one frame of a video each: both hands always, with what smoothing them over time needs.

        `person_box_image` is left for the caller to fill in.
        """
        check_choice(hand, min_confidence)
        return [self._observe(photo, *answer, hand, min_confidence) for photo, answer in self._run(photos)]

    @overload
    def __call__(
        self,
        image: PhotoLike,
        box_xywh: Sequence[float] | np.ndarray | None = None,
        intrinsics: Camera | None = None,
        hand: str = "both",
        min_confidence: float = 0.0,
        ignore_exif: bool = False,
    ) -> PhotoHands: ...

    @overload
    def __call__(
        self,
        image: list[Any] | tuple[Any, ...],
        box_xywh: Sequence[Sequence[float] | None] | np.ndarray | None = None,
        intrinsics: Camera | Sequence[Camera | None] | None = None,
        hand: str = "both",
        min_confidence: float = 0.0,
        ignore_exif: bool = False,
    ) -> list[PhotoHands]: ...

    def __call__(
        self,
        image: Any,
        box_xywh: Any = None,
        intrinsics: Any = None,
        hand: str = "both",
        min_confidence: float = 0.0,
        ignore_exif: bool = False,
    ) -> PhotoHands | list[PhotoHands]:
        """One photo, or a list of photos, which go through the network in batches.

        Args:
            image: a path, a PIL image or (H, W, 3) uint8 RGB; or a list of these. Files and PIL images are turned
                upright by their EXIF orientation first, unless `ignore_exif`.
            box_xywh, intrinsics: see `prepare`. With a list of photos one entry or None for each photo; one camera may
                stand for all.
            hand, min_confidence: see `predict`.

        Returns:
            The photo's hands; of a list of photos a list in its order.

        Raises:
            ValueError, TypeError: an argument has another type, shape or range.
            UserError: a photo cannot be read, or no part of its box is inside it.
        """
        check_choice(hand, min_confidence)
        if not isinstance(image, list | tuple):
            return self._photos([read_photo(image, ignore_exif)], [box_xywh], [intrinsics], hand, min_confidence)[0]
        boxes = one_each("box_xywh", box_xywh, len(image))
        shared = isinstance(intrinsics, Camera)
        cameras = [intrinsics] * len(image) if shared else one_each("intrinsics", intrinsics, len(image))
        results: list[PhotoHands] = []
        for start in range(0, len(image), BATCH):
            part = slice(start, start + BATCH)
            photos = [read_photo(one, ignore_exif) for one in image[part]]
            results += self._photos(photos, boxes[part], cameras[part], hand, min_confidence)
        return results

    def _photos(
        self,
        photos: Sequence[LoadedPhoto],
        boxes: Sequence[Any],
        cameras: Sequence[Any],
        hand: str,
        min_confidence: float,
    ) -> list[PhotoHands]:
        """One batch of photos; each result keeps its photo."""
        inputs = zip(photos, boxes, cameras, strict=True)
        prepared = [self.prepare(photo.image, box, camera) for photo, box, camera in inputs]
        results = self.predict(prepared, hand, min_confidence)
        return [self._keep(result, photo) for result, photo in zip(results, photos, strict=True)]

    def _keep(self, result: PhotoHands, photo: LoadedPhoto) -> PhotoHands:
        """A result with its photo, for `draw` and `save`."""
        writer = partial(
            save_photo,
            file=photo.file,
            orientation=photo.orientation,
            hand_model=self.hand_model_name,
            note=self.note,
        )
        return replace(result, image=photo.image, writer=writer)

    def prepare_person(self, image: np.ndarray, person: Person, intrinsics: Camera | None = None) -> PreparedPhoto:
        """`prepare` for one of a photo's people."""
        if person.source == "photo":
            return self.prepare(image, None, intrinsics)
        x1, y1, x2, y2 = person.box_image.tolist()
        return self.prepare(image, (x1, y1, x2 - x1, y2 - y1), intrinsics)

    def people(
        self,
        image: PhotoLike,
        detector: str | Detector = "fast",
        boxes: Sequence[Sequence[float]] | np.ndarray | None = None,
        intrinsics: Camera | None = None,
        hand: str = "both",
        min_confidence: float = 0.0,
        min_person: float = 0.5,
        max_people: int = 8,
        ignore_exif: bool = False,
    ) -> list[PersonHands]:
        """All people of one photo, from left to right. If nobody is found, the whole photo is one person.

        A hand that two people's crops show is reported once. Boxes that cannot be used are left out with a warning.

        Args:
            detector: "fast", "accurate", "MODULE:FUNCTION", or a function, see `demo.people`.
            boxes: (P, 4) xyxy px of the people; nobody is detected then.
            min_person: people of a lower score are left out.
            max_people: the largest are kept.

        The other arguments are those of `__call__`.

        Raises:
            ValueError, TypeError: an argument has another type, shape or range.
            UserError: the photo cannot be read, or the detector fails.
        """
        check_people(detector, boxes, min_person, max_people)
        check_choice(hand, min_confidence)
        photo = read_photo(image, ignore_exif)
        array, size = photo.image, photo.image.shape[:2]
        if boxes is not None:
            found, problems = given_people(np.asarray(boxes, np.float64).reshape(-1, 4), size)
        else:
            detect = self._detector(detector) if isinstance(detector, str) else detector
            found, problems = choose_people(detect_people(detect, [array])[0], size, min_person, max_people)
        for problem in problems:
            warnings.warn(problem, stacklevel=2)
        results: list[PhotoHands] = []
        for start in range(0, len(found), BATCH):
            crops = [self.prepare_person(array, person, intrinsics) for person in found[start : start + BATCH]]
            results += [self._keep(result, photo) for result in self.predict(crops, hand, min_confidence)]
        return report_people(found, results)

    def _detector(self, name: str) -> Detector:
        """A person detector by its name, loaded once."""
        if name not in self._detectors:
            self._detectors[name] = load_detector(name, self.device)
        return self._detectors[name]

    @torch.inference_mode()
    def _run(self, photos: Sequence[PreparedPhoto]) -> list[tuple[PreparedPhoto, tuple[Arrays, Arrays]]]:
        """The network on a batch; its `Prediction` and `CropResult` as arrays, photo by photo."""
        crops = torch.from_numpy(np.stack([photo.crop for photo in photos]))
        prediction = self.network(crops.to(self.device).permute(0, 3, 1, 2) / 255)
        arrays, crop_results = _to_numpy(prediction), _to_numpy(to_crop(prediction, self.config.frames))
        return [(photo, (_pick(arrays, n), _pick(crop_results, n))) for n, photo in enumerate(photos)]

    def _observe(
        self, photo: PreparedPhoto, prediction: Arrays, result: Arrays, hand: str, min_confidence: float
    ) -> Observations:
        both = self._assemble(photo, prediction, result, "both", 0.0)
        dropped = _choose(hand, min_confidence, prediction.box_scores, both.box_iou)
        scale, offset = _crop_scale(photo, self.config.frames.crop)
        hands = both.hands  # two, always
        own_wrist_crop = prediction.root_transl[:, :2] * result.hand_focal_crop + result.hand_princpt_crop
        return Observations(
            kept=np.array([side not in dropped for side in SIDES]),
            confidence=prediction.box_scores,
            box_image=both.boxes_image,
            joints_image=np.stack([each.joints_image for each in hands]),
            joints_depth_rel=np.stack([each.joints_depth_rel for each in hands]),
            global_orient=prediction.mano.global_orient,
            hand_pose=prediction.mano.hand_pose,
            betas=prediction.mano.betas,
            wrist_image=own_wrist_crop * scale + offset,
            hand_focal=result.hand_focal_crop * scale,
            pair_focal=result.pair_focal_crop * scale,
            root_depth=prediction.root_transl[:, 2],
            rel_transl=prediction.rel_transl,
            pair=np.array(both.pair),
            joints_cam=np.stack([each.joints_cam for each in hands]),
            focal=np.stack([each.camera.focal for each in hands]),
            princpt=np.stack([each.camera.princpt for each in hands]),
            person_box_image=np.zeros(4, np.float32),
        )

    def _assemble(
        self,
        photo: PreparedPhoto,
        prediction: Arrays,
        result: Arrays,
        hand: str,
        min_confidence: float,
    ) -> PhotoHands:
        """`Prediction` and `CropResult` of one photo as arrays, in `crop`, `body` and `rel`, -> `image` and `cam`."""
        frames = self.config.frames
        crop_to_image = invert_affine_np(image_to_crop(photo.body_box_image, frames.crop))
        body_to_crop = np.array([frames.crop[1] / frames.body[1], frames.crop[0] / frames.body[0]])

        def to_image(points_crop: np.ndarray) -> np.ndarray:
            return (points_crop @ crop_to_image[:, :2].T + crop_to_image[:, 2]).astype(np.float32)

        boxes_image = to_image(result.boxes_body.reshape(2, 2, 2) * body_to_crop).reshape(2, 4)
        box_iou = float(iou(*result.boxes_body))
        dropped = _choose(hand, min_confidence, prediction.box_scores, box_iou)
        kept = [index for index in (RIGHT, LEFT) if SIDES[index] not in dropped]
        pair = len(kept) == 2 and box_iou > 0

        placed = self._place_virtual(photo, prediction, result, kept, pair)
        metric = None
        if photo.intrinsics is not None:
            joints_proj_image = to_image(result.joints_proj_crop)
            metric = _place_metric(prediction, joints_proj_image, kept, pair, photo.intrinsics)

        def report(index: int) -> Hand:
            transl, camera = (metric or placed)[index]
            return Hand(
                side=SIDES[index],
                confidence=float(prediction.box_scores[index]),
                box_image=boxes_image[index],
                joints_image=to_image(result.joints_crop[index, :, :2]),
                joints_depth_rel=np.asarray(
                    bin_to_depth(result.joints_crop[index, :, 2], frames.hand_bins, frames.depth_range)
                ),
                vertices_cam=prediction.vertices_rel[index] + transl.astype(np.float32),
                joints_cam=prediction.joints_rel[index] + transl.astype(np.float32),
                camera=camera,
                global_orient=prediction.mano.global_orient[index],
                hand_pose=prediction.mano.hand_pose[index],
                betas=prediction.mano.betas[index],
                faces=self.faces[index],
            )

        hands = {SIDES[index]: report(index) for index in kept}
        return PhotoHands(
            image_size=photo.image_size,
            body_box_image=photo.body_box_image,
            right=hands.get("right"),
            left=hands.get("left"),
            dropped=dropped,
            confidences=prediction.box_scores,
            boxes_image=boxes_image,
            box_iou=box_iou,
            pair=pair,
            rel_transl=prediction.rel_transl,
            metric=metric is not None,
        )

    def _place_virtual(
        self, photo: PreparedPhoto, prediction: Arrays, result: Arrays, kept: list[int], pair: bool
    ) -> dict[int, tuple[np.ndarray, Camera]]:
        """Hand -> its wrist (3,) m and its virtual camera in `image`, as published: a pair starts from the right hand's
        wrist and shares one camera; otherwise each hand has its own wrist and camera."""
        scale, offset = _crop_scale(photo, self.config.frames.crop)

        def camera(focal_crop: np.ndarray, princpt_crop: np.ndarray) -> Camera:
            return Camera(focal_crop * scale, princpt_crop * scale + offset, orthographic=True)

        if pair:
            shared = camera(result.pair_focal_crop, result.pair_princpt_crop)
            return {index: (result.pair_transl[index], shared) for index in kept}
        return {
            index: (
                prediction.root_transl[index],
                camera(result.hand_focal_crop[index], result.hand_princpt_crop[index]),
            )
            for index in kept
        }


def _crop_scale(photo: PreparedPhoto, crop_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """scale (2,) and offset (2,) px: point in `image` = scale * point in `crop` + offset."""
    x0, y0, width, height = photo.body_box_image
    return np.array([width / crop_size[1], height / crop_size[0]]), np.array([x0, y0])


def _place_metric(
    prediction: Arrays, joints_proj_image: np.ndarray, kept: list[int], pair: bool, intrinsics: Camera
) -> dict[int, tuple[np.ndarray, Camera]] | None:
    """Hand -> its wrist (3,) m in the real camera's space; None if a hand cannot be placed in front of the camera."""
    offsets: dict[int, np.ndarray] = {RIGHT: np.zeros(3), LEFT: prediction.rel_transl}
    groups = [kept] if pair else [[index] for index in kept]
    placed: dict[int, tuple[np.ndarray, Camera]] = {}
    for group in groups:
        origin = {index: offsets[index] if pair else np.zeros(3) for index in group}
        points_rel = np.concatenate([prediction.joints_rel[index] + origin[index] for index in group])
        points_image = np.concatenate([joints_proj_image[index] for index in group])
        transl = place_before_camera(points_rel, points_image, intrinsics.focal, intrinsics.princpt)
        if transl is None:
            return None
        placed |= {index: (transl + origin[index], intrinsics) for index in group}
    return placed


def _choose(hand: str, min_confidence: float, confidences: np.ndarray, box_iou: float) -> dict[str, str]:
    """The hands to drop: side -> reason."""
    dropped = {}
    for index, side in enumerate(SIDES):
        if hand in SIDES and hand != side:
            dropped[side] = f"only the {hand} hand was asked for"
        elif confidences[index] < min_confidence:
            dropped[side] = f"confidence {confidences[index]:.3f} is below {min_confidence:g}"
    if hand == "auto" and not dropped and box_iou > SAME_HAND_IOU:
        index = int(np.argmin(confidences))
        dropped[SIDES[index]] = (
            f"both boxes are on one hand (overlap {box_iou:.2f}), the {SIDES[1 - index]} one is more confident"
        )
    return dropped


def _to_numpy(values: Any) -> Arrays:
    """A (nested) named tuple of tensors -> the same of arrays."""
    if isinstance(values, torch.Tensor):
        return values.cpu().numpy()
    return type(values)(*map(_to_numpy, values))


def _pick(values: Arrays, index: int) -> Arrays:
    """A (nested) named tuple of batched arrays -> that of one sample."""
    if isinstance(values, np.ndarray):
        return values[index]
    return type(values)(*(_pick(value, index) for value in values))
