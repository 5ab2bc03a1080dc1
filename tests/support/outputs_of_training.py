"""Heads of mmsegmentation that say more in training than logits: what ours are held to."""

import jax

from tests.support import originals
from tests.support.encoder_decoders import CHANNELS, CLASSES, COMMON, auxiliary

torch = originals.torch
# As users compile: attentions magnify by how much unoptimised code, which other tests run, rounds otherwise.
OPTIONS = {"xla_backend_optimization_level": 3}


def built(backbone, **head):
  """mmsegmentation's network with such a head on stage 4 of the narrow ResNet, at random values.

  Attentions are scaled to their inputs, encodings to a spread over several codewords: at other values, they would
  say nothing, or drown the rest.
  """
  network = originals.mmsegmentation().build(
    {
      "type": "EncoderDecoder",
      "backbone": backbone,
      "decode_head": COMMON | {"in_channels": 512, "in_index": 3, "channels": CHANNELS} | head,
      "auxiliary_head": auxiliary(256),
    }
  )
  originals.randomize(network, seed=0)
  generator = torch.Generator().manual_seed(1)
  with torch.no_grad():
    for name, parameter in network.named_parameters():
      if name.endswith("gamma.scale"):
        parameter.uniform_(0.5, 1.5, generator=generator)
      if name.endswith(("query_project.weight", "query_conv.weight")):
        parameter.mul_(0.5)
      if name.endswith("encoding.0.codewords"):
        parameter.normal_(0.5, 0.5, generator=generator)
      if name.endswith("encoding.0.scale"):
        parameter.uniform_(-0.2, 0, generator=generator)
  return network


def assert_same_outputs(tmp_path, original, sizes=((65, 97), (64, 96)), **fields):
  """Holds ours of the original's checkpoint to its logits in prediction and to all that it says in training.

  Args:
    tmp_path: a folder for the checkpoint.
    original: of ``built``.
    sizes: of the images.
    **fields: of ``config.model``.
  """
  saved = {"meta": {"epoch": 1}, "state_dict": original.state_dict()}
  network, _, variables, report = originals.imported(saved, tmp_path, CLASSES, **fields)
  assert not report.missing and not report.different, report.summary()
  assert all(name.endswith("num_batches_tracked") for name in report.left_out), report.summary()

  predict = jax.jit(network.predict, compiler_options=OPTIONS)
  for size in sizes:
    batch = originals.images(size)
    theirs, *_ = said(original.eval(), batch)
    originals.assert_close(predict(*variables, batch).logits, theirs)
  batch = originals.images(sizes[0], batch=3)
  outputs, _ = jax.jit(network.train, compiler_options=OPTIONS)(*variables, batch, jax.random.key(0))
  theirs, more, aux = said(original.train(), batch)
  originals.assert_close(outputs.logits, theirs)
  originals.assert_close(outputs.extra["aux"].logits, aux)
  ours = [extra.logits for name, extra in sorted(outputs.extra.items()) if name != "aux"]
  if "presence" in outputs.extra:
    # As a map of one pixel, like the others.
    ours, more = [ours[0][:, None, None]], [more[0][..., None, None]]
  assert len(ours) == len(more)
  for ours_, theirs in zip(ours, more, strict=True):
    originals.assert_close(ours_, theirs)


def said(original, batch):
  """Logits, what more the head says, and auxiliary logits."""
  with torch.no_grad():
    features = original.extract_feat(originals.normalized(batch))
    head = original.decode_head(features)
    logits, *more = head if isinstance(head, tuple) else (head,)
    return logits, more, original.auxiliary_head(features)
