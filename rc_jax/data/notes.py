"""What is odd in examined splits without stopping training: duplicates, turned images, suspicious masks."""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence

from rc_jax import data
from rc_jax.data import IGNORE_LABEL, NEARLY_BLACK_BELOW, DatasetInfo, Examined, FilePairs, Source
from rc_jax.data.reading.listing import common_folder

ON_SCREEN = 5  # defects, files and names that a terminal shows; report.txt holds all


@dataclasses.dataclass(frozen=True)
class ExaminedSplit:
  """A split and the findings in it.

  Attributes:
    name: its name.
    source: its examples; None for a split that could not be opened.
    examined: the findings in the examples that were examined.
    listing_defects: lines on defects that were found while its files were listed.
  """

  name: str
  source: Source | None
  examined: tuple[Examined, ...]
  listing_defects: tuple[str, ...]

  @property
  def defects(self) -> list[str]:
    return [*self.listing_defects, *(line for example in self.examined for line in example.defects)]


@dataclasses.dataclass(frozen=True)
class Note:
  """A sentence on what is odd.

  Attributes:
    text: the finding.
    names: of the files or classes that show it.
    remedy: empty where ``text`` names it.
  """

  text: str
  names: tuple[str, ...] = ()
  remedy: str = ""

  def line(self, limit: int = 0) -> str:
    """Returns the sentence with at most ``limit`` names; 0: all.

    >>> Note("images are black", ("a", "b", "c"), "remove them").line(2)
    '3 images are black: a, b, ...; remove them'
    """
    named = f"{len(self.names):,} {self.text}: {first_names(self.names, limit)}" if self.names else self.text
    return named + (f"; {self.remedy}" if self.remedy else "")


def find_notes(split: ExaminedSplit, info: DatasetInfo) -> tuple[Note, ...]:
  """Finds what is odd in a split of a data set with the classes ``info``."""
  return tuple(_notes(split, info))


def train_ids_of(source: Source | None, info: DatasetInfo) -> dict[int, int]:
  """Returns the map from the ids in ``Examined.counts`` to train ids, the identity for labels in train ids."""
  if isinstance(source, FilePairs):
    return dict(source.train_ids)
  return {**{label: label for label in range(info.num_classes)}, info.ignore_label: info.ignore_label}


def example_names(source: Source | None) -> Callable[[Examined], str]:
  """Returns a function that names an example: its image file below the split's folder, or else its index."""
  if isinstance(source, FilePairs) and source.images:
    images = source.images
    top = common_folder(images)
    return lambda example: str(images[example.index].relative_to(top))
  return lambda example: f"example {example.index}"


def first_names(names: Sequence[str], limit: int = ON_SCREEN) -> str:
  """Joins the first ``limit`` names (0: all) with commas; ``...`` marks that there are more.

  >>> first_names(["a", "b", "c"], 2)
  'a, b, ...'
  """
  shown = names[: limit or len(names)]
  return ", ".join(shown) + (", ..." if len(names) > len(shown) else "")


def _notes(split: ExaminedSplit, info: DatasetInfo) -> Iterator[Note]:
  source, examined = split.source, split.examined
  name_of = example_names(source)
  if isinstance(source, FilePairs):
    yield from map(Note, source.notes)
  released = data.DATASETS[info.name].image_counts.get(split.name)
  if released and source is not None and len(source) != released:
    yield Note(f"holds {len(source):,} images, the official release {released:,}")
  ids = {own_id for example in examined for own_id in example.counts}
  explained = info.mistakes.in_split(ids)
  if explained:
    yield Note(f"the labels: {explained}")
  yield from _odd_images(examined, name_of)
  if source is None or not source.labelled:
    return
  train_ids = train_ids_of(source, info)
  yield from _note_if(
    (
      name_of(example)
      for example in examined
      if {train_ids[own_id] for own_id in example.counts if own_id in train_ids} == {info.ignore_label}
    ),
    "labels hold ignored pixels alone",
    "label these images or remove the pairs",
  )
  yield from _masks_of_0_and_255(examined, train_ids, name_of)
  yield from _note_if(
    (name_of(example) for example in examined if example.turned_alone),
    "pairs have EXIF data that turn the image or its label, and not the other",
    "compare them on the contact sheet, then save both as they should be shown, without EXIF data",
  )
  yield from _unlike_palettes(examined, name_of)


def _note_if(names: Iterator[str], text: str, remedy: str) -> Iterator[Note]:
  listed = tuple(names)
  if listed:
    yield Note(text, listed, remedy)


def _odd_images(examined: Sequence[Examined], name_of: Callable[[Examined], str]) -> Iterator[Note]:
  yield from _note_if(
    (name_of(example) for example in examined if example.transparent),
    "images have transparent pixels, whose hidden colours are read",
    "save them without an alpha channel, with the colours that they should have",
  )
  first: dict[bytes, str] = {}
  duplicates = []
  blank = []
  for example in examined:
    if example.blank:  # such images are all alike
      blank.append(name_of(example))
    elif example.digest in first:
      duplicates.append(f"{name_of(example)} (as {first[example.digest]})")
    elif example.digest:
      first[example.digest] = name_of(example)
  yield from _note_if(
    iter(blank), "images show one colour alone", "if a camera or a copy failed, remove these pairs"
  )
  yield from _note_if(
    (name_of(example) for example in examined if example.nearly_black and not example.blank),
    f"images are nearly black, without a sample above {NEARLY_BLACK_BELOW - 1} of 255",
    "if they hold samples of fewer bits or numbers from 0 to 1, scale them to the range 0-255",
  )
  yield from _note_if(
    iter(duplicates), "images equal another image of this split, pixel by pixel", "remove one of each"
  )


def _masks_of_0_and_255(
  examined: Sequence[Examined], train_ids: dict[int, int], name_of: Callable[[Examined], str]
) -> Iterator[Note]:
  """Yields a note on masks whose class is ignored because tools write 255 for it."""
  if train_ids.get(IGNORE_LABEL) != IGNORE_LABEL or train_ids.get(0, IGNORE_LABEL) == IGNORE_LABEL:
    return
  with_255 = [example for example in examined if IGNORE_LABEL in example.counts]
  masks = [name_of(example) for example in with_255 if example.counts.keys() == {0, IGNORE_LABEL}]
  # A label of one class and ignored borders is no such mask; most labels with such borders hold other classes too.
  if 2 * len(masks) >= len(with_255):
    yield from _note_if(
      iter(masks),
      "labels hold the ids 0 and 255 alone, and 255 is ignored",
      "if 255 marks a class there, write its id in place of 255",
    )


def _unlike_palettes(examined: Sequence[Examined], name_of: Callable[[Examined], str]) -> Iterator[Note]:
  """Yields a note on labels in which an index has another colour than in most labels.

  A colour mask that a program saved as an indexed image has such a palette: its indices follow the colours of that
  image, not the classes.
  """
  colors: dict[int, collections.Counter[tuple[int, ...]]] = {}
  for example in examined:
    for index, color in example.palette.items():
      colors.setdefault(index, collections.Counter())[color] += 1
  usual = {index: counter.most_common(1)[0][0] for index, counter in colors.items()}
  yield from _note_if(
    (
      name_of(example)
      for example in examined
      if any(color != usual[index] for index, color in example.palette.items())
    ),
    "labels have palettes in which an index has another colour than in the other labels",
    "if they are colour masks saved with a palette, convert their colours to ids",
  )
