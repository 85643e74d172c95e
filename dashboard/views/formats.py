import streamlit as st
from dashboard.context import Context


def show(context: Context) -> None:
    st.title("Formats")
