"""Break everything that can be broken, with many seeds, and count what happens.

    python tests/faults/fault_campaign.py --out /tmp/faults
    python tests/faults/fault_campaign.py --out /tmp/faults --seeds 500 --what data,pictures,hands,checkpoints
    python tests/faults/fault_campaign.py --out /tmp/faults --seeds 5 --what commands,processes

    data          annotation files of all datasets with faults; every sample is made
    pictures      photos cut short, with bytes changed, of other kinds
    hands         MANO files with bytes or arrays changed
    checkpoints   with bytes, tensors, names or numbers changed
    commands      the scripts, started with odd options and values
    processes     training, test, demo and toy data: signals, a full disk, little memory, a killed loader worker, two at
                  once; every seed is another moment

The rule: a right result, or one line that says what is wrong and exit code 2; never a traceback, a hang, a part of a
file, or something left out in silence. `tests/faults/kill_test.py` is the campaign against checkpoints of a training.

Works on a copy of the project in --out. Exit code: 0; 1 if the rule was broken, each time with the seed.
"""

import argparse
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from common.errors import UserError, one_line, run_main  # noqa: E402
from tests.faults.corrupt import (  # noqa: E402
    HARMLESS_FAULTS,
    ODD_VALUES,
    make_pictures,
    mutate_arguments,
    mutate_bytes,
    mutate_checkpoint,
    mutate_json,
)

if TYPE_CHECKING:
    from data.dataset import HandDataset

PATIENCE = 180  # seconds until a process counts as hanging
RIGHT, REFUSED = "right result", "one line"
TINY = ("crop=128,96", "body=64,64", "body_hm=16,16", "hand=64,64", "hand_hm=2,2", "pair_hm=16,16", "pair_bins=16")


class Broken(Exception):
    """The rule was broken."""


# ---- Annotations ----

# Dataset, split, values of the configuration; and the files that are broken, by pattern.
CASES: dict[str, tuple[str, str, dict[str, str], str]] = {
    "InterHand26M": ("InterHand26M", "train", {}, "annotations/train/*.json"),
    "MSCOCO train": ("MSCOCO", "train", {}, "annotations/*train*.json"),
    "MSCOCO test": ("MSCOCO", "test", {}, "annotations/*val*.json"),
    "HIC": ("HIC", "test", {}, "data/HIC.json"),
    "HIC meshes": ("HIC", "test", {}, "data/**/*.ply"),
    "ReInterHand": ("ReInterHand", "train", {}, "data/m--*/[mo]*/**/*.json"),
    "ReInterHand cameras": ("ReInterHand", "train", {}, "data/m--*/Mugsy_cameras/*.json"),
    "ReInterHand Ego": ("ReInterHand", "train", {"cam_mode": "Ego_cameras"}, "data/m--*/Ego_cameras/**/*.json"),
    "ReInterHand frames": ("ReInterHand", "train", {"cam_mode": "Ego_cameras"}, "data/m--*/frame_list.txt"),
}


def files_of(folder: Path, case: str) -> list[Path]:
    """The files that a case breaks."""
    from data.layouts import is_test_capture

    name, _, _, pattern = CASES[case]
    return sorted(path for path in (folder / name).glob(pattern) if not any(map(is_test_capture, path.parts)))


def break_file(path: Path, rng: random.Random) -> None:
    """Replace a whole file by a broken one."""
    data = path.read_bytes()
    path.write_bytes(mutate_json(json.loads(data), rng) if path.suffix == ".json" else mutate_bytes(data, rng))


def survey(folder: Path, case: str) -> tuple[list[str], int]:
    """Open a dataset and make every sample.

    Returns:
        The messages, and how many samples there are (-1: it was refused as a whole). Whatever is not a UserError comes
        through.

    Raises:
        Broken: a sample holds NaN.
    """
    from msgspec.structs import replace

    from main.build import open_dataset
    from main.config import Config

    name, split, changes, _ = CASES[case]
    shutil.rmtree(folder / name / "cache", ignore_errors=True)
    messages: list[str] = []
    try:
        dataset = open_dataset(name, split, replace(Config(), **changes), folder)
    except UserError as error:
        return [str(error)], -1
    for index in range(len(dataset)):
        try:
            _check_sample(dataset, index, split)
        except UserError as error:
            messages.append(str(error))
    return messages, len(dataset)


def _check_sample(dataset: "HandDataset", index: int, split: str) -> None:
    import torch

    from common.utils.augment import IDENTITY

    sample = dataset.sample(index, IDENTITY) if split == "train" else dataset[index].sample
    numbers = [*(x for x in sample if isinstance(x, torch.Tensor)), *sample.mano, *sample.cameras]
    if not all(x.isfinite().all() for x in numbers if x.is_floating_point()):
        raise Broken(f"{sample.id} holds NaN or infinite numbers")


def check_line(text: str) -> None:
    """Raises Broken if a message is not what a user can read in a line."""
    if not text or len(one_line(text)) > 3000 or "Traceback" in text:
        raise Broken(f"no clear line: {text[:300]!r}")


def try_data(place: "Workspace", seed: int) -> Iterator[tuple[str, str]]:
    """Each case with one broken file."""
    for case in CASES:
        rng = random.Random(f"{case} {seed}")
        path = rng.choice(files_of(place.data, case))
        whole = path.read_bytes()
        try:
            break_file(path, rng)
            messages, _ = survey(place.data, case)
        finally:
            path.write_bytes(whole)
        for message in messages:
            check_line(message)
        yield case, REFUSED if messages else RIGHT


# ---- Pictures, hand models, checkpoints ----


def try_pictures(place: "Workspace", seed: int) -> Iterator[tuple[str, str]]:
    from common.utils.images import load_image

    for name, data in place.pictures.items():
        path = place.out / "broken" / name
        path.write_bytes(mutate_bytes(data, random.Random(f"{name} {seed}")))
        try:
            image = load_image(path)
            if image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise Broken(f"{name} gave an image {image.shape}")
            yield name.split(".")[1], RIGHT
        except UserError as error:
            check_line(str(error))
            yield name.split(".")[1], REFUSED


def try_hands(place: "Workspace", seed: int) -> Iterator[tuple[str, str]]:
    import numpy as np

    from common.nets.mano_files import read_hand_models, read_pickle

    rng, folder, name = random.Random(seed), place.out / "broken", "MANO_RIGHT.pkl"
    shutil.copy(place.mano / "MANO_LEFT.pkl", folder)
    for kind in ("bytes", "arrays"):
        if kind == "bytes":
            data = mutate_bytes((place.mano / name).read_bytes(), rng)
        else:
            content = read_pickle(place.mano / name)
            key = rng.choice(sorted(content))
            value = np.asarray(content[key])
            content[key] = rng.choice([*ODD_VALUES, value.ravel()[:1], value.astype("S4"), value[None], value.T])
            data = pickle.dumps(content, protocol=2)
        (folder / name).write_bytes(data)
        try:
            models = read_hand_models(folder)
            if not all(np.isfinite(model.v_template).all() for model in models):
                raise Broken("a hand with NaN in it")
            yield kind, RIGHT
        except UserError as error:
            check_line(str(error))
            yield kind, REFUSED


def try_checkpoints(place: "Workspace", seed: int) -> Iterator[tuple[str, str]]:
    import torch

    from common.checkpoint import load_network, read_checkpoint
    from main.build import build_model
    from main.config import Config
    from main.options import config_of_checkpoint
    from main.resume import read_resume_point

    rng, path = random.Random(seed), place.out / "broken" / "broken.pth"
    whole = read_checkpoint(place.checkpoint)
    config = config_of_checkpoint(whole, place.checkpoint) or Config()
    for kind in ("bytes", "content"):
        name = "bytes"
        if kind == "bytes":
            path.write_bytes(mutate_bytes(place.checkpoint.read_bytes(), rng))
        else:
            name, content = mutate_checkpoint(torch.load(place.checkpoint, weights_only=True), rng)
            torch.save(content, path)
        try:
            content = read_checkpoint(path)
            if (config_of_checkpoint(content, path) or Config()) == config:
                load_network(build_model(config, None), content["network"], path)
            read_resume_point(path)
        except UserError as error:
            check_line(str(error))
            yield name, REFUSED
            continue
        harmless = name in (*HARMLESS_FAULTS, "config", "config value")
        if not harmless and any(not torch.equal(x, content["network"][key]) for key, x in whole["network"].items()):
            raise Broken(f"{name}: other numbers were loaded")
        yield name, RIGHT


# ---- Command lines ----

SMALL = (
    "--gpu cpu --preset small --init random --trainset_3d InterHand26M --end_epoch 1 --train_batch_size 2 --workers 0"
)
COMMANDS: dict[str, str] = {
    "main/train.py": f"{SMALL} --data DATA --mano MANO --output OUT --visualize_every 0 --frames {' '.join(TINY)}",
    "main/test.py": "--gpu cpu --checkpoint CHECKPOINT --data DATA --mano MANO --output OUT --testset HIC --workers 0",
    "demo/demo.py": "--gpu cpu --checkpoint CHECKPOINT --mano MANO --input PHOTOS --output OUT --batch_size 2",
    "tool/make_toy_data.py": "--out OUT --sets HIC --train 1 --test 1 --scale 0.25 --mano MANO --seed 3",
    "tool/make_standin_hand.py": "--out OUT",
    "tool/make_checkpoint.py": "--init random --out OUT/a.pth",
    "tool/look.py": "--set HIC --split test --data DATA --mano MANO --count 1 --out OUT/look.jpg",
    "tool/parity.py": "--golden DATA --mano MANO --snapshot CHECKPOINT --inputs none.npz --out OUT",
    "tool/doctor.py": "--data DATA",
}


def try_commands(place: "Workspace", seed: int) -> Iterator[tuple[str, str]]:
    """Each script with a broken command line."""
    for script, line in COMMANDS.items():
        rng, out = random.Random(f"{script} {seed}"), place.out / "scratch" / "a" / "b" / "c"
        shutil.rmtree(place.out / "scratch", ignore_errors=True)
        out.mkdir(parents=True)
        words = place.words(line, out)
        options = [word for word in words if word.startswith("--")]
        words = mutate_arguments(words, options, rng)
        if any("\0" in word for word in words):
            continue
        done = run_script(place, script, words, cwd=out)
        yield (
            script,
            judge(done.returncode, done.stderr, (0, 1) if script in ("tool/parity.py", "tool/doctor.py") else (0,)),
        )


def run_script(place: "Workspace", script: str, words: list[str], **more: Any) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(
            [sys.executable, str(place.project / script), *words],
            capture_output=True, text=True, errors="replace", timeout=PATIENCE, stdin=subprocess.DEVNULL, **more,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Broken(f"{script} hangs: {words}") from None


def judge(code: int, messages: str, good: tuple[int, ...] = (0,)) -> str:
    """Raises Broken unless a script ended well, or with exit code 2 and a line at the end of its messages."""
    if "Traceback" in messages or "Exception ignored" in messages:
        raise Broken(f"a traceback: ...{messages[-600:]}")
    if code in good:
        return RIGHT
    last = messages.strip().splitlines()[-1] if messages.strip() else ""
    if code != 2 or "error: " not in last:
        raise Broken(f"exit code {code} and at the end {last!r}")
    return REFUSED


# ---- Processes ----


class Running:
    """A script that runs, in a process group of its own; its messages go to a file."""

    def __init__(self, place: "Workspace", script: str, line: str, out: Path, *more: str, **limits: int) -> None:
        def limit() -> None:
            for name, value in limits.items():
                resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))

        out.mkdir(parents=True, exist_ok=True)
        self.messages = out.parent / f"{out.name}.messages"
        words = [*place.words(line, out), *more]
        with open(self.messages, "wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, str(place.project / script), *words],
                stdout=file, stderr=file, start_new_session=True, preexec_fn=limit, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def wait_for(self, sign: Callable[[], bool]) -> bool:
        """Until the sign is seen, or the process has ended; whether it still runs."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None and not sign() and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.process.poll() is None

    def children(self) -> list[int]:
        """Process ids."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(pid) for task in tasks for pid in task.read_text().split()]

    def end(self, good: tuple[int, ...] = (0,), says: str = "") -> str:
        """Wait and judge. `says`: what the message must hold if it is an error."""
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise Broken("it hangs") from None
        messages = self.messages.read_text(errors="replace")
        found = judge(code, messages.replace("\r", "\n"), good)
        if found == REFUSED and says not in messages:
            raise Broken(f"another message than {says!r}: {messages[-300:]}")
        return found


def losses(out: Path) -> Callable[[], bool]:
    """A sign: a training has made steps."""
    path = out / "log" / "losses.jsonl"
    return lambda: path.exists() and path.stat().st_size > 0


def check_files(out: Path, leftovers: bool = False) -> None:
    """Raises Broken if a file is there in part."""
    for path in out.rglob("*"):
        if path.name.endswith(".tmp") and not leftovers:
            raise Broken(f"left behind: {path}")
        if path.suffix == ".json":
            json.loads(path.read_bytes())


TRAINING = COMMANDS["main/train.py"] + " --save_every 1 --continue"


def train_signal(number: int, twice: bool = False) -> Callable[["Workspace", Path, random.Random], str]:
    """A training that is asked to end."""
    codes = {signal.SIGTERM: (0,), signal.SIGINT: (130,), signal.SIGHUP: (0,)}[number]

    def scenario(place: "Workspace", out: Path, rng: random.Random) -> str:
        run = Running(place, "main/train.py", TRAINING, out, "--end_epoch", "50")
        run.wait_for(losses(out))
        time.sleep(rng.uniform(0, 0.5))
        run.process.send_signal(number)
        if twice:
            time.sleep(rng.uniform(0, 0.05))
            run.process.send_signal(number)
        run.end((*codes, 130) if twice else codes)
        steps = len((out / "log" / "losses.jsonl").read_text().splitlines())
        again = Running(place, "main/train.py", TRAINING, out, "--end_epoch", str(steps // 2 + 2))
        return again.end()

    return scenario


def train_worker_killed(place: "Workspace", out: Path, rng: random.Random) -> str:
    run = Running(place, "main/train.py", TRAINING, out, "--end_epoch", "50", "--workers", "1")
    if not run.wait_for(losses(out)):
        raise Broken("it ended before its worker was killed")
    time.sleep(rng.uniform(0, 0.5))
    kill_children(run)
    return run.end((), "a loader worker was killed")


def kill_children(run: Running) -> None:
    for pid in run.children():
        if "--multiprocessing-fork" not in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGKILL)


def train_twice(place: "Workspace", out: Path, rng: random.Random) -> str:
    first = Running(place, "main/train.py", TRAINING, out, "--end_epoch", "50")
    first.wait_for(losses(out))
    second = run_script(place, "main/train.py", place.words(TRAINING, out))
    first.process.send_signal(signal.SIGTERM)
    first.end((0,))
    if judge(second.returncode, second.stderr) != REFUSED or "another training" not in second.stderr:
        raise Broken("the second was not refused")
    return REFUSED


def little_memory(script: str, line: str) -> Callable[["Workspace", Path, random.Random], str]:
    def scenario(place: "Workspace", out: Path, rng: random.Random) -> str:
        # The libraries alone take most of this as addresses; less than that, and they themselves end the process.
        limit = rng.randrange(*MEMORY_LIMITS)
        run = Running(place, script, line, out, AS=limit)
        found = run.end((0,), "")
        check_files(out)
        return found

    return scenario


def test_worker_killed(place: "Workspace", out: Path, rng: random.Random) -> str:
    line = COMMANDS["main/test.py"].replace("--testset HIC --workers 0", "--testset MSCOCO --workers 1 --batch_size 1")
    run = Running(place, "main/test.py", line, out)
    if not run.wait_for(lambda: bool(run.children())):
        raise Broken("it ended before it had a worker")
    time.sleep(rng.uniform(0, 0.1))
    kill_children(run)
    found = run.end((0,), "a loader worker was killed")
    if found == REFUSED and list(out.glob("result/*")):
        raise Broken("results of a part of the samples")
    return found


def disk_full(script: str, line: str) -> Callable[["Workspace", Path, random.Random], str]:
    def scenario(place: "Workspace", out: Path, rng: random.Random) -> str:
        run = Running(place, script, line, out, FSIZE=rng.choice([20_000, 50_000]))
        found = run.end((0,), "large" if script != "demo/demo.py" else "could not be done")
        check_files(out)
        return found

    return scenario


def ended(script: str, line: str, number: int, code: int) -> Callable[["Workspace", Path, random.Random], str]:
    """A script that is asked to end at any moment leaves whole files and nothing half-written."""

    def scenario(place: "Workspace", out: Path, rng: random.Random) -> str:
        run = Running(place, script, line, out)
        time.sleep(rng.uniform(0.3, 6))
        run.process.send_signal(number)
        run.end((0, code, -number))  # -number: while Python itself was starting
        check_files(out)
        return RIGHT

    return scenario


def together(script: str, line: str) -> Callable[["Workspace", Path, random.Random], str]:
    """Two at once in one folder: both right, or one refused."""

    def scenario(place: "Workspace", out: Path, rng: random.Random) -> str:
        first = Running(place, script, line, out)
        time.sleep(rng.uniform(0, 2))
        more = Running.__new__(Running)
        more.messages = out.parent / f"{out.name}.second"
        with open(more.messages, "wb") as file:
            more.process = subprocess.Popen(
                [sys.executable, str(place.project / script), *place.words(line, out)],
                stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip
        results = {first.end(), more.end()}
        if RIGHT not in results:
            raise Broken("neither did its work")
        check_files(out)
        return REFUSED if REFUSED in results else RIGHT

    return scenario


def reader_gone(place: "Workspace", out: Path, rng: random.Random) -> str:
    """`demo.py --help | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    script = rng.choice(list(COMMANDS))
    command = [sys.executable, str(place.project / script), "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=PATIENCE)
    os.close(writing)
    if "Traceback" in done.stderr:
        raise Broken(done.stderr[-300:])
    return RIGHT


MEMORY_LIMITS = (1_500_000_000, 6_000_000_000)  # bytes of addresses
TEST, DEMO = COMMANDS["main/test.py"], COMMANDS["demo/demo.py"]
TOY = COMMANDS["tool/make_toy_data.py"]
SCENARIOS: dict[str, Callable[["Workspace", Path, random.Random], str]] = {
    "train: SIGTERM": train_signal(signal.SIGTERM),
    "train: SIGTERM twice": train_signal(signal.SIGTERM, twice=True),
    "train: SIGINT": train_signal(signal.SIGINT),
    "train: SIGHUP": train_signal(signal.SIGHUP),
    "train: worker killed": train_worker_killed,
    "train: two at once": train_twice,
    "train: little memory": little_memory("main/train.py", TRAINING),
    "test: worker killed": test_worker_killed,
    "test: full disk": disk_full("main/test.py", TEST),
    "test: little memory": little_memory("main/test.py", TEST),
    "test: SIGTERM": ended("main/test.py", TEST, signal.SIGTERM, 143),
    "test: two at once": together("main/test.py", TEST),
    "demo: full disk": disk_full("demo/demo.py", DEMO),
    "demo: little memory": little_memory("demo/demo.py", DEMO),
    "demo: SIGTERM": ended("demo/demo.py", DEMO, signal.SIGTERM, 143),
    "demo: SIGINT": ended("demo/demo.py", DEMO, signal.SIGINT, 130),
    "demo: SIGHUP": ended("demo/demo.py", DEMO, signal.SIGHUP, 129),
    "demo: two at once": together("demo/demo.py", DEMO),
    "toy data: SIGTERM": ended("tool/make_toy_data.py", TOY, signal.SIGTERM, 143),
    "toy data: full disk": disk_full("tool/make_toy_data.py", TOY),
    "toy data: two at once": together("tool/make_toy_data.py", TOY),
    "any: reader gone": reader_gone,
}


def try_processes(place: "Workspace", seed: int) -> Iterator[tuple[str, str]]:
    """Each scenario at another moment."""
    for name, scenario in SCENARIOS.items():
        if place.scenarios and not any(part in name for part in place.scenarios):
            continue
        out = place.out / "scratch" / "out"
        shutil.rmtree(out.parent, ignore_errors=True)
        try:
            yield name, scenario(place, out, random.Random(f"{name} {seed}"))
        except Broken as error:
            raise Broken(f"{name}: {error}") from None


# ---- The campaign ----

TRIALS: dict[str, Callable[["Workspace", int], Iterator[tuple[str, str]]]] = {
    "data": try_data,
    "pictures": try_pictures,
    "hands": try_hands,
    "checkpoints": try_checkpoints,
    "commands": try_commands,
    "processes": try_processes,
}


class Workspace:
    """A folder with a copy of the project, toy data, hand models, photos and a checkpoint of a small network."""

    def __init__(self, out: Path, scenarios: list[str]) -> None:
        self.out, self.scenarios = out, scenarios
        self.project, self.data, self.mano = out / "project", out / "data", out / "mano"
        self.photos, self.checkpoint = out / "photos", out / "snapshot_6.pth"
        self.pictures = make_pictures()

    def make(self) -> None:
        """Raises UserError if the folder is there."""
        import torch

        from common.checkpoint import save_checkpoint
        from common.utils.files import make_folder
        from main.build import build_model
        from main.config import config_to_dict
        from main.options import change_config, preset_config
        from tool.toy.standin_hand import write_standin
        from tool.untrained import show_something

        if self.out.exists():
            raise UserError(f"{self.out} exists; name another folder with --out")
        for folder in (self.mano, self.photos, self.out / "broken"):
            make_folder(folder)
        unwanted = shutil.ignore_patterns(".*", "*.pth", "__pycache__", "tests", "output", "annotations", "images")
        shutil.copytree(ROOT, self.project, ignore=unwanted)
        write_standin(self.mano)
        toy = ["--out", self.data, "--mano", self.mano, "--train", "4", "--test", "3", "--scale", "0.25"]
        done = run_script(self, "tool/make_toy_data.py", list(map(str, toy)))
        if done.returncode:
            raise UserError(f"the toy data could not be made: {done.stderr.strip()[-300:]}")
        for name in ("plain.jpg", "plain.png", "grey.jpg", "moving.gif"):
            (self.photos / name).write_bytes(self.pictures[name])
        frames = dict(pair.split("=") for pair in TINY)
        config = change_config(preset_config("small"), {"frames": frames}, "")
        torch.manual_seed(0)
        model = build_model(config, None)
        show_something(model)
        save_checkpoint(self.checkpoint, model, epoch=6, config=config_to_dict(config))

    def words(self, line: str, out: Path) -> list[str]:
        """A command line with its paths put in."""
        paths = {"DATA": self.data, "MANO": self.mano, "CHECKPOINT": self.checkpoint, "PHOTOS": self.photos, "OUT": out}
        return [
            str(paths[head]) + slash + rest if head in paths else word
            for word in line.split()
            for head, slash, rest in [word.partition("/")]
        ]


def run_trial(place: Workspace, name: str, seeds: range) -> tuple[Counter, list[str]]:
    """All seeds of one kind of trial: (what, outcome) -> how often; and what broke the rule."""
    from tqdm import tqdm

    counts: Counter = Counter()
    broken: list[str] = []
    for seed in tqdm(seeds, desc=name, unit="seed", dynamic_ncols=True):
        try:
            # What the readers print on their way would bury the table.
            with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
                warnings.simplefilter("error")
                counts.update(TRIALS[name](place, seed))
        except Exception as error:  # whatever comes through is what is looked for
            broken.append(f"{name}, seed {seed}: {type(error).__name__}: {one_line(str(error))[:700]}")
    return counts, broken


def main() -> int:
    args = parse_args()
    names = args.what.split(",")
    if unknown := [name for name in names if name not in TRIALS]:
        raise UserError(f"--what: there is no {unknown[0]!r}; there are: {', '.join(TRIALS)}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from common.utils.images import quiet_opencv

    quiet_opencv()
    sys.stdout.flush()
    place = Workspace(args.out.absolute(), args.scenarios.split(",") if args.scenarios else [])
    place.make()
    found, broken = {}, []
    for name in names:
        begun = time.monotonic()
        counts, more = run_trial(place, name, range(args.first, args.first + args.seeds))
        found[name] = counts
        broken += more
        print(f"\n{name}: {counts.total()} tried in {time.monotonic() - begun:.0f} s, rule broken {len(more)} times")
        print_table(counts)
    print(f"\n{sum(counts.total() for counts in found.values())} faults, the rule was broken {len(broken)} times")
    print("\n".join(broken))
    return 1 if broken else 0


def print_table(counts: Counter) -> None:
    print(f"    {'':28}{RIGHT:>14}{REFUSED:>14}")
    for what in dict.fromkeys(what for what, _ in sorted(counts)):
        print(f"    {what:28}{counts[what, RIGHT]:14}{counts[what, REFUSED]:14}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new folder; needs about 1 GB")
    parser.add_argument("--seeds", type=int, default=20, help="of each kind (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--what", default=",".join(TRIALS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--scenarios", help="of `processes`: parts of their names, comma-separated (default: all)")
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)
