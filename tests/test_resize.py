"""Units inside layers of somebody's own: taken out where the class can be made with other sizes, else named."""

import numpy as np
import pytest

import tfopt
from tfopt.errors import InputError
from tfopt.structure.groups import structure_of

from .test_shrink import outputs, randomized


def blocks(keras, fixed=False):
    """keras.io's transformer block, and one whose inner size is no argument."""
    layers = keras.layers

    class Block(layers.Layer):
        def __init__(self, width, heads, hidden, **kwargs):
            super().__init__(**kwargs)
            self.width, self.heads, self.hidden = width, heads, list(hidden)
            self.attention = layers.MultiHeadAttention(heads, 8)
            self.dense = [layers.Dense(n, activation="relu") for n in (hidden if not fixed else (24, 20))]
            self.last = layers.Dense(width)
            self.norms = [layers.LayerNormalization(), layers.LayerNormalization()]

        def build(self, shape):
            super().build(shape)

        def call(self, x):
            y = x = self.norms[0](x + self.attention(x, x))
            for dense in self.dense:
                y = dense(y)
            return self.norms[1](x + self.last(y))

        def get_config(self):
            own = {"width": self.width, "heads": self.heads, "hidden": self.hidden}
            return {**super().get_config(), **own}

    keras.utils.set_random_seed(0)
    inputs = layers.Input((6, 16), name="x")
    x = Block(16, 4, (24, 20), name="first")(inputs)
    inner = keras.Sequential([layers.Input((6, 16)), Block(16, 4, (24, 20), name="block")], name="nested")
    x = layers.GlobalAveragePooling1D()(inner(x))
    return randomized(keras.Model(inputs, layers.Dense(3, name="y")(layers.Dense(12, activation="relu")(x))))


@pytest.fixture
def given():
    return {"x": np.random.default_rng(0).standard_normal((4, 6, 16)).astype(np.float32)}


def test_heads_and_neurons_inside_custom_layers(keras, given):
    model = blocks(keras)
    kinds = {group.kind for group in structure_of(model).groups if group.name.startswith(("first/", "nested/"))}
    assert {"heads", "neurons"} <= kinds
    smaller = tfopt.shrink(model, heads=0.5, neurons=0.5)  # the answers are compared with those of a masked model
    block = smaller.get_layer("first")
    assert type(block).__name__ == "Block" and (block.heads, block.hidden) == (2, [12, 10])
    assert smaller.get_layer("nested").get_layer("block").hidden == [12, 10]
    assert smaller.count_params() < 0.7 * model.count_params()
    assert np.isfinite(outputs(smaller, given)).all()


def test_a_layer_without_a_configuration_stays_as_it_is(keras):
    class Silent(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="silent")
            self.one, self.two = keras.layers.Dense(24, activation="relu"), keras.layers.Dense(16)

        def call(self, x):
            return self.two(self.one(x))

        def get_config(self):
            raise KeyError("none")

    inputs = keras.layers.Input((16,))
    model = keras.Model(inputs, keras.layers.Dense(3)(Silent()(inputs)))
    fixed = structure_of(model).fixed
    reasons = [reason for path, why in fixed.items() if path.startswith("silent/") for reason in why]
    assert any("of class Silent" in reason for reason in reasons)


def test_one_kind_alone(keras, given):
    model = blocks(keras)
    for kinds, sizes in (({"heads": 0.25}, (3, [24, 20])), ({"neurons": 0.25}, (4, [18, 15]))):
        block = tfopt.shrink(model, **kinds).get_layer("first")
        assert (block.heads, block.hidden) == sizes


def test_a_class_that_cannot_be_made_with_other_sizes_is_named(keras, given):
    model = blocks(keras, fixed=True)
    fixed = structure_of(model).fixed
    reasons = [r for path, why in fixed.items() if path.startswith("first/dense") for r in why]
    assert any(
        "it lies inside 'first' of class Block, of whose arguments none changes it alone" in r for r in reasons
    )
    smaller = tfopt.shrink(model, neurons=0.5)  # elsewhere it takes what it can
    assert smaller.count_params() < model.count_params()
    assert [d.units for d in smaller.get_layer("first").dense] == [24, 20]
    with pytest.raises(InputError, match="no layer 'first/dense' makes neurons"):
        tfopt.shrink(model, neurons={"first/dense": 0.5})


def test_a_layer_that_cannot_say_how_it_is_made_is_named(keras):
    """As KerasHub's LLaMA layer, whose get_config lacks an attribute."""

    class Silent(keras.layers.Layer):
        def call(self, x):
            return x + 1.0

        def get_config(self):
            raise AttributeError("no attribute 'scale'")

    inputs = keras.layers.Input((16,))
    x = Silent(name="silent")(keras.layers.Dense(24, activation="relu")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Dense(8)(x)))
    with pytest.raises(InputError, match="'silent' of class Silent cannot be made anew .*no attribute 'scale'"):
        tfopt.shrink(model, neurons=0.5)
