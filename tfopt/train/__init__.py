"""Training: strategy, optimizer and progress around a loop of passes."""

from tfopt.train.config import TrainConfig
from tfopt.train.fit import fit
from tfopt.train.strategy import make_strategy

__all__ = ["TrainConfig", "fit", "make_strategy"]
