"""A folder on a disk, NFS or an object store, and patience with storage that refuses for a while."""
