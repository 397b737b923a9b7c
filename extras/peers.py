# SPDX-License-Identifier: MIT
"""Side by side in one run: ours and what others have.

    pip install timm pytorch-metric-learning
    OMP_NUM_THREADS=2 python -m extras.peers

Our encoder and timm's; our regulariser and pytorch-metric-learning's; a training step and its
parts; and extras.bench under NYUD's protocol on rendered rooms of its size. Medians of 5 rounds,
in turn. It takes four minutes on 2 CPU cores.
"""

import argparse
import sys
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import h5py
import torch
import torch.nn.functional as F

import data_prep
import mtcd
from extras.bench import main as bench_main
from extras.bench import median_seconds

CPU = torch.device("cpu")
TASKS = {"semseg": 40, "depth": 1, "normal": 3, "boundary": 1}  # NYUD's, prediction channels
NYUD = (425, 560)  # size of its images


# --------------------------------------------------------------------------------------- measuring
def show(title, jobs):
    """Medians in ms of {name: job}, and their ratio to the first."""
    times = median_seconds(jobs, CPU)
    first = next(iter(times.values()))
    print(f"\n{title}")
    for name, seconds in times.items():
        print(f"  {name:58}{1000 * seconds:10.1f} ms{seconds / first:8.2f}", flush=True)


def labels_of(size, batch):
    """Random labels of the four tasks, 10 patches a side: the time does not depend on them."""

    def patches(values):
        return F.interpolate(values, size)

    semseg = torch.randint(40, (batch, 1, 10, 10)).float()
    depth = 1 + 9 * torch.rand(batch, 1, 10, 10)
    normal = torch.randn(batch, 3, 10, 10)
    boundary = (torch.rand(batch, 1, 100, 100) < 0.03).float()
    return {
        "semseg": patches(semseg)[:, 0].long(),
        "depth": patches(depth),
        "normal": F.normalize(patches(normal), dim=1),
        "boundary": patches(boundary)[:, 0].long(),
    }


def forward_backward(network, x):
    """network: (B, 3, H, W) -> a list of maps."""
    means = [output.mean() for output in network(x)]
    sum(means).backward()


# ----------------------------------------------------------------------------------------- encoder
def encoders():
    import timm

    x = torch.randn(2, 3, 416, 544)
    ours = mtcd.build_backbone("hrnet18s").to(memory_format=torch.channels_last)
    peer = timm.create_model(
        "hrnet_w18_small_v2",
        features_only=True,
        feature_location="",  # without its classification head
    )
    jobs = {
        "hrnet18s, channels last, as it is trained": partial(forward_backward, ours, x),
        "timm": partial(forward_backward, peer, x),
    }
    show("encoder, 416 x 544, batch 2, forward and backward", jobs)

    peer.to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    jobs = {
        "hrnet18s, channels last, as it is trained": partial(forward_backward, ours, x),
        "timm": partial(forward_backward, peer, x),
    }
    show("the same, both in channels last", jobs)


# ------------------------------------------------------------------------------------ training step
def steps():
    images = torch.rand(2, 3, *NYUD).contiguous(memory_format=torch.channels_last)
    labels = labels_of(NYUD, 2)
    net = mtcd.MultiTaskNet(TASKS)
    contrast = mtcd.CrossTaskContrast(list(TASKS), net.channels)
    objective = mtcd.Objective(net, contrast, mtcd.PROTOCOLS["nyud"])
    objective.to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(objective.parameters(), 1e-4, momentum=0.9, weight_decay=5e-4)

    def features(x):
        return net.features(x).values()

    def step():
        optimiser.zero_grad()
        losses, contrast_loss = objective(images, labels)
        total = sum(losses.values()) + contrast_loss
        total.backward()
        optimiser.step()

    jobs = {
        "encoder and heads, forward and backward": partial(forward_backward, features, images),
        "step": step,
    }
    show("training step, 425 x 560, batch 2, 4 tasks, 40 classes", jobs)


# -------------------------------------------------------------------------------------- regulariser
def triplets():
    from pytorch_metric_learning import losses, miners

    embedding = torch.randn(384, 64)
    label = torch.randint(10, (384,))
    contrast = mtcd.CrossTaskContrast(list(TASKS), 64)
    miner = miners.TripletMarginMiner(1.0, type_of_triplets="semihard")
    triplet_loss = losses.TripletMarginLoss(1.0)

    def points():
        return F.normalize(embedding.clone().requires_grad_(), dim=1)

    def ours():
        contrast.triplet_loss(points(), label[:, None], mtcd.CLASSES).backward()

    def semi_hard():
        some = points()
        triplet_loss(some, label, miner(some, label)).backward()

    def all_triplets():
        triplet_loss(points(), label).backward()

    jobs = {
        "ours, a random one per anchor": ours,
        "pytorch-metric-learning, semi-hard": semi_hard,
        "pytorch-metric-learning, all": all_triplets,
    }
    show("triplets of 384 pixels, 10 classes, forward and backward", jobs)


def regularisers():
    jobs = {}
    for count, height, width in ((4, 425, 560), (4, 212, 280), (4, 106, 140), (2, 425, 560)):
        name = f"{count} tasks, {height} x {width}"
        jobs[name] = regulariser_job(list(TASKS)[:count], height, width)
    show("regulariser, batch 8, forward and backward", jobs)


def regulariser_job(tasks, height, width):
    """A call with gradients of these tasks, on images of this size."""
    contrast = mtcd.CrossTaskContrast(tasks, 64)
    features = {}
    for task in tasks:
        features[task] = torch.randn(8, 64, height // 4, width // 4, requires_grad=True)
    labels = labels_of((height, width), 8)

    def job():
        contrast(features, labels).backward()

    return job


# ------------------------------------------------------------------------------------------- bench
def bench():
    """extras.bench on 32 rooms of NYUD's size, under its tasks, crops and scales."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "nyud.h5"
        height, width = NYUD
        data_prep.make_toy(path, train=32, val=8, height=height, width=width)
        with h5py.File(path, "r+") as file:
            file.attrs["dataset"] = "nyud"  # but with the rooms' 16 classes
        print(flush=True)
        status = bench_main(["--dataset", "nyud", "--data", str(path), "--device", "cpu"])
    if status != 0:
        raise mtcd.UserError("extras.bench failed")


def main(argv=None):
    """The command line -> exit status."""
    parser = mtcd.Parser(
        "python -m extras.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def job():
        parser.parse_args(argv)
        if not (find_spec("timm") and find_spec("pytorch_metric_learning")):
            raise mtcd.UserError("the peers are missing: pip install timm pytorch-metric-learning")
        torch.manual_seed(0)
        encoders()
        steps()
        triplets()
        regularisers()
        bench()

    return mtcd.exit_status("extras.peers", job)


if __name__ == "__main__":
    sys.exit(main())
