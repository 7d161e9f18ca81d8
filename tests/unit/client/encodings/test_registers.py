"""Many shots are counted by shortcuts; each gives what counting one by one gives."""

from __future__ import annotations

import base64
import random
import subprocess
import sys
import tracemalloc
import zlib
from collections import Counter

import pytest

from prefect_qruntime.client.encodings import registers
from prefect_qruntime.client.encodings.registers import HexRegister, PackedRegister, tally
from prefect_qruntime.client.results.job_result import JobResult
from prefect_qruntime.errors import QuantumRuntimeError


def _packed(bits: int, rows: str) -> dict[str, object]:
    """A `BitArray` of the rows given as hex digits."""
    data = bytes.fromhex(rows)
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({len(rows.split())}, {(bits + 7) // 8})}}".encode()
    npy = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data
    text = base64.b64encode(zlib.compress(npy)).decode()
    return {
        "__type__": "BitArray",
        "__value__": {"array": {"__type__": "ndarray", "__value__": text}, "num_bits": bits},
    }


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
    with pytest.raises(ValueError, match="not a hex string"):
        tally([HexRegister(samples, 2, ())], 0)


def _zeros(shape: str, bits: int, size: int = 20_000_000) -> dict[str, object]:
    header = f"{{'descr': '|u1', 'fortran_order': True, 'shape': {shape}}}".encode()
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(size)
    text = base64.b64encode(zlib.compress(data)).decode()
    return {
        "__type__": "BitArray",
        "__value__": {"array": {"__type__": "ndarray", "__value__": text}, "num_bits": bits},
    }


def test_ten_million_shots_unfold_to_little_more_than_their_bytes() -> None:
    result = JobResult.from_body({"results": [{"data": {"c": _zeros("(10000000, 2)", 16)}}]}, job_id="d1")
    tracemalloc.start()
    counts = result.counts()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert counts == {"0" * 16: 10_000_000}
    assert peak < 150_000_000  # seven times the 20 MB of bits


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"samples": ["0x3", "0x7"], "num_bits": 2}, "does not fit into 2 bits"),
        ({"samples": ["0x1", "-0x1"], "num_bits": 2}, "-0x1 does not fit"),
        ({"samples": ["0x1", "-0x1"]}, "-0x1 does not fit"),
        ({"samples": ["0x1ff", "0x200"], "num_bits": 9}, "0x200 does not fit into 9 bits"),
        ({"samples": ["0x0", "0x1"], "num_bits": 0}, "0x1 does not fit into 0 bits"),
        ({"samples": [["0x1"], ["0x1"], "0x1"], "num_bits": 1}, "ragged"),
        ({"samples": [[["0x1"]], [["0x0"], ["0x1"]]], "num_bits": 1}, "ragged"),
        ({"samples": ["0x1"], "num_bits": 2**63 - 1}, "`num_bits` is 9223372036854775807"),
        ({"samples": ["0x1"], "num_bits": 10**400}, "`num_bits` is 1000"),
        (_packed(9, "01ff ff01"), "does not fit into 9 bits"),
        (_packed(2, "03 04"), "does not fit into 2 bits"),
        (_packed(65, "01ffffffffffffffff 020000000000000000"), "does not fit into 65 bits"),
        (_packed(23, "7fffff 800000"), "does not fit into 23 bits"),
    ],
)
@pytest.mark.parametrize("read", ["counts", "memory", "to_primitive_result"])
def test_damaged_bits_are_told(value: dict[str, object], message: str, read: str) -> None:
    result = JobResult.from_body({"results": [{"data": {"c": value}}]}, job_id="d1")
    with pytest.raises(QuantumRuntimeError, match=message):
        getattr(result, "counts_array" if message == "ragged" else read)()


@pytest.mark.parametrize("read", ["counts", "memory"])
def test_bitstrings_that_would_fill_the_memory_are_refused(read: str) -> None:
    value = {"samples": [hex(key) for key in range(1100)], "num_bits": 10**6}
    result = JobResult.from_body({"results": [{"data": {"c": value}}]}, job_id="d1")
    with pytest.raises(QuantumRuntimeError, match="too many"):
        getattr(result, read)()


@pytest.mark.parametrize("shape", [(1 << 40, 0, 1), (0, 1 << 40, 1)])
@pytest.mark.parametrize("read", ["counts_array", "to_table", "to_primitive_result", "_repr_html_"])
def test_points_and_shots_that_take_no_bytes_are_not_looped_over(shape: tuple[int, ...], read: str) -> None:
    result = JobResult.from_body({"results": [{"data": {"c": _zeros(str(shape), 8, 0)}}]}, job_id="d1")
    if read == "_repr_html_":
        assert "without data" in result._repr_html_()
        return
    with pytest.raises(QuantumRuntimeError, match="without data"):
        getattr(result, read)()


def test_the_width_is_that_of_the_widest_point() -> None:
    result = JobResult.from_body({"results": [{"data": {"c": {"samples": [["0x1"], ["0x5"]]}}}]}, job_id="d1")
    assert result.registers() == {"c": 3}
    assert result.counts_array() == [{"001": 1}, {"101": 1}]


def test_numpy_is_not_loaded_for_few_shots() -> None:
    code = (
        "import sys, os\n"
        "from prefect_qruntime.client.encodings.registers import PackedRegister, tally\n"
        "data = os.urandom(200_000)\n"
        "assert sum(tally([PackedRegister(data, 16, (), 100_000, 2)], 0).values()) == 100_000\n"
        "assert 'numpy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    assert registers._MANY > 100_000
