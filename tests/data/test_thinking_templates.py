"""Chat templates that open, close, drop or rewrite thoughts, and the tokens that end an answer."""

import functools

import numpy as np
import pytest

from qrpo_jax.data import thoughts
from qrpo_jax.data.rows import Message
from qrpo_jax.data.text import make_text
from qrpo_jax.errors import UserError
from tests.helpers import chats, thinking_chats

USER = [Message("user", "Why is the sky blue?")]
TURNS = [Message("system", "Be kind."), *USER, Message("assistant", "Light."), Message("user", "And red?")]
START = "<|im_start|>assistant\n"


@functools.cache
def opened(name, thinking="template"):
    tokenizer = thinking_chats.tokenizer(name)
    return make_text(tokenizer, "chat", (tokenizer.eos_token_id,), thinking)


def written(text, messages, answer, finished=True):
    """Text of a prompt's last turn and of the completion behind it."""
    tokens = np.concatenate([text.prompt(messages), text.completion(answer, finished)])
    return text.tokenizer.decode(tokens).rpartition(START)[2]


def whole(text, messages, answer):
    """Tokens of the template's own conversation."""
    conversation = [{"role": m.role, "content": m.content} for m in [*messages, Message("assistant", answer)]]
    return text.tokenizer.apply_chat_template(conversation, chat_template=text.chat_template, return_dict=False)


@pytest.mark.parametrize("messages", [USER, TURNS])
@pytest.mark.parametrize(
    "name, thinking, expected",
    [
        ("drops", "template", "<think>\n\n</think>\n\nfine<|im_end|>"),
        ("drops", "off", "<think>\n\n</think>\n\nfine<|im_end|>"),
        ("drops", "on", "<think>\n\n</think>\n\nfine<|im_end|>"),
        ("inline", "template", "<think>\n</think>fine<|im_end|>"),
        ("continues", "template", "<think>\n\n</think>\n\nfine<|im_end|>"),
        ("continues", "off", "<think>\n\n</think>\n\nfine<|im_end|>"),
        ("closed", "template", "<think>\n\n</think>\n\nfine<|im_end|>"),
        ("closed", "on", "<think>\n\n</think>\n\nfine<|im_end|>"),
        ("wraps", "template", "<think>\n\n</think>\n\nfine<|im_end|>"),
        ("raw", "template", "<think>\nfine<|im_end|>"),  # what its own conversations show, and `notes` says so
    ],
)
def test_an_answer_without_a_thought_comes_behind_a_closed_one(name, thinking, expected, messages):
    text = opened(name, thinking)
    assert written(text, messages, "fine") == expected
    prompt, answer = text.prompt(messages), text.completion("fine")
    assert text.decode(answer, True) == "fine"
    assert text.completion(text.decode(answer, True)).tolist() == answer.tolist()
    closes = text.tokenizer.convert_tokens_to_ids("</think>")
    assert (answer == closes).sum() == (thinking != "off" and name not in ("closed", "raw") or thinking == "on")
    assert (prompt == closes).sum() + (answer == closes).sum() == (name != "raw") + expected_earlier(name, messages)


def expected_earlier(name, messages):
    """Thoughts that the template writes in earlier answers."""
    return sum(m.role == "assistant" for m in messages) * (name not in ("drops", "raw"))


@pytest.mark.parametrize("name, thinking", [("continues", "off"), ("closed", "template")])
def test_prompts_that_close_the_thought_and_answers_are_the_templates_own_conversation(name, thinking):
    text = opened(name, thinking)
    for messages in (USER, TURNS):
        for answer in ("fine", " fine", "Grüße, 你好 🙂 ", ""):
            tokens = [*text.prompt(messages), *text.completion(answer)]
            assert whole(text, messages, answer)[: len(tokens)] == tokens, (answer, text.tokenizer.decode(tokens))


@pytest.mark.parametrize("name", ["drops", "inline", "continues", "wraps", "raw"])
@pytest.mark.parametrize("answer", ["<think>\nhm\n</think>\n\nfine", "hm\n</think>\n\nfine", "<think>hm</think>fine"])
def test_an_answer_with_a_thought_continues_the_one_that_the_prompt_opened(name, answer):
    text = opened(name)
    got = written(text, USER, answer)
    assert "".join(got.split()) == "<think>hm</think>fine<|im_end|>", got
    if name == "continues":
        tokens = [*text.prompt(USER), *text.completion(answer)]
        assert whole(text, USER, answer)[: len(tokens)] == tokens


@pytest.mark.parametrize("name", ["drops", "inline", "continues", "wraps"])
def test_a_thought_that_was_cut_is_not_closed(name):
    assert written(opened(name), USER, "<think>\nhm and", finished=False) == "<think>\nhm and"


def test_thoughts_come_behind_the_one_that_a_prompt_closed_and_that_is_said():
    text = opened("closed")
    got = written(text, USER, "<think>\nhm\n</think>\n\nfine")
    assert got == "<think>\n\n</think>\n\n<think>\nhm\n</think>\n\nfine<|im_end|>"
    assert any("behind a thought that it closed" in note for note in text.notes)


def test_an_answer_of_which_the_template_would_drop_letters_stays_as_it_is():
    """Several thoughts: the template keeps the first and what follows the last."""
    answer = "<think>\na\n</think>\n\nb\n</think>\n\nc"
    text = opened("continues")
    assert text.tokenizer.decode(whole(text, USER, answer)).count("b\n") == 0
    assert written(text, USER, answer) == answer + "<|im_end|>"


@pytest.mark.parametrize(
    "name, thinking, said",
    [
        (
            "drops",
            "template",
            "opens a thought in every prompt ('<think>\\n'), so an answer that brings none is trained",
        ),
        (
            "drops",
            "template",
            "behind the end of an empty one ('\\n</think>\\n\\n'), where its own conversations have none",
        ),
        ("drops", "template", "leaves thoughts (<think>) out of earlier answers"),
        ("drops", "off", "where its own conversations have"),
        ("inline", "template", "('</think>'), where its own conversations have '<think></think>'"),
        ("continues", "template", "('\\n</think>\\n\\n'), as in its own conversations"),
        ("raw", "template", "an answer that brings no thought is trained inside one"),
    ],
)
def test_what_a_template_does_to_thoughts_is_said(name, thinking, said):
    notes = opened(name, thinking).notes
    assert any(said in note for note in notes) and not any("\n" in note for note in notes), notes


@pytest.mark.parametrize(
    "name, said",
    [
        ("gemma", ["strips white space around questions and answers"]),
        ("mistral-0.3", ["strips white space around answers"]),
        ("llama-3.2", ["strips white space around questions and answers", "writes a date, always 26 Jul 2024"]),
        ("qwen-3", ["leaves thoughts (<think>) out of earlier answers"]),
        ("chatml", []),
        ("tulu-3", []),
    ],
)
def test_what_a_template_changes_is_said_and_nothing_else(name, said):
    assert list(make_text(chats.tokenizer(name), "chat", (0,)).notes) == said


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}", "leaves out system messages"),
        (
            "messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}",
            "messages %}{{ '<|im_start|>' + m['role'] + '\\n' + (m['content'] if loop.last or m['role'] != 'assistant' "
            "else '') + '<|im_end|>\\n' }}{% endfor %}",
            "leaves out earlier answers",
        ),
        (
            "'<|im_start|>assistant\\n' }}{% endif",
            "'<|im_start|>bot\\n' }}{% endif",
            "where its own conversations have '>\\n<|im_start|>assistant\\n' before an answer",
        ),
    ],
)
def test_messages_that_are_lost_and_prompts_that_are_not_continued_are_said(old, new, said):
    assert old in chats.CHATML
    notes = make_text(chats.tokenizer("chatml", chat_template=chats.CHATML.replace(old, new)), "chat", (0,)).notes
    assert any(said in note for note in notes), notes


@pytest.mark.parametrize("mark, close", thoughts.MARKS)
def test_thoughts_are_known_by_the_marks_of_every_family(mark, close):
    template = thinking_chats.TEMPLATES["drops"].replace("<think>", mark).replace("</think>", close)
    text = make_text(chats.tokenizer("chatml", chat_template=template), "chat", (0,))
    assert written(text, USER, "fine") == f"{mark}\n\n{close}\n\nfine<|im_end|>"
    assert written(text, USER, f"{mark}\nhm\n{close}\n\nfine") == f"{mark}\nhm\n{close}\n\nfine<|im_end|>"
    assert f"leaves thoughts ({mark}) out of earlier answers" in text.notes


@pytest.mark.parametrize(
    "name, layout, thinking, message",
    [
        ("chatml", "chat", "on", "writes the same prompts with and without"),
        ("chatml", "chat", "off", "writes the same prompts with and without"),
        ("chatml", "plain", "off", "template 'plain' has no thoughts"),
        ("chatml", "chat", "maybe", "'maybe'; allowed: template, on, off"),
    ],
)
def test_thoughts_that_cannot_be_switched_are_refused(name, layout, thinking, message):
    with pytest.raises(UserError, match=message) as caught:
        make_text(chats.tokenizer(name), layout, (0,), thinking)
    assert caught.value.about == ("thinking",)


PARTS = (
    "{% for m in messages %}{{ m['role'] + ': ' }}{% for part in m['content'] %}PART{% endfor %}<|im_end|>{% endfor %}"
)


@pytest.mark.parametrize(
    "part",
    [
        "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}",  # loses contents that are text
        "{{ part.text + '' }}",  # raises
    ],
)
def test_templates_of_contents_in_parts_are_refused_with_what_to_do(part):
    tokenizer = chats.tokenizer("chatml", chat_template=PARTS.replace("PART", part))
    with pytest.raises(
        UserError, match="^the tokenizer's chat template reads contents only as lists of parts"
    ) as caught:
        make_text(tokenizer, "chat", (0,))
    assert "set the template to 'plain', or change" in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.about == ("template",)


def test_of_two_tokens_behind_an_answer_the_one_that_the_configs_name_ends_it():
    tokenizer = thinking_chats.header_tokenizer(thinking_chats.TWO_ENDS)
    closed, eos = tokenizer.convert_tokens_to_ids(["<|closed|>", "</s>"])
    text = make_text(tokenizer, "chat", (eos,))
    assert text.end_tokens == (eos,)
    for answer in ("fine", "fine <s> </s>"):
        done = text.completion(answer)
        assert done[-2:].tolist() == [closed, eos] and (done == closed).sum() == (done == eos).sum() == 1
        assert text.decode(done, True).replace(" ", "") == answer.replace(" ", "")
    tokens = [*text.prompt(TURNS), *text.completion("fine")]
    assert tokens == whole(text, TURNS, "fine")
    assert make_text(tokenizer, "chat", (7,)).end_tokens == (closed, 7)  # where none is named, the first


def test_where_a_template_closes_no_answer_the_reply_does_if_the_configs_name_it():
    tokenizer = thinking_chats.header_tokenizer(thinking_chats.NO_END)
    user, eos = tokenizer.convert_tokens_to_ids(["<|user|>", "</s>"])
    text = make_text(tokenizer, "chat", (eos, user))
    assert text.end_tokens == (user, eos) and not any("end token" in note for note in text.notes)
    tokens = [*text.prompt(USER), *text.completion("fine")]
    reply = [*USER, Message("assistant", "fine")]
    assert text.prompt([*reply, *USER])[: len(tokens)].tolist() == tokens and tokens[-1] == user
    alone = make_text(tokenizer, "chat", (eos,))
    assert alone.end_tokens == (eos,) and alone.completion("fine")[-1] == eos
    assert "writes no end token after an answer, so answers end with the tokenizer's" in alone.notes


def test_the_end_of_the_text_does_not_end_a_turn():
    tokenizer = thinking_chats.header_tokenizer(thinking_chats.END_OF_TEXT)
    closed, eos = tokenizer.convert_tokens_to_ids(["<|closed|>", "</s>"])
    for named in ((eos,), (eos, closed)):
        text = make_text(tokenizer, "chat", named)
        assert text.end_tokens == (closed, eos) and text.completion("fine")[-1] == closed
