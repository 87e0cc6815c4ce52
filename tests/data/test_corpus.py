"""The corpus: tokens and numbers of rows, the same in memory, in parts, and on disk."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from qrpo_jax.data import corpus_files, ragged
from qrpo_jax.data.corpus import HeldTokens, columns_of, held, join, tokenize
from qrpo_jax.data.rows import COMPLETION_SOURCES, Completion, Message, Row
from qrpo_jax.data.text import make_text
from qrpo_jax.data.vocabulary import vocabulary_tokenizer
from qrpo_jax.errors import DamagedError, UserError

TOKENIZER = vocabulary_tokenizer([chr(97 + i) for i in range(26)])
TEXT = make_text(TOKENIZER, "plain", (TOKENIZER.eos_token_id,))


def word(rng, most):
    return "".join(chr(97 + i) for i in rng.integers(0, 26, rng.integers(1, most)))


def rows(count, seed=0):
    """Rows of 1 to 5 completions, some with tokens, with references, preferences and ids beyond ASCII."""
    rng = np.random.default_rng(seed)
    result = []
    for i in range(count):
        completions = []
        for _ in range(rng.integers(1, 6)):
            tokens = rng.integers(1, 26, rng.integers(0, 9)).astype(np.int32)
            source = COMPLETION_SOURCES[rng.integers(3)]
            reward, reference = rng.normal(), float(rng.choice([-3.5, np.nan]))
            completions.append(
                Completion(word(rng, 13), tokens, bool(rng.integers(2)), source, reward, reference_log_prob=reference)
            )
        pairs = ((0, len(completions) - 1),) * int(rng.integers(0, 2)) if len(completions) > 1 else ()
        further = rng.normal(size=rng.integers(0, 3)).astype(np.float32)
        messages = (Message("user", word(rng, 17)),)
        result.append(Row(f"é{i}", messages, "", tuple(completions), further, pairs))
    return result


def assert_same(first, second):
    """All columns and tokens are equal."""
    one, other = columns_of(first), columns_of(second)
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    assert first.token_count == second.token_count and first.bos_token == second.bos_token
    for r in range(len(first)):
        for corpus in (first, second):
            assert len(corpus.prompt(r))
    for k in range(len(first.lengths_K)):
        texts = [corpus.completion(k).tolist() for corpus in (first, second)]
        assert texts[0] == texts[1], k


def test_every_prompt_and_completion_is_what_the_text_gives_with_its_numbers():
    data = rows(23)
    corpus = tokenize(data, TEXT)
    k = 0
    for r, row in enumerate(data):
        prompt = corpus.prompt(r)
        np.testing.assert_array_equal(prompt, TEXT.prompt(row.messages))
        assert corpus.id(r) == row.id
        np.testing.assert_array_equal(corpus.reference_rewards[r], row.reference_rewards)
        assert corpus.preferences[r].tolist() == [list(pair) for pair in row.preferences]
        for i, completion in enumerate(row.completions):
            tokens = corpus.completion(k)
            given = completion.tokens
            if not len(given):
                given = TEXT.completion(completion.text, completion.finished)
            np.testing.assert_array_equal(tokens, given)
            assert corpus.name(k) == f"{row.id}/{i}" and corpus.row_K[k] == r
            assert corpus.rewards.values[k] == np.float32(completion.reward)
            np.testing.assert_equal(corpus.reference_log_probs_K[k], np.float32(completion.reference_log_prob))
            assert COMPLETION_SOURCES[corpus.sources_K[k]] == completion.source
            assert corpus.finished_K[k] == completion.finished
            k += 1
    assert k == len(corpus.lengths_K)


def test_only_the_first_completions_are_kept_on_request():
    data = rows(11)
    corpus, cut = tokenize(data, TEXT, first=2), [dataclasses.replace(r, completions=r.completions[:2]) for r in data]
    assert corpus.rewards.counts_R.tolist() == [len(row.completions) for row in cut]
    preferences = [[pair for pair in row.preferences if max(pair) < 2] for row in data]
    assert [corpus.preferences[r].tolist() for r in range(11)] == [[list(p) for p in pairs] for pairs in preferences]


@pytest.mark.parametrize("seed", range(3))
def test_parts_together_are_the_whole_in_memory_and_on_disk(tmp_path: Path, seed):
    data, rng = rows(29, seed), np.random.default_rng(seed)
    whole = tokenize(data, TEXT)
    cuts = np.sort(rng.integers(0, 30, 3))  # a part may be empty
    parts = [tokenize(data[low:high], TEXT) for low, high in zip([0, *cuts], [*cuts, 29], strict=True)]
    tokens = HeldTokens(np.concatenate([part.tokens.read(0, part.token_count) for part in parts]))
    assert_same(whole, join([columns_of(part) for part in parts], tokens, TOKENIZER.bos_token_id))
    for number, part in enumerate(parts):
        corpus_files.write_part(tmp_path, number, 4, part, "key", {"left": number})
    corpus, left_out = corpus_files.read_parts(tmp_path, 4, TOKENIZER.bos_token_id)
    assert_same(whole, corpus)
    assert left_out == [{"left": number} for number in range(4)]


@pytest.mark.parametrize("suffix", corpus_files.SUFFIXES.values())
def test_a_flipped_byte_a_cut_file_and_another_key_are_noticed(tmp_path: Path, suffix):
    corpus_files.write_part(tmp_path, 0, 1, tokenize(rows(7), TEXT), "key", {})
    assert corpus_files.part_whole(tmp_path, 0, 1, "key") and not corpus_files.part_whole(tmp_path, 0, 1, "other")
    file = corpus_files.part_path(tmp_path, 0, 1).with_name(f"part-00000-of-00001{suffix}")
    content = file.read_bytes()
    middle = len(content) // 2
    file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    assert not corpus_files.part_whole(tmp_path, 0, 1, "key")
    file.write_bytes(content[:-1])
    assert corpus_files.part_facts(tmp_path, 0, 1) is None
    with pytest.raises(DamagedError, match="a part of the tokens is not complete"):
        corpus_files.read_parts(tmp_path, 1, None)


def test_tokens_that_vanish_while_they_are_read_are_damage(tmp_path: Path):
    corpus = tokenize(rows(7), TEXT)
    corpus_files.write_part(tmp_path, 0, 1, corpus, "key", {})
    opened, _ = corpus_files.read_parts(tmp_path, 1, None)
    file = corpus_files.part_path(tmp_path, 0, 1).with_name("part-00000-of-00001.tokens")
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DamagedError, match="shorter than it was"):
        opened.tokens.read(0, corpus.token_count)


def test_a_completion_without_tokens_is_read_as_none_wherever_it_is(tmp_path: Path):
    """A chat template may strip all of a completion, and behind that of the last row there is no file."""
    counts = [[2, 0], [0, 0]]  # tokens of the completions of the only row of each part
    for number, lengths in enumerate(counts):
        tokens = np.arange(1, 2 + sum(lengths), dtype=np.int32)
        part = held(tokens, [1], lengths, [2], np.zeros(2), np.zeros(2))
        corpus_files.write_part(tmp_path, number, 2, part, "key", {})
    corpus, _ = corpus_files.read_parts(tmp_path, 2, None)
    assert [corpus.completion(k).tolist() for k in range(4)] == [[2, 3], [], [], []]


@pytest.mark.parametrize("token", [-1, 29])
def test_tokens_of_another_tokenizer_are_refused(token):
    data = rows(5)
    completions = (dataclasses.replace(data[3].completions[0], tokens=np.asarray([1, token, 2], np.int32)),)
    data[3] = dataclasses.replace(data[3], completions=completions)
    with pytest.raises(UserError, match=f"'é3', completion 0: token {token} is not in the model's vocabulary of 29"):
        tokenize(data, TEXT, vocab_size=29)
    tokenize(data[:3], TEXT, vocab_size=29)


def test_a_row_without_prompt_or_completion_is_refused():
    (row,) = rows(1)
    for bad, message in (
        (dataclasses.replace(row, messages=(Message("user", " "),)), "the prompt is empty"),
        (dataclasses.replace(row, completions=()), "no completion"),
    ):
        with pytest.raises(UserError, match=message):
            tokenize([bad], TEXT)


def test_lists_of_uneven_lengths():
    lists = [[3, 1], [], [4], []]
    table = ragged.ragged(lists, np.int32)
    assert [table[i].tolist() for i in range(4)] == lists and len(table) == 4
    assert table.row_V.tolist() == [0, 0, 2] and table.counts_R.tolist() == [2, 0, 1, 0]
    joined = ragged.concatenate([table, ragged.ragged([[]], np.int32), table])
    assert [joined[i].tolist() for i in range(9)] == [*lists, [], *lists]
