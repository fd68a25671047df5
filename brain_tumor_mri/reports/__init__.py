"""Records to Markdown, plots and the model card; no torch."""
