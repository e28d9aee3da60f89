"""The report of a training: one self-contained HTML page, made from the files of an output directory."""

NAME = "report.html"
