"""The published schema is the one that jobs are checked with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from infinitalk_cli.job_schema import JobForm, SoundForm
from tests.job_schema_docs import document

REPOSITORY = Path(__file__).parent.parent


def test_the_published_schema_is_up_to_date() -> None:
    published = (REPOSITORY / "docs" / "job.schema.json").read_text(encoding="utf-8")
    assert published == document(), "python -m tests.job_schema_docs > docs/job.schema.json"


def test_it_knows_every_field_and_both_notations_of_a_box() -> None:
    schema: dict[str, Any] = json.loads(document())
    assert set(schema["properties"]) == {field.alias or name for name, field in JobForm.model_fields.items()}
    assert [kind["type"] for kind in schema["$defs"]["SpeakerBox"]["anyOf"]] == ["object", "array"]
    assert schema["additionalProperties"] is False


def test_its_fields_come_in_the_order_in_which_a_job_is_written() -> None:
    names = list(json.loads(document())["properties"])
    assert names[:6] == ["$schema", "image", "video", "prompt", "negative_prompt", "speakers"]
    assert names[-8:] == list(SoundForm.model_fields)
