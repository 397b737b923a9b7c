# SPDX-License-Identifier: MIT
"""Boundary evaluation (odsF, oisF, AP) without MATLAB: exact, on several cores, of anybody's pictures.

    python -m extras.odsf --predictions DIR --labels DIR --max-dist 0.011 --json figures.json

The steps are SEISM's and the structured-edges toolbox's: suppression of what is no ridge, 101 thresholds,
thinning, one-to-one matching of predicted to true pixels within max-dist times the picture's diagonal.

odsF    F at the best threshold for all pictures ("ODS F"; SEISM's *_ods_f.txt, odsF in BSDS's eval_bdry.txt)
oisF    F of the counts of each picture at its own best threshold, summed ("OIS F", *_ois_f.txt);
        of equal thresholds the lowest
AP      area under the precision-recall curve ("AP", *_ap.txt): precision interpolated linearly at recalls
        0, 0.01, ... 1, summed and divided by 100; recalls that no threshold reaches count 0, so that a binary
        prediction has an AP of nearly 0; precision is 1 where nothing is predicted; at most 100 %

predictions  NAME.png, grey, 8 bits (or 1): 255 is certainly a boundary, 0 certainly none
labels       NAME.png or NAME.npy, the same size: 0 and 255, or 0 and 1 (bool too), per file; nothing else.
             All of them are evaluated; a prediction without a label is left out. A label without any
             boundary counts too: what is predicted there costs precision.
ignore       NAME.png or NAME.npy for each label: pixels that are not 0 are ignored; the picture is the
             bounding box of the others

This file needs numpy, and Pillow to read pictures. It can be copied and run by itself: python odsf.py --help
"""
import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path

import numpy as np

# 101 thresholds make 101 binary maps ("planes") of one picture. They are handled all at once: bit t of a pixel's
# integer says whether the pixel stands in plane t, and one bitwise operation treats all planes together.
THRESHOLDS = np.array([0.001, *np.arange(1, 100) / 100, 0.999])  # the public runs' own; a pixel must exceed them


# ---------------------------------------------------------------------------------------- thinning
def at_least_two(a, b, c, d):
    return (a & b) | (c & d) | ((a | b) & (c | d))


def deletable(around, first: bool):
    """Which pixels a half-pass of Guo and Hall deletes; around: their 8 neighbours, clockwise from the north."""
    n, ne, e, se, s, sw, w, nw = around
    a, b, c, d = ~n & (ne | e), ~e & (se | s), ~s & (sw | w), ~w & (nw | n)
    one_crossing = (a ^ b ^ c ^ d) & ~((a & b) | (c & d))  # the pixel connects nothing
    pairs, turned = (nw | n, ne | e, se | s, sw | w), (n | ne, e | se, s | sw, w | nw)
    no_end = at_least_two(*pairs) & at_least_two(*turned)
    core = np.bitwise_and.reduce(pairs + turned)
    wrong_side = (n | ne | ~se) & e if first else (s | sw | ~nw) & w  # the half-passes peel opposite sides
    return one_crossing & no_end & ~core & ~wrong_side


def thin(mask: np.ndarray) -> np.ndarray:
    """Guo-Hall thinning of a (H, W) bool map until nothing changes; beyond the frame nothing is set.

    Every bit of an unsigned integer map is thinned as a map of its own, so a uint64 map holds 64. Equals
    scikit-image's `thin` and MATLAB's bwmorph; OpenCV takes the half-passes the other way round, which
    moves the line of an edge two pixels wide by one pixel.
    """
    stride = mask.shape[1] + 2
    around = [-stride, 1 - stride, 1, 1 + stride, stride, stride - 1, -1, -1 - stride]  # N, NE, ... NW
    around = np.array(around)[:, None]
    flat = np.pad(mask, 1).ravel()
    touched = np.zeros(flat.size, bool)
    candidates = before = np.flatnonzero(flat)
    first = True
    while candidates.size:
        here = flat[candidates]
        gone = here & deletable(flat[candidates + around], first)
        flat[candidates] = here & ~gone
        # A pixel's verdict in this half-pass changes only if a neighbour went in the last two half-passes.
        changed = candidates[gone != 0]
        touched[np.concatenate([changed, before]) + around] = True
        candidates = np.flatnonzero(touched)
        touched[candidates] = False
        candidates = candidates[flat[candidates] != 0]
        before, first = changed, not first
    return flat.reshape(-1, stride)[1:-1, 1:-1]


# ------------------------------------------------------------------------- non-maximum suppression
def direction_across(probability: np.ndarray) -> np.ndarray:
    """(H, W) -> angle across the edge in [0, pi], from second derivatives after a triangle filter of radius 4."""
    height, width = probability.shape
    smooth = np.pad(probability, 4, "symmetric")
    smooth = sum((5 - abs(k)) / 25 * smooth[4 + k : 4 + k + height] for k in range(-4, 5))
    smooth = sum((5 - abs(k)) / 25 * smooth[:, 4 + k : 4 + k + width] for k in range(-4, 5))
    dy, dx = np.gradient(smooth)
    (dyy, dxy), dxx = np.gradient(dy), np.gradient(dx, axis=1)
    return np.mod(np.arctan(dyy * np.sign(-dxy) / (dxx + 1e-5)), np.pi)


def interpolate(image: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Bilinear values of an (H, W) image at points (N,), which are moved into the frame."""
    height, width = image.shape
    y, x = np.clip(y, 0, height - 1.001), np.clip(x, 0, width - 1.001)
    i, j = y.astype(int), x.astype(int)
    y, x = y - i, x - j
    above = (1 - x) * image[i, j] + x * image[i, j + 1]
    below = (1 - x) * image[i + 1, j] + x * image[i + 1, j + 1]
    return (1 - y) * above + y * below


def non_maximum_suppression(probability: np.ndarray) -> np.ndarray:
    """Keep the ridges of a (H, W) boundary map in [0, 1], as the structured-edges toolbox does.

    A pixel goes to 0 where 1.01 times its value is below either neighbour one pixel away across the edge.
    The outermost 5 pixels are multiplied by 0, 1/5, ... 4/5: **a pixel of the outermost ring is never predicted.**
    """
    ridges = np.zeros_like(probability)
    height, width = probability.shape
    if min(height, width) < 2:  # no derivative, and all of it is rim
        return ridges
    y, x = np.nonzero(probability)
    value, angle = probability[y, x], direction_across(probability)[y, x]
    keep = np.ones(len(y), bool)
    for side in (-1, 1):
        beside = interpolate(probability, y + side * np.sin(angle), x + side * np.cos(angle))
        keep &= 1.01 * value >= beside
    ridges[y[keep], x[keep]] = value[keep]
    rim = min(5, height // 2, width // 2)
    for axis, n in enumerate((height, width)):
        from_edge = np.minimum(np.arange(n), np.arange(n)[::-1])
        ridges *= np.expand_dims(np.minimum(from_edge / rim, 1), 1 - axis)
    return ridges


# ------------------------------------------------------------------------------ one-to-one matching
def bits(words: np.ndarray) -> np.ndarray:
    """(N, K) uint64 -> (N, 64 K) of 0 and 1, the lowest bit first."""
    return np.unpackbits(np.ascontiguousarray(words, "<u8").view(np.uint8), axis=1, bitorder="little")


class Side:
    """One side of the matching, the predicted or the true pixels, in all planes at once.

    A vertex is a pixel in a plane, with the number plane * columns + pixel. The last column is no pixel: it is in
    no plane, and fills up the lists of neighbours.
    """

    def __init__(self, words: np.ndarray, others: int, most: int):
        """words (N, K) uint64: the planes that a pixel stands in; most: neighbours that a pixel can have."""
        self.free = np.pad(words, ((0, 1), (0, 0)))  # (N + 1, K)
        self.columns = len(self.free)
        self.present = bits(self.free).T.ravel().astype(bool)  # (vertices,)
        self.mate = np.full(self.present.size, -1, np.int32)  # the partner's number on the other side, -1: free
        self.near = np.full((most, self.columns), others, np.int32)  # pixels of the other side, the nearest first
        self.degree = np.zeros(self.columns, int)

    def add_neighbours(self, pixel, partner):
        self.near[self.degree[pixel], pixel] = partner
        self.degree[pixel] += 1

    def loose(self) -> np.ndarray:
        """(planes, columns) bool: what is free and has neighbours."""
        return bits(self.free).T.astype(bool) & (self.degree > 0)


def match_pairs(p: Side, t: Side, i: np.ndarray, j: np.ndarray) -> None:
    """Match pixels i (N,) of p to j of t in every plane where both are free; no pixel may stand in i or j twice."""
    both = p.free[i] & t.free[j]
    p.free[i] ^= both
    t.free[j] ^= both
    some = np.flatnonzero(both.any(1))
    pair, plane = np.nonzero(bits(both[some]))
    i, j = plane * p.columns + i[some][pair], plane * t.columns + j[some][pair]
    p.mate[i], t.mate[j] = j, i


def grow_trees(roots: np.ndarray, a: Side, b: Side) -> tuple[np.ndarray, np.ndarray]:
    """Alternating trees from free vertices of a, breadth-first, until each meets a free vertex of b or is stuck.

    -> end (roots,): the free vertex that a tree has met, -1 if none; parent (vertices of b,): the way back.
    A vertex of b joins one tree only, so that the paths do not touch one another.
    """
    near = a.near.T  # (columns, D)
    fresh, parent = b.present.copy(), np.empty(b.mate.size, np.int32)
    end, tree, frontier = np.full(roots.size, -1), np.arange(roots.size), roots
    while frontier.size:
        level = []
        for first in range(0, frontier.size, 1 << 14):  # bounds the memory
            part, branch = frontier[first : first + (1 << 14)], tree[first : first + (1 << 14)]
            plane, pixel = np.divmod(part, a.columns)
            reached = (near[pixel] + (plane * b.columns).astype(np.int32)[:, None]).ravel()
            new = np.flatnonzero(fresh[reached])
            reached, source = reached[new], new // near.shape[1]
            parent[reached] = part[source]
            won = parent[reached] == part[source]  # several may reach for one vertex: the last has it
            reached, branch = reached[won], branch[source[won]]
            fresh[reached] = False
            partner = b.mate[reached]
            end[branch[partner < 0]] = reached[partner < 0]
            level.append((partner[partner >= 0], branch[partner >= 0]))
        frontier, tree = np.concatenate(level, axis=1)
        growing = end[tree] < 0
        frontier, tree = frontier[growing], tree[growing]
    return end, parent


def augment(roots: np.ndarray, a: Side, b: Side) -> None:
    """Add augmenting paths from the free vertices `roots` of a until the matching is maximum.

    A plane in which no tree meets a free vertex is maximum (Berge's theorem) and leaves the loop.
    """
    while roots.size:
        end, parent = grow_trees(roots, a, b)
        met = end >= 0
        active = np.zeros(a.mate.size // a.columns, bool)
        active[roots[met] // a.columns] = True
        roots, end = roots[~met & active[roots // a.columns]], end[met]
        while end.size:  # swap the edges along the paths, all paths one step at a time
            start = parent[end]
            b.mate[end], a.mate[start], end = start, end, a.mate[start]
            end = end[end >= 0]


def match_boundaries(predicted: np.ndarray, true: np.ndarray, radius: float) -> np.ndarray:
    """The largest number of boundary pixels that can be matched one to one, at most `radius` pixels apart. Exact.

    predicted (K, H, W) uint64, each bit of which is a map of its own; true (H, W) bool -> (64 K,) int64, one
    count per map, lowest bit first. Nearest pairs are taken first, then augmenting paths make it a maximum.
    """
    reach = int(radius)
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
    distance = dy**2 + dx**2
    offsets = np.argsort(distance, kind="stable")[: np.sum(distance <= radius**2)]
    y, x = np.nonzero(predicted.any(0))
    number = np.full(np.add(true.shape, 2 * reach), -1, np.int32)  # of the predicted pixel that stands there
    number[y + reach, x + reach] = np.arange(y.size)
    v, u = np.nonzero(true)
    everywhere = np.full((v.size, len(predicted)), ~np.uint64(0))
    p = Side(predicted[:, y, x].T, v.size, offsets.size)
    t = Side(everywhere, y.size, offsets.size)
    for k in offsets:  # a pixel has at most one partner per offset
        i = number[v + dy[k] + reach, u + dx[k] + reach]
        j = np.flatnonzero(i >= 0)
        i = i[j]
        p.add_neighbours(i, j)
        t.add_neighbours(j, i)
        match_pairs(p, t, i, j)
    for side in (p, t):
        side.near = np.asfortranarray(side.near[: side.degree.max()])  # a pixel's neighbours side by side
    loose_p, loose_t = p.loose(), t.loose()
    from_p = (loose_p.sum(1) < loose_t.sum(1))[:, None]  # per plane: the fewer roots, the smaller the search
    augment(np.flatnonzero(loose_p & from_p), p, t)
    augment(np.flatnonzero(loose_t & ~from_p), t, p)
    return np.sum(t.mate.reshape(-1, t.columns) >= 0, axis=1)


# ------------------------------------------------------------------------------------------ counts
def bounding_box(valid: np.ndarray) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(valid.any(1)), np.flatnonzero(valid.any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def count_boundaries(probability: np.ndarray, label: np.ndarray, max_dist: float) -> np.ndarray:
    """One map's (3, 101) int64 counts of matched, predicted and true pixels, a column per threshold.

    probability (H, W) in [0, 1], read with 8 bits as the public runs do; label (H, W), 1 boundary,
    0 none, 255 ignored. The picture is the bounding box of what is not ignored, so padding moves
    neither the rim nor the diagonal (our choice). Predictions on ignored pixels inside it are
    dropped after thinning. All ignored: no counts. Not in [0, 1], or not finite: ValueError.
    """
    if not (probability.min(initial=0) >= 0 and probability.max(initial=0) <= 1):  # nan is neither
        raise ValueError("odsF needs probabilities in [0, 1]: apply the sigmoid, and look for NaN")
    valid = label != 255
    if not valid.any():
        return np.zeros((3, THRESHOLDS.size), np.int64)
    box = bounding_box(valid)
    probability, true, valid = probability[box].astype(float), thin(label[box] == 1), valid[box]
    ridges = non_maximum_suppression(np.round(probability * 255) / 255)
    passed = np.searchsorted(THRESHOLDS, ridges)  # (H, W): how many thresholds a pixel exceeds
    steps = np.unique(passed[passed > 0])  # thresholds that no pixel lies between share one plane
    plane = np.searchsorted(steps, passed, "right")  # (H, W): the lowest so many planes hold a pixel
    lowest = np.array([2**n - 1 for n in range(65)], np.uint64)  # the integer whose lowest n bits are set
    planes = np.stack([thin(lowest[np.clip(plane - k, 0, 64)]) for k in (0, 64)])  # (2, H, W)
    planes[:, ~valid] = 0
    matched = match_boundaries(planes, true, max_dist * np.hypot(*true.shape))
    predicted = bits(planes[:, planes.any(0)].T).sum(0, dtype=np.int64)
    column = np.searchsorted(steps, np.arange(1, THRESHOLDS.size + 1))  # past the last plane: empty
    return np.stack([matched[column], predicted[column], np.full(THRESHOLDS.size, true.sum())])


def f_scores(counts: np.ndarray) -> np.ndarray:
    """(..., 3, 101) counts -> (..., 101) F in percent; 0 where nothing matches, never NaN (our choice)."""
    matched, predicted, true = np.moveaxis(np.asarray(counts), -2, 0)
    return 200 * matched / np.maximum(predicted + true, 1)


def start_worker():
    """A worker leaves signals to its parent, and ends when the parent does, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # what is sent to the parent's process group passes the worker by

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Counter:
    """Takes the counts of many maps in `workers` processes beside the caller's; 0: in the caller's own.

    The counts stand in the order of the calls, whatever the number of workers. At most two maps per worker are in
    flight, then `add` waits. On Linux the workers are forks, which run numpy only: neither threads of torch nor a
    GPU of the parent's disturb them. They start with the first map. A killed worker: BrokenExecutor.
    """

    def __init__(self, max_dist: float, workers: int = 0):
        self.max_dist, self.workers = max_dist, workers
        self.done, self.in_flight = [], deque()
        fork = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
        self.pool = ProcessPoolExecutor(workers, fork, start_worker) if workers else None

    def add(self, probability: np.ndarray, label: np.ndarray) -> None:
        """As count_boundaries takes them; its ValueError may come with a later call."""
        if self.pool is None:
            self.done.append(count_boundaries(probability, label, self.max_dist))
            return
        if len(self.in_flight) >= 2 * self.workers:
            self.done.append(self.in_flight.popleft().result())
        arguments = probability.copy(), label.copy(), self.max_dist  # sent later: the caller's may change
        self.in_flight.append(self.pool.submit(count_boundaries, *arguments))

    def counts(self) -> np.ndarray:
        """(N, 3, 101) int64 of all maps so far; waits for them."""
        while self.in_flight:
            self.done.append(self.in_flight.popleft().result())
        return np.array(self.done, np.int64).reshape(-1, 3, THRESHOLDS.size)

    def close(self) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)


# ---------------------------------------------------------------------------------------- the tool
class UserError(Exception):
    """Bad input: its text is the one line that the user sees."""


def needed(module: str, package: str):
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"{package} is missing: pip install {package}") from None


def read_grey(path: Path) -> np.ndarray:
    """(H, W) uint8 of a PNG with 8 bits or 1; the numbers of a .npy file, all finite."""
    image = needed("PIL.Image", "pillow")
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, allow_pickle=False)
        else:
            with image.open(path) as picture:
                mode, array = picture.mode, np.asarray(picture.convert("L"))
    except Exception as error:  # Pillow raises SyntaxError, struct.error and others on broken files
        raise UserError(f"{path} cannot be read: {error}") from None
    if path.suffix.lower() != ".npy" and mode not in ("1", "L"):
        raise UserError(f"{path} has colours, a palette or 16 bits (mode {mode}): save 8-bit grey")
    if array.ndim != 2 or not array.size or array.dtype.kind not in "buif":
        raise UserError(f"{path} holds {array.dtype} {array.shape}: numbers (H, W) are needed")
    if not np.isfinite(array).all():
        raise UserError(f"{path} holds NaN or infinity")
    return array


def read_label(path: Path) -> np.ndarray:
    """(H, W) uint8 {0, 1}."""
    array = read_grey(path)
    boundary = 255 if (array == 255).any() else 1
    strange = array[(array != 0) & (array != boundary)]
    if strange.size:
        raise UserError(f"{path} holds {strange[0]:g}: a label has 0 and 255, or 0 and 1, only")
    return (array != 0).astype(np.uint8)


def read_example(prediction: Path, label: Path, ignore: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """-> probability (H, W), label (H, W) as count_boundaries takes them."""
    probability, true = read_grey(prediction) / np.float32(255), read_label(label)
    if probability.shape != true.shape:
        raise UserError(f"{prediction} has {probability.shape} pixels, {label} {true.shape}")
    if ignore:
        mask = read_grey(ignore) != 0
        if mask.shape != true.shape:
            raise UserError(f"{ignore} has {mask.shape} pixels, {label} {true.shape}")
        true[mask] = 255
    return probability, true


def list_pictures(folder: str, *suffixes: str) -> dict[str, Path]:
    """Name without its ending -> file."""
    found = {}
    for path in sorted(Path(folder).iterdir()):
        if path.suffix.lower() in suffixes:
            if path.stem in found:
                raise UserError(f"{found[path.stem]} and {path.name} are one name: remove one")
            found[path.stem] = path
    return found


def list_examples(predictions: str, labels: str, ignore: str | None) -> list[tuple]:
    """(prediction, label, ignore or None) per label."""
    truth, guesses = list_pictures(labels, ".png", ".npy"), list_pictures(predictions, ".png")
    masks = list_pictures(ignore, ".png", ".npy") if ignore else dict.fromkeys(truth)
    if not truth.keys() & guesses.keys():
        raise UserError(f"no picture in {predictions} (.png) has its name in {labels} (.png, .npy)")
    for name, path in truth.items():
        for folder, others in ((predictions, guesses), (ignore, masks)):
            if name not in others:
                raise UserError(f"{path} has no picture of its name in {folder}")
    return [(guesses[name], truth[name], masks[name]) for name in truth]


def count_examples(examples: list[tuple], max_dist: float, workers: int) -> np.ndarray:
    """-> (N, 3, 101); says on stderr how far it is."""
    terminal, start = sys.stderr.isatty(), time.monotonic()
    said = start
    with contextlib.closing(Counter(max_dist, workers)) as counter:
        for example in examples:
            counter.add(*read_example(*example))
            done, now = len(counter.done), time.monotonic()
            if done and now - said > (0.5 if terminal else 30):
                left, said = int((now - start) / done * (len(examples) - done)), now
                text = f"{done} of {len(examples)} pictures, {left // 60}:{left % 60:02} left"
                print(f"{text:60}", end="\r" if terminal else "\n", file=sys.stderr, flush=True)
        return counter.counts()


def summarise(counts: np.ndarray) -> tuple[dict, np.ndarray, np.ndarray]:
    """(N, 3, 101) counts -> the figures, and precision and recall (101,) for all pictures; percent."""
    matched, predicted, true = total = counts.sum(0)
    precision = np.where(predicted > 0, 100 * matched / np.maximum(predicted, 1), 100)
    recall = 100 * matched / np.maximum(true, 1)
    best = f_scores(total).argmax()
    own = f_scores(counts).argmax(1)
    own_total = counts[np.arange(len(counts)), :, own].sum(0)
    reached, first = np.unique(recall, return_index=True)
    interpolated = np.interp(np.arange(101), reached, precision[first], left=0, right=0)
    area = min(interpolated.sum() / 100, 100) if reached.size > 1 else 0
    figures = {"odsF": f_scores(total)[best], "threshold": THRESHOLDS[best],
               "precision": precision[best], "recall": recall[best],
               "oisF": f_scores(own_total[:, None])[0], "AP": area}
    return {k: float(v) for k, v in figures.items()} | {"images": len(counts)}, precision, recall


def draw_curve(path: Path, figures: dict, precision: np.ndarray, recall: np.ndarray) -> None:
    figure = needed("matplotlib.figure", "matplotlib").Figure((5, 5))
    axes = figure.add_subplot(xlim=(0, 100), ylim=(0, 100), xlabel="recall, %", ylabel="precision, %")
    for f in range(10, 100, 10):
        r = np.linspace(f / 2 + 0.1, 100, 200)
        axes.plot(r, f * r / (2 * r - f), color="0.85", linewidth=1)  # where F is f
    axes.plot(recall, precision)
    axes.plot(figures["recall"], figures["precision"], "o", label=f"odsF {figures['odsF']:.2f}")
    axes.legend()
    figure.savefig(path, format="png", bbox_inches="tight")


def write(path: str, save) -> None:
    """save(path) under a temporary name, then renamed."""
    part = Path(f"{path}.part")
    try:
        save(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def run(args) -> None:
    if not 0 <= args.max_dist <= 0.1:
        raise UserError(f"--max-dist {args.max_dist:g} is not in 0 to 0.1 (of the diagonal)")
    if not 0 <= args.workers <= 256:
        raise UserError(f"--workers {args.workers} is not in 0 to 256")
    if args.curve:
        needed("matplotlib.figure", "matplotlib")
    for path in filter(None, (args.json, args.curve)):
        if not Path(path).absolute().parent.is_dir():
            raise UserError(f"{path} cannot be written: its folder is missing")
    examples = list_examples(args.predictions, args.labels, args.ignore)
    figures, *curve = summarise(count_examples(examples, args.max_dist, args.workers))
    print("odsF {odsF:.2f} (threshold {threshold:g}, precision {precision:.2f}, recall {recall:.2f})  "
          "oisF {oisF:.2f}  AP {AP:.2f}  %, {images} pictures".format(**figures))
    if args.json:
        write(args.json, lambda part: part.write_text(json.dumps(figures, indent=2) + "\n"))
    if args.curve:
        write(args.curve, lambda part: draw_curve(part, figures, *curve))


def main(argv=None) -> int:
    parser = argparse.ArgumentParser("odsf", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"odsf: {message}\n")  # one line
    parser.add_argument("--predictions", metavar="DIR", required=True)
    parser.add_argument("--labels", metavar="DIR", required=True)
    parser.add_argument("--ignore", metavar="DIR")
    parser.add_argument("--max-dist", type=float, required=True, help="NYUD-v2 0.011, PASCAL-Context and BSDS 0.0075")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    parser.add_argument("--json", metavar="FILE", help="write the figures, in percent, and the threshold")
    parser.add_argument("--curve", metavar="FILE.png", help="draw precision over recall (needs matplotlib)")
    try:
        run(parser.parse_args(argv))
    except KeyboardInterrupt:
        print("odsf: stopped, nothing is written", file=sys.stderr)
        return 130
    except BrokenExecutor:
        print("odsf: a worker was killed; where memory is short, use fewer --workers", file=sys.stderr)
        return 2
    except (UserError, OSError) as error:
        print("odsf:", *str(error).split(), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
