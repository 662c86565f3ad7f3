"""Download, check and unpack a dataset's archives. Used by the download.py of each dataset.

Every step is done once: an archive that was unpacked leaves a mark in its folder, a part that was downloaded whole has
its final name, and one that was interrupted is continued from its `.part` file. What comes from the network is not
trusted: checksums decide where the publisher has them, and an archive can put nothing outside its own folder.
"""

import gzip
import hashlib
import http.client
import os
import re
import shutil
import ssl
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

from filelock import FileLock, Timeout
from tqdm import tqdm

from common.errors import UserError
from common.utils.files import ADVICE, atomic_write, make_folder
from data.layouts import DATASETS, TOY_MARK, Archive

ATTEMPTS = 5  # in a row without a byte gained
WAIT_S = 1.0  # before the second attempt, doubled each time
TIMEOUT_S = 30
CHUNK_BYTES = 1 << 20
HEAD_THREADS = 8
NETWORK_ERRORS = (URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


@dataclass(frozen=True)
class RemoteFile:
    """A file below the base address, kept under the same path below the dataset's `data` folder.

    Attributes:
        md5: as the publisher lists it, or None.
        size: bytes, or None where the server does not say.
    """

    path: str
    md5: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class Job:
    """What one run is to fetch.

    Attributes:
        base: address that all paths are below.
        folder: receives everything.
        files: wanted as they are.
        archives: wanted unpacked.
        md5s: path -> checksum, for those that have one.
        keep: whether archives stay after they were unpacked.
    """

    base: str
    folder: Path
    files: Sequence[RemoteFile]
    archives: Sequence[Archive]
    md5s: Mapping[str, str]
    keep: bool


# ---- the run ----


def refuse_toy_data(folder: Path) -> None:
    """Raise UserError if a dataset's `data` folder holds made-up data: real ones beside them would look the same."""
    mark = folder.parent / TOY_MARK
    if mark.exists():
        raise UserError(f"{mark.parent} holds toy data; delete or move it first, or choose another with --output")


def run_job(job: Job, dry_run: bool = False) -> None:
    """Fetch what is not there yet, unpack it, and say what is done.

    Args:
        dry_run: ask the server for the sizes, print the plan, and stop.

    Raises:
        UserError: the disk is too small, a file cannot be had, a checksum or an archive is wrong. What was done stays
            done; the next run continues there.
    """
    pending = [archive for archive in job.archives if not mark_of(job.folder, archive).exists()]
    done = len(job.archives) - len(pending)
    if done:
        print(f"{done} of {len(job.archives)} archives were unpacked before")
    loose = [file for file in job.files if not (job.folder / file.path).exists()]
    wanted = [*loose, *(RemoteFile(path, job.md5s.get(path)) for archive in pending for path in archive.parts)]
    if not wanted:
        print(f"nothing to do: everything asked for is in {job.folder}")
        return
    files = {file.path: file for file in with_sizes(job.base, wanted)}
    _print_plan(job, files, pending)
    if dry_run:
        return
    make_folder(job.folder)
    check_space(job.folder, _space_needed(job, files, pending))
    with _locked(job.folder), _progress(job.folder, files.values()) as progress:
        for file in loose:
            fetch(f"{job.base}/{quote(file.path)}", job.folder / file.path, file.md5, progress)
        for archive in pending:
            _fetch_and_unpack(job, archive, files, progress)
    print(f"done: {job.folder}")


def _fetch_and_unpack(job: Job, archive: Archive, files: Mapping[str, RemoteFile], progress: tqdm) -> None:
    parts = [job.folder / path for path in archive.parts]
    for path, part in zip(archive.parts, parts, strict=True):
        fetch(f"{job.base}/{quote(path)}", part, files[path].md5, progress)
    unpack(parts, archive, job.folder)
    if not job.keep:
        for part in parts:
            part.unlink()


def _print_plan(job: Job, files: Mapping[str, RemoteFile], pending: Sequence[Archive]) -> None:
    for archive in pending:
        sizes = [files[path].size for path in archive.parts]
        where = archive.target if archive.target != "." else "the data folder"
        print(f"  {archive.name:17} {len(sizes):3} part(s)  {_total_text(sizes):>12}  into {where}")
    sizes = [file.size for file in files.values()]
    print(f"{len(files)} files, {_total_text(sizes)} in all, {size_text(_remaining(job.folder, files))} still to come")


def _remaining(folder: Path, files: Mapping[str, RemoteFile]) -> int:
    return sum(max(0, (file.size or 0) - _bytes_here(folder / file.path)) for file in files.values())


def _space_needed(job: Job, files: Mapping[str, RemoteFile], pending: Sequence[Archive]) -> int:
    """Bytes, about: images do not shrink in an archive, so what is unpacked is as large as its archive."""
    unpacked = sum(file.size or 0 for file in files.values())
    waiting = [_remaining(job.folder, {path: files[path] for path in archive.parts}) for archive in pending] or [0]
    return unpacked + (sum(waiting) if job.keep else max(waiting))


def check_space(folder: Path, needed: int) -> None:
    """Raise UserError if the disk of `folder` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"the disk of {folder} has {size_text(free)} free, about {size_text(needed)} are needed; free some space, "
            "choose fewer parts, or another folder with --output"
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / ".download.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another download is running in {folder}; wait for it or stop it first") from None
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror or error}; choose another with --output") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _progress(folder: Path, files: Sequence[RemoteFile]) -> Iterator[tqdm]:
    sizes = [file.size for file in files]
    total = None if None in sizes else sum(sizes)
    here = sum(min(_bytes_here(folder / file.path), file.size or 0) for file in files)
    with tqdm(total=total, initial=here, unit="B", unit_scale=True, unit_divisor=1000, smoothing=0.05) as progress:
        yield progress


def _bytes_here(path: Path) -> int:
    for candidate in (path, _part_of(path)):
        if candidate.exists():
            return candidate.stat().st_size
    return 0


def _part_of(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def print_terms(name: str) -> None:
    """Say under which licence a dataset comes, before anything of it does."""
    info = DATASETS[name]
    print(f"{name}: {info.licence}\nRead and keep its terms: {info.homepage}")


def choose(wanted: str, groups: Mapping[str, Sequence[str]], option: str) -> list[str]:
    """What a comma-separated choice names, in the order of `groups["all"]`.

    Args:
        wanted: names of groups, whole names, or pieces that fit one name only.
        groups: group -> names; "all" has every name.
        option: for the message.

    Raises:
        UserError: a word fits nothing, or several names.
    """
    chosen: set[str] = set()
    for word in filter(None, (word.strip() for word in wanted.split(","))):
        names = groups.get(word) or [name for name in groups["all"] if name == word]
        names = names or [name for name in groups["all"] if word in name]
        if not names or (word not in groups and len(names) > 1):
            problem = "fits several" if names else "is none of them"
            raise UserError(f"{option}: {word!r} {problem}; choose from {', '.join([*groups, *groups['all']])}")
        chosen.update(names)
    if not chosen:
        raise UserError(f"{option} names nothing; choose from {', '.join([*groups, *groups['all']])}")
    return [name for name in groups["all"] if name in chosen]


def size_text(size: int) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}" if unit != "B" else f"{size} B"
        size /= 1000
    return f"{size:.3g} TB"


def _total_text(sizes: Sequence[int | None]) -> str:
    known = sum(size for size in sizes if size is not None)
    return size_text(known) if None not in sizes else (f"> {size_text(known)}" if known else "size unknown")


# ---- files ----


def check_base(base: str) -> str:
    """The base address without a slash at its end. Raises UserError if it is not http(s)."""
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UserError(f"--base {base}: not a web address (http:// or https://)")
    return base.rstrip("/")


def read_checksums(text: str) -> dict[str, str]:
    """path -> md5 of a list of lines `path md5`.

    Raises:
        UserError: the text is not such a list.
    """
    md5s = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        match = re.fullmatch(r"\s*(\S.*?)\s+([0-9a-fA-F]{32})\s*", line)
        if match is None:
            raise UserError(f"the list of checksums is none: line {number} is {line[:60]!r}, expected `path md5`")
        md5s[match[1].removeprefix("./")] = match[2].lower()
    return md5s


def fetch_text(url: str) -> str:
    """A small text file. Raises UserError as `fetch` does."""
    for attempt in range(ATTEMPTS):
        try:
            with _open(url) as response:
                return response.read().decode("utf-8", "replace")
        except NETWORK_ERRORS as error:
            _wait_or_give_up(url, error, attempt + 1)
    raise AssertionError("not reached")


def with_sizes(base: str, files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """The files with their sizes, as far as the server tells them.

    Raises:
        UserError: the server does not have one of them, or does not answer.
    """
    with ThreadPoolExecutor(HEAD_THREADS) as pool:
        sizes = pool.map(remote_size, [f"{base}/{quote(file.path)}" for file in files])
        asked = tqdm(sizes, total=len(files), desc="asking for sizes", leave=False)
        return [RemoteFile(file.path, file.md5, size) for file, size in zip(files, asked, strict=True)]


def remote_size(url: str) -> int | None:
    """Bytes of a file on a server, None where it does not say. Raises UserError as `fetch` does."""
    for attempt in range(ATTEMPTS):
        try:
            with _open(url, method="HEAD", unanswered=(405, 501)) as response:
                length = response.headers.get("Content-Length")
                return int(length) if length and length.isdigit() else None
        except _Unanswered:
            return None
        except NETWORK_ERRORS as error:
            _wait_or_give_up(url, error, attempt + 1)
    raise AssertionError("not reached")


def fetch(url: str, path: Path, md5: str | None, progress: tqdm) -> None:
    """Download a file; continue one that was interrupted; leave one that is there.

    Args:
        path: where it goes. Until it is whole and right, it is `{path}.part`.
        md5: its checksum, or None.
        progress: told of every byte.

    Raises:
        UserError: the server does not have it, cuts off too often, its checksum is wrong twice, or it cannot be
            written.
    """
    if path.exists():
        if md5 is None or file_md5(path) == md5:
            return
        progress.write(f"{path} is damaged (its md5 is not {md5}); it is downloaded again")
        progress.update(-path.stat().st_size)
        path.unlink()
    make_folder(path.parent)
    part, best, failures, wrong_sums = _part_of(path), 0, 0, 0
    progress.set_description(path.name[-40:], refresh=False)
    while True:
        try:
            _continue(url, part, progress)
        except NETWORK_ERRORS as error:
            # An attempt that got further than any before is no failure: long downloads are cut many times.
            reached = part.stat().st_size if part.exists() else 0
            failures, best = (0 if reached > best else failures + 1), max(best, reached)
            _wait_or_give_up(url, error, failures)
            continue
        if md5 is None or (found := file_md5(part)) == md5:
            os.replace(part, path)
            return
        progress.update(-part.stat().st_size)
        part.unlink()
        wrong_sums += 1
        if wrong_sums > 1:
            raise UserError(f"{url}: its md5 is {found}, the list says {md5}; try later, or report it to its publisher")
        progress.write(f"{path.name} arrived damaged (wrong md5); it is downloaded again")


def file_md5(path: Path) -> str:
    """md5 of a file, 32 hexadecimal digits."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


class _Unanswered(Exception):
    """The server has no answer to this kind of question."""


def _open(url: str, method: str = "GET", start: int = 0, unanswered: tuple[int, ...] = ()) -> http.client.HTTPResponse:
    """Raises UserError for what another attempt will not mend, `_Unanswered` for the given codes, else URLError."""
    headers = {"User-Agent": "interwild-download"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        return urlopen(Request(url, headers=headers, method=method), timeout=TIMEOUT_S)
    except HTTPError as error:
        error.close()
        if error.code in unanswered:
            raise _Unanswered from None
        if error.code in (403, 404, 410):
            raise UserError(f"the server does not have {url} ({error.code}); check --base, or its homepage") from None
        if error.code < 500 and error.code not in (408, 416, 429):
            raise UserError(f"the server refuses {url}: {error.code} {error.reason}") from None
        raise


def _continue(url: str, part: Path, progress: tqdm) -> None:
    """Fetch what `part` lacks; all of it if the server cannot start in the middle. Raises one of NETWORK_ERRORS."""
    have = part.stat().st_size if part.exists() else 0
    try:
        response = _open(url, start=have)
    except HTTPError as error:
        if error.code == 416 and have:  # there is nothing from here on: whole already, or too long
            if _total(error.headers) == have:
                return
            progress.update(-have)
            part.unlink()
            raise ConnectionError("the part here does not fit the file there; starting over") from None
        raise
    with response:
        continued = response.status == 206 and _start(response.headers) == have
        if have and not continued:
            if response.status == 206:
                raise ConnectionError("the server sent another piece than asked for")
            progress.write(f"{part.stem}: the server cannot continue a download; starting over")
            progress.update(-have)
            have = 0
        length = response.headers.get("Content-Length")
        received = _copy(response, part, "ab" if have else "wb", progress)
        if length and received < int(length):
            raise ConnectionError(f"the connection was cut after {size_text(have + received)}")


def _copy(response: http.client.HTTPResponse, part: Path, mode: str, progress: tqdm) -> int:
    received = 0
    try:
        file = open(part, mode)
    except OSError as error:
        raise _cannot_write(part, error) from None
    with file:
        while chunk := response.read(CHUNK_BYTES):
            try:
                file.write(chunk)
                file.flush()  # errors of the disk show here, not when the file is closed
            except OSError as error:
                raise _cannot_write(part, error) from None
            received += len(chunk)
            progress.update(len(chunk))
    return received


def _cannot_write(path: Path, error: OSError) -> UserError:
    advice = ADVICE.get(error.errno, "check the folder's permissions or choose another folder")
    return UserError(f"cannot write {path}: {error.strerror or error} ({advice}); the next run continues here")


def _start(headers: Message) -> int | None:
    match = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _total(headers: Message) -> int | None:
    match = re.search(r"/(\d+)$", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _wait_or_give_up(url: str, error: Exception, failures: int) -> None:
    if failures >= ATTEMPTS:
        reason = getattr(error, "reason", None) or error
        raise UserError(f"cannot download {url}: {reason}; run this again later, it continues where it stopped")
    time.sleep(WAIT_S * 2**failures)


# ---- archives ----


def mark_of(folder: Path, archive: Archive) -> Path:
    """The file that says an archive was unpacked. It lies with the content, and so goes when that is deleted."""
    return folder / archive.target / f".{archive.name}.unpacked"


def unpack(parts: Sequence[Path], archive: Archive, folder: Path) -> None:
    """Unpack an archive below `folder`, all of it or nothing, and mark it as done.

    Args:
        parts: of a tar.gz, in order; or one zip.
        archive: says where its content belongs.

    Raises:
        UserError: the archive is damaged; it names a path outside, a link or a device (nothing of it is kept); it has
            not the folders that are known of it; the disk is full.
    """
    target = folder / archive.target
    make_folder(target)
    temporary = target / f".{archive.name}.unpacking"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        if parts[0].suffix == ".zip":
            _extract_zip(parts[0], temporary)
        else:
            _extract_tar(parts, temporary)
        _merge(_content(temporary, archive, parts), target)
    except OSError as error:
        raise _cannot_write(target, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    atomic_write(mark_of(folder, archive), "".join(f"{part.name}\n" for part in parts).encode())


class _Joined:
    """Files read as one, without joining them on the disk."""

    def __init__(self, paths: Sequence[Path], progress: tqdm) -> None:
        self.paths, self.progress = list(paths), progress
        self.file = None

    def read(self, size: int) -> bytes:
        while True:
            if self.file is None:
                if not self.paths:
                    return b""
                self.file = open(self.paths.pop(0), "rb")
            if data := self.file.read(size):
                self.progress.update(len(data))
                return data
            self.close()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        self.file = None


def _unpack_progress(name: str, total: int) -> tqdm:
    return tqdm(total=total, desc=f"unpacking {name[-30:]}", unit="B", unit_scale=True, unit_divisor=1000, leave=False)


def _extract_tar(parts: Sequence[Path], folder: Path) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise UserError("this Python cannot unpack archives safely; update it (3.10.12, 3.11.4 or later)")
    name = parts[0].name
    with _unpack_progress(name, sum(part.stat().st_size for part in parts)) as progress:
        joined = _Joined(parts, progress)
        try:
            with gzip.GzipFile(fileobj=joined) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in tar:
                    check_member(name, member.name, plain=member.isfile() or member.isdir())
                    tar.extract(member, folder, filter="data")
                while stream.read(CHUNK_BYTES):  # to its end, where the stream's own checksum is
                    pass
        except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise _damaged(parts, error) from None
        finally:
            joined.close()


def _extract_zip(path: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            for member in members:
                kind = (member.external_attr >> 16) & 0o170000  # of a Unix file; 0 where it was packed elsewhere
                check_member(path.name, member.filename, plain=kind in (0, 0o100000, 0o040000))
            with _unpack_progress(path.name, sum(member.file_size for member in members)) as progress:
                for member in members:
                    archive.extract(member, folder)
                    progress.update(member.file_size)
    except (zipfile.BadZipFile, EOFError, zlib.error, RuntimeError, NotImplementedError) as error:
        raise _damaged([path], error) from None


def check_member(archive: str, name: str, plain: bool) -> None:
    """Refuse an archive for one of its entries.

    Args:
        archive, name: the archive and the entry, for the message.
        plain: whether it is a file or folder, and no link, device or pipe.

    Raises:
        UserError: the entry is not plain, or could land outside the folder it is unpacked in.
    """
    path = PurePosixPath(name)
    outside = path.is_absolute() or ".." in path.parts or "\\" in name or bool(PureWindowsPath(name).drive)
    if outside or not plain:
        problem = "lies outside the archive's folder" if outside else "is a link or a device"
        raise UserError(
            f"refused {archive}: its entry {name!r} {problem}, which no archive of this dataset needs; delete it"
        )


def _damaged(parts: Sequence[Path], error: Exception) -> UserError:
    names = ", ".join(str(part) for part in parts[:1]) + (f" and {len(parts) - 1} more" if len(parts) > 1 else "")
    return UserError(f"archive {names} is damaged ({error}); delete it and run this again")


def _content(folder: Path, archive: Archive, parts: Sequence[Path]) -> Path:
    """The folder in an unpacked archive that holds its landmark. How archives wrap their content is not documented."""
    if archive.landmark is None:
        return folder
    level = [folder]
    for _ in range(5):
        for candidate in level:
            if (candidate / archive.landmark).is_dir():
                return candidate
        level = [Path(entry) for parent in level for entry in sorted(_folders(parent))]
    raise UserError(
        f"{parts[0].name} holds no folder {archive.landmark!r}, so it is not clear where it belongs; "
        f"unpack it by hand so that {archive.target}/{archive.landmark} exists"
    )


def _folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]


def _merge(source: Path, target: Path) -> None:
    """Move all entries of a folder into another, which may have some of them already."""
    for entry in list(source.iterdir()):
        destination = target / entry.name
        if entry.is_dir() and destination.is_dir():
            _merge(entry, destination)
        else:
            os.replace(entry, destination)
