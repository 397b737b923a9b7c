# SPDX-License-Identifier: MIT
"""The regulariser's other forms: each is CrossTaskContrast but for one choice. Those "of 384" look
at all pairs of 384 samples, so what compares with them is "samples 384", not "ours".

FORMS holds them by name; extras/study.py measures them.
"""
import functools
import itertools
import math

import torch
import torch.nn.functional as F
from torch import nn

from mtcd import CrossTaskContrast


class FixedSources(CrossTaskContrast):
    """Every pair of `pairs` in every call: the mean over the sources, summed over the targets."""

    def forward(self, features, labels):
        losses = [self.pair_loss(target, source, features[target], labels[source])
                  for target, source in self.pairs]
        loss = len(self.tasks) * sum(losses) / len(losses)
        self.share_of_chance = loss.detach() / (self.margin * len(self.tasks))
        return loss


class AllSources(FixedSources):
    """Every other task is a source in every iteration."""

    def __init__(self, tasks, channels):
        super().__init__(tasks, channels)
        self.pairs = list(itertools.permutations(tasks, 2))


class OwnLabels(FixedSources):
    """A task's own labels are its source: the control that the paper excludes."""

    def __init__(self, tasks, channels):
        super().__init__(tasks, channels)
        self.pairs = [(task, task) for task in tasks]
        spare = iter(self.projectors.values())
        self.projectors = nn.ModuleDict({f"{task}_from_{task}": next(spare) for task in tasks})


class NoBoundarySource(CrossTaskContrast):
    """Boundary labels are no source: they say little of the other tasks' features."""

    def forward(self, features, labels):
        return super().forward(features, {t: y for t, y in labels.items() if t != "boundary"})


class PerImage(CrossTaskContrast):
    """Pairs within an image only; as many pixels in all, with 8 images."""

    def pair_loss(self, target, source, feature, label):
        pair_loss = super().pair_loss
        return sum(pair_loss(target, source, f[None], y[None])
                   for f, y in zip(feature, label)) / len(feature)


class LinearProjector(CrossTaskContrast):
    """A matrix in place of two with a ReLU between."""

    def __init__(self, tasks, channels):
        super().__init__(tasks, channels)
        for pair in self.projectors:
            self.projectors[pair] = nn.Sequential(nn.Linear(channels, 64))


class NoProjector(CrossTaskContrast):
    """Distances between the features themselves, scaled to unit length."""

    def __init__(self, tasks, channels):
        super().__init__(tasks, channels)
        for pair in self.projectors:
            identity = nn.Linear(channels, channels, bias=False).requires_grad_(False)
            nn.init.eye_(identity.weight)
            self.projectors[pair] = nn.Sequential(identity)


class NearestOf(CrossTaskContrast):
    """The nearest of the first `among` negatives; ours takes the first."""

    def __init__(self, tasks, channels, among):
        super().__init__(tasks, channels)
        self.among = among

    def triplet_loss(self, points, label, valid, criterion):
        n, own = len(label), torch.arange(len(label), device=label.device)
        other = torch.randint(max(n, 1), (n, self.candidates), device=label.device)
        usable = valid[:, None] & valid[other] & (other != own[:, None])
        gap = criterion.distance(label[:, None], label[other])  # (n, candidates)
        positive = usable & (gap <= criterion.positive)
        negative = usable & (gap >= criterion.negative)
        negative = negative & (negative.cumsum(1) <= self.among)
        cosine = (points[:, None] * points[other]).sum(-1)
        nearest = cosine.detach().masked_fill(~negative, -9).argmax(1)
        first = positive.float().argmax(1)
        loss = F.triplet_margin_loss(points, points[other[own, first]], points[other[own, nearest]],
                                     self.margin, reduction="none")
        found = positive.any(1) & negative.any(1)
        return (loss * found).sum() / found.sum().clamp(min=1)


class AllPairs(CrossTaskContrast):
    """Every pixel meets all others, of which there are fewer: 384. anchor_loss: cosines, positive
    and negative pairs (n, n) -> losses (n,), the negatives that were looked at (n, n)."""

    def __init__(self, tasks, channels):
        super().__init__(tasks, channels, samples=384)

    def triplet_loss(self, points, label, valid, criterion):
        other = ~torch.eye(len(points), dtype=torch.bool, device=points.device)
        usable = other & valid & valid[:, None]
        gap = criterion.distance(label[:, None], label)  # (n, n)
        positive = usable & (gap <= criterion.positive)
        negative = usable & (gap >= criterion.negative)
        loss, negative = self.anchor_loss(points @ points.T, positive, negative)
        anchor = positive.any(1) & negative.any(1)
        return loss[anchor].sum() / anchor.sum().clamp(min=1)


class Hardest(AllPairs):
    """A random positive, the nearest of all negatives."""

    beyond_positive = False

    def anchor_loss(self, cosine, positive, negative):
        distance = (2 - 2 * cosine).clamp(min=1e-12).sqrt()  # of unit vectors
        chosen = (positive * torch.rand_like(distance)).argmax(1, keepdim=True)
        near = distance.gather(1, chosen)  # (n, 1)
        if self.beyond_positive:
            negative = negative & (distance > near)
        far = distance.masked_fill(~negative, math.inf).min(1, keepdim=True).values
        return (near - far + self.margin).clamp(min=0)[:, 0], negative


class SemiHard(Hardest):
    """A random positive, the nearest negative beyond it. One always lies just there, so the loss
    falls slowly: in short trainings it stays close to the margin."""

    beyond_positive = True


class InfoNCE(AllPairs):
    """-log of a positive's share against all negatives of its anchor, temperature 0.1, the mean
    over an anchor's positives."""

    def anchor_loss(self, cosine, positive, negative):
        similarity = cosine / 0.1
        against = similarity.masked_fill(~negative, -1e9).logsumexp(1, keepdim=True)
        losses = F.softplus(against - similarity) * positive  # (n, n)
        return losses.sum(1) / positive.sum(1).clamp(min=1), negative


ours = functools.partial(functools.partial, CrossTaskContrast)  # ours with another choice
FORMS = {
    "ours": CrossTaskContrast, "own labels": OwnLabels,
    "hardest negatives of 384": Hardest, "semi-hard negatives of 384": SemiHard,
    "InfoNCE of 384": InfoNCE,
    "nearest of 4 negatives": functools.partial(NearestOf, among=4),
    "nearest of 16 negatives": functools.partial(NearestOf, among=16),
    "margin 0.1": ours(margin=0.1), "margin 0.3": ours(margin=0.3), "margin 2": ours(margin=2.0),
    "samples 128": ours(samples=128), "samples 384": ours(samples=384),
    "samples 4096": ours(samples=4096),
    "all sources": AllSources, "no boundary source": NoBoundarySource,
    "pairs within an image": functools.partial(PerImage, samples=128),
    "linear projector": LinearProjector, "no projector": NoProjector,
}
