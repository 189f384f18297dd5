"""docs/job.schema.json, made from the form of a job: `python -m tests.job_schema_docs > docs/job.schema.json`."""

from __future__ import annotations

import json

from infinitalk_cli.job_schema import JobForm

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def document() -> str:
    """The whole file."""
    made = JobForm.model_json_schema(by_alias=True)
    head = {"$schema": DIALECT, "title": "A job of talk generate"}
    return json.dumps({**head, **made, **head}, indent=2) + "\n"


if __name__ == "__main__":
    print(document(), end="")
