# SPDX-License-Identifier: MIT
"""The papers' table of several runs: a row per setting, a column per task, and Delta_m.

    python -m extras.compare runs/BASELINE runs/OURS ... [--markdown]

A RUN is a folder with config.json and metrics.json. The first one is the baseline: Delta_m is the
mean relative gain over it, over the tasks, in percent. Runs that differ only in the seed share a
row: mean, standard deviation, and the 95 % confidence interval (Student's t) of Delta_m, which is
then taken seed by seed. The single-task runs of otherwise equal settings share a row, too.
"""
import argparse
import json
import math
import statistics
import sys
from pathlib import Path

from scipy.special import stdtrit

import mtcd
from mtcd import TASKS

PLAIN = {"↑": "(up)", "↓": "(down)", "±": "+-"}  # where standard output lacks the signs


def read_runs(folders):
    """Run folders -> {row: {seed: {task: value}}}, value None where nothing could be measured."""
    rows, labels = {}, {}
    for folder in map(Path, folders):
        try:
            config = json.loads((folder / "config.json").read_text())
            metrics = json.loads((folder / "metrics.json").read_text())
            seed, values = config.pop("seed"), {}
            for task in config["tasks"]:
                value = metrics[task][TASKS[task].metric]
                values[task] = None if value is None else float(value)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else error
            raise mtcd.UserError(f"{folder} is not a finished run's folder: {reason}") from error
        single = len(values) == 1
        for name in ("channels", "classes", *["tasks", "contrast"] * single):
            config.pop(name, None)
        key = json.dumps([single, config], sort_keys=True)  # the setting: what runs of a row share
        labels.setdefault(key, "single-task" if single else folder.name)
        row = rows.setdefault(key, {}).setdefault(seed, {})
        if row.keys() & values.keys():
            raise mtcd.UserError(f"{folder} repeats a run given before: same settings, seed, task")
        row.update(values)
    names = list(labels.values())
    return {label if names.count(label) == 1 else f"{label} ({number})": rows[key]
            for number, (key, label) in enumerate(labels.items(), 1)}


def delta_m(values, base):
    """The field's Delta_m: mean relative gain of {task: value} in percent, worse being negative.

    A task counts that both have, with a base other than 0; nan without any.
    """
    gains = []
    for task, value in values.items():
        if value is not None and base.get(task):
            gain = (value - base[task]) / base[task]
            gains.append(100 * gain if TASKS[task].higher_is_better else -100 * gain)
    return statistics.fmean(gains) if gains else math.nan


def spread(values, digits):
    """Mean, with the standard deviation of several; "-" of none."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def interval(values):
    """95 % confidence interval of the mean by Student's t: (low, high), nan of fewer than two."""
    if len(values) < 2:
        return math.nan, math.nan
    mean = statistics.fmean(values)
    half = stdtrit(len(values) - 1, 0.975) * statistics.stdev(values) / len(values) ** 0.5
    return mean - half, mean + half


def values_of(row, task):
    """A task's values among a row's runs, those that there are."""
    return [run[task] for run in row.values() if run.get(task) is not None]


def gains_of(row, first):
    """Delta_m of each run of a row over the first row; was each paired with a run of its seed?

    Where the first row lacks the seed, or a task of it, its mean is what the run is compared with.
    """
    columns = {task: values_of(first, task) for task in TASKS}
    mean = {task: statistics.fmean(values) for task, values in columns.items() if values}
    gains, paired = [], True
    for seed, run in row.items():
        base = {task: value for task, value in first.get(seed, {}).items() if value is not None}
        measured = {task for task, value in run.items() if value is not None}
        pair = base.keys() >= measured & mean.keys()
        gains.append(delta_m(run, base if pair else mean))
        paired = paired and pair
    return [gain for gain in gains if not math.isnan(gain)], paired


def task_column(task, rows, bold):
    """A task's cells, its heading first: mean and deviation per row, the best mean in `bold`."""
    column = [values_of(row, task) for row in rows]
    means = [statistics.fmean(values) for values in column if values]
    best = (max if TASKS[task].higher_is_better else min)(means, default=None)
    cells = [mtcd.heading(task)]
    for values in column:
        text = spread(values, mtcd.decimals(task))
        cells.append(bold.format(text) if values and statistics.fmean(values) == best else text)
    return cells


def gain_columns(rows):
    """The cells of Delta_m over the first row, and of its interval where a row has several runs."""
    first, *others = rows
    gains, intervals = ["Delta_m [%] ↑", "0"], ["95 % interval", "-"]
    for row in others:
        values, paired = gains_of(row, first)
        low, high = interval(values) if paired else (math.nan, math.nan)
        gains.append(spread(values, 2))
        intervals.append("-" if math.isnan(low) else f"{low:+.2f} to {high:+.2f}")
    return [gains, intervals] if any(len(row) > 1 for row in others) else [gains]


def printable(text):
    """The text with what standard output's encoding lacks replaced."""
    encoding = sys.stdout.encoding or "utf-8"
    for sign, plain in PLAIN.items():
        if sign.encode(encoding, "replace") == b"?":
            text = text.replace(sign, plain)
    return text.encode(encoding, "replace").decode(encoding)


def print_comparison(rows, markdown=False):
    """Print the papers' table of {row: {seed: {task: value}}}; the first row is the baseline."""
    runs = list(rows.values())
    names = [f"{label} ({len(row)} seeds)" if len(row) > 1 else label for label, row in rows.items()]
    tasks = [task for task in TASKS if any(task in run for row in runs for run in row.values())]
    bold = "**{}**" if markdown else "{}"
    columns = [["", *names], *(task_column(task, runs, bold) for task in tasks), *gain_columns(runs)]
    columns = [[printable(cell) for cell in column] for column in columns]
    columns = [[cell.ljust(max(map(len, column))) for cell in column] for column in columns]
    header, *lines = zip(*columns)
    if markdown:
        for line in (header, ["-" * len(cell) for cell in header], *lines):
            print("| " + " | ".join(line) + " |")
    else:
        for line in (header, *lines):
            print("  ".join(line).rstrip())


def main(argv=None):
    """The command line -> exit status."""
    parser = mtcd.Parser("python -m extras.compare", description=__doc__,
                         formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")

    def job():
        args = parser.parse_args(argv)
        print_comparison(read_runs(args.runs), args.markdown)
    return mtcd.exit_status("extras.compare", job)


if __name__ == "__main__":
    sys.exit(main())
