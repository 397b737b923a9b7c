# SPDX-License-Identifier: MIT
"""Predictions of a trained network for any picture: NAME.png, a panel, and NAME.npz, the arrays.

    python -m extras.predict photo.jpg --checkpoint runs/NAME/last.pt

The arrays are named by their tasks, have the picture's size and are laid out as in a data file,
saliency and boundary as probabilities. Any picture that PIL reads will do, up to 89 megapixels: it
is turned upright, and what is transparent becomes white. In grey pictures of more than 8 bits,
white is the smallest of 1, 255, 1023, 4095, 16383 and 65535 that no value exceeds. The network
sees the picture with its longer side shrunk to that of its training images, while the arrays have
full size: about 20 bytes of memory per pixel of the picture, and 26 on the disk for all six tasks.
"""
import argparse
import itertools
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

import mtcd
from extras import pictures

WHITES = (1, 255, 1023, 4095, 16383, 65535)  # floats, and integers of 8 to 16 bits


def to_8_bits(picture):
    """A grey PIL picture of floats or of integers of more than 8 bits -> one of 8 bits."""
    values = np.asarray(picture)
    low, high = values.min(), values.max()  # NaN where any value is NaN
    if not (low >= 0 and high <= WHITES[-1]):
        raise ValueError(f"values {low:g} to {high:g} are not in 0 to 65535; save it with 8 bits")
    white = next(white for white in WHITES if high <= white)
    return Image.fromarray(np.rint(values * np.float32(255 / white)).astype(np.uint8))


def read_picture(path):
    """A picture file of any kind -> RGB, upright, 8 bits."""
    try:
        with (warnings.catch_warnings(action="ignore"),
              warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
              Image.open(path) as picture):
            picture = ImageOps.exif_transpose(picture)
            if picture.mode[0] in "IF":
                picture = to_8_bits(picture)
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            return picture.convert("RGB")
    except Exception as error:  # broken files fail in many ways
        reason = " ".join(str(error).split())
        raise mtcd.UserError(f"{path} is not a readable picture: {reason}") from error


@torch.inference_mode()
def predict_picture(net, picture, longest, device):
    """RGB picture -> task -> the network's output (1, K, h, w), h and w `longest` at most."""
    shrink = min(1, longest / max(picture.size))
    size = [max(1, round(n * shrink)) for n in picture.size]
    image = torch.from_numpy(np.array(picture.resize(size, Image.Resampling.BILINEAR)))
    return net(mtcd.to_device({"image": image.permute(2, 0, 1)[None]}, device)[0])


@torch.inference_mode()
def resized(task, prediction, size):
    """The network's output (1, K, h, w) -> array of `size` (height, width), as in a data file.

    Depth, normals and probabilities are resized bilinearly, labels to the nearest pixel.
    """
    result = mtcd.postprocess(task, prediction).cpu()
    method = "bilinear" if result.is_floating_point() else "nearest-exact"
    flat = result.ndim == 3  # (1, h, w)
    maps = F.interpolate((result[:, None] if flat else result).float(), size, mode=method).to(result.dtype)
    if task == "normal":
        maps /= maps.norm(dim=1, keepdim=True).clamp_(min=1e-12)
    return pictures.as_label((maps[0, 0] if flat else maps[0]).numpy())


def draw(picture, predictions, classes, width=320):
    """Panel of the picture and its predictions, resized to the panel's size before drawing."""
    shrink = min(1, width / picture.width)
    size = [max(1, round(n * shrink)) for n in picture.size]
    image = np.asarray(picture.resize(size, Image.Resampling.BOX))
    arrays = {task: resized(task, output, size[::-1]) for task, output in predictions.items()}
    return pictures.preview([("input", image, arrays, None)], classes, width)


def save_arrays(path, predictions, size):
    """What np.savez would write, but with one task at a time in memory."""
    with mtcd.replacing(path) as part, zipfile.ZipFile(part, "w") as archive:
        for task, prediction in predictions.items():
            with archive.open(f"{task}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, resized(task, prediction, size))


def free_name(path, out, taken):
    """The picture's name, with a number if its files are inputs, other outputs, or one alone."""
    for name in itertools.chain([path.stem], (f"{path.stem}-{k}" for k in itertools.count(2))):
        files = {(out / f"{name}{suffix}").resolve() for suffix in (".png", ".npz")}
        if not files & taken and sum(map(Path.exists, files)) != 1:  # one alone is a stranger's
            taken |= files
            return name


def predict(args):
    """Panel and arrays of every picture; one that cannot be read is named and passed over."""
    device = mtcd.start_device(args.device)
    net, config, _ = mtcd.load_network(args.checkpoint, device)
    net.eval()
    out, failed, taken = Path(args.out), 0, {Path(path).resolve() for path in args.images}
    for path in map(Path, args.images):
        try:
            picture = read_picture(path)
        except mtcd.UserError as error:
            if len(args.images) == 1:
                raise
            print(f"extras.predict: {error}", file=sys.stderr)
            failed += 1
            continue
        predictions = predict_picture(net, picture, max(config["size"]), device)
        for task, prediction in predictions.items():
            mtcd.check_finite(task, prediction, path)
        name = free_name(path, out, taken)
        with mtcd.replacing(out / f"{name}.png") as part:
            draw(picture, predictions, config["classes"]).save(part, "PNG")
        size, picture = picture.size[::-1], None  # the arrays need the memory
        save_arrays(out / f"{name}.npz", predictions, size)
        print(f"{path} -> {out / name}.png, .npz")
    if failed:
        raise mtcd.UserError(f"{failed} of {len(args.images)} pictures could not be read")


def main(argv=None):
    """The command line -> exit status."""
    parser = mtcd.Parser("python -m extras.predict", description=__doc__,
                         formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="last.pt of a run")
    parser.add_argument("--out", default="predictions", metavar="DIR", help="default: %(default)s")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                        help="default: %(default)s")
    return mtcd.exit_status("extras.predict", lambda: predict(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
