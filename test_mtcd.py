# SPDX-License-Identifier: MIT
"""Tests of mtcd.py against what does not depend on it; all data is made here (data_prep.py: extras/test_data.py)."""
import colorsys
import contextlib
import functools
import io
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from scipy import stats
from scipy.spatial.transform import Rotation
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

import data_prep
import mtcd
from extras import compare

torch.set_num_threads(1)  # the networks here are tiny: threads would only wait for one another
TASKS = {"semseg": "mIoU", "parsing": "mIoU", "saliency": "maxF", "depth": "RMSE",
         "normal": "mErr", "boundary": "odsF"}
CLASSES = {"semseg": 21, "parsing": 7, "saliency": 2, "boundary": 2}
IGNORED = {**dict.fromkeys(CLASSES, 255), "depth": 0, "normal": 0, "image": 0}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def write_file(path, dataset, shape, splits, classes=40):
    """A data file by plain h5py: {split: [{"image": (h, w, 3), task: label}]}, padded as README.md says."""
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


# ------------------------------------------------------------------------------- CrossTaskContrast
def labels_of(task, shape):
    """Random labels (B, H, W) or (B, K, H, W), none ignored; pairs are positive, negative, neither."""
    if task == "normal":
        towards = torch.tensor([0, 0, -1.0])[:, None, None]
        return F.normalize(towards + 0.35 * torch.randn(shape[0], 3, *shape[1:]), dim=1)
    if task == "depth":
        return torch.rand(shape)[:, None].mul(0.6).exp()
    return torch.randint(min(CLASSES[task], 5), shape)


def relation(task, a, b):
    """What two pixels' labels, lists of floats, are to each other by the criteria of README.md."""
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


def pair(source, shape=(2, 6, 7, 9), **choices):
    """A float64 regulariser of one target and one source, what it samples and which triplets it
    draws (lists that fill at every call), the target's features, the source's labels."""
    contrast = mtcd.CrossTaskContrast(["albedo", source], shape[1], **{"samples": 50, "dim": 5, **choices},
        criteria={"albedo": mtcd.CRITERIA["semseg"]}).double()
    sampled, drawn, sample, triplets = [], [], contrast.sample, contrast.triplets
    contrast.sample = lambda *a: sampled.append(sample(*a)) or sampled[-1]
    contrast.triplets = lambda *a: drawn.append(triplets(*a)) or drawn[-1]
    feature = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    labels = {source: labels_of(source, (shape[0], *shape[2:]))}
    return contrast, sampled, drawn, {"albedo": feature}, labels


def pixels_of(feature, rows):
    """The numbers of the map's pixels that the sampled rows (n, C) are of; all must be found."""
    numbers = {tuple(row): i for i, row in enumerate(feature.movedim(1, 3).flatten(0, 2).tolist())}
    return [numbers[tuple(row)] for row in rows.tolist()]


@pytest.mark.parametrize("source", TASKS)
def test_loss_equals_plain_loops_over_triplets_that_meet_the_criterion(source):
    contrast, sampled, drawn, features, labels = pair(source, candidates=2000)
    loss, feature = contrast(features, labels), features["albedo"]
    (rows, _, valid), (positive, negative, found) = sampled[0], [x.tolist() for x in drawn[0]]
    pixel = pixels_of(feature.detach(), rows)
    assert len(set(pixel)) == 50 and valid.all()
    point = contrast.projectors[f"albedo_from_{source}"](rows).tolist()
    point = [[x / math.hypot(*row) for x in row] for row in point]
    label = [at_centre(labels[source], i, feature.shape) for i in pixel]
    terms = []
    for a, own in enumerate(label):
        relations = {relation(source, own, other) for i, other in enumerate(label) if i != a}
        assert found[a] == ({"positive", "negative"} <= relations)  # 2,000 candidates see all 49
        if found[a]:
            p, n = positive[a], negative[a]
            assert a != p and relation(source, own, label[p]) == "positive"
            assert relation(source, own, label[n]) == "negative"
            gap = math.dist(point[a], point[p]) - math.dist(point[a], point[n])
            terms.append(max(0, gap + 1))
    assert loss.item() == pytest.approx(sum(terms) / len(terms), abs=1e-5)
    assert contrast.share_of_chance.item() == pytest.approx(loss.item())  # the margin is 1
    assert all(found[a] for a in range(50)) or source in ("depth", "normal")


def test_positives_and_negatives_are_random_among_all_and_few_candidates_find_less():
    contrast, _, drawn, features, labels = pair("boundary", samples=40, candidates=8)
    places = [[], []]
    for _ in range(200):
        contrast(features, labels)
    for positive, negative, found in drawn:
        places[0] += positive[found].tolist()
        places[1] += negative[found].tolist()
    for found in places:  # each of the 40 sampled pixels is as likely, within 5 standard deviations
        counts = np.bincount(found, minlength=40)
        assert abs(counts - counts.mean()).max() < 5 * math.sqrt(counts.mean())
    contrast.candidates = 1  # a positive or a negative, never both
    assert contrast(features, labels) == 0


@pytest.mark.parametrize("angle", [0, 10, 60, 90, 180])
def test_loss_of_two_clusters_is_the_margin_minus_their_distance(angle):
    """Unit vectors `angle` degrees apart are 2 sin(angle / 2) apart; 60 degrees are the margin, 1."""
    contrast, _, _, _, labels = pair("boundary", (2, 3, 8, 8), dim=3)
    contrast.projectors["albedo_from_boundary"] = nn.Sequential(nn.Linear(3, 3, bias=False)).double()
    nn.init.eye_(contrast.projectors["albedo_from_boundary"][0].weight)
    turn = math.radians(angle) * labels["boundary"].double()
    feature = torch.stack([turn.cos(), turn.sin(), 0 * turn], 1)
    feature = feature * (1 + torch.rand_like(turn)[:, None])  # of any length
    loss = contrast({"albedo": feature.requires_grad_()}, labels)
    loss.backward()
    expected = max(0, 1 - 2 * math.sin(math.radians(angle) / 2))
    assert loss.item() == pytest.approx(expected, abs=1e-5) and feature.grad.isfinite().all()
    assert contrast.share_of_chance.item() == pytest.approx(expected, abs=1e-5)


NOTHING = {"one class": ("semseg", torch.full((2, 6, 6), 3)),
    "each class once": ("semseg", torch.arange(36).view(1, 6, 6)),
    "all ignored": ("semseg", torch.full((2, 6, 6), 255)), "no depth": ("depth", torch.zeros(2, 1, 6, 6)),
    "nan and infinity": ("depth", torch.tensor([math.nan, math.inf, -math.inf]).repeat(2, 24).view(2, 1, 6, 12)),
    "no normals": ("normal", torch.zeros(2, 3, 6, 6)), "one depth": ("depth", torch.full((2, 1, 6, 6), 2.0)),
    "neither near nor far": ("depth", torch.tensor([1.0, 1.1]).view(1, 1, 1, 2)),
    "one pixel": ("semseg", torch.zeros(1, 1, 1).long()),
    "one valid pixel": ("semseg", torch.tensor([[[1, 255], [255, 255]]])),
    "a single task": ("saliency", torch.arange(72).view(2, 6, 6) % 2)}  # own labels are no source


@pytest.mark.parametrize("case", NOTHING)
def test_without_a_valid_triplet_the_loss_is_exactly_zero_and_gradients_are_finite(case):
    source, label = NOTHING[case]
    contrast = mtcd.CrossTaskContrast(dict.fromkeys(["saliency", source]), 4)
    feature = torch.randn(len(label), 4, *label.shape[-2:], requires_grad=True)
    loss = contrast({"saliency": feature}, {source: label})
    loss.backward()
    assert loss.item() == 0 and not feature.grad.any()  # nan would be any()
    assert not any(p.grad.any() for p in contrast.parameters() if p.grad is not None)


def test_every_source_is_drawn_uniformly_never_the_target_and_independently_of_other_targets():
    tasks, calls, drawn = ["semseg", "depth", "normal", "boundary"], 3000, []
    contrast, maps = mtcd.CrossTaskContrast(tasks, 4), {task: torch.zeros(1, 4, 2, 2) for task in tasks}
    contrast.pair_loss = lambda target, source, *_: drawn.append((target, source)) or torch.ones(())
    for _ in range(calls):
        assert contrast(maps, maps) == 4  # the sum over targets
    drawn = [dict(drawn[i : i + 4]) for i in range(0, len(drawn), 4)]
    assert len(drawn) == calls and all(list(call) == tasks for call in drawn)
    for target, other in itertools.permutations(tasks, 2):  # counts within 5 standard deviations
        for a, b in itertools.product(tasks, tasks):
            count = sum((call[target], call[other]) == (a, b) for call in drawn)
            never = a == target or b == other
            assert count == 0 if never else abs(count - calls / 9) < 5 * math.sqrt(calls * 8 / 81)


def test_sources_are_drawn_before_all_else_so_processes_with_other_images_agree():
    tasks, drawn = ["semseg", "depth", "normal", "boundary"], []
    contrast = mtcd.CrossTaskContrast(tasks, 8)
    original = contrast.pair_loss
    contrast.pair_loss = lambda target, source, *maps: drawn[-1].append(source) or original(target, source, *maps)
    for seed, size in itertools.product(range(20), (3, 6)):  # other sizes take other draws
        drawn.append([])
        labels = {task: labels_of(task, (1, size, size)) for task in tasks}
        torch.manual_seed(seed)
        contrast({task: torch.ones(1, 8, size, size) for task in tasks}, labels)
    assert drawn[::2] == drawn[1::2] and len({str(sources) for sources in drawn}) > 10


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
        assert features["normal"].grad is None
        assert all(features[task].grad.any() for task in ("semseg", "depth"))
        reached = {name.split(".")[0] for name, p in contrast.projectors.named_parameters()
                   if p.grad is not None and p.grad.any()}
        assert len(drawn) == 2 and reached == set(drawn)


@pytest.mark.parametrize("source", ["semseg", "depth", "normal"])
def test_gradients_equal_numerical_ones_and_the_generator_state_decides_the_loss(source):
    contrast, _, _, features, labels = pair(source, (2, 3, 5, 6), dim=3, samples=24)
    names = [name for name, _ in contrast.named_parameters() if f"albedo_from_{source}" in name]

    def loss(feature, *weights, seed=1):
        torch.manual_seed(seed)
        named = dict(zip(names, weights))
        return torch.func.functional_call(contrast, named, ({"albedo": feature}, labels))
    weights = [contrast.get_parameter(name).detach().requires_grad_() for name in names]
    arguments = features["albedo"], *weights
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
    assert loss(feature, autocast=True) == pytest.approx(loss(feature), rel=1e-6)  # in float32
    assert loss(feature.bfloat16(), autocast=True) == pytest.approx(loss(feature), rel=0.02)


@pytest.mark.parametrize("shape", [(28, 36), (27, 33), (7, 9), (5, 4), (1, 1), (14, 50)])
def test_labels_at_another_resolution_give_the_label_at_each_pixels_centre(shape):
    contrast, sampled, _, features, _ = pair("semseg")
    labels = {"semseg": 1000 + torch.arange(2 * math.prod(shape)).view(2, *shape)}  # each its own
    contrast(features, labels)
    rows, label, _ = sampled[0]
    pixel = pixels_of(features["albedo"].detach(), rows)
    assert label.tolist() == [at_centre(labels["semseg"], i, (2, 6, 7, 9)) for i in pixel]
    assert len(pixel) == 50


@pytest.mark.parametrize("source, values", [
    ("semseg", [255]), ("boundary", [255]), ("normal", [0, math.nan, math.inf]),
    ("depth", [0, -1, math.nan, math.inf, -math.inf])])
def test_ignored_pixels_never_take_part_whatever_their_labels_and_features(source, values):
    contrast, sampled, _, features, labels = pair(source, (2, 6, 10, 10), samples=1000)
    ignored = torch.rand(2, 10, 10) < 0.6
    for i, (b, y, x) in enumerate(ignored.nonzero().tolist()):
        labels[source][b, ..., y, x] = values[i % len(values)]
    feature = torch.where(ignored[:, None], math.nan, features["albedo"].detach()).requires_grad_()
    loss = contrast({"albedo": feature}, labels)
    loss.backward()
    rows, _, valid = sampled[0]
    assert loss > 0 and feature.grad.isfinite().all() and not rows[~valid].any()
    taken = sorted(pixels_of(features["albedo"].detach(), rows[valid]))
    assert taken == (~ignored).flatten().nonzero().flatten().tolist()  # all others do


@pytest.mark.parametrize("size", [4, 32, 512])
def test_only_the_sample_of_a_map_of_any_size_is_projected_and_rare_classes_are_in_it(size):
    contrast, seen = mtcd.CrossTaskContrast(["depth", "boundary"], 4, samples=100), []
    count, shapes = 2 * size * size, []
    contrast.projectors["depth_from_boundary"].register_forward_hook(
        lambda module, x, y: shapes.append(x[0].shape))
    original = contrast.sample
    contrast.sample = lambda *a: seen.append(original(*a)) or seen[-1]
    number = torch.arange(float(count)).view(2, 1, size, size).expand(2, 4, size, size)
    for _ in range(20):
        labels = {"boundary": (torch.rand(2, size, size) < 0.03).long()}
        labels["depth"] = torch.where(labels["boundary"].bool(), 1.0, 5.0)[:, None]
        contrast({"depth": number, "boundary": number}, labels)
    assert set(shapes) == {(min(100, count), 4)}
    if size > 4:
        by_class, by_depth = (torch.cat([label for _, label, _ in seen[i::2]]) for i in (0, 1))
        assert 0.3 < by_class.mean() < 0.55  # of 3 % of the pixels
        assert (by_depth == 1).float().mean() < 0.1  # continuous labels: as they come
        pixels = torch.cat([rows[:, 0] for rows, _, _ in seen[::2]]).numpy()
        share = np.histogram(pixels, 4, (0, count))[0] / len(pixels)
        assert np.abs(share - 0.25).max() < 0.06  # from everywhere


def test_memory_grows_linearly_with_the_samples():
    """50,000 samples in a table of pairs would take 10 GB."""
    tasks = ["semseg", "depth"]
    contrast = mtcd.CrossTaskContrast(tasks, 2, samples=50_000, dim=4)
    labels = {"depth": 1 + torch.rand(1, 1, 250, 250), "semseg": torch.randint(3, (1, 250, 250))}
    with torch.profiler.profile(profile_memory=True) as profile:
        contrast({task: torch.randn(1, 2, 250, 250) for task in tasks}, labels)
    assert max(abs(event.cpu_memory_usage) for event in profile.events()) < 500e6


def test_it_learns_from_free_features():
    """Two tasks' features as free parameters: below 0.35 of chance within 300 steps."""
    tasks, patch = ["semseg", "depth"], torch.ones(8, 8)
    labels = {"semseg": torch.kron(torch.randint(5, (2, 4, 5)), patch.long()),
              "depth": torch.kron(1 + 4 * torch.rand(2, 1, 4, 5), patch)}
    features = {task: torch.randn(2, 16, 32, 40, requires_grad=True) for task in tasks}
    contrast = mtcd.CrossTaskContrast(tasks, 16)
    optimiser = torch.optim.Adam([*features.values(), *contrast.parameters()], 0.01)
    shares = []
    for _ in range(300):
        optimiser.zero_grad()
        contrast(features, labels).backward()
        optimiser.step()
        shares.append(contrast.share_of_chance.item())
    assert 0.9 < np.mean(shares[:10]) < 1.1 and np.mean(shares[-10:]) < 0.35


def test_it_learns_while_a_network_trains(toy_file, tmp_path):
    run(tmp_path, toy_file, tasks=["semseg", "depth", "normal", "boundary"], iters=60, batch=4)
    rows = np.genfromtxt(tmp_path / "log.csv", delimiter=",", names=True)["share_of_chance"]
    assert 0.9 < rows[0] < 1.1 and rows[-3:].mean() < 0.85


def test_unknown_tasks_are_named_in_the_error_and_a_criterion_admits_a_new_task():
    with pytest.raises(ValueError, match="albedo"):
        mtcd.CrossTaskContrast(["depth", "albedo"], 4)
    grey = mtcd.Criterion(lambda a, b: (a - b).abs().sum(-1), 0.1, 0.5, lambda y: (y >= 0).all(-1))
    contrast = mtcd.CrossTaskContrast(["depth", "albedo"], 4, criteria={"albedo": grey})
    assert contrast({"depth": torch.randn(2, 4, 8, 8)}, {"albedo": torch.rand(2, 8, 8)}) > 0


def test_copy_block_runs_in_an_empty_namespace_and_trains_a_foreign_network():
    text = Path(mtcd.__file__).read_text()
    block = text.split("# >>> copy from here")[1].split("# <<< to here")[0]
    space = {"__name__": "notebook"}
    exec("import torch, torch.nn as nn, torch.nn.functional as F\n" + block, space)  # noqa: S102
    image, losses = torch.rand(4, 3, 32, 32), []
    labels = {"semseg": (image[:, 0] > 0.5).long(), "depth": 1 + 3 * image[:, 1:2]}
    encoder, heads = nn.Conv2d(3, 16, 3, padding=1), nn.ModuleDict()
    heads.update({task: nn.Conv2d(16, 16, 1) for task in labels})
    contrast = space["CrossTaskContrast"](["semseg", "depth"], channels=16)
    parameters = [*encoder.parameters(), *heads.parameters(), *contrast.parameters()]
    optimiser = torch.optim.Adam(parameters, 3e-3)
    for _ in range(100):
        shared = encoder(image).relu()
        losses.append(contrast({task: head(shared) for task, head in heads.items()}, labels))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


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


@pytest.mark.parametrize("tasks", [["semseg", "saliency"], ["saliency"]])
def test_crops_avoid_three_quarters_of_one_class_and_being_unlabelled_whatever_tasks_are_trained(tmp_path, tasks):
    image, column = np.zeros((64, 96, 3)), np.broadcast_to(np.arange(96), (64, 96))
    labels = (column > 66) + 0, 0 * column, np.where(column < 60, 255, column % 7)
    samples = [{"image": image, "semseg": label, "saliency": label} for label in labels]
    path = write_file(tmp_path / "x.h5", "nyud", (64, 96), {"train": samples})
    dataset, shares, unlabelled = mtcd.DenseTasks(path, "train", tasks, augment=True), [], 0
    for key in range(0, 900, 3):
        label = dataset[key]["saliency"].numpy()
        shares.append(np.bincount(label[label != 255]).max() / (label != 255).sum())
        unlabelled += (dataset[key + 2]["saliency"] == 255).all().item()
    assert np.mean(np.array(shares) > 0.77) < 0.06  # without the rule 0.4
    assert unlabelled < 6  # without it a tenth
    assert (dataset[1]["saliency"] == 0).any()  # one class only: no way out, and no endless search


def test_a_crop_without_any_part_of_a_person_is_ignored_as_a_whole(tmp_path):
    row, column = np.mgrid[:64, :96]
    person = np.where((row - 8) ** 2 + (column - 10) ** 2 < 64, 3, 0)
    sample = {"image": np.zeros((64, 96, 3)), "semseg": row // 8, "saliency": np.minimum(person, 1), "parsing": person}
    path = write_file(tmp_path / "x.h5", "pascal", (64, 96), {"train": [sample], "val": [sample]})
    dataset, empty = mtcd.DenseTasks(path, "train", ["saliency", "parsing"], augment=True), 0
    for key in range(200):
        parsing, visible = (dataset[key][task].numpy() for task in ("parsing", "saliency"))
        if (visible == 1).any():
            assert np.array_equal(parsing, np.where(visible == 1, 3, visible))
        else:
            empty += 1
            assert (parsing == 255).all()
    assert 10 < empty < 100


def test_photometric_distortion_is_the_protocols_in_2000_draws():
    """Two greys tell brightness and contrast; without these, colours must be colorsys' change of saturation (the value
    is kept), then scipy's turn about the grey axis, drawn as often and as far as in mmsegmentation."""
    picture = np.array([(40,) * 3, (120,) * 3, (200, 100, 100), (90, 150, 120), (100, 100, 140)])
    image, rng = torch.from_numpy(picture.T[:, None].astype(np.uint8)), np.random.default_rng(0)
    drawn = torch.stack([mtcd.distort(image, rng) for _ in range(2000)])[:, :, 0].mT.double().numpy()  # (2000, 5, 3)
    assert np.ptp(drawn[:, :2], axis=2).max() == 0  # grey stays grey
    low, high = drawn[:, :2, 0].T
    contrast = (high - low) / 80
    brightness = low / contrast - 40
    as_it_was = abs(contrast - 1) < 0.013
    assert 0.46 < as_it_was.mean() < 0.56 and 0.46 < (abs(brightness[as_it_was]) < 0.1).mean() < 0.56
    assert stats.kstest(contrast[~as_it_was], "uniform", (0.5, 1)).statistic < 0.06
    moved = as_it_was & (abs(brightness) > 0.1)
    assert stats.kstest(brightness[moved], "uniform", (-32, 64)).statistic < 0.08  # 5 % level 0.06, and rounding
    means = drawn[:, :2].mean((1, 2))  # contrast times (80 + brightness), two independent mixtures
    assert means.std() == pytest.approx(math.sqrt(64**2 / 24 * 25 / 24 + 80**2 / 24), rel=0.06)
    colours = drawn[as_it_was & (abs(brightness) < 0.1), 2:]
    assert 400 < len(colours) < 600
    chroma = (colours[:, 0] - colours[:, 0].mean(1, keepdims=True)) @ np.array([(2, -1, -1), (0, 3**0.5, -(3**0.5))]).T
    angle, factor = np.degrees(np.arctan2(*chroma.T[::-1])), np.hypot(*chroma.T) / 200
    assert -36.5 < angle.min() < -34 and 32 < angle.max() < 34.5
    assert 0.46 < (abs(angle) < 0.5).mean() < 0.58 and 0.45 < (abs(factor - 1) < 0.01).mean() < 0.58
    assert stats.kstest(angle[abs(angle) > 0.5], "uniform", (-37, 72)).statistic < 0.1
    assert stats.kstest(factor[abs(factor - 1) > 0.01], "uniform", (0.5, 1)).statistic < 0.1
    for found, turn, times in zip(colours, angle, factor):
        hsv = [colorsys.rgb_to_hsv(*(colour / 255)) for colour in picture[2:]]
        saturated = [np.multiply(colorsys.hsv_to_rgb(h, s * times, v), 255) for h, s, v in hsv]
        turned = Rotation.from_rotvec(np.full(3, math.radians(turn) / 3**0.5)).apply(saturated)
        assert abs(found - turned).max() < 2  # 8 bits


def test_photometric_distortion_leaves_one_in_sixteen_and_clips():
    rng, image = np.random.default_rng(0), torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    image[:, 0], image[:, 1] = 255, 0
    changed = torch.stack([mtcd.distort(image, rng) for _ in range(800)])
    assert 30 <= (changed == image).flatten(1).all(1).sum() <= 75  # 50 expected, standard deviation 7
    white, black = changed[:, :, 0].int(), changed[:, :, 1].int()  # clipped, not wrapped around
    assert white.min() >= 111 and 0.55 < (white == 255).float().mean() < 0.8
    assert black.max() <= 48 and 0.7 < (black == 0).float().mean() < 0.8


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
        stream = mtcd.endless_keys(length, seed, start * world)
        return list(itertools.islice(stream, rank, rank + count * world, world))
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


def test_maps_of_all_strides_are_resized_bilinearly_so_a_slope_stays_a_slope():
    net = mtcd.MultiTaskNet({"depth": 1}, "hrnet_tiny")
    net.backbone.forward = lambda _: [2.0**k * torch.arange(64 >> k).expand(1, 1, 64 >> k, -1) for k in range(4)]
    net.heads = net.predictors = nn.ModuleDict({"depth": nn.Identity()})
    slopes = net(torch.zeros(1, 3, 256, 256))["depth"][..., 20:-20].diff()  # the rims are flat
    assert slopes.shape[1] == 4 and torch.allclose(slopes, torch.tensor(0.25))


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
    loss = mtcd.TASKS[task].loss(prediction, label, {"boundary": 0.8}.get(task))
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
    """The expected value, and the same whatever the order and the batches."""
    values = []
    for order in (batches, batches[::-1], [(p[i : i + 1], y[i : i + 1]) for p, y in batches for i in range(len(p))]):
        m = metric()
        for prediction, label in order:
            m.update(prediction, label)
        values.append(m.compute())
    assert values[0] == pytest.approx(expected, rel=rel, abs=1e-5, nan_ok=True) and type(values[0]) is float
    assert values == pytest.approx(values[:1] * 3, rel=1e-9, nan_ok=True)


def plain_miou(p, y):
    """Of 6 classes: 5 occurs nowhere and does not count, 4 is never predicted and does."""
    score = pytest.importorskip("sklearn.metrics").jaccard_score
    return 100 * score(y, p, average="macro") if len(y) else math.nan


def probabilities(shape, low, high):
    """Twentieths in float64, which tie with thresholds: of positives `low` to 20, of negatives 0 to `high`."""
    label = torch.randint(2, shape)
    return torch.where(label == 1, torch.randint(low, 21, shape), torch.randint(high + 1, shape)).double() / 20, label


def plain_max_f(p, y):
    score = functools.partial(pytest.importorskip("sklearn.metrics").fbeta_score, beta=0.3**0.5, zero_division=0)
    return 100 * max(score(y, p > step / 20) for step in range(1, 20)) if len(y) else math.nan


@pytest.mark.parametrize("ignored", [0, 0.3, 1])
@pytest.mark.parametrize("metric, plain, draw", [
    (lambda: mtcd.MeanIoU(6), plain_miou, lambda shape: (torch.randint(4, shape), torch.randint(5, shape))),
    (mtcd.MaxF, plain_max_f, lambda shape: probabilities(shape, 6, 13)),
    (mtcd.MaxF, plain_max_f, lambda shape: probabilities(shape, 20, 19)),  # best only beyond exactly 0.95
    (mtcd.RMSE, lambda p, y: np.sqrt(np.mean((np.maximum(p, 0) - y) ** 2)) if len(y) else math.nan,
     lambda shape: (3 * torch.randn(shape)[:, None], 1 + 5 * torch.rand(shape)[:, None]))])
def test_miou_and_maxf_equal_scikit_learns_and_rmse_its_formula(metric, plain, draw, ignored):
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


# ------------------------------------------------------------------------------------------------ training, evaluation
def main(*arguments):
    return mtcd.main(["--device", "cpu", *map(str, arguments)])


def quick(data, out, *more):
    """The arguments of a run of seconds."""
    return ["--data", data, "--out", out, "--tasks", "depth", "--batch-size", 2, "--iters", 1, "--workers", 0, *more]


def run(out, data, *arguments, tasks=TASKS, iters=1, batch=2):
    """A run in this process; its folder must be as README.md says -> metrics.json, model in last.pt."""
    assert main(*quick(data, out, "--iters", iters, "--batch-size", batch, "--tasks", *tasks, *arguments)) == 0
    assert {p.name for p in out.iterdir()} == {"config.json", "log.csv", "last.pt", "metrics.json", "preview.png"}
    metrics = json.loads((out / "metrics.json").read_text(), parse_constant=pytest.fail)  # NaN is not JSON
    assert sorted(metrics) == sorted(tasks) == sorted(json.loads((out / "config.json").read_text())["tasks"])
    for task, values in metrics.items():
        value = values[TASKS[task]]
        assert type(value) is float and 0 <= value <= {"depth": 1e9, "normal": 180}.get(task, 100)
    head, *rows = (row.split(",") for row in (out / "log.csv").read_text().splitlines())
    assert rows and {"iteration", "lr", *tasks} <= set(head)
    assert all(math.isfinite(float(number)) for row in rows for number in row)
    saved, row = torch.load(out / "last.pt", weights_only=True), dict(zip(head, map(float, rows[-1])))
    group = saved["optimiser"]["param_groups"][0]  # the protocol's
    assert (group["momentum"], group["weight_decay"]) == (0.9, 5e-4)
    assert row["lr"] == pytest.approx(group["initial_lr"] * (1 - (row["iteration"] - 1) / iters) ** 0.9, rel=1e-3)
    return metrics, saved["model"]


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def trained(toy_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run(folder, toy_file)
    return folder


@pytest.mark.parametrize("arguments", [("--backbone", "hrnet18"), ("--backbone", "hrnet32"), ("--backbone", "hrnet48"),
                                       ("--backbone", "resnet18"), ("--backbone", "resnet50"), ("--contrast", 0)])
def test_single_task_run_works_with_each_backbone_at_batch_size_one(toy_file, tmp_path, arguments):
    run(tmp_path, toy_file, *arguments, tasks=["depth"], batch=1)
    (tmp_path / "last.pt").unlink()  # up to 0.5 GB


def test_reported_rmse_is_that_of_all_pixels_of_the_val_split_and_eval_repeats_it(toy_file, tmp_path):
    """Five val images, a batch of two: none may be missed or count twice."""
    metrics, model = run(tmp_path, toy_file, tasks=["depth"], iters=3)
    net = mtcd.MultiTaskNet({"depth": 1}, "hrnet_tiny").eval()
    net.load_state_dict(model)
    with h5py.File(toy_file) as file, torch.inference_mode():
        image = (file["val/image"][:] / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        prediction = net(torch.from_numpy(image).float().permute(0, 3, 1, 2))["depth"][:, 0].double().numpy()
        expected = np.sqrt(np.mean((np.maximum(prediction, 0) - file["val/depth"][:]) ** 2))
    assert metrics["depth"]["RMSE"] == pytest.approx(expected, rel=1e-4)
    assert main("--eval", "--checkpoint", tmp_path / "last.pt", "--workers", 0, "--out", tmp_path / "again") == 0
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
        net = mtcd.MultiTaskNet(config["channels"], config["backbone"]).eval()
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


def test_time_left_follows_from_the_mean_speed_of_the_run(toy_file, tmp_path, capsys, monkeypatch):
    clock, step = [0.0], torch.optim.SGD.step

    def now():
        clock[0] += 1e-3
        return clock[0]
    monkeypatch.setattr(mtcd.time, "monotonic", now)

    def slow_and_fast_tens(self, *arguments):
        clock[0] += 1 if len(seconds) // 10 % 2 else 60
        seconds.append(clock[0])
        return step(self, *arguments)
    monkeypatch.setattr(torch.optim.SGD, "step", slow_and_fast_tens)
    seconds = []
    assert main(*quick(toy_file, tmp_path, "--iters", 60)) == 0
    told = re.findall(r"^(\d+)/60 .* (\d+):(\d\d) left", capsys.readouterr().out, re.MULTILINE)
    assert len(told) >= 5
    for done, minutes, rest in ([int(number) for number in row] for row in told):
        assert 60 * minutes + rest == pytest.approx(seconds[done - 1] / done * (60 - done), abs=1)


# ------------------------------------------------------------------------------------------------------------ bad use
def one_line(capsys, *words):
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and all(word in errors[0] for word in words), errors


@pytest.mark.parametrize("arguments, told", [
    (["--dataset", "nyud", "--data", "{tmp}/none.h5"], r"none\.h5.*python data_prep\.py"),
    (["--dataset", "pascal", "--data", "{toy}", "--iters", "1"], "toy.*pascal|pascal.*toy"),
    (["--data", "{tmp}/text"], "text"), (["--data", "{tmp}/text/toy.h5"], r"toy\.h5"), (["--seed", "-1"], "seed"),
    (["--seed", "2147483648"], "seed.*below 2147483648"), (["--iters", "0"], "iters"), (["--lr", "nan"], "lr"),
    (["--dataset", "nyud", "--tasks", "parsing"], "semseg depth normal boundary"), (["--lr", "-1"], "lr"),
    (["--tasks", "colour"], "colour.*semseg"), (["--backbone", "vgg"], "vgg.*resnet18"), (["--eval"], "--checkpoint"),
    (["--eval", "--checkpoint", "{tmp}/none.pt"], r"none\.pt"), (["--eval", "--checkpoint", "{tmp}/text"], "text"),
    (["--eval", "--checkpoint", "{tmp}/empty.pt"], r"empty\.pt"),
    (["--eval", "--checkpoint", "{tmp}/hollow.pt"], r"hollow\.pt"),
    (["--eval", "--checkpoint", "{run}", "--data", "{tmp}/gone.h5"], r"gone\.h5.*data_prep\.py"),
    (["--eval", "--checkpoint", "{run}", "--tasks", "depth"], "--tasks has no effect"),
    (["--eval", "--checkpoint", "{run}", "--backbone", "resnet18"], "--backbone has no effect"),
    (["--eval", "--checkpoint", "{run}", "--resume"], "--resume has no effect"),
    (["--pretrained", "{tmp}/empty.pt", "--data", "{toy}"], r"empty\.pt"), (["--batch-size", "x"], "batch-size"),
    (["--device", "abacus"], "abacus"), (["--device", "mps"], "mps"), (["--device", "meta"], "meta.*cpu and cuda")])
def test_bad_use_ends_with_one_line_and_status_two(arguments, told, toy_file, trained, tmp_path, capsys):
    (tmp_path / "text").write_text("not a file of ours")
    torch.save({"iteration": 3}, tmp_path / "empty.pt")
    torch.save({"config": {}, "model": {}, "contrast": {}, "iteration": 1}, tmp_path / "hollow.pt")
    arguments = [text.format(tmp=tmp_path, toy=toy_file, run=trained / "last.pt") for text in arguments]
    assert main("--out", tmp_path / "run", *arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(told, error) and "Traceback" not in error
    assert {path.name for path in files(tmp_path)} <= {"text", "empty.pt", "hollow.pt", "config.json"}


def state_of(backbone="resnet18", seed=1):
    torch.manual_seed(seed)
    return mtcd.build_backbone(backbone).state_dict()


@pytest.mark.parametrize("wrap", [
    lambda s: s, lambda s: {"state_dict": {f"module.backbone.{k}": v for k, v in s.items()}},
    lambda s: {f"module.{k}": v for k, v in s.items()} | {"head.weight": torch.ones(2)},
    lambda s: {"model": {3: torch.ones(1), **s, 4: {"conv1.weight": 1}}}])
def test_pretrained_weights_of_any_usual_shape_fill_the_backbone(wrap, tmp_path):
    target, source = mtcd.build_backbone("resnet18"), state_of()
    torch.save(wrap(source), tmp_path / "w.pth")
    mtcd.load_pretrained(target, "resnet18", tmp_path / "w.pth")
    assert all(torch.equal(a, b) for a, b in zip(source.values(), target.state_dict().values()))


def test_of_equally_good_prefixes_the_first_in_the_alphabet_is_taken_and_keys_may_be_anything(tmp_path):
    target, source = mtcd.build_backbone("resnet18"), {name: state_of(seed=ord(name)) for name in "kqa"}
    for names in ("kq", "qk"):
        state = {f"encoder_{name}.{key}": value for name in names for key, value in source[name].items()}
        torch.save(state, tmp_path / "w.pth")
        assert mtcd.load_pretrained(target, "resnet18", tmp_path / "w.pth") == "encoder_k."
        assert torch.equal(target.state_dict()["conv1.weight"], source["k"]["conv1.weight"])
    torch.save({3: torch.ones(1), (4, 5): torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(mtcd.UserError, match="does not fill"):
        mtcd.load_pretrained(target, "resnet18", tmp_path / "w.pth")


def test_timm_weights_fill_hrnet_and_another_width_does_not(tmp_path):
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("hrnet_w18_small_v2").state_dict(), tmp_path / "w.pth")
    mtcd.load_pretrained(mtcd.build_backbone("hrnet18s"), "hrnet18s", tmp_path / "w.pth")
    with pytest.raises(mtcd.UserError, match="does not fill"):
        mtcd.load_pretrained(mtcd.build_backbone("hrnet32"), "hrnet32", tmp_path / "w.pth")


# ----------------------------------------------------------------------------------------------- figures that hold
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_predictions_that_are_not_finite_are_refused_by_task_and_image(value, toy_file):
    dataset = mtcd.DenseTasks(toy_file, "val", TASKS)

    def third_ruined(forward, number, image):
        predictions = forward(image)
        predictions[ruined][0, -1, 7, 9] = value if next(number) == 2 else 0
        return predictions
    for ruined in TASKS:
        net = seeded_net(dataset)
        net.forward = functools.partial(third_ruined, net.forward, itertools.count())
        with pytest.raises(mtcd.UserError, match=f"{ruined} prediction of val image 2 "):
            mtcd.evaluate(net, dataset, CPU)


def test_sums_of_far_errors_do_not_overflow():
    far = mtcd.RMSE()
    for _ in range(3):
        far.update(torch.full((1, 1, 425, 560), 1e4), torch.ones(1, 1, 425, 560))
    assert far.compute() == pytest.approx(9999, rel=1e-12)


@pytest.mark.parametrize("iters, tasks", [(1, ["depth", "normal"]), (20, ["depth"])])
def test_a_diverging_run_leaves_nothing_and_its_advice_works(iters, tasks, toy_file, tmp_path, capsys):
    arguments = quick(toy_file, tmp_path, "--iters", iters, "--tasks", *tasks)
    assert main(*arguments, "--lr", "1e30") == 2
    one_line(capsys, "not finite", "--lr")
    assert set(os.listdir(tmp_path)) == {"config.json"}
    assert main(*arguments, "--lr", "1e-3") == 0


@pytest.mark.parametrize("ruined", [13, 14])
def test_weights_ruined_in_the_middle_of_a_run_never_replace_the_last_good_ones(ruined, toy_file, tmp_path, capsys):
    number, step, arguments = itertools.count(1), torch.optim.SGD.step, quick(toy_file, tmp_path, "--iters", 40)

    def ruin(self, *rest):
        step(self, *rest)
        if next(number) == ruined:
            self.param_groups[0]["params"][5].data.view(-1)[0] = math.nan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", ruin)
        assert main(*arguments) == 2
    one_line(capsys, "not finite at iteration 14")
    saved = mtcd.load_weights(tmp_path / "last.pt", "iteration", "model")
    assert saved["iteration"] == 12 and all(tensor.isfinite().all() for tensor in saved["model"].values())
    assert not (tmp_path / "metrics.json").exists()
    assert main(*arguments, "--resume") == 0


def test_a_loss_that_is_not_finite_stops_the_run_by_name_and_leaves_no_figures_of_an_older_one(
        toy_file, tmp_path, capsys, monkeypatch):
    assert main(*quick(toy_file, tmp_path)) == 0
    row = mtcd.TASKS["depth"]._replace(loss=lambda p, y, _: p.sum() * torch.nan)
    monkeypatch.setitem(mtcd.TASKS, "depth", row)
    assert main(*quick(toy_file, tmp_path)) == 2
    one_line(capsys, "depth", "iteration 1")
    assert not {"metrics.json", "log.csv", "preview.png"} & set(os.listdir(tmp_path))


@pytest.mark.parametrize("case", ["other data", "unfinished", "out"])
def test_eval_leaves_the_figures_of_the_run_alone_and_its_own_can_be_compared(case, trained, tmp_path, capsys):
    home, more = shutil.copytree(trained, tmp_path / "home"), ()
    if case == "other data":
        data_prep.make_toy(tmp_path / "other.h5", train=1, val=2, height=64, width=96, seed=7)
        more = "--data", tmp_path / "other.h5"
    elif case == "out":
        more = "--out", tmp_path / "elsewhere"
    else:
        saved = mtcd.load_weights(home / "last.pt")
        saved["config"]["iters"] = 9
        torch.save(saved, home / "last.pt")
        (home / "metrics.json").unlink()
    before = files(home)
    assert main("--eval", "--checkpoint", home / "last.pt", "--workers", 0, *more) == 0
    new = {path.parent for path in tmp_path.rglob("*") if path.is_file() and path not in before} - {tmp_path}
    assert before.items() <= files(home).items() and len(new) == 1 and home not in new
    folder, config = new.pop(), json.loads((home / "config.json").read_text())
    assert set(os.listdir(folder)) == {"config.json", "metrics.json", "preview.png"}
    theirs = json.loads((folder / "config.json").read_text())
    assert theirs["data"] == (config["data"] if case != "other data" else str(tmp_path / "other.h5"))
    assert compare.main([str(folder)]) == 0
    if case == "other data":
        capsys.readouterr()
        assert compare.main([str(home), str(folder)]) == 0 and len(capsys.readouterr().out.splitlines()) == 3


def test_eval_of_a_finished_run_gives_its_figures_and_no_other_runs_folder_takes_them(trained, tmp_path, capsys):
    home = shutil.copytree(trained, tmp_path / "home")
    (home / "metrics.json").unlink()
    before = files(trained)
    assert main("--eval", "--checkpoint", home / "last.pt", "--out", trained) == 2
    one_line(capsys, "another run")
    assert files(trained) == before
    assert main("--eval", "--checkpoint", home / "last.pt", "--workers", 0) == 0
    assert json.loads((home / "metrics.json").read_text()) == json.loads((trained / "metrics.json").read_text())


# ------------------------------------------------------------------------------------- damaged, full, killed, resumed
FORK = mp.get_context("fork")


@pytest.fixture
def start(tmp_path_factory):
    """-> start(*arguments): mtcd.py in a process group of its own, forked, after before()."""
    logs, started = tmp_path_factory.mktemp("logs"), []

    def start(*arguments, program=main, before=lambda: None, encoding="utf-8", **environment):
        def job():
            os.setsid()
            for number, path in ((1, os.devnull), (2, process.log)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
            sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(number, "w", closefd=False), encoding,
                                                       line_buffering=True) for number in (1, 2))
            os.environ.update(environment)
            before()
            sys.exit(program(*arguments))
        process = FORK.Process(target=job)
        process.log = logs / str(len(started))
        started.append(process)
        process.start()
        return process
    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()


def end(process, seconds=60):
    """-> exit status (None if it hangs), lines on stderr."""
    process.join(seconds)
    return process.exitcode, process.log.read_text(errors="replace").splitlines()


def ends_in_one_line(process, *words):
    status, errors = end(process)
    assert status == 2 and len(errors) == 1 and all(word in errors[0] for word in words), (status, errors)


def wait_for(path, *processes):
    while not path.exists():
        assert all(process.is_alive() for process in processes), [end(process) for process in processes]
        time.sleep(0.02)


def start_two(start, *arguments, before=(lambda: None,) * 2):
    """Ranks 0 and 1 of one run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [start(*arguments, before=before[rank], RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2",
                  MASTER_ADDR="127.0.0.1", MASTER_PORT=port) for rank in range(2)]


def test_a_clock_that_is_set_back_changes_nothing(toy_file, tmp_path, monkeypatch):
    clock = itertools.count(2e9, -3600)
    monkeypatch.setattr(time, "time", lambda: next(clock))
    run(tmp_path, toy_file, tasks=["depth"], iters=12)
    speed = np.genfromtxt(tmp_path / "log.csv", delimiter=",", names=True)["images_per_s"]
    assert (speed > 0).all()


def test_a_second_run_in_the_same_folder_is_refused_and_touches_nothing(toy_file, tmp_path, start, capsys):
    out, arguments = tmp_path / "run", quick(toy_file, tmp_path / "run", "--iters", 600)
    first = start(*arguments)
    wait_for(out / "log.csv", first)
    os.killpg(first.pid, signal.SIGSTOP)
    before = files(out)
    for more in ((), ("--resume",)):
        assert main(*arguments, *more) == 2
        one_line(capsys, "another run")
    assert files(out) == before
    os.killpg(first.pid, signal.SIGKILL)
    end(first)
    assert main(*quick(toy_file, out)) == 0  # however it ended, the folder is free


def test_resume_refuses_another_run(toy_file, tmp_path, capsys):
    assert main(*quick(toy_file, tmp_path)) == 0
    before = (tmp_path / "last.pt").read_bytes()
    assert main(*quick(toy_file, tmp_path, "--resume", "--lr", "0.5", "--seed", "4")) == 2
    one_line(capsys, "lr", "0.5", "seed")
    assert (tmp_path / "last.pt").read_bytes() == before


@pytest.mark.parametrize("number, workers", [(signal.SIGTERM, 0), (signal.SIGTERM, 2), (signal.SIGINT, 2)])
def test_a_signal_to_the_process_group_saves_and_ends_in_one_line(number, workers, toy_file, tmp_path, start):
    process = start(*quick(toy_file, tmp_path, "--iters", 600, "--workers", workers))
    wait_for(tmp_path / "log.csv", process)
    os.killpg(process.pid, number)
    status, errors = end(process)
    iteration = mtcd.load_weights(tmp_path / "last.pt", "iteration")["iteration"]
    assert status == 2 and len(errors) == 1 and f"--resume goes on from iteration {iteration} of " in errors[0], errors
    assert (tmp_path / "log.csv").read_text().splitlines()[-1].startswith(f"{iteration},")


def test_a_killed_worker_of_the_loader_is_one_line(toy_file, tmp_path, start):
    process = start(*quick(toy_file, tmp_path, "--iters", 600, "--workers", 2))
    wait_for(tmp_path / "log.csv", process)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(workers[0]), signal.SIGKILL)
    ends_in_one_line(process, "worker", "--resume")
    assert mtcd.load_weights(tmp_path / "last.pt", "model")


def test_a_signal_to_one_of_two_processes_stops_both_in_the_same_iteration(toy_file, tmp_path, start):
    processes = start_two(start, *quick(toy_file, tmp_path, "--iters", 600))
    wait_for(tmp_path / "log.csv", *processes)
    os.kill(processes[1].pid, signal.SIGTERM)
    ends = [end(process) for process in processes]
    iteration = mtcd.load_weights(tmp_path / "last.pt", "iteration")["iteration"]
    assert all(status == 2 and f"goes on from iteration {iteration} of " in errors[-1] for status, errors in ends), ends


@pytest.mark.parametrize("killed", [0, 1])
def test_when_one_of_two_processes_is_killed_the_other_ends_and_the_checkpoint_is_whole(
        killed, toy_file, tmp_path, start):
    processes = start_two(start, *quick(toy_file, tmp_path, "--iters", 600))
    wait_for(tmp_path / "log.csv", *processes)
    os.kill(processes[killed].pid, signal.SIGKILL)
    status, errors = end(processes[1 - killed])
    assert status == 2 and "--resume" in errors[-1] and "Traceback" not in "".join(errors), (status, errors)
    assert mtcd.load_weights(tmp_path / "last.pt", "model")


def test_weights_that_are_ruined_in_the_second_process_are_not_saved(toy_file, tmp_path, start):
    def ruin():
        row = mtcd.TASKS["depth"]
        mtcd.TASKS["depth"] = row._replace(loss=lambda *rest: row.loss(*rest) + torch.tensor(math.nan))
    processes = start_two(start, *quick(toy_file, tmp_path, "--iters", 20), before=(lambda: None, ruin))
    assert [end(process)[0] for process in processes] == [2, 2]
    assert set(os.listdir(tmp_path)) == {"config.json"}


@pytest.mark.parametrize("worlds", [(1, 2), (2, 1), (2, 2)])
def test_resumed_on_another_number_of_processes_the_order_of_images_stays(worlds, toy_file, tmp_path, start):
    """Ten images, batches of four: over six iterations each pass has every image once."""
    def watch(name, stop):
        original, count = mtcd.DenseTasks.__getitem__, itertools.count(1)

        def get(dataset, key):
            if dataset.augment:
                with (tmp_path / name).open("a") as file:
                    file.write(f"{key} ")
                if next(count) == stop:
                    os.kill(os.getpid(), signal.SIGTERM)
            return original(dataset, key)
        mtcd.DenseTasks.__getitem__ = get
    keys = []
    for phase, world in enumerate(worlds):
        stop = 12 // world if phase == 0 else 0  # in the third iteration
        before = [functools.partial(watch, f"{phase}{rank}", stop) for rank in range(world)]
        arguments = quick(toy_file, tmp_path / "run", "--iters", 6, "--batch-size", 4, "--resume")
        processes = start_two(start, *arguments, before=before) if world == 2 else [start(*arguments, before=before[0])]
        assert [end(process)[0] for process in processes] == [0 if phase else 2] * world
        shares = [list(map(int, (tmp_path / f"{phase}{rank}").read_text().split())) for rank in range(world)]
        keys += itertools.chain.from_iterable(zip(*shares, strict=True))
    assert keys == list(itertools.islice(mtcd.endless_keys(10, 0, 0), 24))
    assert sorted(keys[:20]) == list(range(20))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_at_random_and_resumed_ends_bit_for_bit_as_if_never_stopped(workers, toy_file, tmp_path, start):
    """MTCD_KILLS=20 makes it as long as one likes."""
    more = "--tasks", "semseg", "depth", "--iters", 24, "--workers", workers, "--resume"
    rng, whole, killed = random.Random(workers), tmp_path / "whole", tmp_path / "killed"
    assert main(*quick(toy_file, whole, *more)) == 0
    for _ in range(int(os.environ.get("MTCD_KILLS", "2"))):
        process = start(*quick(toy_file, killed, *more))
        while not killed.exists() and process.is_alive():
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1.5))
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
        end(process)
        if (killed / "last.pt").exists():
            assert mtcd.load_weights(killed / "last.pt", "config", "model")
    assert main(*quick(toy_file, killed, *more)) == 0
    one, other = (torch.load(folder / "last.pt") for folder in (whole, killed))
    assert one["iteration"] == other["iteration"] == 24
    for part in ("model", "contrast"):
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part])
    assert (killed / "metrics.json").read_text() == (whole / "metrics.json").read_text()
    one, other = (np.genfromtxt(folder / "log.csv", delimiter=",", skip_header=1)
                  for folder in (whole, killed))
    assert np.array_equal(one[:, :-1], other[:, :-1])  # all but the speed


# --------------------------------------------------------------------------------------------- several processes
def in_processes(world, job, folder, *arguments):
    """job(rank, world, folder, *arguments) in `world` connected processes, or in this one alone."""
    if world == 1:
        return job(0, 1, folder, *arguments)
    return mp.start_processes(joined, (world, job, folder, *arguments), world, start_method="fork")


def joined(rank, world, job, folder, *arguments):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet{world}", rank=rank, world_size=world)
    job(rank, world, folder, *arguments)
    dist.destroy_process_group()


def seeded_net(dataset):
    torch.manual_seed(3)
    channels = {task: mtcd.TASKS[task].channels or len(dataset.classes[task]) for task in dataset.tasks}
    return mtcd.MultiTaskNet(channels, "hrnet_tiny")


def gradients(rank, world, folder, path):
    """One backward pass on this process's share of a batch of 4, BatchNorm frozen; rank 0 saves the gradients."""
    dataset = mtcd.DenseTasks(path, "train", TASKS, augment=True)
    objective = mtcd.Objective(seeded_net(dataset), None, 0.8).eval()
    parallel = torch.nn.parallel.DistributedDataParallel(objective) if world > 1 else objective
    batch = torch.utils.data.default_collate([dataset[i] for i in range(rank, 4, world)])
    images, labels = mtcd.to_device(batch, CPU)
    sum(mtcd.TASKS[task].weight * loss for task, loss in parallel(images, labels).items()).backward()
    if rank == 0:
        torch.save({name: p.grad for name, p in objective.named_parameters()}, f"{folder}/gradients{world}.pt")


def test_gradients_of_two_processes_are_those_of_one_on_the_whole_batch(toy_file, tmp_path):
    for world in (1, 2):  # augmented: the shares have unequal numbers of valid pixels
        in_processes(world, gradients, tmp_path, toy_file)
    one, two = (torch.load(tmp_path / f"gradients{n}.pt") for n in (1, 2))
    for name, gradient in one.items():
        assert (two[name] - gradient).abs().max() <= 1e-5 * max(1, gradient.abs().max()), name  # float32


def figures(rank, world, folder, path):
    dataset = mtcd.DenseTasks(path, "val", TASKS)
    metrics, _ = mtcd.evaluate(seeded_net(dataset), dataset, CPU)
    if rank == 0:
        (folder / f"figures{world}.json").write_text(json.dumps(metrics))


def test_figures_do_not_depend_on_the_number_of_processes(toy_file, tmp_path):
    found = []
    for world in (1, 2, 3):  # five images: unequal shares
        in_processes(world, figures, tmp_path, toy_file)
        metrics = json.loads((tmp_path / f"figures{world}.json").read_text())
        found.append({task: value for task, row in metrics.items() for value in row.values()})
    assert found[1] == pytest.approx(found[0], rel=1e-9) and found[2] == pytest.approx(found[0], rel=1e-9)


def test_torchrun_trains_and_only_the_first_process_prints(toy_file, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", mtcd.__file__,
         *map(str, quick(toy_file, tmp_path / "r", "--iters", 3, "--batch-size", 4, "--device", "cpu"))],
        check=False, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("RMSE") == 1 and (tmp_path / "r/metrics.json").exists()
