"""Memory banks with a slot for each training image: each key is replaced when its image is drawn again."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike, DTypeLike

from rc_jax.contrast.memory_bank import (
  MemoryBank,
  channel_sharding,
  check_shapes,
  check_sizes,
  described_array,
  padding_of,
  zeros,
)
from rc_jax.contrast.region_centers import RegionCenters


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ImageMemoryBank:
  """One key for each class in each training image: slot ``k`` of every class belongs to image ``k``.

  A slot is empty until its image is drawn, and again where the image's latest crop does not show the class. Each key
  is thus replaced in the next epoch.

  Attributes:
    keys: ``[N,M,C]``, float; zero where a slot is empty.
    valid: ``[N,M]`` bool; the slots that hold a key.
    padding: slots at the end that are never written, so that the devices divide the slots; keys are then
      ``[N,M+padding,C]``, and ``valid`` likewise.
    mesh: the devices over which the slots are spread; None: each device that computes holds all of them.
    axis: the axis of the mesh over which the slots are spread.

  Source: RegionContrast, section 3.2.3: the keys of an image "get updated in the next training epoch".
  """

  keys: Array
  valid: Array
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
  ) -> "ImageMemoryBank":
    """Returns an empty bank.

    Args:
      num_classes: ``N``.
      capacity: ``M``, the number of training images.
      dim: ``C``, length of a key.
      dtype: of the keys; bfloat16 halves the memory.
      mesh: spreads the slots over the devices along ``axis``; None: no mesh.
      axis: a name of the mesh's axes.

    Raises:
      ValueError: a size is not positive, the dtype is not floating, or the mesh has no such axis.
    """
    check_sizes(num_classes, capacity, dim, dtype)
    padding = padding_of(capacity, mesh, axis)
    shape, spec = (num_classes, capacity + padding), PartitionSpec(None, axis)
    return cls(
      keys=zeros((*shape, dim), dtype, mesh, spec),
      valid=zeros(shape, bool, mesh, spec),
      padding=padding,
      mesh=mesh,
      axis=axis,
    )

  @property
  def capacity(self) -> int:
    """``M``, the number of images that have a slot."""
    return self.keys.shape[1] - self.padding

  @property
  def count(self) -> Array:
    """``[N]`` int32 in ``0..M``: the number of keys of each class."""
    return self.valid.sum(axis=1, dtype=jnp.int32)

  def shardings(self) -> "ImageMemoryBank":
    """Returns the sharding of each array, in the same tree: both along their slots.

    The arrays themselves may be shapes; without a mesh, they must be arrays.
    """
    if self.mesh is None:
      return jax.tree.map(lambda leaf: leaf.sharding, self)
    slots: Any = NamedSharding(self.mesh, PartitionSpec(None, self.axis))
    return dataclasses.replace(self, keys=slots, valid=slots)

  def as_saved(self, shapes: Mapping[str, tuple[int, ...]]) -> "ImageMemoryBank":
    """Describes this bank as a checkpoint holds it: with another capacity, or the padding of other devices.

    Args:
      shapes: ``keys`` and ``valid`` -> the shape of the checkpoint's array.

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
    of_keys, of_valid = keys.sharding, described.valid.sharding
    if self.mesh is not None:
      of_keys = channel_sharding(keys, self.mesh, self.axis)
      of_valid = NamedSharding(self.mesh, PartitionSpec())
    return dataclasses.replace(
      described,
      keys=jax.ShapeDtypeStruct(shape, keys.dtype, sharding=of_keys),
      valid=jax.ShapeDtypeStruct(shape[:2], bool, sharding=of_valid),
    )

  def refit(self, saved: "ImageMemoryBank") -> "ImageMemoryBank":
    """Returns the keys of ``saved`` with the capacity, the padding and the shardings of this bank.

    Slot ``k`` stays slot ``k``. Whether it still belongs to the same image, the caller knows.

    Args:
      saved: a bank of the same classes and dimension, whose keys are ``[N,any capacity and padding,C]``.
    """
    if saved.keys.shape == self.keys.shape:
      return dataclasses.replace(self, keys=saved.keys, valid=saved.valid)
    slots = self.keys.shape[1]

    def refit(array: Array) -> Array:  # [N,other slots,...] -> [N,slots,...]
      used = array[:, : self.capacity]
      return jnp.pad(used, ((0, 0), (0, slots - used.shape[1]), *((0, 0) for _ in used.shape[2:])))

    def resized(array: Array, like: Array) -> Array:
      moved: Array = jax.jit(refit, out_shardings=like.sharding)(array)
      return moved

    return dataclasses.replace(
      self, keys=resized(saved.keys, self.keys), valid=resized(saved.valid, self.valid)
    )


# What the loss reads.
Bank = MemoryBank | ImageMemoryBank


def write_images(bank: ImageMemoryBank, centers: RegionCenters, images: ArrayLike) -> ImageMemoryBank:
  """Writes the region centers of a batch into the slots of their images.

  For image 0, then 1, ... then B-1 with the index ``k``, and each class ``n``: ``keys[n, k] = center`` where the class
  is present; otherwise the slot becomes empty.

  Args:
    bank: keys ``[N,M,C]``, valid ``[N,M]``.
    centers: vectors ``[B,N,C]`` of unit length, present ``[B,N]``. They are written without gradient, rounded to the
      bank's dtype.
    images: ``[B]``, integer in ``0..M-1``: the index of each image in the training set. Centers of other indices are
      not written. Where an index stands twice, the later image counts.

  Returns:
    The new bank. It does not depend on how the batch was spread over devices.

  Raises:
    ValueError: the centers' classes or dimension are not the bank's, or the indices are not integers ``[B]``.

  Source: RegionContrast, section 3.2.3.
  """
  check_shapes(centers, bank.keys)
  images = jnp.asarray(images)
  batch = jnp.shape(centers.present)[0]
  if images.shape != (batch,) or not jnp.issubdtype(images.dtype, jnp.integer):
    raise ValueError(f"images must be integers [B] = [{batch}], got {images.dtype} {list(images.shape)}")
  order = jnp.arange(batch, dtype=jnp.int32)
  again = ((images[None, :] == images[:, None]) & (order[None, :] > order[:, None])).any(axis=1)  # [B]
  written = ~again & (images >= 0) & (images < bank.capacity)
  present = jnp.asarray(centers.present, bool).T  # [N,B]
  vectors = jax.lax.stop_gradient(jnp.swapaxes(jnp.asarray(centers.vectors), 0, 1))  # [N,B,C]
  # What an absent row holds must not enter: the loss relies on zeros in empty slots.
  vectors = jnp.where(present[..., None], vectors, 0).astype(bank.keys.dtype)

  # Another index beyond all slots for each image that is not written, because `unique_indices` promises so.
  slot = jnp.where(written, images.astype(jnp.int32), bank.keys.shape[1] + order)

  def write(keys: Array, valid: Array, slot: Array, vectors: Array, present: Array) -> tuple[Array, Array]:
    def set_slots(array: Array, values: Array) -> Array:
      return array.at[:, slot].set(values, mode="drop", unique_indices=True)

    return set_slots(keys, vectors), set_slots(valid, present)

  def write_shard(
    keys: Array, valid: Array, slot: Array, vectors: Array, present: Array
  ) -> tuple[Array, Array]:
    # A device writes the slots that it holds.
    slots = keys.shape[1]
    local = slot - jax.lax.axis_index(bank.axis) * slots
    local = jnp.where((local >= 0) & (local < slots), local, slots + order)
    return write(keys, valid, local, vectors, present)

  arguments = (jnp.asarray(bank.keys), jnp.asarray(bank.valid), slot, vectors, present)
  if bank.mesh is None:
    keys, valid = write(*arguments)
  else:
    by_slot, replicated = PartitionSpec(None, bank.axis), PartitionSpec()
    write_sharded = jax.shard_map(
      write_shard,
      mesh=bank.mesh,
      in_specs=(by_slot, by_slot, replicated, replicated, replicated),
      out_specs=(by_slot, by_slot),
    )
    keys, valid = write_sharded(*arguments)
  return dataclasses.replace(bank, keys=keys, valid=valid)
