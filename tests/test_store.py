"""The annotation store: what is opened is what was built from these very files, whole, and built once."""

import errno
import fcntl
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import data.store as store
from common.errors import UserError
from data.store import Columns, Store, StringColumn, open_store
from tests.faults import patience

ROOT = Path(__file__).resolve().parent.parent
STRINGS = ["images/a.jpg", "", "händ/ü.jpg", "not utf-8: \udcff", "両手"]

COLUMNS: Columns = {
    "boxes": np.linspace(0, 1, 24, dtype=np.float32).reshape(3, 2, 4),
    "ids": np.array([3, -1, 2**62]),
    "flags": np.array([[True, False], [False, False]]),
    "small": np.array([-128, 127], np.int8),
    "double": np.array([np.nan, np.inf, 1e300]),
    "turned": np.arange(6.0).reshape(2, 3).T,
    "strided": np.arange(10)[::3],
    "big_endian": np.array([1, 2], ">u4"),
    "words": np.array(["right", "left"]),
    "scalar": np.array(7),
    "none": np.zeros((0, 42, 3), np.float32),
}


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache folder for each test."""
    folder = tmp_path / "user_cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """The folder of a dataset with one annotation file."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "data.json").write_text("5")
    return folder


def numbers(file: Path) -> Columns:
    """Columns that show what the annotation file said."""
    return {"values": np.arange(int(file.read_text())), "names": StringColumn.pack(file.read_text())}


def no_build() -> Columns:
    raise AssertionError("the cache should have been used")


def open_numbers(dataset: Path, build: Callable[[], Columns] | None = None, version: int = 1, **options) -> Columns:
    file = dataset / "data.json"
    return open_store(dataset / "cache", "set_train", [file], version, build or partial(numbers, file), **options)


def store_files(dataset: Path) -> list[Path]:
    return sorted(path for path in (dataset / "cache" / "set_train").rglob("*") if path.is_file())


def generations(dataset: Path) -> list[Path]:
    return sorted((dataset / "cache" / "set_train").glob("*.npz"))


def test_round_trip(dataset):
    built = COLUMNS | {"text": StringColumn.pack(STRINGS), "no_text": StringColumn.pack([])}
    for build in (lambda: built, no_build):
        opened = open_numbers(dataset, build)
        assert opened.keys() == built.keys()
        for name, values in COLUMNS.items():
            np.testing.assert_array_equal(opened[name], values)
            assert opened[name].dtype == values.dtype and opened[name].shape == values.shape
            assert not opened[name].flags.writeable
        assert list(opened["text"]) == STRINGS and len(opened["no_text"]) == 0


def test_strings_are_indexed_like_a_list():
    column = StringColumn.pack(STRINGS)
    assert [column[k] for k in range(-5, 5)] == STRINGS + STRINGS
    for outside in (5, -6):
        with pytest.raises(IndexError):
            column[outside]


def test_python_objects_are_refused(dataset):
    with pytest.raises(ValueError, match="'bad' holds Python objects"):
        open_numbers(dataset, lambda: {"bad": np.array([{}, None])})
    assert not generations(dataset)


def test_a_valid_cache_is_used_in_silence(dataset, capsys):
    open_numbers(dataset)
    assert capsys.readouterr().out.count("\n") == 1
    assert len(open_numbers(dataset, no_build)["values"]) == 5
    assert capsys.readouterr().out == ""


def test_a_dataset_folder_moves_with_its_cache(dataset, tmp_path):
    open_numbers(dataset)
    moved = dataset.rename(tmp_path / "elsewhere")
    assert len(open_numbers(moved, no_build)["values"]) == 5


def change_size(dataset: Path) -> None:
    (dataset / "data.json").write_text("12")


def change_time(dataset: Path) -> None:
    time = (dataset / "data.json").stat().st_mtime_ns
    os.utime(dataset / "data.json", ns=(time, time + 1))


@pytest.mark.parametrize("change", [change_size, change_time])
def test_a_changed_input_is_read_again(dataset, change, capsys):
    old = open_numbers(dataset)["values"]
    change(dataset)
    capsys.readouterr()
    values = open_numbers(dataset)["values"]
    assert len(values) == int((dataset / "data.json").read_text())
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "out of date (data.json changed)" in out
    assert old.tolist() == [0, 1, 2, 3, 4], "a process that has an old generation open keeps it"


def forge(path: Path, text: str) -> None:
    """Other content of the same size in the same file, at the same time by its stamp."""
    status = path.stat()
    path.write_text(text)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


def test_the_same_size_and_time_do_not_hide_other_content(dataset):
    open_numbers(dataset)
    forge(dataset / "data.json", "7")
    assert len(open_numbers(dataset)["values"]) == 7


@pytest.mark.parametrize("place", [0, 500_000, 999_999])
def test_head_middle_and_tail_of_a_large_input_count(dataset, place):
    text = "." * 1_000_000
    (dataset / "data.json").write_text(text)
    before = store.fingerprint(dataset / "data.json")
    forge(dataset / "data.json", f"{text[:place]}!{text[place + 1 :]}")
    assert store.fingerprint(dataset / "data.json") != before


def test_a_replaced_input_is_noticed_by_its_inode(dataset):
    """Of the same size and time, and changed between the pieces that are read."""
    file, text = dataset / "data.json", "." * 1_000_000
    file.write_text(text)
    before, status = store.fingerprint(file), file.stat()
    (dataset / "new").write_text(f"{text[:250_000]}!{text[250_001:]}")
    os.utime(dataset / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
    (dataset / "new").replace(file)
    assert store.fingerprint(file) != before


def age(path: Path) -> None:
    os.utime(path, (0, 0))


def test_old_generations_are_removed_unless_open(dataset):
    """A young one stays, as a process on another machine may be about to open it, and one that is mapped."""
    opened = open_numbers(dataset)
    change_size(dataset)
    open_numbers(dataset)
    first, second = generations(dataset)
    age(first)
    open_numbers(dataset, no_build)
    assert generations(dataset) == [first, second], "it is mapped here"
    assert pickle.loads(pickle.dumps(opened))["values"].tolist() == [0, 1, 2, 3, 4]  # noqa: S301 - our own
    os.utime(first)
    del opened
    open_numbers(dataset, no_build)
    assert generations(dataset) == [first, second], "it is young"
    age(first)
    open_numbers(dataset, no_build)
    assert generations(dataset) == [second]


def test_a_killed_builders_files_go(dataset):
    home = dataset / "cache" / "set_train"
    home.mkdir(parents=True)
    (home / ".0123456789abcdef.tmp").write_bytes(b"half")
    open_numbers(dataset)
    assert {path.name for path in home.iterdir()} - {"lock"} == {generations(dataset)[0].name}


def test_a_disk_without_locks(dataset, monkeypatch):
    """As some network disks are: the store is built all the same."""

    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert len(open_numbers(dataset)["values"]) == 5
    assert len(open_numbers(dataset, no_build)["values"]) == 5


def test_inputs_that_come_go_or_lie_in_a_folder(dataset):
    ids, folder = dataset / "ids.txt", dataset / "fits"
    calls = []

    def build() -> Columns:
        calls.append(1)
        return {"a": np.arange(3)}

    def opened_after(change: Callable[[], object]) -> int:
        change()
        for _ in range(2):  # the second never builds
            open_store(dataset / "cache", "set_train", [ids, folder], 1, build)
        return len(calls)

    assert opened_after(lambda: None) == 1
    assert opened_after(lambda: ids.write_text("1")) == 2
    assert opened_after(ids.unlink) == 3
    assert opened_after(folder.mkdir) == 4
    assert opened_after((folder / "1.json").touch) == 5
    assert opened_after(lambda: (folder / "1.json").write_text("{}")) == 6
    assert opened_after(lambda: (folder / "1.json").rename(folder / "2.json")) == 7
    assert opened_after(lambda: (folder / "dangling").symlink_to("nowhere")) == 8


def test_another_version_is_built_again(dataset, capsys):
    open_numbers(dataset)
    open_numbers(dataset, version=2)
    assert "another version" in capsys.readouterr().out
    with pytest.raises(AssertionError):
        open_numbers(dataset, no_build, version=1)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def noise(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip_header(path: Path) -> None:
    flip(path, b'"set_train"')


def flip_column(path: Path) -> None:
    flip(path, np.arange(5).tobytes())


def flip_shape(path: Path) -> None:
    flip(path, b"'shape': (5,)")


def flip(path: Path, content: bytes) -> None:
    """One bit in the middle of some content."""
    data = bytearray(path.read_bytes())
    assert data.count(content) == 1
    data[data.index(content) + len(content) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, empty, noise, flip_header, flip_column, flip_shape, Path.unlink])
def test_damage_is_noticed(dataset, damage, capsys):
    open_numbers(dataset)
    damage(generations(dataset)[0])
    capsys.readouterr()
    opened = open_numbers(dataset)
    assert opened["values"].tolist() == [0, 1, 2, 3, 4] and list(opened["names"]) == ["5"]
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and ("is damaged" in out or "does not exist" in out)


def test_damage_at_any_byte(dataset):
    """Opened as it was written, or not at all."""
    whole = dict(open_numbers(dataset))
    path = generations(dataset)[0]
    content = path.read_bytes()
    for place in range(len(content)):
        data = bytearray(content)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            opened = Store(str(path))
        except UserError:
            continue
        assert opened["values"].tolist() == whole["values"].tolist() and list(opened["names"]) == ["5"], place


def test_checksums_of_large_columns_are_checked_on_demand(dataset, monkeypatch):
    monkeypatch.setattr(store, "CHECKED_AT_OPEN", 1 << 16)
    opened = open_numbers(dataset, lambda: {"large": np.zeros(100_000)})
    opened.check()
    path = generations(dataset)[0]
    data = bytearray(path.read_bytes())
    data[400_000] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"large.npy is damaged; delete it, start again"):
        open_numbers(dataset, no_build).check()


def test_an_input_that_changes_while_it_is_read(dataset):
    def build() -> Columns:
        change_size(dataset)
        return {"values": np.arange(5)}

    with pytest.raises(UserError, match=r"data\.json changed while it was read"):
        open_numbers(dataset, build)
    assert not generations(dataset)


def test_a_full_disk_leaves_the_old_store(dataset):
    open_numbers(dataset)
    before = store_files(dataset)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))  # a file may have 1 MiB
    try:
        with pytest.raises(UserError, match=r"^cannot write .*set_train.*\(.+\)$"):
            open_numbers(dataset, lambda: {"values": np.zeros(1 << 20)}, version=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert store_files(dataset) == before
    assert len(open_numbers(dataset, no_build)["values"]) == 5


# A process that opens the store of argv's folder. Before "POINT" it says so and waits to be killed.
BUILDER = """
import sys, time
from contextlib import contextmanager
from pathlib import Path
import numpy as np
import data.store as store

dataset, log, point = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def stop_at(name):
    if name == point:
        print("stopped", flush=True)
        time.sleep(60)

def build():
    with open(log, "a") as file:
        file.write("built\\n")
    stop_at("build")
    time.sleep(0.2)
    return {"values": np.arange(5), "more": np.arange(7)}

savez, atomic_path = np.savez, store.atomic_path

def slow_savez(file, **arrays):
    file.write(b"half a column")
    file.flush()
    stop_at("column")
    file.seek(0)
    savez(file, **arrays)

@contextmanager
def slow_atomic_path(path):
    with atomic_path(path) as temporary:
        yield temporary
        stop_at("name")

np.savez, store.atomic_path = slow_savez, slow_atomic_path
columns = store.open_store(dataset / "cache", "set_train", [dataset / "data.json"], 1, build)
print("sum", columns["values"].sum())
"""


def start_builder(dataset: Path, log: Path, point: str = "") -> subprocess.Popen:
    command = [sys.executable, "-c", BUILDER, str(dataset), str(log), point]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=-1, text=True)


def test_two_first_starts_build_once(dataset, tmp_path):
    log = tmp_path / "log"
    outputs = [
        process.communicate(timeout=patience(30))[0] for process in [start_builder(dataset, log) for _ in range(2)]
    ]
    assert log.read_text() == "built\n"
    assert all(output.endswith("sum 10\n") for output in outputs)
    assert len(generations(dataset)) == 1


@pytest.mark.parametrize("point", ["build", "column", "name"])
def test_a_killed_builder_leaves_nothing_that_counts(dataset, tmp_path, point):
    log = tmp_path / "log"
    process = start_builder(dataset, log, point)
    while process.stdout.readline() != "stopped\n":
        assert process.poll() is None
    waiting = start_builder(dataset, log)  # meanwhile a second starts
    while "waiting" not in waiting.stdout.readline():
        assert waiting.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert waiting.communicate(timeout=patience(30))[0].endswith("sum 10\n")
    assert log.read_text() == "built\n" * 2
    assert open_numbers(dataset, no_build)["values"].sum() == 10
    assert len(generations(dataset)) == 1


def test_a_waiting_builder_takes_what_the_other_made(dataset, monkeypatch):
    """So that all processes of one training may ask for it."""
    open_numbers(dataset)
    locked = store._locked

    def other_first(home: Path, name: str):
        monkeypatch.setattr(store, "_locked", locked)
        open_numbers(dataset, lambda: {"values": np.zeros(3)}, version=2)
        return locked(home, name)

    monkeypatch.setattr(store, "_locked", other_first)
    assert len(open_numbers(dataset, no_build, version=2)["values"]) == 3


def refuse_writing(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """As on a read-only mount; permissions would not bind root."""
    touch = Path.touch

    def refuse(path: Path, **options) -> None:
        if path.is_relative_to(folder):
            raise OSError(errno.EROFS, "Read-only file system")
        touch(path, **options)

    monkeypatch.setattr(Path, "touch", refuse)


def test_a_read_only_dataset_folder_falls_back_to_the_users_cache(dataset, user_cache, monkeypatch, capsys):
    refuse_writing(monkeypatch, dataset)
    open_numbers(dataset)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and str(user_cache) in lines[0] and "Read-only file system" in lines[0]
    assert len(open_numbers(dataset, no_build)["values"]) == 5
    assert not store_files(dataset)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_folder_without_permission(dataset, user_cache, capsys):
    dataset.chmod(0o555)
    try:
        open_numbers(dataset)
    finally:
        dataset.chmod(0o755)
    assert str(user_cache) in capsys.readouterr().out


def test_data_sets_of_one_name_do_not_meet_in_the_users_cache(dataset, tmp_path, monkeypatch):
    refuse_writing(monkeypatch, dataset)
    other = shutil.copytree(dataset, tmp_path / "other")
    refuse_writing(monkeypatch, other)
    change_size(other)
    for _ in range(2):
        assert [len(open_numbers(folder)["values"]) for folder in (dataset, other)] == [5, 12]
    assert len(open_numbers(dataset, no_build)["values"]) == 5


def test_a_valid_cache_on_a_read_only_disk_is_used(dataset, monkeypatch, capsys):
    open_numbers(dataset)
    capsys.readouterr()
    refuse_writing(monkeypatch, dataset)
    assert len(open_numbers(dataset, no_build)["values"]) == 5
    assert capsys.readouterr().out == ""


def test_nowhere_to_write(dataset, user_cache):
    (dataset / "cache").write_text("a file in the way")
    user_cache.write_text("here too")
    with pytest.raises(UserError, match=r"^cannot write the annotation cache, neither in .* nor in .*; choose a"):
        open_numbers(dataset)


def total(columns: Store) -> tuple[int, list[str]]:
    return columns["values"].sum(), list(columns["names"])


def test_workers_open_the_file_themselves(dataset):
    columns = open_numbers(dataset, lambda: {"values": np.arange(100_000), "names": StringColumn.pack(STRINGS)})
    assert len(pickle.dumps(columns)) < 500
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(total, (columns,)) == total(columns)


def test_results_pickle_as_data(dataset):
    values = open_numbers(dataset)["values"]
    for result in (values[1:3], values * 2, values.copy()):
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(result)), result)  # noqa: S301 - our own


def test_a_cache_that_went_is_named(dataset):
    shipped = pickle.dumps(open_numbers(dataset))
    shutil.rmtree(dataset / "cache")
    with pytest.raises(UserError, match=r"set_train/000001-.*\.npz is damaged or gone"):
        pickle.loads(shipped)  # noqa: S301 - our own
