"""The order of training: mixing, sharding, resuming, and samples that cannot be used."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_data_targets import cache, recorded  # noqa: F401
from torch.utils.data import DataLoader

from common.errors import UserError
from common.options import ROOT
from common.types import Sample
from data.dataset import (
    MAX_REPLACED,
    MixedDataset,
    MixedSampler,
    SampleKey,
    check_machine,
    init_worker,
    mix_groups,
    unwrap_worker_errors,
)
from main.build import open_training
from main.config import Config
from tests.faults import patience

CONFIG = Config(trainset_3d=("InterHand26M", "ReInterHand"), trainset_2d=("MSCOCO",))


def keys(sampler: MixedSampler, epoch: int = 0, start_step: int = 0) -> list[list[SampleKey]]:
    sampler.set_epoch(epoch, start_step)
    return list(sampler)


@pytest.mark.parametrize("counts", [(5, 3, 7), (10, 3), (7, 7), (10, 6), (4, 0)])
def test_groups_are_made_equally_long(counts):
    """As recorded of the published mixing: whole repetitions in order, then draws from the same group."""
    order = mix_groups(counts, np.random.default_rng(0))
    present = [count for count in counts if count]
    longest = max(counts)
    assert len(order) == longest * len(present)
    starts = np.cumsum([0, *counts[:-1]])
    for place, count in enumerate(present):
        part = order[place * longest : (place + 1) * longest] - starts[place]
        whole = longest // count * count
        assert part[:whole].tolist() == list(range(count)) * (longest // count)
        assert ((part[whole:] >= 0) & (part[whole:] < count)).all()


def test_an_epoch_holds_every_sample_of_the_longer_group():
    """3D sets are joined: 6 + 5 against 4 of 2D, so 22 places, of which the last 2 do not fill a batch of 4."""
    sampler = MixedSampler([[6, 5], [4]], 4, seed=3)
    batches = keys(sampler)
    assert len(sampler) == len(batches) == 5 and all(len(batch) == 4 for batch in batches)
    flat = [key for batch in batches for key in batch]
    assert [key.position for key in flat] == list(range(20))
    seen = {(key.part, key.index) for key in flat}
    assert seen <= {(part, index) for part, size in enumerate((6, 5, 4)) for index in range(size)}
    assert len([key for key in flat if key.part < 2]) in (9, 10, 11)
    # Without the loss at the end: a batch of 22 is the whole epoch.
    whole = keys(MixedSampler([[6, 5], [4]], 22, seed=3))[0]
    assert sorted((key.part, key.index) for key in whole if key.part < 2) == sorted(
        (part, index) for part, size in enumerate((6, 5)) for index in range(size)
    )
    assert sum(key.part == 2 for key in whole) == 11


def test_order_depends_on_seed_and_epoch_alone():
    first = keys(MixedSampler([[60], [40]], 8, seed=1), epoch=2)
    assert first == keys(MixedSampler([[60], [40]], 8, seed=1), epoch=2)
    others = [keys(MixedSampler([[60], [40]], 8, seed=1), epoch=3), keys(MixedSampler([[60], [40]], 8, seed=2), 2)]
    for other in others:
        assert [[key[:2] for key in batch] for batch in other] != [[key[:2] for key in batch] for batch in first]


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_same_global_batches(world):
    """Sample for sample the batches of one process, dealt out; none twice."""
    alone = keys(MixedSampler([[60], [40]], 8, seed=1), epoch=1)
    shares = [keys(MixedSampler([[60], [40]], 8, seed=1, rank=rank, world=world), epoch=1) for rank in range(world)]
    for step, batch in enumerate(alone):
        dealt = [key for keys_of_place in zip(*(share[step] for share in shares), strict=True) for key in keys_of_place]
        assert dealt == batch


def test_training_resumes_from_any_step():
    sampler = MixedSampler([[60], [40]], 8, seed=1)
    whole = keys(sampler, epoch=4)
    assert keys(sampler, epoch=4, start_step=6) == whole[6:]
    assert len(sampler) == len(whole) - 6


def test_impossible_batches_are_refused():
    with pytest.raises(UserError, match="does not divide among 3 processes"):
        MixedSampler([[60], []], 8, seed=0, world=3)
    with pytest.raises(UserError, match="an epoch has 3 samples, fewer than a batch of 8"):
        MixedSampler([[3], []], 8, seed=0)


def load(dataset: MixedDataset, workers: int, **settings) -> list[Sample]:
    sampler = MixedSampler(dataset.group_sizes, 6, seed=7)
    loader = DataLoader(
        dataset, batch_sampler=sampler, num_workers=workers, worker_init_fn=init_worker if workers else None, **settings
    )
    return list(unwrap_worker_errors(loader))


def test_workers_change_nothing(recorded, cache):  # noqa: F811
    """Not the order, not the augmentations, not a pixel; and 2D and 3D sets meet in a batch."""
    dataset = open_training(CONFIG, recorded / "data", seed=7, cache=cache)
    alone, shared = load(dataset, 0), load(dataset, 2)
    assert len(alone) == len(shared) == 2 * 18 // 6
    for a, b in zip(alone, shared, strict=True):
        assert list(a.id) == list(b.id)
        assert torch.equal(a.crop, b.crop) and torch.equal(a.rot, b.rot) and torch.equal(a.joints_crop, b.joints_crop)
    rot = torch.cat([batch.rot for batch in alone])
    assert len(rot.unique()) > 10 and (rot == 0).any()
    assert {id.split()[0] for batch in alone for id in batch.id} == {"InterHand26M", "ReInterHand", "MSCOCO"}


@pytest.fixture
def broken(recorded: Path, tmp_path: Path) -> Path:  # noqa: F811
    """Training data with one file that is not an image."""
    shutil.copytree(recorded / "data", tmp_path / "data")
    dataset = open_training(CONFIG, tmp_path / "data", seed=7)
    dataset.parts[0].source.annotation(4).image_path.write_bytes(b"not an image")
    return tmp_path / "data"


def test_a_broken_sample_stops_training_with_one_line(broken):
    """Also out of a worker, whose errors arrive wrapped in a traceback."""
    for workers in (0, 1):
        dataset = open_training(CONFIG, broken, seed=7)
        with pytest.raises(UserError) as caught:
            load(dataset, workers)
        text = str(caught.value)
        assert text.startswith("InterHand26M 7065: cannot read ") and ".jpg" in text and "\n" not in text


def test_a_skipped_sample_is_replaced_and_counted(broken, capsys):
    """By another of the same dataset, the same each time, with one warning."""
    first = load(open_training(CONFIG, broken, seed=7, skip_bad=True), 0)
    assert capsys.readouterr().err.count("skipped InterHand26M 7065: cannot read") == 1
    again = load(open_training(CONFIG, broken, seed=7, skip_bad=True), 0)
    whole = [key for batch in MixedSampler([[12, 6], [10]], 6, seed=7) for key in batch]
    hit = [key.position for key in whole if (key.part, key.index) == (0, 4)]
    replaced = torch.cat([batch.replaced for batch in first])
    assert hit and replaced.nonzero().flatten().tolist() == hit
    ids = [id for batch in first for id in batch.id]
    assert ids == [id for batch in again for id in batch.id]
    for position in hit:
        assert ids[position].startswith("InterHand26M") and ids[position] != "InterHand26M 7065"


def test_nothing_usable_is_an_error_and_no_endless_search(broken):
    shutil.rmtree(broken / "MSCOCO" / "images" / "train2017")
    (broken / "MSCOCO" / "images" / "train2017").mkdir()
    dataset = open_training(CONFIG, broken, seed=7, skip_bad=True)
    with pytest.raises(UserError, match=f"{MAX_REPLACED} samples in a row"):
        dataset[SampleKey(2, 0, 0, 0)]


def test_no_training_set_is_an_error(recorded):  # noqa: F811
    with pytest.raises(UserError, match="no training set"):
        open_training(Config(trainset_3d=(), trainset_2d=()), recorded / "data", seed=0)


# ---- Loader workers on small machines ----

FEW_FILES = """
import resource, torch
from torch.utils.data import DataLoader
from data.dataset import check_machine

class Items(torch.utils.data.Dataset):
    def __len__(self):
        return 60
    def __getitem__(self, index):
        return [torch.full((50,), index) for _ in range(40)]

resource.setrlimit(resource.RLIMIT_NOFILE, (96, 96))
check_machine(2, 1000)
kept = list(DataLoader(Items(), num_workers=2))
print(len(kept), torch.multiprocessing.get_sharing_strategy())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere PyTorch shares memory in another way")
def test_few_open_files():
    """Without the other way to share memory, the loader waits for ever for a worker that has no file left."""
    result = subprocess.run(
        [sys.executable, "-c", FEW_FILES], cwd=ROOT, capture_output=True, text=True, timeout=patience(120)
    )
    assert result.stdout == "60 file_system\n", result.stderr


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="the size of the shared memory is not known")
def test_small_shared_memory(monkeypatch):
    """Checked before the workers start; later they would be killed by SIGBUS."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=16 << 20))
    check_machine(2, 3 << 20)
    check_machine(0, 3 << 30)
    with pytest.raises(UserError, match="/dev/shm has 16 MiB free, 2 loader workers need 20 MiB; .*--shm-size"):
        check_machine(2, 4 << 20)
