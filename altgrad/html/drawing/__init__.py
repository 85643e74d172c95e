"""Loss curves as SVG."""
