"""Draw the README's strip of a video before and after smoothing, docs/steady.jpg, from the quick start's results.

python quickstart.py
python -m docs.steady --folder output/quickstart/demo/two
"""

from pathlib import Path

import cv2
import numpy as np

from common.errors import run_main
from common.options import ROOT, Parser
from common.utils.files import write_image
from common.utils.joints import JOINTS
from demo.video import VideoReader

BLOCKS, COLUMNS = 2, 4
WIDTH, GAP = 300, 6  # px, of a frame, between blocks
TRAIL = 12  # frames
RGB = (255, 220, 60)


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="of demo.py --compare's overlay.mp4 and hands.npz")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "steady.jpg", help="the image")
    args = parser.parse_args()

    frames = [frame.image for frame in VideoReader(args.folder / "overlay.mp4")]
    with np.load(args.folder / "hands.npz") as file:
        table = dict(file)
    chosen = np.linspace(TRAIL, len(frames) - 1, BLOCKS * COLUMNS).round().astype(int).reshape(BLOCKS, COLUMNS)
    rows = []
    for block in chosen:
        for half, suffix in enumerate(("_raw", "")):
            images = (np.split(frames[number], 2, axis=1)[half] for number in block)
            rows.append(np.hstack([fit(draw_trails(image, table, number, suffix))
                                   for image, number in zip(images, block, strict=True)]))  # fmt: skip
        rows.append(np.full((GAP, rows[0].shape[1], 3), 255, np.uint8))
    write_image(args.output, np.vstack(rows[:-1]), quality=80)
    print(f"wrote {args.output}")


def draw_trails(image: np.ndarray, table: dict[str, np.ndarray], number: int, suffix: str) -> np.ndarray:
    """A frame with the way of each middle fingertip in the frames before it."""
    tip = JOINTS.index("Middle_4")
    image = np.ascontiguousarray(image)
    for person in np.unique(table["person"]):
        for side in (0, 1):
            own = (table["person"] == person) & (table["side"] == side)
            rows = np.flatnonzero(own & (table["frame"] <= number) & (table["frame"] > number - TRAIL))
            points = np.round(table["joints_image" + suffix][rows, tip] * 16).astype(np.int32)
            cv2.polylines(image, [points], False, RGB, 2, cv2.LINE_AA, shift=4)
    return image


def fit(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, (WIDTH, image.shape[0] * WIDTH // image.shape[1]), interpolation=cv2.INTER_AREA)


if __name__ == "__main__":
    run_main(main)
