"""The exported network: it computes what the checkpoint does, holds nothing of MANO, and nothing else is run."""

import errno
import json
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from inputs import smooth_image_uint8

from common.errors import UserError
from common.nets.mano import TwoHandMano
from common.nets.mano_files import HandModel, read_hand_models
from common.types import ManoParams
from common.utils.images import load_image
from demo.predictor import HandPredictor
from main import export
from main.build import LoadedModel, build_model
from main.onnx_network import FORMAT, INPUT, OUTPUTS, file_sha256, load_onnx
from main.options import preset_config

ROOT = Path(__file__).resolve().parent.parent
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["export.py", *map(str, arguments)])
    return export.main()


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    cv2.imwrite(str(path), smooth_image_uint8(4, 240, 301)[..., ::-1])
    return path


@pytest.fixture(scope="module")
def exported(checkpoint: Path, photo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of network.onnx and network.json."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run(monkeypatch, "--checkpoint", checkpoint, "--output", folder, "--input", photo) == 0
    return folder


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    """A copy of network.onnx, with its network.json beside it."""
    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path / "network.onnx"


def change_record(path: Path, **values: object) -> None:
    record = path.with_suffix(".json")
    record.write_text(json.dumps(json.loads(record.read_text()) | values))


# ---- The file ----


def test_the_files_describe_themselves(exported, checkpoint):
    assert {file.name for file in exported.iterdir()} == {"network.onnx", "network.json"}
    record = json.loads((exported / "network.json").read_text())
    assert record["sha256"] == file_sha256(exported / "network.onnx")
    assert record["checkpoint"] == {"sha256": file_sha256(checkpoint), "epoch": 6} and record["hand_model"] is None
    assert [row["output"] for row in record["check"]] == list(record["outputs"]) == list(OUTPUTS)
    for row in record["check"]:
        assert 0 < row["file_error"] <= 2 * row["eager_error"] + 1e-6, row  # 0: nothing was compared
        assert 0 < row["eager_error"] < 1e-3, row
    model = onnx.load(exported / "network.onnx")
    assert [(opset.domain, opset.version >= 20) for opset in model.opset_import] == [("", True)]
    values = {value.name: value.type.tensor_type for value in [*model.graph.input, *model.graph.output]}
    assert list(values) == [INPUT, *OUTPUTS]
    assert {value.shape.dim[0].dim_param for value in values.values()} == {"N"}
    assert {value.elem_type for value in values.values()} == {onnx.TensorProto.FLOAT}
    assert {entry.key: entry.value for entry in model.metadata_props}["notice"] == "contains no hand model"


def test_no_path_of_this_machine_is_in_the_files(exported):
    for file in exported.iterdir():
        content = file.read_bytes()
        assert str(ROOT).encode() not in content and b"site-packages" not in content, file


def mano_in(file: Path, hands: tuple[HandModel, ...]) -> list[str]:
    """Where arrays of the hand models are in a file."""
    tensors = onnx.load(file).graph.initializer
    found = [tensor.name for tensor in tensors if {778, 2334, 1538} & set(tensor.dims)]
    content = file.read_bytes()
    for hand in hands:
        for template in (hand.v_template, hand.v_template.T):
            for kind in (np.float32, np.float64):
                raw = np.ascontiguousarray(template, kind).tobytes()
                parts = [raw[start : start + 128] for start in range(0, len(raw) - 128, len(raw) // 8)]
                found += ["v_template" for part in parts if part in content]
    return found


def test_no_array_of_mano_is_in_the_file(exported, mano_folder, tmp_path):
    hands = read_hand_models(mano_folder)
    assert not mano_in(exported / "network.onnx", hands)
    # The search finds what it searches for: by shape, and by bytes in another shape.
    template = hands[0].v_template.astype(np.float32)
    for array, where in ((template, {"x", "v_template"}), (template.reshape(-1, 2), {"v_template"})):
        graph = onnx.helper.make_graph([], "g", [], [], [onnx.numpy_helper.from_array(array, "x")])
        onnx.save(onnx.helper.make_model(graph), tmp_path / "x.onnx")
        assert set(mano_in(tmp_path / "x.onnx", hands)) == where


@pytest.mark.slow
def test_with_hands(monkeypatch, checkpoint, mano_folder, photo, tmp_path):
    """Then the meshes are outputs, MANO is in the file, and both files say so."""
    options = ("--checkpoint", checkpoint, "--output", tmp_path, "--with_hands", "--mano", mano_folder)
    assert run(monkeypatch, *options) == 0
    record = json.loads((tmp_path / "network.json").read_text())
    assert {"vertices_rel", "joints_rel", "joints_proj_hand_hm"} <= {row["output"] for row in record["check"]}
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "network.onnx").metadata_props}
    assert record["hand_model"]["name"] == metadata["hand_model"] == TwoHandMano(*read_hand_models(mano_folder)).name
    assert record["hand_model"]["notice"] == metadata["notice"]
    assert mano_in(tmp_path / "network.onnx", read_hand_models(mano_folder))
    assert len(HandPredictor.load(tmp_path / "network.onnx", mano_folder)(photo).hands) == 2


def test_a_real_hand_model_is_not_to_be_passed_on(mano_folder):
    mano = TwoHandMano(*read_hand_models(mano_folder))
    notices = {}
    for mano.name in ("MANO", "stand-in hand"):
        loaded = LoadedModel(build_model(preset_config("small"), mano), preset_config("small"), 0, [], "")
        network = export.FlatNetwork(loaded.model, with_hands=True)
        notices[mano.name] = export.describe(network, loaded, Path(__file__))["hand_model"]["notice"]
    assert notices["MANO"] == "contains MANO data: not to be passed on" and "not MANO" in notices["stand-in hand"]


@pytest.mark.slow
def test_pt2_computes_the_same(monkeypatch, checkpoint, tmp_path):
    assert run(monkeypatch, "--checkpoint", checkpoint, "--output", tmp_path, "--format", "pt2") == 0
    assert {file.name for file in tmp_path.iterdir()} == {"network.pt2", "network.json"}
    assert str(ROOT).encode() not in (tmp_path / "network.pt2").read_bytes()
    network = export.FlatNetwork(build_model(preset_config("small"), None), with_hands=False).eval()
    content = torch.load(checkpoint, weights_only=True)["network"]
    network.network.load_state_dict({key.removeprefix("module."): value for key, value in content.items()})
    crops = torch.rand(3, 3, *network.network.frames.crop)
    with torch.inference_mode():
        for ours, found in zip(network(crops), export.open_pt2(tmp_path / "network.pt2")(crops), strict=True):
            torch.testing.assert_close(found, ours, rtol=0, atol=1e-6 * float(ours.abs().max()))


# ---- Its use ----


def test_the_predictor_gives_the_same_results(exported, checkpoint, mano_folder):
    """Boxes and joints to 0.01 px, meshes to 0.01 mm; their distance of about 10 m to float32's digits."""
    ours = HandPredictor.load(checkpoint, mano_folder, ["cpu"])
    found = HandPredictor.load(exported / "network.onnx", mano_folder)
    assert found.note == ours.note != ""
    images = [smooth_image_uint8(seed, 240, 200 + 50 * seed) for seed in range(1, 4)]
    photos = [ours.prepare(image) for image in images]
    for expected, result in zip(ours.predict(photos), found.predict(photos), strict=True):
        assert result.pair == expected.pair and len(result.hands) == 2
        np.testing.assert_allclose(result.boxes_image, expected.boxes_image, atol=0.01, rtol=0)
        for hand, other in zip(result.hands, expected.hands, strict=True):
            assert type(hand) is type(other) and hand.vertices_cam.dtype == np.float32
            np.testing.assert_allclose(hand.joints_image, other.joints_image, atol=0.01, rtol=0)
            wrists = hand.joints_cam[0], other.joints_cam[0]
            np.testing.assert_allclose(hand.vertices_cam - wrists[0], other.vertices_cam - wrists[1], atol=1e-5, rtol=0)
            np.testing.assert_allclose(*wrists, rtol=0, atol=5e-6 * wrists[1][2])


def test_more_crops_than_the_network_takes_at_once(exported, mano_folder, monkeypatch):
    """They run in parts."""
    network, config, _ = load_onnx(exported / "network.onnx", mano_folder)
    crops = torch.rand(5, 3, *config.frames.crop)
    whole = network(crops)
    monkeypatch.setattr("main.onnx_network.MAX_BATCH", 2)
    torch.testing.assert_close(network(crops).vertices_rel, whole.vertices_rel, atol=1e-5, rtol=0)


def test_demo(exported, mano_folder, photo, tmp_path):
    command = [sys.executable, ROOT / "demo" / "demo.py", "--gpu", "cpu", "--mano", mano_folder, "--input", photo]
    command += ["--checkpoint", exported / "network.onnx", "--output", tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    found = json.loads((tmp_path / "results" / "photo.json").read_text())["hands"]
    expected = HandPredictor.load(exported / "network.onnx", mano_folder)(photo)
    np.testing.assert_allclose(found["left"]["joints_image"], expected.left.joints_image, atol=0.01)


def test_the_example_runs_without_torch(exported, checkpoint, mano_folder, photo, tmp_path):
    script = ROOT / "docs" / "onnx_example.py"
    assert len(script.read_text().splitlines()) <= 120
    program = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", program, script, exported / "network.onnx", mano_folder, photo, tmp_path / "hands"]
    subprocess.run(command, check=True, cwd=tmp_path)
    expected = HandPredictor.load(checkpoint, mano_folder, ["cpu"])(photo)
    assert expected.pair
    found = json.loads((tmp_path / "hands.json").read_text())
    for hand in expected.hands:
        assert found[hand.side]["confidence"] == pytest.approx(hand.confidence, rel=1e-4)
        np.testing.assert_allclose(found[hand.side]["joints_image"], hand.joints_image, atol=0.01, rtol=0)
        lines = [line.split() for line in (tmp_path / f"hands_{hand.side}.obj").read_text().splitlines()]
        vertices = np.array([line[1:] for line in lines if line[0] == "v"], float)
        vertices_rel = hand.vertices_cam - hand.joints_cam[0]
        np.testing.assert_allclose(vertices - vertices[0] + vertices_rel[0], vertices_rel, atol=1e-5, rtol=0)
        np.testing.assert_allclose(vertices, hand.vertices_cam, rtol=0, atol=1e-5 * hand.vertices_cam[0, 2])


def test_the_examples_hand_is_ours(mano, mano_folder):
    """A numpy MANO of 30 lines."""
    example = runpy.run_path(str(ROOT / "docs" / "onnx_example.py"))
    generator = np.random.default_rng(0)
    orient, pose, betas = (generator.normal(size=shape) for shape in ((3,), (15, 3), (10,)))
    vertices = example["pose_hand"](example["read_mano"](mano_folder / "MANO_RIGHT.pkl"), orient, pose, betas)
    both = ManoParams(*(torch.from_numpy(np.stack((x, x)))[None].float() for x in (orient, pose, betas)))
    assert np.abs(mano(both)[0][0, 0].numpy() - vertices).max() < 1e-6


# ---- What must be refused ----


def test_an_error_is_found(exported, checkpoint, photo):
    """Also a small one, in one output."""
    network = export.FlatNetwork(export.load_model(checkpoint, None).model, with_hands=False).eval()
    run_file = export.open_onnx(exported / "network.onnx")
    batches = export.make_batches(network.network.frames.crop, [])
    assert all(row.passed for row in export.check(network, run_file, batches))

    def off(crops: torch.Tensor) -> list[torch.Tensor]:
        *others, rel_transl = run_file(crops)
        return [*others, rel_transl * 1.001]

    assert [row.output for row in export.check(network, off, batches) if not row.passed] == ["rel_transl"]
    nan = export.Row("x", float("nan"), 1.0)
    assert not nan.passed


def test_a_file_that_fails_is_not_written(monkeypatch, exported, checkpoint, copied, capsys):
    """Exit code 1, the table is printed, old files stay."""
    before = {file: file.read_bytes() for file in copied.parent.iterdir()}
    run_file = export.open_onnx(exported / "network.onnx")
    monkeypatch.setattr(export, "write_onnx", lambda network, file, hand_model: file.write_bytes(b"x"))
    monkeypatch.setattr(export, "open_onnx", lambda file: lambda crops: [1.01 * value for value in run_file(crops)])
    options = ("--checkpoint", checkpoint, "--output")
    assert run(monkeypatch, *options, copied.parent, "--overwrite") == 1
    assert "FAILED" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in copied.parent.iterdir()} == before
    assert run(monkeypatch, *options, copied.parent / "new") == 1
    assert not list((copied.parent / "new").iterdir())


def test_a_pytorch_that_cannot_convert_is_named(monkeypatch, checkpoint, tmp_path):
    """As 2.6, the lowest version allowed; nothing is written."""

    def fail(*_, **__):
        raise torch.onnx.OnnxExporterError("a report\nof many lines")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(UserError, match="PyTorch .* cannot write this network as ONNX.*; a newer one may: pip install"):
        run(monkeypatch, "--checkpoint", checkpoint, "--output", tmp_path / "new")
    assert not list(tmp_path.rglob("*.onnx"))


def test_existing_files_stay(monkeypatch, checkpoint, copied):
    before = {file: file.read_bytes() for file in copied.parent.iterdir()}
    options = ("--checkpoint", checkpoint, "--output", copied.parent)
    with pytest.raises(UserError, match="exists; name another folder"):
        run(monkeypatch, *options)

    def full_disk(network, file, hand_model):
        file.write_bytes(b"part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export, "write_onnx", full_disk)
    with pytest.raises(UserError, match="No space left on device.*free some space"):
        run(monkeypatch, *options, "--overwrite")
    assert {file: file.read_bytes() for file in copied.parent.iterdir()} == before


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint"])
def test_a_bad_checkpoint(monkeypatch, tmp_path, content):
    if content is not None:
        (tmp_path / "snapshot.pth").write_bytes(content)
    with pytest.raises(UserError, match="checkpoint"):
        run(monkeypatch, "--checkpoint", tmp_path / "snapshot.pth", "--output", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_of_another_system(monkeypatch, tmp_path):
    torch.save({"network": {"x": torch.zeros(3)}}, tmp_path / "snapshot.pth")
    with pytest.raises(UserError, match="does not fit"):
        run(monkeypatch, "--checkpoint", tmp_path / "snapshot.pth", "--output", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package(monkeypatch, package, checkpoint, exported, mano_folder, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"need the package {package}: pip install onnx onnxscript onnxruntime"):
        run(monkeypatch, "--checkpoint", checkpoint, "--output", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    if package != "onnxscript":
        with pytest.raises(UserError, match=f"package {package}"):
            HandPredictor.load(exported / "network.onnx", mano_folder)


def test_files_that_do_not_belong_together(copied, mano_folder):
    """Missing, cut short, of another network; a record that is missing or of something else."""

    def refuse(reason: str) -> None:
        with pytest.raises(UserError, match=reason):
            load_onnx(copied, mano_folder)

    content, record = copied.read_bytes(), copied.with_suffix(".json").read_text()
    copied.write_bytes(content[:-1000])
    refuse("its SHA-256 is .* but network.json was written for")
    copied.write_bytes(content)
    change_record(copied, config={"frames": {"crop": [3, 3, 3]}})
    refuse("config is not of this version")
    change_record(copied, format="else")
    refuse(f"not of the format '{FORMAT}'")
    for text in ("[1]", "{", "\0"):
        copied.with_suffix(".json").write_text(text)
        refuse("cannot read .*network.json")
    copied.with_suffix(".json").unlink()
    refuse("cannot read .*network.json.*No such file")
    copied.with_suffix(".json").write_text(record)
    load_onnx(copied, mano_folder)
    copied.unlink()
    refuse("not found")


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _edit(change) -> object:
    def edit(path: Path) -> None:
        model = onnx.load(path)
        change(model)
        path.write_bytes(model.SerializeToString())

    return edit


def _external(model) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def _subgraph(model) -> None:
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("body", onnx.helper.make_graph([], "g", [], [])))


def _rename(model) -> None:
    model.graph.output[3].name = "other"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_cut_short, "cannot use"),
        (_edit(lambda model: model.graph.ClearField("output")), "rel_transl is missing, expected"),
        (_edit(_rename), "crop_to_hand is missing, expected"),
        (_edit(lambda model: model.graph.ClearField("node")), "cannot use"),
        (_edit(_external), "its weights are in other files"),
        (_edit(lambda model: setattr(model.graph.node[0], "domain", "com.other")), "not ONNX's own, of com.other"),
        (_edit(_subgraph), "functions, subgraphs or sparse"),
        (lambda path: path.write_bytes(b"x" * 100), "cannot use"),
    ],
)
def test_a_bad_network(copied, mano_folder, change, reason):
    """Refused even if network.json is written for it."""
    change(copied)
    change_record(copied, sha256=file_sha256(copied))
    with pytest.raises(UserError, match=reason) as refused:
        load_onnx(copied, mano_folder)
    assert "tool/export.py" in str(refused.value)


def test_a_network_of_another_size(copied, mano_folder):
    """The record of a network with other frames."""
    record = json.loads(copied.with_suffix(".json").read_text())
    change_record(copied, config=record["config"] | {"frames": record["config"]["frames"] | {"crop": [128, 96]}})
    with pytest.raises(UserError, match=r"image_crop is \(3, 256, 192\), expected \(3, 128, 96\)"):
        load_onnx(copied, mano_folder)


def test_the_photo_is_cropped_as_by_the_demo(checkpoint, mano_folder, photo):
    predictor = HandPredictor.load(checkpoint, mano_folder, ["cpu"])
    ours = export.crop_photo(photo, predictor.config)
    expected = predictor.prepare(load_image(photo)).crop
    np.testing.assert_array_equal(ours.permute(1, 2, 0).numpy() * 255, expected / 255 * 255)
