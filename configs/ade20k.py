"""RegionContrast on ADE20K, the paper's recipe: DeepLabV3 on ResNet-101, 150K steps of 16 crops of 480, mIoU 46.85.

  python -m rc_jax.main --config=configs/ade20k.py --config.dataset.root=ADEChallengeData2016 \
      --config.model.pretrained=WEIGHTS --workdir=runs/ade20k_r101

The root is the folder of ``images/`` and ``annotations/`` in ADEChallengeData2016.zip. WEIGHTS is a file of ImageNet
weights, see docs/networks.md. The paper's Table 6 reports a mIoU of 46.85 on val. mmsegmentation reports for
DeepLabV3 on ResNet-101, after 160K steps of cross entropy, 45.00 at a single scale and 46.66 at several. This recipe
has not been run to its end yet.

Banks of 150 classes x 20,210 images x 256 channels are 1.55 GB in bfloat16, spread over the devices of the run.
"""

from rc_jax.config import Config, defaults

VARIANTS = ("resnet101", "resnet50", "hrnetv2_w48")


def get_config(variant: str = "resnet101") -> Config:
  """Returns the recipe. Variants: ``resnet101`` (the paper's), ``resnet50`` and ``hrnetv2_w48``."""
  variant = variant or "resnet101"
  if variant not in VARIANTS:
    raise ValueError(f"configs/ade20k.py:{variant}: no such variant; expected one of {', '.join(VARIANTS)}")
  config = defaults()
  config.dataset.name = "ade20k"  # 20,210 images to train on, 2,000 to score; 150 classes

  # DeepLabV3 at output stride 8. Multi-grid, rates and stem are the authors' code, see rc_jax/config.py.
  config.model.name = "deeplabv3"
  config.model.backbone = variant
  config.model.output_stride = 8

  # 150K steps of 16 images; random flip, random resize in [0.5, 2], random crop of 480 x 480.
  config.train.batch_size = 16
  config.train.steps = 150_000
  config.train.crop_size = (480, 480)
  config.augment.flip = 0.5
  config.augment.scale = (0.5, 2.0)

  # SGD with momentum 0.9 and weight decay 1e-4; 0.004 (1 - step / steps)^0.9.
  config.optimizer.learning_rate = 0.004
  config.optimizer.momentum = 0.9
  config.optimizer.weight_decay = 1e-4
  config.optimizer.power = 0.9

  # L = L_pixel + 0.4 L_aux + 0.1 L_RC (Eq. 5).
  config.loss.pixel = "ce"
  config.loss.aux_weight = 0.4
  config.loss.contrast_weight = 0.1

  # Inter-image contrast over one center a class and training image, centers of weighted EP + HP (Eq. 3).
  config.contrast.scope = "bank"
  config.contrast.centers = "dynamic"
  config.contrast.bank_size = 20_210
  config.contrast.bank_dtype = "bfloat16"  # the paper is silent; it moves the loss by 2e-6

  # Sliding window of the training crop: one program for images of any size.
  config.eval.crop_size = (480, 480)
  # 480 is no multiple of 8, plus 1: full images are stretched as the crops are.
  config.eval.pad_to_grid = False
  config.train.eval_every = 10_000
  config.train.checkpoint_every = 2_000

  if variant == "hrnetv2_w48":
    config.model.name = "fcn"
    config.model.output_stride = 4
    config.model.channels = 720
    config.model.fcn_kernel_size = 1
    config.model.embedding_channels = 256
  return config
