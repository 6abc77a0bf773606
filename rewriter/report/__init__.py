"""The report: one HTML file that shows what quantizing has done to a model.

What may be done here: figures are taken from the results of the rooms below, or made from what
those carry; models and files are run for them and left as they are. Numbers are made first, in
plain dataclasses that ``to_dict`` gives too; drawing and writing only show them. matplotlib and
Jinja2, which come with the extra ``report``, are imported here only, and only when a report is
written.
"""
