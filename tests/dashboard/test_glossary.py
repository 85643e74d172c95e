"""Every technical word of the dashboard has its meaning at hand."""

from __future__ import annotations

from pathlib import Path

from altgrad.collapse import held_out_rules, loss_rules, weight_rules
from altgrad.events import EVENTS
from altgrad.metrics import METRICS
from altgrad.show.glossary import RULES, WORDS, glossary
from tests.support.dashboard_pages import PAGES, show, words
from tests.support.results import generated_results as generated


def test_every_metric_event_and_rule_and_every_word_of_the_field_is_explained() -> None:
    found = glossary()
    assert {metric.label for metric in METRICS.values()} <= found.keys()
    assert all(f"{kind.label} (event)" in found for kind in EVENTS.values() if kind.name != "verdict")
    modules = (loss_rules, held_out_rules, weight_rules)
    classes = [one for module in modules for one in vars(module).values() if isinstance(one, type)]
    assert {one.name for one in classes if isinstance(getattr(one, "name", None), str)} == RULES.keys()
    assert all(len(meaning) > 10 for meaning in found.values())
    assert list(found) == sorted(found, key=str.lower)
    known = [label.lower() for label in (*(metric.label for metric in METRICS.values()), *RULES, *WORDS)]
    assert len(known) == len(set(known)), "one meaning per word"


def test_a_word_is_looked_up_on_every_page(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    generated.write_run(generated.new_sweep(tmp_path, "s"), generated.InventedRun(steps=20))
    monkeypatch.setattr("sys.argv", ["streamlit_app.py", str(tmp_path)])
    for page in PAGES:
        box = next(one for one in show(tmp_path, page).selectbox if one.label == "What does it mean?")
        assert {"ULP", "Stall rate", "stalled"} <= set(box.options), page
    app = show(tmp_path, "curves")
    next(one for one in app.selectbox if one.label == "What does it mean?").select("ULP").run()
    assert "distance between the two values of a format around x" in words(app).replace("\\", "")
