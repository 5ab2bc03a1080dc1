"""Images of many sizes through few programs: the same numbers as a plain loop over scales, mirrorings and windows."""

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax.inference import batched, predictor, windows
from rc_jax.models import Network, Outputs
from tests.inference.test_predictor import CLASSES, STRIDE, bilinear, image, settings, stand_in, whole
from tests.inference.test_predictor import windows as plain_windows

# Smaller than the window, as large, larger; a single column, a single row; some of one canvas.
SIZES = [(33, 47), (13, 47), (13, 9), (11, 14), (17, 21), (33, 1), (1, 30), (39, 45), (34, 42)]
WINDOW, WINDOW_STRIDE = (17, 21), (12, 14)


def averaged(pixels: np.ndarray, scales=(1.0,), flip=False, crop_size=(), stride=(), **unused) -> np.ndarray:
  """One view after the other, in float64 but for what the network takes."""
  total = np.zeros((*pixels.shape[:2], CLASSES))
  for scale in scales:
    size = tuple(max(1, round(side * scale)) for side in pixels.shape[:2])
    scaled = bilinear(pixels, size, align_corners=False).astype(np.float32)
    for mirror in (1, -1) if flip else (1,):
      seen = np.ascontiguousarray(scaled[:, ::mirror])
      view = plain_windows(seen, crop_size, stride) if crop_size else whole(seen)
      total += bilinear(view[:, ::mirror], pixels.shape[:2])
  return total / len(scales) / (2 if flip else 1)


def through_groups(sizes, network=None, **fields) -> dict[tuple[int, int], np.ndarray]:
  """The probabilities of an image of each size, from ``ImageSet``."""
  images = batched.ImageSet(network or stand_in(), settings(**fields))
  found = {}
  for group in images.groups([{"image": image(*size), "name": size} for size in sizes]):
    total = np.asarray(images.probabilities({}, {}, group)) / images.views.total
    for number, (example, own) in enumerate(zip(group.examples, total, strict=False)):
      height, width = example["image"].shape[:2]
      assert example["name"] not in found, "an image came twice"
      found[example["name"]] = own[:height, :width]
      beside = own.copy()
      beside[:height, :width] = 0
      assert not beside.any() and number < group.places
  return found


VIEWS = {
  "whole": {},
  "whole, two scales, mirrored": {"scales": (0.5, 1.0), "flip": True, "batch_size": 2},
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
def test_equal_to_a_plain_loop(views: str) -> None:
  fields = VIEWS[views]
  sizes = SIZES if "crop_size" in fields else [(33, 47), (33, 1)]
  found = through_groups(sizes, **fields)
  assert found.keys() == set(sizes)
  for size, probabilities in found.items():
    np.testing.assert_allclose(probabilities, averaged(image(*size), **fields), atol=1e-5, err_msg=str(size))


def test_equal_to_the_definition_without_aligned_corners() -> None:
  fields = VIEWS["windows, scales, mirrored"]
  aligned = stand_in()
  network = Network(
    *(getattr(aligned, name) for name in ("init", "train", "predict")), CLASSES, CLASSES, False
  )
  predict = jax.jit(predictor.make_predictor(network, settings(**fields)))
  for size, probabilities in through_groups([(33, 47), (20, 9)], network, **fields).items():
    expected = np.asarray(predict({}, {}, image(*size)[None]))[0]
    np.testing.assert_allclose(probabilities, expected, atol=2e-6, err_msg=str(size))


def test_many_sizes_compile_few_programs() -> None:
  """Sixty images, each of another size, as in ADE20K: the network is compiled once, a canvas takes four programs."""
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
    found = through_groups(
      sizes, network, crop_size=(33, 33), scales=(0.5, 1.0, 1.25), flip=True, batch_size=2
    )
  finally:
    jax.monitoring.unregister_event_duration_listener(count)
  assert len(found) == 60
  canvases = {tuple(map(windows.canvas_side, size)) for size in sizes}
  assert set(traced) == {(2, 33, 33, 3)} and len(traced) == 1
  # Leftovers share a canvas that may be a new one; a batch is of one image or two.
  assert len(canvases) == 4 and len(compiled) <= 4 * (len(canvases) + 2) + 2, (canvases, len(compiled))


def test_whole_images_are_grouped_by_their_size() -> None:
  traced = []

  def predict(params, batch_stats, images):
    traced.append(images.shape)
    return Outputs(images.astype(jnp.float32), images, None)

  sizes = [(8, 9), (5, 7)] * 5
  images = batched.ImageSet(Network(None, None, predict, 3, 3, True), settings(batch_size=2))
  numbered = [{"image": image(*size), "name": number} for number, size in enumerate(sizes)]
  seen = dict((example["name"], labels.shape) for example, labels, _ in images.labels({}, {}, numbered))
  assert seen == dict(enumerate(sizes))
  assert sorted(traced) == [(2, 5, 7, 3), (2, 8, 9, 3)]


def test_labels_are_the_most_probable_classes() -> None:
  fields = VIEWS["windows by four"]
  images = batched.ImageSet(stand_in(), settings(**fields))
  examples = [{"image": image(*size), "name": size} for size in SIZES[:4]]
  found = {example["name"]: rest for example, *rest in images.labels({}, {}, examples, probabilities=True)}
  assert found.keys() == set(SIZES[:4])
  for size, (labels, shares) in found.items():
    expected = averaged(image(*size), **fields)
    assert labels.dtype == shares.dtype == np.uint8
    np.testing.assert_array_equal(labels, expected.argmax(-1))
    total = expected.sum(axis=-1, keepdims=True)
    assert np.abs(shares - 255 * (expected / total).transpose(2, 0, 1)).max() <= 0.5 + 1e-3


def test_images_that_wait_too_long_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(batched, "WAITING_BYTES", 10_000)
  images = batched.ImageSet(stand_in(), settings(crop_size=(33, 33), batch_size=8))
  sizes = [(30 + 9 * number, 90 - 8 * number) for number in range(8)]
  read = []

  def examples():
    for size in sizes:
      read.append(size)
      yield {"image": image(*size), "name": size}

  groups = images.groups(examples())
  first = next(groups)
  assert len(read) < len(sizes)
  names = [example["name"] for group in (first, *groups) for example in group.examples]
  assert sorted(names) == sorted(sizes)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 40, 65, 427, 512, 513, 683, 2048, 2049])
def test_canvases_are_little_larger_than_images(length: int) -> None:
  side = windows.canvas_side(length)
  assert length <= side <= max(32, 1.25 * length) and side % 8 == 0
  assert windows.canvas_side(side) == side
