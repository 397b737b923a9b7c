# SPDX-License-Identifier: MIT
"""The regulariser in a network that is not ours: torchvision's DeepLabV3 with heads for two tasks.
    python -m extras.foreign_network [data/toy.h5 [ITERATIONS]]   (python mtcd.py makes the file)"""
import sys

import h5py
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.segmentation import deeplabv3, deeplabv3_mobilenet_v3_large

from mtcd import CrossTaskContrast  # or paste the text between its copy marks here

path, iterations = (sys.argv[1:] + ["data/toy.h5", "100"][len(sys.argv) - 1 :])[:2]
if not (h5py.is_hdf5(path) and iterations.isdecimal()):
    sys.exit(f"foreign_network: {path} is no data file, or {iterations} no number; python mtcd.py makes data/toy.h5")
torch.manual_seed(0)
data = h5py.File(path)["train"]
classes = len(data.file.attrs["semseg_classes"])
backbone = deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None).backbone
heads = nn.ModuleDict({task: deeplabv3.DeepLabHead(960, 256) for task in ("semseg", "depth")})
predictors = nn.ModuleDict({"semseg": nn.Conv2d(256, classes, 1), "depth": nn.Conv2d(256, 1, 1)})
contrast = CrossTaskContrast(["semseg", "depth"], channels=256)
optimiser = torch.optim.Adam(nn.ModuleList([backbone, heads, predictors, contrast]).parameters())
for iteration in range(1, int(iterations) + 1):
    rows = torch.randperm(len(data["image"]))[:8].sort().values.numpy()
    image = torch.from_numpy(data["image"][rows]).permute(0, 3, 1, 2) / 255 - 0.5  # (8, 3, H, W)
    semseg, depth = (torch.from_numpy(data[task][rows]) for task in heads)  # (8, H, W) each
    shared = backbone(image)["out"]  # (8, 960, H/16, W/16)
    features = {task: head(shared) for task, head in heads.items()}  # (8, 256, H/16, W/16) each
    guess = [F.interpolate(predictors[t](features[t]), depth.shape[1:], mode="bilinear") for t in heads]
    task_loss = F.cross_entropy(guess[0], semseg.long(), ignore_index=255)
    task_loss += (guess[1][:, 0] - depth)[depth > 0].abs().mean()
    regulariser = contrast(features, {"semseg": semseg, "depth": depth})
    optimiser.zero_grad()
    (task_loss + 2.0 * regulariser).backward()
    optimiser.step()
    if iteration % 10 == 0:
        print(f"{iteration}/{iterations}  tasks {task_loss:.3f}  contrast {regulariser:.3f}")
