"""Hands from a live camera or stream: one pass over its newest frames, smoothed with a short delay.

A network that is slower than the camera skips frames, so what is shown is never late. Time is the clock's when a frame
arrives, in seconds from the first frame. The files are those of a video, see `demo.video_hands`.
"""

import threading
import time as clock
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from common.errors import UserError
from common.types import SIDES
from common.utils.files import atomic_path, make_folder, write_json
from demo.motion import BRIDGED, Observations, smooth_person, stack_observations
from demo.people import LOWEST_SCORE, MIN_SIDE, Person, neighbours_hands
from demo.predictor import HandPredictor
from demo.smoothing import HISTORY, cutoff_at
from demo.tracking import MAX_MISSING, VELOCITY_FADES, Track, Tracker, box_to_state, smooth_states, state_to_box
from demo.video import CutDetector, Frame, VideoWriter
from demo.video_hands import Scan, VideoOptions, detect, draw_frame, join_rows, pose_rows, summarize, write_table

HOLD = 0.25  # s that a hand or a person who is missing is still reported
STALLED = 10.0  # s without a frame: the camera is gone
POLL = 0.1  # s between looks at whether to stop
MAX_PROBLEMS = 20  # that are reported; a camera may run for days
BOX_HISTORY = 12  # detections that a person's box is smoothed over
TIME_BASE = Fraction(1, 90_000)  # s, of the overlay's time stamps


class Capture(Protocol):
    """What is used of `cv2.VideoCapture`."""

    def read(self) -> tuple[bool, np.ndarray | None]: ...  # (H, W, 3) uint8 BGR


class FileCapture:
    """A video file in the place of a camera: its frames arrive at their time stamps."""

    def __init__(self, capture: cv2.VideoCapture) -> None:
        self._capture, self._begun = capture, clock.monotonic()

    def read(self) -> tuple[bool, np.ndarray | None]:
        good, image = self._capture.read()
        wait = self._begun + self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 - clock.monotonic()
        if good and wait > 0:
            clock.sleep(wait)
        return good, image


def open_camera(address: str) -> Capture:
    """A camera by its number, a stream by its address, or a video file, which is played at its own speed.

    Raises:
        UserError: it cannot be opened.
    """
    capture = cv2.VideoCapture(int(address) if address.isdecimal() else address)
    if not capture.isOpened():
        raise UserError(f"cannot open camera {address}: check its number or address, its cable, and your permissions")
    return FileCapture(capture) if Path(address).is_file() else capture


class NewestFrames:
    """Reads a camera in a thread of its own, and hands out its newest frame only, each at most once.

    Args:
        capture: of `open_camera`.
        stop: asked while waiting; ends the iteration.
    """

    def __init__(self, capture: Capture, stop: Callable[[], bool] = lambda: False) -> None:
        self.ended = False  # the camera gives no more frames
        self._capture, self._stop = capture, stop
        self._changed = threading.Condition()
        self._newest: tuple[float, np.ndarray] | None = None
        self._closed = False

    def __iter__(self) -> Iterator[Frame]:
        # A camera that hangs must not keep the process from ending.
        threading.Thread(target=self._read, daemon=True).start()
        first, number, last = None, 0, clock.monotonic()
        size: tuple[int, int] | None = None
        try:
            while not self._stop():
                with self._changed:
                    self._changed.wait_for(lambda: self._newest is not None or self.ended, POLL)
                    newest, self._newest = self._newest, None
                if newest is None:
                    if self.ended or clock.monotonic() - last > STALLED:
                        self.ended = True
                        return
                    continue
                arrived, image = newest
                last = clock.monotonic()
                first = arrived if first is None else first
                size = size or image.shape[:2]
                if image.shape[:2] != size:  # a stream may change it
                    image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
                time = arrived - first
                yield Frame(number, time, round(time / TIME_BASE), cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
                number += 1
        finally:
            self.close()

    def close(self) -> None:
        """Stop reading. `ended` stays as it is."""
        self._closed = True

    def _read(self) -> None:
        try:
            while not self._closed:
                good, image = self._capture.read()
                if not good or image is None:
                    break
                with self._changed:
                    self._newest = (clock.monotonic(), image)
                    self._changed.notify()
        except cv2.error:  # as if it had ended
            pass
        finally:
            with self._changed:
                self.ended = self.ended or not self._closed
                self._changed.notify()


@dataclass
class LivePerson:
    """A person before the camera, and what is remembered for smoothing."""

    id: int
    shot: int
    source: str  # "detector", or "photo": the whole frame
    seen: deque[tuple[float, int, Observations]] = field(default_factory=deque)  # time, number of a frame
    betas: np.ndarray = field(default_factory=lambda: np.zeros((2, 10)))  # sum of all frames', weighted
    weights: np.ndarray = field(default_factory=lambda: np.zeros(2))
    last_rows: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)  # side -> a table of one row
    frames: list[int] = field(default_factory=list)
    not_finite: int = 0

    def add(self, frame: Frame, observation: Observations) -> None:
        """What the network says of a frame."""
        self.seen.append((frame.time, frame.number, observation))
        self.frames.append(frame.number)
        finite = np.isfinite(observation.joints_image).all((1, 2)) & np.isfinite(observation.betas).all(1)
        self.not_finite += int((~finite).sum())
        # As in a track's mean, only ratios of confidences matter.
        weights = np.where(finite & observation.kept, observation.confidence**2, 0.0)
        self.betas += weights[:, None] * np.where(finite[:, None], observation.betas, 0.0)
        self.weights += weights

    def mean_betas(self) -> np.ndarray:
        """(2, 10) shapes of both hands so far."""
        return self.betas / np.maximum(self.weights, 1e-12)[:, None]


class Live:
    """People and their hands, frame by frame, in one pass.

    Args:
        delay: s that a frame waits for those after it.
    """

    def __init__(
        self, predictor: HandPredictor, options: VideoOptions, delay: float, seconds: dict[str, float]
    ) -> None:
        self.predictor, self.options, self.seconds = predictor, options, seconds
        self.delay = delay if options.smooth > 0 else 0.0
        self.people: list[LivePerson] = []  # all, also those who left
        self.problems: list[str] = []
        self.times: list[float] = []
        self.shots: list[int] = []
        self._is_cut, self._shot = CutDetector(), 0
        self._waiting: deque[tuple[Frame, list[LivePerson]]] = deque()
        self._begin_shot(0.0)

    def _begin_shot(self, time: float) -> None:
        self._tracker = Tracker(self.options.min_person, LOWEST_SCORE)
        self._by_track: dict[int, LivePerson] = {}
        self._whole: LivePerson | None = None
        self._next_detection, self._last_track = time, time

    def add(self, frame: Frame) -> Iterator[tuple[Frame, list[dict[str, np.ndarray]]]]:
        """Take a frame; give those that have waited long enough, each with the tables of its hands."""
        if self._is_cut(frame.image):
            yield from self.finish()  # filters end at a cut
            self._shot += 1
            self._begin_shot(frame.time)
        self.times.append(frame.time)
        self.shots.append(self._shot)
        self._detect(frame)
        here = self._people_in(frame)
        self._observe(frame, here)
        self._waiting.append((frame, [person for person, _ in here]))
        while self._waiting and self._waiting[0][0].time <= frame.time - self.delay + 1e-9:
            yield self._emit()

    def _detect(self, frame: Frame) -> None:
        """Find people, if it is time to. A detector that fails costs a detection, not what was seen before."""
        is_due = frame.time >= self._next_detection - 1e-9
        if is_due:
            self._next_detection = frame.time + self.options.detect_every
        try:
            found = detect(frame, self.options, is_due, self.seconds)
        except UserError as error:
            self._note(str(error))
            return
        if found is not None:
            boxes, scores, wrong = found
            for problem in wrong:
                self._note(problem)
            self._tracker.update(frame.time, boxes, scores)

    def _note(self, problem: str) -> None:
        if problem not in self.problems and len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)

    def finish(self) -> Iterator[tuple[Frame, list[dict[str, np.ndarray]]]]:
        """The frames that still wait."""
        while self._waiting:
            yield self._emit()

    def _new_person(self, source: str) -> LivePerson:
        person = LivePerson(len(self.people) + 1, self._shot, source)
        self.people.append(person)
        return person

    def _people_in(self, frame: Frame) -> list[tuple[LivePerson, np.ndarray]]:
        """People with their boxes (4,) xyxy px; the whole frame is one person where nobody is followed."""
        height, width = frame.image.shape[:2]
        here = []
        for track in self._tracker.tracks:
            if not track.confirmed or frame.time - track.times[-1] > self.options.detect_every + HOLD:
                continue
            self._last_track = frame.time
            box = np.clip(box_now(track, frame.time), 0, (width, height, width, height))
            if (box[2:] - box[:2]).min() >= MIN_SIDE:
                if track.id not in self._by_track:
                    self._by_track[track.id] = self._new_person("detector")
                here.append((self._by_track[track.id], box))
        if here:
            self._whole = None
        elif self.options.detector is None or frame.time - self._last_track > MAX_MISSING:
            self._whole = self._whole or self._new_person("photo")
            here.append((self._whole, np.array([0.0, 0.0, width, height])))
        return here

    def _observe(self, frame: Frame, here: list[tuple[LivePerson, np.ndarray]]) -> None:
        """The network on the crops of a frame."""
        begun = clock.monotonic()
        camera = self.options.intrinsics(frame.image.shape[:2])
        crops = []
        for live, box_image in here:
            person = Person(live.id, live.source, 1.0, box_image)
            crops.append(self.predictor.prepare_person(frame.image, person, camera))
        observed: list[Observations] = []
        for start in range(0, len(crops), self.options.batch_size):
            part = crops[start : start + self.options.batch_size]
            observed += self.predictor.observe(part, self.options.hand, self.options.min_confidence)
        self.seconds["network"] += clock.monotonic() - begun
        if not here:
            return
        boxes = np.stack([box for _, box in here])
        kept = np.stack([one.kept for one in observed])
        owners = neighbours_hands(np.stack([one.joints_image for one in observed]), kept, boxes)
        for (live, box), one, owner in zip(here, observed, owners, strict=True):
            own = one._replace(person_box_image=box.astype(np.float32), kept=one.kept & (owner < 0))
            live.add(frame, own)

    def _emit(self) -> tuple[Frame, list[dict[str, np.ndarray]]]:
        frame, people = self._waiting.popleft()
        begun = clock.monotonic()
        tables = [rows for person in people if (rows := self._smooth(person, frame))]
        self.seconds["smooth"] += clock.monotonic() - begun
        return frame, tables

    def _smooth(self, person: LivePerson, frame: Frame) -> dict[str, np.ndarray]:
        """A person's rows of one frame, from the frames before it and those that came since."""
        cutoff = self.options.smooth
        while person.seen[0][0] < frame.time - HISTORY - 1e-9:
            person.seen.popleft()
        window = [item for item in person.seen if cutoff > 0 or item[1] == frame.number]
        times = np.array([time for time, _, _ in window])
        size = frame.image.shape[:2]
        rows = smooth_person(
            stack_observations([observation for _, _, observation in window]),
            times,
            size,
            lambda *columns: pose_rows(self.predictor, *columns),
            cutoff_at(cutoff, self.delay),
            self.options.intrinsics(size),
            only=int(np.searchsorted(times, frame.time)),
            betas=person.mean_betas() if cutoff > 0 else None,
        )
        about = {
            "frame": np.array([frame.number], np.int64),
            "time": np.array([frame.time]),
            "shot": np.array([person.shot], np.int32),
            "person": np.array([person.id], np.int32),
        }
        parts = []
        for side in range(len(SIDES)):
            chosen = rows["side"] == side if rows else np.zeros(0, bool)
            if chosen.any():
                part = {name: values[chosen] for name, values in rows.items() if name != "row_frame"} | about
                person.last_rows[side] = part
            elif cutoff > 0 and side in person.last_rows:
                part = person.last_rows[side]
                if frame.time - float(part["time"][0]) > HOLD + 1e-9:
                    continue
                part = part | about | {"state": np.array([BRIDGED], np.int8)}
            else:
                continue
            parts.append(dict(part))
        return join_rows(parts) if parts else {}


def box_now(track: Track, time: float) -> np.ndarray:
    """(4,) a track's box after its last detection: smoothed, and its centre moved on at its speed, which fades."""
    states = np.stack([box_to_state(box) for box in track.boxes[-BOX_HISTORY:]])
    times = np.array(track.times[-BOX_HISTORY:])
    smoothed = smooth_states(states, times)
    state = smoothed[-1].copy()
    velocity = (smoothed[-1] - smoothed[-2])[:2] / (times[-1] - times[-2])
    state[:2] += velocity * VELOCITY_FADES * (1 - np.exp((times[-1] - time) / VELOCITY_FADES))
    return state_to_box(state)


def process_camera(
    capture: Capture,
    name: str,
    folder: Path,
    predictor: HandPredictor,
    options: VideoOptions,
    delay: float = 0.14,
    duration: float | None = None,
    publish: Callable[[np.ndarray], None] | None = None,
) -> list[str]:
    """Everything about one camera: `overlay.mp4`, `hands.npz` and `summary.json` under `folder`.

    Args:
        capture: of `open_camera`.
        name: for messages.
        delay: s that a frame waits for those after it; 0 halves the smoother's frequency instead.
        duration: s; default: until `options.stop`, or until the camera ends.
        publish: is given each overlay, (H, W, 3) uint8 RGB.

    Returns:
        What was wrong: a camera that stopped, boxes that were left out.

    Raises:
        UserError: the camera gives no frame, the detector fails, or a result cannot be written.
    """
    seconds: dict[str, float] = dict.fromkeys(("detect", "network", "smooth", "overlay"), 0.0)
    frames = NewestFrames(capture, options.stop)
    arriving = iter(frames)
    first = next(arriving, None)
    if first is None:
        raise UserError(f"camera {name} gives no frame: check that nothing else uses it")
    size = first.image.shape[:2]
    virtual = options.intrinsics(size) is None
    live = Live(predictor, options, delay, seconds)
    make_folder(folder)
    parts: list[dict[str, np.ndarray]] = []
    last_pts = -1
    with atomic_path(folder / "overlay.mp4") as temporary, VideoWriter(temporary, size, TIME_BASE) as writer:

        def write(frame: Frame, tables: list[dict[str, np.ndarray]]) -> None:
            nonlocal last_pts
            begun = clock.monotonic()
            parts.extend(tables)
            image = frame.image
            if tables:
                table = join_rows([dict(rows) for rows in tables])
                rows = np.arange(len(table["frame"]))
                image = draw_frame(image, table, rows, predictor, options.draw, virtual)
            last_pts = max(frame.pts, last_pts + 1)
            writer.write(image, last_pts)
            if publish:
                publish(image)
            seconds["overlay"] += clock.monotonic() - begun

        for frame in chain((first,), arriving):
            for done in live.add(frame):
                write(*done)
            if duration is not None and frame.time >= duration:
                frames.close()
                break
        for done in live.finish():
            write(*done)
    problems = live.problems
    if frames.ended and not isinstance(capture, FileCapture):
        problems.append(f"camera {name} stopped after {live.times[-1]:.1f} s: it was unplugged, or its stream ended")
    table = join_rows(parts)
    found = Scan(
        np.array(live.times),
        np.zeros(0, np.int64),
        np.array(live.shots, np.int64),
        [(one.shot, one.id, one.source, np.array(one.frames), np.zeros((0, 4))) for one in live.people],
    )
    write_table(folder / "hands.npz", table, size, predictor.hand_model_name, virtual)
    not_finite = [one.not_finite for one in live.people]
    write_json(folder / "summary.json", summarize(name, found, not_finite, table, predictor, problems, seconds))
    return problems
