"""A prepared data set has the examples and batches of the raw one, and errors name damaged records."""

import json
import pathlib
import pickle
import shutil
import subprocess
import sys
import types
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import flags
from array_record.python import array_record_module
from etils import epath
from PIL import Image

from rc_jax import data
from rc_jax.data.prepared import reader, tiles, writer
from rc_jax.predictions import images
from tests.data.test_datasets import CASES
from tests.support.paths import ROOT, SHARED

AUGMENT = types.SimpleNamespace(photometric=True)


@pytest.fixture(autouse=True, scope="module")
def _parsed_flags():
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


def write_raw(root: pathlib.Path, counts: dict[str, int], unlabelled: str = "test") -> pathlib.Path:
  """Writes a folder data set: PNG, JPEG, greyscale and BMP images of several sizes; ids that are not train ids."""
  rng = np.random.default_rng(3)
  root.mkdir()
  (root / "classes.csv").write_text("id,name,color\n7,road,#804080\n9,sky,\n300,ignore,\n2,car,\n")
  for split, count in counts.items():
    (root / "images" / split).mkdir(parents=True)
    if split != unlabelled:
      (root / "labels" / split).mkdir(parents=True)
    for number in range(count):
      height, width = rng.integers(40, 90, 2)
      pixels = np.asarray(
        Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8)).resize((int(width), int(height)))
      )
      image = Image.fromarray(pixels if number % 4 != 2 else pixels[..., 0])
      image.save(root / "images" / split / f"{number:02d}{('.png', '.jpg', '.png', '.bmp')[number % 4]}")
      if split != unlabelled:
        label = rng.choice(np.array([7, 9, 2], np.uint8), (height, width))
        Image.fromarray(label).save(root / "labels" / split / f"{number:02d}.png")
  return root


def pack(name: str, root: pathlib.Path, splits: list[str], output: pathlib.Path, encoding: str) -> None:
  with writer.locked(output):
    shards = writer.plan({split: data.DATASETS[name].load(str(root), split) for split in splits}, encoding)
    writer.write(writer.begin(shards, output), output, 0, lambda count: None)
    writer.finish(shards, output)


@pytest.fixture(scope="module", params=writer.ENCODINGS)
def both(request, tmp_path_factory):
  """A raw folder and the folder prepared from it, in several shards."""
  folder = tmp_path_factory.mktemp("prepared")
  raw = write_raw(folder / "raw", {"train": 9, "val": 4, "test": 3})
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(writer, "SHARD_BYTES", (10_000, 10_000))
    pack("folder", raw, ["train", "val", "test"], folder / "packed", request.param)
  return raw, folder / "packed"


def _assert_same(one, other):
  assert one.keys() == other.keys()
  for key in one:
    np.testing.assert_array_equal(one[key], other[key])


@pytest.mark.parametrize("split", ["train", "val", "train+val", "test"])
def test_examples_and_classes_are_those_of_the_raw_folder(both, split):
  raw, packed = (data.load("folder", str(root), split, labels=split != "test") for root in both)
  assert len(raw) == len(packed) and packed.labelled == raw.labelled == (split != "test")
  for index in range(len(raw)):
    _assert_same(raw[index], packed[index])
    assert isinstance(packed[index]["image"], np.ndarray)
  ours, theirs = (data.info("folder", str(root)) for root in both)
  assert (ours.name, ours.class_names, ours.absent_class) == (
    theirs.name,
    theirs.class_names,
    theirs.absent_class,
  )
  np.testing.assert_array_equal(ours.palette, theirs.palette)
  np.testing.assert_array_equal(ours.label_ids, theirs.label_ids)
  assert len(list(both[1].glob("folder-train.array_record-*"))) > 1


def test_images_of_one_stem_in_several_folders_keep_different_names(tmp_path, monkeypatch):
  raw = write_raw(tmp_path / "raw", {"train": 2, "val": 2})
  for kind in ("images", "labels"):
    for split in ("train", "val"):
      shutil.copytree(raw / kind / split, raw / kind / split / "again")
  monkeypatch.setattr(writer, "SHARD_BYTES", (1000, 1000))
  pack("folder", raw, ["train", "val"], tmp_path / "packed", "tiles")
  for split, count in (("val", 4), ("train+val", 8)):
    sources = [data.load("folder", str(root), split) for root in (raw, tmp_path / "packed")]
    names = [[image.name for image in images.from_source(source, split)] for source in sources]
    assert names[0] == names[1] and len(set(names[0])) == count, names


@pytest.mark.long
@pytest.mark.run
@pytest.mark.parametrize(
  ("both", "workers", "hosts"),
  [
    *(("tiles", 0, 1), ("tiles", 2, 1), ("tiles", 0, 2), ("tiles", 3, 2)),
    *(("original", 0, 1), ("original", 0, 2)),
  ],
  indirect=["both"],
)
def test_batches_are_those_of_the_raw_folder(both, workers, hosts):
  for host in range(hosts):
    parts = []
    for root, processes in zip(both, (0, workers), strict=True):
      with data.train_batches(
        data.load("folder", str(root), "train+val"),
        seed=5,
        batch_size=4,
        crop_size=(41, 57),
        augment=AUGMENT,
        workers=processes,
        host_index=host,
        host_count=hosts,
        with_index=True,
      ) as batches:
        parts.append([next(batches) for _ in range(5)])
    for one, other in zip(*parts, strict=True):
      _assert_same(one, other)


def test_a_folder_of_the_first_version_is_read(tmp_path):
  """``prepared_format_1.zip`` was written before modules moved: tiles of three images and their labels."""
  with zipfile.ZipFile(pathlib.Path(__file__).with_name("prepared_format_1.zip")) as archive:
    archive.extractall(tmp_path)
  source = data.load("folder", str(tmp_path), "train")
  assert source.info.class_names == ("road", "sky", "car") and source.info.label_ids.tolist() == [7, 9, 2]
  assert len(source) == 3 and writer.damaged(tmp_path) == []
  for index in range(3):
    height, width = (300, 270) if index == 0 else (40 + index, 50)
    rng = np.random.default_rng(index)
    cells = (height // 10 + 1, width // 10 + 1)
    image = np.kron(rng.integers(0, 256, (*cells, 3), np.uint8), np.ones((10, 10, 1), np.uint8))[
      :height, :width
    ]
    ids = np.kron(rng.choice(np.array([7, 9, 2, 255], np.uint8), cells), np.ones((10, 10), np.uint8))
    train_ids = np.select([ids == 7, ids == 9, ids == 2], [0, 1, 2], 255)[:height, :width]
    _assert_same(source[index], {"image": image, "name": str(index), "label": train_ids})
    on_access = source.decoded_on_access()[index]
    assert isinstance(on_access["image"], tiles.TiledArray)
    np.testing.assert_array_equal(on_access["label"][5:31], train_ids[5:31])


def test_tfds_reads_a_prepared_folder(both):
  raw, packed = both
  records = tfds.builder_from_directory(str(packed)).as_data_source("train")
  source = data.load("folder", str(raw), "train")
  assert [record["name"].decode() for record in records] == [source[i]["name"] for i in range(len(source))]
  for index, record in enumerate(records):
    if source.images[index].suffix == ".jpg":
      assert record["image"] == source.images[index].read_bytes()


def test_an_opened_split_can_be_pickled(both):
  packed = data.load("folder", str(both[1]), "val")
  packed[0]
  _assert_same(pickle.loads(pickle.dumps(packed))[1], packed[1])


def test_only_training_leaves_tiles_undecoded(both):
  lazy = data.load("folder", str(both[1]), "train").decoded_on_access()[0]
  encoding = json.loads((both[1] / "prepared.json").read_text())["encoding"]
  assert isinstance(lazy["image"], tiles.TiledArray if encoding == "tiles" else np.ndarray)


def test_errors_are_one_line(both, tmp_path):
  packed = str(both[1])
  for wanted, name, root, split in (
    ("prepared data set folder, but dataset.name is 'camvid'", "camvid", packed, "train"),
    ("holds train, val, test", "folder", packed, "valid"),
    ("s3://bucket/x", "folder", "s3://bucket/x", "train"),
  ):
    with pytest.raises(ValueError) as error:
      data.load(name, root, split)
    assert wanted in str(error.value) and "\n" not in str(error.value)
  (tmp_path / "prepared.json").write_text('{"format": 1, "data')
  with pytest.raises(ValueError, match=r"prepared\.json: is not JSON"):
    data.load("folder", str(tmp_path), "train")


def test_a_bucket_without_its_library_is_one_line(monkeypatch):
  # The error of an environment without gcsfs.
  def missing(self):
    raise ImportError("Please install gcsfs to access Google Storage")

  monkeypatch.setattr(type(epath.Path("gs://bucket/x")), "exists", missing)
  with pytest.raises(ValueError, match=r"gs://bucket/x.*pip install gcsfs") as error:
    data.load("camvid", "gs://bucket/x", "train")
  assert "\n" not in str(error.value)


def test_a_damaged_record_is_named_and_the_others_are_read(both, tmp_path):
  copy = tmp_path / "copy"
  copy.mkdir()
  for file in both[1].iterdir():
    (copy / file.name).write_bytes(file.read_bytes())
  shard = sorted(copy.glob("folder-val.array_record-*"))[0]
  records = array_record_module.ArrayRecordReader(str(shard))
  record = records.read([0])[0]
  content = bytearray(shard.read_bytes())
  content[content.index(record[40:80])] ^= 1
  shard.write_bytes(content)
  assert writer.damaged(copy) == [shard.name] and writer.damaged(both[1]) == []
  source = data.load("folder", str(copy), "val")
  with pytest.raises(ValueError, match=r"copy, example 0 of val: cannot be read") as error:
    source[0]
  assert "\n" not in str(error.value)
  _assert_same(source[len(source) - 1], data.load("folder", str(both[0]), "val")[len(source) - 1])


def test_the_cityscapes_of_tfds_is_read_too(tmp_path):
  rng = np.random.default_rng(0)

  def png(pixels):
    Image.fromarray(pixels).save(tmp_path / "x.png")
    return (tmp_path / "x.png").read_bytes()

  features = tfds.features.FeaturesDict(
    {
      "image_id": tfds.features.Text(),
      "image_left": tfds.features.Image(shape=(20, 30, 3)),
      "segmentation_label": tfds.features.Image(shape=(20, 30, 1)),
    }
  )
  root = tmp_path / "cityscapes"
  root.mkdir()
  image, ids = rng.integers(0, 256, (20, 30, 3), np.uint8), rng.integers(0, 34, (20, 30), np.uint8)
  infos = []
  template = tfds.core.ShardedFileTemplate(
    data_dir=epath.Path(root), dataset_name="cityscapes", filetype_suffix="array_record"
  )
  for split in ("train", "validation"):
    file = root / f"cityscapes-{split}.array_record-00000-of-00001"
    writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
    (tmp_path / "image.png").write_bytes(png(image))
    (tmp_path / "ids.png").write_bytes(png(ids))
    writer.write(
      features.serialize_example(
        {
          "image_id": "ulm_000001_000019",
          "image_left": tmp_path / "image.png",
          "segmentation_label": tmp_path / "ids.png",
        }
      )
    )
    writer.close()
    infos.append(
      tfds.core.SplitInfo(
        name=split, shard_lengths=[1], num_bytes=1, filename_template=template.replace(split=split)
      )
    )
  tfds.folder_dataset.write_metadata(
    data_dir=root, features=features, split_infos=infos, filename_template=template, check_data=False
  )
  source = data.load("cityscapes", str(root), "trainval")
  assert len(source) == 2 and source.labelled and source[1]["name"] == "ulm_000001_000019"
  np.testing.assert_array_equal(source[1]["image"], image)
  train_ids = np.array([CASES["cityscapes"].train_ids[int(i)] for i in ids.ravel()]).reshape(ids.shape)
  np.testing.assert_array_equal(source[1]["label"], train_ids)
  with pytest.raises(ValueError, match=r"dataset\.name is 'ade20k'"):
    data.load("ade20k", str(root), "train")


@pytest.mark.skipif(not SHARED.is_dir(), reason="no folder of real images")
@pytest.mark.parametrize("encoding", writer.ENCODINGS)
@pytest.mark.parametrize(
  ("name", "folder", "split"),
  [
    ("cityscapes", "cityscapes_sample", "val"),
    ("ade20k", "ade20k_sample/ADEChallengeData2016", "train"),
    ("coco_stuff_10k", "coco_stuff_sample/10k", "train"),
    ("coco_stuff_164k", "coco_stuff_sample/164k", "train"),
  ],
)
def test_real_samples_are_the_same_raw_and_prepared(tmp_path, name, folder, split, encoding):
  pack(name, SHARED / "data" / folder, [split], tmp_path / "packed", encoding)
  raw, packed = (
    data.load(name, str(root), split) for root in (SHARED / "data" / folder, tmp_path / "packed")
  )
  for index in range(len(raw)):
    _assert_same(raw[index], packed[index])


@pytest.mark.run
@pytest.mark.parametrize("both", ["tiles"], indirect=True)
def test_threads_may_open_splits_at_the_same_time(both):
  # Without a common lock, TFDS's lazy imports deadlocked in a quarter of such processes.
  code = """
import os, sys, threading, time
from rc_jax import data

parts = [data.load("folder", sys.argv[1], split) for split in ("train", "val") for _ in range(3)]
sys.setswitchinterval(1e-5)
barrier = threading.Barrier(len(parts))

def read(part):
  barrier.wait()
  time.sleep(0.01 * parts.index(part))
  part[0]

threads = [threading.Thread(target=read, args=(part,), daemon=True) for part in parts]
for thread in threads:
  thread.start()
for thread in threads:
  thread.join(60)
print(sum(thread.is_alive() for thread in threads), flush=True)
os._exit(0)
"""
  finished = subprocess.run(
    [sys.executable, "-c", code, str(both[1])], cwd=ROOT, capture_output=True, text=True
  )
  assert finished.stdout == "0\n", finished.stderr


@pytest.mark.run
def test_nothing_imports_tensorflow(tmp_path):
  # The test environment has no TensorFlow; in another environment it must stay unused.
  write_raw(tmp_path / "raw", {"train": 2})
  code = f"""
import sys
import pathlib
from rc_jax import data
from rc_jax.data.prepared import writer
output = pathlib.Path({str(tmp_path / "packed")!r})
with writer.locked(output):
  shards = writer.plan({{"train": data.DATASETS["folder"].load({str(tmp_path / "raw")!r}, "train")}}, "tiles")
  writer.write(writer.begin(shards, output), output, 0, print)
  writer.finish(shards, output)
source = data.load("folder", str(output), "train")
print(len(source), source[1]["image"].shape, "tensorflow" in sys.modules)
"""
  finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert finished.returncode == 0 and finished.stdout.strip().endswith("False"), finished.stderr
  assert reader.is_prepared(str(tmp_path / "packed"))
