"""What the rebuilt checkpoint's tokenizer must do, which transformers guesses wrong."""

import json
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import rebuild_checkpoint
from rebuild_checkpoint import RebuildError, correct_tokenizer, rebuild

VOCABULARY = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "1": 3, "2": 4, "a": 5, "Ġ": 6, "12": 7, "Ġa": 8}


@pytest.fixture
def guessed(tmp_path):
    specials = [
        {"id": number, "content": text, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for text, number in VOCABULARY.items()
        if number < 3
    ]
    started = {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}}
    tokenizer = {
        "version": "1.0",
        "added_tokens": specials,
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [],
            "special_tokens": started,
        },
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "BPE",
            "vocab": VOCABULARY,
            "merges": [["1", "2"], ["Ġ", "a"]],
            "byte_fallback": True,
            "fuse_unk": True,
        },
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": True}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|im_start|>"}))
    (tmp_path / "tokenizer.model").write_bytes(b"GGUF")
    return tmp_path


def test_digits_stand_alone_bytes_come_back_and_nothing_is_put_in_front(guessed):
    correct_tokenizer(guessed)
    tokenizer = Tokenizer.from_file(str(guessed / "tokenizer.json"))
    assert tokenizer.encode("12 a<|im_end|>").ids == [3, 4, 8, 2]
    assert tokenizer.decode([3, 4, 8]) == "12 a"
    assert json.loads((guessed / "special_tokens_map.json").read_text())["eos_token"] == "<|im_end|>"
    assert not (guessed / "tokenizer.model").exists()


def test_a_failure_says_what_failed_and_leaves_nothing(tmp_path, monkeypatch):
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    with pytest.raises(RebuildError, match="failed"):
        rebuild(tmp_path / "no-python", gguf, tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    (tmp_path / "made").mkdir()
    with pytest.raises(RebuildError, match="there already"):
        rebuild(tmp_path / "no-python", gguf, tmp_path / "made")
    monkeypatch.setattr(rebuild_checkpoint.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RebuildError, match="not installed"):
        rebuild_checkpoint.embedded()
