# SPDX-License-Identifier: MIT
"""Does the regulariser help? The protocol of the study, and the program that runs it and prints its tables.

    python docs/study.py             run what docs/results.csv lacks (all: 90 minutes on 2 CPU cores), print the tables
    python docs/study.py --tune      the ablation: the same with docs/tuning.csv (95 minutes)
    python docs/study.py --tables    run nothing, print the tables (of the ablation with --tune)

Protocol, fixed before the reported runs:
  data      300 rendered rooms to train on, 300 to evaluate, 64 x 96. Choices are compared on a set of seed 1 (--tune),
            figures are reported of a set of seed 0.
  tasks     semseg, depth, normal, boundary
  network   hrnet18s from scratch, 500 iterations of 8 images, learning rate 0.03, --amp, all else as in `python mtcd.py`
  seeds     of weights, batches and draws; an arm and the baseline of one seed start from the same weights and see the
            same batches, so Delta_m is taken seed by seed against the multi-task baseline (lambda = 0)
  success   mean Delta_m of "ours" at least +2.0 %, its 95 % confidence interval (Student's t over 8 seeds) above 0, and
            no task worse by more than its standard deviation
  few       for one task at a time 30 of the 300 training images keep their label, the other tasks keep all of theirs
Added after the first tables, to narrow their intervals: seeds 8 to 15 of "ours", 3 to 15 of few boundary labels and, in
the ablation, 3 to 7 of the best arms; arms with 50 training images, each seen 80 times (in NYUD's protocol 400 times).
Every run made is in the tables, whatever it shows. Two runs at a time, a thread each.
"""
import argparse
import csv
import functools
import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))
TASKS = ("semseg", "depth", "normal", "boundary")


def variants():
    """The regulariser's other forms, each a few lines -> {name: class}."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    from mtcd import CrossTaskContrast

    class AllSources(CrossTaskContrast):
        """Every other task is a source in every iteration; the mean over them."""

        def forward(self, features, labels):
            return sum(self.pair_loss(target, source, features[target], labels[source]) / (len(self.tasks) - 1)
                       for target in self.tasks for source in self.tasks if source != target)

    class OwnLabels(CrossTaskContrast):
        """A task's own labels are its source: the control that the paper excludes."""

        def __init__(self, tasks, channels):
            super().__init__(tasks, channels)
            spare = iter(self.projectors.values())
            self.projectors = nn.ModuleDict({f"{task}_from_{task}": next(spare) for task in tasks})

        def forward(self, features, labels):
            return sum(self.pair_loss(task, task, features[task], labels[task]) for task in self.tasks)

    class NoBoundarySource(CrossTaskContrast):
        """Boundary labels are no source: they say nothing of the other tasks' features (see --consistency)."""

        def forward(self, features, labels):
            return super().forward(features, {task: label for task, label in labels.items() if task != "boundary"})

    class PerImage(CrossTaskContrast):
        """Pairs within an image only; as many pixels in all."""

        def pair_loss(self, target, source, feature, label):
            pair_loss = super().pair_loss
            return sum(pair_loss(target, source, f[None], y[None]) for f, y in zip(feature, label)) / len(feature)

    class NoProjector(CrossTaskContrast):
        """Distances between the features themselves, scaled to unit length."""

        def __init__(self, tasks, channels):
            super().__init__(tasks, channels)
            for projector in self.projectors.values():
                del projector[1:]
                projector[0] = nn.Linear(channels, channels, bias=False)
                nn.init.eye_(projector[0].weight).requires_grad_(False)

    class EightPositives(CrossTaskContrast):
        """Every anchor meets eight random positives instead of one."""

        def triplets(self, *args):
            once = super().triplets
            return tuple(map(torch.cat, zip(*(once(*args) for _ in range(8)))))

    class InfoNCE(CrossTaskContrast):
        """-log of a positive's share against all negatives of its anchor, temperature 0.1, mean over positives."""

        def triplet_loss(self, projected, label, pixel, criterion):
            positive, negative = self.pairs(label, pixel, criterion)
            similarity = projected @ projected.T / 0.1
            against = similarity.masked_fill(~negative, -math.inf).logsumexp(1, keepdim=True)
            anchor = positive.any(1) & negative.any(1)
            loss = (F.softplus(against - similarity) * positive).sum(1) / positive.sum(1).clamp(min=1)
            return loss[anchor].sum() / anchor.sum().clamp(min=1)

    form = functools.partial
    return {"all sources": AllSources, "own labels": OwnLabels, "no boundary source": NoBoundarySource,
            "per image": form(PerImage, samples=48), "no projector": NoProjector, "InfoNCE": InfoNCE,
            "eight positives": EightPositives,
            "mining random": form(CrossTaskContrast, mining="random"),
            "mining hardest": form(CrossTaskContrast, mining="hardest"),
            "margin 0.1": form(CrossTaskContrast, margin=0.1), "margin 1": form(CrossTaskContrast, margin=1.0),
            "samples 128": form(CrossTaskContrast, samples=128), "samples 1024": form(CrossTaskContrast, samples=1024)}


def few_labels(path, task, keep=30):
    """A copy of a data file in which only `keep` training images, evenly spread, have the task's label."""
    import h5py
    import numpy as np

    from mtcd import TASKS

    few = path.with_name(f"{path.stem}-few-{task}.h5")
    if not few.exists():
        part = few.with_suffix(f".{os.getpid()}")
        part.write_bytes(path.read_bytes())
        with h5py.File(part, "r+") as file:
            labels = file["train"][task]
            kept = set(np.linspace(0, len(labels) - 1, keep).astype(int).tolist())
            for index in range(len(labels)):
                if index not in kept:
                    labels[index] = np.full(labels.shape[1:], TASKS[task].ignored, labels.dtype)
        part.rename(few)
    return few


def name_of(arm, seed):
    """What a run's folder and its log are called."""
    return f"{arm} {seed}".replace(",", "").replace(" ", "-")


def run(arm, seed, folder, data):
    """One training run in this process -> its metrics.json."""
    import mtcd

    form, *options = arm.split(", ")
    options = dict(option.split(" ") for option in options)
    if form in variants():
        mtcd.CrossTaskContrast = variants()[form]
    strength = "0" if form in ("baseline", "single-task") else options.get("lambda", "1")
    data = few_labels(data, options["few"]) if "few" in options else data
    data = data.with_name(f"rooms-{options['images']}.h5") if "images" in options else data
    out = folder / name_of(arm, seed)
    tasks = [options["task"]] if "task" in options else TASKS
    status = mtcd.main(["--data", str(data), "--tasks", *tasks, "--contrast", strength, "--iters", "500",
                        "--lr", "0.03", "--seed", str(seed), "--amp", "--device", "cpu", "--out", str(out)])
    if status:
        sys.exit(status)
    return json.loads((out / "metrics.json").read_text())


def plan(tune):
    """The runs, (arm, seed), those first that the most rests on."""
    if tune:
        arms = ["baseline", "ours", "ours, lambda 0.3", "mining random", "InfoNCE, lambda 0.3", "own labels",
                "all sources", "per image", "no projector", "mining hardest", "ours, lambda 3", "margin 0.1",
                "samples 128", "no boundary source", "margin 1", "samples 1024"]
        best = ["baseline", "ours", "per image", "mining random", "InfoNCE, lambda 0.3"]
        small = ["baseline", "ours, lambda 3", "per image, lambda 3"]
        dropped = ["ours, lambda 10", "mining random, lambda 3", "own labels, lambda 3", "eight positives, lambda 3"]
        once = ["margin 1, lambda 3", "per image, lambda 10", "InfoNCE"]
        return [*((arm, seed) for seed in range(3) for arm in arms),
                *((arm, seed) for seed in range(3, 8) for arm in best),
                *((f"{arm}, images 50", seed) for seed in range(3) for arm in (small, small + dropped)[seed < 2]),
                *((f"{arm}, images 50", 0) for arm in once)]
    few = [f"{form}, few {task}" for task in TASKS for form in ("baseline", "ours")]
    single = [f"single-task, task {task}" for task in TASKS]
    return [*((arm, seed) for seed in range(8) for arm in ("baseline", "ours")),
            *((arm, seed) for seed in range(3) for arm in (*single, *few)),
            *((arm, seed) for seed in range(3, 8) for arm in few[-2:]),  # added later, to narrow intervals
            *((arm, seed) for seed in range(8, 16) for arm in ("baseline", "ours", *few[-2:]))]


def run_all(jobs, results, folder, data):
    """Run what `results` lacks, two at a time, and add it there."""
    done = {(row["arm"], int(row["seed"])) for row in read(results)}
    jobs = [job for job in jobs if job not in done]

    def one(job):
        arm, seed = job
        start = time.time()
        log = folder / f"{name_of(arm, seed)}.log"
        with log.open("w") as file:
            subprocess.run([sys.executable, __file__, "--run", arm, str(seed), str(folder), str(data)], check=True,
                           stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})
        return arm, seed, json.loads(log.read_text().splitlines()[-1]), (time.time() - start) / 60

    with ThreadPoolExecutor(2) as pool:
        for number, (arm, seed, metrics, minutes) in enumerate(pool.map(one, jobs), 1):
            new = not results.exists()
            with results.open("a", newline="") as file:
                csv.writer(file).writerows([
                    *[("arm", "seed", "task", "metric", "value", "minutes")] * new,
                    *((arm, seed, task, *next(iter(values.items())), f"{minutes:.1f}")
                      for task, values in metrics.items())])
            print(f"{number}/{len(jobs)} {arm}, seed {seed}: {minutes:.1f} min", flush=True)


def read(results):
    if not results.exists():
        return []
    with results.open(newline="") as file:
        return list(csv.DictReader(file))


def print_tables(results):
    """Every arm against the baseline that saw the same labels."""
    import mtcd

    tables = {}
    for row in read(results):
        form, *options = row["arm"].split(", ")
        setting = "".join(f", {option}" for option in options if option.split()[0] in ("few", "images"))
        arm = form if form == "single-task" else row["arm"]  # its runs, one a task, share a row
        runs = tables.setdefault(f"baseline{setting}", {}).setdefault(arm, {})
        runs.setdefault(int(row["seed"]), {})[row["task"]] = float(row["value"])
    for baseline, table in tables.items():
        print()
        mtcd.print_comparison({baseline: table.pop(baseline), **table}, markdown=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="run nothing")
    parser.add_argument("--tune", action="store_true", help="the set with seed 1 and docs/tuning.csv")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help='instead of the plan: "ours, lambda 3" ...')
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="S", help="of --arms")
    parser.add_argument("--run", nargs=4, metavar=("ARM", "SEED", "FOLDER", "DATA"), help="one run (used by itself)")
    args = parser.parse_args()
    if args.run:
        arm, seed, folder, data = args.run
        print(json.dumps(run(arm, int(seed), Path(folder), Path(data))))
        return
    results = DOCS / ("tuning.csv" if args.tune else "results.csv")
    if not args.tables:
        folder = Path("runs") / ("tuning" if args.tune else "study")
        folder.mkdir(parents=True, exist_ok=True)
        data = folder / "rooms.h5"
        for path, train in ((data, 300), *[(folder / "rooms-50.h5", 50)] * args.tune):
            if not path.exists():
                import data_prep
                data_prep.make_toy(path, train=train, val=300, height=64, width=96, seed=int(args.tune))
        jobs = [(arm, seed) for seed in args.seeds for arm in args.arms] if args.arms else plan(args.tune)
        run_all(jobs, results, folder, data)
    print_tables(results)


if __name__ == "__main__":
    main()
