"""altgrad: which number formats train a model, where each collapses, why, and what saves it.

The package knows neither Ray nor Streamlit.  Importing it loads nothing: the modules that read results
(`formats`, `metrics`, `results`, `collapse`, `compare`, `report`) work on a machine without torch.
"""

__version__ = "0.2.0"
