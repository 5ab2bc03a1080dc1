"""Prints the memory of banks of region centers beside that of banks of pixels, for the paper's data sets.

  python -m benchmarks.bank_memory

Nothing is allocated. Banks of region centers hold ``M x N x C`` numbers, for ``M`` training images, ``N`` classes and
``C`` channels. Banks of pixels hold every cell of the feature grid of every image, ``M x h x w x C``, or ``SAMPLED``
cells of each class in each image, ``SAMPLED x M x N x C``. Sizes are those of the recipes, keys are float32.
"""

from rc_jax import data
from rc_jax.config import height_width, load_recipe

RECIPES = {"Cityscapes": "cityscapes", "ADE20K": "ade20k", "COCO-Stuff": "coco_stuff"}
SAMPLED = 10
BYTES = 4  # of float32

HEADER = (
  "data set",
  "images x classes",
  "grid",
  "region centers",
  f"{SAMPLED} pixels of each class",
  "all pixels",
  "all pixels / centers",
)


def row(name: str, recipe: str) -> tuple[str, ...]:
  """Returns the cells of a data set's line."""
  config = load_recipe(f"configs/{recipe}.py")
  images, classes = config.contrast.bank_size, data.info(config.dataset.name, "").num_classes
  height, width = (-(-side // config.model.output_stride) for side in height_width(config.train.crop_size))
  key = BYTES * (config.model.embedding_channels or config.model.channels)
  centers, pixels = images * classes * key, images * height * width * key
  return (
    name,
    f"{images:,} x {classes}",
    f"{height} x {width}",
    gigabytes(centers),
    gigabytes(SAMPLED * centers),
    gigabytes(pixels),
    f"{pixels / centers:.0f}",
  )


def gigabytes(size: float) -> str:
  """Returns a number of bytes in GB, with three digits."""
  return f"{size / 1e9:.3g} GB"


def table() -> str:
  """Returns the table in Markdown."""
  rows = [HEADER, ("---",) * len(HEADER), *(row(*each) for each in RECIPES.items())]
  return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


if __name__ == "__main__":
  print(table())
