"""The interface between a training loop and a contrastive method, and RegionContrast behind it.

A contrastive method has a bank, which the train state carries from step to step: any pytree of arrays. In each step

1. ``loss`` compares what the batch shows with the bank of the steps before,
2. ``update`` puts what the batch shows into the bank, after the loss, so that no query is among its own keys.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from rc_jax.contrast.image_bank import Bank, ImageMemoryBank, write_images
from rc_jax.contrast.loss import batch_contrast_loss, region_contrast_loss
from rc_jax.contrast.memory_bank import MemoryBank, enqueue
from rc_jax.contrast.region_centers import RegionCenters, region_centers


class Contrast(NamedTuple):
  """The contrastive loss of a batch.

  Attributes:
    loss: float32 scalar.
    stats: float32 without gradient, scalars or ``[N]`` by class, logged as ``contrast_<name>``. NaN in ``[N]`` says
      that the batch has no value for the class.
    keys: what ``update`` puts into the bank: any pytree of arrays. With ``train.microbatches`` above 1 these are
      ``[B,...]``, by image, because the keys of several batches are joined.
  """

  loss: Array
  stats: dict[str, Array]
  keys: Any


class ContrastiveMethod(Protocol):
  """A contrastive loss over the features of a batch, and its bank. All three functions may be traced."""

  def init(self, num_classes: int, dim: int, training_images: int, mesh: Mesh | None, axis: str) -> Any:
    """Returns the bank before the first step; None where the method has none.

    Args:
      num_classes: ``N``.
      dim: ``C``, channels of the features.
      training_images: size of the training set.
      mesh: the devices of the run; None: one device.
      axis: the axis of the mesh over which images are spread, and over which a large bank may be.
    """

  def loss(self, features: Array, logits: Array, labels: Array, bank: Any) -> Contrast:
    """Computes the loss of a batch.

    Args:
      features: ``F [B,h,w,C]``, float32 or bfloat16.
      logits: ``P [B,h,w,N]`` float32, on the same grid.
      labels: ``G [B,h,w]`` int32, on the same grid; 255 is ignored.
      bank: the bank of the steps before.
    """

  def update(self, bank: Any, keys: Any, images: Array | None) -> tuple[Any, dict[str, Array]]:
    """Puts the keys of a batch into the bank; not called where the bank is None.

    Args:
      bank: the bank that the loss has read.
      keys: ``Contrast.keys``.
      images: ``[B]`` int32 in ``0..training_images-1``, the index of each image in the training set; None where the
        batches of the training loop have none.

    Returns:
      The bank of the next step, and metrics to log under their own names: float32 scalars, or ``[N]`` by class.
    """


@dataclasses.dataclass(frozen=True)
class RegionContrast:
  """RegionContrast: region centers (Eq. 3) against banks of the centers of other images (Eq. 4).

  Attributes:
    scope: the keys: ``"bank"``: the memory banks; ``"image"`` or ``"batch"``: the batch's own centers, and no bank.
    centers: the pixel weights of centers, ``method`` of ``region_centers``.
    temperature: ``tau``, positive.
    slots: of a bank: ``"queue"``: first-in first-out; ``"image"``: each belongs to an image of the training set.
    bank_size: ``M``, slots of each class's queue; 0: the size of the training set.
    bank_dtype: dtype of the keys.

  Source: Hu, Cui and Wang, Region-aware Contrastive Learning for Semantic Segmentation (ICCV 2021).
  """

  scope: str = "bank"
  centers: str = "dynamic"
  temperature: float = 0.2
  slots: str = "queue"
  bank_size: int = 0
  bank_dtype: str = "float32"

  def init(
    self, num_classes: int, dim: int, training_images: int, mesh: Mesh | None, axis: str
  ) -> Bank | None:
    """Returns an empty bank whose slots are spread over the mesh; None for the scopes without a bank."""
    if self.scope != "bank":
      return None
    if self.slots == "image":
      return ImageMemoryBank.create(num_classes, training_images, dim, jnp.dtype(self.bank_dtype), mesh, axis)
    capacity = self.bank_size or training_images
    return MemoryBank.create(num_classes, capacity, dim, jnp.dtype(self.bank_dtype), mesh, axis)

  def loss(self, features: Array, logits: Array, labels: Array, bank: Bank | None) -> Contrast:
    """Computes region centers and their loss against the keys of the scope."""
    centers = region_centers(features, logits, labels, method=self.centers)
    if bank is None:
      loss, stats = batch_contrast_loss(centers, scope=self.scope, temperature=self.temperature)
    else:
      loss, stats = region_contrast_loss(centers, bank, temperature=self.temperature)
    return Contrast(loss, stats, centers)

  def update(
    self, bank: Bank, keys: RegionCenters, images: Array | None = None
  ) -> tuple[Bank, dict[str, Array]]:
    """Writes the centers into their queues, or into the slots of their images.

    Returns:
      The bank, and the metrics ``bank_fill [N]``, the share of each class's slots that hold a key, and, of queues,
      ``bank_cursor [N]``, the slot that the class's next key overwrites.

    Raises:
      ValueError: the slots belong to images, and the batch has no indices.
    """
    if isinstance(bank, ImageMemoryBank):
      if images is None:
        raise ValueError(
          "contrast.slots: is 'image', but the batch has no 'index' of its images in the training set; expected "
          "train_batches(..., with_index=True)"
        )
      bank = write_images(bank, keys, images)
      return bank, {"bank_fill": bank.count / jnp.float32(bank.capacity)}
    bank = enqueue(bank, keys)
    fill = bank.count / jnp.float32(bank.capacity)
    return bank, {"bank_fill": fill, "bank_cursor": bank.cursor.astype(jnp.float32)}
