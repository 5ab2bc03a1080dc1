"""Labels images of any size for people and for test servers: ``--mode=predict``.

``<output>/labels/<name>.png`` holds the data set's own ids, with the classes' colours as its palette, at the size of
the image as it is displayed; ``overlays/<name>.jpg`` is for the eye; ``probabilities/<name>.npz`` comes when asked for.
Each file is written whole or not at all, and a run that was killed goes on where it was.
"""

import collections
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from rc_jax import data, distributed, models, sharding
from rc_jax.config import Config, as_dict, height_width
from rc_jax.console import Progress, duration, say
from rc_jax.drawing import prediction
from rc_jax.fields import Flag
from rc_jax.inference import batched
from rc_jax.inference.predictor import labels_and_probabilities
from rc_jax.modes import CHECKPOINT, CONFIG, WORKDIR
from rc_jax.predictions import submission
from rc_jax.predictions.folder import PredictionFolder, label_image, settings_of
from rc_jax.predictions.images import Picture, by_size, from_path, from_source, read_ahead
from rc_jax.weights import restore

FLAGS = (
  *(CONFIG, WORKDIR, CHECKPOINT, *distributed.FLAGS),
  Flag("images", None, "An image or a folder of images. Default: the images of eval.split."),
  Flag("output", None, "Folder to write. Default: predictions in --workdir."),
  Flag("recursive", False, "Also labels the images in the folders below --images."),
  Flag("overwrite", False, "Labels all images again."),
  Flag("overlays", True, "Also writes pictures with class colours and a legend."),
  Flag("probabilities", False, "Also writes class probabilities, as NPZ of uint8 [N,H,W] in units of 1/255."),
  Flag("format", "", "Also writes a checked zip for a test server: cityscapes, ade20k or coco_stuff."),
)


SOME_UNREADABLE = 1  # the exit status when images could not be read
JPEG_QUALITY = 92
LONG_COMPILING = 30  # seconds of compiling that a user is told of

Labeller = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]
# An image with its train ids uint8 [H,W], and the classes' probabilities uint8 [N,H,W] of 255ths where asked for.
Labelled = tuple[Picture, np.ndarray, np.ndarray, np.ndarray | None]


def run(
  config: Config,
  workdir: pathlib.Path,
  checkpoint: pathlib.Path | None = None,
  images: pathlib.Path | None = None,
  *,
  output: pathlib.Path | None = None,
  recursive: bool = False,
  overwrite: bool = False,
  overlays: bool = True,
  probabilities: bool = False,
  format: str = "",
) -> int:
  """Labels images with a checkpoint's network.

  Args:
    config: a validated config.
    workdir: where the newest checkpoint is looked for.
    checkpoint: as for ``restore.locate``; None: the newest of ``workdir``.
    images: an image or a folder of images; None: the images of ``config.eval.split``.
    output: where predictions go; None: ``workdir/predictions``.
    recursive: also label the images in the folders of ``images``.
    overwrite: label all images again, also where other settings labelled them.
    overlays: also write pictures with a legend.
    probabilities: also write each class's probabilities, ``probabilities uint8 [N,H,W]`` of 255ths.
    format: a name of ``submission.FORMATS``: also write ``<output>/<format>_<split or folder>.zip``, checked.

  Returns:
    The exit status: 0, or 1 where images could not be read. These are named, and all others are labelled.

  Raises:
    FileNotFoundError: no checkpoint, no data, or no images.
    ValueError: the checkpoint holds another network, the folder holds predictions of other settings, or a submission
      would be refused.
  """
  info = data.info(config.dataset.name, config.dataset.root)
  form = submission.find(format, config.dataset.name) if format else None
  output = (output or workdir / "predictions").resolve()
  network = models.build(config.model, info.num_classes)
  path = restore.locate(workdir, checkpoint)
  restored = restore.restore(network, config, path)
  if images is None:
    wanted = from_source(
      data.load(config.dataset.name, config.dataset.root, config.eval.split, labels=False), config.eval.split
    )
  else:
    wanted = from_path(images.resolve(), recursive, output)
  # Before hours are spent on what no server takes.
  expected = submission.expected_files(form, ((p.name, p.size) for p in wanted)) if form else {}

  weights = sharding.local_copy((restored.params, restored.batch_stats))
  folder = PredictionFolder(
    output,
    settings_of(as_dict(config), weights, restore.origin(path), restored.step),
    overwrite=overwrite,
    process=jax.process_index(),
    remedy="--output=DIR for another folder",
  )
  _wait_for_all("the folder is open")
  suffixes = {"labels": ".png"}
  if overlays:
    suffixes["overlays"] = ".jpg"
  if probabilities:
    suffixes["probabilities"] = ".npz"
  left = [picture for picture in wanted if not folder.is_done(picture.name, picture.stamp, suffixes)]
  if len(left) < len(wanted):
    say(f"{len(wanted) - len(left)} of {len(wanted)} images are labelled already")

  unreadable = _label_all(config, network, weights, wanted, left, folder, info, suffixes)
  for error in unreadable:
    print(f"not labelled: {error}", file=sys.stderr, flush=True)
  lost = _total(len(unreadable))  # also waits until all processes are done
  if lost and jax.process_index() == 0:
    print(f"{lost} of {len(wanted)} images could not be read", file=sys.stderr, flush=True)
  if form is not None and lost:
    raise ValueError(
      f"--format={format}: no submission was written, as {lost} of {len(wanted)} images could not be read: copy or "
      "download them again, and start again"
    )
  if form is not None and jax.process_index() == 0:
    target = output / f"{format}_{images.stem if images else config.eval.split}.zip"
    submission.write(form, expected, output / "labels", info, target)
    size = target.stat().st_size / 1e6
    say(f"{target}: {len(expected)} label images, {size:.1f} MB, checked: names, sizes, mode and ids")
  say(f"labels (ids of {info.name}){' and overlays' if overlays else ''} are in {output}")
  return SOME_UNREADABLE if lost else 0


def _label_all(
  config: Config,
  network: models.Network,
  weights: tuple[Any, Any],
  wanted: Sequence[Picture],
  left: Sequence[Picture],
  folder: PredictionFolder,
  info: data.DatasetInfo,
  suffixes: dict[str, str],
) -> list[ValueError]:
  """Labels the pictures that are left; returns the errors of those that cannot be read."""
  if not left:
    return []
  mine = by_size(left)[jax.process_index() :: jax.process_count()]
  progress = Progress("labelling", len(left), unit="images")
  unreadable: list[ValueError] = []

  def readable() -> Iterator[tuple[Picture, np.ndarray]]:
    for picture, image in read_ahead(mine, config.data.threads):
      if isinstance(image, ValueError):
        unreadable.append(image)
        progress.advance(jax.process_count())
      else:
        yield picture, image

  probabilities, images = "probabilities" in suffixes, _counted(len(left), "image")
  if config.eval.crop_size:
    height, width = height_width(config.eval.crop_size)
    say(f"labelling {images} by windows of {height} x {width}")
    labelled = _by_windows(network, config, weights, probabilities, readable())
  else:
    sizes = len({picture.size for picture in left if picture.size})
    say(f"labelling {images} of {_counted(sizes, 'size')}; each size compiles a program")
    # Of all pictures, not of those left: a resumed run computes in the same batches' shape.
    counts = collections.Counter(picture.size for picture in wanted)
    label = _make_labeller(network, config, weights, probabilities, sizes)
    labelled = _by_size(label, counts, config.eval.batch_size, readable())

  with ThreadPoolExecutor(config.data.threads) as pool:
    writing: collections.deque[Future] = collections.deque()
    for picture, image, labels, probability_maps in labelled:
      writing.append(pool.submit(_write, folder, picture, image, labels, probability_maps, info, suffixes))
      # Few wait to be written: each holds an image, and with probabilities N times that.
      while len(writing) > 2 * config.data.threads:
        writing.popleft().result()
      progress.advance(jax.process_count())
    for future in writing:
      future.result()
  progress.close()
  return unreadable


def _by_windows(
  network: models.Network,
  config: Config,
  weights: tuple[Any, Any],
  probabilities: bool,
  read: Iterator[tuple[Picture, np.ndarray]],
) -> Iterator[Labelled]:
  """Labels by the programs that scores are made with: images of a thousand sizes compile the network once."""
  images = batched.ImageSet(network, config.eval)
  examples = ({"image": image, "picture": picture} for picture, image in read)
  for example, labels, probability_maps in images.labels(*weights, examples, probabilities):
    yield example["picture"], example["image"], labels, probability_maps


def _by_size(
  label: Labeller,
  counts: Mapping[tuple[int, int] | None, int],
  batch_size: int,
  read: Iterator[tuple[Picture, np.ndarray]],
) -> Iterator[Labelled]:
  """Labels whole images, neighbours of one size together; ``counts``: how many there are of each size."""
  devices = sharding.local_mesh().devices.size

  def rows(picture: Picture) -> int:
    return min(batch_size * devices, -(-counts[picture.size] // devices) * devices)

  def labelled(group: list[tuple[Picture, np.ndarray]]) -> Iterator[Labelled]:
    images = np.stack([image for _, image in group])
    # Short groups are filled up: a batch size of its own would be a program of its own.
    padding = np.broadcast_to(images[:1], (rows(group[0][0]) - len(group), *images.shape[1:]))
    labels, probabilities = label(np.concatenate([images, padding]))
    for row, (picture, image) in enumerate(group):
      yield picture, image, labels[row], None if probabilities is None else probabilities[row]

  group: list[tuple[Picture, np.ndarray]] = []
  for picture, image in read:
    if group and (image.shape != group[0][1].shape or rows(picture) != rows(group[0][0])):
      yield from labelled(group)
      group = []
    group.append((picture, image))
    if len(group) == rows(picture):
      yield from labelled(group)
      group = []
  if group:
    yield from labelled(group)


def _make_labeller(
  network: models.Network, config: Config, weights: tuple[Any, Any], probabilities: bool, sizes: int
) -> Labeller:
  """Returns a function from images ``[B,H,W,3]``, spread over this process's devices, to labels and 255ths."""
  mesh = sharding.local_mesh()
  spread, whole = sharding.batch_sharding(mesh), sharding.replicated_sharding(mesh)
  predict = labels_and_probabilities(network, config.eval, probabilities)

  def compute(params: Any, batch_stats: Any, images: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    labels, probabilities = predict(params, batch_stats, images)
    if probabilities is None:
      return labels, None
    return labels, jnp.round(255 * probabilities.transpose(0, 3, 1, 2)).astype(jnp.uint8)

  jitted = jax.jit(compute, in_shardings=(whole, whole, spread), out_shardings=spread)
  # Images come ordered by size: one program at a time, so that a thousand sizes do not fill the memory with programs.
  shape: tuple[int, ...] = ()
  program: Any = None
  seconds: list[float] = []

  def label(images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    nonlocal shape, program
    if images.shape != shape:
      start = time.monotonic()
      program = jitted.lower(*weights, jax.ShapeDtypeStruct(images.shape, jnp.uint8)).compile()
      shape = images.shape
      seconds.append(time.monotonic() - start)
      if len(seconds) == 1 and seconds[0] * (sizes - 1) > LONG_COMPILING:
        say(
          f"the program of the first size took {duration(seconds[0])} to compile; those of the other {sizes - 1} sizes "
          f"will take about {duration(seconds[0] * (sizes - 1))} in all; a sliding window compiles one, such as "
          f"--config.eval.crop_size={min(shape[1:3])}"
        )
    labels, probabilities = program(*weights, jax.device_put(images, spread))
    return np.asarray(labels), None if probabilities is None else np.asarray(probabilities)

  return label


def _write(
  folder: PredictionFolder,
  picture: Picture,
  image: np.ndarray,
  labels: np.ndarray,
  probabilities: np.ndarray | None,
  info: data.DatasetInfo,
  suffixes: dict[str, str],
) -> None:
  name = picture.name
  with folder.writing("labels", name, suffixes["labels"]) as file:
    label_image(labels, info).save(file, "PNG")
  if "overlays" in suffixes:
    with folder.writing("overlays", name, suffixes["overlays"]) as file:
      prediction.picture(image, labels, info).save(file, "JPEG", quality=JPEG_QUALITY)
  if probabilities is not None:
    names, ids = np.array(info.class_names), np.asarray(info.label_ids)
    with folder.writing("probabilities", name, suffixes["probabilities"]) as file:
      np.savez_compressed(file, probabilities=probabilities, class_names=names, label_ids=ids)
  folder.mark_done(name, picture.stamp)


def _counted(number: int, what: str) -> str:
  return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _total(number: int) -> int:
  """Adds up a number of each process; all wait for all."""
  if jax.process_count() == 1:
    return number
  return int(multihost_utils.process_allgather(np.int32(number)).sum())


def _wait_for_all(what: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)
