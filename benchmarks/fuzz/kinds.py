"""The kinds of files that are damaged: undamaged ones, how the product reads them, and the other right readings."""

import dataclasses
import functools
import io
import json
import pathlib
import types
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.fuzz import independent, mutations
from benchmarks.fuzz.mutations import Mutation
from tests.support import image_bytes, small_datasets

Reading = Callable[[pathlib.Path, str], Any]


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of files.

  Attributes:
    make: writes undamaged files into a folder.
    targets: patterns of the files in it that are damaged, one at a time. Each call of ``make`` gives the same names.
    read: (folder, name of the damaged file) -> what the product makes of it.
    mutations: ways to damage this format, beside the general ones.
    other_readings: (folder, name, reading of the undamaged file) -> readings that are right beside that one. It may
      raise any error.
    tolerance: largest difference of equal pixels: decoders of JPEG round differently.
    writes: whether reading writes to the folder.
  """

  make: Callable[[pathlib.Path], None]
  targets: tuple[str, ...]
  read: Reading
  mutations: tuple[Mutation, ...] = ()
  other_readings: Callable[[pathlib.Path, str, Any], Iterator[Any]] = lambda folder, name, undamaged: iter(())
  tolerance: int = 0
  writes: bool = False


RNG_SEED = 3
SIZE = (20, 28)


def _photo() -> np.ndarray:
  rng = np.random.default_rng(RNG_SEED)
  return np.kron(rng.integers(0, 256, (5, 7, 3)), np.ones((4, 4, 1), int)).astype(np.uint8)


def _ids(most: int = 4) -> np.ndarray:
  return np.kron(np.random.default_rng(RNG_SEED).integers(0, most, (5, 7)), np.ones((4, 4), int)).astype(
    np.uint8
  )


# Any id is one of a class or ignored, so that no wrong id hides a wrong decoding.
TRAIN_IDS = {own_id: own_id % 251 for own_id in range(1 << 16)}


@functools.cache
def _info() -> Any:
  from rc_jax.data import DatasetInfo

  names = tuple(f"class {index}" for index in range(251))
  return DatasetInfo(
    "any", names, np.zeros((251, 3), np.uint8), np.arange(251), made_up_colors=frozenset(range(251))
  )


def _read_picture(folder: pathlib.Path, name: str) -> Any:
  from rc_jax.data.reading.decode import exif_orientation, read_image, read_label
  from rc_jax.predictions.images import displayed_size

  path = folder / name
  if name.startswith("label"):
    return read_label(path, TRAIN_IDS, _info())
  # Reading the header alone gives a result for any file.
  displayed_size(path)
  exif_orientation(path.read_bytes())
  return read_image(path)


def _other_pictures(folder: pathlib.Path, name: str, undamaged: Any) -> Iterator[Any]:
  content = (folder / name).read_bytes()
  if not name.startswith("label"):
    yield from independent.image(content)
    return
  arrays = independent.mat_ids(content) if name.endswith(".mat") else independent.indices(content)
  for ids in arrays:
    if ((ids >= 0) & (ids < 1 << 16)).all():
      yield (ids.astype(np.int64) % 251).astype(np.uint8)


def _save(folder: pathlib.Path, name: str, pixels: np.ndarray, mode: str = "", **options: Any) -> None:
  from PIL import Image

  image = Image.fromarray(pixels)
  (image.convert(mode) if mode else image).save(folder / name, **options)


def _turned() -> Any:
  from PIL import Image

  exif = Image.Exif()
  exif[0x0112] = 6
  return exif


def _make_png(folder: pathlib.Path) -> None:
  from PIL import Image

  _save(folder, "image_rgb.png", _photo())
  _save(folder, "image_grey.png", _photo()[..., 0])
  _save(folder, "image_turned.png", _photo(), exif=_turned())
  _save(folder, "image_colors.png", _photo(), "P")
  grey = _photo()[..., 0].astype(int) * 257
  (folder / "image_16.png").write_bytes(image_bytes.png(grey, 16))
  _save(folder, "label.png", _ids())
  _save(folder, "label_turned.png", _ids(), exif=_turned())
  for bits in (1, 4, 16):
    ids = _ids(2 if bits == 1 else 9)
    (folder / f"label_{bits}.png").write_bytes(image_bytes.png(ids, bits))
  indexed = Image.fromarray(_ids())
  indexed.putpalette([128, 64, 128, 0, 0, 142, 70, 70, 70, 0, 130, 180])
  indexed.save(folder / "label_palette.png")


def _make_jpeg(folder: pathlib.Path) -> None:
  _save(folder, "image_rgb.jpg", _photo(), quality=90)
  _save(folder, "image_grey.jpg", _photo()[..., 0])
  _save(folder, "image_progressive.jpg", _photo(), progressive=True)
  _save(folder, "image_turned.jpg", _photo(), exif=_turned())
  _save(folder, "image_restart.jpg", _photo(), subsampling=0, restart_marker_blocks=2)


def _make_tiff(folder: pathlib.Path) -> None:
  _save(folder, "image_raw.tif", _photo())
  _save(folder, "image_lzw.tif", _photo(), compression="tiff_lzw")
  _save(folder, "image_jpeg.tif", _photo(), compression="jpeg")
  _save(folder, "label_raw.tif", _ids())
  _save(folder, "label_deflate.tif", _ids(), compression="tiff_adobe_deflate")
  _save(folder, "label_packed.tif", _ids(), compression="packbits")
  (folder / "label_16.tif").write_bytes(image_bytes.tiff(_ids(9), 16))


def _make_mat(folder: pathlib.Path) -> None:
  import scipy.io

  small_datasets.save_mat(folder / "label_double.mat", _ids())
  scipy.io.savemat(folder / "label_bytes.mat", {"S": _ids()})
  scipy.io.savemat(folder / "label_deflated.mat", {"S": _ids(), "names": ["a", "b"]}, do_compression=True)


# Weights.


def _arrays() -> dict[str, np.ndarray]:
  rng = np.random.default_rng(RNG_SEED)
  shapes = {"layer.weight": (4, 3, 2, 2), "layer.bias": (4,), "norm.weight": (4,), "norm.running_var": (4,)}
  return {name: np.abs(rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}


@functools.cache
def _network() -> tuple[Any, Any]:
  """Returns arrays of a network like ``_arrays``, and the config of a model."""
  import jax.numpy as jnp

  from rc_jax.config import defaults
  from rc_jax.models import Variables

  model = defaults().model
  model.pretrained_part = "all"
  params = {
    "layer": {"kernel": jnp.zeros((2, 2, 3, 4)), "bias": jnp.zeros(4)},
    "norm": {"scale": jnp.zeros(4)},
  }
  return Variables(params, {"norm": {"var": jnp.zeros(4)}}), model


def _read_weights(folder: pathlib.Path, name: str) -> Any:
  from rc_jax.weights import file_formats, pretrained

  arrays = file_formats.read(str(folder / name))
  try:
    pretrained.load(str(folder / name), *_network())
  except ValueError as error:
    # Whatever is wrong with the arrays of a readable file is an error of our own, and so is the reading right.
    refuse_unclear(error, folder)
  return arrays


def refuse_unclear(error: Exception, folder: pathlib.Path) -> None:
  """Raises an error again that is not one line of the product that names a file."""
  from benchmarks.fuzz.checks import unclear

  if unclear(error, folder):
    raise error


def _make_npz(folder: pathlib.Path) -> None:
  np.savez(folder / "weights.npz", **_arrays())
  np.savez_compressed(folder / "deflated.npz", **_arrays())


def _make_safetensors(folder: pathlib.Path) -> None:
  import safetensors.numpy

  safetensors.numpy.save_file(_arrays(), folder / "weights.safetensors", {"format": "pt"})


def _make_pth(folder: pathlib.Path) -> None:
  import torch

  tensors = {name: torch.tensor(array) for name, array in _arrays().items()}
  optimizer = {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}
  saved = {"state_dict": tensors, "epoch": 3, "optimizer": optimizer, "name": "x"}
  torch.save(saved, folder / "checkpoint.pth")
  torch.save(tensors, folder / "earlier.pth", _use_new_zipfile_serialization=False)
  torch.save(torch.nn.Linear(2, 2), folder / "module.pth")


def _other_weights(folder: pathlib.Path, name: str, undamaged: Any) -> Iterator[Any]:
  path = folder / name
  if name.endswith(".safetensors"):
    yield independent.safetensors(path.read_bytes())
  elif name.endswith(".npz"):
    with np.load(path, allow_pickle=False) as loaded:
      yield dict(loaded)
  else:
    yield independent.torch_arrays(path)


# Tables and records.


def _make_classes_csv(folder: pathlib.Path) -> None:
  (folder / "classes.csv").write_text(small_datasets.CLASSES)
  (folder / "plain.csv").write_text('id,name\r\n7,"road, wet"\r\n9,sky\r\n300,Ignore\r\n2,void\r\n')


def _read_classes_csv(folder: pathlib.Path, name: str) -> Any:
  from rc_jax.data.datasets.folder import read_classes

  info, train_ids = read_classes(folder / name)
  ignored = [own_id for own_id, train_id in train_ids.items() if train_id == info.ignore_label]
  return info.label_ids.tolist(), list(info.class_names), ignored


def _other_classes(folder: pathlib.Path, name: str, undamaged: Any) -> Iterator[Any]:
  lines = independent.class_lines((folder / name).read_bytes())
  classes = [line for line in lines if line[1].casefold() != "ignore"]
  ignored = [int(line[0]) for line in lines if line[1].casefold() == "ignore"]
  yield [int(line[0]) for line in classes], [line[1] for line in classes], ignored


def _table() -> dict[str, Any]:
  from rc_jax.data.datasets import camvid

  return camvid.INFO.table()


def _make_classes_json(folder: pathlib.Path) -> None:
  from rc_jax.class_table import write_class_table

  write_class_table(folder, _table())


def _read_classes_json(folder: pathlib.Path, name: str) -> Any:
  from rc_jax.class_table import check_class_table

  check_class_table(folder, _table())
  return "the classes agree"


def _config() -> Any:
  from rc_jax.config import as_dict, defaults

  config = defaults()
  config.dataset.name = "camvid"
  return as_dict(config)


def _make_config(folder: pathlib.Path) -> None:
  (folder / "config.json").write_text(json.dumps(_config(), indent=2) + "\n")


def _read_config(folder: pathlib.Path, name: str) -> Any:
  from rc_jax import files
  from rc_jax.config import defaults
  from rc_jax.modes import train

  config = defaults()
  config.dataset.name = "camvid"
  train.refuse_other_run(config, folder)
  return files.read_json_object(folder / name, lambda: "delete the file")


def _other_json(folder: pathlib.Path, name: str, undamaged: Any) -> Iterator[Any]:
  yield json.loads((folder / name).read_bytes())


@functools.cache
def _run() -> Any:
  from tests.support.example_runs import make_run

  return make_run(num_classes=3, lines=4)


def _make_metrics(folder: pathlib.Path) -> None:
  lines = [{"protocol": "as now", **line} if "split" in line else line for line in _run().lines]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _read_metrics(folder: pathlib.Path, name: str) -> Any:
  from rc_jax.drawing.report.run_page import run_page
  from rc_jax.modes.report import ages
  from rc_jax.training import run_log

  lines = run_log.read_metrics(folder)
  run_log.read_scores(folder, "val", "as now")
  run_log.notes_on_protocols(folder, "val", "as now")
  run = dataclasses.replace(
    _run(), pictures=(), lines=lines, ages=ages(lines, _run().info.class_names, _run().config)
  )
  run_page(run)
  return lines


def _other_lines(folder: pathlib.Path, name: str, undamaged: Any) -> Iterator[Any]:
  """A kill may have cut the last line, which is left out."""
  lines = independent.json_lines((folder / name).read_bytes())
  yield from (lines, lines[:-1])


# Data sets that --mode=prepare packs.


def _make_raw(folder: pathlib.Path) -> None:
  small_datasets.folder(folder / "raw")


def _shards(folder: pathlib.Path) -> Any:
  from rc_jax.data.datasets import folder as dataset
  from rc_jax.data.prepared import writer

  return writer.plan({"train": dataset.load(str(folder / "raw"), "train")}, "tiles")


def _make_prepared(folder: pathlib.Path) -> None:
  from rc_jax.data.prepared import writer

  _make_raw(folder)
  output = folder / "packed"
  output.mkdir()
  shards = _shards(folder)
  writer.write(writer.begin(shards, output), output, 0, lambda count: None)
  writer.finish(shards, output)


def _read_prepared(folder: pathlib.Path, name: str) -> Any:
  from absl import flags

  from rc_jax.data import DATASETS
  from rc_jax.data.prepared import reader

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  split = reader.load("folder", DATASETS["folder"], str(folder / "packed"), "train")
  examples = [dict(split[index]) for index in range(len(split))]
  return examples, split.info.table()


def _other_prepared(folder: pathlib.Path, name: str, undamaged: Any) -> Iterator[Any]:
  """The index states the classes; the examples are those of the shards in any case."""
  if name.endswith("prepared.json"):
    index = json.loads((folder / name).read_bytes())
    examples, table = undamaged
    yield examples, {key: index[key] for key in table}


def _make_tiles(folder: pathlib.Path) -> None:
  from rc_jax.data.prepared import tiles

  (folder / "image.tiles").write_bytes(tiles.encode(_photo(), side=16))
  (folder / "label.tiles").write_bytes(tiles.encode(_ids(), side=16))


def _read_tiles(folder: pathlib.Path, name: str) -> Any:
  from rc_jax.data.prepared import tiles

  # A record has a checksum: such damage is one that was written.
  return np.asarray(tiles.TiledArray((folder / name).read_bytes(), str(folder / name)))


def _other_tiles(folder: pathlib.Path, name: str, undamaged: Any) -> Iterator[Any]:
  yield independent.tile_pixels((folder / name).read_bytes())


def _make_plan(folder: pathlib.Path) -> None:
  from rc_jax.data.prepared import writer

  _make_raw(folder)
  (folder / "packed").mkdir()
  writer.begin(_shards(folder), folder / "packed")


def _read_plan(folder: pathlib.Path, name: str) -> Any:
  from rc_jax.data.prepared import writer

  return [shard.file for shard in writer.begin(_shards(folder), folder / "packed")]


# Folders of runs and predictions.


def _settings() -> dict[str, Any]:
  from rc_jax.data.datasets import camvid
  from rc_jax.predictions.folder import settings_of

  return settings_of(_config(), "0123", pathlib.Path("runs/a/checkpoints/7"), 7, camvid.INFO)


NAMES = ("a", "b/c", "d")


def _fingerprint(name: str) -> Any:
  from rc_jax.predictions.folder import Fingerprint

  return Fingerprint(f"images/{name}.png", 100, 2, 3, "00ff")


def _make_predictions(folder: pathlib.Path) -> None:
  from rc_jax.predictions.folder import PredictionFolder

  done = PredictionFolder(folder, _settings(), overwrite=False, process=0, remedy="name another folder")
  for name in NAMES:
    done.mark_done(name, _fingerprint(name))


def _read_predictions(folder: pathlib.Path, name: str) -> Any:
  from rc_jax.predictions.folder import PredictionFolder

  done = PredictionFolder(folder, _settings(), overwrite=False, process=1, remedy="name another folder")
  return [done.is_done(image, _fingerprint(image), {}) for image in NAMES]


def _other_predictions(folder: pathlib.Path, name: str, undamaged: Any) -> Iterator[Any]:
  """An image is done where the last line of its name says so; earlier versions wrote no digest and no ``changed``."""
  if name.startswith("done"):
    lines = [line for line in independent.json_lines((folder / name).read_bytes()) if isinstance(line, dict)]
    complete = [line for line in lines if {"name", "source", "bytes", "modified"} <= line.keys()]
    last = {line["name"]: line for line in complete if isinstance(line["name"], str)}
    yield [image in last and _is_of(last[image], dataclasses.asdict(_fingerprint(image))) for image in NAMES]


def _is_of(line: dict[str, Any], image: dict[str, Any]) -> bool:
  if line.get("digest") == image["digest"]:
    return bool(line["bytes"] == image["bytes"])
  return all(
    line.get(field, image[field]) == image[field] for field in ("source", "bytes", "modified", "changed")
  )


def _make_scores(folder: pathlib.Path) -> None:
  from rc_jax.evaluation import metrics
  from rc_jax.evaluation.evaluator import Counts
  from rc_jax.evaluation.results import write_results

  confusions = np.random.default_rng(RNG_SEED).integers(1, 9, (2, 3, 3))
  hits = np.einsum("inn->in", confusions)
  counts = Counts(
    names=["a", "b"],
    confusion=confusions.sum(0),
    true_positives=hits,
    false_positives=confusions.sum(1) - hits,
    false_negatives=confusions.sum(2) - hits,
    cross_entropy=np.array([0.5, 2.0]),
  )
  ious = metrics.class_ious(hits.sum(0), counts.false_positives.sum(0), counts.false_negatives.sum(0), "zero")
  results: Any = {
    **{"split": "val", "miou": float(np.mean(ious)), "pixel_accuracy": 0.5, "mean_accuracy": 0.5},
    **{
      "iou": dict(zip("xyz", ious.tolist(), strict=True)),
      "absent_class": "zero",
      "images": 2,
      "scales": [1.0],
    },
    **{
      "flip": False,
      "crop_size": [],
      "stride": [],
      "pad_to_grid": True,
      "accuracy": dict.fromkeys("xyz", 0.5),
    },
  }
  write_results(folder, results, counts, 7)


def _read_scores(folder: pathlib.Path, name: str) -> Any:
  from rc_jax.evaluation.protocol import protocol_text
  from rc_jax.evaluation.results import read_result
  from rc_jax.modes import report

  result = read_result(folder / "eval" / "val.json")
  scores, confusion, notes = report.read_evaluation(folder, "val")
  assert scores is not None
  left_out = confusion is None and len(notes) == 1
  values = result.names, result.counts, result.scores["iou"], protocol_text(scores)
  return values, "left out" if left_out else confusion


def _other_scores(folder: pathlib.Path, name: str, undamaged: Any) -> Iterator[Any]:
  from rc_jax.evaluation.protocol import protocol_text

  scores = json.loads((folder / "eval" / "val.json").read_bytes())
  (names, counts, ious, _), confusion = undamaged
  if name.endswith(".npz"):
    with np.load(folder / name, allow_pickle=False) as arrays:
      names = arrays["names"].tolist()
  # The last digits of a float are no other score.
  if scores["iou"].keys() == ious.keys() and np.allclose(list(scores["iou"].values()), list(ious.values())):
    yield (names, counts, scores["iou"], protocol_text(scores)), confusion
  if name.endswith("confusion.npy"):
    yield undamaged[0], "left out"


_SUBMITTED = "ADE_test_00000001"


def _make_submission(folder: pathlib.Path) -> None:
  from rc_jax.data.datasets import ade20k
  from rc_jax.predictions.folder import label_image

  label_image(_ids(), ade20k.INFO).save(folder / f"{_SUBMITTED}.png")


def _read_submission(folder: pathlib.Path, name: str) -> Any:
  from PIL import Image

  from rc_jax.data.datasets import ade20k
  from rc_jax.predictions import submission

  file_format = submission.find("ade20k", "ade20k")
  expected = submission.expected_files(file_format, [(_SUBMITTED, SIZE)])
  target = folder / "zip"
  submission.write(file_format, expected, folder, ade20k.INFO, target)
  with zipfile.ZipFile(target) as archive:
    (entry,) = archive.namelist()
    return np.asarray(Image.open(io.BytesIO(archive.read(entry))))


def _other_submission(folder: pathlib.Path, name: str, undamaged: Any) -> Iterator[Any]:
  for ids in independent.indices((folder / name).read_bytes()):
    yield ids.astype(np.uint8)


def _make_checkpoint(folder: pathlib.Path) -> None:
  from rc_jax.weights import checkpoint
  from tests.support.train_states import small_state

  with checkpoint.Checkpoints(folder, keep=2) as checkpoints:
    for step in (4, 8):
      checkpoints.save(small_state(step, seed=step), {"next_batch": step})


def _read_checkpoint(folder: pathlib.Path, name: str) -> Any:
  import jax

  from rc_jax.weights import checkpoint
  from tests.support.train_states import small_state

  template = small_state(0)
  model = checkpoint.restore_model(folder, template.params, template.batch_stats)
  return model.step, [np.asarray(leaf) for leaf in jax.tree.leaves((model.params, model.batch_stats))]


# Not the arrays in folders ``d``: Orbax gives their files random names, which neither a seed nor a saved failure finds.
_CHECKPOINT_FILES = (
  *("checkpoints/8/*", "checkpoints/8/*/*", "checkpoints/8/*/array_metadatas/*"),
  "checkpoints/8/*/ocdbt.process_0/manifest.ocdbt",
)


def _make_split_list(folder: pathlib.Path) -> None:
  small_datasets.coco_stuff_10k(folder / "raw")


def _read_split_list(folder: pathlib.Path, name: str) -> Any:
  from rc_jax.data.datasets.coco_stuff import load_10k

  return sorted(path.stem for path in load_10k(str(folder / "raw"), "train").images)


def _other_split_list(folder: pathlib.Path, name: str, undamaged: Any) -> Iterator[Any]:
  yield sorted(set(independent.unicode_text((folder / name).read_bytes()).split()))


_WEIGHTS = types.MappingProxyType({"read": _read_weights, "other_readings": _other_weights})
KINDS: dict[str, Kind] = {
  "png": Kind(_make_png, ("*.png",), _read_picture, (mutations.png_chunk,), _other_pictures),
  "jpeg": Kind(_make_jpeg, ("*.jpg",), _read_picture, (), _other_pictures, tolerance=4),
  "tiff": Kind(_make_tiff, ("*.tif",), _read_picture, (mutations.tiff_entry,), _other_pictures, tolerance=4),
  "mat": Kind(_make_mat, ("*.mat",), _read_picture, (mutations.mat_element,), _other_pictures),
  "npz": Kind(_make_npz, ("*.npz",), mutations=(mutations.zip_member, mutations.npy_header), **_WEIGHTS),
  "safetensors": Kind(
    _make_safetensors, ("*.safetensors",), mutations=(mutations.safetensors_header,), **_WEIGHTS
  ),
  "pth": Kind(
    _make_pth, ("*.pth",), mutations=(mutations.zip_member, *(mutations.pickle_opcodes,) * 2), **_WEIGHTS
  ),
  "classes_csv": Kind(_make_classes_csv, ("*.csv",), _read_classes_csv, mutations.TEXT, _other_classes),
  "classes_json": Kind(_make_classes_json, ("*.json",), _read_classes_json, mutations.JSON),
  "config": Kind(_make_config, ("config.json",), _read_config, mutations.JSON, _other_json),
  "metrics": Kind(_make_metrics, ("metrics.jsonl",), _read_metrics, mutations.JSON, _other_lines),
  "scores": Kind(
    _make_scores,
    ("eval/val.json", "eval/val_images.npz", "eval/val_confusion.npy"),
    _read_scores,
    (*mutations.JSON, mutations.zip_member),
    _other_scores,
  ),
  "prepared": Kind(_make_prepared, ("packed/*",), _read_prepared, mutations.JSON, _other_prepared),
  "tiles": Kind(_make_tiles, ("*.tiles",), _read_tiles, (), _other_tiles),
  "plan": Kind(_make_plan, ("packed/*.json",), _read_plan, mutations.JSON, writes=True),
  "predictions": Kind(
    _make_predictions,
    ("predictions.json", "done_0.jsonl"),
    _read_predictions,
    mutations.JSON,
    _other_predictions,
    writes=True,
  ),
  "submission": Kind(
    _make_submission, ("*.png",), _read_submission, (mutations.png_chunk,), _other_submission, writes=True
  ),
  "checkpoint": Kind(_make_checkpoint, _CHECKPOINT_FILES, _read_checkpoint, mutations.JSON),
  "split_list": Kind(
    _make_split_list, ("raw/imageLists/train.txt",), _read_split_list, mutations.TEXT, _other_split_list
  ),
}
