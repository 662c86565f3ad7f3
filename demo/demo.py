"""Recover both hands in 3D from photos.

    python demo.py --gpu 0                             # photos in images, checkpoint snapshot_6.pth, beside this script
    python demo.py --gpu cpu --input a.jpg 'more/*.png'
    python demo.py --hand auto --min_confidence 0.3    # leave out a hand that is not there
    python demo.py --focal 1500 --princpt 960 540      # the photos' real camera: places in real metres

Written for each photo NAME, beside this script or under --output:

    boxes/NAME.json                        hand boxes, pixels of the photo, and their confidence
    meshes/NAME_right.obj, NAME_left.obj   placed meshes, metres, camera axes (x right, y down, z away); .ply too
    meshes/NAME.glb                        both hands in one scene, for viewers (y up)
    params/NAME_right.json, NAME_left.json MANO parameters
    renders/NAME_box.jpg, NAME_skeleton.jpg, NAME_mesh.jpg, NAME_side.jpg (the meshes from another side)
    renders/NAME.html                      with --html: the 3D result, to turn in a browser
    results/NAME.json                      everything as data: joints in 3D and 2D, cameras, confidences
    sheet.jpg                              with --sheet: all photos (at most 40) on one sheet

A photo should show one person, roughly cropped. A photo that cannot be read is named and passed over; the exit code
is then 2.
"""

import argparse
import glob
import sys
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

# torch, OpenCV and trimesh are imported where they are used, so that --help and mistakes are answered at once.
from common.errors import UserError, one_line, run_main  # noqa: E402
from common.options import (  # noqa: E402
    GPU_HELP,
    HAND_MODES,
    IMAGE_SUFFIXES,
    MANO_FOLDER,
    MESH_FORMATS,
    RENDERERS,
    Parser,
)

if TYPE_CHECKING:
    import numpy as np

    from common.utils.camera import Camera
    from demo.predictor import HandPredictor, PreparedPhoto
    from demo.results import ResultWriter

MOST_PIXELS, MOST_PHOTOS = 1e6, 4096  # of a focal length, and in a batch
THREADS = 4  # read and write beside the network


def main() -> None:
    args = parse_args()
    names = name_outputs(find_images(args.input))

    from common.devices import parse_devices
    from common.utils.images import quiet_opencv
    from demo.predictor import HandPredictor
    from demo.results import ResultWriter

    quiet_opencv()
    devices = parse_devices(args.gpu)
    predictor = HandPredictor.load(args.checkpoint, args.mano, devices)
    print(f"photos: {len(names)}; on {', '.join(map(str, devices))}; hand model: {predictor.hand_model_name}")
    writer = ResultWriter(
        args.output, predictor.faces, predictor.hand_model_name, args.mesh_formats, args.html, args.renderer
    )
    failed = process(names, predictor, writer, args)
    done = {file: name for file, name in names.items() if file not in failed}
    if args.sheet:
        from common.utils.files import write_image
        from demo.result_sheet import draw_result_sheet

        write_image(args.output / "sheet.jpg", draw_result_sheet(args.output, done), quality=90)
    print(f"{len(done)} of {len(names)} photos done; boxes, meshes, params, renders and results are in {args.output}")
    if failed:
        raise UserError(f"{len(failed)} of {len(names)} photos could not be done; the reasons stand above")


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--gpu", help=GPU_HELP)
    parser.add_argument(
        "--input", nargs="+", default=[str(HERE / "images")], help="photos, folders or patterns (default: images)"
    )
    parser.add_argument("--output", type=Path, default=HERE, help="folder for the results (default: this folder)")
    parser.add_argument(
        "--checkpoint", type=Path, default=HERE / "snapshot_6.pth", help="the network (default: snapshot_6.pth here)"
    )
    parser.add_argument("--mano", type=Path, default=MANO_FOLDER, help="folder of MANO_RIGHT.pkl and MANO_LEFT.pkl")
    parser.add_argument(
        "--hand",
        choices=HAND_MODES,
        default="both",
        help="hands to report; auto leaves out the less sure one where both boxes are on one hand (default: both)",
    )
    parser.add_argument("--min_confidence", type=fraction, default=0.0, help="leave out hands below this, 0 to 1")
    parser.add_argument(
        "--focal", type=positive, nargs="+", metavar="F", help="the photos' real focal length: f or fx fy, px"
    )
    parser.add_argument(
        "--princpt", type=finite, nargs=2, metavar=("CX", "CY"), help="real principal point, px (default: the middle)"
    )
    parser.add_argument("--html", action="store_true", help="write a page with the 3D result, too")
    parser.add_argument("--sheet", action="store_true", help="put all photos and results on one sheet, too")
    parser.add_argument(
        "--mesh_formats", nargs="+", choices=MESH_FORMATS, default=MESH_FORMATS, help="mesh files (default: all)"
    )
    parser.add_argument("--renderer", choices=RENDERERS, default="auto", help="what draws the meshes (default: auto)")
    parser.add_argument("--batch_size", type=count, default=16, help="photos the network takes at once (default: 16)")
    args = parser.parse_args()
    if args.focal and len(args.focal) > 2:
        parser.error("--focal takes one number, or two: fx fy")
    if args.princpt and not args.focal:
        parser.error("--princpt needs --focal")
    return args


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def finite(text: str) -> float:
    """A number of pixels."""
    value = float(text)
    if not abs(value) < MOST_PIXELS:
        raise argparse.ArgumentTypeError(f"{text} is no number of pixels")
    return value


def positive(text: str) -> float:
    """A number of pixels above 0."""
    value = finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def count(text: str) -> int:
    """A whole number from 1."""
    value = int(text)
    if not 1 <= value <= MOST_PHOTOS:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and {MOST_PHOTOS}")
    return value


def find_images(inputs: Sequence[str]) -> list[Path]:
    """Files, folders (their images, in order of name) and patterns -> files.

    Raises:
        UserError: one of them gives no image.
    """
    found: list[Path] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        elif path.is_file():
            files = [path]
        else:
            files = sorted(Path(match) for match in glob.glob(text, recursive=True) if Path(match).is_file())
        if not files:
            what = "no images in" if path.is_dir() else "no image at"
            raise UserError(f"{what} {path}: put photos there (jpg, png, ...) or name them with --input")
        found += files
    return list(dict.fromkeys(found))


def name_outputs(files: list[Path]) -> dict[Path, str]:
    """File -> the NAME of its results: its own without the ending, or with it where two would share one.

    Raises:
        UserError: two files would share a name all the same.
    """
    stems = Counter(file.stem for file in files)
    names = {file: file.stem if stems[file.stem] == 1 else file.name.replace(".", "_") for file in files}
    for name, uses in Counter(names.values()).items():
        if uses > 1:
            same = [str(file) for file in files if names[file] == name]
            raise UserError(
                f"{' and '.join(same)} would write the same results; run them apart, each with its --output"
            )
    return names


def process(
    names: dict[Path, str], predictor: "HandPredictor", writer: "ResultWriter", args: argparse.Namespace
) -> set[Path]:
    """Run all photos, reading and writing beside the network. Returns those that failed; each is named on the way."""
    from tqdm import tqdm

    from common.utils.images import load_image

    def read(file: Path) -> tuple["np.ndarray", "PreparedPhoto"]:
        image = load_image(file)
        return image, predictor.prepare(image, intrinsics=real_camera(args.focal, args.princpt, image.shape[:2]))

    failed: set[Path] = set()
    progress = tqdm(total=len(names), unit="photo", dynamic_ncols=True)

    def finish(file: Path, future: Future) -> Any:
        """What a thread made of a photo, or None if it failed there."""
        try:
            return future.result()
        except UserError as error:
            failed.add(file)
            progress.update()
            progress.write(one_line(f"{file.name}: {error}"), file=sys.stderr)
        return None

    writing: deque[tuple[Path, Future]] = deque()

    def finish_writing(down_to: int) -> None:
        while len(writing) > down_to:
            file, future = writing.popleft()
            finish(file, future)
            if file not in failed:
                progress.update()

    with progress, ThreadPoolExecutor(THREADS) as pool:
        reading = ((file, pool.submit(read, file)) for file in names)
        ahead = deque(islice(reading, 2 * args.batch_size))
        while ahead:
            batch = [ahead.popleft() for _ in range(min(args.batch_size, len(ahead)))]
            ahead.extend(islice(reading, len(batch)))
            photos = [(file, photo) for file, future in batch if (photo := finish(file, future)) is not None]
            if not photos:
                continue
            results = predictor.predict([prepared for _, (_, prepared) in photos], args.hand, args.min_confidence)
            for (file, (image, _)), result in zip(photos, results, strict=True):
                writing.append((file, pool.submit(writer.write, names[file], image, result)))
            finish_writing(down_to=2 * args.batch_size)  # photos in memory stay bounded
        finish_writing(down_to=0)
    return failed


def real_camera(focal: list[float] | None, princpt: list[float] | None, image_size: tuple[int, int]) -> "Camera | None":
    """The pinhole camera the user gave, for a photo of (h, w); the principal point is the middle if none was given."""
    import numpy as np

    from common.utils.camera import Camera

    if focal is None:
        return None
    middle = ((image_size[1] - 1) / 2, (image_size[0] - 1) / 2)
    return Camera(np.array([focal[0], focal[-1]]), np.array(princpt or middle), orthographic=False)


if __name__ == "__main__":
    run_main(main)
