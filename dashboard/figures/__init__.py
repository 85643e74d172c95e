"""Figures as data for Plotly; the drawn values are computed in other packages."""
