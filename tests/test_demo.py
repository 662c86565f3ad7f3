"""The demo as its user meets it: files, pictures, options, and what goes wrong."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from inputs import smooth_image_uint8

from common.errors import UserError
from common.utils.camera import Camera, project
from demo import demo
from tool.toy.standin_hand import write_standin

SCRIPT = Path(demo.__file__)


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("standin")
    write_standin(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, seed, size in (("a.jpg", 1, (200, 150)), ("b c.png", 2, (90, 160)), ("ü.webp", 3, (64, 64))):
        ok, data = cv2.imencode(Path(name).suffix, smooth_image_uint8(seed, *size))
        assert ok
        (folder / name).write_bytes(data.tobytes())
    return folder


@pytest.fixture
def run(monkeypatch, small_snapshot, standin, photos, tmp_path):
    """Call the demo with given options; the defaults are the test's own files. Returns the output folder."""

    def call(*options: str, **paths: Path) -> Path:
        paths = {"checkpoint": small_snapshot, "mano": standin, "input": photos, "output": tmp_path / "out", **paths}
        arguments = [text for name, path in paths.items() for text in (f"--{name}", str(path))]
        monkeypatch.setattr(sys, "argv", ["demo.py", "--gpu", "cpu", *arguments, *options])
        demo.main()
        return paths["output"]

    return call


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def expected(name: str) -> set[str]:
    hands = ("right", "left")
    return {
        f"boxes/{name}.json",
        f"results/{name}.json",
        f"meshes/{name}.glb",
        *(f"meshes/{name}_{hand}.{suffix}" for hand in hands for suffix in ("obj", "ply")),
        *(f"params/{name}_{hand}.json" for hand in hands),
        *(f"renders/{name}_{kind}.jpg" for kind in ("box", "skeleton", "mesh", "side")),
    }


def read_obj(path: Path) -> tuple[np.ndarray, np.ndarray]:
    rows = [line.split() for line in path.read_text().splitlines()]
    vertices = np.array([row[1:] for row in rows if row[0] == "v"], float)
    return vertices, np.array([[int(x.split("/")[0]) for x in row[1:]] for row in rows if row[0] == "f"])


def camera_of(hand: dict) -> Camera:
    camera = hand["camera"]
    return Camera(np.array(camera["focal"]), np.array(camera["princpt"]), camera["type"] == "orthographic")


def test_all_files(run, capsys):
    """All files of every photo, no others, names with spaces and other alphabets; the stand-in is called that."""
    out = run()
    assert names(out) == expected("a") | expected("b c") | expected("ü")
    printed = capsys.readouterr().out
    assert "not MANO" in printed and "3 of 3 photos done" in printed
    params = json.loads((out / "params" / "a_left.json").read_text())
    assert list(params)[:4] == ["root_pose", "hand_pose", "shape", "root_trans"]
    assert [len(params[key]) for key in ("root_pose", "hand_pose", "shape", "root_trans")] == [3, 45, 10, 3]
    assert json.loads((out / "params" / "a_right.json").read_text())["root_trans"] == [0, 0, 0]
    assert params["root_trans"] == json.loads((out / "results" / "a.json").read_text())["rel_transl"]
    for kind in ("box", "skeleton", "mesh", "side"):
        assert cv2.imread(str(out / "renders" / f"a_{kind}.jpg")).shape == (200, 150, 3)


def test_meshes_and_cameras_give_the_overlay(run):
    """From the written files alone: project(vertices) has the extent of the rendered silhouette to half a pixel."""
    from common.drawing.raster import HandMesh, rasterize

    out = run()
    content = json.loads((out / "results" / "a.json").read_text())
    height, width = content["image_size"]["height"], content["image_size"]["width"]
    for index, side in enumerate(("right", "left")):
        vertices, faces = read_obj(out / "meshes" / f"a_{side}.obj")
        assert vertices.shape == (778, 3) and faces.shape == (1538, 3) and faces.min() == 1 and faces.max() == 778
        camera = camera_of(content["hands"][side])
        pixels = project(vertices, camera)
        extent = np.concatenate((pixels.min(0), pixels.max(0)))
        # Drawn four times as large, with a margin so that all of the hand is in the picture: a fingertip may be
        # thinner than a pixel and then covers no pixel's centre.
        scale, margin = 4, 60
        enlarged = Camera(camera.focal * scale, (camera.princpt + margin) * scale, orthographic=True)
        size = (height + 2 * margin) * scale, (width + 2 * margin) * scale
        rows, columns = np.nonzero(rasterize([HandMesh(vertices, faces - 1, index, enlarged)], *size).hand >= 0)
        silhouette = np.array([columns.min(), rows.min(), columns.max(), rows.max()]) / scale - margin
        assert np.abs(silhouette - extent).max() < 0.5


def test_again_gives_the_same_bytes(run, tmp_path):
    first = run()
    kept = {name: (first / name).read_bytes() for name in names(first)}
    second = run(output=tmp_path / "second")
    assert {name: (second / name).read_bytes() for name in names(second)} == kept


def test_batch_size_changes_nothing_that_is_seen(run, tmp_path):
    one, many = run("--batch_size", "1"), run("--batch_size", "3", output=tmp_path / "many")
    for name in ("a", "b c", "ü"):
        content = [json.loads((out / "results" / f"{name}.json").read_text()) for out in (one, many)]
        for side in ("right", "left"):
            joints = [np.array(part["hands"][side]["joints_cam"]) for part in content]
            np.testing.assert_allclose(*joints, atol=1e-4)


def test_one_hand(run):
    """The other hand's files are not written, and those of an earlier run do not stay as if they were of this one."""
    run()
    out = run("--hand", "right")
    assert names(out) == {n for name in ("a", "b c", "ü") for n in expected(name) if "_left" not in n}
    content = json.loads((out / "results" / "a.json").read_text())
    assert content["hands"]["left"]["dropped"] == "only the right hand was asked for"
    assert "joints_cam" in content["hands"]["right"] and not content["pair"]


def test_no_hand_is_sure_enough(run):
    """Pictures and data are there all the same, and say so."""
    out = run("--min_confidence", "1")
    assert not list((out / "meshes").iterdir()) and (out / "renders" / "a_mesh.jpg").exists()
    hands = json.loads((out / "results" / "a.json").read_text())["hands"]
    assert all("is below 1" in hand["dropped"] and "box_image" in hand for hand in hands.values())


def test_real_camera_and_page(run):
    out = run("--focal", "300", "--html", "--mesh_formats", "obj")
    content = json.loads((out / "results" / "a.json").read_text())
    assert content["depth"].startswith("metric")
    camera = content["hands"]["right"]["camera"]
    assert camera["type"] == "pinhole" and not camera["virtual"] and camera["princpt"] == [74.5, 99.5]
    assert (out / "renders" / "a.html").exists() and not (out / "meshes" / "a.glb").exists()


def test_a_bad_photo_among_good_ones(run, photos, capsys):
    """Named with its reason; the others are done; the end is an error. A truncated JPEG is bad, not half good."""
    whole = (photos / "a.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "text.jpg").write_text("not an image")
    (photos / "empty.png").touch()
    with pytest.raises(UserError, match="3 of 6 photos could not be done"):
        run()
    errors = capsys.readouterr().err
    for name in ("cut.jpg", "text.jpg", "empty.png"):
        assert sum(name in line for line in errors.splitlines()) == 1
    assert (photos.parent / "out" / "renders" / "a_mesh.jpg").exists()
    assert not list((photos.parent / "out").rglob("cut*")) and not list((photos.parent / "out").rglob("text*"))


def test_patterns_files_and_same_names(run, photos):
    shutil.copy(photos / "a.jpg", photos / "a.jpeg")
    (photos / "notes.txt").write_text("ignored")
    files = demo.find_images([str(photos / "a.*"), str(photos), str(photos / "a.jpg")])
    assert [file.name for file in files] == ["a.jpeg", "a.jpg", "b c.png", "ü.webp"]
    assert list(demo.name_outputs(files).values()) == ["a_jpeg", "a_jpg", "b c", "ü"]
    other = photos / "sub"
    other.mkdir()
    shutil.copy(photos / "a.jpg", other)
    with pytest.raises(UserError, match="would write the same results"):
        demo.name_outputs([photos / "a.jpg", other / "a.jpg"])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("input", "nowhere", "no image at .*nowhere: put photos there"),
        ("input", "empty", "no images in .*empty: put photos there"),
        ("checkpoint", "none.pth", "checkpoint not found: .*none.pth"),
        ("mano", "empty", "MANO file not found: .*make_standin_hand"),
        ("output", "file/out", "cannot make folder .*file/out"),
    ],
)
def test_what_is_missing_is_said(run, tmp_path, option, value, message):
    """One line; nothing was written."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=message) as caught:
        run(**{option: tmp_path / value})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() or not names(tmp_path / "out")


def test_an_unknown_gpu(run, monkeypatch):
    count = torch.cuda.device_count()
    with pytest.raises(UserError, match=f"there is no GPU {count + 7}; this machine has"):
        run("--gpu", str(count + 7))
    for text in ("x", "3-1", "", "0,,1", "-1"):
        with pytest.raises(UserError, match="is not understood"):
            run(f"--gpu={text}")


@pytest.mark.skipif(importlib.util.find_spec("pytorch3d") is not None, reason="PyTorch3D is installed here")
def test_renderer_that_is_not_installed(run):
    with pytest.raises(UserError, match="needs PyTorch3D"):
        run("--renderer", "pytorch3d")


def script(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, cwd=cwd)


def test_the_script_itself(small_snapshot, standin, photos, tmp_path):
    """From another folder, with relative paths."""
    options = [
        "--input",
        "photos/a.jpg",
        "--output",
        "out",
        "--checkpoint",
        str(small_snapshot),
        "--mano",
        str(standin),
    ]
    done = script("--gpu", "cpu", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert names(tmp_path / "out") == expected("a")


def test_errors_are_one_line_and_exit_code_2(tmp_path):
    done = script("--input", str(tmp_path))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: no images in") and done.stderr.count("\n") == 1
    assert script("--min_confidence", "2").returncode == 2


def test_help_loads_nothing_heavy():
    """--help answers at once: neither torch nor OpenCV nor numpy is imported for it."""
    done = subprocess.run([sys.executable, "-X", "importtime", str(SCRIPT), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--min_confidence" in done.stdout
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "common.errors" in loaded and not loaded & {"torch", "cv2", "numpy", "trimesh"}


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_folder_of_somebody_else(run, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(UserError, match="Permission denied"):
        run(output=folder)


def test_hands_that_are_no_pair_stand_apart_in_the_scene():
    """Each has a virtual camera of its own, in whose space it is near the origin; the page and the GLB show both."""
    from common.drawing.raster import HandMesh
    from common.utils.camera import project
    from demo.results import merge_into_shared_camera

    rng = np.random.default_rng(0)
    hands = [
        HandMesh(
            rng.normal(0, 0.05, (30, 3)) + (0.01, 0, z), np.zeros((1, 3), int), side,
            Camera(np.full(2, focal), np.array(princpt), orthographic=True),
        )
        for side, z, focal, princpt in ((0, 0.3, 900.0, (100.0, 200.0)), (1, 0.7, 700.0, (500.0, 260.0)))
    ]  # fmt: skip
    right, left = merge_into_shared_camera(hands)
    assert right is hands[0] and left.camera == right.camera
    shift = left.vertices_cam - hands[1].vertices_cam
    assert np.ptp(shift, axis=0).max() < 1e-12  # the size stays
    seen = project(left.vertices_cam.mean(0), left.camera)
    assert seen == pytest.approx(project(hands[1].vertices_cam.mean(0), hands[1].camera))
    assert left.vertices_cam[:, 0].min() - right.vertices_cam[:, 0].max() > 0.1
    assert merge_into_shared_camera([]) == [] and merge_into_shared_camera(hands[1:]) == hands[1:]
