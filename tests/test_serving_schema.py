"""Schemathesis over the server's own OpenAPI schema: no 5xx and no status that is not documented."""

import pytest
import requests
from hypothesis import HealthCheck, Phase, settings

from llm_modules.serving.app import create_app
from llm_modules.serving.limits import Limits
from tests.tiny_server import running, tiny_modules

schemathesis = pytest.importorskip("schemathesis")
from schemathesis import checks  # noqa: E402


@pytest.fixture(scope="module")
def address():
    limits = Limits(max_new_tokens=8, max_prompt_tokens=60)
    with running(create_app(tiny_modules(("prompt", "causal")), limits=limits)) as address:
        yield address


@pytest.fixture(scope="module")
def api(address):
    return schemathesis.openapi.from_url(f"{address}/openapi.json")


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.generate],
          suppress_health_check=list(HealthCheck))  # fmt: skip
def test_any_request_gets_a_documented_answer(case):
    case.call_and_validate(checks=[checks.not_a_server_error, checks.status_code_conformance])


def test_documented_statuses_do_not_promise_what_never_comes(address):
    for operations in requests.get(f"{address}/openapi.json", timeout=60).json()["paths"].values():
        assert all("422" not in operation["responses"] for operation in operations.values())
