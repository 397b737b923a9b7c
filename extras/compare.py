# SPDX-License-Identifier: MIT
"""The papers' table of several runs: a row per setting, a column per task, and Delta_m.

    python -m extras.compare runs/BASELINE runs/OURS ... [--markdown]

A RUN is a folder with config.json and metrics.json; the first is the baseline of Delta_m, the mean
relative gain over the tasks. Runs that differ only in the seed share a row: mean, deviation, and
the 95 % confidence interval (Student's t) of Delta_m, taken seed by seed. So do the single-task
runs of otherwise equal settings.
"""
import argparse
import functools
import json
import math
import statistics
import sys
from pathlib import Path

from scipy.special import stdtrit

import mtcd
from mtcd import TASKS


def sign(shown, plain):
    """The sign, or a plain one where standard output's encoding lacks it."""
    lacks = shown.encode(sys.stdout.encoding or "utf-8", "replace") == b"?"
    return plain if lacks else shown



def read_runs(folders):
    """Run folders -> {row: {seed: {task: value}}}, value None where nothing could be measured."""
    rows, labels = {}, {}
    for folder in map(Path, folders):
        try:
            config = json.loads((folder / "config.json").read_text())
            metrics = json.loads((folder / "metrics.json").read_text())
            seed, tasks = config.pop("seed"), config["tasks"]
            values = {task: metrics[task][TASKS[task].metric] for task in tasks}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__} {error}"
            raise mtcd.UserError(f"{folder} is not a finished run's folder: {reason}") from error
        single = len(tasks) == 1
        for name in ("channels", "classes", *["tasks", "contrast"] * single):
            config.pop(name, None)
        setting = json.dumps([single, config], sort_keys=True)  # what the runs of a row share
        if setting not in labels:
            name = "single-task" if single else folder.name
            labels[setting] = f"{name} ({len(rows) + 1})" if name in rows else name
        row = rows.setdefault(labels[setting], {}).setdefault(seed, {})
        if row.keys() & values.keys():
            raise mtcd.UserError(f"{folder} repeats a run given before: same settings, seed, task")
        row.update(values)
    return rows


def delta_m(values, base):
    """The field's Delta_m: mean relative gain of {task: value} in percent, worse being negative,
    over the tasks that both have, with a base other than 0; nan without any."""
    shared = [task for task, value in values.items() if value is not None and base.get(task)]
    gains = [(values[task] - base[task]) / base[task] * (1 if TASKS[task].higher_is_better else -1)
             for task in shared]
    return 100 * statistics.fmean(gains) if gains else math.nan


def spread(values, show="{:.2f}".format):
    """Mean, with the standard deviation of several, as `show` writes them; "-" of none."""
    mean = show(statistics.fmean(values)) if values else "-"
    return f"{mean} {sign('±', '+-')} {show(statistics.stdev(values))}" if len(values) > 1 else mean


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
    """Delta_m of each run of a row over the first row's of its seed, or, where that lacks the seed
    or a task, over the first row's mean; was every run paired?"""
    mean = {task: statistics.fmean(values) for task in TASKS if (values := values_of(first, task))}
    gains, paired = [], True
    for seed, run in row.items():
        base = first.get(seed, {})
        pair = all(base.get(task) is not None for task in mean if run.get(task) is not None)
        gains.append(delta_m(run, base if pair else mean))
        paired = paired and pair
    return [gain for gain in gains if not math.isnan(gain)], paired


def task_column(task, rows, bold):
    """A task's cells, its heading first: mean and deviation per row, the best mean in `bold`."""
    column = [values_of(row, task) for row in rows]
    means = [statistics.fmean(values) for values in column if values]
    if TASKS[task].higher_is_better:
        best, arrow = max(means, default=None), sign("↑", "(up)")
    else:
        best, arrow = min(means, default=None), sign("↓", "(down)")
    cells = [f"{task} {TASKS[task].metric} [{TASKS[task].unit}] {arrow}"]
    for values in column:
        text = spread(values, functools.partial(mtcd.show, task))
        cells.append(bold.format(text) if values and statistics.fmean(values) == best else text)
    return cells


def gain_columns(rows):
    """The cells of Delta_m over the first row, and of its interval where a row has several runs."""
    first, *others = rows
    gains, intervals = [f"Delta_m [%] {sign('↑', '(up)')}", "0"], ["95 % interval", "-"]
    for row in others:
        values, paired = gains_of(row, first)
        low, high = interval(values) if paired else (math.nan, math.nan)
        gains.append(spread(values))
        intervals.append("-" if math.isnan(low) else f"{low:+.2f} to {high:+.2f}")
    return [gains, intervals] if any(len(row) > 1 for row in others) else [gains]


def print_comparison(rows, markdown=False):
    """Print the papers' table of {row: {seed: {task: value}}}; the first row is the baseline."""
    runs = list(rows.values())
    seeds = [f" ({len(row)} seeds)" if len(row) > 1 else "" for row in runs]
    columns = [["", *map(str.__add__, rows, seeds)]]
    for task in TASKS:
        if any(task in run for row in runs for run in row.values()):
            columns.append(task_column(task, runs, "**{}**" if markdown else "{}"))
    columns = [[cell.ljust(max(map(len, column))) for cell in column]
               for column in columns + gain_columns(runs)]
    header, *lines = zip(*columns)
    rule = [["-" * len(cell) for cell in header]] * markdown
    for line in (header, *rule, *lines):
        print("| " + " | ".join(line) + " |" if markdown else "  ".join(line).rstrip())


def compare(args):
    print_comparison(read_runs(args.runs), args.markdown)


def main(argv=None):
    """The command line -> exit status."""
    parser = argparse.ArgumentParser(
        "python -m extras.compare", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = mtcd.refuse
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")

    return mtcd.exit_status("extras.compare", lambda: compare(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
