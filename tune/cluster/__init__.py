"""Ray sessions, private or on a cluster: their folders, their failures, and access to Tune's trials."""
