"""Contact sheets that show a data set to a person: examples, classes, training crops, the worst predictions."""

import pathlib
from collections.abc import Sequence

import numpy as np
import scipy.ndimage
from PIL import Image

from rc_jax import data, files
from rc_jax.config import Config, height_width
from rc_jax.data import Examined, Source
from rc_jax.drawing.fonts import drawable_names
from rc_jax.drawing.panels import (
  IGNORED_COLOR,
  MANY_CLASSES,
  WRONG_COLOR,
  captioned,
  flow,
  grid,
  legend,
  named_overlay,
  shrunk,
  swatches,
  widest_point,
)
from rc_jax.drawing.predicted_image import PANELS, Picture, panels_of

EXAMPLES = 12  # on the sheet of a split
CROPS = 12
WIDTH = 1600  # approximate pixels of a sheet
PANEL = (224, 448)  # largest height and width of an image on a sheet
TILE = 132  # side of a class's tile
_LONGEST_SIDE = 1024  # of an image that a tile is cut from: distances in larger labels take seconds


def examples(source: Source, pixels: Sequence[tuple[Examined, np.ndarray]]) -> Image.Image:
  """Draws images beside their labels with class names: images of the rarest classes first, then others.

  Args:
    source: the split.
    pixels: examples without defects, each with the pixels of each class, int ``[N]``.
  """
  shown, present = [], np.zeros(source.info.num_classes, bool)
  for position in choose(np.array([counts for _, counts in pixels]), EXAMPLES):
    examined, counts = pixels[position]
    example = source[examined.index]
    height, width = example["image"].shape[:2]
    panel = _pair(example["image"], example.get("label"), source.info)
    shown.append(captioned(panel, f"{example['name']}  {width}x{height}"))
    present |= counts > 0
  return _with_legend(flow(shown, WIDTH), source.info, present)


def classes(source: Source, pixels: Sequence[tuple[Examined, np.ndarray]]) -> Image.Image | None:
  """Draws a tile for each class that occurs, from the image with most of its pixels; other classes are darkened.

  Ids that are off by one are obvious here: the tile of ``sky`` shows trees.

  Args:
    source: a split with labels.
    pixels: as for ``examples``.

  Returns:
    The sheet; None where no class occurs.
  """
  info = source.info
  best = np.array([counts for _, counts in pixels]).argmax(axis=0)
  tiles = {}
  for position in np.unique(best):
    examined, counts = pixels[position]
    drawn = [label for label in range(info.num_classes) if best[label] == position and counts[label]]
    if drawn:
      example = source[examined.index]
      image, labels = (
        shrunk(array, _LONGEST_SIDE, _LONGEST_SIDE) for array in (example["image"], example["label"])
      )
      tiles.update({label: _tile(image, labels == label) for label in drawn if (labels == label).any()})
  shown, names = [], drawable_names(info)
  for label in sorted(tiles):
    # A name that cannot be drawn is shown by its id already.
    shows_id = names[label] != info.class_names[label]
    caption = captioned(tiles[label], names[label] if shows_id else f"{info.label_ids[label]} {names[label]}")
    bar = Image.new("RGB", (TILE, 4), tuple(info.palette[label].tolist()))
    shown.append(grid([[caption], [bar]]))
  return flow(shown, WIDTH) if shown else None


def crops(source: Source, config: Config) -> Image.Image:
  """Draws crops with the augmentation of the recipe, as the network gets them, beside their labels.

  Args:
    source: the training examples.
    config: its ``seed``, ``train.crop_size``, ``augment`` and ``data.threads`` are read.
  """
  with data.train_batches(
    source,
    seed=config.seed,
    batch_size=CROPS,
    crop_size=height_width(config.train.crop_size),
    augment=config.augment,
    threads=config.data.threads,
  ) as batches:
    batch = next(batches)
  pairs = zip(batch["image"], batch["label"], strict=True)
  present = np.bincount(batch["label"].ravel(), minlength=256)[: source.info.num_classes] > 0
  return _with_legend(
    flow([_pair(image, label, source.info) for image, label in pairs], WIDTH), source.info, present
  )


def worst(pictures: Sequence[Picture], info: data.DatasetInfo, title: Sequence[str]) -> Image.Image:
  """Draws a row for each image: image, ground truth, prediction and differences, below its name and its scores.

  Args:
    pictures: in the order of the sheet.
    info: names and colours of the classes.
    title: lines above all rows.
  """
  rows, labels = [], set()
  for number, picture in enumerate(pictures, start=1):
    labels |= set(np.unique(picture.truth).tolist()) | set(np.unique(picture.prediction).tolist())
    # Small pictures are hard to see; an integer factor does not mix the colours of classes.
    factor = max(1, min(PANEL[0] // picture.truth.shape[0], PANEL[1] // picture.truth.shape[1]))
    row = [
      captioned(Image.fromarray(panel.repeat(factor, axis=0).repeat(factor, axis=1)), name)
      for name, panel in zip(PANELS, panels_of(picture, info, *PANEL), strict=True)
    ]
    scores = [
      f"{name} {100 * value:.1f} %"
      for name, value in (("mIoU", picture.miou), ("pixel accuracy", picture.pixel_accuracy))
      if value is not None
    ]
    rows.append(captioned(grid([row]), f"{number}. {picture.name}: {', '.join(scores)}"))
  classes = list(range(info.num_classes))
  if len(classes) > MANY_CLASSES:
    classes = sorted(labels & set(classes))
  sheet = grid([[row] for row in rows])
  names = drawable_names(info)
  entries = [(names[label], "", info.palette[label]) for label in classes]
  marks = [("ignored", "", np.array(IGNORED_COLOR)), ("wrong", "", np.array(WRONG_COLOR))]
  sheet = grid([[sheet], [swatches(entries + marks, max(sheet.width, 400))]])
  for line in reversed(title):
    sheet = captioned(sheet, line)
  return sheet


def choose(pixels: np.ndarray, count: int) -> list[int]:
  """Chooses examples that show as many classes as possible, rare ones first, then examples evenly over the split.

  Args:
    pixels: pixels of each class in each example, int ``[n,N]``.
    count: the number of examples; at most ``n`` are chosen.

  Returns:
    Their positions, ascending.
  """
  chosen: list[int] = []
  images = (pixels > 0).sum(axis=0)
  for label in np.argsort(images, kind="stable"):
    if len(chosen) >= count:
      break
    if images[label] and not (pixels[chosen, label] > 0).any():
      # The image with most of its pixels: nobody notices a class of ten pixels.
      chosen.append(int(pixels[:, label].argmax()))
  for position in np.linspace(0, len(pixels) - 1, count).round().astype(int).tolist():
    if len(chosen) < count and position not in chosen:
      chosen.append(position)
  return sorted(chosen)


def save(sheet: Image.Image, path: pathlib.Path) -> pathlib.Path:
  """Writes a sheet as PNG, creates its folder, and returns its path."""
  files.make_folder(path.parent)
  with files.atomic_write(path) as file:
    sheet.save(file, "PNG")
  return path


def _pair(image: np.ndarray, label: np.ndarray | None, info: data.DatasetInfo) -> Image.Image:
  small = shrunk(image, *PANEL)
  if label is None:
    return Image.fromarray(small)
  return grid([[Image.fromarray(small), named_overlay(small, shrunk(label, *PANEL), info)]])


def _with_legend(sheet: Image.Image, info: data.DatasetInfo, present: np.ndarray) -> Image.Image:
  if not present.any():
    return sheet
  below = legend(info, np.flatnonzero(present).tolist(), max(sheet.width, 400))
  return grid([[sheet], [below]])


def _tile(image: np.ndarray, mask: np.ndarray) -> Image.Image:
  """Returns a square tile with the widest region of ``mask [H,W]`` and its surroundings."""
  radius, center = widest_point(mask)
  regions, _ = scipy.ndimage.label(mask)
  rows, columns = scipy.ndimage.find_objects((regions == regions[center]).astype(int))[0]
  extent = max(rows.stop - rows.start, columns.stop - columns.start)
  # A long, thin region, such as a pavement, is shown where it is widest, not shrunk to a line.
  side = int(min(max(min(1.3 * extent, 8 * radius), TILE / 2), *mask.shape))
  top, left = (min(max(0, at - side // 2), size - side) for at, size in zip(center, mask.shape, strict=True))
  window = np.s_[top : top + side, left : left + side]
  inside = mask[window]
  shown = np.where(inside[..., None], image[window], image[window] // 2 + 20).astype(np.uint8)
  edge = inside & ~scipy.ndimage.binary_erosion(inside, iterations=max(1, side // 100))
  shown[edge] = (255, 255, 0)
  return Image.fromarray(shown).resize((TILE, TILE), Image.Resampling.LANCZOS)
