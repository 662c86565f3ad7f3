"""Test a trained network. Run it in main/:

    python test.py --gpu 0-3 --test_epoch 6                        # output/model_dump/snapshot_6.pth on the default set
    python test.py --gpu 0-3 --test_epoch 6 --testset MSCOCO       # on another test set
    python test.py --checkpoint ../demo/snapshot_6.pth             # any checkpoint, including a published one
    python test.py --test_epoch 6 --testset ReInterHand --cam_mode Ego_cameras
    python test.py --test_epoch 6 --visualize 8                    # with images
    torchrun --nproc_per_node 4 test.py --test_epoch 6             # on one machine or several

Prints the results in the published wording. Written under output/result, or below --output:

    {testset}_{epoch}.json         the results, and how many items each averages
    {testset}_{epoch}.csv          one line per sample: errors in mm, IoU in percent, empty where nothing is scored
    MSCOCO_{epoch}_coco.json       the detected hands as a COCO result file, of which COCO's AP and AR are printed
    with --visualize N:
    {testset}_{epoch}_samples.jpg  N samples: truth, prediction, predicted meshes
    {testset}_{epoch}_worst.jpg    the N worst samples
    {testset}_{epoch}_errors.png   histograms of the errors

tensorboard/ has the configuration of each test, and the results as curves over the epochs.
Every sample is evaluated once, on any number of GPUs. The same checkpoint gives the same results each time.
"""

import argparse
import csv
import io
import math
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # see demo/__init__.py

import numpy as np
import torch
from msgspec.structs import replace
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.box_ap import coco_results
from common.devices import parse_devices
from common.distributed import ProcessInfo, from_all, launch, main_first
from common.drawing.charts import histograms
from common.drawing.samples import TITLES, draw_eval_sample
from common.drawing.sheets import contact_sheet
from common.errors import UserError, error_context, run_main
from common.metrics import PROTOCOLS, Estimate, Evaluator, to_estimate
from common.options import (
    DATA_FOLDER,
    DATA_HELP,
    GPU_HELP,
    LOG_SERVICES,
    LOG_TO_HELP,
    MANO_FOLDER,
    MANO_HELP,
    OUTPUT_FOLDER,
    Parser,
    within,
)
from common.precision import autocast
from common.run_record import import_service, open_boards, run_record
from common.targets import build_images, complete_truth
from common.types import HAND_TYPES, SIDES, EvalSample, Prediction
from common.utils.files import atomic_write, make_folder, write_image, write_json
from common.utils.images import quiet_opencv
from common.weights import check_sum
from data.dataset import (
    EvalItems,
    HandDataset,
    check_machine,
    collate_readable,
    init_worker,
    loader_workers,
    to_device,
    unwrap_worker_errors,
)
from main.build import load_model, open_dataset, prepare_inference
from main.config import Config, config_to_dict
from main.model import InterWild
from main.options import add_config_options, read_config

# Values that belong to the network, not to the test: the checkpoint sets them.
NETWORK = ("body_backbone", "hand_backbone", "trans_backbone", "box_channels", "frames", "hand_box_extension")
# Values that a test uses, which --help lists.
USED = ("testset", "interhand_test_subset", "cam_mode", "envmap_mode", "test_batch_size", "num_thread", "amp",
        "hand_box_extension", "wild_box_extension", "studio_box_extension")  # fmt: skip
# Start of a column's name in the .csv -> its name in the images.
COLUMNS = {"mpvpe": "MPVPE", "mpjpe": "MPJPE", "mrrpe": "MRRPE", "rrve": "RRVE", "box_iou": "box IoU"}
LARGEST = 1e9  # m or px; squares and sums of larger predictions overflow float32


def main() -> int:
    args = parse_args()
    import_service(args.log_to)
    return launch(partial(run, args), parse_devices(args.gpu))


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__, {"--batch_size": "--test_batch_size"})
    files, processing, results = parser.standard_groups()
    files.add_argument("--checkpoint", type=Path, metavar="FILE", help="the network to test")
    files.add_argument(
        "--test_epoch", type=int, metavar="N", help="or its epoch: model_dump/snapshot_N.pth below --output"
    )
    files.add_argument("--mano", type=Path, default=MANO_FOLDER, help=MANO_HELP)
    files.add_argument("--data", type=Path, default=DATA_FOLDER, help=DATA_HELP)
    files.add_argument("--output", type=Path, default=OUTPUT_FOLDER, help="folder for the results (default: output)")
    processing.add_argument("--gpu", help=GPU_HELP)
    processing.add_argument(
        "--skip_bad", action="store_true", help="leave out samples that cannot be read, and count them"
    )
    results.add_argument(
        "--visualize", type=within(int, 0), default=0, metavar="N", help="draw N samples and the worst (default: 0)"
    )
    results.add_argument("--log_to", choices=LOG_SERVICES, help=LOG_TO_HELP)
    add_config_options(parser, shown=USED, presets=False)
    args = parser.parse_args()
    if args.test_epoch is None and args.checkpoint is None:
        parser.error("no network given; name its epoch with --test_epoch or its file with --checkpoint")
    return args


def run(args: argparse.Namespace, process: ProcessInfo) -> None:
    """The test, in one of the processes that share it."""
    quiet_opencv()
    path = args.checkpoint or args.output / "model_dump" / f"snapshot_{args.test_epoch}.pth"

    def configure(trained: Config) -> Config:
        return read_config(args, replace(Config(), **{name: getattr(trained, name) for name in NETWORK}))

    check_sum(path)
    model, config, epoch, _, note = load_model(path, args.mano, configure)
    if args.test_epoch is not None:
        epoch = args.test_epoch
    model = prepare_inference(model, process.device)
    with main_first(process):  # the annotation cache is built once
        dataset = open_dataset(config.testset, "test", config, args.data)
    folder = args.output / "result"
    if process.is_main:
        make_folder(folder)
        print(f"{path} on {len(dataset)} samples of {config.testset}; hand model: {model.mano_layer.name}", flush=True)
        if note:
            print(note, flush=True)

    evaluator = Evaluator(PROTOCOLS[config.testset], model.mano_layer)
    share = range(process.rank, len(dataset), process.world)
    skipped = evaluate(model, dataset, share, config, process, evaluator, args.skip_bad)
    shares = from_all((evaluator.state(), skipped), process)
    if not process.is_main:
        return
    whole = Evaluator(evaluator.protocol, model.mano_layer)
    whole.merge(state for state, _ in shares)
    skipped = sum(number for _, number in shares)
    if skipped and not len(whole):
        raise UserError(f"none of the {skipped} samples of {config.testset} can be read")
    stem = folder / f"{config.testset}_{epoch}"
    about = {"checkpoint": str(path), "epoch": epoch, "hand_model": model.mano_layer.name, "network_note": note,
             "skipped": skipped}  # fmt: skip
    write_results(stem, whole, dataset, about)
    record = run_record(config_to_dict(config), {config.testset: len(whole)}, process.device, **about)
    with error_context(f"cannot write into {folder}"):
        values = {f"{config.testset}/{name}": value for name, value in whole.compute().items()}
        for board in open_boards(folder, record, args.log_to):
            board.scalars(values, epoch)
            board.close()
    print(whole.summary())
    if skipped:
        print(f"left out: {skipped} of {len(dataset)} samples, which cannot be read")
    if args.visualize:
        draw(stem, whole, model, dataset, config, args.visualize, process.device, note)
    print(f"results are in {stem}.*")


def evaluate(
    model: InterWild,
    dataset: HandDataset,
    indices: range,
    config: Config,
    process: ProcessInfo,
    evaluator: Evaluator,
    skip_bad: bool = False,
) -> int:
    """Run the network on samples of a dataset, and add their errors to the evaluator. Shows the progress.

    Args:
        skip_bad: leave out samples that cannot be read.

    Returns:
        The number of samples left out.

    Raises:
        UserError: a sample cannot be read, or a prediction is not finite.
    """
    batches = math.ceil(len(indices) / config.test_batch_size)
    workers = loader_workers(config.num_thread, process.local_world, batches)
    height, width = config.frames.crop
    check_machine(workers, 4 * 3 * height * width * config.test_batch_size)
    loader = DataLoader(
        EvalItems(dataset, indices, skip_bad),
        batch_size=config.test_batch_size,
        num_workers=workers,
        collate_fn=collate_readable,
        worker_init_fn=init_worker,
        pin_memory=process.device.type == "cuda",
    )
    share = f" (process 1 of {process.world})" if process.world > 1 else ""
    progress = tqdm(
        total=len(indices), desc=config.testset + share, unit="sample", disable=not process.is_main, dynamic_ncols=True
    )
    skipped = 0
    with progress, torch.inference_mode():
        for readable, batch, errors in unwrap_worker_errors(loader):
            for error in errors:
                progress.write(f"skipped {error}", file=sys.stderr)
            skipped += len(errors)
            if batch is not None:
                batch = to_device(batch, process.device)
                estimate = to_estimate(predict(model, batch, config), batch.sample.crop_to_image, config.frames)
                check_finite(estimate, batch.sample.id)
                truth = complete_truth(batch, model.mano_layer)
                evaluator.update(readable, estimate, truth, batch.sample.joints_valid)
            progress.update(len(readable) + len(errors))
    if dataset.exchanged:
        print(f"{int(dataset.exchanged)} images have their sides exchanged against their annotations", flush=True)
    return skipped


def predict(model: InterWild, batch: EvalSample, config: Config) -> Prediction:
    """The network on a batch, in the precision of the configuration."""
    images = build_images(batch.sample)
    with autocast(images.device, config.amp):
        return model(images)


def check_finite(estimate: Estimate, ids: list[str]) -> None:
    """Raises UserError for a prediction that would make averages meaningless; names the first such sample."""
    for name, values in estimate._asdict().items():
        fine = (values.abs() < LARGEST).flatten(1).all(1)  # False for NaN
        if not fine.all():
            sample = ids[int((~fine).nonzero()[0, 0])]
            raise UserError(f"the network's {name} of {sample} is NaN or infinite: this checkpoint cannot be tested")


# ---- Results ----


def write_results(stem: Path, evaluator: Evaluator, dataset: HandDataset, about: dict[str, Any]) -> None:
    """{stem}.json and {stem}.csv. Raises UserError if a result is not finite, or a file cannot be written."""
    results = evaluator.results()
    broken = [result.label for result in results if result.value is not None and not math.isfinite(result.value)]
    if broken:
        raise UserError(f"{dataset.source.name}: {', '.join(broken)} is not finite; check the annotations")
    content = {
        **about,
        "testset": dataset.source.name,
        "samples": len(evaluator),
        "units": "mm, IoU in percent",
        "metrics": {f.label: f.value for f in results if f.published},
        "beyond_published": {f.label: f.value for f in results if not f.published},
        "counts": {f.label: f.count for f in results},
        "left_out": {f.label: f.left_out for f in results if f.left_out},
    }
    write_json(stem.with_name(f"{stem.name}.json"), content)

    table = evaluator.table()
    names = [name for name in table if name not in ("index", "hand_type")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "hand_type", *names])
    for row, index in enumerate(table["index"].tolist()):
        kind = int(table["hand_type"][row])
        values = ["" if math.isnan(table[name][row]) else f"{table[name][row]:.4f}" for name in names]
        writer.writerow([dataset.id(index), HAND_TYPES[kind] if kind >= 0 else "", *values])
    atomic_write(stem.with_name(f"{stem.name}.csv"), text.getvalue().encode("utf-8", "backslashreplace"))
    if found := evaluator.detections():
        people = np.array([dataset.source.id(index) for index in found.image_ids.tolist()])
        write_json(stem.with_name(f"{stem.name}_coco.json"), coco_results(found._replace(image_ids=people)))


def draw(
    stem: Path,
    evaluator: Evaluator,
    model: InterWild,
    dataset: HandDataset,
    config: Config,
    count: int,
    device: torch.device,
    note: str,
) -> None:
    """The images of --visualize: samples spread over the dataset, the worst, histograms. `note` heads the samples."""
    table = evaluator.table()
    tested = table["index"].tolist()
    spread = np.linspace(0, len(tested) - 1, min(count, len(tested))).round().astype(int)
    chosen = {"samples": [tested[row] for row in np.unique(spread)], "worst": evaluator.worst(count)}
    for name, indices in chosen.items():
        if indices:
            images = [draw_one(model, dataset[index], config, device) for index in indices]
            captions = [caption(dataset.id(index), table, tested.index(index)) for index in indices]
            sheet = contact_sheet(images, captions, TITLES[1:], header=note)
            write_image(stem.with_name(f"{stem.name}_{name}.jpg"), sheet)
    errors = {
        title: np.concatenate([values for name, values in table.items() if name.startswith(column)])
        for column, title in COLUMNS.items()
        if any(name.startswith(column) for name in table)
    }
    units = {title: "percent" if title == COLUMNS["box_iou"] else "mm" for title in errors}
    write_image(stem.with_name(f"{stem.name}_errors.png"), histograms(errors, units))


@torch.inference_mode()
def draw_one(model: InterWild, item: EvalSample, config: Config, device: torch.device) -> list[np.ndarray]:
    """The crop of a sample three times, see `draw_eval_sample`."""
    prediction = predict(model, to_device(default_collate([item]), device), config)
    return draw_eval_sample(item.sample, prediction, model.mano_layer.faces, config.frames)


def caption(id: str, table: dict[str, np.ndarray], row: int) -> str:
    """A sample's id, and its errors of the hands that are scored."""
    parts = [id.rsplit("--", 1)[-1]]
    for column, unit in (("box_iou", "%"), ("mpvpe", "mm")):
        errors = {side: table[f"{column}_{side}"][row] for side in SIDES if f"{column}_{side}" in table}
        texts = [f"{side} {error:.0f} {unit}" for side, error in errors.items() if not np.isnan(error)]
        if texts:
            parts.append(f"{COLUMNS[column]}: {', '.join(texts)}")
    return "   ".join(parts)


if __name__ == "__main__":
    run_main(main)
