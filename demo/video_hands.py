"""From a video to a table of hands: shots and people, the network on their crops, smoothing; then the overlay.

The file is decoded once for each of three passes (shots and people; hands; drawing), so memory does not grow with its
length, apart from the table.
"""

import os
import time as clock
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common.drawing.overlay import draw_boxes, draw_person, draw_skeletons
from common.drawing.raster import HandMesh
from common.drawing.render import render_hands
from common.nets.mano import to_wrist
from common.types import ManoParams
from common.utils.camera import Camera
from common.utils.files import atomic_path, make_folder, write_json
from common.utils.joints import JOINTS
from demo.motion import BRIDGED, REJECTED, SEEN, Observations, jitter, smooth_person
from demo.people import LOWEST_SCORE, Detector, Person, detect_people, largest_people, neighbours_hands, report_people
from demo.predictor import HandPredictor, PreparedPhoto
from demo.results import ResultWriter, read_earlier
from demo.tracking import Tracker, boxes_between
from demo.video import CutDetector, Frame, VideoReader, VideoWriter

POSE_CHUNK = 128  # rows that are posed at once
LAYERS = ("boxes", "skeleton", "mesh")


@dataclass(frozen=True)
class VideoOptions:
    """What `demo.py` asks for."""

    detector: Detector | None = None  # without it and without boxes the whole frame is one person
    boxes: Sequence[np.ndarray] | None = None  # of each frame, (P, 4) xyxy px; in place of a detector's
    detect_every: float = 0.17  # s
    min_person: float = 0.5  # a detection with this score can begin a track
    max_people: int = 8  # in a frame, the largest
    smooth: float = 3.0  # Hz; 0: frame by frame
    hand: str = "both"
    min_confidence: float = 0.0
    batch_size: int = 8
    intrinsics: Callable[[tuple[int, int]], Camera | None] = lambda size: None  # of frames of (h, w)
    draw: tuple[str, ...] = ("mesh",)  # of LAYERS
    compare: bool = False  # show the hands before smoothing beside those after
    frames_every: float = 0.0  # s; from time to time a frame's results as of a photo; 0: none
    writer: Callable[[Path], ResultWriter] | None = None  # of these, for a folder
    stop: Callable[[], bool] = lambda: False  # asked between frames: end early, with whole files
    # In place of a progress bar: told the stage, frames done and, if known, in all. May raise to give up.
    watch: Callable[[str, int, int | None], None] | None = None
    # Shown frames with hands as they come, (H, W, 3) uint8 RGB: skeletons before smoothing, then the overlay.
    preview: Callable[[np.ndarray], None] | None = None
    title: str = ""  # the video's name in the results, where its path says nothing


@dataclass
class Scan:
    """Shots and people of a video."""

    times: np.ndarray  # (T,) s
    pts: np.ndarray  # (T,) in the file's time base
    shots: np.ndarray  # (T,) from 0
    people: list[tuple[int, int, str, np.ndarray, np.ndarray]]  # shot, person, source, rows (R,), boxes (R, 4)
    problems: list[str] = field(default_factory=list)


def scan(reader: VideoReader, options: VideoOptions, seconds: dict[str, float]) -> Scan:
    """The first pass: time stamps, cuts, detections, tracks.

    Raises:
        UserError: the detector fails.
    """
    times, pts, shots, problems = [], [], [], []
    tracker, trackers, is_cut, next_detection = Tracker(options.min_person, LOWEST_SCORE), [], CutDetector(), -1.0
    trackers.append(tracker)
    for frame in progress(reader, "people", options):
        if options.stop():
            break
        if is_cut(frame.image):
            tracker = Tracker(options.min_person, LOWEST_SCORE)
            trackers.append(tracker)
            next_detection = -1.0
        times.append(frame.time)
        pts.append(frame.pts)
        shots.append(len(trackers) - 1)
        if (found := detect(frame, options, frame.time >= next_detection - 1e-9, seconds)) is not None:
            boxes, scores, wrong = found
            problems += wrong
            tracker.update(frame.time, boxes, scores)
            next_detection = frame.time + options.detect_every
    result = Scan(np.array(times), np.array(pts, np.int64), np.array(shots, np.int64), [], problems)
    _find_people(result, trackers, reader.size, options)
    return result


def detect(
    frame: Frame, options: VideoOptions, is_due: bool, seconds: dict[str, float]
) -> tuple[np.ndarray, np.ndarray, list[str]] | None:
    """The people of a frame: boxes (P, 4), scores (P,), and what is wrong with those left out; None: no detection."""
    if options.boxes is not None:
        given = options.boxes[frame.number] if frame.number < len(options.boxes) else np.zeros((0, 4))
        boxes, scores = np.asarray(given, np.float64).reshape(-1, 4), np.ones(len(given))
    elif options.detector is not None and is_due:
        begun = clock.monotonic()
        (boxes, scores), *_ = detect_people(options.detector, [frame.image])
        seconds["detect"] += clock.monotonic() - begun
    else:
        return None
    boxes, scores, wrong = largest_people((boxes, scores), frame.image.shape[:2], LOWEST_SCORE, options.max_people)
    return boxes, scores, [f"at {frame.time:.2f} s: {text}" for text in wrong]


def _find_people(result: Scan, trackers: list[Tracker], size: tuple[int, int], options: VideoOptions) -> None:
    """People of each shot, ids never used again; where nobody is found, the whole frame is one."""
    person = 0
    for shot, tracker in enumerate(trackers):
        rows_of_shot = np.flatnonzero(result.shots == shot)
        if not len(rows_of_shot):
            continue
        found = False
        hold = 0.0 if options.boxes is not None else options.detect_every
        for track in tracker.tracks:
            if not track.confirmed and options.boxes is None:
                continue
            rows, boxes = boxes_between(track, result.times[rows_of_shot], hold, smoothed=options.smooth > 0)
            if not len(rows):
                continue
            person, found = person + 1, True
            cut = np.clip(boxes, 0, (size[1], size[0], size[1], size[0]))
            source = "detector" if options.boxes is None else "boxes"
            result.people.append((shot, person, source, rows_of_shot[rows], cut))
        if not found:
            person += 1
            whole = np.tile([0.0, 0.0, size[1], size[0]], (len(rows_of_shot), 1))
            result.people.append((shot, person, "photo", rows_of_shot, whole))


def observe_people(
    reader: VideoReader,
    found: Scan,
    predictor: HandPredictor,
    options: VideoOptions,
    seconds: dict[str, float],
    keep_frame: Callable[[Frame, list[Person], list[PreparedPhoto]], None] | None = None,
) -> list[Observations]:
    """The second pass: the network on every person's crops, in batches across frames.

    Args:
        found: is cut to the frames before a stop.
        keep_frame: called every `frames_every` seconds with a frame, its people and their crops.

    Returns:
        One item per person.
    """
    by_row: dict[int, list[tuple[int, np.ndarray]]] = defaultdict(list)
    for index, (_, _, _, rows, boxes) in enumerate(found.people):
        for row, box in zip(rows.tolist(), boxes, strict=True):
            by_row[row].append((index, box))
    # Arrays from the beginning: the many small ones of each frame would take several times their memory.
    collected: list[Observations | None] = [None] * len(found.people)
    filled = [0] * len(found.people)
    camera = options.intrinsics(reader.size)
    waiting: list[tuple[int, int, np.ndarray, Any]] = []  # row, person, box, prepared

    def run(batch: list[tuple[int, int, np.ndarray, Any]]) -> Observations:
        begun = clock.monotonic()
        observed = predictor.observe([prepared for *_, prepared in batch], options.hand, options.min_confidence)
        for (_, index, box, _), observation in zip(batch, observed, strict=True):
            observation = observation._replace(person_box_image=np.asarray(box, np.float32))
            whole = collected[index] or _empty_like(observation, len(found.people[index][3]))
            for values, value in zip(whole, observation, strict=True):
                values[filled[index]] = value
            collected[index] = whole
            filled[index] += 1
        seconds["network"] += clock.monotonic() - begun
        return observation

    reached, next_kept = 0, 0.0
    for frame in progress(reader, "hands", options, len(found.times)):
        if frame.number >= len(found.times) or options.stop():
            break
        crops = []
        for index, box in by_row[frame.number]:
            person = Person(*found.people[index][1:3], 1.0, box)
            crops.append((person, predictor.prepare_person(frame.image, person, camera)))
            waiting.append((frame.number, index, box, crops[-1][1]))
        if keep_frame and crops and frame.time >= next_kept - 1e-9:
            keep_frame(frame, [person for person, _ in crops], [prepared for _, prepared in crops])
            next_kept = frame.time + options.frames_every
        while len(waiting) >= options.batch_size:
            latest = run(waiting[: options.batch_size])  # of this frame
            del waiting[: options.batch_size]
            if options.preview:
                options.preview(draw_skeletons(frame.image, latest.joints_image, latest.kept))
        reached = frame.number + 1
    if waiting:
        run(waiting)
    _cut(found, reached)
    seen = [Observations(*(values[:count] for values in whole))
            for whole, count in zip(collected, filled, strict=True) if whole]  # fmt: skip
    return _drop_neighbours(found, seen)


def _empty_like(one: Observations, count: int) -> Observations:
    """Room for `count` frames of one person; `one` has no time axis."""
    return Observations(*(np.empty((count, *value.shape), value.dtype) for value in one))


def _cut(found: Scan, count: int) -> None:
    """Keep the first frames only."""
    if count < len(found.times):
        found.times, found.pts, found.shots = found.times[:count], found.pts[:count], found.shots[:count]
        found.people = [
            (shot, person, source, rows[rows < count], boxes[rows < count])
            for shot, person, source, rows, boxes in found.people
            if rows[0] < count
        ]


def _drop_neighbours(found: Scan, observed: list[Observations]) -> list[Observations]:
    """A hand that two people's crops show is kept for one of them, frame by frame."""
    members: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for index, (_, _, _, rows, _) in enumerate(found.people):
        for place, row in enumerate(rows.tolist()):
            members[row].append((index, place))
    kept = [item.kept.copy() for item in observed]
    for here in members.values():
        if len(here) > 1:
            joints = np.stack([observed[index].joints_image[place] for index, place in here])
            mask = np.stack([kept[index][place] for index, place in here])
            boxes = np.stack([observed[index].person_box_image[place] for index, place in here])
            owners = neighbours_hands(joints, mask, boxes)
            for (index, place), owner in zip(here, owners, strict=True):
                kept[index][place] &= owner < 0
    return [item._replace(kept=mask) for item, mask in zip(observed, kept, strict=True)]


def make_table(
    found: Scan,
    observed: list[Observations],
    predictor: HandPredictor,
    size: tuple[int, int],
    options: VideoOptions,
    seconds: dict[str, float],
) -> dict[str, np.ndarray]:
    """Smooth each person, and put all rows into one table, ordered by frame, person and side.

    Args:
        observed: is emptied, so that a long video's observations and its table are not in memory together.
    """
    begun = clock.monotonic()
    parts = []
    camera = options.intrinsics(size)
    one = Observations(*(np.nan_to_num(values[:1]) for values in observed[0]))
    for shot, person, _, rows, _ in found.people:
        times = found.times[rows]
        part = smooth_person(observed.pop(0), times, size, lambda *p: pose_rows(predictor, *p), options.smooth, camera)
        if not part:
            continue
        at = part.pop("row_frame")
        count = len(at)
        part["frame"], part["time"] = rows[at].astype(np.int64), times[at].astype(np.float64)
        part["shot"], part["person"] = np.full(count, shot, np.int32), np.full(count, person, np.int32)
        parts.append(part)
    if not parts:  # the columns without rows
        one = one._replace(kept=np.ones((1, 2), bool))
        part = smooth_person(one, np.zeros(1), size, lambda *p: pose_rows(predictor, *p), 0.0, camera)
        part["frame"], part["time"] = part.pop("row_frame"), np.zeros(1)
        part["shot"] = part["person"] = part["side"]
        return {name: values[:0] for name, values in part.items()}
    seconds["smooth"] += clock.monotonic() - begun
    return join_rows(parts)


def join_rows(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """One table of several, which are emptied: memory holds one. Ordered by frame, person and side; numbers that are
    measured become float32."""
    if not parts:
        return {"frame": np.zeros(0, np.int64), "person": np.zeros(0, np.int32), "side": np.zeros(0, np.int32)}
    table = {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}
    order = np.lexsort((table["side"], table["person"], table["frame"]))
    keep = {"frame", "time", "shot", "person", "side", "state", "pair", "pair_raw"}
    for name in table:  # one by one, so that no second table is in memory
        table[name] = table[name][order] if name in keep else table[name][order].astype(np.float32, copy=False)
    return table


@torch.inference_mode()
def pose_rows(
    predictor: HandPredictor, global_orient: np.ndarray, hand_pose: np.ndarray, betas: np.ndarray, side: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """See `demo.motion.Poser`."""
    # Not lists of parts: small arrays that stay, between large ones that are freed, fragment the heap.
    wrists = np.empty((len(side), 3), np.float32)
    joints = np.empty((len(side), len(JOINTS), 3), np.float32)
    chunks = _pose_chunks(predictor, global_orient, hand_pose, betas, side)
    for start, (vertices, joints_mano) in zip(range(0, len(side), POSE_CHUNK), chunks, strict=True):
        _, joints_rel = to_wrist(vertices, joints_mano)
        wrists[start : start + POSE_CHUNK] = joints_mano[:, 0].cpu().numpy()
        joints[start : start + POSE_CHUNK] = joints_rel.cpu().numpy()
    return wrists, joints


def _pose_chunks(
    predictor: HandPredictor, global_orient: np.ndarray, hand_pose: np.ndarray, betas: np.ndarray, side: np.ndarray
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """MANO of rows, each of one side: vertices (R, 778, 3), joints (R, 21, 3), m."""
    mano = predictor.model.mano_layer
    for start in range(0, len(side), POSE_CHUNK):
        rows = slice(start, start + POSE_CHUNK)
        params = ManoParams(
            *(
                torch.from_numpy(np.repeat(np.asarray(values[rows], np.float32)[:, None], 2, 1)).to(predictor.device)
                for values in (global_orient, hand_pose, betas)
            )
        )
        vertices, joints = mano(params)
        chosen = torch.arange(len(vertices)), torch.from_numpy(np.asarray(side[rows], np.int64))
        yield vertices[chosen], joints[chosen]


@torch.inference_mode()
def meshes_of_rows(
    predictor: HandPredictor, table: dict[str, np.ndarray], rows: np.ndarray, virtual: bool
) -> list[HandMesh]:
    """Table rows as meshes with their cameras, in `cam`.

    Args:
        virtual: the cameras are orthographic and unknown; else they are the given pinhole camera.
    """
    columns = [table[name][rows] for name in ("global_orient", "hand_pose", "betas", "side")]
    meshes = []
    for vertices, _ in _pose_chunks(predictor, *columns):
        placed = vertices.cpu().numpy() + table["transl"][rows][:, None]
        for place, row in enumerate(rows.tolist()):
            side = int(table["side"][row])
            camera = Camera(table["focal"][row], table["princpt"][row], virtual)
            meshes.append(HandMesh(placed[place], predictor.faces[side], side, camera))
    return meshes


# ---- The third pass, and the files ----


def process_video(path: Path, folder: Path, predictor: HandPredictor, options: VideoOptions) -> list[str]:
    """Everything about one video: `overlay.mp4`, `hands.npz` and `summary.json` under `folder`.

    Returns:
        What was wrong: a file that is cut short, sound that cannot be copied, boxes that were left out.

    Raises:
        UserError: the file cannot be read, a result cannot be written, or an earlier run wrote another video's there.
    """
    seconds: dict[str, float] = dict.fromkeys(("people", "detect", "hands", "network", "smooth", "overlay"), 0.0)
    read_earlier(folder / "summary.json", path, "video")
    reader = VideoReader(path)
    begun = clock.monotonic()
    found = scan(reader, options, seconds)
    if options.stop():
        raise KeyboardInterrupt  # nothing is written yet
    problems = found.problems + ([reader.problem] if reader.problem else [])
    seconds["people"] = clock.monotonic() - begun
    scanned = len(found.times)
    keep_frame = _frame_writer(folder / "frames", predictor, options) if options.frames_every > 0 else None
    observed = observe_people(reader, found, predictor, options, seconds, keep_frame)
    if not len(found.times):
        raise KeyboardInterrupt
    if len(found.times) < scanned:
        problems.append(f"stopped after {found.times[-1]:.2f} s")
    seconds["hands"] = clock.monotonic() - begun - seconds["people"]
    not_finite = [int((~np.isfinite(one.joints_image).all((2, 3))).sum()) for one in observed]
    table = make_table(found, observed, predictor, reader.size, options, seconds)
    make_folder(folder)
    (folder / "summary.json").unlink(missing_ok=True)  # where it is, the other files are of the same run
    virtual = options.intrinsics(reader.size) is None
    begun = clock.monotonic()
    with atomic_path(folder / "overlay.mp4") as temporary:
        size = (reader.size[0], reader.size[1] * (2 if options.compare else 1))
        writer = VideoWriter(temporary, size, reader.time_base, reader.rate, path if reader.has_sound else None)
        with writer:
            draw_overlay(reader, writer, table, len(found.times), predictor, options, virtual)
    seconds["overlay"] = clock.monotonic() - begun
    problems += [writer.sound_problem] if writer.sound_problem else []
    if not len(table["frame"]) and options.watch is None:
        print(f"{path.name}: no hand was found; the overlay is the video")
    write_table(folder / "hands.npz", table, reader.size, predictor.hand_model_name, virtual)
    summary = summarize(options.title or path.name, found, not_finite, table, predictor, problems, seconds)
    file = {} if options.title else {"file": os.path.abspath(path)}
    write_json(folder / "summary.json", summary | file)
    return problems


def _frame_writer(
    folder: Path, predictor: HandPredictor, options: VideoOptions
) -> Callable[[Frame, list[Person], list[PreparedPhoto]], None]:
    """Writes a frame's results as those of a photo, frame by frame as the network sees it, named by its number."""
    assert options.writer is not None
    make_folder(folder)
    writer = options.writer(folder)

    def write(frame: Frame, people: list[Person], prepared: list[PreparedPhoto]) -> None:
        results = predictor.predict(prepared, options.hand, options.min_confidence)
        alone = len(people) == 1 and people[0].source == "photo"
        writer.begin(f"{frame.number:06d}", len(people))
        writer.write(f"{frame.number:06d}", frame.image, results[0] if alone else report_people(people, results))

    return write


def draw_overlay(
    reader: VideoReader,
    writer: VideoWriter,
    table: dict[str, np.ndarray],
    count: int,
    predictor: HandPredictor,
    options: VideoOptions,
    virtual: bool,
) -> None:
    """Decode the video again, draw, encode.

    Args:
        count: of frames. A stop that comes only now ends the overlay early.
    """
    starts = np.searchsorted(table["frame"], np.arange(count + 1))
    raw = {name: table.get(f"{name}_raw", values) for name, values in table.items()} if options.compare else {}
    stopped = options.stop()
    for frame in progress(reader, "overlay", options, count):
        if frame.number >= count or (not stopped and options.stop()):
            break
        rows = np.arange(starts[frame.number], starts[frame.number + 1])
        image = draw_frame(frame.image, table, rows, predictor, options.draw, virtual)
        if options.compare:
            seen = rows[table["state"][rows] != BRIDGED]
            before = draw_frame(frame.image, raw, seen, predictor, options.draw, virtual)
            image = np.concatenate((before, image), 1)
        writer.write(image, frame.pts)
        if options.preview:
            options.preview(image)


def draw_frame(
    image: np.ndarray,
    table: dict[str, np.ndarray],
    rows: np.ndarray,
    predictor: HandPredictor,
    layers: tuple[str, ...],
    virtual: bool,
) -> np.ndarray:
    """A frame with the hands of these rows drawn over it; the people with larger boxes last, on top.

    Layer "boxes" has the people's boxes and ids, too.
    """
    if not len(rows):
        return image
    meshes = meshes_of_rows(predictor, table, rows, virtual) if "mesh" in layers else []
    corners, people = table["person_box_image"][rows].astype(np.float64), table["person"][rows]
    nearest_last = rows[np.argsort((corners[:, 2:] - corners[:, :2]).prod(1), kind="stable")]
    order = dict.fromkeys(table["person"][nearest_last].tolist())
    for person in order:
        own = rows[people == person]
        if meshes:  # virtual depths of two people cannot be compared
            image = render_hands(image, [meshes[place] for place in np.flatnonzero(people == person)])
        shown, boxes, scores = np.zeros(2, bool), np.zeros((2, 4)), np.zeros(2)
        joints = np.zeros((2, len(JOINTS), 2))
        for row in own.tolist():
            side = int(table["side"][row])
            shown[side], boxes[side] = True, table["box_image"][row]
            scores[side], joints[side] = table["confidence"][row], table["joints_image"][row]
        if "skeleton" in layers:
            image = draw_skeletons(image, joints, shown)
        if "boxes" in layers:
            image = draw_boxes(image, boxes, scores, shown)
    if "boxes" in layers:
        for person in order:  # after the hands, whose labels would hide the ids
            image = draw_person(image, corners[people == person][0], person)
    return image


def write_table(
    path: Path, table: dict[str, np.ndarray], size: tuple[int, int], hand_model: str, virtual: bool
) -> None:
    """`hands.npz`: one row a hand and frame; readable with `allow_pickle=False`."""
    about = {
        "image_size": np.array(size, np.int64),
        "joint_names": np.array(JOINTS),
        "hand_model": np.array(hand_model),
        "units": np.array("px of the upright frame, m in camera axes (x right, y down, z away), rad, s"),
        "virtual_camera": np.array(virtual),
    }
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **(table | about))  # type: ignore[arg-type]  # numpy's stub takes them for options


def summarize(
    name: str,
    found: Scan,
    not_finite: Sequence[int],
    table: dict[str, np.ndarray],
    predictor: HandPredictor,
    problems: list[str],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """`summary.json`: people, shares of states, jitter before and after, time by stage.

    Args:
        name: of the video.
        not_finite: of each person, hands in frames where the network's output was not finite.
    """
    people = []
    for (shot, person, source, rows, _), spoiled in zip(found.people, not_finite, strict=True):
        own = table["person"] == person
        states = table["state"][own] if own.any() else np.zeros(0)
        people.append(
            {
                "id": person,
                "shot": shot,
                "source": source,
                "first_time": float(found.times[rows[0]]),
                "last_time": float(found.times[rows[-1]]),
                "frames": len(rows),
                "hands": int(own.sum()),
                **{
                    name: round(float((states == state).mean()), 4) if len(states) else 0.0
                    for name, state in (("seen", SEEN), ("bridged", BRIDGED), ("rejected", REJECTED))
                },
                "not_finite": spoiled,
                "jitter": _jitters(table, own),
            }
        )
    return {
        "video": name,
        "frames": len(found.times),
        "seconds": float(found.times[-1]) if len(found.times) else 0.0,
        "shots": int(found.shots[-1]) + 1 if len(found.shots) else 0,
        "hand_model": predictor.hand_model_name,
        "network_note": predictor.note,
        "people": people,
        "problems": problems,
        "processing_seconds": {name: round(value, 3) for name, value in seconds.items()},
    }


def _jitters(table: dict[str, np.ndarray], own: np.ndarray) -> dict[str, float | None]:
    """Mean over both hands, before and after smoothing."""
    result: dict[str, float | None] = {}
    for column, factor, unit in (("joints_cam", 1000.0, "mm"), ("joints_image", 1.0, "px")):
        for name, suffix in (("before", "_raw"), ("after", "")):
            values = []
            for side in (0, 1):
                rows = np.flatnonzero(own & (table["side"] == side))
                if len(rows):
                    points = table[column + suffix][rows]
                    # Relative to the wrist in 3D: virtual depth jumps frame by frame and would hide the rest.
                    points = points - points[:, :1] if column == "joints_cam" else points
                    values.append(jitter(points, table["frame"][rows]) * factor)
            finite = [value for value in values if np.isfinite(value)]
            result[f"{name}_{unit}_per_frame2"] = round(float(np.mean(finite)), 4) if finite else None
    return result


def progress(reader: VideoReader, what: str, options: VideoOptions, total: int | None = None) -> Iterator[Frame]:
    """The frames of a video, with a progress bar on stderr or `options.watch`."""
    expected = total or reader.declared_frames or (int(reader.declared * reader.rate) if reader.declared else None)
    title, hidden = f"{reader.path.name}: {what}", options.watch is not None
    for frame in tqdm(
        reader, desc=title, total=expected, unit="frame", dynamic_ncols=True, leave=False, disable=hidden
    ):
        yield frame
        if options.watch:
            options.watch(what, frame.number + 1, expected)
