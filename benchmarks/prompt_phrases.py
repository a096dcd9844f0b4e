"""How well the phrases of a prompt are found: precision and recall on prompts of which a person wrote the phrases.

    python benchmarks/prompt_phrases.py

100 prompts, sentences and lists of tags, with weights, embeddings and styles (tests/data/prompt_phrases.txt). The rules
were made on every second one of them; the others were looked at when they were done. A phrase counts as found where it
is the written one in every word but for a leading article. Intervals are 95 %, over prompts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ldznet.prompted import phrases_of

PROMPTS = Path(__file__).parents[1] / "tests" / "data" / "prompt_phrases.txt"
DRAWS = 10_000


def read(path: Path = PROMPTS) -> list[tuple[str, set[str]]]:
    """(prompt, its phrases in lower case)."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    pairs = [line.rsplit(" => ", 1) for line in lines]
    return [(prompt, {phrase.lower() for phrase in phrases.split(" | ")}) for prompt, phrases in pairs]


def counted(pairs: list[tuple[str, set[str]]]) -> np.ndarray:
    """Of each prompt (found and right, found, written)."""
    rows = []
    for prompt, written in pairs:
        found = {phrase.lower() for phrase in phrases_of(prompt)}
        rows.append((len(found & written), len(found), len(written)))
    return np.array(rows)


def main() -> None:
    """Both figures, of each half."""
    pairs = read()
    for name, part in (("rules were made on", pairs[::2]), ("others", pairs[1::2]), ("all", pairs)):
        counts = counted(part)
        draws = counts[np.random.default_rng(0).integers(0, len(counts), (DRAWS, len(counts)))].sum(1)
        for figure, of in (("precision", 1), ("recall", 2)):
            low, high = np.quantile(draws[:, 0] / draws[:, of], (0.025, 0.975))
            whole = counts[:, 0].sum() / counts[:, of].sum()
            print(f"{name} ({len(part)} prompts) {figure} {whole:.3f} ({low:.3f} .. {high:.3f})")


if __name__ == "__main__":
    main()
