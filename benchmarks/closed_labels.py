"""What taught heads and their promises are worth on sets of closed labels: figures of answers to what taught nothing."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from agent.batch import open_encoder
from agent.confidence import fitting, maps
from agent.confidence.certify import Scored
from agent.confidence.fit_order import Fitted, Order
from agent.confidence.heads import AppliedHead, Head
from benchmarks import certificates, untaught
from benchmarks.certificates import Answers, Floats
from benchmarks.closed_sets import PARTS, Pairs, Part, banking, reasoning
from benchmarks.rows import Row

ENCODER = "minilm-l6-v2-int8"
EXAMPLES, DELTA, ESCALATED = 300, 0.1, 0.26
DRAWS_OF_TAUGHT = 5
LEAST_GAP = 0.01  # between local and cloud accuracy; of a smaller one no share can be told


class Taught(NamedTuple):
    """A head and its answers to what did not teach it."""

    fitted: Fitted
    answers: Answers
    probabilities: Floats
    pilot: list[Scored]


def teach(
    part: Part, folder: Path, embed: Callable[[Sequence[str]], Floats], most: int, seed: int = certificates.SEED
) -> Taught:
    """Teach by the first examples of each label, as ``seed`` shuffles them, and ask at most so many test examples."""
    train, test = part.read(folder)
    train = [train[i] for i in certificates.shuffled(len(train), seed)]
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
    yield from rankings(name, answers.right, beside)
    for limit in (0.05, 0.10):
        yield Row(name, f"coverage at {1 - limit:.0%} (oracle threshold)", certificates.oracle_coverage(answers, limit))
    yield from _gap(name, answers)
    if len(answers.right) >= 1100:
        error, floor = certificates.calibration_error(answers, 100, maps.PULL_OF_HEAD)
        yield Row(
            name,
            f"ECE, 100 labels (floor {floor:.4f})",
            error,
            None,
            f"at most {floor + 0.01:.4f} (floor + 0.01)",
            error <= floor + 0.01,
            floor,
        )
    if len(answers.right) >= 2 * EXAMPLES:
        yield from _promises(name, taught, draws)
        yield from _product(name, taught.answers, draws)


def rankings(name: str, right: certificates.Right, beside: Mapping[str, Floats]) -> Iterator[Row]:
    """Yield what each score is worth that tells right answers from wrong ones. Entropy alone is what ours stands beside."""
    peer = next((certificates.auroc(Answers(s, right)) for what, s in beside.items() if "entropy" in what), None)
    for what, scores in beside.items():
        ranked = Answers(scores, right)
        area, excess = certificates.aurc(ranked)
        of_peer = peer if "(ours)" in what else None
        interval = certificates.bootstrap(ranked, certificates.auroc)
        yield Row(name, f"AUROC, {what}", certificates.auroc(ranked), interval, peer=of_peer)
        yield Row(name, f"AURC, {what}", area)
        yield Row(name, f"E-AURC, {what}", excess)


def _gap(name: str, answers: Answers) -> Iterator[Row]:
    """How soon the gap to a cloud is closed."""
    accuracy = float(answers.right.mean())
    for cloud, which in ((1.0, "perfect cloud"), (0.95, "95 % cloud")):
        if cloud - accuracy < LEAST_GAP:
            yield Row(name, f"gap to a simulated {which}: none that could be closed", cloud - accuracy)
            continue
        closed, most, needed = certificates.attainable(answers, cloud)
        share = closed / most
        told = f"APGR, {which} (simulated), share of its maximum {most:.3f}"
        if cloud == 1.0:
            interval = certificates.bootstrap(answers, _share_closed)
            yield Row(name, told, share, interval, "at least 0.9", _least(share, 0.9), 1.0)
        else:
            yield Row(name, told, share)
        for level, escalated in needed.items():
            yield Row(name, f"CPT({level:.0%}), {which} (simulated)", escalated)


def _share_closed(answers: Answers) -> float:
    closed, most, _ = certificates.attainable(answers)
    return closed / most


def other_draws(
    part: Part, folder: Path, embed: Callable[[Sequence[str]], Floats], most: int, first: Taught
) -> Iterator[Row]:
    """What changes with the examples that teach: the first draw of them, and others."""
    drawn = [first, *(teach(part, folder, embed, most, certificates.SEED + more) for more in range(1, DRAWS_OF_TAUGHT))]
    told = f"mean of {DRAWS_OF_TAUGHT} draws of what teaches"
    figures = {
        "accuracy": [float(one.answers.right.mean()) for one in drawn],
        "AUROC": [certificates.auroc(one.answers) for one in drawn],
        "APGR, perfect cloud (simulated), share of its maximum": [_share_closed(one.answers) for one in drawn],
    }
    for what, values in figures.items():
        mean = float(np.mean(values))
        wanted = {"accuracy": part.wanted, "AUROC": None}.get(what, 0.9)
        yield Row(
            part.name,
            f"{what}, {told} ({min(values):.3f} to {max(values):.3f})",
            mean,
            None,
            f"at least {wanted:g}" if wanted else "",
            _least(mean, wanted) if wanted else None,
        )


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
    said = certificates.told_too_much(answers, rule, examples=EXAMPLES, draws=draws, delta=DELTA)
    what = f"{told}: how right what is served is, at least: told too high"
    yield Row(name, what, said, None, f"at most {most:.3f}", said <= most)
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
                1.0,
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


class Job(NamedTuple):
    """What one process measures. Its encoder reads a text once."""

    parts: tuple[str, ...]  # names of ``PARTS``
    hard: tuple[str, ...]  # tasks that these heads cannot do
    whole: bool  # also how labels stand out that were never taught, other draws of what teaches, and without teaching
    data: Path
    most: int  # test examples of a set
    draws: int


def measured(job: Job) -> tuple[list[Row], list[str]]:
    """Return the rows, and which sets are not there."""
    rows: list[Row] = []
    absent: list[str] = []
    with open_encoder(ENCODER, threads=1) as encoder:
        known: dict[str, Floats] = {}

        def embed(texts: Sequence[str]) -> Floats:
            new = [text for text in dict.fromkeys(texts) if text not in known]
            if new:
                known.update(zip(new, encoder.embed(new).astype(np.float64), strict=True))
            return np.array([known[text] for text in texts])

        for part in (part for part in PARTS if part.name in job.parts):
            print(part.name, file=sys.stderr, flush=True)
            try:
                taught = teach(part, job.data, embed, job.most)
                rows += rows_of(part, taught, job.draws)
                if job.whole and part is PARTS[0]:
                    rows += other_draws(part, job.data, embed, job.most, taught)
                    rows += out_of_scope(job.data, embed, job.most)
                elif job.whole:
                    rows += untaught.figures(part, job.data)
            except OSError as error:
                absent.append(f"{part.name}: {error}")
        try:
            for name in job.hard:
                rows += cannot(name, job.data, embed, job.draws)
        except OSError as error:
            absent.append(str(error))
    return rows, absent
