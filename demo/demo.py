"""Recover both hands in 3D from photos and videos.

    python demo.py --gpu 0                             # photos in images, checkpoint snapshot_6.pth, beside this script
    python demo.py --gpu cpu --input a.jpg 'more/*.png'
    python demo.py --hand auto --min_confidence 0.3    # leave out a hand that is not in the photo
    python demo.py --focal 1500 --princpt 960 540      # the photos' real camera: hands in metric camera space
    python demo.py --people auto                       # photos with several people: each one's hands
    python demo.py --input clip.mp4                    # people are found and followed, their hands smoothed over time
    python demo.py --camera 0 --show                   # a camera, shown in a browser

Written for each photo NAME, beside this script or under --output:

    boxes/NAME.json                        hand boxes, pixels of the photo, and their confidence
    meshes/NAME_right.obj, NAME_left.obj   placed meshes, metres, camera axes (x right, y down, z away); .ply too
    meshes/NAME.glb                        both hands in one scene, for viewers (y up)
    params/NAME_right.json, NAME_left.json MANO parameters
    renders/NAME_box.jpg, NAME_skeleton.jpg, NAME_mesh.jpg, NAME_side.jpg (the meshes from another side)
    renders/NAME.html                      with --html: the 3D result, to turn in a browser
    results/NAME.json                      everything as data: joints in 3D and 2D, cameras, confidences
    sheet.jpg                              with --sheet: all photos (at most 40) on one contact sheet

With several people in a photo: NAME_person1_right.obj and so on. Images, NAME.glb, boxes and results hold all people.

Written for each video NAME, and for a camera with NAME camera0:

    NAME/overlay.mp4                       the video with the hands drawn over it, its time stamps and sound kept
    NAME/hands.npz                         a table, one row a hand and frame: joints, MANO parameters, cameras
    NAME/frames                            with --frames_every: files of single frames as those of photos
    NAME/summary.json                      people, shares of frames seen and bridged, jitter before and after, times

NAME is the file's name without its suffix. Photos that would share it get their folders' names or their suffix, too.

Without --people auto, a photo should show one person, roughly cropped. A photo or video that cannot be read is skipped
and named; the exit code is then 2.
"""

import argparse
import glob
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.errors import UserError, one_line, run_main
from common.options import (
    CHECKPOINT,
    CHECKPOINT_URL,
    DEMO_FOLDER,
    GPU_HELP,
    HAND_MODES,
    IMAGE_SUFFIXES,
    MANO_FOLDER,
    MANO_HELP,
    MESH_FORMATS,
    RENDERERS,
    ROOT,
    SHA256_HELP,
    UNTRAINED,
    VIDEO_SUFFIXES,
    Parser,
    fraction,
    sha256,
    shown,
    within,
)

HEIC_SUFFIXES = frozenset((".heic", ".heif", ".hif"))  # read with pillow-heif, else each is a photo that failed
MAX_NUMBER = 1e6  # of pixels, seconds or Hz
# Types of options.
finite, positive = within(float, -MAX_NUMBER, MAX_NUMBER), within(float, 1 / MAX_NUMBER, MAX_NUMBER)
not_negative, small_count = within(float, 0, MAX_NUMBER), within(int, 1, 4096)


def main() -> None:
    args = parse_args()
    missing = list_missing(args)
    if not any(step.startswith("photos: ") for step in missing):
        find_images(args.input)  # a wrong --input is a mistake, and told first
    if len(missing) == 1 and (args.checkpoint, args.mano) == (CHECKPOINT, MANO_FOLDER):  # else a path is mistyped
        raise UserError(f"the demo needs {missing[0]}")
    if len(missing) > 1:
        steps = "\n".join(f"  {number}. {step}" for number, step in enumerate(missing, 1))
        in_checkout = (ROOT / "pyproject.toml").is_file()
        where = f" (run its commands in {ROOT})" if in_checkout and Path.cwd() != ROOT else ""
        print(f"The demo needs, in this order{where}:\n{steps}", file=sys.stderr)
        raise UserError(f"{len(missing)} things are missing; see above")
    names = name_outputs(find_images(args.input), several=args.people == "auto" or args.boxes is not None)
    for file in find_other_files(args.input):
        print(one_line(f"not a photo or video, skipped: {file}"), file=sys.stderr)

    from demo.run import run  # imports torch, which takes seconds: --help and mistakes are answered before

    run(args, names)


def list_missing(args: argparse.Namespace) -> list[str]:
    """What to do, step by step, about files that the demo needs and that are not there."""
    photos = DEMO_FOLDER / "images"
    steps = []
    if not any((folder / "MANO_RIGHT.pkl").exists() for folder in (args.mano, args.mano / "mano")):
        steps.append(
            f"the hand model: MANO_RIGHT.pkl and MANO_LEFT.pkl from https://mano.is.tue.mpg.de into {args.mano}, or a "
            "generated hand: python tool/make_standin_hand.py"
        )
    if not args.checkpoint.exists():
        steps.append(
            f"a network: {CHECKPOINT_URL} as {args.checkpoint}, or an untrained one: "
            f"python tool/make_checkpoint.py --init random, and then here --checkpoint {UNTRAINED}"
        )
    if args.input == [str(photos)] and not (photos.is_dir() and any(map(_is_photo, _visible_files(photos)))):
        steps.append(f"photos: put them into {photos}, or name them with --input")
    return steps


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    files, processing, results = parser.standard_groups()
    files.add_argument(
        "--input",
        nargs="+",
        help="photos, videos, folders or patterns (default: images in this folder, or nothing with --camera)",
    )
    files.add_argument(
        "--checkpoint",
        type=Path,
        default=CHECKPOINT,
        help=f"the network, or an exported network.onnx (default: {shown(CHECKPOINT)})",
    )
    files.add_argument("--sha256", type=sha256, help=SHA256_HELP)
    files.add_argument("--mano", type=Path, default=MANO_FOLDER, help=MANO_HELP)
    files.add_argument("--output", type=Path, default=DEMO_FOLDER, help="folder for the results (default: this one)")
    processing.add_argument("--gpu", help=GPU_HELP.replace("all CUDA GPUs", "one CUDA GPU"))
    processing.add_argument(
        "--batch_size", type=small_count, default=16, help="photos per batch of the network (default: 16)"
    )
    processing.add_argument(
        "--hand",
        choices=HAND_MODES,
        default="both",
        help="hands to report; auto: drop the less confident one of two boxes that are nearly the same (default: both)",
    )
    processing.add_argument(
        "--min_confidence", type=fraction, default=0.0, help="leave out hands below this, 0 to 1 (default: 0)"
    )
    processing.add_argument(
        "--focal",
        type=positive,
        nargs="+",
        metavar="F",
        help="the photos' real focal length: f or fx fy, px (default: a virtual camera)",
    )
    processing.add_argument(
        "--princpt", type=finite, nargs=2, metavar=("CX", "CY"), help="real principal point, px (default: the centre)"
    )
    processing.add_argument(
        "--ignore_exif", action="store_true", help="leave photos as they are stored, not turned upright by EXIF"
    )
    results.add_argument("--html", action="store_true", help="also write a page to view each result in 3D")
    results.add_argument("--sheet", action="store_true", help="also put all photos and results on one contact sheet")
    results.add_argument(
        "--mesh_formats",
        nargs="+",
        choices=MESH_FORMATS,
        default=MESH_FORMATS,
        help="formats of the mesh files (default: all)",
    )
    results.add_argument("--renderer", choices=RENDERERS, default="auto", help="what draws the meshes (default: auto)")
    people = parser.add_argument_group("people")
    people.add_argument(
        "--people",
        choices=("one", "auto"),
        help="one: the whole photo or frame is one person; auto: people are detected (default: one for photos, auto "
        "for videos)",
    )
    people.add_argument(
        "--boxes",
        type=Path,
        metavar="FILE",
        help='the people instead: JSON {"photo.jpg": [[x1, y1, x2, y2], ...], ...}, px; of a video such a list '
        "for each frame",
    )
    people.add_argument(
        "--detector",
        default="fast",
        metavar="NAME",
        help="people detector: fast, accurate, or your own MODULE:FUNCTION (default: fast)",
    )
    people.add_argument(
        "--min_person", type=fraction, default=0.5, help="lowest score of a person, or to start a track (default: 0.5)"
    )
    people.add_argument(
        "--max_people",
        type=small_count,
        default=8,
        help="most people in a photo or frame; the largest are kept (default: 8)",
    )
    video = parser.add_argument_group("videos")
    video.add_argument(
        "--detect_every", type=not_negative, default=0.17, help="seconds between detections of people (default: 0.17)"
    )
    video.add_argument(
        "--smooth",
        type=not_negative,
        default=3.0,
        help="cut-off frequency of the smoothing, Hz; 0: frame by frame (default: 3)",
    )
    video.add_argument(
        "--draw",
        nargs="+",
        choices=("boxes", "skeleton", "mesh"),
        default=["mesh"],
        help="what overlay.mp4 shows; boxes: of people, with their ids, and of hands (default: mesh)",
    )
    video.add_argument(
        "--compare", action="store_true", help="overlay.mp4 also shows, on the left, the hands before smoothing"
    )
    video.add_argument(
        "--frames_every",
        type=not_negative,
        default=0.0,
        metavar="S",
        help="every S seconds, also write the files of a photo for that frame (default: never)",
    )
    camera = parser.add_argument_group("cameras")
    camera.add_argument(
        "--camera", metavar="ADDRESS", help="a camera's number, or the address of a stream, until Ctrl-C or its end"
    )
    camera.add_argument("--seconds", type=positive, help="end after this many seconds (default: never)")
    camera.add_argument(
        "--delay",
        type=not_negative,
        default=0.14,
        help="seconds that a frame waits for later ones to be smoothed (default: 0.14)",
    )
    camera.add_argument(
        "--show",
        type=int,
        nargs="?",
        const=0,
        metavar="PORT",
        help="show the overlay in a browser of this machine (default: a free port, which is printed)",
    )
    args = parser.parse_args()
    if args.camera is None and (args.seconds is not None or args.show is not None):
        parser.error("--seconds and --show need --camera")
    if args.input is None:
        args.input = [] if args.camera is not None else [str(DEMO_FOLDER / "images")]
    if args.focal and len(args.focal) > 2:
        parser.error("--focal takes one number, or two: fx fy")
    if args.princpt and not args.focal:
        parser.error("--princpt needs --focal")
    return args


def find_images(inputs: Sequence[str]) -> list[Path]:
    """Files, folders (their photos, in order of name) and patterns -> files, each once.

    Raises:
        UserError: one of them gives no photo.
    """
    found: list[Path] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            files = [file for file in _visible_files(path) if _is_photo(file)]
        elif path.is_file():
            files = [path]
        else:
            files = sorted(Path(match) for match in glob.glob(text, recursive=True) if Path(match).is_file())
        if not files:
            what = "no images in" if path.is_dir() else "no image at"
            raise UserError(f"{what} {path}: put photos there (jpg, png, ...) or name them with --input")
        found += files
    once: dict[str, Path] = {}
    for file in found:
        once.setdefault(os.path.abspath(file), file)
    return list(once.values())


def find_other_files(inputs: Sequence[str]) -> list[Path]:
    """What stands in folders beside the photos and videos: documents, raw images."""
    folders = dict.fromkeys(Path(text) for text in inputs if Path(text).is_dir())
    return [file for folder in folders for file in _visible_files(folder) if not _is_photo(file)]


def _visible_files(folder: Path) -> list[Path]:
    """A folder's files in order of name, without hidden ones such as `.DS_Store` and macOS's `._*`."""
    return sorted(file for file in folder.iterdir() if not file.name.startswith(".") and not file.is_dir())


def _is_photo(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES | HEIC_SUFFIXES | VIDEO_SUFFIXES


def name_outputs(files: list[Path], several: bool = False) -> dict[Path, str]:
    """File -> the NAME of its results, no two alike; with `several` people also none like NAME_person1 of another.

    The file's name without its suffix; where two would share it, with the names of its folders below the common folder
    of all files; where two still would, with the suffix as well; else numbered.
    """
    folders = _below_common([Path(os.path.abspath(file)).parent for file in files])
    names = [file.stem for file in files]
    for whole_name in (lambda file: file.stem, lambda file: file.name.replace(".", "_")):
        uses = Counter(names)
        names = [
            name if uses[name] == 1 else "_".join([*above, whole_name(file)])
            for name, above, file in zip(names, folders, files, strict=True)
        ]
    taken: set[str] = set()
    for index, name in enumerate(names):
        number = 2
        person_of = re.fullmatch(r"(.+)_person\d+", name) if several else None
        if person_of and person_of[1] in names:
            taken.add(name)
        while names[index] in taken:
            names[index], number = f"{name}_{number}", number + 1
        taken.add(names[index])
    return dict(zip(files, names, strict=True))


def _below_common(folders: Sequence[PurePath]) -> list[tuple[str, ...]]:
    """The parts of absolute folders below the folder that all share; never a drive."""
    shared = os.path.commonprefix([folder.parts for folder in folders])  # of any sequences, despite its name
    return [folder.parts[max(1, len(shared)) :] for folder in folders]


if __name__ == "__main__":
    run_main(main)
