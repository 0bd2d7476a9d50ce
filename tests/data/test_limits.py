"""Children stay inside their limits and their end is told."""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stmae_data.limits import Limits, call, has_network_sandbox, run, servant

SMALL = Limits(cpu_seconds=1.0)


def test_a_program_ends_ok_with_its_complaints_kept() -> None:
    ended = run([sys.executable, "-c", "import sys; print('told', file=sys.stderr)"], limits=Limits())
    assert (ended.kind, ended.returncode, ended.errors) == ("ok", 0, "told\n")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crash"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "oom"),
        ("x = bytearray(3 << 30)", "oom"),
        ("raise SystemExit(7)", "error"),
        ("while True: pass", "timeout"),
        ("import time; time.sleep(60)", "timeout"),
    ],
)
def test_ends_are_classified(code: str, kind: str) -> None:
    assert run([sys.executable, "-c", code], limits=SMALL).kind == kind


def tells_run_delay() -> bool:
    """Whether this kernel says how long a process waited for a processor."""
    path = Path("/proc/self/schedstat")
    return path.exists() and path.read_text().split()[0] != "0"


@pytest.mark.skipif(not tells_run_delay(), reason="this kernel keeps no scheduler statistics")
def test_time_without_a_processor_does_not_count() -> None:
    here = f"import os, time; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})\n"
    hogs = [
        subprocess.Popen([sys.executable, "-c", f"{here}while True: pass"], start_new_session=True) for _ in range(5)
    ]
    try:
        # Six share one processor: 0.8 s of work take about 5 s of wall, where 2 s are allowed.
        ended = run([sys.executable, "-c", f"{here}while time.process_time() < 0.8: pass"], limits=SMALL)
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    assert ended.kind == "ok"


def test_a_child_sees_no_environment_but_path_and_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    ended = run(
        [sys.executable, "-c", "import os, sys; sys.stderr.write(','.join(sorted(os.environ)))"], limits=Limits()
    )
    assert "SECRET_TOKEN" not in ended.errors
    if not has_network_sandbox():
        pytest.skip("this host does not allow network namespaces")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        assert run([sys.executable, "-c", code], limits=Limits()).kind == "error"
        socket.create_connection(("127.0.0.1", port), 2).close()


def test_grandchildren_die_with_their_group(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    code = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); open({str(marker)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)"
    )
    assert run([sys.executable, "-c", code], limits=SMALL).kind == "timeout"
    pid = int(marker.read_text())
    for _ in range(1000):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().split(") ")[1][0] in "ZX":
            return
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the grandchild outlived its group")


def test_a_called_function_may_open_files_however_many_its_parent_has_open(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    held = [os.open(tmp_path / "x", os.O_RDONLY) for _ in range(100)]
    try:
        assert call(lambda: (tmp_path / "x").read_text(), limits=Limits()).value == "x"
        ended = call(lambda: [os.open(tmp_path / "x", os.O_RDONLY) for _ in range(200)], limits=Limits())
        assert ended.kind == "error" and "Too many open files" in ended.errors
    finally:
        for descriptor in held:
            os.close(descriptor)


def crash() -> None:
    faulthandler.disable()  # or the pages it writes would hide what the tests print
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_called_function_gives_back_its_value_or_its_error() -> None:
    assert call(lambda x: {"double": 2 * x}, 21, limits=Limits()).value == {"double": 42}
    ended = call(lambda: 1 / 0, limits=Limits())
    assert (ended.kind, ended.errors) == ("error", "ZeroDivisionError: division by zero")
    assert call(crash, limits=Limits()).kind == "crash"
    assert call(lambda: time.sleep(60), limits=SMALL).kind == "timeout"
    assert call(lambda: len(bytearray(3 << 30)), limits=Limits()).kind == "oom"


MET: list[str] = []


def look(descriptor: int) -> str:
    """What the file says: its text, or an end that the text asks for; `tired` fails in a child that has seen another file."""
    text = os.pread(descriptor, 100, 0).decode()
    MET.append(text)
    match text:
        case "crash":
            crash()
        case "spin":
            while True:
                pass
        case "hungry":
            bytearray(3 << 30)
        case "leave":
            os._exit(0)
    if text == "complain" or (text == "tired" and len(MET) > 1):
        raise ValueError("what is this")
    return f"{text} by {os.getpid()}"


def test_a_servant_answers_many_calls_and_a_failure_is_that_of_a_fresh_child(tmp_path: Path) -> None:
    def ask(text: str) -> tuple[str, str]:
        (tmp_path / "file").write_text(text)
        with (tmp_path / "file").open("rb") as stream:
            ended = kept.call(stream.fileno())
        return ended.kind, str(ended.value if ended.kind == "ok" else ended.errors)

    with servant(look, limits=SMALL, calls=3) as kept:
        said = [ask(text) for text in ("one", "two", "three", "four")]
        assert [kind for kind, _ in said] == ["ok"] * 4
        pids = [words.split(" by ")[1] for _, words in said]
        assert pids[0] == pids[1] == pids[2] != pids[3]  # a child serves three calls
        assert ask("tired")[0] == "ok"
        ends = {"complain": "error", "hungry": "oom", "crash": "crash", "spin": "timeout", "leave": "error"}
        for text, kind in ends.items():
            assert ask(text)[0] == kind, text
            assert ask("after")[1].startswith("after by ")
        assert ask("complain")[1] == "ValueError: what is this"
        last = int(ask("last")[1].split(" by ")[1])
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)
