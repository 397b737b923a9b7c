# SPDX-License-Identifier: MIT
"""Every picture that the program makes: the tasks' colours, panels, legends, previews.

A task looks the same everywhere, because it is drawn here only. Labels and predictions come as
numpy arrays laid out as in a data file; pictures are uint8 (H, W, 3) arrays, sheets of them PIL
pictures. Needs numpy and PIL, nothing of ours.
"""
import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFont

KINDS = {  # how a task is drawn; one that is not here: see kind_of
    "image": "image", "semseg": "classes", "parsing": "classes", "saliency": "probability",
    "boundary": "probability", "depth": "depth", "normal": "normal",
}
VOID = (40, 40, 40)  # ignored pixels
BACKGROUND = (208, 208, 208)  # class 0, most often the background
CERTAIN = (0, 60, 130)  # probability 1; not black, which would pass for VOID
VIRIDIS = np.array([  # matplotlib's colour map at 13 places: safe for the colour-blind
    (68, 1, 84), (72, 31, 113), (68, 58, 131), (59, 82, 139), (49, 104, 142), (40, 124, 142),
    (33, 144, 140), (32, 164, 134), (53, 183, 121), (93, 201, 99), (143, 215, 68), (199, 224, 32),
    (253, 231, 37)])
GUTTER, CAPTION = 8, 20  # pixels between the cells of a sheet; height of a caption


# ------------------------------------------------------------------------------------------ colours
def kind_of(task, array):
    """How a task is drawn: by KINDS, or by the array where the task is not known there.

    (H, W, 3) of uint8 is an image and of floats normals; (H, W) of integers are classes and of
    floats depth.
    """
    if task in KINDS:
        return KINDS[task]
    if array.ndim == 3:
        return "image" if array.dtype == np.uint8 else "normal"
    return "depth" if np.issubdtype(array.dtype, np.floating) else "classes"


def oklab(colours):
    """RGB in [0, 255] (..., 3) -> Oklab (Ottosson, 2020): distances are as the eye sees them."""
    to_cones = np.array([
        [0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]])
    to_lab = np.array([
        [0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]])
    linear = (np.asarray(colours) / 255) ** 2.2
    return np.cbrt(linear @ to_cones.T) @ to_lab.T


@functools.cache
def palette():
    """(256, 3) uint8: light grey, then always the soft colour farthest from all before and VOID."""
    hue, saturation, value = np.meshgrid(np.arange(0, 256, 8), (90, 140), (120, 160, 200, 240))
    hsv = np.stack([hue, saturation, value], -1).reshape(1, -1, 3).astype(np.uint8)
    candidates = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))[0]  # (256, 3)
    places = oklab(candidates)
    taken = [np.linalg.norm(places - oklab(colour), axis=1) for colour in (VOID, BACKGROUND)]
    gap = np.minimum(*taken)  # (256,): each candidate's distance to the nearest that is taken
    chosen = [np.array(BACKGROUND)]
    while len(chosen) < 256:
        best = gap.argmax()
        chosen.append(candidates[best])
        gap = np.minimum(gap, np.linalg.norm(places - places[best], axis=1))
    return np.array(chosen, np.uint8)


def class_colours(count):
    """(count, 3) uint8 colours of the classes 0, 1 ..., the same in every picture; up to 256."""
    return palette()[:count]


def depth_span(depth):
    """Nearest and farthest valid metres of a depth map; (0, 1) where nothing is valid."""
    valid = depth[np.isfinite(depth) & (depth > 0)]
    return (float(valid.min()), float(valid.max())) if valid.size else (0.0, 1.0)


def colourise(task, label, depth_range=None):
    """A label or a prediction -> uint8 (H, W, 3) picture; what the ground truth ignores is dark.

    Classes in `class_colours`. Probabilities and 0/1 labels from white to blue. Depth: viridis,
    near dark, over `depth_range` (metres; default its own). Normals: (n + 1) / 2 as RGB with x
    right, y up, z towards the viewer, as the field does; in the file y is down and z forward.
    """
    kind = kind_of(task, label)
    if kind == "image":
        return label
    if kind == "normal":
        vector = label.astype(np.float32) * (1, -1, -1)
        picture, ignored = 127.5 + 127.5 * vector, ~(np.isfinite(vector).all(-1) & vector.any(-1))
    elif kind == "depth":
        near, far = depth_range or depth_span(label)
        place = np.clip((label - near) / max(far - near, 1e-6), 0, 1) * (len(VIRIDIS) - 1)
        picture = np.stack([np.interp(place, range(len(VIRIDIS)), band) for band in VIRIDIS.T], -1)
        ignored = ~(np.isfinite(label) & (label > 0))
    elif kind == "probability":
        picture = 255 - label.astype(np.float32)[..., None] * (255 - np.array(CERTAIN))
        ignored = (label == 255) | ~np.isfinite(label)
    else:
        picture, ignored = palette()[label.astype(np.uint8)], label == 255
    picture = np.where(ignored[..., None], VOID, picture)
    return np.rint(picture).astype(np.uint8)


# ------------------------------------------------------------------------------------------- sheets
@functools.cache
def font():
    return ImageFont.load_default(14)


def fitted(text, width):
    """The text, with dots for its end where it is wider than `width` pixels."""
    if font().getlength(text) <= width:
        return text
    while text and font().getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def legend(classes, width):
    """Task -> class names -> PIL picture of `width` pixels that shows the colour of every class."""
    entries, x, y = [], GUTTER, 4
    for task, names in classes.items():
        if KINDS.get(task, "classes") != "classes":
            continue
        for colour, name in ((None, f"{task}:"), *zip(class_colours(len(names)).tolist(), names)):
            indent = 19 if colour else 0
            name = fitted(name, width - 2 * GUTTER - indent)
            advance = indent + round(font().getlength(name)) + 12
            if x > GUTTER and x + advance - 12 > width - GUTTER:
                x, y = GUTTER, y + CAPTION
            entries.append((x, y, colour, name))
            x += advance
        x, y = GUTTER, y + CAPTION + 4
    sheet = Image.new("RGB", (width, y if entries else 0), "white")
    pen = ImageDraw.Draw(sheet)
    for x, y, colour, name in entries:
        if colour:
            pen.rectangle((x, y + 2, x + 13, y + 15), tuple(colour), "black")
        pen.text((x + (19 if colour else 0), y), name, "black", font())
    return sheet


def cell_size(height, width, wanted):
    """(width, height) of a cell about `wanted` wide: a small picture grows by a whole factor."""
    cell = wanted if width >= wanted else width * max(round(wanted / width), 1)
    return cell, min(max(round(cell * height / width), 1), 4 * cell)  # whatever the picture's shape


def panel(rows, captions, classes, width=240):
    """Rows of pictures of one shape, uint8 (h, w, 3), None for an empty cell -> one PIL picture.

    Columns are about `width` pixels wide; what is enlarged stays crisp, a pixel becomes a square.
    captions: a string per cell, written above it; the legend of `classes` stands at the foot.
    """
    shape = next(tile.shape for row in rows for tile in row if tile is not None)
    cell = cell_size(*shape[:2], width)
    step = cell[0] + GUTTER, CAPTION + cell[1] + GUTTER
    total, foot = GUTTER + len(rows[0]) * step[0], 4 + len(rows) * step[1]
    names = legend(classes, total)
    sheet = Image.new("RGB", (total, foot + names.height), "white")
    sheet.paste(names, (0, foot))
    pen = ImageDraw.Draw(sheet)
    for y, (row, words) in enumerate(zip(rows, captions)):
        for x, (picture, text) in enumerate(zip(row, words)):
            left, top = GUTTER + x * step[0], 4 + y * step[1]
            pen.text((left, top), fitted(text, cell[0]), "black", font())
            if picture is None:
                continue
            method = Image.Resampling.NEAREST if cell[0] > shape[1] else Image.Resampling.BOX
            sheet.paste(Image.fromarray(picture).resize(cell, method), (left, top + CAPTION))
            frame = left - 1, top + CAPTION - 1, left + cell[0], top + CAPTION + cell[1]
            pen.rectangle(frame, outline="darkgrey")  # white pictures have an edge too
    return sheet


def task_caption(task, span=None):
    """What stands above a task's picture; span: metres, of depth."""
    return f"{task}, {span[0]:.1f} (dark) to {span[1]:.1f} m" if span else task


def as_label(prediction):
    """A postprocessed prediction, (1, H, W), (3, H, W) or (H, W) -> laid out as in a data file."""
    if prediction.ndim == 3:  # depth, normals
        return prediction[0] if len(prediction) == 1 else prediction.transpose(1, 2, 0)
    whole = np.issubdtype(prediction.dtype, np.integer)
    return prediction.astype(np.uint8) if whole else prediction


def preview(samples, classes, width=240):
    """What a data file and a network say of some images -> PIL picture.

    samples: (name, image uint8 (H, W, 3), {task: label}, {task: prediction} or None) per image:
    a row of labels and, where there are predictions, a row of them below, depth in the same
    colours. classes: task -> class names.
    """
    rows, captions = [], []
    for name, image, labels, predictions in samples:
        spans = {task: depth_span(label) if kind_of(task, label) == "depth" else None
                 for task, label in labels.items()}
        rows.append([image, *(colourise(task, labels[task], spans[task]) for task in labels)])
        captions.append([name, *(task_caption(task, spans[task]) for task in labels)])
        if predictions:
            tiles = [colourise(task, predictions[task], spans[task]) for task in labels]
            rows.append([None, *tiles])
            captions.append(["", *(f"{task}, predicted" for task in labels)])
    return panel(rows, captions, classes, width)
