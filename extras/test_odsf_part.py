# SPDX-License-Identifier: MIT
"""Tests of extras/odsf.py against scikit-image's thinning, scipy's assignment and closed forms."""
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, sparse
from scipy.optimize import linear_sum_assignment

from extras import odsf
from extras.odsf import (
    THRESHOLDS,
    count_boundaries,
    f_scores,
    match_boundaries,
    thin,
)

skimage_thin = pytest.importorskip("skimage.morphology").thin


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


def laplacian_edges(rng, shape):
    """Where the 4-neighbour Laplacian of a map of regions is not 0: edges two pixels wide, as PASCAL's."""
    regions = np.digitize(ndimage.gaussian_filter(rng.normal(size=shape), 4) * 40, range(-6, 7, 2))
    return ndimage.laplace(regions, mode="mirror") != 0


def some_masks():
    rng = np.random.default_rng(0)
    for k in range(200):
        mask = rng.random(rng.integers(1, 36, 2)) < rng.random()
        yield ndimage.binary_dilation(mask, iterations=k % 3) if k % 2 else mask
    yield from (np.ones((31, 44), bool), np.ones((1, 9), bool), np.ones((9, 1), bool), np.zeros((4, 4), bool))
    for k in range(5):
        yield ndimage.binary_dilation(scene(k, 61, 83)[1], iterations=1 + k % 2)
        yield laplacian_edges(rng, (60, 90))


def test_thin_equals_scikit_image_and_is_fast():
    rng = np.random.default_rng(1)
    large = [laplacian_edges(rng, (500, 500)), np.ones((500, 500), bool)]
    for mask in [*some_masks(), *large]:
        start = time.process_time()
        skeleton = thin(mask)
        assert time.process_time() - start < 2
        assert skeleton.dtype == bool and np.array_equal(skeleton, skimage_thin(mask))


def test_thin_treats_bits_apart():
    masks = np.random.default_rng(0).random((64, 40, 31)) < np.linspace(0.05, 0.95, 64)[:, None, None]
    packed = thin((masks.astype(np.uint64) << np.arange(64, dtype=np.uint64)[:, None, None]).sum(0, dtype=np.uint64))
    for k, mask in enumerate(masks):
        assert np.array_equal(packed >> np.uint64(k) & np.uint64(1), skimage_thin(mask))


def suppressed(edge):
    """Non-maximum suppression by scipy's filters and interpolation."""
    (height, width), (y, x) = edge.shape, np.indices(edge.shape)
    if min(height, width) < 2:
        return np.zeros_like(edge)
    kernel = np.array([1, 2, 3, 4, 5, 4, 3, 2, 1]) / 25
    smooth = ndimage.correlate1d(ndimage.correlate1d(edge, kernel, 0), kernel, 1)  # borders mirrored
    oy, ox = np.gradient(smooth)
    (oyy, oxy), oxx = np.gradient(oy), np.gradient(ox)[1]
    angle = np.arctan(oyy * np.sign(-oxy) / (oxx + 1e-5)) % np.pi
    keep = np.ones(edge.shape, bool)
    for side in (-1, 1):
        at = np.clip(y + side * np.sin(angle), 0, height - 1.001), np.clip(x + side * np.cos(angle), 0, width - 1.001)
        keep &= 1.01 * edge >= ndimage.map_coordinates(edge, at, order=1)
    border = min(5, height // 2, width // 2)
    for at, n in ((y, height), (x, width)):
        edge = edge * np.minimum(1, np.minimum(at, n - 1 - at) / border)
    return edge * keep


def test_suppression_equals_scipys_filters():
    for seed, shape in enumerate([(33, 41), (12, 7), (4, 20), (2, 2), (1, 9)]):
        edge = np.round(ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 1) * 255) / 255
        assert np.allclose(odsf.non_maximum_suppression(edge), suppressed(edge), atol=1e-9)


def match(masks, true, radius):
    y, x = np.nonzero(masks.any(0))
    return match_boundaries(y, x, masks[:, y, x].T, true, radius)


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
        assert list(match(masks, true, radius)) == [exact(mask, true, radius) for mask in masks]


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


def reference(probability, label, max_dist, thresholds=THRESHOLDS, suppress=suppressed):
    """Counts by the protocol's steps, one threshold after the other; nothing is ignored."""
    ridges, true = suppress(np.round(probability * 255) / 255), skimage_thin(label > 0)
    counts = []
    for threshold in thresholds:
        predicted = skimage_thin(ridges > threshold)
        matched = exact_sparse(predicted, true, max_dist * np.hypot(*true.shape)) if predicted.any() else 0
        counts.append((matched, predicted.sum(), true.sum()))
    return np.array(counts).T


def test_whole_protocol_is_exact_on_a_large_map():
    probability, label = scene(0)
    counts, some = count_boundaries(probability, label, 0.011), [5, 20, 40, 70, 99]
    assert counts.dtype == np.int64 and counts.shape == (3, 101) and counts[2, 0] > 3000
    expected = reference(probability, label, 0.011, THRESHOLDS[some], odsf.non_maximum_suppression)
    assert np.array_equal(counts[:, some], expected)  # by scipy's filters, which round otherwise, a pixel or two move


def test_noise_is_matched_to_the_last_pixel():
    rng = np.random.default_rng(0)
    masks, true = rng.random((2, 150, 150)) < [[[0.3]], [[0.45]]], rng.random((150, 150)) < 0.4
    assert list(match(masks, true, 2.5)) == [exact_sparse(mask, true, 2.5) for mask in masks]


def score(prediction, label, max_dist=0.05):
    """-> F in percent at the best threshold, that threshold, the counts."""
    counts = count_boundaries(prediction, label, max_dist)
    f = f_scores(counts)
    return f.max(), THRESHOLDS[f.argmax()], counts


def line(*columns, height=60, width=80):  # 0.05 of the diagonal is 5 pixels
    label = np.zeros((height, width))
    label[8:-8, list(columns)] = 1
    return label


def test_known_answers():
    for seed in range(5):
        label = scene(seed)[1]
        label[[0, -1]], label[:, [0, -1]] = 0, 0
        assert score(label, label, 0.0075)[0] == 100
    label = line(30)
    assert score(line(34), label)[0] == 100 and score(line(35), label)[0] == 100
    assert score(line(36), label)[0] == 0
    f, _, (matched, predicted, true) = score(line(30, 34), label)
    assert matched[0] == true[0] == predicted[0] / 2 and f == pytest.approx(200 / 3)
    assert score(0.5 * label, label)[1] == 0.001
    f, threshold, _ = score(0.3 * line(60) + 0.6 * label, label)
    assert f == 100 and 0.3 <= threshold <= 0.31
    rim = np.zeros((60, 80))
    rim[0] = 1
    assert score(rim, rim)[0] == 0  # documented: the outermost ring is never predicted


def test_empty_maps_and_bad_probabilities():
    nothing = np.zeros((60, 80))
    for prediction, label in [(nothing, nothing), (line(30), nothing), (nothing, line(30)), (line(30), nothing + 255)]:
        assert score(prediction, label)[0] == 0
    both = score(line(30), line(30))[2] + score(line(30), nothing)[2]
    assert f_scores(both).max() == pytest.approx(200 / 3)  # a prediction on an empty label costs precision
    for bad in (nothing + 2, nothing - 0.1, nothing + np.nan, nothing + np.inf, np.where(line(3), np.nan, 0.5)):
        with pytest.raises(ValueError, match="sigmoid"):
            score(bad, nothing)


def test_ignored_pixels_and_padding():
    probability, label = scene(3, 90, 120)
    padded = np.pad(label, ((0, 35), (0, 80)), constant_values=255)
    counts = score(np.pad(probability, ((0, 35), (0, 80)), constant_values=0.9), padded)[2]
    assert np.array_equal(counts, score(probability, label)[2])
    label = line(30)
    label[:, 45:70] = 255
    assert score(line(30, 55), label)[0] == 100


# the tool
def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array) if path.suffix == ".npy" else Image.fromarray(array).save(path)


def pictures(folder, pairs):
    """Labels in turn as 0/255 png, 0/1 png, bool npy, 0/255 npy and 1-bit png."""
    for k, (probability, label) in enumerate(pairs):
        save(folder / f"p/{k}.png", np.round(probability * 255).astype(np.uint8))
        ending, factor, kind = [("png", 255, "u1"), ("png", 1, "u1"), ("npy", 1, bool), ("npy", 255, "i4"),
                                ("png", 1, bool)][k % 5]
        save(folder / f"l/{k}.{ending}", (label * factor).astype(kind))
    return ["--predictions", str(folder / "p"), "--labels", str(folder / "l"), "--max-dist", "0.02"]


def f_measure(matched, predicted, true):
    return 200 * matched / (predicted + true) if matched else 0


def test_tool_equals_an_independent_reference(tmp_path, capsys):
    one = np.zeros((30, 40))
    one[12, 20] = 1
    odd = [np.zeros((30, 40)), np.ones((30, 40)), one]
    pairs = [scene(seed, 50 + 17 * seed, 120 - 11 * seed) for seed in range(5)]
    pairs += [(a, b) for a in odd for b in odd] + [(np.ones((1, 1)), np.ones((1, 1)))]
    expected = [reference(*pair, 0.02) for pair in pairs]
    for name, chosen in {"scenes": slice(5), "odd": slice(5, None), "all": slice(None)}.items():
        arguments = [*pictures(tmp_path / name, pairs[chosen]), "--json", str(tmp_path / "f.json"), "--workers", "1"]
        assert odsf.main(arguments) == 0
        figures, counts = json.loads((tmp_path / "f.json").read_text()), expected[chosen]
        f = [f_measure(*column) for column in np.sum(counts, axis=0).T]
        assert figures["odsF"] == pytest.approx(max(f), abs=0.05)
        assert f[list(THRESHOLDS).index(figures["threshold"])] == pytest.approx(max(f), abs=0.05)
        own = [max(c.T, key=lambda column: f_measure(*column)) for c in counts]  # of equal ones the first
        assert figures["oisF"] == pytest.approx(f_measure(*np.sum(own, axis=0)), abs=0.05)
        assert figures["images"] == len(counts) and f"{figures['odsF']:.2f}" in capsys.readouterr().out
        assert not list(tmp_path.glob("*.part"))
        if name == "all":
            assert odsf.main([*arguments[:-1], "2", "--curve", str(tmp_path / "c.png")]) == 0
            assert json.loads((tmp_path / "f.json").read_text()) == figures
            assert Image.open(tmp_path / "c.png").size > (300, 300)


def test_area_under_the_curve():
    counts = np.zeros((1, 3, 101), int)
    counts[0, 2] = 1000
    counts[0, 0] = np.arange(1000, -1, -10)[:101]  # recall 1, 0.99 ... 0
    counts[0, 1] = counts[0, 0]
    assert odsf.summarise(counts)[0]["AP"] == 100  # 101 recalls of precision 1: capped
    counts[0, 1] = 2 * counts[0, 0]
    assert odsf.summarise(counts)[0]["AP"] == pytest.approx(0.5 * 100 + 1)  # nothing predicted: precision 1
    counts[0, :2, 51:] = counts[0, :2, 50:51]  # no recall below 0.5 is reached: 51 recalls of precision 0.5
    assert odsf.summarise(counts)[0]["AP"] == pytest.approx(25.5)
    counts[0, :2] = 100
    assert odsf.summarise(counts)[0]["AP"] == 0  # a single point


def test_ignore_pictures_mask(tmp_path):
    label = line(30)
    arguments = [*pictures(tmp_path, [(line(30, 55), label)]), "--json", str(tmp_path / "f.json"), "--workers", "1"]
    mask = np.zeros(label.shape, np.uint8)
    mask[:, 45:70] = 7
    save(tmp_path / "i/0.png", mask)
    assert odsf.main(arguments) == 0 and json.loads((tmp_path / "f.json").read_text())["odsF"] < 70
    assert odsf.main([*arguments, "--ignore", str(tmp_path / "i")]) == 0
    assert json.loads((tmp_path / "f.json").read_text())["odsF"] == 100


BAD = {
    "sizes": ("p/1.png", np.zeros((60, 81), np.uint8), "1.png"),
    "colour": ("p/1.png", np.zeros((60, 80, 3), np.uint8), "1.png"),
    "16 bits": ("p/1.png", np.zeros((60, 80), np.uint16), "1.png"),
    "broken": ("p/1.png", b"\x89PNG\r\n\x1a\n then nothing", "1.png"),
    "empty file": ("p/1.png", b"", "1.png"),
    "missing": ("p/1.png", None, "1.png"),
    "nan": ("l/2.npy", np.full((60, 80), np.nan), "2.npy"),
    "pickle": ("l/2.npy", np.array([[{}]]), "2.npy"),
    "three axes": ("l/2.npy", np.zeros((60, 80, 1)), "2.npy"),
    "cut npy": ("l/2.npy", b"\x93NUMPY\x01\x00", "2.npy"),
    "grey label": ("l/1.png", np.full((60, 80), 128, np.uint8), "1.png"),
    "two values": ("l/1.png", np.arange(4800, dtype=np.uint8).reshape(60, 80) % 2 * 254 + 1, "1.png"),
    "twice": ("l/1.npy", np.zeros((60, 80)), "1.npy"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_that_names_the_file(case, tmp_path, capsys):
    arguments, (name, content, named) = pictures(tmp_path, [(line(30), line(30))] * 3), BAD[case]
    if content is None:
        (tmp_path / name).unlink()
    elif isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        save(tmp_path / name, content)
    assert odsf.main([*arguments, "--workers", "1", "--json", str(tmp_path / "f.json")]) == 2
    out, error = capsys.readouterr()
    assert named in error and error.count("\n") == 1 and not out and not list(tmp_path.glob("f.json*"))


@pytest.mark.parametrize("change", [["--labels", "."], ["--labels", "none"], ["--max-dist", "nan"], ["--max-dist", "x"],
                                    ["--workers", "-1"], ["--json", "no/f.json"], ["--ignore", "."], ["--what"]])
def test_bad_arguments_are_one_line(change, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(SystemExit):
        raise SystemExit(odsf.main([*pictures(tmp_path, [(line(30), line(30))]), *change]))
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_at_any_time_no_worker_stays(sent, tmp_path):
    arguments = pictures(tmp_path, [scene(0)] * 30)
    copy = tmp_path / "alone.py"  # out of the project
    copy.write_bytes(Path(odsf.__file__).read_bytes())
    process = subprocess.Popen([sys.executable, str(copy), *arguments, "--workers", "2"], cwd=tmp_path,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)
    children, workers = Path(f"/proc/{process.pid}/task/{process.pid}/children"), []
    while len(workers) < 2 and process.poll() is None:
        time.sleep(0.1)
        workers = children.read_text().split()
    time.sleep(1)
    os.killpg(process.pid, sent)
    error = process.communicate(timeout=10)[1]  # it waits for no map
    assert process.returncode == (130 if sent == signal.SIGINT else -signal.SIGKILL)
    assert sent == signal.SIGKILL or error.count("\n") == 1
    deadline = time.time() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.time() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
