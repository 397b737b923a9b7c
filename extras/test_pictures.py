# SPDX-License-Identifier: MIT
"""Tests of pictures.py against matplotlib's and scikit-image's colours, and pixel by pixel."""

from itertools import pairwise

import numpy as np
import pytest

from extras import pictures

VOID = list(pictures.VOID)
WHITE = [255, 255, 255]
CERTAIN = list(pictures.CERTAIN)
VIRIDIS = pictures.VIRIDIS.tolist()
CLASSES = pictures.class_colours(256).tolist()


def colours_of(task, pixels, kind, depth_range=None):
    """The colours of a row of pixels, given as a list, of an array of this kind."""
    label = np.array([pixels], kind)
    return pictures.colourise(task, label, depth_range)[0].tolist()


# ---------------------------------------------------------------------------------- class colours
def test_forty_classes_and_void_stay_apart_for_the_eye():
    color = pytest.importorskip("skimage.color")
    colours = np.vstack([pictures.class_colours(40), [pictures.VOID]])
    lab = color.rgb2lab(colours[None] / 255)[0]
    gap = color.deltaE_ciede2000(lab[:, None], lab[None]) + 100 * np.eye(41)
    assert gap.min() > 7  # hues a golden angle apart: 1.7
    assert gap[:15, :15].min() > 15


def test_a_class_has_its_colour_however_many_there_are():
    few = pictures.class_colours(3)
    assert (few == pictures.class_colours(256)[:3]).all()
    assert tuple(few[0]) == pictures.BACKGROUND


def test_oklab_has_white_black_and_red_where_ottosson_has_them():
    white, black, red = pictures.oklab([WHITE, [0, 0, 0], [255, 0, 0]])
    assert white == pytest.approx([1, 0, 0], abs=2e-3)
    assert black == pytest.approx([0, 0, 0])
    assert red == pytest.approx([0.628, 0.225, 0.126], abs=2e-3)


# ------------------------------------------------------------------------------------------ tasks
def test_depth_is_matplotlibs_viridis_near_dark():
    viridis = pytest.importorskip("matplotlib").colormaps["viridis"]
    depth = np.linspace(1, 5, 256, dtype=np.float32)[None]
    expected = 255 * viridis(np.arange(256))[:, :3]
    assert abs(pictures.colourise("depth", depth)[0] - expected).max() <= 11


def test_depth_has_its_span_and_void_where_it_is_missing():
    depth = [0, 1, 2, np.nan, np.inf, 3]
    expected = [VOID, VIRIDIS[0], VIRIDIS[-1], VOID, VOID, VIRIDIS[-1]]
    assert colours_of("depth", depth, np.float32, (1, 2)) == expected


def test_depth_span_is_of_valid_pixels():
    assert pictures.depth_span(np.array([0, 4, 2, np.nan, np.inf])) == (2, 4)
    assert colours_of("depth", [0, 2, 4], np.float32) == [VOID, VIRIDIS[0], VIRIDIS[-1]]
    assert pictures.depth_span(np.zeros(3)) == (0, 1)
    assert colours_of("depth", [0, 0], np.float32) == [VOID, VOID]


def test_normals_have_the_fields_colours():
    # In the file x is right, y down, z forward.
    right = (1, 0, 0)
    up_like_a_floor = (0, -1, 0)
    to_the_viewer = (0, 0, -1)
    missing = (0, 0, 0)
    drawn = colours_of("normal", [right, up_like_a_floor, to_the_viewer, missing], np.float16)
    assert drawn == [[255, 128, 128], [128, 255, 128], [128, 128, 255], VOID]


def test_probabilities_go_from_white_to_blue():
    zero, half, one, missing = colours_of("saliency", [0, 0.5, 1, np.nan], np.float32)
    assert zero == WHITE
    assert one == CERTAIN
    assert missing == VOID
    assert half == pytest.approx(np.mean([WHITE, CERTAIN], axis=0), abs=0.5)


def test_labels_of_0_and_1_are_drawn_as_probabilities():
    assert colours_of("boundary", [0, 1, 255], np.uint8) == [WHITE, CERTAIN, VOID]


def test_classes_have_their_colours_and_255_is_void():
    assert colours_of("semseg", [0, 7, 255], np.uint8) == [CLASSES[0], CLASSES[7], VOID]


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64])
def test_an_unknown_task_of_integers_is_drawn_as_classes(kind):
    assert colours_of("new", [0, 1], kind) == CLASSES[:2]


def test_other_unknown_tasks_are_drawn_by_their_array():
    ramp = np.arange(12).reshape(1, 4, 3)
    for known, array in {
        "image": ramp.astype(np.uint8),
        "normal": ramp.astype(np.float32),
        "depth": ramp[..., 0].astype(np.float32),
    }.items():
        assert (pictures.colourise("new", array) == pictures.colourise(known, array)).all()


def test_predictions_become_labels():
    depth = np.ones((1, 2, 3))
    assert pictures.as_label(depth).shape == (2, 3)
    normal = np.arange(60).reshape(3, 4, 5)
    assert pictures.as_label(normal)[2, 1].tolist() == normal[:, 2, 1].tolist()
    classes = np.array([[3, 200]])
    assert pictures.as_label(classes).dtype == np.uint8
    probability = np.array([[0.25, 1]])
    assert pictures.as_label(probability) is probability


# ----------------------------------------------------------------------------------------- legend
def test_legend_shows_every_class_and_clips_nothing():
    names = [f"a rather long name {i}" for i in range(40)]
    width = 500
    sheet = np.asarray(pictures.legend({"semseg": names, "parts": ["endless " * 30]}, width))
    for colour in pictures.class_colours(40):
        assert (sheet == colour).all(2).sum() >= 100  # a filled square
    assert sheet.shape[1] == width
    assert (sheet[:, : pictures.GUTTER] == 255).all()
    assert (sheet[:, -pictures.GUTTER :] == 255).all()
    assert (sheet[-4:] == 255).all()


def test_legend_entries_do_not_overlap():
    names = [f"class {i}" * (1 + i % 3) for i in range(40)]
    entries, height = pictures.set_legend({"semseg": names, "parsing": names}, 300)
    assert len(entries) == 2 * (40 + 1)
    assert max(entry.top for entry in entries) + pictures.CAPTION <= height
    for one, following in pairwise(entries):
        right = one.text_left + pictures.font().getlength(one.text)
        assert right <= 300 - pictures.GUTTER + 1
        assert following.top > one.top or following.left >= right


def test_legend_shows_unknown_tasks_if_they_have_classes():
    entries, _ = pictures.set_legend({"new": ["a", "b"]}, 300)
    assert [entry.text for entry in entries] == ["new:", "a", "b"]
    assert [entry.colour for entry in entries] == [None, *map(tuple, CLASSES[:2])]


def test_legend_leaves_out_tasks_without_classes():
    assert pictures.legend({"saliency": ["no", "yes"], "depth": []}, 100).height == 0


def test_long_text_ends_in_dots():
    assert pictures.fitted("short", 100) == "short"
    text = pictures.fitted("a caption that is too long", 100)
    assert text.endswith("...")
    assert 80 < pictures.font().getlength(text) <= 100


# ----------------------------------------------------------------------------------------- sheets
def random_picture(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def cells_of(sheet, height, width):
    """The cells of a sheet, below their captions: cells[row][column] (height, width, 3)."""
    pixels = np.asarray(sheet)
    step_down = pictures.CAPTION + height + pictures.GUTTER
    step_right = width + pictures.GUTTER
    cells = []
    for top in range(pictures.TOP + pictures.CAPTION, sheet.height - height + 1, step_down):
        row = pixels[top : top + height]
        lefts = range(pictures.GUTTER, sheet.width - width, step_right)
        cells.append([row[:, left : left + width] for left in lefts])
    return cells


def test_small_pictures_become_crisp_squares():
    small = random_picture(0, 6, 8)
    sheet = pictures.panel([[small]], [["x"]], {}, width=40)
    expected = small.repeat(5, 0).repeat(5, 1)
    assert np.array_equal(cells_of(sheet, 30, 40)[0][0], expected)


def test_large_pictures_keep_thin_lines():
    picture = np.full((400, 400, 3), 255, np.uint8)
    picture[:, 201] = 0
    sheet = pictures.panel([[picture]], [[""]], {}, width=100)
    line = cells_of(sheet, 100, 100)[0][0][50, :, 0]
    assert line[50] == round(255 * 3 / 4)
    assert (np.delete(line, 50) == 255).all()


@pytest.mark.parametrize(
    "shape, wanted, size",
    [
        ((425, 560), 240, (240, 182)),
        ((60, 80), 240, (240, 180)),
        ((60, 100), 240, (200, 120)),  # twice: 240 / 100 rounded
        ((60, 90), 240, (270, 180)),  # three times
        ((10, 200), 240, (200, 10)),
        ((600, 2), 240, (240, 960)),  # at most 4 times as high as wide
        ((2, 6000), 240, (240, 1)),
    ],
)
def test_cells_are_about_as_wide_as_wanted(shape, wanted, size):
    assert pictures.cell_size(*shape, wanted) == size


def test_cells_stand_in_rows_and_columns_and_may_be_empty():
    a = random_picture(1, 20, 60)
    b = random_picture(2, 20, 60)
    captions = [["", ""], ["", ""]]
    sheet = pictures.panel([[a, None], [None, b]], captions, {}, width=60)
    cells = cells_of(sheet, 20, 60)
    assert np.array_equal(cells[0][0], a)
    assert np.array_equal(cells[1][1], b)
    assert (cells[0][1] == 255).all()
    assert (cells[1][0] == 255).all()


def test_the_legend_stands_below_the_cells():
    row = [random_picture(0, 10, 20)] * 3
    captions = [["x", "y", "z"]]
    classes = {"semseg": [f"class {i}" for i in range(30)]}
    plain = pictures.panel([row], captions, {})
    sheet = pictures.panel([row], captions, classes)
    legend = pictures.legend(classes, plain.width)
    stacked = np.concatenate([np.asarray(plain), np.asarray(legend)])
    assert np.array_equal(np.asarray(sheet), stacked)


def test_a_caption_of_depth_says_its_span():
    assert pictures.task_caption("normal") == "normal"
    assert pictures.task_caption("depth", (0.84, 7)) == "depth, 0.8 (dark) to 7.0 m"


def test_previews_show_predictions_in_the_labels_colours():
    image = random_picture(0, 30, 80)
    depth = np.full((30, 80), 2, np.float32)
    depth[:10] = 1
    semseg = image[..., 0] % 40
    labels = {"depth": depth, "semseg": semseg}
    predictions = {"depth": depth + 0.5, "semseg": semseg[::-1]}
    alone = ("without a network", image, labels, None)
    both = ("with one", image, labels, predictions)
    cells = cells_of(pictures.preview([alone, both], {}, width=80), 30, 80)

    assert len(cells) == 3
    for row in (0, 1):
        assert np.array_equal(cells[row][0], image)
        assert np.array_equal(cells[row][1], pictures.colourise("depth", depth))
        assert np.array_equal(cells[row][2], pictures.colourise("semseg", semseg))
    in_span = pictures.colourise("depth", depth + 0.5, (1, 2))
    assert (cells[2][0] == 255).all()
    assert np.array_equal(cells[2][1], in_span)
    assert np.array_equal(cells[2][2], pictures.colourise("semseg", semseg[::-1]))
