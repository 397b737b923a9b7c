# SPDX-License-Identifier: MIT
"""The papers' table of several runs: a row per setting, a column per task, and Delta_m.

    python -m extras.compare runs/BASELINE runs/OURS ... [--markdown]

The first RUN is the baseline of Delta_m, the mean relative gain over the tasks. Runs that differ
only in the seed share a row: mean, deviation, and the 95 % confidence interval (Student's t) of
Delta_m, taken seed by seed. So do the single-task runs of otherwise equal settings.
"""
import argparse
import json
import math
import sys
from pathlib import Path
from statistics import fmean, stdev

from scipy.special import stdtrit

import mtcd


def sign(shown, plain):
    """The sign, or a plain one where standard output's encoding lacks it."""
    return plain if shown.encode(sys.stdout.encoding or "utf-8", "replace") == b"?" else shown


def read_runs(folders):
    """Run folders -> {row: {seed: {task: value}}}, value None where nothing could be measured."""
    rows, labels = {}, {}
    for folder in map(Path, folders):
        with mtcd.blaming(f"{folder} is no finished run", Exception):  # files can be anything
            config = json.loads((folder / "config.json").read_text())
            metrics = json.loads((folder / "metrics.json").read_text())
            seed, tasks = config.pop("seed"), config["tasks"]
            values = {task: metrics[task][mtcd.TASKS[task].metric] for task in tasks}
            values = {task: None if v is None else float(v) for task, v in values.items()}
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
    """Mean gain of {task: value} in percent of {task: value}, worse being negative; or nan."""
    sense = {task: 1 if row.higher_is_better else -1 for task, row in mtcd.TASKS.items()}
    gains = [(values[task] - base[task]) / base[task] * sense[task]
             for task in values if values[task] is not None and base.get(task)]
    return 100 * fmean(gains) if gains else math.nan


def spread(values, digits=2):
    """Mean, with the standard deviation of several; "-" of none."""
    mean = f"{fmean(values):.{digits}f}" if values else "-"
    return f"{mean} {sign('±', '+-')} {stdev(values):.{digits}f}" if len(values) > 1 else mean


def interval(values):
    """95 % confidence interval of the mean by Student's t: (low, high), nan of fewer than two."""
    if len(values) < 2:
        return math.nan, math.nan
    mean = fmean(values)
    half = stdtrit(len(values) - 1, 0.975) * stdev(values) / len(values) ** 0.5
    return mean - half, mean + half


def values_of(row, task):
    """A task's values among a row's runs, those that there are."""
    return [run[task] for run in row.values() if run.get(task) is not None]


def gains_of(row, first):
    """Delta_m of each run of a row over the first row's of its seed, or, where that lacks the seed
    or a task, over the first row's mean; was every run paired?"""
    mean = {task: fmean(values) for task in mtcd.TASKS if (values := values_of(first, task))}
    gains, paired = [], []
    for seed, run in row.items():
        base = first.get(seed, {})
        paired.append(all(base.get(t) is not None for t in mean if run.get(t) is not None))
        gains.append(delta_m(run, base if paired[-1] else mean))
    return [gain for gain in gains if not math.isnan(gain)], all(paired)


def task_column(task, rows, bold):
    """A task's cells, its heading first: mean and deviation per row, the best mean in `bold`."""
    column = [values_of(row, task) for row in rows]
    higher = mtcd.TASKS[task].higher_is_better
    best = (max if higher else min)((fmean(values) for values in column if values), default=None)
    arrow, unit = sign("↑", "(up)") if higher else sign("↓", "(down)"), mtcd.TASKS[task].unit
    cells = [f"{task} {mtcd.TASKS[task].metric} [{unit}] {arrow}"]
    for values in column:
        text = spread(values, 4 if unit == "m" else 2)
        cells.append(bold.format(text) if values and fmean(values) == best else text)
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
    for task in mtcd.TASKS:
        if any(task in run for row in runs for run in row.values()):
            columns.append(task_column(task, runs, "**{}**" if markdown else "{}"))
    columns = [[cell.ljust(max(map(len, column))) for cell in column]
               for column in columns + gain_columns(runs)]
    header, *lines = zip(*columns)
    rule = [["-" * len(cell) for cell in header]] * markdown
    for line in (header, *rule, *lines):
        print("| " + " | ".join(line) + " |" if markdown else "  ".join(line).rstrip())


def main(argv=None):
    """The command line -> exit status."""
    parser = mtcd.Parser("python -m extras.compare", description=__doc__,
                         formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a finished run")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")

    def job():
        args = parser.parse_args(argv)
        print_comparison(read_runs(args.runs), args.markdown)
    return mtcd.exit_status("extras.compare", job)


if __name__ == "__main__":
    sys.exit(main())
