"""Text from a model: the prime is read byte by byte into the state, then bytes are drawn one after another."""

from __future__ import annotations

import torch

from fastlstm.errors import InputError
from fastlstm.model import ByteLM


@torch.no_grad()
def sample(model: ByteLM, prime: bytes, length: int, *, temperature: float = 1.0, seed: int = 0) -> bytes:
    """``length`` bytes that go on after ``prime`` (without it).

    ``temperature`` divides the logits (Hinton et al. 2015); 0 takes the most probable byte each time. Raises
    ``InputError`` for an empty prime, a negative temperature or a length below 1.
    """
    if not prime:
        raise InputError("prime: expected at least one byte, got none")
    if not 0 <= temperature < float("inf"):
        raise InputError(f"temperature: expected a number >= 0, got {temperature}")
    if not 0 <= seed < 2**63:
        raise InputError(f"seed: expected 0 to 2^63 - 1, got {seed}")
    if length < 1:
        raise InputError(f"length: expected >= 1 byte, got {length}")
    device = model.head.weight.device
    generator = torch.Generator(device=device).manual_seed(seed)
    ids = torch.frombuffer(bytearray(prime), dtype=torch.uint8).to(device).unsqueeze(1)
    logits, state = model(ids)
    drawn = bytearray()
    for _ in range(length):
        last = logits[-1, 0].float()
        if temperature == 0:
            byte = last.argmax().view(1)
        else:
            byte = torch.multinomial(((last - last.max()) / temperature).softmax(0), 1, generator=generator)
        drawn.append(int(byte.item()))
        if len(drawn) < length:
            logits, state = model(byte.to(torch.uint8).view(1, 1), state)
    return bytes(drawn)
