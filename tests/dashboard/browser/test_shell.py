"""What surrounds every page, in a real browser: the choice of the sweep, however fast the viewer clicks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.servers.browser_visit import Visit
from tests.support.results import generated_results as generated

pytestmark = pytest.mark.browser

# The link is clicked in the moment in which it appears, before the browser has drawn the widgets beside it.
CLICK_AT_ONCE = """
const links = () => [...document.querySelectorAll('[data-testid=stSidebarNavLink]')];
new MutationObserver((_, observer) => {
    const link = links().find(link => link.innerText.includes("Curves"));
    if (link) { observer.disconnect(); setTimeout(() => link.click(), 0); }
}).observe(document, {childList: true, subtree: true});
"""


def test_a_link_clicked_before_the_page_is_drawn_keeps_the_sweep(
    browser: Any, visit: Visit, server: str, results: Path
) -> None:
    newest = generated.new_sweep(results, "newest")  # the sweep that is shown where none is chosen
    generated.write_run(newest, generated.InventedRun("BF16", steps=20))
    visit = Visit(browser, server, beside=visit)
    visit.page.add_init_script(CLICK_AT_ONCE)
    for _ in range(3):  # the browser loses some of the races
        visit.page.goto(f"{server}/?sweep=mixed")
        visit.page.get_by_text("seed bands", exact=True).click()
        visit.page.wait_for_url("**layout=bands**")
        visit.settle()
        chosen = visit.page.get_by_role("combobox", name="Sweep").get_attribute("value")
        assert "sweep=mixed" in visit.page.url and chosen == "mixed"
        visit.assert_clean()
    visit.close()
