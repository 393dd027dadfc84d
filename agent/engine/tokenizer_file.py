"""``tokenizer.json`` of a model, read by the library that made it.

A row of logits has one figure for each token of the file, and often some more that no text has.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from agent.engine.grammar import Vocabulary
from agent.engine.runtime import ModelUnloadable

MOST_BYTES = 256 << 20
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")  # one byte, as "<0xE2>"
_SPACE = "\u2581"  # stands for a space where a vocabulary is of SentencePiece's kind


class TokenizerFile:
    """The tokens of one model. May be used by several threads."""

    def __init__(self, path: Path, size: int) -> None:
        """``size`` is the length of a row. Raises ModelUnloadable for a file that cannot be this model's."""
        self._size = size
        self._tokenizer, decoder = _read(path, size)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._turn = threading.Lock()
        added = self._tokenizer.get_added_tokens_decoder()
        self._control = frozenset(token for token, about in added.items() if about.special)
        known = {token: text for text, token in self._tokenizer.get_vocab(with_added_tokens=True).items()}
        if max(known, default=size) >= size:
            raise ModelUnloadable(
                f"{path.name} has token {max(known, default=0)}, the graph gives figures for {size} tokens only: "
                "they are not of the same model"
            )
        spell = _speller(decoder, path.name)
        self._written = [
            added[token].content.encode() if token in added else spell(known[token]) if token in known else b""
            for token in range(size)
        ]
        self.bos = self._first_token()

    def _first_token(self) -> int | None:
        """Return the token that the file puts before every text, if it does."""
        plain = self._tokenizer.encode("a", add_special_tokens=False).ids
        whole = self._tokenizer.encode("a").ids
        return whole[0] if len(whole) > len(plain) and whole[0] in self._control and whole[0] != plain[0] else None

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Cut a text into tokens. Control tokens are read out of it only where they are ``special``."""
        with self._turn:
            self._tokenizer.encode_special_tokens = not special
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def find(self, text: str) -> int | None:
        """Return the token of this very text, if there is one."""
        token: int | None = self._tokenizer.token_to_id(text)
        return token

    def is_control(self, token: int) -> bool:
        """Whether a token is no text."""
        return token in self._control or not self._written[token]

    def control_texts(self) -> Iterator[str]:
        """Yield the names of the control tokens."""
        return (self._written[token].decode("utf-8", "replace") for token in self._control)

    def piece(self, token: int) -> bytes:
        """Return the bytes of a token; empty for a control token."""
        return b"" if token in self._control else self._written[token]

    def written(self, token: int) -> bytes:
        """Return the bytes of a token, those of a control token as its name."""
        return self._written[token]

    def vocabulary(self, ends: list[int]) -> Vocabulary:
        """Return the tokens as a grammar needs them."""
        tokens = [
            b"\xff" + (self._written[token] or b"<no text %d>" % token)
            if self.is_control(token)
            else self._written[token]
            for token in range(self._size)
        ]
        return Vocabulary(tokens, ends, lambda text: self.tokenize(text.decode("utf-8", "replace"), special=False))


def _read(path: Path, size: int) -> tuple[Tokenizer, Any]:
    """Return the tokenizer, and what its file says of the way back."""
    try:
        length = path.stat().st_size
        text = path.read_text(encoding="utf-8") if length <= MOST_BYTES else ""
    except FileNotFoundError:
        raise ModelUnloadable(f"{path.name} is missing: without it no text can be cut into tokens") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelUnloadable(f"{path.name} cannot be read: {error}") from error
    if length > MOST_BYTES:
        raise ModelUnloadable(f"{path.name} has more than {MOST_BYTES >> 20} MiB")
    try:
        described = json.loads(text)
        added = described.get("added_tokens") or []
        # Some models of pictures leave a mark behind that their text part has no figures for.
        if len(usable := [one for one in added if one["id"] < size]) < len(added):
            described["added_tokens"] = usable
            text = json.dumps(described)
        return Tokenizer.from_str(text), described.get("decoder")
    except Exception as error:  # of the library, it has no type of its own
        raise ModelUnloadable(f"{path.name} is no tokenizer: {error}") from error


def _speller(decoder: Any, name: str) -> Any:
    """Return what turns the text of a token in the file into its bytes, by the kind of its decoder.

    The decoders themselves turn what is no whole character into a replacement sign.
    """
    kinds = {step.get("type") for step in _steps(decoder)}
    if "ByteLevel" in kinds:
        letters = str.maketrans({letter: chr(byte) for letter, byte in _byte_letters().items()})
        return lambda text: _bytes_of_letters(text, letters)
    if kinds & {"Metaspace", "ByteFallback"}:
        return _sentence_piece
    raise ModelUnloadable(
        f"{name} decodes by {', '.join(sorted(filter(None, kinds))) or 'nothing'}: known are byte-level tokens "
        "and those of SentencePiece"
    )


def _bytes_of_letters(text: str, letters: dict[int, str]) -> bytes:
    try:
        return text.translate(letters).encode("latin-1")
    except UnicodeEncodeError:  # no letter that stands for a byte: it is what it says
        return text.encode()


def _steps(decoder: Any) -> list[dict[str, Any]]:
    if not isinstance(decoder, dict):
        return []
    if decoder.get("type") == "Sequence":
        return [step for step in decoder.get("decoders", ()) if isinstance(step, dict)]
    return [decoder]


def _sentence_piece(text: str) -> bytes:
    if found := _BYTE.fullmatch(text):
        return bytes.fromhex(found[1])
    return text.replace(_SPACE, " ").encode()


def _byte_letters() -> dict[str, int]:
    """Return the letter that stands for each byte: itself where it prints, else the next one from U+0100 on."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + at): byte for at, byte in enumerate(others)}
