"""What a safetensors file must be, to the byte."""

import json
import struct

import pytest

from agent.errors import ModelRejected
from agent.models.safetensors_check import check_safetensors

W = {"dtype": "F16", "shape": [2, 4], "data_offsets": [0, 16]}
V = {"dtype": "F32", "shape": [3], "data_offsets": [16, 28]}


def written(tmp_path, header, data=28, length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + b"\1" * data)
    return path


def test_a_whole_file_tells_its_weights(tmp_path):
    assert check_safetensors(written(tmp_path, {"__metadata__": {"format": "pt"}, "v": V, "w": W})) == 11


@pytest.mark.parametrize(
    ("header", "data", "length"),
    [
        ({"w": W, "v": V}, 27, None),  # cut
        ({"w": W, "v": V}, 29, None),  # something behind
        ({"w": W, "v": {**V, "data_offsets": [12, 24]}}, 24, None),  # overlap
        ({"w": W, "v": {**V, "data_offsets": [20, 32]}}, 32, None),  # gap
        ({"w": {**W, "shape": [2, 5]}}, 16, None),
        ({"w": {**W, "shape": [1 << 60, 4]}}, 16, None),
        ({"w": {**W, "shape": [-2, -4]}}, 16, None),
        ({"w": {**W, "shape": [True, 8]}}, 16, None),
        ({"w": {**W, "dtype": "OBJECT"}}, 16, None),
        ({"w": [1, 2]}, 16, None),
        ({"w": {**W, "data_offsets": [0]}}, 16, None),
        ({"w": {**W, "shape": 8}}, 16, None),
        ({"w": {**W, "dtype": []}}, 16, None),
        ([], 16, None),
        (b"{", 16, None),
        (b"[" * 100_000, 16, None),
        ({"w": W}, 16, 1 << 62),
        ({"w": W}, 16, 0),
    ],
)
def test_anything_else_is_refused(tmp_path, header, data, length):
    with pytest.raises(ModelRejected, match="safetensors"):
        check_safetensors(written(tmp_path, header, data, length))


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "empty.safetensors"
    path.touch()
    with pytest.raises(ModelRejected, match="safetensors"):
        check_safetensors(path)
