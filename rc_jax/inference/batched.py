"""Class probabilities of a data set's images, whatever their sizes, with few programs and on all of a host's devices.

``inference.make_predictor`` defines what is computed, and must be compiled anew for every size of an image. Here images
lie on canvases, of four sizes an octave, and three kinds of programs do the work:

1. *cut* resizes, mirrors, pads and cuts windows out of a canvas: one small program a canvas;
2. the *network* sees batches of windows of one shape alone, of any image and scale: one program;
3. *add* upsamples logits, takes their softmax and adds it where the window lay: one small program a canvas.

So with a sliding window (``eval.crop_size``) the network is compiled once: ADE20K and COCO-Stuff, where nearly every
image has a size of its own, need some dozens of small programs beside it. Canvases change no result: what lies beside
an image is never read. Whole images are another matter: padding would reach the logits, through the borders of
convolutions and the global pooling of ASPP. They go in at their own size, as mmsegmentation's ``mode="whole"``, and
each size and scale compiles the network; for data sets of many sizes the sliding window is the recommended form.

Each device works on its own images; a network's batch on a device is ``eval.batch_size`` windows, of as few images as
fill it. Full-size probabilities exist for those images alone, and softmax is taken a window at a time.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from rc_jax import sharding
from rc_jax.config import Config
from rc_jax.data import Example
from rc_jax.inference import windows
from rc_jax.inference.predictor import PADDING_COLOR
from rc_jax.inference.windows import Taps
from rc_jax.models import Network
from rc_jax.ops import resample

# Images that wait for others of their canvas are put on a larger one together when they hold this much memory.
WAITING_BYTES = 1 << 30
# Padding windows to whole batches may cost so much of the network's work before smaller steps are taken.
PADDED_SHARE = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
  """Images that go through together, each on a canvas of one size.

  Attributes:
    examples: at most as many as there are places; the last places may be empty.
    places: how many images the group has room for, over all devices.
    canvas: height and width.
    steps: windows of each image in a batch of the network.
  """

  examples: Sequence[Example]
  places: int
  canvas: tuple[int, int]
  steps: int

  def stacked(self, name: str, fill: int) -> np.ndarray:
    """Returns the examples' ``image`` or ``label`` on canvases, ``[places,Hc,Wc,...]``, ``fill`` elsewhere."""
    first = self.examples[0][name]
    result = np.full((self.places, *self.canvas, *first.shape[2:]), fill, first.dtype)
    for row, example in zip(result, self.examples, strict=False):
      row[: example[name].shape[0], : example[name].shape[1]] = example[name]
    return result


class ImageSet:
  """Owns the programs that turn images of any size into class probabilities."""

  def __init__(self, network: Network, config_eval: Config, mesh: Mesh | None = None):
    """Prepares the programs; each is compiled when its first image comes.

    Args:
      network: functions of the network.
      config_eval: ``scales``, ``flip``, ``crop_size``, ``stride`` and ``batch_size``.
      mesh: of this process's devices; None: all of them.
    """
    self.mesh = mesh or sharding.local_mesh()
    self.views = windows.views(config_eval, network.align_corners)
    self._batch_size = int(config_eval.batch_size)
    classes, align_corners = network.num_classes, network.align_corners

    def logits(params: Any, batch_stats: Any, images: jax.Array) -> jax.Array:
      return network.predict(params, batch_stats, images).logits

    def add(
      shape: tuple[int, int], total: jax.Array, logits: jax.Array, first: jax.Array, rows: Taps, columns: Taps
    ) -> jax.Array:
      return _add(total, logits, first, rows, columns, shape, align_corners)

    whole, spread = PartitionSpec(), PartitionSpec(sharding.DATA_AXIS)
    here: dict[str, Any] = {"mesh": self.mesh, "check_vma": False}
    self._cut = jax.jit(jax.shard_map(_cut, in_specs=spread, out_specs=spread, **here))
    self._logits = jax.jit(jax.shard_map(logits, in_specs=(whole, whole, spread), out_specs=spread, **here))
    self._add = jax.jit(
      lambda shape, *arrays: jax.shard_map(
        lambda *local: add(shape, *local), in_specs=spread, out_specs=spread, **here
      )(*arrays),
      static_argnums=0,
      donate_argnums=1,
    )
    self._zeros = jax.jit(
      lambda places, canvas: jnp.zeros((places, *canvas, classes), jnp.float32),
      static_argnums=(0, 1),
      out_shardings=sharding.batch_sharding(self.mesh),
    )

    def label(shares: bool, total: jax.Array) -> tuple[jax.Array, jax.Array | None]:
      labels = jnp.argmax(total, axis=-1).astype(jnp.uint8)
      if not shares:
        return labels, None
      rounded = jnp.round(255 * (total / self.views.total)).astype(jnp.uint8)
      return labels, rounded.transpose(0, 3, 1, 2)

    self._label = jax.jit(label, static_argnums=0, out_shardings=sharding.batch_sharding(self.mesh))

  def groups(self, examples: Iterable[Example]) -> Iterator[Group]:
    """Gathers examples that share a canvas and a number of windows; each is in one group.

    Those that are left over at the end, or that have waited for too long, share a canvas that fits all of them.
    """
    waiting: dict[tuple[Any, ...], list[Example]] = {}
    held = 0
    for example in examples:
      size = example["image"].shape[:2]
      canvas = self._canvas(size)
      key = (*canvas, self._count(size, canvas))
      alike = waiting.setdefault(key, [])
      alike.append(example)
      held += example["image"].nbytes
      if len(alike) == self._places(key[-1])[0]:
        held -= sum(one["image"].nbytes for one in alike)
        yield self._group(waiting.pop(key))
      elif held > WAITING_BYTES:
        yield from self._left_over(waiting)
        waiting, held = {}, 0
    yield from self._left_over(waiting)

  def probabilities(self, params: Any, batch_stats: Any, group: Group) -> jax.Array:
    """Returns the sum over scales and mirrorings, windows averaged.

    Args:
      params: arrays on every device of the mesh (``sharding.local_copy``).
      batch_stats: likewise.
      group: of ``groups``.

    Returns:
      ``[places,Hc,Wc,N]`` float32, spread over the devices. Over an image's own pixels, the values of a pixel sum to
      ``views.total``; beside them they are 0.
    """
    spread = sharding.batch_sharding(self.mesh)
    images = jax.device_put(group.stacked("image", 0), spread)
    total: jax.Array = self._zeros(group.places, group.canvas)
    sizes = [example["image"].shape[:2] for example in group.examples]
    lists = [windows.windows_of(size, group.canvas, self.views) for size in sizes]
    for of_shape in zip(*lists, strict=True):
      for batch in _batches(of_shape, group.places, group.steps):
        rows, columns, first, add_rows, add_columns = jax.device_put(batch, spread)
        logits = self._logits(params, batch_stats, self._cut(images, rows, columns))
        total = self._add(of_shape[0].shape, total, logits, first, add_rows, add_columns)
    return total

  def labels(
    self, params: Any, batch_stats: Any, examples: Iterable[Example], probabilities: bool = False
  ) -> Iterator[tuple[Example, np.ndarray, np.ndarray | None]]:
    """Labels each example once, in the order in which groups fill.

    Args:
      params: arrays on every device of the mesh (``sharding.local_copy``).
      batch_stats: likewise.
      examples: dictionaries with an ``image``, uint8 ``[H,W,3]``, which come back with their labels.
      probabilities: whether to return them.

    Yields:
      The example, train ids uint8 ``[H,W]``, and probabilities as uint8 ``[N,H,W]`` of 255ths, or None.
    """
    before: tuple[Group, tuple[jax.Array, jax.Array | None]] | None = None
    for group in self.groups(examples):
      # One group stays in flight, so that decoding and computing overlap.
      computed = (group, self._label(probabilities, self.probabilities(params, batch_stats, group)))
      if before is not None:
        yield from _cropped(*before)
      before = computed
    if before is not None:
      yield from _cropped(*before)

  def _canvas(self, size: tuple[int, int]) -> tuple[int, int]:
    if self.views.window is None:
      return size
    return (windows.canvas_side(size[0]), windows.canvas_side(size[1]))

  def _count(self, size: tuple[int, int], canvas: tuple[int, int]) -> int:
    return len(windows.windows_of(size, canvas, self.views)[0])

  def _places(self, count: int) -> tuple[int, int]:
    """How many images go through together, and how many windows of each are in a batch."""
    divisors = [d for d in range(1, self._batch_size + 1) if self._batch_size % d == 0 and d <= count]
    steps = max(d for d in divisors if d == 1 or -(-count // d) * d <= count * (1 + PADDED_SHARE))
    return self._batch_size // steps * self.mesh.devices.size, steps

  def _group(self, examples: Sequence[Example]) -> Group:
    sizes = [example["image"].shape[:2] for example in examples]
    canvases = [self._canvas(size) for size in sizes]
    canvas = (max(height for height, _ in canvases), max(width for _, width in canvases))
    count = max(self._count(size, own) for size, own in zip(sizes, canvases, strict=True))
    places, steps = self._places(count)
    return Group(examples, places, canvas, steps)

  def _left_over(self, waiting: dict[tuple[Any, ...], list[Example]]) -> Iterator[Group]:
    if self.views.window is None:
      # Whole images of two sizes cannot share a program.
      yield from (self._group(alike) for alike in waiting.values())
      return
    # The largest first, so that neighbours are of similar sizes and the first of a group has the most windows.
    ordered = [
      (key, example) for key in sorted(waiting, key=_by_work, reverse=True) for example in waiting[key]
    ]
    while ordered:
      places, _ = self._places(ordered[0][0][-1])
      taken, ordered = ordered[:places], ordered[places:]
      yield self._group([example for _, example in taken])


def _cropped(
  group: Group, computed: tuple[jax.Array, jax.Array | None]
) -> Iterator[tuple[Example, np.ndarray, np.ndarray | None]]:
  labels, shares = np.asarray(computed[0]), None if computed[1] is None else np.asarray(computed[1])
  for row, example in enumerate(group.examples):
    height, width = example["image"].shape[:2]
    yield (
      example,
      labels[row, :height, :width],
      None if shares is None else shares[row, :, :height, :width],
    )


def _by_work(key: tuple[int, int, int]) -> tuple[int, int, int]:
  height, width, count = key
  return count, height * width, height


def _batches(of_images: Sequence[windows.Windows], places: int, steps: int) -> Iterator[Any]:
  """Yields ``steps`` windows of each image at a time; what an image lacks of the longest list adds nothing."""
  longest = max(len(one) for one in of_images)
  longest = -(-longest // steps) * steps

  def stacked(*arrays: np.ndarray) -> np.ndarray:
    result = np.zeros((places, longest, *arrays[0].shape[1:]), arrays[0].dtype)
    for row, array in zip(result, arrays, strict=False):
      row[: len(array)] = array
    return result

  rows, columns, first, add_rows, add_columns = jax.tree.map(stacked, *(one.arrays() for one in of_images))
  for start in range(0, longest, steps):
    yield jax.tree.map(
      lambda array, start=start: array[:, start : start + steps],
      (rows, columns, first, add_rows, add_columns),
    )


def _cut(images: jax.Array, rows: Taps, columns: Taps) -> jax.Array:
  """``[b,Hc,Wc,3]`` uint8 and taps ``[b,t,h,k]``, ``[b,t,w,k]`` -> windows ``[b t,h,w,3]`` float32 of 0..255."""

  def one(image: jax.Array, rows: Taps, columns: Taps) -> jax.Array:
    inside = rows.weight.sum(-1)[:, None] * columns.weight.sum(-1)
    cut = _resample(image.astype(jnp.float32), rows, columns)
    return cut + (1 - inside)[..., None] * PADDING_COLOR

  def of_image(image: jax.Array, rows: Taps, columns: Taps) -> jax.Array:
    return jax.vmap(lambda rows, columns: one(image, rows, columns))(rows, columns)

  cut = jax.vmap(of_image)(images, rows, columns)
  return cut.reshape(-1, *cut.shape[2:])


def _add(
  total: jax.Array,
  logits: jax.Array,
  first: jax.Array,
  rows: Taps,
  columns: Taps,
  shape: tuple[int, int],
  align_corners: bool,
) -> jax.Array:
  """Adds the softmax of logits ``[b t,h',w',N]``, upsampled to windows, to ``total [b,Hc,Wc,N]``."""
  steps = first.shape[1]
  region = (1, rows.at.shape[2], columns.at.shape[2], total.shape[-1])

  def add_window(total: jax.Array, window: Any) -> tuple[jax.Array, None]:
    number, logits, corner, rows, columns = window
    views = jax.nn.softmax(resample.upsample(logits[None], shape, align_corners)[0], axis=-1)
    start = (number // steps, corner[0], corner[1], 0)
    before = jax.lax.dynamic_slice(total, start, region)
    after = before + _resample(views, rows, columns)
    return jax.lax.dynamic_update_slice(total, after, start), None

  flat = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), (first, rows, columns))
  # One after the other: full-size probabilities of a single window exist at a time.
  total, _ = jax.lax.scan(add_window, total, (jnp.arange(len(logits)), logits, *flat))
  return total


def _resample(x: jax.Array, rows: Taps, columns: Taps) -> jax.Array:
  """``x [H,W,C]`` with taps ``[R,k]`` and ``[S,k]`` -> ``[R,S,C]``."""

  # Gathers of whole rows, then of whole pixels; as dense products these would cost as much as the network.
  def side(x: jax.Array, taps: Taps, axis: int) -> jax.Array:
    parts = [
      jnp.take(x, taps.at[:, k], axis=axis, mode="clip")
      * jnp.expand_dims(taps.weight[:, k], tuple(range(1, 3 - axis)))
      for k in range(taps.at.shape[-1])
    ]
    return functools.reduce(jnp.add, parts)

  return side(side(x, rows, 0), columns, 1)
