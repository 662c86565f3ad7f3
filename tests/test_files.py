"""Files appear whole or not at all, and a failure is one line."""

import json
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from common.errors import UserError
from common.utils.files import atomic_path, atomic_write, write_image, write_json

ROOT = Path(__file__).resolve().parent.parent


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "a.bin"
    atomic_write(path, b"old")
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_others_can_read_as_the_umask_says(tmp_path):
    before = os.umask(0o022)
    try:
        atomic_write(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    atomic_write(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # writing stops after 1000 bytes
    try:
        with pytest.raises(UserError, match=r"^cannot write .*a\.bin: .*\(.+\)$"):
            atomic_write(path, b"n" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_what_killed_runs_left_goes_with_the_next_run(tmp_path):
    """But not what another run is writing just now."""
    code = """
import os, signal, sys
from common.utils.files import atomic_path, atomic_write
with atomic_path(sys.argv[1] + "/a") as temporary:
    temporary.write_text("half")
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
"""
    run = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run([*run, "killed"], cwd=ROOT).returncode == -9
    [left] = os.listdir(tmp_path)
    assert left.endswith(".tmp")
    with atomic_path(tmp_path / "b") as temporary:
        temporary.write_text("half")
        assert os.listdir(tmp_path) == [temporary.name], "this run has removed it"
        subprocess.run([*run, "whole"], cwd=ROOT, check=True)
        assert temporary.exists(), "the other leaves what is in use"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("failure", [PermissionError(13, "Permission denied"), KeyboardInterrupt()])
def test_a_failed_rename_leaves_the_old_file(tmp_path, monkeypatch, failure):
    path = tmp_path / "a.bin"
    atomic_write(path, b"old")

    def fail(*_):
        raise failure

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError if isinstance(failure, OSError) else KeyboardInterrupt):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_missing_folder_and_a_folder_in_the_way_are_named(tmp_path):
    with pytest.raises(UserError, match="make the folder first"):
        atomic_write(tmp_path / "no" / "a", b"x")
    (tmp_path / "d").mkdir()
    with pytest.raises(UserError, match="a folder has this name"):
        atomic_write(tmp_path / "d", b"x")
    assert os.listdir(tmp_path) == ["d"]


def test_a_name_too_long_is_told(tmp_path):
    with pytest.raises(UserError, match="choose a shorter name"):
        atomic_write(tmp_path / ("x" * 300), b"x")


def test_json_takes_numpy_and_rejects_nan(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"box": np.array([1.5, 2]), "score": np.float32(0.5), "name": "Hände", "none": None})
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "box": [1.5, 2.0],
        "score": 0.5,
        "name": "Hände",
        "none": None,
    }
    for content in ({"a": float("nan")}, {"a": np.array([np.inf])}):
        with pytest.raises(ValueError):
            write_json(path, content)
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text(encoding="utf-8"))["score"] == 0.5  # still the first


def test_image_keeps_rgb_order(tmp_path):
    image = np.zeros((16, 16, 3), np.uint8)
    image[..., 0], image[..., 1] = 200, 90
    write_image(tmp_path / "a.png", image)
    write_image(tmp_path / "a.jpg", image, quality=100)
    assert (cv2.imread(str(tmp_path / "a.png"))[..., ::-1] == image).all()
    assert np.abs(cv2.imread(str(tmp_path / "a.jpg"))[..., ::-1].astype(int) - image).max() <= 3


def test_image_in_an_unknown_format_is_named(tmp_path):
    with pytest.raises(UserError, match="use another image format"):
        write_image(tmp_path / "a.xyz", np.zeros((4, 4, 3), np.uint8))
    assert not os.listdir(tmp_path)
