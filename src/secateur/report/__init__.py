"""Tables, charts and one HTML page, made from a run folder alone."""
