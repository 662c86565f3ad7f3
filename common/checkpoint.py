"""Checkpoints `snapshot_{epoch}.pth` in the published layout.

A file is {epoch, network, optimizer, ...}. The names in `network` start with `module.`, because the published system
saves from DataParallel. Ours add `config`, so that a file says which network it fits. Files are data, not programs:
they are read with `weights_only=True`, and they must fit the network exactly.
"""

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.utils.files import atomic_path, make_folder

PREFIX = "module."

# Keys a file may lack: the translation trunk's stem, which never runs.
UNUSED = ("hand_trans_net.backbone.conv1.", "hand_trans_net.backbone.bn1.")
# Keys a file may have too many: buffers of the licensed hand model, which some published files hold.
FOREIGN = "mano_layer"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint as tensors, numbers, texts and containers; nothing in it is run.

    Returns:
        The file's dictionary; `network` is {name without `module.`: tensor on the CPU}.

    Raises:
        UserError: missing, unreadable, truncated, or anything but a checkpoint.
    """
    try:
        # Memory-mapping skips the optimizer's two thirds of the file where only the network is wanted.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise UserError(f"checkpoint not found: {path}; put it there or name it with --checkpoint") from None
    except OSError as error:
        raise UserError(f"cannot read checkpoint {path}: {error.strerror or error}") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"refused checkpoint {path}: it is damaged, or it holds objects other than tensors, numbers and texts"
        ) from None
    except Exception as error:  # torch raises RuntimeError, EOFError, ValueError and more for damaged files
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"checkpoint {path} is damaged or no checkpoint: {reason}") from None
    network = content.get("network") if isinstance(content, dict) else None
    if not isinstance(network, Mapping) or not all(isinstance(value, Tensor) for value in network.values()):
        raise UserError(f"checkpoint {path} is not of this system: it has no 'network' of tensors")
    return {**content, "network": {str(key).removeprefix(PREFIX): value for key, value in network.items()}}


def load_network(model: nn.Module, network: Mapping[str, Tensor], path: Path) -> list[str]:
    """Copy a checkpoint's tensors into a network. They must fit exactly.

    Args:
        model: receives the tensors; untouched if they do not fit.
        network: as `read_checkpoint` returns it.
        path: for the message.

    Returns:
        The keys passed over, see `UNUSED` and `FOREIGN`.

    Raises:
        UserError: names every missing, unexpected or misshapen key.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in network and not key.startswith(UNUSED)]
    unexpected = [key for key in network if key not in own and FOREIGN not in key]
    misshapen = [key for key in own if key in network and own[key].shape != network[key].shape]
    problems = [
        *_named("missing", missing, own),
        *_named("unexpected", unexpected, network),
        *(f"{key} is {tuple(network[key].shape)}, expected {tuple(own[key].shape)}" for key in misshapen),
    ]
    if problems:
        raise UserError(f"checkpoint {path} does not fit this network: {'; '.join(problems)}")
    fitting = {key: network[key] for key in own if key in network}
    model.load_state_dict(fitting, strict=False)  # strictness was established above
    return [key for key in own if key not in network] + [key for key in network if key not in own]


def _named(problem: str, keys: list[str], of: Iterable[str]) -> list[str]:
    """One text that names the keys; a part of the network which is affected as a whole is named as `part.* (count)`."""
    if not keys:
        return []

    def part(key: str) -> str:
        return key.split(".")[0]

    affected = set(keys)
    spared = {part(key) for key in of if key not in affected and not key.startswith(UNUSED)}
    whole = {part(key) for key in of} - spared
    names = [key for key in keys if part(key) not in whole]
    names += [
        f"{name}.* ({sum(part(key) == name for key in keys)})"
        for name in dict.fromkeys(map(part, keys))
        if name in whole
    ]
    return [f"{problem} {', '.join(names)}"]


def save_checkpoint(path: Path, model: nn.Module, epoch: int, **more: Any) -> None:
    """Write a checkpoint whole or not at all.

    Args:
        path: `snapshot_{epoch}.pth`.
        model: its persistent tensors are saved, never the hand model's.
        epoch: the epoch just finished, from 0.
        more: further entries, `optimizer` among them; tensors, numbers, texts and containers only.

    Raises:
        UserError: the file cannot be written; one that was there before stays as it was.
    """
    network = {PREFIX + key: value for key, value in model.state_dict().items()}
    make_folder(path.parent)
    with atomic_path(path) as temporary:
        try:
            torch.save({"epoch": epoch, "network": network, "optimizer": {}, **more}, temporary)
        except RuntimeError as error:  # how torch reports a write that failed half-way
            reason = str(error).splitlines()[0]
            raise UserError(
                f"cannot write {path}: the disk may be full, or the file too large for it ({reason})"
            ) from None
