# SPDX-License-Identifier: MIT
"""Tests of what the studies say: extras/experiments.py, study.py, photos.py, and of what README,
docs/results.md and the notebook show of them.

Figures are worked out by hand, from made-up results.
"""

import csv
import dataclasses
import json
import re
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import mtcd
from conftest import METRICS, random_sample, write_file
from extras import experiments, photos, study
from extras.arms import FORMS
from extras.lite0 import SHIPPED, Lite0, load_network

ROOT = Path(mtcd.__file__).parent
DOCUMENT = ROOT / "docs/results.md"


# ------------------------------------------------------------------------------- made-up results
def lines_of(run, values, share="", minutes="1.0"):
    """The lines of the CSV file of a run that measured {task: value}."""
    lines = []
    for task, value in values.items():
        lines.append([*dataclasses.astuple(run), task, METRICS[task], value, share, minutes])
    return lines


def write_results(path, kind, lines):
    """A CSV file of these lines, read back as the studies do."""
    header = [field.name for field in dataclasses.fields(kind)]
    header += ["task", "metric", "value", "share_of_chance", "minutes"]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *lines])
    return experiments.read_results(path, kind)


def figures(semseg, depth, normal, boundary):
    return {"semseg": semseg, "depth": depth, "normal": normal, "boundary": boundary}


def two_seeds(run, ours, baseline, single):
    """Two seeds of three arms. The baseline has 10 or 20 everywhere.

    Ours: semseg and boundary 4 and 8 % up, depth 4 and 8 % up, which is worse, normal alike. So
    its Delta_m is (4 - 4 + 0 + 4) / 4 = 1 and 2. The single-task networks have half the semseg and
    boundary, half the depth, which is better, and the same normal: (-50 + 50 + 0 - 50) / 4 = -12.5.
    """
    lines = []
    for seed, base, up in ((10, 10.0, 1.04), (11, 20.0, 1.08)):
        values = figures(base * up, base * up, base, base * up)
        of_seed = dataclasses.replace(run, seed=seed)
        lines += lines_of(dataclasses.replace(of_seed, **ours), values, share="0.25")
        values = figures(base, base, base, base)
        lines += lines_of(dataclasses.replace(of_seed, **baseline), values)
        for task, value in figures(base / 2, base / 2, base, base / 2).items():
            alone = dataclasses.replace(of_seed, **single, form=f"only {task}")
            lines += lines_of(alone, {task: value})
    return lines


@pytest.fixture
def rooms_lines(tmp_path):
    ours = {"form": "ours", "contrast": 2.0}
    baseline = {"form": "none", "contrast": 0.0}
    lines = two_seeds(study.MAIN, ours, baseline, {"contrast": 0.0})
    return write_results(tmp_path / "results.csv", study.Run, lines)


@pytest.fixture
def photos_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "plan", lambda: [photos.Run()])
    ours = {"form": "ours", "contrast": 0.5}
    baseline = {"form": "none", "contrast": 0.0}
    lines = two_seeds(photos.Run(), ours, baseline, {"contrast": 0.0})
    return write_results(tmp_path / "photos.csv", photos.Run, lines)


# Means and half widths: Student's t of 1 degree of freedom is 12.706. Of 4 and 8 the mean is 6, the
# half width 12.706 * 2.828 / sqrt(2) = 25.41; of 1 and 2 it is 1.5 and 12.706 * 0.5 = 6.35.
OURS_CELLS = (
    "2 | +6.00 ± 25.41 | -6.00 ± 25.41 | +0.00 ± 0.00 | +6.00 ± 25.41 | +1.50 ± 6.35 | 0.25 |"
)
SINGLE_CELLS = "2 | -50.00 ± 0.00 | +50.00 ± 0.00 | +0.00 ± 0.00 | -50.00 ± 0.00 | -12.50 ± 0.00 |"


# ----------------------------------------------------------------------------------- experiments
def test_results_are_read_back_as_they_were_written(tmp_path):
    path = tmp_path / "results.csv"
    run = study.Run(seed=3, form="margin 2")
    lines = lines_of(run, {"semseg": 1.25, "depth": 0.5}, share="0.1", minutes="2.0")
    experiments.append_results(path, study.Run, lines[:1])
    experiments.append_results(path, study.Run, lines[1:])
    found = experiments.read_results(path, study.Run)
    assert [made for made, _ in found] == [run, run]
    assert [line["value"] for _, line in found] == ["1.25", "0.5"]
    assert found[0][1]["metric"] == "mIoU"
    assert experiments.hours(found) == pytest.approx(2 / 120)
    assert experiments.read_results(tmp_path / "none.csv", study.Run) == []


def test_settings_hold_arms_the_baseline_first(rooms_lines):
    found = experiments.group_by_setting(rooms_lines)
    assert list(found) == [study.MAIN]
    assert list(found[study.MAIN]) == ["baseline", "ours", "single-task"]
    assert found[study.MAIN]["single-task"][11] == figures(10, 10, 20, 10)


def test_seed_of_which_a_task_is_missing_does_not_count(rooms_lines):
    kept = [x for x in rooms_lines if (x[0].form, x[0].seed) != ("only depth", 11)]
    arms = experiments.group_by_setting(kept)[study.MAIN]
    assert {arm: list(seeds) for arm, seeds in arms.items()} == {
        "baseline": [10, 11],
        "ours": [10, 11],
        "single-task": [10],
    }


def test_setting_without_its_baseline_does_not_count(rooms_lines):
    kept = [(run, line) for run, line in rooms_lines if run.form != "none"]
    assert experiments.group_by_setting(kept) == {}


def test_gains_are_taken_seed_by_seed(rooms_lines):
    arms = experiments.group_by_setting(rooms_lines)[study.MAIN]
    gains = partial(experiments.gains, arms["ours"], arms["baseline"])
    assert gains() == pytest.approx([1, 2])
    assert gains(["depth"]) == pytest.approx([-4, -8])
    alone = {12: figures(1, 1, 1, 1)}  # no seed in common
    assert experiments.gains(alone, arms["baseline"]) == []


def test_cells_of_a_table():
    assert experiments.mean_interval([]) == "-"
    assert experiments.mean_interval([1.234]) == "+1.23"
    assert experiments.mean_interval([1.0, 2.0]) == "+1.50 ± 6.35"
    assert experiments.row(["a", "b"]) == "| a | b |"


def test_marked_text_is_replaced_and_all_else_is_kept(tmp_path):
    path = tmp_path / "results.md"
    before = "# Größe\n<!-- begin a -->\nold\n<!-- end a -->\nbetween\n"
    after = "<!-- begin b -->\n<!-- end b -->\nlast"
    path.write_text(before + after, encoding="utf-8")
    experiments.replace_marked(path, "a", "\nnew ±\n\n")
    expected = before.replace("old", "new ±") + after
    assert path.read_text(encoding="utf-8") == expected
    experiments.replace_marked(path, "a", "new ±")
    assert path.read_text(encoding="utf-8") == expected

    with pytest.raises(mtcd.UserError, match="lacks the marks <!-- begin c --> and <!-- end c -->"):
        experiments.replace_marked(path, "c", "new")
    assert path.read_text(encoding="utf-8") == expected
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def threads(monkeypatch):
    """make_runs() with threads in place of processes."""
    pool = partial(ThreadPoolExecutor, 1)
    monkeypatch.setattr(experiments, "ProcessPoolExecutor", lambda *_, **__: pool())


def test_what_is_in_the_results_is_not_run_again_nor_prepared(
    threads, rooms_lines, tmp_path, capsys
):
    results = tmp_path / "results.csv"
    had = study.Run(seed=10)
    new = study.Run(seed=12)
    prepared = []
    ran = []

    def train(run):
        assert prepared == [new]
        ran.append(run)
        return lines_of(run, {"depth": 1.0})

    experiments.make_runs([had, new], results, train, prepare=prepared.append)
    assert ran == [new]
    assert "1/1" in capsys.readouterr().out
    experiments.make_runs([had, new], results, train)
    assert ran == [new]
    assert len(experiments.read_results(results, study.Run)) == len(rooms_lines) + 1


def test_a_run_that_fails_stops_no_other(threads, tmp_path):
    def train(run):
        if run.seed == 1:
            raise mtcd.UserError("depth not finite")
        return lines_of(run, {"depth": 1.0})

    runs = [study.Run(seed=1), study.Run(seed=2)]
    results = tmp_path / "results.csv"
    with pytest.raises(mtcd.UserError, match="^1 of 2 runs failed: depth not finite$"):
        experiments.make_runs(runs, results, train)
    assert [run for run, _ in experiments.read_results(results, study.Run)] == runs[1:]


def test_a_run_that_is_killed_is_one_line(threads, tmp_path):
    def train(run):
        raise BrokenProcessPool

    with pytest.raises(mtcd.UserError, match="killed: is the memory full"):
        experiments.make_runs([study.Run()], tmp_path / "results.csv", train)


# ----------------------------------------------------------------------------------------- study
def test_rooms_tables_equal_figures_worked_out_by_hand(rooms_lines):
    text = study.tables(rooms_lines)
    assert f"| ours | {OURS_CELLS}" in text
    assert f"| single-task | {SINGLE_CELLS} - |" in text
    # 2 runs of ours and of the baseline, 8 single-task ones: 12 minutes, two at a time.
    assert text.startswith(f"12 of {len(study.plan())} runs made, 0.1 hours")
    assert "### reported: 60 rooms of seed 2, hrnet_tiny" in text
    # Single-task over ours in semseg: 0.5 / 1.04 and 0.5 / 1.08, so -51.92 and -53.70 %.
    assert "| gain over ours, %" in text
    assert "| single-task | 2 | -52.81 ± 11.31 |" in text
    # The values themselves: 10 and 20, of ours 10.4 and 21.6.
    assert re.search(r"\| baseline \(2 seeds\) +\| \*{0,2}15\.00 ± 7\.07\*{0,2} ", text)
    assert re.search(r"\| ours \(2 seeds\) +\| \*{0,2}16\.00 ± 7\.92\*{0,2} ", text)


def test_along_the_training_count_the_seeds_that_all_lengths_have(rooms_lines):
    found = experiments.group_by_setting(rooms_lines)
    worse = figures(9.0, 11.0, 11.0, 9.0)  # each 10 % worse than seed 10's baseline
    short = dataclasses.replace(study.MAIN, iterations=750)
    found[short] = {"baseline": {10: worse}, "ours": {10: figures(9.9, 9.9, 9.9, 9.9)}}
    along = study.along_training(found)
    assert list(along) == [750, 1500]
    level, effect = along[750]
    assert level == pytest.approx([-10])
    assert effect == pytest.approx([10])
    level, effect = along[1500]
    assert level == pytest.approx([0])
    assert effect == pytest.approx([1])


def test_picture_of_the_study_is_drawn(rooms_lines, tmp_path, monkeypatch, plots):
    monkeypatch.setattr(study, "PICTURE", tmp_path / "results.png")
    found = experiments.group_by_setting(rooms_lines)
    rows = study.picture_rows(found)
    assert rows["main comparison"]["ours"] == pytest.approx([1, 2])
    assert rows["main comparison"]["single-task"] == pytest.approx([-12.5, -12.5])
    study.draw(found)
    assert study.PICTURE.read_bytes().startswith(b"\x89PNG")


def test_plan_holds_each_run_once_with_its_baseline():
    runs = study.plan()
    assert len(set(runs)) == len(runs)
    baselines = {(run.setting, run.seed) for run in runs if run.arm == "baseline"}
    assert {(run.setting, run.seed) for run in runs} == baselines
    assert {run.form for run in runs} >= set(FORMS)


def test_tuning_and_reported_runs_share_no_rooms_and_no_seeds():
    tuning = [run for run in study.plan() if run.set == "tuning"]
    reported = [run for run in study.plan() if run.set == "reported"]
    assert tuning and reported
    assert {run.rooms_seed for run in tuning}.isdisjoint(run.rooms_seed for run in reported)
    assert {run.seed for run in tuning}.isdisjoint(run.seed for run in reported)


def test_all_runs_that_were_made_are_in_the_plan():
    made = {run for run, _ in experiments.read_results(study.RESULTS, study.Run)}
    assert len(made) >= 373
    assert made <= set(study.plan())


def test_lambda_is_larger_where_an_image_is_seen_100_times():
    assert study.Run(rooms=10, iterations=125).usual == 2.0
    assert study.Run(rooms=10, iterations=124).usual == 0.5


def test_one_label_per_image_hides_the_other_tasks_of_training_images_only(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "FOLDER", tmp_path)
    with h5py.File(tmp_path / "rooms-seed2-5-all.h5", "w") as file:
        for split, count in (("train", 5), ("val", 2)):
            for task in study.TASKS:
                tail = (3,) if task == "normal" else ()
                file[f"{split}/{task}"] = np.ones((count, 4, 6, *tail), np.uint8)

    with h5py.File(study.data_file(study.Run(rooms=5, labels="one"))) as file:
        for number, task in enumerate(study.TASKS):
            hidden = mtcd.TASKS[task].ignored
            expected = [{1} if image % 4 == number else {hidden} for image in range(5)]
            assert [set(np.unique(label)) for label in file["train"][task]] == expected
            assert np.all(file["val"][task][:] == 1)


def test_rooms_of_a_run_are_of_its_own_seed_where_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "FOLDER", tmp_path)
    asked = []

    def prepare(argv):
        asked.append(dict(zip(argv[1::2], argv[2::2])))
        return 0

    monkeypatch.setattr(study.data_prep, "main", prepare)
    runs = [
        study.Run(rooms_seed=-1, seed=13),
        study.Run(rooms_seed=-1, seed=14),
        study.Run(seed=13),
    ]
    paths = [str(study.data_file(run)) for run in runs]
    assert [options["--seed"] for options in asked] == ["13", "14", "2"]
    assert [options["--out"] for options in asked] == paths
    assert len(set(paths)) == 3


def test_a_loss_whose_chance_is_not_the_margin_has_no_share(toy_file, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "FOLDER", tmp_path)
    monkeypatch.setattr(study, "data_file", lambda run: toy_file)
    lines = study.train(study.Run(iterations=1, form="InfoNCE of 384"))
    assert {line[-2] for line in lines} == {""}


def test_runs_of_the_study_are_made(toy_file, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "FOLDER", tmp_path)
    monkeypatch.setattr(study, "data_file", lambda run: toy_file)
    ours = study.train(study.Run(iterations=1, form="margin 2"))
    alone = study.train(study.Run(iterations=1, form="only depth", contrast=0.0, seed=11))
    assert [line[-5] for line in ours] == list(mtcd.PROTOCOLS["nyud"].tasks)
    assert float(ours[0][-2]) > 0  # the loss as a share of chance
    configs = [json.loads(path.read_text()) for path in tmp_path.rglob("config.json")]
    assert sorted("margin=2.0" in config.get("regulariser", "") for config in configs) == [0, 1]
    assert [line[-5:-3] for line in alone] == [["depth", "RMSE"]]
    assert alone[0][-2] == ""
    kept = [path.parent.name for path in tmp_path.rglob("last.pt")]
    assert kept == []  # neither is of the seed whose networks are kept


# ---------------------------------------------------------------------------------------- photos
def test_photos_tables_equal_figures_worked_out_by_hand(photos_lines):
    text = photos.tables(photos_lines)
    assert f"| ours, lambda 0.5 | {OURS_CELLS}" in text
    assert f"| single-task | {SINGLE_CELLS} - |" in text
    assert text.startswith("12 of 1 runs made, 0.1 hours")
    assert "### reported: 100 photos, 1250 iterations at 0.02, lite0" in text


def test_learning_rates_are_compared_with_that_of_the_tuning_runs(tmp_path):
    twice = dataclasses.replace(photos.TUNING_FEW, lr=0.04)
    lines = lines_of(photos.TUNING_FEW, {"semseg": 10, "depth": 1, "normal": 40, "boundary": 50})
    lines += lines_of(twice, {"semseg": 11, "depth": 0.9, "normal": 44, "boundary": 55})
    text = photos.tables(write_results(tmp_path / "photos.csv", photos.Run, lines))
    assert "| gain over lr 0.02, %" in text
    assert "| lr 0.04 | 1 | +10.00 | +10.00 | -10.00 | +10.00 | +5.00 |" in text
    assert "iterations at 0.04" not in text  # no section of its own


def test_pairs_within_an_image_leave_semseg_alone_on_photos():
    contrast = photos.FORMS["within an image, not of semseg"](experiments.TASKS, 8)
    assert contrast.targets == ["depth", "normal", "boundary"]
    assert contrast.samples == 128


@pytest.mark.parametrize(
    "form, alike_at, unlike_at",
    [("not of semseg", 9, 31), ("wide normals, not of semseg", 19, 46)],
)
def test_which_normals_are_alike_on_photos(form, alike_at, unlike_at):
    """The second normal is at `alike_at` degrees to the first one, the third at `unlike_at`."""
    contrast = photos.FORMS[form](experiments.TASKS, 8)
    angles = torch.tensor([0, alike_at, -unlike_at]).deg2rad()
    normals = torch.stack([angles.sin(), torch.zeros(3), angles.cos()], dim=1)
    criterion = contrast.criteria["normal"]
    other, positive, negative = contrast.candidate_pairs(normals, normals, criterion)
    assert set(other[0][positive[0]].tolist()) == {1}
    assert set(other[0][negative[0]].tolist()) == {2}

    between = torch.tensor([0, alike_at + 2, -unlike_at + 2]).deg2rad()
    normals = torch.stack([between.sin(), torch.zeros(3), between.cos()], dim=1)
    other, positive, negative = contrast.candidate_pairs(normals, normals, criterion)
    assert not positive[0].any() and not negative[0].any()


def test_reported_photos_are_drawn_by_the_seed():
    first = photos.draw_photos(photos.Run(seed=1), 795)
    again = photos.draw_photos(photos.Run(seed=1, form="ours", contrast=0.5), 795)
    other = photos.draw_photos(photos.Run(seed=2), 795)
    assert len(set(first)) == 100
    assert first.max() < 795
    assert list(first) == sorted(first)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    everything = photos.draw_photos(photos.Run(photos=795), 795)
    assert np.array_equal(everything, np.arange(795))


def test_tuning_blocks_never_overlap_and_frames_of_a_scene_stay_together():
    to_train, held_out = photos.tuning_blocks(795)
    assert np.array_equal(to_train, ~held_out)
    for start in range(0, 795, 15):
        block = held_out[start : start + 15]
        assert block.all() == block.any() == (start // 15 % 3 == 2)
    for seed in (0, 5):
        drawn = photos.draw_photos(photos.Run(set="tuning", photos=400, seed=seed), 795)
        assert not held_out[drawn].any()


@pytest.fixture
def nyud(tmp_path, monkeypatch):
    """data/nyud.h5 of 50 noise pictures; depth 1 m + the number of the frame in millimetres."""
    rng = np.random.default_rng(0)
    samples = [random_sample(rng, (32, 40), experiments.TASKS) for _ in range(52)]
    for i, sample in enumerate(samples):
        sample["depth"][:] = 1 + i / 1000
    splits = {"train": samples[:50], "val": samples[50:]}
    monkeypatch.setattr(photos, "FOLDER", tmp_path)
    monkeypatch.setattr(photos, "DATA", write_file(tmp_path / "nyud.h5", "nyud", (32, 40), splits))
    monkeypatch.setattr(photos, "SIZE", (32, 40))


def frames_of(path, split):
    """Which frames of the fixture `nyud` a data file holds."""
    with h5py.File(path) as file:
        millimetres = 1000 * (file[split]["depth"][:, 0, 0] - 1)
    return millimetres.round().astype(int)


def test_data_of_a_reported_run_are_its_photos_and_the_val_split(nyud):
    run = photos.Run(photos=20, seed=4)
    path = photos.data_file(run)
    assert np.array_equal(frames_of(path, "train"), photos.draw_photos(run, 50))
    assert list(frames_of(path, "val")) == [50, 51]
    mtcd.DenseTasks(path, "train", experiments.TASKS)


def test_data_of_a_tuning_run_never_hold_the_val_split(nyud):
    path = photos.data_file(photos.Run(set="tuning", photos=10))
    held_out = [*range(30, 45)]  # the third block of 15
    assert list(frames_of(path, "val")) == held_out
    assert set(frames_of(path, "train")).isdisjoint(held_out)


def test_missing_photos_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "FOLDER", tmp_path)
    monkeypatch.setattr(photos, "DATA", tmp_path / "nyud.h5")
    with pytest.raises(mtcd.UserError, match="data_prep.py nyud --download --shrink 4"):
        photos.data_file(photos.Run())


def test_photos_of_another_size_are_refused(nyud, monkeypatch, capsys):
    """The figures of a full-size file would be mixed with those of the study."""
    monkeypatch.setattr(photos, "SIZE", (106, 140))
    monkeypatch.setattr(photos, "SHIPPED", SHIPPED)
    with pytest.raises(mtcd.UserError, match="--shrink 4"):
        photos.data_file(photos.Run(photos=20))
    assert not list(photos.FOLDER.glob("reported*"))
    assert photos.main(["--judge"]) == 2
    assert "--shrink 4" in capsys.readouterr().err


def test_tables_without_results_leave_the_document_alone(tmp_path, monkeypatch, capsys):
    for program in (photos, study):
        document = tmp_path / "results.md"
        document.write_text("<!-- begin photos -->\n<!-- begin rooms -->\nkept")
        monkeypatch.setattr(program, "DOCUMENT", document)
        monkeypatch.setattr(program, "RESULTS", tmp_path / "gone.csv")
        before = document.read_bytes()
        assert program.main(["--tables"]) == 2
        assert "gone.csv" in capsys.readouterr().err
        assert document.read_bytes() == before


def test_runs_of_photos_are_made(nyud, monkeypatch):
    monkeypatch.setattr(photos, "Lite0", partial(Lite0, pretrained=False))
    run = photos.Run(photos=20, iterations=1, form="ours", contrast=0.5)
    lines = photos.train(run)
    assert [line[-5] for line in lines] == list(experiments.TASKS)
    assert lines[0][: -len(experiments.MEASURED)] == list(dataclasses.astuple(run))
    config = json.loads(next(photos.FOLDER.rglob("config.json")).read_text())
    assert config["backbone"] == "lite0"
    assert not list(photos.FOLDER.rglob("last.pt"))


def test_a_pair_is_repeated_beside_what_the_results_have(
    nyud, photos_lines, tmp_path, monkeypatch, capsys
):
    def make_here(runs, results, train, prepare):  # not in other processes
        for run in runs:
            prepare(run)
            experiments.append_results(results, photos.Run, train(run))

    monkeypatch.setattr(photos, "make_runs", make_here)
    monkeypatch.setattr(photos, "Lite0", partial(Lite0, pretrained=False))
    monkeypatch.setattr(photos, "RESULTS", tmp_path / "photos.csv")
    monkeypatch.setattr(photos, "FEW", photos.Run(photos=20, iterations=1))
    before = photos.RESULTS.read_bytes()
    assert photos.main(["--repeat", "10"]) == 0
    assert photos.RESULTS.read_bytes() == before
    made = experiments.read_results(tmp_path / "repeat-10.csv", photos.Run)
    assert {run.arm for run, _ in made} == {"baseline", "not of semseg, lambda 1"}
    assert len(made) == 2 * len(experiments.TASKS)
    assert f"{tmp_path / 'repeat-10.csv'}:" in capsys.readouterr().out

    assert photos.main(["--repeat", "9"]) == 2
    assert "10 to 15" in capsys.readouterr().err


def test_shipped_network_is_that_of_its_run_in_half_precision(nyud, tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "Lite0", partial(Lite0, pretrained=False))
    monkeypatch.setattr(photos, "ALL", photos.Run(photos=20, iterations=1))
    run = dataclasses.replace(photos.ALL, **photos.CHOSEN, seed=3)
    monkeypatch.setattr(photos, "TO_SHIP", run)
    monkeypatch.setattr(photos, "SHIPPED", tmp_path / "shipped.pt")
    with pytest.raises(mtcd.UserError, match="python -m extras.photos makes it"):
        photos.ship()

    photos.train(run)
    path = next(tmp_path.rglob("last.pt"))
    saved = torch.load(path, weights_only=True)
    torch.save({**saved, "iteration": 0}, path)
    with pytest.raises(mtcd.UserError, match="has not ended"):
        photos.ship()
    assert not photos.SHIPPED.exists()

    torch.save(saved, path)
    photos.ship()
    net, config, projectors = load_network(tmp_path / "shipped.pt", "cpu")
    trained, _, trained_projectors = load_network(next(tmp_path.rglob("last.pt")), "cpu")
    assert str(tmp_path) not in json.dumps(config)
    regulariser = mtcd.CrossTaskContrast(config["tasks"], net.channels, targets=config["targets"])
    regulariser.load_state_dict(projectors)
    for half, whole in (
        (net.state_dict(), trained.state_dict()),
        (regulariser.state_dict(), trained_projectors),
    ):
        assert half.keys() == whole.keys()
        for name, array in half.items():
            torch.testing.assert_close(array, whole[name], rtol=2**-11, atol=2**-24)


def test_plan_of_photos_holds_each_run_once_with_its_baseline():
    runs = photos.plan()
    assert len(set(runs)) == len(runs)
    baselines = {(run.setting, run.seed) for run in runs if run.arm == "baseline"}
    assert {(run.setting, run.seed) for run in runs} == baselines
    for run in runs:
        assert run.set in ("reported", "tuning")
        assert run.encoder in ("lite0", "hrnet_tiny")
        assert (
            run.form in ("none", *photos.FORMS)
            or run.form.removeprefix("only ") in experiments.TASKS
        )
        assert (run.contrast > 0) == (run.form in photos.FORMS)


def test_all_runs_of_photos_that_were_made_are_in_the_plan():
    made = {run for run, _ in experiments.read_results(photos.RESULTS, photos.Run)}
    assert made <= set(photos.plan())


# ------------------------------------------------------------- what README and docs/results.md say
def marked(path, name):
    """What stands between the marks of this name."""
    content = path.read_text(encoding="utf-8")
    found = re.search(f"<!-- begin {name} -->(.*?)<!-- end {name} -->", content, re.DOTALL)
    assert found and found[1].strip(), f"{path.name} has nothing between the marks of {name}"
    return found[1].strip()


def numbers(text):
    """The figures with a decimal point in a text, their sign with them."""
    return set(re.findall(r"[+-]?\d+\.\d+", text.replace("\N{MINUS SIGN}", "-")))


def test_rooms_tables_in_the_document_are_those_that_are_printed():
    shown = marked(DOCUMENT, "rooms")
    assert shown == study.tables(experiments.read_results(study.RESULTS, study.Run)).strip()


def test_photos_tables_in_the_document_are_those_that_are_printed():
    shown = marked(DOCUMENT, "photos")
    assert shown == photos.tables(experiments.read_results(photos.RESULTS, photos.Run)).strip()


def test_every_block_of_the_document_is_checked():
    names = re.findall(r"<!-- begin (\S+) -->", DOCUMENT.read_text(encoding="utf-8"))
    assert set(names) <= {"rooms", "photos"}


def test_figures_of_readmes_findings_are_in_the_document():
    findings = numbers(marked(ROOT / "README.md", "findings"))
    assert findings
    assert findings <= numbers(DOCUMENT.read_text(encoding="utf-8"))


# -------------------------------------------------------------------------------------- notebook
NOTEBOOK = ROOT / "docs/contrast.ipynb"
BEGIN = "# >>> copy from here"
END = "# <<< to here"
AGAIN = (
    "jupyter nbconvert --inplace --execute --ExecutePreprocessor.record_timing=False "
    "docs/contrast.ipynb"
)


def read_notebook():
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(NOTEBOOK, as_version=4)


def test_notebook_has_the_loss_of_mtcd_and_is_stored_with_its_outputs():
    source = Path(mtcd.__file__).read_text(encoding="utf-8")
    block = source[source.index(BEGIN) : source.index(END) + len(END)]
    cells = [cell for cell in read_notebook().cells if cell.cell_type == "code"]
    pasted = [cell.source for cell in cells if cell.source.startswith(BEGIN)]
    assert pasted == [block], f"another loss: paste what stands between the marks, then {AGAIN}"
    counts = [cell.execution_count for cell in cells]
    assert counts == list(range(1, len(cells) + 1)), f"outputs are missing: {AGAIN}"
    pictures = [cell for cell in cells if "image/png" in str(cell.outputs)]
    assert len(pictures) >= 5
    assert NOTEBOOK.stat().st_size < 2e6


def test_notebook_runs(monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("MTCD_NOTEBOOK_ITERS", "10")  # instead of the minutes of its training
    folder = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(read_notebook(), timeout=600, resources=folder).execute()
