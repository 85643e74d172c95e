"""What terminal, static page and dashboard share: colours, curves as data, the state of a sweep."""
