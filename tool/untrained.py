"""Write a checkpoint of an untrained network, in the published layout, to try the demo without a trained one.

    python tool/make_checkpoint.py --init random
    python demo/demo.py --checkpoint demo/untrained.pth --input YOUR_PHOTO.jpg
    python tool/make_checkpoint.py --init random --preset small --heads start --output start.pth

Its predictions are meaningless: two hands somewhere near the middle. If the demo runs with it, the installation works.
With --heads start it is what `train.py` begins with, given the same --init, --preset and --seed, to compare a training
with.
"""

import argparse
from pathlib import Path

import torch
from torchvision.models.resnet import BasicBlock, Bottleneck

from common.checkpoint import data_record, save_checkpoint
from common.errors import UserError
from common.options import UNTRAINED, Parser, shown
from main.build import build_model, init_backbones
from main.config import PRESETS, config_to_dict
from main.model import InterWild
from main.options import preset_config


def main() -> None:
    """The command."""
    args = parse_args()
    if args.output.exists() and not args.overwrite:
        raise UserError(f"{args.output} exists; name another file with --output, or replace it with --overwrite")
    config = preset_config(args.preset)
    torch.manual_seed(args.seed)
    model = build_model(config, mano=None)
    init_backbones(model, args.init)
    if args.heads == "visible":
        show_something(model)
    save_checkpoint(args.output, model, epoch=0, config=config_to_dict(config), data=data_record([], [], ""))
    print(f"wrote {args.output}: an untrained network ({args.init} backbones, random heads)")


def show_something(model: InterWild) -> None:
    """Change an untrained network in place so that its hands can be seen.

    As initialised for training, its heads output nearly 0 everywhere: boxes without size, all joints in one point.
    Here their outputs vary, around boxes of a quarter of the crop and hands at rest.
    """
    boxes, positions, rotations = model.body_box_net, model.hand_position_net, model.hand_rotation_net
    # How far the outputs spread, found by trying: peaked heatmaps, moderate rotations, hands about 10 cm apart.
    spread = {
        boxes.deconv: 1,
        boxes.bbox_center: 2000,
        positions: 60,
        rotations.root_pose_out: 2,
        rotations.pose_out: 0.5,
        model.hand_trans_net.fc: 0.15,
    }
    with torch.no_grad():
        for block in model.modules():
            # Without statistics of their own, batch norms let the residuals add up from block to block.
            if isinstance(block, Bottleneck | BasicBlock):
                (block.bn3 if isinstance(block, Bottleneck) else block.bn2).weight.fill_(0.2)
        for head, factor in spread.items():
            for layer in head.modules():
                if hasattr(layer, "weight") and layer.weight.ndim > 1:
                    layer.weight.normal_(std=factor * layer.weight[0].numel() ** -0.5)
        for size in (boxes.rhand_size, boxes.lhand_size):
            size[2].bias.fill_(14)
        rotations.init_identity()


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__, {"--out": "--output"})
    parser.add_argument(
        "--init",
        choices=("imagenet", "random"),
        default="imagenet",
        help="initial weights of the backbones (default: %(default)s)",
    )
    parser.add_argument(
        "--preset", choices=sorted(PRESETS), help="size of the network; small: for a CPU (default: the published size)"
    )
    parser.add_argument(
        "--heads",
        choices=("visible", "start"),
        default="visible",
        help="visible: hands that can be seen; start: as a training starts (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random numbers (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=UNTRAINED, help=f"file to write (default: {shown(UNTRAINED)})")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    return parser.parse_args()
