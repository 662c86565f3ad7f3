"""The data doctor: its verdict on whole data, and on each way they go wrong."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from common.options import ROOT
from common.utils.files import write_json
from data import layouts
from tool.checks import doctor
from tool.checks.datasets import Options, Report, check_split

OPTIONS = Options(sample=50, full=False)
RNG = np.random.default_rng(0)
EYE = np.eye(3).tolist()
JOINTS_MM = RNG.uniform(-60, 60, (42, 3)) + [0, 0, 1000]
FIT = {"pose": [0.1] * 48, "shape": [0.0] * 10, "trans": [0.1, 0.2, 1.0]}


def write_image_file(path: Path, width: int = 32, height: int = 48) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), RNG.integers(0, 255, (height, width, 3), np.uint8))


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)


def edit(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    write_json(path, content)


def make_interhand(data: Path, split: str = "train", count: int = 6) -> Path:
    """A tiny InterHand2.6M: one capture, two cameras, in the official layout."""
    root = data / "InterHand26M"
    images, annotations = [], []
    for k in range(count):
        camera = f"40000{k % 2}"
        name = f"Capture0/ROM{k % 3}/cam{camera}/image{k}.jpg"
        images.append(
            {"id": k, "file_name": name, "width": 32, "height": 48, "capture": 0, "camera": camera, "frame_idx": k}
        )
        annotations.append({"id": 100 + k, "image_id": k, "joint_valid": [[1]] * 42, "hand_type": "interacting"})
        write_image_file(root / "images" / split / name)
    cameras = {
        "campos": {c: [0.0, 30.0, -900.0] for c in ("400000", "400001")},
        "camrot": {c: EYE for c in ("400000", "400001")},
        "focal": {c: [1200.0, 1200.0] for c in ("400000", "400001")},
        "princpt": {c: [16.0, 24.0] for c in ("400000", "400001")},
    }
    joints = {str(k): {"world_coord": JOINTS_MM, "joint_valid": [[True]] * 42} for k in range(count)}
    fits = {str(k): {"right": FIT, "left": None} for k in range(count)}
    kinds = {
        "data": {"images": images, "annotations": annotations},
        "camera": {"0": cameras},
        "joint_3d": {"0": joints},
        "MANO_NeuralAnnot": {"0": fits},
    }
    for kind, content in kinds.items():
        write(interhand_json(root, kind, split), content)
    return root


def interhand_json(root: Path, kind: str, split: str = "train") -> Path:
    return root / "annotations" / split / f"InterHand2.6M_{split}_{kind}.json"


def make_coco(data: Path) -> Path:
    root = data / "MSCOCO"
    images = [{"id": k, "file_name": f"{k:012d}.jpg", "width": 32, "height": 48} for k in range(4)]
    person = {
        "iscrowd": 0,
        "num_keypoints": 9,
        "bbox": [0, 0, 9.5, 9],
        "lefthand_valid": True,
        "righthand_valid": False,
    }
    person |= {"lefthand_kpts": [1, 2, 0.5] * 21, "righthand_kpts": [0] * 63}
    person |= {"lefthand_box": [1, 2, 5, 5], "righthand_box": [0] * 4}
    people = [{"id": 10 + k, "image_id": k, **person} for k in range(4)]
    for split in ("train", "val"):
        write(root / layouts.COCO_JSON.format(split=split), {"images": images, "annotations": people})
        for image in images:
            write_image_file(root / layouts.COCO_IMAGES.format(split=split) / image["file_name"])
    fit = {"mano_param": FIT, "cam_param": {"focal": [500, 500], "princpt": [16, 24]}}
    write(root / layouts.COCO_MANO, {"10": {"right": None, "left": fit}})
    return root


def make_hic(data: Path, unit: float = 1.0) -> Path:
    root = data / "HIC"
    images, annotations = [], []
    for k, sequence in enumerate(("01", "01", "05")):
        name, mesh = f"{sequence}/1/rgb/{k:03d}.png", f"{layouts.HIC_FITS}/{sequence}_R/{k:03d}.ply"
        images.append({"id": k, "file_name": name, "width": 32, "height": 48, "seq_name": sequence})
        annotations.append(
            {"id": k, "image_id": k, "hand_type": "right", "right_mano_path": mesh, "left_mano_path": None}
        )
        write_image_file(root / "data" / name)
        write_ply(root / "data" / mesh, (RNG.uniform(-0.08, 0.08, (778, 3)) + [0, 0, 0.8]) * unit)
    write(root / layouts.HIC_JSON, {"images": images, "annotations": annotations})
    return root


def write_ply(path: Path, vertices: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = f"ply\nformat ascii 1.0\nelement vertex {len(vertices)}\n"
    head += "".join(f"property float {axis}\n" for axis in "xyz") + "end_header\n"
    path.write_text(head + "".join(f"{x:.5f} {y:.5f} {z:.5f}\n" for x, y, z in vertices))


def make_capture(data: Path, name: str = layouts.TEST_CAPTURES[0]) -> Path:
    """A tiny Re:InterHand capture: two Mugsy cameras and the Ego camera, three frames."""
    capture = data / "ReInterHand" / "data" / name
    frames = (12, 15, 18)
    camera = {"R": EYE, "t": [10.0, 20.0, 900.0], "focal": [1000, 1000], "princpt": [16, 24]}
    write(capture / "Mugsy_cameras/cam_params.json", {"400262": camera, "400279": camera})
    (capture / "frame_list.txt").write_text("".join(f"seg00 {frame:06d}\n" for frame in frames))
    ego = capture / "Ego_cameras/envmap_per_frame"
    write(ego / "truncation_ratio.json", {f"{frame:06d}": 0.9 for frame in frames})
    for frame in frames:
        for name in ("400262", "400279"):
            write_image_file(capture / f"Mugsy_cameras/envmap_per_frame/images/{name}/{frame:06d}.png")
        write_image_file(ego / f"images/{frame:06d}.png")
        write(ego / f"cam_params/{frame:06d}.json", camera | {"D": [0, 0, 0, 0]})
        for side in ("right", "left"):
            write(capture / f"orig_fits/{side}/Keypoints/keypoint-{frame:06d}.json", JOINTS_MM[:24])
            write(capture / f"mano_fits/params/{frame}_{side}.json", FIT)
    return capture


def check(root: Path, split: str, options: Options = OPTIONS) -> Report:
    return check_split(root.parent, root.name, split, options)


def interhand(root: Path, split: str = "train", options: Options = OPTIONS) -> Report:
    return check(root, split, options)


def captures(capture: Path) -> Report:
    return check(capture.parent.parent, "test")


def only_problem(report: Report) -> str:
    assert report.verdict == "incomplete" and len(report.problems) == 1, report
    assert report.advice
    return report.problems[0]


# ---- nothing wrong ----


def test_whole_data_have_no_problems(tmp_path):
    """Each set, written as the official files are, is usable; the remark is that it is small."""
    reports = [interhand(make_interhand(tmp_path))]
    make_interhand(tmp_path, "test")
    (tmp_path / "InterHand26M" / layouts.INTERHAND_TEST_IDS).write_text("103\n101\n")
    reports.append(interhand(tmp_path / "InterHand26M", "test"))
    root = make_coco(tmp_path)
    reports += [check(root, split) for split in ("train", "val")]
    reports += [check(make_hic(tmp_path), "test"), captures(make_capture(tmp_path))]
    for report in reports:
        assert report.problems == [], report
    assert [report.verdict for report in reports] == ["usable", "complete", "usable", "usable", "complete", "usable"]
    assert reports[0].counts["annotations"] == reports[0].counts["interacting"] == 6
    assert "a part of the set" in reports[0].remarks[0]
    assert any("1 of the split's 3 captures" in text for text in reports[-1].remarks)


def test_toy_data_are_marked(tmp_path):
    root = make_interhand(tmp_path)
    (root / layouts.TOY_MARK).write_text("made up")
    report = interhand(root)
    assert report.verdict == "usable" and len(report.remarks) == 1 and report.remarks[0].startswith("toy data")
    interhand_json(root, "camera").unlink()
    assert "make_toy_data.py --sets InterHand26M" in interhand(root).advice  # not to download the real set


# ---- files that are missing or broken ----


def test_missing_json_is_named(tmp_path):
    root = make_interhand(tmp_path)
    interhand_json(root, "camera").unlink()
    report = interhand(root)
    assert "InterHand2.6M_train_camera.json is missing" in only_problem(report)
    assert "https://mks0601.github.io/InterHand2.6M/" in report.advice


def test_cut_json_is_named_with_its_end(tmp_path):
    root = make_interhand(tmp_path)
    path = interhand_json(root, "joint_3d")
    path.write_bytes(path.read_bytes()[:5000])
    assert "InterHand2.6M_train_joint_3d.json: truncated: the file ends after 5,000 bytes" in only_problem(
        interhand(root)
    )


@pytest.mark.parametrize(
    ("kind", "change", "place"),
    [
        (
            "data",
            lambda c: c["annotations"][3].update(image_id="x"),
            "annotations[3]: Expected int, got str - at $.image_id",
        ),
        ("MANO_NeuralAnnot", lambda c: c["0"]["4"]["right"]["pose"].pop(), "frame 4: Expected array of length >= 48"),
        ("joint_3d", lambda c: c["0"]["2"]["world_coord"].pop(), "frame 2: Expected array of length >= 42"),
        ("camera", lambda c: c["0"].pop("campos"), "capture 0: Object missing required field campos"),
    ],
)
def test_malformed_json_is_named_with_its_place(tmp_path, kind, change, place):
    root = make_interhand(tmp_path)
    edit(interhand_json(root, kind), change)
    problem = only_problem(interhand(root))
    assert f"InterHand2.6M_train_{kind}.json" in problem and place in problem


def test_broken_entries_are_counted_and_the_rest_is_looked_at(tmp_path):
    """As training does: an annotation that cannot be used is an error when it is read; the others stay usable."""
    root = make_interhand(tmp_path)
    edit(interhand_json(root, "data"), lambda c: [c["annotations"][k].update(hand_type="both") for k in (1, 4)])
    report = interhand(root)
    assert (
        "2 annotations cannot be used" in only_problem(report)
        and "annotations[1]: Invalid enum value" in report.problems[0]
    )
    assert report.counts["annotations"] == 6 and report.counts["images_sampled"] == 4
    coco = make_coco(tmp_path)
    edit(coco / layouts.COCO_JSON.format(split="val"), lambda c: c["annotations"][2]["righthand_kpts"].pop())
    assert "1 annotations cannot be used" in only_problem(check(coco, "val"))


def test_camera_of_which_a_number_is_missing(tmp_path):
    """A focal length of one number is not one."""
    root = make_interhand(tmp_path)
    edit(interhand_json(root, "camera"), lambda c: c["0"]["focal"].pop("400000"))
    assert "capture 0: camera 400000 is not complete" in only_problem(interhand(root))
    edit(interhand_json(root, "camera"), lambda c: c["0"]["focal"].update({"400000": [1200.0]}))
    assert "capture 0: camera 400000 is not complete" in only_problem(interhand(root))


def test_invalid_json_is_quoted(tmp_path):
    root = make_interhand(tmp_path)
    path = interhand_json(root, "camera")
    path.write_text(path.read_text().replace("-900.0", "-9oo.0", 1))
    assert "-9oo.0" in only_problem(interhand(root))


def test_cut_image_is_found(tmp_path):
    root = make_interhand(tmp_path)
    path = next(root.rglob("image3.jpg"))
    path.write_bytes(path.read_bytes()[:300])
    problem = only_problem(interhand(root))
    assert (
        problem.startswith("1 of 6 images or their annotations cannot be used")
        and "cut short" in problem
        and "image3.jpg" in problem
    )


@pytest.mark.parametrize("full", [True, False])
def test_missing_images_are_counted(tmp_path, full, monkeypatch):
    """A lost folder is always found; single lost images of a very large set only with --full."""
    root = make_interhand(tmp_path)
    monkeypatch.setattr("tool.checks.datasets.LOOKED_FOR", 5)
    for path in root.rglob("ROM1/*/*.jpg"):
        path.unlink()
    report = interhand(root, options=Options(sample=50, full=full))
    assert report.counts["images_missing"] == (2 if full else 0) and report.counts["missing_in_sample"] == 2
    assert only_problem(report).startswith("2 images are missing" if full else "2 of 6 images are missing")
    for folder in (*root.rglob("ROM1/*"), *root.rglob("ROM1")):
        folder.rmdir()
    report = interhand(root, options=Options(sample=1, full=full))
    assert any("2 images are missing" in text and "/Capture0/ROM1/" in text for text in report.problems)


def test_exchanged_sides_are_counted_and_usable(tmp_path, capfd):
    """As some images of the official InterHand2.6M have them; the published system reads them."""
    root = make_interhand(tmp_path)
    for number in (1, 4):
        write_image_file(next(root.rglob(f"image{number}.jpg")), width=48, height=32)
    report = interhand(root)
    assert report.problems == [] and report.verdict == "usable" and report.counts["exchanged_in_sample"] == 2
    assert "2 of 6 images have their sides exchanged" in report.remarks[-1]
    assert capfd.readouterr().err.count("sides exchanged against its annotation") == 1


def test_image_of_another_size_is_found(tmp_path):
    root = make_interhand(tmp_path)
    write_image_file(next(root.rglob("image2.jpg")), width=16, height=24)
    assert "16 x 24 pixels, the annotation says 32 x 48" in only_problem(interhand(root))


# ---- files that do not fit together ----


def test_annotation_without_image_entry(tmp_path):
    root = make_interhand(tmp_path)
    edit(interhand_json(root, "data"), lambda c: c["images"].pop(0))
    problem = only_problem(interhand(root))
    assert problem.startswith("1 annotations cannot be used") and "annotations[0]: there is no image 0" in problem


def test_frames_and_cameras_without_data(tmp_path):
    root = make_interhand(tmp_path)
    edit(interhand_json(root, "joint_3d"), lambda c: c["0"].pop("5"))
    edit(interhand_json(root, "MANO_NeuralAnnot"), lambda c: c["0"].pop("4"))
    edit(interhand_json(root, "camera"), lambda c: c["0"]["campos"].pop("400001"))
    report = interhand(root)
    assert "capture 0: camera 400001 is not complete" in only_problem(interhand(root))
    edit(interhand_json(root, "camera"), lambda c: c["0"]["campos"].update({"400001": [0.0, 30.0, -900.0]}))
    report = interhand(root)
    assert "1 annotations cannot be used" in only_problem(report) and "no frame 5 of capture 0" in report.problems[0]
    assert "1 annotations have no MANO fit" in report.remarks[0]


def test_list_of_test_ids_is_compared(tmp_path):
    root = make_interhand(tmp_path, "test")
    report = interhand(root, "test")
    assert "121573 of 121573 annotation ids of the published test list" in only_problem(report)
    assert "the subset 'all'" in report.problems[0]
    (root / layouts.INTERHAND_TEST_IDS).write_text("103\n999\n")
    assert "1 of 2 annotation ids of" in only_problem(interhand(root, "test"))


# ---- units ----


@pytest.mark.parametrize(
    ("kind", "change", "expected"),
    [
        ("camera", lambda c: c["0"].update(campos={k: [0, 0.03, -0.9] for k in c["0"]["campos"]}), "campos"),
        (
            "joint_3d",
            lambda c: [f.update(world_coord=(JOINTS_MM / 1000).tolist()) for f in c["0"].values()],
            "world_coord",
        ),
    ],
)
def test_metres_for_millimetres_are_found(tmp_path, kind, change, expected):
    root = make_interhand(tmp_path)
    edit(interhand_json(root, kind), change)
    problem = interhand(root).problems[0]
    assert expected in problem and "they look like metres, mm is expected" in problem


def test_millimetres_for_metres_are_found(tmp_path):
    root = make_interhand(tmp_path)
    millimetres = FIT | {"trans": [100.0, 200.0, 1000.0]}
    edit(interhand_json(root, "MANO_NeuralAnnot"), lambda c: [f.update(right=millimetres) for f in c["0"].values()])
    problem = only_problem(interhand(root))
    assert "trans of the MANO fits" in problem and "they look like millimetres, m is expected" in problem
    hic = check(make_hic(tmp_path, unit=1000), "test")
    assert "size of the meshes" in only_problem(hic) and "millimetres" in hic.problems[0]


def test_camera_matrix_that_is_not_a_rotation(tmp_path):
    root = make_interhand(tmp_path)
    edit(interhand_json(root, "camera"), lambda c: c["0"]["camrot"].update({"400001": (2 * np.eye(3)).tolist()}))
    assert "1 of 2 sampled camera matrices (camrot, R) are not rotations" in only_problem(interhand(root))


# ---- the other sets ----


def test_cut_images_of_every_set_are_found(tmp_path):
    coco, hic, capture = make_coco(tmp_path), make_hic(tmp_path), make_capture(tmp_path)
    for root, pattern in ((coco, "train2017/*2.jpg"), (hic, "05/1/rgb/*.png"), (capture, "Mugsy*/*/*/400279/*15.png")):
        path = next(root.rglob(pattern))
        path.write_bytes(path.read_bytes()[:300])
    reports = [check(coco, "train"), check(hic, "test"), captures(capture)]
    for report in reports:
        assert "cut short" in only_problem(report)


def test_broken_fits_and_meshes_are_found(tmp_path):
    coco, hic, capture = make_coco(tmp_path), make_hic(tmp_path), make_capture(tmp_path)
    edit(coco / layouts.COCO_MANO, lambda c: c["10"]["left"]["mano_param"]["shape"].pop())
    mesh = next(hic.rglob("*.ply"))
    mesh.write_text(mesh.read_text()[:2000])
    edit(capture / "mano_fits/params/15_left.json", lambda c: c.update(pose=None))
    assert "annotation 10: Expected array of length >= 10" in only_problem(check(coco, "train"))
    assert mesh.name in only_problem(check(hic, "test"))
    assert "mano_fits/params/15_left.json" in only_problem(captures(capture))


def test_coco_images_are_all_looked_for(tmp_path):
    root = make_coco(tmp_path)
    (root / "images/train2017/000000000002.jpg").unlink()
    report = check(root, "train", Options(sample=1, full=False))
    assert "1 images are missing" in only_problem(report) and "train2017.zip" in report.advice


def test_hic_names_the_sequence_to_download(tmp_path):
    root = make_hic(tmp_path)
    next((root / "data/05").rglob("*.png")).unlink()
    report = check(root, "test")
    assert "1 images are missing" in only_problem(report) and "--sequences 05" in report.advice


def test_hic_paths_must_stay_inside(tmp_path):
    root = make_hic(tmp_path)
    edit(root / layouts.HIC_JSON, lambda c: c["annotations"][0].update(left_mano_path="../../../etc/passwd"))
    assert any("name files outside the dataset's folder" in text for text in check(root, "test").problems)


def test_camera_with_missing_images(tmp_path):
    """The camera is named, how many are missing, and the command that gets them."""
    capture = make_capture(tmp_path)
    (capture / "Mugsy_cameras/envmap_per_frame/images/400279/000015.png").unlink()
    report = captures(capture)
    assert (
        report.verdict == "usable"
        and "cameras with missing images, which are not used: RNS217 400279 (1)" in (report.remarks[0])
    )
    assert "--captures RNS217 --parts mugsy_per_frame" in report.advice


def test_capture_of_fits_without_images(tmp_path):
    capture = make_capture(tmp_path)
    for path in (capture / "Mugsy_cameras/envmap_per_frame", capture / "Ego_cameras/envmap_per_frame"):
        path.rename(tmp_path / path.parent.name)
    assert "Mugsy_cameras/envmap_per_frame/images is missing" in only_problem(captures(capture))


@pytest.mark.parametrize(
    ("file", "part"),
    [("orig_fits/left/Keypoints/keypoint-000018.json", "orig_fits"), ("mano_fits/params/18_left.json", "mano_fits")],
)
def test_capture_with_missing_fits(tmp_path, file, part):
    """Training would stop there, so all are looked for."""
    capture = make_capture(tmp_path)
    (capture / file).unlink()
    report = check(capture.parent.parent, "test", Options(sample=1, full=False))
    assert any("1 other files are missing" in text and file in text for text in report.problems)
    assert report.verdict == "incomplete" and f"--captures RNS217 --parts {part}`" in report.advice


def test_capture_with_wrong_units(tmp_path):
    capture = make_capture(tmp_path)
    camera_file = capture / "Mugsy_cameras/cam_params.json"
    edit(camera_file, lambda c: [camera.update(t=[0, 0.02, 0.9]) for camera in c.values()])
    assert any("distance of the cameras" in text and "metres" in text for text in captures(capture).problems)


def test_damaged_annotation_cache_is_found_by_full(tmp_path, monkeypatch):
    """A bit of a large column: what is small is checked whenever it is opened."""
    root = make_interhand(tmp_path)
    assert interhand(root).problems == []
    monkeypatch.setattr("data.store.CHECKED_AT_OPEN", 1000)
    path = next((root / "cache").rglob("*.npz"))
    data = bytearray(path.read_bytes())
    data[data.index(b"joints_world.npy") + 1000] ^= 1
    path.write_bytes(data)
    assert interhand(root).problems == []
    assert "joints_world.npy is damaged" in only_problem(interhand(root, options=Options(sample=50, full=True)))


# ---- the command ----


@pytest.fixture
def examine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable:
    """The command in this process, blind to the hand model, checkpoint and training of this machine."""

    def examine(mano: Path, *args: object) -> tuple[int, str]:
        monkeypatch.setattr(doctor, "OUTPUT_FOLDER", tmp_path / "output")
        monkeypatch.setattr(doctor, "CHECKPOINT", tmp_path / "demo" / "snapshot_6.pth")
        monkeypatch.setattr(doctor, "UNTRAINED", tmp_path / "demo" / "untrained.pth")
        monkeypatch.setattr(doctor, "MANO_FOLDER", mano)
        monkeypatch.setattr(sys, "argv", ["doctor.py", "--data", str(tmp_path), *map(str, args)])
        code = doctor.main()
        return code, capsys.readouterr().out

    return examine


def test_nothing_there_gets_an_overview(tmp_path, examine):
    code, text = examine(tmp_path)
    assert code == 1
    assert text.startswith("Nothing is here yet.") and "https://mano.is.tue.mpg.de" in text
    assert all(info.how_to_get in text for info in layouts.DATASETS.values())


def test_command_reports_and_writes_json(tmp_path, examine, mano_folder):
    make_hic(tmp_path)
    code, text = examine(mano_folder, "--json", tmp_path / "report.json")
    assert code == 0
    assert "HIC test             complete" in text and "InterHand26M         missing" in text
    report = json.loads((tmp_path / "report.json").read_text())
    verdicts = {(report["name"], report["split"]): report["verdict"] for report in report["reports"]}
    assert verdicts["HIC", "test"] == "complete" and verdicts["MSCOCO", "val"] == "missing"
    assert examine(mano_folder, "--checkpoint", tmp_path / "no.pth")[0] == 1  # it was named


@pytest.mark.parametrize(
    ("found", "named", "code"),
    [
        ([], [], 1),  # nothing at all
        ([("HIC", "test", "")], [], 0),  # the other sets are missing: none is required
        ([("HIC", "test", "wrong")], [], 1),
        ([("HIC", "test", "")], ["MSCOCO"], 1),  # named, and missing
        ([("MSCOCO", "train", "")], [], 1),  # val is missing where train is there
        ([("MSCOCO", "train", ""), ("MSCOCO", "val", "")], ["MSCOCO"], 0),
    ],
)
def test_exit_code(found, named, code):
    reports = [Report(name, split) for name, info in layouts.DATASETS.items() for split in info.splits]
    for name, split, problem in found:
        report = next(report for report in reports if (report.name, report.split) == (name, split))
        report.found, report.problems = True, [problem] if problem else []
    assert doctor.exit_code(reports, named) == code


def test_mistakes_of_the_user_get_a_line(tmp_path, monkeypatch, capsys):
    command = [sys.executable, ROOT / "tool" / "doctor.py", "--data", tmp_path / "no"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "no such folder" in done.stderr and "Traceback" not in done.stderr
    monkeypatch.setattr(sys, "argv", ["doctor.py", "--sets", "COCO"])
    with pytest.raises(SystemExit, match="^2$"):
        doctor.main()
    assert "there are: InterHand26M" in capsys.readouterr().err


def test_damaged_hand_model_and_checkpoint(tmp_path, mano_folder, small_snapshot):
    good = doctor.check_mano(mano_folder)
    assert good.problems == []
    (tmp_path / "MANO_RIGHT.pkl").write_bytes((mano_folder / "MANO_RIGHT.pkl").read_bytes()[:1000])
    assert "MANO_RIGHT.pkl" in only_problem(doctor.check_mano(tmp_path))
    assert doctor.check_checkpoint(small_snapshot, "").verdict == "complete"
    path = tmp_path / "cut.pth"
    path.write_bytes(small_snapshot.read_bytes()[:-100_000])
    assert "cut.pth" in only_problem(doctor.check_checkpoint(path, ""))
