"""ResNet backbones: torchvision's networks without pooling and classifier, with their parameter names; a small one."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torchvision.models import WeightsEnum, resnet

from common.errors import UserError, error_context
from common.weights import fetch_weights, weights_file


class SmallResNet(nn.Module):
    """One of torchvision's basic blocks per stage, half as wide as ResNet-18: for CPUs.

    Its layers have torchvision's names. There are no ImageNet weights for it.
    """

    def __init__(self, weights: None = None, widths: tuple[int, ...] = (32, 64, 128, 256)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(resnet.BasicBlock(widths[0], widths[0]))
        self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(resnet.BasicBlock(narrow, wide, 2, _shortcut(narrow, wide)))
            for narrow, wide in zip(widths[:-1], widths[1:], strict=True)
        )
        for module in self.modules():  # as torchvision initialises its own
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _shortcut(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride=2, bias=False), nn.BatchNorm2d(out_channels))


# name -> (torchvision's builder, the ImageNet weights training starts from, output channels)
BACKBONES: dict[str, tuple[Callable[..., Any], WeightsEnum | None, int]] = {
    "resnet10_half": (SmallResNet, None, 256),
    "resnet18": (resnet.resnet18, resnet.ResNet18_Weights.IMAGENET1K_V1, 512),
    "resnet34": (resnet.resnet34, resnet.ResNet34_Weights.IMAGENET1K_V1, 512),
    "resnet50": (resnet.resnet50, resnet.ResNet50_Weights.IMAGENET1K_V2, 2048),
}


class ResNetBackbone(nn.Module):
    """(N, 3, H, W) -> (N, C, H / 32, W / 32). `channels` is C, `stem_channels` the number of channels of the stem."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        build, _, self.channels = BACKBONES[name]
        network = build(weights=None)
        self.stem_channels = network.conv1.out_channels
        self.conv1, self.bn1 = network.conv1, network.bn1
        self.relu, self.maxpool = network.relu, network.maxpool
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4

    def stem(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, stem_channels, H / 4, W / 4)."""
        return self.maxpool(self.relu(self.bn1(self.conv1(image))))

    def stages(self, features: Tensor) -> Tensor:
        """(N, stem_channels, H, W) -> (N, C, H / 8, W / 8): layer1 to layer4."""
        return self.layer4(self.layer3(self.layer2(self.layer1(features))))

    def forward(self, image: Tensor) -> Tensor:
        return self.stages(self.stem(image))


def load_imagenet(backbone: ResNetBackbone) -> None:
    """Initialise a backbone with torchvision's ImageNet weights, downloaded once into PyTorch's cache.

    Raises:
        UserError: there are no weights for this backbone; the file can neither be found nor downloaded, or is damaged.
    """
    weights = BACKBONES[backbone.name][1]
    if weights is None:
        raise UserError(
            f"there are no ImageNet weights for {backbone.name}; start from random numbers with --init random"
        )
    what, otherwise = f"the ImageNet weights of {backbone.name}", "start from random numbers with --init random"
    state, file = fetch_weights(weights.url, what, otherwise), weights_file(weights.url)
    with error_context(f"{what} in {file} are damaged", RuntimeError, KeyError, advice="delete it and start again"):
        backbone.load_state_dict({key: state[key] for key in backbone.state_dict()})  # all but the classifier
