"""What a confidence is worth: taught heads on public sets, and the promises of `outrider calibrate` over many draws.

    python benchmarks/confidence.py --data DIR --quick [--json]     about 40 s of processor time
    python benchmarks/confidence.py --data DIR [--draws 400] [--write docs/confidence.md]
    python benchmarks/confidence.py --data DIR --record RAW.jsonl   asks the language model for written answers
    python benchmarks/confidence.py --data DIR --report RAW.jsonl   with the figures of those; asks nothing

DIR has one folder a set (banking77, snips). Every figure is of answers to examples that taught
nothing. ``--write`` puts the tables into a document, between its two marks. Exit code 0 when all
was measured, also with misses; 1 when not; 2 on wrong arguments.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a program this file has only its own folder

from agent.batch import open_encoder
from agent.confidence import fitting, maps
from agent.confidence.certify import Scored
from agent.confidence.fit_order import Fitted, Order
from agent.confidence.heads import AppliedHead, Head
from benchmarks import certificates, label_latency
from benchmarks.certificates import Answers, Floats

ENCODER = "minilm-l6-v2-int8"
DRAWS, QUICK_DRAWS = 400, 200
EXAMPLES, DELTA, ESCALATED = 300, 0.1, 0.26
BEGIN, END = "<!-- confidence: begin -->", "<!-- confidence: end -->"
EIGHT = (
    "activate_my_card", "age_limit", "atm_support", "automatic_top_up", "card_arrival", "exchange_rate",
    "lost_or_stolen_card", "terminate_account",
)  # fmt: skip

Pairs = list[tuple[str, str]]  # text, label


class Row(NamedTuple):
    """One figure of one set."""

    set: str
    what: str
    value: float
    interval: tuple[float, float] | None = None
    wanted: str = ""
    ok: bool | None = None  # None: nothing is wanted


class Part(NamedTuple):
    """A set, how many examples of each label teach, and what accuracy is wanted."""

    name: str
    read: Callable[[Path], tuple[Pairs, Pairs]]
    per_label: int
    wanted: float | None


def banking(folder: Path) -> tuple[Pairs, Pairs]:
    found = []
    for name in ("train.csv", "test.csv"):
        with (folder / "banking77" / name).open(encoding="utf-8") as file:
            found.append([(row["text"], row["category"]) for row in csv.DictReader(file)])
    return found[0], found[1]


def eight_intents(folder: Path) -> tuple[Pairs, Pairs]:
    train, test = banking(folder)
    return [pair for pair in train if pair[1] in EIGHT], [pair for pair in test if pair[1] in EIGHT]


def snips(folder: Path) -> tuple[Pairs, Pairs]:
    def part(name: str) -> Pairs:
        texts, labels = (
            (folder / "snips" / name / kind).read_text(encoding="utf-8").splitlines() for kind in ("seq.in", "label")
        )
        return [(text.strip(), label.strip()) for text, label in zip(texts, labels, strict=True)]

    return part("train"), [*part("valid"), *part("test")]


def reasoning(name: str) -> Callable[[Path], tuple[Pairs, Pairs]]:
    """Return how a set of BIG-Bench Hard is read: two labels, and vectors of a sentence that say little of which."""

    def read(folder: Path) -> tuple[Pairs, Pairs]:
        found = json.loads((folder / "bbh" / f"{name}.json").read_text(encoding="utf-8"))["examples"]
        pairs = [(one["input"], one["target"]) for one in found]
        pairs = [pairs[i] for i in certificates.shuffled(len(pairs))]
        return pairs[:100], pairs[100:]

    return read


HARD = ("sports_understanding", "navigate", "formal_fallacies")  # tasks that these heads cannot do
PARTS = (
    Part("banking77, 10 a label", banking, 10, 0.85),
    Part("banking77, eight intents, 25 a label", eight_intents, 25, 0.97),
    Part("snips, 100 in all", snips, 15, 0.89),
)


class Taught(NamedTuple):
    """A head and its answers to what did not teach it."""

    fitted: Fitted
    answers: Answers
    probabilities: Floats
    pilot: list[Scored]


def teach(part: Part, folder: Path, embed: Callable[[Sequence[str]], Floats], most: int) -> Taught:
    train, test = part.read(folder)
    train = [train[i] for i in certificates.shuffled(len(train))]
    test = [test[i] for i in certificates.shuffled(len(test))][:most]
    labels = sorted({label for _, label in train})
    chosen: Pairs = []
    for label in labels:
        chosen += [pair for pair in train if pair[1] == label][: part.per_label]
    answers = tuple(labels.index(label) for _, label in chosen)
    readable = [label.replace("_", " ") for label in labels]
    order = Order(
        labels=len(labels),
        answers=answers,
        embedding=embed([text for text, _ in chosen]).astype("<f4").tobytes(),
        names=embed(readable).astype("<f4").tobytes(),
        texts=tuple(text for text, _ in chosen),
        name_texts=tuple(readable),
    )
    fitted = fitting.fit(order)
    head = applied(fitted, tuple(labels))
    asked = embed([text for text, _ in test])
    probabilities = np.array(
        [head.probabilities(text, vector) for (text, _), vector in zip(test, asked.tolist(), strict=True)]
    )
    right = np.array([labels[i] == label for i, (_, label) in zip(probabilities.argmax(axis=1), test, strict=True)])
    held = np.frombuffer(fitted.probabilities, "<f4").reshape(len(chosen), -1)
    pilot = [Scored(float(row.max()), int(row.argmax()) == answer) for row, answer in zip(held, answers, strict=True)]
    return Taught(fitted, Answers(probabilities.max(axis=1), right), probabilities, pilot)


def applied(fitted: Fitted, labels: tuple[str, ...]) -> AppliedHead:
    """Return the head as the daemon applies it."""
    return AppliedHead(
        Head(
            task="benchmark",
            task_digest="",
            labels=labels,
            feature=fitted.feature,
            embedding=fitted.embedding,
            temperature=fitted.temperature,
            wording=fitted.wording,
            neighbours=fitted.neighbours,
        )
    )


def rows_of(part: Part, taught: Taught, draws: int) -> Iterator[Row]:
    answers, name = taught.answers, part.name
    accuracy = float(answers.right.mean())
    wanted = f"at least {part.wanted:.0%}" if part.wanted else ""
    yield Row(
        name,
        f"accuracy, n={len(answers.right)}",
        accuracy,
        None,
        wanted,
        accuracy >= part.wanted if part.wanted else None,
    )
    entropy = -np.sum(taught.probabilities * np.log(taught.probabilities + 1e-12), axis=1)
    chance = np.random.default_rng(certificates.SEED).random(len(answers.scores))
    ordered = np.sort(taught.probabilities, axis=1)
    beside = {
        "top probability (ours)": answers.scores,
        "margin": 1 - ordered[:, -2] / ordered[:, -1],
        "entropy alone": -entropy,
        "random": chance,
    }
    for what, scores in beside.items():
        ranked = Answers(scores, answers.right)
        interval = certificates.bootstrap(ranked, certificates.auroc)
        yield Row(name, f"AUROC, {what}", certificates.auroc(ranked), interval)
        yield Row(name, f"E-AURC, {what}", certificates.aurc(ranked)[1])
    for limit in (0.05, 0.10):
        yield Row(name, f"coverage at {1 - limit:.0%} (oracle threshold)", certificates.oracle_coverage(answers, limit))
    wrongs = int((~answers.right).sum())
    share = (0.5 + accuracy * (certificates.auroc(answers) - 0.5)) / ((1 + accuracy) / 2) if wrongs else math.nan
    yield Row(
        name, "APGR of the attainable, perfect cloud (simulated)", share, None, "at least 0.9", _least(share, 0.9)
    )
    if len(answers.right) >= 1100:
        error, floor = certificates.calibration_error(answers, 100, maps.PULL_OF_HEAD)
        yield Row(
            name, "ECE, 100 labels", error, None, f"at most {floor + 0.01:.4f} (floor + 0.01)", error <= floor + 0.01
        )
    if len(answers.right) >= 2 * EXAMPLES:
        yield from _promises(name, taught, draws)
        yield from _product(name, taught.answers, draws)


def cannot(name: str, folder: Path, embed: Callable[[Sequence[str]], Floats], draws: int) -> Iterator[Row]:
    """A task that cannot be done certifies nothing and is escalated whole."""
    set_name, examples = f"BBH {name}, 100 in all", 100
    answers = teach(Part(set_name, reasoning(name), 50, None), folder, embed, 100_000).answers
    yield Row(set_name, f"accuracy, n={len(answers.right)}", float(answers.right.mean()))
    rule = certificates.pac(0.05, DELTA)
    found = certificates.worth(answers, rule, examples=examples, draws=draws, alpha=0.05)
    most = certificates.allowed_broken(DELTA, draws)
    told = f"95%, n={examples}, pac (ours)"
    yield Row(set_name, f"{told}: promises broken", found.broken, None, f"at most {most:.3f}", found.broken <= most)
    yield Row(set_name, f"{told}: mean share served", found.coverage, None, "near 0", found.coverage <= 0.05)


def _product(name: str, answers: Answers, draws: int) -> Iterator[Row]:
    """The product's own figure, under the promise that is about it: how much is served here."""
    rule = certificates.escalate(ESCALATED, DELTA)
    found = certificates.worth(answers, rule, examples=EXAMPLES, draws=draws, escalated=ESCALATED)
    told, most = f"at most {ESCALATED:.0%} escalated, n={EXAMPLES}", certificates.allowed_broken(DELTA, draws)
    yield Row(name, f"{told}: promises broken", found.broken, None, f"at most {most:.3f}", found.broken <= most)
    yield Row(name, f"{told}: mean share served", found.coverage)
    yield Row(name, f"{told}: mean error of what is served", found.risk)
    what = f"{told}: at least 70 % served and at most 2 points below a simulated 95 % cloud, share of draws"
    yield Row(name, what, found.kept_up, None, "at least 0.9", _least(found.kept_up, 0.9))


def _promises(name: str, taught: Taught, draws: int) -> Iterator[Row]:
    answers = taught.answers
    for alpha in (0.05, 0.07, 0.10):
        oracle = certificates.oracle_coverage(answers, alpha)
        rules = {
            "pac (ours)": certificates.pac(alpha, DELTA, taught.pilot),
            "pac without a pilot": certificates.pac(alpha, DELTA),
            "on average (ours)": certificates.mean(alpha),
            "naive threshold": certificates.naive(alpha),
        }
        for what, rule in rules.items():
            found = certificates.worth(answers, rule, examples=EXAMPLES, draws=draws, alpha=alpha)
            told = f"{1 - alpha:.0%}, n={EXAMPLES}, {what}"
            promised = what.startswith("pac")
            most = certificates.allowed_broken(DELTA, draws)
            yield Row(
                name,
                f"{told}: promises broken",
                found.broken,
                None,
                f"at most {most:.3f}" if promised else "",
                found.broken <= most if promised else None,
            )
            ratio = found.coverage / oracle if oracle else math.nan
            wanted = what == "pac (ours)" and alpha == 0.05
            yield Row(
                name,
                f"{told}: coverage beside the oracle's {oracle:.3f}",
                ratio,
                None,
                "at least 0.65" if wanted else "",
                _least(ratio, 0.65) if wanted else None,
            )
            if what == "on average (ours)":
                yield Row(name, f"{told}: mean error of what is served", found.risk)
            if what == "pac (ours)":
                yield Row(
                    name,
                    f"{told}: at least 70 % served and at most 2 points below a simulated 95 % cloud, share of draws",
                    found.kept_up,
                    None,
                    "at least 0.9",
                    _least(found.kept_up, 0.9),
                )


def _least(value: float, wanted: float) -> bool:
    return value >= wanted


def out_of_scope(folder: Path, embed: Callable[[Sequence[str]], Floats], most: int) -> Iterator[Row]:
    """Teach banking77 without every fourth intent, and see whether those stand out."""

    def read(at: Path) -> tuple[Pairs, Pairs]:
        train, test = banking(at)
        known = {label for number, label in enumerate(sorted({label for _, label in train})) if number % 4}
        return [pair for pair in train if pair[1] in known], [(t, la if la in known else "none") for t, la in test]

    taught = teach(Part("", read, 10, None), folder, embed, most)
    _, test = read(folder)
    test = [test[i] for i in certificates.shuffled(len(test))][:most]
    inside = np.array([label != "none" for _, label in test])
    found = Answers(taught.answers.scores, inside)
    interval = certificates.bootstrap(found, certificates.auroc)
    what = "AUROC of out_of_scope, every fourth intent never taught"
    yield Row("banking77, 10 a label", what, certificates.auroc(found), interval)


def through_the_api(folder: Path) -> Iterator[Row]:
    """What one closed-label request costs through the daemon's API, by a head and by the language model."""
    train, test = eight_intents(folder)
    chosen = [pair for label in EIGHT for pair in [one for one in train if one[1] == label][:10]]
    by_head, by_model = label_latency.costs(chosen, [text for text, _ in test], EIGHT)
    name = "banking77, eight intents, through the API"
    yield Row(name, "by a head: median, ms", by_head.p50_ms)
    yield Row(name, "by a head: p99, ms", by_head.p99_ms, None, "at most 20", by_head.p99_ms <= 20)
    yield Row(name, "by the language model: median, ms", by_model.p50_ms)
    yield Row(name, "by a head: processor time, ms", by_head.cpu_ms)
    yield Row(name, "by the language model: processor time, ms", by_model.cpu_ms)
    ratio = by_model.cpu_ms / by_head.cpu_ms
    yield Row(name, "times cheaper than the language model", ratio, None, "at least 5", _least(ratio, 5))


def markdown(rows: Sequence[Row]) -> str:
    lines = ["| Set | What | Value | 95 % interval | Wanted | |", "|---|---|---:|---|---|---|"]
    for row in rows:
        interval = f"{row.interval[0]:.3f} to {row.interval[1]:.3f}" if row.interval else ""
        mark = "" if row.ok is None else ("yes" if row.ok else "**no**")
        lines.append(f"| {row.set} | {row.what} | {row.value:.3f} | {interval} | {row.wanted} | {mark} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What a confidence is worth.")
    parser.add_argument("--data", type=Path, required=True, help="folder with the sets, one folder each")
    parser.add_argument(
        "--quick", action="store_true", help="fewer draws and test examples, about 40 s of processor time"
    )
    parser.add_argument("--api", action="store_true", help="with --quick: also what a request costs through the API")
    parser.add_argument("--json", action="store_true", help="one JSON list of rows on stdout")
    parser.add_argument(
        "--draws", type=int, default=0, help=f"draws of examples (default {DRAWS}, quick {QUICK_DRAWS})"
    )
    parser.add_argument(
        "--record", type=Path, help="record the answers of the open sets in this file, and report nothing"
    )
    parser.add_argument("--report", type=Path, help="report the open sets, too, from this file")
    parser.add_argument("--write", type=Path, help="put the table into this document, between its two marks")
    chosen = parser.parse_args(arguments)
    if chosen.record:
        from benchmarks.open_raw import record_all

        return record_all(chosen.data, chosen.record)
    draws = chosen.draws or (QUICK_DRAWS if chosen.quick else DRAWS)
    most = 1200 if chosen.quick else 100_000
    rows: list[Row] = []
    code = 0
    with open_encoder(ENCODER) as encoder:
        known: dict[str, Floats] = {}

        def embed(texts: Sequence[str]) -> Floats:
            new = [text for text in dict.fromkeys(texts) if text not in known]
            if new:
                known.update(zip(new, encoder.embed(new).astype(np.float64), strict=True))
            return np.array([known[text] for text in texts])

        for part in PARTS:
            print(part.name, file=sys.stderr, flush=True)
            try:
                rows += rows_of(part, teach(part, chosen.data, embed, most), draws)
            except OSError as error:
                print(f"{part.name} is left out: {error}", file=sys.stderr, flush=True)
                code = 1
        for name in HARD[:1] if chosen.quick else HARD:
            rows += cannot(name, chosen.data, embed, draws)
        if not chosen.quick:
            rows += out_of_scope(chosen.data, embed, most)
    if chosen.report:
        from benchmarks import open_answers, open_table

        told = list(open_answers.all_figures(chosen.data, chosen.report, draws))
        if chosen.write:
            open_table.written(chosen.write, told)
        else:
            rows += [Row(name, *figure) for name, figure in told]
    if chosen.api or not chosen.quick:
        rows += through_the_api(chosen.data)
    for row in rows:
        if row.ok is False:
            print(f"missed: {row.set}: {row.what}: {row.value:.3f}, wanted {row.wanted}", file=sys.stderr)
    if chosen.write:
        before, _, rest = chosen.write.read_text(encoding="utf-8").partition(BEGIN)
        chosen.write.write_text(f"{before}{BEGIN}\n{markdown(rows)}{END}{rest.partition(END)[2]}", encoding="utf-8")
    elif chosen.json:
        print(json.dumps([row._asdict() for row in rows], indent=1))
    else:
        print(markdown(rows), end="")
    return code


if __name__ == "__main__":
    sys.exit(main())
