"""Studies: each trains to answer one question; and measurements that take longer than a row of the benchmark."""
