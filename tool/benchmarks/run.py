"""Measure speed and memory on this machine, each beside a reference.

    python tool/benchmark.py                                  # everything, on one whole GPU or on the CPU
    python tool/benchmark.py --gpu cpu --preset small         # the small network
    python tool/benchmark.py --only inference,step --rounds 20 --no_growth
    python tool/benchmark.py --gpu 0 --dtypes float32 bf16 compiled --step_batch 128 --channels_last --output FILE.json
    python tool/benchmark.py --annotations 10000 100000 1000000 --work /tmp/work   # WORK keeps what was made, 3 GB
    python tool/benchmark.py --profile --only inference,step
    python tool/benchmark.py --what video --checkpoint FILE    # videos; FILE: a small network, as of quickstart.py

The two sides of a ratio are measured in alternation in one process, so that other load on the machine affects both
alike; printed are the median, minimum and maximum over the rounds. Stages:

    inference   the whole network / its three backbones and the detector's deconv
    trans_net   the translation network's input / its dense form: time, memory, numbers
    step        the complete step of main/train.py / forward and backward pass of the three backbones
    loader      a training sample / decoding and warping its image (of --data, else of toy data made for it)
    store       opening cached annotations, and what a loader worker adds (tool/measure_store.py)
    metrics     all that main/test.py does after the network, on one core
    rendering   two hands at 512 x 512
    exported    onnxruntime and torch.compile / PyTorch, on the CPU; runs only if --only names it, because it needs the
                packages onnx, onnxscript and onnxruntime

--what video measures steadiness, tracking, time and memory of videos instead, see tool/benchmarks/video.py.

Also measured is how cost grows with the batch, loader workers and annotations. --profile names the slowest parts. On a
CPU that other programs use, the column "processor", the same in CPU time, is steadier. On a GPU float32 convolutions
and matrix products both use TF32, except in trans_net, where neither does.

Exit code: 0, also if a limit is not met (with --strict: 1); 2 with one line on an error.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace
from tqdm import tqdm

from common.devices import parse_devices
from common.errors import UserError
from common.nets.mano import TwoHandMano
from common.nets.mano_files import read_hand_models
from common.options import GPU_HELP, MANO_FOLDER, ROOT, Parser, count, names_from
from common.utils.files import check_writable, make_folder, write_json
from common.utils.images import quiet_opencv
from main.options import preset_config
from tool.benchmarks import video
from tool.benchmarks.core import DTYPES, Bench, Clock, Measurement, describe_machine, table, tf32
from tool.benchmarks.data import loader, metrics, rendering, store
from tool.benchmarks.exported import exported
from tool.benchmarks.network import inference, trans_input
from tool.benchmarks.profile import profile_table
from tool.benchmarks.step import training_step
from tool.toy.standin_hand import write_standin

# Name of a stage for --only -> its rows of the table.
STAGES: dict[str, Callable[[Bench], list[Measurement]]] = {
    "inference": inference,
    "trans_net": trans_input,
    "step": training_step,
    "loader": loader,
    "store": store,
    "metrics": metrics,
    "rendering": rendering,
    "exported": exported,
}
NEED_DATA = {"step", "loader"}
TOY_SETS = ("InterHand26M", "MSCOCO")
TOY_SAMPLES = 24


def main() -> int:
    args = parse_args()
    quiet_opencv()
    device = parse_devices(args.gpu)[0]
    if args.output:
        check_writable(args.output.parent)  # now rather than after the measurements
    if args.what == "video":
        with tempfile.TemporaryDirectory(prefix="benchmark_") as temporary:
            return report_video(args, Path(temporary))
    with tf32(True), tempfile.TemporaryDirectory(prefix="benchmark_") as temporary:
        machine = describe_machine(device)
        print("\n".join(f"{name + ':':20s} {value}" for name, value in machine.items()), flush=True)
        bench, measurements = measure(args, device, Path(temporary))
    print_results(bench, measurements)
    return report(args, measurements, machine=machine, notes=bench.notes)


def report(args: argparse.Namespace, measurements: list[Measurement], **more: Any) -> int:
    """Write --output, with `more` beside the rows; say how many limits are met. Returns the exit code."""
    if args.output:
        write_json(args.output, {"figures": [asdict(m) | {"met": m.met} for m in measurements], **more})
        print(f"results written to {args.output}")
    missed = sum(m.met is False for m in measurements)
    print(f"limits: {sum(m.met is True for m in measurements)} met, {missed} not met")
    return 1 if missed and args.strict else 0


def report_video(args: argparse.Namespace, temporary: Path) -> int:
    """Print the rows of --what video. Returns the exit code."""
    args.work = args.work or temporary
    make_folder(args.work)
    args.mano = args.mano or find_mano(args.work)
    torch.set_num_threads(1)
    measurements = video.measure(args)
    print(table(measurements))
    print("\n".join(f"{m.what}: {m.detail}" for m in measurements if m.detail))
    return report(args, measurements)


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__, {"--out": "--output"})
    parser.add_argument("--what", choices=("speed", "video"), default="speed", help="what to measure (default: speed)")
    parser.add_argument("--checkpoint", type=Path, help="with --what video: also measure this network")
    parser.add_argument("--people_boxes", type=Path, help="with --what video: JSON file of boxes for the tracker")
    parser.add_argument("--gpu", help=f"{GPU_HELP}; only the first is used")
    parser.add_argument(
        "--only",
        type=names_from(STAGES),
        default=[stage for stage in STAGES if stage != "exported"],
        help=f"stages to run, of {', '.join(STAGES)} (default: all but exported)",
    )
    parser.add_argument(
        "--preset", choices=("small",), help="size of the network; small: for a CPU (default: the published size)"
    )
    parser.add_argument("--rounds", type=count, default=8, help="repetitions of each comparison (default: 8)")
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, help="number types (default: all on a GPU, float32 on a CPU)"
    )
    parser.add_argument("--batch", type=count, help="images per inference call (default: 64, on a CPU 4)")
    parser.add_argument("--step_batch", type=count, help="samples per training step (default: 128, on a CPU 4)")
    parser.add_argument("--max_batch", type=count, help="largest batch of the growing cost (default: 64, on a CPU 8)")
    parser.add_argument(
        "--channels_last",
        action="store_true",
        help="use the channels-last memory format; inference on a CPU has it by default",
    )
    parser.add_argument("--no_growth", action="store_true", help="leave out how cost grows")
    parser.add_argument("--profile", action="store_true", help="name the slowest parts of inference and step")
    parser.add_argument("--data", type=Path, help="folder of the datasets (default: toy data made for this)")
    parser.add_argument("--mano", type=Path, help="folder of the MANO files (default: the usual one, else a stand-in)")
    parser.add_argument(
        "--annotations", type=count, nargs="+", default=[10_000, 100_000], metavar="N",
        help="sizes of made-up annotation sets; the largest is judged (default: 10000 100000)",
    )  # fmt: skip
    parser.add_argument("--store_root", type=Path, help="a real InterHand26M folder instead of made-up annotations")
    parser.add_argument("--metrics_samples", type=count, default=100_000, help="samples to evaluate (default: 100000)")
    parser.add_argument("--work", type=Path, help="keep toy data and annotations here, for the next time")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file to write")
    parser.add_argument("--strict", action="store_true", help="exit code 1 if a limit is not met")
    return parser.parse_args()


def measure(args: argparse.Namespace, device: torch.device, temporary: Path) -> tuple[Bench, list[Measurement]]:
    """Run all stages, with the device's defaults for what `args` leaves open."""
    torch.backends.cudnn.benchmark = True  # as in training: all batches have the same size
    gpu = device.type == "cuda"
    args.dtypes = args.dtypes or (DTYPES if gpu else DTYPES[:1])
    args.batch, args.step_batch = args.batch or (64 if gpu else 4), args.step_batch or (128 if gpu else 4)
    args.max_batch = args.max_batch or (64 if gpu else 8)
    args.toy, args.scratch, args.work = args.data is None, temporary / "trainings", args.work or temporary
    args.mano = args.mano or find_mano(args.work)
    args.data = args.data or args.work / "toy"
    needs_data = not NEED_DATA.isdisjoint(args.only)
    if needs_data and args.toy:
        make_toy_data(args.data, args.mano)
    config = preset_config(args.preset)
    present = {
        key: tuple(name for name in getattr(config, key) if (args.data / name).exists())
        for key in ("trainset_3d", "trainset_2d")
    }
    if needs_data and not any(present.values()):
        raise UserError(f"--data {args.data}: there is no training set; name a folder with one, or leave it out")
    mano = TwoHandMano(*read_hand_models(args.mano)).to(device)
    measurements: list[Measurement] = []
    with tqdm(total=len(args.only), unit="stage", dynamic_ncols=True) as bar:
        bench = Bench(args, replace(config, **present), mano, Clock(device, args.rounds, bar.set_postfix_str))
        for name in args.only:
            bar.set_description(name)
            measurements += STAGES[name](bench)
            bar.update()
    return bench, measurements


def find_mano(work: Path) -> Path:
    """The usual folder of the hand models; without any, that of a stand-in, which is made unless it exists."""
    if (MANO_FOLDER / "MANO_RIGHT.pkl").exists():
        return MANO_FOLDER
    if not (work / "mano" / "MANO_LEFT.pkl").exists():
        make_folder(work / "mano")
        write_standin(work / "mano")
    return work / "mano"


def make_toy_data(folder: Path, mano: Path) -> None:
    """Toy datasets, unless they exist."""
    if all((folder / name).exists() for name in TOY_SETS):
        return
    command = [sys.executable, ROOT / "tool" / "make_toy_data.py", "--output", folder, "--mano", mano]
    command += ["--sets", ",".join(TOY_SETS), "--train", TOY_SAMPLES, "--test", 1]
    if subprocess.run(list(map(str, command)), stdout=subprocess.DEVNULL).returncode:
        raise UserError("the toy data could not be made; see the message above")


def print_results(bench: Bench, measurements: list[Measurement]) -> None:
    """How cost grows, the profiles, the table, and how its rows were measured."""
    for title, found in bench.notes.items():
        if "modules_ms" in found:
            print("\n" + profile_table(title, found))
            continue
        print(f"\n{title}")
        for key, values in found.items():
            print(f"  {key:>8s}  " + "  ".join(f"{name} {value:.4g}" for name, value in values.items()))
    print("\n" + table(measurements))
    if not bench.published:
        print("This is not the published network, to which the limits apply: they are left out.")
    print()
    for detail, stage in {m.detail: m.stage for m in measurements if m.detail}.items():
        print(f"{stage}: {detail}")
