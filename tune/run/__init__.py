"""Trials as Tune runs them: started, stopped, restarted, and given their end records."""
