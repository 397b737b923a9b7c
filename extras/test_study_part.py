# SPDX-License-Identifier: MIT
import csv
import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mtcd
from extras import study
from extras.arms import FORMS, AllPairs


# ------------------------------------------------------------------------------------- extras/arms
@pytest.mark.parametrize("name", FORMS)
def test_every_arm_is_what_it_says(name):
    features = {task: torch.randn(2, 8, 6, 8, requires_grad=True) for task in study.TASKS}
    labels = {"semseg": torch.randint(4, (2, 6, 8)), "boundary": torch.randint(2, (2, 6, 8)),
              "depth": torch.rand(2, 1, 6, 8) + 1, "normal": torch.randn(2, 3, 6, 8)}
    contrast, pairs, points_seen = FORMS[name](study.TASKS, 8), [], []
    pair_loss, triplet_loss = contrast.pair_loss, contrast.triplet_loss

    def pair_spy(target, source, feature, label):
        pairs.append((target, source))
        return pair_loss(target, source, feature, label)

    def triplet_spy(points, *rest):
        points_seen.append(points.detach())
        return triplet_loss(points, *rest)
    contrast.pair_loss, contrast.triplet_loss = pair_spy, triplet_spy
    loss = contrast(features, labels)
    loss.backward()
    assert loss.isfinite() and loss > 0 and all(f.grad.any() for f in features.values())
    assert contrast.share_of_chance.item() == pytest.approx(loss.item() / 4 / contrast.margin)
    if name == "all sources":
        assert sorted(pairs) == sorted(itertools.permutations(study.TASKS, 2))
    elif name == "own labels":
        assert pairs == [(task, task) for task in study.TASKS]
    else:
        assert [target for target, _ in pairs] == list(study.TASKS)
        assert all(target != source for target, source in pairs)
    for number in range(20 * (name == "no boundary source")):
        torch.manual_seed(number)
        contrast(features, labels)
        assert "boundary" not in {source for _, source in pairs}
    ours = mtcd.CrossTaskContrast(study.TASKS, 8)
    value = name.rsplit(" ", 1)[-1]
    assert contrast.margin == (float(value) if name.startswith("margin") else ours.margin)
    per_image = name == "pairs within an image"
    samples = 128 if per_image else 384 if isinstance(contrast, AllPairs) else ours.samples
    assert contrast.samples == (int(value) if name.startswith("samples") else samples)
    assert len(points_seen) == len(pairs) * (2 if per_image else 1)
    assert not per_image or 0.5 < contrast.share_of_chance < 1.5  # a mean over the images
    layers = [len(projector) for projector in contrast.projectors.values()]
    assert layers == [1 if "projector" in name else 3] * (4 if name == "own labels" else 12)
    if name == "no projector":
        rows = F.normalize(features[pairs[0][0]].detach().permute(0, 2, 3, 1).reshape(-1, 8), dim=1)
        found = torch.cdist(points_seen[0], rows).min(1).values
        assert len(points_seen[0]) == len(rows) and found.max() < 1e-3
        assert not any(parameter.requires_grad for parameter in contrast.parameters())


@pytest.mark.parametrize("name", ["InfoNCE", "hardest negatives", "semi-hard negatives"])
def test_losses_over_all_pairs_equal_plain_loops(name):
    label = torch.tensor([0, 0, 1, 1, 2, 2, 3, 1])[:, None]  # one positive each, but 3: none
    points, valid = F.normalize(torch.randn(8, 4), dim=1), torch.arange(8) != 7
    contrast = FORMS[name](["semseg", "depth"], 8)
    points.requires_grad_()
    found = contrast.triplet_loss(points, label, valid, contrast.criteria["semseg"])
    alike = contrast.triplet_loss(points, 0 * label, valid, contrast.criteria["semseg"])
    (found + alike).backward()
    assert alike == 0 and points.grad.isfinite().all()  # no negative at all
    losses = []
    for i in range(6):
        positive, negatives = i ^ 1, [j for j in range(7) if label[j] != label[i]]
        near = (points[i] - points[positive]).norm().item()
        far = sorted((points[i] - points[j]).norm().item() for j in negatives)
        if name == "InfoNCE":
            e = [math.exp(torch.dot(points[i], points[j]).item() / 0.1) for j in range(7)]
            losses.append(-math.log(e[positive] / (e[positive] + sum(e[j] for j in negatives))))
        elif name == "hardest negatives":
            losses.append(max(near - far[0] + 1, 0))
        elif far[-1] > near:
            losses.append(near - next(d for d in far if d > near) + 1)
    assert found.item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)


# ------------------------------------------------------------------------------------ extras/study
def test_one_label_per_image_hides_the_other_tasks_of_training_images_only(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "FOLDER", tmp_path)
    for split, count in (("train", 5), ("val", 2)):
        with h5py.File(tmp_path / "rooms-seed2-5-all.h5", "a") as file:
            for task in study.TASKS:
                shape = (count, 4, 6, 3) if task == "normal" else (count, 4, 6)
                file[f"{split}/{task}"] = np.ones(shape, np.uint8)
    with h5py.File(study.data_file(study.Run(rooms=5, labels="one"))) as file:
        for number, task in enumerate(study.TASKS):
            kept = [i % 4 == number for i in range(5)]
            values = [set(np.unique(label)) for label in file["train"][task]]
            assert values == [{1} if keep else {mtcd.TASKS[task].ignored} for keep in kept]
            assert np.all(file["val"][task][:] == 1)


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """docs/results.csv of two seeds: baseline, ours, single-task networks, another setting."""
    monkeypatch.setattr(study, "RESULTS", tmp_path / "results.csv")
    monkeypatch.setattr(study, "PICTURE", tmp_path / "results.png")
    lines = [study.COLUMNS]
    for seed, up in ((10, 1.04), (11, 1.08)):
        for form, contrast, factor in (
                ("ours", study.LAMBDA, up), ("none", 0.0, 1), ("only", 0.0, 0.5)):
            for task in study.TASKS:
                name = f"only {task}" if form == "only" else form
                run = study.Run(form=name, contrast=contrast, seed=seed)
                changes = mtcd.TASKS[task].higher_is_better or task == "depth"
                value = seed * (factor if changes else 1)
                share = "0.25" if form == "ours" else ""
                lines.append([*run, task, mtcd.TASKS[task].metric, value, share, "1.0"])
    with study.RESULTS.open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    return study.settings(study.read())


def test_tables_equal_figures_worked_out_by_hand(made_up, capsys):
    arms = made_up[study.Run()]
    assert list(made_up) == [study.Run()] and list(arms) == ["baseline", "ours", "single-task"]
    # ours: semseg and boundary 4 and 8 % up, depth (lower is better) as much worse, normal alike
    assert study.gains(arms["ours"], arms["baseline"]) == pytest.approx([1, 2])
    assert study.gains(arms["ours"], arms["baseline"], ["depth"]) == pytest.approx([-4, -8])
    assert study.gains(arms["single-task"], arms["baseline"]) == pytest.approx([-12.5, -12.5])
    assert study.main(["--tables"]) == 0
    out = capsys.readouterr().out
    # Student's t of 1 degree of freedom, 12.706: 6 +- 12.706 * 2, 1.5 +- 12.706 * 0.5
    up, down = "+6.00 (-19.41 to +31.41)", "-6.00 (-31.41 to +19.41)"
    assert (f"| ours | 2 | {up} | {down} | +0.00 (+0.00 to +0.00) | {up} "
            "| +1.50 (-4.85 to +7.85) | 0.25 |") in out
    assert study.PICTURE.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_what_is_in_the_results_is_not_run_again(made_up, monkeypatch, tmp_path):
    monkeypatch.setattr(study, "FOLDER", tmp_path / "runs")
    monkeypatch.setattr(study, "data_file", lambda run: None)
    ran = []
    monkeypatch.setattr(study, "train", lambda run: ran.append(run) or [
        [*run, "depth", "RMSE", 1.0, "", "0.1"]])
    monkeypatch.setattr(study, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(2))
    only, tuning = study.Run(form="only depth", contrast=0.0, seed=13), study.Run(set="tuning")
    runs = [study.Run(seed=10), study.Run(seed=12), only, tuning]
    monkeypatch.setattr(study, "plan", lambda: runs)
    study.run_all(["reported"])
    assert sorted(run.seed for run in ran) == [12, 13]
    study.run_all(["reported"])
    assert len(ran) == 2 and {run for run, _ in study.read()} >= set(runs[:3])


def test_plan_holds_each_run_once_with_its_baseline():
    runs = study.plan()
    assert len(set(runs)) == len(runs)
    baselines = {(run.setting, run.seed) for run in runs if run.arm == "baseline"}
    assert {(run.setting, run.seed) for run in runs} == baselines
    assert {run.form for run in runs} >= set(FORMS)
    tuning, reported = ({(run.rooms_seed, run.seed) for run in runs if run.set == name}
                        for name in ("tuning", "reported"))
    assert not {room for room, _ in tuning} & {room for room, _ in reported}
    assert not {seed for _, seed in tuning} & {seed for _, seed in reported}
