"""A small network learns drawn street scenes, without data files: minutes on two CPU cores.

  python -m rc_jax.main --config=configs/demo.py

The method is the paper's RegionContrast: dynamic region centers, banks of the size of the training set, temperature
0.2, weight 0.1. The ResNet has 16 to 128 channels instead of 64 to 2048. Expect mIoU 70 on val and every class above
35 (measured: 70.5, person 39) after 74 seconds on two cores of an AMD EPYC, see docs/results.md.
"""

from rc_jax.config import Config, defaults


def get_config(variant: str = "") -> Config:
  """Returns the recipe; variants: ``""`` (RegionContrast), ``baseline`` (cross entropy alone)."""
  config = defaults()
  config.dataset.name = "synthetic"

  config.model.backbone = "resnet_tiny"
  config.model.stem = "7x7"
  config.model.output_stride = 8
  config.model.multi_grid = (1, 1)
  config.model.aspp_rates = (2, 4, 6)  # an image of 129 x 193 has 17 x 25 features
  config.model.ceil_pool = False
  config.model.channels = 64
  config.model.aux_channels = 64
  config.model.dtype = "float32"  # CPUs compute it faster than bfloat16

  # A small batch: in minutes, twice as many steps are worth more than twice as many images in each.
  config.train.batch_size = 4
  config.train.steps = 1_000
  config.train.crop_size = (113, 161)
  config.train.eval_every = 250
  config.train.checkpoint_every = 250

  config.augment.scale = (0.9, 1.3)  # a crop then has no padding, and objects stay about as large as in val

  config.optimizer.learning_rate = 0.2
  config.optimizer.head_multiplier = 1.0  # nothing is pretrained, so the backbone needs no lower rate

  if variant == "baseline":
    config.contrast.scope = "none"
  elif variant:
    raise ValueError(f"configs/demo.py:{variant}: no such variant; expected nothing or baseline")
  return config
