"""``--mode=centers`` keeps the region centers of a split, draws them by t-SNE, and measures how they separate classes.

RegionContrast, Figure 3: runs side by side, the baseline's centers and those of the contrastive loss.
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from rc_jax import __version__, contrast, data, files, models, sharding
from rc_jax.config import CENTERS, Config, contrast_title, uses_contrast
from rc_jax.console import Progress, say
from rc_jax.drawing import embedding
from rc_jax.evaluation.center_statistics import Centers, Separation, Statistics, center_statistics
from rc_jax.fields import Flag
from rc_jax.inference.batched import BatchedPredictor
from rc_jax.inference.predictor import grid_size, padded_to
from rc_jax.modes import CHECKPOINT, CONFIG, WORKDIR
from rc_jax.ops import resample
from rc_jax.weights import checkpoint as checkpoints
from rc_jax.weights import restore
from rc_jax.weights.checksums import weights_digest

OF_THE_RUN = "run"

FLAGS = (
  *(CONFIG, WORKDIR, CHECKPOINT),
  Flag(
    "runs", (), "Runs to draw side by side, separated by commas: folders, or checkpoints. Default: --workdir."
  ),
  Flag(
    "centers",
    OF_THE_RUN,
    "Pixel weights of the centers, as contrast.centers: dynamic, ep_hp or average; run: those of each run.",
    (OF_THE_RUN, *CENTERS),
  ),
)

FORMAT = 1  # of the files
_MEASURES = Separation._fields[1:]


class _Run(NamedTuple):
  """A run to draw: its name on the page, its folder, the path of its weights, and its config."""

  name: str
  folder: pathlib.Path
  weights: pathlib.Path
  config: Config


@dataclasses.dataclass(frozen=True, eq=False)
class ExtractedCenters:
  """The centers of a run on a split.

  Attributes:
    name: of the run.
    centers: of all images, ordered by image and class.
    image_names: of the ``I`` images, in the order of the split.
    method: of ``region_centers``.
    step: updates behind the weights; 0: a file of weights.
    weights: digest of the weights.
    loss: ``"RegionContrast, scope bank"`` or ``"baseline"``.
  """

  name: str
  centers: Centers
  image_names: tuple[str, ...]
  method: str
  step: int
  weights: str
  loss: str

  @property
  def description(self) -> str:
    """A phrase on the loss, the step and the centers."""
    step = f"step {self.step:,}" if self.step else "weights of a file"
    return f"{self.loss}, {step}, {len(self.centers.labels)} {self.method} centers"


def run(
  config: Config,
  workdir: pathlib.Path,
  checkpoint: pathlib.Path | None = None,
  runs: Sequence[str] = (),
  centers: str = OF_THE_RUN,
) -> pathlib.Path:
  """Extracts the region centers of ``config.eval.split``, draws them and measures how they separate the classes.

  Each run keeps its centers in ``<run>/centers/<split>.npz``. The page, its picture and the numbers of all runs are
  ``workdir/centers/index.html``, ``<split>.png`` and ``<split>.json``.

  Args:
    config: a validated config; of ``runs``, it gives the data set and ``eval`` alone.
    workdir: folder of the page; without ``runs``, also the run's folder.
    checkpoint: as for ``restore.locate``; None: the newest of ``workdir``. Not with ``runs``.
    runs: folders of runs, or of single checkpoints, whose ``config.json`` states the network.
    centers: one of ``CENTERS``, or ``"run"``: ``contrast.centers`` of each run, and the default for baselines.

  Returns:
    The path of the page.

  Raises:
    FileNotFoundError: no checkpoint, or no data.
    ValueError: scikit-learn is not installed, a run has other classes than the data set, two of ``runs`` are one, or
      ``checkpoint`` is given with ``runs``.
    WriteError: the folder of the page, or that of a run, cannot be written.
  """
  embedding.check_installed()
  if runs and checkpoint is not None:
    raise ValueError(
      f"--checkpoint={checkpoint}: is not read with --runs; name checkpoints there, as runs/a/checkpoints/1000"
    )
  source = data.load(
    config.dataset.name, config.dataset.root, config.eval.split, classes=config.dataset.classes
  )
  for note in data.notes_of(source):
    say(f"note: {note}")
  split = str(config.eval.split)
  chosen = _chosen_runs(config, runs) if runs else [_run_of_workdir(config, workdir, checkpoint)]
  _check_writable(workdir, chosen, split)
  extracted = []
  for chosen_run in chosen:
    run_centers = _extract(chosen_run, source, config, _method(chosen_run.config, centers))
    _write_centers(_centers_path(chosen_run.folder, split), run_centers, source.info)
    extracted.append(run_centers)
  statistics = [center_statistics(run_centers.centers, source.info.num_classes) for run_centers in extracted]
  _say_numbers(extracted, statistics, source.info, split)
  return _write_page(workdir, extracted, statistics, source.info, split)


def _centers_path(folder: pathlib.Path, split: str) -> pathlib.Path:
  return folder / "centers" / f"{split}.npz"  # a split may lie in a folder, as fold0/val


def _check_writable(workdir: pathlib.Path, chosen: Sequence[_Run], split: str) -> None:
  """Checks the folders of the page and of the runs' centers before minutes of predictions."""
  files.check_writable(_centers_path(workdir, split).parent)
  for chosen_run in chosen:
    try:
      files.check_writable(_centers_path(chosen_run.folder, split).parent)
    except files.WriteError as error:
      remedy = "each run keeps its centers: copy the run to a folder that this user may write to"
      raise files.WriteError(error.problem, remedy) from error


def _say_numbers(
  extracted: Sequence[ExtractedCenters], statistics: Sequence[Statistics], info: data.DatasetInfo, split: str
) -> None:
  """Prints the numbers of each run, and those of several runs side by side."""
  for run_centers, numbers in zip(extracted, statistics, strict=True):
    images = len(run_centers.image_names)
    say(f"{run_centers.name}: {run_centers.description}, of {images} images of {info.name}/{split}")
    say(_class_table(numbers, info.class_names))
  if len(extracted) > 1:
    say(_run_table(extracted, statistics))


def _run_of_workdir(config: Config, workdir: pathlib.Path, checkpoint: pathlib.Path | None) -> _Run:
  weights = restore.origin(restore.locate(workdir, checkpoint))
  config = config.copy_and_resolve_references()
  run_folder = weights.parents[1]
  if weights.is_dir() and (run_folder / "config.json").is_file():
    # A recipe without the fields that the run's command set would call a baseline a run of the contrastive loss.
    recorded = restore.config_of_run(run_folder)
    config.contrast, config.loss = recorded.contrast, recorded.loss
  return _Run(str(workdir), workdir, weights, config)


def _chosen_runs(config: Config, paths: Sequence[str]) -> list[_Run]:
  """Returns the runs of ``--runs``, with the data set and ``eval`` of ``config``."""
  chosen: list[_Run] = []
  for name in filter(None, (path.strip() for path in paths)):
    weights = checkpoints.find(pathlib.Path(os.path.expanduser(name)))
    folder = weights.parents[1]
    if any(other.folder == folder for other in chosen):
      raise ValueError(
        f"--runs: {name}: its run is listed twice; expected each run once, because it keeps the centers of one "
        "checkpoint"
      )
    run_config = restore.config_of_run(folder)
    run_config.dataset.root, run_config.eval = config.dataset.root, config.eval
    if run_config.dataset.name != config.dataset.name:
      raise ValueError(
        f"--runs: {name} was trained on {run_config.dataset.name}, and --config names {config.dataset.name}; "
        "expected runs on one data set"
      )
    chosen.append(_Run(name, folder, weights, run_config))
  return chosen


def _method(config: Config, chosen: str) -> str:
  """Returns the method of the centers of a run; baselines have none, and get the default."""
  if chosen != OF_THE_RUN:
    return chosen
  return str(config.contrast.centers) if uses_contrast(config) else CENTERS[0]


def _extract(chosen_run: _Run, source: data.Source, config: Config, method: str) -> ExtractedCenters:
  """Computes the centers of all images of a split."""
  network = models.build(chosen_run.config.model, source.info.num_classes)
  restored = restore.restore(network, chosen_run.config, chosen_run.weights, source.info.table())
  variables = sharding.local_copy((restored.params, restored.batch_stats))
  full_images = config.eval.copy_and_resolve_references()
  full_images.crop_size = full_images.stride = ()
  mesh = sharding.local_mesh()
  predictor = BatchedPredictor(network, full_images, mesh)  # gathers images of one size
  linear = chosen_run.config.model.contrast_features == "linear"
  compute = functools.partial(
    make_extractor(network, bool(config.eval.pad_to_grid), method, mesh, linear), *variables
  )
  progress = Progress(f"centers of {chosen_run.name}", len(source), unit="images")
  names, of_images = _centers_of_images(predictor, compute, source, config.data.threads, progress)
  labels = np.concatenate([classes for classes, _ in of_images]).astype(np.int32)
  if not labels.size:
    raise ValueError(
      f"{source.info.name}/{config.eval.split}: has no labelled pixel, so no region center; choose a split with labels"
    )
  rows = np.repeat(np.arange(len(source), dtype=np.int32), [len(classes) for classes, _ in of_images])
  vectors = np.concatenate([of_image for _, of_image in of_images])
  return ExtractedCenters(
    name=chosen_run.name,
    centers=Centers(vectors, rows, labels),
    image_names=names,
    method=method,
    step=restored.step,
    weights=weights_digest((restored.params, restored.batch_stats)),
    loss=contrast_title(chosen_run.config) if uses_contrast(chosen_run.config) else "baseline",
  )


def _centers_of_images(
  predictor: BatchedPredictor,
  compute: Callable[[np.ndarray, np.ndarray], tuple[jax.Array, jax.Array]],
  source: data.Source,
  threads: int,
  progress: Progress,
) -> tuple[tuple[str, ...], list[tuple[np.ndarray, np.ndarray]]]:
  """Returns the name of each image in the order of the split, and its classes ``[K]`` with their centers ``[K,C]``."""
  names = [""] * len(source)

  def images() -> Iterator[tuple[tuple[int, np.ndarray], np.ndarray]]:
    for row, example in enumerate(data.evaluation_examples(source, threads=threads)):
      names[row] = example["name"]
      yield (row, example["label"]), example["image"]

  of_rows: dict[int, tuple[np.ndarray, np.ndarray]] = {}
  for batch in predictor.batches(images()):
    labels = batch.stack([label for _, label in batch.keys], source.info.ignore_label)
    vectors, present = map(np.asarray, compute(batch.stack(batch.images, 0), labels))
    for (row, _), of_image, is_present in zip(batch.keys, vectors, present, strict=False):
      classes = np.flatnonzero(is_present)
      of_rows[row] = (classes, of_image[classes])
    progress.advance(len(batch.images))
  progress.close()
  return tuple(names), [of_rows[row] for row in range(len(source))]


def make_extractor(
  network: models.Network, pad_to_grid: bool, method: str, mesh: Mesh, linear: bool = False
) -> Callable[[Any, Any, np.ndarray, np.ndarray], tuple[jax.Array, jax.Array]]:
  """Returns the compiled function from images to their region centers.

  The network predicts with running statistics. Features are those that the classifier reads, also of a run whose loss
  read them before their ReLU, so that all runs are measured alike. They are not projected
  (``model.embedding_channels``), because a baseline trains no projection.

  Args:
    network: functions of the network.
    pad_to_grid: pads images as ``eval.pad_to_grid`` says; padded pixels have no label.
    method: of ``region_centers``.
    mesh: of this process's devices, over which the images are spread.
    linear: whether the network's features are those before the ReLU, ``model.contrast_features``.

  Returns:
    ``(params, batch_stats, images uint8 [B,H,W,3], labels uint8 [B,H,W]) -> (vectors float32 [B,N,C],
    present bool [B,N])``.
  """

  def extract(
    params: Any, batch_stats: Any, images: jax.Array, labels: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    size = (images.shape[1], images.shape[2])
    padded = grid_size(network, size) if pad_to_grid else size
    outputs = network.predict(params, batch_stats, padded_to(images.astype(jnp.float32), padded))
    beyond = ((0, 0), (0, padded[0] - size[0]), (0, padded[1] - size[1]))
    labels = jnp.pad(labels.astype(jnp.int32), beyond, constant_values=data.IGNORE_LABEL)
    grid = (outputs.logits.shape[1], outputs.logits.shape[2])
    labels = resample.downsample_labels(labels, grid, network.align_corners)  # [B,H,W] -> [B,h,w]
    features = jax.nn.relu(outputs.features) if linear else outputs.features
    centers = contrast.region_centers(features, outputs.logits, labels, method=method)
    return centers.vectors, centers.present

  replicated, spread = PartitionSpec(), PartitionSpec(sharding.DATA_AXIS)
  compute: Callable[..., tuple[jax.Array, jax.Array]] = jax.jit(
    jax.shard_map(
      extract, mesh=mesh, in_specs=(replicated, replicated, spread, spread), out_specs=spread, check_vma=False
    ),
    compiler_options=sharding.compiler_options(mesh),
  )
  return compute


def _write_centers(path: pathlib.Path, run_centers: ExtractedCenters, info: data.DatasetInfo) -> None:
  """Writes the centers that are present, and where they come from; the folder exists."""
  with files.atomic_write(path) as file:
    np.savez_compressed(
      file,
      format=FORMAT,
      vectors=run_centers.centers.vectors,
      images=run_centers.centers.images,
      labels=run_centers.centers.labels,
      names=np.array(run_centers.image_names),
      class_names=np.array(info.class_names),
      method=run_centers.method,
      step=run_centers.step,
      weights=run_centers.weights,
    )


def _write_page(
  workdir: pathlib.Path,
  extracted: Sequence[ExtractedCenters],
  statistics: Sequence[Statistics],
  info: data.DatasetInfo,
  split: str,
) -> pathlib.Path:
  """Writes ``workdir/centers/``: the page, its picture, and the numbers."""
  folder = workdir / "centers"
  records = [_record(*pair, info) for pair in zip(extracted, statistics, strict=True)]
  content = {"format": FORMAT, "dataset": info.name, "split": split, "runs": records}
  files.atomic_write_text(folder / f"{split}.json", json.dumps(content, indent=2) + "\n")
  shown = []
  for run_centers in extracted:
    say(f"t-SNE of {len(run_centers.centers.labels)} centers of {run_centers.name}")
    positions = embedding.project(run_centers.centers.vectors)
    shown.append(
      embedding.EmbeddedRun(run_centers.name, run_centers.description, positions, run_centers.centers.labels)
    )
  with files.atomic_write(folder / f"{split}.png") as file:
    embedding.embedding_picture(shown, info).save(file, "PNG")
  software = f"Written by rc_jax {__version__} with jax {jax.__version__} on {jax.devices()[0].device_kind}."
  page = embedding.centers_page(shown, _measures(statistics), info, split, _notes(extracted), software)
  path = folder / "index.html"
  files.atomic_write_text(path, page)
  kept = folder / f"{split}.npz" if len(extracted) == 1 else f"centers/{split}.npz of each run"
  say(f"centers are in {kept}, numbers and a picture in {folder}; open {path}")
  return path


def _notes(extracted: Sequence[ExtractedCenters]) -> list[str]:
  """Returns a sentence for each way in which the centers of several runs are not of one kind."""
  notes = []
  for quantity, values in (
    ("pixel weights of the centers", [run_centers.method for run_centers in extracted]),
    ("number of steps", [f"{run_centers.step:,}" for run_centers in extracted]),
  ):
    if len(set(values)) > 1:
      notes.append(f"The runs differ in the {quantity}: {', '.join(values)}.")
  return notes


def _record(run_centers: ExtractedCenters, numbers: Statistics, info: data.DatasetInfo) -> dict[str, Any]:
  return {
    "run": run_centers.name,
    "step": run_centers.step,
    "weights": run_centers.weights,
    "loss": run_centers.loss,
    "method": run_centers.method,
    "images": len(run_centers.image_names),
    "all": numbers.all._asdict(),
    "mean_of_classes": {name: getattr(numbers.mean, name) for name in _MEASURES},
    "classes": {
      name: of_class._asdict() for name, of_class in zip(info.class_names, numbers.classes, strict=True)
    },
  }


class _Column(NamedTuple):
  """A number of ``Separation``: its field, title, factor, axis and meaning."""

  field: str
  title: str
  factor: float
  limits: tuple[float, float]
  meaning: str


_COLUMNS = (
  _Column("within", "cosine within", 1, (0, 1), "Mean cosine of two centers of one class; high is compact."),
  _Column("between", "cosine between", 1, (0, 1), "Mean cosine of centers of two classes; low is far apart."),
  _Column(
    *("silhouette", "silhouette", 1, (0, 1)),
    "How much nearer a center is to its class than to the nearest other, from -1 to 1, by cosine distances.",
  ),
  _Column(
    *("accuracy", "nearest center in %", 100, (0, 100)),
    "Centers that lie nearest to the mean center of their class, each mean taken over the other images.",
  ),
)


def _measures(statistics: Sequence[Statistics]) -> list[embedding.Measure]:
  def values(of_runs: Sequence[Separation], column: _Column) -> tuple[float | None, ...]:
    unscaled = (getattr(separation, column.field) for separation in of_runs)
    return tuple(None if value is None else column.factor * value for value in unscaled)

  return [
    embedding.Measure(
      title=column.title,
      meaning=column.meaning,
      limits=column.limits,
      total=values([numbers.all for numbers in statistics], column),
      mean=values([numbers.mean for numbers in statistics], column),
      classes=tuple(
        values(of_class, column)
        for of_class in zip(*(numbers.classes for numbers in statistics), strict=True)
      ),
    )
    for column in _COLUMNS
  ]


def _class_table(numbers: Statistics, class_names: Sequence[str]) -> str:
  """Returns the separation of each class that occurs, of all centers, and the means of the classes."""
  rows = [pair for pair in zip(class_names, numbers.classes, strict=True) if pair[1].centers]
  rows.append(("all centers", numbers.all))
  width = max(len(name) for name, _ in (*rows, ("mean of classes", None)))
  lines = [f"  {'class':<{width}}  centers  within  between  silhouette  nearest center"]
  lines += [f"  {name:<{width}}  {separation.centers:>7}  {_texts(separation)}" for name, separation in rows]
  return "\n".join([*lines, f"  {'mean of classes':<{width}}  {'':>7}  {_texts(numbers.mean)}"])


def _texts(separation: Separation) -> str:
  accuracy = "-" if separation.accuracy is None else f"{100 * separation.accuracy:.1f} %"
  return (
    f"{_three_digits(separation.within):>6}  {_three_digits(separation.between):>7}  "
    f"{_three_digits(separation.silhouette):>10}  {accuracy:>14}"
  )


def _three_digits(value: float | None) -> str:
  return "-" if value is None else f"{value:.3f}"


def _run_table(extracted: Sequence[ExtractedCenters], statistics: Sequence[Statistics]) -> str:
  """Returns the means over classes of all runs, a row for each."""
  width = max(len(name) for name in ("mean of classes", *(run_centers.name for run_centers in extracted)))
  lines = [f"  {'mean of classes':<{width}}  within  between  silhouette  nearest center"]
  lines += [
    f"  {run_centers.name:<{width}}  {_texts(numbers.mean)}"
    for run_centers, numbers in zip(extracted, statistics, strict=True)
  ]
  return "\n".join(lines)
