# SPDX-License-Identifier: MIT
"""Raw data sets to one HDF5 file each, in the format that mtcd.py trains on.

    python data_prep.py toy    [--out FILE] [--train N] [--val N] [--height H] [--width W] [--seed S]    (no download)
    python data_prep.py nyud   [--raw DIR] [--out FILE]
    python data_prep.py pascal [--raw DIR] [--out FILE]

DIR (default data/raw) is a package's folder or the folder around it; what lies there is recognised:
    nyud, packaged  NYUD_MT/ or NYUDv2/: gt_sets/{train,val}.txt; images segmentation depth normals edge, a file an id,
                    in any of the extensions in circulation. The papers' figures are on this one.
    nyud, raw       nyu_depth_v2_labeled.mat, splits.mat, classMapping40.mat and, if you have it, nyu_normals_gt.zip.
                    Boundaries and normals are made here, so figures do not compare with the papers'.
    pascal          PASCAL_MT/ or PASCALContext/: ImageSets/Context/{train,val}.txt; JPEGImages, semseg/VOC12,
                    semseg/pascal-context, pascal-context/trainval, human_parts, normals_distill, sal_distill.
FILE (default data/<data set>.h5) is replaced only by a whole one; look at FILE.preview.png before you train.
Normals made here (toy, raw) are in camera axes, x right, y down, z forward, and point at the camera: a floor has y
about -1. Normals that come with a package or in the zip keep the axes of their files.
"""
import argparse
import io
import multiprocessing
import os
import signal
import sys
import threading
import time
import zipfile
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path

import h5py
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from extras.rooms import CLASSES as TOY_CLASSES
from extras.rooms import render_room

# --------------------------------------------------------------------------------------------------------------- tables
SEMSEG = {name: text.replace("\n", " ").split(", ") for name, text in {  # class names, spelt as the data spells them
    "nyud": """wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter, blinds, desk,
shelves, curtain, dresser, pillow, mirror, floor mat, clothes, ceiling, books, refridgerator, television, paper, towel,
shower curtain, box, whiteboard, person, night stand, toilet, sink, lamp, bathtub, bag, otherstructure, otherfurniture,
otherprop""",
    "pascal": """background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse,
motorbike, person, pottedplant, sheep, sofa, train, tvmonitor"""}.items()}
PARTS = {  # the 7 classes of parsing and the PASCAL-Parts names that each gathers
    "background": "", "head": "hair head lear lebrow leye mouth nose rear rebrow reye", "torso": "neck torso",
    "upper arm": "luarm ruarm", "lower arm": "lhand llarm rhand rlarm", "upper leg": "luleg ruleg",
    "lower leg": "lfoot llleg rfoot rlleg"}
PART_GROUP = {name: group for group, names in enumerate(PARTS.values()) for name in names.split()}
PERSON = 15  # class_ind in human_parts
# The 170 of the 459 LabelMap classes on which the distilled normals hold (protocol).
NORMAL_CLASSES = np.fromstring("""3 4 6 9 10 11 13 15 17 18 22 23 29 30 33 34 36 37 38 39 41 43 46 49 50 51 53 55 56
59 61 62 65 66 68 69 72 73 78 83 84 85 87 88 95 96 101 104 105 107 111 113 115 122 124 135 141 142 143 146 150 154 157
158 159 165 172 174 181 183 184 191 193 195 197 199 202 213 215 216 219 220 223 225 228 230 232 233 238 239 242 243
246 250 251 252 255 260 261 263 269 272 273 275 281 283 284 285 286 287 288 290 291 292 293 295 304 307 309 310 314
315 319 323 329 330 331 336 342 345 349 350 351 352 355 357 368 370 371 374 379 380 383 384 397 401 403 405 407 408
411 412 413 414 417 419 421 423 427 429 430 432 440 441 442 443 444 446 454 457""", int, sep=" ")
CLASS_LIKE = "uint8", (), 255, 1
FORMAT = {  # array of the file: dtype, trailing shape, ignored value and padding, compression (a number: of gzip)
    "image": ("uint8", (3,), 0, None), "semseg": CLASS_LIKE, "parsing": CLASS_LIKE, "saliency": CLASS_LIKE,
    "boundary": CLASS_LIKE, "depth": ("float32", (), 0, None), "normal": ("float16", (3,), 0, None)}
# Measured at 425 x 560, MB a sample and ms to read it: class ids gzip 0.01, 0.4 (lzf 0.02, 0.65; plain 0.24, 0.05);
# image, depth and normal plain 3.1, 0.7 (lzf 2.7, 8.7). Only PASCAL's normals, mostly 0, get lzf: 0.5, 3.4 (1.6, 0.4).
PACKAGES = {  # folder names; id lists; array: (folders to look in, extensions to look for), the first found counts
    "nyud": (["NYUD_MT", "NYUDv2"], "gt_sets", {
        "image": (["images"], ".png .jpg"), "semseg": (["segmentation"], ".png .mat"),
        "depth": (["depth"], ".npy .mat"), "normal": (["normals"], ".npy .png .jpg"),
        "boundary": (["edge"], ".npy .png")}),
    "pascal": (["PASCAL_MT", "PASCALContext"], "ImageSets/Context", {
        "image": (["JPEGImages"], ".jpg"), "semseg": (["semseg/VOC12", "semseg/pascal-context"], ".png"),
        "context": (["pascal-context/trainval"], ".mat"), "parsing": (["human_parts"], ".mat"),
        "normal": (["normals_distill"], ".png"), "saliency": (["sal_distill"], ".png")})}
RAW_MAT, RAW_ZIP = "nyu_depth_v2_labeled.mat", "nyu_normals_gt.zip"
ETH, NYU = "https://data.vision.ee.ethz.ch", "http://horatio.cs.nyu.edu/mit/silberman"
LINKS = {  # links rot, so several
    "nyud": f"{ETH}/brdavid/atrc/NYUDv2.tar.gz (unpacks to NYUDv2/), {ETH}/kmaninis/share/MTL/NYUD_MT.tgz (NYUD_MT/), "
            f"Google Drive id 14EAEMXmd3zs2hIMY63UhHPSFPDAkiTzw (NYUD_MT/); raw: {NYU}/nyu_depth_v2/{RAW_MAT}, "
            f"{NYU}/indoor_seg_sup/splits.mat, classMapping40.mat of https://github.com/ankurhanda/nyuv2-meta-data, "
            f"https://inf.ethz.ch/personal/ladickyl/{RAW_ZIP}",
    "pascal": f"{ETH}/kmaninis/share/MTL/PASCAL_MT.tgz (unpacks to PASCAL_MT/)"}
INTRINSICS = 518.8579, 519.4696, 325.5824, 253.7362  # fx fy cx cy of the Kinect's 480 x 640 frames
CROP = np.s_[45:470, 40:600]  # rows 46..470, columns 41..600 (1-based), in the toolbox's 45..471 x 41..601: 425 x 560


class PrepError(Exception):
    """Bad input or output; its text is the one line that the user reads."""


# -------------------------------------------------------------------------------------------------------- reading files
@contextmanager
def reading(path):
    """The open file; whatever goes wrong with it becomes a PrepError that names it: broken files fail in many ways."""
    try:
        with path.open("rb") as file:
            if file.read(64).lstrip().startswith(b"<"):
                raise ValueError("this is a web page, not data: the link that it came from is dead")
            file.seek(0)
            yield file
    except Exception as error:
        raise PrepError(f"{path}: {' '.join(str(error).split()) or type(error).__name__}") from error


def decode(file, path, key=None, **options):
    """The array in a picture (palette indices stay indices), a .npy, or variable `key` of a MATLAB v5 .mat."""
    if path.name.endswith(".npy"):
        return np.load(file)
    if not path.name.endswith(".mat"):
        with Image.open(file) as picture:
            return np.asarray(picture)
    from scipy.io import loadmat
    variables = loadmat(file, variable_names=[key], **options)
    if key not in variables:
        raise ValueError(f"it has no variable '{key}'")
    return variables[key]


def load_image(path):
    """Any picture (grey, palette, CMYK, alpha) -> uint8 (h, w, 3) RGB."""
    with reading(path) as file, Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))


def load_label(path, image, rule, key=None, channels=()):
    """rule(array of the file), which must have the size of `image` (h, w, 3)."""
    with reading(path) as file:
        raw = decode(file, path, key)
        raw = raw[..., 0] if raw.shape[2:] == (1,) else raw
        if raw.shape != image.shape[:2] + channels:
            raise ValueError(f"its shape is {raw.shape}, its image's {image.shape}")
        return rule(raw)


def as_classes(raw, count, first=0):
    """Ids first .. first + count - 1 -> uint8 from 0; 255, and 0 where `first` is 1, -> 255 (protocol)."""
    wrong = (raw != np.round(raw)) | (raw < 0) | (raw >= first + count) & (raw != 255)
    if wrong.any():
        raise ValueError(f"label {raw[wrong][0]} is out of range, {first} to {first + count - 1}")
    return np.where((raw == 255) | (raw < first), 255, raw.astype(int) - first).astype(np.uint8)


def as_binary(raw, picture=True):
    """x/255 > 0.5 in a picture; an array holds 0, 1 and perhaps 255, ignored."""
    return (raw > 127).astype(np.uint8) if picture and raw.dtype != bool else as_classes(raw, 2)


def as_depth(raw):
    """Metres -> float32; zero, negative and not finite are missing, 0."""
    return np.where(np.isfinite(raw) & (raw > 0), raw, 0).astype(np.float32)


def as_normals(raw):
    """Vectors (h, w, 3), in 8 bits 2x/255 - 1 -> float16 of length 1; of length 0, in 8 bits 127s or 128s: missing."""
    eight_bits = raw.dtype == np.uint8
    vectors = raw.astype(np.float32) * (2 / 255 if eight_bits else 1) - eight_bits
    length = np.sqrt((vectors ** 2).sum(-1, keepdims=True))
    valid = np.isfinite(length) & (length > (0.01 if eight_bits else 1e-6))
    return np.where(valid, vectors / np.where(valid, length, 1), 0).astype(np.float16)


# ------------------------------------------------------------------------------------------------------------- packages
def open_package(root, dataset):
    """-> {split: {id: {array: path}}}; every file is looked for before the first is read."""
    _, lists, folders = PACKAGES[dataset]
    present = {place: {path.name: path for path in (root / place).iterdir()} if (root / place).is_dir() else {}
               for places, _ in folders.values() for place in places}
    splits, missing = {}, []
    for split in ("train", "val"):
        with reading(root / lists / f"{split}.txt") as file:
            ids = file.read().decode("utf-8-sig").split()
            twice = [name for name, n in Counter(ids).items() if n > 1]
            if twice or not ids:
                raise ValueError(f"lists {twice[0]} twice" if twice else "lists no image")
        splits[split] = {name: {} for name in ids}
        for name, files in splits[split].items():
            for array, (places, endings) in folders.items():
                found = (present[place].get(name + ending) for place in places for ending in endings.split())
                files[array] = next((path for path in found if path), None)
                if files[array] is None:
                    missing.append(f"{places[0]}/{name}{endings.replace(' ', '|')}")
    if missing:
        raise PrepError(f"{root}: {len(missing)} missing files: {', '.join(missing[:3])}{', ...' * (len(missing) > 3)}"
                        f"; get the package again: {LINKS[dataset]}")
    return splits


def read_nyud(files):
    """{array: path} of one id -> sample."""
    image = load_image(files["image"])
    edge = partial(as_binary, picture=files["boundary"].suffix != ".npy")
    return {"image": image,
            "semseg": load_label(files["semseg"], image, partial(as_classes, count=40, first=1), "segmentation"),
            "depth": load_label(files["depth"], image, as_depth, "depth"),
            "normal": load_label(files["normal"], image, as_normals, channels=(3,)),
            "boundary": load_label(files["boundary"], image, edge)}


N, NE, E, SE, S, SW, W, NW = (np.arange(256) >> np.arange(8)[:, None] & 1).astype(bool)  # all neighbourhoods
CROSSINGS = sum((~a & (b | c)).astype(int) for a, b, c in ((N, NE, E), (E, SE, S), (S, SW, W), (W, NW, N)))
PAIRS = np.minimum(*(sum((a | b).astype(int) for a, b in pairs) for pairs in (
    ((NW, N), (NE, E), (SE, S), (SW, W)), ((N, NE), (E, SE), (S, SW), (W, NW)))))
MAY_GO = [(CROSSINGS == 1) & (PAIRS >= 2) & (PAIRS <= 3) & ~turn for turn in ((S | SW | ~NW) & W, (N | NE | ~SE) & E)]


def thin(mask):
    """bool (h, w) -> its skeleton by Guo and Hall (1989), until nothing changes; nothing is set outside (protocol)."""
    stride = mask.shape[1] + 2
    around = np.array([-stride, 1 - stride, 1, 1 + stride, stride, stride - 1, -1, -1 - stride])[:, None]  # N, NE, ...
    flat, idle, half = np.pad(mask, 1).ravel(), 0, 0
    active = np.flatnonzero(flat)
    while idle < 2:
        gone = MAY_GO[half][(flat[active + around] << np.arange(8)[:, None]).sum(0)]
        flat[active[gone]] = False
        active, idle, half = active[~gone], 0 if gone.any() else idle + 1, 1 - half
    return flat.reshape(-1, stride)[1:-1, 1:-1]


def read_pascal(files):
    """{array: path} of one id -> sample."""
    image = load_image(files["image"])
    context = load_label(files["context"], image, lambda raw: raw.astype(int), "LabelMap")
    normal = load_label(files["normal"], image, as_normals, channels=(3,))
    normal[~np.isin(context, NORMAL_CLASSES)] = 0
    p = np.pad(context, 1, mode="reflect")
    edge = p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:] != 4 * context  # the Laplacian is not 0 (protocol)
    return {"image": image, "semseg": load_label(files["semseg"], image, partial(as_classes, count=21)),
            "parsing": human_parts(files["parsing"], image), "normal": normal, "boundary": thin(edge),
            "saliency": load_label(files["saliency"], image, as_binary)}


def human_parts(path, image):
    """human_parts/ID.mat -> uint8 (h, w) groups of PARTS, later over earlier; without any, all 255 (protocol)."""
    groups = np.zeros(image.shape[:2], np.uint8)
    with reading(path) as file:
        for thing in np.ravel(decode(file, path, "anno", simplify_cells=True)["objects"]):
            for part in np.ravel(thing["parts"]) if thing["class_ind"] == PERSON else []:
                if part["part_name"] not in PART_GROUP or part["mask"].shape != groups.shape:
                    raise ValueError(f"part {part['part_name']} {part['mask'].shape}: unknown, or its size wrong")
                groups[part["mask"] > 0] = PART_GROUP[part["part_name"]]
    return groups if groups.any() else np.full_like(groups, 255)


# ------------------------------------------------------------------------------------------------------------ NYUD, raw
def open_raw(root):
    """Official files in `root` -> {split: {id: (frame, normals' name in the zip or None, mask's)}}, label map (895,).

    Ids are 1-based frame numbers. In the zip, train/ and test/<n>.png count from 1, masks/<n>.png from 0, as it is
    reported: whichever has a 0 counts from 0.
    """
    with reading(root / "classMapping40.mat") as file:
        mapping = as_classes(np.append(0, decode(file, root / "classMapping40.mat", "mapClass")), 40, first=1)
    with reading(root / RAW_MAT) as file, h5py.File(file.name) as arrays:
        count = min(len(arrays[name]) for name in ("images", "depths", "labels", "instances"))
    names = {"normals": {}, "masks": {}}
    if (root / RAW_ZIP).exists():
        with reading(root / RAW_ZIP) as file, zipfile.ZipFile(file) as archive:
            for path in map(Path, archive.namelist()):
                if path.suffix == ".png" and path.stem.isdigit():
                    names["masks" if "masks" in path.parts else "normals"][int(path.stem)] = str(path)
    names = {kind: {n - (0 not in of): name for n, name in of.items()} for kind, of in names.items()}
    print(f"normals: {root / RAW_ZIP if names['normals'] else 'fitted to depth'}")
    splits = {}
    for split, key in (("train", "trainNdxs"), ("val", "testNdxs")):
        with reading(root / "splits.mat") as file:
            frames = [int(n) - 1 for n in decode(file, root / "splits.mat", key).ravel()]
            lost = [n + 1 for n in frames if not 0 <= n < count or names["normals"] and n not in names["normals"]]
            if lost or not frames:
                raise ValueError(f"{len(lost)} of its {len(frames)} {key} not in {RAW_MAT} or {RAW_ZIP}: {lost[:3]}")
        splits[split] = {f"{n + 1:04d}": (n, names["normals"].get(n), names["masks"].get(n)) for n in frames}
    return splits, mapping


open_h5, open_zip = lru_cache(1)(h5py.File), lru_cache(1)(zipfile.ZipFile)  # once a worker


def read_raw(source, root, mapping):
    """(frame from 0, normals' name in the zip or None, mask's) -> sample; MATLAB's axes come reversed.

    Boundary: (label, instance) differs from the right or the lower neighbour's, thinned (our choice).
    """
    frame, normals, mask = source
    with reading(root / RAW_MAT):
        arrays = open_h5(root / RAW_MAT)
        image, labels = arrays["images"][frame].T, arrays["labels"][frame].T.astype(int)
        depth, instances = as_depth(arrays["depths"][frame].T), arrays["instances"][frame].T
        if {a.shape[:2] for a in (image, labels, depth, instances)} != {(480, 640)} or labels.max() >= len(mapping):
            raise ValueError(f"frame {frame + 1} is not 480 x 640, or has a label over {len(mapping) - 1}")
    if normals:
        normal = load_label(zipfile.Path(open_zip(root / RAW_ZIP), normals), image, as_normals, channels=(3,))
    else:
        normal = normals_from_depth(depth)
    if mask:
        normal[load_label(zipfile.Path(open_zip(root / RAW_ZIP), mask), image, lambda raw: raw == 0)] = 0
    pair = (labels * 65536 + instances)[CROP]
    edge = np.zeros(pair.shape, bool)
    edge[:, :-1] |= pair[:, 1:] != pair[:, :-1]
    edge[:-1] |= pair[1:] != pair[:-1]
    return {"image": image[CROP], "semseg": mapping[labels][CROP], "depth": depth[CROP], "normal": normal[CROP],
            "boundary": thin(edge)}


def box_mean(a, count, radius):
    """Means over the (2 radius + 1)^2 windows of an (h, w) array, of which `count` pixels count."""
    k = 2 * radius + 1
    c = np.pad(a, ((radius + 1, radius), (radius + 1, radius))).cumsum(0).cumsum(1)
    return (c[k:, k:] - c[:-k, k:] - c[k:, :-k] + c[:-k, :-k]) / count


def normals_from_depth(depth, intrinsics=INTRINSICS, radius=5):
    """Metres (h, w), 0 missing -> float16 (h, w, 3) unit normals towards the camera; where too little is seen, 0.

    A plane seen by a pinhole camera is linear in inverse depth, 1/Z = a x + b y + c with x = (column - cx) / fx, and
    its normal is -(a, b, c): the least-squares fit to a window is a few box sums. A window across an edge of depth or
    a crease, off by over 0.2 % of the distance, gives way to one shifted by its radius, the pixel still in it, with
    under half the error (our choice).
    """
    fx, fy, cx, cy = intrinsics
    height, width = depth.shape
    seen = (depth > 0).astype(float)
    x, y = (np.arange(width) - cx) / fx * seen, (np.arange(height)[:, None] - cy) / fy * seen
    q = seen / np.where(depth > 0, depth, 1)
    mean = partial(box_mean, count=np.maximum(box_mean(seen, 1, radius).round(), 1), radius=radius)
    mx, my, mq = mean(x), mean(y), mean(q)
    xx, xy, yy = mean(x * x) - mx * mx, mean(x * y) - mx * my, mean(y * y) - my * my  # (co)variances in each window
    xq, yq, qq = mean(x * q) - mx * mq, mean(y * q) - my * mq, mean(q * q) - mq * mq
    solid = xx * yy - xy * xy > 1e-12  # at least two pixels wide
    area = np.where(solid, xx * yy - xy * xy, np.inf)
    a, b = (xq * yy - yq * xy) / area, (yq * xx - xq * xy) / area
    fit = np.pad(np.dstack([-a, -b, (a * mx + b * my - mq) * solid]), ((radius, radius), (radius, radius), (0, 0)))
    error = np.pad(np.where(solid, np.maximum(qq - a * xq - b * yq, 0), np.inf), radius, constant_values=np.inf)
    at = [np.s_[dy:dy + height, dx:dx + width] for dy in (0, radius, 2 * radius) for dx in (0, radius, 2 * radius)]
    best, normal = error[at[4]] / 4, fit[at[4]].copy()  # at[4]: not shifted; squares of errors
    for there in at:
        better = (error[there] < best) & (error[at[4]] > (0.002 * mq) ** 2)
        best[better], normal[better] = error[there][better], fit[there][better]
    return as_normals(normal * seen[..., None])


# ------------------------------------------------------------------------------------------------------- rendered rooms
def read_toy(seed, height, width):
    """Seed of a rendered room -> sample."""
    return {name: array for name, array in render_room(seed, height, width).items() if name in FORMAT}


def make_toy(out, train=480, val=120, height=96, width=128, seed=0):
    """Render the toy data set into the file `out`; a room's seed is [seed, split, index], so the splits never meet."""
    if min(train, val, height, width, seed + 1) < 1:
        raise PrepError("train, val, height and width must be 1 or more, seed 0 or more")
    splits = {split: {f"{split}_{i:04d}": [seed, number, i] for i in range(count)}
              for number, (split, count) in enumerate((("train", train), ("val", val)))}
    write_h5(out, "toy", splits, partial(read_toy, height=height, width=width), (height, width), TOY_CLASSES)


# ----------------------------------------------------------------------------------------------------------- the writer
def prepare(item, read, size):
    """In a worker: (id, source) -> (h, w), {array: padded to `size`}, {task: how often each value 0..255 occurs}.

    In depth and normals 255 counts the missing pixels and 0 the valid ones.
    """
    sample, padded, counts = read(item[1]), {}, {}
    height, width = sample["image"].shape[:2]
    if height > size[0] or width > size[1]:
        raise PrepError(f"image {item[0]} is {height} x {width}, larger than the file's {size[0]} x {size[1]}")
    for name, array in sample.items():
        dtype, tail, ignored, _ = FORMAT[name]
        padded[name] = np.full((*size, *tail), ignored, dtype)
        padded[name][:height, :width] = array
        if name != "image":
            values = array if ignored else np.where(array.reshape(height, width, -1).any(2), 0, 255)
            counts[name] = np.bincount(values.ravel(), minlength=256)
    return (height, width), padded, counts


def in_order(pool, function, items, ahead):
    """map(function, items) in the pool, in order, with at most `ahead` results waiting, so that memory stays flat."""
    waiting = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def write_split(group, results, ids, sink):
    """The samples of one split, as prepare() gives them, into the HDF5 `group` of the file `sink`, with progress.

    -> {task: (sum of the counts (256,), which samples have the label at all (N,))}
    """
    group.create_dataset("id", data=ids, dtype=h5py.string_dtype())
    group.create_dataset("size", (len(ids), 2), "int32")
    totals, start, spoken, live = {}, time.time(), time.time(), sys.stdout.isatty()
    for i, (extent, sample, counts) in enumerate(results):
        group["size"][i] = extent
        for name, array in sample.items():
            if i == 0:
                how = "lzf" if (group.file.attrs["dataset"], name) == ("pascal", "normal") else FORMAT[name][3]
                chunks = (1, *array.shape) if how else None
                group.create_dataset(name, (len(ids), *array.shape), array.dtype, chunks=chunks, compression=how)
            group[name][i] = array
        for task, values in counts.items():
            total, labelled = totals.setdefault(task, (np.zeros(256, int), np.zeros(len(ids), bool)))
            total += values
            labelled[i] = values[:255].any()
        sink.check()
        if i + 1 == len(ids) or time.time() > spoken + (0.5 if live else 20):
            spoken = time.time()
            rate = (i + 1) / max(spoken - start, 1e-9)
            print(f"{group.name[1:]} {i + 1}/{len(ids)}, {rate:.1f}/s, {(len(ids) - i - 1) / rate:.0f} s left    ",
                  end="\r" if live and i + 1 < len(ids) else "\n", flush=True)
    return totals


def summarise(split, totals, classes):
    """Print images with the label, share of valid pixels, and classes present, of every task of a split."""
    for task, (total, labelled) in totals.items():
        names = classes.get(task, [])
        absent = [name for name, count in zip(names, total) if not count]
        print(f"{split:5} {task:8}{labelled.sum():6} images, {100 * total[:255].sum() / total.sum():5.1f} % valid"
              + f", {len(names) - len(absent)} of {len(names)} classes" * bool(names)
              + f", not {', '.join(absent)}" * bool(absent))


def draw(task, array):
    """One array of the file -> uint8 (h, w, 3) picture: classes in fixed colours, depth bright where near."""
    if task == "image":
        return array
    if task == "normal":
        return np.where(array.any(2, keepdims=True), 127.5 * array.astype(np.float32) + 127.5, 48).astype(np.uint8)
    if task == "depth":
        grey = 255 - 215 * array / max(array.max(), 1e-9)
        return np.dstack([np.where(array > 0, grey, lack) for lack in (48, 0, 0)]).astype(np.uint8)
    colours = np.random.default_rng(3).integers(64, 256, (256, 3))
    colours[255] = 48
    colours[0] = 208  # most often the background
    return colours[array].astype(np.uint8)


def preview(file, totals, wide=240):
    """Four samples of the HDF5 `file`, two a split, if possible with every label -> picture, `wide` pixels a column."""
    tasks, tiles = ["image", *totals["train"]], []
    for split in totals:
        full = np.all([labelled for _, labelled in totals[split].values()], axis=0)
        usable = np.flatnonzero(full if full.any() else ~full)
        for i in sorted({usable[0], usable[len(usable) // 2]}):
            tiles.append((split, i, file[split]["id"].asstr()[i]))
    high = wide * file["train/image"].shape[1] // file["train/image"].shape[2]
    sheet = Image.new("RGB", ((wide + 4) * len(tasks), (high + 22) * len(tiles)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for row, (split, i, name) in enumerate(tiles):
        for column, task in enumerate(tasks):
            corner = column * (wide + 4), row * (high + 22)
            pen.text((corner[0] + 2, corner[1] + 1), f"{split}, {name}" if task == "image" else task, "black", font)
            tile = Image.fromarray(draw(task, file[split][task][i]))
            sheet.paste(tile.resize((wide, high), Image.Resampling.BOX), (corner[0], corner[1] + 20))
    return sheet


class Sink(io.FileIO):
    """A file for HDF5, which crashes where a write fails (disk full) or is interrupted: only `failure` tells of it."""
    failure = None

    def write(self, data):
        data = memoryview(data)
        try:
            while data:
                data = data[super().write(data):]
        except OSError as error:
            self.failure = error

    def truncate(self, size):
        try:
            super().truncate(size)
        except OSError as error:
            self.failure = error

    def stop(self, *_):
        """Signal handler."""
        self.failure = KeyboardInterrupt()

    def check(self):
        """Raise the failure, where it is safe to."""
        if self.failure:
            raise self.failure


def follow_parent():
    """A worker leaves Ctrl-C, which reaches the whole process group, to its parent, and ends when the parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def write_h5(out, dataset, splits, read, size, semseg):
    """read(source) for each of {split: {id: source}}, in worker processes, into the file `out` and its preview.

    size: (H, W) to pad to; semseg: its class names. Both files take their places when they are whole, not before.
    """
    out = Path(out).resolve()
    if out.exists() and not out.is_file():
        raise PrepError(f"{out} is there and is not a file")
    part, picture = (out.with_name(f".{out.name}.{os.getpid()}.{kind}") for kind in ("part", "png"))
    start, jobs, context = time.time(), min(os.cpu_count(), 8), "fork" if sys.platform == "linux" else None
    classes = {"semseg": semseg, "parsing": list(PARTS), "saliency": ["background", "salient"],
               "boundary": ["background", "boundary"]}
    out.parent.mkdir(parents=True, exist_ok=True)
    sink = Sink(part, "w+")
    handlers = {number: signal.signal(number, sink.stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with (ProcessPoolExecutor(jobs, multiprocessing.get_context(context), follow_parent) as pool,
              sink, h5py.File(sink, "w") as file):
            file.attrs.update(dataset=dataset, format=1)
            totals = {}
            for split, sources in splits.items():
                results = in_order(pool, partial(prepare, read=read, size=size), sources.items(), 2 * jobs)
                totals[split] = write_split(file.create_group(split), results, list(sources), sink)
            for task in totals["train"].keys() & classes:
                file.attrs.create(f"{task}_classes", classes[task], dtype=h5py.string_dtype())
            preview(file, totals).save(picture)
        for split in splits:
            summarise(split, totals[split], classes)
        sink.check()
        os.replace(part, out)
        os.replace(picture, f"{out}.preview.png")
        print(f"{out} and {out.name}.preview.png: {time.time() - start:.0f} s")
    except BrokenProcessPool as error:
        raise PrepError("a worker process was killed: is the memory full?") from error
    finally:
        for leftover in (part, picture):
            leftover.unlink(missing_ok=True)
        for number, handler in handlers.items():
            signal.signal(number, handler)


# --------------------------------------------------------------------------------------------------------- command line
def convert(dataset, raw, out):
    """nyud or pascal, found in `raw` or in a package's folder in it, -> the file `out`."""
    names, lists, _ = PACKAGES[dataset]
    size = (425, 560) if dataset == "nyud" else (512, 512)
    for root in (raw, *(raw / name for name in names)):
        if (root / lists).is_dir():
            read = read_nyud if dataset == "nyud" else read_pascal
            return write_h5(out, dataset, open_package(root, dataset), read, size, SEMSEG[dataset])
        if dataset == "nyud" and (root / RAW_MAT).exists():
            splits, mapping = open_raw(root)
            return write_h5(out, dataset, splits, partial(read_raw, root=root, mapping=mapping), size, SEMSEG[dataset])
    raise PrepError(f"{raw}: {'no layout known here' if raw.exists() else 'no such folder'}; get {LINKS[dataset]}")


def main(argv=None):
    """The command line -> exit status: 0, or 2 after one line on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"data_prep.py: {message}; see python data_prep.py --help\n")
    parser.add_argument("dataset", choices=("toy", "nyud", "pascal"))
    parser.add_argument("--raw", type=Path, default=Path("data/raw"), metavar="DIR", help="default %(default)s")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default data/<dataset>.h5")
    for name, default in {"train": 480, "val": 120, "height": 96, "width": 128, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"toy only (default {default})")
    args = parser.parse_args(argv)
    out = args.out or Path("data") / f"{args.dataset}.h5"
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if args.dataset == "toy":
            make_toy(out, args.train, args.val, args.height, args.width, args.seed)
        else:
            convert(args.dataset, args.raw, out)
        return 0
    except (PrepError, OSError, KeyboardInterrupt) as error:
        what = f"cannot write {out}: {error}" if isinstance(error, OSError) else str(error) or "interrupted"
        print(f"data_prep.py: {what}; {out} is as it was before", file=sys.stderr)
        return 2
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
