"""Download, check and unpack the archives of HIC and Re:InterHand; `main` is the command of both.

Finished steps are skipped: an unpacked archive leaves a mark in its folder, a complete part has its final name, and an
interrupted one is resumed from its `.part` file. Nothing from the network is trusted: files are checked by the
publisher's checksums or the server's sizes, and an archive can write nothing outside its folder.
"""

import argparse
import gzip
import hashlib
import http.client
import io
import os
import re
import shutil
import tarfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, NamedTuple, TypeVar
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit

from tqdm import tqdm

from common.errors import UserError, error_context, is_out_of_memory
from common.options import DATA_FOLDER, Parser
from common.utils.files import ADVICE, atomic_write, exclusive, make_folder
from data import layouts
from data.layouts import DATASETS, TOY_MARK, Archive

T = TypeVar("T")

ATTEMPTS = 5  # in a row without progress
WAIT_S = 1.0  # before the second attempt, doubled each time
TIMEOUT_S = 30
CHUNK_BYTES = 1 << 20
LIST_BYTES = 1 << 24  # of a list of checksums
HEAD_THREADS = 8
AGAIN = "the next run continues here"


class RemoteFile(NamedTuple):
    """A file: its path below the base address and below the dataset's `data` folder, its md5 if that is listed."""

    path: str
    md5: str | None = None


class Job(NamedTuple):
    """What one run downloads."""

    base: str  # address that all paths are below
    folder: Path  # receives everything
    files: Sequence[RemoteFile]  # kept as they are
    archives: Sequence[Archive]  # unpacked
    md5s: Mapping[str, str]  # by path, of the parts of archives that have one
    keep: bool  # archives stay after they were unpacked


# ---- The command ----


def parse_args(name: str, about: str) -> argparse.Namespace:
    """The command line of data/{name}/download.py. `about`: its description."""
    folder = DATA_FOLDER / name / "data"
    base = layouts.HIC_BASE if name == "HIC" else layouts.REINTERHAND_BASE
    parser = Parser(about, {"--out": "--output"})
    if name == "HIC":
        text = "comma-separated: 01 to 11, 15 to 21, hands (01-11), objects (15-21), all (default)"
        parser.add_argument("--sequences", default="all", help=text)
    else:
        text = "comma-separated: all, train, test, or pieces of names such as RNS217"
        parser.add_argument("--captures", help=text)
        text = f"comma-separated: all, default, {', '.join(layouts.CAPTURE_ARCHIVES)} (default: %(default)s)"
        parser.add_argument("--parts", default="default", help=text)
    parser.add_argument("--base", default=base, help="address that the files are below (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=folder, help=f"folder (default: data/{name}/data)")
    parser.add_argument("--keep", action="store_true", help="keep the archives after unpacking")
    parser.add_argument("--dry_run", action="store_true", help="show what would be downloaded, and how large it is")
    return parser.parse_args()


def run(name: str, args: argparse.Namespace) -> None:
    """Plan and run the download of a dataset, see `run_job`."""
    args.base = check_base(args.base)
    mark = args.output.parent / TOY_MARK
    if mark.exists():  # real data among toy data could not be told apart
        raise UserError(
            f"{mark.parent} holds toy data; delete or move that folder first, or choose another with --output"
        )
    job = plan_hic(args) if name == "HIC" else plan_reinterhand(args)
    run_job(job, args.dry_run)
    if name == "HIC" and not (args.output / "HIC.json").exists():
        print(f"Still to do: {args.output / 'HIC.json'} is not there. {layouts.HIC_JSON_FROM}")


def plan_hic(args: argparse.Namespace) -> Job:
    groups = {
        "all": layouts.HIC_SEQUENCES,
        "hands": layouts.HIC_HAND_SEQUENCES,
        "objects": layouts.HIC_OBJECT_SEQUENCES,
    }
    sequences = choose(args.sequences, groups, "--sequences")
    print_terms("HIC")
    archives = [layouts.hic_archive(sequence) for sequence in (*sequences, "mano")]
    return Job(args.base, args.output, [], archives, {}, args.keep)


def plan_reinterhand(args: argparse.Namespace) -> Job:
    if args.captures is None:
        print(overview())
        raise UserError("nothing was chosen; name captures with --captures (all, train, test, or pieces of names)")
    groups = {"all": layouts.CAPTURES, "train": layouts.TRAIN_CAPTURES, "test": layouts.TEST_CAPTURES}
    captures = choose(args.captures, groups, "--captures")
    groups = {"all": layouts.CAPTURE_ARCHIVES, "default": layouts.DEFAULT_ARCHIVES}
    parts = choose(args.parts, groups, "--parts")
    print_terms("ReInterHand")
    md5s: dict[str, str] = {}
    for capture in captures:
        listed = read_checksums(fetch_text(f"{args.base}/{capture}/{layouts.CHECKSUMS}"))
        md5s |= {f"{capture}/{path}": md5 for path, md5 in listed.items()}
    archives = [
        with_listed_parts(layouts.capture_archive(capture, part), md5s) for capture in captures for part in parts
    ]
    files = [f"{capture}/{name}" for capture in captures for name in layouts.CAPTURE_FILES]
    unlisted = [path for path in (*files, *(part for a in archives for part in a.parts)) if path not in md5s]
    if unlisted:
        print(f"note: {len(unlisted)} files have no checksum in the publisher's lists, e.g. {unlisted[0]}")
    return Job(args.base, args.output, [RemoteFile(path, md5s.get(path)) for path in files], archives, md5s, args.keep)


def with_listed_parts(archive: Archive, md5s: Mapping[str, str]) -> Archive:
    """The archive with the parts that the publisher lists."""
    stem = archive.parts[0].removesuffix("aa")
    listed = tuple(sorted(path for path in md5s if re.fullmatch(re.escape(stem) + "[a-z]{2}", path)))
    if not listed or listed == archive.parts:
        return archive
    print(f"note: {archive.target} has {len(listed)} parts by the publisher's list, not {len(archive.parts)}")
    return replace(archive, parts=listed)


def overview() -> str:
    """The captures of Re:InterHand and the number of parts of each archive."""
    names = layouts.CAPTURE_ARCHIVES
    lines = ["capture    split  parts of " + "  ".join(names)]
    for capture in layouts.CAPTURES:
        counts = "  ".join(f"{len(layouts.capture_archive(capture, name).parts):{len(name)}}" for name in names)
        split = "test" if layouts.is_test_capture(capture) else "train"
        lines.append(f"{capture.split('--')[3]:10} {split:5}  {'':8} {counts}")
    lines.append(f"--parts default: {', '.join(layouts.DEFAULT_ARCHIVES)} (what training and testing read by default)")
    return "\n".join(lines)


def print_terms(name: str) -> None:
    """Print the licence of a dataset before anything is downloaded."""
    print(f"{name}: {DATASETS[name].licence}\nRead and keep its terms: {DATASETS[name].homepage}")


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


def run_job(job: Job, dry_run: bool = False) -> None:
    """Download and unpack what is missing, and report it.

    Args:
        dry_run: ask the server for the sizes, print the plan, and stop.

    Raises:
        UserError: the disk is too small, a file cannot be downloaded, a checksum or an archive is wrong. Finished steps
            are kept; the next run resumes.
    """
    pending = [archive for archive in job.archives if not mark_of(job.folder, archive).exists()]
    if done := len(job.archives) - len(pending):
        print(f"{done} of {len(job.archives)} archives were unpacked before")
    md5s = {file.path: file.md5 for file in job.files if not (job.folder / file.path).exists()}
    kept = list(md5s)
    md5s |= {path: job.md5s.get(path) for archive in pending for path in archive.parts}
    if not md5s:
        print(f"nothing to do: everything that was chosen is in {job.folder}")
        return
    sizes = remote_sizes(job.base, list(md5s))
    here = {path: _bytes_here(job.folder / path) for path in md5s}
    left = {path: max(0, (size or 0) - here[path]) for path, size in sizes.items()}
    for archive in pending:
        total = _total_text([sizes[path] for path in archive.parts])
        where = archive.target if archive.target != "." else "the data folder"
        print(f"  {archive.name:17} {len(archive.parts):3} part(s)  {total:>12}  into {where}")
    print(f"{len(sizes)} files, {_total_text(sizes.values())} in all, {size_text(sum(left.values()))} still to come")
    if dry_run:
        return
    make_folder(job.folder)
    known = sum(size or 0 for size in sizes.values())
    # Images do not shrink in an archive, so what is unpacked is about as large as its archive.
    unpacked = [sum(left[path] for path in archive.parts) for archive in pending] or [0]
    check_space(job.folder, known + (sum(unpacked) if job.keep else max(unpacked)))
    begun = sum(min(here[path], size or 0) for path, size in sizes.items())
    total_bytes = None if None in sizes.values() else known
    running = f"another download is running in {job.folder}; wait for it or stop it first"
    with (
        exclusive(job.folder / ".download.lock", running),
        _bar("", total_bytes, initial=begun, leave=True) as progress,
    ):

        def get(path: str) -> Path:
            fetch(f"{job.base}/{quote(path)}", job.folder / path, md5s[path], progress, sizes[path])
            return job.folder / path

        for path in kept:
            get(path)
        for archive in pending:
            parts = [get(path) for path in archive.parts]
            unpack(parts, archive, job.folder)
            for part in () if job.keep else parts:
                part.unlink()
    print(f"done: {job.folder}")


def check_space(folder: Path, needed: int) -> None:
    """Raise UserError if the disk of `folder` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"the disk of {folder} has {size_text(free)} free, about {size_text(needed)} are needed; free some space, "
            "choose fewer parts, or another folder with --output"
        )


def _bytes_here(path: Path) -> int:
    return next((candidate.stat().st_size for candidate in (path, _part_of(path)) if candidate.exists()), 0)


def _part_of(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _bar(text: str, total: int | None, **options: Any) -> tqdm:
    return tqdm(desc=text, total=total, unit="B", unit_scale=True, unit_divisor=1000, smoothing=0.05, **options)


def size_text(size: float) -> str:
    """Bytes in readable units."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _total_text(sizes: Collection[int | None]) -> str:
    known = sum(size for size in sizes if size is not None)
    return size_text(known) if None not in sizes else (f"> {size_text(known)}" if known else "size unknown")


# ---- Files ----


def check_base(base: str) -> str:
    """The base address without a slash at its end. Raises UserError if it is not http(s)."""
    with error_context(f"--base {base}", ValueError):
        parts = urlsplit(base)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UserError("not a web address (http:// or https://)")
        return base.rstrip("/")


def read_checksums(text: str) -> dict[str, str]:
    """path -> md5 of a list of lines `path md5`.

    Raises:
        UserError: the text is not such a list.
    """
    md5s = {}
    for number, line in enumerate(text.splitlines(), 1):
        path, _, md5 = line.strip().rpartition(" " if "\t" not in line else "\t")
        if line.strip() and not (path.strip() and re.fullmatch("[0-9a-fA-F]{32}", md5)):
            raise UserError(f"not a list of checksums: line {number} is {line[:60]!r}, expected `path md5`")
        md5s[path.strip().removeprefix("./")] = md5.lower()
    md5s.pop("", None)
    return md5s


def fetch_text(url: str) -> str:
    """A small text file. Raises UserError as `fetch` does."""

    def once() -> str:
        with _open(url) as response:
            text, size = response.read(LIST_BYTES), _number(response.headers.get("Content-Length"))
            if size is not None and size != len(text):
                raise ConnectionError(f"the server sent {len(text)} of {size} bytes")
            return text.decode("utf-8", "replace")

    return _persist(url, once)


def remote_sizes(base: str, paths: Sequence[str]) -> dict[str, int | None]:
    """Sizes of files below `base`. Raises UserError as `fetch` does."""
    with ThreadPoolExecutor(HEAD_THREADS) as pool:
        sizes = pool.map(remote_size, [f"{base}/{quote(path)}" for path in paths])
        return dict(zip(paths, tqdm(sizes, total=len(paths), desc="asking for sizes", leave=False), strict=True))


def remote_size(url: str) -> int | None:
    """Size of a file on a server in bytes, None if unknown. Raises UserError as `fetch` does."""

    def once() -> int | None:
        try:
            with _open(url, method="HEAD") as response:
                return _number(response.headers.get("Content-Length"))
        except HTTPError as error:
            if error.code in (405, 501):  # the server does not support HEAD
                return None
            raise

    return _persist(url, once)


def fetch(url: str, path: Path, md5: str | None, progress: tqdm, size: int | None = None) -> None:
    """Download a file; resume an interrupted download; keep a file that is complete.

    Args:
        path: where it goes. Until it is whole and right, it is `{path}.part`.
        md5, size: of the file, or None where they are not known.
        progress: updated with every byte.

    Raises:
        UserError: the server does not have it, the connection breaks too often, the content is wrong twice, or the disk
            cannot be written.
    """

    def wrong(file: Path) -> str:
        if size is not None and file.stat().st_size != size:
            return f"it has {file.stat().st_size} bytes, the server says {size}"
        found = md5 and file_md5(file)
        return f"its md5 is {found}, the list says {md5}" if found != md5 else ""

    part = _part_of(path)
    make_folder(path.parent)
    progress.set_description(path.name[-40:], refresh=False)
    for attempt in range(3):
        file = part if attempt else path
        if attempt:
            _persist(url, lambda: _continue(url, part, progress), lambda: _bytes_here(part))
        if file.exists():
            problem = wrong(file)
            if not problem:
                os.replace(file, path)
                return
            progress.write(f"{file} is damaged ({problem}); it is downloaded again")
            progress.update(-file.stat().st_size)
            file.unlink()
    raise UserError(f"{url}: {problem}; try later, or report it to its publisher")


def file_md5(path: Path) -> str:
    """md5 of a file, 32 hexadecimal digits."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _persist(url: str, once: Callable[[], T], reached: Callable[[], int] = lambda: 0) -> T:
    """What `once` returns, retried after network errors.

    An attempt that got further (`reached`, bytes) than any before is not a failure: long downloads are cut many times.

    Raises:
        UserError: it failed too often, or for a reason that another attempt will not change.
    """
    failures, best = 0, reached()
    while True:
        try:
            return once()
        except UserError:
            raise
        except Exception as error:  # urllib and http.client raise any error on a malformed answer
            if is_out_of_memory(error):
                raise
            failures, best = (0 if reached() > best else failures + 1), max(best, reached())
            if failures >= ATTEMPTS:
                reason = getattr(error, "reason", None) or error
                text = f"cannot download {url}: {str(reason)[:200] or type(error).__name__}"
                raise UserError(f"{text}; run this again later, it continues where it stopped") from None
            time.sleep(WAIT_S * 2**failures)


def _open(url: str, method: str = "GET", start: int = 0) -> http.client.HTTPResponse:
    """Raises UserError for an error that another attempt will not change."""
    headers = {"User-Agent": "interwild-download"} | ({"Range": f"bytes={start}-"} if start else {})
    opener = urllib.request.OpenerDirector()  # http(s) alone: a redirection may name ftp or a file
    for handler in ("ProxyHandler", "HTTPHandler", "HTTPSHandler", "HTTPDefaultErrorHandler", "HTTPRedirectHandler"):
        opener.add_handler(getattr(urllib.request, handler)())
    opener.add_handler(urllib.request.HTTPErrorProcessor())
    opener.add_handler(urllib.request.UnknownHandler())
    try:
        return opener.open(urllib.request.Request(url, headers=headers, method=method), timeout=TIMEOUT_S)
    except HTTPError as error:
        error.close()
        if error.code in (403, 404, 410):
            raise UserError(f"the server does not have {url} ({error.code}); check --base, or its homepage") from None
        if error.code < 500 and error.code not in (405, 408, 416, 429):
            raise UserError(f"the server refuses {url}: {error.code} {str(error.reason)[:200]}") from None
        raise


def _continue(url: str, part: Path, progress: tqdm) -> None:
    """Download the rest of `part`, or all of it if the server does not support ranges."""
    have = _bytes_here(part)
    try:
        response = _open(url, start=have)
    except HTTPError as error:
        if error.code == 416 and have:  # nothing is left: the part is complete, or too long
            if _number(error.headers.get("Content-Range", "").rpartition("/")[2]) == have:
                return
            progress.update(-have)
            part.unlink()
            raise ConnectionError("the part here does not fit the file there; starting over") from None
        raise
    with response:
        if have and response.status == 206:
            first = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
            if _number(first) != have:
                raise ConnectionError("the server sent another range than requested")
        elif have:
            progress.write(f"{part.stem}: the server cannot continue a download; starting over")
            progress.update(-have)
            have = 0
        length, received = _number(response.headers.get("Content-Length")), 0
        chunk = response.read(CHUNK_BYTES)
        with _writing(part), open(part, "ab" if have else "wb", buffering=0) as file:
            while chunk:
                file.write(chunk)  # unbuffered: disk errors are raised here
                received += len(chunk)
                progress.update(len(chunk))
                try:
                    chunk = response.read(CHUNK_BYTES)
                except OSError as error:
                    raise http.client.HTTPException(str(error)) from None  # a network error, not one of the disk
        if length and received < length:
            raise ConnectionError(f"the connection was cut after {size_text(have + received)}")


def _number(text: str | None) -> int | None:
    """A number of bytes in a header."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 19 else None


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        advice = ADVICE.get(error.errno or 0, "check the folder's permissions or choose another folder")
        raise UserError(f"cannot write {path}: {error.strerror or error} ({advice}); {AGAIN}") from None


# ---- Archives ----


def mark_of(folder: Path, archive: Archive) -> Path:
    """The file that marks an archive as unpacked. It lies beside the content, so it is deleted with it."""
    return folder / archive.target / f".{archive.name}.unpacked"


def unpack(parts: Sequence[Path], archive: Archive, folder: Path) -> None:
    """Unpack an archive below `folder`, all of it or nothing, and mark it as done.

    Args:
        parts: of a tar.gz, in order; or one zip.
        archive: says where its content belongs.

    Raises:
        UserError: the archive is damaged; it names a path outside, a link or a device (nothing of it is kept); its
            folders are not those that are known; the disk is full.
    """
    target = folder / archive.target
    make_folder(target)
    temporary = target / f".{archive.name}.unpacking"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        (_extract_zip if parts[0].suffix == ".zip" else _extract_tar)(parts, temporary)
        # Moved into the folder, which may have some of it already.
        shutil.copytree(_content(temporary, archive, parts), target, copy_function=os.replace, dirs_exist_ok=True)
    except UserError:
        raise
    except Exception as error:  # tarfile, zipfile and the decompressors raise any error on damaged files
        if is_out_of_memory(error):
            raise
        if isinstance(error, OSError) and error.errno in ADVICE:
            with _writing(target):
                raise
        more = f" and {len(parts) - 1} more" if len(parts) > 1 else ""
        reason = str(error)[:200] or type(error).__name__
        raise UserError(f"archive {parts[0]}{more} is damaged ({reason}); delete it and run this again") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    atomic_write(mark_of(folder, archive), "".join(f"{part.name}\n" for part in parts).encode())


class _Joined:
    """Files read as one, without joining them on the disk. `read` is all that GzipFile needs."""

    def __init__(self, paths: Sequence[Path], progress: tqdm) -> None:
        self.paths, self.progress = iter(paths), progress
        self.file: IO[bytes] = io.BytesIO()

    def read(self, size: int) -> bytes:
        while not (data := self.file.read(size)) and (path := next(self.paths, None)):
            self.file.close()
            self.file = open(path, "rb")
        self.progress.update(len(data))
        return data


def _extract_tar(parts: Sequence[Path], folder: Path) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise UserError("this Python cannot unpack archives safely; update it (3.10.12, 3.11.4 or later)")
    name = parts[0].name
    with _bar(f"unpacking {name[-30:]}", sum(part.stat().st_size for part in parts), leave=False) as progress:
        joined: Any = _Joined(parts, progress)
        with gzip.GzipFile(fileobj=joined) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                check_member(name, member.name, plain=member.isfile() or member.isdir())
                tar.extract(member, folder, filter="data")
            while stream.read(CHUNK_BYTES):  # the stream's checksum is at its end
                pass


def _extract_zip(parts: Sequence[Path], folder: Path) -> None:
    with zipfile.ZipFile(parts[0]) as archive:
        members = archive.infolist()
        for member in members:
            kind = (member.external_attr >> 16) & 0o170000  # of a Unix file; 0 where it was packed elsewhere
            check_member(parts[0].name, member.filename, plain=kind in (0, 0o100000, 0o040000))
        total = sum(member.file_size for member in members)
        with _bar(f"unpacking {parts[0].name[-30:]}", total, leave=False) as progress:
            for member in members:
                archive.extract(member, folder)
                progress.update(member.file_size)


def check_member(archive: str, name: str, plain: bool) -> None:
    """Check an entry of an archive.

    Args:
        archive, name: the archive and the entry, for the message.
        plain: whether it is a file or folder, and not a link, device or pipe.

    Raises:
        UserError: the entry is not plain, or could land outside the folder it is unpacked in.
    """
    path = PurePosixPath(name)
    outside = path.is_absolute() or ".." in path.parts or "\\" in name or bool(PureWindowsPath(name).drive)
    if outside or not plain:
        problem = "lies outside the archive's folder" if outside else "is a link or a device"
        text = f"refused {archive}: its entry {name[:200]!r} {problem}"
        raise UserError(f"{text}, which no archive of this dataset needs; delete it")


def _content(folder: Path, archive: Archive, parts: Sequence[Path]) -> Path:
    """The folder in an unpacked archive that holds its landmark; the folders around it are not documented."""
    if archive.landmark is None:
        return folder
    level = [folder]
    for _ in range(5):
        for candidate in level:
            if (candidate / archive.landmark).is_dir():
                return candidate
        level = [entry for parent in level for entry in sorted(parent.iterdir()) if entry.is_dir()]
    raise UserError(
        f"{parts[0].name} holds no folder {archive.landmark!r}, so it is not clear where it belongs; "
        f"unpack it by hand so that {archive.target}/{archive.landmark} exists"
    )
