"""Annotation files with faults of every kind: what comes back are samples, or one line that names the place."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_data_targets import recorded  # noqa: F401

from data.InterHand26M.InterHand26M import read_flags
from tests.faults.fault_campaign import CASES, break_file, check_line, files_of, survey


@pytest.fixture(scope="module")
def copy(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The recorded datasets, to be broken and restored."""
    folder = tmp_path_factory.mktemp("fuzzed") / "data"
    shutil.copytree(recorded / "data", folder)
    return folder


@pytest.mark.parametrize("case", CASES)
@given(rng=st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_broken_files(copy, case, rng):
    files = files_of(copy, case)
    path = files[rng.randrange(len(files))]
    whole = path.read_bytes()
    try:
        break_file(path, rng)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a warning on the terminal is not a clear message
            messages, _ = survey(copy, case)
    finally:
        path.write_bytes(whole)
    for message in messages:
        check_line(message)


@pytest.mark.parametrize("case", CASES)
def test_whole_files(copy, case):
    """What the other tests break is whole before."""
    messages, samples = survey(copy, case)
    assert messages == [] and samples >= 3


# ---- What a mutation would not find, or not be judged by ----


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def interhand(folder: Path, kind: str) -> Path:
    return folder / "InterHand26M" / "annotations" / "train" / f"InterHand2.6M_train_{kind}.json"


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "/etc/passwd", "a/../../b.jpg", "", "nul\0.jpg", "\\\\host\\a"]
)
def test_no_annotation_leads_out_of_its_folder(recorded, tmp_path, name):  # noqa: F811
    shutil.copytree(recorded / "data", tmp_path / "data")
    edit(tmp_path / "data/HIC/data/HIC.json", lambda c: c["annotations"][0].update(right_mano_path=name))
    edit(interhand(tmp_path / "data", "data"), lambda c: c["images"][0].update(file_name=name))
    for case in ("HIC", "InterHand26M"):
        messages, samples = survey(tmp_path / "data", case)
        assert len(messages) == 1 and samples > 3, messages
        assert any(text in messages[0] for text in ("does not lie in", "null byte", "null character", "length >= 1"))


def test_a_joint_in_the_plane_of_the_camera_is_named_and_not_left_out(recorded, tmp_path):  # noqa: F811
    """It has no position in the image, so there is no box; the published rule would drop the sample."""
    shutil.copytree(recorded / "data" / "InterHand26M", tmp_path / "InterHand26M")
    before = survey(tmp_path, "InterHand26M")[1]
    content = json.loads(interhand(tmp_path, "data").read_text())
    image = next(x for x in content["images"] if x["id"] == content["annotations"][0]["image_id"])
    capture, frame, camera = str(image["capture"]), str(image["frame_idx"]), image["camera"]

    def look_along_z(cameras: dict) -> None:
        cameras[capture]["campos"][camera] = [0, 0, 0]
        cameras[capture]["camrot"][camera] = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]

    def flatten(joints: dict) -> None:
        joints[capture][frame].update(world_coord=[[30, 20, 0]] * 42, joint_valid=[[True]] * 42)

    edit(interhand(tmp_path, "camera"), look_along_z)
    edit(interhand(tmp_path, "joint_3d"), flatten)
    messages, samples = survey(tmp_path, "InterHand26M")
    assert samples >= before and any("plane of the camera" in message for message in messages)


@pytest.mark.parametrize("case", ["InterHand26M", "MSCOCO train", "HIC"])
def test_an_image_id_that_is_there_twice_is_named(recorded, tmp_path, case):  # noqa: F811
    """Which of the two is meant cannot be known."""
    name = CASES[case][0]
    shutil.copytree(recorded / "data" / name, tmp_path / name)
    path = next(path for path in files_of(tmp_path, case) if "images" in json.loads(path.read_text()))
    edit(path, lambda c: c["images"].append({**c["images"][0], "file_name": "other.jpg"}))
    messages, _ = survey(tmp_path, case)
    assert messages and all("is there twice" in message for message in messages)


@pytest.mark.parametrize(
    "flags",
    [[[1]] * 41, [[1]] * 43, [[10], []] + [[1]] * 40, [[10]] + [[1]] * 40, [[2]] * 42, [["1"]] * 42, [[]] * 42, 1],
)
def test_flags_are_42_or_an_error(flags):
    with pytest.raises(ValueError, match="42 times"):
        read_flags(json.dumps(flags).encode())


@pytest.mark.parametrize("kind", [int, bool, float])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("indent", [None, 1])
def test_flags_in_every_spelling(kind, nested, indent):
    flags = np.arange(42) % 3 == 1
    values = [[kind(flag)] if nested else kind(flag) for flag in flags]
    assert (read_flags(json.dumps(values, indent=indent).encode()) == flags).all()
