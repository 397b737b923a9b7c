# SPDX-License-Identifier: MIT
"""Contrastive Multi-Task Dense Prediction (Yang, Ye, Xu; AAAI 2023), a reference implementation.

One network solves many per-pixel tasks of an image. While it trains, the labels of one task
regularise the features of another through a triplet loss; at inference nothing of that is left.

    python mtcd.py                                         train and evaluate on rendered rooms
    python mtcd.py --contrast 0                            the multi-task baseline
    python mtcd.py --tasks depth                           a single-task network
    python mtcd.py --eval --checkpoint runs/NAME/last.pt   the figures of a trained network again
    python mtcd.py --dataset nyud --pretrained hrnet_w18_small_v2.pth      the papers' benchmark
    torchrun --nproc_per_node=4 mtcd.py --dataset nyud --amp               on several GPUs

Sections: 1 the regulariser (the contribution; to be copied alone)  2 task losses  3 metrics
4 tasks, protocols  5 data  6 backbones  7 model  8 evaluation  9 training  10 command line
The paper's full text was not at hand. "Stated" is what its abstract and the captions of figures
1 and 2 say; "choice", what they leave open; "protocol", what ATRC's public code (Bruggemann et
al., 2021), and after it InvPT's (Ye and Xu, 2022), does on these benchmarks.
"""
import argparse
import csv
import itertools
import json
import math
import os
import signal
import sys
import time
import zipfile
from collections import namedtuple
from contextlib import ExitStack, contextmanager
from pathlib import Path

import h5py
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn  # torchvision, as slow to import as torch, where it is needed
from torch.utils.data import DataLoader, Dataset

from extras import odsf, pictures


# ------------------------------------------------------------------------------ 1. the regulariser
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
    >>> loss = task_losses + 1 * contrast({"semseg": f1, "depth": f2}, {"semseg": y1, "depth": y2})

    Afterwards `share_of_chance` is the loss over the margin, per target: 0 if it parts all triplets,
    about 1 if the projections tell nothing (more if it is narrow: compare within one margin only).
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
        for target in self.tasks:
            others = [task for task in self.tasks if task in labels and task != target]
            if target in features and others:
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
        other = torch.randint(max(n, 1), (n, self.candidates), device=label.device)
        usable = valid[:, None] & valid[other] & (other != own[:, None])
        gap = criterion.distance(label[:, None], label[other])  # (n, candidates)
        positive = usable & (gap <= criterion.positive)
        negative = usable & (gap >= criterion.negative)
        first = [mask.float().argmax(1) for mask in (positive, negative)]  # the first True
        return other[own, first[0]], other[own, first[1]], positive.any(1) & negative.any(1)
# <<< to here

# --------------------------------------------------------------------------------- 2. task losses
# Predictions (B, K, H, W), labels as to_device() makes them. Each loss is a mean over the valid
# pixels of the whole batch, also where several processes share it.
def whole_batch(count):  # a count -> its mean over all processes, at least 1
    count = count.float()
    if dist.is_initialized():
        dist.all_reduce(count)
        count /= dist.get_world_size()
    return count.clamp(min=1)

def class_loss(prediction, label, _=None):  # cross entropy
    loss = F.cross_entropy(prediction.contiguous(), label, ignore_index=255, reduction="none")
    return loss.sum() / whole_batch((label != 255).sum())

def binary_loss(prediction, label, positive_weight):
    """Binary cross entropy; negatives weigh 1 - positive_weight. Without one they balance."""
    valid, positive = label != 255, label == 1
    pixels = whole_batch(valid.sum())
    if positive_weight is None:
        positive_weight = 1 - whole_batch(positive.sum()) / pixels
    weight = torch.where(positive, positive_weight, 1 - positive_weight) * valid
    return F.binary_cross_entropy_with_logits(
        prediction.squeeze(1), positive.to(prediction.dtype), weight, reduction="sum") / pixels

def depth_loss(prediction, label, _=None):  # L1 in metres
    valid = label > 0
    return ((prediction - label).abs() * valid).sum() / whole_batch(valid.sum())

def normal_loss(prediction, label, _=None):
    """L1 between unit vectors, summed over their components. A prediction shorter than 1 stays as
    it is (choice): scaling it up has so steep a gradient that training from scratch stalls."""
    valid = (label != 0).any(1)  # (B, H, W)
    error = (F.normalize(prediction, dim=1, eps=1) - label).abs().sum(1)
    return (error * valid).sum() / whole_batch(valid.sum())

# -------------------------------------------------------------------------------------- 3. metrics
# Pixel-wise over a whole split (protocol). update() takes what postprocess() gives, and labels of a
# batch; `counts` add up over images and processes; compute() gives nan where nothing is valid.
class MeanIoU:
    """Mean intersection over union in percent; (B, H, W) classes, 255 ignored. A class in neither
    label nor prediction does not enter the mean (the peers count it as 0)."""

    def __init__(self, num_classes):
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)  # label, prediction

    def update(self, prediction, label):
        valid, k = label != 255, len(self.counts)
        pair = label[valid] * k + prediction[valid]
        self.counts += torch.bincount(pair, minlength=k * k).view(k, k).cpu()

    def compute(self):
        hit = self.counts.diag().double()
        iou = 100 * hit / (self.counts.sum(0) + self.counts.sum(1) - hit)  # nan if it does not occur
        return iou.nanmean().item()

class MeanAngularError:
    """Mean angle in degrees; (B, 3, H, W) vectors, labels of length 0 ignored."""

    def __init__(self):
        self.counts = torch.zeros(2, dtype=torch.float64)  # sum of errors, pixels

    def error(self, prediction, label):
        p, y = F.normalize(prediction.double(), dim=1), F.normalize(label.double(), dim=1)
        angle = 2 * torch.atan2((p - y).norm(dim=1), (p + y).norm(dim=1))  # stable at 0 and 180
        return angle.rad2deg()[(label != 0).any(1)]

    def update(self, prediction, label):
        error = self.error(prediction, label)
        self.counts += torch.tensor([error.sum().item(), error.numel()], dtype=torch.float64)

    def compute(self):
        return (self.counts[0] / self.counts[1]).item()

class RMSE(MeanAngularError):
    """Root mean squared error in metres; (B, 1, H, W), labels of 0 ignored."""

    def error(self, prediction, label):
        return (prediction.double().clamp(min=0) - label)[label > 0].square()

    def compute(self):
        return math.sqrt(super().compute())

class MaxF:
    """Best F (beta^2 = 0.3) over 19 thresholds in percent; (B, H, W) probability, 255 ignored."""

    def __init__(self):
        self.thresholds = torch.arange(1, 20, dtype=torch.float64) / 20
        self.counts = torch.zeros(2, 20, dtype=torch.int64)  # label, thresholds exceeded

    def update(self, prediction, label):
        valid = label != 255
        exceeded = torch.bucketize(prediction[valid].double(), self.thresholds.to(label.device))
        self.counts += torch.bincount(20 * label[valid] + exceeded, minlength=40).view(2, 20).cpu()

    def compute(self):
        predicted = self.counts.flip(1).cumsum(1).flip(1)[:, 1:].double()  # over each threshold
        true, positives = predicted[1], self.counts[1].sum()
        f = 1.3 * true / (0.3 * positives + predicted.sum(0))  # (1 + b) P R / (b P + R)
        return 100 * f.max().item() if positives else math.nan

class OdsF:
    """Boundary F at the split's best threshold in percent; (B, H, W) probability, 255 ignored."""

    def __init__(self, max_dist):
        self.max_dist = max_dist  # the tolerance, as a share of the image's diagonal
        self.counts = torch.zeros(3, len(odsf.THRESHOLDS), dtype=torch.int64)

    def update(self, prediction, label):
        for p, y in zip(prediction.float().cpu().numpy(), label.cpu().numpy()):
            self.counts += torch.from_numpy(odsf.count_boundaries(p, y, self.max_dist))

    def compute(self):
        matched, found = self.counts[0], self.counts[1:].sum(0).double()  # 1: predicted, 2: true
        return (200 * matched / found.clamp(min=1)).max().item() if found.any() else math.nan

# ---------------------------------------------------------------------------------------- 4. tasks
# A row per task drives all: to add a task is to add a row. The prediction's channels (None: one per
# class name in the data file), the label's value without ground truth, the weight w_T of the loss
# (protocol), loss(prediction, label, weight of positives), meter(channels, Protocol) -> metric
# object; the metric's name, its unit and its sense.
Task = namedtuple("Task", "channels ignored weight loss meter metric unit higher_is_better")
TASKS = {
    "semseg": Task(None, 255, 1, class_loss, lambda k, p: MeanIoU(k), "mIoU", "%", True),
    "parsing": Task(7, 255, 2, class_loss, lambda k, p: MeanIoU(k), "mIoU", "%", True),
    "saliency": Task(1, 255, 5, binary_loss, lambda k, p: MaxF(), "maxF", "%", True),
    "normal": Task(3, 0, 10, normal_loss, lambda k, p: MeanAngularError(), "mErr", "deg", False),
    "depth": Task(1, 0, 1, depth_loss, lambda k, p: RMSE(), "RMSE", "m", False),
    "boundary": Task(1, 255, 50, binary_loss, lambda k, p: OdsF(p.max_dist), "odsF", "%", True)}

# Of a data set: ATRC's for nyud and pascal, choices for toy. boundary_weight is that of boundary
# pixels in their loss (the others weigh 1 minus this); max_dist, the tolerance of boundary matching
# as a share of the image's diagonal; scales, the bounds of the augmentation.
Protocol = namedtuple("Protocol", "tasks backbone iters lr boundary_weight max_dist scales")
PROTOCOLS = {
    "toy": Protocol(("semseg", "parsing", "saliency", "depth", "normal", "boundary"),
                    "hrnet_tiny", 900, 0.08, 0.8, 0.011, scales=(1, 1)),
    "nyud": Protocol(("semseg", "depth", "normal", "boundary"),
                     "hrnet18s", 40_000, 0.01, 0.8, 0.011, scales=(0.5, 2)),
    "pascal": Protocol(("semseg", "parsing", "saliency", "normal", "boundary"),
                       "hrnet18s", 40_000, 0.005, 0.95, 0.0075, scales=(0.5, 2))}

# ----------------------------------------------------------------------------------------- 5. data
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in [0, 1]
PADDING = (124, 116, 104)  # of images: MEAN in 8 bits, 0 after normalisation

class UserError(Exception):
    """Bad use or bad input: its text is the one line that the user sees."""

@contextmanager
def blaming(what, *kinds, before="\0"):
    """Errors of these kinds, from outside, become a UserError: `what`, their text `before` a phrase."""
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        reason = " ".join(str(error).partition(before)[0].split())[:200] or type(error).__name__
        raise UserError(f"{what}: {reason}") from error

class DenseTasks(Dataset):
    """One split of an HDF5 file (README.md) -> {"image": uint8 (3, H, W), task: label as filed}.
    A key is epoch * len(self) + index, and the augmentation a function of (seed, key) alone: the
    same in any number of processes and after a resume. Samples have the file's H x W, padded."""

    def __init__(self, path, split, tasks, augment=False, seed=0):
        self.path, self.split, self.tasks, self.classes = str(path), split, list(tasks), {}
        self.augment, self.seed, self.owner = augment, seed, None
        with blaming(f"{path} is not a data file of data_prep.py", Exception), h5py.File(path) as file:
            self.name, self.length = file.attrs["dataset"], len(file[split]["size"])
            self.shape = file[split]["image"].shape[1:3]  # (H, W)
            for task in self.tasks:  # semseg must have class names, others may
                if f"{task}_classes" in file.attrs or TASKS[task].channels is None:
                    self.classes[task] = list(map(str, file.attrs[f"{task}_classes"]))
            absent = ", ".join(sorted(set(self.tasks) - set(file[split])))
            if absent or not self.length or self.name not in PROTOCOLS:
                raise ValueError(f"{self.name}, {self.length} images in {split}, no {absent or '-'}")

    def __len__(self):
        return self.length

    def __getitem__(self, key):
        index = key % len(self)
        with blaming(f"{self.path} is damaged at {self.split} image {index}, convert the data again",
                     OSError, KeyError, RuntimeError, ValueError):
            if self.owner != os.getpid():  # processes must not share an open HDF5 file
                group, self.owner = h5py.File(self.path)[self.split], os.getpid()
                names = {"image", "size", "semseg", *self.tasks}
                self.arrays = {name: group[name] for name in names & set(group)}
            sample = self.read(index, np.random.default_rng([self.seed, key]))
            for task, names in self.classes.items():
                if (sample[task] + 1).max() > len(names):  # in uint8, where 255 (ignored) + 1 is 0
                    raise ValueError(f"a {task} label is beyond the {len(names)} class names")
            return sample

    def read(self, index, rng):
        """Image and labels; with `augment` under random scale, crop, flip and colours (protocol)."""
        scales = PROTOCOLS[self.name].scales if self.augment else (1, 1)
        scale, flip = rng.uniform(*scales), self.augment and rng.random() < 0.5
        (full_h, full_w), (height, width) = self.shape, map(int, self.arrays["size"][index])
        crop_h, crop_w = min(height, round(full_h / scale)), min(width, round(full_w / scale))
        out_h, out_w = min(round(crop_h * scale), full_h), min(round(crop_w * scale), full_w)
        ruled = self.augment and "semseg" in self.arrays
        semseg = self.arrays["semseg"][index] if ruled else np.zeros((0, 0), int)
        for _ in range(10):  # tries for a crop in which no class has 75 % of the labelled pixels,
            top, left = rng.integers(height - crop_h + 1), rng.integers(width - crop_w + 1)
            window = np.s_[top : top + crop_h, left : left + crop_w]  # whatever tasks are trained
            counts = np.bincount(semseg[window][::4, ::4].ravel(), minlength=256)[:255]
            if counts.max() < 0.75 * counts.sum():
                break
        rows = ((np.arange(out_h) + 0.5) * crop_h // out_h).astype(int)  # the nearest ones
        columns = ((np.arange(out_w) + 0.5) * crop_w // out_w).astype(int)[:: -1 if flip else 1]
        sample = {}
        for task in self.tasks:
            label = self.arrays[task][(index, *window)]
            padded = np.full((full_h, full_w, *label.shape[2:]), TASKS[task].ignored, label.dtype)
            padded[:out_h, :out_w] = label.take(rows, 0).take(columns, 1)
            sample[task] = torch.from_numpy(padded)
        if "normal" in sample and flip:
            sample["normal"][..., 0] *= -1
        if "depth" in sample:
            sample["depth"] /= scale  # as if the camera had come nearer
        if self.augment and "parsing" in sample and not (sample["parsing"] + 1 > 1).any():
            sample["parsing"].fill_(255)  # a crop without any part is ignored; 255 + 1 is 0 here
        image = torch.from_numpy(self.arrays["image"][(index, *window)]).permute(2, 0, 1)
        from torchvision.transforms.v2 import functional
        image = functional.resize(image, [out_h, out_w], antialias=False)  # as ATRC's
        if self.augment:
            image = distort(image.flip(2) if flip else image, rng)
        image = functional.pad(image, [0, 0, full_w - out_w, full_h - out_h], PADDING)
        return {**sample, "image": image}

def distort(image, rng):
    """Photometric distortion of a uint8 (3, H, W) RGB image (protocol, as in mmsegmentation), each
    with probability 1/2: brightness + [-32, 32]; contrast * [0.5, 1.5], before or after the next
    two; saturation * [0.5, 1.5]; hue by -36 to 34 degrees. Choice: the hue turns about the grey
    axis, colours are clipped channel by channel; in HSV it takes longer than all else here."""
    brighten, contrast, contrast_last, saturate, turn = rng.random(5) < 0.5
    factor, pixels = rng.uniform(0.5, 1.5), image.float()
    if brighten:
        pixels = pixels.add_(rng.uniform(-32, 32)).clamp_(0, 255)
    if contrast and not contrast_last:
        pixels = pixels.mul_(factor).clamp_(0, 255)
    if saturate:
        pixels = pixels.amax(0).lerp(pixels, rng.uniform(0.5, 1.5)).clamp_(0, 255)
    if turn:
        angle, axis = math.radians(2 * rng.integers(-18, 18)), torch.full((3, 3), 3**-0.5)
        cross = torch.linalg.cross(axis, torch.eye(3)).T  # cross @ v is the cross product with v
        matrix = torch.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
        pixels = (matrix @ pixels.flatten(1)).view_as(pixels).clamp_(0, 255)
    if contrast and contrast_last:
        pixels = pixels.mul_(factor).clamp_(0, 255)
    return pixels.round_().byte()

def endless_keys(length, seed, start):
    """Keys of one shuffled pass over `length` images, then of the next, from the start-th on."""
    for epoch in itertools.count(start // length):
        generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
        order = torch.randperm(length, generator=generator).tolist()
        yield from (epoch * length + index for index in order[max(start - epoch * length, 0) :])

def to_device(batch, device):
    """A batch of DenseTasks -> normalised image (B, 3, H, W), {task: label}; types widen here:
    long (B, H, W), depth float (B, 1, H, W) in metres, normal float (B, 3, H, W)."""
    batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    from torchvision.transforms.v2 import functional
    image = functional.normalize(batch.pop("image").float() / 255, MEAN, STD)
    for task, label in batch.items():
        if task == "depth":
            batch[task] = label[:, None].nan_to_num(0, 0, 0)
        elif task == "normal":
            batch[task] = label.permute(0, 3, 1, 2).float().nan_to_num(0, 0, 0)
        else:
            batch[task] = label.long()
    return image.contiguous(memory_format=torch.channels_last), batch

# ------------------------------------------------------------------------------------ 6. backbones
def conv_bn(channels_in, channels_out, kernel=3, stride=1, relu=True):
    convolution = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), *[nn.ReLU(inplace=True)] * relu)

def residual(kind, channels_in, channels, count):
    """`count` of torchvision's residual blocks in a row: a BasicBlock or a Bottleneck."""
    from torchvision.models import resnet
    block = getattr(resnet, kind)
    out = channels * block.expansion
    shortcut = conv_bn(channels_in, out, 1, relu=False) if channels_in != out else None
    rest = [block(out, channels) for _ in range(count - 1)]
    return nn.Sequential(block(channels_in, channels, downsample=shortcut), *rest)

class HighResolutionModule(nn.Module):
    """Parallel branches, one per resolution, whose outputs are summed into one another."""

    def __init__(self, channels, blocks):
        super().__init__()
        self.branches = nn.ModuleList(residual("BasicBlock", c, c, blocks) for c in channels)
        self.fuse_layers = nn.ModuleList()
        for i, own in enumerate(channels):
            layers = [self.fuse(other, own, i - j) for j, other in enumerate(channels)]
            self.fuse_layers.append(nn.ModuleList(layers))

    @staticmethod
    def fuse(channels, own, down):
        """To a branch `down` levels coarser: a 3x3 of stride 2 per level; to a finer one a 1x1."""
        if down <= 0:
            return conv_bn(channels, own, 1, relu=False) if down else nn.Identity()
        steps = [conv_bn(channels, channels, stride=2) for _ in range(down - 1)]
        return nn.Sequential(*steps, conv_bn(channels, own, stride=2, relu=False))

    def forward(self, maps):
        maps = [branch(x) for branch, x in zip(self.branches, maps)]
        fused = []
        for own, layers in zip(maps, self.fuse_layers):
            parts = [layer(x) for layer, x in zip(layers, maps)]
            parts = [F.interpolate(part, own.shape[2:]) if part.shape != own.shape else part
                     for part in parts]  # to the nearest pixel, as in timm (choice); may be odd
            fused.append(F.relu_(sum(parts[1:], parts[0])))
        return fused

class HRNet(nn.Module):
    """HRNet (Wang et al., 2020) without its classifier, named as in the official checkpoints."""

    def __init__(self, width, first_blocks, modules, blocks):
        super().__init__()
        self.channels = w = [width, 2 * width, 4 * width, 8 * width]
        self.conv1, self.bn1 = conv_bn(3, 64, stride=2, relu=False)
        self.conv2, self.bn2 = conv_bn(64, 64, stride=2, relu=False)
        self.layer1 = residual("Bottleneck", 64, 64, first_blocks)
        for i, count in enumerate(modules, 1):  # stages 2 to 4: each has one more, coarser branch
            kept = [nn.Identity()] * i if i > 1 else [conv_bn(256, w[0])]
            new = nn.Sequential(conv_bn(w[i - 1] if i > 1 else 256, w[i], stride=2))
            stage = [HighResolutionModule(w[: i + 1], blocks) for _ in range(count)]
            setattr(self, f"transition{i}", nn.ModuleList([*kept, new]))
            setattr(self, f"stage{i + 1}", nn.Sequential(*stage))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):  # (B, 3, H, W) -> 4 maps of `channels` at strides 4, 8, 16, 32
        x = F.relu_(self.bn1(self.conv1(x)))
        maps = [self.layer1(F.relu_(self.bn2(self.conv2(x))))]  # (B, 256, H/4, W/4)
        for transition, stage in ((self.transition1, self.stage2), (self.transition2, self.stage3),
                                  (self.transition3, self.stage4)):
            maps = stage([layer(x) for layer, x in zip(transition, [*maps, maps[-1]])])
        return maps

class ResNet(nn.Module):
    """torchvision's without its classifier; output strides 4 to 32 (choice: not dilated to 8)."""

    def __init__(self, name):
        super().__init__()
        from torchvision.models import get_model
        net = get_model(name)
        self.channels = [net.fc.in_features // k for k in (8, 4, 2, 1)]
        for part, module in [*net.named_children()][:-2]:  # all but avgpool and fc
            self.add_module(part, module)

    def forward(self, x):  # like HRNet
        maps = [self.maxpool(self.relu(self.bn1(self.conv1(x))))]
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps.append(layer(maps[-1]))
        return maps[1:]

BACKBONES = {  # HRNet: width, blocks of stage 1, modules of stages 2 to 4, blocks per branch
    "hrnet_tiny": lambda: HRNet(12, 1, (1, 1, 1), 1),  # for minutes on a CPU (choice)
    "hrnet18s": lambda: HRNet(18, 2, (1, 3, 2), 2),  # HRNet-W18-Small-v2
    "hrnet18": lambda: HRNet(18, 4, (1, 4, 3), 4),
    "hrnet32": lambda: HRNet(32, 4, (1, 4, 3), 4),
    "hrnet48": lambda: HRNet(48, 4, (1, 4, 3), 4),
    "resnet18": lambda: ResNet("resnet18"),
    "resnet50": lambda: ResNet("resnet50")}

def build_backbone(name):
    """With random weights: .channels, 4 ints; (B, 3, H, W) -> 4 maps at strides 4, 8, 16, 32."""
    if name not in BACKBONES:
        raise UserError(f"no backbone {name!r}; there are {', '.join(BACKBONES)}")
    return BACKBONES[name]()

def load_pretrained(backbone, name, source):
    """Fill a backbone from "imagenet" (torchvision's ResNet) or a file, where the weights may lie
    under "state_dict" or "model" and behind a prefix -> the prefix that fills most."""
    if source != "imagenet":
        state = load_weights(source)
        for key in ("state_dict", "model"):
            state = state[key] if isinstance(state.get(key), dict) else state
    elif name.startswith("resnet"):
        from torchvision.models import get_model_weights
        weights = get_model_weights(name).IMAGENET1K_V1
        with blaming(f"download {weights.url} to {torch.hub.get_dir()}/checkpoints/", OSError):
            state = weights.get_state_dict(check_hash=True)
    else:
        raise UserError("--pretrained imagenet is for ResNet; README.md tells how to get HRNet's")
    own = {key: value.shape for key, value in backbone.state_dict().items() if value.ndim}
    lacking = {}  # prefix -> arrays that it does not fill
    for first in sorted({"conv1.weight", *(k for k in map(str, state) if k.endswith("conv1.weight"))}):
        prefix = first.removesuffix("conv1.weight")
        lacking[prefix] = [k for k in own if getattr(state.get(prefix + k), "shape", 0) != own[k]]
    prefix = min(lacking, key=lambda prefix: len(lacking[prefix]))
    if lacking[prefix]:
        raise UserError(f"{source} does not fill {len(lacking[prefix])} of {len(own)} arrays of "
                        f"{name}, as {lacking[prefix][0]}")
    backbone.load_state_dict({key: state[prefix + key] for key in own}, strict=False)
    return prefix

# ---------------------------------------------------------------------------------------- 7. model
class MultiTaskNet(nn.Module):
    """A shared encoder, and per task a 3x3 conv-BN-ReLU and a 1x1 prediction (protocol).
    tasks: task -> prediction channels. The encoder's four maps are resized to stride 4 and
    concatenated; a ResNet's, far wider, are first brought to 128 channels each (choice). The 3x3
    leaves a quarter of the channels: F_T, which the regulariser sees."""

    def __init__(self, tasks, backbone="hrnet18s"):
        super().__init__()
        self.backbone = build_backbone(backbone)
        widths, wide = self.backbone.channels, isinstance(self.backbone, ResNet)
        self.laterals = nn.ModuleList(conv_bn(w, 128, 1) if wide else nn.Identity() for w in widths)
        total = 4 * 128 if wide else sum(widths)
        self.channels = total // 4  # C
        self.heads = nn.ModuleDict({task: conv_bn(total, self.channels) for task in tasks})
        self.predictors = nn.ModuleDict({t: nn.Conv2d(self.channels, k, 1) for t, k in tasks.items()})
        for predictor in self.predictors.values():
            nn.init.normal_(predictor.weight, std=0.01)
            nn.init.zeros_(predictor.bias)

    def features(self, x):  # (B, 3, H, W) -> task -> F_T (B, C, H/4, W/4), rounded up
        maps = [lateral(m) for lateral, m in zip(self.laterals, self.backbone(x))]
        size = maps[0].shape[2:]
        shared = torch.cat([F.interpolate(m, size, mode="bilinear") for m in maps], 1)
        return {task: head(shared) for task, head in self.heads.items()}

    def predict(self, features, size):  # features() -> task -> (B, K, *size)
        return {task: F.interpolate(self.predictors[task](feature), size, mode="bilinear")
                for task, feature in features.items()}

    def forward(self, x):  # (B, 3, H, W) -> task -> (B, K, H, W)
        return self.predict(self.features(x), x.shape[2:])

def postprocess(task, prediction):
    """(B, K, H, W) of the network -> depth (B, 1, H, W), unit normals (B, 3, H, W), probability or
    class labels (B, H, W)."""
    if task in ("depth", "normal"):
        return prediction.clamp(min=0) if task == "depth" else F.normalize(prediction, dim=1)
    return prediction.sigmoid().squeeze(1) if TASKS[task].channels == 1 else prediction.argmax(1)

class Objective(nn.Module):
    """Network, losses and regulariser in one forward pass, as DistributedDataParallel needs."""

    def __init__(self, net, contrast, boundary_weight):
        super().__init__()
        self.net, self.contrast, self.positive_weight = net, contrast, {"boundary": boundary_weight}

    def forward(self, images, labels):
        """(B, 3, H, W), labels of a batch -> {task: unweighted loss, "contrast": regulariser}."""
        features, contrast = self.net.features(images), {}
        if self.contrast is not None:  # first: backward() then reaches it when memory is free again
            contrast = {"contrast": self.contrast(features, labels)}
        predictions = self.net.predict(features, images.shape[2:])
        losses = {task: TASKS[task].loss(p.float(), labels[task], self.positive_weight.get(task))
                  for task, p in predictions.items()}
        return losses | contrast

# ----------------------------------------------------------------------------------- 8. evaluation
def rank_and_world():
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

@torch.inference_mode()
def evaluate(net, dataset, device, workers=0, amp=False):
    """All metrics over a split, one forward pass per image at the file's resolution, so that no
    figure depends on a batch size or on the processes -> what metrics.json holds, and some images
    with labels and predictions for pictures.preview()."""
    (rank, world), protocol, metrics, samples = rank_and_world(), PROTOCOLS[dataset.name], {}, []
    meters = {task: TASKS[task].meter(net.predictors[task].out_channels, protocol) for task in dataset.tasks}
    images = range(rank, len(dataset), world)  # of this process
    loader = DataLoader(dataset, sampler=images, num_workers=workers, worker_init_fn=own_group)
    net.eval()
    for index, batch in zip(images, loader):
        image, labels = to_device(batch, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            predictions = net(image)
        for task, meter in meters.items():
            check_finite(task, predictions[task], f"{dataset.split} image {index}")
            predictions[task] = postprocess(task, predictions[task].float())
            meter.update(predictions[task], labels[task])
        if index in (images[0], images[len(images) // 2], images[-1]):
            picture = batch["image"][0].permute(1, 2, 0).numpy()
            truth = {task: batch[task][0].numpy() for task in meters}
            guess = {task: pictures.as_label(predictions[task][0].cpu().numpy()) for task in meters}
            samples.append((f"{dataset.split} {index}", picture, truth, guess))
        if rank == 0 and (index % 100 == 0 or index == images[-1]):
            print(f"evaluation {index + 1}/{len(dataset)} images", flush=True)
    for task, meter in meters.items():
        if world > 1:
            dist.all_reduce(meter.counts)
        value = meter.compute()
        metrics[task] = {TASKS[task].metric: None if math.isnan(value) else value}  # nan: no label
    return metrics, samples

def check_finite(task, prediction, picture):
    """Neither a figure nor a picture may be made of nan or infinity."""
    if not prediction.isfinite().all():
        raise UserError(f"the {task} prediction of {picture} is not finite: the weights are ruined")

def report(net, config, out, device, workers):
    """Evaluate on the val split -> preview.png, config.json, metrics.json and the closing table."""
    dataset = DenseTasks(config["data"], "val", config["tasks"])
    metrics, samples = evaluate(net, dataset, device, workers, config["amp"])
    if rank_and_world()[0]:
        return
    with replacing(out / "preview.png") as part:
        pictures.preview(samples, dataset.classes).save(part, "PNG")
    for name, content in (("config.json", config), ("metrics.json", metrics)):
        with replacing(out / name) as part:
            part.write_text(json.dumps(content, indent=1))
    print(f"\nval split of {config['data']}, {len(dataset)} images:")
    for task, figures in metrics.items():
        [(name, value)], row = figures.items(), TASKS[task]
        value = "-" if value is None else f"{value:.{4 if row.unit == 'm' else 2}f}"
        better = ("lower", "higher")[row.higher_is_better]
        print(f"  {task:9}{name:5}{value:>7} {row.unit:4}{better} is better")
    print(f"in {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")

# ------------------------------------------------------------------------------------- 9. training
@contextmanager
def replacing(path):
    """A temporary name to write to, then renamed: the file is always the old or the new one."""
    part = Path(f"{path}.part")
    with blaming(f"{path} cannot be written", OSError, RuntimeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

def load_weights(path, *keys):
    """A file of torch.save -> its dictionary, which must have `keys`; no code in it is run."""
    with blaming(f"{path} cannot be loaded as weights", Exception, before="Weights only"):  # not torch's advice
        if zipfile.is_zipfile(path) and (damaged := zipfile.ZipFile(path).testzip()):
            raise ValueError(f"it is damaged, {damaged} has a wrong checksum")  # torch.load skips it
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or not set(keys) <= content.keys():
            raise ValueError(f"it has no {' and '.join(keys) or 'weights'}")
        return content

def set_up(args, config, device, contrast=CrossTaskContrast):
    """Everything that a run begins with -> Objective, optimiser, schedule."""
    torch.manual_seed(args.seed)
    net = MultiTaskNet(config["channels"], args.backbone)  # first, so that both arms start alike
    if args.pretrained != "none":
        prefix = load_pretrained(net.backbone, args.backbone, args.pretrained)
        print(f"{args.backbone} starts from {prefix}* of {args.pretrained}", flush=True)
    regulariser = contrast(config["tasks"], net.channels) if args.contrast else None
    objective = Objective(net, regulariser, PROTOCOLS[config["dataset"]].boundary_weight)
    objective = objective.to(device, memory_format=torch.channels_last)
    if device.type == "cuda" and dist.is_initialized():
        objective = nn.SyncBatchNorm.convert_sync_batchnorm(objective)
    optimiser = torch.optim.SGD(objective.parameters(), args.lr, momentum=0.9, weight_decay=5e-4)
    return objective, optimiser, torch.optim.lr_scheduler.PolynomialLR(optimiser, args.iters, 0.9)

def save(out, config, log, parts):
    """log.csv, and last.pt: enough, as every random draw follows from the seed and the iteration."""
    state = {"config": config, "iteration": log[-1]["iteration"], "log": log}
    with replacing(out / "last.pt") as file:
        torch.save(state | {name: part.state_dict() for name, part in parts.items()}, file)
    with replacing(out / "log.csv") as part, part.open("w", newline="") as file:
        csv.writer(file).writerows([log[-1].keys(), *(row.values() for row in log)])

def resume(out, config, parts):
    """Load out/last.pt into everything that trains -> its iteration, the rows of log.csv."""
    saved = load_weights(out / "last.pt", "config", "iteration", *parts)
    differ = [f"{key} {saved['config'].get(key)}, not {value}" for key, value in config.items()
              if saved["config"].get(key) != value]
    if differ:
        raise UserError(f"{out / 'last.pt'} is of another run: {'; '.join(differ)}")
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return saved["iteration"], saved.get("log", [])

@contextmanager
def alone_in(folder):
    """Make a folder and keep other runs out of it until this one ends, however it ends."""
    with ExitStack() as stack:
        with blaming(f"--out {folder} cannot be used, or another run is at work in it", OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.name == "posix" and rank_and_world()[0] == 0:
                import fcntl
                handle = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, handle)
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield

@contextmanager
def signals_noted():  # within it Ctrl-C and SIGTERM only fill the list that it yields
    received = []
    with ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, lambda n, _: received.append(n)))
        yield received

def own_group(_):  # in a loader's process: signals to the run, and words, are the main process's
    getattr(os, "setpgrp", int)()  # not on Windows
    sys.excepthook = lambda *_: None  # of the thread that hands over batches, when main has gone

def in_any_process(flag):  # whether the flag is set in any process, so that all of them do the same
    if dist.is_initialized():
        flag = torch.tensor(float(bool(flag)))  # on the CPU: nobody waits for a GPU
        dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)

@torch.inference_mode()
def is_sound(objective, images):
    """Are weights and predictions finite? The losses do not tell: the last step came after them."""
    objective.eval()
    tensors = [*objective.parameters(), *objective.net(images).values()]
    objective.train()
    return all(tensor.isfinite().all() for tensor in tensors)

def training_batches(args, config, device, start):  # from an iteration on, this process's share
    dataset = DenseTasks(config["data"], "train", config["tasks"], augment=True, seed=args.seed)
    keys, (rank, world) = endless_keys(len(dataset), args.seed, start * args.batch_size), rank_and_world()
    return DataLoader(dataset, args.batch_size // world, num_workers=args.workers,
                      sampler=itertools.islice(keys, rank, None, world), worker_init_fn=own_group,
                      pin_memory=device.type == "cuda")

def train(args, config, device, contrast=CrossTaskContrast):
    """The main loop; leaves last.pt and log.csv in the run folder -> the trained network."""
    (rank, world), out, start, log = rank_and_world(), Path(args.out), 0, []
    objective, optimiser, schedule = set_up(args, config, device, contrast)
    parts = {"model": objective.net, "contrast": objective.contrast or nn.ModuleDict(),
             "optimiser": optimiser, "schedule": schedule}
    if args.resume and (out / "last.pt").exists():
        start, log = resume(out, config, parts)
    elif rank == 0:  # an older run's would pass for this one's
        for name in ("log.csv", "metrics.json", "preview.png"):
            (out / name).unlink(missing_ok=True)
        with replacing(out / "config.json") as part:
            part.write_text(json.dumps(config, indent=1))
    if args.compile:
        objective.net.features = torch.compile(objective.net.features)
    parallel = objective if world == 1 else nn.parallel.DistributedDataParallel(
        objective, find_unused_parameters=bool(args.contrast))  # projectors that are not drawn
    weights = {task: TASKS[task].weight for task in config["tasks"]} | {"contrast": args.contrast}
    pending, begun, spoken = [], time.monotonic(), 0
    batches = training_batches(args, config, device, start)
    with signals_noted() as signals:
        for iteration, batch in zip(range(start + 1, args.iters + 1), batches):
            torch.manual_seed(args.seed * 2**32 + iteration)  # the regulariser's draws
            images, labels = to_device(batch, device)
            with torch.autocast(device.type, torch.bfloat16, enabled=args.amp):
                losses = parallel(images, labels)
            optimiser.zero_grad()
            sum(weights[name] * loss for name, loss in losses.items()).backward()
            optimiser.step()
            rate = schedule.get_last_lr()[0]
            schedule.step()
            if objective.contrast:
                losses["share_of_chance"] = objective.contrast.share_of_chance
            pending.append(torch.stack([loss.detach().float() for loss in losses.values()]))
            stopping = in_any_process(signals)
            last = stopping or iteration == args.iters
            saving = last or iteration % min(max(args.iters // 20, 1), 1000) == 0
            if not saving and iteration % 10:
                continue
            means, pending = torch.stack(pending).mean(0).tolist(), []  # here a GPU is waited for
            ruined = [name for name, mean in zip(losses, means) if not math.isfinite(mean)]
            if in_any_process(ruined or saving and not is_sound(objective, images)):
                raise UserError(f"{' '.join(ruined[:3]) or 'the network'} not finite at iteration "
                                f"{iteration}; begin again with a smaller --lr")
            now, seconds = time.monotonic(), (time.monotonic() - begun) / (iteration - start)
            row = {**dict(zip(losses, means)), "lr": rate, "images_per_s": args.batch_size / seconds}
            row = {name: f"{value:.4g}" for name, value in row.items()}
            log.append({"iteration": iteration, **row})
            if rank == 0 and (now > spoken + 5 or last):
                spoken, left = now, int(seconds * (args.iters - iteration))
                print(f"{iteration}/{args.iters}  " + "  ".join(map(" ".join, row.items()))
                      + f"  {left // 60}:{left % 60:02} left", flush=True)
            if rank == 0 and saving:
                save(out, config, log, parts)
            if stopping:
                raise UserError(f"stopped; --resume goes on from iteration {iteration} of {out}")
    return objective.net

# -------------------------------------------------------------------------------- 10. command line
class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message}; see --help")

def build_parser():  # the command line of mtcd.py; what only a protocol can fill in stays None
    parser, cuda = Parser(description=__doc__.split("\n\n")[0]), torch.cuda.is_available()
    add = parser.add_argument
    add("--dataset", choices=PROTOCOLS, default="toy", help="sets the protocol (default: toy)")
    add("--data", metavar="FILE", help="of data_prep.py (default: data/DATASET.h5)")
    add("--tasks", nargs="+", choices=TASKS, metavar="T", help="some of its tasks (default: all)")
    add("--backbone", choices=BACKBONES, help="shared encoder (default: the protocol's)")
    add("--pretrained", metavar="FILE|imagenet|none", default="none", help="weights of the encoder")
    add("--contrast", type=float, metavar="LAMBDA", help="0: without (default: 2; 0.5 below 100 passes)")
    add("--iters", type=int, metavar="N", help="iterations (default: the protocol's)")
    add("--batch-size", type=int, metavar="B", default=8, help="over all processes (default: 8)")
    add("--lr", type=float, help="learning rate at the start (default: the protocol's)")
    add("--workers", type=int, metavar="N", default=4 if cuda else 0, help="loaders (4; 0 without GPU)")
    add("--seed", type=int, metavar="S", default=0, help="of all random numbers (default: 0)")
    add("--device", default="cuda" if cuda else "cpu", help="cpu, cuda, cuda:1 ...")
    add("--amp", action="store_true", help="bfloat16 where it is safe; not in the regulariser")
    add("--compile", action="store_true", help="compile the network with torch.compile")
    add("--out", metavar="DIR", help="results, replacing older ones (default: runs/DATASET-ENCODER-...)")
    add("--resume", action="store_true", help="go on from DIR/last.pt as if never stopped")
    add("--eval", action="store_true", help="evaluate --checkpoint on the val split, do not train")
    add("--checkpoint", metavar="FILE", help="last.pt of a run, for --eval")
    return parser

def usual_lambda(passes):  # choice: it gains most where little data is seen often
    return 2.0 if passes >= 100 else 0.5

def run_config(args):
    """Check the arguments and fill them in from the protocol -> all that describes the run."""
    protocol, world = PROTOCOLS[args.dataset], rank_and_world()[1]
    for name in ("backbone", "iters", "lr", "tasks"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(protocol, name))
    least = {"contrast": 0, "iters": 1, "batch_size": 1, "lr": 0, "workers": 0, "seed": 0}
    for name, low in least.items():
        if not low <= (getattr(args, name) or 0) < (limit := 2**31 if name == "seed" else math.inf):
            raise UserError(f"--{name.replace('_', '-')} must be at least {low} and below {limit}")
    tasks = [task for task in protocol.tasks if task in args.tasks]
    if set(args.tasks) - set(tasks):
        raise UserError(f"{args.dataset} has labels of {' '.join(protocol.tasks)} alone")
    if args.batch_size % world:
        raise UserError(f"--batch-size {args.batch_size} does not divide among {world} processes")
    path = find_data(args.dataset, args.data, make=True)
    dataset = DenseTasks(path, "val", tasks)
    if dataset.name != args.dataset:
        raise UserError(f"{path} holds {dataset.name}, not {args.dataset}")
    if args.contrast is None:
        images = len(DenseTasks(path, "train", tasks))
        args.contrast = usual_lambda(args.iters * args.batch_size / images)
    if max(dataset.shape) <= 32 and args.batch_size == world:
        raise UserError("--batch-size 1 is too small to normalise 32 x 32 images; take 2")
    subset = "-".join(["", *tasks]) if len(tasks) < len(protocol.tasks) else ""
    run = f"{args.dataset}-{args.backbone}{subset}-contrast{args.contrast:g}-seed{args.seed}"
    args.out = args.out or f"runs/{run}"
    kept = ("backbone", "pretrained", "contrast", "iters", "batch_size", "lr", "seed", "amp")
    return {"dataset": args.dataset, "data": str(path), "tasks": tasks, "classes": dataset.classes,
            "channels": {task: TASKS[task].channels or len(dataset.classes[task]) for task in tasks},
            "size": list(map(int, dataset.shape)), **{name: getattr(args, name) for name in kept}}

def find_data(name, path, make=False):
    """The data file of a data set; `make` a missing toy file on the spot."""
    path = Path(path or f"data/{name}.h5")
    if make and name == "toy" and not path.exists() and rank_and_world()[0] == 0:
        import data_prep
        print(f"{path} is not there: rendering it", flush=True)
        with blaming(f"{path} cannot be made", data_prep.PrepError, OSError):
            data_prep.make_toy(path)
    in_any_process(False)  # the others wait for the first
    if not path.exists():
        raise UserError(f"{path} is not there; make it: python data_prep.py {name} --out {path}")
    return path

def run_training(args, device, contrast=CrossTaskContrast):  # train, evaluate, report
    config, out = run_config(args), Path(args.out)
    with alone_in(out), blaming("a worker or the device failed, --resume goes on", RuntimeError, OSError, EOFError):
        if rank_and_world()[0] == 0:
            print(f"{out}: {' '.join(config['tasks'])}; {args.backbone}; lambda {args.contrast:g}; "
                  f"{args.iters} iterations of {args.batch_size} on {device}", flush=True)
        net = train(args, config, device, contrast)
        report(net, config, out, device, args.workers)

def load_network(path, device):
    """last.pt of a run -> its network, its config, the regulariser's state ({} without)."""
    checkpoint = load_weights(path, "config", "model", "contrast", "iteration")
    config = checkpoint["config"]
    with blaming(f"{path} is not last.pt of a run of mtcd.py", Exception):
        net = MultiTaskNet(config["channels"], config["backbone"])
        net.load_state_dict(checkpoint["model"])
        if checkpoint["iteration"] < config["iters"]:
            config["iteration"] = checkpoint["iteration"]  # of an unfinished run
    return net.to(device, memory_format=torch.channels_last), config, checkpoint["contrast"]

def run_evaluation(args, device):
    """Figures of a checkpoint; other than of the finished run's own data in a folder of their own."""
    allowed = ("eval", "checkpoint", "dataset", "data", "out", "device", "workers")
    for name, default in vars(build_parser().parse_args([])).items():
        if name not in allowed and getattr(args, name) != default:
            raise UserError(f"--{name.replace('_', '-')} has no effect with --eval")
    if not args.checkpoint:
        raise UserError("--eval needs --checkpoint FILE, last.pt of a run")
    net, config, _ = load_network(args.checkpoint, device)
    path = find_data(config["dataset"], args.data or config["data"])
    dataset = DenseTasks(path, "val", config["tasks"])
    if (dataset.name, dataset.classes) != (config["dataset"], config["classes"]):
        raise UserError(f"{path} ({dataset.name}) has other classes than the network")
    home = out = Path(args.checkpoint).parent
    if str(path) != config["data"] or "iteration" in config:
        out = home / f"eval-{path.stem}-{config.get('iteration', config['iters'])}"
    out, config["data"] = Path(args.out or out), str(path)
    if (out / "last.pt").exists() and out.resolve() != home.resolve():
        raise UserError(f"{out} holds another run; choose another --out")
    report(net, config, out, device, args.workers)

def start_device(name):
    """The device by its name; under torchrun this process's own, with the processes connected."""
    distributed = "LOCAL_RANK" in os.environ
    if distributed and name.startswith("cuda"):
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    with blaming(f"--device {name} cannot be used", RuntimeError, AssertionError):
        device = torch.zeros(1, device=name).device
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
        getattr(stream, "reconfigure", dict)(errors="backslashreplace")  # names beyond its encoding
    try:
        job()
        return 0
    except (UserError, KeyboardInterrupt) as error:
        text = str(error).split("UserError: ")[-1]  # a loader's process puts a traceback before it
        print(f"{program}: {text.strip() or 'interrupted'}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 130
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()

def main(argv=None):
    def job():
        args = build_parser().parse_args(argv)
        (run_evaluation if args.eval else run_training)(args, start_device(args.device))
    return exit_status("mtcd.py", job)

if __name__ == "__main__":
    sys.exit(main())
