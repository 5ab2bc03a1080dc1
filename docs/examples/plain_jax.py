"""RegionContrast in a training loop of plain JAX: ``python docs/examples/plain_jax.py``."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from rc_jax import contrast

CLASSES, CHANNELS, STEPS = 4, 8, 80


def batch_of(step: int) -> tuple[jax.Array, jax.Array]:
  """Returns images [B,H,W,3] of coloured blocks in changing light, and the class of each pixel [B,H,W]."""
  keys = jax.random.split(jax.random.key(step), 3)
  labels = jax.random.randint(keys[0], (8, 4, 4), 0, CLASSES).repeat(4, axis=1).repeat(4, axis=2)
  colours = jnp.array([[1.0, -1, 0], [-1, 1, 0], [1, 1, -2], [-1, -1, 2]])
  light = 2 * jax.random.normal(keys[1], (8, 1, 1, 1))  # of each image
  return colours[labels] + light + 0.2 * jax.random.normal(keys[2], (*labels.shape, 3)), labels


def initial_params(key: jax.Array) -> dict[str, jax.Array]:
  """Returns the parameters of three convolutions."""
  sizes = {"hidden": (3, 3, 3, 16), "features": (1, 1, 16, CHANNELS), "classifier": (1, 1, CHANNELS, CLASSES)}
  initializer = jax.nn.initializers.lecun_normal()
  keys = jax.random.split(key, len(sizes))
  return {name: initializer(k, size) for k, (name, size) in zip(keys, sizes.items(), strict=True)}


def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Computes a convolution of stride 1, channels last."""
  return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def network(params: dict[str, jax.Array], images: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns features [B,h,w,C] and logits [B,h,w,N]; here the feature grid is that of the image."""
  features = conv(jax.nn.relu(conv(images, params["hidden"])), params["features"])
  return features, conv(features, params["classifier"])


def loss_of(params, bank, images, labels):
  """Returns cross entropy + 0.1 * contrast (Eq. 5), the new bank and the statistics of the contrast."""
  features, logits = network(params, images)
  log_probabilities = jax.nn.log_softmax(logits)
  pixel_loss = -jnp.take_along_axis(log_probabilities, labels[..., None], axis=-1).mean()
  centers = contrast.region_centers(features, logits, labels)
  contrast_loss, stats = contrast.region_contrast_loss(centers, bank)  # reads the keys of earlier steps
  return pixel_loss + 0.1 * contrast_loss, (contrast.enqueue(bank, centers), stats)


@jax.jit
def train_step(params, bank, images, labels):
  """One step of SGD. The bank enters and leaves the compiled function as the parameters do."""
  (loss, (bank, stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(params, bank, images, labels)
  params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)
  return params, bank, loss, stats


def train(params: dict[str, jax.Array], steps: int = STEPS) -> Iterator[tuple[float, float, float]]:
  """Yields the loss and the mean similarities of positives and negatives of each step."""
  bank = contrast.MemoryBank.create(num_classes=CLASSES, capacity=64, dim=CHANNELS)
  for step in range(steps):
    params, bank, loss, stats = train_step(params, bank, *batch_of(step))
    yield float(loss), float(stats["positive_similarity"]), float(stats["negative_similarity"])


if __name__ == "__main__":
  for step, (loss, positives, negatives) in enumerate(train(initial_params(jax.random.key(0)))):
    if step % 20 == 1 or step == STEPS - 1:  # step 0 reads an empty bank
      print(f"step {step:2}  loss {loss:.3f}  similarity {positives:+.3f}, of other classes {negatives:+.3f}")
