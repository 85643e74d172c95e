"""`python -m bench.gpu`: everything that needs a GPU, in one command of at most ten minutes."""
