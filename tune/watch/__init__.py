"""What only shows or copies: the live table, the webhook, the copy for W&B.  It can never end or delay a trial."""
