"""``--mode=compare`` compares two results on the same images: the difference in mIoU with its interval.

It prints a table, and draws a page with the images that changed most (RegionContrast, Figure 4).
"""

import os
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from rc_jax import __version__, data, files, models
from rc_jax.config import Config
from rc_jax.console import say
from rc_jax.drawing.comparison import (
  ClassChange,
  ComparedImage,
  ComparedResults,
  comparison_page,
  comparison_picture,
  interval_text,
  percent,
)
from rc_jax.evaluation import metrics
from rc_jax.evaluation.bootstrap import (
  COVERAGE,
  RESAMPLES,
  Difference,
  check_comparable,
  class_intervals,
  difference,
)
from rc_jax.evaluation.image_scores import image_mious
from rc_jax.evaluation.protocol import protocol_text, weights_text
from rc_jax.evaluation.results import Result, read_result
from rc_jax.fields import Flag
from rc_jax.inference.batched import label_images
from rc_jax.weights import checkpoint, restore
from rc_jax.weights.checksums import weights_digest

FLAGS = (
  Flag("results", "", "Two runs, or two of their eval/<split>.json, separated by a comma."),
  Flag("output", "", "Folder of the page. Default: compare/<name of the first> in the second run."),
  Flag("pictures", True, "Also writes the page, for which both runs predict the images that it shows."),
)

IMAGES = 3  # shown of each group
LARGEST_DEVIATION = (
  0.01  # of an image's pixels, by which predictions on another device may differ from the scored ones
)
_SCORE_AGAIN = "score again with --mode=eval"

Intervals = Mapping[str, tuple[float, float] | None]


def run(results: str, output: str = "", pictures: bool = True) -> Difference:
  """Prints the difference of two results, and draws its page.

  The page is ``index.html`` in its folder, beside ``panels.png``. It shows the images whose mean IoU changed most. If
  weights or data behind a result are not at hand any more, it has no pictures, and says why.

  Args:
    results: two paths, separated by a comma; each a JSON that ``--mode=eval`` wrote, or the folder of a run with the
      results of one split.
    output: folder of the page; empty: in the folder of the second run.
    pictures: whether to draw the page.

  Returns:
    The difference, second minus first.

  Raises:
    FileNotFoundError: a result is missing.
    ValueError: the paths are not two, or their results differ in images or classes.
    WriteError: the folder of the page cannot be written.
  """
  paths = [pathlib.Path(os.path.expanduser(path.strip())) for path in results.split(",") if path.strip()]
  if len(paths) != 2:
    raise ValueError(
      f"--results={results}: lists {len(paths)} results; expected two, such as --results=runs/a,runs/b/eval/val.json"
    )
  first, second = (read_result(path) for path in paths)
  check_comparable(first, second)
  folder = _page_folder(first, second, output) if pictures else None
  if folder is not None:
    _check_writable(folder)
  second_minus_first = difference(first, second)
  intervals = class_intervals(first, second)
  say(table(first, second, second_minus_first, intervals))
  if folder is not None:
    _write_page(first, second, second_minus_first, intervals, folder)
  elif pictures:
    say(f"no page: {second.path} lies in no run's folder; name a folder with --output=FOLDER")
  return second_minus_first


def table(first: Result, second: Result, change: Difference, intervals: Intervals) -> str:
  """Returns both results side by side for the screen, values in percent."""
  rows = [
    (name, first.scores["iou"][name], second.scores["iou"][name], of_class)
    for name, of_class in change.classes.items()
  ]
  overs = dict.fromkeys(metrics.over_classes(result.scores["iou"]) for result in (first, second))
  mean = f"mIoU {' and '.join(overs)}"
  rows.append((mean, first.scores["miou"], second.scores["miou"], change.miou))
  of_rows = {**intervals, mean: (change.low, change.high) if len(first.names) > 1 else None}
  width = max(len(name) for name, *_ in rows)
  lines = [f"  {'IoU in %':<{width}}  first  second  change  {100 * COVERAGE:g} % interval"]
  lines += [
    f"  {name:<{width}}  {percent(a, absent='-'):>5}   {percent(b, absent='-'):>5}   "
    f"{percent(delta, '+', absent='-'):>5}  {interval_text(of_rows[name], absent='-')}"
    for name, a, b, delta in rows
  ]
  return "\n".join(
    [
      f"first:  {first.path}, {weights_text(first.scores)}: {protocol_text(first.scores)}",
      f"second: {second.path}, {weights_text(second.scores)}: {protocol_text(second.scores)}",
      *lines,
      *_verdict(first, second, change),
    ]
  )


def _verdict(first: Result, second: Result, change: Difference) -> list[str]:
  """Returns the sentences below the table: which is better, by how much, how sure that is, and of what."""
  images = len(first.names)
  interval = f"{100 * COVERAGE:g} % interval {interval_text((change.low, change.high), digits=2)}"
  if change.miou == 0:
    better = "Both have the same mIoU"
  else:
    name, other = ("second", "first") if change.miou > 0 else ("first", "second")
    better = f"The {name} is better than the {other} by {percent(abs(change.miou), digits=2)} points of mIoU"
  if change.low <= 0 <= change.high:
    meaning = f"The interval contains 0, so these {images} images do not show which of the two is better."
  else:
    meaning = (
      "The interval does not contain 0, so other images like these would probably give the same order."
    )
  if images < 2:
    return [
      "",
      f"{better}. One image says nothing about others: there is no interval.",
      *_scored_differently(first, second),
    ]
  return [
    "",
    f"{better} (second minus first: {percent(change.miou, '+', 2)}, {interval}).",
    meaning,
    f"The interval is a bootstrap over the {images} images: the second is better in {100 * change.better:.1f} % of "
    f"{RESAMPLES:,} resamples.",
    "It does not cover other seeds of training, which also change the score: to compare two methods, train each with "
    "several values of --config.seed.",
    *_scored_differently(first, second),
  ]


def _scored_differently(first: Result, second: Result) -> list[str]:
  """Returns a sentence where the two results were not scored in the same way, or are not known to be."""
  one, other = protocol_text(first.scores), protocol_text(second.scores)
  if one != other:
    return [
      f"The two were scored in different ways ({one}; {other}): part of the difference may be due to that."
    ]
  if "not recorded" in one:
    return [
      "Both results are of an earlier version: whether they were scored in the same way is not fully recorded."
    ]
  return []


def _check_writable(folder: pathlib.Path) -> None:
  """Checks the folder of the page before minutes of predictions."""
  try:
    files.check_writable(folder)
  except files.WriteError as error:
    remedy = "choose another folder with --output=FOLDER, or --nopictures for the table alone"
    raise files.WriteError(error.problem, remedy) from error


def _write_page(
  first: Result, second: Result, change: Difference, intervals: Intervals, folder: pathlib.Path
) -> None:
  """Writes the page into a folder, and says why where it has no pictures."""
  groups: dict[str, tuple[str, Sequence[ComparedImage]]] = {}
  info, notes = None, []
  try:
    info, groups = _compared_images(first, second)
  except (ValueError, OSError) as error:  # one line each: data or weights that are not at hand, or others
    notes.append(f"no pictures: {error}")
    say(notes[0])
  content = ComparedResults(
    title=f"{second.scores['dataset']}/{_split(second)}: {_name(second)} against {_name(first)}",
    names=(_name(first), _name(second)),
    mious=(first.scores["miou"], second.scores["miou"]),
    change=change.miou,
    interval=(change.low, change.high) if len(first.names) > 1 else None,
    coverage=COVERAGE,
    sentences=[sentence for sentence in _verdict(first, second, change) if sentence],
    classes=[
      ClassChange(name, first.scores["iou"][name], second.scores["iou"][name], interval)
      for name, interval in intervals.items()
    ],
    groups=groups,
    info=info,
    notes=notes,
    software=f"Written by rc_jax {__version__} with jax {jax.__version__} on {jax.devices()[0].device_kind}.",
  )
  if groups:
    with files.atomic_write(folder / "panels.png") as file:
      comparison_picture(content).save(file, "PNG")
  files.atomic_write_text(folder / "index.html", comparison_page(content))
  say(f"open {folder / 'index.html'}")


def _run_folder(result: Result) -> pathlib.Path | None:
  """Returns the folder of the run whose ``eval/`` holds a result; None where it lies elsewhere."""
  path = result.path.resolve()
  return next((parent.parent for parent in path.parents if parent.name == "eval"), None)


def _name(result: Result) -> str:
  """Returns the name of a result on the page: its run's folder as the user wrote it, or its file."""
  for parent in result.path.parents:
    if parent.name == "eval" and parent.parent.name:
      return str(parent.parent)
  return str(result.path)


def _split(result: Result) -> str:
  return str(result.scores.get("split", result.path.stem))


def _page_folder(first: Result, second: Result, output: str) -> pathlib.Path | None:
  """Returns ``output``, or ``compare/<name of the first>`` in the folder of the second run; None: there is none."""
  if output:
    return pathlib.Path(os.path.expanduser(output))
  of_first, of_second = _run_folder(first), _run_folder(second)
  if of_second is None:
    return None
  if of_first is None or of_first == of_second:
    return of_second / "compare" / first.path.stem
  # Runs of a study have names such as baseline/seed0 and contrast/seed0.
  common = os.path.commonpath([of_first, of_second])
  parts = of_first.relative_to(common).parts or (of_first.name,)
  return of_second / "compare" / "_".join(parts)


def _compared_images(
  first: Result, second: Result
) -> tuple[data.DatasetInfo, dict[str, tuple[str, Sequence[ComparedImage]]]]:
  """Predicts the images to show with the weights behind both results.

  Raises:
    ValueError: weights, data set or the way of scoring are not those of the results; one line.
    FileNotFoundError: a run, its checkpoint, or the data set is not at hand; one line.
  """
  configs = [_config_of(result) for result in (first, second)]
  source = _scored_split(second, configs[1])
  mious = np.stack([image_mious(result.counts) for result in (first, second)])  # [2,I]
  chosen = choose_images(mious[1] - mious[0])
  rows = [row for _, of_group in chosen.values() for row in of_group]
  examples = _scored_examples(second, source, rows)
  labels = [
    _predict(result, config, source.info, rows, examples)
    for result, config in zip((first, second), configs, strict=True)
  ]
  compared = {
    row: ComparedImage(
      *(second.names[row], example["image"], example["label"], of_first, of_second),
      mious=(float(mious[0, row]), float(mious[1, row])),
    )
    for row, example, of_first, of_second in zip(rows, examples, *labels, strict=True)
  }
  return source.info, {
    title: (lead, [compared[row] for row in of_group])
    for title, (lead, of_group) in chosen.items()
    if of_group
  }


def _scored_split(result: Result, config: Config) -> data.Source:
  """Loads the split that a result has scored, and checks that it has the same classes and number of images."""
  dataset, split = config.dataset, _split(result)
  source = data.load(dataset.name, dataset.root, split, classes=dataset.classes)
  if list(source.info.class_names) != list(result.scores["iou"]):
    raise ValueError(f"{dataset.root or dataset.name}: has other classes than {result.path}; {_SCORE_AGAIN}")
  if len(source) != len(result.names):
    raise ValueError(
      f"{dataset.name}/{split}: has {len(source)} images now, and {result.path} scored {len(result.names)}; "
      f"{_SCORE_AGAIN}"
    )
  return source


def _scored_examples(result: Result, source: data.Source, rows: Sequence[int]) -> list[data.Example]:
  """Reads images of a split, and checks that they are those in the same rows of a result."""
  examples = [source[row] for row in rows]
  for row, example in zip(rows, examples, strict=True):
    if example["name"] != result.names[row]:
      raise ValueError(
        f"{source.info.name}/{_split(result)}: image {row} is {example['name']}, and was {result.names[row]} when it "
        f"was scored; {_SCORE_AGAIN}"
      )
  return examples


def choose_images(changes: np.ndarray, count: int = IMAGES) -> dict[str, tuple[str, list[int]]]:
  """Chooses the images with the largest gain, the largest loss, and a change near the median.

  Args:
    changes: ``[I]``, of each image; NaN: none.
    count: images of each group, fewer where there are not so many.

  Returns:
    Title -> sentence, and rows of the images. No image is in two groups.
  """
  order = [int(row) for row in np.argsort(changes, kind="stable") if not np.isnan(changes[row])]
  improved = [row for row in reversed(order) if changes[row] > 0][:count]
  worsened = [row for row in order if changes[row] < 0][:count]
  others = [row for row in order if row not in {*improved, *worsened}]
  median = float(np.median(changes[order])) if order else 0.0
  typical = sorted(others, key=lambda row: abs(changes[row] - median))[:count]
  of_image = "the mean IoU of the classes in an image"
  return {
    "Most improved": (f"The largest gains in {of_image}, second minus first.", improved),
    "Most worsened": (f"The largest losses in {of_image}.", worsened),
    "Typical": (
      f"The changes nearest to the median, {percent(median, '+')} points, without those above.",
      typical,
    ),
  }


def _config_of(result: Result) -> Config:
  """Returns the config of the run behind a result, with the way in which it was scored."""
  folder = _run_folder(result)
  if folder is None:
    raise ValueError(f"{result.path} lies in no run's eval/ folder, so its weights are unknown")
  config, scores = restore.config_of_run(folder), result.scores
  for field in ("scales", "flip", "pad_to_grid", "crop_size", "stride"):
    if field not in scores:
      raise ValueError(f"{result.path} does not record {field} of its scoring; {_SCORE_AGAIN}")
    config.eval[field] = tuple(scores[field]) if isinstance(scores[field], list) else scores[field]
  config.eval.ema = scores.get("ema", False)
  return config


def _predict(
  result: Result,
  config: Config,
  info: data.DatasetInfo,
  rows: Sequence[int],
  examples: Sequence[data.Example],
) -> list[np.ndarray]:
  """Labels images with the weights that a result has scored, and compares them with its counts."""
  folder, step = _run_folder(result), result.scores["step"]
  assert folder is not None
  saved = folder / checkpoint.FOLDER / str(step)
  if not step or "checkpoint" in result.scores:
    raise ValueError(
      f"{result.path} scored {weights_text(result.scores)}, which is no step of {folder}; {_SCORE_AGAIN} "
      "--workdir=DIR, the run's folder"
    )
  if not saved.is_dir():
    newest = checkpoint.newest_step(folder)
    kept = "no checkpoint" if newest is None else f"none of that step any more (the newest: {newest:,})"
    raise FileNotFoundError(f"{result.path} scored step {step:,}, and {folder} holds {kept}; {_SCORE_AGAIN}")
  network = models.build(config.model, info.num_classes)
  restored = restore.restore(network, config, saved, info.table())
  digest = weights_digest((restored.params, restored.batch_stats))
  if result.scores.get("weights", digest) != digest:
    raise ValueError(f"{result.path} scored other weights than {saved} holds now; {_SCORE_AGAIN}")
  say(f"predicting {len(examples)} images with {saved}")
  labels = label_images(
    network, config.eval, restored.params, restored.batch_stats, [example["image"] for example in examples]
  )
  for row, example, predicted in zip(rows, examples, labels, strict=True):
    confusion = np.asarray(metrics.confusion_matrix(predicted, example["label"], info.num_classes))
    deviation = np.abs(np.stack(metrics.positives_and_negatives(confusion)) - result.counts[:, row]).max(
      initial=0
    )
    if deviation > LARGEST_DEVIATION * confusion.sum():
      raise ValueError(
        f"{result.path}: {result.names[row]} was scored with other predictions or labels than those of today; "
        f"{_SCORE_AGAIN}"
      )
  return labels
