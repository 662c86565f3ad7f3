"""Reading of MANO files, friendly and hostile, and the two-hand layer."""

import io
import json
import pickle
import pickletools
import sys
import types
from pathlib import Path

import make_standin_mano
import numpy as np
import pytest
import scipy.sparse
import smplx
import torch
from smplx.lbs import batch_rigid_transform, batch_rodrigues

from common.errors import UserError
from common.nets.mano import TwoHandMano, forward_kinematics, to_wrist
from common.nets.mano_files import read_hand_models, read_pickle
from common.types import SIDES, ManoParams
from common.utils.joints import JOINTS
from tool.toy.standin_hand import write_standin


def random_params(batch: int, seed: int = 0) -> ManoParams:
    generator = torch.Generator().manual_seed(seed)
    return ManoParams(
        global_orient=torch.randn(batch, 2, 3, generator=generator),
        hand_pose=torch.randn(batch, 2, 15, 3, generator=generator) * 0.4,
        betas=torch.randn(batch, 2, 10, generator=generator),
    )


def test_arrays_are_the_recorded(mano_folder, golden):
    """Sums of every array after the left hand's repair, as recorded."""
    recorded = json.loads((golden / "mano_checksum.json").read_text())
    names = {"Jr": "J_regressor", "f": "faces"}
    for side, hand in zip(SIDES, read_hand_models(mano_folder), strict=True):
        for name, sums in recorded[side].items():
            array = getattr(hand, names.get(name, name)).astype(np.float64)
            np.testing.assert_allclose([array.sum(), np.abs(array).sum()], sums, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variant", ["trigger", "plain"])
def test_left_hand_is_repaired_only_if_it_needs_it(tmp_path, variant):
    make_standin_mano.write(tmp_path, seed=11, variant=variant)
    right, left = read_hand_models(tmp_path)
    np.testing.assert_array_equal(left.shapedirs, right.shapedirs * np.array([-1, 1, 1])[:, None])


def test_mirrored_parameters_give_mirrored_hands(mano):
    """Both the repair and the order of the hands: a right hand's mirror image is the left hand."""
    params = random_params(3)
    params = ManoParams(*(x[:, :1].expand(-1, 2, *x.shape[2:]).clone() for x in params))
    for x in params[:2]:
        x[:, 1, ..., 1:] *= -1
    vertices, joints = mano(params)
    flip = torch.tensor([-1.0, 1.0, 1.0])
    torch.testing.assert_close(vertices[:, 1], vertices[:, 0] * flip, atol=1e-6, rtol=0)
    torch.testing.assert_close(joints[:, 1], joints[:, 0] * flip, atol=1e-6, rtol=0)


def test_layer_equals_smplx(mano, mano_folder):
    """smplx's own layer, hand by hand, with the mean pose of the files."""
    params = random_params(4)
    vertices, joints = mano(params)
    regressor = torch.from_numpy(read_hand_models(mano_folder)[0].J_regressor).float()
    for index, hand in enumerate(read_hand_models(mano_folder)):
        data = types.SimpleNamespace(
            v_template=hand.v_template,
            shapedirs=hand.shapedirs,
            posedirs=hand.posedirs,
            J_regressor=hand.J_regressor,
            kintree_table=np.stack((hand.parents, np.arange(16))),
            weights=hand.weights,
            f=hand.faces,
            hands_mean=hand.hands_mean,
            hands_components=np.eye(45),
        )
        reference = smplx.MANO("", data_struct=data, is_rhand=index == 0, use_pca=False, flat_hand_mean=False)
        output = reference(
            betas=params.betas[:, index],
            global_orient=params.global_orient[:, index],
            hand_pose=params.hand_pose[:, index].flatten(1),
        )
        torch.testing.assert_close(vertices[:, index], output.vertices, atol=1e-6, rtol=0)
        wrist_and_index = [JOINTS.index(name) for name in ("Wrist", "Index_1")]
        regressed = torch.einsum("jv,nvk->njk", regressor, output.vertices)[:, :2]
        torch.testing.assert_close(joints[:, index, wrist_and_index], regressed, atol=1e-6, rtol=0)


def test_layer_equals_independent_skinning(mano, mano_folder):
    """A plain numpy version of the same mathematics in double."""
    params = random_params(2, seed=1)
    vertices, joints = mano(params)
    for index, hand in enumerate(read_hand_models(mano_folder)):
        model = {
            "v_template": hand.v_template,
            "shapedirs": hand.shapedirs,
            "posedirs": hand.posedirs,
            "Jr": hand.J_regressor,
            "weights": hand.weights,
            "hands_mean": hand.hands_mean,
            "kintree_table": np.stack((hand.parents, np.arange(16))),
        }
        for n in range(2):
            pose = torch.cat((params.global_orient[n, index], params.hand_pose[n, index].flatten()))
            expected, named = make_standin_mano.lbs(model, pose.numpy(), params.betas[n, index].numpy(), np.zeros(3))
            np.testing.assert_allclose(vertices[n, index], expected, atol=1e-6)
            if index == 0:  # for the left, joints come from the right hand's regressor
                np.testing.assert_allclose(joints[n, 0], [named[name] for name in JOINTS], atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_kinematic_chain_gives_the_bits_of_smplx(mano, batch):
    torch.manual_seed(0)
    rotations, rest_joints = (
        batch_rodrigues(torch.randn(batch * 16, 3)).view(batch, 16, 3, 3),
        torch.randn(batch, 16, 3),
    )
    expected = batch_rigid_transform(rotations, rest_joints, torch.tensor(mano.parents))[1]
    assert torch.equal(forward_kinematics(rotations, rest_joints, mano.parents), expected)


def test_layer_is_differentiable_at_rest(mano):
    """Zero pose is where axis-angle formulas divide by zero."""
    params = ManoParams(*(torch.zeros_like(x, requires_grad=True) for x in random_params(2)))
    vertices, joints = to_wrist(*mano(params))
    (vertices.square().sum() + joints.sum()).backward()
    assert all(x.grad.isfinite().all() for x in params)
    assert params.hand_pose.grad.abs().max() > 0


def test_nothing_licensed_is_saved(mano):
    assert mano.state_dict() == {}
    assert not list(mano.parameters())


# --- files -------------------------------------------------------------------------------------------------------


def content_of(folder: Path) -> dict:
    """One right hand as plain arrays."""
    return read_pickle(folder / "MANO_RIGHT.pkl")


@pytest.fixture
def chumpy(monkeypatch):
    """Modules named as chumpy's and old scipy's, with classes that pickle as the real ones do."""

    class Ch:
        def __init__(self, x):
            self.x = np.asarray(x)
            self._dirty_vars, self._itr, self._status = set(), None, "new"

        def __getstate__(self):
            return dict(self.__dict__)

    class Select:
        def __init__(self, a, idxs, shape):
            self.a, self.idxs, self.preferred_shape = a, idxs, shape
            self._dirty_vars, self._depends_on_deps = set(), False

    class csc_matrix:
        def __init__(self, matrix):
            self.__dict__.update(
                _shape=matrix.shape, data=matrix.data, indices=matrix.indices, indptr=matrix.indptr, maxprint=50
            )

    for name in ("chumpy", "chumpy.ch", "chumpy.reordering", "scipy.sparse.csc"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for module, cls in (("chumpy.ch", Ch), ("chumpy.reordering", Select), ("scipy.sparse.csc", csc_matrix)):
        cls.__module__, cls.__qualname__ = module, cls.__name__
        setattr(sys.modules[module], cls.__name__, cls)
    return types.SimpleNamespace(Ch=Ch, Select=Select, csc_matrix=csc_matrix)


def official_like(content: dict, chumpy: types.SimpleNamespace) -> bytes:
    """As the official file is: chumpy's Select over a Ch with 20 directions, a csc matrix, old module names."""
    inner = np.concatenate((content["shapedirs"], np.random.default_rng(0).normal(size=(778, 3, 10))), -1)
    indices = np.arange(inner.size).reshape(inner.shape)[..., :10].ravel()
    file = {
        **content,
        "shapedirs": chumpy.Select(chumpy.Ch(inner), indices, (778, 3, 10)),
        "J_regressor": chumpy.csc_matrix(scipy.sparse.csc_matrix(content["J_regressor"])),
    }
    data = pickle.dumps(file, protocol=2)
    return data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def test_a_file_with_chumpy_objects(mano_folder, tmp_path, chumpy, monkeypatch):
    """Read without chumpy: its modules are gone again when the file is opened."""
    content = content_of(mano_folder)
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(official_like(content, chumpy))
    names = {argument for op, argument, _ in pickletools.genops(path.read_bytes()) if op.name == "GLOBAL"}
    assert {"chumpy.ch Ch", "chumpy.reordering Select", "scipy.sparse.csc csc_matrix"} <= names
    for name in ("chumpy", "chumpy.ch", "chumpy.reordering", "scipy.sparse.csc"):
        monkeypatch.delitem(sys.modules, name)
    read = read_pickle(path)
    for key in ("shapedirs", "J_regressor", "v_template", "kintree_table"):
        np.testing.assert_array_equal(read[key], content[key])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("sparse", [True, False])
def test_files_saved_again(mano_folder, tmp_path, protocol, sparse):
    """By any Python 3, with a sparse or dense regressor, arrays in either memory order."""
    content = content_of(mano_folder)
    file = {**content, "posedirs": np.asfortranarray(content["posedirs"])}
    if sparse:
        file["J_regressor"] = scipy.sparse.csc_matrix(content["J_regressor"])
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(pickle.dumps(file, protocol=protocol))
    read = read_pickle(path)
    for key, value in content.items():
        np.testing.assert_array_equal(read[key], value)


class Hostile:
    """Unpickled without care, it runs a command."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("where", ["instead", "inside"])
def test_a_hostile_file_is_refused_before_it_runs(mano_folder, tmp_path, protocol, where):
    import os

    trace = tmp_path / "trace"
    bomb = Hostile(os.system, f"touch {trace}")
    pickle.loads(pickle.dumps(bomb))  # noqa: S301 - the test's own bomb: it does go off where nobody checks
    assert trace.exists()
    trace.unlink()
    content = bomb if where == "instead" else {**content_of(mano_folder), "J": [bomb]}
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(UserError, match=r"posix.system|nt.system"):
        read_pickle(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "function",
    [eval, exec, getattr, print, np.load, np.fromfile, type, object.__reduce_ex__, io.open, pickle.loads],
    ids=lambda function: function.__name__,
)
def test_every_other_name_is_refused(tmp_path, function):
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(pickle.dumps({"x": Hostile(function, "1")}, protocol=4))
    with pytest.raises(UserError, match="nothing was run"):
        read_pickle(path)


def test_object_arrays_are_refused(tmp_path):
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(pickle.dumps({"v_template": np.array([{}, []], dtype=object)}))
    with pytest.raises(UserError, match="cannot use MANO file"):
        read_pickle(path)


def test_truncated_files_give_one_line(mano_folder, tmp_path):
    """Cut anywhere: one line which names the file."""
    data = (mano_folder / "MANO_RIGHT.pkl").read_bytes()
    path = tmp_path / "MANO_RIGHT.pkl"
    for length in (0, 1, 2, 10, 1000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(UserError) as caught:
            read_pickle(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_files_never_crash(mano_folder, tmp_path):
    """Bytes changed at random in the part that holds instructions: refused or read, never anything else."""
    data = (mano_folder / "MANO_RIGHT.pkl").read_bytes()
    generator = np.random.default_rng(0)
    path = tmp_path / "MANO_RIGHT.pkl"
    refused = 0
    for _ in range(150):
        changed = bytearray(data)
        for position in generator.integers(0, 400, 3):
            changed[position] = generator.integers(256)
        path.write_bytes(changed)
        try:
            read_pickle(path)
        except UserError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v_template": np.zeros((779, 3))}, "v_template is float64 (779, 3)"),
        ({"weights": np.full((778, 16), np.nan)}, "weights"),
        ({"shapedirs": np.zeros((778, 3, 9))}, "shapedirs"),
        ({"f": np.full((1538, 3), 778, np.uint32)}, "vertex that does not exist"),
        ({"kintree_table": np.full((2, 16), 5, np.uint32)}, "not a tree"),
        ({"hands_mean": None}, "hands_mean"),
    ],
)
def test_wrong_arrays_are_named(mano_folder, tmp_path, change, message):
    content = {**content_of(mano_folder), **change}
    for side in SIDES:
        (tmp_path / f"MANO_{side.upper()}.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError) as caught:
        read_hand_models(tmp_path)
    assert message in str(caught.value)


def test_a_missing_file_says_where_to_get_it(tmp_path):
    with pytest.raises(UserError, match="mano.is.tue.mpg.de.*stand-in"):
        read_hand_models(tmp_path)


def test_a_folder_above_is_accepted(mano_folder, tmp_path):
    """smplx's habit: the files lie in `mano` below the folder that is named."""
    (tmp_path / "mano").symlink_to(mano_folder)
    assert TwoHandMano(*read_hand_models(tmp_path)).name == "MANO"


# --- which hand it is, and what may stand in its place ------------------------------------------------------------


@pytest.fixture(params=["recorded", "generated"])
def both_hands(request, mano_folder, tmp_path_factory) -> Path:
    """The stand-in of the recorded figures and the generated one, whose left shape directions both need the repair."""
    if request.param == "recorded":
        return mano_folder
    folder = tmp_path_factory.mktemp("generated")
    write_standin(folder)
    return folder


def put_hands(folder: Path, right: bytes, left: bytes) -> None:
    for name, data in (("MANO_RIGHT.pkl", right), ("MANO_LEFT.pkl", left)):
        (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("RIGHT", "RIGHT"), "MANO_LEFT.pkl holds a right hand"),
        (("LEFT", "LEFT"), "MANO_RIGHT.pkl holds a left hand"),
        (("LEFT", "RIGHT"), "MANO_RIGHT.pkl holds a left hand"),
    ],
)
def test_a_wrong_hand_is_refused(both_hands, tmp_path, pair, message):
    put_hands(tmp_path, *((both_hands / f"MANO_{side}.pkl").read_bytes() for side in pair))
    with pytest.raises(UserError, match=message):
        read_hand_models(tmp_path)


def _exchange(first: int, second: int):
    """Two joints, and with them their columns of weights, as in a file with another order of fingers."""

    def change(content: dict) -> None:
        order = np.arange(16)
        order[first : first + 3], order[second : second + 3] = range(second, second + 3), range(first, first + 3)
        content["J_regressor"], content["weights"] = content["J_regressor"][order], content["weights"][:, order]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_exchange(7, 10), "in other places"),  # ring before pinky, as in most other hands
        (lambda c: c.update(v_template=c["v_template"] * [1, 1, -1]), "in other places"),
        (lambda c: c.update(v_template=c["v_template"][:, [2, 1, 0]]), "in other places|holds a left"),
        (lambda c: c.update(v_template=c["v_template"] + [0, 0.02, 0]), "not mirror images"),
    ],
)
def test_another_hand_than_manos_is_refused(both_hands, tmp_path, change, message):
    content = dict(read_pickle(both_hands / "MANO_RIGHT.pkl"))
    change(content)
    put_hands(tmp_path, pickle.dumps(content), (both_hands / "MANO_LEFT.pkl").read_bytes())
    with pytest.raises(UserError, match=message):
        read_hand_models(tmp_path)


FAILED_DOWNLOADS = {
    b"": "it is empty",
    b"\0" * 5000: "it is empty",
    b"\n<!DOCTYPE html><html><title>Sign in</title>": "a web page",
    b"<html><body>404</body></html>": "a web page",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3821356\n": "a Git LFS pointer",
    b"PK\3\4" + b"\0" * 50: "a zip archive: unpack it",
    b"\x1f\x8b\x08" + b"\0" * 50: "gzip-compressed: unpack it",
    b'{"error": "forbidden"}': "a server's error",
}


@pytest.mark.parametrize("data", FAILED_DOWNLOADS, ids=lambda data: repr(data[:12]))
def test_what_a_failed_download_leaves_is_named(both_hands, tmp_path, data):
    put_hands(tmp_path, data, data)
    with pytest.raises(UserError, match=f"MANO_RIGHT.pkl: .*{FAILED_DOWNLOADS[data]}.*mano.is.tue.mpg.de"):
        read_hand_models(tmp_path)


@pytest.mark.parametrize("share", [0.2, 0.9, 0.999])
def test_a_truncated_hand_file_is_called_so(both_hands, tmp_path, share):
    data = (both_hands / "MANO_RIGHT.pkl").read_bytes()
    part = data[: int(len(data) * share)].rstrip(b".")
    put_hands(tmp_path, part, part)
    with pytest.raises(UserError, match="cut short: get it again"):
        read_hand_models(tmp_path)
