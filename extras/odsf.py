# SPDX-License-Identifier: MIT
"""Boundary evaluation without MATLAB: odsF, oisF and AP of anybody's pictures, exact, on all cores.

    python -m extras.odsf --predictions DIR --labels DIR --max-dist 0.011 --json figures.json

The steps are SEISM's and the structured-edges toolbox's: suppression of what is no ridge, 101
thresholds, thinning, one-to-one matching of predicted to true pixels within max-dist times the
picture's diagonal. The file runs alone where it is copied, with numpy and, for pictures, Pillow.
odsF  F at the best threshold for all pictures, in percent (SEISM: ODS F)
oisF  F of the counts of each picture at its own best threshold, of equal ones the lowest, summed
AP    area under precision over recall, interpolated linearly at recalls 0, 1, ... 100, at most 100.
      Precision is 100 where nothing is predicted; recalls that no threshold reaches count 0.
predictions  NAME.png, grey with 8 bits: 255 is certainly a boundary, 0 certainly none
labels       NAME.png or NAME.npy of the same size, with 0 and 255 or with 0 and 1. All labels are
             evaluated, other predictions are not; an empty label counts against precision
ignore       NAME.png or NAME.npy: what is not 0 is ignored, the rest's bounding box is the picture
"""
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, wait
from pathlib import Path

import numpy as np

# A pixel is predicted where it exceeds a threshold. The 101 binary maps ("planes") of a picture are
# thinned and matched together: bit t of a pixel's integer says whether it stands in plane t.
THRESHOLDS = np.array([0.001, *np.arange(1, 100) / 100, 0.999])  # the public runs' own


def deletable(around, first: bool) -> np.ndarray:
    """Where Guo and Hall delete; around: the 8 neighbours' words, clockwise from the north."""
    def at_least_two(a, b, c, d):
        return (a & b) | (c & d) | ((a | b) & (c | d))
    n, ne, e, se, s, sw, w, nw = around
    crossings = ~n & (ne | e), ~e & (se | s), ~s & (sw | w), ~w & (nw | n)
    one_crossing = np.bitwise_or.reduce(crossings) & ~at_least_two(*crossings)  # connects nothing
    pairs, turned = (nw | n, ne | e, se | s, sw | w), (n | ne, e | se, s | sw, w | nw)
    core = np.bitwise_and.reduce(pairs + turned)
    wrong_side = (n | ne | ~se) & e if first else (s | sw | ~nw) & w  # a half-pass peels one side
    no_end = at_least_two(*pairs) & at_least_two(*turned)
    return one_crossing & no_end & ~core & ~wrong_side


def thin(mask: np.ndarray) -> np.ndarray:
    """Guo-Hall thinning of a (H, W) bool map, or of each bit of an unsigned one, to the end.

    Equals scikit-image's `thin` and MATLAB's bwmorph. OpenCV swaps the half-passes, which moves
    edges two pixels wide by one. Beyond the frame nothing is set.
    """
    row = mask.shape[1] + 2
    around = np.array([[-row], [1 - row], [1], [1 + row], [row], [row - 1], [-1], [-1 - row]])
    flat = np.pad(mask, 1).ravel()
    touched, candidates, first = np.zeros(flat.size, bool), np.flatnonzero(flat), True
    before = candidates
    while candidates.size:
        here = flat[candidates]
        gone = here & deletable(flat[candidates + around], first)
        flat[candidates] = here & ~gone
        changed = candidates[gone != 0]
        # A verdict changes only if a neighbour changed in this half-pass or in the one before.
        touched[np.concatenate([changed, before]) + around] = True
        candidates = np.flatnonzero(touched)
        touched[candidates] = False
        candidates = candidates[flat[candidates] != 0]
        before, first = changed, not first
    return flat.reshape(-1, row)[1:-1, 1:-1]


def non_maximum_suppression(edge: np.ndarray) -> np.ndarray:
    """Keep the ridges of a (H, W) boundary map in [0, 1], as the structured-edges toolbox does.

    A pixel goes to 0 where 1.01 times its value is below a neighbour's, one pixel across the edge;
    second derivatives after a triangle filter of radius 4 say where that is. The outermost 5 pixels
    are multiplied by 0, 1/5, ... 4/5: the outermost ring predicts nothing.
    """
    (height, width), ridges = edge.shape, np.zeros_like(edge)
    if min(height, width) < 2:  # no derivative, and all of it is rim
        return ridges
    smooth = np.pad(edge, 4, "symmetric")
    for n in edge.shape:  # rows, then columns
        smooth = sum((5 - abs(k)) / 25 * smooth[4 + k : 4 + k + n] for k in range(-4, 5)).T
    dy, dx = np.gradient(smooth)
    (dyy, dxy), dxx = np.gradient(dy), np.gradient(dx, axis=1)
    y, x = np.nonzero(edge)
    angle = np.mod(np.arctan(dyy * np.sign(-dxy) / (dxx + 1e-5)), np.pi)[y, x]  # across the edge
    value, keep = edge[y, x], True
    for side in (-1, 1):
        v = np.clip(y + side * np.sin(angle), 0, height - 1.001)
        u = np.clip(x + side * np.cos(angle), 0, width - 1.001)
        i, j = v.astype(int), u.astype(int)
        v, u = v - i, u - j
        above = (1 - u) * edge[i, j] + u * edge[i, j + 1]  # bilinear
        below = (1 - u) * edge[i + 1, j] + u * edge[i + 1, j + 1]
        keep &= 1.01 * value >= (1 - v) * above + v * below
    ridges[y[keep], x[keep]], rim = value[keep], min(5, height // 2, width // 2)
    row, column = (np.minimum(1, np.minimum(k, k[::-1]) / rim) for k in map(np.arange, edge.shape))
    return ridges * row[:, None] * column


# Matching treats both sides and all planes as one graph: its vertices are the predicted pixels, the
# true pixels and one pixel in no plane, each in each plane, numbered pixel * planes + plane.
# near (pixels, D): a pixel's neighbours on the other side as vertices of plane 0, mate (vertices,).
FREE, ABSENT = -1, -2  # in place of a mate


def grow_trees(roots, near, mate, planes: int) -> tuple[np.ndarray, np.ndarray]:
    """Alternating trees from free vertices, breadth-first; no two share a vertex.
    -> end (roots,): the free vertex that a tree has met, or -1; parent (vertices,): the way back
    """
    fresh, parent = mate != ABSENT, np.empty_like(mate)
    end, frontier = np.full(roots.size, -1), roots.astype(np.int32)
    tree = np.arange(roots.size, dtype=np.int32)  # that a vertex of the frontier belongs to
    while frontier.size:
        level = []
        for first in range(0, frontier.size, 2048):  # fits the cache
            part, branch = frontier[first : first + 2048], tree[first : first + 2048]
            pixel, plane = np.divmod(part, planes)
            reached = (near[pixel] + plane[:, None]).ravel()
            new = np.flatnonzero(fresh.take(reached))
            reached, source = reached[new], new // near.shape[1]
            parent[reached] = part[source]
            won = parent[reached] == part[source]  # several may reach for one: the last has it
            reached, branch = reached[won], branch[source[won]]
            fresh[reached] = False
            partner = mate[reached]
            end[branch[partner == FREE]] = reached[partner == FREE]
            level.append((partner[partner >= 0], branch[partner >= 0]))
        frontier, tree = np.concatenate(level, axis=1)
        frontier, tree = frontier[end[tree] < 0], tree[end[tree] < 0]
    return end, parent


def match_boundaries(y, x, predicted: np.ndarray, true: np.ndarray, radius: float) -> np.ndarray:
    """How many boundary pixels can be matched one to one, at most `radius` pixels apart. Exact.

    y, x (N,): the predicted pixels; predicted (N, planes), true (H, W) bool -> (planes,) int64.
    """
    (v, u), reach, (n, planes) = np.nonzero(true), int(radius), predicted.shape
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
    offsets = np.argsort(dy**2 + dx**2, kind="stable")[: np.sum(dy**2 + dx**2 <= radius**2)]
    number = np.full(np.add(true.shape, 2 * reach), -1)  # of the predicted pixel that stands there
    number[y + reach, x + reach] = np.arange(n)
    free = np.pad(predicted, ((0, v.size), (0, 0)), constant_values=True)  # (pixels - 1, planes)
    mate = np.where(np.pad(free, ((0, 1), (0, 0))), np.int32(FREE), np.int32(ABSENT)).ravel()
    near = np.full((offsets.size, len(free) + 1), len(free), np.int32)
    degree = np.zeros(len(free), int)
    for k in offsets:  # nearest pairs first; a pixel has at most one partner per offset
        p = number[v + dy[k] + reach, u + dx[k] + reach]
        t = np.flatnonzero(p >= 0)
        p, t = p[t], t + n
        for pixel, other in ((p, t), (t, p)):
            near[degree[pixel], pixel] = other
            degree[pixel] += 1
        pair, plane = np.nonzero(free[p] & free[t])
        p, t = p[pair] * planes + plane, t[pair] * planes + plane
        free.ravel()[p] = free.ravel()[t] = False
        mate[p], mate[t] = t, p
    near = np.ascontiguousarray(near[: degree.max(initial=0)].T) * np.int32(planes)
    free[degree == 0] = False  # and so it stays
    from_p = free[:n].sum(0) < free[n:].sum(0)  # (planes,): search from the side with fewer roots
    roots = np.flatnonzero(np.concatenate([free[:n] & from_p, free[n:] & ~from_p]))
    while roots.size:  # add augmenting paths until the matching is maximum
        end, parent = grow_trees(roots, near, mate, planes)
        met = end >= 0
        active = np.isin(np.arange(planes), roots[met] % planes)  # the others are maximum (Berge)
        roots, end = roots[~met & active[roots % planes]], end[met]
        while end.size:  # swap the edges along the paths, all paths one step at a time
            start = parent[end]
            following = mate[start]
            mate[end], mate[start], end = start, end, following[following >= 0]
    return np.sum(mate.reshape(-1, planes)[n:] >= 0, axis=0)


def count_boundaries(probability: np.ndarray, label: np.ndarray, max_dist: float) -> np.ndarray:
    """One picture's (3, 101) int64 counts of matched, predicted and true pixels per threshold.

    probability (H, W) in [0, 1], read with 8 bits as the public runs do; label (H, W): 1 boundary,
    0 none, 255 ignored. The picture is the bounding box of what is not ignored, so padding moves
    neither rim nor diagonal (our choice). Predictions on ignored pixels are dropped after thinning.
    """
    if not (probability.min(initial=0) >= 0 and probability.max(initial=0) <= 1):  # NaN is neither
        raise ValueError("odsF needs probabilities in [0, 1]: apply the sigmoid, and look for NaN")
    valid = label != 255
    box = tuple(slice(v.argmax(), v.size - v[::-1].argmax()) for v in (valid.any(1), valid.any(0)))
    true = thin(label[box] == 1)
    ridges = non_maximum_suppression(np.round(probability[box].astype(float) * 255) / 255)
    planes = np.searchsorted(THRESHOLDS, ridges)  # (H, W): how many thresholds a pixel exceeds
    lowest = np.array([2**n - 1 for n in range(65)], np.uint64)  # n -> the lowest n bits set
    words = np.stack([thin(lowest[np.clip(planes - k, 0, 64)]) for k in (0, 64)], axis=-1)
    y, x = np.nonzero(words.any(2) & valid[box])
    octets = words[y, x].astype("<u8").view(np.uint8)
    predicted = np.unpackbits(octets, axis=1, count=THRESHOLDS.size, bitorder="little").view(bool)
    matched = match_boundaries(y, x, predicted, true, max_dist * np.hypot(*true.shape))
    return np.stack([matched, predicted.sum(0), np.full(THRESHOLDS.size, true.sum())])


def f_scores(counts: np.ndarray) -> np.ndarray:
    """(..., 3, 101) counts -> (..., 101) F in percent; 0 where nothing matches, never NaN."""
    matched, predicted, true = np.moveaxis(np.asarray(counts), -2, 0)
    return 200 * matched / np.maximum(predicted + true, 1)


# ----------------------------------------------------------------------------------------- the tool
class UserError(Exception):
    """Bad input: its text is the one line that the user sees."""


def read_picture(path: Path, shape: tuple | None = None) -> np.ndarray:
    """(H, W) of an 8-bit grey picture or of a .npy file; shape: what it has to be."""
    try:
        if path.suffix == ".npy":
            array = np.asarray_chkfinite(np.load(path, allow_pickle=False), float)
        else:
            from PIL import Image
            with Image.open(path) as picture:
                if picture.mode not in ("1", "L"):
                    raise ValueError(f"its mode is {picture.mode}, not 8-bit grey")
                array = np.asarray(picture.convert("L"))
        if array.ndim != 2 or not array.size or array.shape != (shape or array.shape):
            raise ValueError(f"its shape is {array.shape}, not {shape or '(height, width)'}")
    except Exception as error:  # noqa: BLE001  Pillow raises many kinds
        raise UserError(f"{path} cannot be used: {error}") from None
    return array


def count_files(prediction: Path, label: Path, ignore: Path | None, max_dist: float) -> np.ndarray:
    """The counts of one picture."""
    values = read_picture(label)
    true = (values == (255 if (values == 255).any() else 1)).astype(np.uint8)
    if values[true == 0].any():
        raise UserError(f"{label} holds other values than 0 and 255, or 0 and 1")
    if ignore:
        true[read_picture(ignore, true.shape) != 0] = 255
    return count_boundaries(read_picture(prediction, true.shape) / 255, true, max_dist)


def find(folder: str, name: str, *endings: str) -> Path:
    found = [path for ending in endings if (path := Path(folder, name + ending)).is_file()]
    if len(found) != 1:
        raise UserError(f"{folder} has {len(found)} files of {' and '.join(map(name.__add__, endings))}: one is needed")
    return found[0]


def list_jobs(args) -> list[tuple]:
    """The arguments of count_files per label."""
    names = {p.stem for p in Path(args.labels).iterdir() if p.suffix.lower() in (".png", ".npy")}
    if not names:
        raise UserError(f"{args.labels} holds no .png and no .npy")
    return [(find(args.predictions, name, ".png"), find(args.labels, name, ".png", ".npy"),
             args.ignore and find(args.ignore, name, ".png", ".npy"), args.max_dist) for name in sorted(names)]


def start_worker() -> None:
    """A worker leaves Ctrl-C to its parent, and ends when the parent does, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def count_all(jobs: list[tuple], workers: int) -> np.ndarray:
    """-> (N, 3, 101), in the order of the jobs; says after every 20 how far it is."""
    counts, start, stops = [], time.monotonic(), []
    handler = signal.signal(signal.SIGINT, lambda *_: stops.append(1))  # nothing breaks off midway
    with ProcessPoolExecutor(workers, initializer=start_worker) as pool:
        try:
            for done, future in enumerate([pool.submit(count_files, *job) for job in jobs], 1):
                while not (stops or future.done()):
                    wait([future], timeout=0.1)
                if stops:
                    raise KeyboardInterrupt
                counts.append(future.result())
                if done % 20 == 0:
                    left = (time.monotonic() - start) / done * (len(jobs) - done)
                    print(f"{done} of {len(jobs)} pictures, {left:.0f} s left", file=sys.stderr)
        finally:
            for worker in multiprocessing.active_children():  # after an error wait for no picture
                worker.kill()
            signal.signal(signal.SIGINT, handler)
    return np.array(counts)


def summarise(counts: np.ndarray) -> tuple[dict, np.ndarray, np.ndarray]:
    """(N, 3, 101) counts -> the figures, precision (101,), recall (101,); all in percent."""
    matched, predicted, true = total = counts.sum(0)
    precision = np.where(predicted > 0, 100 * matched / np.maximum(predicted, 1), 100)
    recall = 100 * matched / np.maximum(true, 1)
    own = counts[np.arange(len(counts)), :, f_scores(counts).argmax(1)].sum(0)  # (3,)
    reached, first = np.unique(recall, return_index=True)
    area = np.interp(np.arange(101), reached, precision[first], left=0, right=0).sum() / 100
    best, area = f_scores(total).argmax(), min(area, 100) if reached.size > 1 else 0
    figures = {"odsF": f_scores(total)[best], "threshold": THRESHOLDS[best], "precision": precision[best],
               "recall": recall[best], "oisF": f_scores(own[:, None])[0], "AP": area}
    return {name: float(f) for name, f in figures.items()} | {"images": len(counts)}, precision, recall


def draw_curve(path: Path, figure, figures: dict, precision: np.ndarray, recall: np.ndarray) -> None:
    axes = figure.add_subplot(xlim=(0, 100), ylim=(0, 100), xlabel="recall", ylabel="precision")
    axes.plot(recall, precision, "-", figures["recall"], figures["precision"], "o")
    axes.set_title(f"odsF {figures['odsF']:.2f}, AP {figures['AP']:.2f}, in percent")
    figure.savefig(path, format="png")


def write(path: str, save) -> None:
    """save(path) under a temporary name, which is then renamed."""
    part = Path(f"{path}.part")
    try:
        save(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def main(argv=None) -> int:
    parser = ArgumentParser("odsf", None, __doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"odsf: {message}\n")  # one line
    parser.add_argument("--predictions", metavar="DIR", required=True)
    parser.add_argument("--labels", metavar="DIR", required=True)
    parser.add_argument("--ignore", metavar="DIR")
    parser.add_argument("--max-dist", type=float, required=True, help="NYUD-v2 0.011, else 0.0075")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 256), help="default: all cores")
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    parser.add_argument("--curve", metavar="FILE.png", help="draw precision over recall")
    args = parser.parse_args(argv)
    if not 0 <= args.max_dist <= 0.1 or not 1 <= args.workers <= 256:
        parser.error("--max-dist must be 0 to 0.1, --workers 1 to 256")
    try:
        if args.curve:  # not after the work
            from matplotlib.figure import Figure
        figures, *curve = summarise(count_all(list_jobs(args), args.workers))
        print("odsF {odsF:.2f} (threshold {threshold:g}, precision {precision:.2f}, recall "
              "{recall:.2f}), oisF {oisF:.2f}, AP {AP:.2f} %, {images} pictures".format(**figures))
        if args.json:
            write(args.json, lambda part: part.write_text(json.dumps(figures, indent=2) + "\n"))
        if args.curve:
            write(args.curve, lambda part: draw_curve(part, Figure(), figures, *curve))
    except (KeyboardInterrupt, UserError, OSError, ImportError, BrokenExecutor) as error:
        hint = ["- pip install matplotlib"] * isinstance(error, ImportError)
        print("odsf:", *str(error).split() or ["stopped"], *hint, file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
