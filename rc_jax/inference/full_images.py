"""Labels of full images, with one compiled program for each size: the program that ``--mode=export`` writes.

Padding to a common size would change the logits, through the borders of convolutions and the global pooling of ASPP. So
a full image goes in at its own size, as mmsegmentation's ``mode="whole"`` has it, or less than a stride larger
(``eval.pad_to_grid``), and each size compiles the network.
"""

import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from rc_jax import sharding
from rc_jax.config import Config
from rc_jax.console import duration, say
from rc_jax.inference.predictor import labels_and_probabilities
from rc_jax.models import Network

MANY_PROGRAMS = 8  # sizes, beyond which a sliding window is suggested
LONG_COMPILATION = 30  # seconds, beyond which a sliding window is suggested

Size = tuple[int, int]


class FullImages:
  """Owns one program for each size of an image."""

  def __init__(
    self, network: Network, config_eval: Config, mesh: Mesh, count_of_size: Mapping[Size, int] | None
  ):
    """Prepares the programs, each of which is compiled for the first batch of its size.

    Args:
      network: functions of the network.
      config_eval: ``scales``, ``flip`` and ``batch_size``.
      mesh: of this process's devices.
      count_of_size: the number of images of each size, if it is known and images come ordered by size. Then only the
        newest program is kept, because a thousand programs would fill the memory.
    """
    self._mesh = mesh
    self._rows = int(config_eval.batch_size) * mesh.devices.size
    self._count_of_size = count_of_size
    self._programs: dict[tuple[tuple[int, ...], bool], Any] = {}
    self._compiled = 0
    self._functions = {
      probabilities: labels_and_probabilities(network, config_eval, probabilities)
      for probabilities in (False, True)
    }

  def rows(self, size: Size) -> int:
    """Returns the rows of a batch over all devices: ``eval.batch_size`` each, fewer if the size has fewer images."""
    if self._count_of_size is None or size not in self._count_of_size:
      return self._rows
    devices = self._mesh.devices.size
    return min(self._rows, -(-self._count_of_size[size] // devices) * devices)

  def predict(
    self, params: Any, batch_stats: Any, images: np.ndarray, probabilities: bool
  ) -> tuple[jax.Array, jax.Array | None]:
    """Labels a batch.

    Args:
      params: arrays on every device of the mesh.
      batch_stats: likewise.
      images: uint8 ``[B,H,W,3]``.
      probabilities: whether to return them.

    Returns:
      Train ids uint8 ``[B,H,W]`` and probabilities float32 ``[B,H,W,N]`` or None, spread over the devices.
    """
    spread = sharding.batch_sharding(self._mesh)
    key = (images.shape, probabilities)
    if key not in self._programs:
      shape = jax.ShapeDtypeStruct(images.shape, jnp.uint8, sharding=spread)
      self._programs[key] = self._compile(params, batch_stats, shape, probabilities)
    result: tuple[jax.Array, jax.Array | None] = self._programs[key](
      params, batch_stats, jax.device_put(images, spread)
    )
    return result

  def _compile(self, params: Any, batch_stats: Any, images: jax.ShapeDtypeStruct, probabilities: bool) -> Any:
    if self._count_of_size is not None:
      self._programs.clear()
    replicated, spread = PartitionSpec(), PartitionSpec(sharding.DATA_AXIS)
    start = time.monotonic()
    program = (
      jax.jit(
        jax.shard_map(
          self._functions[probabilities],
          mesh=self._mesh,
          in_specs=(replicated, replicated, spread),
          out_specs=spread,
          check_vma=False,
        ),
        compiler_options=sharding.compiler_options(self._mesh),
      )
      .lower(params, batch_stats, images)
      .compile()
    )
    self._compiled += 1
    self._suggest_windows(images.shape[1:3], time.monotonic() - start)
    return program

  def _suggest_windows(self, size: Size, seconds: float) -> None:
    """Says once that a sliding window would compile less, where sizes are many or compilation is long."""
    remedy = f"a sliding window compiles one program, such as --config.eval.crop_size={min(size)}"
    if self._count_of_size is None:
      if self._compiled == MANY_PROGRAMS:
        say(f"full images: each of their sizes compiles a program, {self._compiled} so far; {remedy}")
    elif self._compiled == 1 and seconds * (len(self._count_of_size) - 1) > LONG_COMPILATION:
      others = len(self._count_of_size) - 1
      say(
        f"full images: the program of the first size took {duration(seconds)} to compile, those of the other {others} "
        f"sizes will take about {duration(seconds * others)}; {remedy}"
      )
