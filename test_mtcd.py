# SPDX-License-Identifier: MIT
"""Tests of mtcd.py, in its order, against what does not depend on it.

Kills, damage and bad use: extras/test_safety.py. The data made here needs nothing but h5py.
"""

import colorsys
import copy
import functools
import itertools
import json
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from conftest import (
    CLASSES,
    CPU,
    IGNORED,
    METRICS,
    TASKS,
    files,
    main,
    quick,
    random_sample,
    write_file,
)
from scipy import ndimage, stats
from scipy.spatial.transform import Rotation
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

import mtcd
from extras.arms import FORMS


# ------------------------------------------------------------------------------ 1. the regulariser
def labels_of(task, shape):
    """Random labels (B, H, W) or (B, K, H, W), none ignored: pairs are positive, negative, neither."""
    if task == "normal":
        towards_camera = torch.tensor([0, 0, -1.0])[:, None, None]
        return F.normalize(towards_camera + 0.35 * torch.randn(shape[0], 3, *shape[1:]), dim=1)
    if task == "depth":
        return torch.rand(shape)[:, None].mul(0.6).exp()
    return torch.randint(min(CLASSES[task], 5), shape)


def relation(task, a, b):
    """What two pixels' labels, lists of floats, are to each other by README's criteria."""
    if task == "depth":
        distance = abs(math.log(a[0] / b[0]))
        positive, negative = 0.05, 0.2
    elif task == "normal":
        cosine = sum(x * y for x, y in zip(a, b)) / math.hypot(*a) / math.hypot(*b)
        distance = math.degrees(math.acos(max(-1, min(1, cosine))))
        positive, negative = 10, 30
    else:
        distance = float(a[0] != b[0])
        positive, negative = 0, 1
    if distance <= positive:
        return "positive"
    if distance >= negative:
        return "negative"
    return "neither"


def at_centre(label, pixel, shape):
    """The label (list of floats) at the centre of pixel number `pixel` of a (B, C, h, w) map."""
    image, row, column = np.unravel_index(pixel, (shape[0], *shape[2:]))
    label = label if label.ndim == 4 else label[:, None]
    y = math.floor((row + 0.5) / shape[2] * label.shape[2])
    x = math.floor((column + 0.5) / shape[3] * label.shape[3])
    return label[image, :, y, x].tolist()


def pixels_of(feature, rows):
    """The numbers of the map's pixels that the sampled rows (n, C) are of; all must be found."""
    pixels = feature.detach().movedim(1, 3).flatten(0, 2).tolist()
    numbers = {tuple(row): i for i, row in enumerate(pixels)}
    return [numbers[tuple(row)] for row in rows.tolist()]


class Pair:
    """A float64 regulariser of one target, albedo, and one source; keeps what it samples."""

    def __init__(self, source, shape=(2, 6, 7, 9), **choices):
        choices = {"samples": 50, "dim": 5, **choices}
        criteria = {"albedo": mtcd.CRITERIA["semseg"]}
        self.contrast = mtcd.CrossTaskContrast(
            ["albedo", source], shape[1], criteria=criteria, **choices
        ).double()
        self.feature = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        self.labels = {source: labels_of(source, (shape[0], *shape[2:]))}
        self.sampled = []  # (features, labels) of every call
        self.drawn = []  # (anchor, positive, negative) of every call
        self.keep("sample", self.sampled)
        self.keep("triplets", self.drawn)

    def keep(self, method, results):
        original = getattr(self.contrast, method)

        def spy(*arguments):
            results.append(original(*arguments))
            return results[-1]

        setattr(self.contrast, method, spy)

    def loss(self):
        return self.contrast({"albedo": self.feature}, self.labels)


@pytest.mark.parametrize("source", TASKS)
def test_loss_equals_plain_loops(source):
    pair = Pair(source, candidates=2000)
    loss = pair.loss()

    rows, _ = pair.sampled[0]
    pixels = pixels_of(pair.feature, rows)
    assert len(set(pixels)) == 50
    labels = [at_centre(pair.labels[source], i, pair.feature.shape) for i in pixels]
    points = pair.contrast.projectors[f"albedo_from_{source}"](rows).tolist()
    points = [[x / math.hypot(*row) for x in row] for row in points]

    # 2,000 candidates see all 49 others: the anchors are those that have both.
    anchors = []
    for i in range(50):
        relations = {relation(source, labels[i], labels[j]) for j in range(50) if j != i}
        if {"positive", "negative"} <= relations:
            anchors.append(i)
    anchor, positive, negative = (indices.tolist() for indices in pair.drawn[0])
    assert anchor == anchors
    assert len(anchors) > 25

    losses = []
    for a, p, n in zip(anchor, positive, negative):
        assert a != p
        assert relation(source, labels[a], labels[p]) == "positive"
        assert relation(source, labels[a], labels[n]) == "negative"
        gap = math.dist(points[a], points[p]) - math.dist(points[a], points[n])
        losses.append(max(0, gap + 1))
    assert loss.item() == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert pair.contrast.share_of_chance.item() == pytest.approx(loss.item())  # the margin is 1


def test_every_other_pixel_is_as_likely_a_partner():
    pair = Pair("boundary", samples=40, candidates=8)
    for _ in range(200):
        pair.loss()
    for role in (1, 2):  # positives, negatives
        partners = torch.cat([drawn[role] for drawn in pair.drawn])
        counts = np.bincount(partners, minlength=40)
        assert abs(counts - counts.mean()).max() < 5 * math.sqrt(counts.mean())


def test_one_candidate_is_positive_or_negative_never_both():
    pair = Pair("boundary", candidates=1)
    assert pair.loss() == 0


@pytest.mark.parametrize("angle", [0, 10, 60, 90, 180])
def test_loss_of_two_clusters_is_margin_minus_distance(angle):
    """Unit vectors `angle` degrees apart are 2 sin(angle / 2) apart; 60 degrees are the margin, 1."""
    pair = Pair("boundary", (2, 3, 8, 8), dim=3)
    pair.contrast.projectors["albedo_from_boundary"] = nn.Identity()
    turn = math.radians(angle) * pair.labels["boundary"].double()
    unit = torch.stack([turn.cos(), turn.sin(), 0 * turn], 1)
    length = 1 + torch.rand_like(turn)[:, None]
    pair.feature = (unit * length).requires_grad_()

    loss = pair.loss()
    loss.backward()
    expected = max(0, 1 - 2 * math.sin(math.radians(angle) / 2))
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    assert pair.contrast.share_of_chance.item() == pytest.approx(expected, abs=1e-5)
    assert pair.feature.grad.isfinite().all()


NAN_AND_INFINITY = torch.tensor([math.nan, math.inf, -math.inf]).repeat(2, 24).view(2, 1, 6, 12)
WITHOUT_TRIPLET = {
    "one class": ("semseg", torch.full((2, 6, 6), 3)),
    "each class once": ("semseg", torch.arange(36).view(1, 6, 6)),
    "all 255": ("semseg", torch.full((2, 6, 6), 255)),
    "all -1": ("semseg", torch.full((2, 6, 6), -1)),
    "no depth": ("depth", torch.zeros(2, 1, 6, 6)),
    "nan and infinity": ("depth", NAN_AND_INFINITY),
    "no normals": ("normal", torch.zeros(2, 3, 6, 6)),
    "one depth": ("depth", torch.full((2, 1, 6, 6), 2.0)),
    "neither near nor far": ("depth", torch.tensor([1.0, 1.1]).view(1, 1, 1, 2)),
    "one pixel": ("semseg", torch.zeros(1, 1, 1).long()),
    "one valid pixel": ("semseg", torch.tensor([[[1, 255], [255, 255]]])),
    "a single task": ("saliency", torch.arange(72).view(2, 6, 6) % 2),  # its own labels: no source
}


@pytest.mark.parametrize("case", WITHOUT_TRIPLET)
def test_without_a_triplet_the_loss_is_exactly_zero(case):
    source, label = WITHOUT_TRIPLET[case]
    tasks = list(dict.fromkeys(["saliency", source]))
    contrast = mtcd.CrossTaskContrast(tasks, 4)
    feature = torch.randn(len(label), 4, *label.shape[-2:], requires_grad=True)
    loss = contrast({"saliency": feature}, {source: label})
    loss.backward()
    assert loss.item() == 0
    assert not feature.grad.any()  # nan would be any()
    assert not any(p.grad.any() for p in contrast.parameters() if p.grad is not None)


def test_sources_are_uniform_never_the_target_and_independent():
    tasks = ["semseg", "depth", "normal", "boundary"]
    contrast = mtcd.CrossTaskContrast(tasks, 4)
    features = {task: torch.zeros(1, 4, 2, 2) for task in tasks}
    labels = {task: labels_of(task, (1, 2, 2)) for task in tasks}
    calls = []

    def pair_loss(target, source, feature, label):
        calls[-1].append((target, source))
        return torch.ones(())

    contrast.pair_loss = pair_loss
    for _ in range(3000):
        calls.append([])
        assert contrast(features, labels) == 4  # the sum over targets
    assert all([target for target, _ in call] == tasks for call in calls)

    calls = [dict(call) for call in calls]
    for target, other in itertools.permutations(tasks, 2):
        for a, b in itertools.product(tasks, tasks):
            count = sum((call[target], call[other]) == (a, b) for call in calls)
            if a == target or b == other:
                assert count == 0
            else:  # 1 in 9, within 5 standard deviations
                assert abs(count - 3000 / 9) < 5 * math.sqrt(3000 * 8 / 81)


def test_processes_with_other_images_draw_the_same_sources():
    tasks = ["semseg", "depth", "normal", "boundary"]
    contrast = mtcd.CrossTaskContrast(tasks, 8)
    original = contrast.pair_loss
    drawn = []

    def pair_loss(target, source, *maps):
        drawn[-1].append(source)
        return original(target, source, *maps)

    contrast.pair_loss = pair_loss
    for seed in range(20):
        for size in (3, 6):  # other sizes take other draws
            drawn.append([])
            features = {task: torch.ones(1, 8, size, size) for task in tasks}
            labels = {task: labels_of(task, (1, size, size)) for task in tasks}
            torch.manual_seed(seed)
            contrast(features, labels)
    assert drawn[::2] == drawn[1::2]
    assert len({str(sources) for sources in drawn}) > 10


def test_gradients_reach_targets_and_drawn_projectors_only():
    tasks = ["semseg", "depth", "normal"]
    contrast = mtcd.CrossTaskContrast(tasks, 4)
    assert len(contrast.projectors) == 6  # one per ordered pair
    labels = {task: labels_of(task, (2, 8, 8)) for task in tasks}
    original = contrast.pair_loss
    drawn = set()

    def pair_loss(target, source, *maps):
        drawn.add(f"{target}_from_{source}")
        return original(target, source, *maps)

    contrast.pair_loss = pair_loss
    for _ in range(8):
        drawn.clear()
        contrast.zero_grad()
        features = {task: torch.randn(2, 4, 8, 8, requires_grad=True) for task in tasks}
        targets = {task: features[task] for task in ("semseg", "depth")}
        contrast(targets, labels).backward()

        assert features["normal"].grad is None
        assert all(feature.grad.any() for feature in targets.values())
        reached = set()
        for name, parameter in contrast.projectors.named_parameters():
            if parameter.grad is not None and parameter.grad.any():
                reached.add(name.split(".")[0])
        assert reached == drawn
        assert len(drawn) == 2


@pytest.mark.parametrize("source", ["semseg", "depth", "normal"])
def test_gradients_equal_numerical_ones(source):
    pair = Pair(source, (2, 3, 5, 6), dim=3, samples=24)
    names = [n for n, _ in pair.contrast.named_parameters() if f"albedo_from_{source}" in n]

    def loss(feature, *weights):
        torch.manual_seed(1)
        arguments = ({"albedo": feature}, pair.labels)
        return torch.func.functional_call(pair.contrast, dict(zip(names, weights)), arguments)

    weights = [pair.contrast.get_parameter(name).detach().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(loss, (pair.feature, *weights))


def test_the_generator_state_decides_the_loss():
    pair = Pair("semseg")
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(pair.loss().item())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("form", FORMS)
def test_same_bits_twice_with_two_threads(form):
    """Of all forms of the loss: gradients add up in the same order, whatever the threads do."""
    tasks = ["semseg", "depth", "normal", "boundary"]
    contrast = FORMS[form](tasks, 32)
    start = {task: torch.randn(8, 32, 27, 35) for task in tasks}
    labels = {task: labels_of(task, (8, 27, 35)) for task in tasks}
    results = []
    torch.set_num_threads(2)
    try:
        for _ in range(4):
            torch.manual_seed(1)
            contrast.zero_grad()
            features = {task: f.clone().requires_grad_() for task, f in start.items()}
            contrast(features, labels).backward()
            gradients = [*(f.grad for f in features.values())]
            gradients += [p.grad for p in contrast.parameters() if p.grad is not None]
            results.append(gradients)
    finally:
        torch.set_num_threads(1)
    for gradients in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients, results[0], strict=True))


def test_autocast_channels_last_and_half_precision_change_rounding_only():
    contrast = mtcd.CrossTaskContrast(["semseg", "depth"], 8)
    feature = torch.randn(2, 8, 12, 12)
    labels = {"semseg": labels_of("semseg", (2, 48, 48))}

    def loss(feature, autocast=False):
        torch.manual_seed(1)
        feature = feature.detach().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = contrast({"depth": feature}, labels)
        value.backward()
        assert value.dtype == torch.float32
        assert feature.grad.isfinite().all() and feature.grad.any()
        return value.item()

    expected = loss(feature)
    channels_last = feature.to(memory_format=torch.channels_last)
    assert loss(channels_last) == pytest.approx(expected, rel=1e-6)
    assert loss(feature, autocast=True) == pytest.approx(expected, rel=1e-6)  # in float32
    assert loss(feature.bfloat16(), autocast=True) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("shape", [(28, 36), (27, 33), (7, 9), (5, 4), (1, 1), (14, 50)])
def test_labels_are_taken_at_the_centre_of_each_pixel(shape):
    pair = Pair("semseg")
    count = 2 * math.prod(shape)
    pair.labels = {"semseg": 1000 + torch.arange(count).view(2, *shape)}  # each its own
    pair.loss()
    rows, label = pair.sampled[0]
    pixels = pixels_of(pair.feature, rows)
    assert len(pixels) == 50
    expected = [at_centre(pair.labels["semseg"], i, pair.feature.shape) for i in pixels]
    assert label.tolist() == expected


@pytest.mark.parametrize(
    "source, values",
    [
        ("semseg", [255, -1, -100]),
        ("boundary", [255, -1]),
        ("normal", [0, math.nan, math.inf]),
        ("depth", [0, -1, math.nan, math.inf, -math.inf]),
    ],
)
def test_ignored_pixels_never_take_part(source, values):
    pair = Pair(source, (2, 6, 10, 10), samples=1000)
    ignored = torch.rand(2, 10, 10) < 0.6
    for i, (b, y, x) in enumerate(ignored.nonzero().tolist()):
        pair.labels[source][b, ..., y, x] = values[i % len(values)]
    feature = torch.where(ignored[:, None], math.nan, pair.feature.detach())
    pair.feature = feature.requires_grad_()

    loss = pair.loss()
    loss.backward()
    assert loss > 0
    assert pair.feature.grad.isfinite().all()
    rows, _ = pair.sampled[0]
    taken = sorted(pixels_of(pair.feature, rows))
    assert taken == (~ignored).flatten().nonzero().flatten().tolist()  # all others do


@pytest.mark.parametrize("size", [4, 32, 256])
def test_only_the_sampled_pixels_are_projected(size):
    contrast = mtcd.CrossTaskContrast(["depth", "boundary"], 4, samples=100)
    shapes = []
    projector = contrast.projectors["depth_from_boundary"]
    projector.register_forward_hook(lambda module, x, y: shapes.append(tuple(x[0].shape)))
    labels = {"boundary": torch.randint(2, (2, size, size))}
    contrast({"depth": torch.randn(2, 4, size, size)}, labels)
    assert shapes == [(min(100, 2 * size * size), 4)]


def test_classes_are_drawn_equally_often_and_depths_as_they_come():
    contrast = mtcd.CrossTaskContrast(["depth", "boundary"], 4, samples=100)
    numbers = torch.arange(2 * 64 * 64.0).view(2, 1, 64, 64).expand(2, 4, 64, 64)
    drawn = {"boundary": [], "depth": []}
    places = []
    for _ in range(20):
        boundary = (torch.rand(2, 1, 64, 64) < 0.03).float()
        for task, label in (("boundary", boundary), ("depth", 1 + 4 * boundary)):
            rows, label = contrast.sample(numbers, label, contrast.criteria[task])
            assert len(rows[:, 0].unique()) == 100  # without replacement
            drawn[task].append(label)
            places.append(rows[:, 0])
    assert 0.45 < torch.cat(drawn["boundary"]).mean() < 0.55  # of 3 % of the pixels
    assert (torch.cat(drawn["depth"]) == 5).float().mean() < 0.06
    share = np.histogram(torch.cat(places), 4, (0, 2 * 64 * 64))[0] / len(torch.cat(places))
    assert np.abs(share - 0.25).max() < 0.06  # from everywhere


def test_memory_grows_linearly_with_the_samples():
    """50,000 samples in a table of pairs would take 10 GB."""
    tasks = ["semseg", "depth"]
    contrast = mtcd.CrossTaskContrast(tasks, 2, samples=50_000, dim=4)
    labels = {
        "depth": 1 + torch.rand(1, 1, 250, 250),
        "semseg": torch.randint(3, (1, 250, 250)),
    }
    features = {task: torch.randn(1, 2, 250, 250) for task in tasks}
    with torch.profiler.profile(profile_memory=True) as profile:
        contrast(features, labels)
    assert max(abs(event.cpu_memory_usage) for event in profile.events()) < 500e6


def test_it_learns_from_free_features():
    """Two tasks' features as free parameters: below 0.35 of chance within 300 steps."""
    tasks = ["semseg", "depth"]
    patch = torch.ones(8, 8)
    labels = {
        "semseg": torch.kron(torch.randint(5, (2, 4, 5)), patch.long()),
        "depth": torch.kron(1 + 4 * torch.rand(2, 1, 4, 5), patch),
    }
    features = {task: torch.randn(2, 16, 32, 40, requires_grad=True) for task in tasks}
    contrast = mtcd.CrossTaskContrast(tasks, 16, samples=1024)
    optimiser = torch.optim.Adam([*features.values(), *contrast.parameters()], 0.01)
    shares = []
    for _ in range(300):
        optimiser.zero_grad()
        contrast(features, labels).backward()
        optimiser.step()
        shares.append(contrast.share_of_chance.item())
    assert 0.9 < np.mean(shares[:10]) < 1.1
    assert np.mean(shares[-10:]) < 0.35


def test_it_learns_while_a_network_trains(toy_file, tmp_path):
    tasks = ("semseg", "depth", "normal", "boundary")
    more = ("--tasks", *tasks, "--iters", 60, "--batch-size", 4)
    assert main(*quick(toy_file, tmp_path, *more)) == 0
    log = np.genfromtxt(tmp_path / "log.csv", delimiter=",", names=True)
    assert 0.9 < log["share_of_chance"][0] < 1.1
    assert log["share_of_chance"][-3:].mean() < 0.85


def test_an_unknown_task_needs_a_criterion():
    with pytest.raises(ValueError, match="albedo"):
        mtcd.CrossTaskContrast(["depth", "albedo"], 4)
    grey = mtcd.Criterion(mtcd.class_distance, mtcd.has_class, positive=0, negative=1)
    contrast = mtcd.CrossTaskContrast(["depth", "albedo"], 4, criteria={"albedo": grey})
    labels = {"albedo": torch.randint(2, (2, 8, 8))}
    assert contrast({"depth": torch.randn(2, 4, 8, 8)}, labels) > 0


@pytest.mark.parametrize(
    "features, labels, told",
    [
        ({"seg": (2, 8, 9, 9)}, {"depth": (2, 9, 9)}, "seg"),
        ({"semseg": (2, 6, 9, 9)}, {"depth": (2, 9, 9)}, r"semseg: features \(2, 6, 9, 9\).*8"),
        ({"semseg": (8, 9, 9)}, {"depth": (2, 9, 9)}, r"semseg: features \(8, 9, 9\)"),
        ({"semseg": (2, 8, 9, 9)}, {"depth": (3, 9, 9)}, r"depth: labels \(3, 9, 9\)"),
        ({"semseg": (2, 8, 9, 9)}, {"depth": (2, 9, 9, 1)}, r"depth: labels \(2, 9, 9, 1\)"),
        ({"depth": (2, 8, 9, 9)}, {"semseg": (2, 21, 9, 9)}, r"semseg: labels \(2, 21, 9, 9\)"),
        ({"depth": (2, 8, 9, 9)}, {"normal": (2, 9, 9)}, r"normal: labels \(2, 9, 9\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_the_tasks_name(features, labels, told):
    contrast = mtcd.CrossTaskContrast(["semseg", "depth", "normal"], 8)
    features = {task: torch.randn(shape) for task, shape in features.items()}
    labels = {task: torch.ones(shape) for task, shape in labels.items()}
    with pytest.raises(ValueError, match=told):
        contrast(features, labels)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_the_loss_can_be_copied_and_pickled(clone):
    contrast = mtcd.CrossTaskContrast(["semseg", "depth"], 4)
    features = {"depth": torch.randn(2, 4, 8, 8)}
    labels = {"semseg": torch.randint(3, (2, 8, 8))}
    losses = []
    for loss in (contrast, clone(contrast)):
        torch.manual_seed(1)
        losses.append(loss(features, labels).item())
    assert losses[0] == losses[1] > 0


def copy_block():
    text = Path(mtcd.__file__).read_text()
    return text.split("# >>> copy from here")[1].split("# <<< to here")[0]


def test_copy_block_trains_a_foreign_network_by_itself():
    space = {"__name__": "notebook"}
    exec(copy_block(), space)  # noqa: S102  it brings its own imports
    image = torch.rand(4, 3, 32, 32)
    labels = {"semseg": (image[:, 0] > 0.5).long(), "depth": 1 + 3 * image[:, 1:2]}
    encoder = nn.Conv2d(3, 16, 3, padding=1)
    heads = nn.ModuleDict({task: nn.Conv2d(16, 16, 1) for task in labels})
    contrast = space["CrossTaskContrast"](["semseg", "depth"], channels=16)
    optimiser = torch.optim.Adam(nn.ModuleList([encoder, heads, contrast]).parameters(), 3e-3)
    losses = []
    for _ in range(100):
        shared = encoder(image).relu()
        loss = contrast({task: head(shared) for task, head in heads.items()}, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_copy_block_names_paper_licence_and_project():
    for word in ("AAAI 2023", "Yang", "MIT", "mtcd", "import torch"):
        assert word in copy_block()
