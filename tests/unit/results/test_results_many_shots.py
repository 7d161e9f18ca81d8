"""Many shots are counted by shortcuts; each gives what counting one by one gives."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter

import pytest

from prefect_qruntime.client import result_samples
from prefect_qruntime.client.result_samples import HexRegister, PackedRegister, tally


def _shots(bits: int, noise: float, number: int) -> list[int]:
    """As of a GHZ state: two outcomes, each bit flipped now and then; noise 1 gives anything."""
    rng = random.Random(f"{bits} {noise}")
    if noise == 1:
        return [rng.getrandbits(bits) for _ in range(number)]
    ends = (0, (1 << bits) - 1)
    return [ends[rng.getrandbits(1)] ^ (1 << rng.randrange(bits) if rng.random() < noise else 0) for _ in range(number)]


@pytest.mark.parametrize("with_numpy", [True, False])
@pytest.mark.parametrize("noise", [0, 0.1, 1])
@pytest.mark.parametrize("bits", [1, 4, 5, 8, 9, 16, 17, 24, 31, 32, 33, 64, 65])
def test_every_way_of_counting_agrees(
    bits: int, noise: float, with_numpy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_numpy:
        monkeypatch.delitem(sys.modules, "numpy", raising=False)
    shots = _shots(bits, noise, 10_001)  # an odd number: one is left when they are taken in pairs
    expected = Counter(f"{value:0{bits}b}" for value in shots)
    size = (bits + 7) // 8
    packed = PackedRegister(b"".join(value.to_bytes(size, "big") for value in shots), bits, (), len(shots), size)
    plain = HexRegister([hex(value) for value in shots], bits, ())
    for register in (packed, plain):
        counts = tally([register], 0)
        assert counts == expected
        assert list(counts.values()) == sorted(counts.values(), reverse=True)


@pytest.mark.parametrize(
    ("samples", "counts"),
    [
        (["0x1", "0x01", "0x0"], {"01": 2, "00": 1}),
        (["1", "0x1", "0x3"], {"01": 2, "11": 1}),
        (["0X1", "0x1"], {"01": 2}),
        ([1, "0x1"], {"01": 2}),
        ([], {}),
    ],
)
def test_odd_ways_to_write_a_digit(samples: list[str], counts: dict[str, int]) -> None:
    assert tally([HexRegister(samples, 2, ())], 0) == counts


@pytest.mark.parametrize("samples", [["0xg", "0x1"], ["zzz"]])
def test_what_is_no_digit_is_refused(samples: list[str]) -> None:
    with pytest.raises(ValueError, match="no hex string"):
        tally([HexRegister(samples, 2, ())], 0)


def test_numpy_is_not_loaded_for_few_shots() -> None:
    code = (
        "import sys, os\n"
        "from prefect_qruntime.client.result_samples import PackedRegister, tally\n"
        "data = os.urandom(200_000)\n"
        "assert sum(tally([PackedRegister(data, 16, (), 100_000, 2)], 0).values()) == 100_000\n"
        "assert 'numpy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert result_samples._MANY > 100_000
