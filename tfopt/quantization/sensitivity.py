"""Mixed precision: what each weight loses at fewer bits, and which bits meet a budget."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.files import write_json
from tfopt._keras import keras_api
from tfopt._keras.keras_io import Inputs, call, check_samples, inputs_of
from tfopt.errors import InputError
from tfopt.quantization.calibration import check_varied, quantize_weights
from tfopt.quantization.config import QuantizeConfig
from tfopt.quantization.kinds import class_names
from tfopt.quantization.plan import PlannedWeight, plan_weights
from tfopt.quantization.weights import on_grids, round_to_nearest


@dataclasses.dataclass(frozen=True)
class Row:
    """One weight at one number of bits.

    Attributes:
        path: the weight.
        bits: of its grid.
        bytes: of its integers and scales in a file.
        loss: mean squared change of the model's first output, relative to the output's variance, when only
            this weight is rounded.
    """

    path: str
    bits: int
    bytes: int
    loss: float


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """The table of a model: every weight at every number of bits.

    Attributes:
        rows: the table.
        config: the configuration whose other settings hold for all of them.
        samples: how many rows of data it was measured on.
    """

    rows: tuple[Row, ...]
    config: QuantizeConfig
    samples: int

    def text(self) -> str:
        """The table, the most sensitive weight first."""
        levels = sorted({r.bits for r in self.rows}, reverse=True)
        by_path = {
            p: {r.bits: r for r in self.rows if r.path == p} for p in dict.fromkeys(r.path for r in self.rows)
        }
        width = max(len(path) for path in by_path)
        lines = ["weight".ljust(width) + "".join(f"{f'{b} bits':>12}{'bytes':>14}" for b in levels)]
        for path, found in sorted(by_path.items(), key=lambda item: -item[1][levels[-1]].loss):
            figures = "".join(f"{found[b].loss:12.2e}{found[b].bytes:14,}" for b in levels)
            lines.append(path.ljust(width) + figures)
        return "\n".join(lines)

    def save(self, path: str | Path) -> Path:
        """Writes the table as JSON."""
        return write_json(Path(path), {"samples": self.samples, "rows": [dataclasses.asdict(r) for r in self.rows]})

    def within_bytes(self, budget: int) -> QuantizeConfig:
        """The configuration with the least loss whose weights take at most `budget` bytes.

        Raises:
            InputError: even the fewest bits take more; the smallest possible size is named.
        """
        chosen, total = self._start()
        for row, saved in self._steps():
            if total <= budget:
                break
            chosen[row.path], total = row.bits, total - saved
        if total > budget:
            raise InputError(
                f"the weights take at least {total:,} bytes at the fewest bits, got a budget of {budget:,}"
            )
        return dataclasses.replace(self.config, bits=chosen)

    def within_loss(self, measure: Callable[[QuantizeConfig], float], lowest: float) -> QuantizeConfig:
        """The smallest configuration, along the order of least loss per byte, that still measures `lowest`.

        Args:
            measure: quality of the model under a configuration, higher is better.
            lowest: the least quality that is accepted.

        Raises:
            InputError: the most bits already measure less.
        """
        chosen, _ = self._start()
        steps = [row for row, _ in self._steps()]
        reached = measure(dataclasses.replace(self.config, bits=dict(chosen)))
        if reached < lowest:
            raise InputError(f"with the most bits the quality is {reached:.4f}, below the budget of {lowest:.4f}")
        good, bad = 0, len(steps) + 1
        while bad - good > 1:  # quality falls along the way, up to noise
            middle = (good + bad) // 2
            bits = {**chosen, **{row.path: row.bits for row in steps[:middle]}}
            if measure(dataclasses.replace(self.config, bits=bits)) >= lowest:
                good = middle
            else:
                bad = middle
        return dataclasses.replace(self.config, bits={**chosen, **{row.path: row.bits for row in steps[:good]}})

    def bytes_of(self, config: QuantizeConfig) -> int:
        """What the weights take under a configuration that this table chose."""
        return sum(r.bytes for r in self.rows if config.bits.get(r.path) == r.bits)

    def _start(self) -> tuple[dict[str, int | None], int]:
        most = max(r.bits for r in self.rows)
        first = [r for r in self.rows if r.bits == most]
        return {r.path: r.bits for r in first}, sum(r.bytes for r in first)

    def _steps(self) -> list[tuple[Row, int]]:
        """Single reductions by their loss per saved byte, each weight's own in order of bits."""
        levels = sorted({r.bits for r in self.rows}, reverse=True)
        table = {(r.path, r.bits): r for r in self.rows}
        steps = []
        for path in dict.fromkeys(r.path for r in self.rows):
            worst = 0.0
            for high, low in itertools.pairwise(levels):
                row, saved = table[path, low], table[path, high].bytes - table[path, low].bytes
                if saved > 0:
                    worst = max(worst, (row.loss - table[path, high].loss) / saved)
                    steps.append((worst, row, saved))
        return [(row, saved) for _, row, saved in sorted(steps, key=lambda s: s[0])]


def measure_sensitivity(
    model: Any,
    representative: dict[str, np.ndarray],
    *,
    config: QuantizeConfig | None = None,
    bits: Sequence[int] = (8, 4),
    input_signature: Any = None,
) -> Sensitivity:
    """Rounds one weight after the other and runs the samples; the model is as before in the end.

    Args:
        model: the float model.
        representative: inputs by name, the same number of rows each.
        config: settings other than bits; by default those of dynamic quantization.
        bits: the numbers of bits to try, each 2 to 8.
        input_signature: for subclassed models, ``{name: tf.TensorSpec}`` or one TensorSpec.

    Raises:
        InputError: samples that are missing, misshapen, not finite or all the same.
    """
    config = config or QuantizeConfig(weight_scale="mse")
    inputs = inputs_of(keras_api.check_model(model), input_signature)
    samples = check_samples(inputs, representative)
    check_varied(samples)
    expected = _output(model, inputs, samples)
    variance = max(float(expected.var()), 1e-12)
    rows = []
    plain = dataclasses.replace(config, table_bits=None, bits={})
    by_channel = plain
    if isinstance(plain.weight_granularity, int):  # no runtime has blocks of 8 bits
        by_channel = dataclasses.replace(plain, weight_granularity="channel")
    plans = {
        b: plan_weights(model, dataclasses.replace(plain if b <= 4 else by_channel, weight_bits=b)) for b in bits
    }
    for index, planned in enumerate(plans[bits[0]].weights):
        value = keras_api.to_numpy(planned.weight.variable).astype(np.float32)
        for b in bits:
            at = plans[b].weights[index]
            grid = round_to_nearest(at, value, search_clip=b < 8)
            with on_grids(model, {at.path: grid}):
                loss = float(((_output(model, inputs, samples) - expected) ** 2).mean()) / variance
            size = stored_bytes(at, value.size, grid.scale.size, static=config.is_static)
            rows.append(Row(planned.path, b, size, loss=loss))
    return Sensitivity(tuple(rows), config, len(next(iter(samples.values()))))


def choose_bits(
    model: Any,
    representative: dict[str, np.ndarray],
    config: QuantizeConfig,
    max_bytes: int | None = None,
    max_loss: float | None = None,
) -> tuple[QuantizeConfig, Sensitivity]:
    """Bits by layer that meet a budget, and the table they were chosen from.

    Args:
        model: a float classifier; it is as before in the end.
        representative: inputs by name.
        config: settings other than bits.
        max_bytes: most bytes of the weights; the bits that lose least are taken.
        max_loss: most percent of `representative` whose class may change when the weights are rounded, which
            bounds what the accuracy on them can lose; the bits that take fewest bytes are taken.

    Raises:
        InputError: both budgets or none, or one that cannot be met.
    """
    if (max_bytes is None) == (max_loss is None):
        raise InputError(f"give either max_bytes or max_loss, got {max_bytes} and {max_loss}")
    table = measure_sensitivity(model, representative, config=config)
    if max_loss is None:
        return table.within_bytes(max_bytes or 0), table
    inputs = inputs_of(model)
    samples = check_samples(inputs, representative)
    classes = _output(model, inputs, samples).argmax(-1)

    def unchanged(candidate: QuantizeConfig) -> float:
        record, _ = quantize_weights(model, dataclasses.replace(candidate, rounding="nearest"))
        with on_grids(model, record.grids):
            return 100 * float((_output(model, inputs, samples).argmax(-1) == classes).mean())

    return table.within_loss(unchanged, 100 - max_loss), table


def stored_bytes(planned: PlannedWeight, size: int, scales: int, static: bool) -> int:
    """Bytes of a weight's integers and scales in a file; not every operator takes two weights per byte."""
    blocks = isinstance(planned.spec.granularity, int)
    names = " ".join(class_names(planned.weight.layer))
    halves = planned.spec.bits <= 4 and not static and "Depthwise" not in names and "Transpose" not in names
    return -(-size * (4 if halves else 8) // 8) + scales * (2 if blocks else 4)


def _output(model: Any, inputs: Inputs, samples: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(next(iter(call(model, inputs, samples).values())), np.float64)
