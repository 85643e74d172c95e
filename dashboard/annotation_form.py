"""Notes, stars, tags and hiding of runs: the list of what is annotated, and the form that annotates a run."""

from __future__ import annotations

import streamlit as st

from altgrad.results.annotations import LONGEST_NOTE, Annotation, write_annotation
from altgrad.text.foreign_text import as_markdown
from dashboard.page_context import PageContext
from dashboard.widgets import show_words

_SAID = "annotation said"


def annotation_form(context: PageContext) -> None:
    """The annotated runs, and a form for one of them or another run."""
    annotations = context.sweep.annotations.by_run
    names = sorted(run.name for run in context.sweep.runs)
    annotated = [name for name in names if name in annotations]
    st.header("Notes")
    said = st.session_state.pop(_SAID, None)
    if said is not None:
        st.error(as_markdown(said))
    if annotated:
        show_words(
            [_cells(name, annotations[name]) for name in annotated], "Annotated runs: star, tags, note, whether hidden."
        )
    else:
        st.caption("No run has a note, a star or a tag, and none is hidden.")
    if context.no_writing:
        st.caption(f"Annotations cannot be set: {context.no_writing}")
        return
    with st.expander("Note, star, tag or hide a run", expanded=False):
        name = st.selectbox("Run to annotate", names, key="annotated run")
        if name is not None:
            _form(context, name, annotations.get(name, Annotation()))


def _cells(name: str, annotation: Annotation) -> dict[str, str]:
    star, hidden = "★" if annotation.star else "", "hidden" if annotation.hidden else ""
    return {"Run": name, "Star": star, "Tags": ", ".join(annotation.tags), "Note": annotation.note, "Hidden": hidden}


def _form(context: PageContext, name: str, annotation: Annotation) -> None:
    with st.form(f"annotation {name}", border=False):
        star = st.checkbox("Star", annotation.star, key=f"star {name}")
        tags = st.text_input("Tags, separated by commas", ", ".join(annotation.tags), key=f"tags {name}")
        note = st.text_area("Note", annotation.note, key=f"note {name}", max_chars=LONGEST_NOTE)
        hidden = st.checkbox(
            "Hide: leave it out of comparisons and charts on all pages; no number of another run changes",
            annotation.hidden,
            key=f"hidden {name}",
        )
        if st.form_submit_button("Save"):
            wanted = Annotation(
                note.strip(), star, tuple(tag.strip() for tag in tags.split(",") if tag.strip()), hidden
            )
            try:
                write_annotation(context.sweep.folder, name, wanted)
            except (OSError, ValueError) as error:
                st.session_state[_SAID] = f"The annotation was not saved: {error}"
            context.sweep.look_again()
            st.rerun()
