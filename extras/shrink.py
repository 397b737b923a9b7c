# SPDX-License-Identifier: MIT
"""Samples at a fraction of their size, for CPUs and classrooms: K x K pixels become one."""

import numpy as np

from extras.odsf import thin
from extras.rawfiles import as_unit

IGNORED = 255  # in labels of classes


def shrink_sample(sample, k):
    """{array: (h, w, ...)} -> the same at (h // k, w // k); rows and columns beyond that are lost.

    Choices: the image by area, classes by the centre pixel, depth and normals by the mean of what
    is valid, a boundary where a block holds one, thinned again.
    """
    small = {name: shrink_array(name, array, k) for name, array in sample.items()}
    parsing = small.get("parsing")
    if parsing is not None and not ((parsing > 0) & (parsing != IGNORED)).any():
        # The last part is lost. As in any image without one nothing is known of its pixels.
        small["parsing"] = np.full_like(parsing, IGNORED)
    return small


def shrink_array(name, array, k):
    blocks = in_blocks(array, k)
    if name == "image":
        mean = blocks.mean((2, 3), dtype=np.float32)
        return np.rint(mean).astype(np.uint8)
    if name == "depth":
        return mean_of_valid(blocks[..., None])[..., 0].astype(np.float32)
    if name == "normal":
        # Those that cancel one another out are missing.
        return as_unit(mean_of_valid(blocks), shortest=0.1)
    if name == "boundary":
        return shrink_boundary(blocks)
    return centre(blocks)


def in_blocks(array, k):
    """(h, w, ...) -> (h // k, w // k, k, k, ...)."""
    rows = array.shape[0] // k
    columns = array.shape[1] // k
    whole = array[: rows * k, : columns * k]
    blocks = whole.reshape(rows, k, columns, k, *array.shape[2:])
    return blocks.swapaxes(1, 2)


def centre(blocks):
    """The middle pixel of each block; of an even block the one below and right of the middle."""
    middle = blocks.shape[2] // 2
    return blocks[:, :, middle, middle]


def mean_of_valid(blocks):
    """(rows, columns, k, k, channels) -> (rows, columns, channels); 0 where all is missing, 0."""
    values = blocks.astype(np.float32)
    valid = values.any(-1).sum((2, 3))  # how many of each block
    return values.sum((2, 3)) / np.maximum(valid, 1)[..., None]


def shrink_boundary(blocks):
    """Where a block holds a boundary, thinned; ignored where the centre is and it holds none."""
    holds = (blocks == 1).any((2, 3))
    label = thin(holds).astype(np.uint8)
    ignored = (centre(blocks) == IGNORED) & ~holds
    label[ignored] = IGNORED
    return label


def print_tolerance(dataset, size, k):
    """The tolerance of boundary matching is a share of the diagonal of (H, W): it shrinks, too."""
    from mtcd import PROTOCOLS  # imports torch

    share = PROTOCOLS[dataset].max_dist
    pixels = share * np.hypot(*size)
    print(
        f"odsF: boundaries match within {share:g} of the diagonal, "
        f"{pixels / k:.1f} pixels here, {pixels:.1f} without --shrink, in the largest images"
    )
