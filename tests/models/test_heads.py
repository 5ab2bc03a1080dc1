"""Every head against PyTorch's operations, and as a part of a network."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax import models
from rc_jax.config import defaults, validate
from rc_jax.models import Stages
from rc_jax.models.heads.aspp import ASPP
from rc_jax.models.heads.ccnet import CCNetHead
from rc_jax.models.heads.danet import DANetHead
from rc_jax.models.heads.deeplabv3 import DeepLabV3Head
from rc_jax.models.heads.deeplabv3plus import DeepLabV3PlusHead
from rc_jax.models.heads.encnet import EncNetHead
from rc_jax.models.heads.fcn import FCNHead
from rc_jax.models.heads.ocrnet import OCRHead
from rc_jax.models.heads.pspnet import PSPHead
from rc_jax.models.initial_values import initial_variables
from rc_jax.models.layers import CONTRAST_FEATURES, classify
from tests.support.head_checks import (
  CLASSES,
  assert_learns_in_bfloat16,
  compiled_once,
  extra_logits,
  network_shapes,
  random_stages,
)


class Original(NamedTuple):
  """A class of ``torch_heads.py`` or ``torch_attention.py`` and its arguments."""

  name: str
  arguments: tuple[Any, ...]

  def build(self):
    pytest.importorskip("torch")
    from tests.support import torch_attention, torch_heads

    module = torch_heads if hasattr(torch_heads, self.name) else torch_attention
    return getattr(module, self.name)(*self.arguments)


# An ASPP rate of 8 is wider than the grids: only its center tap reads pixels.
PLUS = (3, 4, (1, 3, 8))

# (head, module, original, shapes of stage 1, 3 and 4); stages have 5, 5 and 6 channels.
PREDICTION = [
  ("ccnet", CCNetHead(4, 16, 2), Original("CCNet", (6, 16, 2, 4)), [None, None, (2, 5, 7, 6)]),
  ("ccnet", CCNetHead(4, 16, 1), Original("CCNet", (6, 16, 1, 4)), [None, None, (2, 4, 3, 6)]),
  ("danet", DANetHead(4, 8, 3), Original("DANet", (6, 8, 3, 4)), [None, None, (2, 5, 8, 6)]),
  (
    "deeplabv3",
    DeepLabV3Head(3, 4, (1, 2)),
    Original("DeepLabV3", (6, 4, (1, 2), 3, False)),
    [None, None, (2, 5, 8, 6)],
  ),
  *(
    (
      "deeplabv3plus",
      DeepLabV3PlusHead(
        *PLUS, project=project, early_channels=3, separable=separable, align_corners=align_corners
      ),
      Original("DeepLabV3Plus", ((5, 6, 3), 4, 3, PLUS[2], project, separable, align_corners)),
      [(2, *stage1, 5), None, (2, *last, 6)],
    )
    for separable, project, align_corners in [(True, False, False), (False, True, True)]
    for stage1, last in [((13, 18), (7, 9)), ((8, 12), (4, 6)), ((6, 5), (6, 5))]
  ),
  ("encnet", EncNetHead(4, 8, 5), Original("EncNet", (6, 8, 5, 4)), [None, None, (2, 5, 8, 6)]),
  *(
    (
      "fcn",
      FCNHead(3, 4, convs=convs, kernel_size=size, concat_input=concat),
      Original("FCN", (6, 4, 3, convs, size, concat)),
      [None, None, (2, 5, 8, 6)],
    )
    for convs, size, concat in [(1, 3, False), (2, 3, True), (1, 1, False), (0, 3, True)]
  ),
  *(
    (
      "ocrnet",
      OCRHead(3, 8, key_channels=4, coarse_channels=7, align_corners=align_corners),
      Original("OCR", (channels, 8, 4, 7, 3, align_corners)),
      [None, stage3, last],
    )
    for channels, stage3, last, align_corners in [
      ((5, 6), (2, 9, 13, 5), (2, 9, 13, 6), False),
      ((5, 6), (2, 8, 6, 5), (2, 8, 6, 6), False),
      ((None, 6), None, (2, 9, 13, 6), False),
      ((None, 6), None, (2, 8, 6, 6), False),
      # Stage 3 is finer than stage 4, as at output stride 32.
      ((5, 6), (2, 9, 13, 5), (2, 5, 7, 6), False),
      ((5, 6), (2, 9, 13, 5), (2, 5, 7, 6), True),
    ]
  ),
  *(
    (
      "pspnet",
      PSPHead(3, 4, align_corners=align_corners),
      Original("PSP", (6, 4, 3, (1, 2, 3, 6), align_corners)),
      [None, None, (2, *size, 6)],
    )
    for size in [(9, 13), (8, 12)]
    for align_corners in (False, True)
  ),
]

LINEAR = {"ccnet", "deeplabv3", "deeplabv3plus", "fcn", "ocrnet", "pspnet"}
# One case of each, and of each last layer.
LINEAR_CASES = {
  f"{head}-{getattr(module, 'separable', '')}{getattr(module, 'convs', '')}": (module, shapes)
  for head, module, _, shapes in PREDICTION
  if head in LINEAR
}


@pytest.mark.long
@pytest.mark.parametrize(("module", "shapes"), LINEAR_CASES.values(), ids=LINEAR_CASES)
def test_linear_features_are_those_before_the_relu(module, shapes):
  stages = random_stages(*shapes)
  linear = module.clone(features_before_relu=True)
  rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
  _, params, batch_stats = initial_variables(
    lambda key, stages: module.init_with_output(rngs | {"params": key}, stages, True), rngs["params"], stages
  )
  _, *others = initial_variables(
    lambda key, stages: linear.init_with_output(rngs | {"params": key}, stages, True), rngs["params"], stages
  )
  assert jax.tree.structure(others) == jax.tree.structure([params, batch_stats])
  for train in (True, False):

    def outputs(head, params, train=train):
      variables = {"params": params, "batch_stats": batch_stats}
      found, _ = head.apply(variables, stages, train, rngs=rngs, mutable=["batch_stats"])
      return jnp.square(found.logits).sum(), (found.logits, found.features)

    def both(params, outputs=outputs):
      return [
        jax.value_and_grad(functools.partial(outputs, head), has_aux=True)(params)
        for head in (module, linear)
      ]

    ((_, expected), gradient), ((_, found), slope) = compiled_once(both, params)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.maximum(found[1], 0), expected[1], rtol=1e-5, atol=1e-5)
    assert (np.asarray(found[1]) < 0).any()
    # In prediction, where nothing is differentiated, a ReLU's slope at 0 is another one.
    for one, other in zip(jax.tree.leaves(slope), jax.tree.leaves(gradient), strict=True) if train else ():
      np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * max(1, np.abs(other).max()))


def test_every_head_reads_contrast_features_or_refuses_them():
  assert {name for name, head in models.heads().items() if CONTRAST_FEATURES in head.fields} == LINEAR
  config = defaults()
  config.dataset.name, config.model.name = "synthetic", "danet"
  config.model.contrast_features = "linear"
  with pytest.raises(
    ValueError, match=r"config\.model\.contrast_features: .* only .*deeplabv3.* is danet on"
  ):
    validate(config)
  model = config.model
  model.name, model.fcn_convs = "fcn", 0
  with pytest.raises(ValueError, match=r"model\.contrast_features: is 'linear'; expected relu where no conv"):
    models.build(model, 3)


# As above, and the allowed error relative to the largest gradient: attentions and encodings have parameters whose
# gradient is almost zero.
TRAINING = [
  ("ccnet", CCNetHead(4, 16, 2, dropout=0.0), PREDICTION[0][2], [None, None, (3, 5, 4, 6)], 1e-5),
  ("danet", DANetHead(4, 8, 3, dropout=0.0), PREDICTION[2][2], [None, None, (3, 5, 4, 6)], 1e-5),
  (
    "deeplabv3",
    DeepLabV3Head(3, 4, (1, 2), dropout=0.0),
    PREDICTION[3][2],
    [None, None, (3, 6, 7, 6)],
    0.0,
  ),
  *(
    (
      "deeplabv3plus",
      DeepLabV3PlusHead(3, 4, (2, 4), early_channels=3, separable=separable, dropout=0.0),
      Original("DeepLabV3Plus", ((5, 6, 3), 4, 3, (2, 4), False, separable, False)),
      [(3, 11, 14, 5), None, (3, 6, 7, 6)],
      0.0,
    )
    for separable in (True, False)
  ),
  (
    "encnet",
    EncNetHead(4, 8, 5, dropout=0.0),
    Original("EncNet", (6, 8, 5, 4)),
    [None, None, (3, 5, 4, 6)],
    1e-5,
  ),
  ("fcn", FCNHead(3, 4, dropout=0.0), Original("FCN", (6, 4, 3)), [None, None, (3, 6, 7, 6)], 0.0),
  *(
    (
      "ocrnet",
      OCRHead(3, 8, key_channels=4, coarse_channels=7, dropout=0.0),
      Original("OCR", ((channels, 6), 8, 4, 7, 3, False)),
      [None, (3, 7, 8, 5) if channels else None, (3, 7, 8, 6)],
      0.0,
    )
    for channels in (5, None)
  ),
  (
    "pspnet",
    PSPHead(3, 4, bins=(1, 3, 4), dropout=0.0),
    Original("PSP", (6, 4, 3, (1, 3, 4), False)),
    [None, None, (3, 9, 7, 6)],
    0.0,
  ),
]

IN_BFLOAT16: dict[str, tuple[nn.Module, list[tuple[int, ...] | None]]] = {
  "ccnet": (CCNetHead(5, 16, dtype=jnp.bfloat16), [None, None, (2, 5, 6, 12)]),
  "danet": (DANetHead(5, 16, 4, dtype=jnp.bfloat16), [None, None, (2, 5, 6, 12)]),
  "deeplabv3": (DeepLabV3Head(3, 8, (2, 4), dtype=jnp.bfloat16), [None, None, (2, 9, 6, 5)]),
  "deeplabv3plus": (
    DeepLabV3PlusHead(3, 8, (2, 4), early_channels=6, dtype=jnp.bfloat16),
    [(2, 17, 12, 4), None, (2, 9, 6, 5)],
  ),
  "encnet": (EncNetHead(5, 16, codes=6, dtype=jnp.bfloat16), [None, None, (2, 5, 6, 12)]),
  "fcn": (FCNHead(3, 8, dtype=jnp.bfloat16), [None, None, (2, 9, 6, 5)]),
  "ocrnet": (
    OCRHead(3, 8, key_channels=4, coarse_channels=7, dtype=jnp.bfloat16),
    [None, (2, 9, 6, 5), (2, 9, 6, 6)],
  ),
  "pspnet": (PSPHead(3, 8, dtype=jnp.bfloat16), [None, None, (2, 9, 6, 5)]),
}

# (head, its fields, grid of the logits, grid of the auxiliary logits, shapes of parameters; None: no such parameter).
# Images of 65 x 48 have a grid of 9 x 6 at output stride 8; stage 1 has 17 x 12.
NETWORKS = [
  ("ccnet", {"ccnet_recurrence": 3}, (9, 6), (9, 6), {"attention.query.kernel": (1, 1, 24, 3)}),
  ("danet", {"danet_key_channels": 4}, (9, 6), (9, 6), {"position.attention.key.kernel": (1, 1, 24, 4)}),
  (
    "deeplabv3",
    {"aspp_rates": (2, 4)},
    (9, 6),
    (9, 6),
    {"aspp.rate1.conv.kernel": (3, 3, 128, 24), "aspp.rate2": None, "aspp.project": None},
  ),
  (
    "deeplabv3plus",
    {"aspp_rates": (2, 4), "early_channels": 6},
    (17, 12),
    (9, 6),
    {"aspp.rate1.depthwise.kernel": (3, 3, 1, 128), "refine0.depthwise.kernel": (3, 3, 1, 30)},
  ),
  (
    "deeplabv3plus",
    {"aspp_rates": (2, 4), "early_channels": 6, "separable": False, "aspp_project": True},
    (17, 12),
    (9, 6),
    {
      "aspp.rate1.conv.kernel": (3, 3, 128, 24),
      "aspp.project.conv.kernel": (1, 1, 96, 24),
      "fuse": None,
    },
  ),
  ("encnet", {"encnet_codes": 6}, (9, 6), (9, 6), {"encoding.codewords": (6, 24)}),
  (
    "fcn",
    {"fcn_convs": 2, "fcn_kernel_size": 1, "fcn_concat_input": True},
    (9, 6),
    (9, 6),
    {"conv1.conv.kernel": (1, 1, 24, 24), "fuse.conv.kernel": (1, 1, 152, 24), "conv2": None},
  ),
  (
    "ocrnet",
    {"aux_channels": 10, "ocr_key_channels": 8},
    (9, 6),
    (9, 6),
    {
      "coarse.conv0.conv.kernel": (3, 3, 64, 10),
      "query0.conv.kernel": (1, 1, 24, 8),
      "value.conv.kernel": (1, 1, 24, 8),
    },
  ),
  # Stage 3, and with it the coarse prediction, is twice as fine as stage 4.
  ("ocrnet", {"output_stride": 32}, (3, 2), (5, 3), {}),
  (
    "pspnet",
    {"psp_bins": (1, 4)},
    (9, 6),
    (9, 6),
    {"bin1.conv.kernel": (1, 1, 128, 24), "bin2": None, "fuse.conv.kernel": (3, 3, 176, 24)},
  ),
]


def ids(cases):
  """The head of each case, numbered."""
  return [f"{case[0]}-{i}" for i, case in enumerate(cases)]


@pytest.mark.parametrize("table", [PREDICTION, TRAINING, NETWORKS, [(name,) for name in IN_BFLOAT16]])
def test_tables_hold_every_head(table):
  assert {row[0] for row in table} == set(models.HEADS)


@pytest.mark.parametrize(("head", "module", "original", "shapes"), PREDICTION, ids=ids(PREDICTION))
def test_logits_and_features_equal_the_originals(head, module, original, shapes):
  original = original.build()
  from tests.support.torch_comparison import assert_same_in_prediction

  assert_same_in_prediction(module, original, random_stages(*shapes))


@pytest.mark.parametrize(("head", "module", "original", "shapes", "floor"), TRAINING, ids=ids(TRAINING))
def test_outputs_gradients_and_statistics_of_training_equal_the_originals(
  head, module, original, shapes, floor
):
  original = original.build()
  from tests.support.torch_comparison import assert_same_in_training

  assert_same_in_training(module, original, random_stages(*shapes), floor)


@pytest.mark.long
@pytest.mark.parametrize("head", IN_BFLOAT16)
def test_every_parameter_learns_in_bfloat16(head):
  module, shapes = IN_BFLOAT16[head]
  params = assert_learns_in_bfloat16(module, random_stages(*shapes))
  scales = [leaf for path, leaf in jax.tree.leaves_with_path(params) if path[-1].key == "gamma"]
  assert len(scales) == {"ccnet": 1, "danet": 2}.get(head, 0)
  assert all(scale.shape == () and scale == 0 for scale in scales)


@pytest.mark.long
@pytest.mark.parametrize(("head", "fields", "grid", "aux_grid", "parameters"), NETWORKS, ids=ids(NETWORKS))
def test_a_network_reads_the_fields_of_its_head(head, fields, grid, aux_grid, parameters):
  outputs, shapes = network_shapes(name=head, channels=24, **fields)
  assert outputs.logits.shape == (2, *grid, CLASSES) and outputs.features.shape == (2, *grid, 24)
  assert outputs.extra["aux"].logits.shape == (2, *aux_grid, CLASSES)
  further = {"danet": [outputs.logits.shape] * 2, "encnet": [(2, CLASSES)]}
  assert [y.shape for y in extra_logits(outputs)[1:]] == further.get(head, [])
  for name, expected in parameters.items():
    found = shapes
    for part in name.split("."):
      found = found.get(part) if found is not None else None
    assert found == expected, name


@pytest.mark.parametrize("project", [False, True])
# A rate of 12 is wider than the grid: only its center tap reads pixels.
@pytest.mark.parametrize("rates", [(1, 3, 12), (2, 4)])
def test_branches_of_aspp_equal_the_originals(project, rates):
  torch = pytest.importorskip("torch")
  from tests.support import torch_reference

  original = torch_reference.randomize(torch_reference.ASPP(6, 4, rates, project), seed=1).eval()
  params, batch_stats = torch_reference.as_trees(original.state_dict())
  x = np.random.default_rng(0).standard_normal((2, 7, 10, 6)).astype(np.float32)
  with torch.no_grad():
    theirs = original(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
  module = ASPP(4, rates, project)
  ours = jax.jit(lambda v, x: module.apply(v, x, False))({"params": params, "batch_stats": batch_stats}, x)
  assert ours.shape == (2, 7, 10, 4 if project else 4 * (len(rates) + 2))
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_dropout_drops_channels_and_logits_are_float32():
  module = FCNHead(3, 64, dropout=0.5, dtype=jnp.bfloat16)
  x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 6, 6, 4)), jnp.bfloat16)
  variables = jax.jit(lambda rng: module.init(rng, Stages(x, None, x), False))(jax.random.key(0))
  classifier = {"kernel": jnp.eye(64)[None, None, :, :3], "bias": jnp.zeros(3)}
  kernel = np.random.default_rng(1).standard_normal((3, 3, 4, 64)).astype(np.float32)
  params = variables["params"] | {"classifier": classifier}
  params["conv0"] = params["conv0"] | {"conv": {"kernel": kernel}}
  dropped = []
  for seed in range(8):  # this classifier's logits are the first 3 channels
    rngs = {"dropout": jax.random.key(seed)}
    given = (variables | {"params": params}, Stages(x, None, x), True)
    outputs, _ = module.apply(*given, rngs=rngs, mutable=["batch_stats"])
    assert outputs.logits.dtype == jnp.float32
    dropped.append((outputs.logits == 0).all((0, 1, 2)))
  assert 0.2 < np.mean(dropped) < 0.8


def test_dropout_keeps_the_mean_of_bfloat16_features():
  class Classifier(nn.Module):
    @nn.compact
    def __call__(self, x):
      return classify(x, 64, dropout=0.1, train=True)

  # The logits are the channels.
  params = {"classifier": {"kernel": jnp.eye(64)[None, None], "bias": jnp.zeros(64)}}
  ones = jnp.ones((1, 1, 1, 64), jnp.bfloat16)
  logits = Classifier().apply({"params": params}, ones, rngs={"dropout": jax.random.key(0)})
  kept = logits[logits > 0]
  assert 40 < kept.size < 64
  # 0.9 in bfloat16 is 0.898, and 1 / 0.898 is 1.109.
  np.testing.assert_allclose(kept, 1 / 0.9, rtol=1e-6)


def test_initial_codewords_and_smoothing_are_the_authors():
  x = np.random.default_rng(0).standard_normal((1, 3, 3, 6)).astype(np.float32)
  module = EncNetHead(4, 64, codes=100)
  params = jax.jit(lambda key: module.init(key, Stages(x, None, x), True))(jax.random.key(0))["params"]
  codewords, smoothing = (np.asarray(params["encoding"][name]) for name in ("codewords", "smoothing"))
  assert codewords.shape == (100, 64) and smoothing.shape == (100,)
  bound = 1 / 80  # 1 / sqrt(K C)
  assert 0.99 * bound < codewords.max() < bound and -bound <= codewords.min() < -0.99 * bound
  assert -1 <= smoothing.min() < -0.9 and -0.1 < smoothing.max() <= 0
