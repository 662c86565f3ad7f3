"""Images, model files, checkpoints and command lines with faults of every kind: the right result, or one line."""

import argparse
import io
import os
import pickle
import random
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.checkpoint import load_network, read_checkpoint, save_checkpoint
from common.devices import parse_devices
from common.errors import UserError, one_line
from common.nets.mano_files import read_hand_models, read_pickle
from common.options import ROOT
from common.utils.images import exif_orientation, has_alpha, image_size, load_image, load_photo
from data.store import fingerprint
from demo import demo
from demo.run import real_camera
from main import test as test_script
from main import train
from main.config import Config, config_to_dict
from main.options import config_of_checkpoint, read_config
from main.resume import Progress, ResumePoint, read_resume_point, restore, save_progress
from tests.faults.corrupt import (
    CHECKPOINT_FAULTS,
    HARMLESS_FAULTS,
    ODD_VALUES,
    ODD_WORDS,
    PICKLE_BOMBS,
    bomb_pickle,
    claim_size,
    deflate,
    make_images,
    mutate_arguments,
    mutate_bytes,
    mutate_checkpoint,
    replace_content,
)
from tests.faults.fault_campaign import READERS, Tiny, tiny_training
from tool.toy import make_data
from tool.toy.standin_hand import write_standin


def fuzzed(examples: int):
    return settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )


RANDOMS = st.randoms(use_true_random=False)


def assert_clear(error: UserError) -> None:
    text = str(error)
    assert text and "\n" not in text and len(text) < 3000, text


# ---- Images ----

IMAGES = make_images()
PLAIN = "plain.png"


@pytest.mark.parametrize("name", IMAGES)
def test_images_of_every_kind(tmp_path, name):
    """8-bit RGB, the first frame, not turned; grey, palettes and depths as they look."""
    (tmp_path / name).write_bytes(IMAGES[name])
    (tmp_path / PLAIN).write_bytes(IMAGES[PLAIN])
    image, plain = load_image(tmp_path / name), load_image(tmp_path / PLAIN)
    assert image.shape == (40, 30, 3) and image.dtype == np.uint8
    grey = plain @ np.array([0.299, 0.587, 0.114])
    expected = plain.astype(float)
    if "grey" in name:
        expected = np.repeat(grey[..., None], 3, 2)
    elif "deep" in name:
        expected = np.repeat(plain[..., :1], 3, 2).astype(float)
    difference = np.abs(image - expected).mean()
    limit = {"jpg": 12, "webp": 12, "gif": 30}.get(name.split(".")[1], 30 if "palette" in name else 2)
    assert "bits" in name or difference < limit, difference


@given(rng=RANDOMS)
@fuzzed(150)
def test_broken_images(tmp_path, rng):
    name = rng.choice(sorted(IMAGES))
    path = tmp_path / name
    path.write_bytes(mutate_bytes(IMAGES[name], rng))
    try:
        image = load_image(path)
        assert image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8 and image.size
    except UserError as error:
        assert_clear(error)
        assert str(path) in str(error)


@pytest.mark.parametrize("size", [(65535, 65535), (2**31 - 1, 2), (0, 0), (2**31 - 1, 2**31 - 1)])
def test_images_that_claim_to_be_huge(tmp_path, size):
    path = tmp_path / "huge.png"
    path.write_bytes(claim_size(IMAGES[PLAIN], *size))
    with pytest.raises(UserError, match="cannot read .*huge.png"):
        load_image(path)


READERS = {**READERS, "photo": load_photo, "state of an input": fingerprint}


@pytest.mark.parametrize("kind", READERS)
def test_pipes_devices_and_folders_are_refused(tmp_path, kind):
    """Reading them might never end."""
    os.mkfifo(tmp_path / "a.png")
    for path in (tmp_path / "a.png", Path("/dev/zero"), *([tmp_path] if kind != "state of an input" else [])):
        with pytest.raises(UserError, match="a pipe or a device|is a folder|not an image") as caught:
            READERS[kind](path)
        assert_clear(caught.value)


def test_headers_of_what_is_not_a_file_tell_nothing(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for path in (tmp_path / "a.png", Path("/dev/zero"), tmp_path / "nul\0.png"):
        assert image_size(path) is None and not has_alpha(path) and exif_orientation(path) == 1


def test_paths_that_no_file_can_have(tmp_path):
    for path in (tmp_path / "nul\0.png", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="cannot read"):
            load_image(path)


# ---- MANO files ----


@pytest.fixture(scope="module")
def hands(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hands")
    write_standin(folder)
    return folder


@given(rng=RANDOMS)
@fuzzed(25)
def test_broken_hand_models(hands, tmp_path, rng):
    """Bytes changed, and arrays of another shape, type or content in a file that is whole."""
    right = hands / "MANO_RIGHT.pkl"
    for name in ("MANO_RIGHT.pkl", "MANO_LEFT.pkl"):
        (tmp_path / name).write_bytes((hands / name).read_bytes())
    if rng.random() < 0.4:
        (tmp_path / "MANO_RIGHT.pkl").write_bytes(mutate_bytes(right.read_bytes(), rng))
    else:
        content = read_pickle(right)
        key = rng.choice(sorted(content))
        value = content[key]
        changes = [*ODD_VALUES, np.zeros(0), np.ravel(value)[:1], np.asarray(value).astype("S4")]
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            changes += [value * np.nan, value.astype(complex), value[None], np.asfortranarray(value)]
        content[key] = changes[rng.randrange(len(changes))]
        (tmp_path / "MANO_RIGHT.pkl").write_bytes(pickle.dumps(content, protocol=2))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            models = read_hand_models(tmp_path)
        assert all(np.isfinite(model.v_template).all() and model.faces.max() < 778 for model in models)
        assert one_line(models[0].name) == models[0].name
    except UserError as error:
        assert_clear(error)


READ_BOMBS = """
import sys, time
from pathlib import Path
from common.checkpoint import read_checkpoint
from common.errors import UserError
from common.nets.mano_files import read_hand_models

for path in sorted(Path(sys.argv[1]).iterdir()):
    start = time.process_time()  # not the time that a busy machine takes
    try:
        (read_hand_models if path.is_dir() else read_checkpoint)(path)
        text = "no error"
    except UserError as error:
        text = str(error)
    assert text.count("\\n") == 0 and len(text) < 1000 and text != "no error", (path, text)
    assert time.process_time() - start < 10, path
# Not getrusage's peak: that one is inherited from a large parent.
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


def test_small_files_that_would_take_centuries_or_all_memory(whole, tmp_path):
    """Each as a hand model and as a checkpoint, in the new format and the old; in a process that may be killed."""
    for index, bomb in enumerate(PICKLE_BOMBS.values()):
        (tmp_path / str(index)).mkdir()
        for side in ("RIGHT", "LEFT"):
            (tmp_path / str(index) / f"MANO_{side}.pkl").write_bytes(bomb_pickle(bomb))
        data = replace_content(whole.read_bytes(), lambda _, bomb=bomb: bomb_pickle(bomb, "network"))
        (tmp_path / f"{index}.pth").write_bytes(data)
        start = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
        (tmp_path / f"{index}_old.pth").write_bytes(start + bomb_pickle(bomb, "network"))
    done = subprocess.run(
        [sys.executable, "-c", READ_BOMBS, tmp_path], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": os.fspath(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < 1_000_000  # kB, of which PyTorch takes half


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"K\x04K\x03\x86", b"K\x05K\x03\x86"),  # a row more than there is
        (b"K\x03K\x01\x86", b"K\xffK\x01\x86"),  # rows far apart
        (b"K\x0ctq", b"K\x0btq"),  # fewer numbers stored
    ],
)
def test_a_tensor_that_reaches_beyond_its_numbers_is_refused(whole, tmp_path, old, new):
    data = replace_content(whole.read_bytes(), lambda content: content.replace(old, new, 1))
    assert data != whole.read_bytes()
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(UserError, match="reaches beyond its numbers"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("value", [torch.zeros(1).expand(4, 3), torch.zeros(4, 3)[:, :1].expand(4, 3)])
def test_an_expanded_moment_is_refused(tmp_path, value):
    """One number in the file, twelve in the moment: written in place, they would be one."""
    path = save_progress(tmp_path, Progress(2, 5), tiny_training(), Config(), {})
    content = torch.load(path, weights_only=True)
    _state(content)[0].update(exp_avg=value)
    torch.save(content, path)
    with pytest.raises(UserError, match="numbers overlap"):
        read_resume_point(path)


def test_a_moment_in_another_memory_order_has_the_same_numbers(tmp_path):
    path = save_progress(tmp_path, Progress(2, 5), tiny_training(), Config(), {})
    content = torch.load(path, weights_only=True)
    expected = torch.arange(12.0).view(4, 3)
    _state(content)[0].update(exp_avg=expected.t().contiguous().t())
    torch.save(content, path)
    parts = tiny_training()
    restore(read_resume_point(path), parts)
    weight = parts.model.layer.weight
    found = parts.optimizer.state[weight]["exp_avg"]
    assert torch.equal(found, expected) and found.stride() == weight.stride()


def test_hand_models_of_two_kinds(hands, tmp_path):
    for name in ("MANO_RIGHT.pkl", "MANO_LEFT.pkl"):
        content = read_pickle(hands / name)
        if "LEFT" in name:
            content["kintree_table"] = np.array(content["kintree_table"])
            content["kintree_table"][0, 5] = 0
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(UserError, match="different joint trees"):
        read_hand_models(tmp_path)


# ---- Checkpoints ----


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "snapshot_3.pth"
    torch.manual_seed(0)
    save_checkpoint(path, Tiny(), epoch=3, config=config_to_dict(Config()))
    return path


def read_all(path: Path) -> None:
    """What test, demo and training do with a checkpoint."""
    content = read_checkpoint(path)
    config_of_checkpoint(content, path)
    load_network(Tiny(), content["network"], path)
    read_resume_point(path)


@pytest.mark.parametrize("name", CHECKPOINT_FAULTS)
@given(rng=RANDOMS)
@fuzzed(4)
def test_broken_checkpoints(whole, tmp_path, name, rng):
    """Every kind of fault: refused in one line; but for those that are none, nothing is loaded."""
    content = torch.load(whole, weights_only=True)
    changed = {**content, "network": dict(content["network"])}
    CHECKPOINT_FAULTS[name](changed, rng)
    path = tmp_path / "broken.pth"
    torch.save(changed, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            read_all(path)
            assert name in (*HARMLESS_FAULTS, "config value", "config")
        except UserError as error:
            assert_clear(error)


@given(rng=RANDOMS)
@fuzzed(60)
def test_checkpoints_with_broken_bytes(whole, tmp_path, rng):
    """What is loaded all the same has the whole file's numbers."""
    path = tmp_path / "broken.pth"
    path.write_bytes(mutate_bytes(whole.read_bytes(), rng))
    try:
        found = read_checkpoint(path)["network"]
    except UserError as error:
        assert_clear(error)
    else:
        expected = read_checkpoint(whole)["network"]
        assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_a_compressed_checkpoint_is_refused(whole, tmp_path):
    """It might unpack to any size."""
    (tmp_path / "a.pth").write_bytes(deflate(whole.read_bytes()))
    with pytest.raises(UserError, match="compressed"):
        read_checkpoint(tmp_path / "a.pth")


def test_the_state_of_a_training_survives_a_round_trip(tmp_path):
    parts, again = tiny_training(), tiny_training()
    path = save_progress(tmp_path, Progress(2, 5), parts, Config(), {})
    again.optimizer.state.clear()
    again.optimizer.param_groups[0]["betas"] = (0.9, 0.5)
    start = read_resume_point(path)
    restore(start, again)
    assert start.progress == (2, 5) and again.optimizer.param_groups[0]["betas"] == (0.9, 0.5)  # the program's own
    for weight, twin in zip(parts.model.parameters(), again.model.parameters(), strict=True):
        for name, value in parts.optimizer.state[weight].items():
            assert torch.equal(value, again.optimizer.state[twin][name])


def _state(content: dict) -> dict:
    return content["optimizer"]["state"]


TRAINING_FAULTS = {
    "moment of another shape": lambda c: _state(c)[0].update(exp_avg=torch.zeros(7)),
    "moment is a number": lambda c: _state(c)[0].update(exp_avg_sq=3.0),
    "moment is missing": lambda c: _state(c)[0].pop("exp_avg_sq"),
    "another optimiser's": lambda c: _state(c)[0].update(momentum_buffer=torch.zeros(4, 3)),
    "step is many": lambda c: _state(c)[0].update(step=torch.zeros(4)),
    "no optimiser": lambda c: c.update(optimizer=None),
    "optimiser is a list": lambda c: c.update(optimizer=[1, 2]),
    "groups are missing": lambda c: c["optimizer"].pop("param_groups"),
    "too many groups": lambda c: c["optimizer"]["param_groups"].append({"params": [99]}),
    "no random state": lambda c: c["training"].pop("random"),
    "random state of another kind": lambda c: c["training"]["random"].update(cpu=torch.zeros(3)),
    "random state of another size": lambda c: c["training"]["random"].update(cpu=torch.zeros(9, dtype=torch.uint8)),
    "random state is a tensor": lambda c: c["training"].update(random=torch.zeros(3)),
    "epoch before the first": lambda c: c["training"].update(epoch=-1),
    "step before the first": lambda c: c["training"].update(step=-5),
    "epoch is huge": lambda c: c["training"].update(epoch=10**30),
    "epoch is a text": lambda c: c["training"].update(epoch="3"),
    "epoch is a tensor": lambda c: c["training"].update(epoch=torch.zeros(3)),
    "epoch is missing": lambda c: c["training"].pop("epoch"),
}


@pytest.mark.parametrize("fault", TRAINING_FAULTS)
def test_a_training_state_that_does_not_fit_is_refused(tmp_path, fault):
    """Before the first step, not in it."""
    path = save_progress(tmp_path, Progress(2, 5), tiny_training(), Config(), {})
    content = torch.load(path, weights_only=True)
    TRAINING_FAULTS[fault](content)
    torch.save(content, path)
    with pytest.raises(UserError, match="training state|how long|before the start") as caught:
        start = read_resume_point(path)
        assert isinstance(start, ResumePoint)
        restore(start, tiny_training())
    assert_clear(caught.value)


# ---- Command lines ----


def options_of(parse) -> list[str]:
    """All options that a script's --help names."""
    text = io.StringIO()
    before, sys.stdout = sys.stdout, text
    try:
        parse()
    except SystemExit:
        pass
    finally:
        sys.stdout = before
    return sorted({word.strip("[],") for word in text.getvalue().split() if word.startswith(("--", "[--"))})


def train_arguments() -> None:
    args = train.parse_args()
    parse_devices(args.gpu)
    train.learning_rate(read_config(args), Progress(10**6, 0))


def arguments_of_test() -> None:
    parse_devices(test_script.parse_args().gpu)
    read_config(test_script.parse_args())


def demo_arguments() -> None:
    args = demo.parse_args()
    parse_devices(args.gpu)
    demo.name_outputs(demo.find_images(args.input))
    real_camera(args.focal, args.princpt, (10, 20))


COMMANDS = {
    "train": (train_arguments, "--gpu cpu --preset small --lr 1e-4 --lr_dec_epoch 4,6 --frames crop=64,64"),
    "test": (arguments_of_test, "--gpu cpu --test_epoch 6 --testset HIC --batch_size 4 --visualize 2"),
    "demo": (demo_arguments, "--gpu cpu --focal 1500 1400 --princpt 960 540 --batch_size 2 --min_confidence 0.5"),
    "make_toy_data": (make_data.parse_args, "--sets HIC,MSCOCO --train 5 --test 5 --seed 1 --scale 0.5"),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@given(rng=RANDOMS)
@fuzzed(60)
def test_broken_command_lines(command, rng):
    """Understood, or refused with exit code 2 or in one line: before any work."""
    run, line = COMMANDS[command]
    before = sys.argv, sys.stderr
    sys.argv = [command, "--help"]
    options = options_of(run)
    assert len(options) > 5
    sys.argv, sys.stderr = [command, *mutate_arguments(shlex.split(line), options, rng)], io.StringIO()
    try:
        run()
    except UserError as error:
        assert 0 < len(one_line(str(error))) < 3000
    except SystemExit as left:
        assert left.code in (0, 2)
    finally:
        sys.argv, sys.stderr = before


@pytest.mark.parametrize(
    "text", ["", " ", "3-1", "0,0", "-1", "0-", "0,,1", "0-9999", "cuda:0", "all", "0x1", "1e3", "0\n"]
)
def test_gpus_that_make_no_sense(text):  # fmt: skip
    if torch.cuda.is_available() and text in ("0,0", "0\n"):
        assert parse_devices(text) == [torch.device("cuda", 0)]
        return
    with pytest.raises(UserError, match="--gpu") as caught:
        parse_devices(text)
    assert len(str(caught.value)) < 300


CONFIGS = {
    '{"lr": NaN}': "lr cannot be nan",
    '{"lr": 1e400}': "lr cannot be inf",
    '{"lr": true}': "lr cannot be True",
    '{"lr": [1]}': "lr cannot be",
    '{"lr_dec_factor": 1e-300, "lr_dec_epoch": [1, 2]}': "learning rate",
    '{"lr_dec_factor": 1e300, "lr_dec_epoch": [1, 2]}': "lr_dec_factor cannot be 1e\\+300",
    '{"lr_dec_factor": 1e6, "lr_dec_epoch": [0' + ", 0" * 99 + "]}": "learning rate",
    '{"seed": 1e30}': "seed cannot be 1e\\+30",
    '{"train_batch_size": 0}': ">= 1",
    '{"frames": {"hand": [32, 32], "hand_hm": [1, 1]}}': "frames.hand.*multiple of 32|>= 64",
    '{"frames": {"pair_hm": [8, 8]}}': "frames.pair_hm.*>= 16",
    '{"frames": {"crop": [100000000, 4]}}': "<= 8192",
    '{"frames": {"pair_bins": 1000000000}}': "<= 1024",
    '{"frames": {"camera_depth_size": -1}}': "> 0",
    '{"frames": 5}': "frames cannot be 5: expected object",
    '{"augmentation": {"scale": 1.0}}': "< 1.0",
    '{"augmentation": {"color": 1e308}}': "<= 1.0",
    '{"augmentation": {"rot": -1e9}}': ">= -360",
    '{"trainset_3d": [[1]]}': "expected str, got list",
    '{"lrr": 1}': "did you mean lr",
    '{"": 1}': "unknown value",
    "[]": "must hold an object",
    "": "cannot read --config",
    "\ufeff{}": "cannot read --config|^$",
    "[" * 100_000: "cannot read --config",
    '{"seed": ' + "9" * 5000 + "}": "cannot read --config",
}


@pytest.mark.parametrize("text", CONFIGS, ids=lambda text: text[:30])
def test_configuration_files_that_make_no_sense(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    try:
        read_config(train.parse_args(["--config", str(path)]))
        error = ""
    except UserError as caught:
        assert_clear(caught)
        error = str(caught)
    assert re.search(CONFIGS[text], error), error
    for other in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(UserError, match="cannot read --config"):
            read_config(train.parse_args(["--config", str(other)]))


def test_numbers_that_are_not_pixels(monkeypatch, capsys):
    for words in (
        "--focal nan",
        "--focal 1e300",
        "--focal 5 --princpt nan 1",
        "--focal 5 --princpt inf 1",
        "--batch_size 9999999",
    ):
        monkeypatch.setattr(sys, "argv", ["demo.py", *words.split()])
        with pytest.raises(SystemExit) as left:
            demo.parse_args()
        assert left.value.code == 2 and "error: argument" in capsys.readouterr().err


def test_odd_words_are_odd():
    """The generators give what they are meant to: seeds that differ give files that differ."""
    assert len(set(ODD_WORDS)) == len(ODD_WORDS)
    content = {"network": {"a": torch.zeros(3), "b": torch.zeros(2)}, "config": config_to_dict(Config()), "epoch": 1}
    found = {mutate_checkpoint(content, random.Random(seed))[0] for seed in range(300)}
    assert found == set(CHECKPOINT_FAULTS)
    assert isinstance(train.parse_args([]), argparse.Namespace)
