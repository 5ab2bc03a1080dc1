"""Estimates the contrastive loss on TPUs that are not attached: value and gradient against bfloat16 banks.

  python -m benchmarks.contrast_cycles [--topology=v5e:2x4]

Needs the extra ``tpu``, and no TPU. Compiles Cityscapes for one chip, and ADE20K for one and for all. The times are the
compiler's estimate of cycles. Loop bodies are multiplied by their trip counts, for as many queries as the images show
classes. The compiler has no estimate for messages between chips.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.contrast_loss import DIM, SIZES, Size
from rc_jax import contrast, sharding
from rc_jax.contrast import streamed
from rc_jax.costs import hlo_cost
from rc_jax.costs.chips import CHIPS
from rc_jax.costs.topology import topology_mesh


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--topology", default="v5e:2x4")
  arguments = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  mesh = topology_mesh(arguments.topology)
  devices = mesh.devices.size
  print(f"{arguments.topology}, jax {jax.__version__}")
  print("| keys | chips | time | temporaries | messages |")
  print("|---|---|---|---|---|")
  for name, chips in (("cityscapes", 1), ("ade20k", 1), ("ade20k", devices)):
    size = SIZES[name]
    compiled, slots = compile_loss(size, mesh, chips)
    trips = streamed.loop_trips(size.num_classes, slots, size.batch * size.present)
    clock = CHIPS[mesh.devices.flat[0].device_kind].clock
    cost = hlo_cost.read(hlo_cost.parse(compiled.as_text()), trips)
    memory: Any = compiled.memory_analysis()
    messages = ", ".join(f"{each.count} {each.kind} of {each.size / 1e6:.1f} MB" for each in cost.collectives)
    print(
      f"| {name}, {size.num_classes} x {size.capacity:,} | {chips} | {1e3 * cost.cycles / clock:.2f} ms | "
      f"{memory.temp_size_in_bytes / 1e6:.1f} MB | {messages or 'none'} |"
    )


def compile_loss(size: Size, mesh: Any, chips: int) -> tuple[Any, int]:
  """Compiles value and gradient for the first chips of a mesh; returns also the slots of a class on each."""
  mesh = jax.sharding.Mesh(mesh.devices[:chips], mesh.axis_names, axis_types=mesh.axis_types)
  replicated = sharding.replicated_sharding(mesh)

  def shape(dimensions: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dimensions, dtype, sharding=replicated)

  n, b = size.num_classes, size.batch
  empty = jax.eval_shape(
    lambda: contrast.MemoryBank.create(
      n, size.capacity, DIM, jnp.bfloat16, mesh=mesh, axis=sharding.DATA_AXIS
    )
  )
  bank = jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), empty, empty.shardings()
  )

  def loss(vectors: jax.Array, present: jax.Array, bank: contrast.MemoryBank) -> jax.Array:
    value: jax.Array = contrast.region_contrast_loss(contrast.RegionCenters(vectors, present), bank, 0.2)[0]
    return value

  arguments = shape((b, n, DIM), jnp.float32), shape((b, n), bool), bank
  return jax.jit(jax.value_and_grad(loss)).lower(*arguments).compile(), bank.keys.shape[1] // chips


if __name__ == "__main__":
  main()
