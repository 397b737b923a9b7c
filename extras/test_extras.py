# SPDX-License-Identifier: MIT
"""Tests of extras/ against what does not depend on them: scikit-image, scipy, geometry, plain loops."""

import csv
import io
import itertools
import json
import math
import os
import re
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import stats
from torch import nn

import data_prep
import mtcd
from extras import bench, compare, consistency, pictures, predict, study
from extras.arms import FORMS
from test_mtcd import CPU, one_line

ROOT = Path(mtcd.__file__).parent


# ------------------------------------------------------------------------------------------------------------- predict
def run_predict(trained, out, *paths, checkpoint=None):
    return predict.main(
        [
            *map(str, paths),
            "--device",
            "cpu",
            "--out",
            str(out),
            "--checkpoint",
            str(checkpoint or trained / "last.pt"),
        ]
    )


def test_previews_show_labels_and_predictions_in_the_same_colours():
    depth, semseg = np.full((60, 80), 2, np.float32), np.ones((60, 80), np.uint8)
    depth[:30] = 1
    labels, image = {"depth": depth, "semseg": semseg}, np.zeros((60, 80, 3), np.uint8)
    alone = pictures.preview([("a", image, labels, None)], {})
    both = pictures.preview([("a", image, labels, {**labels, "depth": 1 + depth})], {})
    high = both.height - alone.height
    upper, lower = (np.asarray(both)[start + 30 : start + high - 12] for start in (0, high))
    assert both.width == alone.width and (upper[:, 510:] == lower[:, 510:]).all()
    assert (lower[:, 300:450] == pictures.VIRIDIS[-1]).all()  # 2 and 3 m: the farthest of the label


def test_any_picture_gives_a_panel_and_arrays_at_its_size(trained, tmp_path):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8))
    images = {
        "rgb.jpg": noise,
        "grey.png": noise.convert("L"),
        "alpha.png": noise.convert("RGBA"),
        "palette.png": noise.convert("P"),
        "tiny.png": noise.resize((1, 1)),
        "wide.png": noise.resize((900, 1)),
        "high.png": noise.resize((1, 900)),
        "deep.png": Image.fromarray(rng.integers(0, 65536, (50, 40)).astype(np.uint16)),
        "large.jpg": noise.resize((1400, 900)),
        "cmyk.jpg": noise.convert("CMYK"),
    }
    for name, picture in images.items():
        picture.save(tmp_path / name)
    turned = Image.Exif()
    turned[0x0112] = 6
    noise.save(tmp_path / "turned.jpg", exif=turned)
    sizes = {name: picture.size for name, picture in images.items()} | {"turned.jpg": (70, 90)}
    out = tmp_path / "out"
    count = len(json.loads((trained / "config.json").read_text())["classes"]["semseg"])
    assert run_predict(trained, out, *(tmp_path / name for name in sizes)) == 0
    for name, (width, height) in sizes.items():
        arrays = np.load(out / f"{name.split('.')[0]}.npz")
        assert set(arrays) == set(mtcd.PROTOCOLS["toy"].tasks)
        assert all(array.shape[:2] == (height, width) for array in arrays.values())
        assert arrays["normal"].shape[2:] == (3,) and arrays["depth"].min() >= 0
        assert abs(np.linalg.norm(arrays["normal"], axis=2) - 1).max() < 1e-3
        assert arrays["semseg"].max() < count and arrays["semseg"].dtype == np.uint8
        Image.open(out / f"{name.split('.')[0]}.png").verify()


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
    name = tmp_path / ("deep.png" if kind == np.uint16 else "deep.tif")
    Image.fromarray(values).save(name)
    read = np.asarray(predict.read_picture(name))
    assert abs(read - 255 * values.astype(float)[..., None] / white).max() <= 0.5 + 1e-4


def test_half_grey_is_half_grey_and_transparency_is_white(tmp_path):
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(tmp_path / "deep.png")
    assert (
        np.asarray(predict.read_picture(tmp_path / "deep.png")) == np.full((4, 4, 3), 128)
    ).all()
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(predict.read_picture(tmp_path / "clear.png")).min() == 255


def test_unreadable_pictures_are_named_and_the_rest_is_done(trained, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("hello")
    for name, value in (("nan.tif", np.nan), ("less.tif", -1), ("more.tif", 1e6)):
        Image.fromarray(np.array([[0, value]], np.float32)).save(tmp_path / name)
    Image.new("RGB", (40, 30)).save(tmp_path / "good.png")
    Image.new("RGB", (150, 100)).save(
        tmp_path / "bomb.png"
    )  # half as much again as what is allowed
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    names = (
        "empty.png",
        "text.jpg",
        "missing.png",
        "bomb.png",
        "nan.tif",
        "less.tif",
        "more.tif",
        "",
    )
    bad = [tmp_path / name for name in names]
    assert run_predict(trained, tmp_path / "out", *bad, tmp_path / "good.png") == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == len(bad) + 1 and all(str(path) in line for path, line in zip(bad, errors))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.npz", "good.png"]


def test_predictions_never_overwrite_their_input_or_each_other(trained, tmp_path):
    (tmp_path / "b").mkdir()
    for path in ("stranger.png", "stranger.jpg", "a.png", "b/a.png", "a-2.png", "c.jpg"):
        Image.new("RGB", (40, 30), "red").save(tmp_path / path)
    (tmp_path / "c.npz").write_bytes(b"kept")
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    inputs = [path for path in kept if path.name != "stranger.png"]
    for _ in range(2):  # the same again gives the same names; c.npz is no picture
        assert run_predict(trained, tmp_path, *inputs) == 2 and kept == {
            path: path.read_bytes() for path in kept
        }
        assert len(list(tmp_path.glob("*.npz"))) == 6 and len(list(tmp_path.glob("*.png"))) == 8


def test_predictions_that_are_not_finite_are_refused(trained, tmp_path, capsys, monkeypatch):
    net, config, _ = mtcd.load_network(trained / "last.pt", CPU)
    net.predictors["semseg"].bias.data[3] = math.nan
    monkeypatch.setattr(mtcd, "load_network", lambda *_: (net, config, {}))
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    assert run_predict(trained, tmp_path / "out", tmp_path / "a.png") == 2
    one_line(capsys, "semseg", "a.png", "not finite")
    assert not (tmp_path / "out").exists()


def test_arrays_are_the_networks_outputs_resized(trained, tmp_path):
    net = mtcd.load_network(trained / "last.pt", CPU)[0].eval()
    pixels = np.random.default_rng(0).integers(0, 256, (48, 60, 3), dtype=np.uint8)
    outputs = predict.predict_picture(net, Image.fromarray(pixels), 30, CPU)
    assert {output.shape[2:] for output in outputs.values()} == {(24, 30)}
    predict.save_arrays(tmp_path / "a.npz", outputs, (48, 60))
    arrays = np.load(tmp_path / "a.npz")
    for task, small in (
        ("depth", outputs["depth"].relu()),
        ("saliency", outputs["saliency"].sigmoid()),
    ):
        whole = F.interpolate(small, (48, 60), mode="bilinear")[0, 0].numpy()
        assert np.allclose(arrays[task], whole, atol=1e-6)
    vectors = predict.resized("normal", torch.randn(1, 3, 4, 5), (40, 50))
    assert abs(np.linalg.norm(vectors, axis=2) - 1).max() < 1e-3
    assert (arrays["semseg"][::2, 1::2] == outputs["semseg"].argmax(1)[0].numpy()).all()


def test_memory_hardly_grows_beyond_the_arrays_of_one_task(trained, tmp_path):
    Image.new("RGB", (5000, 4000), "teal").save(tmp_path / "large.jpg")  # 20 megapixels
    script = (
        "import resource, sys; from extras import predict; peak = lambda: "
        "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; before = peak(); "
        "status = predict.main(sys.argv[1:]); print(peak() - before); sys.exit(status)"
    )
    arguments = map(
        str, (tmp_path / "large.jpg", "--out", tmp_path, "--checkpoint", trained / "last.pt")
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments, "--device", "cpu"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert (
        int(done.stdout.splitlines()[-1]) * 1024 < 32 * 20e6
    )  # the old way took 100 bytes per pixel


# ------------------------------------------------------------------------------------------------------------- compare
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
}


def write_run(folder, miou=None, rmse=None, nothing=(), **changes):
    """A finished run's folder; `nothing`: tasks without any figure."""
    folder.mkdir(parents=True)
    metrics = {task: {mtcd.TASKS[task].metric: None} for task in nothing}
    metrics |= {
        **({"semseg": {"mIoU": miou}} if miou else {}),
        **({"depth": {"RMSE": rmse}} if rmse else {}),
    }
    config = {**SETTINGS, "tasks": list(metrics), "seed": 0, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return str(folder)


def test_compare_averages_seeds_and_counts_delta_m_pair_by_pair(tmp_path, capsys):
    runs = [
        write_run(tmp_path / "base0", 40.0, 0.50),
        write_run(tmp_path / "base1", 50.0, 0.40, seed=1),
        write_run(tmp_path / "ours0", 44.0, 0.45, contrast=1.0),
        write_run(tmp_path / "ours1", 50.0, 0.38, contrast=1.0, seed=1),
    ]
    assert compare.main([*runs, "--markdown"]) == 0
    header, _, base, ours = capsys.readouterr().out.splitlines()
    assert "semseg mIoU [%] ↑" in header and "depth RMSE [m] ↓" in header and "Delta_m" in header
    assert "45.00 ± 7.07" in base and "0.4500 ± 0.0707" in base and "2 seeds" in base
    # gains: seed 0 (+10 %, +10 %) -> 10; seed 1 (0, +5 %) -> 2.5; mean 6.25, deviation 7.5 / sqrt(2)
    assert "**47.00 ± 4.24**" in ours and "**0.4150 ± 0.0495**" in ours and "6.25 ± 5.30" in ours
    # the mean plus or minus 12.706 (Student's t, one degree of freedom) * 5.30 / sqrt(2) = 47.65
    assert "95 % interval" in header and "-41.40 to +53.90" in ours
    assert base.split("|")[-2].strip() == "-"
    assert compare.main([runs[0], *runs[2:]]) == 0  # seed 1 has no partner: no interval
    assert capsys.readouterr().out.splitlines()[-1].endswith(" -")


def test_single_task_runs_make_one_baseline_row(tmp_path, capsys):
    runs = [
        write_run(tmp_path / "s", 40.0),
        write_run(tmp_path / "d", None, 0.5),
        write_run(tmp_path / "m", 38.0, 0.55),
    ]
    assert compare.main(runs) == 0
    _, single, multi = capsys.readouterr().out.splitlines()
    assert single.split() == ["single-task", "40.00", "0.5000", "0"]
    assert multi.split() == ["m", "38.00", "0.5500", "-7.50"]


def test_interval_is_students():
    for count in (2, 3, 8, 16, 21, 22, 40, 400):
        values = np.random.default_rng(count).normal(size=count).tolist()
        expected = stats.t.interval(0.95, count - 1, np.mean(values), stats.sem(values))
        assert compare.interval(values) == pytest.approx(expected)
    assert all(map(math.isnan, compare.interval([1.0])))


def test_a_task_without_a_figure_shows_a_dash_and_is_left_out(tmp_path, capsys):
    runs = [
        write_run(tmp_path / "base", 40.0, 0.5, nothing=["parsing"]),
        write_run(tmp_path / "ours", 44.0, 0.5, nothing=["parsing"], contrast=1.0),
        write_run(tmp_path / "half", None, 0.4, nothing=["parsing", "semseg"], contrast=2.0),
    ]
    assert compare.main(runs) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert "parsing mIoU" in header
    assert [line.split() for line in lines] == [
        ["base", "40.00", "-", "0.5000", "0"],
        ["ours", "44.00", "-", "0.5000", "5.00"],
        ["half", "-", "-", "0.4000", "20.00"],
    ]
    path = Path(runs[1]) / "metrics.json"
    path.write_text(path.read_text().replace("44.0", "0.0"))  # a figure of 0 is a figure
    assert compare.read_runs(runs)["ours"] == {0: {"parsing": None, "semseg": 0, "depth": 0.5}}
    lone = write_run(tmp_path / "lone", nothing=["semseg", "depth"], contrast=3.0)
    assert compare.main([runs[0], lone]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["lone", "-", "-", "-", "-"]


def test_seeds_are_paired_over_the_tasks_that_the_baseline_has_at_all():
    first = {0: {"semseg": 40.0, "parsing": None}, 1: {"semseg": 50.0, "parsing": None}}
    gains, paired = compare.gains_of(
        {0: {"semseg": 44.0, "parsing": 3.0}, 1: {"semseg": 50.0}}, first
    )
    assert paired and gains == pytest.approx([10, 0])
    gains, paired = compare.gains_of({2: {"semseg": 54.0}}, first)
    assert not paired and gains == pytest.approx([20])


@pytest.mark.parametrize(
    "encoding, signs", [("utf-8", "↑±"), ("cp1252", "(up)±"), ("ascii", "(up)+-")]
)
def test_tables_survive_terminals_of_any_encoding(encoding, signs, tmp_path, monkeypatch):
    runs = [write_run(tmp_path / f"größe{seed}", 40.0 + seed, 0.5, seed=seed) for seed in range(2)]
    for more in ([], ["--markdown"]):
        stream = io.TextIOWrapper(io.BytesIO(), encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        assert compare.main([*runs, *more]) == 0
        stream.flush()
        printed = stream.buffer.getvalue().decode(encoding)
        assert f"semseg mIoU [%] {signs[:-1].rstrip('+')}" in printed
        assert f"40.50 {signs.split(')')[-1].lstrip('↑')} 0.71" in printed


def test_runs_on_other_data_do_not_share_a_row(tmp_path, capsys):
    runs = [write_run(tmp_path / "a", 40.0), write_run(tmp_path / "b", 20.0, seed=1, data="o.h5")]
    assert compare.main(runs) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    twins = [write_run(tmp_path / f"{k}/run", 40.0, 0.5, lr=k) for k in (1, 2)]
    assert list(compare.read_runs(twins)) == ["run", "run (2)"]
    with pytest.raises(mtcd.UserError, match="repeats"):
        compare.read_runs([twins[0], twins[0]])


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"config.json": "{"},
        {"config.json": "[]", "metrics.json": "{}"},
        {"config.json": '{"seed": 0, "tasks": ["depth"]}', "metrics.json": "{}"},
        {
            "config.json": '{"seed": 0, "tasks": ["depth"]}',
            "metrics.json": '{"depth": {"RMSE": "x"}}',
        },
        {
            "config.json": '{"seed": 0, "tasks": ["depth"]}',
            "metrics.json": '{"depth": {"RMSE": []}}',
        },
    ],
)
def test_compare_names_what_is_not_a_run(files, tmp_path, capsys):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert compare.main([str(tmp_path)]) == 2
    one_line(capsys, str(tmp_path))


# --------------------------------------------------------------------------------------------------------- consistency
def run_consistency(checkpoint, *more):
    return consistency.main(["--device", "cpu", "--checkpoint", str(checkpoint), *map(str, more)])


def test_consistency_is_100_where_features_are_the_labels_50_where_they_are_noise(toy_file):
    dataset = mtcd.DenseTasks(toy_file, "val", ["semseg", "depth", "normal"])

    class Labels(nn.Module):
        """Features: a one-hot class, the normal itself, and noise."""

        def features(self, images):
            batch = [dataset[next(keys)] for _ in images]
            semseg = torch.stack(
                [F.one_hot(s["semseg"].long(), 16).permute(2, 0, 1) for s in batch]
            )
            normal = torch.stack([s["normal"].permute(2, 0, 1) for s in batch]).float()
            noise = torch.randn(len(images), 16, *images.shape[2:])
            return {
                "semseg": semseg.float(),
                "depth": noise,
                "normal": F.pad(normal, (0, 0, 0, 0, 0, 13)),
            }

    torch.manual_seed(0)
    keys = iter(range(len(dataset)))
    contrast = mtcd.CrossTaskContrast(dataset.tasks, 16, samples=4096)
    plain, projected = consistency.triplet_distances(
        Labels(), contrast, contrast.projectors, dataset, CPU, batches=2
    )
    assert set(plain) == set(itertools.product(dataset.tasks, repeat=2))
    assert set(projected) == set(itertools.permutations(dataset.tasks, 2))
    semseg, normal = plain["semseg", "semseg"], plain["normal", "normal"]
    assert consistency.closer(semseg) == 100 == consistency.closer(normal)
    assert semseg[0].max() < 1e-6 and (semseg[1] - 2**0.5).abs().max() < 1e-6
    assert normal[0].max() < 2 * math.sin(math.radians(5)) + 1e-3  # within 10 degrees
    assert normal[1].min() > 2 * math.sin(math.radians(15)) - 1e-3  # beyond 30
    assert all(abs(consistency.closer(plain["depth", s]) - 50) < 4 for s in dataset.tasks)
    assert consistency.closer(torch.tensor([[1.0, 1, 1, 1], [2, 0, 1, 1]])) == 50  # ties: half
    assert math.isnan(consistency.closer(torch.zeros(2, 0)))


def test_consistency_prints_a_table_and_draws_it(trained, tmp_path, capsys, plots):
    outputs = []
    for _ in range(2):
        assert run_consistency(trained / "last.pt", "--out", tmp_path) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] and outputs[0].isascii()
    lines = outputs[0].splitlines()
    titles = ("features, random weights", "features  ", "projected features")
    assert [sum(line.startswith(title) for line in lines) for title in titles] == [1, 1, 1]
    rows = [line.split() for line in lines if line.startswith("  semseg")]
    tasks = mtcd.PROTOCOLS["toy"].tasks
    assert len(rows) == 3 and all(len(row) == 1 + len(tasks) for row in rows) and rows[2][1] == "-"
    picture = np.asarray(Image.open(tmp_path / "consistency.png").convert("RGB"))
    for colour in ((0, 0x72, 0xB2), (0xE6, 0x9F, 0)):
        assert (picture == colour).all(2).sum() > 1000


def test_consistency_of_another_loss_shows_the_features_only(
    trained, tmp_path, capsys, monkeypatch, plots
):
    net, config, _ = mtcd.load_network(trained / "last.pt", CPU)
    other = {"projectors.depth_from_depth.0.weight": torch.ones(1)}  # as own labels have them
    monkeypatch.setattr(mtcd, "load_network", lambda *_: (net, dict(config), other))
    assert run_consistency(trained / "last.pt", "--out", tmp_path) == 0
    out = capsys.readouterr().out
    assert (
        "projectors of another loss" in out
        and "\nprojected features" not in out
        and "\nfeatures  " in out
    )


def test_consistency_ends_in_one_line(trained, tmp_path, capsys, monkeypatch, plots):
    gone = tmp_path / "gone.h5"
    assert run_consistency(trained / "last.pt", "--data", gone, "--out", tmp_path) == 2
    one_line(capsys, "gone.h5", "data_prep.py")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(consistency.importlib.util, "find_spec", lambda _: None)
    assert run_consistency(trained / "last.pt") == 2
    one_line(capsys, "pip install matplotlib")


# --------------------------------------------------------------------------------------------------------------- bench
@pytest.mark.parametrize("more", [[], ["--amp", "--contrast", "0"]])
def test_bench_times_every_part(more, toy_file, capsys):
    assert (
        bench.main(
            [
                "--device",
                "cpu",
                "--data",
                str(toy_file),
                "--tasks",
                "depth",
                "semseg",
                "--batch-size",
                "2",
                "--backbone",
                "hrnet_tiny",
                *more,
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    names = (
        "loader",
        "lambda = 0",
        "regularised",
        "regulariser alone",
        "inference",
        "RMSE of depth",
    )
    assert all(name in printed for name in names) and printed.isascii()
    plain, regularised = map(
        int, re.search(r"MiB: lambda = 0 (\d+), regularised (\d+)", printed).groups()
    )
    assert 1 < plain <= regularised


def test_bench_of_images_whose_deepest_map_is_one_value(tmp_path):
    data_prep.make_toy(tmp_path / "toy.h5", train=2, val=1, height=32, width=32)
    assert (
        bench.main(
            [
                "--device",
                "cpu",
                "--data",
                str(tmp_path / "toy.h5"),
                "--tasks",
                "depth",
                "--batch-size",
                "2",
                "--backbone",
                "resnet18",
            ]
        )
        == 0
    )


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
    clock, waits = [0], {"a": [99, 1, 2, 9, 3, 4], "b": [50] + [7] * 5}
    monkeypatch.setattr(bench.time, "perf_counter", lambda: sum(clock))
    jobs = {name: lambda name=name: clock.append(waits[name].pop(0)) for name in waits}
    assert bench.median_seconds(jobs, CPU) == {"a": 3, "b": 7}
    assert clock[1:5] == [99, 50, 1, 7]


# -------------------------------------------------------------------------------------------- the programs as programs
@pytest.mark.parametrize(
    "main, program",
    [
        (predict.main, "predict"),
        (compare.main, "compare"),
        (consistency.main, "consistency"),
        (bench.main, "bench"),
    ],
)
def test_wrong_use_is_one_line_and_help_is_ascii(main, program, capsys):
    assert main(["--nonsense"]) == 2
    one_line(capsys, program, "--help")
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and f"extras.{program}" in text and text.isascii()


def test_foreign_network_script_trains_with_the_import_and_with_the_paste(
    toy_file, tmp_path, capsys, monkeypatch
):
    path, block = ROOT / "extras/foreign_network.py", Path(mtcd.__file__).read_text()
    script = path.read_text()
    assert len(script.splitlines()) < 40
    line = next(
        line for line in script.splitlines() if line.startswith("from mtcd import CrossTask")
    )
    pasted = script.replace(line, block.split("# >>> copy from here")[1].split("# <<< to here")[0])
    assert "import mtcd" not in pasted and "from mtcd" not in pasted
    (tmp_path / "pasted.py").write_text(pasted)
    printed = []
    for program, steps in ((path, 20), (tmp_path / "pasted.py", 10)):
        monkeypatch.setattr(sys, "argv", [str(program), str(toy_file), str(steps)])
        runpy.run_path(str(program), run_name="__main__")
        printed.append(re.findall(r"tasks ([0-9.]+)  contrast ([0-9.]+)", capsys.readouterr().out))
    assert printed[1][0] == printed[0][0] and float(printed[0][1][0]) < float(printed[0][0][0])
    for bad in (["none.h5"], [str(toy_file), "many"]):
        monkeypatch.setattr(sys, "argv", ["foreign_network", *bad])
        with pytest.raises(SystemExit, match=f"^foreign_network: .*{bad[-1]} .*[^\n]$"):
            runpy.run_path(str(path), run_name="__main__")


# -------------------------------------------------------------------------------------------------------- extras/study
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


def test_rooms_of_a_run_are_of_its_own_seed_where_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "FOLDER", tmp_path)
    monkeypatch.setattr(
        study.data_prep, "main", lambda argv: asked.append(dict(zip(argv[1::2], argv[2::2])))
    )
    asked = []
    for run in (
        study.Run(rooms_seed=-1, seed=13),
        study.Run(rooms_seed=-1, seed=14),
        study.Run(seed=13),
    ):
        assert str(study.data_file(run)) == asked[-1]["--out"]
    assert [options["--seed"] for options in asked] == ["13", "14", "2"] and len(
        {a["--out"] for a in asked}
    ) == 3


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """docs/results.csv of two seeds: baseline, ours, single-task networks, another setting."""
    monkeypatch.setattr(study, "RESULTS", tmp_path / "results.csv")
    monkeypatch.setattr(study, "PICTURE", tmp_path / "results.png")
    lines = [study.COLUMNS]
    for seed, up in ((10, 1.04), (11, 1.08)):
        for form, contrast, factor in (
            ("ours", study.LAMBDA, up),
            ("none", 0.0, 1),
            ("only", 0.0, 0.5),
        ):
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


def test_tables_equal_figures_worked_out_by_hand(made_up, capsys, plots):
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
    assert (
        f"| ours | 2 | {up} | {down} | +0.00 (+0.00 to +0.00) | {up} | +1.50 (-4.85 to +7.85) | 0.25 |"
        in out
    )
    assert "12 of" in out and "two at a time they took 0.1 hours" in out
    # single-task over ours in semseg: 0.5 / 1.04 and 0.5 / 1.08, -51.92 and -53.70 %
    assert (
        "\n| gain over ours, %" in out
        and "\n| single-task | 2 | -52.81 (-64.13 to -41.50) |" in out
    )
    picture = study.PICTURE.read_bytes()
    study.draw(
        made_up | {study.Run(iterations=750): arms}
    )  # the effect along the training beside it
    assert (
        picture[1:4] == b"PNG" == study.PICTURE.read_bytes()[1:4]
        and picture != study.PICTURE.read_bytes()
    )


def test_along_the_training_are_the_seeds_that_all_lengths_have(made_up):
    ours = made_up[study.Run()]["ours"]
    base = {
        10: {task: 11.0 if task in ("depth", "normal") else 9.0 for task in study.TASKS}
    }  # each 10 % worse than 10
    along = study.along_training(
        made_up | {study.Run(iterations=750): {"baseline": base, "ours": ours}}
    )
    expected = {
        750: ([-10], [(10.4 / 9 - 1 + 1 - 10.4 / 11 + 1 - 10 / 11 + 10.4 / 9 - 1) * 25]),
        1500: ([0], [1]),
    }
    assert along == {
        length: tuple(map(pytest.approx, values)) for length, values in expected.items()
    }


def test_seed_of_which_a_task_is_missing_does_not_count_yet(made_up, plots):
    lines = study.RESULTS.read_text().splitlines(keepends=True)
    study.RESULTS.write_text("".join(line for line in lines if "only depth,11" not in line))
    arms = study.settings(study.read())[study.Run()]
    assert {name: len(seeds) for name, seeds in arms.items()} == {
        "baseline": 2,
        "ours": 2,
        "single-task": 1,
    }
    study.RESULTS.write_text("".join(line for line in lines if "only depth" not in line))
    assert "single-task" not in study.settings(study.read())[study.Run()]
    assert study.main(["--tables"]) == 0


def test_figures_of_readme_and_notebook_are_those_of_the_printed_tables(capsys):
    study.print_tables()
    printed = capsys.readouterr().out
    section = (
        (ROOT / "README.md")
        .read_text(encoding="utf-8")
        .split("## Does it help?")[1]
        .split("\n## ")[0]
    )
    rows = re.findall(r"^\|.*\d\.\d.*", section, re.MULTILINE)
    cells = json.loads((ROOT / "docs/contrast.ipynb").read_text(encoding="utf-8"))["cells"]
    prose = section + "".join(
        line for cell in cells if cell["cell_type"] == "markdown" for line in cell["source"]
    )
    figures = rows + re.findall(r"[+-]\d+\.\d+", prose)
    assert rows and not [figure for figure in figures if figure not in printed]


def test_what_is_in_the_results_is_not_run_again(made_up, monkeypatch, tmp_path):
    monkeypatch.setattr(study, "FOLDER", tmp_path / "runs")
    monkeypatch.setattr(study, "data_file", lambda run: None)
    ran = []

    def train(run):
        if run.seed == 14 and len(ran) < 2:
            raise mtcd.UserError("depth not finite")
        return ran.append(run) or [[*run, "depth", "RMSE", 1.0, "", "0.1"]]

    monkeypatch.setattr(study, "train", train)
    monkeypatch.setattr(study, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(2))
    runs = [*(study.Run(seed=s) for s in (14, 10, 12, 13)), study.Run(set="tuning")]
    monkeypatch.setattr(study, "plan", lambda: runs)
    with pytest.raises(mtcd.UserError, match="^1 of 3 runs failed: depth not finite$"):
        study.run_all(["reported"])
    assert sorted(run.seed for run in ran) == [12, 13]  # a run that fails stops no other
    study.run_all(["reported"])
    assert [run.seed for run in ran[2:]] == [14] and {run for run, _ in study.read()} >= set(
        runs[:4]
    )


def test_plan_holds_each_run_once_with_its_baseline():
    runs = study.plan()
    assert len(set(runs)) == len(runs)
    baselines = {(run.setting, run.seed) for run in runs if run.arm == "baseline"}
    assert {(run.setting, run.seed) for run in runs} == baselines
    assert {run.form for run in runs} >= set(FORMS)
    tuning, reported = (
        {(r.rooms_seed, r.seed) for r in runs if r.set == name} for name in ("tuning", "reported")
    )
    assert not {room for room, _ in tuning} & {room for room, _ in reported}
    assert not {seed for _, seed in tuning} & {seed for _, seed in reported}


@pytest.mark.parametrize("iterations, strength", [(124, 0.5), (125, 2)])
def test_lambda_by_default_depends_on_how_often_an_image_is_seen(iterations, strength, toy_file):
    args = mtcd.build_parser().parse_args(["--data", str(toy_file), "--iters", str(iterations)])
    mtcd.run_config(args)  # ten rooms, batches of 8
    assert args.contrast == study.Run(rooms=10, iterations=iterations).usual == strength


# ------------------------------------------------------------------------------------------------------- the notebook
NOTEBOOK, MARKS = ROOT / "docs/contrast.ipynb", ("# >>> copy from here", "# <<< to here")
AGAIN = "jupyter nbconvert --inplace --execute --ExecutePreprocessor.record_timing=False docs/contrast.ipynb"


def read_notebook():
    return pytest.importorskip("nbformat").read(NOTEBOOK, as_version=4)


def test_notebook_has_the_loss_of_mtcd_and_is_stored_with_its_outputs():
    source = Path(mtcd.__file__).read_text(encoding="utf-8")
    block = source[source.index(MARKS[0]) : source.index(MARKS[1]) + len(MARKS[1])]
    cells = [cell for cell in read_notebook().cells if cell.cell_type == "code"]
    pasted = [cell.source for cell in cells if cell.source.startswith(MARKS[0])]
    assert pasted == [block], (
        f"{NOTEBOOK} has another loss: paste what stands between the marks, then {AGAIN}"
    )
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), (
        f"no outputs: {AGAIN}"
    )
    assert (
        sum("image/png" in str(cell.outputs) for cell in cells) >= 6
        and NOTEBOOK.stat().st_size < 2e6
    )


def test_notebook_runs(monkeypatch):
    nbclient, *_ = map(pytest.importorskip, ("nbclient", "ipykernel"))
    monkeypatch.setenv("MTCD_NOTEBOOK_ITERS", "10")
    folder = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(read_notebook(), timeout=600, resources=folder).execute()
