"""Checkpoints `snapshot_{epoch}.pth` in the published layout.

A file is {epoch, network, optimizer, ...}. The names in `network` start with `module.`, because the published system
saves from DataParallel. Ours add `config`, which says which network a file fits. Checkpoints must match the network
exactly and are loaded without executing code (`weights_only=True`).
"""

import pickle
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError, explain_failure, is_out_of_memory
from common.utils.files import atomic_path, make_folder

PREFIX = "module."

# Keys that may be missing in a file: the translation backbone's stem, which never runs.
UNUSED = ("hand_trans_net.backbone.conv1.", "hand_trans_net.backbone.bn1.")
# Unexpected keys that are ignored: parameters and buffers of the licensed hand model.
FOREIGN = "mano_layer"
NAMED = 6  # at most, keys of each kind in a message


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
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _check_archive(path, whole)
        # Memory-mapping skips the optimizer, two thirds of the file, where only the network is used.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read checkpoint {path}: {error.strerror or error}") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"refused checkpoint {path}: it is damaged, or it holds objects other than tensors, numbers and strings"
        ) from None
    except Exception as error:  # PyTorch raises RuntimeError, EOFError, ValueError and more for damaged files
        if is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"checkpoint {path} is damaged or not a checkpoint: {reason}") from None
    network = content.get("network") if isinstance(content, dict) else None
    if not isinstance(network, Mapping) or not all(isinstance(value, Tensor) for value in network.values()):
        raise UserError(f"checkpoint {path} is not of this system: it has no 'network' of tensors")
    named = {str(key).removeprefix(PREFIX): value for key, value in network.items()}
    if len(named) < len(network):
        raise UserError(f"checkpoint {path} holds a tensor twice, with and without {PREFIX!r}")
    return {**content, "network": named}


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
        f"{problem} {', '.join(names[:NAMED])}" + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
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
