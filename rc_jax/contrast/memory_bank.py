"""Memory banks: the latest region centers of every class, as keys for the contrastive loss."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jax.typing import DTypeLike

from rc_jax.contrast.region_centers import RegionCenters

# Banks on a mesh have a multiple of so many slots a class.
SLOT_MULTIPLE = 256


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MemoryBank:
  """One circular, first-in first-out queue of keys for each class.

  Attributes:
    keys: ``[N,M,C]``, float; class ``n``'s keys lie in slots ``0..count[n]-1``.
    cursor: ``[N]`` int32 in ``0..M-1``; the slot that the class's next key overwrites.
    count: ``[N]`` int32 in ``0..M``; how many of the class's slots have ever been written.
    padding: slots at the end of ``keys`` that are never written, so that devices divide its slots; ``keys`` is then
      ``[N,M+padding,C]``.
    mesh: the devices over which the slots are spread; None: every device that computes holds all of them.
    axis: the axis of the mesh that they are spread over.
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
    """An empty bank.

    Args:
      num_classes: ``N``.
      capacity: ``M``, slots for each class; the paper's choice is the number of training images.
      dim: ``C``, length of a key.
      dtype: of the keys; bfloat16 halves the memory.
      mesh: spreads the slots over the devices along ``axis``; None: no mesh.
      axis: a name of the mesh's axes.

    Raises:
      ValueError: when a size is not positive, the dtype is not floating or the mesh has no such axis.
    """
    for name, size in (("num_classes", num_classes), ("capacity", capacity), ("dim", dim)):
      if size < 1:
        raise ValueError(f"{name} of a memory bank must be at least 1, got {size}")
    if not jnp.issubdtype(dtype, jnp.floating):
      raise ValueError(f"dtype of a memory bank must be floating, got {jnp.dtype(dtype).name}; try bfloat16")
    if mesh is None:
      padding = 0
    elif axis not in mesh.shape:
      raise ValueError(f"axis: the mesh has no {axis!r}; its axes are {', '.join(map(repr, mesh.shape))}")
    else:
      # The same on 1, 2, 4, ... 256 devices, so that a checkpoint of one number fits another.
      padding = -capacity % math.lcm(mesh.shape[axis], SLOT_MULTIPLE)

    def zeros(shape: tuple[int, ...], dtype: DTypeLike, spec: PartitionSpec) -> Array:
      if mesh is None:
        return jnp.zeros(shape, dtype)
      # Allocated shard by shard: one device may not hold the array.
      return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=NamedSharding(mesh, spec))()

    return cls(
      keys=zeros((num_classes, capacity + padding, dim), dtype, PartitionSpec(None, axis)),
      cursor=zeros((num_classes,), jnp.int32, PartitionSpec()),
      count=zeros((num_classes,), jnp.int32, PartitionSpec()),
      padding=padding,
      mesh=mesh,
      axis=axis,
    )

  @property
  def capacity(self) -> int:
    """``M``, the keys that a class can hold."""
    return self.keys.shape[1] - self.padding

  @property
  def valid(self) -> Array:
    """``[N,M]`` bool (with padding, ``[N,M+padding]``): the slots that have been written, the only ones ever read."""
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
    """Describes this bank as a checkpoint holds it: a bank of another number of devices has another padding.

    Args:
      shapes: ``keys``, ``cursor`` and ``count`` -> the shape of the checkpoint's array.

    Returns:
      A ``ShapeDtypeStruct`` with a sharding in the place of each array, for a reader of checkpoints. Where the
      checkpoint's bank has another capacity, classes or dimension, the shapes are this bank's own, so that the reader
      reports the difference.
    """

    def struct(leaf: Array, sharding: Sharding) -> jax.ShapeDtypeStruct:
      return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    described = jax.tree.map(struct, self, self.shardings())
    keys, shape = described.keys, shapes.get("keys")
    if shape in (None, keys.shape) or shape[1] < self.capacity or shape[::2] != keys.shape[::2]:
      return described
    sharding = keys.sharding
    if self.mesh is not None:
      # Other slots may not divide among these devices. One device may not hold all keys: spread their channels.
      divides = keys.shape[2] % self.mesh.shape[self.axis] == 0
      spec = PartitionSpec(None, None, self.axis) if divides else PartitionSpec()
      sharding = NamedSharding(self.mesh, spec)
    return dataclasses.replace(described, keys=jax.ShapeDtypeStruct(shape, keys.dtype, sharding=sharding))

  def refit(self, saved: "MemoryBank") -> "MemoryBank":
    """Returns the keys, cursor and count of ``saved`` with the padding and the shardings of this bank.

    Args:
      saved: a bank of the same classes, capacity and dimension, whose keys are ``[N,M+any padding,C]``.
    """
    keys = saved.keys
    if keys.shape != self.keys.shape:

      def repad(keys: Array) -> Array:
        return jnp.pad(keys[:, : self.capacity], ((0, 0), (0, self.padding), (0, 0)))

      keys = jax.jit(repad, out_shardings=self.keys.sharding)(keys)
    return dataclasses.replace(self, keys=keys, cursor=saved.cursor, count=saved.count)


def enqueue(bank: MemoryBank, centers: RegionCenters) -> MemoryBank:
  """Puts the region centers of a batch into their classes' banks, oldest out first.

  Args:
    bank: keys ``[N,M,C]``, cursor ``[N]``, count ``[N]``.
    centers: vectors ``[B,N,C]`` of unit length, present ``[B,N]``; absent centers enter nowhere. They enter
      detached, rounded to the bank's dtype.

  Returns:
    The bank after image 0, then 1, ... then B-1 have entered, so that the result does not depend on how the
    batch was spread over devices. Where one batch holds more than ``M`` centers of a class, the last ``M``
    stay.

  Raises:
    ValueError: when the centers' classes or dimension are not the bank's.

  Source: RegionContrast, section 3.2.3.
  """
  check_belong(centers, bank)
  num_classes, capacity = bank.keys.shape[0], bank.capacity
  present = jnp.asarray(centers.present, jnp.int32)  # [B,N]
  rank = jnp.cumsum(present, axis=0, dtype=jnp.int32) - present  # [B,N]: how many of the class come before
  total = present.sum(axis=0, dtype=jnp.int32)  # [N]

  # Of two centers that would share a slot only the later is written, so that no slot is written twice and the
  # order in which the hardware scatters cannot matter. The others aim beyond all slots, where they are
  # dropped, each at an index of its own to keep the promise of unique indices.
  written = (present > 0) & (rank >= total - capacity)
  slots = bank.keys.shape[1]
  beyond = slots + jnp.arange(present.shape[0], dtype=jnp.int32)[:, None]
  slot = jnp.where(written, (bank.cursor + rank) % capacity, beyond)  # [B,N]
  vectors = jax.lax.stop_gradient(centers.vectors).astype(bank.keys.dtype)
  classes = jnp.arange(num_classes)

  def write(keys: Array, slot: Array, vectors: Array) -> Array:
    return keys.at[classes, slot].set(vectors, mode="drop", unique_indices=True)

  def write_own(keys: Array, slot: Array, vectors: Array) -> Array:
    # A device writes the slots that it holds; the others lie beyond its own, each still at an index of its own.
    mine = slot - jax.lax.axis_index(bank.axis) * keys.shape[1]
    return write(keys, jnp.where(mine >= 0, mine, slots + beyond), vectors)

  keys = jnp.asarray(bank.keys)
  if bank.mesh is None:
    keys = write(keys, slot, vectors)
  else:
    own, whole = PartitionSpec(None, bank.axis), PartitionSpec()
    keys = jax.shard_map(write_own, mesh=bank.mesh, in_specs=(own, whole, whole), out_specs=own)(
      keys, slot, vectors
    )
  return dataclasses.replace(
    bank,
    keys=keys,
    cursor=(bank.cursor + total) % capacity,
    count=jnp.minimum(bank.count + total, capacity),
  )


def check_belong(centers: RegionCenters, bank: MemoryBank | None = None) -> None:
  """Raises a ``ValueError`` unless the centers are ``[B,N,C]`` and ``[B,N]`` and fit the bank."""
  vectors, present = jnp.shape(centers.vectors), jnp.shape(centers.present)
  if len(vectors) != 3 or present != vectors[:2]:
    raise ValueError(f"centers must have vectors [B,N,C] and present [B,N], got {vectors} and {present}")
  if bank is None:
    return
  keys = jnp.shape(bank.keys)
  if len(keys) != 3 or (keys[0], keys[2]) != vectors[1:]:
    raise ValueError(
      f"centers [B,N,C] and bank keys [N,M,C] must have the same N and C, got {vectors} and {keys}"
    )
