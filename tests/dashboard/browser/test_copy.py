"""The button of the card copies the command."""

from __future__ import annotations

from typing import Any

import pytest

from tests.servers.browser_visit import Visit

pytestmark = pytest.mark.browser


def test_the_button_of_the_card_copies_the_command_by_keyboard_and_mouse(visit: Visit) -> None:
    visit.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visit.open("failures?sweep=mixed&run=e7m0_lr0.0006_s1")
    command = visit.page.get_by_test_id("stCode").filter(has_text="altgrad sweep").inner_text().strip()
    button = visit.page.get_by_role("button", name="Copy the command")
    button.wait_for()
    for act in (button.click, lambda: button.press("Enter")):
        visit.page.evaluate("navigator.clipboard.writeText('something else')")
        act()
        visit.page.get_by_role("button", name="Copied").wait_for()
        assert _copied(visit).split() == command.split()
        button.wait_for()
    visit.assert_clean()


def _copied(visit: Visit) -> Any:
    return visit.page.evaluate("navigator.clipboard.readText()")
