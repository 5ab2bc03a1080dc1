"""Labels of images of any size, in batches that share few compiled programs, on all devices of a process.

``--mode=eval``, ``--mode=predict`` and the report label images here and nowhere else. Full images of one size share a
batch (``full_images``); with a sliding window (``eval.crop_size``), images of one canvas and about as many windows do
(``sliding_windows``). For data sets with many sizes the sliding window is the recommended form, because it compiles the
network once.
"""

import collections
import dataclasses
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rc_jax import sharding
from rc_jax.config import Config
from rc_jax.inference import windows
from rc_jax.inference.full_images import FullImages
from rc_jax.inference.sliding_windows import SlidingWindows
from rc_jax.models import Network

# Images that wait for others of their group are computed with what is there when they hold this much memory.
WAITING_BYTES = 1 << 30

Key = TypeVar("Key")
Size = tuple[int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class ImageBatch(Generic[Key]):
  """Images that are computed together, each in the upper left corner of a canvas.

  Attributes:
    keys: the caller's keys of the images, at most ``rows`` of them; the other rows are padding.
    images: uint8 ``[H,W,3]`` each.
    rows: of the batch, over all devices.
    canvas: height and width that hold all of the images.
  """

  keys: Sequence[Key]
  images: Sequence[np.ndarray]
  rows: int
  canvas: Size

  def stack(self, arrays: Sequence[np.ndarray], fill: int) -> np.ndarray:
    """Puts an array ``[H,W,...]`` for each image onto canvases: ``[rows,Hc,Wc,...]``, ``fill`` elsewhere."""
    stacked = np.full((self.rows, *self.canvas, *arrays[0].shape[2:]), fill, arrays[0].dtype)
    for row, array in zip(stacked, arrays, strict=False):
      row[: array.shape[0], : array.shape[1]] = array
    return stacked


class Prediction(NamedTuple, Generic[Key]):
  """The labels of an image.

  Attributes:
    key: the caller's key of the image.
    image: uint8 ``[H,W,3]``.
    labels: train ids uint8 ``[H,W]``.
    probabilities: uint8 ``[N,H,W]`` in units of 1/255, or None.
  """

  key: Key
  image: np.ndarray
  labels: np.ndarray
  probabilities: np.ndarray | None


class BatchedPredictor:
  """Gathers images in batches and owns the programs that label them."""

  def __init__(
    self,
    network: Network,
    config_eval: Config,
    mesh: Mesh | None = None,
    count_of_size: Mapping[Size, int] | None = None,
  ):
    """Prepares the programs, each of which is compiled for its first batch.

    Args:
      network: functions of the network.
      config_eval: ``scales``, ``flip``, ``crop_size``, ``stride`` and ``batch_size``.
      mesh: of this process's devices; None: all of them.
      count_of_size: how many images there are of each height and width, if the caller knows it and passes images
        ordered by size. Batches of full images are then no larger than their size needs, and wait for no other size.
    """
    self.mesh = mesh or sharding.local_mesh()
    self.views = windows.read_views(config_eval, network.align_corners)
    self._ordered = count_of_size is not None
    self._full_images = FullImages(network, config_eval, self.mesh, count_of_size)
    self._windows = (
      None if self.views.window is None else SlidingWindows(network, config_eval, self.views, self.mesh)
    )
    self._to_bytes = jax.jit(
      lambda probabilities: jnp.round(255 * probabilities).astype(jnp.uint8).transpose(0, 3, 1, 2),
      out_shardings=sharding.batch_sharding(self.mesh),
    )

  def batches(self, images: Iterable[tuple[Key, np.ndarray]]) -> Iterator[ImageBatch[Key]]:
    """Gathers images ``(key, uint8 [H,W,3])`` that can share a batch; each image is in one batch.

    Images that are left over at the end, or that have waited for too long, go into batches that are not full.
    """
    waiting: dict[Hashable, list[tuple[Key, np.ndarray]]] = {}
    waiting_bytes = 0
    for key, image in images:
      group = self._group(image.shape[:2])
      if self._ordered and self._windows is None and group not in waiting:
        yield from self._left_over(waiting)
        waiting, waiting_bytes = {}, 0
      members = waiting.setdefault(group, [])
      members.append((key, image))
      waiting_bytes += image.nbytes
      if len(members) == self._rows(image.shape[:2]):
        waiting_bytes -= sum(each.nbytes for _, each in members)
        yield self._batch(waiting.pop(group))
      elif waiting_bytes > WAITING_BYTES:
        yield from self._left_over(waiting)
        waiting, waiting_bytes = {}, 0
    yield from self._left_over(waiting)

  def predict(
    self, params: Any, batch_stats: Any, batch: ImageBatch[Key], probabilities: bool = False
  ) -> tuple[jax.Array, jax.Array | None]:
    """Labels a batch.

    Args:
      params: arrays on every device of the mesh (``sharding.local_copy``).
      batch_stats: likewise.
      batch: of ``batches``.
      probabilities: whether to return them.

    Returns:
      Train ids uint8 ``[rows,Hc,Wc]`` and probabilities float32 ``[rows,Hc,Wc,N]`` or None, spread over the devices.
      They mean nothing beside an image and in rows of padding.
    """
    images = batch.stack(batch.images, 0)
    if self._windows is None:
      return self._full_images.predict(params, batch_stats, images, probabilities)
    sizes = [image.shape[:2] for image in batch.images]
    return self._windows.predict(params, batch_stats, images, sizes, probabilities)

  def labels(
    self,
    params: Any,
    batch_stats: Any,
    images: Iterable[tuple[Key, np.ndarray]],
    probabilities: bool = False,
  ) -> Iterator[Prediction[Key]]:
    """Labels each image ``(key, uint8 [H,W,3])`` once, in the order in which batches fill.

    Args:
      params: arrays on every device of the mesh (``sharding.local_copy``).
      batch_stats: likewise.
      images: keys, which come back with the labels, and images.
      probabilities: whether to return them.
    """
    in_flight: tuple[ImageBatch[Key], jax.Array, jax.Array | None] | None = None
    for batch in self.batches(images):
      # One batch stays in flight, so that decoding and computing overlap.
      started = (batch, *self._predict_bytes(params, batch_stats, batch, probabilities))
      if in_flight is not None:
        yield from _cropped(*in_flight)
      in_flight = started
    if in_flight is not None:
      yield from _cropped(*in_flight)

  def _predict_bytes(
    self, params: Any, batch_stats: Any, batch: ImageBatch[Key], probabilities: bool
  ) -> tuple[jax.Array, jax.Array | None]:
    """Labels a batch as ``predict``; probabilities are uint8 ``[rows,N,Hc,Wc]`` in units of 1/255."""
    labels, as_floats = self.predict(params, batch_stats, batch, probabilities)
    return labels, None if as_floats is None else self._to_bytes(as_floats)

  def _group(self, size: Size) -> Hashable:
    """Returns what images must share to share a batch."""
    return size if self._windows is None else (self._windows.canvas(size), self._windows.count(size))

  def _rows(self, size: Size) -> int:
    if self._windows is None:
      return self._full_images.rows(size)
    return self._windows.rows_and_windows(self._windows.count(size))[0]

  def _batch(self, members: Sequence[tuple[Key, np.ndarray]]) -> ImageBatch[Key]:
    images = [image for _, image in members]
    sizes: list[Size] = [image.shape[:2] for image in images]
    canvases = sizes if self._windows is None else [self._windows.canvas(size) for size in sizes]
    canvas = (max(height for height, _ in canvases), max(width for _, width in canvases))
    rows = self._rows(max(sizes, key=self._work))
    return ImageBatch([key for key, _ in members], images, rows, canvas)

  def _left_over(self, waiting: Mapping[Hashable, list[tuple[Key, np.ndarray]]]) -> Iterator[ImageBatch[Key]]:
    if self._windows is None:
      # Full images of two sizes cannot share a program.
      yield from map(self._batch, waiting.values())
      return
    # The largest first, so that neighbours are of similar sizes and the first of a batch has the most windows.
    ordered = sorted(
      (member for members in waiting.values() for member in members),
      key=lambda member: self._work(member[1].shape[:2]),
      reverse=True,
    )
    while ordered:
      rows = self._rows(ordered[0][1].shape[:2])
      yield self._batch(ordered[:rows])
      ordered = ordered[rows:]

  def _work(self, size: Size) -> tuple[int, int, int]:
    """Returns a key that orders sizes by the work that they take: windows, pixels, height."""
    if self._windows is None:
      return 1, size[0] * size[1], size[0]
    height, width = self._windows.canvas(size)
    return self._windows.count(size), height * width, height


def label_images(
  network: Network, config_eval: Config, params: Any, batch_stats: Any, images: Sequence[np.ndarray]
) -> list[np.ndarray]:
  """Labels a few images on the devices of this process.

  Args:
    network: functions of the network.
    config_eval: as for ``BatchedPredictor``.
    params: replicated arrays.
    batch_stats: likewise.
    images: uint8 ``[H,W,3]`` each.

  Returns:
    Train ids uint8 ``[H,W]`` of each image, in the order of ``images``.
  """
  sizes: list[Size] = [image.shape[:2] for image in images]
  predictor = BatchedPredictor(
    network, config_eval, sharding.local_mesh(), count_of_size=collections.Counter(sizes)
  )
  by_size = sorted(range(len(images)), key=lambda row: sizes[row])
  params, batch_stats = sharding.local_copy((params, batch_stats))
  predictions = predictor.labels(params, batch_stats, ((row, images[row]) for row in by_size))
  labels = {predicted.key: predicted.labels for predicted in predictions}
  return [labels[row] for row in range(len(images))]


def _cropped(
  batch: ImageBatch[Key], labels: jax.Array, probabilities: jax.Array | None
) -> Iterator[Prediction[Key]]:
  """Yields the part of a batch's labels ``[rows,Hc,Wc]`` and probabilities ``[rows,N,Hc,Wc]`` that is each image's."""
  all_labels = np.asarray(labels)
  all_probabilities = None if probabilities is None else np.asarray(probabilities)
  for row, (key, image) in enumerate(zip(batch.keys, batch.images, strict=True)):
    height, width = image.shape[:2]
    yield Prediction(
      key,
      image,
      all_labels[row, :height, :width],
      None if all_probabilities is None else all_probabilities[row, :, :height, :width],
    )
