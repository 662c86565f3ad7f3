"""Prove that a training which is killed and resumed ends bit-identical to an uninterrupted one.

    python -m tests.faults.kill_test --output /tmp/kill
    python -m tests.faults.kill_test --output /tmp/kill --kills 5 --processes 2 --workers 2

Makes a little toy data and the stand-in hand, and trains a small network on the CPU: once undisturbed, and once in
each of these ways, resumed after each interruption with --continue:

    kill     SIGKILL at random moments: while starting, in a step, and in the middle of writing a checkpoint
    stop     SIGTERM at random moments; each time the training must save and exit cleanly
    group    the same from `timeout`, which signals the training, and then its whole process group
    full     no room for a checkpoint (a limit on the size of files): exit code 2, the older ones must stay
    child    with --processes 2: SIGKILL for one of the two at random moments; the other must end with it, exit code 2

After each of them nothing that the training started may be left running. Then losses and checkpoints must be equal,
bit for bit: network, optimizer, scaler, random state, configuration and every other entry. Exit code: 0 if they are,
1 if not.
"""

import argparse
import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError, run_main
from common.options import ROOT, Parser
from common.utils.files import make_folder
from tests.faults import patience
from tool.toy.standin_hand import write_standin

LONGEST_RUN = 900  # seconds, on an idle machine
SMALL_FILES = 32 << 20  # bytes: room for logs, not for a checkpoint
MISSING = object()
NAMED = 5  # differing entries in a message, per snapshot
ALL_WAYS = ("kill", "stop", "group", "full", "child")
FAREWELL = 60.0  # seconds, on an idle machine, within which all that a killed training started must end


def main() -> int:
    args = parse_args()
    prepare(args.output)
    print("undisturbed ...", flush=True)
    expected = args.output / "undisturbed"
    begun = time.monotonic()
    check(finish(start(args, expected)), 0, "the undisturbed training")
    print(f"undisturbed: {time.monotonic() - begun:.0f} s", flush=True)
    ways = {"kill": kill_often, "stop": stop_often, "group": stop_group, "full": fill_disk, "child": kill_children}
    different = []
    for way in args.ways:
        ways[way](args, args.output / way)
        check(finish(start(args, args.output / way)), 0, "the last resumption")
        differences = compare(expected, args.output / way)
        print(f"{way}: {'; '.join(differences) or 'bit-identical to undisturbed'}", flush=True)
        different += differences
    return 1 if different else 0


def prepare(out: Path) -> None:
    """Toy data and hand models."""
    for name in ("undisturbed", *ALL_WAYS):
        if (out / name).exists():
            raise UserError(f"{out / name} exists; name another folder with --output")
    make_folder(out / "mano")
    write_standin(out / "mano")
    command = [sys.executable, ROOT / "tool" / "make_toy_data.py", "--out", out / "data", "--mano", out / "mano"]
    command += ["--sets", "InterHand26M,MSCOCO", "--train", "12", "--test", "1", "--scale", "0.3"]
    subprocess.run(list(map(str, command)), check=True, stderr=subprocess.DEVNULL)


def start(
    args: argparse.Namespace, output: Path, file_limit: int | None = None, in_timeout: bool = False
) -> subprocess.Popen:
    """Start, or resume, a training in a process group of its own; or `timeout`, which starts it."""
    output.mkdir(parents=True, exist_ok=True)
    command = ["timeout", str(patience(2 * LONGEST_RUN))] if in_timeout else []
    command += [sys.executable, ROOT / "main" / "train.py", "--continue", "--gpu", "cpu", "--preset", "small"]
    command += ["--init", "random", "--data", args.output / "data", "--mano", args.output / "mano", "--output", output]
    command += ["--trainset_3d", "InterHand26M", "--end_epoch", args.epochs, "--save_every", "1"]
    command += ["--visualize_every", "0", "--train_batch_size", 4 // args.processes]
    command += ["--processes", args.processes, "--workers", args.workers]
    limit = None if file_limit is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    with open(output / "messages.txt", "ab") as messages:
        return subprocess.Popen(
            list(map(str, command)), stderr=messages, stdout=messages, start_new_session=True, preexec_fn=limit
        )


def finish(process: subprocess.Popen) -> int:
    """Wait for the exit code. Raises UserError if it takes too long."""
    try:
        return process.wait(patience(LONGEST_RUN))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise UserError("a training takes too long; see messages.txt in its folder") from None


def check(code: int, expected: int, what: str) -> None:
    if code != expected:
        raise UserError(f"{what} ended with exit code {code}, not {expected}; see messages.txt in its folder")


def strike(
    args: argparse.Namespace,
    output: Path,
    number: int,
    rng: random.Random,
    moment: str,
    child: bool = False,
    in_timeout: bool = False,
) -> int:
    """Start a training and send it a signal at a random moment; its exit code.

    Args:
        child: the signal goes to one of the processes that share the training.
        in_timeout: the signal goes to `timeout`, which passes it on.

    Raises:
        UserError: it ended before.
    """
    process = start(args, output, in_timeout=in_timeout)
    if moment != "starting":
        wait_until(process, signs(output)[moment])
    deadline = time.monotonic() + rng.uniform(0, {"starting": 6.0, "step": 3.0, "saving": 0.4}[moment])
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    if process.poll() is not None:
        check(process.returncode, 0, "a training that received no signal")
        raise UserError("the training was complete before its last interruption; give it more --epochs")
    # Only to it, or to one of its children: the rest of the group must end by itself.
    os.kill(rng.choice(children(process.pid)) if child else process.pid, number)
    code = finish(process)
    nothing_left(process.pid)
    return code


def children(pid: int) -> list[int]:
    """The processes that share a training."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()] or [pid]


def nothing_left(group: int) -> None:
    """Raises UserError if processes of a group keep running."""
    deadline = time.monotonic() + patience(FAREWELL)
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    raise UserError(f"long after a training has ended, processes that it started are still running (group {group})")


def signs(output: Path) -> dict[str, Callable[[], bool]]:
    """How to tell from outside what a training is doing."""
    losses, dump = output / "log" / "losses.jsonl", output / "model_dump"
    before = losses.stat().st_mtime_ns if losses.exists() else 0
    return {
        "step": lambda: losses.exists() and losses.stat().st_mtime_ns != before,
        "saving": lambda: any(dump.glob(".*.tmp")) and losses.stat().st_mtime_ns != before,
    }


def wait_until(process: subprocess.Popen, sign: Callable[[], bool]) -> None:
    while process.poll() is None and not sign():
        time.sleep(0.005)


def kill_often(args: argparse.Namespace, output: Path) -> None:
    rng, struck = random.Random(args.seed), {"starting": 0, "step": 0, "saving": 0}
    left_behind = 0
    for _ in range(args.kills):
        moment = rng.choice(["starting", "step", "saving", "saving"])
        strike(args, output, signal.SIGKILL, rng, moment)
        struck[moment] += 1
        left_behind += any((output / "model_dump").glob(".*.tmp"))
    print(f"kill: killed {sum(struck.values())} times {struck}, {left_behind} of them within a save", flush=True)


def stop_often(args: argparse.Namespace, output: Path, in_timeout: bool = False) -> None:
    rng, times = random.Random(args.seed), max(1, args.kills // 4)
    for _ in range(times):
        code = strike(args, output, signal.SIGTERM, rng, "step", in_timeout=in_timeout)
        check(code, 0, "a training stopped by SIGTERM")
    print(f"{output.name}: stopped {times} times", flush=True)


def stop_group(args: argparse.Namespace, output: Path) -> None:
    stop_often(args, output, in_timeout=True)


def kill_children(args: argparse.Namespace, output: Path) -> None:
    rng, times = random.Random(args.seed), max(1, args.kills // 2)
    for _ in range(times):
        code = strike(args, output, signal.SIGKILL, rng, rng.choice(["step", "saving"]), child=True)
        check(code, 2, "a training of which one process was killed")
    message = (output / "messages.txt").read_text().strip().splitlines()[-1]
    print(f"child: one of two processes killed {times} times; exit code 2, and it says:\n    {message}", flush=True)


def fill_disk(args: argparse.Namespace, output: Path) -> None:
    strike(args, output, signal.SIGTERM, random.Random(args.seed), "step")
    before = hashes(output)
    code = finish(start(args, output, SMALL_FILES))
    check(code, 2, "a training without room for a checkpoint")
    if hashes(output) != before or not before:
        raise UserError(f"without room, the checkpoints in {output} were not left as they were")
    message = (output / "messages.txt").read_text().strip().splitlines()[-1]
    print(f"full: exit code 2, {len(before)} older checkpoints stay, and it says:\n    {message}", flush=True)


def hashes(output: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(output.glob("model_dump/*"))}


def compare(expected: Path, found: Path, ignored: Collection[str] = ()) -> list[str]:
    """What differs between two trainings, in the losses and in any entry of the snapshots that is not `ignored`."""
    differences = []
    losses = [folder / "log" / "losses.jsonl" for folder in (expected, found)]
    if losses[0].read_bytes() != losses[1].read_bytes():
        differences.append("losses differ")
    names = [sorted(path.name for path in folder.glob("model_dump/snapshot_*.pth")) for folder in (expected, found)]
    if names[0] != names[1] or not names[0]:
        differences.append(f"snapshots are {names[1]}, not {names[0]}")
    for name in sorted(set(names[0]) & set(names[1])):
        a, b = (
            flatten(torch.load(folder / "model_dump" / name, weights_only=True, mmap=True))
            for folder in (expected, found)
        )
        keys = (a.keys() | b.keys()) - set(ignored)
        unequal = sorted(key for key in keys if not equal(a.get(key, MISSING), b.get(key, MISSING)))
        if unequal:
            more = f" and {len(unequal) - NAMED} more" if len(unequal) > NAMED else ""
            differences.append(f"{name}: of {len(a)} entries differ: {', '.join(unequal[:NAMED])}{more}")
    return differences


def flatten(content: Any, name: str = "") -> dict[str, Any]:
    """The tensors, numbers and texts of nested dictionaries and lists, by the way to them."""
    if not isinstance(content, Mapping | list | tuple):
        return {name: content}
    items = content.items() if isinstance(content, Mapping) else enumerate(content)
    flat: dict[str, Any] = {f"{name} ({type(content).__name__})": len(content)}
    for key, value in items:
        flat |= flatten(value, f"{name}/{key}")
    return flat


def equal(a: Any, b: Any) -> bool:
    """Bit for bit: NaN equals itself, and the type counts."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same_kind = a.dtype == b.dtype and a.shape == b.shape
        return same_kind and a.numpy().tobytes() == b.numpy().tobytes()
    return type(a) is type(b) and repr(a) == repr(b)


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__, {"--out": "--output"})
    parser.add_argument("--output", type=Path, required=True, help="a new folder; needs about 10 GB")
    parser.add_argument("--kills", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=20, help="of 6 steps (default: %(default)s)")
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1, help="of each training (default: 1)")
    parser.add_argument("--workers", type=int, default=0, help="loader workers of each process (default: 0)")
    parser.add_argument("--ways", help="comma-separated (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (default: 0)")
    args = parser.parse_args()
    possible = ALL_WAYS if args.processes > 1 else ALL_WAYS[:-1]
    args.ways = args.ways.split(",") if args.ways else possible
    for way in args.ways:
        if way not in possible:
            parser.error(f"--ways: there is no {way!r}; there are: {', '.join(possible)}")
    return args


if __name__ == "__main__":
    run_main(main)
