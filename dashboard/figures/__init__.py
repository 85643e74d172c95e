"""Figures as data for Plotly; what they draw is computed elsewhere."""
