# SPDX-License-Identifier: MIT
"""The paper's figure 1 for any checkpoint: are pixels that are alike by one task's labels alike in
another task's features?

    python -m extras.consistency --checkpoint runs/NAME/last.pt

For random triplets of pixels of val images, defined by every task's labels, the distances of anchor
to positive and to negative in every task's features: of random weights, of the checkpoint, and of
its projected features, which are what the paper shows. Prints how often the positive is nearer
and draws the distances, consistency.png beside the checkpoint or in --out.
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

COLOURS = {"positive": "#0072b2", "negative": "#e69f00"}  # told apart by the colour-blind too


@torch.no_grad()
def triplet_distances(net, contrast, projectors, dataset, device, batches=8):
    """Distances of random triplets in each target's features by each source's labels, its own too.

    `contrast` samples pixels of `batches` batches of 8 val images, spread over the split -> two
    dictionaries (target, source) -> (2, t) distances anchor-positive and anchor-negative, 0 to 2:
    of features scaled to unit length, and of their projections where `projectors` has one.
    """
    plain, projected = {}, {}
    net.eval()
    spread = np.linspace(0, len(dataset) - 1, min(8 * batches, len(dataset))).astype(int)
    for first in range(0, len(spread), 8):
        batch = default_collate([dataset[i] for i in spread[first : first + 8]])
        images, labels = mtcd.to_device(batch, device)
        for target, feature in net.features(images).items():
            for source in contrast.tasks:
                criterion = contrast.criteria[source]
                rows, label, valid = contrast.sample(feature, labels[source], criterion)
                triplets = contrast.triplets(label, valid, criterion)
                pair, name = (target, source), f"{target}_from_{source}"
                plain.setdefault(pair, []).append(distances(rows, *triplets))
                if name in projectors:
                    points = projectors[name](rows)
                    projected.setdefault(pair, []).append(distances(points, *triplets))
    return [{pair: torch.cat(parts, 1) for pair, parts in space.items()}
            for space in (plain, projected)]


def distances(points, positive, negative, found):
    """points (n, dim), their partners (n,), whether they have both (n,) -> (2, t) on the CPU."""
    points = F.normalize(points, dim=1)
    pairs = [(points - points[other]).norm(dim=1)[found] for other in (positive, negative)]
    return torch.stack(pairs).cpu()


def closer(pair):
    """(2, t) distances -> percent of the triplets whose positive is nearer; a tie counts half."""
    return 50 * (1 + (pair[1] - pair[0]).sign()).mean().item() if pair.numel() else math.nan


def print_shares(title, tasks, space):
    """A table, rows: whose features, columns: whose labels."""
    print(f"\n{title:26}" + "".join(f"{source:>10}" for source in tasks))
    for target in tasks:
        shares = [closer(space.get((target, source), torch.empty(2, 0))) for source in tasks]
        cells = ["-" if math.isnan(share) else f"{share:.1f}" for share in shares]
        print(f"  {target:24}" + "".join(f"{cell:>10}" for cell in cells))


def draw(tasks, spaces):
    """{title: (target, source) -> (2, t) distances} -> matplotlib figure of histograms."""
    from matplotlib.figure import Figure  # no pyplot: no window, no state
    count, edges = len(tasks), np.linspace(0, 2, 51)
    high = 0.8 * count + 0.9  # inches of a part
    figure = Figure((max(1.4 * count, 4) + 1.2, high * len(spaces) + 0.6), dpi=100, layout="constrained")
    for part, (title, space) in zip(np.atleast_1d(figure.subfigures(len(spaces))), spaces.items()):
        part.suptitle(f"{title} (rows: whose features; columns: whose labels)", fontsize="medium")
        cells = part.subplots(count, count, sharex=True, squeeze=False)
        for (row, column), cell in np.ndenumerate(cells):
            pair = space.get((tasks[row], tasks[column]), torch.empty(2, 0))
            for values, (name, colour) in zip(pair, COLOURS.items()):
                cell.stairs(np.histogram(values, edges)[0], edges, color=colour, label=name)
            if pair.numel():
                cell.set_title(f"{closer(pair):.1f} %", fontsize="small", loc="right", pad=2)
            cell.set_ylim(bottom=0)
            cell.set_yticks([])
            cell.spines[["top", "left", "right"]].set_visible(False)
            if row == count - 1:
                cell.set_xlabel(tasks[column])
            if column == 0:
                cell.set_ylabel(tasks[row], rotation=0, ha="right", va="center")
    lines = cells[0, -1].get_legend_handles_labels()
    figure.legend(*lines, loc="outside upper center", ncols=2, title="distance of an anchor to its")
    return figure


def consistency(args):
    """Tables on the terminal, of random and of trained weights, and consistency.png."""
    if not importlib.util.find_spec("matplotlib"):  # say it before the work, not after
        raise mtcd.UserError("matplotlib draws consistency.png: pip install matplotlib")
    device = mtcd.start_device(args.device)
    net, config, trained = mtcd.load_network(args.checkpoint, device)
    path = mtcd.find_data(config["dataset"], args.data or config["data"])
    tasks, dataset = config["tasks"], mtcd.DenseTasks(path, "val", config["tasks"])
    torch.manual_seed(config["seed"])
    start = mtcd.MultiTaskNet(config["channels"], config["backbone"]).to(device)
    contrast = mtcd.CrossTaskContrast(tasks, net.channels).to(device)
    before, _ = triplet_distances(start, contrast, {}, dataset, device)
    projectors = {}
    if trained:
        try:
            contrast.load_state_dict(trained)
            projectors = contrast.projectors
        except RuntimeError:  # one of extras/arms.py: its features can be looked at all the same
            print(f"{args.checkpoint} has the projectors of another loss: features only.\n")
    plain, projected = triplet_distances(net, contrast, projectors, dataset, device)
    spaces = {"features, random weights": before, "features": plain}
    if projected:
        spaces["projected features"] = projected
    print("Percent of random triplets whose positive is nearer than the negative; 50 is chance.\n"
          "Rows: whose features. Columns: whose labels tell positives from negatives.")
    for title, space in spaces.items():
        print_shares(title, tasks, space)
    out = Path(args.out or Path(args.checkpoint).parent)
    with mtcd.replacing(out / "consistency.png") as part:
        draw(tasks, spaces).savefig(part, format="png")
    print(f"\n{out / 'consistency.png'}")


def main(argv=None):
    """The command line -> exit status."""
    parser = mtcd.Parser("python -m extras.consistency", description=__doc__,
                         formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="last.pt of a run")
    parser.add_argument("--data", metavar="FILE", help="default: that of the run")
    parser.add_argument("--out", metavar="DIR", help="default: the folder of the checkpoint")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                        help="default: %(default)s")
    return mtcd.exit_status("extras.consistency", lambda: consistency(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
