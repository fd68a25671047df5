"""Commands that fetch, check and make data; each runs as `python data_scripts/NAME.py --help`."""
