"""Measures time and memory of the contrastive loss, value and gradient, against full banks: dense, streamed, sharded.

  python -m benchmarks.contrast_loss --size=cityscapes [--rounds=5]
  python -m benchmarks.contrast_loss --size=ade20k [--rounds=3]

``dense`` computes all logits at once, as Eq. 4 is written; it is skipped where they would not fit. With several devices
the banks are also spread over them (``XLA_FLAGS=--xla_force_host_platform_device_count=8`` simulates eight on a CPU).
Memory is the memory of the compiled program besides its arguments, which are nearly all banks.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import steps, timing
from rc_jax import contrast, sharding
from rc_jax.contrast.loss import equation_4


class Size(NamedTuple):
  """Numbers of classes, of training images, of images in a batch, and of classes in an image."""

  num_classes: int
  capacity: int
  batch: int
  present: int


SIZES = {"cityscapes": Size(19, 2975, 8, 12), "ade20k": Size(150, 20_210, 16, 9)}
DIM = 256
DENSE_LOGITS = 1 << 26


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--size", choices=SIZES, default="cityscapes")
  parser.add_argument("--rounds", type=int, default=5)
  arguments = parser.parse_args()
  size = SIZES[arguments.size]
  centers = random_centers(size)
  candidates: dict[str, Callable[[], Any]] = {}
  meshes: dict[str, Any] = {"": None}
  if jax.device_count() > 1:
    meshes[f", over {jax.device_count()} devices"] = sharding.global_mesh()
  memory = {}
  print(
    f"{arguments.size}: {size.num_classes} x {size.capacity:,} keys of {DIM}, {size.batch} images of {size.present} "
    f"classes, on {jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}"
  )
  for dtype in ("float32", "bfloat16"):
    for where, mesh in meshes.items():
      empty = contrast.MemoryBank.create(size.num_classes, size.capacity, DIM, jnp.dtype(dtype), mesh=mesh)
      bank = steps.full_bank(empty)
      forms: dict[str, Callable[..., tuple[Any, Any]]] = {"streamed": contrast.region_contrast_loss}
      if (
        not where and size.batch * size.num_classes**2 * size.capacity <= DENSE_LOGITS and dtype == "float32"
      ):
        forms["dense"] = dense
      for form, function in forms.items():
        name = f"{form}, {dtype}{where}"
        candidates[name], memory[name] = compiled(function, centers, bank)
  reference = "streamed, float32"
  print(timing.table(timing.in_turn(candidates, arguments.rounds), reference=reference))
  print()
  value, gradient = (np.asarray(x) for x in candidates[reference]())
  for name, run in candidates.items():
    other, other_gradient = (np.asarray(x) for x in run())
    error = np.linalg.norm(other_gradient - gradient) / np.linalg.norm(gradient)
    temporary, bank_bytes = memory[name]
    print(
      f"{name}: loss {other:.6f} ({other - value:+.1e}), gradient off by {error:.1e}; "
      f"{temporary / 1e6:.0f} MB beyond {bank_bytes / 1e6:,.0f} MB of banks on a device "
      f"({temporary / bank_bytes:.3f} x)"
    )


def random_centers(size: Size) -> contrast.RegionCenters:
  """Returns random unit vectors for ``size.present`` classes of each image."""
  rng = np.random.default_rng(0)
  present = np.zeros((size.batch, size.num_classes), bool)
  for row in present:
    row[rng.choice(size.num_classes, size.present, replace=False)] = True
  vectors = rng.standard_normal((*present.shape, DIM)).astype(np.float32)
  vectors *= present[..., None] / np.linalg.norm(vectors, axis=-1, keepdims=True)
  return contrast.RegionCenters(jnp.asarray(vectors), jnp.asarray(present))


def dense(centers: contrast.RegionCenters, bank: contrast.MemoryBank, temperature: float) -> tuple[Any, Any]:
  """Computes Eq. 4 with all logits at once."""
  terms = equation_4(centers.vectors, centers.present, bank.keys, bank.valid, jnp.float32(temperature))
  return terms.loss.sum() / jnp.maximum(terms.counted.sum(), 1), {}


def compiled(
  function: Callable[..., Any], centers: contrast.RegionCenters, bank: contrast.MemoryBank
) -> tuple[Callable[[], Any], tuple[int, int]]:
  """Returns value and gradient as a function to time, and the bytes of temporaries and banks on a device."""

  def loss(vectors: jax.Array, bank: contrast.MemoryBank) -> jax.Array:
    value: jax.Array = function(contrast.RegionCenters(vectors, centers.present), bank, 0.2)[0]
    return value

  program = jax.jit(jax.value_and_grad(loss)).lower(centers.vectors, bank).compile()
  memory: Any = program.memory_analysis()
  return lambda: program(centers.vectors, bank), (
    memory.temp_size_in_bytes,
    bank.keys.addressable_shards[0].data.nbytes,
  )


if __name__ == "__main__":
  main()
