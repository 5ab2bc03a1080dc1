"""The bootstrap over images as a plain loop: it draws the images of each resample and adds their confusion matrices."""

from collections.abc import Sequence

import numpy as np

from rc_jax.evaluation import bootstrap, metrics


def mious_of_resamples(
  matrices: Sequence[np.ndarray], rule: str, resamples: int, seed: int = 0
) -> np.ndarray:
  """Computes the mIoU of results on the draws of ``bootstrap.resampled_mious``.

  Args:
    matrices: of ``K`` results, confusion matrices ``[I,N,N]`` of the same images, rows truth.
    rule: for absent classes.
    resamples: their number, ``R``.
    seed: of the draws.

  Returns:
    float64 ``[K,R]``, 0..1.
  """
  images = len(matrices[0])
  rng = np.random.default_rng(seed)
  mious = []
  for start in range(0, resamples, bootstrap.CHUNK):
    size = min(bootstrap.CHUNK, resamples - start)
    for counts in rng.multinomial(images, np.full(images, 1 / images), size=size):
      drawn = [image for image, count in enumerate(counts) for _ in range(count)]
      assert len(drawn) == images
      mious.append(
        [metrics.scores(sum(result[image] for image in drawn), rule)["miou"] for result in matrices]
      )
  return np.array(mious).T
