"""One person's hands over time: raw observations of the network in, a steady table out.

The network sees single frames. Here its answers are smoothed over a track, gaps are bridged, outliers are rejected, and
the hands are placed so that neither flips nor jumps. All arrays are numpy, hands are an axis: right 0, left 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from common.types import LEFT, RIGHT
from common.utils.camera import Camera
from common.utils.joints import WRIST
from demo.smoothing import (
    bridge_gaps,
    confidence_weights,
    mean_betas,
    running_majority,
    smooth,
    smooth_rotations,
)

SEEN, BRIDGED, REJECTED = 0, 1, 2  # states of a hand in a frame; SEEN also where nothing is smoothed
HANDS = (RIGHT, LEFT)
ROWS_AT_ONCE = 1024  # of a hand, posed or converted; all of a long track would take several times their memory

# (global_orient (R, 3), hand_pose (R, 15, 3), betas (R, 10), side (R,)) -> wrist_mano (R, 3), joints_rel (R, 21, 3), m:
# the wrist as MANO leaves it without a translation, and the joints relative to it.
Poser = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class Observations(NamedTuple):
    """What the network says of one person in T frames of one shot, both hands always."""

    kept: np.ndarray  # (T, 2) bool: the hand is reported in this frame taken alone
    confidence: np.ndarray  # (T, 2)
    box_image: np.ndarray  # (T, 2, 4) xyxy px
    joints_image: np.ndarray  # (T, 2, 21, 2) px
    joints_depth_rel: np.ndarray  # (T, 2, 21) m
    global_orient: np.ndarray  # (T, 2, 3) axis-angle
    hand_pose: np.ndarray  # (T, 2, 15, 3)
    betas: np.ndarray  # (T, 2, 10)
    wrist_image: np.ndarray  # (T, 2, 2) px, where the virtual camera of the hand alone shows the wrist
    hand_focal: np.ndarray  # (T, 2, 2) px / m, of the hand's own virtual camera
    pair_focal: np.ndarray  # (T, 2) px / m, of the virtual camera that shows both
    root_depth: np.ndarray  # (T, 2) m, of the wrist before the virtual camera
    rel_transl: np.ndarray  # (T, 3) m, left wrist - right wrist
    pair: np.ndarray  # (T,) bool: the two are placed together in this frame taken alone
    joints_cam: np.ndarray  # (T, 2, 21, 3) m, as this frame alone places them
    focal: np.ndarray  # (T, 2, 2) px, of the camera that this frame alone uses for the hand
    princpt: np.ndarray  # (T, 2, 2) px
    person_box_image: np.ndarray  # (T, 4) xyxy px


def stack_observations(frames: list[Observations]) -> Observations:
    """T observations without a time axis -> one with it."""
    return Observations(*(np.stack(values) for values in zip(*frames, strict=True)))


def smooth_person(
    observations: Observations,
    times: np.ndarray,
    image_size: tuple[int, int],
    pose: Poser,
    cutoff: float,
    intrinsics: Camera | None = None,
    only: int | None = None,
    betas: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """The rows of one person in one shot.

    Args:
        times: (T,) s, rising.
        image_size: (h, w) px of the upright frames.
        pose: poses MANO.
        cutoff: Hz; 0 reports every frame as it is.
        intrinsics: the real camera, if it is known.
        only: index of the one frame to report; default: all.
        betas: (2, 10) shapes to report, instead of the mean of these frames.

    Returns:
        Column -> array, one row a hand and frame, ordered by frame, then side. `row_frame` is the index into `times`. A
        column that was smoothed also stands there as it was, with `_raw`.
    """
    finite = _finite(observations)
    kept = observations.kept & finite
    if cutoff > 0:
        # Outvoted in a frame: the hand is bridged where it is left out, and left out where it appears for a moment.
        present = np.stack([running_majority(kept[:, hand], times) & kept[:, hand] for hand in HANDS], 1)
    else:
        present = kept
    pair = observations.pair & present.all(1)
    columns = [
        _smooth_hand(observations, hand, present[:, hand], times, cutoff, betas) if present[:, hand].any() else None
        for hand in HANDS
    ]
    shown = np.stack([np.zeros(len(times), bool) if c is None else c["shown"] for c in columns], 1)
    if cutoff > 0:
        pair = running_majority(pair, times) & shown.all(1)
    rel_transl = np.array(observations.rel_transl, np.float64)
    if cutoff > 0 and present.all(1).any():
        weights = np.minimum(*(confidence_weights(observations.confidence[:, h], present[:, h]) for h in HANDS))
        rel_transl = smooth(rel_transl, times, weights, cutoff)
    places = [
        _place(observations, columns, hand, pair, rel_transl, times, image_size, cutoff, intrinsics) for hand in HANDS
    ]
    parts = []
    for hand, (smoothed, place) in enumerate(zip(columns, places, strict=True)):
        if smoothed is None or place is None:
            continue
        rows = np.flatnonzero(smoothed["shown"])
        if only is not None:
            rows = rows[rows == only]
        if not len(rows):
            continue
        wrist, camera = place
        del smoothed["shown"]
        part = {name: smoothed.pop(name)[rows] for name in list(smoothed)} | {
            "row_frame": rows,
            "side": np.full(len(rows), hand, np.int32),
            "confidence": observations.confidence[rows, hand],
            "box_image": observations.box_image[rows, hand],
            "wrist": wrist[rows],
            "wrist_raw": observations.joints_cam[rows, hand, WRIST],
            "joints_cam_raw": observations.joints_cam[rows, hand],
            "focal": camera.focal[rows],
            "princpt": camera.princpt[rows],
            "pair": pair[rows],
            "rel_transl": rel_transl[rows],
            "rel_transl_raw": observations.rel_transl[rows],
            "pair_raw": observations.pair[rows],
            "focal_raw": observations.focal[rows, hand],
            "princpt_raw": observations.princpt[rows, hand],
            "person_box_image": observations.person_box_image[rows],
        }
        parts.append(part)
    if not parts:
        return {}
    del columns, places, observations  # memory: the table below has all that is still needed
    table = {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}
    wrists, wrists_raw, joints_raw = table.pop("wrist"), table.pop("wrist_raw"), table["joints_cam_raw"]
    table["transl"], table["transl_raw"] = np.empty_like(wrists), np.empty_like(wrists)
    table["joints_cam"] = np.empty_like(joints_raw)
    for here in _blocks(len(wrists)):
        # One call of MANO: for the few rows of a camera's frame, calls are what costs.
        global_orient, hand_pose, betas_both = (
            np.concatenate((table[name][here], table[f"{name}_raw"][here]))
            for name in ("global_orient", "hand_pose", "betas")
        )
        wrists_mano, joints_rel = pose(global_orient, hand_pose, betas_both, np.tile(table["side"][here], 2))
        count = len(wrists_mano) // 2
        table["transl"][here] = wrists[here] - wrists_mano[:count]
        table["transl_raw"][here] = wrists_raw[here] - wrists_mano[count:]
        # Not smoothed: as it was, to the bit.
        table["joints_cam"][here] = joints_rel[:count] + wrists[here, None] if cutoff > 0 else joints_raw[here]
    order = np.lexsort((table["side"], table["row_frame"]))
    for name in table:
        table[name] = table[name][order]
    return table


def _finite(observations: Observations) -> np.ndarray:
    """(T, 2) bool: all numbers of the hand are finite."""
    result = np.ones(observations.kept.shape, bool)
    for values in observations:
        if values.dtype.kind == "f" and values.shape[:2] == result.shape:
            result &= np.isfinite(values.reshape(*result.shape, -1)).all(-1)
    shared = np.isfinite(np.concatenate((observations.rel_transl, observations.pair_focal), -1)).all(-1)
    return result & shared[:, None]


def _smooth_hand(
    observations: Observations,
    hand: int,
    present: np.ndarray,
    times: np.ndarray,
    cutoff: float,
    betas: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """One hand's columns for all T frames; `shown` says which hold."""
    raw = {
        "global_orient": observations.global_orient[:, hand],
        "hand_pose": observations.hand_pose[:, hand],
        "betas": observations.betas[:, hand],
        "joints_image": observations.joints_image[:, hand],
        "joints_depth_rel": observations.joints_depth_rel[:, hand],
    }
    shown = present | bridge_gaps(present, times) if cutoff > 0 else present
    state = np.where(present, SEEN, BRIDGED).astype(np.int8)
    result = {name: np.array(values) for name, values in raw.items()}
    result["wrist_image"] = np.array(observations.wrist_image[:, hand], np.float64)
    result["log_focal"] = np.log(np.abs(observations.hand_focal[:, hand]).clip(1e-9))
    if cutoff > 0:
        confidence = confidence_weights(observations.confidence[:, hand], present)
        for segment in _segments(shown):
            times_here, weights = times[segment], confidence[segment]
            vectors = np.concatenate((raw["global_orient"][segment, None], raw["hand_pose"][segment]), 1)
            vectors = np.where(present[segment, None, None], vectors, 0.0)
            matrices = np.empty((*vectors.shape, 3), vectors.dtype)
            for here in _blocks(len(vectors)):
                converted = Rotation.from_rotvec(vectors[here].reshape(-1, 3)).as_matrix()
                matrices[here] = converted.reshape(-1, *matrices.shape[1:])
            rotations, weights, rejected = smooth_rotations(matrices, times_here, weights, cutoff)
            rows = np.arange(segment.start, segment.stop)
            state[rows[rejected]] = REJECTED
            del matrices  # a long track's are large
            for here in _blocks(len(rotations)):
                smoothed = Rotation.from_matrix(rotations[here].reshape(-1, 3, 3)).as_rotvec()
                smoothed = smoothed.reshape(-1, *vectors.shape[1:])
                result["global_orient"][segment][here] = smoothed[:, 0]
                result["hand_pose"][segment][here] = smoothed[:, 1:]
            del vectors, rotations
            known = np.where(weights[:, None] > 0, raw["betas"][segment], 0.0)
            result["betas"][segment] = mean_betas(known, weights) if betas is None else betas[hand]
            for name in ("joints_image", "joints_depth_rel", "wrist_image", "log_focal"):
                result[name][segment] = smooth(result[name][segment], times_here, weights, cutoff)
    return {**result, **{f"{name}_raw": values for name, values in raw.items()}, "state": state, "shown": shown}


def _blocks(count: int) -> list[slice]:
    """Rows 0 to `count`, `ROWS_AT_ONCE` by `ROWS_AT_ONCE`."""
    return [slice(start, start + ROWS_AT_ONCE) for start in range(0, count, ROWS_AT_ONCE)]


def _segments(shown: np.ndarray) -> list[slice]:
    """Runs of True: what is smoothed together."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], shown.astype(np.int8), [0]))))
    return [slice(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def _place(
    observations: Observations,
    columns: list[dict[str, np.ndarray] | None],
    hand: int,
    pair: np.ndarray,
    rel_transl: np.ndarray,
    times: np.ndarray,
    image_size: tuple[int, int],
    cutoff: float,
    intrinsics: Camera | None,
) -> tuple[np.ndarray, Camera] | None:
    """A hand's wrist (T, 3) m, and its cameras with focal and princpt (T, 2); None: it is never there.

    Frame by frame, `pair` flips and the virtual depth wanders. So over a track a virtual camera keeps its principal
    point in the middle of the image, its focal is the smoothed one, x and y follow from the smoothed wrist in px, and z
    is the track's median.
    """
    count = len(times)
    smoothed = columns[hand]
    if smoothed is None:
        return None
    if cutoff <= 0:
        return observations.joints_cam[:, hand, WRIST], Camera(
            observations.focal[:, hand], observations.princpt[:, hand], intrinsics is None
        )
    present = smoothed["state"] == SEEN
    if intrinsics is not None:
        place = observations.joints_cam[:, hand, WRIST]
        depth = np.maximum(place[:, 2:], 1e-6)
        track = np.concatenate((place[:, :2] / depth, np.log(depth)), 1)
        weights = confidence_weights(observations.confidence[:, hand], present & smoothed["shown"])
        for segment in _segments(smoothed["shown"]):
            track[segment] = smooth(track[segment], times[segment], weights[segment], cutoff)
        depth = np.exp(track[:, 2:])
        focal, princpt = (np.tile(values, (count, 1)) for values in (intrinsics.focal, intrinsics.princpt))
        return np.concatenate((track[:, :2] * depth, depth), 1), Camera(focal, princpt, orthographic=False)
    princpt = np.tile([(image_size[1] - 1) / 2, (image_size[0] - 1) / 2], (count, 1))
    focal = np.exp(smoothed["log_focal"])
    anchor = columns[RIGHT] or smoothed
    root = RIGHT if columns[RIGHT] is not None else hand
    depth = np.full(count, _median(observations.root_depth[:, hand], present))
    if pair.any():
        weights = np.where(pair & present, 1.0, 0.0)
        log_focal = np.log(np.abs(observations.pair_focal).clip(1e-9))
        if weights.any():
            focal = np.where(pair[:, None], np.exp(smooth(log_focal, times, weights, cutoff)), focal)
        shared = _median(observations.root_depth[:, root], anchor["state"] == SEEN)
        offset = rel_transl[:, 2] if hand == LEFT else 0.0
        depth = np.where(pair, shared + offset, depth)
    xy = (smoothed["wrist_image"] - princpt) / focal
    return np.concatenate((xy, depth[:, None]), 1), Camera(focal, princpt, orthographic=True)


def _median(values: np.ndarray, chosen: np.ndarray) -> float:
    return float(np.median(values[chosen])) if chosen.any() else float(np.median(values))


def jitter(points: np.ndarray, frames: np.ndarray) -> float:
    """Mean norm of the points' second difference over frames that follow each other, in the points' unit / frame^2.

    Args:
        points: (R, P, C) of one hand.
        frames: (R,) numbers of their frames, rising.
    """
    if len(points) < 3:
        return float("nan")
    neighbours = (np.diff(frames, 2) == 0) & (np.diff(frames)[1:] == 1)
    second = np.linalg.norm(np.diff(np.asarray(points, np.float64), 2, axis=0), axis=-1)
    return float(second[neighbours].mean()) if neighbours.any() else float("nan")
