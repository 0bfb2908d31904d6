"""Checksums of columns over Arrow batches, against the definition computed value by value in plain Python."""

import hashlib
import json
import math
import struct
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal
from typing import Any, cast, get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.engine.sql.lookup3 import of_values, of_words
from shared.engine.sql.md5 import heads
from shared.engine.sql.row_digests import row_digests
from shared.engine.sql.sums import Sums, arrow_type, compact, differences, from_document, to_document, together
from shared.policy.sql.checksum import LOOKUP3, NAN_BITS, NOT_A_NUMBER, Definition, P
from shared.policy.sql.types import PLAIN
from shared.ports.tables import ColumnSum, LakeColumn, Summary
from tests.support.checksums import integer_of

DEFINITIONS: tuple[Definition, ...] = get_args(Definition)
EXACT = Context(prec=100)


VALUES: dict[str, st.SearchStrategy] = {
    "bool": st.booleans(),
    "int16": st.integers(-(2**15), 2**15 - 1),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1) | st.integers(-3 * P, 3 * P),
    "float": st.floats(width=32) | st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf]),
    "double": st.floats() | st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf]),
    "date32": st.dates(),
    "timestamp[us]": st.datetimes(),
    "timestamp[us, UTC]": st.datetimes(timezones=st.just(UTC)),
    "string": st.text(max_size=400) | st.sampled_from(["", "a", "é", "𝄞", "x" * 500, "y" * 1024, "é" * 513]),
    "binary": st.binary(max_size=400) | st.sampled_from([b"x" * 1024, b"x" * 1025]),
}
for precision, scale in ((1, 0), (10, 2), (18, 18), (19, 4), (38, 0), (38, 10), (38, 38)):
    largest = 10**precision - 1
    VALUES[f"decimal128({precision}, {scale})"] = (
        st.integers(-largest, largest) | st.sampled_from([largest, -largest, 0])
    ).map(lambda whole, scale=scale: Decimal(whole).scaleb(-scale, EXACT))


def test_every_plain_type_is_tested() -> None:
    assert set(PLAIN) <= set(VALUES)


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("lake_type", VALUES)
def test_sums_are_those_of_the_definition(lake_type: str, definition: Definition) -> None:
    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(st.lists(st.none() | VALUES[lake_type], max_size=40), st.integers(0, 5), st.integers(1, 7))
    def agree(values: list[object], skipped: int, repeated: int) -> None:
        array = pa.array(values * repeated, arrow_type(lake_type)).slice(skipped)
        sums = Sums([LakeColumn("c", lake_type)], definition)
        half = len(array) // 2
        for part in (array.slice(0, half), array.slice(half)):
            sums.add(pa.record_batch({"other": pa.nulls(len(part)), "c": part}))
        left = (values * repeated)[skipped:]
        there = [value for value in left if value is not None]
        assert sums.rows == len(left)
        assert sums.result() == {
            "c": ColumnSum(len(left) - len(there), sum(integer_of(value, lake_type, definition) for value in there))
        }

    agree()


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_many_different_texts_and_long_ones(definition: Definition) -> None:
    texts: list[str | None] = [f"{'ä𝄞' * (number % 3)}{number}{'z' * (number % 300)}" for number in range(6_000)]
    texts += ["x" * 100_000, "", None, "\x00", "y" * 1024, "z" * 1025]
    sums = Sums([LakeColumn("c", "string")], definition)
    sums.add(pa.record_batch({"c": pa.array(texts)}))
    assert sums.result()["c"] == ColumnSum(
        1, sum(integer_of(text, "string", definition) for text in texts if text is not None)
    )


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("lake_type", ["string", "binary"])
def test_few_texts_many_times(lake_type: str, definition: Definition) -> None:
    values = ["a", "bé", "c" * 3000, None] if lake_type == "string" else [b"a", b"\xff", b"c" * 3000, None]
    sums = Sums([LakeColumn("c", lake_type)], definition)
    sums.add(pa.record_batch({"c": pa.array(values * 50_000, arrow_type(lake_type))}))
    expected = sum(integer_of(value, lake_type, definition) for value in values if value is not None)
    assert sums.result()["c"] == ColumnSum(50_000, 50_000 * expected)


@pytest.mark.parametrize("lake_type", ["string", "binary"])
def test_small_batches_add_up_to_what_a_large_one_does(lake_type: str) -> None:
    texts = [None if number % 11 == 0 else f"{number}é" * (number % 200) for number in range(40_000)]
    values = texts if lake_type == "string" else [None if text is None else text.encode() for text in texts]
    whole = pa.record_batch(
        {"c": pa.array(values, arrow_type(lake_type)), "d": pa.array(values, arrow_type(lake_type))}
    )
    columns = [LakeColumn("c", lake_type), LakeColumn("d", lake_type)]
    small, large = Sums(columns, LOOKUP3), Sums(columns, LOOKUP3)
    large.add(whole)
    for first in range(0, len(values), 700):
        small.add(whole.slice(first, 700))
        if first == 7000:
            # Asked for in between, too.
            assert small.result()["c"] == small.result()["d"]
    assert small.summary() == large.summary()
    expected = sum(integer_of(value, lake_type, LOOKUP3) for value in values[:3000] if value is not None)
    first_rows = Sums(columns, LOOKUP3)
    first_rows.add(whole.slice(0, 3000))
    assert first_rows.result()["d"].total == expected


@pytest.mark.parametrize("lake_type", ["int32", "int64", "timestamp[us]", "double", "decimal128(38, 4)"])
def test_more_values_than_are_hashed_at_once(lake_type: str) -> None:
    # Of numbers up to the largest of 64 bits, so that their sum has more.
    numbers = [(number * 0x9E3779B97F4A7C15 + 1) % 2**64 - 2**63 for number in range(50_000)]
    values: list[Any] = {
        "int32": [number >> 32 for number in numbers],
        "int64": [*numbers, -(2**63), 2**63 - 1],
        "timestamp[us]": [datetime(1970, 1, 1) + timedelta(microseconds=number >> 9) for number in numbers],  # noqa: DTZ001
        "double": [struct.unpack("<d", struct.pack("<q", number))[0] for number in numbers],
        "decimal128(38, 4)": [Decimal(number * 10**17).scaleb(-4, EXACT) for number in numbers],
    }[lake_type]
    sums = Sums([LakeColumn("c", lake_type)], LOOKUP3)
    sums.add(pa.record_batch({"c": pa.array(values, arrow_type(lake_type))}))
    assert sums.result()["c"].total == sum(integer_of(value, lake_type, LOOKUP3) for value in values)


def test_known_hashes() -> None:
    """As SELECT hashtextextended(v, 0), hashint8extended(5, 0) of PostgreSQL 15 say."""
    texts = ["", "a", "abcdefghijk", "abcdefghijkl", "abcdefghijklm"]
    data, offsets = np.frombuffer("".join(texts).encode(), np.uint8), np.cumsum([0, *map(len, texts)])
    found = of_values(data, offsets[:-1], np.diff(offsets))
    assert found.view(np.int64).tolist() == [
        -6939563903564495251, 3591986179850072241, 3112909444737856467, -7556637188122330412, 8871624171452417744,
    ]  # fmt: skip
    assert of_words(np.array([5], np.uint32)).view(np.int64).tolist() == [-9138765687874534020]


def test_digests_of_every_length_around_the_blocks() -> None:
    values = [bytes([number % 251] * (number % 330)) for number in range(330 * 300)]
    lengths = np.array([len(value) for value in values], np.int64)
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    found = heads(np.frombuffer(b"".join(values), np.uint8), starts, lengths)
    expected = {value: int.from_bytes(hashlib.md5(value).digest()[:4], "big") for value in set(values)}
    assert found.tolist() == [expected[value] for value in values]


@pytest.mark.parametrize("payload", [0x7FF8000000000000, 0x7FF0000000000001, 0xFFF8000000000000, 0xFFFFFFFFFFFFFFFF])
def test_every_nan_is_one(payload: int) -> None:
    array = pa.Array.from_buffers(pa.float64(), 1, [None, pa.py_buffer(struct.pack("<Q", payload))])
    sums = Sums([LakeColumn("c", "double")])
    sums.add(pa.record_batch({"c": array}))
    assert sums.result()["c"].total == NAN_BITS % P
    sums = Sums([LakeColumn("c", "double")], LOOKUP3)
    sums.add(pa.record_batch({"c": array}))
    assert sums.result()["c"].total == NOT_A_NUMBER


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_what_lies_below_a_null_does_not_count(definition: Definition) -> None:
    valid = pa.py_buffer(bytes([0b101]))
    words = struct.pack("<3q", 1, 77, 2)
    buffers = {
        "decimal128(38, 0)": (struct.pack("<6q", 1, 0, 77, 77, 2, 0), [Decimal(1), Decimal(2)]),
        "decimal128(10, 0)": (struct.pack("<6q", 1, 0, 77, 77, 2, 0), [Decimal(1), Decimal(2)]),
        "int64": (words, [1, 2]),
        "timestamp[us]": (words, [datetime(1970, 1, 1, 0, 0, 0, us) for us in (1, 2)]),  # noqa: DTZ001
        "double": (words, [5e-324, 1e-323]),
    }
    for lake_type, (data, there) in buffers.items():
        array = pa.Array.from_buffers(arrow_type(lake_type), 3, [valid, pa.py_buffer(data)])
        sums = Sums([LakeColumn("c", lake_type)], definition)
        sums.add(pa.record_batch({"c": array}))
        expected = sum(integer_of(value, lake_type, definition) for value in there)
        assert sums.result()["c"] == ColumnSum(1, expected), lake_type


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_columns_of_the_lakes_wider_types_are_summed_as_the_source_has_them(definition: Definition) -> None:
    columns = [LakeColumn("i", "int32"), LakeColumn("d", "decimal128(10, 2)"), LakeColumn("s", "string")]
    narrow, wide = Sums(columns, definition), Sums(columns, definition)
    values = {"i": [1, -2], "d": [Decimal("1.25"), None], "s": ["a", "b"]}
    narrow.add(pa.record_batch(values, schema=pa.schema([(one.name, arrow_type(one.type)) for one in columns])))
    lake = pa.schema([("i", pa.int64()), ("d", pa.decimal128(20, 4)), ("s", pa.large_string())])
    wide.add(pa.record_batch(values, schema=lake))
    assert narrow.result() == wide.result()


def test_a_missing_column_is_an_error() -> None:
    with pytest.raises(ValueError, match="'c'"):
        Sums([LakeColumn("c", "int32")]).add(pa.record_batch({"d": [1]}))


def test_an_unknown_definition_is_an_error() -> None:
    with pytest.raises(ValueError, match="crc32"):
        Sums([], cast(Definition, "crc32"))


# -- comparing ---------------------------------------------------------------------------------------------------------

ONE = Summary(3, {"a": ColumnSum(0, 10), "b": ColumnSum(1, 20)})


def test_equal_summaries_say_nothing_and_look_alike() -> None:
    same = Summary(3, {"b": ColumnSum(1, 20), "a": ColumnSum(0, 10)})
    assert differences(ONE, same) == []
    assert compact(ONE) == compact(same)
    assert compact(ONE).startswith("3:")
    assert from_document(to_document(ONE)) == ONE


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Summary(4, ONE.columns), ["3 rows", "4"]),
        (Summary(3, {"a": ColumnSum(0, 11), "b": ColumnSum(1, 20)}), ["column a", "other values"]),
        (Summary(3, {"a": ColumnSum(0, 10), "b": ColumnSum(2, 20)}), ["column b", "1 nulls", "2 in the lake"]),
        (Summary(3, {"a": ColumnSum(0, 10)}), ["column b", "not found"]),
    ],
)
def test_what_differs_is_said(other: Summary, words: list[str]) -> None:
    (sentence,) = differences(ONE, other)
    assert all(word in sentence for word in words)
    assert compact(ONE) != compact(other)


def test_no_flood_of_sentences() -> None:
    wide = Summary(1, {f"c{number}": ColumnSum(0, number) for number in range(100)})
    other = Summary(1, {name: ColumnSum(0, one.total + 1) for name, one in wide.columns.items()})
    found = differences(wide, other)
    assert len(found) == 9
    assert "92 more" in found[-1]


def test_rows_alone_can_be_compared() -> None:
    assert compact(Summary(7)) == "7"
    assert differences(Summary(7), Summary(7, ONE.columns)) == []
    assert differences(Summary(7), Summary(8)) == ["the source has 7 rows, the lake 8"]


def test_slices_add_up() -> None:
    assert together([ONE, ONE]) == Summary(6, {"a": ColumnSum(0, 20), "b": ColumnSum(2, 40)})
    assert together([]) == Summary(0)
    with pytest.raises(ValueError, match="cannot be added"):
        together([ONE, Summary(1, {"a": ColumnSum(0, 1)})])


def test_other_definitions_are_neither_compared_nor_added() -> None:
    other = Summary(3, ONE.columns, LOOKUP3)
    assert compact(ONE) != compact(other)
    with pytest.raises(ValueError, match="lookup3"):
        differences(ONE, other)
    with pytest.raises(ValueError, match="definitions"):
        together([ONE, other])


def test_sums_of_any_size_are_kept() -> None:
    large = Summary(3, {"a": ColumnSum(0, -(10**40))}, LOOKUP3)
    assert from_document(json.loads(json.dumps(to_document(large)))) == large


# -- rows --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lake_type", VALUES)
def test_digests_of_rows_are_equal_for_equal_rows_alone(lake_type: str) -> None:
    columns = [LakeColumn("c", lake_type), LakeColumn("i", "int64")]

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(st.lists(st.none() | VALUES[lake_type], min_size=1, max_size=30), st.integers(0, 3))
    def agree(values: list[object], skipped: int) -> None:
        array = pa.array([None] * skipped + values, arrow_type(lake_type)).slice(skipped)
        numbers = pa.array(range(len(values)))
        digests = row_digests(pa.record_batch({"i": numbers, "c": array}), columns)
        backwards = pa.array(range(len(values) - 1, -1, -1))
        again = row_digests(pa.record_batch({"c": array.take(backwards), "i": numbers.take(backwards)}), columns)
        assert digests.tolist() == again.tolist()[::-1]
        assert len(set(digests.tolist())) == len(values)
        alone = row_digests(pa.record_batch({"c": array}), columns[:1])
        keys = [
            None if value is None else (integer_of(value, lake_type, LOOKUP3), repr(value))
            for value in array.to_pylist()
        ]
        assert len(set(alone.tolist())) == len(set(keys))

    agree()


def test_a_value_in_another_column_is_another_row() -> None:
    columns = [LakeColumn("a", "int32"), LakeColumn("b", "int32")]
    batch = pa.record_batch(
        {"a": [1, 2, None, 1], "b": [2, 1, 1, None]}, schema=pa.schema([("a", pa.int32()), ("b", pa.int32())])
    )
    assert len(set(row_digests(batch, columns).tolist())) == 4
