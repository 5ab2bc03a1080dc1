"""Class probabilities of full images: at once or by sliding window, averaged over scales and mirror images.

This is the definition, for images of one size, to be compiled by the caller. ``batched`` computes it for images of any
size, and ``--mode=export`` writes it as a program.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rc_jax.config import Config
from rc_jax.inference.windows import read_views, scaled_size, window_starts
from rc_jax.models import Network
from rc_jax.models.segmenter import PIXEL_MEAN
from rc_jax.ops import resample

# The network's normalisation turns this colour into exactly 0.
PADDING_COLOR = np.array(PIXEL_MEAN, np.float32)

Predictor = Callable[[Any, Any, jax.Array], jax.Array]


def make_predictor(network: Network, config_eval: Config) -> Predictor:
  """Returns a function from images to class probabilities.

  Probabilities, not logits, are averaged over windows, scales and mirror images, as the field's toolboxes report
  multi-scale scores.

  Args:
    network: functions of the network.
    config_eval: ``scales``, ``flip``, ``crop_size`` (empty: the full image), ``stride`` and ``pad_to_grid``.

  Returns:
    ``predict(params, batch_stats, images [B,H,W,3] uint8 RGB) -> [B,H,W,N]`` float32, summing to 1 over classes.
  """
  views = read_views(config_eval, network.align_corners)
  upsample = functools.partial(resample.upsample, align_corners=network.align_corners)

  # A window is meant to have the size of the training crops, for which the network has learned to place predictions.
  pads = bool(config_eval.pad_to_grid) and views.window is None

  def predict(params: Any, batch_stats: Any, images: jax.Array) -> jax.Array:
    def of_view(pixels: jax.Array) -> jax.Array:
      height, width = views.window or pixels.shape[1:3]
      size = grid_size(network, (height, width)) if pads else (height, width)
      outputs = network.with_weights(params, batch_stats, size)  # once for all windows

      def probabilities(pixels: jax.Array) -> jax.Array:
        logits = outputs(padded_to(pixels, size)).logits
        return jax.nn.softmax(upsample(logits, size)[:, :height, :width], axis=-1)

      if views.window is None:
        return probabilities(pixels)
      return slide(probabilities, pixels, views.window, views.stride)

    size = (images.shape[1], images.shape[2])
    total = jnp.zeros((*images.shape[:3], network.num_classes), jnp.float32)
    for scale in views.scales:
      pixels = images.astype(jnp.float32)
      if scale != 1:
        pixels = resample.upsample(pixels, scaled_size(size, scale), align_corners=False)
      of_views = [of_view(pixels)]
      if views.flip:
        of_views.append(of_view(pixels[:, :, ::-1])[:, :, ::-1])
      for view in of_views:
        total = total + (view if scale == 1 else upsample(view, size))
    return total / views.count

  return predict


def grid_size(network: Network, size: tuple[int, int]) -> tuple[int, int]:
  """Returns the least size, no smaller than ``size``, with whose corners the corners of the network's grids coincide.

  The grid of stride ``s`` has ``ceil(H/s)`` rows, row ``i`` at pixel ``s i``. Aligned corners place it at
  ``i (H-1)/(ceil(H/s)-1)``, which is ``s i`` where ``H`` is a multiple of ``s``, plus 1. Of 360 rows, the last of 23 at
  stride 16 lies at 352 and is placed at 359.
  """
  stride = network.grid_stride
  if not network.align_corners or stride is None:
    return size
  height, width = (-(-(side - 1) // stride) * stride + 1 for side in size)
  return height, width


def padded_to(images: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Pads ``[B,H,W,3]`` float32 in 0..255 at the right and the bottom with ImageNet's mean colour."""
  height, width = images.shape[1:3]
  if (height, width) == size:
    return images
  pad = ((0, 0), (0, size[0] - height), (0, size[1] - width), (0, 0))
  return jnp.pad(images - PADDING_COLOR, pad) + PADDING_COLOR


def slide(
  probabilities: Callable[[jax.Array], jax.Array],
  images: jax.Array,
  window: tuple[int, int],
  stride: tuple[int, int],
) -> jax.Array:
  """Averages the probabilities of overlapping windows, which cover every pixel.

  Args:
    probabilities: from ``[B,*window,3]`` to ``[B,*window,N]``.
    images: ``[B,H,W,3]`` float32 in 0..255; padded at the right and the bottom if smaller than the window.
    window: height and width in pixels.
    stride: height and width in pixels, at most the window's.

  Returns:
    ``[B,H,W,N]`` float32.
  """
  batch, height, width, _ = images.shape
  padded = (max(height, window[0]), max(width, window[1]))
  images = padded_to(images, padded)

  tops = window_starts(padded[0], window[0], stride[0])
  lefts = window_starts(padded[1], window[1], stride[1])
  corners = jnp.asarray([(top, left) for top in tops for left in lefts], jnp.int32)
  overlapping = np.zeros(padded, np.float32)
  for top in tops:
    for left in lefts:
      overlapping[top : top + window[0], left : left + window[1]] += 1

  classes = jax.eval_shape(probabilities, jax.ShapeDtypeStruct((batch, *window, 3), images.dtype)).shape[-1]

  def add_window(total: jax.Array, corner: jax.Array) -> tuple[jax.Array, None]:
    start = (0, corner[0], corner[1], 0)
    view = probabilities(jax.lax.dynamic_slice(images, start, (batch, *window, 3)))
    before = jax.lax.dynamic_slice(total, start, (batch, *window, classes))
    return jax.lax.dynamic_update_slice(total, before + view, start), None

  # A loop over windows compiles the network once, and keeps the activations of one window at a time.
  total, _ = jax.lax.scan(add_window, jnp.zeros((batch, *padded, classes), jnp.float32), corners)
  return (total / overlapping[:, :, None])[:, :height, :width]


def labels_and_probabilities(
  network: Network, config_eval: Config, probabilities: bool
) -> Callable[[Any, Any, jax.Array], tuple[jax.Array, jax.Array | None]]:
  """Returns the function from images to labels that ``--mode=predict`` computes and ``--mode=export`` writes.

  Args:
    network: functions of the network.
    config_eval: as for ``make_predictor``.
    probabilities: whether the function also returns the probabilities.

  Returns:
    ``(params, batch_stats, images uint8 [B,H,W,3]) -> (train ids uint8 [B,H,W], probabilities float32 [B,H,W,N] or
    None)``.
  """
  predict = make_predictor(network, config_eval)

  def compute(params: Any, batch_stats: Any, images: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    predicted = predict(params, batch_stats, images)
    labels = jnp.argmax(predicted, axis=-1).astype(jnp.uint8)
    return labels, predicted if probabilities else None

  return compute
