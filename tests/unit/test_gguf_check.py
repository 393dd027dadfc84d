"""What must not reach the native loader."""

import ctypes
import importlib.util
import struct
from pathlib import Path

import pytest
from fakes.gguf import ARRAY, BOOL, F32, I32, METADATA, STRING, TENSORS, U32, gguf

from agent.errors import ModelRejected
from agent.models.gguf_check import TENSOR_TYPES, check_gguf, check_gguf_bytes


def with_metadata(*entries):
    names = {entry[0] for entry in entries}
    return (*[entry for entry in METADATA if entry[0] not in names], *entries)


def test_a_good_file_tells_what_it_is():
    header = check_gguf_bytes(gguf())
    assert (header.version, header.architecture, header.context_tokens) == (3, "llama", 4096)
    assert (header.vocabulary, header.tensors, header.has_chat_template) == (3, 2, True)


def test_a_model_without_tensors_or_vocabulary_is_still_a_gguf():
    header = check_gguf_bytes(gguf(metadata=METADATA[:1], tensors=(), data=0))
    assert (header.context_tokens, header.vocabulary, header.has_chat_template) == (None, 0, False)


WRONG = {
    "magic": ({"magic": b"PK\3\4"}, "does not begin with GGUF"),
    "version": ({"version": 1}, "version 1"),
    "big-endian version": ({"version": 3 << 24}, "not supported"),
    "tensor count": ({"n_tensors": 1 << 60}, "tensors are claimed"),
    "metadata count": ({"n_metadata": 1 << 60}, "metadata entries are claimed"),
    "one entry too many": ({"n_metadata": 6}, "GGUF:"),
    "duplicate key": ({"metadata": (*METADATA, METADATA[0])}, "written twice"),
    "empty key": ({"metadata": (*METADATA, ("", U32, 1))}, "is empty"),
    "key that is not UTF-8": ({"metadata": (*METADATA, (b"\xff\xfe", U32, 1))}, "not UTF-8"),
    "unknown type": ({"metadata": (*METADATA, ("x", 13, b""))}, "unknown type 13"),
    "nested array": ({"metadata": (*METADATA, ("x", ARRAY, (ARRAY, [])))}, "unsupported type 9"),
    "boolean of 2": ({"metadata": (*METADATA, ("x", BOOL, 2))}, "neither true nor false"),
    "no architecture": ({"metadata": METADATA[1:]}, "general.architecture"),
    "architecture as a number": ({"metadata": with_metadata(("general.architecture", U32, 1))}, "architecture"),
    "template as a number": ({"metadata": with_metadata(("tokenizer.chat_template", U32, 1))}, "chat_template"),
    "token types too short": (
        {"metadata": with_metadata(("tokenizer.ggml.token_type", ARRAY, (I32, [1])))},
        "does not match the 3 tokens",
    ),
    "scores of the wrong type": (
        {"metadata": with_metadata(("tokenizer.ggml.scores", ARRAY, (I32, [1, 1, 1])))},
        "scores does not match",
    ),
    "tokens as numbers": (
        {"metadata": with_metadata(("tokenizer.ggml.tokens", ARRAY, (F32, [1.0])))},
        "array of texts",
    ),
    "alignment": ({"metadata": with_metadata(("general.alignment", U32, 48))}, "power of two"),
    "no dimensions": ({"tensors": (("a", (), 0, 0),)}, "0 dimensions"),
    "five dimensions": ({"tensors": (("a", (1, 1, 1, 1, 1), 0, 0),)}, "5 dimensions"),
    "empty tensor": ({"tensors": (("a", (0,), 0, 0),)}, "impossible shape"),
    "overflowing shape": ({"tensors": (("a", (1 << 40, 1 << 40), 0, 0),)}, "impossible shape"),
    "rows that are no blocks": ({"tensors": (("a", (33,), 3, 0),)}, "not a multiple of 32"),
    "removed tensor type": ({"tensors": (("a", (32,), 4, 0),)}, "unknown type 4"),
    "long tensor name": ({"tensors": (("a" * 64, (1,), 0, 0),)}, "at most 63"),
    "tensor name twice": ({"tensors": (TENSORS[0], ("token_embd.weight", (32,), 0, 64))}, "used twice"),
    "offset outside": ({"tensors": (("a", (1,), 0, 1 << 62),)}, "must lie"),
    "overlapping tensors": ({"tensors": (TENSORS[0], ("b", (32,), 0, 32))}, "must lie"),
    "truncated weights": ({"data": 191}, "truncated"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refused_with_a_reason(case):
    arguments, reason = WRONG[case]
    with pytest.raises(ModelRejected, match=reason):
        check_gguf_bytes(gguf(**arguments))


def test_a_huge_string_length_is_refused_before_it_is_read():
    data = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 63)
    with pytest.raises(ModelRejected, match="claims 9223372036854775808 bytes"):
        check_gguf_bytes(data)


def test_every_truncation_is_refused():
    whole = gguf(data=192)
    for length in range(len(whole) - 32):
        with pytest.raises(ModelRejected):
            check_gguf_bytes(whole[:length])


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "empty").touch()
    for name, reason in (("empty", "empty"), ("missing", "cannot be read"), (".", "cannot be read")):
        with pytest.raises(ModelRejected, match=reason):
            check_gguf(tmp_path / name)


def test_tensor_types_are_those_of_the_native_library():
    found = importlib.util.find_spec("llama_cpp")
    library = Path(found.origin).parent / "lib" / "libggml-base.so"
    if not library.exists():
        pytest.skip("the library has another name on this system")
    ggml = ctypes.CDLL(str(library))
    ggml.ggml_blck_size.restype = ctypes.c_int64
    ggml.ggml_type_size.restype = ctypes.c_size_t
    native = {kind: (ggml.ggml_blck_size(kind), ggml.ggml_type_size(kind)) for kind in range(43)}
    assert {kind: sizes for kind, sizes in native.items() if sizes[1]} == TENSOR_TYPES


def test_string_kind_in_metadata_is_read():
    assert check_gguf_bytes(gguf(metadata=(*METADATA, ("general.name", STRING, "tiny")))).metadata == 6
