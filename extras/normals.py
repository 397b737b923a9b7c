# SPDX-License-Identifier: MIT
"""Surface normals fitted to a depth map, for data sets that come without normals."""
import numpy as np
from scipy.ndimage import uniform_filter


def normals_from_depth(depth, intrinsics, radius=5):
    """Metres (h, w), 0 missing; (fx, fy, cx, cy) in pixels -> normals (h, w, 3) of any length.

    They are in camera axes, x right, y down, z forward, and point at the camera; 0 where depth is
    missing or too little is seen. A plane seen by a pinhole camera is linear in inverse depth,
    1/Z = a x + b y + c with x = (column - cx) / fx, and its normal is -(a, b, c): the least-squares
    fit to a window of 2 radius + 1 pixels needs a few of the window's means. A window across an edge
    of depth or a crease, off by over 0.2 % of the distance, gives way to one shifted by its radius,
    the pixel still in it, with under half the error (our choice).
    """
    fx, fy, cx, cy = intrinsics
    height, width = depth.shape
    side = 2 * radius + 1
    seen = (depth > 0).astype(float)
    x = (np.arange(width) - cx) / fx * seen
    y = (np.arange(height)[:, None] - cy) / fy * seen
    q = seen / np.where(depth > 0, depth, 1)  # inverse depth
    share = np.maximum(uniform_filter(seen, side, mode="constant"), 0.5 / side ** 2)  # of a window

    def mean(values):
        return uniform_filter(values, side, mode="constant") / share

    mx, my, mq = mean(x), mean(y), mean(q)
    xx, xy, yy = mean(x * x) - mx * mx, mean(x * y) - mx * my, mean(y * y) - my * my
    xq, yq, qq = mean(x * q) - mx * mq, mean(y * q) - my * mq, mean(q * q) - mq * mq
    area = xx * yy - xy * xy
    solid = area > 1e-12  # at least two pixels wide
    area = np.where(solid, area, np.inf)
    a, b = (xq * yy - yq * xy) / area, (yq * xx - xq * xy) / area
    fit = np.dstack([-a, -b, (a * mx + b * my - mq) * solid])
    error = np.where(solid, np.maximum(qq - a * xq - b * yq, 0), np.inf)  # mean square, 1/m^2

    normal = fit.copy()
    best = np.where(error > (0.002 * mq) ** 2, error / 4, 0)  # a shifted one must have less; 0: none
    errors_around = np.pad(error, radius, constant_values=np.inf)
    fits_around = np.pad(fit, ((radius, radius), (radius, radius), (0, 0)))
    for dy in (0, radius, 2 * radius):
        for dx in (0, radius, 2 * radius):
            window = np.s_[dy:dy + height, dx:dx + width]
            better = errors_around[window] < best
            best[better] = errors_around[window][better]
            normal[better] = fits_around[window][better]
    return normal * seen[..., None]
