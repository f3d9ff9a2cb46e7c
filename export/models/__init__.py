"""Export-friendly twins of the official modules: one building block a file, official state-dict keys."""
