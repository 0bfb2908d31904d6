"""``python -m local.demo``: the whole platform at work on one machine, judged from outside."""
