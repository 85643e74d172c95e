"""Notes, stars, tags and hiding of runs: the list of what is marked, and the form that marks a run."""

from __future__ import annotations

import streamlit as st

from altgrad.results.marks import LONGEST_NOTE, Mark, write_mark
from altgrad.text.foreign_text import as_markdown
from dashboard.page_context import PageContext
from dashboard.widgets import show_words

_SAID = "mark said"


def marks_form(context: PageContext) -> None:
    """The marked runs, and a form for one of them or another run."""
    marks = context.sweep.marks.by_run
    names = sorted(run.name for run in context.sweep.runs)
    marked = [name for name in names if name in marks]
    st.header("Notes")
    said = st.session_state.pop(_SAID, None)
    if said is not None:
        st.error(as_markdown(said))
    if marked:
        show_words([_cells(name, marks[name]) for name in marked], "Marked runs: star, tags, note, whether hidden.")
    else:
        st.caption("No run has a note, a star or a tag, and none is hidden.")
    if context.no_writing:
        st.caption(f"Marks cannot be set: {context.no_writing}")
        return
    with st.expander("Note, star, tag or hide a run", expanded=False):
        name = st.selectbox("Run to mark", names, key="marked run")
        if name is not None:
            _form(context, name, marks.get(name, Mark()))


def _cells(name: str, mark: Mark) -> dict[str, str]:
    star, hidden = "★" if mark.star else "", "hidden" if mark.hidden else ""
    return {"Run": name, "Star": star, "Tags": ", ".join(mark.tags), "Note": mark.note, "Hidden": hidden}


def _form(context: PageContext, name: str, mark: Mark) -> None:
    with st.form(f"mark {name}", border=False):
        star = st.checkbox("Star", mark.star, key=f"star {name}")
        tags = st.text_input("Tags, separated by commas", ", ".join(mark.tags), key=f"tags {name}")
        note = st.text_area("Note", mark.note, key=f"note {name}", max_chars=LONGEST_NOTE)
        hidden = st.checkbox(
            "Hide: leave it out of comparisons and charts on all pages; no number of another run changes",
            mark.hidden,
            key=f"hidden {name}",
        )
        if st.form_submit_button("Save"):
            wanted = Mark(note.strip(), star, tuple(tag.strip() for tag in tags.split(",") if tag.strip()), hidden)
            try:
                write_mark(context.sweep.folder, name, wanted)
            except (OSError, ValueError) as error:
                st.session_state[_SAID] = f"The mark was not saved: {error}"
            context.sweep.look_again()
            st.rerun()
