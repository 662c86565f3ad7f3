"""Write toy datasets: pictures of generated hands, in the official layouts of the four datasets.

    python tool/make_toy_data.py
    python tool/make_toy_data.py --out /tmp/data --sets InterHand26M,MSCOCO --train 2000 --test 200 --seed 1

Writes InterHand26M, MSCOCO, HIC (test only) and ReInterHand into folders of these names under --out (default: data of
this project), so that everything that reads the real datasets runs without them. The hands are those of the MANO
files, or of their stand-in (python tool/make_standin_hand.py). The same command writes the same bytes.

--train and --test count samples a dataset. ReInterHand counts pictures of its default kind (Mugsy cameras,
envmap_per_frame); its other kinds are written as well, about twice as many again. --scale 0.5 halves the pictures'
sides, but for HIC, whose camera is fixed. --variety 0.3 makes hands differ less, which a small network learns sooner:
more at rest, upright, side by side, seen from less far around.

Each dataset replaces older toy data whole or not at all. A folder which holds something else is left alone.
Exit code: 0; 2 with one line on stderr if something cannot be read or written.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.errors import UserError, run_main  # noqa: E402
from common.options import MANO_FOLDER  # noqa: E402

SETS = ("InterHand26M", "MSCOCO", "HIC", "ReInterHand")


def main() -> None:
    args = parse_args()
    names = check_args(args)
    from tool.toy.formats import check_folder

    for name in names:  # before any work
        check_folder(args.out / name)

    import torch
    from tqdm import tqdm

    from common.nets.mano_files import read_hand_models
    from common.utils.images import quiet_opencv
    from tool.toy import coco as toy_coco
    from tool.toy import hic as toy_hic
    from tool.toy import interhand as toy_interhand
    from tool.toy import reinterhand as toy_reinterhand
    from tool.toy.formats import Plan
    from tool.toy.picture import build_skin
    from tool.toy.scene import build_rig

    quiet_opencv()
    torch.set_num_threads(1)  # one hand at a time is too little work to share
    writers = dict(zip(SETS, (toy_interhand, toy_coco, toy_hic, toy_reinterhand), strict=True))
    rig = build_rig(read_hand_models(args.mano))
    skin = build_skin(rig)
    for name in names:
        total = {"HIC": args.test, "ReInterHand": toy_reinterhand.pictures(args.train, args.test)}
        with tqdm(total=total.get(name, args.train + args.test), desc=name, unit="picture") as bar:
            plan = Plan(rig, skin, args.seed, args.train, args.test, args.scale, args.variety, bar.update)
            writers[name].write(args.out / name, plan)
        print(f"wrote {args.out / name}: toy data of {rig.mano.name}")


def check_args(args: argparse.Namespace) -> list[str]:
    """The datasets that are asked for; raises UserError if they, or a number, make no sense."""
    names = list(dict.fromkeys(args.sets.split(",")))
    unknown = [name for name in names if name not in SETS]
    if unknown:
        raise UserError(f"--sets {args.sets}: there is no {unknown[0]!r}; there are: {', '.join(SETS)}")
    if args.train < 1 or args.test < 1:
        raise UserError("--train and --test: at least 1")
    if args.seed < 0:
        raise UserError("--seed: not below 0")
    if not 0.1 <= args.scale <= 4:
        raise UserError("--scale: between 0.1 and 4")
    if not 0 <= args.variety <= 1:
        raise UserError("--variety: between 0 and 1")
    return names


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "data", help="folder of the datasets (default: data)")
    parser.add_argument("--sets", default=",".join(SETS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--train", type=int, default=200, help="training samples a dataset (default: %(default)s)")
    parser.add_argument("--test", type=int, default=50, help="test samples a dataset (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default: 0)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the pictures' size (default: 1)")
    parser.add_argument("--variety", type=float, default=1.0, help="of poses and views, 0 to 1 (default: 1)")
    parser.add_argument("--mano", type=Path, default=MANO_FOLDER, help="folder of the MANO files or their stand-in")
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)
