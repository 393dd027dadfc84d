import json
import threading

import pytest
from fakes import tiny_onnx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from agent.engine.runtime import ModelUnloadable
from agent.engine.tokenizer_file import TokenizerFile

TEXTS = ["naïve €5 😀 text", "\x00\x7f  two  spaces\n\ttab", "<|im_end|> stays text", "中文 العربية"]


@pytest.fixture
def path(tmp_path):
    tiny_onnx.tokenizer().save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def sentence_piece(path, *, bos=False):
    words = {
        "<unk>": 0,
        "<s>": 1,
        "</s>": 2,
        **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)},
        "▁a": 259,
        "▁": 260,
    }
    made = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens(["<s>", "</s>"])
    if bos:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made.save(str(path))
    return path


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_of_a_text_are_its_bytes(path, text):
    tokens = TokenizerFile(path, tiny_onnx.VOCABULARY)
    found = tokens.tokenize(text, special=False)
    assert b"".join(map(tokens.piece, found)) == text.encode()
    vocabulary = tokens.vocabulary([2])
    assert vocabulary.tokenize(text.encode()) == found
    assert [vocabulary.tokens[token] for token in found] == [tokens.piece(token) for token in found]


def test_control_tokens_are_read_only_where_they_may_be(path):
    tokens = TokenizerFile(path, tiny_onnx.VOCABULARY)
    assert tokens.tokenize("<|im_end|>", special=True) == [2]
    assert 2 not in tokens.tokenize("<|im_end|>", special=False)
    assert (tokens.piece(2), tokens.written(2)) == (b"", b"<|im_end|>")
    assert set(tokens.control_texts()) == set(tiny_onnx.CONTROL)
    assert tokens.vocabulary([2]).tokens[2] == b"\xff<|im_end|>"


def test_threads_do_not_change_what_another_reads(path):
    tokens = TokenizerFile(path, tiny_onnx.VOCABULARY)
    found = {True: set(), False: set()}

    def read(special):
        for _ in range(300):
            found[special].add(tuple(tokens.tokenize("<|im_end|>", special=special)))

    threads = [threading.Thread(target=read, args=(special,)) for special in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[True] == {(2,)}
    assert len(found[False]) == 1


def test_a_row_may_have_figures_for_what_is_no_token(path):
    tokens = TokenizerFile(path, tiny_onnx.VOCABULARY)
    last = tiny_onnx.VOCABULARY - 1
    assert tokens.piece(last) == b""
    vocabulary = tokens.vocabulary([2]).tokens
    assert len(vocabulary) == tiny_onnx.VOCABULARY
    assert vocabulary[last].startswith(b"\xff")


def test_a_mark_beyond_the_row_is_text(path):
    described = json.loads(path.read_text())
    mark = {"id": 9000, "content": "<image>", "special": True}
    described["added_tokens"].append(described["added_tokens"][0] | mark)
    path.write_text(json.dumps(described))
    tokens = TokenizerFile(path, tiny_onnx.VOCABULARY)
    found = tokens.tokenize("<image>", special=True)
    assert b"".join(map(tokens.piece, found)) == b"<image>"


def test_a_tokenizer_of_another_model_is_refused(path):
    with pytest.raises(ModelUnloadable, match="not of the same model"):
        TokenizerFile(path, 300)


@pytest.mark.parametrize("bos", [False, True])
def test_bytes_that_are_no_character_have_tokens_in_sentence_piece_too(tmp_path, bos):
    tokens = TokenizerFile(sentence_piece(tmp_path / "tokenizer.json", bos=bos), 270)
    found = tokens.tokenize("a é", special=False)
    assert b"".join(map(tokens.piece, found)) == " a é".encode()
    assert tokens.piece(3 + 0xC3) == b"\xc3"
    assert tokens.bos == (1 if bos else None)


def test_what_only_looks_like_a_byte_is_text(tmp_path):
    path = sentence_piece(tmp_path / "tokenizer.json")
    path.write_text(path.read_text(encoding="utf-8").replace('"<0x00>"', '"<0xZZ>"'), encoding="utf-8")
    assert TokenizerFile(path, 270).piece(3) == b"<0xZZ>"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "missing"),
        ("{", "no tokenizer"),
        ('{"model": 3}', "no tokenizer"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, content, told):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ModelUnloadable, match=told):
        TokenizerFile(path, 300)


def test_a_kind_that_is_not_known_is_refused(path):
    described = json.loads(path.read_text())
    described["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    path.write_text(json.dumps(described))
    with pytest.raises(ModelUnloadable, match="WordPiece"):
        TokenizerFile(path, tiny_onnx.VOCABULARY)
