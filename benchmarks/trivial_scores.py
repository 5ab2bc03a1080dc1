"""Scores that a trained network must exceed: the most frequent class everywhere, and the untrained network.

python -m benchmarks.trivial_scores --config=configs/demo.py
"""

import argparse

import jax
import numpy as np

from rc_jax import data, models
from rc_jax.config import height_width, load_recipe
from rc_jax.evaluation import evaluator, metrics


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
  print(f"  untrained network: {100 * untrained['miou']:.2f}")


if __name__ == "__main__":
  main()
