"""Scores that a trained network must exceed: those of fixed answers, of single pixels, and of the untrained network.

python -m benchmarks.trivial_scores --config=configs/demo.py
"""

import argparse
from collections.abc import Iterator

import jax
import numpy as np

from rc_jax import data, models
from rc_jax.config import Config, height_width, load_recipe
from rc_jax.data.reading.dataset_info import IGNORE_LABEL
from rc_jax.evaluation import evaluator, metrics

COLOUR_LEVELS = 8  # of each channel
ROWS = 32  # bands of rows


def confusion_of_single_pixels(config: Config, root: str) -> np.ndarray:
  """Returns the confusion ``[N,N]`` of a table that knows the colour and the row of a pixel, and nothing around it.

  The table holds the most frequent class of the training images for each of 8 x 8 x 8 colours in each of 32 bands.
  """

  def keys_and_labels(split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    source = data.load(config.dataset.name, root, split)
    for index in range(len(source)):
      example = source[index]
      label = example["label"]
      assert label is not None, f"{split} has no labels"
      colour = (
        example["image"].astype(int) * COLOUR_LEVELS // 256 @ (COLOUR_LEVELS**2, COLOUR_LEVELS, 1)
      ).astype(int)
      row = (np.arange(label.shape[0]) * ROWS // label.shape[0])[:, None]
      counted = label != IGNORE_LABEL
      yield (colour * ROWS + row)[counted], label[counted]

  classes = data.info(config.dataset.name, root).num_classes
  table = np.zeros((COLOUR_LEVELS**3 * ROWS, classes), np.int64)
  for key, label in keys_and_labels(config.dataset.train_split):
    np.add.at(table, (key, label), 1)
  confusion = np.zeros((classes, classes), np.int64)
  for key, label in keys_and_labels(config.eval.split):
    np.add.at(confusion, (label, table.argmax(axis=1)[key]), 1)
  return confusion


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", default="configs/demo.py")
  parser.add_argument("--root", default="", help="folder of the data set; synthetic needs none")
  arguments = parser.parse_args()
  config = load_recipe(arguments.config)
  source = data.load(config.dataset.name, arguments.root, config.eval.split)
  network = models.build(config.model, source.info.num_classes)
  variables = network.init(jax.random.key(config.seed), image_size=height_width(config.train.crop_size))
  untrained, counts = evaluator.make_evaluator(network, source, config)(
    variables.params, variables.batch_stats, None
  )
  pixels = counts.confusion.sum(axis=1)
  everywhere = np.zeros_like(counts.confusion)
  everywhere[:, pixels.argmax()] = pixels
  majority = metrics.scores(everywhere, source.info.absent_class)
  print(f"{arguments.config}, {config.eval.split}: mIoU in percent")
  print(f"  {source.info.class_names[pixels.argmax()]} everywhere: {100 * majority['miou']:.2f}")
  single_pixels = metrics.scores(confusion_of_single_pixels(config, arguments.root), source.info.absent_class)
  print(f"  colour and row of the single pixel: {100 * single_pixels['miou']:.2f}")
  print(f"  untrained network: {100 * untrained['miou']:.2f}")


if __name__ == "__main__":
  main()
