"""Make the golden files of the file format: python tests/golden/make.py

They are committed and never made anew for an old format version: every later
version of diba must read them. What they hold is stated here, bit by bit.
"""

from __future__ import annotations

from pathlib import Path

import diba
from diba import file_format

# The version that wrote them; part of the bytes.
WRITTEN_BY = "diba 0.1.0"

# Rows of bits, column 0 first: 1 is the entry 1, 0 is the entry 0 (binary) or -1 (sign).
# 9 and 11 columns: a second byte in each row, mostly padding.
B1 = ("110100101", "001011011", "111111110", "000000001")
B2 = (
    "10110011101",
    "01001100010",
    "11111111111",
    "00000000000",
    "10000000001",
    "01111111110",
    "00110011001",
    "11001100110",
    "10101010101",
)

# Sixteen bits each, with exponents 1, -4 and 10 in the file.
DIAGONALS_16 = (
    (2.5, -3.0, 0.0009765625, 0.0),
    (0.0625, -0.0625, 0.09375, 0.0, 0.125 - 2.0**-14, 0.0625, 2.0**-18, -0.1875 / 2, 0.0625),
    (1024.0, 1.0, -1024.0, 512.0, 1536.0, 0.5, 0.25, 3.0, -7.0, 1025.0, 2047.0),
)
# Float32 and not of sixteen bits: 1/3 has no short form.
DIAGONALS_32 = (
    (1 / 3, 2.0, -1e-20, 0.0),
    (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    (1e20, 1.0, -1.0, 0.0, 1 / 7, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0),
)

CASES = {"binary": DIAGONALS_16, "sign": DIAGONALS_32}


def entries(rows: tuple[str, ...], alphabet: str) -> list[list[int]]:
    zero = 0 if alphabet == "binary" else -1
    return [[1 if bit == "1" else zero for bit in row] for row in rows]


def factorization(alphabet: str) -> diba.Factorization:
    d1, d2, d3 = CASES[alphabet]
    return diba.Factorization.from_factors(d1, entries(B1, alphabet), d2, entries(B2, alphabet), d3, alphabet)


def main() -> None:
    folder = Path(__file__).resolve().parent
    for alphabet in CASES:
        data = file_format.encode(file_format.StoredFactors(*factorization(alphabet)._parts()), WRITTEN_BY)
        file_format.replace_file(folder / f"{alphabet}.safetensors", data)


if __name__ == "__main__":
    main()
