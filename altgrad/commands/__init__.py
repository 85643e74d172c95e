"""What the commands share: parsers whose errors are one line, webhooks, HTTP that follows no redirect."""
