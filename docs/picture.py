"""Draw the README's image, docs/hands.jpg, from toy scenes and their ground truth.

python tool/make_toy_data.py --output DIR --sets HIC --test 64 --variety 0.25
python -m docs.picture --data DIR --index 4 12 21
"""

from pathlib import Path

import numpy as np
import torch

from common.drawing.overlay import draw_boxes, draw_skeletons
from common.drawing.raster import HandMesh
from common.drawing.render import render_hands
from common.drawing.sheets import contact_sheet, fit
from common.errors import run_main
from common.nets.mano import TwoHandMano
from common.nets.mano_files import read_hand_models
from common.options import MANO_FOLDER, MANO_HELP, ROOT, Parser
from common.types import Annotation
from common.utils.camera import Camera, project_capture
from common.utils.files import write_image
from common.utils.images import load_image
from data.HIC.HIC import HIC
from demo.result_sheet import square_around
from demo.side_view import draw_side_view

TITLES = ("photo", "true boxes", "true 2D skeletons", "true meshes", "the meshes from another side")
PANEL = 400  # px, side of an image


def main() -> None:
    parser = Parser(__doc__, {"--out": "--output"})
    parser.add_argument("--data", type=Path, required=True, help="folder of the toy data")
    parser.add_argument("--index", type=int, nargs="+", default=[0], help="the scenes (default: the first)")
    parser.add_argument("--mano", type=Path, default=MANO_FOLDER, help=MANO_HELP)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "hands.jpg", help="the image")
    args = parser.parse_args()

    mano = TwoHandMano(*read_hand_models(args.mano))
    source = HIC(args.data / "HIC", "test")
    strips = [draw_scene(source.annotation(index), mano) for index in args.index]
    write_image(args.output, contact_sheet(strips, [""] * len(strips), TITLES, PANEL), quality=88)
    print(f"wrote {args.output}")


def draw_scene(annotation: Annotation, mano: TwoHandMano) -> list[np.ndarray]:
    """The images of one scene, of `TITLES`, (PANEL, PANEL, 3) uint8 RGB each."""
    photo, lens = load_image(annotation.image_path), annotation.cameras[0]
    camera = Camera(lens.focal, lens.princpt, orthographic=False)
    joints_cam = mano.regress_joints(torch.from_numpy(annotation.vertices_cam).float()).numpy()
    shown, vertices = annotation.vertices_valid, annotation.vertices_cam
    hands = [HandMesh(vertices[h], mano.faces[h].numpy(), h, camera) for h in (0, 1) if shown[h]]
    close_up = square_around(annotation.boxes_image[shown].tolist(), photo.shape[:2])
    images = [
        photo,
        draw_boxes(photo, annotation.boxes_image, None, shown),
        draw_skeletons(photo, project_capture(joints_cam, lens), shown),
        render_hands(photo, hands),
    ]
    side = draw_side_view((PANEL, PANEL), [(hands, True)])
    return [fit(image, (PANEL, PANEL)) for image in [*(image[close_up] for image in images), side]]


if __name__ == "__main__":
    run_main(main)
