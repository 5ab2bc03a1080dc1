"""``--mode=predict`` labels images of any size for people and for test servers.

``<output>/labels/<name>.png`` holds the data set's own ids, with the classes' colours as its palette, at the displayed
size of the image. ``overlays/<name>.jpg`` shows the classes over the image, and ``probabilities/<name>.npz`` is
optional. Each file is written atomically, and a killed run resumes.
"""

import collections
import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from rc_jax import data, distributed, models, sharding
from rc_jax.config import Config, as_dict
from rc_jax.console import Progress, say
from rc_jax.drawing import prediction
from rc_jax.fields import Flag
from rc_jax.folder_lock import folder_lock
from rc_jax.inference.batched import BatchedPredictor, Prediction
from rc_jax.modes import CHECKPOINT, CONFIG, WORKDIR
from rc_jax.predictions import submission
from rc_jax.predictions.folder import PredictionFolder, label_image, settings_of
from rc_jax.predictions.images import InputImage, from_path, from_source, ordered_by_size, read_ahead
from rc_jax.streams import write_error
from rc_jax.weights import restore
from rc_jax.weights.checksums import weights_digest

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

SOME_UNREADABLE = 1  # the exit status if images could not be read
JPEG_QUALITY = 92


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
    workdir: the run's folder, which holds the newest checkpoint.
    checkpoint: as for ``restore.locate``; None: the newest of ``workdir``.
    images: an image or a folder of images; None: the images of ``config.eval.split``.
    output: folder of the predictions; None: ``workdir/predictions``.
    recursive: also label the images in the folders of ``images``.
    overwrite: label all images again, even if other settings labelled them.
    overlays: also write pictures with a legend.
    probabilities: also write class probabilities, uint8 ``[N,H,W]`` in units of 1/255.
    format: a name of ``submission.FORMATS``: also write ``<output>/<format>_<split or folder>.zip``, checked.

  Returns:
    The exit status: 0, or 1 if images could not be read. These are named, and all others are labelled.

  Raises:
    FileNotFoundError: no checkpoint, no data, or no images.
    ValueError: the checkpoint holds another network or other classes, the folder holds predictions of other settings,
      another command labels into it, a test server would refuse the submission, or ``recursive`` is set without
      ``images``.
  """
  if recursive and images is None:
    raise ValueError("--recursive: is read with --images=FOLDER alone; give the folder or leave the flag out")
  with contextlib.ExitStack() as lock:
    options = (recursive, overwrite, overlays, probabilities, format)
    return _predict(lock, config, workdir, checkpoint, images, output, *options)


def _predict(
  lock: contextlib.ExitStack,
  config: Config,
  workdir: pathlib.Path,
  checkpoint: pathlib.Path | None,
  images: pathlib.Path | None,
  output: pathlib.Path | None,
  recursive: bool,
  overwrite: bool,
  overlays: bool,
  probabilities: bool,
  format: str,
) -> int:
  """Labels images as ``run`` describes; ``lock`` gets the lock of the folder."""
  info = data.info(config.dataset.name, config.dataset.root, config.dataset.classes)
  submission_format = submission.find(format, config.dataset.name, info) if format else None
  output = (output or workdir / "predictions").resolve()
  network = models.build(config.model, info.num_classes)
  path = restore.locate(workdir, checkpoint)
  if jax.process_count() > 1:
    distributed.check_agreement(data.class_facts(info) | restore.facts(path))
  restored = restore.restore(network, config, path, info.table())
  if images is None:
    source = data.load(
      config.dataset.name,
      config.dataset.root,
      config.eval.split,
      labels=False,
      classes=config.dataset.classes,
    )
    for note in data.notes_of(source):
      say(f"note: {note}")
    wanted = from_source(source, config.eval.split)
  else:
    wanted = from_path(images.resolve(), recursive, output)
  if jax.process_count() > 1:
    names = [f"{image.name} of {image.size} pixels" for image in wanted]
    distributed.check_agreement({"number of images": len(names)}, {"image": names})
  # Checks names and sizes before hours of computing.
  expected = (
    submission.expected_files(submission_format, ((image.name, image.size) for image in wanted))
    if submission_format
    else {}
  )

  weights = sharding.local_copy((restored.params, restored.batch_stats))
  if jax.process_index() == 0:
    # Two commands would rename each other's partial files.
    lock.enter_context(folder_lock(output, "wait until it ends, or name another folder with --output=DIR"))
  folder = PredictionFolder(
    output,
    settings_of(as_dict(config), weights_digest(weights), restore.origin(path), restored.step, info),
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
  remaining = [image for image in wanted if not folder.is_done(image.name, image.fingerprint, suffixes)]
  if len(remaining) < len(wanted):
    say(f"{len(wanted) - len(remaining)} of {len(wanted)} images are labelled already")

  predictor = _predictor(network, config, wanted, remaining)
  unreadable = _label(predictor, weights, remaining, _Writer(folder, info, suffixes), config.data.threads)
  failed = _print_unreadable(unreadable, len(wanted))  # also waits until all processes are done
  if submission_format is not None:
    if failed:
      raise ValueError(
        f"--format={format}: no submission was written, because {failed} of {len(wanted)} images could not be read; "
        "repair those named above, and start again"
      )
    if jax.process_index() == 0:
      target = output / f"{format}_{images.stem if images else config.eval.split}.zip"
      submission.write(submission_format, expected, output / "labels", info, target)
      size = target.stat().st_size / 1e6
      say(f"{target}: {len(expected)} label images, {size:.1f} MB, checked: names, sizes, mode and ids")
  if failed < len(wanted):
    say(f"labels (ids of {info.name}){' and overlays' if overlays else ''} are in {output}")
  return SOME_UNREADABLE if failed else 0


def _predictor(
  network: models.Network, config: Config, wanted: Sequence[InputImage], remaining: Sequence[InputImage]
) -> BatchedPredictor:
  """Returns the predictor of all wanted images, and prints the work for the remaining ones."""
  # Counts of all images, not of the remaining ones, so that a resumed run computes batches of the same shape.
  counts = collections.Counter(image.size for image in wanted)
  count_of_size = {image.size: counts[image.size] for image in remaining if image.size}
  predictor = BatchedPredictor(network, config.eval, count_of_size=count_of_size)
  if remaining:
    images = _counted(len(remaining), "image")
    if predictor.views.window:
      height, width = predictor.views.window
      say(f"labelling {images} by windows of {height} x {width}")
    else:
      say(f"labelling {images} of {_counted(len(count_of_size), 'size')}; each size compiles a program")
  return predictor


def _label(
  predictor: BatchedPredictor,
  weights: tuple[Any, Any],
  remaining: Sequence[InputImage],
  writer: "_Writer",
  threads: int,
) -> list[ValueError]:
  """Labels this process's share of the remaining images; returns the errors of those that cannot be read."""
  share = ordered_by_size(remaining)[jax.process_index() :: jax.process_count()]
  progress = Progress("labelling", len(remaining), unit="images")
  unreadable: list[ValueError] = []

  def readable() -> Iterator[tuple[InputImage, np.ndarray]]:
    for image, pixels in read_ahead(share, threads):
      if isinstance(pixels, ValueError):
        unreadable.append(pixels)
        progress.advance(jax.process_count())
      else:
        yield image, pixels

  predictions = predictor.labels(*weights, readable(), "probabilities" in writer.suffixes)
  with ThreadPoolExecutor(threads) as pool:
    writing: collections.deque[Future] = collections.deque()
    for each in predictions:
      writing.append(pool.submit(writer.write, each))
      # Few predictions wait to be written: each holds an image, and with probabilities N times that.
      while len(writing) > 2 * threads:
        writing.popleft().result()
      progress.advance(jax.process_count())
    for future in writing:
      future.result()
  progress.close()
  return unreadable


@dataclasses.dataclass(frozen=True)
class _Writer:
  """Writes the files of predictions; safe between threads. ``suffixes``: kind of output -> suffix."""

  folder: PredictionFolder
  info: data.DatasetInfo
  suffixes: Mapping[str, str]

  def write(self, predicted: Prediction[InputImage]) -> None:
    """Writes all outputs of an image, and logs that they exist."""
    with self._file("labels", predicted) as file:
      label_image(predicted.labels, self.info).save(file, "PNG")
    if "overlays" in self.suffixes:
      with self._file("overlays", predicted) as file:
        picture = prediction.picture(predicted.image, predicted.labels, self.info)
        picture.save(file, "JPEG", quality=JPEG_QUALITY)
    if predicted.probabilities is not None:
      names, ids = np.array(self.info.class_names), np.asarray(self.info.label_ids)
      with self._file("probabilities", predicted) as file:
        np.savez_compressed(file, probabilities=predicted.probabilities, class_names=names, label_ids=ids)
    self.folder.mark_done(predicted.key.name, predicted.key.fingerprint)

  def _file(self, kind: str, predicted: Prediction[InputImage]) -> contextlib.AbstractContextManager[Any]:
    return self.folder.writing(kind, predicted.key.name, self.suffixes[kind])


def _counted(number: int, noun: str) -> str:
  return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _print_unreadable(unreadable: Sequence[ValueError], wanted: int) -> int:
  """Prints the errors of this process, and the number of unreadable images of all processes, which it returns."""
  for error in unreadable:
    write_error(f"not labelled: {error}\n")
  failed = _total(len(unreadable))
  if failed and jax.process_index() == 0:
    write_error(f"{failed} of {wanted} images could not be read\n")
  return failed


def _total(number: int) -> int:
  """Adds up a number over processes; each waits for all others."""
  if jax.process_count() == 1:
    return number
  return int(multihost_utils.process_allgather(np.int32(number)).sum())


def _wait_for_all(milestone: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(milestone)
