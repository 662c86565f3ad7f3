"""Draw the README's image, docs/hands.jpg, from a toy scene and its ground truth.

python tool/make_toy_data.py --output DIR --sets HIC --test 40 --seed 4
python -m docs.picture --data DIR --index 8
"""

from pathlib import Path

import numpy as np
import torch

from common.drawing.overlay import draw_boxes, draw_skeletons
from common.drawing.raster import HandMesh
from common.drawing.render import render_hands
from common.errors import run_main
from common.nets.mano import TwoHandMano
from common.nets.mano_files import read_hand_models
from common.options import MANO_FOLDER, ROOT, Parser
from common.utils.camera import Camera, project_capture
from common.utils.files import write_image
from common.utils.images import load_image
from data.HIC.HIC import HIC
from demo.side_view import draw_side_view


def main() -> None:
    parser = Parser(__doc__, {"--out": "--output"})
    parser.add_argument("--data", type=Path, required=True, help="folder of the toy data")
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "hands.jpg")
    args = parser.parse_args()

    mano = TwoHandMano(*read_hand_models(MANO_FOLDER))
    annotation = HIC(args.data / "HIC", "test").annotation(args.index)
    photo, lens = load_image(annotation.image_path), annotation.cameras[0]
    camera = Camera(lens.focal, lens.princpt, orthographic=False)
    joints_cam = mano.regress_joints(torch.from_numpy(annotation.vertices_cam).float()).numpy()
    shown = annotation.vertices_valid
    vertices = annotation.vertices_cam
    hands = [HandMesh(vertices[h], mano.faces[h].numpy(), h, camera) for h in (0, 1) if shown[h]]
    images = [
        photo,
        draw_boxes(photo, annotation.boxes_image, None, shown),
        draw_skeletons(photo, project_capture(joints_cam, lens), shown),
        render_hands(photo, hands),
        draw_side_view(photo.shape[:2], [(hands, True)]),
    ]

    # All images show the same square around the hands.
    boxes = annotation.boxes_image[shown]
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    half = int(min((high - low).max() / 2 + 30, min(photo.shape[:2]) / 2))
    x, y = ((low + high) / 2).clip(half, np.array(photo.shape[1::-1]) - half).astype(int)
    gap = np.full((2 * half, 6, 3), 255, np.uint8)
    parts = [part for image in images for part in (image[y - half : y + half, x - half : x + half], gap)]
    write_image(args.out, np.concatenate(parts[:-1], 1), quality=90)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    run_main(main)
