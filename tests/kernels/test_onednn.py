"""oneDNN's layer against float64, and what keeps its undocumented workspace from being misread."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastlstm_kernels import eager, onednn, reference
from tolerance import assert_as_good_as

pytestmark = pytest.mark.skipif(not eager.HAS_ONEDNN, reason="needs torch with oneDNN on x86")


class Arguments(NamedTuple):
    x: Tensor
    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor | None
    h0: Tensor
    c0: Tensor


def draw(T: int, B: int, I: int, H: int, *, ids: bool = False, scale: float = 1.0) -> Arguments:
    generator = torch.Generator().manual_seed(T + 100 * B + 10_000 * H)

    def normal(*shape: int) -> Tensor:
        return scale * torch.randn(*shape, generator=generator)

    x = torch.randint(0, I, (T, B), dtype=torch.uint8, generator=generator) if ids else normal(T, B, I)
    weights = (normal(4 * H, I) / scale / I**0.5, normal(4 * H, H) / scale / H**0.5)
    return Arguments(x, *weights, normal(4 * H), normal(B, H), normal(B, H))


def plain(given: Arguments, dtype: torch.dtype) -> dict[str, Tensor]:
    """h and c of every step by the reference, all in ``dtype``."""
    x, *others = given
    dense = F.one_hot(x.long(), given.weight_ih.shape[1]) if x.dim() == 2 else x
    weight_ih, weight_hh, bias, h0, c0 = (None if tensor is None else tensor.to(dtype) for tensor in others)
    assert weight_ih is not None
    assert weight_hh is not None
    assert h0 is not None
    assert c0 is not None
    out = reference.lstm_forward(F.linear(dense.to(dtype), weight_ih, bias), weight_hh, h0, c0)
    return {"h": out.h, "c": out.c}


def assert_right(given: Arguments, got: onednn.Layer) -> None:
    truth, naive = plain(given, torch.float64), plain(given, torch.float32)
    assert got.cells is not None
    assert torch.equal(got.c_n, got.cells[-1])
    for name, tensor in (("h", got.h), ("c", got.cells)):
        assert_as_good_as(name, tensor, naive[name], truth[name])


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize(
    ("T", "B", "I", "H"),
    [(4, 3, 5, 16), (7, 19, 33, 37), (5, 1, 1, 1), (4, 2, 200, 64), (9, 1, 256, 128), (6, 16, 17, 256), (4, 5, 8, 272)],
)
def test_every_output_is_right(T: int, B: int, I: int, H: int, ids: bool) -> None:
    given = draw(T, B, I, H, ids=ids)
    with torch.no_grad():
        assert onednn.serves(*given)
        every, least = (onednn.lstm_layer(*given, save_cells=cells) for cells in (True, False))
        again = onednn.lstm_layer(*given, save_cells=True)
    assert_right(given, every)
    assert least.cells is None
    for one in (least, again):
        assert torch.equal(one.h, every.h)
        assert torch.equal(one.c_n, every.c_n)


@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_small_and_large_arguments_are_right(scale: float) -> None:
    given = draw(6, 3, 20, 32, scale=scale)
    assert_right(given, onednn.lstm_layer(*given, save_cells=True))


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_parts_of_the_steps_join(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = draw(7, 3, 5, 16)._replace(bias=None)
    size = sum(onednn.workspace_parts(onednn.Sizes(steps, 3, 16), 5))
    monkeypatch.setattr(onednn, "WORKSPACE_BYTES", size)
    assert_right(given, onednn.lstm_layer(*given, save_cells=True))


def test_strides_and_inference_mode_do_not_matter() -> None:
    given = draw(5, 3, 6, 8)
    strided = Arguments(*(torch.repeat_interleave(tensor, 2, -1)[..., ::2] for tensor in given if tensor is not None))
    with torch.inference_mode():
        got = onednn.lstm_layer(*strided, save_cells=True)
    expected = onednn.lstm_layer(*given, save_cells=True)
    assert torch.equal(got.h, expected.h)
    assert got.cells is not None
    assert expected.cells is not None
    assert torch.equal(got.cells, expected.cells)


def test_parameters_give_no_graph_and_the_workspace_is_freed() -> None:
    given = draw(6, 3, 5, 16)
    given.weight_hh.requires_grad_()
    with torch.no_grad():
        got = onednn.lstm_layer(*given, save_cells=True)
    assert got.cells is not None
    for tensor in got:
        assert tensor is not None
        assert not tensor.requires_grad
        assert tensor.untyped_storage().nbytes() == 4 * tensor.numel()


def test_another_size_of_workspace_runs_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    given = draw(6, 3, 5, 16)
    monkeypatch.setattr(onednn, "workspace_parts", lambda sizes, width: (4096,) * 7)
    with pytest.warns(UserWarning, match="not laid out as expected"):
        got = onednn.lstm_layer(*given, save_cells=True)
    assert_right(given, got)


def test_nan_is_no_sign_of_a_wrong_layout() -> None:
    given = draw(6, 3, 5, 16)
    given.x[2, 1] = torch.nan
    got = onednn.lstm_layer(*given, save_cells=True)
    assert got.cells is not None
    for tensor in (got.h, got.cells):
        assert tensor[2:, 1].isnan().all()
        assert tensor[:, ::2].isfinite().all()


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("shift", [-48, -1, 1, 48])
def test_cells_that_do_not_fit_h_are_not_returned(shift: int, ids: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    given = draw(6, 3, 5, 16, ids=ids)

    def elsewhere(workspace: Tensor, sizes: onednn.Sizes, width: int) -> Tensor:
        view = found(workspace, sizes, width)
        assert view is not None
        return view.as_strided(view.shape, view.stride(), view.storage_offset() + shift)

    found = onednn.cells_before_last
    monkeypatch.setattr(onednn, "cells_before_last", elsewhere)
    with pytest.warns(UserWarning, match="not laid out as expected"):
        got = onednn.lstm_layer(*given, save_cells=True)
    assert_right(given, got)


def test_what_it_does_not_serve() -> None:
    given = draw(4, 3, 5, 16)
    assert onednn.serves(*given)
    assert onednn.serves(*given._replace(bias=None))
    wrong = {
        "float64": Arguments(*(tensor.double() for tensor in given if tensor is not None)),
        "few steps": given._replace(x=given.x[:3]),
        "no sequences": given._replace(x=given.x[:, :0], h0=given.h0[:0], c0=given.c0[:0]),
        "a gradient": given._replace(weight_hh=given.weight_hh.clone().requires_grad_()),
        "features": given._replace(x=given.x[:, :, :4]),
        "rows of weight_ih": given._replace(weight_ih=given.weight_ih[:63]),
        "rows of weight_hh": given._replace(weight_hh=given.weight_hh[:63]),
        "bias": given._replace(bias=torch.zeros(63)),
        "state": given._replace(h0=given.h0[:2]),
    }
    assert [name for name, arguments in wrong.items() if onednn.serves(*arguments)] == []
