"""The restricted unpickler: plain data round-trips, and nothing else is called or made."""

import os
import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest

from examples.demo import pickles
from examples.demo.pickles import load_plain_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def load(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    return load_plain_pickle(path)


class Calls:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_data(tmp_path, protocol):
    data = {"a": [1, -(2**70), "text", b"\x00\xff"], 3: {b"k": []}, "empty": b""}
    assert load(tmp_path, pickle.dumps(data, protocol)) == data


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.uint8).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(4, dtype=">i2"),
        np.array([True, False]),
        np.array(2.5),
        np.zeros((0, 3), np.float32),
    ],
    ids=["uint8", "fortran", "big-endian", "bool", "scalar", "empty"],
)
def test_arrays(tmp_path, protocol, array):
    loaded = load(tmp_path, pickle.dumps([array], protocol))[0]
    np.testing.assert_array_equal(loaded, array)
    assert loaded.dtype == array.dtype


def test_array_written_by_python_2(tmp_path):
    # What Python 2's cPickle writes in protocol 2: byte strings, and numpy under its old name.
    raw = bytes(range(6))
    content = (
        b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        b"U\x01b\x87R(K\x01K\x02K\x03\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + b"U"
        + struct.pack("<B", len(raw))
        + raw
        + b"tbs."
    )
    loaded = load(tmp_path, content)
    np.testing.assert_array_equal(loaded[b"data"], np.arange(6, dtype=np.uint8).reshape(2, 3))


def test_malicious_call_is_not_made(tmp_path):
    trace = tmp_path / "trace"
    with pytest.raises(ValueError, match=r"got posix\.system, which is refused"):
        load(tmp_path, pickle.dumps(Calls(os.system, f"touch {trace}"), 2))
    assert not trace.exists()


@pytest.mark.parametrize(
    "value",
    [
        Calls(eval, "1"),
        Calls(getattr, "", "join"),
        OrderedDict(),
        np.float64(1.0),
        np.random.default_rng(0),
        print,
        complex(1, 2),
        bytearray(b"a"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_other_names_are_refused(tmp_path, value, protocol):
    with pytest.raises(ValueError, match="which is refused"):
        load(tmp_path, pickle.dumps(value, protocol))


@pytest.mark.parametrize("value", [1.5, None, True, (1, 2), {1, 2}, [None], {"a": (1,)}])
def test_other_values_are_refused(tmp_path, value):
    with pytest.raises(ValueError, match="got a value of type"):
        load(tmp_path, pickle.dumps(value))


@pytest.mark.parametrize(
    "array",
    [
        np.array([print, None], dtype=object),
        np.zeros(2, [("a", np.int8)]),
        np.array(["text"]),
        np.array(["2020-01-01"], "M8[D]"),
        np.zeros(2, complex),
    ],
    ids=["objects", "records", "text", "dates", "complex"],
)
def test_other_arrays_are_refused(tmp_path, array):
    with pytest.raises(ValueError, match="cannot read the pickle"):
        load(tmp_path, pickle.dumps(array, 2))


def test_array_with_too_few_bytes(tmp_path):
    content = pickle.dumps(np.zeros((2, 3), np.uint8), 2).replace(
        b"K\x02K\x03\x86", b"K\x64K\x64\x86"
    )
    with pytest.raises(ValueError, match="expected 10000 entries"):
        load(tmp_path, content)


def test_array_without_contents(tmp_path):
    content = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\nS'b'\ntR."
    with pytest.raises(ValueError, match="cannot read the pickle"):
        load(tmp_path, content)


def test_object_dtype_that_claims_to_be_bytes(tmp_path):
    # numpy itself would read these bytes as pointers, if the dtype's flags said so.
    content = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01\x85cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08AAAAAAAAtb."
    )
    with pytest.raises(ValueError, match="expected an array of numbers"):
        load(tmp_path, content)


@pytest.mark.parametrize("state", [b"}U\x09_functionU\x01xs", b"N}U\x09_functionU\x01xs\x86"])
def test_stand_ins_keep_their_functions(tmp_path, state):
    before = dict(pickles._KNOWN)
    with pytest.raises(ValueError, match="expected no state"):
        load(
            tmp_path, b"\x80\x02ccodecs\nencode\n".replace(b"ccodecs", b"c_codecs") + state + b"b."
        )
    assert before == pickles._KNOWN
    assert pickles._KNOWN["_codecs", "encode"]("a", "latin1") == b"a"


@pytest.mark.parametrize(
    "content",
    [b"", b"text", b"\x80\x02", b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", b"(lp0\ng0\na."],
    ids=["empty", "text", "cut", "huge", "recursive"],
)
def test_broken_files(tmp_path, content):
    with pytest.raises(ValueError, match="cannot read the pickle"):
        load(tmp_path, content)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_plain_pickle(tmp_path / "nothing")


def test_unknown_encoding(tmp_path):
    with pytest.raises(ValueError, match="latin1"):
        load(tmp_path, b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00utf-8\x86R.")
