"""Colours for classes without colours."""

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
