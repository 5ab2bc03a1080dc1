"""How a split was scored: two scores are comparable where this is the same."""

from collections.abc import Mapping
from typing import Any

from rc_jax.config import Config
from rc_jax.inference.windows import read_views


def scoring_protocol(
  config: Config, align_corners: bool, images: int, ema: bool | None = None
) -> dict[str, Any]:
  """Returns the part of ``eval/<split>.json`` that says how the images were scored.

  Args:
    config: reads ``eval``.
    align_corners: ``Network.align_corners``.
    images: number of images of the split.
    ema: whether the weights are a moving average; None: as in the training of ``config``.
  """
  if ema is None:
    ema = bool(config.train.ema_decay) and bool(config.eval.ema)
  views = read_views(config.eval, align_corners)
  return {
    "images": images,
    "ema": ema,
    "scales": list(config.eval.scales),
    "flip": bool(config.eval.flip),
    "pad_to_grid": bool(config.eval.pad_to_grid) and views.window is None,  # windows are not padded
    "crop_size": list(views.window or ()),
    "stride": list(views.stride) if views.window else [],
  }


def step_text(step: int) -> str:
  """Describes weights by the updates behind them, 0 for a file of weights.

  >>> step_text(12000), step_text(0)
  ('step 12,000', 'weights of a file')
  """
  return f"step {step:,}" if step else "weights of a file"


def weights_text(scores: Mapping[str, Any]) -> str:
  """Describes the weights that were scored.

  Args:
    scores: ``step``, the updates behind them, 0 for a file of weights; and of weights that are no step of the run whose
      folder holds the scores, ``checkpoint``: their path.

  >>> weights_text({"step": 12000}), weights_text({"step": 0, "checkpoint": "/net.pth"})
  ('step 12,000', '/net.pth')
  >>> weights_text({"step": 12000, "checkpoint": "/runs/other/checkpoints/12000"})
  'step 12,000 of /runs/other/checkpoints/12000'
  """
  step, checkpoint = scores["step"], scores.get("checkpoint", "")
  if not checkpoint:
    return step_text(step)
  return f"{step_text(step)} of {checkpoint}" if step else checkpoint


def protocol_text(scores: Mapping[str, Any]) -> str:
  """Describes how a split was scored, in one form for all readers: equal texts, equal protocols.

  Args:
    scores: of ``scoring_protocol`` or of ``eval/<split>.json``, also of an earlier version, which records less.

  >>> protocol_text(
  ...   {"images": 60, "scales": [1.0], "flip": False, "pad_to_grid": True, "crop_size": [], "stride": []}
  ... )
  '60 images, scales 1, no flip, full images padded to the grid'
  >>> protocol_text(
  ...   {"images": 60, "scales": [0.5, 1.0], "flip": True, "crop_size": [769, 769], "stride": [513, 513]}
  ... )
  '60 images, scales 0.5 1, flip, windows of 769 x 769 every 513 x 513'
  >>> protocol_text(
  ...   {"images": 60, "ema": True, "scales": [1.0], "flip": False, "pad_to_grid": False, "crop_size": []}
  ... )
  '60 images, scales 1, no flip, full images without padding, moving average of the weights'
  """
  unknown = "not recorded"
  images = f"{scores['images']} images" if "images" in scores else f"images {unknown}"
  scales = " ".join(f"{scale:g}" for scale in scores["scales"]) if "scales" in scores else unknown
  flip = ("flip" if scores["flip"] else "no flip") if "flip" in scores else f"flip {unknown}"
  if "crop_size" not in scores:
    views = f"windows {unknown}"
  elif scores["crop_size"]:
    window, stride = (" x ".join(map(str, scores[name])) for name in ("crop_size", "stride"))
    views = f"windows of {window} every {stride}"
  elif "pad_to_grid" not in scores:
    views = f"full images, padding {unknown}"
  else:
    views = "full images " + ("padded to the grid" if scores["pad_to_grid"] else "without padding")
  # Only what is an average says so: earlier versions had none, and record nothing.
  average = ", moving average of the weights" if scores.get("ema") else ""
  return f"{images}, scales {scales}, {flip}, {views}{average}"
