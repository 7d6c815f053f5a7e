"""The table: what each primitive is, and how it acts on boxes."""
