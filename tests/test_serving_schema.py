"""Schemathesis over the server's own OpenAPI schema: no 5xx, and nothing that is not documented."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llm_modules.serving.app import create_app
from llm_modules.serving.limits import Limits
from tests.tiny_server import running, tiny_modules

PROGRAM = Path(sys.executable).with_name("schemathesis")
CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")


@pytest.fixture(scope="module")
def app():
    return create_app(tiny_modules(("prompt", "causal")), limits=Limits(max_new_tokens=8, max_prompt_tokens=60))


def test_no_request_that_the_schema_suggests_meets_anything_undocumented(app, tmp_path):
    if not PROGRAM.is_file():
        pytest.skip("schemathesis is not installed")
    schema = json.loads(json.dumps(app.openapi()))
    for name in ("ChatRequest", "CompletionRequest"):  # else next to no request would find its module
        schema["components"]["schemas"][name]["properties"]["model"]["enum"] = ["source", "prompt", "causal"]
    (tmp_path / "openapi.json").write_text(json.dumps(schema))
    options = ["--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing", "--max-examples", "5"]
    with running(app) as address:
        run = subprocess.run(
            [PROGRAM, "run", "openapi.json", "--url", address, *options, "--seed", "1", "--no-color"],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-1000:]


def test_schema_promises_no_status_that_never_comes(app):
    operations = [operation for path in app.openapi()["paths"].values() for operation in path.values()]
    assert len(operations) > 5
    assert not any("422" in operation["responses"] for operation in operations)
