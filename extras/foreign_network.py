# SPDX-License-Identifier: MIT
"""The regulariser in a network that is not ours: torchvision's DeepLabV3 with heads for two tasks.

    python -m extras.foreign_network [data/toy.h5 [ITERATIONS]]

An example to read, and to copy from: what your own training needs is marked 1 to 4.
"""

import argparse
import sys
from pathlib import Path

import h5py
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.segmentation import deeplabv3, deeplabv3_mobilenet_v3_large

import mtcd  # for the command line alone
from mtcd import CrossTaskContrast  # 1. or paste the text between its copy marks


class TwoTaskNet(nn.Module):
    """A shared encoder; per task a head, whose output is the feature map, and a prediction."""

    def __init__(self, classes):
        super().__init__()
        whole = deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None)
        self.encoder = whole.backbone
        self.heads = nn.ModuleDict()
        for task in ("semseg", "depth"):
            self.heads[task] = deeplabv3.DeepLabHead(960, 256)
        self.predictors = nn.ModuleDict()
        self.predictors["semseg"] = nn.Conv2d(256, classes, 1)
        self.predictors["depth"] = nn.Conv2d(256, 1, 1)

    def forward(self, image):
        """(B, 3, H, W) -> task -> feature (B, 256, H/16, W/16), task -> prediction (B, K, H, W)."""
        shared = self.encoder(image)["out"]  # (B, 960, H/16, W/16)
        features = {task: head(shared) for task, head in self.heads.items()}
        predictions = {}
        for task, feature in features.items():
            small = self.predictors[task](feature)
            predictions[task] = F.interpolate(small, image.shape[2:], mode="bilinear")
        return features, predictions


def train(data, iterations):
    """data: the h5py group "train" of a data file. Prints the losses every 10 iterations."""
    torch.manual_seed(0)
    net = TwoTaskNet(classes=len(data.file.attrs["semseg_classes"]))

    # 2. One regulariser for all tasks. Its projectors are trained with the network.
    contrast = CrossTaskContrast(["semseg", "depth"], channels=256)
    optimiser = torch.optim.Adam([*net.parameters(), *contrast.parameters()])

    # On several GPUs: make net and contrast parts of one module whose forward() returns the losses,
    # and wrap it as DistributedDataParallel(module, find_unused_parameters=True). A step trains the
    # projectors of the sources that it draws; without this argument DDP waits for the others.

    for iteration in range(1, iterations + 1):
        image, labels = read_batch(data)
        features, predictions = net(image)

        error = (predictions["depth"][:, 0] - labels["depth"]).abs()
        semseg_loss = F.cross_entropy(predictions["semseg"], labels["semseg"], ignore_index=255)
        valid = labels["depth"].isfinite() & (labels["depth"] > 0)
        depth_loss = error[valid].mean()
        task_loss = semseg_loss + depth_loss

        # 3. Features and labels by task. Labels keep their own resolution.
        regulariser = contrast(features, labels)

        # 4. Lambda, here 1, weighs it against the tasks' losses.
        loss = task_loss + 1.0 * regulariser
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if iteration % 10 == 0:
            print(f"{iteration}/{iterations}  tasks {task_loss:.3f}  contrast {regulariser:.3f}")


def read_batch(data):
    """Eight random images (8, 3, H, W) in [-0.5, 0.5], and their labels (8, H, W) by task.

    Void pixels are known by their value: 255 or less than 0 in classes; 0, nan or infinity in
    depth; (0, 0, 0) in normals (B, 3, H, W). Other values must be made one of these first.
    """
    rows = torch.randperm(len(data["image"]))[:8].sort().values.numpy()
    image = torch.from_numpy(data["image"][rows]).permute(0, 3, 1, 2) / 255 - 0.5
    labels = {
        "semseg": torch.from_numpy(data["semseg"][rows]).long(),
        "depth": torch.from_numpy(data["depth"][rows]),
    }
    return image, labels


def main(argv=None):
    """The command line -> exit status."""
    parser = mtcd.Parser(
        "python -m extras.foreign_network",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "data",
        nargs="?",
        default="data/toy.h5",
        metavar="FILE",
        help="a data file; python data_prep.py toy makes %(default)s, the default",
    )
    parser.add_argument(
        "iterations",
        nargs="?",
        type=mtcd.number(int, 1),
        default=100,
        metavar="ITERATIONS",
        help="default: %(default)s",
    )

    def job():
        args = parser.parse_args(argv)
        if not Path(args.data).exists():
            raise mtcd.UserError(
                f"{args.data} is not there: python data_prep.py toy makes data/toy.h5"
            )
        mtcd.DenseTasks(args.data, "train", ["semseg", "depth"])  # is it a data file?
        with h5py.File(args.data) as file:
            train(file["train"], args.iterations)

    return mtcd.exit_status("extras.foreign_network", job)


if __name__ == "__main__":
    sys.exit(main())
