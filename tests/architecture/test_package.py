"""The package as people get it: complete, importable from anywhere, documented module by module."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for folder in ("mesh", "workers", "tasks") for path in sorted((ROOT / folder).rglob("*.py"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def installed_name(path: Path) -> str:
    """The path inside the wheel of a source file."""
    relative = path.relative_to(ROOT)
    return str(relative if relative.parts[0] == "mesh" else Path("mesh") / relative)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that the repository stays as it is."""
    work = tmp_path_factory.mktemp("wheel")
    copy = work / "source"
    copy.mkdir()
    for name in ("mesh", "workers", "tasks"):
        for path in (ROOT / name).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                target = copy / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    for name in ("pyproject.toml", "README.md"):
        if (ROOT / name).exists():
            (copy / name).write_bytes((ROOT / name).read_bytes())
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, str(work)],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (built,) = work.glob("*.whl")
    return built


def test_every_package_folder_is_listed() -> None:
    folders = {
        installed_name(path.parent).replace("/", ".") for path in SOURCES if path.name == "__init__.py"
    }
    assert folders == set(PROJECT["tool"]["setuptools"]["packages"])


def test_every_folder_with_modules_is_a_package() -> None:
    assert [str(path) for path in SOURCES if not (path.parent / "__init__.py").exists()] == []


def test_the_wheel_has_every_module_and_every_script(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    scripts = {str(path.relative_to(ROOT)) for path in (ROOT / "mesh").rglob("*.lua")}
    page = {str(path.relative_to(ROOT)) for path in (ROOT / "mesh/coordinator/page").iterdir()}
    assert scripts and page, "the store's scripts, the status page"
    assert {installed_name(path) for path in SOURCES} | scripts | page | {
        "mesh/py.typed",
        "mesh/core/policies.json",
    } <= names
    assert not [name for name in names if name.split("/")[0] in ("workers", "tasks", "tests")]


def test_the_wheel_works_with_the_sources_gone(wheel: Path, tmp_path: Path) -> None:
    unpacked = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    assert imported_from(tmp_path, unpacked) == [
        str(unpacked / "mesh" / name) for name in ("workers", "tasks")
    ]


@pytest.mark.parametrize("where", ["repository", "elsewhere", "own modules"])
def test_ours_is_imported_from_anywhere(where: str, tmp_path: Path) -> None:
    if where == "own modules":
        (tmp_path / "tasks.py").write_text("raise ImportError('a user`s tasks.py hides ours')")
        (tmp_path / "workers").mkdir()
        (tmp_path / "workers" / "__init__.py").write_text("raise ImportError('a user`s workers hides ours')")
    folder = ROOT if where == "repository" else tmp_path
    assert imported_from(folder, None) == [str(ROOT / "workers"), str(ROOT / "tasks")]


def imported_from(folder: Path, site: Path | None) -> list[str]:
    """Where mesh.workers and mesh.tasks come from for a program that runs in `folder`."""
    code = (
        "import sys; sys.path[:0] = [p for p in sys.argv[1:] if p];"
        "import mesh.workers, mesh.tasks, pathlib;"
        "[print(pathlib.Path(m.__file__).parent) for m in (mesh.workers, mesh.tasks)]"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(site or "")], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("path", SOURCES, ids=installed_name)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_workers_and_tasks_import_each_other_relatively_only() -> None:
    """`import tasks` would find a user's own; `mesh.tasks` is unknown to tools that read the folders."""
    absolute = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in _absolute_names(node)
        if name.split(".")[0] in ("workers", "tasks") or name.startswith(("mesh.workers", "mesh.tasks"))
    ]
    assert absolute == []


def _absolute_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        return [node.module]
    return []


def test_importing_mesh_does_no_work() -> None:
    """Every command, also `mesh --help`, pays for it."""
    heavy = ("celery", "kombu", "redis", "fastapi", "click", "duckdb", "pydantic", "flower", "httpx2")
    code = f"import mesh, sys; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_mesh_exports_is_there_and_nothing_more_than_needed_is_loaded() -> None:
    code = (
        "import mesh, sys; names = [name for name in mesh.__all__ if getattr(mesh, name, None) is None];"
        "mesh.Mesh(redis_url='redis://nowhere').close();"
        "print(names, [name for name in ('httpx2', 'fastapi') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"


def test_the_lock_has_what_the_project_asks_for_and_no_addresses() -> None:
    """`make lock` after a change of the dependencies."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text
    locked = dict(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\]+)", text, flags=re.M))
    extras = PROJECT["project"]["optional-dependencies"]
    asked = [
        *PROJECT["project"]["dependencies"],
        *(line for name in ("demo", "test", "dev") for line in extras[name]),
    ]
    missing = []
    for line in asked:
        wanted = Requirement(line)
        version = locked.get(canonicalize_name(wanted.name))
        if version is None or version not in wanted.specifier:
            missing.append(line)
    assert missing == []
