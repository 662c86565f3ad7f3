"""The evaluation gives the published results in any order, and changes nothing."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_data_targets import recorded  # noqa: F401
from torch.utils.data import default_collate

from common.metrics import (
    KNUCKLE,
    PROTOCOLS,
    Estimate,
    Evaluator,
    boxes_to_image,
    compute_errors,
    joint_error,
    procrustes,
    vertex_error,
)
from common.targets import complete_truth
from common.types import LEFT, RIGHT, GroundTruth
from common.utils.frames import Frames
from tool.published import run as parity
from tool.published.comparison import load_npz
from tool.published.datasets import open_recorded, plain_id
from tool.published.metrics import REDUCED, as_published, compare_labels, read_estimate

SETS = (
    "InterHand26M_test",
    "MSCOCO_test",
    "HIC_test",
    "ReInterHand_Mugsy_frame_test",
    "ReInterHand_Ego_frame_test",
)


@pytest.fixture(scope="session")
def recorded_items(recorded: Path, mano, tmp_path_factory) -> dict:  # noqa: F811
    """Set -> indices, estimate, truth, joints known in 3D, the recorded results."""
    cache = tmp_path_factory.mktemp("cache")
    index = json.loads((recorded / "datasets" / "index.json").read_text())["sets"]
    figures = json.loads((recorded / "datasets" / "metrics.json").read_text())
    found = {}
    for name in SETS:
        dataset = open_recorded(name, recorded / "data", cache)
        ids = [plain_id(dataset.source.id(i)) for i in range(len(dataset))]
        indices = [ids.index(plain_id(id)) for id in index[name]["ids"]]
        batch = default_collate([dataset[i] for i in indices])
        estimate = read_estimate(load_npz(recorded / "datasets" / f"{name}_pred.npz"), dataset.frames)
        found[name] = (
            indices,
            estimate,
            complete_truth(batch, mano),
            batch.sample.joints_valid,
            figures[name]["first"],
        )
    return found


def evaluator_of(name: str, mano) -> Evaluator:
    return Evaluator(PROTOCOLS[name.split("_")[0]], mano)


def rows(batch, chosen):
    return type(batch)(*(x[chosen] for x in batch))


def make_truth(mano, count: int = 4, hand_types: tuple[int, ...] = (0, 1, 2, 2)) -> tuple[Estimate, GroundTruth]:
    """A perfect prediction and its truth: turned, posed-free hands at different places."""
    torch.manual_seed(3)
    vertices = mano.template.transpose(1, 2) + torch.randn(count, 2, 1, 3) * 0.1 + torch.tensor([0, 0, 1.0])
    joints = mano.regress_joints(vertices)
    boxes = torch.tensor([[10.0, 20, 60, 80]]).repeat(count, 2, 1) + torch.arange(2)[None, :, None] * 30
    rel_transl = joints[:, LEFT, 0] - joints[:, RIGHT, 0]
    truth = GroundTruth(
        boxes_image=boxes,
        boxes_valid=torch.ones(count, 2),
        joints_cam=joints,
        joints_scored=torch.ones(count, 2, 21),
        vertices_cam=vertices,
        vertices_valid=torch.ones(count, 2),
        rel_transl=rel_transl,
        rel_transl_valid=torch.ones(count),
        hand_type=torch.tensor(hand_types),
    )
    meshes = vertices - joints[:, :, :1], joints - joints[:, :, :1]
    estimate = Estimate(boxes.clone(), *meshes, rel_transl.clone(), torch.rand(count, 2))
    return estimate, truth


def evaluated(name: str, mano, estimate: Estimate, truth: GroundTruth) -> dict[str, float]:
    evaluator = evaluator_of(name, mano)
    evaluator.update(range(len(truth.hand_type)), estimate, truth)
    return evaluator.compute()


def test_recorded_metrics_are_reproduced(monkeypatch, recorded, mano_folder, tmp_path, capsys):  # noqa: F811
    """All results of all recorded sets by `tool/parity.py`, and in the file that it writes."""
    arguments = {"golden": recorded, "mano": mano_folder, "out": tmp_path, "what": "metrics"}
    monkeypatch.setattr(sys, "argv", ["parity.py", *(x for k, v in arguments.items() for x in (f"--{k}", str(v)))])
    code = parity.main()
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "26 compared, 0 outside" in printed
    written = json.loads((tmp_path / "datasets" / "metrics.json").read_text())
    figures = json.loads((recorded / "datasets" / "metrics.json").read_text())
    for name in SETS:
        assert written[name] == pytest.approx(figures[name]["first"]["full"], rel=1e-5, abs=1e-3)


@pytest.mark.parametrize("name", SETS)
def test_the_published_lines_are_printed(recorded_items, mano, name):
    """Word for word and in order, before anything of ours."""
    indices, estimate, truth, known, figures = recorded_items[name]
    evaluator = evaluator_of(name, mano)
    evaluator.update(indices, estimate, truth, known)
    lines = [line for line in figures["printed"].splitlines() if line]
    assert evaluator.summary().splitlines()[: len(lines)] == lines


@pytest.mark.parametrize("name", SETS)
def test_order_grouping_and_processes_do_not_matter(recorded_items, mano, name):
    """One batch, or single samples in another order over three merged evaluators: the same bits."""
    indices, estimate, truth, known, _ = recorded_items[name]
    whole = evaluator_of(name, mano)
    for row in range(len(indices)):
        whole.update(indices[row : row + 1], rows(estimate, [row]), rows(truth, [row]), known[[row]])
    parts = [evaluator_of(name, mano) for _ in range(3)]
    for row in reversed(range(len(indices))):
        parts[row % 3].update(indices[row : row + 1], rows(estimate, [row]), rows(truth, [row]), known[[row]])
    merged = evaluator_of(name, mano)
    merged.merge([part.state() for part in reversed(parts)])
    assert len(merged) == len(indices) and merged.compute() == whole.compute()
    assert merged.worst(2) == whole.worst(2)


@pytest.mark.parametrize("name", SETS)
def test_nothing_is_modified(recorded_items, mano, name):
    """Neither predictions nor truth; the published evaluation changes both, and a second one differs."""
    indices, estimate, truth, known, _ = recorded_items[name]
    before = [x.clone() for x in (*estimate, *truth, known)]
    evaluator = evaluator_of(name, mano)
    evaluator.update(indices, estimate, truth, known)
    first = evaluator.compute()
    assert evaluator.compute() == first
    assert all(map(torch.equal, before, (*estimate, *truth, known)))


def test_a_sample_counts_once(mano):
    """Padding of distributed samplers would count some twice: refused."""
    estimate, truth = make_truth(mano)
    evaluator = evaluator_of("HIC", mano)
    evaluator.update([0, 1, 2, 1], estimate, truth)
    with pytest.raises(ValueError, match="sample 1 of the dataset was evaluated twice"):
        evaluator.compute()


def test_perfect_predictions_have_no_error(mano):
    for name in PROTOCOLS:
        values = evaluated(name, mano, *make_truth(mano))
        for label, value in values.items():
            assert value == pytest.approx(100 if "IoU" in label or "COCO" in label else 0, abs=1e-3), (name, label)


def test_known_errors(mano):
    """Each error changes the results that it should, by as much as it should, and no other."""
    estimate, truth = make_truth(mano)
    moved = estimate._replace(rel_transl=estimate.rel_transl + torch.tensor([0.003, 0.0, -0.004]))
    values = evaluated("InterHand26M", mano, moved, truth)
    assert values["MRRPE"] == pytest.approx(5, abs=1e-3)
    assert values["RRVE for interacting hand sequences"] == pytest.approx(
        2.5, abs=1e-3
    )  # the left half of the vertices
    assert values["MPVPE for all hand sequences"] == pytest.approx(0, abs=1e-3)

    bumped = estimate.joints_rel.clone()
    bumped[2, LEFT, 7, 1] += 0.042  # one joint of one hand of one of two interacting images
    values = evaluated("InterHand26M", mano, estimate._replace(joints_rel=bumped), truth)
    assert values["MPJPE for interacting hand sequences"] == pytest.approx(42 / 2 / 42, abs=1e-4)
    assert values["MPJPE for single hand sequences"] == pytest.approx(0, abs=1e-4)
    assert values["MPJPE for all hand sequences"] == pytest.approx(42 / 2 / 84, abs=1e-4)
    assert values["MPVPE for all hand sequences"] == pytest.approx(0, abs=1e-3)

    half = estimate._replace(
        boxes_image=estimate.boxes_image * torch.tensor([1, 1, 1, 0.5]) + torch.tensor([0, 0, 0, 10])
    )
    # Right: 20..80 becomes 20..50; left: 50..110 becomes 50..65.
    results = evaluated("MSCOCO", mano, half, truth)
    assert results["bbox IoU"] == pytest.approx(100 * (30 / 60 + 15 / 60) / 2, abs=1e-3)
    assert (
        results["COCO box AP50 (both)"] < 100
        and evaluated("MSCOCO", mano, estimate, truth)["COCO box AP (left)"] == 100
    )


def test_which_hands_count(mano):
    """Single: the hand of the annotated type, even if both meshes exist. Interacting: each that exists."""
    estimate, truth = make_truth(mano)
    errors = torch.tensor([[1.0, 2], [4, 8], [16, 32], [64, 128]]) / 1000  # m, by image and hand
    # Wrist-aligned, a uniform shift would vanish: every vertex but those the wrist is regressed from moves.
    moves = (mano.joint_regressor[0] == 0).float()
    share = float(moves.mean())
    wrong = estimate.vertices_rel.clone()
    wrong[..., 0] += errors[..., None] * moves
    truth = truth._replace(vertices_valid=torch.tensor([[1.0, 1], [1, 1], [1, 0], [1, 1]]))
    values = evaluated("HIC", mano, estimate._replace(vertices_rel=wrong), truth)
    assert values["MPVPE for single hand sequences"] == pytest.approx((1 + 8) / 2 * share, rel=1e-4)
    assert values["MPVPE for interacting hand sequences"] == pytest.approx((16 + 64 + 128) / 3 * share, rel=1e-4)
    assert values["MPVPE for all hand sequences"] == pytest.approx((1 + 8 + 16 + 64 + 128) / 5 * share, rel=1e-4)
    assert values["RRVE for interacting hand sequences"] == pytest.approx((64 + 128) / 2 * share, rel=1e-4)


def test_hands_out_of_view(mano):
    """ReInterHand: counted against zeros as published, and left out of the results on visible hands."""
    estimate, truth = make_truth(mano, hand_types=(2, 2, 2, 2))
    gone = torch.tensor([[1.0, 1], [1, 1], [1, 1], [1, 0]])
    truth = truth._replace(vertices_valid=gone, vertices_cam=truth.vertices_cam * gone[..., None, None])
    evaluator = evaluator_of("ReInterHand", mano)
    evaluator.update(range(4), estimate, truth)
    values, table = evaluator.compute(), evaluator.table()
    assert np.isnan([table[name][3] for name in ("mpvpe_left", "mpjpe_left", "rrve")]).all()
    size = float(estimate.vertices_rel[3, LEFT].norm(dim=-1).mean()) * 1000
    assert values["MPVPE"] == pytest.approx(size / 8, rel=1e-3) and values["RRVE"] == pytest.approx(size / 8, rel=1e-3)
    assert values["MPJPE"] > 5
    for label in ("MPVPE (visible hands only)", "RRVE (both hands visible only)", "MPJPE (visible hands only)"):
        assert values[label] == pytest.approx(0, abs=1e-3)
    assert values["MPVPE (Procrustes-aligned)"] == pytest.approx(0, abs=1e-3)


def test_hic_pairs_with_one_mesh(mano):
    """HIC: the missing wrist is the origin, as published; MRRPE over the pairs with both meshes stands beside it."""
    estimate, truth = make_truth(mano)
    present = torch.tensor([[1.0, 1], [1, 1], [1, 0], [1, 1]])
    moved = estimate.rel_transl + torch.tensor([0.003, 0.0, -0.004])
    published = truth.rel_transl.clone()
    published[2] = -estimate.vertices_rel[2, RIGHT, 0]  # any other translation
    pairs = torch.tensor([0.0, 0, 1, 1])
    truth = truth._replace(vertices_valid=present, rel_transl=published, rel_transl_valid=pairs)
    evaluator = evaluator_of("HIC", mano)
    evaluator.update(range(4), estimate._replace(rel_transl=moved), truth)
    values = evaluator.compute()
    assert values["MRRPE (both meshes only)"] == pytest.approx(5, abs=1e-3)
    assert values["MRRPE"] > 10 and "MRRPE (both meshes only)" in evaluator.summary().split("not among")[1]
    assert not [label for label in evaluated("InterHand26M", mano, estimate, truth) if "both meshes" in label]


def test_without_samples_there_is_no_nan(mano):
    """A joint that is never annotated is left out of the average and named; a class without images has no result."""
    estimate, truth = make_truth(mano, hand_types=(0, 0, 0, 0))
    scored = torch.ones(4, 2, 21)
    scored[:, LEFT] = 0
    scored[:, RIGHT, 4] = 0
    bumped = estimate.joints_rel.clone()
    bumped[:, RIGHT, 4] += 1.0  # not scored
    bumped[:, RIGHT, 9, 0] += 0.020
    truth = truth._replace(joints_scored=scored, rel_transl_valid=torch.zeros(4))
    evaluator = evaluator_of("InterHand26M", mano)
    evaluator.update(range(4), estimate._replace(joints_rel=bumped), truth)
    values, text = evaluator.compute(), evaluator.summary()
    assert all(np.isfinite(value) for value in values.values())
    assert values["MPJPE for single hand sequences"] == pytest.approx(20 / 20, abs=1e-4)
    assert "MPJPE for single hand sequences: 1.00 mm (22 of 42 joint averages have no sample and are left out)" in text
    assert "MPJPE for interacting hand sequences" not in values and "MRRPE" not in values
    assert "MPJPE for interacting hand sequences: no sample" in text and "MRRPE: no sample" in text
    assert np.isnan(evaluator.table()["mpjpe_left"]).all() and np.isnan(evaluator.table()["mrrpe"]).all()

    published = as_published(evaluator)  # in its place the published system prints NaN
    assert published["MPJPE for single hand sequences"] is None and published["MRRPE"] is None
    assert published["MPJPE for single hand sequences" + REDUCED] == values["MPJPE for single hand sequences"]


def test_joints_known_in_2d_only_do_not_enter_aligned_figures(mano):
    """The published MPJPE scores them against a stand-in place, 1 mm from the camera; alignments must not see that."""
    estimate, truth = make_truth(mano)
    known = torch.ones(4, 2, 21)
    known[0, RIGHT, 8] = 0
    joints = truth.joints_cam.clone()
    joints[0, RIGHT, 8] = 0.001
    evaluator = evaluator_of("InterHand26M", mano)
    evaluator.update(range(4), estimate, truth._replace(joints_cam=joints), known)
    values = evaluator.compute()
    assert values["MPJPE for single hand sequences"] > 10
    assert values["MPJPE (Procrustes-aligned) for single hand sequences"] == pytest.approx(0, abs=1e-3)
    assert values["MPJPE (middle-knuckle root, bone-length scale) for single hand sequences"] == pytest.approx(
        0, abs=1e-3
    )


def test_bone_length_scale(mano):
    """A hand of the wrong size is right after scaling, a bone-length ratio of 1 leaves the others alone."""
    estimate, truth = make_truth(mano)
    larger = estimate._replace(vertices_rel=estimate.vertices_rel * 1.3, joints_rel=estimate.joints_rel * 1.3)
    values = evaluated("InterHand26M", mano, larger, truth)
    assert values["MPVPE for all hand sequences"] > 5 and values["MPJPE for all hand sequences"] > 5
    for metric in ("MPVPE", "MPJPE"):
        for kind in ("middle-knuckle root, bone-length scale", "Procrustes-aligned"):
            assert values[f"{metric} ({kind}) for all hand sequences"] == pytest.approx(0, abs=2e-3)
    bumped = estimate.joints_rel.clone()
    bumped[:, :, KNUCKLE + 1, 0] += 0.021  # not a joint the alignment looks at
    values = evaluated("ReInterHand", mano, estimate._replace(joints_rel=bumped), truth)
    assert values["MPJPE (middle-knuckle root, bone-length scale)"] == pytest.approx(1, abs=1e-3)


def test_procrustes():
    """Undoes any similarity; does not mirror; fits only the points of the mask; never does worse than nothing."""
    torch.manual_seed(0)
    true = torch.randn(6, 21, 3) * 0.05
    rotation = torch.linalg.qr(torch.randn(6, 3, 3)).Q
    rotation = rotation * torch.linalg.det(rotation)[:, None, None]
    moved = true @ rotation * torch.rand(6, 1, 1).add(0.3) + torch.randn(6, 1, 3)
    assert joint_error(procrustes(moved, true), true).max() < 1e-6
    mirrored = procrustes(moved * torch.tensor([-1.0, 1, 1]), true)
    assert vertex_error(mirrored, true).min() > 0.005

    mask = torch.ones(6, 21, dtype=torch.bool)
    mask[:, 5:8] = False
    outliers = moved + (~mask)[..., None] * 3.0
    assert joint_error(procrustes(outliers, true, mask), true)[mask].max() < 1e-6

    noisy = true + torch.randn_like(true) * 0.01
    assert (vertex_error(procrustes(noisy, true) * 1000, true * 1000) < vertex_error(noisy * 1000, true * 1000)).all()
    assert torch.isfinite(procrustes(torch.zeros(2, 21, 3), true[:2])).all()  # all points in one


def test_boxes_go_to_the_image_by_their_corners():
    """body -> crop -> image; a box of negative size overlaps nothing."""
    crop_to_image = torch.tensor([[[2.0, 0, 10], [0, 3.0, 20]]])
    boxes = torch.tensor([[[10.0, 20, 30, 40], [30.0, 20, 10, 40]]])
    expected = [[[50, 140, 130, 260], [130, 140, 50, 260]]]  # body is half the crop
    assert boxes_to_image(boxes, crop_to_image, Frames()).tolist() == expected


def test_single_samples_add_up(recorded_items, mano):
    """The table's columns average to the results; the worst sample is the one with the largest error."""
    indices, estimate, truth, known, _ = recorded_items["HIC_test"]
    evaluator = evaluator_of("HIC_test", mano)
    evaluator.update(indices, estimate, truth, known)
    table, values = evaluator.table(), evaluator.compute()
    assert table["index"].tolist() == sorted(indices)
    assert np.nanmean(table["mrrpe"]) == pytest.approx(values["MRRPE"], rel=1e-6)
    boxes = np.stack([table["box_iou_right"], table["box_iou_left"]])
    assert np.nanmean(boxes) == pytest.approx(values["bbox IoU"], rel=1e-6)
    errors = np.fmax(table["mpvpe_right"], table["mpvpe_left"])
    assert evaluator.worst(1) == [int(table["index"][np.nanargmax(errors)])]


def test_items_are_metres(recorded_items, mano):
    """Millimetres are made at the end only."""
    _, estimate, truth, known, figures = recorded_items["HIC_test"]
    items = compute_errors(PROTOCOLS["HIC"], mano, estimate, truth, known)
    mean = float(items["rel_error"][items["rel_mask"]].double().mean())
    assert mean * 1000 == pytest.approx(figures["full"]["MRRPE"], rel=1e-4)


def test_nan_compares_with_nothing_but_nan():
    """Where the published system prints NaN, ours must have left something out, and the other way round."""
    recorded_values = {"a": None, "b": float("nan"), "c": 1.0, "d": None, "e": 1.0}
    ours = {"a": None, "b": None, "c": None, "d": 1.0, "e": 1.0005}
    assert [report.outside for report in compare_labels("set", recorded_values, ours)] == [
        False,
        False,
        True,
        True,
        False,
    ]
