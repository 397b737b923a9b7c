# SPDX-License-Identifier: MIT
"""Raw data sets to one HDF5 file each, in the format that mtcd.py trains on.

    python data_prep.py toy    [--out FILE] [--train N] [--val N] [--height H] [--width W] [--seed S]
    python data_prep.py nyud   [--raw DIR] [--out FILE]
    python data_prep.py pascal [--raw DIR] [--out FILE]
    python data_prep.py check FILE                         # which images of a data file are damaged

toy renders rooms and needs no download. For the others, DIR (default data/raw) is a package's folder
or the folder around it; what lies there is recognised:
    nyud, packaged  NYUD_MT/ or NYUDv2/: gt_sets/{train,val}.txt; images segmentation depth normals
                    edge, a file per id, in any of the extensions in circulation. The papers' figures
                    are on this one.
    nyud, raw       nyu_depth_v2_labeled.mat, splits.mat, classMapping40.mat and, if you have it,
                    nyu_normals_gt.zip. Boundaries and normals are made here, so figures do not
                    compare with the papers'.
    pascal          PASCAL_MT/ or PASCALContext/: ImageSets/Context/{train,val}.txt; JPEGImages,
                    semseg/VOC12, semseg/pascal-context, pascal-context/trainval, human_parts,
                    normals_distill, sal_distill.
FILE (default data/<data set>.h5) is replaced only by a whole one; look at FILE.preview.png before you
train. Normals made here (toy, raw) are in camera axes, x right, y down, z forward, and point at the
camera: a floor has y about -1. Normals that come with a package or in the zip keep their axes.

A data file has the root attributes `dataset`, `format` (2) and <task>_classes, and two groups, train
and val, of arrays with a row per image: FORMAT below, `id`, `size` (height and width before padding)
and, new in format 2, `crc32`: the CRC-32 of all the image's other arrays. Training does not look at
it; `check` does, and exits with 0 if every image is as it was written, else with 2.
"""
import argparse
import io
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
import zipfile
import zlib
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath

import h5py
import numpy as np
from PIL import Image

from extras.odsf import thin
from extras.pictures import colourise, panel
from extras.rooms import CLASSES as ROOM_CLASSES
from extras.rooms import render_room

# ------------------------------------------------------------------------------------------- tables
TOY = {"train": 480, "val": 120, "height": 96, "width": 128, "seed": 0}  # rooms, pixels: defaults


def listed(text):
    return text.replace("\n", " ").split(", ")


SEMSEG = {  # class names, spelt as the data spells them
    "toy": list(ROOM_CLASSES),
    "nyud": listed("""wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture,
counter, blinds, desk, shelves, curtain, dresser, pillow, mirror, floor mat, clothes, ceiling, books,
refridgerator, television, paper, towel, shower curtain, box, whiteboard, person, night stand, toilet,
sink, lamp, bathtub, bag, otherstructure, otherfurniture, otherprop"""),
    "pascal": listed("""background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow,
diningtable, dog, horse, motorbike, person, pottedplant, sheep, sofa, train, tvmonitor""")}
PARTS = {  # the 7 classes of parsing and the PASCAL-Parts names that each gathers
    "background": "", "head": "hair head lear lebrow leye mouth nose rear rebrow reye",
    "torso": "neck torso", "upper arm": "luarm ruarm", "lower arm": "lhand llarm rhand rlarm",
    "upper leg": "luleg ruleg", "lower leg": "lfoot llleg rfoot rlleg"}
PART_GROUP = {name: i for i, names in enumerate(PARTS.values()) for name in names.split()}
PERSON = 15  # class_ind in human_parts
# The 170 of the 459 LabelMap classes on which the distilled normals hold (the code bases' list).
NORMAL_CLASSES = np.array("""3 4 6 9 10 11 13 15 17 18 22 23 29 30 33 34 36 37 38 39 41 43 46 49 50 51
53 55 56 59 61 62 65 66 68 69 72 73 78 83 84 85 87 88 95 96 101 104 105 107 111 113 115 122 124 135
141 142 143 146 150 154 157 158 159 165 172 174 181 183 184 191 193 195 197 199 202 213 215 216 219
220 223 225 228 230 232 233 238 239 242 243 246 250 251 252 255 260 261 263 269 272 273 275 281 283
284 285 286 287 288 290 291 292 293 295 304 307 309 310 314 315 319 323 329 330 331 336 342 345 349
350 351 352 355 357 368 370 371 374 379 380 383 384 397 401 403 405 407 408 411 412 413 414 417 419
421 423 427 429 430 432 440 441 442 443 444 446 454 457""".split(), int)
CLASS_LIKE = "uint8", (), 255, 1
FORMAT = {  # array: dtype, trailing shape, ignored value (also the padding), level of gzip or None
    "image": ("uint8", (3,), 0, None), "semseg": CLASS_LIKE, "parsing": CLASS_LIKE,
    "saliency": CLASS_LIKE, "boundary": CLASS_LIKE, "depth": ("float32", (), 0, None),
    "normal": ("float16", (3,), 0, None)}
# Measured at 425 x 560, MB per sample and ms to read it: class ids gzip 0.01, 0.4 (lzf 0.02, 0.65;
# plain 0.24, 0.05); image, depth and normal plain 3.1, 0.7 (lzf 2.7, 8.7). Only PASCAL's normals,
# mostly 0, get lzf: 0.5, 3.4 (plain 1.6, 0.4).
PACKAGES = {  # arrays: folders and extensions to look for, the first found counts
    "nyud": {"roots": ("NYUD_MT", "NYUDv2"), "lists": "gt_sets", "size": (425, 560), "arrays": {
        "image": ("images", ".png .jpg"), "semseg": ("segmentation", ".png .mat"),
        "depth": ("depth", ".npy .mat"), "normal": ("normals", ".npy .png .jpg"),
        "boundary": ("edge", ".npy .png")}},
    "pascal": {"roots": ("PASCAL_MT", "PASCALContext"), "lists": "ImageSets/Context",
               "size": (512, 512), "arrays": {
        "image": ("JPEGImages", ".jpg"), "semseg": ("semseg/VOC12 semseg/pascal-context", ".png"),
        "context": ("pascal-context/trainval", ".mat"), "parsing": ("human_parts", ".mat"),
        "normal": ("normals_distill", ".png"), "saliency": ("sal_distill", ".png")}}}
RAW_MAT, RAW_ZIP = "nyu_depth_v2_labeled.mat", "nyu_normals_gt.zip"
ETH, NYU = "https://data.vision.ee.ethz.ch", "http://horatio.cs.nyu.edu/mit/silberman"
LINKS = {  # links rot, so several
    "nyud": f"{ETH}/brdavid/atrc/NYUDv2.tar.gz (unpacks to NYUDv2/), "
            f"{ETH}/kmaninis/share/MTL/NYUD_MT.tgz (NYUD_MT/), "
            "Google Drive id 14EAEMXmd3zs2hIMY63UhHPSFPDAkiTzw (NYUD_MT/); "
            f"raw: {NYU}/nyu_depth_v2/{RAW_MAT}, {NYU}/indoor_seg_sup/splits.mat, "
            "classMapping40.mat of https://github.com/ankurhanda/nyuv2-meta-data, "
            f"https://inf.ethz.ch/personal/ladickyl/{RAW_ZIP}",
    "pascal": f"{ETH}/kmaninis/share/MTL/PASCAL_MT.tgz (unpacks to PASCAL_MT/)"}
INTRINSICS = 518.8579, 519.4696, 325.5824, 253.7362  # fx fy cx cy of the Kinect's 480 x 640 frames
CROP = np.s_[45:470, 40:600]  # the packages' 425 x 560 of a frame, inside the toolbox's crop


class PrepError(Exception):
    """Bad input or output; its text is the one line that the user reads."""


# ------------------------------------------------------------------------------------ reading files
@contextmanager
def reading(path):
    """The open file. Whatever goes wrong with it becomes a PrepError that names it: broken files fail
    in many ways, and some only warn."""
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if file.read(64).lstrip().startswith(b"<"):
                raise ValueError("a web page, not data: the link that it came from is dead")
            file.seek(0)
            yield file
    except Exception as error:
        raise PrepError(f"{path}: {str(error) or type(error).__name__}") from error


def decode(file, path, key=None, **options):
    """The array in a picture (palette indices stay indices), a .npy, or variable `key` of a MATLAB v5
    .mat."""
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
        if raw.shape[2:] == (1,):
            raw = raw[..., 0]
        if raw.shape != image.shape[:2] + channels:
            raise ValueError(f"its shape is {raw.shape}, its image's {image.shape}")
        return rule(raw)


def as_classes(raw, count, first=0):
    """Ids first .. first + count - 1 -> uint8 from 0; 255, and 0 where `first` is 1, -> 255 (the
    protocol's ignored value)."""
    whole = raw == np.round(raw)
    known = (raw >= 0) & (raw < first + count) | (raw == 255)
    wrong = raw[~(whole & known)]
    if wrong.size:
        raise ValueError(f"label {wrong[0]} is out of range, {first} to {first + count - 1}")
    return np.where((raw == 255) | (raw < first), 255, raw.astype(int) - first).astype(np.uint8)


def as_binary(raw, picture=True):
    """x/255 > 0.5 in a picture; an array holds 0, 1 and perhaps 255, ignored."""
    if picture and raw.dtype != bool:
        return (raw > 127).astype(np.uint8)
    return as_classes(raw, 2)


def as_depth(raw):
    """Metres -> float32; zero, negative and not finite are missing, 0. Over 100 m it is an error."""
    depth = np.where(np.isfinite(raw) & (raw > 0), raw, 0)
    if depth.max(initial=0) > 100:
        raise ValueError(f"a depth of {depth.max():.3g} m: does it hold metres?")
    return depth.astype(np.float32)


def as_normals(raw):
    """Vectors (h, w, 3), in 8 bits 2x/255 - 1 -> float16 of length 1, or 0 where they are missing.

    Missing is a length of 0. In 8 bits it is grey, 127 or 128, which JPEG blurs: a length under 0.5
    (our choice; at quality 75 to 95 it finds them all and hardly takes a good one).
    """
    vectors, shortest = raw.astype(np.float32), 1e-6
    if raw.dtype == np.uint8:
        vectors, shortest = vectors * (2 / 255) - 1, 0.5
    length = np.sqrt((vectors ** 2).sum(-1, keepdims=True))
    valid = np.isfinite(length) & (length > shortest)
    return np.where(valid, vectors / np.where(valid, length, 1), 0).astype(np.float16)


# ----------------------------------------------------------------------------------------- packages
def read_ids(path):
    """A split's list, an id per line -> ids."""
    with reading(path) as file:
        ids = file.read().decode("utf-8-sig").split()
        if not ids:
            raise ValueError("lists no image")
        name, times = Counter(ids).most_common(1)[0]
        if times > 1:
            raise ValueError(f"lists {name} twice")
    return ids


def open_package(root, dataset):
    """-> {split: {id: {array: path}}}; every file is looked for before the first is read."""
    arrays = PACKAGES[dataset]["arrays"]
    folders = [root / name for names, _ in arrays.values() for name in names.split()]
    present = {path for folder in folders if folder.is_dir() for path in folder.iterdir()}
    splits, missing = {}, []
    for split in ("train", "val"):
        splits[split] = {}
        for name in read_ids(root / PACKAGES[dataset]["lists"] / f"{split}.txt"):
            files = splits[split][name] = {}
            for array, (places, endings) in arrays.items():
                paths = (root / place / (name + ending)
                         for place in places.split() for ending in endings.split())
                files[array] = next((path for path in paths if path in present), None)
                if not files[array]:
                    missing.append(f"{places.split()[0]}/{name}{endings.replace(' ', '|')}")
    if missing:
        more = ", ..." if len(missing) > 3 else ""
        raise PrepError(f"{root}: {len(missing)} missing files: {', '.join(missing[:3])}{more}; "
                        f"get the package again: {LINKS[dataset]}")
    return splits


def read_nyud(files):
    """{array: path} of one id -> sample, {array: (h, w, ...)}."""
    image = load_image(files["image"])
    classes = partial(as_classes, count=40, first=1)
    edge = partial(as_binary, picture=files["boundary"].suffix != ".npy")
    return {"image": image,
            "semseg": load_label(files["semseg"], image, classes, "segmentation"),
            "depth": load_label(files["depth"], image, as_depth, "depth"),
            "normal": load_label(files["normal"], image, as_normals, channels=(3,)),
            "boundary": load_label(files["boundary"], image, edge)}


def read_pascal(files):
    """{array: path} of one id -> sample, {array: (h, w, ...)}."""
    image = load_image(files["image"])
    context = load_label(files["context"], image, lambda raw: raw.astype(int), "LabelMap")
    normal = load_label(files["normal"], image, as_normals, channels=(3,))
    normal[~np.isin(context, NORMAL_CLASSES)] = 0
    p = np.pad(context, 1, mode="reflect")
    laplacian = p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:] - 4 * context
    return {"image": image,
            "semseg": load_label(files["semseg"], image, partial(as_classes, count=21)),
            "parsing": human_parts(files["parsing"], image),
            "saliency": load_label(files["saliency"], image, as_binary),
            "normal": normal,
            "boundary": thin(laplacian != 0)}  # the code bases' rule


def human_parts(path, image):
    """human_parts/ID.mat -> uint8 (h, w) groups of PARTS, later ones over earlier ones; all 255 where
    no person has a part (the code bases' rule)."""
    groups = np.zeros(image.shape[:2], np.uint8)
    with reading(path) as file:
        objects = decode(file, path, "anno", simplify_cells=True)["objects"]
        people = [thing for thing in np.ravel(objects) if thing["class_ind"] == PERSON]
        for part in (part for person in people for part in np.ravel(person["parts"])):
            name, mask = part["part_name"], part["mask"]
            if name not in PART_GROUP or mask.shape != groups.shape:
                raise ValueError(f"part {name} {mask.shape}: unknown, or of another size")
            groups[mask > 0] = PART_GROUP[name]
    return groups if groups.any() else np.full_like(groups, 255)


# ---------------------------------------------------------------------------------------- NYUD, raw
def index_zip(path):
    """Ladicky's zip -> {frame from 0: name of its normals}, {frame from 0: name of its mask}.

    train/ and test/<n>.png are reported to count from 1, masks/<n>.png from 0: we take whichever has
    no 0 to count from 1.
    """
    normals, masks = {}, {}
    with reading(path) as file, zipfile.ZipFile(file) as archive:
        for name in map(PurePosixPath, archive.namelist()):
            if name.suffix == ".png" and name.stem.isdecimal():
                (masks if "masks" in name.parts else normals)[int(name.stem)] = str(name)
    first = [0 if 0 in names else 1 for names in (normals, masks)]
    return [{n - start: name for n, name in names.items()}
            for names, start in zip((normals, masks), first)]


def open_raw(root):
    """Official files in `root` -> {split: {id: (frame, name of its normals in the zip or None, of its
    mask or None)}}, class of each label (895,). Ids are frame numbers from 1."""
    with reading(root / "classMapping40.mat") as file:
        mapping = decode(file, root / "classMapping40.mat", "mapClass")
        mapping = as_classes(np.append(0, mapping), 40, first=1)
    with reading(root / RAW_MAT) as file, h5py.File(file.name) as arrays:
        count = min(len(arrays[name]) for name in ("images", "depths", "labels", "instances"))
    normals, masks = index_zip(root / RAW_ZIP) if (root / RAW_ZIP).exists() else ({}, {})
    print(f"normals: {root / RAW_ZIP if normals else 'fitted to depth'}")
    splits = {}
    for split, key in (("train", "trainNdxs"), ("val", "testNdxs")):
        with reading(root / "splits.mat") as file:
            frames = [int(n) - 1 for n in decode(file, root / "splits.mat", key).ravel()]
            lost = [n + 1 for n in frames
                    if not 0 <= n < count or normals and n not in normals]
            if lost or not frames:
                raise ValueError(f"{len(lost)} of its {len(frames)} {key} are not in {RAW_MAT} or "
                                 f"{RAW_ZIP}: {lost[:3]}")
        splits[split] = {f"{n + 1:04d}": (n, normals.get(n), masks.get(n)) for n in frames}
    return splits, mapping


open_h5, open_zip = lru_cache(1)(h5py.File), lru_cache(1)(zipfile.ZipFile)  # once per worker


def read_raw(source, root, mapping):
    """(frame from 0, name of its normals in the zip or None, of its mask or None) -> sample.

    Boundary: (label, instance) differs from the right or the lower neighbour's, thinned (our choice).
    """
    frame, normals, mask = source
    with reading(root / RAW_MAT):
        arrays = open_h5(root / RAW_MAT)
        image, labels, depth, instances = (  # .T: MATLAB's axes come reversed
            arrays[name][frame].T for name in ("images", "labels", "depths", "instances"))
        if {array.shape[:2] for array in (image, labels, depth, instances)} != {(480, 640)}:
            raise ValueError(f"frame {frame + 1} is not 480 x 640")
        if labels.min() < 0 or labels.max() >= len(mapping):
            raise ValueError(f"frame {frame + 1} has a label out of range, 0 to {len(mapping) - 1}")
        depth, pair = as_depth(depth), labels.astype(int) * 65536 + instances
    in_zip = partial(zipfile.Path, open_zip(root / RAW_ZIP)) if normals else None
    if normals:
        normal = load_label(in_zip(normals), image, as_normals, channels=(3,))
    else:
        normal = normals_from_depth(depth)
    if mask:
        normal[load_label(in_zip(mask), image, lambda raw: raw == 0)] = 0
    pair = pair[CROP]
    edge = np.zeros(pair.shape, bool)
    edge[:, :-1] |= pair[:, 1:] != pair[:, :-1]
    edge[:-1] |= pair[1:] != pair[:-1]
    return {"image": image[CROP], "semseg": mapping[labels][CROP], "depth": depth[CROP],
            "normal": normal[CROP], "boundary": thin(edge)}


def box_sum(a, radius):
    """Sums over the (2 radius + 1)^2 windows of an (h, w) array."""
    k = 2 * radius + 1
    c = np.pad(a, ((radius + 1, radius), (radius + 1, radius))).cumsum(0).cumsum(1)
    return c[k:, k:] - c[:-k, k:] - c[k:, :-k] + c[:-k, :-k]


def normals_from_depth(depth, intrinsics=INTRINSICS, radius=5):
    """Metres (h, w), 0 missing -> float16 (h, w, 3) unit normals towards the camera; where too little
    is seen, 0.

    A plane seen by a pinhole camera is linear in inverse depth, 1/Z = a x + b y + c with
    x = (column - cx) / fx, and its normal is -(a, b, c): the least-squares fit to a window is a few
    box sums. A window across an edge of depth or a crease, off by over 0.2 % of the distance, gives
    way to one shifted by its radius, the pixel still in it, with under half the error (our choice).
    """
    fx, fy, cx, cy = intrinsics
    height, width = depth.shape
    seen = (depth > 0).astype(float)
    x = (np.arange(width) - cx) / fx * seen
    y = (np.arange(height)[:, None] - cy) / fy * seen
    q = seen / np.where(depth > 0, depth, 1)  # inverse depth
    count = np.maximum(box_sum(seen, radius).round(), 1)

    def mean(values):
        return box_sum(values, radius) / count

    mx, my, mq = mean(x), mean(y), mean(q)
    xx, xy, yy = mean(x * x) - mx * mx, mean(x * y) - mx * my, mean(y * y) - my * my
    xq, yq, qq = mean(x * q) - mx * mq, mean(y * q) - my * mq, mean(q * q) - mq * mq
    area = xx * yy - xy * xy
    solid = area > 1e-12  # at least two pixels wide
    area = np.where(solid, area, np.inf)
    a, b = (xq * yy - yq * xy) / area, (yq * xx - xq * xy) / area
    fit = np.dstack([-a, -b, (a * mx + b * my - mq) * solid])
    error = np.where(solid, np.maximum(qq - a * xq - b * yq, 0), np.inf)  # mean square, 1/m^2

    normal = fit.copy()
    best = np.where(error > (0.002 * mq) ** 2, error / 4, 0)  # to be under; nothing is under 0
    around = np.pad(error, radius, constant_values=np.inf)
    fits_around = np.pad(fit, ((radius, radius), (radius, radius), (0, 0)))
    for dy in (0, radius, 2 * radius):
        for dx in (0, radius, 2 * radius):
            window = np.s_[dy:dy + height, dx:dx + width]
            better = around[window] < best
            best[better], normal[better] = around[window][better], fits_around[window][better]
    return as_normals(normal * seen[..., None])


# ------------------------------------------------------------------------------------- the toy rooms
def read_toy(seed, height, width):
    """Seed of a room -> sample, {array: (height, width, ...)}."""
    room = render_room(seed, height, width)
    return {name: array for name, array in room.items() if name in FORMAT}


def make_toy(out, **numbers):
    """Render the toy data set into the file `out`; numbers: those of TOY that are to differ.

    A room's seed is [seed, split, index], so the splits never meet.
    """
    numbers = {**TOY, **numbers}
    limits = {"train": (1, 10**6), "val": (1, 10**6), "height": (1, 4096), "width": (1, 4096),
              "seed": (0, 2**63)}
    for name, (low, high) in limits.items():
        if not low <= numbers[name] <= high:
            raise PrepError(f"{name} must be {low} to {high}, not {numbers[name]}")
    size = numbers["height"], numbers["width"]
    splits = {split: {f"{split}_{i:04d}": [numbers["seed"], k, i] for i in range(numbers[split])}
              for k, split in enumerate(("train", "val"))}
    write_h5(out, "toy", splits, partial(read_toy, height=size[0], width=size[1]), size)


# --------------------------------------------------------------------------------------- the writer
def checksum(arrays):
    """{name: one image's array} -> CRC-32 of them all, in the order of their names."""
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(arrays[name], crc)
    return crc


def prepare(item, read, size):
    """In a worker: (id, source) -> {array: padded to `size`}, {task: how often each value occurs}.

    In depth and normals 255 counts the missing pixels and 0 the valid ones.
    """
    name, source = item
    sample, padded, counts = read(source), {}, {}
    height, width = sample["image"].shape[:2]
    if height > size[0] or width > size[1]:
        raise PrepError(f"image {name} is {height} x {width}, larger than the file's "
                        f"{size[0]} x {size[1]}")
    for task, array in sample.items():
        dtype, tail, ignored, _ = FORMAT[task]
        padded[task] = np.full((*size, *tail), ignored, dtype)
        padded[task][:height, :width] = array
        values = padded[task][:height, :width]
        if not ignored:
            values = np.where(values.reshape(height, width, -1).any(2), 0, 255)
        if task != "image":
            counts[task] = np.bincount(values.ravel(), minlength=256)
    padded["size"] = np.array([height, width], np.int32)
    padded["crc32"] = np.uint32(checksum({"id": name.encode(), **padded}))
    return padded, counts


def in_order(pool, function, items, ahead):
    """map(function, items) in the pool, in order, with at most `ahead` results waiting, so that memory
    stays flat."""
    waiting = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def progress(items, count, what):
    """The items; on the way prints how many of `count` are done, how fast, and the time left."""
    start = spoken = time.monotonic()
    live = sys.stdout.isatty()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if done == count or now > spoken + (0.5 if live else 20):
            spoken, rate = now, done / max(now - start, 1e-9)
            print(f"{what} {done}/{count}, {rate:.1f}/s, {(count - done) / rate:.0f} s left    ",
                  end="\r" if live and done < count else "\n", flush=True)


def write_split(group, results, ids, sink):
    """The samples of one split, as prepare() gives them, into the HDF5 `group` of the file `sink`.

    -> {task: (sum of the counts (256,), which images have the label at all (N,))}
    """
    group.create_dataset("id", data=ids, dtype=h5py.string_dtype())
    totals = {}
    for i, (sample, counts) in enumerate(progress(results, len(ids), group.name[1:])):
        for name, array in sample.items():
            if i == 0:
                how = FORMAT[name][3] if name in FORMAT else None
                if name == "normal" and group.file.attrs["dataset"] == "pascal":
                    how = "lzf"
                group.create_dataset(name, (len(ids), *array.shape), array.dtype, compression=how,
                                     chunks=(1, *array.shape) if how else None)
            group[name][i] = array
        for task, values in counts.items():
            total, labelled = totals.setdefault(
                task, (np.zeros(256, int), np.zeros(len(ids), bool)))
            total += values
            labelled[i] = values[:255].any()
        sink.check()
    return totals


def summarise(split, totals, classes):
    """Print images with the label, share of valid pixels, and classes present, per task."""
    for task, (total, labelled) in totals.items():
        names = classes.get(task, [])
        absent = [name for name, count in zip(names, total) if not count]
        line = (f"{split:5} {task:8}{labelled.sum():6} images, "
                f"{100 * total[:255].sum() / total.sum():5.1f} % valid")
        if names:
            line += f", {len(names) - len(absent)} of {len(names)} classes"
        if absent:
            line += f", not {', '.join(absent)}"
        print(line)


def preview(file, totals, classes):
    """Two images per split of the HDF5 `file`, if possible with every label -> PIL picture."""
    rows, captions = [], []
    for split, tasks in totals.items():
        full = np.all([labelled for _, labelled in tasks.values()], axis=0)
        usable = np.flatnonzero(full if full.any() else ~full)
        for i in sorted({usable[0], usable[len(usable) // 2]}):
            group = file[split]
            rows.append([colourise(task, group[task][i]) for task in ("image", *tasks)])
            captions.append([f"{split}, {group['id'].asstr()[i]}", *tasks])
    return panel(rows, captions, classes)


class Sink(io.FileIO):
    """A file for HDF5, which crashes where a write fails (disk full) or is interrupted: only `failure`
    tells of it."""
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
    """A worker leaves Ctrl-C, which reaches the whole process group, to its parent, and ends when the
    parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def write_h5(out, dataset, splits, read, size):
    """read(source) for each of {split: {id: source}}, in worker processes, padded to size (H, W), into
    the file `out` and its preview. Both take their places when they are whole, not before."""
    out = Path(out).resolve()
    if out.exists() and not out.is_file():
        raise PrepError(f"{out} is there and is not a file")
    part, picture = (out.with_name(f".{out.name}.{os.getpid()}.{kind}") for kind in ("part", "png"))
    start, jobs = time.monotonic(), min(os.cpu_count(), 8)
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    out.parent.mkdir(parents=True, exist_ok=True)
    sink = Sink(part, "w+")
    handlers = {number: signal.signal(number, sink.stop)
                for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with (ProcessPoolExecutor(jobs, context, follow_parent) as pool, sink,
              h5py.File(sink, "w") as file):
            totals = {}
            file.attrs.update(dataset=dataset, format=2)
            for split, sources in splits.items():
                job = partial(prepare, read=read, size=size)
                results = in_order(pool, job, sources.items(), 2 * jobs)
                totals[split] = write_split(file.create_group(split), results, list(sources), sink)
            classes = {"semseg": SEMSEG[dataset], "parsing": list(PARTS),
                       "saliency": ["background", "salient"], "boundary": ["background", "boundary"]}
            classes = {task: classes[task] for task in totals["train"] if task in classes}
            for task, names in classes.items():
                file.attrs.create(f"{task}_classes", names, dtype=h5py.string_dtype())
            preview(file, totals, classes).save(picture)
        for split in splits:
            summarise(split, totals[split], classes)
        sink.check()
        os.replace(part, out)
        os.replace(picture, f"{out}.preview.png")
        print(f"{out} and {out.name}.preview.png: {time.monotonic() - start:.0f} s")
    except (BrokenProcessPool, MemoryError) as error:
        raise PrepError("a worker process was killed: is the memory full?") from error
    finally:
        for leftover in (part, picture):
            leftover.unlink(missing_ok=True)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def is_whole(group, i):
    """Whether image `i` of the HDF5 `group` reads, and is what was written."""
    try:
        arrays = {name: array[i] for name, array in group.items()}
        return arrays.pop("crc32") == checksum(arrays)
    except Exception:  # damage shows in many ways
        return False


def check(path):
    """Read a data file through and print which images are damaged; PrepError if there is one."""
    damaged, count = [], 0
    with reading(path) as opened, h5py.File(opened.name) as file:
        for split in ("train", "val"):
            group = file[split]
            if "crc32" not in group:
                raise ValueError("it carries no checksums (format 1, or not made by data_prep.py)")
            ids = group["id"].asstr()[:]
            if {len(array) for array in group.values()} != {len(ids)}:
                raise ValueError(f"the arrays of {split} differ in length")
            damaged += [f"{split} {name}" for i, name in enumerate(progress(ids, len(ids), split))
                        if not is_whole(group, i)]
            count += len(ids)
    for name in damaged:
        print(f"damaged: {name}")
    if damaged:
        raise PrepError(f"{path}: {len(damaged)} of {count} images are damaged, the first is "
                        f"{damaged[0]}; convert again")
    print(f"{path}: all {count} images are whole")


# ------------------------------------------------------------------------------------- command line
def convert(dataset, raw, out):
    """nyud or pascal, found in `raw` or in a package's folder in it, -> the file `out`."""
    package = PACKAGES[dataset]
    for root in (raw, *(raw / name for name in package["roots"])):
        if (root / package["lists"]).is_dir():
            splits, read = open_package(root, dataset), read_nyud if dataset == "nyud" else read_pascal
        elif dataset == "nyud" and (root / RAW_MAT).exists():
            splits, mapping = open_raw(root)
            read = partial(read_raw, root=root, mapping=mapping)
        else:
            continue
        return write_h5(out, dataset, splits, read, package["size"])
    what = "no layout known here" if raw.exists() else "no such folder"
    raise PrepError(f"{raw}: {what}; get {LINKS[dataset]}")


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"data_prep.py: {message}; see python data_prep.py --help\n")


def parse_arguments(argv):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = parser.add_subparsers(dest="job", required=True)
    for name in ("toy", "nyud", "pascal"):
        job = jobs.add_parser(name)
        job.add_argument("--raw", type=Path, default=Path("data/raw"), metavar="DIR",
                         help="where the downloads lie; toy needs none (default %(default)s)")
        job.add_argument("--out", type=Path, default=Path(f"data/{name}.h5"), metavar="FILE",
                         help="default %(default)s")
    for name, default in TOY.items():
        jobs.choices["toy"].add_argument(f"--{name}", type=int, default=default, metavar="N",
                                         help="default %(default)s")
    jobs.add_parser("check").add_argument("file", type=Path)
    return parser.parse_args(argv)


def main(argv=None):
    """The command line -> exit status: 0, or 2 after one line on stderr."""
    args = parse_arguments(argv)
    sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may not be in its encoding
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if args.job == "check":
            check(args.file)
        elif args.job == "toy":
            make_toy(args.out, **{name: getattr(args, name) for name in TOY})
        else:
            convert(args.job, args.raw, args.out)
        return 0
    except (PrepError, OSError, KeyboardInterrupt) as error:
        what = str(error) or "interrupted"
        if args.job != "check":
            what = f"cannot write {args.out}: {what}" if isinstance(error, OSError) else what
            what += f"; {args.out} is as it was before"
        print(f"data_prep.py: {' '.join(what.split())}", file=sys.stderr)
        return 2
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
