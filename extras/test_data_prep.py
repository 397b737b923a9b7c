# SPDX-License-Identifier: MIT
"""Tests of data_prep.py and of what it stands on, in its order.

Miniature packages in the official layouts, written here; a server on 127.0.0.1.
"""

import contextlib
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
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from scipy.io import savemat

import data_prep
import mtcd
from conftest import DAMAGE, damaged, error_line, main
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
    "astmt": {
        "images": "jpg",
        "segmentation": "mat",
        "depth": "mat",
        "normals": "jpg",
        "edge": "png",
    },
    "mti": {
        "images": "jpg",
        "segmentation": "png",
        "depth": "npy",
        "normals": "npy",
        "edge": "npy",
    },
    "invpt": {
        "images": "png",
        "segmentation": "png",
        "depth": "npy",
        "normals": "png",
        "edge": "png",
    },
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
    """In VOC12, but for number 2; every other one with a palette. VOC12 goes before the other."""
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


# ------------------------------------------------------------------------------- known data sets
@pytest.fixture
def in_small(monkeypatch):
    """Read in this process, padded to less, without a preview: a tenth of the time."""
    small = dataclasses.replace(data_prep.PACKAGES["nyud"], size=(100, 64))
    monkeypatch.setitem(data_prep.PACKAGES, "nyud", small)
    monkeypatch.setattr(data_prep, "start_workers", ThreadPoolExecutor)
    monkeypatch.setattr(data_prep, "preview", lambda *_: Image.new("RGB", (1, 1)))


@pytest.mark.parametrize("kind", ENDINGS)
def test_nyud_packaged(tmp_path, kind, capsys):
    root = tmp_path / ("NYUDv2" if kind == "invpt" else "NYUD_MT")
    truth = write_nyud(root, kind)
    raw = tmp_path if kind == "mti" else root
    assert prep("nyud", "--raw", raw, "--out", tmp_path / "o/n.h5") == 0
    assert {path.name for path in (tmp_path / "o").iterdir()} == {"n.h5", "n.h5.preview.png"}
    output = capsys.readouterr().out
    assert "train semseg        3 images" in output
    assert "40 of 40 classes" in output

    with h5py.File(tmp_path / "o/n.h5") as file:
        assert dict(file.attrs).keys() == {
            "dataset",
            "format",
            "semseg_classes",
            "boundary_classes",
        }
        assert file.attrs["dataset"] == "nyud"
        assert file.attrs["format"] == 2
        names = list(file.attrs["semseg_classes"])
        assert (len(names), names[0], names[19], names[39]) == (
            40,
            "wall",
            "floor mat",
            "otherprop",
        )
        assert list(file.attrs["boundary_classes"]) == ["background", "boundary"]
        assert [*file["train/id"].asstr()] == ["a1", "b2", "c3"]
        assert [*file["val/id"].asstr()] == ["d4"]
        layout = {
            name: (a.shape, a.dtype.name) for name, a in file["train"].items() if name != "id"
        }
        assert layout == {
            "image": ((3, 425, 560, 3), "uint8"),
            "semseg": ((3, 425, 560), "uint8"),
            "depth": ((3, 425, 560), "float32"),
            "normal": ((3, 425, 560, 3), "float16"),
            "boundary": ((3, 425, 560), "uint8"),
            "size": ((3, 2), "int32"),
            "crc32": ((3,), "uint32"),
        }
        for index, (name, meant) in enumerate(truth.items()):
            sample = sample_of(file["train" if index < 3 else "val"], index % 3)
            stored = {folder: f"{folder}/{name}.{end}" for folder, end in ENDINGS[kind].items()}
            image = np.asarray(Image.open(root / stored["images"]))
            assert np.array_equal(sample["image"], image)
            for place in np.ndindex(meant["segmentation"].shape):
                label = int(meant["segmentation"][place])
                depth = meant["depth"][place]
                assert sample["semseg"][place] == (255 if label in (0, 255) else label - 1)
                assert sample["depth"][place] == (depth if 0 < depth < 1e9 else 0)
                assert sample["boundary"][place] == meant["edge"][place]
            if kind == "mti":
                vectors = meant["normals"].astype(float)
                check_normals(sample["normal"], vectors, vectors.any(-1))
            else:
                raw_normals = np.asarray(Image.open(root / stored["normals"]))
                check_normals(sample["normal"], *decoded(raw_normals))
                assert not sample["normal"][-1, -1].any()


def test_pascal(tmp_path, capsys):
    root = tmp_path / "PASCALContext"
    truth = write_pascal(root)
    assert prep("pascal", "--raw", tmp_path, "--out", tmp_path / "p.h5") == 0
    assert "train parsing       2 images" in capsys.readouterr().out
    valid_classes = set(data_prep.NORMAL_CLASSES.tolist())
    listed = " ".join(map(str, data_prep.NORMAL_CLASSES))
    assert zlib.crc32(listed.encode()) == 3003754207  # of the code bases' 170, spaces between

    with h5py.File(tmp_path / "p.h5") as file:
        assert file.attrs["dataset"] == "pascal"
        assert [len(file.attrs[f"{task}_classes"]) for task in ("semseg", "parsing")] == [21, 7]
        assert file["train/normal"].compression == "lzf"
        assert file["train/image"].compression is None
        for index, (name, meant) in enumerate(truth.items()):
            group = file["train" if index < 4 else "val"]
            assert group["id"].asstr()[index % 4] == name
            assert group["image"].shape[1:] == (512, 512, 3)
            sample = sample_of(group, index % 4)
            image = Image.open(root / f"JPEGImages/{name}.jpg").convert("RGB")
            assert np.array_equal(sample["image"], np.asarray(image))
            assert np.array_equal(sample["semseg"], meant["semseg"])
            assert np.array_equal(sample["saliency"], meant["saliency"] / 255 > 0.5)
            changes = ndimage.laplace(meant["LabelMap"].astype(int), mode="mirror") != 0
            assert np.array_equal(sample["boundary"], skimage_thin(changes))

            parsing = np.zeros(meant["semseg"].shape, np.uint8)
            for kind, parts in meant["objects"]:
                if kind == 15:
                    for part, mask in parts:
                        parsing[mask > 0] = GROUPS[part]
            assert (sample["parsing"] == (parsing if parsing.any() else 255)).all(), name

            rows = [[int(c) in valid_classes for c in row] for row in meant["LabelMap"]]
            vectors, there = decoded(meant["normals"])
            check_normals(sample["normal"], vectors, np.array(rows) & there)


def test_every_part_has_its_group():
    sizes = [len(names) for names in data_prep.PARTS.values()]
    assert sizes == [0, 10, 2, 2, 4, 2, 4]
    assert len(data_prep.PART_GROUP) == 24
    assert all(data_prep.PART_GROUP[name] == group for name, group in GROUPS.items())


@pytest.mark.parametrize("zipped", [False, True])
def test_nyud_raw(tmp_path, zipped, capsys):
    images, depths, labels, instances, mapping, normals = write_raw(tmp_path, zipped)
    assert prep("nyud", "--raw", tmp_path, "--out", tmp_path / "n.h5") == 0
    assert ("fitted to depth" in capsys.readouterr().out) != zipped
    classes = np.concatenate([[255], mapping - 1])
    with h5py.File(tmp_path / "n.h5") as file:
        ids = [*file["train/id"].asstr(), *file["val/id"].asstr()]
        assert ids == ["0002", "0004", "0001", "0003"]
        for number, name in enumerate(ids):
            frame = int(name) - 1
            sample = sample_of(file["train" if number < 2 else "val"], number % 2)
            window = np.s_[frame, 45:470, 40:600]  # from 0
            assert np.array_equal(sample["image"], images[window])
            assert np.array_equal(sample["depth"], depths[window])
            assert np.array_equal(sample["semseg"], classes[labels[window]])

            thing = np.stack([labels[window], instances[window]], -1).astype(int)
            change = np.zeros((425, 560), bool)
            change[:-1] |= (thing[1:] != thing[:-1]).any(-1)
            change[:, :-1] |= (thing[:, 1:] != thing[:, :-1]).any(-1)
            assert np.array_equal(sample["boundary"], skimage_thin(change))

            if zipped:
                vectors, valid = decoded(normals[window])
                seen = np.arange(40, 600) > 300 + frame
                check_normals(sample["normal"], vectors, valid & seen)
            else:
                length = np.linalg.norm(sample["normal"].astype(float), axis=-1)
                assert (abs(length - 1) < 0.01).mean() > 0.99
                assert not sample["normal"][depths[window] == 0].any()


def test_whole_frames_of_a_package_are_cropped_to_the_protocols_window(tmp_path):
    rng = np.random.default_rng(0)
    write_nyud(tmp_path, ids=("a1", "d4"))
    for name in ("a1", "d4"):
        frames = nyud_arrays(rng, (480, 640), True)
        for folder, end in ENDINGS["invpt"].items():
            stored = frames[folder] * np.uint8(255) if folder == "edge" else frames[folder]
            if (name, folder) == ("d4", "depth"):  # some hold labels of the protocol's size
                stored = stored[45:470, 40:600]
            save(tmp_path / f"{folder}/{name}.{end}", stored)
        if name == "a1":
            first = frames
    assert prep("nyud", "--raw", tmp_path, "--out", tmp_path / "n.h5") == 0
    with h5py.File(tmp_path / "n.h5") as file:
        assert file["train/size"][0].tolist() == [425, 560]
        window = np.s_[45:470, 40:600]
        assert np.array_equal(file["train/image"][0], first["images"][window])
        assert np.array_equal(file["train/boundary"][0], first["edge"][window])
        assert np.array_equal(file["val/depth"][0], np.nan_to_num(stored_depth(tmp_path)))


def stored_depth(root):
    depth = np.load(root / "depth/d4.npy")
    return np.where(depth > 0, depth, 0)


@pytest.mark.parametrize("dataset", ["nyud", "pascal"])
def test_converted_files_are_taken_by_the_trainer(dataset, tmp_path):
    write = {"nyud": write_nyud, "pascal": write_pascal}[dataset]
    write(tmp_path)
    assert prep(dataset, "--raw", tmp_path, "--shrink", 4, "--out", tmp_path / "d.h5") == 0
    tasks = mtcd.PROTOCOLS[dataset].tasks
    for split in ("train", "val"):
        data = mtcd.DenseTasks(tmp_path / "d.h5", split, tasks, augment=split == "train")
        assert data[0].keys() == {"image", *tasks}


def test_a_converted_file_trains(tmp_path):
    write_nyud(tmp_path / "raw")
    data = tmp_path / "n.h5"
    assert prep("nyud", "--raw", tmp_path / "raw", "--shrink", 4, "--out", data) == 0
    quick = ("--iters", 1, "--batch-size", 2, "--workers", 0, "--backbone", "hrnet_tiny")
    assert main("--dataset", "nyud", "--data", data, *quick, "--out", tmp_path / "run") == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["size"] == [106, 140]


# --------------------------------------------------------------------------- values, read as meant
def as_kind(edge, kind):
    """A binary map as the packages in circulation and their users' own write it."""
    maps = {
        "png of 0 and 1": edge.astype(np.uint8),
        "png of 0 and 255": edge * np.uint8(255),
        "png of one bit": edge.astype(bool),
        "npy of 0 and 1": edge.astype(np.uint8),
        "npy of 0 and 255": edge * np.uint8(255),
        "npy of floats": edge.astype(np.float32),
        "npy of floats to 255": edge * np.float32(255),
        "npy of truth": edge.astype(bool),
    }
    return maps[kind]


KINDS = [
    "png of 0 and 1",
    "png of 0 and 255",
    "png of one bit",
    "npy of 0 and 1",
    "npy of 0 and 255",
    "npy of floats",
    "npy of floats to 255",
    "npy of truth",
]


@pytest.mark.parametrize("kind", KINDS)
def test_binary_maps_are_read_by_their_values(kind, tmp_path, in_small):
    ending = kind[:3]
    nyud = write_nyud(tmp_path / "nyud")
    pascal = write_pascal(tmp_path / "pascal")
    for name, meant in nyud.items():
        (tmp_path / f"nyud/edge/{name}.png").unlink()
        save(tmp_path / f"nyud/edge/{name}.{ending}", as_kind(meant["edge"], kind))
    assert prep("nyud", "--raw", tmp_path / "nyud", "--out", tmp_path / "n.h5") == 0
    with h5py.File(tmp_path / "n.h5") as file:
        sample = sample_of(file["val"], 0)
        assert np.array_equal(sample["boundary"], nyud["d4"]["edge"])

    if ending == "png":
        for name, meant in pascal.items():
            salient = meant["saliency"] > 127
            save(tmp_path / f"pascal/sal_distill/{name}.png", as_kind(salient, kind))
        assert prep("pascal", "--raw", tmp_path / "pascal", "--out", tmp_path / "p.h5") == 0
        with h5py.File(tmp_path / "p.h5") as file:
            sample = sample_of(file["val"], 0)
            assert np.array_equal(sample["saliency"], pascal[PASCAL_IDS[4]]["saliency"] > 127)


def test_255_beside_0_and_1_is_ignored(tmp_path, in_small):
    truth = write_nyud(tmp_path, "mti")
    edge = truth["b2"]["edge"].copy()
    edge[:9] = 255
    save(tmp_path / "edge/b2.npy", edge)
    assert prep("nyud", "--raw", tmp_path, "--out", tmp_path / "n.h5") == 0
    with h5py.File(tmp_path / "n.h5") as file:
        assert np.array_equal(sample_of(file["train"], 1)["boundary"], edge)


def test_maps_written_in_two_ways_in_one_package_are_refused(tmp_path, capsys, in_small):
    """The odd one is beyond the maps that are looked at first: its own values tell."""
    ids = [f"x{number:02d}" for number in range(30)]
    truth = write_nyud(tmp_path, ids=ids, size=(37, 53))
    path = random_last(tmp_path, ids)
    save(path, truth[path.stem]["edge"])
    line = refused(capsys, "nyud", "--raw", tmp_path, "--out", tmp_path / "n.h5")
    assert str(path) in line
    assert "it holds 0 and 1, where other maps of the package hold 0 and 255" in line

    for name in ids:
        save(tmp_path / f"edge/{name}.png", truth[name]["edge"])
    save(path, truth[path.stem]["edge"] * np.uint8(255))
    line = refused(capsys, "nyud", "--raw", tmp_path, "--out", tmp_path / "n.h5")
    assert "it holds 0 and 255, where other maps of the package hold 0 and 1" in line


def random_last(root, ids):
    """The edge map that is looked at last."""
    splits = {"all": {name: {"boundary": root / f"edge/{name}.png"} for name in ids}}
    return data_prep.some_paths(splits, "boundary")[-1]


@pytest.mark.parametrize(
    "values, told",
    [
        ((0, 0), "all maps are 0 everywhere"),
        ((0, 2), "values from 0 to 2"),
        ((0, 100), "values from 0 to 100"),
        ((255, 255), "inverted"),
    ],
)
def test_maps_that_mean_something_else_are_refused(values, told, tmp_path, capsys, in_small):
    truth = write_nyud(tmp_path)
    for name, meant in truth.items():
        edge = np.where(meant["edge"], np.uint8(values[1]), np.uint8(values[0]))
        save(tmp_path / f"edge/{name}.png", edge)
    assert told in refused(capsys, "nyud", "--raw", tmp_path, "--out", tmp_path / "n.h5")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_one_positive_is_refused(split, tmp_path, capsys, in_small):
    truth = write_nyud(tmp_path)
    for name in NYUD_IDS[:3] if split == "train" else NYUD_IDS[3:]:
        save(tmp_path / f"edge/{name}.png", np.zeros_like(truth[name]["edge"]))
    line = refused(capsys, "nyud", "--raw", tmp_path, "--out", tmp_path / "n.h5")
    assert f"{split} has no boundary pixel at all" in line


def renumber(root, truth, rule):
    for name, meant in truth.items():
        save(root / f"segmentation/{name}.png", rule(meant["segmentation"]))


def test_labels_that_start_at_zero_are_refused(tmp_path, capsys, in_small):
    """0 wall ... 39, 255 void: read as 1 to 40 they would all be one class off."""
    truth = write_nyud(tmp_path)
    renumber(
        tmp_path, truth, lambda label: np.where(label % 255 == 0, 255, label - 1).astype(np.uint8)
    )
    line = refused(capsys, "nyud", "--raw", tmp_path, "--out", tmp_path / "n.h5")
    assert "its labels start at 0" in line
    assert "add 1" in line

    for path in (tmp_path / "segmentation").iterdir():  # what the line says to do
        label = np.asarray(Image.open(path))
        save(path, label + np.uint8(1))
    assert prep("nyud", "--raw", tmp_path, "--out", tmp_path / "n.h5") == 0
    with h5py.File(tmp_path / "n.h5") as file:
        label = truth["d4"]["segmentation"]
        meant = np.where(label % 255 == 0, 255, label - 1)
        assert np.array_equal(sample_of(file["val"], 0)["semseg"], meant)


def test_maps_of_fewer_classes_are_refused(tmp_path, capsys, in_small):
    """NYUD's 13 classes, as another line of work numbers them."""
    ids = [f"x{number:02d}" for number in range(24)]
    truth = write_nyud(tmp_path, ids=ids, size=(20, 60))
    renumber(tmp_path, truth, lambda label: np.where(label == 255, 0, label % 14).astype(np.uint8))
    line = refused(capsys, "nyud", "--raw", tmp_path, "--out", tmp_path / "n.h5")
    assert "of the 40 classes of segmentation none after the 13th occurs" in line


def test_maps_of_more_classes_are_refused(tmp_path):
    for count, first, highest in ((40, 1, 41), (21, 0, 59)):
        labels = np.array([[0, highest]], np.uint8)
        with pytest.raises(ValueError, match=f"label {highest} is not in {first} to .*numbering"):
            rawfiles.as_classes(labels, count, first)


@pytest.mark.parametrize("value", [-1, 0.5, np.nan, 256, 1000])
def test_labels_that_are_no_byte_are_refused(value):
    with pytest.raises(ValueError, match=f"label {value}"):
        rawfiles.as_classes(np.array([[1, value]]), 40, 1)


def test_depth_in_other_units_is_refused(tmp_path, capsys, in_small):
    truth = write_nyud(tmp_path)
    for scale, told in ((1000, "not in metres"), (0.1, "no depth is over 1: not in metres")):
        for name, meant in truth.items():
            save(tmp_path / f"depth/{name}.npy", meant["depth"] * np.float32(scale))
        assert told in refused(capsys, "nyud", "--raw", tmp_path, "--out", tmp_path / "n.h5")


def test_normals_that_are_no_vectors_are_refused():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30, 40, 3))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    assert rawfiles.as_normals(vectors.astype(np.float32)).any()
    with pytest.raises(ValueError, match="8-bit pictures"):
        rawfiles.as_normals((vectors + 1) * 127.5)
    with pytest.raises(ValueError, match="coded as 0 to 1"):
        rawfiles.as_normals((vectors + 1) / 2)
    flat = np.zeros((4, 5, 3))
    flat[..., 2] = 1  # a wall before a camera whose z points back
    assert np.array_equal(rawfiles.as_normals(flat), flat)


def test_missing_normals_survive_jpeg(tmp_path):
    """Grey holes stay missing, but for a few pixels at their edges; hardly a good normal goes."""
    rng = np.random.default_rng(0)
    shape = (210, 280)
    slopes = [ndimage.gaussian_filter(rng.normal(size=shape), 8) * 30 for _ in range(2)]
    normals = np.dstack([*slopes, -np.ones(shape)])
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    missing = ndimage.gaussian_filter(rng.normal(size=shape), 8) > 0.02
    missing[:12] = True  # as at a sensor's rim
    missing[:, :10] = True
    inside = ndimage.binary_erosion(missing, iterations=8, border_value=1)
    for quality in (75, 85, 95):
        for grey in (127, 128):
            picture = np.floor((normals + 1) * 127.5).astype(np.uint8)
            picture[missing] = grey
            Image.fromarray(picture).save(tmp_path / "n.jpg", quality=quality)
            raw = np.asarray(Image.open(tmp_path / "n.jpg"))
            valid = rawfiles.as_normals(raw).any(-1)
            blurred = ((raw[missing] < 127) | (raw[missing] > 128)).any(-1)
            assert blurred.mean() > 0.1
            assert valid[missing].mean() < 0.02
            assert valid[~missing].mean() > 0.99
            assert not valid[inside].any()


# -------------------------------------------------------------------------- inputs, used or told
def test_a_zip_of_normals_without_numbered_pictures_is_refused(tmp_path, capsys):
    write_raw(tmp_path)
    with zipfile.ZipFile(tmp_path / "nyu_normals_gt.zip", "w") as archive:
        archive.writestr("normals/all_normals.pklz", b"pickled")
    line = refused(capsys, "nyud", "--raw", tmp_path, "--out", tmp_path / "n.h5")
    assert "nyu_normals_gt.zip" in line
    assert "all_normals.pklz" in line
    assert "move this one away and normals are fitted to depth" in line


@pytest.mark.parametrize("kind", ["packaged", "raw"])
def test_an_id_in_train_and_val_is_refused(kind, tmp_path, capsys):
    if kind == "packaged":
        write_nyud(tmp_path)
        write_list(tmp_path / "gt_sets/val.txt", "d4", "b2")
        shared = "b2"
    else:
        write_raw(tmp_path)
        write_splits(tmp_path, [2, 4], [1, 4])
        shared = "0004"
    line = refused(capsys, "nyud", "--raw", tmp_path, "--out", tmp_path / "n.h5")
    assert f"1 images are in train and in val, such as {shared}" in line


def test_what_is_there_and_not_used_is_told(tmp_path, capsys, in_small):
    root = tmp_path / "NYUD_MT"
    truth = write_nyud(root)
    for name, meant in truth.items():
        save(root / f"segmentation/{name}.mat", segmentation=meant["segmentation"])
    save(root / "images/x9.png", truth["a1"]["images"])
    save(root / "masks/a1.png", truth["a1"]["edge"])
    (tmp_path / "NYUDv2/gt_sets").mkdir(parents=True)
    assert prep("nyud", "--raw", tmp_path, "--out", tmp_path / "n.h5") == 0
    output = capsys.readouterr().out
    told = "masks, images/*.png (1 files), segmentation/*.mat (4 files)"
    assert f"not used of {root}: {told}\n" in output
    assert f"not used: {tmp_path / 'NYUDv2'}\n" in output


def test_what_is_beside_the_raw_files_is_told(tmp_path, capsys):
    write_raw(tmp_path)
    (tmp_path / "all_normals.pklz").write_bytes(b"")
    data_prep.open_raw(tmp_path)
    output = capsys.readouterr().out
    assert "not used of" in output
    assert "all_normals.pklz" in output
    assert "fitted to depth" in output


def test_a_label_saved_in_colours_is_told_so(tmp_path):
    image = rawfiles.Picture(tmp_path / "a.png", np.zeros((8, 9, 3), np.uint8))
    save(tmp_path / "label.png", np.zeros((8, 9, 3), np.uint8))
    with pytest.raises(
        data_prep.PrepError, match="label.png: it is a picture in colours, a label is"
    ):
        rawfiles.load_label(tmp_path / "label.png", image, rawfiles.as_depth)


def test_a_turned_picture_is_told_with_its_turn(tmp_path):
    picture = Image.fromarray(np.zeros((8, 9, 3), np.uint8))
    for orientation, turn in ((6, "90 degrees clockwise"), (8, "90 degrees counterclockwise")):
        exif = Image.Exif()
        exif[274] = orientation
        picture.save(tmp_path / "a.jpg", exif=exif)
        save(tmp_path / "label.png", np.zeros((9, 8), np.uint8))
        image = rawfiles.load_picture(tmp_path / "a.jpg")
        with pytest.raises(data_prep.PrepError, match=f"EXIF in a.jpg turns the image by {turn}"):
            rawfiles.load_label(tmp_path / "label.png", image, rawfiles.as_depth)


def test_lists_of_ids(tmp_path):
    path = tmp_path / "train.txt"
    for text in ("a1\r\n\r\nb2\r\nc3", "\ufeffa1\n\n  b2 \n\nc3\n\n"):
        path.write_bytes(text.encode())
        assert rawfiles.read_ids(path) == ["a1", "b2", "c3"]
    for text, told in (("a1\nb2\na1\n", "lists a1 twice"), ("\n\n", "lists no image")):
        path.write_text(text)
        with pytest.raises(data_prep.PrepError, match=f"train.txt: {told}"):
            rawfiles.read_ids(path)


# --------------------------------------------------------------------------------------- bad input
def test_missing_files_name_what_to_do(tmp_path, capsys, in_small):
    write_nyud(tmp_path)
    (tmp_path / "depth/b2.npy").unlink()
    line = refused(capsys, "nyud", "--raw", tmp_path, "--out", tmp_path / "n.h5")
    assert "1 missing files, such as depth/b2.npy|.mat" in line
    assert "python data_prep.py nyud --download" in line


@pytest.mark.parametrize("dataset", ["nyud", "pascal"])
def test_a_folder_without_a_package_names_the_one_command(dataset, tmp_path, capsys):
    for raw in (tmp_path / "nowhere", tmp_path):
        line = refused(capsys, dataset, "--raw", raw, "--out", tmp_path / "o.h5")
        assert str(raw) in line
        assert f"python data_prep.py {dataset} --download --raw {raw};" in line
        assert "https://" in line


@pytest.mark.parametrize("kind", ["web page", "truncated", "empty"])
def test_a_broken_file_is_one_line_with_its_name(kind, tmp_path, capsys, in_small):
    write_nyud(tmp_path / "nyud")
    write_pascal(tmp_path / "pascal")
    out = old_file(tmp_path)
    for name in (
        "nyud/images/b2.png",
        "nyud/segmentation/b2.png",
        "nyud/depth/b2.npy",
        "nyud/normals/b2.png",
        "nyud/edge/b2.png",
        "pascal/JPEGImages/2008_000001.jpg",
        "pascal/human_parts/2008_000001.mat",
        "pascal/pascal-context/trainval/2008_000001.mat",
        "pascal/sal_distill/2008_000001.png",
    ):
        path = tmp_path / name
        good = path.read_bytes()
        break_file(path, kind)
        dataset = name.split("/")[0]
        line = refused(capsys, dataset, "--raw", tmp_path / dataset, "--out", out)
        assert str(path) in line
        assert ("web page" in line) == (kind == "web page")
        assert "is as it was before" in line
        assert is_untouched(out)
        path.write_bytes(good)


def break_file(path, kind):
    good = path.read_bytes()
    if kind == "web page":
        path.write_text("\n<!DOCTYPE html><html>404 Not Found</html>")
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(
            good[: len(good) // 10 if path.name.startswith("class") else len(good) // 2]
        )


def test_broken_raw_files_are_one_line_with_their_name(tmp_path, capsys):
    write_raw(tmp_path, zipped=True)
    for name in data_prep.RAW_FILES:
        for kind in ("web page", "truncated", "empty"):
            good = (tmp_path / name).read_bytes()
            break_file(tmp_path / name, kind)
            assert name in refused(capsys, "nyud", "--raw", tmp_path, "--out", tmp_path / "o.h5")
            (tmp_path / name).write_bytes(good)
    write_splits(tmp_path, [2, 5], [1])
    line = refused(capsys, "nyud", "--raw", tmp_path, "--out", tmp_path / "o.h5")
    assert "splits.mat: 1 of its 2 trainNdxs are not in" in line


def test_wrong_values_and_sizes_are_one_line_with_the_file(tmp_path, capsys, in_small):
    write_nyud(tmp_path / "nyud")
    write_pascal(tmp_path / "pascal")
    b2 = np.ones((39, 52), np.uint8)
    for name, value, told in (
        ("nyud/segmentation/b2.png", b2 * 41, "41"),
        ("nyud/segmentation/b2.png", b2[:, 1:], "shape"),
        ("nyud/segmentation/b2.png", np.dstack([b2] * 3), "picture in colours"),
        ("nyud/depth/b2.npy", b2[1:].astype(np.float32), "shape"),
        ("nyud/normals/b2.png", b2, "shape"),
        ("pascal/semseg/VOC12/2008_000001.png", np.full((50, 37), 21, np.uint8), "21"),
        ("pascal/sal_distill/2008_000001.png", np.full((37, 50), 21, np.uint8), "shape"),
    ):
        path = tmp_path / name
        good = path.read_bytes()
        save(path, value)
        dataset = name.split("/")[0]
        line = refused(capsys, dataset, "--raw", tmp_path / dataset, "--out", tmp_path / "o.h5")
        assert f"{path}: " in line
        assert told in line
        path.write_bytes(good)
    assert not (tmp_path / "o.h5").exists()


@pytest.mark.parametrize(
    "folder, variables, told",
    [
        ("pascal-context/trainval", {"LabelMap": np.ones((5, 5))}, "shape"),
        ("pascal-context/trainval", {"labels": np.ones((50, 37))}, "no variable 'LabelMap'"),
        ("pascal-context/trainval", {"LabelMap": np.full((50, 37), 460)}, "over 459"),
        ("human_parts", {"anno": annotation([(15, [("head", np.ones((5, 5)))])], (1, 1))}, "head"),
        (
            "human_parts",
            {"anno": annotation([(15, [("tail", np.ones((50, 37)))])], (1, 1))},
            "tail",
        ),
    ],
)
def test_wrong_variables_are_one_line_with_the_file(folder, variables, told, tmp_path):
    write_pascal(tmp_path)
    splits = data_prep.open_package(tmp_path, "pascal")
    path = tmp_path / folder / "2008_000001.mat"
    save(path, **variables)
    with pytest.raises(data_prep.PrepError) as error:
        data_prep.read_pascal(splits["train"]["2008_000001"], rawfiles.LEVELS)
    assert str(path) in str(error.value)
    assert told in str(error.value)


def test_an_image_larger_than_the_protocols_is_refused(tmp_path, capsys):
    write_nyud(tmp_path, ids=("a1", "d4"), size=(426, 560))
    line = refused(capsys, "nyud", "--raw", tmp_path, "--out", tmp_path / "o.h5")
    assert "a1 is 426 x 560, larger than 425 x 560" in line


def test_what_goes_wrong_is_one_line_and_warnings_are_silent(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with warnings.catch_warnings(), pytest.raises(data_prep.PrepError, match="a.txt: two lines$"):
        warnings.simplefilter("error")
        with rawfiles.reading(tmp_path / "a.txt"):
            warnings.warn("noise", stacklevel=1)
            raise ValueError("two\nlines")


def test_a_truncated_mat_is_never_half_read(tmp_path):
    """Cut anywhere, a .mat either fails with its name or gives all it held."""
    label = np.arange(900).reshape(30, 30) % 60
    savemat(tmp_path / "m.mat", {"other": np.arange(50), "LabelMap": label.astype(np.uint16)})
    whole = (tmp_path / "m.mat").read_bytes()
    image = rawfiles.Picture(tmp_path, np.zeros((30, 30, 3)))
    failed = 0
    for cut in range(0, len(whole), 37):
        (tmp_path / "c.mat").write_bytes(whole[:cut])
        try:
            found = rawfiles.load_label(tmp_path / "c.mat", image, np.copy, "LabelMap")
        except data_prep.PrepError as error:
            assert "c.mat" in str(error)
            failed += 1
        else:
            assert np.array_equal(found, label)
    assert failed > 10


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_read_or_refused_by_name(kind, tmp_path):
    rng = np.random.default_rng(DAMAGE.index(kind))
    write_nyud(tmp_path / "nyud", ids=("a1", "d4"))
    write_nyud(tmp_path / "mats", "astmt", ids=("a1", "d4"))
    write_pascal(tmp_path / "pascal")
    readers = []
    for root, dataset in (("nyud", "nyud"), ("mats", "nyud"), ("pascal", "pascal")):
        splits = data_prep.open_package(tmp_path / root, dataset)
        reader = {"nyud": data_prep.nyud_reader, "pascal": data_prep.pascal_reader}[dataset]
        name = next(iter(splits["train"]))
        readers.append((reader(splits), splits["train"][name]))

    refusals = 0
    for read, paths in readers:
        for path in paths.values():
            good = path.read_bytes()
            for _ in range(3):
                path.write_bytes(damaged(good, kind, rng))
                try:
                    sample, _ = read(paths)
                    assert sample["image"].dtype == np.uint8
                except data_prep.PrepError as error:
                    assert path.stem in str(error)
                    refusals += 1
            path.write_bytes(good)
    assert refusals > 5


@pytest.mark.parametrize(
    "arguments",
    [
        ["foo"],
        [],
        ["toy", "--train", "x"],
        ["toy", "--train", "0"],
        ["toy", "--height", "5000"],
        ["toy", "--seed", "-1"],
        ["toy", "--download"],
        ["nyud", "--train", "4"],
        ["nyud", "--shrink", "0"],
        ["nyud", "--shrink", "14"],
        ["check"],
        ["check", "nowhere.h5"],
    ],
)
def test_bad_arguments_are_one_line(arguments, capsys):
    try:
        assert prep(*arguments) == 2
    except SystemExit as stop:
        assert stop.code == 2
    assert error_line(capsys).startswith("data_prep.py: ")


def test_an_output_that_cannot_be_written_is_one_line(tmp_path, capsys, in_small):
    write_nyud(tmp_path / "n")
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for out in (tmp_path / "file/o.h5", Path("/proc/o.h5"), tmp_path / "folder", Path("/dev/null")):
        assert str(out) in refused(capsys, "nyud", "--raw", tmp_path / "n", "--out", out)
    assert not list((tmp_path / "folder").iterdir())
    assert not Path("/dev/null").is_file()
    out = old_file(tmp_path)
    Path(f"{out}.preview.png").mkdir()
    assert "as it was before" in refused(capsys, "nyud", "--raw", tmp_path / "n", "--out", out)
    assert out.read_text() == "the old one"


# ------------------------------------------------------------------------------------------- rooms
@pytest.mark.parametrize("shape", [(2, 600), (600, 2), (1, 1)])
def test_rooms_of_any_shape(tmp_path, shape):
    data_prep.make_toy(tmp_path / "t.h5", train=1, val=1, height=shape[0], width=shape[1])
    room = rooms.render_room([0, 0, 0], *shape)
    with h5py.File(tmp_path / "t.h5") as file, Image.open(tmp_path / "t.h5.preview.png") as sheet:
        assert min(sheet.size) > 0
        for name in data_prep.FORMAT:
            assert np.array_equal(room[name], file["train"][name][0])


# ------------------------------------------------------------------------------------------ shrink
def block_of(array, row, column, k):
    return array[row * k : (row + 1) * k, column * k : (column + 1) * k]


@pytest.mark.parametrize("k", [2, 3, 4])
def test_shrunk_arrays_pixel_by_pixel(k):
    rng = np.random.default_rng(k)
    shape = (4 * k + 1, 6 * k + k - 1)
    normal = rng.normal(size=(*shape, 3))
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    normal[rng.random(shape) < 0.6] = 0
    normal[:k, :k] = 0
    depth = rng.uniform(1, 9, shape).astype(np.float32)
    depth[rng.random(shape) < 0.6] = 0
    depth[:k, :k] = 0
    sample = {
        "image": rng.integers(0, 256, (*shape, 3), np.uint8),
        "semseg": rng.integers(0, 40, shape, np.uint8),
        "depth": depth,
        "normal": normal.astype(np.float16),
    }
    small = shrink_sample(sample, k)
    assert {name: (a.shape[:2], a.dtype) for name, a in small.items()} == {
        name: ((4, 6), a.dtype) for name, a in sample.items()
    }
    for row, column in np.ndindex(4, 6):
        blocks = {name: block_of(array, row, column, k) for name, array in sample.items()}
        mean = blocks["image"].astype(float).mean((0, 1))
        assert abs(small["image"][row, column] - mean).max() <= 0.5 + 1e-4
        assert small["semseg"][row, column] == blocks["semseg"][k // 2, k // 2]

        metres = blocks["depth"][blocks["depth"] > 0]
        assert small["depth"][row, column] == pytest.approx(metres.mean() if metres.size else 0)
        total = blocks["normal"].astype(float).sum((0, 1))
        length = np.linalg.norm(total)
        if length > 0.5:
            assert small["normal"][row, column] == pytest.approx(total / length, abs=2e-3)
        elif length == 0:
            assert not small["normal"][row, column].any()
    assert small["depth"][0, 0] == 0


def test_shrunk_boundaries_are_one_pixel_wide():
    edge = np.zeros((80, 80), np.uint8)
    edge[21] = 1  # straight
    edge[np.arange(80), np.arange(80)] = 1  # a diagonal
    edge[62:66] = 1  # over a border of blocks
    small = shrink_sample({"boundary": edge}, 4)["boundary"]
    holds = edge.reshape(20, 4, 20, 4).any((1, 3))
    assert np.array_equal(small, skimage_thin(holds))
    assert small[5, 1:].all()
    assert not (small[:-1, :-1] & small[1:, 1:] & small[:-1, 1:] & small[1:, :-1]).any()


def test_shrunk_boundaries_are_ignored_where_the_centre_is():
    edge = np.zeros((8, 8), np.uint8)
    edge[:4] = 255
    edge[0, 0] = 1
    assert shrink_sample({"boundary": edge}, 4)["boundary"].tolist() == [[1, 255], [0, 0]]


def test_where_shrinking_loses_every_part_there_are_no_parts():
    """As in an image that had none: all ignored. One that keeps a part keeps its background."""
    lost = np.zeros((8, 8), np.uint8)
    lost[0, 0] = 3
    kept = lost.copy()
    kept[2, 6] = 4
    assert shrink_sample({"parsing": lost}, 4)["parsing"].tolist() == [[255, 255], [255, 255]]
    assert shrink_sample({"parsing": kept}, 4)["parsing"].tolist() == [[0, 4], [0, 0]]
    assert shrink_sample({"saliency": lost * 0}, 4)["saliency"].tolist() == [[0, 0], [0, 0]]


def test_shrunk_files_say_so(tmp_path, capsys):
    truth = write_nyud(tmp_path)
    assert prep("nyud", "--raw", tmp_path, "--shrink", 4, "--out", tmp_path / "n.h5") == 0
    assert "1.9 pixels here, 7.7 without" in capsys.readouterr().out
    with h5py.File(tmp_path / "n.h5") as file:
        assert file.attrs["shrink"] == 4
        assert file["train/image"].shape == (3, 106, 140, 3)
        assert file["train/size"][0].tolist() == [37 // 4, 53 // 4]
        label = truth["a1"]["segmentation"][2:36:4, 2:52:4]
        found = sample_of(file["train"], 0)["semseg"]
        assert np.array_equal(found, np.where(label % 255 == 0, 255, label - 1))
    assert prep("check", tmp_path / "n.h5") == 0


def test_shrinking_to_nothing_is_refused(tmp_path, capsys):
    write_nyud(tmp_path / "n", size=(9, 60))
    for k, told in (
        (14, "--shrink 14 leaves under 32 pixels; 13 is the most"),
        (10, "nothing is left"),
    ):
        line = refused(
            capsys, "nyud", "--raw", tmp_path / "n", "--shrink", k, "--out", tmp_path / "o"
        )
        assert told in line


# ---------------------------------------------------------------------------------------- download
class Site:
    """A server on 127.0.0.1: what it serves, how it misbehaves, what it was asked."""

    def __init__(self):
        self.files = {}  # path -> bytes
        self.breaks = {}  # path -> after how many bytes each answer breaks off, one by one
        self.statuses = {}  # path -> statuses to answer, one by one, before it serves
        self.validators = True  # ETag
        self.ranges = True
        self.asked = []  # (path, Range or None)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        threading.Thread(target=self.server.serve_forever, args=[0.01], daemon=True).start()

    def url(self, path):
        return f"http://127.0.0.1:{self.server.server_port}{path}"

    def handler(site):
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                wanted = self.headers["Range"]
                site.asked.append((self.path, wanted))
                if site.statuses.get(self.path):
                    self.send_error(site.statuses[self.path].pop(0))
                    return
                if self.path not in site.files:
                    self.send_error(404)
                    return
                content = site.files[self.path]
                tag = f'"{hashlib.md5(content).hexdigest()}"'
                start = 0
                if wanted and site.ranges and self.headers["If-Range"] in (None, tag):
                    start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                    if start >= len(content):
                        self.send_error(416)
                        return
                self.send_response(206 if start else 200)
                if start:
                    self.send_header(
                        "Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"
                    )
                if site.validators:
                    self.send_header("ETag", tag)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                body = content[start:]
                if site.breaks.get(self.path):
                    body = body[: site.breaks[self.path].pop(0)]
                with contextlib.suppress(ConnectionError):  # the client has gone
                    self.wfile.write(body)

        return Handler


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0)
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


@pytest.fixture
def package(tmp_path):
    """The bytes of NYUD_MT.tgz, as the field serves it."""
    write_nyud(tmp_path / "source/NYUD_MT", "astmt")
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        archive.add(tmp_path / "source/NYUD_MT", "NYUD_MT")
    return data.getvalue()


def serve(monkeypatch, *sources):
    """These addresses in place of the real ones."""
    nyud = dataclasses.replace(data_prep.PACKAGES["nyud"], sources=sources)
    monkeypatch.setitem(data_prep.PACKAGES, "nyud", nyud)


def content(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_one_command_fetches_unpacks_and_converts(
    in_small, site, package, tmp_path, monkeypatch, capsys
):
    """The first address is dead, the second a web page, the third breaks off in the middle."""
    site.files["/page.tgz"] = b"<html>not here any more</html>"
    site.files["/NYUD_MT.tgz"] = package
    site.breaks["/NYUD_MT.tgz"] = [len(package) // 2]
    serve(
        monkeypatch,
        Source(site.url("/gone.tgz"), "NYUD_MT"),
        Source(site.url("/page.tgz"), "NYUD_MT"),
        Source(site.url("/NYUD_MT.tgz"), "NYUD_MT"),
    )
    raw = tmp_path / "raw"
    (raw / "mine").mkdir(parents=True)
    (raw / "mine/notes.txt").write_text("kept")
    command = ("nyud", "--download", "--raw", raw, "--out", tmp_path / "n.h5")
    assert prep(*command) == 0
    output = capsys.readouterr().out
    assert "404" in output
    assert "a web page" in output
    assert "trying again" in output
    assert "0:00:00 left" in output
    assert site.asked[-1] == ("/NYUD_MT.tgz", f"bytes={len(package) // 2}-")
    assert content(raw / "NYUD_MT") == content(tmp_path / "source/NYUD_MT")
    assert (raw / "NYUD_MT.tgz").read_bytes() == package
    assert {path.name for path in raw.iterdir()} == {"NYUD_MT", "NYUD_MT.tgz", "mine"}
    assert (raw / "mine/notes.txt").read_text() == "kept"

    requests = len(site.asked)  # the same again asks for nothing
    assert prep(*command) == 0
    assert "is there already" in capsys.readouterr().out
    shutil.rmtree(raw / "NYUD_MT")
    assert prep(*command) == 0
    assert len(site.asked) == requests


def test_a_download_goes_on_in_another_run(site, tmp_path):
    whole = np.random.default_rng(0).bytes(3_000_000)
    site.files["/a.tgz"] = whole
    site.breaks["/a.tgz"] = [1_000_000, 1, 0, 0, 0]
    with pytest.raises(download.NoFile, match="broke off, 3 times"):
        download.fetch(site.url("/a.tgz"), tmp_path / "a.tgz")
    assert not (tmp_path / "a.tgz").exists()
    download.fetch(site.url("/a.tgz"), tmp_path / "a.tgz")
    assert (tmp_path / "a.tgz").read_bytes() == whole
    ranges = [wanted for _, wanted in site.asked]
    assert ranges == [None, "bytes=1000000-", *["bytes=1000001-"] * 4]
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


@pytest.mark.parametrize("case", ["changed", "no validator", "no ranges", "other address"])
def test_parts_of_two_files_are_never_joined(case, site, tmp_path):
    rng = np.random.default_rng(0)
    site.files["/a.tgz"] = site.files["/b/a.tgz"] = rng.bytes(900_000)
    site.breaks["/a.tgz"] = [500_000, 0, 0, 0]
    site.validators = case != "no validator"
    with pytest.raises(download.NoFile):
        download.fetch(site.url("/a.tgz"), tmp_path / "a.tgz")
    site.breaks.clear()
    address = "/a.tgz"
    if case == "changed":
        site.files["/a.tgz"] = rng.bytes(800_000)
    if case == "no ranges":
        site.ranges = False
    if case == "other address":
        address = "/b/a.tgz"
        site.files[address] = rng.bytes(900_000)
    download.fetch(site.url(address), tmp_path / "a.tgz")
    assert (tmp_path / "a.tgz").read_bytes() == site.files[address]


def test_a_part_longer_than_the_file_begins_anew(site, tmp_path):
    site.files["/a.tgz"] = b"0123456789"
    partial_file = download.Partial(tmp_path / "a.tgz.part", tmp_path / "a.tgz.part.json")
    partial_file.path.write_bytes(bytes(20))
    tag = hashlib.md5(b"0123456789").hexdigest()
    partial_file.remember(site.url("/a.tgz"), {"ETag": f'"{tag}"'})
    download.fetch(site.url("/a.tgz"), tmp_path / "a.tgz")
    assert (tmp_path / "a.tgz").read_bytes() == b"0123456789"


def test_a_weak_etag_is_no_validator():
    headers = {"ETag": 'W/"1"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
    assert download.strong_validator(headers) == headers["Last-Modified"]
    assert download.strong_validator({"ETag": '"1"', **headers} | {"ETag": '"1"'}) == '"1"'


def test_a_server_that_is_busy_is_asked_again(site, tmp_path):
    site.files["/a.tgz"] = b"content"
    site.statuses["/a.tgz"] = [503, 429]
    download.fetch(site.url("/a.tgz"), tmp_path / "a.tgz")
    assert (tmp_path / "a.tgz").read_bytes() == b"content"


def test_a_download_that_fails_is_one_line_with_what_was_tried(site, tmp_path, monkeypatch, capsys):
    site.files["/page.tgz"] = b"  <!DOCTYPE html>"
    nobody = "http://127.0.0.1:9/NYUD_MT.tgz"
    serve(
        monkeypatch,
        Source(site.url("/gone.tgz"), "NYUD_MT"),
        Source(site.url("/page.tgz"), "NYUD_MT"),
        Source(nobody, "NYUD_MT"),
    )
    out = old_file(tmp_path)
    raw = tmp_path / "raw"
    line = refused(capsys, "nyud", "--download", "--raw", raw, "--out", out)
    assert f"{site.url('/gone.tgz')}: the server answers 404" in line
    assert f"{site.url('/page.tgz')}: a web page" in line
    assert f"{nobody}: no connection" in line
    assert f"unpack it into {raw} and type python data_prep.py nyud --raw {raw}" in line
    assert is_untouched(out)
    assert not list(raw.iterdir())


def test_a_full_disk_is_told_before_the_download(site, tmp_path, monkeypatch, capsys):
    site.files["/NYUD_MT.tgz"] = bytes(5_000_000)
    serve(monkeypatch, Source(site.url("/NYUD_MT.tgz"), "NYUD_MT"))
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    line = refused(capsys, "nyud", "--download", "--raw", tmp_path, "--out", tmp_path / "n.h5")
    assert "needs 5 MB, 1 MB are free" in line


def test_a_disk_that_fills_while_a_package_comes_is_told_by_its_folder(
    site, tmp_path, monkeypatch, capsys
):
    site.files["/NYUD_MT.tgz"] = bytes(3_000_000)
    serve(monkeypatch, Source(site.url("/NYUD_MT.tgz"), "NYUD_MT"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        line = refused(capsys, "nyud", "--download", "--raw", tmp_path, "--out", tmp_path / "n.h5")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert line.startswith(f"data_prep.py: {tmp_path}: cannot be written")


def test_the_one_command_has_a_folder_of_its_own():
    args = data_prep.parse_arguments(["nyud", "--download"])
    assert (args.raw, args.out) == (Path("data/raw"), Path("data/nyud.h5"))


def test_raw_files_in_the_folder_do_not_stand_for_the_package(
    site, package, tmp_path, monkeypatch, capsys
):
    site.files["/NYUD_MT.tgz"] = package
    serve(monkeypatch, Source(site.url("/NYUD_MT.tgz"), "NYUD_MT"))
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / data_prep.RAW_MAT).write_bytes(b"not read")
    for told in ("unpacking", "is there already"):
        assert prep("nyud", "--download", "--raw", raw, "--out", tmp_path / "n.h5") == 0
        output = capsys.readouterr().out
        assert told in output
        assert f"reading {raw / 'NYUD_MT'}" in output


def test_a_folder_of_the_users_is_not_replaced(site, package, tmp_path, monkeypatch, capsys):
    serve(monkeypatch, Source(site.url("/NYUD_MT.tgz"), "NYUD_MT"))
    raw = tmp_path / "raw"
    (raw / "NYUD_MT").mkdir(parents=True)
    (raw / "NYUD_MT/mine.txt").write_text("kept")
    for archive in (False, True):
        if archive:
            (raw / "NYUD_MT.tgz").write_bytes(package)
        before = content(raw)
        line = refused(capsys, "nyud", "--download", "--raw", raw, "--out", tmp_path / "n.h5")
        assert f"{raw / 'NYUD_MT'} is there already" in line
        assert content(raw) == before
    assert not site.asked


def tar_of(*members):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = target
            body = b"evil" if kind == tarfile.REGTYPE else b""
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return data.getvalue()


def zip_of(*members):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, "../../target")
    return data.getvalue()


EVIL = Path(f"/tmp/evil-{os.getpid()}")
FILE = tarfile.REGTYPE
LINK = tarfile.SYMTYPE
HOSTILE = {
    "tar up": tar_of(("good/a", FILE, ""), ("../evil", FILE, "")),
    "tar up inside": tar_of(("good/../../evil", FILE, "")),
    "tar absolute": tar_of((str(EVIL), FILE, "")),
    "tar drive": tar_of(("C:\\evil", FILE, "")),
    "tar link": tar_of(("good", LINK, ".."), ("good/evil", FILE, "")),
    "tar absolute link": tar_of(("good", LINK, "/etc")),
    "tar hard link": tar_of(("good", tarfile.LNKTYPE, "/etc/passwd")),
    "tar device": tar_of(("good", tarfile.CHRTYPE, "")),
    "tar pipe": tar_of(("good", tarfile.FIFOTYPE, "")),
    "zip up": zip_of(("good/a", 0o644), ("../evil", 0o644)),
    "zip absolute": zip_of((str(EVIL), 0o644)),
    "zip backslash": zip_of(("..\\evil", 0o644)),
    "zip link": zip_of(("good", 0o120777)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused_as_a_whole(case, tmp_path):
    folder = tmp_path / "a/b"
    folder.mkdir(parents=True)
    archive = folder / "NYUD_MT.tgz"
    archive.write_bytes(HOSTILE[case])
    before = content(tmp_path)
    with pytest.raises(data_prep.PrepError, match="NYUD_MT.tgz holds .*not unpacked"):
        download.unpack(archive, folder)
    assert content(tmp_path) == before
    assert list(folder.iterdir()) == [archive]
    assert not EVIL.exists()


@pytest.mark.parametrize("kind", ["cut", "bits", "nonsense", "empty", "empty tar"])
def test_a_damaged_archive_is_one_line_and_kept(kind, package, tmp_path):
    archive = tmp_path / "raw/NYUD_MT.tgz"
    archive.parent.mkdir()
    middle = len(package) // 2
    broken = {
        "cut": package[:middle],
        "bits": package[:middle] + b"????????" + package[middle + 8 :],
        "nonsense": b"nonsense" * 99,
        "empty": b"",
        "empty tar": tar_of(),
    }
    archive.write_bytes(broken[kind])
    with pytest.raises(data_prep.PrepError, match="raw.*(damaged|no tar or zip|is empty)"):
        download.unpack(archive, archive.parent)
    assert list(archive.parent.iterdir()) == [archive]


def test_a_zip_is_unpacked_too(tmp_path):
    write_nyud(tmp_path / "source/NYUD_MT")
    shutil.make_archive(tmp_path / "raw/package", "zip", tmp_path / "source")
    download.unpack(tmp_path / "raw/package.zip", tmp_path / "raw")
    assert content(tmp_path / "raw/NYUD_MT") == content(tmp_path / "source/NYUD_MT")


# -------------------------------------------------------------------------------------- the writer
def child(arguments, **options):
    return subprocess.Popen(
        [sys.executable, data_prep.__file__, *map(str, arguments)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        **options,
    )


@pytest.mark.parametrize("size", [1000, 1_500_000, 6_000_000])
def test_a_full_disk_is_one_line_and_keeps_the_old_file(size, tmp_path):
    write_nyud(tmp_path / "n")
    out = old_file(tmp_path)
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
    process = child(["nyud", "--raw", tmp_path / "n", "--out", out], preexec_fn=limit)
    errors = process.communicate()[1].splitlines()
    assert process.returncode == 2
    assert len(errors) == 1
    assert str(out) in errors[0]
    assert is_untouched(out)


@pytest.mark.parametrize(
    "number, to_group",
    [(signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, False)],
)
def test_an_interrupted_run_keeps_the_old_file_and_leaves_no_process(tmp_path, number, to_group):
    write_nyud(tmp_path / "n", ids=[f"x{i}" for i in range(60)], size=(40, 100))
    out = old_file(tmp_path)
    process = child(["nyud", "--raw", tmp_path / "n", "--out", out])
    while not list(out.parent.glob(".*")) and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.1)
    if to_group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    errors = process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == 2
    assert len(errors) == 1
    assert "interrupted" in errors[0]
    assert is_untouched(out)
    with pytest.raises(ProcessLookupError):  # no worker is left
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.05)


def test_a_signal_that_ends_the_workers_too_is_told_as_one(tmp_path, monkeypatch, capsys):
    """Whichever reaches the program first."""
    write_nyud(tmp_path / "n")

    def ended(file, sink, splits, work):
        os.kill(os.getpid(), signal.SIGTERM)
        raise BrokenProcessPool

    monkeypatch.setattr(data_prep, "write_content", ended)
    line = refused(capsys, "nyud", "--raw", tmp_path / "n", "--out", tmp_path / "o.h5")
    assert "interrupted" in line


def test_an_interrupted_download_goes_on(site, package, tmp_path):
    """Ctrl-C in the middle: what has come stays."""
    site.files["/a.tgz"] = package
    came = []

    def interrupted(response):
        if came:
            raise KeyboardInterrupt
        came.append(response.read(100))
        return came[0]

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(download, "read_block", interrupted)
        download.fetch(site.url("/a.tgz"), tmp_path / "a.tgz")
    assert (tmp_path / "a.tgz.part").stat().st_size == 100
    download.fetch(site.url("/a.tgz"), tmp_path / "a.tgz")
    assert (tmp_path / "a.tgz").read_bytes() == package
    assert site.asked[-1] == ("/a.tgz", "bytes=100-")


def test_check_finds_what_is_not_as_it_was_written(tmp_path, capsys):
    path = tmp_path / "t.h5"
    data_prep.make_toy(path, train=3, val=2, height=20, width=30)
    capsys.readouterr()
    assert prep("check", path) == 0
    assert "5 images, all whole" in capsys.readouterr().out
    whole = path.read_bytes()
    with h5py.File(path) as file:
        names = {name for name in file["val"] if name != "crc32"}
        chunk = file["train/semseg"].id.get_chunk_info(2)
    assert names == {*data_prep.FORMAT, "id", "size"}
    for name in names:
        with h5py.File(path, "r+") as file:
            old = file["val"][name][1]
            file["val"][name][1] = b"other" if name == "id" else old + np.ones_like(old)
        assert "1 of 5" in refused(capsys, "check", path)
        path.write_bytes(whole)

    middle = chunk.byte_offset + chunk.size // 2  # so that gzip fails
    path.write_bytes(whole[:middle] + b"????" + whole[middle + 4 :])
    assert prep("check", path) == 2
    assert "damaged: train train_0002\n" in capsys.readouterr().out
    path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        del file["val/crc32"]
    assert "no checksums" in refused(capsys, "check", path)


@pytest.mark.parametrize("kind", DAMAGE)
def test_check_of_a_damaged_file_ends_well_or_in_one_line(kind, tmp_path, capsys):
    rng = np.random.default_rng(0)
    path = tmp_path / "t.h5"
    data_prep.make_toy(path, train=2, val=1, height=20, width=30)
    whole = path.read_bytes()
    for _ in range(10):
        path.write_bytes(damaged(whole, kind, rng))
        capsys.readouterr()
        if prep("check", path) == 2:
            assert str(path) in error_line(capsys)


def test_memory_stays_flat(tmp_path):
    """Peak of the parent and of any worker, 12 raw frames: what 300 need, too."""
    write_raw(tmp_path)
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "r+") as file:
        for name in ("images", "depths", "labels", "instances"):
            four = file[name][:]
            del file[name]
            file[name] = np.concatenate([four] * 3)
    write_splits(tmp_path, range(1, 9), range(9, 13))
    code = """import resource, sys, data_prep
status = data_prep.main(sys.argv[1:])
own = open('/proc/self/status').read().split('VmHWM:')[1].split()[0]  # ru_maxrss is the test's
workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(status, int(own) // 1024, workers // 1024)"""
    done = subprocess.run(
        [sys.executable, "-c", code, "nyud", "--raw", tmp_path, "--out", tmp_path / "o.h5"],
        cwd=Path(data_prep.__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    status, parent, worker = map(int, done.stdout.splitlines()[-1].split())
    assert status == 0
    assert parent < 300
    assert worker < 300


def test_results_do_not_pile_up():
    """At most ahead + 1 calls are begun before the first result is taken, and the order is kept."""
    begun = []

    def square(x):
        begun.append(x)
        return x**2

    with ThreadPoolExecutor(2) as pool:
        for index, result in enumerate(in_order(pool, square, range(99), 4)):
            assert result == index**2
            assert len(begun) <= index + 5
    assert len(begun) == 99


# ------------------------------------------------------------------------------------- the summary
def counted(*rows):
    """Counts of some images from {value: pixels}."""
    counts = np.zeros((len(rows), 256), int)
    for row, pixels in zip(counts, rows):
        for value, number in pixels.items():
            row[value] = number
    return counts


def test_the_summary_has_a_line_per_task_and_marks_what_is_unusual(capsys):
    counts = {
        "semseg": counted({0: 50, 2: 10, 255: 40}, {0: 90, 255: 10}),
        "boundary": counted({0: 95, 1: 5}, {0: 97, 1: 3}),
        "depth": counted({12: 50, 30: 50}, {255: 100}),
        "normal": counted({0: 4, 255: 96}, {0: 4, 255: 96}),
    }
    names = {"semseg": ("wall", "bed", "lamp"), "boundary": ("background", "boundary")}
    summarise("train", counts, names)
    assert capsys.readouterr().out.splitlines() == [
        "train semseg        2 images,  75.0 % valid, 2 of 3 classes",
        "    ! never occurs: bed",
        "train boundary      2 images, 100.0 % valid, 4.0 % boundary",
        "train depth         1 images,  50.0 % valid, 1.2 to 3.0 m, half of it within 1.3 m",
        "    ! 1 images without a label",
        "train normal        2 images,   4.0 % valid",
        "    ! few valid pixels: 4.0 %",
    ]


def test_a_long_list_of_absent_classes_is_wrapped(capsys):
    names = {"semseg": data_prep.NYUD_CLASSES}
    summarise("val", {"semseg": counted({0: 9})}, names)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 96
    assert lines[1].startswith("    ! never occurs: floor, cabinet, bed")
    assert lines[-1].endswith("otherprop")


# --------------------------------------------------------------------------------- fitted normals
KINECT = (518.8579, 519.4696, 325.5824, 253.7362)


def rays():
    """(480, 640, 3) viewing rays of the Kinect with z = 1."""
    fx, fy, cx, cy = KINECT
    y, x = np.mgrid[:480, :640]
    return np.dstack([(x - cx) / fx, (y - cy) / fy, np.ones((480, 640))])


def fitted(depth):
    """Unit normals, 0 where there are none."""
    normals = normals_from_depth(depth.astype(np.float32), KINECT)
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    return normals / np.where(length > 1e-6, length, np.inf)


def degrees(a, b):
    difference = np.linalg.norm(a - b, axis=-1)
    total = np.linalg.norm(a + b, axis=-1)
    return np.degrees(2 * np.arctan2(difference, total))


@pytest.mark.parametrize(
    "normal, offset",
    [((0, 0, -1), 2), ((0, -1, -0.2), 1.5), ((0.6, -0.3, -0.7), 2), ((-0.9, 0.1, -0.3), 3)],
)
def test_normals_of_planes(normal, offset):
    n = np.array(normal) / np.linalg.norm(normal)
    depth = -offset / (rays() @ n)
    seen = (depth > 0) & (depth < 12)
    seen[200:220, 300:330] = False  # a hole
    depth = np.where(seen, depth, 0)
    found = fitted(depth)
    assert not found[~seen].any()
    assert degrees(found, n)[seen].mean() < 0.1
    noisy = depth * (1 + 0.002 * np.random.default_rng(0).normal(size=depth.shape))
    assert degrees(fitted(noisy), n)[seen].mean() < 4


@pytest.mark.parametrize(
    "centre, radius",
    [((0, 0, 2), 0.5), ((0.3, -0.2, 3), 1), ((-0.5, 0.2, 1.5), 0.3)],
)
def test_normals_of_spheres_before_a_wall(centre, radius):
    ray = rays()
    c = np.array(centre)
    a = (ray**2).sum(-1)
    b = ray @ c
    root = b * b - a * (c @ c - radius**2)
    hit = root > 0
    depth = np.where(hit, (b - np.sqrt(np.maximum(root, 0))) / a, 6)
    true = np.where(hit[..., None], (ray * depth[..., None] - c) / radius, [0, 0, -1])
    error = degrees(fitted(depth), true)
    inside = hit & (root > 0.15 * root.max())
    assert error[inside].mean() < 0.5
    assert error[hit].mean() < 2
    assert error[~hit].max() < 0.5  # right up to the edge of depth


def test_normals_do_not_cross_a_crease():
    floor = 1.2 / np.maximum(rays()[..., 1], 1e-9)
    wall = np.full((480, 640), 3.0)
    true = np.where((floor < wall)[..., None], [0, -1, 0], [0, 0, -1])
    assert degrees(fitted(np.minimum(floor, wall)), true).mean() < 0.3
