"""Checkpoints: the published layout, read strictly and as data, written whole or not at all."""

import json
import resource
import subprocess
import sys
from collections import OrderedDict

import pytest
import torch

from common.checkpoint import load_network, read_checkpoint, save_checkpoint
from common.errors import UserError
from main.build import build_model
from main.config import Config, config_to_dict
from main.options import config_of_checkpoint
from tests.conftest import SMALL


def test_ours_has_the_published_keys(tmp_path, golden):
    """All 810 keys with `module.`, in the published order, in the published shapes."""
    path = tmp_path / "snapshot_3.pth"
    save_checkpoint(path, build_model(Config(), mano=None), epoch=3, optimizer={"state": {}})
    content = torch.load(path, weights_only=True)
    assert list(content)[:3] == ["epoch", "network", "optimizer"]
    assert content["epoch"] == 3
    shapes = json.loads((golden / "state_dict_shapes.json").read_text())
    assert {key: list(value.shape) for key, value in content["network"].items()} == shapes
    assert list(content["network"]) == list(shapes)


def test_round_trip(small_model, tmp_path):
    path = tmp_path / "snapshot_0.pth"
    save_checkpoint(path, small_model, epoch=0, config=config_to_dict(SMALL))
    content = read_checkpoint(path)
    assert config_of_checkpoint(content, path) == SMALL
    other = build_model(SMALL, mano=None)
    assert load_network(other, content["network"], path) == []
    for key, value in small_model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_published_oddities_are_ignored_and_listed(small_model, tmp_path):
    """A file without the unused stem, and with buffers of the hand model."""
    network = dict(small_model.state_dict())
    del network["hand_trans_net.backbone.conv1.weight"]
    network["mano_layer_right.body_pose"] = torch.zeros(1, 3)
    ignored = load_network(build_model(SMALL, mano=None), network, tmp_path)
    assert ignored == ["hand_trans_net.backbone.conv1.weight", "mano_layer_right.body_pose"]


def test_every_key_that_does_not_fit_is_named(small_model, tmp_path):
    network = dict(small_model.state_dict())
    del network["hand_position_net.conv.0.bias"]
    del network["body_box_net.deconv.0.weight"]
    network["hand_position_net.conv.0.bios"] = torch.zeros(168)
    network["hand_rotation_net.cam_out.0.bias"] = torch.zeros(4)
    model = build_model(SMALL, mano=None)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_network(model, network, tmp_path / "x.pth")
    message = str(caught.value)
    assert "x.pth" in message and "\n" not in message
    assert "missing body_box_net.deconv.0.weight, hand_position_net.conv.0.bias;" in message
    assert "unexpected hand_position_net.conv.0.bios;" in message
    assert "hand_rotation_net.cam_out.0.bias is (4,), expected (3,)" in message
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())  # untouched


def test_a_checkpoint_of_another_network(small_model, tmp_path):
    """Whole parts are named as such, so that the message stays readable."""
    import torchvision

    with pytest.raises(UserError) as caught:
        load_network(small_model, torchvision.models.resnet18().state_dict(), tmp_path / "x.pth")
    message = str(caught.value)
    assert "missing body_backbone.* (120)" in message and "unexpected conv1.* (1), bn1.* (5)" in message
    assert len(message) < 600


def test_a_half_fitting_checkpoint(small_model, tmp_path):
    """Of hundreds of keys a few are named, and how many more there are."""
    network = {key: value[None] for key, value in list(small_model.state_dict().items())[::2]}
    with pytest.raises(UserError) as caught:
        load_network(small_model, network, tmp_path / "x.pth")
    message = str(caught.value)
    assert message.count(", expected (") == 6 and f"and {len(network) - 6} more" in message
    assert len(message) < 1200


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="not found.*--checkpoint"):
        read_checkpoint(tmp_path / "snapshot_6.pth")


class Bomb:
    def __reduce__(self):
        import os

        return os.system, ("touch exploded",)


@pytest.mark.parametrize("legacy", [False, True])
def test_hostile_file_is_refused(tmp_path, monkeypatch, legacy):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "snapshot_6.pth"
    content = {"epoch": 6, "network": OrderedDict(), "optimizer": Bomb()}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match="refused checkpoint"):
        read_checkpoint(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}, {"network": 3}, {"network": {"a": "b"}}])
def test_foreign_content_is_named(tmp_path, content):
    path = tmp_path / "snapshot_6.pth"
    torch.save(content, path)
    with pytest.raises(UserError, match="not of this system"):
        read_checkpoint(path)


def test_damaged_files_give_one_line(small_model, tmp_path):
    whole = tmp_path / "whole.pth"
    save_checkpoint(whole, small_model, epoch=0)
    data = whole.read_bytes()
    path = tmp_path / "snapshot_0.pth"
    for content in (b"", b"hello", data[:100], data[: len(data) // 2], data[:-1]):
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            read_checkpoint(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_instead_of_a_file(tmp_path):
    with pytest.raises(UserError, match="cannot read checkpoint .*it is a folder"):
        read_checkpoint(tmp_path)


DISK_FULL = """
import resource, sys, torch
from pathlib import Path
from common.checkpoint import save_checkpoint
from common.errors import run_main
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
run_main(lambda: save_checkpoint(Path(sys.argv[1]), torch.nn.Linear(500, 500), epoch=1))
"""


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """The write stops in the middle: one line, exit code 2, the old file whole, nothing left beside it."""
    assert resource  # POSIX
    path = tmp_path / "snapshot_1.pth"
    save_checkpoint(path, torch.nn.Linear(2, 2), epoch=0)
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", DISK_FULL, path], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: cannot write") and done.stderr.count("\n") == 1
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
