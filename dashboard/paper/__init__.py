"""A chart of the dashboard for a paper: as SVG and PDF, and its drawn data as CSV and LaTeX."""
