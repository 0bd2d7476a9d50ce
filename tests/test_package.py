"""What ships: the wheel holds the tree, the commands start fast, the README names every command."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "stmae_data": "stmae_data",
    "stmae_train": "stmae_train",
    "cli/stmae_cli": "stmae_cli",
    "manifests": "stmae_manifests",
}
COMMANDS = {"stmae-data": "stmae_cli.data", "stmae-train": "stmae_cli.train"}


def test_the_wheel_holds_the_tree(tmp_path: Path) -> None:
    copy = tmp_path / "tree"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in listed:
        target = copy / name
        if (ROOT / name).is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    build = "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", build, str(tmp_path)], cwd=copy, check=True, capture_output=True
    )
    wheel = next(tmp_path.glob("*.whl"))
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = set()
    for folder, package in PACKAGES.items():
        for name in listed:
            if name.startswith(folder + "/") and Path(name).suffix in {".py", ".toml", ".typed"}:
                wanted.add(package + name.removeprefix(folder))
    assert shipped == wanted


@pytest.mark.parametrize("program", sorted(COMMANDS))
def test_help_takes_less_than_half_a_second_of_processor(program: str) -> None:
    code = f"from {COMMANDS[program]} import main; main()"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(
        [sys.executable, "-c", code, "--help"], capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"}
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0, result.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import {COMMANDS[program]}, sys; print(sorted(set(sys.modules) & {{'torch', 'duckdb', 'numpy', 'av', 'rich'}}))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout.strip() == "[]", "heavy imports belong inside the commands"


def all_commands(program: str) -> list[str]:
    import importlib

    import typer.main

    app = importlib.import_module(COMMANDS[program]).app
    names = []
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        names += [f"{name} {each}" for each in inner] if inner else [name]
    return names


@pytest.mark.parametrize("program", sorted(COMMANDS))
def test_every_command_has_a_readme_line_and_a_help_text_with_an_example(program: str) -> None:
    import importlib

    import typer.main

    readme = (ROOT / "README.md").read_text()
    group = typer.main.get_command(importlib.import_module(COMMANDS[program]).app)
    for name in all_commands(program):
        assert re.search(rf"`{program} {re.escape(name)}[ `]", readme), f"README has no line for `{program} {name}`"
        command = group
        for part in name.split():
            command = command.commands[part]  # type: ignore[attr-defined]
        assert f"Example: {program} {name}" in (command.help or ""), f"{program} {name} has no example in its help"


def test_readme_names_no_command_that_does_not_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    for program in COMMANDS:
        known = {name.split()[0] for name in all_commands(program)}
        for name in re.findall(rf"`?{program} ([a-z][a-z-]*)", readme):
            assert name in known, f"README speaks of `{program} {name}`, which does not exist"
