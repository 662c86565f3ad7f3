"""Training: the same result however it is shared out or interrupted, and faults that end it well."""

import argparse
import copy
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from common.criterion import InterWildLoss
from common.devices import parse_devices
from common.distributed import ProcessInfo, StopSignal
from common.drawing.samples import draw_sheet
from common.drawing.sheets import LINE, MARGIN, fit
from common.errors import UserError
from common.logger import TrainLog
from common.targets import build_images
from common.types import Prediction, Sample
from main import train as program
from main.build import build_model
from main.config import PRESETS, Config, config_to_dict
from main.options import FIELDS, change_config, config_of_checkpoint, read_config
from main.resume import (
    Progress,
    TrainState,
    check_order,
    describe_changes,
    latest_valid_checkpoint,
    list_snapshots,
    load_optimizer,
    load_scaler,
    read_resume_point,
)
from tests.faults import patience
from tests.faults.kill_test import compare
from tool.toy import make_data
from tool.toy.standin_hand import write_standin

ROOT = Path(__file__).resolve().parent.parent
PROCESS = ProcessInfo(0, 1, 0, torch.device("cpu"))
# Smaller than the small preset: here the time goes into reading and writing checkpoints.
TINY = ("crop=128,96", "body=64,64", "body_hm=16,16", "hand=64,64", "hand_hm=2,2", "pair_hm=16,16", "pair_bins=16")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in the same order as in the processes that the tests start, and no waiting for busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 samples of two datasets, and hand models."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "mano").mkdir()
    write_standin(folder / "mano")
    argv = ["make_toy_data.py", "--out", str(folder / "data"), "--mano", str(folder / "mano")]
    argv += ["--sets", "InterHand26M,MSCOCO", "--train", "4", "--test", "1", "--scale", "0.25"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv)
        make_data.main()
    return folder


def options(toy: Path, output: Path, *more: str) -> list[str]:
    """A training of 2 epochs with 4 steps each, unless `more` says otherwise."""
    return [
        *("--gpu", "cpu", "--preset", "small", "--init", "random", "--trainset_3d", "InterHand26M"),
        *("--data", str(toy / "data"), "--mano", str(toy / "mano"), "--output", str(output)),
        *("--train_batch_size", "2", "--end_epoch", "2", "--workers", "0", "--visualize_every", "0"),
        *("--box_channels", "16", "--frames", *TINY),
        *more,
    ]


def run(toy: Path, output: Path, *more: str) -> int:
    """Train in this process."""
    return program.train(program.parse_args(options(toy, output, *more)), PROCESS)


def first_step(args: argparse.Namespace, config: Config) -> tuple[TrainState, Sample]:
    """A new training, and the samples of its first step."""
    _, loader = program.build_data(args, PROCESS, config)
    state, _ = program.build_state(args, PROCESS, config)
    sample, _ = next(program.timed_batches(loader, PROCESS.device))
    return state, sample


def stop_before(monkeypatch: pytest.MonkeyPatch, epoch: int, step: int) -> None:
    """As if SIGTERM came in a step."""
    reduce_and_check = program.reduce_and_check

    def stopping(
        result: object, criterion: object, process: ProcessInfo, stop: StopSignal, at: Progress, *more: object
    ):
        if at == (epoch, step):
            stop.number = signal.SIGTERM
        return reduce_and_check(result, criterion, process, stop, at, *more)

    monkeypatch.setattr(program, "reduce_and_check", stopping)


@pytest.fixture(scope="module")
def undisturbed(one_thread: None, toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a training that nothing happened to, with a checkpoint in the middle of its second epoch."""
    output = tmp_path_factory.mktemp("undisturbed")
    assert run(toy, output, "--save_every", "3", "--visualize_every", "4") == 0
    return output


@pytest.fixture
def middle(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of `undisturbed` as it was in the middle of its second epoch."""
    (tmp_path / "model_dump").mkdir()
    for name in ("snapshot_0.pth", "step_1_3.pth"):
        os.link(undisturbed / "model_dump" / name, tmp_path / "model_dump" / name)
    return tmp_path


def flip_byte(path: Path) -> None:
    """Replace a file by one with a byte of its largest part changed."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


# ---- Interrupted and continued ----


def test_writes_what_it_promises(undisturbed: Path) -> None:
    """Snapshots that demo and test can read, a line of losses a step, the text log, a sheet of samples."""
    content = torch.load(undisturbed / "model_dump" / "snapshot_1.pth", weights_only=True)
    assert content["epoch"] == 1 and {"network", "optimizer", "config"} <= content.keys()
    assert all(key.startswith("module.") for key in content["network"])
    lines = [json.loads(line) for line in (undisturbed / "log" / "losses.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in lines] == [(epoch, step) for epoch in (0, 1) for step in range(4)]
    terms = [value for key, value in lines[0].items() if key not in ("epoch", "step", "lr", "total", "gradient_norm")]
    assert lines[0]["total"] == pytest.approx(sum(terms))
    assert "done: 2 epochs" in (undisturbed / "log" / "train.txt").read_text()
    assert sorted(path.name for path in (undisturbed / "vis").iterdir()) == ["0_000000.jpg", "1_000000.jpg"]


def test_stopped_within_an_epoch_and_continued_is_the_same(
    toy: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: losses, weights, batch norm statistics and optimiser, with a loader worker instead of none."""
    with monkeypatch.context() as patch:
        stop_before(patch, 0, 1)
        assert run(toy, tmp_path) == 0
    assert [at for at, _ in list_snapshots(tmp_path / "model_dump")] == [(0, 2)]
    assert run(toy, tmp_path, "--continue", "--workers", "1") == 0
    assert compare(undisturbed, tmp_path, ignored=["/config/num_thread"]) == []
    assert "differ" not in (tmp_path / "log" / "train.txt").read_text()


def test_options_that_change_the_result_are_named(middle: Path) -> None:
    """The checkpoint holds them; of one that is older only the configuration is known."""
    resume = read_resume_point(middle / "model_dump" / "step_1_3.pth")
    options = {**resume.training["options"], "channels_last": True}
    config = replace(resume.config, lr=0.5, num_thread=9)
    told = "the result will differ from an uninterrupted run: "
    assert describe_changes(resume, config, options) == told + "channels_last was False, is True, lr was 0.001, is 0.5"
    assert describe_changes(resume, resume.config, resume.training["options"]) is None
    resume.training = {}
    assert describe_changes(resume, config, options) == told + "lr was 0.001, is 0.5"


def test_losses_of_steps_after_the_checkpoint_are_taken_back(toy: Path, undisturbed: Path, middle: Path) -> None:
    """As after a kill: the log knows more steps than the checkpoint, and ends within a line."""
    shutil.copytree(undisturbed / "log", middle / "log")
    with open(middle / "log" / "losses.jsonl", "a") as file:
        file.write('{"epoch": 2, "st')
    assert run(toy, middle, "--continue") == 0
    assert compare(undisturbed, middle) == []


@pytest.mark.parametrize("damage", [flip_byte, lambda path: os.truncate(path, path.stat().st_size // 2)])
def test_damaged_newest_checkpoint_is_named_and_the_one_before_used(
    undisturbed: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """A changed byte as well as a cut file."""
    for name in ("snapshot_0.pth", "step_1_3.pth"):
        shutil.copy(undisturbed / "model_dump" / name, tmp_path / name)
    damage(tmp_path / "step_1_3.pth")
    told: list[str] = []
    assert latest_valid_checkpoint(tmp_path, told.append) == tmp_path / "snapshot_0.pth"
    assert len(told) == 1 and "step_1_3.pth is damaged" in told[0]
    os.truncate(tmp_path / "snapshot_0.pth", 1000)
    with pytest.raises(UserError, match="no checkpoint in .* can be read"):
        latest_valid_checkpoint(tmp_path, told.append)


def test_other_training_is_not_overwritten_by_mistake(toy: Path, middle: Path) -> None:
    """Checkpoints are removed only with --overwrite."""
    with pytest.raises(UserError, match="--continue.*--overwrite"):
        run(toy, middle)
    assert len(list_snapshots(middle / "model_dump")) == 2


def test_restarted_by_torchrun_it_resumes(
    toy: Path, undisturbed: Path, middle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun gives the same options once more, --overwrite among them, which would throw away all the work."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    shutil.copytree(undisturbed / "log", middle / "log")
    assert run(toy, middle, "--overwrite") == 0
    assert compare(undisturbed, middle) == []


def test_other_order_of_the_data_within_an_epoch_is_refused(toy: Path, middle: Path) -> None:
    """With another batch size the checkpoint's step would be another place in the data."""
    with pytest.raises(UserError, match="global_batch was 2, is 4"):
        run(toy, middle, "--continue", "--train_batch_size", "4")
    start = read_resume_point(middle / "model_dump" / "snapshot_0.pth")
    check_order(start, {"global_batch": 4}, 2)  # between epochs it is fine


def test_second_training_in_a_folder_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    """Also gone by SIGKILL: nothing stale is left."""
    code = "import sys, time; from pathlib import Path; from common.utils.files import exclusive\n"
    code += "with exclusive(Path(sys.argv[1], '.lock'), ''): print('held', flush=True); time.sleep(60)"
    args, process = program.parse_args(["--output", str(tmp_path)]), ProcessInfo(0, 1, 0, torch.device("cpu"))
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="another training runs in"), program.open_output(args, process):
            pass
        other.kill()
    with program.open_output(args, process):
        pass


# ---- Devices ----


def test_on_the_cpu_no_cuda_call_is_made(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that others use, or that hangs, does not concern --gpu cpu: starting CUDA takes memory there, or waits.

    PyTorch's optimizers themselves ask whether there is a GPU, which does not start CUDA.
    """

    def refuse(*_: object) -> None:
        raise AssertionError("this starts CUDA")

    def refuse_ours() -> bool:
        caller = sys._getframe(1).f_globals["__name__"]
        assert caller.startswith("torch."), f"{caller} asks for CUDA"
        return False

    for name in ("init", "_lazy_init", "get_rng_state", "set_rng_state", "current_device", "device_count"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    monkeypatch.setattr(torch.cuda, "is_available", refuse_ours)
    assert parse_devices("cpu") == [torch.device("cpu")]
    assert run(toy, tmp_path, "--end_epoch", "1") == 0
    assert run(toy, tmp_path, "--end_epoch", "2", "--continue") == 0


def test_a_driver_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML still finds the GPUs; PyTorch says why it cannot use them only in a warning."""

    def is_available() -> bool:
        warnings.warn(
            "CUDA initialization: The NVIDIA driver on your system is too old (found version 1).\nMore", stacklevel=1
        )
        return False

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    for text in (None, "0"):
        with pytest.raises(
            UserError, match="driver on your system is too old .*; --gpu cpu works everywhere"
        ) as caught:
            parse_devices(text)
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert parse_devices(None) == parse_devices("0-1") == [torch.device("cuda", 0), torch.device("cuda", 1)]


# ---- The optimizer's state, exchanged with the published system ----


def rebuild(toy: Path, output: Path, *more: str) -> tuple[TrainState, str | None]:
    """What --continue sets up before its first step, and what it reports."""
    args = program.parse_args(options(toy, output, "--continue", *more))
    with program.open_output(args, PROCESS) as resume:
        config = read_config(args, resume.config)
        sampler, _ = program.build_data(args, PROCESS, config)
        return program.build_state(args, PROCESS, config, resume, sampler)


def adam_of(model: torch.nn.Module, saved: dict | None = None, **settings: object) -> torch.optim.Adam:
    """Adam as the published system has it: of all parameters, in their order."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, **settings)
    if saved is not None:
        optimizer.load_state_dict(saved)
    return optimizer


def take_steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, count: int, seed: int) -> None:
    """Steps with random gradients for the weights that are trained."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for weight in model.parameters():
            weight.grad = torch.randn(weight.shape, generator=generator) if weight.requires_grad else None
        optimizer.step()


def write_published(folder: Path, model: torch.nn.Module, optimizer: dict) -> None:
    """snapshot_5.pth with the published three entries, the names from DataParallel."""
    network = {f"module.{key}": value for key, value in model.state_dict().items()}
    (folder / "model_dump").mkdir(parents=True)
    torch.save({"epoch": 5, "network": network, "optimizer": optimizer}, folder / "model_dump" / "snapshot_5.pth")


def test_optimizer_holds_the_parameters_of_the_published_one(undisturbed: Path) -> None:
    """All 417 in the published order, the three of the unused stem among them, which have no state."""
    with torch.device("meta"):
        model = build_model(Config(), None)
    shapes = json.loads((ROOT / "tests" / "golden" / "state_dict_shapes.json").read_text())
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    published = [key.removeprefix("module.") for key in shapes if not key.endswith(buffers)]
    assert [name for name, _ in model.named_parameters()] == published and len(published) == 417

    saved = torch.load(undisturbed / "model_dump" / "snapshot_1.pth", weights_only=True)
    keys = [key.removeprefix("module.") for key in saved["network"] if not key.endswith(buffers)]
    (group,) = saved["optimizer"]["param_groups"]
    assert group["params"] == list(range(len(keys)))
    stateless = [keys[index] for index in group["params"] if index not in saved["optimizer"]["state"]]
    assert stateless == [f"hand_trans_net.backbone.{name}" for name in ("conv1.weight", "bn1.weight", "bn1.bias")]


@pytest.mark.parametrize("fused", [True, False])
def test_ours_opens_with_a_plain_adam(toy: Path, middle: Path, fused: bool) -> None:
    """Two more steps are equal bit for bit with the same kernel, else to rounding."""
    state, _ = rebuild(toy, middle)
    model, twin = state.model, copy.deepcopy(state.model)
    saved = torch.load(middle / "model_dump" / "step_1_3.pth", weights_only=True)["optimizer"]
    saved["param_groups"][0]["fused"] = fused
    plain = adam_of(twin, saved)
    plain.param_groups[0]["lr"] = state.optimizer.param_groups[0]["lr"]
    take_steps(model, state.optimizer, 2, seed=1)
    take_steps(twin, plain, 2, seed=1)
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0 if fused else 1e-6, atol=0 if fused else 1e-8, msg=name)
        for key, value in state.optimizer.state[ours].items():
            other = plain.state[theirs][key]
            torch.testing.assert_close(value, other, rtol=0 if fused else 1e-6, atol=0 if fused else 1e-8, msg=name)


@pytest.mark.parametrize("old", [False, True])
def test_published_checkpoint_is_continued_with_its_optimizer(
    toy: Path, middle: Path, tmp_path: Path, capsys: pytest.CaptureFixture, old: bool
) -> None:
    """Moments and steps bit for bit; the next steps as theirs to rounding. Old: the file of a PyTorch before 1.12, on
    several GPUs, where DataParallel gives the unused weights gradients of 0."""
    twin = rebuild(toy, middle)[0].model
    plain = adam_of(twin, foreach=False)
    take_steps(twin, plain, 2, seed=2)
    saved = copy.deepcopy(plain.state_dict())
    if old:
        weights = list(twin.parameters())
        for index, weight in enumerate(weights):
            zeros = {"step": 2, "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
            saved["state"].setdefault(index, zeros)["step"] = 2
    write_published(tmp_path / "published", twin, saved)
    state, restored = rebuild(toy, tmp_path / "published")
    assert "epoch 6, step 0" in capsys.readouterr().err and "Adam's moments and steps are restored" in restored
    ours = state.optimizer
    assert len(ours.state) == len(saved["state"])
    for weight, other in zip(state.model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(weight, other)
        for key, value in plain.state[other].items():
            assert torch.equal(ours.state[weight][key], value)
    for group in (*ours.param_groups, *plain.param_groups):
        group["lr"] = program.learning_rate(Config(), Progress(6, 0))
    take_steps(state.model, ours, 2, seed=3)
    take_steps(twin, plain, 2, seed=3)
    for weight, other in zip(state.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("fault", ["empty", "shape", "number", "missing"])
def test_published_checkpoint_without_a_usable_optimizer_is_continued_from_its_weights(
    toy: Path, middle: Path, tmp_path: Path, fault: str
) -> None:
    """It says so, and no part of the state is used."""
    twin = rebuild(toy, middle)[0].model
    saved = torch.load(middle / "model_dump" / "step_1_3.pth", weights_only=True)["optimizer"]
    last = max(saved["state"])
    change = {
        "empty": lambda: saved.clear(),
        "shape": lambda: saved["state"][last].update(exp_avg=torch.zeros(7)),
        "number": lambda: saved["param_groups"][0]["params"].append(last + 1),
        "missing": lambda: saved["state"].pop(last),
    }
    change[fault]()
    write_published(tmp_path / "published", twin, saved)
    state, restored = rebuild(toy, tmp_path / "published")
    assert "without a usable optimizer state" in restored
    assert not state.optimizer.state
    assert all(map(torch.equal, state.model.parameters(), twin.parameters()))


def test_optimizer_state_of_trained_weights_alone_is_continued(toy: Path, undisturbed: Path, middle: Path) -> None:
    """As older versions saved it: bit for bit."""
    path = middle / "model_dump" / "step_1_3.pth"
    content = torch.load(path, weights_only=True)
    state, (group,) = content["optimizer"]["state"], content["optimizer"]["param_groups"]
    content["optimizer"]["state"] = dict(enumerate(state[index] for index in group["params"] if index in state))
    group["params"] = list(content["optimizer"]["state"])
    path.unlink()
    torch.save(content, path)
    shutil.copytree(undisturbed / "log", middle / "log")
    assert run(toy, middle, "--continue") == 0
    assert compare(undisturbed, middle) == []


def test_moments_follow_the_memory_layout_of_their_weights(toy: Path, middle: Path) -> None:
    """Fused Adam reads both in the order of memory: with another --channels_last each weight keeps its moments."""
    saved = torch.load(middle / "model_dump" / "step_1_3.pth", weights_only=True)["optimizer"]["state"]
    saved[0]["exp_avg"] = saved[0]["exp_avg"].transpose(-1, -2).contiguous().transpose(-1, -2)
    state, _ = rebuild(toy, middle, "--channels_last")
    weights = state.optimizer.param_groups[0]["params"]
    assert not weights[0].is_contiguous()
    for index, moments in saved.items():
        for name in ("exp_avg", "exp_avg_sq"):
            found = state.optimizer.state[weights[index]][name]
            assert torch.equal(found, moments[name]) and found.stride() == weights[index].stride()


def test_moments_that_share_memory_are_copied(toy: Path, middle: Path) -> None:
    """An expanded tensor in a file would be one number for a whole moment, written to by each weight."""
    model = rebuild(toy, middle)[0].model
    optimizer = adam_of(model, fused=True)
    state = torch.load(middle / "model_dump" / "step_1_3.pth", weights_only=True)["optimizer"]
    state["state"][0]["exp_avg"] = torch.ones(1).expand(model.body_backbone.conv1.weight.shape)
    load_optimizer(optimizer, state)
    take_steps(model, optimizer, 1, seed=0)
    assert optimizer.state[model.body_backbone.conv1.weight]["exp_avg"].unique().numel() > 1


@pytest.mark.parametrize(
    ("saved", "told"),
    [
        (None, "its scaler is None"),
        ([], r"its scaler is \[\]"),
        ({"scale": 1.0}, "counted None"),
        ({"scale": float("inf")}, "loss scale is inf"),
        ({"scale": 1e300}, r"loss scale is 1e\+300"),
        ({"scale": 0.0}, "loss scale is 0.0"),
        ({"scale": True}, "loss scale is True"),
        ({"scale": 2.0, "_growth_tracker": 10**5000}, "counted a huge int"),
        ({"scale": 2.0, "_growth_tracker": -1}, "counted -1"),
    ],
)
@pytest.mark.parametrize("enabled", [True, False])
def test_loss_scale_that_makes_no_sense_is_refused(saved: object, told: str, enabled: bool) -> None:
    """Infinite, it would skip each step; what PyTorch does with another type is its secret."""
    with pytest.raises((TypeError, ValueError), match=told):  # `restore` names the file
        load_scaler(torch.amp.GradScaler("cpu", enabled=enabled), saved)


def test_loss_scale_is_restored() -> None:
    """With the steps since it last changed."""
    scaler = torch.amp.GradScaler("cpu")
    load_scaler(scaler, {**scaler.state_dict(), "scale": 8.0, "_growth_tracker": 7})
    assert scaler.state_dict()["scale"] == 8.0 and scaler.state_dict()["_growth_tracker"] == 7
    load_scaler(scaler, {})  # of a training without fp16
    assert scaler.state_dict()["scale"] == 8.0


# ---- Shared out ----


def test_parts_of_a_step_give_its_losses_and_gradient(toy: Path, tmp_path: Path) -> None:
    """Batch norm apart, which sees one part at a time: here it uses its running statistics."""
    made, losses = [], []
    for count in ("1", "2"):
        args = program.parse_args(options(toy, tmp_path, "--train_batch_size", "4", "--accumulate", count))
        config = read_config(args)
        state, sample = first_step(args, config)
        state.model.eval()
        criterion = InterWildLoss(config.frames)
        result = program.train_step(state.model, state, criterion, sample, config)
        at = Progress(0, 0)
        losses.append(program.reduce_and_check(result, criterion, PROCESS, StopSignal(), at, state.scaler))
        made.append([weight.grad for weight in state.model.parameters() if weight.requires_grad])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for whole, summed in zip(*made, strict=True):
        assert (whole - summed).norm() <= 1e-3 * whole.norm() + 1e-7


def test_two_processes_do_what_one_does_in_two_parts_and_end_together(toy: Path, tmp_path: Path) -> None:
    """Losses and weights are equal: batch norm sees the same samples in both. Before, Ctrl-C, which reaches parent,
    children and loader workers alike: all must agree on the last step, and the training be saved."""
    one, two = tmp_path / "one", tmp_path / "two"
    two.mkdir()
    command = [sys.executable, ROOT / "main" / "train.py"]
    command += options(toy, two, "--processes", "2", "--workers", "1", "--end_epoch", "50")
    with open(tmp_path / "messages.txt", "w") as messages:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stderr=messages, start_new_session=True, env=environment)
    deadline, losses = time.monotonic() + patience(180), two / "log" / "losses.jsonl"
    while not (losses.exists() and losses.read_text().count("\n") > 2):  # the second epoch of two steps has begun
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "messages.txt").read_text()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(patience(60)) == 130
    assert run(toy, one, "--end_epoch", "1", "--accumulate", "2", "--train_batch_size", "4") == 0
    told = (tmp_path / "messages.txt").read_text()
    assert "Traceback" not in told and "stopped and saved" in told

    lines = [[json.loads(line) for line in (x / "log" / "losses.jsonl").read_text().splitlines()] for x in (one, two)]
    for x, y in zip(lines[0], lines[1], strict=False):
        assert x == pytest.approx(y, rel=1e-5)
    a, b = (torch.load(x / "model_dump" / "snapshot_0.pth", weights_only=True)["network"] for x in (one, two))
    for key in a:
        if "running" not in key and "num_batches" not in key:  # saved are those of the first process's samples
            assert (a[key] - b[key]).abs().max() <= 0.01 * PRESETS["small"]["lr"], key
    last = Progress(lines[1][-1]["epoch"], lines[1][-1]["step"] + 1)
    assert list_snapshots(two / "model_dump")[0][0] in (last, Progress(last.epoch + 1, 0))


@pytest.mark.parametrize(
    ("argv", "torchrun", "told"),
    [
        ("--parallel dp --gpu cpu", False, "--parallel dp is for GPUs"),
        ("--parallel dp", True, "start it with python instead of torchrun"),
        ("--processes 2 --gpu cpu", True, "--nproc_per_node instead of --processes"),
    ],
)
def test_two_ways_to_share_out_are_refused(
    monkeypatch: pytest.MonkeyPatch, argv: str, torchrun: bool, told: str
) -> None:
    """Under torchrun, DataParallel would leave each process with weights of its own, unseen."""
    for name in ("RANK", "WORLD_SIZE") if torchrun else ():
        monkeypatch.setenv(name, "1")
    with pytest.raises(UserError, match=told):
        program.check_processes(program.parse_args(argv.split()), [torch.device("cpu")])


def test_processes_are_for_the_cpu() -> None:
    """On GPUs the option would do nothing."""
    with pytest.raises(UserError, match="--processes is for the CPU"):
        program.check_processes(program.parse_args(["--processes", "2"]), [torch.device("cuda", 0)])


def test_batch_norm_over_processes_needs_gpus(toy: Path, tmp_path: Path) -> None:
    """PyTorch does not have it on CPUs: an error before the first step, not within it."""
    with pytest.raises(UserError, match="sync_bn is for several GPUs"):
        run(toy, tmp_path, "--sync_bn", "true")


class StandInReplicas(torch.nn.DataParallel):
    """Does on the CPU what DataParallel does on two GPUs: replicas that share the module's attributes, each in a thread
    of its own that knows whether autocast is on outside, but not its precision."""

    def forward(self, images: torch.Tensor) -> Prediction:
        outputs: dict[int, Prediction] = {}
        is_on = torch.is_autocast_enabled()

        def work(index: int, part: torch.Tensor) -> None:
            with torch.inference_mode(), torch.autocast("cpu", torch.float16, enabled=is_on):
                outputs[index] = copy.deepcopy(self.module)(part)

        threads = [threading.Thread(target=work, args=item) for item in enumerate(images.chunk(2))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return gather(outputs[0], outputs[1])


def gather(*outputs: Prediction) -> Prediction:
    """Along the batch."""
    return type(outputs[0])(
        *(gather(*x) if isinstance(x[0], tuple) else torch.cat(x) for x in zip(*outputs, strict=True))
    )


def test_one_process_for_all_gpus_computes_in_the_precision_of_the_options(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The threads of DataParallel would compute in float16 whatever --amp says, if autocast were opened outside."""
    monkeypatch.setattr(program, "DataParallel", lambda module, device_ids: StandInReplicas(module))
    args = program.parse_args(options(toy, tmp_path, "--amp", "bf16"))
    args.dp_devices = [PROCESS.device] * 2
    state, sample = first_step(args, read_config(args))
    model, seen = state.model.eval(), set()
    model.body_backbone.conv1.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    network = program.wrap_model(args, PROCESS, model, "bf16")
    assert isinstance(network, StandInReplicas)
    images = build_images(sample)
    shared = network(images)
    assert seen == {torch.bfloat16}
    args.dp_devices = None
    with torch.inference_mode():
        alone = program.wrap_model(args, PROCESS, model, "bf16")(images)
    torch.testing.assert_close(shared.joints_hand_hm, alone.joints_hand_hm, rtol=1e-3, atol=1e-2)


def test_compiled_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module stays what it is, for checkpoints and for DistributedDataParallel; replicas of DataParallel would call
    the compiled code of the first."""
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    args, model = argparse.Namespace(compile=True, dp_devices=None), torch.nn.Linear(2, 2)
    assert program.wrap_model(args, PROCESS, model).module is model and compiled == [model]
    with pytest.raises(UserError, match="leave out --compile"):
        program.check_processes(program.parse_args(["--parallel", "dp", "--compile"]), [torch.device("cuda", 0)])


# ---- Not finite, not readable ----


def test_unreadable_sample_ends_it_with_its_name(toy: Path, tmp_path: Path) -> None:
    """Also the loader workers end: it would else never return."""
    shutil.copytree(toy / "data", tmp_path / "data")
    for path in (tmp_path / "data" / "MSCOCO" / "images" / "train2017").iterdir():
        path.write_bytes(b"not an image")
    command = [sys.executable, ROOT / "main" / "train.py"]
    command += options(toy, tmp_path, "--workers", "1", "--data", str(tmp_path / "data"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(120))
    assert done.returncode == 2 and "error: MSCOCO 1" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_nan_in_a_target_names_step_term_and_sample(
    toy: Path, middle: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves the last checkpoint as it was."""
    build, batches = program.build_targets, []

    def planted(sample: object, *rest: object) -> object:
        made = build(sample, *rest)
        batches.append(sample.id)
        made.vertices_rel[1, 0, 5, 2] = torch.nan
        return made

    monkeypatch.setattr(program, "build_targets", planted)
    before = (middle / "model_dump" / "step_1_3.pth").read_bytes()
    with pytest.raises(UserError) as raised:
        run(toy, middle, "--continue")
    told = str(raised.value)
    assert "epoch 1, step 3: mano_mesh_cam;" in told
    assert batches[0][1] in told and batches[0][0] not in told
    assert (middle / "model_dump" / "step_1_3.pth").read_bytes() == before
    assert latest_valid_checkpoint(middle / "model_dump", pytest.fail) == middle / "model_dump" / "step_1_3.pth"


@pytest.mark.parametrize(("plant", "named"), [("weight", "rhand_bbox_center"), ("gradient", ": gradient;")])
def test_nan_in_the_network_stops_before_it_is_saved(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: str, named: str
) -> None:
    """A gradient that is not finite spoils the weights while all losses are still fine."""
    build = program.build_model

    def planted(*arguments: object) -> torch.nn.Module:
        model = build(*arguments)
        weight = model.body_backbone.conv1.weight
        if plant == "weight":
            weight.data[0, 0, 0, 0] = torch.nan
        else:
            weight.register_hook(lambda gradient: gradient * torch.inf)
        return model

    monkeypatch.setattr(program, "build_model", planted)
    with pytest.raises(UserError, match="not finite at epoch 0, step 0") as raised:
        run(toy, tmp_path, "--save_every", "1")
    assert named in str(raised.value) and "samples: " in str(raised.value)
    assert list_snapshots(tmp_path / "model_dump") == []


def test_fp16_whose_gradient_never_becomes_finite_ends(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step would be skipped, to the end and with exit code 0."""
    taken: list[Progress] = []

    def step(network: object, state: TrainState, *_: object) -> program.StepResult:
        taken.append(Progress(0, 0))
        weight = state.model.body_backbone.conv1.weight
        state.scaler.scale(weight.sum()).backward()
        weight.grad.fill_(torch.inf)
        state.scaler.unscale_(state.optimizer)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        return program.StepResult(terms={"x": torch.ones(())}, gradient_norm=torch.tensor(torch.inf))

    monkeypatch.setattr(program, "train_step", step)
    monkeypatch.setattr(program, "sum_joint_angles", lambda result: torch.zeros(2, 15))
    with pytest.raises(UserError, match="at epoch 4, step 3 is not finite in float16.*use --amp bf16"):
        run(toy, tmp_path, "--amp", "fp16", "--end_epoch", "50")
    assert len(taken) == 20


# ---- The command line ----


def test_help_names_every_value(capsys: pytest.CaptureFixture) -> None:
    """Each value of the configuration is an option, and each option is explained."""
    with pytest.raises(SystemExit, match="^0$"):
        program.parse_args(["--help"])
    printed = capsys.readouterr().out
    for name in FIELDS:
        assert f"--{name} " in printed


def test_every_value_can_be_set(tmp_path: Path) -> None:
    """The command line goes before the file, the file before the preset."""
    (tmp_path / "c.json").write_text('{"lr": 1, "seed": 5, "augmentation": {"rot": 10}, "lr_dec_epoch": [1, 2]}')
    argv = ["--preset", "small", "--config", str(tmp_path / "c.json"), "--lr", "5e-5", "--sync_bn", "true"]
    argv += ["--trainset_3d", "InterHand26M,ReInterHand", "--trainset_2d", "", "--augmentation", "scale=0", "color=0.1"]
    config = read_config(program.parse_args(argv))
    assert (config.lr, config.seed, config.sync_bn, config.lr_dec_epoch) == (5e-5, 5, True, (1, 2))
    assert config.trainset_3d == ("InterHand26M", "ReInterHand") and config.trainset_2d == ()
    assert (config.augmentation.rot, config.augmentation.scale, config.augmentation.color) == (10.0, 0.0, 0.1)
    assert config.body_backbone == PRESETS["small"]["body_backbone"] and config.frames.crop == (256, 192)
    content = {"config": json.loads(json.dumps(config_to_dict(config)))}
    assert config_of_checkpoint(content, tmp_path) == config


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lrr": 1}, "did you mean lr"),
        ({"lr": "fast"}, "lr cannot be 'fast'"),
        ({"lr": float("nan")}, "lr cannot be"),
        ({"end_epoch": 1.5}, "end_epoch cannot be 1.5"),
        ({"end_epoch": True}, "end_epoch cannot be True"),
        ({"seed": int("9" * 400)}, "seed cannot be 9999.*9999"),
        ({"seed": "9" * 400}, "seed cannot be '9999.*9999'"),
        ({"lr": 10**600}, "lr cannot be 1000.*0000"),
        ({"lr": "1e600"}, "lr cannot be '1e600'"),
        ({"augmentation": {"rot": 10**600}}, "augmentation.rot cannot be 1000"),
        ({"box_channels": 10**5000}, "box_channels cannot be a huge int"),
        ({"frames": 3}, "frames cannot be 3"),
        ({"frames": {"crop": [2, "x"]}}, "crop.1. cannot be 'x'"),
        ({"sync_bn": "maybe"}, "sync_bn cannot be 'maybe'"),
        ({"trainset_2d": 7}, "trainset_2d cannot be 7"),
    ],
)
def test_values_that_make_no_sense_are_named(changes: dict, told: str) -> None:
    with pytest.raises(UserError, match=told):
        change_config(Config(), changes, "the file")


@pytest.mark.parametrize(
    "argv",
    ["--lr 0", "--train_batch_size 5 --accumulate 2", "--amp fp8", "--body_backbone vgg", "--frames hand=100,100"]
    + ["--frames hand_hm=4,4", "--frames crop", "--end_epoch 0", "--config /nowhere.json"],
)
def test_options_that_make_no_sense_are_refused(argv: str) -> None:
    with pytest.raises(UserError):
        read_config(program.parse_args(argv.split()))


def test_learning_rate_falls_as_published() -> None:
    """1e-4, a tenth of it from epoch 4, without a warm-up."""
    rates = [program.learning_rate(Config(), Progress(epoch, 0)) for epoch in range(7)]
    assert rates == pytest.approx([1e-4] * 4 + [1e-5] * 3)


def test_warm_up() -> None:
    """The first epoch's first steps alone have a lower rate, which rises evenly and is never 0."""
    config = Config(warmup_steps=4)
    rates = [program.learning_rate(config, Progress(0, step)) for step in range(6)]
    assert rates == pytest.approx([2.5e-5, 5e-5, 7.5e-5, 1e-4, 1e-4, 1e-4])
    assert program.learning_rate(config, Progress(1, 0)) == pytest.approx(1e-4)


def test_log_on_a_full_disk_says_so(tmp_path: Path) -> None:
    """/dev/full is always full."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    log = TrainLog(tmp_path, (0, 0), 10)
    log._losses = open("/dev/full", "w")  # noqa: SIM115
    with pytest.raises(UserError, match="free some space"):
        log.step((0, 0), {"total": 1.0}, 0.0)
    for board in log._boards:
        board.close()  # it writes until then


def test_log_replaces_nothing_that_is_not_its_own(tmp_path: Path) -> None:
    """A folder, a pipe, which would be waited for, and a file of something else."""
    step = '{"epoch": 0, "step": 0}\n'
    losses, board = tmp_path / "losses.jsonl", tmp_path / "tensorboard"
    for content in (
        "my notes\n" + step,
        '{"epoch": true, "step": 0}\n' + step,
        "[" * 10**5 + "\n" + step,
        "[1e999]\n7\n",
    ):
        losses.write_text(content)
        with pytest.raises(UserError, match="line 1 of .*losses.jsonl is not of a step"):
            TrainLog(tmp_path, (0, 1), 10)
        assert losses.read_text() == content
    losses.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot read .*losses.jsonl"):
        TrainLog(tmp_path, (0, 1), 10)
    losses.unlink()
    os.mkfifo(losses)
    with pytest.raises(UserError, match="losses.jsonl is not a file"):
        TrainLog(tmp_path, (0, 1), 10)
    losses.unlink()
    board.write_text("mine")
    with pytest.raises(UserError, match="cannot write into .*exists"):
        TrainLog(tmp_path, (0, 1), 10)
    assert board.read_text() == "mine"


def test_log_takes_names_that_are_not_text(tmp_path: Path) -> None:
    """TensorBoard takes no such folder, which is one line."""
    pytest.importorskip("tensorboard")
    log = TrainLog(tmp_path / "log", (0, 0), 10)
    log.say("no a\udcff.jpg")
    log.close()
    assert "no a\\udcff.jpg" in (tmp_path / "log" / "train.txt").read_text()
    with pytest.raises(UserError, match="cannot write into .*choose another --output"):
        TrainLog(tmp_path / "a\udcff", (0, 0), 10)


def test_sheet_shows_what_cannot_be_drawn_as_nothing(toy: Path, tmp_path: Path) -> None:
    """A network in its first steps predicts anything; the sheet must not stop the training."""
    args = program.parse_args(options(toy, tmp_path))
    config = read_config(args)
    state, sample = first_step(args, config)
    criterion, faces = InterWildLoss(config.frames), state.model.mano_layer.faces
    result = program.train_step(state.model, state, criterion, sample, config, keep_images=True)
    prediction = result.predictions[0]
    wild = prediction._replace(
        joints_hand_hm=prediction.joints_hand_hm * torch.inf,
        vertices_rel=prediction.vertices_rel * torch.nan,
        box_sizes_body_hm=prediction.box_sizes_body_hm * -1e30,
    )
    sheets = [draw_sheet(result.images, p, result.targets[0], faces, config.frames) for p in (prediction, wild)]
    assert sheets[0].shape == sheets[1].shape and sheets[0].shape[0] > 2 * 256 and sheets[0].shape[1] > 4 * 192
    crop = (result.images[0].permute(1, 2, 0) * 255).round().byte().numpy()
    assert np.array_equal(sheets[1][LINE:, MARGIN:][:256, :192], fit(crop, (256, 192)))


def test_images_are_kept_only_for_the_sheet(toy: Path, tmp_path: Path) -> None:
    """Otherwise a step would hold the images of all its microbatches, in float, until the next one."""
    args = program.parse_args(options(toy, tmp_path, "--accumulate", "2"))
    config = read_config(args)
    state, sample = first_step(args, config)
    results = [
        program.train_step(state.model, state, InterWildLoss(config.frames), sample, config, keep_images=keep)
        for keep in (False, True)
    ]
    assert results[0].images is None and len(results[1].images) == 1
    height, width = config.frames.crop
    for tensor in iterate_tensors(results[0]):
        assert tuple(tensor.shape[-2:]) != (height, width)


def iterate_tensors(value: object) -> Iterator[torch.Tensor]:
    """All tensors in nested containers and dataclasses."""
    if isinstance(value, torch.Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        yield from iterate_tensors(list(vars(value).values()))
    elif isinstance(value, dict):
        yield from iterate_tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from iterate_tensors(item)


def test_validation_changes_nothing_and_uses_samples_that_are_not_trained_on(toy: Path, tmp_path: Path) -> None:
    """Two trainings on the same samples end with the same weights, with and without looking at the others."""
    assert run(toy, tmp_path / "often", "--end_epoch", "1", "--validate_every", "1") == 0
    assert run(toy, tmp_path / "once", "--end_epoch", "1", "--validate_every", "1000") == 0
    often, once = (torch.load(tmp_path / name / "model_dump/snapshot_0.pth") for name in ("often", "once"))
    assert often["training"]["group_sizes"] == [[3], [3]]  # of 4 and 4
    assert all(torch.equal(often["network"][key], value) for key, value in once["network"].items())
    lines = [json.loads(line) for line in (tmp_path / "often/log/validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2] and all(line["mpvpe"] > 0 for line in lines)
    assert (tmp_path / "often/log/curve.png").stat().st_size > 1000
    args = program.parse_args(options(toy, tmp_path, "--validate_every", "1"))
    data = program.build_data(args, PROCESS, read_config(args))[1].dataset
    held = [sample.id for sample in data.held_out()]
    trained = {part.id(index) for part, size in zip(data.parts, data.sizes, strict=True) for index in range(size)}
    assert len(held) == 2 and not trained & set(held)
