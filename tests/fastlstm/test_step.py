"""One update: against the same update made of torch's own parts, in every precision; on a GPU captured."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from corpora import random_text, write_corpus
from torch import Tensor
from torch.nn import functional as F

from fastlstm.config import load_config
from fastlstm.corpus.shards import Corpus
from fastlstm.training.config import TrainConfig, resolved
from fastlstm.training.feed import Packet
from fastlstm.training.health import cell_health
from fastlstm.training.optimizer import BACKOFF, FIRST_SCALE, Adam
from fastlstm.training.start import Training, build_model, start
from tolerance import assert_as_good_as, relative_error

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = [
    *("model.hidden_size=12", "data.batch_size=6", "data.window=8", "data.passes=9", "data.reset=document"),
    *("optimizer.learning_rate=0.02", "optimizer.clip=0.05", "optimizer.weight_decay=0.1", "optimizer.warmup_steps=2"),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("data") / "corpus", {"train": random_text(60, 23)})


def begin(corpus: Corpus, *overrides: str, device: torch.device = DEVICE) -> tuple[Training, TrainConfig]:
    config = resolved(load_config(TrainConfig, None, [*SMALL, *overrides]), device)
    return start(config, corpus, device), config


def run(training: Training, updates: int) -> None:
    for number in range(updates):
        if training.feed.load(number):
            training.step.zero_state()
        training.step()


def plain_updates(corpus: Corpus, updates: int, dtype: torch.dtype) -> tuple[dict[str, Tensor], float]:
    """Weights and the mean loss (bits) after updates with torch.optim.AdamW, all in ``dtype``."""
    training, config = begin(corpus, "optimizer.precision=fp32", device=torch.device("cpu"))
    model = build_model(config.model).to(dtype)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adam = torch.optim.AdamW(trained, weight_decay=0.1, fused=True)
    state, losses = None, []
    for number in range(updates):
        packet = training.step.packet
        if training.feed.load(number):
            state = None
        adam.param_groups[0]["lr"] = packet.rate.item()
        logits, state = model(packet.ids[:-1], state, packet.resets)
        state = state[0].detach(), state[1].detach()
        loss = F.cross_entropy(logits.flatten(0, 1), packet.ids[1:].flatten().long())
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        adam.step()
        losses.append(loss.item() / math.log(2))
    return model.state_dict(), float(np.mean(losses))


def test_an_update_in_fp32_on_a_cpu_is_torchs_own_to_the_bit(corpus: Corpus) -> None:
    training, _ = begin(corpus, "optimizer.precision=fp32", device=torch.device("cpu"))
    run(training, 6)
    weights, loss = plain_updates(corpus, 6, torch.float32)
    for name, tensor in training.step.model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    assert training.step.take_totals().loss == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_keeps_its_weights_in_float32(corpus: Corpus, precision: str) -> None:
    """After some updates the weights moved as the truth's did, up to what the gradients' dtype rounds."""
    training, config = begin(corpus, f"optimizer.precision={precision}")
    run(training, 4)
    truth, loss = plain_updates(corpus, 4, torch.float64)
    before = build_model(config.model).state_dict()
    # Adam's first updates are the gradient's sign: an element near zero moves by a whole rate either way.
    allowed = {"fp32": 0.02, "bf16": 0.4, "fp16": 0.15}[precision]
    for name, tensor in training.step.model.state_dict().items():
        if name == "lstm.bias_hh_l0":
            continue
        assert tensor.dtype == torch.float32
        assert relative_error(tensor.cpu() - before[name], truth[name] - before[name].double()) < allowed, name
        working = training.step.working.state_dict()[name]
        assert torch.equal(working, tensor.to(working.dtype)), name
    totals = training.step.take_totals()
    assert totals.loss == pytest.approx(loss, rel=1e-5 if precision == "fp32" else 2e-3)
    assert totals.skipped == 0


def test_the_shard_s_state_is_carried_in_place(corpus: Corpus) -> None:
    training, _ = begin(corpus, "data.reset=shard", "optimizer.precision=fp32", "optimizer.learning_rate=1e-30")
    run(training, 2)
    h, c = (part.clone() for part in training.step.state)
    training.feed.load(0)
    training.step.zero_state()
    first = training.step.packet.ids[:-1].clone()
    training.feed.load(1)
    both = torch.cat((first, training.step.packet.ids[:-1]))
    with torch.no_grad():
        _, (whole_h, whole_c) = training.step.model(both)
    torch.testing.assert_close(h, whole_h)
    torch.testing.assert_close(c, whole_c)


def gradients_and_weights(scale: float) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 7), (3,)]
    draw = [torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes]
    return [scale * torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes], draw


@pytest.mark.parametrize("scale", [0.01, 30.0])
def test_adam_clips_as_torch_does(scale: float) -> None:
    gradients, weights = gradients_and_weights(scale)
    theirs = [torch.nn.Parameter(weight.double()) for weight in weights]
    naive = [torch.nn.Parameter(weight.clone()) for weight in weights]
    adam = Adam(weights, None, clip=1.0, weight_decay=0.3)
    rate = torch.tensor(0.01, dtype=torch.float64, device=DEVICE)
    optimizers = [torch.optim.AdamW(each, lr=0.01, weight_decay=0.3) for each in (theirs, naive)]
    for _ in range(3):
        for parameters, optimizer in zip((theirs, naive), optimizers, strict=True):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone().to(parameter.dtype)
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        got, left_out = adam.update([gradient.clone() for gradient in gradients], rate)
        assert got.item() == pytest.approx(norm.item(), rel=1e-6)
        assert left_out == 0
    for weight, plain, truth in zip(weights, naive, theirs, strict=True):
        assert_as_good_as("weight", weight, plain, truth)


def test_an_overflow_in_fp16_leaves_the_update_out() -> None:
    gradients, weights = gradients_and_weights(1.0)
    copies = [weight.half() for weight in weights]
    adam = Adam(weights, copies, clip=1.0, weight_decay=0.3, scaled=True)
    rate = torch.tensor(0.01, dtype=torch.float64, device=DEVICE)
    before = [weight.clone() for weight in weights]
    norm, left_out = adam.update([(gradient * torch.inf).half() for gradient in gradients], rate)
    assert (norm.item(), left_out.item(), adam.steps.item()) == (0, 1, 0)
    assert adam.scale.item() == FIRST_SCALE * BACKOFF
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))

    plain = Adam([old.clone() for old in before], None, clip=1.0, weight_decay=0.3)
    expected, _ = plain.update([gradient.half().float() for gradient in gradients], rate)
    adam.scale.fill_(4.0)  # a power of two: exact
    norm, left_out = adam.update([(4 * gradient).half() for gradient in gradients], rate)
    assert (norm.item(), left_out.item()) == (pytest.approx(expected.item(), rel=1e-6), 0)
    for weight, other in zip(weights, plain.weights, strict=True):
        assert relative_error(weight - 0, other) < 4 * torch.finfo(torch.float32).eps
        assert not torch.equal(weight, before[0])


def test_an_optimizer_goes_on_from_its_tensors() -> None:
    gradients, weights = gradients_and_weights(1.0)
    rate = torch.tensor(0.01, dtype=torch.float64, device=DEVICE)
    one = Adam(weights, None, clip=1.0, weight_decay=0.0, scaled=True)
    one.update([gradient.clone() for gradient in gradients], rate)
    two = Adam([weight.clone() for weight in weights], None, clip=1.0, weight_decay=0.0, scaled=True)
    two.load_state_dict(["a", "b"], one.state_dict(["a", "b"]))
    for adam in (one, two):
        adam.update([gradient.clone() for gradient in gradients], rate)
    assert all(torch.equal(a, b) for a, b in zip(one.tensors(), two.tensors(), strict=True))


@pytest.mark.parametrize(("T", "B"), [(8, 6), (1, 1), (128, 3)])
def test_a_packet_s_parts_do_not_overlap(T: int, B: int) -> None:
    packet = Packet(T, B, True, "cpu")
    assert packet.resets is not None
    packet.ids.fill_(7)
    packet.resets.fill_(True)
    packet.rate.fill_(0.25)
    assert (packet.ids.shape, packet.resets.shape) == ((T + 1, B), (T, B))
    assert bool((packet.ids == 7).all())
    assert bool(packet.resets.all())
    assert packet.rate.item() == 0.25
    assert all(tensor.storage_offset() * tensor.element_size() % 16 == 0 for tensor in (packet.ids, packet.resets))
    packet.block.zero_()
    assert not packet.ids.any()
    assert not packet.resets.any()
    assert packet.rate == 0


def test_health_is_what_a_loop_over_bytes_finds() -> None:
    model = build_model(load_config(TrainConfig, None, ["model.hidden_size=9"]).model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6)  # gates that saturate
        for rows in (slice(0, 3), slice(9, 12), slice(18, 21)):  # three cells that count bytes
            model.lstm.weight_ih_l0[rows] += 8
    ids = torch.randint(0, 256, (70, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    resets = torch.zeros(70, 3, dtype=torch.bool)
    resets[25, 1] = True
    h = c = torch.full((3, 9), 0.5)
    got = cell_health(model, ids, (h[None], c[None]), resets)
    w_ih, w_hh, bias, _ = (parameter.detach() for parameter in model.lstm.parameters())
    cells, gates = [], []
    for step, reset in zip(ids, resets, strict=True):
        h, c = h * ~reset[:, None], c * ~reset[:, None]
        i, f, g, o = (w_ih.t()[step.long()] + h @ w_hh.t() + bias).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        cells.append(c)
        gates.append(torch.stack((i, f, o)).sigmoid())
    every, opened = torch.stack(cells), torch.stack(gates)
    expected = {f"cell_p{q}": every.abs().quantile(q / 100).item() for q in (50, 90, 99)}
    expected |= {"cell_max": every.abs().max().item()}
    stuck = ((opened < 0.1) | (opened > 0.9)).float().mean((0, 2, 3)).tolist()
    expected |= dict(zip(("saturated_input", "saturated_forget", "saturated_output"), stuck, strict=True))
    expected["wide_cells"] = float((every.flatten(0, 1).std(0, correction=0) > 10).sum())
    assert got == pytest.approx(expected, rel=1e-4)
    assert 0 < got["wide_cells"] < 9
    assert 0.1 < got["saturated_input"] < 0.99


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_a_captured_update_is_the_eager_one(corpus: Corpus, precision: str) -> None:
    sizes = [f"optimizer.precision={precision}", "model.hidden_size=256", "data.batch_size=16", "optimizer.clip=1"]
    both = [begin(corpus, *sizes, f"run.graph={graph}")[0] for graph in ("true", "false")]
    for training in both:
        run(training, 20)
    captured, eager = (training.step for training in both)
    for one, other in zip(captured.optimizer.tensors(), eager.optimizer.tensors(), strict=True):
        assert torch.equal(one, other)
    assert all(torch.equal(one, other) for one, other in zip(captured.state, eager.state, strict=True))
    assert captured.take_totals() == eager.take_totals()


@pytest.mark.gpu
def test_the_feed_of_a_gpu_is_that_of_a_cpu(corpus: Corpus) -> None:
    ours, theirs = begin(corpus)[0], begin(corpus, device=torch.device("cpu"))[0]
    for number in range(30):
        assert ours.feed.load(number) == theirs.feed.load(number)
        assert torch.equal(ours.step.packet.block.cpu(), theirs.step.packet.block)
