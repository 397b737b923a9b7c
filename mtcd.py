# SPDX-License-Identifier: MIT
"""Contrastive Multi-Task Dense Prediction (Yang, Ye, Xu; AAAI 2023), a reference implementation in one file.

One network solves many per-pixel tasks of an image; while it trains, the labels of one task regularise the features of
another through a triplet loss. Nothing of this remains at inference.

    python mtcd.py                                                     train and evaluate on rendered rooms, on a CPU
    python mtcd.py --dataset nyud --pretrained hrnet_w18_small_v2.pth  the protocol of the papers (data_prep.py first)
    python mtcd.py --dataset nyud --contrast 0                         the multi-task baseline
    torchrun --nproc_per_node=4 mtcd.py --dataset nyud --amp           several GPUs
    python mtcd.py --eval --checkpoint runs/NAME/last.pt               the figures of a trained network again
    python mtcd.py --predict photo.jpg --checkpoint runs/NAME/last.pt  pictures and arrays of every task
    python mtcd.py --consistency --checkpoint runs/NAME/last.pt        do the tasks agree on what is alike? (figure 1)
    python mtcd.py --compare runs/BASELINE runs/OURS                   the papers' table, with Delta_m
    python mtcd.py --bench                                             what takes how long

Map of the file, in the order of the paper:
     1. the regulariser   CrossTaskContrast, the contribution: stands alone, to be copied
     2. tasks             one table: labels, losses, weights, metrics; the three data sets
     3. data              one HDF5 data set class; the protocol's augmentation
     4. backbones         HRNet, ResNet
     5. model             MultiTaskNet: shared encoder, a head a task
     6. task losses
     7. metrics           mIoU, RMSE, mErr, maxF, odsF
     8. evaluation
     9. pictures          colours, panels, the preview of a run
    10. training          checkpoints and the loop
    11. predictions       of any picture
    12. consistency       the paper's figure 1 for any checkpoint
    13. comparing runs    the papers' table
    14. bench
    15. command line
Words: docstrings say "stated" of what the paper states and "choice" of what it leaves open to us (see README.md).
"""
import argparse
import csv
import itertools
import json
import math
import os
import signal
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    Sampler,
    default_collate,
)
from torchvision import models
from torchvision.models import resnet
from torchvision.transforms import v2


# ----------------------------------------------------------------------------------------------- 1. the regulariser
# >>> copy from here
class Criterion:
    """When two pixels are alike under one task's labels. That one criterion serves discrete and
    continuous labels is stated; the distances and thresholds are choices."""

    def __init__(self, distance, positive, negative, valid, balanced=False):
        self.distance = distance  # of label tensors (..., K), broadcast -> (...)
        self.positive = positive  # a pair at most this far apart is positive
        self.negative = negative  # a pair at least this far apart is negative; in between: neither
        self.valid = valid  # labels (n, K) -> (n,) bool: pixels that have ground truth
        self.balanced = balanced  # draw all classes equally often: boundary is 3 % of the pixels


CLASSES = Criterion(  # the same class or another
    distance=lambda a, b: (a != b).any(-1).float(), positive=0, negative=1,
    valid=lambda y: (y != 255).all(-1), balanced=True)
DEPTH = Criterion(  # the ratio of two depths, so that near and far count alike
    distance=lambda a, b: (a.log() - b.log()).abs().sum(-1), positive=0.05, negative=0.2,
    valid=lambda y: (y.isfinite() & (y > 0)).all(-1))
NORMAL = Criterion(  # the angle between two normals in degrees
    distance=lambda a, b: F.cosine_similarity(a, b, dim=-1).clamp(-1, 1).acos().rad2deg(),
    positive=10, negative=30, valid=lambda y: y.isfinite().all(-1) & (y != 0).any(-1))
CRITERIA = {"semseg": CLASSES, "parsing": CLASSES, "saliency": CLASSES, "boundary": CLASSES,
            "depth": DEPTH, "normal": NORMAL}


class CrossTaskContrast(nn.Module):
    """Feature-wise contrastive consistency: one task's labels regularise another task's features.

    Stated: in every call each target task draws one random source task, never itself; every
    (target, source) pair has a projector of its own; pixels are sampled under the source's ground
    truth and enter a triplet loss; the losses of the targets are summed. All else is a choice:

    tasks       names; those of CRITERIA are known, others need a Criterion in `criteria`
    channels    C, the width of every feature map
    dim         width of the projections, of unit length, compared by Euclidean distance
    samples     pixels drawn per target, from the whole batch; only they are projected
    candidates  how many of these each pixel looks at to find its positive and its negative
    margin      m of max(0, d(anchor, positive) - d(anchor, negative) + m)

    >>> contrast = CrossTaskContrast(["semseg", "depth"], channels=64)  # train its parameters, too
    >>> loss = task_losses + 2 * contrast({"semseg": f1, "depth": f2}, {"semseg": y1, "depth": y2})

    Afterwards `share_of_chance` is the loss over its value where positives are as far as negatives
    (the margin per target): 1 if the projections tell nothing, 0 if the margin parts every triplet.
    """

    def __init__(self, tasks, channels, *,
                 dim=64, samples=1024, candidates=48, margin=1.0, criteria=()):
        super().__init__()
        self.tasks, self.criteria = list(tasks), {**CRITERIA, **dict(criteria)}
        unknown = [task for task in self.tasks if task not in self.criteria]
        if unknown:
            raise ValueError(f"no criterion for {unknown}: pass criteria={{name: Criterion(...)}}")
        self.samples, self.candidates, self.margin = samples, candidates, margin
        self.projectors = nn.ModuleDict({  # pointwise, so the sampled pixels alone are projected
            f"{target}_from_{source}": nn.Sequential(
                nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, dim))
            for target in self.tasks for source in self.tasks if source != target})

    def forward(self, features, labels):
        """task -> (B, C, h, w), task -> (B, H, W) or (B, K, H, W) of any size -> the scalar loss,
        to which a target without a source or without any triplet adds exactly 0."""
        sources = {}  # drawn before any pixel: then all processes of a seed draw the same
        for target in features:
            others = [task for task in self.tasks if task in labels and task != target]
            if others:
                sources[target] = others[torch.randint(len(others), ()).item()]
        losses = [self.pair_loss(target, source, features[target], labels[source])
                  for target, source in sources.items()]
        loss = sum(losses) if losses else next(iter(features.values()))[:0].sum()  # 0
        self.share_of_chance = loss.detach() / (self.margin * max(len(sources), 1))
        return loss

    def pair_loss(self, target, source, feature, label):
        """Mean triplet loss of the target's feature (B, C, h, w) under the source's label."""
        rows, label, valid = self.sample(feature, label, self.criteria[source])
        with torch.autocast(feature.device.type, enabled=False):  # distances need float32
            projector = self.projectors[f"{target}_from_{source}"]
            points = F.normalize(projector(rows.to(projector[0].weight.dtype)))  # (n, dim)
            return self.triplet_loss(points, label, valid, self.criteria[source])

    def sample(self, feature, label, criterion):
        """n pixels -> features (n, C), labels (n, K), valid (n,): False if there were too few."""
        batch, _, height, width = feature.shape
        label = label if label.ndim == 4 else label[:, None]
        label = F.interpolate(label.float(), (height, width), mode="nearest-exact")  # at the centre
        pool = torch.randperm(batch * height * width, device=label.device)[: 16 * self.samples]
        b, y, x = torch.unravel_index(pool, (batch, height, width))
        label = label[b, :, y, x]  # (pool, K)
        weight = criterion.valid(label).float()
        if criterion.balanced:  # divided by how many pixels of the pool have this label
            value, order = label[:, 0].contiguous(), label[:, 0].sort().values
            same = torch.searchsorted(order, value, right=True) - torch.searchsorted(order, value)
            weight = weight / same
        arrival = torch.empty_like(weight).exponential_() / weight  # first come: a draw by weight
        first = arrival.topk(min(self.samples, len(pool)), largest=False).indices
        valid = weight[first] > 0
        rows = feature[b[first], :, y[first], x[first]].masked_fill(~valid[:, None], 0)
        return rows, label[first], valid

    def triplet_loss(self, points, label, valid, criterion):
        """points (n, dim) -> mean of max(0, d(anchor, positive) - d(anchor, negative) + m)."""
        positive, negative, found = self.triplets(label, valid, criterion)
        loss = F.triplet_margin_loss(
            points, points[positive], points[negative], self.margin, reduction="none")  # (n,)
        return (loss * found).sum() / found.sum().clamp(min=1)

    def triplets(self, label, valid, criterion):
        """Per pixel, the first positive and negative (n,) of its candidates; has it both (n,)?"""
        n, own = len(label), torch.arange(len(label), device=label.device)
        other = torch.randint(n, (n, self.candidates), device=label.device)
        usable = valid[:, None] & valid[other] & (other != own[:, None])
        gap = criterion.distance(label[:, None], label[other])  # (n, candidates)
        positive = usable & (gap <= criterion.positive)
        negative = usable & (gap >= criterion.negative)
        first = [mask.float().argmax(1) for mask in (positive, negative)]  # the first True
        return other[own, first[0]], other[own, first[1]], positive.any(1) & negative.any(1)
# <<< to here

# --------------------------------------------------------------------------------------------------------- 2. tasks
class Task(NamedTuple):
    """A row of the table that drives labels, losses, metrics and pictures: to add a task is to add a row."""

    channels: int | None  # of the prediction; None: one per class name in the data file
    ignored: int  # the label's value where there is no ground truth
    weight: float  # of the loss in the sum (protocol)
    loss: Callable  # prediction (B, K, H, W), label of a batch, Benchmark -> scalar, in section 6
    metric: str  # the field's name
    unit: str
    higher_is_better: bool
    measure: Callable  # number of classes, Benchmark -> metric object, in section 7


TASKS = {
    "semseg": Task(None, 255, 1, lambda p, y, b: class_loss(p, y), "mIoU", "%", True, lambda k, b: MeanIoU(k)),
    "parsing": Task(7, 255, 2, lambda p, y, b: class_loss(p, y), "mIoU", "%", True, lambda k, b: MeanIoU(k)),
    "saliency": Task(1, 255, 5, lambda p, y, b: binary_loss(p, y), "maxF", "%", True, lambda k, b: MaxF()),
    "normal": Task(3, 0, 10, lambda p, y, b: normal_loss(p, y), "mErr", "deg", False, lambda k, b: MeanAngularError()),
    "depth": Task(1, 0, 1, lambda p, y, b: depth_loss(p, y), "RMSE", "m", False, lambda k, b: RMSE()),
    "boundary": Task(1, 255, 50, lambda p, y, b: binary_loss(p, y, b.boundary_weight), "odsF", "%", True,
                     lambda k, b: OdsF(b.max_dist)),
}


class Benchmark(NamedTuple):
    """What differs between the data sets. nyud, pascal: the protocol's values. toy: choices, for minutes on a CPU."""

    tasks: tuple
    iterations: int
    lr: float
    boundary_weight: float  # of boundary pixels in their loss; the others weigh 1 minus this
    max_dist: float  # tolerance of boundary matching, as a share of the image's diagonal
    scales: tuple = (0.5, 2)  # of the augmentation, uniform


BENCHMARKS = {
    "toy": Benchmark(("semseg", "parsing", "saliency", "depth", "normal", "boundary"), 560, 0.03, 0.8, 0.011,
                     scales=(1, 1)),
    "nyud": Benchmark(("semseg", "depth", "normal", "boundary"), 40_000, 0.01, 0.8, 0.011),
    "pascal": Benchmark(("semseg", "parsing", "saliency", "normal", "boundary"), 40_000, 0.005, 0.95, 0.0075),
}


class UserError(Exception):
    """Bad use or bad input: its text is the one line that the user sees."""


# ---------------------------------------------------------------------------------------------------------- 3. data
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in [0, 1]
MEAN_COLOUR = tuple(round(255 * m) for m in MEAN)  # pads images: 0 after normalisation


class DenseTasks(Dataset):
    """One split of an HDF5 file (layout: README.md) -> {"image": uint8 (3, H, W), task: label as in the file}.

    A key is epoch * len(self) + index: the augmentation is a function of (seed, key) alone, so that it is the same
    with any number of worker processes and after a resume. Every sample has the file's H x W; padding is ignored.
    """

    def __init__(self, path, split, tasks, augment=False, seed=0):
        self.path, self.split, self.tasks, self.augment, self.seed = str(path), split, list(tasks), augment, seed
        self.arrays = self.owner = None  # each process opens the file for itself
        try:
            with h5py.File(path, "r") as file:
                self.name = file.attrs["dataset"]
                absent = [name for name in ["image", "size", *self.tasks] if name not in file[split]]
                self.shape = file[split]["image"].shape[1:3] if not absent else None
                self.length = len(file[split]["size"]) if not absent else 0
                self.classes = {task: [str(name) for name in file.attrs[f"{task}_classes"]]
                                for task in self.tasks if f"{task}_classes" in file.attrs}
                absent += [f"{task}_classes" for task in self.tasks
                           if TASKS[task].channels is None and task not in self.classes]
        except (OSError, KeyError) as error:
            raise UserError(f"{path} is not a data file of data_prep.py: {error}") from error
        if absent or not self.length:
            raise UserError(f"{path} holds no {', '.join(absent) or 'image'} in {split}")
        if self.name not in BENCHMARKS:
            raise UserError(f"{path} holds the data set {self.name}, known are {', '.join(BENCHMARKS)}")

    def __len__(self):
        return self.length

    def __getstate__(self):
        return {**self.__dict__, "arrays": None, "owner": None}

    def __getitem__(self, key):
        if self.owner != os.getpid():
            group, self.owner = h5py.File(self.path, "r")[self.split], os.getpid()
            self.arrays = {name: group[name] for name in ("image", "size", *self.tasks)}  # a lookup in a file is slow
        index = key % len(self)
        height, width = (int(n) for n in self.arrays["size"][index])
        if self.augment:
            sample = self.augmented(index, height, width, np.random.default_rng([self.seed, key]))
        else:
            sample = {name: torch.from_numpy(array[index]) for name, array in self.arrays.items() if name != "size"}
            sample["image"][height:] = sample["image"][:, width:] = torch.tensor(MEAN_COLOUR, dtype=torch.uint8)
            sample["image"] = sample["image"].permute(2, 0, 1)
        for task, names in self.classes.items():
            if (sample[task] + 1).max() > len(names):  # uint8: 255, ignored, becomes 0
                raise UserError(f"{self.path}: a {task} label of {self.split} image {index} is beyond the {len(names)} "
                                "class names; correct the file")
        return sample

    def augmented(self, index, height, width, rng):
        """Random scale, crop, flip and colours (protocol). The crop is cut out first and only then resized."""
        semseg = self.arrays["semseg"][index] if "semseg" in self.tasks else None
        scale, flip = rng.uniform(*BENCHMARKS[self.name].scales), rng.random() < 0.5
        high, wide = (min(n, round(full / scale)) for n, full in zip((height, width), self.shape))  # cut from the file
        for _ in range(10):
            top, left = rng.integers(height - high + 1), rng.integers(width - wide + 1)
            window = np.s_[top : top + high, left : left + wide]
            if semseg is None:
                break
            counts = np.bincount(semseg[window][::4, ::4].ravel(), minlength=256)[:255]  # every 4th pixel tells enough
            if counts.max() <= 0.75 * counts.sum():
                break
        out = [min(round(n * scale), full) for n, full in zip((high, wide), self.shape)]
        rows, columns = (((np.arange(n) + 0.5) * size // n).astype(int) for n, size in zip(out, (high, wide)))  # nearest
        columns = columns[:: -1 if flip else 1]
        sample = {}
        for task in self.tasks:
            label = semseg[window] if task == "semseg" else self.arrays[task][(index, *window)]
            whole = np.full((*self.shape, *label.shape[2:]), TASKS[task].ignored, label.dtype)
            whole[: out[0], : out[1]] = label.take(rows, 0).take(columns, 1)
            sample[task] = torch.from_numpy(whole)
        if flip and "normal" in sample:
            sample["normal"][..., 0] *= -1
        if "depth" in sample:
            sample["depth"] /= scale  # as if the camera had come nearer
        image = torch.from_numpy(self.arrays["image"][(index, *window)]).permute(2, 0, 1)
        image = v2.functional.resize(image, out, antialias=True)
        image = distort(image.flip(2) if flip else image, rng)
        padding = [0, 0, self.shape[1] - out[1], self.shape[0] - out[0]]
        return {**sample, "image": v2.functional.pad(image, padding, MEAN_COLOUR)}


def distort(image, rng):
    """Photometric distortion (protocol): brightness, contrast, saturation, hue, each every second time; uint8 (3, H, W).

    In RGB all four are affine, hue as a turn about the grey axis, so they are one matrix and one offset, rounded once
    (torchvision's change of hue alone takes twice as long as the whole rest of a sample).
    """
    brightness, contrast, saturation, turn = (
        rng.uniform(-most, most) * (rng.random() < 0.5) for most in (0.125, 0.5, 0.5, 0.2 * math.pi))
    luma = torch.tensor([0.299, 0.587, 0.114])
    cos, sin = (1 - math.cos(turn)) / 3, math.sin(turn) / math.sqrt(3)
    hue = torch.tensor([[1 - 2 * cos, cos - sin, cos + sin],
                        [cos + sin, 1 - 2 * cos, cos - sin],
                        [cos - sin, cos + sin, 1 - 2 * cos]])
    matrix = hue @ ((1 + saturation) * torch.eye(3) - saturation * luma) * (1 + brightness) * (1 + contrast)
    pixels = image.reshape(3, -1).float()
    grey = (1 + brightness) * luma @ pixels.mean(1)  # which contrast moves away from, and saturation and hue keep
    return torch.addmm(-contrast * grey, matrix, pixels).round_().clamp_(0, 255).byte().view(image.shape)


class EndlessSampler(Sampler):
    """Keys of a shuffled pass, then of the next, without end: a process's share, from its `start`-th key on."""

    def __init__(self, dataset, seed, start, rank=0, world=1):
        self.start, self.length = start, len(dataset)
        self.shuffle = DistributedSampler(dataset, world, rank, shuffle=True, seed=seed * 100_003)  # epochs add 1

    def __iter__(self):
        first, skip = divmod(self.start, len(self.shuffle))
        for epoch in itertools.count(first):
            self.shuffle.set_epoch(epoch)
            yield from (epoch * self.length + index for index in itertools.islice(self.shuffle, skip, None))
            skip = 0


def to_device(batch, device):
    """A batch of DenseTasks -> normalised image (B, 3, H, W), {task: label}, of which the types widen only here.

    Labels: long (B, H, W); depth float (B, 1, H, W) in metres; normal float (B, 3, H, W).
    """
    batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    image = v2.functional.normalize(batch.pop("image").float() / 255, MEAN, STD)
    labels = {task: label[:, None].nan_to_num(0, 0, 0) if task == "depth" else
              label.permute(0, 3, 1, 2).float().nan_to_num(0, 0, 0) if task == "normal" else
              label.long() for task, label in batch.items()}
    return image.contiguous(memory_format=torch.channels_last), labels


def find_data(name, path, make=False):
    """The data file of a data set; `make` a missing toy file on the spot."""
    path = Path(path or Path("data") / f"{name}.h5")
    if make and not path.exists() and name == "toy" and rank_and_world()[0] == 0:
        import data_prep
        print(f"{path} is not there: rendering it", flush=True)
        try:
            data_prep.make_toy(path)
        except (data_prep.PrepError, OSError) as error:
            raise UserError(f"{path} cannot be made: {error}") from error
    if dist.is_initialized():
        dist.barrier()
    if not path.exists():
        raw = "" if name == "toy" else " --raw DIR"
        raise UserError(f"{path} is not there; make it with: python data_prep.py {name}{raw} --out {path}")
    return path


# ------------------------------------------------------------------------------------------------------ 4. backbones
def conv_bn(channels_in, channels_out, kernel=3, stride=1, relu=True):
    convolution = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), *[nn.ReLU(inplace=True)] * relu)


def residual(block, channels_in, channels, count):
    """`count` of torchvision's residual blocks in a row."""
    channels_out = channels * block.expansion
    shortcut = conv_bn(channels_in, channels_out, 1, relu=False) if channels_in != channels_out else None
    rest = [block(channels_out, channels) for _ in range(count - 1)]
    return nn.Sequential(block(channels_in, channels, downsample=shortcut), *rest)


class HighResolutionModule(nn.Module):
    """Parallel branches, a resolution each, whose outputs are then summed into one another at every resolution."""

    def __init__(self, channels, blocks):
        super().__init__()
        self.branches = nn.ModuleList(residual(resnet.BasicBlock, c, c, blocks) for c in channels)
        self.fuse_layers = nn.ModuleList(nn.ModuleList(self.fuse(channels, i, j) for j in range(len(channels)))
                                         for i in range(len(channels)))

    @staticmethod
    def fuse(channels, i, j):
        """From branch j to branch i: 1x1 upwards (then resized), a 3x3 of stride 2 for every level downwards."""
        if j >= i:
            return nn.Identity() if j == i else conv_bn(channels[j], channels[i], 1, relu=False)
        steps = [conv_bn(channels[j], channels[j], stride=2) for _ in range(i - j - 1)]
        return nn.Sequential(*steps, conv_bn(channels[j], channels[i], stride=2, relu=False))

    def forward(self, maps):
        maps = [branch(x) for branch, x in zip(self.branches, maps)]
        fused = []
        for own, layers in zip(maps, self.fuse_layers):
            parts = [layer(x) for layer, x in zip(layers, maps)]
            parts = [x if x.shape == own.shape else F.interpolate(x, own.shape[2:]) for x in parts]  # odd sizes too
            fused.append(F.relu(sum(parts[1:], parts[0])))
        return fused


class HRNet(nn.Module):
    """HRNet (Wang et al., 2020) without its classifier; parameters are named as in the official checkpoints."""

    def __init__(self, width, first_blocks, modules, blocks):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(3, 64, stride=2, relu=False)
        self.conv2, self.bn2 = conv_bn(64, 64, stride=2, relu=False)
        self.layer1 = residual(resnet.Bottleneck, 64, 64, first_blocks)
        self.channels = [width * 2**i for i in range(4)]
        w = self.channels
        self.transition1 = nn.ModuleList([conv_bn(256, w[0]), nn.Sequential(conv_bn(256, w[1], stride=2))])
        for stage in (2, 3, 4):
            if stage > 2:
                new = nn.Sequential(conv_bn(w[stage - 2], w[stage - 1], stride=2))
                setattr(self, f"transition{stage - 1}", nn.ModuleList([*[nn.Identity()] * (stage - 1), new]))
            setattr(self, f"stage{stage}", nn.Sequential(
                *[HighResolutionModule(w[:stage], blocks) for _ in range(modules[stage - 2])]))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        """(B, 3, H, W) -> 4 maps of `channels` at strides 4, 8, 16, 32."""
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        maps = [self.layer1(x)]
        for transition, stage in ((self.transition1, self.stage2), (self.transition2, self.stage3),
                                  (self.transition3, self.stage4)):
            maps = stage([layer(maps[min(i, len(maps) - 1)]) for i, layer in enumerate(transition)])
        return maps


class ResNet(resnet.ResNet):
    """torchvision's, without its classifier."""

    def __init__(self, block, layers):
        super().__init__(block, layers)
        del self.fc
        self.channels = [width * block.expansion for width in (64, 128, 256, 512)]

    def forward(self, x):
        """(B, 3, H, W) -> 4 maps of `channels` at strides 4, 8, 16, 32."""
        x, maps = self.maxpool(self.relu(self.bn1(self.conv1(x)))), []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps


BACKBONES = {  # HRNet: width, blocks of stage 1, modules of stages 2 to 4, blocks of a branch
    "hrnet_tiny": lambda: HRNet(12, 1, (1, 1, 1), 1),  # for minutes on a CPU (choice)
    "hrnet18s": lambda: HRNet(18, 2, (1, 3, 2), 2),  # HRNet-W18-Small-v2
    "hrnet18": lambda: HRNet(18, 4, (1, 4, 3), 4),
    "hrnet32": lambda: HRNet(32, 4, (1, 4, 3), 4),
    "hrnet48": lambda: HRNet(48, 4, (1, 4, 3), 4),
    "resnet18": lambda: ResNet(resnet.BasicBlock, (2, 2, 2, 2)),
    "resnet50": lambda: ResNet(resnet.Bottleneck, (3, 4, 6, 3)),
}


def build_backbone(name):
    """A backbone with random weights: .channels, 4 ints; (B, 3, H, W) -> 4 maps at strides 4, 8, 16, 32."""
    if name not in BACKBONES:
        raise UserError(f"no backbone {name!r}; there are {', '.join(BACKBONES)}")
    return BACKBONES[name]()


# ---------------------------------------------------------------------------------------------------------- 5. model
class MultiTaskNet(nn.Module):
    """Shared encoder, and per task a 3x3 conv-BN-ReLU to a quarter of its channels and a 1x1 prediction (protocol).

    tasks: task -> prediction channels. The four maps are resized to stride 4 and concatenated; a ResNet's, far wider,
    first shrink to 128 channels each by 1x1 conv-BN-ReLU (choice).
    """

    def __init__(self, tasks, backbone="hrnet18s"):
        super().__init__()
        self.backbone = build_backbone(backbone)
        widths, wide = self.backbone.channels, backbone.startswith("resnet")
        self.laterals = nn.ModuleList(conv_bn(width, 128, 1) if wide else nn.Identity() for width in widths)
        total = 128 * len(widths) if wide else sum(widths)
        self.channels = total // 4  # C of features()
        self.heads = nn.ModuleDict({task: conv_bn(total, self.channels) for task in tasks})
        self.predictors = nn.ModuleDict({task: nn.Conv2d(self.channels, k, 1) for task, k in tasks.items()})
        for predictor in self.predictors.values():
            nn.init.normal_(predictor.weight, std=0.01)
            nn.init.zeros_(predictor.bias)

    def features(self, x):
        """(B, 3, H, W) -> task -> F_T (B, C, H/4, W/4), rounded up: what the regulariser sees."""
        maps = [lateral(m) for lateral, m in zip(self.laterals, self.backbone(x))]
        shared = torch.cat([F.interpolate(m, maps[0].shape[2:], mode="bilinear") for m in maps], 1)
        return {task: head(shared) for task, head in self.heads.items()}

    def predict(self, features, size):
        """features() -> task -> (B, K, *size)."""
        return {task: F.interpolate(self.predictors[task](feature), size, mode="bilinear")
                for task, feature in features.items()}

    def forward(self, x):
        """(B, 3, H, W) -> task -> (B, K, H, W)."""
        return self.predict(self.features(x), x.shape[2:])


def postprocess(task, prediction):
    """(B, K, H, W) of the network -> labels (B, H, W), depth >= 0 (B, 1, H, W), unit normals (B, 3, H, W), or
    probability (B, H, W)."""
    if task == "depth":
        return prediction.clamp(min=0)
    if task == "normal":
        return F.normalize(prediction, dim=1)
    return prediction.sigmoid().squeeze(1) if TASKS[task].channels == 1 else prediction.argmax(1)


# ----------------------------------------------------------------------------------------------------- 6. task losses
def across(count):
    """A count -> its mean over all processes, at least 1: every task's loss is a mean over the whole batch."""
    count = count.float()
    if dist.is_initialized():
        dist.all_reduce(count)
        count /= dist.get_world_size()
    return count.clamp(min=1)


def class_loss(prediction, label):
    """Cross entropy (B, K, H, W), (B, H, W), averaged over the valid pixels."""
    rows = prediction.movedim(1, -1).flatten(0, 2)  # a view of channels-last maps, where (B, K, H, W) would be copied
    loss = F.cross_entropy(rows, label.flatten(), ignore_index=255, reduction="none")
    return loss.sum() / across((label != 255).sum())


def binary_loss(prediction, label, positive_weight=None):
    """Weighted binary cross entropy (B, 1, H, W), (B, H, W), averaged over the valid pixels.

    Positives weigh `positive_weight`, negatives 1 minus that; None: the batch's share of the other class (balanced).
    """
    valid, positive = label != 255, label == 1
    pixels = across(valid.sum())
    if positive_weight is None:
        positive_weight = 1 - across(positive.sum()) / pixels
    weight = torch.where(positive, positive_weight, 1 - positive_weight) * valid
    target = positive.to(prediction.dtype)
    return F.binary_cross_entropy_with_logits(prediction.squeeze(1), target, weight, reduction="sum") / pixels


def depth_loss(prediction, label):
    """L1 in metres (B, 1, H, W), averaged over the valid pixels."""
    valid = label > 0
    return ((prediction - label).abs() * valid).sum() / across(valid.sum())


def normal_loss(prediction, label):
    """L1 between unit vectors (B, 3, H, W), summed over their 3 components, averaged over the valid pixels.

    A prediction shorter than 1 is taken as it is (choice): the gradient of scaling a short vector up is so steep that
    the first steps would throw it far out, where the gradient vanishes and training stalls.
    """
    valid = (label != 0).any(1)
    return ((F.normalize(prediction, dim=1, eps=1) - label).abs().sum(1) * valid).sum() / across(valid.sum())


class Objective(nn.Module):
    """Network, task losses and regulariser in one forward pass, which is what DistributedDataParallel needs."""

    def __init__(self, net, contrast, benchmark):
        super().__init__()
        self.net, self.contrast, self.benchmark = net, contrast, benchmark

    def forward(self, images, labels):
        """(B, 3, H, W) and labels of a batch -> {task: unweighted loss, "contrast": loss}."""
        features, contrast = self.net.features(images), {}
        if self.contrast is not None:  # first, so that backward() reaches it last, when the predictions' memory is free
            contrast = {"contrast": self.contrast(features, labels)}
        predictions = self.net.predict(features, images.shape[2:])
        losses = {task: TASKS[task].loss(prediction.float(), labels[task], self.benchmark)
                  for task, prediction in predictions.items()}
        return losses | contrast


# -------------------------------------------------------------------------------------------------------- 7. metrics
# Every metric sums integers, `counts` (int64), over the pixels of the whole split: neither the order of the images nor
# the number of processes can change a figure. nan where nothing is valid.
class MeanIoU:
    """Mean intersection over union in percent, from one confusion matrix; (B, H, W) labels, 255 ignored.

    A class that occurs in neither label nor prediction does not enter the mean (the field's evaluators count it 0).
    """

    def __init__(self, num_classes):
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)  # label, prediction

    def update(self, prediction, label):
        valid = label != 255
        pair = label[valid] * self.num_classes + prediction[valid]
        self.counts += torch.bincount(pair, minlength=self.num_classes**2).view_as(self.counts).cpu()

    def per_class(self):
        """(num_classes,) in percent; nan for a class that does not occur."""
        hit = self.counts.diag().double()
        return 100 * hit / (self.counts.sum(0) + self.counts.sum(1) - hit)

    def compute(self):
        return self.per_class().nanmean().item()


class MeanOverPixels:
    """Mean of an error over the valid pixels: (sum, number), the sum in fixed point to make it exact."""

    UNIT = 2**-20

    def __init__(self):
        self.counts = torch.zeros(2, dtype=torch.int64)

    def update(self, prediction, label):
        error = (self.error(prediction.double(), label.double()) / self.UNIT).round().long()
        self.counts += torch.stack([error.sum(), torch.tensor(error.numel(), device=error.device)]).cpu()

    def compute(self):
        total, number = self.counts.tolist()
        return total * self.UNIT / number if number else math.nan


class RMSE(MeanOverPixels):
    """Root mean squared error in metres; (B, 1, H, W), the prediction clamped at 0, labels of 0 ignored."""

    @staticmethod
    def error(prediction, label):
        return (prediction.clamp(min=0) - label)[label > 0] ** 2

    def compute(self):
        return math.sqrt(super().compute())


class MeanAngularError(MeanOverPixels):
    """Mean angle in degrees between (B, 3, H, W) unit vectors, labels of length 0 ignored."""

    @staticmethod
    def error(prediction, label):
        prediction, label = (F.normalize(v, dim=1) for v in (prediction, label))
        angle = 2 * torch.atan2((prediction - label).norm(dim=1), (prediction + label).norm(dim=1))  # stable at 0, 180
        return angle.rad2deg()[(label != 0).any(1)]


class MaxF:
    """Best F-measure (beta^2 = 0.3) over the thresholds 0.05, 0.10 ... 0.95, in percent; (B, H, W), 255 ignored."""

    def __init__(self):
        self.thresholds = torch.arange(1, 20, dtype=torch.float64) / 20
        self.counts = torch.zeros(2, 20, dtype=torch.int64)  # label, how many thresholds the probability exceeds

    def update(self, prediction, label):
        valid = label != 255
        exceeded = torch.bucketize(prediction[valid].double(), self.thresholds.to(prediction.device))
        self.counts += torch.bincount(20 * label[valid] + exceeded, minlength=40).view(2, 20).cpu()

    def compute(self):
        false, true = self.counts.flip(1).cumsum(1).flip(1)[:, 1:].double()  # predicted positives at each threshold
        positives = self.counts[1].sum()
        f_measure = 1.3 * true / (0.3 * positives + true + false)  # (1 + b) P R / (b P + R)
        return 100 * f_measure.max().item() if positives else math.nan


# 101 thresholds make 101 binary maps of one picture. They are handled all at once: bit t of a pixel's integer says
# whether the pixel passes threshold t, and one bitwise operation on the integers treats all maps ("planes") together.
THRESHOLDS = np.array([0.001, *np.arange(1, 100) / 100, 0.999])  # the public runs' own; a pixel must exceed them
ROUNDS = 24  # of the search for augmenting paths


def thin(mask: np.ndarray) -> np.ndarray:
    """Guo-Hall thinning of a (H, W) bool map until nothing changes; beyond the frame nothing is set.

    Every bit of an unsigned integer map is thinned as a map of its own, so a uint64 map holds 64. Equals OpenCV's
    THINNING_GUOHALL on the map padded by one pixel (unpadded, OpenCV leaves the outermost ring as it is).
    """
    height, width = mask.shape
    stride = width + 2
    around = np.array([-stride, 1 - stride, 1, 1 + stride, stride, stride - 1, -1, -1 - stride])[:, None]  # N, NE, ...
    flat, touched = np.pad(mask, 1).ravel(), np.zeros((height + 2) * stride, bool)

    def two(a, b, c, d):  # at least two of four
        return (a & b) | (c & d) | ((a | b) & (c | d))

    candidates = previous = np.flatnonzero(flat)
    first = True  # the two half-passes peel from opposite sides in turn
    while candidates.size:
        here, (n, ne, e, se, s, sw, w, nw) = flat[candidates], flat[candidates + around]
        a, b, c, d = ~n & (ne | e), ~e & (se | s), ~s & (sw | w), ~w & (nw | n)
        delete = here & (a ^ b ^ c ^ d) & ~((a & b) | (c & d))  # exactly one crossing: the pixel connects nothing
        p, q = (nw | n, ne | e, se | s, sw | w), (n | ne, e | se, s | sw, w | nw)
        delete &= two(*p) & two(*q) & ~np.bitwise_and.reduce(p + q)  # 2 <= min(pairs p, pairs q) <= 3: no end, no core
        delete &= ~((s | sw | ~nw) & w) if first else ~((n | ne | ~se) & e)
        flat[candidates] = here & ~delete
        # A pixel's verdict in this half-pass changes only if a neighbour went in the last two half-passes.
        changed = candidates[delete != 0]
        touched[np.concatenate([changed, previous]) + around] = True
        candidates, previous, first = np.flatnonzero(touched), changed, not first
        touched[candidates] = False
        candidates = candidates[flat[candidates] != 0]
    return flat.reshape(height + 2, stride)[1:-1, 1:-1]


def non_maximum_suppression(probability: np.ndarray) -> np.ndarray:
    """Keep the ridges of a (H, W) boundary map in [0, 1], as the structured-edges toolbox does (the protocol's step).

    The direction across an edge comes from the second derivatives of the map smoothed by a triangle filter of radius 4.
    A pixel goes to 0 where 1.01 times its value is below either neighbour one pixel away along that direction. The
    outermost 5 pixels are multiplied by 0, 1/5, ... 4/5: **a pixel of the outermost ring is never predicted.**
    """
    height, width = probability.shape
    if min(height, width) < 2:  # no derivative, and all of it is rim
        return np.zeros_like(probability)
    smooth = np.pad(probability, 4, "symmetric")
    smooth = sum((5 - abs(k)) / 25 * smooth[4 + k : 4 + k + height] for k in range(-4, 5))
    smooth = sum((5 - abs(k)) / 25 * smooth[:, 4 + k : 4 + k + width] for k in range(-4, 5))
    dy, dx = np.gradient(smooth)
    (dyy, dxy), dxx = np.gradient(dy), np.gradient(dx, axis=1)
    y, x = np.nonzero(probability)
    value, dxx, dxy, dyy = (a[y, x] for a in (probability, dxx, dxy, dyy))
    angle = np.mod(np.arctan(dyy * np.sign(-dxy) / (dxx + 1e-5)), np.pi)
    keep = np.ones(len(y), bool)
    for side in (-1, 1):
        v = np.clip(y + side * np.sin(angle), 0, height - 1.001)
        u = np.clip(x + side * np.cos(angle), 0, width - 1.001)
        i, j = v.astype(int), u.astype(int)
        v, u = v - i, u - j
        above = (1 - u) * probability[i, j] + u * probability[i, j + 1]
        below = (1 - u) * probability[i + 1, j] + u * probability[i + 1, j + 1]
        keep &= 1.01 * value >= (1 - v) * above + v * below
    ridges = np.zeros_like(probability)
    ridges[y[keep], x[keep]] = value[keep]
    border = min(5, height // 2, width // 2)
    row, column = (np.minimum(np.minimum(np.arange(n), np.arange(n)[::-1]) / border, 1) for n in (height, width))
    return ridges * row[:, None] * column


def _bits(words: np.ndarray) -> np.ndarray:
    """(N, K) uint64 -> (N, 64 K) of 0 and 1, the lowest bit first."""
    return np.unpackbits(np.ascontiguousarray(words, "<u8").view(np.uint8), axis=1, bitorder="little")


def _augment(roots, mate_a, mate_b, usable_b, near) -> None:
    """Add to a matching, in place, augmenting paths from the free vertices `roots` of side a, until it is maximum.

    mate_a, mate_b (planes * columns,): the partner's position in the other, -1 if free; near (columns of a, D): columns
    of b within reach. Alternating trees grow breadth-first from all roots in all planes, a vertex of b joins one tree,
    and a tree that meets a free one is augmented. A plane without any such tree is maximum (Berge) and leaves the loop.
    Ten 425 x 560 maps like a trained network's needed 21 rounds at most; ROUNDS ends what only noise can spin out.
    """
    columns_a, planes = len(near), mate_a.size // len(near)
    columns_b, parent, winner = mate_b.size // planes, np.empty(mate_b.size, np.int32), np.empty(mate_b.size, np.int32)
    for _ in range(ROUNDS):
        if not roots.size:
            break
        fresh, end = usable_b.copy(), np.full(roots.size, -1)  # end: the free vertex that a tree has met
        frontier, tree = roots, np.arange(roots.size)
        while frontier.size:
            level = []
            for first in range(0, frontier.size, 1 << 14):  # bounds the memory
                part, branch = frontier[first : first + (1 << 14)], tree[first : first + (1 << 14)]
                plane, column = np.divmod(part, columns_a)
                reached = (near[column] + (plane * columns_b).astype(np.int32)[:, None]).ravel()
                new = np.flatnonzero(fresh[reached])
                reached = reached[new]
                winner[reached] = new
                won = winner[reached] == new  # several trees may reach for one vertex: the last has it
                reached, source = reached[won], new[won] // near.shape[1]
                fresh[reached], parent[reached] = False, part[source]
                branch, partner = branch[source], mate_b[reached]
                end[branch[partner < 0]] = reached[partner < 0]
                level.append((partner[partner >= 0], branch[partner >= 0]))
            frontier, tree = np.concatenate(level, axis=1)
            frontier, tree = frontier[end[tree] < 0], tree[end[tree] < 0]
        met = end >= 0
        unsettled = np.bincount(roots[met] // columns_a, minlength=planes) > 0
        roots, end = roots[~met & unsettled[roots // columns_a]], end[met]
        while end.size:  # swap the edges along the paths, all paths one step at a time
            start = parent[end]
            mate_b[end], mate_a[start], end = start, end, mate_a[start]
            end = end[end >= 0]


def match_boundaries(predicted: np.ndarray, true: np.ndarray, radius: float) -> np.ndarray:
    """How many boundary pixels can be matched one to one at a distance of at most `radius` pixels.

    The exact maximum, but for ROUNDS: random noise against a label of random noise came out 0.008 low in F, at worst.

    predicted (K, H, W) uint64, each bit of which is a map of its own; true (H, W) bool -> (64 K,) int64, one count per
    map, lowest bit first. Nearest pairs of free pixels are taken first, then augmenting paths make it a maximum.
    """
    reach, planes = int(radius), 64 * len(predicted)
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
    order = np.argsort(dy**2 + dx**2, kind="stable")[: np.sum(dy**2 + dx**2 <= radius**2)]
    predicted = np.stack([np.pad(word, reach).ravel() for word in predicted], axis=1)
    pixels_p, pixels_t = np.flatnonzero(predicted.any(1)), np.flatnonzero(np.pad(true, reach))
    p_count, t_count = pixels_p.size, pixels_t.size
    p_at = np.full(len(predicted), -1, np.int32)
    p_at[pixels_p] = np.arange(p_count)
    # One column more than there are pixels: nobody, who fills up the lists of neighbours and is in no plane.
    free_p = np.append(predicted[pixels_p], 0 * predicted[:1], axis=0)  # (P + 1, K)
    free_t = np.append(np.full((t_count, planes // 64), ~np.uint64(0)), 0 * predicted[:1], axis=0)  # (T + 1, K)
    usable_p, usable_t = (_bits(free).T.ravel().astype(bool) for free in (free_p, free_t))
    mate_p, mate_t = (np.full((planes, len(free)), -1, np.int32) for free in (free_p, free_t))
    near_p, near_t = (np.full((order.size, n + 1), m, np.int32) for n, m in ((p_count, t_count), (t_count, p_count)))
    degree_p, degree_t = (np.zeros(len(free), int) for free in (free_p, free_t))
    for offset in dy[order] * (true.shape[1] + 2 * reach) + dx[order]:  # a pixel has one partner at most per offset
        p = p_at[pixels_t + offset]
        t = np.flatnonzero(p >= 0)
        p = p[t]
        near_p[degree_p[p], p], near_t[degree_t[t], t] = t, p
        degree_p[p] += 1
        degree_t[t] += 1
        both = free_p[p] & free_t[t]
        free_p[p] ^= both
        free_t[t] ^= both
        hit = np.flatnonzero(both.any(1))
        pair, plane = np.nonzero(_bits(both[hit]))
        p, t = p[hit][pair], t[hit][pair]
        mate_p[plane, p], mate_t[plane, t] = plane * (t_count + 1) + t, plane * (p_count + 1) + p
    near_p, near_t = (np.ascontiguousarray(n[: d.max()].T) for n, d in ((near_p, degree_p), (near_t, degree_t)))
    loose_p, loose_t = (_bits(f).T.astype(bool) & (d > 0) for f, d in ((free_p, degree_p), (free_t, degree_t)))
    from_p = (loose_p.sum(1) < loose_t.sum(1))[:, None]  # per plane: the fewer roots, the smaller the search
    mate_p, mate_t = mate_p.ravel(), mate_t.ravel()
    _augment(np.flatnonzero(loose_p & from_p), mate_p, mate_t, usable_t, near_p)
    _augment(np.flatnonzero(loose_t & ~from_p), mate_t, mate_p, usable_p, near_t)
    return np.sum(mate_t.reshape(planes, -1) >= 0, axis=1)


def count_boundaries(probability: np.ndarray, label: np.ndarray, max_dist: float) -> np.ndarray:
    """One map's (3, 101) int64 counts of matched, predicted and true boundary pixels, a column per threshold.

    probability (H, W) in [0, 1], read with 8 bits as the public runs do; label (H, W), 1 boundary, 0 none, 255 ignored.
    The picture is the bounding box of what is not ignored, so padding moves neither the rim nor the diagonal (our
    choice). Predictions on ignored pixels inside it are dropped after thinning. All ignored: no counts.
    """
    valid = label != 255
    if not valid.any():
        return np.zeros((3, THRESHOLDS.size), np.int64)
    frame = tuple(slice(np.flatnonzero(v)[0], np.flatnonzero(v)[-1] + 1) for v in (valid.any(1), valid.any(0)))
    probability, label, valid = probability[frame].astype(float), label[frame], valid[frame]
    if not (probability.min() >= 0 and probability.max() <= 1):
        raise ValueError("odsF needs boundary probabilities in [0, 1]: apply the sigmoid, and look for NaN")
    ridges = non_maximum_suppression(np.round(probability * 255) / 255)
    passed = np.searchsorted(THRESHOLDS, ridges)  # (H, W): how many thresholds a pixel exceeds
    steps = np.unique(passed[passed > 0])  # thresholds that no pixel lies between share one plane
    plane, ones = np.searchsorted(steps, passed, "right"), np.array([2**n - 1 for n in range(65)], np.uint64)
    planes = np.stack([thin(ones[np.clip(plane - first, 0, 64)]) for first in (0, 64)])  # (2, H, W)
    planes[:, ~valid] = 0
    true = thin(label == 1)
    matched = match_boundaries(planes, true, max_dist * np.hypot(*true.shape))
    predicted = _bits(planes[:, planes.any(0)].T).sum(0, dtype=np.int64)
    column = np.searchsorted(steps, np.arange(1, THRESHOLDS.size + 1))  # threshold -> plane; past the last: empty
    return np.stack([matched[column], predicted[column], np.full(THRESHOLDS.size, true.sum())])


class OdsF:
    """Boundary F at the best threshold of the whole data set (odsF), in percent, by the protocol of SEISM's evaluation.

    `counts` (3, 101) int64: matched, predicted and true pixels summed over all maps, exact in any order; add those of
    several processes. Matching is one to one, so F = 2 matched / (predicted + true), and it is the maximum within
    max_dist (0.011 nyud, 0.0075 pascal) times the map's diagonal. An empty label or prediction still counts the other
    side's pixels; where nothing matches, with nothing true or predicted anywhere too, F is 0, never NaN (our choice).
    Prediction = label gives 100 except for label pixels on the frame's outermost ring, which the protocol's suppression
    never predicts: each costs recall. Of equal thresholds the lowest is `best_threshold`.
    """

    def __init__(self, max_dist: float):
        self.max_dist = max_dist
        self.counts = torch.zeros(3, THRESHOLDS.size, dtype=torch.int64)

    def update(self, prediction: torch.Tensor, label: torch.Tensor) -> None:
        """prediction (B, H, W) probabilities; label (B, H, W), 1 boundary, 0 none, 255 ignored."""
        for probability, truth in zip(prediction.detach().float().cpu().numpy(), label.cpu().numpy()):
            self.counts += torch.from_numpy(count_boundaries(probability, truth, self.max_dist)).to(self.counts)

    def f_scores(self) -> torch.Tensor:
        """F in percent at each of THRESHOLDS, (101,) float64."""
        matched, predicted, true = self.counts.double()
        return 200 * matched / (predicted + true).clamp(min=1)

    def compute(self) -> float:
        return self.f_scores().max().item()

    @property
    def best_threshold(self) -> float:
        return float(THRESHOLDS[self.f_scores().argmax().item()])


# ------------------------------------------------------------------------------------------------------ 8. evaluation
def rank_and_world():
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


@torch.inference_mode()
def evaluate(net, dataset, device, workers=0, amp=False):
    """All metrics over a whole split at the file's resolution, one forward pass an image -> what metrics.json holds.

    Images go through one by one, so that a figure depends neither on a batch size nor on the number of processes.
    """
    rank, world = rank_and_world()
    meters = {task: TASKS[task].measure(net.predictors[task].out_channels, BENCHMARKS[dataset.name])
              for task in dataset.tasks}
    net.eval()
    loader = DataLoader(dataset, sampler=range(rank, len(dataset), world), num_workers=workers)
    start = spoken = time.time()
    for done, batch in enumerate(loader, 1):
        images, labels = to_device(batch, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            predictions = net(images)
        for task, meter in meters.items():
            meter.update(postprocess(task, predictions[task].float()), labels[task])
        if rank == 0 and (time.time() > spoken + 5 or done == len(loader)):
            spoken = time.time()
            print(f"evaluation {min(done * world, len(dataset))}/{len(dataset)} images, "
                  f"{done * world / (spoken - start):.1f} images/s", flush=True)
    metrics = {}
    for task, meter in meters.items():
        if world > 1:
            counts = meter.counts.to(device)
            dist.all_reduce(counts)
            meter.counts = counts.cpu()
        metrics[task] = {TASKS[task].metric: known(meter.compute())}
        if hasattr(meter, "per_class"):
            names = dataset.classes.get(task, map(str, range(meter.num_classes)))
            metrics[task]["per_class"] = dict(zip(names, map(known, meter.per_class().tolist())))
        if hasattr(meter, "best_threshold"):
            metrics[task]["threshold"] = meter.best_threshold
    return metrics


def known(value):
    """nan, of what had no valid pixel, -> None: JSON has no nan."""
    return None if math.isnan(value) else value


def heading(task):
    """A column's title: task, metric, unit, and the direction in which it improves."""
    row = TASKS[task]
    return f"{task} {row.metric} [{row.unit}] {'↑' if row.higher_is_better else '↓'}"


def show_metrics(metrics):
    """The closing table, on the terminal."""
    for task, values in metrics.items():
        print(f"  {heading(task):24}{show(values[TASKS[task].metric], decimals(task)):>8}")
    for task, values in metrics.items():
        if "per_class" in values:
            print(f"  {task} IoU [%]: " + ", ".join(f"{k} {show(v, 1)}" for k, v in values["per_class"].items()))


def decimals(task):
    """What the papers print: RMSE with 4, the rest with 2."""
    return 4 if TASKS[task].unit == "m" else 2


def show(value, digits):
    return "-" if value is None else f"{value:.{digits}f}"


# -------------------------------------------------------------------------------------------------------- 9. pictures
VIRIDIS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)])  # safe for colour-blind
VOID = (40, 40, 40)  # ignored pixels


def class_colours(count):
    """(count, 3) uint8, the same in every picture: light grey, then hues a golden angle apart in three brightnesses."""
    index = np.arange(count)
    hsv = np.stack([index * 0.618 % 1 * 255, np.full(count, 150), 240 - 45 * (index % 3)], 1).astype(np.uint8)
    colours = np.array(Image.fromarray(hsv[None], "HSV").convert("RGB"))[0]
    colours[0] = 208
    return colours


def colourise(task, label, depth_range=None):
    """A label as it stands in a data file, numpy (H, W) or (H, W, 3) -> uint8 (H, W, 3) picture, ignored pixels dark.

    Depth: viridis, near dark, over `depth_range` (metres; default its own). Normals: (n + 1) / 2 as RGB, x right, y up,
    z towards the viewer, which is how the field shows them.
    """
    if task == "image":
        return label
    if task == "normal":
        picture, ignored = 127.5 + 127.5 * label.astype(np.float32) * (1, -1, -1), ~label.any(-1)
    elif task == "depth":
        near, far = depth_range or (label[label > 0].min(initial=np.inf), label.max(initial=0))
        place = np.clip((label - near) / max(far - near, 1e-6), 0, 1) * (len(VIRIDIS) - 1)
        picture = np.stack([np.interp(place, range(len(VIRIDIS)), channel) for channel in VIRIDIS.T], -1)
        ignored = label <= 0
    elif TASKS[task].channels == 1:  # 0 or 1, or a probability
        picture, ignored = np.repeat(255 - 255 * label.astype(float)[..., None], 3, -1), label == 255
    else:
        picture, ignored = class_colours(256)[label], label == 255
    return np.where(ignored[..., None], VOID, picture).astype(np.uint8)


def legend(classes, width):
    """Task -> class names -> PIL picture of `width` pixels with their colours; only tasks of more than two classes."""
    font, entries, x, y = ImageFont.load_default(13), [], 0, 4
    for task, names in classes.items():
        if TASKS[task].channels == 1:
            continue
        for colour, text in ((None, f"{task}:"), *zip(class_colours(len(names)).tolist(), names)):
            advance = round(font.getlength(text)) + (28 if colour else 10)
            if x + advance > width:
                x, y = 0, y + 20
            entries.append((x, y, colour, text))
            x += advance
        x, y = 0, y + 20
    sheet = Image.new("RGB", (width, y + 4 if entries else 0), "white")
    pen = ImageDraw.Draw(sheet)
    for x, y, colour, text in entries:
        if colour:
            pen.rectangle((x + 2, y + 2, x + 14, y + 14), tuple(colour), "black")
        pen.text((x + (19 if colour else 2), y), text, "black", font)
    return sheet


def panel(rows, captions, classes, width=240):
    """Rows of uint8 (h, w, 3) pictures -> one PIL picture, `width` pixels a column, with a legend of `classes` at the
    foot; captions: a string a cell."""
    font = ImageFont.load_default(13)
    height = min(max(round(width * rows[0][0].shape[0] / rows[0][0].shape[1]), 1), 4 * width)  # of any shape
    total, foot = len(rows[0]) * (width + 4) - 4, len(rows) * (height + 20)
    names = legend(classes, total)
    sheet = Image.new("RGB", (total, foot + names.height), "white")
    sheet.paste(names, (0, foot))
    pen = ImageDraw.Draw(sheet)
    for y, (row, words) in enumerate(zip(rows, captions)):
        for x, (picture, text) in enumerate(zip(row, words)):
            corner = x * (width + 4), y * (height + 20)
            pen.text((corner[0] + 2, corner[1] + 2), text, "black", font)
            tile = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)
            sheet.paste(tile, (corner[0], corner[1] + 18))
    return sheet


def as_file_label(task, prediction):
    """One postprocessed prediction, without its batch dimension -> numpy array laid out as in a data file."""
    array = prediction.float().cpu().numpy()
    return array[0] if task == "depth" else array.transpose(1, 2, 0) if task == "normal" else \
        array if TASKS[task].channels == 1 else array.astype(np.uint8)


@torch.inference_mode()
def draw_preview(net, dataset, device, count=3):
    """Ground truth and prediction, a row each, of `count` images spread over the split."""
    rows, captions = [], []
    net.eval()
    for index in np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int):
        sample = dataset[index]
        predictions = net(to_device({"image": sample["image"][None]}, device)[0])
        image = sample["image"].permute(1, 2, 0).numpy()
        truth = {task: sample[task].numpy() for task in dataset.tasks}
        guess = {task: as_file_label(task, postprocess(task, predictions[task])[0]) for task in dataset.tasks}
        spans = {task: (label[label > 0].min(initial=9e9), label.max()) if task == "depth" else None
                 for task, label in truth.items()}
        for name, labels in (("ground truth", truth), ("prediction", guess)):
            rows.append([image, *(colourise(task, label, spans[task]) for task, label in labels.items())])
            captions.append([f"val {index}: {name}", *(f"depth, {spans[task][0]:.1f} (dark) to {spans[task][1]:.1f} m"
                                                       if task == "depth" else task for task in labels)])
    return panel(rows, captions, dataset.classes)


# ------------------------------------------------------------------------------------------------------- 10. training
LOG_EVERY = 10  # iterations a row of log.csv


@contextmanager
def replacing(path):
    """A temporary name to write to, then renamed: at every moment the file is the old one or the new one."""
    part = Path(f"{path}.part")
    try:
        yield part
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} cannot be written: {' '.join(str(error).split())}") from error
    finally:
        part.unlink(missing_ok=True)


def load_weights(path, *keys):
    """A file of torch.save -> its dictionary, which must have `keys`. Tensors and plain values only: no code is run."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or not set(keys) <= content.keys():
            raise ValueError(f"it has no {' and '.join(keys) or 'weights'}")
        return content
    except Exception as error:  # broken files fail in many ways; all become one line
        reason = str(error).strip().split("\n")[0][:160] or type(error).__name__
        raise UserError(f"{path} cannot be loaded: {reason}") from error


def load_pretrained(backbone, name, source):
    """Fill every parameter of a backbone from `source`: a checkpoint of any of the usual makers, or "imagenet".

    Names may stand in a nested dictionary and behind a prefix; classifiers and other extra entries are passed over.
    """
    if source == "imagenet" and not name.startswith("resnet"):
        raise UserError("--pretrained imagenet is for ResNet; for HRNet, download a checkpoint (README.md says where)")
    if source == "imagenet":
        weights = models.get_model_weights(name).IMAGENET1K_V1
        try:
            state = weights.get_state_dict(check_hash=True)
        except OSError as error:
            raise UserError(f"download {weights.url} to {torch.hub.get_dir()}/checkpoints/: {error}") from error
    else:
        state = load_weights(source)
        for key in ("state_dict", "model"):
            state = state[key] if isinstance(state.get(key), dict) else state
    own = {key: value for key, value in backbone.state_dict().items() if not key.endswith("num_batches_tracked")}
    prefixes = {key[: -len("conv1.weight")] for key in state if key.endswith("conv1.weight")} | {""}
    lacking = {prefix: [key for key, value in own.items()
                        if getattr(state.get(prefix + key), "shape", None) != value.shape] for prefix in prefixes}
    prefix, unfilled = min(lacking.items(), key=lambda item: len(item[1]))
    if unfilled:
        raise UserError(f"{source} does not fill {len(unfilled)} of {len(own)} arrays of {name}: "
                        + ", ".join(unfilled[:3]) + ", ..." * (len(unfilled) > 3))
    backbone.load_state_dict({key: state[prefix + key] for key in own}, strict=False)


def losses_of(pending, names, iteration):
    """The last iterations' losses (a device tensor each) -> their means by name; stops at one that is not finite."""
    values = torch.stack(pending).cpu()  # (iterations, names): waits for the device, so not in every iteration
    if not values.isfinite().all():
        row, column = (~values.isfinite()).nonzero()[0].tolist()
        raise UserError(f"the loss of {names[column]} is {values[row, column]} at iteration "
                        f"{iteration - len(pending) + row + 1}; try a smaller --lr. The last checkpoint is as it was.")
    return dict(zip(names, values.mean(0).tolist()))


class Log:
    """Rows of log.csv and, every few seconds, a line on the terminal."""

    def __init__(self, path, iteration, args):
        self.path, self.iteration, self.total, self.batch_size = path, iteration, args.iters, args.batch_size
        self.time = self.spoken = time.time()

    def row(self, iteration, losses, rate):
        now = time.time()
        speed = self.batch_size * (iteration - self.iteration) / (now - self.time)
        self.iteration, self.time = iteration, now
        row = {"iteration": iteration, **{name: f"{loss:.5g}" for name, loss in losses.items()},
               "lr": f"{rate:.5g}", "images_per_s": f"{speed:.1f}"}
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows([*[row] * new, row.values()])
        if now > self.spoken + 5 or iteration == self.total:
            self.spoken, left = now, int((self.total - iteration) * self.batch_size / speed)
            print(f"{iteration}/{self.total}  " + "  ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
                  + f"  lr {rate:.4f}  {speed:.1f} images/s  {left // 60}:{left % 60:02} left", flush=True)


def save_checkpoint(path, config, iteration, objective, optimiser, schedule):
    """All that --resume needs: the random draws are functions of the seed and the iteration."""
    state = {"config": config, "iteration": iteration, "model": objective.net.state_dict(),
             "contrast": objective.contrast.state_dict() if objective.contrast else {},
             "optimiser": optimiser.state_dict(), "schedule": schedule.state_dict()}
    with replacing(path) as part:
        torch.save(state, part)


def resume(out, config, objective, optimiser, schedule):
    """Load out/last.pt into everything that trains, drop what was logged after it -> its iteration."""
    saved = load_weights(out / "last.pt", "config", "iteration", "model", "contrast", "optimiser", "schedule")
    differ = [key for key in config if saved["config"].get(key) != config[key]]
    if differ:
        raise UserError(f"{out / 'last.pt'} is of another run: "
                        + "; ".join(f"{key} {saved['config'].get(key)}, not {config[key]}" for key in differ))
    objective.net.load_state_dict(saved["model"])
    if objective.contrast:
        objective.contrast.load_state_dict(saved["contrast"])
    optimiser.load_state_dict(saved["optimiser"])
    schedule.load_state_dict(saved["schedule"])
    if rank_and_world()[0] == 0 and (out / "log.csv").exists():
        head, *rows = (out / "log.csv").read_text().splitlines(True) or [""]
        kept = [row for row in rows if row.endswith("\n") and int(row.split(",")[0]) <= saved["iteration"]]
        with replacing(out / "log.csv") as part:
            part.write_text("".join([head, *kept]))
    return saved["iteration"]


@contextmanager
def signals_noted():
    """Within it Ctrl-C and SIGTERM only add to the list that it yields: an iteration is finished and saved first."""
    received = []
    before = {number: signal.signal(number, lambda number, _: received.append(number))
              for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def any_process(flag, device):
    """Whether the flag is set in any process, so that all of them stop in the same iteration."""
    flag = torch.tensor(float(flag), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return flag.item() > 0


def set_up(args, config, device):
    """Everything that a run begins with -> Objective, optimiser, schedule."""
    torch.manual_seed(args.seed)
    net = MultiTaskNet(config["channels"], args.backbone)  # before the regulariser, so that both arms start alike
    if args.pretrained != "none":
        load_pretrained(net.backbone, args.backbone, args.pretrained)
    contrast = CrossTaskContrast(config["tasks"], net.channels) if args.contrast else None
    objective = Objective(net, contrast, BENCHMARKS[config["dataset"]]).to(device, memory_format=torch.channels_last)
    if device.type == "cuda" and dist.is_initialized():
        objective = nn.SyncBatchNorm.convert_sync_batchnorm(objective)
    optimiser = torch.optim.SGD(objective.parameters(), args.lr, momentum=0.9, weight_decay=5e-4)
    return objective, optimiser, torch.optim.lr_scheduler.PolynomialLR(optimiser, args.iters, power=0.9)


def train(args, config, device):
    """The main loop; leaves config.json, log.csv and last.pt in the run folder -> the trained network."""
    (rank, world), out, start = rank_and_world(), Path(args.out), 0
    objective, optimiser, schedule = set_up(args, config, device)
    if args.resume and (out / "last.pt").exists():
        start = resume(out, config, objective, optimiser, schedule)
    elif rank == 0:  # figures of an older run would pass for this one's
        for name in ("log.csv", "metrics.json", "preview.png"):
            (out / name).unlink(missing_ok=True)
    if rank == 0:
        with replacing(out / "config.json") as part:
            part.write_text(json.dumps(config, indent=1))
    if args.compile:
        objective.net.features = torch.compile(objective.net.features)
    parallel = objective if world == 1 else nn.parallel.DistributedDataParallel(
        objective, find_unused_parameters=objective.contrast is not None)  # the projectors that were not drawn
    share = args.batch_size // world
    dataset = DenseTasks(config["data"], "train", config["tasks"], augment=True, seed=args.seed)
    sampler = EndlessSampler(dataset, args.seed, start * share, rank, world)
    loader = DataLoader(dataset, share, sampler=sampler, num_workers=args.workers, pin_memory=device.type == "cuda")
    weights = {**{task: TASKS[task].weight for task in config["tasks"]}, "contrast": args.contrast}
    save_every = min(max(args.iters // 20, 1), 1000)
    log, pending = Log(out / "log.csv", start, args), []
    objective.train()
    with signals_noted() as stop:
        for iteration, batch in zip(range(start + 1, args.iters + 1), loader):
            torch.manual_seed(args.seed * 2**32 + iteration)  # the regulariser's draws: resumed or not, on any process
            images, labels = to_device(batch, device)
            with torch.autocast(device.type, torch.bfloat16, enabled=args.amp):
                losses = parallel(images, labels)
            optimiser.zero_grad()
            sum(weights[name] * loss for name, loss in losses.items()).backward()
            optimiser.step()
            pending.append(torch.stack([loss.detach().float() for loss in losses.values()]))
            row = iteration % LOG_EVERY == 0 or iteration == args.iters
            stopping = bool(stop) if world == 1 else row and any_process(bool(stop), device)
            due = iteration % save_every == 0 or iteration == args.iters or stopping
            if due or row:
                means, pending = losses_of(pending, list(losses), iteration), []
                if rank == 0:
                    log.row(iteration, means, schedule.get_last_lr()[0])
            schedule.step()
            if due and rank == 0:
                save_checkpoint(out / "last.pt", config, iteration, objective, optimiser, schedule)
            if stopping:
                raise UserError(f"stopped; {out / 'last.pt'} holds iteration {iteration}, --resume goes on from there")
    return objective.net


def report(net, config, out, device, workers, amp):
    """Evaluate on the val split; metrics.json, preview.png and the closing table."""
    dataset = DenseTasks(config["data"], "val", config["tasks"])
    metrics = evaluate(net, dataset, device, workers, amp)
    if rank_and_world()[0] == 0:
        with replacing(out / "metrics.json") as part:
            part.write_text(json.dumps(metrics, indent=1))
        with replacing(out / "preview.png") as part:
            draw_preview(net, dataset, device).save(part, "PNG")
        print(f"\nval split of {config['data']}, {len(dataset)} images:")
        show_metrics(metrics)
        print(f"in {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


# ------------------------------------------------------------------------------------- 11. predictions on any picture
def read_picture(path):
    """A picture file of any kind -> RGB, upright; 16 bits become 8, what is transparent becomes white."""
    try:
        with warnings.catch_warnings(), Image.open(path) as picture:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = ImageOps.exif_transpose(picture)
            if picture.mode.startswith("I"):
                picture = Image.fromarray((np.asarray(picture).astype(int) // 256).clip(0, 255).astype(np.uint8))
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            return picture.convert("RGB")
    except Exception as error:  # broken files fail in many ways
        raise UserError(f"{path} is not a readable picture: {' '.join(str(error).split())}") from error


@torch.inference_mode()
def predict_picture(net, picture, longest, device):
    """PIL picture -> task -> array at the picture's size, laid out as in a data file.

    The network sees the picture with its longer side shrunk to `longest`, the training size, which bounds the memory;
    depth, normals and probabilities return to full size bilinearly, labels by the nearest pixel.
    """
    shrink = min(1, longest / max(picture.size))
    small = picture.resize([max(1, round(n * shrink)) for n in picture.size], Image.Resampling.BILINEAR)
    image = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None]
    arrays = {}
    for task, prediction in net(to_device({"image": image}, device)[0]).items():
        result = postprocess(task, prediction)
        smooth = result.is_floating_point()
        result = result.float() if result.ndim == 4 else result[:, None].float()
        result = F.interpolate(result, picture.size[::-1], mode="bilinear" if smooth else "nearest")
        result = F.normalize(result, dim=1) if task == "normal" else result
        arrays[task] = as_file_label(task, result[0] if task in ("depth", "normal") else result[0, 0])
    return arrays


def run_predictions(args, device):
    """<name>.png and <name>.npz for every picture; one that cannot be read is named and passed over."""
    net, config, _ = load_network(args.checkpoint, device)
    out, failed, used = Path(args.out or "predictions"), 0, set()
    inputs = {Path(path).resolve() for path in args.predict}
    make_folder(out)
    net.eval()
    for path in map(Path, args.predict):
        try:
            picture = read_picture(path)
        except UserError as error:
            print(f"mtcd.py: {error}", file=sys.stderr)
            failed += 1
            continue
        names = itertools.chain([path.stem], (f"{path.stem}-{k}" for k in itertools.count(2)))
        name = next(n for n in names if n not in used and (out / f"{n}.png").resolve() not in inputs)
        used.add(name)
        arrays = predict_picture(net, picture, max(config["size"]), device)
        tiles = {"input": np.asarray(picture), **{task: colourise(task, array) for task, array in arrays.items()}}
        captions = [f"depth, {arrays[task].min():.1f} (dark) to {arrays[task].max():.1f} m" if task == "depth" else task
                    for task in tiles]
        with replacing(out / f"{name}.png") as part:
            panel([list(tiles.values())], [captions], config["classes"], 320).save(part, "PNG")
        with replacing(out / f"{name}.npz") as part, part.open("wb") as file:
            np.savez(file, **arrays)
        print(f"{path} -> {out / name}.png, .npz")
    if failed:
        raise UserError(f"{failed} of {len(args.predict)} pictures could not be read")


# ------------------------------------------------------------------------------------------------- 12. consistency
@torch.no_grad()
def triplet_distances(net, contrast, projectors, dataset, device, batches=8):
    """The paper's figure 1 in numbers: distances of random triplets of every (target, source) pair, own labels too.

    `contrast` samples pixels of `batches` batches of 8 val images, spread over the split -> two dictionaries (target,
    source) -> (2, t) distances anchor-positive and anchor-negative, 0 to 2: of the target's features scaled to unit
    length, and of their projections where there is a projector.
    """
    plain, projected = {}, {}
    net.eval()
    for index in np.array_split(np.linspace(0, len(dataset) - 1, min(8 * batches, len(dataset))).astype(int), batches):
        if not index.size:
            continue
        images, labels = to_device(default_collate([dataset[i] for i in index]), device)
        for target, feature in net.features(images).items():
            for source in contrast.tasks:
                criterion = contrast.criteria[source]
                pixel, label = contrast.sample(feature.shape, labels[source], criterion)
                rows = contrast.rows(feature, pixel)
                spaces = [(plain, rows)]
                if f"{target}_from_{source}" in projectors:
                    spaces.append((projected, projectors[f"{target}_from_{source}"](rows)))
                for distances, points in spaces:
                    points = F.normalize(points, dim=1)
                    anchor, *others = contrast.triplets(points, label, pixel, criterion)
                    pair = torch.stack([(points[anchor] - points[other]).norm(dim=1) for other in others]).cpu()
                    distances[target, source] = torch.cat([distances.get((target, source), pair[:, :0]), pair], 1)
    return plain, projected


def closer(pair):
    """(2, t) distances -> percent of the triplets whose positive is nearer than its negative; ties count half."""
    return 50 * (1 + (pair[1] - pair[0]).sign()).mean().item() if pair.numel() else math.nan


def draw_distances(tasks, spaces):
    """{title: (target, source) -> (2, t) distances} -> PIL picture: per title a grid of tasks by tasks of histograms."""
    wide, high, bins = 150, 90, 50
    font, colours = ImageFont.load_default(13), ("#0072b2", "#e69f00")  # told apart by the colour-blind too
    sheet = Image.new("RGB", (80 + wide * len(tasks), (high * len(tasks) + 64) * len(spaces) + 24), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((4, 4), "distance (0 to 2) of an anchor to its", "black", font)
    for x, word, colour in ((230, "positive", colours[0]), (286, "negative", colours[1])):
        pen.text((x, 4), word, colour, font)
    pen.text((344, 4), "in random triplets; %: positive nearer; 50 is chance", "black", font)
    for part, (title, distances) in enumerate(spaces.items()):
        top = 24 + part * (high * len(tasks) + 64)
        pen.text((4, top + 8), f"{title} (rows: whose features; columns: whose labels)", "black", font)
        for row, target in enumerate(tasks):
            pen.text((4, top + 50 + row * high + high // 2), target, "black", font)
            for column, source in enumerate(tasks):
                x, y, pair = 80 + column * wide, top + 50 + row * high, distances.get((target, source))
                if row == 0:
                    pen.text((x + 4, top + 30), source, "black", font)
                if pair is None or not pair.numel():
                    continue
                counts = [torch.histc(d, bins, 0, 2) for d in pair]
                unit = (high - 30) / max(c.max().item() for c in counts)
                for count, colour in zip(counts, colours):
                    points = [(x + 4 + (wide - 12) * k / (bins - 1), y + high - 8 - unit * n)
                              for k, n in enumerate(count.tolist())]
                    pen.line(points, colour, 2)
                pen.line((x + 4, y + high - 7, x + wide - 8, y + high - 7), "grey")
                pen.text((x + wide - 56, y), f"{closer(pair):.1f} %", "black", font)
    return sheet


def run_consistency(args, device):
    """Tables on the terminal, of random and of trained weights, and consistency.png beside the checkpoint."""
    net, config, trained = load_network(args.checkpoint, device)
    dataset = DenseTasks(find_data(config["dataset"], args.data or config["data"]), "val", config["tasks"])
    torch.manual_seed(config["seed"])
    start = MultiTaskNet(config["channels"], config["backbone"]).to(device)
    contrast = CrossTaskContrast(config["tasks"], net.channels, mining="random").to(device)
    spaces = {"features, random weights": triplet_distances(start, contrast, {}, dataset, device)[0]}
    if trained:
        try:
            contrast.load_state_dict(trained)
        except RuntimeError as error:
            raise UserError(f"{args.checkpoint} holds the projectors of another regulariser") from error
    plain, projected = triplet_distances(net, contrast, contrast.projectors if trained else {}, dataset, device)
    spaces |= {"features": plain, **({"projected features": projected} if trained else {})}
    print("Share of random triplets, in %, whose positive is nearer than the negative; 50 is chance.\n"
          "Rows: whose features. Columns: whose labels say what is positive and negative.")
    for title, distances in spaces.items():
        print(f"\n{title:24}  " + "".join(f"{source:>10}" for source in config["tasks"]))
        for target in config["tasks"]:
            shares = [closer(distances[target, source]) if (target, source) in distances else math.nan
                      for source in config["tasks"]]
            print(f"  {target:24}" + "".join(f"{'-' if math.isnan(share) else f'{share:.1f}':>10}" for share in shares))
    out = Path(args.out or Path(args.checkpoint).parent)
    make_folder(out)
    with replacing(out / "consistency.png") as part:
        draw_distances(config["tasks"], spaces).save(part, "PNG")
    print(f"\n{out / 'consistency.png'}")


# -------------------------------------------------------------------------------------------------- 13. comparing runs
STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
             2.120, 2.110, 2.101, 2.093, 2.086)  # 97.5 % points, 1 to 20 degrees of freedom


def read_runs(folders):
    """Run folders -> {row: {seed: {task: value}}}. Runs that differ only in the seed share a row, and so do the
    single-task runs of otherwise equal settings."""
    rows, labels = {}, {}
    for folder in map(Path, folders):
        try:
            config = json.loads((folder / "config.json").read_text())
            metrics = json.loads((folder / "metrics.json").read_text())
            values = {task: float(metrics[task][TASKS[task].metric]) for task in config["tasks"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder} is not the folder of a finished run: {error}") from error
        single = len(config["tasks"]) == 1
        leave_out = {"seed", "channels", "classes"} | ({"tasks", "contrast"} if single else set())
        key = json.dumps([single, {k: v for k, v in config.items() if k not in leave_out}], sort_keys=True)
        labels.setdefault(key, "single-task" if single else folder.name)
        seeds = rows.setdefault(key, {}).setdefault(config["seed"], {})
        if seeds.keys() & values.keys():
            raise UserError(f"{folder} repeats a run given before: same settings, seed and task")
        seeds.update(values)
    return {label if list(labels.values()).count(label) == 1 else f"{label} ({i})": rows[key]
            for i, (key, label) in enumerate(labels.items(), 1)}


def delta_m(values, base):
    """Mean relative gain over the tasks that both have, in percent, worse being negative (the field's Delta_m)."""
    gains = [(values[t] - base[t]) / base[t] * (1 if TASKS[t].higher_is_better else -1) for t in values if base.get(t)]
    return 100 * statistics.fmean(gains) if gains else math.nan


def spread(values, digits):
    """mean, or mean +- standard deviation of several."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def interval(values):
    """95 % confidence interval of the mean of several values by Student's t; "-" without two."""
    if len(values) < 2:
        return "-"
    freedom = len(values) - 1
    t = STUDENT_T[freedom - 1] if freedom <= len(STUDENT_T) else 1.96 + 2.4 / freedom
    mean, half = statistics.fmean(values), t * statistics.stdev(values) / len(values)**0.5
    return f"{mean - half:+.2f} to {mean + half:+.2f}"


def print_comparison(rows, markdown=False):
    """The papers' table of {row: {seed: {task: value}}}: a row a setting, a column a task, best figures bold, Delta_m
    against the first row: seed by seed where that has the seed, else against its mean, and then without interval."""
    tasks = [task for task in TASKS if any(task in run for row in rows.values() for run in row.values())]
    columns = {label: {task: [run[task] for run in row.values() if task in run] for task in tasks}
               for label, row in rows.items()}
    baseline = {task: statistics.fmean(v) for task, v in next(iter(columns.values())).items() if v}
    first = next(iter(rows.values()))
    best = {task: (max if TASKS[task].higher_is_better else min)(
        statistics.fmean(row[task]) for row in columns.values() if row[task]) for task in tasks}
    several = any(len(row) > 1 for row in list(rows.values())[1:])
    bold = "**{}**" if markdown else "\033[1m{}\033[0m" if sys.stdout.isatty() else "{}"
    table = [["", *map(heading, tasks), "Delta_m [%] ↑", *["95 % interval"] * several]]
    for label, row in columns.items():
        cells = [label + f" ({len(rows[label])} seeds)" * (len(rows[label]) > 1)]
        for task, values in row.items():
            text = spread(values, decimals(task)) if values else "-"
            cells.append(bold.format(text) if values and statistics.fmean(values) == best[task] else text)
        paired = [first.get(seed, {}).keys() >= run.keys() for seed, run in rows[label].items()]
        gains = [delta_m(run, first[seed] if pair else baseline)
                 for pair, (seed, run) in zip(paired, rows[label].items())]
        change = [spread(gains, 2), *[interval(gains) if all(paired) else "-"] * several]
        table.append([*cells, *(change if rows[label] is not first else ["0", *["-"] * several])])
    lengths = [[len(cell.replace("\033[1m", "").replace("\033[0m", "")) for cell in row] for row in table]  # as seen
    widths = [max(column) for column in zip(*lengths)]
    for number, row in enumerate(table):
        padded = [cell + " " * (width - length) for cell, width, length in zip(row, widths, lengths[number])]
        print("| " + " | ".join(padded) + " |" if markdown else "  ".join(padded).rstrip())
        if markdown and number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


# ----------------------------------------------------------------------------------------------------------- 14. bench
def median_seconds(jobs, device, rounds=5):
    """{name: job} -> {name: median seconds}, after a warm-up; in turn, so that a machine's drift meets all alike."""
    times = {name: [] for name in jobs}
    for _ in range(rounds + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def peak_memory(job, device):
    """Bytes of tensors that a job, at its peak, adds to what lay there before; the process takes some more."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        job()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # no messages of the profiler's own
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        job()
    with tempfile.TemporaryDirectory() as folder:
        profile.export_chrome_trace(f"{folder}/trace.json")
        trace = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in trace if event["name"] == "[memory]")
    return max(itertools.accumulate(size for _, size in changes))


def run_bench(args, device):
    """Time the loader, a training step with and without the regulariser, inference and the metrics; print a table."""
    args.contrast = args.contrast or 1.0
    config, batch = run_config(args), args.batch_size
    data, val = (DenseTasks(config["data"], split, config["tasks"], split == "train") for split in ("train", "val"))
    images, labels = to_device(default_collate([data[i] for i in range(batch)]), device)
    one, truth = to_device(default_collate([val[0]]), device)
    objective, optimiser, _ = set_up(args, config, device)
    net, contrast, keys = objective.net, objective.contrast, itertools.count()
    if args.compile:
        net.features = torch.compile(net.features)

    def step(regulariser):
        objective.contrast = regulariser
        with torch.autocast(device.type, torch.bfloat16, enabled=args.amp):
            losses = objective(images, labels)
        sum(losses.values()).backward()
        optimiser.step()
        optimiser.zero_grad()

    plain, regularised = lambda: step(None), lambda: step(contrast)
    regularised()  # makes the optimiser's buffers
    memory = [peak_memory(job, device) for job in (plain, regularised)]
    with torch.no_grad():
        features = net.features(images)
        predictions = {task: postprocess(task, prediction) for task, prediction in net.eval()(one).items()}
    net.train()
    jobs = {
        "training step, lambda = 0": (plain, batch), "training step, regularised": (regularised, batch),
        "regulariser alone, forward and backward": (lambda: contrast(
            {task: feature.detach().requires_grad_() for task, feature in features.items()}, labels).backward(), batch),
        "loader, one process, a batch": (lambda: [data[next(keys)] for _ in range(batch)], batch),
        "inference, one image": (torch.no_grad()(lambda: net.eval()(one) and net.train()), 1)}
    for task in config["tasks"]:
        meter = TASKS[task].measure(config["channels"][task], BENCHMARKS[args.dataset])
        jobs[f"{TASKS[task].metric} of {task}, one image"] = (
            lambda meter=meter, task=task: meter.update(predictions[task], truth[task]), 1)
    print(f"{args.backbone}, {'x'.join(map(str, config['size']))}, batch {batch}, {device}, medians of 5")
    print(f"  {'':40}{'ms':>10}{'% of a step':>13}{'images/s':>10}")
    times = median_seconds({name: job for name, (job, _) in jobs.items()}, device)
    for name, seconds in times.items():
        share = 100 * seconds / times["training step, lambda = 0"]
        print(f"  {name:40}{1000 * seconds:10.1f}{share:13.1f}{jobs[name][1] / seconds:10.1f}")
    print("  memory that a step adds at its peak, MiB: " + ", ".join(
        f"{name} {peak / 2**20:.0f}" for name, peak in zip(("lambda = 0", "regularised"), memory)))


# -------------------------------------------------------------------------------------------------- 15. command line
def number(kind, least, most=math.inf):
    """An argument type: int or float, finite, in [least, most)."""
    def convert(text):
        if not least <= kind(text) < most:
            raise argparse.ArgumentTypeError(f"{text} is not in {least} to {most}")
        return kind(text)
    convert.__name__ = kind.__name__
    return convert


def fail(message):
    raise UserError(f"{message}; see python mtcd.py --help")


def parse(argv):
    """The command line's arguments; what only a benchmark can fill in stays None."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog="The opening of mtcd.py shows the usual commands.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.error = fail
    whole, later = number(int, 0), argparse.SUPPRESS  # SUPPRESS: no "(default: None)"
    add = parser.add_argument_group("data and network").add_argument
    add("--dataset", choices=BENCHMARKS, default="toy", help="benchmark, which sets the protocol")
    add("--data", metavar="FILE", default=later, help="data file of data_prep.py (default: data/DATASET.h5)")
    add("--tasks", nargs="+", choices=TASKS, metavar="T", default=later, help="some of its tasks (default: all)")
    add("--backbone", choices=BACKBONES, default="hrnet18s", help="shared encoder")
    add("--pretrained", metavar="FILE|imagenet|none", default="none", help="weights that the encoder starts from")
    add = parser.add_argument_group("training").add_argument
    add("--contrast", type=number(float, 0), metavar="LAMBDA", default=2.0,
        help="weight of the regulariser; 0 is the multi-task baseline")
    add("--iters", type=number(int, 1), metavar="N", default=later, help="iterations (default: the benchmark's)")
    add("--batch-size", type=number(int, 1), metavar="B", default=8, help="images an iteration, over all processes")
    add("--lr", type=number(float, 0), default=later, help="learning rate at the start (default: the benchmark's)")
    add("--workers", type=whole, metavar="N", default=4 * torch.cuda.is_available(), help="processes that load data")
    add("--seed", type=number(int, 0, 2**31), metavar="S", default=0, help="of weights, batches, the regulariser")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1 ...")
    add("--amp", action="store_true", help="bfloat16 where it is safe; not in the regulariser")
    add("--compile", action="store_true", help="compile the network with torch.compile")
    add("--out", metavar="DIR", default=later,
        help="folder of the results (default: runs/DATASET-BACKBONE-TASKS-contrastLAMBDA-seedS; predictions)")
    add("--resume", action="store_true", help="go on from DIR/last.pt as if the run had never stopped")
    add = parser.add_argument_group("instead of training").add_argument
    add("--eval", action="store_true", help="evaluate --checkpoint on the val split")
    add("--predict", nargs="+", metavar="IMAGE", default=later, help="a panel and the raw predictions of each picture")
    add("--consistency", action="store_true",
        help="distances of triplets in the features of --checkpoint, by every other task's labels")
    add("--checkpoint", metavar="FILE", default=later, help="last.pt of a run, for --eval, --predict, --consistency")
    add("--compare", nargs="+", metavar="RUN", default=later, help="the papers' table; the first is the baseline")
    add("--markdown", action="store_true", help="print the table of --compare as Markdown")
    add("--bench", action="store_true", help="time the loader, a training step, inference and the metrics")
    unset = dict.fromkeys(("data", "tasks", "iters", "lr", "out", "predict", "checkpoint", "compare"))
    return parser.parse_args(argv, argparse.Namespace(**unset))


def run_config(args):
    """Complete the arguments by the benchmark's values -> all that describes the run and rebuilds its network."""
    benchmark = BENCHMARKS[args.dataset]
    args.iters = benchmark.iterations if args.iters is None else args.iters
    args.lr = benchmark.lr if args.lr is None else args.lr
    tasks = [task for task in benchmark.tasks if task in (args.tasks or benchmark.tasks)]
    if set(args.tasks or ()) - set(tasks):
        raise UserError(f"{args.dataset} has no labels of {', '.join(sorted(set(args.tasks) - set(tasks)))}; "
                        f"its tasks: {' '.join(benchmark.tasks)}")
    if args.batch_size % rank_and_world()[1]:
        raise UserError(f"--batch-size {args.batch_size} does not divide among {rank_and_world()[1]} processes")
    subset = "-" + "-".join(tasks) if len(tasks) < len(benchmark.tasks) else ""
    args.out = args.out or f"runs/{args.dataset}-{args.backbone}{subset}-contrast{args.contrast:g}-seed{args.seed}"
    path = find_data(args.dataset, args.data, make=True)
    dataset = DenseTasks(path, "val", tasks)
    if dataset.name != args.dataset:
        raise UserError(f"{path} holds {dataset.name}, not {args.dataset}")
    if max(dataset.shape) <= 32 and args.batch_size == rank_and_world()[1]:
        raise UserError("--batch-size 1 is too small: of images of 32 x 32 the deepest map is one value, which batch "
                        "normalisation cannot scale; take 2")
    return {"dataset": args.dataset, "data": str(path), "tasks": tasks, "classes": dataset.classes,
            "channels": {task: TASKS[task].channels or len(dataset.classes[task]) for task in tasks},
            "size": [int(n) for n in dataset.shape],
            **{key: getattr(args, key) for key in
               ("backbone", "pretrained", "contrast", "iters", "batch_size", "lr", "seed", "amp")}}


def make_folder(path):
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {path} cannot be made: {error.strerror}") from error


def load_network(path, device):
    """last.pt of a run -> its network, its config, the regulariser's state (None without)."""
    if path is None:
        fail("--checkpoint FILE is needed: last.pt of a run")
    checkpoint = load_weights(path, "config", "model", "contrast")
    config = checkpoint["config"]
    try:
        net = MultiTaskNet(config["channels"], config["backbone"])
        net.load_state_dict(checkpoint["model"])
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path} is not last.pt of a run of this program: {str(error).splitlines()[0]}") from error
    return net.to(device, memory_format=torch.channels_last), config, checkpoint["contrast"]


def run_training(args, device):
    """Train, evaluate, report."""
    config, out = run_config(args), Path(args.out)
    if rank_and_world()[0] == 0:
        make_folder(out)
        print(f"{args.dataset}: {' '.join(config['tasks'])}; {args.backbone}; contrast {args.contrast:g}; "
              f"{args.iters} iterations of {args.batch_size} on {device}; {out}", flush=True)
    net = train(args, config, device)
    report(net, config, out, device, args.workers, args.amp)


def run_evaluation(args, device):
    """Figures of a checkpoint on the val split of its own data file, or of --data."""
    net, config, _ = load_network(args.checkpoint, device)
    config["data"] = str(find_data(config["dataset"], args.data or config["data"]))
    dataset = DenseTasks(config["data"], "val", config["tasks"])
    if (dataset.name, dataset.classes) != (config["dataset"], config["classes"]):
        raise UserError(f"{config['data']} ({dataset.name}) has other classes than {args.checkpoint} "
                        f"({config['dataset']})")
    out = Path(args.out or Path(args.checkpoint).parent)
    make_folder(out)
    report(net, config, out, device, args.workers, config["amp"])


def start_device(name):
    """The device by its name; under torchrun, this process's own, with the processes connected."""
    if "RANK" in os.environ and name.startswith("cuda"):
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.zeros(1, device=name).device
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    torch.set_float32_matmul_precision("high")  # TF32, on GPUs that have it
    return device


def main(argv=None):
    """The command line -> exit status: 0, or 2 after one line on stderr."""
    try:
        args = parse(argv)
        if args.compare:
            print_comparison(read_runs(args.compare), args.markdown)
        else:
            job = (run_evaluation if args.eval else run_predictions if args.predict else
                   run_consistency if args.consistency else run_bench if args.bench else run_training)
            job(args, start_device(args.device))
        return 0
    except UserError as error:
        print(f"mtcd.py: {str(error).splitlines()[-1]}", file=sys.stderr)  # a loader's process puts a traceback before
        return 2
    except KeyboardInterrupt:
        print("mtcd.py: interrupted", file=sys.stderr)
        return 130
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
