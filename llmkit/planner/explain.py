"""Each figure of a plan with its formula, its numbers and its source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmkit.estimate.term import Term
from llmkit.planner import words
from llmkit.planner.study import Study


def explain(study: Study) -> Iterator[str]:
    """The lines, section by section, of the best layout."""
    best = study.best
    yield from words.wrapped(f"{words.layout(best.plan)}, on {words.fleet(study.fleet)}", "  ")
    device, inside, between = study.fleet.device, study.fleet.inside, study.fleet.between
    yield from _section("devices and links", _hardware(study))
    yield from _section("memory of a process", best.memory.device)
    yield from _section("memory of its host", best.memory.host)
    yield from _section("time of a step", best.time.parts)
    yield from _section("beside computing, which hides it", best.time.hidden)
    yield from _section("the run", study.outlook.terms)
    yield ""
    yield "scaling laws"
    for row in study.laws:
        yield from words.wrapped(f"  {row.law.name}: {row.law.formula}", "      ")
        counted = "with" if row.law.embeddings else "without"
        yield from words.wrapped(f"      {row.law.source}; N {counted} embeddings", "      ")
    sources = dict.fromkeys((device.source, device.reached.source, inside.source, between.source))
    yield ""
    yield "sources of the hardware's numbers"
    for source in sources:
        yield from words.wrapped(f"  {source}", "    ")


def _hardware(study: Study) -> Iterator[Term]:
    fleet, device = study.fleet, study.fleet.device
    for kind, rate in device.flops.items():
        yield Term(f"peak {kind}", rate / 1e12, "TFLOP/s", "dense", device.source)
    reached = f"{device.reached.memory:.0%} of it are reached"
    yield Term("memory bandwidth", device.bandwidth, "bytes/s", reached, device.reached.source)
    links = (("inside", fleet.inside, fleet.devices_per_node), ("between", fleet.between, fleet.nodes))
    for where, link, joined in links:
        if joined > 1:
            formula = f"{link.name}: {link.share:.0%} of {link.bandwidth / 1e9:.4g} GB/s a port and direction"
            yield Term(f"link {where} nodes", link.usable, "bytes/s", formula, link.source)


def _section(title: str, terms: Iterator[Term] | Sequence[Term]) -> Iterator[str]:
    lines = [line for term in terms for line in _term(term)]
    if lines:
        yield ""
        yield title
        yield from lines


def _term(term: Term) -> Iterator[str]:
    yield f"  {term.name} = {words.value(term)}"
    for text in filter(None, (term.formula, term.source and f"[{term.source}]")):
        yield from words.wrapped(f"      {text}", "      ")
