"""Procedural street scenes: a data set without files.

A network must learn shapes and context to score well: cars, people and houses have any colour, objects shrink towards a
vanishing point and occlude each other, and a few classes cover most of the pixels.
"""

import numpy as np

from rc_jax.data.datasets.streets import canvas, scene
from rc_jax.data.reading import Dataset, DatasetInfo, Example, check_split

# split -> (stream of random numbers, scenes). Separate streams: no scene is in two splits.
SPLITS = {"train": (0, 800), "val": (1, 60)}
# Multiples of 8 and 1: a grid of stride 8 then lies on the corners of the image, as on those of a crop. The corners of
# 128 x 192 would stretch the grid by up to 6 %.
IMAGE_SIZE = (129, 193)

INFO = DatasetInfo(
  name="synthetic",
  class_names=tuple(canvas.CLASSES),
  palette=np.array(list(canvas.CLASSES.values()), np.uint8),
  label_ids=np.arange(len(canvas.CLASSES)),
)


def load(root: str, split: str) -> "StreetScenes":
  """Returns a split, ``train`` or ``val``, of the synthetic scenes; ``root`` is not read."""
  del root
  check_split(split, INFO.name, tuple(SPLITS))
  return StreetScenes(split)


class StreetScenes:
  """A sequence of scenes, each drawn when first asked for and then kept.

  Args:
    split: ``train`` or ``val``.
    size: ``(H,W)`` of the images.
    seed: another seed gives other streets.
  """

  info = INFO
  labelled = True

  def __init__(self, split: str, size: tuple[int, int] = IMAGE_SIZE, seed: int = 0):
    self.split = split
    self.size = size
    self.seed = seed
    self._drawn: dict[int, tuple[np.ndarray, np.ndarray]] = {}

  def __len__(self) -> int:
    return SPLITS[self.split][1]

  def __getitem__(self, index: int) -> Example:
    """Returns scene ``index``: image uint8 ``[H,W,3]``, label uint8 ``[H,W]`` with 255 on the camera car's bonnet."""
    index = range(len(self))[index]
    if index not in self._drawn:
      rng = np.random.default_rng((self.seed, SPLITS[self.split][0], index))
      image, label = scene.draw(rng, self.size)
      # Scenes are returned several times.
      image.flags.writeable = label.flags.writeable = False
      self._drawn[index] = image, label
    image, label = self._drawn[index]
    return {"image": image, "label": label, "name": f"{self.split}_{index:04d}"}

  def __getstate__(self) -> dict[str, object]:
    # Worker processes draw scenes again, which is cheaper than sending them.
    return {**self.__dict__, "_drawn": {}}


DATASET = Dataset(info=INFO, splits=tuple(SPLITS), load=load)
