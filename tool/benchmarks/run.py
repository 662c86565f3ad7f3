"""Measure what this program costs on this machine, each thing beside what it is to be compared with.

    python tool/benchmark.py                                  # everything, on all of a GPU or on the CPU
    python tool/benchmark.py --gpu cpu --preset small         # the small network
    python tool/benchmark.py --only inference,step --rounds 20 --no_growth
    python tool/benchmark.py --gpu 0 --dtypes float32 bf16 compiled --step_batch 128 --channels_last --out figures.json
    python tool/benchmark.py --annotations 10000 100000 1000000 --work /tmp/work   # WORK keeps what was made, 3 GB
    python tool/benchmark.py --profile --only inference,step

A ratio is measured in turns, one round after the other in one process, so that whatever else the machine does meets
both alike; what is printed is the median of the rounds' ratios, and their smallest and largest. Stages:

    inference   the whole network / its three backbones and the detector's deconv
    trans_net   the translation network's input / the dense form of it: time, memory, numbers
    step        the step of main/train.py with everything in it / forward and backward of the three backbones
    loader      a training sample / decoding and warping its image (of --data, else of toy data made for it)
    store       opening cached annotations, and what a loader worker adds (tool/measure_store.py)
    metrics     all that main/test.py does after the network, on one core
    rendering   two hands at 512 x 512

Beside them how cost grows: with the batch, loader workers, annotations. --profile names the slowest parts. On a CPU
that other programs use, the column "processor" is steadier: the same by the time that processors worked for it.

Exit code: 0 when measured, also if a limit is not met (with --strict: 1); 2 with one line if something is wrong.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

# torch and OpenCV are imported where they are used, so that --help and mistakes are answered at once.
from common.errors import UserError
from common.options import GPU_HELP, MANO_FOLDER, ROOT, count

if TYPE_CHECKING:
    from tool.benchmarks.core import Figure
    from tool.benchmarks.network import Bench

STAGES = ("inference", "trans_net", "step", "loader", "store", "metrics", "rendering")
DTYPES = ("float32", "bf16", "compiled")
TOY_SAMPLES = 24
TOY_SETS = ("InterHand26M", "MSCOCO")


def main() -> int:
    args = parse_args()
    stages = read_stages(args.only)

    from common.devices import parse_devices
    from common.utils.files import atomic_write, make_folder, write_json
    from common.utils.images import quiet_opencv
    from tool.benchmarks.core import as_dict, describe_machine, table

    quiet_opencv()
    device = parse_devices(args.gpu)[0]
    if args.out:
        make_folder(args.out.parent)
        probe = args.out.with_name(f".{args.out.name}.writable")
        atomic_write(probe, b"")  # found out now, and not after the measuring
        probe.unlink(missing_ok=True)
    machine = describe_machine(device)
    print("\n".join(f"{name + ':':20s} {value}" for name, value in machine.items()), flush=True)
    with tempfile.TemporaryDirectory(prefix="benchmark_") as temporary:
        bench, figures = measure(args, stages, device, Path(temporary))
    print_notes(bench)
    print("\n" + table(figures))
    if not bench.published:
        print(
            "This is not the published network, for which the limits of the network's figures are: they are left out."
        )
    print_details(figures)
    if args.out:
        content = {"machine": machine, "figures": [as_dict(figure) for figure in figures], "notes": bench.notes}
        write_json(args.out, content)
        print(f"figures are in {args.out}")
    missed = [figure.what.strip() for figure in figures if figure.met is False]
    print(f"limits: {sum(figure.met is True for figure in figures)} met, {len(missed)} not met")
    return 1 if missed and args.strict else 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", help=f"{GPU_HELP}; only the first is used")
    parser.add_argument("--only", help=f"stages, separated by commas: {','.join(STAGES)} (default: all)")
    parser.add_argument("--preset", choices=("small",), help="small: the network for a CPU")
    parser.add_argument("--rounds", type=count, default=8, help="of each comparison (default: 8)")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help="default: all on a GPU, float32 on a CPU")
    parser.add_argument("--batch", type=count, help="images of an inference call (default: 64, on a CPU 4)")
    parser.add_argument("--step_batch", type=count, help="samples of a training step (default: 128, on a CPU 4)")
    parser.add_argument("--max_batch", type=count, help="how far cost is followed (default: 64, on a CPU 8)")
    parser.add_argument(
        "--channels_last",
        action="store_true",
        help="memory layout; inference on a CPU has it anyway",
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
    parser.add_argument("--metrics_samples", type=count, default=100_000, help="(default: 100000)")
    parser.add_argument("--work", type=Path, help="keep toy data and annotations here, for the next time")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file to write")
    parser.add_argument("--strict", action="store_true", help="exit code 1 if a limit is not met")
    return parser.parse_args()


def read_stages(text: str | None) -> list[str]:
    """Raises UserError if there is no such stage."""
    chosen = STAGES if text is None else tuple(text.split(","))
    for name in chosen:
        if name not in STAGES:
            raise UserError(f"--only {text}: there is no {name!r}; there are: {', '.join(STAGES)}")
    return [name for name in STAGES if name in chosen]


def measure(
    args: argparse.Namespace, stages: list[str], device: Any, temporary: Path
) -> tuple["Bench", list["Figure"]]:
    """All stages, with their progress."""
    import torch
    from tqdm import tqdm

    torch.backends.cudnn.benchmark = True  # as in training: all batches have the same size
    work = args.work or temporary
    mano_folder = find_mano(args.mano, work)
    data = args.data or work / "toy"
    if {"step", "loader"} & set(stages) and not args.data:
        make_toy_data(data, mano_folder)
    figures: list[Figure] = []
    with tqdm(total=len(stages), unit="stage", dynamic_ncols=True) as bar:
        bench = open_bench(args, device, mano_folder, data, bar.set_postfix_str)
        for name in stages:
            bar.set_description(name)
            try:
                figures += stage(name)(bench, args, data, mano_folder, work)
            except torch.OutOfMemoryError:
                raise UserError(
                    f"{name}: too little memory on {device}; lower --batch, --step_batch, --max_batch"
                ) from None
            bar.update()
    return bench, figures


def find_mano(given: Path | None, work: Path) -> Path:
    """The folder of the hand models; without any, of a stand-in that is made now."""
    from tool.benchmarks import store as measure_store

    if given or (MANO_FOLDER / "MANO_RIGHT.pkl").exists():
        return given or MANO_FOLDER
    folder = work / "mano"
    if not (folder / "MANO_LEFT.pkl").exists():
        measure_store.run([str(ROOT / "tool" / "make_standin_hand.py"), "--out", str(folder)])
    return folder


def make_toy_data(folder: Path, mano: Path) -> None:
    """Toy datasets, unless they are there from the last time."""
    from tool.benchmarks import store as measure_store

    if all((folder / name).exists() for name in TOY_SETS):
        return
    options = ["--sets", ",".join(TOY_SETS), "--train", str(TOY_SAMPLES), "--test", "1", "--mano", str(mano)]
    measure_store.run([str(ROOT / "tool" / "make_toy_data.py"), "--out", str(folder), *options])


def open_bench(
    args: argparse.Namespace, device: Any, mano_folder: Path, data: Path, progress: Callable[[str], None]
) -> "Bench":
    """What the stages work with, with the defaults of the device."""
    from dataclasses import replace

    from common.nets.mano import TwoHandMano
    from common.nets.mano_files import read_hand_models
    from main.config import PRESETS, Config
    from main.options import change_config
    from tool.benchmarks.core import Clock
    from tool.benchmarks.network import Bench

    config = change_config(Config(), PRESETS[args.preset] if args.preset else {}, "the preset")
    there = [name for name in (*config.trainset_3d, *config.trainset_2d) if (data / name).exists()]
    config = replace(
        config,
        trainset_3d=tuple(name for name in config.trainset_3d if name in there),
        trainset_2d=tuple(name for name in config.trainset_2d if name in there),
    )
    gpu = device.type == "cuda"
    return Bench(
        config=config,
        mano=TwoHandMano(*read_hand_models(mano_folder)).to(device),
        clock=Clock(device, args.rounds, progress),
        dtypes=tuple(args.dtypes or (DTYPES if gpu else DTYPES[:1])),
        images=args.batch or (64 if gpu else 4),
        max_batch=args.max_batch or (64 if gpu else 8),
        channels_last=args.channels_last,
        growth=not args.no_growth,
    )


def stage(name: str) -> Callable[..., list["Figure"]]:
    """The function of a stage: (bench, args, data, mano, work) -> figures."""
    from tool.benchmarks import data as benchmark_data
    from tool.benchmarks import network as benchmark_network

    def step(bench: "Bench", args: argparse.Namespace, data: Path, mano: Path, work: Path) -> list["Figure"]:
        from tool.benchmarks.step import training_step

        need_data(bench, data)
        batch = args.step_batch or (128 if bench.device.type == "cuda" else 4)
        with tempfile.TemporaryDirectory(prefix="benchmark_") as output:
            return training_step(bench, batch, data, mano, Path(output), args.profile)

    def loader(bench: "Bench", args: argparse.Namespace, data: Path, *_: Any) -> list["Figure"]:
        need_data(bench, data)
        return benchmark_data.loader(bench, data, toy=not args.data)

    def store(bench: "Bench", args: argparse.Namespace, data: Path, mano: Path, work: Path) -> list["Figure"]:
        return benchmark_data.store(bench, sorted(args.annotations), work, args.store_root)

    return {
        "inference": lambda bench, args, *_: benchmark_network.inference(bench, args.profile),
        "trans_net": lambda bench, *_: benchmark_network.trans_input(bench),
        "step": step,
        "loader": loader,
        "store": store,
        "metrics": lambda bench, args, *_: benchmark_data.metrics(bench, args.metrics_samples),
        "rendering": lambda bench, *_: benchmark_data.rendering(bench),
    }[name]


def need_data(bench: "Bench", data: Path) -> None:
    """Raises UserError if there is no training set."""
    if not (bench.config.trainset_3d or bench.config.trainset_2d):
        raise UserError(f"--data {data}: there is no training set; name a folder with one, or leave --data out")


def print_notes(bench: "Bench") -> None:
    """How cost grows, and the profiles."""
    for title, found in bench.notes.items():
        if "modules_ms" in found:
            from tool.benchmarks.profile import profile_table

            print("\n" + profile_table(title, found))
            continue
        print(f"\n{title}")
        for key, values in found.items():
            print(f"  {key:>8s}  " + "  ".join(f"{name} {value:.4g}" for name, value in values.items()))


def print_details(figures: list["Figure"]) -> None:
    """How the figures were measured, each way once."""
    seen: dict[str, str] = {}
    for figure in figures:
        if figure.detail:
            seen.setdefault(figure.detail, figure.stage)
    print()
    for detail, name in seen.items():
        print(f"{name}: {detail}")
