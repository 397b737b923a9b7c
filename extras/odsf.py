# SPDX-License-Identifier: MIT
"""Boundary evaluation (odsF, oisF, AP) without MATLAB: exact, on several cores, of anybody's pictures.

    python -m extras.odsf --predictions DIR --labels DIR --max-dist 0.011 --json figures.json

The steps are SEISM's and the structured-edges toolbox's: suppression of what is no ridge, 101 thresholds,
thinning, one-to-one matching of predicted to true pixels within max-dist times the picture's diagonal.
odsF  F at the best threshold for all pictures (SEISM: ODS F, *_ods_f.txt; BSDS: odsF in eval_bdry.txt)
oisF  F of the counts of each picture at its own best threshold (of equal ones the lowest), summed
      (SEISM: OIS F, *_ois_f.txt; BSDS: oisF)
AP    area under the precision-recall curve: precision interpolated linearly at recalls 0, 0.01, ... 1, summed
      and divided by 100, 1 where nothing is predicted; recalls that no threshold reaches count 0, so a binary
      prediction has nearly 0 (SEISM: AP, *_ap.txt; BSDS: AP). We cap it at 100 %.
predictions  NAME.png, grey with 8 bits: 255 is certainly a boundary, 0 certainly none
labels       NAME.png or NAME.npy of the same size, each with 0 and 255 or with 0 and 1 (bool too). All labels are
             evaluated, predictions without one are not. A label without boundaries counts against precision.
ignore       NAME.png or NAME.npy per label: where it is not 0 is ignored; the bounding box of the rest is the picture

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
from multiprocessing import connection
from pathlib import Path

import numpy as np

# 101 thresholds make 101 binary maps ("planes") of one picture. They are handled all at once: bit t of a pixel's
# integer says whether the pixel stands in plane t, and one bitwise operation treats all planes together.
THRESHOLDS = np.array([0.001, *np.arange(1, 100) / 100, 0.999])  # the public runs' own; a pixel must exceed them


def deletable(around, first: bool) -> np.ndarray:
    """Which pixels a half-pass of Guo and Hall deletes; around: their 8 neighbours, clockwise from the north."""
    def two(a, b, c, d):  # at least two of four
        return (a & b) | (c & d) | ((a | b) & (c | d))

    n, ne, e, se, s, sw, w, nw = around
    a, b, c, d = ~n & (ne | e), ~e & (se | s), ~s & (sw | w), ~w & (nw | n)
    one_crossing = (a ^ b ^ c ^ d) & ~((a & b) | (c & d))  # the pixel connects nothing
    pairs, turned = (nw | n, ne | e, se | s, sw | w), (n | ne, e | se, s | sw, w | nw)
    no_end, core = two(*pairs) & two(*turned), np.bitwise_and.reduce(pairs + turned)
    wrong_side = (n | ne | ~se) & e if first else (s | sw | ~nw) & w  # the half-passes peel opposite sides
    return one_crossing & no_end & ~core & ~wrong_side


def thin(mask: np.ndarray) -> np.ndarray:
    """Guo-Hall thinning of a (H, W) bool map until nothing changes; beyond the frame nothing is set.

    Every bit of an unsigned integer map is thinned as a map of its own. Equals scikit-image's `thin` and MATLAB's
    bwmorph; OpenCV begins with the other half-pass, which moves edges two pixels wide by one pixel.
    """
    stride = mask.shape[1] + 2
    around = np.array([-stride, 1 - stride, 1, 1 + stride, stride, stride - 1, -1, -1 - stride])[:, None]  # N, NE, ...
    flat = np.pad(mask, 1).ravel()
    touched, candidates, first = np.zeros(flat.size, bool), np.flatnonzero(flat), True
    before = candidates
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


def direction_across(probability: np.ndarray) -> np.ndarray:
    """(H, W) -> angle across the edge in [0, pi], from second derivatives after a triangle filter of radius 4."""
    height, width = probability.shape
    smooth = np.pad(probability, 4, "symmetric")
    smooth = sum((5 - abs(k)) / 25 * smooth[4 + k : 4 + k + height] for k in range(-4, 5))
    smooth = sum((5 - abs(k)) / 25 * smooth[:, 4 + k : 4 + k + width] for k in range(-4, 5))
    dy, dx = np.gradient(smooth)
    (dyy, dxy), dxx = np.gradient(dy), np.gradient(dx, axis=1)
    return np.mod(np.arctan(dyy * np.sign(-dxy) / (dxx + 1e-5)), np.pi)


def non_maximum_suppression(probability: np.ndarray) -> np.ndarray:
    """Keep the ridges of a (H, W) boundary map in [0, 1], as the structured-edges toolbox does.

    A pixel goes to 0 where 1.01 times its value is below either neighbour one pixel away across the edge.
    The outermost 5 pixels are multiplied by 0, 1/5, ... 4/5: **a pixel of the outermost ring is never predicted.**
    """
    (height, width), ridges = probability.shape, np.zeros_like(probability)
    if min(height, width) < 2:  # no derivative, and all of it is rim
        return ridges
    y, x = np.nonzero(probability)
    value, angle = probability[y, x], direction_across(probability)[y, x]
    keep = np.ones(len(y), bool)
    for side in (-1, 1):  # bilinear values at (v, u)
        v = np.clip(y + side * np.sin(angle), 0, height - 1.001)
        u = np.clip(x + side * np.cos(angle), 0, width - 1.001)
        i, j = v.astype(int), u.astype(int)
        v, u = v - i, u - j
        above = (1 - u) * probability[i, j] + u * probability[i, j + 1]
        below = (1 - u) * probability[i + 1, j] + u * probability[i + 1, j + 1]
        keep &= 1.01 * value >= (1 - v) * above + v * below
    ridges[y[keep], x[keep]] = value[keep]
    rim = min(5, height // 2, width // 2)
    row, column = (np.minimum(np.minimum(np.arange(n), np.arange(n)[::-1]) / rim, 1) for n in (height, width))
    return ridges * row[:, None] * column


class Side:
    """One side of the matching, the predicted or the true pixels (N), in all planes at once.

    A vertex is a pixel in a plane, numbered pixel * planes + plane. One pixel more than there are stands in no plane:
    it fills up the lists of neighbours.
    """
    def __init__(self, present: np.ndarray, others: int, most: int):
        """present (N, planes) bool; a pixel has at most `most` neighbours, of `others` pixels on the other side."""
        self.planes = present.shape[1]
        self.present = np.pad(present, ((0, 1), (0, 0)))  # (N + 1, planes)
        self.mate = np.full(self.present.shape, -1, np.int32)  # the vertex of the other side, -1: free
        self.near = np.full((most, len(present) + 1), others, np.int32)  # pixels of the other side, the nearest first
        self.degree = np.zeros(len(present) + 1, int)

    def add_neighbours(self, pixel, partner) -> None:
        self.near[self.degree[pixel], pixel] = partner
        self.degree[pixel] += 1

    def loose(self) -> np.ndarray:
        """(N + 1, planes) bool: what is free and has neighbours."""
        return self.present & (self.mate < 0) & (self.degree > 0)[:, None]


def grow_trees(roots: np.ndarray, a: Side, b: Side) -> tuple[np.ndarray, np.ndarray]:
    """Alternating trees from free vertices of a, breadth-first; a vertex of b joins only one, so paths are disjoint.

    -> end (roots,): the free vertex of b that a tree has met, -1 if none; parent (vertices of b,): the way back.
    """
    near, chunk = a.near.T, 1 << 11  # near (N + 1, D); chunks fit the cache and bound the memory
    mate, fresh, parent = b.mate.ravel(), b.present.flatten(), np.empty(b.mate.size, np.int32)
    end, tree, frontier = np.full(roots.size, -1), np.arange(roots.size, dtype=np.int32), roots.astype(np.int32)
    while frontier.size:
        level = []
        for first in range(0, frontier.size, chunk):
            part, branch = frontier[first : first + chunk], tree[first : first + chunk]
            pixel, plane = np.divmod(part, a.planes)
            reached = (near[pixel] + plane[:, None]).ravel()
            new = np.flatnonzero(fresh.take(reached))
            reached, source = reached[new], new // near.shape[1]
            parent[reached] = part[source]
            won = parent[reached] == part[source]  # several may reach for one vertex: the last has it
            reached, branch = reached[won], branch[source[won]]
            fresh[reached] = False
            partner = mate[reached]
            end[branch[partner < 0]] = reached[partner < 0]
            level.append((partner[partner >= 0], branch[partner >= 0]))
        frontier, tree = np.concatenate(level, axis=1)
        frontier, tree = frontier[end[tree] < 0], tree[end[tree] < 0]
    return end, parent


def augment(roots: np.ndarray, a: Side, b: Side) -> None:
    """Add augmenting paths from the free vertices `roots` of a until the matching is maximum.

    A plane in which no tree meets a free vertex is maximum (Berge's theorem) and leaves the loop.
    """
    mate_a, mate_b = a.mate.ravel(), b.mate.ravel()  # views
    while roots.size:
        end, parent = grow_trees(roots, a, b)
        met = end >= 0
        active = np.isin(np.arange(a.planes), roots[met] % a.planes)  # (planes,)
        roots, end = roots[~met & active[roots % a.planes]], end[met]
        while end.size:  # swap the edges along the paths, all paths one step at a time
            start = parent[end]
            mate_b[end], mate_a[start], end = start, end, mate_a[start]
            end = end[end >= 0]


def match_boundaries(y, x, predicted: np.ndarray, true: np.ndarray, radius: float) -> np.ndarray:
    """The largest number of boundary pixels that can be matched one to one, at most `radius` pixels apart. Exact.

    y, x (N,): the predicted pixels; predicted (N, planes) bool; true (H, W) bool -> (planes,) int64.
    Nearest pairs are taken first, then augmenting paths make the matching a maximum.
    """
    reach, planes = int(radius), predicted.shape[1]
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
    offsets = np.argsort(dy**2 + dx**2, kind="stable")[: np.sum(dy**2 + dx**2 <= radius**2)]
    v, u = np.nonzero(true)
    number = np.full(np.add(true.shape, 2 * reach), -1, np.int32)  # of the predicted pixel that stands there
    number[y + reach, x + reach] = np.arange(y.size)
    p = Side(predicted, v.size, offsets.size)
    t = Side(np.ones((v.size, planes), bool), y.size, offsets.size)
    free_p, free_t = p.present.copy(), t.present.copy()
    for k in offsets:  # a pixel has at most one partner per offset
        i = number[v + dy[k] + reach, u + dx[k] + reach]
        j = np.flatnonzero(i >= 0)
        i = i[j]
        p.add_neighbours(i, j)
        t.add_neighbours(j, i)
        pair, plane = np.nonzero(free_p[i] & free_t[j])
        i, j = i[pair], j[pair]
        free_p[i, plane] = free_t[j, plane] = False
        p.mate[i, plane], t.mate[j, plane] = j * planes + plane, i * planes + plane
    for side in (p, t):  # a pixel's neighbours side by side, each by its vertex in plane 0
        side.near = np.asfortranarray(side.near[: side.degree.max()] * np.int32(planes))
    loose_p, loose_t = p.loose(), t.loose()
    from_p = loose_p.sum(0) < loose_t.sum(0)  # (planes,): the fewer roots, the smaller the search
    augment(np.flatnonzero(loose_p & from_p), p, t)
    augment(np.flatnonzero(loose_t & ~from_p), t, p)
    return np.sum(t.mate >= 0, axis=0)


def count_boundaries(probability: np.ndarray, label: np.ndarray, max_dist: float) -> np.ndarray:
    """One map's (3, 101) int64 counts of matched, predicted and true pixels, a column per threshold.

    probability (H, W) in [0, 1], read with 8 bits as the public runs do; label (H, W), 1 boundary, 0 none, 255
    ignored. The picture is the bounding box of what is not ignored, so padding moves neither the rim nor the diagonal
    (our choice). Predictions on ignored pixels inside it are dropped after thinning. All ignored: no counts.
    """
    if not (probability.min(initial=0) >= 0 and probability.max(initial=0) <= 1):  # NaN is neither
        raise ValueError("odsF needs boundary probabilities in [0, 1]: apply the sigmoid, and look for NaN")
    valid = label != 255
    if not valid.any():
        return np.zeros((3, THRESHOLDS.size), np.int64)
    box = tuple(slice(np.flatnonzero(v)[0], np.flatnonzero(v)[-1] + 1) for v in (valid.any(1), valid.any(0)))
    probability, true, valid = probability[box].astype(float), thin(label[box] == 1), valid[box]
    ridges = non_maximum_suppression(np.round(probability * 255) / 255)
    passed = np.searchsorted(THRESHOLDS, ridges)  # (H, W): how many thresholds a pixel exceeds
    steps = np.unique(passed[passed > 0])  # thresholds that no pixel lies between share one plane
    planes_of = np.searchsorted(steps, passed, "right")  # (H, W): a pixel stands in so many planes, the lowest ones
    lowest = np.array([2**n - 1 for n in range(65)], np.uint64)  # n -> an integer with the lowest n bits set
    words = np.stack([thin(lowest[np.clip(planes_of - k, 0, 64)]) for k in (0, 64)], axis=-1)  # (H, W, 2)
    words[~valid] = 0
    y, x = np.nonzero(words.any(2))
    predicted = np.unpackbits(words[y, x].astype("<u8").view(np.uint8), axis=1, bitorder="little").astype(bool)
    predicted = predicted[:, : steps.size + 1]  # (N, planes), and an empty plane for thresholds past the last
    matched = match_boundaries(y, x, predicted, true, max_dist * np.hypot(*true.shape))
    plane = np.searchsorted(steps, np.arange(1, THRESHOLDS.size + 1))  # (101,)
    return np.stack([matched[plane], predicted.sum(0)[plane], np.full(THRESHOLDS.size, true.sum())])


def f_scores(counts: np.ndarray) -> np.ndarray:
    """(..., 3, 101) counts -> (..., 101) F in percent; 0 where nothing matches, never NaN (our choice)."""
    matched, predicted, true = np.moveaxis(np.asarray(counts), -2, 0)
    return 200 * matched / np.maximum(predicted + true, 1)


def start_worker(stop: connection.Connection) -> None:
    """A worker leaves signals to its parent. It ends when the parent does, however that ends, or sends a stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # what a terminal or a scheduler sends to the parent's group passes the worker by

    def watch():
        connection.wait([multiprocessing.parent_process().sentinel, stop])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Counter:
    """Counts many maps in `workers` processes beside the caller's; 0: in the caller's own.

    Counts stand in the order of the calls. At most two maps per worker are in flight, then `add` waits. The workers
    start with the first map, on Linux as forks that run numpy only, so torch's threads and a GPU do not matter.
    Close it (contextlib.closing). A worker that was killed: BrokenExecutor.
    """
    def __init__(self, max_dist: float, workers: int = 0):
        self.max_dist, self.workers, self.done, self.in_flight = max_dist, workers, [], deque()
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
        receiver, self.stop = context.Pipe(duplex=False)
        self.pool = ProcessPoolExecutor(workers, context, start_worker, (receiver,)) if workers else None

    def add(self, probability: np.ndarray, label: np.ndarray) -> None:
        """As count_boundaries, whose ValueError may come with a later call."""
        if self.pool is None:
            self.done.append(count_boundaries(probability, label, self.max_dist))
            return
        if len(self.in_flight) >= 2 * self.workers:
            self.done.append(self.in_flight.popleft().result())
        copies = probability.copy(), label.copy()  # they are sent later
        self.in_flight.append(self.pool.submit(count_boundaries, *copies, self.max_dist))

    def counts(self) -> np.ndarray:
        """(N, 3, 101) int64 of all maps so far; waits for them."""
        while self.in_flight:
            self.done.append(self.in_flight.popleft().result())
        return np.array(self.done, np.int64).reshape(-1, 3, THRESHOLDS.size)

    def close(self) -> None:
        if self.in_flight:  # interrupted: wait for nothing
            self.stop.send(None)
        if self.pool:
            self.pool.shutdown(cancel_futures=True)


# --------------------------------------------------------------------------------------------------------- the tool
class UserError(Exception):
    """Bad input: its text is the one line that the user sees."""


def read_grey(path: Path) -> np.ndarray:
    """(H, W) uint8 of a picture with 8 bits (or 1), or the finite numbers of a .npy file."""
    from PIL import Image

    try:
        if path.suffix.lower() == ".npy":
            mode, array = "L", np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as picture:
                mode, array = picture.mode, np.asarray(picture.convert("L"))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if mode not in ("1", "L"):
        raise UserError(f"{path} has colours, a palette or 16 bits (mode {mode}): save 8-bit grey")
    if array.ndim != 2 or not array.size or array.dtype.kind not in "buif" or not np.isfinite(array).all():
        raise UserError(f"{path} holds {array.dtype} {array.shape}: (height, width) finite numbers are needed")
    return array


def read_example(prediction: Path, label: Path, ignore: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """-> probability (H, W), label (H, W) as count_boundaries takes them."""
    arrays = {path: read_grey(path) for path in (prediction, label, ignore) if path}
    for path, array in arrays.items():
        if array.shape != arrays[label].shape:
            raise UserError(f"{path} is {array.shape} (height, width), {label} is {arrays[label].shape}")
    boundary = 255 if (arrays[label] == 255).any() else 1
    strange = arrays[label][(arrays[label] != 0) & (arrays[label] != boundary)]
    if strange.size:
        raise UserError(f"{label} holds {strange[0]:g}: a label has 0 and 255, or 0 and 1, and nothing else")
    true = (arrays[label] == boundary).astype(np.uint8)
    if ignore:
        true[arrays[ignore] != 0] = 255
    return arrays[prediction] / np.float32(255), true


def list_pictures(folder: str, *endings: str) -> dict[str, Path]:
    paths = [path for path in sorted(Path(folder).iterdir()) if path.suffix.lower() in endings]
    pictures = {path.stem: path for path in paths}
    for path in paths:
        if pictures[path.stem] != path:
            raise UserError(f"{path} and {pictures[path.stem].name} have one name: remove one")
    return pictures


def list_examples(predictions: str, labels: str, ignore: str | None) -> list[tuple]:
    """(prediction, label, ignore or None) per label."""
    truth, guesses = list_pictures(labels, ".png", ".npy"), list_pictures(predictions, ".png")
    masks = list_pictures(ignore, ".png", ".npy") if ignore else dict.fromkeys(truth)
    if not truth.keys() & guesses.keys():
        raise UserError(f"no picture in {predictions} (.png) has its name in {labels} (.png or .npy)")
    for name in truth:
        for folder, pictures in ((predictions, guesses), (ignore, masks)):
            if name not in pictures:
                raise UserError(f"{truth[name]} has no picture of its name in {folder}")
    return [(guesses[name], truth[name], masks[name]) for name in truth]


def count_examples(examples: list[tuple], max_dist: float, workers: int) -> np.ndarray:
    """-> (N, 3, 101); says on stderr how far it is: on a terminal in one line, else twice a minute."""
    pause, end = (0.5, "\r") if sys.stderr.isatty() else (30, "\n")
    start = said = time.monotonic()
    with contextlib.closing(Counter(max_dist, workers)) as counter:
        for example in examples:
            counter.add(*read_example(*example))
            done, now = len(counter.done), time.monotonic()
            if done and now - said > pause:
                said, left = now, int((now - start) / done * (len(examples) - done))
                text = f"{done} of {len(examples)} pictures, {left // 60}:{left % 60:02} left"
                print(f"{text:50}", end=end, file=sys.stderr, flush=True)
        return counter.counts()


def summarise(counts: np.ndarray) -> tuple[dict, np.ndarray, np.ndarray]:
    """(N, 3, 101) counts -> the figures; precision and recall (101,) of all pictures; in percent."""
    matched, predicted, true = total = counts.sum(0)
    precision = np.where(predicted > 0, 100 * matched / np.maximum(predicted, 1), 100)
    recall = 100 * matched / np.maximum(true, 1)
    best = f_scores(total).argmax()
    own = f_scores(counts).argmax(1)  # (N,)
    own_total = counts[np.arange(len(counts)), :, own].sum(0)  # (3,)
    reached, first = np.unique(recall, return_index=True)
    area = np.interp(np.arange(101), reached, precision[first], left=0, right=0).sum() / 100
    figures = {"odsF": f_scores(total)[best], "threshold": THRESHOLDS[best], "precision": precision[best],
               "recall": recall[best], "oisF": f_scores(own_total[:, None])[0],
               "AP": min(area, 100) if reached.size > 1 else 0}
    return {name: float(value) for name, value in figures.items()} | {"images": len(counts)}, precision, recall


def draw_curve(path: Path, figures: dict, precision: np.ndarray, recall: np.ndarray) -> None:
    from matplotlib.figure import Figure

    figure = Figure((5, 5))
    axes = figure.add_subplot(xlim=(0, 100), ylim=(0, 100), xlabel="recall, %", ylabel="precision, %")
    for f in range(10, 100, 10):  # where F is f
        r = np.linspace(f / 2 + 0.1, 100, 200)
        axes.plot(r, f * r / (2 * r - f), color="0.85", linewidth=1)
    axes.plot(recall, precision)
    axes.plot(figures["recall"], figures["precision"], "o", label=f"odsF {figures['odsF']:.2f}")
    axes.legend()
    figure.savefig(path, format="png", bbox_inches="tight")


def write(path: str, save) -> None:
    """save(path) under a temporary name, which is then renamed."""
    part = Path(f"{path}.part")
    try:
        save(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def run(args) -> None:
    for name, value, most in (("max-dist", args.max_dist, 0.1), ("workers", args.workers, 256)):
        if not 0 <= value <= most:
            raise UserError(f"--{name} {value:g} is not in 0 to {most}")
    for path in filter(None, (args.json, args.curve)):
        if not Path(path).absolute().parent.is_dir():
            raise UserError(f"{path} cannot be written: there is no such folder")
    if args.curve:
        importlib.import_module("matplotlib.figure")  # if it is missing, say so before the work
    counts = count_examples(list_examples(args.predictions, args.labels, args.ignore), args.max_dist, args.workers)
    figures, *curve = summarise(counts)
    print("odsF {odsF:.2f} (threshold {threshold:g}, precision {precision:.2f}, recall {recall:.2f}), "
          "oisF {oisF:.2f}, AP {AP:.2f} %, {images} pictures".format(**figures))
    if args.json:
        write(args.json, lambda part: part.write_text(json.dumps(figures, indent=2) + "\n"))
    if args.curve:
        write(args.curve, lambda part: draw_curve(part, figures, *curve))


def main(argv=None) -> int:
    parser = argparse.ArgumentParser("odsf", None, __doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"odsf: {message}\n")  # one line
    parser.add_argument("--predictions", metavar="DIR", required=True)
    parser.add_argument("--labels", metavar="DIR", required=True)
    parser.add_argument("--ignore", metavar="DIR")
    parser.add_argument("--max-dist", type=float, required=True, help="NYUD-v2 0.011, PASCAL-Context, BSDS 0.0075")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    parser.add_argument("--json", metavar="FILE", help="write odsF, precision, recall, oisF, AP in percent, threshold")
    parser.add_argument("--curve", metavar="FILE.png", help="draw precision over recall (needs matplotlib)")
    try:
        run(parser.parse_args(argv))
    except KeyboardInterrupt:
        print(f"{'odsf: stopped, nothing is written':50}", file=sys.stderr)  # over the progress
        return 130
    except ImportError as error:
        print(f"odsf: {error}: pip install pillow matplotlib", file=sys.stderr)
    except BrokenExecutor:
        print("odsf: a worker was killed; where memory is short, use fewer --workers", file=sys.stderr)
    except (UserError, OSError) as error:
        print("odsf:", *str(error).split(), file=sys.stderr)
    else:
        return 0
    return 2


if __name__ == "__main__":
    sys.exit(main())
