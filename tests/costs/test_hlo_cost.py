"""Cycles and messages, read from a program written by hand and from one that this machine compiles."""

import jax
import jax.numpy as jnp
import pytest

from rc_jax.costs import hlo_cost

HLO = """\
HloModule step, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner_body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %f = f32[8]{0:T(128)} fusion(%x), kind=kLoop, calls=%fused, backend_config={"window":{"estimated_cycles":"10"}}
  %r = bf16[4,8]{1,0} all-reduce(%f), to_apply=%add
  ROOT %t = (s32[], f32[8]{0}) tuple(%p, %f)
}

%inner_condition (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]{0}) parameter(0)
  ROOT %less = pred[] fusion(%p), kind=kLoop, calls=%fused, backend_config={"window":{"estimated_cycles":"1"}}
}

%outer_body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  ROOT %w = (s32[], f32[8]{0}) while(%p), condition=%inner_condition, body=%inner_body, @scope@
}

%outer_condition (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]{0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

%cheap (x: f32[8]) -> f32[8] {
  ROOT %x = f32[8]{0} parameter(0)
}

%expensive (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %f = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused, backend_config={"window":{"estimated_cycles":"7"}}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %start = (f32[8]{0}, f32[16]{0}) all-gather-start(%x), dimensions={0}
  %done = f32[16]{0} all-gather-done(%start)
  %w = (s32[], f32[8]{0}) while(%x), condition=%outer_condition, body=%outer_body, @trips@
  %chosen = f32[8]{0} conditional(%p, %x, %x), true_computation=%cheap, false_computation=%expensive
  ROOT %f = f32[8]{0} fusion(%x), kind=kLoop, calls=%expensive, backend_config={"window":{"estimated_cycles":"100"}}
}
"""


# XLA writes these on the same lines, which would be too long above.
HLO = HLO.replace("@scope@", 'metadata={op_name="jit(f)/blocks/while/body/tiles/while"}')
HLO = HLO.replace("@trips@", 'backend_config={"known_trip_count":{"n":"3"}}')


def test_cycles_count_each_iteration_and_the_more_expensive_choice() -> None:
  cost = hlo_cost.read(hlo_cost.parse(HLO), {"tiles": 5, "blocks": 1000})
  # A fusion counts with its own estimate, not with those of the operations in it.
  assert cost.cycles == 3 * 5 * (10 + 1) + 7 + 100
  assert cost.unknown_loops == ()
  assert cost.operations == 3 * 5 * (2 + 1) + 2 + 1  # in loops; the message and the last fusion; the choice
  reduce, gather = cost.collectives
  assert (reduce.kind, reduce.count, reduce.size, reduce.largest) == ("all-reduce", 15, 15 * 64, 64)
  assert (gather.kind, gather.count) == ("all-gather", 1)
  assert cost.heaviest[0][0] == 3 * 5 * 10


def test_a_loop_with_unknown_iterations_is_listed_and_counts_once() -> None:
  cost = hlo_cost.read(hlo_cost.parse(HLO))
  assert cost.cycles == 3 * (10 + 1) + 7 + 100
  assert cost.unknown_loops == ("jit(f)/blocks/while/body/tiles/while",)


def test_text_without_an_entry_is_refused() -> None:
  with pytest.raises(ValueError, match="no ENTRY"):
    hlo_cost.read(hlo_cost.parse("HloModule nothing"))


@pytest.mark.parametrize(
  ("shape", "size"),
  [
    ("f32[8,128]{1,0:T(8,128)S(1)}", 4096),
    ("(bf16[4]{0}, /*index=1*/s32[], pred[3]{0})", 8 + 4 + 3),
    ("f8e4m3fn[16]", 16),
    ("u4[16]", 8),
    ("token[]", 0),
  ],
)
def test_bytes_of_a_shape_equal_counts_by_hand(shape: str, size: int) -> None:
  assert hlo_cost.shape_bytes(shape) == size


def test_a_compiled_program_is_read() -> None:
  def loop(x: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, 5, lambda i, x: jnp.sin(x @ x), x)

  text = jax.jit(loop).lower(jnp.ones((8, 8))).compile().as_text()
  computations, entry = hlo_cost.parse(text)
  loops = [line for lines in computations.values() for line in lines if line.opcode == "while"]
  assert entry in computations and [loop.trips for loop in loops] == [5]
  assert all(set(loop.called) <= computations.keys() for loop in loops)
  cost = hlo_cost.read(hlo_cost.parse(text))
  assert (
    cost.cycles == 0
    and cost.operations >= 5
    and not (cost.unknown_loops or cost.collectives or cost.heaviest)
  )
