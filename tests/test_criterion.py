"""The losses are the published system's, term by term and in their gradients."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common.criterion import InterWildLoss
from common.errors import UserError
from common.types import ManoParams, Prediction, Targets
from common.utils.frames import Frames
from common.utils.rotations import axis_angle_to_matrix
from tool.published import run as parity
from tool.published.loss import compare_group, read_batch

FRAMES = Frames()
N, VERTICES = 3, 5  # few vertices: the mean over them is the same


def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    return torch.rand(*shape) * (high - low) + low


def make_mano() -> ManoParams:
    return ManoParams(uniform(N, 2, 3, low=-1), uniform(N, 2, 15, 3, low=-1), uniform(N, 2, 10, low=-1))


@pytest.fixture
def prediction() -> Prediction:
    torch.manual_seed(1)
    crop_to_hand = torch.tensor([[[2.0, 0, -300], [0, 2.5, -500]], [[1.5, 0, -100], [0, 1.0, -150]]])
    return Prediction(
        box_centers_body_hm=uniform(N, 2, 2, high=40),
        box_sizes_body_hm=uniform(N, 2, 2, low=-5, high=40),
        box_scores=uniform(N, 2),
        crop_to_hand=crop_to_hand.repeat(N, 1, 1, 1),
        joints_hand_hm=uniform(N, 2, 21, 3, high=7),
        mano=make_mano(),
        vertices_rel=uniform(N, 2, VERTICES, 3, low=-0.1, high=0.1),
        joints_rel=uniform(N, 2, 21, 3, low=-0.1, high=0.1),
        joints_proj_hand_hm=uniform(N, 2, 21, 2, high=8),
        root_transl=uniform(N, 2, 3),
        rel_transl=uniform(N, 3, low=-0.2, high=0.2),
    )


@pytest.fixture
def targets() -> Targets:
    """About half of everything counts; most joints are inside the predicted hand crops, some are not."""
    torch.manual_seed(2)

    def flags(*shape: int) -> torch.Tensor:
        return (torch.rand(*shape) > 0.4).float()

    def joints() -> torch.Tensor:
        xy = torch.stack((uniform(N, 2, 21, low=100, high=320), uniform(N, 2, 21, low=150, high=420)), -1)
        return torch.cat((xy, uniform(N, 2, 21, 1, low=-0.15, high=0.15)), -1)

    return Targets(
        boxes_crop=uniform(N, 2, 4, high=380),
        boxes_valid=flags(N, 2),
        joints_crop=joints(),
        joints_inside=flags(N, 2, 21),
        joints_rel=uniform(N, 2, 21, 3, low=-0.1, high=0.1),
        joints_valid=flags(N, 2, 21),
        mano=make_mano(),
        mano_valid=torch.tensor([[1.0, 1], [1, 0], [0, 1]]),
        mano_joints_crop=joints(),
        mano_joints_inside=flags(N, 2, 21),
        vertices_rel=uniform(N, 2, VERTICES, 3, low=-0.1, high=0.1),
        rel_transl=uniform(N, 3, low=-0.2, high=0.2),
        rel_transl_valid=torch.tensor([1.0, 0, 1]),
        has_depth=torch.tensor([1.0, 0, 1]),
    )


def by_the_page(p: Prediction, t: Targets) -> dict[str, float]:
    """The losses again, number by number from their description."""
    sums: dict[str, list[float]] = {}

    def add(name: str, difference: float, weight: float) -> None:
        sums.setdefault(name, []).append(abs(float(difference)) * float(weight))

    for n in range(N):
        for h, side in enumerate("rl"):
            x1, y1, x2, y2 = (t.boxes_crop[n, h] / 8).tolist()  # 384 / 48 = 512 / 64
            truth = {"center": ((x1 + x2) / 2, (y1 + y2) / 2), "size": (x2 - x1, y2 - y1)}
            for kind, ours in (("center", p.box_centers_body_hm), ("size", p.box_sizes_body_hm)):
                for axis in range(2):
                    add(f"{side}hand_bbox_{kind}", ours[n, h, axis] - truth[kind][axis], t.boxes_valid[n, h])
            fit, depth = t.mano_valid[n, h], t.has_depth[n]
            rotations = [torch.cat((m.global_orient[n, h][None], m.hand_pose[n, h])) for m in (p.mano, t.mano)]
            for a, b in zip(*map(axis_angle_to_matrix, rotations), strict=True):
                for x, y in zip(a.flatten(), b.flatten(), strict=True):
                    add("mano_pose", x - y, fit)
            for x, y in zip(p.mano.betas[n, h], t.mano.betas[n, h], strict=True):
                add("mano_shape", x - y, fit)
            for x, y in zip(p.vertices_rel[n, h].flatten(), t.vertices_rel[n, h].flatten(), strict=True):
                add("mano_mesh_cam", x - y, fit * 10)
            for j in range(21):
                for axis in range(3):
                    difference = p.joints_rel[n, h, j, axis] - t.joints_rel[n, h, j, axis]
                    add("joint_cam", difference, t.joints_valid[n, h, j] * depth * 10)
                for name, joints, inside in (
                    ("joint_img", t.joints_crop, t.joints_inside),
                    ("mano_joint_img", t.mano_joints_crop, t.mano_joints_inside),
                ):
                    x, y, z = joints[n, h, j].tolist()
                    (a, b, c), (d, e, f) = p.crop_to_hand[n, h].tolist()
                    cell = [(a * x + b * y + c) / 32, (d * x + e * y + f) / 32, (z / 0.15 + 1) / 2 * 8]
                    counts = inside[n, h, j] * (0 <= cell[0] < 8) * (0 <= cell[1] < 8)
                    for axis in range(3):
                        masked = counts * depth if name == "joint_img" and axis == 2 else counts
                        add(name, p.joints_hand_hm[n, h, j, axis] - cell[axis], masked)
                        if name == "joint_img" and axis < 2:
                            add("joint_proj", p.joints_proj_hand_hm[n, h, j, axis] - cell[axis], counts)
        for axis in range(3):
            add("rel_trans", p.rel_transl[n, axis] - t.rel_transl[n, axis], t.rel_transl_valid[n])
    return {name: float(np.mean(values)) for name, values in sums.items()}


def test_recorded_losses_and_gradients_are_reproduced(
    monkeypatch, golden: Path, mano_folder: Path, golden_snapshot: Path, tmp_path: Path, capsys
):
    """Means, gradients of each part and single elements, with batch norm in both modes; also in the written file."""
    arguments = {"golden": golden / "loss", "mano": mano_folder, "snapshot": golden_snapshot, "out": tmp_path}
    monkeypatch.setattr(sys, "argv", ["parity.py", *(x for k, v in arguments.items() for x in (f"--{k}", str(v)))])
    code = parity.main()
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "not compared: forward" in printed and "58 compared, 0 outside" in printed
    recorded = json.loads((golden / "loss" / "loss.json").read_text())["modes"]
    written = json.loads((tmp_path / "loss.json").read_text())
    for mode, groups in recorded.items():
        assert {group: list(values) for group, values in groups.items()} == {
            group: list(values) for group, values in written[mode].items()
        }  # the same names in the same order
        total, expected = (sum(values[mode]["loss_mean"].values()) for values in (written, recorded))
        assert total == pytest.approx(expected, rel=1e-6)


def test_every_term_is_what_its_description_says(prediction, targets):
    """Against a second implementation, one number at a time; every mask is used both ways."""
    terms = InterWildLoss(FRAMES)(prediction, targets)
    expected = by_the_page(prediction, targets)
    assert set(terms) == set(expected)
    for name, value in terms.items():
        assert 0 < expected[name] == pytest.approx(float(value), rel=2e-6), name


def test_what_does_not_count_has_no_gradient(prediction, targets):
    """Nothing annotated: all terms are 0, and so is the gradient of every number predicted."""
    off = {
        name: torch.zeros_like(value)
        for name, value in targets._asdict().items()
        if name.endswith(("_valid", "_inside"))
    }
    leaves = [x.clone().requires_grad_() for x in (prediction.joints_hand_hm, prediction.vertices_rel)]
    changed = prediction._replace(joints_hand_hm=leaves[0], vertices_rel=leaves[1])
    terms = InterWildLoss(FRAMES)(changed, targets._replace(**off))
    sum(terms.values()).backward()
    assert [float(value.detach()) for value in terms.values()] == [0.0] * 12
    assert all((leaf.grad == 0).all() for leaf in leaves)


def test_only_the_keypoints_depth_depends_on_3d(prediction, targets):
    """The z of a MANO fit to a photo counts, that of its keypoints does not; x and y count in both."""
    on = targets._replace(joints_inside=torch.ones(N, 2, 21), mano_joints_inside=torch.ones(N, 2, 21))
    elements = InterWildLoss(FRAMES).elementwise(prediction, on._replace(has_depth=torch.zeros(N)))
    assert (elements["joint_img"][..., 2] == 0).all() and (elements["joint_img"][..., :2] > 0).any()
    assert (elements["mano_joint_img"][..., 2] > 0).any()
    assert (elements["joint_cam"] == 0).all()


def test_nothing_is_modified_and_shards_average_to_the_whole(prediction, targets):
    """Twice the same; the mean over processes with equal shares is the mean over the global batch."""
    criterion = InterWildLoss(FRAMES)

    def tensors(batch):
        return [x for part in batch for x in (part if isinstance(part, ManoParams) else [part])]

    before = [x.clone() for x in tensors(prediction) + tensors(targets)]
    whole = criterion(prediction, targets)
    assert all(map(torch.equal, before, tensors(prediction) + tensors(targets)))

    def share(batch, n: int):
        parts = (ManoParams(*(y[n : n + 1] for y in x)) if isinstance(x, ManoParams) else x[n : n + 1] for x in batch)
        return type(batch)(*parts)

    shares = [criterion(share(prediction, n), share(targets, n)) for n in range(N)]
    for name, value in whole.items():
        assert float(torch.stack([s[name] for s in shares]).mean()) == pytest.approx(float(value), rel=1e-6)


def test_half_precision_predictions_are_compared_in_float(prediction, targets):
    """Under autocast the network's heads give bfloat16; crop pixels and rotations need more digits."""

    def change(batch, to):
        return type(batch)(*(change(x, to) if isinstance(x, ManoParams) else to(x) for x in batch))

    half = change(prediction, torch.Tensor.bfloat16)
    rounded = change(half, torch.Tensor.float)
    criterion = InterWildLoss(FRAMES)
    for name, value in criterion(half, targets).items():
        assert value.dtype == torch.float32 and torch.equal(value, criterion(rounded, targets)[name])


def test_a_nan_is_traced_to_its_term_and_sample(prediction, targets):
    """A broken prediction is not masked away, and only the terms it enters name it."""
    criterion = InterWildLoss(FRAMES)
    assert criterion.nonfinite(prediction, targets) == {}
    rel_transl = prediction.rel_transl.clone()
    rel_transl[1, 2] = torch.nan  # sample 1 has no valid relative translation: it is seen all the same
    assert criterion.nonfinite(prediction._replace(rel_transl=rel_transl), targets) == {"rel_trans": [1]}


def test_parity_notices(golden: Path, tmp_path: Path):
    """NaN and a number too far off are outside; a term too many or too few is an error."""
    recorded = {"a": 1.0, "b": 2.0}
    assert [r.outside for r in compare_group("g", recorded, {"a": 1.000005, "b": float("nan")}, {}, 1e-5)] == [
        False,
        True,
    ]
    assert compare_group("g", recorded, {"a": 1.0001, "b": 2.0}, {}, 1e-5)[0].outside
    with pytest.raises(UserError, match="differing: b"):
        compare_group("g", recorded, {"a": 1.0}, {}, 1e-5)
    arrays = dict(np.load(golden / "loss" / "loss_batch.npz"))
    del arrays["targets/joint_cam"]
    np.savez(tmp_path / "batch.npz", **arrays)
    with pytest.raises(UserError, match="joint_cam"):
        read_batch(tmp_path / "batch.npz")


def test_parity_compares_what_is_recorded(monkeypatch, golden, mano_folder, tmp_path):
    """A part named by --what must have its files and its options; an empty folder is an error."""

    def run(folder: Path, *more: str) -> None:
        argv = ["parity.py", "--golden", str(folder), "--mano", str(mano_folder), "--out", str(tmp_path), *more]
        monkeypatch.setattr(sys, "argv", argv)
        parity.main()

    with pytest.raises(UserError, match="`forward` needs forward_test.npz in"):
        run(golden / "loss", "--what", "forward")
    with pytest.raises(UserError, match="`loss` needs --checkpoint"):
        run(golden / "loss")
    with pytest.raises(UserError, match="no recorded results, none of forward_test.npz, loss.json, datasets/"):
        run(mano_folder)
