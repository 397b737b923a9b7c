# SPDX-License-Identifier: MIT
"""Does the regulariser help, where, and where not? The protocol, the runs, the tables, the picture.

    python -m extras.study             make every run that docs/results.csv lacks, two at a time
    python -m extras.study --tuning    the same, only those on the tuning rooms
    python -m extras.study --tables    run nothing: print every table, draw docs/results.png

Protocol, written before the runs that it judges (one label per image: before the second attempt):
  data      60 rendered rooms of 64 x 96 to train on (200 passes over 150 would take 2.5 times as
            long), 300 others to evaluate: of seed 1 for the choices ("tuning"), of one that nobody
            had looked at for what is reported
  network   hrnet_tiny from scratch, for semseg, depth, normal and boundary; 1,500 iterations of 8
            images (200 passes, a long training on few images as in the papers), learning rate 0.08,
            --amp; all else as in `python mtcd.py`, also lambda: 2 here, 0.5 where an image is seen
            fewer than 100 times. Tuning rooms, seed 0: from 750 to 1,500 iterations the baseline
            goes from mIoU 31.8 to 31.5, RMSE 0.639 to 0.629, mErr 23.1 to 22.9, odsF 60.4 to 61.5,
            0.7 % in the mean, so it was taken to be nearly trained out; the gain goes from -1.2 to
            +4.6 with lambda 2, and from -3.6 to +0.4 with 1. (Seen later: on the reported rooms the
            baseline gains another 2.9 % by 3,000 iterations; when three seeds had shown that,
            the comparison after 750 and 3,000 was given six)
  pairs     an arm and the baseline (lambda = 0) of one seed start from the same weights and see the
            same batches: gains are taken seed by seed; intervals are of 95 %, by Student's t, over
            seeds, so over weights and batches, since all have the same rooms; "other rooms for each
            seed" has intervals over rooms, too
  success   of "ours", 12 seeds: mean Delta_m at least +3.0 %, its interval above +1.5; each task's
            mean gain above 0, three of the four with an interval above 0.
            One label per image (each training image keeps one task's): interval above 0. Missed
            at 0.08 on rooms of seed 2, where boundaries are learnt late, or, in a run of ours, not
            at all; asked again at 0.03, as the tuning rooms suggest, on rooms of seed 3.
            500 rooms: no harm, an interval that reaches above 0, and no task's below it.
  confirm   margin 2 and 128 samples gain most of the ablation's forms of ours, but were found on the
            reported rooms: asked again with seeds 16 to 21 and other rooms for each. One of them is
            confirmed if its Delta_m over ours there has an interval above 0. 128 samples were: do
            they harm, over the baseline, with 150 or 500 rooms or one label per image, seeds 10 to 15?
Every run of plan() that was made is a line per task in docs/results.csv, whatever it shows.

An earlier study, with semi-hard negatives, a margin of 0.3 and 13 passes over the data, found no
effect. Hence the long training here, and a log that tells whether the loss is learnt.
"""
import argparse
import csv
import json
import shutil
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import h5py
import torch

import data_prep
import mtcd
from extras import compare
from extras.arms import FORMS

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PICTURE, FOLDER = ROOT / "docs/results.csv", ROOT / "docs/results.png", ROOT / "runs/study"
TASKS = ("semseg", "depth", "normal", "boundary")
LAMBDA = 2.0  # the default where an image is seen 100 times, as in the main comparison


# --------------------------------------------------------------------------------------- the runs
class Run(NamedTuple):
    """All that tells one training run from another, and the first columns of docs/results.csv."""

    set: str = "reported"  # or "tuning"
    rooms_seed: int = 2  # -1: each run has the rooms of its own seed
    rooms: int = 60  # to train on
    labels: str = "all"  # or "one": every training image keeps the label of one task
    backbone: str = "hrnet_tiny"
    iterations: int = 1500
    lr: float = 0.08
    contrast: float = LAMBDA
    form: str = "ours"  # of FORMS; "none": the baseline; "only TASK": a single-task network
    seed: int = 0

    @property
    def usual(self):
        """Lambda by default."""
        return mtcd.usual_lambda(8 * self.iterations / self.rooms)

    @property
    def setting(self):
        """What an arm shares with the baseline that it is compared with."""
        return self._replace(contrast=LAMBDA, form="ours", seed=0)

    @property
    def arm(self):
        """Its row in a table."""
        if self.contrast == 0:
            return "baseline" if self.form == "none" else "single-task"
        return self.form + f", lambda {self.contrast:g}" * (self.contrast != self.usual)


def lambdas(*strengths):
    """Arms that differ in lambda alone."""
    return [{"contrast": strength} for strength in strengths]


COLUMNS = (*Run._fields, "task", "metric", "value", "share_of_chance", "minutes")
SEEDS = range(10, 22)
BASELINE, OURS = {"form": "none", "contrast": 0.0}, {}
SINGLE = [{"form": f"only {task}", "contrast": 0.0} for task in TASKS]
OWN, FEW = {"form": "own labels"}, {"form": "samples 128"}
TUNED = [{"form": form} for form in FORMS if form.startswith(("semi-hard", "nearest"))]
ABLATION = [*lambdas(0.5, 1.0, 2.0, 4.0, 8.0),  # InfoNCE's best on the tuning rooms is 2, too
            *({"form": form} for form in FORMS if not form.startswith(("ours", "own", "nearest")))]
ELSEWHERE = {  # what differs from the main comparison
    "other rooms for each seed": {"rooms_seed": -1},
    "one label per image": {"labels": "one", "lr": 0.03, "rooms_seed": 3},
    "one label per image, at 0.08": {"labels": "one"},
    "150 rooms, 80 passes, lambda 0.5": {"rooms": 150},
    "500 rooms, 48 passes, lambda 0.5": {"rooms": 500, "iterations": 3000},
    "hrnet18s": {"backbone": "hrnet18s"}, "resnet18": {"backbone": "resnet18"}}


def plan():
    """Every run: those that choices were made by, the main table, where it helps, the ablation."""
    pair, tried = [BASELINE, OURS], [BASELINE, *lambdas(1.0, 2.0)]
    tuning = Run(set="tuning", rooms_seed=1)
    blocks = [
        (tuning, [0], [*tried, *lambdas(4.0, 8.0), OWN, *TUNED,
                       *({"form": "InfoNCE of 384"} | arm for arm in lambdas(0.5, 1.0, 2.0))]),
        (tuning, [1], [BASELINE, *lambdas(2.0, 4.0)]),
        (tuning._replace(iterations=750), [0], tried), (tuning._replace(rooms=30), [0, 1], tried),
        (tuning._replace(rooms=500, iterations=3000), [0], [BASELINE, *lambdas(0.5, 1.0)]),
        (tuning._replace(labels="one", lr=0.03), [0, 1], pair),
        (Run(), SEEDS, [*pair, OWN, *SINGLE]),
        *((Run(**changes), SEEDS[:6], pair) for changes in ELSEWHERE.values()),
        (Run(), SEEDS[:6], ABLATION),
        (Run(rooms_seed=-1), SEEDS[6:], [*pair, {"form": "margin 2"}, FEW]),
        *((Run(**ELSEWHERE[label]), SEEDS[:6], [FEW]) for label in (
            "150 rooms, 80 passes, lambda 0.5", "one label per image", "500 rooms, 48 passes, lambda 0.5")),
        *((Run(iterations=iterations), SEEDS[:6], pair) for iterations in (750, 3000)),
    ]
    return list(dict.fromkeys(setting._replace(seed=seed, **{"contrast": setting.usual} | arm)
                              for setting, seeds, arms in blocks for seed in seeds for arm in arms))


def data_file(run):
    """The run's rooms, rendered if they are not there yet."""
    seed = run.seed if run.rooms_seed == -1 else run.rooms_seed
    path = FOLDER / f"rooms-seed{seed}-{run.rooms}-{run.labels}.h5"
    if path.exists():
        return path
    if run.labels == "one":
        with mtcd.replacing(path) as part:
            shutil.copyfile(data_file(run._replace(labels="all")), part)
            keep_one_label(part)
    elif data_prep.main(["toy", "--train", str(run.rooms), "--val", "300", "--height", "64",
                         "--width", "96", "--seed", str(seed), "--out", str(path)]):
        raise mtcd.UserError("the rooms could not be rendered")
    return path


def keep_one_label(path):
    """Hide, in each training image of a data file, all of TASKS but one, which takes turns."""
    with h5py.File(path, "r+") as file:
        file["train"].pop("crc32", None)  # the checksums, of other labels
        for number, task in enumerate(TASKS):
            labels = file["train"][task]
            for image in range(len(labels)):
                if image % len(TASKS) != number:
                    labels[image] = mtcd.TASKS[task].ignored


def train(run):
    """Make a run by mtcd.py's own code, on one thread -> its lines of docs/results.csv."""
    start, out = time.time(), FOLDER / "-".join(map(str, run)).replace(" ", "_")
    tasks = [run.form.split()[1]] if run.form.startswith("only ") else TASKS
    args = mtcd.build_parser().parse_args([
        "--data", str(data_file(run)), "--tasks", *tasks, "--backbone", run.backbone,
        "--contrast", str(run.contrast), "--iters", str(run.iterations), "--lr", str(run.lr),
        "--seed", str(run.seed), "--amp", "--device", "cpu", "--out", str(out)])
    torch.set_num_threads(1)
    out.mkdir(exist_ok=True)
    with (out / "terminal.txt").open("w") as log, redirect_stdout(log):
        mtcd.run_training(args, mtcd.start_device("cpu"), contrast=FORMS.get(run.form))
    if run.seed != SEEDS[0]:  # of each arm, one network can be looked at with the other programs
        (out / "last.pt").unlink()
    share = ""
    if run.contrast and run.form != "InfoNCE of 384":  # of the log's last ten lines
        with (out / "log.csv").open(newline="") as log:
            shares = [float(row["share_of_chance"]) for row in csv.DictReader(log)][-10:]
        share = f"{statistics.fmean(shares):.3f}"
    metrics, minutes = json.loads((out / "metrics.json").read_text()), (time.time() - start) / 60
    return [[*run, task, name, value, share, f"{minutes:.1f}"]
            for task, values in metrics.items() for name, value in values.items()]


def run_all(sets):
    """Make what docs/results.csv lacks of these sets, two runs at a time, and add it there."""
    done, failed = {run for run, _ in read()}, []
    missing = [run for run in plan() if run.set in sets and run not in done]
    FOLDER.mkdir(parents=True, exist_ok=True)
    for run in missing:
        data_file(run)  # before two processes want it
    with ProcessPoolExecutor(2, get_context("spawn"), max_tasks_per_child=1) as pool:
        futures = [pool.submit(train, run) for run in missing]
        try:
            for number, future in enumerate(as_completed(futures), 1):
                try:
                    lines = future.result()
                except mtcd.UserError as error:  # as of a loss that is not finite: the others go on
                    failed.append(str(error))
                    continue
                with RESULTS.open("a", newline="") as file:
                    csv.writer(file).writerows([COLUMNS] * (file.tell() == 0) + lines)
                print(f"{number}/{len(missing)}", *lines[0], flush=True)
        finally:
            pool.shutdown(cancel_futures=True)
    if failed:
        raise mtcd.UserError(f"{len(failed)} of {len(missing)} runs failed: {'; '.join(failed)}")


# --------------------------------------------------------------------------- tables and the picture
def read():
    """docs/results.csv -> (Run, the whole line as a dictionary) per line; [] without the file."""
    lines = csv.DictReader(RESULTS.read_text().splitlines() if RESULTS.exists() else [])
    return [(Run(*(kind(line[name]) for name, kind in Run.__annotations__.items())), line)
            for line in lines]


def settings(lines):
    """Lines of read() -> {setting: {arm: {seed: {task: value}}}} of whole seeds, baseline first."""
    found, order = {}, ["none", *FORMS, *(arm["form"] for arm in SINGLE)]
    for run, line in sorted(lines, key=lambda pair: (order.index(pair[0].form), pair[0].contrast)):
        seeds = found.setdefault(run.setting, {}).setdefault(run.arm, {})
        seeds.setdefault(run.seed, {})[line["task"]] = float(line["value"])
    for setting, arms in found.items():
        whole = {arm: {seed: run for seed, run in seeds.items() if run.keys() == set(TASKS)}
                 for arm, seeds in arms.items()}
        found[setting] = {arm: seeds for arm, seeds in whole.items() if seeds}
    return {setting: arms for setting, arms in found.items() if "baseline" in arms}


def gains(arm, reference, tasks=TASKS):
    """Delta_m over these tasks, in percent, of each seed that arm and reference have."""
    return [compare.delta_m({task: run[task] for task in tasks}, reference[seed])
            for seed, run in arm.items() if seed in reference]


def mean_interval(values):
    """What stands in a cell; "-" without a seed, no interval of a single one."""
    low, high = compare.interval(values)
    interval = f" ({low:+.2f} to {high:+.2f})" * (len(values) > 1)
    return f"{statistics.fmean(values):+.2f}{interval}" if values else "-"


def print_tables():
    """Per setting: the figures; every task's gain with its interval; the loss at the end. ->
    settings() of what was read."""
    shares, minutes, lines = {}, {}, read()
    for run, line in lines:
        share = float(line["share_of_chance"] or "nan")
        shares.setdefault((run.setting, run.arm), []).append(share)
        minutes[run] = float(line["minutes"])
    print(f"{len(minutes)} of {len(plan())} runs made; two at a time they took "
          f"{sum(minutes.values()) / 120:.1f} hours")
    found = settings(lines)
    for setting, arms in found.items():
        rooms = "each seed" if setting.rooms_seed == -1 else f"seed {setting.rooms_seed}"
        print(f"\n## {setting.set}, rooms of {rooms}: {setting.rooms} rooms, "
              f"labels per image: {setting.labels}, {setting.backbone}, "
              f"{setting.iterations} iterations at {setting.lr:g}\n")
        compare.print_comparison(arms, markdown=True)
        ends = {arm: f"{statistics.fmean(shares[setting, arm]):.2f}".replace("nan", "-")
                for arm in arms}
        print_gains(arms, "baseline", ends)
        print_gains({arm: seeds for arm, seeds in arms.items() if arm != "baseline"}, "ours", ends)
        print_gains({arm: arms[arm] for arm in arms if arm.endswith("384")}, "samples 384", ends)
    if "ours" in found.get(Run(), ()):
        print("\n## reported, rooms of seed 2, along the training: seeds that all lengths have\n\n"
              "| iterations | seeds | baseline, over itself after 1,500, % (95 % interval) "
              "| ours, over the baseline as long |\n" + "| --- " * 4 + "|")
        for iterations, values in along_training(found).items():
            print(f"| {iterations} | {len(values[0])} |", " | ".join(map(mean_interval, values)), "|")
    return found


def print_gains(arms, reference, ends):
    """Each task's gain, of the other arms over this one, with `ends`, their loss at the end."""
    others = [name for name in arms if name != reference]
    if reference not in arms or not others:
        return
    print(f"\n| gain over {reference}, % (95 % interval) | seeds | " + " | ".join(TASKS)
          + " | Delta_m | loss at the end, share of chance |\n" + "| --- " * 8 + "|")
    for name in others:
        columns = [gains(arms[name], arms[reference], [task]) for task in TASKS]
        columns.append(gains(arms[name], arms[reference]))
        print(f"| {name} | {len(columns[0])} | " + " | ".join(map(mean_interval, columns))
              + f" | {ends[name]} |")


def along_training(found):
    """settings() -> {iterations: (Delta_m of each seed's baseline over that after 1,500, of ours
    over the baseline of the same length)}, of the seeds that all lengths have."""
    arms = {n: found[Run(iterations=n)] for n in sorted(run.iterations for run in found)
            if "ours" in found.get(Run(iterations=n), {})}
    seeds = set.intersection(*(set(arms[n][arm]) for n in arms for arm in ("baseline", "ours")))
    base, ours = ({n: {seed: arms[n][arm][seed] for seed in sorted(seeds)} for n in arms}
                  for arm in ("baseline", "ours"))
    return {n: (gains(base[n], base[Run().iterations]), gains(ours[n], base[n])) for n in arms}


def picture_rows(found):
    """settings() -> {heading: {label: Delta_m of each seed}}, in the order of the picture."""
    main = {name: gains(arm, found[Run()]["baseline"]) for name, arm in found[Run()].items()}
    first = {name: main.pop(name) for name in ("ours", "own labels", "single-task") if name in main}
    elsewhere = {label + f", {name}" * (name != "ours"): gains(arm, found[Run(**changes)]["baseline"])
                 for label, changes in ELSEWHERE.items()
                 for name, arm in found.get(Run(**changes), {}).items() if name != "baseline"}
    main.pop("baseline")
    return {"main comparison": first, "elsewhere": elsewhere, "other forms of the loss": main}


def draw_arms(axis, headings):
    """{heading: {label: Delta_m of each seed}} -> a point and an interval per label."""
    row, labels, figures, ends = 0, {}, {}, [0.0]
    for heading, arms in headings.items():
        axis.text(0.01, row, heading, weight="bold", va="center",
                  transform=axis.get_yaxis_transform(),
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
        colour = "#d55e00" if heading == "main comparison" else "#0072b2"
        for label, values in arms.items():
            row -= 1
            mean, (low, high) = statistics.fmean(values), compare.interval(values)
            labels[row] = f"{label}, {len(values)} seed{'s' * (len(values) > 1)}"
            figures[row] = mean_interval(values)
            ends += [low, high] if high - low < 10 else [mean]  # a wider one runs off the axis
            axis.plot((low, high), (row, row), color=colour)
            axis.plot(mean, row, "o", color=colour)
        row -= 2
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set(yticks=list(labels), yticklabels=labels.values(), ylim=(row + 1, 1),
             xlim=(min(ends) - 0.5, max(ends) + 0.5),
             xlabel="Delta_m over the baseline, %, and 95 % interval")
    axis.twinx().set(yticks=list(figures), yticklabels=figures.values(), ylim=(row + 1, 1))


def draw_training(axis, along):
    """along_training() -> means over seeds, and ours of each seed as a thin line."""
    levels, effects = zip(*along.values())
    for label, values, colour in (("baseline, over itself after 1,500", levels, "black"),
                                  ("ours, over the baseline as long", effects, "#d55e00")):
        axis.plot(list(along), list(map(statistics.fmean, values)), "o-", color=colour, label=label)
    for of_a_seed in zip(*effects):
        axis.plot(list(along), of_a_seed, color="#d55e00", linewidth=0.5)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(xscale="log", xticks=list(along), xticklabels=list(along),
             xlabel=f"iterations (mean of {len(levels[0])} seeds)", ylabel="Delta_m, %")
    axis.minorticks_off()
    axis.set_box_aspect(1)
    axis.legend(title="along the training", loc="lower center", bbox_to_anchor=(0.5, 1))


def draw(found):
    """docs/results.png: every arm's Delta_m; beside it the effect along the training."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise mtcd.UserError("docs/results.png needs matplotlib: pip install matplotlib") from error
    headings = {heading: arms for heading, arms in picture_rows(found).items() if arms}
    along = along_training(found)
    lines = sum(len(arms) + 2 for arms in headings.values())
    columns = 1 + (len(along) > 1)
    figure, axes = pyplot.subplots(1, columns, figsize=(12, 1 + lines / 4), squeeze=False,
                                   layout="constrained", width_ratios=[3, 2][:columns])
    draw_arms(axes[0, 0], headings)
    if columns > 1:
        draw_training(axes[0, 1], along)
    with mtcd.replacing(PICTURE) as part:
        figure.savefig(part, format="png", dpi=100)
    print(f"\n{PICTURE}")


def main(argv=None):
    """The command line -> exit status."""
    parser = mtcd.Parser("python -m extras.study", description=__doc__,
                         formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tuning", action="store_true", help="make the tuning runs only")
    parser.add_argument("--tables", action="store_true", help="run nothing, print and draw")

    def job():
        args = parser.parse_args(argv)
        if not args.tables:
            return run_all(["tuning"] if args.tuning else ["tuning", "reported"])
        found = print_tables()
        if "ours" not in found.get(Run(), ()):
            raise mtcd.UserError(f"no picture: {RESULTS} has no runs of the main comparison yet")
        draw(found)
    return mtcd.exit_status("extras.study", job)


if __name__ == "__main__":
    sys.exit(main())
