"""Chat templates that treat thoughts, ends of turns and contents as published ones do, on a tokenizer trained here."""

from tests.helpers import chats

TURN = "{{ '<|im_start|>' + m['role'] + '\\n' }}"
LOOP = "{% for m in messages %}"
ASSISTANT = "{% if m['role'] == 'assistant' %}"
LAST = "{% set answer = m['content'].split('</think>')[-1] %}"
END = "<|im_end|>\\n"


def template(answer: str, generation: str) -> str:
    """A template in ChatML that writes answers by an expression of Jinja, and prompts that end in `generation`."""
    return (
        f"{LOOP}{TURN}{ASSISTANT}{LAST}{{{{ {answer} + '{END}' }}}}{{% else %}}{{{{ m['content'] + '{END}' }}}}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
        + generation
        + "{% endif %}"
    )


OPEN = "{{ '<think>\\n' }}"
EMPTY = "('<think></think>' if '</think>' not in m['content'] else '')"
TEMPLATES = {
    # Its conversations have no thoughts at all.
    "drops": template("answer", OPEN),
    # Its conversations close an empty thought directly behind the mark, where prompts have a line break.
    "inline": template(f"{EMPTY} + m['content']", OPEN),
    # Its conversations continue its prompts.
    "continues": template(
        "'<think>\\n' + (m['content'].split('</think>')[0].split('<think>')[-1].strip('\\n') if '</think>' in "
        "m['content'] else '') + '\\n</think>\\n\\n' + answer.lstrip('\\n')",
        "{{ '<think>\\n\\n</think>\\n\\n' if enable_thinking is defined and not enable_thinking else '<think>\\n' }}",
    ),
    # It closes the thought in prompts, unless thinking is switched on.
    "closed": template(
        "'<think>\\n' + (m['content'].split('</think>')[0].split('<think>')[-1].strip('\\n') if '</think>' in "
        "m['content'] else '') + '\\n</think>\\n\\n' + answer.lstrip('\\n')",
        "{{ '<think>\\n' if enable_thinking is defined and enable_thinking else '<think>\\n\\n</think>\\n\\n' }}",
    ),
    # It puts an empty thought before the one that an answer brings.
    "wraps": template("'<think>\\n\\n</think>\\n\\n' + m['content']", OPEN),
    # It writes contents behind the mark as they are.
    "raw": template("'<think>\\n' + m['content']", OPEN),
}
# Two tokens close a turn, of which the second is the end token; headers are tokens.
TWO_ENDS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ '<|closed|>' }}{% endif %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# Nothing closes a turn; the header of the user's reply ends an answer.
NO_END = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'].strip() }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
# The end of a turn, and the end of the text behind the last turn.
END_OF_TEXT = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|closed|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def tokenizer(name: str):
    """A tokenizer with a template of TEMPLATES, whose thoughts are added tokens that are not special."""
    return chats.tokenizer("qwen-3", chat_template=TEMPLATES[name])


def header_tokenizer(chat_template: str):
    """A tokenizer whose headers are special tokens."""
    built = chats.tokenizer("headers", chat_template=chat_template)
    built.add_special_tokens({"additional_special_tokens": ["<|closed|>"]})
    return built
