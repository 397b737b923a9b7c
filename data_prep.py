# SPDX-License-Identifier: MIT
"""Raw data sets to one HDF5 file each, in the format that mtcd.py trains on.

    python data_prep.py nyud --download          fetch a package into data/raw, convert it
    python data_prep.py nyud --raw DIR           convert a package or raw files that lie in DIR
    python data_prep.py nyud --shrink 4          a quarter of each side, for CPUs and classrooms
    python data_prep.py toy                      rendered rooms
    python data_prep.py check FILE               is every image of a data file as it was written?

What is known of each data set:
    nyud, packaged  NYUD_MT/ or NYUDv2/: gt_sets/{train,val}.txt; images segmentation depth normals
                    edge, in any of the extensions in circulation. The papers' figures are on it.
    nyud, raw       nyu_depth_v2_labeled.mat, splits.mat, classMapping40.mat and, if you have it,
                    nyu_normals_gt.zip. Boundaries and normals are made here: other figures.
    pascal          PASCAL_MT/ or PASCALContext/: ImageSets/Context/{train,val}.txt; JPEGImages,
                    semseg/{VOC12,pascal-context}, pascal-context/trainval, human_parts,
                    normals_distill, sal_distill.

The file (default data/DATASET.h5) is replaced only by a whole one. Read the summary and look at
FILE.preview.png before you train. Normals made here (toy, raw) are in camera axes, x right, y down,
z forward, towards the camera: a floor has y about -1. Those of a package or of the zip keep their
axes. Files of format 2 hold a checksum per image, `crc32` (N,) in each split, for `check`.
"""

import argparse
import os
import random
import signal
import sys
import time
import zipfile
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from extras import rooms
from extras.datafile import (
    Sink,
    checksum,
    in_order,
    is_whole,
    progress,
    start_workers,
    summarise,
    value_counts,
)
from extras.download import Source, fetch_package
from extras.normals import normals_from_depth
from extras.odsf import thin
from extras.pictures import preview
from extras.rawfiles import (
    Picture,
    PrepError,
    as_binary,
    as_classes,
    as_depth,
    as_normals,
    as_unit,
    binary_form,
    decode,
    index_normals,
    load_label,
    load_picture,
    print_unused,
    read_ids,
    reading,
)
from extras.shrink import print_tolerance, shrink_sample


# ------------------------------------------------------------------------------------------- tables
@dataclass(frozen=True)
class Rooms:
    """The toy data set: how many rooms, and their size in pixels."""

    train: int = 130  # few, so that they are seen often: 123 times by default
    val: int = 120
    height: int = 64
    width: int = 96
    seed: int = 0


TOY = Rooms()


@dataclass(frozen=True)
class Filed:
    """An array of the data file."""

    dtype: str
    tail: tuple = ()  # its shape is (N, H, W, *tail)
    ignored: int = 0  # the value where there is no ground truth, and of the padding
    compression: str | None = None


# Measured at 425 x 560, MB per sample and ms to read it: classes gzip 0.01, 0.4 (lzf 0.02, 0.65;
# plain 0.24, 0.05); image, depth and normal plain 3.1, 0.7 (lzf 2.7, 8.7).
CLASSES = Filed("uint8", ignored=255, compression="gzip")
FORMAT = {
    "image": Filed("uint8", (3,)),
    "semseg": CLASSES,
    "parsing": CLASSES,
    "saliency": CLASSES,
    "boundary": CLASSES,
    "depth": Filed("float32"),
    "normal": Filed("float16", (3,)),
}
SPARSE_NORMALS = replace(FORMAT["normal"], compression="lzf")  # PASCAL's: 0.5, 3.4 (plain 1.6, 0.4)

# fmt: off
NYUD_CLASSES = (  # spelt as the data spells them
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf",
    "picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror",
    "floor mat", "clothes", "ceiling", "books", "refridgerator", "television", "paper", "towel",
    "shower curtain", "box", "whiteboard", "person", "night stand", "toilet", "sink", "lamp",
    "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop",
)
PASCAL_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)
# fmt: on
PARTS = {  # the 7 classes of parsing, and the names of PASCAL-Parts that each gathers
    "background": (),
    "head": ("hair", "head", "lear", "lebrow", "leye", "mouth", "nose", "rear", "rebrow", "reye"),
    "torso": ("neck", "torso"),
    "upper arm": ("luarm", "ruarm"),
    "lower arm": ("lhand", "llarm", "rhand", "rlarm"),
    "upper leg": ("luleg", "ruleg"),
    "lower leg": ("lfoot", "llleg", "rfoot", "rlleg"),
}
PART_GROUP = {name: group for group, names in enumerate(PARTS.values()) for name in names}
PERSON = 15  # class_ind of the objects whose parts count

OTHER_NAMES = {
    "parsing": tuple(PARTS),
    "saliency": ("background", "salient"),
    "boundary": ("background", "boundary"),
}
CLASS_NAMES = {
    "toy": {"semseg": rooms.CLASSES, **OTHER_NAMES},
    "nyud": {"semseg": NYUD_CLASSES, **OTHER_NAMES},
    "pascal": {"semseg": PASCAL_CLASSES, **OTHER_NAMES},
}
# The names for semseg as one text per data set, for scripts that import it.
SEMSEG = {name: ", ".join(tasks["semseg"]) for name, tasks in CLASS_NAMES.items()}

# fmt: off
# The 170 of the 459 LabelMap classes on which the distilled normals hold (the code bases' list).
NORMAL_CLASSES = np.array([
    3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49, 50,
    51, 53, 55, 56, 59, 61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101, 104,
    105, 107, 111, 113, 115, 122, 124, 135, 141, 142, 143, 146, 150, 154, 157, 158, 159, 165, 172,
    174, 181, 183, 184, 191, 193, 195, 197, 199, 202, 213, 215, 216, 219, 220, 223, 225, 228, 230,
    232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255, 260, 261, 263, 269, 272, 273, 275, 281,
    283, 284, 285, 286, 287, 288, 290, 291, 292, 293, 295, 304, 307, 309, 310, 314, 315, 319, 323,
    329, 330, 331, 336, 342, 345, 349, 350, 351, 352, 355, 357, 368, 370, 371, 374, 379, 380, 383,
    384, 397, 401, 403, 405, 407, 408, 411, 412, 413, 414, 417, 419, 421, 423, 427, 429, 430, 432,
    440, 441, 442, 443, 444, 446, 454, 457,
])
# fmt: on
CONTEXT_CLASSES = 459


@dataclass(frozen=True)
class Files:
    """Where a package keeps the files of one array; the first that is there counts."""

    folders: tuple
    endings: tuple


@dataclass(frozen=True)
class Package:
    """A data set as the field passes it round."""

    roots: tuple  # names of its folder
    lists: str  # the folder in it with train.txt and val.txt
    size: tuple  # (H, W) of the data file, to which smaller images are padded
    files: dict
    sources: tuple  # links rot, so several


ETH = "https://data.vision.ee.ethz.ch"
DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="
PACKAGES = {
    "nyud": Package(
        roots=("NYUD_MT", "NYUDv2"),
        lists="gt_sets",
        size=(425, 560),
        files={
            "image": Files(("images",), (".png", ".jpg")),
            "semseg": Files(("segmentation",), (".png", ".mat")),
            "depth": Files(("depth",), (".npy", ".mat")),
            "normal": Files(("normals",), (".npy", ".png", ".jpg")),
            "boundary": Files(("edge",), (".npy", ".png")),
        },
        sources=(
            Source(f"{ETH}/brdavid/atrc/NYUDv2.tar.gz", "NYUDv2"),
            Source(f"{ETH}/kmaninis/share/MTL/NYUD_MT.tgz", "NYUD_MT"),
            Source(f"{DRIVE}14EAEMXmd3zs2hIMY63UhHPSFPDAkiTzw", "NYUD_MT", "NYUD_MT.drive"),
        ),
    ),
    "pascal": Package(
        roots=("PASCAL_MT", "PASCALContext"),
        lists="ImageSets/Context",
        size=(512, 512),
        files={
            "image": Files(("JPEGImages",), (".jpg",)),
            "semseg": Files(("semseg/VOC12", "semseg/pascal-context"), (".png",)),
            "context": Files(("pascal-context/trainval",), (".mat",)),
            "parsing": Files(("human_parts",), (".mat",)),
            "normal": Files(("normals_distill",), (".png",)),
            "saliency": Files(("sal_distill",), (".png",)),
        },
        sources=(Source(f"{ETH}/kmaninis/share/MTL/PASCAL_MT.tgz", "PASCAL_MT"),),
    ),
}

RAW_MAT = "nyu_depth_v2_labeled.mat"
RAW_ZIP = "nyu_normals_gt.zip"
RAW_SPLITS = "splits.mat"
RAW_MAPPING = "classMapping40.mat"
RAW_FILES = (RAW_MAT, RAW_ZIP, RAW_SPLITS, RAW_MAPPING)
NYU = "http://horatio.cs.nyu.edu/mit/silberman"
RAW_LINKS = (
    f"{NYU}/nyu_depth_v2/{RAW_MAT}",
    f"{NYU}/indoor_seg_sup/{RAW_SPLITS}",
    f"{RAW_MAPPING} of https://github.com/ankurhanda/nyuv2-meta-data",
    f"https://inf.ethz.ch/personal/ladickyl/{RAW_ZIP}",
)
FRAME = (480, 640)  # of the Kinect
INTRINSICS = (518.8579, 519.4696, 325.5824, 253.7362)  # fx, fy, cx, cy of such a frame
CROP = np.s_[45:470, 40:600]  # of a frame: the packages' 425 x 560, inside the toolbox's crop

SMALLEST = 32  # pixels on a side that training makes sense on: the encoder's coarsest stride


# ----------------------------------------------------------------------------------------- packages
def open_package(root, dataset):
    """-> {split: {id: {array: path}}}; every file is looked for before the first is read."""
    package = PACKAGES[dataset]
    present = set()
    for files in package.files.values():
        for folder in files.folders:
            if (root / folder).is_dir():
                present.update((root / folder).iterdir())

    splits = {}
    missing = []
    for split in ("train", "val"):
        splits[split] = {}
        for name in read_ids(root / package.lists / f"{split}.txt"):
            splits[split][name] = {}
            for array, files in package.files.items():
                path = find_file(root, name, files, present)
                splits[split][name][array] = path
                if path is None:
                    endings = "|".join(files.endings)
                    missing.append(f"{files.folders[0]}/{name}{endings}")

    if missing:
        some = ", ".join(missing[:3])
        raise PrepError(
            f"{root}: {len(missing)} missing files, such as {some}: move the folder away and "
            f"get it again: python data_prep.py {dataset} --download"
        )
    refuse_shared(splits, root / package.lists)
    remark_unused(root, package, splits, present)
    return splits


def find_file(root, name, files, present):
    """The first of the files that an array of an image may lie in; None if none is there."""
    for folder in files.folders:
        for ending in files.endings:
            path = root / folder / (name + ending)
            if path in present:
                return path
    return None


def refuse_shared(splits, where):
    """An image to train and to evaluate on makes every figure too good."""
    shared = sorted(splits["train"].keys() & splits["val"].keys())
    if shared:
        raise PrepError(
            f"{where}: {len(shared)} images are in train and in val, such as {shared[0]}: "
            "take them out of one of the two"
        )


def remark_unused(root, package, splits, present):
    """Print what lies in a package and is not read."""
    used = set()
    for samples in splits.values():
        for paths in samples.values():
            used.update(paths.values())

    known = {Path(package.lists).parts[0]}
    for files in package.files.values():
        for folder in files.folders:
            known.add(Path(folder).parts[0])

    print_unused(root, known, present - used)


def crop_frame(array):
    """A whole frame of the Kinect, as some packages hold it -> the protocol's 425 x 560 of it."""
    if array.shape[:2] == FRAME:
        return array[CROP]
    return array


def nyud_reader(splits):
    """-> read(files of one id) for the package that these splits are of."""
    return partial(read_nyud, edge_form=binary_form(some_paths(splits, "boundary")))


def some_paths(splits, array):
    """The files of an array, of both splits, mixed: the first few say as much as any few can."""
    paths = [files[array] for samples in splits.values() for files in samples.values()]
    random.Random(0).shuffle(paths)
    return paths


def read_nyud(files, edge_form):
    """{array: path} of one id -> sample, {array: (h, w, ...)}, and what was seen in the files."""
    image = load_picture(files["image"], adjust=crop_frame)
    load = partial(load_label, image=image, adjust=crop_frame)
    seen = set()

    def classes(raw):
        for value in (40, 255):
            if value in raw:
                seen.add(f"{value} in semseg")
        return as_classes(raw, 40, first=1)

    edge = partial(as_binary, form=edge_form)
    sample = {
        "image": image.pixels,
        "semseg": load(files["semseg"], rule=classes, variable="segmentation"),
        "depth": load(files["depth"], rule=as_depth, variable="depth"),
        "normal": load(files["normal"], rule=as_normals, channels=(3,)),
        "boundary": load(files["boundary"], rule=edge),
    }
    return sample, seen


def pascal_reader(splits):
    """-> read(files of one id) for the package that these splits are of."""
    return partial(read_pascal, saliency_form=binary_form(some_paths(splits, "saliency")))


def read_pascal(files, saliency_form):
    """{array: path} of one id -> sample, {array: (h, w, ...)}; the rules are the code bases'."""
    image = load_picture(files["image"])
    load = partial(load_label, image=image)
    context = load(files["context"], rule=as_context, variable="LabelMap")
    normal = load(files["normal"], rule=as_normals, channels=(3,))
    normal[~np.isin(context, NORMAL_CLASSES)] = 0

    saliency = partial(as_binary, form=saliency_form)
    sample = {
        "image": image.pixels,
        "semseg": load(files["semseg"], rule=partial(as_classes, count=21)),
        "parsing": human_parts(files["parsing"], image.pixels.shape[:2]),
        "saliency": load(files["saliency"], rule=saliency),
        "normal": normal,
        "boundary": thin(laplacian(context) != 0),
    }
    return sample, set()


def as_context(raw):
    """PASCAL-Context's LabelMap -> int classes 0 to 459."""
    classes = raw.astype(int)
    if classes.min() < 0 or classes.max() > CONTEXT_CLASSES:
        raise ValueError(f"a class under 0 or over {CONTEXT_CLASSES}")
    return classes


def laplacian(values):
    """The 4-neighbours' sum less four times the pixel; the border is reflected (protocol)."""
    padded = np.pad(values, 1, mode="reflect")
    above = padded[:-2, 1:-1]
    below = padded[2:, 1:-1]
    left = padded[1:-1, :-2]
    right = padded[1:-1, 2:]
    return above + below + left + right - 4 * values


def human_parts(path, size):
    """human_parts/ID.mat -> uint8 (h, w) groups of PARTS, later over earlier; none: all 255."""
    groups = np.zeros(size, np.uint8)
    with reading(path) as file:
        annotation = decode(file, path, "anno", simplify_cells=True)
        for thing in np.ravel(annotation["objects"]):
            if thing["class_ind"] != PERSON:
                continue
            for part in np.ravel(thing["parts"]):
                name = part["part_name"]
                mask = part["mask"]
                if name not in PART_GROUP or mask.shape != groups.shape:
                    raise ValueError(f"part {name} {mask.shape}: unknown, or of another size")
                groups[mask > 0] = PART_GROUP[name]
    if not groups.any():
        groups[:] = 255
    return groups


# --------------------------------------------------------------------------------------- NYUD, raw
class Frame(NamedTuple):
    """A frame of the .mat, and its normals' and its mask's names in the zip; None: not there."""

    index: int  # from 0
    normals: str | None
    mask: str | None


def open_raw(root):
    """Official files -> {split: {id: Frame}}, the class of every label (895,).

    Ids are frame numbers from 1.
    """
    with reading(root / RAW_MAPPING) as file:
        mapping = decode(file, root / RAW_MAPPING, "mapClass")
        mapping = as_classes(np.append(0, mapping), 40, first=1)
    with reading(root / RAW_MAT) as file, h5py.File(file.name) as arrays:
        lengths = [len(arrays[name]) for name in ("images", "depths", "labels", "instances")]

    print_unused(root, RAW_FILES)
    there = set(range(min(lengths)))
    normals = {}
    masks = {}
    if (root / RAW_ZIP).exists():
        normals, masks = index_normals(root / RAW_ZIP)
        there &= normals.keys()
        print(f"normals: {root / RAW_ZIP}, {len(masks)} masks")
    else:
        print(f"normals: fitted to depth, as there is no {root / RAW_ZIP}")

    splits = {}
    for split, key in (("train", "trainNdxs"), ("val", "testNdxs")):
        with reading(root / RAW_SPLITS) as file:
            numbers = decode(file, root / RAW_SPLITS, key).ravel().astype(int).tolist()
            lost = [number for number in numbers if number - 1 not in there]
            if lost or not numbers:
                raise ValueError(
                    f"{len(lost)} of its {len(numbers)} {key} are not in {RAW_MAT} or {RAW_ZIP}: "
                    f"{lost[:3]}"
                )
        splits[split] = {}
        for number in numbers:
            index = number - 1
            splits[split][f"{number:04d}"] = Frame(index, normals.get(index), masks.get(index))
    refuse_shared(splits, root / RAW_SPLITS)
    return splits, mapping


@lru_cache(1)
def open_mat(path):
    """Once per worker."""
    return h5py.File(path)


@lru_cache(1)
def open_zip(path):
    return zipfile.ZipFile(path)


def read_raw(frame, root, mapping):
    """A Frame of open_raw() -> sample, {array: (h, w, ...)}."""
    with reading(root / RAW_MAT):
        arrays = open_mat(root / RAW_MAT)
        raw = {}
        for name in ("images", "depths", "labels", "instances"):
            raw[name] = arrays[name][frame.index].T  # MATLAB's axes come reversed
            if raw[name].shape[:2] != FRAME:
                raise ValueError(f"{name} of frame {frame.index + 1} is not 480 x 640")
        depth = as_depth(raw["depths"])
        labels = raw["labels"].astype(int)
        if labels.min() < 0 or labels.max() >= len(mapping):
            raise ValueError(
                f"frame {frame.index + 1} has a label over {len(mapping) - 1} or under 0"
            )

    image = Picture(root / RAW_MAT, raw["images"])
    if frame.normals:
        path = zipfile.Path(open_zip(root / RAW_ZIP), frame.normals)
        normal = load_label(path, image, as_normals, channels=(3,))
    else:
        normal = as_unit(normals_from_depth(depth, INTRINSICS), shortest=1e-6)
    if frame.mask:
        path = zipfile.Path(open_zip(root / RAW_ZIP), frame.mask)
        normal[load_label(path, image, np.logical_not)] = 0

    sample = {
        "image": image.pixels[CROP],
        "semseg": mapping[labels][CROP],
        "depth": depth[CROP],
        "normal": normal[CROP],
        "boundary": instance_boundaries(labels[CROP], raw["instances"][CROP]),
    }
    return sample, set()


def instance_boundaries(labels, instances):
    """Where (label, instance) is not the right or the lower neighbour's, thinned (our choice)."""
    thing = labels * 65536 + instances
    edge = np.zeros(thing.shape, bool)
    edge[:, :-1] |= thing[:, 1:] != thing[:, :-1]
    edge[:-1] |= thing[1:] != thing[:-1]
    return thin(edge)


# ----------------------------------------------------------------------------------- rendered rooms
def make_toy(out, **changes):
    """Render the toy data set into the file `out`; changes: fields of TOY that are to differ.

    The seed of a room is [seed, split, index], so the splits never meet.
    """
    toy = replace(TOY, **changes)
    if min(toy.train, toy.val, toy.height, toy.width) < 1 or toy.seed < 0:
        raise PrepError("train, val, height and width must be 1 or more, seed 0 or more")
    if max(toy.height, toy.width) > 4096:
        raise PrepError("height and width must be 4096 or less")

    splits = {}
    for number, (split, count) in enumerate((("train", toy.train), ("val", toy.val))):
        splits[split] = {}
        for index in range(count):
            splits[split][f"{split}_{index:04d}"] = [toy.seed, number, index]

    read = partial(read_room, height=toy.height, width=toy.width)
    write_h5(out, splits, Work("toy", read, (toy.height, toy.width)))


def read_room(seed, height, width):
    return rooms.render_room(seed, height, width), set()


# --------------------------------------------------------------------------------------- the writer
@dataclass(frozen=True)
class Work:
    """How samples are made; every worker has it."""

    dataset: str
    read: Callable  # of a source -> sample, what was seen in its files
    size: tuple  # (H, W) to which images are padded, but for `shrink`
    shrink: int = 1  # K x K pixels become one


class Prepared(NamedTuple):
    """A sample as a worker hands it back."""

    arrays: dict  # padded, by their names in the file
    counts: dict  # task -> how often each value occurs (256,), see value_counts()
    seen: set  # what its reader found


def prepare(item, work):
    """In a worker: (id, source) -> Prepared."""
    name, source = item
    sample, seen = work.read(source)
    sample = {array: values for array, values in sample.items() if array in FORMAT}
    height, width = sample["image"].shape[:2]
    if height > work.size[0] or width > work.size[1]:
        raise PrepError(
            f"image {name} is {height} x {width}, larger than {work.size[0]} x {work.size[1]}"
        )
    if work.shrink > 1:
        sample = shrink_sample(sample, work.shrink)
        height, width = sample["image"].shape[:2]
        if min(height, width) < 1:
            raise PrepError(f"nothing is left of image {name}: take a smaller --shrink")

    full = (work.size[0] // work.shrink, work.size[1] // work.shrink)
    arrays = {"size": np.array([height, width], np.int32)}
    counts = {}
    for array, values in sample.items():
        filed = FORMAT[array]
        arrays[array] = np.full((*full, *filed.tail), filed.ignored, filed.dtype)
        arrays[array][:height, :width] = values
        if array != "image":
            counts[array] = value_counts(array, values)
    arrays["crc32"] = np.uint32(checksum(arrays | {"id": name.encode()}))
    return Prepared(arrays, counts, seen)


def write_split(group, results, ids, sink):
    """The samples of one split, as prepare() gives them, into the HDF5 `group` of the file `sink`.

    -> {task: how often each value occurs in each image (N, 256)}, all that was seen.
    """
    group.create_dataset("id", data=ids, dtype=h5py.string_dtype())
    counts = {}
    seen = set()
    for index, sample in enumerate(progress(results, len(ids), group.name[1:])):
        if index == 0:
            create_arrays(group, sample.arrays, len(ids))
        for name, array in sample.arrays.items():
            group[name][index] = array
        for task, values in sample.counts.items():
            counts.setdefault(task, np.zeros((len(ids), 256), np.int32))[index] = values
        seen |= sample.seen
        sink.check()
    return counts, seen


def create_arrays(group, arrays, length):
    """Arrays of `length` samples such as these in the HDF5 `group`."""
    for name, array in arrays.items():
        compression = None
        if name in FORMAT:
            compression = FORMAT[name].compression
        if name == "normal" and group.file.attrs["dataset"] == "pascal":
            compression = SPARSE_NORMALS.compression
        group.create_dataset(
            name,
            (length, *array.shape),
            array.dtype,
            compression=compression,
            chunks=(1, *array.shape) if compression else None,
        )


def examples(file, counts):
    """Two images per split of the HDF5 `file`, if possible with every label, for the preview."""
    for split, tasks in counts.items():
        labelled = [per_image[:, :255].any(1) for per_image in tasks.values()]
        full = np.all(labelled, axis=0)
        if not full.any():
            full[:] = True
        usable = np.flatnonzero(full)
        for index in sorted({usable[0], usable[len(usable) // 2]}):
            group = file[split]
            labels = {task: group[task][index] for task in tasks}
            yield f"{split}, {group['id'].asstr()[index]}", group["image"][index], labels, None


def write_h5(out, splits, work):
    """{split: {id: source}}, read in worker processes, into the file `out` and its preview.

    Both take their places when they are whole, not before.
    """
    out = Path(os.path.realpath(out))
    if os.path.exists(out) and not os.path.isfile(out):  # unlike Path's, they never raise
        raise PrepError(f"{out} is there and is not a file")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    picture = out.with_name(f".{out.name}.{os.getpid()}.png")

    start = time.monotonic()
    try:
        with Sink(part) as sink, h5py.File(sink, "w") as file:
            counts = write_content(file, sink, splits, work)
            preview(examples(file, counts), class_names(work, counts)).save(picture)
        for split in splits:
            summarise(split, counts[split], class_names(work, counts))
        sink.check()
        os.replace(picture, f"{out}.preview.png")
        os.replace(part, out)
    except (BrokenProcessPool, MemoryError) as error:
        sink.check()  # what stops this process may have stopped the workers, too
        raise PrepError("a worker process was killed: is the memory full?") from error
    finally:
        part.unlink(missing_ok=True)
        picture.unlink(missing_ok=True)
    print(f"{out} and {out.name}.preview.png: {time.monotonic() - start:.0f} s")
    if work.shrink > 1:
        print_tolerance(work.dataset, work.size, work.shrink)


def write_content(file, sink, splits, work):
    """All groups and attributes of a data file -> {split: {task: counts (N, 256)}}."""
    file.attrs.update(dataset=work.dataset, format=2)
    if work.shrink > 1:
        file.attrs["shrink"] = work.shrink

    jobs = min(os.cpu_count(), 8)
    counts = {}
    with start_workers(jobs) as pool:
        for split, sources in splits.items():
            results = in_order(pool, partial(prepare, work=work), sources.items(), 2 * jobs)
            group = file.create_group(split)
            counts[split], seen = write_split(group, results, list(sources), sink)
            if work.dataset != "toy":
                refuse_misread(work.dataset, split, counts[split], seen)

    for task, names in class_names(work, counts).items():
        file.attrs.create(f"{task}_classes", names, dtype=h5py.string_dtype())
    return counts


def class_names(work, counts):
    """task -> names of its classes, of the tasks that the data set has."""
    names = CLASS_NAMES[work.dataset]
    return {task: names[task] for task in counts["train"] if task in names}


# ------------------------------------------------------------------------------- checks of a split
def refuse_misread(dataset, split, counts, seen):
    """Values of a whole split that show that they were not meant as they were read."""
    totals = {task: per_image.sum(0) for task, per_image in counts.items()}
    for task in ("boundary", "saliency"):
        if task in totals and totals[task][1] == 0:
            raise PrepError(f"{split} has no {task} pixel at all: an empty or a damaged package")
    if totals["boundary"][1] > totals["boundary"][:255].sum() / 2:
        raise PrepError(f"{split}: over half the pixels are boundary: inverted maps?")
    if "depth" in totals and totals["depth"][:255].any() and not totals["depth"][10:255].any():
        raise PrepError(f"{split}: no depth is over 1: not in metres?")

    semseg = totals["semseg"][: len(CLASS_NAMES[dataset]["semseg"])]
    last = len(semseg) - 1
    images = len(counts["semseg"])
    highest = np.flatnonzero(semseg).max(initial=-1)
    if "255 in semseg" in seen and "40 in semseg" not in seen:
        raise PrepError(
            f"{split}: segmentation holds 255 and no 40: its labels start at 0, and 0 must be what "
            "is unlabelled: add 1 to all (in uint8, where 255 + 1 is 0)"
        )
    if images >= 20 and 2 * highest < last:
        raise PrepError(
            f"{split}: of the {last + 1} classes of segmentation none after the {highest + 1}th "
            "occurs: maps of other classes? Get the package's own"
        )


def check(path):
    """Read the data file through and print which images are damaged; PrepError if there is one."""
    count = 0
    damaged = []
    with reading(path) as opened, h5py.File(opened.name) as file:
        for split in ("train", "val"):
            if "crc32" not in file[split]:
                raise ValueError("it carries no checksums: of format 1, or not of data_prep.py")
            ids = file[split]["id"].asstr()[:]
            if {len(array) for array in file[split].values()} != {len(ids)}:
                raise ValueError(f"the arrays of {split} differ in length")
            for index, name in enumerate(progress(ids, len(ids), split)):
                if not is_whole(file[split], index):
                    damaged.append(f"{split} {name}")
            count += len(ids)

    for name in damaged:
        print(f"damaged: {name}")
    if damaged:
        raise PrepError(f"{path}: {len(damaged)} of {count} images are damaged; convert again")
    print(f"{path}: {count} images, all whole")


# ------------------------------------------------------------------------------------- command line
def find_layouts(dataset, raw, packages_only=False):
    """The folders with a known layout: `raw`, and the packages' folders in it."""
    package = PACKAGES[dataset]
    found = []
    for root in (raw, *(raw / name for name in package.roots)):
        is_raw = dataset == "nyud" and (root / RAW_MAT).exists() and not packages_only
        if is_package(root, dataset) or is_raw:
            found.append(root)
    return found


def is_package(root, dataset):
    """Else the folder holds raw files, from which other labels are made."""
    return (root / PACKAGES[dataset].lists).is_dir()


def convert(dataset, raw, out, shrink=1, download=False):
    """nyud or pascal, found in `raw` or in a package's folder in it, -> the file `out`."""
    package = PACKAGES[dataset]
    if shrink > 1 and min(package.size) // shrink < SMALLEST:
        most = min(package.size) // SMALLEST
        raise PrepError(f"--shrink {shrink} leaves under {SMALLEST} pixels; {most} is the most")

    # Who asks for the package does not mean the raw files that may lie beside it.
    found = find_layouts(dataset, raw, packages_only=download)
    if download and found:
        print(f"{found[0]} is there already: nothing is downloaded")
    elif download:
        fetch_package(package.sources, raw, f"python data_prep.py {dataset} --raw {raw}")
        found = find_layouts(dataset, raw, packages_only=True)
    if not found:
        refuse_layout(dataset, raw)

    root = found[0]
    for other in found[1:]:
        print(f"not used: {other}")
    print(f"reading {root}")
    if is_package(root, dataset):
        splits = open_package(root, dataset)
        reader = {"nyud": nyud_reader, "pascal": pascal_reader}[dataset]
        read = reader(splits)
    else:
        splits, mapping = open_raw(root)
        read = partial(read_raw, root=root, mapping=mapping)
    write_h5(out, splits, Work(dataset, read, package.size, shrink))


def refuse_layout(dataset, raw):
    what = "no layout known here" if raw.exists() else "no such folder"
    by_hand = [
        f"{source.url} (unpacks to {source.folder}/)" for source in PACKAGES[dataset].sources
    ]
    if dataset == "nyud":
        by_hand.append("or raw: " + ", ".join(RAW_LINKS))
    command = f"python data_prep.py {dataset} --download --raw {raw}"
    raise PrepError(f"{raw}: {what}; get it: {command}; or by hand: {', '.join(by_hand)}")


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"data_prep.py: {message}; see python data_prep.py --help\n")


def count(text):
    """An argparse type: a whole number of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return int(text)


def parse_arguments(argv):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = parser.add_subparsers(dest="job", required=True)
    for name in ("toy", "nyud", "pascal"):
        add = jobs.add_parser(name).add_argument
        add("--out", type=Path, default=f"data/{name}.h5", metavar="FILE", help="(%(default)s)")
        if name == "toy":
            for field, default in asdict(TOY).items():
                add(f"--{field}", type=int, default=default, metavar="N", help="(%(default)s)")
        else:
            add("--raw", type=Path, default="data/raw", metavar="DIR", help="(%(default)s)")
            add("--download", action="store_true", help="fetch and unpack a package into DIR first")
            add("--shrink", type=count, default=1, metavar="K", help="K x K pixels become one")
    jobs.add_parser("check").add_argument("file", type=Path)
    return parser.parse_args(argv)


def run(args):
    if args.job == "check":
        check(args.file)
    elif args.job == "toy":
        make_toy(args.out, **{field: getattr(args, field) for field in asdict(TOY)})
    else:
        convert(args.job, args.raw, args.out, args.shrink, args.download)


def main(argv=None):
    """The command line -> exit status: 0, or 2 after one line on stderr."""
    args = parse_arguments(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file's name may be beyond the terminal's encoding
            stream.reconfigure(errors="backslashreplace")

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(args)
        return 0
    except (PrepError, OSError, KeyboardInterrupt) as error:
        what = str(error) or "interrupted"
        if isinstance(error, KeyboardInterrupt) and getattr(args, "download", False):
            what += "; what was fetched is kept"
        if args.job != "check":
            if isinstance(error, OSError):
                what = f"cannot write {args.out}: {what}"
            if os.path.exists(args.out):
                what += f"; {args.out} is as it was before"
        print(f"data_prep.py: {what}", file=sys.stderr)
        return 2
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
