"""Pipeline parallelism: stages on devices, which work on parts of a batch at the same time.

Huang et al., "GPipe", https://arxiv.org/abs/1811.06965: every stage computes the micro-batches of a batch one after
the other and hands each on; when all are through, the gradients come back the same way, the last one first.
"""

from collections.abc import Callable, Sequence
from typing import Any

from tfopt.errors import InputError
from tfopt.parallel.placed import Placed
from tfopt.parallel.stages import stages_of


class Pipeline(Placed):
    """A transformer in stages.

    Args:
        model: functional, of either generation, with layers that repeat; its weights are used where they are, see
            `tfopt.parallel.stages.placed`.
        lanes: devices of each replica, a name for each stage; each computes its share of a batch.
        micro_batches: parts of a lane's share, 1 or more. Few let stages wait for each other; many make each small.
        enter: what a technique does to the model's inputs (`compress.base.Prepared`).

    Attributes:
        idle_share: of the devices' time, as the stages' work and the schedule foretell it.

    Raises:
        InputError: more stages than layers, or a number outside its range.
    """

    def __init__(
        self,
        model: Any,
        lanes: Sequence[Sequence[str]],
        *,
        micro_batches: int,
        enter: Callable[[Any], Any] | None = None,
    ) -> None:
        if micro_batches < 1:
            raise InputError(f"micro_batches must be 1 or more, got {micro_batches}")
        stages = stages_of(model, len(lanes[0]))
        self.idle_share = stages.idle_share(micro_batches)
        super().__init__(
            model, stages.graph, groups=stages.groups, places=range(len(lanes[0])), lanes=lanes,
            micro_batches=micro_batches, enter=enter,
        )  # fmt: skip
