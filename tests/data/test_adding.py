"""A data set and an augmentation are added as ``docs/adding/`` shows, in a copy of the package."""

import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types
from typing import Any

import numpy as np
import pytest

from rc_jax import data
from tests.data.test_batches_of_a_seed import DEFAULTS, Blobs
from tests.support.paths import ROOT
from tests.support.small_datasets import random_ids, save_image, save_label

pytestmark = pytest.mark.run

DATA = pathlib.Path("rc_jax", "data")


def add_from_page(checkout: pathlib.Path, page: str, package: pathlib.Path, after: str) -> None:
  """Adds the file and the line of a page to a copy of the package.

  Args:
    checkout: holds the copy.
    page: its name in ``docs/adding``.
    package: the folder whose ``__init__.py`` gets the line, and the import of the module.
    after: the line of ``__init__.py`` that the new line follows.
  """
  text = (ROOT / "docs" / "adding" / page).read_text()
  ((path, code),) = re.findall(r"```python\n# (rc_jax/\S+)\n(.*?)```", text, re.DOTALL)
  (checkout / path).write_text(code)
  module = pathlib.Path(path)
  (line,) = re.findall(rf"^  .*\b{module.stem}\.[A-Z]+,\n", text, re.MULTILINE)
  init = (checkout / package / "__init__.py").read_text()
  for place, added in (
    (after, line),
    ("\nfrom rc_jax", f"\nfrom {'.'.join(module.parent.parts)} import {module.stem}"),
  ):
    assert place in init
    init = init.replace(place, place + added if place == after else added + place, 1)
  (checkout / package / "__init__.py").write_text(init)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A copy of the package with the data set and the augmentation of the pages."""
  folder = tmp_path_factory.mktemp("checkout")
  shutil.copytree(ROOT / "rc_jax", folder / "rc_jax", ignore=shutil.ignore_patterns("__pycache__"))
  add_from_page(folder, "dataset.md", DATA, '  "camvid": camvid.DATASET,\n')
  add_from_page(folder, "augmentation.md", DATA / "augment", "  blur.AUGMENTATION,\n")
  return folder


@pytest.fixture(scope="module")
def harbour(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A small copy of the data set of the page."""
  root = tmp_path_factory.mktemp("harbour")
  for split in ("train", "val", "test"):
    for number in range(2):
      save_image(root / f"photos/{split}/{number}.jpg", f"{split}{number}")
      if split != "test":
        save_label(root / f"masks/{split}/{number}.png", random_ids(f"{split}{number}", range(4)))
  return root


def printed(checkout: pathlib.Path, code: str, *arguments: object) -> Any:
  """Runs Python code on the copy and returns the JSON in its last line."""
  environment = {**os.environ, "PYTHONPATH": f"{checkout}{os.pathsep}{ROOT}", "JAX_PLATFORMS": "cpu"}
  finished = subprocess.run(
    [sys.executable, "-c", code, *map(str, arguments)],
    cwd=checkout,
    env=environment,
    capture_output=True,
    text=True,
  )
  assert finished.returncode == 0, finished.stderr
  return json.loads(finished.stdout.splitlines()[-1])


READ = """
import json, pathlib, sys
import numpy as np
from rc_jax import data
from rc_jax.config import defaults, validate
from rc_jax.modes import inspect
from rc_jax.predictions import submission

root, wrong, out = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
found = {"module": data.__file__}
train = data.load("harbour", root, "train+val")
found["examples"] = [(train[i]["name"], np.unique(train[i]["label"]).tolist()) for i in range(len(train))]
found["test"] = sorted(data.load("harbour", root, "test", labels=False)[0])
try:
  data.load("cityscapes", root, "train")
except FileNotFoundError as error:
  found["recognised"] = str(error)

config = defaults()
config.dataset.name, config.dataset.root = "harbour", root
config.train.crop_size, config.augment.cutout, config.augment.cutout_side = (33, 33), 1.0, 9
validate(config)
found["status"] = inspect.run(config, out)
config.dataset.root = wrong
found["status of wrong labels"] = inspect.run(config, out / "wrong")
with data.train_batches(train, seed=0, batch_size=2, crop_size=(33, 33), augment=config.augment) as batches:
  batch = next(batches)
found["batch"] = {key: [str(array.dtype), list(array.shape)] for key, array in batch.items()}

form = submission.find("harbour", "harbour")
test = data.load("harbour", root, "test", labels=False)
expected = submission.expected_files(form, [(test[i]["name"], test[i]["image"].shape[:2]) for i in range(len(test))])
submission.write(form, expected, out / "labels", test.info, out / "harbour.zip")
sizes = {key: size for key, (_, size) in expected.items()}
found["problems"] = submission.check(out / "harbour.zip", form, sizes, test.info)
print(json.dumps(found))
"""


def test_a_data_set_is_read_inspected_trained_on_and_submitted(
  checkout: pathlib.Path, harbour: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  for number in range(2):
    save_label(tmp_path / f"labels/{number}.png", random_ids(f"test{number}", range(1, 4)))
  shutil.copytree(harbour, tmp_path / "set")
  save_label(tmp_path / "set/masks/train/1.png", random_ids("x", (0, 1, 255)))
  found = printed(checkout, READ, harbour, tmp_path / "set", tmp_path)
  assert found["module"] == str(checkout / DATA / "__init__.py")
  assert [name for name, _ in found["examples"]] == ["0", "1", "0", "1"]
  for (_, train_ids), seed in zip(found["examples"], ("train0", "train1", "val0", "val1"), strict=True):
    ids = np.unique(random_ids(seed, range(4))).tolist()
    assert train_ids == sorted({0: 255, 1: 0, 2: 1, 3: 2}[own_id] for own_id in ids)
  assert found["test"] == ["image", "name"]
  assert "this looks like harbour: set --config.dataset.name=harbour" in found["recognised"]
  assert found["status"] == 0
  report = (tmp_path / "inspect/report.txt").read_text()
  assert "holds 2 images, the official release 1,200" in report and "DEFECT" not in report
  assert (tmp_path / "inspect/train_classes.png").is_file()
  assert found["batch"] == {"image": ["uint8", [2, 33, 33, 3]], "label": ["uint8", [2, 33, 33]]}
  assert found["problems"] == []
  assert found["status of wrong labels"] == 1
  report = (tmp_path / "wrong/inspect/report.txt").read_text()
  assert report.count("DEFECT") == 1 and "masks/train/1.png" in report
  assert "ids reduced by one (255 was 0): give the masks as downloaded, 0-3" in report


AUGMENT = """
import hashlib, json, types
import numpy as np
from rc_jax import data
from rc_jax.config import FIELDS, defaults, validate
from rc_jax.data.augment.cutout import cutout
from tests.data.test_batches_of_a_seed import DEFAULTS, Blobs

digests = {"image": hashlib.sha256(), "label": hashlib.sha256()}
options = dict(seed=7, batch_size=6, crop_size=(65, 81))
with data.train_batches(Blobs(), augment=types.SimpleNamespace(**DEFAULTS), **options) as batches:
  for _ in range(3):
    batch = next(batches)
    for key, digest in digests.items():
      digest.update(batch[key].tobytes())
found = {"off": [digest.hexdigest()[:16] for digest in digests.values()]}

config = defaults()
found["default"], found["paths"] = config.augment.cutout, [field.path for field in FIELDS]
config.augment.cutout, config.augment.cutout_side, config.augment.scale = 1.0, 15, (2.0, 2.0)
with data.train_batches(Blobs(), augment=config.augment, **options) as batches:
  batch = next(batches)
covered = batch["label"] == 255
found["covered"] = covered.sum(axis=(1, 2)).tolist()
found["colors"] = np.unique(batch["image"][covered], axis=0).tolist()
config.dataset.name, config.augment.cutout = "synthetic", 1.5
try:
  validate(config)
except ValueError as error:
  found["refused"] = str(error)

found["squares"] = []
for case in range(40):
  image = np.random.default_rng(case).integers(0, 100, (12, 17, 3), np.uint8)
  out, mask = cutout(image, np.zeros((12, 17), np.uint8), np.random.default_rng(case), side=1 + case % 9)
  assert (out[mask == 0] == image[mask == 0]).all() and (out[mask == 255] == (124, 116, 104)).all()
  found["squares"].append(mask.tolist())
print(json.dumps(found))
"""


def test_an_augmentation_is_applied_checked_and_off_by_default(checkout: pathlib.Path) -> None:
  found = printed(checkout, AUGMENT)
  # Off, it changes no batch: on this machine, the package without it gives the same bytes.
  digests = {"image": hashlib.sha256(), "label": hashlib.sha256()}
  augment = types.SimpleNamespace(**DEFAULTS)
  with data.train_batches(Blobs(), seed=7, batch_size=6, crop_size=(65, 81), augment=augment) as batches:
    for _ in range(3):
      batch = next(batches)
      for key, digest in digests.items():
        digest.update(batch[key].tobytes())
  assert found["off"] == [digest.hexdigest()[:16] for digest in digests.values()]
  assert found["default"] == 0.0 and "augment.cutout_side" in found["paths"]
  # Squares that reach beyond the border are smaller.
  assert len(found["covered"]) == 6 and all(8 * 8 <= pixels <= 15 * 15 for pixels in found["covered"])
  assert found["colors"] == [[124, 116, 104]]
  assert found["refused"] == "config.augment.cutout: is 1.5; expected a probability in 0..1"
  for case, mask in enumerate(found["squares"]):
    rng, side = np.random.default_rng(case), 1 + case % 9
    row, column = int(rng.integers(12)), int(rng.integers(17))
    for i in range(12):
      for j in range(17):
        inside = 0 <= i - (row - side // 2) < side and 0 <= j - (column - side // 2) < side
        assert mask[i][j] == (255 if inside else 0)
