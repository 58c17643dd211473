"""What a recipe trains a model for: its data, its model, and what it is judged on."""

from pathlib import Path

from tfopt.recipe import Recipe
from tfopt.tasks.base import Task
from tfopt.tasks.causal_lm import CausalLMTask
from tfopt.tasks.classification import ClassificationTask

TASKS: dict[str, type[Task]] = {"classification": ClassificationTask, "causal_lm": CausalLMTask}


def task_of(recipe: Recipe, data: Path) -> Task:
    """The task of a recipe, with its packed data in the folder `data`."""
    return TASKS[recipe.task](recipe, data)
