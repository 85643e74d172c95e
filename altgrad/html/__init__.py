"""The static page of a sweep."""
