"""What the tasks of encoders share: where texts and models come from, lengths, and inputs for timing."""

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tfopt._base.files import existing
from tfopt._base.formats import format_named
from tfopt._keras.loading import check_model_file
from tfopt.data.batches import record_lengths
from tfopt.data.records.mixture import open_split
from tfopt.data.text_facts import TextFacts, TextTask
from tfopt.data.tokenizers import OnLong, load_tokenizer
from tfopt.errors import InputError, ModelFileError
from tfopt.models.bert import BertConfig
from tfopt.models.checkpoints import files_of
from tfopt.models.encoder import EncoderConfig
from tfopt.models.pretrained import check_weights, read_config
from tfopt.recipe.sections import ExportSection
from tfopt.tasks.base import Task, widened

_SHARES = (0.5, 0.9, 1.0)  # of the texts, for each of which a length is exported
_STEP = 8  # lengths are multiples, as rows of matrices are computed


class EncoderTask(Task):
    """A task of an encoder with a head.

    Attributes:
        sources: values of data.source that the task reads.
    """

    sources: ClassVar[tuple[str, ...]] = ("files",)

    def check_inputs(self) -> list[Path]:
        recipe, inputs = self.recipe, []
        if recipe.data.source not in self.sources:
            known = " or ".join(map(repr, self.sources))
            raise InputError(f"task {recipe.task!r} reads data.source {known}, got {recipe.data.source!r}")
        if recipe.data.source == "files":
            for key in ("train", "validation"):
                value = getattr(recipe.data, key)
                if value is None:
                    raise InputError(f"recipe {recipe.name!r} needs data.{key}: set it or pass --{key} FILE")
                inputs.append(existing(value, f"{key} data"))
            inputs += [existing(path, "data to mix") for path in recipe.data.mix]
        elif recipe.data.source == "packed":
            inputs += self.check_packed()
        config = None
        if recipe.model.kind == "pretrained":
            config, files = self._check_folder()
            inputs += files
        elif recipe.model.kind == "keras":
            check_model_file(self.model_file())
            inputs.append(Path(self.model_file()))
        source = recipe.data.tokenizer or recipe.model.folder
        if source is not None:
            vocabulary = load_tokenizer(source).get_vocab_size()
            if config is not None and vocabulary > config.vocab_size:
                raise InputError(
                    f"{source} has {vocabulary} tokens, the model's table has {config.vocab_size} rows"
                )
            inputs.append(Path(source) / "tokenizer.json" if Path(source).is_dir() else Path(source))
        return inputs

    def check_packed(self) -> list[Path]:
        """The files of a packed folder that fits the recipe; of tasks that read one."""
        return []

    def model_file(self) -> str:
        if self.recipe.model.file is None:
            raise InputError(f"recipe {self.recipe.name!r} needs model.file: the .keras file of a model")
        return self.recipe.model.file

    def _check_folder(self) -> tuple[EncoderConfig, list[Path]]:
        recipe = self.recipe
        if recipe.model.folder is None:
            raise InputError(f"recipe {recipe.name!r} needs model.folder: set it or pass --model DIR")
        folder = existing(recipe.model.folder, "model folder")
        config = read_config(folder)
        if not isinstance(config, EncoderConfig):
            raise ModelFileError(f"{folder} holds a model that generates; an encoder is needed here")
        check_weights(folder, config)
        if recipe.data.max_length > config.max_position_embeddings:
            raise InputError(
                f"data.max_length {recipe.data.max_length} is more than the {config.max_position_embeddings} "
                "positions of the model"
            )
        return config, [folder / "config.json", *files_of(folder)]

    def encoder_config(self, vocab_size: int) -> BertConfig:
        """The shape of a fresh encoder."""
        section = self.recipe.model
        return BertConfig(
            vocab_size=vocab_size, hidden_size=section.hidden_size, num_hidden_layers=section.num_hidden_layers,
            num_attention_heads=section.num_attention_heads, intermediate_size=section.intermediate_size,
            max_position_embeddings=self.recipe.data.max_length, hidden_dropout_prob=section.dropout,
            shared_layers=section.shared_layers,
        )  # fmt: skip

    def facts_of_text(
        self, facts: dict[str, Any], task: TextTask, labels: Mapping[str, Sequence[str]]
    ) -> TextFacts:
        """`text_facts` of a task with such labels."""
        named = {key: tuple(names) for key, names in labels.items()}
        # Dropping is for training data; a text that is asked about has an answer or an error.
        on_long: OnLong = "truncate" if facts["on_long"] == "truncate" else "error"
        return TextFacts(task, named, max_length=self.recipe.data.max_length, on_long=on_long)

    def lengths(self, section: ExportSection) -> list[int] | None:
        if not (section.jit_compile or format_named(section.format).fixed_lengths):
            return None
        return self.recipe.lengths or self._lengths_of_data()

    def _lengths_of_data(self) -> list[int]:
        """Those that hold half, nine tenths and all of the training texts, and the longest that is allowed."""
        most = self.recipe.data.max_length
        wanted = {math.ceil(np.quantile(self._tokens, share) / _STEP) * _STEP for share in _SHARES}
        return sorted({min(n, most) for n in wanted} | {most})

    def timed_inputs(self) -> dict[str, np.ndarray]:
        """Held-out texts of one length, one row and several."""
        length, samples = self.recipe.measure.length or self._usual_length(), self.samples()
        return {name: widened(samples[name], length) for name in samples if name != "label"}

    def _usual_length(self) -> int:
        """The exported length that holds nine of ten texts."""
        lengths = self.recipe.lengths or self._lengths_of_data()
        return next(n for n in sorted(lengths) if n >= np.quantile(self._tokens, _SHARES[1]))

    @functools.cached_property
    def _tokens(self) -> np.ndarray:
        """Tokens of each training text, once data was packed."""
        return record_lengths(self.data, open_split(self.data, self.drawn_from("train"), "error")[1])

    def notes(self, facts: dict[str, Any]) -> list[str]:
        """What happened to texts that were too long."""
        return [
            f"{facts[f'{split}_too_long']} of {facts[f'{split}_texts']} {split} texts were longer than the model "
            f"takes and were {'cut' if facts['on_long'] == 'truncate' else 'dropped'} (the longest had "
            f"{facts[f'{split}_longest']} tokens)."
            for split in ("train", "validation")
            if facts[f"{split}_too_long"]
        ]
