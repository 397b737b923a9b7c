# SPDX-License-Identifier: MIT
"""Tests of extras/arms.py: each form is what its name says, against plain loops over all pairs."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mtcd
from extras.arms import FORMS, AllPairs, FadingOut, GradientShare, NearestOf, Unopposed

TASKS = ("semseg", "depth", "normal", "boundary")


@pytest.fixture
def features():
    return {task: torch.randn(2, 8, 6, 8, requires_grad=True) for task in TASKS}


def random_labels():
    return {
        "semseg": torch.randint(4, (2, 6, 8)),
        "boundary": torch.randint(2, (2, 6, 8)),
        "depth": torch.rand(2, 1, 6, 8) + 1,
        "normal": torch.randn(2, 3, 6, 8),
    }


@pytest.fixture
def labels():
    return random_labels()


def drawn_pairs(contrast, features, labels):
    """The (target, source) pairs of one call."""
    drawn = []
    original = contrast.pair_loss

    def pair_loss(target, source, feature, label):
        drawn.append((target, source))
        return original(target, source, feature, label)

    contrast.pair_loss = pair_loss
    contrast(features, labels)
    contrast.pair_loss = original
    return drawn


@pytest.mark.parametrize("name", FORMS)
def test_every_form_trains_all_targets_and_tells_its_share_of_chance(name, features, labels):
    contrast = FORMS[name](TASKS, 8)
    loss = contrast(features, labels)
    loss.backward()
    assert loss.isfinite()
    assert loss > 0
    for feature in features.values():
        assert feature.grad.any()
    share = loss.item() / len(TASKS) / contrast.margin
    assert contrast.share_of_chance.item() == pytest.approx(share)


# ------------------------------------------------------------------------- which source, which pixels
@pytest.mark.parametrize("name", FORMS)
def test_targets_and_sources(name, features, labels):
    drawn = drawn_pairs(FORMS[name](TASKS, 8), features, labels)
    if name == "all sources":
        assert sorted(drawn) == sorted(itertools.permutations(TASKS, 2))
    elif name == "own labels":
        assert drawn == [(task, task) for task in TASKS]
    else:
        assert [target for target, _ in drawn] == list(TASKS)
        assert all(target != source for target, source in drawn)


def test_all_sources_are_the_mean_over_the_sources(features, labels):
    contrast = FORMS["all sources"](TASKS, 8)
    torch.manual_seed(1)
    found = contrast(features, labels)

    torch.manual_seed(1)
    losses = []
    for target, source in contrast.task_pairs():
        losses.append(contrast.pair_loss(target, source, features[target], labels[source]))
    assert found.item() == pytest.approx(sum(losses).item() / 3, rel=1e-6)


def test_boundary_labels_are_no_source_of_that_form(features, labels):
    sources = set()
    contrast = FORMS["no boundary source"](TASKS, 8)
    for _ in range(20):
        sources.update(source for _, source in drawn_pairs(contrast, features, labels))
    assert sources == {"semseg", "depth", "normal"}


def test_pairs_within_an_image_do_not_see_the_other_images(labels):
    """Two images of one class each: across images there are negatives, within them none."""
    contrast = FORMS["pairs within an image"](TASKS, 8)
    feature = torch.randn(2, 8, 6, 8)
    label = torch.arange(2)[:, None, None].expand(2, 6, 8)
    assert contrast.pair_loss("depth", "semseg", feature, label) == 0
    ours = mtcd.CrossTaskContrast(TASKS, 8)
    assert ours.pair_loss("depth", "semseg", feature, label) > 0

    # Of several images the mean: the second without a triplet halves it.
    label = torch.stack([labels["semseg"][0], torch.zeros(6, 8).long()])
    torch.manual_seed(1)
    both = contrast.pair_loss("depth", "semseg", feature, label)
    torch.manual_seed(1)
    first = contrast.pair_loss("depth", "semseg", feature[:1], label[:1])
    assert both.item() == pytest.approx(first.item() / 2)


@pytest.mark.parametrize("name", FORMS)
def test_samples_and_margin_are_those_of_the_name(name):
    contrast = FORMS[name](TASKS, 8)
    margin = 1
    samples = 1024
    if name.startswith("margin"):
        margin = float(name.split()[1])
    elif name.startswith("samples"):
        samples = int(name.split()[1])
    elif isinstance(contrast, AllPairs):
        samples = 384
    elif name == "pairs within an image":
        samples = 128
    assert contrast.margin == margin
    assert contrast.samples == samples


# ----------------------------------------------------------------------------------------- projectors
@pytest.mark.parametrize("name", FORMS)
def test_projectors(name):
    contrast = FORMS[name](TASKS, 8)
    assert len(contrast.projectors) == (4 if name == "own labels" else 12)
    for projector in contrast.projectors.values():
        if name == "linear projector":
            assert isinstance(projector, nn.Linear)
            assert projector.weight.shape == (64, 8)
        elif name == "no projector":
            assert not list(projector.parameters())
        else:
            kinds = [type(layer) for layer in projector]
            assert kinds == [nn.Linear, nn.ReLU, nn.Linear]


def test_without_projector_the_points_are_the_features_of_length_one(features, labels):
    contrast = FORMS["no projector"](TASKS, 8)
    seen = []
    original = contrast.triplet_loss

    def triplet_loss(points, *rest):
        seen.append(points)
        return original(points, *rest)

    contrast.triplet_loss = triplet_loss
    contrast({"depth": features["depth"]}, labels)
    rows = F.normalize(features["depth"].permute(0, 2, 3, 1).reshape(-1, 8), dim=1)
    assert len(seen[0]) == len(rows)
    assert torch.cdist(seen[0], rows).min(1).values.max() < 1e-3


# -------------------------------------------------------------------------------------------- mining
MINING = (
    "hardest negatives of 384",
    "semi-hard negatives of 384",
    "InfoNCE of 384",
    "nearest of 4 negatives",
    "nearest of 16 negatives",
)


def anchors_loss(name, points, i, positive, negatives):
    """The loss of anchor i by its one positive and all its negatives; None where it has none."""
    near = math.dist(points[i], points[positive])
    far = sorted(math.dist(points[i], points[j]) for j in negatives)
    if name == "InfoNCE of 384":
        e = {}
        for j in (positive, *negatives):
            e[j] = math.exp(sum(x * y for x, y in zip(points[i], points[j])) / 0.1)
        return -math.log(e[positive] / sum(e.values()))
    if name == "semi-hard negatives of 384":
        far = [distance for distance in far if distance > near]
        if not far:
            return None
    return max(near - far[0] + 1, 0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MINING)
def test_losses_over_all_pairs_equal_plain_loops(name, seed):
    """Two pixels of each of four classes, and one alone, which is no anchor but a negative."""
    torch.manual_seed(seed)
    label = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4])[:, None]
    points = F.normalize(torch.randn(9, 4, dtype=torch.float64), dim=1).requires_grad_()
    contrast = FORMS[name](["semseg", "depth"], 8)
    if isinstance(contrast, NearestOf):
        contrast.candidates = 1000
        contrast.among = 1000  # so that it meets every negative
    criterion = contrast.criteria["semseg"]
    found = contrast.triplet_loss(points, label, criterion)
    found.backward()
    assert points.grad.isfinite().all()

    losses = []
    numbers = points.tolist()
    for i in range(8):
        negatives = [j for j in range(9) if label[j] != label[i]]
        loss = anchors_loss(name, numbers, i, i ^ 1, negatives)
        if loss is not None:
            losses.append(loss)
    assert found.item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)


@pytest.mark.parametrize("name", MINING)
def test_without_negatives_the_loss_is_zero_and_its_gradient_finite(name):
    points = F.normalize(torch.randn(8, 4), dim=1).requires_grad_()
    contrast = FORMS[name](["semseg", "depth"], 8)
    loss = contrast.triplet_loss(points, torch.zeros(8, 1), contrast.criteria["semseg"])
    loss.backward()
    assert loss == 0
    assert not points.grad.any()


def test_infonce_is_the_mean_over_the_positives_of_each_anchor():
    """Three of one class, one of another, which has no positive and so is no anchor."""
    label = torch.tensor([0, 0, 0, 1])[:, None]
    points = F.normalize(torch.randn(4, 4, dtype=torch.float64), dim=1)
    contrast = FORMS["InfoNCE of 384"](["semseg", "depth"], 8)
    found = contrast.triplet_loss(points, label, contrast.criteria["semseg"])
    numbers = points.tolist()
    losses = []
    for i in range(3):
        others = [j for j in range(3) if j != i]
        both = [anchors_loss("InfoNCE of 384", numbers, i, j, [3]) for j in others]
        losses.append(sum(both) / 2)
    assert found.item() == pytest.approx(sum(losses) / 3, rel=1e-6)


def test_nearest_of_a_single_negative_is_ours():
    label = torch.randint(3, (64, 1))
    points = F.normalize(torch.randn(64, 4), dim=1)
    losses = []
    for contrast in (FORMS["ours"](TASKS, 8), NearestOf(TASKS, 8, among=1)):
        torch.manual_seed(0)
        losses.append(contrast.triplet_loss(points, label, contrast.criteria["semseg"]).item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize("among", [1, 4])
def test_nearest_of_takes_the_nearest_of_the_first_negatives(among):
    contrast = NearestOf(TASKS, 8, among=among)
    label = torch.randint(3, (40, 1))
    points = F.normalize(torch.randn(40, 4), dim=1)
    torch.manual_seed(2)
    other, _, _ = mtcd.CrossTaskContrast.candidate_pairs(
        contrast, points, label, contrast.criteria["semseg"]
    )
    torch.manual_seed(2)
    anchor, _, negative = contrast.triplets(points, label, contrast.criteria["semseg"])
    assert len(anchor) == 40
    for i, found in zip(anchor.tolist(), negative.tolist()):
        negatives = [j for j in other[i].tolist() if label[j] != label[i]]
        distances = [math.dist(points[i].tolist(), points[j].tolist()) for j in negatives[:among]]
        expected = min(distances)
        assert math.dist(points[i].tolist(), points[found].tolist()) == pytest.approx(expected)


# ------------------------------------------------------------------------------------------- strength
def test_fading_out_falls_linearly_to_nothing_and_resumes(features, labels):
    full = mtcd.CrossTaskContrast(TASKS, 8)
    fading = FadingOut(TASKS, 8, until=4)
    fading.load_state_dict(full.state_dict(), strict=False)
    ratios = []
    for call in range(6):
        if call == 2:  # a resumed run has another object, and the state of the first
            state = fading.state_dict()
            fading = FadingOut(TASKS, 8, until=4)
            fading.load_state_dict(state)
        losses = []
        for contrast in (fading, full):
            torch.manual_seed(call)
            losses.append(contrast(features, labels).item())
        ratios.append(losses[0] / losses[1])
    assert ratios == pytest.approx([0.75, 0.5, 0.25, 0, 0, 0])


def gradients_at_features(contrast, strength, own):
    """What arrives at F_T if the task's own gradient is `own` -> {task: (B, C, h, w)}."""
    torch.manual_seed(0)
    leaves = {task: torch.randn(2, 8, 6, 8, requires_grad=True) for task in TASKS}
    features = {task: leaf * 1 for task, leaf in leaves.items()}
    total = strength * contrast(features, random_labels())
    total = total + sum((features[task] * own[task]).sum() for task in TASKS)
    total.backward()
    return {task: leaf.grad for task, leaf in leaves.items()}


@pytest.fixture
def plain_gradients():
    """A plain regulariser, and what it adds to each F_T at a strength of 1."""
    torch.manual_seed(5)
    contrast = mtcd.CrossTaskContrast(TASKS, 8)
    nothing = {task: torch.zeros(2, 8, 6, 8) for task in TASKS}
    return contrast, gradients_at_features(contrast, 1.0, nothing)


@pytest.mark.parametrize("strength", [0.1, 7.0])
def test_gradient_share_has_that_share_of_the_task_at_any_lambda(plain_gradients, strength):
    plain, added = plain_gradients
    contrast = GradientShare(TASKS, 8, share=0.3, targets=["depth", "boundary"])
    contrast.load_state_dict(plain.state_dict(), strict=False)
    own = {task: torch.randn(2, 8, 6, 8) * scale for task, scale in zip(TASKS, (1, 20, 3, 0.01))}

    found = gradients_at_features(contrast, strength, own)
    for task in ("semseg", "normal"):
        assert torch.equal(found[task], own[task])
    for task in ("depth", "boundary"):
        rest = found[task] - own[task]
        assert rest.norm().item() == pytest.approx(0.3 * own[task].norm().item(), rel=1e-4)

    # With all targets it draws what the plain regulariser draws, so directions can be compared.
    contrast = GradientShare(TASKS, 8, share=0.3)
    contrast.load_state_dict(plain.state_dict())
    found = gradients_at_features(contrast, strength, own)
    for task in TASKS:
        cosine = F.cosine_similarity((found[task] - own[task]).flatten(), added[task].flatten(), 0)
        assert cosine.item() == pytest.approx(1, abs=1e-4)


def test_gradient_share_of_satisfied_triplets_adds_nothing():
    own = torch.full((2, 8, 6, 8), 1e4)
    assert torch.equal(GradientShare(TASKS, 8, share=0.3).change(0 * own, own), 0 * own)


def test_unopposed_beside_a_task_without_gradient_stays_as_it_is():
    gradient = torch.randn(2, 8, 6, 8)
    assert torch.equal(Unopposed(TASKS, 8).change(gradient, 0 * gradient), gradient)


def test_changed_gradients_leave_those_of_the_projectors(plain_gradients):
    plain, _ = plain_gradients
    contrast = GradientShare(TASKS, 8, share=0.3)
    contrast.load_state_dict(plain.state_dict())
    own = {task: torch.randn(2, 8, 6, 8) for task in TASKS}
    gradients_at_features(contrast, 1.0, own)
    trained = 0
    for found, expected in zip(contrast.parameters(), plain.parameters()):
        if expected.grad is None:
            assert found.grad is None
        else:
            assert torch.equal(found.grad, expected.grad)
            trained += 1
    assert trained > 0


def test_unopposed_drops_what_points_against_the_task_and_nothing_else(plain_gradients):
    plain, added = plain_gradients
    contrast = Unopposed(TASKS, 8)
    contrast.load_state_dict(plain.state_dict())

    along = {task: 2 * added[task] for task in TASKS}
    found = gradients_at_features(contrast, 1.0, along)
    for task in TASKS:
        assert torch.allclose(found[task], 3 * added[task], atol=1e-6)

    # Against it, and a direction aside: only the part against it goes.
    torch.manual_seed(1)
    own = {task: -2 * added[task] + 0.001 * torch.randn(2, 8, 6, 8) for task in TASKS}
    found = gradients_at_features(contrast, 1.0, own)
    for task in TASKS:
        kept = found[task] - own[task]
        inner = (kept * own[task]).sum().item()
        assert inner == pytest.approx(0, abs=1e-5 * own[task].norm().item() ** 2)
        across = added[task] - kept
        cosine = F.cosine_similarity(across.flatten(), own[task].flatten(), 0)
        assert cosine.item() == pytest.approx(-1, abs=1e-3)
