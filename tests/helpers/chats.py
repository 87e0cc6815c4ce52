"""Chat templates in the documented formats of published models, on small tokenizers trained here.

A layout has the special tokens and the kind of tokenizer of the published model: bytes for Llama 3 and Qwen; pieces of
sentences with a space before the text for Llama 2 and Mistral, and without it for Gemma.
"""

import functools
import json
from typing import NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "Once upon a time there was a little dog, and the dog said: hello! How are you?",
    "The answer is 42.\n\nThat is because 6 x 7 = 42.\nYou are welcome.",
    "user assistant system model You are a helpful assistant, created by people.",
    "Write a function that adds two numbers.\n    def add(a, b):\n        return a + b\n",
    "Grüße aus Zürich, 你好 🙂   three spaces,  two spaces, a\ttab and \n\n\n three line breaks",
]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = [f"<0x{i:02X}>" for i in range(256)]


class Layout(NamedTuple):
    kind: str  # "bytes", "prepend" (a space before every stretch of text), "metaspace" (before the first), "spaces"
    template: str
    special: tuple[str, ...]
    bos: str | None
    end: str  # end of turn
    system: bool = True  # whether a system message is allowed
    added: tuple[str, ...] = ()  # added tokens that are not special
    eos: str = ""  # if it is not the end of turn


LLAMA_3 = """{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + \
(m['content'] | trim) + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}\
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

LLAMA_32 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}{% set rest = messages[1:] %}
{%- else %}{% set system = '' %}{% set rest = messages %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\n' }}
{{- 'Today Date: ' + date_string + '\\n\\n' + system + '<|eot_id|>' }}
{%- for m in rest %}
    {{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + (m['content'] | trim) + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

TULU_3 = """{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|assistant|>\\n' + \
m['content'] + eos_token }}{% if not loop.last %}{{ '\\n' }}{% endif %}{% else %}{{ '<|' + m['role'] + '|>\\n' + \
m['content'] + '\\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""

ALTERNATE = """{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"""

MISTRAL_1 = (
    "{{ bos_token }}{% for m in messages %}"
    + ALTERNATE
    + """{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}\
{% else %}{{ m['content'] + eos_token + ' ' }}{% endif %}{% endfor %}"""
)
MISTRAL_2 = (
    "{{ bos_token }}{% for m in messages %}"
    + ALTERNATE
    + """{% if m['role'] == 'user' %}{{ ' [INST] ' + m['content'] + ' [/INST]' }}\
{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"""
)
MISTRAL_3 = (
    """{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + '\\n\\n' %}\
{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}{{ bos_token }}\
{% for m in rest %}"""
    + ALTERNATE
    + """{% if m['role'] == 'user' %}{{ '[INST] ' + (system if loop.last else '') + m['content'] + '[/INST]' }}\
{% else %}{{ ' ' + (m['content'] | trim) + eos_token }}{% endif %}{% endfor %}"""
)
LLAMA_2 = (
    """{% if messages[0]['role'] == 'system' %}\
{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}\
{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}"""
    + ALTERNATE
    + """{% if m['role'] == 'user' %}\
{{ bos_token + '[INST] ' + ((system if loop.first else '') + m['content']) | trim + ' [/INST]' }}\
{% else %}{{ ' ' + (m['content'] | trim) + ' ' + eos_token }}{% endif %}{% endfor %}"""
)
CHATML = """{% for m in messages %}\
{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# Headers are single tokens, and the answer begins directly after one.
HEADERS = """{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""

QWEN_25 = (
    """{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. ' + \
'You are a helpful assistant.<|im_end|>\\n' }}{% endif %}"""
    + CHATML
)
# Qwen 3: thoughts are dropped from earlier answers; the last answer always has a block of thoughts, even an empty one.
QWEN_3 = """{% for m in messages %}{% set answer = m['content'].split('</think>')[-1].lstrip('\\n') %}\
{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] != 'assistant' %}{{ m['content'] }}{% else %}{% if loop.last %}\
{% set thought = m['content'].split('</think>')[0].split('<think>')[-1] if '</think>' in m['content'] else '' %}\
{{ '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}{% endif %}{{ answer }}{% endif %}\
{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

GEMMA = (
    """{{ bos_token }}{% if messages[0]['role'] == 'system' %}\
{{ raise_exception('System role not supported') }}{% endif %}\
{% for m in messages %}"""
    + ALTERNATE
    + """{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' + (m['content'] | trim) + \
'<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
)

LLAMA_3_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PIECES = ("<unk>", "<s>", "</s>")
LAYOUTS = {
    "llama-3": Layout("bytes", LLAMA_3, LLAMA_3_TOKENS, "<|begin_of_text|>", "<|eot_id|>", eos="<|end_of_text|>"),
    "llama-3.2": Layout("bytes", LLAMA_32, LLAMA_3_TOKENS, "<|begin_of_text|>", "<|eot_id|>"),
    "tulu-3": Layout("bytes", TULU_3, LLAMA_3_TOKENS, "<|begin_of_text|>", "<|end_of_text|>"),
    "mistral-0.1": Layout("prepend", MISTRAL_1, PIECES, "<s>", "</s>", system=False),
    "mistral-0.2": Layout("prepend", MISTRAL_2, PIECES, "<s>", "</s>", system=False),
    "mistral-0.3": Layout("metaspace", MISTRAL_3, (*PIECES, "[INST]", "[/INST]"), "<s>", "</s>"),
    "mistral-0.3-legacy": Layout("prepend", MISTRAL_3, (*PIECES, "[INST]", "[/INST]"), "<s>", "</s>"),
    "headers": Layout("prepend", HEADERS, (*PIECES, "<|system|>", "<|user|>", "<|assistant|>"), "<s>", "</s>"),
    "llama-2": Layout("metaspace", LLAMA_2, PIECES, "<s>", "</s>"),
    "qwen-2.5": Layout("bytes", QWEN_25, QWEN_TOKENS, None, "<|im_end|>"),
    "qwen-3": Layout("bytes", QWEN_3, QWEN_TOKENS, None, "<|im_end|>", added=("<think>", "</think>")),
    "gemma": Layout(
        "spaces",
        GEMMA,
        ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
        "<bos>",
        "<end_of_turn>",
        system=False,
        added=("\n", "\n\n"),
        eos="<eos>",
    ),
    "chatml": Layout("bytes", CHATML, QWEN_TOKENS, None, "<|im_end|>", eos="<|endoftext|>"),
    "chatml-pieces": Layout(
        "prepend", CHATML, (*PIECES, "<|im_start|>", "<|im_end|>"), "<s>", "<|im_end|>", eos="</s>"
    ),
}


@functools.cache
def backend(kind: str) -> str:
    """A tokenizer trained on SENTENCES, as JSON, without special tokens."""
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        tokenizer.train_from_iterator(SENTENCES, trainer)
        return tokenizer.to_str()
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split(Regex("▁*[^▁]+"), "isolated")
    learner.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    names = ["<unk>", *BYTES, *sorted(learned["vocab"], key=learned["vocab"].get)]
    ids = {name: i for i, name in enumerate(names)}
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    elif kind == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = replace
    if kind != "spaces":
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer.to_str()


def tokenizer(name: str, **changes) -> PreTrainedTokenizerFast:
    layout = LAYOUTS[name]
    built = Tokenizer.from_str(backend(layout.kind))
    built.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in layout.special])
    built.add_tokens([AddedToken(token, normalized=False, special=False) for token in layout.added])
    if layout.bos:  # as real tokenizers do, so encoding the text of a prompt with their defaults would double it
        bos = built.token_to_id(layout.bos)
        built.post_processor = processors.TemplateProcessing(
            single=f"{layout.bos}:0 $A:0", special_tokens=[(layout.bos, bos)]
        )
    options = dict(bos_token=layout.bos, eos_token=layout.eos or layout.end, chat_template=layout.template) | changes
    return PreTrainedTokenizerFast(tokenizer_object=built, **{k: v for k, v in options.items() if v})
