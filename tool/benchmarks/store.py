"""Measure what a large annotation set costs: the first start, later starts, and each loader worker.

    python tool/measure_store.py --counts 10000 100000 1000000 --work /tmp/measure
    python tool/measure_store.py --root data/InterHand26M --work /tmp/measure

The first form makes InterHand2.6M annotations of those sizes below WORK (tool/benchmarks/big_annotations.py) unless
they exist; the second takes a real training set. The annotation cache is built below WORK, so the dataset's own stays
as it is. Every result comes from a fresh process. The lines of the table:

    files      size of the annotation files
    build      the first start: reads the files, builds the cache. `cpu` is its CPU time; its memory is the peak
               resident size, the annotation file included, beyond what the imports take
    cache      size of the cache on disk
    open       later starts: seconds and added resident memory; cold means that the system had to read from the disk
    annotation time of one `annotation(i)` at random places, on the second pass
    worker     memory that no other process shares (private pages) added by opening the set in a loader worker and
               reading at random; the largest of all workers, which run at once. `own` leaves out unchanged file pages
               that only one worker happens to use: the system can drop those at any time

Linux only.
"""

import argparse
import math
import multiprocessing
import os
import re
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import BaseContext
from multiprocessing.reduction import ForkingPickler
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from common.errors import UserError
from common.options import Parser, within
from data.InterHand26M.InterHand26M import InterHand26M
from data.layouts import INTERHAND_JSONS
from tool.benchmarks.big_annotations import write_annotations

# Goals for 1 M annotations, each to stay below.
LIMITS = {"open_s": 2, "open_cold_s": 2, "open_MB": 300, "worker_fork_MB": 50, "worker_spawn_MB": 50}
WORKER_PATIENCE = 300  # seconds, to notice a worker that was killed
MB = 2**20


def main() -> int:
    args = parse_args()
    roots = [args.root] if args.root else [make_annotations(args.work, count) for count in args.counts]
    rows = [measure_store(root, args.work / "cache" / root.name, args.samples, args.workers) for root in roots]
    for row in rows:
        print(f"\n{int(row['annotations'])} annotations")
        for name, value in row.items():
            goal = f"   goal < {LIMITS[name]}{'' if value < LIMITS[name] else '   MISSED'}" if name in LIMITS else ""
            print(f"  {name:20s} {value:10.3f}{goal}")
    return 0 if all(row[name] < limit for row in rows for name, limit in LIMITS.items()) else 1


def make_annotations(work: Path, count: int) -> Path:
    """The folder of a made-up dataset, which is written unless it exists."""
    root = work / f"annotations_{count}"
    if not (root / INTERHAND_JSONS[0].format(split="train")).exists():
        write_annotations(root, count)
    return root


def measure_store(root: Path, cache: Path, samples: int, workers: int) -> dict[str, float]:
    """All measurements of one dataset, each in a fresh process, in s, MB, us and kB as their names end.

    Raises:
        UserError: this is not Linux, or the dataset cannot be read.
    """
    if not psutil.LINUX:
        raise UserError("the memory that processes share is measured on Linux only")
    row: dict[str, float] = {}
    for measure in (measure_build, measure_open_cold, measure_open, measure_workers):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
            row |= fresh.submit(measure, root, cache, samples, workers).result()
    return row


# ---- In fresh processes ----


def measure_build(root: Path, cache: Path, samples: int, workers: int) -> dict[str, float]:
    shutil.rmtree(cache, ignore_errors=True)
    before, start, start_cpu = _resident_memory(), time.perf_counter(), time.process_time()
    source = InterHand26M(root, "train", cache=cache)
    return {
        "annotations": len(source),
        "files_MB": _folder_size(root / "annotations" / "train"),
        "build_s": time.perf_counter() - start,
        "build_cpu_s": time.process_time() - start_cpu,
        "build_peak_MB": process_peak() - before,
        "cache_MB": _folder_size(cache),
    }


def measure_open_cold(root: Path, cache: Path, samples: int, workers: int) -> dict[str, float]:
    for path in cache.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return {"open_cold_s": measure_open(root, cache, samples, workers)["open_s"]}


def measure_open(root: Path, cache: Path, samples: int, workers: int) -> dict[str, float]:
    before, start = _resident_memory(), time.perf_counter()
    source = InterHand26M(root, "train", cache=cache)
    source.annotation(len(source) // 2)
    seconds = time.perf_counter() - start
    added = _resident_memory() - before
    for _ in range(2):
        start = time.perf_counter()
        _read_at_random(source, samples, seed=0)
        read = time.perf_counter() - start
    return {
        "open_s": seconds,
        "open_MB": added,
        "pickled_kB": len(ForkingPickler.dumps(source)) / 1024,
        "annotation_us": read / samples * 1e6,
    }


def measure_workers(root: Path, cache: Path, samples: int, workers: int) -> dict[str, float]:
    """The memory that loader workers add, forked and spawned."""
    found: dict[str, float] = {}
    for method in ("fork", "spawn"):
        # A fresh source each time: the first workers have made this process read pages of it.
        source = InterHand26M(root, "train", cache=cache)
        added = _run_workers(multiprocessing.get_context(method), source, samples, workers)
        found[f"worker_{method}_MB"] = max(total for total, _ in added)
        found[f"worker_{method}_own_MB"] = max(own for _, own in added)
    return found


def _run_workers(context: BaseContext, source: InterHand26M, samples: int, workers: int) -> list[tuple[float, float]]:
    """The private memory that each of the workers adds: all of it, and its own without unchanged file pages."""
    forked = context.get_start_method() == "fork"
    barrier, sent, results = context.Barrier(workers), context.SimpleQueue(), context.Queue()
    # A forked worker inherits the source, as in a loader; a spawned one is sent it.
    work = (source if forked else None, sent, samples, barrier, results)
    processes = [context.Process(target=_work, args=(seed, *work)) for seed in range(workers)]
    for process in processes:
        process.start()
    for _ in processes:
        if not forked:
            sent.put(source)
    added = [results.get(timeout=WORKER_PATIENCE) for _ in processes]
    for process in processes:
        process.join()
    return added


def _work(seed: int, source: InterHand26M | None, sent: Any, samples: int, barrier: Barrier, results: Any) -> None:
    """A loader worker. All measure at the same moments, because what is private depends on what the others hold."""
    barrier.wait()
    before = _private_memory()
    barrier.wait()
    _read_at_random(sent.get() if source is None else source, samples, seed)
    barrier.wait()
    after = _private_memory()
    barrier.wait()
    results.put((after[0] - before[0], after[1] - before[1]))


def _read_at_random(source: InterHand26M, samples: int, seed: int) -> None:
    for index in np.random.default_rng(seed).integers(len(source), size=samples).tolist():
        source.annotation(index)


def _resident_memory() -> float:
    """MB."""
    return psutil.Process().memory_info().rss / MB


def process_peak() -> float:
    """MiB. Neither psutil nor `ru_maxrss` tells it: that begins with the peak of the process that started this one."""
    match = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(match[1]) / 1024 if match else math.nan


def _private_memory() -> tuple[float, float]:
    """MB that this process shares with no other: all, and without unchanged file pages."""
    maps = psutil.Process().memory_maps()
    dirty = sum(part.private_dirty for part in maps)
    return (dirty + sum(part.private_clean for part in maps)) / MB, dirty / MB


def _folder_size(folder: Path) -> float:
    """MB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / MB


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--counts", type=int, nargs="+", default=[1_000_000], help="numbers of annotations to make (default: 1000000)"
    )
    what.add_argument("--root", type=Path, help="folder of a real InterHand26M dataset")
    parser.add_argument("--work", type=Path, required=True, help="folder for intermediate files; a few GB")
    parser.add_argument("--samples", type=int, default=5000, help="annotations that each worker reads (default: 5000)")
    parser.add_argument("--workers", type=within(int, 2), default=8, help="loader workers, at least 2 (default: 8)")
    return parser.parse_args()
