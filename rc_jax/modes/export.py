"""``--mode=export`` writes a network as one program that jax alone can run, or its weights for another project.

The folder of a program holds ``program.jaxexport`` (StableHLO, as ``jax.export`` writes it, including normalisation,
scales, window and argmax), ``metadata.json`` (classes, colours, ids, shapes), ``README.md`` (how to run it) and
``NOTICE`` (licences).
A copy of flatbuffers lies beside them, because ``jax.export`` reads with it and jax does not install it. With
``--weights=beside``, ``weights.safetensors`` holds the weights.

``--as=FAMILY`` writes the weights alone, with the names of that project (``rc_jax/weights/export_file.py``).
"""

import importlib.util
import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax import export as jax_export

import rc_jax
from rc_jax import data, distributed, files, models, sharding
from rc_jax.config import Config, as_dict
from rc_jax.console import say
from rc_jax.evaluation.protocol import step_text
from rc_jax.fields import Flag
from rc_jax.inference.predictor import labels_and_probabilities
from rc_jax.models.segmenter import PIXEL_MEAN, PIXEL_STD
from rc_jax.modes import CHECKPOINT, CONFIG, WORKDIR
from rc_jax.predictions.folder import settings_of
from rc_jax.weights import restore
from rc_jax.weights.checksums import weights_digest
from rc_jax.weights.export_file import write_weights
from rc_jax.weights.exported_names import FAMILIES

DEFAULT_PLATFORMS = ("cpu", "cuda", "tpu")

FLAGS = (
  *(CONFIG, WORKDIR, CHECKPOINT, *distributed.FLAGS),
  Flag(
    "as",
    "",
    "Writes the weights, not a program, as a .safetensors file with the names of mmsegmentation, torchvision, timm, "
    "regioncontrast or rc_jax.",
  ),
  Flag("size", "", "HEIGHT,WIDTH in pixels of the images that the program reads; needed without --as."),
  Flag("batch", 0, "Images of one call. 0: any number."),
  Flag("platforms", DEFAULT_PLATFORMS, "Platforms of the program: some of cpu,cuda,rocm,tpu."),
  Flag("weights", "inside", "Place of the weights: inside the program, or beside it in weights.safetensors."),
  Flag("probabilities", False, "The program also returns class probabilities, float32."),
  Flag("output", None, "Folder to write. Default: export in --workdir, weights in it with --as."),
  Flag("overwrite", False, "Replaces the program or the weights that are there."),
)

PROGRAM, METADATA, WEIGHTS, README = "program.jaxexport", "metadata.json", "weights.safetensors", "README.md"
NOTICE, FLATBUFFERS = "NOTICE", "flatbuffers"
NOTICE_TEXT = """\
Contains code of rc_jax, Apache-2.0.
Contains flatbuffers, Copyright Google Inc., Apache-2.0.
The Apache License, Version 2.0: https://www.apache.org/licenses/LICENSE-2.0
"""
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
WEIGHTS_PLACES = ("inside", "beside")


def run(
  config: Config,
  workdir: pathlib.Path,
  checkpoint: pathlib.Path | None = None,
  *,
  as_: str = "",
  size: str = "",
  batch: int = 0,
  platforms: Sequence[str] = DEFAULT_PLATFORMS,
  weights: str = "inside",
  probabilities: bool = False,
  output: pathlib.Path | None = None,
  overwrite: bool = False,
) -> pathlib.Path:
  """Writes the program of a checkpoint's network, which computes the labels of ``--mode=predict``, or its weights.

  Args:
    config: a validated config; ``eval`` has the scales, flip and window of the program.
    workdir: the run's folder, which holds the newest checkpoint.
    checkpoint: as for ``restore.locate``; None: the newest of ``workdir``.
    as_: a family of ``exported_names.FAMILIES``: write the weights alone, under its names; empty: write the program.
    size: height and width of the images, ``"1024,2048"``.
    batch: images of one call; 0: any number.
    platforms: some of ``PLATFORMS``; the program holds the convolutions in the form of each.
    weights: ``inside`` the program, or ``beside`` it in ``weights.safetensors``.
    probabilities: the program also returns class probabilities.
    output: the folder; None: ``workdir/export``, or ``workdir/weights`` with ``as_``.
    overwrite: replace the program or the weights that are there.

  Returns:
    The folder of the program, or the file of weights.

  Raises:
    FileNotFoundError: no checkpoint.
    ValueError: the checkpoint holds another network or other classes, a flag has no such value, the folder is not
      empty, or the family has no such network.
    OSError: the folder cannot be written; one line.
  """
  if as_:
    _refuse_flags_of_programs(size, batch, platforms, weights, probabilities)
    return _export_weights(config, workdir, checkpoint, as_, output or workdir / "weights", overwrite)
  height, width = parse_size(size)
  _check_flags(batch, platforms, weights)
  folder = _free_folder(output or workdir / "export", overwrite)
  info = data.info(config.dataset.name, config.dataset.root, config.dataset.classes)
  network = models.build(config.model, info.num_classes)
  path = restore.locate(workdir, checkpoint)
  if jax.process_count() > 1:
    distributed.check_agreement(data.class_facts(info) | restore.facts(path))
  restored = restore.restore(network, config, path, info.table())
  variables = sharding.local_copy((restored.params, restored.batch_stats))
  exported, arrays = export_program(
    network, config, variables, (height, width), batch, platforms, weights == "inside", probabilities
  )
  settings = settings_of(
    as_dict(config), weights_digest(variables), restore.origin(path), restored.step, info
  )
  metadata = _metadata(info, exported, settings, (height, width), batch, weights, probabilities)
  example = _example(weights == "beside", probabilities, batch or 1, height, width)
  if jax.process_index() > 0:
    return folder
  _write(folder, exported, arrays if weights == "beside" else None, metadata, example)
  total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
  say(
    f"the program of {step_text(restored.step)} "
    f"for {_count(batch or 'any')} of {height} x {width} pixels (height x width) "
    f"on {', '.join(platforms)} is in {folder} ({total / 1e6:.1f} MB); {README} there says how to run it"
  )
  return folder


def _export_weights(
  config: Config,
  workdir: pathlib.Path,
  checkpoint: pathlib.Path | None,
  family: str,
  folder: pathlib.Path,
  overwrite: bool,
) -> pathlib.Path:
  """Writes ``folder/<family>.safetensors``; returns its path."""
  path = folder.resolve() / f"{family}.safetensors"
  info = data.info(config.dataset.name, config.dataset.root, config.dataset.classes)
  network = models.build(config.model, info.num_classes)
  if family not in FAMILIES:
    raise ValueError(f"--as={family}: no such family; expected one of {', '.join(FAMILIES)}")
  if path.exists() and not overwrite:
    raise ValueError(f"{path}: exists; add --overwrite to replace it, or --output=DIR")
  located = restore.locate(workdir, checkpoint)
  if jax.process_count() > 1:
    distributed.check_agreement(data.class_facts(info) | restore.facts(located))
  restored = restore.restore(network, config, located, info.table())
  variables = models.Variables(*sharding.local_copy((restored.params, restored.batch_stats)))
  if jax.process_index() > 0:
    return path
  report = write_weights(path, family, variables, config.model, restored.step, info.name, info.class_names)
  size = path.stat().st_size / 1e6
  origin = f"step {restored.step:,}" if restored.step else "a file"
  line = f"the weights of {origin} are in {path}: {report.arrays} arrays ({size:.1f} MB)"
  if report.left_out:
    parts = sorted({name.partition(".")[0] for name in report.left_out})
    line += f"; {family} has no place for {', '.join(parts)}"
  if report.different:
    line += (
      f"; WARNING: networks of {family} differ from this one in {', '.join(report.different)}: build the network there "
      "with these values"
    )
  say(line)
  return path


def _refuse_flags_of_programs(
  size: str, batch: int, platforms: Sequence[str], weights: str, probabilities: bool
) -> None:
  given = {
    "size": bool(size),
    "batch": bool(batch),
    "platforms": tuple(platforms) != DEFAULT_PLATFORMS,
    "weights": weights != "inside",
    "probabilities": probabilities,
  }
  unread = [f"--{name}" for name, is_given in given.items() if is_given]
  if unread:
    raise ValueError(f"{', '.join(unread)}: is of programs, and --as writes weights alone; leave it out")


def export_program(
  network: models.Network,
  config: Config,
  variables: tuple[Any, Any],
  size: tuple[int, int],
  batch: int,
  platforms: Sequence[str],
  inside: bool,
  probabilities: bool,
) -> tuple[jax_export.Exported, dict[str, np.ndarray]]:
  """Traces a network into a program.

  Args:
    network: functions of the network.
    config: reads ``eval``.
    variables: parameters and statistics.
    size: ``(H,W)``.
    batch: images of a call; 0: any number.
    platforms: to lower for.
    inside: whether weights are constants of the program, or its first argument, ``{name: float32 array}``.
    probabilities: whether the program returns a pair.

  Returns:
    The program, ``images uint8 [B,H,W,3] -> labels uint8 [B,H,W]`` (train ids), or ``(labels, probabilities float32
    [B,H,W,N])``; and the weights that it reads, without those that only training reads.
  """
  predict = labels_and_probabilities(network, config.eval, probabilities)
  rows = jax_export.symbolic_shape("batch")[0] if batch == 0 else batch
  images = jax.ShapeDtypeStruct((rows, *size, 3), jnp.uint8)
  treedef, names = jax.tree.structure(variables), flat_names(variables)
  # On the host, because the program will run on other devices than it was lowered on.
  weights = dict(zip(names, jax.device_get(jax.tree.leaves(variables)), strict=True))

  def segment(given: dict[str, jax.Array], images: jax.Array) -> Any:
    # Weights that the program does not read still have their place in the tree.
    params, batch_stats = jax.tree.unflatten(treedef, [given.get(name, weights[name]) for name in names])
    labels, probabilities = predict(params, batch_stats, images)
    return labels if probabilities is None else (labels, probabilities)

  def shapes(arrays: dict[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in arrays.items()}

  # For one image, because a program for any number keeps arguments that it never reads.
  one_image = jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)
  with_all = jax_export.export(jax.jit(segment), platforms=platforms[:1])(shapes(weights), one_image)
  in_order = sorted(weights)  # as jax orders the values of a dictionary
  read = {in_order[i]: weights[in_order[i]] for i in with_all.module_kept_var_idx if i < len(in_order)}
  if inside:

    def with_constants(images: jax.Array) -> Any:
      # Without the barrier XLA folds constants, and then fuses and rounds differently from ``--mode=predict``, which
      # passes weights as arguments: in bfloat16, one label in a hundred differed.
      return segment(jax.lax.optimization_barrier(jax.tree.map(jnp.asarray, read)), images)

    return jax_export.export(jax.jit(with_constants), platforms=platforms)(images), read
  return jax_export.export(jax.jit(segment), platforms=platforms)(shapes(read), images), read


def parse_size(text: str) -> tuple[int, int]:
  """Reads ``"1024,2048"`` as height and width; raises ValueError for anything else."""
  parts = text.replace("(", "").replace(")", "").split(",")
  if len(parts) == 2 and all(part.strip().isdigit() and int(part) > 0 for part in parts):
    return int(parts[0]), int(parts[1])
  problem = f"--size={text}" if text else "--size is missing"
  raise ValueError(
    f"{problem}: a program reads images of one size; expected its height and width, such as 1024,2048"
  )


def flat_names(variables: tuple[Any, Any]) -> list[str]:
  """Names the arrays of ``(params, batch_stats)``, in the tree's order: ``params/backbone/...``."""
  return [
    "/".join(
      ("params", "batch_stats")[entry.idx] if index == 0 else str(entry.key)
      for index, entry in enumerate(path)
    )
    for path, _ in jax.tree.leaves_with_path(variables)
  ]


def _check_flags(batch: int, platforms: Sequence[str], weights: str) -> None:
  if batch < 0:
    raise ValueError(f"--batch={batch}: expected the number of images of a call, or 0 for any")
  unknown = [name for name in platforms if name not in PLATFORMS]
  if unknown or not platforms or len(set(platforms)) < len(platforms):
    raise ValueError(
      f"--platforms={','.join(platforms)}: expected some of {', '.join(PLATFORMS)}, each once, separated by commas"
    )
  if weights not in WEIGHTS_PLACES:
    raise ValueError(f"--weights={weights}: expected one of {', '.join(WEIGHTS_PLACES)}")
  if importlib.util.find_spec("flatbuffers") is None:
    raise ValueError(
      "--mode=export: jax.export needs the package flatbuffers, which is missing; pip install flatbuffers"
    )


def _free_folder(output: pathlib.Path, overwrite: bool) -> pathlib.Path:
  """Returns the folder to write; refuses a file, and without ``overwrite`` a folder that is not empty."""
  folder = output.resolve()
  if folder.exists() and not folder.is_dir():
    raise ValueError(f"{folder}: is a file; expected a folder or a new name")
  if folder.is_dir() and any(folder.iterdir()) and not overwrite:
    raise ValueError(f"{folder}: is not empty; add --overwrite to replace the program, or --output=DIR")
  return folder


def _write(
  folder: pathlib.Path,
  exported: jax_export.Exported,
  weights: dict[str, np.ndarray] | None,
  metadata: dict[str, Any],
  example: str,
) -> None:
  """Writes all files of a program; ``weights`` are those beside it, ``example`` the Python lines of the README.

  The files take their names when all are written: on a full disk an earlier program stays.
  """
  files.check_writable(folder)
  staged = folder / ".part"
  shutil.rmtree(staged, ignore_errors=True)  # of a killed export
  files.make_folder(staged)
  try:
    if weights is not None:
      with files.atomic_write(staged / WEIGHTS) as file:
        file.write(safetensors.numpy.save(weights))
    with files.atomic_write(staged / PROGRAM) as file:
      file.write(exported.serialize())
    _copy_flatbuffers(staged)
    files.atomic_write_text(staged / NOTICE, NOTICE_TEXT)
    files.atomic_write_text(staged / README, _readme(metadata, example))
    files.atomic_write_text(staged / METADATA, json.dumps(metadata, indent=2) + "\n")
    shutil.rmtree(folder / FLATBUFFERS, ignore_errors=True)
    for name in (METADATA, WEIGHTS):
      (folder / name).unlink(missing_ok=True)
    for path in sorted(staged.iterdir(), key=lambda path: path.name == METADATA):
      files.move(path, folder / path.name)  # METADATA last: a folder without it is incomplete
  finally:
    shutil.rmtree(staged, ignore_errors=True)


def _metadata(
  info: data.DatasetInfo,
  exported: jax_export.Exported,
  settings: dict[str, Any],
  size: tuple[int, int],
  batch: int,
  weights: str,
  probabilities: bool,
) -> dict[str, Any]:
  rows: int | str = batch or "any"
  outputs = [
    {
      "name": "labels",
      "dtype": "uint8",
      "shape": [rows, *size],
      "meaning": "index into class_names, palette and label_ids",
    }
  ]
  if probabilities:
    outputs.append(
      {
        "name": "probabilities",
        "dtype": "float32",
        "shape": [rows, *size, info.num_classes],
        "meaning": "of each class, summing to 1",
      }
    )
  return {
    "format": 1,
    "program": PROGRAM,
    "weights": WEIGHTS if weights == "beside" else "inside the program",
    "platforms": list(exported.platforms),
    "jax_version": jax.__version__,
    "calling_convention_version": exported.calling_convention_version,
    "rc_jax_version": rc_jax.__version__,
    "license": "Apache-2.0",
    "notice": NOTICE_TEXT.splitlines()[0],
    "input": {
      "dtype": "uint8",
      "shape": [rows, *size, 3],
      "layout": "batch, height, width, RGB",
      "normalisation": {
        "where": "inside the program; pass pixels in 0..255",
        "mean": list(PIXEL_MEAN),
        "std": list(PIXEL_STD),
      },
    },
    "outputs": outputs,
    "dataset": info.name,
    "class_names": list(info.class_names),
    "palette": info.palette.tolist(),
    "label_ids": [int(label_id) for label_id in info.label_ids],
    "ignore_label": info.ignore_label,
    "trained": {name: settings[name] for name in ("step", "weights", "model")},
    "eval": settings["eval"],
  }


def _count(rows: int | str) -> str:
  return "any number of images" if rows == "any" else "1 image" if rows == 1 else f"{rows} images"


def _copy_flatbuffers(folder: pathlib.Path) -> None:
  """Copies flatbuffers beside the program, because jax.export reads with it and jax does not install it."""
  spec = importlib.util.find_spec("flatbuffers")
  assert spec is not None and spec.origin is not None
  target = folder / FLATBUFFERS
  source = pathlib.Path(spec.origin).parent
  for file in sorted(
    path for path in source.rglob("*") if path.is_file() and path.parent.name != "__pycache__"
  ):
    copied = target / file.relative_to(source)
    files.make_folder(copied.parent)
    with files.atomic_write(copied) as opened:
      opened.write(file.read_bytes())


def _example(beside: bool, probabilities: bool, rows: int, height: int, width: int) -> str:
  """Returns the lines of Python that run the program, in its folder, with jax alone."""
  outputs = "labels, probabilities" if probabilities else "labels"
  lines = [
    'import sys; sys.path.append(".")  # flatbuffers, which jax.export needs, unless it is installed',
    "import jax, jax.export, numpy as np",
    f'program = jax.export.deserialize(bytearray(open("{PROGRAM}", "rb").read()))',
  ]
  if beside:
    lines += [
      f'import json; raw = open("{WEIGHTS}", "rb").read(); end = 8 + int.from_bytes(raw[:8], "little")',
      'arrays = {k: v for k, v in json.loads(raw[8:end]).items() if k != "__metadata__"}',
      'at = lambda v: np.frombuffer(raw[end:], "<f4")[v["data_offsets"][0] // 4 : v["data_offsets"][1] // 4]',
      'weights = jax.device_put({k: at(v).reshape(v["shape"]) for k, v in arrays.items()})',
    ]
  lines += [
    f"images = np.zeros(({rows}, {height}, {width}, 3), np.uint8)  # RGB, 0..255",
    f"{outputs} = jax.jit(program.call)({'weights, ' if beside else ''}images)",
  ]
  return "\n".join(lines)


def _training(metadata: dict[str, Any]) -> str:
  """Returns a phrase on the training: nothing is known of that of a file of weights."""
  dataset, step = metadata["dataset"], metadata["trained"]["step"]
  return (
    f"was trained on {dataset} for {step} steps"
    if step
    else f"has weights of a file, for the classes of {dataset}"
  )


def _readme(metadata: dict[str, Any], example: str) -> str:
  """Returns the README of a program: inputs, outputs, how to run it, classes, licences."""
  classes = "\n".join(
    f"| {index} | {name} | {label_id} | {tuple(color)} |"
    for index, (name, label_id, color) in enumerate(
      zip(metadata["class_names"], metadata["label_ids"], metadata["palette"], strict=True)
    )
  )
  rows, height, width, _ = metadata["input"]["shape"]
  outputs = "; ".join(
    f"{output['name']} {output['dtype']} {output['shape']}, {output['meaning']}"
    for output in metadata["outputs"]
  )
  return f"""# A segmentation network

Takes {_count(rows)} of {height} x {width} pixels (height x width), RGB, uint8; the program normalises them.

Returns {outputs}.

Runs on {", ".join(metadata["platforms"])}, in this folder, with jax alone:

```python
{example}
```

Keep the function that `jax.jit(program.call)` returns: it compiles at its first call, and again for each other number
of images. The program was written by jax {metadata["jax_version"]}; with this version it gives the labels of
`--mode=predict` on the same kind of device. JAX promises that versions up to six months newer read it. Their compilers
round differently, so some pixels between two classes change.
`{METADATA}` holds the same facts in JSON. The network {_training(metadata)};
scales {metadata["eval"]["scales"]}, flip {metadata["eval"]["flip"]}.

Contains code of rc_jax, Apache-2.0. `flatbuffers/` is a copy of that package, Apache-2.0, Copyright Google Inc.;
jax.export reads the program with it. See `{NOTICE}`.

| label | class | id in {metadata["dataset"]} | colour |
|---|---|---|---|
{classes}
"""
