"""Overlays of predictions: class colours over the image, outlines, and a legend of the classes that it shows."""

import numpy as np
from PIL import Image

from rc_jax.data import DatasetInfo
from rc_jax.drawing.fonts import drawable_names
from rc_jax.drawing.panels import overlay, swatches

OPACITY = 0.5
LEAST_WIDTH = 480  # pixels; narrower pictures are enlarged by an integer, because a legend needs space
LETTERS_PER_WIDTH = 64  # width of the picture divided by the height of a letter of the legend
LEAST_LETTER = 13  # pixels; smaller letters are hard to read
SMALLEST_FRACTION = 0.001  # of the image's pixels; the legend counts rarer classes without listing them


def picture(image: np.ndarray, labels: np.ndarray, info: DatasetInfo) -> Image.Image:
  """Draws a prediction over its image, with a legend below.

  Args:
    image: uint8 ``[H,W,3]``.
    labels: ``[H,W]`` train ids ``0..N-1``.
    info: names and colours.

  Returns:
    An RGB picture, at least ``LEAST_WIDTH`` wide: the image under half transparent colours, with outlined regions,
    enlarged by an integer if it is narrower. Below it a legend lists its classes, the largest first, with their
    percentage of the pixels. Letters are proportional to the picture.
  """
  blended = Image.fromarray(overlay(image, labels, info.palette, OPACITY))
  # The height limits the factor too, because an image 3 pixels wide and 900 high would become 144,000 high.
  factor = max(1, min(-(-LEAST_WIDTH // image.shape[1]), 2 * LEAST_WIDTH // image.shape[0]))
  width, height = image.shape[1] * factor, image.shape[0] * factor
  blended = blended.resize((width, height), Image.Resampling.NEAREST)
  outlined = np.array(blended)
  # Outlines separate classes of similar colours. Their thickness is proportional to the picture.
  thickness = max(1, round(width / 1000))
  outlined[_outline(labels.repeat(factor, axis=0).repeat(factor, axis=1), thickness)] = 255

  below = legend(class_fractions(labels, info.num_classes), info, max(width, LEAST_WIDTH))
  canvas = Image.new("RGB", (below.width, height + below.height), "white")
  canvas.paste(Image.fromarray(outlined), (0, 0))
  canvas.paste(below, (0, height))
  return canvas


def _outline(labels: np.ndarray, thickness: int) -> np.ndarray:
  """Returns the mask ``[H,W]`` of pixels with another label up to ``thickness`` pixels to the right or below."""
  mask = np.zeros(labels.shape, bool)
  for step in range(1, thickness + 1):
    mask[:, :-step] |= labels[:, step:] != labels[:, :-step]
    mask[:-step] |= labels[step:] != labels[:-step]
  return mask


def class_fractions(labels: np.ndarray, num_classes: int) -> list[tuple[int, float]]:
  """Returns the classes in ``labels [H,W]`` with their fraction of the pixels, the largest first.

  >>> class_fractions(np.array([[2, 2, 0, 2]]), 3)
  [(2, 0.75), (0, 0.25)]
  """
  counts = np.bincount(labels.ravel(), minlength=num_classes)
  order = np.argsort(-counts, kind="stable")
  return [(int(index), float(counts[index] / labels.size)) for index in order if counts[index]]


def legend(fractions: list[tuple[int, float]], info: DatasetInfo, width: int) -> Image.Image:
  """Draws the names of classes with their percentage of the pixels.

  Args:
    fractions: class and fraction of the pixels, 0..1, the largest first.
    info: names and colours.
    width: of the picture, in pixels; letters are proportional to it.
  """
  listed = [(index, fraction) for index, fraction in fractions if fraction >= SMALLEST_FRACTION] or fractions
  names = drawable_names(info)
  entries: list[tuple[str, str, np.ndarray | None]] = [
    (names[index], f" {_percent(fraction)}", info.palette[index]) for index, fraction in listed
  ]
  rare = len(fractions) - len(listed)
  if rare:
    entries.append((f"and {rare} below", f" {_percent(SMALLEST_FRACTION)}", None))
  return swatches(entries, width, letter=max(LEAST_LETTER, round(width / LETTERS_PER_WIDTH)))


def _percent(fraction: float) -> str:
  return f"{100 * fraction:.0f} %" if fraction >= 0.0995 else f"{100 * fraction:.1f} %"
