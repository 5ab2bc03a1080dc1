"""Exported programs against predictions, also in an environment with jax alone."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import export as jax_export
from PIL import Image

import rc_jax
from rc_jax import models
from rc_jax.data.datasets import synthetic
from rc_jax.inference import predictor
from rc_jax.modes import export
from tests.support import disks, run_tiny, tiny_predictions

SIZE = (41, 57)
# The packages that jax needs.
JAX_ALONE = ("jax", "jaxlib", "numpy", "numpy.libs", "ml_dtypes", "opt_einsum", "scipy", "scipy.libs")


def photos(count: int) -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (count, *SIZE, 3), np.uint8)


def tiny():
  """Returns the config, network and weights of the smallest network of the project."""
  config = tiny_predictions.tiny_config()
  return config, models.build(config.model, 11), tuple(tiny_predictions.tiny_variables())


def predicted(config, network, variables, images: np.ndarray) -> np.ndarray:
  return np.asarray(jax.jit(predictor.make_predictor(network, config.eval))(*variables, images))


def program_of(config, network, variables, batch=0, platforms=("cpu",), inside=True, probabilities=True):
  return export.export_program(network, config, variables, SIZE, batch, platforms, inside, probabilities)


@pytest.mark.long
@pytest.mark.run
def test_lines_of_the_readme_run_with_jax_alone(tmp_path: pathlib.Path) -> None:
  tiny_predictions.export_tiny(tmp_path / "inside", size="41,57")
  tiny_predictions.export_tiny(
    tmp_path / "beside", size="41,57", weights="beside", probabilities=True, batch=2
  )
  (tmp_path / "packages").mkdir()
  for name in JAX_ALONE:
    origin = pathlib.Path(np.__file__).parents[1] / name
    if origin.exists():
      (tmp_path / "packages" / name).symlink_to(origin)
  np.save(tmp_path / "images.npy", photos(2))
  code = ["import importlib.util, os"]
  for name in ("rc_jax", "flax", "flatbuffers", "safetensors"):
    code.append(f"assert importlib.util.find_spec({name!r}) is None")
  for name in ("inside", "beside"):
    readme = (tmp_path / name / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert example.count("images = np.zeros") == 1
    example = re.sub(r"images = np\.zeros.*", f"images = np.load({str(tmp_path / 'images.npy')!r})", example)
    code += [f"os.chdir({str(tmp_path / name)!r})", example, 'np.save("labels.npy", labels)']
  code.append('np.save("probabilities.npy", probabilities)')
  subprocess.run(
    # -S leaves out site-packages, -P and cwd this checkout.
    [sys.executable, "-S", "-P", "-c", "\n".join(code)],
    cwd=tmp_path,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tmp_path / "packages")},
    check=True,
    timeout=240,
  )
  probabilities = predicted(*tiny(), photos(2))
  for name in ("inside", "beside"):
    labels = np.load(tmp_path / name / "labels.npy")
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, probabilities.argmax(-1))
  np.testing.assert_allclose(np.load(tmp_path / "beside" / "probabilities.npy"), probabilities, atol=1e-6)

  described = json.loads((tmp_path / "inside" / "metadata.json").read_text())
  info = synthetic.INFO
  assert described["class_names"] == list(info.class_names)
  assert described["label_ids"] == info.label_ids.tolist() and described["palette"] == info.palette.tolist()
  assert described["input"]["shape"] == ["any", *SIZE, 3] and described["platforms"] == ["cpu", "cuda", "tpu"]
  assert described["trained"]["step"] == 7
  assert described["rc_jax_version"] == rc_jax.__version__
  beside = json.loads((tmp_path / "beside" / "metadata.json").read_text())
  assert beside["input"]["shape"] == [2, *SIZE, 3] and len(beside["outputs"]) == 2

  notice = "Contains code of rc_jax, Apache-2.0."
  assert described["license"] == "Apache-2.0" and described["notice"] == notice
  for file in ("NOTICE", "README.md"):
    assert notice in (tmp_path / "inside" / file).read_text()


@pytest.mark.long
def test_program_gives_the_labels_of_predict_to_the_bit(tmp_path: pathlib.Path) -> None:
  (tmp_path / "images").mkdir()
  coarse = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), np.uint8)
  images = np.stack([Image.fromarray(each).resize(SIZE[::-1], Image.Resampling.BICUBIC) for each in coarse])
  for number, image in enumerate(images):
    Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
  assert tiny_predictions.label_tiny(tmp_path / "images", tmp_path / "predictions", overlays=False) == 0
  folder = tiny_predictions.export_tiny(tmp_path / "export", size="41,57")
  program = jax_export.deserialize(bytearray((folder / "program.jaxexport").read_bytes()))
  call = jax.jit(program.call)
  labels = np.concatenate([call(image[None]) for image in images])
  assert len(np.unique(labels)) > 1
  for number, expected in enumerate(labels):
    with Image.open(tmp_path / "predictions" / "labels" / f"{number}.png") as written:
      np.testing.assert_array_equal(np.asarray(written), synthetic.INFO.label_ids[expected])


def test_program_for_any_number_of_images_equals_the_predictor_at_all_scales_and_windows() -> None:
  config, network = tiny_predictions.tiny_config(), tiny_predictions.color_network()
  variables = tuple(tiny_predictions.color_variables())
  config.eval.scales, config.eval.flip = (0.75, 1.0), True
  config.eval.crop_size, config.eval.stride = (33, 33), (20, 20)
  program, _ = program_of(config, network, variables)
  call = jax.jit(jax_export.deserialize(program.serialize()).call)
  for count in (1, 3):
    labels, probabilities = call(photos(count))
    expected = predicted(config, network, variables, photos(count))
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    np.testing.assert_array_equal(labels, expected.argmax(-1))


def test_weights_inside_are_behind_an_optimization_barrier() -> None:
  config, network, variables = tiny()
  program, weights = program_of(config, network, variables)
  barriers = [line for line in program.mlir_module().splitlines() if "stablehlo.optimization_barrier" in line]
  # Results are listed as "%7:154 = ...".
  assert any(f":{len(weights)} = stablehlo.optimization_barrier" in line for line in barriers)


@pytest.mark.slow
def test_weights_inside_change_no_label_in_bfloat16() -> None:
  config = tiny_predictions.tiny_config()
  config.model.dtype, config.model.backbone, config.model.multi_grid = "bfloat16", "resnet50", (1, 2, 4)
  network = models.build(config.model, 11)
  rng = np.random.default_rng(0)
  # Statistics other than 0 and 1, which fold away without rounding.
  variables = jax.tree.map(
    lambda a: a + rng.uniform(0, 0.3, a.shape).astype(a.dtype) * (a.ndim == 1),
    tuple(network.init(jax.random.key(0), (49, 65))),
  )
  program, _ = program_of(config, network, variables)
  labels, probabilities = jax.jit(program.call)(photos(2))
  expected = predicted(config, network, variables, photos(2))
  np.testing.assert_array_equal(probabilities, expected)
  np.testing.assert_array_equal(labels, expected.argmax(-1))


@pytest.mark.long
def test_program_holds_the_convolutions_of_each_platform() -> None:
  def operations(*platforms: str) -> tuple[int, int]:
    text = program_of(*tiny(), platforms=platforms)[0].mlir_module()
    return text.count("stablehlo.convolution"), text.count("stablehlo.dot_general")

  cpu, cuda, both = operations("cpu"), operations("cuda"), operations("cpu", "cuda")
  # Only on a CPU are dilated convolutions products over taps (``rc_jax/ops/conv.py``).
  assert cpu[0] < cuda[0] and cpu[1] > cuda[1]
  assert both[0] >= cuda[0] and both[1] >= cpu[1]
  # A TPU's are one for each row of a kernel, and a product for each 1x1.
  tpu = operations("tpu")
  assert tpu[0] > 2 * cuda[0] and tpu[1] > cuda[1]


def test_weights_beside_are_those_that_the_program_reads() -> None:
  config, network, variables = tiny()
  program, weights = program_of(config, network, variables, inside=False, probabilities=False)
  assert not any("aux_head" in name for name in weights), "the program does not read the auxiliary head"
  assert any("aux_head" in name for name in export.flat_names(variables))
  assert len(program.in_avals) == len(weights) + 1
  # The program computes with the weights that are passed, not with those of its tracing.
  for name in weights:
    if name.endswith("classifier/bias"):
      weights[name] = np.where(np.arange(11) == 5, 1e6, 0).astype(np.float32)
  assert (np.asarray(jax.jit(program.call)(weights, photos(1))) == 5).all()


@pytest.mark.slow
@pytest.mark.parametrize("head", sorted(models.HEADS))
@pytest.mark.parametrize("backbone", [run_tiny.BACKBONE, "hrnetv2_tiny"])
def test_every_head_exports_for_any_number_of_images(backbone: str, head: str) -> None:
  config = tiny_predictions.tiny_config()
  config.model.name, config.model.backbone = head, backbone
  if backbone.startswith("hrnet"):
    config.model.output_stride = 4
  network = models.build(config.model, 11)
  variables = tuple(network.init(jax.random.key(0), (49, 65)))
  program, _ = program_of(config, network, variables, platforms=("cpu", "cuda", "tpu"))
  _, probabilities = jax.jit(program.call)(photos(2))
  np.testing.assert_allclose(probabilities, predicted(config, network, variables, photos(2)), atol=1e-5)


@pytest.mark.parametrize(
  ("options", "wanted"),
  [
    ({"size": ""}, "--size is missing.*1024,2048"),
    ({"size": "512"}, "--size=512.*height and width"),
    ({"size": "0,512"}, "--size=0,512"),
    ({"size": "41,57", "batch": -1}, "--batch=-1"),
    ({"size": "41,57", "platforms": ("gpu",)}, "--platforms=gpu: expected some of cpu, cuda"),
    ({"size": "41,57", "platforms": ("cpu", "cpu")}, "each once"),
    ({"size": "41,57", "weights": "outside"}, "--weights=outside"),
  ],
)
def test_an_invalid_flag_is_refused_in_one_line(options, wanted: str, tmp_path: pathlib.Path) -> None:
  with pytest.raises(ValueError, match=wanted) as error:
    tiny_predictions.export_tiny(tmp_path / "out", **options)
  assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_refused(tmp_path: pathlib.Path) -> None:
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "thesis.tex").touch()
  with pytest.raises(ValueError, match="is not empty; add --overwrite"):
    tiny_predictions.export_tiny(tmp_path / "out", size="41,57")


def test_an_export_that_does_not_fit_leaves_the_earlier_program(tmp_path: pathlib.Path) -> None:
  folder = tiny_predictions.export_tiny(tmp_path / "out", size="41,57", batch=1, platforms=("cpu",))

  def contents() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

  before = contents()
  with (
    disks.file_size_limit(100_000),
    pytest.raises(OSError, match=r"out.*: cannot be written \(File too large\)"),
  ):
    tiny_predictions.export_tiny(folder, size="49,65", batch=1, platforms=("cpu",), overwrite=True)
  assert contents() == before
