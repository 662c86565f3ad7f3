"""What each dataset consists of: its files, where they belong and where they come from. Plain data, in one place.

Paths are relative to the dataset's own folder, data/{name}.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

# A file of this name in a dataset's folder says that the data in it are made up.
TOY_MARK = "TOY_DATA.txt"


@dataclass(frozen=True)
class DatasetInfo:
    """Attributes:
    splits: the ones this project reads.
    homepage: where to read about it and where its terms are.
    licence: in a few words; the homepage decides.
    how_to_get: one line, from nothing to the right place.
    """

    splits: tuple[str, ...]
    homepage: str
    licence: str
    how_to_get: str


DATASETS: Mapping[str, DatasetInfo] = MappingProxyType(
    {
        "InterHand26M": DatasetInfo(
            ("train", "test"),
            "https://mks0601.github.io/InterHand2.6M/",
            "CC BY-NC 4.0 (no commercial use)",
            "get images (5 fps) and annotations from https://mks0601.github.io/InterHand2.6M/ and unpack them as "
            "data/InterHand26M/{images,annotations}/{train,test}",
        ),
        "MSCOCO": DatasetInfo(
            ("train", "val"),
            "https://github.com/jin-s13/COCO-WholeBody",
            "images: their Flickr licences; COCO-WholeBody annotations: no commercial use",
            "get train2017 and val2017 from https://cocodataset.org into data/MSCOCO/images, and the COCO-WholeBody "
            "v1.0 json files from https://github.com/jin-s13/COCO-WholeBody and MSCOCO_train_MANO_NeuralAnnot.json "
            "(https://drive.google.com/file/d/1OuWlMor5f0TZLVSsojz5Mh6Ut93WkcJc) into data/MSCOCO/annotations",
        ),
        "HIC": DatasetInfo(
            ("test",),
            "https://files.is.tue.mpg.de/dtzionas/Hand-Object-Capture/",
            "research use (the homepage has the terms); the MANO fits are under MANO's licence",
            "run `python data/HIC/download.py`, and put HIC.json "
            "(https://drive.google.com/file/d/1oqquzJ7DY728M8zQoCYvvuZEBh8L8zkQ) into data/HIC/data",
        ),
        "ReInterHand": DatasetInfo(
            ("train", "test"),
            "https://mks0601.github.io/ReInterHand/",
            "CC BY-NC 4.0 (no commercial use)",
            "run `python data/ReInterHand/download.py` (it lists what there is to choose from)",
        ),
    }
)


@dataclass(frozen=True)
class Archive:
    """A tar.gz (in parts) or a zip, and where its content belongs.

    Attributes:
        name: what a user calls it.
        parts: paths below the base address, joined in this order; also where they are kept while in use, below the
            dataset's `data` folder.
        target: folder below `data` that receives the content.
        landmark: a folder that lies in `target` afterwards, whatever folders the archive wraps around it; None:
            the content goes into `target` as it is.
    """

    name: str
    parts: tuple[str, ...]
    target: str
    landmark: str | None


# ---- InterHand26M ----

INTERHAND_JSONS = tuple(
    f"annotations/{{split}}/InterHand2.6M_{{split}}_{kind}.json"
    for kind in ("data", "camera", "joint_3d", "MANO_NeuralAnnot")
)
INTERHAND_IMAGES = "images/{split}"
INTERHAND_TEST_IDS = "aid_human_annot_test.txt"
INTERHAND_TRAIN_COUNT = 1_360_000  # annotations, about

# The published human-annotated test list: a range without a few. 121,573 ids.
TEST_ID_RANGE = range(727633, 849224)
TEST_IDS_LEFT_OUT = frozenset(
    (750515, 757698, 771854, 797024, 797114, 797260, 805641, 805658, 805778)
    + (809791, 809941, 811415, 811702, 811990, 829211, 833242, 841723, 845872)
)

# ---- MSCOCO ----

COCO_JSON = "annotations/coco_wholebody_{split}_v1.0.json"
COCO_MANO = "annotations/MSCOCO_train_MANO_NeuralAnnot.json"
COCO_IMAGES = "images/{split}2017"
COCO_IMAGE_COUNTS = MappingProxyType({"train": 118_287, "val": 5_000})
COCO_DOWNLOADS = MappingProxyType(
    {
        "train": "http://images.cocodataset.org/zips/train2017.zip",
        "val": "http://images.cocodataset.org/zips/val2017.zip",
    }
)

# ---- HIC ----

HIC_BASE = "https://files.is.tue.mpg.de/dtzionas/Hand-Object-Capture/Dataset"
HIC_JSON = "data/HIC.json"
HIC_JSON_FROM = "Get it from https://drive.google.com/file/d/1oqquzJ7DY728M8zQoCYvvuZEBh8L8zkQ."
HIC_HAND_SEQUENCES = tuple(f"{number:02d}" for number in range(1, 12))
HIC_OBJECT_SEQUENCES = tuple(f"{number:02d}" for number in range(15, 22))
HIC_SEQUENCES = HIC_HAND_SEQUENCES + HIC_OBJECT_SEQUENCES
HIC_FITS = "IJCV16___Results_MANO___parms_for___joints21"


def hic_archive(sequence: str) -> Archive:
    """The archive of one sequence, or of the MANO fits of all (`sequence` "mano")."""
    if sequence == "mano":
        return Archive("mano", (f"MANO_compatible/{HIC_FITS}.zip",), ".", None)
    group = "Hand_Hand" if sequence in HIC_HAND_SEQUENCES else "Hand_Object"
    return Archive(sequence, (f"{group}___All_Files/{sequence}.zip",), sequence, "1")


# ---- ReInterHand ----

REINTERHAND_BASE = "https://fb-baas-f32eacb9-8abb-11eb-b2b8-4857dd089e15.s3.amazonaws.com/ReInterHand"
CHECKSUMS = "CHECKSUM"
# Files of a capture that are not archives.
CAPTURE_FILES = ("frame_list.txt", "frame_list_orig.txt", "Mugsy_cameras/cam_params.json")

# Archive of a capture -> number of parts, in the order of `CAPTURES`.
_PARTS = {
    "mugsy_per_frame": (26, 17, 33, 14, 14, 14, 15, 22, 21, 20),
    "mugsy_per_segment": (38, 22, 45, 20, 20, 19, 21, 33, 30, 30),
    "ego_per_frame": (14, 10, 18, 8, 8, 8, 9, 12, 12, 12),
    "ego_per_segment": (14, 9, 18, 8, 8, 8, 9, 12, 11, 11),
    "orig_fits": (4, 2, 5, 2, 2, 2, 2, 3, 3, 3),
    "mano_fits": (1,) * 10,
    "keypoints_orig": (1,) * 10,
}
CAPTURES = (
    "m--20210701--1058--0000000--pilot--relightablehandsy--participant0--two-hands",
    "m--20220628--1327--BKS383--pilot--ProjectGoliath--ContinuousHandsy--two-hands",
    "m--20221007--1215--HIR112--pilot--ProjectGoliathScript--Hands--two-hands",
    "m--20221110--1033--TQH976--pilot--ProjectGoliathScript--Hands--two-hands",
    "m--20221111--0944--JFQ550--pilot--ProjectGoliathScript--Hands--two-hands",
    "m--20221215--0949--RNS217--pilot--ProjectGoliathScript--Hands--two-hands",
    "m--20221216--0953--NKC880--pilot--ProjectGoliathScript--Hands--two-hands",
    "m--20230313--1433--TXB805--pilot--ProjectGoliath--Hands--two-hands",
    "m--20230317--1130--QZX685--pilot--ProjectGoliath--Hands--two-hands",
    "m--20230317--1433--TRO760--pilot--ProjectGoliath--Hands--two-hands",
)
TEST_CAPTURES = (CAPTURES[5], CAPTURES[6], CAPTURES[8])
TRAIN_CAPTURES = tuple(capture for capture in CAPTURES if capture not in TEST_CAPTURES)

# Archive -> its path in a capture without the ending, folder of the content, landmark in it (see `Archive`).
_PLACES = {
    "mugsy_per_frame": ("Mugsy_cameras/envmap_per_frame", "Mugsy_cameras/envmap_per_frame", "images"),
    "mugsy_per_segment": ("Mugsy_cameras/envmap_per_segment", "Mugsy_cameras/envmap_per_segment", "images"),
    "ego_per_frame": ("Ego_cameras/envmap_per_frame", "Ego_cameras/envmap_per_frame", "images"),
    "ego_per_segment": ("Ego_cameras/envmap_per_segment", "Ego_cameras/envmap_per_segment", "images"),
    "orig_fits": ("orig_fits/orig_fits", "orig_fits", "right"),
    "mano_fits": ("mano_fits/mano_fits", "mano_fits", "params"),
    "keypoints_orig": ("keypoints_orig/keypoints_orig", "keypoints_orig", "keypoints_orig"),
}
CAPTURE_ARCHIVES = tuple(_PARTS)
# What training and testing with the default settings read.
DEFAULT_ARCHIVES = ("mugsy_per_frame", "orig_fits", "mano_fits")
# Folder of images in a capture -> the archive it comes from.
IMAGE_MODES = MappingProxyType({place[1]: name for name, place in _PLACES.items() if "cameras" in place[1]})
DEFAULT_MODE = "Mugsy_cameras/envmap_per_frame"


def part_suffixes(count: int) -> list[str]:
    """`count` endings as the `split` command gives them: aa, ab, ..., az, ba, ..."""
    return [chr(97 + index // 26) + chr(97 + index % 26) for index in range(count)]


def capture_archive(capture: str, name: str) -> Archive:
    """An archive of a capture; `name` is one of `CAPTURE_ARCHIVES`."""
    path, target, landmark = _PLACES[name]
    count = _PARTS[name][CAPTURES.index(capture)]
    parts = tuple(f"{capture}/{path}.tar.gz{suffix}" for suffix in part_suffixes(count))
    return Archive(name, parts, f"{capture}/{target}", landmark)


def is_test_capture(name: str) -> bool:
    """Whether a capture belongs to the test split; every other one is for training."""
    return name in TEST_CAPTURES
