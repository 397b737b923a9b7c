# SPDX-License-Identifier: MIT
"""Raw files of data sets: how they are read, and what the values in them mean.

Pictures, .npy, MATLAB's .mat, lists of ids, zips of pictures.

Files break in many ways. Whatever is wrong with one becomes a PrepError that names it.
"""

import warnings
import zipfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image
from scipy.io import loadmat

TURNS = {3: "by 180 degrees", 6: "by 90 degrees clockwise", 8: "by 90 degrees counterclockwise"}


# How binary maps are written, by the values in them.
ONES = "0 and 1"  # and 255, ignored
FULL = "0 and 255"
LEVELS = "0 to 255"  # positive over half of it


class PrepError(Exception):
    """Bad input or output. Its text is the one line that the user reads."""


@contextmanager
def reading(path):
    """The open file. Whatever goes wrong with it becomes a PrepError that names it."""
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


def decode(file, path, variable=None, **options):
    """The array in a picture (palette indices stay indices), a .npy, or a .mat's variable (v5)."""
    if path.name.endswith(".npy"):
        return np.load(file)

    if not path.name.endswith(".mat"):
        with Image.open(file) as picture:
            return np.asarray(picture)

    variables = loadmat(file, variable_names=[variable], **options)
    if variable not in variables:
        raise ValueError(f"it has no variable '{variable}'")
    return variables[variable]


class Picture(NamedTuple):
    """An image, which its labels must fit."""

    path: Path
    pixels: np.ndarray  # uint8 (h, w, 3), RGB


def load_picture(path, adjust=None):
    """A picture of any mode (grey, palette, CMYK, alpha), its pixels perhaps adjusted (cropped)."""
    with reading(path) as file, Image.open(file) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    if adjust:
        pixels = adjust(pixels)
    return Picture(path, pixels)


def load_label(path, image, rule, variable=None, channels=(), adjust=None):
    """rule(array of the file, perhaps adjusted), which must have the size of the Picture."""
    with reading(path) as file:
        raw = decode(file, path, variable)
        if raw.shape[2:] == (1,):
            raw = raw[..., 0]
        if adjust:
            raw = adjust(raw)
        if raw.shape != image.pixels.shape[:2] + channels:
            raise ValueError(misfit(raw.shape, image, channels))
        return rule(raw)


def misfit(shape, image, channels):
    """In words: why an array of this shape is no label of the image."""
    size = image.pixels.shape[:2]
    if shape[:2] == size and shape[2:] in ((3,), (4,)) and not channels:
        return (
            "it is a picture in colours, a label is one number per pixel: "
            "save it as a grey or palette picture of the class numbers"
        )

    text = f"its shape is {shape}, its image's {size}"
    turn = exif_turn(image.path)
    if shape[:2] == size[::-1] and turn:
        text += (
            f"; EXIF in {image.path.name} turns the image {turn} and the label is not stored so: "
            "save the image turned (PIL.ImageOps.exif_transpose)"
        )
    return text


def exif_turn(path):
    """How a viewer turns a picture, in words; "" if it does not."""
    try:
        with Image.open(path) as picture:
            orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except OSError:  # the image is in no file of its own
        orientation = 1
    if orientation == 1:
        return ""
    return TURNS.get(orientation, "and mirrors it")


def read_ids(path):
    """A split's list, an id per line."""
    with reading(path) as file:
        ids = file.read().decode("utf-8-sig").split()
        twice = [name for name, times in Counter(ids).items() if times > 1]
        if twice:
            raise ValueError(f"lists {min(twice)} twice")
        if not ids:
            raise ValueError("lists no image")
    return ids


def print_unused(root, known, files=()):
    """What lies in a folder beside the known names, and files in those, by folder and ending."""
    remarks = [path.name for path in sorted(root.iterdir()) if path.name not in known]
    groups = Counter()
    for path in files:
        groups[f"{path.parent.relative_to(root).as_posix()}/*{path.suffix}"] += 1
    for pattern, count in sorted(groups.items()):
        remarks.append(f"{pattern} ({count} files)")

    remarks = [remark for remark in remarks if not remark.startswith(".")]
    if len(remarks) > 12:
        remarks[12:] = ["..."]
    if remarks:
        print(f"not used of {root}: {', '.join(remarks)}")


class ZippedNormals(NamedTuple):
    """Names of pictures in a zip, by the frame's number from 0."""

    normals: dict
    masks: dict


def index_normals(path):
    """A zip of numbered pictures -> ZippedNormals.

    train/ and test/<n>.png are said to count from 1, masks/<n>.png from 0: we look for a 0.
    """
    normals = {}
    masks = {}
    others = []
    with reading(path) as file, zipfile.ZipFile(file) as archive:
        for text in archive.namelist():
            name = PurePosixPath(text)
            if name.suffix != ".png" or not name.stem.isdecimal():
                others.append(text)
            elif "masks" in name.parts:
                masks[int(name.stem)] = text
            else:
                normals[int(name.stem)] = text

        if not normals:
            found = ", ".join(others[:3]) or "nothing"
            raise ValueError(
                f"no numbered pictures of normals such as train/0001.png in it, but {found}: get "
                "the right zip, or move this one away and normals are fitted to depth"
            )
    return ZippedNormals(count_from_0(normals), count_from_0(masks))


def count_from_0(names):
    if 0 in names:
        return names
    return {number - 1: name for number, name in names.items()}


# -------------------------------------------------------------------------------- what values mean
# Each function takes the array of one file. A ValueError becomes a line that names the file.
def whole_numbers(raw):
    """Numbers from 0 to 255 of any type -> uint8."""
    if raw.dtype == np.uint8:
        return raw
    whole = (raw == np.round(raw)) & (raw >= 0) & (raw <= 255)
    if not whole.all():
        raise ValueError(f"label {raw[~whole][0]} is not a whole number from 0 to 255")
    return raw.astype(np.uint8)


def as_classes(raw, count, first=0):
    """Ids first .. first + count - 1 -> uint8 from 0; 255, and 0 where `first` is 1, -> 255."""
    unknown = 254
    meaning = np.full(256, unknown, np.uint8)
    meaning[255] = 255
    meaning[:first] = 255
    meaning[first : first + count] = np.arange(count)

    ids = whole_numbers(raw)
    labels = meaning[ids]
    wrong = labels == unknown
    if wrong.any():
        raise ValueError(
            f"label {ids[wrong][0]} is not in {first} to {first + count - 1}: "
            "a map of another numbering, or of other classes?"
        )
    return labels


def as_binary(raw, form):
    """A map written in one of the three forms -> uint8 0 and 1, 255 ignored."""
    numbers = whole_numbers(raw)
    if form == ONES:
        labels = as_classes(numbers, 2)
        if 255 in labels and 0 in labels and 1 not in labels:
            raise ValueError("it holds 0 and 255, where other maps of the package hold 0 and 1")
        return labels
    if form == FULL and numbers.max() == 1:
        raise ValueError("it holds 0 and 1, where other maps of the package hold 0 and 255")
    return (numbers > 127).astype(np.uint8)


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
    vectors = raw.astype(np.float32)
    if raw.dtype == np.uint8:
        return as_unit(vectors * (2 / 255) - 1, shortest=0.5)
    refuse_coded(vectors)
    return as_unit(vectors, shortest=1e-6)


def as_unit(vectors, shortest):
    """Vectors (h, w, 3) -> float16 of length 1; 0 where they are `shortest` or less, or not finite."""
    vectors = vectors.astype(np.float32)
    length = np.sqrt((vectors**2).sum(-1, keepdims=True))
    valid = np.isfinite(length) & (length > shortest)
    unit = np.where(valid, vectors / np.where(valid, length, 1), 0)
    return unit.astype(np.float16)


def refuse_coded(vectors):
    """Floats (h, w, 3) that are no vectors but a code of them: 0 to 255, or 0 to 1."""
    finite = vectors[np.isfinite(vectors)]
    if finite.max(initial=0) > 2:
        raise ValueError(
            f"a component of {finite.max():.3g}: store vectors of length 1, or 8-bit pictures"
        )
    if finite.min(initial=1) < 0:
        return
    length = np.linalg.norm(vectors, axis=-1)
    length = length[np.isfinite(length) & (length > 0)]
    if length.size and (abs(length - 1) > 0.02).mean() > 0.5:
        raise ValueError(
            "no component is negative and lengths are not 1: coded as 0 to 1? Store 2x - 1"
        )


def binary_form(paths, enough=24):
    """How the binary maps of a package are written: what `enough` files or more of `paths` say.

    One map of 0 and 255 may be full of boundaries or have none and be partly ignored. All of a
    package are written alike, so the others tell.
    """
    values = set()
    for number, path in enumerate(paths):
        if number >= enough and values != {0}:
            break
        with reading(path) as file:
            raw = decode(file, path)
            values |= set(np.unique(whole_numbers(raw)).tolist())

    folder = paths[0].parent
    if 1 in values and values <= {0, 1, 255}:
        return ONES
    if values <= {0}:
        raise PrepError(f"{folder}: all maps are 0 everywhere; get the package again")
    if values <= {0, 255}:
        return FULL
    if max(values) > 127:
        return LEVELS
    raise PrepError(
        f"{folder}: the maps hold values from {min(values)} to {max(values)}: "
        "write 0 and 1, or 0 and 255"
    )
