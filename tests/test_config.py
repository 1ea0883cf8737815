"""Recipes: how they are read, overridden, extended and refused, and that every knob does something."""

import ast
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

import warmline
from warmline.config.fields import ConfigError
from warmline.config.reading import load_recipe, recipe_names
from warmline.config.recipe import Recipe
from warmline.config.training import HeadsSettings, LoraSettings
from warmline.data.labels import LABEL_SETS

from .conftest import ToyRecipe

NUM_KNOBS = 108  # a new knob needs a reason; then change this number


def refusal(name: str | Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(name), overrides)
    return str(caught.value)


def models_of(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from models_of(part)


def knobs(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every setting that is not a section, by dotted path (NAME: any key), with the section that it stands in."""
    for name, field in model.model_fields.items():
        sections = list(models_of(field.annotation))
        below = f"{path}{name}." + ("NAME." if "dict" in str(field.annotation) else "")
        if not sections:
            yield path + name, model
        for section in sections:
            yield from knobs(section, below)


# ---- reading ----


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads_under_its_own_name_and_says_what_it_is(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description.endswith(".")


def test_the_promised_recipes_ship() -> None:
    assert {"tiny", "tiny-real", "qwen2.5-7b", "qwen2.5-3b"} <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_states_the_weight_of_every_head(name: str) -> None:
    stated = {head: settings.model_fields_set for head, settings in load_recipe(name).heads}
    assert stated.keys() == LABEL_SETS.keys()
    assert all("weight" in fields for fields in stated.values())


def test_a_recipe_reads_the_same_from_yaml_and_from_json(tmp_path: Path, toy_recipe: ToyRecipe) -> None:
    as_yaml = toy_recipe()
    as_json = tmp_path / "toy.json"
    as_json.write_text(json.dumps(yaml.safe_load(as_yaml.read_text())), encoding="utf-8")
    as_yml = as_yaml.rename(as_yaml.with_suffix(".yml"))
    assert load_recipe(str(as_json)) == load_recipe(str(as_yml))


def test_a_recipe_without_a_name_is_named_after_its_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: tiny\n")
    assert load_recipe(str(tmp_path / "mine.yaml")).name == "mine"


def test_what_a_recipe_states_arrives_and_what_it_does_not_state_has_the_default(toy_recipe: ToyRecipe) -> None:
    recipe = load_recipe(str(toy_recipe(data__alpha=0.25)))
    assert recipe.data.alpha == 0.25
    assert recipe.heads.risk.kind == "ordinal"
    assert recipe.model.lora == LoraSettings(r=4, alpha=8, dropout=0.0)
    assert recipe.sft.optim.max_grad_norm == 1.0
    assert recipe.base is None


def test_a_weight_of_zero_takes_a_head_out_of_the_active_ones(toy_recipe: ToyRecipe) -> None:
    recipe = load_recipe(str(toy_recipe()), ["heads.risk.weight=0", "heads.emotion.weight=0"])
    assert [name for name, _ in recipe.heads.active()] == ["situation", "strategy", "affect"]


def test_settings_survive_the_recipe_file_of_a_run_folder() -> None:
    recipe = load_recipe("qwen2.5-7b")
    text = yaml.safe_dump(recipe.model_dump(mode="json"))
    assert Recipe.model_validate(yaml.safe_load(text)) == recipe


def test_settings_cannot_be_assigned_to() -> None:
    recipe = load_recipe("tiny")
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 8  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValidationError, match="frozen"):
        recipe.sft.optim.batch_size = 1  # pyright: ignore[reportAttributeAccessIssue]


# ---- --set ----


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=11", "seed", 11),
        ("sft.optim.learning_rate=1e-4", "sft.optim.learning_rate", 1e-4),  # YAML 1.1 reads this as text
        ("sft.optim.packing=true", "sft.optim.packing", True),
        ("model.lora.targets=q_proj", "model.lora.targets", ("q_proj",)),
        ("model.lora.targets=[q_proj, v_proj]", "model.lora.targets", ("q_proj", "v_proj")),
        ("model.system_prompt=Listen = first.", "model.system_prompt", "Listen = first."),
        ("model.system_prompt=null", "model.system_prompt", None),
        ("data.sources.bundled.max_conversations=3", "data.sources.bundled.max_conversations", 3),
        ("data.alpha=null", "data.alpha", 0.5),  # null goes back to the default
    ],
)
def test_an_override_reaches_its_setting_with_its_type(override: str, path: str, value: object) -> None:
    found: Any = load_recipe("tiny", [override])
    for part in path.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_an_override_leaves_its_neighbours_alone() -> None:
    before, after = load_recipe("tiny"), load_recipe("tiny", ["sft.optim.batch_size=2"])
    assert after.sft.optim == before.sft.optim.model_copy(update={"batch_size": 2})
    assert after.heads == before.heads


def test_the_last_of_two_overrides_wins() -> None:
    assert load_recipe("tiny", ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize("override", ["seed", "=7", "sft..steps=2", ".seed=7", "sft.=7"])
def test_an_override_that_is_no_assignment_is_shown_as_typed(override: str) -> None:
    assert refusal("tiny", override) == f"--set {override!r}: expected a.b=value"


def test_an_override_whose_value_is_broken_yaml_is_refused() -> None:
    assert refusal("tiny", "model.lora.targets=[q") == "--set 'model.lora.targets=[q': the value is not valid YAML"


# ---- extends ----


def test_a_recipe_takes_all_that_it_does_not_state_from_the_one_that_it_extends(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text("description: Less.\nextends: tiny\nsft: {optim: {batch_size: 4}}\n")
    tiny, small = load_recipe("tiny"), load_recipe(str(tmp_path / "small.yaml"))
    assert small.sft.optim.batch_size == 4
    assert small.sft.optim.learning_rate == tiny.sft.optim.learning_rate
    assert (small.data, small.heads, small.model) == (tiny.data, tiny.heads, tiny.model)


def test_null_removes_what_the_extended_recipe_has() -> None:
    real = load_recipe("tiny-real")
    assert set(real.data.sources) == {"esconv", "empathetic_dialogues", "goemotions"}
    assert real.sft.epochs is None  # tiny states epochs, tiny-real steps


def test_a_recipe_file_extends_a_file_beside_it_from_any_working_folder(
    tmp_path: Path, toy_recipe: ToyRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_recipe()
    (tmp_path / "child.yaml").write_text("extends: toy.yaml\nname: child\nseed: 3\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    child = load_recipe("../child.yaml")
    assert (child.name, child.seed) == ("child", 3)
    assert child.model == load_recipe("../toy.yaml").model


def test_a_recipe_that_extends_itself_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: a.yaml\n")
    assert "extends itself" in refusal(tmp_path / "a.yaml")


def test_a_circle_of_recipes_is_refused_and_shown(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    assert refusal(a) == f"{a}: extends itself ({a} -> {b} -> {a})"


def test_extending_a_recipe_that_does_not_exist_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: tiny-reel\n")
    assert "no recipe 'tiny-reel' (did you mean 'tiny-real'?)" in refusal(tmp_path / "a.yaml")


@pytest.mark.parametrize("extends", ["[tiny, tiny-real]", "7", "{recipe: tiny}"])
def test_extends_takes_one_name(tmp_path: Path, extends: str) -> None:
    (tmp_path / "a.yaml").write_text(f"extends: {extends}\n")
    message = refusal(tmp_path / "a.yaml")
    assert message.startswith(f"{tmp_path / 'a.yaml'}: extends:")


# ---- what is refused ----


def test_a_mistyped_recipe_name_names_the_nearest_and_how_to_list_them() -> None:
    assert refusal("tniy") == "no recipe 'tniy' (did you mean 'tiny'?); `warmline recipes` lists them"


def test_a_recipe_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.yaml") == f"recipe file {tmp_path / 'none.yaml'} does not exist"


@pytest.mark.parametrize(
    ("override", "path", "hint"),
    [
        ("sede=7", "sede", "seed"),
        ("modle.base=x", "modle", "model"),
        ("sft.optim.learning_rat=1", "sft.optim.learning_rat", "learning_rate"),
        ("model.lora.rank=1", "model.lora.rank", None),  # nothing is near
        ("heads.emotion.wieght=1", "heads.emotion.wieght", "weight"),
        ("heads.strateggy.weight=1", "heads.strateggy", "strategy"),
        ("data.sources.bundled.locaton=x", "data.sources.bundled.locaton", "location"),
        ("base.hiden_size=64", "base.hiden_size", "hidden_size"),  # in an optional section
    ],
)
def test_a_mistyped_key_names_its_path_and_the_nearest_key(override: str, path: str, hint: str | None) -> None:
    assert refusal("tiny", override) == f"{path}: unknown key" + (f" (did you mean {hint!r}?)" if hint else "")


@pytest.mark.parametrize(
    ("override", "start"),
    [
        ("sft.optim.learning_rate=fast", "sft.optim.learning_rate: "),
        ("sft.optim.learning_rate=-1", "sft.optim.learning_rate: Input should be greater than 0 (found -1)"),
        ("sft.optim.batch_size=0", "sft.optim.batch_size: "),
        ("sft.optim.batch_size=1.5", "sft.optim.batch_size: "),
        ("data.alpha=1.01", "data.alpha: Input should be less than or equal to 1 (found 1.01)"),
        ("model.quantization=nf5", "model.quantization: Input should be 'none', 'nf4' or 'int8' (found 'nf5')"),
        ("model.lora.r=0", "model.lora.r: "),
        ("heads.risk.kind=softmix", "heads.risk.kind: "),
        ("data.sources.bundled=null", "data.sources: Dictionary should have at least 1 item"),
        ("data.sources=null", "data.sources: missing, and it has no default"),
        ("data.sources.bundled=5", "data.sources.bundled: "),
        ("heads.risk=null", "heads.risk: missing, and it has no default"),
        ("sft.optim=fast", "sft.optim: "),
        ("eval.split=train", "eval.split: Input should be 'validation' or 'test' (found 'train')"),
        ("base=null", "recipe: model.base is tiny: the recipe needs a section base"),
        ("base.sources=[bundeld]", "recipe: base.sources names 'bundeld', which is not in data.sources"),
    ],
)
def test_a_bad_value_is_refused_in_one_line_with_its_path(override: str, start: str) -> None:
    message = refusal("tiny", override)
    assert message.startswith(start)
    assert "\n" not in message


def test_every_problem_of_a_recipe_is_told_at_once() -> None:
    message = refusal("tiny", "sede=7", "data.alpha=2", "model.lora.r=0")
    assert {line.split(":")[0] for line in message.splitlines()} == {"sede", "data.alpha", "model.lora.r"}


@pytest.mark.parametrize("overrides", [["sft.epochs=null"], ["sft.steps=5"]])
def test_exactly_one_of_epochs_and_steps_must_be_stated(overrides: list[str]) -> None:
    assert load_recipe("tiny").sft.epochs is not None
    assert refusal("tiny", *overrides) == "sft: state exactly one of epochs and steps (set the other to null)"
    assert load_recipe("tiny", ["sft.epochs=null", "sft.steps=5"]).sft.steps == 5


def test_a_recipe_that_trains_nothing_is_refused() -> None:
    weights = ["sft.lm_weight=0", *(f"heads.{name}.weight=0" for name in LABEL_SETS)]
    assert refusal("tiny", *weights) == "recipe: every weight is 0: nothing to train"
    assert load_recipe("tiny", weights[1:]).sft.lm_weight == 1


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("broken.yaml", b"model: {base: tiny\nseed: 7\n", "not valid YAML or JSON: "),
        ("broken.json", b'{"seed": 7,', "not valid YAML or JSON: "),
        ("list.yaml", b"- seed\n", "expected a mapping of settings, found list"),
        ("empty.yaml", b"", "expected a mapping of settings, found NoneType"),
        ("latin.yaml", "description: Größe\n".encode("latin-1"), "not UTF-8"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line_with_its_path(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    message = refusal(tmp_path / name)
    assert message.startswith(f"{tmp_path / name}: {reason}")
    assert "\n" not in message


# ---- the knobs ----


def test_the_number_of_knobs_is_frozen() -> None:
    paths = [path for path, _ in knobs(Recipe)]
    assert len(set(paths)) == len(paths)
    assert len(paths) == NUM_KNOBS, "a knob came or went: is it worth a setting, and is it on the settings page?"


def test_every_knob_is_read_somewhere() -> None:
    """Each section's knob needs a place of its own that reads an attribute of its name (a call is a method's)."""
    reads: Counter[str] = Counter()
    package = Path(warmline.__file__).parent
    for file in package.rglob("*.py"):
        if file.parent.name == "config":
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        reads.update(
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and id(node) not in called
        )
    assert reads["learning_rate"] > 0
    wanted = Counter(name for _, name in {(section, path.rpartition(".")[2]) for path, section in knobs(Recipe)})
    assert {name: count for name, count in wanted.items() if reads[name] < count} == {}


def test_every_section_of_heads_is_a_head_that_the_program_knows() -> None:
    assert HeadsSettings.model_fields.keys() == LABEL_SETS.keys()  # read by name: getattr(heads, "emotion")
