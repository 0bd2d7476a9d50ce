"""The report: one self-contained page, safe against the texts it shows, the same bytes for the same set."""

from __future__ import annotations

import importlib.util
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stmae_data.errors import SetError
from stmae_data.report import charts, render_report
from stmae_data.report.text import cut, human_bytes, human_count, shown


def _helper() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify_sets", Path(__file__).with_name("verify_sets.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sets = _helper()


class _Page(HTMLParser):
    """Elements with their attribute names, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.values: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.values += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _jpeg(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (level, 90, 120)).save(buffer, "JPEG")
    return buffer.getvalue()


PICTURES = [_jpeg(level) for level in (10, 120, 240)]


def _page(workspace: Path, name: str = "tiny") -> str:
    return render_report(workspace, name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with one set of pictures, decisions and groups."""
    workspace = tmp_path_factory.mktemp("report")
    folder = sets.make_set(workspace, "tiny", clips=5, shard_size=4, media=PICTURES)
    _decide(folder, "an evaluation clip")
    return workspace


def _decide(folder: Path, text: str) -> None:
    decision = {"clip_id": "a", "verb": "drop", "reason": "leak", "level": "content", "other_clip_id": text}
    decision |= {"other_set": "k400:val", "distance_bits": 12.0, "threshold": 64.0, "overlap_ms": 3000}
    decision |= {"policy_version": text, "detail": text}
    sets.decide(folder, "dedup-1", [decision])
    rows = [{"group_id": text, "kind": "content", "clip_id": each, "is_keeper": each == "a"} for each in ("a", "b")]
    sets.group(folder, rows)


def test_the_page_tells_the_sets_numbers(plain: Path) -> None:
    text = " ".join(" ".join(_Page(_page(plain)).text).split())
    assert "14 planned = 10 written + 2 dropped by a rule + 2 failed" in text
    assert "3 classes" in text
    for word in (
        "running in circles",
        "empty",
        "duplicate",
        "k400:val",
        "12 bits apart, allowed 64; 3 s shared",
        "vfr",
    ):
        assert word in text
    seal = json.loads((plain / "sets" / "tiny" / "meta" / "set.json").read_text())
    for value in (seal["digest"], seal["created_from"]["manifest_sha256"], seal["created_from"]["plan_sha256"]):
        assert value in text
    assert "tiny/train-{000000..000001}.tar" in text
    assert "stmae-train pretrain --shards tiny:train" in text


def test_the_page_loads_nothing_and_runs_nothing(plain: Path) -> None:
    html = _page(plain)
    page = _Page(html)
    policy = dict(_attributes(html, "meta"))["http-equiv"]
    assert policy == "Content-Security-Policy"
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in html
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form", "base", "a", "foreignobject", "use"}
    assert not [name for _, names in page.elements for name in names if name.startswith("on") or name == "href"]
    assert all(value.startswith("data:image/jpeg;base64,") for _, name, value in page.values if name == "src")
    assert "url(" not in html
    assert "@import" not in html


def _attributes(html: str, tag: str) -> list[tuple[str, str]]:
    found = [(name, value) for each, name, value in _Page(html).values if each == tag]
    return [pair for pair in found if pair[0] == "http-equiv"]


def test_thumbnails_are_pictures_of_stored_clips(plain: Path) -> None:
    sources = [value for tag, name, value in _Page(_page(plain)).values if (tag, name) == ("img", "src")]
    assert len(sources) == 10
    import base64

    with Image.open(io.BytesIO(base64.b64decode(sources[0].partition(",")[2]))) as picture:
        assert picture.format == "JPEG"
        assert picture.width == 240


def test_the_same_set_gives_the_same_bytes(plain: Path) -> None:
    assert _page(plain) == _page(plain)


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></style></svg><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "a\u202egnp.exe\u2066b\x1b[31mred\x00\r\nnext\u2028line",
    "&lt;b&gt; &#60;b&#62;",
    "javascript:alert(1)",
    "x" * 5000,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_add_no_element_and_no_attribute(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    pages = []
    for value in ("a plain text", text):
        monkeypatch.setattr(sets, "LABELS", (value, f"{value} two", f"{value} three"))
        web = {"title": value, "uploader_id": value, "license": value, "flags": [value]}
        web |= {"tags": [{"tag": value, "origin": "tag"}], "signals": {value: 1.0}}
        name = f"set{len(pages)}"
        _decide(sets.make_set(workspace, name, clips=3, splits=("train",), media=PICTURES, web=web), value)
        pages.append(_Page(_page(workspace, name)))
    plain, hostile = pages
    assert hostile.elements == plain.elements
    shown_text = "".join(hostile.text) + "".join(value for _, _, value in hostile.values)
    assert not set(shown_text) & set("\u202e\u2066\x1b\x00\r\u2028")
    assert "x" * 201 not in shown_text


def test_long_texts_are_cut_everywhere(workspace: Path) -> None:
    web = {"title": "y" * 5000, "tags": [{"tag": "z" * 5000, "origin": "tag"}]}
    sets.make_set(workspace, "tiny", clips=2, splits=("train",), web=web)
    html = _page(workspace)
    assert re.search(r"[yz]{201}", html) is None


def test_a_clip_that_cannot_be_read_is_a_blank_not_a_failure(workspace: Path) -> None:
    sets.make_set(workspace, "tiny", clips=3, splits=("train",))
    assert _page(workspace).count(">cannot be read<") == 3


def test_a_ledger_that_lies_about_places_opens_nothing_else(workspace: Path) -> None:
    folder = sets.make_set(workspace, "tiny", clips=3, splits=("train",), media=PICTURES, failed=0, duplicates=0)
    sets.change_ledger(
        folder,
        "train-000000",
        "UPDATE book SET shard = '../../../secret', media_bytes = 1000000000000, media_offset = -5",
    )
    assert _page(workspace).count(">cannot be read<") == 3


def test_an_unsealed_an_unexamined_and_an_empty_set_say_so(workspace: Path) -> None:
    sets.make_set(workspace, "open", clips=2, is_sealed=False, media=PICTURES)
    html = _page(workspace, "open")
    assert "This set is not sealed" in html
    assert "stmae-data dedup open --dry-run" in html
    folder = sets.make_set(workspace, "hollow", clips=0, duplicates=0, splits=("train",))
    sets.decide(folder, "dedup-1", [])
    html = _page(workspace, "hollow")
    assert "nothing had to be decided" in html
    assert "0.0 %" in html


def test_many_classes_become_a_curve_with_both_ends(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "LABELS", tuple(f"class {number:03d}" for number in range(60)))
    sets.make_set(workspace, "wide", clips=61, splits=("train",), shard_size=80, failed=0, duplicates=0)
    html = _page(workspace, "wide")
    assert "smallest of 60" in html
    assert "class 000" in html
    assert "class 059" in html
    assert "class 030" not in html


def test_the_page_appears_whole_or_not_at_all(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stmae_data import files
    from stmae_data.errors import StorageError

    folder = sets.make_set(workspace, "tiny", clips=2, splits=("train",))
    files._passed.clear()
    monkeypatch.setenv("STMAE_FAULT", "report.rename:1:ENOSPC")
    with pytest.raises(StorageError):
        render_report(workspace, "tiny")
    assert [path.name for path in folder.iterdir() if path.suffix != ".tar"] == ["meta"]


def test_a_set_that_does_not_exist_is_named(workspace: Path) -> None:
    with pytest.raises(SetError, match="no set 'nothing'"):
        render_report(workspace, "nothing")


# --- charts and texts ---


@pytest.mark.parametrize(
    ("values", "count", "note"),
    [
        ([], None, None),
        ([float("nan"), float("inf")], None, None),
        ([25.0] * 7, 1, "all 25 fps"),
        ([24.0, 25.0, 30.0, 30.0], 3, "median 27.5 fps, from 24 to 30"),
        ([float(number) for number in range(1000)], 20, "median 499.5 fps, from 0 to 999"),
    ],
)
def test_few_values_are_bars_of_their_own_and_many_are_binned(
    values: list[float], count: int | None, note: str | None
) -> None:
    made = charts.histogram("Rate", np.array(values, dtype=np.float64), unit="fps")
    if count is None:
        assert made is None
        return
    assert made is not None
    assert (len(made.bars), made.note) == (count, note)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=60))
def test_any_values_give_bars_inside_the_chart(values: list[float]) -> None:
    made = charts.histogram("any", np.array(values, dtype=np.float64))
    for bar in made.bars if made else ():
        assert -0.01 <= bar.x <= bar.x + bar.width <= charts.WIDTH + 0.01
        assert -0.01 <= bar.y <= bar.y + bar.height <= charts.HEIGHT + 0.01
    for tick in made.ticks if made else ():
        assert -0.01 <= tick.x <= charts.WIDTH + 0.01


def test_a_stack_fills_its_line_and_shows_the_smallest_part() -> None:
    bars = charts.stacked([("written", 10**6, "written"), ("dropped", 0, "dropped"), ("failed", 1, "failed")])
    assert [bar.kind for bar in bars] == ["written", "failed"]
    assert bars[-1].x + bars[-1].width == pytest.approx(1000, abs=0.1)
    assert bars[-1].width >= 2


@given(st.text())
def test_shown_text_holds_no_control_and_no_direction(text: str) -> None:
    result = shown(text)
    assert not set(result) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u2028\u2029\x7f")
    assert all(each >= " " for each in result)
    result.encode()
    assert shown(result) == result
    assert len(cut(text, 50)) <= 50


def test_numbers_are_written_as_people_read_them() -> None:
    assert [human_bytes(each) for each in (12, 1500, 2_340_000_000)] == ["12 B", "1.5 kB", "2.3 GB"]
    assert [human_count(each) for each in (1234567, 2.5, 3.0)] == ["1,234,567", "2.5", "3"]
