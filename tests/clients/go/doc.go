// Package clients tests a running server through the official Go client of etcd, as programs use it.
//
// The server is named by TAILWATER_ENDPOINTS (comma separated). Every test works below a key prefix of its own,
// so the suite can run again and again on one server; it does compact, so nothing else should rely on that
// server's history meanwhile.
package clients
