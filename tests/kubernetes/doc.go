// Package kubernetes runs a real Kubernetes API server on tailwater, or on etcd to check the tests themselves: the
// library k8s.io/apiextensions-apiserver, whose storage and watch cache are those of kube-apiserver, with custom
// resources and, beside them, events and leases stored as kube-apiserver stores them.
//
// Each API server is a process of its own, since its metrics and feature gates belong to the process. It is this test
// binary, started again (apiserver_test.go). run.sh says what the tests want from the environment.
package kubernetes
