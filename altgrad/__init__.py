"""altgrad trains one model per number format: which formats train, where the others collapse, why, and what helps.

The package imports neither Ray nor Streamlit.  `import altgrad` loads no other module; the modules that read results
(`formats`, `metrics`, `results`, `collapse`, `compare`, `report`) work on a machine without torch.
"""

__version__ = "0.2.0"
