"""Known answers of Philox4x32-10 (Random123's kat_vectors), and the uniform numbers made from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from proxlm.engine.request import SampleSeed
from proxlm.engine.uniforms import request_uniforms
from proxlm.kernels.philox import philox

KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter, key, answer, library):
    def words(numbers):
        of_numpy = [np.array([n], dtype=np.uint64) for n in numbers]
        return tuple(of_numpy if library == "numpy" else map(torch.tensor, ([n] for n in numbers)))

    assert tuple(int(x[0]) for x in philox(words(counter), words(key))) == answer


def draw(seed=1, stream=0, step=2, prompts=(5,), samples=(0,), positions=4, first=0):
    seeds = [SampleSeed(seed, stream, step, *pair, first) for pair in zip(prompts, samples, strict=True)]
    return request_uniforms(seeds, positions)


def test_a_number_depends_on_its_own_counters_only():
    many = draw(prompts=(9, 5, 7), samples=(0, 0, 3), positions=6)
    assert torch.equal(many[1, :4], draw()[0])


def test_every_counter_matters():
    base = draw()
    for other in (draw(seed=2), draw(stream=1), draw(step=3), draw(prompts=(6,)), draw(samples=(1,))):
        assert (other != base).all()


def test_uniform_in_0_1():
    numbers = draw(prompts=range(100), samples=[0] * 100, positions=200).flatten()
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    assert len(numbers.unique()) == 20_000
    # Kolmogorov–Smirnov distance: 1.63 / √n is its 1% point.
    ordered = numbers.sort().values
    grid = torch.arange(20_000) / 20_000
    assert float((ordered - grid).abs().max()) < 1.63 / 20_000**0.5


def test_a_later_turn_continues_the_numbers_of_its_text():
    assert torch.equal(draw(positions=3, first=5), draw(positions=8)[:, 5:])
