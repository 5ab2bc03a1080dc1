"""RegionContrast on Cityscapes, the paper's recipe: DeepLabV3, 30K steps of 8 crops of 769, mIoU 79.6 (R50).

  python -m rc_jax.main --config=configs/cityscapes.py --config.dataset.root=CITYSCAPES \
      --config.model.pretrained=WEIGHTS --workdir=runs/cityscapes_r50

CITYSCAPES is the folder of ``leftImg8bit/`` and ``gtFine/`` as downloaded. WEIGHTS is a file of ImageNet weights, see
docs/networks.md. The paper's ResNets have the deep stem; for torchvision's weights add ``--config.model.stem=7x7
--config.model.ceil_pool=False``.

mIoU on val that the paper reports (its Tables 1 and 4), single scale:

  | variant                       | backbone    | cross entropy | RegionContrast |
  | ``cityscapes.py``             | ResNet-50   | 76.4          | 79.6           |
  | ``cityscapes.py:resnet101``   | ResNet-101  | 79.0          | 81.3           |
  | ``cityscapes.py:hrnetv2_w48`` | HRNetV2-W48 | 80.4          | 81.9           |

On the test server, the paper reports 82.3 for ``cityscapes.py:resnet101_test`` (train + val, OHEM, multi-scale + flip).

``cityscapes.py:tpu`` is the ResNet-50 with crops of 768. A TPU computes grids of 96 x 96 faster than the paper's 97 x
97 (docs/tpu.md); no score is known for it.

This recipe has not been run to its end yet: the table is the paper's. Any number of devices that divides 8 computes
the same. docs/accelerators.md lists the memory that each TPU or GPU needs, and docs/gpu.md measured steps.
"""

from rc_jax.config import Config, defaults

VARIANTS = ("resnet50", "resnet101", "hrnetv2_w48", "resnet101_test", "tpu")


def get_config(variant: str = "resnet50") -> Config:
  """Returns the recipe.

  Variants: ``resnet50``, ``resnet101``, ``hrnetv2_w48``; ``resnet101_test``, the paper's for the test server; and
  ``tpu``, a ResNet-50 with crops of 768.
  """
  variant = variant or "resnet50"
  if variant not in VARIANTS:
    raise ValueError(
      f"configs/cityscapes.py:{variant}: no such variant; expected one of {', '.join(VARIANTS)}"
    )
  config = defaults()
  config.dataset.name = "cityscapes"  # 2975 images to train on, 500 to score; 19 classes

  # DeepLabV3 at output stride 8. Multi-grid, rates and stem are the authors' code, see rc_jax/config.py.
  config.model.name = "deeplabv3"
  config.model.backbone = "resnet50" if variant == "tpu" else variant.removesuffix("_test")
  config.model.output_stride = 8

  # 30K steps of 8 images; random flip, random resize in [0.5, 2], random crop of 769 x 769.
  config.train.batch_size = 8
  config.train.steps = 30_000
  config.train.crop_size = (769, 769)
  config.augment.flip = 0.5
  config.augment.scale = (0.5, 2.0)

  # SGD with momentum 0.9 and weight decay 5e-4; 0.01 (1 - step / steps)^0.9.
  config.optimizer.learning_rate = 0.01
  config.optimizer.momentum = 0.9
  config.optimizer.weight_decay = 5e-4
  config.optimizer.power = 0.9

  # L = L_pixel + 0.4 L_aux + 0.1 L_RC (Eq. 5).
  config.loss.pixel = "ce"
  config.loss.aux_weight = 0.4
  config.loss.contrast_weight = 0.1

  # Inter-image contrast over one center a class and training image, centers of weighted EP + HP (Eq. 3).
  config.contrast.scope = "bank"
  config.contrast.centers = "dynamic"
  config.contrast.bank_size = 2975

  # Sliding window of the training crop; the stride is two thirds of it.
  config.eval.crop_size = (769, 769)
  config.train.eval_every = 2_000
  config.train.checkpoint_every = 1_000

  if variant == "hrnetv2_w48":
    # All four resolutions side by side, a 1x1 over them, a classifier. The contrast reads a linear projection.
    config.model.name = "fcn"
    config.model.output_stride = 4
    config.model.channels = 720
    config.model.fcn_kernel_size = 1
    config.model.embedding_channels = 256

  if variant == "tpu":
    # Grids of 96 x 96 fill a TPU's registers; the last of 97 columns takes as long as eight.
    config.train.crop_size = (768, 768)
    config.eval.crop_size = (768, 768)

  if variant == "resnet101_test":
    # Table 5: train + val, OHEM with threshold 0.7 and 100,000 pixels kept, several scales and mirror images.
    config.dataset.train_split = "trainval"
    config.contrast.bank_size = 0  # as many as training images, 3475
    config.loss.pixel = "ohem"
    config.loss.ohem_threshold = 0.7
    config.loss.ohem_min_kept = 100_000
    config.eval.scales = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    config.eval.flip = True
    config.train.eval_every = 0  # val is trained on: its score says nothing
  return config
