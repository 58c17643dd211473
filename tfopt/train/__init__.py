"""Training: strategy, optimizer and progress around `model.fit`."""

from tfopt.train.fit import TrainConfig, fit
from tfopt.train.strategy import make_strategy

__all__ = ["TrainConfig", "fit", "make_strategy"]
