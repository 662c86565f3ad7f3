"""How the sources treat incomplete folders, id lists and broken annotations."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from test_data_targets import cache, recorded  # noqa: F401

from common.errors import UserError
from common.targets import body_box_of
from common.utils.augment import IDENTITY
from data.dataset import HandDataset
from data.InterHand26M.InterHand26M import InterHand26M
from data.layouts import TEST_ID_RANGE, TEST_IDS_LEFT_OUT
from main.build import open_dataset, open_source
from main.config import Config


@pytest.fixture
def copy(recorded: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A copy of the recorded datasets, for tests that break it."""
    shutil.copytree(recorded / "data", tmp_path / "data")
    return tmp_path / "data"


def interhand_file(data: Path, kind: str, split: str = "train") -> Path:
    return data / "InterHand26M" / "annotations" / split / f"InterHand2.6M_{split}_{kind}.json"


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def broken_ids(dataset: HandDataset) -> dict[int, str]:
    """Id -> message of the samples that cannot be made."""
    found = {}
    for index in range(len(dataset)):
        try:
            dataset.sample(index, IDENTITY)
        except UserError as error:
            found[dataset.source.id(index)] = str(error)
    return found


@pytest.mark.parametrize(
    ("name", "split", "missing"),
    [
        ("InterHand26M", "train", "annotations/train/InterHand2.6M_train_joint_3d.json"),
        ("InterHand26M", "test", "images/test"),
        ("MSCOCO", "train", "annotations/MSCOCO_train_MANO_NeuralAnnot.json"),
        ("HIC", "test", "data/HIC.json"),
        ("ReInterHand", "train", "data"),
    ],
)
def test_missing_files_are_named_before_the_work_starts(copy, name, split, missing):
    """One line: what is missing, where to get it, where it goes."""
    path = copy / name / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError) as caught:
        open_source(name, split, Config(), copy)
    text = str(caught.value)
    assert str(path) in text and f"data/{name}/" in text and "\n" not in text


def test_the_published_test_list(copy):
    """121,573 ids, expected where there is no id file; annotations without them are an error, not an empty set."""
    assert len([id for id in TEST_ID_RANGE if id not in TEST_IDS_LEFT_OUT]) == 121_573
    assert (TEST_ID_RANGE[0], TEST_ID_RANGE[-1]) == (727633, 849223)
    (copy / "InterHand26M" / "aid_human_annot_test.txt").unlink()
    with pytest.raises(UserError, match="121573 of 121573 annotation ids of the published test list"):
        InterHand26M(copy / "InterHand26M", "test")
    everything = InterHand26M(copy / "InterHand26M", "test", "all")
    assert len(everything) == 12


def test_id_files_decide(copy):
    """In their order, also for training when asked; unused annotations drop out, unknown ids are an error."""
    root = copy / "InterHand26M"
    with pytest.raises(UserError, match="aid_human_annot_train.txt is missing"):
        InterHand26M(root, "train", "human")
    dropped = 7052  # both wrists invalid
    (root / "aid_human_annot_train.txt").write_text(f"7169\n{dropped}\n7000\n")
    source = InterHand26M(root, "train", "human")
    assert [source.id(i) for i in range(len(source))] == [7169, 7000]
    assert source.annotation(0).id == 7169
    assert len(InterHand26M(root, "train")) == 12
    (root / "aid_human_annot_train.txt").write_text("7000\n5\n")
    with pytest.raises(UserError, match="1 of 2 annotation ids .* 5 for one"):
        InterHand26M(root, "train", "human")
    (root / "aid_human_annot_train.txt").write_text("7000\nx\n")
    with pytest.raises(UserError, match="one annotation id a line"):
        InterHand26M(root, "train", "human")


def test_broken_interhand_annotations_are_named_one_by_one(copy, capsys):
    """NaN, a missing key, a wrong type, an unknown image, a lost frame: each is its annotation's problem alone."""

    def labels(content):
        by_id = {entry["id"]: entry for entry in content["annotations"]}
        del by_id[7000]["joint_valid"]
        by_id[7013]["joint_valid"][5] = [7]
        by_id[7026]["image_id"] = 999999
        by_id[7039]["hand_type"] = "both"

    def joints(content):
        frames = [(capture, frame) for capture in content for frame in content[capture]]
        content["1"]["1035"]["world_coord"][3][1] = float("nan")  # annotation 7065
        assert ("0", "1042") in frames
        del content["0"]["1042"]  # annotation 7078

    edit(interhand_file(copy, "data"), labels)
    edit(interhand_file(copy, "joint_3d"), joints)
    edit(interhand_file(copy, "MANO_NeuralAnnot"), lambda content: content["1"]["1063"]["left"]["pose"].pop())
    found = broken_ids(open_dataset("InterHand26M", "train", Config(), copy))
    assert set(found) == {7000, 7013, 7026, 7039, 7065, 7078, 7117}
    for id, words in {
        7000: ("train_data.json", "joint_valid"),
        7013: ("train_data.json", "42 times 0 or 1"),
        7026: ("train_data.json", "no image 999999"),
        7039: ("train_data.json", "both"),
        7065: ("train_joint_3d.json", "frame 1035", "NaN", "world_coord[3][1]"),
        7078: ("train_joint_3d.json", "no frame 1042"),
        7117: ("MANO_NeuralAnnot.json", "pose"),
    }.items():
        assert all(word in found[id] for word in (*words, f"InterHand26M {id}")), found[id]
        assert "\n" not in found[id]


def test_broken_coco_annotations_are_named_one_by_one(copy):
    folder = copy / "MSCOCO" / "annotations"

    def people(content):
        by_id = {entry["id"]: entry for entry in content["annotations"]}
        by_id[4000]["bbox"][2] = float("inf")
        by_id[4011]["lefthand_kpts"].pop()
        by_id[4022]["image_id"] = -5

    edit(folder / "coco_wholebody_train_v1.0.json", people)
    edit(
        folder / "MSCOCO_train_MANO_NeuralAnnot.json",
        lambda content: content["4066"]["right"]["cam_param"].pop("focal"),
    )
    found = broken_ids(open_dataset("MSCOCO", "train", Config(), copy))
    assert set(found) == {4000, 4011, 4022, 4066}
    assert "bbox" in found[4000] and "lefthand_kpts" in found[4011]
    assert "image -5" in found[4022] and "focal" in found[4066] and "MSCOCO_train_MANO" in found[4066]


def test_coco_keeps_whether_a_person_box_is_of_integers(copy, golden):
    """The crop follows how the JSON writes the numbers: recorded body boxes, through the reader and its cache."""
    cases = json.loads((golden / "body_boxes.json").read_text())
    mixed = {
        "image_wh": [384, 512],
        "person_xywh": [0, 0, 384, 512.0],
        "body_xywh": [-48.03125, -63.875, 479.0625, 638.75],
    }
    cases.append(mixed)  # one decimal point makes all four numbers floats

    def replace_people(content):
        person = content["annotations"][0]
        content["images"] = [
            {"id": i, "file_name": f"{i}.jpg", "width": case["image_wh"][0], "height": case["image_wh"][1]}
            for i, case in enumerate(cases)
        ]
        content["annotations"] = [
            {**person, "id": i, "image_id": i, "bbox": case["person_xywh"]} for i, case in enumerate(cases)
        ]

    edit(copy / "MSCOCO" / "annotations" / "coco_wholebody_val_v1.0.json", replace_people)
    for _ in range(2):  # builds the cache, then reads it
        dataset = open_dataset("MSCOCO", "test", Config(), copy)
        ours = {}
        for i in range(len(dataset)):
            annotation = dataset.source.annotation(i)
            ours[annotation.id] = body_box_of(annotation, dataset.frames, dataset.box_extension)
        usable = {i: case["body_xywh"] for i, case in enumerate(cases) if case["body_xywh"] is not None}
        assert len(usable) == 55
        assert {i: box.astype(np.float32).tolist() for i, box in ours.items()} == usable


def test_broken_images_and_meshes_are_named(copy):
    """Missing, cut short, empty, of another size; a mesh that is none, with too few vertices, with a NaN."""
    images = copy / "HIC" / "data"
    dataset = open_dataset("HIC", "test", Config(), copy)
    assert not broken_ids(dataset)
    paths = [dataset.source.annotation(i).image_path for i in range(len(dataset))]
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes()[:2000])
    paths[2].write_bytes(b"")
    shutil.copy(next((copy / "MSCOCO" / "images" / "val2017").iterdir()), paths[3])
    meshes = sorted(images.glob("IJCV16*/0[4578]/*.ply"))
    meshes[0].write_bytes(b"ply\nnonsense")
    text = meshes[1].read_bytes()
    body = bytearray(text)
    header = body.index(b"end_header\n") + len(b"end_header\n")
    meshes[1].write_bytes(text[: header + 700 * 12].replace(b"element vertex 778", b"element vertex 700"))
    body[header : header + 4] = np.float32(np.nan).tobytes()
    meshes[2].write_bytes(body)
    meshes[4].unlink()
    found = broken_ids(dataset)
    assert set(found) == {60, 65, 70, 75, 80, 85, 95, 100}
    for id, word in {60: "No such file", 65: "cut short", 70: "empty", 75: "the annotation says 640 x 480"}.items():
        assert word in found[id] and f"HIC {id}" in found[id] and ".jpg" in found[id], found[id]
    for id, word in {80: "not a ply", 85: "700 vertices", 95: "NaN", 100: "No such file"}.items():
        assert word in found[id] and f"HIC {id}" in found[id], found[id]


def test_a_file_that_is_not_json_is_named(copy):
    path = interhand_file(copy, "joint_3d")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="joint_3d.json: .*truncated"):
        InterHand26M(copy / "InterHand26M", "train")


def test_reinterhand_lists(copy):
    """Per frame: what is on the disk; per segment and Ego: the frame list; Ego leaves out what is hardly visible."""
    data = copy / "ReInterHand" / "data"
    for capture in data.iterdir():
        for camera in ("Mugsy_cameras", "Ego_cameras"):
            shutil.copytree(capture / camera / "envmap_per_frame", capture / camera / "envmap_per_segment")

    def frames(split: str, **modes: str) -> list[tuple]:
        source = open_source("ReInterHand", split, replace(Config(), **modes), copy)
        ids = [source.id(i) for i in range(len(source))]
        assert ids == sorted(ids, key=repr)
        assert all(("RNS217" in id[0]) == (split == "test") for id in ids)
        return [id[1:] for id in ids]

    assert frames("train") == [(camera, frame) for camera in ("400262", "400279") for frame in (12, 24, 31)]
    per_segment = frames("test", envmap_mode="envmap_per_segment")
    assert per_segment == [(camera, frame) for camera in ("400262", "400279") for frame in (12, 18, 24, 31)]
    # Visible shares 0.95, 0.1, 0.2, 0.62.
    assert frames("test", cam_mode="Ego_cameras") == [(None, 12), (None, 24), (None, 31)]
    with pytest.raises(UserError, match="choose one of Mugsy_cameras, Ego_cameras"):
        frames("test", cam_mode="Phone_cameras")
    dataset = open_dataset("ReInterHand", "train", Config(), copy)
    capture = dataset.source.id(1)[0]
    (data / capture / "mano_fits" / "params" / "24_left.json").write_text('{"pose": null}')
    (data / capture / "Mugsy_cameras" / "envmap_per_frame" / "images" / "400279" / "000031.png").write_bytes(b"x")
    found = broken_ids(dataset)
    assert [id[1:] for id in found] == [("400262", 24), ("400279", 24), ("400279", 31)]
    assert all("24_left.json" in text and "pose" in text for text in list(found.values())[:2])
    assert "000031.png" in found[capture, "400279", 31]


def test_hic_is_a_test_set(recorded):  # noqa: F811
    with pytest.raises(UserError, match="HIC has no train split"):
        open_source("HIC", "train", Config(), recorded / "data")
    with pytest.raises(UserError, match="there is no dataset 'FreiHAND'"):
        open_source("FreiHAND", "train", Config(), recorded / "data")


@pytest.mark.parametrize("name", ["InterHand26M", "MSCOCO", "HIC", "ReInterHand"])
def test_a_dataset_travels_light(recorded, cache, name):  # noqa: F811
    """To a worker goes where the data are, not the data; and it works there."""
    dataset = open_dataset(name, "test", Config(), recorded / "data", cache)
    sent = pickle.dumps(dataset)
    assert len(sent) < 10_000
    arrived = pickle.loads(sent)  # noqa: S301
    assert np.array_equal(arrived[1].sample.crop, dataset[1].sample.crop)
    assert arrived.source.annotation(1).id == dataset.source.annotation(1).id
