"""What holds for the package as a whole: imports, names, documentation, types, the commands of the README."""

import ast
import graphlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gradcore
from gradcore import _kernels

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "gradcore"

# A room, which is a module or a folder of modules, imports from lower floors only.
FLOORS = [
    {"_kernels", "reference"},
    {"_base"},
    {"init", "losses"},
    {"clip"},
    {"layers"},
    {"regularizers", "optim", "data"},
    {"spectral"},
    {"meanfield"},
    {"training"},
    {"diagnosis", "viewer"},
    {"cli"},
    {"__main__", "onnx", "sklearn", "torch"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def files(room: str) -> list[Path]:
    """The source of a room."""
    return sorted((PACKAGE / room).rglob("*.py")) or [PACKAGE / f"{room}.py"]


def imported(module: Path) -> set[str]:
    """The gradcore modules that a file imports anywhere, as dotted names below the package."""
    names = set()
    for node in ast.walk(ast.parse(module.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            first, _, rest = node.module.partition(".")
            if first == "gradcore":
                names |= {f"{rest}.{alias.name}".strip(".") for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("gradcore.")}
    return names - {"__version__"}


def test_every_room_has_a_floor() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} | {"_kernels"}
    assert modules | {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == FLOOR.keys()


@pytest.mark.parametrize("room", sorted(FLOOR.keys() - {"_kernels"}))
def test_imports_go_downwards(room: str) -> None:
    for file in files(room):
        for name in imported(file):
            other = name.partition(".")[0]
            assert other == room or FLOOR[other] < FLOOR[room], f"{file.relative_to(PACKAGE)} imports {other}"


@pytest.mark.parametrize("room", sorted(room for room in FLOOR if (PACKAGE / room).is_dir()))
def test_no_circles_within_a_folder(room: str) -> None:
    below: dict[str, set[str]] = {}
    for file in files(room):
        part = file.relative_to(PACKAGE / room).with_suffix("").parts[0]  # a module, or a folder as a whole
        if part != "__init__":
            names = {parts[1] for parts in (name.split(".") for name in imported(file)) if parts[0] == room}
            below[part] = below.get(part, set()) | names - ({part} if file.stem != part else set())
    assert {name for names in below.values() for name in names} <= below.keys(), "import from the file that defines it"
    tuple(graphlib.TopologicalSorter(below).static_order())  # raises CycleError


def test_the_twin_imports_numpy_only() -> None:
    nodes = [node for file in files("reference") for node in ast.walk(ast.parse(file.read_text("utf-8")))]
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    modules |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    others = {name for name in modules if not name.startswith("gradcore.reference.")}
    assert {name.partition(".")[0] for name in others} - sys.stdlib_module_names == {"numpy"}


def test_import_loads_neither_scipy_nor_what_training_does_not_need() -> None:
    """What `import gradcore` leaves for its first use stays out until then."""
    code = "import sys, gradcore; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "gradcore" in loaded
    assert "scipy" not in loaded
    assert not {f"gradcore.{name}" for name in ("claims", "data", "diagnosis", "meanfield", "spectral")} & {*loaded}


@pytest.mark.parametrize("name", ["claims", "data", "diagnose", "meanfield", "monitor", "spectral"])
def test_modules_are_loaded_on_first_use(name: str) -> None:
    use = f"gradcore.{name}" if name in ("data", "diagnose") else f"from gradcore import {name}"
    code = f"import gradcore; assert {name!r} in dir(gradcore); {use}; print(gradcore.{name}.__name__)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip().rpartition(".")[2] == name


def test_other_attributes_are_missing() -> None:
    name = "nothing"
    with pytest.raises(AttributeError, match=r"^module 'gradcore' has no attribute 'nothing'$"):
        getattr(gradcore, name)


def test_import_loads_no_optional_package() -> None:
    optional = ("torch", "jax", "matplotlib", "safetensors", "typer", "rich", "click", "hypothesis", "pytest")
    optional += ("bokeh", "duckdb", "openpyxl", "charset_normalizer", "onnx", "sklearn")
    code = f"import sys, gradcore; print([name for name in {optional} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_source_folder_without_kernels_says_so(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "gradcore", ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))
    command = [sys.executable, "-S", "-c", "import gradcore"]  # -S: an installed copy is out of sight
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
    assert run.stderr.splitlines()[-1].startswith("ImportError: gradcore: no compiled kernels in")


def test_the_stub_names_what_the_extension_has() -> None:
    tree = ast.parse((PACKAGE / "_kernels.pyi").read_text())
    stub = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    stub |= {
        node.target.id for node in tree.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    public = {
        name for name, value in vars(_kernels).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert {name for name in stub if not name.startswith("_")} == public


def test_the_version_is_read_from_the_source_without_kernels(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "gradcore", ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))
    expand = pytest.importorskip("setuptools.config.expand")
    assert expand.read_attr("gradcore.__version__", root_dir=tmp_path) == gradcore.__version__
    assert not re.search('^version = "', (ROOT / "pyproject.toml").read_text(), flags=re.M)


def public_objects() -> list[tuple[str, object]]:
    """Everything that users call: the package's names and those of its public modules."""
    found = []
    for name in gradcore.__all__:
        value = getattr(gradcore, name)
        if inspect.ismodule(value):
            members = [(f"{name}.{member}", getattr(value, member)) for member in getattr(value, "__all__", ())]
            found += [(member, thing) for member, thing in members if callable(thing)]
        elif callable(value):
            found.append((name, value))
    return found


@pytest.mark.parametrize(("name", "value"), public_objects(), ids=lambda value: value if isinstance(value, str) else "")
def test_public_names_are_documented(name: str, value: object) -> None:
    assert inspect.getdoc(value), name
    assert "Examples\n" in (inspect.getdoc(value) or ""), f"{name} has no example"


def test_all_names_exist() -> None:
    for name in gradcore.__all__:
        assert hasattr(gradcore, name), name


def test_no_flag_that_ships_what_only_this_machine_runs() -> None:
    text = (ROOT / "setup.py").read_text()
    code = "\n".join(line.partition("#")[0] for line in text.splitlines())
    assert not re.search(r"march=native|ffast-math|Ofast", code)


def peers_of(code: str) -> list[str]:
    """The libraries that an example needs besides what the tests need."""
    return re.findall(r"^(?:import|from) (torch|onnxruntime|sklearn)\b", code, flags=re.M)


class TestPages:
    """The pages of the project: README.md, docs/ and what lies beside them."""

    pages = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")])
    each_page = pytest.mark.parametrize("page", pages, ids=lambda page: page.relative_to(ROOT).as_posix())

    def test_the_test_command_is_the_one_that_runs(self) -> None:
        command = 'pip install -e ".[test]" && pytest -n 2'
        assert command in (ROOT / "README.md").read_text()
        assert command in (ROOT / ".ci" / "run").read_text().splitlines()

    @pytest.mark.parametrize(
        "code",
        [
            pytest.param(code, id=f"{page.stem}-{i}", marks=[pytest.mark.peers] if peers_of(code) else [])
            for page in pages
            for i, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S))
        ],
    )
    def test_an_example_runs_as_printed(self, code: str, tmp_path: Path) -> None:
        for peer in peers_of(code):
            pytest.importorskip(peer)
        words, env = [sys.executable, "-W", "error", "-c", code], {**os.environ, "PYTHONPATH": str(ROOT)}
        run = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
        assert run.returncode == 0, run.stderr
        assert run.stdout.strip()

    @each_page
    def test_links_lead_somewhere(self, page: Path) -> None:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), target


def test_no_tracked_file_is_large() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    run = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    sizes = {name: (ROOT / name).stat().st_size for name in run.stdout.split("\0") if name and (ROOT / name).exists()}
    assert {name: size for name, size in sizes.items() if size > 500_000} == {}


def test_the_installed_package_is_small() -> None:
    """The module, which has each kernel up to six times, and the data; the wheel has half of these bytes.

    The sources, most of them docstrings, shrink to a quarter there.
    """
    files = [path for path in Path(gradcore.__file__).parent.rglob("*") if "__pycache__" not in path.parts]
    assert (
        sum(path.stat().st_size for path in files if path.suffix in (".so", ".pyd", ".csv", ".gz", ".css", ".js"))
        < 2_500_000
    )


def test_the_extension_exports_its_entry_point_only() -> None:
    if not sys.platform.startswith("linux") or shutil.which("nm") is None:
        pytest.skip("asks nm of binutils")
    command = ["nm", "-D", "--defined-only", "--format=just-symbols", _kernels.__file__]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["PyInit__kernels"]


def test_spelling_is_american() -> None:
    roots = ("regular", "normal", "initial", "optim", "recogn", "serial", "summar", "minim", "maxim", "general")
    words = [f"{root}is[aei]" for root in roots] + [f"{root}our" for root in ("col", "behavi", "neighb")]
    british = re.compile("|".join(words))
    files = [path for place in ("gradcore", "docs", "bench") for path in (ROOT / place).rglob("*.[mp][dy]")]
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in [ROOT / "README.md", *files]
        for line in path.read_text("utf-8").splitlines()
        if british.search(line.lower())
    ]
    assert not found


@pytest.mark.wheel
def test_a_wheel_from_the_sdist_is_small_and_whole(tmp_path: Path) -> None:
    """Builds the sdist, from it the wheel, each as pip would; what is inside must be what runs."""
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(tmp_path), str(ROOT)], check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 5_000_000
    place = tmp_path / "place"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(place), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    code = "import gradcore; print(gradcore.__file__); gradcore.RNN(2, 3)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=place,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(place)},
    )
    assert Path(run.stdout.strip()).is_relative_to(place)
    assert (place / "gradcore" / "py.typed").exists()
    assert not list(place.glob("gradcore/*.c"))
