# SPDX-License-Identifier: MIT
"""Side by side in one run: our encoder and timm's, our regulariser and pytorch-metric-learning's, a
step and its parts, and extras.bench under NYUD's protocol on rendered rooms of its size.

    pip install timm pytorch-metric-learning
    OMP_NUM_THREADS=2 python -m extras.peers     four minutes on 2 CPU cores; medians of 5, in turn
"""
import argparse
import sys
import tempfile
from importlib.util import find_spec

import h5py
import torch
import torch.nn.functional as F

import data_prep
import mtcd
from extras.bench import main as bench_main
from extras.bench import median_seconds

CPU, TASKS = torch.device("cpu"), {"semseg": 40, "depth": 1, "normal": 3, "boundary": 1}


def labels_of(size, batch):
    """Random labels of the four tasks, 10 patches a side: the time does not depend on them."""
    def patches(values):
        return F.interpolate(values, size)
    return {"semseg": patches(torch.randint(40, (batch, 1, 10, 10)).float())[:, 0].long(),
            "depth": patches(1 + 9 * torch.rand(batch, 1, 10, 10)),
            "normal": F.normalize(patches(torch.randn(batch, 3, 10, 10)), dim=1),
            "boundary": patches((torch.rand(batch, 1, 100, 100) < 0.03).float())[:, 0].long()}


def show(title, jobs):
    """Medians in ms of {name: job}, and their ratio to the first."""
    times = median_seconds(jobs, CPU)
    print(f"\n{title}")
    for name, seconds in times.items():
        ratio = seconds / next(iter(times.values()))
        print(f"  {name:58}{1000 * seconds:10.1f} ms{ratio:8.2f}", flush=True)


def backward(outputs):
    sum(output.mean() for output in outputs).backward()


def encoders():
    import timm
    x = torch.randn(2, 3, 416, 544)
    ours = mtcd.build_backbone("hrnet18s").to(memory_format=torch.channels_last)
    peer = timm.create_model(  # without its classification head
        "hrnet_w18_small_v2", features_only=True, feature_location="")
    jobs = {"hrnet18s, channels last, as it is trained": lambda: backward(ours(x)),
            "timm": lambda: backward(peer(x))}
    show("encoder, 416 x 544, batch 2, forward and backward", jobs)
    peer.to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    show("the same, both in channels last", jobs)


def steps():
    images = torch.rand(2, 3, 425, 560).contiguous(memory_format=torch.channels_last)
    labels, net = labels_of((425, 560), 2), mtcd.MultiTaskNet(TASKS)
    contrast = mtcd.CrossTaskContrast(list(TASKS), net.channels)
    objective = mtcd.Objective(net, contrast, mtcd.PROTOCOLS["nyud"].boundary_weight)
    objective.to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(objective.parameters(), 1e-4, momentum=0.9, weight_decay=5e-4)

    def step():
        optimiser.zero_grad()
        sum(objective(images, labels).values()).backward()
        optimiser.step()
    show("training step, 425 x 560, batch 2, 4 tasks, 40 classes",
         {"encoder and heads, forward and backward":
          lambda: backward(net.features(images).values()), "step": step})


def regularisers():
    from pytorch_metric_learning import losses, miners
    embedding, label = torch.randn(384, 64), torch.randint(10, (384,))
    valid = torch.ones(384, dtype=torch.bool)
    contrast = mtcd.CrossTaskContrast(list(TASKS), 64)
    miner = miners.TripletMarginMiner(1.0, type_of_triplets="semihard")
    triplet = losses.TripletMarginLoss(1.0)

    def points():
        return F.normalize(embedding.clone().requires_grad_(), dim=1)

    def ours():
        contrast.triplet_loss(points(), label[:, None], valid, mtcd.CLASSES).backward()

    def mined():
        some = points()
        triplet(some, label, miner(some, label)).backward()
    show("triplets of 384 pixels, 10 classes, forward and backward",
         {"ours, a random one per anchor": ours,
          "pytorch-metric-learning, semi-hard": mined,
          "pytorch-metric-learning, all": lambda: triplet(points(), label).backward()})

    def regulariser(height, width, count):
        some = mtcd.CrossTaskContrast(list(TASKS)[:count], 64)
        shape = 8, 64, height // 4, width // 4
        features = {task: torch.randn(shape, requires_grad=True) for task in some.tasks}
        labels = labels_of((height, width), 8)
        return lambda: some(features, labels).backward()
    show("regulariser, batch 8, forward and backward", {
        f"{count} tasks, {height} x {width}": regulariser(height, width, count)
        for count, height, width in ((4, 425, 560), (4, 212, 280), (4, 106, 140), (2, 425, 560))})


def bench():
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/nyud.h5"
        data_prep.make_toy(path, train=32, val=8, height=425, width=560)
        with h5py.File(path, "r+") as file:
            file.attrs["dataset"] = "nyud"  # its tasks, crops and scales; the rooms' 16 classes
        print(flush=True)
        bench_main(["--dataset", "nyud", "--data", path, "--device", "cpu"])


def main(argv=None):
    def job():
        mtcd.Parser("python -m extras.peers", description=__doc__,
                    formatter_class=argparse.RawTextHelpFormatter).parse_args(argv)
        if not (find_spec("timm") and find_spec("pytorch_metric_learning")):
            raise mtcd.UserError("the peers are missing: pip install timm pytorch-metric-learning")
        torch.manual_seed(0)
        encoders()
        steps()
        regularisers()
        bench()
    return mtcd.exit_status("extras.peers", job)


if __name__ == "__main__":
    sys.exit(main())
