# SPDX-License-Identifier: MIT
"""Photos: does the regulariser help on NYUD-v2, with few labelled photos and with all of them?

    python data_prep.py nyud --download --shrink 4      # once: data/nyud.h5, 106 x 140
    python -m extras.photos                             make every run that docs/photos.csv lacks
    python -m extras.photos --tuning                    the same, only the tuning runs
    python -m extras.photos --tables                    run nothing: print the tables
"""

import argparse
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

import mtcd
from extras import compare
from extras.arms import FORMS
from extras.experiments import (
    TASKS,
    group_by_setting,
    hours,
    make_runs,
    mean_shares,
    print_gains,
    read_results,
    train_run,
)
from extras.lite0 import Lite0

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs/photos.csv"
FOLDER = ROOT / "runs/photos"
DATA = ROOT / "data/nyud.h5"


# --------------------------------------------------------------------------------------- the runs
@dataclass(frozen=True)
class Run:
    """All that tells one training run from another: the first columns of docs/photos.csv."""

    set: str = "reported"  # or "tuning", which never sees the val split
    encoder: str = "lite0"  # from ImageNet; or "hrnet_tiny", from random weights
    photos: int = 100  # to train on, drawn by the seed
    iterations: int = 1250
    lr: float = 0.02
    contrast: float = 0.0  # lambda
    form: str = "none"  # of FORMS; "none": the baseline; "only TASK": a single-task network
    seed: int = 0

    @property
    def setting(self):
        """What an arm shares with the baseline that it is compared with."""
        return dataclasses.replace(self, contrast=0.0, form="none", seed=0)

    @property
    def arm(self):
        """Its row in a table."""
        if self.contrast == 0:
            return "baseline" if self.form == "none" else "single-task"
        return f"{self.form}, lambda {self.contrast:g}"


# ------------------------------------------------------------------------------------------ the data
def tuning_blocks(count):
    """Frames of one scene follow one another, so whole blocks of 15 are held out -> two masks.

    Of every three blocks of train frames two are to train on, and the third is to evaluate.
    """
    held_out = np.arange(count) // 15 % 3 == 2
    return ~held_out, held_out


def draw_photos(run, count):
    """-> which of the `count` train frames the run trains on, sorted."""
    frames = np.arange(count)
    if run.set == "tuning":
        frames = frames[tuning_blocks(count)[0]]
    rng = np.random.default_rng(run.seed if run.set == "reported" else 0)
    return np.sort(rng.permutation(frames)[: run.photos])


def data_file(run):
    """A data file of the run's photos; tuning runs evaluate on held-out train frames."""
    seed = run.seed if run.set == "reported" else 0
    path = FOLDER / f"{run.set}-{run.photos}-seed{seed}.h5"
    if path.exists():
        return path

    if not DATA.exists():
        raise mtcd.UserError(f"{DATA}: make it: python data_prep.py nyud --download --shrink 4")
    with mtcd.replacing(path) as part, h5py.File(DATA) as file, h5py.File(part, "w") as target:
        target.attrs.update(file.attrs)
        count = len(file["train/image"])
        copy_frames(file["train"], target.create_group("train"), draw_photos(run, count))
        if run.set == "tuning":
            held_out = np.flatnonzero(tuning_blocks(count)[1])
            copy_frames(file["train"], target.create_group("val"), held_out)
        else:
            file.copy("val", target)
    return path


def copy_frames(source, target, frames):
    for name, array in source.items():
        options = {}
        if array.chunks:
            options = {"chunks": array.chunks, "compression": array.compression}
        target.create_dataset(name, data=array[:][frames], dtype=array.dtype, **options)
