"""Models that come with Keras and KerasHub, small and with random weights; the latter need the extra `kerashub`."""

import importlib
from typing import Any

import numpy as np

from benchmarks.zoo.model import ROWS, Entry, Values, ids, pictures

Made = tuple[Any, Values]
CLASSES = 10
# Class -> the module of its preprocessing, and the size of its pictures.
APPLICATIONS = {
    "MobileNet": ("mobilenet", 64), "MobileNetV2": ("mobilenet_v2", 64), "MobileNetV3Small": ("mobilenet_v3", 64),
    "EfficientNetB0": ("efficientnet", 64), "EfficientNetV2B0": ("efficientnet_v2", 64), "ResNet50": ("resnet", 64),
    "ResNet50V2": ("resnet_v2", 64), "VGG16": ("vgg16", 64), "DenseNet121": ("densenet", 64),
    "ConvNeXtTiny": ("convnext", 64), "NASNetMobile": ("nasnet", 64), "Xception": ("xception", 96),
    "InceptionV3": ("inception_v3", 96),
}  # fmt: skip


def _application(name: str) -> Any:
    def build(keras: Any) -> Made:
        module, size = APPLICATIONS[name]
        keras.utils.set_random_seed(0)
        model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classes=CLASSES)
        prepare = getattr(keras.applications, module).preprocess_input
        given = np.asarray(prepare(pictures(size, size)))
        _settle(keras, model, given)
        return model, {model.inputs[0].name.partition(":")[0]: given}

    return build


def _settle(keras: Any, model: Any, given: np.ndarray) -> None:
    """Norms get the statistics of real pictures: with those of no training, deep models answer all alike.

    And they get an offset of one: at zero, deep models of random weights are chaotic (weights rounded to 8 bits in
    Keras itself leave a correlation of 0.69 in MobileNet, 0.66 in EfficientNet and 0.73 in ResNet, with it 0.99).
    """
    for layer in _norms(model):
        layer.momentum = 0.0
        if layer.center:
            layer.beta.assign(layer.beta + 1.0)
    model(given, training=True)
    _tell_apart(keras, model, given)


def _tell_apart(keras: Any, model: Any, given: np.ndarray) -> None:
    """The last layer is fitted to the pictures, by ridge regression: classes of a random one are ties."""
    last = next(layer for layer in reversed(model.layers) if hasattr(layer, "kernel"))
    features = np.asarray(keras.Model(model.inputs, last.input)(given, training=False)).reshape(ROWS, -1)
    middle = features.mean(0)
    wanted = 8.0 * (np.arange(ROWS)[:, None] % CLASSES == np.arange(CLASSES)) - 8.0 / CLASSES
    centred = (features - middle).astype(np.float64)
    gram = centred @ centred.T
    kernel = centred.T @ np.linalg.solve(gram + 0.03 * np.trace(gram) / ROWS * np.eye(ROWS), wanted)
    last.kernel.assign(kernel.reshape(last.kernel.shape))
    last.bias.assign(-middle @ kernel)


def _norms(model: Any) -> list[Any]:
    found = []
    for layer in model.layers:
        found += (
            _norms(layer)
            if hasattr(layer, "layers")
            else [layer]
            if type(layer).__name__ == "BatchNormalization"
            else []
        )
    return found


def _hub(name: str, sizes: dict[str, Any], task: str | None = None) -> Any:
    """A backbone of KerasHub, or a task around it, with inputs by its own names."""

    def build(keras: Any) -> Made:
        hub = importlib.import_module("keras_hub")
        keras.utils.set_random_seed(0)
        model = getattr(hub.models, f"{name}Backbone")(**sizes)
        if task is not None:
            extra = {"num_classes": 3} if "Classifier" in task else {}
            model = getattr(hub.models, name + task)(backbone=model, preprocessor=None, **extra)
        return model, _values(model, whole=task == "CausalLM")

    return build


def _values(model: Any, whole: bool) -> Values:
    """Inputs that mean something; texts of one length if `whole`, since files that generate take no padding."""
    found: Values = {}
    text = ids(120, 16) if not whole else np.random.default_rng(0).integers(1, 120, (ROWS, 16)).astype(np.int32)
    declared = model.input if isinstance(model.input, dict) else {model.inputs[0].name: model.input}
    for key, tensor in declared.items():
        if key.endswith("token_ids"):
            found[key] = text
        elif "mask" in key and "position" not in key:
            found[key] = (text > 0).astype(np.int32)
        elif key == "segment_ids":
            found[key] = np.tile(np.arange(16) >= 8, (ROWS, 1)).astype(np.int32)
        elif key == "encoder_features":
            found[key] = (
                np.random.default_rng(0).standard_normal((ROWS, 40, int(tensor.shape[-1]))).astype(np.float32)
            )
        else:
            found[key] = pictures(32, 32)
    return found


_SMALL = {"vocabulary_size": 120, "num_layers": 2, "num_heads": 4, "hidden_dim": 32, "intermediate_dim": 64}
_BERT = {**_SMALL, "max_sequence_length": 32}
_LLAMA = {
    "vocabulary_size": 120, "num_layers": 2, "num_query_heads": 4, "num_key_value_heads": 2, "hidden_dim": 32,
    "intermediate_dim": 64,
}  # fmt: skip
_GEMMA = {**_LLAMA, "head_dim": 8}
HUB: list[tuple[str, dict[str, Any], str | None]] = [
    ("Bert", _BERT, None),
    ("Bert", _BERT, "TextClassifier"),
    ("Roberta", _BERT, None),
    ("Roberta", _BERT, "TextClassifier"),
    ("DistilBert", _BERT, None),
    ("DistilBert", _BERT, "TextClassifier"),
    ("Albert", {**_BERT, "embedding_dim": 16, "num_groups": 1, "num_inner_repetitions": 1}, None),
    ("DebertaV3", {**_BERT, "bucket_size": 8}, None),
    ("XLMRoberta", _BERT, None),
    (
        "Electra",
        {**{k: v for k, v in _BERT.items() if k != "vocabulary_size"}, "vocab_size": 120, "embedding_dim": 16},
        None,
    ),
    ("FNet", {k: v for k, v in _BERT.items() if k != "num_heads"}, None),
    ("GPT2", _BERT, None),
    ("GPT2", _BERT, "CausalLM"),
    ("OPT", _BERT, None),
    ("Llama", _LLAMA, None),
    ("Llama", _LLAMA, "CausalLM"),
    ("Mistral", {**_LLAMA, "sliding_window": 16}, "CausalLM"),
    ("Qwen", _LLAMA, "CausalLM"),
    ("Gemma", _GEMMA, None),
    ("Gemma", _GEMMA, "CausalLM"),
    ("Phi3", _LLAMA, None),
    ("GPTNeoX", {**_BERT}, None),
    ("T5", {**_SMALL, "key_value_dim": 8}, None),
    ("Bart", _BERT, None),
    (
        "Whisper",
        {**_SMALL, "num_mels": 80, "max_encoder_sequence_length": 40, "max_decoder_sequence_length": 32},
        None,
    ),
    (
        "ViT",
        {
            "image_shape": (32, 32, 3),
            "patch_size": 8,
            "num_layers": 2,
            "num_heads": 4,
            "hidden_dim": 32,
            "mlp_dim": 64,
        },
        None,
    ),
    (
        "ResNet",
        {
            "input_conv_filters": [64],
            "input_conv_kernel_sizes": [3],
            "stackwise_num_filters": [64, 128],
            "stackwise_num_blocks": [1, 1],
            "stackwise_num_strides": [1, 2],
            "block_type": "basic_block",
            "image_shape": (32, 32, 3),
        },
        None,
    ),
]

# Of what is no text of one length.
_LENGTHS: dict[str, Any] = {
    "ViT": None,
    "ResNet": None,
    "Whisper": ({"encoder_features": 40, "decoder_token_ids": 16, "decoder_padding_mask": 16},),
}
_GENERATING = {"int8": "keys and values of a file that generates have no static ranges"}
ENTRIES = [
    *(
        Entry(
            f"hub_{name}{task or ''}",
            _hub(name, sizes, task),
            ("keras",),
            lengths=_LENGTHS.get(name, (16,)),
            senseless=_GENERATING if task == "CausalLM" else {},
        )
        for name, sizes, task in HUB
    ),
    *(Entry(name, _application(name)) for name in APPLICATIONS),
]
