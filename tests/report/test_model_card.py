"""A model card has metadata that YAML reads, figures of results.json, and no licence or path that nobody gave."""

from qrpo_jax.hugging_face.base_card import front_matter, read_base
from qrpo_jax.report.model_card import METHODS, CardFacts, card
from qrpo_jax.training.objectives import OBJECTIVES

RESULTS = {
    "reference": {"mean_reward": 0.336, "ci95": [0.317, 0.354]},
    "policy": {
        "mean_reward": 0.512,
        "ci95": [0.489, 0.535],
        "mean_quantile": 0.61,
        "kl_to_reference_k1": 0.239,
        "mean_tokens": 5.2,
    },
    "gain": {"mean_reward": 0.176, "ci95": [0.154, 0.198]},
}
FACTS = CardFacts(
    title="base-7b, trained with QRPO",
    base="org/base-7b",
    base_name="",
    adapter=False,
    objective="qrpo",
    data_sets=["org/prompts"],
    data="hf:org/prompts",
    reward="tests",
    settings={"train.beta": 0.3, "lora.targets": "q_proj|v_proj"},
    results=RESULTS,
    evaluation="On held-out prompts.",
    carried={"license": "other", "license_name": "base-licence", "license_link": "LICENSE"},
    documents=["LICENSE"],
)


def test_the_metadata_are_yaml_that_the_hub_knows():
    assert front_matter(card(FACTS)) == {
        "base_model": "org/base-7b",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "other",
        "license_name": "base-licence",
        "license_link": "LICENSE",
        "datasets": ["org/prompts"],
        "tags": ["qrpo-jax", "qrpo", "rlhf"],
    }
    adapter = front_matter(card(FACTS._replace(adapter=True)))
    assert adapter["library_name"] == "peft" and adapter["base_model_relation"] == "adapter"


def test_figures_stand_with_their_intervals():
    text = card(FACTS)
    for words in ("0.512 (0.489 to 0.535)", "+0.176 (+0.154 to +0.198)", "| 0.239 |", r"`q_proj\|v_proj`"):
        assert words in text, text
    assert "## Results" not in card(FACTS._replace(results=None))


def test_without_a_base_there_is_no_licence_and_the_card_says_so():
    text = card(FACTS._replace(base="", base_name="random weights", carried={}, documents=[]))
    assert not {"license", "base_model"} & front_matter(text).keys()
    assert "The base names none; whoever publishes this model must say under which licence." in text


def test_every_objective_is_described():
    assert set(METHODS) == set(OBJECTIVES)
    for objective in OBJECTIVES:
        assert METHODS[objective] in card(FACTS._replace(objective=objective))


def test_text_of_others_cannot_leave_its_place():
    hostile = "x\n---\nlicense: mit\n<script>alert(1)</script> `code`"
    text = card(FACTS._replace(data=hostile, carried={"license": hostile}, settings={"train.transform": hostile}))
    head, _, body = text.partition("\n---\n\n# ")
    assert front_matter(text)["license"] == hostile and front_matter(text)["base_model"] == "org/base-7b"
    assert head and "<script>" not in body and "\n---" not in body, body


def test_a_base_gives_its_licence_and_language_and_nothing_else(tmp_path):
    (tmp_path / "README.md").write_text(
        "---\nlicense: llama3.1\nlanguage:\n- en\nextra_gated_prompt: x\ntags: [a]\n---\ntext"
    )
    for name in ("LICENSE", "USE_POLICY.md", "NOTICE.txt", "other.txt"):
        (tmp_path / name).write_text(name)
    found = read_base(tmp_path)
    assert found.metadata == {"license": "llama3.1", "language": ["en"]}
    assert found.documents == {name: name.encode() for name in ("LICENSE", "NOTICE.txt", "USE_POLICY.md")}


def test_a_card_that_is_no_yaml_gives_nothing(tmp_path):
    for text in ("", "---\n", "---\na: [1\n---\n", "---\n- a\n---\n", "license: mit"):
        (tmp_path / "README.md").write_text(text)
        assert read_base(tmp_path) == ({}, {}), text
