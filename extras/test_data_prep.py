# SPDX-License-Identifier: MIT
"""Tests of data_prep.py and of what it stands on, in its order.

Miniature packages in the official layouts, written here; a server on 127.0.0.1.
"""

import dataclasses
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import error_line, main
from PIL import Image
from scipy import ndimage
from scipy.io import savemat

import data_prep
import mtcd
from extras import download, rawfiles, rooms
from extras.datafile import in_order, summarise
from extras.download import Source
from extras.normals import normals_from_depth
from extras.shrink import shrink_sample


def prep(*arguments):
    return data_prep.main([str(argument) for argument in arguments])


def refused(capsys, *arguments):
    """The run ends with status 2 and one line on stderr -> that line."""
    capsys.readouterr()
    assert prep(*arguments) == 2
    return error_line(capsys)


def skimage_thin(mask):
    return pytest.importorskip("skimage.morphology").thin(mask)


def old_file(folder):
    """A data file of before, alone in its folder."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    (folder / "out").mkdir()
    path = folder / "out/o.h5"
    path.write_text("the old one")
    return path


def is_untouched(path):
    return path.read_text() == "the old one" and list(path.parent.iterdir()) == [path]


def save(path, array=None, **variables):
    """An array to a file of any kind; .mat takes variables."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".mat":
        savemat(path, variables, do_compression=True)
    elif path.suffix == ".jpg":
        mode = "CMYK" if array.shape[2:] == (4,) else None
        Image.fromarray(array, mode).save(path, quality=95)
    else:
        Image.fromarray(array).save(path)


def write_list(path, *ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in ids))


def sample_of(group, index):
    """The (h, w) part of each array; all below and right of it must be the ignored value."""
    height, width = group["size"][index]
    sample = {}
    for name in group.keys() - {"id", "size", "crc32"}:
        array = group[name][index]
        ignored = 0 if name in ("image", "depth", "normal") else 255
        assert (array[height:] == ignored).all(), name
        assert (array[:, width:] == ignored).all(), name
        sample[name] = array[:height, :width]
    return sample


def check_normals(stored, vectors, valid):
    """Unit vectors along `vectors` where `valid`, exactly 0 elsewhere."""
    assert stored.dtype == np.float16
    assert not stored[~valid].any()
    unit = vectors[valid] / np.linalg.norm(vectors[valid], axis=1, keepdims=True)
    assert np.abs(stored[valid].astype(float) - unit).max(initial=0) < 1e-3


def decoded(raw):
    """8 bits -> vectors; those under 0.5 long are missing."""
    vectors = raw.astype(int) * 2 / 255 - 1
    return vectors, (vectors**2).sum(-1) > 0.25


# ----------------------------------------------------------------------------------- NYUD, packaged
ENDINGS = {  # of the packages in circulation
    "astmt": {"images": "jpg", "segmentation": "mat", "depth": "mat", "normals": "jpg", "edge": "png"},
    "mti": {"images": "jpg", "segmentation": "png", "depth": "npy", "normals": "npy", "edge": "npy"},
    "invpt": {"images": "png", "segmentation": "png", "depth": "npy", "normals": "png", "edge": "png"},
}
NYUD_IDS = ("a1", "b2", "c3", "d4")  # the last one is val


def write_nyud(root, kind="invpt", ids=NYUD_IDS, size=(37, 53), seed=0):
    """A package; each image is of another size -> {id: {folder: array as it was meant}}."""
    rng = np.random.default_rng(seed)
    truth = {}
    for number, name in enumerate(ids):
        shape = (size[0] + 2 * number, size[1] - number)
        arrays = nyud_arrays(rng, shape, ENDINGS[kind]["normals"] != "npy")
        for folder, array in arrays.items():
            ending = ENDINGS[kind][folder]
            stored = array * np.uint8(255) if folder == "edge" and ending == "png" else array
            save(root / f"{folder}/{name}.{ending}", stored, **{folder: array})
        truth[name] = arrays
    write_list(root / "gt_sets/train.txt", *ids[:-1])
    write_list(root / "gt_sets/val.txt", ids[-1])
    return truth


def nyud_arrays(rng, shape, eight_bits):
    labels = rng.integers(0, 41, shape, np.uint8)
    labels[:2, :3] = 255

    depth = rng.uniform(0.5, 9, shape).astype(np.float32)
    depth[0, :4] = (0, -1, np.nan, np.inf)

    normals = rng.normal(size=(*shape, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    normals[shape[0] // 2 :, shape[1] // 2 :] = 0
    if eight_bits:
        normals = np.floor((normals + 1) * 127.5).astype(np.uint8)

    return {
        "images": rng.integers(0, 256, (*shape, 3), np.uint8),
        "segmentation": labels,
        "depth": depth,
        "normals": normals if eight_bits else normals.astype(np.float32),
        "edge": (rng.random(shape) < 0.2).astype(np.uint8),
    }


# --------------------------------------------------------------------------------------- NYUD, raw
def write_raw(root, zipped=False):
    """4 frames with MATLAB's axes -> images, depths, labels, instances, mapping, normals."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (4, 480, 640, 3), np.uint8)
    depths = rng.uniform(1, 5, (4, 480, 640)).astype(np.float32)
    depths[0, 100:110, 200:220] = 0
    labels = rng.integers(0, 895, (4, 8, 8), np.uint16).repeat(60, 1).repeat(80, 2)
    instances = rng.integers(1, 3, (4, 24, 16), np.uint8).repeat(20, 1).repeat(40, 2)
    labels[:, 180:240, 160:240] = 0

    # Neighbours whose labels and instances have equal sums.
    labels[:, 240:300, 320:400] = 100
    instances[:, 240:300, 320:400] = 2
    labels[:, 240:300, 400:480] = 101
    instances[:, 240:300, 400:480] = 1

    root.mkdir(parents=True, exist_ok=True)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        file["images"] = images.transpose(0, 3, 2, 1)
        file["depths"] = depths.transpose(0, 2, 1)
        file["labels"] = labels.transpose(0, 2, 1)
        file["instances"] = instances.transpose(0, 2, 1)

    mapping = rng.integers(1, 41, (1, 894), np.uint8)
    names = np.array([[f"class {i}" for i in range(40)]], object)
    savemat(root / "classMapping40.mat", {"mapClass": mapping, "className": names})
    write_splits(root, [2, 4], [1, 3])
    normals = rng.integers(0, 256, (4, 480, 640, 3), np.uint8)
    normals[:, 60:70, 80:90] = 127
    if zipped:
        write_normals(root / "nyu_normals_gt.zip", normals)
    return images, depths, labels, instances, mapping[0], normals


def write_splits(root, train, val):
    as_column = partial(np.array, dtype=np.uint16)
    variables = {"trainNdxs": as_column(train)[:, None], "testNdxs": as_column(val)[:, None]}
    savemat(root / "splits.mat", variables)


def write_normals(path, normals):
    """As Ladicky's: pictures count from 1, masks from 0; frame n is masked up to column 300 + n."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, picture in enumerate(normals):
            mask = np.uint8(255) * (np.arange(640) > 300 + number)[None].repeat(480, 0)
            folder = "train" if number % 2 else "test"
            for name, array in (
                (f"{folder}/{number + 1:05d}.png", picture),
                (f"masks/{number:04d}.png", mask),
            ):
                data = io.BytesIO()
                Image.fromarray(array).save(data, "PNG")
                archive.writestr(f"nyu_normals_gt/{name}", data.getvalue())


# ----------------------------------------------------------------------------------- PASCAL-Context
GROUPS = {
    "head": 1,
    "hair": 1,
    "reye": 1,
    "neck": 2,
    "torso": 2,
    "luarm": 3,
    "rhand": 4,
    "llarm": 4,
    "ruleg": 5,
    "lfoot": 6,
}
PEOPLE = [  # per image: (class_ind, parts); 15 is a person
    [(15, list(GROUPS)), (15, list(GROUPS)[::-1])],  # two people, parts over parts
    [(12, ["head", "torso"]), (15, [])],  # a dog with parts, a person without
    [(7, []), (15, ["torso", "head"])],
    [],
    [(15, ["lfoot"])],  # one object, one part
    [(15, ["empty"])],  # a part of no pixel
]
SIZES = [(50, 37), (33, 50), (375, 500), (31, 47), (36, 29), (41, 26)]
PASCAL_IDS = [f"2008_00000{number}" for number in range(1, 7)]  # the last two are val


def struct(names, rows):
    """A MATLAB struct array (1, n)."""
    if not rows:
        return np.zeros((0, 0))
    out = np.zeros((1, len(rows)), dtype=[(name, "O") for name in names])
    for index, row in enumerate(rows):
        out[0, index] = row
    return out


def annotation(objects, shape):
    """Variable `anno` of human_parts for [(class_ind, [(part, mask)])]."""
    things = []
    for number, parts in objects:
        things.append(("thing", number, np.ones(shape), struct(["part_name", "mask"], parts)))
    things = struct(["class", "class_ind", "mask", "parts"], things)
    return struct(["imname", "objects"], [("", things)])


def draw_part(rng, name, shape):
    mask = np.zeros(shape, np.uint8)
    top = rng.integers(0, shape[0] - 9)
    left = rng.integers(0, shape[1] - 9)
    if name == "empty":
        return "head", mask
    mask[top : top + 9, left : left + 7] = 1
    return name, mask


def write_pascal(root, seed=0):
    """-> {id: the arrays as they were meant}; objects: [(class_ind, [(part, mask)])]."""
    rng = np.random.default_rng(seed)
    truth = {}
    for number, (name, shape) in enumerate(zip(PASCAL_IDS, SIZES)):
        objects = []
        for kind, parts in PEOPLE[number]:
            objects.append((kind, [draw_part(rng, part, shape) for part in parts]))
        blocks = rng.integers(1, 460, (shape[0] // 5 + 1, shape[1] // 5 + 1))
        context = blocks.repeat(5, 0).repeat(5, 1)[: shape[0], : shape[1]]
        if number == 4:  # neighbours that cancel out, also at the border
            context = rng.integers(1, 7, shape)

        meant = {
            "objects": objects,
            "semseg": rng.integers(0, 21, shape, np.uint8),
            "LabelMap": context,
            "normals": rng.integers(0, 256, (*shape, 3), np.uint8),
            "saliency": rng.integers(0, 256, shape, np.uint8),
        }
        meant["semseg"][:3] = 255
        meant["normals"][5:9, 5:20] = 127
        meant["saliency"][0, :2] = (127, 128)
        truth[name] = meant

        channels = ((3,), (), (3,), (4,), (3,), (3,))[number]  # RGB, grey, CMYK
        save(root / f"JPEGImages/{name}.jpg", rng.integers(0, 256, (*shape, *channels), np.uint8))
        write_semseg(root, name, meant["semseg"], rng, number)
        dtype = np.float64 if number % 3 == 1 else np.uint16
        save(root / f"pascal-context/trainval/{name}.mat", LabelMap=context.astype(dtype))
        save(root / f"human_parts/{name}.mat", anno=annotation(objects, shape))
        save(root / f"normals_distill/{name}.png", meant["normals"])
        save(root / f"sal_distill/{name}.png", meant["saliency"])
    write_list(root / "ImageSets/Context/train.txt", *PASCAL_IDS[:4])
    write_list(root / "ImageSets/Context/val.txt", *PASCAL_IDS[4:])
    return truth


def write_semseg(root, name, labels, rng, number):
    """In VOC12, but for number 2; every other one with a palette. Both folders: VOC12 goes first."""
    for folder in ("VOC12", "pascal-context"):
        (root / "semseg" / folder).mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(labels)
    if number % 2:
        picture = Image.fromarray(labels, "P")
        picture.putpalette(rng.integers(0, 256, 768, np.uint8).tobytes())
    folder = "pascal-context" if number == 2 else "VOC12"
    picture.save(root / f"semseg/{folder}/{name}.png")
    if number == 0:
        save(root / f"semseg/pascal-context/{name}.png", np.zeros_like(labels))
