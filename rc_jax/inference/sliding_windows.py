"""Labels of images of any size by sliding windows, with a network that is compiled once.

Images lie on canvases of four sizes an octave, and three kinds of programs do the work:

1. *cut* resizes, mirrors, pads and cuts windows out of a canvas: one small program for each canvas;
2. the *network* computes batches of windows of one shape, of any image and scale: one program;
3. *add* upsamples logits, takes their softmax and adds it at the window's position: one small program for each canvas.

ADE20K and COCO-Stuff, where nearly every image has another size, thus need some dozens of small programs beside the
network's. Canvases change no result, because the pixels beside an image are never read. Full-size probabilities exist
for the images of one batch alone, and the softmax is taken one window at a time.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from rc_jax import sharding
from rc_jax.config import Config
from rc_jax.inference.predictor import PADDING_COLOR
from rc_jax.inference.windows import Taps, Views, Windows, canvas_side, windows_of
from rc_jax.models import Network
from rc_jax.ops import resample

# The share of the network's work that may go to windows which only fill a batch, before a batch takes fewer windows of
# each image.
PADDING_SHARE = 0.1

Size = tuple[int, int]


class SlidingWindows:
  """Owns the program of the network and those of each canvas."""

  def __init__(self, network: Network, config_eval: Config, views: Views, mesh: Mesh):
    """Prepares the programs, each of which is compiled for its first batch.

    Args:
      network: functions of the network.
      config_eval: ``batch_size``: windows of a device's batch.
      views: scales, mirroring, window and stride.
      mesh: of this process's devices.
    """
    assert views.window is not None
    self._views, self._window, self._mesh = views, views.window, mesh
    self._batch_size = int(config_eval.batch_size)

    def logits(params: Any, batch_stats: Any, images: jax.Array) -> jax.Array:
      return network.predict(params, batch_stats, images).logits

    def finish(total: jax.Array, probabilities: bool) -> tuple[jax.Array, jax.Array | None]:
      labels = jnp.argmax(total, axis=-1).astype(jnp.uint8)
      return labels, total / views.count if probabilities else None

    replicated, spread = PartitionSpec(), PartitionSpec(sharding.DATA_AXIS)
    here: dict[str, Any] = {"mesh": mesh, "out_specs": spread, "check_vma": False}
    add = functools.partial(_add, shape=self._window, align_corners=views.align_corners)
    self._cut = jax.jit(jax.shard_map(_cut, in_specs=spread, **here))
    self._logits = jax.jit(
      jax.shard_map(logits, in_specs=(replicated, replicated, spread), **here),
      compiler_options=sharding.compiler_options(mesh),
    )
    self._add = jax.jit(jax.shard_map(add, in_specs=spread, **here), donate_argnums=0)
    self._zeros = jax.jit(
      lambda rows, canvas: jnp.zeros((rows, *canvas, network.num_classes), jnp.float32),
      static_argnums=(0, 1),
      out_shardings=sharding.batch_sharding(mesh),
    )
    self._finish = jax.jit(finish, static_argnums=1, out_shardings=sharding.batch_sharding(mesh))

  def canvas(self, size: Size) -> Size:
    """Returns height and width of the smallest canvas of an image."""
    return (canvas_side(size[0]), canvas_side(size[1]))

  def count(self, size: Size) -> int:
    """Returns the number of windows of an image."""
    return len(windows_of(size, self.canvas(size), self._views).corner)

  def rows_and_windows(self, count: int) -> tuple[int, int]:
    """Returns how many images of ``count`` windows share a batch over all devices, and how many windows of each."""
    divisors = [d for d in range(1, self._batch_size + 1) if self._batch_size % d == 0 and d <= count]
    windows = max(d for d in divisors if d == 1 or -(-count // d) * d <= count * (1 + PADDING_SHARE))
    return self._batch_size // windows * self._mesh.devices.size, windows

  def predict(
    self, params: Any, batch_stats: Any, images: np.ndarray, sizes: Sequence[Size], probabilities: bool
  ) -> tuple[jax.Array, jax.Array | None]:
    """Labels a batch of images on canvases.

    Args:
      params: arrays on every device of the mesh.
      batch_stats: likewise.
      images: uint8 ``[B,Hc,Wc,3]``, each image in the upper left corner of its canvas.
      sizes: height and width of each image, at most ``B`` of them; rows without one are padding.
      probabilities: whether to return them.

    Returns:
      Train ids uint8 ``[B,Hc,Wc]`` and probabilities float32 ``[B,Hc,Wc,N]`` or None, spread over the devices. Beside
      an image probabilities are 0.
    """
    spread = sharding.batch_sharding(self._mesh)
    rows, canvas = images.shape[0], images.shape[1:3]
    placed = jax.device_put(images, spread)
    total = self._zeros(rows, canvas)
    _, windows = self.rows_and_windows(max(map(self.count, sizes)))
    for batch in _batches([windows_of(size, canvas, self._views) for size in sizes], rows, windows):
      taps = jax.device_put(batch, spread)
      logits = self._logits(params, batch_stats, self._cut(placed, taps.cut_rows, taps.cut_columns))
      total = self._add(total, logits, taps.corner, taps.add_rows, taps.add_columns)
    result: tuple[jax.Array, jax.Array | None] = self._finish(total, probabilities)
    return result


def _batches(of_images: Sequence[Windows], rows: int, windows: int) -> Iterator[Windows]:
  """Yields ``windows`` windows of each image at a time; an image with fewer than the others gets some of weight 0."""
  longest = max(len(each.corner) for each in of_images)
  longest = -(-longest // windows) * windows

  def stacked(*arrays: np.ndarray) -> np.ndarray:
    result = np.zeros((rows, longest, *arrays[0].shape[1:]), arrays[0].dtype)
    for row, array in zip(result, arrays, strict=False):
      row[: len(array)] = array
    return result

  together: Windows = jax.tree.map(stacked, *of_images)
  for start in range(0, longest, windows):
    yield jax.tree.map(lambda array, start=start: array[:, start : start + windows], together)


def _cut(images: jax.Array, rows: Taps, columns: Taps) -> jax.Array:
  """``[b,Hc,Wc,3]`` uint8 and taps ``[b,t,h,k]``, ``[b,t,w,k]`` -> windows ``[b t,h,w,3]`` float32 in 0..255."""

  def cut_window(image: jax.Array, rows: Taps, columns: Taps) -> jax.Array:
    inside = rows.weight.sum(-1)[:, None] * columns.weight.sum(-1)
    cut = _resample(image.astype(jnp.float32), rows, columns)
    return cut + (1 - inside)[..., None] * PADDING_COLOR

  windows = jax.vmap(jax.vmap(cut_window, in_axes=(None, 0, 0)))(images, rows, columns)  # [b,t,h,w,3]
  return windows.reshape(-1, *windows.shape[2:])


def _add(
  total: jax.Array,
  logits: jax.Array,
  corner: jax.Array,
  rows: Taps,
  columns: Taps,
  shape: Size,
  align_corners: bool,
) -> jax.Array:
  """Adds the softmax of logits ``[b t,h',w',N]``, upsampled to windows, to ``total [b,Hc,Wc,N]``."""
  windows = corner.shape[1]
  region = (1, rows.source.shape[2], columns.source.shape[2], total.shape[-1])

  def add_window(total: jax.Array, window: Any) -> tuple[jax.Array, None]:
    number, logits, corner, rows, columns = window
    probabilities = jax.nn.softmax(resample.upsample(logits[None], shape, align_corners)[0], axis=-1)
    start = (number // windows, corner[0], corner[1], 0)
    before = jax.lax.dynamic_slice(total, start, region)
    after = before + _resample(probabilities, rows, columns)
    return jax.lax.dynamic_update_slice(total, after, start), None

  flat = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), (corner, rows, columns))
  # One after the other, so that full-size probabilities exist for one window at a time.
  total, _ = jax.lax.scan(add_window, total, (jnp.arange(len(logits)), logits, *flat))
  return total


def _resample(x: jax.Array, rows: Taps, columns: Taps) -> jax.Array:
  """``x [H,W,C]`` with taps ``[R,k]`` and ``[S,k]`` -> ``[R,S,C]``."""

  # Gathers of full rows, then of full pixels: as dense products these would cost as much as the network.
  def along(x: jax.Array, taps: Taps, axis: int) -> jax.Array:
    parts = [
      jnp.take(x, taps.source[:, k], axis=axis, mode="clip")
      * jnp.expand_dims(taps.weight[:, k], tuple(range(1, 3 - axis)))
      for k in range(taps.source.shape[-1])
    ]
    return functools.reduce(jnp.add, parts)

  return along(along(x, rows, 0), columns, 1)
