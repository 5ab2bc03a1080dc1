"""Kernels, bytes and operations of a GPU's program written by hand, and of one that XLA compiles for an H100."""

import importlib.util
import math

import jax
import jax.numpy as jnp
import pytest

from rc_jax.costs import chips, gpu_kernels, hlo_cost, program_warnings, topology

H100 = chips.GPUS["h100"]

HLO = """\
HloModule step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused_reduce (p0: bf16[2,9,9,8]) -> f32[8] {
  %p0 = bf16[2,9,9,8]{3,2,1,0} parameter(0)
  %wide = f32[2,9,9,8]{3,2,1,0} convert(%p0)
  %zero = f32[] constant(0)
  ROOT %sums = f32[8]{0} reduce(%wide, %zero), dimensions={0,1,2}, to_apply=%add
}

%fused_scatter (q0: f32[100], q1: s32[5,1], q2: f32[5]) -> f32[100] {
  %q0 = f32[100]{0} parameter(0)
  %q1 = s32[5,1]{1,0} parameter(1)
  %q2 = f32[5]{0} parameter(2)
  ROOT %scattered = f32[100]{0} scatter(%q0, %q1, %q2), inserted_window_dims={0}, to_apply=%add
}

%fused_slice (r0: f32[50,100], r1: s32[], r2: f32[50,100]) -> f32[50,100] {
  %r0 = f32[50,100]{1,0} parameter(0)
  %r1 = s32[] parameter(1)
  %r2 = f32[50,100]{1,0} parameter(2)
  %flat = f32[5000]{0} bitcast(%r0)
  %slice = f32[100]{0} dynamic-slice(%flat, %r1), dynamic_slice_sizes={100}
  %row = f32[1,100]{1,0} bitcast(%slice)
  ROOT %updated = f32[50,100]{1,0} dynamic-update-slice(%r2, %row, %r1, %r1)
}

%fused_transpose (t0: f32[4096,4096]) -> f32[4096,4096] {
  %t0 = f32[4096,4096]{1,0} parameter(0)
  ROOT %turned = f32[4096,4096]{1,0} transpose(%t0), dimensions={1,0}
}

%fused_product (u0: bf16[16,32], u1: bf16[32,64]) -> bf16[16,64] {
  %u0 = bf16[16,32]{1,0} parameter(0)
  %u1 = bf16[32,64]{1,0} parameter(1)
  ROOT %product = bf16[16,64]{1,0} dot(%u0, %u1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (state: (s32[], f32[50,100])) -> (s32[], f32[50,100]) {
  %state = (s32[], f32[50,100]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %table = f32[50,100]{1,0} get-tuple-element(%state), index=1
  %next = f32[50,100]{1,0} fusion(%table, %i, %table), kind=kLoop, calls=%fused_slice
  ROOT %new = (s32[], f32[50,100]{1,0}) tuple(%i, %next)
}

%condition (before: (s32[], f32[50,100])) -> pred[] {
  %before = (s32[], f32[50,100]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%before), index=0
  ROOT %less = pred[] fusion(%j), kind=kLoop, calls=%fused_less
}

ENTRY %main (x: bf16[2,9,9,4]) -> f32[8] {
  %x = bf16[2,9,9,4]{3,2,1,0} parameter(0)
  %w = bf16[8,3,3,4]{3,2,1,0} parameter(1)
  %start = (s32[], f32[50,100]{1,0}) parameter(2)
  %big = f32[4096,4096]{1,0} parameter(3)
  %ids = s32[5,1]{1,0} parameter(4)
  %values = f32[5]{0} parameter(5)
  %large = f32[97,97,2,8]{3,2,1,0} parameter(6)
  %forward = (bf16[2,9,9,8]{3,2,1,0}, u8[999]{0}) custom-call(%x, %w), @conv@Forward", @layer3@
  %y = bf16[2,9,9,8]{3,2,1,0} get-tuple-element(%forward), index=0
  %input = (bf16[2,9,9,4]{3,2,1,0}, u8[0]{0}) custom-call(%y, %w), @conv@BackwardInput"
  %kernel = (f32[8,3,3,4]{3,2,1,0}, u8[0]{0}) custom-call(%x, %y), @conv@BackwardFilter"
  %image = (f32[3,3,2,8]{3,2,1,0}, u8[0]{0}) custom-call(%large, %large), @window@
  %gemm = (f32[769,10]{1,0}, s8[4194304]{0}) custom-call(%big, %big), @gemm@
  %fused_gemm = bf16[16,64]{1,0} fusion(%x, %w), kind=kCustom, calls=%fused_product
  %mean.2.remat = f32[8]{0} fusion(%y), kind=kInput, calls=%fused_reduce, @layer3@
  %counts = f32[100]{0} fusion(%values, %ids, %values), kind=kInput, calls=%fused_scatter
  %moved = f32[4096,4096]{1,0} fusion(%big), kind=kInput, calls=%fused_transpose
  %known = (s32[], f32[50,100]{1,0}) while(%start), condition=%condition, body=%body, @trips@
  %asked = (s32[], f32[50,100]{1,0}) while(%start), condition=%condition, body=%body, @tiles@
  %message = f32[8]{0} all-reduce-start(%mean.2.remat), to_apply=%add
  ROOT %result = f32[8]{0} all-reduce-done(%message)
}
"""
SUBSTITUTES = {
  "@conv@": 'window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$conv',
  "@window@": 'window={size=97x97}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"',
  "@layer3@": 'metadata={op_name="jit(train_step)/jvp(Segmenter)/backbone/layer3/0/conv1/op"}',
  "@gemm@": 'custom_call_target="__cublas$lt$matmul", backend_config={"lhs_contracting_dimensions":["1"],'
  '"precision_config":{"operand_precision":["HIGHEST","HIGHEST"]}}',
  "@trips@": 'backend_config={"known_trip_count":{"n":"7"}}',
  "@tiles@": 'metadata={op_name="jit(train_step)/jvp()/tiles/while"}',
}
for name, text in SUBSTITUTES.items():
  HLO = HLO.replace(name, text)

CONVOLUTION = 2 * (8 * 3 * 3 * 4) * (2 * 9 * 9)  # for each of the three
X, Y, W = 2 * 2 * 9 * 9 * 4, 2 * 2 * 9 * 9 * 8, 2 * 8 * 3 * 3 * 4  # bytes


@pytest.fixture(scope="module")
def kernels():
  return gpu_kernels.read(hlo_cost.parse(HLO), H100, {"tiles": 3})


def of_kind(kernels, kind):
  return [kernel for kernel in kernels if kernel.kind == kind]


def test_convolutions_and_their_gradients_equal_counts_by_hand(kernels) -> None:
  forward, image = of_kind(kernels, "convolution")
  (to_input,) = of_kind(kernels, "convolution, input gradient")
  (to_kernel,) = of_kind(kernels, "convolution, kernel gradient")
  assert forward.flops == to_input.flops == to_kernel.flops == CONVOLUTION
  # The second result of a call of cuDNN is a workspace.
  assert (forward.size, to_input.size, to_kernel.size) == (X + W + Y, Y + W + X, X + Y + 2 * W)
  assert forward.seconds == (X + W + Y) / 3.35e12
  # Float32 operands are multiplied as TF32, at half the rate. One operand twice is read once.
  assert image.size == 4 * (97 * 97 * 2 * 8 + 3 * 3 * 2 * 8)


def test_matrix_products_equal_counts_by_hand(kernels) -> None:
  cublas, fused = of_kind(kernels, "matrix product")
  assert cublas.flops == 2 * 769 * 10 * 4096 and fused.flops == 2 * 16 * 32 * 64
  assert cublas.size == 4 * (4096 * 4096 + 769 * 10)
  exact, rounded = H100.float32_rate, H100.tf32_rate
  assert math.isclose(exact, 66.9e12, rel_tol=1e-3) and rounded == 494.5e12


def test_the_rate_of_a_product_follows_its_operands() -> None:
  def seconds(dtype: str, precision: str) -> float:
    text = f"""
ENTRY %main (x: {dtype}[4096,4096]) -> {dtype}[4096,4096] {{
  %x = {dtype}[4096,4096]{{1,0}} parameter(0)
  ROOT %y = {dtype}[4096,4096]{{1,0}} dot(%x, %x), lhs_contracting_dims={{1}}, operand_precision={{{precision}}}
}}
"""
    (kernel,) = gpu_kernels.read(hlo_cost.parse(text), H100)
    return kernel.seconds

  flops = 2 * 4096**3
  assert seconds("bf16", "default,default") == flops / (0.8 * 989e12)
  assert seconds("f32", "default,default") == flops / (0.8 * 494.5e12)
  assert seconds("f32", "highest,highest") == flops / (0.8 * H100.float32_rate)


def test_kernels_of_loops_count_each_iteration_and_slices_only_their_bytes(kernels) -> None:
  updates = of_kind(kernels, "slice update")
  assert [kernel.runs for kernel in updates] == [7, 3]
  # The index, the slice that is read, and the slice that is written in place.
  assert {kernel.size for kernel in updates} == {4 + 400 + 400}
  assert [kernel.runs for kernel in of_kind(kernels, "elementwise")] == [7, 3]  # the loops' conditions


def test_a_scatter_is_done_in_place(kernels) -> None:
  (scatter,) = of_kind(kernels, "scatter")
  assert scatter.size == 4 * 5 + 4 * 5 + 4 * 5  # indices, new values, and the places that they take
  text = HLO.replace(
    "fusion(%values, %ids, %values), kind=kInput, calls=%fused_scatter",
    "scatter(%large, %ids, %values), to_apply=%add",
  )
  assert text != HLO
  (scatter,) = of_kind(gpu_kernels.read(hlo_cost.parse(text), H100, {"tiles": 3}), "scatter")
  assert scatter.size == 4 * 5 + 4 * 5 + 4 * 5


def test_sums_equal_counts_by_hand(kernels) -> None:
  cost = gpu_kernels.sum_up(kernels, HLO, H100)
  # Four convolutions, two products, a reduction, a scatter, a transpose, a message, and two kernels an iteration.
  assert cost.kernels == 4 + 2 + 1 + 1 + 1 + 1 + 2 * (7 + 3)
  assert cost.tiny == cost.kernels - 2  # not the product with `big` and its transpose
  assert cost.rematerialised == 1
  assert cost.size == sum(kernel.runs * kernel.size for kernel in kernels)
  assert math.isclose(cost.bound, sum(share.seconds for share in cost.by_module))
  assert math.isclose(cost.arithmetic, cost.flops / (0.8 * 989e12))
  assert {share.name for share in cost.by_module} == {"backbone/layer3", "other"}
  assert cost.by_kind[0].name == "transpose or copy" and cost.by_kind[0].size == 2 * 4 * 4096 * 4096


def test_warnings_name_kinds_and_modules() -> None:
  found = {
    warning.kind: warning
    for warning in program_warnings.read(hlo_cost.parse(HLO), "gpu", "bfloat16", {"tiles": 3})
  }
  assert {kind: warning.count for kind, warning in found.items()} == {
    "large_window": 1,
    "float32_convolution": 1,
    "large_move": 1,
    "adding_scatter": 1,
    "unknown_trips": 1,
  }
  assert found["unknown_trips"].modules == {"losses": 1}
  assert str(found["large_window"]).startswith("1 x convolutions with a filter above 15 pixels")


def test_float32_networks_and_loops_with_estimated_trips_of_a_tpu_get_no_warning() -> None:
  kinds = {
    warning.kind for warning in program_warnings.read(hlo_cost.parse(HLO), "tpu", "float32", {"tiles": 3})
  }
  assert not kinds & {"float32_convolution", "unknown_trips"}
  assert "unknown_trips" in {
    warning.kind for warning in program_warnings.read(hlo_cost.parse(HLO), "tpu", "float32")
  }


def test_a_scatter_without_equal_indices_gets_no_warning() -> None:
  text = HLO.replace("inserted_window_dims={0}, to_apply", "unique_indices=true, to_apply")
  assert text != HLO
  kinds = {warning.kind for warning in program_warnings.read(hlo_cost.parse(text), "gpu", "bfloat16")}
  assert "adding_scatter" not in kinds


def test_a_sum_over_devices_in_bfloat16_gets_a_warning() -> None:
  text = HLO.replace("%message = f32[8]{0} all-reduce-start", "%message = bf16[8]{0} all-reduce-start")
  assert text != HLO
  for platform in ("gpu", "tpu"):
    (warning,) = (
      each
      for each in program_warnings.read(hlo_cost.parse(text), platform, "bfloat16")
      if each.kind == "bfloat16_sum"
    )
    assert warning.count == 1


def test_a_float32_convolution_of_a_classifier_gets_no_warning() -> None:
  text = HLO.replace(
    'Forward"\n', 'Forward", metadata={op_name="jit(f)/jvp(Segmenter)/head/classifier/conv"}\n'
  )
  assert text != HLO
  kinds = {warning.kind for warning in program_warnings.read(hlo_cost.parse(text), "gpu", "bfloat16")}
  assert "float32_convolution" not in kinds and "large_window" in kinds


def has_gpu_plugin() -> bool:
  return all(map(importlib.util.find_spec, ("jax_plugins", "jax_plugins.xla_cuda13")))


@pytest.mark.skipif(not has_gpu_plugin(), reason="needs the extra gpu-compile")
def test_a_program_compiled_for_an_h100_is_read() -> None:
  sharding = jax.sharding.NamedSharding(topology.topology_mesh("h100:1"), jax.sharding.PartitionSpec())

  def loss(x: jax.Array, w: jax.Array) -> jax.Array:
    y = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.sum(jnp.tanh(y.astype(jnp.float32)))

  shapes = [
    jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)
    for shape in ((2, 16, 16, 32), (3, 3, 32, 64))
  ]
  compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile()
  kernels = gpu_kernels.read(hlo_cost.parse(compiled.as_text()), H100)
  convolutions = [kernel for kernel in kernels if kernel.kind.startswith("convolution")]
  assert len(convolutions) == 3
  assert {kernel.flops for kernel in convolutions} == {2 * 3 * 3 * 32 * 64 * 2 * 16 * 16}
