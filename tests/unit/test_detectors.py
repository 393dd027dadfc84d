# ruff: noqa: RUF001 - marks of degrees are meant
import random
import string

import pytest

from agent.escalation.detectors import find
from agent.escalation.number_detectors import luhn
from agent.escalation.personal_data import Kind

SOURCE = random.Random(7)
CARRIERS = (
    "{}",
    "Please use {} from now on.",
    "My new one is {}, the old one no longer works",
    'He wrote: "{}".',
    "({})",
    "Contact: {}\nThanks",
    "first line\n{}\nlast line",
)


def digits(count):
    return "".join(SOURCE.choice(string.digits) for _ in range(count))


def email():
    local = "".join(SOURCE.choice(string.ascii_lowercase + "._-+") for _ in range(SOURCE.randint(1, 12))).strip(".")
    host = "".join(SOURCE.choice(string.ascii_lowercase) for _ in range(SOURCE.randint(2, 10)))
    return f"{'x' + local}@{host}.{SOURCE.choice(['com', 'co.uk', 'de', 'museum', 'xn--p1ai', 'info'])}"


def iban():
    country, length = SOURCE.choice(
        [("DE", 22), ("GB", 22), ("FR", 27), ("NO", 15), ("MT", 31), ("NL", 18), ("CH", 21)]
    )
    bban = "".join(
        SOURCE.choice(string.digits + (string.ascii_uppercase if at < 4 else "")) for at in range(length - 4)
    )
    number = int("".join(str(int(char, 36)) for char in bban + country + "00"))
    whole = f"{country}{98 - number % 97:02}{bban}"
    how = SOURCE.randrange(3)
    return (
        whole if how == 0 else whole.lower() if how == 1 else " ".join(whole[at : at + 4] for at in range(0, length, 4))
    )


def card():
    start = SOURCE.choice(["4", "51", "2221", "34", "6011", "3528", "30"])
    length = 15 if start == "34" else 14 if start == "30" else 16
    body = start + digits(length - 1 - len(start))
    whole = next(body + last for last in string.digits if luhn(body + last))
    if len(whole) == 16 and SOURCE.random() < 0.6:
        return SOURCE.choice([" ", "-"]).join(whole[at : at + 4] for at in range(0, 16, 4))
    return whole


def ip():
    if SOURCE.random() < 0.5:
        return ".".join(str(SOURCE.randint(0, 255)) for _ in range(4))
    groups = [f"{SOURCE.randrange(1 << 16):x}" for _ in range(8)]
    return ":".join(groups) if SOURCE.random() < 0.5 else f"2001:db8::{groups[0]}:{groups[1]}"


def mac():
    mark = SOURCE.choice([":", "-"])
    return mark.join(f"{SOURCE.randrange(256):02x}" for _ in range(6))


def ssn():
    return f"{SOURCE.randint(1, 665):03}-{SOURCE.randint(1, 99):02}-{SOURCE.randint(1, 9999):04}"


def phone():
    return SOURCE.choice(
        [
            lambda: f"+{SOURCE.choice(['49', '1', '44', '33', '358'])} {digits(3)} {digits(7)}",
            lambda: f"+{SOURCE.choice(['49', '1', '44'])}{digits(10)}",
            lambda: f"({SOURCE.randint(201, 989)}) {SOURCE.randint(200, 999)}-{digits(4)}",
            lambda: f"{SOURCE.randint(201, 989)}-{SOURCE.randint(200, 999)}-{digits(4)}",
            lambda: f"{SOURCE.randint(201, 989)}.{SOURCE.randint(200, 999)}.{digits(4)}x{digits(3)}",
            lambda: f"0{digits(3)} {SOURCE.randint(100000, 9999999)}",
            lambda: f"0{SOURCE.randint(1, 9)} {digits(2)} {digits(2)} {digits(2)} {digits(2)}",
            lambda: f"07{digits(3)} {digits(6)}",
            lambda: f"0{digits(3)}/{SOURCE.randint(100000, 9999999)}",
        ]
    )()


def secret():
    word = string.ascii_letters + string.digits
    return SOURCE.choice(["sk-", "ghp_", "hf_", "xoxb-", "glpat-"]) + "".join(SOURCE.choice(word) for _ in range(36))


@pytest.mark.parametrize(
    ("make", "share"),
    [(email, 0.99), (iban, 0.99), (card, 0.99), (ip, 0.99), (mac, 0.99), (ssn, 0.99), (secret, 0.99), (phone, 0.95)],
)
def test_a_thousand_of_each_structured_kind(make, share):
    missed = []
    for at in range(1000):
        value = make()
        before, _, after = CARRIERS[at % len(CARRIERS)].partition("{}")
        text = before + value + after
        if not any(f.start <= len(before) and len(before) + len(value) <= f.end for f in find(text)):
            missed.append(text)
    assert len(missed) <= 1000 * (1 - share), missed[:5]


@pytest.mark.parametrize(
    "text",
    [
        "The meeting is on 2024-04-16 at 11:34:35, not on 16.04.2024 or 4/16/2024.",
        "Version 3.1.4.15 came after release 2.10.0.1; std::vector<a::b> stayed.",
        "He paid $1,234,567.89 and 2 500 000 EUR for 1 250 000 people; 12,345,678 votes, 99 percent.",
        "5000-3755 = 1245 and 12*600 = 7200; 3.14159 26535; pages 1998-2004, 1806, 1812",
        "The ratio 7.125 0.625 was better than 0.375, 0.125 in RFC 7231, ISBN 978-3-16-148410-0.",
        "My password is wrong and the token is missing; the secret is out. Pin the page.",
        "Order number 12345678, invoice 20240017, article 4711-0815.",
        "sha256 of the file: see README.md; commit a3944ac; /usr/lib/python3.11/site-packages/agent/escalation",
        "Was soll das? Um 18:30 Uhr, Raum 4.12, Seite 112-118.",
        "",
    ],
)
def test_ordinary_text_is_left_alone(text):
    assert [text[found.start : found.end] for found in find(text)] == []


@pytest.mark.parametrize(
    ("text", "kind", "piece"),
    [
        ("password: hunter2", Kind.SECRET, "hunter2"),
        ("PASSWORD=correcthorse", Kind.SECRET, "correcthorse"),
        ("my password is Hunter2!", Kind.SECRET, "Hunter2"),
        ('"api_key": "a8f5f167f44f4964"', Kind.SECRET, "a8f5f167f44f4964"),
        ("Authorization: Bearer abcdef0123456789xyz", Kind.SECRET, "abcdef0123456789xyz"),
        ("GET /x?token=abcd1234&y=2", Kind.SECRET, "abcd1234"),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
            Kind.SECRET,
            "-----BEGIN RSA PRIVATE KEY-----",
        ),
        ("postgres://bob:s3cret@db.example.org/app", Kind.URL, "postgres://bob:s3cret@db.example.org/app"),
        ("at 52.5200, 13.4050 now", Kind.PLACE, "52.5200, 13.4050"),
        ("at 52° 31′ 12″ N", Kind.PLACE, "52° 31′ 12″ N"),
        ("NINO AB 12 34 56 C", Kind.ID, "AB 12 34 56 C"),
        ("RSSMRA85T10A562S", Kind.ID, "RSSMRA85T10A562S"),
        ("passport number C01X00T47", Kind.ID, "C01X00T47"),
        ("PESEL 44051401359", Kind.ID, "44051401359"),
        ("ring 467 3395", Kind.PHONE, "467 3395"),
    ],
)
def test_kinds(text, kind, piece):
    assert any(found.kind is kind and piece in text[found.start : found.end] for found in find(text)), find(text)


def test_words_of_the_user_are_found_as_whole_words():
    text = "Project Bluebird and bluebirds; BLUEBIRD!"
    found = find(text, terms=["bluebird", " "])
    assert [(text[f.start : f.end], f.kind) for f in found] == [("Bluebird", Kind.TERM), ("BLUEBIRD", Kind.TERM)]


def test_no_piece_is_left_half_covered():
    text = "mail bluebird@example.org"
    found = find(text, terms=["bluebird"])
    assert [(text[f.start : f.end], f.kind) for f in found] == [("bluebird@example.org", Kind.TERM)]


def test_names_come_from_a_recogniser():
    text = "Ask Ada Lovelace."
    found = find(text, names=lambda _: [(4, 16), (3, 3)])
    assert [(text[f.start : f.end], f.kind) for f in found] == [("Ada Lovelace", Kind.NAME)]


@pytest.mark.parametrize(
    "piece",
    ["1", "1 ", "a@", "-", "A1b", "+1(", "eyJ.", "x=", "-----BEGIN PRIVATE KEY-----", "12:", "DE12 ", "password: "],
)
def test_hostile_text_ends(piece):
    find(piece * (40_000 // len(piece)))
