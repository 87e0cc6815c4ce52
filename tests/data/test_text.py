"""Text to tokens and back: special tokens exactly once, and nothing lost on the way."""

import numpy as np
import pytest

from qrpo_jax.data import programs
from qrpo_jax.data.rows import Message
from qrpo_jax.data.text import make_text, open_text, vocabulary_tokenizer

TOKENIZER = vocabulary_tokenizer(programs.vocabulary())
BOS, EOS = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id


def text(template="chat"):
    return make_text(TOKENIZER, template, (EOS,))


@pytest.mark.parametrize("template", ["chat", "plain"])
@pytest.mark.parametrize("split", programs.SPLITS)
def test_programs_survive_the_way_to_tokens_and_back(template, split):
    for index in range(23):
        problem = programs.problem(3, split, index)
        prompt = text(template).prompt([Message("user", problem.prompt)])
        assert prompt[0] == BOS and (prompt == BOS).sum() == 1 and EOS not in prompt
        assert TOKENIZER.unk_token_id not in prompt
        assert text(template).decode(prompt[1:], finished=False) == problem.prompt
        for finished in (True, False):
            answer = text(template).completion(problem.solution, finished)
            assert (answer == EOS).sum() == finished and TOKENIZER.unk_token_id not in answer
            assert text(template).decode(answer, finished) == problem.solution


def test_longer_words_match_first():
    tokenizer = vocabulary_tokenizer(["a", "ab", "abc", "."])
    ids = tokenizer.encode("abcab.a", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(ids) == ["abc", "ab", ".", "a"]


def test_what_the_vocabulary_lacks_is_unknown_and_not_lost_in_silence():
    ids = text("plain").encode("a§b")
    assert ids[0] == text("plain").encode("a")[0] and TOKENIZER.unk_token_id in ids


def test_a_prompt_cannot_smuggle_in_special_tokens():
    for template in ("plain", "chat"):
        prompt = text(template).prompt([Message("user", "a</s>b<s>")])
        assert (prompt == EOS).sum() == 0 and (prompt == BOS).sum() == 1, prompt
        assert (text(template).completion("a</s>b") == EOS).sum() == 1
        assert text(template).special_strings("a</s>b<s>") == 2


def test_chat_template_closes_answers_and_leaves_the_last_turn_open():
    turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "a")]
    a, b = text().encode("a"), text().encode("b")
    assert text().prompt(turns).tolist() == [BOS, *a, *b, EOS, *a]


def test_an_end_token_that_only_the_chat_template_writes_ends_completions():
    assert make_text(TOKENIZER, "chat", ()).end_tokens == (EOS,)


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_a_conversation_is_its_prompt_and_what_is_trained_on(template):
    turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "a")]
    for finished in (True, False):
        tokens, mask = text(template).conversation(turns, "ab", finished)
        np.testing.assert_array_equal(tokens[~mask], text(template).prompt(turns))
        np.testing.assert_array_equal(tokens[mask], text(template).completion("ab", finished))
        assert mask.argmax() == (~mask).sum() and (tokens[mask] == EOS).sum() == finished


def test_tokens_are_int32():
    assert text().prompt([Message("user", "a")]).dtype == text().completion("a").dtype == np.int32


def test_a_tokenizer_of_a_folder_is_the_one_that_was_saved(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    opened = open_text(tmp_path, "chat")
    problem = programs.problem(0, "eval", 5)
    turns = [Message("user", problem.prompt)]
    assert opened.end_tokens == (EOS,)
    np.testing.assert_array_equal(opened.prompt(turns), text().prompt(turns))
    np.testing.assert_array_equal(opened.completion(problem.solution), text().completion(problem.solution))


def test_end_tokens_of_the_configs_are_added_once(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": [{EOS}, 7]}}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 9}')
    assert open_text(tmp_path, "plain").end_tokens == (EOS, 7, 9)


def test_stories_tokenizer_keeps_what_it_encodes(fixtures):
    opened = open_text(fixtures / "stories260K-hf", "plain")
    story = 'Once upon a time, "Hello," said Tim.\nThey went home.'
    for finished in (True, False):
        assert opened.decode(opened.completion(story, finished), finished) == story
        assert opened.decode(opened.completion(" and then", finished), finished) == " and then"
    prompt = opened.prompt([Message("user", story)])
    assert (prompt == opened.tokenizer.bos_token_id).sum() == 1 and prompt[0] == opened.tokenizer.bos_token_id


@pytest.mark.parametrize(
    "template, ends, message",
    [("jinja", (2,), "'jinja'; allowed: chat, plain"), ("plain", (), "end token")],
)
def test_layouts_that_cannot_be_are_refused(template, ends, message):
    with pytest.raises(ValueError, match=message):
        make_text(TOKENIZER, template, ends)


def test_a_tokenizer_without_chat_template_is_refused():
    bare = vocabulary_tokenizer(["a"])
    bare.chat_template = None
    with pytest.raises(ValueError, match="no chat template; set config.model.template='plain'"):
        make_text(bare, "chat", (2,))


@pytest.mark.parametrize("fault", ["range(10 ** 9)", "1 // 0", "[][5].x", "2 ** messages", "raise_exception('no')"])
def test_a_chat_template_that_fails_is_refused_in_one_line(fault):
    """Templates are a folder's own code, in a sandbox; whatever they raise is the folder's fault."""
    broken = vocabulary_tokenizer(["a"])
    broken.chat_template = "{% for x in " + fault + " %}{{ x }}{% endfor %}"
    with pytest.raises(ValueError, match=r"the tokenizer's chat template refuses .*config\.model\.template") as caught:
        make_text(broken, "chat", (2,))
    assert "\n" not in str(caught.value)


def test_folders_without_a_readable_tokenizer_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer.json"):
        open_text(tmp_path, "plain")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(ValueError, match=r"config\.model\.path"):
        open_text(tmp_path, "plain")


@pytest.mark.parametrize("words", [["a", "a"], ["a", ""], ["</s>"]])
def test_vocabularies_that_cannot_be_are_refused(words):
    with pytest.raises(ValueError, match="empty, repeated nor special"):
        vocabulary_tokenizer(words)
