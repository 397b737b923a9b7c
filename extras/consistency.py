# SPDX-License-Identifier: MIT
"""The paper's figure 1 for any checkpoint: are pixels that are alike by one task's labels alike in
another task's features?

    python -m extras.consistency --checkpoint runs/NAME/last.pt

Random triplets of pixels of val images are defined by every task's labels. In every task's features
the anchor has a distance to its positive and to its negative: before the training, in the
checkpoint, and in its projected features, which are what the paper shows. Prints how often the
positive is nearer, and draws the distances: consistency.png beside the checkpoint or in --out.

"Before the training" means random weights. extras/lite0.py's encoder has those of ImageNet then, if
its package is installed; the rest of the network is random.
"""

import argparse
import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import default_collate

import mtcd
from extras.lite0 import build_start, load_network

COLOURS = {"positive": "#0072b2", "negative": "#e69f00"}  # told apart by the colour-blind too
NO_TRIPLETS = torch.empty(2, 0)


# --------------------------------------------------------------------------------------- distances
@torch.no_grad()
def triplet_distances(net, contrast, projectors, dataset, device, batches=8):
    """Distances of random triplets in each target's features by each source's labels, its own too.

    `contrast` samples pixels of `batches` batches of 8 val images, spread over the split.
    -> two dictionaries (target, source) -> (2, t), distances anchor-positive and anchor-negative,
    0 to 2: of features scaled to length 1, and of their projections where `projectors` has one.
    """
    plain = {}
    projected = {}
    net.eval()
    spread = np.linspace(0, len(dataset) - 1, min(8 * batches, len(dataset))).astype(int)
    for first in range(0, len(spread), 8):
        batch = default_collate([dataset[i] for i in spread[first : first + 8]])
        images, labels = mtcd.to_device(batch, device)
        for target, feature in net.features(images).items():
            for source in contrast.tasks:
                criterion = contrast.criteria[source]
                rows, label = contrast.sample(feature, labels[source], criterion)
                if len(rows) == 0:  # no ground truth in these images
                    continue

                pair = (target, source)
                triplets = contrast.triplets(rows, label, criterion)
                plain.setdefault(pair, []).append(distances(rows, *triplets))
                name = f"{target}_from_{source}"
                if name in projectors:
                    points = projectors[name](rows)
                    projected.setdefault(pair, []).append(distances(points, *triplets))
    return joined(plain), joined(projected)


def distances(points, anchor, positive, negative):
    """points (n, dim), three index vectors (t,) -> (2, t) on the CPU."""
    points = F.normalize(points, dim=1)
    to_positive = (points[anchor] - points[positive]).norm(dim=1)
    to_negative = (points[anchor] - points[negative]).norm(dim=1)
    return torch.stack([to_positive, to_negative]).cpu()


def joined(space):
    return {pair: torch.cat(parts, dim=1) for pair, parts in space.items()}


def closer(pair):
    """(2, t) distances -> percent of the triplets whose positive is nearer; a tie counts half."""
    if pair.numel() == 0:
        return math.nan
    to_positive, to_negative = pair
    nearer = (to_negative - to_positive).sign()  # 1, 0 or -1
    return 50 * (1 + nearer).mean().item()


# ------------------------------------------------------------------------------------------ output
def print_shares(title, tasks, space):
    """A table, rows: whose features, columns: whose labels."""
    heading = "".join(f"{source:>10}" for source in tasks)
    print(f"\n{title:26}{heading}")
    for target in tasks:
        cells = []
        for source in tasks:
            share = closer(space.get((target, source), NO_TRIPLETS))
            cells.append("-" if math.isnan(share) else f"{share:.1f}")
        print(f"  {target:24}" + "".join(f"{cell:>10}" for cell in cells))


def draw(tasks, spaces):
    """{title: (target, source) -> (2, t) distances} -> matplotlib figure of histograms."""
    from matplotlib.figure import Figure  # no pyplot: no window, no state

    count = len(tasks)
    width = max(1.4 * count, 4) + 1.2  # inches
    height = (0.8 * count + 0.9) * len(spaces) + 0.6
    figure = Figure((width, height), dpi=100, layout="constrained")

    parts = np.atleast_1d(figure.subfigures(len(spaces)))
    for part, (title, space) in zip(parts, spaces.items()):
        part.suptitle(f"{title} (rows: whose features; columns: whose labels)", fontsize="medium")
        cells = part.subplots(count, count, sharex=True, squeeze=False)
        for (row, column), cell in np.ndenumerate(cells):
            draw_cell(cell, space.get((tasks[row], tasks[column]), NO_TRIPLETS))
        for cell, source in zip(cells[-1], tasks):
            cell.set_xlabel(source)
        for cell, target in zip(cells[:, 0], tasks):
            cell.set_ylabel(target, rotation=0, ha="right", va="center")

    lines = cells[0, -1].get_legend_handles_labels()
    figure.legend(*lines, loc="outside upper center", ncols=2, title="distance of an anchor to its")
    return figure


def draw_cell(cell, pair):
    """Two histograms, of (2, t) distances."""
    edges = np.linspace(0, 2, 51)
    for values, (name, colour) in zip(pair, COLOURS.items()):
        counts, _ = np.histogram(values, edges)
        cell.stairs(counts, edges, color=colour, label=name)
    if pair.numel():
        cell.set_title(f"{closer(pair):.1f} %", fontsize="small", loc="right", pad=2)
    cell.set_ylim(bottom=0)
    cell.set_yticks([])
    cell.spines[["top", "left", "right"]].set_visible(False)


# ------------------------------------------------------------------------------------ command line
def consistency(args):
    """Tables on the terminal, of random and of trained weights, and consistency.png."""
    if not importlib.util.find_spec("matplotlib"):  # say it before the work, not after
        raise mtcd.UserError("matplotlib draws consistency.png: pip install matplotlib")

    device = mtcd.start_device(args.device)
    net, config, trained = load_network(args.checkpoint, device)
    tasks = config["tasks"]
    dataset = mtcd.open_val(config, args.data)
    if config.get("identity", dataset.identity) != dataset.identity:
        print(f"{dataset.path} holds other images than the run had.")

    torch.manual_seed(config["seed"])
    encoder, origin = build_start(config)
    start = mtcd.MultiTaskNet(config["channels"], encoder).to(device)
    contrast = mtcd.CrossTaskContrast(
        tasks,
        net.channels,
        samples=1024,  # for steady shares
        targets=config.get("targets"),
    )
    contrast = contrast.to(device)
    before, _ = triplet_distances(start, contrast, {}, dataset, device)
    projectors = trained_projectors(contrast, trained, args.checkpoint)
    plain, projected = triplet_distances(net, contrast, projectors, dataset, device)
    spaces = {f"features, {origin}": before, "features": plain}
    if projected:
        spaces["projected features"] = projected

    print("Percent of random triplets whose positive is nearer than the negative; 50 is chance.")
    print("Rows: whose features. Columns: whose labels tell positives from negatives.")
    for title, space in spaces.items():
        print_shares(title, tasks, space)

    out = Path(args.out or Path(args.checkpoint).parent)
    with mtcd.replacing(out / "consistency.png") as part:
        draw(tasks, spaces).savefig(part, format="png")
    print(f"\n{out / 'consistency.png'}")


def trained_projectors(contrast, state, checkpoint):
    """The run's projectors, put into `contrast`; {} of a baseline, or of another form of loss."""
    if not state:
        return {}
    try:
        contrast.load_state_dict(state)
    except RuntimeError:  # one of extras/arms.py: its features can be looked at all the same
        print(f"{checkpoint} has the projectors of another loss: features only.\n")
        return {}
    return contrast.projectors


def main(argv=None):
    """The command line -> exit status."""
    parser = mtcd.Parser(
        "python -m extras.consistency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="last.pt of a run")
    parser.add_argument("--data", metavar="FILE", help="default: that of the run")
    parser.add_argument("--out", metavar="DIR", help="default: the folder of the checkpoint")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="default: %(default)s",
    )

    def job():
        consistency(parser.parse_args(argv))

    return mtcd.exit_status("extras.consistency", job)


if __name__ == "__main__":
    sys.exit(main())
