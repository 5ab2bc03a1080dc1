"""Colours for classes without colours, and the palettes that tools write beside ids."""

from collections.abc import Sequence

import numpy as np


def colormap(count: int) -> np.ndarray:
  """Returns the colours of PASCAL VOC's ids: neighbours are far apart, and no two are equal.

  The bits of an id, from the lowest, become bits of red, green, blue, red and so on, from the highest.

  Args:
    count: the number of colours, 1..256; id 0 is black.

  Returns:
    uint8 ``[count,3]``, RGB.

  Source: ``VOClabelcolormap`` of the VOC development kit.

  >>> colormap(3).tolist()
  [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
  """
  ids = np.arange(count)
  colors = np.zeros((count, 3), np.uint8)
  for bit in range(8):
    colors[:, bit % 3] |= (((ids >> bit) & 1) << (7 - bit // 3)).astype(np.uint8)
  return colors


def is_standard(palette: np.ndarray, indices: Sequence[int]) -> bool:
  """Returns whether a palette holds the colours that tools give to ids of any data set.

  These are PASCAL VOC's colours (labelme, VOC, CVAT), the same from the second one on (PaddleSeg), and greys that
  equal the index (Pillow). They do not depend on the classes, so such a palette shows that the indices are the ids.

  Args:
    palette: uint8 ``[P,3]``. Entries above the largest index, and entry 255, may have any colour.
    indices: those that occur in the image.

  >>> is_standard(colormap(256), [0, 3, 255])
  True
  """
  # Tools differ in the last colour. The second one counts in any case, because a palette of the image's colours may
  # begin with black by chance.
  last = max([1, *(index for index in indices if index < 255)])
  if last >= len(palette):
    return False
  voc = colormap(last + 2)
  greys = np.repeat(np.arange(last + 1, dtype=np.uint8)[:, None], 3, axis=1)
  return any(np.array_equal(palette[: last + 1], standard) for standard in (voc[:-1], voc[1:], greys))
