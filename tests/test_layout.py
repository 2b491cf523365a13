"""The import table, the size of functions and files, and what else of the code's shape can be held by a test."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "lib_loraclr"
FILES = sorted([*LIBRARY.rglob("*.py"), *(ROOT / "scripts").rglob("*.py")])

#: top-level names of the WebUI's own modules, of its Lora extension, and of the model code it brings (Forge's too)
WEBUI = {
    *("modules", "modules_forge", "backend", "launch", "webui", "scripts"),
    *("network", "networks", "lora", "lora_patches", "lora_script", "lora_logger", "ui_extra_networks_lora"),
    *("extra_networks_lora", "ldm", "sgm", "k_diffusion", "ldm_patched"),
}
STAND_ALONE = {"diffusers", "transformers", "yaml", "accelerate", "peft"}

#: who alone may import it (files, or folders by their trailing slash), even inside a function
TABLE = {
    "the WebUI": (
        WEBUI,
        (
            *("lib_loraclr/hosts/webui/", "lib_loraclr/hosts/a1111/", "lib_loraclr/hosts/forge/"),
            *("lib_loraclr/doors/webui/", "scripts/"),
        ),
    ),
    "the WebUI's front end": ({"gradio", "fastapi", "starlette"}, ("lib_loraclr/doors/webui/",)),
    "diffusers and what comes with it": (STAND_ALONE, ("lib_loraclr/hosts/diffusers/",)),
}
#: the rooms of the library in the order of the data flow: each may use those before it, and nothing that comes after
ORDER = (
    *("errors", "progress", "request", "model", "files", "recording", "solving", "refining", "output", "merge"),
    *("hosts", "doors"),
)
#: rooms inside which others stand that know nothing of each other
SEPARATE = ("hosts", "doors")
#: but for these: what each is built on, or chooses from
BUILT_ON = {
    ("hosts", "a1111"): {("hosts", "webui")},
    ("hosts", "forge"): {("hosts", "webui")},
    ("hosts", "running"): {("hosts", "webui"), ("hosts", "a1111"), ("hosts", "forge")},
}
WITHOUT_TORCH = ("errors", "progress", "request")
#: what a person who opens the library may see at once
MOST_ROOMS = 12

LONGEST_FUNCTION, LONGEST_FILE = 60, 400


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def foreign_names(node: ast.AST) -> Iterator[str]:
    """Top-level names that a piece of code imports from outside its package, also by `import_module` and `__import__`."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.level == 0:
            yield child.module.partition(".")[0]
        elif isinstance(child, ast.Call):
            called = child.func.attr if isinstance(child.func, ast.Attribute) else getattr(child.func, "id", "")
            if called in ("import_module", "__import__"):
                yield from _literal_names(child)


def _literal_names(call: ast.Call) -> Iterator[str]:
    for part in ast.walk(call.args[0]):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value.partition(".")[0]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES if path.is_relative_to(LIBRARY)}


def import_time_statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported: not those in functions, nor those for type checkers."""
    for statement in body:
        if isinstance(statement, ast.If | ast.Try | ast.With | ast.ClassDef):
            if "TYPE_CHECKING" not in ast.dump(getattr(statement, "test", statement)):
                yield from import_time_statements(statement.body)
            for name in ("orelse", "finalbody"):
                yield from import_time_statements(getattr(statement, name, []))
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            yield statement


def own_imports(name: str) -> set[str]:
    """Modules of the library that one of its modules imports when it is imported itself."""
    path, found = MODULES[name], set()
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    for statement in import_time_statements(tree(path).body):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
            continue
        base = package
        for _ in range(statement.level - 1):
            base = base.rpartition(".")[0]
        origin = ".".join(filter(None, (base if statement.level else "", statement.module)))
        members = {f"{origin}.{alias.name}" for alias in statement.names}
        submodules = members & set(MODULES)
        found |= submodules
        if members - submodules:  # at least one name is defined in the package's or module's own file
            found.add(origin)
    return found & set(MODULES)


GRAPH = {name: own_imports(name) for name in MODULES}


@pytest.mark.parametrize("what", TABLE)
def test_only_those_named_in_the_table_import(what: str) -> None:
    names, allowed = TABLE[what]
    offenders = {
        relative(path): sorted(names & set(foreign_names(tree(path))))
        for path in FILES
        if names & set(foreign_names(tree(path))) and not relative(path).startswith(allowed)
    }
    assert not offenders


def test_the_walk_sees_every_way_to_import() -> None:
    """The control of the test above, whose table would hold for any code if the walk saw nothing."""
    source = """
import modules.shared as shared
def later():
    from gradio.blocks import Blocks
    importlib.import_module("networks")
    import_module(f"lora.{name}")
    __import__("diffusers")
from .modules import mine
"""
    assert set(foreign_names(ast.parse(source))) == {"modules", "gradio", "networks", "lora", "diffusers"}
    assert {"diffusers", "transformers", "yaml"} <= set(
        foreign_names(tree(LIBRARY / "hosts" / "diffusers" / "loading.py"))
    )


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_what_a_door_needs_to_show_a_form_imports_no_torch_not_even_through_others(name: str) -> None:
    reached, waiting = set(), [f"lib_loraclr.{name}"]
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += GRAPH[module]
    for module in {*reached, "lib_loraclr"}:
        names = set(foreign_names(tree(MODULES[module])))
        assert not names & {"torch", "safetensors", "numpy"}, module
        assert names <= set(sys.stdlib_module_names), module


def test_the_webui_does_not_wait_for_the_engine_when_it_starts() -> None:
    """What its script imports is little: under 0.2 s of a start that nobody may notice."""
    reached, waiting = (
        set(),
        ["lib_loraclr.doors.webui.settings", "lib_loraclr.doors.webui.start", "lib_loraclr.doors.webui.tab"],
    )
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += GRAPH[module]
    engine = {"merge", "recording", "refining", "output"}
    doors = {"actions", "jobs", "check", "routes", "estimate", "pace"}
    late = {f"lib_loraclr.{name}" for name in engine} | {f"lib_loraclr.doors.webui.{name}" for name in doors}
    assert late <= set(MODULES), "control: the modules are called so"
    assert not late & reached
    script = (ROOT / "scripts" / "loraclr.py").read_text("utf-8")
    assert "from lib_loraclr.doors.webui import settings, start, tab\n" in script
    registered = script.count("script_callbacks.on_")
    assert registered == 3, "each of them takes as long as ten modules"
    assert "if start.has_routes():\n    script_callbacks.on_app_started(start.add_routes)\n" in script


def test_a_request_is_checked_where_torch_is_not_installed() -> None:
    """The same, as Python sees it."""
    code = "import sys; sys.modules['torch'] = None\n" + "\n".join(
        f"import lib_loraclr.{name}" for name in WITHOUT_TORCH
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def rooms_of(name: str) -> tuple[str, ...]:
    """The rooms a module stands in, from the outside in: a folder of the library, and within `SEPARATE` ones the next."""
    parts = [part for part in name.split(".")[1:] if not part.startswith("__")]
    return tuple(parts[: 2 if parts and parts[0] in SEPARATE else 1])


def every_import(name: str) -> Iterator[tuple[str, str]]:
    """`(module, name in it)` of all that a module of the library takes from the library, also inside functions."""
    path = MODULES[name]
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("lib_loraclr")):
            base = package
            for _ in range(node.level - 1):
                base = base.rpartition(".")[0]
            origin = ".".join(filter(None, (base if node.level else "", node.module)))
            for alias in node.names:
                whole = f"{origin}.{alias.name}"
                yield (whole, "") if whole in MODULES else (origin, alias.name)


def arrows() -> Iterator[tuple[str, str, str]]:
    """`(module, module it takes something from, what)` from one room to another; what every room may use is left out."""
    for name in MODULES:
        for origin, what in every_import(name):
            if rooms_of(origin) and rooms_of(origin) != rooms_of(name) and rooms_of(name):
                yield name, origin, what


def test_what_stands_at_the_top_is_the_data_flow() -> None:
    seen = {path.stem for path in LIBRARY.iterdir() if not path.name.startswith("_")}
    assert seen == set(ORDER) and len(seen) <= MOST_ROOMS


def test_no_arrow_goes_up() -> None:
    """Each room uses what comes before it in the data flow, at import and later."""
    up = [
        f"{name} -> {origin}"
        for name, origin, _ in arrows()
        if ORDER.index(rooms_of(origin)[0]) >= ORDER.index(rooms_of(name)[0])
        and rooms_of(origin) not in BUILT_ON.get(rooms_of(name), ())
    ]
    assert not up


def test_a_room_is_entered_by_its_face() -> None:
    """What others may use of a folder is what its `__init__` has; the files behind it are its own affair."""
    around = [
        f"{name} -> {origin}.{what}"
        for name, origin, what in arrows()
        if origin.split(".")[1:] != list(rooms_of(origin))
        and MODULES[f"lib_loraclr.{rooms_of(origin)[0]}"].stem == "__init__"
    ]
    assert not around


def test_a_face_says_all_that_it_shows() -> None:
    for room in ORDER:
        path = MODULES[f"lib_loraclr.{room}"]
        if path.stem == "__init__" and room not in SEPARATE:
            imported = {
                alias.asname or alias.name
                for node in tree(path).body
                if isinstance(node, ast.ImportFrom)
                for alias in node.names
            }
            listed = next(
                {part.value for part in node.value.elts}
                for node in tree(path).body
                if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
            )
            assert imported == listed, room


def test_a_face_shows_nothing_that_nobody_uses() -> None:
    used = {(origin.split(".")[1], what) for _, origin, what in arrows()}
    for place in ("bench", "tests"):
        for path in (ROOT / place).rglob("*.py"):
            for node in ast.walk(tree(path)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lib_loraclr."):
                    used |= {(node.module.split(".")[1], alias.name) for alias in node.names}
    for room in ORDER:
        path = MODULES[f"lib_loraclr.{room}"]
        if path.stem == "__init__" and room not in SEPARATE:
            shown = {alias.name for node in tree(path).body if isinstance(node, ast.ImportFrom) for alias in node.names}
            assert {(room, name) for name in shown} <= used, room


def test_the_walk_would_see_an_arrow_that_goes_up() -> None:
    """The control of the tests above: arrows that are there are seen, also those inside functions."""
    seen = {(name.removeprefix("lib_loraclr."), origin.removeprefix("lib_loraclr.")) for name, origin, _ in arrows()}
    assert {("merge.merging", "refining"), ("files.deltas", "model"), ("doors.cli.console", "hosts.diffusers")} <= seen
    assert all(ORDER.index("errors") < ORDER.index(room) for room in ORDER[1:])


def test_imports_inside_a_room_go_one_way() -> None:
    """No cycle when a module is imported.

    A package's `__init__` is left out where one of its own files imports it: it registers its files last (methods), after
    all that they need of it is defined.
    """
    graph = {name: {used for used in uses if not name.startswith(f"{used}.")} for name, uses in GRAPH.items()}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
    assert order.index("lib_loraclr.solving.methods.ridge") < order.index("lib_loraclr.merge.merging")
    with pytest.raises(CycleError):  # the control
        TopologicalSorter({**graph, "lib_loraclr.errors": {"lib_loraclr.merge"}}).prepare()


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_files_and_functions_are_short(path: Path) -> None:
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= LONGEST_FILE
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{node.name} has {length} lines, its docstring included"


@pytest.mark.parametrize(
    "path", [path for path in FILES if not relative(path).startswith("lib_loraclr/doors/cli/")], ids=relative
)
def test_only_the_command_line_prints(path: Path) -> None:
    called = {
        node.func.id for node in ast.walk(tree(path)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert "print" not in called


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_every_file_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(tree(path))
