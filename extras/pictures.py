# SPDX-License-Identifier: MIT
"""Every picture that the program makes: the tasks' colours, panels, legends, previews.

A task looks the same everywhere, because it is drawn here only. Labels and predictions come as
numpy arrays laid out as in a data file. Pictures are uint8 (H, W, 3) arrays, sheets of them PIL
pictures. Needs numpy and PIL, nothing of ours.
"""

import functools
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

KINDS = {  # how a task is drawn; for a task that is not here see kind_of
    "image": "image",
    "semseg": "classes",
    "parsing": "classes",
    "saliency": "probability",
    "boundary": "probability",
    "depth": "depth",
    "normal": "normal",
}

IGNORED = 255  # in labels of classes and probabilities
VOID = (40, 40, 40)  # colour of ignored pixels
BACKGROUND = (208, 208, 208)  # class 0, most often the background
CERTAIN = (0, 60, 130)  # probability 1; not black, which would pass for VOID

# matplotlib's colour map viridis at 13 places: safe for the colour-blind.
VIRIDIS = np.array(
    [
        (68, 1, 84),
        (72, 31, 113),
        (68, 58, 131),
        (59, 82, 139),
        (49, 104, 142),
        (40, 124, 142),
        (33, 144, 140),
        (32, 164, 134),
        (53, 183, 121),
        (93, 201, 99),
        (143, 215, 68),
        (199, 224, 32),
        (253, 231, 37),
    ]
)


# ----------------------------------------------------------------------------------- class colours
# RGB to the eye's cones and on to Oklab (Bjorn Ottosson, "A perceptual color space for image
# processing", 2020). Distances in Oklab are about as the eye sees them.
RGB_TO_CONES = np.array(
    [
        [0.4122, 0.5363, 0.0514],
        [0.2119, 0.6807, 0.1074],
        [0.0883, 0.2817, 0.6300],
    ]
)
CONES_TO_OKLAB = np.array(
    [
        [0.2105, 0.7936, -0.0041],
        [1.9780, -2.4286, 0.4506],
        [0.0259, 0.7828, -0.8087],
    ]
)


def oklab(colours):
    """sRGB in [0, 255] (..., 3) -> Oklab (..., 3)."""
    linear = (np.asarray(colours) / 255) ** 2.2
    cones = np.cbrt(linear @ RGB_TO_CONES.T)
    return cones @ CONES_TO_OKLAB.T


def soft_colours():
    """(256, 3) uint8: all hues in two saturations and four brightnesses."""
    hue, saturation, value = np.meshgrid(range(0, 256, 8), (90, 140), (120, 160, 200, 240))
    hsv = np.stack([hue, saturation, value], axis=-1).reshape(1, -1, 3).astype(np.uint8)
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))[0]


@functools.cache
def palette():
    """(256, 3) uint8: BACKGROUND, then always the soft colour farthest from all that are taken.

    VOID counts as taken. So the first n colours are far apart for any n.
    """
    candidates = soft_colours()
    places = oklab(candidates)
    from_void = np.linalg.norm(places - oklab(VOID), axis=1)
    from_background = np.linalg.norm(places - oklab(BACKGROUND), axis=1)
    gap = np.minimum(from_void, from_background)  # (256,): to the nearest colour that is taken

    chosen = [np.array(BACKGROUND)]
    while len(chosen) < 256:
        farthest = gap.argmax()
        chosen.append(candidates[farthest])
        from_chosen = np.linalg.norm(places - places[farthest], axis=1)
        gap = np.minimum(gap, from_chosen)
    return np.array(chosen, np.uint8)


def class_colours(count):
    """(count, 3) uint8 colours of the classes 0, 1 ..., the same in every picture; up to 256."""
    return palette()[:count]


# ------------------------------------------------------------------------------------------- tasks
# Each draw_ function returns a picture (H, W, 3), not yet rounded, and the ignored pixels (H, W).


def kind_of(task, array):
    """How a task is drawn: by KINDS, or by the array where the task is not known there.

    (H, W, 3) of uint8 is an image and of floats normals. (H, W) of integers are classes and of
    floats depth.
    """
    if task in KINDS:
        return KINDS[task]
    if array.ndim == 3:
        return "image" if array.dtype == np.uint8 else "normal"
    return "depth" if np.issubdtype(array.dtype, np.floating) else "classes"


def depth_span(depth):
    """Nearest and farthest valid metres of a depth map; (0, 1) where nothing is valid."""
    valid = depth[np.isfinite(depth) & (depth > 0)]
    if valid.size == 0:
        return 0.0, 1.0
    return float(valid.min()), float(valid.max())


def draw_classes(label):
    return palette()[label.astype(np.uint8)], label == IGNORED


def draw_probability(probability):
    """From white at 0 to CERTAIN at 1."""
    darkness = 255 - np.array(CERTAIN)
    picture = 255 - probability.astype(np.float32)[..., None] * darkness
    ignored = (probability == IGNORED) | ~np.isfinite(probability)
    return picture, ignored


def draw_depth(depth, span):
    """Viridis, near dark, over span: metres (near, far)."""
    near, far = span
    share = np.clip((depth - near) / max(far - near, 1e-6), 0, 1)
    place = share * (len(VIRIDIS) - 1)  # (H, W), between the rows of VIRIDIS

    rows = range(len(VIRIDIS))
    bands = [np.interp(place, rows, VIRIDIS[:, band]) for band in range(3)]
    ignored = ~(np.isfinite(depth) & (depth > 0))
    return np.stack(bands, axis=-1), ignored


def draw_normals(normal):
    """(n + 1) / 2 as RGB with x right, y up, z towards the viewer, as the field does.

    In the file y is down and z forward.
    """
    picture = 127.5 + 127.5 * (normal.astype(np.float32) * (1, -1, -1))
    valid = np.isfinite(normal).all(-1) & normal.any(-1)
    return picture, ~valid


def colourise(task, label, depth_range=None):
    """A label or a prediction -> uint8 (H, W, 3) picture; what the ground truth ignores is dark.

    Classes have the colours of class_colours, probabilities and 0/1 labels go from white to blue,
    depth from dark to light over depth_range (metres; by default its own span). Normals: see
    draw_normals. An image stays as it is.
    """
    kind = kind_of(task, label)
    if kind == "image":
        return label
    if kind == "normal":
        picture, ignored = draw_normals(label)
    elif kind == "depth":
        picture, ignored = draw_depth(label, depth_range or depth_span(label))
    elif kind == "probability":
        picture, ignored = draw_probability(label)
    else:
        picture, ignored = draw_classes(label)

    picture = np.where(ignored[..., None], VOID, picture)
    return np.rint(picture).astype(np.uint8)


def as_label(prediction):
    """A postprocessed prediction, (1, H, W), (3, H, W) or (H, W) -> laid out as in a data file."""
    if prediction.ndim == 3 and len(prediction) == 1:  # depth
        return prediction[0]
    if prediction.ndim == 3:  # normals
        return prediction.transpose(1, 2, 0)
    if np.issubdtype(prediction.dtype, np.integer):
        return prediction.astype(np.uint8)
    return prediction


# ------------------------------------------------------------------------------------------ legend
GUTTER = 8  # pixels between the cells of a sheet, and at its sides
CAPTION = 20  # height of a line of text
TOP = 4  # pixels above the first line
SQUARE = 13  # side of a colour in the legend
TEXT_INDENT = 19  # from the left of a square to its text
ENTRY_GAP = 12  # between the entries of a line
TASK_GAP = 4  # between the lines of two tasks


@dataclass(frozen=True)
class Entry:
    """A word of the legend."""

    left: int
    top: int
    text: str
    colour: tuple | None  # of the square before the text, if there is one

    @property
    def text_left(self):
        return self.left if self.colour is None else self.left + TEXT_INDENT


@functools.cache
def font():
    return ImageFont.load_default(14)


def text_width(text):
    return font().getlength(text)


def fitted(text, width):
    """The text, with dots for its end where it is wider than `width` pixels."""
    if text_width(text) <= width:
        return text
    while text and text_width(text + "...") > width:
        text = text[:-1]
    return text + "..."


def set_legend(classes, width):
    """Set the legend's words in lines -> entries, height in pixels."""
    entries = []
    top = TOP
    for task, names in classes.items():
        if KINDS.get(task, "classes") != "classes":
            continue

        colours = [tuple(colour) for colour in class_colours(len(names)).tolist()]
        left = GUTTER
        for colour, text in [(None, f"{task}:"), *zip(colours, names)]:
            indent = TEXT_INDENT if colour else 0
            text = fitted(text, width - 2 * GUTTER - indent)
            entry_width = indent + round(text_width(text))
            if left > GUTTER and left + entry_width > width - GUTTER:  # a new line
                left = GUTTER
                top += CAPTION
            entries.append(Entry(left, top, text, colour))
            left += entry_width + ENTRY_GAP
        top += CAPTION + TASK_GAP
    height = top if entries else 0
    return entries, height


def legend(classes, width):
    """Task -> class names -> PIL picture of `width` pixels that shows the colour of every class."""
    entries, height = set_legend(classes, width)
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    for entry in entries:
        if entry.colour:
            top = entry.top + 2
            square = (entry.left, top, entry.left + SQUARE, top + SQUARE)
            pen.rectangle(square, fill=entry.colour, outline="black")
        pen.text((entry.text_left, entry.top), entry.text, "black", font())
    return sheet


# ------------------------------------------------------------------------------------------ sheets
def cell_size(height, width, wanted):
    """(width, height) of a cell about `wanted` wide: a small picture grows by a whole factor.

    A cell is at most 4 times as high as wide, whatever the picture's shape.
    """
    cell_width = wanted
    if width < wanted:
        cell_width = width * max(round(wanted / width), 1)
    cell_height = max(round(cell_width * height / width), 1)
    return cell_width, min(cell_height, 4 * cell_width)


def resized(picture, size):
    """What is enlarged stays crisp, a pixel becomes a square; what shrinks is averaged."""
    is_enlarged = size[0] > picture.shape[1]
    method = Image.Resampling.NEAREST if is_enlarged else Image.Resampling.BOX
    return Image.fromarray(picture).resize(size, method)


def panel(rows, captions, classes, width=240):
    """Rows of pictures of one shape, uint8 (h, w, 3), None for an empty cell -> one PIL picture.

    captions: a string per cell, written above it. Columns are about `width` pixels wide. The legend
    of `classes` stands at the foot.
    """
    pictures = [picture for row in rows for picture in row if picture is not None]
    height_in_pixels, width_in_pixels, _ = pictures[0].shape
    cell = cell_size(height_in_pixels, width_in_pixels, width)
    cell_width, cell_height = cell
    column_step = cell_width + GUTTER
    row_step = CAPTION + cell_height + GUTTER

    sheet_width = GUTTER + len(rows[0]) * column_step
    foot = TOP + len(rows) * row_step
    class_names = legend(classes, sheet_width)
    sheet = Image.new("RGB", (sheet_width, foot + class_names.height), "white")
    sheet.paste(class_names, (0, foot))

    pen = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            left = GUTTER + j * column_step
            top = TOP + i * row_step
            pen.text((left, top), fitted(captions[i][j], cell_width), "black", font())
            if picture is None:
                continue

            top += CAPTION
            sheet.paste(resized(picture, cell), (left, top))
            frame = (left - 1, top - 1, left + cell_width, top + cell_height)
            pen.rectangle(frame, outline="darkgrey")  # white pictures have an edge too
    return sheet


def task_caption(task, span=None):
    """What stands above a task's picture; span: metres, of depth."""
    if span is None:
        return task
    near, far = span
    return f"{task}, {near:.1f} (dark) to {far:.1f} m"


def preview(samples, classes, width=240):
    """What a data file and a network say of some images -> PIL picture.

    samples: (name, image uint8 (H, W, 3), {task: label}, {task: prediction} or None) per image:
    a row of labels and, where there are predictions, a row of them below, depth in the same
    colours. classes: task -> class names.
    """
    rows = []
    captions = []
    for name, image, labels, predictions in samples:
        row = [image]
        caption = [name]
        row_below = [None]
        caption_below = [""]
        for task, label in labels.items():
            span = depth_span(label) if kind_of(task, label) == "depth" else None
            row.append(colourise(task, label, span))
            caption.append(task_caption(task, span))
            if predictions:
                row_below.append(colourise(task, predictions[task], span))
                caption_below.append(f"{task}, predicted")

        rows.append(row)
        captions.append(caption)
        if predictions:
            rows.append(row_below)
            captions.append(caption_below)
    return panel(rows, captions, classes, width)
