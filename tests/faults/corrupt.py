"""Valid files, corrupted on purpose: what the fault campaign and the tests feed to everything that reads files.

Every random choice comes from the `random.Random` given, so that a seed identifies a corrupted file.
"""

import copy
import gzip
import io
import json
import random
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

NAN, INFINITY = float("nan"), float("inf")
# Values to put where anything else belongs.
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 0.5, -0.0, 1e-320, 1e38, 1e300, -1e300),
    *(10**7, 2**31, 2**53, 2**63, 10**30, -(10**30)),
    *(NAN, INFINITY, -INFINITY, "", "0", "12", "nan", "ü/\u202e\U0001f590", "../../../etc/passwd", "/dev/zero", "a\nb"),
    *("nul\0.jpg", "\x1b[31mred", "x" * 5000, [], [[]], {}, [1], [None], {"": None}, {"right": {}}, [[0] * 3] * 3),
)


def mutate_json(content: Any, rng: random.Random) -> bytes:
    """A JSON document with one to three faults in its values, or one in its text."""
    if rng.random() < 0.2:
        return rng.choice(TEXT_FAULTS)(json.dumps(content).encode(), rng)
    holder = [copy.deepcopy(content)]
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        mutate_value(holder, rng)
    return json.dumps(holder[0]).encode()


def mutate_value(holder: list[Any], rng: random.Random) -> None:
    """Change one value somewhere below `holder[0]`."""
    place: Any = holder
    key: Any = 0
    while isinstance(place[key], list | dict) and place[key] and rng.random() < 0.9:
        place = place[key]
        # Lists repeat themselves: their first and last entries stand for all.
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.choice([0, len(place) - 1, len(place) // 2])
    value = place[key]
    fault = rng.choice(["odd", "odd", "odd", "remove", "repeat", "rename", "scale", "swap"])
    if fault == "remove" and place is not holder:
        del place[key]
    elif fault == "repeat" and isinstance(place, list) and place is not holder:
        place.insert(key, copy.deepcopy(value))
    elif fault == "rename" and isinstance(place, dict):
        place[rng.choice(["", "x", "-1", "99999999999999999999", "ü", f"{key} ", "1e3"])] = place.pop(key)
    elif fault == "scale" and isinstance(value, int | float) and not isinstance(value, bool):
        place[key] = value * rng.choice([-1, 0, 1000, 1e-9, 1e30, 10**12])
    elif fault == "swap" and isinstance(place, list):
        place.reverse()
    else:
        place[key] = copy.deepcopy(rng.choice(ODD_VALUES))


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))] if data else data


def _flip(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _drop(data: bytes, rng: random.Random) -> bytes:
    """A stretch missing from the middle."""
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.choice([1, 16, 512]) :]


TEXT_FAULTS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _cut,
    _flip,
    _drop,
    lambda data, rng: b"",
    lambda data, rng: b"\xef\xbb\xbf" + data,
    lambda data, rng: data.decode().encode("utf-16"),
    lambda data, rng: gzip.compress(data, mtime=0),
    lambda data, rng: b"[" * 200_000,
    lambda data, rng: b'{"images": ' + b"[" * 50_000 + b"]" * 50_000 + b', "annotations": []}',
    lambda data, rng: data + data,
    lambda data, rng: data.replace(b'"', b"'"),
    lambda data, rng: data.replace(b": 0", b": 00"),
    lambda data, rng: data.replace(b".", b".\xff", 1),
    lambda data, rng: data.replace(b"[", b'["\\ud800", ', 1),
    lambda data, rng: data.replace(b"1", b"1e999", 1),
    lambda data, rng: data.replace(b"1", b"1" * 5000, 1),
)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """A binary file truncated, with bytes changed or missing, or of another kind altogether."""
    return rng.choice([_cut, _flip, _flip, _flip, _drop, lambda *_: b"", lambda *_: b"<html>404</html>"])(data, rng)


# ---- Images ----


def make_images() -> dict[str, bytes]:
    """Valid images of every kind users have, by file name; all are 30 x 40 pixels, or their first frame is."""
    rng = np.random.default_rng(0)
    rgb = np.kron(rng.integers(0, 256, (5, 4, 3)), np.ones((8, 8, 1)))[:40, :30].astype(np.uint8)
    image = Image.fromarray(rgb)
    deep = Image.fromarray(rgb[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees, which the published system ignores
    kinds: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "plain.jpg": (image, {}),
        "progressive.jpg": (image, {"progressive": True}),
        "cmyk.jpg": (image.convert("CMYK"), {}),
        "grey.jpg": (image.convert("L"), {}),
        "turned.jpg": (image, {"exif": exif}),
        "plain.png": (image, {}),
        "alpha.png": (image.convert("RGBA"), {}),
        "grey_alpha.png": (image.convert("LA"), {}),
        "palette.png": (image.convert("P"), {}),
        "bits.png": (image.convert("1"), {}),
        "deep.png": (deep, {}),
        "plain.bmp": (image, {}),
        "plain.webp": (image, {"lossless": True}),
        "plain.tiff": (image, {}),
        "deep.tiff": (deep, {}),
        "moving.gif": (image, {"save_all": True, "append_images": [image.rotate(180)]}),
        "moving.png": (image, {"save_all": True, "append_images": [image.rotate(180)]}),
        "moving.webp": (image, {"save_all": True, "append_images": [image.rotate(180)]}),
        "plain.ppm": (image, {}),
    }
    found = {}
    for name, (kind, options) in kinds.items():
        data = io.BytesIO()
        kind.save(data, {"jpg": "jpeg"}.get(name.split(".")[1], name.split(".")[1]), **options)
        found[name] = data.getvalue()
    return found


def claim_size(png: bytes, width: int, height: int) -> bytes:
    """A PNG whose header claims another size than its pixels have."""
    head = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + png[24:29]
    return png[:12] + head + zlib.crc32(head).to_bytes(4, "big") + png[33:]


# ---- Checkpoints ----


def mutate_checkpoint(content: dict[str, Any], rng: random.Random) -> tuple[str, dict[str, Any]]:
    """The name of a fault, and a checkpoint's content with it. The tensors are shared with `content`."""
    name = rng.choice(list(CHECKPOINT_FAULTS))
    changed = {**content, "network": dict(content["network"])}
    CHECKPOINT_FAULTS[name](changed, rng)
    return name, changed


def _network(change: Callable[[Any, random.Random], Any]) -> Callable[[dict, random.Random], None]:
    """A fault of one tensor of the network."""

    def fault(content: dict[str, Any], rng: random.Random) -> None:
        floating = [key for key, value in content["network"].items() if value.is_floating_point()]
        key = rng.choice(sorted(floating))
        content["network"][key] = change(content["network"][key], rng)

    return fault


def _entry(*path: str, values: tuple[Any, ...] = ODD_VALUES) -> Callable[[dict, random.Random], None]:
    """An odd value at a place of the content."""

    def fault(content: dict[str, Any], rng: random.Random) -> None:
        place = content
        for key in path[:-1]:
            place[key] = copy.copy(place[key])
            place = place[key]
        place[path[-1]] = copy.deepcopy(rng.choice(values))

    return fault


def _config_value(content: dict[str, Any], rng: random.Random) -> None:
    content["config"] = copy.deepcopy(content["config"])
    place = content["config"]
    if rng.random() < 0.5:
        place = place[rng.choice(["frames", "augmentation"])]
    place[rng.choice(list(place))] = copy.deepcopy(rng.choice([*ODD_VALUES, (0, 0), (1, 1), (-32, 64), [10**9, 10**9]]))


def _rename(content: dict[str, Any], rng: random.Random) -> None:
    network = content["network"]
    key = rng.choice(sorted(network))
    network[rng.choice([f"module.module.{key}", key.upper(), "", 5, ("a", 1)])] = network.pop(key)


def _twice(content: dict[str, Any], rng: random.Random) -> None:
    """One name with and without `module.`."""
    key = rng.choice(sorted(content["network"]))
    content["network"][key.removeprefix("module.")] = content["network"][key] + 1


def _lose(content: dict[str, Any], rng: random.Random) -> None:
    unused = ("trans_net.backbone.conv1", "trans_net.backbone.bn1")
    used = [key for key in content["network"] if not any(part in key for part in unused)]
    del content["network"][rng.choice(sorted(used))]


def _tensor_of(kind: str) -> Callable[[Any, random.Random], Any]:
    """A tensor of the right shape, if possible, and the wrong kind."""
    kinds = {
        "complex": lambda x: x.to(torch.complex64),
        "half": lambda x: x.half(),
        "double": lambda x: x.double(),
        "bool": lambda x: x > 0,
        "int": lambda x: x.long(),
        "sparse": lambda x: x.to_sparse(),
        "meta": lambda x: x.to("meta"),
        "nan": lambda x: torch.full_like(x, NAN),
        "infinite": lambda x: torch.full_like(x, INFINITY),
        "expanded": lambda x: torch.zeros(1).expand(x.shape),
        "huge": lambda x: torch.zeros(1).expand(10**6, 10**6),
        "empty": lambda x: x[:0],
        "scalar": lambda x: torch.zeros(()),
        "transposed": lambda x: x[None].transpose(0, -1),
        "parameter": lambda x: torch.nn.Parameter(x.clone()),
        "number": lambda x: 3,
        "text": lambda x: "weights",
    }
    return lambda value, rng: kinds[kind](value)


# Faults that leave a checkpoint usable: another floating type of the same numbers, or numbers that are not finite,
# which those who use the network notice.
HARMLESS_FAULTS = ("half", "double", "expanded", "parameter", "nan", "infinite", "epoch", "optimizer")
_KINDS = "complex half double bool int sparse meta nan infinite expanded huge empty scalar transposed"
CHECKPOINT_FAULTS: dict[str, Callable[[dict, random.Random], None]] = {
    **{
        kind: _network(lambda value, rng, kind=kind: _tensor_of(kind)(value, rng))
        for kind in (*_KINDS.split(), "parameter")
    },
    **{kind: _network(lambda value, rng, kind=kind: _tensor_of(kind)(value, rng)) for kind in ("number", "text")},
    "network": _entry("network"),
    "epoch": _entry("epoch"),
    "optimizer": _entry("optimizer"),
    "config": _entry("config"),
    "config value": _config_value,
    "renamed": _rename,
    "named twice": _twice,
    "lost": _lose,
}


def deflate(archive: bytes) -> bytes:
    """The same zip archive, compressed: torch never writes one, and it may unpack to any size."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return out.getvalue()


# ---- Pickles of a few hundred bytes that take centuries, or all memory ----


def _text(text: str) -> bytes:
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


_LARGE = b"\x8a\x06" + (10**12).to_bytes(6, "little")
_NESTED = b"K\x01" + b"q\x00h\x00\x86" * 108  # a pair of the pair before: 2^108 numbers, all hashed for a key
_MANY = (
    b"(](" + b"K\x01" * 10 + b"e" + b"q\x00](" + b"h\x00" * 10 + b"e" + (b"q\x00](" + b"h\x00" * 10 + b"e") * 20 + b"t"
)
_COLLIDING = b"".join(b"\x8a\x0a" + (k * (2**61 - 1)).to_bytes(10, "little") + b"K\x01" for k in range(60_000))


def _call(name: str, *arguments: bytes) -> bytes:
    """A function called with one list."""
    return b"c" + name.encode() + b"\n](" + b"".join(arguments) + b"e\x85R"


def _csc(shape: bytes, starts: bytes) -> bytes:
    fields = {"_shape": shape, "data": b"]", "indices": b"]", "indptr": starts}
    state = b"}(" + b"".join(_text(key) + value for key, value in fields.items()) + b"u"
    return b"cscipy.sparse.csc\ncsc_matrix\n)\x81" + state + b"b"


# Opcodes that leave one value.
PICKLE_BOMBS: dict[str, bytes] = {
    "nested key": b"}" + _NESTED + b"K\x01s",
    "nested keys": b"}(" + _NESTED + b"K\x01u",
    "nested key of a dictionary": b"(" + _NESTED + b"K\x01d",
    "nested element of a set": _call("__builtin__\nset", _NESTED),
    "nested element of a new set": b"\x8f(" + _NESTED + b"\x90",
    "nested element of a frozen set": b"(" + _NESTED + b"\x91",
    "nested element of a counter": _call("collections\nCounter", _NESTED),
    "nested pair of an ordered dictionary": _call("collections\nOrderedDict", _NESTED + b"K\x01\x86"),
    "nested pairs": _NESTED,
    "shared lists": _MANY,
    "list in itself": b"]q\x00h\x00a",
    "dictionary in itself": b"}q\x00" + _text("a") + b"h\x00s",
    "colliding keys": b"}(" + _COLLIDING + b"u",
    "colliding elements": _call("__builtin__\nset", b"".join(_COLLIDING[i : i + 12] for i in range(0, 840_000, 14))),
    "deep lists": b"]" * 100_000 + b"a" * 99_999,
    "deep pairs": b"K\x01" + b"\x85" * 200_000,
    "number of many digits": b"\x8b" + (400_000).to_bytes(4, "little") + b"\x7f" * 400_000,
    "array of bytes": b"cbuiltins\nbytearray\n" + _LARGE + b"\x85R",
    "new array of bytes": b"\x96" + (10**12).to_bytes(8, "little"),
    "long text": b"\x8d" + (10**12).to_bytes(8, "little"),
    "remembered as number 2 billion": b"}r\xff\xff\xff\x7f0K\x01",
    "name of a megabyte": b"c" + b"x" * 1_000_000 + b"\ny\n",
    "sparse matrix of many rows": _csc(_LARGE + b"K\x01\x86", b"](K\x00K\x00e"),
    "sparse matrix of many entries": _csc(
        b"K\x02K\x01\x86", b"](K\x00\x8a\x06" + (10**12).to_bytes(6, "little") + b"e"
    ),
}


def bomb_pickle(value: bytes, key: str = "v_template") -> bytes:
    """A pickle of {key: value}."""
    return b"\x80\x02}" + _text(key) + value + b"s."


def make_archives() -> dict[str, bytes]:
    """Valid archives of every kind that downloads have."""
    files = {"images/1.png": random.Random(0).randbytes(3000), "images/a/2.png": b"0" * 5000, "notes.txt": b"text"}
    tarred = io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w:gz") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    found = {"tar": tarred.getvalue()}
    for kind in ("stored", "deflated", "bzip2", "lzma"):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", getattr(zipfile, f"ZIP_{kind.upper()}")) as archive:
            for name, data in files.items():
                archive.writestr(zipfile.ZipInfo(name), data, archive.compression)
        found[kind] = out.getvalue()
    return found


def replace_content(archive: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A checkpoint whose pickle is another one; its storages and checksums are right."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(old.read(name)) if name.endswith("data.pkl") else old.read(name))
    return out.getvalue()


# ---- Command lines ----

ODD_WORDS = (
    *("", " ", "-1", "0", "3-1", "0,0", "0-9999", "1e400", "nan", "inf", "-inf", "1e-400", "10" * 20, "0x10", "None"),
    *("ü", "a\nb", "a=b", "=", ",", ",,", "../..", "/dev/null", "nonexistent/x", "{}", "[1", "*", "[", "true"),
)


def mutate_arguments(arguments: list[str], options: list[str], rng: random.Random) -> list[str]:
    """A valid command line with some words changed, added or removed; `options` may be added."""
    words = list(arguments)
    for _ in range(rng.choice([1, 1, 2, 3])):
        fault = rng.choice(["value", "value", "value", "add", "add", "unknown", "remove"])
        if fault == "value" and words:
            words[rng.randrange(len(words))] = rng.choice(ODD_WORDS)
        elif fault == "remove" and words:
            del words[rng.randrange(len(words))]
        elif fault == "unknown":
            words.insert(rng.randrange(len(words) + 1), rng.choice(["--nonsense", "-z", "--", "--gpus=all", "--lrr"]))
        else:
            words += [rng.choice(options), rng.choice(ODD_WORDS)]
    return words
