"""The fully convolutional head against PyTorch's operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax.models import Stages
from rc_jax.models.heads.fcn import FCNHead


@pytest.mark.parametrize(
  ("convs", "size", "concat"), [(1, 3, False), (2, 3, True), (1, 1, False), (0, 3, True)]
)
def test_logits_equal_the_originals(convs, size, concat):
  torch = pytest.importorskip("torch")
  from tests.support import torch_reference

  original = torch_reference.randomize(torch_reference.FCN(6, 4, 3, convs, size, concat), seed=3).eval()
  params, batch_stats = torch_reference.as_trees(original.state_dict())
  x = np.random.default_rng(0).standard_normal((2, 5, 8, 6)).astype(np.float32)
  with torch.no_grad():
    theirs = original(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
  module = FCNHead(3, 4, convs=convs, kernel_size=size, concat_input=concat)
  ours = module.apply({"params": params, "batch_stats": batch_stats}, Stages(x, None, x), False)
  np.testing.assert_allclose(ours.logits, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_dropout_drops_whole_channels_and_logits_are_float32():
  module = FCNHead(3, 64, dropout=0.5, dtype=jnp.bfloat16)
  x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 6, 6, 4)), jnp.bfloat16)
  variables = jax.jit(lambda rng: module.init(rng, Stages(x, None, x), False))(jax.random.key(0))
  classifier = {"kernel": jnp.eye(64)[None, None, :, :3], "bias": jnp.zeros(3)}
  kernel = np.random.default_rng(1).standard_normal((3, 3, 4, 64)).astype(np.float32)
  params = variables["params"] | {"classifier": classifier}
  params["conv0"] = params["conv0"] | {"conv": {"kernel": kernel}}
  dropped = []
  for seed in range(8):  # the classifier shows the first 3 channels as they are
    rngs = {"dropout": jax.random.key(seed)}
    given = (variables | {"params": params}, Stages(x, None, x), True)
    outputs, _ = module.apply(*given, rngs=rngs, mutable=["batch_stats"])
    assert outputs.logits.dtype == jnp.float32
    dropped.append((outputs.logits == 0).all((0, 1, 2)))
  assert 0.2 < np.mean(dropped) < 0.8
