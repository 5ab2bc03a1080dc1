"""Full-image probabilities against plain NumPy loops, with a stand-in network whose outputs depend on position."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax import models
from rc_jax.config import defaults
from rc_jax.inference.predictor import make_predictor
from rc_jax.inference.windows import window_starts
from rc_jax.models import Network, Outputs

CLASSES = 5
STRIDE = 4
WEIGHTS = np.random.default_rng(0).normal(0, 0.02, (3, CLASSES)).astype(np.float32)


def stand_in() -> Network:
  """Returns logits that mix each grid pixel's colour with its place in the window, so that a wrong offset shows."""

  def predict(params, batch_stats, images):
    grid = images.astype(jnp.float32)[:, ::STRIDE, ::STRIDE]
    place = jnp.arange(grid.shape[1])[:, None] * 0.05 + jnp.arange(grid.shape[2])[None, :] * 0.03
    logits = grid @ WEIGHTS + jnp.sin(place)[None, :, :, None] * jnp.arange(CLASSES)
    return Outputs(logits, logits, None)

  def unused(*args, **kwargs):
    raise AssertionError("inference needs prediction alone")

  return Network(unused, unused, predict, CLASSES, CLASSES, STRIDE)


def bilinear(logits: np.ndarray, size: tuple[int, int], align_corners: bool = True) -> np.ndarray:
  """Bilinear resampling of ``[h,w,N]`` as four explicit neighbours of every pixel, float64."""
  h, w, _ = logits.shape
  if align_corners:
    y, x = (
      np.linspace(0, old - 1, new) if new > 1 else np.zeros(1) for old, new in ((h, size[0]), (w, size[1]))
    )
  else:
    y, x = (
      np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
      for old, new in ((h, size[0]), (w, size[1]))
    )
  y, x = y[:, None], x[None, :]
  top, left = y.astype(int), x.astype(int)
  bottom, right = np.minimum(top + 1, h - 1), np.minimum(left + 1, w - 1)
  dy, dx = (y - top)[..., None], (x - left)[..., None]
  logits = logits.astype(np.float64)
  upper = (1 - dx) * logits[top, left] + dx * logits[top, right]
  lower = (1 - dx) * logits[bottom, left] + dx * logits[bottom, right]
  return (1 - dy) * upper + dy * lower


def full_image(image: np.ndarray) -> np.ndarray:
  """Computes the probabilities of an image at once, in float64."""
  grid = image[::STRIDE, ::STRIDE].astype(np.float64)
  place = np.arange(grid.shape[0])[:, None] * 0.05 + np.arange(grid.shape[1])[None, :] * 0.03
  logits = bilinear(grid @ WEIGHTS + np.sin(place)[..., None] * np.arange(CLASSES), image.shape[:2])
  exponentials = np.exp(logits - logits.max(-1, keepdims=True))
  return exponentials / exponentials.sum(-1, keepdims=True)


def sliding_windows(image: np.ndarray, window: tuple[int, int], stride: tuple[int, int]) -> np.ndarray:
  """Computes one window after the other, the last one of a row or column moved back to the border."""
  height, width = image.shape[:2]
  tall, wide = max(height, window[0]), max(width, window[1])
  canvas = np.tile(np.float64([123.675, 116.28, 103.53]), (tall, wide, 1))
  canvas[:height, :width] = image
  total, seen = np.zeros((tall, wide, CLASSES)), np.zeros((tall, wide, 1))
  for row in range(math.ceil((tall - window[0]) / stride[0]) + 1):
    for column in range(math.ceil((wide - window[1]) / stride[1]) + 1):
      top = min(row * stride[0], tall - window[0])
      left = min(column * stride[1], wide - window[1])
      piece = np.s_[top : top + window[0], left : left + window[1]]
      total[piece] += full_image(canvas[piece].astype(np.float32))
      seen[piece] += 1
  assert seen.min() >= 1
  return (total / seen)[:height, :width]


def settings(**fields):
  config = defaults().eval
  for name, value in fields.items():
    config[name] = value
  return config


def image(height: int, width: int) -> np.ndarray:
  return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), np.uint8)


def predict(pixels: np.ndarray, **fields) -> np.ndarray:
  predictor = jax.jit(make_predictor(stand_in(), settings(**fields)))
  return np.asarray(predictor({}, {}, jnp.asarray(pixels)[None]))[0]


@pytest.mark.parametrize("size", [(21, 33), (16, 24), (21, 1)])
def test_full_image_equals_a_plain_loop(size: tuple[int, int]) -> None:
  pixels = image(*size)
  np.testing.assert_allclose(predict(pixels), full_image(pixels.astype(np.float32)), atol=1e-5)


@pytest.mark.parametrize(
  ("size", "window", "stride"),
  [
    ((33, 47), (17, 21), (12, 14)),  # windows do not divide the image
    ((34, 42), (17, 21), (17, 21)),  # they do, without overlap
    ((13, 47), (17, 21), (12, 14)),  # the image is lower than the window
    ((13, 9), (17, 21), (12, 14)),  # smaller on both sides
    ((17, 21), (17, 21), (12, 14)),  # exactly one window
    ((33, 1), (17, 21), (12, 14)),  # a single column
  ],
)
def test_sliding_window_equals_a_plain_loop(size, window, stride) -> None:
  pixels = image(*size)
  got = predict(pixels, crop_size=window, stride=stride)
  np.testing.assert_allclose(got, sliding_windows(pixels, window, stride), atol=1e-5)


def test_stride_is_two_thirds_of_the_window_by_default() -> None:
  pixels = image(40, 50)
  np.testing.assert_allclose(
    predict(pixels, crop_size=(21, 17)), sliding_windows(pixels, (21, 17), (14, 12)), atol=1e-5
  )


def test_flip_averages_the_image_and_its_mirror_image() -> None:
  pixels = image(21, 33)
  expected = (
    full_image(pixels.astype(np.float32)) + full_image(pixels[:, ::-1].astype(np.float32))[:, ::-1]
  ) / 2
  np.testing.assert_allclose(predict(pixels, flip=True), expected, atol=1e-5)


def test_scales_are_averaged_at_the_size_of_the_image() -> None:
  pixels = image(24, 36)
  half = np.asarray(jax.image.resize(pixels.astype(np.float32), (12, 18, 3), "bilinear", antialias=False))
  expected = (full_image(pixels.astype(np.float32)) + bilinear(full_image(half), (24, 36))) / 2
  np.testing.assert_allclose(predict(pixels, scales=(0.5, 1.0)), expected, atol=1e-5)


def test_probabilities_sum_to_one() -> None:
  got = predict(image(33, 47), crop_size=(17, 21), scales=(0.5, 1.0, 1.5), flip=True)
  np.testing.assert_allclose(got.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("length", [5, 17, 18, 29, 100])
def test_windows_cover_every_pixel(length: int) -> None:
  window, stride = 17, 12
  length = max(length, window)
  starts = window_starts(length, window, stride)
  covered = {pixel for start in starts for pixel in range(start, start + window)}
  assert covered == set(range(length)) and len(starts) == len(set(starts))


@pytest.mark.parametrize("size", [(33, 49), (34, 40), (47, 60)])
@pytest.mark.parametrize("pads", [True, False])
def test_full_images_are_not_stretched(size: tuple[int, int], pads: bool) -> None:
  """A network that samples every 8th pixel of a ramp: what it predicts lies where the ramp is, at any size."""

  def predict(params, batch_stats, images):
    logits = 0.1 * images[:, ::8, ::8, :2].astype(jnp.float32)
    return Outputs(logits, logits)

  def unused(*args, **kwargs):
    raise AssertionError("inference needs prediction alone")

  network = Network(unused, unused, predict, 2, 2, align_corners=True, grid_stride=8)
  rows, columns = np.mgrid[: size[0], : size[1]]
  images = np.stack([2 * rows, 3 * columns, 0 * rows], axis=-1).astype(np.uint8)[None]
  config_eval = defaults().eval
  config_eval.pad_to_grid = pads
  got = np.asarray(make_predictor(network, config_eval)({}, {}, images))[0, ..., 0]
  expected = 1 / (1 + np.exp(0.1 * (3.0 * columns - 2.0 * rows)))
  # Behind the last sample within the image, the padding enters.
  inside = np.s_[: (size[0] - 1) // 8 * 8 + 1, : (size[1] - 1) // 8 * 8 + 1]
  error = np.abs(got - expected)[inside].max()
  aligned = all(side % 8 == 1 for side in size)
  # The control: without padding, aligned corners stretch the grid of other sizes.
  assert error < 1e-5 if pads or aligned else error > 0.01


def test_windows_are_not_padded() -> None:
  config_eval = defaults().eval
  config_eval.crop_size = (40, 40)
  shapes = []

  def predict(params, batch_stats, images):
    shapes.append(images.shape[1:3])
    logits = images[:, ::8, ::8, :2].astype(jnp.float32)
    return Outputs(logits, logits)

  network = Network(predict, predict, predict, 2, 2, align_corners=True, grid_stride=8)
  make_predictor(network, config_eval)({}, {}, np.zeros((1, 50, 60, 3), np.uint8))
  assert set(shapes) == {(40, 40)}


@pytest.mark.long
@pytest.mark.parametrize(
  ("backbone", "fields", "stride"),
  [
    ("resnet_tiny", {}, 8),
    ("resnet_tiny", {"output_stride": 16, "multi_grid": (1, 1)}, 16),
    ("hrnetv2_tiny", {"output_stride": 4, "name": "fcn"}, 32),
  ],
)
def test_the_grids_of_networks_lie_on_multiples_of_their_stride(backbone, fields, stride) -> None:
  model = defaults().model
  model.update({"backbone": backbone, "multi_grid": (1, 1), "dtype": "float32"} | fields)
  network = models.build(model, 2)
  assert network.grid_stride == stride
  # A grid of stride `s` then has a row on each s-th pixel: one more for `s` more pixels.
  finest = 4 if backbone.startswith("hrnet") else stride
  variables = network.init(jax.random.key(0))
  for side in (2 * stride + 1, 3 * stride + 1):
    outputs = jax.eval_shape(network.predict, *variables, jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8))
    assert outputs.logits.shape[1] == (side - 1) // finest + 1
