"""Region centers of full images against loops over pixels; their files, numbers, pictures and pages."""

import html
import importlib.util
import json
import pathlib
import re

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as sklearn_metrics

from rc_jax import data, files, sharding
from rc_jax.config import CENTERS
from rc_jax.drawing import embedding
from rc_jax.modes import centers
from tests.support import run_tiny
from tests.support.saved_runs import STRIDE, mixing_network, save_run, use_small_runs, weights_of

IMAGES = 12
COUNTS_CORES = pytest.mark.run  # scikit-learn starts lscpu


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
  """The network compiles fast, and the split has few images."""
  use_small_runs(monkeypatch, IMAGES)


def expected_centers(
  weights: dict[str, np.ndarray], image: np.ndarray, label: np.ndarray, method: str, relu: bool = False
) -> dict[int, np.ndarray]:
  """Equations 2 and 3 by a loop over the cells of the grid, in float64; class -> center.

  With ``relu``, the classifier reads the features behind a ReLU.
  """
  features_of, classifier = (weights[name].astype(np.float64) for name in ("features", "classifier"))
  sums: dict[int, np.ndarray] = {}
  # The image ends on a cell of the grid, or is padded with pixels that have no label.
  for y in range(0, image.shape[0], STRIDE):
    for x in range(0, image.shape[1], STRIDE):
      truth = int(label[y, x])
      if truth == 255:
        continue
      feature = (image[y, x].astype(np.float64) - 100) @ features_of
      feature = np.maximum(feature, 0) if relu else feature
      logits = feature @ classifier
      probabilities = np.exp(logits - logits.max())
      probabilities /= probabilities.sum()
      predicted = int(probabilities.argmax())
      of_class = predicted if method == "average" else truth
      weight = 1 - probabilities.max() if method == "dynamic" and predicted == truth else 1.0
      sums[of_class] = sums.get(of_class, 0) + weight * feature
  return {label: total / np.linalg.norm(total) for label, total in sums.items()}


@pytest.mark.parametrize("method", CENTERS)
@pytest.mark.parametrize("size", [(13, 17), (14, 19)])
def test_centers_of_full_images_equal_a_loop_over_pixels(method: str, size: tuple[int, int]) -> None:
  config = run_tiny.get_config()
  classes = 5
  network = mixing_network(config.model, classes)
  variables = network.init(jax.random.key(3), (49, 65))
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (2, *size, 3), np.uint8)
  labels = rng.integers(0, 4, (2, *size)).astype(np.uint8)  # class 4 has no pixel
  labels[rng.random(labels.shape) < 0.2] = 255
  mesh = sharding.mesh_of(jax.devices()[:1])
  compute = centers.make_extractor(network, True, method, mesh)
  vectors, present = map(np.asarray, compute(*variables, images, labels))
  weights = {name: np.asarray(value) for name, value in variables.params.items()}
  for row in range(2):
    expected = expected_centers(weights, images[row], labels[row], method)
    assert set(np.flatnonzero(present[row])) == set(expected)
    for label, vector in expected.items():
      np.testing.assert_allclose(vectors[row, label], vector, atol=2e-6)


@pytest.mark.long
@COUNTS_CORES
def test_two_runs_with_different_heads(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
  config = save_run(tmp_path / "baseline", seed=1, head="deeplabv3plus", scope="none")
  save_run(tmp_path / "contrast", seed=2, centers="ep_hp")
  paths = [str(tmp_path / name) for name in ("baseline", "contrast")]
  page = centers.run(config, tmp_path / "figure", runs=paths)
  assert page == tmp_path / "figure" / "centers" / "index.html"

  record = json.loads((page.parent / "val.json").read_text())
  source = data.load("synthetic", "", "val")
  printed = capsys.readouterr().out
  methods = ("dynamic", "ep_hp")  # of a baseline, the default
  for name, path, method, seed, numbers in zip(
    ("deeplabv3plus", "deeplabv3"), paths, methods, (1, 2), record["runs"], strict=True
  ):
    config.model.name = name
    weights = weights_of(config, seed, 7, source.info.num_classes)
    with np.load(pathlib.Path(path) / "centers" / "val.npz") as kept:
      vectors, images, labels = kept["vectors"], kept["images"], kept["labels"]
      assert kept["names"].tolist() == [source[row]["name"] for row in range(IMAGES)]
      assert kept["class_names"].tolist() == list(source.info.class_names)
      assert kept["method"] == method == numbers["method"] and kept["step"] == 7 == numbers["step"]
      assert kept["weights"] == numbers["weights"]
    expected = [
      (row, label, vector)
      for row in range(IMAGES)
      for label, vector in sorted(
        expected_centers(weights, source[row]["image"], source[row]["label"], method).items()
      )
    ]
    assert list(zip(images.tolist(), labels.tolist(), strict=True)) == [pair[:2] for pair in expected]
    np.testing.assert_allclose(vectors, np.stack([vector for *_, vector in expected]), atol=1e-5)
    silhouette = sklearn_metrics.silhouette_score(vectors, labels, metric="cosine")
    assert numbers["all"]["silhouette"] == pytest.approx(silhouette, abs=1e-5)
    by_class = [
      numbers["classes"][source.info.class_names[label]]["within"] for label in set(labels.tolist())
    ]
    known = [within for within in by_class if within is not None]
    assert numbers["mean_of_classes"]["within"] == pytest.approx(np.mean(known))
    assert numbers["all"]["centers"] == len(labels) and f"{silhouette:.3f}" in printed
    assert path in printed
  assert record["runs"][0]["loss"] == "baseline" and "scope bank" in record["runs"][1]["loss"]

  text = page.read_text()
  assert text.count('<svg class="points"') == 2 and not re.search(r"(src|href)=\"(?!data:|#)", text)
  assert "The runs differ in the pixel weights of the centers: dynamic, ep_hp." in html.unescape(text)
  # One dot for each center, below it one for its edge.
  clouds = re.findall(r'(?s)<svg class="points".*?</svg>', text)
  dots = [sum(path.count("h0") for path in re.findall(r' d="(.*?)"', cloud)) for cloud in clouds]
  assert dots == [2 * numbers["all"]["centers"] for numbers in record["runs"]]
  with Image.open(page.parent / "val.png") as picture:
    assert picture.width > 900


def test_centers_of_a_loss_before_the_relu_are_of_the_map_behind_it(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(embedding, "project", lambda vectors: vectors[:, :2])
  config = save_run(tmp_path / "run")
  config.model.contrast_features = "linear"
  centers.run(config, tmp_path / "run")
  source = data.load("synthetic", "", "val")
  weights = weights_of(config, 0, 7, source.info.num_classes)
  expected = expected_centers(weights, source[0]["image"], source[0]["label"], "dynamic", relu=True)
  with np.load(tmp_path / "run" / "centers" / "val.npz") as kept:
    vectors = dict(zip(kept["labels"][kept["images"] == 0].tolist(), kept["vectors"], strict=False))
  assert set(vectors) == set(expected)
  for label, vector in expected.items():
    np.testing.assert_allclose(vectors[label], vector, atol=1e-5)


def test_a_run_is_described_by_its_own_config(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """The recipe has the contrastive loss, which the command of the run had switched off, and other centers."""
  monkeypatch.setattr(embedding, "project", lambda vectors: vectors[:, :2])
  recipe = save_run(tmp_path / "a", scope="none")
  recipe.contrast.scope = "bank"
  centers.run(recipe, tmp_path / "a")
  (numbers,) = json.loads((tmp_path / "a" / "centers" / "val.json").read_text())["runs"]
  assert numbers["loss"] == "baseline" and recipe.contrast.scope == "bank"
  save_run(tmp_path / "b", centers="average")
  centers.run(recipe, tmp_path / "b")
  (numbers,) = json.loads((tmp_path / "b" / "centers" / "val.json").read_text())["runs"]
  assert numbers["method"] == "average"


@pytest.mark.parametrize(
  ("folder", "message"),
  [
    ("figure", r"figure/centers: cannot be .*; move the file of that name away"),
    ("run", r"run/centers: cannot be .*; each run keeps its centers: copy the run"),
  ],
)
def test_a_folder_that_cannot_be_written_is_noticed_at_once(
  folder: str, message: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  config = save_run(tmp_path / "run")
  (tmp_path / folder).mkdir(exist_ok=True)
  (tmp_path / folder / "centers").write_text("takes the place of the folder")
  monkeypatch.setattr("rc_jax.models.build", None)  # nothing is predicted
  with pytest.raises(files.WriteError, match=message):
    centers.run(config, tmp_path / "figure", runs=[str(tmp_path / "run")])


@pytest.mark.long
@COUNTS_CORES
def test_one_run_and_a_chosen_method(tmp_path: pathlib.Path) -> None:
  config = save_run(tmp_path / "run", steps=(3, 7))
  page = centers.run(config, tmp_path / "run", checkpoint=pathlib.Path("3"), centers="average")
  (numbers,) = json.loads((page.parent / "val.json").read_text())["runs"]
  assert numbers["step"] == 3 and numbers["method"] == "average"
  first = page.read_bytes(), (page.parent / "val.png").read_bytes()
  centers.run(config, tmp_path / "run", checkpoint=pathlib.Path("3"), centers="average")
  assert first == (page.read_bytes(), (page.parent / "val.png").read_bytes())
  centers.run(config, tmp_path / "other", runs=[str(tmp_path / "run" / "checkpoints" / "3")])
  (numbers,) = json.loads((tmp_path / "other" / "centers" / "val.json").read_text())["runs"]
  assert numbers["step"] == 3 and numbers["method"] == "dynamic"


def test_what_cannot_be_drawn_is_refused(tmp_path: pathlib.Path) -> None:
  config = save_run(tmp_path / "a")
  here = str(tmp_path / "a")
  with pytest.raises(ValueError, match="is listed twice"):
    centers.run(config, tmp_path, runs=[here, here])
  with pytest.raises(ValueError, match=r"--checkpoint=7: is not read with --runs"):
    centers.run(config, tmp_path, checkpoint=pathlib.Path("7"), runs=[here])
  with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
    centers.run(config, tmp_path, runs=[str(tmp_path / "nowhere")])
  config_path = tmp_path / "a" / "config.json"
  recorded = json.loads(config_path.read_text())
  for change, message in (
    ({"dataset": {"name": "camvid"}}, "was trained on camvid, and --config names synthetic"),
    ({"train": {"steps": "many"}}, r"config.json: train.steps is 'many'; expected a value like 30000"),
    ({"train": {"steps": 0}}, r"config.json: config.train.steps: is 0; expected 1 or more"),
  ):
    config_path.write_text(json.dumps(recorded | change))
    with pytest.raises(ValueError, match=message) as refusal:
      centers.run(config, tmp_path, runs=[here])
    assert "\n" not in str(refusal.value)
  config_path.unlink()
  with pytest.raises(FileNotFoundError, match=r"config.json: missing; expected the folder of a run"):
    centers.run(config, tmp_path, runs=[here])


def test_without_scikit_learn_the_command_names_the_extra(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  find_spec = importlib.util.find_spec
  monkeypatch.setattr(
    "importlib.util.find_spec", lambda name, *rest: None if name == "sklearn" else find_spec(name, *rest)
  )
  with pytest.raises(ValueError, match=r"^t-SNE needs scikit-learn.*pip install 'rc_jax\[figures\]'$"):
    centers.run(run_tiny.get_config(), tmp_path)


@COUNTS_CORES
def test_tsne_keeps_neighbours_and_is_deterministic() -> None:
  rng = np.random.default_rng(0)
  labels = np.repeat(np.arange(4), 15)
  vectors = np.eye(8)[labels] + 0.1 * rng.normal(size=(60, 8))
  vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
  positions = embedding.project(vectors)
  np.testing.assert_array_equal(positions, embedding.project(vectors))
  distances = np.linalg.norm(positions[:, None] - positions, axis=-1) + np.where(np.eye(60), np.inf, 0)
  np.testing.assert_array_equal(labels[distances.argmin(axis=1)], labels)
  np.testing.assert_array_equal(embedding.project(vectors[[0] * 9]), np.zeros((9, 2)))
  with pytest.raises(ValueError, match="3 centers; expected 4 or more"):
    embedding.project(vectors[:3])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_page_of_any_number_of_runs_with_any_names(count: int) -> None:
  info = data.info("synthetic", "")
  rng = np.random.default_rng(0)
  hostile = "<img src=//x.example/y onerror='throw 1'>\"&"
  runs = [
    embedding.EmbeddedRun(
      hostile, "described", rng.normal(size=(9, 2)), np.array([0, 0, 0, 2, 2, 2, 2, 4, 4])
    )
    for _ in range(count)
  ]
  none: tuple[None, ...] = (None,) * count
  values = tuple(rng.random(count).tolist())
  measure = embedding.Measure("silhouette", "meaning", (0, 1), values, none, (values, *[none] * 10))
  page = embedding.centers_page(runs, [measure], info, "val", ["a note"], "software")
  assert hostile not in page and "a note" in page and "nan" not in page.lower()
  assert page.count('<svg class="points"') == count
  # Large classes first, so that the dots of small ones lie above them.
  assert re.findall(r'<g data-class="(\d+)"', page) == ["2", "0", "4"] * count
