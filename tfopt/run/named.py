"""Measurements in words: names of classes instead of their numbers, and texts instead of numbers of rows."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from tfopt.measure.results import Measurement


def told(
    m: Measurement, labels: Sequence[str] | None, texts_at: Callable[[Sequence[int]], Mapping[int, str]]
) -> Measurement:
    """A measurement whose classes have their names, and whose changed answers the texts that they are about."""
    changed, confusion = m.changed, m.confusion
    if changed:
        texts = texts_at([row["row"] for row in changed])
        changed = [{**row, "text": texts[row["row"]]} if row["row"] in texts else row for row in changed]
    if labels and confusion:
        confusion = {**confusion, "classes": [labels[i] for i in confusion["classes"]]}
        named = ("answer", "baseline", "true")
        changed = [{k: labels[v] if k in named else v for k, v in row.items()} for row in changed or []] or changed
    return dataclasses.replace(m, changed=changed, confusion=confusion)
