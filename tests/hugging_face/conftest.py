"""A model folder that the tests of a module share, and copies of it that they may spoil."""

import shutil
from pathlib import Path

import pytest

from qrpo_jax.data.text import Text, make_text
from qrpo_jax.data.vocabulary import vocabulary_tokenizer
from qrpo_jax.hugging_face import model_folder
from tests.helpers.exports import CHARACTERS, TIED, fresh


@pytest.fixture(scope="module")
def tokenizer_text() -> Text:
    tokenizer = vocabulary_tokenizer(CHARACTERS)
    return make_text(tokenizer, "chat", (tokenizer.eos_token_id,))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tokenizer_text: Text) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    model_folder.save(folder, TIED, fresh(TIED, 7), tokenizer_text)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))
