"""What a person would find wrong with a page at a glance, asked of the page itself, and what axe-core finds."""

from __future__ import annotations

import itertools
from importlib import resources
from typing import Any

# Text that is cut at the edge of its box without an ellipsis.
_CUT = """
() => [...document.querySelectorAll('main *, [data-testid=stMain] *, body > :not([data-testid]) *')].filter(e => {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility({visibilityProperty: true})) return false;
    if (e.closest('.js-plotly-plot, canvas, svg')) return false;
    const style = getComputedStyle(e), box = e.getBoundingClientRect();
    if (box.width < 2 || box.height < 2 || style.clipPath !== 'none') return false;
    const hides = node => ['hidden', 'clip'].includes(getComputedStyle(node).overflowX);
    if (hides(e)) return e.scrollWidth > e.clientWidth + 1 && style.textOverflow !== 'ellipsis';
    let frame = e.parentElement;
    while (frame && !hides(frame) && getComputedStyle(frame).overflowX === 'visible') frame = frame.parentElement;
    if (!frame || !hides(frame) || frame.clientWidth < 2) return false;  // of one pixel: for those who listen
    const sign = getComputedStyle(frame).textOverflow === 'ellipsis' && style.display === 'inline';
    const text = document.createRange();
    text.selectNodeContents(e);
    return !sign && text.getBoundingClientRect().right > frame.getBoundingClientRect().right + 1;
}).map(e => e.innerText.slice(0, 80))
"""
# Labels of a chart that leave the chart.
_OUT_OF_CHART = """
() => [...document.querySelectorAll('.js-plotly-plot')].flatMap(chart => {
    const frame = chart.getBoundingClientRect();
    return [...chart.querySelectorAll('.main-svg text')].filter(t => {
        const box = t.getBoundingClientRect();
        return box.width > 0 && !t.closest('.hoverlayer') && (box.left < frame.left - 2 || box.right > frame.right + 2);
    }).map(t => t.textContent.slice(0, 80));
})
"""
# Cells of a table on a canvas that are wider than their column, which the canvas cuts without an ellipsis.
_CUT_IN_TABLE = """
() => [...document.querySelectorAll('[data-testid=data-grid-canvas]')].flatMap(canvas => {
    const key = Object.keys(canvas).find(name => name.startsWith('__reactFiber'));
    let fiber = canvas[key];
    while (fiber && !(fiber.memoizedProps?.columns && fiber.memoizedProps?.getCellContent)) fiber = fiber.return;
    if (!fiber) return ['a table whose columns cannot be read'];
    const {columns, getCellContent, rows, theme} = fiber.memoizedProps, found = [];
    const pen = document.createElement('canvas').getContext('2d');
    pen.font = `${theme?.baseFontStyle ?? '14px'} ${theme?.fontFamily ?? 'sans-serif'}`;
    columns.forEach((column, at) => {
        for (let row = 0; row < Math.min(rows, 40); row++) {
            const cell = getCellContent([at, row]);
            if (!['text', 'number'].includes(cell.kind) || !cell.displayData || cell.allowWrapping) continue;
            const needs = pen.measureText(cell.displayData).width + 14;
            if (needs > column.width) found.push(`${column.title}: ${cell.displayData}`);
        }
    });
    return found.slice(0, 4);
})
"""
_HEADINGS = """
() => [...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].filter(h => h.checkVisibility())
    .map(h => [Number(h.tagName[1]), h.innerText.trim()])
"""
_TABLE_HEADS = """
() => [...document.querySelectorAll('[role=grid], table')].map(table =>
    [...table.querySelectorAll('thead th, [role=columnheader]')].map(head => head.innerText.trim()).filter(Boolean))
"""
# Charts in which nothing is drawn, or which nobody has described.
_EMPTY_CHARTS = """
() => [...document.querySelectorAll('.js-plotly-plot')].filter(chart => {
    const said = chart.closest('[role=figure]')?.getAttribute('aria-label') ?? '';
    const drawn = chart._fullData.some(trace => {
        const values = trace.z ? [...trace.z].flatMap(row => [...row]) : trace.orientation === 'h' ? trace.x : trace.y;
        return [...(values ?? [])].some(value => typeof value === 'string' || Number.isFinite(value));
    });
    return !drawn || said.length < 20;
}).map(chart => chart.closest('[role=figure]')?.getAttribute('aria-label') ?? 'a chart without words')
"""
_SIDEWAYS = """
() => {
    const box = document.querySelector('[data-testid=stMain]') ?? document.documentElement;
    return Math.max(box.scrollWidth - box.clientWidth, document.documentElement.scrollWidth - innerWidth);
}
"""
# Tables that scroll sideways in themselves, so that a reader does not know what they hold.
_WIDE_TABLES = """
() => [...document.querySelectorAll('.board-scroll, .dvn-scroller')].map(box => [
    box.getAttribute('aria-label') ?? box.closest('[aria-label]')?.getAttribute('aria-label') ?? 'a table',
    box.scrollWidth - box.clientWidth
]).filter(([name, beyond]) => beyond > 1)
"""
_HAS_FOCUS_MARK = """
() => {
    for (let e = document.activeElement, depth = 0; e && depth < 4; e = e.parentElement, depth++) {
        const style = getComputedStyle(e);
        if (style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0) return true;
        if (style.boxShadow !== 'none') return true;
        if (depth < 3 && e.matches('[data-baseweb], .react-aria-Group') && style.borderStyle !== 'none') return true;
    }
    return false;
}
"""
_FOCUSED = """
() => (e => `${e.tagName} ${e.getAttribute('aria-label') ?? e.innerText ?? ''}`.slice(0, 80))(document.activeElement)
"""


def wide_tables(page: Any) -> list[str]:
    """Tables that are wider than their place on the page."""
    return [f"{name!r} is {beyond} pixels too wide" for name, beyond in page.evaluate(_WIDE_TABLES)]


def faults(page: Any) -> list[str]:
    """What is cut, leaves its chart, makes the page scroll sideways, is out of order, or is empty."""
    found = [f"cut: {text!r}" for text in page.evaluate(_CUT)]
    found += [f"leaves its chart: {text!r}" for text in page.evaluate(_OUT_OF_CHART)]
    found += [f"cut in a table: {text!r}" for text in page.evaluate(_CUT_IN_TABLE)]
    found += [f"without data or words: {text!r}" for text in page.evaluate(_EMPTY_CHARTS)]
    if page.evaluate(_SIDEWAYS) > 1:
        found.append(f"scrolls sideways by {page.evaluate(_SIDEWAYS)} pixels")
    return found + _faults_of_headings(page)


def _faults_of_headings(page: Any) -> list[str]:
    headings, found = page.evaluate(_HEADINGS), []
    levels = [level for level, _ in headings]
    if levels[:1] != [1] or levels.count(1) != 1:
        found.append(f"not one h1 at the top: {headings[:3]}")
    found += [f"h{now} after h{before}" for before, now in itertools.pairwise(levels) if now > before + 1]
    texts = [text for _, text in headings]
    found += [f"two headings {text!r}" for text in dict.fromkeys(texts) if texts.count(text) > 1]
    for heads in page.evaluate(_TABLE_HEADS):
        found += [f"two columns {head!r}" for head in dict.fromkeys(heads) if heads.count(head) > 1]
    return found


def serious(page: Any, *rules: str) -> list[str]:
    """The serious and critical findings of axe-core by WCAG 2.2 A and AA; `rules`: these alone."""
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    options: dict[str, Any] = {"resultTypes": ["violations"]}
    options["runOnly"] = list(rules) or ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    found = page.evaluate("options => axe.run(document, options)", options)["violations"]
    return [
        f"{one['id']}: {node['html'][:160]} {node['any'][0]['message'] if node['any'] else ''}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


def unmarked(page: Any, stops: int) -> list[str]:
    """The elements among the first `stops` reached by the keyboard that do not show that they have the focus."""
    found = []
    for _ in range(stops):
        page.keyboard.press("Tab")
        if not page.evaluate(_HAS_FOCUS_MARK):
            found.append(page.evaluate(_FOCUSED))
    return found
