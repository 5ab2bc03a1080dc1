"""Sums over the keys of memory banks, tile by tile, which bounds the size of intermediate arrays.

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
# The same on a GPU, where a tile that is not all keys is copied first, and an iteration launches about 15 kernels. The
# logits and weights of 160 queries take 4 GB for bfloat16 keys, and 5.4 GB for float32 keys.
GPU_KEY_TILE = 4_194_304
# Up to this number of keys on a device, they are one tile on every platform.
ONE_TILE = 65_536

# Names of the loops in a compiled program, which cost estimates look for.
NEEDED_TILES = "needed_tiles"
EVERY_TILE = "every_tile"


class BankShard(NamedTuple):
  """The slots of the memory banks that lie on this device.

  Attributes:
    keys: ``[N,m,C]``, finite; zero in slots without a key.
    written: ``[N]`` int32, number of slots of each class that hold a key; without ``valid`` these come first.
    valid: ``[N,m]`` bool, the slots that hold a key. None: the first ``written`` ones.
  """

  keys: Array
  written: Array
  valid: Array | None = None


class Tile(NamedTuple):
  """A block of the banks.

  Attributes:
    classes: ``[g]`` int32, neighbouring classes.
    keys: ``[g,t,C]``.
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


def valid_slots(shard: BankShard) -> Array:
  """Returns ``[N,m]`` bool, the slots of a shard that hold a key."""
  if shard.valid is not None:
    return shard.valid
  return jnp.arange(shard.keys.shape[1]) < shard.written[:, None]


def sum_over_tiles(shard: BankShard, wanted: Array, add: Callable[[Tile, Any], Any], zeros: Any) -> Any:
  """Returns ``add(tile, sums)`` over the tiles of a shard, from ``sums = zeros``.

  Of several tiles, CPUs and TPUs leave out those without a key and those without a wanted class. GPUs read all tiles,
  and the masks leave out the same keys.

  Args:
    shard: the keys.
    wanted: ``[N]`` bool, the classes whose keys are needed.
    add: ``(tile, sums) -> sums``.
    zeros: the sums before the first tile.
  """
  num_classes, slots, _ = shard.keys.shape
  if num_classes * slots <= ONE_TILE:
    return add(_all_keys(shard), zeros)

  def needed() -> Any:
    return _over_needed_tiles(shard, wanted, add, zeros)

  def every() -> Any:
    return over_every_tile(shard, add, zeros, GPU_KEY_TILE)

  return jax.lax.platform_dependent(cuda=every, rocm=every, default=needed)


def over_every_tile(shard: BankShard, add: Callable[[Tile, Any], Any], zeros: Any, keys: int) -> Any:
  """Returns ``add(tile, sums)`` over all tiles of a shard, in a loop whose end is known to the compiler.

  The host of a GPU waits in each iteration of a loop whose end the data decide. If all keys are one tile, there is no
  loop, and the products read the bank itself and not a copy of a slice.
  """
  num_classes, slots, _ = shard.keys.shape
  g, t = tile_shape(num_classes, slots, keys)
  if (g, t) == (num_classes, slots):
    return add(_all_keys(shard), zeros)
  rows, columns = -(-num_classes // g), -(-slots // t)

  def add_tile(i: Array, sums: Any) -> Any:
    return add(_tile(shard, shard.keys, (i // columns * g, i % columns * t), (g, t)), sums)

  with jax.named_scope(EVERY_TILE):
    return jax.lax.fori_loop(0, rows * columns, add_tile, zeros)


def _all_keys(shard: BankShard) -> Tile:
  """Returns all keys of a shard as one tile."""
  classes = jnp.arange(shard.keys.shape[0], dtype=jnp.int32)
  return Tile(classes, shard.keys, valid_slots(shard), jnp.int32(0))


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
  new = (classes >= row_of[:, None]) & (classes < starts + g)  # [rows,N]
  if shard.valid is None:
    held = shard.written > column_of[:, None]  # [columns,N]
  else:
    padded = jnp.pad(shard.valid, ((0, 0), (0, columns * t - slots)))
    held = padded.reshape(num_classes, columns, t).any(axis=2).T
  visited = (new[:, None] & wanted & held).any(axis=2).reshape(-1)  # [rows columns]
  order = jnp.argsort(~visited, stable=True)
  row_at, column_at = row_of[order // columns], column_of[order % columns]

  def add_tile(i: Array, sums: Any) -> Any:
    # Tied to the loop's index: a CPU would otherwise convert all of a bfloat16 bank to float32 before the loop.
    bank, _ = jax.lax.optimization_barrier((shard.keys, i))
    return add(_tile(shard, bank, (row_at[i], column_at[i]), (g, t)), sums)

  with jax.named_scope(NEEDED_TILES):
    return jax.lax.fori_loop(0, visited.sum(), add_tile, zeros)
