"""Controls and tables shared by all pages.

The state of a page is in its URL, so that a link reproduces the screen.  The URL contains names from the data, never
labels.  A widget whose options are such names is bound to a query parameter by Streamlit.

A widget that the page sets through `st.session_state` is also given that value as its default.  The message that sets
it is sent once; if the viewer clicks before the browser has drawn it, the browser draws the default, and reports that
back as the viewer's choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import pandas as pd
import streamlit as st

from altgrad.events import Event
from altgrad.html.board import BOARD_STYLE, text_board
from altgrad.metrics import described
from altgrad.show.sweep_progress import event_row
from altgrad.text.foreign_text import as_code, as_markdown
from altgrad.text.number_text import ABSENT
from dashboard.data.watched_sweep import WatchedRun

_ROWS_WITHOUT_SCROLLING = 12
_SCROLLED_HEIGHT = 420
_ROWS_OF_WORDS = 25
_SHORT = 34
_FOLDS, _FOLDED_HEIGHT = 2.2, 66  # lines of a folded text that are sure to fit, and their row's height in pixels
_LETTER, _CELL_PADDING = 8.3, 24  # pixels: of a letter at the size of the tables, of a cell
_NOTHING = ""  # in the URL: the viewer has chosen no option, although the default has some


def choose(title: str, options: Sequence[str], key: str, **more: Any) -> str:
    """Let the viewer choose one option, the first by default; the choice is bound to the URL parameter `key`."""
    return str(st.selectbox(title, options, key=key, bind="query-params", **more))


def slide_to_step(steps: Sequence[str]) -> str:
    """Let the viewer slide through steps, the last by default; the choice is bound to the URL parameter `at`."""
    if len(steps) == 1:
        st.caption(f"Step: {steps[0]}, the only one.")
        return steps[0]
    return str(st.select_slider("Step", steps, value=steps[-1], key="at", bind="query-params"))


def choose_many(title: str, options: Sequence[str], key: str, default: Sequence[str] = (), **more: Any) -> list[str]:
    """Let the viewer choose any number of options; the choice is bound to the URL parameter `key`."""
    kept = [option for option in default if option in options]
    return list(st.multiselect(title, options, default=kept, key=key, bind="query-params", **more))


def choose_one(title: str, options: Mapping[str, str], key: str, **more: Any) -> str:
    """Let the viewer choose one of a few options shown side by side; `options`: name in the URL -> label.

    The first option is the default.
    """
    default = next(iter(options))
    widget = _follow_url(key, options, [default], many=False)
    chosen = str(
        st.segmented_control(
            title,
            list(options),
            format_func=options.__getitem__,
            default=st.session_state[widget],
            key=widget,
            required=True,
            **more,
        )
    )
    _tell_url(key, [chosen], [default])
    return chosen


def choose_named(
    title: str, options: Mapping[str, str], key: str, default: Sequence[str] = (), **more: Any
) -> list[str]:
    """Let the viewer choose any number of options; `options`: name in the URL -> label."""
    kept = [name for name in default if name in options]
    widget = _follow_url(key, options, kept, many=True)
    held = st.session_state[widget]
    chosen = list(
        st.multiselect(title, list(options), default=held, format_func=options.__getitem__, key=widget, **more)
    )
    _tell_url(key, chosen, kept)
    return chosen


def _follow_url(key: str, options: Mapping[str, str], default: list[str], many: bool) -> str:
    """Set a widget to the options in the URL when the URL has changed, and return the widget's key.

    Later choices of the viewer are kept.  The widget is not bound by Streamlit, because that would write its labels
    into the URL, and a link would break when a label is reworded.
    """
    widget, wanted = f"{key} widget", st.query_params.get_all(key)
    if wanted != st.session_state.get(f"{key} told") or widget not in st.session_state:
        known = [name for name in wanted if name in options]
        unknown = [name for name in wanted if name and name not in options]
        chosen = known if known or wanted == [_NOTHING] else default
        st.session_state[widget] = chosen if many else chosen[0]
        st.session_state[f"{key} unknown"] = ", ".join(unknown)
    elif many:
        st.session_state[widget] = [name for name in st.session_state[widget] if name in options]
    elif st.session_state[widget] not in options:
        st.session_state[widget] = default[0]
    if st.session_state.get(f"{key} unknown"):
        st.caption(_not_there(key, st.session_state[f"{key} unknown"]))
    return widget


def _not_there(key: str, value: str) -> str:
    return f"The link asks for {as_code(f'{key}={value}')}, which does not exist (any more)."


def _tell_url(key: str, chosen: list[str], default: list[str]) -> None:
    """Write the choice into the URL, unless it is the default."""
    told = [] if chosen == default else chosen or [_NOTHING]
    if told != st.query_params.get_all(key):
        if told:
            st.query_params[key] = told
        else:
            st.query_params.pop(key, None)
    st.session_state[f"{key} told"] = told


def switch(title: str, key: str, value: bool = False, **more: Any) -> bool:
    """A switch whose state is bound to the URL parameter `key`."""
    return bool(st.toggle(title, value=value, key=key, bind="query-params", **more))


def choose_kept(title: str, options: Sequence[str], key: str, default: str | None = None, **more: Any) -> str:
    """Let the viewer choose one option, which is always in the URL and is kept when the viewer changes the page.

    It is used for options that may change, such as runs: a widget bound by Streamlit leaves its default out of the URL,
    and the first option may be another one tomorrow.  It is also used for options with labels, which a bound widget
    would write into the URL.
    """
    widget, last = f"{key} widget", st.session_state.get(f"{key} shown")
    wanted = st.query_params.get(key)
    if wanted in options and wanted != last:  # the URL has changed, not the widget
        st.session_state[widget] = wanted
    if st.session_state.get(widget) not in options:
        st.session_state[widget] = next((name for name in (last, default) if name in options), options[0])
    held = list(options).index(st.session_state[widget])
    chosen = str(st.selectbox(title, options, index=held, key=widget, **more))
    if wanted is not None and wanted not in options:
        st.session_state[f"{key} unknown"] = wanted, chosen
    unknown, instead = st.session_state.get(f"{key} unknown", (None, None))
    if unknown is not None and chosen == instead:  # until the viewer chooses
        st.caption(_not_there(key, unknown))
    st.session_state[f"{key} shown"] = st.query_params[key] = chosen
    return chosen


def number_kept(title: str, key: str, **more: Any) -> float | None:
    """Let the viewer enter a positive number or none; it is in the URL and is kept when the viewer changes the page."""
    widget, last, said = f"{key} widget", st.session_state.get(f"{key} shown"), st.query_params.get(key)
    wanted = None if said is None else _positive(said)
    if widget not in st.session_state or (wanted is not None and wanted != last):
        st.session_state[widget] = last if wanted is None else wanted
    held = st.session_state[widget]
    entered = st.number_input(title, value=held, min_value=0.0, step=0.005, format="%g", key=widget, **more)
    chosen = float(entered) if entered else None
    if said is not None and wanted is None:
        st.caption(f"The link asks for {as_code(f'{key}={said}')}, which is no positive number.")
    if chosen is not None:
        st.query_params[key] = f"{chosen:g}"
    elif said is not None:
        st.query_params.pop(key)
    st.session_state[f"{key} shown"] = chosen
    return chosen


def _positive(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


def choose_run(runs: Sequence[WatchedRun], default: str | None = None) -> WatchedRun:
    """Let the viewer choose a run, which is always in the URL; `default`: the name of the one shown first."""
    names = [run.name for run in runs]
    return runs[names.index(choose_kept("Run", names, "run", default))]


def metric_label(name: str, loss_unit: str) -> str:
    """The label of a metric with its unit; `loss_unit`: see `Run.loss_unit`."""
    return described(name).axis_in(loss_unit)


def shortened(name: str) -> str:
    """A run's name in at most 34 characters: its beginning, which has the format, and its end, which has the seed."""
    return name if len(name) <= _SHORT else f"{name[: _SHORT - 10]}…{name[-9:]}"


def show_texts(heads: Sequence[str], rows: Iterable[Sequence[str]], label: str) -> None:
    """Show a small table of texts, or `Html`, whose cells are folded, not cut off."""
    st.html(f"<style>{BOARD_STYLE}</style>{text_board(heads, rows, label)}")


def show_table(frame: pd.DataFrame, alt: str, widest: int | None = None, **more: Any) -> Any:
    """Show a table that scrolls if it has more than a dozen rows; absent values are dashes.

    `widest`: pixels of the widest column of texts; longer ones are folded into three lines, and shortened beyond them.
    """
    height: int | Literal["content"] = "content" if len(frame) <= _ROWS_WITHOUT_SCROLLING else _SCROLLED_HEIGHT
    config = wide_enough(frame, more.get("column_config", {}))
    too_wide = [name for name, column in config.items() if widest is not None and (column.get("width") or 0) > widest]
    if widest is not None and too_wide:
        letters = int(_FOLDS * (widest - _CELL_PADDING) / _LETTER)
        frame = frame.assign(**{name: frame[name].map(lambda text: _cut(text, letters)) for name in too_wide})
        config |= {name: {**config[name], "width": widest} for name in too_wide}
        more["row_height"] = _FOLDED_HEIGHT
    more["column_config"] = config
    return st.dataframe(frame, hide_index=True, height=height, placeholder="–", alt=alt, **more)


def _cut(text: object, letters: int) -> object:
    """The text with an ellipsis in its middle if it has more letters; its end tells long names apart."""
    if not isinstance(text, str) or len(text) <= letters:
        return text
    kept = (letters - 1) // 2
    return f"{text[:kept]}…{text[len(text) - kept :]}"


def show_words(rows: Sequence[Mapping[str, Any]], alt: str) -> None:
    """Show rows of texts whole, broken into lines where a column is narrow; more than 25 in a table that scrolls."""
    if len(rows) > _ROWS_OF_WORDS:
        show_table(pd.DataFrame(rows), alt)
        return
    cells = [{name: as_markdown(str(value)) for name, value in row.items()} for row in rows]
    st.table(cells, hide_index=True, border="horizontal", alt=alt)


def show_events(events: Sequence[Event]) -> None:
    """Show the events of one run under a headline."""
    st.header("Events")
    if events:
        show_words([event_row(event) for event in events], "Events of the run by step.")
    else:
        st.caption("No event has been recorded.")


def value_text(value: Any) -> str:
    """A value of a config or a record as a cell of a table; a dash if there is none."""
    return ABSENT if value is None else str(value)


def wide_enough(frame: pd.DataFrame, config: Mapping[str, Any]) -> dict[str, Any]:
    """The column configuration with room for the longest text of each column of texts.

    Streamlit looks at the first rows only, and cuts longer texts in later ones without a sign.
    """
    found = dict(config)
    for name in frame.columns:
        texts = [value for value in frame[name] if isinstance(value, str)]
        if texts:
            width = round(_LETTER * max(map(len, [*texts, str(name)]))) + _CELL_PADDING
            found[name] = {**found.get(name, st.column_config.Column()), "width": width}
    return found
