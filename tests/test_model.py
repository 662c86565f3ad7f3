"""The network as a module: batches, gradients, precision, what is shared with the outside."""

import copy
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode  # 2026-11: the only way to run CUDA code paths without a GPU
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only
from torch.utils.data import default_collate

from common.criterion import InterWildLoss
from common.nets.resnet import BACKBONES
from common.postprocess import to_crop
from common.targets import build_images, build_targets, make_sample
from common.types import LEFT, RIGHT, Annotation, Prediction
from common.utils.augment import Augmentation
from main.build import build_model
from main.config import Backbone, Config
from main.model import InterWild
from tests.conftest import SMALL
from tool.untrained import show_something


@pytest.fixture(scope="module")
def images() -> Tensor:
    from inputs import smooth_batch

    return torch.from_numpy(smooth_batch(5, 3))


def flat(prediction: Prediction | tuple, name: str = "") -> dict[str, Tensor]:
    """A nested named tuple -> {name: tensor}."""
    if isinstance(prediction, Tensor):
        return {name: prediction}
    return {
        key: value
        for field, part in zip(prediction._fields, prediction, strict=True)
        for key, value in flat(part, field).items()
    }


def test_shapes_and_types(small_model, images):
    """As `common/types.py` promises."""
    with torch.inference_mode():
        tensors = flat(small_model(images))
    shapes = {name: tuple(tensor.shape[1:]) for name, tensor in tensors.items()}
    assert shapes == {
        "box_centers_body_hm": (2, 2),
        "box_sizes_body_hm": (2, 2),
        "box_scores": (2,),
        "crop_to_hand": (2, 2, 3),
        "joints_hand_hm": (2, 21, 3),
        "global_orient": (2, 3),
        "hand_pose": (2, 15, 3),
        "betas": (2, 10),
        "vertices_rel": (2, 778, 3),
        "joints_rel": (2, 21, 3),
        "joints_proj_hand_hm": (2, 21, 2),
        "root_transl": (2, 3),
        "rel_transl": (3,),
    }
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in tensors.values())


def test_parameters_need_no_hand_model(small_model, images):
    """The first step alone, in a network without MANO, has the bits of the whole; float64 is kept to the end."""
    model = build_model(SMALL, mano=None).eval()
    model.load_state_dict(small_model.state_dict())
    with torch.inference_mode():
        whole = flat(small_model(images[:1]))
        alone = flat(model.predict_parameters(images[:1]))
        exact = flat(model.double().predict_parameters(images[:1].double()))
    assert len(alone) == 10 and all(torch.equal(alone[name], whole[name]) for name in alone)
    for name, value in exact.items():
        assert value.dtype == torch.float64, name
        worst = (alone[name] - value).abs().max() / value.abs().max()
        assert 0 < worst < 1e-3, name  # 0 would mean that it was computed in float32


def test_a_batch_equals_its_samples(small_model, images):
    """Nothing leaks from one image to another, and any batch size works."""
    with torch.inference_mode():
        batch, crop = small_model(images), None
        crop = flat(to_crop(batch, SMALL.frames))
        batch = flat(batch)
        for n in range(len(images)):
            single = small_model(images[n : n + 1])
            for name, tensor in flat(to_crop(single, SMALL.frames)).items():
                scale = crop[name].abs().max()
                assert (tensor[0] - crop[name][n]).abs().max() <= 1e-4 * scale, name
            for name, tensor in flat(single).items():
                assert (tensor[0] - batch[name][n]).abs().max() <= 1e-4 * batch[name].abs().max(), name


def test_an_empty_batch(small_model, images):
    with torch.inference_mode():
        prediction = flat(small_model(images[:0]))
    assert all(len(tensor) == 0 for tensor in prediction.values())


def test_the_left_hand_is_seen_as_a_right_hand(small_model, images):
    """On a mirrored image, with mirrored boxes, the backbone is shown the same two patches, in the other order."""
    seen = []
    small_model.hand_roi_net.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    frames, side = SMALL.frames, 60.0  # px in `body`
    centers = torch.tensor([[[70.0, 90.0], [105.0, 125.0]]])
    # The image mirrors about (W - 1) / 2, a patch about (w - 1) / 2 while its box centre is at w / 2: one patch pixel.
    patch_pixel = 2 * side / frames.hand[1]  # in `crop`
    mirrored = centers.flip(1).clone()
    mirrored[..., 0] = (frames.crop[1] - 1 + patch_pixel) / 2 - mirrored[..., 0]
    with torch.inference_mode():
        for image, box_centers in ((images[:1], centers), (images[:1].flip(-1), mirrored)):
            small_model.hand_roi_net(image, torch.cat((box_centers - side / 2, box_centers + side / 2), -1))
    assert (seen[0] - seen[0].flip(0)).abs().max() > 0.1  # the two hands differ
    torch.testing.assert_close(seen[0], seen[1].flip(0), atol=1e-4, rtol=0)


def test_where_gradients_go(small_model, images):
    """Hand losses do not reach the detector, the relative translation does not reach the position network, the
    translation backbone's stem gets nothing; everything else learns."""
    small_model.train()

    def reached(loss: Tensor) -> set[str]:
        small_model.zero_grad(set_to_none=True)
        loss.backward()
        return {name.split(".")[0] for name, p in small_model.named_parameters() if p.grad is not None}

    prediction = small_model(images)
    assert reached(prediction.box_sizes_body_hm.sum() + prediction.box_centers_body_hm.sum()) == {
        "body_backbone",
        "body_box_net",
    }
    prediction = small_model(images)
    hand_loss = prediction.vertices_rel.square().sum() + prediction.joints_proj_hand_hm.square().sum()
    assert reached(hand_loss) == {"hand_roi_net", "hand_rotation_net"}
    prediction = small_model(images)
    assert reached(prediction.joints_hand_hm.sum()) == {"hand_roi_net", "hand_position_net"}
    prediction = small_model(images)
    assert reached(prediction.rel_transl.sum()) == {"hand_trans_net"}

    small_model.zero_grad(set_to_none=True)
    sum(tensor.square().sum() for tensor in flat(small_model(images)).values() if tensor.requires_grad).backward()
    without = {name for name, p in small_model.named_parameters() if p.grad is None}
    assert without == {f"hand_trans_net.backbone.{name}" for name in ("conv1.weight", "bn1.weight", "bn1.bias")}
    assert all(p.grad.isfinite().all() for p in small_model.parameters() if p.grad is not None)


def test_the_backbones_of_the_configuration_are_those_of_the_code():
    assert set(get_args(Backbone)) == set(BACKBONES)


def test_the_input_is_left_alone(small_model, images):
    before = images.clone()
    with torch.inference_mode():
        small_model(images)
    assert torch.equal(images, before)


def test_bfloat16_autocast(small_model, images):
    """Runs, reports float32, and stays near float32: geometry is not done in 8 bits of mantissa."""
    with torch.inference_mode():
        exact = small_model(images)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = small_model(images)
    assert all(tensor.dtype == torch.float32 for tensor in flat(mixed).values())
    assert (mixed.vertices_rel - exact.vertices_rel).abs().max() < 0.02  # m
    assert (mixed.box_centers_body_hm - exact.box_centers_body_hm).abs().max() < 1  # of 64 cells
    # Bones keep their length whatever the precision of the pose.
    bones = (exact.vertices_rel[:, :, 100] - exact.vertices_rel[:, :, 101]).norm(dim=-1)
    assert ((mixed.vertices_rel[:, :, 100] - mixed.vertices_rel[:, :, 101]).norm(dim=-1) / bones - 1).abs().max() < 0.1


def run_geometry(model: InterWild, images: Tensor, heads: dict[str, Tensor], monkeypatch) -> dict[str, Tensor]:
    """What the network makes of given outputs of its heads (all but the last), the joints of `pair_hm` among it.

    Args:
        heads: name of a submodule -> its output; where it is empty, the outputs are the network's own and put there.
    """
    given, seen = dict(heads), {}
    place_joints = model.hand_trans_net.place_joints

    def output_of(name: str, own: Tensor) -> Tensor:
        heads.setdefault(name, own)
        return given.get(name, own)

    def keep_joints(*arguments: Tensor) -> Tensor:
        seen["joints_pair_hm"] = place_joints(*arguments)
        return seen["joints_pair_hm"]

    monkeypatch.setattr(model.hand_trans_net, "place_joints", keep_joints)
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _module, _input, own, name=name: output_of(name, own))
        for name in (
            *("body_box_net.bbox_center", "body_box_net.rhand_size", "body_box_net.lhand_size"),
            *("hand_position_net.conv", "hand_rotation_net.root_pose_out", "hand_rotation_net.pose_out"),
            *("hand_rotation_net.shape_out", "hand_rotation_net.cam_out"),
        )
    ]
    prediction = model(images)
    for hook in hooks:
        hook.remove()
    monkeypatch.undo()
    return {name: x for name, x in flat(prediction).items() if name != "rel_transl"} | seen


TINY = Config(body_backbone="resnet10_half", hand_backbone="resnet10_half", trans_backbone="resnet10_half")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("trained", [False, True])
def test_geometry_is_float32_under_autocast(images, mano, monkeypatch, dtype, trained):
    """The same outputs of the heads give the same boxes, maps, hands and joints, bit for bit. Untrained, the boxes have
    almost no size, so that the maps between crop and hand have scales far beyond float16."""
    torch.manual_seed(1)
    model, heads = build_model(TINY, mano).eval(), {}
    if trained:
        show_something(model)
    with torch.inference_mode():
        expected = run_geometry(model, images[:2], heads, monkeypatch)
        assert len(heads) == 8 and (trained or expected["crop_to_hand"].abs().max() > 65504)
        with torch.autocast("cpu", dtype):
            assert model.hand_trans_net.fc[0](torch.ones(1, model.hand_trans_net.fc[0].in_features)).dtype == dtype
            found = run_geometry(model, images[:2], heads, monkeypatch)
    for name, value in expected.items():
        assert found[name].dtype == torch.float32 and found[name].isfinite().all(), name
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6 * float(value.abs().max()), msg=name)


def test_a_step_is_finite_under_autocast_before_training(images, mano):
    """The outputs of heads as they are initialised, and their gradients. bfloat16: float16 takes minutes on a CPU."""
    torch.manual_seed(0)
    model = build_model(TINY, mano).train()
    with torch.autocast("cpu", torch.bfloat16):
        prediction = flat(model(images[:2]))
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in prediction.values())
    sum(x.abs().mean() for x in prediction.values() if x.requires_grad).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_compiles_to_one_graph(small_model, images):
    """No graph break (`fullgraph` refuses one), also from the frames, a msgspec struct; and the same numbers."""
    torch._dynamo.reset()
    with torch.inference_mode():
        compiled = flat(torch.compile(small_model, fullgraph=True, backend="eager")(images[:1]))
        for name, expected in flat(small_model(images[:1])).items():
            torch.testing.assert_close(compiled[name], expected, rtol=0, atol=1e-6)


class OneDevice(TorchDispatchMode):
    """Fails where an operation has tensors of more than one device, or makes one on the host."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        tensors = (x for x in tree_iter((arguments, options, result)) if isinstance(x, Tensor))
        assert {x.device.type for x in tensors} <= {"cuda"}, f"{function} copies between host and device"
        assert function.overloadpacket.__name__ != "_local_scalar_dense", "a value is read on the host"
        return result


def test_a_step_copies_nothing_between_host_and_device(small_model):
    """Images, targets, network and losses, with fake CUDA tensors: only their shapes and devices are computed."""
    annotation = Annotation(id=1, image_path=Path("x.jpg"), image_size=(60, 80))
    frames, image = small_model.frames, np.zeros((60, 80, 3), np.uint8)
    augmentations = [Augmentation(flip=flip, rot=20.0) for flip in (False, True)]
    sample = default_collate([make_sample(annotation, image, each, frames, 1.0) for each in augmentations])
    model = build_model(SMALL, copy.deepcopy(small_model.mano_layer))

    def on_cuda(x: Tensor) -> Tensor:
        return torch.empty(x.shape, dtype=x.dtype, device="cuda")

    # cuDNN's grid_sample has no fake version.
    with FakeTensorMode(), torch.backends.cudnn.flags(enabled=False):
        try:
            on_cuda(torch.empty(1))[:, None]
        except RuntimeError as error:  # 2.9 does, 2.14 does not
            pytest.skip(f"this PyTorch needs a CUDA driver for fake CUDA tensors: {error}".splitlines()[0])
        model._apply(on_cuda)
        sample = tree_map_only(Tensor, on_cuda, sample)
        with pytest.raises(AssertionError, match="copies"), OneDevice():
            torch.tensor([1.0]).to("cuda")
        with OneDevice():
            targets = build_targets(sample, model.mano_layer, frames)
            terms = InterWildLoss(frames)(model(build_images(sample)), targets)
        assert {term.device.type for term in terms.values()} == {"cuda"}


def test_degenerate_boxes_stay_finite(small_model, images):
    """A hand box without size, or of negative size, gives finite hands (and finite gradients to none)."""
    for size in (0.0, -8.0):
        with torch.no_grad():
            for head in (small_model.body_box_net.rhand_size, small_model.body_box_net.lhand_size):
                head[2].weight.zero_()
                head[2].bias.fill_(size)
            tensors = flat(small_model(images))
        assert all(tensor.isfinite().all() for tensor in tensors.values()), size


def test_initialisation():
    """Heads: convolutions std 0.001, linear layers std 0.01, biases 0, batch norm 1 and 0."""
    torch.manual_seed(0)
    model = build_model(Config(body_backbone="resnet18", hand_backbone="resnet18"), mano=None)
    for name, parameter in model.named_parameters():
        if "backbone" in name:
            continue
        if parameter.ndim == 4:
            assert abs(parameter.std() / 0.001 - 1) < 0.1, name
        elif parameter.ndim == 2:
            assert abs(parameter.std() / 0.01 - 1) < 0.1, name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert (parameter == 1).all(), name


def test_hands_are_right_then_left():
    assert (RIGHT, LEFT) == (0, 1)
