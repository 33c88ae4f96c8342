"""Tensors of several libraries, in and out."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import HIDDEN, TOKENS, config, routing, small_integers

import epistle


def alone(**changes: object) -> epistle.Dispatcher:
    [group] = epistle.Group.threads(1)
    return epistle.Dispatcher(group, "direct", config(**changes))


def test_numpy_sees_the_same_memory() -> None:
    moe = alone()
    ids, weights = routing(0, 1)
    received = moe.dispatch(small_integers((TOKENS, HIDDEN), 1), expert_ids=ids, weights=weights)
    for view in (np.asarray(received.rows), np.from_dlpack(received.rows), received.rows.numpy()):
        assert view.ctypes.data == received.rows.data_pointer
        assert view.dtype == np.float32 and view.shape == received.rows.shape
    assert received.rows.strides == (HIDDEN, 1)
    assert repr(received.rows).startswith("<epistle.Array float32 (")
    with pytest.raises(TypeError, match="bits"):
        received.rows.bits()


def test_bf16_as_bits_or_with_ml_dtypes() -> None:
    moe = alone(input="bf16")
    ids, _ = routing(0, 1)
    bits = np.arange(TOKENS * HIDDEN, dtype=np.uint16).reshape(TOKENS, HIDDEN)
    received = moe.dispatch(bits, expert_ids=ids)
    assert received.rows.dtype == "bfloat16"
    np.testing.assert_array_equal(received.rows.bits(), bits[np.asarray(received.src_token)])
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert received.rows.numpy().dtype == ml_dtypes.bfloat16
    received.release()
    values = small_integers((TOKENS, HIDDEN), 1).astype(ml_dtypes.bfloat16)
    received = moe.dispatch(values, expert_ids=ids)
    np.testing.assert_array_equal(received.rows.numpy(), values[np.asarray(received.src_token)])


def test_quantised_rows_have_scales() -> None:
    moe = alone(input="bf16", hidden=256, wire=epistle.Fp8Blocks())
    ids, _ = routing(0, 1)
    received = moe.dispatch(np.full((TOKENS, 256), 0x3F80, dtype=np.uint16), expert_ids=ids)  # 1.0
    assert received.rows.dtype == "float8_e4m3fn" and received.rows.shape == (received.num_rows, 256)
    assert received.scales is not None
    np.testing.assert_array_equal(received.scales, np.full((received.num_rows, 2), np.float32(1 / 448), np.float32))
    np.testing.assert_array_equal(received.rows.bits(), np.full((received.num_rows, 256), 0x7E, np.uint8))  # 448


def test_jax() -> None:
    jax = pytest.importorskip("jax")
    numpy = jax.numpy
    moe = alone()
    ids, weights = routing(0, 1)
    tokens = numpy.asarray(small_integers((TOKENS, HIDDEN), 1))
    received = moe.dispatch(tokens, expert_ids=numpy.asarray(ids), weights=numpy.asarray(weights))
    rows = jax.dlpack.from_dlpack(received.rows)
    np.testing.assert_array_equal(rows, np.asarray(tokens)[np.asarray(received.src_token)])
    out = np.empty((TOKENS, HIDDEN), np.float32)
    moe.combine(out, rows=rows * 2, handle=received.handle)
    factor = np.zeros(TOKENS, np.float32)
    factor[:] = 2 * (weights * (ids >= 0)).sum(1)
    np.testing.assert_array_equal(out, np.asarray(tokens) * factor[:, None])
    with pytest.raises(epistle.Error, match="written"):
        moe.combine(tokens, rows=rows, handle=received.handle)


def test_torch() -> None:
    torch = pytest.importorskip("torch")
    moe = alone(input="bf16")
    ids, weights = (torch.from_numpy(table) for table in routing(0, 1))
    tokens = torch.from_numpy(small_integers((TOKENS, HIDDEN), 1)).bfloat16().requires_grad_()
    received = moe.dispatch(tokens, expert_ids=ids.long(), weights=weights)
    rows = received.rows.torch()
    assert rows.dtype == torch.bfloat16 and rows.data_ptr() == received.rows.data_pointer
    assert torch.equal(rows, tokens.detach()[received.src_token.torch().long()])
    out = torch.empty_like(tokens, requires_grad=False)
    moe.combine(out, rows=rows, handle=received.handle)
    assert torch.equal(out, (tokens.detach() * (weights * (ids >= 0)).sum(1, keepdim=True)).bfloat16())
