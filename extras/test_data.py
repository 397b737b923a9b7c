# SPDX-License-Identifier: MIT
"""Tests of data_prep.py on miniature folders in the official layouts, of damage to any file, of normals."""
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from scipy.io import savemat

import data_prep
import mtcd
from extras import compare, odsf, peers, predict, rooms
from extras.datafile import in_order
from extras.normals import normals_from_depth
from test_mtcd import (
    TASKS,
    end,
    ends_in_one_line,
    files,
    main,
    one_line,
    quick,
    random_sample,
    write_file,
)

pytest_plugins = ["test_mtcd"]  # its fixtures


@pytest.fixture
def plots():
    pytest.importorskip("matplotlib")


def skimage_thin(mask):
    return pytest.importorskip("skimage.morphology").thin(mask)


def check_normals(stored, decoded, valid):
    """Unit vectors along `decoded` where `valid`, exactly 0 elsewhere."""
    assert stored.dtype == np.float16
    assert not stored[~valid].any()
    unit = decoded[valid] / np.linalg.norm(decoded[valid], axis=1, keepdims=True)
    assert np.abs(stored[valid].astype(float) - unit).max(initial=0) < 1e-3


def of_8_bits(raw):
    """-> vectors, which of them are there."""
    vectors = raw.astype(int) * 2 / 255 - 1
    return vectors, (vectors ** 2).sum(-1) > 0.25


def check_padding(group, i):
    """Only the ignored value below and right of the sample; -> its (h, w) part of each array."""
    h, w = group["size"][i]
    arrays = {name: group[name][i] for name in group.keys() - {"id", "size", "crc32"}}
    for name, a in arrays.items():
        ignored = 0 if name in ("image", "depth", "normal") else 255
        assert (a[h:] == ignored).all() and (a[:, w:] == ignored).all(), name
    return {name: a[:h, :w] for name, a in arrays.items()}


def save(path, array=None, **variables):
    """Array to path, whatever its extension; .mat takes the variables."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".mat":
        savemat(path, variables, do_compression=True)
    elif path.suffix == ".txt":
        path.write_bytes(array.encode())
    else:
        mode = "CMYK" if array.shape[2:] == (4,) else None
        Image.fromarray(array, mode).save(path, **{"quality": 95} if path.suffix == ".jpg" else {})


def prep(*args):
    return data_prep.main([str(a) for a in args])


def fails(capfd, *args):
    """The run ends with status 2 and one line on stderr; -> that line."""
    assert prep(*args) == 2
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1 and "Traceback" not in err, err
    return err


def old_file(folder):
    """A data file of before, beside another file and nothing else."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    save(folder / "out/o.txt", "")
    (folder / "out/o.h5").write_text("the old one")
    return folder / "out/o.h5"


def untouched(out):
    return out.read_text() == "the old one" and len(list(out.parent.iterdir())) == 2


# ----------------------------------------------------------------------------------- NYUD, packaged
FOLDERS = "images", "segmentation", "depth", "normals", "edge"
VARIANTS = {"astmt": dict(zip(FOLDERS, ("jpg", "mat", "mat", "jpg", "png"))),
            "mti": dict(zip(FOLDERS, ("jpg", "png", "npy", "npy", "npy"))),
            "invpt": dict(zip(FOLDERS, ("png", "png", "npy", "png", "png")))}


def write_nyud(root, kind="invpt", ids=("a1", "b2", "c3", "d4"), size=(37, 53), seed=0):
    """-> {id: the arrays as they were meant}."""
    rng, truth, ends = np.random.default_rng(seed), {}, VARIANTS[kind]
    for n, name in enumerate(ids):
        h, w = size[0] + 2 * n, size[1] - n
        t = {"images": rng.integers(0, 256, (h, w, 3), np.uint8),
             "segmentation": rng.integers(0, 41, (h, w), np.uint8),
             "depth": rng.uniform(.5, 9, (h, w)).astype(np.float32),
             "edge": (rng.random((h, w)) < .2).astype(np.uint8)}
        t["segmentation"][:2, :3] = 255
        t["depth"][0, :4] = 0, -1, np.nan, np.inf
        v = rng.normal(size=(h, w, 3))
        v /= np.linalg.norm(v, axis=-1, keepdims=True)
        v[h // 2:, w // 2:] = 0
        eight_bits = np.floor((v + 1) * 127.5).astype(np.uint8)
        t["normals"] = v.astype(np.float32) if ends["normals"] == "npy" else eight_bits
        for folder, a in t.items():
            stored = a * np.uint8(255) if (folder, ends[folder]) == ("edge", "png") else a
            save(root / f"{folder}/{name}.{ends[folder]}", stored, **{folder: a})
        truth[name] = t
    save(root / "gt_sets/train.txt", "".join(f"{n}\n" for n in ids[:-1]))
    save(root / "gt_sets/val.txt", f"{ids[-1]}\n")
    return truth


@pytest.mark.parametrize("kind", VARIANTS)
def test_nyud_packaged(tmp_path, kind, capfd):
    root = tmp_path / ("NYUDv2" if kind == "invpt" else "NYUD_MT")
    truth = write_nyud(root, kind)
    assert prep("nyud", "--raw", tmp_path if kind == "mti" else root, "--out", tmp_path / "o/n.h5") == 0
    with h5py.File(tmp_path / "o/n.h5") as file:
        assert file.attrs["dataset"] == "nyud" and file.attrs["format"] == 2
        assert file["train/semseg"].compression and not file["train/normal"].compression
        names = list(file.attrs["semseg_classes"])
        assert len(names) == 40 and (names[0], names[39]) == ("wall", "otherprop")
        assert names[19] == "floor mat"
        assert list(file.attrs["boundary_classes"]) == ["background", "boundary"]
        assert [*file["train/id"].asstr()] == ["a1", "b2", "c3"]
        assert [*file["val/id"].asstr()] == ["d4"]
        assert {k: (v.shape, v.dtype.name) for k, v in file["train"].items() if k != "id"} == {
            "image": ((3, 425, 560, 3), "uint8"), "semseg": ((3, 425, 560), "uint8"),
            "size": ((3, 2), "int32"), "depth": ((3, 425, 560), "float32"),
            "boundary": ((3, 425, 560), "uint8"), "normal": ((3, 425, 560, 3), "float16"),
            "crc32": ((3,), "uint32")}
        for i, (name, t) in enumerate(truth.items()):
            got = check_padding(file["train" if i < 3 else "val"], i % 3)
            image = np.asarray(Image.open(root / f"images/{name}.{VARIANTS[kind]['images']}"))
            assert (got["image"] == image).all() and image.shape == t["images"].shape
            for y, x in np.ndindex(t["segmentation"].shape):
                label, d = int(t["segmentation"][y, x]), t["depth"][y, x]
                assert got["semseg"][y, x] == (255 if label in (0, 255) else label - 1)
                assert got["depth"][y, x] == (d if 0 < d < 1e9 else 0)
                assert got["boundary"][y, x] == t["edge"][y, x]
            if VARIANTS[kind]["normals"] == "npy":
                raw = t["normals"].astype(float)
                check_normals(got["normal"], raw, raw.any(-1))
            else:
                raw = np.asarray(Image.open(root / f"normals/{name}.{VARIANTS[kind]['normals']}"))
                check_normals(got["normal"], *of_8_bits(raw))
                assert not got["normal"][-1, -1].any()
    out = " ".join(capfd.readouterr().out.split())
    assert "train semseg 3 images" in out and "40 of 40 classes" in out and "/s, 0 s left" in out
    with Image.open(tmp_path / "o/n.h5.preview.png") as picture:
        assert picture.size[0] > 1000 and len(np.unique(np.asarray(picture))) > 50
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["n.h5", "n.h5.preview.png"]


def test_id_lists(tmp_path, capfd):
    write_nyud(tmp_path)
    for text in ("a1\r\n\r\nb2\r\nc3", "\ufeffa1\n\n  b2 \n\nc3\n\n"):
        save(tmp_path / "gt_sets/train.txt", text)
        assert prep("nyud", "--raw", tmp_path, "--out", tmp_path / "n.h5") == 0
        with h5py.File(tmp_path / "n.h5") as file:
            assert [*file["train/id"].asstr()] == ["a1", "b2", "c3"]
    capfd.readouterr()
    for text, word in (("a1\nb2\na1\n", "lists a1 twice"), ("\n\n", "lists no image")):
        save(tmp_path / "gt_sets/train.txt", text)
        line = fails(capfd, "nyud", "--raw", tmp_path, "--out", tmp_path / "n.h5")
        assert "train.txt" in line and word in line


def test_missing_normals_survive_jpeg(tmp_path):
    """Grey holes stay missing, but for a few pixels at their edges; hardly a good normal goes."""
    rng, shape = np.random.default_rng(0), (210, 280)
    slope = [ndimage.gaussian_filter(rng.normal(size=shape), 8) * 30 for _ in range(2)]
    normals = np.dstack([*slope, -np.ones(shape)])
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    missing = ndimage.gaussian_filter(rng.normal(size=shape), 8) > 0.02
    missing[:12] = missing[:, :10] = True  # as at a sensor's rim
    inside = ndimage.binary_erosion(missing, iterations=8, border_value=1)
    for quality in (75, 85, 95):
        for grey in (127, 128):
            picture = np.floor((normals + 1) * 127.5).astype(np.uint8)
            picture[missing] = grey
            Image.fromarray(picture).save(tmp_path / "n.jpg", quality=quality)
            raw = np.asarray(Image.open(tmp_path / "n.jpg"))
            valid = data_prep.as_normals(raw).any(-1)
            assert np.mean((raw[missing] < 127).any(-1) | (raw[missing] > 128).any(-1)) > 0.1
            assert valid[missing].mean() < 0.02 and valid[~missing].mean() > 0.99
            assert not valid[inside].any()


# --------------------------------------------------------------------------------------- NYUD, raw
def write_raw(root, zipped=None):
    """4 frames with MATLAB's axes -> images, depths, labels, instances, mapping, normals."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (4, 480, 640, 3), np.uint8)
    depths = rng.uniform(1, 5, (4, 480, 640)).astype(np.float32)
    depths[0, 100:110, 200:220] = 0
    labels = rng.integers(0, 895, (4, 8, 8), np.uint16).repeat(60, 1).repeat(80, 2)
    instances = rng.integers(1, 3, (4, 24, 16), np.uint8).repeat(20, 1).repeat(40, 2)
    labels[:, 180:240, 160:240] = 0
    labels[:, 240:300, 320:400], labels[:, 240:300, 400:480] = 100, 101  # equal sums with
    instances[:, 240:300, 320:400], instances[:, 240:300, 400:480] = 2, 1  # their instances
    root.mkdir(parents=True, exist_ok=True)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        file["images"], file["depths"] = images.transpose(0, 3, 2, 1), depths.transpose(0, 2, 1)
        file["labels"] = labels.transpose(0, 2, 1)
        file["instances"] = instances.transpose(0, 2, 1)
    mapping = rng.integers(1, 41, (1, 894), np.uint8)
    names = np.array([[f"class {i}" for i in range(40)]], object)
    savemat(root / "classMapping40.mat", {"mapClass": mapping, "className": names})
    savemat(root / "splits.mat", {"trainNdxs": np.uint16([[2], [4]]), "testNdxs": np.uint16([[1], [3]])})
    normals = rng.integers(0, 256, (4, 480, 640, 3), np.uint8)
    normals[:, 60:70, 80:90] = 127
    if zipped:
        with zipfile.ZipFile(root / "nyu_normals_gt.zip", "w") as archive:
            for n in range(4):
                mask = np.uint8(255) * (np.arange(640) > 300 + n)[None].repeat(480, 0)
                for name, a in ((f"{'train' if n % 2 else 'test'}/{n + 1:05d}.png", normals[n]),
                                (f"masks/{n:04d}.png", mask)):
                    data = io.BytesIO()
                    Image.fromarray(a).save(data, "PNG")
                    archive.writestr(f"nyu_normals_gt/{name}", data.getvalue())
    return images, depths, labels, instances, mapping[0], normals


@pytest.mark.parametrize("zipped", [False, True])
def test_nyud_raw(tmp_path, zipped, capfd):
    images, depths, labels, instances, mapping, normals = write_raw(tmp_path, zipped)
    assert prep("nyud", "--raw", tmp_path, "--out", tmp_path / "n.h5") == 0
    assert ("fitted to depth" in capfd.readouterr().out) != zipped
    top, left = 45, 40  # rows 46..470 and columns 41..600, counted from 1
    with h5py.File(tmp_path / "n.h5") as file:
        assert [*file["train/id"].asstr(), *file["val/id"].asstr()] == ["0002", "0004", "0001", "0003"]
        for split, i, n in (("train", 0, 1), ("train", 1, 3), ("val", 0, 0), ("val", 1, 2)):
            got = check_padding(file[split], i)
            window = np.s_[n, top:top + 425, left:left + 560]
            assert tuple(file[split]["size"][i]) == (425, 560)
            assert (got["image"] == images[window]).all()
            assert (got["depth"] == depths[window]).all()
            lab, inst = labels[window].astype(int), instances[window].astype(int)
            change = np.zeros((425, 560), bool)
            for y, x in np.ndindex(425, 560):
                l, k = lab[y, x], inst[y, x]
                if got["semseg"][y, x] != (mapping[l - 1] - 1 if l else 255):
                    raise AssertionError((n, y, x))
                change[y, x] = (y < 424 and (lab[y + 1, x], inst[y + 1, x]) != (l, k)) or (
                    x < 559 and (lab[y, x + 1], inst[y, x + 1]) != (l, k))
            assert (got["boundary"] == skimage_thin(change)).all()
            if zipped:
                vectors, valid = of_8_bits(normals[window])
                seen = np.arange(left, left + 560) > 300 + n
                check_normals(got["normal"], vectors, valid & seen)
            else:
                assert ((got["normal"] ** 2).sum(-1) > .9).mean() > .99
                assert (got["normal"][depths[window] == 0] == 0).all()


# ----------------------------------------------------------------------------------- PASCAL-Context
GROUPS = {"head": 1, "hair": 1, "reye": 1, "neck": 2, "torso": 2, "luarm": 3, "rhand": 4,
          "llarm": 4, "ruleg": 5, "lfoot": 6}
VALID_170 = 3003754207  # CRC-32 of the code bases' 170 classes, with spaces between


def struct(names, rows):
    """MATLAB struct array (1, n)."""
    out = np.zeros((1, len(rows)), dtype=[(name, "O") for name in names])
    for i, row in enumerate(rows):
        out[0, i] = row
    return out if rows else np.zeros((0, 0))


def people(objects, shape):
    """Variable `anno` of human_parts for [(class_ind, [(part, mask)])]."""
    things = [("thing", number, np.ones(shape), struct(["part_name", "mask"], parts))
              for number, parts in objects]
    things = struct(["class", "class_ind", "mask", "parts"], things)
    return struct(["imname", "objects"], [("", things)])


def write_pascal(root, seed=0):
    """6 images -> {id: the arrays as they were meant}; objects: [(class_ind, [(part, mask)])]."""
    rng, truth, every = np.random.default_rng(seed), {}, list(GROUPS)
    sizes = (50, 37), (33, 50), (375, 500), (31, 47), (36, 29), (41, 26)
    cases = [[(15, every), (15, every[::-1])],  # two people, parts over parts
             [(12, ["head", "torso"]), (15, [])],  # a dog with parts, a person without
             [(7, []), (15, ["torso", "head"])], [],
             [(15, ["lfoot"])],  # one object, one part
             [(15, ["empty"])]]  # a part of no pixel

    def part(name, h, w):
        mask, y, x = np.zeros((h, w), np.uint8), rng.integers(0, h - 9), rng.integers(0, w - 9)
        mask[y:y + 9, x:x + 7] = name != "empty"
        return "head" if name == "empty" else name, mask

    for n, (h, w) in enumerate(sizes):
        name, palette = f"2008_00000{n + 1}", n % 2
        objects = [(kind, [part(p, h, w) for p in parts]) for kind, parts in cases[n]]
        labels = rng.integers(1, 460, (h // 5 + 1, w // 5 + 1)).repeat(5, 0).repeat(5, 1)[:h, :w]
        if n == 4:  # neighbours that cancel out, also at the border
            labels = rng.integers(1, 7, (h, w))
        t = {"objects": objects, "semseg": rng.integers(0, 21, (h, w), np.uint8),
             "LabelMap": labels, "normals": rng.integers(0, 256, (h, w, 3), np.uint8),
             "sal": rng.integers(0, 256, (h, w), np.uint8)}
        t["semseg"][:3], t["normals"][5:9, 5:20], t["sal"][0, :2] = 255, 127, (127, 128)
        colours = ((3,), (), (3,), (4,), (3,), (3,))[n]  # grey, RGB, CMYK
        save(root / f"JPEGImages/{name}.jpg", rng.integers(0, 256, (h, w, *colours), np.uint8))
        picture = Image.fromarray(t["semseg"], "P" if palette else "L")
        if palette:
            picture.putpalette(rng.integers(0, 256, 768, np.uint8).tobytes())
        for folder in ("VOC12", "pascal-context"):
            (root / "semseg" / folder).mkdir(parents=True, exist_ok=True)
        picture.save(root / f"semseg/{'pascal-context' if n == 2 else 'VOC12'}/{name}.png")
        if n == 0:  # VOC12 goes first
            save(root / f"semseg/pascal-context/{name}.png", np.zeros((h, w), np.uint8))
        kind = (np.uint16, np.float64, np.uint16)[n % 3]
        save(root / f"pascal-context/trainval/{name}.mat", LabelMap=labels.astype(kind))
        save(root / f"human_parts/{name}.mat", anno=people(objects, (h, w)))
        save(root / f"normals_distill/{name}.png", t["normals"])
        save(root / f"sal_distill/{name}.png", t["sal"])
        truth[name] = t
    save(root / "ImageSets/Context/train.txt", "\n".join(list(truth)[:4]))
    save(root / "ImageSets/Context/val.txt", "\n".join(list(truth)[4:]))
    return truth


def test_pascal(tmp_path, capfd):
    root = tmp_path / "PASCALContext"
    truth = write_pascal(root)
    assert prep("pascal", "--raw", tmp_path, "--out", tmp_path / "p.h5") == 0
    valid = set(data_prep.NORMAL_CLASSES.tolist())
    assert zlib.crc32(" ".join(map(str, data_prep.NORMAL_CLASSES)).encode()) == VALID_170
    with h5py.File(tmp_path / "p.h5") as file:
        assert file.attrs["dataset"] == "pascal" and len(file.attrs["semseg_classes"]) == 21
        assert len(file.attrs["parsing_classes"]) == 7
        assert list(file.attrs["saliency_classes"]) == ["background", "salient"]
        assert file["train/normal"].compression == "lzf" and not file["train/image"].compression
        for i, (name, t) in enumerate(truth.items()):
            group = file["train" if i < 4 else "val"]
            assert group["id"].asstr()[i % 4] == name and group["image"].shape[1:] == (512, 512, 3)
            got, (h, w) = check_padding(group, i % 4), t["semseg"].shape
            image = np.asarray(Image.open(root / f"JPEGImages/{name}.jpg").convert("RGB"))
            assert (got["image"] == image).all() and image.shape == (h, w, 3)
            assert (got["semseg"] == t["semseg"]).all()
            assert (got["saliency"] == (t["sal"] / 255 > .5)).all()
            laplacian = ndimage.laplace(t["LabelMap"].astype(int), mode="mirror")
            assert (got["boundary"] == skimage_thin(laplacian != 0)).all()
            parsing = np.zeros((h, w), np.uint8)
            for kind, parts in t["objects"]:
                for part, mask in parts if kind == 15 else []:
                    for y, x in np.argwhere(mask):
                        parsing[y, x] = GROUPS[part]
            assert (got["parsing"] == (parsing if parsing.any() else 255)).all(), name
            hold = np.array([[int(c) in valid for c in row] for row in t["LabelMap"]])
            assert 0 < hold.mean() < 1
            vectors, there = of_8_bits(t["normals"])
            check_normals(got["normal"], vectors, hold & there)
    assert "train parsing 2 images" in " ".join(capfd.readouterr().out.split())


def test_every_part_has_its_group():
    groups = [set(names.split()) for names in data_prep.PARTS.values()]
    assert [len(g) for g in groups] == [0, 10, 2, 2, 4, 2, 4] and len(set().union(*groups)) == 24
    assert all(data_prep.PART_GROUP[name] == group for name, group in GROUPS.items())


# ---------------------------------------------------------------------------------------- bad input
def broken(path, kind):
    if kind == "gone":
        path.unlink()
    elif kind == "web page":
        path.write_text("\n<!DOCTYPE html><html>404 Not Found</html>")
    else:  # what we need of the class mapping stands in its first kilobyte
        keep = 0 if kind == "empty" else 0.1 if path.name.startswith("class") else 0.6
        path.write_bytes(path.read_bytes()[:int(path.stat().st_size * keep)])


@pytest.mark.parametrize("kind", ["gone", "web page", "truncated", "empty"])
def test_broken_files(tmp_path, capfd, kind):
    write_nyud(tmp_path / "nyud")
    write_pascal(tmp_path / "pascal")
    out = old_file(tmp_path)
    for name in ("images/b2.png", "segmentation/b2.png", "depth/b2.npy", "normals/b2.png",
                 "JPEGImages/2008_000002.jpg", "human_parts/2008_000002.mat",
                 "pascal-context/trainval/2008_000001.mat"):
        root = tmp_path / ("nyud" if "b2" in name else "pascal")
        good = (root / name).read_bytes()
        broken(root / name, kind)
        line = fails(capfd, root.name, "--raw", root, "--out", out)
        assert name.split(".")[0] in line and untouched(out), line
        assert kind != "web page" or "web page" in line
        assert kind != "gone" or all(x in line for x in ("1 missing", "https://", "unpacks to"))
        (root / name).write_bytes(good)


def test_truncated_mat_is_never_half_read(tmp_path):
    """Cut anywhere, a .mat either fails with its name or gives all it held."""
    label = np.arange(900).reshape(30, 30) % 60
    savemat(tmp_path / "m.mat", {"other": np.arange(50), "LabelMap": label.astype(np.uint16)})
    whole, image = (tmp_path / "m.mat").read_bytes(), np.zeros((30, 30, 3))
    for cut in range(0, len(whole), 37):
        (tmp_path / "c.mat").write_bytes(whole[:cut])
        try:
            got = data_prep.load_label(tmp_path / "c.mat", image, lambda raw: raw, "LabelMap")
        except data_prep.PrepError as error:
            assert "c.mat" in str(error)
        else:
            assert (got == label).all()


def test_what_goes_wrong_is_one_line_and_warnings_are_silent(tmp_path):
    save(tmp_path / "a.txt", "x")
    with warnings.catch_warnings(), pytest.raises(data_prep.PrepError, match="a.txt: two lines$"):
        warnings.simplefilter("error")
        with data_prep.reading(tmp_path / "a.txt"):
            warnings.warn("noise", stacklevel=1)
            raise ValueError("two\nlines")


def test_wrong_values_and_sizes(tmp_path, capfd):
    write_nyud(tmp_path / "nyud")
    write_pascal(tmp_path / "pascal")
    b2, two = np.ones((39, 52), np.uint8), "2008_000002"
    for name, value, word in (("segmentation/b2.png", b2 * 41, "41"), ("segmentation/b2.png", b2[:, 1:], "shape"),
            ("segmentation/b2.png", np.dstack([b2] * 3), "shape"),
            ("depth/b2.npy", b2[1:].astype(np.float32), "shape"), ("depth/b2.npy", b2 * 4000.0, "metres"),
            ("normals/b2.png", b2, "shape"), ("images/b2.png", np.ones((600, 600, 3), np.uint8), ""),
            (f"semseg/VOC12/{two}.png", np.full((33, 50), 21, np.uint8), "21"),
            (f"sal_distill/{two}.png", np.full((50, 33), 21, np.uint8), "shape"),
            (f"pascal-context/trainval/{two}.mat", {"LabelMap": b2}, "shape"),
            (f"pascal-context/trainval/{two}.mat", {"labels": b2}, "LabelMap"),
            (f"human_parts/{two}.mat", {"anno": people([(15, [("head", b2)])], (1, 1))}, "head"),
            (f"human_parts/{two}.mat", {"anno": people([(15, [("tail", b2)])], (1, 1))}, "tail")):
        root = tmp_path / ("nyud" if "b2" in name else "pascal")
        good = (root / name).read_bytes()
        save(root / name, **value) if isinstance(value, dict) else save(root / name, value)
        line = fails(capfd, root.name, "--raw", root, "--out", tmp_path / "o.h5")
        assert Path(name).stem in line and word in line, line
        (root / name).write_bytes(good)
        assert not (tmp_path / "o.h5").exists()
    write_nyud(tmp_path / "large", ids=("a1", "d4"), size=(426, 560))
    line = fails(capfd, "nyud", "--raw", tmp_path / "large", "--out", tmp_path / "o.h5")
    assert "a1 is 426 x 560, larger" in line


def test_broken_raw(tmp_path, capfd):
    write_raw(tmp_path, zipped=True)
    convert = "nyud", "--raw", tmp_path, "--out", tmp_path / "o.h5"
    for name in ("nyu_depth_v2_labeled.mat", "splits.mat", "classMapping40.mat", "nyu_normals_gt.zip"):
        for kind in ("web page", "truncated", "empty"):
            good = (tmp_path / name).read_bytes()
            broken(tmp_path / name, kind)
            assert name in fails(capfd, *convert)
            (tmp_path / name).write_bytes(good)
    save(tmp_path / "splits.mat", trainNdxs=np.array([[2], [5]]), testNdxs=np.array([[1]]))
    assert "splits.mat" in fails(capfd, *convert)
    (tmp_path / "splits.mat").unlink()
    assert "splits.mat" in fails(capfd, *convert)


DAMAGE = "cut", "bits", "zeros", "head"


def damaged(data, kind, rng):
    """Bytes with one of four kinds of damage."""
    place, new = int(rng.integers(len(data))), b""
    if kind == "cut":
        return data[:place]
    if kind == "bits":
        new = bytes([data[place] ^ 1 << int(rng.integers(8))])
    if kind == "zeros":
        new = bytes(min(4096, len(data) // 4))
    if kind == "head":
        place, new = 0, rng.bytes(rng.integers(1, 64))
    return (data[:place] + new + data[place + len(new):])[:len(data)]


def try_damaged(path, kind, rng, capfd, out, *args):
    """With `path` damaged a run ends well, or in one line and with the old file; -> status."""
    good = path.read_bytes()
    path.write_bytes(damaged(good, kind, rng))
    signal.alarm(30)  # a hang ends the test
    try:
        status = prep(*args)
    finally:
        signal.alarm(0)
        path.write_bytes(good)
    err = capfd.readouterr().err
    assert status in (0, 2) and len(err.splitlines()) == status // 2, err
    assert not status or path.stem in err or path.suffix == ".txt", err  # a list's wrong ids
    if status == 0 and out:
        assert prep("check", out) == 0
        old_file(out.parents[1])
    assert not out or untouched(out)
    return status


def test_damaged_files_end_in_one_line(tmp_path, capfd):
    rng, out, statuses = np.random.default_rng(0), old_file(tmp_path), []
    write_nyud(tmp_path / "nyud", ids=("a1", "d4"))
    write_nyud(tmp_path / "nyud_mat", "astmt", ids=("a1", "d4"))
    write_pascal(tmp_path / "pascal")
    save(tmp_path / "pascal/ImageSets/Context/train.txt", "2008_000001")
    save(tmp_path / "pascal/ImageSets/Context/val.txt", "2008_000005")
    for name in ("nyud", "nyud_mat", "pascal"):
        for path in sorted((tmp_path / name).rglob("*.*")):
            if path.stem in ("a1", "2008_000001", "val"):
                for kind in rng.permutation(DAMAGE)[:2]:
                    args = name.split("_")[0], "--raw", tmp_path / name, "--out", out
                    statuses.append(try_damaged(path, kind, rng, capfd, out, *args))
    assert len(statuses) == 40 and statuses.count(2) > 20


def predict_main(*arguments):
    return predict.main(list(map(str, arguments)))


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_of_any_program_ends_well_or_in_one_line(kind, trained, tmp_path, start):
    """MTCD_FUZZ=50 makes it 2,000 cases. Each in a process of its own: a crash or a hang is a failure like another."""
    rng, out, old = np.random.default_rng(DAMAGE.index(kind)), tmp_path / "out", {"metrics.json": b"{}"}
    data, weights = tmp_path / "toy.h5", Path(shutil.copy(trained / "last.pt", tmp_path))
    data_prep.make_toy(data, train=2, val=1, height=64, width=96)
    pictures = [tmp_path / "a.png", tmp_path / "a.jpg"]
    for path in pictures:
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).save(path)
    common = "--checkpoint", weights, "--out", out
    cases = [(path, main, ("--eval", *common, "--data", data, "--workers", 0)) for path in (data, weights)]
    cases += [(data, main, quick(data, out, "--tasks", *TASKS))]
    cases += [(path, predict_main, (path, *common, "--device", "cpu")) for path in pictures]
    for path, program, arguments in cases * 2 * int(os.environ.get("MTCD_FUZZ", "1")):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        (out / "metrics.json").write_bytes(old["metrics.json"])
        good = path.read_bytes()
        path.write_bytes(damaged(good, kind, rng))
        status, errors = end(start(*arguments, program=program), 60)
        bad = path.read_bytes()
        path.write_bytes(good)
        told = path.name, status, errors, len(bad), len(good)
        assert status in (0, 2) and len(errors) <= status and "Traceback" not in "".join(errors), told
        left = {file.name: file.read_bytes() for file in out.iterdir()}
        assert status == 0 or left == old or "--iters" in arguments, told
        assert not list(out.glob("*.part")), told
        if "last.pt" in left:
            assert mtcd.load_weights(out / "last.pt", "model")


@pytest.mark.parametrize("split, index, workers", [("train", 7, 0), ("train", 7, 2), ("val", 3, 2)])
def test_an_array_that_cannot_be_read_is_one_line(split, index, workers, toy_file, tmp_path, start):
    data = Path(shutil.copy(toy_file, tmp_path / "toy.h5"))
    with h5py.File(data) as file:
        chunk = file[split]["semseg"].id.get_chunk_info(index)
    with data.open("r+b") as file:
        file.seek(chunk.byte_offset + chunk.size // 2)
        file.write(b"????")
    process = start(*quick(data, tmp_path / "run", "--tasks", "semseg", "--iters", 10, "--workers", workers))
    ends_in_one_line(process, "toy.h5", f"{split} image {index},", "convert")
    assert not (tmp_path / "run/metrics.json").exists()


@pytest.mark.parametrize("how", ["--eval", "--resume"])
def test_a_flipped_bit_of_a_weight_is_found_by_its_checksum(how, toy_file, trained, tmp_path, capsys):
    home = shutil.copytree(trained, tmp_path / "home")
    content = bytearray((home / "last.pt").read_bytes())
    content[len(content) // 2] ^= 64
    (home / "last.pt").write_bytes(content)
    before, saved = files(home), torch.load(home / "last.pt", weights_only=True)  # loads without complaint
    more = ("--checkpoint", home / "last.pt") if how == "--eval" else quick(
        toy_file, home, "--tasks", *saved["config"]["tasks"])
    assert main(how, *more) == 2
    one_line(capsys, "last.pt", "damaged")
    assert files(home) == before


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("content", [b"", b"nonsense", "truncated", "bomb", "foreign"])
def test_a_bad_checkpoint_is_one_line_and_runs_nothing(content, toy_file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "last.pt"
    if content == "truncated":
        torch.save({"config": {}, "model": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:2000])
    elif content == "bomb":
        torch.save({"config": Bomb(), "model": {}}, path)
    elif content == "foreign":
        torch.save({"config": {"channels": {"depth": 1}, "backbone": "resnet18"}, "model": {"a": torch.ones(1)}}, path)
    else:
        path.write_bytes(content)
    for arguments in (["--eval", "--checkpoint", path], quick(toy_file, tmp_path, "--resume")):
        assert main(*arguments) == 2
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 1 and "last.pt" in errors[0] and "weights_only" not in errors[0], errors
    assert not Path("exploded").exists()


def test_bad_input_of_the_other_programs_is_one_line(trained, tmp_path, capsys, monkeypatch):
    assert predict.main([str(tmp_path), "--checkpoint", str(trained / "last.pt")]) == 2
    one_line(capsys, str(tmp_path), "not a readable picture")
    for name in ("config.json", "metrics.json"):
        (tmp_path / name).write_text("null")
    assert compare.main([str(tmp_path)]) == 2
    one_line(capsys, str(tmp_path), "no finished run")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if it were not installed
    save(tmp_path / "e.png", np.zeros((8, 8), np.uint8))
    arguments = ["--predictions", tmp_path, "--labels", tmp_path, "--max-dist", 0.02, "--curve", tmp_path / "c.png"]
    assert odsf.main([*map(str, arguments)]) == 2
    output = capsys.readouterr()
    assert not output.out and re.fullmatch(r"odsf: .*matplotlib.* - pip install matplotlib\n", output.err)
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    assert peers.main([]) == 2
    one_line(capsys, "pip install timm")


@pytest.mark.parametrize("name", ["last.pt", "log.csv", "metrics.json", "preview.png", "config.json"])
def test_a_full_disk_is_one_line_and_leaves_whole_files(name, toy_file, tmp_path, capsys, monkeypatch):
    assert main(*quick(toy_file, tmp_path)) == 0
    before, replace = files(tmp_path), os.replace

    def full(part, path):
        if Path(path).name == name:
            raise OSError(28, "No space left on device")
        replace(part, path)
    monkeypatch.setattr(os, "replace", full)
    assert main(*quick(toy_file, tmp_path, "--seed", 1)) == 2
    one_line(capsys, name, "No space left")
    assert not list(tmp_path.glob("*.part"))
    for path, content in files(tmp_path).items():
        if path.name == name:
            assert content == before[path]  # the older one, or none
        elif path.suffix == ".json":
            json.loads(content)
    monkeypatch.undo()
    assert name in ("last.pt", "config.json") or main(*quick(toy_file, tmp_path, "--seed", 1, "--resume")) == 0


def test_a_disk_that_fills_while_weights_are_written_keeps_the_old_ones(toy_file, tmp_path, start):
    assert main(*quick(toy_file, tmp_path)) == 0
    before = (tmp_path / "last.pt").read_bytes()
    full = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (len(before) // 3,) * 2)
    process = start(*quick(toy_file, tmp_path), before=full)
    ends_in_one_line(process, "last.pt")
    assert (tmp_path / "last.pt").read_bytes() == before and not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("wrong, told", [("label", "train image.*semseg.*40 class names"),
                                         ("names", "semseg_classes"), ("size", "batch-size")])
def test_a_wrong_data_file_ends_with_one_line(wrong, told, workers, tmp_path, capsys):
    rng, shape = np.random.default_rng(0), (32, 32) if wrong == "size" else (40, 64)
    samples = [random_sample(rng, shape, mtcd.PROTOCOLS["nyud"].tasks) for _ in range(2)]
    if wrong == "label":
        for sample in samples:
            sample["semseg"][20:, 20:] = 40
    path = write_file(tmp_path / "x.h5", "nyud", shape, {"train": samples, "val": samples})
    if wrong == "names":
        with h5py.File(path, "r+") as file:
            del file.attrs["semseg_classes"]
    assert main("--dataset", "nyud", "--data", path, "--batch-size", 1, "--iters", 1, "--workers", workers,
                "--out", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(told, error) and "Traceback" not in error


def test_missing_folder_and_bad_out(tmp_path, capfd):
    for dataset in ("nyud", "pascal"):
        for raw in (tmp_path / "nowhere", tmp_path):
            line = fails(capfd, dataset, "--raw", raw, "--out", tmp_path / "o.h5")
            assert str(raw) in line and "https://" in line
    write_nyud(tmp_path / "n")
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for out in (tmp_path / "file/o.h5", Path("/proc/o.h5"), tmp_path / "folder", Path("/dev/null")):
        assert str(out) in fails(capfd, "nyud", "--raw", tmp_path / "n", "--out", out)
    assert not list((tmp_path / "folder").iterdir()) and not Path("/dev/null").is_file()
    out = old_file(tmp_path)
    Path(f"{out}.preview.png").mkdir()
    assert "as it was before" in fails(capfd, "nyud", "--raw", tmp_path / "n", "--out", out)
    assert out.read_text() == "the old one"


@pytest.mark.parametrize("arguments", [
    ["foo"], [], ["toy", "--train", "x"], ["toy", "--train", "0"], ["toy", "--height", "5000"],
    ["toy", "--seed", "-1"], ["nyud", "--train", "4"], ["check"], ["check", "nowhere.h5"]])
def test_bad_arguments_are_one_line(arguments, capfd):
    try:
        assert prep(*arguments) == 2
    except SystemExit as stop:
        assert stop.code == 2
    err = capfd.readouterr().err
    assert err.startswith("data_prep.py: ") and len(err.splitlines()) == 1, err


def child(args, **options):
    return subprocess.Popen([sys.executable, data_prep.__file__, *map(str, args)], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, **options)


def test_disk_full(tmp_path):
    write_nyud(tmp_path / "n")
    out = old_file(tmp_path)
    for size in (1000, 1_500_000, 6_000_000):
        limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
        process = child(["nyud", "--raw", tmp_path / "n", "--out", out], preexec_fn=limit)
        err = process.communicate()[1]
        assert process.returncode == 2 and len(err.splitlines()) == 1 and str(out) in err, err
        assert untouched(out)


@pytest.mark.parametrize("number, group", [(signal.SIGINT, True), (signal.SIGINT, False),
                                           (signal.SIGTERM, False)])
def test_interrupted(tmp_path, number, group):
    write_nyud(tmp_path / "n", ids=[f"x{i}" for i in range(150)], size=(40, 200))
    out = old_file(tmp_path)
    process = child(["nyud", "--raw", tmp_path / "n", "--out", out])
    while not list(out.parent.glob(".*")) and process.poll() is None:
        time.sleep(.01)
    time.sleep(.1)
    os.killpg(process.pid, number) if group else process.send_signal(number)
    err = process.communicate(timeout=20)[1]
    assert process.returncode == 2 and len(err.splitlines()) == 1 and "interrupted" in err, err
    assert untouched(out)
    with pytest.raises(ProcessLookupError):  # no worker is left
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(.05)


# --------------------------------------------------------------------------------------- the reader
@pytest.mark.parametrize("scale", [0.5, 0.75])
def test_pictures_shrink_as_in_the_protocol_without_smoothing(scale, tmp_path, monkeypatch):
    """Each new pixel is interpolated between the four about its centre, as by OpenCV's INTER_LINEAR."""
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3))
    sample = {"image": picture, "depth": np.ones((64, 96))}
    path = write_file(tmp_path / "n.h5", "nyud", (64, 96), {"train": [sample]})
    monkeypatch.setitem(mtcd.PROTOCOLS, "nyud", mtcd.PROTOCOLS["nyud"]._replace(scales=(scale, scale)))
    monkeypatch.setattr(mtcd, "distort", lambda image, rng: image)
    at = np.meshgrid(*((np.arange(n * scale) + 0.5) / scale - 0.5 for n in (64, 96)), indexing="ij")
    expected = np.stack([ndimage.map_coordinates(channel.astype(float), at, order=1, mode="nearest")
                         for channel in np.moveaxis(picture, 2, 0)])
    found = mtcd.DenseTasks(path, "train", ["depth"], augment=True)[0]["image"].numpy()
    found = found[:, : expected.shape[1], : expected.shape[2]].astype(float)
    assert min(abs(found - expected).max(), abs(found[..., ::-1] - expected).max()) < 1.5  # perhaps flipped


def test_a_split_without_any_label_has_no_figures(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")  # as some schedulers do; without torchrun it means nothing
    sample = random_sample(np.random.default_rng(0), (64, 96))
    nothing = {name: np.full_like(a, 0 if name in ("depth", "normal") else 255) for name, a in sample.items()}
    path = write_file(tmp_path / "t.h5", "toy", (64, 96), {"train": [sample] * 2, "val": [nothing | {
        "image": sample["image"]}]})
    assert main(*quick(path, tmp_path / "run", "--tasks", *TASKS)) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics == {task: {mtcd.TASKS[task].metric: None} for task in TASKS}


# --------------------------------------------------------------------------------------- the writer
@pytest.mark.parametrize("shape", [(2, 600), (600, 2), (1, 1)])
def test_rooms_of_any_shape(tmp_path, shape):
    data_prep.make_toy(tmp_path / "t.h5", train=1, val=1, height=shape[0], width=shape[1])
    with h5py.File(tmp_path / "t.h5") as file, Image.open(tmp_path / "t.h5.preview.png") as sheet:
        assert file["train/depth"].shape == (1, *shape) and min(sheet.size) > 0
        room = rooms.render_room([0, 0, 0], *shape)
        assert all((room[task] == file["train"][task][0]).all() for task in data_prep.FORMAT)


def test_check_finds_what_is_not_as_it_was_written(tmp_path, capfd):
    path = tmp_path / "t.h5"
    data_prep.make_toy(path, train=3, val=2, height=20, width=30)
    assert prep("check", path) == 0 and "5 images, all whole" in capfd.readouterr().out
    whole = path.read_bytes()
    with h5py.File(path) as file:
        names = {name for name in file["val"] if name != "crc32"}
        chunk = file["train/semseg"].id.get_chunk_info(2)
    assert names == {*data_prep.FORMAT, "id", "size"}
    for name in names:
        with h5py.File(path, "r+") as file:
            old = file["val"][name][1]
            file["val"][name][1] = b"other" if name == "id" else old + np.ones_like(old)
        assert "1 of 5" in fails(capfd, "check", path)
        path.write_bytes(whole)
    middle = chunk.byte_offset + chunk.size // 2  # so that gzip fails
    path.write_bytes(whole[:middle] + b"????" + whole[middle + 4:])
    assert prep("check", path) == 2
    assert "damaged: train train_0002\n" in capfd.readouterr().out
    path.write_bytes(whole)
    rng = np.random.default_rng(0)
    for kind in DAMAGE * 10:
        try_damaged(path, kind, rng, capfd, None, "check", path)
    with h5py.File(path, "r+") as file:
        del file["val/crc32"]
    assert "no checksums" in fails(capfd, "check", path)


def test_memory_stays_flat(tmp_path):
    """Peak of the parent and of any worker, 40 raw frames: what 300 need too."""
    write_raw(tmp_path)
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "r+") as file:
        for name in ("images", "depths", "labels", "instances"):
            four = file[name][:]
            del file[name]
            file[name] = np.concatenate([four] * 10)
    frames = np.arange(1, 41)[:, None]
    save(tmp_path / "splits.mat", trainNdxs=frames[:20], testNdxs=frames[20:])
    code = """import resource, sys, data_prep
status = data_prep.main(sys.argv[1:])
own = open('/proc/self/status').read().split('VmHWM:')[1].split()[0]  # ru_maxrss is the test's
workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(status, int(own) // 1024, workers // 1024)"""
    done = subprocess.run([sys.executable, "-c", code, "nyud", "--raw", tmp_path, "--out", tmp_path / "o.h5"],
        cwd=Path(data_prep.__file__).parent, capture_output=True, text=True, check=True)
    status, parent, worker = map(int, done.stdout.splitlines()[-1].split())
    assert status == 0 and parent < 300 and worker < 300


@pytest.mark.parametrize("dataset", ["nyud", "pascal"])
def test_converted_files_train(tmp_path, dataset):
    (write_nyud if dataset == "nyud" else write_pascal)(tmp_path / "raw")
    if dataset == "pascal":
        save(tmp_path / "raw/ImageSets/Context/val.txt", "2008_000005")
    assert prep(dataset, "--raw", tmp_path / "raw", "--out", tmp_path / "d.h5") == 0
    assert main("--dataset", dataset, "--iters", 1, "--batch-size", 2, "--workers", 0, "--data", tmp_path / "d.h5",
                "--backbone", "hrnet_tiny", "--out", tmp_path / "run") == 0
    assert (tmp_path / "run/metrics.json").exists()


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_names_beyond_the_terminals_encoding_do_not_end_a_run(encoding, toy_file, tmp_path, start):
    data = Path(shutil.copy(toy_file, tmp_path / "größe→.h5"))
    with h5py.File(data, "r+") as file:
        names = [f"größe→ {name}" for name in file.attrs["semseg_classes"]]
        file.attrs["semseg_classes"] = names
    process = start(*quick(data, tmp_path / "läuft→", "--tasks", "semseg"), encoding=encoding)
    assert end(process) == (0, [])
    ends_in_one_line(start(*quick(tmp_path / "läuft→", tmp_path / "x"), encoding=encoding))


# -------------------------------------------------------------------------------------------------- normals, data file
KINECT = 518.8579, 519.4696, 325.5824, 253.7362


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
    return np.degrees(2 * np.arctan2(np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1)))


@pytest.mark.parametrize("normal, offset", [((0, 0, -1), 2), ((0, -1, -.2), 1.5),
                                            ((.6, -.3, -.7), 2), ((-.9, .1, -.3), 3)])
def test_normals_of_planes(normal, offset):
    n = np.array(normal) / np.linalg.norm(normal)
    depth = -offset / (rays() @ n)
    seen = (depth > 0) & (depth < 12)
    seen[200:220, 300:330] = False  # a hole
    depth = np.where(seen, depth, 0)
    got = fitted(depth)
    assert (got[~seen] == 0).all() and degrees(got, n)[seen].mean() < .1
    noisy = depth * (1 + .002 * np.random.default_rng(0).normal(size=depth.shape))
    assert degrees(fitted(noisy), n)[seen].mean() < 4


@pytest.mark.parametrize("centre, radius", [((0, 0, 2), .5), ((.3, -.2, 3), 1), ((-.5, .2, 1.5), .3)])
def test_normals_of_spheres_before_a_wall(centre, radius):
    ray, c = rays(), np.array(centre)
    a, b = (ray ** 2).sum(-1), ray @ c
    root = b * b - a * (c @ c - radius ** 2)
    hit = root > 0
    depth = np.where(hit, (b - np.sqrt(np.maximum(root, 0))) / a, 6)
    true = np.where(hit[..., None], (ray * depth[..., None] - c) / radius, [0, 0, -1])
    error = degrees(fitted(depth), true)
    inside = hit & (root > .15 * root.max())
    assert error[inside].mean() < .5 and error[hit].mean() < 2
    assert error[~hit].max() < .5  # right up to the edge of depth


def test_normals_do_not_cross_a_crease():
    floor, wall = 1.2 / np.maximum(rays()[..., 1], 1e-9), np.full((480, 640), 3.0)
    true = np.where((floor < wall)[..., None], [0, -1, 0], [0, 0, -1])
    assert degrees(fitted(np.minimum(floor, wall)), true).mean() < .3


def test_results_do_not_pile_up():
    """At most ahead + 1 calls are begun before the first result is taken, and the order is kept."""
    begun = []
    with ThreadPoolExecutor(2) as pool:
        for i, square in enumerate(in_order(pool, lambda x: begun.append(x) or x**2, range(99), 4)):
            assert square == i**2 and len(begun) <= i + 5
    assert len(begun) == 99
