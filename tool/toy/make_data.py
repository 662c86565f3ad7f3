"""Write toy datasets: images of generated hands, in the official layouts of the four datasets.

    python tool/make_toy_data.py
    python tool/make_toy_data.py --output /tmp/data --sets InterHand26M,MSCOCO --train 2000 --test 200 --seed 1

Writes InterHand26M, MSCOCO, HIC (test only) and ReInterHand into folders of these names under --output (default: data
of this project), so that everything that reads the real datasets runs without them. The hands are those of the MANO
files, or of their stand-in (python tool/make_standin_hand.py). The same command writes the same bytes.

--train and --test count samples per dataset. ReInterHand counts images of its default kind (Mugsy cameras,
envmap_per_frame); its other kinds are written as well, about twice as many again. --scale 0.5 halves the images'
sides, except for HIC, whose camera is fixed. --variety 0.3 makes hands differ less, which a small network learns
sooner: closer to rest, upright, side by side, seen from a narrower range of directions.

Each dataset replaces older toy data whole or not at all. A folder that holds anything else is left alone.
Exit code: 0; 2 with one line on stderr if something cannot be read or written.
"""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from common.nets.mano_files import read_hand_models
from common.options import DATA_FOLDER, MANO_FOLDER, MANO_HELP, Parser, count, fraction, names_from, within
from common.utils.images import quiet_opencv
from tool.toy import coco, hic, interhand, reinterhand
from tool.toy.formats import Plan, check_folder, toy_folder
from tool.toy.rendering import build_skin
from tool.toy.scene import build_rig

WRITERS = {"InterHand26M": interhand.write, "MSCOCO": coco.write, "HIC": hic.write, "ReInterHand": reinterhand.write}


def main() -> None:
    """The command."""
    args = parse_args()
    for name in args.sets:  # before any work
        check_folder(args.output / name)
    quiet_opencv()
    torch.set_num_threads(1)  # one hand at a time is too little work to share
    rig = build_rig(read_hand_models(args.mano))
    skin = build_skin(rig)
    totals = {"HIC": args.test, "ReInterHand": reinterhand.count_images(args.train, args.test)}
    for name in args.sets:
        total = totals.get(name, args.train + args.test)
        with tqdm(total=total, desc=name, unit="image") as bar, toy_folder(args.output / name) as root:
            plan = Plan(rig, skin, args.seed, args.train, args.test, args.scale, args.variety, bar.update)
            WRITERS[name](root, plan)
        print(f"wrote {args.output / name}: toy data of {rig.mano.name}")


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__, {"--out": "--output"})
    parser.add_argument("--output", type=Path, default=DATA_FOLDER, help="folder of the datasets (default: data)")
    parser.add_argument(
        "--sets",
        type=names_from(WRITERS),
        default=list(WRITERS),
        help=f"datasets to write, of {','.join(WRITERS)} (default: all)",
    )
    parser.add_argument("--train", type=count, default=200, help="training samples per dataset (default: %(default)s)")
    parser.add_argument("--test", type=count, default=50, help="test samples per dataset (default: %(default)s)")
    parser.add_argument("--seed", type=within(int, 0), default=0, help="seed of the random numbers (default: 0)")
    parser.add_argument("--scale", type=within(float, 0.1, 4), default=1.0, help="factor on sizes (default: 1)")
    parser.add_argument("--variety", type=fraction, default=1.0, help="how much hands and views vary (default: 1)")
    parser.add_argument("--mano", type=Path, default=MANO_FOLDER, help=MANO_HELP)
    return parser.parse_args()
