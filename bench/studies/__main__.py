"""`python -m bench.studies axis|gemms`: see `trained_studies`."""

from bench.studies.trained_studies import main

if __name__ == "__main__":
    main()
