# SPDX-License-Identifier: MIT
"""Contrastive Multi-Task Dense Prediction (Yang, Ye, Xu; AAAI 2023), a reference implementation.

One network solves many per-pixel tasks of one image. While it trains, the labels of one task
regularise the features of another through a triplet loss. At inference nothing of that is left.

    python mtcd.py                                         train and evaluate on rendered rooms
    python mtcd.py --contrast 0                            the multi-task baseline
    python mtcd.py --tasks depth                           a single-task network
    python mtcd.py --eval --checkpoint runs/NAME/last.pt   the metrics of a trained network again
    python mtcd.py --dataset nyud                          the benchmark NYUD-v2
    torchrun --nproc_per_node=4 mtcd.py --dataset nyud --amp               on several GPUs

Sections, the contribution first:
     1  the regulariser     the contribution: the triplet loss between tasks; copy it alone
     2  task losses         one per kind of label
     3  metrics             over a whole split, as the field reports them
     4  tasks, protocols    the tables that drive all else
     5  data                HDF5 files, augmentation
     6  backbones           HRNet, ResNet
     7  model               shared encoder, a feature map and a prediction per task
     8  training            the loop
     9  evaluation          metrics of a split
    10  safety              logs, checkpoints, signals, errors: skip it at a first reading
    11  command line

The paper's full text was not at hand. "Stated" is what its abstract and the captions of its
figures 1 and 2 say. "Choice" is what they leave open. "Protocol" is what ATRC's public code
(Bruggemann et al., 2021), and after it InvPT's (Ye and Xu, 2022), does on these benchmarks.
"""

import argparse
import csv
import importlib
import json
import math
import os
import pickle
import re
import shlex
import signal
import sys
import time
import zipfile
import zlib
from contextlib import contextmanager
from functools import partial
from itertools import count, islice
from pathlib import Path

import h5py
import numpy as np
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

# torchvision takes as long to import as torch, so it is imported where it is used.
# isort: split


# ------------------------------------------------------------------------------ 1. the regulariser
# >>> copy from here
# Cross-task contrast for multi-task dense prediction, from mtcd (MIT licence), an independent
# implementation of: Siwei Yang, Hanrong Ye, Dan Xu, "Contrastive Multi-Task Dense Prediction",
# AAAI 2023, arXiv 2307.07934. "Stated": the paper says so. "Choice": the paper leaves it open.
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


def class_distance(a, b):
    """0 where two labels (..., 1) are the same class, else 1 -> (...)."""
    return (a != b).any(-1).float()


def depth_distance(a, b):
    """|log a - log b| of two depths (..., 1) -> (...). A ratio, so near and far count alike."""
    return (a.log() - b.log()).abs().sum(-1)


def normal_distance(a, b):
    """The angle between two normals (..., 3) in degrees -> (...)."""
    cosine = F.cosine_similarity(a, b, dim=-1)
    return cosine.clamp(-1, 1).acos().rad2deg()


def has_class(label):
    """Which labels (n, 1) are a class -> (n,) bool. 255 and negative numbers mean: no label."""
    return ((label >= 0) & (label != 255)).all(-1)


def has_depth(label):
    """Which labels (n, 1) are a depth -> (n,) bool."""
    return (label.isfinite() & (label > 0)).all(-1)


def has_normal(label):
    """Which labels (n, 3) are a normal -> (n,) bool."""
    return label.isfinite().all(-1) & (label != 0).any(-1)


@dataclass(frozen=True)
class Criterion:
    """When two pixels are alike under one task's labels.

    Stated: one criterion serves discrete and continuous labels. Choice: distances and thresholds.
    """

    distance: Callable  # of labels (..., K) and (..., K) -> (...)
    valid: Callable  # of labels (n, K) -> (n,) bool: which pixels have ground truth
    positive: float  # two pixels are alike if their labels are no farther apart than this
    negative: float  # and not alike from this distance on; in between they are neither
    channels: int = 1  # K, of the label
    balanced: bool = False  # at first all classes are equally likely; 3 % of pixels are boundary


CLASSES = Criterion(class_distance, has_class, positive=0, negative=1, balanced=True)
DEPTH = Criterion(depth_distance, has_depth, positive=0.05, negative=0.2)  # e^0.05: 5 % farther
NORMAL = Criterion(normal_distance, has_normal, positive=10, negative=30, channels=3)  # degrees
CRITERIA = {
    "semseg": CLASSES,
    "parsing": CLASSES,
    "saliency": CLASSES,
    "boundary": CLASSES,
    "depth": DEPTH,
    "normal": NORMAL,
}


class CrossTaskContrast(nn.Module):
    """Feature-wise contrastive consistency: one task's labels regularise another task's features.

    Stated: in every call each target task draws one random source task, never itself. Every
    (target, source) pair has a projector of its own. Pixels are sampled under the source's ground
    truth and enter a triplet loss. The losses of the targets are summed.

    tasks: names. Those of CRITERIA are known; others need a Criterion in `criteria`.
    channels: C, the width of every feature map.

    >>> contrast = CrossTaskContrast(["semseg", "depth"], channels=64)  # train its parameters, too
    >>> regulariser = contrast({"semseg": f1, "depth": f2}, {"semseg": y1, "depth": y2})
    >>> loss = task_losses + 1.0 * regulariser

    After a call `share_of_chance` holds the mean loss of a target, divided by the margin. It is
    about 1 while the projections tell nothing, and 0 once all negatives are farther by the margin.
    It is 0, too, where no triplet was found, as without labels.
    """

    def __init__(
        self,
        tasks,
        channels,
        *,
        # Choices. "Measured" refers to docs/results.md of the project.
        samples=128,  # pixels per target and batch. Measured: 1,024 help less on few images
        candidates=48,  # of these, to compare each with. Most find a positive and a negative there
        dim=64,  # width of the projections, which have length 1. Not ablated
        margin=1.0,  # distances are 0 to 2. Measured: 0.1 and 0.3 help less; 2 is not confirmed
        targets=None,  # the tasks whose features are regularised. None: all of them (stated)
        criteria=None,  # {task: Criterion}: of tasks that CRITERIA lacks, or in place of its own
    ):
        super().__init__()
        self.tasks = list(tasks)
        self.targets = [task for task in self.tasks if targets is None or task in targets]
        self.channels = channels
        self.samples = samples
        self.candidates = candidates
        self.margin = margin

        self.criteria = {**CRITERIA, **(criteria or {})}
        unknown = [task for task in self.tasks if task not in self.criteria]
        if unknown:
            raise ValueError(f"no criterion for {unknown}: pass criteria={{name: Criterion(...)}}")
        strange = [task for task in targets or [] if task not in self.tasks]
        if strange:
            raise ValueError(f"targets {strange} are none of the tasks {self.tasks}")

        self.projectors = nn.ModuleDict()
        for target, source in self.task_pairs():
            self.projectors[f"{target}_from_{source}"] = self.build_projector(channels, dim)

    def task_pairs(self):
        """All (target, source) pairs; a task is never its own source (stated)."""
        return [(t, s) for t in self.targets for s in self.tasks if s != t]

    def build_projector(self, channels, dim):
        """(n, C) -> (n, dim). It is pointwise, so the sampled pixels alone are projected."""
        return nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, dim))

    def forward(self, features, labels):
        """{task: (B, C, h, w)} and {task: (B, H, W) or (B, K, H, W)} -> the loss.

        Labels may have any resolution. A target without any source or triplet adds exactly 0.
        """
        self.check(features, labels)

        # Sources are drawn before any pixel. So processes that share a seed draw the same sources
        # for their different images, and train the same projectors.
        drawn = self.draw_sources(features, labels)

        losses = []
        for target, source in drawn:
            losses.append(self.pair_loss(target, source, features[target], labels[source]))
        if losses:
            loss = sum(losses)
        else:
            loss = nothing(next(iter(features.values())))

        self.share_of_chance = loss.detach() / (self.margin * max(len(losses), 1))
        return loss

    def draw_sources(self, features, labels):
        """One random source per target, of those that have a label -> [(target, source)]."""
        drawn = []
        for target in self.targets:
            sources = [s for t, s in self.task_pairs() if t == target and s in labels]
            if target in features and sources:
                drawn.append((target, sources[torch.randint(len(sources), ()).item()]))
        return drawn

    def pair_loss(self, target, source, feature, label):
        """The triplet loss of the target's feature (B, C, h, w) under the source's label."""
        criterion = self.criteria[source]
        sampled, label = self.sample(feature, label, criterion)  # (n, C), (n, K)
        if len(sampled) == 0:
            return nothing(feature)

        with torch.autocast(feature.device.type, enabled=False):  # distances need float32
            projector = self.projectors[f"{target}_from_{source}"]
            sampled = sampled.to(torch.promote_types(sampled.dtype, torch.float32))
            points = F.normalize(projector(sampled), dim=1)  # (n, dim)
            return self.triplet_loss(points, label, criterion)

    def sample(self, feature, label, criterion):
        """Draw pixels that have ground truth -> features (n, C), labels (n, K); n <= samples.

        The images of the batch are one pool, so a triplet may join pixels of different images.
        """
        # The label at the centre of each pixel of the feature map.
        batch, _, height, width = feature.shape
        if label.ndim == 3:
            label = label[:, None]
        label = F.interpolate(label.float(), (height, width), mode="nearest-exact")
        label = label.permute(0, 2, 3, 1).flatten(0, 2)  # (B h w, K)

        # Pixels without ground truth take no part.
        pixels = criterion.valid(label).nonzero().squeeze(1)

        # Draw without replacement. At first all pixels are equally likely, or all classes are.
        n = min(self.samples, len(pixels))
        if n > 0:
            weight = torch.ones(len(pixels), device=label.device)
            if criterion.balanced:
                classes = label[pixels, 0].long()
                weight = weight / classes.bincount()[classes]
            pixels = pixels[weight.multinomial(n)]

        image, y, x = torch.unravel_index(pixels, (batch, height, width))
        return feature[image, :, y, x], label[pixels]

    def triplet_loss(self, points, label, criterion):
        """points (n, dim) -> mean of max(0, d(anchor, positive) - d(anchor, negative) + m)."""
        anchor, positive, negative = self.triplets(points, label, criterion)
        if len(anchor) == 0:
            return nothing(points)

        # A pixel may occur in many triplets, and its gradients are added up. On a CPU index_select
        # adds them in a fixed order, so that runs repeat; points[anchor] does not.
        return F.triplet_margin_loss(
            points.index_select(0, anchor),
            points.index_select(0, positive),
            points.index_select(0, negative),
            self.margin,
        )

    def triplets(self, points, label, criterion):
        """One positive and one negative per pixel -> three index vectors (t,), t <= n.

        They are the first that fit among the pixel's candidates, which come in random order. A
        pixel that does not find both is no anchor.
        """
        other, positive, negative = self.candidate_pairs(points, label, criterion)
        anchor = (positive.any(1) & negative.any(1)).nonzero().squeeze(1)  # (t,)
        first_positive = positive[anchor].float().argmax(1)
        first_negative = negative[anchor].float().argmax(1)
        return anchor, other[anchor, first_positive], other[anchor, first_negative]

    def candidate_pairs(self, points, label, criterion):
        """Compare every pixel with k candidates -> other, positive, negative: (n, k) each.

        other: the candidates' indices. positive, negative: bool, by the distance of the labels.
        The points (n, dim) are not used here. They serve subclasses that choose by the distance of
        the features.
        """
        other = self.draw_candidates(len(label), label.device)
        itself = other == torch.arange(len(label), device=label.device)[:, None]
        distance = criterion.distance(label[:, None], label[other])  # (n, k)
        positive = (distance <= criterion.positive) & ~itself
        negative = (distance >= criterion.negative) & ~itself
        return other, positive, negative

    def draw_candidates(self, n, device):
        """k random candidates for each of n pixels -> indices (n, k)."""
        return torch.randint(n, (n, self.candidates), device=device)

    def check(self, features, labels):
        """Refuse shapes that do not fit, by the task's name. It reads no value, so no GPU waits."""
        known = [task for task in self.tasks if task in features]
        if not known:
            raise ValueError(f"features of {list(features)}, but the loss is of {self.tasks}")

        for task in known:
            shape = tuple(features[task].shape)
            if len(shape) != 4 or shape[1] != self.channels:
                raise ValueError(f"{task}: features {shape}, not (B, {self.channels}, h, w)")

        for task in self.tasks:
            if task in labels:
                shape = tuple(labels[task].shape)
                batch = len(features[known[0]])
                channels = self.criteria[task].channels
                fits = len(shape) == 4 and shape[:2] == (batch, channels)
                if channels == 1 and len(shape) == 3:
                    fits = shape[0] == batch
                if not fits:
                    raise ValueError(f"{task}: labels {shape}, not ({batch}, {channels}, H, W)")


def nothing(tensor):
    """The sum of no elements: exactly 0, and yet backward() can go through it."""
    return tensor[:0].sum()


# <<< to here


# --------------------------------------------------------------------------------- 2. task losses
# Predictions are (B, K, H, W), labels as to_device() makes them. Each loss is a mean over the
# pixels with ground truth of the whole batch, also where several processes share the batch.
def mean_count(number):
    """A count of pixels -> its mean over all processes, at least 1, as losses are divided by it.

    The mean, not the sum: DistributedDataParallel averages the processes' gradients. So a process's
    sum over the mean count becomes the mean over all pixels of the whole batch.
    """
    number = number.float()
    if dist.is_initialized():
        dist.all_reduce(number)
        number /= dist.get_world_size()
    return number.clamp(min=1)


def class_loss(prediction, label):
    """Cross entropy of classes (B, H, W)."""
    prediction = prediction.contiguous()  # channels_last is twice as slow here on a CPU
    loss = F.cross_entropy(prediction, label, ignore_index=255, reduction="none")
    return loss.sum() / mean_count((label != 255).sum())


def weighted_binary_loss(prediction, label, positive_weight):
    """Binary cross entropy of 0 and 1 (B, H, W); negatives weigh 1 - positive_weight."""
    valid = label != 255
    positive = label == 1
    weight = torch.where(positive, positive_weight, 1 - positive_weight) * valid
    loss = F.binary_cross_entropy_with_logits(
        prediction.squeeze(1), positive.to(prediction.dtype), weight, reduction="sum"
    )
    return loss / mean_count(valid.sum())


def balanced_binary_loss(prediction, label):
    """Binary cross entropy whose weights make positives and negatives of the batch count alike."""
    positives = mean_count((label == 1).sum())
    pixels = mean_count((label != 255).sum())
    return weighted_binary_loss(prediction, label, 1 - positives / pixels)


def depth_loss(prediction, label):
    """L1 in metres (B, 1, H, W)."""
    valid = label > 0
    error = (prediction - label).abs()
    return (error * valid).sum() / mean_count(valid.sum())


def normal_loss(prediction, label):
    """L1 between prediction and unit vector (B, 3, H, W), summed over their components.

    Choice: a prediction longer than 1 is scaled to 1, a shorter one stays as it is. Scaling it up
    has so steep a gradient that training from scratch stalls.
    """
    valid = (label != 0).any(1)  # (B, H, W)
    error = (F.normalize(prediction, dim=1, eps=1) - label).abs().sum(1)  # eps: divide by >= 1
    return (error * valid).sum() / mean_count(valid.sum())


# -------------------------------------------------------------------------------------- 3. metrics
# Pixel-wise over a whole split (protocol). update() takes what postprocess() of section 7 gives,
# and labels of the same batch. `counts` add up over images and processes. compute() gives nan
# without labels.
class MeanIoU:
    """Mean intersection over union in percent; (B, H, W) classes, 255 ignored.

    A class in neither label nor prediction does not enter the mean (ATRC's code counts it as 0).
    """

    name = "mIoU"
    unit = "%"
    higher_is_better = True

    def __init__(self, num_classes):
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)  # label, prediction

    def update(self, prediction, label):
        valid = label != 255
        pair = label[valid] * self.num_classes + prediction[valid]
        self.counts += pair.bincount(minlength=self.num_classes**2).view_as(self.counts).cpu()

    def compute(self):
        intersection = self.counts.diag().double()
        union = self.counts.sum(0) + self.counts.sum(1) - intersection
        return (100 * intersection / union).nanmean().item()


class MeanAngularError:
    """Mean angle in degrees; (B, 3, H, W) vectors, labels of length 0 ignored."""

    name = "mErr"
    unit = "deg"
    higher_is_better = False

    def __init__(self):
        self.counts = torch.zeros(2, dtype=torch.float64)  # sum of angles, pixels

    def update(self, prediction, label):
        p = F.normalize(prediction.double(), dim=1)
        y = F.normalize(label.double(), dim=1)
        half = torch.atan2((p - y).norm(dim=1), (p + y).norm(dim=1))  # stable near 0 and 180
        angle = (2 * half).rad2deg()[(label != 0).any(1)]
        self.counts += torch.stack([angle.sum(), angle.new_tensor(angle.numel())]).cpu()

    def compute(self):
        total, pixels = self.counts
        return (total / pixels).item()


class RMSE:
    """Root mean squared error in metres; (B, 1, H, W), labels of 0 ignored."""

    name = "RMSE"
    unit = "m"
    higher_is_better = False

    def __init__(self):
        self.counts = torch.zeros(2, dtype=torch.float64)  # sum of squares, pixels

    def update(self, prediction, label):
        error = (prediction.double().clamp(min=0) - label)[label > 0].square()
        self.counts += torch.stack([error.sum(), error.new_tensor(error.numel())]).cpu()

    def compute(self):
        total, pixels = self.counts
        return (total / pixels).sqrt().item()


class MaxF:
    """Best F (beta^2 = 0.3) over 19 thresholds in percent; (B, H, W) probability, 255 ignored."""

    name = "maxF"
    unit = "%"
    higher_is_better = True

    def __init__(self):
        self.thresholds = torch.arange(1, 20, dtype=torch.float64) / 20  # 0.05, 0.10 ... 0.95
        self.counts = torch.zeros(2, 20, dtype=torch.int64)  # label, thresholds exceeded

    def update(self, prediction, label):
        valid = label != 255
        thresholds = self.thresholds.to(label.device)
        exceeded = torch.bucketize(prediction[valid].double(), thresholds)  # how many: 0 to 19
        for value in (0, 1):
            of_value = exceeded[label[valid] == value]
            self.counts[value] += of_value.bincount(minlength=20).cpu()

    def compute(self):
        # A pixel exceeds threshold j if it exceeds more than j of them, as they ascend.
        over = self.counts.sum(1, keepdim=True) - self.counts.cumsum(1)  # (2, 20)
        over = over[:, :19].double()
        true_positives = over[1]
        predicted = over.sum(0)
        positives = self.counts[1].sum()
        if positives == 0:
            return math.nan

        # (1 + b) P R / (b P + R) with b = beta^2, P = true / predicted, R = true / positives.
        f = 1.3 * true_positives / (0.3 * positives + predicted)
        return 100 * f.max().item()


class OdsF:
    """Boundary F at the split's best threshold in percent; (B, H, W) probability, 255 ignored.

    max_dist: how far a matched pixel may lie, as a share of the image's diagonal.
    """

    name = "odsF"
    unit = "%"
    higher_is_better = True

    def __init__(self, max_dist):
        from extras import odsf  # suppression, thinning and exact one-to-one matching

        self.odsf = odsf
        self.max_dist = max_dist
        self.counts = torch.zeros(3, len(odsf.THRESHOLDS), dtype=torch.int64)

    def update(self, prediction, label):
        for p, y in zip(prediction.float().cpu().numpy(), label.cpu().numpy()):
            self.counts += torch.from_numpy(self.odsf.count_boundaries(p, y, self.max_dist))

    def compute(self):
        matched, predicted, true = self.counts.double()
        if not (predicted + true).any():
            return math.nan
        f = 200 * matched / (predicted + true).clamp(min=1)
        return f.max().item()


# ---------------------------------------------------------------------------- 4. tasks, protocols
@dataclass(frozen=True)
class Task:
    """What files, losses and metrics need to know about a task.

    A new task also needs a Criterion in CRITERIA and a place in a Protocol. If it is not made of
    classes, it needs a branch in to_device() and in postprocess().
    """

    channels: int | None  # of the prediction; None: one per class name in the data file
    classes: int | None  # of the label; None: one per class name; 0: the label is a number
    ignored: int  # the label's value where there is no ground truth
    weight: float  # w_T of the total loss (protocol)
    loss: Callable  # of prediction and label; boundary's also of the weight of its positives
    metric: type
    dtype: str = "uint8"  # of the label in the data file, an array (N, H, W, *tail)
    tail: tuple = ()


TASKS = {
    "semseg": Task(
        channels=None,
        classes=None,
        ignored=255,
        weight=1,
        loss=class_loss,
        metric=MeanIoU,
    ),
    "parsing": Task(
        channels=7,
        classes=7,
        ignored=255,
        weight=2,
        loss=class_loss,
        metric=MeanIoU,
    ),
    "saliency": Task(
        channels=1,
        classes=2,
        ignored=255,
        weight=5,
        loss=balanced_binary_loss,
        metric=MaxF,
    ),
    "normal": Task(
        channels=3,
        classes=0,
        ignored=0,
        weight=10,
        loss=normal_loss,
        metric=MeanAngularError,
        dtype="float16",
        tail=(3,),
    ),
    "depth": Task(
        channels=1,
        classes=0,
        ignored=0,
        weight=1,
        loss=depth_loss,
        metric=RMSE,
        dtype="float32",
    ),
    "boundary": Task(
        channels=1,
        classes=2,
        ignored=255,
        weight=50,
        loss=weighted_binary_loss,  # Objective passes the Protocol's boundary_weight to it
        metric=OdsF,
    ),
}


@dataclass(frozen=True)
class Protocol:
    """How a data set is trained and judged: by ATRC's protocol; toy by our choices."""

    tasks: tuple
    backbone: str
    pretrained: str  # "imagenet" or "none"
    iters: int
    lr: float  # at the start; it falls with the power 0.9 to 0
    contrast: float  # lambda (choice, see docs/results.md)
    targets: tuple  # tasks whose features are regularised (choice; stated: all of them)
    scales: tuple  # bounds of the augmentation's random scale
    boundary_weight: float  # of boundary pixels in their loss; the others weigh 1 minus this
    max_dist: float  # tolerance of boundary matching, as a share of the image's diagonal


PROTOCOLS = {
    "toy": Protocol(
        tasks=("semseg", "parsing", "saliency", "depth", "normal", "boundary"),
        backbone="hrnet_tiny",
        pretrained="none",
        iters=2000,
        lr=0.08,
        contrast=1.0,
        targets=("semseg", "parsing", "saliency", "depth", "normal", "boundary"),
        scales=(1, 1),
        boundary_weight=0.8,
        max_dist=0.011,
    ),
    "nyud": Protocol(
        tasks=("semseg", "depth", "normal", "boundary"),
        backbone="hrnet18s",
        pretrained="imagenet",
        iters=40_000,
        lr=0.01,
        contrast=1.0,  # on photos, after as many passes (400), neither a gain nor a loss is shown
        targets=("depth", "normal", "boundary"),  # as a target semseg lost in 6 of 7 pairs
        scales=(0.5, 2),
        boundary_weight=0.8,
        max_dist=0.011,
    ),
    "pascal": Protocol(
        tasks=("semseg", "parsing", "saliency", "normal", "boundary"),
        backbone="hrnet18s",
        pretrained="imagenet",
        iters=40_000,
        lr=0.005,
        contrast=0.2,  # not measured; few passes (48) gained nothing on rooms
        targets=("parsing", "saliency", "normal", "boundary"),
        scales=(0.5, 2),
        boundary_weight=0.95,
        max_dist=0.0075,
    ),
}


# ----------------------------------------------------------------------------------------- 5. data
MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB in [0, 1]
STD = (0.229, 0.224, 0.225)
PADDING = (124, 116, 104)  # of images: MEAN in 8 bits, so 0 after normalisation


@dataclass
class Geometry:
    """Where a sample comes from and goes to: the same for the image and all its labels."""

    window: tuple  # (rows, columns): the slices that are taken of the stored arrays
    size: tuple  # the (height, width) that they are then resized to
    flip: bool = False  # do left and right change places?
    scale: float = 1.0  # how much larger things become


class DenseTasks(Dataset):
    """One split of a data file (HDF5, see README.md).

    Stored images and labels are padded to one H x W; `size` (N, 2) holds their true height, width.
    dataset[key] is {"image": uint8 (3, H, W), task: label as stored}, padded to the file's H x W.
    A key is epoch * len(self) + index. With `augment` the sample is scaled, cropped, flipped and
    distorted at random, as a function of (seed, key) alone: the same in any number of processes
    and after a resume.
    """

    def __init__(self, path, split, tasks, augment=False, seed=0):
        self.path = str(path)
        self.split = split
        self.tasks = list(tasks)
        self.augment = augment
        self.seed = seed
        self.arrays = None  # opened by the process that reads
        self.process = None

        with (
            explaining(f"{path} cannot be opened as a data file", OSError),
            h5py.File(path) as file,
        ):
            check_data(file, split, self.tasks)
            self.name = file.attrs["dataset"]
            self.length = len(file[split]["image"])
            self.shape = file[split]["image"].shape[1:3]  # (H, W)
            self.identity = data_identity(file)
            self.classes = {}  # task -> class names
            self.num_classes = {}  # task -> number of classes; 0: the label is no class
            for task in self.tasks:
                if f"{task}_classes" in file.attrs:
                    self.classes[task] = [str(name) for name in file.attrs[f"{task}_classes"]]
                self.num_classes[task] = TASKS[task].classes
                if self.num_classes[task] is None:
                    self.num_classes[task] = len(self.classes[task])

    def __len__(self):
        return self.length

    def __getstate__(self):
        """Open files cannot be pickled; a loader's process opens its own."""
        return {**self.__dict__, "arrays": None, "process": None}

    def __getitem__(self, key):
        index = key % len(self)
        where = f"{self.path} is damaged at {self.split} image {index}, convert the data again"
        with explaining(where, OSError, KeyError, RuntimeError, ValueError):
            self.open()
            if self.augment:
                return self.read_augmented(index, np.random.default_rng([self.seed, key]))
            height, width = map(int, self.arrays["size"][index])
            geometry = Geometry(np.s_[:height, :width], (height, width))
            sample = self.read_labels(index, geometry)
            sample["image"] = self.read_image(index, geometry)
            return sample

    def open(self):
        """Open the file once per process, which must not share it with others."""
        if self.process != os.getpid():
            group = h5py.File(self.path)[self.split]
            names = {"image", "size", "semseg", *self.tasks} & set(group)
            self.arrays = {name: group[name] for name in names}
            self.process = os.getpid()

    def read_augmented(self, index, rng):
        """A sample under random scale, crop, flip and colours (protocol)."""
        size = tuple(map(int, self.arrays["size"][index]))
        scales = PROTOCOLS[self.name].scales
        semseg = self.arrays["semseg"][index] if "semseg" in self.arrays else None
        geometry = draw_geometry(rng, scales, size, self.shape, semseg)
        sample = self.read_labels(index, geometry)

        if "normal" in sample and geometry.flip:
            sample["normal"][..., 0] *= -1  # x points to the right

        if "depth" in sample:
            sample["depth"] /= geometry.scale  # as if the camera had come nearer

        if "parsing" in sample:
            parts = (sample["parsing"] > 0) & (sample["parsing"] != 255)
            if not parts.any():
                sample["parsing"].fill_(255)  # a crop without any part is ignored (protocol)

        image = self.read_image(index, geometry, rng)
        return {**sample, "image": image}

    def read_labels(self, index, geometry):
        """{task: label as stored}, at the place that the geometry gives it, ignored around it."""
        sample = {}
        for task in self.tasks:
            label = self.arrays[task][(index, *geometry.window)]
            if self.num_classes[task]:
                check_classes(task, label, self.num_classes[task])
            label = place_label(label, geometry, self.shape, TASKS[task].ignored)
            sample[task] = torch.from_numpy(label)
        return sample

    def read_image(self, index, geometry, rng=None):
        """uint8 (3, H, W); its colours are distorted if there is a generator to draw from."""
        from torchvision.transforms.v2 import functional

        image = torch.from_numpy(self.arrays["image"][(index, *geometry.window)])
        image = image.permute(2, 0, 1)  # (3, h, w)
        image = functional.resize(image, list(geometry.size), antialias=False)  # as ATRC's
        if geometry.flip:
            image = image.flip(2)
        if rng is not None:
            image = distort(image, rng)

        bottom = self.shape[0] - geometry.size[0]
        right = self.shape[1] - geometry.size[1]
        return functional.pad(image, [0, 0, right, bottom], PADDING)


def draw_geometry(rng, scales, size, full, semseg):
    """Random scale, flip and crop (protocol) -> Geometry.

    size: (height, width) of the image. full: of the sample; no crop is larger once resized.
    semseg: (H, W) or None. At most 10 crops are drawn, until no class has 75 % of the labelled
    pixels. This looks at semseg whatever tasks are trained.
    """
    scale = rng.uniform(*scales)
    flip = rng.random() < 0.5

    # The crop, in pixels of the image: what fills the sample once it is resized, or all there is.
    height = min(size[0], round(full[0] / scale))
    width = min(size[1], round(full[1] / scale))

    # Its size then; rounding may give a pixel too many.
    resized = (min(full[0], round(height * scale)), min(full[1], round(width * scale)))

    for _ in range(10):
        top = rng.integers(size[0] - height + 1)
        left = rng.integers(size[1] - width + 1)
        window = np.s_[top : top + height, left : left + width]
        if semseg is None or is_varied(semseg[window]):
            break
    return Geometry(window, resized, flip, scale)


def is_varied(semseg):
    """Is every class below 75 % of the labelled pixels? Judged on every fourth row and column."""
    counts = np.bincount(semseg[::4, ::4].ravel(), minlength=256)[:255]
    return counts.max() < 0.75 * counts.sum()


def place_label(label, geometry, full, ignored):
    """A label's window (h, w, ...) resized to the nearest pixel, flipped, padded to `full`."""
    height, width = geometry.size
    rows = (np.arange(height) + 0.5) * label.shape[0] // height
    columns = (np.arange(width) + 0.5) * label.shape[1] // width
    if geometry.flip:
        columns = columns[::-1]

    placed = np.full((*full, *label.shape[2:]), ignored, label.dtype)
    placed[:height, :width] = label.take(rows.astype(int), 0).take(columns.astype(int), 1)
    return placed


def distort(image, rng):
    """Photometric distortion of a uint8 (3, H, W) RGB image (protocol, as in mmsegmentation).

    Each with probability 1/2: brightness + [-32, 32]; contrast * [0.5, 1.5], before or after the
    next two; saturation * [0.5, 1.5]; hue by -36 to 34 degrees. Choice: the hue turns about the
    grey axis and colours are clipped per channel, as HSV takes longer than all else here.
    """
    brighten, contrast, contrast_last, saturate, turn = rng.random(5) < 0.5
    factor = rng.uniform(0.5, 1.5)  # of the contrast
    pixels = image.float()

    if brighten:
        pixels = pixels.add_(rng.uniform(-32, 32)).clamp_(0, 255)

    if contrast and not contrast_last:
        pixels = pixels.mul_(factor).clamp_(0, 255)

    if saturate:
        value = pixels.amax(0)  # V of HSV; colours move towards it or away from it
        pixels = value.lerp(pixels, rng.uniform(0.5, 1.5)).clamp_(0, 255)

    if turn:
        degrees = 2 * rng.integers(-18, 18)
        matrix = rotation_about_grey(math.radians(degrees))
        pixels = (matrix @ pixels.flatten(1)).view_as(pixels).clamp_(0, 255)

    if contrast and contrast_last:
        pixels = pixels.mul_(factor).clamp_(0, 255)
    return pixels.round_().byte()


def rotation_about_grey(angle):
    """Rodrigues' formula about the axis (1, 1, 1): I + sin(angle) K + (1 - cos(angle)) K^2."""
    axis = torch.full((3, 3), 3**-0.5)
    k = torch.linalg.cross(axis, torch.eye(3)).T  # k @ v is the cross product of axis and v
    return torch.eye(3) + math.sin(angle) * k + (1 - math.cos(angle)) * k @ k


def endless_keys(length, seed, start):
    """Keys of one shuffled pass over `length` images, then of the next, from the start-th on."""
    for epoch in count(start // length):
        generator = torch.Generator().manual_seed(seed * 100_003 + epoch)  # one per seed and epoch
        order = torch.randperm(length, generator=generator).tolist()
        skipped = max(start - epoch * length, 0)
        for index in order[skipped:]:
            yield epoch * length + index


def to_device(batch, device):
    """A batch of DenseTasks -> normalised image (B, 3, H, W), {task: label}.

    Labels widen here: classes to long (B, H, W), depth to float (B, 1, H, W) in metres, normals to
    float (B, 3, H, W).
    """
    from torchvision.transforms.v2 import functional

    labels = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    image = labels.pop("image").float() / 255
    image = functional.normalize(image, MEAN, STD).contiguous(memory_format=torch.channels_last)
    for task, label in labels.items():
        if task == "depth":
            labels[task] = label[:, None].nan_to_num(0, 0, 0)
        elif task == "normal":
            labels[task] = label.permute(0, 3, 1, 2).float().nan_to_num(0, 0, 0)
        else:
            labels[task] = label.long()
    return image, labels


# ------------------------------------------------------------------------------------ 6. backbones
def conv_bn(channels_in, channels_out, kernel=3, stride=1, relu=True):
    """Convolution and batch norm, and a ReLU unless the caller adds something first."""
    layers = [
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(channels_out),
    ]
    if relu:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def residual_blocks(kind, channels_in, channels, number):
    """A row of torchvision's residual blocks, "BasicBlock" or "Bottleneck"."""
    from torchvision.models import resnet

    block = getattr(resnet, kind)
    channels_out = channels * block.expansion
    shortcut = None
    if channels_in != channels_out:
        shortcut = conv_bn(channels_in, channels_out, kernel=1, relu=False)

    blocks = [block(channels_in, channels, downsample=shortcut)]
    for _ in range(number - 1):
        blocks.append(block(channels_out, channels))
    return nn.Sequential(*blocks)


class HighResolutionModule(nn.Module):
    """Parallel branches, one per resolution, whose outputs are summed into one another."""

    def __init__(self, channels, blocks):
        super().__init__()
        self.branches = nn.ModuleList(residual_blocks("BasicBlock", c, c, blocks) for c in channels)

        self.fuse_layers = nn.ModuleList()  # [i][j] brings branch j to the place of branch i
        for i, channels_i in enumerate(channels):
            layers = nn.ModuleList()
            for j, channels_j in enumerate(channels):
                layers.append(self.fuse(channels_j, channels_i, levels_down=i - j))
            self.fuse_layers.append(layers)

    @staticmethod
    def fuse(channels_in, channels_out, levels_down):
        """To a coarser branch a 3x3 of stride 2 per level, to a finer one a 1x1."""
        if levels_down == 0:
            return nn.Identity()
        if levels_down < 0:
            return conv_bn(channels_in, channels_out, kernel=1, relu=False)

        steps = [conv_bn(channels_in, channels_in, stride=2) for _ in range(levels_down - 1)]
        return nn.Sequential(*steps, conv_bn(channels_in, channels_out, stride=2, relu=False))

    def forward(self, maps):
        maps = [branch(x) for branch, x in zip(self.branches, maps)]

        fused = []
        for target, layers in zip(maps, self.fuse_layers):
            parts = []
            for layer, x in zip(layers, maps):
                part = layer(x)
                if part.shape != target.shape:
                    # To the nearest pixel as in timm (choice; ATRC: bilinear). To a size, not by a
                    # factor, as an odd size is not twice the coarser one.
                    part = F.interpolate(part, target.shape[2:])
                parts.append(part)
            fused.append(F.relu_(sum(parts[1:], parts[0])))
        return fused


class HRNet(nn.Module):
    """HRNet (Wang et al., 2020) without its classifier, named as in the official checkpoints.

    width: channels of the finest branch. first_blocks: of stage 1. modules: of stages 2, 3, 4.
    blocks: residual blocks per branch and module.
    """

    def __init__(self, width, first_blocks, modules, blocks):
        super().__init__()
        w = [width, 2 * width, 4 * width, 8 * width]
        self.channels = w

        self.conv1 = nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 64, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.layer1 = residual_blocks("Bottleneck", 64, 64, first_blocks)

        # Every transition adds a branch of half the resolution.
        self.transition1 = self.transition([conv_bn(256, w[0])], 256, w[1])
        self.stage2 = self.stage(w[:2], modules[0], blocks)
        self.transition2 = self.transition([nn.Identity(), nn.Identity()], w[1], w[2])
        self.stage3 = self.stage(w[:3], modules[1], blocks)
        self.transition3 = self.transition([nn.Identity() for _ in range(3)], w[2], w[3])
        self.stage4 = self.stage(w[:4], modules[2], blocks)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def transition(same, channels_in, channels_out):
        """Layers for the branches that there are, and one that makes a coarser branch."""
        return nn.ModuleList([*same, nn.Sequential(conv_bn(channels_in, channels_out, stride=2))])

    @staticmethod
    def stage(channels, modules, blocks):
        return nn.Sequential(*[HighResolutionModule(channels, blocks) for _ in range(modules)])

    def forward(self, x):
        """(B, 3, H, W) -> 4 maps of `channels` at strides 4, 8, 16, 32, sizes rounded up."""
        x = F.relu_(self.bn1(self.conv1(x)))
        x = F.relu_(self.bn2(self.conv2(x)))
        maps = [self.layer1(x)]  # (B, 256, H/4, W/4)

        stages = [
            (self.transition1, self.stage2),
            (self.transition2, self.stage3),
            (self.transition3, self.stage4),
        ]
        for transition, stage in stages:
            coarsest = maps[-1]
            maps = stage([layer(x) for layer, x in zip(transition, [*maps, coarsest])])
        return maps


class ResNet(nn.Module):
    """torchvision's without its classifier; output strides 4 to 32 (choice: not dilated to 8)."""

    def __init__(self, name):
        super().__init__()
        from torchvision.models import get_model

        net = get_model(name)
        deepest = net.fc.in_features
        self.channels = [deepest // 8, deepest // 4, deepest // 2, deepest]
        for child, module in net.named_children():
            if child not in ("avgpool", "fc"):
                self.add_module(child, module)

    def forward(self, x):
        """Like HRNet's."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps


@dataclass(frozen=True)
class HRNetVariant:
    width: int
    first_blocks: int
    modules: tuple
    blocks: int
    weights: str | None = None  # file name; its digits are the start of its SHA-256


# fmt: off
HRNETS = {
    "hrnet_tiny": HRNetVariant(12, 1, (1, 1, 1), 1),  # for minutes on a CPU (choice)
    "hrnet18s":   HRNetVariant(18, 2, (1, 3, 2), 2, "hrnetv2_w18_small-b5a04e21.pth"),  # Small-v2
    "hrnet18":    HRNetVariant(18, 4, (1, 4, 3), 4, "hrnetv2_w18-00eb2006.pth"),
    "hrnet32":    HRNetVariant(32, 4, (1, 4, 3), 4, "hrnetv2_w32-dc9eeb4f.pth"),
    "hrnet48":    HRNetVariant(48, 4, (1, 4, 3), 4, "hrnetv2_w48-d2186c55.pth"),
}
# fmt: on
HRNET_WEIGHTS = "https://download.openmmlab.com/pretrain/third_party/"  # the authors' own weights
RESNETS = ("resnet18", "resnet50")
BACKBONES = (*HRNETS, *RESNETS)


def build_backbone(name):
    """With random weights: .channels, 4 ints; (B, 3, H, W) -> 4 maps at strides 4, 8, 16, 32."""
    if name in HRNETS:
        variant = HRNETS[name]
        return HRNet(variant.width, variant.first_blocks, variant.modules, variant.blocks)
    if name in RESNETS:
        return ResNet(name)
    raise UserError(f"no backbone {name!r}; there are {', '.join(BACKBONES)}")


def load_pretrained(backbone, name, source):
    """Fill a backbone from "imagenet", or from a file of weights of the same network.

    In a file they may lie under "state_dict" or "model", and their names may have a prefix such as
    "backbone.".
    """
    if source == "imagenet":
        state = download_weights(name)
    else:
        state = load_weights(source)
    for key in ("state_dict", "model"):
        if isinstance(state.get(key), dict):
            state = state[key]

    # Of the names that end in conv1.weight the shortest is the first convolution's. The prefix is
    # what stands before it.
    firsts = [key for key in map(str, state) if key.endswith("conv1.weight")]
    prefix = min(sorted(firsts), key=len, default="conv1.weight").removesuffix("conv1.weight")
    filled = {}
    missing = []
    for key, array in backbone.state_dict().items():
        given = state.get(prefix + key)
        if getattr(given, "shape", None) == array.shape:
            filled[key] = given
        elif array.ndim > 0:  # batch norm's counter of batches may be missing
            missing.append(key)
    if missing:
        raise UserError(
            f"{source} does not fill {len(missing)} arrays of {name}, as {missing[0]}; "
            f"it holds {', '.join(list(map(str, state))[:3])} ..."
        )
    backbone.load_state_dict(filled, strict=False)


def download_weights(name):
    """ImageNet weights by the encoder's name: OpenMMLab's copy of HRNet's, torchvision's ResNet."""
    if name in RESNETS:
        from torchvision.models import get_model_weights

        url = get_model_weights(name).IMAGENET1K_V1.url
    elif name in HRNETS and HRNETS[name].weights:
        url = HRNET_WEIGHTS + HRNETS[name].weights
    else:
        raise UserError(f"{name} has no ImageNet weights: take --pretrained none")

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    by_hand = f"get {url} by other means and put it into {folder}, or take --pretrained none"
    with explaining(f"ImageNet weights of {name} cannot be had, {by_hand}", OSError, RuntimeError):
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True)


# ---------------------------------------------------------------------------------------- 7. model
class MultiTaskNet(nn.Module):
    """A shared encoder; per task a 3x3 conv-BN-ReLU and a 1x1 prediction (protocol).

    tasks: task -> prediction channels. backbone: a name of BACKBONES, or a module of your own with
    `.channels` and maps from stride 4 on, coarser one by one. Its maps are resized to the first
    one's size and concatenated. If their channels add up to more than HRNet48's 720, as ResNet's
    do, a 1x1 first brings each map to 128 (choice). The 3x3 reduces the channels to a quarter. Its
    output is F_T, which the regulariser sees.
    """

    def __init__(self, tasks, backbone="hrnet18s"):
        super().__init__()
        if isinstance(backbone, str):
            backbone = build_backbone(backbone)
        self.backbone = backbone

        self.laterals = nn.ModuleList()
        widths = backbone.channels
        if sum(widths) > 720:
            self.laterals.extend(conv_bn(width, 128, kernel=1) for width in widths)
            widths = [128 for _ in widths]
        else:
            self.laterals.extend(nn.Identity() for _ in widths)

        total = sum(widths)
        self.channels = total // 4  # C
        self.heads = nn.ModuleDict({task: conv_bn(total, self.channels) for task in tasks})
        self.predictors = nn.ModuleDict()
        for task, channels in tasks.items():
            self.predictors[task] = nn.Conv2d(self.channels, channels, 1)
        for predictor in self.predictors.values():
            nn.init.normal_(predictor.weight, std=0.01)
            nn.init.zeros_(predictor.bias)

    def features(self, x):
        """(B, 3, H, W) -> {task: F_T (B, C, H/4, W/4)}, sizes rounded up."""
        maps = [lateral(m) for lateral, m in zip(self.laterals, self.backbone(x))]
        size = maps[0].shape[2:]
        shared = torch.cat([F.interpolate(m, size, mode="bilinear") for m in maps], dim=1)
        return {task: head(shared) for task, head in self.heads.items()}

    def predict(self, features, size):
        """What features() gives -> {task: (B, K, *size)}."""
        predictions = {}
        for task, feature in features.items():
            prediction = self.predictors[task](feature)
            predictions[task] = F.interpolate(prediction, size, mode="bilinear")
        return predictions

    def forward(self, x):
        """(B, 3, H, W) -> {task: (B, K, H, W)}. The regulariser has no part in it (stated)."""
        return self.predict(self.features(x), x.shape[2:])


def postprocess(task, prediction):
    """(B, K, H, W) of the network -> what is judged and drawn.

    Depth in metres (B, 1, H, W), unit normals (B, 3, H, W), the probability of saliency and
    boundary (B, H, W), the most likely class (B, H, W).
    """
    if task == "depth":
        return prediction.clamp(min=0)
    if task == "normal":
        return F.normalize(prediction, dim=1)
    if TASKS[task].channels == 1:
        return prediction.sigmoid().squeeze(1)
    return prediction.argmax(1)


# ------------------------------------------------------------------------------------- 8. training
class Objective(nn.Module):
    """Network, task losses and regulariser in one forward pass, as DistributedDataParallel asks.

    regulariser: a CrossTaskContrast, or None for the baseline.
    """

    def __init__(self, net, regulariser, protocol):
        super().__init__()
        self.net = net
        self.regulariser = regulariser
        self.boundary_weight = protocol.boundary_weight

    def forward(self, images, labels):
        """Images (B, 3, H, W) and {task: label} -> {task: L_T}, the sum of all L_contrast."""
        features = self.net.features(images)  # {task: F_T}

        # The regulariser comes before the predictions. backward() goes the other way round, so it
        # needs its memory when that of the predictions is free again.
        contrast_loss = torch.zeros((), device=images.device)
        if self.regulariser is not None:
            contrast_loss = self.regulariser(features, labels)

        predictions = self.net.predict(features, images.shape[2:])
        losses = {}
        for task, prediction in predictions.items():
            prediction = prediction.float()
            arguments = [prediction, labels[task]]
            if task == "boundary":
                arguments.append(self.boundary_weight)
            losses[task] = TASKS[task].loss(*arguments)
        return losses, contrast_loss


def set_up(config, device, make_regulariser=None, backbone=None):
    """All that a run begins with -> Objective, optimiser, schedule.

    config: what run_config() of section 11 returns. Its "channels" is {task: prediction channels}.
    make_regulariser: (tasks, channels) -> another form of the loss. backbone: a module in place of
    the config's.
    """
    torch.manual_seed(config["seed"])
    net = MultiTaskNet(config["channels"], backbone or config["backbone"])
    if config["pretrained"] != "none":
        load_pretrained(net.backbone, config["backbone"], config["pretrained"])

    regulariser = None
    if config["contrast"] > 0:  # made after the network, so that the baseline starts alike
        if make_regulariser is None:
            make_regulariser = partial(CrossTaskContrast, targets=config["targets"])
        regulariser = make_regulariser(config["tasks"], net.channels)

    objective = Objective(net, regulariser, PROTOCOLS[config["dataset"]])
    objective = objective.to(device, memory_format=torch.channels_last)
    if device.type == "cuda" and dist.is_initialized():
        objective = nn.SyncBatchNorm.convert_sync_batchnorm(objective)

    optimiser = torch.optim.SGD(
        objective.parameters(), config["lr"], momentum=0.9, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimiser, config["iters"], power=0.9)
    return objective, optimiser, schedule


def training_batches(config, device, workers, start):
    """This process's share of every batch from iteration `start` to the last."""
    dataset = DenseTasks(
        config["data"], "train", config["tasks"], augment=True, seed=config["seed"]
    )
    batch_size = config["batch_size"]
    keys = endless_keys(len(dataset), config["seed"], start * batch_size)  # of all processes
    count = (config["iters"] - start) * batch_size
    share = islice(keys, rank(), count, world_size())  # every world_size-th, this process's own
    return DataLoader(
        dataset,
        batch_size // world_size(),
        sampler=share,
        num_workers=workers,
        worker_init_fn=quiet_worker,
        pin_memory=device.type == "cuda",
    )


def train(args, config, device, make_regulariser=None, backbone=None):
    """The training of the paper -> the trained network; log.csv and last.pt in the run's folder."""
    objective, optimiser, schedule = set_up(config, device, make_regulariser, backbone)
    run = SafeRun(args.out, config, objective, optimiser, schedule)  # section 10
    start = run.begin(args.resume)
    batches = training_batches(config, device, args.workers, start)

    if args.compile:
        objective.net.features = torch.compile(objective.net.features)
    parallel = objective
    if world_size() > 1:
        # In an iteration most projectors are not drawn, so they have no gradient.
        parallel = nn.parallel.DistributedDataParallel(
            objective, find_unused_parameters=config["contrast"] > 0
        )

    with run.noting_signals():
        for iteration, batch in enumerate(batches, start + 1):
            # The regulariser's draws follow from seed and iteration, so a resumed run repeats them.
            torch.manual_seed(config["seed"] * 2**32 + iteration)
            images, labels = to_device(batch, device)

            # Features of all tasks; their losses, and the regulariser's.
            with torch.autocast(device.type, torch.bfloat16, enabled=config["amp"]):
                losses, contrast_loss = parallel(images, labels)

            # L = sum over tasks of w_T L_T + lambda * sum over targets of L_contrast (stated).
            total = sum(TASKS[task].weight * loss for task, loss in losses.items())
            total = total + config["contrast"] * contrast_loss

            optimiser.zero_grad()
            total.backward()
            optimiser.step()

            # Polynomial decay of the learning rate (protocol). The log shows the one of this step.
            lr = schedule.get_last_lr()[0]
            schedule.step()

            run.after_step(iteration, images, losses, contrast_loss, lr)
    return objective.net


# ----------------------------------------------------------------------------------- 9. evaluation
def build_metric(task, channels, protocol):
    """The task's metric, still empty; None where extras/, which odsF needs, is missing."""
    metric = TASKS[task].metric
    if metric is MeanIoU:
        return MeanIoU(channels)
    if metric is OdsF:
        return OdsF(protocol.max_dist) if find_extra("odsf", "odsF") else None
    return metric()


@torch.inference_mode()
def evaluate(net, dataset, device, workers=0, amp=False):
    """The metrics of a split -> what metrics.json holds, and some samples for a picture.

    One forward pass per image at the file's resolution, so that no metric depends on a batch size
    or on the number of processes.
    """
    protocol = PROTOCOLS[dataset.name]
    metrics = {}
    for task in dataset.tasks:
        metrics[task] = build_metric(task, net.predictors[task].out_channels, protocol)

    indices = range(rank(), len(dataset), world_size())  # of this process: none if there are few
    shown = set()
    if indices:
        shown = {indices[0], indices[len(indices) // 2], indices[-1]}
    samples = []
    loader = DataLoader(dataset, sampler=indices, num_workers=workers, worker_init_fn=quiet_worker)

    net.eval()
    for index, batch in zip(indices, loader):
        image, labels = to_device(batch, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            predictions = net(image)

        for task, metric in metrics.items():
            check_finite(task, predictions[task], f"{dataset.split} image {index}")
            predictions[task] = postprocess(task, predictions[task].float())
            if metric is not None:
                metric.update(predictions[task], labels[task])

        if index in shown:
            samples.append((f"{dataset.split} {index}", batch, predictions))
        if rank() == 0 and (index % 100 == 0 or index == indices[-1]):
            print(f"evaluation {index + 1}/{len(dataset)} images", flush=True)

    found = {}
    for task, metric in metrics.items():
        value = math.nan
        if metric is not None:
            if world_size() > 1:
                dist.all_reduce(metric.counts)
            value = metric.compute()
        found[task] = {TASKS[task].metric.name: None if math.isnan(value) else value}
    return found, samples


def check_finite(task, prediction, image):
    """Neither a metric nor a picture may be made of nan or infinity."""
    if not prediction.isfinite().all():
        raise UserError(f"the {task} prediction of {image} is not finite: the weights are ruined")


def report(net, config, out, device, workers):
    """Evaluate on the val split -> metrics.json, config.json, preview.png, the closing table."""
    dataset = DenseTasks(config["data"], "val", config["tasks"])
    metrics, samples = evaluate(net, dataset, device, workers, config["amp"])
    if rank() != 0:
        return

    write_json(out / "metrics.json", metrics)  # first: what follows may fail
    write_json(out / "config.json", config)
    draw_preview(samples, dataset.classes, out / "preview.png")

    print(f"\nval split of {config['data']}, {len(dataset)} images:")
    print_metrics(metrics)
    print(f"in {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


def print_metrics(metrics):
    """What metrics.json holds, a line per task."""
    for task, values in metrics.items():
        metric = TASKS[task].metric
        value = values[metric.name]
        digits = 4 if metric.unit == "m" else 2
        shown = "-" if value is None else f"{value:.{digits}f}"
        sense = "higher" if metric.higher_is_better else "lower"
        print(f"  {task:9}{metric.name:5}{shown:>7} {metric.unit:4}{sense} is better")


def draw_preview(samples, classes, path):
    """Labels and predictions of some images, side by side, as a picture."""
    pictures = find_extra("pictures", path.name)
    if not pictures:
        return

    rows = []
    for name, batch, predictions in samples:
        image = batch["image"][0].permute(1, 2, 0).numpy()
        labels = {task: batch[task][0].numpy() for task in predictions}
        guesses = {}
        for task, prediction in predictions.items():
            guesses[task] = pictures.as_label(prediction[0].cpu().numpy())
        rows.append((name, image, labels, guesses))
    with replacing(path) as part:
        pictures.preview(rows, classes).save(part, "PNG")


# --------------------------------------------------------------------------------------- 10. safety
# What keeps a run safe: not needed to understand the method. A run can be killed at any moment and
# resumed as if it had never stopped; Ctrl-C and SIGTERM save and stop; what is not finite is
# neither saved nor shown; a file is the old or the new one, never half of it; bad use is answered
# in one line.
class UserError(Exception):
    """Bad use or bad input. Its text is the one line that the user sees."""


WORKER_KILLED = "a worker was killed, as memory or /dev/shm may be full: take fewer --workers"

# What helps, by a part of an error's text.
REMEDIES = {
    "shared memory": "/dev/shm is full: --workers 0, or docker run --shm-size=8g",
    "/torch_": "/dev/shm is full: --workers 0, or docker run --shm-size=8g",
    "unable to lock": "close what writes it, or set HDF5_USE_FILE_LOCKING=FALSE",
    "out of memory": "take a smaller --batch-size",
    "DataLoader worker": WORKER_KILLED,
    "EOFError": WORKER_KILLED,
    "Connection reset": WORKER_KILLED,
    "more than 1 value per channel": "take a larger --batch-size for images this small",
}

NOT_WEIGHTS = {  # files that people take for weights, by how they begin
    b"<": "it is a web page, download the file again",
    b"version https://git-lfs": "it is a pointer of Git LFS, get the file: git lfs pull",
}


@contextmanager
def explaining(what, *errors):
    """Errors of these kinds, which come from outside, become a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except errors as error:
        text = str(error).strip() or type(error).__name__
        if "Traceback" in text:  # of a loader's process: its last line is the cause
            text = text.splitlines()[-1]
        remedies = [remedy for part, remedy in REMEDIES.items() if part in text]
        text = " ".join(text.split())[:300]
        raise UserError(": ".join([what, text, *remedies[:1]])) from error


def find_extra(name, what):
    """The module extras/NAME.py; None, and a line that says so, where it is missing."""
    try:
        return importlib.import_module(f"extras.{name}")
    except ModuleNotFoundError as error:
        if error.name not in ("extras", f"extras.{name}"):
            raise
        if rank() == 0:
            print(f"no {what}: extras/{name}.py is not beside mtcd.py", flush=True)
        return None


@contextmanager
def replacing(path):
    """A temporary name to write to, renamed at the end: path is the old or the new file."""
    part = Path(f"{path}.part")
    with explaining(f"{path} cannot be written", OSError, RuntimeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def write_json(path, content):
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=1))


def load_weights(path, *keys):
    """A file of torch.save -> its dictionary, which must have `keys`. No code in it is run."""
    with explaining(f"{path} cannot be loaded as weights", Exception):
        with open(path, "rb") as file:
            start = file.read(200).lstrip()
        for sign, what in NOT_WEIGHTS.items():
            if start.startswith(sign):
                raise ValueError(what)
        if zipfile.is_zipfile(path):
            damaged = zipfile.ZipFile(path).testzip()  # torch.load does not look at checksums
            if damaged:
                raise ValueError(f"it is damaged, {damaged} has a wrong checksum")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # torch's text is about how to run the code in it
            found = re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error))
            holds = f"{found[1]} beside tensors" if found else "nothing that torch.save wrote"
            raise ValueError(f"it holds {holds}; save a network's state_dict()") from error
        if not isinstance(content, dict) or not set(keys) <= content.keys():
            raise ValueError(f"it has no {' and '.join(keys) or 'weights'}")
        return content


def check_data(file, split, tasks):
    """Refuse a file that is not laid out as README's table says, before any time is lost."""

    def refuse(what):
        raise UserError(f"{file.filename}: {what} (README.md has the table of a data file)")

    if file.attrs.get("dataset") not in PROTOCOLS:
        refuse(f"its attribute dataset must be one of {', '.join(PROTOCOLS)}")
    if "semseg" in tasks and "semseg_classes" not in file.attrs:
        refuse("it lacks the attribute semseg_classes, the names of the classes")
    group = file.get(split, {})
    missing = {"image", "size", *tasks} - set(group)
    if missing:
        refuse(f"{split} has no {', '.join(sorted(missing))}")

    # Types and shapes. Labels have the shape of the images.
    shape = group["image"].shape[:3]  # (N, H, W)
    if len(shape) < 3 or shape[0] == 0:
        refuse(f"{split} has no image")
    expected = {"image": f"uint8 {(*shape, 3)}", "size": f"{group['size'].dtype} {(shape[0], 2)}"}
    for task in tasks:
        expected[task] = f"{TASKS[task].dtype} {(*shape, *TASKS[task].tail)}"
    for name, layout in expected.items():
        found = f"{group[name].dtype} {group[name].shape}"
        if found != layout:
            refuse(f"{split}/{name} must be {layout}, it is {found}")

    # In a binary map of 0 and 255 nothing would be positive. A few images show it.
    for task in tasks:
        if TASKS[task].classes == 2:
            values = set()
            for index in np.linspace(0, shape[0] - 1, 8).astype(int):
                height, width = group["size"][index]
                values.update(np.unique(group[task][index, :height, :width]).tolist())
            if {0, 255} <= values and 1 not in values:
                refuse(f"{split}/{task} must be 0 and 1, and 255 ignored; it is 0 and 255")


def check_classes(task, label, num_classes):
    """Refuse a label (h, w) beyond the classes of its task; 255 is ignored."""
    highest = np.where(label == 255, 0, label).max(initial=0)
    if highest >= num_classes:
        raise ValueError(f"{task} holds {highest}, but its classes are 0 to {num_classes - 1}")


def data_identity(file):
    """What a data file is, wherever it lies: resumed and compared runs must agree in it."""
    checksum = 0
    sizes = []
    for split in ("train", "val"):
        group = file.get(split, {})
        if "image" in group:
            sizes.append(len(group["image"]))
            height, width = group["image"].shape[1:3]
        if "crc32" in group:  # one per image, by data_prep.py
            checksum = zlib.crc32(group["crc32"][:].tobytes(), checksum)
        elif "image" in group:  # a file of one's own may lack them: its first and last image tell
            for index in (0, -1):
                checksum = zlib.crc32(group["image"][index].tobytes(), checksum)
    counts = " + ".join(map(str, sizes))
    return f"{counts} images of {height} x {width}, checksum {checksum:08x}"


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    return dist.get_world_size() if dist.is_initialized() else 1


def in_any_process(flag):
    """Is the flag set in any process? All of them must do the same."""
    if dist.is_initialized():
        flag = torch.tensor(float(bool(flag)))  # on the CPU: nobody waits for a GPU
        dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def quiet_worker(_):
    """In a loader's process: Ctrl-C and messages are the main process's business alone."""
    if hasattr(os, "setpgrp"):  # Windows lacks it
        os.setpgrp()
    # When the main process is gone, the thread that hands over batches would print a traceback.
    sys.excepthook = lambda *_: None


class SafeRun:
    """A run's folder: what is logged, saved, resumed, and when the run has to stop."""

    def __init__(self, folder, config, objective, optimiser, schedule):
        self.folder = Path(folder)
        self.config = config
        self.objective = objective
        # What changes while training. All draws follow from seed and iteration.
        self.parts = {
            "model": objective.net,
            "contrast": objective.regulariser or nn.ModuleDict(),  # the baseline has none
            "optimiser": optimiser,
            "schedule": schedule,
        }
        self.log = []  # rows of log.csv
        self.pending = []  # losses since the last row
        self.signals = []  # that have come
        self.lines = 0  # on the terminal
        self.print_time = -math.inf

    def begin(self, resume):
        """-> how many iterations are done. A new run removes the results of an older one here.

        last.pt stays until the new run saves its own: only the same run can be resumed from it.
        """
        self.done = 0
        if resume and (self.folder / "last.pt").exists():
            self.done = self.load()
        elif rank() == 0:
            for name in ("log.csv", "metrics.json", "preview.png"):
                (self.folder / name).unlink(missing_ok=True)
            write_json(self.folder / "config.json", self.config)
        self.start_time = time.monotonic()
        return self.done

    def load(self):
        """last.pt into everything that trains -> its iteration; another run's is refused."""
        path = self.folder / "last.pt"
        saved = load_weights(path, "config", "iteration", *self.parts)
        differences = config_differences(saved["config"], self.config)
        if differences:
            raise UserError(f"{path} is of another run: {'; '.join(differences)}")
        for name, module in self.parts.items():
            module.load_state_dict(saved[name])
        self.log = saved.get("log", [])
        return saved["iteration"]

    @contextmanager
    def noting_signals(self):
        """Ctrl-C and SIGTERM are noted here, and obeyed by after_step()."""
        handlers = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            handlers[number] = signal.signal(number, lambda n, _: self.signals.append(n))
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def after_step(self, iteration, images, losses, contrast_loss, lr):
        """Log every 10 iterations, save 20 times, at least every 1,000, and stop after a signal.

        images: the batch, which shows whether the network still gives finite numbers.
        """
        values = {task: loss.detach().float() for task, loss in losses.items()}
        if self.objective.regulariser is not None:
            values["contrast"] = contrast_loss.detach().float()
            values["share_of_chance"] = self.objective.regulariser.share_of_chance.float()
        self.pending.append(torch.stack(list(values.values())))

        iters = self.config["iters"]
        stopping = in_any_process(self.signals)
        last = stopping or iteration == iters
        saving = last or iteration % min(max(iters // 20, 1), 1000) == 0
        if not saving and iteration % 10 != 0:
            return

        numbers = torch.stack(self.pending).mean(0).tolist()  # here a GPU is waited for
        means = dict(zip(values, numbers))
        self.pending = []
        self.refuse_ruin(iteration, means, images if saving else None)

        per_step = (time.monotonic() - self.start_time) / (iteration - self.done)  # seconds
        speed = self.config["batch_size"] / per_step
        row = {**means, "lr": lr, "images_per_s": speed}
        self.log.append({"iteration": iteration, **{k: f"{v:.4g}" for k, v in row.items()}})

        if rank() == 0 and (last or time.monotonic() > self.print_time + 5):
            self.print_time = time.monotonic()
            self.print_row(iteration, row, round(per_step * (iters - iteration)))
        if rank() == 0 and saving:
            self.save(iteration)
        if stopping:
            advice = f"--resume goes on from iteration {iteration} of {self.folder}"
            raise UserError(f"stopped; {advice}")

    def refuse_ruin(self, iteration, means, images):
        """Stop before what is not finite is logged or, with the batch's images given, saved.

        The losses came before the last step, so they do not tell what it did to the network.
        """
        ruined = [name for name, mean in means.items() if not math.isfinite(mean)]
        if images is not None:
            self.objective.eval()
            with torch.inference_mode():
                tensors = self.objective.net(images)
            self.objective.train()
            tensors.update(self.objective.named_parameters())
            ruined += [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
        if in_any_process(ruined):
            names = " ".join(ruined[:3]) or "another process"
            advice = "begin again with a smaller --lr"
            raise UserError(f"{names} not finite at iteration {iteration}; {advice}")

    def print_row(self, iteration, row, seconds_left):
        """One line of at most 100 columns on the terminal, under a header now and then."""
        minutes, seconds = divmod(seconds_left, 60)
        cells = {"iteration": f"{iteration}/{self.config['iters']}"}
        for name in [*self.config["tasks"], "contrast", "share_of_chance"]:
            if name in row:
                short = "chance" if name == "share_of_chance" else name
                cells[short] = f"{row[name]:.3f}"
        cells["lr"] = f"{row['lr']:.4f}"
        cells["img/s"] = f"{row['images_per_s']:.4g}"
        cells["left"] = f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"

        widths = {name: max(len(name), 6) + 1 for name in cells}
        widths["iteration"] = 12
        widths["left"] = 9
        if self.lines % 20 == 0:
            print("".join(name.rjust(width) for name, width in widths.items()))
        print("".join(cells[name].rjust(width) for name, width in widths.items()), flush=True)
        self.lines += 1

    def save(self, iteration):
        """last.pt and log.csv."""
        state = {"config": self.config, "iteration": iteration, "log": self.log}
        for name, module in self.parts.items():
            state[name] = module.state_dict()
        with replacing(self.folder / "last.pt") as part:
            torch.save(state, part)
        with replacing(self.folder / "log.csv") as part, part.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.log[-1].keys())
            writer.writeheader()
            writer.writerows(self.log)


def config_differences(saved, wanted):
    """What tells two runs apart, in words. Files may move: data go by identity, weights by name."""
    differences = []
    for key, value in wanted.items():
        before = saved.get(key)
        if key == "data" and "identity" in saved:
            continue
        if key in ("identity", "targets", "regulariser") and key not in saved:
            continue  # the checkpoint is older than this key
        if key == "pretrained" and Path(str(before)).name == Path(value).name:
            continue
        if before != value:
            differences.append(f"{key} {before}, not {value}")
    return differences


# -------------------------------------------------------------------------------- 11. command line
class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message}; see --help")


def number(kind, low, high=math.inf):
    """An argparse type: a number from `low` to below `high`."""
    words = f"a {'whole number' if kind is int else 'number'} of {low} or more"
    if high < math.inf:
        words += f", below {high}"

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value < high:
            raise argparse.ArgumentTypeError(f"{text} is not {words}")
        return value

    return parse


def build_parser():
    """The command line of mtcd.py. Where the protocol says the default, it is None here."""
    cuda = torch.cuda.is_available()
    parser = Parser(description=__doc__.split("\n\n")[0])

    add = parser.add_argument_group("what to train").add_argument
    add("--dataset", choices=PROTOCOLS, default="toy", help="sets the protocol (default: toy)")
    add("--data", metavar="FILE", help="of data_prep.py (default: data/DATASET.h5)")
    add("--tasks", nargs="+", choices=TASKS, metavar="T", help="some of its tasks (default: all)")
    add("--backbone", choices=BACKBONES, help="shared encoder (default: hrnet18s; toy: hrnet_tiny)")
    add("--pretrained", metavar="FILE|imagenet|none", help="(default: imagenet; toy: none)")
    add("--contrast", type=number(float, 0), metavar="LAMBDA", help="0: without the regulariser")
    add("--targets", nargs="+", choices=TASKS, metavar="T", help="tasks that it regularises")

    add = parser.add_argument_group("how (defaults: the protocol's)").add_argument
    add("--iters", type=number(int, 1), metavar="N", help="iterations")
    add("--batch-size", type=number(int, 1), metavar="B", default=8, help="over all processes (8)")
    add("--lr", type=number(float, 0), help="learning rate at the start")
    add("--seed", type=number(int, 0, 2**31), metavar="S", default=0, help="of all draws (0)")

    add = parser.add_argument_group("on what").add_argument
    add("--device", default="cuda" if cuda else "cpu", help="cpu, cuda, cuda:1 ...")
    add("--workers", type=number(int, 0), metavar="N", default=4 if cuda else 0, help="loaders")
    add("--amp", action="store_true", help="bfloat16 where it is safe; not in the regulariser")
    add("--compile", action="store_true", help="compile the network with torch.compile")

    add = parser.add_argument_group("where to").add_argument
    add("--out", metavar="DIR", help="results, replacing older ones (default: runs/DATASET-...)")
    add("--resume", action="store_true", help="go on from DIR/last.pt as if never stopped")
    add("--eval", action="store_true", help="evaluate --checkpoint on the val split, do not train")
    add("--checkpoint", metavar="FILE", help="last.pt of a run, for --eval")
    return parser


def run_config(args):
    """Fill the arguments in from the protocol and check them -> all that describes the run."""
    protocol = PROTOCOLS[args.dataset]
    trained = args.tasks or protocol.tasks
    strange = set(args.targets or []) - set(trained)
    if strange:
        raise UserError(
            f"--targets {' '.join(sorted(strange))}: the tasks of this run are {' '.join(trained)}"
        )
    for name in ("backbone", "iters", "lr", "tasks", "contrast", "targets"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(protocol, name))
    if args.pretrained is None:
        args.pretrained = "none" if args.backbone == "hrnet_tiny" else protocol.pretrained

    tasks = [task for task in protocol.tasks if task in args.tasks]
    if not set(args.tasks) <= set(protocol.tasks):
        raise UserError(f"{args.dataset} has labels of {' '.join(protocol.tasks)} alone")
    if args.batch_size % world_size():
        raise UserError(
            f"--batch-size {args.batch_size} does not divide among {world_size()} processes"
        )

    path = find_data(args.dataset, args.data)
    dataset = DenseTasks(path, "val", tasks)
    DenseTasks(path, "train", tasks)  # checks the file's other half
    if dataset.name != args.dataset:
        raise UserError(
            f"{path} holds {dataset.name}, not {args.dataset}: --dataset {dataset.name}"
        )
    if args.out is None:
        args.out = f"runs/{run_name(args, args.contrast)}"

    channels = {}
    for task in tasks:
        channels[task] = TASKS[task].channels or len(dataset.classes[task])
    config = {
        "dataset": args.dataset,
        "data": str(path),
        "identity": dataset.identity,
        "tasks": tasks,
        "targets": [task for task in tasks if task in args.targets],
        "classes": dataset.classes,
        "channels": channels,
        "size": [int(n) for n in dataset.shape],
    }
    for name in ("backbone", "pretrained", "contrast", "iters", "batch_size", "lr", "seed", "amp"):
        config[name] = getattr(args, name)
    return config


def run_name(args, contrast):
    """The folder of a run where --out names none."""
    tasks = [task for task in PROTOCOLS[args.dataset].tasks if task in args.tasks]
    parts = [args.dataset, args.backbone]
    if len(tasks) < len(PROTOCOLS[args.dataset].tasks):
        parts += tasks
    return "-".join([*parts, f"contrast{contrast:g}", f"seed{args.seed}"])


def find_data(name, path):
    """The data file of a data set; a missing toy file is rendered on the spot."""
    default = Path(f"data/{name}.h5")
    path = Path(path or default)
    if name == "toy" and not path.exists():
        for other in PROTOCOLS:
            if other != "toy" and other in path.name:
                raise UserError(f"{path} is not there, and would not be toy's: --dataset {other}")
        if rank() == 0:
            render_toy(path)
    in_any_process(False)  # the others wait for the first
    if not path.exists():
        command = f"python data_prep.py {name}"
        if name != "toy":
            command += " --download"
        if path != default:
            command += f" --out {path}"
        raise UserError(f"{path} is not there; make it: {command}")
    return path


def render_toy(path):
    try:
        import data_prep
    except ModuleNotFoundError as error:
        if error.name not in ("data_prep", "extras"):
            raise
        raise UserError(f"{path} is not there, nor is data_prep.py, which renders it") from error

    print(f"{path} is not there: rendering it", flush=True)
    with explaining(f"{path} cannot be made", data_prep.PrepError, OSError):
        data_prep.make_toy(path)


def run_training(args, device, make_regulariser=None, backbone=None):
    """Train, evaluate, report.

    make_regulariser: another form of the loss, see extras/arms.py. backbone: an encoder of your
    own; args.backbone is then its name in config.json.
    """
    config = run_config(args)
    if make_regulariser is not None:  # else runs of two forms would pass for one setting
        config["regulariser"] = getattr(make_regulariser, "__name__", str(make_regulariser))
    out = Path(args.out)
    if rank() == 0:
        print(
            f"{args.backbone}, pretrained: {args.pretrained}; lambda {args.contrast:g}; "
            f"{args.iters} iterations of {args.batch_size} on {device}"
        )
        print(f"{' '.join(config['tasks'])} -> {out}", flush=True)
    failed = "the run failed; --resume goes on from its last checkpoint"
    with explaining(failed, RuntimeError, ValueError, OSError, EOFError):
        net = train(args, config, device, make_regulariser, backbone)
        report(net, config, out, device, args.workers)


def suggest_comparison(args, argv):
    """Print what to type next: the other arm of the comparison, and the table of both."""
    if len(args.tasks) == 1 or rank() != 0:
        return

    other = PROTOCOLS[args.dataset].contrast if args.contrast == 0 else 0
    command = ["python", "mtcd.py", *argv, "--contrast", f"{other:g}"]  # the last one counts
    arms = sorted([args.contrast, other])  # the baseline first
    folders = [f"runs/{run_name(args, contrast)}" for contrast in arms]
    print("\nWhat does the regulariser change? The other arm, then the table of both:")
    print(f"  {shlex.join(command)}")
    print(f"  {shlex.join(['python', '-m', 'extras.compare', *folders])}")


def load_network(path, device, backbone=None):
    """last.pt of a run -> its network, its config, the regulariser's state ({} without).

    backbone: the module, if the run had an encoder of your own.
    """
    checkpoint = load_weights(path, "config", "model", "contrast", "iteration")
    config = checkpoint["config"]
    with explaining(f"{path} is not last.pt of a run of mtcd.py", Exception):
        net = MultiTaskNet(config["channels"], backbone or config["backbone"])
        net.load_state_dict(checkpoint["model"])
        if checkpoint["iteration"] < config["iters"]:
            config["iteration"] = checkpoint["iteration"]  # only an unfinished run has it
    net = net.to(device, memory_format=torch.channels_last)
    return net, config, checkpoint["contrast"]


def run_evaluation(args, device):
    """Metrics of a checkpoint, in a folder of their own if it is unfinished or of other data."""
    allowed = ("eval", "checkpoint", "dataset", "data", "out", "device", "workers")
    for name, default in vars(build_parser().parse_args([])).items():
        if name not in allowed and getattr(args, name) != default:
            raise UserError(f"--{name.replace('_', '-')} has no effect with --eval")
    if not args.checkpoint:
        raise UserError("--eval needs --checkpoint FILE, last.pt of a run")

    net, config, _ = load_network(args.checkpoint, device)
    if args.dataset not in ("toy", config["dataset"]):  # toy is the default: nothing was said
        raise UserError(f"--dataset {args.dataset}: the checkpoint is of {config['dataset']}")
    dataset = open_val(config, args.data)

    home = Path(args.checkpoint).parent
    same_data = dataset.path == config["data"]
    if "identity" in config:
        same_data = config["identity"] == dataset.identity
    out = home
    if not same_data or "iteration" in config:
        name = Path(dataset.path).stem
        out = home / f"eval-{name}-{config.get('iteration', config['iters'])}"
    if args.out:
        out = Path(args.out)
    if (out / "last.pt").exists() and out.resolve() != home.resolve():
        raise UserError(f"{out} holds another run; choose another --out")
    config["data"] = dataset.path
    config["identity"] = dataset.identity
    report(net, config, out, device, args.workers)


def open_val(config, data=None):
    """The val split for a run's network: of `data`, or else of the run's own file -> DenseTasks."""
    path = find_data(config["dataset"], data or config["data"])
    dataset = DenseTasks(path, "val", config["tasks"])
    own = [task for task in TASKS if TASKS[task].classes is None]  # those of the others are fixed
    other = any(dataset.classes.get(task) != config["classes"].get(task) for task in own)
    if other or dataset.name != config["dataset"]:
        raise UserError(f"{path} ({dataset.name}) has other classes than the network")
    return dataset


def start_device(name):
    """The device by its name; under torchrun this process's own, with the processes connected."""
    distributed = "LOCAL_RANK" in os.environ
    if distributed and name.startswith("cuda"):
        name = f"cuda:{os.environ['LOCAL_RANK']}"

    with explaining(f"--device {name} cannot be used", RuntimeError, AssertionError):
        device = torch.zeros(1, device=name).device  # works only where the device does
        if device.type == "cuda":
            torch.cuda.set_device(device)
        elif device.type != "cpu":
            raise RuntimeError("only cpu and cuda are known to work")

    if distributed:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    torch.set_float32_matmul_precision("high")  # TF32, on GPUs that have it
    return device


def exit_status(program, job):
    """Run a program's job -> 0; 2 after bad use or input, which one line on stderr explains."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names may be beyond the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        job()
        return 0
    except UserError as error:
        text = str(error).split("UserError: ")[-1]  # a loader's process puts a traceback before it
        print(f"{program}: {text.strip()}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def main(argv=None):
    """The command line -> exit status."""

    def job():
        args = build_parser().parse_args(argv)
        device = start_device(args.device)
        if args.eval:
            run_evaluation(args, device)
        else:
            named = args.out is not None  # then the other arm would be written over this one
            run_training(args, device)
            if not named:
                suggest_comparison(args, sys.argv[1:] if argv is None else argv)

    return exit_status("mtcd.py", job)


if __name__ == "__main__":
    sys.exit(main())
