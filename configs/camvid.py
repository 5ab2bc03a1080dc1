"""RegionContrast on CamVid (367 + 101 street frames of 480 x 360, 11 classes).

  python -m rc_jax.main --config=configs/camvid.py --config.dataset.root=CAMVID \
      --config.model.pretrained=resnet50-0676ba61.pth --config.model.stride_on=3x3

CAMVID is a folder of ``images/{train,val}`` and ``labels/{train,val}`` (PNGs of 0..10, 11 = void). The weights above
are torchvision's. The paper has no recipe for CamVid, and no score of this one is known.

The variant ``camvid.py:cpu`` is the same method at a size that two CPU cores train in 16 minutes: mIoU 62.8 on val
with the ImageNet weights of Keras's ResNet-50 under torchvision's key names, see docs/results.md.
"""

from rc_jax.config import Config, defaults


def get_config(variant: str = "") -> Config:
  """Returns the recipe; variants: ``""`` (one accelerator), ``cpu`` (reduced crop, batch and steps)."""
  config = defaults()
  config.dataset.name = "camvid"

  config.model.backbone = "resnet50"
  config.model.stem = "7x7"  # of torchvision's and Keras's weights, as the pooling
  config.model.ceil_pool = False
  config.model.stride_on = "1x1"  # of Keras's weights; torchvision's need "3x3"
  config.model.output_stride = 8

  config.train.batch_size = 8
  config.train.steps = 6_000  # about 130 epochs
  config.train.crop_size = (361, 361)
  config.train.eval_every = 1_000

  config.optimizer.learning_rate = 0.01
  config.optimizer.momentum = 0.9
  config.optimizer.weight_decay = 5e-4
  config.optimizer.power = 0.9

  if variant == "cpu":
    config.model.dtype = "float32"  # CPUs compute it faster than bfloat16
    config.model.output_stride = 16
    config.model.multi_grid = (1, 1, 1)
    config.model.aspp_rates = (6, 12, 18)  # half the paper's, at twice its stride
    config.train.batch_size = 4
    config.train.steps = 800
    config.train.crop_size = (241, 241)
    config.train.eval_every = 0
    config.train.checkpoint_every = 200
    config.augment.scale = (0.75, 1.5)
  elif variant:
    raise ValueError(f"configs/camvid.py:{variant}: no such variant; expected nothing or cpu")
  return config
