"""The same records in each kind of storage, written as other programs write them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from google.protobuf import json_format
from tensorflow_datasets.core.proto import dataset_info_pb2

from qrpo_jax.data.rows import Row
from qrpo_jax.data.sources import SOURCES, split_name
from qrpo_jax.data.sources.listed import ListedRows
from qrpo_jax.data.sources.source import SourceOptions

Records = Sequence[dict[str, Any]]


def options(name: str, **overrides: Any) -> SourceOptions:
    """The options of a source that trains on all rows."""
    defaults: dict[str, Any] = {"seed": 3, "count": 0, "held_out": 0, "demonstrations": 1}
    return SourceOptions(name=name, address=split_name(name)[1], **defaults | overrides)


def opened(name: str, part: str = "train", **overrides: Any) -> ListedRows:
    """The rows of a source that are for "train", "eval" or "sft"."""
    source = SOURCES[split_name(name)[0]].open(options(name, **overrides))[part]
    assert isinstance(source, ListedRows)
    return source


def rows_of(name: str, **overrides: Any) -> list[Row]:
    """All rows of a source that are trained on."""
    source = opened(name, **overrides)
    return source.rows(range(source.count))


def write_json_lines(path: Path, records: Records) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def write_parquet(path: Path, records: Records, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(records)), path, **how)
    return path


def write_saved(folder: Path, **splits: Records) -> Path:
    """The folder that `datasets.DatasetDict.save_to_disk` writes, in two files a split; tests compare the two."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    for split, records in splits.items():
        inside, table = folder / split, pa.Table.from_pylist(list(records))
        inside.mkdir()
        names, half = [f"data-{i:05d}-of-00002.arrow" for i in range(2)], (len(records) + 1) // 2
        for name, part in zip(names, (table[:half], table[half:]), strict=True):
            with pa.ipc.new_stream(inside / name, table.schema) as writer:
                writer.write_table(part, max_chunksize=3)
        state = {"_data_files": [{"filename": name} for name in names], "_split": split, "_fingerprint": split}
        state |= dict.fromkeys(("_format_columns", "_format_type")) | {
            "_format_kwargs": {},
            "_output_all_columns": False,
        }
        (inside / "dataset_info.json").write_text("{}")
        (inside / "state.json").write_text(json.dumps(state))
    return folder


def write_tfds(home: Path, name: str, features: Any, **splits: Records) -> Path:
    """A prepared data set of the TFDS catalogue in `home`, version 1.0.0, in one ArrayRecord file a split."""
    folder = home / name / "1.0.0"
    folder.mkdir(parents=True)
    infos = []
    for split, records in splits.items():
        path = folder / f"{name}-{split}.array_record-00000-of-00001"
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for record in records:
            writer.write(features.serialize_example(features.encode_example(record)))
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        lengths = {"shard_lengths": [len(records)], "num_bytes": path.stat().st_size}
        infos.append(dataset_info_pb2.SplitInfo(name=split, filepath_template=template, **lengths))
    (folder / "features.json").write_text(json.dumps(json_format.MessageToDict(features.to_proto())))
    info = dataset_info_pb2.DatasetInfo(name=name, version="1.0.0", file_format="array_record", splits=infos)
    (folder / "dataset_info.json").write_text(json_format.MessageToJson(info))
    return home


def text_features(record: dict[str, Any]) -> Any:
    """TFDS features of a record: texts, numbers, and lists of them or of messages."""
    return tfds.features.FeaturesDict({name: _feature(value) for name, value in record.items()})


def _feature(value: Any) -> Any:
    if isinstance(value, str):
        return tfds.features.Text()
    if isinstance(value, float):
        return tfds.features.Scalar(dtype=np.float64)
    assert isinstance(value, list) and value, value
    if isinstance(value[0], dict):
        return tfds.features.Sequence({name: _feature(one) for name, one in value[0].items()})
    return tfds.features.Sequence(_feature(value[0]))
