"""Memory banks: the latest region centers of each class, the keys of the contrastive loss."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jax.typing import ArrayLike, DTypeLike

from rc_jax.contrast.region_centers import RegionCenters

# The slots of each class are padded to a multiple of this on every mesh of 1, 2, 4, ... 256 devices, so that a
# checkpoint of one number of devices has the shapes of another.
SLOT_MULTIPLE = 256


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MemoryBank:
  """One circular, first-in first-out queue of keys for each class.

  Attributes:
    keys: ``[N,M,C]``, float; class ``n``'s keys lie in slots ``0..count[n]-1``, and the other slots are zero.
    cursor: ``[N]`` int32 in ``0..M-1``; the slot that the class's next key overwrites.
    count: ``[N]`` int32 in ``0..M``; how many of the class's slots have ever been written.
    padding: slots at the end of ``keys`` that are never written, so that the devices divide the slots; ``keys`` is
      then ``[N,M+padding,C]``.
    mesh: the devices over which the slots are spread; None: each device that computes holds all of them.
    axis: the axis of the mesh over which the slots are spread.
  """

  keys: Array
  cursor: Array
  count: Array
  padding: int = dataclasses.field(default=0, metadata={"static": True})
  mesh: Mesh | None = dataclasses.field(default=None, metadata={"static": True})
  axis: str = dataclasses.field(default="data", metadata={"static": True})

  @classmethod
  def create(
    cls,
    num_classes: int,
    capacity: int,
    dim: int,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
    axis: str = "data",
  ) -> "MemoryBank":
    """Returns an empty bank.

    Args:
      num_classes: ``N``.
      capacity: ``M``, slots for each class; the paper takes the number of training images.
      dim: ``C``, length of a key.
      dtype: of the keys; bfloat16 halves the memory.
      mesh: spreads the slots over the devices along ``axis``; None: no mesh.
      axis: a name of the mesh's axes.

    Raises:
      ValueError: a size is not positive, the dtype is not floating, or the mesh has no such axis.
    """
    check_sizes(num_classes, capacity, dim, dtype)
    padding = padding_of(capacity, mesh, axis)
    return cls(
      keys=zeros((num_classes, capacity + padding, dim), dtype, mesh, PartitionSpec(None, axis)),
      cursor=zeros((num_classes,), jnp.int32, mesh, PartitionSpec()),
      count=zeros((num_classes,), jnp.int32, mesh, PartitionSpec()),
      padding=padding,
      mesh=mesh,
      axis=axis,
    )

  @property
  def capacity(self) -> int:
    """``M``, the number of keys that a class can hold."""
    return self.keys.shape[1] - self.padding

  @property
  def valid(self) -> Array:
    """``[N,M]`` bool, with padding ``[N,M+padding]``: the slots that hold a key. No other slot counts."""
    return jnp.arange(self.keys.shape[1]) < self.count[:, None]

  def shardings(self) -> "MemoryBank":
    """Returns the sharding of each array, in the same tree: keys along their slots, the rest on every device.

    The arrays themselves may be shapes; without a mesh, they must be arrays.
    """
    if self.mesh is None:
      return jax.tree.map(lambda leaf: leaf.sharding, self)
    replicated: Any = NamedSharding(self.mesh, PartitionSpec())
    slots: Any = NamedSharding(self.mesh, PartitionSpec(None, self.axis))
    return dataclasses.replace(self, keys=slots, cursor=replicated, count=replicated)

  def as_saved(self, shapes: Mapping[str, tuple[int, ...]]) -> "MemoryBank":
    """Describes this bank as a checkpoint holds it: with another capacity, or the padding of other devices.

    Args:
      shapes: ``keys``, ``cursor`` and ``count`` -> the shape of the checkpoint's array.

    Returns:
      A ``ShapeDtypeStruct`` with a sharding in the place of each array, for a reader of checkpoints. Where the
      checkpoint's bank has other classes or another dimension, the shapes are this bank's own, so that the reader
      reports the difference.
    """

    described = jax.tree.map(described_array, self, self.shardings())
    keys, shape = described.keys, shapes.get("keys")
    if shape in (None, keys.shape) or shape[::2] != keys.shape[::2]:
      return described
    # Other slots may not divide among these devices.
    sharding = keys.sharding if self.mesh is None else channel_sharding(keys, self.mesh, self.axis)
    return dataclasses.replace(described, keys=jax.ShapeDtypeStruct(shape, keys.dtype, sharding=sharding))

  def refit(self, saved: "MemoryBank") -> "MemoryBank":
    """Returns the keys of ``saved`` with the capacity, the padding and the shardings of this bank.

    With the same capacity, keys, cursor and count stay as they are. Otherwise the newest ``min(count, M)`` keys of each
    class move to the first slots, the oldest first, and the next key follows behind the newest. Neither a slot that was
    never written counts as a key then, nor does a new key overwrite one that is not the oldest.

    Args:
      saved: a bank of the same classes and dimension, whose keys are ``[N,any capacity and padding,C]``. Cursor and
        count must be concrete.
    """
    keys, slots = saved.keys, self.keys.shape[1]
    cursor, count = np.asarray(jax.device_get(saved.cursor)), np.asarray(jax.device_get(saved.count))
    start, kept, next_cursor = _moved(cursor, count, self.capacity)
    if (start != 0).any() or (kept != count).any() or (next_cursor != cursor).any():
      ring = np.where(count > cursor, count, keys.shape[1])  # a full class's ring has as many slots as keys

      def move(keys: Array) -> Array:
        if self.mesh is not None:
          # Reading slots of other devices would gather all keys on each.
          keys = jax.lax.with_sharding_constraint(keys, channel_sharding(self.keys, self.mesh, self.axis))
        slot = jnp.arange(slots)
        sources = (jnp.asarray(start)[:, None] + slot) % jnp.asarray(ring)[:, None]  # [N,slots]
        moved = jnp.take_along_axis(keys, sources[:, :, None], axis=1)
        return jnp.where((slot < jnp.asarray(kept)[:, None])[:, :, None], moved, 0)

      keys = jax.jit(move, out_shardings=self.keys.sharding)(keys)
      saved = dataclasses.replace(
        saved,
        cursor=jax.device_put(next_cursor.astype(np.int32), saved.cursor.sharding),
        count=jax.device_put(kept.astype(np.int32), saved.count.sharding),
      )
    elif keys.shape != self.keys.shape:

      def repad(keys: Array) -> Array:
        used = keys[:, : self.capacity]
        return jnp.pad(used, ((0, 0), (0, slots - used.shape[1]), (0, 0)))

      keys = jax.jit(repad, out_shardings=self.keys.sharding)(keys)
    return dataclasses.replace(self, keys=keys, cursor=saved.cursor, count=saved.count)


def check_sizes(num_classes: int, capacity: int, dim: int, dtype: DTypeLike) -> None:
  """Raises ``ValueError`` unless the sizes of a bank are positive and its dtype is floating."""
  for name, size in (("num_classes", num_classes), ("capacity", capacity), ("dim", dim)):
    if size < 1:
      raise ValueError(f"{name} of a memory bank must be at least 1, got {size}")
  if not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(f"dtype of a memory bank must be floating, got {jnp.dtype(dtype).name}; try bfloat16")


def padding_of(capacity: int, mesh: Mesh | None, axis: str) -> int:
  """Returns the slots to add to ``capacity``, so that the devices along ``axis`` divide the slots; 0 without a mesh.

  Raises:
    ValueError: the mesh has no such axis.
  """
  if mesh is None:
    return 0
  if axis not in mesh.shape:
    raise ValueError(f"axis: the mesh has no {axis!r}; its axes are {', '.join(map(repr, mesh.shape))}")
  return -capacity % math.lcm(mesh.shape[axis], SLOT_MULTIPLE)


def zeros(shape: tuple[int, ...], dtype: DTypeLike, mesh: Mesh | None, spec: PartitionSpec) -> Array:
  """Returns zeros that are spread over the mesh."""
  if mesh is None:
    return jnp.zeros(shape, dtype)
  # Allocated shard by shard: one device may not hold the array.
  return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=NamedSharding(mesh, spec))()


def described_array(leaf: Array, sharding: Sharding) -> jax.ShapeDtypeStruct:
  """Returns the shape and the dtype of an array with a sharding."""
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def channel_sharding(keys: Array, mesh: Mesh, axis: str) -> NamedSharding:
  """Returns the sharding of keys ``[N,M,C]`` along their channels: one device may not hold all keys."""
  divides = keys.shape[2] % mesh.shape[axis] == 0
  return NamedSharding(mesh, PartitionSpec(None, None, axis) if divides else PartitionSpec())


def _moved(cursor: np.ndarray, count: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Computes the places of keys in a bank of another capacity.

  In a class that is not full, the cursor is the count. A class with a lower cursor is full, and its count is the
  capacity of the bank.

  Args:
    cursor: ``[N]``, of the bank with the keys.
    count: ``[N]``, likewise.
    capacity: ``M`` of the new bank.

  Returns:
    ``[N]`` each: the slot of the key that becomes the first, the number of keys, and the new cursor. Of a class that
    fits as it is they are 0, its count and its cursor.
  """
  full = count > cursor
  fits = np.where(full, count == capacity, count < capacity)
  kept = np.minimum(count, capacity)
  start = np.where(fits, 0, np.where(full, cursor, 0) + count - kept)
  return start, kept, np.where(fits, cursor, kept % capacity)


def enqueue(bank: MemoryBank, centers: RegionCenters) -> MemoryBank:
  """Writes the region centers of a batch into the banks of their classes, first-in first-out.

  For image 0, then 1, ... then B-1, and each class ``n`` present in it:
  ``keys[n, cursor[n]] = center; cursor[n] = (cursor[n] + 1) mod M; count[n] = min(count[n] + 1, M)``.

  Args:
    bank: keys ``[N,M,C]``, cursor ``[N]``, count ``[N]``.
    centers: vectors ``[B,N,C]`` of unit length, present ``[B,N]``; absent centers are not written. They are written
      without gradient, rounded to the bank's dtype.

  Returns:
    The new bank. It does not depend on how the batch was spread over devices. Where a batch holds more than ``M``
    centers of a class, the last ``M`` stay.

  Raises:
    ValueError: the centers' classes or dimension are not the bank's.

  Source: RegionContrast, section 3.2.3.
  """
  check_shapes(centers, bank.keys)
  num_classes, capacity = bank.keys.shape[0], bank.capacity
  present = jnp.asarray(centers.present, jnp.int32)  # [B,N]
  # [B,N]: how many centers of the class come before this one in the batch
  rank = jnp.cumsum(present, axis=0, dtype=jnp.int32) - present
  total = present.sum(axis=0, dtype=jnp.int32)  # [N]

  # Of two centers with the same slot only the later is written: then no slot is written twice, and the order in which
  # the hardware scatters does not matter. The others get an index beyond all slots, where they are dropped; each gets
  # a different one, because `unique_indices` promises so.
  written = (present > 0) & (rank >= total - capacity)
  slots = bank.keys.shape[1]
  beyond = slots + jnp.arange(present.shape[0], dtype=jnp.int32)[:, None]
  slot = jnp.where(written, (bank.cursor + rank) % capacity, beyond)  # [B,N]
  vectors = jax.lax.stop_gradient(centers.vectors).astype(bank.keys.dtype)
  classes = jnp.arange(num_classes)

  def write(keys: Array, slot: Array, vectors: Array) -> Array:
    return keys.at[classes, slot].set(vectors, mode="drop", unique_indices=True)

  def write_shard(keys: Array, slot: Array, vectors: Array) -> Array:
    # A device writes the slots that it holds; all others get different indices beyond these.
    local = slot - jax.lax.axis_index(bank.axis) * keys.shape[1]
    return write(keys, jnp.where(local >= 0, local, slots + beyond), vectors)

  keys = jnp.asarray(bank.keys)
  if bank.mesh is None:
    keys = write(keys, slot, vectors)
  else:
    by_slot, replicated = PartitionSpec(None, bank.axis), PartitionSpec()
    write_sharded = jax.shard_map(
      write_shard, mesh=bank.mesh, in_specs=(by_slot, replicated, replicated), out_specs=by_slot
    )
    keys = write_sharded(keys, slot, vectors)
  return dataclasses.replace(
    bank,
    keys=keys,
    cursor=(bank.cursor + total) % capacity,
    count=jnp.minimum(bank.count + total, capacity),
  )


def check_shapes(centers: RegionCenters, keys: ArrayLike | None = None) -> None:
  """Raises ``ValueError`` unless centers are ``[B,N,C]`` and ``[B,N]``, with ``N`` and ``C`` of a bank's keys."""
  vectors, present = jnp.shape(centers.vectors), jnp.shape(centers.present)
  if len(vectors) != 3 or present != vectors[:2]:
    raise ValueError(f"centers must have vectors [B,N,C] and present [B,N], got {vectors} and {present}")
  if keys is None:
    return
  shape = jnp.shape(keys)
  if len(shape) != 3 or (shape[0], shape[2]) != vectors[1:]:
    raise ValueError(
      f"centers [B,N,C] and bank keys [N,M,C] must have the same N and C, got {vectors} and {shape}"
    )
