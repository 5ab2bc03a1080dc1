"""Images of many sizes in batches that share programs, against a plain loop over scales, mirror images and windows."""

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax.data.augment import crop_views
from rc_jax.inference import batched, full_images, predictor, windows
from rc_jax.models import Network, Outputs
from tests.inference.test_predictor import (
  CLASSES,
  STRIDE,
  bilinear,
  full_image,
  image,
  settings,
  sliding_windows,
  stand_in,
)

# Smaller than the window, as large, larger; a single column, a single row; some of one canvas.
SIZES = [(33, 47), (13, 47), (13, 9), (11, 14), (17, 21), (33, 1), (1, 30), (39, 45), (34, 42)]
WINDOW, WINDOW_STRIDE = (17, 21), (12, 14)


def averaged(pixels: np.ndarray, scales=(1.0,), flip=False, crop_size=(), stride=(), **unused) -> np.ndarray:
  """Averages one view after the other, in float64 except for the network's input."""
  total = np.zeros((*pixels.shape[:2], CLASSES))
  for scale in scales:
    size = tuple(max(1, round(side * scale)) for side in pixels.shape[:2])
    scaled = bilinear(pixels, size, align_corners=False).astype(np.float32)
    for mirror in (1, -1) if flip else (1,):
      seen = np.ascontiguousarray(scaled[:, ::mirror])
      view = sliding_windows(seen, crop_size, stride) if crop_size else full_image(seen)
      total += bilinear(view[:, ::mirror], pixels.shape[:2])
  return total / len(scales) / (2 if flip else 1)


def batched_probabilities(sizes, network=None, **fields) -> dict[tuple[int, int], np.ndarray]:
  """Returns the probabilities of an image of each size, from ``BatchedPredictor``."""
  batches = batched.BatchedPredictor(network or stand_in(), settings(**fields))
  found = {}
  for batch in batches.batches((size, image(*size)) for size in sizes):
    labels, probabilities = (np.asarray(array) for array in batches.predict({}, {}, batch, True))
    assert len(batch.images) <= batch.rows == len(labels) == len(probabilities)
    for (height, width), of_image, on_canvas in zip(batch.keys, labels, probabilities, strict=False):
      assert (height, width) not in found, "an image came twice"
      found[height, width] = on_canvas[:height, :width]
      np.testing.assert_array_equal(of_image[:height, :width], found[height, width].argmax(-1))
      beside = on_canvas.copy()
      beside[:height, :width] = 0
      assert not beside.any()
  return found


VIEWS = {
  "full images": {},
  "full images, two scales, mirrored": {"scales": (0.5, 1.0), "flip": True, "batch_size": 2},
  "windows": {"crop_size": WINDOW, "stride": WINDOW_STRIDE},
  "windows by four": {"crop_size": WINDOW, "stride": WINDOW_STRIDE, "batch_size": 4},
  "windows, scales, mirrored": {
    "crop_size": WINDOW,
    "stride": WINDOW_STRIDE,
    "scales": (0.5, 1.0, 1.75),
    "flip": True,
    "batch_size": 3,
  },
}


@pytest.mark.parametrize("views", VIEWS)
def test_probabilities_equal_a_plain_loop(views: str) -> None:
  fields = VIEWS[views]
  sizes = SIZES if "crop_size" in fields else [(33, 47), (33, 1)]
  found = batched_probabilities(sizes, **fields)
  assert found.keys() == set(sizes)
  for size, probabilities in found.items():
    np.testing.assert_allclose(probabilities, averaged(image(*size), **fields), atol=1e-5, err_msg=str(size))


def test_probabilities_equal_the_definition_without_aligned_corners() -> None:
  fields = VIEWS["windows, scales, mirrored"]
  aligned = stand_in()
  network = Network(
    *(getattr(aligned, name) for name in ("init", "train", "predict")), CLASSES, CLASSES, False
  )
  predict = jax.jit(predictor.make_predictor(network, settings(**fields)))
  for size, probabilities in batched_probabilities([(33, 47), (20, 9)], network, **fields).items():
    expected = np.asarray(predict({}, {}, image(*size)[None]))[0]
    np.testing.assert_allclose(probabilities, expected, atol=2e-6, err_msg=str(size))


@pytest.mark.long
def test_sixty_sizes_compile_one_network_and_four_programs_a_canvas() -> None:
  rng = np.random.default_rng(0)
  sizes = sorted({(int(h), int(w)) for h, w in rng.integers(57, 81, (70, 2))})[:60]
  rng.shuffle(sizes)
  sizes = [tuple(size) for size in sizes]
  traced, compiled = [], []

  def predict(params, batch_stats, images):
    traced.append(images.shape)
    return Outputs(images[:, ::STRIDE, ::STRIDE, :2].astype(jnp.float32), images, None)

  def count(event: str, duration: float, **unused: object) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
      compiled.append(event)

  network = Network(None, None, predict, 2, 2, True)
  jax.monitoring.register_event_duration_secs_listener(count)
  try:
    found = batched_probabilities(
      sizes, network, crop_size=(33, 33), scales=(0.5, 1.0, 1.25), flip=True, batch_size=2
    )
  finally:
    jax.monitoring.unregister_event_duration_listener(count)
  assert len(found) == 60
  canvases = {tuple(map(windows.canvas_side, size)) for size in sizes}
  assert set(traced) == {(2, 33, 33, 3)} and len(traced) == 1
  # Images left over at the end share a canvas that may be a new one; a batch has one image or two.
  assert len(canvases) == 4 and len(compiled) <= 4 * (len(canvases) + 2) + 2, (canvases, len(compiled))


def tracing(traced: list) -> Network:
  """Returns a network that predicts the brightest colour and lists the shapes for which it is traced."""

  def predict(params, batch_stats, images):
    traced.append(images.shape)
    return Outputs(images.astype(jnp.float32), images, None)

  return Network(None, None, predict, 3, 3, True)


def test_full_images_share_batches_with_others_of_their_size() -> None:
  traced: list = []
  sizes = [(8, 9), (5, 7)] * 5
  batches = batched.BatchedPredictor(tracing(traced), settings(batch_size=2))
  numbered = [(number, image(*size)) for number, size in enumerate(sizes)]
  predictions = list(batches.labels({}, {}, numbered))
  assert {each.key: each.labels.shape for each in predictions} == dict(enumerate(sizes))
  for each in predictions:
    np.testing.assert_array_equal(each.labels, image(*sizes[each.key]).argmax(-1))
  assert sorted(traced) == [(2, 5, 7, 3), (2, 8, 9, 3)]


def test_batches_are_no_larger_than_their_size_needs_if_counts_are_known() -> None:
  traced: list = []
  counts = {(8, 9): 5, (5, 7): 1, (6, 6): 4}
  batches = batched.BatchedPredictor(tracing(traced), settings(batch_size=4), count_of_size=counts)
  # One image of (6, 6) was labelled before, so that its batch is padded.
  sizes = [(8, 9)] * 5 + [(5, 7)] + [(6, 6)] * 3
  order = [each.key for each in batches.labels({}, {}, ((size, image(*size)) for size in sizes))]
  assert order == sizes
  assert traced == [(4, 8, 9, 3), (1, 5, 7, 3), (4, 6, 6, 3)]


def test_many_sizes_of_full_images_suggest_a_sliding_window(
  capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(full_images, "MANY_PROGRAMS", 2)
  monkeypatch.setattr(full_images, "LONG_COMPILATION", 0)
  sizes = [(8, 9), (9, 9), (10, 9), (8, 9)]
  unknown = batched.BatchedPredictor(tracing([]), settings())
  assert len(list(unknown.labels({}, {}, ((size, image(*size)) for size in sizes)))) == 4
  assert capsys.readouterr().out.count("compiles a program, 2 so far; a sliding window compiles one") == 1
  known = batched.BatchedPredictor(tracing([]), settings(), count_of_size=dict.fromkeys(sizes, 1))
  assert len(list(known.labels({}, {}, ((size, image(*size)) for size in sizes[:3])))) == 3
  assert capsys.readouterr().out.count("of the other 2 sizes will take about") == 1


def test_labels_are_the_most_probable_classes() -> None:
  fields = VIEWS["windows by four"]
  batches = batched.BatchedPredictor(stand_in(), settings(**fields))
  images = [(size, image(*size)) for size in SIZES[:4]]
  found = {each.key: each for each in batches.labels({}, {}, images, probabilities=True)}
  assert found.keys() == set(SIZES[:4])
  for size, (_, pixels, labels, probabilities) in found.items():
    np.testing.assert_array_equal(pixels, image(*size))
    expected = averaged(image(*size), **fields)
    assert labels.dtype == probabilities.dtype == np.uint8
    np.testing.assert_array_equal(labels, expected.argmax(-1))
    total = expected.sum(axis=-1, keepdims=True)
    assert np.abs(probabilities - 255 * (expected / total).transpose(2, 0, 1)).max() <= 0.5 + 1e-3


def test_images_that_wait_too_long_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(batched, "WAITING_BYTES", 10_000)
  predictor = batched.BatchedPredictor(stand_in(), settings(crop_size=(33, 33), batch_size=8))
  sizes = [(30 + 9 * number, 90 - 8 * number) for number in range(8)]
  read = []

  def images():
    for size in sizes:
      read.append(size)
      yield size, image(*size)

  batches = predictor.batches(images())
  first = next(batches)
  assert len(read) < len(sizes)
  assert sorted(key for batch in (first, *batches) for key in batch.keys) == sorted(sizes)


def test_augmentation_pads_with_the_rounded_colour_of_windows() -> None:
  np.testing.assert_array_equal(crop_views.PADDING_COLOR, np.round(predictor.PADDING_COLOR))


@pytest.mark.parametrize("length", [1, 31, 32, 33, 40, 65, 427, 512, 513, 683, 2048, 2049])
def test_canvases_are_at_most_a_quarter_longer_than_images(length: int) -> None:
  side = windows.canvas_side(length)
  assert length <= side <= max(32, 1.25 * length) and side % 8 == 0
  assert windows.canvas_side(side) == side
