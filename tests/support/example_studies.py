"""Studies with made-up results: confusion matrices of images of differing difficulty, for rows of differing skill."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from rc_jax.evaluation import metrics
from rc_jax.evaluation.results import Result
from rc_jax.study import Claim, Row, Study

CLASSES = ("road", "car", "sky", "train")
FREQUENCIES = (0.6, 0.3, 0.0995, 0.0005)
CE, INTRA, INTER = "CE", "CE + intra-image", "CE + inter-image"
SKILLS = {CE: 0.0, INTRA: 0.004, INTER: 0.02}
PROTOCOL = {"images": 30, "scales": [1.0], "flip": False, "pad_to_grid": True, "crop_size": [], "stride": []}

Key = tuple[str, int, str]


def make_study(seeds: Sequence[int] = range(5), **fields) -> Study:
  """Returns a study with the paper's Table 1."""
  rows = (Row(CE, {}, 76.4), Row(INTRA, {}, 77.5), Row(INTER, {}, 79.6))
  claims = (Claim(INTRA, CE), Claim(INTER, CE), Claim(INTER, INTRA))
  known = {"title": "Table 1 on streets", "recipe": "demo", "rows": rows, "baseline": CE, "claims": claims}
  return Study(**{**known, "seeds": tuple(seeds), "source": "RegionContrast, Table 1", **fields})


def make_result(
  matrices: np.ndarray, path: str = "eval/val.json", rule: str = "unless_predicted", **fields
) -> Result:
  """Returns the result of images with these confusion matrices ``[I,N,N]``, rows truth."""
  tp = np.einsum("inn->in", matrices)
  counts = np.stack([tp, matrices.sum(1) - tp, matrices.sum(2) - tp])
  scores = metrics.scores(matrices.sum(0), rule)
  names = CLASSES if matrices.shape[1] == len(CLASSES) else [f"class {n}" for n in range(matrices.shape[1])]
  scores["iou"] = dict(zip(names, scores["iou"], strict=True))
  known = {"step": 1000, "dataset": "streets", "absent_class": rule, **PROTOCOL, "images": len(matrices)}
  images = [f"image{number}" for number in range(len(matrices))]
  return Result(pathlib.Path(path), {**scores, **known, **fields}, images, counts)


def confusions(seed: int, skill: float, images: int = 30, num_classes: int = len(CLASSES)) -> np.ndarray:
  """Returns ``[I,N,N]``: images of one difficulty for each seed and skill; the last class is rare."""
  rng = np.random.default_rng(99)
  difficulty = rng.random(images) * 0.4
  frequencies = FREQUENCIES if num_classes == len(CLASSES) else np.full(num_classes, 1 / num_classes)
  truth = rng.multinomial(2000, frequencies, images)
  noise = np.random.default_rng([seed, round(1e6 * skill)])
  wrong = difficulty + 0.15 - skill + 0.02 * noise.standard_normal()
  wrong = np.clip(wrong, 0, 1)[:, None, None] / (num_classes - 1)
  probabilities = np.broadcast_to(wrong, (images, num_classes, num_classes)).copy()
  diagonal = np.arange(num_classes)
  probabilities[:, diagonal, diagonal] = 0
  probabilities[:, diagonal, diagonal] = 1 - probabilities.sum(-1)
  return noise.multinomial(truth, probabilities)


def make_results(
  study: Study,
  skills: Mapping[str, float] = SKILLS,
  images: int = 30,
  num_classes: int = len(CLASSES),
  **fields,
) -> dict[Key, Result]:
  """Returns a result for each run and split of a study."""
  return {
    (run.row.name, run.seed, split): make_result(
      confusions(1000 * place + run.seed, skills[run.row.name], images, num_classes),
      str(run.path / "eval" / f"{split}.json"),
      split=split,
      **fields,
    )
    for place, split in enumerate(study.splits)
    for run in study.runs
  }
