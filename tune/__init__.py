"""All that knows Ray: planning a sweep, running its trials, stopping and recording them."""
