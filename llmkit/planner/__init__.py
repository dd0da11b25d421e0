"""`llmkit plan`: what fits, how fast, how long and at what cost, as a page, JSON or a chart."""
