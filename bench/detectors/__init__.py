"""How often the collapse rules, and the rules that others use, stop a run that collapsed or one that did not.

scenarios.py   the runs: what is planted in which, by seed
faults.py      what is planted besides config fields: in the data, the rate, the loss, the weights
recording.py   trains a run to its end without stopping, and keeps all that a rule may read
truth.py       which run collapsed: by its held-out loss against that of its healthy twin
own_rules.py   the rules of altgrad, together and each alone
rivals.py      published rules of others, each as a score and a limit
ray_rules.py   Ray's plateau stopper and ASHA, the real classes
scoring.py     recall, false stops, delay and compute saved, with their intervals
forecast.py    which stored diagnostic announces a collapse, and how early
page.py        the tables as markdown and JSON
"""
