# SPDX-License-Identifier: MIT
"""What takes how long, and how much memory a training step adds.

    python -m extras.bench [the arguments of mtcd.py]

A training step with and without the regulariser, the regulariser alone, the loader, inference and
every metric: medians of 5 rounds, in turn, so that a machine's drift meets all alike.
"""
import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import default_collate

import mtcd


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
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # no messages of the profiler's own
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        job()
    with tempfile.TemporaryDirectory() as folder:
        profile.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"])  # a tensor came, or went: negative
               for event in events if event["name"] == "[memory]"]
    return max(itertools.accumulate(size for _, size in sorted(changes)))


def training_jobs(objective, optimiser, images, labels, amp):
    """{name: job}: a step without and with the regulariser, and the regulariser alone."""
    net, contrast = objective.net, objective.contrast
    with torch.no_grad():
        features = net.features(images)

    def step(regulariser):
        objective.contrast = regulariser
        with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
            losses = objective(images, labels)
        sum(losses.values()).backward()
        optimiser.step()
        optimiser.zero_grad()

    def alone():
        leaves = {task: feature.detach().requires_grad_() for task, feature in features.items()}
        contrast(leaves, labels).backward()

    return {"training step, lambda = 0": lambda: step(None),
            "training step, regularised": lambda: step(contrast),
            "regulariser alone, forward and backward": alone}


def inference_jobs(net, image, truth, config, amp):
    """{name: job}: predictions of one image, and every task's metric on them."""
    def infer():
        net.eval()
        with torch.inference_mode(), torch.autocast(image.device.type, torch.bfloat16, enabled=amp):
            predictions = net(image)
        net.train()
        return predictions

    def measure(task, prediction):
        meter = mtcd.TASKS[task].meter(config["channels"][task], protocol)
        return lambda: meter.update(prediction, truth[task])

    jobs, protocol = {"inference, one image": infer}, mtcd.PROTOCOLS[config["dataset"]]
    for task, prediction in infer().items():
        prediction = mtcd.postprocess(task, prediction.float())
        jobs[f"{mtcd.TASKS[task].metric} of {task}, one image"] = measure(task, prediction)
    return jobs


def bench(args):
    """Time everything, print a table."""
    device = mtcd.start_device(args.device)
    args.contrast = args.contrast or 2.0  # the bench has both
    config, batch = mtcd.run_config(args), args.batch_size
    data = mtcd.DenseTasks(config["data"], "train", config["tasks"], augment=True)
    val = mtcd.DenseTasks(config["data"], "val", config["tasks"])
    images, labels = mtcd.to_device(default_collate([data[i] for i in range(batch)]), device)
    objective, optimiser, _ = mtcd.set_up(args, config, device)
    if args.compile:
        objective.net.features = torch.compile(objective.net.features)
    training = training_jobs(objective, optimiser, images, labels, args.amp)
    plain, regularised, _ = training.values()
    regularised()  # makes the optimiser's buffers
    memory = [peak_memory(job, device) / 2**20 for job in (plain, regularised)]
    keys = itertools.count()
    loader = {"loader, one process, a batch": lambda: [data[next(keys)] for _ in range(batch)]}
    image, truth = mtcd.to_device(default_collate([val[0]]), device)
    inference = inference_jobs(objective.net, image, truth, config, args.amp)
    times = median_seconds({**training, **loader, **inference}, device)
    size = "x".join(map(str, config["size"]))
    print(f"{args.backbone}, {size}, batch {batch}, {device}, medians of 5")
    print(f"  {'':40}{'ms':>10}{'% of a step':>13}{'images/s':>10}")
    for name, seconds in times.items():
        share = 100 * seconds / times["training step, lambda = 0"]
        count = 1 if name in inference else batch
        print(f"  {name:40}{1000 * seconds:10.1f}{share:13.1f}{count / seconds:10.1f}")
    print(f"  memory that a step adds at its peak, MiB: lambda = 0 {memory[0]:.0f}, "
          f"regularised {memory[1]:.0f}")


def main(argv=None):
    """The command line -> exit status."""
    parser = mtcd.build_parser()
    parser.prog, parser.description, parser.epilog = "python -m extras.bench", __doc__, None
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    return mtcd.exit_status("extras.bench", lambda: bench(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
