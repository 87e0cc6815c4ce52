"""The corpus of a stage: made once, in parts that any number of processes share, and again where its source changed."""

import numpy as np
import pytest

from qrpo_jax.data import corpus_files
from qrpo_jax.data.corpus import columns_of, tokenize
from qrpo_jax.data.rows import Completion, Message, Row
from qrpo_jax.job import corpus as stage_corpus
from qrpo_jax.job.shard import Shard
from qrpo_jax.job.stage_rows import StageRows
from tests.helpers import jobs

NONE = np.zeros(0, np.int32)
UNITS, SIZE = 7, 5


def row(number, text="a b"):
    completions = tuple(Completion(f"{text} {i}", NONE, True, "reference", i / 2) for i in range(3))
    return Row(f"r{number}", (Message("user", f"{text} {number}?"),), "", completions)


class Source:
    """Rows in units that tells which units were read."""

    def __init__(self, names=("",) * UNITS):
        self.read_units, self.names = [], names

    def read(self, unit):
        self.read_units.append(unit)
        return [row(unit * SIZE + i, f"a b {self.names[unit]}") for i in range(SIZE)], {"left": unit, "kept": SIZE}

    def rows(self):
        return StageRows(UNITS, UNITS * SIZE, self.read, self.names.__getitem__)

    def opened(self, job, **options):
        return stage_corpus.open_corpus(job, "train", self.rows(), **options)


@pytest.fixture(autouse=True)
def parts_of_two_units(monkeypatch):
    monkeypatch.setattr(stage_corpus, "PART_ROWS", 2 * SIZE)


def equal(first, second):
    one, other = columns_of(first), columns_of(second)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    tokens = [corpus.tokens.read(0, first.prompt_lengths_R[0]) for corpus in (first, second)]
    np.testing.assert_array_equal(*tokens)
    return True


def test_a_corpus_is_made_once_and_counts_what_was_left_out(tmp_path):
    job, source = jobs.job(tmp_path), Source()
    first = source.opened(job)
    assert source.read_units == [*range(UNITS)]
    assert first.left_out == {"left": sum(range(UNITS)), "kept": UNITS * SIZE}
    assert equal(first.corpus, tokenize([one for unit in range(UNITS) for one in source.read(unit)[0]], job.text))
    again = Source()
    opened = again.opened(jobs.job(tmp_path))
    assert again.read_units == [] and equal(opened.corpus, first.corpus) and opened.left_out == first.left_out


def test_parts_that_are_missing_or_damaged_are_made_again_and_no_others(tmp_path):
    job = jobs.job(tmp_path)
    Source().opened(job)
    folder = job.folder("train") / stage_corpus.FOLDER
    corpus_files.part_path(folder, 1, 4).with_name("part-00001-of-00004.json").unlink()  # a kill before the record
    tokens = corpus_files.part_path(folder, 3, 4).with_name("part-00003-of-00004.tokens")
    tokens.write_bytes(tokens.read_bytes()[:-4] + b"\x00\x00\x00\x01")
    again = Source()
    again.opened(job)
    assert again.read_units == [2, 3, 6], again.read_units


def test_other_rows_another_tokenizer_or_fewer_completions_make_it_again(tmp_path):
    job = jobs.job(tmp_path)
    Source().opened(job)
    names = ["", "", "", "new", "", "", ""]
    changed = Source(names)
    corpus = changed.opened(job).corpus
    assert changed.read_units == [2, 3], "the part with the changed unit"
    assert "r15" in corpus.id(15) and len(corpus) == UNITS * SIZE
    fewer = Source(names)
    assert fewer.opened(job, first=1).corpus.rewards.counts_R.tolist() == [1] * UNITS * SIZE
    assert fewer.read_units == [*range(UNITS)]
    plain = Source(names)
    plain.opened(jobs.job(tmp_path, model__template="plain"), first=1)
    assert plain.read_units == [*range(UNITS)]
    job = jobs.job(tmp_path, model__template="plain")
    job.text.tokenizer.bos_token = job.text.tokenizer.eos_token
    begins = Source(names)
    begins.opened(job, first=1)
    assert begins.read_units == [*range(UNITS)], "another token begins each prompt"


def test_processes_share_the_parts_whatever_their_number(tmp_path):
    wanted = Source().opened(jobs.job(tmp_path / "one")).corpus
    read = []
    for index in range(3):
        job, source = jobs.job(tmp_path / "three"), Source()
        job.shard = Shard(index, 3)
        try:
            opened = source.opened(job)
        except corpus_files.DamagedError:  # the parts of later processes are not there yet
            assert index < 2
        read += source.read_units
    assert sorted(read) == [*range(UNITS)] and equal(opened.corpus, wanted)


@pytest.mark.parametrize("units, count, parts", [(1, 3, 1), (7, 35, 4), (7, 0, 1), (100_000, 10_000_000, 512)])
def test_parts_hold_every_unit_once_and_are_not_too_many(units, count, parts):
    ranges = stage_corpus.part_ranges(units, count)
    assert [unit for part in ranges for unit in part] == [*range(units)]
    assert len(ranges) <= stage_corpus.MOST_PARTS and abs(len(ranges) - parts) <= 12, len(ranges)
