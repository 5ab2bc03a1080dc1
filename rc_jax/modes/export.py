"""A network as one program that jax alone can run: ``--mode=export``.

The folder holds ``program.jaxexport`` (StableHLO, as ``jax.export`` writes it, with the normalisation, the scales, the
window and the argmax inside), ``metadata.json`` (classes, colours, ids, shapes), ``README.md`` (how to run it), and the
reader that ``jax.export`` needs and jax does not bring. Where weights lie beside the program, ``weights.safetensors``.
"""

import importlib.metadata
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

from rc_jax import data, distributed, files, models, sharding
from rc_jax.config import Config, as_dict
from rc_jax.console import say
from rc_jax.fields import Flag
from rc_jax.inference import predictor
from rc_jax.models.segmenter import PIXEL_MEAN, PIXEL_STD
from rc_jax.modes import CHECKPOINT, CONFIG, WORKDIR
from rc_jax.predictions.folder import settings_of
from rc_jax.weights import restore

FLAGS = (
  *(CONFIG, WORKDIR, CHECKPOINT, *distributed.FLAGS),
  Flag("size", "", "HEIGHT,WIDTH in pixels of the images that the program reads."),
  Flag("batch", 0, "Images of one call. 0: any number."),
  Flag("platforms", ("cpu", "cuda", "tpu"), "Where the program can run: some of cpu,cuda,rocm,tpu."),
  Flag(
    "weights", "inside", "Where the weights are: inside the program, or beside it in weights.safetensors."
  ),
  Flag("probabilities", False, "The program also returns class probabilities, float32."),
  Flag("output", None, "Folder to write. Default: export in --workdir."),
  Flag("overwrite", False, "Replaces the program that is there."),
)


PROGRAM, METADATA, WEIGHTS, README = "program.jaxexport", "metadata.json", "weights.safetensors", "README.md"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
WEIGHTS_PLACES = ("inside", "beside")


def run(
  config: Config,
  workdir: pathlib.Path,
  checkpoint: pathlib.Path | None = None,
  *,
  size: str,
  batch: int = 0,
  platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
  weights: str = "inside",
  probabilities: bool = False,
  output: pathlib.Path | None = None,
  overwrite: bool = False,
) -> pathlib.Path:
  """Writes the program of a checkpoint's network, as ``--mode=predict`` runs it.

  Args:
    config: a validated config; ``eval`` says which scales, flip and window the program has.
    workdir: where the newest checkpoint is looked for.
    checkpoint: as for ``restore.locate``; None: the newest of ``workdir``.
    size: height and width of the images, ``"1024,2048"``.
    batch: images of one call; 0: any number.
    platforms: where it shall run, of ``PLATFORMS``. Each has its own form of the convolutions in the program.
    weights: ``inside`` the program, or ``beside`` it in ``weights.safetensors``.
    probabilities: also return each class's probabilities.
    output: the folder; None: ``workdir/export``.
    overwrite: replace what is there.

  Returns:
    The folder.

  Raises:
    FileNotFoundError: no checkpoint.
    ValueError: the checkpoint holds another network, a flag has no such value, or the folder holds a program.
  """
  height, width = parse_size(size)
  if batch < 0:
    raise ValueError(f"--batch={batch}: expected the number of images of a call, or 0 for any")
  unknown = [name for name in platforms if name not in PLATFORMS]
  if unknown or not platforms or len(set(platforms)) < len(platforms):
    raise ValueError(
      f"--platforms={','.join(platforms)}: expected some of {', '.join(PLATFORMS)}, each once, with commas between"
    )
  if weights not in WEIGHTS_PLACES:
    raise ValueError(f"--weights={weights}: expected one of {', '.join(WEIGHTS_PLACES)}")
  if importlib.util.find_spec("flatbuffers") is None:
    raise ValueError(
      "--mode=export: needs the package flatbuffers, in which jax.export writes: pip install flatbuffers"
    )
  folder = (output or workdir / "export").resolve()
  if folder.exists() and not folder.is_dir():
    raise ValueError(f"{folder}: is a file; expected a folder, or a name that is free")
  if folder.is_dir() and any(folder.iterdir()) and not overwrite:
    raise ValueError(f"{folder}: is not empty; add --overwrite to replace the program, or --output=DIR")

  info = data.info(config.dataset.name, config.dataset.root)
  network = models.build(config.model, info.num_classes)
  path = restore.locate(workdir, checkpoint)
  restored = restore.restore(network, config, path)
  variables = sharding.local_copy((restored.params, restored.batch_stats))
  exported, arrays = export_program(
    network, config, variables, (height, width), batch, platforms, weights == "inside", probabilities
  )
  settings = settings_of(as_dict(config), variables, restore.origin(path), restored.step)
  metadata = _metadata(info, exported, settings, (height, width), batch, weights, probabilities)

  if jax.process_index() > 0:
    return folder
  folder.mkdir(parents=True, exist_ok=True)
  (folder / METADATA).unlink(missing_ok=True)  # written last: a folder without it is not whole
  (folder / WEIGHTS).unlink(missing_ok=True)
  if weights == "beside":
    with files.atomic_write(folder / WEIGHTS) as file:
      file.write(safetensors.numpy.save(arrays))
  with files.atomic_write(folder / PROGRAM) as file:
    file.write(exported.serialize())
  _copy_reader(folder)
  example = _example(weights == "beside", probabilities, batch or 1, height, width)
  files.atomic_write_text(folder / README, _readme(metadata, example))
  files.atomic_write_text(folder / METADATA, json.dumps(metadata, indent=2) + "\n")
  total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
  say(
    f"the program of step {restored.step} for {_count(batch or 'any')} of {height} x {width} pixels (height x width) "
    f"on {', '.join(platforms)} is in {folder} ({total / 1e6:.1f} MB); {README} there says how to run it"
  )
  return folder


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
    platforms: what to lower for.
    inside: whether weights are constants of the program, or its first argument, ``{name: float32 array}``.
    probabilities: whether the program returns a pair.

  Returns:
    The program, ``images uint8 [B,H,W,3] -> labels uint8 [B,H,W]`` (train ids), or ``(labels, probabilities float32
    [B,H,W,N])``; and the weights that it reads, without those that serve training alone.
  """
  predicted = predictor.labels_and_probabilities(network, config.eval, probabilities)
  rows = jax_export.symbolic_shape("batch")[0] if batch == 0 else batch
  images = jax.ShapeDtypeStruct((rows, *size, 3), jnp.uint8)
  treedef, names = jax.tree.structure(variables), flat_names(variables)
  # On no device: where a program was lowered says nothing about where it will run.
  weights = dict(zip(names, jax.device_get(jax.tree.leaves(variables)), strict=True))

  def segment(given: dict[str, jax.Array], images: jax.Array) -> Any:
    # What is not given is not read, but has its place in the tree.
    params, batch_stats = jax.tree.unflatten(treedef, [given.get(name, weights[name]) for name in names])
    labels, probabilities = predicted(params, batch_stats, images)
    return labels if probabilities is None else (labels, probabilities)

  def shapes(arrays: dict[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in arrays.items()}

  # Of one image: a program for any number keeps arguments that it never reads.
  one = jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)
  whole = jax_export.export(jax.jit(segment), platforms=platforms[:1])(shapes(weights), one)
  # jax takes a dictionary's values in the order of its keys.
  in_order = sorted(weights)
  read = {in_order[i]: weights[in_order[i]] for i in whole.module_kept_var_idx if i < len(in_order)}
  if inside:

    def alone(images: jax.Array) -> Any:
      # XLA computes ahead what it knows of constants, and then fuses and rounds otherwise than with the arguments that
      # ``predict`` gives: in bfloat16, one label in a hundred was another.
      return segment(jax.lax.optimization_barrier(jax.tree.map(jnp.asarray, read)), images)

    return jax_export.export(jax.jit(alone), platforms=platforms)(images), read
  return jax_export.export(jax.jit(segment), platforms=platforms)(shapes(read), images), read


def parse_size(text: str) -> tuple[int, int]:
  """Reads ``"1024,2048"`` as height and width; raises ValueError for anything else."""
  parts = text.replace("(", "").replace(")", "").split(",")
  if len(parts) == 2 and all(part.strip().isdigit() and int(part) > 0 for part in parts):
    return int(parts[0]), int(parts[1])
  found = f"--size={text}" if text else "--size is missing"
  raise ValueError(
    f"{found}: a program reads images of one size; expected its height and width, such as 1024,2048"
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
    "rc_jax_version": importlib.metadata.version("rc_jax"),
    "input": {
      "dtype": "uint8",
      "shape": [rows, *size, 3],
      "layout": "batch, height, width, RGB",
      "normalisation": {
        "where": "inside the program: give pixels of 0..255 as they are",
        "mean": list(PIXEL_MEAN),
        "std": list(PIXEL_STD),
      },
    },
    "outputs": outputs,
    "dataset": info.name,
    "class_names": list(info.class_names),
    "palette": info.palette.tolist(),
    "label_ids": [int(own_id) for own_id in info.label_ids],
    "ignore_label": info.ignore_label,
    "trained": {name: settings[name] for name in ("step", "weights", "model")},
    "eval": settings["eval"],
  }


def _count(rows: int | str) -> str:
  return "any number of images" if rows == "any" else "1 image" if rows == 1 else f"{rows} images"


def _copy_reader(folder: pathlib.Path) -> None:
  """Puts flatbuffers beside the program: jax.export reads and writes with it, and jax does not install it."""
  spec = importlib.util.find_spec("flatbuffers")
  assert spec is not None and spec.origin is not None
  target = folder / "flatbuffers"
  shutil.rmtree(target, ignore_errors=True)
  ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
  shutil.copytree(pathlib.Path(spec.origin).parent, target, ignore=ignored)


def _example(beside: bool, probabilities: bool, rows: int, height: int, width: int) -> str:
  """The lines that run the program, in this folder, with jax alone."""
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


def _readme(metadata: dict[str, Any], example: str) -> str:
  """What somebody needs who finds this folder without the one who wrote it."""
  classes = "\n".join(
    f"| {index} | {name} | {own_id} | {tuple(color)} |"
    for index, (name, own_id, color) in enumerate(
      zip(metadata["class_names"], metadata["label_ids"], metadata["palette"], strict=True)
    )
  )
  rows, height, width, _ = metadata["input"]["shape"]
  outputs = "; ".join(
    f"{output['name']} {output['dtype']} {output['shape']}, {output['meaning']}"
    for output in metadata["outputs"]
  )
  return f"""# A segmentation network

Takes {_count(rows)} of {height} x {width} pixels (height x width), RGB, uint8; normalisation is inside.

Gives {outputs}.

Runs on {", ".join(metadata["platforms"])}, with jax and nothing else, in this folder:

```python
{example}
```

Keep what `jax.jit(program.call)` returns: it compiles at its first call, and again for each other number of images.
Written by jax {metadata["jax_version"]}, under which labels are those of `--mode=predict` on the same kind of device.
Versions up to six months newer are promised to read it; their compilers round otherwise, and some pixels between two
classes change.
`{METADATA}` says all of this to programs. Trained on {metadata["dataset"]} for {metadata["trained"]["step"]} steps;
scales {metadata["eval"]["scales"]}, flip {metadata["eval"]["flip"]}.

`flatbuffers/` is a copy of the package of that name (Apache License 2.0, Google), in which jax.export writes.

| label | class | id in {metadata["dataset"]} | colour |
|---|---|---|---|
{classes}
"""
