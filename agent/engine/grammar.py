"""Answers that must look a certain way: a format or tool calls become a mask over the vocabulary.

The work is llguidance's: a mask over 49,152 tokens takes it some 20 microseconds, where
llama.cpp's grammar takes milliseconds (docs/structured-output.md has the figures). JSON is
admitted in one spacing only, ``{"a": 1, "b": [2, 3]}``: keys and punctuation are then wholly
the grammar's doing, and an unsure model cannot drift into whitespace without end.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import llguidance
import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.engine import call_markup
from agent.structure import FormatKind, OutputFormat, ToolChoice, Tools

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

COMPILE_LIMIT_S = 2.0
QUICK_S = 0.05  # nearly all grammars are ready by then; others compile beside the running answers
MOST_CALLS = 8
MOST_KEPT = 32  # compiled grammars
MOST_UNDER_WAY = 8  # that compile or wait for their turn
LONGEST_TOKEN = 64  # bytes
LONGEST_REASON = 300  # characters
# Upper bounds of llguidance on work and memory, tighter than its defaults.
_LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=500_000,
    step_lexer_fuel=100_000,
    step_max_items=50_000,
    max_lexer_states=20_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
_SPACING: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
}

Mask = NDArray[np.bool_]


class RuleRejected(Exception):
    """The format or the tools cannot be enforced. ``str()`` is the reason."""


class CompilersBusy(Exception):
    """Too many rules are being compiled; the same one may be asked for again shortly."""


class RuleBroken(Exception):
    """No further token obeys the rule, or finding out costs too much."""


class Vocabulary(NamedTuple):
    """What a grammar must know of a model's tokens."""

    tokens: Sequence[bytes]  # control tokens begin with 0xff
    ends: Sequence[int]  # tokens that end an answer
    tokenize: Callable[[bytes], list[int]]


class NullSpellings:
    """The tokens by which ``null`` can begin, by the bytes before it in the same token (such as a space)."""

    _NULL = re.compile(rb"([\": ,\[]{0,4})n(?:u|ul|ull.*)?", re.DOTALL)
    _LETTER = re.compile(rb"([\": ,\[]{0,4})x")  # begins no value of JSON: where it is allowed, a string goes on

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self._null: dict[bytes, list[int]] = {}
        self._letter: dict[bytes, int] = {}
        for index, token in enumerate(tokens):
            if found := self._NULL.fullmatch(token):
                self._null.setdefault(found[1], []).append(index)
            if found := self._LETTER.fullmatch(token):
                self._letter[found[1]] = index

    def among(self, allowed: Mask, before: bytes) -> list[int]:
        """Return those that are allowed behind these forced bytes, where a value may begin."""
        letter = self._letter.get(before)
        if letter is not None and allowed[letter]:
            return []
        return [token for token in self._null.get(before, ()) if allowed[token]]


class Constraint:
    """A rule at work in one answer."""

    def __init__(self, matcher: llguidance.LLMatcher, size: int, nulls: NullSpellings) -> None:
        self._matcher = matcher
        self._size = size
        self._nulls = nulls
        self._words: NDArray[np.uint8] = np.zeros((size + 31) // 32 * 4, np.uint8)

    def fresh(self) -> Constraint:
        """Return a copy that can be at work by itself."""
        return Constraint(self._matcher.deep_copy(), self._size, self._nulls)

    def allowed(self) -> Mask:
        """Return which tokens may come next, those that end the answer among them. Raises RuleBroken."""
        self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        mask = np.unpackbits(self._words, bitorder="little")[: self._size].view(np.bool_)
        if self._matcher.is_error() or not mask.any():
            raise RuleBroken(_reason(self._matcher) or "no token can follow")
        return mask

    def forced_bytes(self) -> bytes:
        """Return the bytes that come next in any case, however they are cut into tokens."""
        return self._matcher.compute_ff_bytes()

    def nulls(self, allowed: Mask, forced: bytes) -> list[int]:
        """Return the allowed tokens by which, after the forced bytes, a value that is null begins."""
        return self._nulls.among(allowed, forced)

    def forced_tokens(self) -> list[int]:
        """Return the tokens that must come next, spelled as the tokenizer spells them whatever follows.

        None although bytes are forced: their last ones may share a token with the choice after them.
        """
        return self._matcher.compute_ff_tokens()

    def accept(self, token: int) -> bool:
        """Take the token that was drawn; False where ``error`` says why that cannot be."""
        return self._matcher.consume_token(token)

    @property
    def error(self) -> str:
        """Why nothing more can be taken."""
        return _reason(self._matcher)

    @property
    def satisfied(self) -> bool:
        """Whether the answer may end here."""
        return self._matcher.is_accepting()

    @property
    def complete(self) -> bool:
        """Whether the answer must end here."""
        return self._matcher.is_stopped() and self._matcher.is_accepting()


class Compiling:
    """A rule on its way to a Constraint, in a thread of its own."""

    def __init__(self, compile_rule: Callable[[], Constraint]) -> None:
        self._compile = compile_rule
        self._over = threading.Event()
        self._compiled: Constraint | None = None
        self._rejected: RuleRejected | None = None
        threading.Thread(target=self._run, name="grammar", daemon=True).start()

    def _run(self) -> None:
        try:
            self._compiled = self._compile()
        except RuleRejected as error:
            self._rejected = error
        except Exception as error:
            self._rejected = RuleRejected(f"it cannot be compiled ({type(error).__name__})")
        finally:
            self._over.set()

    def ready(self, wait_s: float = 0.0) -> bool:
        """Wait for the end of the compilation; return whether it has come."""
        return self._over.wait(wait_s)

    def constraint(self) -> Constraint:
        """Return a fresh Constraint, once ready. Raises RuleRejected."""
        if self._compiled is None:
            raise self._rejected or RuleRejected("it is not compiled yet")
        return self._compiled.fresh()


class Grammars:
    """The compiled rules of one model. Used by one thread."""

    def __init__(self, vocabulary: Callable[[], Vocabulary], size: int) -> None:
        """``vocabulary`` is read at the first rule; ``size`` is the length of a row of logits."""
        self._vocabulary = vocabulary
        self._size = size
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._nulls = NullSpellings(())
        self._turn = threading.Lock()
        self._kept: OrderedDict[bytes, Compiling] = OrderedDict()

    def begin(self, output: OutputFormat | None, tools: Tools | None) -> Compiling | None:
        """Begin to compile a rule, or find it compiled; None where anything may be said.

        One compiles at a time, in the order of asking. Raises CompilersBusy while too many wait:
        a compilation cannot be stopped, and a slow one holds up those behind it.
        """
        if output is None and not (tools and tools.callable):
            return None
        key = msgspec.msgpack.encode((output, tools))
        known = self._kept.get(key)
        if known is None:
            under_way = sum(not kept.ready() for kept in self._kept.values())
            if under_way >= MOST_UNDER_WAY:
                raise CompilersBusy(f"{under_way} other formats are still being compiled; try again shortly")
            known = Compiling(lambda: self._compile_in_turn(output, tools))
            if not under_way:
                known.ready(QUICK_S)
            self._kept[key] = known
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return known

    def _compile_in_turn(self, output: OutputFormat | None, tools: Tools | None) -> Constraint:
        with self._turn:
            return self._compile(output, tools)

    def _compile(self, output: OutputFormat | None, tools: Tools | None) -> Constraint:
        text = rule_text(output, tools)
        matcher = llguidance.LLMatcher(self._native_tokenizer(), text, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise RuleRejected(f"it cannot be enforced: {_reason(matcher)}")
        compiled = Constraint(matcher, self._size, self._nulls)
        try:
            compiled.fresh().allowed()
        except RuleBroken as error:
            why = f"no answer can satisfy it ({error}): does a rule lead to itself alone, or do values exclude each other?"
            raise RuleRejected(why) from error
        return compiled

    def _native_tokenizer(self) -> llguidance.LLTokenizer:
        if self._tokenizer is None:
            vocabulary = self._vocabulary()
            self._nulls = NullSpellings(vocabulary.tokens)
            self._tokenizer = llguidance.LLTokenizer(
                llguidance.TokenizerWrapper(_Tokenizer(vocabulary)),
                n_vocab=self._size,
                eos_token=list(vocabulary.ends),
                slices=llguidance.LLTokenizer.json_slices(),
            )
        return self._tokenizer


class _Tokenizer:
    """The vocabulary in the shape that llguidance asks for."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens = vocabulary.tokens
        self.eos_token_id = vocabulary.ends[0]
        self.bos_token_id = None
        self.special_token_ids = [index for index, token in enumerate(vocabulary.tokens) if token[:1] == b"\xff"]
        self._vocabulary = vocabulary
        self._by_bytes: dict[bytes, int] | None = None
        # Asked again and again for the same keys and punctuation.
        self._tokenize = lru_cache(maxsize=4096)(self._exact)

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenize(text)

    def _exact(self, text: bytes) -> list[int]:
        """Return tokens that spell exactly this text, a part of an answer.

        Some tokenizers put a space before a text, hence the second try behind a byte that
        nothing merges with. What changes a text otherwise (its case) does not say how it is spelled.
        """
        for before in (b"", b"\x02"):
            tokens = self._vocabulary.tokenize(before + text)
            while tokens and (said := b"".join(self.tokens[token] for token in tokens)) != text:
                tokens = tokens[1:] if before and len(said) > len(text) else []
            if tokens:
                return tokens
        return self._longest_matches(text)

    def _longest_matches(self, text: bytes) -> list[int]:
        if self._by_bytes is None:
            self._by_bytes = {token: index for index, token in enumerate(self.tokens) if token[:1] != b"\xff"}
        found, at = [], 0
        while at < len(text):
            pieces = (text[at : at + size] for size in range(min(LONGEST_TOKEN, len(text) - at), 0, -1))
            piece = next((piece for piece in pieces if piece in self._by_bytes), None)
            if piece is None:
                return []
            found.append(self._by_bytes[piece])
            at += len(piece)
        return found


def rule_text(output: OutputFormat | None, tools: Tools | None) -> str:
    """Return the rule as llguidance reads it. Raises RuleRejected."""
    if tools is not None and tools.callable:
        return llguidance.LLMatcher.grammar_from_lark(_calls_lark(tools, output))
    if output is None:
        raise RuleRejected("there is no rule")
    return _format_text(output)


def _format_text(output: OutputFormat) -> str:
    matcher = llguidance.LLMatcher
    match output.kind:
        case FormatKind.JSON_OBJECT:
            return matcher.grammar_from_json_schema({"type": "object"}, overrides=_SPACING)
        case FormatKind.JSON_SCHEMA:
            return matcher.grammar_from_json_schema(output.source, overrides=_SPACING)
        case FormatKind.ENUM:
            values: list[str] = json.loads(output.source)
            return matcher.grammar_from_lark("start: " + " | ".join(map(_literal, values)))
        case FormatKind.REGEX:
            return matcher.grammar_from_regex(output.source)
        case FormatKind.GRAMMAR:
            try:
                return llguidance.grammar_from("grammar", output.source)
            except Exception as error:
                raise RuleRejected(str(error)[:LONGEST_REASON]) from error


def _calls_lark(tools: Tools, output: OutputFormat | None) -> str:
    """Write calls, and where they are not required an answer beside them, as one grammar."""
    functions = tools.callable
    more = f" next{{0,{MOST_CALLS - 1}}}" if tools.parallel and tools.only is None else ""
    lines = []
    if tools.choice is ToolChoice.REQUIRED:
        lines.append(f"start: {_literal(call_markup.OPEN)} call{more}")
    elif output is None:
        # Free text until the mark; from there on, only a call.
        lines += [
            f"start: TEXT | open call{more}",
            f"open[lazy]: TEXT {_literal(call_markup.OPEN)}",
            r"TEXT: /(.|\n)*/",
        ]
    else:
        schema = output.source if output.kind is FormatKind.JSON_SCHEMA else '{"type": "object"}'
        lines += [f"start: answer | {_literal(call_markup.OPEN)} call{more}", f"answer: %json {_inline(schema)}"]
    lines.append("call: " + " | ".join(f"call_{index}" for index in range(len(functions))))
    for index, function in enumerate(functions):
        head = _literal(f"{call_markup.NAME}{function.name}{call_markup.ARGUMENTS}")
        schema = function.parameters or '{"type": "object", "properties": {}, "additionalProperties": false}'
        lines.append(f"call_{index}: {head} arguments_{index} {_literal(call_markup.CLOSE)}")
        lines.append(f"arguments_{index}: %json {_inline(schema)}")
    if more:
        lines.append(f"next: {_literal(chr(10) + call_markup.OPEN)} call")
    return "\n".join(lines)


def _inline(schema: str) -> str:
    return json.dumps({**json.loads(schema), "x-guidance": _SPACING})


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _reason(matcher: llguidance.LLMatcher) -> str:
    return matcher.get_error().partition("\n<")[0].strip()[:LONGEST_REASON]
