"""Checks every file of a data set before training, names each defect, and draws contact sheets."""

import json
import pathlib
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from rc_jax import data, files
from rc_jax.config import Config, height_width
from rc_jax.console import Progress, say
from rc_jax.data import Examined, Source, Subset
from rc_jax.data.findings import class_pixels, summarize
from rc_jax.data.notes import (
  ON_SCREEN,
  ExaminedSplit,
  Note,
  example_names,
  find_notes,
  first_names,
  train_ids_of,
)
from rc_jax.drawing import contact_sheet
from rc_jax.fields import Flag
from rc_jax.modes import CONFIG, WORKDIR

FLAGS = (CONFIG, WORKDIR, Flag("sample", 0, "How many images of each split to check. 0: all."))


CLEAN, DEFECTIVE = 0, 1  # exit statuses
_LINE_WIDTH = 110
_CLASSES_IN_A_COLUMN = 40  # more classes are printed side by side


def run(config: Config, workdir: pathlib.Path, sample: int = 0) -> int:
  """Inspects the splits of a data set that exist: ``--mode=inspect``.

  It prints its findings and writes to ``workdir/inspect/``: ``report.txt``, all findings; ``<split>.json``; and the
  contact sheets ``<split>.png``, ``<split>_classes.png`` and ``crops.png``.

  Args:
    config: a validated config; it reads ``dataset``, ``eval.split``, ``train.crop_size``, ``augment`` and ``seed``.
    workdir: the run's folder.
    sample: the number of examples of each split to decode, spread evenly over it; 0: all.

  Returns:
    The exit status: 0, or 1 if there are defects, at which training or scoring would stop.

  Raises:
    FileNotFoundError: none of the config's splits exists.
    ValueError: none of them can be read, or ``sample`` is negative.
  """
  if sample < 0:
    raise ValueError(f"--sample is {sample}, expected 0 (all) or more")
  # Nothing is computed here, and a run may be using the accelerator.
  jax.config.update("jax_platforms", "cpu")
  name, root = config.dataset.name, config.dataset.root
  info = data.info(name, root, config.dataset.classes)
  named = dict.fromkeys(
    [*data.parts_of(name, config.dataset.train_split), *data.parts_of(name, config.eval.split)]
  )
  opened = {part: _open(config, part) for part in named}
  if all(source is None for source, _ in opened.values()):
    # Raises the error of the first split again, with its type.
    data.load(name, root, next(iter(named)), classes=config.dataset.classes)
  for part in data.splits(name, root):
    if part not in opened:
      source, defects = _open(config, part, labels=False)
      if source is not None:
        opened[part] = source, defects
  folder = workdir / "inspect"
  files.check_writable(folder)
  say(f"{name}{f' in {root}' if root else ''}: {info.num_classes} classes, splits {', '.join(opened)}")
  splits = [
    ExaminedSplit(part, source, _examine(part, source, sample), defects)
    for part, (source, defects) in opened.items()
  ]

  trained = data.parts_of(name, config.dataset.train_split)
  crop_size = height_width(config.train.crop_size)
  notes = {split.name: find_notes(split, info) for split in splits}
  tables = {
    split.name: summarize(split, info, notes[split.name], crop_size if split.name in trained else None)
    for split in splits
  }
  for split in splits:
    table_path = folder / f"{split.name}.json"
    files.make_folder(table_path.parent)  # a split may lie in a folder, as fold0/val
    files.atomic_write_text(table_path, json.dumps(tables[split.name], indent=1) + "\n")
  in_common = _images_in_common(config, splits)
  across = [*map(Note, info.notes), *in_common]
  absent = _absent_classes(config, tables)

  def lines(limit: int) -> list[str]:
    parts = (describe(tables[split.name], notes[split.name], absent, limit) for split in splits)
    return [*(line for part in parts for line in part), *_note_lines([*across, *absent], limit)]

  files.atomic_write_text(folder / "report.txt", "\n".join(lines(0)) + "\n")
  say("\n".join(lines(ON_SCREEN)))
  if not in_common:
    checked = ", of those checked" if sample else ""
    say(f"no image of {config.eval.split} is also trained on{checked}")
  for sheet in draw_sheets(config, splits, folder):
    say(f"wrote {sheet}")
  count = sum(len(split.defects) for split in splits)
  verdict = (
    f"{count:,} defect{'s, each' if count > 1 else ','} named in" if count else "no defects; the report is"
  )
  say(f"{verdict} {folder / 'report.txt'}")
  return DEFECTIVE if count else CLEAN


def describe(
  table: dict[str, Any], notes: Sequence[Note] = (), absent: Sequence[Note] = (), limit: int = 0
) -> list[str]:
  """Formats a summary of a split as lines of text.

  Args:
    table: from ``summarize``.
    notes: from ``find_notes``.
    absent: notes on classes that do not occur, which are not named again.
    limit: the largest number of names in each list; 0: all.
  """
  lines = ["", f"== {table['split']}: {table['images']:,} images{'' if table['labelled'] else ', no labels'}"]
  if table["checked"] < table["images"]:
    lines[-1] += f", {table['checked']:,} of them checked"
  sizes = table["sizes"]
  if sizes["median"]:
    smallest, median, largest = ("x".join(map(str, sizes[key])) for key in ("smallest", "median", "largest"))
    lines.append(
      f"sizes: smallest {smallest}, median {median}, largest {largest}; {sizes['different']:,} different"
    )
  small = table["smaller_than_crop"]
  if small:
    crop = "x".join(map(str, table["crop"]))
    lines.append(
      f"smaller than the crop of {crop} (padded): {len(small):,} images: {first_names(small, limit)}; if they are "
      "thumbnails, use the originals, otherwise lower train.crop_size"
    )
  if table["labelled"] and table["pixels"]:
    lines.append(f"ignored: {_percent(table['ignored'])} of {table['pixels']:,} pixels")
    lines += class_table(table["classes"])
    named = {name for note in absent for name in note.names}
    never = [name for name in table["never"] if name not in named]
    if never:
      text = f"never occur: {len(never)} classes: {first_names(never, limit and 4 * limit)}"
      lines += textwrap.wrap(text, _LINE_WIDTH, subsequent_indent="  ")
  # Their files are named as defects.
  lines += [
    f"unexpected id {own_id}: {entry['pixels']:,} pixels in {entry['images']:,} labels"
    for own_id, entry in table["unexpected"].items()
  ]
  defects = table["defects"]
  shown = defects[: limit or len(defects)]
  lines += [*_note_lines(notes, limit), *(f"DEFECT: {line}" for line in shown)]
  more = len(defects) - len(shown)
  return lines + ([f"DEFECT: {more:,} more like these"] if more else [])


def _open(config: Config, split: str, labels: bool = True) -> tuple[Source | None, tuple[str, ...]]:
  """Opens the complete pairs of a split; returns them with the errors that would stop training."""
  try:
    return data.load(
      config.dataset.name, config.dataset.root, split, labels=labels, classes=config.dataset.classes
    ), ()
  except data.IncompleteSplit as error:
    return error.complete, error.defects
  except (ValueError, OSError) as error:
    return None, (str(error),)


def _examine(name: str, source: Source | None, sample: int) -> tuple[Examined, ...]:
  if source is None or len(source) == 0:
    return ()
  count = min(sample or len(source), len(source))
  indices = np.unique(np.linspace(0, len(source) - 1, count).round().astype(int)).tolist()
  progress = Progress(f"checking {name}", len(indices), unit="images")
  examined = []
  for example in data.examine_all(source, indices):
    examined.append(example)
    progress.advance(1)
  progress.close()
  return tuple(examined)


def draw_sheets(
  config: Config, splits: Sequence[ExaminedSplit], folder: pathlib.Path
) -> Iterator[pathlib.Path]:
  """Draws the contact sheets from the examples without defects; yields the path of each."""
  training = data.parts_of(config.dataset.name, config.dataset.train_split)
  training_sources: list[Source] = []
  for split in splits:
    source = split.source
    intact = [example for example in split.examined if not example.defects]
    if source is None or not intact:
      continue
    counts = class_pixels(intact, train_ids_of(source, source.info), source.info.num_classes)[:, :-1]
    pixels = list(zip(intact, counts, strict=True))
    yield contact_sheet.save(contact_sheet.examples(source, pixels), folder / f"{split.name}.png")
    if source.labelled:
      sheet = contact_sheet.classes(source, pixels)
      if sheet is not None:
        yield contact_sheet.save(sheet, folder / f"{split.name}_classes.png")
      if split.name in training:
        training_sources.append(Subset(source, tuple(example.index for example in intact)))
  if training_sources:
    joined = data.Joined(tuple(training_sources))
    yield contact_sheet.save(contact_sheet.crops(joined, config), folder / "crops.png")


def _images_in_common(config: Config, splits: Sequence[ExaminedSplit]) -> list[Note]:
  """Returns notes on images that are both trained on and scored."""
  training = data.parts_of(config.dataset.name, config.dataset.train_split)
  scoring = data.parts_of(config.dataset.name, config.eval.split)
  notes = [
    Note(f"eval.split {part} is also trained on: its score is no measure of generalisation")
    for part in scoring
    if part in training
  ]
  seen: dict[bytes, str] = {}
  for split in splits:
    if split.name in training:
      name_of = example_names(split.source)
      seen.update(
        {example.digest: f"{split.name}: {name_of(example)}" for example in split.examined if example.digest}
      )
  for split in splits:
    if split.name not in training and split.name in scoring:
      name_of = example_names(split.source)
      both = tuple(
        f"{name_of(example)} (as {seen[example.digest]})"
        for example in split.examined
        if example.digest in seen and not example.blank
      )
      if both:
        notes.append(
          Note(
            f"images of {split.name} are also trained on, so that its score is too high",
            both,
            "remove them from one of the splits",
          )
        )
  return notes


def _absent_classes(config: Config, tables: dict[str, dict[str, Any]]) -> list[Note]:
  """Returns notes on classes that occur nowhere, or in scoring and not in training."""
  labelled = {name: table for name, table in tables.items() if table["pixels"]}
  occurring = {name: set(table["classes"]) - set(table["never"]) for name, table in labelled.items()}
  trained_parts = data.parts_of(config.dataset.name, config.dataset.train_split)
  trained = set[str]().union(*(occurring.get(name, set()) for name in trained_parts))
  scored_parts = data.parts_of(config.dataset.name, config.eval.split)
  anywhere = set[str]().union(*occurring.values())
  notes = []
  for table in list(labelled.values())[:1]:  # all have the same classes
    nowhere = tuple(name for name in table["classes"] if name not in anywhere)
    if nowhere:
      notes.append(
        Note(
          f"classes occur in no label of {', '.join(labelled)}",
          nowhere,
          "check the ids of the labels, or remove the lines of these classes if you wrote the table",
        )
      )
    unseen = tuple(
      name
      for name in table["classes"]
      if trained and name not in trained and any(name in occurring.get(part, ()) for part in scored_parts)
    )
    if unseen:
      notes.append(
        Note(
          f"classes of {config.eval.split} are shown by no training label",
          unseen,
          "label training images of them, or choose the splits anew",
        )
      )
  return notes


def class_table(classes: dict[str, dict[str, Any]]) -> list[str]:
  """Returns a table of the classes by their pixels, the largest first; many classes are printed side by side."""
  width = max(map(len, classes))
  rows = [
    f"{name:<{width}} {_percent(entry['share']):>9} {entry['images']:>8,}"
    for name, entry in sorted(classes.items(), key=lambda item: -item[1]["pixels"])
    if entry["pixels"]
  ]
  head = f"{'class':<{width}} {'pixels':>9} {'images':>8}"
  columns = 1 if len(rows) <= _CLASSES_IN_A_COLUMN else max(1, _LINE_WIDTH // (len(head) + 3))
  height = -(-len(rows) // columns)
  lines = ["   ".join(rows[place::height]) for place in range(height)]
  return [f"  {line}" for line in ("   ".join([head] * columns), *lines)]


def _percent(share: float) -> str:
  # Two decimals would print a rare class as 0.
  return f"{100 * share:.3f} %"


def _note_lines(notes: Sequence[Note], limit: int) -> list[str]:
  return [f"note: {note.line(limit)}" for note in notes]
