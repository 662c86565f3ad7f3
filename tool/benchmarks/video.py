"""Steadiness, tracking, time and memory of videos, each beside its goal: the rows of tool/benchmark.py --what video.

Nothing here needs data. An estimator's noise is added to hands in motion whose truth is known (`tool.toy.motion`),
boxes are those of people who cross, and a network that answers at once shows what the rest of the pipeline takes. With
--checkpoint the same is measured for a trained network on the toy video `two`.
"""

import argparse
import json
import multiprocessing
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from common.errors import error_context
from common.nets.mano import TwoHandMano, to_wrist
from common.nets.mano_files import read_hand_models
from common.types import ManoParams
from common.utils.boxes import iou
from demo.motion import Observations
from demo.predictor import HandPredictor, PreparedPhoto
from demo.smoothing import confidence_weights, cutoff_at, mean_betas, smooth, smooth_rotations, window_at
from demo.tracking import Tracker, boxes_between, enlarged_iou
from demo.video import VideoReader, VideoWriter
from demo.video_hands import VideoOptions, draw_frame, make_table, observe_people, process_video, scan
from main.build import build_model
from main.options import preset_config
from tool.benchmarks.core import Measurement
from tool.benchmarks.store import process_peak
from tool.toy.clip import encode, make_clip, noisy_boxes, true_table, write_clip
from tool.toy.motion import Motion, add_noise, sample_motion
from tool.toy.rendering import build_skin
from tool.toy.scene import HandRig, build_rig
from tool.untrained import show_something

CUTOFF = 3.0  # Hz, the default of --smooth
DELAY = 0.14  # s
# Of a hand at rest in Hz, and how fast it rises with the speed: of rotations per radian, of places per 0.1 m.
ONE_EURO = 1.0, 1.0
FPS, FRAMES = 30, 300
FAST_KEY_SECONDS, FAST_CUTOFF = 0.28, 2.5  # s between key poses, Hz
DETECT_EVERY = 5  # frames


def measure(args: argparse.Namespace) -> list[Measurement]:
    """All rows.

    Args:
        args: `mano`, the hand models' folder; `work`, a folder for videos; `people_boxes`, recorded boxes or None;
            `checkpoint`, a network or None.
    """
    rig = build_rig(read_hand_models(args.mano))
    rows: list[Measurement] = []
    stages: list[Callable[[], list[Measurement]]] = [
        lambda: estimator_noise(rig),
        lambda: fast_motion(rig),
        lambda: uneven_stamps(rig),
        lambda: tracking(args.people_boxes),
        lambda: smoothing_time(rig),
        lambda: time_beside_parts(rig, args.mano, args.work),
        lambda: memory(args.work, args.mano),
    ]
    if args.checkpoint:
        stages += [lambda: small_network(args.checkpoint, args.mano, rig, args.work)]
    for stage in tqdm(stages, unit="stage", desc="video", dynamic_ncols=True):
        rows += stage()
    return rows


def row(what: str, value: float, unit: str, limit: float, detail: str = "", at_least: bool = False) -> Measurement:
    return Measurement("video", what, float(value), unit, limit=float(limit), at_least=at_least, detail=detail)


# ---- Steadiness without a network ----


def pose(motion: Motion, mano: TwoHandMano) -> tuple[np.ndarray, np.ndarray]:
    """vertices_rel (T, 2, V, 3) and joints_cam (T, 2, J, 3), m."""
    vectors = Rotation.from_matrix(motion.rotations.reshape(-1, 3, 3)).as_rotvec().reshape(*motion.rotations.shape[:4])
    rotations = torch.from_numpy(vectors).float()
    params = ManoParams(
        rotations[:, :, 0], rotations[:, :, 1:] - mano.hands_mean, torch.from_numpy(motion.betas).float()
    )
    with torch.inference_mode():
        vertices, joints = to_wrist(*mano(params))
    return vertices.numpy(), joints.numpy() + motion.wrist[:, :, None]


def smooth_motion(noisy: Motion, cutoff: float = CUTOFF, times: np.ndarray | None = None) -> Motion:
    """As a video does it, over the whole track.

    Args:
        times: in place of the motion's own.
    """
    rotations, wrist, betas = (x.copy() for x in (noisy.rotations, noisy.wrist, noisy.betas))
    times = noisy.times if times is None else times
    for side in (0, 1):
        weights = confidence_weights(np.ones(len(times)), noisy.present[:, side])
        rotations[:, side], weights, _ = smooth_rotations(noisy.rotations[:, side], times, weights, cutoff)
        wrist[:, side] = smooth(noisy.wrist[:, side], times, weights, cutoff)
        betas[:, side] = mean_betas(noisy.betas[:, side], weights)
    return noisy._replace(rotations=rotations, wrist=wrist, betas=betas)


def smooth_live(noisy: Motion, delay: float) -> Motion:
    """As a camera does it: each frame from a window that ends `delay` seconds after it; the mean shape so far."""
    rotations, wrist, betas = (x.copy() for x in (noisy.rotations, noisy.wrist, noisy.betas))
    cutoff = cutoff_at(CUTOFF, delay)
    for side in (0, 1):
        weights = confidence_weights(np.ones(len(noisy.times)), noisy.present[:, side])
        for frame in range(len(noisy.times)):
            inside = window_at(noisy.times, frame, delay)
            if not weights[inside].any():
                continue
            here = frame - inside.start
            times = noisy.times[inside]
            found, robust, _ = smooth_rotations(noisy.rotations[inside, side], times, weights[inside], cutoff)
            rotations[frame, side] = found[here]
            wrist[frame, side] = smooth(noisy.wrist[inside, side], times, robust, cutoff)[here]
            betas[frame, side] = mean_betas(noisy.betas[: inside.stop, side], weights[: inside.stop])
    return noisy._replace(rotations=rotations, wrist=wrist, betas=betas)


def one_euro(noisy: Motion) -> Motion:
    """For comparison: the One-Euro filter (Casiez et al., 2012), on SO(3) for rotations. It waits for no later frame.

    A frame without the hand leaves the filter as it is; shapes are averaged as by a camera.
    """
    cutoff, beta = ONE_EURO
    rotations, wrist, betas = (x.copy() for x in (noisy.rotations, noisy.wrist, noisy.betas))
    for side in (0, 1):
        seen = np.flatnonzero(noisy.present[:, side])
        turn_speed, speed = np.zeros((16, 3)), np.zeros(3)
        for before, now in zip(seen[:-1], seen[1:], strict=True):
            step = noisy.times[now] - noisy.times[before]
            rotations[before + 1 : now, side] = rotations[before, side]
            wrist[before + 1 : now, side] = wrist[before, side]
            last = Rotation.from_matrix(rotations[before, side])
            turn = (last.inv() * Rotation.from_matrix(noisy.rotations[now, side])).as_rotvec()
            move = noisy.wrist[now, side] - wrist[before, side]
            known = _one_euro_share(1.0, step)
            turn_speed += known * (turn / step - turn_speed)
            speed += known * (move / step - speed)
            share = _one_euro_share(cutoff + beta * np.linalg.norm(turn_speed, axis=-1, keepdims=True), step)
            rotations[now, side] = (last * Rotation.from_rotvec(share * turn)).as_matrix()
            wrist[now, side] = wrist[before, side] + move * _one_euro_share(cutoff + 10 * beta * np.abs(speed), step)
        for frame in seen:
            betas[frame, side] = noisy.betas[seen[seen <= frame], side].mean(0)
    return noisy._replace(rotations=rotations, wrist=wrist, betas=betas)


def _one_euro_share(cutoff: Any, step: float) -> Any:
    """Of a low-pass filter of the first order: the share of the new sample."""
    return 1 / (1 + 1 / (2 * np.pi * cutoff * step))


def errors(motion: Motion, true: Motion, seen: np.ndarray, mano: TwoHandMano) -> tuple[float, float, float]:
    """Acceleration error of the joints, mm / frame^2; MPVPE relative to the wrist, mm; lag, frames.

    The lag is the shift along the true motion that explains most of the joints' error.

    Args:
        seen: (T, 2) bool, what is measured.
    """
    (vertices, joints), (true_vertices, true_joints) = pose(motion, mano), pose(true, mano)
    acceleration = np.linalg.norm(np.diff(joints - true_joints, 2, axis=0), axis=-1)
    inside = seen[:-2] & seen[1:-1] & seen[2:]
    vertex_error = np.linalg.norm(vertices - true_vertices, axis=-1).mean(-1)
    velocity = np.gradient(true_joints, axis=0)[seen]
    lag = -float(((joints - true_joints)[seen] * velocity).sum() / (velocity**2).sum())
    return float(acceleration[inside].mean() * 1000), float(vertex_error[seen].mean() * 1000), lag


def estimator_noise(rig: HandRig) -> list[Measurement]:
    """Raw, over the whole track, with delay, without."""
    results = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        true = sample_motion(rng, rig, np.arange(FRAMES) / FPS)
        noisy = add_noise(rng, true)
        everywhere = np.ones_like(noisy.present)
        results.append(
            [
                errors(noisy, true, noisy.present, rig.mano),
                errors(smooth_motion(noisy), true, everywhere, rig.mano),
                errors(smooth_live(noisy, DELAY), true, noisy.present, rig.mano),
                errors(smooth_live(noisy, 0.0), true, noisy.present, rig.mano),
                errors(one_euro(noisy), true, noisy.present, rig.mano),
            ]
        )
    raw, whole, late, live, euro = np.mean(results, 0)
    unit, text = "mm/frame2", f"raw {raw[0]:.1f} mm/frame2, MPVPE {raw[1]:.1f} mm"
    named = (("video", whole, 30), (f"delay {DELAY} s", late, 15), ("delay 0", live, 4))
    rows = [row(f"noise, acceleration: {name}, raw/{part}", x[0], unit, raw[0] / part, text) for name, x, part in named]
    rows += [row(f"noise, MPVPE: {name}", x[1], "mm", limit, text)
             for (name, x, _), limit in zip(named, (4.5, 4.5, raw[1]), strict=True)]  # fmt: skip
    rows += [row(f"noise, lag: {name}", abs(x[2]), "frames", limit, text)
             for (name, x, _), limit in zip(named, (0.1, 0.1, 1.2), strict=True)]  # fmt: skip
    euro_text = "for comparison: {:g} Hz, beta {:g}".format(*ONE_EURO)
    measured = zip(("acceleration", "MPVPE", "lag"), euro, (unit, "mm", "frames"), strict=True)
    rows += [Measurement("video", f"noise, {what}: One-Euro", value, of, detail=euro_text)
             for what, value, of in measured]  # fmt: skip
    ratios = "; ".join(f"{name} {x[0] / raw[0]:.3f}, {x[1] / raw[1]:.2f}, {x[2]:.2f}"
                       for name, x, *_ in (*named, ("One-Euro", euro)))  # fmt: skip
    rows[0] = replace(rows[0], detail=f"{text}; acceleration / raw, MPVPE / raw, lag: {ratios}")
    return rows


def fast_motion(rig: HandRig) -> list[Measurement]:
    rng = np.random.default_rng(3)
    true = sample_motion(rng, rig, np.arange(FRAMES) / FPS, FAST_KEY_SECONDS)
    noisy = add_noise(rng, true)
    turns = true.rotations[:-1].swapaxes(-1, -2) @ true.rotations[1:]
    speed = Rotation.from_matrix(turns.reshape(-1, 3, 3)).magnitude().reshape(turns.shape[:3]) * FPS
    text = f"root to {np.rad2deg(speed[..., 0].max()):.0f}, fingers to {np.rad2deg(speed[..., 1:].max()):.0f} degrees/s"
    raw = errors(noisy, true, noisy.present, rig.mano)[1]
    here = errors(smooth_motion(noisy, FAST_CUTOFF), true, np.ones_like(noisy.present), rig.mano)[1]
    return [row(f"fast motion, MPVPE at {FAST_CUTOFF} Hz, 0.7 raw", here, "mm", 0.7 * raw, text)]


def uneven_stamps(rig: HandRig) -> list[Measurement]:
    results = []
    for seed in range(40, 43):
        rng = np.random.default_rng(seed)
        times = np.concatenate(([0], np.cumsum(rng.choice([1 / 60, 1 / 30, 1 / 10], FRAMES - 1))))
        true = sample_motion(rng, rig, times)
        noisy, everywhere = add_noise(rng, true), np.ones_like(true.present)
        regular = np.linspace(0, times[-1], FRAMES)
        smoothed = (smooth_motion(noisy, times=stamps) for stamps in (times, regular))
        results.append([errors(motion, true, everywhere, rig.mano)[1] for motion in smoothed])
    here, by_number = np.mean(results, 0)
    text = f"by frame number at the mean rate {by_number:.2f} mm"
    return [row("uneven stamps, MPVPE, 0.92 of that by number", here, "mm", 0.92 * by_number, text)]


# ---- Tracking ----


def walk(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Four people who cross: times (T,), true boxes (T, 4 people, 4)."""
    rng = np.random.default_rng(seed)
    times = np.arange(12 * FPS) / FPS
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
        overlap = np.stack([iou(boxes, true[rows, person]).numpy() for person in range(true.shape[1])])
        matches[:, column] = (overlap >= 0.5).sum(1)
        total += len(rows)
        false += int((overlap.max(0) < 0.3).sum())
    people, chosen = linear_sum_assignment(-matches)
    return 200 * matches[people, chosen].sum() / (true.shape[0] * true.shape[1] + total), false / total


def track_crossing_people() -> tuple[float, float]:
    """Means of `id_scores` over six videos, detections in every fifth frame."""
    results = []
    for seed in range(6):
        times, true = walk(seed)
        rng, tracker = np.random.default_rng(seed + 100), Tracker()
        for frame in range(0, len(times), DETECT_EVERY):
            tracker.update(times[frame], *detect(true[frame], rng))
        results.append(id_scores(times, true, tracker))
    idf1, false = np.mean(results, 0)
    return float(idf1), float(false)


def track_recorded(path: Path) -> tuple[int, int]:
    """Recorded boxes of a real detector on a real video: tracks, and how many of the two who walk in stay to the end.

    Args:
        path: JSON {"frames": {number at 10 frames/s: [[x1, y1, x2, y2, score], ...]}}.
    """
    with error_context(f"cannot read {path}", ValueError, KeyError, TypeError, AttributeError):
        content = json.loads(path.read_bytes())["frames"]
        frames = {int(key): np.array(found, float).reshape(-1, 5) for key, found in content.items()}
    tracker = Tracker(sure=0.3, unsure=0.12)
    for number, found in frames.items():
        tracker.update(number / 10, found[:, :4], found[:, 4])
    tracks = [track for track in tracker.tracks if track.confirmed]
    return len(tracks), sum(track.times[0] in (1.6, 2.0) and track.times[-1] == 9.2 for track in tracks)


def tracking(people_boxes: Path | None) -> list[Measurement]:
    idf1, false = track_crossing_people()
    rows = [row("4 people who cross, IDF1", idf1, "%", 85, at_least=True),
            row("4 people who cross, boxes that are nobody's", 100 * false, "%", 0.5)]  # fmt: skip
    if people_boxes:
        tracks, stayed = track_recorded(people_boxes)
        rows += [row("recorded boxes, ids", tracks, "", 7),
                 row("recorded boxes, of the two who walk in stay", stayed, "", 2, at_least=True)]  # fmt: skip
    return rows


# ---- Time and memory ----


def smoothing_time(rig: HandRig) -> list[Measurement]:
    """CPU time per frame of one hand: a whole track, and a camera's window."""
    rng = np.random.default_rng(5)
    noisy = add_noise(rng, sample_motion(rng, rig, np.arange(FRAMES) / FPS))
    took = {}
    for name, run in (("video", lambda: smooth_motion(noisy)), ("delay", lambda: smooth_live(noisy, DELAY))):
        begun = time.process_time()
        run()
        took[name] = (time.process_time() - begun) / (2 * FRAMES) * 1000
    return [row("smoothing, a hand and frame", took["video"], "ms", 1),
            row("smoothing with delay, a hand and frame", took["delay"], "ms", 15)]  # fmt: skip


class InstantPredictor(HandPredictor):
    """A network that answers at once: memory and time of all the rest."""

    def __init__(self, mano: TwoHandMano) -> None:
        self.model = argparse.Namespace(mano_layer=mano)  # all that the pipeline uses
        self.device, self.hand_model_name, self.note = torch.device("cpu"), mano.name, ""
        self.faces = mano.faces.numpy()
        self.rng = np.random.default_rng(0)

    def prepare(self, image, box_xywh=None, intrinsics=None) -> PreparedPhoto:
        return PreparedPhoto(np.zeros(0, np.float32), image.shape[:2], np.zeros(4, np.float32), intrinsics)

    def observe(self, photos, hand="both", min_confidence=0.0) -> list[Observations]:
        def draw(*shape: int) -> np.ndarray:
            return self.rng.normal(0, 0.1, shape).astype(np.float32)

        frames = [
            Observations(
                kept=np.ones(2, bool), confidence=np.ones(2, np.float32), box_image=draw(2, 4) + (10, 10, 40, 40),
                joints_image=draw(2, 21, 2) + 40, joints_depth_rel=draw(2, 21), global_orient=draw(2, 3),
                hand_pose=draw(2, 15, 3), betas=draw(2, 10), wrist_image=draw(2, 2) + 40,
                hand_focal=draw(2, 2) + 300, pair_focal=draw(2) + 300, root_depth=draw(2) + 1, rel_transl=draw(3),
                pair=np.array(True), joints_cam=draw(2, 21, 3) + (0, 0, 1), focal=draw(2, 2) + 300,
                princpt=draw(2, 2) + 40,
                person_box_image=np.zeros(4, np.float32),
            )
            for _ in photos
        ]  # fmt: skip
        return [Observations(*(values.astype(np.float32) if values.dtype.kind == "f" else values for values in frame))
                for frame in frames]  # fmt: skip


def _peak_of_video(path: Path, mano: Path) -> float:
    torch.set_num_threads(1)
    predictor = InstantPredictor(TwoHandMano(*read_hand_models(mano)))
    process_video(path, path.parent / path.stem, predictor, VideoOptions(draw=()))
    return process_peak()


def memory(work: Path, mano: Path, lengths: tuple[int, int] = (10, 600)) -> list[Measurement]:
    """Peak memory of 10 min beside 10 s (`lengths`), less the table; small frames, a network that answers at once."""
    frames = [np.full((96, 128, 3), 60 + number, np.uint8) for number in range(FPS)]  # one shot, without a cut
    peaks, tables = [], []
    for seconds in lengths:
        path, count = work / f"seconds_{seconds}.mp4", seconds * FPS
        encode(path, (frames[number % FPS] for number in range(count)), np.arange(count) * 20)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
            peaks.append(fresh.submit(_peak_of_video, path, mano).result())
        with np.load(path.parent / path.stem / "hands.npz") as table:
            tables.append(sum(table[name].nbytes for name in table) / 2**20)
    text = f"peak {peaks[0]:.0f} and {peaks[1]:.0f} MiB, tables {tables[0]:.0f} and {tables[1]:.0f} MiB; 128 x 96 px"
    return [row("memory, (10 min - its table) / 10 s", (peaks[1] - tables[1]) / peaks[0], "x", 1.05, text)]


def time_beside_parts(rig: HandRig, mano: Path, work: Path) -> list[Measurement]:
    """CPU time of a video of two people beside that of its parts; the published network, untrained."""
    config = preset_config(None)
    model = build_model(config, TwoHandMano(*read_hand_models(mano)))
    show_something(model)
    predictor = HandPredictor(model, config, [torch.device("cpu")])
    clip = make_clip("two", rig, 0.5)
    write_clip(work / "two_short", "two", clip, rig, build_skin(rig))
    path, truth = work / "two_short" / "two.mp4", true_table(clip)
    people = noisy_boxes(truth)[0], np.ones(2)

    def detector(images: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        for image in images:
            cv2.GaussianBlur(image, (0, 0), 20)
        return [people for _ in images]

    def spent(work: Callable[[], object]) -> float:
        begun = time.process_time()
        work()
        return time.process_time() - begun

    whole = spent(lambda: process_video(path, work / "two_short", predictor, VideoOptions(detector=detector)))
    with np.load(work / "two_short" / "hands.npz") as file:
        table = dict(file)
    frames = list(VideoReader(path))
    prepared = [predictor.prepare(frames[0].image, (x1, y1, x2 - x1, y2 - y1)) for x1, y1, x2, y2 in people[0]] * 4
    parts = {
        "decoding": spent(lambda: list(VideoReader(path))),
        "detector": spent(lambda: [detector([frame.image]) for frame in frames[::DETECT_EVERY]]),
        "network": spent(lambda: predictor.observe(prepared)) / len(prepared) * 2 * len(frames),
    }
    drawn: list[np.ndarray] = []
    parts["drawing"] = spent(lambda: drawn.extend(
        draw_frame(frame.image, table, np.flatnonzero(table["frame"] == frame.number), predictor, ("mesh",), True)
        for frame in frames))  # fmt: skip

    def write() -> None:
        with VideoWriter(work / "two_short" / "again.mp4", drawn[0].shape[:2]) as writer:
            for number, image in enumerate(drawn):
                writer.write(image, number * 3000)

    parts["encoding"] = spent(write)
    text = ", ".join(f"{name} {value / len(frames) * 1000:.0f}" for name, value in parts.items()) + " ms a frame"
    return [row("time of a video / its parts", whole / sum(parts.values()), "x", 1.1, text)]


# ---- A trained network ----


def small_network(checkpoint: Path, mano: Path, rig: HandRig, work: Path) -> list[Measurement]:
    """The toy video `two` before and after smoothing, also with outliers and gaps, and with boxes that jitter."""
    predictor = HandPredictor.load(checkpoint, mano, ["cpu"])
    folder = work / "two"
    if not (folder / "truth.npz").exists():
        write_clip(folder, "two", make_clip("two", rig, 4.0), rig, build_skin(rig))
    with np.load(folder / "truth.npz") as file:
        truth = dict(file)
    reader, seconds = VideoReader(folder / "two.mp4"), defaultdict(float)
    found_errors = {}
    for noise in (0.0, 0.02, 0.05):
        options = VideoOptions(boxes=noisy_boxes(truth, noise))
        found = scan(reader, options, seconds)
        observed = observe_people(reader, found, predictor, options, seconds)
        table = make_table(found, list(observed), predictor, reader.size, options, seconds)
        found_errors[noise] = table_errors(table, truth, rig)
        if not noise:
            broken = [spoil(each, np.random.default_rng(0)) for each in observed]
            spoiled = table_errors(make_table(found, broken, predictor, reader.size, options, seconds), truth, rig)
    raw, smoothed = found_errors[0.0]
    unit, detail = "mm/frame2", f"raw {raw[0]:.2f} mm/frame2, {raw[1]:.2f} px/frame2, MPVPE {raw[2]:.1f} mm"
    return [
        row("trained network, jitter, raw/5", smoothed[0], unit, raw[0] / 5, detail),
        row("trained network, jitter in the image, raw/5", smoothed[1], "px/frame2", raw[1] / 5, detail),
        row("trained network, MPVPE, raw + 1 %", smoothed[2], "mm", 1.01 * raw[2], detail),
        row("trained network, 3 outliers and a gap, raw/15", spoiled[1][0], unit, spoiled[0][0] / 15,
            f"raw {spoiled[0][0]:.1f} mm/frame2"),
        *(row(f"trained network, boxes with {noise:.0%} noise, jitter beside none", found_errors[noise][1][0],
              unit, limit * smoothed[0]) for noise, limit in ((0.02, 1.05), (0.05, 1.1))),
    ]  # fmt: skip


def spoil(observed: Observations, rng: np.random.Generator) -> Observations:
    """Three outliers and a gap of 7 frames a hand."""
    kept, orient, fingers, points = (
        x.copy() for x in (observed.kept, observed.global_orient, observed.hand_pose, observed.joints_image)
    )
    for side in (0, 1):
        start = int(rng.integers(len(kept) // 3, len(kept) // 2))
        kept[start : start + 7, side] = False
        for frame in rng.choice(np.setdiff1d(np.arange(len(kept)), np.arange(start - 3, start + 10)), 3, replace=False):
            orient[frame, side] += rng.normal(0, np.deg2rad(45), 3)
            fingers[frame, side] += rng.normal(0, np.deg2rad(20), (15, 3))
            points[frame, side] += rng.normal(0, 30, 2)
    return observed._replace(kept=kept, global_orient=orient, hand_pose=fingers, joints_image=points)


def table_errors(table: dict[str, np.ndarray], truth: dict[str, np.ndarray], rig: HandRig) -> list[list[float]]:
    """Raw, then smoothed: jitter of the joints less the truth's in mm/frame^2 relative to the wrist, and in px/frame^2;
    MPVPE relative to the wrist, mm. Persons are matched by their boxes."""
    results: list[list[list[float]]] = [[], []]
    for person in np.unique(table["person"]):
        for side in (0, 1):
            own = np.flatnonzero((table["person"] == person) & (table["side"] == side))
            middle = table["person_box_image"][own[0]]
            there = np.flatnonzero((truth["side"] == side) & (truth["frame"] == table["frame"][own[0]]))
            nearest = truth["person"][there[np.argmin(np.abs(truth["person_box_image"][there] - middle).sum(1))]]
            same = np.flatnonzero((truth["person"] == nearest) & (truth["side"] == side))
            same = same[np.isin(truth["frame"][same], table["frame"][own])]
            true_vertices, true_joints = _rel(truth, same, "", side, rig)
            steps = np.diff(table["frame"][own], 2) == 0
            for result, suffix in zip(results, ("_raw", ""), strict=True):
                vertices, joints = _rel(table, own, suffix, side, rig)
                image = table[f"joints_image{suffix}"][own] - truth["joints_image"][same]
                jitters = (np.linalg.norm(np.diff(away, 2, axis=0), axis=-1)[steps].mean()
                           for away in (1000 * (joints - true_joints), image))  # fmt: skip
                result.append([*jitters, 1000 * np.linalg.norm(vertices - true_vertices, axis=-1).mean()])
    return [np.mean(result, 0).tolist() for result in results]


def _rel(
    table: dict[str, np.ndarray], rows: np.ndarray, suffix: str, side: int, rig: HandRig
) -> tuple[np.ndarray, np.ndarray]:
    """vertices (R, V, 3) and joints (R, J, 3) of MANO, relative to the wrist."""
    columns = (np.repeat(table[name + suffix][rows][:, None], 2, 1) for name in ("global_orient", "hand_pose", "betas"))
    with torch.inference_mode():
        vertices, joints = to_wrist(*rig.mano(ManoParams(*map(torch.from_numpy, columns))))
    return vertices[:, side].numpy(), joints[:, side].numpy()
