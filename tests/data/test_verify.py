"""Verify: a clean set is clean, and each kind of damage is found under its own code."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from stmae_data.errors import SetError
from stmae_data.records import PLAN_COLUMNS
from stmae_data.verify import DamageCode, VerifyReport, verify


def _helper() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify_sets", Path(__file__).with_name("verify_sets.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sets = _helper()


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed set that no test changes."""
    return Path(sets.make_set(tmp_path_factory.mktemp("verify"), "tiny", clips=7, shard_size=4))


@pytest.fixture
def folder(clean: Path, workspace: Path) -> Path:
    """A copy to damage."""
    target = workspace / "sets" / "tiny"
    shutil.copytree(clean, target)
    return target


def _verify(folder: Path, **options: bool) -> VerifyReport:
    return verify(folder.parent.parent, folder.name, **options)


def test_a_clean_set_is_clean_and_every_byte_was_read(clean: Path) -> None:
    report = _verify(clean)
    assert report.damages == ()
    assert report.ok
    assert report.bytes == sum(path.stat().st_size for path in clean.glob("*.tar"))
    assert set(report.as_json()) == {"ok", "damages", "bytes", "seconds"}


def test_quick_reads_no_tar_and_a_folder_can_be_verified_by_itself(clean: Path, tmp_path: Path) -> None:
    assert _verify(clean, quick=True).bytes == 0
    moved = tmp_path / "under-another-name"
    shutil.copytree(clean, moved)
    assert verify(moved).ok


def test_an_empty_shard_is_two_zero_blocks_and_clean(workspace: Path) -> None:
    folder = sets.make_set(workspace, "hollow", clips=0, failed=2, duplicates=0, splits=("train",))
    assert (folder / "train-000000.tar").read_bytes() == b"\0" * 1024
    assert _verify(folder).ok


def test_progress_ends_at_the_whole(clean: Path) -> None:
    told: list[tuple[int, int]] = []
    report = verify(clean.parent.parent, clean.name, workers=1, advance=lambda done, total: told.append((done, total)))
    assert told[-1] == (report.bytes, report.bytes)


def test_a_set_that_does_not_exist_is_named(workspace: Path) -> None:
    with pytest.raises(SetError, match="no set at"):
        verify(workspace, "nothing")


# --- each damage: what is done to the set, and the codes that must be found (no other may be) ---


def _seal_change(change: Callable[[dict[str, object]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        document = json.loads((folder / "meta" / "set.json").read_text())
        change(document)
        sets.write_seal(folder, document)

    return damage


def _tar_change(change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]) -> Callable[[Path], None]:
    """Change the members of a tar and seal again, so that only the inside is wrong."""

    def damage(folder: Path) -> None:
        path = folder / "train-000000.tar"
        with tarfile.open(path) as tar:
            members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for name, data in change(members):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        # tarfile pads to 10,240 bytes; ours end after two zero blocks
        data = buffer.getvalue().rstrip(b"\0")
        path.write_bytes(data + b"\0" * (-len(data) % 512 + 1024))
        sets.reseal(folder)

    return damage


def _ledger_change(statement: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        sets.change_ledger(folder, "train-000000", statement)
        sets.reseal(folder)

    return damage


def _flip(path: str, place: int = -2000) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = bytearray((folder / path).read_bytes())
        data[place] ^= 1
        (folder / path).write_bytes(bytes(data))

    return damage


def _cut(keep: Callable[[bytes], int]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "train-000000.tar"
        data = path.read_bytes()
        path.write_bytes(data[: keep(data)])

    return damage


def _member_boundary(data: bytes) -> int:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmembers()[2].offset


def _write(path: str, data: bytes = b"x") -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / path).write_bytes(data)

    return damage


def _remove(path: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).unlink()


def _edit_json(**changes: object) -> Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]:
    def change(members: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        name, data = members[0]
        value = {**json.loads(data), **changes}
        value = {key: each for key, each in value.items() if each != "gone"}
        return [(name, json.dumps(value).encode()), *members[1:]]

    return change


def _planned_twice(folder: Path) -> None:
    from stmae_data import files

    path = folder / "meta" / "plan.parquet"
    rows = files.read_table(path)
    files.commit_table(path, [*rows[1:], rows[-1]], PLAN_COLUMNS, point="plan")
    sets.reseal(folder)


def _unlisted_ledger(folder: Path) -> None:
    shutil.copy(folder / "meta" / "ledger" / "val-000000.parquet", folder / "meta" / "ledger" / "val-000900.parquet")


def _not_a_table(path: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / path).write_bytes(b"PAR1 this is not a table PAR1")
        document = json.loads((folder / "meta" / "set.json").read_text())
        own = hashlib.sha256((folder / path).read_bytes()).hexdigest()
        for content in document["splits"].values():
            for line in content["shards"]:
                if path == f"meta/ledger/{line['name']}.parquet":
                    line["ledger_sha256"] = own
        if path == "meta/plan.parquet":
            document["created_from"]["plan_sha256"] = own
        sets.write_seal(folder, document)

    return damage


def _shard_line(document: dict[str, object], **changes: object) -> None:
    document["splits"]["train"]["shards"][0].update(changes)  # type: ignore[index]


def _swap_pairs(members: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    return [members[1], members[0], *members[2:]]


def _unreadable(folder: Path) -> None:
    (folder / "train-000000.tar").unlink()
    (folder / "train-000000.tar").symlink_to("/proc/self/mem")


C = DamageCode
DAMAGES: dict[str, tuple[Callable[[Path], None], set[DamageCode]]] = {
    "no seal": (_remove("meta/set.json"), {C.SEAL_MISSING}),
    "seal is not json": (_write("meta/set.json", b"{"), {C.SEAL_UNREADABLE}),
    "seal without splits": (_seal_change(lambda seal: seal.pop("splits") and None), {C.SEAL_UNREADABLE}),
    "seal points outside": (_seal_change(lambda seal: _shard_line(seal, name="../../x")), {C.SEAL_UNREADABLE}),
    "seal with a number as sha256": (_seal_change(lambda seal: _shard_line(seal, sha256=7)), {C.SEAL_UNREADABLE}),
    "seal of another name": (_seal_change(lambda seal: seal.update(name="other")), {C.SEAL_FIELDS}),
    "seal with another byte": (
        lambda folder: (folder / "meta" / "set.json").write_text((folder / "meta" / "set.json").read_text() + " "),
        {C.SEAL_FIELDS},
    ),
    "seal with another digest": (_seal_change(lambda seal: seal.update(digest="0" * 64)), {C.DIGEST_MISMATCH}),
    "seal with other counts": (
        _seal_change(lambda seal: seal["counts"].update(written=3)),  # type: ignore[attr-defined]
        {C.COUNTS_DISAGREE},
    ),
    "shard gone": (_remove("train-000000.tar"), {C.SHARD_MISSING}),
    "bit flipped in a shard": (_flip("train-000000.tar"), {C.SHARD_SHA256, C.STORED_SHA256}),
    "bit flipped in a tar header": (
        _flip("train-000000.tar", 150),
        {C.SHARD_SHA256, C.SHARD_STRUCTURE, C.SAMPLE_COUNT, C.KEYS_DIFFER},
    ),
    "shard cut at a member boundary": (
        _cut(_member_boundary),
        {C.SHARD_SIZE, C.SHARD_SHA256, C.SHARD_CUT, C.SAMPLE_COUNT, C.KEYS_DIFFER},
    ),
    "shard without its second end block": (
        _cut(lambda data: len(data) - 512),
        {C.SHARD_SIZE, C.SHARD_SHA256, C.SHARD_CUT},
    ),
    "shard of zero bytes": (
        _cut(lambda data: 0),
        {C.SHARD_SIZE, C.SHARD_SHA256, C.SHARD_CUT, C.SAMPLE_COUNT, C.KEYS_DIFFER},
    ),
    "tar that nobody sealed": (_write("train-000900.tar", b"\0" * 1024), {C.SHARD_UNLISTED}),
    "dot in a key": (
        _tar_change(
            lambda members: [
                (f"v1.{members[0][0]}", members[0][1]),
                (f"v1.{members[1][0]}", members[1][1]),
                *members[2:],
            ]
        ),
        {C.KEY_INVALID, C.MEMBER_ORDER, C.KEYS_DIFFER, C.SAMPLE_COUNT, C.PLACE_WRONG},
    ),
    "key twice": (
        _tar_change(lambda members: members + members[:2]),
        {C.KEY_REPEATED, C.KEYS_DIFFER, C.COUNTS_DISAGREE, C.PLACE_WRONG},
    ),
    "media before json": (_tar_change(_swap_pairs), {C.MEMBER_ORDER, C.KEYS_DIFFER, C.SAMPLE_COUNT, C.PLACE_WRONG}),
    "another kind of media in one sample": (
        _tar_change(lambda members: [members[0], (members[1][0].replace(".mp4", ".jpg"), members[1][1]), *members[2:]]),
        {C.MEMBERS_UNEVEN},
    ),
    "sample json is not json": (_tar_change(lambda m: [(m[0][0], b"\xff" * len(m[0][1])), *m[1:]]), {C.SAMPLE_JSON}),
    "sample json lacks a field": (_tar_change(_edit_json(tags="gone")), {C.SAMPLE_FIELDS, C.PLACE_WRONG}),
    "sample json says another label": (
        _tar_change(_edit_json(label="juggling with fire")),
        {C.SAMPLE_DISAGREES, C.PLACE_WRONG},
    ),
    "other bytes of the same length": (
        _tar_change(lambda m: [m[0], (m[1][0], bytes(len(m[1][1]))), *m[2:]]),
        {C.STORED_SHA256},
    ),
    "ledger gone": (_remove("meta/ledger/train-000000.parquet"), {C.LEDGER_MISSING}),
    "bit flipped in a ledger": (_flip("meta/ledger/train-000000.parquet", 40), {C.LEDGER_SHA256}),
    "ledger is not a table": (_not_a_table("meta/ledger/train-000000.parquet"), {C.LEDGER_UNREADABLE}),
    "ledger of no shard": (_unlisted_ledger, {C.LEDGER_UNLISTED}),
    "ledger with another key": (
        _ledger_change("UPDATE book SET clip_id = 'web_other' WHERE ordinal = 0 AND outcome = 'written'"),
        {C.KEYS_DIFFER},
    ),
    "ledger with another offset": (
        _ledger_change("UPDATE book SET media_offset = media_offset + 512 WHERE ordinal = 0 AND outcome = 'written'"),
        {C.PLACE_WRONG},
    ),
    "written row with a reason": (
        _ledger_change("UPDATE book SET reason = 'too_short' WHERE ordinal = 0 AND outcome = 'written'"),
        {C.OUTCOME_UNSOUND},
    ),
    "reason that is not in the list": (
        _ledger_change("UPDATE book SET outcome = 'failed', reason = 'bad_luck' WHERE outcome != 'written'"),
        {C.OUTCOME_UNSOUND},
    ),
    "duplicate of nothing": (
        _ledger_change(
            "UPDATE book SET outcome = 'dropped', reason = 'duplicate', duplicate_of = 'web_nowhere' WHERE outcome != 'written'"
        ),
        {C.DUPLICATE_POINTER},
    ),
    "planned row without outcome": (_ledger_change("DELETE FROM book WHERE outcome != 'written'"), {C.PLAN_UNMET}),
    "row planned twice": (_planned_twice, {C.PLAN_UNMET}),
    "plan gone": (_remove("meta/plan.parquet"), {C.PLAN_MISSING}),
    "plan changed": (_flip("meta/plan.parquet", 40), {C.PLAN_SHA256}),
    "plan is not a table": (_not_a_table("meta/plan.parquet"), {C.PLAN_UNREADABLE}),
    "temp file": (_write("meta/ledger/.tmp-1-train-000000.parquet"), {C.TEMP_FILE}),
    "rewrite not finished": (_write("meta/rewrite.json", b"{}"), {C.REWRITE_UNFINISHED}),
    "shard that cannot be read": (_unreadable, {C.SHARD_SIZE, C.UNREADABLE}),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_found_under_its_own_code(folder: Path, name: str) -> None:
    damage, codes = DAMAGES[name]
    if name in {"duplicate of nothing", "planned row without outcome", "reason that is not in the list"}:
        _put_unwritten_row_first(folder)
    damage(folder)
    report = _verify(folder)
    assert set(report.codes) == {str(code) for code in codes}, report.damages
    for found in report.damages:
        assert found.detail
        assert "\n" not in found.detail


def _put_unwritten_row_first(folder: Path) -> None:
    """The tests change train-000000; see that it has a row that is not written."""
    from stmae_data import files
    from stmae_data.shards import ledger_path

    rows = files.read_table(
        ledger_path(folder, "train-000000"), "SELECT count(*) AS n FROM book WHERE outcome != 'written'"
    )
    assert rows[0]["n"] > 0, "choose another number of clips: the first shard has only written rows"


def test_every_code_has_its_damage() -> None:
    covered = set().union(*(codes for _, codes in DAMAGES.values()))
    assert set(DamageCode) - covered == {DamageCode.DECODER_DISAGREES}


@pytest.mark.parametrize("name", ["shard gone", "shard of zero bytes", "ledger gone", "temp file", "no seal"])
def test_quick_finds_what_needs_no_reading(folder: Path, name: str) -> None:
    DAMAGES[name][0](folder)
    report = _verify(folder, quick=True)
    assert not report.ok
    assert report.bytes == 0


def test_a_tar_cut_at_any_block_is_found(folder: Path) -> None:
    path = folder / "train-000000.tar"
    data = path.read_bytes()
    for size in range(0, len(data), 512):
        path.write_bytes(data[:size])
        assert {"shard_size", "shard_sha256", "shard_cut"} <= set(_verify(folder).codes), size


def test_random_bit_flips_are_all_found_and_never_raise(folder: Path) -> None:
    draw = random.Random(7)
    paths = [*sorted(folder.glob("*.tar")), *sorted((folder / "meta").rglob("*.parquet"))]
    for _ in range(25):
        path = draw.choice(paths)
        data = bytearray(path.read_bytes())
        original = bytes(data)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(data))
        assert not _verify(folder).ok, path
        path.write_bytes(original)
    assert _verify(folder).ok


def test_bit_flips_in_the_seal_never_raise(folder: Path) -> None:
    draw = random.Random(8)
    path = folder / "meta" / "set.json"
    original = path.read_bytes()
    for _ in range(25):
        data = bytearray(original)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(data))
        with contextlib.suppress(SetError):
            _verify(folder, quick=True)


def test_a_key_in_two_shards_is_found(workspace: Path) -> None:
    folder = sets.make_set(workspace, "tiny", clips=4, shard_size=4, failed=0, duplicates=0)
    for kind, name in (("", "train-000001.tar"), ("meta/ledger/", "train-000001.parquet")):
        shutil.copy(folder / kind / name.replace("000001", "000000"), folder / kind / name)
    sets.change_ledger(folder, "train-000001", "UPDATE book SET shard = 'train-000001', row_id = 'b' || row_id")
    sets.reseal(folder)
    assert {"key_repeated"} <= set(_verify(folder).codes)


def test_a_flood_of_damages_is_told_by_examples_and_a_number(workspace: Path) -> None:
    folder = sets.make_set(workspace, "tiny", clips=20, shard_size=30, failed=0, duplicates=0, splits=("train",))
    sets.change_ledger(folder, "train-000000", "UPDATE book SET source_sha256 = 'x'")
    sets.reseal(folder)
    report = _verify(folder)
    assert len(report.damages) == 6
    assert report.damages[-1].detail == "and 15 more of this kind"


def test_duplicates_may_lead_over_others_and_into_other_sets_by_decision(folder: Path) -> None:
    _put_unwritten_row_first(folder)
    sets.change_ledger(
        folder,
        "train-000000",
        "UPDATE book SET outcome = 'dropped', reason = 'duplicate', duplicate_of = 'in_another_set', decision_id = 'dedup-1:3' "
        "WHERE outcome != 'written'",
    )
    sets.reseal(folder)
    assert _verify(folder).ok, _verify(folder).damages


def test_a_rewritten_set_is_clean(workspace: Path) -> None:
    from stmae_data.catalog import sql
    from stmae_data.errors import Reason
    from stmae_data.rewrite import Verdict, rewrite

    folder = sets.make_set(workspace, "tiny", clips=5, shard_size=4)
    rows = sql(workspace, "SELECT row_id, clip_id FROM written ORDER BY 1 LIMIT 2").rows
    verdicts = [Verdict(rows[0][0], Reason.DUPLICATE, "dedup-1:1", duplicate_of=rows[1][1])]
    rewrite(workspace, "tiny", verdicts, run_id="dedup-1", to="less")
    assert _verify(folder).damages == ()
    assert _verify(folder.parent / "less").damages == ()


def _clip(seed: int, *, frames: int = 80) -> bytes:
    """A small H.264 file of moving noise, encoded as anyone would: no layers."""
    import av
    import numpy as np

    draw = np.random.default_rng(seed)
    picture = draw.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30, options={"threads": "1", "preset": "ultrafast", "bf": "2"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, number, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.mark.parametrize(("layout", "codes"), [("original", ()), ("layered-4", ("decoder_disagrees",))])
def test_deep_compares_the_fast_reader_with_a_whole_decode(
    workspace: Path, layout: str, codes: tuple[str, ...]
) -> None:
    folder = sets.make_set(
        workspace, "tiny", clips=2, failed=0, duplicates=0, splits=("train",), media=[_clip(1), _clip(2)]
    )
    sets.change_ledger(folder, "train-000000", "UPDATE book SET stored_num_frames = 80")
    document = json.loads((folder / "meta" / "set.json").read_text())
    sets.reseal(folder)
    document = json.loads((folder / "meta" / "set.json").read_text())
    document["recipe"]["layout"] = layout
    sets.write_seal(folder, document)
    report = _verify(folder, quick=True, deep=True)
    assert report.codes == codes, report.damages


def test_deep_tells_of_clips_that_do_not_decode(clean: Path) -> None:
    report = _verify(clean, deep=True)
    assert report.codes == ("decoder_disagrees",)
    assert {damage.file for damage in report.damages} <= {path.name for path in clean.glob("*.tar")}
