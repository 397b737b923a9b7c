# SPDX-License-Identifier: MIT
"""extras/normals.py against geometry; the order of work in extras/datafile.py."""
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from extras.datafile import in_order
from extras.normals import normals_from_depth

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
    return np.degrees(2 * np.arctan2(np.linalg.norm(a - b, axis=-1),
                                     np.linalg.norm(a + b, axis=-1)))


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


@pytest.mark.parametrize("centre, radius", [((0, 0, 2), .5), ((.3, -.2, 3), 1),
                                            ((-.5, .2, 1.5), .3)])
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
