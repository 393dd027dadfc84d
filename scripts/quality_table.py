"""What each recipe costs: makes a model by each of them, measures all, prints a table in Markdown.

    python scripts/quality_table.py SOURCE [--data-dir DIR] [--recipe NAME ...] [--rounds N]

SOURCE is what ``outrider quantize`` takes: a model of the store, a GGUF file (F16 or better), the
folder of a checkpoint. Minutes for each recipe; a call that was stopped goes on where it was.
The speeds are measured at the end, the models taking turns, and the medians are printed: for
those figures nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from agent import configuration, device  # noqa: E402 - works without an installed package
from agent.evaluation.asking import measure_speed  # noqa: E402
from agent.models.quality import Quality, Speed  # noqa: E402
from agent.models.store import ModelStore, open_store  # noqa: E402
from agent.settings import EngineSettings  # noqa: E402

RECIPES = ("gguf-f16", "gguf-q8_0", "gguf-q6_k", "gguf-q5_k_m", "gguf-q4_k_m", "gguf-q4_0", "gguf-iq4_xs")
HEAD = ("model", "MB", "perplexity", "KL (nats)", "same token", "instructions", "tokens/s", "first token", "memory")


def main() -> int:
    parser = argparse.ArgumentParser(description="What each recipe costs, as a table in Markdown.")
    parser.add_argument("source", help="what `outrider quantize` takes")
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--recipe", dest="recipes", action="append", help=f"default: {', '.join(RECIPES)}")
    parser.add_argument("--rounds", type=int, default=3, help="of the speeds")
    given = parser.parse_args()
    data = given.data_dir or configuration.load().settings.data_path
    names: list[str] = []
    for recipe in given.recipes or RECIPES:
        made = make(data, given.source, recipe)
        if made is None:
            return 1
        parent, name = made
        names += [one for one in (parent, name) if one not in names]
    store = open_store(data)
    names = [name for name in names if (model := store.get(name)) and model.quality]
    speeds = measure_speeds(store, names, given.rounds)
    sys.stdout.write(f"{device.profile().cpu_model}, {device.profile().decode_threads} threads\n\n")
    for row in (HEAD, ("---", *["---:"] * (len(HEAD) - 1)), *(line(store, name, speeds[name]) for name in names)):
        sys.stdout.write(f"| {' | '.join(row)} |\n")
    return 0


def make(data: Path, source: str, recipe: str) -> tuple[str, str] | None:
    """Make and measure; return the names of parent and model, or None when that failed."""
    command = [sys.executable, "-m", "agent", "--data-dir", str(data), "quantize", source, "--recipe", recipe, "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.stderr.write(f"quality_table: {recipe} cannot be made of {source}\n")
        return None
    model = json.loads(done.stdout)["model"]
    return model["making"]["parent"], model["name"]


def measure_speeds(store: ModelStore, names: list[str], rounds: int) -> dict[str, Speed]:
    """Return the median of each figure, the models taking turns."""
    engine = EngineSettings(context_tokens=2048)
    seen: dict[str, list[Speed]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, found in seen.items():
            found.append(measure_speed(store.resolve(name, below_floor=True), engine, lambda _: None))
    return {
        name: Speed(
            tokens_per_second=statistics.median(one.tokens_per_second for one in found),
            first_token_ms=statistics.median(one.first_token_ms for one in found),
            prompt_tokens=found[0].prompt_tokens,
            memory_bytes=int(statistics.median(one.memory_bytes for one in found)),
        )
        for name, found in seen.items()
    }


def line(store: ModelStore, name: str, speed: Speed) -> tuple[str, ...]:
    """Return the cells of one model."""
    model = store.get(name)
    assert model is not None
    assert isinstance(model.quality, Quality)
    text = model.quality.texts[0]
    divergence = f"{text.divergence.value:.4f}" if text.divergence else "-"
    agreement = f"{text.agreement.value:.1%}" if text.agreement else "-"
    return (
        name,
        f"{model.bytes / 1e6:.1f}",
        f"{text.perplexity.value:.2f}",
        divergence,
        agreement,
        f"{model.quality.instructions_followed} of {model.quality.instructions_asked}",
        f"{speed.tokens_per_second:.1f}",
        f"{speed.first_token_ms:.0f} ms",
        f"{speed.memory_bytes / (1 << 20):.0f} MiB",
    )


if __name__ == "__main__":
    sys.exit(main())
