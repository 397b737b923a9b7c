# SPDX-License-Identifier: MIT
"""Raw data sets to one HDF5 file each, in the format that mtcd.py trains on.

    python data_prep.py toy [--out FILE] [--train N] [--val N] [--height H] [--width W] [--seed S]
    python data_prep.py nyud|pascal [--raw DIR] [--out FILE]
    python data_prep.py check FILE    # reads a data file through: is every image as it was written?

toy renders rooms. For the others DIR (default data/raw) is a package's folder or the one around it:
    nyud, packaged  NYUD_MT/ or NYUDv2/: gt_sets/{train,val}.txt; images segmentation depth normals
                    edge, in any of the extensions in circulation. The papers' figures are on it.
    nyud, raw       nyu_depth_v2_labeled.mat, splits.mat, classMapping40.mat and, if you have it,
                    nyu_normals_gt.zip. Boundaries and normals are made here: other figures.
    pascal          PASCAL_MT/ or PASCALContext/: ImageSets/Context/{train,val}.txt; JPEGImages,
                    semseg/{VOC12,pascal-context}, pascal-context/trainval, human_parts,
                    normals_distill, sal_distill.
FILE (default data/<data set>.h5) is replaced only by a whole one; see FILE.preview.png before you
train. Normals made here (toy, raw) are in camera axes, x right, y down, z forward, towards the
camera: a floor has y about -1. Normals of a package or of the zip keep their axes.
Files of format 2 hold a checksum per image, `crc32` (N,) in each split; only `check` looks at it.
"""
import argparse
import os
import signal
import sys
import time
import warnings
import zipfile
from collections import Counter
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath

import h5py
import numpy as np
from PIL import Image
from scipy.io import loadmat

from extras import rooms
from extras.datafile import Sink, checksum, in_order, is_whole, progress, start_workers
from extras.normals import normals_from_depth
from extras.odsf import thin
from extras.pictures import preview

# ------------------------------------------------------------------------------------------- tables
TOY = {"train": 500, "val": 120, "height": 112, "width": 144, "seed": 0}  # defaults: rooms, pixels
SEMSEG = {  # class names, spelt as the data spells them
    "toy": ", ".join(rooms.CLASSES),
    "nyud":
        "wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter, "
        "blinds, desk, shelves, curtain, dresser, pillow, mirror, floor mat, clothes, ceiling, "
        "books, refridgerator, television, paper, towel, shower curtain, box, whiteboard, person, "
        "night stand, toilet, sink, lamp, bathtub, bag, otherstructure, otherfurniture, otherprop",
    "pascal":
        "background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, "
        "diningtable, dog, horse, motorbike, person, pottedplant, sheep, sofa, train, tvmonitor"}
PARTS = {  # the 7 classes of parsing and the PASCAL-Parts names that each gathers
    "background": "", "head": "hair head lear lebrow leye mouth nose rear rebrow reye",
    "torso": "neck torso", "upper arm": "luarm ruarm", "lower arm": "lhand llarm rhand rlarm",
    "upper leg": "luleg ruleg", "lower leg": "lfoot llleg rfoot rlleg"}
PART_GROUP = {name: i for i, names in enumerate(PARTS.values()) for name in names.split()}
# The 170 of the 459 LabelMap classes on which the distilled normals hold (the code bases' list).
NORMAL_CLASSES = np.fromstring("""
3 4 6 9 10 11 13 15 17 18 22 23 29 30 33 34 36 37 38 39 41 43 46 49 50 51 53 55 56 59 61 62 65 66
68 69 72 73 78 83 84 85 87 88 95 96 101 104 105 107 111 113 115 122 124 135 141 142 143 146 150 154
157 158 159 165 172 174 181 183 184 191 193 195 197 199 202 213 215 216 219 220 223 225 228 230 232
233 238 239 242 243 246 250 251 252 255 260 261 263 269 272 273 275 281 283 284 285 286 287 288 290
291 292 293 295 304 307 309 310 314 315 319 323 329 330 331 336 342 345 349 350 351 352 355 357 368
370 371 374 379 380 383 384 397 401 403 405 407 408 411 412 413 414 417 419 421 423 427 429 430 432
440 441 442 443 444 446 454 457""", int, sep=" ")
IDS = "uint8", (), 255, "gzip"
FORMAT = {  # array of the file: dtype, trailing shape, ignored value and padding, compression
    "image": ("uint8", (3,), 0, None), "semseg": IDS, "parsing": IDS, "saliency": IDS,
    "boundary": IDS, "depth": ("float32", (), 0, None), "normal": ("float16", (3,), 0, None)}
# Measured at 425 x 560, MB per sample and ms to read it: ids gzip 0.01, 0.4 (lzf 0.02, 0.65; plain
# 0.24, 0.05); image, depth and normal plain 3.1, 0.7 (lzf 2.7, 8.7). Only PASCAL's normals, mostly
# 0, get lzf: 0.5, 3.4 (plain 1.6, 0.4).
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
CROP = np.s_[45:470, 40:600]  # of a frame: the packages' 425 x 560, inside the toolbox's crop


class PrepError(Exception):
    """Bad input or output; its text is the one line that the user reads."""


# ------------------------------------------------------------------------------------ reading files
@contextmanager
def reading(path):
    """The open file; whatever goes wrong with it becomes a PrepError that names it, as broken files
    fail in many ways."""
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if file.read(64).lstrip().startswith(b"<"):
                raise ValueError("a web page, not data: the link that it came from is dead")
            file.seek(0)
            yield file
    except Exception as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise PrepError(f"{path}: {what}") from error


def decode(file, path, key=None, **options):
    """The array in a picture (palette indices stay indices), a .npy, or MATLAB v5's `key`."""
    if path.name.endswith(".npy"):
        return np.load(file)
    if not path.name.endswith(".mat"):
        with Image.open(file) as picture:
            return np.asarray(picture)
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
    """Ids first .. first + count - 1 -> uint8 from 0; 255, and 0 where `first` is 1, -> 255."""
    known = (raw == np.round(raw)) & (raw >= 0) & (raw < first + count) | (raw == 255)
    if not known.all():
        raise ValueError(f"label {raw[~known][0]} is not in {first} to {first + count - 1}")
    return np.where((raw == 255) | (raw < first), 255, raw.astype(int) - first).astype(np.uint8)


def as_binary(raw, picture=True):
    """x/255 > 0.5 in a picture; an array holds 0, 1 and perhaps 255, ignored."""
    return (raw > 127).astype(np.uint8) if picture and raw.dtype != bool else as_classes(raw, 2)


def as_depth(raw):
    """Metres -> float32; zero, negative and not finite are missing, 0."""
    depth = np.where(np.isfinite(raw) & (raw > 0), raw, 0)
    if depth.max(initial=0) > 100:
        raise ValueError(f"a depth of {depth.max():.3g}: not in metres?")
    return depth.astype(np.float32)


def as_normals(raw):
    """Vectors (h, w, 3), in 8 bits 2x/255 - 1 -> float16 of length 1, or 0 where they are missing.

    Missing are those of length 0. In 8 bits that is grey, 127 or 128, which JPEG blurs: a length
    under 0.5 (our choice: at quality 75 to 95 up to 2 % of the missing pass, where holes end, and
    under 1 % of the others go).
    """
    vectors, shortest = raw.astype(np.float32), 1e-6
    if raw.dtype == np.uint8:
        vectors, shortest = vectors * (2 / 255) - 1, 0.5
    length = np.sqrt((vectors ** 2).sum(-1, keepdims=True))
    valid = np.isfinite(length) & (length > shortest)
    return np.where(valid, vectors / np.where(valid, length, 1), 0).astype(np.float16)


# ----------------------------------------------------------------------------------------- packages
def read_ids(path):
    """A split's list, an id per line."""
    with reading(path) as file:
        ids = file.read().decode("utf-8-sig").split()
        twice = sorted(name for name, times in Counter(ids).items() if times > 1)
        if twice or not ids:
            raise ValueError(f"lists {twice[0]} twice" if twice else "lists no image")
    return ids


def open_package(root, dataset):
    """-> {split: {id: {array: path}}}; every file is looked for before the first is read."""
    lists, arrays = PACKAGES[dataset]["lists"], PACKAGES[dataset]["arrays"]
    folders = [root / place for places, _ in arrays.values() for place in places.split()]
    present = {path for folder in folders if folder.is_dir() for path in folder.iterdir()}
    ids = {split: read_ids(root / lists / f"{split}.txt") for split in ("train", "val")}
    splits, missing = {split: {name: {} for name in names} for split, names in ids.items()}, []
    for name, files in (item for samples in splits.values() for item in samples.items()):
        for array, (places, endings) in arrays.items():
            paths = [root / place / (name + ending)
                     for place in places.split() for ending in endings.split()]
            files[array] = next((path for path in paths if path in present), None)
            if not files[array]:
                missing.append(f"{places.split()[0]}/{name}{endings.replace(' ', '|')}")
    if missing:
        some = ", ".join(missing[:3] + ["..."] * (len(missing) > 3))
        raise PrepError(f"{root}: {len(missing)} missing files: {some}; get the package again: "
                        f"{LINKS[dataset]}")
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
    """{array: path} of one id -> sample, {array: (h, w, ...)}; the rules are the code bases'."""
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
            "boundary": thin(laplacian != 0)}


def human_parts(path, image):
    """human_parts/ID.mat -> uint8 (h, w) groups of PARTS, later over earlier; none: all 255."""
    groups = np.zeros(image.shape[:2], np.uint8)
    with reading(path) as file:
        objects = np.ravel(decode(file, path, "anno", simplify_cells=True)["objects"])
        people = [thing for thing in objects if thing["class_ind"] == 15]
        for part in (part for person in people for part in np.ravel(person["parts"])):
            name, mask = part["part_name"], part["mask"]
            if name not in PART_GROUP or mask.shape != groups.shape:
                raise ValueError(f"part {name} {mask.shape}: unknown, or of another size")
            groups[mask > 0] = PART_GROUP[name]
    return groups if groups.any() else np.full_like(groups, 255)


# ---------------------------------------------------------------------------------------- NYUD, raw
def index_zip(path):
    """The zip of normals -> {frame from 0: name of its normals}, {frame from 0: name of its mask}.
    train/ and test/<n>.png are said to count from 1, masks/<n>.png from 0: we look for a 0."""
    normals, masks = {}, {}
    with reading(path) as file, zipfile.ZipFile(file) as archive:
        for name in map(PurePosixPath, archive.namelist()):
            if name.suffix == ".png" and name.stem.isdecimal():
                (masks if "masks" in name.parts else normals)[int(name.stem)] = str(name)
    return [names if 0 in names else {n - 1: name for n, name in names.items()}
            for names in (normals, masks)]


def open_raw(root):
    """Official files -> {split: {id: (frame from 0, name of its normals in the zip or None, of its
    mask or None)}}, the class of every label (895,). Ids are frame numbers from 1."""
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
            there = set(range(count)) & (normals.keys() or set(range(count)))
            lost = [n + 1 for n in frames if n not in there]
            if lost or not frames:
                raise ValueError(f"{len(lost)} of its {len(frames)} {key} are not in {RAW_MAT} or "
                                 f"{RAW_ZIP}: {lost[:3]}")
        splits[split] = {f"{n + 1:04d}": (n, normals.get(n), masks.get(n)) for n in frames}
    return splits, mapping


open_h5, open_zip = lru_cache(1)(h5py.File), lru_cache(1)(zipfile.ZipFile)  # once per worker


def read_raw(source, root, mapping):
    """A frame of open_raw() -> sample. Boundary: where (label, instance) differs from the right or
    the lower neighbour's, thinned (our choice)."""
    frame, normals, mask = source
    with reading(root / RAW_MAT):
        arrays = open_h5(root / RAW_MAT)
        image, depth, labels, instances = (  # .T: MATLAB's axes come reversed
            arrays[name][frame].T for name in ("images", "depths", "labels", "instances"))
        depth, labels = as_depth(depth), labels.astype(int)
        if {array.shape[:2] for array in (image, depth, labels, instances)} != {(480, 640)}:
            raise ValueError(f"frame {frame + 1} is not 480 x 640")
        if labels.min() < 0 or labels.max() >= len(mapping):
            raise ValueError(f"frame {frame + 1} has a label over {len(mapping) - 1} or under 0")
    normal = as_normals(normals_from_depth(depth, INTRINSICS)) if not normals else load_label(
        zipfile.Path(open_zip(root / RAW_ZIP), normals), image, as_normals, channels=(3,))
    if mask:
        path = zipfile.Path(open_zip(root / RAW_ZIP), mask)
        normal[load_label(path, image, lambda raw: raw == 0)] = 0
    thing = (labels * 65536 + instances)[CROP]
    edge = np.zeros(thing.shape, bool)
    edge[:, :-1] |= thing[:, 1:] != thing[:, :-1]
    edge[:-1] |= thing[1:] != thing[:-1]
    return {"image": image[CROP], "semseg": mapping[labels][CROP], "depth": depth[CROP],
            "normal": normal[CROP], "boundary": thin(edge)}


# ----------------------------------------------------------------------------------- rendered rooms
def make_toy(out, **changes):
    """Render the toy data set into the file `out`; changes: numbers that are to differ from TOY's.
    The seed of a room is [seed, split, index], so the splits never meet."""
    toy = TOY | changes
    if min(toy["train"], toy["val"], toy["height"], toy["width"], toy["seed"] + 1) < 1:
        raise PrepError("train, val, height and width must be 1 or more, seed 0 or more")
    if max(toy["height"], toy["width"]) > 4096:
        raise PrepError("height and width must be 4096 or less")
    splits = {split: {f"{split}_{i:04d}": [toy["seed"], number, i] for i in range(toy[split])}
              for number, split in enumerate(("train", "val"))}
    read = partial(rooms.render_room, height=toy["height"], width=toy["width"])
    write_h5(out, "toy", splits, read, (toy["height"], toy["width"]))


# --------------------------------------------------------------------------------------- the writer
def prepare(item, read, size):
    """In a worker: (id, source) -> {array: padded to `size`}, {task: how often each value occurs}.

    In depth and normals 255 counts the missing pixels and 0 the valid ones.
    """
    sample = {name: array for name, array in read(item[1]).items() if name in FORMAT}
    height, width = sample["image"].shape[:2]
    if height > size[0] or width > size[1]:
        raise PrepError(f"image {item[0]} is {height} x {width}, larger than {size[0]} x {size[1]}")
    padded, counts = {"size": np.array([height, width], np.int32)}, {}
    for name, array in sample.items():
        dtype, tail, ignored, _ = FORMAT[name]
        padded[name] = np.full((*size, *tail), ignored, dtype)
        padded[name][:height, :width] = array
        if name != "image":
            values = array if ignored else np.where(array.reshape(height, width, -1).any(2), 0, 255)
            counts[name] = np.bincount(values.ravel(), minlength=256)
    padded["crc32"] = np.uint32(checksum(padded | {"id": item[0].encode()}))
    return padded, counts


def write_split(group, results, ids, sink):
    """The samples of one split, as prepare() gives them, into the HDF5 `group` of the file `sink`.

    -> {task: how often each value occurs in each image (N, 256)}
    """
    group.create_dataset("id", data=ids, dtype=h5py.string_dtype())
    counts = {}
    for i, (sample, values) in enumerate(progress(results, len(ids), group.name[1:])):
        for name, array in sample.items():
            if i == 0:
                how = FORMAT[name][3] if name in FORMAT else None
                if (group.file.attrs["dataset"], name) == ("pascal", "normal"):
                    how = "lzf"
                group.create_dataset(name, (len(ids), *array.shape), array.dtype, compression=how,
                                     chunks=(1, *array.shape) if how else None)
            group[name][i] = array
        for task in values:
            counts.setdefault(task, np.zeros((len(ids), 256), np.int32))[i] = values[task]
        sink.check()
    return counts


def summarise(split, counts, classes):
    """Print images with the label, share of valid pixels, and classes present, per task."""
    for task, per_image in counts.items():
        total, names = per_image.sum(0), classes.get(task, [])
        absent = [name for name, pixels in zip(names, total) if not pixels]
        print(f"{split:5} {task:8}{per_image[:, :255].any(1).sum():6} images, "
              f"{100 * total[:255].sum() / total.sum():5.1f} % valid"
              + f", {len(names) - len(absent)} of {len(names)} classes" * bool(names)
              + f", not {', '.join(absent)}" * bool(absent))


def examples(file, counts):
    """Two images per split of the HDF5 `file`, if possible with every label, for the preview."""
    for split, tasks in counts.items():
        full = np.all([per_image[:, :255].any(1) for per_image in tasks.values()], axis=0)
        usable = np.flatnonzero(full if full.any() else ~full)
        for i in sorted({usable[0], usable[len(usable) // 2]}):
            group = file[split]
            labels = {task: group[task][i] for task in tasks}
            yield f"{split}, {group['id'].asstr()[i]}", group["image"][i], labels, None


def write_h5(out, dataset, splits, read, size):
    """read(source) for each of {split: {id: source}}, in worker processes, padded to size (H, W),
    into the file `out` and its preview. Both take their places when they are whole, not before."""
    out = Path(out).resolve()
    if out.exists() and not out.is_file():
        raise PrepError(f"{out} is there and is not a file")
    part, picture = (out.with_name(f".{out.name}.{os.getpid()}.{kind}") for kind in ("part", "png"))
    start, jobs, counts = time.monotonic(), min(os.cpu_count(), 8), {}
    names = {"semseg": SEMSEG[dataset].split(", "), "parsing": list(PARTS),
             "saliency": ["background", "salient"], "boundary": ["background", "boundary"]}
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (Sink(part) as sink, start_workers(jobs) as pool, h5py.File(sink, "w") as file):
            file.attrs.update(dataset=dataset, format=2)
            for split, sources in splits.items():
                job = partial(prepare, read=read, size=size)
                results = in_order(pool, job, sources.items(), 2 * jobs)
                counts[split] = write_split(file.create_group(split), results, list(sources), sink)
            classes = {task: names[task] for task in counts["train"] if task in names}
            for task in classes:
                file.attrs.create(f"{task}_classes", names[task], dtype=h5py.string_dtype())
            preview(examples(file, counts), classes).save(picture)
        for split in splits:
            summarise(split, counts[split], classes)
        sink.check()
        os.replace(picture, f"{out}.preview.png")
        os.replace(part, out)  # the last that can fail
        print(f"{out} and {out.name}.preview.png: {time.monotonic() - start:.0f} s")
    except (BrokenProcessPool, MemoryError) as error:
        raise PrepError("a worker process was killed: is the memory full?") from error
    finally:
        for leftover in (part, picture):
            leftover.unlink(missing_ok=True)


def check(path):
    """Read the data file through and print which images are damaged; PrepError if there is one."""
    count, damaged = 0, []
    with reading(path) as opened, h5py.File(opened.name) as file:
        for split in ("train", "val"):
            if "crc32" not in file[split]:
                raise ValueError("it carries no checksums: of format 1, or not of data_prep.py")
            ids = file[split]["id"].asstr()[:]
            if {len(array) for array in file[split].values()} != {len(ids)}:
                raise ValueError(f"the arrays of {split} differ in length")
            damaged += [f"{split} {name}" for i, name in enumerate(progress(ids, len(ids), split))
                        if not is_whole(file[split], i)]
            count += len(ids)
    print("\n".join(f"damaged: {name}" for name in damaged) or f"{path}: {count} images, all whole")
    if damaged:
        raise PrepError(f"{path}: {len(damaged)} of {count} images are damaged; convert again")


# ------------------------------------------------------------------------------------- command line
def convert(dataset, raw, out):
    """nyud or pascal, found in `raw` or in a package's folder in it, -> the file `out`."""
    package = PACKAGES[dataset]
    for root in (raw, *(raw / name for name in package["roots"])):
        if (root / package["lists"]).is_dir():
            read = read_nyud if dataset == "nyud" else read_pascal
            return write_h5(out, dataset, open_package(root, dataset), read, package["size"])
        if dataset == "nyud" and (root / RAW_MAT).exists():
            splits, mapping = open_raw(root)
            read = partial(read_raw, root=root, mapping=mapping)
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
        add = jobs.add_parser(name).add_argument
        add("--raw", type=Path, default="data/raw", metavar="DIR", help="(toy: none)")
        add("--out", type=Path, default=f"data/{name}.h5", metavar="FILE", help="(%(default)s)")
    for name, default in TOY.items():
        jobs.choices["toy"].add_argument(f"--{name}", type=int, default=default, metavar="N")
    jobs.add_parser("check").add_argument("file", type=Path)
    return parser.parse_args(argv)


def main(argv=None):
    """The command line -> exit status: 0, or 2 after one line on stderr."""
    args = parse_arguments(argv)
    getattr(sys.stdout, "reconfigure", dict)(errors="backslashreplace")  # a file's name may not be in its encoding
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
        print(f"data_prep.py: {what}", file=sys.stderr)
        return 2
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
