"""RegionContrast in a training loop of Flax NNX: ``python docs/examples/flax_nnx_loop.py``."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from rc_jax import contrast

CLASSES, CHANNELS, STEPS = 4, 8, 80


def batch_of(step: int) -> tuple[jax.Array, jax.Array]:
  """Returns images [B,H,W,3] of coloured blocks in changing light, and the class of each pixel [B,H,W]."""
  keys = jax.random.split(jax.random.key(step), 3)
  labels = jax.random.randint(keys[0], (8, 4, 4), 0, CLASSES).repeat(4, axis=1).repeat(4, axis=2)
  colours = jnp.array([[1.0, -1, 0], [-1, 1, 0], [1, 1, -2], [-1, -1, 2]])
  light = 2 * jax.random.normal(keys[1], (8, 1, 1, 1))  # of each image
  return colours[labels] + light + 0.2 * jax.random.normal(keys[2], (*labels.shape, 3)), labels


class Network(nnx.Module):
  """Three convolutions."""

  def __init__(self, rngs: nnx.Rngs):
    self.hidden = nnx.Conv(3, 16, (3, 3), use_bias=False, rngs=rngs)
    self.features = nnx.Conv(16, CHANNELS, (1, 1), use_bias=False, rngs=rngs)
    self.classifier = nnx.Conv(CHANNELS, CLASSES, (1, 1), use_bias=False, rngs=rngs)

  def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns features [B,h,w,C] and logits [B,h,w,N]; here the feature grid is that of the image."""
    features = self.features(nnx.relu(self.hidden(images)))
    return features, self.classifier(features)


def loss_of(model, bank, images, labels):
  """Returns cross entropy + 0.1 * contrast (Eq. 5), the new bank and the statistics of the contrast."""
  features, logits = model(images)
  pixel_loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
  centers = contrast.region_centers(features, logits, labels)
  contrast_loss, stats = contrast.region_contrast_loss(centers, bank)  # reads the keys of earlier steps
  return pixel_loss + 0.1 * contrast_loss, (contrast.enqueue(bank, centers), stats)


@nnx.jit
def train_step(model, optimizer, bank, images, labels):
  """One step of SGD. Modules change in place; the bank, a pytree, enters and leaves the compiled function."""
  gradient_of = nnx.value_and_grad(loss_of, has_aux=True)
  (loss, (bank, stats)), gradients = gradient_of(model, bank, images, labels)
  optimizer.update(model, gradients)
  return bank, loss, stats


def train(model: Network, steps: int = STEPS) -> Iterator[tuple[float, float, float]]:
  """Yields the loss and the mean similarities of positives and negatives of each step."""
  optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
  bank = contrast.MemoryBank.create(num_classes=CLASSES, capacity=64, dim=CHANNELS)
  for step in range(steps):
    bank, loss, stats = train_step(model, optimizer, bank, *batch_of(step))
    yield float(loss), float(stats["positive_similarity"]), float(stats["negative_similarity"])


if __name__ == "__main__":
  for step, (loss, positives, negatives) in enumerate(train(Network(nnx.Rngs(0)))):
    if step % 20 == 1 or step == STEPS - 1:  # step 0 reads an empty bank
      print(f"step {step:2}  loss {loss:.3f}  similarity {positives:+.3f}, of other classes {negatives:+.3f}")
