"""Max pooling against a loop over windows, in the form of each platform."""

import math

import jax
import numpy as np
import pytest

from rc_jax.ops import max_pool

FORMS = {
  "of this platform": None,
  "default": max_pool.with_indices,
}


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("size", [(9, 9), (8, 10), (7, 12), (1, 2)])
def test_the_maximum_equals_a_loop_and_its_gradient_goes_to_the_maxima(size, ceil, form, monkeypatch):
  x = np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)
  height, width = (math.ceil((n + 2 - 3) / 2) + 1 if ceil else (n + 2 - 3) // 2 + 1 for n in size)
  dy = np.random.default_rng(1).standard_normal((2, height, width, 3)).astype(np.float32)
  expected, gradient = np.zeros((2, height, width, 3), np.float32), np.zeros_like(x)
  for b, i, j, c in np.ndindex(expected.shape):
    rows, columns = slice(max(0, 2 * i - 1), 2 * i + 2), slice(max(0, 2 * j - 1), 2 * j + 2)
    window = x[b, rows, columns, c]
    expected[b, i, j, c] = window.max(initial=-np.inf)
    gradient[b, rows, columns, c] += (window == expected[b, i, j, c]) * dy[b, i, j, c]
  if FORMS[form] is not None:
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda x, **forms: forms[form](x))

  @jax.jit
  def value_and_gradient(x, dy):
    y, pull = jax.vjp(lambda x: max_pool.max_pool(x, ceil), x)
    return y, *pull(dy)

  found, found_gradient = value_and_gradient(x, np.where(np.isfinite(expected), dy, 0))
  np.testing.assert_array_equal(found, expected)
  np.testing.assert_allclose(found_gradient, gradient, atol=1e-6)


def test_of_equal_values_the_first_has_the_gradient_as_in_pytorch():
  torch = pytest.importorskip("torch")
  x = np.random.default_rng(0).integers(0, 3, (2, 9, 8, 4)).astype(np.float32)
  inputs = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
  outputs = torch.nn.functional.max_pool2d(inputs, 3, 2, 1)
  outputs.sum().backward()
  gradient = jax.grad(lambda x: max_pool.with_indices(x, ((1, 1), (1, 0))).sum())(x)
  np.testing.assert_array_equal(gradient, inputs.grad.permute(0, 2, 3, 1))


def test_each_platform_has_its_form():
  step = jax.jit(jax.grad(lambda x: max_pool.max_pool(x).sum())).trace(np.ones((1, 9, 9, 4), np.float32))
  texts = {name: step.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda", "tpu")}
  assert "select_and_scatter" not in "".join(texts.values())
  assert texts["cpu"].count("stablehlo.maximum") >= 7  # JAX 0.12 leaves out the last, which no gradient reads
  assert "stablehlo.maximum" not in texts["cuda"] + texts["tpu"]


@pytest.mark.parametrize("form", list(FORMS))
def test_nan_is_kept_as_in_pytorch(form, monkeypatch):
  torch = pytest.importorskip("torch")
  x = np.random.default_rng(0).standard_normal((1, 9, 8, 3)).astype(np.float32)
  x[0, 0, 0, 0] = x[0, 4, 5, 1] = np.nan
  x[..., 2] = np.nan
  expected = torch.nn.functional.max_pool2d(torch.tensor(x).permute(0, 3, 1, 2), 3, 2, 1).permute(0, 2, 3, 1)
  if FORMS[form] is not None:
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda x, **forms: forms[form](x))
  np.testing.assert_array_equal(max_pool.max_pool(x), expected.numpy())
