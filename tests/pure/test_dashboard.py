"""deploy/: every metric that the dashboard and the alerts name exists, and Grafana can draw it."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from octavo.client.fake import FakeClient
from octavo.server.core.inflight import InFlight
from octavo.server.core.metrics import ServerMetrics
from octavo.server.core.serving import Served, Serving

DEPLOY = Path(__file__).parents[2] / "deploy"
NAME = re.compile(r"\b(?:octavo:|process_)\w+")
OF_PROMETHEUS = {"up"}


@pytest.fixture(scope="module")
def exposed() -> dict[str, set[str]]:
    """Metric name → its labels, as a server shows them that has just begun."""

    async def scrape() -> str:
        client = FakeClient()
        await client.start()
        metrics = ServerMetrics(client)
        Serving((Served(client, metrics),), InFlight(1.0), metrics, started=0)
        metrics._http.labels("POST", "/v1/completions", "200")
        metrics._http_time.labels("/v1/completions")
        body, _ = metrics.exposition()
        await client.close()
        return body.decode()

    families = text_string_to_metric_families(asyncio.run(scrape()))
    found: dict[str, set[str]] = {}
    for sample in itertools.chain.from_iterable(family.samples for family in families):
        found.setdefault(sample.name, set()).update(sample.labels, {"instance", "job"})
    return found


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    document = json.loads((DEPLOY / "grafana" / "octavo.json").read_text())
    assert isinstance(document, dict)
    return document


def expressions(node: Any) -> Iterator[str]:
    """Every PromQL text in the document."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("expr", "query", "definition") and isinstance(value, str):
                yield value
            else:
                yield from expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value)


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def check(expression: str, exposed: dict[str, set[str]]) -> None:
    names = set(NAME.findall(expression))
    assert names or OF_PROMETHEUS & set(re.findall(r"\w+", expression)), f"no metric in {expression}"
    assert not names - set(exposed), f"{names - set(exposed)} in {expression}"
    for name, selector in re.findall(r"(octavo:\w+|process_\w+)\{([^}]*)\}", expression):
        labels = set(re.findall(r"(\w+)\s*=~?", selector))
        assert labels <= exposed[name], f"{labels - exposed[name]} of {name}"
    for opening, closing in ("()", "{}", "[]"):
        assert expression.count(opening) == expression.count(closing), expression
    for name in re.findall(r"rate\((octavo:\w+|process_\w+)|increase\((octavo:\w+)", expression):
        counter = name[0] or name[1]
        assert counter.endswith(("_total", "_bucket", "_sum", "_count")), f"rate of {counter}, which is no counter"


def test_every_metric_of_the_dashboard_exists(dashboard: dict[str, Any], exposed: dict[str, set[str]]) -> None:
    found = [e for e in expressions(dashboard) if e != "prometheus"]
    assert len(found) > 50
    for expression in found:
        check(expression, exposed)


def test_the_dashboard_shows_every_metric_of_ours(dashboard: dict[str, Any], exposed: dict[str, set[str]]) -> None:
    text = " ".join(expressions(dashboard))
    for name in exposed:
        if name.startswith("octavo:"):
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            assert base in text, f"{name} is on no panel"


def test_panels_have_ids_of_their_own_and_do_not_overlap(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(ids) == len(set(ids)) > 30
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24 and place["w"] > 0 and place["h"] > 0, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]
    titles = [panel["title"] for panel in panels]
    assert len(titles) == len(set(titles))


def test_panels_ask_the_chosen_data_source_and_models(dashboard: dict[str, Any]) -> None:
    assert [v["name"] for v in dashboard["templating"]["list"]] == ["datasource", "instance", "model_name"]
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"} and panel["description"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references)) > 0
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            assert "$instance" in target["expr"], f"{panel['title']} mixes all servers"


def test_alerts_name_what_exists(exposed: dict[str, set[str]]) -> None:
    rules = alerts()
    assert len({rule["alert"] for rule in rules}) == len(rules) > 8
    for rule in rules:
        check(rule["expr"], exposed)
        assert rule["labels"]["severity"] in ("warning", "critical") and rule["annotations"]["summary"]
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
    watched = " ".join(rule["expr"] for rule in rules)
    for name in ("engine_restarts_total", "request_failures_total", "request_queue_time_seconds", "engine_ready"):
        assert f"octavo:{name}" in watched


def test_prometheus_reads_these_files() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    assert [(DEPLOY / name).exists() for name in config["rule_files"]] == [True]
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "octavo" and job["metrics_path"] == "/metrics"
    assert all('job="octavo"' in rule["expr"] for rule in alerts() if "up{" in rule["expr"])
