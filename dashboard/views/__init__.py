"""The pages, one module each; each has `show(context)`."""
