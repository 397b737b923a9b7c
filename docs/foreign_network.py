# SPDX-License-Identifier: MIT
"""The regulariser in a network that is not ours: torchvision's DeepLabV3 with a head for each of two tasks.

    python -m docs.foreign_network [data/toy.h5 [ITERATIONS]]     from the project's folder; python mtcd.py makes the file"""
import sys

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.segmentation import deeplabv3, deeplabv3_mobilenet_v3_large

from mtcd import CrossTaskContrast  # or paste the text between its copy marks here

path, iterations = (sys.argv[1:] + ["data/toy.h5", "100"][len(sys.argv) - 1 :])[:2]
torch.manual_seed(0)
file = h5py.File(path)
data, classes = file["train"], len(file.attrs["semseg_classes"])
backbone = deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None).backbone
heads = nn.ModuleDict({task: deeplabv3.DeepLabHead(960, 256) for task in ("semseg", "depth")})
predictors = nn.ModuleDict({"semseg": nn.Conv2d(256, classes, 1), "depth": nn.Conv2d(256, 1, 1)})
contrast = CrossTaskContrast(["semseg", "depth"], channels=256)
optimiser = torch.optim.Adam(nn.ModuleList([backbone, heads, predictors, contrast]).parameters(), 1e-3)
for iteration in range(1, int(iterations) + 1):
    rows = np.sort(np.random.default_rng(iteration).choice(len(data["image"]), 8, replace=False))
    image = torch.from_numpy(data["image"][rows]).permute(0, 3, 1, 2) / 255 - 0.5  # (8, 3, H, W)
    semseg, depth = torch.from_numpy(data["semseg"][rows]).long(), torch.from_numpy(data["depth"][rows])[:, None]
    shared = backbone(image)["out"]  # (8, 960, H/16, W/16)
    features = {task: head(shared) for task, head in heads.items()}  # (8, 256, H/16, W/16) a task
    guess = {t: F.interpolate(predictors[t](f), image.shape[2:], mode="bilinear") for t, f in features.items()}
    known = depth > 0
    task_loss = F.cross_entropy(guess["semseg"], semseg, ignore_index=255) + (guess["depth"] - depth)[known].abs().mean()
    contrast_loss = contrast(features, {"semseg": semseg, "depth": depth})
    optimiser.zero_grad()
    (task_loss + 1.0 * contrast_loss).backward()
    optimiser.step()
    if iteration % 10 == 0:
        print(f"{iteration}/{iterations}  tasks {task_loss.item():.3f}  contrast {contrast_loss.item():.3f}", flush=True)
