"""Stop strings: a completion ends with the token in which its text has one for the first time."""

import numpy as np
import pytest

from configs import default
from qrpo_jax import pipeline
from qrpo_jax.config import overrides
from qrpo_jax.data import row_files
from qrpo_jax.data.encoder import make_encoder
from qrpo_jax.data.pieces import pieces
from qrpo_jax.data.vocabulary import vocabulary_tokenizer
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.sampling.stop import cut, make_stops
from tests.helpers import chats
from tests.helpers.jobs import job, refused

STRINGS = [
    ["ab"],
    ["aab", "b"],
    ["abab", "bac"],
    ["a"],
    ["ba", "aa", "cab"],
    ["é", "🙂"],
    ["\n\n", "END"],
    ["aXa", "X"],
]
LETTERS = [
    b"a",
    b"b",
    b"c",
    b"ab",
    b"",
    b"ba",
    b"cabb",
    "é".encode()[:1],
    "é".encode()[1:],
    "🙂".encode(),
    b"X",
    b"\n",
    b"END",
]


@pytest.mark.parametrize("strings", STRINGS, ids=map(str, STRINGS))
def test_the_table_stops_where_the_text_has_a_string_for_the_first_time(strings):
    stops, rng = make_stops(strings, LETTERS, len(LETTERS) + 3), np.random.default_rng(11)
    ends = []
    for _ in range(300):
        tokens, state, text, stopped = rng.integers(0, len(LETTERS) + 3, 17), 0, b"", None
        for step, token in enumerate(tokens.tolist()):
            state = int(stops.table_SxV[state, token])
            text += LETTERS[token] if token < len(LETTERS) else b""
            has = any(string.encode() in text for string in strings)
            assert (state == stops.states - 1) == has, (tokens, step, text)
            stopped = step if has and stopped is None else stopped
        ends.append(stopped)
    assert None in ends or strings == ["a"] and len(set(ends)) > 3, ends
    assert any(end is not None for end in ends), "some must stop"


def test_the_first_of_several_strings_cuts_the_text():
    rng = np.random.default_rng(3)
    for _ in range(300):
        text = "".join(rng.choice(list("abc"), 9))
        strings = ["".join(rng.choice(list("abc"), rng.integers(1, 4))) for _ in range(2)]
        places = [i for i in range(len(text)) if any(text.startswith(string, i) for string in strings)]
        assert cut(text, strings) == (text[: places[0]] if places else None), (text, strings)


def made(kind):
    return vocabulary_tokenizer(["a", " a", "ab", "\n", "é"]) if kind == "vocabulary" else chats.tokenizer(kind)


@pytest.mark.parametrize("kind", ["vocabulary", *chats.LAYOUTS])
def test_pieces_of_tokens_are_the_bytes_of_their_text(kind):
    encoder, rng = make_encoder(made(kind)), np.random.default_rng(7)
    found, size = pieces(encoder), len(encoder.tokenizer)
    assert len(found) == size
    for text in ("a b", "é🙂 ab\n\n a", " leading", "x  y\t1"):
        tokens = encoder.encode_within(text, untrusted=True)
        joined = b"".join(found[token] for token in tokens).decode()
        assert joined == encoder.decode_within(np.asarray(tokens)), (kind, text, tokens)
    whole = 0
    for _ in range(200):
        tokens = rng.integers(0, size, 5)
        wanted = encoder.decode_within(tokens)
        if "\ufffd" not in wanted:  # which stands for bytes that are no character
            whole += 1
            assert b"".join(found[token] for token in tokens.tolist()).decode() == wanted, (kind, tokens)
    assert whole > 20, (kind, whole)


@pytest.mark.slow
@pytest.mark.parametrize("slots", [0, 5])
def test_a_run_with_stop_strings_has_the_beginnings_of_one_without(tmp_path, slots):
    """The same draws, up to the token with which a text has a stop string; its text ends before that."""
    options = dict(stages=("sft", "sample"), sft__examples=64, prompts__count=29, prompts__unit=13, sample__slots=slots)
    rows, counts, strings = {}, {}, (") ", "x", "re")
    for name, stop in (("with", strings), ("without", ())):
        assert pipeline.run(job(tmp_path / name, sample__stop=stop, sample__max_new_tokens=31, **options))
        rows[name] = list(row_files.read(tmp_path / name / "sample"))
        counts[name] = read_manifest(tmp_path / name / "sample")["counts"]
    stopped = 0
    for short, long in zip(rows["with"], rows["without"], strict=True):
        for one, whole in zip(short.completions, long.completions, strict=True):
            before = cut(whole.text, strings)
            assert one.text == (whole.text if before is None else before), (one, whole)
            assert one.tokens.tolist() == whole.tokens[: len(one.tokens)].tolist()
            if before is None:
                assert (one.finished, len(one.tokens)) == (whole.finished, len(whole.tokens)), (one, whole)
                # Slots have other neighbours, and sums of products round in another way.
                assert one.log_prob == pytest.approx(whole.log_prob, rel=1e-5), (one, whole)
            else:
                stopped += 1
                assert one.finished and one.log_prob >= whole.log_prob, (one, whole)
    assert 0 < stopped < counts["with"]["completions"], stopped
    assert counts["with"]["completion tokens"] < counts["without"]["completion tokens"], counts


@pytest.mark.parametrize("section", ["sample", "evaluate"])
def test_the_config_takes_line_breaks_and_spaces_as_stop_strings(section):
    config = default.get_config()
    overrides.apply(config, [(f"{section}.stop", r"('\n\n', 'Question:', ' ')")])
    assert config[section].stop == ("\n\n", "Question:", " ")


@pytest.mark.parametrize("section", ["sample", "evaluate"])
def test_stop_strings_whose_table_would_be_too_large_are_refused(tmp_path, section):
    message = f"the stop strings have 1,001 bytes together.*config.{section}.stop"
    refused(tmp_path, message, **{f"{section}__stop": ("é" * 500, "a")})
