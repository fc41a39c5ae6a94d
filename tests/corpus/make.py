"""Write the corpus of the fuzzers: files of every kind that a reader must, or must not, accept.

    python tests/corpus/make.py

What lies in folders ``good`` is read, what lies in folders ``bad`` refused, whoever reads it.
Each is small, and named by what is special in it. libFuzzer starts from those of ``files``.
"""

from __future__ import annotations

import json
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "support"))

from fuzz import binarized, calibration, checkpoints, files  # noqa: E402  (they lie in tests/support)
from fuzz.mutations import Content, join, split  # noqa: E402

D1 = b'"d1":{"dtype":"F16","shape":[4],"data_offsets":[0,8]}'
B1 = b'"b1":{"dtype":"U8","shape":[4,2],"data_offsets":[48,56]}'
MANY = b'"layers":{"dtype":"I64","shape":[2,4],"data_offsets":[0,64]}'

# Name -> what to replace in the header, by what. Checksums are left alone.
SAME_MEANING = {
    "blanks": (b"{", b"{\t\r\n "),
    "blanks-at-end": (b"}}", b"}} \n\t\r"),
    "fields-in-other-order": (b'"shape":[4],"data_offsets":[0,8]', b'"data_offsets":[0,8],"shape":[4]'),
    "escaped-name": (b'"d1":{', rb'"\u0064\u0031":{'),
    "escaped-metadata": (b'"binary"', rb'"b\u0069nary"'),
    "escaped-key-of-metadata": (b'"alphabet":', rb'"\u0061lphabet":'),
    "escaped-name-of-metadata": (b'"__metadata__":', rb'"\u005f_metadata__":'),
}
NOT_JSON = {
    "extra-field": (b'"shape":[4,2]', b'"shape":[4,2],"more":0'),
    "extra-nested-field": (b'"shape":[4,2]', b'"more":{"a":[[],{}]},"shape":[4,2]'),
    "deep-field": (b'"shape":[4,2]', b'"more":' + b"[" * 5000 + b"]" * 5000),
    "field-twice": (b'"shape":[4,2]', b'"shape":[4,2],"shape":[4,2]'),
    "field-instead-of-offsets": (b'"data_offsets":[48,56]', b'"shape":[4,2]'),
    "tensor-twice": (D1, D1 + b"," + D1),
    "metadata-twice": (D1, b'"__metadata__":{},' + D1),
    "key-twice": (b'"k":"9"', b'"k":"9","k":"9"'),
    "escaped-field": (b'"shape":[4,2]', rb'"sh\u0061pe":[4,2]'),
    "escaped-dtype": (b'"U8"', rb'"U\u0038"'),
    "minus-zero": (b"[0,8]", b"[-0,8]"),
    "float": (b"[4,2]", b"[4.0,2]"),
    "power-of-ten": (b"[4,2]", b"[4e0,2]"),
    "leading-zero": (b"[4,2]", b"[04,2]"),
    "plus": (b"[4,2]", b"[+4,2]"),
    "two-to-the-64": (b"[4,2]", b"[18446744073709551616,2]"),
    "twenty-digits": (b"[4,2]", b"[10000000000000000004,2]"),
    "nineteen-digits": (b"[48,56]", b"[48,9999999999999999999]"),
    "huge-number": (b"[4,2]", b"[" + b"9" * 5000 + b",2]"),
    "number-as-string": (b"[4,2]", b'["4",2]'),
    "true": (b"[4,2]", b"[4,true]"),
    "null": (B1, b'"b1":null'),
    "list": (B1, b'"b1":[]'),
    "empty-object": (B1, b'"b1":{}'),
    "shape-is-object": (b"[4,2]", b"{}"),
    "shape-is-string": (b"[4,2]", b'""'),
    "no-sizes": (b"[4,2]", b"[]"),
    "nine-sizes": (b"[4,2]", b"[1,1,1,1,1,1,1,4,2]"),
    "one-offset": (b"[48,56]", b"[48]"),
    "three-offsets": (b"[48,56]", b"[48,56,56]"),
    "offsets-backwards": (b"[48,56]", b"[56,48]"),
    "gap": (b"[48,56]", b"[49,56]"),
    "overlap": (b"[48,56]", b"[47,56]"),
    "far": (b"[48,56]", b"[48,1000000000000]"),
    "comma-at-end": (b"}}", b"},}"),
    "comma-in-array": (b"[4,2]", b"[4,2,]"),
    "comment": (b"[4,2]", b"[4,/**/2]"),
    "vertical-tab": (b"[4,2]", b"[4,\x0b2]"),
    "no-break-space": (b"[4,2]", b"[4,\xc2\xa02]"),
    "byte-order-mark": (b"{", b"\xef\xbb\xbf{"),
    "zero-after-end": (b"}}", b"}}\0"),
    "more-after-end": (b"}}", b"}}{}"),
    "cut-short": (b"}}", b"}"),
    "control-character": (b'"binary"', b'"binary\n"'),
    "zero-in-string": (b'"binary"', b'"binary\0"'),
    "unknown-escape": (b'"binary"', rb'"b\inary"'),
    "short-escape": (b'"binary"', rb'"b\u69nary"'),
    "signed-escape": (b'"binary"', rb'"b\u+069nary"'),
    "half-a-pair": (b'"d1":{', rb'"\ud800":{'),
    "second-half": (b'"d1":{', rb'"\udc00":{'),
    "two-first-halves": (b'"d1":{', rb'"\ud800\ud800":{'),
    "half-a-pair-in-metadata": (b'"binary"', rb'"\ud800"'),
    "surrogate-in-utf8": (b'"d1":{', b'"\xed\xa0\x80":{'),
    "overlong": (b'"d1":{', b'"\xc0\x80":{'),
    "beyond-unicode": (b'"d1":{', b'"\xf4\x90\x80\x80":{'),
    "not-utf8": (b'"binary"', b'"\xff"'),
    "single-quotes": (b'"d1"', b"'d1'"),
    "metadata-is-number": (b'"k":"9"', b'"k":9'),
    "metadata-is-nan": (b'"k":"9"', b'"k":NaN'),
    "metadata-is-nested": (b'"k":"9"', b'"k":{"k":"9"}'),
    "deep-metadata": (b'"k":"9"', b'"k":' + b"[" * 5000),
    "metadata-is-null": (b'"__metadata__":{', b'"__metadata__":null,"a":{'),
    "unsigned-metadata": (b'"alphabet":"binary"', b'"alphabet":"sign"'),
    "no-metadata": (b'"__metadata__":', b'"__metadata___":'),
    "empty-name": (b'"d1":', b'"":'),
}  # fmt: skip
# What only the values' own rules forbid: their checksums are right.
FORBIDDEN = {
    "arabic-digits": ('"k":"9"', '"k":"٩"'),
    "blank-in-number": ('"k":"9"', '"k":" 9"'),
    "line-after-number": ('"k":"9"', '"k":"9\\n"'),
    "underscore-in-number": ('"k":"9"', '"k":"0_9"'),
    "minus-zero-exponent": ('"d1_exponent":"0"', '"d1_exponent":"-0"'),
    "plus-exponent": ('"d1_exponent":"0"', '"d1_exponent":"+0"'),
    "large-exponent": ('"d1_exponent":"0"', '"d1_exponent":"128"'),
    "huge-k": ('"k":"9"', '"k":"99999999999999999999"'),
    "size-zero": ('"rows":"4"', '"rows":"0"'),
    "ternary": ('"binary"', '"ternary"'),
    "binary-and-zero": ('"binary"', '"binary\\u0000"'),
    "newer-version": ('"format_version":"1"', '"format_version":"2"'),
    "other-format": ('"format":"diba"', '"format":"Diba"'),
    "no-author": ('"written_by"', '"written"'),
    "f64": ('"F16"', '"F64"'),
    "lower-case-dtype": ('"U8"', '"u8"'),
}


def changed(data: bytes, old: bytes, new: bytes) -> bytes:
    parts = split(data)
    assert parts is not None
    assert old in parts[0], old
    at = parts[0].rfind(old) if old == b"}}" else parts[0].find(old)
    return join(parts[0][:at] + new + parts[0][at + len(old) :], parts[1])


def signed(data: bytes) -> bytes:
    mended = files.mended(data)
    assert mended is not None
    return mended


def of_files() -> tuple[dict[str, bytes], dict[str, bytes]]:
    base = files.example(4, 9, 11, "binary", narrow=True)
    good = {
        "small": files.example(1, 1, 1, "sign", narrow=True),
        "binary": base,
        "float32": files.example(3, 16, 8, "sign", narrow=False),
        "more-metadata": signed(changed(base, b'"k":', '"é𝄞/":"é\\u00e9\\ud834\\udd1e\\/","k":'.encode())),
        **{name: changed(base, *change) for name, change in SAME_MEANING.items()},
    }
    bad = {name: changed(base, *change) for name, change in NOT_JSON.items()}
    for name, (old, new) in FORBIDDEN.items():
        bad[name] = signed(changed(base, old.encode(), new.encode()))
    bad |= {
        "empty": b"",
        "header-of-nothing": bytes(8),
        "header-is-list": join(b"[]", b""),
        "header-is-empty": join(b"{}", b""),
        "header-of-2-to-the-63": b"\xff" * 7 + b"\x7f{}",
        "one-byte-more": base + b"\0",
        "one-byte-less": base[:-1],
        "zip": b"PK\3\4" + bytes(60),
        "numpy": b"\x93NUMPY" + bytes(60),
    }
    header, tensors = split(base)  # type: ignore[misc]
    for name, at, value in (
        ("nan", 0, b"\0\x7e"),
        ("infinity", 0, b"\0\x7c"),
        ("bits-past-the-last-column", len(tensors) - 1, b"\xff"),
    ):
        bad[name] = signed(join(header, tensors[:at] + value + tensors[at + len(value) :]))
    bad["flipped-bit"] = join(header, tensors[:-3] + bytes([tensors[-3] ^ 1]) + tensors[-2:])
    return good, bad


def of_binarized() -> tuple[dict[str, bytes], dict[str, bytes]]:
    base = binarized.example(4, 11, 0.2, narrow=True)
    good = {
        "small": binarized.example(1, 1, 0, narrow=True),
        "narrow": base,
        "float32": binarized.example(3, 300, 0.01, narrow=False),
        "blanks": changed(base, b"{", b"{\t\r\n "),
    }
    bad = {
        "factors": files.example(4, 9, 11, "sign", narrow=True),
        "one-byte-more": base + b"\0",
        "one-byte-less": base[:-1],
    }
    for name, old, new in (
        ("newer-version", '"format_version":"1"', '"format_version":"2"'),
        ("size-zero", '"rows":"4"', '"rows":"0"'),
        ("other-columns", '"cols":"11"', '"cols":"8"'),
        ("large-exponent", '"values_exponent":"', '"values_exponent":"99'),
        ("no-author", '"written_by"', '"written"'),
    ):
        bad[name] = signed(changed(base, old.encode(), new.encode()))
    header, tensors = split(base)  # type: ignore[misc]
    spans = json.loads(header)
    for name, key, value in (
        ("nan", "alpha", b"\0\x7e"),
        ("bits-past-the-last-column", "signs", b"\xff\xff"),
        ("column-past-the-last", "columns", b"\x0b"),
        ("columns-descend", "columns", b"\x0a\x0a"),
        ("one-entry-more", "counts", b"\x0b\0"),
    ):
        begin = spans[key]["data_offsets"][0]
        bad[name] = signed(join(header, tensors[:begin] + value + tensors[begin + len(value) :]))
    return good, bad


def of_calibrations() -> tuple[dict[str, bytes], dict[str, bytes]]:
    def first_version(*given: Any, **options: Any) -> bytes:
        """Without means."""
        made = calibration.example(*given, **options)
        return signed(changed(made, b'"format_version":"2"', b'"format_version":"1"'))

    one = first_version(0, (2,), gradients=True, shared=False)
    two = first_version(2, (3,), gradients=False, shared=True)
    means = calibration.example(3, (2,), gradients=False, shared=True, means=True)
    good = {
        "one": one,
        "shared": two,
        "means": means,
        "several": first_version(1, (3, 1, 2), gradients=True, shared=False),
        "none": first_version(0, (), gradients=False, shared=False),
        "blanks": changed(one, b"}}", b"}}\n"),
    }
    bad = {
        "means-of-version-1": signed(changed(means, b'"format_version":"2"', b'"format_version":"1"')),
        "version-3": signed(changed(means, b'"format_version":"2"', b'"format_version":"3"')),
        "mean-of-no-matrix": signed(changed(means, b'"mean.0":{', b'"mean.1":{')),
        "nothing-known": join(b'{"__metadata__":{"diba.calibration":"{}"}}', b""),
        "factors": files.example(1, 1, 1, "sign", narrow=True),
        "unsigned": changed(one, b"layers.0", b"layers.1"),
        "names-twice": signed(changed(two, b"layers.0.twin", rb"layers.0.\u00e9")),
        "no-name": signed(changed(one, b'"layer.0"', b'"layer.1"')),
        "other-tensor": signed(changed(one, b'"gradient.0":{', b'"gradient.1":{')),
        "float32": signed(changed(one, b'"F64","shape":[3]', b'"F32","shape":[6]')),
        "other-shape": signed(changed(one, b'"F64","shape":[3]', b'"F64","shape":[1,3]')),
        "unknown-dtype": signed(changed(one, b'"F64","shape":[3]', b'"F65","shape":[3]')),
        "table-of-three": signed(changed(two, MANY, MANY.replace(b"[2,4]", b"[4,2]"))),
        "huge-table": signed(changed(two, MANY, MANY.replace(b"[2,4]", b"[4611686018427387904,4]"))),
        "extra-field": changed(one, b'"I64",', b'"I64","a":[],'),
        "one-byte-less": one[:-1],
    }
    header, tensors = split(one)  # type: ignore[misc]

    def put(at: int, kind: str, value: float) -> bytes:
        new = struct.pack(kind, value)
        return signed(join(header, tensors[:at] + new + tensors[at + 8 :]))

    for name, column, value in (
        ("other-matrix", 0, 1), ("negative-matrix", 0, -1), ("other-size", 1, 3), ("no-size", 1, 0),
        ("negative-size", 1, -3), ("huge-size", 1, 2**62), ("count-zero", 2, 0), ("negative-count", 2, -5),
        ("negative-gradient-count", 3, -1),
    ):  # fmt: skip
        bad[name] = put(8 * column, "<q", value)
    for name, place, number in (
        ("nan", 0, np.nan), ("infinity", 1, np.inf), ("minus-infinity", 2, -np.inf),
        ("negative-mean-square", 0, -1.0), ("large-off-the-diagonal", 1, 1e9),
        ("negative-gradient", 3, -1.0), ("nan-gradient", 4, np.nan),
    ):  # fmt: skip
        bad[name] = put(32 + 8 * place, "<d", number)
    header, tensors = split(means)  # type: ignore[misc]
    for name, number in (("nan-mean", np.nan), ("mean-beyond-the-squares", 1e9)):
        bad[name] = put(64 + 8 * 3, "<d", number)
    return good, bad


def of_checkpoints() -> tuple[dict[str, Content], dict[str, Content]]:
    driver = checkpoints.CheckpointsDriver()
    one, base, *_ = driver.seeds()
    assert isinstance(base, dict)
    config, tensors = (base[name] for name in (checkpoints.CONFIG, checkpoints.FILE))

    def of(config: bytes = config, tensors: bytes = tensors) -> Content:
        return {checkpoints.CONFIG: config, checkpoints.FILE: tensors}

    def edited(layer: str | None, **values: object) -> bytes:
        loaded = json.loads(config)
        factors = loaded["quantization_config"]["factors"]
        (loaded["quantization_config"] if layer is None else factors[layer]).update(values)
        return json.dumps(loaded).encode()

    def without(config: bytes, layer: str) -> bytes:
        loaded = json.loads(config)
        del loaded["quantization_config"]["factors"][layer]
        return json.dumps(loaded).encode()

    def right(content: Content) -> Content:
        mended = driver.mend(content)
        assert mended is not None
        return mended

    header, data = split(tensors)  # type: ignore[misc]
    good = {"one": one, "shared": base, "more-settings": of(edited(None, bits_per_weight=2))}
    bad = {
        "factors-null": of(edited(None, factors=None)),
        "factors-list": of(edited(None, factors=[])),
        "factors-empty": of(edited(None, factors={})),
        "an-entry-missing": of(without(config, "head")),
        "alphabet": of(edited("b.é", alphabet="binary")),
        "k-of-fifty-million": right(of(edited("b.é", k=50_000_000))),
        "k-of-two-to-the-70": right(of(edited("b.é", k=2**70))),
        "k-true": right(of(edited("b.é", k=True))),
        "more-in-an-entry": right(of(edited("b.é", more=1))),
        "no-bias": right(of(edited("b.é", bias=True))),
        "owner-of-another-size": right(of(edited("head", shape=[4, 12]))),
        "no-owner": right(of(edited("head", shared="heads"))),
        "itself-for-owner": right(of(edited("head", shared="head"))),
        "tensor-of-another-name": of(tensors=changed(tensors, b'"model.embed.d1"', b'"model.embed.d4"')),
        "tensor-of-another-dtype": of(tensors=changed(tensors, b'"U8"', b'"I8"')),
        "flipped-bit": of(tensors=tensors[:-1] + bytes([tensors[-1] ^ 1])),
        "one-byte-less": of(tensors=tensors[:-1]),
    }
    spans = json.loads(header)
    for name, key, at, value in (
        ("nan", "b.é.d1", 0, struct.pack("<f", np.nan)),
        ("infinity", "b.é.d3", 4, struct.pack("<f", np.inf)),
        ("bits-past-the-last-column", "model.embed.b1", 1, b"\x82"),
    ):
        begin = spans[key]["data_offsets"][0] + at
        bad[name] = right(of(tensors=join(header, data[:begin] + value + data[begin + len(value) :])))
    return good, bad


def main() -> None:
    made = {
        "binarized": of_binarized(),
        "files": of_files(),
        "calibration": of_calibrations(),
        "checkpoints": of_checkpoints(),
    }
    for kind, contents in made.items():
        for verdict, named in zip(("good", "bad"), contents, strict=True):
            folder = HERE / kind / verdict
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for name, content in named.items():
                parts = content if isinstance(content, dict) else {"": content}
                for file, data in parts.items():
                    path = folder / name / file  # "" is the folder's own entry
                    path.parent.mkdir(exist_ok=True)
                    path.write_bytes(data)


if __name__ == "__main__":
    main()
