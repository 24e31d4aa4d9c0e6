"""`kontext-batch`: edits by the thousand from a list of jobs, each made once whatever is killed meanwhile.

A list (`rows`) becomes jobs (`jobs`), whose pictures are read ahead (`loading`), edited (`editing`), and written with a
line in the journal of results (`journal`, `results`).
"""
