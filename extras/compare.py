# SPDX-License-Identifier: MIT
"""The papers' table of several runs: a row per setting, a column per task, and Delta_m.

    python -m extras.compare runs/BASELINE runs/OURS ... [--markdown]

The first RUN is the baseline of Delta_m, the mean relative gain over the tasks, in percent. Runs
that differ only in the seed share a row: mean, standard deviation, and the 95 % confidence interval
(Student's t) of Delta_m, taken seed by seed. So do the single-task runs of otherwise equal
settings. Runs on the same data share a row wherever the data file lies.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from statistics import fmean, stdev

from scipy.special import stdtrit

import mtcd


# ------------------------------------------------------------------------------------ reading runs
def read_runs(folders):
    """Run folders -> {row: {seed: {task: value}}}, value None where nothing could be measured."""
    rows = {}
    names = {}  # setting -> name of its row
    first = None  # the config of the first run
    for folder in map(Path, folders):
        config, values = read_run(folder)
        first = first or config
        if config.get("dataset") != first.get("dataset"):
            raise mtcd.UserError(
                f"{folder} is of {config.get('dataset')}, {folders[0]} of {first.get('dataset')}: "
                "a gain of one over the other means nothing"
            )
        setting = shared_setting(config)
        if setting not in names:
            name = "single-task" if len(values) == 1 else folder.name
            if name in rows:
                name = f"{name} ({len(rows) + 1})"
            names[setting] = name
            rows[name] = {}

        run = rows[names[setting]].setdefault(config["seed"], {})
        if run.keys() & values.keys():
            raise mtcd.UserError(f"{folder} repeats a run given before: same settings, seed, task")
        run.update(values)
    return rows


def read_run(folder):
    """A run's folder -> its config, {task: value}."""
    with mtcd.explaining(f"{folder} is no finished run", Exception):  # files can be anything
        config = json.loads((folder / "config.json").read_text())
        metrics = json.loads((folder / "metrics.json").read_text())
        config["seed"] = int(config["seed"])
        values = {}
        for task in config["tasks"]:
            value = metrics[task][mtcd.TASKS[task].metric.name]
            values[task] = None if value is None else float(value)
    return config, values


def shared_setting(config):
    """What the runs of a row share, as text: all but the seed, and where files lie."""
    shared = dict(config)
    shared["pretrained"] = Path(str(config.get("pretrained"))).name
    left_out = ["seed", "channels", "classes"]
    if "identity" in config:  # what the data are; older runs have their path alone
        left_out.append("data")

    # Single-task runs make one row together.
    single = len(config["tasks"]) == 1
    if single:
        left_out += ["tasks", "contrast"]
    if single or config.get("contrast") == 0:
        left_out.append("targets")  # of the regulariser, which has no part
    for name in left_out:
        shared.pop(name, None)
    return json.dumps([single, shared], sort_keys=True)


# ----------------------------------------------------------------------------------------- figures
def delta_m(values, base):
    """Mean relative gain of {task: value} over {task: value} in percent, worse being negative.

    Source: Maninis et al., "Attentive Single-Tasking of Multiple Tasks", CVPR 2019. Tasks that
    either lacks, or whose base is 0, do not count; nan without any task.
    """
    gains = []
    for task, value in values.items():
        before = base.get(task)
        if value is None or not before:
            continue
        gain = (value - before) / before
        if not mtcd.TASKS[task].metric.higher_is_better:
            gain = -gain
        gains.append(gain)
    return 100 * fmean(gains) if gains else math.nan


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
    """Delta_m of each run of a row over the first row's; was every run paired with its seed's?

    Where the first row lacks the seed, or a task of it, its mean takes the place.
    """
    mean = {}
    for task in mtcd.TASKS:
        values = values_of(first, task)
        if values:
            mean[task] = fmean(values)

    gains = []
    all_paired = True
    for seed, run in row.items():
        partner = first.get(seed, {})
        needed = [task for task in mean if run.get(task) is not None]
        if any(partner.get(task) is None for task in needed):
            partner = mean
            all_paired = False
        gain = delta_m(run, partner)
        if not math.isnan(gain):
            gains.append(gain)
    return gains, all_paired


# ------------------------------------------------------------------------------------------- table
def print_comparison(rows, markdown=False):
    """Print the papers' table of {row: {seed: {task: value}}}; the first row is the baseline."""
    runs = list(rows.values())
    columns = [name_column(rows)]
    for task in mtcd.TASKS:
        if any(task in run for row in runs for run in row.values()):
            columns.append(task_column(task, runs, markdown))
    columns += gain_columns(runs)

    # All cells of a column are equally wide.
    aligned = []
    for column in columns:
        width = max(len(cell) for cell in column)
        aligned.append([cell.ljust(width) for cell in column])

    for number, line in enumerate(zip(*aligned)):
        if not markdown:
            print("  ".join(line).rstrip())
            continue
        print(f"| {' | '.join(line)} |")
        if number == 0:
            print(f"| {' | '.join('-' * len(cell) for cell in line)} |")


def name_column(rows):
    """The names of the rows, under an empty heading."""
    cells = [""]
    for name, row in rows.items():
        if len(row) > 1:
            name = f"{name} ({len(row)} seeds)"
        cells.append(name)
    return cells


def task_column(task, rows, markdown):
    """A task's cells, its heading first: mean and deviation per row, in Markdown the best bold."""
    metric = mtcd.TASKS[task].metric
    columns = [values_of(row, task) for row in rows]
    means = [fmean(values) for values in columns if values]
    if metric.higher_is_better:
        arrow = sign("↑", "(up)")
        best = max(means, default=None)
    else:
        arrow = sign("↓", "(down)")
        best = min(means, default=None)

    cells = [f"{task} {metric.name} [{metric.unit}] {arrow}"]
    for values in columns:
        text = spread(values, digits=4 if metric.unit == "m" else 2)
        if markdown and values and fmean(values) == best:
            text = f"**{text}**"
        cells.append(text)
    return cells


def gain_columns(rows):
    """The cells of Delta_m over the first row, and of its interval where a row has several runs."""
    first, *others = rows
    gains = [f"Delta_m [%] {sign('↑', '(up)')}", "0"]
    intervals = ["95 % interval", "-"]
    for row in others:
        values, all_paired = gains_of(row, first)
        gains.append(spread(values))
        if all_paired and len(values) > 1:
            low, high = interval(values)
            intervals.append(f"{low:+.2f} to {high:+.2f}")
        else:
            intervals.append("-")
    if any(len(row) > 1 for row in others):
        return [gains, intervals]
    return [gains]


def spread(values, digits=2):
    """Mean, with the standard deviation of several; "-" of none."""
    if not values:
        return "-"
    text = f"{fmean(values):.{digits}f}"
    if len(values) > 1:
        text += f" {sign('±', '+-')} {stdev(values):.{digits}f}"
    return text


def sign(shown, plain):
    """The sign, or a plain one where standard output's encoding lacks it."""
    encoding = sys.stdout.encoding or "utf-8"
    missing = shown.encode(encoding, "replace") == b"?"
    return plain if missing else shown


# ------------------------------------------------------------------------------------ command line
def main(argv=None):
    """The command line -> exit status."""
    parser = mtcd.Parser(
        "python -m extras.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a finished run")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")

    def job():
        args = parser.parse_args(argv)
        print_comparison(read_runs(args.runs), args.markdown)

    return mtcd.exit_status("extras.compare", job)


if __name__ == "__main__":
    sys.exit(main())
