# SPDX-License-Identifier: MIT
"""Surface normals fitted to a depth map, for data sets that come without normals.

A plane a' x + b' y + c' z = 1 seen by a pinhole camera is linear in inverse depth:

    q = 1/Z = a u + b v + c    with u = (column - cx) / fx, v = (row - cy) / fy

because x = u Z and y = v Z. So its normal is along (a, b, c), or -(a, b, c) towards the camera. A
least-squares fit to a square window needs nine means over the window, which box filters give.
"""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import uniform_filter

CREASE = 0.002  # a fit that is off by this share of the distance spans two surfaces (our choice)
GAIN = 4  # a shifted window must have less than a quarter of the mean square error (our choice)


class Fit(NamedTuple):
    """Planes fitted to the window around every pixel."""

    vector: np.ndarray  # (h, w, 3): -(a, b, c); 0 where too little is seen
    error: (
        np.ndarray
    )  # (h, w): mean square of the error in 1/Z, 1/m^2; inf where too little is seen
    inverse_depth: np.ndarray  # (h, w): mean of 1/Z over the window, 1/m


def normals_from_depth(depth, intrinsics, radius=5):
    """Metres (h, w), 0 missing; (fx, fy, cx, cy) in pixels -> normals (h, w, 3) of any length.

    They are in camera axes, x right, y down, z forward, and point at the camera; 0 where depth is
    missing or too little is seen. Windows are 2 radius + 1 pixels wide. One across an edge of depth
    or a crease gives way to one shifted by its radius, with the pixel still in it, if that has
    under half the error.
    """
    seen = (depth > 0).astype(float)
    fit = fit_planes(depth, seen, intrinsics, radius)
    return best_around(fit, radius) * seen[..., None]


def fit_planes(depth, seen, intrinsics, radius):
    """The least-squares fit of q = a u + b v + c in every window -> Fit."""
    fx, fy, cx, cy = intrinsics
    height, width = depth.shape
    side = 2 * radius + 1
    u = (np.arange(width) - cx) / fx * seen
    v = (np.arange(height)[:, None] - cy) / fy * seen
    q = seen / np.where(depth > 0, depth, 1)

    # Means are over what is seen of a window; a window with nothing is divided by half a pixel.
    share = np.maximum(uniform_filter(seen, side, mode="constant"), 0.5 / side**2)

    def mean(values):
        return uniform_filter(values, side, mode="constant") / share

    mean_u = mean(u)
    mean_v = mean(v)
    mean_q = mean(q)

    # Variances and covariances.
    uu = mean(u * u) - mean_u * mean_u
    uv = mean(u * v) - mean_u * mean_v
    vv = mean(v * v) - mean_v * mean_v
    uq = mean(u * q) - mean_u * mean_q
    vq = mean(v * q) - mean_v * mean_q
    qq = mean(q * q) - mean_q * mean_q

    # The normal equations, solved by Cramer's rule.
    determinant = uu * vv - uv * uv
    solid = determinant > 1e-12  # what is seen is at least two pixels wide
    determinant = np.where(solid, determinant, np.inf)
    a = (uq * vv - vq * uv) / determinant
    b = (vq * uu - uq * uv) / determinant
    minus_c = (a * mean_u + b * mean_v - mean_q) * solid

    error = np.maximum(qq - a * uq - b * vq, 0)
    error = np.where(solid, error, np.inf)
    return Fit(np.dstack([-a, -b, minus_c]), error, mean_q)


def best_around(fit, radius):
    """The vectors of a Fit; at edges and creases those of the best of nine windows."""
    height, width = fit.error.shape
    vector = fit.vector.copy()
    spans_two = fit.error > (CREASE * fit.inverse_depth) ** 2
    best = np.where(spans_two, fit.error / GAIN, 0)  # another must have less; 0: none has

    errors = np.pad(fit.error, radius, constant_values=np.inf)
    vectors = np.pad(fit.vector, ((radius, radius), (radius, radius), (0, 0)))
    for top in (0, radius, 2 * radius):
        for left in (0, radius, 2 * radius):
            window = np.s_[top : top + height, left : left + width]
            better = errors[window] < best
            best[better] = errors[window][better]
            vector[better] = vectors[window][better]
    return vector
