"""Chat templates in their documented formats: the tokens of prompts and of completions."""

import functools
import json
import re
from datetime import datetime as real_datetime

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from qrpo_jax import transforms
from qrpo_jax.data.loader import assemble
from qrpo_jax.data.packing import plan_batches
from qrpo_jax.data.rows import Completion, Message, Row
from qrpo_jax.data.text import make_text
from qrpo_jax.data.views import View
from qrpo_jax.errors import UserError
from qrpo_jax.hugging_face.tokenizer import open_text
from tests.helpers import chats, tiny
from tests.helpers.tiny import build_examples

PINNED = "26 Jul 2024"
VIEW = View(max_tokens=2048, over_long="drop")
NONE = np.zeros(0, np.int32)
EVERY = pytest.mark.parametrize("name", chats.LAYOUTS)
FRAGMENTS = [
    *(" ", "  ", "\n", "\n\n", "\t", "the dog", "said", " 42", "7", "?"),
    *(".", "é", "你好", "🙂", "<", "|", ">", "[", "/"),
]


@functools.cache
def opened(name):
    tokenizer = chats.tokenizer(name)
    return make_text(tokenizer, "chat", (tokenizer.eos_token_id,))


def end_of(name):
    return opened(name).tokenizer.convert_tokens_to_ids(chats.LAYOUTS[name].end)


def applied(name, messages, **options):
    conversation = [{"role": m.role, "content": m.content} for m in messages]
    tokenizer = opened(name).tokenizer
    return tokenizer.apply_chat_template(conversation, date_string=PINNED, return_dict=False, **options)


def keeps_its_prompt(name, messages, answer):
    """Whether the text of a whole conversation begins with the text of its prompt."""
    whole = applied(name, [*messages, Message("assistant", answer)], tokenize=False)
    return whole.startswith(applied(name, messages, add_generation_prompt=True, tokenize=False))


def joined(text, messages, answer):
    """Tokens of a prompt and of the finished completion behind it."""
    return np.concatenate([text.prompt(messages), text.completion(answer)])


def user(content):
    return [Message("user", content)]


contents = st.lists(st.sampled_from(FRAGMENTS), max_size=7).map("".join)


@st.composite
def conversations(draw, system):
    messages = [Message("system", draw(contents))] if system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        messages += [Message("user", draw(contents)), Message("assistant", draw(contents))]
    return [*messages, Message("user", draw(contents))]


@EVERY
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_prompt_and_completion_are_the_templates_own_conversation(name, data):
    text, end = opened(name), end_of(name)
    messages, answer = data.draw(conversations(chats.LAYOUTS[name].system)), data.draw(contents)
    assume(not any(text.special_strings(t) for t in [answer, *(m.content for m in messages)]))
    if name.startswith("mistral-0.3"):
        # Its system message is put before the last message if that is a user's, and lost if not.
        assert messages[0].role == "user" or not keeps_its_prompt(name, messages, answer)
        messages = messages[messages[0].role == "system" :]
    assert keeps_its_prompt(name, messages, answer)
    prompt = applied(name, messages, add_generation_prompt=True)
    whole = applied(name, [*messages, Message("assistant", answer)])
    whole = whole[: len(whole) - whole[::-1].index(end)]
    tokens = joined(text, messages, answer)

    assert text.prompt(messages).tolist() == prompt
    assert tokens.dtype == np.int32 and tokens[-1] == end
    assert text.tokenizer.decode(tokens) == text.tokenizer.decode(whole), (messages, answer)
    if whole[: len(prompt)] == prompt:
        assert tokens.tolist() == whole, text.tokenizer.convert_ids_to_tokens(tokens)
    else:
        # The template's whole text merges the line break before an answer with line breaks at the answer's start.
        # A policy that has read the prompt can no longer write that token.
        assert answer[:1].isspace(), (messages, answer)
    bos = text.tokenizer.bos_token_id
    if "bos_token" in chats.LAYOUTS[name].template:
        beginnings = sum(m.role == "user" for m in messages) if name == "llama-2" else 1  # one before every question
        assert tokens[0] == bos and (tokens == bos).sum() == beginnings
    else:
        assert text.tokenizer.decode(tokens[:1]) == "<|im_start|>"


@EVERY
@settings(max_examples=30, deadline=None, derandomize=True)
@given(answer=contents)
def test_completions_end_only_where_they_ended_and_survive_the_way_back(name, answer):
    text = opened(name)
    assume(not text.special_strings(answer))
    done, cut = text.completion(answer), text.completion(answer, finished=False)
    assert done[-1] == end_of(name) and not np.isin(cut, text.end_tokens).any()
    if not text.frame.close:
        assert done[:-1].tolist() == cut.tolist()
    for tokens, finished in ((done, True), (cut, False)):
        decoded = text.decode(tokens, finished)
        treated = {"qwen-3": answer.lstrip("\n")}.get(name, answer.strip())  # by templates that strip at all
        assert decoded in (answer, treated), (decoded, answer)
        assert text.completion(decoded, finished).tolist() == tokens.tolist(), (decoded, answer)


def test_ordinary_answers_do_not_merge_with_the_prompt():
    """The exception in the first law is rare: these are the template's tokens in every layout."""
    for name in chats.LAYOUTS:
        for answer in ("fine", " fine", "Grüße, 你好 🙂", "a\n\n", "42 "):
            prompt = applied(name, user("dog"), add_generation_prompt=True)
            whole = applied(name, [*user("dog"), Message("assistant", answer)])
            assert whole[: len(prompt)] == prompt, (name, answer)


def test_a_prompt_that_ends_in_a_space_does_not_shift_the_answer():
    """Some templates end a prompt with a space, which sentence pieces merge with the first word of the answer."""
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST] ' }}"
        "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    tokenizer = chats.tokenizer("mistral-0.2", chat_template=template)
    text = make_text(tokenizer, "chat", (2,))
    tokens = joined(text, user("why?"), "because")
    conversation = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "because"}]
    whole = tokenizer.apply_chat_template(conversation, return_dict=False)
    prompt = tokenizer.apply_chat_template(conversation[:1], add_generation_prompt=True, return_dict=False)
    assert whole[: len(prompt)] != prompt  # "▁because" and "▁", "because"
    assert tokens[: len(prompt)].tolist() == prompt and tokenizer.decode(tokens) == tokenizer.decode(whole)
    assert text.decode(tokens[len(prompt) :], True) == "because"


FORMATS = {
    "llama-3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    "Hello!<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n@Because.<|eot_id|>",
    "llama-3.2": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December "
    "2023\nToday Date: 26 Jul 2024\n\nBe kind.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    "Why?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n@Because.<|eot_id|>",
    "tulu-3": "<|begin_of_text|><|system|>\nBe kind.\n<|user|>\nHi\n<|assistant|>\nHello!<|end_of_text|>\n<|user|>\n"
    "Why?\n<|assistant|>\n@Because.<|end_of_text|>",
    "mistral-0.1": "<s>[INST] Hi [/INST]Hello!</s> [INST] Why? [/INST]@Because.</s>",
    "mistral-0.2": "<s> [INST] Hi [/INST] Hello!</s> [INST] Why? [/INST]@ Because.</s>",
    "mistral-0.3": "<s>[INST] Hi[/INST] Hello!</s>[INST] Be kind.\n\nWhy?[/INST]@ Because.</s>",
    "llama-2": "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST] Hello! </s><s>[INST] Why? [/INST]@ Because. </s>",
    "qwen-2.5": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!"
    "<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n@Because.<|im_end|>",
    "gemma": "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n<start_of_turn>"
    "user\nWhy?<end_of_turn>\n<start_of_turn>model\n@Because.<end_of_turn>",
    "chatml": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!"
    "<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n@Because.<|im_end|>",
}


@pytest.mark.parametrize("name", FORMATS)
def test_conversations_have_the_documented_format(name):
    """Prompt @ completion. Encoded piece by piece, because sentence pieces put spaces where their text has none."""
    text, layout = opened(name), chats.LAYOUTS[name]
    messages = [Message("user", "Hi"), Message("assistant", "Hello!"), Message("user", "Why?")]
    messages = [Message("system", "Be kind.")] * layout.system + messages
    before, after = FORMATS[name].split("@")
    assert text.prompt(messages).tolist() == text.tokenizer.encode(before, add_special_tokens=False)
    whole = text.tokenizer.encode(before + after, add_special_tokens=False)
    assert joined(text, messages, "Because.").tolist() == whole


def test_qwen_has_its_own_system_message():
    text = opened("qwen-2.5")
    prompt = text.tokenizer.decode(text.prompt(user("Hi")))
    assert prompt.startswith(
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<"
    )


def test_thoughts_keep_their_tokens_in_answers_and_are_plain_text_in_questions():
    text = opened("qwen-3")
    think, unthink = text.tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    answer = text.completion("<think>\nhello\n</think>\n\nfine")
    whole = applied("qwen-3", [*user("Hi"), Message("assistant", "<think>\nhello\n</think>\n\nfine")])
    assert [*text.prompt(user("Hi")), *answer] == whole[:-1]  # a line break after the end of turn
    assert (answer == think).sum() == (answer == unthink).sum() == 1
    assert text.decode(answer, True) == "<think>\nhello\n</think>\n\nfine"
    assert text.decode(text.completion("fine"), True) == "fine"  # without the empty thought
    assert not np.isin(text.prompt(user("<think>fine</think>")), [think, unthink]).any()
    assert text.special_strings("<think>") == 1 and text.special_strings("<think>", "assistant") == 0


@EVERY
def test_nobody_can_forge_a_special_token(name):
    text, layout = opened(name), chats.LAYOUTS[name]
    strings = [*layout.special, *(token for token in layout.added if not token.isspace())]
    ids = text.tokenizer.convert_tokens_to_ids(strings)

    def special(tokens):
        return [t for t in tokens.tolist() if t in ids]

    messages = [Message("user", "dog"), Message("assistant", "fine"), Message("user", "dog")]
    if layout.system:
        messages.insert(0, Message("system", "dog"))
    honest, answer = text.prompt(messages), text.completion("fine")
    for string in layout.special:
        evil = f" said {string}\n{string}the{string}{string[:2]}{string}{string[2:]}. "
        assert text.special_strings(evil) == text.special_strings(evil, "assistant") == 4
        forged = text.prompt([Message(m.role, evil) for m in messages])
        assert special(forged) == special(honest), (string, text.tokenizer.decode(forged))
        body = text.completion(evil)
        assert special(body) == special(answer), (string, text.tokenizer.decode(body))
        kept = text.decode(body, True).replace(" ", "")
        assert kept.strip() == evil.replace(" ", "").strip(), (kept, evil)
        assert text.decode(forged, False).replace(" ", "").count(evil.strip().replace(" ", "")) == len(messages)


def test_special_strings_are_counted_where_text_is_encoded():
    text = opened("llama-3")
    listed = Completion("a<|eot_id|>b", NONE, True, "dataset", 1.0)
    sampled = Completion("a<|eot_id|>b", np.asarray([5, 6], np.int32), True, "reference", 1.0)
    row = Row("r", (Message("user", "<|eot_id|><|eot_id|>"),), "", (listed, sampled), np.zeros(3, np.float32))
    table = build_examples([row], text, VIEW, transforms.TRANSFORMS["identity"])
    assert table.counts["special strings taken as text"] == 3
    tokens = table.corpus.tokens.read(0, table.corpus.token_count).tolist()
    assert tokens.count(end_of("llama-3")) == 1 + 1  # the question's and one completion's


@pytest.mark.parametrize(
    "name, roles, reason",
    [
        ("gemma", "system user", "System role not supported"),
        ("mistral-0.1", "system user", "must alternate"),
        ("mistral-0.2", "user user", "must alternate"),
        ("gemma", "user assistant user user", "must alternate"),
        ("llama-3", "user assistant", "must end before the answer"),
        ("llama-3", "", "empty conversation"),
    ],
)
def test_a_template_that_refuses_messages_names_the_row(name, roles, reason):
    messages = tuple(Message(role, "dog") for role in roles.split())
    with pytest.raises(UserError, match=f"^row 'r7': .*{reason}") as error:
        opened(name).prompt(messages, "row 'r7'")
    assert "\n" not in str(error.value)
    if messages:
        row = Row("r7", messages, "", (Completion("a", NONE, True, "dataset", 1.0),), np.zeros(3, np.float32))
        with pytest.raises(ValueError, match=f"^row 'r7': .*{reason}"):
            build_examples([row], opened(name), VIEW, transforms.TRANSFORMS["identity"])


def test_a_template_that_cannot_lay_out_an_answer_is_refused():
    tokenizer = chats.tokenizer("chatml", chat_template="{{ raise_exception('not\nmine') }}")
    with pytest.raises(UserError, match="^trial conversation: .*refuses messages of roles user: not mine;") as caught:
        make_text(tokenizer, "chat", (0,))
    assert caught.value.about == ("template",)


USERS = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"


@pytest.mark.parametrize(
    "template, message",
    [
        ("hello", "leaves out a user's message"),
        (USERS.replace("user", "assistant"), "leaves out a user's message"),
        (USERS, "leaves out an assistant's answer"),
        ("{{ 'a' * 10**14 }}", "refuses messages of roles user: MemoryError"),
        (5, "cannot be used"),
        ({"tool": "x"}, "cannot be used"),
        ("\ud800", "cannot be used"),
    ],
)
def test_a_template_that_writes_no_conversation_is_refused(template, message):
    tokenizer = chats.tokenizer("chatml")
    tokenizer.chat_template = template
    with pytest.raises(UserError) as caught:
        make_text(tokenizer, "chat", (0,))
    assert message in str(caught.value) and "\n" not in str(caught.value) and caught.value.about == ("template",)


@pytest.mark.parametrize(
    "template, dates",
    [
        (chats.LLAMA_32, ["26 Jul 2024"]),
        ("{{ strftime_now('%Y-%m-%d') + strftime_now(format=\"%d %B\") }}\n" + chats.CHATML, ["2024-07-2626 July\n"]),
        ("{% set f = '%d' %}{{ strftime_now(f) }}" + chats.CHATML, ["2024-07-26"]),
    ],
)
def test_tokens_do_not_depend_on_the_day(monkeypatch, template, dates):
    tokenizer = chats.tokenizer("llama-3.2", chat_template=template)
    tokens = []
    for day in (1, 2):

        class Day(real_datetime):
            @classmethod
            def now(cls, tz=None, day=day):
                return cls(2031, 1, day)

        monkeypatch.setattr(chat_template_utils, "datetime", Day)
        today = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
        text = make_text(tokenizer, "chat", (1,))
        tokens.append((today, joined(text, user("Hi"), "Hello!").tolist()))
    assert tokens[0][0] != tokens[1][0]  # the template does depend on it
    assert tokens[0][1] == tokens[1][1]
    decoded = tokenizer.decode(tokens[0][1])
    assert all(date in decoded for date in dates), decoded


@pytest.mark.parametrize("pad", ["<|im_end|>", "<|endoftext|>", None])
def test_the_end_token_is_trained_on_whatever_the_pad_token_is(pad):
    tokenizer = chats.tokenizer("chatml", eos_token="<|im_end|>", pad_token=pad)
    text = make_text(tokenizer, "chat", (tokenizer.eos_token_id,))
    answers = [Completion("fine" * n, NONE, n != 2, "dataset", float(n)) for n in (1, 2, 3)]
    row = Row("r", (Message("user", "dog"),), "", tuple(answers), np.zeros(3, np.float32))
    table = build_examples([row], text, VIEW, transforms.TRANSFORMS["identity"])
    plan = plan_batches(table.packing_units(), batch_units=3, row_tokens=211, slots=4, row_multiple=1)
    batch = assemble(table, plan, 0)
    trained = batch.targets_BxL[batch.targets_BxL >= 0]
    expected = [text.completion(c.text, c.finished).tolist() for c in answers]
    assert sorted(trained.tolist()) == sorted(sum(expected, []))
    assert (trained == tokenizer.eos_token_id).sum() == 2  # two completions ended, one was cut
    padded = batch.targets_BxL[batch.layout.groups_BxL == 0]
    assert padded.size > 0 and (padded == -1).all()


def test_a_cut_completion_of_nothing_but_space_is_dropped_and_counted():
    """A template that strips answers leaves no token of it, and a mean over no tokens is no number."""
    blank = Completion(" \n", NONE, False, "dataset", 1.0)
    fine = Completion("fine", NONE, False, "dataset", 1.0)
    row = Row("r", (Message("user", "dog"),), "", (blank, fine), np.zeros(3, np.float32))
    table = build_examples([row], opened("llama-3"), VIEW, transforms.TRANSFORMS["identity"])
    assert tiny.names(table) == ("r/1",) and table.counts["dropped: no tokens"] == 1
    assert (table.completions_C.length > 0).all()


def test_end_tokens_are_those_of_the_template_the_tokenizer_and_the_configs(tmp_path):
    chats.tokenizer("llama-3").save_pretrained(tmp_path)
    ids = {token: opened("llama-3").tokenizer.convert_tokens_to_ids(token) for token in chats.LLAMA_3_TOKENS}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [ids["<|end_of_text|>"], 7]}))
    text = open_text(tmp_path, "chat")
    assert text.end_tokens == (ids["<|eot_id|>"], ids["<|end_of_text|>"], 7)
    assert text.completion("fine")[-1] == ids["<|eot_id|>"]
    assert open_text(tmp_path, "plain").completion("fine")[-1] == ids["<|end_of_text|>"]


def test_a_template_without_an_end_token_ends_with_the_tokenizers():
    template = "{% for m in messages %}{{ '### ' + m['role'] + ':\\n' + m['content'] + '\\n\\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ '### assistant:\\n' }}{% endif %}"
    text = make_text(chats.tokenizer("llama-3", chat_template=template), "chat", (441,))
    assert text.end_tokens == (441,) and text.decode(text.completion("fine"), True) == "fine"
    assert text.completion("fine").tolist() == [*text.encode("fine"), 441]


def test_a_template_that_does_not_continue_its_own_prompt_keeps_the_answer_unchanged():
    """Reasoning models: the prompt opens a thought, which the whole conversation leaves out."""
    template = chats.CHATML.replace("assistant\\n' }}{% endif", "assistant\\n<think>\\n' }}{% endif")
    text = make_text(chats.tokenizer("chatml", chat_template=template), "chat", (0,))
    answer = " fine\n</think>\n\nyes "
    decoded = text.tokenizer.decode(joined(text, user("Hi"), answer))
    assert decoded.endswith("<|im_start|>assistant\n<think>\n fine\n</think>\n\nyes <|im_end|>")
    assert text.decode(text.completion(answer), True) == answer


@EVERY
def test_use_and_export_leave_the_tokenizer_as_it_was(name, tmp_path):
    def files(tokenizer, folder):
        tokenizer.save_pretrained(tmp_path / folder)
        return {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}

    before = files(chats.tokenizer(name), "before")
    text = open_text(tmp_path / "before", "chat")
    again = files(text.tokenizer, "again")
    first = joined(text, user("the <s> dog <|im_end|>"), "fine</s>")
    assert files(text.tokenizer, "used") == again
    assert again["tokenizer.json"] == before["tokenizer.json"]
    assert again["chat_template.jinja"] == before["chat_template.jinja"]
    back = open_text(tmp_path / "used", "chat")
    assert joined(back, user("the <s> dog <|im_end|>"), "fine</s>").tolist() == first.tolist()
    assert (back.end_tokens, back.frame) == (text.end_tokens, text.frame)


def test_a_real_sentence_piece_tokenizer_lays_out_conversations(fixtures):
    tokenizer = AutoTokenizer.from_pretrained(fixtures / "stories260K-hf")
    tokenizer.chat_template = chats.MISTRAL_2
    text = make_text(tokenizer, "chat", (tokenizer.eos_token_id,))
    story = "Once upon a time, there was a dog.\nHe said: hello </s>!"
    tokens = joined(text, user("Tell me a story. <s>"), story)
    assert tokens[0] == 1 and (tokens == 1).sum() == 1 and (tokens == 2).sum() == 1 and tokens[-1] == 2
    assert text.decode(text.completion(story), True) == story
    plain = re.sub("[<>]", "", story)
    tokens = joined(text, user("Tell me a story."), plain)
    conversation = [{"role": "user", "content": "Tell me a story."}, {"role": "assistant", "content": plain}]
    assert tokens.tolist() == tokenizer.apply_chat_template(conversation, return_dict=False)
    assert text.decode(text.completion(plain), True) == plain
