# SPDX-License-Identifier: MIT
"""Boundary evaluation without MATLAB: odsF, oisF and AP of anybody's pictures, exact, on all cores.

    python -m extras.odsf --predictions DIR --labels DIR --max-dist 0.011 --json figures.json

The steps are those of SEISM and of the structured-edges toolbox:
  1. Non-maximum suppression keeps the ridges of the predicted map.
  2. Each of 101 thresholds makes a binary map of the ridges.
  3. Thinning leaves lines one pixel wide, in the binary maps and in the label.
  4. Predicted and true pixels are matched one to one, at most max-dist times the picture's
     diagonal apart.
  5. The counts of matched, predicted and true pixels give precision, recall and F.

odsF  F at the best threshold for all pictures, in percent (SEISM: ODS F)
oisF  F of the summed counts of each picture at its own best threshold, of equal ones the lowest
AP    area under precision over recall, interpolated linearly at recalls 0, 1, ... 100, at most 100.
      Precision is 100 where nothing is predicted. Recalls that no threshold reaches count 0.

predictions  NAME.png, grey with 8 bits: 255 is certainly a boundary, 0 certainly none
labels       NAME.png or NAME.npy of the same size, with 0 and 255 or with 0 and 1. All labels are
             evaluated, other predictions are not. An empty label counts against precision
ignore       NAME.png or NAME.npy: what is not 0 is ignored. The bounding box of the rest counts as
             the picture

The file runs alone where it is copied. It needs numpy and, for pictures, Pillow.
"""

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# A pixel is predicted where its value exceeds a threshold. These are the public runs' thresholds.
THRESHOLDS = np.array([0.001, *np.arange(1, 100) / 100, 0.999])  # (101,)


# ---------------------------------------------------------------------------------------- thinning
# Guo and Hall, "Parallel thinning with two-subiteration algorithms", CACM 1989. The conditions have
# the names that MATLAB's bwmorph gives them: G1, G2, G3. All of it works bit by bit, so one call
# thins up to 64 binary maps: bit k of a pixel's integer says whether the pixel is set in map k.


def at_least_two(a, b, c, d) -> np.ndarray:
    """Whether two or more of four are set, bit by bit."""
    return (a & b) | (c & d) | ((a | b) & (c | d))


def is_deletable(neighbours: np.ndarray, first_half: bool) -> np.ndarray:
    """Whether a half-pass deletes a pixel. neighbours (8, N): clockwise from the north -> (N,)."""
    n, ne, e, se, s, sw, w, nw = neighbours

    # G1: round the pixel, unset turns into set exactly once, so deleting it parts nothing.
    turns = (~n & (ne | e), ~e & (se | s), ~s & (sw | w), ~w & (nw | n))
    any_turn = turns[0] | turns[1] | turns[2] | turns[3]
    g1 = any_turn & ~at_least_two(*turns)

    # G2: 2 <= min(N1, N2) <= 3. N1 and N2 count the pairs of adjacent neighbours with a set pixel,
    # for the two ways to pair them. Below 2 the pixel is the end of a line, at 4 it lies inside.
    pairs1 = (nw | n, ne | e, se | s, sw | w)
    pairs2 = (n | ne, e | se, s | sw, w | nw)
    is_no_end = at_least_two(*pairs1) & at_least_two(*pairs2)
    all1 = pairs1[0] & pairs1[1] & pairs1[2] & pairs1[3]
    all2 = pairs2[0] & pairs2[1] & pairs2[2] & pairs2[3]
    g2 = is_no_end & ~(all1 & all2)

    # G3: the first half-pass peels the north-east side of a shape, the second the south-west side.
    if first_half:
        g3 = ~((n | ne | ~se) & e)
    else:
        g3 = ~((s | sw | ~nw) & w)

    return g1 & g2 & g3


def thin(mask: np.ndarray) -> np.ndarray:
    """Thin a (H, W) bool map, or each bit of an unsigned integer map, until nothing changes.

    The result equals that of scikit-image's `thin` and of MATLAB's bwmorph. OpenCV does the second
    half-pass first, which moves edges two pixels wide by one. Beyond the frame nothing is set.
    """
    padded = np.pad(mask, 1)
    stride = padded.shape[1]
    pixels = padded.ravel()
    clockwise = [-stride, -stride + 1, 1, stride + 1, stride, stride - 1, -1, -stride - 1]
    around = np.array(clockwise)[:, None]  # (8, 1): the way to a neighbour in `pixels`

    candidates = np.flatnonzero(pixels)
    changed_before = candidates  # the second half-pass looks at all pixels, too
    is_near_change = np.zeros(pixels.size, bool)
    first_half = True
    while candidates.size:
        values = pixels[candidates]  # (N,)
        deleted = values & is_deletable(pixels[candidates + around], first_half)
        pixels[candidates] = values & ~deleted

        # The answer for a pixel can differ from that of two half-passes ago only if a neighbour has
        # changed since then. So the next half-pass looks at these pixels only.
        changed = candidates[deleted != 0]
        both_changes = np.concatenate([changed, changed_before])
        is_near_change[both_changes + around] = True
        candidates = np.flatnonzero(is_near_change)
        is_near_change[candidates] = False
        candidates = candidates[pixels[candidates] != 0]

        changed_before = changed
        first_half = not first_half
    return pixels.reshape(padded.shape)[1:-1, 1:-1]


# ------------------------------------------------------------------------- non-maximum suppression
# The structured-edges toolbox (Dollar and Zitnick, ICCV 2013), edgesDetect.m and edgesNmsMex.cpp,
# with the settings of the public runs: edgesNmsMex(E, O, 1, 5, 1.01).

SMOOTHING_RADIUS = 4  # pixels, of the map whose derivatives give the direction of an edge
BORDER = 5  # pixels along the frame where predictions are weakened
TOLERANCE = 1.01  # a pixel goes if a neighbour exceeds this many times its value


def smooth(edge: np.ndarray) -> np.ndarray:
    """Triangle filter, the toolbox's convTri(E, 4): weights 1 2 3 4 5 4 3 2 1 over 25, both axes."""
    height, width = edge.shape
    radius = SMOOTHING_RADIUS
    rising = np.arange(1, radius + 1)
    weights = np.array([*rising, radius + 1, *rising[::-1]]) / (radius + 1) ** 2  # (9,)

    padded = np.pad(edge, radius, mode="symmetric")
    down = sum(weight * padded[k : k + height] for k, weight in enumerate(weights))
    return sum(weight * down[:, k : k + width] for k, weight in enumerate(weights))  # (H, W)


def directions(edge: np.ndarray) -> np.ndarray:
    """Angle in [0, pi) across the edge at each pixel of a (H, W) map, from second derivatives.

    The toolbox's formula: O = mod(atan(Oyy * sign(-Oxy) / (Oxx + 1e-5)), pi).
    """
    along_y, along_x = np.gradient(smooth(edge))
    o_yy, o_xy = np.gradient(along_y)
    o_xx = np.gradient(along_x, axis=1)
    return np.mod(np.arctan(o_yy * np.sign(-o_xy) / (o_xx + 1e-5)), np.pi)


def interpolate(edge: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Bilinear values of a (H, W) map at y, x (N,); places outside are moved to its frame."""
    height, width = edge.shape
    y = np.clip(y, 0, height - 1.001)
    x = np.clip(x, 0, width - 1.001)

    top = y.astype(int)
    left = x.astype(int)
    dy = y - top
    dx = x - left

    above = (1 - dx) * edge[top, left] + dx * edge[top, left + 1]
    below = (1 - dx) * edge[top + 1, left] + dx * edge[top + 1, left + 1]
    return (1 - dy) * above + dy * below


def border_weights(size: int, border: int) -> np.ndarray:
    """0, 1/border, 2/border, ... from either end of an axis, at most 1 -> (size,)."""
    position = np.arange(size)
    distance = np.minimum(position, position[::-1])
    return np.minimum(1, distance / border)


def non_maximum_suppression(edge: np.ndarray) -> np.ndarray:
    """Keep the ridges of a (H, W) boundary map in [0, 1]; all other pixels become 0.

    A pixel is kept if 1.01 times its value reaches that of both places one pixel across the edge.
    The outermost 5 pixels are multiplied by 0, 1/5, ... 4/5, so the outermost ring predicts nothing.
    """
    height, width = edge.shape
    ridges = np.zeros_like(edge)
    if min(height, width) < 2:  # a line has no second derivatives, and all of it is border
        return ridges

    y, x = np.nonzero(edge)
    angle = directions(edge)[y, x]
    value = edge[y, x]
    step_y = np.sin(angle)
    step_x = np.cos(angle)
    one_side = interpolate(edge, y - step_y, x - step_x)
    other_side = interpolate(edge, y + step_y, x + step_x)
    keep = (TOLERANCE * value >= one_side) & (TOLERANCE * value >= other_side)
    ridges[y[keep], x[keep]] = value[keep]

    border = min(BORDER, height // 2, width // 2)
    return ridges * border_weights(height, border)[:, None] * border_weights(width, border)


# ---------------------------------------------------------------------------------------- matching
# How many predicted pixels can be given a true pixel of their own, at most `radius` pixels away?
# This is a maximum matching in a bipartite graph. All thresholds are solved together: the binary
# map of one threshold is a "plane", and the graph has a vertex for each pixel in each plane.
#
# Pixels are numbered: N predicted ones, then M true ones, then one pixel that is in no plane.
#
#     pixel   0 ... N-1    N ... N+M-1    N+M
#             predicted    true           nobody: fills the rows of `near` that are too short
#
# Vertices are numbered pixel * planes + plane:
#
#     vertex  0 ... planes-1          planes ... 2*planes-1     ...
#             pixel 0 in all planes   pixel 1 in all planes     ...
#
# mate (vertices,)  the vertex that this one is matched to, or FREE, or ABSENT: not in this plane
# near (pixels, D)  the pixel's neighbours, that is the pixels of the other side within the radius.
#                   They are given as vertices of plane 0, so adding a plane gives those of the plane
#
# Nearest pairs are matched first, which leaves few vertices free. The rest is done by augmenting
# paths. Such a path begins at a free vertex on one side and ends at a free vertex on the other, and
# every second edge of it is matched:
#
#     free --- a === b --- free     becomes     matched === a --- b === matched
#
# Swapping matched and unmatched edges gives one more pair. Berge's theorem: where no augmenting
# path is left, the matching is maximum.

FREE = -1
ABSENT = -2
CHUNK = 2048  # vertices that are followed at a time; their neighbours fit into the cache


def find_pairs(y, x, true: np.ndarray, radius: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """All pairs of a predicted and a true pixel at most `radius` apart, nearest first.

    y, x (N,): the predicted pixels; true (H, W) bool. Per displacement: the pixel numbers of the
    predicted and of the true pixels, two arrays of one length. No pixel occurs twice in an array.
    """
    reach = int(radius)
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
    squared = dy**2 + dx**2
    within = np.sum(squared <= radius**2)
    nearest_first = np.argsort(squared, kind="stable")[:within]

    number = np.full(np.add(true.shape, 2 * reach), -1)  # which predicted pixel stands here
    number[y + reach, x + reach] = np.arange(y.size)
    true_y, true_x = np.nonzero(true)

    pairs = []
    for k in nearest_first:
        found = number[true_y + reach + dy[k], true_x + reach + dx[k]]  # (M,)
        which = np.flatnonzero(found >= 0)
        pairs.append((found[which], which + y.size))
    return pairs


def list_neighbours(pairs: list, pixels: int, planes: int) -> tuple[np.ndarray, np.ndarray]:
    """-> near (pixels + 1, D) as drawn above; degree (pixels,): how many neighbours a pixel has."""
    nobody = pixels
    near = np.full((len(pairs), pixels + 1), nobody, np.int32)  # transposed
    degree = np.zeros(pixels, int)
    for predicted, true in pairs:
        near[degree[predicted], predicted] = true
        degree[predicted] += 1
        near[degree[true], true] = predicted
        degree[true] += 1

    near = near[: degree.max(initial=0)]
    return np.ascontiguousarray(near.T) * np.int32(planes), degree


def match_nearest(pairs: list, free: np.ndarray, mate: np.ndarray) -> None:
    """Match greedily, nearest pairs first.

    Changes mate (vertices,) and free (pixels, planes) bool: which vertices have no mate yet.
    """
    planes = free.shape[1]
    is_free = free.ravel()  # a view of it, (vertices,)
    for predicted, true in pairs:
        pair, plane = np.nonzero(free[predicted] & free[true])
        one = predicted[pair] * planes + plane
        other = true[pair] * planes + plane
        mate[one] = other
        mate[other] = one
        is_free[one] = False
        is_free[other] = False


def grow_trees(roots, near, mate, planes: int) -> tuple[np.ndarray, np.ndarray]:
    """Look for augmenting paths from all roots at once, by alternating trees, breadth first.

    A root is a free vertex. From it a tree grows by two edges per level: an unmatched one to a
    neighbour, then the matched one to that neighbour's mate. A vertex joins one tree only, so no
    two paths share a vertex. A tree ends where it meets a free vertex.
    -> end (roots,): the free vertex that a root's tree has met, or -1;
       parent (vertices,): the vertex that a neighbour was reached from: the way back to the root.
    """
    is_new = mate != ABSENT
    parent = np.empty_like(mate)
    end = np.full(roots.size, -1)

    level = roots.astype(np.int32)  # vertices on the roots' side
    tree = np.arange(roots.size, dtype=np.int32)  # the tree of each, as an index of `roots`
    while level.size:
        mates = []
        mates_tree = []
        for start in range(0, level.size, CHUNK):
            source = level[start : start + CHUNK]
            source_tree = tree[start : start + CHUNK]

            # Follow all edges, and keep those that lead to new vertices.
            pixel, plane = np.divmod(source, planes)
            reached = (near[pixel] + plane[:, None]).ravel()
            edge = np.flatnonzero(is_new.take(reached))
            reached = reached[edge]
            edge_source = edge // near.shape[1]

            # Several sources may reach one vertex. It goes to the one that was written last.
            parent[reached] = source[edge_source]
            wins = parent[reached] == source[edge_source]
            reached = reached[wins]
            reached_tree = source_tree[edge_source[wins]]
            is_new[reached] = False

            # A free vertex ends its tree, and from a matched one the tree goes on at the mate.
            partner = mate[reached]
            met = partner == FREE
            end[reached_tree[met]] = reached[met]
            mates.append(partner[~met])
            mates_tree.append(reached_tree[~met])

        level = np.concatenate(mates)
        tree = np.concatenate(mates_tree)
        grows = end[tree] < 0
        level = level[grows]
        tree = tree[grows]
    return end, parent


def augment(mate: np.ndarray, parent: np.ndarray, end: np.ndarray) -> None:
    """Swap the edges along the paths from `end` (paths,) back to their roots, all paths at once."""
    while end.size:
        start = parent[end]
        next_end = mate[start]  # FREE at a root
        mate[end] = start
        mate[start] = end
        end = next_end[next_end >= 0]


def match_boundaries(y, x, predicted: np.ndarray, true: np.ndarray, radius: float) -> np.ndarray:
    """How many boundary pixels can be matched one to one, at most `radius` pixels apart. Exact.

    y, x (N,): pixels that are predicted in some plane; predicted (N, planes) bool: in which;
    true (H, W) bool -> (planes,) int64.
    """
    count, planes = predicted.shape
    pairs = find_pairs(y, x, true, radius)
    in_planes = np.ones((np.sum(true), planes), bool)  # a true pixel is in each plane
    free = np.concatenate([predicted, in_planes])  # (pixels, planes): nothing is matched yet
    near, degree = list_neighbours(pairs, len(free), planes)

    nobody = np.zeros((1, planes), bool)
    mate = np.where(np.concatenate([free, nobody]), np.int32(FREE), np.int32(ABSENT)).ravel()
    match_nearest(pairs, free, mate)

    # Search from the side with fewer free vertices, in each plane its own. Pixels without any
    # neighbour stay unmatched.
    free[degree == 0] = False
    from_predicted = free[:count].sum(0) < free[count:].sum(0)  # (planes,)
    is_root = np.concatenate([free[:count] & from_predicted, free[count:] & ~from_predicted])
    roots = np.flatnonzero(is_root)

    while roots.size:
        end, parent = grow_trees(roots, near, mate, planes)
        found = end >= 0
        augment(mate, parent, end[found])

        # A plane in which no path was found is maximum (Berge). In the others, search again.
        is_active = np.isin(np.arange(planes), roots[found] % planes)
        roots = roots[~found & is_active[roots % planes]]
    return np.sum(mate.reshape(-1, planes)[count:] >= 0, axis=0)


# ---------------------------------------------------------------------------------------- counting
LOWEST_BITS = np.array([2**n - 1 for n in range(65)], np.uint64)  # n -> the lowest n bits are set


def thin_at_all_thresholds(ridges: np.ndarray) -> np.ndarray:
    """(H, W) ridges -> (H, W, 2) uint64: the 101 thinned binary maps as the bits of two words.

    A pixel that exceeds n thresholds is set in the first n maps.
    """
    exceeded = np.searchsorted(THRESHOLDS, ridges)  # (H, W)
    words = []
    for first_map in (0, 64):
        bits = np.clip(exceeded - first_map, 0, 64)
        words.append(thin(LOWEST_BITS[bits]))
    return np.stack(words, axis=-1)


def unpack(words: np.ndarray) -> np.ndarray:
    """(N, 2) uint64 -> (N, 101) bool: one column per threshold."""
    octets = words.astype("<u8").view(np.uint8)
    bits = np.unpackbits(octets, axis=1, count=THRESHOLDS.size, bitorder="little")
    return bits.view(bool)


def bounding_box(mask: np.ndarray) -> tuple[slice, slice]:
    """The rows and the columns from the first to the last set pixel of a (H, W) map."""
    box = []
    for line in (mask.any(1), mask.any(0)):
        box.append(slice(line.argmax(), line.size - line[::-1].argmax()))
    return tuple(box)


def count_boundaries(probability: np.ndarray, label: np.ndarray, max_dist: float) -> np.ndarray:
    """Counts of matched, predicted and true pixels per threshold, of one picture: (3, 101) int64.

    probability (H, W): in [0, 1], rounded to 8 bits as in the pictures of the public runs.
    label (H, W): 1 boundary, 0 none, 255 ignored.
    max_dist: how far apart a pair may be, as a share of the picture's diagonal.
    Our choice: the bounding box of what is not ignored is the picture, so padding moves neither
    border nor diagonal; predictions on ignored pixels are dropped after thinning.
    Raises ValueError for probabilities that are not in [0, 1].
    """
    in_range = probability.min(initial=0) >= 0 and probability.max(initial=0) <= 1
    if not in_range:  # NaN is not, either
        raise ValueError("odsF needs probabilities in [0, 1]: apply the sigmoid, and look for NaN")

    valid = label != 255
    box = bounding_box(valid)
    true = thin(label[box] == 1)
    of_8_bits = np.round(probability[box].astype(float) * 255) / 255
    words = thin_at_all_thresholds(non_maximum_suppression(of_8_bits))

    y, x = np.nonzero(words.any(2) & valid[box])
    predicted = unpack(words[y, x])  # (N, 101)
    radius = max_dist * np.hypot(*true.shape)
    matched = match_boundaries(y, x, predicted, true, radius)
    return np.stack([matched, predicted.sum(0), np.full(THRESHOLDS.size, true.sum())])


# ----------------------------------------------------------------------------------------- figures
def f_scores(counts: np.ndarray) -> np.ndarray:
    """(..., 3, 101) counts -> (..., 101) F in percent; 0 where nothing matches, never NaN.

    F = 2 P R / (P + R) with P = matched / predicted and R = matched / true, which is
    2 matched / (predicted + true).
    """
    matched, predicted, true = np.moveaxis(np.asarray(counts), -2, 0)
    return 200 * matched / np.maximum(predicted + true, 1)


def average_precision(precision: np.ndarray, recall: np.ndarray) -> float:
    """Area under the curve, all in percent, by the rule of BSDS500's collect_eval_bdry.m.

    The 101 interpolated precisions add up to 101 for a perfect curve: hence the cap (our choice).
    """
    recalls, lowest_threshold = np.unique(recall, return_index=True)
    if recalls.size < 2:
        return 0.0
    precisions = precision[lowest_threshold]
    curve = np.interp(np.arange(101), recalls, precisions, left=0, right=0)
    return min(curve.sum() / 100, 100.0)


def summarise(counts: np.ndarray) -> tuple[dict, np.ndarray, np.ndarray]:
    """(N, 3, 101) counts -> the figures, precision (101,), recall (101,); all in percent."""
    total = counts.sum(0)
    matched, predicted, true = total
    recall = 100 * matched / np.maximum(true, 1)
    precision = np.where(predicted > 0, 100 * matched / np.maximum(predicted, 1), 100)

    f = f_scores(total)
    best = f.argmax()

    best_of_each = f_scores(counts).argmax(1)  # (N,)
    counts_at_best = counts[np.arange(len(counts)), :, best_of_each]  # (N, 3)
    ois_total = counts_at_best.sum(0)[:, None]  # (3, 1)

    figures = {
        "odsF": float(f[best]),
        "threshold": float(THRESHOLDS[best]),
        "precision": float(precision[best]),
        "recall": float(recall[best]),
        "oisF": float(f_scores(ois_total)[0]),
        "AP": float(average_precision(precision, recall)),
        "images": len(counts),
    }
    return figures, precision, recall


# ----------------------------------------------------------------------------------- picture files
class UserError(Exception):
    """Bad input: its text is the one line that the user sees."""


@dataclass(frozen=True)
class Files:
    """What belongs to one picture."""

    prediction: Path
    label: Path
    ignore: Path | None


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

        if shape is not None and array.shape != shape:
            raise ValueError(f"its shape is {array.shape}, not {shape}")
        if array.ndim != 2 or array.size == 0:
            raise ValueError(f"its shape is {array.shape}, not (height, width)")
    except Exception as error:  # noqa: BLE001  Pillow raises many kinds
        raise UserError(f"{path} cannot be used: {error}") from None
    return array


def count_files(files: Files, max_dist: float) -> np.ndarray:
    """count_boundaries of one picture's files."""
    values = read_picture(files.label)
    boundary_value = 255 if (values == 255).any() else 1
    label = (values == boundary_value).astype(np.uint8)
    if values[label == 0].any():
        raise UserError(f"{files.label} holds other values than 0 and 255, or 0 and 1")

    if files.ignore is not None:
        label[read_picture(files.ignore, label.shape) != 0] = 255
    probability = read_picture(files.prediction, label.shape) / 255
    return count_boundaries(probability, label, max_dist)


def find_file(folder: str, name: str, endings: tuple[str, ...]) -> Path:
    """The one file in the folder that has this name and one of the endings."""
    candidates = [Path(folder, name + ending) for ending in endings]
    found = [path for path in candidates if path.is_file()]
    if len(found) != 1:
        names = " and ".join(path.name for path in candidates)
        raise UserError(f"{folder} has {len(found)} files of {names}: one is needed")
    return found[0]


def list_files(predictions: str, labels: str, ignore: str | None) -> list[Files]:
    """The files of each label in three folders, sorted by name."""
    endings = (".png", ".npy")
    names = {path.stem for path in Path(labels).iterdir() if path.suffix.lower() in endings}
    if not names:
        raise UserError(f"{labels} holds no .png and no .npy")

    pictures = []
    for name in sorted(names):
        prediction = find_file(predictions, name, (".png",))
        label = find_file(labels, name, endings)
        mask = find_file(ignore, name, endings) if ignore else None
        pictures.append(Files(prediction, label, mask))
    return pictures


# ----------------------------------------------------------------------------------------- workers
def end_with_parent() -> None:
    """Wait for the end of the parent process, then end this one."""
    multiprocessing.parent_process().join()
    os._exit(1)


def start_worker() -> None:
    """A worker leaves Ctrl-C to its parent, and ends when the parent does, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


def count_all(pictures: list[Files], max_dist: float, workers: int) -> np.ndarray:
    """Counts of all pictures in their order, (N, 3, 101); says after every 20 how far it is.

    Ctrl-C only sets a flag, which the loop below looks at. An exception amid the pool's own code
    could leave workers behind or a lock taken.
    """
    is_interrupted = False

    def remember(number, frame) -> None:
        nonlocal is_interrupted
        is_interrupted = True

    handler = signal.signal(signal.SIGINT, remember)
    others = multiprocessing.active_children()  # of a program that calls this function
    counts = []
    start = time.monotonic()
    with ProcessPoolExecutor(workers, initializer=start_worker) as pool:
        try:
            futures = [pool.submit(count_files, files, max_dist) for files in pictures]
            for done, future in enumerate(futures, start=1):
                while not (future.done() or is_interrupted):
                    wait([future], timeout=0.1)
                if is_interrupted:
                    raise KeyboardInterrupt

                counts.append(future.result())
                if done % 20 == 0:
                    left = (time.monotonic() - start) / done * (len(pictures) - done)
                    print(f"{done} of {len(pictures)} pictures, {left:.0f} s left", file=sys.stderr)
        finally:
            for child in multiprocessing.active_children():
                if child not in others:
                    child.kill()  # else an error would wait for the pictures in work
            signal.signal(signal.SIGINT, handler)
    return np.array(counts)


# ------------------------------------------------------------------------------------ command line
@contextmanager
def replacing(path: str) -> Iterator[Path]:
    """Yields a temporary name. The file that is written there becomes `path` at the end."""
    part = Path(f"{path}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def draw_curve(figure, figures: dict, precision: np.ndarray, recall: np.ndarray) -> None:
    """Precision over recall on a matplotlib figure, with a dot at odsF's threshold."""
    axes = figure.add_subplot(xlim=(0, 100), ylim=(0, 100), xlabel="recall", ylabel="precision")
    axes.plot(recall, precision, "-")
    axes.plot(figures["recall"], figures["precision"], "o")
    axes.set_title(f"odsF {figures['odsF']:.2f}, AP {figures['AP']:.2f}, in percent")


class OneLineParser(ArgumentParser):
    """Says in one line what is wrong with the arguments."""

    def error(self, message: str):
        self.exit(2, f"odsf: {message}\n")


def parse_arguments(argv: list[str] | None) -> Namespace:
    cores = min(os.cpu_count() or 1, 256)
    parser = OneLineParser(
        prog="odsf", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("--predictions", metavar="DIR", required=True)
    parser.add_argument("--labels", metavar="DIR", required=True)
    parser.add_argument("--ignore", metavar="DIR")
    parser.add_argument("--max-dist", type=float, required=True, help="NYUD-v2 0.011, else 0.0075")
    parser.add_argument("--workers", type=int, default=cores, help="default: all cores")
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    parser.add_argument("--curve", metavar="FILE.png", help="draw precision over recall")

    args = parser.parse_args(argv)
    if not 0 <= args.max_dist <= 0.1 or not 1 <= args.workers <= 256:
        parser.error("--max-dist must be 0 to 0.1, --workers 1 to 256")
    return args


def evaluate(args: Namespace) -> None:
    """Print the figures, and write what the arguments ask for."""
    if args.curve:  # a missing matplotlib shows before the work
        from matplotlib.figure import Figure

    pictures = list_files(args.predictions, args.labels, args.ignore)
    figures, precision, recall = summarise(count_all(pictures, args.max_dist, args.workers))
    print(
        "odsF {odsF:.2f} (threshold {threshold:g}, precision {precision:.2f}, recall {recall:.2f}),"
        " oisF {oisF:.2f}, AP {AP:.2f} %, {images} pictures".format(**figures)
    )

    if args.json:
        with replacing(args.json) as part:
            part.write_text(json.dumps(figures, indent=2) + "\n")
    if args.curve:
        figure = Figure()
        draw_curve(figure, figures, precision, recall)
        with replacing(args.curve) as part:
            figure.savefig(part, format="png")


def main(argv: list[str] | None = None) -> int:
    """-> exit status: 0, 2 after bad use, 130 after Ctrl-C."""
    args = parse_arguments(argv)
    try:
        evaluate(args)
        return 0
    except KeyboardInterrupt:
        message = "stopped"
        status = 130
    except ImportError as error:
        message = f"{error} - pip install matplotlib"
        status = 2
    except (UserError, OSError, BrokenExecutor) as error:
        message = str(error)
        status = 2
    print("odsf:", *message.split(), file=sys.stderr)  # one line, whatever the message holds
    return status


if __name__ == "__main__":
    sys.exit(main())
