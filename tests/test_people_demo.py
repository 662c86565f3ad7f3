"""Photos with several people, from files to files; with a small untrained network."""

import json
import sys
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest
import trimesh
from inputs import smooth_image_uint8

from common.drawing.export import merge_into_shared_camera
from common.drawing.raster import HandMesh
from common.errors import UserError
from common.types import SIDES
from common.utils.camera import Camera, project
from demo import demo
from demo.people import SAME_HAND
from demo.predictor import HandPredictor

KINDS = ("box", "skeleton", "mesh", "side")
# Photo -> boxes of its people; the widest photo shows eight people who stand close.
CROWDS = {
    "none.png": [],
    "one.png": [[20, 10, 200, 190]],
    "three.png": [[150, 5, 300, 190], [0, 0, 180, 200], [220, 20, 380, 200]],
    "eight.png": [[45 * n, 10, 45 * n + 90, 200] for n in range(8)],
}


@pytest.fixture
def run(monkeypatch, checkpoint, mano_folder, predictor, tmp_path):
    """Call the demo on photos with these boxes, a file of which is written. Returns the output folder."""
    monkeypatch.setattr(HandPredictor, "load", lambda *_: predictor)

    def call(crowds: dict[str, list], *options: str, boxes: bool = True) -> Path:
        folder = tmp_path / "photos"
        folder.mkdir(exist_ok=True)
        for index, name in enumerate(crowds):
            cv2.imwrite(str(folder / name), smooth_image_uint8(index, 200, 405))
        (tmp_path / "boxes.json").write_text(json.dumps(crowds))
        arguments = ["--output", str(tmp_path / "out"), "--checkpoint", str(checkpoint), "--mano", str(mano_folder)]
        arguments += ["--input", *(str(folder / name) for name in crowds)] if crowds else []
        arguments += ["--boxes", str(tmp_path / "boxes.json")] if boxes else []
        monkeypatch.setattr(sys, "argv", ["demo.py", "--gpu", "cpu", *arguments, *options])
        demo.main()
        return tmp_path / "out"

    return call


def results(out: Path, name: str) -> dict:
    return json.loads((out / "results" / f"{name}.json").read_text())


def hand_files(out: Path, name: str) -> set[str]:
    files = [*(out / "meshes").glob(f"{name}*.obj"), *(out / "params").glob(f"{name}*.json")]
    return {file.name for file in files}


def files_of(stems: dict[str, dict]) -> set[str]:
    """Stem -> hands, as in the results -> the files of those that were not left out."""
    return {
        f"{stem}_{side}.{suffix}"
        for stem, hands in stems.items()
        for side in SIDES
        if "dropped" not in hands[side]
        for suffix in ("obj", "json")
    }


def test_photos_of_no_one_and_of_many(run) -> None:
    """0, 1, 3 and 8 people: files, ids, what each JSON holds; one image of each kind, one scene."""
    out = run(CROWDS, "--sheet")
    for name, source, box in (("none", "photo", [0, 0, 405, 200]), ("one", "boxes", CROWDS["one.png"][0])):
        content = results(out, name)
        assert content["source"] == source and content["id"] == 1 and content["box_image"] == box
        assert hand_files(out, name) == files_of({name: content["hands"]})
    for name, number in (("three", 3), ("eight", 8)):
        people = results(out, name)["people"]
        assert [one["id"] for one in people] == list(range(1, number + 1))
        assert [one["box_image"] for one in people] == sorted(CROWDS[f"{name}.png"], key=lambda box: box[0])
        assert {one["source"] for one in people} == {"boxes"} and results(out, name)["image_size"]["width"] == 405
        stems = {f"{name}_person{one['id']}": one["hands"] for one in people}
        assert hand_files(out, name) == files_of(stems)
        boxes = json.loads((out / "boxes" / f"{name}.json").read_text())["people"]
        assert [one["right"]["box"] for one in boxes] == [one["hands"]["right"]["box_image"] for one in people]
        scene = trimesh.load(out / "meshes" / f"{name}.glb")
        assert len(scene.geometry) == sum("dropped" not in one["hands"][side] for one in people for side in SIDES)
    assert {file.name for file in (out / "renders").iterdir()} == {
        f"{Path(n).stem}_{k}.jpg" for n in CROWDS for k in KINDS
    }
    assert (out / "sheet.jpg").exists()


def test_no_hand_is_reported_twice(run) -> None:
    """Of two people's hands at one place, one is left out, and says whose hand it is."""
    people = results(run(CROWDS), "eight")["people"]
    shown = [
        (one["id"], np.array(one["hands"][side]["joints_image"]))
        for one in people
        for side in SIDES
        if "dropped" not in one["hands"][side]
    ]
    for (a, first), (b, second) in combinations(shown, 2):
        size = (np.ptp(first, axis=0).max() + np.ptp(second, axis=0).max()) / 2
        assert a == b or np.linalg.norm(first.mean(0) - second.mean(0)) >= SAME_HAND * size
    reasons = [one["hands"][side].get("dropped", "") for one in people for side in SIDES]
    assert any(reason.startswith("this is person") for reason in reasons)
    assert len(shown) + sum(map(bool, reasons)) == 16


def test_crops_form_batches_across_photos(run, predictor, monkeypatch) -> None:
    """13 crops of 4 photos, 5 at a time."""
    predict, sizes = predictor.predict, []

    def count(photos, *more):
        sizes.append(len(photos))
        return predict(photos, *more)

    monkeypatch.setattr(predictor, "predict", count)
    run(CROWDS, "--batch_size", "5", "--mesh_formats", "obj")
    assert sizes == [5, 5, 3]


def test_python_gives_the_same_people(run, predictor, tmp_path) -> None:
    content = results(run(CROWDS), "three")["people"]
    people = predictor.people(tmp_path / "photos" / "three.png", boxes=CROWDS["three.png"])
    assert [one.id for one in people] == [1, 2, 3]
    for one, entry in zip(people, content, strict=True):
        assert one.source == "boxes" and one.box_image.tolist() == entry["box_image"]
        for hand in one.hands:
            np.testing.assert_allclose(hand.joints_image, entry["hands"][hand.side]["joints_image"], atol=1e-3)


def test_python_takes_a_function_as_detector(predictor: HandPredictor) -> None:
    """Boxes that are not finite give a warning; nobody found is the whole photo, with the hands of a plain call."""
    image = smooth_image_uint8(3, 200, 405)
    boxes, scores = np.array([[0, 0, 150, 200], [np.nan, 0, 9, 9], [180, 0, 330, 200]]), np.array([0.9, 0.8, 0.6])
    with pytest.warns(UserWarning, match="not finite: left out"):
        people = predictor.people(image, detector=lambda images: [(boxes, scores) for _ in images])
    assert [(one.id, one.source, one.score) for one in people] == [(1, "detector", 0.9), (2, "detector", 0.6)]
    (alone,) = predictor.people(image, detector=lambda images: [([], []) for _ in images])
    assert alone.source == "photo" and alone.box_image.tolist() == [0, 0, 405, 200]
    np.testing.assert_array_equal(alone.right.joints_cam, predictor(image).right.joints_cam)


def test_fewer_people_than_before_leave_no_files(run) -> None:
    """The files of three people go when the photo is done again as one person's."""
    run({"a.png": CROWDS["three.png"]})
    out = run({"a.png": []}, "--people", "one", boxes=False)
    assert hand_files(out, "a") == {f"a_{side}.{suffix}" for side in SIDES for suffix in ("obj", "json")}
    assert "people" not in results(out, "a") and "source" not in results(out, "a")
    out = run({"a.png": CROWDS["three.png"]})
    assert not {"a_right.obj", "a_left.json"} & hand_files(out, "a")


def test_bad_boxes_are_left_out_and_named(run, tmp_path, capsys) -> None:
    """The photo's others are done, and the end is an error; a photo without boxes fails alone."""
    crowds = {
        "a.png": [[0, 0, 150, 200], [300, 0, 200, 100], [0, 0, 30, 30], [500, 0, 600, 90]],
        "b.png": [[0, 0, 99, 99]],
    }
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "other.png"), smooth_image_uint8(9, 60, 60))
    with pytest.raises(
        UserError, match="1 of 3 photos could not be done and 1 of 3 photos have boxes that were left out"
    ):
        run(crowds, "--input", *(str(tmp_path / "photos" / name) for name in ("a.png", "b.png", "other.png")))
    errors = capsys.readouterr().err
    for reason in ("reversed", "smaller than 48 px", "outside", "other.png: --boxes does not name this photo"):
        assert errors.count(reason) == 1
    assert results(tmp_path / "out", "a")["box_image"] == [0, 0, 150, 200]


DETECTOR = """
import numpy as np

def find(images):
    for image in images:
        if image[0, 0, 0] > 250:
            raise ValueError("cannot look")
    boxes = [[0, 0, 150, 200], [np.nan, 0, 9, 9], [180, 0, 330, 200], [0, 0, 40, 40]]
    return [(np.array(boxes), np.array([0.9, 0.8, 0.6, 0.7])) if image.mean() > 60 else ([], []) for image in images]
"""


def test_a_users_detector_that_fails(run, tmp_path, monkeypatch, capsys) -> None:
    """One photo makes it raise, one has a box that is not finite, one has nobody: each is what it should be."""
    (tmp_path / "my_detector.py").write_text(DETECTOR)
    monkeypatch.syspath_prepend(tmp_path)
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, value in (("bright", 255), ("grey", 120), ("dark", 10)):
        cv2.imwrite(str(photos / f"{name}.png"), np.full((200, 405, 3), value, np.uint8))
    options = ["--people", "auto", "--detector", "my_detector:find", "--input", str(photos)]
    with pytest.raises(UserError, match="1 of 3 photos could not be done and 1 of 3 photos have boxes"):
        run({}, *options, boxes=False)
    errors = capsys.readouterr().err
    assert "bright.png: the person detector failed: ValueError: cannot look" in errors
    assert "is not finite: left out" in errors
    out = tmp_path / "out"
    assert results(out, "dark")["source"] == "photo"
    assert [(one["source"], one["score"]) for one in results(out, "grey")["people"]] == [
        ("detector", 0.9),
        ("detector", 0.6),
    ]


def test_a_photo_that_is_called_like_another_ones_person() -> None:
    files = [Path(name) for name in ("a.jpg", "a_person1.jpg", "b_person2.jpg")]
    assert list(demo.name_outputs(files).values()) == ["a", "a_person1", "b_person2"]
    assert list(demo.name_outputs(files, several=True).values()) == ["a", "a_person1_2", "b_person2"]


def test_hands_of_several_people_share_a_scene() -> None:
    """A pair keeps its distance; everybody is where the photo shows them."""
    rng = np.random.default_rng(0)
    cameras = [
        Camera(np.full(2, f), np.array(p), orthographic=True)
        for f, p in ((900.0, (100.0, 200.0)), (700.0, (500.0, 260.0)))
    ]
    hands = [HandMesh(rng.normal(0, 0.05, (30, 3)), np.zeros((1, 3), int), side, camera)
             for camera in cameras for side in (0, 1)]  # fmt: skip
    moved = merge_into_shared_camera(hands)
    assert moved[:2] == hands[:2] and all(hand.camera is cameras[0] for hand in moved)
    np.testing.assert_allclose(
        moved[3].vertices_cam - moved[2].vertices_cam, hands[3].vertices_cam - hands[2].vertices_cam, atol=1e-12
    )
    middle = [np.concatenate([hand.vertices_cam for hand in pair]).mean(0) for pair in (moved[2:], hands[2:])]
    np.testing.assert_allclose(project(middle[0], cameras[0]), project(middle[1], cameras[1]), atol=1e-9)
