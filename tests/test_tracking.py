"""The tracker: ids through crossings, misses and false detections; smoothed boxes."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from demo.tracking import Tracker, box_to_state, boxes_between, enlarged_iou, state_to_box

GOLDEN = Path(__file__).parent / "golden"
FPS, EVERY = 30.0, 5


def walk(seed: int, seconds: float = 12.0) -> tuple[np.ndarray, np.ndarray]:
    """Four people who cross: times (T,), true boxes (T, 4 people, 4)."""
    rng = np.random.default_rng(seed)
    times = np.arange(int(seconds * FPS)) / FPS
    phase, period = rng.uniform(0, 2 * np.pi, 4), rng.uniform(6, 11, 4)
    x = 640 + rng.uniform(200, 420, 4) * np.sin(2 * np.pi * times[:, None] / period + phase)
    y = 360 + 20 * np.sin(2 * np.pi * times[:, None] / 5 + phase) + 30 * np.arange(4)
    height = 380 * (1 + 0.1 * np.sin(2 * np.pi * times[:, None] / 7 + phase)) * np.linspace(0.85, 1.15, 4)
    half = np.stack((height * 0.2, height / 2), -1)
    centre = np.stack((x, y), -1)
    return times, np.concatenate((centre - half, centre + half), -1)


def detect(boxes: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A detector with 2 % noise, which misses people, is unsure of hidden ones and finds some that are not there."""
    found, scores = [], []
    for person, box in enumerate(boxes):
        others = [other for other in boxes[person + 1 :] if enlarged_iou(box[None], other[None])[0, 0] > 0.5]
        if rng.random() < 0.05:
            continue
        size = np.tile(box[2:] - box[:2], 2)
        found.append(box + rng.normal(0, 0.02, 4) * size)
        scores.append(rng.uniform(0.12, 0.6) if others else rng.uniform(0.6, 1.0))
    if rng.random() < 0.1:
        corner = rng.uniform((0, 0), (1000, 400))
        found.append(np.concatenate((corner, corner + rng.uniform(60, 200, 2))))
        scores.append(rng.uniform(0.1, 0.7))
    return np.array(found).reshape(-1, 4), np.array(scores)


def id_scores(times: np.ndarray, true: np.ndarray, tracker: Tracker) -> tuple[float, float]:
    """IDF1 (Ristani et al., 2016) over all frames in percent, and the share of track boxes that are nobody's."""
    tracks = [track for track in tracker.tracks if track.confirmed]
    matches = np.zeros((true.shape[1], len(tracks)))
    total, false = 0, 0
    for column, track in enumerate(tracks):
        rows, boxes = boxes_between(track, times)
        overlap = np.stack([iou(boxes, true[rows, person]) for person in range(true.shape[1])])
        matches[:, column] = (overlap >= 0.5).sum(1)
        total += len(rows)
        false += int((overlap.max(0) < 0.3).sum())
    people, chosen = linear_sum_assignment(-matches)
    return 200 * matches[people, chosen].sum() / (true.shape[0] * true.shape[1] + total), false / total


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    sides = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None).prod(-1)
    return sides / ((a[:, 2:] - a[:, :2]).prod(-1) + (b[:, 2:] - b[:, :2]).prod(-1) - sides)


def test_people_who_cross_keep_their_ids() -> None:
    results = []
    for seed in range(6):
        times, true = walk(seed)
        rng, tracker = np.random.default_rng(seed + 100), Tracker()
        for row in range(0, len(times), EVERY):
            tracker.update(times[row], *detect(true[row], rng))
        results.append(id_scores(times, true, tracker))
    idf1, false = np.mean(results, 0)
    assert idf1 >= 85 and false <= 0.005, (idf1, false, results)


def test_real_detections_in_few_tracks() -> None:
    """Recorded from a real detector on a real video: two people walk in together and keep their ids to the end."""
    content = json.loads((GOLDEN / "people_boxes_real.json").read_text())
    tracker = Tracker(sure=0.3, unsure=0.12)
    for frame, found in content["frames"].items():
        rows = np.array(found).reshape(-1, 5)
        tracker.update(int(frame) / 10, rows[:, :4], rows[:, 4])
    tracks = [track for track in tracker.tracks if track.confirmed]
    walked_in = [track for track in tracks if track.times[0] in (1.6, 2.0) and track.times[-1] == 9.2]
    assert len(tracks) <= 7 and len(walked_in) == 2


def test_boxes_are_smoothed_and_interpolated() -> None:
    """Jitter of 2 % of the size shrinks to less than a third."""
    times = np.arange(300) / FPS
    rng, tracker = np.random.default_rng(0), Tracker()
    true = np.stack([np.array([100 + 40 * t, 100, 300 + 40 * t, 500]) for t in times])
    size = np.tile(true[:, 2:] - true[:, :2], 2)
    noisy = true + rng.normal(0, 0.02, true.shape) * size
    for row in range(0, 300, EVERY):
        tracker.update(times[row], noisy[row : row + 1], np.ones(1))
    rows, boxes = boxes_between(tracker.tracks[0], times)
    assert rows[0] == 0 and rows[-1] == 295 and len(boxes) == 296
    assert np.abs(np.diff(boxes, 2, axis=0)).mean() < np.abs(np.diff(noisy, 2, axis=0)).mean() / 3
    assert np.abs(boxes - true[:296]).mean() < np.abs(noisy - true).mean() / 1.5


def test_a_track_counts_from_its_second_detection_and_ids_are_never_used_again() -> None:
    tracker, box, nobody = Tracker(), np.array([[0, 0, 100, 200.0]]), np.zeros((0, 4))
    assert tracker.update(0.0, box, np.ones(1)) == []
    assert [track.id for track in tracker.update(0.2, box, np.ones(1))] == [1]
    assert [track.id for track in tracker.update(1.2, nobody, np.zeros(0))] == [1]
    assert tracker.update(1.3, nobody, np.zeros(0)) == []
    tracker.update(1.5, box, np.ones(1))
    assert [track.id for track in tracker.update(1.7, box, np.ones(1))] == [2]
    tracker.end_all()
    tracker.update(1.9, box, np.ones(1))
    assert [track.id for track in tracker.update(2.1, box, np.ones(1))] == [3]


@pytest.mark.parametrize(("score", "tracks"), [(0.6, 1), (0.3, 0)])
def test_an_unsure_detection_starts_no_track(score: float, tracks: int) -> None:
    tracker, box = Tracker(), np.array([[0, 0, 100, 200.0]])
    for time in (0.0, 0.2):
        tracker.update(time, box, np.array([score]))
    assert len(tracker.tracks) == tracks


def test_an_unsure_detection_continues_a_track() -> None:
    tracker, box = Tracker(), np.array([[0, 0, 100, 200.0]])
    for time, score in ((0.0, 0.9), (0.2, 0.3), (0.9, 0.2), (1.8, 0.15)):
        active = tracker.update(time, box, np.array([score]))
    assert [track.id for track in active] == [1] and len(active[0].times) == 4


def test_box_states_invert() -> None:
    boxes = np.random.default_rng(0).uniform(0, 100, (20, 4))
    boxes[:, 2:] += boxes[:, :2]
    np.testing.assert_allclose(state_to_box(box_to_state(boxes)), boxes)
