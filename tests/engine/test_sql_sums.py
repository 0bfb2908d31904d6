"""Checksums of columns over Arrow batches, against the definition computed value by value in plain Python."""

import hashlib
import math
import struct
from datetime import UTC, date, datetime
from decimal import Context, Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.engine.sql.md5 import heads
from shared.engine.sql.row_digests import row_digests
from shared.engine.sql.sums import Sums, arrow_type, compact, differences, from_document, to_document, together
from shared.policy.sql.checksum import HASH_MASK, NAN_BITS, P
from shared.policy.sql.types import PLAIN, decimal_of
from shared.ports.tables import ColumnSum, LakeColumn, Summary

EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - a timestamp without a zone is what is tested
EXACT = Context(prec=100)


def reference(value: object, lake_type: str, encoding: str) -> int:
    """The table of shared.policy.sql.checksum, read line by line."""
    digits = decimal_of(lake_type)
    if lake_type == "bool":
        return int(bool(value))
    if lake_type.startswith("int"):
        assert isinstance(value, int)
        return value % P
    if lake_type == "date32":
        assert isinstance(value, date)
        return (value - date(1970, 1, 1)).days % P
    if lake_type.startswith("timestamp"):
        assert isinstance(value, datetime)
        since = value.astimezone(UTC).replace(tzinfo=None) - EPOCH if value.tzinfo else value - EPOCH
        return ((since.days * 86_400 + since.seconds) * 10**6 + since.microseconds) % P
    if digits:
        assert isinstance(value, Decimal)
        return int(value.scaleb(digits[1], EXACT)) % P
    if lake_type in ("float", "double"):
        assert isinstance(value, float)
        bits = NAN_BITS if math.isnan(value) else struct.unpack("<q", struct.pack("<d", value))[0]
        return bits % P
    data = value.encode(encoding) if isinstance(value, str) else value
    assert isinstance(data, bytes)
    return int.from_bytes(hashlib.md5(data).digest()[:4], "big") & HASH_MASK


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
    "string": st.text(max_size=400) | st.sampled_from(["", "a", "é", "𝄞", "x" * 500]),
    "binary": st.binary(max_size=400),
}
for precision, scale in ((1, 0), (10, 2), (18, 18), (19, 4), (38, 0), (38, 10), (38, 38)):
    largest = 10**precision - 1
    VALUES[f"decimal128({precision}, {scale})"] = (
        st.integers(-largest, largest) | st.sampled_from([largest, -largest, 0])
    ).map(lambda whole, scale=scale: Decimal(whole).scaleb(-scale, EXACT))


def test_every_plain_type_is_tested() -> None:
    assert set(PLAIN) <= set(VALUES)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
@pytest.mark.parametrize("lake_type", VALUES)
def test_sums_are_those_of_the_definition(lake_type: str, encoding: str) -> None:
    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(st.lists(st.none() | VALUES[lake_type], max_size=40), st.integers(0, 5), st.integers(1, 7))
    def agree(values: list[object], skipped: int, repeated: int) -> None:
        array = pa.array(values * repeated, arrow_type(lake_type)).slice(skipped)
        sums = Sums([LakeColumn("c", lake_type)], encoding)
        half = len(array) // 2
        for part in (array.slice(0, half), array.slice(half)):
            sums.add(pa.record_batch({"other": pa.nulls(len(part)), "c": part}))
        left = (values * repeated)[skipped:]
        there = [value for value in left if value is not None]
        assert sums.rows == len(left)
        assert sums.result() == {
            "c": ColumnSum(len(left) - len(there), sum(reference(value, lake_type, encoding) for value in there))
        }

    agree()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_many_different_texts_and_long_ones(encoding: str) -> None:
    texts: list[str | None] = [f"{'ä𝄞' * (number % 3)}{number}{'z' * (number % 300)}" for number in range(6_000)]
    texts += ["x" * 100_000, "", None, "\x00"]
    sums = Sums([LakeColumn("c", "string")], encoding)
    sums.add(pa.record_batch({"c": pa.array(texts)}))
    assert sums.result()["c"] == ColumnSum(
        1, sum(reference(text, "string", encoding) for text in texts if text is not None)
    )


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


def test_what_lies_below_a_null_does_not_count() -> None:
    valid = pa.py_buffer(bytes([0b101]))
    buffers = {
        "decimal128(38, 0)": struct.pack("<6q", 1, 0, 77, 77, 2, 0),
        "int64": struct.pack("<3q", 1, 77, 2),
    }
    for lake_type, data in buffers.items():
        array = pa.Array.from_buffers(arrow_type(lake_type), 3, [valid, pa.py_buffer(data)])
        sums = Sums([LakeColumn("c", lake_type)])
        sums.add(pa.record_batch({"c": array}))
        assert sums.result()["c"] == ColumnSum(1, 3)


def test_columns_of_the_lakes_wider_types_are_summed_as_the_source_has_them() -> None:
    columns = [LakeColumn("i", "int32"), LakeColumn("d", "decimal128(10, 2)"), LakeColumn("s", "string")]
    narrow, wide = Sums(columns), Sums(columns)
    values = {"i": [1, -2], "d": [Decimal("1.25"), None], "s": ["a", "b"]}
    narrow.add(pa.record_batch(values, schema=pa.schema([(one.name, arrow_type(one.type)) for one in columns])))
    lake = pa.schema([("i", pa.int64()), ("d", pa.decimal128(20, 4)), ("s", pa.large_string())])
    wide.add(pa.record_batch(values, schema=lake))
    assert narrow.result() == wide.result()


def test_a_missing_column_is_an_error() -> None:
    with pytest.raises(ValueError, match="'c'"):
        Sums([LakeColumn("c", "int32")]).add(pa.record_batch({"d": [1]}))


def test_an_unknown_encoding_is_an_error() -> None:
    with pytest.raises(ValueError, match="latin-1"):
        Sums([], "latin-1")


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


def test_other_encodings_are_not_compared() -> None:
    other = Summary(3, ONE.columns, "utf-16-le")
    assert compact(ONE) != compact(other)
    with pytest.raises(ValueError, match="utf-16-le"):
        differences(ONE, other)


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
            None if value is None else (reference(value, lake_type, "utf-8"), repr(value))
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
