"""The stages of tool/benchmark.py beside the network: loader, annotation store, metrics, rendering."""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from common.drawing.raster import HandMesh
from common.drawing.render import render_hands
from common.metrics import PROTOCOLS, Evaluator, to_estimate
from common.nets.mano import TwoHandMano, to_wrist
from common.targets import complete_truth
from common.types import HAND_TYPES, SIDES, EvalSample, GroundTruth, HandCameras, ManoParams, Prediction, Sample, take
from common.utils.augment import draw_augmentation, warp_augmented
from common.utils.camera import Camera
from common.utils.files import make_folder
from common.utils.frames import Frames
from common.utils.images import load_image
from data.dataset import HandDataset, MixedSampler, init_worker
from main.build import open_dataset, open_training
from tool.benchmarks import store as measure_store
from tool.benchmarks.core import Figure
from tool.benchmarks.network import Bench

LOADER_LIMIT, METRICS_LIMIT, RENDER_LIMIT = 1.5, 60.0, 0.05
LOADER_IMAGES, WORKER_PASSES = 24, 6  # of each dataset; through them
METRICS_SAMPLES, METRICS_BATCH, METRICS_POOL = 100_000, 64, 4
RENDER_SIZE = 512


# ---- Loader ----


def loader(bench: Bench, data: Path, toy: bool) -> list[Figure]:
    """A sample of each training set against reading and warping its image."""
    kind, config = "toy " if toy else "", bench.config
    figures = []
    for name in (*config.trainset_3d, *config.trainset_2d):
        dataset = open_dataset(name, "train", config, data)
        figures.append(one_loader(bench, dataset, f"loader, a {kind}{name} sample / decode + warp"))
    if bench.growth:
        bench.notes["loader, by workers"] = worker_growth(bench, data)
    return figures


def one_loader(bench: Bench, dataset: HandDataset, what: str) -> Figure:
    """The samples of one dataset, each with its own augmentation."""
    indices = np.linspace(0, len(dataset) - 1, min(LOADER_IMAGES, len(dataset))).astype(int).tolist()
    cases = []
    for index in indices:
        augmentation = draw_augmentation(np.random.default_rng(index), bench.config.augmentation)
        to_crop = dataset.sample(index, augmentation).image_to_crop.numpy().astype(np.float64)
        cases.append((index, augmentation, dataset.source.annotation(index).image_path, to_crop))

    def samples() -> None:
        for index, augmentation, _, _ in cases:
            dataset.sample(index, augmentation)

    def images() -> None:
        for _, augmentation, path, to_crop in cases:
            warp_augmented(load_image(path), to_crop, augmentation, dataset.frames.crop)

    figure = bench.clock.compare(
        "loader", what, samples, images, limit=LOADER_LIMIT, detail=f"{len(cases)} images, in the disk's cache"
    )
    for key in ("measured_s", "reference_s"):
        figure.parts[key] /= len(cases)
    return figure


def worker_growth(bench: Bench, data: Path) -> dict[str, dict[str, float]]:
    """Samples a second against loader workers, the training sets mixed."""
    dataset = open_training(bench.config, data, seed=0)
    found = {}
    for workers in (0, 1, 2):
        sampler = MixedSampler(dataset.group_sizes, min(8, sum(map(sum, dataset.group_sizes))), seed=0)
        batches = DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=workers,
            worker_init_fn=init_worker,
            persistent_workers=workers > 0,
        )
        for _ in batches:  # workers start
            pass
        begun, count = time.perf_counter(), 0
        for _ in range(WORKER_PASSES):
            count += sum(len(batch.id) for batch in batches)
        found[str(workers)] = {"samples_per_s": count / (time.perf_counter() - begun)}
        bench.clock.progress(f"{workers} loader workers")
    return found


# ---- Annotation store ----


def store(bench: Bench, counts: list[int], work: Path, root: Path | None, samples: int = 2000) -> list[Figure]:
    """Opening cached annotations, and what a worker adds; each in a fresh process, by tool/measure_store.py."""
    figures: list[Figure] = []
    found = {}
    make_folder(work)
    args = argparse.Namespace(samples=samples, workers=2)
    for count in [None] if root else counts:
        folder = root or measure_store.make_annotations(work / f"annotations_{count}", count)
        row = measure_store.measure(folder, work / "cache" / folder.name, args)
        size = int(row["annotations"])
        found[str(size)] = row
        judged = {"below": True} if count in (None, max(counts)) else None
        for key, unit, limit, what in (
            ("open_s", "s", measure_store.OPEN_SECONDS, f"opening {size} cached annotations"),
            ("open_cold_s", "s", measure_store.OPEN_SECONDS, f"opening {size} cached annotations, disk cold"),
            ("open_MB", "MB", measure_store.OPEN_MB, f"memory of {size} opened annotations"),
            ("worker_fork_MB", "MB", measure_store.WORKER_MB, f"a worker adds, {size} annotations"),
        ):
            if judged:
                detail = "in a fresh process; the limit is for 1 M annotations"
                figures.append(Figure("store", what, row[key], unit, limit=limit, detail=detail, **judged))
        bench.clock.progress(f"{size} annotations")
    bench.notes["annotation store, by annotations"] = found
    return figures


# ---- Metrics ----


def metrics(bench: Bench, samples: int) -> list[Figure]:
    """All that `main/test.py` does after the network, on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        mano, frames = bench.mano.to("cpu"), bench.config.frames
        pool = [made_up(mano, frames, seed) for seed in range(METRICS_POOL)]
        evaluator = Evaluator(PROTOCOLS["InterHand26M"], mano)
        begun, work, count = time.perf_counter(), time.process_time(), 0
        while count < samples:
            batch = min(METRICS_BATCH, samples - count)
            prediction, item = pool[count // METRICS_BATCH % METRICS_POOL]
            if batch < METRICS_BATCH:
                prediction, item = take(prediction, slice(batch)), take(item, slice(batch))
            truth = complete_truth(item, mano)
            estimate = to_estimate(prediction, item.sample.crop_to_image, frames)
            evaluator.update(range(count, count + batch), estimate, truth, item.sample.joints_valid)
            count += batch
            if count // METRICS_BATCH % 200 == 0:
                bench.clock.progress(f"metrics: {count} of {samples} samples")
        evaluator.figures()
        seconds, work = time.perf_counter() - begun, time.process_time() - work
    finally:
        torch.set_num_threads(threads)
        bench.mano.to(bench.device)
    what, detail = f"metrics of {samples} samples on one core", "truth posed, estimate, all errors, averages"
    if samples == METRICS_SAMPLES:
        judged = {"limit": METRICS_LIMIT, "below": True, "detail": detail, "parts": {"processor_s": work}}
        return [Figure("metrics", what, seconds, "s", **judged)]
    times = METRICS_SAMPLES / samples
    judged = {"limit": METRICS_LIMIT, "below": True, "detail": detail, "parts": {"processor_s": work * times}}
    return [
        Figure("metrics", what, seconds, "s", detail=detail, parts={"processor_s": work}),
        Figure("metrics", f"  EXTRAPOLATED to {METRICS_SAMPLES}", seconds * times, "s", **judged),
    ]


def made_up(mano: TwoHandMano, frames: Frames, seed: int) -> tuple[Prediction, EvalSample]:
    """A batch of predictions and truths near each other."""
    draw, n, j = torch.Generator().manual_seed(seed), METRICS_BATCH, 21

    def normal(*shape: int, size: float = 1.0) -> torch.Tensor:
        return torch.randn(n, *shape, generator=draw) * size

    def chance(*shape: int) -> torch.Tensor:
        return (torch.rand(n, *shape, generator=draw) > 0.1).float()

    params = ManoParams(normal(2, 3), normal(2, 15, 3, size=0.2), normal(2, 10))
    with torch.no_grad():
        vertices, joints = to_wrist(*mano(params))
    vertices = vertices + normal(2, 1, 3, size=0.003)
    none, rows = torch.zeros(n), torch.eye(2, 3).expand(n, 2, 3)
    prediction = Prediction(
        box_centers_body_hm=torch.rand(n, 2, 2, generator=draw) * 40,
        box_sizes_body_hm=torch.rand(n, 2, 2, generator=draw) * 10 + 5,
        box_scores=chance(2),
        crop_to_hand=rows[:, None].expand(n, 2, 2, 3),
        joints_hand_hm=normal(2, j, 3),
        mano=params,
        vertices_rel=vertices,
        joints_rel=joints,
        joints_proj_hand_hm=normal(2, j, 2),
        root_transl=normal(2, 3),
        rel_transl=normal(3, size=0.1),
    )
    cameras = HandCameras(
        rotation=torch.eye(3).expand(n, 3, 3),
        transl=normal(3),
        has_extrinsics=torch.ones(n, dtype=torch.bool),
        focal=torch.full((n, 2, 2), 1500.0),
        princpt=torch.full((n, 2, 2), 200.0),
        distortion=torch.zeros(n, 4),
        has_distortion=torch.zeros(n, dtype=torch.bool),
    )
    boxes = torch.rand(n, 2, 4, generator=draw) * 100
    sample = Sample(
        crop=torch.zeros(n, 1, 1, 3, dtype=torch.uint8),
        color=torch.ones(n, 3),
        id=[str(k) for k in range(n)],
        replaced=none.long(),
        flip=none.bool(),
        rot=none,
        image_width=torch.full((n,), float(frames.crop[1])),
        image_to_crop=rows,
        crop_to_image=rows,
        boxes_crop=boxes,
        boxes_valid=chance(2),
        joints_crop=normal(2, j, 3),
        joints_inside=chance(2, j),
        joints_rel=joints,
        joints_valid=chance(2, j),
        rel_transl=normal(3),
        rel_transl_valid=chance(),
        has_depth=torch.ones(n),
        mano=params,
        mano_transl=normal(2, 3) + torch.tensor([0.0, 0, 8]),
        mano_valid=chance(2).bool(),
        cameras=cameras,
    )
    truth = GroundTruth(
        boxes_image=boxes,
        boxes_valid=chance(2),
        joints_cam=joints + normal(2, 1, 3),
        joints_scored=chance(2, j),
        vertices_cam=torch.zeros(n, 2, 778, 3),
        vertices_valid=torch.zeros(n, 2),
        rel_transl=normal(3),
        rel_transl_valid=chance(),
        hand_type=torch.randint(0, len(HAND_TYPES), (n,), generator=draw),
    )
    return prediction, EvalSample(sample, truth)


# ---- Rendering ----


def rendering(bench: Bench) -> list[Figure]:
    """Both hands, each half as wide as the picture, drawn over it as the demo draws them."""
    with torch.no_grad():
        zeros = ManoParams(torch.zeros(1, 2, 3), torch.zeros(1, 2, 15, 3), torch.zeros(1, 2, 10))
        zeros = ManoParams(*(part.to(bench.device) for part in zeros))
        vertices = to_wrist(*bench.mano(zeros))[0][0].cpu().numpy()
    faces, picture = bench.mano.faces.cpu().numpy(), np.full((RENDER_SIZE, RENDER_SIZE, 3), 127, np.uint8)
    hands = []
    for side in range(len(SIDES)):
        low, high = vertices[side].min(0), vertices[side].max(0)
        focal = np.full(2, 0.6 * RENDER_SIZE / (high - low)[:2].max())
        middle = np.array([(0.62, 0.38)[side], 0.5]) * RENDER_SIZE - focal * (low + high)[:2] / 2
        hands.append(HandMesh(vertices[side] + (0, 0, 1), faces[side], side, Camera(focal, middle, True)))
    drawn = render_hands(picture, hands)
    render_hands(picture, hands)
    seconds, work = zip(*(bench.clock.seconds(lambda: render_hands(picture, hands)) for _ in range(20)), strict=True)
    share = float((drawn != picture).any(-1).mean())
    return [
        Figure(
            "rendering",
            f"rendering two hands at {RENDER_SIZE} x {RENDER_SIZE}",
            float(np.median(seconds)),
            "s",
            min(seconds),
            max(seconds),
            RENDER_LIMIT,
            below=True,
            detail=f"smooth edges; the hands cover {share:.0%} of the picture",
            parts={"processor_s": float(np.median(work))},
        )
    ]
