"""The examples in ``docs/examples``: they run as users run them, and compute the paper's loss."""

import ast
import pathlib
import re
import runpy
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

from tests.contrast.test_region_centers import oracle as centers_oracle
from tests.support import notebooks
from tests.support.contrast_oracle import contrast_oracle
from tests.support.paths import ROOT

FOLDER = ROOT / "docs" / "examples"
LOOPS = {"plain_jax": "jax", "flax_nnx_loop": "flax", "equinox_loop": "equinox"}  # script -> what it needs
STEPS = 12  # of comparisons

Train = Callable[[Any, int], Iterator[tuple[float, float, float]]]


def names_of(script: str, run_name: str = "imported") -> dict[str, Any]:
  """Runs a script; returns its names."""
  pytest.importorskip(LOOPS[script])
  return runpy.run_path(str(FOLDER / f"{script}.py"), run_name=run_name)


@pytest.mark.parametrize("script", LOOPS)
def test_a_loop_trains_and_its_similarities_part(script: str, capsys: pytest.CaptureFixture[str]) -> None:
  names_of(script, "__main__")
  lines = capsys.readouterr().out.splitlines()
  values = [[float(number) for number in re.findall(r"[-+]?\d+\.\d+", line)] for line in lines]
  (loss, positives, negatives), (last_loss, last_positives, last_negatives) = values[0], values[-1]
  assert last_loss < 0.5 * loss
  assert last_positives > positives + 0.05 and last_negatives < negatives - 0.5


@pytest.mark.parametrize("script", LOOPS)
def test_a_loop_imports_the_contrast_alone_and_is_short(script: str) -> None:
  text = (FOLDER / f"{script}.py").read_text()
  assert len(text.splitlines()) <= 80
  imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
  ours = [ast.unparse(node) for node in imports if "rc_jax" in ast.unparse(node)]
  assert ours == ["from rc_jax import contrast"]


def test_the_loops_agree_from_equal_initial_values() -> None:
  plain = names_of("plain_jax")
  params = plain["initial_params"](jax.random.key(3))
  expected = np.array(list(plain["train"](params, STEPS)))

  nnx = names_of("flax_nnx_loop")
  network = nnx["Network"](nnx["nnx"].Rngs(0))
  for name, kernel in params.items():
    getattr(network, name).kernel[...] = kernel
  np.testing.assert_allclose(list(nnx["train"](network, STEPS)), expected, rtol=1e-4, atol=1e-5)

  equinox = names_of("equinox_loop")
  module, network = equinox["eqx"], equinox["Network"](jax.random.key(0))
  for name, kernel in params.items():
    weight = kernel.transpose(3, 2, 0, 1)  # [h,w,in,out] -> [out,in,h,w]
    network = module.tree_at(lambda tree, name=name: getattr(tree, name).weight, network, weight)
  np.testing.assert_allclose(list(equinox["train"](network, STEPS)), expected, rtol=1e-4, atol=1e-5)


def convolved(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
  """Convolves ``[B,H,W,in]`` with ``[k,k,in,out]`` and zeros around the images."""
  reach = kernel.shape[0] // 2
  padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
  height, width = x.shape[1:3]
  return sum(
    padded[:, i : i + height, j : j + width] @ kernel[i, j]
    for i in range(kernel.shape[0])
    for j in range(kernel.shape[1])
  )


def test_the_loss_of_the_first_steps_is_that_of_numpy_in_float64() -> None:
  plain = names_of("plain_jax")
  params = plain["initial_params"](jax.random.key(5))
  bank = plain["contrast"].MemoryBank.create(plain["CLASSES"], 64, plain["CHANNELS"])
  keys: list[list[np.ndarray]] = [[] for _ in range(plain["CLASSES"])]
  for step in range(3):
    images, labels = (np.asarray(array) for array in plain["batch_of"](step))
    kernels = {name: np.asarray(kernel, np.float64) for name, kernel in params.items()}
    features = convolved(np.maximum(convolved(images, kernels["hidden"]), 0), kernels["features"])
    logits = convolved(features, kernels["classifier"])
    true_logits = np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    cross_entropy = (np.log(np.exp(logits).sum(-1)) - true_logits).mean()
    vectors, present = centers_oracle(features, logits, labels, "dynamic")
    of_class = [list(each) for each in keys]
    expected, _, stats = contrast_oracle(vectors, present, lambda b, n, of=of_class: of[n], 0.2)
    params, bank, loss, found = plain["train_step"](params, bank, images, labels)
    np.testing.assert_allclose(float(loss), cross_entropy + 0.1 * expected, rtol=1e-5)
    for name in ("positive_similarity", "negative_similarity"):
      np.testing.assert_allclose(float(found[name]), stats[name], atol=1e-5)
    for b, n in zip(*np.nonzero(present), strict=True):
      keys[n].append(vectors[b, n])
  assert expected > 0


NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_valid_without_outputs_and_its_cells_compile(path: pathlib.Path) -> None:
  notebook = notebooks.read(path)
  assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
  assert set(notebook) == {"cells", "metadata", "nbformat", "nbformat_minor"}
  assert notebook["metadata"]["kernelspec"]["name"] == "python3"
  cells = notebook["cells"]
  names = [cell["id"] for cell in cells]
  assert len(set(names)) == len(names) and all(re.fullmatch(r"[\w-]{1,64}", name) for name in names)
  for cell in cells:
    assert isinstance(cell["metadata"], dict) and all(isinstance(line, str) for line in cell["source"])
    assert all(line.endswith("\n") for line in cell["source"][:-1])
    if cell["cell_type"] == "markdown":
      assert set(cell) == {"cell_type", "id", "metadata", "source"}
      continue
    assert set(cell) == {"cell_type", "id", "metadata", "source", "execution_count", "outputs"}
    assert cell["cell_type"] == "code" and cell["outputs"] == [] and cell["execution_count"] is None
    compile(notebooks.python_of(cell), f"{path.name}, {cell['id']}", "exec")
  assert "http" not in path.read_text()


def test_the_notebook_trains_before_it_imports_jax_and_shows_the_loss_of_the_readme() -> None:
  (path,) = NOTEBOOKS
  cells = [cell for cell in notebooks.read(path)["cells"] if cell["cell_type"] == "code"]
  imports = [
    i
    for i, cell in enumerate(cells)
    if re.search(r"^(import|from) (jax|rc_jax)\b", "".join(cell["source"]), re.M)
  ]
  commands = [i for i, cell in enumerate(cells) if any(line.startswith("!") for line in cell["source"])]
  assert max(commands) < min(imports)  # a TPU serves one process at a time
  # A test of the README runs that example.
  code = "".join(cells[imports[0]]["source"])
  assert "region_contrast_loss" in code and f"```python\n{code}\n```" in (ROOT / "README.md").read_text()


def test_the_page_shows_all_scripts() -> None:
  page = (ROOT / "docs" / "examples.md").read_text()
  for path in FOLDER.iterdir():
    assert f"](examples/{path.name})" in page
    assert path.suffix != ".py" or f"<!-- script examples/{path.name} -->" in page
