"""A tokenizer's chat template: a program of the folder, in Jinja, that writes conversations.

Templates that write today's date write DATE, so that a run that resumes tomorrow reads the same tokens.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError

from qrpo_jax.data.rows import Message
from qrpo_jax.errors import UserError, reason

DATE = datetime(2024, 7, 26)  # the fallback date of Llama 3.1 templates
# A template is code of the folder, run in a sandbox. Whatever it raises is the folder's fault.
TEMPLATE_ERRORS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


def read_template(tokenizer: Any) -> str:
    """The tokenizer's chat template; of several, the default one.

    Raises:
      UserError: there are several and none is the default, or it is not text.
    """
    try:
        template = tokenizer.get_chat_template()
        template.encode()
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"the tokenizer's chat template cannot be used ({reason(error)}); correct tokenizer_config.json",
            about="template",
        ) from None
    return str(template)


def apply_template(tokenizer: Any, chat_template: str, messages: Sequence[Message], where: str, **options: Any) -> Any:
    """Text or tokens of a conversation, by the tokenizer's `apply_chat_template`.

    Raises:
      UserError: the template raises anything.
    """
    conversation = [{"role": m.role, "content": m.content} for m in messages]
    try:
        return tokenizer.apply_chat_template(conversation, chat_template=chat_template, return_dict=False, **options)
    except TEMPLATE_ERRORS as error:
        roles, why = ", ".join(m.role for m in messages), " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{where}: the tokenizer's chat template refuses messages of roles {roles}: {why}; "
            "change the messages or the template",
            about="template",
        ) from None


def reads_parts(tokenizer: Any, chat_template: str) -> bool:
    """Whether a template writes contents that are lists of parts, as those of models that see images."""
    texts = {"user": "Which of them?", "assistant": "This one."}
    parts = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in texts.items()]
    try:
        written = tokenizer.apply_chat_template(parts, chat_template=chat_template, return_dict=False, tokenize=False)
    except TEMPLATE_ERRORS:
        return False
    # A template that knows strings alone may write the list as Python shows it.
    return all(text in written for text in texts.values()) and "'type'" not in written


def pin_date(chat_template: str) -> str:
    """The template with DATE in place of today, which templates can read from `strftime_now` alone."""
    if not reads_date(chat_template):
        return chat_template
    formats = re.findall(r"""strftime_now\(\s*(?:format\s*=\s*)?(["'])(.*?)\1""", chat_template)
    dates = {form: DATE.strftime(form) for _, form in formats}
    fallback = DATE.strftime("%Y-%m-%d")
    return (
        f"{{%- macro strftime_now(format) -%}}{{{{ {dates!r}.get(format, {fallback!r}) }}}}{{%- endmacro +%}}"
        + chat_template
    )


def reads_date(chat_template: str) -> bool:
    return "strftime_now" in chat_template
