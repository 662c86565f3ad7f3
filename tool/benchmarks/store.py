"""Measure what a large annotation set costs: the first start, later starts, and each loader worker.

    python tool/measure_store.py --counts 10000 100000 1000000 --work /tmp/measure
    python tool/measure_store.py --root data/InterHand26M --work /tmp/measure

The first form makes InterHand2.6M annotations of those sizes below WORK (tool/benchmarks/big_annotations.py) unless
they are there already; the second takes a real training set. The annotation cache is made below WORK, so the data
set's own stays as it is. Every figure comes from a fresh process. What the lines of the table mean:

    files      size of the annotation files
    build      the first start: reads the files, makes the cache. `cpu` are the seconds that a processor worked for it;
               its memory is the highest resident size, the annotation file included, beyond what the imports take
    cache      size of the cache on disk
    open       later starts: seconds and added resident memory; cold means that the system had to read from the disk
    annotation time of one `annotation(i)` at random places, the second time through
    worker     memory that no other process shares (private pages of /proc/PID/smaps_rollup) added by opening the set in
               a loader worker and reading at random; the largest of all workers, which run at once. `own` leaves out
               unchanged file pages that happen to be in use by one worker only: the system can drop those at any time

Linux only.
"""

import argparse
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.options import ROOT

OPEN_SECONDS, OPEN_MB, WORKER_MB = 2, 300, 50  # targets for 1 M annotations


def main() -> int:
    args = parse_args()
    if args.measure:
        print(json.dumps(MEASUREMENTS[args.measure](args.root, args.cache, args.samples, args.workers)))
        return 0
    if not Path("/proc/self/smaps_rollup").exists():
        raise UserError("this system does not tell the memory of a process (/proc/self/smaps_rollup)")
    if args.root:
        roots = [args.root]
    else:
        roots = [make_annotations(args.work / f"annotations_{count}", count) for count in args.counts]
    rows = [measure(root, args.work / "cache" / root.name, args) for root in roots]
    good = [print_table(row) for row in rows]
    return 0 if all(good) else 1


def make_annotations(root: Path, count: int) -> Path:
    if not (root / "annotations" / "train" / "InterHand2.6M_train_data.json").exists():
        run([str(ROOT / "tool" / "benchmarks" / "big_annotations.py"), "--out", str(root), "--count", str(count)])
    return root


def run(arguments: list[str]) -> str:
    """A script in a fresh process; its progress shows, its last line is returned."""
    done = subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(arguments)} failed (exit code {done.returncode}); its message is above")
    return done.stdout.strip().rpartition("\n")[2]


def measure(root: Path, cache: Path, args: argparse.Namespace) -> dict[str, float]:
    row: dict[str, float] = {}
    for what in MEASUREMENTS:
        options = ["--root", str(root), "--cache", str(cache), "--samples", str(args.samples)]
        output = run(
            [str(ROOT / "tool" / "measure_store.py"), "--measure", what, *options, "--workers", str(args.workers)]
        )
        row |= json.loads(output)
    return row


def print_table(row: dict[str, float]) -> bool:
    """One line a figure; returns whether the targets are met."""
    targets = {
        "open_s": OPEN_SECONDS,
        "open_cold_s": OPEN_SECONDS,
        "open_MB": OPEN_MB,
        "worker_fork_MB": WORKER_MB,
        "worker_spawn_MB": WORKER_MB,
    }
    print(f"\n{int(row.pop('annotations'))} annotations")
    for name, value in row.items():
        target = f"   target < {targets[name]}{'' if value < targets[name] else '   MISSED'}" if name in targets else ""
        print(f"  {name:20s} {value:10.3f}{target}")
    return all(row[name] < target for name, target in targets.items())


# ---- in fresh processes ----


def open_source(root: Path, cache: Path, **options: bool) -> Any:
    from data.InterHand26M.InterHand26M import InterHand26M

    return InterHand26M(root, "train", cache=cache, **options)


def measure_build(root: Path, cache: Path, samples: int, workers: int) -> dict[str, float]:
    import resource

    import data.InterHand26M.InterHand26M  # noqa: F401 - not part of the figures

    before, start, start_cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    source = open_source(root, cache, rebuild=True)
    return {
        "annotations": len(source),
        "files_MB": folder_size(root / "annotations" / "train"),
        "build_s": time.perf_counter() - start,
        "build_cpu_s": time.process_time() - start_cpu,
        "build_peak_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before,
        "cache_MB": folder_size(cache),
    }


def measure_open_cold(root: Path, cache: Path, samples: int, workers: int) -> dict[str, float]:
    for path in cache.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
    return {"open_cold_s": measure_open(root, cache, samples, workers)["open_s"]}


def measure_open(root: Path, cache: Path, samples: int, workers: int) -> dict[str, float]:
    import data.InterHand26M.InterHand26M  # noqa: F401 - not part of the figures

    before, start = memory("VmRSS"), time.perf_counter()
    source = open_source(root, cache)
    source.annotation(len(source) // 2)
    seconds = time.perf_counter() - start
    return {"open_s": seconds, "open_MB": memory("VmRSS") - before, "pickled_kB": len(pickle.dumps(source)) / 1024}


def measure_annotation(root: Path, cache: Path, samples: int, workers: int) -> dict[str, float]:
    source = open_source(root, cache)
    for _ in range(2):
        start = time.perf_counter()
        read(source, samples, seed=0)
        seconds = time.perf_counter() - start
    return {"annotation_us": seconds / samples * 1e6}


def measure_fork(root: Path, cache: Path, samples: int, workers: int) -> dict[str, float]:
    return measure_workers("fork", open_source(root, cache), samples, workers)


def measure_spawn(root: Path, cache: Path, samples: int, workers: int) -> dict[str, float]:
    return measure_workers("spawn", open_source(root, cache), samples, workers)


MEASUREMENTS = {
    "build": measure_build,
    "open_cold": measure_open_cold,
    "open": measure_open,
    "annotation": measure_annotation,
    "fork": measure_fork,
    "spawn": measure_spawn,
}


def measure_workers(method: str, source: Any, samples: int, workers: int) -> dict[str, float]:
    context = multiprocessing.get_context(method)
    barrier, queue = context.Barrier(workers), context.Queue()
    # A forked worker inherits the source, as in a loader; a spawned one is sent it.
    shipped = source if method == "fork" else pickle.dumps(source)
    processes = [context.Process(target=work, args=(shipped, samples, k, barrier, queue)) for k in range(workers)]
    for process in processes:
        process.start()
    added = [queue.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    return {
        f"worker_{method}_MB": max(total for total, _ in added),
        f"worker_{method}_own_MB": max(own for _, own in added),
    }


def work(shipped: Any, samples: int, seed: int, barrier: Barrier, queue: Any) -> None:
    """A loader worker. All measure at the same moments, because what is private depends on what the others hold."""
    import data.InterHand26M.InterHand26M  # noqa: F401 - not part of the figures

    barrier.wait()
    before = private_memory()
    barrier.wait()
    source = pickle.loads(shipped) if isinstance(shipped, bytes) else shipped  # noqa: S301 - made by this program
    read(source, samples, seed)
    barrier.wait()
    after = private_memory()
    barrier.wait()
    queue.put((after[0] - before[0], after[1] - before[1]))


def read(source: Any, samples: int, seed: int) -> None:
    import numpy as np

    for index in np.random.default_rng(seed).integers(len(source), size=samples).tolist():
        source.annotation(index)


def private_memory() -> tuple[float, float]:
    """MB that this process shares with none: all, and without unchanged file pages."""
    dirty, clean = memory("Private_Dirty", "smaps_rollup"), memory("Private_Clean", "smaps_rollup")
    return dirty + clean, dirty


def memory(key: str, file: str = "status") -> float:
    """MB, from /proc/self."""
    for line in Path("/proc/self", file).read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise UserError(f"/proc/self/{file} has no {key}")


def folder_size(folder: Path) -> float:
    """MB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--counts", type=int, nargs="+", default=[1_000_000], help="sizes to try (default: 1000000)")
    what.add_argument("--root", type=Path, help="folder of a real InterHand26M dataset")
    parser.add_argument("--work", type=Path, help="folder for what is made on the way")
    parser.add_argument("--samples", type=int, default=5000, help="annotations a worker reads (default: 5000)")
    parser.add_argument("--workers", type=int, default=8, help="(default: 8)")
    parser.add_argument("--measure", choices=MEASUREMENTS, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not (args.work or args.measure):
        parser.error("--work is needed: a folder with a few GB free")
    if args.workers < 2:
        parser.error("--workers: what is shared shows with two or more")
    return args
