"""Files of weights: torchvision's, and which file a checkpoint is, by its sha256: the one given, the one remembered.

`doctor --remember` writes the sums into `REMEMBERED`, {path: sha256}. No sums of the published checkpoints
are known, so none stand here.
"""

import hashlib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.error import URLError

import msgspec
import torch

from common.errors import UserError, error_context, one_line
from common.options import HOME
from common.utils.files import make_folder, write_json

REMEMBERED = HOME / "weights.json"
CHUNK = 1 << 20


def file_sha256(path: Path) -> str:
    """The sha256 of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with error_context(f"cannot read checkpoint {path}"), open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check_sum(path: Path, sha256: str | None = None) -> None:
    """Compare a checkpoint with its sum. A file that is neither given a sum nor remembered is not read, nor is what is
    not a file, of which the checkpoint's reader says what is wrong.

    Args:
        sha256: what the file must have.

    Raises:
        UserError: it has another.
    """
    known = remembered().get(str(path.resolve()))
    if (sha256 is None and known is None) or not path.is_file():
        return
    found = file_sha256(path)
    if sha256 is not None and found != sha256.lower():
        raise UserError(f"refused checkpoint {path}: its sha256 is {found}, and {sha256.lower()} was required")
    if known not in (None, found):
        print(one_line(f"warning: {path} is not the file it was: its sha256 is {found}, and {REMEMBERED} has {known}; "
                       "if that is meant, doctor --remember"), file=sys.stderr)  # fmt: skip


def remembered() -> dict[str, str]:
    """Path -> sha256. Raises UserError if the file is broken."""
    if not REMEMBERED.exists():
        return {}
    with error_context(f"cannot read {REMEMBERED}", msgspec.MsgspecError, advice="remove it"):
        return msgspec.json.decode(REMEMBERED.read_bytes(), type=dict[str, str])


def remember(paths: Iterable[Path]) -> None:
    """Write the sums of files, beside those of others. Raises UserError if that fails."""
    make_folder(REMEMBERED.parent)
    write_json(REMEMBERED, remembered() | {str(path.resolve()): file_sha256(path) for path in paths})


# ---- torchvision's weights ----


def weights_file(url: str) -> Path:
    """Where torch keeps the file of an address."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]


def fetch_weights(url: str, what: str, otherwise: str) -> Mapping[str, torch.Tensor]:
    """Weights from torch's folder, downloaded there at first use; the hash in the name is checked then.

    Args:
        url: ends in NAME-HASH.pth.
        what: they are, for messages.
        otherwise: what to do without them.

    Raises:
        UserError: no connection, or the file is damaged.
    """
    file = weights_file(url)
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except (URLError, OSError) as error:
        raise UserError(f"cannot get {what} ({error}): put {url} into {file.parent}, or {otherwise}") from None
    except Exception as error:  # whatever loading a damaged file leads to
        reason = str(error).split("\n", 1)[0][:200] or type(error).__name__
        raise UserError(f"{what} in {file} cannot be read ({reason}); delete it and start again") from None
