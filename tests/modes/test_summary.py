"""The table of ``--mode=summary``: its figures against counts by hand, its totals against its rows."""

import itertools
import math
import os
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax import main, models
from rc_jax.config import Config, defaults
from rc_jax.costs.stage_cost import NetworkCost, StageCost, measure
from rc_jax.models.layers import BatchNorm, Conv
from rc_jax.modes import summary
from tests.support import run_tiny
from tests.support.paths import ROOT

CLASSES = 5


class Backbone(nn.Module):
  """Convolutions, each followed by a ReLU: (name, features, kernel size, stride, dilation, normalised)."""

  layers: tuple[tuple[str, int, int, int, int, bool], ...]
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, train):
    for name, features, size, stride, dilation, normalised in self.layers:
      x = Conv(features, size, stride, dilation, dtype=self.dtype, name=name)(x)
      x = nn.relu(BatchNorm(name=f"{name}_norm")(x, train) if normalised else x)
    return models.Stages(x, None, x)


class Head(nn.Module):
  @nn.compact
  def __call__(self, stages, train):
    return models.Outputs(Conv(CLASSES, 1, name="classifier")(stages.last), stages.last)


def network(
  monkeypatch: pytest.MonkeyPatch, backbone: nn.Module, head: nn.Module, channels: int, **fields: object
) -> models.Network:
  monkeypatch.setitem(models.BACKBONES, "toy", lambda model: backbone)
  monkeypatch.setitem(models.HEADS, "toy", lambda model, classes: head)
  model = defaults().model
  model.update({"backbone": "toy", "name": "toy", "channels": channels, "dtype": "float32", **fields})
  return models.build(model, CLASSES)


def by_name(cost: NetworkCost) -> dict[str, StageCost]:
  return {stage.name: stage for stage in cost.stages}


def multiply_adds(
  size: tuple[int, int], inputs: int, outputs: int, kernel: int, stride: int, dilation: int
) -> tuple[int, int]:
  """Counts the multiply-adds of a convolution in a loop: all of them, and those that read pixels."""
  every, on_pixels = 0, 0
  for y, x in itertools.product(*(range(0, n, stride) for n in size)):
    for dy, dx in itertools.product(range(kernel), repeat=2):
      row, column = y + (dy - kernel // 2) * dilation, x + (dx - kernel // 2) * dilation
      every += inputs * outputs
      on_pixels += inputs * outputs * (0 <= row < size[0] and 0 <= column < size[1])
  return every, on_pixels


def test_operations_equal_counts_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
  layers = (
    ("first", 6, 3, 1, 1, False),
    ("strided", 7, 3, 2, 1, False),  # one convolution on a CPU too
    ("dilated", 8, 3, 1, 9, False),  # on 12 x 15, mostly padding: one product for each tap on a CPU
    ("flat", 4, 1, 1, 1, False),
  )
  stages = by_name(measure(network(monkeypatch, Backbone(layers, jnp.float32), Head(), 4), (23, 29)))
  grid, channels = (23, 29), 3
  for name, features, size, stride, dilation, _ in layers:
    stage = stages[f"backbone/{name}"]
    every, on_pixels = multiply_adds(grid, channels, features, size, stride, dilation)
    grid, channels = tuple(-(-n // stride) for n in grid), features
    assert stage.dense_flops == 2 * every
    assert stage.shapes == ((*grid, features),)
    outputs = math.prod(grid) * features  # one operation each in the ReLU
    if name == "first":
      # Two more for each normalised pixel, and some that only convert the type.
      assert 2 * on_pixels + outputs < stage.flops < 2 * on_pixels + outputs + 6 * 23 * 29 * 3
    elif name == "dilated":
      # The taps' products are also added up.
      assert on_pixels < 0.5 * every
      assert 2 * on_pixels + outputs <= stage.flops <= 2 * on_pixels + 10 * outputs
    else:
      assert stage.flops == 2 * on_pixels + outputs
    assert stage.compiled
  assert stages["head/classifier"].flops == 2 * math.prod(grid) * 4 * CLASSES


def test_kept_bytes_equal_counts_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
  layers = (("a", 6, 3, 1, 1, False), ("b", 8, 3, 1, 1, True))
  pixels = 17 * 19
  for dtype, size in ((jnp.float32, 4), (jnp.bfloat16, 2)):
    toy = network(monkeypatch, Backbone(layers, dtype), Head(), 8, dtype=jnp.dtype(dtype).name)
    stages = by_name(measure(toy, (17, 19)))
    # The image for the first kernel's gradient; the mask of the ReLU; the input of the second convolution.
    assert stages["backbone/a"].kept_bytes == pixels * (3 * size + 6 + 6 * size)
    # Input, mean, deviation and offset of the normalisation; the mask of the ReLU; the classifier's input, which is
    # float32.
    b = pixels * (8 * size + 8) + 3 * 8 * 4
    if dtype == jnp.float32:
      assert stages["backbone/b+b_norm"].kept_bytes == b + pixels * 8 * 4
      assert stages["head/classifier"].kept_bytes == 0
    else:
      assert stages["backbone/b+b_norm"].kept_bytes == b
      assert stages["head/classifier"].kept_bytes == pixels * 8 * 4


def test_arrays_that_another_platform_would_keep_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
  class Chooses(nn.Module):
    @nn.compact
    def __call__(self, stages, train):
      x = Conv(4, 1, name="fuse")(stages.last @ jnp.ones((3, 4)))
      here, elsewhere = (lambda x: 2 * x), (lambda x: jnp.sin(jnp.cos(jnp.exp(x))))
      x = jax.lax.platform_dependent(x, cpu=here, default=elsewhere)
      return models.Outputs(Conv(CLASSES, 1, name="classifier")(x), x)

  toy = network(monkeypatch, Backbone((("a", 3, 1, 1, 1, False),), jnp.float32), Chooses(), 4)
  stages = by_name(measure(toy, (9, 9)))
  assert stages["backbone/a"].kept_bytes == 81 * (3 * 4 + 3)  # the image, and the mask of the ReLU
  assert stages["head/fuse"].kept_bytes == 81 * (4 + 4) * 4  # its input, and the input of the classifier
  # A product before the first submodule of a module belongs to the module.
  assert stages["backbone/a"].dense_flops == 2 * 81 * 3 * 3
  assert stages["head/fuse"].dense_flops == 2 * 81 * (3 * 4 + 4 * 4)


def test_parameters_and_outputs_of_the_tiny_recipe() -> None:
  config = run_tiny.get_config()
  config.model.embedding_channels = 6
  toy = models.build(config.model, 11)
  cost = measure(toy, (49, 65), count_flops=False)
  assert cost.grid == (7, 9)
  names = [stage.name for stage in cost.stages]
  assert names == [
    *("backbone/conv1+bn1", "backbone/layer1", "backbone/layer2", "backbone/layer3", "backbone/layer4"),
    *("head/aspp", "head/fuse", "head/classifier", "aux_head/conv0", "aux_head/classifier", "projection"),
  ]
  params = toy.init(jax.random.key(0)).params
  for stage in cost.stages:
    first, *second = stage.name.split("/")
    trees = [params[first][part] for part in second[0].split("+")] if second else params[first]
    assert stage.parameters == sum(np.size(leaf) for leaf in jax.tree.leaves(trees)), stage.name
    assert stage.predicting == (0 if first in ("aux_head", "projection") else stage.parameters)
  stages = by_name(cost)
  assert stages["backbone/conv1+bn1"].shapes == ((13, 17, 32),)  # after the pooling
  assert stages["backbone/layer3"].shapes == ((7, 9, 64),)  # once, though two heads read it
  assert stages["head/aspp"].shapes == ((7, 9, 5 * 16),)
  assert stages["head/fuse"].shapes == ((7, 9, 16),)  # features, and the same with dropout
  assert stages["projection"].shapes == ((7, 9, 6),)


def test_any_network_is_divided_at_its_second_level(monkeypatch: pytest.MonkeyPatch) -> None:
  layers = (("a", 8, 3, 2, 1, True), ("b", 8, 3, 2, 1, True))

  class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
      return self.attend(Conv(4, 1, name="keys")(x), x)

    @nn.compact
    def attend(self, keys, x):
      weights = nn.softmax(jnp.einsum("bhwc,bHWc->bhwHW", keys, keys).reshape(*x.shape[:3], -1))
      return x + jnp.einsum("bhwk,bkc->bhwc", weights, x.reshape(1, -1, x.shape[-1]))

  class OwnHead(nn.Module):
    @nn.compact
    def __call__(self, stages, train):
      scale = self.param("scale", nn.initializers.ones, (8,))
      x = Attention(name="attention")(stages.last) * scale
      x = nn.Dropout(0.5)(x, deterministic=not train)
      # Computed in prediction too, but not read there.
      extra = {"aux": models.ExtraOutput(self.spare(x), term="aux")}
      return models.Outputs(Conv(CLASSES, 1, name="classifier")(x), x, extra)

    def spare(self, x):
      return Conv(CLASSES, 1, name="spare")(x)

  class Wrapped(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      return nn.remat(Backbone, static_argnums=(2,))(layers, jnp.float32, name="inner")(x, train)

  cost = measure(network(monkeypatch, Wrapped(), OwnHead(), 8), (25, 33))
  stages = by_name(cost)
  # Remat turns a module into one operation.
  assert list(stages) == ["backbone", "head/attention", "head", "head/spare", "head/classifier"]
  assert stages["backbone"].parameters == 9 * 3 * 8 + 16 + 9 * 8 * 8 + 16
  assert stages["head"].parameters == 8 and stages["head"].dense_flops == 0
  assert stages["head/spare"].predicting == 0 and stages["head/spare"].parameters == 8 * CLASSES
  places = 7 * 9
  assert stages["head/attention"].dense_flops == 2 * (places * 8 * 4 + places * places * (4 + 8))
  # It keeps only its input, and the input of the head.
  assert stages["backbone"].kept_bytes == 25 * 33 * 3 * 4 + places * 8 * 4


def test_a_loop_counts_each_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
  class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, stages, train):
      kernel = self.param("kernel", nn.initializers.ones, (3, 3))
      x, _ = jax.lax.scan(lambda x, _: (x @ kernel, None), stages.last, length=7)
      return models.Outputs(Conv(CLASSES, 1, name="classifier")(x), x)

  stages = by_name(measure(network(monkeypatch, Backbone((), jnp.float32), Recurrent(), 3), (9, 9)))
  assert stages["head"].dense_flops == 7 * 2 * 81 * 3 * 3


def test_operations_of_a_library_are_counted_before_optimisation(monkeypatch: pytest.MonkeyPatch) -> None:
  class Factors(nn.Module):
    @nn.compact
    def __call__(self, stages, train):
      x = Conv(4, 3, name="fuse")(stages.last)
      orthogonal, _ = jnp.linalg.qr(x.reshape(1, -1, 4))  # LAPACK's
      return models.Outputs(Conv(CLASSES, 1, name="classifier")(x), x + orthogonal.reshape(x.shape))

  stages = by_name(measure(network(monkeypatch, Backbone((), jnp.float32), Factors(), 4), (17, 17)))
  assert not stages["head/fuse"].compiled and stages["head/classifier"].compiled
  assert stages["head/fuse"].flops > 2 * multiply_adds((17, 17), 3, 4, 3, 1, 1)[1]
  lines = summary.table(tuple(stages.values()))
  assert [" ~" in line for line in lines if "/" in line or "total" in line] == [True, False, True]


def parameters(model: Config, classes: int) -> tuple[int, int]:
  stages = measure(models.build(model, classes), (33, 33), count_flops=False).stages
  return sum(stage.parameters for stage in stages), sum(stage.predicting for stage in stages)


@pytest.mark.long
def test_parameters_equal_those_of_torchvision() -> None:
  originals = pytest.importorskip("tests.support.originals")
  originals.torchvision()
  segmentation = pytest.importorskip("torchvision.models.segmentation")
  model = defaults().model
  model.update({"stem": "7x7", "aspp_project": True, "multi_grid": (1, 1, 1)})
  original = segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=True)
  count = sum(weight.numel() for weight in original.parameters())
  extra = sum(weight.numel() for weight in original.aux_classifier.parameters())
  assert parameters(model, 21) == (count, count - extra) and count == 42_004_074


@pytest.mark.long
def test_parameters_equal_those_of_the_authors_network() -> None:
  total, predicting = parameters(defaults().model, 19)
  assert round(total / 1e6, 1) == 44.2
  assert total - predicting == 9 * 1024 * 256 + 2 * 256 + 256 * 19 + 19


def figures(lines: list[str]) -> dict[str, list[float]]:
  """Returns the numbers of each line of a table: parameters, GFLOP, GFLOP dense, kept MB."""
  found = {}
  for line in filter(None, lines):
    cells = [cell for cell in line.split("  ") if cell.strip()]
    numbers = [
      float(cell.strip(" ~").replace(",", "")) for cell in cells[1:] if cell.strip(" ~,.0123456789") == ""
    ]
    found[cells[0].strip()] = numbers
  return found


def test_totals_are_the_sums_of_the_rows() -> None:
  rng = np.random.default_rng(0)
  stages = []
  for i in range(7):
    count = int(rng.integers(1, 10**7))
    flops, dense, kept = (int(rng.integers(10**9, 10**11)) for _ in range(3))
    predicting = (0, count, count // 3)[i % 3]
    stages.append(
      StageCost(f"head/{i}", ((97, 101, i + 1),), count, predicting, flops, True, dense, kept // 100)
    )
  lines = summary.table(stages)
  assert max(map(len, lines[:-3])) == len(lines[1]) and set(lines[1]) == {"-"}
  found = figures(lines)
  rows = np.array([found[f"head/{i}"] for i in range(7)])
  assert found["total"] == pytest.approx(rows.sum(axis=0), abs=0.5)
  assert found["total"][0] == sum(stage.parameters for stage in stages)
  extra, prediction = found["only in training"], found["in prediction"]
  assert extra[0] + prediction[0] == found["total"][0]
  assert prediction[0] == sum(stage.predicting for stage in stages)
  assert extra[1:3] == pytest.approx(rows[[0, 3, 6], 1:3].sum(axis=0), abs=0.1)
  assert (
    "97x101x3" in lines[4] and f"{stages[2].parameters - stages[2].predicting:,} only in training" in lines[4]
  )


def summary_command(*flags: str) -> list[str]:
  return [sys.executable, "-m", "rc_jax.main", f"--config={run_tiny.__file__}", *flags]


@pytest.mark.long
@pytest.mark.run
def test_command_prints_the_table(tmp_path: pathlib.Path) -> None:
  flags = ["--mode=summary", "--config.dataset.name=cityscapes"]
  finished = subprocess.run(
    summary_command(*flags, "--config.contrast.bank_dtype=bfloat16"),
    env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=200,
  )
  printed = finished.stdout
  assert finished.returncode == 0 and not finished.stderr, finished.stderr
  assert list(tmp_path.iterdir()) == []  # it writes nothing
  for part in (
    f"deeplabv3 on {run_tiny.BACKBONE}: 19 classes of cityscapes, activations in float32",
    "one image of 49 x 65 in training: logits on 7 x 9 (output stride 8), 16 channels",
    "memory banks: 20 keys x 19 classes x 16 of bfloat16, 0.0 MB",
    "as compiled for cpu",
  ):
    assert part in printed
  found = figures(printed.splitlines())
  params = models.build(run_tiny.get_config().model, 19).init(jax.random.key(0)).params
  assert found["total"][0] == sum(np.size(leaf) for leaf in jax.tree.leaves(params))
  assert found["total"][0] == sum(numbers[0] for name, numbers in found.items() if "/" in name and numbers)


@pytest.mark.parametrize(
  ("fields", "line"),
  [
    ({"contrast.bank_size": 2975}, "memory banks: 2,975 keys x 19 classes x 256 of float32, 57.9 MB"),
    ({}, "memory banks: for each training image 19 classes x 256 of float32, 19.5 MB for a thousand images"),
    ({"contrast.scope": "image"}, "memory banks: none"),
    ({"loss.contrast_weight": 0.0}, "memory banks: none"),
  ],
)
def test_size_of_the_banks_is_printed(fields: dict[str, object], line: str) -> None:
  config = defaults()
  config.update_from_flattened_dict(fields)
  assert summary.banks(config, models.build(config.model, 19)) == line


def test_an_invalid_field_is_refused_in_one_line(capsys: pytest.CaptureFixture) -> None:
  assert main.main(summary_command("--mode=summary", "--config.model.backbone=resnet5O")[2:]) == 2
  printed = capsys.readouterr()
  assert not printed.out and printed.err.startswith("error: ") and printed.err.count("\n") == 1
  assert "resnet5O" in printed.err
