"""Text to tokens and back: special tokens exactly once, and nothing lost on the way."""

import numpy as np
import pytest

from qrpo_jax.data import programs
from qrpo_jax.data.rows import Message
from qrpo_jax.data.text import TEMPLATES, make_text
from qrpo_jax.data.vocabulary import vocabulary_tokenizer
from qrpo_jax.errors import UserError
from qrpo_jax.hugging_face.tokenizer import open_text

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


def test_characters_outside_the_vocabulary_become_the_unknown_token():
    ids = text("plain").encode("a§b")
    assert ids[0] == text("plain").encode("a")[0] and TOKENIZER.unk_token_id in ids


def test_a_prompt_cannot_smuggle_in_special_tokens():
    for template in ("plain", "chat"):
        prompt = text(template).prompt([Message("user", "a</s>b<s>")])
        assert (prompt == EOS).sum() == 0 and (prompt == BOS).sum() == 1, prompt
        assert (text(template).completion("a</s>b") == EOS).sum() == 1
        assert text(template).special_strings("a</s>b<s>") == 2


def test_a_chat_prompt_closes_earlier_answers_and_ends_where_the_next_one_begins():
    messages = [Message("user", "a"), Message("assistant", "b"), Message("user", "a")]
    a, b = text().encode("a"), text().encode("b")
    assert text().prompt(messages).tolist() == [BOS, *a, *b, EOS, *a]


def test_an_end_token_that_only_the_chat_template_writes_ends_completions():
    assert make_text(TOKENIZER, "chat", ()).end_tokens == (EOS,)


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_prompt_and_completion_are_the_whole_conversation_and_only_a_finished_one_ends(template):
    messages = [Message("user", "a"), Message("assistant", "b"), Message("user", "a")]
    prompt, answer = text(template).prompt(messages), text(template).encode("ab")
    for finished in (True, False):
        assert text(template).completion("ab", finished).tolist() == answer + [EOS] * finished
    whole = text().whole(messages, "ab")
    if template == "chat":
        np.testing.assert_array_equal(np.concatenate([prompt, text().completion("ab")]), whole)
    else:  # without the end token of the earlier answer
        assert prompt.tolist() == [BOS, *text().encode("aba")]


def test_tokens_are_int32():
    assert text().prompt([Message("user", "a")]).dtype == text().completion("a").dtype == np.int32


def test_a_tokenizer_of_a_folder_is_the_one_that_was_saved(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    opened = open_text(tmp_path, "chat")
    problem = programs.problem(0, "eval", 5)
    messages = [Message("user", problem.prompt)]
    assert opened.end_tokens == (EOS,)
    np.testing.assert_array_equal(opened.prompt(messages), text().prompt(messages))
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
def test_impossible_layouts_are_refused(template, ends, message):
    with pytest.raises(UserError, match=message) as caught:
        make_text(TOKENIZER, template, ends)
    assert caught.value.about == (("path",) if template in TEMPLATES else ("template",))


def test_a_tokenizer_without_chat_template_is_refused():
    bare = vocabulary_tokenizer(["a"])
    bare.chat_template = None
    with pytest.raises(UserError, match="no chat template; set the template to 'plain'") as caught:
        make_text(bare, "chat", (2,))
    assert caught.value.about == ("template",)


@pytest.mark.parametrize("fault", ["range(10 ** 9)", "1 // 0", "[][5].x", "2 ** messages", "raise_exception('no')"])
def test_a_chat_template_that_fails_is_refused_in_one_line(fault):
    """Templates are code of the folder, in a sandbox; whatever they raise is the folder's fault."""
    broken = vocabulary_tokenizer(["a"])
    broken.chat_template = "{% for x in " + fault + " %}{{ x }}{% endfor %}"
    with pytest.raises(UserError, match=r"the tokenizer's chat template refuses ") as caught:
        make_text(broken, "chat", (2,))
    assert "\n" not in str(caught.value) and caught.value.about == ("template",)


def test_folders_without_a_readable_tokenizer_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer.json"):
        open_text(tmp_path, "plain")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(UserError, match="the tokenizer in .* cannot be read") as caught:
        open_text(tmp_path, "plain")
    assert caught.value.about == ("path",)


@pytest.mark.parametrize("words", [["a", "a"], ["a", ""], ["</s>"]])
def test_impossible_vocabularies_are_refused(words):
    with pytest.raises(ValueError, match="empty, repeated nor special"):
        vocabulary_tokenizer(words)
