"""Downloads from a server on this machine: whole, interrupted, damaged, hostile."""

import gzip
import hashlib
import io
import random
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tqdm import tqdm

from common.errors import UserError
from common.options import ROOT
from data import download, layouts
from tests.faults.fault_campaign import answering

pytestmark = pytest.mark.skipif(
    not hasattr(tarfile, "data_filter"), reason="older Pythons cannot unpack tar safely, which the download says"
)
RNS217 = layouts.CAPTURES[5]


class Server:
    """Serves `files` (path -> content) and can misbehave."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges = True  # whether it can start in the middle of a file
        self.cut_after: dict[str, list[int]] = {}  # path -> bytes after which each next answer breaks off
        self.fail_with: dict[str, list[int]] = {}  # path -> codes of the next answers
        self.gets: Counter[str] = Counter()
        self.sent_from: dict[str, list[int]] = {}
        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.base = f"http://127.0.0.1:{self.httpd.server_port}"
        threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def handler(server) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(with_body=False)

            def do_GET(self) -> None:
                self.answer(with_body=True)

            def answer(self, with_body: bool) -> None:
                path = self.path.lstrip("/")
                content = server.files.get(path)
                codes = server.fail_with.get(path)
                if content is None or (with_body and codes):
                    self.send_error(codes.pop(0) if content is not None else 404)
                    return
                start = 0
                if server.ranges and (wanted := self.headers.get("Range")):
                    start = int(wanted.removeprefix("bytes=").rstrip("-"))
                if start >= len(content) > 0:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                if with_body:
                    server.gets[path] += 1
                    server.sent_from.setdefault(path, []).append(start)
                    cuts = server.cut_after.get(path)
                    self.wfile.write(content[start : start + cuts.pop(0) if cuts else None])
                    self.close_connection = True

            def log_message(self, *args: object) -> None:
                pass

        return Handler


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.httpd.shutdown()
    server.httpd.server_close()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "WAIT_S", 0)


@pytest.fixture
def progress() -> Iterator[tqdm]:
    with tqdm(disable=True) as bar:
        yield bar


CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


def test_fetches_whole_and_only_once(server, tmp_path, progress):
    server.files["a.bin"] = CONTENT
    for _ in range(2):
        download.fetch(f"{server.base}/a.bin", tmp_path / "x" / "a.bin", MD5, progress)
    assert (tmp_path / "x" / "a.bin").read_bytes() == CONTENT
    assert server.gets["a.bin"] == 1
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["a.bin"]


def test_cut_connections_are_continued_where_they_broke(server, tmp_path, progress):
    """More cuts than attempts are allowed: each gained some bytes, so none counts as a failure."""
    server.files["a.bin"] = CONTENT
    server.cut_after["a.bin"] = [40_000] * 6
    download.fetch(f"{server.base}/a.bin", tmp_path / "a.bin", MD5, progress)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    starts = server.sent_from["a.bin"]
    assert len(starts) == 7 > download.ATTEMPTS and starts == sorted(starts) and starts[1] > 0


def test_next_run_continues_a_part_file(server, tmp_path, progress):
    server.files["a.bin"] = CONTENT
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:123_456])
    download.fetch(f"{server.base}/a.bin", tmp_path / "a.bin", MD5, progress)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.sent_from["a.bin"] == [123_456]


@pytest.mark.parametrize("length", [len(CONTENT), len(CONTENT) + 10])
def test_part_file_with_nothing_left_to_fetch(server, tmp_path, progress, length):
    """Killed between the last byte and the renaming; and a part longer than the file, which cannot be right."""
    server.files["a.bin"] = CONTENT
    (tmp_path / "a.bin.part").write_bytes((CONTENT + b"x" * 10)[:length])
    download.fetch(f"{server.base}/a.bin", tmp_path / "a.bin", None, progress)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.gets["a.bin"] == (length > len(CONTENT))


def test_server_that_cannot_continue(server, tmp_path, progress):
    """It sends the whole file; that must not be appended to what was there."""
    server.ranges = False
    server.files["a.bin"] = CONTENT
    (tmp_path / "a.bin.part").write_bytes(b"?" * 1000)
    download.fetch(f"{server.base}/a.bin", tmp_path / "a.bin", MD5, progress)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_server_that_always_cuts_and_cannot_continue_is_given_up(server, tmp_path, progress):
    server.ranges = False
    server.files["a.bin"] = CONTENT
    server.cut_after["a.bin"] = [1000] * 50
    with pytest.raises(UserError, match="continues where it stopped"):
        download.fetch(f"{server.base}/a.bin", tmp_path / "a.bin", MD5, progress)
    assert server.gets["a.bin"] <= download.ATTEMPTS + 2
    assert not (tmp_path / "a.bin").exists()


def test_server_errors_are_retried(server, tmp_path, progress):
    server.files["a.bin"] = CONTENT
    server.fail_with["a.bin"] = [503, 500, 429]
    download.fetch(f"{server.base}/a.bin", tmp_path / "a.bin", MD5, progress)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_wrong_checksum(server, tmp_path, progress):
    """Tried once more, then refused; nothing stays that a later run would take for good."""
    server.files["a.bin"] = CONTENT
    with pytest.raises(UserError, match=f"md5 is {MD5}, the list says {'0' * 32}"):
        download.fetch(f"{server.base}/a.bin", tmp_path / "a.bin", "0" * 32, progress)
    assert server.gets["a.bin"] == 2
    assert list(tmp_path.iterdir()) == []


def test_damaged_file_from_before_is_fetched_again(server, tmp_path, progress):
    server.files["a.bin"] = CONTENT
    (tmp_path / "a.bin").write_bytes(CONTENT[:-1] + b"!")
    download.fetch(f"{server.base}/a.bin", tmp_path / "a.bin", MD5, progress)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_missing_file_is_named_at_once(server, tmp_path, progress):
    with pytest.raises(UserError, match=f"{server.base}/no.bin .404"):
        download.fetch(f"{server.base}/no.bin", tmp_path / "no.bin", None, progress)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("base", ["file:///etc", "ftp://host/x", "nonsense", ""])
def test_only_web_addresses(base):
    with pytest.raises(UserError, match="--base"):
        download.check_base(base)


def test_checksum_list():
    text = f"./Mugsy_cameras/a.tar.gzaa {MD5}\n\nwith space.txt\t{MD5.upper()}\n"
    assert download.read_checksums(text) == {"Mugsy_cameras/a.tar.gzaa": MD5, "with space.txt": MD5}
    with pytest.raises(UserError, match="line 1 is '<html>"):
        download.read_checksums("<html>")


def test_full_disk_is_noticed_before_the_download(tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000_000))
    download.check_space(tmp_path, 4_999_999)
    with pytest.raises(UserError, match="5 MB free, about 7 GB are needed"):
        download.check_space(tmp_path, 7_000_000_000)


def test_two_downloads_in_one_folder(server, tmp_path):
    """They would write into each other's part files."""
    server.files["a.bin"] = CONTENT
    job = download.Job(server.base, tmp_path, [download.RemoteFile("a.bin")], [], {}, keep=False)
    with (
        download.exclusive(tmp_path / ".download.lock", ""),
        pytest.raises(UserError, match="another download is running"),
    ):
        download.run_job(job)
    download.run_job(job)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_plan_alone_downloads_nothing(server, tmp_path, capsys):
    server.files["a.bin"] = CONTENT
    job = download.Job(server.base, tmp_path / "new", [download.RemoteFile("a.bin")], [], {}, keep=False)
    download.run_job(job, dry_run=True)
    assert "1 files, 300 kB in all" in capsys.readouterr().out
    assert not server.gets and not (tmp_path / "new").exists()


# ---- archives ----


def tar_bytes(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                tar.addfile(info)
    return buffer.getvalue()


def special(kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


def split(data: bytes, count: int) -> list[bytes]:
    step = -(-len(data) // count)
    return [data[start : start + step] for start in range(0, len(data), step)]


def archive_on_disk(folder: Path, data: list[bytes], landmark: str | None = None) -> tuple[list[Path], layouts.Archive]:
    names = tuple(f"some.tar.gz{suffix}" for suffix in layouts.part_suffixes(len(data)))
    folder.mkdir(exist_ok=True)
    for name, content in zip(names, data, strict=True):
        (folder / name).write_bytes(content)
    return [folder / name for name in names], layouts.Archive("some", names, "content", landmark)


@pytest.mark.parametrize("wrapped", ["", "./", "some/", "deep/deeper/some/"])
def test_split_archive_lands_where_it_belongs(tmp_path, wrapped):
    """However the archive wraps its content, and over what is there already."""
    members = {f"{wrapped}images/400262/000001.png": CONTENT, f"{wrapped}masks/1.png": b"mask"}
    parts, archive = archive_on_disk(tmp_path, split(tar_bytes(members), 3), landmark="images")
    (tmp_path / "content" / "images").mkdir(parents=True)
    (tmp_path / "content" / "images" / "old.txt").write_bytes(b"old")
    (tmp_path / "content" / ".some.unpacking" / "images").mkdir(parents=True)  # of a run that was killed
    (tmp_path / "content" / ".some.unpacking" / "images" / "half.png").write_bytes(b"half")
    download.unpack(parts, archive, tmp_path)
    assert (tmp_path / "content/images/400262/000001.png").read_bytes() == CONTENT
    assert (tmp_path / "content/masks/1.png").read_bytes() == b"mask"
    assert {path.name for path in (tmp_path / "content/images").iterdir()} == {"400262", "old.txt"}
    assert download.mark_of(tmp_path, archive).exists()
    assert not list(tmp_path.glob("**/*.unpacking"))


def test_archive_without_the_known_folder_is_not_scattered(tmp_path):
    parts, archive = archive_on_disk(tmp_path, [tar_bytes({"a/b.txt": b"1"})], landmark="images")
    with pytest.raises(UserError, match="no folder 'images'"):
        download.unpack(parts, archive, tmp_path)
    assert list((tmp_path / "content").iterdir()) == []


HOSTILE_TARS = {
    "parent": {"../evil.txt": b"x"},
    "parent inside": {"a/../../evil.txt": b"x"},
    "absolute": {"{tmp_path}/evil.txt": b"x"},
    "backslash": {"..\\evil.txt": b"x"},
    "symlink out": {"link": special(tarfile.SYMTYPE, "../.."), "link/evil.txt": b"x"},
    "symlink in": {"link": special(tarfile.SYMTYPE, "good.txt")},
    "hard link": {"link": special(tarfile.LNKTYPE, "../some.tar.gzaa")},
    "device": {"device": special(tarfile.CHRTYPE)},
    "pipe": {"pipe": special(tarfile.FIFOTYPE)},
}


@pytest.mark.parametrize("case", HOSTILE_TARS)
def test_hostile_tar_is_refused_and_nothing_of_it_stays(tmp_path, case):
    home = tmp_path / "home"
    members = {name.format(tmp_path=tmp_path): content for name, content in HOSTILE_TARS[case].items()}
    parts, archive = archive_on_disk(home, [tar_bytes({"good.txt": b"1", **members})])
    before = {path for path in tmp_path.rglob("*")}
    with pytest.raises(UserError, match="refused some.tar.gzaa"):
        download.unpack(parts, archive, home)
    assert {path for path in tmp_path.rglob("*")} - before == {home / "content"}
    assert list((home / "content").iterdir()) == []


@pytest.mark.parametrize("name", ["../evil.txt", "{tmp_path}/evil.txt", "a/../../evil.txt", "C:\\evil.txt", "link"])
def test_hostile_zip_is_refused_and_nothing_of_it_stays(tmp_path, name):
    path = tmp_path / "home" / "01.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("01/1/good.txt", "1")
        info = zipfile.ZipInfo(name.format(tmp_path=tmp_path))
        info.external_attr = (0o120777 if name == "link" else 0o100644) << 16
        file.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="refused 01.zip"):
        download.unpack([path], layouts.Archive("01", ("01.zip",), "01", "1"), path.parent)
    assert {entry.name for entry in tmp_path.rglob("*")} == {"home", "01.zip", "01"}


@pytest.mark.parametrize("damage", ["cut", "flipped", "not gzip", "last part missing"])
def test_damaged_archive_is_named_and_not_unpacked(tmp_path, damage):
    data = tar_bytes({"images/1.png": CONTENT})
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 255
    damaged = {
        "cut": [data[: len(data) // 2]],
        "flipped": [bytes(flipped)],
        "not gzip": [b"<html>no such file</html>"],
        "last part missing": split(data, 3)[:2],
    }[damage]
    parts, archive = archive_on_disk(tmp_path, damaged, landmark="images")
    with pytest.raises(UserError, match="some.tar.gzaa.* is damaged"):
        download.unpack(parts, archive, tmp_path)
    assert list((tmp_path / "content").iterdir()) == []


def test_checksum_at_the_end_of_the_stream_is_read(tmp_path):
    """tar stops at its end mark, before the end of the compressed stream, where the checksum is."""
    data = bytearray(gzip.compress(gzip.decompress(tar_bytes({"images/1.png": b"x"}))))
    data[-8] ^= 255
    parts, archive = archive_on_disk(tmp_path, [bytes(data)], landmark="images")
    with pytest.raises(UserError, match="is damaged"):
        download.unpack(parts, archive, tmp_path)


def zip_bytes(compression: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name in ("01/1/rgb/000.png", "01/1/rgb/001.png", "01/readme.txt"):
            file.writestr(name, CONTENT[:3000] + b"0" * 3000)
    return buffer.getvalue()


WHOLE = {
    "tar": tar_bytes({"images/1.png": CONTENT[:3000], "images/a/2.png": b"0" * 5000, "notes.txt": b"text"}),
    "stored": zip_bytes(zipfile.ZIP_STORED),
    "deflated": zip_bytes(zipfile.ZIP_DEFLATED),
    "bzip2": zip_bytes(zipfile.ZIP_BZIP2),
    "lzma": zip_bytes(zipfile.ZIP_LZMA),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_damaged_archives_are_one_line(tmp_path, kind):
    """Bytes changed, cut out or repeated: it is unpacked, or refused with one line, and never does half of it stay."""
    rng = random.Random(kind)
    for number in range(120):
        data = bytearray(gzip.decompress(WHOLE[kind]) if kind == "tar" and number % 2 else WHOLE[kind])
        for _ in range(rng.choice((1, 1, 2, 8))):
            place = (
                rng.randrange(len(data))
                if rng.random() < 0.4
                else rng.choice((0, len(data) - 200)) + rng.randrange(150)
            )
            how = rng.randrange(4)
            if how == 0:
                data[place] = rng.randrange(256)
            elif how == 1:
                data[place : place + rng.choice((1, 4, 200))] = b""
            elif how == 2:
                data[place : place + 4] = rng.choice((b"\0" * 4, b"\xff" * 4, rng.randbytes(4)))
            else:
                data[place:place] = data[place : place + rng.choice((1, 30, 500))]
        content = gzip.compress(bytes(data)) if kind == "tar" and number % 2 else bytes(data)
        home = tmp_path / str(number)
        home.mkdir()
        part = home / ("some.tar.gzaa" if kind == "tar" else "01.zip")
        part.write_bytes(content)
        archive = layouts.Archive("some", (part.name,), "content", None)
        try:
            download.unpack([part], archive, home)
        except UserError as error:
            assert len(str(error)) < 600 and part.name in str(error), error
            assert list((home / "content").iterdir()) == []
        else:
            assert download.mark_of(home, archive).exists()


def test_sizes_are_compared_where_the_server_tells_them(server, tmp_path, progress):
    """A file without a checksum from an earlier run that is shorter than the server's is downloaded again."""
    server.files["a.bin"] = CONTENT
    (tmp_path / "a.bin").write_bytes(CONTENT[:1000])
    size = download.remote_size(f"{server.base}/a.bin")
    download.fetch(f"{server.base}/a.bin", tmp_path / "a.bin", None, progress, size)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    with pytest.raises(UserError, match="has 300000 bytes, the server says 5"):
        download.fetch(f"{server.base}/a.bin", tmp_path / "b.bin", None, progress, 5)
    assert not (tmp_path / "b.bin").exists()


HOSTILE_ANSWERS = [
    b"",
    b"\0\xff" * 500,
    b"HTTP/1.1\r\n\r\n",
    b"HTTP/1.1 999999 x\r\n\r\n",
    b"HTTP/1.1 -5 x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nx",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1e5\r\n\r\nx",
    b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nx",
    "HTTP/1.1 200 OK\r\nContent-Length: \u0663\r\n\r\nx".encode(),
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nx",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nx",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 70000,
    b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n",
    b"HTTP/1.1 200 OK\r\nx: " + b"a" * 70000 + b"\r\n\r\n",
    b"HTTP/1.1 206 x\r\nContent-Range: bytes " + b"9" * 5000 + b"-5/9\r\nContent-Length: 1\r\n\r\nx",
    b"HTTP/1.1 416 x\r\nContent-Range: bytes */" + b"9" * 5000 + b"\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 302 x\r\nLocation: file:///etc/passwd\r\n\r\n",
    b"HTTP/1.1 302 x\r\nLocation: ftp://127.0.0.1:1/x\r\n\r\n",
    b"HTTP/1.1 302 x\r\nLocation: http://[::1\r\n\r\n",
    b"HTTP/1.1 302 x\r\nLocation: http://127.0.0.1:999999/\r\n\r\n",
    b"HTTP/1.1 302 x\r\nLocation: http://\xff\xfe..../\r\n\r\n",
    b"HTTP/1.1 302 x\r\nLocation: /%00\x01 x\r\n\r\n",
    b"HTTP/1.1 302 x\r\nLocation: http:\r\n\r\n",
    b"HTTP/1.1 401 x\r\nWWW-Authenticate: x\r\n\r\n",
    b"HTTP/1.1 101 x\r\n\r\n",
]


@pytest.mark.parametrize("answer", HOSTILE_ANSWERS, ids=range(len(HOSTILE_ANSWERS)))
@pytest.mark.parametrize("method", ["HEAD", "GET", "list"])
def test_hostile_answers_are_one_line(tmp_path, progress, answer, method, monkeypatch):
    """Refused with one line, or taken for what it may be; never a traceback."""
    monkeypatch.setattr(download, "TIMEOUT_S", 2)
    (tmp_path / "a.part").write_bytes(b"begun")
    with answering(answer) as url:
        calls = {
            "HEAD": lambda: download.remote_size(url),
            "GET": lambda: download.fetch(url, tmp_path / "a", MD5, progress),
            "list": lambda: download.read_checksums(download.fetch_text(url)),
        }
        try:
            calls[method]()
        except UserError as error:
            assert len(str(error)) < 600, error
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("told", [40, 34])
def test_a_list_that_is_cut_short_is_not_taken_for_a_shorter_one(told, monkeypatch):
    """It would leave out the last parts of an archive."""
    monkeypatch.setattr(download, "WAIT_S", 0)
    line = b"a " + MD5.encode()
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (told, line)) as url:
        if told == len(line):
            assert download.read_checksums(download.fetch_text(url)) == {"a": MD5}
        else:
            with pytest.raises(UserError, match="34 of 40 bytes"):
                download.fetch_text(url)


def test_a_long_line_of_blanks_takes_no_time():
    """Linear in its length: a pattern that tries every split would take hours."""
    with pytest.raises(UserError, match="line 1"):
        download.read_checksums("a" + " \t" * 2_000_000 + "b")


# ---- the layouts and the commands ----


def test_parts_of_the_ten_captures():
    """The published numbers of parts; the suffix goes on after az with ba."""
    totals = {
        name: sum(len(layouts.capture_archive(capture, name).parts) for capture in layouts.CAPTURES)
        for name in layouts.CAPTURE_ARCHIVES
    }
    assert totals == {
        "mugsy_per_frame": 196,
        "mugsy_per_segment": 278,
        "ego_per_frame": 111,
        "ego_per_segment": 108,
        "orig_fits": 28,
        "mano_fits": 10,
        "keypoints_orig": 10,
    }
    assert len(set(layouts.CAPTURES)) == 10 and len(layouts.TRAIN_CAPTURES) == 7
    parts = layouts.capture_archive(layouts.CAPTURES[2], "mugsy_per_frame").parts
    assert len(parts) == 33
    assert [part[-2:] for part in parts[25:28]] == ["az", "ba", "bb"]
    assert parts[0] == f"{layouts.CAPTURES[2]}/Mugsy_cameras/envmap_per_frame.tar.gzaa"
    assert len(layouts.capture_archive(RNS217, "mugsy_per_segment").parts) == 19


def test_published_test_list_has_its_length():
    assert len(set(layouts.TEST_ID_RANGE) - layouts.TEST_IDS_LEFT_OUT) == 121_573


def test_choice_of_captures():
    groups = {"all": layouts.CAPTURES, "test": layouts.TEST_CAPTURES}
    assert download.choose("test", groups, "--captures") == list(layouts.TEST_CAPTURES)
    assert download.choose("TXB805, RNS217", groups, "--captures") == [RNS217, layouts.CAPTURES[7]]
    for wrong, message in (("XYZ", "is none of them"), ("m--2022", "fits several"), (" ,", "names nothing")):
        with pytest.raises(UserError, match=message):
            download.choose(wrong, groups, "--captures")


def run(script: str, *args: str) -> subprocess.CompletedProcess:
    """As a user does it: in the dataset's folder."""
    command = [sys.executable, "download.py", *map(str, args)]
    return subprocess.run(command, cwd=ROOT / "data" / script, capture_output=True, text=True, timeout=60)


def serve_capture(server: Server, split_into: int = 2) -> None:
    """One capture's keypoints and MANO fits, in two parts and one."""
    archives = {
        "orig_fits/orig_fits.tar.gz": tar_bytes({"orig_fits/right/Keypoints/keypoint-000012.json": CONTENT}),
        "mano_fits/mano_fits.tar.gz": tar_bytes({"params/12_right.json": b"{}"}),
    }
    files = {name: name.encode() for name in layouts.CAPTURE_FILES}
    for (name, data), count in zip(archives.items(), (split_into, 1), strict=True):
        files |= {
            f"{name}{suffix}": part
            for suffix, part in zip(layouts.part_suffixes(count), split(data, count), strict=True)
        }
    files["CHECKSUM"] = "".join(f"{name} {hashlib.md5(data).hexdigest()}\n" for name, data in files.items()).encode()
    server.files |= {f"{RNS217}/{name}": data for name, data in files.items()}


def test_reinterhand_command(server, tmp_path):
    """Downloads, unpacks, tidies up, and finds nothing left to do the second time."""
    serve_capture(server)
    arguments = ("--captures", "RNS217", "--parts", "orig_fits,mano_fits", "--base", server.base, "--out", tmp_path)
    result = run("ReInterHand", *arguments)
    assert result.returncode == 0, result.stderr
    assert "CC BY-NC 4.0" in result.stdout and "https://mks0601.github.io/ReInterHand/" in result.stdout
    capture = tmp_path / RNS217
    assert (capture / "orig_fits/right/Keypoints/keypoint-000012.json").read_bytes() == CONTENT
    assert (capture / "mano_fits/params/12_right.json").read_bytes() == b"{}"
    assert (capture / "Mugsy_cameras/cam_params.json").exists()
    assert not list(tmp_path.rglob("*.tar.gz*"))
    gets = Counter(server.gets)
    again = run("ReInterHand", *arguments)
    assert again.returncode == 0 and "nothing to do" in again.stdout
    assert server.gets - gets == Counter({f"{RNS217}/CHECKSUM": 1})


def test_publishers_list_decides_on_the_number_of_parts(server, tmp_path):
    """Three parts are listed where two were known: with two, the archive would be cut short."""
    serve_capture(server, split_into=3)
    result = run(
        "ReInterHand", "--captures", RNS217, "--parts", "orig_fits", "--base", server.base, "--out", tmp_path, "--keep"
    )
    assert result.returncode == 0, result.stderr
    assert "has 3 parts by the publisher's list, not 2" in result.stdout
    assert len(list((tmp_path / RNS217 / "orig_fits").glob("orig_fits.tar.gz*"))) == 3


def test_reinterhand_command_asks_for_a_choice():
    result = run("ReInterHand")
    assert result.returncode == 2 and "RNS217" in result.stdout and "--captures" in result.stderr


def test_hic_command(server, tmp_path):
    def zipped(members: dict[str, str]) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            for name, content in members.items():
                file.writestr(name, content)
        return buffer.getvalue()

    server.files = {
        "Hand_Hand___All_Files/01.zip": zipped({"01/1/rgb/000.png": "image"}),
        "Hand_Object___All_Files/15.zip": zipped({"1/rgb/000.png": "image"}),
        f"MANO_compatible/{layouts.HIC_FITS}.zip": zipped({f"{layouts.HIC_FITS}/x/000.ply": "ply"}),
    }
    result = run("HIC", "--sequences", "01,15", "--base", server.base, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.p*") if path.is_file()}
    assert found == {"01/1/rgb/000.png", "15/1/rgb/000.png", f"{layouts.HIC_FITS}/x/000.ply"}
    assert "HIC.json is not there" in result.stdout

    toy = tmp_path / "toy"
    toy.mkdir()
    (toy / layouts.TOY_MARK).touch()
    refused = run("HIC", "--base", server.base, "--out", toy / "data")
    assert refused.returncode == 2 and "holds toy data" in refused.stderr

    missing = run("HIC", "--sequences", "02", "--base", server.base, "--out", tmp_path)
    assert missing.returncode == 2 and "Hand_Hand___All_Files/02.zip (404)" in missing.stderr
    assert "Traceback" not in missing.stderr
