# SPDX-License-Identifier: MIT
"""Tests of mtcd.py, in its order, against what does not depend on it.

Kills, damage and bad use: extras/test_safety.py. The data made here needs nothing but h5py.
"""

import colorsys
import copy
import csv
import dataclasses
import functools
import hashlib
import http.server
import itertools
import json
import math
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from scipy import ndimage, stats
from scipy.spatial.transform import Rotation
from torch import nn
from torch.utils.data import DataLoader, default_collate
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model

import data_prep
import mtcd
from conftest import (
    CLASSES,
    CPU,
    IGNORED,
    METRICS,
    TASKS,
    end,
    error_line,
    files,
    main,
    quick,
    random_sample,
    start_two,
    write_file,
)
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


def test_targets_can_be_chosen_and_all_other_tasks_stay_sources():
    tasks = ["semseg", "depth", "normal"]
    contrast = mtcd.CrossTaskContrast(tasks, 4, targets=["depth"])
    assert set(contrast.projectors) == {"depth_from_semseg", "depth_from_normal"}
    features = {task: torch.randn(2, 4, 8, 8, requires_grad=True) for task in tasks}
    labels = {task: labels_of(task, (2, 8, 8)) for task in tasks}
    loss = contrast(features, labels)
    loss.backward()
    assert features["depth"].grad.any()
    assert features["semseg"].grad is None
    assert features["normal"].grad is None
    assert contrast.share_of_chance == loss  # of one target, at a margin of 1


def test_a_target_that_is_no_task_is_refused():
    """Else a slip of the pen would turn the regulariser off."""
    with pytest.raises(ValueError, match=r"targets \['dpeth'\] are none of the tasks"):
        mtcd.CrossTaskContrast(["semseg", "depth"], 4, targets=["semseg", "dpeth"])


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


SAME_CODE = ("margin", "samples", "nearest of 4")  # as "ours" or "nearest of 16", another number


@pytest.mark.parametrize("form", [form for form in FORMS if not form.startswith(SAME_CODE)])
def test_same_bits_twice_with_two_threads(form):
    """Of all forms of the loss: gradients add up in the same order, whatever the threads do."""
    tasks = ["semseg", "depth", "normal", "boundary"]
    contrast = FORMS[form](tasks, 32)
    start = {task: torch.randn(4, 32, 27, 35) for task in tasks}
    labels = {task: labels_of(task, (4, 27, 35)) for task in tasks}
    results = []
    torch.set_num_threads(2)
    try:
        for _ in range(3):
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


# --------------------------------------------------------------------------------- 2. task losses
CHANNELS = {"semseg": 5, "parsing": 7, "saliency": 1, "depth": 1, "normal": 3, "boundary": 1}


def pixel_loss(task, prediction, label, positive_weight):
    """The protocol's loss of one pixel: lists of floats in, short normals stay as they are."""
    if task in ("semseg", "parsing"):
        return math.log(sum(math.exp(x) for x in prediction)) - prediction[label]
    if task in ("saliency", "boundary"):
        if label == 1:
            return positive_weight * math.log(1 + math.exp(-prediction[0]))
        return (1 - positive_weight) * math.log(1 + math.exp(prediction[0]))
    if task == "depth":
        return abs(prediction[0] - label[0])
    length = max(1, math.hypot(*prediction))
    return sum(abs(p / length - y) for p, y in zip(prediction, label))


@pytest.mark.parametrize("share", [0, 0.4, 1])
@pytest.mark.parametrize("task", TASKS)
def test_task_loss_equals_plain_loops(task, share):
    """`share` of the pixels is ignored; where all are, loss and gradients are 0."""
    label = labels_of(task, (2, 4, 5))
    ignored = torch.rand(2, 4, 5) < share
    mask = ignored if task in CLASSES else ignored[:, None].expand_as(label)
    label[mask] = IGNORED[task]
    prediction = torch.randn(2, CHANNELS[task], 4, 5, requires_grad=True)

    if task == "boundary":
        positive_weight = 0.95
        loss = mtcd.weighted_binary_loss(prediction, label, positive_weight)
    else:  # of saliency the share of negatives
        positive_weight = (label == 0).sum().item() / max((label != 255).sum().item(), 1)
        loss = mtcd.TASKS[task].loss(prediction, label)
    loss.backward()

    losses = []
    for b, y, x in (~ignored).nonzero().tolist():
        pixel = prediction[b, :, y, x].tolist()
        losses.append(pixel_loss(task, pixel, label[b, ..., y, x].tolist(), positive_weight))
    expected = sum(losses) / max(len(losses), 1)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert prediction.grad.isfinite().all()
    assert not prediction.grad.abs().sum(1)[ignored].any()
    assert (loss == 0) == (not prediction.grad.any()) == (share == 1)


# -------------------------------------------------------------------------------------- 3. metrics
def check_metric(make, expected, batches, rel=1e-5):
    """The expected value, and the same whatever the order and the batches."""
    singles = []
    for prediction, label in batches:
        for i in range(len(label)):
            singles.append((prediction[i : i + 1], label[i : i + 1]))

    values = []
    for order in (batches, batches[::-1], singles):
        metric = make()
        for prediction, label in order:
            metric.update(prediction, label)
        values.append(metric.compute())
    assert type(values[0]) is float
    assert values[0] == pytest.approx(expected, rel=rel, abs=1e-5, nan_ok=True)
    assert values == pytest.approx(values[:1] * 3, rel=1e-9, nan_ok=True)


def six_classes():
    """5 occurs nowhere and does not count, 4 is never predicted and does."""
    return mtcd.MeanIoU(6)


def plain_miou(prediction, label):
    score = pytest.importorskip("sklearn.metrics").jaccard_score
    return 100 * score(label, prediction, average="macro")


def draw_classes(shape):
    return torch.randint(4, shape), torch.randint(5, shape)


def plain_max_f(prediction, label):
    score = pytest.importorskip("sklearn.metrics").fbeta_score
    best = 0
    for step in range(1, 20):
        f = score(label, prediction > step / 20, beta=0.3**0.5, zero_division=0)
        best = max(best, f)
    return 100 * best


def draw_ties(shape):
    """Probabilities in twentieths, which tie with the thresholds."""
    label = torch.randint(2, shape)
    twentieths = torch.where(label == 1, torch.randint(6, 21, shape), torch.randint(14, shape))
    return twentieths.double() / 20, label


def draw_beyond_the_last_threshold(shape):
    """Positives 1, negatives 0 to 0.95: best only beyond exactly 0.95."""
    label = torch.randint(2, shape)
    twentieths = torch.where(label == 1, 20, torch.randint(20, shape))
    return twentieths.double() / 20, label


def plain_rmse(prediction, label):
    return np.sqrt(np.mean((np.maximum(prediction, 0) - label) ** 2))


def draw_depths(shape):
    return 3 * torch.randn(shape)[:, None], 1 + 5 * torch.rand(shape)[:, None]


@pytest.mark.parametrize("share", [0, 0.3, 1])
@pytest.mark.parametrize(
    "make, plain, draw",
    [
        (six_classes, plain_miou, draw_classes),
        (mtcd.MaxF, plain_max_f, draw_ties),
        (mtcd.MaxF, plain_max_f, draw_beyond_the_last_threshold),
        (mtcd.RMSE, plain_rmse, draw_depths),
    ],
)
def test_miou_and_maxf_equal_scikit_learns_and_rmse_its_formula(make, plain, draw, share):
    batches = [draw((size, 6, 7)) for size in (1, 3, 2)]
    ignored = 0 if make is mtcd.RMSE else 255
    for _, label in batches:
        label[torch.rand(label.shape) < share] = ignored
    prediction = torch.cat([p.flatten() for p, _ in batches]).double().numpy()
    label = torch.cat([y.flatten() for _, y in batches]).double().numpy()
    valid = label != ignored
    expected = plain(prediction[valid], label[valid]) if valid.any() else math.nan
    check_metric(make, expected, batches)


@pytest.mark.parametrize("angles", [[0], [180], [1e-3], [179.999], [90], [0, 180, 12.5, 77, 150]])
def test_mean_angular_error_equals_the_angles_that_vectors_were_turned_by(angles):
    rng = np.random.default_rng(0)
    turn = np.radians(np.resize(angles, 40))[:, None]
    batches = []
    for _ in range(3):
        a, b, _ = np.linalg.qr(rng.standard_normal((40, 3, 3)))[0].transpose(1, 0, 2)  # orthonormal
        turned = torch.from_numpy((np.cos(turn) * a + np.sin(turn) * b).T.reshape(1, 3, 5, 8))
        label = torch.from_numpy(a.T.reshape(1, 3, 5, 8))
        # The second image is ignored; lengths do not matter.
        batches.append((torch.cat([3 * turned, turned]), torch.cat([0.5 * label, 0 * label])))
    check_metric(mtcd.MeanAngularError, np.mean(np.resize(angles, 40)), batches, rel=1e-7)


def test_sums_of_far_errors_do_not_overflow():
    far = mtcd.RMSE()
    for _ in range(3):
        far.update(torch.full((1, 1, 425, 560), 1e4), torch.ones(1, 1, 425, 560))
    assert far.compute() == pytest.approx(9999, rel=1e-12)


@pytest.mark.parametrize("max_dist, expected", [(0.03, 100 * 2 * 40 / (40 + 80)), (0.01, 0)])
def test_odsf_counts_lines_within_the_tolerance_as_found(max_dist, expected):
    """A line drawn two pixels beside the true one; the diagonal is 100. One of two is missed."""
    label = torch.zeros(2, 60, 80).long()
    label[:, 10:50, 30] = 1
    prediction = torch.zeros(2, 60, 80)
    prediction[0, 10:50, 32] = 0.9
    metric = mtcd.OdsF(max_dist)
    metric.update(prediction, label)
    assert metric.compute() == pytest.approx(expected, abs=1.5)


# ---------------------------------------------------------------------------- 4. tasks, protocols
def test_weights_and_settings_are_the_protocols():
    """As in ATRC's public code."""
    weights = {task: row.weight for task, row in mtcd.TASKS.items()}
    assert weights == {
        "semseg": 1,
        "parsing": 2,
        "saliency": 5,
        "normal": 10,
        "depth": 1,
        "boundary": 50,
    }
    nyud = mtcd.PROTOCOLS["nyud"]
    pascal = mtcd.PROTOCOLS["pascal"]
    assert set(nyud.tasks) == {"semseg", "depth", "normal", "boundary"}
    assert set(pascal.tasks) == {"semseg", "parsing", "saliency", "normal", "boundary"}
    assert (nyud.lr, pascal.lr) == (0.01, 0.005)
    assert (nyud.boundary_weight, pascal.boundary_weight) == (0.8, 0.95)
    assert (nyud.max_dist, pascal.max_dist) == (0.011, 0.0075)
    for protocol in (nyud, pascal):
        assert protocol.iters == 40_000
        assert protocol.scales == (0.5, 2)
        assert protocol.backbone == "hrnet18s"
        assert protocol.pretrained == "imagenet"


@pytest.mark.parametrize("task", TASKS)
def test_metric_of_each_task_has_the_fields_name_and_sense(task):
    metric = mtcd.TASKS[task].metric
    assert metric.name == METRICS[task]
    assert metric.higher_is_better == (task not in ("depth", "normal"))


# ----------------------------------------------------------------------------------------- 5. data
SIZES = ((64, 96), (50, 70), (64, 80), (40, 96))  # before padding to 64 x 96
SLOPE = np.array([0.3, -0.5, -0.8]) / np.linalg.norm([0.3, -0.5, -0.8])  # 2 m from the camera


def wave(row, column):
    """A picture whose shift by a pixel shows; grey, so hue and saturation leave it as it is."""
    across = np.sin(2 * np.pi * column / 14)
    down = np.sin(2 * np.pi * row / 14)
    return 128 + 30 * across + 30 * down


def coordinate_sample(height, width):
    """semseg is the column, parsing the row: an augmented pixel tells whence it came."""
    row, column = np.mgrid[:height, :width]
    ones = np.ones((height, width))
    rays = np.stack([(column - width / 2) / 80, (row - height / 2) / 80, ones], 2)
    return {
        "image": np.repeat(wave(row, column)[..., None], 3, 2),
        "semseg": column,
        "parsing": row,
        "depth": -2 / (rays @ SLOPE),
        "normal": np.broadcast_to(SLOPE, (height, width, 3)),
        "saliency": column // 8 % 2,
        "boundary": row // 8 % 2,
    }


@dataclass
class Augmented:
    size: tuple  # of the source
    sample: dict
    window: tuple  # what is not padding
    row: np.ndarray  # of the source, per pixel of the window
    column: np.ndarray
    across: float  # the zoom
    down: float
    flipped: bool


@pytest.fixture(scope="session")
def augmented(tmp_path_factory):
    """200 samples of a benchmark's file."""
    path = tmp_path_factory.mktemp("data") / "coordinates.h5"
    samples = [coordinate_sample(*size) for size in SIZES]
    write_file(path, "nyud", (64, 96), {"train": samples}, classes=96)
    dataset = mtcd.DenseTasks(path, "train", TASKS, augment=True)
    dataset.num_classes["parsing"] = 96
    found = []
    for key in range(200):
        sample = {name: tensor.numpy() for name, tensor in dataset[key].items()}
        inside = sample["semseg"] != 255
        height = inside.any(1).sum()
        width = inside.any(0).sum()
        window = np.s_[:height, :width]
        row = sample["parsing"][window].astype(int)
        column = sample["semseg"][window].astype(int)
        steps = np.polyfit(range(width), column[0], 1)[0]
        down = 1 / np.polyfit(range(height), row[:, 0], 1)[0]
        size = SIZES[key % 4]
        found.append(Augmented(size, sample, window, row, column, 1 / abs(steps), down, steps < 0))
    return found


def test_augmentation_moves_pads_and_crops_image_and_labels_together(augmented):
    likeness = []
    for a in augmented:
        inside = np.zeros((64, 96), bool)
        inside[a.window] = True
        assert (a.row == a.row[:, :1]).all()
        assert (a.column == a.column[:1]).all()
        assert a.row.max() < a.size[0]
        assert a.column.max() < a.size[1]
        assert np.array_equal(a.sample["saliency"][a.window], a.column // 8 % 2)
        assert np.array_equal(a.sample["boundary"][a.window], a.row // 8 % 2)
        for task in TASKS:
            label = a.sample[task].reshape(64, 96, -1)
            assert ((label == IGNORED[task]).all(2) == ~inside).all()

        image = a.sample["image"].transpose(1, 2, 0)
        assert image.dtype == np.uint8
        assert (image[~inside] == (124, 116, 104)).all()  # ImageNet's mean
        grey = image[a.window][..., 0].ravel()
        likeness.append(np.corrcoef(grey, wave(a.row, a.column).ravel())[0, 1])
    assert min(likeness) > 0.9  # nearest neighbours are off by up to half a pixel
    assert np.mean(likeness) > 0.98


def test_augmentation_scales_between_half_and_double_flips_half_and_crops_anywhere(augmented):
    across = np.array([a.across for a in augmented])
    down = np.array([a.down for a in augmented])
    assert down.min() > 0.47
    assert down.max() < 2.1
    assert across.min() < 0.6
    assert across.max() > 1.9
    assert np.allclose(across / down, 1, atol=0.06)
    assert 70 < sum(a.flipped for a in augmented) < 130  # 4 standard deviations
    corners = {(a.row.min(), a.column.min()) for a in augmented}
    assert len(corners) > 60
    assert max(y for y, _ in corners) > 20
    assert max(x for _, x in corners) > 30


def assert_plane(sample, at):
    """1 / depth is linear in the coordinates, within half a pixel, and falls along the normal."""
    y, x = at.nonzero()
    normal = sample["normal"][at].astype(float)
    assert normal.std(0).max() < 2e-3

    design = np.stack([x, y, np.ones(len(x))], 1)
    inverse = 1 / sample["depth"][at]
    slope = np.linalg.lstsq(design, inverse, rcond=None)[0]
    steepness = np.hypot(*slope[:2])
    assert np.std(design @ slope - inverse) < 0.6 * steepness
    along = normal.mean(0)[:2]
    assert slope[:2] @ along < -0.98 * steepness * np.hypot(*along)


def test_augmented_slope_is_nearer_by_the_zoom_and_its_normal_turns_with_the_flip(augmented):
    for a in augmented:
        before = coordinate_sample(*a.size)["depth"][a.row, a.column]
        nearer = before / a.sample["depth"][a.window]
        assert np.ptp(nearer) < 1e-4
        assert nearer.mean() == pytest.approx(a.across, rel=0.05)
        mirror = (-1, 1, 1) if a.flipped else (1, 1, 1)
        assert np.abs(a.sample["normal"][a.window] - SLOPE * mirror).max() < 2e-3
        assert_plane(a.sample, a.sample["semseg"] != 255)


def test_floors_and_ceilings_of_augmented_rooms_stay_planes(toy_file):
    dataset = mtcd.DenseTasks(toy_file, "train", ("semseg", "depth", "normal"), augment=True)
    planes = 0
    for key in range(60):
        sample = {name: tensor.numpy() for name, tensor in dataset[key].items()}
        for name in ("floor", "ceiling"):
            at = sample["semseg"] == dataset.classes["semseg"].index(name)
            if at.sum() > 300 and min(np.ptp(places) for places in at.nonzero()) > 20:
                assert_plane(sample, at)
                planes += 1
    assert planes > 15


@pytest.mark.parametrize("scale", [0.5, 0.75])
def test_pictures_shrink_without_smoothing(scale, tmp_path, monkeypatch):
    """Each pixel is interpolated between the four about its centre, as by OpenCV's INTER_LINEAR."""
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3))
    sample = {"image": picture, "depth": np.ones((64, 96))}
    path = write_file(tmp_path / "n.h5", "nyud", (64, 96), {"train": [sample]})
    protocol = dataclasses.replace(mtcd.PROTOCOLS["nyud"], scales=(scale, scale))
    monkeypatch.setitem(mtcd.PROTOCOLS, "nyud", protocol)
    monkeypatch.setattr(mtcd, "distort", lambda image, rng: image)

    rows = (np.arange(64 * scale) + 0.5) / scale - 0.5
    columns = (np.arange(96 * scale) + 0.5) / scale - 0.5
    at = np.meshgrid(rows, columns, indexing="ij")
    expected = []
    for channel in np.moveaxis(picture.astype(float), 2, 0):
        expected.append(ndimage.map_coordinates(channel, at, order=1, mode="nearest"))
    expected = np.stack(expected)

    found = mtcd.DenseTasks(path, "train", ["depth"], augment=True)[0]["image"].numpy()
    found = found[:, : len(rows), : len(columns)].astype(float)
    error = abs(found - expected).max()
    error_flipped = abs(found[..., ::-1] - expected).max()
    assert min(error, error_flipped) < 1.5


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(32, 48), (8, 12), (21, 31), (16, 24), (1, 1)])
def test_a_placed_label_has_the_pixels_at_the_centres_and_is_padded(size, flip):
    label = np.arange(16 * 24).reshape(16, 24)
    geometry = mtcd.Geometry(np.s_[:, :], size, flip)
    placed = mtcd.place_label(label, geometry, (40, 50), -1)
    height, width = size
    for row, column in np.ndindex(40, 50):
        expected = -1
        if row < height and column < width:
            across = width - 1 - column if flip else column
            y = math.floor((row + 0.5) * 16 / height)
            x = math.floor((across + 0.5) * 24 / width)
            expected = label[y, x]
        assert placed[row, column] == expected


@pytest.mark.parametrize("tasks", [["semseg", "saliency"], ["saliency"]])
def test_crops_avoid_three_quarters_of_one_class_whatever_tasks_are_trained(tasks, tmp_path):
    """Nor are they unlabelled. Three images: two classes, one class, a large part unlabelled."""
    column = np.broadcast_to(np.arange(96), (64, 96))
    labels = [(column > 66) + 0, 0 * column, np.where(column < 60, 255, column % 7)]
    samples = []
    for label in labels:
        samples.append({"image": np.zeros((64, 96, 3)), "semseg": label, "saliency": label % 2})
        samples[-1]["saliency"][label == 255] = 255
    path = write_file(tmp_path / "x.h5", "nyud", (64, 96), {"train": samples})
    dataset = mtcd.DenseTasks(path, "train", tasks, augment=True)

    shares = []
    unlabelled = 0
    for key in range(0, 900, 3):
        label = dataset[key]["saliency"].numpy()
        valid = label[label != 255]
        shares.append(np.bincount(valid).max() / len(valid))
        unlabelled += (dataset[key + 2]["saliency"] == 255).all().item()
    assert np.mean(np.array(shares) > 0.77) < 0.06  # without the rule 0.4
    assert unlabelled < 6  # without it a tenth
    assert (dataset[1]["saliency"] == 0).any()  # one class only: no endless search


def test_a_crop_without_any_part_of_a_person_is_ignored_as_a_whole(tmp_path):
    row, column = np.mgrid[:64, :96]
    person = np.where((row - 8) ** 2 + (column - 10) ** 2 < 64, 3, 0)
    sample = {
        "image": np.zeros((64, 96, 3)),
        "semseg": row // 8,
        "saliency": np.minimum(person, 1),
        "parsing": person,
    }
    path = write_file(tmp_path / "x.h5", "pascal", (64, 96), {"train": [sample]})
    dataset = mtcd.DenseTasks(path, "train", ["saliency", "parsing"], augment=True)
    empty = 0
    for key in range(200):
        parsing = dataset[key]["parsing"].numpy()
        visible = dataset[key]["saliency"].numpy()
        if (visible == 1).any():
            assert np.array_equal(parsing, np.where(visible == 1, 3, visible))
        else:
            empty += 1
            assert (parsing == 255).all()
    assert 10 < empty < 100


def test_photometric_distortion_is_the_protocols_in_2000_draws():
    """Two greys tell brightness and contrast. Without these, colours must be colorsys' change of
    saturation, then scipy's turn about the grey axis, as often and as far as in mmsegmentation."""
    greys = [(40, 40, 40), (120, 120, 120)]
    picture = np.array([*greys, (200, 100, 100), (90, 150, 120), (100, 100, 140)])
    image = torch.from_numpy(picture.T[:, None].astype(np.uint8))
    rng = np.random.default_rng(0)
    drawn = torch.stack([mtcd.distort(image, rng) for _ in range(2000)])
    drawn = drawn[:, :, 0].mT.double().numpy()  # (2000, 5, 3)
    assert np.ptp(drawn[:, :2], axis=2).max() == 0  # grey stays grey

    low, high = drawn[:, :2, 0].T
    contrast = (high - low) / 80
    brightness = low / contrast - 40
    as_it_was = abs(contrast - 1) < 0.013
    assert 0.46 < as_it_was.mean() < 0.56
    assert 0.46 < (abs(brightness[as_it_was]) < 0.1).mean() < 0.56
    assert stats.kstest(contrast[~as_it_was], "uniform", (0.5, 1)).statistic < 0.06
    moved = as_it_was & (abs(brightness) > 0.1)
    assert stats.kstest(brightness[moved], "uniform", (-32, 64)).statistic < 0.08
    means = drawn[:, :2].mean((1, 2))  # contrast times (80 + brightness), independent mixtures
    deviation = math.sqrt(64**2 / 24 * 25 / 24 + 80**2 / 24)
    assert means.std() == pytest.approx(deviation, rel=0.06)

    colours = drawn[as_it_was & (abs(brightness) < 0.1), 2:]
    assert 400 < len(colours) < 600
    axes = np.array([(2, -1, -1), (0, 3**0.5, -(3**0.5))]).T
    chroma = (colours[:, 0] - colours[:, 0].mean(1, keepdims=True)) @ axes
    angle = np.degrees(np.arctan2(chroma[:, 1], chroma[:, 0]))
    factor = np.hypot(*chroma.T) / 200
    assert -36.5 < angle.min() < -34
    assert 32 < angle.max() < 34.5
    assert 0.46 < (abs(angle) < 0.5).mean() < 0.58
    assert 0.45 < (abs(factor - 1) < 0.01).mean() < 0.58
    turned = angle[abs(angle) > 0.5]
    assert stats.kstest(turned, "uniform", (-37, 72)).statistic < 0.1
    saturated = factor[abs(factor - 1) > 0.01]
    assert stats.kstest(saturated, "uniform", (0.5, 1)).statistic < 0.1

    for found, turn, times in zip(colours, angle, factor):
        expected = []
        for colour in picture[2:]:
            h, s, v = colorsys.rgb_to_hsv(*(colour / 255))
            expected.append(np.multiply(colorsys.hsv_to_rgb(h, s * times, v), 255))
        rotation = Rotation.from_rotvec(np.full(3, math.radians(turn) / 3**0.5))
        assert abs(found - rotation.apply(expected)).max() < 2  # 8 bits


def test_photometric_distortion_leaves_one_in_sixteen_and_clips():
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    image[:, 0] = 255
    image[:, 1] = 0
    rng = np.random.default_rng(0)
    changed = torch.stack([mtcd.distort(image, rng) for _ in range(800)])
    same = (changed == image).flatten(1).all(1).sum()
    assert 30 <= same <= 75  # 50 expected, standard deviation 7
    white = changed[:, :, 0].int()  # clipped, not wrapped around
    black = changed[:, :, 1].int()
    assert white.min() >= 111
    assert black.max() <= 48
    assert 0.55 < (white == 255).float().mean() < 0.8
    assert 0.7 < (black == 0).float().mean() < 0.8


def load_augmented(path, workers=0, seed=0, keys=range(20)):
    dataset = mtcd.DenseTasks(path, "train", TASKS, augment=True, seed=seed)
    return list(DataLoader(dataset, 2, sampler=keys, num_workers=workers))


def test_augmentation_depends_on_seed_and_key_alone(toy_file):
    one = load_augmented(toy_file)
    state = torch.get_rng_state()
    mtcd.DenseTasks(toy_file, "train", TASKS, augment=True)[3]
    assert torch.equal(torch.get_rng_state(), state)  # leaves the model's draws alone

    torch.manual_seed(2)
    in_workers = load_augmented(toy_file, workers=2)
    backwards = load_augmented(toy_file, keys=range(19, -1, -1))[::-1]
    other_seed = load_augmented(toy_file, seed=1)
    for a, b, c, other in zip(one, in_workers, backwards, other_seed, strict=True):
        for name in a:
            assert torch.equal(a[name], b[name])
            assert torch.equal(a[name], c[name].flip(0))
        assert not torch.equal(a["image"], other["image"])
    assert not torch.equal(one[0]["image"], one[5]["image"])  # the next epoch's


def test_without_augmentation_a_sample_is_the_file_and_padding_is_ignored(tmp_path):
    rng = np.random.default_rng(0)
    samples = [random_sample(rng, (20, 30)), random_sample(rng, (11, 17))]
    path = write_file(tmp_path / "x.h5", "toy", (20, 30), {"val": samples})
    dataset = mtcd.DenseTasks(path, "val", TASKS)
    images, labels = mtcd.to_device(next(iter(DataLoader(dataset, 2))), CPU)
    assert images.shape == (2, 3, 20, 30)
    assert images[1, :, 11:].abs().max() < 0.01  # 0: the mean colour
    for i, sample in enumerate(samples):
        height, width = sample["image"].shape[:2]
        window = np.s_[:height, :width]
        image = (sample["image"] / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        assert np.allclose(images[i].permute(1, 2, 0)[window], image, atol=1e-5)
        for task, label in labels.items():
            tail = {"depth": (1, 20, 30), "normal": (3, 20, 30)}.get(task, (20, 30))
            assert label.shape[1:] == tail
            assert label.dtype == (torch.int64 if task in CLASSES else torch.float32)
            expected = np.full((20, 30, *sample[task].shape[2:]), IGNORED[task], float)
            expected[window] = sample[task]
            found = label[i].permute(1, 2, 0) if task == "normal" else label[i]
            assert np.allclose(found, expected, atol=1e-3)


def test_what_is_not_finite_is_no_ground_truth():
    batch = {
        "image": torch.zeros(1, 3, 1, 3, dtype=torch.uint8),
        "depth": torch.tensor([[[math.nan, math.inf, 2]]]),
        "normal": torch.tensor([[[[math.nan] * 3, [math.inf, 0, 0], [0, 0, -1.0]]]]),
    }
    _, labels = mtcd.to_device(batch, CPU)
    assert labels["depth"].flatten().tolist() == [0, 0, 2]
    assert labels["normal"][0, :, 0].T.tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, -1]]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_dataset_that_has_been_read_goes_to_workers_of_any_kind(method, toy_file):
    dataset = mtcd.DenseTasks(toy_file, "val", TASKS)
    before = dataset[1]
    loader = DataLoader(
        dataset,
        sampler=[1],
        num_workers=1,
        multiprocessing_context=method,
        worker_init_fn=mtcd.quiet_worker,
    )
    batch = next(iter(loader))
    for name, tensor in before.items():
        assert torch.equal(batch[name][0], tensor)


@pytest.mark.parametrize("length, world", [(7, 1), (10, 1), (12, 2), (12, 4)])
def test_keys_shuffle_every_pass_resume_anywhere_and_are_shared_among_processes(length, world):
    def keys(count, start=0, rank=0, world=1, seed=5):
        stream = mtcd.endless_keys(length, seed, start * world)
        return list(itertools.islice(stream, rank, rank + count * world, world))

    straight = keys(4 * length)
    passes = [straight[i : i + length] for i in range(0, len(straight), length)]
    for number, one in enumerate(passes):
        assert sorted(one) == list(range(number * length, (number + 1) * length))
    orders = set()
    for one in [*passes, keys(length, seed=6), range(length)]:
        orders.add(tuple(key % length for key in one))
    assert len(orders) == 6

    for start in (0, 1, length - 1, length, 2 * length + 3):
        assert keys(length, start) == straight[start : start + length]
    shares = [keys(12, 0, rank, world) for rank in range(world)]  # batches of 3 a process
    for i in range(0, 12, 3):
        together = sorted(key for share in shares for key in share[i : i + 3])
        assert together == sorted(keys(3 * world, i * world))
    for rank, share in enumerate(shares):
        assert keys(9, 3, rank, world) == share[3:]


# ------------------------------------------------------------------------------------ 6. backbones
def scatter_batch_norms(net):
    """As new they are all alike, so a swapped name would not show."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.running_var.uniform_(0.5, 1.5)
            module.bias.uniform_(-0.5, 0.5)
            module.running_mean.uniform_(-0.5, 0.5)


CLASSIFIERS = ("incre_modules.", "downsamp_modules.", "final_layer.", "classifier.", "fc.")


@torch.no_grad()
def assert_same_maps(name, reference, layers, run):
    """Our encoder with the reference's weights gives what its layers give, on a small picture."""
    scatter_batch_norms(reference)
    reference = reference.double().eval()
    state = reference.state_dict()
    backbone = mtcd.build_backbone(name).double().eval()
    ours = backbone.state_dict()
    backbone.load_state_dict({key: state[key] for key in ours})
    assert all(key in ours or key.startswith(CLASSIFIERS) for key in state)

    maps = []
    for layer in layers:
        output = getattr(reference, layer)
        output.register_forward_hook(
            lambda module, x, y: maps.extend(y if isinstance(y, list) else [y])
        )
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    run(x)
    for a, b, channels in zip(backbone(x), maps, backbone.channels, strict=True):
        assert a.shape[1] == channels
        assert b.std() > 0.01
        assert torch.allclose(a, b)


TIMM_NAMES = {
    "hrnet18s": "hrnet_w18_small_v2",
    "hrnet18": "hrnet_w18",
    "hrnet32": "hrnet_w32",
    "hrnet48": "hrnet_w48",
}


@pytest.mark.parametrize("name", ["hrnet18s", "hrnet18"])
def test_hrnet_equals_timms_for_the_same_weights(name):
    reference = pytest.importorskip("timm").create_model(TIMM_NAMES[name])
    reference.incre_modules = None  # of the classifier
    assert_same_maps(name, reference, ["stage4"], reference.forward_features)


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_hrnet_of_every_width_has_timms_arrays(name):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        reference = timm.create_model(TIMM_NAMES[name]).state_dict()
        ours = mtcd.build_backbone(name).state_dict()
    for key, array in ours.items():
        assert reference.pop(key).shape == array.shape
    assert all(key.startswith(CLASSIFIERS) for key in reference)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnet_equals_torchvisions_for_the_same_weights(name):
    reference = get_model(name)
    layers = ["layer1", "layer2", "layer3", "layer4"]
    assert_same_maps(name, reference, layers, reference)


def resnet18_state(seed=1):
    torch.manual_seed(seed)
    return mtcd.build_backbone("resnet18").state_dict()


def assert_filled(state, file_content, folder):
    path = folder / "w.pth"
    torch.save(file_content, path)
    target = mtcd.build_backbone("resnet18")
    mtcd.load_pretrained(target, "resnet18", path)
    for key, array in target.state_dict().items():
        assert torch.equal(array, state[key]), key


def test_pretrained_weights_of_any_usual_shape_fill_the_backbone(tmp_path):
    state = resnet18_state()
    assert_filled(state, state, tmp_path)

    lightning = {f"module.backbone.{key}": array for key, array in state.items()}
    assert_filled(state, {"state_dict": lightning}, tmp_path)

    parallel = {f"module.{key}": array for key, array in state.items()}
    assert_filled(state, {**parallel, "head.weight": torch.ones(2)}, tmp_path)

    odd = {3: torch.ones(1), **state, 4: {"conv1.weight": 1}}
    assert_filled(state, {"model": odd}, tmp_path)

    counters = [key for key in state if key.endswith("num_batches_tracked")]
    older = {key: array for key, array in state.items() if key not in counters}
    assert_filled(state, older, tmp_path)


def test_of_two_networks_in_a_file_the_first_in_the_alphabet_is_taken(tmp_path):
    states = {name: resnet18_state(seed=ord(name)) for name in "kq"}
    for names in ("kq", "qk"):
        content = {}
        for name in names:
            for key, array in states[name].items():
                content[f"encoder_{name}.{key}"] = array
        assert_filled(states["k"], content, tmp_path)


def test_timm_weights_fill_hrnet_and_another_width_names_what_is_there(tmp_path):
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("hrnet_w18_small_v2").state_dict(), tmp_path / "w.pth")
    mtcd.load_pretrained(mtcd.build_backbone("hrnet18s"), "hrnet18s", tmp_path / "w.pth")
    with pytest.raises(mtcd.UserError, match=r"does not fill \d+ arrays of hrnet32.*conv1.weight"):
        mtcd.load_pretrained(mtcd.build_backbone("hrnet32"), "hrnet32", tmp_path / "w.pth")


@pytest.fixture
def server(tmp_path):
    """A web server on 127.0.0.1 -> its address and the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/", folder
        running.shutdown()


@pytest.fixture
def tiny_weights(server, tmp_path, monkeypatch):
    """ImageNet weights for hrnet_tiny are "published": -> the file, the state, torch's cache."""
    address, folder = server
    torch.manual_seed(5)
    state = mtcd.build_backbone("hrnet_tiny").state_dict()
    torch.save(state, folder / "w")
    digits = hashlib.sha256((folder / "w").read_bytes()).hexdigest()[:8]
    path = (folder / "w").rename(folder / f"hrnet-{digits}.pth")
    variant = dataclasses.replace(mtcd.HRNETS["hrnet_tiny"], weights=path.name)
    monkeypatch.setitem(mtcd.HRNETS, "hrnet_tiny", variant)
    monkeypatch.setattr(mtcd, "HRNET_WEIGHTS", address)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    return path, state, tmp_path / "cache/hub/checkpoints"


def test_imagenet_weights_are_fetched_once_and_fill_the_encoder(tiny_weights):
    path, state, cache = tiny_weights
    for _ in range(2):
        target = mtcd.build_backbone("hrnet_tiny")
        mtcd.load_pretrained(target, "hrnet_tiny", "imagenet")
        for key, array in target.state_dict().items():
            assert torch.equal(array, state[key]), key
        path.unlink(missing_ok=True)  # the second time the copy serves
    assert (cache / path.name).exists()


@pytest.mark.parametrize("case", ["wrong checksum", "404"])
def test_weights_that_cannot_be_fetched_are_one_line_with_address_and_folder(case, tiny_weights):
    path, _, cache = tiny_weights
    if case == "404":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(mtcd.UserError) as caught:
        mtcd.load_pretrained(mtcd.build_backbone("hrnet_tiny"), "hrnet_tiny", "imagenet")
    text = str(caught.value)
    assert "\n" not in text
    assert f"get {mtcd.HRNET_WEIGHTS}{path.name} by other means" in text
    assert f"put it into {cache}" in text
    assert "--pretrained none" in text
    assert ("404" if case == "404" else "invalid hash value") in text
    assert not (cache / path.name).exists()


def test_published_weights_have_the_benchmarks_addresses():
    addresses = {}
    for name, variant in mtcd.HRNETS.items():
        if variant.weights:
            addresses[name] = mtcd.HRNET_WEIGHTS + variant.weights
    mirror = "https://download.openmmlab.com/pretrain/third_party/hrnetv2_w"
    assert addresses == {
        "hrnet18s": f"{mirror}18_small-b5a04e21.pth",
        "hrnet18": f"{mirror}18-00eb2006.pth",
        "hrnet32": f"{mirror}32-dc9eeb4f.pth",
        "hrnet48": f"{mirror}48-d2186c55.pth",
    }
    for name in ("hrnet_tiny", "an encoder of one's own"):
        with pytest.raises(mtcd.UserError, match=f"{name} has no ImageNet weights"):
            mtcd.download_weights(name)
    with pytest.raises(mtcd.UserError, match="hrnet_tiny has no ImageNet weights"):
        mtcd.load_pretrained(mtcd.build_backbone("hrnet_tiny"), "hrnet_tiny", "imagenet")


# ---------------------------------------------------------------------------------------- 7. model
@pytest.mark.parametrize("size", [(107, 75), (33, 5), (1, 9), (64, 96)])
@pytest.mark.parametrize("name", ["hrnet18s", "resnet18"])
@torch.no_grad()
def test_network_takes_any_size(name, size):
    tasks = {"semseg": 4, "depth": 1, "normal": 3}
    net = mtcd.MultiTaskNet(tasks, name).eval()
    x = torch.randn(2, 3, *size)
    maps = net.backbone(x)
    assert len(maps) == 4
    for level, (m, channels) in enumerate(zip(maps, net.backbone.channels)):
        stride = 4 * 2**level
        assert m.shape == (2, channels, math.ceil(size[0] / stride), math.ceil(size[1] / stride))
    for feature in net.features(x).values():
        assert feature.shape == (2, net.channels, math.ceil(size[0] / 4), math.ceil(size[1] / 4))
    shapes = {task: tuple(p.shape) for task, p in net(x).items()}
    assert shapes == {task: (2, channels, *size) for task, channels in tasks.items()}


def test_heads_have_the_protocols_width():
    net = mtcd.MultiTaskNet({"depth": 1}, "hrnet18s")
    assert net.channels == (18 + 36 + 72 + 144) // 4
    assert all(isinstance(lateral, nn.Identity) for lateral in net.laterals)
    with torch.device("meta"):
        widest = mtcd.MultiTaskNet({"depth": 1}, "hrnet48")
        wider = mtcd.MultiTaskNet({"depth": 1}, Pyramid([48, 96, 192, 385]))
    assert widest.channels == (48 + 96 + 192 + 384) // 4
    assert wider.channels == 4 * 128 // 4


class Pyramid(nn.Module):
    """An encoder of one's own: averages at strides 4, 8 ..., as many channels as asked for."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels
        self.mixers = nn.ModuleList(nn.Conv2d(3, width, 1) for width in channels)

    def forward(self, x):
        return [mix(F.avg_pool2d(x, 4 << i)) for i, mix in enumerate(self.mixers)]


def test_a_network_takes_an_encoder_of_ones_own():
    net = mtcd.MultiTaskNet({"depth": 1, "semseg": 5}, Pyramid([8, 12, 20]))
    assert net.channels == 10
    predictions = net(torch.randn(1, 3, 32, 48))
    assert predictions["semseg"].shape == (1, 5, 32, 48)
    predictions["depth"].sum().backward()
    assert net.backbone.mixers[2].weight.grad.any()


class TimmFeatures(nn.Module):
    """README's example: any feature extractor of timm."""

    def __init__(self, name):
        super().__init__()
        timm = pytest.importorskip("timm")
        self.net = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4))
        self.channels = self.net.feature_info.channels()

    def forward(self, x):
        return self.net(x)


def test_a_run_with_timms_efficientnet_lite0_trains_and_its_network_loads(toy_file, tmp_path):
    arguments = [str(a) for a in quick(toy_file, tmp_path, "--tasks", "semseg", "depth")]
    args = mtcd.build_parser().parse_args(arguments)
    args.backbone = "lite0"
    args.pretrained = "none"
    mtcd.run_training(args, CPU, backbone=TimmFeatures("tf_efficientnet_lite0"))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["backbone"] == "lite0"

    other = TimmFeatures("tf_efficientnet_lite0")
    net, _, _ = mtcd.load_network(tmp_path / "last.pt", CPU, other)
    saved = torch.load(tmp_path / "last.pt", weights_only=True)["model"]
    assert torch.equal(net.backbone.net.conv_stem.weight, saved["backbone.net.conv_stem.weight"])


def test_maps_of_all_strides_are_resized_bilinearly_so_a_slope_stays_a_slope():
    net = mtcd.MultiTaskNet({"depth": 1}, "hrnet_tiny")

    def slopes(_):
        maps = []
        for k in range(4):
            size = 64 >> k
            maps.append(2.0**k * torch.arange(size).expand(1, 1, size, -1))
        return maps

    net.backbone.forward = slopes
    net.heads = nn.ModuleDict({"depth": nn.Identity()})
    net.predictors = nn.ModuleDict({"depth": nn.Identity()})
    steps = net(torch.zeros(1, 3, 256, 256))["depth"][..., 20:-20].diff()  # the rims are flat
    assert steps.shape[1] == 4
    assert torch.allclose(steps, torch.tensor(0.25))


def test_postprocess_gives_labels_metres_unit_vectors_and_probabilities():
    x = torch.randn(2, 5, 3, 4)
    label = mtcd.postprocess("semseg", x)
    for b, i, j in np.ndindex(2, 3, 4):
        scores = x[b, :, i, j].tolist()
        assert scores.index(max(scores)) == label[b, i, j]

    depth = mtcd.postprocess("depth", x[:, :1])
    assert depth.min() == 0
    assert torch.equal(depth[depth > 0], x[:, :1][x[:, :1] > 0])

    normal = mtcd.postprocess("normal", x[:, :3])
    for b, i, j in np.ndindex(2, 3, 4):
        vector = x[b, :3, i, j]
        assert torch.allclose(normal[b, :, i, j] * math.hypot(*vector.tolist()), vector)

    for task in ("saliency", "boundary"):
        probability = mtcd.postprocess(task, x[:, :1])
        assert torch.allclose(probability, 1 / (1 + (-x[:, 0]).exp()))


# ------------------------------------------------------------------------------------- 8. training
WEIGHTS = {"semseg": 1, "parsing": 2, "saliency": 5, "depth": 1, "normal": 10, "boundary": 50}


def test_two_steps_equal_the_papers_formulas(toy_file, tmp_path):
    """The loss, SGD with momentum and decay, and the schedule, written out."""
    more = ("--iters", 2, "--seed", 3, "--lr", 0.05, "--contrast", 0.7)
    assert main(*quick(toy_file, tmp_path, "--tasks", *TASKS, *more)) == 0
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    tasks = saved["config"]["tasks"]

    torch.manual_seed(3)
    net = mtcd.MultiTaskNet(saved["config"]["channels"], "hrnet_tiny")
    contrast = mtcd.CrossTaskContrast(tasks, net.channels)
    parameters = [*net.parameters(), *contrast.parameters()]
    velocity = {}

    dataset = mtcd.DenseTasks(toy_file, "train", tasks, augment=True, seed=3)
    keys = list(itertools.islice(mtcd.endless_keys(10, 3, 0), 4))
    for iteration in (1, 2):
        samples = [dataset[key] for key in keys[2 * iteration - 2 : 2 * iteration]]
        images, labels = mtcd.to_device(default_collate(samples), CPU)
        torch.manual_seed(3 * 2**32 + iteration)
        features = net.features(images)
        loss = 0.7 * contrast(features, labels)
        for task, prediction in net.predict(features, (64, 96)).items():
            arguments = [prediction, labels[task]]
            if task == "boundary":
                arguments.append(0.8)
            loss = loss + WEIGHTS[task] * mtcd.TASKS[task].loss(*arguments)

        lr = 0.05 * (1 - (iteration - 1) / 2) ** 0.9
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        with torch.no_grad():
            for i, (parameter, gradient) in enumerate(zip(parameters, gradients)):
                if gradient is not None:  # of a projector that was not drawn there is none
                    step = gradient + 5e-4 * parameter
                    velocity[i] = step + 0.9 * velocity.get(i, 0)
                    parameter -= lr * velocity[i]

    for part, module in (("model", net), ("contrast", contrast)):
        for name, array in module.state_dict().items():
            assert torch.allclose(saved[part][name], array, rtol=1e-3, atol=1e-4), name


def test_a_runs_folder_is_as_readme_says(trained):
    names = {"config.json", "log.csv", "last.pt", "metrics.json", "preview.png"}
    assert set(os.listdir(trained)) == names
    text = (trained / "metrics.json").read_text()
    metrics = json.loads(text, parse_constant=pytest.fail)  # NaN is not JSON
    config = json.loads((trained / "config.json").read_text())
    assert sorted(metrics) == sorted(config["tasks"]) == sorted(TASKS)
    for task, values in metrics.items():
        assert list(values) == [METRICS[task]]
        assert 0 <= values[METRICS[task]] <= 180 or task == "depth"

    with (trained / "log.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    assert set(row) == {*TASKS, "iteration", "contrast", "share_of_chance", "lr", "images_per_s"}
    assert all(math.isfinite(float(value)) for value in row.values())
    assert row["iteration"] == "1"
    assert float(row["lr"]) == mtcd.PROTOCOLS["toy"].lr


def test_log_holds_the_means_since_the_row_before(toy_file, tmp_path, monkeypatch):
    """Every 10 iterations and at the end; the losses here are 1, 2, 3 ..."""
    number = itertools.count(1)

    def counting_loss(prediction, label):
        return 0 * prediction.sum() + next(number)

    row = dataclasses.replace(mtcd.TASKS["depth"], loss=counting_loss)
    monkeypatch.setitem(mtcd.TASKS, "depth", row)
    assert main(*quick(toy_file, tmp_path, "--iters", 24, "--lr", 0.01)) == 0
    log = np.genfromtxt(tmp_path / "log.csv", delimiter=",", names=True)
    iterations = log["iteration"].astype(int).tolist()
    assert {10, 20, 24} <= set(iterations)
    before = 0
    for iteration, mean in zip(iterations, log["depth"]):
        assert mean == pytest.approx((before + 1 + iteration) / 2)
        before = iteration
    expected = 0.01 * (1 - (log["iteration"] - 1) / 24) ** 0.9
    assert np.allclose(log["lr"], expected, rtol=1e-3)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--backbone", "resnet18", "--batch-size", 1),
        ("--contrast", 0),
        ("--amp", "--tasks", *TASKS),
    ],
)
def test_short_runs_of_other_settings_end_well(arguments, toy_file, tmp_path):
    assert main(*quick(toy_file, tmp_path, *arguments)) == 0
    values = json.loads((tmp_path / "metrics.json").read_text())["depth"]
    assert 0 < values["RMSE"] < 100
    (tmp_path / "last.pt").unlink()


@pytest.mark.parametrize(
    "dataset, shape, sizes",
    [
        ("nyud", (53, 70), [(53, 70)] * 3),
        ("pascal", (64, 64), [(64, 41), (47, 64), (33, 35)]),
    ],
)
def test_benchmark_files_train_and_evaluate(dataset, shape, sizes, tmp_path):
    tasks = mtcd.PROTOCOLS[dataset].tasks
    rng = np.random.default_rng(0)
    samples = [random_sample(rng, size, tasks) for size in sizes]
    if dataset == "pascal":
        samples[1]["parsing"][:] = 255  # nobody in this picture
    data = write_file(tmp_path / "x.h5", dataset, shape, {"train": samples, "val": samples})
    more = ("--dataset", dataset, "--backbone", "hrnet_tiny", "--tasks", *tasks)
    assert main(*quick(data, tmp_path / "run", *more)) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert list(metrics) == list(tasks)
    for task, values in metrics.items():
        assert 0 <= values[METRICS[task]] <= 180


def test_same_seed_gives_identical_results_another_seed_or_no_regulariser_others(
    toy_file, tmp_path
):
    texts = {}
    for name, *choice in (("a",), ("b",), ("c", "--seed", 1), ("d", "--contrast", 0)):
        more = ("--tasks", "semseg", "depth", "normal", "--iters", 2, *choice)
        assert main(*quick(toy_file, tmp_path / name, *more)) == 0
        texts[name] = (tmp_path / name / "metrics.json").read_text()
    assert texts["a"] == texts["b"]
    assert len({texts["a"], texts["c"], texts["d"]}) == 3


def test_regulariser_changes_neither_start_nor_batches_and_costs_nothing_after(toy_file, tmp_path):
    """At a learning rate of 1e-30 weights stay, and batch norm's statistics tell the batches."""
    states = []
    flops = []
    for weight in ("0", "1"):
        more = ("--tasks", *TASKS, "--contrast", weight, "--lr", 1e-30, "--iters", 3)
        assert main(*quick(toy_file, tmp_path / weight, *more)) == 0
        net, _, contrast = mtcd.load_network(tmp_path / weight / "last.pt", CPU)
        assert bool(contrast) == (weight == "1")
        states.append(net.state_dict())
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net.eval()(torch.randn(1, 3, 64, 96))
        flops.append(counter.get_total_flops())
    assert states[0].keys() == states[1].keys()
    for name, array in states[0].items():
        assert torch.allclose(array, states[1][name], rtol=1e-6, atol=1e-20), name
    assert flops[0] == flops[1] > 0
    log = np.genfromtxt(tmp_path / "1/log.csv", delimiter=",", names=True)
    assert log["contrast"][-1] > 0


def test_time_left_follows_from_the_mean_speed_of_the_run(toy_file, tmp_path, capsys, monkeypatch):
    """Tens of slow steps, 60 s, and of fast ones, 1 s, take turns."""
    clock = [0.0]
    ends = []
    step = torch.optim.SGD.step

    def now():
        clock[0] += 1e-3
        return clock[0]

    def slow_and_fast(self, *arguments):
        clock[0] += 60 if len(ends) // 10 % 2 == 0 else 1
        ends.append(clock[0])
        return step(self, *arguments)

    monkeypatch.setattr(mtcd.time, "monotonic", now)
    monkeypatch.setattr(torch.optim.SGD, "step", slow_and_fast)
    assert main(*quick(toy_file, tmp_path, "--iters", 60, "--batch-size", 1)) == 0
    out = capsys.readouterr().out
    told = re.findall(r"^ *(\d+)/60 .* (\d+):(\d\d):(\d\d)$", out, re.MULTILINE)
    assert len(told) >= 5
    for row in told:
        done, hours, minutes, seconds = map(int, row)
        left = 3600 * hours + 60 * minutes + seconds
        assert left == pytest.approx(ends[done - 1] / done * (60 - done), abs=1)


def test_lines_on_the_terminal_have_a_header_and_at_most_100_columns(capsys):
    run = SimpleNamespace(config={"iters": 40_000, "tasks": list(TASKS)}, lines=0)
    row = {**dict.fromkeys(TASKS, 12.34567), "contrast": 3.5, "share_of_chance": 0.9}
    row.update(lr=0.01, images_per_s=123.456)
    for iteration in range(39_001, 39_031):
        mtcd.SafeRun.print_row(run, iteration, row, 100_000)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 30 + 2
    assert lines[0] == lines[21]
    assert {len(line) for line in lines} == {len(lines[0])}
    assert len(lines[0]) <= 100
    assert lines[0].split()[:2] == ["iteration", "semseg"]
    assert lines[1].split()[:2] == ["39001/40000", "12.346"]
    assert lines[1].split()[-1] == "27:46:40"


def in_processes(world, job, folder, *arguments):
    """job(rank, world, folder, *arguments) in `world` connected processes, or in this one alone."""
    if world == 1:
        job(0, 1, folder, *arguments)
    else:
        everything = (world, job, folder, *arguments)
        mp.start_processes(connected, everything, world, start_method="fork")


def connected(rank, world, job, folder, *arguments):
    meeting = f"file://{folder}/meet{world}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    job(rank, world, folder, *arguments)
    dist.destroy_process_group()


def seeded_net(dataset):
    torch.manual_seed(3)
    channels = {}
    for task in dataset.tasks:
        channels[task] = mtcd.TASKS[task].channels or dataset.num_classes[task]
    return mtcd.MultiTaskNet(channels, "hrnet_tiny")


def save_gradients(rank, world, folder, path):
    """Of this process's share of a batch of 4, batch norm frozen."""
    dataset = mtcd.DenseTasks(path, "train", TASKS, augment=True)
    objective = mtcd.Objective(seeded_net(dataset), None, mtcd.PROTOCOLS["toy"]).eval()
    parallel = objective
    if world > 1:
        parallel = nn.parallel.DistributedDataParallel(objective)
    samples = [dataset[i] for i in range(rank, 4, world)]
    losses, _ = parallel(*mtcd.to_device(default_collate(samples), CPU))
    sum(WEIGHTS[task] * loss for task, loss in losses.items()).backward()
    if rank == 0:
        gradients = {name: p.grad for name, p in objective.named_parameters()}
        torch.save(gradients, f"{folder}/gradients{world}.pt")


def test_gradients_of_two_processes_are_those_of_one_on_the_whole_batch(toy_file, tmp_path):
    """Augmented: the shares have unequal numbers of valid pixels."""
    for world in (1, 2):
        in_processes(world, save_gradients, tmp_path, toy_file)
    one = torch.load(tmp_path / "gradients1.pt")
    two = torch.load(tmp_path / "gradients2.pt")
    for name, gradient in one.items():
        scale = max(1, gradient.abs().max())
        assert (two[name] - gradient).abs().max() <= 1e-5 * scale, name  # float32


def write_stdout_to(path):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), 1)


def test_two_processes_train_and_only_the_first_prints(toy_file, tmp_path, start):
    logs = [tmp_path / "0.txt", tmp_path / "1.txt"]
    before = [functools.partial(write_stdout_to, path) for path in logs]
    more = ("--tasks", "semseg", "depth", "normal", "--iters", 3, "--batch-size", 4)
    processes = start_two(start, *quick(toy_file, tmp_path / "run", *more), before=before)
    assert [end(process) for process in processes] == [(0, []), (0, [])]
    assert logs[0].read_text().count("RMSE") == 1
    assert logs[1].read_text() == ""
    assert (tmp_path / "run/metrics.json").exists()


# ----------------------------------------------------------------------------------- 9. evaluation
def test_reported_rmse_is_that_of_all_pixels_of_the_val_split_and_eval_repeats_it(
    toy_file, tmp_path, capsys
):
    """Five images, a batch of two: none may be missed or count twice."""
    assert main(*quick(toy_file, tmp_path, "--iters", 3)) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    net = mtcd.MultiTaskNet({"depth": 1}, "hrnet_tiny").eval()
    net.load_state_dict(torch.load(tmp_path / "last.pt", weights_only=True)["model"])
    with h5py.File(toy_file) as file, torch.inference_mode():
        image = (file["val/image"][:] / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        depth = net(torch.from_numpy(image).float().permute(0, 3, 1, 2))["depth"][:, 0]
        error = depth.double().numpy().clip(0) - file["val/depth"][:]
        expected = np.sqrt(np.mean(error**2))
    assert metrics["depth"]["RMSE"] == pytest.approx(expected, rel=1e-4)
    assert f"depth    RMSE {expected:7.4f} m" in capsys.readouterr().out

    out = tmp_path / "again"
    arguments = ("--eval", "--checkpoint", tmp_path / "last.pt", "--workers", 0, "--out", out)
    assert main(*arguments) == 0
    assert json.loads((out / "metrics.json").read_text()) == metrics


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("ruined", TASKS)
def test_predictions_that_are_not_finite_are_refused_by_task_and_image(ruined, value, toy_file):
    dataset = mtcd.DenseTasks(toy_file, "val", TASKS)
    net = seeded_net(dataset)
    forward = net.forward
    number = itertools.count()

    def third_ruined(image):
        predictions = forward(image)
        if next(number) == 2:
            predictions[ruined][0, -1, 7, 9] = value
        return predictions

    net.forward = third_ruined
    with pytest.raises(mtcd.UserError, match=f"{ruined} prediction of val image 2 "):
        mtcd.evaluate(net, dataset, CPU)


def save_figures(rank, world, folder, path):
    dataset = mtcd.DenseTasks(path, "val", TASKS)
    metrics, _ = mtcd.evaluate(seeded_net(dataset), dataset, CPU)
    if rank == 0:
        (folder / f"figures{world}.json").write_text(json.dumps(metrics))


def test_figures_do_not_depend_on_the_number_of_processes(toy_file, tmp_path):
    found = []
    for world in (1, 2, 3, 6):  # five images: unequal shares, and one process without any
        in_processes(world, save_figures, tmp_path, toy_file)
        metrics = json.loads((tmp_path / f"figures{world}.json").read_text())
        found.append({task: values[METRICS[task]] for task, values in metrics.items()})
    for others in found[1:]:
        assert others == pytest.approx(found[0], rel=1e-9)


def test_a_split_without_any_label_has_no_figures(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "0")  # as some schedulers do; without torchrun it means nothing
    sample = random_sample(np.random.default_rng(0), (64, 96))
    empty = {name: np.full_like(label, IGNORED[name]) for name, label in sample.items()}
    splits = {"train": [sample] * 2, "val": [{**empty, "image": sample["image"]}]}
    path = write_file(tmp_path / "t.h5", "toy", (64, 96), splits)
    assert main(*quick(path, tmp_path / "run", "--tasks", *TASKS)) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics == {task: {METRICS[task]: None} for task in metrics}
    assert set(metrics) == set(TASKS)
    assert "nan" not in capsys.readouterr().out


def test_figures_are_written_before_the_picture_that_may_fail(toy_file, tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("no picture")

    monkeypatch.setattr(mtcd, "draw_preview", fail)
    assert main(*quick(toy_file, tmp_path)) == 2
    assert json.loads((tmp_path / "metrics.json").read_text())["depth"]["RMSE"] > 0


# -------------------------------------------------------------------------------- 11. command line
@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--contrast", "-1"], r"--contrast: -1 is not a number of 0 or more; see --help"),
        (["--contrast", "x"], r"--contrast: x is not a number of 0 or more"),
        (["--iters", "0"], r"--iters: 0 is not a whole number of 1 or more"),
        (["--iters", "2.5"], r"--iters: 2.5 is not a whole number"),
        (["--batch-size", "0"], r"--batch-size: 0 is not a whole number of 1 or more"),
        (["--workers", "-1"], r"--workers: -1 is not a whole number of 0 or more"),
        (["--lr", "nan"], r"--lr: nan is not a number of 0 or more"),
        (["--lr", "inf"], r"--lr: inf is not"),
        (["--seed", "-1"], r"--seed: -1 is not a whole number of 0 or more, below 2147483648"),
        (["--seed", "2147483648"], r"--seed: 2147483648 is not a whole number .*below 2147483648"),
        (["--tasks", "colour"], "colour.*semseg"),
        (["--backbone", "vgg"], "vgg.*resnet18"),
        (["--frobnicate"], "frobnicate"),
        (["--device", "abacus"], "--device abacus cannot be used"),
        (["--device", "meta"], "meta.*only cpu and cuda"),
        (["--eval"], "--eval needs --checkpoint FILE"),
        (["--dataset", "nyud", "--tasks", "parsing"], "nyud has labels of semseg depth normal"),
        (
            ["--dataset", "nyud", "--targets", "parsing"],
            "--targets parsing: the tasks of this run are semseg depth normal boundary",
        ),
        (
            ["--tasks", "depth", "normal", "--targets", "depth", "semseg"],
            "--targets semseg: the tasks of this run are depth normal",
        ),
        (["--data", "{tmp}/nyud.h5"], "nyud.h5 is not there.*--dataset nyud"),
        (
            ["--eval", "--checkpoint", "{run}", "--dataset", "pascal"],
            "--dataset pascal: the checkpoint is of toy",
        ),
        (
            ["--dataset", "nyud", "--data", "{tmp}/none.h5"],
            r"none.h5 is not there.*data_prep.py nyud",
        ),
        (["--dataset", "pascal", "--data", "{toy}"], "toy.h5 holds toy, not pascal: --dataset toy"),
        (["--data", "{tmp}/text"], "text cannot be opened as a data file"),
        (["--data", "{toy}", "--pretrained", "{tmp}/none.pth"], r"none\.pth cannot be loaded"),
        (["--data", "{toy}", "--pretrained", "imagenet"], "hrnet_tiny has no ImageNet weights"),
        (["--eval", "--checkpoint", "{tmp}/none.pt"], r"none\.pt cannot be loaded as weights"),
        (
            ["--eval", "--checkpoint", "{run}", "--data", "{tmp}/no/x.h5", "--iters", "5"],
            "--iters has",
        ),
        (
            ["--eval", "--checkpoint", "{run}", "--tasks", "depth"],
            "--tasks has no effect with --eval",
        ),
        (["--eval", "--checkpoint", "{run}", "--resume"], "--resume has no effect with --eval"),
    ],
)
def test_bad_use_is_one_line_that_says_what_is_allowed(
    arguments, told, toy_file, trained, tmp_path, capsys
):
    (tmp_path / "text").write_text("not a file of ours")
    places = {"tmp": tmp_path, "toy": toy_file, "run": trained / "last.pt"}
    arguments = [argument.format(**places) for argument in arguments]
    assert main("--out", tmp_path / "run", "--data", toy_file, *arguments) == 2
    error = error_line(capsys)
    assert error.startswith("mtcd.py: ")
    assert re.search(told, error)
    assert {path.name for path in files(tmp_path)} <= {"text", "config.json"}


@pytest.mark.parametrize(
    "dataset, backbone, expected",
    [
        ("nyud", None, "imagenet"),
        ("pascal", None, "imagenet"),
        ("nyud", "resnet18", "imagenet"),
        ("nyud", "hrnet_tiny", "none"),
        ("toy", None, "none"),
        ("toy", "resnet18", "none"),
    ],
)
def test_benchmarks_start_from_imagenet_and_the_toy_from_nothing(
    dataset, backbone, expected, tmp_path
):
    sample = random_sample(np.random.default_rng(0), (20, 30))
    path = write_file(tmp_path / "x.h5", dataset, (20, 30), {"train": [sample], "val": [sample]})
    arguments = ["--dataset", dataset, "--data", str(path)]
    if backbone:
        arguments += ["--backbone", backbone]
    args = mtcd.build_parser().parse_args(arguments)
    config = mtcd.run_config(args)
    protocol = mtcd.PROTOCOLS[dataset]
    assert config["pretrained"] == expected
    assert config["tasks"] == list(protocol.tasks)
    assert config["backbone"] == (backbone or protocol.backbone)
    assert (config["iters"], config["lr"]) == (protocol.iters, protocol.lr)
    assert config["contrast"] == protocol.contrast
    assert config["targets"] == list(protocol.targets)
    assert config["size"] == [20, 30]
    assert args.out.startswith(f"runs/{dataset}-{config['backbone']}-contrast")


@pytest.mark.parametrize(
    "given, targets",
    [
        ([], ["depth", "normal", "boundary"]),  # NYUD-v2's
        (["--targets", "boundary", "semseg"], ["semseg", "boundary"]),
        (["--tasks", "semseg", "depth"], ["depth"]),
    ],
)
def test_targets_are_the_protocols_or_the_command_lines(given, targets, tmp_path):
    sample = random_sample(np.random.default_rng(0), (20, 30))
    path = write_file(tmp_path / "x.h5", "nyud", (20, 30), {"train": [sample], "val": [sample]})
    more = ["--backbone", "hrnet_tiny", "--data", str(path), *given]
    config = mtcd.run_config(mtcd.build_parser().parse_args(["--dataset", "nyud", *more]))
    objective, _, _ = mtcd.set_up(config, CPU)
    drawn = {name.split("_from_")[0] for name in objective.regulariser.projectors}
    assert sorted(drawn) == sorted(targets)
    sources = {name.split("_from_")[1] for name in objective.regulariser.projectors}
    assert sources <= set(config["tasks"])


def test_first_lines_of_a_run_say_what_is_trained_and_from_which_start(toy_file, tmp_path, capsys):
    torch.save(mtcd.build_backbone("hrnet_tiny").state_dict(), tmp_path / "w.pth")
    more = ("--pretrained", tmp_path / "w.pth", "--contrast", 0.5)
    assert main(*quick(toy_file, tmp_path / "run", *more)) == 0
    lines = capsys.readouterr().out.splitlines()
    start = f"pretrained: {tmp_path}/w.pth"
    assert lines[0] == f"hrnet_tiny, {start}; lambda 0.5; 1 iterations of 2 on cpu"
    assert lines[1] == f"depth -> {tmp_path}/run"
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["pretrained"] == str(tmp_path / "w.pth")


@pytest.mark.parametrize("given", [(), ("--contrast", "0")])
def test_what_to_type_next_is_the_other_arm_and_the_table_of_both(
    given, toy_file, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    short = ("--data", toy_file, "--iters", 1, "--batch-size", 2, "--workers", 0)
    assert main(*short, "--tasks", "depth", "semseg", *given) == 0
    lines = capsys.readouterr().out.splitlines()
    other, table = (shlex.split(line) for line in lines[-2:])
    assert other[:2] == ["python", "mtcd.py"]
    assert mtcd.main(other[2:]) == 0

    assert table[:3] == ["python", "-m", "extras.compare"]
    weights = []
    for folder in table[3:]:
        weights.append(json.loads(Path(folder, "config.json").read_text())["contrast"])
    assert weights == [0, mtcd.PROTOCOLS["toy"].contrast]  # the baseline first


def test_a_single_task_or_a_folder_of_ones_own_has_no_other_arm(
    toy_file, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    short = ("--data", toy_file, "--iters", 1, "--batch-size", 2, "--workers", 0)
    assert main(*short, "--tasks", "depth") == 0
    for named in (["--out", "mine"], ["--out=mine"]):
        assert main(*short, "--tasks", "depth", "semseg", *named) == 0
    assert "other arm" not in capsys.readouterr().out


@pytest.mark.parametrize("case", ["other data", "unfinished", "out"])
def test_eval_leaves_the_figures_of_the_run_alone(case, trained, tmp_path):
    home = Path(shutil.copytree(trained, tmp_path / "home"))
    config = json.loads((home / "config.json").read_text())
    more = ()
    data = config["data"]
    if case == "other data":
        data = str(tmp_path / "other.h5")
        data_prep.make_toy(data, train=1, val=2, height=64, width=96, seed=7)
        more = ("--data", data)
        folder = home / "eval-other-1"
    elif case == "out":
        folder = tmp_path / "elsewhere"
        more = ("--out", folder)
    else:
        saved = torch.load(home / "last.pt", weights_only=True)
        saved["config"]["iters"] = 9
        torch.save(saved, home / "last.pt")
        folder = home / "eval-toy-1"
    before = files(home)
    assert main("--eval", "--checkpoint", home / "last.pt", "--workers", 0, *more) == 0
    assert before.items() <= files(home).items()
    assert set(os.listdir(folder)) == {"config.json", "metrics.json", "preview.png"}
    written = json.loads((folder / "config.json").read_text())
    assert written["data"] == data
    figures = json.loads((folder / "metrics.json").read_text())
    same = figures == json.loads((trained / "metrics.json").read_text())
    assert same == (case != "other data")


def test_eval_of_a_finished_run_gives_its_figures_but_not_into_another_runs_folder(
    trained, tmp_path, capsys
):
    home = Path(shutil.copytree(trained, tmp_path / "home"))
    (home / "metrics.json").unlink()
    before = files(trained)
    assert main("--eval", "--checkpoint", home / "last.pt", "--out", trained) == 2
    assert "holds another run; choose another --out" in error_line(capsys)
    assert files(trained) == before
    assert main("--eval", "--checkpoint", home / "last.pt", "--workers", 0) == 0
    assert (home / "metrics.json").read_text() == (trained / "metrics.json").read_text()


def test_eval_refuses_data_of_other_classes(trained, toy_file, tmp_path, capsys):
    data = Path(shutil.copy(toy_file, tmp_path / "x.h5"))
    with h5py.File(data, "r+") as file:
        names = list(file.attrs["semseg_classes"])
        file.attrs["semseg_classes"] = names[::-1]
    assert main("--eval", "--checkpoint", trained / "last.pt", "--data", data) == 2
    assert "x.h5 (toy) has other classes than the network" in error_line(capsys)


def test_eval_takes_a_file_without_names_of_classes_that_are_fixed(trained, toy_file, tmp_path):
    """README asks for semseg_classes alone; data_prep.py writes those of the other tasks, too."""
    data = Path(shutil.copy(toy_file, tmp_path / "x.h5"))
    with h5py.File(data, "r+") as file:
        for task in ("parsing", "saliency", "boundary"):
            del file.attrs[f"{task}_classes"]
    home = Path(shutil.copytree(trained, tmp_path / "home"))
    more = ("--data", data, "--workers", 0, "--out", tmp_path / "again")
    assert main("--eval", "--checkpoint", home / "last.pt", *more) == 0
    figures = (tmp_path / "again/metrics.json").read_text()
    assert figures == (trained / "metrics.json").read_text()


def test_other_pictures_have_another_identity_also_without_checksums(tmp_path):
    rng = np.random.default_rng(0)
    identities = set()
    for name in ("a", "b"):
        splits = {split: [random_sample(rng, (64, 96))] * 3 for split in ("train", "val")}
        path = write_file(tmp_path / f"{name}.h5", "toy", (64, 96), splits)
        same = Path(shutil.copy(path, tmp_path / f"{name}-moved.h5"))
        found = {mtcd.DenseTasks(p, "val", TASKS).identity for p in (path, same)}
        assert len(found) == 1
        identities |= found
    assert len(identities) == 2


def test_missing_data_names_one_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("nyud", "pascal"):
        with pytest.raises(mtcd.UserError) as caught:
            mtcd.find_data(name, None)
        command = f"python data_prep.py {name} --download"
        assert str(caught.value) == f"data/{name}.h5 is not there; make it: {command}"
        with pytest.raises(mtcd.UserError, match=f"{command} --out else/x.h5$"):
            mtcd.find_data(name, "else/x.h5")


def test_a_missing_toy_file_is_rendered(tmp_path, monkeypatch):
    small = functools.partial(data_prep.make_toy, train=2, val=1, height=64, width=96)
    monkeypatch.setattr(data_prep, "make_toy", small)
    path = tmp_path / "new/toy.h5"
    assert main(*quick(path, tmp_path / "run")) == 0
    assert len(mtcd.DenseTasks(path, "train", ["depth"])) == 2


ALONE = """
import os, signal, sys
import mtcd

options = ["--device", "cpu", "--workers", "0"]
run = [*options, "--data", "data.h5", "--out", "run", "--batch-size", "2", "--iters", "3"]
counted = []
to_device = mtcd.to_device

def interrupted(*arguments):
    counted.append(1)
    if len(counted) == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return to_device(*arguments)

mtcd.to_device = interrupted
for arguments in (
    run,
    [*run, "--resume"],
    [*options, "--eval", "--checkpoint", "run/last.pt", "--out", "again"],
    [*options, "--data", "none.h5"],
):
    print("status", mtcd.main(arguments), flush=True)
"""


def test_the_file_runs_alone_and_says_what_is_missing(toy_file, tmp_path):
    """Copied into an empty folder beside a data file: it trains, resumes, evaluates."""
    shutil.copy(mtcd.__file__, tmp_path)
    shutil.copy(toy_file, tmp_path / "data.h5")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert re.findall(r"^status (\d)$", done.stdout, re.MULTILINE) == ["2", "0", "0", "2"]
    stopped, missing = done.stderr.splitlines()
    assert stopped == "mtcd.py: stopped; --resume goes on from iteration 2 of run"
    assert missing == "mtcd.py: none.h5 is not there, nor is data_prep.py, which renders it"
    assert done.stdout.count("no odsF: extras/odsf.py is not beside mtcd.py") == 2
    assert done.stdout.count("no preview.png: extras/pictures.py is not beside mtcd.py") == 2
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["boundary"] == {"odsF": None}
    assert metrics["depth"]["RMSE"] > 0
    assert json.loads((tmp_path / "again/metrics.json").read_text()) == metrics
    assert set(os.listdir(tmp_path / "again")) == {"config.json", "metrics.json"}
