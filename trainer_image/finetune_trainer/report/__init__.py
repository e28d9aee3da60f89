"""The report of a training: one HTML page with everything in it, from what lies in an output directory."""

NAME = "report.html"
