"""What the tests share: the network and the hand behind the recorded results, and a small, quick network."""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))

from common.checkpoint import data_record, save_checkpoint  # noqa: E402
from common.nets.mano import TwoHandMano  # noqa: E402
from common.nets.mano_files import read_hand_models  # noqa: E402
from demo.predictor import HandPredictor  # noqa: E402
from main.build import build_model  # noqa: E402
from main.config import Config, config_to_dict  # noqa: E402
from main.model import InterWild  # noqa: E402
from main.options import preset_config  # noqa: E402
from tool.toy.scene import HandRig, build_rig  # noqa: E402
from tool.toy.standin_hand import write_standin  # noqa: E402
from tool.untrained import show_something  # noqa: E402

# Under nohup and in the background they are ignored, also by every process that a test starts.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Recorded results depend on the number of threads, which some commands set for their process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the recorded results."""
    return GOLDEN


@pytest.fixture(scope="session")
def unit() -> dict[str, np.ndarray]:
    """Recorded inputs and outputs of single functions."""
    with np.load(GOLDEN / "unit.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def mano_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MANO files of the hand of the recorded results."""
    import make_standin_mano

    folder = tmp_path_factory.mktemp("mano")
    make_standin_mano.write(folder, seed=11, variant="trigger")
    return folder


@pytest.fixture(scope="session")
def mano(mano_folder: Path) -> TwoHandMano:
    return TwoHandMano(*read_hand_models(mano_folder))


@pytest.fixture(scope="session")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the generated hand."""
    folder = tmp_path_factory.mktemp("standin")
    write_standin(folder)
    return folder


@pytest.fixture(scope="session")
def rig(standin: Path) -> HandRig:
    return build_rig(read_hand_models(standin))


@pytest.fixture(scope="session")
def golden_snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of the recorded results, in the published layout."""
    from fill_weights import fill_state_dict

    shapes = json.loads((GOLDEN / "state_dict_shapes.json").read_text())
    weights = fill_state_dict({key.removeprefix("module."): tuple(shape) for key, shape in shapes.items()})
    network = {f"module.{key}": torch.from_numpy(np.asarray(value)) for key, value in weights.items()}
    path = tmp_path_factory.mktemp("snapshot") / "snapshot_6.pth"
    torch.save({"epoch": 6, "network": network, "optimizer": {}}, path)
    return path


SMALL = Config(body_backbone="resnet18", hand_backbone="resnet18")


@pytest.fixture
def small_model(mano: TwoHandMano) -> InterWild:
    """The network with small backbones and random heads that give plausible hands, in evaluation mode."""
    return make_small(mano)


def make_small(mano: TwoHandMano) -> InterWild:
    torch.manual_seed(0)
    model = build_model(SMALL, mano)
    show_something(model)
    return model.eval()


@pytest.fixture(scope="session")
def small_snapshot(mano: TwoHandMano, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`small_model` as a checkpoint that says what it is."""
    path = tmp_path_factory.mktemp("small") / "snapshot_6.pth"
    save_checkpoint(path, make_small(mano), epoch=6, config=config_to_dict(SMALL))
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network of the small preset."""
    config = preset_config("small")
    torch.manual_seed(0)
    model = build_model(config, None)
    show_something(model)
    path = tmp_path_factory.mktemp("network") / "snapshot_6.pth"
    save_checkpoint(path, model, epoch=6, config=config_to_dict(config), data=data_record((), (), ""))
    return path


@pytest.fixture(scope="module")
def predictor(checkpoint: Path, mano_folder: Path) -> HandPredictor:
    """Its predictor; some modules have one of another network."""
    return HandPredictor.load(checkpoint, mano_folder, ["cpu"])
