# SPDX-License-Identifier: MIT
"""What the studies share: making runs, pairing them seed by seed, and their tables.

A kind of run is a frozen dataclass, whose fields are the first columns of a CSV file. It has a
`setting`, what an arm shares with the baseline it is compared with, and an `arm`, its row in a
table. extras/study.py has rendered rooms, extras/photos.py photos.
"""

import csv
import dataclasses
import io
import json
import statistics
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from multiprocessing import get_context

import torch

import mtcd
from extras import compare

TASKS = ("semseg", "depth", "normal", "boundary")
MEASURED = ("task", "metric", "value", "share_of_chance", "minutes")  # the last columns


# ---------------------------------------------------------------------------------- making the runs
def run_folder(parent, run):
    """Where a run lies: all that tells it from others is in the name."""
    name = "-".join(str(value) for value in dataclasses.astuple(run))
    return parent / name.replace(" ", "_").replace(",", "")


def tasks_of(run):
    """All four, or that of a single-task network, whose form is "only TASK"."""
    if run.form.startswith("only "):
        return [run.form.removeprefix("only ")]
    return TASKS


def train_run(run, args, out, contrast, backbone=None):
    """Make a run by mtcd.py's own code, on one thread -> its lines of the CSV file."""
    start = time.monotonic()
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "terminal.txt").open("w") as log, redirect_stdout(log):
        mtcd.run_training(args, mtcd.start_device("cpu"), contrast, backbone)

    share = ""
    if args.contrast > 0 and not run.form.startswith("InfoNCE"):  # its chance is not the margin
        with (out / "log.csv").open(newline="") as log:
            shares = [float(row["share_of_chance"]) for row in csv.DictReader(log)]
        share = f"{statistics.fmean(shares[-10:]):.3f}"

    minutes = f"{(time.monotonic() - start) / 60:.1f}"
    lines = []
    for task, metrics in json.loads((out / "metrics.json").read_text()).items():
        for metric, value in metrics.items():
            lines.append([*dataclasses.astuple(run), task, metric, value, share, minutes])
    return lines


def make_runs(runs, results, train, prepare=None):
    """Make the runs that the CSV file `results` lacks, two at a time, and add them there.

    prepare(run) comes first, for all of them: it makes their data before two processes want it.
    train(run) -> lines. A run that fails stops no other; one that is killed stops all.
    """
    kind = type(runs[0])
    done = {run for run, _ in read_results(results, kind)}
    missing = [run for run in runs if run not in done]
    if prepare:
        for run in missing:
            prepare(run)
    failed = []
    with ProcessPoolExecutor(2, get_context("spawn"), max_tasks_per_child=1) as pool:
        futures = [pool.submit(train, run) for run in missing]
        try:
            for number, future in enumerate(as_completed(futures), 1):
                try:
                    lines = future.result()
                except mtcd.UserError as error:  # as a loss that is not finite
                    failed.append(str(error))
                    continue
                except BrokenExecutor as error:
                    raise mtcd.UserError(
                        "a training was killed: is the memory full? The same command goes on"
                    ) from error
                append_results(results, kind, lines)
                print(f"{number}/{len(missing)}", *lines[0], flush=True)
        finally:
            pool.shutdown(cancel_futures=True)
    if failed:
        raise mtcd.UserError(f"{len(failed)} of {len(missing)} runs failed: {'; '.join(failed)}")


# ------------------------------------------------------------------------------------- the CSV file
def append_results(results, kind, lines):
    header = [field.name for field in dataclasses.fields(kind)] + list(MEASURED)
    with results.open("a", newline="") as file:
        writer = csv.writer(file)
        if file.tell() == 0:
            writer.writerow(header)
        writer.writerows(lines)


def read_results(results, kind):
    """-> (run, the line as a dictionary) per line; [] without the file."""
    if not results.exists():
        return []
    found = []
    with results.open(newline="") as file:
        for line in csv.DictReader(file):
            values = {f.name: f.type(line[f.name]) for f in dataclasses.fields(kind)}
            found.append((kind(**values), line))
    return found


def group_by_setting(lines):
    """Lines of read_results() -> {setting: {arm: {seed: {task: value}}}}, the baseline first.

    A seed counts when all its tasks are there, a setting when its baseline is.
    """
    found = {}
    for run, line in lines:
        seeds = found.setdefault(run.setting, {}).setdefault(run.arm, {})
        seeds.setdefault(run.seed, {})[line["task"]] = float(line["value"])

    complete = {}
    for setting, arms in found.items():
        kept = {}
        for arm in sorted(arms, key=lambda arm: arm != "baseline"):  # sorted() keeps the order else
            seeds = {seed: run for seed, run in arms[arm].items() if run.keys() == set(TASKS)}
            if seeds:
                kept[arm] = seeds
        if "baseline" in kept:
            complete[setting] = kept
    return complete


def mean_shares(lines):
    """-> {(setting, arm): the loss at the end as a share of chance, "-" without}."""
    shares = {}
    for run, line in lines:
        if line["share_of_chance"]:
            shares.setdefault((run.setting, run.arm), []).append(float(line["share_of_chance"]))
    return {key: f"{statistics.fmean(values):.2f}" for key, values in shares.items()}


def hours(lines):
    """Hours that the runs took, two at a time."""
    minutes = {run: float(line["minutes"]) for run, line in lines}
    return sum(minutes.values()) / 120


# ------------------------------------------------------------------------------------------- tables
def gains(arm, reference, tasks=TASKS):
    """Delta_m over these tasks, in percent, of each seed that arm and reference have."""
    found = []
    for seed, run in arm.items():
        if seed in reference:
            values = {task: run[task] for task in tasks}
            found.append(compare.delta_m(values, reference[seed]))
    return found


def mean_interval(values):
    """What stands in a cell: the mean and half the width of its 95 % interval, by Student's t."""
    if not values:
        return "-"
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:+.2f}"
    _, high = compare.interval(values)
    return f"{mean:+.2f} ± {high - mean:.2f}"


def gain_table(arms, reference, shares):
    """Markdown lines: each task's gain of the other arms over this one; [] without another arm.

    shares: arm -> the loss at the end, as a share of chance.
    """
    others = [name for name in arms if name != reference]
    if reference not in arms or not others:
        return []
    heading = [f"gain over {reference}, %", "seeds", *TASKS, "Delta_m", "loss / chance"]
    lines = ["", row(heading), row(["---"] * len(heading))]
    for name in others:
        columns = [gains(arms[name], arms[reference], [task]) for task in TASKS]
        columns.append(gains(arms[name], arms[reference]))
        cells = [name, str(len(columns[0])), *map(mean_interval, columns), shares.get(name, "-")]
        lines.append(row(cells))
    return lines


def value_table(arms):
    """Markdown lines, folded away on a code host's page: the metrics themselves."""
    with redirect_stdout(io.StringIO()) as text:
        compare.print_comparison(arms, markdown=True)
    summary = "<details><summary>metrics, mean ± standard deviation</summary>"
    return ["", summary, "", *text.getvalue().splitlines(), "", "</details>"]


def row(cells):
    return f"| {' | '.join(cells)} |"


def replace_marked(path, name, text):
    """Put the text between the marks of this name in a Markdown file."""
    begin = f"<!-- begin {name} -->"
    end = f"<!-- end {name} -->"
    content = path.read_text(encoding="utf-8")
    if begin not in content or end not in content:
        raise mtcd.UserError(f"{path} lacks the marks {begin} and {end}")
    before = content.split(begin)[0]
    after = content.split(end)[1]
    with mtcd.replacing(path) as part:
        part.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")
