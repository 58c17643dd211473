"""What a recipe trains a model for: its data, its model, and what it is judged on."""

from pathlib import Path

from tfopt.recipe import Recipe
from tfopt.tasks.base import Task
from tfopt.tasks.causal_lm import CausalLMTask
from tfopt.tasks.classification import ClassificationTask
from tfopt.tasks.multi_task import MultiTask
from tfopt.tasks.question_answering import QuestionAnsweringTask
from tfopt.tasks.token_classification import TokenClassificationTask

TASKS: dict[str, type[Task]] = {
    "classification": ClassificationTask,
    "token_classification": TokenClassificationTask,
    "question_answering": QuestionAnsweringTask,
    "multi_task": MultiTask,
    "causal_lm": CausalLMTask,
}


def task_of(recipe: Recipe, data: Path) -> Task:
    """The task of a recipe, with its packed data in the folder `data`."""
    return TASKS[recipe.task](recipe, data)
