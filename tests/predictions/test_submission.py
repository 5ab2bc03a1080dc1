"""Submissions: the official rules find every file, and every kind of wrong zip is reported in one line."""

import dataclasses
import fnmatch
import io
import os
import pathlib
import zipfile

import numpy as np
import pytest
from PIL import Image

from rc_jax import data
from rc_jax.data import DatasetInfo, FilePairs
from rc_jax.predictions import submission
from rc_jax.predictions.folder import label_image
from tests.support import disks

INFO = data.info("cityscapes", "")
# With a 64th of the pixels: 10 MB of random labels would take seconds in each test.
SMALL = dataclasses.replace(submission.find("cityscapes", "cityscapes"), size=(128, 256))
IMAGES = [f"{city}_00000{i}_000019_leftImg8bit" for city in ("berlin", "bonn") for i in range(2)]


def labels_folder(
  path: pathlib.Path, info: DatasetInfo = INFO, names=IMAGES, size=(128, 256)
) -> pathlib.Path:
  rng = np.random.default_rng(0)
  for name in names:
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    label_image(rng.integers(0, info.num_classes, size), info).save(path / f"{name}.png")
  return path


def expected(form=SMALL, names=IMAGES, size=(128, 256)):
  return submission.expected_files(form, [(name, size) for name in names])


def sizes(wanted):
  return {key: size for key, (_, size) in wanted.items()}


@pytest.fixture
def written(tmp_path: pathlib.Path) -> pathlib.Path:
  target = tmp_path / "cityscapes_test.zip"
  submission.write(SMALL, expected(), labels_folder(tmp_path / "labels"), INFO, target)
  return target


def test_a_zip_holds_the_ids_of_every_image_once(written: pathlib.Path) -> None:
  assert submission.check(written, SMALL, sizes(expected()), INFO) == []
  with zipfile.ZipFile(written) as archive:
    assert len(archive.namelist()) == len(IMAGES)
    for name in IMAGES:
      frame = name.removesuffix("_leftImg8bit")
      # The pattern of the official getPrediction.
      (found,) = fnmatch.filter(archive.namelist(), f"{frame}*.png")
      with Image.open(io.BytesIO(archive.read(found))) as image:
        assert image.mode == "L"
        ids = np.asarray(image)
      with Image.open(written.parent / "labels" / f"{name}.png") as label:
        np.testing.assert_array_equal(ids, np.asarray(label))
      assert set(np.unique(ids)) <= set(INFO.label_ids)


def test_the_same_labels_give_the_same_bytes(written: pathlib.Path) -> None:
  again = written.with_name("again.zip")
  submission.write(SMALL, expected(), written.parent / "labels", INFO, again)
  assert again.read_bytes() == written.read_bytes()


def png(array: np.ndarray, **options) -> bytes:
  content = io.BytesIO()
  Image.fromarray(array).save(content, options.pop("format", "PNG"), **options)
  return content.getvalue()


IDS = INFO.label_ids[np.random.default_rng(1).integers(0, 19, (128, 256))].astype(np.uint8)
FIRST = "berlin_000000_000019_labelIds.png"

# Change of the first file -> words of the reported line.
MUTATIONS = {
  "missing": (lambda name, content: [], "1 file missing (berlin_000000_000019_labelIds.png)"),
  "in a folder": (lambda name, content: [(f"results/{name}", content)], "in a folder"),
  "in a folder of Windows": (lambda name, content: [(f"results\\{name}", content)], "in a folder"),
  "twice": (lambda name, content: [(name, content)] * 2, "that has another file"),
  "two endings": (
    lambda name, content: [(name, content), (name.replace("labelIds", "copy"), content)],
    "that has another file",
  ),
  "not of the split": (
    lambda name, content: [(name, content), (name.replace("berlin", "zurich"), content)],
    "that is not in the split",
  ),
  "without a frame": (lambda name, content: [("berlin_000000_labelIds.png", content)], "names other than"),
  "seven digits": (lambda name, content: [("berlin_000000_0000190.png", content)], "names other than"),
  "another file": (
    lambda name, content: [(name, content), ("readme.txt", b"hello")],
    "without the ending .png (readme.txt)",
  ),
  "a JPEG": (lambda name, content: [(name, png(IDS, format="JPEG"))], "with another content than PNG"),
  "cut": (lambda name, content: [(name, content[: len(content) // 2])], "cannot be decoded"),
  "empty": (lambda name, content: [(name, b"")], "with another content than PNG"),
  "train ids": (lambda name, content: [(name, png((IDS % 19).astype(np.uint8)))], "train ids"),
  "the ignored id": (
    lambda name, content: [(name, png(np.where(np.arange(256) < 3, np.uint8(255), IDS)))],
    "id 255",
  ),
  "an id that is not scored": (lambda name, content: [(name, png(np.full_like(IDS, 29)))], "does not score"),
  "transposed": (lambda name, content: [(name, png(IDS.T.copy()))], "of another size"),
  "half": (lambda name, content: [(name, png(IDS[::2, ::2].copy()))], "of another size"),
  "colours": (lambda name, content: [(name, png(np.stack([IDS] * 3, axis=-1)))], "mode RGB"),
  "16 bits": (lambda name, content: [(name, png(IDS.astype(np.uint16)))], "mode I;16"),
  "alpha": (lambda name, content: [(name, png(np.stack([IDS] * 2, axis=-1)))], "mode LA"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_file_is_reported_in_one_line(
  name: str, written: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  change, wanted = MUTATIONS[name]
  wrong = tmp_path / "wrong.zip"
  with zipfile.ZipFile(written) as archive, zipfile.ZipFile(wrong, "w") as target:
    for entry in archive.infolist():
      content = archive.read(entry)
      kept = change(entry.filename, content) if entry.filename == FIRST else [(entry.filename, content)]
      for new_name, new_content in kept:
        target.writestr(zipfile.ZipInfo(new_name), new_content)
  problems = submission.check(wrong, SMALL, sizes(expected()), INFO)
  # The image of a file without a key has no file: a second line.
  assert len(problems) == (2 if "frame" in name or "digits" in name else 1), problems
  assert wanted in problems[0] and "\n" not in problems[0]


def test_a_palette_is_reported(tmp_path: pathlib.Path) -> None:
  wrong = tmp_path / "wrong.zip"
  with zipfile.ZipFile(wrong, "w") as archive:
    for key in expected():
      content = io.BytesIO()
      label_image(np.zeros((128, 256), int), INFO).save(content, "PNG")
      archive.writestr(f"{key}.png", content.getvalue())
  (problem,) = submission.check(wrong, SMALL, sizes(expected()), INFO)
  assert problem.startswith("4 files of mode P")


@pytest.mark.parametrize("damage", ["cut", "a byte", "text", "nothing"])
def test_a_damaged_zip_is_reported(damage: str, written: pathlib.Path) -> None:
  content = bytearray(written.read_bytes())
  if damage == "cut":
    content = content[: len(content) // 2]
  elif damage == "a byte":
    content[len(content) // 3] ^= 255
  elif damage == "text":
    content = bytearray(b"hello")
  if damage == "nothing":
    written.unlink()
  else:
    written.write_bytes(content)
  (problem,) = submission.check(written, SMALL, sizes(expected()), INFO)
  assert "is no complete zip file" in problem if damage != "a byte" else "cannot be unpacked" in problem


def test_a_password_is_reported(written: pathlib.Path) -> None:
  content = written.read_bytes()
  # Bit 0 of the flags, in the header of the first file and in the directory.
  at = content.index(b"PK\x01\x02")
  changed = bytearray(content)
  changed[6] |= 1
  changed[at + 8] |= 1
  written.write_bytes(changed)
  (problem,) = submission.check(written, SMALL, sizes(expected()), INFO)
  assert "cannot be unpacked" in problem


def test_a_zip_that_would_be_refused_is_not_written(tmp_path: pathlib.Path) -> None:
  folder = labels_folder(tmp_path / "labels", size=(64, 256))
  target = tmp_path / "sub.zip"
  target.write_bytes(b"the one before")
  with pytest.raises(ValueError, match=r"would refuse it: 4 files of another size") as error:
    submission.write(SMALL, expected(), folder, INFO, target)
  assert "\n" not in str(error.value)
  assert target.read_bytes() == b"the one before" and len(list(tmp_path.iterdir())) == 2


def test_a_zip_that_does_not_fit_leaves_the_earlier_one(written: pathlib.Path) -> None:
  content = written.read_bytes()
  with (
    disks.file_size_limit(len(content) // 2),
    pytest.raises(OSError, match=r"cityscapes_test\.zip: cannot be written \(File too large\)"),
  ):
    submission.write(SMALL, expected(), written.parent / "labels", INFO, written)
  assert written.read_bytes() == content
  assert sorted(os.listdir(written.parent)) == ["cityscapes_test.zip", "labels"]


@pytest.mark.parametrize(
  ("images", "wanted"),
  [
    ([("photo", (128, 256))], "has another name than"),
    ([("berlin_000000_000019_leftImg8bit", (128, 255))], "255x128 pixels, expected 256x128"),
    ([("berlin_000000_000019_leftImg8bit", None)], "cannot be read"),
    ([("a/bonn_000000_000019_a", (128, 256)), ("b/bonn_000000_000019_b", (128, 256))], "share one"),
  ],
)
def test_wrong_images_are_refused_before_the_prediction(images, wanted: str) -> None:
  with pytest.raises(ValueError, match=wanted) as error:
    submission.expected_files(SMALL, images)
  assert "\n" not in str(error.value)


def test_a_format_belongs_to_its_data_set() -> None:
  assert submission.find("cityscapes", "cityscapes").size == (1024, 2048)
  with pytest.raises(ValueError, match=r"dataset\.name is camvid; expected cityscapes"):
    submission.find("cityscapes", "camvid")
  with pytest.raises(ValueError, match="no such format; expected one of ade20k, cityscapes, coco_stuff"):
    submission.find("voc", "cityscapes")


@pytest.mark.parametrize(
  ("name", "dataset", "ids", "images"),
  [
    ("ade20k", "ade20k", np.arange(1, 151), ["ADE_test_00000001", "ADE_test_00000002"]),
    *(
      ("coco_stuff", f"coco_stuff_{release}", np.setdiff1d(np.arange(183), [12, 26, 29]), ["000000119938"])
      for release in ("10k", "164k")
    ),
  ],
)
def test_other_formats_keep_the_name_and_size_of_each_image(
  name, dataset, ids, images, tmp_path: pathlib.Path
) -> None:
  form = submission.find(name, dataset)
  info = DatasetInfo(name, tuple(map(str, ids)), np.zeros((len(ids), 3), np.uint8), ids)
  described = [(image, (20 + i, 30)) for i, image in enumerate(images)]
  for image, size in described:
    labels_folder(tmp_path / "labels", info, [image], size)
  wanted = submission.expected_files(form, described)
  submission.write(form, wanted, tmp_path / "labels", info, tmp_path / "sub.zip")
  with zipfile.ZipFile(tmp_path / "sub.zip") as archive:
    assert archive.namelist() == [f"{image}.png" for image in images]
    for image, (height, width) in described:
      with Image.open(io.BytesIO(archive.read(f"{image}.png"))) as found:
        assert (found.mode, found.size) == ("L", (width, height))
        assert set(np.unique(np.asarray(found))) <= set(ids.tolist())


def test_the_official_scorer_finds_and_scores_every_file(
  shared_dir: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setitem(os.environ, "CITYSCAPES_RESULTS", str(tmp_path / "results"))
  name = "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"
  official = pytest.importorskip(name, exc_type=ImportError)
  source = data.load("cityscapes", str(shared_dir / "data" / "cityscapes_sample"), "val")
  assert isinstance(source, FilePairs) and source.labels is not None
  name = source.images[0].stem
  truth = source[0]["label"]
  labels = np.where(truth == 255, 0, truth)
  labels[:, 1000:1100] = 13  # cars
  (tmp_path / "labels").mkdir()
  label_image(labels, INFO).save(tmp_path / "labels" / f"{name}.png")
  wanted = submission.expected_files(submission.find("cityscapes", "cityscapes"), [(name, truth.shape)])
  submission.write(
    submission.find("cityscapes", "cityscapes"), wanted, tmp_path / "labels", INFO, tmp_path / "sub.zip"
  )
  with zipfile.ZipFile(tmp_path / "sub.zip") as archive:
    archive.extractall(tmp_path / "results")

  args = official.args
  for field, value in {
    "predictionPath": None,
    "predictionWalk": None,
    "evalInstLevelScore": False,
    "JSONOutput": False,
    "quiet": True,
  }.items():
    monkeypatch.setattr(args, field, value)
  file = official.getPrediction(args, str(source.labels[0]))
  scores = official.evaluateImgLists([file], [str(source.labels[0])], args)["classScores"]
  for index, class_name in enumerate(INFO.class_names):
    hit = ((labels == index) & (truth == index)).sum()
    union = ((labels == index) & (truth != 255)).sum() + (truth == index).sum() - hit
    if union:
      assert scores[class_name] == pytest.approx(hit / union, abs=1e-9)
