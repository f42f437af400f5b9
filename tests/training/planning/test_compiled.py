# ruff: noqa: E501 (lines are as XLA prints them)
"""What is read in a compiled program's text: by hand for instructions of a GPU and of a TPU, and on this machine."""

import jax
import jax.numpy as jnp
import pytest

from audiosep_jax.training.planning.compiled import entry_instructions, read_compiled

GPU = """HloModule jit_step

%fused_select (p: bf16[4,64,128,32]) -> bf16[4,64,128,32] {
  %p = bf16[4,64,128,32]{3,2,1,0} parameter(0)
  ROOT %n = bf16[4,64,128,32]{3,2,1,0} negate(%p)
}

ENTRY %main (w: bf16[32,3,3,32], x: bf16[4,64,128,32]) -> bf16[32768,64] {
  %w = bf16[32,3,3,32]{3,2,1,0} parameter(0), metadata={op_name="w"}
  %x = bf16[4,64,128,32]{3,2,1,0} parameter(1)
  %k = bf16[32,64]{1,0} constant({...})
  %conv = (bf16[4,64,128,32]{3,2,1,0}, u8[1024]{0}) custom-call(%x, %w), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", metadata={op_name="jit(step)/jvp(Net)/resunet/encoder_block1/conv1/conv_general_dilated" stack_frame_id=9}, backend_config={"a":"(b"}
  %y = bf16[4,64,128,32]{3,2,1,0} get-tuple-element(%conv), index=0
  %act = bf16[4,64,128,32]{3,2,1,0} fusion(%y), kind=kLoop, calls=%fused_select, metadata={op_name="jit(step)/transpose(jvp(Net))/resunet/encoder_block1/norm2/select_n"}
  %rows = bf16[32768,32]{1,0} bitcast(%act)
  ROOT %gemm = (bf16[32768,64]{1,0}, s8[33554432]{0}) custom-call(%rows, %k), custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(step)/dot_general"}
}
"""

TPU = """ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %near = f32[8,128]{1,0:T(8,128)S(1)} copy(%x), backend_config={"window_config":{"estimated_cycles":"100"}}
  %start = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %done = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%start)
  ROOT %y = f32[8,128]{1,0:T(8,128)} fusion(%near, %done), kind=kLoop, calls=%f, backend_config={"window_config":{"estimated_cycles":"2500"}}
}
"""

TENSOR = 4 * 64 * 128 * 32 * 2


def test_instructions_of_a_gpu():
    conv, act, gemm = entry_instructions(GPU)
    assert (conv.kind, act.kind, gemm.kind) == ('cudnn convForward', 'fusion', 'cublas lt matmul')
    assert (conv.module, act.module) == ('encoder_block1/conv1', 'encoder_block1/norm2 gradient')
    # Operands and results, without the workspace.
    assert conv.bytes == 2 * TENSOR + 32 * 9 * 32 * 2
    assert act.bytes == 2 * TENSOR
    assert gemm.bytes == TENSOR + 32 * 64 * 2 + 32768 * 64 * 2
    assert conv.flops == 2 * 4 * 64 * 128 * 32 * 32 * 9
    assert gemm.flops == 2 * 32768 * 32 * 64
    assert act.flops == 0
    assert (conv.result, gemm.result) == ('bf16[4,64,128,32]', 'bf16[32768,64]')
    assert {conv.cycles, act.cycles, gemm.cycles} == {None}


def test_instructions_of_a_tpu():
    near, start, fusion = entry_instructions(TPU)
    assert (near.cycles, start.cycles, fusion.cycles) == (100, None, 2500)
    # What is in the memory on the chip is not read from the other.
    assert (near.bytes, start.bytes, fusion.bytes) == (4096, 8192, 4096)


def test_a_program_of_this_machine():
    x = jnp.zeros((256, 512))
    read = read_compiled(jax.jit(lambda x: jnp.tanh(x) @ x.T).lower(x).compile())
    assert (read.arguments, read.results) == (x.nbytes, 256 * 256 * 4)
    assert read.memory >= read.arguments + read.results
    assert (read.cycles, read.accessed) == (None, None)
    assert read.traffic == sum(each.bytes for each in read.instructions) > x.nbytes


@pytest.mark.parametrize('text', ['', 'ENTRY %main () -> f32[] {\n}\n', 'no program at all'])
def test_a_text_without_instructions(text):
    assert [*entry_instructions(text)] == []
