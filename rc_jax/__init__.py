"""RegionContrast (Hu, Cui and Wang, ICCV 2021) in JAX: region-aware contrastive learning for semantic segmentation.

``rc_jax.contrast`` holds the paper's method and needs jax and numpy alone; the other packages train, score and export
segmentation networks. ``rc_jax.load`` and ``rc_jax.train`` are those of ``rc_jax.api``, which their first use imports:
this module imports nothing, so ``from rc_jax import contrast`` loads the method alone.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from rc_jax.api import SegmentationModel, load, train

__version__ = "0.1.0"

__all__ = ["SegmentationModel", "__version__", "load", "train"]


def __getattr__(name: str) -> Any:
  if name in __all__:
    import importlib

    try:
      return getattr(importlib.import_module("rc_jax.api"), name)
    except ModuleNotFoundError as error:
      raise ImportError(
        f"rc_jax.{name} needs the package {error.name}, which is not installed: pip install 'rc_jax[train]'"
      ) from error
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
