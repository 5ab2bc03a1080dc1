"""Pictures of predictions for people: colours over the photo, outlines, and a legend of the classes that are in it."""

import numpy as np
from PIL import Image

from rc_jax.data import DatasetInfo
from rc_jax.drawing.panels import overlay, swatches

OPACITY = 0.5
# Narrower pictures are enlarged by a whole factor: a legend needs room, and a thumbnail shows nothing.
LEAST_WIDTH = 480
LETTERS_PER_WIDTH = 64  # of the legend's font: the picture's width in heights of a letter
LEAST_LETTER = 13  # pixels; below this, letters of 5 x 3 dots begin
SMALLEST_SHARE = 0.001  # of the image's pixels; rarer classes are counted in the legend, not listed


def picture(image: np.ndarray, labels: np.ndarray, info: DatasetInfo) -> Image.Image:
  """Draws a prediction over its image, with a legend below.

  Args:
    image: uint8 ``[H,W,3]``.
    labels: ``[H,W]`` train ids ``0..N-1``.
    info: names and colours.

  Returns:
    An RGB picture, at least ``LEAST_WIDTH`` wide: the image under half transparent colours, regions outlined, enlarged
    by a whole factor where it is smaller than that; then a legend of the classes that are in it, the largest first,
    with their share of the pixels. Letters grow with the picture.
  """
  blended = Image.fromarray(overlay(image, labels, info.palette, OPACITY))
  # Not a factor for the width alone: a strip of 3 x 900 pixels would become a tower.
  factor = max(1, min(-(-LEAST_WIDTH // image.shape[1]), 2 * LEAST_WIDTH // image.shape[0]))
  width, height = image.shape[1] * factor, image.shape[0] * factor
  blended = blended.resize((width, height), Image.Resampling.NEAREST)
  outlined = np.array(blended)
  # Two classes of like colours, or one like what lies under it, part by their outline. Its width follows the picture's.
  thickness = max(1, round(width / 1000))
  outlined[_outline(labels.repeat(factor, axis=0).repeat(factor, axis=1), thickness)] = 255

  legend = _legend(_shares(labels, info.num_classes), info, max(width, LEAST_WIDTH))
  canvas = Image.new("RGB", (legend.width, height + legend.height), "white")
  canvas.paste(Image.fromarray(outlined), (0, 0))
  canvas.paste(legend, (0, height))
  return canvas


def _outline(labels: np.ndarray, thickness: int) -> np.ndarray:
  """Marks the pixels ``[H,W]`` whose right or lower neighbour, up to ``thickness`` pixels off, has another label."""
  mask = np.zeros(labels.shape, bool)
  for step in range(1, thickness + 1):
    mask[:, :-step] |= labels[:, step:] != labels[:, :-step]
    mask[:-step] |= labels[step:] != labels[:-step]
  return mask


def _shares(labels: np.ndarray, num_classes: int) -> list[tuple[int, float]]:
  """The classes that are present with their share of the pixels, the largest first."""
  counts = np.bincount(labels.ravel(), minlength=num_classes)
  order = np.argsort(-counts, kind="stable")
  return [(int(index), float(counts[index] / labels.size)) for index in order if counts[index]]


def _legend(shares: list[tuple[int, float]], info: DatasetInfo, width: int) -> Image.Image:
  listed = [(index, share) for index, share in shares if share >= SMALLEST_SHARE] or shares
  entries: list[tuple[str, str, np.ndarray | None]] = [
    (info.class_names[index], f" {_percent(share)}", info.palette[index]) for index, share in listed
  ]
  rare = len(shares) - len(listed)
  if rare:
    entries.append((f"and {rare} below", f" {_percent(SMALLEST_SHARE)}", None))
  return swatches(entries, width, letter=max(LEAST_LETTER, round(width / LETTERS_PER_WIDTH)))


def _percent(share: float) -> str:
  return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"
