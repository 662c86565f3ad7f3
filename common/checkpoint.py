"""Checkpoints `snapshot_{epoch}.pth` in the published layout.

A file is {epoch, network, optimizer, ...}. The names in `network` start with `module.`, because the published system
saves from DataParallel. Ours add `config`, which says which network a file fits. Checkpoints must match the network
exactly and are loaded without executing code (`weights_only=True`).
"""

import io
import math
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from common.errors import UserError, explain_failure, is_out_of_memory, some
from common.utils.files import atomic_path, check_is_file, foreign_kind, make_folder
from common.utils.pickles import BoundedUnpickler, Record, Refused, check_tree

PREFIX = "module."

# Keys that may be missing in a file: the translation backbone's stem, which never runs.
UNUSED = ("hand_trans_net.backbone.conv1.", "hand_trans_net.backbone.bn1.")
# Unexpected keys that are ignored: parameters and buffers of the licensed hand model.
FOREIGN = "mano_layer"
MAX_PICKLE = 64 << 20  # bytes of everything but the tensors' numbers; a whole training has less than one MB
NAMED = 6  # at most, keys of each kind in a message
UNTRAINED_NOTE = "untrained network: its predictions mean nothing"
GENERATED_NOTE = "trained on generated hands: not for real photos"


def read_checkpoint(path: Path, whole: bool = True) -> dict[str, Any]:
    """Read a checkpoint as tensors, numbers, strings and containers, without executing code.

    Args:
        whole: also verify the checksums of the content, which loading alone does not do.

    Returns:
        The file's dictionary; `network` is {name without `module.`: tensor on the CPU}.

    Raises:
        UserError: missing, unreadable, truncated, or not a checkpoint.
    """
    if not path.exists():
        raise UserError(f"checkpoint not found: {path}; put it there or name another file with --checkpoint")
    try:
        check_is_file(path)
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _check_archive(path, whole)
        _check_content(path, zipped)
        # Memory-mapping skips the optimizer, two thirds of the file, where only the network is used.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read checkpoint {path}: {error.strerror or error}") from None
    except Refused as error:
        raise UserError(
            f"refused checkpoint {path}: {error}; a checkpoint holds tensors, numbers and strings"
        ) from None
    except Exception as error:  # PyTorch and `zipfile` raise almost anything for damaged files
        if is_out_of_memory(error):
            raise
        with open(path, "rb") as file:
            kind = foreign_kind(file.read(100))
        raise UserError(
            f"checkpoint {path} is damaged or not a checkpoint: {kind or 'it cannot be decoded'}"
        ) from error
    network = content.get("network") if isinstance(content, dict) else None
    if not isinstance(network, Mapping) or not all(isinstance(value, Tensor) for value in network.values()):
        raise UserError(f"checkpoint {path} is not of this system: it has no 'network' of tensors")
    if not all(isinstance(key, str) for key in network):
        raise UserError(f"checkpoint {path} is not of this system: it has a tensor without a name")
    named = {key.removeprefix(PREFIX): value for key, value in network.items()}
    if len(named) < len(network):
        raise UserError(f"checkpoint {path} holds a tensor twice, with and without {PREFIX!r}")
    return {**content, "network": named}


def data_record(sets: Iterable[str], generated: Iterable[str], hand_model: str) -> dict[str, Any]:
    """The entry `data` of a checkpoint: what the network was trained on; `network_note` reads it.

    Args:
        sets: names of the training sets, none for an untrained network.
        generated: those of them that were generated.
        hand_model: its name.
    """
    return {"sets": list(sets), "generated": list(generated), "hand_model": hand_model}


def network_note(content: Mapping[str, Any]) -> str:
    """What must be said wherever a network's results are seen, by its checkpoint's own record; "" if nothing is, as
    in published files, which have no record."""
    record = content.get("data")
    if not isinstance(record, Mapping):
        return ""
    return GENERATED_NOTE if record.get("generated") else "" if record.get("sets") else UNTRAINED_NOTE


def _check_archive(path: Path, whole: bool) -> None:
    """Raises UserError if a zip archive is compressed, larger inside than outside, or fails its checksums."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise UserError(f"refused checkpoint {path}: it is compressed, which files of PyTorch never are")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise UserError(f"checkpoint {path} is damaged: its entries are larger than the file")
        if whole and (damaged := archive.testzip()):
            raise UserError(f"checkpoint {path} is damaged: the checksum of {damaged} is wrong")


class _Dict(dict, Record):
    """An OrderedDict, which PyTorch gives attributes."""

    def __init__(self) -> None:  # from pairs, it would take keys that are not checked
        Record.__init__(self)


class _StorageType(Record):
    itemsize = 1


class _Storage(Record):
    """A piece of the file, of `numbers` elements."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers = numbers


class _Rebuilt(Record):
    """A tensor or parameter. PyTorch would let a state replace its storage."""

    def __setstate__(self, state: Any) -> None:
        raise Refused("it holds a tensor of an old format")


class _Tensor(_Rebuilt):
    """`_rebuild_tensor_v2(storage, offset, size, stride, ...)`: within its storage, and each number is there once."""

    def __init__(self, *args: Any) -> None:
        super().__init__()
        storage, offset, size, stride, *_ = args
        numbers = (offset, *size, *stride)
        if not isinstance(storage, _Storage) or not all(type(n) is int and 0 <= n < 2**40 for n in numbers):
            raise Refused("it holds a tensor of an impossible size")
        reach = 0  # from the first number to the last
        for step, length in sorted(zip(stride, size, strict=True)):
            if length > 1:
                if step <= reach:
                    raise Refused("it holds a tensor whose numbers overlap")
                reach += (length - 1) * step
        if math.prod(size) and offset + reach >= storage.numbers:
            raise Refused("it holds a tensor that reaches beyond its numbers")


def _storage_type(itemsize: int) -> type[_StorageType]:
    return type("_Type", (_StorageType,), {"itemsize": itemsize})


_ALLOWED = {
    ("collections", "OrderedDict"): _Dict,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch._utils", "_rebuild_parameter"): _Rebuilt,
    **{
        ("torch", f"{name}Storage"): _storage_type(itemsize)
        for itemsize, names in ((1, "Byte Char Bool"), (2, "Half BFloat16 Short"), (4, "Float Int"), (8, "Double Long"))
        for name in names.split()
    },
}


class _ContentChecker(BoundedUnpickler):
    """Reads what `torch.load` is about to read, without any tensor.

    Args:
        size: of the file in bytes.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file, _ALLOWED)
        self.left = size
        self.storages: dict[str, _Storage] = {}

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage's name: ("storage", type, key, location, number of elements)."""
        kind, dtype, key, _, numbers, *view = pid
        if kind != "storage" or type(key) is not str or type(numbers) is not int or any(view):
            raise Refused("it holds something other than tensors")
        if key not in self.storages:
            self.storages[key] = _Storage(numbers)
            self.left -= numbers * dtype.itemsize
            if numbers < 0 or self.left < 0:
                raise Refused("its tensors are larger than the file")
        return self.storages[key]


def _check_content(path: Path, zipped: bool) -> None:
    """Check the objects of a file, before PyTorch makes them: what they are, their number, and every tensor's bounds.

    Raises:
        Refused: an object that a checkpoint does not hold, too many, or a tensor beyond its storage.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        if not zipped:  # before PyTorch 1.6: three pickles on the format, the content, the keys of the storages
            pickles = io.BytesIO(file.read(MAX_PICKLE))
            for _ in range(5):
                check_tree(_ContentChecker(pickles, size).load())
            return
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if name.endswith("data.pkl")]
            if len(names) != 1 or archive.getinfo(names[0]).file_size > MAX_PICKLE:
                raise Refused("it has no content, or too much of it")
            check_tree(_ContentChecker(io.BytesIO(archive.read(names[0])), size).load())


def check_tensor(name: str, found: Any, like: Tensor) -> None:
    """Check that a tensor of a file can replace `like`.

    Raises:
        ValueError: it has another shape, is not a plain tensor, or has another kind of dtype.
    """
    if not isinstance(found, Tensor) or found.shape != like.shape:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"{name} is {shape}, expected {tuple(like.shape)}")
    plain = found.layout == torch.strided and not found.is_quantized and not found.is_meta and not found.is_nested
    same = found.is_floating_point() == like.is_floating_point() and not found.is_complex()
    if not plain or not same or (found.dtype == torch.bool) != (like.dtype == torch.bool):
        kind = str(found.dtype).removeprefix("torch.") if plain else "not a plain tensor"
        raise ValueError(f"{name} is {kind}, expected {str(like.dtype).removeprefix('torch.')}")


def load_network(model: nn.Module, network: Mapping[str, Tensor], path: Path) -> list[str]:
    """Copy a checkpoint's tensors into a network. They must match exactly.

    Args:
        model: receives the tensors; untouched if they do not match.
        network: as `read_checkpoint` returns it.
        path: for the message.

    Returns:
        The keys ignored, see `UNUSED` and `FOREIGN`.

    Raises:
        UserError: names missing and unexpected keys, and those of another shape or kind of dtype.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in network and not key.startswith(UNUSED)]
    unexpected = [key for key in network if key not in own and FOREIGN not in key]
    misfits = []
    for key in own:
        if key in network:
            try:
                check_tensor(key, network[key], own[key])
            except ValueError as error:
                misfits.append(str(error))
    problems = [
        f"{problem} {some(names, NAMED)}"
        for problem, names in (
            ("missing", _by_part(missing, own)),
            ("unexpected", _by_part(unexpected, network)),
            ("of another kind", misfits),
        )
        if names
    ]
    if problems:
        raise UserError(f"checkpoint {path} does not fit this network: {'; '.join(problems)}")
    fitting = {key: network[key] for key in own if key in network}
    model.load_state_dict(fitting, strict=False)  # strictness is checked above
    return [key for key in own if key not in network] + [key for key in network if key not in own]


def _by_part(keys: list[str], of: Iterable[str]) -> list[str]:
    """Keys; a part of the network that is affected as a whole comes first, as `part.* (count)`."""

    def part(key: str) -> str:
        return key.split(".")[0]

    affected = set(keys)
    spared = {part(key) for key in of if key not in affected and not key.startswith(UNUSED)}
    whole = Counter(part(key) for key in keys if part(key) not in spared)
    return [f"{name}.* ({count})" for name, count in whole.items()] + [key for key in keys if part(key) in spared]


def save_checkpoint(path: Path, model: nn.Module, epoch: int, **more: Any) -> None:
    """Write a checkpoint whole or not at all.

    Args:
        path: `snapshot_{epoch}.pth`.
        model: its persistent tensors are saved, never those of the hand model.
        epoch: the epoch just finished, from 0.
        more: further entries, such as `optimizer`; tensors, numbers, strings and containers only.

    Raises:
        UserError: the file cannot be written; an existing one stays as it was.
    """
    network = {PREFIX + key: value for key, value in model.state_dict().items()}
    make_folder(path.parent)
    with atomic_path(path) as temporary:
        try:
            torch.save({"epoch": epoch, "network": network, "optimizer": {}, **more}, temporary)
        except RuntimeError as error:  # how PyTorch reports a failed write, among other failures
            if explain_failure(error):
                raise
            reason = str(error).splitlines()[0]
            raise UserError(
                f"cannot write {path}: the disk may be full, or the file too large for it ({reason})"
            ) from None
