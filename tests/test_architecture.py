"""The shape of the package: layers, light imports, no cycles, and files and functions that fit a reader's head."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import warmline

PACKAGE = Path(warmline.__file__).parent
TESTS = Path(__file__).parent
MAX_LINES, MAX_FUNCTION_LINES = 400, 60
# A module may import from its own part and from parts to the left; parts of one layer do not know each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("warmline",),  # the version
    ("config",),
    ("run_dir", "progress"),
    ("safety",),
    ("data",),
    ("objectives",),
    ("model",),
    ("train", "engine"),
    ("dialogue",),
    ("serve", "evaluate"),
    ("plan", "package"),
    ("pipeline", "doctor"),
    ("embed",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
BLIND_TO_WEIGHTS = ("dialogue", "serve", "evaluate")  # they speak to an Engine
HEAVY = (
    "model",
    "train",
    "objectives",
    "data.batches",
    "engine.local",
    "engine.decoding",
    "engine.continuous",
    "engine.lanes",
    "engine.slots",
    "package",
    "pipeline",
    "doctor",
    "safety.fit_network",  # fitting only: reading needs numpy alone
)  # may load torch


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(("warmline", *parts)).removesuffix(".__init__")


MODULES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def part_of(module: str) -> str:
    """The layer table's name of a module.

    >>> part_of("warmline.data.sources.hub")
    'data'
    """
    return module.split(".")[1] if "." in module else module


def is_heavy(module: str) -> bool:
    return any(f"{module}.".startswith(f"warmline.{heavy}.") for heavy in HEAVY)


def without_type_checking(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from without_type_checking(child)


def imports(file: Path, *, typing_too: bool) -> set[str]:
    """The modules of this package that a file imports, at its top or inside a function."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree) if typing_too else without_type_checking(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are written in full here"
            for alias in node.names:
                within = f"{node.module}.{alias.name}"
                found.add(within if within in MODULES else str(node.module))
    return {name for name in found if name.split(".")[0] == "warmline"}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_the_reader_of_imports_sees_every_form(tmp_path: Path) -> None:
    file = tmp_path / "some.py"
    file.write_text(
        "import warmline.config as c, torch\n"
        "from warmline.data import labels\n"
        "from warmline.data.labels import RISKS\n"
        "if TYPE_CHECKING:\n    from warmline.pipeline import Loaded\n"
        "def f():\n    from warmline import run_dir\n"
    )
    seen = {"warmline.config", "warmline.data.labels", "warmline.run_dir"}
    assert imports(file, typing_too=False) == seen
    assert imports(file, typing_too=True) == seen | {"warmline.pipeline"}


@pytest.mark.parametrize("module", MODULES)
def test_every_import_names_a_module_and_every_module_has_a_layer(module: str) -> None:
    assert part_of(module) in RANK
    assert imports(MODULES[module], typing_too=True) <= MODULES.keys()


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    here = part_of(module)
    found = {(name, part_of(name)) for name in imports(MODULES[module], typing_too=True)}
    assert [name for name, part in found if part != here and RANK[part] >= RANK[here]] == []


def test_train_and_engine_do_not_know_each_other() -> None:
    known = {module: imports(file, typing_too=True) for module, file in MODULES.items()}
    for one, other in (("train", "engine"), ("engine", "train")):
        of_one = {name for module, names in known.items() if part_of(module) == one for name in names}
        assert of_one, one
        assert [name for name in of_one if part_of(name) == other] == []


@pytest.mark.parametrize("module", [module for module in MODULES if part_of(module) in BLIND_TO_WEIGHTS])
def test_what_people_and_tables_see_knows_engines_only_by_their_protocol(module: str) -> None:
    found = imports(MODULES[module], typing_too=True)
    assert [name for name in found if is_heavy(name)] == []


@pytest.mark.parametrize("part", ["serve", "evaluate"])
def test_the_check_above_has_modules_to_look_at(part: str) -> None:
    assert any(part_of(module) == part for module in MODULES)


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: imports(file, typing_too=False) for module, file in MODULES.items()}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, which shows the circle
    assert order.index("warmline.config.reading") < order.index("warmline.run_dir") < order.index("warmline.cli")


def test_light_modules_load_without_torch() -> None:
    light = [module for module in MODULES if not is_heavy(module) and module != "warmline.__main__"]
    code = (
        "import importlib, json, sys\n"
        f"for name in {light!r}:\n"
        "    importlib.import_module(name)\n"
        "    if 'torch' in sys.modules: break\n"
        "else: name = None\n"
        "heavy = ['torch', 'transformers', 'peft', 'accelerate', 'bitsandbytes', 'datasets']\n"
        "print(json.dumps({'guilty': name, 'loaded': [each for each in heavy if each in sys.modules]}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"guilty": None, "loaded": []}
    assert {"warmline.cli", "warmline.data.tokenize", "warmline.evaluate.report", "warmline.serve.terminal"} <= {*light}


def test_packages_import_nothing_by_themselves() -> None:
    inits = {module: file for module, file in MODULES.items() if file.name == "__init__.py"}
    assert "warmline" in inits
    for module, file in inits.items():
        nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        assert not any(isinstance(node, ast.Import | ast.ImportFrom) for node in nodes), module


@pytest.mark.parametrize("module", MODULES)
def test_a_module_opens_with_what_it_is_for(module: str) -> None:
    docstring = ast.get_docstring(ast.parse(MODULES[module].read_text(encoding="utf-8"))) or ""
    assert docstring.splitlines()[:1], module
    assert docstring.splitlines()[0].endswith((".", ":")), docstring


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    files = [*MODULES.values(), *TESTS.rglob("*.py")]
    lengths = {str(file): len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert len(lengths) > 30
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_no_function_is_longer_than_a_screen() -> None:
    lengths: dict[str, int] = {}
    for module, file in MODULES.items():
        for function in functions(ast.parse(file.read_text(encoding="utf-8"))):
            assert function.end_lineno is not None
            lengths[f"{module}.{function.name}:{function.lineno}"] = function.end_lineno - function.lineno + 1
    assert len(lengths) > 100
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}


def test_only_the_loop_takes_gradients() -> None:
    """sft.py and base.py hand the loop their terms: a second copy of the loop would call backward itself."""
    callers = {module for module, file in MODULES.items() if ".backward(" in file.read_text(encoding="utf-8")}
    callers.remove("warmline.safety.fit_network")  # a network of its own, without stages, devices or checkpoints
    assert callers == {"warmline.train.loop"}
