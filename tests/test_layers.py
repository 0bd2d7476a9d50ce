"""The laws of the house that can be read off the syntax trees: imports point down, banned calls, one opener, one rename."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

DATA_RANKS = [
    {"errors", "records"},
    {"manifest", "files", "limits", "stores"},
    {"media", "fingerprint", "signals", "sources"},
    {"encode", "frames", "shards"},
    {"catalog", "fetch", "engines"},
    {"dedup", "select", "rewrite", "verify", "remove", "rehash"},
    {"build", "publish", "report", "demo", "doctor"},
]
TRAIN_RANKS = [
    {"errors", "config", "distributed"},
    {"tokens", "masks", "targets", "views", "schedule", "recipes", "runlog"},
    {"model", "optim", "loader", "checkpoint"},
    {"classifier", "detector", "convert"},
    {"evaluate", "pictures"},
    {"pretrain", "finetune", "probe", "embed"},
    {"report", "study", "bench"},
]
DOORS = {
    "loader": {"shards", "frames", "limits", "records"},
    "checkpoint": {"files"},
    "runlog": {"files"},
    "convert": {"limits"},
    "bench": {"encode", "frames", "limits", "media", "records"},
    "study": {"catalog", "dedup", "select", "records"},
}


def modules(package: str) -> Iterator[tuple[str, Path]]:
    """(room, file) for every module of a package; a folder is one room."""
    base = ROOT / package
    for path in sorted(base.rglob("*.py")):
        room = path.relative_to(base).parts[0].removesuffix(".py")
        if room != "__init__":
            yield room, path


def imported_rooms(path: Path, package: str) -> Iterator[str]:
    """Rooms of `package` that a file imports, at any depth of the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively; import siblings by full name"
            parts = node.module.split(".")
            if parts[0] == package:
                yield from parts[1:2] or [alias.name for alias in node.names if not alias.name.startswith("_")]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == package:
                    yield from parts[1:2]


def rank_of(room: str, ranks: list[set[str]]) -> int:
    found = [number for number, rooms in enumerate(ranks) if room in rooms]
    assert found, f"the room {room!r} has no rank; give it one in STYLE and here, or fold it into a room that has"
    return found[0]


@pytest.mark.parametrize(("package", "ranks"), [("stmae_data", DATA_RANKS), ("stmae_train", TRAIN_RANKS)])
def test_imports_point_down(package: str, ranks: list[set[str]]) -> None:
    wrong = []
    for room, path in modules(package):
        rank = rank_of(room, ranks)
        for other in imported_rooms(path, package):
            if other != room and rank_of(other, ranks) > rank:
                wrong.append(f"{path.relative_to(ROOT)} imports {other}")
    assert not wrong


def test_the_data_side_never_imports_torch_or_training() -> None:
    for _, path in modules("stmae_data"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {
                "torch",
                "torchvision",
                "timm",
                "stmae_train",
                "stmae_cli",
            }, path


def test_training_reaches_data_through_its_doors_only() -> None:
    wrong = []
    for room, path in modules("stmae_train"):
        for other in imported_rooms(path, "stmae_data"):
            if other not in DOORS.get(room, set()) | {"errors"}:
                wrong.append(f"{path.relative_to(ROOT)} imports stmae_data.{other}")
        assert not list(imported_rooms(path, "stmae_cli")), path
    assert not wrong


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_no_banned_call_stands_anywhere() -> None:
    banned = {"eval", "exec", "os.system", "torch.load", "yaml.load", "pickle.load", "pickle.loads", "os.popen"}
    for package in ("stmae_data", "stmae_train", "cli"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for name, call in calls(path):
                allowed = name == "torch.load" and path.parts[-2:] == ("convert", "child.py")
                assert name not in banned or allowed, f"{path}:{call.lineno} calls {name}"
                assert not name.endswith(".extractall"), f"{path}:{call.lineno} extracts an archive"
                shell = [each for each in call.keywords if each.arg == "shell"]
                assert not shell, f"{path}:{call.lineno} names a shell"
            assert "import pickle" not in path.read_text(), path


def test_videos_are_opened_and_processes_started_in_one_place() -> None:
    for package in ("stmae_data", "stmae_train"):
        for room, path in modules(package):
            for name, call in calls(path):
                where = f"{path.relative_to(ROOT)}:{call.lineno}"
                assert name != "av.open" or room in {"media", "demo"}, f"{where} opens a video past media"
                if name.startswith("subprocess."):
                    assert room in {"limits", "engines"}, f"{where} starts a process past limits"
                if name.endswith(".rename") or name == "os.replace":
                    assert room == "files", f"{where} renames past files"


def test_no_file_grows_past_comfort() -> None:
    long = {}
    for package in ("stmae_data", "stmae_train", "cli"):
        for path in (ROOT / package).rglob("*.py"):
            lines = len(path.read_text().splitlines())
            if lines > 420:
                long[str(path.relative_to(ROOT))] = lines
    assert not long, "a file past about 400 lines becomes a folder of the same name"


def test_every_module_names_what_is_public() -> None:
    for package in ("stmae_data", "stmae_train", "cli/stmae_cli"):
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text())
            has_code = any(
                isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign) for node in tree.body
            )
            listed = [
                node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
            ]
            if not has_code:
                continue
            assert listed, f"{path.relative_to(ROOT)} has no __all__"
            names = ast.literal_eval(listed[0].value)
            defined = {
                node.name
                for node in tree.body
                if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)
            }
            for node in tree.body:
                if isinstance(node, ast.Assign):
                    defined |= {
                        each.id for target in node.targets for each in ast.walk(target) if isinstance(each, ast.Name)
                    }
                elif isinstance(node, ast.AnnAssign):
                    defined.add(ast.unparse(node.target))
                elif isinstance(node, ast.ImportFrom | ast.Import):
                    defined |= {alias.asname or alias.name for alias in node.names}
            assert set(names) <= defined, f"{path.relative_to(ROOT)}: __all__ names {sorted(set(names) - defined)}"
