module tailwater/tests/etcdctl

go 1.26
