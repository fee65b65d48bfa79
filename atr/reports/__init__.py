"""Tables, figures, claims and the report: what runs come to, beside what papers printed."""
