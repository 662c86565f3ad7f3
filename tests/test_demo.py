"""The demo as its user meets it: files, images, options, and what goes wrong."""

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from inputs import smooth_image_uint8
from PIL import Image, ImageOps

from common.drawing.export import merge_into_shared_camera
from common.drawing.raster import HandMesh, rasterize
from common.errors import UserError
from common.utils import images
from common.utils.camera import Camera, project
from common.utils.images import load_image
from demo import demo, predictor, results
from demo import run as module
from demo.predictor import HandPredictor

SCRIPT = Path(demo.__file__)


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
    out = run()
    content = json.loads((out / "results" / "a.json").read_text())
    height, width = content["image_size"]["height"], content["image_size"]["width"]
    for index, side in enumerate(("right", "left")):
        vertices, faces = read_obj(out / "meshes" / f"a_{side}.obj")
        assert vertices.shape == (778, 3) and faces.shape == (1538, 3) and faces.min() == 1 and faces.max() == 778
        camera = camera_of(content["hands"][side])
        pixels = project(vertices, camera)
        extent = np.concatenate((pixels.min(0), pixels.max(0)))
        # Drawn four times as large, with a margin so that all of the hand is in the image: a fingertip may be
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


def test_no_hand_is_confident_enough(run, capsys):
    """Images and data are written nevertheless, and say so."""
    out = run("--min_confidence", "1", "--sheet")
    assert "0 hands reported in 3 of 3 photos (a.jpg, b c.png, ü.webp)" in capsys.readouterr().out
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
    assert demo.find_other_files([str(photos)]) == [photos / "notes.txt"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ("cam0/image1.jpg cam1/image1.jpg", "cam0_image1 cam1_image1"),
        ("a.jpg sub/a.jpg", "a sub_a"),
        ("x/cam0/a.jpg x/cam1/a.jpg x/cam1/a.png", "cam0_a cam1_a_jpg cam1_a_png"),
        ("x/y.jpg x/z/y.jpg x/z/y_jpg.png x/z/y.png", "y z_y_jpg y_jpg z_y_png"),
        ("a_b/c.jpg a/b_c.jpg a_b_c.jpg a/c.jpg a/b/c.jpg", "a_b_c_jpg b_c a_b_c_jpg_2 a_c a_b_c_jpg_3"),
        ("a.jpg a_jpg.png a.png", "a_jpg a_jpg_2 a_png"),
    ],
)
def test_no_two_photos_write_the_same_files(files, expected):
    assert list(demo.name_outputs([Path(file) for file in files.split()]).values()) == expected.split()


def test_another_run_does_not_overwrite_another_photo_of_the_same_name(run, photos, tmp_path, capsys):
    """Of another folder; the same photo again, or one whose photo has gone, is written again."""
    first, second = (tmp_path / folder / "a.jpg" for folder in ("first", "second"))
    for path in (first, second):
        path.parent.mkdir()
        shutil.copy(photos / "a.jpg", path)
    out = run("--input", str(first))
    result = out / "results" / "a.json"
    before = result.read_bytes()
    lines = failing_run(run, capsys, "1 of 1 photos", "--input", str(second))
    assert any("results of another photo of this name" in line and str(first) in line for line in lines)
    assert result.read_bytes() == before
    run("--input", str(first))
    first.unlink()
    run("--input", str(second))
    assert json.loads(result.read_bytes())["file"] == str(second)


def failing_run(run, capsys, match: str, *options: str) -> list[str]:
    """Run, expecting this error -> the lines on stderr."""
    with pytest.raises(UserError, match=match):
        run(*options)
    return capsys.readouterr().err.replace("\r", "\n").splitlines()


def test_a_name_too_long_for_its_results(run, photos, tmp_path, capsys):
    """A legal file name whose results' names would not be legal: only that photo fails, before anything is written."""
    (photos / ("x" * 245 + ".jpg")).write_bytes((photos / "a.jpg").read_bytes())
    errors = failing_run(run, capsys, "1 of 4 photos", "--sheet", "--batch_size", "2")
    assert sum("choose a shorter name" in line for line in errors) == 1
    assert names(tmp_path / "out") == expected("a") | expected("b c") | expected("ü") | {"sheet.jpg"}


def test_files_that_cannot_be_read_are_named(run, photos, capsys, monkeypatch):
    """HEIC without its reader is a failed photo; a video is named; the twins that macOS writes are ignored."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    heic = bytes([0, 0, 0, 24]) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(5000)
    for name in ("i1.HEIC", "i2.heic"):
        (photos / name).write_bytes(heic)
    for name in ("._a.jpg", "clip.mov"):
        (photos / name).write_bytes(b"x")
    errors = failing_run(run, capsys, "2 of 5 photos")
    assert sum("pip install pillow-heif" in line for line in errors) == 2
    assert sum("clip.mov" in line for line in errors) == 1 and not any("._a" in line for line in errors)


def test_heic_is_read_where_its_reader_is(photos, monkeypatch):
    image = smooth_image_uint8(5, 30, 40)
    module = types.ModuleType("pillow_heif")
    module.open_heif = lambda data: types.SimpleNamespace(size=(40, 30), to_pillow=lambda: Image.fromarray(image))
    monkeypatch.setitem(sys.modules, "pillow_heif", module)
    (photos / "i.heic").write_bytes(bytes([0, 0, 0, 24]) + b"ftypheic" + bytes(40))
    assert np.array_equal(load_image(photos / "i.heic"), image)


def test_transparency_is_ignored_with_one_warning(run, photos, capsys):
    """The network sees the colour under it, as published. An alpha channel that hides nothing is not mentioned."""
    hidden = np.full((60, 60, 4), (255, 0, 255, 0), np.uint8)
    for name, alpha in (("t1.png", 0), ("t2.png", 0), ("opaque.png", 255)):
        hidden[..., 3] = alpha
        (photos / name).write_bytes(cv2.imencode(".png", hidden)[1].tobytes())
    assert (load_image(photos / "t1.png") == [255, 0, 255]).all()
    run()
    assert capsys.readouterr().err.count("transparent pixels") in (1, 2)  # two threads may find one each
    (photos / "t1.png").unlink()
    (photos / "t2.png").unlink()
    run()
    assert "transparent" not in capsys.readouterr().err


def save_turned(path: Path, upright: np.ndarray, orientation: int) -> None:
    """Store a photo so that its EXIF orientation makes it `upright`, as Pillow has it."""
    stored = next(
        image
        for image in (upright, *(Image.fromarray(upright).transpose(way) for way in Image.Transpose))
        if np.array_equal(ImageOps.exif_transpose(with_exif(image, orientation)), upright)
    )
    with_exif(stored, orientation).save(path, lossless=True, exif=with_exif(stored, orientation).getexif())


def with_exif(image: np.ndarray | Image.Image, orientation: int) -> Image.Image:
    tagged = Image.fromarray(np.array(image))
    tagged.getexif()[0x0112] = orientation
    return tagged


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tiff"])
def test_photos_are_turned_upright(tmp_path, suffix):
    """Also where OpenCV turns by itself; the turn is reported where it was made here."""
    upright = smooth_image_uint8(7, 40, 30)
    for orientation in range(1, 9):
        save_turned(tmp_path / f"a{suffix}", upright, orientation)
        image, made = images.load_photo(tmp_path / f"a{suffix}")
        assert np.array_equal(image, upright) and made == (1 if suffix == ".tiff" else orientation)


def test_exif_gives_the_same_hands(run, photos):
    """A photo stored in each of the eight EXIF orientations, and as published without the turn."""
    upright = smooth_image_uint8(7, 120, 90)
    for file in photos.iterdir():
        file.unlink()
    for orientation in range(1, 9):
        save_turned(photos / f"{orientation}.png", upright, orientation)
    out = run("--sheet", "--mesh_formats", "obj")
    contents = [json.loads((out / "results" / f"{n}.json").read_text()) for n in range(1, 9)]
    assert [content.get("exif_orientation", 1) for content in contents] == list(range(1, 9))
    assert "turned" not in contents[0] and contents[5]["turned"] == "rotated by 90 degrees clockwise"
    for content in contents:
        assert content["image_size"] == {"width": 90, "height": 120}
        for side in ("right", "left"):
            for key in ("box_image", "joints_image", "joints_cam", "hand_pose"):
                first, here = (np.array(one["hands"][side][key]) for one in (contents[0], content))
                np.testing.assert_allclose(here, first, atol=1e-4)
    stored = run("--ignore_exif", "--mesh_formats", "obj") / "results" / "6.json"
    content = json.loads(stored.read_text())
    assert content["image_size"] == {"width": 120, "height": 90} and "exif_orientation" not in content


def test_an_exception_of_one_photo_is_its_failure_alone(run, monkeypatch, tmp_path, capsys):
    """Whichever it is, and wherever: in the network's results, in drawing. No results file of an earlier run stays."""
    run()
    assemble, boxes = HandPredictor._assemble, results.draw_boxes

    def fail_for_wide(self, photo, *more):
        return assemble(self, photo, *more) if photo.image_size != (90, 160) else 1 / 0

    def fail_for_square(image, *more):
        if image.shape[:2] == (64, 64):
            raise ValueError("cannot be drawn")
        return boxes(image, *more)

    monkeypatch.setattr(HandPredictor, "_assemble", fail_for_wide)
    monkeypatch.setattr(results, "draw_boxes", fail_for_square)
    errors = failing_run(run, capsys, "2 of 3 photos", "--sheet")
    assert any("b c.png: ZeroDivisionError" in line for line in errors)
    assert any("ü.webp: ValueError: cannot be drawn" in line for line in errors)
    assert {file.name for file in (tmp_path / "out" / "results").iterdir()} == {"a.json"}


def test_results_that_are_not_finite(run, monkeypatch, tmp_path, capsys):
    to_crop = predictor.to_crop

    def spoil_second(prediction, frames):
        result = to_crop(prediction, frames)
        result.boxes_body[1] = torch.nan
        return result

    monkeypatch.setattr(predictor, "to_crop", spoil_second)
    errors = failing_run(run, capsys, "1 of 3 photos")
    assert sum("not finite" in line for line in errors) == 1
    assert names(tmp_path / "out") == expected("a") | expected("ü")


def test_names_that_are_not_text(run, photos, tmp_path):
    """File names are bytes; one that is not UTF-8 gets all its results, and escapes on the contact sheet."""
    name = os.fsdecode(b"\xff\xfe photo.jpg")
    try:
        (photos / name).write_bytes((photos / "a.jpg").read_bytes())
    except OSError:
        pytest.skip("this file system does not take such names")
    out = run("--sheet", "--html")
    assert {f"results/{Path(name).stem}.json", f"renders/{Path(name).stem}.html", "sheet.jpg"} <= names(out)


def test_photos_in_memory_stay_bounded(run, photos, monkeypatch):
    """Reading goes ahead by bytes, not by number; a photo above the limit is still processed, alone."""
    for number in range(6):
        shutil.copy(photos / "a.jpg", photos / f"n{number}.jpg")
    held, most, lock = 0, 0, threading.Lock()
    load, write = module.load_photo, results.ResultWriter.write

    def count_load(*arguments):
        nonlocal held, most
        image, orientation = load(*arguments)
        with lock:
            held += image.nbytes
            most = max(most, held)
        return image, orientation

    def count_write(self, name, image, *more):
        nonlocal held
        write(self, name, image, *more)
        with lock:
            held -= image.nbytes

    monkeypatch.setattr(module, "load_photo", count_load)
    monkeypatch.setattr(results.ResultWriter, "write", count_write)
    for limit, expected_most in ((100_000, 100_000), (10, 200 * 150 * 3)):
        monkeypatch.setattr(module, "HELD_BYTES", limit)
        held = most = 0
        assert len(names(run("--batch_size", "4", "--mesh_formats", "obj") / "results")) == 9
        assert 0 < most <= expected_most


def test_a_photo_of_too_many_pixels_is_refused_by_its_header(tmp_path, monkeypatch):
    """By `load_image` itself, for programs that use the predictor: OpenCV would decode it."""
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", smooth_image_uint8(1, 40, 50))[1].tobytes())
    monkeypatch.setattr(images, "MAX_PIXELS", 2000)
    assert load_image(tmp_path / "a.png").shape == (40, 50, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 1999)
    with pytest.raises(UserError, match="too many pixels"):
        load_image(tmp_path / "a.png")


def test_a_photo_of_unknown_size_counts_as_a_large_one(photos):
    """A HEIC tells Pillow nothing; many at once would take all memory."""
    (photos / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    assert module.decoded_bytes(photos / "a.jpg") == 200 * 150 * 3
    assert module.decoded_bytes(photos / "a.heic") == 6000 * 8000 * 3


@pytest.mark.parametrize("header", [b"P7\nWIDTH 9 HEIGHT 9", b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 9 +X 9\n"])
def test_an_image_whose_header_tells_no_size_is_not_decoded(tmp_path, monkeypatch, header):
    """It could take all memory: OpenCV reads more formats than Pillow."""
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    (tmp_path / "a.png").write_bytes(header + bytes(99))
    with pytest.raises(UserError, match="not an image"):
        load_image(tmp_path / "a.png")


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
def test_what_is_missing_is_named(run, tmp_path, option, value, message):
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


def test_everything_that_is_missing_is_listed_at_once(tmp_path, monkeypatch, capsys):
    """In the order in which it is needed, with what to do; before anything heavy is loaded."""
    arguments = ["--mano", str(tmp_path), "--checkpoint", str(tmp_path / "no.pth")]
    monkeypatch.setattr(sys, "argv", ["demo.py", *arguments])
    with pytest.raises(UserError, match="2 things are missing"):
        demo.main()
    steps = capsys.readouterr().err.splitlines()
    assert [step[:16] for step in steps[1:]] == ["  1. the hand mo", "  2. a network: "]
    assert "make_standin_hand.py" in steps[1] and "make_checkpoint.py" in steps[2]


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


def test_hands_that_are_not_a_pair_stand_apart_in_the_scene():
    """Each has a virtual camera of its own, in whose space it is near the origin; the page and the GLB show both."""
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
    flat = dataclasses.replace(hands[0].camera, focal=np.zeros(2))
    with pytest.raises(UserError, match="without extent"):
        merge_into_shared_camera([dataclasses.replace(hands[0], camera=flat), hands[1]])
