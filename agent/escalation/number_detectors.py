"""Numbers that belong to a person: accounts, cards, identifiers, telephones. Pure; every pattern is bounded.

Where a checksum exists it decides (IBAN: ISO 13616; cards: ISO/IEC 7812, Luhn; national
identifiers: python-stdnum).
"""

# ruff: noqa: RUF001 - signs of calculation are meant

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from agent.escalation.personal_data import Found, Kind

_IBAN_START = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}[ -]?[A-Za-z0-9]{2}")
_LONGEST_IBAN = 34
_CARD = re.compile(r"(?<![\w])(?:\d[ -]{0,2}){11,18}\d(?![\w])")


def ibans(text: str) -> Iterator[Found]:
    """Yield IBANs whose check digits hold, whatever their spaces and case."""
    for match in _IBAN_START.finditer(text):
        if end := _iban_end(text, match.start()):
            yield Found(match.start(), end, Kind.IBAN)


def _iban_end(text: str, start: int) -> int | None:
    """Return where the IBAN ends that begins here, or None: its check digits say how long it is."""
    compact, ends = "", []
    for at in range(start, min(len(text), start + 2 * _LONGEST_IBAN)):
        if text[at].isascii() and text[at].isalnum():
            compact += text[at].upper()
            ends.append(at + 1)
        elif text[at] not in " -\u00a0" or len(compact) >= _LONGEST_IBAN:
            break
    for length in range(min(len(compact), _LONGEST_IBAN), 14, -1):
        end = ends[length - 1]
        whole_word = end == len(text) or not text[end].isalnum()
        if whole_word and int("".join(str(int(char, 36)) for char in compact[4:length] + compact[:4])) % 97 == 1:
            return end
    return None


def luhn(digits: str) -> bool:
    """Return whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    doubled = (int(digit) * 2 if at % 2 else int(digit) for at, digit in enumerate(reversed(digits)))
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def cards(text: str) -> Iterator[Found]:
    """Yield numbers of cards: 12 to 19 digits whose last one checks, or grouped as on a card."""
    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        grouped = re.fullmatch(r"\d{4}([ -])\d{4}\1\d{4}\1\d{4}|\d{4}([ -])\d{6}\2\d{5}", match[0])
        if (luhn(digits) and len(set(digits)) > 1) or grouped:  # one that was mistyped is one, too
            yield Found(*match.span(), Kind.CARD)


class _National(NamedTuple):
    """A kind of identifier: its form, the module that knows its check digits, words that must be near."""

    form: re.Pattern[str]
    module: str
    near: re.Pattern[str] | None = None


def _number(form: str, module: str, near: str = "") -> _National:
    pattern = re.compile(r"(?<![\w-])" + form + r"(?![\w-])", re.IGNORECASE)
    return _National(pattern, module, re.compile(near, re.IGNORECASE) if near else None)


# Forms that are nothing but digits are found only beside their names: a third of all numbers pass some checksum.
_NATIONAL = (
    _number(r"\d{3}-\d{2}-\d{4}", "us.ssn"),
    _number(r"9\d{2}-\d{2}-\d{4}", "us.itin"),
    _number(r"[A-CEGHJ-PR-TW-Z]{2} ?\d{2} ?\d{2} ?\d{2} ?[A-D]", ""),
    _number(r"[12] ?\d{2} ?\d{2} ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}", "fr.nir"),
    _number(r"[A-Z]{6} ?\d{2}[A-EHLMPRST]\d{2} ?[A-Z]\d{3}[A-Z]", "it.codicefiscale"),
    _number(r"\d{8}-?[A-Z]", "es.dni"),
    _number(r"[XYZ]-?\d{7}-?[A-Z]", "es.nie"),
    _number(r"756\.\d{4}\.\d{4}\.\d{2}|756\d{10}", "ch.ssn"),
    _number(r"(?:19|20)?\d{6}[-+]\d{4}", "se.personnummer"),
    _number(r"\d{6}[-+A-FU-Y]\d{3}[0-9A-Y]", "fi.hetu"),
    _number(r"\d{6}-\d{4}", "dk.cpr"),
    _number(r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}|\d{11}", "be.nn", r"rijksregister|registre national|national number"),
    _number(r"\d{3}\.\d{3}\.\d{3}-\d{2}", "br.cpf"),
    _number(r"[A-Z]{4}\d{6}[HM][A-Z]{5}[A-Z0-9]\d", "mx.curp"),
    _number(r"[A-Z]{5}\d{4}[A-Z]", "in_.pan"),
    _number(r"\d{4} \d{4} \d{4}", "in_.aadhaar"),
    _number(r"\d{17}[\dX]", "cn.ric"),
    _number(r"\d{6}-[1-8]\d{6}", "kr.rrn"),
    _number(r"\d{2} ?\d{3} ?\d{3} ?\d{3}", "de.idnr", r"steuer|\bidnr\b|tax id"),
    _number(r"\d{11}", "pl.pesel", r"pesel"),
    _number(r"\d{9}", "nl.bsn", r"\bbsn\b|burgerservice|sofi"),
    _number(r"\d{11}", "no.fodselsnummer", r"f[øo]dsel|personnummer"),
    _number(r"\d{10}", "at.vnr", r"versicherungs|\bsvnr\b"),
    _number(r"\d{13}", "za.idnr", r"\bid\b|identity"),
    _number(r"\d{11}", "tr.tckimlik", r"kimlik|\btc\b"),
    _number(r"[1-8]\d{12}", "ro.cnp", r"\bcnp\b"),
    _number(r"\d{10}", "bg.egn", r"\begn\b|ЕГН"),
    _number(r"\d{3} ?\d{3} ?\d{4}", "gb.nhs", r"\bnhs\b"),
    _number(r"\d{3} ?\d{3} ?\d{3}", "ca.sin", r"\bsin\b|social insurance"),
    _number(r"\d{3} ?\d{3} ?\d{3}", "au.tfn", r"\btfn\b|tax file"),
)
_NEAR_CHARS = 60
_FIVE_DIGITS = re.compile(r"(?:\d\D{0,2}){4}\d")  # every form has as many
_SSN_SHAPE = re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])")
_PASSPORT = re.compile(
    r"\b(?:passport|reisepass|passeport|driver'?s? licen[cs]e|licen[cs]e number|f[üu]hrerschein|identity card|ausweis)"
    r"[^\n\d]{0,30}?(?P<value>\b(?=[A-Z0-9-]{6,16}\b)[A-Z]{0,3}[0-9][A-Z0-9-]{4,14}\b)",
    re.IGNORECASE,
)


def nationals(text: str) -> Iterator[Found]:
    """Yield identifiers of persons with an authority, by form, check digits and, for plain digits, words nearby."""
    yield from (Found(*match.span(), Kind.ID) for match in _SSN_SHAPE.finditer(text))
    yield from (Found(*match.span("value"), Kind.ID) for match in _PASSPORT.finditer(text))
    if not _FIVE_DIGITS.search(text):
        return
    for national in _NATIONAL:
        for match in national.form.finditer(text):
            near = text[max(0, match.start() - _NEAR_CHARS) : match.end() + _NEAR_CHARS]
            if (national.near is None or national.near.search(near)) and _valid(national.module, match[0]):
                yield Found(*match.span(), Kind.ID)


def _valid(module: str, text: str) -> bool:
    if not module:  # the form has no check digits
        return True
    return bool(importlib.import_module(f"stdnum.{module}").is_valid(text))


_PHONE = re.compile(
    r"(?<![\w@#$€£./:=-])(?<!\d,)(?:\+|00)?\(?\+?\d(?:[ \u00a0().\-/]{0,3}\d){5,16}(?:\s{0,2}(?:x|ext\.?|extension)\s?\d{1,6})?(?![\w@%€$£]|[.,:/-]\d)",
)
_DATE = re.compile(
    r"(?:1[5-9]|20|21)\d{2}[-./ ](?:0?[1-9]|1[0-2])[-./ ](?:0?[1-9]|[12]\d|3[01])(?:[ T]\d{1,2})?"
    r"|(?:0?[1-9]|[12]\d|3[01])[-./ ](?:0?[1-9]|[12]\d|3[01])[-./ ](?:1[5-9]|20|21)?\d{2}(?: \d{1,2})?"
    r"|(?:1[0-9]|20|21)\d{2}(?: ?[-/] ?(?:1[0-9]|20|21)?\d{2}){1,2}"
    r"|(?:1[0-9]|20|21)\d{2}(?:,? (?:1[0-9]|20|21)\d{2})+"
)
_ABOUT_PHONE = re.compile(
    r"\b(?:tel|telephone|telefon|phone|mobile|mobil|cell|fax|call|called|dial|ring|text|sms|whatsapp|hotline|contact|number is|reach)\b",
    re.IGNORECASE,
)
_ABOUT_ELSE = re.compile(
    r"\b(?:isbn|issn|doi|invoice|order|ticket|case|article|part|serial|version|build|population|page|zip|postal|rfc|id|sum|total)"
    r"\s?(?:number|no\.?|nr\.?|#|code)?[\s:#]{0,3}$",
    re.IGNORECASE,
)
_UNIT_AFTER = re.compile(
    r"\s?(?:%|°|€|\$|£|(?:dollars?|euros?|pounds?|people|years?|days?|hours?|minutes?|seconds?|km|m|kg|g|mb|gb|kb|bytes?|tokens?|times|percent|million|points?|votes?|miles?|square|inhabitants|residents|troops|copies|men|soldiers)\b)",
    re.IGNORECASE,
)
_SIGN_AFTER = re.compile(r"\s?[=*+×÷<>^]")
_SIGN_BEFORE = re.compile(r"[=*+×÷<>^]\s?\(?$")
_THOUSANDS = re.compile(r"[1-9]\d{0,2}(?:[ \u00a0.]\d{3}){1,4}")


def phones(text: str) -> Iterator[Found]:
    """Yield telephone numbers; dates, amounts, sums and versions are none."""
    for match in _PHONE.finditer(text):
        start = match.start() + (match[0][0] == "(" and ")" not in match[0])  # a parenthesis around more than it
        written = text[start : match.end()]
        digits = re.sub(r"\D", "", re.split(r"[xe]", written)[0])
        if 6 <= len(digits) <= 15 and _is_phone(text, start, match.end(), written, digits):
            yield Found(start, match.end(), Kind.PHONE)


def _is_phone(text: str, start: int, end: int, written: str, digits: str) -> bool:
    if written[0] == "+" or written.startswith("(+"):
        return len(digits) >= 7
    before = text[max(0, start - 40) : start]
    told = bool(_ABOUT_PHONE.search(before))
    if _DATE.fullmatch(written) or len(set(digits)) == 1 or _ABOUT_ELSE.search(before):
        return False
    if not told and (_UNIT_AFTER.match(text, end) or _is_sum(text, start, end)):
        return False
    if not _is_grouped_as_a_number(written):
        return False
    if written.isdigit():
        if told:
            return len(digits) >= 6
        return len(digits) in {10, 11} or (len(digits) in {9, 12, 13} and digits[0] == "0")
    if _THOUSANDS.fullmatch(written) and len(digits) <= 12 and not told:
        return "." not in written and len(digits) in {8, 9}  # the form of numbers in several countries
    groups = re.findall(r"\d+", written)
    if len(digits) < 7 and not told:
        return False
    return told or (len(groups) <= 7 and (len(digits) >= 8 or len(groups) <= 3))


def _is_grouped_as_a_number(written: str) -> bool:
    """Whether the marks between the digits are those of a telephone number, not of a decimal or a list."""
    groups, marks = (
        re.findall(r"\d+", written),
        re.sub(r"[\d\s]", "", written.lower().partition("x")[0].partition("e")[0]),
    )
    if marks.count("(") != marks.count(")") or written.rstrip()[-1] == "(" or marks.count("(") > 1:
        return False
    if set(marks) == {"."} and (len(groups) == 2 or " " in written):
        return False
    if set(marks) == {"/"} and len(groups) == 2:
        return 2 <= len(groups[0]) <= 5 and groups[0][0] == "0"
    return sum(len(group) == 1 for group in groups) <= 2 and marks.count("/") <= 1


def _is_sum(text: str, start: int, end: int) -> bool:
    """Whether signs of a calculation stand beside it."""
    return bool(_SIGN_AFTER.match(text, end) or _SIGN_BEFORE.search(text[max(0, start - 3) : start]))
