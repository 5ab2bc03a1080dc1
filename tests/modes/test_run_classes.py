"""A run keeps the classes and the size of the training set that it was trained on: what follows is refused or said."""

import contextlib
import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from rc_jax.class_table import FILE
from rc_jax.config import Config
from rc_jax.modes import eval as eval_mode
from rc_jax.modes import export, predict, report, train
from rc_jax.training import run_log
from tests.support import run_tiny, small_datasets

REORDERED = "id,name,color\n0,background,#000000\n2,car,#00008e\n1,road,#804080\n255,ignore\n"
OTHER_IDS = "id,name,color\n0,background,#000000\n2,road,#804080\n1,car,#00008e\n255,ignore\n"
RENAMED = small_datasets.CLASSES.replace("car", "bus")
FEWER = "id,name,color\n0,background,#000000\n1,road,#804080\n2,ignore\n255,ignore\n"
OTHER_COLORS = small_datasets.CLASSES.replace("#804080", "#00ff00")
# As many classes with the same meaning, in the same order: nothing to refuse.
SAME = small_datasets.CLASSES.replace("255,ignore\n", "254,ignore\n255,ignore\n")


def config_of(root: pathlib.Path) -> Config:
  config = run_tiny.get_config()
  config.dataset.name, config.dataset.root = "folder", str(root)
  config.train.update({"batch_size": 2, "steps": 2, "crop_size": (33, 41), "eval_every": 0})
  config.contrast.bank_size = 0
  config.eval.batch_size = 2
  return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, pathlib.Path]:
  """The folders of a data set, and of a finished run on it with predictions."""
  root, workdir = tmp_path_factory.mktemp("data") / "root", tmp_path_factory.mktemp("run") / "run"
  small_datasets.folder(root)
  assert train.run(config_of(root), workdir) == 0
  assert predict.run(config_of(root), workdir) == 0
  return root, workdir


@pytest.fixture
def copies(trained, tmp_path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  """Copies of both folders, which a test may change."""
  for source, name in zip(trained, ("root", "run"), strict=True):
    shutil.copytree(source, tmp_path / name)
  return tmp_path / "root", tmp_path / "run"


def resume(config: Config, workdir: pathlib.Path) -> train.TrainState:
  """Restores the run's newest checkpoint as training does; returns its state."""
  with contextlib.ExitStack() as stack:
    training, state = train.prepare(config, workdir)
    stack.callback(training.log.close)
    stack.enter_context(training.checkpoints)
    stack.enter_context(training.prefetcher)
  return state


USES = {
  "eval": eval_mode.run,
  "predict": lambda config, workdir: predict.run(config, workdir, output=workdir / "new"),
  "export": lambda config, workdir: export.run(config, workdir, size="33,41", platforms=("cpu",)),
  "report": report.run,
  "training": resume,
}


@pytest.mark.long
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
  "table, differences",
  [
    (REORDERED, r"class 1: car \(id 2\), there road \(id 1\); class 2: road \(id 1\), there car \(id 2\)"),
    (OTHER_IDS, r"class 1: road \(id 2\), there road \(id 1\)"),
    (RENAMED, r"class 2: bus \(id 2\), there car \(id 2\)"),
    (FEWER, r"class 2: absent, there car \(id 2\)"),
  ],
)
def test_other_classes_are_refused_in_one_line(copies, use: str, table: str, differences: str) -> None:
  root, workdir = copies
  before = sorted(path.name for path in workdir.rglob("*"))
  (root / "classes.csv").write_text(table)
  with pytest.raises(ValueError, match=differences) as refusal:
    USES[use](config_of(root), workdir)
  assert "\n" not in str(refusal.value)
  assert sorted(path.name for path in workdir.rglob("*")) == before


def test_the_classes_are_kept_with_the_run_its_predictions_and_its_export(copies) -> None:
  root, workdir = copies
  USES["export"](config_of(root), workdir)
  records = [
    json.loads((workdir / FILE).read_text()),
    json.loads((workdir / "predictions" / "predictions.json").read_text())["classes"],
    json.loads((workdir / "export" / export.METADATA).read_text()),
  ]
  for record in records:
    assert record["class_names"] == ["background", "road", "car"] and record["label_ids"] == [0, 1, 2]
    assert record["palette"] == [[0, 0, 0], [128, 64, 128], [0, 0, 142]]


@pytest.mark.parametrize("table, said", [(OTHER_COLORS, "road: #00ff00, there #804080"), (SAME, None)])
def test_other_colours_are_said_and_other_ignored_ids_are_nothing(
  copies, capsys, table: str, said: str
) -> None:
  root, workdir = copies
  (root / "classes.csv").write_text(table)
  eval_mode.run(config_of(root), workdir)
  printed = capsys.readouterr().out
  assert (said in printed) if said else ("have changed" not in printed)


@pytest.mark.long
def test_a_run_of_an_earlier_version_says_what_cannot_be_checked(copies, capsys) -> None:
  root, workdir = copies
  (workdir / FILE).unlink()
  eval_mode.run(config_of(root), workdir)
  assert "does not record its classes" in capsys.readouterr().out
  resume(config_of(root), workdir)
  assert "does not record its classes" in capsys.readouterr().out
  resume(config_of(root), workdir)
  assert "does not record" not in capsys.readouterr().out


def test_a_damaged_record_is_named(copies) -> None:
  root, workdir = copies
  for content in ("", "{", "[]", '{"class_names": 3}'):
    (workdir / FILE).write_text(content)
    with pytest.raises(ValueError, match=rf"{FILE}: .*restore the file, or remove it") as refusal:
      eval_mode.run(config_of(root), workdir)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("table", [REORDERED, OTHER_IDS, RENAMED, OTHER_COLORS])
def test_predictions_of_other_classes_are_not_mixed(copies, table: str) -> None:
  """Also where the run itself has no record, or where only the colours in the label images differ."""
  root, workdir = copies
  (workdir / FILE).unlink()
  (root / "classes.csv").write_text(table)
  with pytest.raises(ValueError, match=r"predictions of other settings \(.*there.*--overwrite"):
    predict.run(config_of(root), workdir)


def test_predictions_of_an_earlier_version_say_what_is_not_recorded(copies, capsys) -> None:
  root, workdir = copies
  path = workdir / "predictions" / "predictions.json"
  settings = json.loads(path.read_text())
  del settings["classes"], settings["eval"]["pad_to_grid"]
  path.write_text(json.dumps(settings))
  assert predict.run(config_of(root), workdir) == 0
  printed = capsys.readouterr().out
  assert "does not record classes and eval.pad_to_grid" in printed
  assert "2 of 2 images are labelled already" in printed
  assert json.loads(path.read_text())["classes"]["class_names"] == ["background", "road", "car"]


@pytest.mark.long
def test_more_or_fewer_training_images_are_said_and_banks_refit(copies, capsys) -> None:
  root, workdir = copies
  before = resume(config_of(root), workdir).bank
  assert "training set" not in capsys.readouterr().out
  for number in (2, 3, 4):
    small_datasets.save_image(root / "images" / "train" / f"{number}.png", f"train{number}")
    small_datasets.save_label(
      root / "labels" / "train" / f"{number}.png", small_datasets.random_ids(f"{number}", (0, 1, 2))
    )
  bank = resume(config_of(root), workdir).bank
  printed = capsys.readouterr().out
  assert "the training set has 5 images; it had 2 when step 2 was saved" in printed
  assert "5 slots in place of 2 and keeps all keys" in printed
  assert before.count.max() == 2 and bank.capacity == 5
  np.testing.assert_array_equal(bank.count, before.count)
  np.testing.assert_array_equal(bank.cursor, before.count)  # the next key goes behind the newest
  assert int(bank.valid.sum()) == int(before.count.sum())
  for label in range(3):
    held = [np.asarray(each.keys)[label][np.asarray(each.valid)[label]] for each in (before, bank)]
    np.testing.assert_array_equal(np.sort(held[0], axis=0), np.sort(held[1], axis=0))


@pytest.mark.slow
def test_slots_of_another_training_set_start_empty(trained, tmp_path, capsys) -> None:
  root, workdir = tmp_path / "root", tmp_path / "run"
  shutil.copytree(trained[0], root)
  config = config_of(root)
  config.contrast.slots = "image"
  assert train.run(config, workdir) == 0
  assert "banks of 2 keys for each of 3 classes, a slot for each training image" in " ".join(
    capsys.readouterr().out.split()
  )
  before = resume(config, workdir).bank
  assert "training set" not in capsys.readouterr().out and before.count.max() == 2
  for folder in ("images", "labels"):
    os.rename(root / folder / "train" / "0.png", root / folder / "train" / "9.png")  # behind 1.png
  bank = resume(config, workdir).bank
  printed = capsys.readouterr().out
  assert (
    "the training set has other images, or another order of images, than when step 2 was saved" in printed
  )
  assert "the memory banks start empty" in printed and "drawn" not in printed and not bank.valid.any()
  small_datasets.save_image(root / "images" / "train" / "2.png", "train2")
  small_datasets.save_label(root / "labels" / "train" / "2.png", small_datasets.random_ids("2", (0, 1, 2)))
  bank = resume(config, workdir).bank
  assert "the memory banks start empty, because their slots belong to other images" in capsys.readouterr().out
  assert bank.capacity == 3 and not bank.valid.any() and not bank.keys.any()
  config.contrast.slots = "queue"
  with pytest.raises(ValueError, match=r"contrast\.slots: queue, there image"):
    train.run(config, workdir)


@pytest.mark.long
def test_scores_of_another_protocol_are_not_compared(copies, capsys) -> None:
  """A finished run that is started again with a mirrored image is scored again, and neither score is the best."""
  root, workdir = copies
  config = config_of(root)
  config.eval.flip = True
  assert train.run(config, workdir) == 0
  printed = capsys.readouterr().out
  assert "1 earlier score on val (2 images, scales 1, no flip, full images padded to the grid)" in printed
  assert "the best was" not in printed
  lines = [line for line in run_log.read_metrics(workdir) if "split" in line]
  assert [line["step"] for line in lines] == [2, 2]
  assert ["no flip" in line["protocol"] for line in lines] == [True, False]
  assert json.loads((workdir / "eval" / "val.json").read_text())["flip"] is True
