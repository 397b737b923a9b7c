# SPDX-License-Identifier: MIT
"""Predictions of a trained network for any picture: NAME.png, a panel, and NAME.npz, the arrays.

    python -m extras.predict photo.jpg
    python -m extras.predict photo.jpg --checkpoint runs/NAME/last.pt

Without --checkpoint the network is docs/nyud_lite0.pt, which was trained on photos of rooms.

The arrays are named by their tasks, have the picture's size and are laid out as in a data file;
saliency and boundary are probabilities.

Any picture that PIL reads will do, up to 89 megapixels. It is turned upright where its EXIF mark
asks for that, and the arrays with it. What is transparent becomes white. In grey pictures of more
than 8 bits, white is the smallest of 1, 255, 1023, 4095, 16383 and 65535 that no value exceeds.

The network sees the picture with its longer side shrunk to that of its training images. The arrays
have the full size: about 20 bytes of memory per pixel of the picture, and 26 on the disk for all
six tasks.
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
from PIL import ExifTags, Image, ImageOps

import mtcd
from extras import pictures
from extras.lite0 import SHIPPED, load_network

WHITES = (1, 255, 1023, 4095, 16383, 65535)  # floats, and integers of 8 to 16 bits


# ------------------------------------------------------------------------------ reading a picture
def read_picture(path):
    """A picture file of any kind -> RGB picture, upright, 8 bits; was it turned?"""
    with (
        mtcd.explaining(f"{path} is not a readable picture", Exception),  # they break in many ways
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as picture:
            orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
            turned = orientation in range(2, 9)  # 1: upright
            picture = ImageOps.exif_transpose(picture)
            if picture.mode.startswith(("I", "F")):
                picture = to_8_bits(picture)
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture)
            return picture.convert("RGB"), turned


def to_8_bits(picture):
    """A grey PIL picture of floats, or of integers of more than 8 bits -> one of 8 bits."""
    values = np.asarray(picture)
    low = values.min()
    high = values.max()
    if not (low >= 0 and high <= WHITES[-1]):  # nan is neither
        raise ValueError(f"values {low:g} to {high:g} are not in 0 to 65535; save it with 8 bits")
    white = next(white for white in WHITES if high <= white)
    return Image.fromarray(np.rint(values * np.float32(255 / white)).astype(np.uint8))


# ------------------------------------------------------------------------------------- predicting
@torch.inference_mode()
def predict_picture(net, picture, longest, device):
    """RGB picture -> task -> the network's output (1, K, h, w); h and w are `longest` at most."""
    shrink = min(1, longest / max(picture.size))
    size = [max(1, round(n * shrink)) for n in picture.size]
    pixels = np.array(picture.resize(size, Image.Resampling.BILINEAR))  # (h, w, 3)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    images, _ = mtcd.to_device({"image": image}, device)
    return net(images)


@torch.inference_mode()
def resized(task, prediction, size):
    """The network's output (1, K, h, w) -> array of `size` (height, width), as in a data file.

    Depth, normals and probabilities are resized bilinearly, classes to the nearest pixel.
    """
    maps = mtcd.postprocess(task, prediction).cpu()
    dtype = maps.dtype
    method = "bilinear" if maps.is_floating_point() else "nearest-exact"
    flat = maps.ndim == 3  # (1, h, w): classes, probabilities
    if flat:
        maps = maps[:, None]

    maps = F.interpolate(maps.float(), size, mode=method).to(dtype)
    if task == "normal":
        maps /= maps.norm(dim=1, keepdim=True).clamp_(min=1e-12)
    if flat:
        maps = maps[:, 0]
    return pictures.as_label(maps[0].numpy())


# ---------------------------------------------------------------------------------------- writing
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
    """The picture's name, with a number where its two files would replace something else.

    taken: files that are inputs or outputs of this call; the two files are added. Both files there
    are an older prediction, which is replaced; one alone is somebody else's.
    """
    for number in itertools.count(1):
        name = path.stem
        if number > 1:
            name = f"{path.stem}-{number}"
        files = {(out / f"{name}{suffix}").resolve() for suffix in (".png", ".npz")}
        existing = [file for file in files if file.exists()]
        if not files & taken and len(existing) != 1:
            taken |= files
            return name


# ------------------------------------------------------------------------------------ command line
def predict(args):
    """Panel and arrays of every picture; one that cannot be read is named and passed over."""
    checkpoint = find_checkpoint(args.checkpoint)
    device = mtcd.start_device(args.device)
    net, config, _ = load_network(checkpoint, device)
    net.eval()

    out = Path(args.out)
    taken = {Path(path).resolve() for path in args.images}
    failed = 0
    for path in map(Path, args.images):
        try:
            picture, turned = read_picture(path)
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
            size = picture.size[::-1]
            del picture  # the arrays need the memory
            save_arrays(out / f"{name}.npz", predictions, size)  # both or, if it fails, neither
        note = ", turned upright as its EXIF mark asks" if turned else ""
        print(f"{path} -> {out / name}.png, .npz{note}")
    if failed:
        raise mtcd.UserError(f"{failed} of {len(args.images)} pictures could not be read")


def find_checkpoint(path):
    """--checkpoint, or else the network that comes with the project."""
    if path:
        return path
    if not SHIPPED.exists():
        raise mtcd.UserError(f"{SHIPPED} is not there: --checkpoint FILE, last.pt of a run")
    print(f"checkpoint: {SHIPPED}, of NYUD-v2's indoor photos")
    return SHIPPED


def main(argv=None):
    """The command line -> exit status."""
    parser = mtcd.Parser(
        "python -m extras.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="picture files")
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="last.pt of a run (default: docs/nyud_lite0.pt, a small network for indoor photos)",
    )
    parser.add_argument("--out", default="predictions", metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="default: %(default)s",
    )

    def job():
        predict(parser.parse_args(argv))

    return mtcd.exit_status("extras.predict", job)


if __name__ == "__main__":
    sys.exit(main())
