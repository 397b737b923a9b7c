# SPDX-License-Identifier: MIT
"""Tests of section 10 of mtcd.py: kills, signals, full disks, damage, bad files, ruined figures.

A run that is stopped in any way goes on as if it had never stopped, and whatever is wrong is one
line that says what to do.
"""

import fcntl
import functools
import itertools
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import data_prep
import mtcd
from conftest import (
    DAMAGE,
    TASKS,
    damaged,
    end,
    error_line,
    files,
    main,
    quick,
    random_sample,
    start_two,
    wait_for,
    write_file,
)


def last_iteration(folder):
    """Of last.pt, which must be whole."""
    return mtcd.load_weights(folder / "last.pt", "iteration", "model")["iteration"]


# ------------------------------------------------------------------------------ killed and resumed
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_at_random_and_resumed_ends_bit_for_bit_as_if_never_stopped(
    workers, toy_file, tmp_path, start
):
    """MTCD_KILLS=20 makes it as long as one likes."""
    more = ("--tasks", "semseg", "depth", "normal", "--iters", 24, "--workers", workers, "--resume")
    whole = tmp_path / "whole"
    killed = tmp_path / "killed"
    assert main(*quick(toy_file, whole, *more)) == 0

    rng = random.Random(workers)
    for _ in range(int(os.environ.get("MTCD_KILLS", "2"))):
        process = start(*quick(toy_file, killed, *more))
        while not killed.exists() and process.is_alive():
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1.5))
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
        end(process)
        if (killed / "last.pt").exists():
            last_iteration(killed)
    assert main(*quick(toy_file, killed, *more)) == 0

    one = torch.load(whole / "last.pt", weights_only=True)
    other = torch.load(killed / "last.pt", weights_only=True)
    assert one["iteration"] == other["iteration"] == 24
    for part in ("model", "contrast"):
        for name, array in one[part].items():
            assert torch.equal(array, other[part][name]), name
    assert (killed / "metrics.json").read_text() == (whole / "metrics.json").read_text()
    logs = []
    for folder in (whole, killed):
        log = np.genfromtxt(folder / "log.csv", delimiter=",", names=True)
        logs.append([log[name].tolist() for name in log.dtype.names if name != "images_per_s"])
    assert logs[0] == logs[1]


def test_a_kill_between_two_saves_goes_back_to_the_first(toy_file, tmp_path, start):
    """Momentum and schedule come back, too: 13 iterations, then 27 from the 12th on."""
    more = ("--iters", 40, "--resume")
    whole = tmp_path / "whole"
    killed = tmp_path / "killed"

    def kill_at_13():
        number = itertools.count(1)
        step = torch.optim.SGD.step

        def counting_step(self, *arguments):
            step(self, *arguments)
            if next(number) == 13:
                os.kill(os.getpid(), signal.SIGKILL)

        torch.optim.SGD.step = counting_step

    process = start(*quick(toy_file, killed, *more), before=kill_at_13)
    assert end(process)[0] == -signal.SIGKILL
    assert last_iteration(killed) == 12
    assert main(*quick(toy_file, killed, *more)) == 0
    assert main(*quick(toy_file, whole, *more)) == 0
    one = torch.load(whole / "last.pt", weights_only=True)
    other = torch.load(killed / "last.pt", weights_only=True)
    for name, array in one["model"].items():
        assert torch.equal(array, other["model"][name]), name
    assert one["schedule"] == other["schedule"]


@pytest.mark.parametrize(
    "number, workers, to_group",
    [
        (signal.SIGTERM, 0, True),
        (signal.SIGTERM, 2, True),
        (signal.SIGINT, 2, True),
        (signal.SIGINT, 0, False),
    ],
)
def test_a_signal_saves_and_ends_in_one_line(number, workers, to_group, toy_file, tmp_path, start):
    process = start(*quick(toy_file, tmp_path, "--iters", 600, "--workers", workers))
    wait_for(tmp_path / "log.csv", process)
    if to_group:
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid, number)
    status, errors = end(process)
    iteration = last_iteration(tmp_path)
    advice = f"mtcd.py: stopped; --resume goes on from iteration {iteration} of {tmp_path}"
    assert (status, errors) == (2, [advice])
    assert (tmp_path / "log.csv").read_text().splitlines()[-1].startswith(f"{iteration},")
    assert not list(tmp_path.glob("*.part"))


def test_ctrl_c_outside_the_training_is_one_line(toy_file, tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(mtcd, "report", interrupt)
    assert main(*quick(toy_file, tmp_path)) == 130
    assert error_line(capsys) == "mtcd.py: interrupted"


def test_a_killed_worker_of_the_loader_is_one_line(toy_file, tmp_path, start):
    process = start(*quick(toy_file, tmp_path, "--iters", 600, "--workers", 2))
    wait_for(tmp_path / "log.csv", process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    status, errors = end(process)
    assert status == 2
    assert len(errors) == 1, errors
    assert "worker" in errors[0]
    assert "--resume goes on" in errors[0]
    assert errors[0].endswith("take fewer --workers")
    assert last_iteration(tmp_path) > 0


def test_resume_refuses_another_run_and_names_the_differences(toy_file, tmp_path, capsys):
    assert main(*quick(toy_file, tmp_path)) == 0
    before = (tmp_path / "last.pt").read_bytes()
    assert main(*quick(toy_file, tmp_path, "--resume", "--lr", "0.5", "--seed", "4")) == 2
    error = error_line(capsys)
    assert "last.pt is of another run: lr 0.08, not 0.5; seed 0, not 4" in error
    assert (tmp_path / "last.pt").read_bytes() == before


def test_the_same_data_may_lie_elsewhere_but_other_data_is_another_run(toy_file, tmp_path, capsys):
    assert main(*quick(toy_file, tmp_path / "run")) == 0
    moved = shutil.copy(toy_file, tmp_path / "moved.h5")
    assert main(*quick(moved, tmp_path / "run", "--resume")) == 0

    other = tmp_path / "other.h5"
    data_prep.make_toy(other, train=10, val=5, height=64, width=96, seed=7)
    capsys.readouterr()
    assert main(*quick(other, tmp_path / "run", "--resume")) == 2
    assert "is of another run: identity 10 + 5 images of 64 x 96, checksum" in error_line(capsys)


def test_a_clock_that_is_set_back_changes_nothing(toy_file, tmp_path, monkeypatch):
    clock = itertools.count(2e9, -3600)
    monkeypatch.setattr(time, "time", lambda: next(clock))
    assert main(*quick(toy_file, tmp_path, "--iters", 12)) == 0
    log = np.genfromtxt(tmp_path / "log.csv", delimiter=",", names=True)
    assert (log["images_per_s"] > 0).all()


# ------------------------------------------------------------------------------- several processes
def test_a_signal_to_one_of_two_processes_stops_both_in_the_same_iteration(
    toy_file, tmp_path, start
):
    processes = start_two(start, *quick(toy_file, tmp_path, "--iters", 600))
    wait_for(tmp_path / "log.csv", *processes)
    os.kill(processes[1].pid, signal.SIGTERM)
    ends = [end(process) for process in processes]
    iteration = last_iteration(tmp_path)
    for status, errors in ends:
        assert status == 2
        assert f"goes on from iteration {iteration} of " in errors[-1]


@pytest.mark.parametrize("killed", [0, 1])
def test_when_one_of_two_processes_is_killed_the_other_ends_and_the_checkpoint_is_whole(
    killed, toy_file, tmp_path, start
):
    processes = start_two(start, *quick(toy_file, tmp_path, "--iters", 600))
    wait_for(tmp_path / "log.csv", *processes)
    os.kill(processes[killed].pid, signal.SIGKILL)
    status, errors = end(processes[1 - killed])
    assert status == 2
    assert "--resume" in errors[-1]
    assert "Traceback" not in "".join(errors)
    assert last_iteration(tmp_path) > 0


def ruin_the_loss():
    loss = mtcd.TASKS["depth"].loss

    def ruined(prediction, label):
        return loss(prediction, label) * math.nan

    mtcd.TASKS["depth"] = replace(mtcd.TASKS["depth"], loss=ruined)


def test_weights_that_are_ruined_in_the_second_process_are_not_saved(toy_file, tmp_path, start):
    arguments = quick(toy_file, tmp_path, "--iters", 20)
    processes = start_two(start, *arguments, before=(None, ruin_the_loss))
    assert [end(process)[0] for process in processes] == [2, 2]
    assert set(os.listdir(tmp_path)) == {"config.json"}


def note_keys(path, stop):
    """Every key that is read goes to a file; at the stop-th comes SIGTERM."""
    original = mtcd.DenseTasks.__getitem__
    number = itertools.count(1)

    def get(dataset, key):
        if dataset.augment:
            with path.open("a") as file:
                file.write(f"{key} ")
            if next(number) == stop:
                os.kill(os.getpid(), signal.SIGTERM)
        return original(dataset, key)

    mtcd.DenseTasks.__getitem__ = get


@pytest.mark.parametrize("worlds", [(1, 2), (2, 1)])
def test_resumed_on_another_number_of_processes_the_order_of_images_stays(
    worlds, toy_file, tmp_path, start
):
    """Ten images, batches of four: over six iterations each pass has every image once."""
    arguments = quick(toy_file, tmp_path / "run", "--iters", 6, "--batch-size", 4, "--resume")
    keys = []
    for phase, world in enumerate(worlds):
        stop = 12 // world if phase == 0 else 0  # in the third iteration
        paths = [tmp_path / f"{phase}-{rank}" for rank in range(world)]
        before = [functools.partial(note_keys, path, stop) for path in paths]
        if world == 2:
            processes = start_two(start, *arguments, before=before)
        else:
            processes = [start(*arguments, before=before[0])]
        status = 2 if phase == 0 else 0
        assert [end(process)[0] for process in processes] == [status] * world
        shares = [[int(key) for key in path.read_text().split()] for path in paths]
        keys += itertools.chain.from_iterable(zip(*shares, strict=True))
    assert keys == list(itertools.islice(mtcd.endless_keys(10, 0, 0), 24))
    assert sorted(keys[:20]) == list(range(20))


# ------------------------------------------------------------------------------------- a full disk
@pytest.mark.parametrize(
    "name", ["last.pt", "log.csv", "metrics.json", "preview.png", "config.json"]
)
def test_a_full_disk_is_one_line_and_leaves_whole_files(
    name, toy_file, tmp_path, capsys, monkeypatch
):
    assert main(*quick(toy_file, tmp_path)) == 0
    before = files(tmp_path)
    rename = os.replace

    def full(part, path):
        if Path(path).name == name:
            raise OSError(28, "No space left on device")
        rename(part, path)

    monkeypatch.setattr(os, "replace", full)
    assert main(*quick(toy_file, tmp_path, "--seed", 1)) == 2
    error = error_line(capsys)
    assert f"{tmp_path}/{name} cannot be written" in error
    assert "No space left" in error
    assert not list(tmp_path.glob("*.part"))
    for path, content in files(tmp_path).items():
        if path.name == name:
            assert content == before[path]  # the older one, or none
        elif path.suffix == ".json":
            json.loads(content)

    monkeypatch.undo()
    if name not in ("last.pt", "config.json"):
        assert main(*quick(toy_file, tmp_path, "--seed", 1, "--resume")) == 0


def test_a_disk_that_fills_while_weights_are_written_keeps_the_old_ones(toy_file, tmp_path, start):
    assert main(*quick(toy_file, tmp_path)) == 0
    before = (tmp_path / "last.pt").read_bytes()
    limit = (len(before) // 3, len(before) // 3)
    full = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, limit)
    status, errors = end(start(*quick(toy_file, tmp_path), before=full))
    assert status == 2
    assert len(errors) == 1, errors
    assert "last.pt cannot be written" in errors[0]
    assert (tmp_path / "last.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.part"))


# -------------------------------------------------------------------------------- ruined by itself
@pytest.mark.parametrize("iters, tasks", [(1, ["depth", "normal"]), (20, ["depth"])])
def test_a_diverging_run_leaves_nothing_and_its_advice_works(
    iters, tasks, toy_file, tmp_path, capsys
):
    arguments = quick(toy_file, tmp_path, "--iters", iters, "--tasks", *tasks)
    assert main(*arguments, "--lr", "1e30") == 2
    error = error_line(capsys)
    assert "not finite at iteration" in error
    assert "begin again with a smaller --lr" in error
    assert set(os.listdir(tmp_path)) == {"config.json"}
    assert main(*arguments, "--lr", "1e-3") == 0


@pytest.mark.parametrize("ruined, parameter", [(13, 5), (14, 5), (14, -1)])
def test_weights_ruined_in_the_middle_of_a_run_never_replace_the_last_good_ones(
    ruined, parameter, toy_file, tmp_path, capsys, monkeypatch
):
    """Right before a save, and one iteration earlier. The last parameter is a projector's."""
    number = itertools.count(1)
    step = torch.optim.SGD.step

    def ruining_step(self, *rest):
        step(self, *rest)
        if next(number) == ruined:
            self.param_groups[0]["params"][parameter].data.view(-1)[0] = math.nan

    monkeypatch.setattr(torch.optim.SGD, "step", ruining_step)
    arguments = quick(toy_file, tmp_path, "--tasks", "semseg", "depth", "--iters", 40)
    assert main(*arguments) == 2
    assert "not finite at iteration 14" in error_line(capsys)
    saved = mtcd.load_weights(tmp_path / "last.pt", "iteration", "model", "contrast")
    assert saved["iteration"] == 12
    for part in ("model", "contrast"):
        assert all(array.isfinite().all() for array in saved[part].values())
    assert not (tmp_path / "metrics.json").exists()
    monkeypatch.undo()
    assert main(*arguments, "--resume") == 0


def test_a_loss_that_is_not_finite_is_named_and_no_figures_of_an_older_run_stay(
    toy_file, tmp_path, capsys, monkeypatch
):
    assert main(*quick(toy_file, tmp_path)) == 0
    monkeypatch.setattr(mtcd, "TASKS", dict(mtcd.TASKS))
    ruin_the_loss()
    assert main(*quick(toy_file, tmp_path)) == 2
    assert "depth" in error_line(capsys)
    assert not {"metrics.json", "log.csv", "preview.png"} & set(os.listdir(tmp_path))


# --------------------------------------------------------------------------------- damaged weights
class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
NOT_WEIGHTS = {
    "empty": (b"", "last.pt cannot be loaded as weights"),
    "text": (b"nonsense", "it holds nothing that torch.save wrote"),
    "web page": (b"\n<!DOCTYPE html><html>404</html>", "it is a web page, download the file again"),
    "pointer": (LFS, "it is a pointer of Git LFS, get the file: git lfs pull"),
    "module": (nn.Linear(2, 2), r"it holds torch\.nn\.modules\.linear\.Linear beside tensors"),
    "numpy": ({"epoch": np.float64(3)}, r"it holds numpy\S* beside tensors; save .*state_dict\(\)"),
    "bomb": ({"config": Bomb(), "model": {}}, "it holds posix.mkdir beside tensors"),
    "list": ([torch.ones(1)], "it has no config and model"),
    "foreign": ({"a": torch.ones(1)}, "it has no config and model"),
}


@pytest.mark.parametrize("case", NOT_WEIGHTS)
def test_what_is_no_checkpoint_is_one_line_that_says_what_it_is_and_runs_nothing(
    case, toy_file, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    content, told = NOT_WEIGHTS[case]
    path = tmp_path / "last.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)

    told_of_weights = told.replace("it has no config and model", "it has no weights|does not fill")
    for arguments, words in (
        (["--eval", "--checkpoint", path], told),
        (quick(toy_file, tmp_path, "--pretrained", path), told_of_weights),
    ):
        assert main(*arguments) == 2
        error = error_line(capsys)
        assert "last.pt" in error
        assert re.search(words, error), error
        assert "weights_only" not in error
    before = path.read_bytes()
    assert main(*quick(toy_file, tmp_path, "--resume")) == 2
    assert "last.pt" in error_line(capsys)
    assert path.read_bytes() == before
    assert not Path("exploded").exists()


def test_a_checkpoint_of_another_program_is_one_line(tmp_path, capsys):
    config = {"channels": {"depth": 1}, "backbone": "resnet18", "iters": 1}
    content = {"config": config, "model": {"a": torch.ones(1)}, "contrast": {}, "iteration": 1}
    torch.save(content, tmp_path / "last.pt")
    assert main("--eval", "--checkpoint", tmp_path / "last.pt") == 2
    assert "last.pt is not last.pt of a run of mtcd.py" in error_line(capsys)


def test_weights_under_an_unknown_key_name_the_keys_that_are_there(toy_file, tmp_path, capsys):
    state = mtcd.build_backbone("hrnet_tiny").state_dict()
    torch.save({"ema": state, "epoch": 3}, tmp_path / "w.pth")
    assert main(*quick(toy_file, tmp_path / "run", "--pretrained", tmp_path / "w.pth")) == 2
    error = error_line(capsys)
    assert "w.pth does not fill" in error
    assert "it holds ema, epoch" in error


@pytest.mark.parametrize("how", ["--eval", "--resume"])
def test_a_flipped_bit_of_a_weight_is_found_by_its_checksum(
    how, toy_file, trained, tmp_path, capsys
):
    home = Path(shutil.copytree(trained, tmp_path / "home"))
    content = bytearray((home / "last.pt").read_bytes())
    content[len(content) // 2] ^= 64
    (home / "last.pt").write_bytes(content)
    torch.load(home / "last.pt", weights_only=True)  # loads without complaint
    before = files(home)
    if how == "--eval":
        arguments = ("--eval", "--checkpoint", home / "last.pt")
    else:
        arguments = quick(toy_file, home, "--resume", "--tasks", *TASKS)
    assert main(*arguments) == 2
    error = error_line(capsys)
    assert "last.pt" in error
    assert "it is damaged" in error
    assert "wrong checksum" in error
    assert files(home) == before


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_data_and_weights_end_well_or_in_one_line(kind, trained, tmp_path, start):
    """Each in a process of its own, as a crash or a hang is a failure. MTCD_FUZZ=50: 600 cases."""
    rng = np.random.default_rng(DAMAGE.index(kind))
    data = tmp_path / "toy.h5"
    data_prep.make_toy(data, train=2, val=1, height=64, width=96)
    weights = Path(shutil.copy(trained / "last.pt", tmp_path))
    out = tmp_path / "out"
    evaluation = ("--eval", "--checkpoint", weights, "--out", out, "--data", data, "--workers", 0)
    training = quick(data, out, "--tasks", *TASKS)
    cases = [(data, evaluation), (weights, evaluation), (data, training)]
    for path, arguments in cases * int(os.environ.get("MTCD_FUZZ", "1")):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        (out / "metrics.json").write_text("{}")
        good = path.read_bytes()
        path.write_bytes(damaged(good, kind, rng))
        status, errors = end(start(*arguments))
        path.write_bytes(good)

        assert status in (0, 2), errors
        assert len(errors) <= status, errors
        assert "Traceback" not in "".join(errors)
        assert not list(out.glob("*.part"))
        if status == 2 and arguments is evaluation:
            assert [file.name for file in out.iterdir()] == ["metrics.json"]
        if (out / "last.pt").exists():
            last_iteration(out)


# ------------------------------------------------------------------------------------ damaged data
@pytest.mark.parametrize("split, index, workers", [("train", 7, 2), ("val", 3, 0)])
def test_an_array_that_cannot_be_read_is_one_line(split, index, workers, toy_file, tmp_path, start):
    data = Path(shutil.copy(toy_file, tmp_path / "toy.h5"))
    with h5py.File(data) as file:
        chunk = file[split]["semseg"].id.get_chunk_info(index)
    with data.open("r+b") as file:
        file.seek(chunk.byte_offset + chunk.size // 2)
        file.write(b"????")
    more = ("--tasks", "semseg", "--iters", 10, "--workers", workers)
    status, errors = end(start(*quick(data, tmp_path / "run", *more)))
    assert status == 2
    assert len(errors) == 1, errors
    told = f"{data} is damaged at {split} image {index}, convert the data again"
    assert errors[0].startswith(f"mtcd.py: {told}")
    assert not (tmp_path / "run/metrics.json").exists()


def put(file, name, array):
    del file[name]
    file[name] = array


def float_images(file):
    put(file, "train/image", file["train/image"][:] / 255)


def depth_with_a_channel(file):
    put(file, "train/depth", file["train/depth"][:][..., None])


def half_the_labels(file):
    put(file, "val/semseg", file["val/semseg"][:, ::2, ::2])


def int64_labels(file):
    put(file, "train/semseg", file["train/semseg"][:].astype("int64"))


def normals_channels_first(file):
    put(file, "train/normal", file["train/normal"][:].transpose(0, 3, 1, 2))


def white_boundaries(file):
    for split in ("train", "val"):
        label = file[f"{split}/boundary"]
        label[:] = np.where(label[:] == 1, 255, 0)


def sizes_of_one_number(file):
    put(file, "train/size", file["train/size"][:, 0])


def no_images(file):
    put(file, "val/image", file["val/image"][:0])


def without(name):
    def remove(file):
        del file[name]

    return remove


def another_dataset(file):
    file.attrs["dataset"] = "cityscapes"


def no_class_names(file):
    del file.attrs["semseg_classes"]


def value(name, number):
    def write(file):
        file[name][:, 20:, 20:] = number

    return write


@pytest.mark.parametrize(
    "change, told",
    [
        (float_images, r"train/image must be uint8 \(2, 40, 64, 3\), it is float64 "),
        (depth_with_a_channel, r"train/depth must be float32 \(2, 40, 64\), .*\(2, 40, 64, 1\)"),
        (half_the_labels, r"val/semseg must be uint8 \(2, 40, 64\), it is uint8 \(2, 20, 32\)"),
        (int64_labels, r"train/semseg must be uint8 .*, it is int64"),
        (normals_channels_first, r"train/normal must be float16 \(2, 40, 64, 3\), it is"),
        (white_boundaries, r"boundary must be 0 and 1, and 255 ignored; it is 0 and 255"),
        (sizes_of_one_number, r"train/size must be int32 \(2, 2\), it is int32 \(2,\)"),
        (no_images, "val has no image"),
        (without("train/depth"), "train has no depth"),
        (without("val/size"), "val has no size"),
        (without("val"), "val has no boundary, depth, image, normal, "),
        (another_dataset, "its attribute dataset must be one of toy, nyud, pascal"),
        (no_class_names, "it lacks the attribute semseg_classes, the names of the classes"),
        (value("train/parsing", 7), "parsing holds 7, but its classes are 0 to 6"),
        (value("train/saliency", 2), "saliency holds 2, but its classes are 0 to 1"),
        (value("train/semseg", 40), "semseg holds 40, but its classes are 0 to 39"),
    ],
)
def test_a_data_file_of_another_layout_is_one_line_in_words_of_readmes_table(
    change, told, tmp_path, capsys
):
    rng = np.random.default_rng(0)
    samples = [random_sample(rng, (40, 64)) for _ in range(2)]
    splits = {"train": samples, "val": samples}
    path = write_file(tmp_path / "x.h5", "toy", (40, 64), splits)
    with h5py.File(path, "r+") as file:
        change(file)
    assert main(*quick(path, tmp_path / "run", "--tasks", *TASKS)) == 2
    error = error_line(capsys)
    assert str(path) in error
    assert re.search(told, error), error
    assert not (tmp_path / "run/last.pt").exists()


def test_images_too_small_for_the_batch_are_one_line_with_the_remedy(tmp_path, capsys):
    rng = np.random.default_rng(0)
    samples = [random_sample(rng, (32, 32)) for _ in range(2)]
    path = write_file(tmp_path / "x.h5", "toy", (32, 32), {"train": samples, "val": samples})
    assert main(*quick(path, tmp_path / "run", "--batch-size", 1)) == 2
    assert "take a larger --batch-size for images this small" in error_line(capsys)


def test_a_locked_data_file_is_said_to_be_locked(toy_file, tmp_path, capsys):
    path = shutil.copy(toy_file, tmp_path / "x.h5")
    with open(path, "rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        assert main(*quick(path, tmp_path / "run")) == 2
    error = error_line(capsys)
    assert "unable to lock" in error
    assert error.endswith("close what writes it, or set HDF5_USE_FILE_LOCKING=FALSE")


def fill_shared_memory():
    """As PyTorch tells it when a worker cannot hand over a batch."""

    def fail(*_):
        text = "unable to write to file </torch_12_345_6>: No space left on device (28)"
        raise RuntimeError(text)

    mtcd.DenseTasks.read_image = fail
    mtcd.DenseTasks.read_labels = fail


def break_the_bus():
    """As a write beyond a full /dev/shm ends."""

    def fail(*_):
        os.kill(os.getpid(), signal.SIGBUS)

    mtcd.DenseTasks.read_labels = fail


@pytest.mark.parametrize("fault", [fill_shared_memory, break_the_bus])
def test_a_full_dev_shm_is_named_with_what_helps(fault, toy_file, tmp_path, start):
    arguments = quick(toy_file, tmp_path, "--workers", 1)
    status, errors = end(start(*arguments, before=fault))
    assert status == 2
    told = [line for line in errors if "mtcd.py: " in line]
    assert len(told) == 1, errors
    assert "/dev/shm" in told[0]
    assert "--workers" in told[0]
    if fault is fill_shared_memory:
        assert told[0].endswith("/dev/shm is full: --workers 0, or docker run --shm-size=8g")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_names_beyond_the_terminals_encoding_do_not_end_a_run(encoding, toy_file, tmp_path, start):
    data = Path(shutil.copy(toy_file, tmp_path / "größe→.h5"))
    with h5py.File(data, "r+") as file:
        names = [f"größe→ {name}" for name in file.attrs["semseg_classes"]]
        file.attrs["semseg_classes"] = names
    arguments = quick(data, tmp_path / "läuft→", "--tasks", "semseg")
    assert end(start(*arguments, encoding=encoding)) == (0, [])
    arguments = quick(tmp_path / "läuft→", tmp_path / "x")
    status, errors = end(start(*arguments, encoding=encoding))
    assert status == 2
    assert len(errors) == 1
