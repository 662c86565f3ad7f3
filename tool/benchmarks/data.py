"""The stages of tool/benchmark.py beside the network: loader, annotation store, metrics, rendering."""

import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate

from common.drawing.raster import HandMesh
from common.drawing.render import render_hands
from common.metrics import PROTOCOLS, Evaluator, to_estimate
from common.nets.mano import to_wrist
from common.targets import build_images, complete_truth, make_eval_sample
from common.types import HAND_TYPES, SIDES, Annotation, EvalSample, ManoParams, Prediction, take
from common.utils.augment import draw_augmentation, warp_augmented
from common.utils.camera import Camera, CaptureCamera, project_pinhole
from common.utils.files import make_folder
from common.utils.images import load_image
from data.dataset import HandDataset, MixedSampler, init_worker, to_device
from main.build import open_dataset, open_training
from tool.benchmarks.core import Bench, Measurement
from tool.benchmarks.network import untrained
from tool.benchmarks.store import LIMITS, make_annotations, measure_store

LOADER_LIMIT, METRICS_LIMIT, RENDER_LIMIT = 1.5, 60.0, 0.05
LOADER_IMAGES, WORKER_PASSES = 24, 6  # of each dataset; over them
METRICS_SAMPLES, METRICS_BATCH = 100_000, 64
RENDER_SIZE = 512


def loader(bench: Bench) -> list[Measurement]:
    """A sample of each training set against reading and warping its image."""
    config, toy = bench.config, "toy " if bench.args.toy else ""
    measurements = [
        one_loader(bench, open_dataset(name, "train", config, bench.args.data), f"a {toy}{name} sample")
        for name in (*config.trainset_3d, *config.trainset_2d)
    ]
    if not bench.args.no_growth:
        bench.notes["loader, by workers"] = worker_growth(bench)
    return measurements


def one_loader(bench: Bench, dataset: HandDataset, what: str) -> Measurement:
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

    what, detail = f"loader, {what} / decode + warp", f"{len(cases)} images, in the disk's cache"
    ratio = bench.clock.compare("loader", what, samples, images, limit=LOADER_LIMIT, detail=detail)
    for key in ("measured_s", "reference_s"):
        ratio.parts[key] /= len(cases)
    return ratio


def worker_growth(bench: Bench) -> dict[str, dict[str, float]]:
    """Samples per second by loader workers, the training sets mixed."""
    dataset = open_training(bench.config, bench.args.data, seed=0)
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
        begun = time.perf_counter()
        count = sum(len(batch.id) for _ in range(WORKER_PASSES) for batch in batches)
        found[str(workers)] = {"samples_per_s": count / (time.perf_counter() - begun)}
        bench.clock.progress(f"{workers} loader workers")
    return found


def store(bench: Bench) -> list[Measurement]:
    """Opening cached annotations, and what a worker adds; see tool/benchmarks/store.py. The largest size is judged."""
    work, root = bench.args.work, bench.args.store_root
    make_folder(work)
    found = {}
    for folder in [root] if root else (make_annotations(work, count) for count in sorted(bench.args.annotations)):
        row = measure_store(folder, work / "cache" / folder.name, samples=2000, workers=2)
        size = int(row["annotations"])
        found[str(size)] = row
        bench.clock.progress(f"{size} annotations")
    bench.notes["annotation store, by annotations"] = found
    detail = "in a fresh process; the limit is for 1 M annotations"
    return [
        Measurement("store", what, row[key], unit, limit=LIMITS[key], below=True, detail=detail)
        for key, unit, what in (
            ("open_s", "s", f"opening {size} cached annotations"),
            ("open_cold_s", "s", f"opening {size} cached annotations, disk cold"),
            ("open_MB", "MB", f"memory of {size} opened annotations"),
            ("worker_fork_MB", "MB", f"a worker adds, {size} annotations"),
        )
    ]


# ---- Metrics ----


def metrics(bench: Bench) -> list[Measurement]:
    """All that `main/test.py` does after the network, on one core."""
    threads, samples = torch.get_num_threads(), bench.args.metrics_samples
    predictions, items = made_up_batch(bench)
    torch.set_num_threads(1)
    try:
        mano = bench.mano.to("cpu")
        evaluator = Evaluator(PROTOCOLS["InterHand26M"], mano)
        begun, work = time.perf_counter(), time.process_time()
        for start in range(0, samples, METRICS_BATCH):
            size = min(METRICS_BATCH, samples - start)
            prediction, item = take(predictions, slice(size)), take(items, slice(size))
            truth = complete_truth(item, mano)
            estimate = to_estimate(prediction, item.sample.crop_to_image, bench.config.frames)
            evaluator.update(range(start, start + size), estimate, truth, item.sample.joints_valid)
            if start // METRICS_BATCH % 200 == 0:
                bench.clock.progress(f"metrics: {start} of {samples} samples")
        evaluator.results()
        seconds, work = time.perf_counter() - begun, time.process_time() - work
    finally:
        torch.set_num_threads(threads)
        bench.mano.to(bench.device)

    rows = [(f"metrics of {samples} samples on one core", 1.0)]
    if samples != METRICS_SAMPLES:
        rows.append((f"  EXTRAPOLATED to {METRICS_SAMPLES}", METRICS_SAMPLES / samples))
    return [
        Measurement(
            "metrics",
            what,
            seconds * times,
            "s",
            limit=METRICS_LIMIT if what == rows[-1][0] else None,
            below=True,
            detail="truth posed, estimate, all errors, averages",
            parts={"processor_s": work * times},
        )
        for what, times in rows
    ]


def made_up_batch(bench: Bench) -> tuple[Prediction, EvalSample]:
    """Test items with nearly all joints of both hands, on the CPU, and an untrained network's predictions."""
    rng, (height, width) = np.random.default_rng(0), bench.config.frames.crop
    camera = CaptureCamera(np.full(2, 1500.0), np.array([width / 2, height / 2]), np.eye(3), np.zeros(3))
    items = []
    for number in range(METRICS_BATCH):
        joints = rng.normal(0, 0.05, (2, 21, 3)) + (0, 0, 1)
        joints_image = project_pinhole(joints, camera.focal, camera.princpt)
        valid = rng.random((2, 21)) > 0.1
        annotation = Annotation(
            id=number,
            image_path=Path("none"),
            image_size=(height, width),
            hand_type=HAND_TYPES[number % len(HAND_TYPES)],
            boxes_image=np.concatenate((joints_image.min(1), joints_image.max(1)), -1),
            boxes_valid=np.ones(2, bool),
            joints_image=joints_image,
            joints_cam=joints,
            joints_valid=valid,
            joints_scored=valid,
            rel_transl_valid=True,
            mano=ManoParams(*(rng.normal(0, size, (2, *n)) for size, n in ((1, (3,)), (0.2, (15, 3)), (1, (10,))))),
            mano_transl=joints[:, 0],
            mano_valid=np.ones(2, bool),
            cameras=(camera, camera),
        )
        image = np.zeros((height, width, 3), np.uint8)
        items.append(make_eval_sample(annotation, image, bench.config.frames, bench.config.studio_box_extension))
    batch = default_collate(items)
    with torch.inference_mode():
        prediction = untrained(bench)(build_images(take(batch.sample, slice(1))).to(bench.device))
    return take(to_device(prediction, torch.device("cpu")), torch.zeros(METRICS_BATCH, dtype=torch.long)), batch


# ---- Rendering ----


def rendering(bench: Bench) -> list[Measurement]:
    """Both hands, each half as wide as the image, drawn over it as the demo draws them."""
    with torch.no_grad():
        zeros = ManoParams(torch.zeros(1, 2, 3), torch.zeros(1, 2, 15, 3), torch.zeros(1, 2, 10))
        vertices = to_wrist(*bench.mano(to_device(zeros, bench.device)))[0][0].cpu().numpy()
    faces, image = bench.mano.faces.cpu().numpy(), np.full((RENDER_SIZE, RENDER_SIZE, 3), 127, np.uint8)
    hands = []
    for side in range(len(SIDES)):
        low, high = vertices[side].min(0), vertices[side].max(0)
        focal = np.full(2, 0.6 * RENDER_SIZE / (high - low)[:2].max())
        middle = np.array([(0.62, 0.38)[side], 0.5]) * RENDER_SIZE - focal * (low + high)[:2] / 2
        hands.append(HandMesh(vertices[side] + (0, 0, 1), faces[side], side, Camera(focal, middle, True)))
    drawn = render_hands(image, hands)
    render_hands(image, hands)
    seconds, work = zip(*(bench.clock.seconds(lambda: render_hands(image, hands)) for _ in range(20)), strict=True)
    return [
        Measurement(
            "rendering",
            f"rendering two hands at {RENDER_SIZE} x {RENDER_SIZE}",
            float(np.median(seconds)),
            "s",
            min(seconds),
            max(seconds),
            RENDER_LIMIT,
            below=True,
            detail=f"smooth edges; the hands cover {float((drawn != image).any(-1).mean()):.0%} of the image",
            parts={"processor_s": float(np.median(work))},
        )
    ]
