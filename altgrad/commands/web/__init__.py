"""HTTP from a command: messages to a webhook, and requests that follow no redirect."""
