"""``model.pretrained`` with a run's folder or one step of it, also where the classes are others."""

import functools
import json
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax import data, models, sharding
from rc_jax.class_table import write_class_table
from rc_jax.config import as_dict
from rc_jax.models import Variables
from rc_jax.train_state import TrainState
from rc_jax.training import initial_state
from rc_jax.weights import pretrained
from rc_jax.weights.checkpoint import Checkpoints
from tests.support import run_tiny

CLASSES = 11


def tiny_config(**fields):
  config = run_tiny.get_config()
  config.model.update({"name": "fcn", "pretrained_part": "all"} | fields)
  return config


@functools.cache
def initial(name: str, stem: str, channels: int, classes: int) -> Variables:
  """Initial values, which tracing a network takes a second to draw."""
  config = tiny_config(name=name, stem=stem, channels=channels)
  return models.build(config.model, classes).init(jax.random.key(0), (49, 65))


def initial_of(config, classes: int) -> Variables:
  return initial(config.model.name, config.model.stem, config.model.channels, classes)


def random_variables(config, seed: int, classes: int = CLASSES) -> Variables:
  """Values other than initial ones in every array."""
  variables = initial_of(config, classes)
  random = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: jnp.float32(random.uniform(0.5, 1.5, leaf.shape)), variables)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A run with the steps 3 and 7, whose weights are random values of these seeds."""
  folder = tmp_path_factory.mktemp("runs") / "a"
  folder.mkdir()
  config = tiny_config()
  (folder / "config.json").write_text(json.dumps(as_dict(config)))
  write_class_table(folder, data.info("synthetic", "").table())
  with Checkpoints(folder, keep=2) as checkpoints:
    for step in (3, 7):
      state = TrainState(jnp.int32(step), *random_variables(config, step), {"momentum": jnp.zeros(1)}, None)
      checkpoints.save(sharding.put_replicated(state, sharding.global_mesh()), {"next_batch": step})
  return folder


def load(path: pathlib.Path, config, classes: int = CLASSES, names=(), other_classes: bool = True):
  variables = initial_of(config, classes)
  result = pretrained.load(str(path), variables, config.model, names, other_classes)
  return variables, *result


def assert_equal(found, expected) -> None:
  jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(("path", "step"), [(".", 7), ("checkpoints", 7), ("checkpoints/3", 3)])
def test_every_array_of_the_newest_or_the_given_step_is_taken(
  run: pathlib.Path, path: str, step: int
) -> None:
  names = data.info("synthetic", "").class_names
  config = tiny_config()
  _, variables, report = load(run / path, config, names=names)
  assert_equal(variables, random_variables(config, step))
  assert report.path == str((run / "checkpoints" / str(step)).resolve())
  assert not (report.missing or report.left_out or report.of_classes or report.different)
  assert "fcn on resnet_least with stem 64-64-128, 11 classes" in report.summary()


def test_the_backbone_alone_goes_into_a_network_with_another_head(run: pathlib.Path) -> None:
  config = tiny_config(name="deeplabv3", pretrained_part="backbone")
  fresh, variables, report = load(run, config, classes=4)
  for ours, theirs in zip(variables, random_variables(tiny_config(), 7), strict=True):
    assert_equal(ours["backbone"], theirs["backbone"])
  assert variables.params["head"] is fresh.params["head"]
  assert not report.of_classes and len(report.left_out) == sum("head." in key for key in report.left_out) > 0


CLASSIFIERS = tuple(
  f"{head}.classifier.{leaf}" for head in ("aux_head", "head") for leaf in ("bias", "weight")
)


@pytest.mark.parametrize(
  ("classes", "names", "words"),
  [
    (4, (), "11 classes, here 4"),
    # As many classes of other names: no shape differs.
    (CLASSES, tuple(f"class {i}" for i in range(CLASSES)), "class 0: .*, here class 0, and 10 more"),
  ],
)
def test_other_classes_leave_out_what_depends_on_them(run: pathlib.Path, classes, names, words) -> None:
  config = tiny_config()
  fresh, variables, report = load(run, config, classes, names)
  theirs = random_variables(config, 7)
  assert report.of_classes == CLASSIFIERS
  for head in ("head", "aux_head"):
    assert variables.params[head]["classifier"] is fresh.params[head]["classifier"]
    assert_equal(variables.params[head]["conv0"], theirs.params[head]["conv0"])
  assert_equal(variables.batch_stats, theirs.batch_stats)
  said = rf"not taken, because of other classes \({words}\): {', '.join(CLASSIFIERS)}"
  (_,) = re.findall(said, report.summary())
  with pytest.raises(ValueError, match="classes") as error:
    load(run, config, classes, names, other_classes=False)
  assert "\n" not in str(error.value)


@pytest.mark.long
@pytest.mark.parametrize(
  ("name", "others"),
  [
    ("danet", {"head.position.classifier", "head.channel.classifier"}),
    ("encnet", {"head.presence"}),
    ("ocrnet", {"head.coarse.classifier"}),
  ],
)
def test_every_array_of_the_classes_is_found_in_each_head(tmp_path: pathlib.Path, name, others) -> None:
  config = tiny_config(name=name)
  shapes, other = (pretrained.torch_shapes(initial_of(config, classes)) for classes in (16, 5))
  assert config.model.channels == 16
  for theirs in (16, 5):
    found = pretrained._arrays_of_classes(shapes if theirs == 16 else other, shapes, config.model, theirs, 16)
    layers = {array.rpartition(".")[0] for array in found}
    assert layers - {"aux_head.classifier"} == others | {"head.classifier"}


def test_fields_that_no_shape_shows_are_compared_with_those_of_the_run(run: pathlib.Path) -> None:
  _, _, report = load(run, tiny_config(multi_grid=(2,), ceil_pool=False))
  assert report.different == ("model.ceil_pool=False", "model.multi_grid=(2)")
  assert "such weights expect ceil_pool=True multi_grid=(1); WARNING: the config has" in report.summary()


def test_the_run_of_another_network_is_refused_in_one_line(run: pathlib.Path) -> None:
  for fields, words in (
    ({"stem": "7x7"}, "7 holds fcn on resnet_least with stem 64-64-128.*set model.stem=64-64-128"),
    ({"channels": 24}, "set model.channels=16"),
    ({"name": "pspnet"}, "but the network is pspnet"),
  ):
    with pytest.raises(ValueError, match=words) as error:
      load(run, tiny_config(**fields))
    assert "\n" not in str(error.value) and str(error.value).startswith("model.pretrained: ")


def test_a_folder_without_a_checkpoint_and_a_damaged_checkpoint_are_refused(
  run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  (tmp_path / "model.pth").touch()
  with pytest.raises(FileNotFoundError, match=r"is a folder without a checkpoint: give a run's folder"):
    load(tmp_path, tiny_config())
  copy = tmp_path / "b"
  shutil.copytree(run, copy)
  damaged = max(
    (copy / "checkpoints/7/model").rglob("*"), key=lambda path: path.is_file() * path.stat().st_size
  )
  damaged.write_bytes(damaged.read_bytes()[:-1])
  with pytest.raises(ValueError, match=r"7: is damaged .*--config\.model\.pretrained=.*/checkpoints/3"):
    load(copy, tiny_config())


@pytest.mark.long
def test_training_starts_from_the_run_and_its_banks_are_empty(run: pathlib.Path, capsys) -> None:
  config = tiny_config(pretrained=str(run))
  network = models.build(config.model, CLASSES)
  state, _ = initial_state.initial_state(config, network, 20, sharding.global_mesh(), fresh=True)
  assert_equal((state.params, state.batch_stats), tuple(random_variables(config, 7)))
  assert int(state.step) == 0 and not np.asarray(state.bank.count).any()
  assert "checkpoints/7: fcn on resnet_least" in capsys.readouterr().out
