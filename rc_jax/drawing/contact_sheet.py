"""Sheets of pictures by which a person sees whether a data set is right: examples, classes, crops."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
import scipy.ndimage
from PIL import Image

from rc_jax import data
from rc_jax.config import Config, height_width
from rc_jax.data import Examined, Source
from rc_jax.drawing.panels import captioned, flow, grid, legend, named_overlay, shrunk, widest_point

EXAMPLES = 12  # of a split, on its sheet
CROPS = 12
WIDTH = 1600  # pixels of a sheet, about
PANEL = (224, 448)  # height and width that an image is shrunk to
TILE = 132  # side of a class's tile
_SOURCE = 1024  # longest side of what a tile is cut from: distances in larger labels take seconds


@dataclasses.dataclass(frozen=True)
class Subset:
  """The examples of a source that have no defect, themselves a source."""

  source: Source
  indices: tuple[int, ...]

  @property
  def info(self) -> data.DatasetInfo:
    return self.source.info

  @property
  def labelled(self) -> bool:
    return self.source.labelled

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int) -> data.Example:
    return self.source[self.indices[index]]


def examples(source: Source, pixels: Sequence[tuple[Examined, np.ndarray]]) -> Image.Image:
  """Draws images beside their labels, with names in them: those that hold the rarest classes, then any.

  Args:
    source: the split.
    pixels: examples without defects, and for each the pixels of each class, int ``[N]``.
  """
  shown, present = [], np.zeros(source.info.num_classes, bool)
  for place in choose(np.array([counts for _, counts in pixels]), EXAMPLES):
    found, counts = pixels[place]
    example = source[found.index]
    height, width = example["image"].shape[:2]
    panel = _pair(example["image"], example.get("label"), source.info)
    shown.append(captioned(panel, f"{example['name']}  {width}x{height}"))
    present |= counts > 0
  return _with_legend(flow(shown, WIDTH), source.info, present)


def classes(source: Source, pixels: Sequence[tuple[Examined, np.ndarray]]) -> Image.Image:
  """Draws a tile for each class that occurs, cut from the image that shows most of it, with all else darkened.

  A table of ids that is off by one shows here at a glance: ``sky`` is then a picture of trees.

  Args:
    source: a split with labels.
    pixels: as for ``examples``.
  """
  info = source.info
  best = np.array([counts for _, counts in pixels]).argmax(axis=0)
  tiles = {}
  for place in np.unique(best):
    found, counts = pixels[place]
    wanted = [label for label in range(info.num_classes) if best[label] == place and counts[label]]
    if wanted:
      example = source[found.index]
      image, labels = (shrunk(example[key], _SOURCE, _SOURCE) for key in ("image", "label"))
      tiles.update({label: _tile(image, labels == label) for label in wanted if (labels == label).any()})
  shown = []
  for label in sorted(tiles):
    caption = captioned(tiles[label], f"{info.label_ids[label]} {info.class_names[label]}")
    bar = Image.new("RGB", (TILE, 4), tuple(info.palette[label].tolist()))
    shown.append(grid([[caption], [bar]]))
  return flow(shown, WIDTH)


def crops(source: Source, config: Config) -> Image.Image:
  """Draws crops as the network will see them, augmented by the recipe, beside their labels.

  Args:
    source: the training examples.
    config: its ``seed``, ``train.crop_size``, ``augment`` and ``data.threads`` count.
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


def choose(pixels: np.ndarray, count: int) -> list[int]:
  """Picks examples so that as many classes as can be are seen, rare ones first; then evenly over the split.

  Args:
    pixels: of each class in each example, ``[n,N]``.
    count: how many, at most ``n``.

  Returns:
    Their places, ascending.
  """
  chosen: list[int] = []
  images = (pixels > 0).sum(axis=0)
  for label in np.argsort(images, kind="stable"):
    if len(chosen) >= count:
      break
    if images[label] and not (pixels[chosen, label] > 0).any():
      # The largest: a class that fills ten pixels of a street is seen by nobody.
      chosen.append(int(pixels[:, label].argmax()))
  for place in np.linspace(0, len(pixels) - 1, count).round().astype(int).tolist():
    if len(chosen) < count and place not in chosen:
      chosen.append(place)
  return sorted(chosen)


def save(sheet: Image.Image, path: pathlib.Path) -> pathlib.Path:
  """Writes a sheet as PNG and returns its path."""
  sheet.save(path)
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
  """The widest region of ``mask [H,W]`` and some of what is around it, as a square."""
  room, center = widest_point(mask)
  regions, _ = scipy.ndimage.label(mask)
  rows, columns = scipy.ndimage.find_objects((regions == regions[center]).astype(int))[0]
  extent = max(rows.stop - rows.start, columns.stop - columns.start)
  # A pavement along a whole street is seen where it is widest, not from afar.
  side = int(min(max(min(1.3 * extent, 8 * room), TILE / 2), *mask.shape))
  top, left = (min(max(0, at - side // 2), size - side) for at, size in zip(center, mask.shape, strict=True))
  window = np.s_[top : top + side, left : left + side]
  inside = mask[window]
  shown = np.where(inside[..., None], image[window], image[window] // 2 + 20).astype(np.uint8)
  edge = inside & ~scipy.ndimage.binary_erosion(inside, iterations=max(1, side // 100))
  shown[edge] = (255, 255, 0)
  return Image.fromarray(shown).resize((TILE, TILE), Image.Resampling.LANCZOS)
