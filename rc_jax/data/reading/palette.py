"""Colours for classes that come without."""

import numpy as np


def colormap(count: int) -> np.ndarray:
  """Returns the colours that PASCAL VOC gave its ids: far apart for neighbours, each used once.

  The bits of an id, lowest first, go to red, green, blue, red, ... as their highest bits first.

  Args:
    count: how many, 1..256; id 0 is black.

  Returns:
    uint8 ``[count,3]``, RGB.

  Source: ``VOClabelcolormap`` of the VOC development kit.
  """
  ids = np.arange(count)
  colors = np.zeros((count, 3), np.uint8)
  for bit in range(8):
    colors[:, bit % 3] |= (((ids >> bit) & 1) << (7 - bit // 3)).astype(np.uint8)
  return colors
