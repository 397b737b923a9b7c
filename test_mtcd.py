# SPDX-License-Identifier: MIT
"""Tests of mtcd.py and data_prep.py against what does not depend on them; all data is made here."""
import io
import itertools
import json
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage, sparse, special
from scipy.io import savemat
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2

import data_prep
import mtcd
from docs import study
from mtcd import (
    THRESHOLDS,
    OdsF,
    count_boundaries,
    match_boundaries,
    non_maximum_suppression,
    thin,
)

# =====================================================================================================================
# mtcd.py against what does not depend on it: loops, closed forms, geometry, gradients, timm
# =====================================================================================================================
torch.set_num_threads(1)  # the networks here are tiny: threads would only wait for one another
TASKS = {"semseg": "mIoU", "parsing": "mIoU", "saliency": "maxF", "depth": "RMSE", "normal": "mErr", "boundary": "odsF"}
CLASSES = {"semseg": 21, "parsing": 7, "saliency": 2, "boundary": 2}
IGNORED = {**dict.fromkeys(CLASSES, 255), "depth": 0, "normal": 0, "image": 0}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def write_file(path, dataset, shape, splits, classes=40):
    """A data file by plain h5py: {split: [{"image": (h, w, 3), task: label}]}, padded as in INTERFACE.md."""
    with h5py.File(path, "w") as file:
        file.attrs.update(dataset=dataset, format=1, semseg_classes=[f"class {i}" for i in range(classes)])
        for split, samples in splits.items():
            group = file.create_group(split)
            group["size"] = np.array([sample["image"].shape[:2] for sample in samples], "i4")
            for name, first in samples[0].items():
                whole = np.full((len(samples), *shape, *first.shape[2:]), IGNORED[name],
                                {"depth": "f4", "normal": "f2"}.get(name, "u1"))
                for i, sample in enumerate(samples):
                    whole[(i, *map(slice, sample[name].shape[:2]))] = sample[name]
                group[name] = whole
    return path


def random_sample(rng, shape, tasks=TASKS):
    """Noise, every label ignored in one corner."""
    normal = rng.standard_normal((*shape, 3)) + (0, 0, -3)
    sample = {task: rng.integers(0, count, shape) for task, count in CLASSES.items()}
    sample |= {"depth": rng.uniform(1, 9, shape), "normal": normal / np.linalg.norm(normal, axis=2, keepdims=True)}
    for task in sample:
        sample[task][:5, :5] = IGNORED[task]
    return {"image": rng.integers(0, 256, (*shape, 3)), **{task: sample[task] for task in tasks}}


@pytest.fixture(scope="session")
def toy_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "toy.h5"
    data_prep.make_toy(path, train=10, val=5, height=64, width=96)
    return path


# ------------------------------------------------------------------------------------------------- CrossTaskContrast
def labels_of(task, shape):
    """Random labels (B, H, W) or (B, K, H, W), none ignored, in which pairs are positive, negative and neither."""
    if task == "normal":
        towards = torch.tensor([0, 0, -1.0])[:, None, None]
        return F.normalize(towards + 0.35 * torch.randn(shape[0], 3, *shape[1:]), dim=1)
    return torch.rand(shape)[:, None].mul(0.6).exp() if task == "depth" else torch.randint(min(CLASSES[task], 5), shape)


def relation(task, a, b):
    """What two pixels' labels, lists of floats, are to each other by PAPER.md's distances and thresholds."""
    if task == "depth":
        gap, near, far = abs(math.log(a[0] / b[0])), 0.05, 0.2
    elif task == "normal":
        cosine = sum(x * y for x, y in zip(a, b)) / math.hypot(*a) / math.hypot(*b)
        gap, near, far = math.degrees(math.acos(max(-1, min(1, cosine)))), 10, 30
    else:
        gap, near, far = float(a[0] != b[0]), 0, 1
    return "positive" if gap <= near else "negative" if gap >= far else "neither"


def at_centre(label, pixel, shape):
    """The label (list of floats) at the centre of pixel number `pixel` of a (B, C, h, w) map."""
    image, row, column = np.unravel_index(pixel, (shape[0], *shape[2:]))
    label = label if label.ndim == 4 else label[:, None]
    return label[image, :, math.floor((row + 0.5) / shape[2] * label.shape[2]),
                 math.floor((column + 0.5) / shape[3] * label.shape[3])].tolist()


class Recorder(mtcd.CrossTaskContrast):
    def pair_loss(self, target, source, *maps):
        self.calls.append((target, source))
        return super().pair_loss(target, source, *maps)


def test_sources_are_drawn_before_all_else_so_processes_with_other_images_agree():
    tasks, drawn = ["semseg", "depth", "normal", "boundary"], []
    contrast = Recorder(tasks, 8)
    for seed in range(20):
        for valid in (3, 6):  # another number of valid pixels takes another number of draws
            contrast.calls, labels = [], {task: labels_of(task, (1, 6, 7)) for task in tasks}
            for task in tasks:
                labels[task][..., valid:, :] = IGNORED[task]
            torch.manual_seed(seed)
            contrast({task: torch.ones(1, 8, 6, 7) for task in tasks}, labels)
            drawn.append(contrast.calls)
    assert drawn[::2] == drawn[1::2] and len({str(calls) for calls in drawn}) > 10


def spy(contrast):
    """Records each call of `triplets`: projected, label, pixel, anchor, positive, negative, all as lists."""
    seen, original = [], contrast.triplets

    def triplets(projected, label, pixel, criterion):
        out = original(projected, label, pixel, criterion)
        seen.append([tensor.tolist() for tensor in (projected, label, pixel, *out)])
        return out
    contrast.triplets = triplets
    return seen


def pair(source, shape=(2, 6, 7, 9), **choices):
    """A float64 regulariser of one target under one source, its record, the target's features, the source's labels."""
    contrast = mtcd.CrossTaskContrast(["albedo", source], shape[1], **{"samples": 50, "dim": 5, **choices},
                                      criteria={"albedo": mtcd.CRITERIA["semseg"]}).double()
    feature = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    return contrast, spy(contrast), {"albedo": feature}, {source: labels_of(source, (shape[0], *shape[2:]))}


@pytest.mark.parametrize("source", TASKS)
def test_loss_equals_plain_loops_over_the_sampled_triplets_and_each_meets_the_criterion(source):
    contrast, seen, features, labels = pair(source)
    loss, feature = contrast(features, labels), features["albedo"]
    _, _, pixel, *triplets = seen[0]
    projected = contrast.projectors[f"albedo_from_{source}"](feature.permute(0, 2, 3, 1)).view(-1, 5)  # of all
    row = [[x / math.hypot(*r) for x in r] for r in projected.tolist()]
    label, total = [at_centre(labels[source], i, feature.shape) for i in pixel], 0
    for a, p, n in zip(*triplets):
        assert relation(source, label[a], label[p]) == "positive" and pixel[a] != pixel[p]
        assert relation(source, label[a], label[n]) == "negative"
        total += max(0, math.dist(row[pixel[a]], row[pixel[p]]) - math.dist(row[pixel[a]], row[pixel[n]]) + 0.3)
    assert loss.item() == pytest.approx(total / len(triplets[0]), abs=1e-5) and len(set(pixel)) == 50
    for a, own in enumerate(label):  # every sampled pixel that has both is an anchor
        relations = {relation(source, own, other) for i, other in enumerate(label) if i != a}
        assert (a in triplets[0]) == ({"positive", "negative"} <= relations)


@pytest.mark.parametrize("mining", ["random", "semi-hard", "hardest"])
@pytest.mark.parametrize("source", ["semseg", "normal"])
def test_mining_takes_the_negative_that_brute_force_takes(source, mining):
    contrast, seen, features, labels = pair(source, mining=mining, samples=40)
    best_taken, places, choices = set(), set(), set()
    for _ in range(60):
        contrast(features, labels)
        projected, label, _, *triplets = seen.pop()
        for a, p, n in zip(*triplets):
            d = [math.dist(projected[a], other) for other in projected]
            kinds = [relation(source, label[a], other) if i != a else "itself" for i, other in enumerate(label)]
            positives, negatives = ([i for i, kind in enumerate(kinds) if kind == k] for k in ("positive", "negative"))
            beyond, best = [d[i] for i in negatives if d[i] > d[p]], min(d[i] for i in negatives)
            if mining == "semi-hard":
                best = min(beyond) if beyond else max(d[i] for i in negatives)
            best_taken.add(d[n] == pytest.approx(best, abs=1e-6))
            places.add(negatives.index(n) / len(negatives))
            choices.add(positives.index(p) / len(positives))
    assert best_taken == ({True, False} if mining == "random" else {True})
    for found in (places, choices):  # neither depends on the order of the sample
        assert min(found) < 0.05 and max(found) > 0.85 and len(found) > 20


@pytest.mark.parametrize("angle", [0, 10, 16, 17.5, 60, 180])
def test_loss_of_two_clusters_is_the_margin_minus_their_distance(angle):
    """Unit vectors `angle` degrees apart are 2 sin(angle / 2) apart, which is the margin, 0.3, at 17.25 degrees."""
    contrast, _, _, labels = pair("boundary", (2, 3, 8, 8), dim=3)
    contrast.projectors["albedo_from_boundary"] = nn.Sequential(nn.Linear(3, 3, bias=False)).double()
    nn.init.eye_(contrast.projectors["albedo_from_boundary"][0].weight)
    turn = math.radians(angle) * labels["boundary"].double()
    feature = torch.stack([turn.cos(), turn.sin(), 0 * turn], 1) * (1 + torch.rand_like(turn)[:, None])  # any length
    loss = contrast({"albedo": feature.requires_grad_()}, labels)
    loss.backward()
    assert loss.item() == pytest.approx(max(0, 0.3 - 2 * math.sin(math.radians(angle) / 2)), abs=1e-5)
    assert feature.grad.isfinite().all()


NOTHING = {
    "one class": ("semseg", torch.full((2, 6, 6), 3)), "each class once": ("semseg", torch.arange(36).view(1, 6, 6)),
    "all ignored": ("semseg", torch.full((2, 6, 6), 255)), "no depth": ("depth", torch.zeros(2, 1, 6, 6)),
    "nan and infinity": ("depth", torch.tensor([math.nan, math.inf, -math.inf]).repeat(2, 24).view(2, 1, 6, 12)),
    "no normals": ("normal", torch.zeros(2, 3, 6, 6)), "one depth": ("depth", torch.full((2, 1, 6, 6), 2.0)),
    "neither near nor far": ("depth", torch.tensor([1.0, 1.1]).view(1, 1, 1, 2)),
    "one pixel": ("semseg", torch.zeros(1, 1, 1).long()), "no image": ("semseg", torch.zeros(0, 6, 6).long()),
    "one valid pixel": ("semseg", torch.tensor([[[1, 255], [255, 255]]])),
    "a single task": ("saliency", torch.arange(72).view(2, 6, 6) % 2)}  # own labels are no source


@pytest.mark.parametrize("case", NOTHING)
@pytest.mark.parametrize("mining", ["random", "semi-hard", "hardest"])
def test_without_a_valid_triplet_the_loss_is_exactly_zero_and_gradients_are_finite(case, mining):
    source, label = NOTHING[case]
    contrast = mtcd.CrossTaskContrast(dict.fromkeys(["saliency", source]), 4, mining=mining)
    feature = torch.randn(len(label), 4, *label.shape[-2:], requires_grad=True)
    loss = contrast({"saliency": feature}, {source: label})
    loss.backward()
    assert loss.item() == 0 and not feature.grad.any()  # nan would be any()
    assert not any(p.grad.any() for p in contrast.parameters() if p.grad is not None)


def test_every_source_is_drawn_uniformly_never_the_target_and_independently_of_the_other_targets():
    tasks, calls, drawn = ["semseg", "depth", "normal", "boundary"], 3000, []
    contrast, maps = mtcd.CrossTaskContrast(tasks, 4), {task: torch.zeros(1, 4, 2, 2) for task in tasks}
    contrast.pair_loss = lambda target, source, *_: drawn.append((target, source)) or torch.zeros(())
    for _ in range(calls):
        contrast(maps, maps)
    drawn = [dict(drawn[i : i + 4]) for i in range(0, len(drawn), 4)]
    assert len(drawn) == calls and all(list(call) == tasks for call in drawn)
    for target, other in itertools.permutations(tasks, 2):  # counts within 5 standard deviations
        for a, b in itertools.product(tasks, tasks):
            count = sum((call[target], call[other]) == (a, b) for call in drawn)
            assert count == 0 if a == target or b == other else abs(count - calls / 9) < 5 * math.sqrt(calls * 8 / 81)


def test_gradients_reach_the_targets_features_and_the_drawn_projectors_only():
    tasks = ["semseg", "depth", "normal"]
    contrast = mtcd.CrossTaskContrast(tasks, 4)
    original, labels = contrast.pair_loss, {task: labels_of(task, (2, 8, 8)) for task in tasks}
    contrast.pair_loss = lambda target, source, *rest: drawn.append(f"{target}_from_{source}") or original(
        target, source, *rest)
    assert len(contrast.projectors) == 6  # one for every ordered pair
    for _ in range(8):
        drawn, features = [], {task: torch.randn(2, 4, 8, 8, requires_grad=True) for task in tasks}
        contrast.zero_grad()
        contrast({task: features[task] for task in ("semseg", "depth")}, labels).backward()
        assert features["normal"].grad is None and all(features[task].grad.any() for task in ("semseg", "depth"))
        reached = {name for name, p in contrast.projectors.named_parameters() if p.grad is not None and p.grad.any()}
        assert len(drawn) == 2 and {name.split(".")[0] for name in reached} == set(drawn)


@pytest.mark.parametrize("source", ["semseg", "depth", "normal"])
def test_gradients_equal_numerical_ones_and_the_generator_state_decides_the_loss(source):
    contrast, _, features, labels = pair(source, (2, 3, 5, 6), dim=3, samples=24)
    names = [name for name, _ in contrast.named_parameters() if f"albedo_from_{source}" in name]

    def loss(feature, *weights, seed=1):
        torch.manual_seed(seed)
        return torch.func.functional_call(contrast, dict(zip(names, weights)), ({"albedo": feature}, labels))
    arguments = features["albedo"], *[contrast.get_parameter(name).detach().requires_grad_() for name in names]
    assert loss(*arguments) == loss(*arguments) != loss(*arguments, seed=2)
    assert torch.autograd.gradcheck(loss, arguments)


def test_autocast_channels_last_and_half_precision_features_change_rounding_only():
    contrast = mtcd.CrossTaskContrast(["semseg", "depth"], 8)
    feature, labels = torch.randn(2, 8, 12, 12), {"semseg": labels_of("semseg", (2, 48, 48))}

    def loss(feature, autocast=False):
        torch.manual_seed(1)
        feature = feature.detach().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = contrast({"depth": feature}, labels)
        value.backward()
        assert feature.grad.isfinite().all() and feature.grad.any() and value.dtype == torch.float32
        return value.item()
    assert loss(feature.to(memory_format=torch.channels_last)) == pytest.approx(loss(feature), rel=1e-6)
    assert loss(feature, autocast=True) == pytest.approx(loss(feature), rel=1e-6)  # projections stay in float32
    assert loss(feature.bfloat16(), autocast=True) == pytest.approx(loss(feature), rel=0.02)


@pytest.mark.parametrize("shape", [(28, 36), (27, 33), (7, 9), (5, 4), (1, 1), (14, 50)])
def test_labels_at_another_resolution_give_the_label_at_each_pixels_centre(shape):
    contrast, seen, features, _ = pair("semseg")
    labels = {"semseg": 1000 + torch.arange(2 * math.prod(shape)).view(2, *shape)}  # every label pixel its own class
    contrast(features, labels)
    _, label, pixel, *_ = seen[0]
    assert label == [at_centre(labels["semseg"], i, (2, 6, 7, 9)) for i in pixel] and len(pixel) == 50


@pytest.mark.parametrize("source, values", [("semseg", [255]), ("depth", [0, -1, math.nan, math.inf, -math.inf]),
                                            ("boundary", [255]), ("normal", [0, math.nan, math.inf])])
def test_ignored_pixels_never_take_part_whatever_their_labels_and_features(source, values):
    contrast, seen, features, labels = pair(source, (2, 6, 10, 10), samples=1000)
    ignored = torch.rand(2, 10, 10) < 0.6
    for i, (b, y, x) in enumerate(ignored.nonzero().tolist()):
        labels[source][b, ..., y, x] = values[i % len(values)]
    feature = torch.where(ignored[:, None], math.nan, features["albedo"].detach()).requires_grad_()
    loss = contrast({"albedo": feature}, labels)
    loss.backward()
    assert loss > 0 and feature.grad.isfinite().all()
    assert sorted(seen[0][2]) == (~ignored).flatten().nonzero().flatten().tolist()  # all others do


@pytest.mark.parametrize("size", [4, 32, 512])
def test_a_sample_of_a_map_of_any_size_is_all_that_is_projected_and_rare_classes_are_in_it(size):
    contrast, rows = mtcd.CrossTaskContrast(["depth", "boundary"], 4, samples=100), []
    seen, count = spy(contrast), 2 * size * size
    contrast.projectors["depth_from_boundary"].register_forward_hook(lambda module, x, y: rows.append(x[0].shape))
    labels = {"boundary": (torch.rand(2, size, size) < 0.03).long()}
    labels["depth"] = torch.where(labels["boundary"].bool(), 1.0, 5.0)[:, None]
    features = {task: torch.randn(2, 4, 1, 1).expand(2, 4, size, size) for task in labels}
    for _ in range(20):
        contrast(features, labels)
    assert set(rows) == {(min(100, count), 4)}
    if size > 4:
        pixels, classes, depths = (np.ravel([call[i] for call in seen if (call[1][0][0] in (0, 1) and max(
            call[1])[0] == 1) == classlike]) for i, classlike in ((2, True), (1, True), (1, False)))
        assert 0.3 < classes.mean() < 0.55 and np.mean(depths == 1) < 0.1  # continuous labels: as they come
        assert np.abs(np.histogram(pixels, 4, (0, count))[0] / len(pixels) - 0.25).max() < 0.06  # from everywhere


def test_unknown_tasks_and_mining_are_named_in_the_error_and_a_criterion_admits_a_new_task():
    with pytest.raises(ValueError, match="albedo"):
        mtcd.CrossTaskContrast(["depth", "albedo"], 4)
    with pytest.raises(ValueError, match="'easy'"):
        mtcd.CrossTaskContrast(["depth"], 4, mining="easy")
    grey = mtcd.Criterion(lambda a, b: (a - b).abs().sum(-1), 0.1, 0.5, lambda label: (label >= 0).all(-1))
    contrast = mtcd.CrossTaskContrast(["depth", "albedo"], 4, criteria={"albedo": grey})
    assert contrast({"depth": torch.randn(2, 4, 8, 8)}, {"albedo": torch.rand(2, 8, 8)}) > 0


def test_copy_block_runs_in_an_empty_namespace_and_trains_a_foreign_network():
    text = Path(mtcd.__file__).read_text().split("# >>> copy from here")[1].split("# <<< to here")[0]
    space = {"__name__": "notebook"}
    exec("import torch, torch.nn as nn, torch.nn.functional as F\n" + text, space)  # noqa: S102
    image, losses = torch.rand(4, 3, 32, 32), []
    labels = {"semseg": (image[:, 0] > 0.5).long(), "depth": 1 + 3 * image[:, 1:2]}
    encoder, heads = nn.Conv2d(3, 16, 3, padding=1), nn.ModuleDict({task: nn.Conv2d(16, 16, 1) for task in labels})
    contrast = space["CrossTaskContrast"](["semseg", "depth"], channels=16)
    optimiser = torch.optim.Adam([*encoder.parameters(), *heads.parameters(), *contrast.parameters()], 3e-3)
    for _ in range(60):
        shared = encoder(image).relu()
        losses.append(contrast({task: head(shared) for task, head in heads.items()}, labels))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


# -------------------------------------------------------------------------------------------------------------- data
SIZES = (64, 96), (50, 70), (64, 80), (40, 96)  # before padding to 64 x 96
PLANE = np.array([0.3, -0.5, -0.8]) / np.linalg.norm([0.3, -0.5, -0.8])  # a camera looks at a slope from 2 m


def wave(row, column):
    """A picture whose shift by a pixel shows; grey, so that a change of hue or saturation leaves it as it is."""
    return 128 + 30 * np.sin(2 * np.pi * column / 14) + 30 * np.sin(2 * np.pi * row / 14)


def coordinate_sample(height, width):
    """semseg: the column, parsing: the row, so each augmented pixel tells whence it came; depth, normal: a slope."""
    row, column = np.mgrid[:height, :width]
    rays = np.stack([(column - width / 2) / 80, (row - height / 2) / 80, np.ones((height, width))], 2)
    return {"image": np.repeat(wave(row, column)[..., None], 3, 2), "semseg": column, "parsing": row,
            "depth": -2 / (rays @ PLANE), "normal": np.broadcast_to(PLANE, (height, width, 3)),
            "saliency": column // 8 % 2, "boundary": row // 8 % 2}


@pytest.fixture(scope="session")
def augmented(tmp_path_factory):
    """200 augmented samples: the source's size, arrays, extent, source coordinates, two zooms, whether flipped."""
    path = tmp_path_factory.mktemp("data") / "coordinates.h5"
    write_file(path, "nyud", (64, 96), {"train": [coordinate_sample(*size) for size in SIZES]}, 96)
    dataset, samples = mtcd.DenseTasks(path, "train", TASKS, augment=True), []
    for key in range(200):
        sample = {name: tensor.numpy() for name, tensor in dataset[key].items()}
        high, wide = ((sample["semseg"] != 255).any(axis).sum() for axis in (1, 0))
        row, column = (sample[task][:high, :wide].astype(int) for task in ("parsing", "semseg"))
        across, down = np.polyfit(range(wide), column[0], 1)[0], np.polyfit(range(high), row[:, 0], 1)[0]
        zooms = 1 / abs(across), 1 / down, across < 0
        samples.append((SIZES[key % 4], sample, np.s_[:high, :wide], row, column, *zooms))
    return samples


def test_augmentation_moves_pads_and_crops_image_and_labels_together(augmented):
    likeness = []
    for size, sample, window, row, column, *_ in augmented:
        inside = np.zeros((64, 96), bool)
        inside[window] = True
        assert (row == row[:, :1]).all() and (column == column[:1]).all()
        assert row.max() < size[0] and column.max() < size[1]
        assert np.array_equal(sample["saliency"][window], column // 8 % 2)
        assert np.array_equal(sample["boundary"][window], row // 8 % 2)
        for task in TASKS:
            label = sample[task].reshape(64, 96, -1)
            assert ((label == IGNORED[task]).all(2) == ~inside).all()
        image = sample["image"].transpose(1, 2, 0)
        assert image.dtype == np.uint8 and (image[~inside] == (124, 116, 104)).all()  # ImageNet's mean
        likeness.append(np.corrcoef(image[window][..., 0].ravel(), wave(row, column).ravel())[0, 1])
    assert min(likeness) > 0.9 and np.mean(likeness) > 0.98  # nearest neighbours are off by up to half a pixel


def test_augmentation_scales_between_half_and_double_flips_half_and_crops_anywhere(augmented):
    across, down, flipped = np.array([sample[5:] for sample in augmented]).T
    assert down.min() > 0.47 and down.max() < 2.1 and across.min() < 0.6 and across.max() > 1.9
    assert np.allclose(across / down, 1, atol=0.06) and 70 < flipped.sum() < 130  # 4 standard deviations
    corners = {(row.min(), column.min()) for _, _, _, row, column, *_ in augmented}
    assert len(corners) > 60 and max(y for y, _ in corners) > 20 and max(x for _, x in corners) > 30


def assert_plane(sample, at):
    """1 / depth is linear in the coordinates, within nearest neighbours' rounding, and falls along the normal."""
    y, x = at.nonzero()
    normal, design = sample["normal"][at].astype(float), np.stack([x, y, np.ones(len(x))], 1)
    slope, *_ = np.linalg.lstsq(design, 1 / sample["depth"][at], rcond=None)
    size = np.hypot(*slope[:2])
    assert normal.std(0).max() < 2e-3 and np.std(design @ slope - 1 / sample["depth"][at]) < 0.6 * size
    assert slope[:2] @ normal.mean(0)[:2] < -0.98 * size * np.hypot(*normal.mean(0)[:2])


def test_augmented_slope_stays_a_slope_nearer_by_the_zoom_and_its_normal_turns_with_the_flip(augmented):
    for size, sample, window, row, column, zoom, _, flipped in augmented:
        ratio = coordinate_sample(*size)["depth"][row, column] / sample["depth"][window]
        assert np.ptp(ratio) < 1e-4 and ratio.mean() == pytest.approx(zoom, rel=0.05)
        assert np.abs(sample["normal"][window] - PLANE * (-1 if flipped else 1, 1, 1)).max() < 2e-3
        assert_plane(sample, sample["semseg"] != 255)


def test_floors_and_ceilings_of_augmented_rooms_stay_planes(toy_file):
    dataset, planes = mtcd.DenseTasks(toy_file, "train", ("semseg", "depth", "normal"), augment=True), 0
    for key, name in itertools.product(range(60), ("floor", "ceiling")):
        sample = {name: tensor.numpy() for name, tensor in dataset[key].items()}
        at = sample["semseg"] == dataset.classes["semseg"].index(name)
        if at.sum() > 300 and min(np.ptp(n) for n in at.nonzero()) > 20:
            assert_plane(sample, at)
            planes += 1
    assert planes > 15


def test_crop_avoids_three_quarters_of_one_class_where_it_can(tmp_path):
    image, column = np.zeros((64, 96, 3)), np.broadcast_to(np.arange(96), (64, 96))
    samples = [{"image": image, "semseg": (column > 66) + 0}, {"image": image, "semseg": 0 * column}]
    path = write_file(tmp_path / "x.h5", "nyud", (64, 96), {"train": samples})
    dataset, shares = mtcd.DenseTasks(path, "train", ["semseg"], augment=True), []
    for key in range(0, 600, 2):
        label = dataset[key]["semseg"].numpy()
        shares.append(np.bincount(label[label != 255]).max() / (label != 255).sum())
    assert np.mean(np.array(shares) > 0.77) < 0.06  # without the rule 0.4
    assert (dataset[1]["semseg"] == 0).any()  # one class only: no way out, and no endless search


@pytest.mark.parametrize("which, amount, oracle", [
    (0, 0.1, lambda image: v2.functional.adjust_brightness(image, 1.1)),
    (1, -0.4, lambda image: v2.functional.adjust_contrast(image, 0.6)),
    (2, 0.4, lambda image: v2.functional.adjust_saturation(image, 1.4)),
    (3, 2 * math.pi / 3, lambda image: v2.functional.adjust_hue(image, 1 / 3)),  # a third of a turn swaps the channels
    (3, -2 * math.pi / 3, lambda image: v2.functional.adjust_hue(image, -1 / 3)),
])
def test_each_photometric_change_equals_torchvisions(which, amount, oracle):
    class Draws:
        """A random generator that switches on one change alone."""
        calls = -1

        def uniform(self, low, high):
            self.calls += 1
            assert low == -high
            return amount

        def random(self):
            return 0.4 if self.calls == which else 0.6

    image = torch.randint(60, 180, (3, 20, 30), dtype=torch.uint8)
    image[:, :3] = 100  # grey
    changed = mtcd.distort(image, Draws())
    assert changed.dtype == torch.uint8 and (changed.int() - oracle(image).int()).abs().max() <= 1
    assert which == 0 or (changed[0, :3] == changed[1, :3]).all() and (which == 1 or (changed[:, :3] == 100).all())


def test_photometric_distortion_leaves_one_in_sixteen_and_clips():
    rng, image = np.random.default_rng(0), torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    changed = torch.stack([mtcd.distort(image, rng) for _ in range(800)])
    same = (changed == image).flatten(1).all(1)
    assert 30 <= same.sum() <= 75  # 50 expected, standard deviation 7
    bright = image.float() > 250
    assert (changed[:, bright] > 180).float().mean() > 0.8  # clipped at 255, not wrapped around to dark


def test_augmentation_depends_on_seed_and_key_alone(toy_file):
    def load(workers=0, seed=0, keys=range(20)):
        dataset = mtcd.DenseTasks(toy_file, "train", TASKS, augment=True, seed=seed)
        return list(DataLoader(dataset, 2, sampler=keys, num_workers=workers))
    one, state = load(), torch.get_rng_state()
    mtcd.DenseTasks(toy_file, "train", TASKS, augment=True)[3]
    assert torch.equal(torch.get_rng_state(), state)  # leaves the model's draws alone
    torch.manual_seed(2)
    for a, b, c, other in zip(one, load(workers=2), load(keys=range(19, -1, -1))[::-1], load(seed=1)):
        assert all(torch.equal(a[name], b[name]) and torch.equal(a[name], c[name].flip(0)) for name in a)
        assert not torch.equal(a["image"], other["image"])
    assert not torch.equal(one[0]["image"], one[5]["image"])  # the next epoch's


def test_without_augmentation_a_sample_is_the_file_and_padding_is_ignored(tmp_path):
    rng = np.random.default_rng(0)
    samples = [random_sample(rng, (20, 30)), random_sample(rng, (11, 17))]
    dataset = mtcd.DenseTasks(write_file(tmp_path / "x.h5", "toy", (20, 30), {"val": samples}), "val", TASKS)
    images, labels = mtcd.to_device(next(iter(DataLoader(dataset, 2))), torch.device("cpu"))
    assert images.shape == (2, 3, 20, 30) and images[1, :, 11:].abs().max() < 0.01  # 0: the mean colour
    for i, sample in enumerate(samples):
        window = *map(slice, sample["image"].shape[:2]),
        image = (sample["image"] / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        assert np.allclose(images[i].permute(1, 2, 0)[window], image, atol=1e-5)
        for task, label in labels.items():
            assert label.dtype == (torch.int64 if task in CLASSES else torch.float32)
            assert label.shape[1:] == {"depth": (1, 20, 30), "normal": (3, 20, 30)}.get(task, (20, 30))
            expected = np.full((20, 30, *sample[task].shape[2:]), IGNORED[task], float)
            expected[window] = sample[task]
            assert np.allclose(label[i].permute(1, 2, 0) if task == "normal" else label[i], expected, atol=1e-3)


@pytest.mark.parametrize("length, world", [(7, 1), (10, 1), (12, 2), (12, 4)])
def test_sampler_shuffles_every_epoch_resumes_anywhere_and_shares_a_batch_among_processes(length, world):
    def keys(count, start=0, rank=0, world=1, seed=5):
        return list(itertools.islice(mtcd.EndlessSampler(range(length), seed, start, rank, world), count))
    straight = keys(4 * length)
    epochs = [straight[i : i + length] for i in range(0, len(straight), length)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(e * length, (e + 1) * length)) for e in range(4)]
    orders = {tuple(key % length for key in epoch) for epoch in epochs + [keys(length, seed=6), range(length)]}
    assert len(orders) == 6
    for start in (0, 1, length - 1, length, 2 * length + 3):
        assert keys(length, start) == straight[start : start + length]
    shares = [keys(12, 0, rank, world) for rank in range(world)]  # batches of 3 a process
    for i in range(0, 12, 3):
        assert sorted(key for share in shares for key in share[i : i + 3]) == sorted(keys(3 * world, i * world))
    assert all(keys(9, 3, rank, world) == share[3:] for rank, share in enumerate(shares))


# ------------------------------------------------------------------------------------------- networks and task losses
@pytest.mark.parametrize("name, theirs", [
    ("hrnet18s", "hrnet_w18_small_v2"), ("hrnet18", "hrnet_w18"), ("hrnet32", "hrnet_w32"), ("hrnet48", "hrnet_w48"),
    ("resnet18", "resnet18"), ("resnet50", "resnet50")])
@torch.no_grad()
def test_backbone_equals_timms_or_torchvisions_for_the_same_weights(name, theirs):
    package = pytest.importorskip("timm" if name.startswith("hrnet") else "torchvision.models")
    reference = getattr(package, "create_model", getattr(package, "get_model", None))(theirs).double().eval()
    for m in reference.modules():
        if isinstance(m, nn.BatchNorm2d):  # as new, a swapped name would not show
            for tensor in (m.weight, m.running_var, m.bias, m.running_mean):
                tensor.uniform_(0.5, 1.5).sub_(0 if tensor is m.weight or tensor is m.running_var else 1)
    backbone, maps, state = mtcd.build_backbone(name).double().eval(), [], reference.state_dict()
    reference.incre_modules = None  # timm's classifier
    backbone.load_state_dict({key: state[key] for key in backbone.state_dict()})
    classifier = ("incre_modules.", "downsamp_modules.", "final_layer.", "classifier.", "fc.")
    assert all(key in backbone.state_dict() or key.startswith(classifier) for key in state)
    for layer in ("stage4",) if name.startswith("hrnet") else ("layer1", "layer2", "layer3", "layer4"):
        getattr(reference, layer).register_forward_hook(lambda m, x, y: maps.extend(y if type(y) is list else [y]))
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    getattr(reference, "forward_features", reference)(x)
    for a, b, channels in zip(backbone(x), maps, backbone.channels, strict=True):
        assert a.shape[1] == channels and b.std() > 0.01 and torch.allclose(a, b)


@pytest.mark.parametrize("size", [(107, 75), (33, 5), (1, 9), (64, 96)])
@pytest.mark.parametrize("name", ["hrnet18s", "resnet18"])
@torch.no_grad()
def test_network_takes_any_size(name, size):
    tasks = {"semseg": 4, "depth": 1, "normal": 3}
    net, x = mtcd.MultiTaskNet(tasks, name).eval(), torch.randn(2, 3, *size)
    sizes = [[math.ceil(n / stride) for n in size] for stride in (4, 8, 16, 32)]
    assert [list(m.shape) for m in net.backbone(x)] == [[2, c, *s] for c, s in zip(net.backbone.channels, sizes)]
    assert {f.shape for f in net.features(x).values()} == {(2, net.channels, *sizes[0])}
    assert {task: p.shape for task, p in net(x).items()} == {task: (2, k, *size) for task, k in tasks.items()}
    assert name != "hrnet18s" or net.channels == 270 // 4  # the protocol's


def plain_loss(task, prediction, label):
    """The protocol's loss by a loop over the pixels, nyud's weight of boundaries; short normals stay as they are."""
    losses, cells = [], list(np.ndindex(*prediction[:, 0].shape))
    valid = [label[cell].item() for cell in cells if task in CLASSES and label[cell] != 255]
    share = 0.8 if task == "boundary" else valid.count(0) / max(len(valid), 1)
    for b, i, j in cells:
        p, y = prediction[b, :, i, j].tolist(), label[b, ..., i, j].tolist()
        if task in ("semseg", "parsing") and y != 255:
            losses.append(math.log(sum(map(math.exp, p))) - p[y])
        if task in ("saliency", "boundary") and y != 255:
            losses.append(share * math.log(1 + math.exp(-p[0])) if y else (1 - share) * math.log(1 + math.exp(p[0])))
        if task == "depth" and y[0] > 0:
            losses.append(abs(p[0] - y[0]))
        if task == "normal" and any(y):
            losses.append(sum(abs(a / max(1, math.hypot(*p)) - b) for a, b in zip(p, y)))
    return sum(losses) / max(len(losses), 1)


@pytest.mark.parametrize("share", [0, 0.4, 1])
@pytest.mark.parametrize("task", TASKS)
def test_task_loss_equals_plain_loops_and_is_zero_where_all_is_ignored(task, share):
    label, mask = labels_of(task, (2, 4, 5)), torch.rand(2, 4, 5) < share
    prediction = torch.randn(2, {"semseg": 5, "parsing": 7, "normal": 3}.get(task, 1), 4, 5, requires_grad=True)
    label[mask if task in CLASSES else mask[:, None].expand_as(label)] = IGNORED[task]
    loss = mtcd.TASKS[task].loss(prediction, label, mtcd.BENCHMARKS["nyud"])
    loss.backward()
    assert loss.item() == pytest.approx(plain_loss(task, prediction.detach(), label), rel=1e-5)
    assert prediction.grad.isfinite().all() and not prediction.grad.abs().sum(1)[mask].any()
    assert (loss == 0) == (not prediction.grad.any()) == (share == 1)


def test_postprocess_gives_labels_metres_unit_vectors_and_probabilities():
    x = torch.randn(2, 5, 3, 4)
    label, depth, normal = (mtcd.postprocess(t, x[:, :k]) for t, k in (("semseg", 5), ("depth", 1), ("normal", 3)))
    assert all(x[b, :, i, j].tolist().index(x[b, :, i, j].max()) == label[b, i, j] for b, i, j in np.ndindex(2, 3, 4))
    assert depth.min() == 0 and torch.equal(depth[depth > 0], x[:, :1][x[:, :1] > 0])
    assert torch.allclose((normal**2).sum(1), torch.ones(2, 3, 4)) and ((normal * x[:, :3]).sum(1) > 0).all()
    assert torch.allclose(torch.linalg.cross(normal, x[:, :3], dim=1), torch.zeros(2, 3, 3, 4), atol=1e-6)
    for task in ("saliency", "boundary"):
        assert torch.allclose(mtcd.postprocess(task, x[:, :1]), 1 / (1 + (-x[:, 0]).exp()))


# ----------------------------------------------------------------------------------------------------------- metrics
def check_metric(metric, expected, batches, rel=1e-5):
    """The expected value, and exactly the same whatever the order and the batches."""
    values = []
    for order in (batches, batches[::-1], [(p[i : i + 1], y[i : i + 1]) for p, y in batches for i in range(len(p))]):
        m = metric()
        for prediction, label in order:
            m.update(prediction, label)
        values.append(m.compute())
    assert values[0] == pytest.approx(expected, rel=rel, abs=1e-5, nan_ok=True) and type(values[0]) is float
    assert len(set(values)) == 1 or math.isnan(expected)


def plain_miou(p, y):
    """Of 6 classes: 5 occurs nowhere and does not count, 4 is never predicted and does."""
    pairs = [(set(np.flatnonzero(p == k)), set(np.flatnonzero(y == k))) for k in range(6)]
    return np.mean([100 * len(a & b) / len(a | b) for a, b in pairs if a | b]) if len(y) else math.nan


def probabilities(shape, low, high):
    """Twentieths in float64, which tie with thresholds: of positives `low` to 20, of negatives 0 to `high`."""
    label = torch.randint(2, shape)
    return torch.where(label == 1, torch.randint(low, 21, shape), torch.randint(high + 1, shape)).double() / 20, label


def plain_max_f(p, y):
    scores = []
    for step in range(1, 20):
        hit, predicted = np.sum((p > step / 20) & (y == 1)), np.sum(p > step / 20)
        precision, recall = hit / max(predicted, 1), hit / max(np.sum(y == 1), 1)
        scores.append(100 * 1.3 * precision * recall / max(0.3 * precision + recall, 1e-9))
    return max(scores) if len(y) else math.nan


@pytest.mark.parametrize("ignored", [0, 0.3, 1])
@pytest.mark.parametrize("metric, plain, draw", [
    (lambda: mtcd.MeanIoU(6), plain_miou, lambda shape: (torch.randint(4, shape), torch.randint(5, shape))),
    (mtcd.MaxF, plain_max_f, lambda shape: probabilities(shape, 6, 13)),
    (mtcd.MaxF, plain_max_f, lambda shape: probabilities(shape, 20, 19)),  # best only beyond exactly 0.95
    (mtcd.RMSE, lambda p, y: np.sqrt(np.mean((np.maximum(p, 0) - y) ** 2)) if len(y) else math.nan,
     lambda shape: (3 * torch.randn(shape)[:, None], 1 + 5 * torch.rand(shape)[:, None]))])
def test_miou_maxf_and_rmse_equal_plain_counting(metric, plain, draw, ignored):
    batches = [draw((size, 6, 7)) for size in (1, 3, 2)]
    void = 0 if batches[0][1].ndim == 4 else 255
    for _, label in batches:
        label[torch.rand(label.shape) < ignored] = void
    p, y = (torch.cat([batch[side].flatten() for batch in batches]).double().numpy() for side in (0, 1))
    check_metric(metric, plain(p[y != void], y[y != void]), batches)


@pytest.mark.parametrize("angles", [[0], [180], [1e-3], [179.999], [90], [0, 180, 12.5, 77, 150]])
def test_mean_angular_error_equals_the_angles_that_the_vectors_were_turned_by(angles):
    rng, batches, turn = np.random.default_rng(0), [], np.radians(np.resize(angles, 40))[:, None]
    for _ in range(3):
        a, b, _ = np.linalg.qr(rng.standard_normal((40, 3, 3)))[0].transpose(1, 0, 2)  # orthonormal
        turned, label = (torch.from_numpy(v.T.reshape(1, 3, 5, 8)) for v in (np.cos(turn) * a + np.sin(turn) * b, a))
        batches.append((torch.cat([turned, turned]), torch.cat([label, 0 * label])))  # the second image is ignored
    check_metric(mtcd.MeanAngularError, np.mean(np.resize(angles, 40)), batches, rel=1e-7)


# ------------------------------------------------------------------------------------------------------ command line
def run(out, data, *arguments, tasks=TASKS, iters=1, batch=2):
    """mtcd.main in this process; the run folder must be as INTERFACE.md says -> metrics.json, model in last.pt."""
    assert mtcd.main([*map(str, ("--out", out, "--data", data, "--iters", iters, "--batch-size", batch, "--workers", 0,
                                 "--device", "cpu", "--tasks", *tasks, *arguments))]) == 0
    assert {p.name for p in out.iterdir()} == {"config.json", "log.csv", "last.pt", "metrics.json", "preview.png"}
    metrics = json.loads((out / "metrics.json").read_text(), parse_constant=pytest.fail)  # NaN is not JSON
    assert sorted(metrics) == sorted(tasks) == sorted(json.loads((out / "config.json").read_text())["tasks"])
    for task, values in metrics.items():
        value = values[TASKS[task]]
        assert type(value) is float and 0 <= value <= {"depth": 1e9, "normal": 180}.get(task, 100)
    head, *rows = (row.split(",") for row in (out / "log.csv").read_text().splitlines())
    assert rows and {"iteration", "lr", *tasks} <= set(head)
    assert all(math.isfinite(float(number)) for row in rows for number in row)
    return metrics, torch.load(out / "last.pt", weights_only=True)["model"]


@pytest.mark.parametrize("arguments", [("--backbone", "hrnet18"), ("--backbone", "hrnet32"), ("--backbone", "hrnet48"),
                                       ("--backbone", "resnet18"), ("--backbone", "resnet50"), ("--contrast", 0)])
def test_single_task_run_works_with_each_backbone_at_batch_size_one(toy_file, tmp_path, arguments):
    run(tmp_path, toy_file, *arguments, tasks=["depth"], batch=1)
    (tmp_path / "last.pt").unlink()  # up to 0.5 GB


def test_reported_rmse_is_that_of_all_pixels_of_the_val_split_and_eval_repeats_it(toy_file, tmp_path):
    """Five val images, a batch of two: none may be missed or count twice."""
    metrics, model = run(tmp_path, toy_file, tasks=["depth"], iters=3)
    net = mtcd.MultiTaskNet({"depth": 1}, "hrnet18s").eval()
    net.load_state_dict(model)
    with h5py.File(toy_file) as file, torch.inference_mode():
        image = (file["val/image"][:] / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        prediction = net(torch.from_numpy(image).float().permute(0, 3, 1, 2))["depth"][:, 0].double().numpy()
        expected = np.sqrt(np.mean((np.maximum(prediction, 0) - file["val/depth"][:]) ** 2))
    assert metrics["depth"]["RMSE"] == pytest.approx(expected, rel=1e-4)
    assert mtcd.main(["--eval", "--checkpoint", str(tmp_path / "last.pt"), "--device", "cpu", "--workers", "0",
                      "--out", str(tmp_path / "again")]) == 0
    assert json.loads((tmp_path / "again" / "metrics.json").read_text()) == metrics


def test_same_seed_gives_identical_results_another_seed_or_no_regulariser_others(toy_file, tmp_path):
    for name, *choice in (("a",), ("b",), ("c", "--seed", 1), ("d", "--contrast", 0)):
        run(tmp_path / name, toy_file, *choice, tasks=["semseg", "depth", "normal"], iters=2)
    a, b, c, d = ((tmp_path / name / "metrics.json").read_bytes() for name in "abcd")
    assert a == b and a != c and a != d


def test_regulariser_changes_neither_start_nor_batches_and_leaves_nothing_behind(toy_file, tmp_path):
    """With a learning rate of 1e-30 the weights stay as they start, and batch norm's statistics tell the batches."""
    states, flops, outputs, x = [], [], [], torch.randn(1, 3, 64, 96)
    for weight in "01":
        states.append(run(tmp_path / weight, toy_file, "--contrast", weight, "--lr", 1e-30, iters=3)[1])
        config = json.loads((tmp_path / weight / "config.json").read_text())
        net = mtcd.MultiTaskNet(config["channels"], "hrnet18s").eval()
        net.load_state_dict(states[-1])  # no more and no fewer parameters
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            outputs.append(torch.cat(list(net(x).values()), 1))
        flops.append(counter.get_total_flops())
    assert all(torch.allclose(states[0][key], states[1][key], rtol=1e-6, atol=1e-20) for key in states[0])
    assert flops[0] == flops[1] > 0 and torch.allclose(*outputs, atol=1e-6)
    head, row, *_ = ((line.split(",")) for line in (tmp_path / "1" / "log.csv").read_text().splitlines())
    assert float(row[head.index("contrast")]) > 0


@pytest.mark.parametrize("dataset, shape, sizes, tasks", [
    ("nyud", (53, 70), [(53, 70)] * 3, ("semseg", "depth", "normal", "boundary")),
    ("pascal", (64, 64), [(64, 41), (47, 64), (33, 35)], ("semseg", "parsing", "saliency", "normal", "boundary"))])
def test_benchmark_files_train_evaluate_and_write_a_run_folder(dataset, shape, sizes, tasks, tmp_path):
    rng = np.random.default_rng(0)
    samples = [random_sample(rng, size, tasks) for size in sizes]
    if dataset == "pascal":
        samples[1]["parsing"][:] = 255  # nobody in this picture
    data = write_file(tmp_path / "x.h5", dataset, shape, {"train": samples, "val": samples})
    run(tmp_path / "run", data, "--dataset", dataset, tasks=tasks, iters=2)


@pytest.mark.parametrize("arguments, told", [
    (["--dataset", "nyud", "--data", "{tmp}/none.h5"], r"none\.h5.*python data_prep\.py nyud"),
    (["--dataset", "pascal", "--data", "{toy}", "--iters", "1"], "toy.*pascal|pascal.*toy"),
    (["--data", "{tmp}/text"], "text"), (["--seed", "-1"], "-1"), (["--iters", "0"], "iters"),
    (["--dataset", "nyud", "--tasks", "parsing"], "parsing.*semseg depth normal boundary"),
    (["--tasks", "colour"], "colour.*semseg"), (["--backbone", "vgg"], "vgg.*resnet18"), (["--eval"], "--checkpoint"),
    (["--eval", "--checkpoint", "{tmp}/none.pt"], r"none\.pt"), (["--eval", "--checkpoint", "{tmp}/text"], "text"),
    (["--eval", "--checkpoint", "{tmp}/empty.pt"], r"empty\.pt"),
    (["--eval", "--checkpoint", "{tmp}/hollow.pt"], r"hollow\.pt"),
    (["--pretrained", "{tmp}/empty.pt", "--data", "{toy}"], r"empty\.pt"), (["--seed", "99999999999"], "99999999999"),
    (["--batch-size", "x"], "batch-size"), (["--lr", "-1"], "lr"), (["--device", "abacus"], "abacus")])
def test_bad_use_ends_with_one_line_and_status_two(arguments, told, toy_file, tmp_path, capsys):
    (tmp_path / "text").write_text("not a file of ours")
    torch.save({"iteration": 3}, tmp_path / "empty.pt")
    torch.save({"config": {}, "model": {}}, tmp_path / "hollow.pt")
    arguments = [argument.format(tmp=tmp_path, toy=toy_file) for argument in arguments]
    status = mtcd.main([*arguments, *([] if "--eval" in arguments else ["--out", str(tmp_path / "run")])])
    error = capsys.readouterr().err
    assert status == 2 and error.count("\n") == 1 and re.search(told, error) and "Traceback" not in error


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("wrong, told", [("label", "semseg label of train image.*40 class names"),
                                         ("names", "semseg_classes"), ("size", "batch-size")])
def test_a_wrong_data_file_ends_with_one_line(wrong, told, workers, tmp_path, capsys):
    rng, shape = np.random.default_rng(0), (32, 32) if wrong == "size" else (40, 64)
    samples = [random_sample(rng, shape, mtcd.BENCHMARKS["nyud"].tasks) for _ in range(2)]
    if wrong == "label":
        for sample in samples:
            sample["semseg"][20:, 20:] = 40
    path = write_file(tmp_path / "x.h5", "nyud", shape, {"train": samples, "val": samples})
    if wrong == "names":
        with h5py.File(path, "r+") as file:
            del file.attrs["semseg_classes"]
    assert mtcd.main(["--device", "cpu", "--dataset", "nyud", "--data", str(path), "--batch-size", "1", "--iters", "1",
                      "--workers", workers, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(told, error) and "Traceback" not in error


def test_metrics_equal_scikit_learn_on_random_data_with_ignored_pixels():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(5)
    label, guess = rng.integers(0, 6, (3, 20, 30)), rng.integers(0, 6, (3, 20, 30))
    label[rng.random(label.shape) < 0.2] = 255
    valid, miou, rmse, maxf = label != 255, mtcd.MeanIoU(6), mtcd.RMSE(), mtcd.MaxF()
    miou.update(torch.from_numpy(guess), torch.from_numpy(label))
    assert miou.compute() == pytest.approx(
        100 * metrics.jaccard_score(label[valid], guess[valid], average="macro"), abs=1e-9)
    depth, far = rng.uniform(1, 9, (2, 1, 20, 30)), rng.uniform(-1, 9, (2, 1, 20, 30))
    depth[rng.random(depth.shape) < 0.2] = 0
    rmse.update(torch.from_numpy(far), torch.from_numpy(depth))
    assert rmse.compute() == pytest.approx(
        metrics.mean_squared_error(depth[depth > 0], far[depth > 0].clip(0)) ** 0.5, abs=1e-5)
    salient = np.where(valid, label > 3, 255)
    probability = (rng.random(label.shape) + 0.5 * (label > 3)) / 1.5
    maxf.update(torch.from_numpy(probability), torch.from_numpy(salient))
    assert maxf.compute() == pytest.approx(max(
        100 * metrics.fbeta_score(salient[valid], probability[valid] > t / 20, beta=0.3**0.5) for t in range(1, 20)))


# =====================================================================================================================
# odsF
# =====================================================================================================================
def scene(seed, height=425, width=560):
    """A label made of the edges of overlapping discs and boxes, and a blurred, bent, incomplete, noisy guess at it."""
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:height, :width]
    instance = np.zeros((height, width), int)

    def bend(sigma):
        return ndimage.gaussian_filter(rng.normal(size=(height, width)), sigma)

    for k in range(1, 40):
        (b, a), (h, w) = rng.integers((height, width)), rng.integers(6, (height // 4, width // 4))
        box = (abs(y - b) < h) & (abs(x - a) < w)
        instance[box if k % 2 else (y - b) ** 2 / h**2 + (x - a) ** 2 / w**2 < 1] = k
    bent = ndimage.map_coordinates(instance, (y + 150 * bend(20), x + 150 * bend(20)), order=0, mode="nearest")
    label, guess = ((z != np.roll(z, 1, 0)) | (z != np.roll(z, 1, 1)) for z in (instance, bent))
    guess = guess * np.clip(0.7 + 30 * bend(15), 0.1, 1) + 0.7 * (rng.random((height, width)) < 0.002)
    guess = 4 * ndimage.gaussian_filter(guess, 1.5) + np.clip(bend(2), 0, None)
    return np.clip(guess, 0, 1), label.astype(np.int64)


def plain_guo_hall(mask):
    image, changed = np.pad(mask, 1).astype(int), True
    while changed:
        changed = False
        for second in (0, 1):
            gone = []
            for i, j in np.argwhere(image):
                p2, p3, p4 = image[i - 1, j], image[i - 1, j + 1], image[i, j + 1]
                p5, p6, p7 = image[i + 1, j + 1], image[i + 1, j], image[i + 1, j - 1]
                p8, p9 = image[i, j - 1], image[i - 1, j - 1]
                c = (not p2 and (p3 or p4)) + (not p4 and (p5 or p6))
                c += (not p6 and (p7 or p8)) + (not p8 and (p9 or p2))
                n = min((p9 | p2) + (p3 | p4) + (p5 | p6) + (p7 | p8), (p2 | p3) + (p4 | p5) + (p6 | p7) + (p8 | p9))
                m = ((p2 or p3 or not p5) and p4) if second else ((p6 or p7 or not p9) and p8)
                if c == 1 and 2 <= n <= 3 and not m:
                    gone.append((i, j))
            for i, j in gone:
                image[i, j], changed = 0, True
    return image[1:-1, 1:-1] > 0


def some_masks():
    rng = np.random.default_rng(0)
    for k in range(200):
        mask = rng.random(rng.integers(1, 36, 2)) < rng.random()
        yield ndimage.binary_dilation(mask, iterations=k % 3) if k % 2 else mask
    yield np.ones((31, 44), bool)
    for k in range(5):
        yield ndimage.binary_dilation(scene(k, 61, 83)[1], iterations=1 + k % 2)


def test_thin_equals_a_plain_loop():
    for mask in some_masks():
        assert np.array_equal(thin(mask), plain_guo_hall(mask))


def test_thin_equals_opencv_and_is_fast():
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2, "ximgproc"):
        pytest.skip("needs opencv-contrib")
    for mask in [*some_masks(), scene(1, 500, 500)[1] > 0, np.ones((500, 500), bool)]:
        oracle = cv2.ximgproc.thinning(np.pad(mask * np.uint8(255), 1), thinningType=cv2.ximgproc.THINNING_GUOHALL)
        start = time.process_time()
        assert np.array_equal(thin(mask), oracle[1:-1, 1:-1] > 0)
        assert time.process_time() - start < 2


def test_thin_treats_bits_apart():
    masks = np.random.default_rng(0).random((64, 40, 31)) < np.linspace(0.05, 0.95, 64)[:, None, None]
    packed = thin((masks.astype(np.uint64) << np.arange(64, dtype=np.uint64)[:, None, None]).sum(0, dtype=np.uint64))
    for k, mask in enumerate(masks):
        assert np.array_equal(packed >> np.uint64(k) & np.uint64(1), thin(mask))


def test_suppression_equals_a_plain_loop():
    for seed, (height, width) in enumerate([(33, 41), (12, 7), (4, 20), (1, 9)]):
        edge = np.round(ndimage.gaussian_filter(np.random.default_rng(seed).random((height, width)), 1) * 255) / 255
        expected = np.zeros_like(edge)
        if height > 1:
            kernel = np.array([1, 2, 3, 4, 5, 4, 3, 2, 1]) / 25
            smooth = ndimage.correlate1d(ndimage.correlate1d(edge, kernel, 0), kernel, 1)  # borders mirrored
            oy, ox = np.gradient(smooth)
            (oyy, oxy), oxx = np.gradient(oy), np.gradient(ox)[1]
            for y, x in np.ndindex(height, width):
                angle = np.arctan(oyy[y, x] * np.sign(-oxy[y, x]) / (oxx[y, x] + 1e-5)) % np.pi
                sides = np.array([[y], [x]]) + np.outer([np.sin(angle), np.cos(angle)], [-1, 1])
                sides = np.clip(sides, 0, [[height - 1.001], [width - 1.001]])
                sides = ndimage.map_coordinates(edge, sides, order=1)
                border = min(5, height // 2, width // 2)
                scale = [min(1, min(i, n - 1 - i) / border) for i, n in ((y, height), (x, width))]
                expected[y, x] = edge[y, x] * (1.01 * edge[y, x] >= sides).all() * scale[0] * scale[1]
        assert np.allclose(non_maximum_suppression(edge), expected, atol=1e-9)
    assert (expected == 0).all()


def exact(predicted, true, radius):
    a, b = np.argwhere(predicted), np.argwhere(true)
    near = ((a[:, None] - b) ** 2).sum(-1) <= radius**2
    return near[linear_sum_assignment(near, maximize=True)].sum()


def test_matching_is_maximum_on_small_maps():
    rng = np.random.default_rng(0)
    for k in range(125):  # four planes each: 500 maps
        shape, radius = rng.integers(1, 22, 2), rng.choice([0.5, 1, 1.5, 2, np.sqrt(5), 3, 4.3])
        true = rng.random(shape) < rng.choice([0.05, 0.2, 0.5, 1])
        masks = rng.random((4, *shape)) < rng.choice([0.02, 0.1, 0.3, 0.6, 1], 4)[:, None, None]
        if k % 3 == 0:  # dense blobs that overlap in part
            blob = ndimage.gaussian_filter(rng.random((5, *shape)), (0, 2, 2))
            true, masks = blob[0] > np.median(blob[0]), blob[1:] > np.median(blob[1:], axis=(1, 2), keepdims=True)
        planes = np.zeros((2, *shape), np.uint64)
        for (word, bit), mask in zip([(0, 0), (0, 63), (1, 1), (1, 36)], masks):
            planes[word] |= mask.astype(np.uint64) << np.uint64(bit)
        matched = match_boundaries(planes, true, radius)
        assert matched.sum() == matched[[0, 63, 65, 100]].sum()
        assert list(matched[[0, 63, 65, 100]]) == [exact(mask, true, radius) for mask in masks]


def exact_sparse(predicted, true, radius):
    """The same by scipy's sparse assignment; one column of its own per predicted pixel stands for 'unmatched'."""
    a, b = np.argwhere(predicted), np.argwhere(true)
    r = int(radius)
    index = np.full(np.add(true.shape, 2 * r), -1)
    index[tuple(b.T + r)] = np.arange(len(b))
    dy, dx = np.mgrid[-r : r + 1, -r : r + 1].reshape(2, -1)
    to = index[a[:, :1] + r + dy, a[:, 1:] + r + dx]
    row, k = np.nonzero((to >= 0) & (dy**2 + dx**2 <= radius**2))
    own = np.arange(len(a))
    cost = np.r_[np.ones(len(row)), np.full(len(a), 2.0)]
    graph = sparse.csr_array((cost, (np.r_[row, own], np.r_[to[row, k], len(b) + own])), (len(a), len(b) + len(a)))
    return (sparse.csgraph.min_weight_full_bipartite_matching(graph)[1] < len(b)).sum()


def test_whole_protocol_is_exact_on_large_maps():
    for seed in (0, 1):
        probability, label = scene(seed)
        counts = count_boundaries(probability, label, 0.011)
        assert counts[2, 0] > 3000
        ridges = non_maximum_suppression(np.round(probability * 255) / 255)
        for k in (5, 20, 40, 70, 99):
            predicted, true = thin(ridges > THRESHOLDS[k]), thin(label > 0)
            expected = exact_sparse(predicted, true, 0.011 * np.hypot(*label.shape)) if predicted.any() else 0
            assert list(counts[:, k]) == [expected, predicted.sum(), true.sum()]


def score(prediction, label, max_dist=0.05):
    metric = OdsF(max_dist)
    metric.update(torch.as_tensor(prediction, dtype=torch.float32)[None], torch.as_tensor(label).long()[None])
    return metric


def line(*columns, height=60, width=80):  # 0.05 of the diagonal is 5 pixels
    label = np.zeros((height, width))
    label[8:-8, list(columns)] = 1
    return label


def test_known_answers():
    for seed in range(5):
        label = scene(seed)[1]
        label[[0, -1]], label[:, [0, -1]] = 0, 0
        assert score(label, label, 0.0075).compute() == 100
    label = line(30)
    assert score(line(34), label).compute() == 100 and score(line(35), label).compute() == 100
    assert score(line(36), label).compute() == 0
    doubled = score(line(30, 34), label)
    matched, predicted, true = doubled.counts[:, 0].tolist()
    assert matched == true == predicted / 2 and doubled.compute() == pytest.approx(200 / 3)
    assert score(0.5 * label, label).best_threshold == 0.001
    unsure = score(0.3 * line(60) + 0.6 * label, label)
    assert unsure.compute() == 100 and 0.3 <= unsure.best_threshold <= 0.31
    rim = np.zeros((60, 80))
    rim[0] = 1
    assert score(rim, rim).compute() == 0  # documented: the outermost ring is never predicted


def test_empty_maps():
    nothing = np.zeros((60, 80))
    for prediction, label in [(nothing, nothing), (line(30), nothing), (nothing, line(30)), (line(30), nothing + 255)]:
        assert score(prediction, label).compute() == 0
    assert OdsF(0.01).compute() == 0
    metric = score(line(30), line(30))
    metric.update(torch.tensor(line(30)).float()[None], torch.zeros(1, 60, 80).long())
    assert metric.compute() == pytest.approx(200 / 3)  # a prediction on an empty label costs precision
    for bad in (nothing + 2, nothing - 0.1, nothing + np.nan):
        with pytest.raises(ValueError, match="sigmoid"):
            score(bad, nothing)


def test_ignored_pixels_and_padding():
    probability, label = scene(3, 90, 120)
    expected = score(probability, label).counts
    padded = np.pad(label, ((0, 35), (0, 80)), constant_values=255)
    assert torch.equal(score(np.pad(probability, ((0, 35), (0, 80)), constant_values=0.9), padded).counts, expected)
    label = line(30)
    label[:, 45:70] = 255
    assert score(line(30, 55), label).compute() == 100


def test_order_and_processes_do_not_matter():
    pairs = [scene(seed, 90, 120) for seed in range(6)]
    predictions, labels = (torch.tensor(np.stack(values)) for values in zip(*pairs))
    whole, parts, other = OdsF(0.02), OdsF(0.02), OdsF(0.02)
    whole.update(predictions, labels)
    parts.update(predictions[4:], labels[4:])
    other.update(predictions[:4].flip(0), labels[:4].flip(0))
    parts.counts += other.counts
    assert parts.counts.dtype == torch.int64 and torch.equal(whole.counts, parts.counts)
    assert whole.compute() == parts.compute() > 0


# =====================================================================================================================
# several processes, interruptions, checkpoints, pretrained weights
# =====================================================================================================================
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def command_line(*arguments):
    return [sys.executable, str(Path(mtcd.__file__)), "--device", "cpu", *map(str, arguments)]


def join(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet{world}", rank=rank, world_size=world)


def seeded_net(dataset):
    torch.manual_seed(3)
    channels = {task: mtcd.TASKS[task].channels or len(dataset.classes[task]) for task in dataset.tasks}
    return mtcd.MultiTaskNet(channels, "resnet18")


def gradients(rank, world, path, folder, augment):
    """One backward pass on this process's share of a batch of 4, BatchNorm frozen; rank 0 saves the gradients."""
    if world > 1:
        join(rank, world, folder)
    dataset = mtcd.DenseTasks(path, "train", mtcd.BENCHMARKS["toy"].tasks, augment)
    objective = mtcd.Objective(seeded_net(dataset), None, mtcd.BENCHMARKS["toy"]).eval()
    parallel = torch.nn.parallel.DistributedDataParallel(objective) if world > 1 else objective
    images, labels = mtcd.to_device(torch.utils.data.default_collate([dataset[i] for i in range(rank, 4, world)]),
                                    torch.device("cpu"))
    sum(mtcd.TASKS[task].weight * loss for task, loss in parallel(images, labels).items()).backward()
    if rank == 0:
        torch.save({name: p.grad for name, p in objective.named_parameters()}, f"{folder}/gradients{world}.pt")
    if world > 1:
        dist.destroy_process_group()


def test_gradients_of_two_processes_are_those_of_one_on_the_whole_batch(toy_file, tmp_path):
    gradients(0, 1, toy_file, tmp_path, True)  # augmented: the shares have unequal numbers of valid pixels
    mp.spawn(gradients, (2, toy_file, tmp_path, True), 2)
    one, two = (torch.load(tmp_path / f"gradients{n}.pt") for n in (1, 2))
    for name, gradient in one.items():
        assert (two[name] - gradient).abs().max() <= 1e-5 * max(1, gradient.abs().max()), name  # float32


def figures(rank, world, path, folder):
    if world > 1:
        join(rank, world, folder)
    dataset = mtcd.DenseTasks(path, "val", mtcd.BENCHMARKS["toy"].tasks)
    metrics = mtcd.evaluate(seeded_net(dataset), dataset, torch.device("cpu"))
    if rank == 0:
        (folder / f"figures{world}.json").write_text(json.dumps(metrics))
    if world > 1:
        dist.destroy_process_group()


def test_figures_do_not_depend_on_the_number_of_processes(toy_file, tmp_path):
    assert len(mtcd.DenseTasks(toy_file, "val", ["depth"])) % 2 and len(mtcd.DenseTasks(toy_file, "val", ["depth"])) % 3
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    figures(0, 1, toy_file, tmp_path)
    torch.set_num_threads(threads)
    for world in (2, 3):
        mp.spawn(figures, (world, toy_file, tmp_path), world)
        assert json.loads((tmp_path / f"figures{world}.json").read_text()) == \
            json.loads((tmp_path / "figures1.json").read_text())


def test_torchrun_trains_and_only_the_first_process_prints(toy_file, tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone",
         *command_line("--data", toy_file, "--iters", 3, "--batch-size", 4, "--backbone", "resnet18",
                  "--out", tmp_path / "r")[1:]],
        check=False, capture_output=True, text=True, env=ENV)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("semseg mIoU") == 1 and (tmp_path / "r/metrics.json").exists()


def test_a_signal_to_one_of_two_processes_stops_both_in_the_same_iteration(toy_file, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [subprocess.Popen(
        command_line("--data", toy_file, "--iters", 5000, "--batch-size", 4, "--backbone", "resnet18",
                     "--tasks", "depth", "--out", tmp_path), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env={**ENV, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": port}) for rank in "01"]
    while not (tmp_path / "log.csv").exists() and all(process.poll() is None for process in processes):
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    errors = [process.communicate(timeout=100)[1].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [2, 2], errors
    iteration = mtcd.load_weights(tmp_path / "last.pt", "iteration")["iteration"]
    assert all(f"holds iteration {iteration}," in lines[-1] for lines in errors), errors


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_at_random_and_resumed_ends_bit_for_bit_as_if_never_stopped(workers, toy_file, tmp_path):
    """MTCD_KILLS=20 makes it as long as one likes."""
    arguments = ("--data", toy_file, "--iters", 40, "--batch-size", 2, "--backbone", "resnet18",
                 "--tasks", "semseg", "depth", "--workers", workers)
    subprocess.run(command_line(*arguments, "--out", tmp_path / "whole"), check=True, env=ENV)
    rng, killed, kills = random.Random(workers), tmp_path / "killed", int(os.environ.get("MTCD_KILLS", "2"))
    while kills:
        process = subprocess.Popen(command_line(*arguments, "--out", killed, "--resume"), env=ENV,
                                   stdout=subprocess.PIPE, start_new_session=True)
        process.stdout.readline()  # the run has begun
        time.sleep(rng.uniform(0, 2))
        if process.poll() is not None:  # it ended before: begin the countdown again with what is there
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills -= 1
        if (killed / "last.pt").exists():
            assert mtcd.load_weights(killed / "last.pt", "config", "model")
    subprocess.run(command_line(*arguments, "--out", killed, "--resume"), check=True, env=ENV)
    one, other = (torch.load(folder / "last.pt") for folder in (tmp_path / "whole", killed))
    assert one["iteration"] == other["iteration"] == 40
    for part in ("model", "contrast"):
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part])
    assert (killed / "metrics.json").read_text() == (tmp_path / "whole/metrics.json").read_text()
    one, other = (np.genfromtxt(folder / "log.csv", delimiter=",", skip_header=1)
                  for folder in (tmp_path / "whole", killed))
    assert np.array_equal(one[:, :-1], other[:, :-1])  # all but the speed


def test_sigterm_saves_and_the_run_goes_on(toy_file, tmp_path):
    arguments = command_line("--data", toy_file, "--iters", 200, "--batch-size", 2, "--backbone", "resnet18",
                             "--out", tmp_path)
    process = subprocess.Popen(arguments, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "log.csv").exists():
        time.sleep(0.2)
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 2 and len(errors.splitlines()) == 1 and "--resume" in errors
    assert f"iteration {torch.load(tmp_path / 'last.pt')['iteration']}," in errors


def small(folder, toy_file, *more):
    return mtcd.main(["--device", "cpu", "--data", str(toy_file), "--iters", "1", "--batch-size", "1", "--backbone",
                      "resnet18", "--tasks", "depth", "--out", str(folder), *more])


def one_line(capsys, *words):
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and all(word in errors[0] for word in words), errors


def test_resume_refuses_another_run(toy_file, tmp_path, capsys):
    assert small(tmp_path, toy_file) == 0
    before = (tmp_path / "last.pt").read_bytes()
    capsys.readouterr()
    assert small(tmp_path, toy_file, "--resume", "--lr", "0.5", "--seed", "4") == 2
    one_line(capsys, "lr", "0.5", "seed")
    assert (tmp_path / "last.pt").read_bytes() == before


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("content", [b"", b"nonsense", "truncated", "bomb", "foreign"])
def test_a_bad_checkpoint_is_one_line_and_runs_nothing(content, toy_file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "last.pt"
    if content == "truncated":
        torch.save({"config": {}, "model": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:2000])
    elif content == "bomb":
        torch.save({"config": Bomb(), "model": {}}, path)
    elif content == "foreign":
        torch.save({"config": {"channels": {"depth": 1}, "backbone": "resnet18"}, "model": {"a": torch.ones(1)}}, path)
    else:
        path.write_bytes(content)
    for arguments in (["--eval"], ["--predict", "x.png"], ["--consistency"]):
        assert mtcd.main(["--device", "cpu", *arguments, "--checkpoint", str(path)]) == 2
        one_line(capsys, "last.pt")
    assert not Path("exploded").exists()


def test_a_full_disk_keeps_the_old_checkpoint(toy_file, tmp_path, capsys, monkeypatch):
    assert small(tmp_path, toy_file) == 0
    before = (tmp_path / "last.pt").read_bytes()
    capsys.readouterr()

    def full(state, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(mtcd.torch, "save", full)
    assert small(tmp_path, toy_file) == 2
    one_line(capsys, "last.pt", "No space left")
    assert (tmp_path / "last.pt").read_bytes() == before and not list(tmp_path.glob("*.part"))


def test_a_loss_that_is_not_finite_stops_the_run_by_name(toy_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mtcd, "depth_loss", lambda p, y: p.sum() * torch.nan)
    assert small(tmp_path, toy_file) == 2
    one_line(capsys, "depth", "iteration 1")
    assert not (tmp_path / "last.pt").exists()


@pytest.mark.parametrize("wrap", [lambda s: s,
                                  lambda s: {"state_dict": {f"module.backbone.{k}": v for k, v in s.items()}},
                                  lambda s: {f"module.{k}": v for k, v in s.items()} | {"head.weight": torch.ones(2)}])
def test_pretrained_weights_of_any_usual_shape_fill_the_backbone(wrap, tmp_path):
    torch.manual_seed(1)
    source, target = mtcd.build_backbone("resnet18"), mtcd.build_backbone("resnet18")
    torch.save(wrap(source.state_dict()), tmp_path / "w.pth")
    mtcd.load_pretrained(target, "resnet18", tmp_path / "w.pth")
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values()))


def test_timm_weights_fill_hrnet_and_another_width_does_not(tmp_path):
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("hrnet_w18_small_v2").state_dict(), tmp_path / "w.pth")
    mtcd.load_pretrained(mtcd.build_backbone("hrnet18s"), "hrnet18s", tmp_path / "w.pth")
    with pytest.raises(mtcd.UserError, match="does not fill"):
        mtcd.load_pretrained(mtcd.build_backbone("hrnet32"), "hrnet32", tmp_path / "w.pth")


# =====================================================================================================================
# --compare, --predict, --bench
# =====================================================================================================================
SETTINGS = {"dataset": "nyud", "data": "d.h5", "tasks": ["semseg", "depth"], "classes": {}, "channels": {},
            "size": [4, 4], "backbone": "hrnet18s", "pretrained": "none", "contrast": 0.0, "iters": 9, "batch_size": 8, "lr": 0.01}


def write_run(folder, miou=None, rmse=None, **changes):
    folder.mkdir(parents=True)
    metrics = {**({"semseg": {"mIoU": miou}} if miou else {}), **({"depth": {"RMSE": rmse}} if rmse else {})}
    (folder / "config.json").write_text(json.dumps({**SETTINGS, "tasks": list(metrics), "seed": 0, **changes}))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return str(folder)


def test_compare_averages_seeds_and_counts_delta_m_pair_by_pair(tmp_path, capsys):
    runs = [write_run(tmp_path / "base0", 40.0, 0.50), write_run(tmp_path / "base1", 50.0, 0.40, seed=1),
            write_run(tmp_path / "ours0", 44.0, 0.45, contrast=1.0),
            write_run(tmp_path / "ours1", 50.0, 0.38, contrast=1.0, seed=1)]
    assert mtcd.main(["--compare", *runs, "--markdown"]) == 0
    header, _, base, ours = capsys.readouterr().out.splitlines()
    assert "semseg mIoU [%] ↑" in header and "depth RMSE [m] ↓" in header and "Delta_m" in header
    assert "45.00 ± 7.07" in base and "0.4500 ± 0.0707" in base and "2 seeds" in base
    # gains: seed 0 (+10 %, +10 %) -> 10; seed 1 (0, +5 %) -> 2.5; mean 6.25, deviation 7.5 / sqrt(2)
    assert "**47.00 ± 4.24**" in ours and "**0.4150 ± 0.0495**" in ours and "6.25 ± 5.30" in ours
    # the mean plus or minus 12.706 (Student's t, one degree of freedom) * 5.30 / sqrt(2) = 47.65
    assert "95 % interval" in header and "-41.40 to +53.90" in ours and base.split("|")[-2].strip() == "-"
    assert mtcd.main(["--compare", runs[0], *runs[2:]]) == 0  # seed 1 has no partner: no interval
    assert capsys.readouterr().out.splitlines()[-1].endswith(" -")


def test_single_task_runs_make_one_baseline_row(tmp_path, capsys):
    runs = [write_run(tmp_path / "s", 40.0), write_run(tmp_path / "d", None, 0.5),
            write_run(tmp_path / "m", 38.0, 0.55)]
    assert mtcd.main(["--compare", *runs]) == 0
    _, single, multi = capsys.readouterr().out.splitlines()
    assert single.split() == ["single-task", "40.00", "0.5000", "0"]
    assert multi.split() == ["m", "38.00", "0.5500", "-7.50"]


def test_interval_is_students():
    for count in (2, 3, 8, 16, 21, 22, 40, 400):
        values = [*range(count)]
        half = special.stdtrit(count - 1, 0.975) * np.std(values, ddof=1) / count**0.5
        low, high = map(float, mtcd.interval(values).split(" to "))
        assert (high - low) / 2 == pytest.approx(half, rel=2e-3, abs=0.01)
        assert (high + low) / 2 == pytest.approx((count - 1) / 2, abs=0.01)


def test_runs_on_other_data_do_not_share_a_row(tmp_path, capsys):
    runs = [write_run(tmp_path / "a", 40.0), write_run(tmp_path / "b", 20.0, seed=1, data="other.h5")]
    assert mtcd.main(["--compare", *runs]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_run_begun_anew_leaves_no_figures_of_the_old_one(toy_file, tmp_path, capsys, monkeypatch):
    assert small(tmp_path, toy_file) == 0 and mtcd.main(["--compare", str(tmp_path)]) == 0
    monkeypatch.setattr(mtcd, "depth_loss", lambda p, y: p.sum() * torch.nan)
    assert small(tmp_path, toy_file) == 2
    assert mtcd.main(["--compare", str(tmp_path)]) == 2


def test_compare_names_what_is_not_a_run(tmp_path, capsys):
    assert mtcd.main(["--compare", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.fixture(scope="module")
def trained(toy_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert mtcd.main(["--device", "cpu", "--data", str(toy_file), "--iters", "1", "--batch-size", "1",
                      "--out", str(folder)]) == 0
    return folder


def test_eval_gives_the_figures_of_the_end_of_training(trained, tmp_path):
    checkpoint = str(trained / "last.pt")
    assert mtcd.main(["--device", "cpu", "--eval", "--checkpoint", checkpoint, "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text()) == json.loads((trained / "metrics.json").read_text())


@pytest.mark.parametrize("command", ["--eval", "--consistency"])
def test_a_checkpoint_is_never_evaluated_on_a_file_made_on_the_spot(command, trained, tmp_path, capsys):
    gone = tmp_path / "gone.h5"
    assert mtcd.main(["--device", "cpu", command, "--checkpoint", str(trained / "last.pt"), "--data", str(gone),
                      "--out", str(tmp_path)]) == 2
    one_line(capsys, "gone.h5", "data_prep.py toy --out")
    assert not gone.exists() and not (tmp_path / "metrics.json").exists()


def test_a_data_file_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert mtcd.main(["--device", "cpu", "--data", str(tmp_path / "file/toy.h5")]) == 2
    one_line(capsys, "toy.h5")


def test_any_picture_gives_a_panel_and_arrays_at_its_size(trained, tmp_path):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8))
    pictures = {"rgb.jpg": noise, "grey.png": noise.convert("L"), "alpha.png": noise.convert("RGBA"),
                "palette.png": noise.convert("P"), "tiny.png": noise.resize((1, 1)),
                "wide.png": noise.resize((900, 1)), "high.png": noise.resize((1, 900)),
                "deep.png": Image.fromarray(rng.integers(0, 65536, (50, 40)).astype(np.uint16)),
                "large.jpg": noise.resize((1400, 900)), "cmyk.jpg": noise.convert("CMYK")}
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
    turned = Image.Exif()
    turned[0x0112] = 6
    noise.save(tmp_path / "turned.jpg", exif=turned)
    sizes = {**{name: picture.size for name, picture in pictures.items()}, "turned.jpg": noise.size[::-1]}
    out = tmp_path / "out"
    assert mtcd.main(["--device", "cpu", "--predict", *(str(tmp_path / name) for name in sizes), "--checkpoint",
                      str(trained / "last.pt"), "--out", str(out)]) == 0
    for name, (width, height) in sizes.items():
        arrays = np.load(out / f"{name.split('.')[0]}.npz")
        assert set(arrays) == set(mtcd.BENCHMARKS["toy"].tasks)
        assert all(array.shape[:2] == (height, width) for array in arrays.values())
        assert arrays["normal"].shape[2:] == (3,) and abs(np.linalg.norm(arrays["normal"], axis=2) - 1).max() < 1e-3
        assert arrays["depth"].min() >= 0 and arrays["semseg"].max() < 14 and arrays["semseg"].dtype == np.uint8
        Image.open(out / f"{name.split('.')[0]}.png").verify()


def test_deep_pictures_keep_their_brightness_and_transparency_is_white(tmp_path):
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(tmp_path / "deep.png")
    assert np.asarray(mtcd.read_picture(tmp_path / "deep.png")).tolist() == np.full((4, 4, 3), 128).tolist()
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(mtcd.read_picture(tmp_path / "clear.png")).min() == 255


def test_unreadable_pictures_are_named_and_the_rest_is_done(trained, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("hello")
    Image.new("RGB", (40, 30)).save(tmp_path / "good.png")
    Image.new("RGB", (400, 300)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    bad = [tmp_path / name for name in ("empty.png", "text.jpg", "missing.png", "bomb.png")] + [tmp_path]
    assert mtcd.main(["--device", "cpu", "--predict", *map(str, bad), str(tmp_path / "good.png"), "--checkpoint",
                      str(trained / "last.pt"), "--out", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == len(bad) + 1 and all(str(path) in line for path, line in zip(bad, errors))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.npz", "good.png"]


def test_predictions_never_overwrite_their_input_or_each_other(trained, tmp_path):
    (tmp_path / "b").mkdir()
    for path in ("a.png", "b/a.png"):
        Image.new("RGB", (40, 30), "red").save(tmp_path / path)
    before = (tmp_path / "a.png").read_bytes()
    assert mtcd.main(["--device", "cpu", "--predict", str(tmp_path / "a.png"), str(tmp_path / "b/a.png"),
                      "--checkpoint", str(trained / "last.pt"), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "a.png").read_bytes() == before
    assert len(list(tmp_path.glob("*.npz"))) == 2


def test_foreign_network_script_trains_with_the_import_and_with_the_pasted_block(toy_file, tmp_path):
    root, block = Path(mtcd.__file__).parent, Path(mtcd.__file__).read_text()
    script = (root / "docs/foreign_network.py").read_text()
    assert len(script.splitlines()) < 40
    line = next(line for line in script.splitlines() if line.startswith("from mtcd import CrossTaskContrast"))
    pasted = script.replace(line, block.split("# >>> copy from here")[1].split("# <<< to here")[0])
    (tmp_path / "pasted.py").write_text(pasted)
    runs = [([sys.executable, "-m", "docs.foreign_network"], root), ([sys.executable, "pasted.py"], tmp_path)]
    printed = [subprocess.run([*command, str(toy_file), "20"], cwd=folder, check=True, capture_output=True, text=True,
                              env=ENV).stdout for command, folder in runs]
    first, last = (float(re.search(rf"{n}/20  tasks ([0-9.]+)", printed[0])[1]) for n in (10, 20))
    assert printed[0] == printed[1] and last < first


def test_consistency_is_100_where_features_are_the_labels_50_where_they_are_noise_and_ties_count_half(toy_file):
    dataset = mtcd.DenseTasks(toy_file, "val", ["semseg", "depth", "normal"])
    torch.manual_seed(0)

    class Labels(nn.Module):
        """Features: a one-hot class, the normal itself, and noise."""

        def features(self, images):
            batch = [dataset[next(keys)] for _ in images]
            semseg = torch.stack([F.one_hot(sample["semseg"].long(), 16).permute(2, 0, 1) for sample in batch])
            normal = torch.stack([sample["normal"].permute(2, 0, 1) for sample in batch])
            return {"semseg": semseg.float(), "depth": torch.randn(len(images), 16, *images.shape[2:]),
                    "normal": F.pad(normal.float(), (0, 0, 0, 0, 0, 13))}

    keys = iter(np.linspace(0, len(dataset) - 1, min(16, len(dataset))).astype(int).tolist())
    contrast = mtcd.CrossTaskContrast(dataset.tasks, 16, mining="random")
    plain, projected = mtcd.triplet_distances(
        Labels(), contrast, contrast.projectors, dataset, torch.device("cpu"), batches=2)
    assert set(plain) == set(itertools.product(dataset.tasks, repeat=2))
    assert set(projected) == set(itertools.permutations(dataset.tasks, 2))
    assert mtcd.closer(plain["semseg", "semseg"]) == 100 == mtcd.closer(plain["normal", "normal"])
    assert plain["semseg", "semseg"][0].max() < 1e-6 and (plain["semseg", "semseg"][1] - 2**0.5).abs().max() < 1e-6
    assert plain["normal", "normal"][0].max() < 2 * math.sin(math.radians(5)) + 1e-3  # within 10 degrees
    assert plain["normal", "normal"][1].min() > 2 * math.sin(math.radians(15)) - 1e-3  # beyond 30
    assert all(abs(mtcd.closer(plain["depth", source]) - 50) < 6 for source in dataset.tasks)
    assert mtcd.closer(torch.tensor([[1.0, 1, 1, 1], [2, 0, 1, 1]])) == 50
    assert math.isnan(mtcd.closer(torch.zeros(2, 0)))


def test_consistency_prints_a_table_and_draws_it(trained, tmp_path, capsys):
    command = ["--device", "cpu", "--consistency", "--checkpoint", str(trained / "last.pt"), "--out", str(tmp_path)]
    outputs = []
    for _ in range(2):
        assert mtcd.main(command) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    titles = ("features, random weights", "features  ", "projected features")
    assert [sum(line.startswith(title) for line in outputs[0].splitlines()) for title in titles] == [1, 1, 1]
    rows = [line.split() for line in outputs[0].splitlines() if line.startswith("  semseg")]
    assert len(rows) == 3 and all(len(row) == 1 + len(TASKS) for row in rows) and rows[2][1] == "-"
    picture = np.asarray(Image.open(tmp_path / "consistency.png").convert("RGB"))
    assert all((picture == colour).all(2).any() for colour in ((0, 0x72, 0xB2), (0xE6, 0x9F, 0)))


def test_legend_names_every_class_in_its_colour_and_clips_nothing():
    names = [f"a rather long name {i}" for i in range(40)]
    rows, bare = [[np.zeros((10, 20, 3), np.uint8)] * 3], 0
    plain = mtcd.panel(rows, [["x"] * 3], {})
    sheet = mtcd.panel(rows, [["x"] * 3], {"semseg": names, "saliency": ["no", "yes"]})
    assert sheet.width == plain.width and sheet.height > plain.height + 40
    pixels = np.asarray(sheet)[plain.height :]
    for colour in mtcd.class_colours(40):
        bare += not (pixels == colour).all(2).sum() >= 100  # a filled square
    assert bare == 0 and (pixels[:, -2:] == 255).all()


def test_consistency_of_another_regularisers_projectors_is_one_line(trained, tmp_path, capsys):
    checkpoint = torch.load(trained / "last.pt")
    checkpoint["contrast"] = {"projectors.albedo_from_depth.0.weight": torch.ones(1)}
    torch.save(checkpoint, tmp_path / "last.pt")
    assert mtcd.main(["--device", "cpu", "--consistency", "--checkpoint", str(tmp_path / "last.pt")]) == 2
    one_line(capsys, "last.pt", "regulariser")


def test_resume_goes_on_where_the_log_is_empty(toy_file, tmp_path):
    assert small(tmp_path, toy_file) == 0
    (tmp_path / "log.csv").write_text("")
    assert small(tmp_path, toy_file, "--resume") == 0


def test_bench_of_images_whose_deepest_map_is_one_value(tmp_path):
    data_prep.make_toy(tmp_path / "toy.h5", train=2, val=1, height=32, width=32)
    assert mtcd.main(["--device", "cpu", "--bench", "--data", str(tmp_path / "toy.h5"), "--tasks", "depth",
                      "--batch-size", "2", "--backbone", "resnet18"]) == 0


def test_bench_times_every_part(toy_file, capsys):
    assert mtcd.main(["--device", "cpu", "--bench", "--data", str(toy_file), "--tasks", "depth", "semseg",
                      "--batch-size", "1", "--backbone", "resnet18"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("loader", "lambda = 0", "regulariser", "inference", "RMSE of depth"))


def test_peak_memory_is_that_of_the_tensors_alive_together():
    kept = torch.ones(2**20)  # there before: does not count

    def job():
        first = kept * 2  # 4 MiB
        second = first + kept  # 8 MiB
        del first, second
        torch.ones(2**18).sum()  # 1 MiB, after the others are gone
    for _ in range(2):
        assert 2**23 <= mtcd.peak_memory(job, torch.device("cpu")) < 2**23 + 2**12


# ------------------------------------------------------------------------------------------------------- docs/study.py
def test_every_arm_of_the_study_is_what_it_says():
    tasks, forms = list(study.TASKS), study.variants()
    features = {task: torch.randn(2, 8, 6, 8, requires_grad=True) for task in tasks}
    labels = {task: labels_of(task, (2, 6, 8)) for task in tasks}
    arms = {arm.split(", ")[0] for tune in (True, False) for arm, _ in study.plan(tune)}
    assert arms == set(forms) | {"baseline", "ours", "single-task"}
    drawn = {}
    for name, form in forms.items():
        contrast, drawn[name] = form(tasks, 8), []
        pair_loss, triplets, batch = contrast.pair_loss, contrast.triplets, []

        def pair_spy(target, source, feature, label, name=name, pair_loss=pair_loss):
            drawn[name].append((target, source))
            return pair_loss(target, source, feature, label)

        def triplet_spy(projected, label, pixel, criterion, triplets=triplets, batch=batch):
            batch.append((projected.detach(), pixel))
            return triplets(projected, label, pixel, criterion)
        contrast.pair_loss, contrast.triplets = pair_spy, triplet_spy
        loss = contrast(features, labels)
        loss.backward()
        assert loss.isfinite() and loss > 0 and all(f.grad.any() for f in features.values())
        if name == "per image":
            assert len(batch) == 2 * len(tasks) and max(pixel.max() for _, pixel in batch) < 48
        if name == "no projector":
            rows = F.normalize(features[drawn[name][0][0]].detach().permute(0, 2, 3, 1).flatten(0, 2)[batch[0][1]], dim=1)
            assert torch.allclose(batch[0][0], rows, atol=1e-6)
            assert not any(parameter.requires_grad for parameter in contrast.parameters())
    assert sorted(drawn["all sources"]) == sorted(itertools.permutations(tasks, 2))
    assert drawn["own labels"] == [(task, task) for task in tasks]


def test_info_nce_of_the_study_equals_plain_loops():
    contrast = study.variants()["InfoNCE"](["semseg", "depth"], 8)
    points, label = F.normalize(torch.randn(9, 4), dim=1), torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 3])[:, None]
    found = contrast.triplet_loss(points, label, torch.arange(9), contrast.criteria["semseg"])
    losses = []
    for i in range(8):  # 3 occurs once: no positive
        e = [math.exp(torch.dot(points[i], points[j]).item() / 0.1) for j in range(9)]
        against = sum(e[j] for j in range(9) if label[j] != label[i])
        mine = [-math.log(e[j] / (e[j] + against)) for j in range(9) if label[j] == label[i] and j != i]
        losses.append(sum(mine) / len(mine))
    assert found.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_few_labels_hides_one_tasks_labels_of_all_but_some_training_images(toy_file, tmp_path):
    path = tmp_path / "rooms.h5"
    path.write_bytes(Path(toy_file).read_bytes())
    with h5py.File(study.few_labels(path, "depth", keep=2)) as few, h5py.File(toy_file) as full:
        kept = [np.array_equal(a, b) for a, b in zip(few["train/depth"], full["train/depth"])]
        assert sum(kept) == 2 and not any(few["train/depth"][i].any() for i, keep in enumerate(kept) if not keep)
        for name in [f"{split}/{array}" for split in ("train", "val") for array in full[split]]:
            assert name == "train/depth" or np.array_equal(few[name][:], full[name][:])


# =====================================================================================================================
# the rendered rooms, by geometry
# =====================================================================================================================
H, W, SEEDS = 96, 128, range(24)
CLASS = {name: i for i, name in enumerate(data_prep.TOY_CLASSES)}


@pytest.fixture(scope="module")
def rooms():
    return [data_prep.render_room(seed, H, W) for seed in SEEDS]


def points_of(room):
    """Camera-space points (H, W, 3) from depth and focal length: x right, y down, z forward."""
    h, w = room["depth"].shape
    x, y = np.meshgrid(np.arange(w) - (w - 1) / 2, np.arange(h) - (h - 1) / 2)
    return np.stack([x, y, np.full_like(x, room["focal"])], -1) * (room["depth"] / room["focal"])[..., None]


def normal_of(room):
    n = room["normal"].astype(float)
    return n / np.linalg.norm(n, axis=-1, keepdims=True)  # float16 is 1e-3 off unit length


def inner(room):
    """Pixels whose 3 x 3 neighbourhood has no boundary."""
    edge = np.pad(room["boundary"], 1, constant_values=1) > 0
    return ~np.any([edge[i:i + H, j:j + W] for i in range(3) for j in range(3)], axis=0)


def test_types_and_ranges(rooms):
    for room in rooms:
        assert room["image"].shape == (H, W, 3) and room["image"].dtype == np.uint8
        for task, values in (("semseg", range(len(data_prep.TOY_CLASSES))), ("saliency", (0, 1)), ("boundary", (0, 1)),
                             ("parsing", (0, 1, 2, 3, 4, 5, 6, 255))):
            assert room[task].shape == (H, W) and room[task].dtype == np.uint8 and np.isin(room[task], values).all()
        assert room["depth"].dtype == np.float32 and np.isfinite(room["depth"]).all() and (room["depth"] > 0.2).all()
        assert room["normal"].dtype == np.float16 and room["normal"].shape == (H, W, 3)
        assert abs(np.linalg.norm(room["normal"].astype(float), axis=-1) - 1).max() < 1e-3


def test_same_seed_same_room_and_another_seed_another():
    a, b, c = (data_prep.render_room(seed, 48, 64) for seed in ((7, 1), (7, 1), (7, 2)))
    assert all(np.array_equal(a[key], b[key]) for key in a) and not np.array_equal(a["depth"], c["depth"])


def test_a_scene_does_not_depend_on_the_size():
    small, large = data_prep.render_room(5, 32, 48), data_prep.render_room(5, 96, 144)  # every third centre is shared
    for key in ("semseg", "depth", "normal"):
        assert np.allclose(small[key], large[key][1::3, 1::3], atol=2e-3), key
    assert large["focal"] == pytest.approx(3 * small["focal"])


def test_normals_point_at_the_camera_and_the_floor_up(rooms):
    for room in rooms:
        normal, rays = normal_of(room), points_of(room)
        assert ((normal * rays).sum(-1) / np.linalg.norm(rays, axis=-1)).max() < 1e-3
        floor, ceiling = (room["semseg"] == CLASS[name] for name in ("floor", "ceiling"))
        assert normal[floor][:, 1].mean() < -0.7
        assert not ceiling.any() or normal[ceiling][:, 1].mean() > 0.7


def test_floors_are_planes_with_their_labelled_normal(rooms):
    for room in rooms:
        mask = room["semseg"] == CLASS["floor"]
        p = points_of(room)[mask]
        _, spread, axes = np.linalg.svd(p - p.mean(0), full_matrices=False)
        assert spread[2] / np.sqrt(len(p)) < 1e-5  # metres off the plane
        assert abs(abs(room["normal"][mask].astype(float) @ axes[2]) - 1).max() < 1e-3


def test_the_three_directions_of_a_room_are_perpendicular(rooms):
    for room in rooms:
        up, sides = (np.unique(normal_of(room)[room["semseg"] == CLASS[name]], axis=0) for name in ("floor", "wall"))
        assert len(up) == 1 and abs(sides @ up[0]).max() < 2e-3
        cosine = abs(sides @ sides.T)
        assert np.minimum(cosine, abs(cosine - 1)).max() < 2e-3


def test_balls_are_spheres_with_radial_normals(rooms):
    seen = 0
    for room in rooms:
        parts, count = ndimage.label((room["semseg"] == CLASS["ball"]) & inner(room))  # boundaries part the instances
        for mask in (parts == i + 1 for i in range(count)):
            if mask.sum() < 25:
                continue
            p = points_of(room)[mask]  # |p|^2 = 2 p c + (r^2 - |c|^2), linear in the unknown
            solution = np.linalg.lstsq(np.c_[2 * p, np.ones(len(p))], (p ** 2).sum(1), rcond=None)[0]
            centre, radius = solution[:3], np.sqrt(solution[3] + (solution[:3] ** 2).sum())
            assert 0.05 < radius < 0.6 and abs(np.linalg.norm(p - centre, axis=1) - radius).max() < 1e-4
            assert abs(normal_of(room)[mask] - (p - centre) / radius).max() < 2e-3
            seen += 1
    assert seen > 10


def test_normals_agree_with_finite_differences_of_the_points(rooms):
    errors = []
    for room in rooms:
        p = points_of(room)
        n = np.cross(np.gradient(p, axis=0), np.gradient(p, axis=1))
        n /= np.linalg.norm(n, axis=-1, keepdims=True)
        cosine = (n * normal_of(room)).sum(-1)[inner(room)]
        errors.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    errors = np.concatenate(errors)
    assert np.median(errors) < 0.1 and (errors < 5).mean() > 0.93  # the rest: edges inside an instance


def test_boundaries_lie_where_depth_class_or_direction_change(rooms):
    for room in rooms:
        s, b = room["semseg"], room["boundary"] > 0
        change = np.zeros((H, W), bool)
        change[:, :-1] |= s[:, :-1] != s[:, 1:]
        change[:-1] |= s[:-1] != s[1:]
        assert b[change].all()  # another class is another instance
        reason = change.copy()  # between two of one class: a jump or a fold
        for axis in (0, 1):
            jump = abs(np.diff(np.log(room["depth"]), axis=axis)) > 0.003
            fold = (np.diff(normal_of(room), axis=axis) ** 2).sum(-1) > 0.01
            reason |= np.pad(jump | fold, [(0, int(axis == i)) for i in (0, 1)])
        assert (b & ~reason).mean() < 0.002 and 0.01 < b.mean() < 0.2
        assert not (b[:-1, :-1] & b[1:, :-1] & b[:-1, 1:] & b[1:, 1:]).mean() > 0.03  # thin


def test_parts_are_of_figures_and_in_order(rooms):
    heights = []
    for room in rooms:
        person = room["semseg"] == CLASS["figure"]
        if not person.any():
            assert (room["parsing"] == 255).all()
            continue
        assert np.array_equal((room["parsing"] > 0), person) and room["parsing"].max() <= 6
        rows = [np.nonzero(room["parsing"] == part)[0] for part in (1, 2, 5, 6)]
        if person.sum() > 400 and min(map(len, rows)) > 30:
            heights.append([r.mean() for r in rows])
    assert len(heights) > 3 and (np.diff(np.mean(heights, 0)) > 0).all()  # head, torso, thighs, shins from the top


def test_salient_is_one_thing_that_stands_and_large_enough(rooms):
    assert sum(room["saliency"].any() for room in rooms) > len(rooms) / 2
    for room in rooms:
        mask = room["saliency"] > 0
        if mask.any():
            classes = np.unique(room["semseg"][mask])
            assert len(classes) == 1 and classes[0] >= CLASS["table"] and mask.mean() >= 0.01


def test_things_stand_on_the_floor(rooms):
    for room in rooms:
        floor = room["semseg"] == CLASS["floor"]
        up, p = room["normal"][floor].astype(float).mean(0), points_of(room)
        height = (p - p[floor].mean(0)) @ up
        assert height.min() > -5e-3
        for name in ("box", "cylinder", "table", "sofa", "figure"):
            mask = room["semseg"] == CLASS[name]
            assert not mask.any() or height[mask].max() < 2.6


def test_nothing_stands_between_the_camera_and_what_is_seen(rooms):
    """March along rays and ask each solid, by its definition, whether it holds the point."""
    for seed, room in list(zip(SEEDS, rooms))[:8]:
        geometry = np.random.SeedSequence(seed).spawn(3)[0]
        solids, (eye, axes, _), _ = data_prep.furnish(np.random.Generator(np.random.PCG64(geometry)))
        ends = points_of(room).reshape(-1, 3)[seed::61]
        steps = np.append(np.linspace(0.02, 0.999, 150), 1.0002)[:, None]
        points = eye + (ends[:, None] * steps) @ axes  # (rays, steps, 3)
        held = np.zeros(points.shape[:2], bool)
        for one in solids:
            q = abs((points - one["centre"]) @ one["axes"].T / one["size"])
            held |= {data_prep.PLANE: ((points - one["centre"]) @ one["axes"][1] < 0), data_prep.BOX: (q <= 1).all(-1),
                     data_prep.BALL: (q ** 2).sum(-1) <= 1,
                     data_prep.CYLINDER: (q[..., 1] <= 1) & (q[..., 0] ** 2 + q[..., 2] ** 2 <= 1)}[int(one["kind"])]
        assert not held[:, :-1].any() and held[:, -1].mean() > 0.99  # the rest graze


def test_salience_prefers_figures_and_needs_one_percent():
    instance, semseg, depth = np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8), np.full((20, 20), 2.0)
    for i, name, columns in ((1, "box", slice(6, 10)), (2, "figure", slice(12, 16))):
        instance[8:12, columns], semseg[8:12, columns] = i, CLASS[name]
    assert np.array_equal(data_prep.salient(instance, semseg, depth), instance == 2)
    instance[:] = 0
    assert not data_prep.salient(instance, instance, depth).any()
    instance[9, 9:12], semseg[:] = 1, 0
    semseg[9, 9:12] = CLASS["ball"]  # 3 of 400 pixels
    assert not data_prep.salient(instance, semseg, depth).any()


def test_colours_do_not_tell_the_class(rooms):
    """Mean colours of two classes over many rooms are closer than the spread of either."""
    mean = {}
    for name in ("wall", "floor", "box", "figure", "sofa"):
        masks = [room["semseg"] == CLASS[name] for room in rooms]
        mean[name] = np.array([room["image"][mask].mean(0) for room, mask in zip(rooms, masks) if mask.sum() > 50])
    for a in mean.values():
        for b in mean.values():
            assert np.linalg.norm(a.mean(0) - b.mean(0)) < 1.5 * np.linalg.norm(a.std(0) + b.std(0))


def test_every_class_and_depth_vary(rooms):
    for name, i in CLASS.items():
        assert np.mean([(room["semseg"] == i).any() for room in rooms]) > 0.2, name
    assert np.mean([room["depth"].std() for room in rooms]) > 0.8
    assert np.std([room["depth"].mean() for room in rooms]) > 0.3
    assert 0.4 < np.mean([(room["parsing"] != 255).any() for room in rooms]) < 0.9


# =====================================================================================================================
# data_prep.py on miniature folders in the official layouts
# =====================================================================================================================
FX, FY, CX, CY = 518.8579, 519.4696, 325.5824, 253.7362
ALL = np.s_[:]


# ------------------------------------------------------------------------------------------------ plain references
def guo_hall(mask):
    """Guo and Hall (1989), straight from the paper, one pixel at a time."""
    on, half, idle = set(map(tuple, np.argwhere(mask))), 0, 0
    while idle < 2:
        gone = set()
        for y, x in on:
            p2, p3, p4, p5, p6, p7, p8, p9 = ((y + dy, x + dx) in on for dy, dx in (
                (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)))
            c = (not p2 and (p3 or p4)) + (not p4 and (p5 or p6)) + (not p6 and (p7 or p8)) + (not p8 and (p9 or p2))
            n = min((p9 or p2) + (p3 or p4) + (p5 or p6) + (p7 or p8),
                    (p2 or p3) + (p4 or p5) + (p6 or p7) + (p8 or p9))
            m = ((p2 or p3 or not p5) and p4) if half else ((p6 or p7 or not p9) and p8)
            if c == 1 and 2 <= n <= 3 and not m:
                gone.add((y, x))
        on -= gone
        half, idle = 1 - half, 0 if gone else idle + 1
    out = np.zeros(mask.shape, np.uint8)
    for y, x in on:
        out[y, x] = 1
    return out


def laplacian(labels):
    """Where the 4-neighbour Laplacian, mirrored at the border without repeating the border pixel, is not 0."""
    h, w = labels.shape

    def at(y, x):
        return int(labels[2 * (h - 1) - y if y >= h else abs(y), 2 * (w - 1) - x if x >= w else abs(x)])

    return np.array([[at(y - 1, x) + at(y + 1, x) + at(y, x - 1) + at(y, x + 1) != 4 * at(y, x) for x in range(w)]
                     for y in range(h)])


def check_normals(stored, decoded, valid):
    """Unit vectors along `decoded` where `valid`, exactly 0 elsewhere."""
    assert stored.dtype == np.float16
    assert not stored[~valid].any()
    unit = decoded[valid] / np.linalg.norm(decoded[valid], axis=1, keepdims=True)
    assert np.abs(stored[valid].astype(float) - unit).max(initial=0) < 1e-3


def check_padding(group, i):
    """Nothing but the ignored value below and to the right of the sample; -> its (h, w) part of every array."""
    h, w = group["size"][i]
    for name in group.keys() - {"id", "size"}:
        a, ignored = group[name][i], 0 if name in ("image", "depth", "normal") else 255
        assert (a[h:] == ignored).all() and (a[:, w:] == ignored).all(), name
    return {name: group[name][i][:h, :w] for name in group.keys() - {"id", "size"}}


def save(path, array=None, mode=None, **options):
    """Array to path, whatever its extension; .mat takes the variable as a keyword."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".mat":
        savemat(path, options, do_compression=True)
    elif path.suffix == ".txt":
        path.write_bytes(array.encode())
    else:
        Image.fromarray(array, mode).save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))


def prep(*args):
    return data_prep.main([str(a) for a in args])


def fails(capfd, *args):
    """The run ends with status 2 and one line on stderr; -> that line."""
    assert prep(*args) == 2
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1 and "Traceback" not in err, err
    return err


# --------------------------------------------------------------------------------------------------- NYUD, packaged
VARIANTS = {kind: dict(zip(("images", "segmentation", "depth", "normals", "edge"), ends.split(" "))) for kind, ends in {
    "astmt": "jpg mat mat jpg png", "mti": "jpg png npy npy npy", "invpt": "png png npy png png"}.items()}


def write_nyud(root, kind="invpt", ids=("a1", "b2", "c3", "d4"), size=(37, 53), seed=0):
    """-> {id: the arrays as they were meant}."""
    rng, truth, ends = np.random.default_rng(seed), {}, VARIANTS[kind]
    for n, name in enumerate(ids):
        h, w = size[0] + 2 * n, size[1] - n
        t = {"image": rng.integers(0, 256, (h, w, 3), np.uint8), "segmentation": rng.integers(0, 41, (h, w), np.uint8),
             "depth": rng.uniform(.5, 9, (h, w)).astype(np.float32), "edge": (rng.random((h, w)) < .2).astype(np.uint8)}
        t["segmentation"][:2, :3] = 255
        t["depth"][0, :4] = 0, -1, np.nan, np.inf
        v = rng.normal(size=(h, w, 3))
        v /= np.linalg.norm(v, axis=-1, keepdims=True)
        v[h // 2:, w // 2:] = 0
        t["normals"] = v.astype(np.float32) if ends["normals"] == "npy" else np.floor((v + 1) * 127.5).astype(np.uint8)
        save(root / f"images/{name}.{ends['images']}", t["image"])
        save(root / f"segmentation/{name}.{ends['segmentation']}", t["segmentation"], segmentation=t["segmentation"])
        save(root / f"depth/{name}.{ends['depth']}", t["depth"], depth=t["depth"])
        save(root / f"normals/{name}.{ends['normals']}", t["normals"])
        save(root / f"edge/{name}.{ends['edge']}", t["edge"] * (255 if ends["edge"] == "png" else 1))
        truth[name] = t
    save(root / "gt_sets/train.txt", "".join(f"{n}\n" for n in ids[:-1]))
    save(root / "gt_sets/val.txt", f"{ids[-1]}\n")
    return truth


@pytest.mark.parametrize("kind", VARIANTS)
def test_nyud_packaged(tmp_path, kind, capfd):
    root = tmp_path / ("NYUDv2" if kind == "invpt" else "NYUD_MT")
    truth = write_nyud(root, kind)
    assert prep("nyud", "--raw", tmp_path if kind == "mti" else root, "--out", tmp_path / "o/n.h5") == 0
    with h5py.File(tmp_path / "o/n.h5") as file:
        assert file.attrs["dataset"] == "nyud" and file.attrs["format"] == 1
        assert file["train/semseg"].compression and not file["train/normal"].compression
        names = list(file.attrs["semseg_classes"])
        assert len(names) == 40 and names[0] == "wall" and names[19] == "floor mat" and names[39] == "otherprop"
        assert list(file.attrs["boundary_classes"]) == ["background", "boundary"]
        assert [*file["train/id"].asstr()] == ["a1", "b2", "c3"] and [*file["val/id"].asstr()] == ["d4"]
        shapes = {k: (v.shape, v.dtype.name) for k, v in file["train"].items() if k != "id"}
        assert shapes == {"image": ((3, 425, 560, 3), "uint8"), "semseg": ((3, 425, 560), "uint8"),
                          "size": ((3, 2), "int32"), "depth": ((3, 425, 560), "float32"),
                          "boundary": ((3, 425, 560), "uint8"),
                          "normal": ((3, 425, 560, 3), "float16")}
        for i, name in enumerate(truth):
            got, t = check_padding(file["train" if i < 3 else "val"], i % 3), truth[name]
            image = np.asarray(Image.open(root / f"images/{name}.{VARIANTS[kind]['images']}"))
            assert (got["image"] == image).all() and image.shape == t["image"].shape
            for y, x in np.ndindex(t["segmentation"].shape):
                label, d = int(t["segmentation"][y, x]), t["depth"][y, x]
                assert got["semseg"][y, x] == (255 if label in (0, 255) else label - 1)
                assert got["depth"][y, x] == (d if 0 < d < 1e9 else 0)
                assert got["boundary"][y, x] == t["edge"][y, x]
            if VARIANTS[kind]["normals"] == "npy":
                raw = t["normals"].astype(float)
                check_normals(got["normal"], raw, raw.any(-1))
            else:
                raw = np.asarray(Image.open(root / f"normals/{name}.{VARIANTS[kind]['normals']}")).astype(int)
                check_normals(got["normal"], raw * 2 / 255 - 1, ~((raw == 127) | (raw == 128)).all(-1))
                assert not got["normal"][-1, -1].any()
    out = capfd.readouterr().out
    assert "train semseg 3 images" in " ".join(out.split()) and "40 of 40 classes" in out and "/s, 0 s left" in out
    with Image.open(tmp_path / "o/n.h5.preview.png") as picture:
        assert picture.size[0] > 1000 and len(np.unique(np.asarray(picture))) > 50
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["n.h5", "n.h5.preview.png"]


def test_id_lists(tmp_path, capfd):
    write_nyud(tmp_path)
    for text in ("a1\r\n\r\nb2\r\nc3", "\ufeffa1\n\n  b2 \n\nc3\n\n"):
        save(tmp_path / "gt_sets/train.txt", text)
        assert prep("nyud", "--raw", tmp_path, "--out", tmp_path / "n.h5") == 0
        with h5py.File(tmp_path / "n.h5") as file:
            assert [*file["train/id"].asstr()] == ["a1", "b2", "c3"]
    capfd.readouterr()
    for text, word in (("a1\nb2\na1\n", "lists a1 twice"), ("\n\n", "lists no image")):
        save(tmp_path / "gt_sets/train.txt", text)
        line = fails(capfd, "nyud", "--raw", tmp_path, "--out", tmp_path / "n.h5")
        assert "train.txt" in line and word in line


# ------------------------------------------------------------------------------------------------------- NYUD, raw
def write_raw(root, zipped=None):
    """4 frames of 480 x 640 with MATLAB's axis order -> images, depths, labels, instances, mapping, normals."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (4, 480, 640, 3), np.uint8)
    depths = rng.uniform(1, 5, (4, 480, 640)).astype(np.float32)
    depths[0, 100:110, 200:220] = 0
    labels = rng.integers(0, 895, (4, 8, 8), np.uint16).repeat(60, 1).repeat(80, 2)
    instances = rng.integers(1, 3, (4, 24, 16), np.uint8).repeat(20, 1).repeat(40, 2)
    labels[:, 180:240, 160:240] = 0
    labels[:, 240:300, 320:400], labels[:, 240:300, 400:480] = 100, 101  # equal sums with their instances
    instances[:, 240:300, 320:400], instances[:, 240:300, 400:480] = 2, 1
    root.mkdir(parents=True, exist_ok=True)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        file["images"], file["depths"] = images.transpose(0, 3, 2, 1), depths.transpose(0, 2, 1)
        file["labels"], file["instances"] = labels.transpose(0, 2, 1), instances.transpose(0, 2, 1)
    real = Path(data_prep.__file__).resolve().parents[1] / "shared/data/classMapping40.mat"
    if real.exists():
        (root / "classMapping40.mat").write_bytes(real.read_bytes())
        from scipy.io import loadmat
        mapping = loadmat(real)["mapClass"]
    else:
        mapping = rng.integers(1, 41, (1, 894), np.uint8)
        savemat(root / "classMapping40.mat", {"mapClass": mapping})
    savemat(root / "splits.mat", {key: np.array(n, np.uint16)[:, None] for key, n in (
        ("trainNdxs", [2, 4]), ("testNdxs", [1, 3]))})
    normals = rng.integers(0, 256, (4, 480, 640, 3), np.uint8)
    normals[:, 60:70, 80:90] = 127
    if zipped:
        with zipfile.ZipFile(root / "nyu_normals_gt.zip", "w") as archive:
            for n in range(4):
                mask = np.uint8(255) * (np.arange(640) > 300 + n)[None].repeat(480, 0)
                for name, a in ((f"{'train' if n % 2 else 'test'}/{n + 1:05d}.png", normals[n]),
                                (f"masks/{n:04d}.png", mask)):
                    data = io.BytesIO()
                    Image.fromarray(a).save(data, "PNG")
                    archive.writestr("nyu_normals_gt/" + name, data.getvalue())
    return images, depths, labels, instances, mapping.ravel(), normals


@pytest.mark.parametrize("zipped", [False, True])
def test_nyud_raw(tmp_path, zipped, capfd):
    images, depths, labels, instances, mapping, normals = write_raw(tmp_path, zipped)
    assert prep("nyud", "--raw", tmp_path, "--out", tmp_path / "n.h5") == 0
    assert ("fitted to depth" in capfd.readouterr().out) != zipped
    top, left = 45, 40  # rows 46..470 and columns 41..600, counted from 1
    with h5py.File(tmp_path / "n.h5") as file:
        assert [*file["train/id"].asstr(), *file["val/id"].asstr()] == ["0002", "0004", "0001", "0003"]
        for split, i, n in (("train", 0, 1), ("train", 1, 3), ("val", 0, 0), ("val", 1, 2)):
            got = check_padding(file[split], i)
            window = np.s_[n, top:top + 425, left:left + 560]
            assert tuple(file[split]["size"][i]) == (425, 560)
            assert (got["image"] == images[window]).all() and (got["depth"] == depths[window]).all()
            lab, inst = labels[window].astype(int), instances[window].astype(int)
            change = np.zeros((425, 560), bool)
            for y, x in np.ndindex(425, 560):
                l, k = lab[y, x], inst[y, x]
                if got["semseg"][y, x] != (mapping[l - 1] - 1 if l else 255):
                    raise AssertionError((n, y, x))
                change[y, x] = (y < 424 and (lab[y + 1, x], inst[y + 1, x]) != (l, k)) or (
                    x < 559 and (lab[y, x + 1], inst[y, x + 1]) != (l, k))
            assert (got["boundary"] == guo_hall(change)).all()
            if zipped:
                raw = normals[window].astype(int)
                valid = ~((raw == 127) | (raw == 128)).all(-1) & (np.arange(left, left + 560) > 300 + n)
                check_normals(got["normal"], raw * 2 / 255 - 1, valid)
            else:
                assert ((got["normal"] ** 2).sum(-1) > .9).mean() > .99
                assert (got["normal"][depths[window] == 0] == 0).all()


def rays():
    """(480, 640, 3) viewing rays of the Kinect with z = 1."""
    y, x = np.mgrid[:480, :640]
    return np.dstack([(x - CX) / FX, (y - CY) / FY, np.ones((480, 640))])


def degrees(a, b):
    return np.degrees(2 * np.arctan2(np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1)))


@pytest.mark.parametrize("normal, offset", [((0, 0, -1), 2), ((0, -1, -.2), 1.5), ((.6, -.3, -.7), 2),
                                            ((-.9, .1, -.3), 3)])
def test_normals_of_planes(normal, offset):
    n = np.array(normal) / np.linalg.norm(normal)
    depth = -offset / (rays() @ n)
    seen = (depth > 0) & (depth < 12)
    seen[200:220, 300:330] = False  # a hole
    depth = np.where(seen, depth, 0).astype(np.float32)
    got = data_prep.normals_from_depth(depth).astype(float)
    assert (got[~seen] == 0).all() and degrees(got, n)[seen].mean() < .1
    noisy = (depth * (1 + .002 * np.random.default_rng(0).normal(size=depth.shape))).astype(np.float32)
    assert degrees(data_prep.normals_from_depth(noisy).astype(float), n)[seen].mean() < 4


@pytest.mark.parametrize("centre, radius", [((0, 0, 2), .5), ((.3, -.2, 3), 1), ((-.5, .2, 1.5), .3)])
def test_normals_of_spheres_before_a_wall(centre, radius):
    ray, c = rays(), np.array(centre)
    a, b = (ray ** 2).sum(-1), ray @ c
    root = b * b - a * (c @ c - radius ** 2)
    hit = root > 0
    depth = np.where(hit, (b - np.sqrt(np.maximum(root, 0))) / a, 6)
    true = np.where(hit[..., None], (ray * depth[..., None] - c) / radius, [0, 0, -1])
    error = degrees(data_prep.normals_from_depth(depth.astype(np.float32)).astype(float), true)
    inside = hit & (root > .15 * root.max())
    assert error[inside].mean() < .5 and error[hit].mean() < 2
    assert error[~hit].max() < .5  # right up to the edge of depth


def test_normals_do_not_cross_a_crease():
    ray = rays()
    floor, wall = 1.2 / np.maximum(ray[..., 1], 1e-9), np.full((480, 640), 3.0)
    depth, is_floor = np.minimum(floor, wall), floor < wall
    true = np.where(is_floor[..., None], [0, -1, 0], [0, 0, -1])
    assert degrees(data_prep.normals_from_depth(depth.astype(np.float32)).astype(float), true).mean() < .3


# -------------------------------------------------------------------------------------------------- PASCAL-Context
GROUPS = {"head": 1, "hair": 1, "reye": 1, "neck": 2, "torso": 2, "luarm": 3, "rhand": 4, "llarm": 4, "ruleg": 5,
          "lfoot": 6}


def struct(names, rows):
    """MATLAB struct array (1, n)."""
    out = np.zeros((1, len(rows)), dtype=[(name, "O") for name in names])
    for i, row in enumerate(rows):
        out[0, i] = row
    return out


def write_pascal(root, seed=0):
    """6 images; -> {id: the arrays as they were meant}. Objects: (class_ind, [(part, mask), ...])."""
    rng, truth = np.random.default_rng(seed), {}
    sizes = {"2008_000001": (50, 37), "2008_000002": (33, 50), "2008_000003": (375, 500), "2008_000004": (31, 47),
             "2008_000005": (36, 29), "2008_000006": (41, 26)}

    def box(h, w):
        m, y, x = np.zeros((h, w), np.uint8), rng.integers(0, h - 9), rng.integers(0, w - 9)
        m[y:y + 9, x:x + 7] = 1
        return m

    for n, (name, (h, w)) in enumerate(sizes.items()):
        names = list(GROUPS)
        objects = [[(15, names), (15, names[::-1])],  # two people, parts over parts
                   [(12, ["head", "torso"]), (15, [])],  # a dog with parts, a person without
                   [(7, []), (15, ["torso", "head"])],
                   [],
                   [(15, ["lfoot"])],  # one object, one part
                   [(15, ["empty"])]][n]  # a part of no pixel
        objects = [(kind, [("head", 0 * box(h, w)) if part == "empty" else (part, box(h, w)) for part in parts])
                   for kind, parts in objects]
        t = {"objects": objects, "semseg": rng.integers(0, 21, (h, w), np.uint8),
             "LabelMap": rng.integers(1, 460, (h // 5 + 1, w // 5 + 1)).repeat(5, 0).repeat(5, 1)[:h, :w],
             "normals": rng.integers(0, 256, (h, w, 3), np.uint8), "sal": rng.integers(0, 256, (h, w), np.uint8)}
        if n == 4:  # neighbours that cancel out, also at the border
            t["LabelMap"] = rng.integers(1, 7, (h, w))
        t["semseg"][:3], t["normals"][5:9, 5:20], t["sal"][0, :2] = 255, 127, (127, 128)
        mode = ("RGB", "L", "RGB", "CMYK", "RGB", "RGB")[n]
        pixels = rng.integers(0, 256, (h, w, len(mode)), np.uint8)
        save(root / f"JPEGImages/{name}.jpg", pixels[..., 0] if mode == "L" else pixels, mode)
        picture = Image.fromarray(t["semseg"], "P" if n % 2 else "L")
        if n % 2:
            picture.putpalette(rng.integers(0, 256, 768, np.uint8).tobytes())
        for folder in ("VOC12", "pascal-context"):
            (root / "semseg" / folder).mkdir(parents=True, exist_ok=True)
        picture.save(root / f"semseg/{'pascal-context' if n == 2 else 'VOC12'}/{name}.png")
        if n == 0:  # VOC12 goes first
            save(root / f"semseg/pascal-context/{name}.png", np.zeros((h, w), np.uint8))
        kind = (np.uint16, np.float64, np.uint16)[n % 3]
        save(root / f"pascal-context/trainval/{name}.mat", LabelMap=t["LabelMap"].astype(kind))
        rows = [("thing", number, np.ones((h, w)), struct(["part_name", "mask"], ps) if ps else np.zeros((0, 0)))
                for number, ps in objects]
        things = struct(["class", "class_ind", "mask", "parts"], rows) if rows else np.zeros((0, 0))
        save(root / f"human_parts/{name}.mat", anno=struct(["imname", "objects"], [(name, things)]))
        save(root / f"normals_distill/{name}.png", t["normals"])
        save(root / f"sal_distill/{name}.png", t["sal"])
        truth[name] = t
    ids = list(truth)
    save(root / "ImageSets/Context/train.txt", "\n".join(ids[:4]))
    save(root / "ImageSets/Context/val.txt", "\n".join(ids[4:]))
    return truth


def test_pascal(tmp_path, capfd):
    root = tmp_path / "PASCALContext"
    truth = write_pascal(root)
    assert prep("pascal", "--raw", tmp_path, "--out", tmp_path / "p.h5") == 0
    valid = set(map(int, VALID_170.split()))
    assert len(valid) == 170
    with h5py.File(tmp_path / "p.h5") as file:
        assert file.attrs["dataset"] == "pascal" and len(file.attrs["semseg_classes"]) == 21
        assert len(file.attrs["parsing_classes"]) == 7
        assert list(file.attrs["saliency_classes"]) == ["background", "salient"]
        assert file["train/normal"].compression == "lzf" and not file["train/image"].compression
        for i, (name, t) in enumerate(truth.items()):
            group = file["train" if i < 4 else "val"]
            assert group["id"].asstr()[i % 4] == name and group["image"].shape[1:] == (512, 512, 3)
            got, (h, w) = check_padding(group, i % 4), t["semseg"].shape
            image = np.asarray(Image.open(root / f"JPEGImages/{name}.jpg").convert("RGB"))
            assert (got["image"] == image).all() and image.shape == (h, w, 3)
            assert (got["semseg"] == t["semseg"]).all()
            assert (got["saliency"] == (t["sal"] / 255 > .5)).all()
            assert (got["boundary"] == guo_hall(laplacian(t["LabelMap"]))).all()
            parsing = np.zeros((h, w), np.uint8)
            for kind, parts in t["objects"]:
                for part, mask in parts if kind == 15 else []:
                    for y, x in np.argwhere(mask):
                        parsing[y, x] = GROUPS[part]
            assert (got["parsing"] == (parsing if parsing.any() else 255)).all(), name
            hold = np.array([[int(c) in valid for c in row] for row in t["LabelMap"]])
            assert 0 < hold.mean() < 1
            raw = t["normals"].astype(int)
            check_normals(got["normal"], raw * 2 / 255 - 1, hold & ~((raw == 127) | (raw == 128)).all(-1))
    assert "train parsing 2 images" in " ".join(capfd.readouterr().out.split())


VALID_170 = """3 4 6 9 10 11 13 15 17 18 22 23 29 30 33 34 36 37 38 39 41 43 46 49 50 51 53 55 56 59 61 62 65 66 68 69
72 73 78 83 84 85 87 88 95 96 101 104 105 107 111 113 115 122 124 135 141 142 143 146 150 154 157 158 159 165 172 174
181 183 184 191 193 195 197 199 202 213 215 216 219 220 223 225 228 230 232 233 238 239 242 243 246 250 251 252 255
260 261 263 269 272 273 275 281 283 284 285 286 287 288 290 291 292 293 295 304 307 309 310 314 315 319 323 329 330
331 336 342 345 349 350 351 352 355 357 368 370 371 374 379 380 383 384 397 401 403 405 407 408 411 412 413 414 417
419 421 423 427 429 430 432 440 441 442 443 444 446 454 457"""


def test_every_part_has_its_group():
    groups = [set(names.split()) for names in data_prep.PARTS.values()]
    assert [len(g) for g in groups] == [0, 10, 2, 2, 4, 2, 4] and len(set().union(*groups)) == 24
    assert all(data_prep.PART_GROUP[name] == group for name, group in GROUPS.items())


def test_thinning_is_guo_halls():
    from scipy.ndimage import gaussian_filter
    rng, maps = np.random.default_rng(2), []
    for i in range(200):
        h, w = rng.integers(2, 70, 2)
        smooth = gaussian_filter(rng.normal(size=(h, w)), 3)
        maps.append([rng.random((h, w)) < rng.random(), smooth > 0, laplacian((smooth * 40).astype(int)[:25])][i % 3])
    maps += [np.ones((1, 9), bool), np.ones((9, 1), bool), np.zeros((4, 4), bool)]
    for mask in maps[::5] + maps[-3:]:
        assert (data_prep.thin(mask) == guo_hall(mask)).all()
    cv2 = pytest.importorskip("cv2")
    thinning = pytest.importorskip("cv2.ximgproc").thinning
    for mask in maps:  # cv2 leaves the outermost pixels alone: give it a border
        want = thinning(np.pad(mask, 1).astype(np.uint8) * 255, thinningType=cv2.ximgproc.THINNING_GUOHALL)[1:-1, 1:-1]
        assert (data_prep.thin(mask) == (want > 0)).all()


# --------------------------------------------------------------------------------------------------------- bad input
def broken(path, kind):
    if kind == "gone":
        path.unlink()
    elif kind == "web page":
        path.write_text("\n<!DOCTYPE html><html>404 Not Found</html>")
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        keep = 0.02 if path.name.startswith("class") else 0.6  # what we need of it stands in its first kilobyte
        path.write_bytes(path.read_bytes()[:int(path.stat().st_size * keep)])


NYUD_BAD = [(kind, ending) for kind in ("gone", "web page", "truncated", "empty") for ending in (
    "images/b2.png", "segmentation/b2.png", "depth/b2.npy", "normals/b2.png")]
PASCAL_BAD = [(kind, ending) for kind in ("gone", "web page", "truncated", "empty") for ending in (
    "JPEGImages/2008_000002.jpg", "human_parts/2008_000002.mat", "pascal-context/trainval/2008_000001.mat")]


def test_broken_files(tmp_path, capfd):
    write_nyud(tmp_path / "n")
    write_pascal(tmp_path / "p")
    out = tmp_path / "out/o.h5"
    save(out.with_suffix(".txt"), "")
    for dataset, cases in (("nyud", NYUD_BAD), ("pascal", PASCAL_BAD)):
        for kind, name in cases:
            out.write_text("the old one")
            path = tmp_path / dataset[0] / name
            good = path.read_bytes()
            broken(path, kind)
            line = fails(capfd, dataset, "--raw", tmp_path / dataset[0], "--out", out)
            assert Path(name).stem in line and str(Path(name).parent) in line, line
            if kind == "web page":
                assert "web page" in line
            if kind == "gone":
                assert "1 missing" in line and line.count("https://") >= 1 and "unpacks to" in line
            path.write_bytes(good)
            assert out.read_text() == "the old one" and len(list(out.parent.iterdir())) == 2


def test_truncated_mat_is_never_half_read(tmp_path):
    """Cut anywhere, a .mat either fails with its name or gives all it held."""
    label = np.arange(900).reshape(30, 30) % 60
    savemat(tmp_path / "m.mat", {"other": np.arange(50), "LabelMap": label.astype(np.uint16)})
    whole, image = (tmp_path / "m.mat").read_bytes(), np.zeros((30, 30, 3))
    for cut in range(0, len(whole), 37):
        (tmp_path / "c.mat").write_bytes(whole[:cut])
        try:
            got = data_prep.load_label(tmp_path / "c.mat", image, lambda raw: raw, "LabelMap")
        except data_prep.PrepError as error:
            assert "c.mat" in str(error)
        else:
            assert (got == label).all()


def test_wrong_values_and_sizes(tmp_path, capfd):
    write_nyud(tmp_path / "n")
    write_pascal(tmp_path / "p")
    h, w = 39, 52  # of b2
    cases = [("nyud", "segmentation/b2.png", np.full((h, w), 41, np.uint8), "41"),
             ("nyud", "segmentation/b2.png", np.full((h, w + 1), 4, np.uint8), "shape"),
             ("nyud", "segmentation/b2.png", np.full((h, w, 3), 4, np.uint8), "shape"),
             ("nyud", "depth/b2.npy", np.ones((h - 1, w), np.float32), "shape"),
             ("nyud", "normals/b2.png", np.ones((h, w), np.uint8), "shape"),
             ("nyud", "images/b2.png", np.ones((600, 600, 3), np.uint8), ""),
             ("pascal", "semseg/VOC12/2008_000002.png", np.full((33, 50), 21, np.uint8), "21"),
             ("pascal", "sal_distill/2008_000002.png", np.full((50, 33), 21, np.uint8), "shape"),
             ("pascal", "pascal-context/trainval/2008_000002.mat", {"LabelMap": np.ones((9, 9))}, "shape"),
             ("pascal", "pascal-context/trainval/2008_000002.mat", {"labels": np.ones((33, 50))}, "LabelMap"),
             ("pascal", "human_parts/2008_000002.mat", {"anno": struct(["imname", "objects"], [("", struct(
                 ["class", "class_ind", "mask", "parts"], [("person", 15, 0, struct(["part_name", "mask"], [
                     ("head", np.ones((9, 9)))]))]))])}, "head")]
    for dataset, name, value, word in cases:
        path = tmp_path / dataset[0] / name
        good = path.read_bytes()
        save(path, **value) if isinstance(value, dict) else save(path, value)
        line = fails(capfd, dataset, "--raw", tmp_path / dataset[0], "--out", tmp_path / "o.h5")
        assert Path(name).stem in line and word in line, line
        path.write_bytes(good)
        assert not (tmp_path / "o.h5").exists()
    save(tmp_path / "n/images/a1.png", np.ones((426, 560, 3), np.uint8))
    for folder, a in (("segmentation", np.ones((426, 560), np.uint8)), ("normals", np.ones((426, 560, 3), np.uint8)),
                      ("edge", np.ones((426, 560), np.uint8))):
        save(tmp_path / f"n/{folder}/a1.png", a)
    np.save(tmp_path / "n/depth/a1.npy", np.ones((426, 560)))
    assert "a1 is 426 x 560, larger" in fails(capfd, "nyud", "--raw", tmp_path / "n", "--out", tmp_path / "o.h5")


def test_broken_raw(tmp_path, capfd):
    write_raw(tmp_path, zipped=True)
    for name in ("nyu_depth_v2_labeled.mat", "splits.mat", "classMapping40.mat", "nyu_normals_gt.zip"):
        for kind in ("web page", "truncated", "empty"):
            good = (tmp_path / name).read_bytes()
            broken(tmp_path / name, kind)
            assert name in fails(capfd, "nyud", "--raw", tmp_path, "--out", tmp_path / "o.h5")
            (tmp_path / name).write_bytes(good)
    savemat(tmp_path / "splits.mat", {"trainNdxs": np.array([[2], [5]]), "testNdxs": np.array([[1]])})
    assert "splits.mat" in fails(capfd, "nyud", "--raw", tmp_path, "--out", tmp_path / "o.h5")
    (tmp_path / "splits.mat").unlink()
    assert "splits.mat" in fails(capfd, "nyud", "--raw", tmp_path, "--out", tmp_path / "o.h5")


def test_missing_folder_and_bad_out(tmp_path, capfd):
    for dataset in ("nyud", "pascal"):
        for raw in (tmp_path / "nowhere", tmp_path):
            line = fails(capfd, dataset, "--raw", raw, "--out", tmp_path / "o.h5")
            assert str(raw) in line and "https://" in line
    write_nyud(tmp_path / "n")
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for out in (tmp_path / "file/o.h5", Path("/proc/o.h5"), tmp_path / "folder", Path("/dev/null")):
        assert str(out) in fails(capfd, "nyud", "--raw", tmp_path / "n", "--out", out)
    assert not list((tmp_path / "folder").iterdir()) and not Path("/dev/null").is_file()


def child(args, **options):
    return subprocess.Popen([sys.executable, data_prep.__file__, *map(str, args)], stdout=subprocess.PIPE, text=True,
                            stderr=subprocess.PIPE, start_new_session=True, **options)


@pytest.mark.parametrize("arguments", [["foo"], ["toy", "--train", "x"], []])
def test_bad_arguments_are_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        prep(*arguments)
    assert stop.value.code == 2
    one_line(capsys, "data_prep.py", "--help")


def test_disk_full(tmp_path):
    import resource
    write_nyud(tmp_path / "n")
    out = tmp_path / "out/o.h5"
    save(tmp_path / "out/o.txt", "")
    out.write_text("the old one")
    for size in (1000, 1_500_000, 6_000_000):
        process = child(["nyud", "--raw", tmp_path / "n", "--out", out],
                        preexec_fn=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size)))
        err = process.communicate()[1]
        assert process.returncode == 2 and len(err.splitlines()) == 1 and str(out) in err, err
        assert out.read_text() == "the old one" and len(list(out.parent.iterdir())) == 2


@pytest.mark.parametrize("number, group", [(signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, False)])
def test_interrupted(tmp_path, number, group):
    write_nyud(tmp_path / "n", ids=[f"x{i}" for i in range(150)], size=(40, 200))
    out = tmp_path / "out/o.h5"
    save(tmp_path / "out/o.txt", "")
    out.write_text("the old one")
    process = child(["nyud", "--raw", tmp_path / "n", "--out", out])
    while not list(out.parent.glob(".*")) and process.poll() is None:
        time.sleep(.01)
    time.sleep(.1)
    os.killpg(process.pid, number) if group else process.send_signal(number)
    err = process.communicate(timeout=20)[1]
    assert process.returncode == 2 and len(err.splitlines()) == 1 and "interrupted" in err, err
    assert out.read_text() == "the old one" and len(list(out.parent.iterdir())) == 2
    with pytest.raises(ProcessLookupError):  # no worker is left
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(.05)


# ------------------------------------------------------------------------------------------------------- the writer
def test_results_do_not_pile_up():
    """At most ahead + 1 calls are in flight, and the order is kept."""
    flying = []

    class Pool:
        def submit(self, function, item):
            flying.append(item)
            assert len(flying) <= 5
            return type("Future", (), {"result": lambda _: (flying.remove(item), function(item))[1]})()

    assert list(data_prep.in_order(Pool(), lambda x: x * x, range(100), 4)) == [x * x for x in range(100)]


def test_memory_stays_flat(tmp_path):
    """Peak of the parent and of any worker, 40 raw frames: what 300 need too, as nothing is kept."""
    write_raw(tmp_path)
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "r+") as file:
        for name in ("images", "depths", "labels", "instances"):
            four = file[name][:]
            del file[name]
            file[name] = np.concatenate([four] * 10)
    savemat(tmp_path / "splits.mat", {"trainNdxs": np.arange(1, 21)[:, None], "testNdxs": np.arange(21, 41)[:, None]})
    code = ("import resource, sys, data_prep; s = data_prep.main(sys.argv[1:]);"
            "own = open('/proc/self/status').read().split('VmHWM:')[1].split()[0];"  # ru_maxrss would be the test's
            "print(s, int(own) // 1024, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)")
    done = subprocess.run([sys.executable, "-c", code, "nyud", "--raw", tmp_path, "--out", tmp_path / "o.h5"],
                          cwd=Path(data_prep.__file__).parent, capture_output=True, text=True, check=True)
    status, parent, worker = map(int, done.stdout.splitlines()[-1].split())
    assert status == 0 and parent < 300 and worker < 300


@pytest.mark.parametrize("dataset", ["nyud", "pascal"])
def test_converted_files_train(tmp_path, dataset):
    (write_nyud if dataset == "nyud" else write_pascal)(tmp_path / "raw")
    if dataset == "pascal":
        save(tmp_path / "raw/ImageSets/Context/val.txt", "2008_000005")
    assert prep(dataset, "--raw", tmp_path / "raw", "--out", tmp_path / "d.h5") == 0
    args = f"--dataset {dataset} --iters 1 --batch-size 2 --workers 0 --device cpu --pretrained none".split(" ")
    files = "--data", tmp_path / "d.h5", "--out", tmp_path / "run"
    done = subprocess.run([sys.executable, Path(data_prep.__file__).parent / "mtcd.py", *args, *files],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/metrics.json").exists()
