"""Scores against plain counts, whatever the image sizes and batches."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax import evaluate
from rc_jax.config import defaults
from rc_jax.data import DatasetInfo
from rc_jax.models import Network, Outputs

INFO = DatasetInfo(
  name="three",
  class_names=("red", "green", "blue", "never"),
  palette=np.eye(4, 3, dtype=np.uint8) * 255,
  label_ids=np.arange(4),
)


class Photos:
  """Images of several sizes with noisy labels, some of them ignored."""

  info = INFO

  def __init__(self, sizes):
    rng = np.random.default_rng(3)
    self.examples = []
    for number, size in enumerate(sizes):
      pixels = rng.integers(0, 256, (*size, 3), np.uint8)
      label = np.where(rng.random(size) < 0.7, pixels.argmax(-1), rng.integers(0, 3, size)).astype(np.uint8)
      label[rng.random(size) < 0.1] = 255
      self.examples.append({"image": pixels, "label": label, "name": f"photo{number}"})

  def __len__(self):
    return len(self.examples)

  def __getitem__(self, index):
    return self.examples[index]


def brightest_channel() -> Network:
  """Predicts the brightest colour at every pixel: output stride 1, no parameters but an offset."""

  def predict(params, batch_stats, images):
    logits = images.astype(jnp.float32) * params["gain"]
    logits = jnp.concatenate([logits, jnp.full((*logits.shape[:3], 1), -1e4)], axis=-1)
    return Outputs(logits, logits, None)

  def unused(*args, **kwargs):
    raise AssertionError

  return Network(unused, unused, predict, 4, 4, 1)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_counts_every_pixel_once(batch_size: int) -> None:
  source = Photos([(8, 9)] * 4 + [(5, 12)] * 2 + [(8, 9)])
  config = defaults()
  config.eval.batch_size = batch_size
  params = {"gain": jnp.float32(1)}
  results, counts = evaluate.make_evaluator(brightest_channel(), source, config)(params, {}, None)

  expected = np.zeros((4, 4), np.int64)
  for example in source.examples:
    for truth, pixel in zip(example["label"].ravel(), example["image"].reshape(-1, 3), strict=True):
      if truth != 255:
        expected[truth, pixel.argmax()] += 1
  np.testing.assert_array_equal(counts.confusion, expected)
  assert counts.confusion.dtype == np.int64
  red = expected[0, 0] / (expected[0].sum() + expected[:, 0].sum() - expected[0, 0])
  assert results["iou"]["red"] == pytest.approx(red)
  assert results["iou"]["never"] is None
  assert results["images"] == 7


def test_writes_what_the_design_promises(tmp_path: pathlib.Path) -> None:
  source = Photos([(6, 7)])
  results, counts = evaluate.make_evaluator(brightest_channel(), source, defaults())(
    {"gain": jnp.float32(1)}, {}, None
  )
  written = json.loads(evaluate.write(tmp_path, results, counts, step=12).read_text())
  assert {"miou", "iou", "pixel_accuracy", "mean_accuracy", "step", "scales", "flip"} <= written.keys()
  assert written["step"] == 12 and written["iou"]["never"] is None
  np.testing.assert_array_equal(np.load(tmp_path / "eval" / "val_confusion.npy"), counts.confusion)


def test_a_split_without_labelled_pixels_is_refused() -> None:
  source = Photos([(6, 7)])
  source.examples[0]["label"][:] = 255
  with pytest.raises(ValueError, match="no labelled pixel"):
    evaluate.make_evaluator(brightest_channel(), source, defaults())({"gain": jnp.float32(1)}, {}, None)


def test_poll_may_stop_the_scoring() -> None:
  def stop() -> None:
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    evaluate.make_evaluator(brightest_channel(), Photos([(6, 7)] * 3), defaults())(
      {"gain": jnp.float32(1)}, {}, stop
    )
