# SPDX-License-Identifier: MIT
"""Other forms of the regulariser: each is CrossTaskContrast but for one choice.

FORMS holds by name what extras/study.py measures on rooms; extras/photos.py has a list of its own.
All of FORMS but "samples 128", the default that the study led to, draw 1,024 samples or what their
name says. Forms "of 384" look at all pairs of 384 samples, so they are to be compared with "samples
384".
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from mtcd import CrossTaskContrast


class Ours(CrossTaskContrast):
    """The regulariser as the study measured it first: with 1,024 samples."""

    def __init__(self, tasks, channels, samples=1024, **choices):
        super().__init__(tasks, channels, samples=samples, **choices)


# ------------------------------------------------------------------------- which source, which pixels
class AllSources(Ours):
    """Every other task is a source in every iteration: the mean over the sources."""

    def draw_sources(self, features, labels):
        return [(t, s) for t, s in self.task_pairs() if t in features and s in labels]

    def forward(self, features, labels):
        return super().forward(features, labels) / (len(self.tasks) - 1)


class OwnLabels(Ours):
    """A task's own labels are its source: the control that the paper excludes."""

    def task_pairs(self):
        return [(task, task) for task in self.targets]


class NoBoundarySource(Ours):
    """Boundary labels are no source: they say little about the other tasks' features."""

    def draw_sources(self, features, labels):
        sources = {task: label for task, label in labels.items() if task != "boundary"}
        return super().draw_sources(features, sources)


class PerImage(Ours):
    """Pairs within an image only; 128 samples per image, 1,024 per batch of 8."""

    def __init__(self, tasks, channels, **choices):
        super().__init__(tasks, channels, samples=128, **choices)

    def pair_loss(self, target, source, feature, label):
        losses = []
        for i in range(len(feature)):
            one = slice(i, i + 1)
            losses.append(super().pair_loss(target, source, feature[one], label[one]))
        return sum(losses) / len(losses)


# ------------------------------------------------------------------------------------------ strength
class FadingOut(CrossTaskContrast):
    """Its strength falls linearly to 0 within the first `until` calls; the tasks have the rest."""

    def __init__(self, tasks, channels, until, **choices):
        super().__init__(tasks, channels, **choices)
        self.until = until
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))  # so a resumed run goes on

    def forward(self, features, labels):
        self.calls += 1
        strength = (1 - self.calls / self.until).clamp(min=0)
        return super().forward(features, labels) * strength


class ChangedGradient(CrossTaskContrast):
    """Its gradient at a feature map F_T is changed, by rule of the task's own gradient there.

    Both are of the whole batch. Subclasses have the rule. The gradients of the projectors stay as
    they are. A call is for one backward pass.
    """

    def change(self, gradient, of_task):
        """Two gradients, (B, C, h, w) each -> that of the regulariser, changed."""
        raise NotImplementedError

    def forward(self, features, labels):
        watched = {}
        for task, feature in features.items():
            watched[task] = self.watch(feature) if feature.requires_grad else feature
        return super().forward(watched, labels)

    def watch(self, feature):
        """A view of the feature for the regulariser. What arrives by it is told from the rest."""
        view = feature.view_as(feature)
        arrived = []  # backward reaches the view first, and leaves the regulariser's gradient here
        view.register_hook(arrived.append)

        def replace(total):
            if not arrived:  # the regulariser had no triplet of this task
                return total
            of_regulariser = arrived.pop()
            of_task = total - of_regulariser
            return of_task + self.change(of_regulariser, of_task)

        feature.register_hook(replace)
        return view


class GradientShare(ChangedGradient):
    """Its gradient has `share` of the length of the task's own, at any lambda above 0."""

    def __init__(self, tasks, channels, share, **choices):
        super().__init__(tasks, channels, **choices)
        self.share = share

    def change(self, gradient, of_task):
        length = gradient.norm().clamp(min=1e-12)  # 0 if every triplet is as the loss wants it
        return gradient * (self.share * of_task.norm() / length)


class Unopposed(ChangedGradient):
    """Its gradient loses what points against the task's own."""

    def change(self, gradient, of_task):
        along = (gradient * of_task).sum().clamp(max=0)  # below 0 where it opposes the task
        squared = of_task.square().sum().clamp(min=torch.finfo(gradient.dtype).tiny)
        return gradient - of_task * (along / squared)


# ----------------------------------------------------------------------------------------- projectors
class LinearProjector(Ours):
    """One matrix in place of two with a ReLU between."""

    def build_projector(self, channels, dim):
        return nn.Linear(channels, dim)


class NoProjector(Ours):
    """Distances between the features themselves, scaled to unit length."""

    def build_projector(self, channels, dim):
        return nn.Identity()


# -------------------------------------------------------------------------------------------- mining
def only_largest(values, mask):
    """(n, k) -> mask with, per row, the one True of the largest value; rows without stay without."""
    largest = values.masked_fill(~mask, -torch.inf).argmax(1, keepdim=True)
    return torch.zeros_like(mask).scatter(1, largest, True) & mask


class NearestOf(Ours):
    """The nearest of the first `among` negatives; ours takes the first."""

    def __init__(self, tasks, channels, among):
        super().__init__(tasks, channels)
        self.among = among

    def candidate_pairs(self, points, label, criterion):
        other, positive, negative = super().candidate_pairs(points, label, criterion)
        negative = negative & (negative.cumsum(1) <= self.among)
        cosine = (points[:, None] * points[other]).sum(-1)  # (n, k), large where near
        return other, positive, only_largest(cosine, negative)


class AllPairs(Ours):
    """Every pixel looks at all others, of which there are fewer: 384."""

    def __init__(self, tasks, channels):
        super().__init__(tasks, channels, samples=384)

    def draw_candidates(self, n, device):
        return torch.arange(n, device=device).expand(n, n)


class Hardest(AllPairs):
    """A random positive, the nearest of all negatives."""

    def candidate_pairs(self, points, label, criterion):
        other, positive, negative = super().candidate_pairs(points, label, criterion)
        cosine = (points @ points.T).detach()  # (n, n), large where near
        positive = only_largest(torch.rand_like(cosine), positive)
        return other, positive, only_largest(cosine, self.eligible(cosine, positive, negative))

    def eligible(self, cosine, positive, negative):
        """Which negatives may be chosen (n, n)."""
        return negative


class SemiHard(Hardest):
    """A random positive, the nearest negative beyond it.

    One always lies just there, so the loss falls slowly. In short trainings it stays close to the
    margin.
    """

    def eligible(self, cosine, positive, negative):
        nearness = (cosine * positive).sum(1, keepdim=True)  # of the one positive
        return negative & (cosine < nearness)


class InfoNCE(AllPairs):
    """-log of a positive's share against all negatives of its anchor, at a temperature of 0.1.

    The mean over the positives of an anchor, then over the anchors.
    """

    def triplet_loss(self, points, label, criterion):
        _, positive, negative = self.candidate_pairs(points, label, criterion)
        similarity = points @ points.T / 0.1
        against = similarity.masked_fill(~negative, -1e9).logsumexp(1, keepdim=True)
        losses = F.softplus(against - similarity) * positive  # (n, n)

        anchor = positive.any(1) & negative.any(1)
        per_anchor = losses.sum(1) / positive.sum(1).clamp(min=1)
        return (per_anchor * anchor).sum() / anchor.sum().clamp(min=1)


FORMS = {
    "ours": Ours,
    "own labels": OwnLabels,
    "hardest negatives of 384": Hardest,
    "semi-hard negatives of 384": SemiHard,
    "InfoNCE of 384": InfoNCE,
    "nearest of 4 negatives": partial(NearestOf, among=4),
    "nearest of 16 negatives": partial(NearestOf, among=16),
    "margin 0.1": partial(Ours, margin=0.1),
    "margin 0.3": partial(Ours, margin=0.3),
    "margin 2": partial(Ours, margin=2.0),
    "samples 128": CrossTaskContrast,
    "samples 384": partial(Ours, samples=384),
    "samples 4096": partial(Ours, samples=4096),
    "all sources": AllSources,
    "no boundary source": NoBoundarySource,
    "pairs within an image": PerImage,
    "linear projector": LinearProjector,
    "no projector": NoProjector,
}
