# SPDX-License-Identifier: MIT
"""Writing a data file safely: worker processes, a file that survives a full disk, checksums."""
import io
import multiprocessing
import os
import signal
import sys
import threading
import time
import zlib
from collections import deque
from concurrent.futures import ProcessPoolExecutor


class Sink(io.FileIO):
    """A new file for h5py.File to write to; whether that goes well, only `failure` tells.

    HDF5 crashes where a write fails (disk full) or where an interrupt becomes an exception inside
    it, so both wait here, from entering the context to leaving it, until check() is called.
    """

    def __init__(self, path):
        super().__init__(path, "w+")
        self.failure = None

    def __enter__(self):
        self.handlers = {number: signal.signal(number, self.interrupt)
                         for number in (signal.SIGINT, signal.SIGTERM)}
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
                data = data[super().write(data):]
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
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    return ProcessPoolExecutor(count, context, follow_parent)


def follow_parent():
    """In a worker: leave Ctrl-C, which reaches all processes, to the parent; end when it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


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
    start = spoken = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if done == count or now > spoken + 10:
            spoken, rate = now, done / max(now - start, 1e-9)
            print(f"{what} {done}/{count}, {rate:.1f}/s, {(count - done) / rate:.0f} s left",
                  flush=True)


def checksum(arrays):
    """{name: one image's array} -> CRC-32 of them all, in the order of their names."""
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(arrays[name], crc)
    return crc


def is_whole(group, i):
    """Whether image `i` of an HDF5 group can be read and has the checksum in its `crc32`."""
    try:
        arrays = {name: array[i] for name, array in group.items()}
        return arrays.pop("crc32") == checksum(arrays)
    except (KeyError, OSError, RuntimeError, TypeError, ValueError):  # damage shows in many ways
        return False
