"""Sums over the keys of memory banks, tile by tile: no array is larger than a tile of the banks.

A tile is a block of neighbouring slots of neighbouring classes. Small banks are one tile, and then there is no loop.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

# Keys of a tile. Each iteration of a loop costs some microseconds whatever it computes, and each key of a tile makes
# QUERY_BLOCK logits.
KEY_TILE = 32_768
# The same on a GPU, whose loops take about ten small operations an iteration. The logits of 160 queries and the keys of
# a tile fill the cache of an H100. The logits of a class's own queries are a tenth of that.
GPU_KEY_TILE = 65_536
GPU_OWN_KEY_TILE = 262_144
# Up to this number of keys on a device, they are one tile.
ONE_TILE = 65_536

# Names of the loops in a compiled program, which cost estimates look for.
FULL_TILES = "full_tiles"
PARTIAL_TILES = "partial_tiles"
EVERY_TILE = "every_tile"


class BankShard(NamedTuple):
  """The slots of the memory banks that lie on this device.

  Attributes:
    keys: ``[N,m,C]``.
    written: ``[N]`` int32, number of slots of each class that hold a key; without ``valid`` these come first.
    usable: int32 scalar, number of slots of each class that ever will; the others are padding and stay zero.
    valid: ``[N,m]`` bool, the slots that hold a key; all others are zero. None: the first ``written`` ones.
  """

  keys: Array
  written: Array
  usable: Array
  valid: Array | None = None


class Tile(NamedTuple):
  """A block of the banks.

  Attributes:
    classes: ``[g]`` int32, neighbouring classes.
    keys: ``[g,t,C]``; finite also where not valid.
    valid: ``[g,t]`` bool, the slots that hold a key and belong to no tile before.
    start: int32 scalar, the first of the classes.
  """

  classes: Array
  keys: Array
  valid: Array
  start: Array


def tile_shape(num_classes: int, slots: int, keys: int = KEY_TILE) -> tuple[int, int]:
  """Returns ``(g,t)``, the classes of a tile and the slots of each.

  Args:
    num_classes: ``N``.
    slots: of each class on a device.
    keys: of a tile, at most.
  """
  t = min(slots, keys)
  return min(num_classes, max(1, keys // t)), t


def is_one_tile(keys: Array) -> bool:
  """Returns whether keys ``[N,m,C]`` are one tile."""
  return keys.shape[0] * keys.shape[1] <= ONE_TILE


def cleared(keys: Array, written: Array) -> Array:
  """Returns keys ``[...,C]`` with zeros where ``written [...]`` is False.

  A slot without a key may hold anything, and in a product 0 times NaN is NaN.
  """
  # Behind the barrier it is done once, not inside each product.
  zeroed: Array = jax.lax.optimization_barrier(jnp.where(written[..., None], keys, 0))
  return zeroed


def valid_slots(shard: BankShard) -> Array:
  """Returns ``[N,m]`` bool, the slots of a shard that hold a key."""
  if shard.valid is not None:
    return shard.valid
  return jnp.arange(shard.keys.shape[1]) < shard.written[:, None]


def sum_over_tiles(
  shard: BankShard, wanted: Array, add: Callable[[Tile, Any], Any], zeros: Any, gpu_keys: int = GPU_KEY_TILE
) -> Any:
  """Returns ``add(tile, sums)`` over the tiles of a shard, from ``sums = zeros``.

  Tiles without a key, and tiles without a wanted class, are left out. GPUs read all tiles, and the masks leave out the
  same keys.

  Args:
    shard: its keys are cleared where they are one tile.
    wanted: ``[N]`` bool, the classes whose keys are needed.
    add: ``(tile, sums) -> sums``.
    zeros: the sums before the first tile.
    gpu_keys: of a tile on GPUs, at most.
  """
  if is_one_tile(shard.keys):
    classes = jnp.arange(shard.keys.shape[0], dtype=jnp.int32)
    return add(Tile(classes, shard.keys, valid_slots(shard), jnp.int32(0)), zeros)

  def needed() -> Any:
    return _over_needed_tiles(shard, wanted, add, zeros)

  def every() -> Any:
    return over_every_tile(shard, add, zeros, gpu_keys)

  return jax.lax.platform_dependent(cuda=every, rocm=every, default=needed)


def over_every_tile(shard: BankShard, add: Callable[[Tile, Any], Any], zeros: Any, keys: int) -> Any:
  """Returns ``add(tile, sums)`` over all tiles of a shard, in a loop whose end is known to the compiler.

  The host of a GPU waits in each iteration of a loop whose end the data decide.
  """
  num_classes, slots, _ = shard.keys.shape
  g, t = tile_shape(num_classes, slots, keys)
  rows, columns = -(-num_classes // g), -(-slots // t)

  def add_tile(i: Array, sums: Any) -> Any:
    tile = _tile(shard, shard.keys, (i // columns * g, i % columns * t), (g, t))
    # Clearing costs nothing here: the operation that copies the slice also selects.
    return add(tile._replace(keys=cleared(tile.keys, tile.valid)), sums)

  with jax.named_scope(EVERY_TILE):
    return jax.lax.fori_loop(0, rows * columns, add_tile, zeros)


def _tile(shard: BankShard, keys: Array, corner: tuple[Array, Array], size: tuple[int, int]) -> Tile:
  """Returns the tile at ``corner``; at the end of a row or column it starts early, and masks what it repeats."""
  (num_classes, slots, dim), (g, t) = keys.shape, size
  row, column = jnp.minimum(corner[0], num_classes - g), jnp.minimum(corner[1], slots - t)
  classes, at = row + jnp.arange(g, dtype=jnp.int32), column + jnp.arange(t)
  if shard.valid is None:
    written = at < jax.lax.dynamic_slice_in_dim(shard.written, row, g)[:, None]
  else:
    written = jax.lax.dynamic_slice(shard.valid, (row, column), (g, t))
  unread = (classes >= corner[0])[:, None] & (at >= corner[1])
  return Tile(classes, jax.lax.dynamic_slice(keys, (row, column, 0), (g, t, dim)), written & unread, row)


def _over_needed_tiles(shard: BankShard, wanted: Array, add: Callable[[Tile, Any], Any], zeros: Any) -> Any:
  num_classes, slots, _ = shard.keys.shape
  g, t = tile_shape(num_classes, slots)
  rows, columns = -(-num_classes // g), -(-slots // t)
  # All tiles have one size: the last of a row or column starts early, and leaves out what the one before has read.
  row_of, column_of = jnp.arange(rows) * g, jnp.arange(columns) * t
  starts = jnp.minimum(row_of, num_classes - g)[:, None]
  classes = jnp.arange(num_classes)
  inside = (classes >= starts) & (classes < starts + g)  # [rows,N]
  new = inside & (classes >= row_of[:, None])  # [rows,N]
  if shard.valid is None:
    held = shard.written > column_of[:, None]  # [columns,N]
    is_full = shard.written >= shard.usable  # [N]
  else:
    padded = jnp.pad(shard.valid, ((0, 0), (0, columns * t - slots)))
    held = padded.reshape(num_classes, columns, t).any(axis=2).T
    is_full = jnp.ones(num_classes, bool)  # empty slots are zero, so no tile needs clearing
  needed = wanted & held  # [columns,N]
  visited = (new[:, None] & needed).any(axis=2).reshape(-1)  # [rows columns]
  full = (~inside | is_full).all(axis=1).repeat(columns)

  def body(clear: bool, order: Array) -> Callable[[Array, Any], Any]:
    def add_tile(i: Array, sums: Any) -> Any:
      # Tied to the loop's index: a CPU would otherwise convert all of a bfloat16 bank to float32 before the loop.
      bank, _ = jax.lax.optimization_barrier((shard.keys, i))
      tile = _tile(shard, bank, (row_of[order[i] // columns], column_of[order[i] % columns]), (g, t))
      if clear:
        tile = tile._replace(keys=cleared(tile.keys, tile.valid))
      return add(tile, sums)

    return add_tile

  sums = zeros
  # On a TPU, clearing takes as long as the products. Full banks need none, so their tiles have their own loop.
  for name, clear, chosen in ((FULL_TILES, False, visited & full), (PARTIAL_TILES, True, visited & ~full)):
    order = jnp.argsort(~chosen, stable=True)
    with jax.named_scope(name):
      sums = jax.lax.fori_loop(0, chosen.sum(), body(clear, order), sums)
  return sums
