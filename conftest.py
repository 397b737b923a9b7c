# SPDX-License-Identifier: MIT
"""What the tests share: made-up data, runs of seconds, programs in processes of their own.

Nothing here asserts what a test is about: a test reads as one piece.
"""

import contextlib
import io
import os
import signal
import socket
import sys
import time

import h5py
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

import data_prep
import mtcd

torch.set_num_threads(1)  # the networks here are tiny: threads would only wait for one another

METRICS = {
    "semseg": "mIoU",
    "parsing": "mIoU",
    "saliency": "maxF",
    "depth": "RMSE",
    "normal": "mErr",
    "boundary": "odsF",
}
TASKS = tuple(METRICS)
CLASSES = {"semseg": 21, "parsing": 7, "saliency": 2, "boundary": 2}  # of labels that are classes
IGNORED = {**dict.fromkeys(CLASSES, 255), "depth": 0, "normal": 0, "image": 0}
DTYPES = {"depth": "float32", "normal": "float16"}  # of the file; all else is uint8
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def plots():
    pytest.importorskip("matplotlib")


# ------------------------------------------------------------------------------------------ data
def write_file(path, dataset, shape, splits, classes=40):
    """A data file by plain h5py: {split: [{"image": (h, w, 3), task: label}]}, as README.md says."""
    with h5py.File(path, "w") as file:
        names = [f"class {i}" for i in range(classes)]
        file.attrs.update(dataset=dataset, format=1, semseg_classes=names)
        for split, samples in splits.items():
            group = file.create_group(split)
            sizes = [sample["image"].shape[:2] for sample in samples]
            group["size"] = np.array(sizes, "int32")
            for name, first in samples[0].items():
                full = (len(samples), *shape, *first.shape[2:])
                array = np.full(full, IGNORED[name], DTYPES.get(name, "uint8"))
                for i, sample in enumerate(samples):
                    height, width = sample[name].shape[:2]
                    array[i, :height, :width] = sample[name]
                group[name] = array
    return path


def random_sample(rng, shape, tasks=TASKS):
    """Noise; every label is ignored in one corner."""
    normal = rng.standard_normal((*shape, 3)) + (0, 0, -3)
    sample = {
        "depth": rng.uniform(1, 9, shape),
        "normal": normal / np.linalg.norm(normal, axis=2, keepdims=True),
    }
    for task, classes in CLASSES.items():
        sample[task] = rng.integers(0, classes, shape)
    for task, label in sample.items():
        label[:5, :5] = IGNORED[task]
    image = rng.integers(0, 256, (*shape, 3))
    return {"image": image, **{task: sample[task] for task in tasks}}


DAMAGE = ("cut", "bits", "zeros", "head")


def damaged(data, kind, rng):
    """Bytes with one of four kinds of damage."""
    place = int(rng.integers(len(data)))
    if kind == "cut":
        return data[:place]
    if kind == "bits":
        new = bytes([data[place] ^ 1 << int(rng.integers(8))])
    elif kind == "zeros":
        new = bytes(min(4096, len(data) // 4))
    else:
        place = 0
        new = rng.bytes(rng.integers(1, 64))
    return (data[:place] + new + data[place + len(new) :])[: len(data)]


@pytest.fixture(scope="session")
def toy_file(tmp_path_factory):
    """Ten rooms to train on, five to evaluate."""
    path = tmp_path_factory.mktemp("data") / "toy.h5"
    data_prep.make_toy(path, train=10, val=5, height=64, width=96)
    return path


# ------------------------------------------------------------------------------------------ runs
def main(*arguments):
    """mtcd.py's command line in this process -> exit status."""
    return mtcd.main(["--device", "cpu", *map(str, arguments)])


def quick(data, out, *more):
    """The arguments of a run of a second or two."""
    short = ("--tasks", "depth", "--batch-size", 2, "--iters", 1, "--workers", 0)
    return ["--data", data, "--out", out, *short, *more]


@pytest.fixture(scope="session")
def trained(toy_file, tmp_path_factory):
    """The folder of a run of one iteration, all six tasks."""
    folder = tmp_path_factory.mktemp("run")
    assert main(*quick(toy_file, folder, "--tasks", *TASKS)) == 0
    return folder


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def error_line(capsys):
    """What was written to stderr, which must be one line without a traceback."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert "Traceback" not in lines[0]
    return lines[0]


# -------------------------------------------------------------------------------------- processes
FORK = mp.get_context("fork")


@pytest.fixture
def start(tmp_path_factory):
    """-> start(*arguments): mtcd.py in a process group of its own, forked, after before()."""
    logs = tmp_path_factory.mktemp("logs")
    started = []

    def start(*arguments, program=main, before=None, encoding="utf-8", **environment):
        def job():
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open(process.log, os.O_WRONLY | os.O_CREAT), 2)
            for name, number in (("stdout", 1), ("stderr", 2)):
                raw = io.FileIO(number, "w", closefd=False)
                setattr(sys, name, io.TextIOWrapper(raw, encoding, line_buffering=True))
            os.environ.update(environment)
            if before:
                before()
            sys.exit(program(*arguments))

        process = FORK.Process(target=job)
        process.log = logs / str(len(started))
        started.append(process)
        process.start()
        return process

    yield start

    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()


def end(process, seconds=60):
    """-> exit status (None if it hangs), lines on stderr."""
    process.join(seconds)
    return process.exitcode, process.log.read_text(errors="replace").splitlines()


def wait_for(path, *processes):
    """Until the file is there; a process that ends first is an error."""
    while not path.exists():
        assert all(process.is_alive() for process in processes), [end(p) for p in processes]
        time.sleep(0.02)


def start_two(start, *arguments, before=(None, None)):
    """Ranks 0 and 1 of one run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in ("0", "1"):
        process = start(
            *arguments,
            before=before[int(rank)],
            RANK=rank,
            LOCAL_RANK=rank,
            WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        processes.append(process)
    return processes
