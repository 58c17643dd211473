import pytest

from tfopt.errors import InputError, MissingFileError
from tfopt.recipe import Recipe, builtin_recipes

GOOD = 'schema = 1\nname = "x"\n'


@pytest.mark.parametrize("name", builtin_recipes())
def test_built_in_recipes_load_and_survive_toml(name):
    recipe = Recipe.load(name)
    assert recipe.name == name and Recipe.parse(recipe.to_toml()) == recipe


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD + "[data]\nmax_lenght = 3\n", "unknown key 'data.max_lenght'; did you mean 'max_length'?"),
        (GOOD + "sede = 1\n", "unknown key 'sede'; did you mean 'seed'?"),
        (GOOD + '[[variants]]\nname = "a"\n[variants.prune]\nsparsty = 0.5\n',
         "unknown key 'variants.0.prune.0.sparsty'; did you mean 'sparsity'?"),
        (GOOD + '[[variants]]\nname = "a"\n[variants.prune]\nsparsity = 1.2\n', r"sparsity must be in \[0, 1\), got 1.2"),
        (GOOD + '[[variants]]\nname = "a"\n[variants.prune]\nsparsity = 0.5\nbegin = 0.8\nend = 0.2\n',
         "begin must come before end, got begin 0.8, end 0.2"),
        (GOOD + "[train]\nepochs = 0\n", "train.epochs is 0, but a model of kind 'fresh' has to be trained"),
        (GOOD + '[[exports]]\nformat = "tfile"\n', "exports.0.format: .*got 'tfile'"),
        (GOOD + '[[exports]]\nformat = "saved_model"\nquantization = "float16"\n', "needs format 'tflite'"),
        (GOOD + '[[exports]]\nformat = "tflite"\nof = ["smal"]\n', "exports.of names 'smal'"),
        (GOOD + '[train]\noptimizer = "adamm"\n', "train.optimizer: .*got 'adamm'; did you mean 'adamw'?"),
        (GOOD + '[train]\nschedule = "cosin"\n', "got 'cosin'; did you mean 'cosine'?"),
        (GOOD + "lengths = [16]\n", "lengths must end at data.max_length 128"),
        (GOOD + "[model]\nhidden_size = 130\n", "multiple of num_attention_heads, got 130 and 4"),
        (GOOD + "[measure]\nlength = 512\n", "measure.length must be at most data.max_length 128, got 512"),
        (GOOD + '[[variants]]\nname = "data"\n[variants.prune]\nsparsity = 0.5\n', "two things would be named 'data'"),
        (GOOD + '[[variants]]\nname = "a"\n[variants.prune]\nsparsity = 0.5\nstructure = "bogus"\n', "structure must be"),
        (GOOD + '[[variants]]\nname = "a"\n[variants.prune]\nsparsity = 0.8\nstructure = "2:4"\n',
         "structure 2:4 has sparsity 0.5, got 0.8"),
        (GOOD + '[[variants]]\nname = "a"\n', "variant 'a' needs one of the sections shrink, factorize, distill"),
        (GOOD + '[[variants]]\nname = "a"\n[variants.quantize]\nweight_bits = 9\n', "weight_bits must be 2 to 8"),
        (GOOD + '[[variants]]\nname = "a"\n[variants.quantize]\nweigth_bits = 4\n',
         "unknown key 'variants.0.quantize.weigth_bits'; did you mean 'weight_bits'?"),
        (GOOD + '[[exports]]\nformat = "tflite"\nquantization = "dynamic_int3"\n',
         "unknown quantization 'dynamic_int3'; did you mean 'dynamic_int"),
        (GOOD + '[[exports]]\nformat = "tflite"\nquantization = "float16"\nrounding = "gptq"\n',
         "rounding, smooth, rotate, bits, max_bytes and max_loss need an integer quantization"),
        (GOOD + '[[exports]]\nformat = "tflite"\nquantization = "dynamic_int8"\nmax_bytes = 9\nmax_loss = 1.0\n',
         "give either max_bytes or max_loss"),
        (GOOD + '[[variants]]\nname = "a"\n[variants.quantize]\n[[exports]]\nformat = "tflite"\n'
         'quantization = "dynamic_int4"\n', "'dynamic_int4' would round variant 'a', trained with 8 bits, again"),
        (GOOD + '[[exports]]\nformat = "tflite"\nquantization = "dynamic_int8"\nrotate = true\n',
         "rotate is for models that generate"),
        (GOOD + '[[exports]]\nformat = "tflite"\nquantization = "dynamic_int8"\nrotate = true\nmax_bytes = 9\n',
         "give either rotate or a budget"),
        (GOOD + 'task = "causal_lm"\n[data]\nmax_length = 64\n[[variants]]\nname = "a"\n[variants.quantize]\n'
         '[[exports]]\nformat = "tflite"\nquantization = "dynamic_int8"\nrotate = true\n',
         "rotate would turn 'a' off its grids or factors"),
        (GOOD + '[[variants]]\nname = "a"\n[variants.shrink]\n', "nothing to take out: give heads, neurons"),
        (GOOD + '[[variants]]\nname = "a"\n[variants.shrink]\nheads = 1.0\n', r"heads must be in \[0, 1\), the share"),
        (GOOD + '[[variants]]\nname = "a"\n[variants.shrink]\nlayers = 2\nwhen = "during"\n', "need when = 'before'"),
        (GOOD + '[[variants]]\nname = "a"\n[variants.shrink]\nheads = 0.5\nwhen = "during"\n[variants.quantize]\n',
         "units are cut after the training, which would undo what quantize does"),
        (GOOD + '[[variants]]\nname = "a"\nstart = "b"\n[variants.distill]\n',
         "variant 'a' starts from 'b'; before it come baseline"),
        (GOOD + '[[variants]]\nname = "a"\n[variants.quantize]\n[[variants]]\nname = "b"\nstart = "a"\n'
         '[variants.distill]\n', "would train 'a' off the values that its section quantize gave it; quantize last"),
        (GOOD + '[[variants]]\nname = "a"\n[variants.prune]\nsparsity = 0.5\n[[variants]]\nname = "b"\n'
         'start = "a"\n[variants.distill]\n', "would train the zeros of 'a' away; give it a section prune"),
        ('name = "x"\n', "key 'schema' is missing"),
        ('schema = 2\nname = "x"\n', "schema: .*got 2"),
        ("schema = \n", "is not TOML"),
    ],
)  # fmt: skip
def test_bad_recipes_are_explained_in_one_line(text, says, tmp_path):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(InputError, match=says) as caught:
        Recipe.load(tmp_path / "r.toml")
    assert "r.toml" in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_recipes_name_the_built_in_ones(tmp_path):
    with pytest.raises(
        MissingFileError, match="no recipe file 'dmo', and the built-in ones are demo, minilm-sst2, tiny-lm"
    ):
        Recipe.load("dmo")
    (tmp_path / "r.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not text in UTF-8"):
        Recipe.load(tmp_path / "r.toml")


def test_changes_are_checked_like_the_rest():
    recipe = Recipe.parse(GOOD).with_changes({"data.train": "a.tsv", "model.folder": None})
    assert recipe.data.train == "a.tsv" and recipe.model.folder is None
    with pytest.raises(InputError, match="unknown key 'data.trian'"):
        recipe.with_changes({"data.trian": "a.tsv"})
