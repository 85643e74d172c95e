"""All code that uses Ray, and the planning before it: plan a sweep, run, stop and record its trials."""
