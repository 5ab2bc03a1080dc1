"""RegionContrast on COCO-Stuff 10k, the paper's recipe: DeepLabV3-R101, 60K steps of 16 crops of 520, mIoU 40.7.

  python -m rc_jax.main --config=configs/coco_stuff.py --config.dataset.root=COCOSTUFF \
      --config.model.pretrained=WEIGHTS --workdir=runs/coco_stuff_r101

COCOSTUFF is the folder of ``images/``, ``annotations/`` (``.mat``) and ``imageLists/`` of cocostuff-10k-v1.1.zip.
WEIGHTS is a file of ImageNet weights, see docs/networks.md. The paper's Table 7 reports a mIoU of 40.7 on the 1,000
test images. mmsegmentation reports for DeepLabV3 on ResNet-101, after 40K steps of cross entropy, 37.81 at a single
scale and 38.80 at several. The paper counts "59 + 1" classes, which are PASCAL Context's: COCO-Stuff 10k has 171.
This recipe has not been run to its end yet.

The variant ``164k`` trains on the larger release (118,287 + 5,000 images), for which the paper has no recipe. Its 80K
steps are those of mmsegmentation. Its banks hold the newest 9,000 centers of each class.
"""

from rc_jax.config import Config, defaults

VARIANTS = ("10k", "164k")


def get_config(variant: str = "10k") -> Config:
  """Returns the recipe. Variants: ``10k`` (the paper's) and ``164k``."""
  variant = variant or "10k"
  if variant not in VARIANTS:
    raise ValueError(
      f"configs/coco_stuff.py:{variant}: no such variant; expected one of {', '.join(VARIANTS)}"
    )
  config = defaults()
  config.dataset.name = f"coco_stuff_{variant}"  # 9,000 images to train on, 1,000 to score; 171 classes
  config.eval.split = "test"

  # DeepLabV3 at output stride 8. Multi-grid, rates and stem are the authors' code, see rc_jax/config.py.
  config.model.name = "deeplabv3"
  config.model.backbone = "resnet101"
  config.model.output_stride = 8

  # 60K steps of 16 images; random flip, random resize in [0.5, 2], random crop of 520 x 520.
  config.train.batch_size = 16
  config.train.steps = 60_000
  config.train.crop_size = (520, 520)
  config.augment.flip = 0.5
  config.augment.scale = (0.5, 2.0)

  # SGD with momentum 0.9 and weight decay 1e-4; 0.001 (1 - step / steps)^0.9.
  config.optimizer.learning_rate = 0.001
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
  config.contrast.bank_size = 9_000
  config.contrast.bank_dtype = "bfloat16"  # the paper is silent; it moves the loss by 2e-6

  # Sliding window of the training crop: one program for images of any size.
  config.eval.crop_size = (520, 520)
  # 520 is no multiple of 8, plus 1: full images are stretched as the crops are.
  config.eval.pad_to_grid = False
  config.train.eval_every = 5_000
  config.train.checkpoint_every = 2_000

  if variant == "164k":
    config.eval.split = "val"
    config.train.steps = 80_000
  return config
