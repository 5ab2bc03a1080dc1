"""Times a recipe's train step on a GPU, also against PyTorch, and each form of a convolution's gradients.

  python -m benchmarks.gpu convolutions [--batch_size=8]
  python -m benchmarks.gpu step --config=configs/cityscapes.py [--rounds=20]
  python -m benchmarks.gpu torch --config=configs/cityscapes.py [--rounds=20]
  python -m benchmarks.gpu profile --config=configs/cityscapes.py
  python -m benchmarks.gpu numerics --config=configs/demo.py

``step`` times the step with full banks and with cross entropy alone, in turn. ``torch`` times the same network in
PyTorch (bfloat16 autocast, channels last, ``torch.compile``) with cross entropy alone: loss, gradients, SGD.
``numerics`` compares one float32 step on the GPU with the same step on the CPU. Each prints JSON lines.
"""

import argparse
import dataclasses
import functools
import gzip
import json
import pathlib
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import steps
from rc_jax import models, sharding
from rc_jax.config import Config, load_recipe
from rc_jax.ops import conv_taps, conv_xla
from rc_jax.training import initial_state, optimizer
from rc_jax.training.train_step import make_train_step

NUM_CLASSES = 19

# Height, input channels, output channels, kernel size, stride and dilation of ResNet-50's convolutions at crop 769.
CONVOLUTIONS = (
  *((97, 256, 256, 3, 1, 2), (97, 512, 512, 3, 1, 4), (97, 512, 512, 3, 1, 8), (97, 512, 512, 3, 1, 16)),
  *(
    (97, 2048, 256, 3, 1, 12),
    (97, 2048, 256, 3, 1, 24),
    (97, 2048, 256, 3, 1, 36),
    (97, 1280, 256, 3, 1, 1),
  ),
  *((193, 64, 64, 3, 1, 1), (193, 128, 128, 3, 2, 1), (97, 1024, 256, 1, 1, 1), (97, 512, 2048, 1, 1, 1)),
  *((385, 64, 128, 3, 1, 1), (193, 64, 256, 1, 1, 1)),
)


def median_ms(function: Callable[[], Any], rounds: int) -> float:
  """Returns the median time of a call in milliseconds, after two calls that are not counted."""
  for _ in range(2):
    jax.block_until_ready(function())
  seconds = []
  for _ in range(rounds):
    start = time.perf_counter()
    jax.block_until_ready(function())
    seconds.append(time.perf_counter() - start)
  return 1e3 * statistics.median(seconds)


def gradient_by_product(
  dy: jax.Array, x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int
) -> jax.Array:
  x = x[:, ::stride, ::stride]
  return jnp.einsum("bhwc,bhwo->co", x, dy, preferred_element_type=jnp.float32)[None, None]


def convolutions(arguments: argparse.Namespace) -> None:
  """Times forward, input gradient and each form of the kernel gradient of ``CONVOLUTIONS`` in bfloat16."""
  for height, inputs, outputs, size, stride, dilation in CONVOLUTIONS:
    keys = jax.random.split(jax.random.key(0), 3)
    batch, out = arguments.batch_size, -(-height // stride)
    x = jax.random.normal(keys[0], (batch, height, height, inputs), jnp.bfloat16)
    dy = jax.random.normal(keys[1], (batch, out, out, outputs), jnp.bfloat16)
    kernel = jax.random.normal(keys[2], (size, size, inputs, outputs), jnp.bfloat16)
    options = {"stride": stride, "dilation": dilation}
    forms: dict[str, Callable[..., Any]] = {
      "forward": lambda dy, x, kernel, **o: conv_xla.forward(x, kernel, **o),
      "input gradient": conv_xla.input_gradient,
      "kernel gradient, transposed": conv_xla.transposed_kernel_gradient,
      "kernel gradient, float32 result": conv_xla.kernel_gradient,
    }
    if size > 1:
      forms["kernel gradient, taps"] = conv_taps.kernel_gradient
    if dilation > 1:
      forms["kernel gradient, phases"] = conv_xla.phases_kernel_gradient
    if size == 1:
      forms["kernel gradient, product"] = gradient_by_product
    tera = 2 * batch * out * out * inputs * outputs * size**2 / 1e12
    row: dict[str, Any] = {
      "convolution": [height, inputs, outputs, size, stride, dilation],
      "ms_at_700": tera / 0.7,
    }
    reference = None
    for name, form in forms.items():
      start = time.perf_counter()
      try:
        function = jax.jit(functools.partial(form, **options))
        result = np.asarray(function(dy, x, kernel), np.float32)
        if "transposed" in name:
          reference = result
        milliseconds = median_ms(functools.partial(function, dy, x, kernel), 10)
        row[name] = {"ms": round(milliseconds, 3), "first_s": round(time.perf_counter() - start, 1)}
        if name.startswith("kernel") and reference is not None:
          row[name]["difference"] = float(np.linalg.norm(result - reference) / np.linalg.norm(reference))
      except Exception as error:  # the table continues with the other forms
        row[name] = {"error": " ".join(str(error).split())[:200]}
    print(json.dumps(row), flush=True)


def compiled_step(config: Config, mesh: Any) -> tuple[Any, Any, Any, dict[str, Any]]:
  """Returns the compiled step, its state and batch, and the compiler's analysis of it."""
  network = models.build(config.model, NUM_CLASSES)
  state, update_rule = initial_state.initial_state(config, network, 2975, mesh, fresh=False)
  if state.bank is not None:
    state = dataclasses.replace(state, bank=steps.full_bank(state.bank))
  batch = sharding.put_batch(steps.made_up_batch(config, NUM_CLASSES), mesh)
  schedule = optimizer.learning_rate(config.optimizer, config.train.steps)
  step = jax.jit(make_train_step(network, update_rule, schedule, config), donate_argnums=0)
  start = time.perf_counter()
  compiled = step.lower(state, batch).compile()
  memory: Any = compiled.memory_analysis()
  said = {
    "compile_s": round(time.perf_counter() - start, 1),
    "temporaries_gb": memory.temp_size_in_bytes / 1e9,
  }
  return compiled, state, batch, said


def use_forms(names: str) -> None:
  """Replaces the kernel gradients of GPUs: ``transposed`` for dilated convolutions, ``product`` for 1x1."""
  transposed = conv_xla.transposed_kernel_gradient
  if "transposed" in names:
    conv_xla.phases_kernel_gradient = transposed
  if "product" in names:

    def gradient(dy: jax.Array, x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int) -> jax.Array:
      form = gradient_by_product if kernel.shape[0] == 1 else transposed
      return form(dy, x, kernel, stride=stride, dilation=dilation)

    conv_xla.transposed_kernel_gradient = gradient


def step(arguments: argparse.Namespace) -> None:
  """Times the step with the contrastive loss and with cross entropy alone, in turn."""
  if arguments.forms:
    use_forms(arguments.forms)
  mesh = sharding.global_mesh()
  runs: dict[str, list[Any]] = {}
  scopes = (
    {"RegionContrast": "bank"} if arguments.forms else {"RegionContrast": "bank", "cross entropy": "none"}
  )
  for name, scope in scopes.items():
    config = settings(arguments)
    config.contrast.scope = scope
    compiled, state, batch, said = compiled_step(config, mesh)
    runs[name] = [compiled, state, batch]
    print(json.dumps({"step": name, **case(arguments), **said}), flush=True)
  seconds: dict[str, list[float]] = {name: [] for name in runs}
  for count in range(-3, arguments.rounds):
    for name, run in runs.items():
      start = time.perf_counter()
      run[1], metrics = run[0](run[1], run[2])
      jax.block_until_ready((run[1], metrics))
      if count >= 0:
        seconds[name].append(time.perf_counter() - start)
  for name, values in seconds.items():
    row = {"ms": 1e3 * statistics.median(values), "least": 1e3 * min(values), "most": 1e3 * max(values)}
    print(json.dumps({"step": name, **case(arguments), **described(), **row}), flush=True)


def profile(arguments: argparse.Namespace) -> None:
  """Prints the kernels that the step spends most of its time in, from a trace of a few steps."""
  if arguments.forms:
    use_forms(arguments.forms)
  compiled, state, batch, _ = compiled_step(settings(arguments), sharding.global_mesh())
  for _ in range(3):
    state, metrics = compiled(state, batch)
  jax.block_until_ready(metrics)
  count = 5
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(count):
        state, metrics = compiled(state, batch)
      jax.block_until_ready((state, metrics))
    (path,) = pathlib.Path(folder).rglob("*.trace.json.gz")
    with gzip.open(path) as file:
      events = json.load(file)["traceEvents"]
  devices = {
    event["pid"]
    for event in events
    if event.get("name") == "process_name" and "GPU" in event["args"].get("name", "")
  }
  total: dict[str, list[float]] = {}
  for event in events:
    if event.get("ph") == "X" and event["pid"] in devices and "hlo_op" in event.get("args", {}):
      name = event["args"]["hlo_op"]
      entry = total.setdefault(name, [0.0, 0, event["name"]])
      entry[0] += event["dur"] / 1e3 / count
      entry[1] += 1
  ranked = sorted(total.items(), key=lambda item: -item[1][0])
  small = sum(1 for _, (ms, _, _) in ranked if ms < 0.005)
  text = compiled.as_text() or ""
  kinds: dict[str, float] = {}
  for name, (ms, _, _) in ranked:
    kind = name.rstrip("0123456789.")
    kinds[kind] = kinds.get(kind, 0) + ms
  print(json.dumps({"ops": len(total), "below 5 us": small, "ms": sum(v[0] for v in total.values())}))
  print(json.dumps({kind: round(ms, 2) for kind, ms in sorted(kinds.items(), key=lambda kv: -kv[1])[:30]}))
  for name, (ms, number, kernel) in ranked[: arguments.top]:
    line = next((line for line in text.splitlines() if f" %{name} = " in line or f" {name} = " in line), "")
    shape = line.partition(" = ")[2].split("{")[0][:60]
    source = re.search(r'op_name="([^"]*)"', line)
    where = source[1][-90:] if source else ""
    print(
      f"{ms:8.3f} ms {number / count:4.0f} x  {name[:34]:<34} {kernel[:44]:<44} {shape:<36} {where}",
      flush=True,
    )


def torch_step(arguments: argparse.Namespace) -> None:
  """Times the same network in PyTorch: cross entropy, auxiliary loss, gradients, SGD."""
  import torch

  from rc_jax.models.backbones.resnet import RESNETS
  from tests.support import torch_reference

  config = settings(arguments)
  layout = RESNETS[config.model.backbone]
  plan = []
  for number, blocks in enumerate(layout.blocks):
    stride, dilation = ((1, 1), (2, 1), (1, 2), (1, 4))[number]
    factors = config.model.multi_grid if number == 3 else (1,) * blocks
    plan.append([(stride if i == 0 else 1, dilation * f, dilation * f) for i, f in enumerate(factors)])
  backbone = torch_reference.ResNet(plan, layout.bottleneck, layout.width, config.model.stem, "3x3", True)
  network = torch_reference.DeepLabV3(
    backbone, layout.width * 32, config.model.channels, config.model.aspp_rates, NUM_CLASSES
  )
  network = network.cuda().to(memory_format=torch.channels_last)
  torch.backends.cudnn.benchmark = True
  torch.set_float32_matmul_precision("high")
  mean = torch.tensor([123.675, 116.28, 103.53], device="cuda").view(3, 1, 1)
  std = torch.tensor([58.395, 57.12, 57.375], device="cuda").view(3, 1, 1)

  def forward(images: Any) -> tuple[Any, Any]:
    _, stage3, last = network.backbone((images - mean) / std)
    return network.head(last), network.aux_head(stage3)

  compiled = torch.compile(forward)
  rule = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, fused=True)
  batch = steps.made_up_batch(config, NUM_CLASSES)
  images = torch.from_numpy(batch["image"]).cuda().permute(0, 3, 1, 2).float()
  images = images.contiguous(memory_format=torch.channels_last)
  labels = torch.from_numpy(batch["label"]).cuda().long()

  def loss_of(logits: Any) -> Any:
    upsampled = torch.nn.functional.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=True)
    return torch.nn.functional.cross_entropy(upsampled.float(), labels, ignore_index=255)

  def update() -> None:
    with torch.autocast("cuda", torch.bfloat16):
      logits, auxiliary = compiled(images)
      loss = loss_of(logits) + 0.4 * loss_of(auxiliary)
    rule.zero_grad(set_to_none=True)
    loss.backward()
    rule.step()
    torch.cuda.synchronize()

  start = time.perf_counter()
  for _ in range(5):
    update()
  first = time.perf_counter() - start
  values = []
  for _ in range(arguments.rounds):
    start = time.perf_counter()
    update()
    values.append(time.perf_counter() - start)
  row = {"ms": 1e3 * statistics.median(values), "least": 1e3 * min(values), "most": 1e3 * max(values)}
  peak = torch.cuda.max_memory_allocated() / 1e9
  row |= {"first_five_s": first, "peak_gb": peak, "torch": torch.__version__}
  print(json.dumps({"step": "PyTorch", "config": arguments.config, **row}), flush=True)


def numerics(arguments: argparse.Namespace) -> None:
  """Compares the new state and metrics of one float32 step on the GPU with those on the CPU."""
  config = settings(arguments)
  config.model.dtype = "float32"
  config.model.dropout = 0.0
  results = []
  for device in (jax.devices("cpu")[0], jax.devices()[0]):
    mesh = jax.sharding.Mesh(np.asarray([device]), (sharding.DATA_AXIS,))
    with jax.default_matmul_precision("highest"), jax.default_device(device):
      compiled, state, batch, _ = compiled_step(config, mesh)
      results.append(jax.device_get(compiled(state, batch)))
  (state, metrics), (other_state, other_metrics) = results
  row: dict[str, Any] = {}
  for name in ("params", "batch_stats", "opt_state", "bank"):
    ours, theirs = jax.tree.leaves(getattr(state, name)), jax.tree.leaves(getattr(other_state, name))
    squares = sum(
      float(np.sum(np.square(np.float64(a) - np.float64(b)))) for a, b in zip(ours, theirs, strict=True)
    )
    row[name] = (squares / max(1e-30, sum(float(np.sum(np.square(np.float64(a)))) for a in ours))) ** 0.5
  row["metrics"] = {
    name: [float(metrics[name]), float(other_metrics[name])]
    for name in metrics
    if np.ndim(metrics[name]) == 0
  }
  print(json.dumps({"numerics": arguments.config, **described(), "relative difference": row}), flush=True)


def settings(arguments: argparse.Namespace) -> Config:
  """Returns the recipe with the command line's sizes."""
  config = load_recipe(arguments.config)
  config.train.batch_size = arguments.batch_size or config.train.batch_size
  if arguments.crop_size:
    config.train.crop_size = (arguments.crop_size,)
  return config


def case(arguments: argparse.Namespace) -> dict[str, str]:
  return {"config": arguments.config, "forms": arguments.forms}


def described() -> dict[str, str]:
  return {"device": jax.devices()[0].device_kind, "jax": jax.__version__}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("what", choices=("convolutions", "step", "profile", "torch", "numerics"))
  parser.add_argument("--config", default="configs/cityscapes.py")
  parser.add_argument("--rounds", type=int, default=20)
  parser.add_argument("--batch_size", type=int, default=0, help="default: the recipe's; 8 for convolutions")
  parser.add_argument("--crop_size", type=int, default=0, help="default: the recipe's")
  parser.add_argument("--top", type=int, default=60, help="for profile: kernels to print")
  parser.add_argument(
    "--forms", default="", help="step, profile: transposed,product in place of the project's forms"
  )
  arguments = parser.parse_args()
  if arguments.what == "convolutions":
    arguments.batch_size = arguments.batch_size or 8
  {"convolutions": convolutions, "step": step, "profile": profile, "torch": torch_step, "numerics": numerics}[
    arguments.what
  ](arguments)


if __name__ == "__main__":
  main()
