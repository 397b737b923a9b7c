# SPDX-License-Identifier: MIT
"""Tests of odsf.py against scikit-image, scipy's filters and assignments, and plain loops."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, sparse
from scipy.optimize import linear_sum_assignment

from extras import odsf


# ------------------------------------------------------------------------------------------- data
def scene(seed, height=120, width=160):
    """Boundaries of overlapping discs and boxes, and a blurred, bent, incomplete, noisy guess.

    -> probability (H, W) in [0, 1], label (H, W) int64 {0, 1}
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]

    def random_field(sigma):
        return ndimage.gaussian_filter(rng.normal(size=(height, width)), sigma)

    regions = np.zeros((height, width), int)
    for k in range(1, 30):
        middle_y, middle_x = rng.integers((height, width))
        half_y, half_x = rng.integers(4, (height // 4, width // 4))
        if k % 2:
            inside = (abs(y - middle_y) < half_y) & (abs(x - middle_x) < half_x)
        else:
            inside = ((y - middle_y) / half_y) ** 2 + ((x - middle_x) / half_x) ** 2 < 1
        regions[inside] = k

    places = (y + 50 * random_field(10), x + 50 * random_field(10))
    bent = ndimage.map_coordinates(regions, places, order=0, mode="nearest")
    strength = np.clip(0.7 + 20 * random_field(10), 0.1, 1)
    specks = 0.7 * (rng.random((height, width)) < 0.002)
    guess = ndimage.gaussian_filter(borders(bent) * strength + specks, 1.5)
    noise = np.clip(random_field(2), 0, None)
    return np.clip(4 * guess + noise, 0, 1), borders(regions).astype(np.int64)


def borders(regions):
    return (regions != np.roll(regions, 1, 0)) | (regions != np.roll(regions, 1, 1))


def wide_edges(seed, shape):
    """Edges two pixels wide, as PASCAL's: where the 4-neighbour Laplacian of regions is not 0."""
    noise = np.random.default_rng(seed).normal(size=shape)
    regions = np.digitize(ndimage.gaussian_filter(noise, 4) * 40, range(-6, 7, 2))
    return ndimage.laplace(regions, mode="mirror") != 0


def lines(*columns, height=60, width=80):
    """Upright lines away from the frame; 0.05 of the diagonal is 5 pixels."""
    label = np.zeros((height, width))
    label[8:-8, list(columns)] = 1
    return label


# --------------------------------------------------------------------------------------- thinning
def skimage_thin(mask):
    return pytest.importorskip("skimage.morphology").thin(mask)


def some_masks():
    rng = np.random.default_rng(0)
    for k in range(120):
        mask = rng.random(rng.integers(1, 36, 2)) < rng.random()
        if k % 2:
            mask = ndimage.binary_dilation(mask, iterations=1 + k % 3)
        yield mask
    for shape in ((31, 44), (1, 9), (9, 1)):
        yield np.ones(shape, bool)
    yield np.zeros((4, 4), bool)
    for seed in range(4):
        yield ndimage.binary_dilation(scene(seed, 61, 83)[1], iterations=1 + seed % 2)
        yield wide_edges(seed, (60, 90))


def test_thin_equals_scikit_image():
    for mask in some_masks():
        skeleton = odsf.thin(mask)
        assert skeleton.dtype == bool
        assert np.array_equal(skeleton, skimage_thin(mask))


def test_thin_treats_each_bit_apart():
    rng = np.random.default_rng(0)
    density = np.linspace(0.05, 0.95, 64)[:, None, None]
    masks = rng.random((64, 40, 31)) < density
    bits = np.arange(64, dtype=np.uint64)
    words = (masks.astype(np.uint64) << bits[:, None, None]).sum(0, dtype=np.uint64)
    thinned = odsf.thin(words)
    for mask, bit in zip(masks, bits):
        assert np.array_equal((thinned >> bit) & np.uint64(1), skimage_thin(mask))


def test_thin_leaves_its_input_as_it_is():
    mask = np.ones((7, 9), bool)
    odsf.thin(mask)
    assert mask.all()


@pytest.mark.parametrize("mask", [wide_edges(0, (500, 500)), np.ones((500, 500), bool)])
def test_thin_is_fast(mask):
    start = time.process_time()
    odsf.thin(mask)
    assert time.process_time() - start < 2


# ------------------------------------------------------------------------ non-maximum suppression
def suppress(edge):
    """Non-maximum suppression by scipy's filters and interpolation."""
    height, width = edge.shape
    if min(height, width) < 2:
        return np.zeros_like(edge)

    triangle = np.array([1, 2, 3, 4, 5, 4, 3, 2, 1]) / 25
    smooth = ndimage.correlate1d(edge, triangle, axis=0, mode="reflect")
    smooth = ndimage.correlate1d(smooth, triangle, axis=1, mode="reflect")
    o_y, o_x = np.gradient(smooth)
    o_yy, o_xy = np.gradient(o_y)
    o_xx = np.gradient(o_x)[1]
    angle = np.arctan(o_yy * np.sign(-o_xy) / (o_xx + 1e-5)) % np.pi

    y, x = np.indices(edge.shape)
    keep = np.ones(edge.shape, bool)
    for side in (-1, 1):
        at_y = np.clip(y + side * np.sin(angle), 0, height - 1.001)
        at_x = np.clip(x + side * np.cos(angle), 0, width - 1.001)
        keep &= 1.01 * edge >= ndimage.map_coordinates(edge, (at_y, at_x), order=1)

    border = min(5, height // 2, width // 2)
    for position, size in ((y, height), (x, width)):
        from_frame = np.minimum(position, size - 1 - position)
        edge = edge * np.minimum(1, from_frame / border)
    return edge * keep


@pytest.mark.parametrize("shape", [(33, 41), (12, 7), (4, 20), (2, 2), (1, 9)])
def test_suppression_equals_scipys_filters(shape):
    noise = np.random.default_rng(sum(shape)).random(shape)
    edge = np.round(ndimage.gaussian_filter(noise, 1) * 255) / 255
    assert np.allclose(odsf.non_maximum_suppression(edge), suppress(edge), atol=1e-9)


def test_suppression_keeps_the_ridge_of_a_blurred_line():
    ridge = odsf.non_maximum_suppression(ndimage.gaussian_filter(lines(30), (0, 2)))
    assert np.array_equal(np.nonzero(ridge[20:40].any(0))[0], [30])  # away from its ends


# --------------------------------------------------------------------------------------- matching
def match(masks, true, radius):
    """match_boundaries of masks (planes, H, W)."""
    y, x = np.nonzero(masks.any(0))
    return list(odsf.match_boundaries(y, x, masks[:, y, x].T, true, radius))


def assign(predicted, true, radius):
    """The size of the largest one-to-one matching, by scipy's dense assignment."""
    a = np.argwhere(predicted)
    b = np.argwhere(true)
    near = ((a[:, None] - b) ** 2).sum(-1) <= radius**2
    return near[linear_sum_assignment(near, maximize=True)].sum()


def assign_sparse(predicted, true, radius):
    """The same by scipy's sparse assignment. A column per predicted pixel means 'unmatched'."""
    a = np.argwhere(predicted)
    b = np.argwhere(true)
    if len(a) == 0:
        return 0
    reach = int(radius)
    number = np.full(np.add(true.shape, 2 * reach), -1)
    number[tuple(b.T + reach)] = np.arange(len(b))
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
    found = number[a[:, :1] + reach + dy, a[:, 1:] + reach + dx]
    row, k = np.nonzero((found >= 0) & (dy**2 + dx**2 <= radius**2))

    alone = np.arange(len(a))
    rows = np.concatenate([row, alone])
    columns = np.concatenate([found[row, k], len(b) + alone])
    costs = np.concatenate([np.ones(len(row)), np.full(len(a), 2.0)])
    graph = sparse.csr_array((costs, (rows, columns)), (len(a), len(b) + len(a)))
    _, partner = sparse.csgraph.min_weight_full_bipartite_matching(graph)
    return (partner < len(b)).sum()


@pytest.mark.parametrize("chunk", [5, odsf.CHUNK])
def test_matching_is_maximum_on_small_maps(chunk, monkeypatch):
    monkeypatch.setattr(odsf, "CHUNK", chunk)
    rng = np.random.default_rng(chunk)
    for k in range(80):  # four planes each
        shape = rng.integers(1, 22, 2)
        radius = rng.choice([0, 0.5, 1, 1.5, 2, np.sqrt(5), 3, 4.3])
        true = rng.random(shape) < rng.choice([0.05, 0.2, 0.5, 1])
        density = rng.choice([0.02, 0.1, 0.3, 0.6, 1], 4)[:, None, None]
        masks = rng.random((4, *shape)) < density
        if k % 3 == 0:  # dense blobs that overlap in part
            blobs = ndimage.gaussian_filter(rng.random((5, *shape)), (0, 2, 2))
            above = blobs > np.median(blobs, axis=(1, 2), keepdims=True)
            true = above[0]
            masks = above[1:]
        assert match(masks, true, radius) == [assign(mask, true, radius) for mask in masks]


def test_noise_is_matched_to_the_last_pixel():
    rng = np.random.default_rng(0)
    true = rng.random((120, 120)) < 0.4
    masks = np.stack([rng.random((120, 120)) < 0.3, rng.random((120, 120)) < 0.45])
    assert match(masks, true, 2.5) == [assign_sparse(mask, true, 2.5) for mask in masks]


def test_no_pixel_is_matched_twice():
    one = np.zeros((9, 9), bool)
    one[4, 4] = True
    three = np.zeros((9, 9), bool)
    three[4, 3:6] = True
    assert match(three[None], one, 2) == match(one[None], three, 2) == [1]


# --------------------------------------------------------------------------------------- counting
def count_by_steps(probability, label, max_dist, thresholds=odsf.THRESHOLDS, suppress=suppress):
    """Counts (3, thresholds) by the protocol, one threshold after the other; nothing ignored."""
    ridges = suppress(np.round(probability * 255) / 255)
    true = skimage_thin(label > 0)
    radius = max_dist * np.hypot(*true.shape)
    counts = []
    for threshold in thresholds:
        predicted = skimage_thin(ridges > threshold)
        matched = assign_sparse(predicted, true, radius)
        counts.append((matched, predicted.sum(), true.sum()))
    return np.array(counts).T


def count(prediction, label):
    return odsf.count_boundaries(prediction, label, 0.05)


def best_f(prediction, label):
    return odsf.f_scores(count(prediction, label)).max()


def test_whole_protocol_is_exact():
    probability, label = scene(0, 200, 260)
    counts = odsf.count_boundaries(probability, label, 0.011)
    assert counts.dtype == np.int64
    assert counts.shape == (3, 101)
    assert counts[2, 0] > 1000

    some = [0, 5, 20, 40, 63, 64, 70, 99]
    # scipy's filters round otherwise, which moves a pixel or two: here the ridges are our own.
    expected = count_by_steps(
        probability, label, 0.011, odsf.THRESHOLDS[some], odsf.non_maximum_suppression
    )
    assert np.array_equal(counts[:, some], expected)


def test_perfect_prediction_has_f_100():
    for seed in range(3):
        label = scene(seed)[1]
        label[[0, -1]] = 0
        label[:, [0, -1]] = 0
        counts = odsf.count_boundaries(label, label, 0.0075)
        assert odsf.f_scores(counts).max() == 100


def test_a_line_is_matched_up_to_the_radius():
    label = lines(30)  # the radius is 5 pixels
    assert best_f(lines(34), label) == 100
    assert best_f(lines(35), label) == 100
    assert best_f(lines(36), label) == 0


def test_a_second_line_counts_against_precision():
    matched, predicted, true = count(lines(30, 34), lines(30))
    assert matched[0] == true[0] == predicted[0] / 2
    assert best_f(lines(30, 34), lines(30)) == pytest.approx(200 / 3)


def test_thresholds_part_weak_from_strong_lines():
    label = lines(30)
    weak_and_strong = 0.3 * lines(60) + 0.6 * label
    f = odsf.f_scores(count(weak_and_strong, label))
    assert f.max() == 100
    assert 0.3 <= odsf.THRESHOLDS[f.argmax()] <= 0.31
    assert odsf.f_scores(count(0.5 * label, label)).argmax() == 0


def test_the_outermost_ring_is_never_predicted():
    rim = np.zeros((60, 80))
    rim[0] = 1
    assert best_f(rim, rim) == 0


def test_empty_maps_have_f_0():
    nothing = np.zeros((60, 80))
    assert best_f(nothing, nothing) == 0
    assert best_f(lines(30), nothing) == 0
    assert best_f(nothing, lines(30)) == 0
    assert best_f(lines(30), nothing + 255) == 0  # all ignored


def test_a_prediction_on_an_empty_label_costs_precision():
    both = count(lines(30), lines(30)) + count(lines(30), np.zeros((60, 80)))
    assert odsf.f_scores(both).max() == pytest.approx(200 / 3)


@pytest.mark.parametrize("value", [2, -0.1, np.nan, np.inf])
def test_what_is_no_probability_is_refused(value):
    probability = np.full((60, 80), 0.5)
    probability[5, 5] = value
    with pytest.raises(ValueError, match="sigmoid"):
        count(probability, lines(30))


def test_padding_moves_neither_border_nor_diagonal():
    probability, label = scene(3, 90, 120)
    margins = ((11, 35), (7, 80))
    padded_label = np.pad(label, margins, constant_values=255)
    padded = np.pad(probability, margins, constant_values=0.9)
    assert np.array_equal(count(padded, padded_label), count(probability, label))


def test_predictions_on_ignored_pixels_do_not_count():
    label = lines(30)
    assert best_f(lines(30, 55), label) < 70
    label[:, 45:70] = 255
    assert best_f(lines(30, 55), label) == 100


# ---------------------------------------------------------------------------------------- figures
def f_measure(matched, predicted, true):
    if matched == 0:
        return 0
    precision = matched / predicted
    recall = matched / true
    return 100 * 2 * precision * recall / (precision + recall)


def test_f_is_the_harmonic_mean_and_0_where_nothing_matches():
    counts = np.array([[3, 0, 0], [4, 5, 0], [6, 7, 0]])  # matched, predicted, true of 3 maps
    expected = [f_measure(3, 4, 6), 0, 0]
    assert odsf.f_scores(counts) == pytest.approx(expected)


def made_up_counts(precision=1.0):
    """A picture with recalls 1, 0.99 ... 0 at the thresholds: (1, 3, 101)."""
    counts = np.zeros((1, 3, 101), int)
    counts[0, 0] = np.arange(1000, -1, -10)
    counts[0, 1] = counts[0, 0] / precision
    counts[0, 2] = 1000
    return counts


def test_ap_of_a_perfect_curve_is_capped_at_100():
    figures, precision, recall = odsf.summarise(made_up_counts())
    assert figures["AP"] == 100
    assert (precision == 100).all()
    assert recall == pytest.approx(np.arange(100, -1, -1))


def test_ap_takes_precision_as_100_where_nothing_is_predicted():
    figures = odsf.summarise(made_up_counts(precision=0.5))[0]
    assert figures["AP"] == pytest.approx(100 * 0.5 + 1)  # 100 recalls of 50 %, and recall 0


def test_ap_counts_0_for_recalls_that_are_not_reached():
    counts = made_up_counts(precision=0.5)
    counts[0, :2, 51:] = counts[0, :2, 50:51]  # no recall below 50 %
    assert odsf.summarise(counts)[0]["AP"] == pytest.approx(51 * 0.5)


def test_ap_takes_the_lowest_threshold_of_equal_recalls():
    counts = made_up_counts()
    counts[0, 0, :50] = 1000  # recall 100 %
    counts[0, 0, 50:] = 500  # recall 50 %
    counts[0, 1] = 1000
    counts[0, 1, [0, 50]] = 2000  # precision 50 % and 25 %, and 100 % and 50 % beyond
    assert odsf.summarise(counts)[0]["AP"] == pytest.approx(51 * (0.5 + 0.25) / 2)


def test_ap_of_a_single_point_is_0():
    counts = made_up_counts()
    counts[0, :2] = 100
    assert odsf.summarise(counts)[0]["AP"] == 0


# ---------------------------------------------------------------------------------- picture files
def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)


# Labels come in turn as 0/255 png, 0/1 png, bool npy, 0/255 npy and 1-bit png.
LABEL_FORMATS = [
    (".png", 255, np.uint8),
    (".png", 1, np.uint8),
    (".npy", 1, bool),
    (".npy", 255, np.int32),
    (".png", 1, bool),
]


def write_pictures(folder, pairs, max_dist=0.02):
    """Files of (probability, label) pairs -> the tool's arguments for them."""
    for k, (probability, label) in enumerate(pairs):
        save(folder / f"predictions/{k}.png", np.round(probability * 255).astype(np.uint8))
        ending, factor, kind = LABEL_FORMATS[k % 5]
        save(folder / f"labels/{k}{ending}", (label * factor).astype(kind))
    return [
        "--predictions",
        str(folder / "predictions"),
        "--labels",
        str(folder / "labels"),
        "--max-dist",
        str(max_dist),
    ]


def run_tool(arguments, folder):
    """The figures that the tool writes."""
    path = folder / "figures.json"
    assert odsf.main([*arguments, "--json", str(path)]) == 0
    return json.loads(path.read_text())


def odd_pairs():
    one_pixel = np.zeros((30, 40))
    one_pixel[12, 20] = 1
    maps = [np.zeros((30, 40)), np.ones((30, 40)), one_pixel]
    pairs = [(prediction, label) for prediction in maps for label in maps]
    return [*pairs, (np.ones((1, 1)), np.ones((1, 1)))]


def scenes():
    return [scene(seed, 40 + 9 * seed, 70 - 5 * seed) for seed in range(5)]


@pytest.mark.parametrize("make_pairs", [scenes, odd_pairs])
def test_tool_equals_an_independent_reference(make_pairs, tmp_path, capsys):
    pairs = make_pairs()
    counts = [count_by_steps(probability, label, 0.02) for probability, label in pairs]
    f = [f_measure(*column) for column in np.sum(counts, axis=0).T]
    best_columns = []
    for one in counts:  # max takes the first of equal ones
        best_columns.append(max(one.T, key=lambda column: f_measure(*column)))

    figures = run_tool([*write_pictures(tmp_path, pairs), "--workers", "1"], tmp_path)
    assert figures["odsF"] == pytest.approx(max(f), abs=0.05)
    threshold = list(odsf.THRESHOLDS).index(figures["threshold"])
    assert f[threshold] == pytest.approx(max(f), abs=0.05)
    assert figures["oisF"] == pytest.approx(f_measure(*np.sum(best_columns, axis=0)), abs=0.05)
    assert figures["images"] == len(pairs)
    assert f"odsF {figures['odsF']:.2f}" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.part"))


def test_ignore_pictures_mask(tmp_path):
    label = lines(30)
    arguments = write_pictures(tmp_path, [(lines(30, 55), label)])
    mask = np.zeros(label.shape, np.uint8)
    mask[:, 45:70] = 7
    save(tmp_path / "ignore/0.png", mask)
    assert run_tool(arguments, tmp_path)["odsF"] < 70
    arguments += ["--ignore", str(tmp_path / "ignore")]
    assert run_tool(arguments, tmp_path)["odsF"] == 100


ZEROS = np.zeros((60, 80), np.uint8)
ONES_AND_255 = np.where(np.arange(80) % 2, 1, 255) + np.zeros((60, 1), int)
BAD_FILES = {
    "other size": ("predictions/1.png", np.zeros((60, 81), np.uint8)),
    "colour": ("predictions/1.png", np.zeros((60, 80, 3), np.uint8)),
    "16 bits": ("predictions/1.png", np.zeros((60, 80), np.uint16)),
    "broken": ("predictions/1.png", b"\x89PNG\r\n\x1a\n then nothing"),
    "empty file": ("predictions/1.png", b""),
    "missing": ("predictions/1.png", None),
    "nan label": ("labels/2.npy", np.full((60, 80), np.nan)),
    "pickle": ("labels/2.npy", np.array([[{}]])),
    "three axes": ("labels/2.npy", np.zeros((60, 80, 1))),
    "no pixels": ("labels/2.npy", np.zeros((0, 80))),
    "text": ("labels/2.npy", np.full((60, 80), "x")),
    "cut npy": ("labels/2.npy", b"\x93NUMPY\x01\x00"),
    "grey label": ("labels/1.png", np.full((60, 80), 128, np.uint8)),
    "1 and 255": ("labels/1.png", ONES_AND_255.astype(np.uint8)),
    "two labels": ("labels/1.npy", ZEROS),
    "nan ignored": ("ignore/1.npy", np.where(lines(30), np.nan, 0)),
    "small ignored": ("ignore/1.npy", np.zeros((5, 5))),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_picture_is_one_line_that_names_it(case, tmp_path, capsys):
    arguments = write_pictures(tmp_path, [(lines(30), lines(30))] * 3)
    name, content = BAD_FILES[case]
    if name.startswith("ignore"):
        for k in (0, 2):
            save(tmp_path / f"ignore/{k}.png", ZEROS)
        arguments += ["--ignore", str(tmp_path / "ignore")]
    if content is None:
        (tmp_path / name).unlink()
    elif isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        save(tmp_path / name, content)

    status = odsf.main([*arguments, "--workers", "1", "--json", str(tmp_path / "figures.json")])
    out, error = capsys.readouterr()
    assert status == 2
    assert error.startswith("odsf: ")
    assert error.count("\n") == 1
    assert Path(name).name in error
    assert out == ""
    assert not list(tmp_path.glob("figures.json*"))


# ---------------------------------------------------------------------------------------- workers
LONG = 100  # pictures that take two workers more than SOON seconds
SOON = 20


@pytest.fixture
def tool(tmp_path):
    """The tool at work, copied out of the project -> its process, the ids of its two workers."""
    arguments = write_pictures(tmp_path, [scene(0, 425, 560)])
    for folder in ("predictions", "labels"):
        for k in range(1, LONG):
            os.link(tmp_path / folder / "0.png", tmp_path / folder / f"{k}.png")
    copy = tmp_path / "alone.py"
    copy.write_bytes(Path(odsf.__file__).read_bytes())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    process = subprocess.Popen(
        [sys.executable, str(copy), *arguments, "--workers", "2"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = []
    while len(workers) < 2 and process.poll() is None:
        time.sleep(0.01)
        workers = children.read_text().split()
    yield process, workers
    with contextlib.suppress(ProcessLookupError):  # all have ended, as they should
        os.killpg(process.pid, signal.SIGKILL)


def all_end(workers):
    deadline = time.time() + SOON
    while time.time() < deadline:
        if not any(Path(f"/proc/{worker}").exists() for worker in workers):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("wait", [0, 0.7])
def test_ctrl_c_is_one_line_and_no_worker_stays(wait, tool):
    process, workers = tool
    time.sleep(wait)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
    os.killpg(process.pid, signal.SIGINT)  # an impatient user
    error = process.communicate(timeout=SOON)[1]
    assert process.returncode == 130
    assert error == "odsf: stopped\n"
    assert all_end(workers)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(sent, tool):
    process, workers = tool
    time.sleep(0.5)
    process.send_signal(sent)
    process.communicate(timeout=SOON)
    assert process.returncode == -sent
    assert all_end(workers)


def test_a_killed_worker_is_one_line(tool):
    process, workers = tool
    time.sleep(0.5)
    os.kill(int(workers[0]), signal.SIGKILL)
    error = process.communicate(timeout=SOON)[1]
    assert process.returncode == 2
    assert error.startswith("odsf: A process in the process pool was terminated")
    assert error.count("\n") == 1
    assert all_end(workers)


def test_workers_leave_ctrl_c_to_their_parent():
    with ProcessPoolExecutor(1, initializer=odsf.start_worker) as pool:
        handler = pool.submit(signal.getsignal, signal.SIGINT).result()
    assert handler == signal.SIG_IGN


def test_child_processes_of_the_caller_live_on(tmp_path):
    child = multiprocessing.Process(target=time.sleep, args=(60,))
    child.start()
    run_tool([*write_pictures(tmp_path, [(lines(30), lines(30))]), "--workers", "1"], tmp_path)
    assert child.is_alive()
    child.kill()
    child.join()


def test_counts_are_in_the_order_of_the_names(tmp_path):
    pairs = [(lines(30), lines(*range(30, 30 + 4 * k, 4))) for k in range(1, 6)]
    arguments = write_pictures(tmp_path, pairs)
    args = odsf.parse_arguments([*arguments, "--workers", "2"])
    files = odsf.list_files(args.predictions, args.labels, args.ignore)
    counts = odsf.count_all(files, args.max_dist, args.workers)
    assert list(counts[:, 2, 0]) == [44, 88, 132, 176, 220]  # 44 pixels per line


# ----------------------------------------------------------------------------------- command line
BAD_ARGUMENTS = [
    ["--labels", "."],
    ["--labels", "none"],
    ["--max-dist", "nan"],
    ["--max-dist", "0.2"],
    ["--max-dist", "x"],
    ["--workers", "-1"],
    ["--json", "no/figures.json"],
    ["--ignore", "."],
    ["--what"],
]


@pytest.mark.parametrize("change", BAD_ARGUMENTS)
def test_bad_arguments_are_one_line(change, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = write_pictures(tmp_path, [(lines(30), lines(30))])
    try:
        status = odsf.main([*arguments, "--workers", "1", *change])
    except SystemExit as end:
        status = end.code
    error = capsys.readouterr().err
    assert status == 2
    assert error.startswith("odsf: ")
    assert error.count("\n") == 1


def test_a_curve_is_drawn_and_replaces_whole(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "curve.png"
    arguments = write_pictures(tmp_path, [(lines(30), lines(30))])
    assert odsf.main([*arguments, "--workers", "1", "--curve", str(path)]) == 0
    assert min(Image.open(path).size) > 300
    assert not list(tmp_path.glob("*.part"))


def test_a_failed_write_leaves_the_file_that_was_there(tmp_path):
    path = tmp_path / "figures.json"
    path.write_text("whole")
    with pytest.raises(OSError), odsf.replacing(path) as part:
        part.write_text("hal")
        raise OSError("the disk is full")
    assert path.read_text() == "whole"
    assert os.listdir(tmp_path) == ["figures.json"]


def test_help_is_ascii_and_names_the_command(capsys):
    with pytest.raises(SystemExit) as end:
        odsf.main(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert "python -m extras.odsf" in text
    assert text.isascii()
