"""Labels a folder of images: label PNGs in the data set's own ids, and overlays for people."""

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from rc_jax import data, evaluate, inference, models, report, sharding
from rc_jax.config import Config
from rc_jax.data import IMAGE_SUFFIXES, read_image
from rc_jax.run_log import Progress, say


def run(
  config: Config, workdir: pathlib.Path, checkpoint_path: pathlib.Path | None, images: pathlib.Path | None
) -> pathlib.Path:
  """Writes ``workdir/predictions/labels/<image stem>.png`` and ``overlays/<image stem>.jpg``: ``--mode=predict``.

  Args:
    config: a validated config.
    workdir: where predictions go, and where the newest checkpoint is looked for.
    checkpoint_path: a run, or one step of it; None: the newest of ``workdir``.
    images: an image or a folder of images; None: the images of ``config.eval.split``.

  Returns:
    The folder of predictions.

  Raises:
    FileNotFoundError: no checkpoint, no data, or no images.
    ValueError: the checkpoint holds another network, or an image cannot be read.
  """
  info = data.info(config.dataset.name, config.dataset.root)
  network = models.build(config.model, info.num_classes)
  restored = evaluate.restore(network, config, checkpoint_path or workdir)
  if images is None:
    source = data.load(config.dataset.name, config.dataset.root, config.eval.split, labels=False)
    count = len(source)
    examples = data.evaluation_examples(source, jax.process_index(), jax.process_count(), config.data.threads)
    named: Iterator[tuple[str, np.ndarray]] = ((example["name"], example["image"]) for example in examples)
  else:
    files = image_files(images)
    count = len(files)
    named = ((file.stem, read_image(file)) for file in files[jax.process_index() :: jax.process_count()])

  predict = inference.make_predictor(network, config.eval)
  label = jax.jit(lambda *inputs: jnp.argmax(predict(*inputs), axis=-1))
  weights = sharding.local_copy((restored.params, restored.batch_stats))
  folder = workdir / "predictions"
  for kind in ("labels", "overlays"):
    (folder / kind).mkdir(parents=True, exist_ok=True)
  say(f"labelling {count} images with step {restored.step}; the first image of each size compiles a program")
  progress = Progress("labelling", count, unit="images")
  for name, image in named:
    labels = np.asarray(label(*weights, image[None])[0], np.uint8)
    Image.fromarray(info.label_ids.astype(np.uint8)[labels]).save(folder / "labels" / f"{name}.png")
    Image.fromarray(report.overlay(image, labels, info.palette)).save(
      folder / "overlays" / f"{name}.jpg", quality=92
    )
    progress.advance(jax.process_count())
  progress.close()
  say(f"labels (ids of {info.name}) and overlays are in {folder}")
  return folder


def image_files(path: pathlib.Path) -> list[pathlib.Path]:
  """Lists an image, or the images of a folder in the order of their names.

  Raises:
    FileNotFoundError: nothing is there, or no image.
    ValueError: two images share a stem, so that their labels would share a file.
  """
  if path.is_file():
    return [path]
  if not path.is_dir():
    raise FileNotFoundError(f"--images={path}: no such file or folder")
  # Names that begin with a dot are what other systems leave beside a photo, not photos.
  found = (file for file in path.iterdir() if not file.name.startswith("."))
  files = sorted(file for file in found if file.suffix.lower() in IMAGE_SUFFIXES)
  if not files:
    raise FileNotFoundError(
      f"--images={path}: holds no image; expected files ending {', '.join(IMAGE_SUFFIXES)}"
    )
  stems: dict[str, pathlib.Path] = {}
  for file in files:
    if file.stem in stems:
      raise ValueError(
        f"--images: {stems[file.stem]} and {file} would both become {file.stem}.png; rename one"
      )
    stems[file.stem] = file
  return files
