"""Names for integer grids of weights. Loads no TensorFlow."""

from typing import Literal, NamedTuple

Granularity = Literal["tensor", "channel"] | int


class Layout(NamedTuple):
    """Which axes of a weight are what.

    Attributes:
        inputs: axes that are summed over in the product (or lie inside one row of a lookup table); the others
            are output channels.
        blocks: whether `inputs` may be cut into blocks: they are neighbours and keep their order in a file.
    """

    inputs: tuple[int, ...]
    blocks: bool = True


class WeightSpec(NamedTuple):
    """The grid of one weight.

    Attributes:
        bits: 2 to 8.
        granularity: one scale per "tensor", per output "channel", or per block of so many inputs.
        symmetric: zero is the middle of the grid; else the grid spans the values from lowest to highest, with a
            zero point that is an integer, or in blocks any number.
    """

    bits: int
    granularity: Granularity = "channel"
    symmetric: bool = True

    @property
    def has_offsets(self) -> bool:
        """Whether blocks lie where their values do, by an offset that is stored beside the integers."""
        return isinstance(self.granularity, int) and not self.symmetric

    @property
    def largest(self) -> int:
        """Largest integer of the grid."""
        return int(2 ** (self.bits - 1)) - 1

    @property
    def smallest(self) -> int:
        """Smallest integer; a symmetric grid leaves out the one that has no opposite."""
        return -self.largest if self.symmetric else -self.largest - 1
