"""Toy data: annotations that agree with the images to the pixel, the official layouts, and no user's data touched."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import trimesh

from common.errors import UserError
from common.nets.mano import TwoHandMano
from common.nets.mano_files import read_hand_models
from common.types import SIDES, ManoParams
from common.utils.camera import CaptureCamera, project_capture
from common.utils.images import load_image
from common.utils.joints import INTERHAND_JOINTS, REINTERHAND_JOINTS, reorder_index
from data.layouts import TEST_CAPTURES, TOY_MARK
from main.build import open_dataset
from main.config import Config
from tool.toy import make_data
from tool.toy import scene as toy_scene
from tool.toy.formats import check_folder, toy_folder

ROOT = Path(__file__).resolve().parents[1]
TRAIN, TEST, SCALE = 7, 4, 0.4
ARGS = ["--train", str(TRAIN), "--test", str(TEST), "--scale", str(SCALE), "--seed", "3"]


@pytest.fixture(scope="module")
def hand(standin: Path) -> TwoHandMano:
    return TwoHandMano(*read_hand_models(standin))


@pytest.fixture(scope="module")
def toy(standin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four datasets, small."""
    folder = tmp_path_factory.mktemp("toy")
    run(["--out", str(folder), "--mano", str(standin), *ARGS])
    return folder


def run(args: list[str]) -> None:
    """The command, in this process."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["make_toy_data.py", *args])
        make_data.main()
    torch.set_num_threads(threads)


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def skin(hand: TwoHandMano, record: dict, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A record of MANO parameters -> vertices (778, 3), joints (21, 3), m, as a reader of the files computes them."""
    pose, betas = torch.tensor(record["pose"]).view(16, 3), torch.tensor(record["shape"])
    both = ManoParams(*(part.expand(1, 2, *part.shape) for part in (pose[0], pose[1:], betas)))
    vertices, joints = (part[0, side].double().numpy() + record["trans"] for part in hand(both))
    return vertices, joints


# Every image as (pixels, camera, {side: vertices in the camera's world}, {side: joints there in m, or None}).
Scene = tuple[np.ndarray, CaptureCamera, dict[int, np.ndarray], dict[int, np.ndarray | None]]


def interhand_scenes(folder: Path, hand: TwoHandMano, split: str) -> list[Scene]:
    annotations = folder / "InterHand26M" / "annotations" / split
    data, cameras, joints, mano = (
        read(annotations / f"InterHand2.6M_{split}_{kind}.json")
        for kind in ("data", "camera", "joint_3d", "MANO_NeuralAnnot")
    )
    images = {image["id"]: image for image in data["images"]}
    scenes = []
    for annotation in data["annotations"]:
        image = images[annotation["image_id"]]
        capture, frame, name = str(image["capture"]), str(image["frame_idx"]), image["camera"]
        campos, camrot, focal, princpt = (
            np.array(cameras[capture][kind][name]) for kind in ("campos", "camrot", "focal", "princpt")
        )
        camera = CaptureCamera(focal, princpt, camrot, -camrot @ campos / 1000)
        world = np.array(joints[capture][frame]["world_coord"]).reshape(2, 21, 3)[:, reorder_index(INTERHAND_JOINTS)]
        valid = np.array(joints[capture][frame]["joint_valid"]).reshape(2, 21)[:, reorder_index(INTERHAND_JOINTS)]
        world = np.where(valid[..., None], world / 1000, np.nan)
        pixels = load_image(folder / "InterHand26M" / "images" / split / image["file_name"])
        assert pixels.shape[:2] == (image["height"], image["width"])
        records = mano[capture][frame]
        vertices = {s: skin(hand, records[name], s)[0] for s, name in enumerate(SIDES) if records[name]}
        scenes.append((pixels, camera, vertices, {s: world[s] for s in vertices}))
    return scenes


def coco_scenes(folder: Path, hand: TwoHandMano) -> list[Scene]:
    annotations = folder / "MSCOCO" / "annotations"
    data = read(annotations / "coco_wholebody_train_v1.0.json")
    fits = read(annotations / "MSCOCO_train_MANO_NeuralAnnot.json")
    images = {image["id"]: image for image in data["images"]}
    scenes = []
    for annotation in data["annotations"]:
        if str(annotation["id"]) in fits:
            fit = {s: fits[str(annotation["id"])][name] for s, name in enumerate(SIDES)}
            fit = {s: record for s, record in fit.items() if record}
            camera = next(iter(fit.values()))["cam_param"]
            camera = CaptureCamera(*(np.array(camera[k]) for k in ("focal", "princpt")), np.eye(3), np.zeros(3))
            pixels = load_image(
                folder / "MSCOCO" / "images" / "train2017" / images[annotation["image_id"]]["file_name"]
            )
            vertices = {s: skin(hand, record["mano_param"], s)[0] for s, record in fit.items()}
            scenes.append((pixels, camera, vertices, dict.fromkeys(vertices)))
            for s, record in fit.items():
                keypoints = np.array(annotation[f"{SIDES[s]}hand_kpts"]).reshape(21, 3)
                seen = keypoints[:, 2] > 0
                projected = project_capture(skin(hand, record["mano_param"], s)[1], camera)
                assert np.abs(projected - keypoints[:, :2])[seen].max() < 0.05
    return scenes


def hic_scenes(folder: Path) -> list[Scene]:
    data = folder / "HIC" / "data"
    content = read(data / "HIC.json")
    images = {image["id"]: image for image in content["images"]}
    camera = CaptureCamera(np.array([525.0, 525.0]), np.array([319.5, 239.5]), np.eye(3), np.zeros(3))
    scenes = []
    for annotation in content["annotations"]:
        pixels = load_image(data / images[annotation["image_id"]]["file_name"])
        paths = {s: annotation[f"{name}_mano_path"] for s, name in enumerate(SIDES)}
        meshes = {s: trimesh.load(data / path, process=False).vertices for s, path in paths.items() if path}
        assert {"interacting": 2}.get(annotation["hand_type"], 1) == len(meshes)
        scenes.append((pixels, camera, meshes, dict.fromkeys(meshes)))
    return scenes


def reinterhand_scenes(folder: Path, hand: TwoHandMano, kind: str) -> list[Scene]:
    scenes = []
    for capture in sorted((folder / "ReInterHand" / "data").glob("m--*")):
        for path in sorted((capture / kind / "envmap_per_frame" / "images").rglob("*.png")):
            frame = int(path.stem)
            if kind == "Ego_cameras":
                record = read(path.parents[1] / "cam_params" / f"{frame:06d}.json")
            else:
                record = read(capture / kind / "cam_params.json")[path.parent.name]
            rotation, transl, focal, princpt = (np.array(record[k]) for k in ("R", "t", "focal", "princpt"))
            distortion = np.array(record["D"]) if "D" in record else None
            camera = CaptureCamera(focal, princpt, rotation, transl / 1000, distortion)
            vertices, joints = {}, {}
            for s, name in enumerate(SIDES):
                vertices[s], _ = skin(hand, read(capture / "mano_fits" / "params" / f"{frame}_{name}.json"), s)
                keypoints = read(capture / "orig_fits" / name / "Keypoints" / f"keypoint-{frame:06d}.json")
                assert len(keypoints) == len(REINTERHAND_JOINTS)
                joints[s] = np.array(keypoints)[reorder_index(REINTERHAND_JOINTS)] / 1000
            scenes.append((load_image(path), camera, vertices, joints))
    return scenes


@pytest.fixture(scope="module")
def scenes(toy: Path, hand: TwoHandMano) -> dict[str, list[Scene]]:
    return {
        "InterHand26M": interhand_scenes(toy, hand, "train") + interhand_scenes(toy, hand, "test"),
        "MSCOCO": coco_scenes(toy, hand),
        "HIC": hic_scenes(toy),
        "Mugsy": reinterhand_scenes(toy, hand, "Mugsy_cameras"),
        "Ego": reinterhand_scenes(toy, hand, "Ego_cameras"),
    }


def to_image(points_world: np.ndarray, camera: CaptureCamera) -> np.ndarray:
    return project_capture(points_world @ camera.rotation.T + camera.transl, camera)


def silhouette(pixels: np.ndarray, points_image: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(H, W) bool: filled triangles, by OpenCV and not by the renderer that drew the image."""
    mask = np.zeros(pixels.shape[:2], np.uint8)
    for triangle in np.round(points_image[faces] * 16).astype(np.int32):
        cv2.fillConvexPoly(mask, triangle, 1, shift=4)
    return mask > 0


def test_annotated_joints_are_those_of_the_mano_parameters(scenes: dict[str, list[Scene]], hand: TwoHandMano) -> None:
    """A wrong unit, frame, joint order or a translation that forgets the wrist would be centimetres off."""
    regressor = hand.joint_regressor.numpy()
    for name in ("InterHand26M", "Mugsy", "Ego"):
        for _, _, vertices, joints in scenes[name]:
            for side, points in vertices.items():
                apart = np.linalg.norm(regressor @ points - joints[side], axis=-1)
                assert np.nanmax(apart) < 1e-3, name
                assert np.isfinite(apart).sum() > 10


def test_joints_lie_on_their_hand(scenes: dict[str, list[Scene]], hand: TwoHandMano) -> None:
    """Projected joints fall on the projected mesh of the same hand, through every kind of camera."""
    regressor, faces = hand.joint_regressor.numpy(), hand.faces.numpy()
    for name, entries in scenes.items():
        hits = []
        for pixels, camera, vertices, _ in entries:
            for side, points in vertices.items():
                mask = cv2.dilate(
                    silhouette(pixels, to_image(points, camera), faces[side]).astype(np.uint8), np.ones((3, 3))
                )
                joints = np.round(to_image(regressor @ points, camera)).astype(int)
                joints = joints[((joints >= 0) & (joints < pixels.shape[1::-1])).all(1)]
                hits += mask[joints[:, 1], joints[:, 0]].tolist()
        assert len(hits) > 60 and np.mean(hits) > 0.98, name


def test_annotations_fit_the_images(scenes: dict[str, list[Scene]], hand: TwoHandMano) -> None:
    """The image has its edges where the annotated mesh has its outline, and not a few pixels beside it."""
    faces = hand.faces.numpy()
    for name, entries in scenes.items():
        there, beside = [], []
        for pixels, camera, vertices, _ in entries:
            mask = np.zeros(pixels.shape[:2], bool)
            for side, points in vertices.items():
                mask |= silhouette(pixels, to_image(points, camera), faces[side])
            inner = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((2, 2)))
            row, column = np.nonzero(inner)
            grey = cv2.GaussianBlur(pixels.astype(np.float32).mean(-1), (0, 0), 1)
            slope = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
            for shift, to in (
                ((0, 0), there),
                ((6, 6), beside),
                ((-6, 6), beside),
                ((6, -6), beside),
                ((-6, -6), beside),
            ):
                x, y = column + shift[0], row + shift[1]
                inside = (x >= 0) & (y >= 0) & (x < mask.shape[1]) & (y < mask.shape[0])
                if inside.any():
                    to.append(slope[y[inside], x[inside]].mean())
        assert np.mean(there) > 1.5 * np.mean(beside), name


def test_truncation_ratio_is_the_visible_share(toy: Path, hand: TwoHandMano) -> None:
    """Larger means more visible, despite the name: readers drop frames by it."""
    for capture in sorted((toy / "ReInterHand" / "data").glob("m--*"))[:2]:
        folder = capture / "Ego_cameras" / "envmap_per_segment"
        ratios = read(folder / "truncation_ratio.json")
        listed = [f"{int(line.split()[1]):06d}" for line in (capture / "frame_list.txt").read_text().splitlines()]
        assert list(ratios) == listed and all((folder / "images" / f"{name}.png").is_file() for name in listed)
        assert all(0 <= ratio <= 1 for ratio in ratios.values()) and max(ratios.values()) > 0.5


def test_interhand_has_the_types_of_the_original(toy: Path) -> None:
    """Readers decode strictly: ints here, booleans there, camera names as text, ids of the test list that exist."""
    folder = toy / "InterHand26M"
    annotations = folder / "annotations" / "test"
    data = read(annotations / "InterHand2.6M_test_data.json")
    assert sorted(data) == ["annotations", "images"]
    valid = data["annotations"][0]["joint_valid"]
    assert np.shape(valid) == (42, 1) and type(valid[0][0]) is int and type(data["images"][0]["camera"]) is str
    frames = next(iter(read(annotations / "InterHand2.6M_test_joint_3d.json").values()))
    assert all(type(flag) is bool for frame in frames.values() for (flag,) in frame["joint_valid"])
    assert all(len(frame["world_coord"]) == 42 for frame in frames.values())
    ids = [int(line) for line in (folder / "aid_human_annot_test.txt").read_text().split()]
    assert ids == [annotation["id"] for annotation in data["annotations"]] and len(ids) == TEST
    for frame in frames.values():
        for joints, flag in zip(frame["world_coord"], frame["joint_valid"], strict=True):
            assert flag[0] or joints == [1, 1, 1]


def test_sources_read_them(toy: Path, tmp_path: Path) -> None:
    """The project's own readers find as many samples as requested: odd persons are skipped, captures sorted."""
    lengths = {}
    for name, split in (("InterHand26M", "train"), ("InterHand26M", "test"), ("MSCOCO", "train"), ("MSCOCO", "test"),
                        ("HIC", "test"), ("ReInterHand", "train"), ("ReInterHand", "test")):  # fmt: skip
        dataset = open_dataset(name, split, Config(), toy, cache=tmp_path)
        lengths[name, split] = len(dataset)
        for index in range(len(dataset)):
            annotation = dataset.source.annotation(index)
            assert load_image(annotation.image_path).shape[:2] == tuple(annotation.image_size)
    assert lengths == {(name, split): {"train": TRAIN, "test": TEST}[split] for name, split in lengths}
    assert {path.name for path in (toy / "ReInterHand" / "data").iterdir()} & set(TEST_CAPTURES)


def test_same_command_writes_the_same_bytes(toy: Path, standin: Path, tmp_path: Path) -> None:
    """Also in another process; hash seeds and clocks must not matter."""
    command = [sys.executable, "tool/make_toy_data.py", "--out", str(tmp_path), "--mano", str(standin), *ARGS]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    for name in make_data.WRITERS:
        first, second = contents(toy / name), contents(tmp_path / name)
        assert first == second
        assert len(first) > TEST and TOY_MARK in first


# ---- folders ----


def fill(folder: Path, names: list[str]) -> None:
    """Toy data of a few files."""
    with toy_folder(folder) as staging:
        for name in names:
            path = staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"toy {name}")


def test_real_data_are_left_alone(standin: Path, tmp_path: Path) -> None:
    """A user's own annotations, in a folder without the marker: refused before any work, nothing touched."""
    real = tmp_path / "MSCOCO" / "annotations" / "coco_wholebody_train_v1.0.json"
    real.parent.mkdir(parents=True)
    real.write_text("real")
    with pytest.raises(UserError, match="something else than toy data.*coco_wholebody_train"):
        run(["--out", str(tmp_path), "--mano", str(standin), *ARGS])
    assert list(contents(tmp_path)) == ["MSCOCO/annotations/coco_wholebody_train_v1.0.json"]


@pytest.mark.parametrize("where", ["images/train/own.jpg", "annotations/data.json", "own.zip"])
def test_real_data_among_toy_data_are_left_alone(where: str, tmp_path: Path) -> None:
    """The marker alone is no licence: real files put beside toy data, or in their place, are found."""
    fill(tmp_path / "set", ["annotations/data.json", "images/train/a.jpg"])
    path = tmp_path / "set" / where
    path.write_text("somebody's own")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="something else than toy data"):
        fill(tmp_path / "set", ["annotations/data.json"])
    assert contents(tmp_path) == before


def test_a_link_to_real_data_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "photo.jpg").write_text("real")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "images").symlink_to(tmp_path / "real", target_is_directory=True)
    with pytest.raises(UserError, match="something else"):
        check_folder(tmp_path / "set")


def test_old_toy_data_go_and_the_projects_files_stay(tmp_path: Path) -> None:
    """Stale images would be listed as samples; the readers' sources and caches live in the same folders."""
    folder = tmp_path / "set"
    (folder / "cache").mkdir(parents=True)
    for name in ("HIC.py", "__init__.py", ".gitkeep", "cache/columns.npy"):
        (folder / name).write_text("ours")
    fill(folder, ["images/a.jpg", "images/deep/b.jpg"])
    fill(folder, ["images/c.jpg"])
    ours = {"HIC.py", "__init__.py", ".gitkeep", "cache/columns.npy"}
    assert set(contents(folder)) == ours | {"images/c.jpg", TOY_MARK}
    assert not (folder / "images" / "deep").exists()


def switch_steps(monkeypatch: pytest.MonkeyPatch, fail_at: int) -> list[str]:
    """Count the steps of a switch between sets, and fail from one of them on, as when the process is killed."""
    steps: list[str] = []

    def counted(name: str, run: Callable) -> Callable:
        def step(*args: object, **more: object) -> object:
            if name == "replace" and Path(str(args[0])).suffix == ".tmp":
                return run(*args, **more)  # a file that is written whole, before the switch
            steps.append(name)
            if len(steps) > fail_at:
                raise KeyboardInterrupt
            return run(*args, **more)

        return step

    monkeypatch.setattr(os, "replace", counted("replace", os.replace))
    monkeypatch.setattr(shutil, "rmtree", counted("rmtree", shutil.rmtree))
    return steps


@pytest.mark.parametrize("fail_at", range(8))
def test_a_kill_at_any_step_of_the_switch_loses_neither_set(
    fail_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first rename on the new set is whole on the disk; the next run completes it and clears leftovers."""
    folder = tmp_path / "set"
    fill(folder, ["annotations/old.json", "images/old.jpg", "list.txt"])
    with monkeypatch.context() as patch:
        steps = switch_steps(patch, fail_at)
        with pytest.raises(KeyboardInterrupt):
            fill(folder, ["annotations/new.json", "images/new.jpg"])
        assert steps == ["replace"] * min(fail_at, 6) + ["rmtree"] * max(0, fail_at - 6) + steps[fail_at:]
    assert len(list(folder.rglob("new.*"))) == 2  # nothing of the new set is lost
    assert len(list(folder.rglob("old.*"))) == 2 or fail_at > 6  # nor of the old, before the new one is in place
    with pytest.raises(RuntimeError), toy_folder(folder):  # a next run that writes nothing
        raise RuntimeError
    assert set(contents(folder)) == {"annotations/new.json", "images/new.jpg", TOY_MARK}
    check_folder(folder)


def test_a_signal_during_the_switch_ends_it_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unlike a kill, a signal leaves time: the new set is in place when the command ends."""
    folder, replace, calls = tmp_path / "set", os.replace, []
    fill(folder, ["images/old.jpg"])

    def interrupted(source: Path, target: Path) -> None:
        replace(source, target)
        calls.append(source)
        if len(calls) == 2:  # after the marker is written and the old images are moved aside
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fill(folder, ["images/new.jpg"])
    assert set(contents(folder)) == {"images/new.jpg", TOY_MARK}


def test_a_file_put_between_half_switched_sets_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "set"
    fill(folder, ["images/old.jpg"])
    with monkeypatch.context() as patch:
        switch_steps(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            fill(folder, ["images/new.jpg"])
    (folder / "own.zip").write_text("somebody's own")
    with pytest.raises(UserError, match="own.zip"):
        fill(folder, ["images/a.jpg"])
    assert (folder / "own.zip").exists() and len(list(folder.rglob("*.jpg"))) == 2


def test_leftovers_of_a_killed_run_are_cleared(tmp_path: Path) -> None:
    """Its half-written files, temporary ones included, lie in one hidden folder."""
    folder = tmp_path / "set"
    fill(folder, ["images/a.jpg"])
    (folder / ".toy_partial" / "images").mkdir(parents=True)
    (folder / ".toy_partial" / "images" / ".0123456789abcdef.tmp").write_text("half")
    fill(folder, ["images/b.jpg"])
    assert set(contents(folder)) == {"images/b.jpg", TOY_MARK}


def test_an_interrupted_run_leaves_the_old_data_whole(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    fill(folder, ["images/a.jpg"])
    before = contents(folder)
    with pytest.raises(KeyboardInterrupt), toy_folder(folder) as staging:
        (staging / "half.jpg").write_text("half")
        raise KeyboardInterrupt
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["--train", "0"], "--train: 0 is below 1"),
        (["--seed", "-1"], "--seed: -1 is below 0"),
        (["--scale", "0"], "--scale: 0 is not between 0.1 and 4"),
        (["--mano", "nowhere"], "make_standin_hand.py"),
    ],
)
def test_mistakes_are_named(args: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises((UserError, SystemExit)) as failure:
        run(["--out", str(tmp_path), *args])
    assert reason in str(failure.value) + capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_an_unknown_set_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        run(["--out", str(tmp_path), "--sets", "MSCOCO,COCO"])
    assert "there is no 'COCO'; there are: InterHand26M, MSCOCO" in capsys.readouterr().err


def test_a_hand_that_is_not_mano_is_refused(mano_folder: Path, tmp_path: Path) -> None:
    """The hand of the recorded results is full of holes: no arm can continue from its wrist."""
    with pytest.raises(UserError, match="not open at the wrist"):
        run(["--out", str(tmp_path), "--mano", str(mano_folder), *ARGS])


# ---- scenes ----


def test_hands_touch_without_running_into_each_other(rig: toy_scene.HandRig, hand: TwoHandMano) -> None:
    """Balls within the hands keep apart; many pairs are in contact, and many cover each other in the image."""
    gaps, overlaps = [], []
    for seed in range(25):
        hands = toy_scene.sample_hands(np.random.default_rng(seed), rig, (True, True))
        (a, radii_a), (b, radii_b) = (toy_scene.fill_with_balls(rig, joints) for joints in hands.joints)
        apart = np.linalg.norm(a[:, None] - b, axis=-1) - radii_a[:, None] - radii_b
        assert apart.min() > -0.002
        right, left = hands.vertices
        gaps.append(np.linalg.norm(right[:, None, :] - left[None, ::2], axis=-1).min())
        canvas = np.zeros((256, 256, 3))
        masks = [silhouette(canvas, hands.vertices[s][:, :2] * 500 + 128, hand.faces[s].numpy()) for s in (0, 1)]
        overlaps.append((masks[0] & masks[1]).sum() / min(mask.sum() for mask in masks))
    assert np.mean(np.array(gaps) < 0.012) > 0.5
    assert np.mean(np.array(overlaps) > 0.1) > 0.3


def test_balls_lie_within_the_hand(rig: toy_scene.HandRig) -> None:
    """Otherwise the test for contact would keep hands apart that do not touch, or let them run into each other."""
    joints = rig.regressor @ rig.models[0].v_template
    centres = rig.ball_joints @ joints
    apart = np.linalg.norm(centres[:, None] - rig.models[0].v_template, axis=-1).min(1)
    assert (rig.ball_radii <= apart + 1e-9).all() and rig.ball_radii.min() > 0.002 and rig.ball_radii.max() < 0.025


def test_slide_apart_ends_in_contact() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        fixed = rng.normal(0, 0.05, (12, 3)), rng.uniform(0.01, 0.02, 12)
        moving = rng.normal(0, 0.05, (9, 3)), rng.uniform(0.01, 0.02, 9)
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        for beyond, clear in ((0.0, 0.0), (0.01, 0.0), (0.5, 0.1)):
            moved = moving[0] + (toy_scene.slide_apart(fixed, moving, direction) + beyond) * direction
            space = np.linalg.norm(moved[None] - fixed[0][:, None], axis=-1) - fixed[1][:, None] - moving[1]
            assert space.min() > clear - 1e-9
            if not beyond:
                assert space.min() < 1e-9


@pytest.mark.parametrize("side", [0, 1])
def test_gestures_bend_the_fingers_they_name(side: int, rig: toy_scene.HandRig) -> None:
    """A fist brings the fingertips to the palm, a flat hand keeps them away, on either hand."""
    rng = np.random.default_rng(5)

    def reach(gesture: str) -> np.ndarray:
        pose = np.stack([toy_scene.sample_hand_pose(rng, rig, s, gesture) for s in (0, 1)])
        params = ManoParams(torch.zeros(1, 2, 3), torch.from_numpy(pose).float()[None], torch.zeros(1, 2, 10))
        joints = rig.mano(params)[1][0, side].numpy()
        return np.linalg.norm(joints[[8, 12, 16, 20]] - joints[0], axis=-1)

    flat, fist, point = reach("flat"), reach("fist"), reach("point")
    assert (flat > 0.13).all() and (fist < 0.1).all()
    assert point[0] > 0.14 and (point[1:] < 0.11).all()


@pytest.mark.parametrize("side", [0, 1])
def test_palm_rotation_points_where_it_should(side: int) -> None:
    """Fingers up with the palm towards the viewer: the thumb points to the other hand's side."""
    rotation = toy_scene.palm_rotation(np.array([0, -1.0, 0]), np.array([0, 0, -1.0]), side)
    fingers = np.array([-1.0 if side == 0 else 1.0, 0, 0])
    assert np.allclose(rotation @ fingers, [0, -1, 0]) and np.allclose(rotation @ [0, -1, 0], [0, 0, -1])
    assert np.allclose(rotation @ [0, 0, 1], [1 if side == 0 else -1, 0, 0])
    assert np.isclose(np.linalg.det(rotation), 1)


def test_moved_hands_keep_their_parameters_true(rig: toy_scene.HandRig) -> None:
    """MANO turns about the wrist, so a turned hand needs another translation than a turned point would."""
    hands = toy_scene.sample_hands(np.random.default_rng(2), rig, (True, True))
    rotation, transl = toy_scene.look_at(np.array([0.3, -0.2, -0.9]), np.array([0.05, 0, 0]), 0.4)
    moved = toy_scene.move_hands(hands, rotation, transl)
    params = ManoParams(
        *(
            torch.from_numpy(np.asarray(part)).float()[None]
            for part in (moved.global_orient, moved.hand_pose, moved.betas)
        )
    )
    vertices = rig.mano(params)[0][0].numpy() + moved.transl[:, None]
    assert np.abs(vertices - moved.vertices).max() < 1e-5
