"""Data for displays, shared by the terminal, the static page and the dashboard: colours, curves, a sweep's state."""
