"""Follows people's boxes through a video: who is who from detection to detection.

Boxes are (4,) x1, y1, x2, y2 in pixels of the upright frame, times are seconds. A track moves at constant velocity
between its detections. Matching is greedy by overlap, confident detections first; the unsure ones can continue a track
but not start one (Zhang et al., "ByteTrack", ECCV 2022).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from demo.smoothing import smooth

SURE, UNSURE = 0.5, 0.1  # scores: from the first on a detection starts a track, from the second on it continues one
ENLARGE = 1.5  # boxes are enlarged by this factor about their centre before they are compared
MIN_OVERLAP = 0.2  # IoU of the enlarged boxes
MAX_MISSING = 1.0  # s; a track ends when it was not detected for longer
MIN_DETECTIONS = 2  # a track counts from this many on
VELOCITY_FADES = 1.0  # s; who is not detected has often stopped
BOX_CUTOFF = 1.0  # Hz; boxes are smoothed before they are cropped


@dataclass
class Track:
    """One person's detections. Also the state that a `Tracker` keeps."""

    id: int  # from 1; never used again
    times: list[float] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(2))  # px / s, of the centre

    @property
    def confirmed(self) -> bool:
        return len(self.times) >= MIN_DETECTIONS

    def add(self, time: float, box: np.ndarray, score: float) -> None:
        """A detection at a later time than the last one."""
        if self.times and (step := time - self.times[-1]) > 0:
            self.velocity = (box_to_state(box) - box_to_state(self.boxes[-1]))[:2] / step
        self.times.append(time)
        self.boxes.append(np.asarray(box, np.float64))
        self.scores.append(score)

    def predict(self, time: float) -> np.ndarray:
        """(4,) the box at a time after the last detection, its centre moved on at its velocity, which fades."""
        state = box_to_state(self.boxes[-1])
        state[:2] += self.velocity * VELOCITY_FADES * (1 - np.exp((self.times[-1] - time) / VELOCITY_FADES))
        return state_to_box(state)


def box_to_state(box: np.ndarray) -> np.ndarray:
    """(..., 4) xyxy -> (..., 4) centre x, y and log width, height."""
    size = np.maximum(box[..., 2:] - box[..., :2], 1e-6)
    return np.concatenate(((box[..., :2] + box[..., 2:]) / 2, np.log(size)), -1)


def state_to_box(state: np.ndarray) -> np.ndarray:
    """The inverse of `box_to_state`."""
    half = np.exp(state[..., 2:]) / 2
    return np.concatenate((state[..., :2] - half, state[..., :2] + half), -1)


def enlarged_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(A, 4) x (B, 4) -> (A, B) intersection over union of the boxes enlarged by `ENLARGE`."""

    def enlarge(boxes: np.ndarray) -> np.ndarray:
        state = box_to_state(np.asarray(boxes, np.float64).reshape(-1, 4))
        state[:, 2:] += np.log(ENLARGE)
        return state_to_box(state)

    a, b = enlarge(a)[:, None], enlarge(b)[None]
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    shared = sides.prod(-1)
    areas = [(x[..., 2:] - x[..., :2]).prod(-1) for x in (a, b)]
    return shared / (areas[0] + areas[1] - shared)


class Tracker:
    """Assigns detections to tracks, one frame with detections after the other.

    Args:
        sure: a detection with this score can start a track.
        unsure: one with this score can continue a track that no sure detection continues.
    """

    def __init__(self, sure: float = SURE, unsure: float = UNSURE) -> None:
        self.sure, self.unsure = sure, unsure
        self.tracks: list[Track] = []  # all, also those that have ended
        self._active: list[Track] = []

    def update(self, time: float, boxes: np.ndarray, scores: np.ndarray) -> list[Track]:
        """Add the detections of a frame.

        Args:
            time: s, later than before.
            boxes: (P, 4).
            scores: (P,).

        Returns:
            The confirmed tracks that have not ended.
        """
        boxes, scores = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(scores, np.float64).reshape(-1)
        self._active = [track for track in self._active if time - track.times[-1] <= MAX_MISSING]
        confirmed = [track for track in self._active if track.confirmed]
        tentative = [track for track in self._active if not track.confirmed]
        sure = scores >= self.sure
        unsure = ~sure & (scores >= self.unsure)
        matched: set[int] = set()
        confirmed = self._match(time, confirmed, np.flatnonzero(sure), boxes, scores, matched)
        # Tentative tracks come second, or someone who walks in takes the detection of the person ahead.
        tentative = self._match(time, tentative, np.flatnonzero(sure), boxes, scores, matched)
        self._match(time, confirmed + tentative, np.flatnonzero(unsure), boxes, scores, matched)
        for index in np.flatnonzero(sure):
            if index not in matched:
                track = Track(len(self.tracks) + 1)
                track.add(time, boxes[index], float(scores[index]))
                self.tracks.append(track)
                self._active.append(track)
        return [track for track in self._active if track.confirmed]

    def _match(
        self,
        time: float,
        free: list[Track],
        indices: np.ndarray,
        boxes: np.ndarray,
        scores: np.ndarray,
        matched: set[int],
    ) -> list[Track]:
        """Give detections to tracks, the largest overlap first. Returns the tracks that got none."""
        if not free or not len(indices):
            return free
        overlap = enlarged_iou(np.stack([track.predict(time) for track in free]), boxes[indices])
        taken: set[int] = set()
        for place in np.argsort(-overlap, axis=None, kind="stable"):
            row, column = (int(x) for x in np.unravel_index(place, overlap.shape))
            if overlap[row, column] < MIN_OVERLAP:
                break
            index = int(indices[column])
            if row not in taken and index not in matched:
                taken.add(row)
                matched.add(index)
                free[row].add(time, boxes[index], float(scores[index]))
        return [track for row, track in enumerate(free) if row not in taken]


def boxes_between(
    track: Track, times: Sequence[float] | np.ndarray, hold: float = 0.0, smoothed: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """A track's boxes at the times of a video's frames, interpolated between its detections.

    Args:
        times: (T,) s, of the track's shot.
        hold: s between detections; the last box is held this long at the end of the shot, where none comes any more.
        smoothed: remove the detector's jitter first.

    Returns:
        rows (R,) int: the frames from its first to its last detection; boxes (R, 4).
    """
    times = np.asarray(times, np.float64)
    end = times[-1] if times[-1] - track.times[-1] < hold else track.times[-1]
    rows = np.flatnonzero((times >= track.times[0] - 1e-9) & (times <= end + 1e-9))
    detected = np.asarray(track.times)
    if not smoothed and np.isin(times[rows], detected).all():  # to the bit
        return rows, np.stack(track.boxes)[np.searchsorted(detected, times[rows])]
    states = np.stack([box_to_state(box) for box in track.boxes])
    states = smooth_states(states, detected) if smoothed else states
    columns = [np.interp(times[rows], detected, states[:, column]) for column in range(4)]
    return rows, state_to_box(np.stack(columns, -1))


def smooth_states(states: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(T, 4) centres and log sizes at detections, without the detector's jitter."""
    return smooth(states, times, np.ones(len(times)), BOX_CUTOFF)
