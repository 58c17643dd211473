"""Data for the tasks of encoders, made by a script: small languages whose answers can be told from the texts."""

import json
from pathlib import Path
from typing import Any

import numpy as np

_PEOPLE = ["Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald", "Frances", "John"]
_FAMILIES = ["Lovelace", "Hopper", "Turing", "Dijkstra", "Liskov", "Knuth", "Allen", "Backus"]
_CITIES = ["London", "Paris", "Rome", "Oslo", "Cairo", "Lima", "Quito", "Delhi"]
_FILLERS = ["the", "old", "very", "quiet", "letter", "arrived", "yesterday", "from", "a", "small", "house", "there"]
_FRUITS, _METALS = ["apple", "pear", "plum", "fig"], ["iron", "zinc", "gold", "lead"]
_GLAD, _SAD = ["wonderful", "bright", "lovely"], ["awful", "gloomy", "broken"]


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def write_entities(path: Path, count: int, seed: int) -> Path:
    """Sentences with people of one or two names, and cities."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(count):
        tokens, tags = [], []
        for _ in range(rng.integers(1, 4)):
            fillers = rng.choice(_FILLERS, rng.integers(1, 4)).tolist()
            tokens, tags = tokens + fillers, tags + ["O"] * len(fillers)
            if rng.random() < 0.5:
                names = [str(rng.choice(_PEOPLE)), *([str(rng.choice(_FAMILIES))] if rng.random() < 0.5 else [])]
                tokens, tags = tokens + names, tags + ["B-PER", "I-PER"][: len(names)]
            else:
                tokens, tags = [*tokens, str(rng.choice(_CITIES))], [*tags, "B-LOC"]
        rows.append({"tokens": tokens, "tags": tags})
    return _write(path, rows)


def write_questions(path: Path, count: int, seed: int) -> Path:
    """Where somebody lives, out of a text about two people; sometimes the text does not tell."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(count):
        people, cities = rng.choice(_PEOPLE, 3, replace=False), rng.choice(_CITIES, 2, replace=False)
        context = " ".join(f"{who} lives in {where} ." for who, where in zip(people[:2], cities, strict=True))
        asked = int(rng.integers(0, 3)) if rng.random() < 0.3 else int(rng.integers(0, 2))
        answer = str(cities[asked]) if asked < 2 else ""
        row = {"question": f"where lives {people[asked]} ?", "context": context, "answer": answer}
        rows.append({**row, "answer_start": context.index(answer)} if answer else row)
    return _write(path, rows)


def write_two_classes(path: Path, count: int, seed: int) -> Path:
    """Texts with a topic and a mood; one text in four tells only one of the two labels."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(count):
        topic, mood = rng.choice(["fruit", "metal"]), rng.choice(["glad", "sad"])
        words = [*rng.choice(_FILLERS, rng.integers(2, 6)), rng.choice(_FRUITS if topic == "fruit" else _METALS),
                 rng.choice(_GLAD if mood == "glad" else _SAD)]  # fmt: skip
        rng.shuffle(words)
        row: dict[str, Any] = {"text": " ".join(words), "topic": str(topic), "mood": str(mood)}
        if rng.random() < 0.25:
            row[str(rng.choice(["topic", "mood"]))] = None
        rows.append(row)
    return _write(path, rows)


WRITERS = {
    "token_classification": write_entities, "question_answering": write_questions, "multi_task": write_two_classes,
}  # fmt: skip
