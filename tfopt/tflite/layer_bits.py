"""How the weights of a model stand in a file."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class LayerBits:
    """How one weight matrix of the model stands in a file.

    Attributes:
        path: the weight.
        bits: of its grid; 32 if it stayed in float.
        granularity: what one scale covers: "tensor", "channel", "block 32" and so on; "" in float.
        reason: why it stayed in float or has another granularity than was asked for, or "".
    """

    path: str
    bits: int
    granularity: str
    reason: str
