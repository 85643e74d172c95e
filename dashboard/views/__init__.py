"""The pages, one module each; `show(context)` draws the page."""
