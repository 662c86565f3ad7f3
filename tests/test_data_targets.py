"""The four datasets give the published system's samples; the hand-model side does not depend on the batch."""

import json
import shutil
import sys
import zipfile
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch.utils.data import default_collate

from common.targets import build_images, build_targets, complete_truth
from common.types import LEFT, RIGHT
from common.utils.augment import IDENTITY, Augmentation, draw_augmentation, mirror_affine, warp_augmented
from common.utils.images import load_image
from data.dataset import HandDataset
from main.build import open_dataset
from main.config import Config, config_to_dict
from main.options import config_of_checkpoint
from tool.published import run as parity

TURNED = Augmentation(0.85, -40.0, (1.2, 0.8, 1.05), True)


@pytest.fixture(scope="session")
def recorded(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded datasets and results, laid out as `tool/parity.py` expects them."""
    folder = tmp_path_factory.mktemp("recorded")
    with zipfile.ZipFile(golden / "datasets" / "data.zip") as archive:
        archive.extractall(folder)
    shutil.copytree(golden / "datasets", folder / "datasets")
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def run_parity(monkeypatch: pytest.MonkeyPatch, recorded: Path, mano_folder: Path, out: Path) -> int:
    arguments = {"golden": recorded, "mano": mano_folder, "out": out, "what": "datasets"}
    monkeypatch.setattr(sys, "argv", ["parity.py", *(x for k, v in arguments.items() for x in (f"--{k}", str(v)))])
    return parity.main()


def mixed_samples(recorded: Path, cache: Path) -> tuple[list, HandDataset]:
    """Cameras of all kinds in one batch: world and none, pinhole and fisheye, both hands, one, none."""
    ego = replace(Config(), cam_mode="Ego_cameras")
    sets = [
        open_dataset("InterHand26M", "train", Config(), recorded / "data", cache),
        open_dataset("MSCOCO", "train", Config(), recorded / "data", cache),
        open_dataset("ReInterHand", "train", ego, recorded / "data", cache),
    ]
    return [part.sample(i, TURNED if i % 2 else IDENTITY) for part in sets for i in range(len(part))], sets[0]


def test_every_recorded_sample_is_reproduced(monkeypatch, recorded, mano_folder, tmp_path, capsys):
    """All fields of all recorded samples, under all augmentations, and what is written can be compared again."""
    code = run_parity(monkeypatch, recorded, mano_folder, tmp_path)
    printed = capsys.readouterr().out
    assert code == 0, printed
    index = json.loads((recorded / "datasets" / "index.json").read_text())
    ours = json.loads((tmp_path / "datasets" / "index.json").read_text())
    for name, expected in index["sets"].items():
        assert f"{name}: length and ids" in printed
        assert ours["sets"][name]["len"] == expected["len"] and ours["sets"][name]["ids"] == expected["ids"]
        with np.load(recorded / "datasets" / f"{name}.npz") as a, np.load(tmp_path / "datasets" / f"{name}.npz") as b:
            assert set(a.files) <= set(b.files)


def test_a_small_change_of_one_target_is_noticed(monkeypatch, recorded, mano_folder, tmp_path, capsys):
    """0.1 mm in one coordinate of one sample."""
    changed = tmp_path / "changed"
    (changed / "datasets").mkdir(parents=True)
    (changed / "data").symlink_to(recorded / "data")
    index = json.loads((recorded / "datasets" / "index.json").read_text())
    index["sets"] = {"MSCOCO_train": index["sets"]["MSCOCO_train"]}
    (changed / "datasets" / "index.json").write_text(json.dumps(index))
    with np.load(recorded / "datasets" / "MSCOCO_train.npz") as file:
        values = dict(file)
    values["flip_rot/targets/mano_mesh_cam"][3, 100, 1] += 1e-4
    np.savez(changed / "datasets" / "MSCOCO_train.npz", **values)
    assert run_parity(monkeypatch, changed, mano_folder, tmp_path / "out") == 1
    outside = [line for line in capsys.readouterr().out.splitlines() if "OUTSIDE" in line]
    assert len(outside) == 1 and "mano_mesh_cam" in outside[0]


def test_a_batch_gives_what_its_samples_give(recorded, cache, mano):
    """Neighbours in the batch do not matter, and nothing is NaN, missing hands included."""
    samples, dataset = mixed_samples(recorded, cache)
    together = flat(build_targets(default_collate(samples), mano, dataset.frames))
    for place, sample in enumerate(samples):
        alone = flat(build_targets(default_collate([sample]), mano, dataset.frames))
        for name, values in alone.items():
            torch.testing.assert_close(values[0], together[name][place], rtol=1e-4, atol=1e-5, msg=f"{place} {name}")
    assert all(torch.isfinite(values).all() for values in together.values())
    assert 0 < together["mano_valid"].mean() < 1 and 0 < together["has_depth"].mean() < 1


def flat(value: tuple, prefix: str = "") -> dict[str, torch.Tensor]:
    found = {}
    for name, part in zip(value._fields, value, strict=True):
        found |= flat(part, f"{prefix}{name}.") if hasattr(part, "_fields") else {prefix + name: part}
    return found


def test_a_sample_is_a_pure_function(recorded, cache):
    """Made again, also after others, it is bit for bit the same."""
    dataset = open_dataset("InterHand26M", "train", Config(), recorded / "data", cache)
    first = flat(dataset.sample(2, TURNED))
    dataset.sample(2, IDENTITY), dataset.sample(3, TURNED)
    for name, value in flat(dataset.sample(2, TURNED)).items():
        assert value == first[name] if isinstance(value, str) else torch.equal(value, first[name]), name


def test_a_mirrored_right_hand_is_a_left_hand(recorded, cache, mano):
    """A flip swaps the hands: if an image shows only a right hand, the flipped targets are of the left."""
    dataset = open_dataset("InterHand26M", "train", Config(), recorded / "data", cache)
    plain, flipped = (
        build_targets(default_collate([dataset.sample(0, Augmentation(flip=flip))]), mano, dataset.frames)
        for flip in (False, True)
    )
    assert plain.mano_valid.tolist() == [[1, 0]] and flipped.mano_valid.tolist() == [[0, 1]]
    width = dataset.frames.crop[1]
    a, b = plain.joints_crop[0, RIGHT], flipped.joints_crop[0, LEFT]
    # The crop's middle is width / 2, the image's (W - 1) / 2: the mirrors differ by half an image pixel.
    torch.testing.assert_close(a[:, 1:], b[:, 1:], rtol=0, atol=1e-3)
    assert (a[:, 0] + b[:, 0] - width).abs().max() < 4
    torch.testing.assert_close(flipped.vertices_rel[0, RIGHT], torch.zeros_like(flipped.vertices_rel[0, RIGHT]))


def test_the_truth_of_a_test_is_the_target_without_augmentation(recorded, cache, mano):
    dataset = open_dataset("InterHand26M", "test", Config(), recorded / "data", cache)
    batch = default_collate([dataset[i] for i in range(len(dataset))])
    truth, targets = complete_truth(batch, mano), build_targets(batch.sample, mano, dataset.frames)
    wrists = mano.regress_joints(truth.vertices_cam)[:, :, :1]
    torch.testing.assert_close(truth.vertices_cam - wrists, targets.vertices_rel, rtol=0, atol=1e-6)
    torch.testing.assert_close(truth.rel_transl, targets.rel_transl, rtol=0, atol=1e-6)
    assert torch.equal(truth.vertices_valid, targets.mano_valid)
    assert 0.5 < truth.vertices_cam[truth.vertices_valid.bool()][..., 2].mean() < 1.5  # m before the camera


def test_hic_counts_a_missing_hand_as_one_at_the_origin(recorded, cache, mano):
    """As in the published evaluation: the relative translation runs from or to (0, 0, 0)."""
    dataset = open_dataset("HIC", "test", Config(), recorded / "data", cache)
    batch = default_collate([dataset[i] for i in range(len(dataset))])
    truth = complete_truth(batch, mano)
    wrists = mano.regress_joints(truth.vertices_cam)[:, :, 0]
    only_right = (truth.vertices_valid == torch.tensor([1.0, 0.0])).all(1)
    assert only_right.any()
    torch.testing.assert_close(truth.rel_transl[only_right], -wrists[only_right, RIGHT])
    assert Counter(truth.rel_transl_valid.tolist()) == {1.0: 5, 0.0: 5}  # those of type interacting


def test_the_mirrored_image_is_never_made():
    """Warping through the mirror equals mirroring, then warping."""
    image = np.random.default_rng(0).integers(0, 256, (90, 61, 3), np.uint8)
    to_crop = np.array([[1.3, 0.2, -5.0], [-0.2, 1.3, 4.0]])
    direct = warp_augmented(image, to_crop, Augmentation(flip=True), (80, 60))
    mirrored = warp_augmented(np.ascontiguousarray(image[:, ::-1]), to_crop, IDENTITY, (80, 60))
    assert np.abs(direct.astype(int) - mirrored).max() <= 1
    point = np.array([10.0, 20.0])
    through = mirror_affine(to_crop, 61)
    np.testing.assert_allclose(
        through[:, :2] @ point + through[:, 2], to_crop[:, :2] @ [60 - point[0], 20] + to_crop[:, 2]
    )


def test_a_test_image_is_warped_in_float(recorded, cache):
    """What the network is tested with is a float warp by the recorded transform, to 1e-4 of a gray level on average."""
    dataset = open_dataset("MSCOCO", "test", Config(), recorded / "data", cache)
    batch = default_collate([dataset[i] for i in range(len(dataset))])
    images = build_images(batch.sample)
    with np.load(recorded / "datasets" / "MSCOCO_test.npz") as file:
        crop_to_image = file["identity/meta_info/bb2img_trans"]
    for index, image in enumerate(images):
        photo = load_image(dataset.source.annotation(index).image_path).astype(np.float32)
        warped = cv2.warpAffine(photo, crop_to_image[index], (384, 512), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        assert np.abs(image.permute(1, 2, 0).numpy() * 255 - warped).mean() < 1e-4
    assert batch.sample.crop.dtype == torch.float32


def test_augmentations_have_the_published_distribution():
    rng = np.random.default_rng(1)
    drawn = [draw_augmentation(rng) for _ in range(4000)]
    scale, rot = np.array([a.scale for a in drawn]), np.array([a.rot for a in drawn])
    color, flip = np.array([a.color for a in drawn]), np.array([a.flip for a in drawn])
    assert scale.min() == 0.75 and scale.max() == 1.25
    assert abs((scale == 1.25).mean() - 0.159) < 0.02  # the normal's tail beyond 1
    assert abs((rot == 0).mean() - 0.4) < 0.03 and np.abs(rot).max() == 60
    assert abs(np.abs(rot[rot != 0]).mean() - 30 * 0.781) < 1.5  # mean of |N| clipped at 2
    assert color.min() > 0.8 and color.max() < 1.2 and abs(color.mean() - 1) < 0.01
    assert abs(np.corrcoef(color.T)[0, 1]) < 0.05
    assert abs(flip.mean() - 0.5) < 0.03
    assert draw_augmentation(np.random.default_rng(5)) == draw_augmentation(np.random.default_rng(5))


def test_images_are_coloured_and_clipped(recorded, cache):
    dataset = open_dataset("MSCOCO", "train", Config(), recorded / "data", cache)
    plain, bright = (
        build_images(default_collate([dataset.sample(0, Augmentation(color=color))]))
        for color in ((1.0, 1.0, 1.0), (3.0, 1.0, 0.5))
    )
    torch.testing.assert_close(bright, (plain * torch.tensor([3.0, 1.0, 0.5])[:, None, None]).clamp(max=1))
    assert bright.dtype == torch.float32 and (bright == 1).any()


def test_config_survives_a_checkpoint():
    """Lists that stand for tuples, and a checkpoint from before there were datasets in it."""
    config = replace(Config(), trainset_3d=("HIC",))
    values = json.loads(json.dumps(config_to_dict(config)))
    assert config_of_checkpoint({"config": values}, Path()) == config
    del values["augmentation"], values["trainset_3d"]
    assert config_of_checkpoint({"config": values}, Path()) == Config()
