"""RegionContrast in a training loop of Equinox: ``python docs/examples/equinox_loop.py``."""

from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from rc_jax import contrast

CLASSES, CHANNELS, STEPS = 4, 8, 80


def batch_of(step: int) -> tuple[jax.Array, jax.Array]:
  """Returns images [B,3,H,W] of coloured blocks in changing light, and the class of each pixel [B,H,W]."""
  keys = jax.random.split(jax.random.key(step), 3)
  labels = jax.random.randint(keys[0], (8, 4, 4), 0, CLASSES).repeat(4, axis=1).repeat(4, axis=2)
  colours = jnp.array([[1.0, -1, 0], [-1, 1, 0], [1, 1, -2], [-1, -1, 2]])
  light = 2 * jax.random.normal(keys[1], (8, 1, 1, 1))  # of each image
  images = colours[labels] + light + 0.2 * jax.random.normal(keys[2], (*labels.shape, 3))
  return jnp.moveaxis(images, -1, 1), labels


class Network(eqx.Module):
  """Three convolutions."""

  hidden: eqx.nn.Conv2d
  features: eqx.nn.Conv2d
  classifier: eqx.nn.Conv2d

  def __init__(self, key: jax.Array):
    keys = jax.random.split(key, 3)
    self.hidden = eqx.nn.Conv2d(3, 16, 3, padding="SAME", use_bias=False, key=keys[0])
    self.features = eqx.nn.Conv2d(16, CHANNELS, 1, use_bias=False, key=keys[1])
    self.classifier = eqx.nn.Conv2d(CHANNELS, CLASSES, 1, use_bias=False, key=keys[2])

  def __call__(self, image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns features [C,h,w] and logits [N,h,w] of one image [3,H,W]."""
    features = self.features(jax.nn.relu(self.hidden(image)))
    return features, self.classifier(features)


def loss_of(model, bank, images, labels):
  """Returns cross entropy + 0.1 * contrast (Eq. 5), the new bank and the statistics of the contrast."""
  # [B,C,h,w] -> [B,h,w,C]: the contrast has channels last.
  features, logits = (jnp.moveaxis(array, 1, -1) for array in jax.vmap(model)(images))
  pixel_loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
  centers = contrast.region_centers(features, logits, labels)
  contrast_loss, stats = contrast.region_contrast_loss(centers, bank)  # reads the keys of earlier steps
  return pixel_loss + 0.1 * contrast_loss, (contrast.enqueue(bank, centers), stats)


optimizer = optax.sgd(0.1)


@eqx.filter_jit
def train_step(model, optimizer_state, bank, images, labels):
  """One step of SGD. The bank enters and leaves the compiled function as the optimizer's state does."""
  gradient_of = eqx.filter_value_and_grad(loss_of, has_aux=True)
  (loss, (bank, stats)), gradients = gradient_of(model, bank, images, labels)
  updates, optimizer_state = optimizer.update(gradients, optimizer_state)
  return eqx.apply_updates(model, updates), optimizer_state, bank, loss, stats


def train(model: Network, steps: int = STEPS) -> Iterator[tuple[float, float, float]]:
  """Yields the loss and the mean similarities of positives and negatives of each step."""
  optimizer_state = optimizer.init(eqx.filter(model, eqx.is_array))
  bank = contrast.MemoryBank.create(num_classes=CLASSES, capacity=64, dim=CHANNELS)
  for step in range(steps):
    model, optimizer_state, bank, loss, stats = train_step(model, optimizer_state, bank, *batch_of(step))
    yield float(loss), float(stats["positive_similarity"]), float(stats["negative_similarity"])


if __name__ == "__main__":
  for step, (loss, positives, negatives) in enumerate(train(Network(jax.random.key(0)))):
    if step % 20 == 1 or step == STEPS - 1:  # step 0 reads an empty bank
      print(f"step {step:2}  loss {loss:.3f}  similarity {positives:+.3f}, of other classes {negatives:+.3f}")
