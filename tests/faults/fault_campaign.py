"""Break everything that can be broken, with many seeds, and count what happens.

    python -m tests.faults.fault_campaign --output /tmp/faults
    python -m tests.faults.fault_campaign --output /tmp/faults --seeds 500 --what data,images,hands,checkpoints
    python -m tests.faults.fault_campaign --output /tmp/faults --seeds 5 --what commands,processes

    data          annotation files of all datasets with faults; every sample is made
    images        photos truncated, with bytes changed, of other kinds
    hands         MANO files with bytes or arrays changed
    wrong hands   MANO files of the other hand, of another model, or what a failed download leaves
    checkpoints   with bytes, tensors, names or numbers changed
    pickles       hand models and checkpoints whose few bytes would take all time or memory; opcodes changed
    resumes       the state of a training with odd values: epochs, optimizer, loss scaler, random state
    configs       configuration files and logs of losses with odd values
    kinds         pipes, devices and folders in the place of every kind of file
    archives      archives with bytes changed, and answers of a server
    stores        annotation caches with bytes changed
    names         file names that are not text, too long, or alike
    commands      the scripts, started with odd options and values
    processes     training, test, demo and toy data: signals, a full disk, little memory, a killed loader worker, two at
                  once; every seed is another moment

The rule: a correct result, or one line that says what is wrong and exit code 2; never a traceback, a hang, a partial
file, or a silent omission. `tests.faults.kill_test` is the campaign against the checkpoints of a training.

Works on a copy of the project in --output. Exit code: 0; 1 if the rule was broken, each time with the seed.
"""

import argparse
import io
import json
import math
import os
import pickle
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace
from torch import nn
from tqdm import tqdm

from common.checkpoint import load_network, read_checkpoint, save_checkpoint
from common.drawing.sheets import contact_sheet
from common.errors import UserError, one_line, run_main
from common.logger import TrainLog
from common.nets.mano_files import read_hand_models, read_pickle
from common.options import ROOT, Parser
from common.utils.augment import IDENTITY
from common.utils.files import make_folder, write_json
from common.utils.images import load_image, quiet_opencv
from data import download
from data.dataset import HandDataset
from data.layouts import Archive, is_test_capture
from data.reading import read_json, read_mesh
from data.ReInterHand.ReInterHand import read_image_size
from data.store import Store, StringColumn, open_store
from demo.demo import name_outputs
from demo.people import read_boxes
from main import train
from main.build import build_model, open_dataset
from main.config import Config, config_to_dict
from main.options import change_config, config_of_checkpoint, preset_config, read_config
from main.resume import Progress, TrainState, check_order, read_resume_point, restore, save_progress
from tests.faults import patience
from tests.faults.corrupt import (
    HARMLESS_FAULTS,
    ODD_VALUES,
    PICKLE_BOMBS,
    bomb_pickle,
    make_archives,
    make_images,
    mutate_arguments,
    mutate_bytes,
    mutate_checkpoint,
    mutate_json,
    mutate_value,
    replace_content,
)
from tool.published.comparison import load_npz
from tool.toy.standin_hand import write_standin
from tool.untrained import show_something

IN_PROCESS_S = 60  # until a function counts as hanging, on an idle machine
PATIENCE = 180  # seconds until a process counts as hanging, on an idle machine
CORRECT, REFUSED = "correct result", "one line"
TINY = ("crop=128,96", "body=64,64", "body_hm=16,16", "hand=64,64", "hand_hm=2,2", "pair_hm=16,16", "pair_bins=16")


LEFT_BY_DOWNLOADS = (
    *(b"", b"\0" * 4096, b"<!DOCTYPE html><html>Sign in</html>", b"PK\3\4" + b"\0" * 60, b"\x1f\x8b\x08" + b"\0" * 60),
    *(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n",
        b'{"error": 403}',
        b"%PDF-1.4\n",
        b"\xff" * 99,
    ),
)
# Before PyTorch 1.6: three pickles on the format come first.
OLD_CHECKPOINT = b"".join(pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))


class Broken(Exception):
    """The rule was broken."""


class Workspace:
    """A folder with a copy of the project, toy data, hand models, photos and a checkpoint of a small network."""

    def __init__(self, out: Path, scenarios: list[str]) -> None:
        self.out, self.scenarios = out, scenarios
        self.project, self.data, self.mano = out / "project", out / "data", out / "mano"
        self.photos, self.checkpoint = out / "photos", out / "snapshot_6.pth"
        self.images = make_images()

    def make(self) -> None:
        """Raises UserError if the folder exists."""
        if self.out.exists():
            raise UserError(f"{self.out} exists; name another folder with --output")
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
            (self.photos / name).write_bytes(self.images[name])
        frames = dict(pair.split("=") for pair in TINY)
        config = change_config(preset_config("small"), {"frames": frames}, "")
        torch.manual_seed(0)
        model = build_model(config, None)
        show_something(model)
        save_checkpoint(self.checkpoint, model, epoch=6, config=config_to_dict(config))
        order = {"global_batch": 1, "group_sizes": [[3]], "seed": 0}
        self.tiny = save_progress(self.out / "tiny", Progress(2, 5), tiny_training(), Config(), order)

    def words(self, line: str, out: Path) -> list[str]:
        """The words of a command line, placeholders replaced by paths."""
        paths = {"DATA": self.data, "MANO": self.mano, "CHECKPOINT": self.checkpoint, "PHOTOS": self.photos, "OUT": out}
        return [
            str(paths[head]) + slash + rest if head in paths else word
            for word in line.split()
            for head, slash, rest in [word.partition("/")]
        ]


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
    name, _, _, pattern = CASES[case]
    return sorted(path for path in (folder / name).glob(pattern) if not any(map(is_test_capture, path.parts)))


def break_file(path: Path, rng: random.Random) -> None:
    """Replace a whole file by a broken one."""
    data = path.read_bytes()
    path.write_bytes(mutate_json(json.loads(data), rng) if path.suffix == ".json" else mutate_bytes(data, rng))


def survey(folder: Path, case: str) -> tuple[list[str], int]:
    """Open a dataset and make every sample.

    Returns:
        The messages, and the number of samples (-1: refused as a whole). Anything but a UserError passes.

    Raises:
        Broken: a sample holds NaN.
    """
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


def _check_sample(dataset: HandDataset, index: int, split: str) -> None:
    sample = dataset.sample(index, IDENTITY) if split == "train" else dataset[index].sample
    numbers = [*(x for x in sample if isinstance(x, torch.Tensor)), *sample.mano, *sample.cameras]
    if not all(x.isfinite().all() for x in numbers if x.is_floating_point()):
        raise Broken(f"{sample.id} holds NaN or infinite numbers")


def check_line(text: str) -> None:
    """Raises Broken if a message is not one readable line."""
    if not text or len(one_line(text)) > 3000 or "Traceback" in text:
        raise Broken(f"no clear line: {text[:300]!r}")


def try_data(workspace: Workspace, seed: int) -> Iterator[tuple[str, str]]:
    """Each case with one broken file."""
    for case in CASES:
        rng = random.Random(f"{case} {seed}")
        path = rng.choice(files_of(workspace.data, case))
        whole = path.read_bytes()
        try:
            break_file(path, rng)
            messages, _ = survey(workspace.data, case)
        finally:
            path.write_bytes(whole)
        for message in messages:
            check_line(message)
        yield case, REFUSED if messages else CORRECT


# ---- Images, hand models, checkpoints ----


def try_images(workspace: Workspace, seed: int) -> Iterator[tuple[str, str]]:
    for name, data in workspace.images.items():
        path = workspace.out / "broken" / name
        path.write_bytes(mutate_bytes(data, random.Random(f"{name} {seed}")))
        try:
            image = load_image(path)
            if image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise Broken(f"{name} gave an image {image.shape}")
            yield name.split(".")[1], CORRECT
        except UserError as error:
            check_line(str(error))
            yield name.split(".")[1], REFUSED


def try_hands(workspace: Workspace, seed: int) -> Iterator[tuple[str, str]]:
    rng, folder, name = random.Random(seed), workspace.out / "broken", "MANO_RIGHT.pkl"
    shutil.copy(workspace.mano / "MANO_LEFT.pkl", folder)
    for kind in ("bytes", "arrays"):
        if kind == "bytes":
            data = mutate_bytes((workspace.mano / name).read_bytes(), rng)
        else:
            content = read_pickle(workspace.mano / name)
            key = rng.choice(sorted(content))
            value = np.asarray(content[key])
            content[key] = rng.choice([*ODD_VALUES, value.ravel()[:1], value.astype("S4"), value[None], value.T])
            data = pickle.dumps(content, protocol=2)
        (folder / name).write_bytes(data)
        try:
            models = read_hand_models(folder)
            if not all(np.isfinite(model.v_template).all() for model in models):
                raise Broken("a hand contains NaN")
            yield kind, CORRECT
        except UserError as error:
            check_line(str(error))
            yield kind, REFUSED


def try_checkpoints(workspace: Workspace, seed: int) -> Iterator[tuple[str, str]]:
    rng, path = random.Random(seed), workspace.out / "broken" / "broken.pth"
    whole = read_checkpoint(workspace.checkpoint)
    config = config_of_checkpoint(whole, workspace.checkpoint) or Config()
    for kind in ("bytes", "content"):
        name = "bytes"
        if kind == "bytes":
            path.write_bytes(mutate_bytes(workspace.checkpoint.read_bytes(), rng))
        else:
            name, content = mutate_checkpoint(torch.load(workspace.checkpoint, weights_only=True), rng)
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
            raise Broken(f"{name}: different numbers were loaded")
        yield name, CORRECT


def outcome(work: Callable[[], object]) -> str:
    """Whether a function succeeds or refuses in one line; any other exception passes.

    Raises:
        Broken: it takes longer than `IN_PROCESS_S`, see `patience`.
    """

    limit = math.ceil(patience(IN_PROCESS_S))

    def hang(number: int, frame: object) -> None:
        raise Broken(f"it takes more than {limit} s")

    signal.signal(signal.SIGALRM, hang)
    signal.alarm(limit)
    try:
        work()
        return CORRECT
    except UserError as error:
        check_line(str(error))
        return REFUSED
    finally:
        signal.alarm(0)


def refused(what: str, work: Callable[[], object]) -> tuple[str, str]:
    """Raises Broken if a function does not refuse."""
    if outcome(work) != REFUSED:
        raise Broken(f"{what} was accepted")
    return what, REFUSED


class Tiny(nn.Module):
    """Enough of a network for a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)


def tiny_training() -> TrainState:
    """After one step."""
    torch.manual_seed(0)
    model: Any = Tiny()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.norm(model.layer(torch.rand(5, 3))).square().sum().backward()
    optimizer.step()
    return TrainState(model, optimizer, torch.amp.GradScaler("cpu"))


def read_training(path: Path) -> None:
    """All that resuming does with a checkpoint."""
    content = read_checkpoint(path)
    config_of_checkpoint(content, path)
    resume = read_resume_point(path)
    check_order(resume, {"global_batch": 1, "group_sizes": [[3]], "seed": 0}, 10)
    restore(resume, tiny_training())


def try_wrong_hands(workspace: Workspace, seed: int) -> Iterator[tuple[str, str]]:
    rng, folder = random.Random(seed), workspace.out / "broken"
    right, left = ((workspace.mano / f"MANO_{side}.pkl").read_bytes() for side in ("RIGHT", "LEFT"))
    content = dict(read_pickle(workspace.mano / "MANO_RIGHT.pkl"))
    axis = rng.choice([1, 2])
    content["v_template"] = content["v_template"] * (1 - 2 * (np.arange(3) == axis)) if axis == 2 else (
        content["v_template"] + [0, rng.choice([-1, 1]) * rng.uniform(0.011, 1), 0]
    )  # fmt: skip
    faults = {
        "copied": rng.choice([(right, right), (left, left)]),
        "exchanged": (left, right),
        "another hand": (pickle.dumps(content), left),
        "failed download": rng.choice([(right, rng.choice(LEFT_BY_DOWNLOADS)), (rng.choice(LEFT_BY_DOWNLOADS), left)]),
        "cut short": (right[: rng.randrange(len(right))], left),
    }
    for what, files in faults.items():
        for side, data in zip(("RIGHT", "LEFT"), files, strict=True):
            (folder / f"MANO_{side}.pkl").write_bytes(data)
        yield refused(what, lambda: read_hand_models(folder))


def try_pickles(workspace: Workspace, seed: int) -> Iterator[tuple[str, str]]:
    rng, folder = random.Random(seed), workspace.out / "broken"
    path = folder / "bomb.pth"
    whole = workspace.tiny.read_bytes()
    name = rng.choice(list(PICKLE_BOMBS))
    bomb = bomb_pickle(PICKLE_BOMBS[name], rng.choice(["v_template", "shapedirs", "f", "x"]))
    for side in ("RIGHT", "LEFT"):
        (folder / f"MANO_{side}.pkl").write_bytes(bomb)
    yield refused("bomb in a hand model", lambda: read_hand_models(folder))
    bomb = bomb_pickle(PICKLE_BOMBS[name], rng.choice(["network", "optimizer", "training", "config", "epoch"]))
    path.write_bytes(replace_content(whole, lambda _: bomb))
    yield refused("bomb in a checkpoint", lambda: read_training(path))
    path.write_bytes(OLD_CHECKPOINT + bomb)
    yield refused("bomb in an old checkpoint", lambda: read_training(path))
    path.write_bytes(replace_content(whole, lambda content: mutate_bytes(content, rng)))
    yield "opcodes of a checkpoint", outcome(lambda: read_training(path))
    data = (workspace.mano / "MANO_RIGHT.pkl").read_bytes()
    head = rng.choice([200, 2000])
    (folder / "a.pkl").write_bytes(mutate_bytes(data[:head], rng) + data[head:])
    yield "opcodes of a hand model", outcome(lambda: read_pickle(folder / "a.pkl"))


def try_resumes(workspace: Workspace, seed: int) -> Iterator[tuple[str, str]]:
    path = workspace.out / "broken" / "resume.pth"
    for part in ("optimizer", "training", "scaler", "random", "all"):
        rng = random.Random(f"{part} {seed}")
        content = torch.load(workspace.tiny, weights_only=True)
        holder = content["training"] if part in ("scaler", "random") else content
        if part == "all":
            holder[rng.choice(list(holder))] = rng.choice(ODD_VALUES)
        else:
            inside = [holder[part]]
            mutate_value(inside, rng)
            holder[part] = inside[0]
        torch.save(content, path)
        yield part, outcome(lambda: read_training(path))


def try_configs(workspace: Workspace, seed: int) -> Iterator[tuple[str, str]]:
    rng, path = random.Random(seed), workspace.out / "broken" / "config.json"
    for _ in range(5):
        path.write_bytes(mutate_json(config_to_dict(Config()), rng))
        yield "configuration", outcome(lambda: read_config(train.parse_args(["--config", str(path)])))
    log = workspace.out / "broken" / "log"
    shutil.rmtree(log, ignore_errors=True)
    log.mkdir()
    lines = [json.dumps({"epoch": step // 5, "step": step % 5, "total": 0.5}) for step in range(10)]
    place = rng.choice(["losses.jsonl", "train.txt", "tensorboard", "line"])
    if place == "line":
        lines[rng.randrange(10)] = mutate_json({"epoch": 0, "step": 1}, rng).decode(errors="surrogateescape")
    (log / "losses.jsonl").write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    if place in ("losses.jsonl", "train.txt"):
        (log / place).write_bytes(mutate_bytes("\n".join(lines).encode(), rng))
    elif place == "tensorboard":
        (log / place).write_bytes(b"a file")
    yield f"log: {place}", outcome(lambda: TrainLog(log, (1, 0), 5).close())


READERS: dict[str, Callable[[Path], object]] = {
    "image": load_image,
    "hand model": read_pickle,
    "checkpoint": read_checkpoint,
    "configuration": lambda path: read_config(train.parse_args(["--config", str(path)])),
    "boxes": read_boxes,
    "annotations": lambda path: read_json(path, dict),
    "mesh": lambda path: read_mesh(path, 778),
    "recorded results": load_npz,
    "image's size": read_image_size,
}


def try_kinds(workspace: Workspace, seed: int) -> Iterator[tuple[str, str]]:
    """What is not the expected file: a pipe, a device, a folder, or a file of another kind."""
    rng, other = random.Random(seed), workspace.out / "broken" / "other"
    pipe = workspace.out / "broken" / "pipe"
    if not pipe.exists():
        os.mkfifo(pipe)
    wrong = [pipe, Path("/dev/zero"), Path("/dev/tty"), workspace.out, workspace.out / "nul\0"]
    others = [workspace.images["plain.png"], b"{}", workspace.tiny.read_bytes(), *LEFT_BY_DOWNLOADS]
    other.write_bytes(mutate_bytes(rng.choice(others), rng))
    for what, read in READERS.items():
        yield refused(f"{what}: not a file", partial(read, rng.choice(wrong)))
        yield f"{what}: another file", outcome(partial(read, other))


def try_archives(workspace: Workspace, seed: int) -> Iterator[tuple[str, str]]:
    rng, home = random.Random(seed), workspace.out / "broken" / "archives"
    for kind, whole in make_archives().items():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        part = home / ("some.tar.gz" if kind == "tar" else "01.zip")
        part.write_bytes(mutate_bytes(whole, rng))
        archive = Archive("some", (part.name,), "content", None)
        found = outcome(partial(download.unpack, [part], archive, home))
        if found == REFUSED and list((home / "content").glob("*")):
            raise Broken("a part of an archive stays")
        yield kind, found
    answer = mutate_bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 300\r\nContent-Type: x\r\n\r\n" + b"d" * 300, rng)
    with answering(answer) as url, tqdm(disable=True) as bar:
        target = home / "fetched"
        yield "size from a server", outcome(lambda: download.remote_size(url))
        yield "file from a server", outcome(lambda: download.fetch(url, target, "0" * 32, bar))
        yield "list from a server", outcome(lambda: download.read_checksums(download.fetch_text(url)))
        if target.exists():
            raise Broken("a file with a wrong checksum was kept")


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """The address of a server that gives every request this answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(OSError):
                        connection.settimeout(1)
                        connection.recv(65536)
                        connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/a"
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def try_stores(workspace: Workspace, seed: int) -> Iterator[tuple[str, str]]:
    """What opens has the whole store's columns; one of a column too large to be checked at once is found on demand."""
    folder = workspace.out / "broken" / "store"
    columns = {"ids": np.arange(100), "names": StringColumn.pack(map(str, range(100))), "large": np.arange(200_000)}
    whole = open_store(folder, "set_train", [], 1, lambda: columns)
    path = workspace.out / "broken" / "broken.npz"
    for number in range(5):
        rng = random.Random(f"{seed} {number}")
        path.write_bytes(mutate_bytes(Path(whole.path).read_bytes(), rng))

        def read() -> None:
            store = Store(str(path))
            store.check()
            if any(not np.array_equal(store[name], columns[name]) for name in ("ids", "large")):
                raise Broken("a damaged column was opened")

        yield "cache", outcome(read)


def try_names(workspace: Workspace, seed: int) -> Iterator[tuple[str, str]]:
    rng = random.Random(seed)
    pieces = [
        b"a",
        b"A",
        b"caf\xe9",
        b"\xff",
        "\u202e\U0001f590".encode(),
        b".",
        b"..",
        b" ",
        b"-",
        b"\n",
        b"x" * 240,
        b"_2",
    ]
    names = [os.fsdecode(b"".join(rng.choices(pieces, k=rng.choice([1, 1, 2, 3])))) for _ in range(12)]
    files = list(dict.fromkeys(
        Path(rng.choice(["/p", "/p/1", "/p/2", "/p/1/2", "/q"]), name + rng.choice([".jpg", ".png"])) for name in names
    ))  # fmt: skip
    outputs = list(name_outputs(files).values())
    if len(set(outputs)) < len(files) or any("/" in name for name in outputs):
        raise Broken(f"files that share their results: {outputs}")
    yield "names of results", CORRECT
    tile = np.zeros((20, 20, 3), np.uint8)
    contact_sheet([[tile]] * len(outputs), outputs, [""], height=20)
    yield "captions", CORRECT
    if not one_line("".join(names)).isprintable():
        raise Broken("a message holds control codes")
    yield "messages", CORRECT
    for name in outputs[:4]:
        yield "folders", outcome(partial(write_json, workspace.out / "broken" / f"{name}.json", {"name": name}))


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
    "tool/make_checkpoint.py": "--init random --output OUT/a.pth",
    "tool/look.py": "--set HIC --split test --data DATA --mano MANO --count 1 --output OUT/look.jpg",
    "tool/parity.py": "--golden DATA --mano MANO --snapshot CHECKPOINT --inputs none.npz --out OUT",
    "tool/doctor.py": "--data DATA",
}


def try_commands(workspace: Workspace, seed: int) -> Iterator[tuple[str, str]]:
    """Each script with a broken command line."""
    for script, line in COMMANDS.items():
        rng, out = random.Random(f"{script} {seed}"), workspace.out / "scratch" / "a" / "b" / "c"
        shutil.rmtree(workspace.out / "scratch", ignore_errors=True)
        out.mkdir(parents=True)
        words = workspace.words(line, out)
        options = [word for word in words if word.startswith("--")]
        words = mutate_arguments(words, options, rng)
        if any("\0" in word for word in words):
            continue
        done = run_script(workspace, script, words, cwd=out)
        yield (
            script,
            judge(done.returncode, done.stderr, (0, 1) if script in ("tool/parity.py", "tool/doctor.py") else (0,)),
        )


def run_script(workspace: Workspace, script: str, words: list[str], **more: Any) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(
            [sys.executable, str(workspace.project / script), *words],
            capture_output=True, text=True, errors="replace", timeout=patience(PATIENCE),
            stdin=subprocess.DEVNULL, **more,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Broken(f"{script} hangs: {words}") from None


def judge(code: int, messages: str, good: tuple[int, ...] = (0,)) -> str:
    """Raises Broken unless a script succeeded, or ended with exit code 2 and one line at the end of its messages."""
    if "Traceback" in messages or "Exception ignored" in messages:
        raise Broken(f"a traceback: ...{messages[-600:]}")
    if code in good:
        return CORRECT
    last = messages.strip().splitlines()[-1] if messages.strip() else ""
    if code != 2 or "error: " not in last:
        raise Broken(f"exit code {code} and at the end {last!r}")
    return REFUSED


# ---- Processes ----


class Running:
    """A running script, in its own process group; its messages go to a file."""

    def __init__(self, workspace: Workspace, script: str, line: str, out: Path, *more: str, **limits: int) -> None:
        def limit() -> None:
            for name, value in limits.items():
                resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))

        out.mkdir(parents=True, exist_ok=True)
        self.messages = out.parent / f"{out.name}.messages"
        words = [*workspace.words(line, out), *more]
        with open(self.messages, "wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, str(workspace.project / script), *words],
                stdout=file, stderr=file, start_new_session=True, preexec_fn=limit, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def wait_for(self, sign: Callable[[], bool]) -> bool:
        """Wait for the sign, or for the end of the process. Returns whether it still runs."""
        deadline = time.monotonic() + patience(PATIENCE)
        while self.process.poll() is None and not sign() and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.process.poll() is None

    def children(self) -> list[int]:
        """Process ids."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(pid) for task in tasks for pid in task.read_text().split()]

    def end(self, good: tuple[int, ...] = (0,), says: str = "") -> str:
        """Wait and judge. `says`: what an error message must contain."""
        try:
            code = self.process.wait(patience(PATIENCE))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise Broken("it hangs") from None
        messages = self.messages.read_text(errors="replace")
        found = judge(code, messages.replace("\r", "\n"), good)
        if found == REFUSED and says not in messages:
            raise Broken(f"another message than {says!r}: {messages[-300:]}")
        return found


def losses(out: Path) -> Callable[[], bool]:
    """Returns a sign: a training has made steps."""
    path = out / "log" / "losses.jsonl"
    return lambda: path.exists() and path.stat().st_size > 0


def check_files(out: Path, leftovers: bool = False) -> None:
    """Raises Broken if a file is incomplete or was left behind."""
    for path in out.rglob("*"):
        if path.name.endswith(".tmp") and not leftovers:
            raise Broken(f"left behind: {path}")
        if path.suffix == ".json":
            json.loads(path.read_bytes())


TRAINING = COMMANDS["main/train.py"] + " --save_every 1 --continue"


def train_signal(number: int, twice: bool = False) -> Callable[[Workspace, Path, random.Random], str]:
    """A training that receives a signal."""
    codes = {signal.SIGTERM: (0,), signal.SIGINT: (130,), signal.SIGHUP: (0,)}[number]

    def scenario(workspace: Workspace, out: Path, rng: random.Random) -> str:
        run = Running(workspace, "main/train.py", TRAINING, out, "--end_epoch", "50")
        run.wait_for(losses(out))
        time.sleep(rng.uniform(0, 0.5))
        run.process.send_signal(number)
        if twice:
            time.sleep(rng.uniform(0, 0.05))
            run.process.send_signal(number)
        run.end((*codes, 130) if twice else codes)
        steps = len((out / "log" / "losses.jsonl").read_text().splitlines())
        again = Running(workspace, "main/train.py", TRAINING, out, "--end_epoch", str(steps // 2 + 2))
        return again.end()

    return scenario


def train_worker_killed(workspace: Workspace, out: Path, rng: random.Random) -> str:
    run = Running(workspace, "main/train.py", TRAINING, out, "--end_epoch", "50", "--workers", "1")
    if not run.wait_for(losses(out)):
        raise Broken("it ended before its worker was killed")
    time.sleep(rng.uniform(0, 0.5))
    kill_children(run)
    return run.end((), "a loader worker was killed")


def kill_children(run: Running) -> None:
    for pid in run.children():
        if "--multiprocessing-fork" not in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGKILL)


def train_twice(workspace: Workspace, out: Path, rng: random.Random) -> str:
    first = Running(workspace, "main/train.py", TRAINING, out, "--end_epoch", "50")
    first.wait_for(losses(out))
    second = run_script(workspace, "main/train.py", workspace.words(TRAINING, out))
    first.process.send_signal(signal.SIGTERM)
    first.end((0,))
    if judge(second.returncode, second.stderr) != REFUSED or "another training" not in second.stderr:
        raise Broken("the second was not refused")
    return REFUSED


def little_memory(script: str, line: str) -> Callable[[Workspace, Path, random.Random], str]:
    def scenario(workspace: Workspace, out: Path, rng: random.Random) -> str:
        # The libraries alone take most of this address space; with less they abort the process themselves.
        limit = rng.randrange(*MEMORY_LIMITS)
        run = Running(workspace, script, line, out, AS=limit)
        found = run.end((0,), "")
        check_files(out)
        return found

    return scenario


def test_worker_killed(workspace: Workspace, out: Path, rng: random.Random) -> str:
    line = COMMANDS["main/test.py"].replace("--testset HIC --workers 0", "--testset MSCOCO --workers 1 --batch_size 1")
    run = Running(workspace, "main/test.py", line, out)
    if not run.wait_for(lambda: bool(run.children())):
        raise Broken("it ended before it had a worker")
    time.sleep(rng.uniform(0, 0.1))
    kill_children(run)
    found = run.end((0,), "a loader worker was killed")
    if found == REFUSED and list(out.glob("result/*")):
        raise Broken("results of a part of the samples")
    return found


def disk_full(script: str, line: str) -> Callable[[Workspace, Path, random.Random], str]:
    def scenario(workspace: Workspace, out: Path, rng: random.Random) -> str:
        run = Running(workspace, script, line, out, FSIZE=rng.choice([20_000, 50_000]))
        found = run.end((0,), "large" if script != "demo/demo.py" else "could not be done")
        check_files(out)
        return found

    return scenario


def ended(script: str, line: str, number: int, code: int) -> Callable[[Workspace, Path, random.Random], str]:
    """A script that receives a signal at any moment leaves complete files and nothing half-written."""

    def scenario(workspace: Workspace, out: Path, rng: random.Random) -> str:
        run = Running(workspace, script, line, out)
        time.sleep(rng.uniform(0.3, 6))
        run.process.send_signal(number)
        run.end((0, code, -number))  # -number: while Python itself was starting
        check_files(out)
        return CORRECT

    return scenario


def together(script: str, line: str) -> Callable[[Workspace, Path, random.Random], str]:
    """Two at once in one folder: both succeed, or one is refused."""

    def scenario(workspace: Workspace, out: Path, rng: random.Random) -> str:
        first = Running(workspace, script, line, out)
        time.sleep(rng.uniform(0, 2))
        more = Running.__new__(Running)
        more.messages = out.parent / f"{out.name}.second"
        with open(more.messages, "wb") as file:
            more.process = subprocess.Popen(
                [sys.executable, str(workspace.project / script), *workspace.words(line, out)],
                stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip
        results = {first.end(), more.end()}
        if CORRECT not in results:
            raise Broken("neither succeeded")
        check_files(out)
        return REFUSED if REFUSED in results else CORRECT

    return scenario


def reader_gone(workspace: Workspace, out: Path, rng: random.Random) -> str:
    """`demo.py --help | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    script = rng.choice(list(COMMANDS))
    command = [sys.executable, str(workspace.project / script), "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=patience(PATIENCE))
    os.close(writing)
    if "Traceback" in done.stderr:
        raise Broken(done.stderr[-300:])
    return CORRECT


MEMORY_LIMITS = (1_500_000_000, 6_000_000_000)  # bytes of address space
TEST, DEMO = COMMANDS["main/test.py"], COMMANDS["demo/demo.py"]
TOY = COMMANDS["tool/make_toy_data.py"]
SCENARIOS: dict[str, Callable[[Workspace, Path, random.Random], str]] = {
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


def try_processes(workspace: Workspace, seed: int) -> Iterator[tuple[str, str]]:
    """Each scenario at another moment."""
    for name, scenario in SCENARIOS.items():
        if workspace.scenarios and not any(part in name for part in workspace.scenarios):
            continue
        out = workspace.out / "scratch" / "out"
        shutil.rmtree(out.parent, ignore_errors=True)
        try:
            yield name, scenario(workspace, out, random.Random(f"{name} {seed}"))
        except Broken as error:
            raise Broken(f"{name}: {error}") from None


# ---- The campaign ----

TRIALS: dict[str, Callable[[Workspace, int], Iterator[tuple[str, str]]]] = {
    "data": try_data,
    "images": try_images,
    "hands": try_hands,
    "checkpoints": try_checkpoints,
    "wrong hands": try_wrong_hands,
    "pickles": try_pickles,
    "resumes": try_resumes,
    "configs": try_configs,
    "kinds": try_kinds,
    "archives": try_archives,
    "stores": try_stores,
    "names": try_names,
    "commands": try_commands,
    "processes": try_processes,
}


def run_trial(workspace: Workspace, name: str, seeds: range) -> tuple[Counter, list[str]]:
    """All seeds of one kind of trial: the number of each (what, outcome), and what broke the rule."""
    counts: Counter = Counter()
    broken: list[str] = []
    for seed in tqdm(seeds, desc=name, unit="seed", dynamic_ncols=True):
        try:
            # What the readers print would bury the table.
            with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                warnings.simplefilter("error")
                counts.update(TRIALS[name](workspace, seed))
        except Exception as error:  # any exception breaks the rule
            broken.append(f"{name}, seed {seed}: {type(error).__name__}: {one_line(str(error))[:700]}")
    return counts, broken


def main() -> int:
    args = parse_args()
    names = args.what.replace("pictures", "images").split(",")  # its former name
    if unknown := [name for name in names if name not in TRIALS]:
        raise UserError(f"--what: there is no {unknown[0]!r}; there are: {', '.join(TRIALS)}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, also by what is started here
    quiet_opencv()
    download.WAIT_S, download.TIMEOUT_S = 0, 2  # of a server on this machine
    sys.stdout.flush()
    workspace = Workspace(args.output.absolute(), args.scenarios.split(",") if args.scenarios else [])
    workspace.make()
    found, broken = {}, []
    for name in names:
        begun = time.monotonic()
        counts, more = run_trial(workspace, name, range(args.first, args.first + args.seeds))
        found[name] = counts
        broken += more
        print(f"\n{name}: {counts.total()} tried in {time.monotonic() - begun:.0f} s, rule broken {len(more)} times")
        print_table(counts)
    print(f"\n{sum(counts.total() for counts in found.values())} faults, the rule was broken {len(broken)} times")
    print("\n".join(broken))
    return 1 if broken else 0


def print_table(counts: Counter) -> None:
    print(f"    {'':34}{CORRECT:>14}{REFUSED:>14}")
    for what in dict.fromkeys(what for what, _ in sorted(counts)):
        print(f"    {what:34}{counts[what, CORRECT]:14}{counts[what, REFUSED]:14}")


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__, {"--out": "--output"})
    parser.add_argument("--output", type=Path, required=True, help="a new folder; needs about 1 GB")
    parser.add_argument("--seeds", type=int, default=20, help="of each kind (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--what", default=",".join(TRIALS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--scenarios", help="of `processes`: parts of their names, comma-separated (default: all)")
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)
