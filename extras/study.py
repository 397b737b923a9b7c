# SPDX-License-Identifier: MIT
"""Rendered rooms: does the regulariser help, where, and where not?

    python -m extras.study             make every run that docs/results.csv lacks, two at a time
    python -m extras.study --tuning    the same, only those on the tuning rooms
    python -m extras.study --tables    run nothing: print every table, write them into
                                       docs/results.md, draw docs/results.png

The protocol was written before the runs that it judges.

Data: 60 rendered rooms of 64 x 96 to train on, 300 others to evaluate. Rooms of seed 1 are for the
choices ("tuning"); those of seed 2 are for what is reported, and nobody had looked at them.
Network: hrnet_tiny from random weights; semseg, depth, normal and boundary. 1,500 iterations of 8
images are 200 passes, a long training on few images. Learning rate 0.08, bfloat16. Lambda is 2
where an image is seen 100 times, else 0.5. A form of the loss draws 1,024 pixels unless it says
another number.
Pairs: an arm and the baseline (lambda = 0) of one seed start from the same weights and see the same
batches, so gains are taken seed by seed. Intervals are of 95 %, by Student's t, over seeds. All
seeds have the same rooms, but for "other rooms for each seed".
Success of "ours" over 12 seeds: a mean Delta_m of at least +3.0 % with its interval above +1.5;
each task's mean gain above 0, and three of the four with an interval above 0.
One label per image, where each training image keeps one task's: an interval above 0.
500 rooms: no harm, so an interval that reaches above 0, and no task's below it.

Every run of plan() is in docs/results.csv, whatever it shows. docs/results.md says what came out.
"""

import argparse
import dataclasses
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import h5py

import data_prep
import mtcd
from extras import compare
from extras.arms import FORMS
from extras.experiments import (
    TASKS,
    gain_table,
    gains,
    group_by_setting,
    hours,
    make_runs,
    mean_interval,
    mean_shares,
    read_results,
    replace_marked,
    row,
    run_folder,
    tasks_of,
    train_run,
    value_table,
)

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs/results.csv"
DOCUMENT = ROOT / "docs/results.md"
PICTURE = ROOT / "docs/results.png"
FOLDER = ROOT / "runs/study"


# --------------------------------------------------------------------------------------- the runs
@dataclass(frozen=True)
class Run:
    """All that tells one training run from another: the first columns of docs/results.csv."""

    set: str = "reported"  # or "tuning"
    rooms_seed: int = 2  # -1: each run has the rooms of its own seed
    rooms: int = 60  # to train on
    labels: str = "all"  # or "one": every training image keeps the label of one task
    backbone: str = "hrnet_tiny"
    iterations: int = 1500
    lr: float = 0.08
    contrast: float = 2.0  # lambda
    form: str = "ours"  # of FORMS; "none": the baseline; "only TASK": a single-task network
    seed: int = 0

    @property
    def usual(self):
        """The study's lambda: more where an image is seen often."""
        passes = self.iterations * 8 / self.rooms
        return 2.0 if passes >= 100 else 0.5

    @property
    def setting(self):
        """What an arm shares with the baseline that it is compared with."""
        return dataclasses.replace(self, contrast=2.0, form="ours", seed=0)

    @property
    def arm(self):
        """Its row in a table."""
        if self.contrast == 0:
            return "baseline" if self.form == "none" else "single-task"
        if self.contrast == self.usual:
            return self.form
        return f"{self.form}, lambda {self.contrast:g}"


SEEDS = range(10, 22)
MAIN = Run()
TUNING = Run(set="tuning", rooms_seed=1)

# Settings other than the main comparison's.
EACH_SEED = Run(rooms_seed=-1)
ONE_LABEL = Run(labels="one", lr=0.03, rooms_seed=3)
ROOMS_150 = Run(rooms=150)
ROOMS_500 = Run(rooms=500, iterations=3000)
ELSEWHERE = {
    "other rooms for each seed": EACH_SEED,
    "one label per image": ONE_LABEL,
    "one label per image, at 0.08": Run(labels="one"),
    "150 rooms, 80 passes, lambda 0.5": ROOMS_150,
    "500 rooms, 48 passes, lambda 0.5": ROOMS_500,
    "hrnet18s": Run(backbone="hrnet18s"),
    "resnet18": Run(backbone="resnet18"),
}
BASELINE = {"form": "none", "contrast": 0.0}
OURS = {"form": "ours"}
OWN = {"form": "own labels"}
SINGLE_TASK = [{"form": f"only {task}", "contrast": 0.0} for task in TASKS]


def lambdas(*strengths, form="ours"):
    """Arms that differ in lambda alone."""
    return [{"form": form, "contrast": strength} for strength in strengths]


def forms(*names):
    return [{"form": name} for name in names]


# One label per image missed its goal at 0.08, where boundaries are learnt late or not at all. It
# was asked again at 0.03, as the tuning rooms suggest, on rooms of seed 3. Margin 2 and 128 samples
# gained most of the ablation, on the reported rooms, so they were asked again on fresh rooms and
# seeds; 128 samples were confirmed there, and then asked where they could harm.
# fmt: off
PLAN = (  # settings, seeds, arms
    # By these the choices were made.
    (TUNING, [0], [BASELINE, *lambdas(1.0, 2.0, 4.0, 8.0), OWN]),
    (TUNING, [0], forms("semi-hard negatives of 384", "nearest of 4 negatives", "nearest of 16 negatives")),
    (TUNING, [0], lambdas(0.5, 1.0, 2.0, form="InfoNCE of 384")),
    (TUNING, [1], [BASELINE, *lambdas(2.0, 4.0)]),
    (dataclasses.replace(TUNING, iterations=750), [0], [BASELINE, *lambdas(1.0, 2.0)]),
    (dataclasses.replace(TUNING, rooms=30), [0, 1], [BASELINE, *lambdas(1.0, 2.0)]),
    (dataclasses.replace(TUNING, rooms=500, iterations=3000), [0], [BASELINE, *lambdas(0.5, 1.0)]),
    (dataclasses.replace(TUNING, labels="one", lr=0.03), [0, 1], [BASELINE, OURS]),

    # The main comparison, and other settings.
    (MAIN, SEEDS, [BASELINE, OURS, OWN, *SINGLE_TASK]),
    *((setting, SEEDS[:6], [BASELINE, OURS]) for setting in ELSEWHERE.values()),

    # The ablation: one choice changes.
    (MAIN, SEEDS[:6], lambdas(0.5, 1.0, 4.0, 8.0)),
    (MAIN, SEEDS[:6], forms("hardest negatives of 384", "semi-hard negatives of 384", "InfoNCE of 384")),
    (MAIN, SEEDS[:6], forms("margin 0.1", "margin 0.3", "margin 2")),
    (MAIN, SEEDS[:6], forms("samples 128", "samples 384", "samples 4096")),
    (MAIN, SEEDS[:6], forms("all sources", "no boundary source", "pairs within an image")),
    (MAIN, SEEDS[:6], forms("linear projector", "no projector")),

    # What gained most, on fresh rooms and seeds; and where it could harm.
    (EACH_SEED, SEEDS[6:], [BASELINE, OURS, *forms("margin 2", "samples 128")]),
    (ROOMS_150, SEEDS[:6], forms("samples 128")),
    (ONE_LABEL, SEEDS[:6], forms("samples 128")),
    (ROOMS_500, SEEDS[:6], forms("samples 128")),

    # Along the training.
    (Run(iterations=750), SEEDS[:6], [BASELINE, OURS]),
    (Run(iterations=3000), SEEDS[:6], [BASELINE, OURS]),
)
# fmt: on


def plan():
    """Every run once, in the order in which they are made."""
    runs = {}
    for setting, seeds, arms in PLAN:
        for seed in seeds:
            for arm in arms:
                changes = {"contrast": setting.usual, **arm, "seed": seed}
                runs[dataclasses.replace(setting, **changes)] = True
    return list(runs)


# --------------------------------------------------------------------------------------- making them
def data_file(run):
    """The run's rooms, rendered if they are not there yet."""
    seed = run.seed if run.rooms_seed == -1 else run.rooms_seed
    path = FOLDER / f"rooms-seed{seed}-{run.rooms}-{run.labels}.h5"
    if path.exists():
        return path

    if run.labels == "one":
        with mtcd.replacing(path) as part:
            shutil.copyfile(data_file(dataclasses.replace(run, labels="all")), part)
            keep_one_label(part)
        return path

    size = ["--train", str(run.rooms), "--val", "300", "--height", "64", "--width", "96"]
    if data_prep.main(["toy", *size, "--seed", str(seed), "--out", str(path)]) != 0:
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
    """Make a run -> its lines of docs/results.csv."""
    out = run_folder(FOLDER, run)

    # fmt: off
    args = mtcd.build_parser().parse_args([
        "--data", str(data_file(run)), "--tasks", *tasks_of(run), "--backbone", run.backbone,
        "--contrast", str(run.contrast), "--iters", str(run.iterations), "--lr", str(run.lr),
        "--seed", str(run.seed), "--amp", "--device", "cpu", "--out", str(out),
    ])
    # fmt: on
    lines = train_run(run, args, out, FORMS.get(run.form))
    if run.seed != SEEDS[0]:  # of each arm, one network can be looked at with the other programs
        (out / "last.pt").unlink()
    return lines


def run_all(sets):
    """Make what docs/results.csv lacks of these sets."""
    runs = [run for run in plan() if run.set in sets]
    make_runs(runs, RESULTS, train, prepare=data_file)


# ------------------------------------------------------------------------------------------- tables
def tables(lines):
    """Lines of the CSV file -> all tables as Markdown text: those that are reported come first."""
    lines = sorted(lines, key=table_order)
    made = {run for run, _ in lines}
    text = [f"{len(made)} of {len(plan())} runs made, {hours(lines):.1f} hours, two at a time."]

    shares = mean_shares(lines)
    found = group_by_setting(lines)
    if "ours" in found.get(MAIN, ()):
        text += along_table(found)
    for setting, arms in sorted(found.items(), key=is_tuning):
        rooms = f"seed {setting.rooms_seed}" if setting.rooms_seed >= 0 else "each seed"
        text += ["", f"### {setting.set}: {setting.rooms} rooms of {rooms}, {setting.backbone}"]
        labels = "all labels" if setting.labels == "all" else "one label per image"
        text += ["", f"{labels}, {setting.iterations} iterations at {setting.lr:g}."]

        ends = {arm: shares.get((setting, arm), "-") for arm in arms}
        text += gain_table(arms, "baseline", ends)
        over_ours = {arm: seeds for arm, seeds in arms.items() if arm != "baseline"}
        text += gain_table(over_ours, "ours", ends)
        of_384 = {arm: seeds for arm, seeds in arms.items() if arm.endswith("384")}
        text += gain_table(of_384, "samples 384", ends)
        text += value_table(arms)
    return "\n".join(text)


def is_tuning(item):
    setting, _ = item
    return setting.set == "tuning"


def table_order(line):
    """Arms in the order of FORMS, then by lambda; single-task networks last."""
    run, _ = line
    order = ["none", *FORMS]
    place = order.index(run.form) if run.form in order else len(order)
    return place, run.contrast


def along_table(found):
    """Markdown lines: what a longer training gives the baseline, and ours over it."""
    heading = ["iterations", "seeds", "baseline, over itself after 1,500, %", "ours over it, %"]
    lines = ["", "### reported: along the training, 60 rooms of seed 2", ""]
    lines += [row(heading), row(["---"] * len(heading))]
    for iterations, (levels, effects) in along_training(found).items():
        cells = [str(iterations), str(len(levels)), mean_interval(levels), mean_interval(effects)]
        lines.append(row(cells))
    return lines


def along_training(found):
    """{iterations: (Delta_m of each seed's baseline over that after 1,500, of ours over the
    baseline of the same length)}, of the seeds that all lengths have."""
    arms = {}
    for iterations in sorted({setting.iterations for setting in found}):
        setting = dataclasses.replace(MAIN, iterations=iterations)
        if "ours" in found.get(setting, ()):
            arms[iterations] = found[setting]

    seeds = set(SEEDS)
    for of_length in arms.values():
        seeds &= of_length["baseline"].keys() & of_length["ours"].keys()
    along = {}
    for iterations, of_length in arms.items():
        baseline = {seed: of_length["baseline"][seed] for seed in sorted(seeds)}
        ours = {seed: of_length["ours"][seed] for seed in sorted(seeds)}
        usual_length = arms[MAIN.iterations]["baseline"]
        along[iterations] = (gains(baseline, usual_length), gains(ours, baseline))
    return along


# ------------------------------------------------------------------------------------------ picture
def picture_rows(found):
    """group_by_setting() -> {heading: {label: Delta_m of each seed}}, in the picture's order."""
    baseline = found[MAIN]["baseline"]
    main = {arm: gains(seeds, baseline) for arm, seeds in found[MAIN].items() if arm != "baseline"}
    first = {}
    for arm in ("ours", "own labels", "single-task"):
        if arm in main:
            first[arm] = main.pop(arm)

    elsewhere = {}
    for label, setting in ELSEWHERE.items():
        for arm, seeds in found.get(setting, {}).items():
            if arm == "baseline":
                continue
            name = label if arm == "ours" else f"{label}, {arm}"
            elsewhere[name] = gains(seeds, found[setting]["baseline"])
    return {"main comparison": first, "elsewhere": elsewhere, "other forms of the loss": main}


def draw_arms(axis, headings):
    """{heading: {label: Delta_m of each seed}} -> a point and an interval per label."""
    row = 0
    labels = {}  # row -> what stands at the left
    values_shown = {}  # row -> what stands at the right
    limits = [0.0]
    for heading, arms in headings.items():
        axis.text(
            0.01,
            row,
            heading,
            weight="bold",
            va="center",
            transform=axis.get_yaxis_transform(),
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
        colour = "#d55e00" if heading == "main comparison" else "#0072b2"
        for label, values in arms.items():
            row -= 1
            mean = statistics.fmean(values)
            low, high = compare.interval(values)
            seeds = "1 seed" if len(values) == 1 else f"{len(values)} seeds"
            labels[row] = f"{label}, {seeds}"
            values_shown[row] = mean_interval(values)
            if high - low < 10:
                limits += [low, high]
            else:
                limits.append(mean)  # a wider interval runs off the axis
            axis.plot((low, high), (row, row), color=colour)
            axis.plot(mean, row, "o", color=colour)
        row -= 2

    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_xlim(min(limits) - 0.5, max(limits) + 0.5)
    axis.set_xlabel("Delta_m over the baseline, %, and 95 % interval")
    axis.set(yticks=list(labels), yticklabels=labels.values(), ylim=(row + 1, 1))
    right = axis.twinx()
    right.set(yticks=list(values_shown), yticklabels=values_shown.values(), ylim=(row + 1, 1))


def draw_training(axis, along):
    """along_training() -> means over seeds, and ours of each seed as a thin line."""
    lengths = list(along)
    levels = [along[iterations][0] for iterations in lengths]
    effects = [along[iterations][1] for iterations in lengths]
    curves = [
        ("baseline, over itself after 1,500", levels, "black"),
        ("ours, over the baseline as long", effects, "#d55e00"),
    ]
    for label, values, colour in curves:
        means = [statistics.fmean(of_length) for of_length in values]
        axis.plot(lengths, means, "o-", color=colour, label=label)
    for of_seed in zip(*effects):
        axis.plot(lengths, of_seed, color="#d55e00", linewidth=0.5)

    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(xscale="log", xticks=lengths, xticklabels=lengths, ylabel="Delta_m, %")
    axis.set_xlabel(f"iterations (mean of {len(levels[0])} seeds)")
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
    columns = 2 if len(along) > 1 else 1
    figure, axes = pyplot.subplots(
        1,
        columns,
        figsize=(12, 1 + lines / 4),
        squeeze=False,
        layout="constrained",
        width_ratios=[3, 2][:columns],
    )
    draw_arms(axes[0, 0], headings)
    if columns == 2:
        draw_training(axes[0, 1], along)
    with mtcd.replacing(PICTURE) as part:
        figure.savefig(part, format="png", dpi=100)
    print(f"\n{PICTURE}")


def show_results():
    """Print the tables, put them into docs/results.md, draw the picture."""
    lines = read_results(RESULTS, Run)
    found = group_by_setting(sorted(lines, key=table_order))
    if "ours" not in found.get(MAIN, ()):
        raise mtcd.UserError(f"{RESULTS} has no runs of the main comparison")
    text = tables(lines)
    print(text)
    replace_marked(DOCUMENT, "rooms", text)
    draw(found)


def main(argv=None):
    """The command line -> exit status."""
    parser = mtcd.Parser(
        "python -m extras.study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tuning", action="store_true", help="make the tuning runs only")
    parser.add_argument("--tables", action="store_true", help="run nothing, print and draw")

    def job():
        args = parser.parse_args(argv)
        if args.tables:
            show_results()
        elif args.tuning:
            run_all(["tuning"])
        else:
            run_all(["tuning", "reported"])

    return mtcd.exit_status("extras.study", job)


if __name__ == "__main__":
    sys.exit(main())
