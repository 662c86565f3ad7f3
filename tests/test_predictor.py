"""The Python way in: from photo to typed result, in the photo's own pixels."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from inputs import smooth_image_uint8
from PIL import Image

from common.checkpoint import GENERATED_NOTE, UNTRAINED_NOTE, data_record
from common.errors import UserError
from common.utils.camera import Camera, project
from common.utils.images import load_image
from demo.hands import PhotoHands
from demo.predictor import HandPredictor
from demo.results import ResultWriter, camera_to_dict, photo_to_dict


@pytest.fixture(scope="module")
def predictor(small_snapshot: Path, mano_folder: Path) -> HandPredictor:
    return HandPredictor.load(small_snapshot, mano_folder, ["cpu"])


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return smooth_image_uint8(4, 240, 300)


@pytest.fixture(scope="module")
def photo(predictor: HandPredictor, image: np.ndarray) -> PhotoHands:
    return predictor(image)


def test_result(photo):
    """Both hands, finite, in shapes that the docstrings promise."""
    assert [hand.side for hand in photo.hands] == ["right", "left"] and not photo.dropped
    assert photo.image_size == (240, 300) and photo.boxes_image.shape == (2, 4)
    for index, hand in enumerate(photo.hands):
        assert hand.vertices_cam.shape == (778, 3) and hand.joints_cam.shape == (21, 3)
        assert hand.hand_pose.shape == (15, 3) and hand.betas.shape == (10,)
        assert np.isfinite(hand.vertices_cam).all() and 0 <= hand.confidence <= 1
        np.testing.assert_array_equal(hand.box_image, photo.boxes_image[index])


def test_the_published_body_box(photo):
    """The whole photo, less one pixel, brought to 3 : 4, enlarged by 1.25, and cut to integers: size, then corner."""
    width, height = int(299 * 1.25), int(299 / 0.75 * 1.25)
    assert photo.body_box_image.tolist() == [int(149.5 - width / 2), int(119.5 - height / 2), width, height]


@pytest.mark.parametrize(
    ("box", "integers"),
    [
        (None, True),
        ((0, 0, 300, 240), True),
        (np.array([0, 0, 300, 240], np.int32), True),
        ((0, 0, 300, 240.0), False),
        (np.array([0, 0, 300, 240], np.float32), False),
    ],
)
def test_the_crop_follows_the_type_of_the_box(predictor, image, box, integers):
    """A float warp by the body box of the box's type, to 1e-4 of a gray level on average."""
    x, y, w, h = (-37, -129, 373, 498) if integers else (-37.375, -129.6666667, 373.75, 498.3333333)
    prepared = predictor.prepare(image, box)
    np.testing.assert_allclose(prepared.body_box_image, [x, y, w, h], atol=1e-6)
    image_to_crop = np.array([[384 / w, 0, -x * 384 / w], [0, 512 / h, -y * 512 / h]])
    warped = cv2.warpAffine(image.astype(np.float32), image_to_crop, (384, 512))
    assert prepared.crop.dtype == np.float32
    assert np.abs(prepared.crop - warped).mean() < 1e-4


def test_a_pair_shares_a_camera_and_others_do_not(predictor, image, photo):
    assert photo.pair == (photo.box_iou > 0)
    assert photo.pair  # the small network's boxes overlap
    assert photo.right.camera is photo.left.camera
    # Placed so that the wrists differ by the relative translation.
    wrists = photo.left.joints_cam[0] - photo.right.joints_cam[0]
    np.testing.assert_allclose(wrists, photo.rel_transl, atol=1e-5)
    alone = predictor(image, hand="left")
    assert not alone.pair and alone.right is None and alone.left.camera is not photo.left.camera


def test_a_hand_alone_is_overlaid_on_its_own_projection(predictor, image):
    """The camera of one hand is fitted to that hand's virtual projection: extents agree exactly, x and y."""
    hand = predictor(image, hand="right").right
    overlay = project(hand.joints_cam, hand.camera)
    prepared = predictor.prepare(image)
    with torch.inference_mode():
        crop = torch.from_numpy(prepared.crop)[None].permute(0, 3, 1, 2).float() / 255
        from common.postprocess import to_crop

        result = to_crop(predictor.model(crop), predictor.config.frames)
    proj_crop = result.joints_proj_crop[0, 0].numpy()
    x0, y0, w, h = prepared.body_box_image
    proj_image = proj_crop * [w / 384, h / 512] + [x0, y0]
    np.testing.assert_allclose(np.ptp(overlay, axis=0), np.ptp(proj_image, axis=0), rtol=1e-4)
    np.testing.assert_allclose(overlay.mean(0), proj_image.mean(0), atol=0.05)


def test_a_shifted_box_shifts_the_answer(predictor, image):
    """A person anywhere in a larger photo: the same crop gives the same hands, moved with the box.

    The numbers are floats: those of an integer box are cut toward zero, so by less left of the photo than inside.
    """
    large = np.zeros((400, 500, 3), np.uint8)
    large[50:290, 80:380] = image
    # The box of the whole small photo, seen from the large one; sanitizing takes one pixel of width off again.
    moved = predictor(large, box_xywh=(80.0, 50.0, 300.0, 240.0))
    alone = predictor(image, box_xywh=(0.0, 0.0, 300.0, 240.0))
    np.testing.assert_allclose(moved.boxes_image - alone.boxes_image, [[80, 50, 80, 50]] * 2, atol=0.2)
    np.testing.assert_allclose(moved.right.joints_image - alone.right.joints_image, [[80, 50]] * 21, atol=0.2)
    np.testing.assert_allclose(
        project(moved.left.vertices_cam, moved.left.camera) - project(alone.left.vertices_cam, alone.left.camera),
        [[80, 50]] * 778,
        atol=0.2,
    )


def test_real_intrinsics_place_the_hands(predictor, image):
    """The overlay stays near the virtual one; size is the hand's own, depth follows the focal length."""
    virtual = predictor(image, hand="right").right
    depths = []
    for focal in (300.0, 600.0):
        camera = Camera(np.array([focal, focal]), np.array([149.5, 119.5]), orthographic=False)
        placed = predictor(image, intrinsics=camera, hand="right")
        assert placed.metric and placed.right.camera is camera
        overlay = project(placed.right.joints_cam, camera)
        extent = np.ptp(project(virtual.joints_cam, virtual.camera), axis=0).max()
        assert np.abs(overlay - project(virtual.joints_cam, virtual.camera)).max() < 0.25 * extent
        bones = [np.linalg.norm(hand.joints_cam[1] - hand.joints_cam[0]) for hand in (placed.right, virtual)]
        assert bones[0] == pytest.approx(bones[1], rel=1e-4)
        depths.append(placed.right.joints_cam[0, 2])
    assert depths[1] / depths[0] == pytest.approx(2, rel=0.1)


def test_a_pair_stays_a_pair_before_a_real_camera(predictor, image):
    camera = Camera(np.array([400.0, 400.0]), np.array([149.5, 119.5]), orthographic=False)
    photo = predictor(image, intrinsics=camera)
    assert photo.pair and photo.metric
    wrists = photo.left.joints_cam[0] - photo.right.joints_cam[0]
    np.testing.assert_allclose(wrists, photo.rel_transl, atol=1e-5)


def test_which_hands_are_left_out(predictor, image, photo):
    limit = float(photo.confidences.mean())
    more_confident = "right" if photo.confidences[0] > photo.confidences[1] else "left"
    kept = predictor(image, min_confidence=limit)
    assert [hand.side for hand in kept.hands] == [more_confident] and "is below" in next(iter(kept.dropped.values()))
    assert predictor(image, min_confidence=1.0).hands == []
    with pytest.raises(ValueError, match="must be one of"):
        predictor(image, hand="third")


def test_auto_drops_one_of_two_boxes_on_one_hand(predictor, image):
    """And only then: with distinct boxes both stay."""
    state = {key: value.clone() for key, value in predictor.model.state_dict().items()}
    try:
        with torch.no_grad():
            center = predictor.model.body_box_net.bbox_center[0]
            center.weight[1], center.bias[1] = center.weight[0], center.bias[0]
            predictor.model.body_box_net.lhand_size.load_state_dict(
                predictor.model.body_box_net.rhand_size.state_dict()
            )
        same = predictor(image, hand="auto")
        assert same.box_iou > 0.99 and len(same.hands) == 1 and "one hand" in next(iter(same.dropped.values()))
        assert len(predictor(image, hand="both").hands) == 2
    finally:
        predictor.model.load_state_dict(state)
    other = smooth_image_uint8(3, 240, 300)
    assert 0 < predictor(other).box_iou < 0.8 and len(predictor(other, hand="auto").hands) == 2


def test_batched_equals_single(predictor, image, photo):
    other = smooth_image_uint8(9, 333, 222)
    results = predictor.predict([predictor.prepare(other), predictor.prepare(image)])
    np.testing.assert_allclose(results[1].right.vertices_cam, photo.right.vertices_cam, atol=1e-4)
    np.testing.assert_allclose(results[1].boxes_image, photo.boxes_image, atol=1e-2)
    assert results[0].image_size == (333, 222)


def test_paths_arrays_and_wrong_arrays(predictor, image, tmp_path):
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), image[..., ::-1])
    np.testing.assert_array_equal(load_image(path), image)
    np.testing.assert_array_equal(predictor(path).boxes_image, predictor(image).boxes_image)
    for wrong in (image[..., 0], image.astype(np.float32), np.zeros((10, 10, 4), np.uint8), image[:0]):
        with pytest.raises(ValueError, match=r"must be \(H, W, 3\) uint8 RGB"):
            predictor(wrong)
    with pytest.raises(UserError, match="holds nothing"):
        predictor(image, box_xywh=(400, 0, 50, 50))
    with pytest.raises(UserError, match="holds nothing"):
        predictor(np.zeros((1, 1, 3), np.uint8))


def test_pil_images_and_lists(predictor, image, photo, tmp_path, monkeypatch):
    """Each photo of a list is what it is alone, whatever its kind, across batches; EXIF is undone as for files."""
    monkeypatch.setattr("demo.predictor.BATCH", 2)
    upright, turned = Image.fromarray(image), Image.fromarray(np.rot90(image))
    exif = turned.getexif()
    exif[0x0112] = 6  # stored turned left
    turned.save(tmp_path / "turned.png", exif=exif)
    opened = Image.open(tmp_path / "turned.png")
    for one in (upright, opened, tmp_path / "turned.png"):
        np.testing.assert_array_equal(predictor(one).boxes_image, photo.boxes_image)
        np.testing.assert_array_equal(predictor(one).image, image)
    assert predictor(opened, ignore_exif=True).image_size == (300, 240)
    box = (10.0, 20.0, 200.0, 150.0)
    results = predictor([image, str(tmp_path / "turned.png"), upright], [None, None, box], hand="right")
    assert [len(result.hands) for result in results] == [1, 1, 1]
    for result, alone in zip(results, (photo, photo, predictor(image, box)), strict=True):
        np.testing.assert_allclose(result.boxes_image, alone.boxes_image, atol=1e-2)
    assert predictor([]) == [] and predictor((upright,), intrinsics=[None])[0].image_size == photo.image_size
    with pytest.raises(ValueError, match="convert it to RGB"):
        predictor(upright.convert("I"))


def camera(focal=(500.0, 500.0), princpt=(1.0, 2.0), orthographic=False) -> Camera:
    return Camera(np.array(focal), np.array(princpt), orthographic)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"image": 3}, TypeError, "a photo must be a path, a PIL image or"),
        ({"image": [[1, 2]]}, TypeError, "a photo must be"),
        ({"hand": "third"}, ValueError, "hand must be one of both, right, left, auto, not 'third'"),
        ({"hand": None}, ValueError, "hand must be one of"),
        ({"min_confidence": 1.5}, ValueError, "min_confidence must be a number from 0 to 1, not 1.5"),
        ({"min_confidence": float("nan")}, ValueError, "min_confidence must be"),
        ({"min_confidence": "0.5"}, ValueError, "min_confidence must be"),
        ({"box_xywh": (0, 0, 10)}, ValueError, "box_xywh must be four finite numbers"),
        ({"box_xywh": (0, 0, float("nan"), 10)}, ValueError, "box_xywh must be"),
        ({"box_xywh": "0 0 10 10"}, ValueError, "box_xywh must be"),
        ({"intrinsics": np.eye(3)}, TypeError, "intrinsics must be a Camera, not ndarray; of a 3 x 3 matrix"),
        ({"intrinsics": camera(orthographic=True)}, ValueError, "must be a pinhole camera"),
        ({"intrinsics": camera(focal=(500.0, -1.0))}, ValueError, "focal must be two numbers above 0"),
        ({"intrinsics": camera(focal=(500.0,))}, ValueError, "focal must be"),
        ({"intrinsics": camera(princpt=(1.0, 2.0, 3.0))}, ValueError, "princpt must be two finite numbers"),
        ({"intrinsics": camera(princpt=(1.0, float("inf")))}, ValueError, "princpt must be"),
        ({"image": ["a.jpg"] * 2, "box_xywh": [None]}, ValueError, "one entry for each of the 2 photos"),
        ({"image": ["a.jpg"] * 2, "intrinsics": np.eye(3)}, ValueError, "one entry for each of the 2 photos"),
    ],
)
def test_wrong_arguments_are_one_line(predictor, image, arguments, kind, message):
    with pytest.raises(kind, match=message) as caught:
        predictor(**({"image": image} | arguments))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"detector": 3}, TypeError, "detector must be"),
        ({"boxes": [[0, 0, 10]]}, ValueError, r"boxes must be \(P, 4\)"),
        ({"boxes": [[0, 0, 10, 10], [0]]}, ValueError, r"boxes must be \(P, 4\)"),
        ({"boxes": [], "min_person": 2}, ValueError, "min_person must be a number from 0 to 1"),
        ({"boxes": [], "max_people": 0}, ValueError, "max_people must be a whole number from 1"),
        ({"boxes": [], "intrinsics": np.eye(3)}, TypeError, "intrinsics must be a Camera"),
    ],
)
def test_wrong_arguments_for_people_are_one_line(predictor, image, arguments, kind, message):
    with pytest.raises(kind, match=message):
        predictor.people(image, **arguments)


def test_devices(small_snapshot, mano_folder):
    assert HandPredictor.load(small_snapshot, mano_folder, "cpu").devices == [torch.device("cpu")]
    for devices, kind, message in (
        ("gpu", ValueError, "no device 'gpu'"),
        ([], ValueError, "must not be empty"),
        (["cuda:99"], ValueError, "no GPU cuda:99"),
        ([3.5], TypeError, "a device must be"),
    ):
        with pytest.raises(kind, match=message):
            HandPredictor.load(small_snapshot, mano_folder, devices)


def test_save_writes_the_files_of_the_demo(predictor, image, photo, tmp_path):
    """All folders, named after the photo; of people one set of files each; a batch kept no photo."""
    path = tmp_path / "two.png"
    cv2.imwrite(str(path), image[..., ::-1])
    result = predictor(path)
    result.save(tmp_path / "ours", html=True)
    writer = ResultWriter(tmp_path / "theirs", predictor.hand_model_name, html=True)
    writer.begin("two", 1, path)
    writer.write("two", np.ascontiguousarray(image), result)
    files = [file.relative_to(tmp_path / "theirs") for file in (tmp_path / "theirs").rglob("*.*")]
    assert len(files) == 14 and sorted(files) == sorted(
        file.relative_to(tmp_path / "ours") for file in (tmp_path / "ours").rglob("*.*")
    )
    for file in files:
        if file.suffix != ".html":  # trimesh names its nodes at random
            assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes()
    for person in predictor.people(image, boxes=[[0, 0, 150, 240], [150, 0, 300, 240]]):
        person.save(tmp_path / "people", mesh_formats=["ply"])
    names = {file.name for file in (tmp_path / "people" / "results").iterdir()}
    assert names == {"photo_person1.json", "photo_person2.json"}
    for bad in ({"name": "a/b"}, {"mesh_formats": "obj"}, {"mesh_formats": ["x"]}, {"renderer": "x"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            photo.save(tmp_path, **bad)
    with pytest.raises(ValueError, match="needs the photo itself"):
        predictor.predict([predictor.prepare(image)])[0].save(tmp_path)


def test_result_as_data(photo, predictor):
    """Plain JSON, with frames and units named, which gives the overlay by its own formula."""
    content = json.loads(json.dumps(photo_to_dict("x", photo, "a hand"), allow_nan=False))
    hand = content["hands"]["left"]
    joints, camera = np.array(hand["joints_cam"]), hand["camera"]
    assert camera["projection"].startswith("x = focal_x * X + princpt_x") and camera["virtual"]
    np.testing.assert_allclose(
        joints[:, :2] * camera["focal"] + camera["princpt"],
        project(photo.left.joints_cam, photo.left.camera),
        rtol=1e-5,
    )
    assert content["hand_model"] == "a hand" and "metres" in content["units"]["cam"]
    pinhole = camera_to_dict(Camera(np.array([500.0, 500.0]), np.array([1.0, 2.0]), orthographic=False))
    assert pinhole["type"] == "pinhole" and not pinhole["virtual"]


def test_a_network_says_what_its_results_are_not_for(small_snapshot, mano_folder, image, tmp_path):
    """By its checkpoint's own record, and in the results."""
    content = torch.load(small_snapshot, weights_only=True)
    for data, note in (
        (None, ""),
        (data_record(["InterHand26M", "MSCOCO"], [], "MANO"), ""),
        (data_record(["InterHand26M", "MSCOCO"], ["MSCOCO"], "MANO"), GENERATED_NOTE),
        (data_record([], [], ""), UNTRAINED_NOTE),
    ):
        torch.save({**content, "data": data}, tmp_path / "a.pth")
        predictor = HandPredictor.load(tmp_path / "a.pth", mano_folder, ["cpu"])
        assert predictor.note == note
    result = photo_to_dict("x", predictor(image), "a hand", predictor.note)
    assert result["network_note"] == UNTRAINED_NOTE and "not a probability" in result["confidence_kind"]


def test_in_a_notebook(predictor, image, photo, tmp_path):
    """Objects print as a line; the overlay and the scene are those that the demo writes."""
    assert "resnet18" in repr(predictor) and "300 x 240 px" in repr(photo) and len(repr(photo)) < 200
    ResultWriter(tmp_path, predictor.hand_model_name).write("photo", np.ascontiguousarray(image), photo)
    assert photo.scene() == (tmp_path / "meshes" / "photo.glb").read_bytes()
    drawn, written = photo.draw(), load_image(tmp_path / "renders" / "photo_mesh.jpg")
    assert drawn.shape == image.shape and np.abs(drawn - written.astype(int)).mean() < 4
    batched = predictor.predict([predictor.prepare(image)])[0]
    np.testing.assert_array_equal(batched.draw(image), drawn)
    for bad in (None, image[1:]):
        with pytest.raises(ValueError, match="draw"):
            batched.draw(bad)
    with pytest.raises(ValueError, match="no hand"):
        predictor(image, min_confidence=1.0).scene()


def test_what_is_not_finite_is_refused(predictor, image):
    state = {key: value.clone() for key, value in predictor.model.state_dict().items()}
    try:
        with torch.no_grad():
            predictor.model.hand_rotation_net.shape_out[0].bias.fill_(float("nan"))
        with pytest.raises(UserError, match="not finite"):
            photo_to_dict("x", predictor(image), "a hand")
    finally:
        predictor.model.load_state_dict(state)


def test_a_published_file_needs_no_config(golden_snapshot, mano_folder, image):
    """Files of the published system say nothing of their network: it is the default one."""
    photo = HandPredictor.load(golden_snapshot, mano_folder, ["cpu"])(image)
    assert len(photo.hands) == 2


def test_a_config_of_another_version(small_snapshot, mano_folder, tmp_path):
    content = torch.load(small_snapshot, weights_only=True)
    for config in (
        {**content["config"], "frames": 3},
        {**content["config"], "surprise": 1},
        {**content["config"], "body_backbone": "x"},
    ):
        path = tmp_path / "snapshot_6.pth"
        torch.save({**content, "config": config}, path)
        with pytest.raises(UserError, match="its config"):
            HandPredictor.load(path, mano_folder, ["cpu"])


@pytest.mark.parametrize(("chosen", "expected"), [(None, "PASSIVE"), ("active", "ACTIVE")])
def test_threads_that_wait_do_not_spin(chosen, expected):
    """OpenMP says so itself when PyTorch loads it; the user's own choice stays."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP", "GOMP"))}
    environment |= {"OMP_DISPLAY_ENV": "true"} | ({"OMP_WAIT_POLICY": chosen} if chosen else {})
    command = [sys.executable, "-c", "import demo, torch"]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, env=environment, capture_output=True, text=True)
    found = re.findall("OMP_WAIT_POLICY ?= ?'?([A-Za-z]+)", done.stderr)
    if not found:
        pytest.skip("this build of PyTorch has another OpenMP")
    assert {policy.upper() for policy in found} == {expected}
