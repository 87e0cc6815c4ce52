"""Rows of a stage as Parquet files: unit after unit, from disk and from a store, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from qrpo_jax import command_line, main
from qrpo_jax.data import row_files
from qrpo_jax.data.rows import Row, encode
from qrpo_jax.devices import peers
from qrpo_jax.errors import UserError
from qrpo_jax.job import row_export
from qrpo_jax.job.row_export import export_rows
from qrpo_jax.stores.path import as_path
from qrpo_jax.stores.store import open_store
from tests.data.test_parquet_rows import pair_row
from tests.helpers.jobs import ROOT, environment
from tests.helpers.sample_rows import make_row
from tests.helpers.tables import rows_of


def write_stage(folder: Path, rows: list[Row], size: int = 5, without: tuple[int, ...] = ()) -> list[Row]:
    """The rows in units of a finished stage, or of one that lacks some."""
    units = -(-len(rows) // size)
    for unit in range(units):
        if unit not in without:
            row_files.write_unit(folder, unit, units, rows[unit * size : (unit + 1) * size])
    if not without:
        row_files.finish(folder, units)
    return rows


def test_exported_rows_are_the_same_rows_and_files_have_whole_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_stage(tmp_path / "run" / "score", [make_row(i) for i in range(23)])
    done = export_rows(tmp_path / "run", "score")
    assert (done.rows, done.files, done.layout) == (23, 1, "rows") and "with all that they have" in done.lines()[0]
    assert list(map(encode, rows_of(f"parquet:{done.pattern}"))) == list(map(encode, rows))

    monkeypatch.setattr(row_export, "FILE_BYTES", 1)
    done = export_rows(tmp_path / "run", "score", tmp_path / "many")
    files = sorted((tmp_path / "many").iterdir())
    assert [path.name for path in files] == [f"train-{i:05d}-of-00005.parquet" for i in range(5)]
    assert [pq.read_metadata(path).num_rows for path in files] == [5, 5, 5, 5, 3]
    assert list(map(encode, rows_of(f"parquet:{done.pattern}"))) == list(map(encode, rows))
    again = export_rows(tmp_path / "run", "score", tmp_path / "many")
    assert again == done and sorted((tmp_path / "many").iterdir()) == files


def test_pairs_with_references_get_the_published_layout_unless_all_is_asked_for(tmp_path: Path) -> None:
    rows = write_stage(tmp_path / "score", [pair_row(i) for i in range(7)])
    done = export_rows(tmp_path, "score")
    assert done.layout == "qrpo" and "without log-probs, token ids" in done.lines()[0], done.lines()
    assert [row.id for row in rows_of(f"parquet:{done.pattern}")] == [row.id for row in rows]
    whole = export_rows(tmp_path, "score", layout="rows")
    assert list(map(encode, rows_of(f"parquet:{whole.pattern}"))) == list(map(encode, rows))


def test_rows_of_evaluation_are_a_test_split_for_each_side(tmp_path: Path) -> None:
    for side in ("policy", "reference"):
        write_stage(tmp_path / "evaluate" / side, [make_row(i) for i in range(3)])
    done = export_rows(tmp_path, "evaluate/policy")
    assert done.pattern == f"{tmp_path}/parquet/evaluate/policy/*.parquet"
    assert (tmp_path / "parquet" / "evaluate" / "policy" / "test-00000-of-00001.parquet").is_file()


def test_rows_in_a_store_are_exported_to_a_store(bucket: str) -> None:
    run = as_path(f"{bucket}/run")
    rows = write_stage(run / "score", [make_row(i) for i in range(11)])
    done = export_rows(run, "score")
    assert done.pattern == f"{bucket}/run/parquet/score/*.parquet"
    assert list(map(encode, rows_of(f"parquet:{done.pattern}"))) == list(map(encode, rows))
    open_store.cache_clear()


def test_what_cannot_be_exported_is_refused_in_one_line(tmp_path: Path) -> None:
    write_stage(tmp_path / "sample", [make_row(i) for i in range(11)], without=(1,))
    write_stage(tmp_path / "score", [make_row(i) for i in range(3)])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "old.parquet").write_text("")
    (tmp_path / "file").write_text("")
    for stage, options, message in (
        ("sample", {}, "--export-rows=sample: 2 of 3 units are complete; let the stage finish"),
        ("scor", {}, "has those of sample, score; did you mean 'score'?"),
        ("../" + tmp_path.name + "/score", {}, "has no rows"),
        ("score", {"layout": "qrpo"}, "row 'row-0' does not fit layout 'qrpo'"),
        ("score", {"target": tmp_path / "full"}, "has other files, such as old.parquet"),
        ("score", {"target": tmp_path / "file"}, "is a file; name a folder"),
    ):
        with pytest.raises(UserError) as error:
            export_rows(tmp_path, stage, **options)
        assert message in str(error.value) and "\n" not in str(error.value), error.value
    assert not list(tmp_path.rglob("*.parquet")) or [p.name for p in tmp_path.rglob("*.parquet")] == ["old.parquet"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--export-rows=score"], "needs --workdir=DIR"),
        (["--show-row=score:0"], "needs --workdir=DIR"),
        (["--workdir=x", "--show-row=score:0", "--export-rows=score"], "--export-rows=STAGE or --show-row="),
        (["--workdir=x", "--config=quickstart", "--show-row=score:0"], "and no config"),
        (["--workdir=x", "--to=y"], "--to and --layout are for --export-rows=STAGE"),
        (["--workdir=x", "--layout=rows", "--show-row=score:0"], "--to and --layout are for --export-rows=STAGE"),
        (["--workdir=x", "--export-rows=score", "--layout=kto"], "--layout=kto; allowed: qrpo, rows"),
        (["--workdir=x", "--export-rows=score", "--to="], "--to=; name a folder"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(words, message) -> None:
    with pytest.raises(UserError) as error:
        command_line.read(["qrpo-jax", *words])
    assert message in str(error.value) and "\n" not in str(error.value), error.value


def test_flags_may_be_written_with_underscores_as_config_keys_are() -> None:
    request = command_line.read(["qrpo-jax", "--workdir=a_b", "--export_rows=score", "--to=c_d"])
    assert isinstance(request, command_line.RowsRequest)
    assert (request.workdir, request.stage, request.to, request.layout) == (Path("a_b"), "score", Path("c_d"), "")


def test_the_command_exports_and_says_how_to_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_stage(tmp_path / "score", [make_row(i) for i in range(3)])
    main.run(["qrpo-jax", f"--workdir={tmp_path}", "--export-rows=score"])
    assert f"--config.prompts.source=parquet:{tmp_path}/parquet/score/*.parquet" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "leave_together", sys.exit)  # it would end the tests
    write_stage(tmp_path / "score", [make_row(i) for i in range(3)])
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "rows"
    with pytest.raises(SystemExit) as error:
        main.run(["qrpo-jax", f"--workdir={tmp_path / 'score' / '..'}", "--export-rows=score", f"--to={target}"])
    said = capsys.readouterr().err
    assert error.value.code == 1 and said.splitlines()[-1].startswith(f"error: {target}: Not a directory"), said


@pytest.mark.parametrize("flag", ["--export-rows=score", "--show-row=score:0"])
def test_damaged_rows_are_one_line_and_status_1(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_stage(tmp_path / "score", [make_row(i) for i in range(3)])
    unit, info = row_files.unit_path(tmp_path / "score", 0, 1), tmp_path / "score" / row_files.INFO_FILE
    content = bytearray(unit.read_bytes())
    content[len(content) // 3] ^= 1
    for path, damaged in ((unit, bytes(content)), (info, b"{")):
        path.write_bytes(damaged)
        with pytest.raises(SystemExit) as error:
            main.run(["qrpo-jax", f"--workdir={tmp_path}", flag])
        said = capsys.readouterr().err
        assert error.value.code == 1 and said.splitlines()[-1].startswith(f"error: {path} is damaged: "), said
        assert "Traceback" not in said
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_reader_who_stops_reading_ends_the_command_in_order(tmp_path: Path) -> None:
    write_stage(tmp_path / "score", [make_row(i, completions=2000) for i in range(2)])
    program = f"{sys.executable} -m qrpo_jax --workdir={tmp_path} --show-row=score:1 | head -n 2"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", program], cwd=ROOT, env=environment(), capture_output=True)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr
    assert done.stdout.decode().splitlines() == ["score, row 1 of 2: row-1", ""], json.dumps(done.stdout.decode())
