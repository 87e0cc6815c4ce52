"""Where the problems of a task are: the source that its user names, or the published one."""

import functools

from qrpo_jax.errors import UserError, reason
from qrpo_jax.harnesses.presets import PRESETS
from qrpo_jax.harnesses.tasks import Task


def source_of(task: Task) -> str:
    """The source of a sampled task, as in `prompts.source`.

    Raises:
      UserError: about `path`: it is a file of the hub that cannot be had.
    """
    return hub_file(task.options.get("source", PRESETS[task.kind].source))


@functools.cache
def hub_file(source: str) -> str:
    """A source of JSON lines for "hf:ORG/NAME/FILE", which is downloaded; other sources as they are.

    The library `datasets` cannot open data sets that need a loading script, such as AlpacaEval's.

    Raises:
      UserError: about `path`: the library is not installed, or the file cannot be had.
    """
    kind, _, address = source.partition(":")
    organisation, name, file = ([*address.split("/", 2), "", ""])[:3]
    if kind != "hf" or not file:
        return source
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise UserError(
            f"{address} of the hub needs the library huggingface_hub, which is not installed: "
            "pip install -e '.[hf]', or name a local file with source=jsonl:FILE",
            about="path",
        ) from None
    try:
        return f"jsonl:{hf_hub_download(f'{organisation}/{name}', file, repo_type='dataset')}"
    except Exception as error:  # of the library, of its client, of the network
        raise UserError(
            f"{address} of the hub cannot be downloaded: {reason(error)}; name a local file with source=jsonl:FILE",
            about="path",
        ) from None
