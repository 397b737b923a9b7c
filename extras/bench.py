# SPDX-License-Identifier: MIT
"""What takes how long, and how much memory a training step adds.

    python -m extras.bench --dataset nyud --batch-size 2

A training step with and without the regulariser, the regulariser alone, the loader, inference and
every metric: medians of 5 rounds, in turn, so that a machine's drift meets all alike.
--checkpoint FILE takes data, tasks and encoder from that run; heads are random here. --iters,
--workers, --out, --resume and --eval have no effect.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import default_collate

import mtcd
from extras.lite0 import load_network

PLAIN = "training step, lambda = 0"
REGULARISED = "training step, regularised"


# --------------------------------------------------------------------------------------- measuring
def median_seconds(jobs, device, rounds=5):
    """{name: job} -> {name: median seconds}, after a warm-up; the jobs take turns."""
    times = {name: [] for name in jobs}
    for _ in range(rounds + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def peak_memory(job, device):
    """Bytes of tensors that a job, at its peak, adds to what lay there before.

    The process takes some more, which its allocator keeps for later.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        job()
        return torch.cuda.max_memory_allocated(device) - before

    # On a CPU only the profiler's trace tells: an event for each tensor that came or went.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # no messages of the profiler's own
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        job()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]

    changes = []  # (time, bytes), negative where a tensor went
    for event in events:
        if event["name"] == "[memory]":
            changes.append((event["ts"], event["args"]["Bytes"]))
    return max(itertools.accumulate(size for _, size in sorted(changes)))


# -------------------------------------------------------------------------------------------- jobs
def training_jobs(objective, optimiser, images, labels, amp):
    """{name: job}: a step without and with the regulariser, and the regulariser alone."""
    regulariser = objective.regulariser
    autocast = partial(torch.autocast, images.device.type, torch.bfloat16, enabled=amp)
    with torch.no_grad(), autocast():
        features = objective.net.features(images)

    def step(regulariser):
        objective.regulariser = regulariser
        with autocast():
            losses, contrast_loss = objective(images, labels)
        total = sum(losses.values()) + contrast_loss
        total.backward()
        optimiser.step()
        optimiser.zero_grad()

    def alone():
        leaves = {task: feature.detach().requires_grad_() for task, feature in features.items()}
        with autocast():
            loss = regulariser(leaves, labels)
        loss.backward()

    return {
        PLAIN: partial(step, None),
        REGULARISED: partial(step, regulariser),
        "regulariser alone, forward and backward": alone,
    }


def inference_jobs(net, image, truth, config, amp):
    """{name: job}: predictions of one image, and every task's metric on them."""

    def infer():
        net.eval()
        with torch.inference_mode(), torch.autocast(image.device.type, torch.bfloat16, enabled=amp):
            predictions = net(image)
        net.train()
        return predictions

    jobs = {"inference, one image": infer}
    protocol = mtcd.PROTOCOLS[config["dataset"]]
    for task, prediction in infer().items():
        metric = mtcd.build_metric(task, config["channels"][task], protocol)
        prediction = mtcd.postprocess(task, prediction.float())
        name = f"{mtcd.TASKS[task].metric.name} of {task}, one image"
        jobs[name] = partial(metric.update, prediction, truth[task])
    return jobs


# ------------------------------------------------------------------------------------ command line
def bench(args):
    """Time everything, print a table."""
    device = mtcd.start_device(args.device)
    encoder = None
    if args.checkpoint:
        encoder = follow_run(args, device)
    if args.pretrained is None:
        args.pretrained = "none"  # times do not depend on the weights
    if not args.contrast:  # the bench has both
        args.contrast = mtcd.PROTOCOLS[args.dataset].contrast
    config = mtcd.run_config(args)
    batch_size = args.batch_size

    train = mtcd.DenseTasks(config["data"], "train", config["tasks"], augment=True)
    val = mtcd.DenseTasks(config["data"], "val", config["tasks"])
    batch = default_collate([train[i] for i in range(batch_size)])
    images, labels = mtcd.to_device(batch, device)
    image, truth = mtcd.to_device(default_collate([val[0]]), device)

    objective, optimiser, _ = mtcd.set_up(config, device, backbone=encoder)
    if args.compile:
        objective.net.features = torch.compile(objective.net.features)
    training = training_jobs(objective, optimiser, images, labels, args.amp)
    training[REGULARISED]()  # makes the optimiser's buffers
    memory = {}
    for name in (PLAIN, REGULARISED):
        memory[name] = peak_memory(training[name], device) / 2**20

    keys = itertools.count()

    def load_batch():
        return [train[next(keys)] for _ in range(batch_size)]

    loader = {"loader, one process, a batch": load_batch}
    inference = inference_jobs(objective.net, image, truth, config, args.amp)
    times = median_seconds({**training, **loader, **inference}, device)

    size = "x".join(map(str, config["size"]))
    print(f"{args.backbone}, {size}, batch {batch_size}, {device}, medians of 5")
    print(f"  {'':40}{'ms':>10}{'% of a step':>13}{'images/s':>10}")
    for name, seconds in times.items():
        share = 100 * seconds / times[PLAIN]
        count = 1 if name in inference else batch_size
        print(f"  {name:40}{1000 * seconds:10.1f}{share:13.1f}{count / seconds:10.1f}")
    print(
        f"  memory that a step adds at its peak, MiB: lambda = 0 {memory[PLAIN]:.0f}, "
        f"regularised {memory[REGULARISED]:.0f}"
    )


def follow_run(args, device):
    """Fill the arguments in from the checkpoint's run -> its encoder."""
    net, config, _ = load_network(args.checkpoint, device)
    args.dataset = config["dataset"]
    args.data = args.data or config["data"]
    args.tasks = config["tasks"]
    args.backbone = config["backbone"]
    args.pretrained = "none"  # its weights are here already
    return net.backbone


def main(argv=None):
    """The command line -> exit status."""
    parser = mtcd.build_parser()
    parser.usage = "python -m extras.bench [the arguments of mtcd.py]"
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter

    def job():
        bench(parser.parse_args(argv))

    return mtcd.exit_status("extras.bench", job)


if __name__ == "__main__":
    sys.exit(main())
