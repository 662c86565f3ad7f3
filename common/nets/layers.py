"""Layers that several parts of the network share, and their initialisation."""

from torch import nn


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    """Convolution (with bias, as in the published files), batch norm, ReLU; same size."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def deconv_bn_relu(channels: list[int]) -> nn.Sequential:
    """A stack of [4 x 4 transposed convolution without bias, batch norm, ReLU], each doubling the resolution."""
    layers: list[nn.Module] = []
    for in_channels, out_channels in zip(channels[:-1], channels[1:], strict=True):
        layers += [
            nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def init_head(module: nn.Module) -> None:
    """Initialise a head in place: (transposed) convolutions normal std 0.001, linear std 0.01, biases 0, BN 1 and 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, std=0.01 if isinstance(layer, nn.Linear) else 0.001)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
