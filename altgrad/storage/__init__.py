"""Folders on a local disk, NFS or an object store, and retries while storage is unavailable."""
