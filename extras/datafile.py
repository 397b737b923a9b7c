# SPDX-License-Identifier: MIT
"""Writing a data file safely: worker processes, a file that survives a full disk, checksums,
and a summary that a person would check.
"""

import io
import multiprocessing
import os
import signal
import sys
import textwrap
import threading
import time
import zlib
from collections import deque
from concurrent.futures import ProcessPoolExecutor

import numpy as np

USUALLY_VALID = {"parsing": 0.1, "normal": 0.1}  # shares of pixels; of other tasks MOSTLY
MOSTLY = 0.5


class Sink(io.FileIO):
    """A new file for h5py.File to write to; whether that goes well, only `failure` tells.

    HDF5 crashes where a write fails (disk full) or where an interrupt becomes an exception inside
    it, so both wait here, from entering the context to leaving it, until check() is called.
    """

    def __init__(self, path):
        super().__init__(path, "w+")
        self.failure = None
        self.handlers = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self.handlers[number] = signal.signal(number, self.interrupt)
        return super().__enter__()

    def __exit__(self, *error):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        super().__exit__(*error)

    def interrupt(self, *_):
        self.failure = KeyboardInterrupt()

    def write(self, data):
        data = memoryview(data)
        try:
            while data:
                written = super().write(data)
                data = data[written:]
        except OSError as error:
            self.failure = error

    def truncate(self, size):
        try:
            super().truncate(size)
        except OSError as error:
            self.failure = error

    def check(self):
        """Raise what has gone wrong, if anything has."""
        if self.failure:
            raise self.failure


def start_workers(count):
    """A pool of `count` processes that end when this one does, however it ends."""
    method = "fork" if sys.platform == "linux" else None
    context = multiprocessing.get_context(method)
    return ProcessPoolExecutor(count, context, follow_parent)


def follow_parent():
    """In a worker: leave Ctrl-C, which reaches all processes, to the parent; end when it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()

    def wait():
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def in_order(pool, function, items, ahead):
    """map(function, items) in the pool, in order; at most `ahead` results wait: memory is flat."""
    waiting = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def progress(items, count, what):
    """The items; prints every 10 s how many of `count` are done, how fast, and the time left."""
    start = time.monotonic()
    spoken = start
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if done == count or now > spoken + 10:
            spoken = now
            rate = done / max(now - start, 1e-9)
            left = (count - done) / rate
            print(f"{what} {done}/{count}, {rate:.1f}/s, {left:.0f} s left", flush=True)


def checksum(arrays):
    """{name: one image's array} -> CRC-32 of them all, in the order of their names."""
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(arrays[name], crc)
    return crc


def is_whole(group, index):
    """Whether an image of an HDF5 group can be read and has the checksum in its `crc32`."""
    try:
        arrays = {name: array[index] for name, array in group.items()}
        return arrays.pop("crc32") == checksum(arrays)
    except (KeyError, OSError, RuntimeError, TypeError, ValueError):  # damage shows in many ways
        return False


# ------------------------------------------------------------------------------------- the summary
def value_counts(task, label):
    """How often each value occurs (256,), the last of them ignored: classes, decimetres of depth.

    All valid normals count as 0.
    """
    if task == "depth":
        values = np.minimum(label * 10, 254).astype(np.uint8)
        values[label == 0] = 255
    elif task == "normal":
        values = np.where(label.any(2), np.uint8(0), np.uint8(255))
    else:
        values = label
    return np.bincount(values.ravel(), minlength=256)


def summarise(split, counts, class_names):
    """Print a line per task, and below it what is unusual.

    counts: {task: value_counts() of each image (N, 256)}; class_names: task -> names.
    """
    for task, per_image in counts.items():
        names = class_names.get(task)
        total = per_image.sum(0)
        share = total[:255].sum() / total.sum()
        images = per_image[:, :255].any(1).sum()
        detail = describe(task, total, names)
        print(f"{split:5} {task:8} {images:6} images, {100 * share:5.1f} % valid{detail}")
        for remark in unusual(task, per_image, names):
            print(textwrap.fill(remark, 96, initial_indent="    ! ", subsequent_indent="      "))


def describe(task, total, names):
    """What a person would look at first in the counts (256,) of a task."""
    valid = total[:255]
    if not valid.any():
        return ""
    if task == "depth":
        share = valid.cumsum() / valid.sum()
        near, middle, far = np.searchsorted(share, (0.001, 0.5, 0.999)) / 10
        return f", {near:.1f} to {far:.1f} m, half of it within {middle + 0.1:.1f} m"
    if task in ("saliency", "boundary"):
        return f", {100 * valid[1] / valid.sum():.1f} % {names[1]}"
    if names:
        return f", {np.count_nonzero(valid[: len(names)])} of {len(names)} classes"
    return ""


def unusual(task, per_image, names):
    """-> sentences on what to look at before training."""
    total = per_image.sum(0)
    share = total[:255].sum() / total.sum()
    without = len(per_image) - per_image[:, :255].any(1).sum()
    remarks = []
    if names:
        absent = [name for name, pixels in zip(names, total) if pixels == 0]
        if absent:
            remarks.append(f"never occurs: {', '.join(absent)}")
    if share < USUALLY_VALID.get(task, MOSTLY):
        remarks.append(f"few valid pixels: {100 * share:.1f} %")
    if without and task != "parsing":  # images without people are ignored there
        remarks.append(f"{without} images without a label")
    return remarks
