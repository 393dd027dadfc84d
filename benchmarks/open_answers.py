"""What a confidence is worth where answers are written: figures of the recorded answers of the open sets.

    python benchmarks/open_raw.py --data DIR --record RAW.jsonl       asks the model; a run goes on where one stopped
    python benchmarks/confidence.py --data DIR --report RAW.jsonl     asks nothing, and adds these figures to its own
    python benchmarks/open_answers.py --data DIR --report RAW.jsonl [--states STATES.npz] [--write docs/confidence.md]

A set's taught items fit the appraiser as `outrider tasks teach` does; every figure is of the items asked.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a program this file has only its own folder

from agent.batch import open_encoder
from agent.cli.teach_answers import gains
from agent.confidence import answer_features, binomial, labels, maps
from agent.confidence.answer_features import Shown
from agent.confidence.appraiser_fitting import fit
from agent.confidence.certify import Scored
from agent.confidence.fit_order import Judged
from agent.demonstrations import MOST
from agent.evaluation import matching
from agent.likelihoods import LabelScores
from agent.tasks import TaskKind
from agent.types import Generation
from benchmarks import certificates, open_table
from benchmarks.certificates import Answers, Floats
from benchmarks.open_raw import ENCODER, Kept, key_of, parts_of, read_raw, shown_to
from benchmarks.open_sets import SETS, Item, OpenSet
from benchmarks.open_table import Figure
from benchmarks.right_calls import call_is_right
from benchmarks.state_probe import probe

DELTA, DRAWS = 0.1, 400
RIGHT_ONE_IN_FIVE = 0.2
FEW_ASKED = 60  # below it, those that teach are judged, too: each by a model of the others
VOCABULARY = 49152  # of the model: the largest entropy is its logarithm


class Told(NamedTuple):
    """One recorded answer, judged."""

    item: Item
    generation: Generation
    figures: dict[str, float]
    right: bool


def is_right(of: OpenSet, item: Item, generation: Generation) -> bool:
    """Whether a recorded answer is right, as the set judges it."""
    if item.options:
        return generation.text in item.answers
    if of.spec.kind is TaskKind.TOOL:
        return call_is_right(generation, json.loads(item.answers[0]))
    return matching.is_right(of.match, generation.text, item.answers)


def told_of(of: OpenSet, folder: Path, raw: dict[Any, Kept], embed: Any) -> dict[tuple[str, int], list[Told]]:
    """Return the recorded answers by part and number of demonstrations."""
    taught, asked = parts_of(of, folder)
    of_taught = embed(taught)
    found: dict[tuple[str, int], list[Told]] = {}
    for part, items in (("taught", taught), ("asked", asked)):
        vectors = of_taught if part == "taught" else embed(items)
        for at, (item, vector) in enumerate(zip(items, vectors, strict=True)):
            for count in (0, MOST):
                kept = raw.get((of.name, part, count, key_of(item)))
                if kept is None or kept.generation.failure:
                    continue
                shown = None
                if count:
                    near = shown_to(item, vector, taught, of_taught, count, but=at if part == "taught" else None)
                    closeness = float(np.dot(vector, of_taught[near[-1]]))
                    shown = Shown(tuple(taught[i].answers[0] for i in near), closeness)
                generation = kept.generation if of.spec.kind is TaskKind.TEXT else scored(kept.generation)
                figures = _figures(of, item, generation, shown)
                told = Told(item, generation, figures, is_right(of, item, generation))
                found.setdefault((part, count), []).append(told)
    return found


def _figures(of: OpenSet, item: Item, generation: Generation, shown: Shown | None) -> dict[str, float]:
    if item.options:
        return labels.judge(generation).signals
    return answer_features.features(of.spec.kind, item.input, generation, shown)


class Appraised(NamedTuple):
    """The answers to what is asked, as an appraiser judges them."""

    answers: Answers
    pilot: list[Scored]
    asked: list[Told]


def appraise(taught: Sequence[Told], asked: Sequence[Told], *, together: bool = False) -> Appraised:
    """Fit by the taught, judge the asked: each task of a set by itself, as it is taught, or all ``together``.

    Raises ValueError where the taught are all right or all wrong.
    """
    names = tuple(sorted(set.intersection(*(set(one.figures) for one in taught))))
    if len({one.right for one in taught}) < 2:
        raise ValueError("the answers that teach are all right or all wrong")
    scores, rights, pilot, judged = [], [], [], []
    for task in [None] if together else sorted({one.item.task for one in asked}):
        lessons = [one for one in taught if task in {None, one.item.task}]
        own = [one for one in asked if task in {None, one.item.task}]
        figures = array("d", [one.figures[name] for one in lessons for name in names])
        right = tuple(one.right for one in lessons)
        try:
            found = fit(Judged(names=names, figures=figures.tobytes(), right=right))
        except ValueError:  # too few of either: this task stays untaught, its answers are all as sure
            share = (sum(right) + 1) / (len(right) + 2)
            scores += [share] * len(own)
            pilot += [Scored(share, is_right) for is_right in right]
        else:
            scores += [found.weights.probability(one.figures) or 0.0 for one in own]
            pilot += [Scored(p, is_right) for p, is_right in zip(found.probabilities, right, strict=True)]
        rights += [one.right for one in own]
        judged += own
    return Appraised(Answers(np.array(scores), np.array(rights)), pilot, judged)


def cross_validated(told: Sequence[Told]) -> Appraised:
    """Judge each answer by a model fitted to the others, where too few are asked. Raises ValueError as ``appraise``."""
    known = [one for one in told if one.figures]
    names = tuple(sorted(set.intersection(*(set(one.figures) for one in known))))
    figures = array("d", [one.figures[name] for one in known for name in names])
    right = tuple(one.right for one in known)
    found = fit(Judged(names=names, figures=figures.tobytes(), right=right))
    return Appraised(Answers(np.array(found.probabilities), np.array(right)), [], known)


def others(told: Sequence[Told]) -> dict[str, Floats]:
    """Return what other programs would go by, of the same answers."""
    chance = np.random.default_rng(certificates.SEED).random(len(told))
    if told[0].item.options:
        raw = np.array([one.figures["best_logprob"] for one in told])
        entropy = np.array([-one.figures["entropy"] for one in told])
        return {"raw log-probability": raw, "entropy alone (as Cactus)": entropy,
                "margin": np.array([one.figures["margin"] for one in told]),
                "how much more like the question than other options": np.array(
                    [one.figures.get("likeness_margin", 0.0) for one in told]
                ), "random": chance}  # fmt: skip
    tokens = [
        [token for token in (*one.generation.tokens, *([one.generation.end] if one.generation.end else []))
         if not token.forced]
        for one in told
    ]  # fmt: skip
    sums = np.array([math.fsum(token.logprob for token in row) for row in tokens])
    means = np.array([math.exp(math.fsum(token.logprob for token in row) / max(1, len(row))) for row in tokens])
    entropies = np.array(
        [1 - math.fsum(t.entropy for t in row) / max(1, len(row)) / math.log(VOCABULARY) for row in tokens]
    )
    margins = np.array([min((t.logprob - t.runner_up_logprob for t in row), default=0.0) for row in tokens])
    return {
        "raw log-probability (sum)": sums,
        "mean log-probability, scaled": means,
        "entropy alone (as Cactus)": entropies,
        "least margin": margins,
        "random": chance,
    }


def figures_of(of: OpenSet, found: dict[tuple[str, int], list[Told]], draws: int) -> Iterator[Figure]:
    """Yield the figures of one set."""
    count = MOST if of.demonstrated else 0
    taught, asked = found.get(("taught", count), []), found.get(("asked", count), [])
    if not taught:
        return
    if taught[0].item.options:
        yield from _chosen([one for one in (*taught, *asked) if one.figures], of.wanted, draws)
        return
    crossed = len(asked) < FEW_ASKED
    if plain := {one.item: one.right for one in found.get(("taught", 0), [])} if of.demonstrated else {}:
        both = [(plain[one.item], one.right) for one in taught if one.item in plain]
        kept = gains([a for a, _ in both], [b for _, b in both])
        yield f"right without demonstrations, n={len(both)}", sum(a for a, _ in both) / len(both), None, "", None
        told = f"right behind the {MOST} nearest, the same {len(both)} ({'kept' if kept else 'not kept'})"
        yield told, sum(b for _, b in both) / len(both), None, "", None
        yield from _without_demonstrations(found.get(("taught", 0), []), found.get(("asked", 0), []))
    judged = [*taught, *asked] if crossed else asked
    accuracy = float(np.mean([one.right for one in judged]))
    by = "each judged by a model of the others" if crossed else f"taught by {len(taught)}"
    yield f"accuracy, n={len(judged)}, {by}", accuracy, None, "", None
    wanted = of.wanted if accuracy >= RIGHT_ONE_IN_FIVE else None
    try:
        lessons = [one for one in taught if one.figures]
        appraised = cross_validated(judged) if crossed else appraise(lessons, asked)
    except ValueError:  # nothing, or all, is right: there is nothing to tell apart
        if accuracy < RIGHT_ONE_IN_FIVE:
            what = "certified at 90%: share served (too few are right: the task is escalated whole)"
            yield what, 0.0, None, "0", True
        return
    yield from _rankings(appraised, wanted)
    if len({one.item.task for one in asked}) > 1:
        together = appraise(lessons, asked, together=True).answers
        interval = certificates.bootstrap(together, certificates.auroc)
        yield "AUROC, one appraiser for all of its tasks", certificates.auroc(together), interval, "", None
    yield from _certified(appraised, draws, accuracy)
    if of.spec.kind is TaskKind.EXTRACT:
        half = len(judged) // 2
        yield from _fields(judged[:half], judged[half:]) if crossed else _fields(taught, asked)


def _without_demonstrations(taught: Sequence[Told], asked: Sequence[Told]) -> Iterator[Figure]:
    """Figures of the same set where nothing is shown to the model, if that was recorded."""
    judged = [*taught, *asked]
    if not asked or len(judged) < FEW_ASKED:
        return
    try:
        answers = cross_validated(judged).answers
    except ValueError:  # all are right, or all are wrong
        return
    interval = certificates.bootstrap(answers, certificates.auroc)
    what = f"AUROC without demonstrations, n={len(answers.right)}, each judged by a model of the others"
    yield what, certificates.auroc(answers), interval, "", None
    yield f"right without demonstrations, the same {len(answers.right)}", float(answers.right.mean()), None, "", None


def _chosen(judged: Sequence[Told], wanted: float | None, draws: int) -> Iterator[Figure]:
    """Figures of options that come with the question: nothing is taught, the product's own score is looked at."""
    right = np.array([one.right for one in judged])
    accuracy = float(right.mean())
    yield f"accuracy, n={len(judged)}, nothing taught", accuracy, _share(right), "", None
    alone = [msgspec.structs.replace(scores, likeness=(), encoder="") for scores in map(_scores_of, judged)]
    by_model = [labels.distribution(scores) for scores in alone]
    chosen = [one.item.options[labels.best(one.item.options, p)] for one, p in zip(judged, by_model, strict=True)]
    by_itself = np.array([text in one.item.answers for one, text in zip(judged, chosen, strict=True)])
    yield "accuracy of the language model alone", float(by_itself.mean()), _share(by_itself), "", None
    ranked = Answers(np.array([labels.score_of(scores) or 0.0 for scores in alone]), by_itself)
    if 0 < by_itself.sum() < len(by_itself):
        interval = certificates.bootstrap(ranked, certificates.auroc)
        yield "AUROC of the language model alone, of its own answers", certificates.auroc(ranked), interval, "", None
    scores = np.array([labels.score_of(_scores_of(one)) or 0.0 for one in judged])
    appraised = Appraised(Answers(scores, right), [], list(judged))
    yield from _rankings(appraised, wanted if accuracy >= RIGHT_ONE_IN_FIVE else None, of="score")
    yield from _certified(appraised, draws, accuracy)


def _scores_of(one: Told) -> LabelScores:
    if one.generation.label_scores is None:
        raise ValueError("an answer of multiple choice without scores")
    return one.generation.label_scores


def _share(right: NDArray[np.bool_]) -> tuple[float, float]:
    return binomial.interval(int(right.sum()), len(right))


def _rankings(appraised: Appraised, wanted: float | None, of: str = "appraiser") -> Iterator[Figure]:
    answers = appraised.answers
    if answers.right.all() or not answers.right.any():
        return
    auroc = certificates.auroc(answers)
    interval = certificates.bootstrap(answers, certificates.auroc)
    text = f"at least {wanted:g}" if wanted else ""
    yield f"AUROC, {of} (ours)", auroc, interval, text, auroc >= wanted if wanted else None
    area, excess = certificates.aurc(answers)
    yield f"AURC, {of} (ours)", area, None, "", None
    yield f"E-AURC, {of} (ours)", excess, None, "", None
    for what, scores in others(appraised.asked).items():
        ranked = Answers(scores, answers.right)
        yield f"AUROC, {what}", certificates.auroc(ranked), certificates.bootstrap(ranked, certificates.auroc), "", None
        yield f"E-AURC, {what}", certificates.aurc(ranked)[1], None, "", None
    labelled = len(answers.right) // 2
    error, floor = certificates.calibration_error(answers, labelled, maps.PULL)
    yield f"ECE, map by {labelled} labels (floor {floor:.3f})", error, None, "", None
    for limit in (0.05, 0.10):
        share = certificates.oracle_coverage(answers, limit)
        yield f"coverage at {1 - limit:.0%} (oracle threshold)", share, None, "", None
    yield from open_table.gaps(answers)


def _certified(appraised: Appraised, draws: int, accuracy: float) -> Iterator[Figure]:
    answers = appraised.answers
    examples = len(answers.right) // 2
    for alpha in (0.05, 0.10, 0.20):
        oracle = certificates.oracle_coverage(answers, alpha)
        most = certificates.allowed_broken(DELTA, draws)
        rules = {
            "pac (ours)": certificates.pac(alpha, DELTA, appraised.pilot),
            "on average (ours)": certificates.mean(alpha),
            "naive threshold": certificates.naive(alpha),
        }
        for what, rule in rules.items():
            worth = certificates.worth(answers, rule, examples=examples, draws=draws, alpha=alpha)
            told = f"{1 - alpha:.0%}, n={examples}, {what}"
            promised = what.startswith("pac")
            yield f"{told}: share served (oracle {oracle:.3f})", worth.coverage, None, "", None
            broken = f"at most {most:.3f}" if promised else ""
            yield f"{told}: promises broken", worth.broken, None, broken, worth.broken <= most if promised else None


def _fields(taught: Sequence[Told], asked: Sequence[Told]) -> Iterator[Figure]:
    """Tell right fields from wrong ones, by a model of fields."""
    names = answer_features.FIELD_FEATURES

    def rows(told: Sequence[Told]) -> tuple[list[tuple[float, ...]], list[bool], list[float]]:
        figures, rights, scores = [], [], []
        for one in told:
            truths = matching.fields_right(one.generation.text, one.item.answers[0])
            for pointer, row in answer_features.field_features(one.item.input, one.generation).items():
                figures.append(row)
                rights.append(truths.get(pointer, False))
                scores.append(one.generation.fields[pointer].score or 0.0)
        return figures, rights, scores

    figures, rights, _ = rows(taught)
    if len(set(rights)) < 2:
        return
    flat = array("d", [value for row in figures for value in row])
    fitted = fit(Judged(names=names, figures=flat.tobytes(), right=tuple(rights)))
    figures, rights, plain = rows(asked)
    scores = np.array([fitted.weights.probability(dict(zip(names, row, strict=True))) or 0.0 for row in figures])
    ranked = Answers(scores, np.array(rights))
    interval = certificates.bootstrap(ranked, certificates.auroc)
    yield f"fields right, n={len(rights)}", float(np.mean(rights)), None, "", None
    yield "AUROC of single fields, model of fields (ours)", certificates.auroc(ranked), interval, "", None
    untaught = Answers(np.array(plain), np.array(rights))
    interval = certificates.bootstrap(untaught, certificates.auroc)
    yield "AUROC of single fields, lowest tenth (untaught)", certificates.auroc(untaught), interval, "", None


def scored(generation: Generation) -> Generation:
    """Return a recorded answer with the confidence of its fields."""
    from agent.confidence.fields import field_judge
    from agent.structure import FormatKind, OutputFormat
    from agent.types import InferenceRequest

    form = OutputFormat(kind=FormatKind.JSON_OBJECT)
    request = InferenceRequest(id="", model="", messages=(), response_format=form, received_at_ms=0)
    return field_judge("lowest_tenth")(request, generation)


def all_figures(folder: Path, raw: Path, draws: int, states: Path | None = None) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of every set that was recorded."""
    known = read_raw(raw)
    with open_encoder(ENCODER) as encoder:

        def embed(items: Sequence[Item]) -> list[tuple[float, ...]]:
            return [tuple(map(float, row)) for row in encoder.embed([one.input for one in items], truncate=True)]

        for of in SETS:
            if not any(key[0] == of.name for key in known):
                continue
            found = told_of(of, folder, known, embed)
            for figure in figures_of(of, found, draws):
                yield of.name, figure
            if states and of.name == SETS[0].name:
                for figure in probe(states, found["taught", MOST], found["asked", MOST]):
                    yield of.name, figure


def main() -> int:
    parser = argparse.ArgumentParser(description="What a confidence is worth where answers are written.")
    parser.add_argument("--data", type=Path, required=True, help="folder with the sets, one folder each")
    parser.add_argument("--report", type=Path, required=True, help="what benchmarks/open_raw.py recorded")
    parser.add_argument("--states", type=Path, help="what benchmarks/hidden_states.py wrote")
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--write", type=Path, help="put the table into this document, between its two marks")
    chosen = parser.parse_args()
    rows = list(all_figures(chosen.data, chosen.report, chosen.draws, chosen.states))
    if chosen.write:
        open_table.written(chosen.write, rows)
    else:
        print(open_table.markdown(rows), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
