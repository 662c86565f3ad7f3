"""People in photos: detectors, which boxes are used, and whose hand it is."""

import json
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.nets.resnet import ResNetBackbone, load_imagenet
from common.utils.camera import Camera
from demo import people
from demo.hands import Hand, PhotoHands
from demo.people import (
    Person,
    TorchvisionDetector,
    choose_people,
    detect_people,
    drop_neighbours_hands,
    given_people,
    load_detector,
    neighbours_hands,
    read_boxes,
)

SIZE = (600, 1000)


@pytest.fixture(scope="module")
def fast_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the place of the fast detector's."""
    torch.manual_seed(0)
    build, weights = people.DETECTORS["fast"]
    folder = tmp_path_factory.mktemp("hub")
    (folder / "checkpoints").mkdir()
    state = {key: value for key, value in build(weights=None, weights_backbone=None).state_dict().items()
             if not key.endswith("num_batches_tracked")}  # fmt: skip
    torch.save(state, folder / "checkpoints" / weights.url.rsplit("/", 1)[1])
    return folder


def test_torchvisions_detector_runs_from_a_file(fast_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights: what it finds means nothing; that it loads them, and takes images of several sizes, does."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(fast_weights))
    detector = TorchvisionDetector("fast", torch.device("cpu"))
    found = detect_people(detector, [np.zeros((120, 160, 3), np.uint8), np.full((90, 60, 3), 200, np.uint8)])
    assert len(found) == 2 and all(boxes.shape[1] == 4 and len(boxes) == len(scores) for boxes, scores in found)


def test_a_foreign_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    name = people.DETECTORS["fast"][1].url.rsplit("/", 1)[1]
    torch.save({"a": torch.zeros(3)}, tmp_path / "checkpoints" / name)
    with pytest.raises(UserError, match="do not fit it.*delete"):
        load_detector("fast", torch.device("cpu"))
    (tmp_path / "checkpoints" / name).write_bytes(b"cut short")
    with pytest.raises(UserError, match="cannot be read.*delete"):
        load_detector("fast", torch.device("cpu"))


def test_no_connection_is_one_line_with_the_way_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"https://.*checkpoints, or use --people one") as raised:
        load_detector("accurate", torch.device("cpu"))
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"https://.*checkpoints, or start from random numbers with --init random"):
        load_imagenet(ResNetBackbone("resnet18"))


@pytest.mark.parametrize("name", ["slow", "no.such.module:f", "json:no_such_function", "json:__name__"])
def test_unknown_detectors_are_named(name: str) -> None:
    with pytest.raises(UserError, match=f"--detector {name}"):
        load_detector(name, torch.device("cpu"))


def test_a_users_function_that_fails_is_one_line() -> None:
    def broken(images: list[np.ndarray]) -> list:
        raise KeyError("a bug")

    for detector in (broken, lambda images: [], lambda images: [1], lambda images: [([[1, 2, 3, 4]], [])]):
        with pytest.raises(UserError, match="person detector"):
            detect_people(detector, [np.zeros((9, 9, 3), np.uint8)])


def test_people_are_the_largest_of_the_sure_ones_from_left_to_right() -> None:
    boxes = np.array([[700, 0, 900, 400], [50, 0, 150, 300], [300, 0, 600, 500], [400, 100, 500, 300.0]])
    found, problems = choose_people((boxes, np.array([0.9, 0.8, 0.7, 0.4])), SIZE, max_people=2)
    assert [(p.id, p.source, p.box_image[0]) for p in found] == [(1, "detector", 300), (2, "detector", 700)]
    assert not problems


def test_boxes_are_cut_to_the_photo_and_small_ones_left_out() -> None:
    boxes = np.array([[-100, 50, 300, 700], [0, 0, 47, 300], [980, 0, 1100, 300]])
    found, _ = choose_people((boxes, np.ones(3)), SIZE)
    assert len(found) == 1 and found[0].box_image.tolist() == [0, 50, 300, 600]


@pytest.mark.parametrize("count", [0, 1])
def test_nobody_found_is_the_whole_photo(count: int) -> None:
    found, _ = choose_people((np.tile([0, 0, 500, 500.0], (count, 1)), np.full(count, 0.2)), SIZE)
    assert len(found) == 1 and found[0].source == "photo" and found[0].box_image.tolist() == [0, 0, 1000, 600]


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([np.nan, 0, 100, 100], "not finite"),
        ([300, 0, 100, 100], "reversed"),
        ([2000, 0, 2100, 100], "outside"),
        ([10, 10, 10, 90], "empty"),
    ],
)
def test_impossible_boxes_are_left_out_and_named(box: list[float], reason: str) -> None:
    good = [100, 100, 300, 500.0]
    found, problems = choose_people((np.array([box, good]), np.ones(2)), SIZE)
    assert len(found) == 1 and len(problems) == 1 and reason in problems[0]


def test_a_score_that_is_not_a_number_does_not_pass() -> None:
    found, _ = choose_people((np.array([[0, 0, 500, 500.0]]), np.array([np.nan])), SIZE)
    assert found[0].source == "photo"


def test_boxes_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"a.jpg": [[500, 0, 700, 400], [0, 0, 100, 200]], "b.jpg": []}))
    boxes = read_boxes(path)
    found, _ = given_people(boxes["a.jpg"], SIZE)
    assert [p.box_image[0] for p in found] == [0, 500] and len(boxes["b.jpg"]) == 0


@pytest.mark.parametrize(
    "text", ["", "[]", '{"a": 1}', '{"a": [[1, 2, 3]]}', '{"a": [[1, 2, 3, true]]}', '{"a": [[1, 2, 3, NaN]]}']
)
def test_a_boxes_file_that_is_wrong_is_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(text)
    with pytest.raises(UserError, match="--boxes"):
        read_boxes(path)


def hand_at(side: str, x: float, y: float, size: float = 80) -> Hand:
    rng = np.random.default_rng(0)
    joints = rng.uniform(-0.5, 0.5, (21, 2))
    joints = (joints - joints.mean(0)) / np.ptp(joints, axis=0).max() * size + (x, y)
    zeros = np.zeros
    camera = Camera(np.ones(2), zeros(2), orthographic=True)
    return Hand(side, 0.5, zeros(4), joints, zeros(21), zeros((778, 3)), zeros((21, 3)), camera, zeros(3),
                zeros((15, 3)), zeros(10), zeros((1538, 3), int))  # fmt: skip


def person_with(right: Hand | None, left: Hand | None) -> PhotoHands:
    zeros = np.zeros
    return PhotoHands(SIZE, zeros(4), right, left, {}, zeros(2), zeros((2, 4)), 0.0, False, zeros(3), False)


def test_a_neighbours_hand_is_reported_once() -> None:
    """Person 2's right hand lies in both crops; it is nearer to the middle of person 2."""
    who = [Person(1, "boxes", 1, np.array([0, 0, 400, 600])), Person(2, "boxes", 1, np.array([300, 0, 700, 600]))]
    results = [
        person_with(hand_at("right", 100, 300), hand_at("left", 382, 300)),
        person_with(hand_at("right", 390, 305), hand_at("left", 600, 300)),
    ]
    one, two = drop_neighbours_hands(who, results)
    assert one.left is None and one.dropped == {"left": "this is person 2's hand"} and one.right is not None
    assert len(two.hands) == 2 and not two.dropped


def test_hands_that_only_touch_both_stay() -> None:
    who = [Person(1, "boxes", 1, np.array([0, 0, 400, 600])), Person(2, "boxes", 1, np.array([300, 0, 700, 600]))]
    results = [person_with(None, hand_at("left", 330, 300)), person_with(hand_at("right", 370, 300), None)]
    assert [len(result.hands) for result in drop_neighbours_hands(who, results)] == [1, 1]


def test_a_hand_that_is_not_finite_takes_no_other() -> None:
    joints = np.stack([np.full((2, 21, 2), np.nan), np.random.default_rng(0).uniform(0, 50, (2, 21, 2))])
    boxes = np.array([[0, 0, 100, 100], [50, 0, 150, 100.0]])
    assert (neighbours_hands(joints, np.ones((2, 2), bool), boxes) == -1).all()
