# SPDX-License-Identifier: MIT
"""Tests of extras' pictures, predict, compare, consistency, bench and foreign_network."""
import io
import itertools
import json
import math
import os
import re
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import h5py
import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import stats
from skimage.color import deltaE_ciede2000, rgb2lab
from torch import nn

import data_prep
import mtcd
from extras import bench, compare, consistency, pictures, predict

torch.set_num_threads(1)
ROOT = Path(mtcd.__file__).parent
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def toy_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "toy.h5"
    data_prep.make_toy(path, train=10, val=5, height=64, width=96)
    return path


@pytest.fixture(scope="module")
def trained(toy_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert mtcd.main(["--device", "cpu", "--data", str(toy_file), "--iters", "1", "--batch-size", "2",
                      "--out", str(folder)]) == 0
    return folder


def one_line(capsys, *words):
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and all(word in errors[0] for word in words), errors


# ------------------------------------------------------------------------------------------ pictures
def test_depth_is_matplotlibs_viridis_near_dark_and_ignored_pixels_are_void():
    depth = np.linspace(1, 5, 256, dtype=np.float32)[None]
    expected = 255 * matplotlib.colormaps["viridis"](np.arange(256))[:, :3]
    assert abs(pictures.colourise("depth", depth)[0] - expected).max() <= 11
    depth = np.array([[0, 1, 2, np.nan, np.inf]], np.float32)
    drawn = pictures.colourise("depth", depth, (1, 2))
    assert (drawn[0, [0, 3, 4]] == pictures.VOID).all()
    assert (drawn[0, 1] == pictures.VIRIDIS[0]).all() and (drawn[0, 2] == pictures.VIRIDIS[-1]).all()
    assert (pictures.colourise("depth", np.zeros((2, 2), np.float32)) == pictures.VOID).all()


def test_normals_are_drawn_with_x_right_y_up_z_to_the_viewer():
    # in the file x is right, y down, z forward: a floor is -y, a wall that faces the viewer -z
    normal = np.array([[(1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, 0)]], np.float16)
    drawn = pictures.colourise("normal", normal)[0].tolist()
    assert drawn == [[255, 128, 128], [128, 255, 128], [128, 128, 255], list(pictures.VOID)]


def test_forty_classes_and_void_stay_apart_for_the_eye_and_keep_their_colours():
    colours = pictures.class_colours(40)
    lab = rgb2lab(np.vstack([colours, [pictures.VOID]])[None] / 255)[0]
    gap = deltaE_ciede2000(lab[:, None], lab[None]) + 100 * np.eye(41)
    assert gap.min() > 7  # hues a golden angle apart: 1.7
    assert gap[:15, :15].min() > 15
    assert (pictures.class_colours(256)[:40] == colours).all()
    label = np.array([[0, 7, 255]], np.uint8)
    drawn = pictures.colourise("semseg", label)[0]
    assert (drawn[:2] == colours[[0, 7]]).all() and (drawn[2] == pictures.VOID).all()


def test_a_task_that_the_module_does_not_know_is_drawn_by_its_array():
    assert pictures.kind_of("albedo", np.zeros((2, 2, 3), np.uint8)) == "image"
    assert pictures.kind_of("flow", np.zeros((2, 2, 3), np.float32)) == "normal"
    assert pictures.kind_of("disparity", np.zeros((2, 2), np.float32)) == "depth"
    for kind in (bool, np.uint8, np.int64):
        label = np.array([[0, 1]], kind)
        assert (pictures.colourise("parts", label)[0] == pictures.class_colours(2)).all()


def test_probabilities_go_from_white_to_blue_and_certain_pixels_differ_from_void():
    drawn = pictures.colourise("saliency", np.array([[0, 0.5, 1]], np.float32))[0]
    assert drawn[0].tolist() == [255] * 3 and drawn[2].tolist() == list(pictures.CERTAIN)
    assert (np.diff(drawn.astype(int), axis=0) < 0).all()
    label = np.array([[0, 1, 255]], np.uint8)
    assert (pictures.colourise("boundary", label)[0] == [(255,) * 3, pictures.CERTAIN, pictures.VOID]).all()


def test_small_pictures_become_crisp_squares_and_large_ones_keep_thin_lines():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    sheet = np.asarray(pictures.panel([[small]], [["x"]], {}, 40))
    left, top = pictures.GUTTER, 4 + pictures.CAPTION
    assert (sheet[top : top + 30, left : left + 40] == small.repeat(5, 0).repeat(5, 1)).all()
    line = np.full((400, 400, 3), 255, np.uint8)
    line[:, 201] = 0
    tile = np.asarray(pictures.panel([[line]], [[""]], {}, 100))[top + 20, left : left + 100]
    assert (tile[:, 0] < 255).sum() == 1 and tile[50, 0] == round(255 * 3 / 4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1), (425, 560), (96, 128)])
def test_a_panel_has_room_for_pictures_of_any_shape(shape):
    tile = np.zeros((*shape, 3), np.uint8)
    sheet = pictures.panel([[tile, None], [tile, tile]], [["a caption " * 9, ""]] * 2, {"semseg": ["a"]})
    assert 400 < sheet.width < 900 and sheet.height < 2300


def test_legend_names_every_class_in_its_colour_and_clips_nothing():
    names = [f"a rather long name {i}" for i in range(40)]
    rows = [[np.zeros((10, 20, 3), np.uint8)] * 3]
    plain = pictures.panel(rows, [["x"] * 3], {})
    classes = {"semseg": names, "saliency": ["no", "yes"], "parsing": ["an endless name " * 30]}
    sheet = pictures.panel(rows, [["x"] * 3], classes)
    assert sheet.width == plain.width and sheet.height > plain.height + 40
    pixels = np.asarray(sheet)[plain.height :]
    for colour in pictures.class_colours(40):
        assert (pixels == colour).all(2).sum() >= 100  # a filled square
    assert (pixels[:, -pictures.GUTTER :] == 255).all()
    assert pictures.legend({"saliency": ["no", "yes"]}, 100).height == 0


def test_previews_show_labels_and_predictions_in_the_same_colours(toy_file):
    with h5py.File(toy_file) as file:
        tasks = ("semseg", "depth", "normal")
        labels = {task: file["val"][task][0] for task in tasks}
        image = file["val"]["image"][0]
    alone = pictures.preview([("a", image, labels, None)], {})
    both = pictures.preview([("a", image, labels, {**labels, "depth": labels["depth"] * 3})], {})
    assert both.width == alone.width and both.height > 1.8 * alone.height
    high = both.height - alone.height
    upper, lower = (np.asarray(both)[start : start + high] for start in (0, high))
    _, semseg, depth, normal = (slice(8 + 200 * k, 200 + 200 * k) for k in range(4))  # 96 x 2 wide
    assert all((upper[30:, part] == lower[30:, part]).all() for part in (semseg, normal))
    assert (upper[30:, depth] != lower[30:, depth]).any()  # three times as far, in the label's colours


# ------------------------------------------------------------------------------------------- predict
def run_predict(trained, out, *paths, checkpoint=None):
    return predict.main([*map(str, paths), "--device", "cpu", "--out", str(out), "--checkpoint",
                         str(checkpoint or trained / "last.pt")])


def test_any_picture_gives_a_panel_and_arrays_at_its_size(trained, tmp_path):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8))
    images = {"rgb.jpg": noise, "grey.png": noise.convert("L"), "alpha.png": noise.convert("RGBA"),
              "palette.png": noise.convert("P"), "tiny.png": noise.resize((1, 1)),
              "wide.png": noise.resize((900, 1)), "high.png": noise.resize((1, 900)),
              "deep.png": Image.fromarray(rng.integers(0, 65536, (50, 40)).astype(np.uint16)),
              "large.jpg": noise.resize((1400, 900)), "cmyk.jpg": noise.convert("CMYK")}
    for name, picture in images.items():
        picture.save(tmp_path / name)
    turned = Image.Exif()
    turned[0x0112] = 6
    noise.save(tmp_path / "turned.jpg", exif=turned)
    sizes = {**{name: picture.size for name, picture in images.items()},
             "turned.jpg": noise.size[::-1]}
    out = tmp_path / "out"
    count = len(json.loads((trained / "config.json").read_text())["classes"]["semseg"])
    assert run_predict(trained, out, *(tmp_path / name for name in sizes)) == 0
    for name, (width, height) in sizes.items():
        arrays = np.load(out / f"{name.split('.')[0]}.npz")
        assert set(arrays) == set(mtcd.PROTOCOLS["toy"].tasks)
        assert all(array.shape[:2] == (height, width) for array in arrays.values())
        assert arrays["normal"].shape[2:] == (3,)
        assert abs(np.linalg.norm(arrays["normal"], axis=2) - 1).max() < 1e-3
        assert arrays["depth"].min() >= 0
        assert arrays["semseg"].max() < count and arrays["semseg"].dtype == np.uint8
        Image.open(out / f"{name.split('.')[0]}.png").verify()


@pytest.mark.parametrize("most, kind, white", [
    (1, np.float32, 1), (0.4, np.float32, 1), (200, np.float32, 255), (250, np.int32, 255),
    (4000, np.uint16, 4095), (4000, np.int32, 4095), (65535, np.uint16, 65535), (40000, np.int32, 65535)])
def test_deep_pictures_keep_their_brightness(most, kind, white, tmp_path):
    values = np.linspace(0, most, 64).reshape(8, 8).astype(kind)
    name = tmp_path / ("deep.png" if kind == np.uint16 else "deep.tif")
    Image.fromarray(values).save(name)
    read = np.asarray(predict.read_picture(name))
    assert abs(read - 255 * values.astype(float)[..., None] / white).max() <= 0.5 + 1e-4


def test_half_grey_is_half_grey_and_transparency_is_white(tmp_path):
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(tmp_path / "deep.png")
    assert np.asarray(predict.read_picture(tmp_path / "deep.png")).tolist() == np.full((4, 4, 3), 128).tolist()
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(predict.read_picture(tmp_path / "clear.png")).min() == 255


def test_unreadable_pictures_are_named_and_the_rest_is_done(trained, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("hello")
    for name, value in (("nan.tif", np.nan), ("less.tif", -1), ("more.tif", 1e6)):
        Image.fromarray(np.array([[0, value]], np.float32)).save(tmp_path / name)
    Image.new("RGB", (40, 30)).save(tmp_path / "good.png")
    Image.new("RGB", (400, 300)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    names = ("empty.png", "text.jpg", "missing.png", "bomb.png", "nan.tif", "less.tif", "more.tif", "")
    bad = [tmp_path / name for name in names]
    assert run_predict(trained, tmp_path / "out", *bad, tmp_path / "good.png") == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == len(bad) + 1 and all(str(path) in line for path, line in zip(bad, errors))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.npz", "good.png"]


def test_predictions_never_overwrite_their_input_or_each_other(trained, tmp_path):
    (tmp_path / "b").mkdir()
    for path in ("a.png", "b/a.png", "a-2.png", "c.jpg"):
        Image.new("RGB", (40, 30), "red").save(tmp_path / path)
    (tmp_path / "c.npz").write_bytes(b"kept")
    inputs = [tmp_path / name for name in ("a.png", "b/a.png", "a-2.png", "c.jpg", "c.npz")]
    before = [path.read_bytes() for path in inputs]
    assert run_predict(trained, tmp_path, *inputs) == 2  # c.npz is no picture
    assert [path.read_bytes() for path in inputs] == before
    assert len(list(tmp_path.glob("*.npz"))) == 5 and len(list(tmp_path.glob("*.png"))) == 6


def test_predictions_that_are_not_finite_are_refused(trained, tmp_path, capsys, monkeypatch):
    net, config, _ = mtcd.load_network(trained / "last.pt", CPU)
    net.predictors["semseg"].bias.data[3] = math.nan
    monkeypatch.setattr(mtcd, "load_network", lambda *_: (net, config, {}))
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    assert run_predict(trained, tmp_path / "out", tmp_path / "a.png") == 2
    one_line(capsys, "semseg", "a.png", "not finite")
    assert not (tmp_path / "out").exists()


def test_arrays_are_those_of_the_whole_map_resized(trained, tmp_path):
    net = mtcd.load_network(trained / "last.pt", CPU)[0].eval()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 60, 3), dtype=np.uint8))
    outputs = predict.predict_picture(net, picture, 30, CPU)
    assert {output.shape[2:] for output in outputs.values()} == {(24, 30)}
    predict.save_arrays(tmp_path / "a.npz", outputs, (48, 60))
    arrays = np.load(tmp_path / "a.npz")
    smooth = {"depth": mtcd.postprocess("depth", outputs["depth"]),
              "saliency": outputs["saliency"].sigmoid()}
    for task, small in smooth.items():
        whole = F.interpolate(small, (48, 60), mode="bilinear")[0, 0]
        assert torch.allclose(torch.from_numpy(arrays[task]), whole, atol=1e-6)
    assert (arrays["semseg"] == outputs["semseg"].argmax(1)[0].numpy().repeat(2, 0).repeat(2, 1)).all()
    assert zipfile.ZipFile(tmp_path / "a.npz").testzip() is None


def test_memory_hardly_grows_beyond_the_arrays_of_one_task(trained, tmp_path):
    Image.new("RGB", (5000, 4000), "teal").save(tmp_path / "large.jpg")  # 20 megapixels
    script = ("import resource, sys; from extras import predict; peak = lambda: "
              "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; before = peak(); "
              "status = predict.main(sys.argv[1:]); print(peak() - before); sys.exit(status)")
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "large.jpg"), "--device", "cpu", "--out",
         str(tmp_path), "--checkpoint", str(trained / "last.pt")],
        cwd=ROOT, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert int(done.stdout.splitlines()[-1]) * 1024 < 32 * 20e6  # the old way took 100 bytes per pixel


# ------------------------------------------------------------------------------------------- compare
SETTINGS = {"dataset": "nyud", "data": "d.h5", "classes": {}, "channels": {}, "size": [4, 4],
            "backbone": "hrnet18s", "pretrained": "none", "contrast": 0.0, "iters": 9,
            "batch_size": 8, "lr": 0.01}


def write_run(folder, miou=None, rmse=None, nothing=(), **changes):
    """A finished run's folder; `nothing`: tasks without any figure."""
    folder.mkdir(parents=True)
    metrics = {task: {mtcd.TASKS[task].metric: None} for task in nothing}
    metrics |= {**({"semseg": {"mIoU": miou}} if miou else {}),
                **({"depth": {"RMSE": rmse}} if rmse else {})}
    config = {**SETTINGS, "tasks": list(metrics), "seed": 0, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return str(folder)


def test_compare_averages_seeds_and_counts_delta_m_pair_by_pair(tmp_path, capsys):
    runs = [write_run(tmp_path / "base0", 40.0, 0.50), write_run(tmp_path / "base1", 50.0, 0.40, seed=1),
            write_run(tmp_path / "ours0", 44.0, 0.45, contrast=1.0),
            write_run(tmp_path / "ours1", 50.0, 0.38, contrast=1.0, seed=1)]
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
    runs = [write_run(tmp_path / "s", 40.0), write_run(tmp_path / "d", None, 0.5),
            write_run(tmp_path / "m", 38.0, 0.55)]
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
    runs = [write_run(tmp_path / "base", 40.0, 0.5, nothing=["parsing"]),
            write_run(tmp_path / "ours", 44.0, 0.5, nothing=["parsing"], contrast=1.0),
            write_run(tmp_path / "half", None, 0.4, nothing=["parsing", "semseg"], contrast=2.0)]
    assert compare.main(runs) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert "parsing mIoU" in header
    assert [line.split() for line in lines] == [
        ["base", "40.00", "-", "0.5000", "0"], ["ours", "44.00", "-", "0.5000", "5.00"],
        ["half", "-", "-", "0.4000", "20.00"]]
    lone = write_run(tmp_path / "lone", nothing=["semseg", "depth"], contrast=3.0)
    assert compare.main([runs[0], lone]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["lone", "-", "-", "-", "-"]


def test_seeds_are_paired_over_the_tasks_that_the_baseline_has_at_all(tmp_path, capsys):
    runs = [write_run(tmp_path / f"{name}{seed}", value + seed, 0.5, seed=seed, contrast=contrast,
                      nothing=["parsing"] * (name == "base"))
            for name, contrast, value in (("base", 0.0, 40), ("ours", 1.0, 44)) for seed in range(2)]
    for run in runs[2:]:
        path = Path(run) / "metrics.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "parsing": {"mIoU": 30}}))
        path = path.with_name("config.json")
        path.write_text(path.read_text().replace('"semseg"', '"semseg", "parsing"'))
    assert compare.main(runs) == 0
    assert re.search(r" \+\d+\.\d\d to \+\d+\.\d\d$", capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("encoding, signs", [("utf-8", "↑±"), ("cp1252", "(up)±"), ("ascii", "(up)+-")])
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


@pytest.mark.parametrize("files", [
    {}, {"config.json": "{"}, {"config.json": "[]", "metrics.json": "{}"},
    {"config.json": '{"seed": 0, "tasks": ["depth"]}', "metrics.json": "{}"},
    {"config.json": '{"seed": 0, "tasks": ["depth"]}', "metrics.json": '{"depth": {"RMSE": "x"}}'},
    {"config.json": '{"seed": 0, "tasks": ["depth"]}', "metrics.json": '{"depth": {"RMSE": []}}'}])
def test_compare_names_what_is_not_a_run(files, tmp_path, capsys):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert compare.main([str(tmp_path)]) == 2
    one_line(capsys, str(tmp_path))


# --------------------------------------------------------------------------------------- consistency
def run_consistency(checkpoint, *more):
    return consistency.main(["--device", "cpu", "--checkpoint", str(checkpoint), *map(str, more)])


def test_consistency_is_100_where_features_are_the_labels_50_where_they_are_noise(toy_file):
    dataset = mtcd.DenseTasks(toy_file, "val", ["semseg", "depth", "normal"])

    class Labels(nn.Module):
        """Features: a one-hot class, the normal itself, and noise."""

        def features(self, images):
            batch = [dataset[next(keys)] for _ in images]
            semseg = torch.stack([F.one_hot(s["semseg"].long(), 16).permute(2, 0, 1) for s in batch])
            normal = torch.stack([s["normal"].permute(2, 0, 1) for s in batch]).float()
            noise = torch.randn(len(images), 16, *images.shape[2:])
            return {"semseg": semseg.float(), "depth": noise,
                    "normal": F.pad(normal, (0, 0, 0, 0, 0, 13))}

    torch.manual_seed(0)
    keys = iter(range(len(dataset)))
    contrast = mtcd.CrossTaskContrast(dataset.tasks, 16, samples=4096)
    plain, projected = consistency.triplet_distances(
        Labels(), contrast, contrast.projectors, dataset, CPU, batches=2)
    assert set(plain) == set(itertools.product(dataset.tasks, repeat=2))
    assert set(projected) == set(itertools.permutations(dataset.tasks, 2))
    semseg, normal = plain["semseg", "semseg"], plain["normal", "normal"]
    assert consistency.closer(semseg) == 100 == consistency.closer(normal)
    assert semseg[0].max() < 1e-6 and (semseg[1] - 2**0.5).abs().max() < 1e-6
    assert normal[0].max() < 2 * math.sin(math.radians(5)) + 1e-3  # within 10 degrees
    assert normal[1].min() > 2 * math.sin(math.radians(15)) - 1e-3  # beyond 30
    assert all(abs(consistency.closer(plain["depth", s]) - 50) < 4 for s in dataset.tasks)


def test_a_tie_counts_half_and_nothing_is_nan():
    assert consistency.closer(torch.tensor([[1.0, 1, 1, 1], [2, 0, 1, 1]])) == 50
    assert math.isnan(consistency.closer(torch.zeros(2, 0)))


def test_consistency_prints_a_table_and_draws_it(trained, tmp_path, capsys):
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


def test_consistency_ends_in_one_line(trained, tmp_path, capsys, monkeypatch):
    gone = tmp_path / "gone.h5"
    assert run_consistency(trained / "last.pt", "--data", gone, "--out", tmp_path) == 2
    one_line(capsys, "gone.h5", "data_prep.py")
    assert not list(tmp_path.iterdir())
    net, config, _ = mtcd.load_network(trained / "last.pt", CPU)
    other = {"projectors.albedo_from_depth.0.weight": torch.ones(1)}
    monkeypatch.setattr(mtcd, "load_network", lambda *_: (net, dict(config), other))
    assert run_consistency(trained / "last.pt") == 2
    one_line(capsys, "last.pt", "regulariser")
    monkeypatch.setattr(consistency.importlib.util, "find_spec", lambda _: None)
    assert run_consistency(trained / "last.pt") == 2
    one_line(capsys, "pip install matplotlib")


# --------------------------------------------------------------------------------------------- bench
@pytest.mark.parametrize("more", [[], ["--amp", "--contrast", "0"]])
def test_bench_times_every_part(more, toy_file, capsys):
    assert bench.main(["--device", "cpu", "--data", str(toy_file), "--tasks", "depth", "semseg",
                       "--batch-size", "2", "--backbone", "hrnet_tiny", *more]) == 0
    printed = capsys.readouterr().out
    names = ("loader", "lambda = 0", "regularised", "regulariser alone", "inference", "RMSE of depth")
    assert all(name in printed for name in names) and printed.isascii()
    plain, regularised = map(int, re.search(r"MiB: lambda = 0 (\d+), regularised (\d+)", printed).groups())
    assert 1 < plain <= regularised


def test_bench_of_images_whose_deepest_map_is_one_value(tmp_path):
    data_prep.make_toy(tmp_path / "toy.h5", train=2, val=1, height=32, width=32)
    assert bench.main(["--device", "cpu", "--data", str(tmp_path / "toy.h5"), "--tasks", "depth",
                       "--batch-size", "2", "--backbone", "resnet18"]) == 0


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
    clock, order = [0.0], []
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])

    def job(name, seconds):
        order.append(name)
        clock[0] += seconds.pop(0)
    times = bench.median_seconds({"a": partial(job, "a", [99, 1, 2, 9, 3, 4]),
                                  "b": partial(job, "b", [50] + [7] * 5)}, CPU)
    assert times == {"a": 3, "b": 7} and order == ["a", "b"] * 6


# --------------------------------------------------------------------------- the programs as programs
@pytest.mark.parametrize("main, program", [
    (predict.main, "predict"), (compare.main, "compare"), (consistency.main, "consistency"),
    (bench.main, "bench")])
def test_wrong_use_is_one_line_and_help_is_ascii(main, program, capsys):
    assert main(["--nonsense"]) == 2
    one_line(capsys, program, "--help")
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and f"extras.{program}" in text and text.isascii()


def test_foreign_network_script_trains_with_the_import_and_with_the_pasted_block(toy_file, tmp_path):
    block = Path(mtcd.__file__).read_text()
    script = (ROOT / "extras/foreign_network.py").read_text()
    assert len(script.splitlines()) < 40
    line = next(line for line in script.splitlines() if line.startswith("from mtcd import CrossTask"))
    pasted = script.replace(line, block.split("# >>> copy from here")[1].split("# <<< to here")[0])
    (tmp_path / "pasted.py").write_text(pasted)
    run = partial(subprocess.run, capture_output=True, text=True, check=True,
                  env={**os.environ, "OMP_NUM_THREADS": "1"})
    module, arguments = [sys.executable, "-m", "extras.foreign_network"], [str(toy_file), "20"]
    first = run([*module, *arguments], cwd=ROOT).stdout
    assert first == run([sys.executable, "pasted.py", *arguments], cwd=tmp_path).stdout
    early, late = (float(re.search(rf"{n}/20  tasks ([0-9.]+)", first)[1]) for n in (10, 20))
    assert late < early
    missing = run([*module, "none.h5"], cwd=ROOT, check=False)
    assert missing.returncode and len(missing.stderr.splitlines()) == 1
