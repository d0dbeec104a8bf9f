"""Reads metrics as Prometheus does, and says what is wrong with their form."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterable

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

_NAME = re.compile(r"flowledger_[a-z]+(_[a-z]+)*")


def scraped(address: str) -> str:
    with urllib.request.urlopen(address, timeout=20) as answer:
        assert answer.status == 200
        return str(answer.read().decode())


def samples(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(text: str, name: str, **labels: str) -> float | None:
    """Of the one sample with exactly these labels. None: there is none."""
    return samples(text).get((f"flowledger_{name}", frozenset(labels.items())))


def total(text: str, name: str, **labels: str) -> float:
    """Over all samples that have these labels, among others perhaps."""
    wanted = set(labels.items())
    found = samples(text).items()
    return sum(value for (given, has), value in found if given == f"flowledger_{name}" and wanted <= has)


def against_conventions(families: Iterable[Metric]) -> list[str]:
    """Names that Prometheus forbids: foreign prefixes, units that are no base units, gauges named totals."""
    wrong = []
    for family in families:
        if not _NAME.fullmatch(family.name) or re.search(r"_(ms|milliseconds|minutes|kb|mb)(_|$)", family.name):
            wrong.append(family.name)
        if family.type == "gauge" and family.name.endswith("_total"):
            wrong.append(family.name)
        if not family.documentation:
            wrong.append(family.name)
    return wrong
