"""The report: from facts that were gathered to a web page or a model card. Nothing here imports torch."""

MARK = "<!-- made by kdcompress report -->"  # in every report, so that a new one may replace it
