"""Merged, renamed and left-out classes: by the table of a folder, and by a file for the other data sets."""

import pickle

import numpy as np
import pytest
from PIL import Image

from rc_jax import data
from rc_jax.class_table import check_class_table, class_differences, table_defect, write_class_table
from rc_jax.data.datasets import cityscapes
from rc_jax.data.prepared import reader, writer
from rc_jax.data.reading.class_mapping import read_mapping
from rc_jax.predictions import submission
from rc_jax.predictions.folder import label_image
from tests.support import small_datasets

# The colour of the id 5 is that of its own line; the id 9 has the colour of its class.
MERGED = "id,name,color\n3,road,#804080\n0,sky,#0000ff\n5,road,#101010\n255,Ignore\n9,road,#804080\n7,car,\n"


def _save(root, ids, palette=None, split="train"):
  for kind, array in (("images", np.zeros((*ids.shape, 3), np.uint8)), ("labels", ids)):
    (root / kind / split).mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if kind == "labels" and palette is not None:
      image.putpalette(palette.tobytes())
    image.save(root / kind / split / "a.png")


def test_ids_of_one_name_are_one_class(tmp_path):
  (tmp_path / "classes.csv").write_text(MERGED)
  ids = np.array([[3, 0, 5, 255, 9, 7]], np.uint8)
  _save(tmp_path, ids)
  info = data.info("folder", str(tmp_path))
  assert info.class_names == ("road", "sky", "car") and info.label_ids.tolist() == [3, 0, 7]
  assert info.palette[:2].tolist() == [[128, 64, 128], [0, 0, 255]]
  assert data.load("folder", str(tmp_path), "train")[0]["label"].tolist() == [[0, 1, 0, 255, 0, 2]]
  assert info.merged_ids == {5: 0, 9: 0}
  (note,) = info.notes
  assert "the ids 3, 5, 9 are one class, 'road', which predictions have as 3" in note
  written = np.asarray(label_image(np.array([[0, 1, 2]]), info))
  assert written.tolist() == [[3, 0, 7]]


def test_palettes_of_merged_ids_are_those_of_their_lines_or_their_class(tmp_path):
  (tmp_path / "classes.csv").write_text(MERGED)
  ids = np.array([[3, 0, 5, 9]], np.uint8)
  palette = np.full((256, 3), 77, np.uint8)
  palette[[3, 0, 9]] = (128, 64, 128), (0, 0, 255), (128, 64, 128)
  for color in ((16, 16, 16), (128, 64, 128)):
    palette[5] = color
    _save(tmp_path, ids, palette)
    assert data.load("folder", str(tmp_path), "train")[0]["label"].tolist() == [[0, 1, 0, 0]]
  palette[5] = 0, 0, 255
  _save(tmp_path, ids, palette)
  with pytest.raises(ValueError, match=r"colour mask saved with a palette \(index 5 has the colour of id 0"):
    data.load("folder", str(tmp_path), "train")[0]


def _mapping_file(path, info, new_names):
  """Writes a table that gives some classes new names."""
  lines = [f"{name},{new_names.get(name, name)}" for name in info.class_names]
  path.write_text("\n".join(["class,name", *lines]) + "\n")
  return str(path)


VEHICLES = {"car": "vehicle", "truck": "vehicle", "bus": "vehicle", "sky": "IGNORE", "person": "human"}


def _expected(labels, info, new_names):
  """Maps train ids of a data set in a loop."""
  names = []
  for name in info.class_names:
    new = new_names.get(name, name)
    if new.lower() != "ignore" and new not in names:
      names.append(new)
  mapped = np.full(labels.shape, 255, np.uint8)
  for place in np.ndindex(labels.shape):
    if labels[place] != 255:
      new = new_names.get(info.class_names[labels[place]], info.class_names[labels[place]])
      mapped[place] = names.index(new) if new.lower() != "ignore" else 255
  return names, mapped


@pytest.mark.parametrize("prepared", [False, True])
def test_cityscapes_with_merged_renamed_and_left_out_classes(tmp_path, prepared):
  root = tmp_path / "raw"
  small_datasets.cityscapes(root)
  classes = _mapping_file(tmp_path / "vehicles.csv", cityscapes.INFO, VEHICLES)
  source = data.load("cityscapes", str(root), "train", classes=classes)
  names, label = _expected(data.load("cityscapes", str(root), "train")[0]["label"], cityscapes.INFO, VEHICLES)
  if prepared:
    output = tmp_path / "prepared"
    output.mkdir()
    shards = writer.begin(writer.plan({"train": source}, "tiles"), output)
    writer.write(shards, output, 0, lambda _: None)
    writer.finish(shards, output)
    # With the table, and without it: the prepared data hold their classes.
    source = data.load("cityscapes", str(output), "train", classes=classes)
    assert data.info("cityscapes", str(output)).table() == source.info.table()
    other = _mapping_file(tmp_path / "other.csv", cityscapes.INFO, {**VEHICLES, "bus": "ignore"})
    with pytest.raises(ValueError, match=r"was prepared with other classes .* prepare the raw data set"):
      data.load("cityscapes", str(output), "train", classes=other)
    plain = _mapping_file(tmp_path / "plain.csv", cityscapes.INFO, {})
    with pytest.raises(ValueError, match="was prepared with other classes"):
      data.info("cityscapes", str(output), plain)
  info = source.info
  assert list(info.class_names) == names and len(names) == 16
  np.testing.assert_array_equal(source[0]["label"], label)
  vehicle, human = names.index("vehicle"), names.index("human")
  assert info.label_ids[vehicle] == 26 and info.palette[vehicle].tolist() == [0, 0, 142]
  assert info.label_ids[human] == 24
  assert info.merged_ids == {27: vehicle, 28: vehicle}
  with pytest.raises(ValueError, match="the benchmark scores 19 classes, and the network has 16"):
    submission.find("cityscapes", "cityscapes", info)
  assert submission.find("cityscapes", "cityscapes", cityscapes.INFO)
  if not prepared:
    assert info.categories[vehicle] == "vehicle" and len(info.categories) == 16
    assert pickle.loads(pickle.dumps(source))[0]["label"].tolist() == label.tolist()


def test_raw_data_prepared_without_the_table_are_refused_with_it(tmp_path):
  small_datasets.cityscapes(tmp_path / "raw")
  output = tmp_path / "prepared"
  output.mkdir()
  shards = writer.begin(
    writer.plan({"val": data.load("cityscapes", str(tmp_path / "raw"), "val")}, "original"), output
  )
  writer.write(shards, output, 0, lambda _: None)
  writer.finish(shards, output)
  assert reader.is_prepared(str(output))
  classes = _mapping_file(tmp_path / "vehicles.csv", cityscapes.INFO, VEHICLES)
  with pytest.raises(
    ValueError, match=r"dataset\.classes=.*vehicles\.csv .*class 10: human .*into another"
  ) as error:
    data.load("cityscapes", str(output), "val", classes=classes)
  assert "\n" not in str(error.value)


def test_a_data_set_without_files(tmp_path):
  plain = data.load("synthetic", "", "val")
  new_names = {"pole": "thing", "sign": "thing", "sky": "ignore"}
  assert set(new_names) <= set(plain.info.class_names)
  classes = _mapping_file(tmp_path / "few.csv", plain.info, new_names)
  source = data.load("synthetic", "", "val", classes=classes)
  names, label = _expected(plain[3]["label"], plain.info, new_names)
  assert source.info.class_names == tuple(names) == data.info("synthetic", "", classes).class_names
  np.testing.assert_array_equal(source[3]["label"], label)
  np.testing.assert_array_equal(source[3]["image"], plain[3]["image"])
  assert len(source) == len(plain) and source[3]["name"] == plain[3]["name"]


def test_the_order_is_that_of_the_lines_and_groups_of_two_kinds_are_not_scored(tmp_path):
  names = list(cityscapes.INFO.class_names)[::-1]
  path = tmp_path / "classes.csv"
  path.write_text(
    "class;name\n" + "".join(f"{name};{'mix' if name in ('car', 'road') else name}\n" for name in names)
  )
  info = read_mapping(path, cityscapes.INFO).info
  assert info.class_names[0] == "bicycle" and info.class_names[-1] == "sidewalk" and info.num_classes == 18
  assert info.categories == () and info.label_ids[info.class_names.index("mix")] == 26
  # A renaming and another order change no id that is written: the benchmark can still score it.
  renamed = _mapping_file(tmp_path / "renamed.csv", cityscapes.INFO, {"car": "auto"})
  assert submission.find("cityscapes", "cityscapes", data.info("cityscapes", "", renamed))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda text: text.replace("class,name", "name,class"),
      "the first line is name,class, expected class,name",
    ),
    (
      lambda text: text.replace("car,vehicle", "cars,vehicle"),
      "line 15: cityscapes has no class 'cars': did you mean 'car'",
    ),
    (lambda text: text + "car,thing\n", "line 21: the class 'car' has line 15 already: remove one"),
    (
      lambda text: text.replace("sky,IGNORE\n", ""),
      r"lacks 1 of the 19 classes of cityscapes \(sky\): add a line",
    ),
    (lambda text: text.replace("road,road", "road"), "line 2: has 1 columns, expected 2"),
    (lambda text: text.replace("road,road", "road,a\x07b"), "line 2: the name .* control characters"),
    (
      lambda text: "class,name\n" + "".join(f"{n},ignore\n" for n in cityscapes.INFO.class_names),
      "makes 0 classes",
    ),
  ],
)
def test_wrong_tables_are_refused_in_one_line(tmp_path, change, message):
  path = tmp_path / "classes.csv"
  _mapping_file(path, cityscapes.INFO, VEHICLES)
  path.write_text(change(path.read_text()))
  with pytest.raises(ValueError, match=message) as error:
    data.info("cityscapes", "", str(path))
  assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_a_missing_table_and_a_data_set_with_its_own(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"none\.csv: this table of dataset\.classes does not exist"):
    data.info("cityscapes", "", str(tmp_path / "none.csv"))
  with pytest.raises(ValueError, match="states its classes in its folder"):
    data.info("folder", "", str(tmp_path / "none.csv"))


def test_a_run_refuses_other_merged_classes(tmp_path):
  """Also where names and written ids are equal: a class that was left out is now part of another."""
  tables = {}
  for name, new in (("out", {"truck": "ignore"}), ("in", {"truck": "car"})):
    classes = _mapping_file(tmp_path / f"{name}.csv", cityscapes.INFO, new)
    tables[name] = data.info("cityscapes", "", classes).table()
  assert tables["out"]["class_names"] == tables["in"]["class_names"]
  assert tables["out"]["label_ids"] == tables["in"]["label_ids"]
  assert class_differences(tables["in"], tables["out"]) == [
    "class 13: car (id 26 with 27), there car (id 26)"
  ]
  write_class_table(tmp_path, tables["in"])
  check_class_table(tmp_path, tables["in"])
  with pytest.raises(ValueError, match=r"class 13: car \(id 26\), there car \(id 26 with 27\)"):
    check_class_table(tmp_path, tables["out"])
  assert (
    table_defect({**tables["in"], "merged_ids": {"27": 99}}) == "merged_ids is no map from ids to classes"
  )
  assert data.class_facts(data.info("cityscapes", "", str(tmp_path / "in.csv")))["class of the id 27"] == 13
