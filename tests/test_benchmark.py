"""The benchmark measures what it says, and what it measures keeps the promises that need no idle machine."""

import json
import subprocess
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL
from test_trans_net import dense
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import default_collate

from common.criterion import InterWildLoss
from common.errors import UserError
from common.nets.trans_net import convolve_heatmaps
from common.options import ROOT
from common.targets import build_images, build_targets, make_sample
from common.types import Annotation
from common.utils.augment import Augmentation
from main.build import prepare_inference
from tool.benchmarks import run as benchmark
from tool.benchmarks.core import Bench, Clock, Measurement, peak_memory, table
from tool.benchmarks.data import metrics
from tool.benchmarks.network import Backbones, backbone_inputs, dense_heatmaps
from tool.benchmarks.profile import run_profile
from tool.benchmarks.store import process_peak

CPU = torch.device("cpu")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, arguments)])
    return benchmark.main()


def test_the_command_prints_a_table_and_writes_json(monkeypatch, mano_folder, tmp_path, capsys):
    options = ("--gpu", "cpu", "--preset", "small", "--only", "trans_net,rendering", "--rounds", 1, "--batch", 1)
    assert run(monkeypatch, *options, "--mano", mano_folder, "--out", tmp_path / "new" / "figures.json") == 0
    content = json.loads((tmp_path / "new" / "figures.json").read_text())
    assert content["machine"]["device"] == "cpu" and content["machine"]["torch"] == torch.__version__
    assert {figure["stage"] for figure in content["figures"]} == {"trans_net", "rendering"}
    printed = capsys.readouterr().out
    for figure in content["figures"]:
        assert figure["what"] in printed
    assert content["figures"][-1]["met"] is not None and content["figures"][0]["met"] is None
    assert "not the published network" in printed
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "figures.json"]


def test_mistakes_are_named_before_anything_is_measured(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--only", "inference,speed")
    assert "there is no 'speed'; there are: inference, " in capsys.readouterr().err
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot make folder"):
        run(monkeypatch, "--gpu", "cpu", "--out", tmp_path / "file" / "figures.json")


def test_ratios_are_of_rounds_measured_in_turns(monkeypatch):
    """The machine becomes ten times slower from round to round: the ratio stays."""
    calls, slower = [], iter([1, 1, 10, 10, 100, 100])
    clock = Clock(CPU, rounds=3)

    def seconds(function, repeat=1):
        function()
        time = next(slower) * (3 if calls[-1] == "measured" else 2)
        return time, time

    monkeypatch.setattr(clock, "seconds", seconds)
    figure = clock.compare("", "", lambda: calls.append("measured"), lambda: calls.append("reference"), limit=1.4)
    assert (figure.value, figure.low, figure.high) == (1.5, 1.5, 1.5) and figure.met is False
    assert calls[4:] == ["measured", "reference", "reference", "measured", "measured", "reference"]
    slower = iter([1] * 6)
    figure = clock.compare("", "", lambda: calls.append("measured"), lambda: calls.append("reference"), inverse=True)
    assert figure.value == pytest.approx(2 / 3) and figure.met is None


def test_limits():
    row = partial(Measurement, "")
    assert row("", 1.5, limit=1.5).met and not row("", 1.5, limit=1.5, below=True).met
    assert row("", 10, limit=10, at_least=True).met and not row("", 9.9, limit=10, at_least=True).met
    assert "NOT MET" in table([row("x", 2.0, limit=1.0)]) and "NOT MET" not in table([row("x", 2.0)])


def test_peak_memory_counts_what_is_held_at_once():
    def one_after_the_other() -> None:
        for _ in range(3):
            torch.ones(1_000_000)

    def together() -> list[torch.Tensor]:
        return [torch.ones(1_000_000) for _ in range(3)]

    assert peak_memory(one_after_the_other, CPU) == pytest.approx(4e6, rel=0.01)
    assert peak_memory(together, CPU) == pytest.approx(12e6, rel=0.01)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_factorised_input_takes_two_percent_of_the_memory(batch):
    """At the published sizes, against a dense form that wastes none; which is itself the published one."""
    torch.manual_seed(0)
    joints, size = torch.rand(batch, 42, 3) * 64, (64, 64, 64)
    weight, bias = torch.randn(64, 42 * 64, 3, 3), torch.randn(64)
    with torch.inference_mode():
        ours = peak_memory(lambda: convolve_heatmaps(joints, weight, bias, size), CPU)
        assert ours <= 0.02 * peak_memory(lambda: dense_heatmaps(joints, weight, bias, size), CPU)
        few = joints[:1, :3], weight[:, : 3 * 64], bias, size
        assert (dense_heatmaps(*few) - dense(*few)).abs().max() <= 1e-5 * dense(*few).abs().max()


class NoWaiting(TorchDispatchMode):
    """Fails where a program on a GPU would wait for it: a value is read, or a size depends on values."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero")

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        places = arguments[1] if name in ("index", "index_put", "index_put_") else ()
        masks = any(place is not None and place.dtype == torch.bool for place in places)
        assert name not in self.WAITS and not masks, f"{name} waits for the device"
        return function(*arguments, **(options or {}))


def test_a_step_never_waits_for_the_device(small_model, mano):
    """Images, targets, network, losses and backward only queue work: the GPU is never idle for the host."""
    frames = small_model.frames
    annotation = Annotation(id=1, image_path=Path("x.jpg"), image_size=(60, 80))
    image = np.zeros((60, 80, 3), np.uint8)
    samples = [make_sample(annotation, image, Augmentation(flip=flip, rot=20.0), frames, 1.0) for flip in (False, True)]
    sample, criterion = default_collate(samples), InterWildLoss(frames)
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        float(sample.color.sum())
    with NoWaiting():
        targets = build_targets(sample, mano, frames)
        terms = criterion(small_model(build_images(sample)), targets)
        sum(terms.values()).backward()


def test_the_layout_for_inference_changes_no_answer(small_model):
    image = torch.rand(1, 3, *small_model.frames.crop)
    with torch.inference_mode():
        expected = small_model(image)
        found = prepare_inference(small_model, CPU)(image)
    assert small_model.body_backbone.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    for name in ("vertices_rel", "joints_hand_hm", "rel_transl", "box_centers_body_hm"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours - theirs).abs().max() <= 1e-3 * theirs.abs().max(), name


def test_the_reference_sees_what_the_backbones_see(small_model, mano):
    """The same shapes go into the backbones alone as into those of the network."""
    seen = {}
    backbones = Backbones(small_model, with_deconv=True)
    parts = {
        "body": backbones.body.conv1,
        "hand": backbones.hand.conv1,
        "pair": backbones.pair.layer1,
        "deconv": backbones.deconv,
    }
    for name, part in parts.items():
        part.register_forward_pre_hook(lambda _, x, name=name: seen.setdefault(name, []).append(x[0].shape))
    with torch.inference_mode():
        small_model(torch.rand(2, 3, *small_model.frames.crop))
        backbones(*backbone_inputs(small_model, 2))
    assert set(seen) == set(parts) and all(first == second for first, second in seen.values())


def test_metrics_say_when_they_are_extrapolated(mano):
    args = Namespace(metrics_samples=70, channels_last=False)
    figures = metrics(Bench(args, SMALL, mano, Clock(CPU, 1)))
    assert "70 samples" in figures[0].what and figures[0].met is None
    assert "EXTRAPOLATED" in figures[1].what and figures[1].met is not None
    assert figures[1].value == pytest.approx(figures[0].value * 100_000 / 70)


def test_a_profile_names_the_modules_of_forward_and_backward(small_model):
    image = torch.rand(1, 3, *small_model.frames.crop)
    found = run_profile(lambda: small_model(image).rel_transl.sum().backward(), small_model, CPU)["modules_ms"]
    for name in ("body_backbone.layer1", "hand_roi_net.backbone.layer4", "hand_trans_net.backbone.layer2"):
        assert found[name]["forward"] > 0
    assert found["hand_trans_net.backbone.layer2"]["backward"] > 0  # reached from `rel_transl`
    assert not found["body_backbone.layer1"]["backward"]  # not reached


@pytest.mark.slow
def test_the_exported_network_beside_pytorch(monkeypatch, mano_folder, tmp_path):
    """Two calls against PyTorch at each batch size; two ways to start beside the usual one."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    options = ("--gpu", "cpu", "--preset", "small", "--only", "exported", "--rounds", 1, "--mano", mano_folder)
    assert run(monkeypatch, *options, "--output", tmp_path / "results.json") == 0
    rows = json.loads((tmp_path / "results.json").read_text())["figures"]
    assert len(rows) == 3 * 2 + 2 * 2 and all(0 < row["value"] < 10 and row["met"] is None for row in rows)


def test_peak_memory_is_this_process_alone():
    """`ru_maxrss` of a process begins with the peak of the one that started it."""
    if not Path("/proc/self/status").exists():
        pytest.skip("this system has no /proc")
    large = np.ones(600 * 2**20, np.uint8)
    code = "from tool.benchmarks.store import process_peak; print(process_peak())"
    child = float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT).stdout)
    assert 10 < child < process_peak() - large.nbytes / 2**21  # both have loaded PyTorch
