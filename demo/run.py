"""The demo's work: all photos through the network, reading and writing beside it. `demo.py` is its command line."""

import argparse
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from common.devices import parse_devices
from common.errors import UserError, is_out_of_memory, one_line, some
from common.options import VIDEO_SUFFIXES
from common.utils.camera import Camera
from common.utils.files import write_image
from common.utils.images import has_alpha, image_size, load_photo, quiet_opencv
from demo.hands import PhotoHands
from demo.people import (
    Detections,
    Detector,
    Person,
    boxes_of,
    choose_people,
    detect_people,
    given_people,
    load_detector,
    read_boxes,
    report_people,
    whole_photo,
)
from demo.predictor import HandPredictor, PreparedPhoto
from demo.result_sheet import draw_result_sheet
from demo.results import ResultWriter

Item = TypeVar("Item")
Result = TypeVar("Result")

NAMED = 6  # photos without a hand, at most, in a line
THREADS = 4  # that read and write beside the network
DETECT_BATCH = 4  # photos that the person detector sees together; they are large
HELD_BYTES = 512 << 20  # of decoded photos that are read ahead, or not yet written
UNKNOWN_SIZE = (6000, 8000)  # a phone's largest photo, for those whose header Pillow cannot read, as of HEIC
ALPHA_WARNING = (
    "warning: {file} has transparent pixels; the network sees the colour stored under them, as in the published"
    " system, which may differ from what viewers show (this is said once per run)"
)


class Photo(NamedTuple):
    """A photo on its way: what a thread makes of it, and how much memory it takes meanwhile."""

    file: Path
    bytes: int
    future: Future


@dataclass
class Loaded:
    """A photo that was read, on its way through the network."""

    file: Path
    bytes: int
    image: np.ndarray  # (H, W, 3) uint8 RGB, upright
    orientation: int  # of EXIF, undone
    camera: Camera | None
    whole: PreparedPhoto | None  # of `--people one`: prepared while the network computes
    people: list[Person] = field(default_factory=list)
    results: list[PhotoHands | Exception] = field(default_factory=list)  # one a person


def run(args: argparse.Namespace, names: Mapping[Path, str]) -> None:
    """Process photos and videos, and write their results.

    Args:
        args: from `demo.parse_args`.
        names: file -> NAME of its results.

    Raises:
        UserError: a photo or video failed, or some of its boxes were left out; the others are done.
    """
    videos = {file: name for file, name in names.items() if file.suffix.lower() in VIDEO_SUFFIXES}
    names = {file: name for file, name in names.items() if file not in videos}
    quiet_opencv()
    boxes = read_boxes(args.boxes) if args.boxes else None
    devices = parse_devices(args.gpu)
    if args.gpu is None:
        devices = devices[:1]  # one photo at a time gains nothing from several
    predictor = HandPredictor.load(args.checkpoint, args.mano, devices, args.sha256)
    load_once = cache(lambda: load_detector(args.detector, predictor.device))
    found = f"photos: {len(names)}" + (f", videos: {len(videos)}" if videos else "")
    found = found if names or videos else f"camera: {args.camera}"
    print(f"{found}; on {', '.join(map(str, predictor.devices))}; hand model: {predictor.hand_model_name}")
    if predictor.note:
        print(predictor.note)

    def make_writer(folder: Path) -> ResultWriter:
        name, note = predictor.hand_model_name, predictor.note
        return ResultWriter(folder, name, args.mesh_formats, args.html, args.renderer, note)

    failed: set[Path] = set()
    flawed: set[Path] = set()
    if names:
        detector = load_once() if args.people == "auto" and boxes is None else None
        failed, flawed = process(names, predictor, make_writer(args.output), args, detector, boxes)
    done = {file: name for file, name in names.items() if file not in failed}
    if args.sheet and done:
        write_image(args.output / "sheet.jpg", draw_result_sheet(args.output, done), quality=90)
    if names:
        where = f"boxes, meshes, params, renders and results are in {args.output}"
        print(f"{len(done)} of {len(names)} photos done; {where}")
    bad_videos: set[Path] = set()
    if videos or args.camera is not None:
        try:
            from demo import run_videos  # PyAV is needed for videos alone
        except ModuleNotFoundError as error:
            raise UserError(f"videos and cameras need the package {error.name}: pip install av") from None
        intrinsics = partial(real_camera, args.focal, args.princpt)
        bad_videos = run_videos.process_videos(videos, predictor, args, load_once, intrinsics, make_writer)
        if args.camera is not None:
            run_videos.run_camera(predictor, args, load_once, intrinsics)
    counts = (
        (failed, names, "photos could not be done"),
        (flawed, names, "photos have boxes that were left out"),
        (bad_videos, videos, "videos could not be done"),
    )
    problems = [f"{len(bad)} of {len(every)} {what}" for bad, every, what in counts if bad]
    if problems:
        raise UserError(f"{' and '.join(problems)}; see the errors above")


def process(
    names: Mapping[Path, str],
    predictor: HandPredictor,
    writer: ResultWriter,
    args: argparse.Namespace,
    detector: Detector | None = None,
    boxes: Mapping[str, np.ndarray] | None = None,
) -> tuple[set[Path], set[Path]]:
    """Run all photos.

    Args:
        detector: finds the people.
        boxes: of the people, see `demo.people.read_boxes`. Without both, each photo is one person's crop.

    Returns:
        Photos that failed, and photos where boxes were left out. Each is named with its reason.
    """
    failed: set[Path] = set()
    flawed: set[Path] = set()
    transparent: list[Path] = []
    empty: list[str] = []  # names of photos in which no hand is reported
    waiting = deque(names)
    reading: deque[Photo] = deque()
    writing: deque[Photo] = deque()
    progress = tqdm(total=len(names), unit="photo", dynamic_ncols=True)
    one_person = detector is None and boxes is None
    most_people = args.max_people if boxes is None else max(map(len, boxes.values()), default=1)

    def say(file: Path, problem: str) -> None:
        progress.write(one_line(f"{file.name}: {problem}"), file=sys.stderr)

    def read(file: Path, size: int) -> Loaded:
        writer.begin(names[file], 1 if one_person else most_people, file)
        image, orientation = load_photo(file, args.ignore_exif)
        if not transparent and has_alpha(file):
            transparent.append(file)
            progress.write(one_line(ALPHA_WARNING.format(file=file.name)), file=sys.stderr)
        camera = real_camera(args.focal, args.princpt, image.shape[:2])
        whole = predictor.prepare(image, intrinsics=camera) if one_person else None
        return Loaded(file, size, image, orientation, camera, whole)

    def attempt(file: Path, work: Callable[[], Any]) -> Any:
        """What `work` makes of a photo, or None: whatever goes wrong with one photo must not end the others."""
        try:
            return work()
        except Exception as error:
            if is_out_of_memory(error):
                raise
            failed.add(file)
            progress.update()
            say(file, str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
        return None

    def read_ahead() -> None:
        held = sum(photo.bytes for photo in (*reading, *writing))
        while waiting and len(reading) < 2 * args.batch_size:
            size = decoded_bytes(waiting[0])
            if held and held + size > HELD_BYTES:
                break
            held += size
            file = waiting.popleft()
            reading.append(Photo(file, size, pool.submit(read, file, size)))

    def detect(images: list[np.ndarray]) -> list[Detections | Exception | None]:
        """What the detector finds in each image; None where there is none."""
        if detector is None or boxes is not None:
            return [None] * len(images)
        parts = (images[start : start + DETECT_BATCH] for start in range(0, len(images), DETECT_BATCH))
        return [found for part in parts for found in each(partial(detect_people, detector), part)]

    def find_people(loaded: Loaded, found: Detections | Exception | None) -> list[Person]:
        size = loaded.image.shape[:2]
        if isinstance(found, Exception):
            raise found
        if found is not None:
            people, problems = choose_people(found, size, args.min_person, args.max_people)
        elif boxes is not None:
            people, problems = given_people(boxes_of(boxes, loaded.file), size)
        else:
            return [whole_photo(size)]
        for problem in problems:
            flawed.add(loaded.file)
            say(loaded.file, problem)
        return people

    def prepare(crop: tuple[Loaded, Person]) -> PreparedPhoto:
        loaded, person = crop
        return loaded.whole or predictor.prepare_person(loaded.image, person, loaded.camera)

    def predict(batch: Sequence[PreparedPhoto]) -> list[PhotoHands]:
        return predictor.predict(batch, args.hand, args.min_confidence)

    def write(loaded: Loaded) -> None:
        for result in loaded.results:
            if isinstance(result, Exception):
                raise result
        results = [result for result in loaded.results if isinstance(result, PhotoHands)]
        if not any(result.hands for result in results):
            empty.append(loaded.file.name)
        photo = results[0] if one_person else report_people(loaded.people, results)
        writer.write(names[loaded.file], loaded.image, photo, loaded.orientation)

    def finish_writing(allowed: int) -> None:
        while writing and sum(photo.bytes for photo in writing) > allowed:
            photo = writing.popleft()
            attempt(photo.file, photo.future.result)
            if photo.file not in failed:
                progress.update()

    # Crops have threads of their own: the network waits for them, not for writing.
    with progress, ThreadPoolExecutor(THREADS) as pool, ThreadPoolExecutor(THREADS) as croppers:
        read_ahead()
        while reading:
            batch = [reading.popleft() for _ in range(min(args.batch_size, len(reading)))]
            photos = [loaded for photo in batch if (loaded := attempt(photo.file, photo.future.result))]
            for loaded, found in zip(photos, detect([loaded.image for loaded in photos]), strict=True):
                loaded.people = attempt(loaded.file, partial(find_people, loaded, found)) or []
            photos = [loaded for loaded in photos if loaded.people]
            crops = [(loaded, person) for loaded in photos for person in loaded.people]
            for start in range(0, len(crops), args.batch_size):
                part = crops[start : start + args.batch_size]
                prepared = list(croppers.map(prepare, part))
                predictions = each(predict, prepared, (UserError,))
                for (loaded, _), prediction in zip(part, predictions, strict=True):
                    loaded.results.append(prediction)
            writing += [Photo(loaded.file, loaded.bytes, pool.submit(write, loaded)) for loaded in photos]
            del batch, photos, crops  # the photos themselves
            finish_writing(HELD_BYTES // 2)
            read_ahead()
            if not reading:  # none left, or no room before the others are written
                finish_writing(-1)
                read_ahead()
    if empty:
        where = one_line(f"in {len(empty)} of {len(names)} photos ({some(sorted(empty), NAMED)})")
        print(f"0 hands reported {where}: no confidence reaches --min_confidence {args.min_confidence:g}")
    return failed, flawed - failed


def each(
    work: Callable[[list[Item]], list[Result]], items: Sequence[Item], passing: tuple[type[Exception], ...] = ()
) -> list[Result | Exception]:
    """The results of a batch; if it fails, of its items one by one, with an exception in the place of its result.

    Out of memory and the kinds in `passing` are raised.
    """
    try:
        return [*work([*items])]
    except Exception as error:
        if isinstance(error, passing) or is_out_of_memory(error):
            raise
        if len(items) == 1:
            return [error]
    return [result for item in items for result in each(work, [item], passing)]


def decoded_bytes(file: Path) -> int:
    """What a photo takes in memory, (H, W, 3) uint8, by its header."""
    height, width = image_size(file) or UNKNOWN_SIZE
    return 3 * height * width


def real_camera(focal: list[float] | None, princpt: list[float] | None, image_size: tuple[int, int]) -> Camera | None:
    """The pinhole camera the user gave, for a photo of (h, w); the default principal point is the center."""
    if focal is None:
        return None
    center = ((image_size[1] - 1) / 2, (image_size[0] - 1) / 2)
    return Camera(np.array([focal[0], focal[-1]]), np.array(princpt or center), orthographic=False)
