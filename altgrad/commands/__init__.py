"""Code shared by the commands: parsers with errors of one line, webhooks, HTTP requests without redirects."""
