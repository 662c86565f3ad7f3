"""The tracker: ids through crossings, misses and false detections; smoothed boxes."""

from pathlib import Path

import numpy as np
import pytest

from demo.tracking import Tracker, box_to_state, boxes_between, state_to_box
from tool.benchmarks.video import track_crossing_people, track_recorded

GOLDEN = Path(__file__).parent / "golden"
FPS, EVERY = 30.0, 5


def test_people_who_cross_keep_their_ids() -> None:
    idf1, false = track_crossing_people()
    assert idf1 >= 85 and false <= 0.005, (idf1, false)


def test_real_detections_in_few_tracks() -> None:
    """Recorded from a real detector on a real video: two people walk in together and keep their ids to the end."""
    tracks, stayed = track_recorded(GOLDEN / "people_boxes_real.json")
    assert tracks <= 7 and stayed == 2


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
