package tls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"
)

// config trusts the file's authorities and shows own, if there is any.
func config(t testing.TB, trusted string, own *files) *tls.Config {
	t.Helper()
	pem, err := os.ReadFile(trusted)
	check(t, err)
	made := &tls.Config{RootCAs: x509.NewCertPool()}
	made.RootCAs.AppendCertsFromPEM(pem)
	if own != nil {
		pair, err := tls.LoadX509KeyPair(own.cert, own.key)
		check(t, err)
		// Even where the server would not ask for one of this authority.
		made.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	return made
}

func connect(t testing.TB, endpoint string, config *tls.Config) *clientv3.Client {
	t.Helper()
	made, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, TLS: config, Logger: zap.NewNop()})
	check(t, err)
	t.Cleanup(func() { made.Close() })
	return made
}

func within(t testing.TB, limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}

func TestOnlyGoodCertificatesAreLetIn(t *testing.T) {
	dir := t.TempDir()
	ours, theirs := newAuthority(t, dir, "ours"), newAuthority(t, dir, "theirs")
	served := start(t, dir, ours.sign(t, "node", node()), "--trusted-ca-file", ours.file, "--client-cert-auth",
		"--client-crl-file", ours.revoke(t, 0xbad))
	alice := ours.sign(t, "alice", client())
	good := connect(t, served.endpoint, config(t, ours.file, &alice))
	_, err := good.Put(within(t, patience), "k", "v")
	check(t, err)

	altered := func(name string, alter func(*x509.Certificate)) *files {
		template := client()
		alter(template)
		made := ours.sign(t, name, template)
		return &made
	}
	stranger := theirs.sign(t, "stranger", client())
	const verify = "tls: failed to verify certificate: x509: "
	for name, c := range map[string]struct {
		own    *files
		reason string
	}{
		"none":            {nil, "tls: client didn't provide a certificate"},
		"wrong authority": {&stranger, verify + "certificate signed by unknown authority"},
		"expired": {altered("expired", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }),
			verify + "certificate has expired or is not yet valid: current time "},
		"for servers": {altered("server", func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}), verify + "certificate specifies an incompatible key usage"},
		"revoked": {altered("revoked", func(c *x509.Certificate) { c.SerialNumber = big.NewInt(0xbad) }),
			"transport: certificate serial 0bad revoked"},
	} {
		t.Run(name, func(t *testing.T) {
			refused := connect(t, served.endpoint, config(t, ours.file, c.own))
			if _, err := refused.Get(within(t, 2*time.Second), "k"); err == nil {
				t.Fatal("it was let in")
			}
			line := served.waitForRejection(t, c.reason)
			if !strings.HasPrefix(text(line, "remote-addr"), "127.0.0.1:") || text(line, "level") != "warn" {
				t.Fatalf("the line is %v", line)
			}
		})
	}
	t.Run("a client that does not trust the server", func(t *testing.T) {
		refused := connect(t, served.endpoint, config(t, theirs.file, &alice))
		if _, err := refused.Get(within(t, 2*time.Second), "k"); err == nil {
			t.Fatal("it went on")
		}
		served.waitForRejection(t, "remote error: tls: bad certificate")
	})
	response, err := good.Get(within(t, patience), "k")
	check(t, err)
	if response.Count != 1 || response.Header.Revision != 2 {
		t.Fatalf("somebody else has written: %v", response)
	}
}

func TestServerOfAnotherNameIsNotTrusted(t *testing.T) {
	dir := t.TempDir()
	ours := newAuthority(t, dir, "ours")
	template := node()
	template.IPAddresses, template.DNSNames = nil, []string{"elsewhere.example"}
	served := start(t, dir, ours.sign(t, "node", template))
	refused := connect(t, served.endpoint, config(t, ours.file, nil))
	if _, err := refused.Get(within(t, 2*time.Second), "k"); err == nil {
		t.Fatal("it went on")
	}
	named := config(t, ours.file, nil)
	named.ServerName = "elsewhere.example"
	connection, err := tls.Dial("tcp", strings.TrimPrefix(served.endpoint, "https://"), named)
	check(t, err)
	check(t, connection.Close())
	served.waitForRejection(t, "remote error: tls: bad certificate")
}

func TestVersionsAndSuitesAreBounded(t *testing.T) {
	dir := t.TempDir()
	ours := newAuthority(t, dir, "ours")
	own := ours.signFor(t, "node", node(), newKey(t, true))
	const allowed = tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
	served := start(t, dir, own, "--tls-max-version=TLS1.2", "--cipher-suites", tls.CipherSuiteName(allowed))
	for suite, isAllowed := range map[uint16]bool{allowed: true, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384: false} {
		only := config(t, ours.file, nil)
		only.CipherSuites, only.MaxVersion = []uint16{suite}, tls.VersionTLS12
		_, err := connect(t, served.endpoint, only).Get(within(t, 2*time.Second), "k")
		if (err == nil) != isAllowed {
			t.Fatalf("%s: %v", tls.CipherSuiteName(suite), err)
		}
	}
	newer := config(t, ours.file, nil)
	newer.MinVersion = tls.VersionTLS13
	if _, err := connect(t, served.endpoint, newer).Get(within(t, 2*time.Second), "k"); err == nil {
		t.Fatal("TLS 1.3 is spoken")
	}
	served.waitForRejection(t, "tls: no cipher suite supported by both client and server")
	served.waitForRejection(t, "tls: client offered only unsupported versions")
}

// A certificate that is its own authority, as one command makes it.
func TestCertificateThatIsItsOwnAuthority(t *testing.T) {
	dir := t.TempDir()
	own := selfSigned(t, dir, "own")
	served := start(t, dir, own, "--trusted-ca-file", own.cert, "--client-cert-auth")
	_, err := connect(t, served.endpoint, config(t, own.cert, &own)).Put(within(t, patience), "k", "v")
	check(t, err)
}

// With --client-cert-auth the common name is the user; without it a certificate only opens the door.
func TestCommonNameIsTheUser(t *testing.T) {
	for _, isUser := range []bool{true, false} {
		dir := t.TempDir()
		ours := newAuthority(t, dir, "ours")
		flags := []string{"--trusted-ca-file", ours.file}
		if isUser {
			flags = append(flags, "--client-cert-auth")
		}
		served := start(t, dir, ours.sign(t, "node", node()), flags...)
		as := func(name string) *clientv3.Client {
			template := client()
			template.Subject.CommonName = name
			own := ours.sign(t, name+"-client", template)
			return connect(t, served.endpoint, config(t, ours.file, &own))
		}
		ctx := within(t, patience)
		root, alice, bob, nobody := as("root"), as("alice"), as("bob"), as("")
		for _, name := range []string{"root", "alice"} {
			_, err := root.UserAddWithOptions(ctx, name, "", &clientv3.UserAddOptions{NoPassword: true})
			check(t, err)
		}
		_, err := root.RoleAdd(ctx, "reader")
		check(t, err)
		_, err = root.RoleGrantPermission(ctx, "reader", "a", "b", clientv3.PermissionType(clientv3.PermReadWrite))
		check(t, err)
		_, err = root.UserGrantRole(ctx, "alice", "reader")
		check(t, err)
		_, err = root.RoleAdd(ctx, "root")
		check(t, err)
		_, err = root.UserGrantRole(ctx, "root", "root")
		check(t, err)
		_, err = root.AuthEnable(ctx)
		check(t, err)
		put := func(made *clientv3.Client, key string) string {
			if _, err := made.Put(ctx, key, "v"); err != nil {
				return err.Error()
			}
			return ""
		}
		const empty, denied = "etcdserver: user name is empty", "etcdserver: permission denied"
		expected := map[string][3]string{"a1": {"", "", denied}, "z": {"", denied, denied}}
		for key, texts := range expected {
			for at, made := range []*clientv3.Client{root, alice, bob} {
				want := texts[at]
				if !isUser {
					want = empty
				}
				if got := put(made, key); got != want {
					t.Errorf("put of %s by number %d (names count: %v): %q, want %q", key, at, isUser, got, want)
				}
			}
			// etcd calls it "permission denied" where names count.
			if got := put(nobody, key); got == "" {
				t.Errorf("put of %s by nobody succeeds", key)
			}
		}
	}
}

func TestEverydayCalls(t *testing.T) {
	dir := t.TempDir()
	ours := newAuthority(t, dir, "ours")
	served := start(t, dir, ours.sign(t, "node", node()), "--trusted-ca-file", ours.file)
	alice := ours.sign(t, "alice", client())
	made := connect(t, served.endpoint, config(t, ours.file, &alice))
	ctx := within(t, patience)
	watch := made.Watch(ctx, "k")
	lease, err := made.Grant(ctx, 60)
	check(t, err)
	_, err = made.Put(ctx, "k", "v", clientv3.WithLease(lease.ID))
	check(t, err)
	if events := (<-watch).Events; len(events) != 1 || string(events[0].Kv.Value) != "v" {
		t.Fatalf("the watch saw %v", events)
	}
	_, err = made.KeepAliveOnce(ctx, lease.ID)
	check(t, err)
	session, err := concurrency.NewSession(made)
	check(t, err)
	mutex := concurrency.NewMutex(session, "/lock")
	check(t, mutex.Lock(ctx))
	check(t, mutex.Unlock(ctx))
	check(t, session.Close())
	status, err := made.Status(ctx, served.endpoint)
	check(t, err)
	members, err := made.MemberList(ctx)
	check(t, err)
	if status.Leader != members.Members[0].ID || members.Members[0].ClientURLs[0] != served.endpoint {
		t.Fatalf("status is %v, members are %v", status, members)
	}
}

// No call fails while the certificate of the server changes and new clients come.
func TestRotationUnderLoad(t *testing.T) {
	dir := t.TempDir()
	ours := newAuthority(t, dir, "ours")
	own := ours.sign(t, "node", node())
	served := start(t, dir, own, "--trusted-ca-file", ours.file)
	alice := ours.sign(t, "alice", client())
	trusts := config(t, ours.file, &alice)
	var (
		over    atomic.Bool
		calls   atomic.Int64
		workers sync.WaitGroup
	)
	call := func(made *clientv3.Client) {
		if _, err := made.Put(within(t, patience), "k", "v"); err != nil {
			t.Errorf("a call failed: %v", err)
			over.Store(true)
		}
		calls.Add(1)
	}
	kept := connect(t, served.endpoint, trusts)
	for range 2 {
		workers.Go(func() {
			for !over.Load() {
				fresh, err := clientv3.New(clientv3.Config{Endpoints: []string{served.endpoint}, TLS: trusts, Logger: zap.NewNop()})
				check(t, err)
				call(fresh)
				fresh.Close()
				call(kept)
			}
		})
	}
	for serial := int64(100); serial < 105; serial++ {
		template := node()
		template.SerialNumber = big.NewInt(serial)
		// etcd reads both files in each handshake, so that the pair must fit at every moment: the key stays.
		renewed := ours.signFor(t, "next", template, keyOf(t, own))
		check(t, os.Rename(renewed.cert, own.cert))
		for goal := calls.Load() + 10; calls.Load() < goal && !over.Load(); time.Sleep(pause) {
		}
	}
	over.Store(true)
	workers.Wait()
	connection, err := tls.Dial("tcp", strings.TrimPrefix(served.endpoint, "https://"), trusts)
	check(t, err)
	defer connection.Close()
	if serial := connection.ConnectionState().PeerCertificates[0].SerialNumber.Int64(); serial != 104 {
		t.Fatalf("the certificate served is number %d", serial)
	}
}

func TestCurlAndEtcdctl(t *testing.T) {
	dir := t.TempDir()
	ours, theirs := newAuthority(t, dir, "ours"), newAuthority(t, dir, "theirs")
	served := start(t, dir, ours.sign(t, "node", node()), "--trusted-ca-file", ours.file, "--client-cert-auth")
	alice, stranger := ours.sign(t, "alice", client()), theirs.sign(t, "stranger", client())
	curl := []string{"curl", "-sS", "--max-time", "5", served.endpoint + "/health"}
	etcdctl := []string{os.Getenv("ETCDCTL"), "--endpoints", served.endpoint, "--command-timeout=3s", "--dial-timeout=2s", "endpoint", "health"}
	for _, c := range []struct {
		command  []string
		flags    []string
		isLetIn  bool
		contains string
	}{
		{curl, []string{"--cacert", ours.file, "--cert", alice.cert, "--key", alice.key}, true, `{"health":"true","reason":""}`},
		{curl, []string{"--cacert", ours.file, "--cert", stranger.cert, "--key", stranger.key}, false, ""},
		{curl, []string{"--cacert", ours.file}, false, ""},
		{curl, []string{"--cacert", theirs.file, "--cert", alice.cert, "--key", alice.key}, false, "certificate"},
		{curl, []string{"--http1.1", "--cacert", ours.file, "--cert", alice.cert, "--key", alice.key}, true, `"true"`},
		{etcdctl, []string{"--cacert", ours.file, "--cert", alice.cert, "--key", alice.key}, true, "is healthy"},
		{etcdctl, []string{"--cacert", ours.file, "--cert", stranger.cert, "--key", stranger.key}, false, ""},
		{etcdctl, []string{"--cacert", ours.file}, false, ""},
	} {
		program, err := exec.LookPath(c.command[0])
		if err != nil {
			t.Logf("left out: %q is not installed", c.command[0])
			continue
		}
		output, err := exec.Command(program, append(c.command[1:], c.flags...)...).CombinedOutput()
		if (err == nil) != c.isLetIn || !strings.Contains(string(output), c.contains) {
			t.Errorf("%v %v: %v: %s", c.command, c.flags, err, output)
		}
	}
}

// JSON beside gRPC: whoever has no certificate of ours gets nothing. A common name is nobody's login there, and with users
// who matter it is refused, a token or none; who has no name shows a token.
func TestJSONByCurl(t *testing.T) {
	program, err := exec.LookPath("curl")
	check(t, err)
	dir := t.TempDir()
	ours, theirs := newAuthority(t, dir, "ours"), newAuthority(t, dir, "theirs")
	served := start(t, dir, ours.sign(t, "node", node()), "--trusted-ca-file", ours.file, "--client-cert-auth")
	unnamed := client()
	unnamed.Subject.CommonName = ""
	alice, nobody, stranger := ours.sign(t, "alice", client()), ours.sign(t, "nobody", unnamed), theirs.sign(t, "stranger", client())
	curl := func(path, body string, flags ...string) (string, error) {
		arguments := append([]string{"-sS", "--max-time", "5", "-d", body, served.endpoint + "/v3/" + path}, flags...)
		output, err := exec.Command(program, arguments...).CombinedOutput()
		return string(output), err
	}
	trusted := []string{"--cacert", ours.file, "--cert", nobody.cert, "--key", nobody.key}
	named := []string{"--cacert", ours.file, "--cert", alice.cert, "--key", alice.key}
	if output, err := curl("kv/put", `{"key":"YQ==","value":"YQ=="}`, named...); err != nil || !strings.Contains(output, `"revision":"2"`) {
		t.Fatalf("by alice, before users matter: %v: %s", err, output)
	}
	for _, step := range [][3]string{
		{"kv/put", `{"key":"Zm9v","value":"YmFy"}`, `"revision":"3"`},
		{"kv/range", `{"key":"Zm9v"}`, `"value":"YmFy"`},
		{"auth/user/add", `{"name":"root","password":"word"}`, `"header"`},
		{"auth/role/add", `{"name":"root"}`, `"header"`},
		{"auth/user/grant", `{"user":"root","role":"root"}`, `"header"`},
		{"auth/enable", `{}`, `"header"`},
		{"kv/range", `{"key":"Zm9v"}`, "user name is empty"},
	} {
		for _, version := range []string{"--http1.1", "--http2"} {
			if step[0] != "kv/range" && version == "--http2" {
				continue
			}
			if output, err := curl(step[0], step[1], append(trusted, version)...); err != nil || !strings.Contains(output, step[2]) {
				t.Fatalf("%v %s: %v: %s", step, version, err, output)
			}
		}
	}
	login, err := curl("auth/authenticate", `{"name":"root","password":"word"}`, trusted...)
	check(t, err)
	_, rest, _ := strings.Cut(login, `"token":"`)
	token, _, _ := strings.Cut(rest, `"`)
	output, err := curl("kv/range", `{"key":"Zm9v"}`, append(trusted, "-H", "Authorization: "+token)...)
	if err != nil || !strings.Contains(output, `"value":"YmFy"`) {
		t.Fatalf("with a token: %v: %s", err, output)
	}
	output, err = curl("kv/range", `{"key":"Zm9v"}`, append(named, "-H", "Authorization: "+token)...)
	if err != nil || !strings.HasPrefix(output, "CommonName of client sending a request against gateway") {
		t.Fatalf("by alice with a token: %v: %s", err, output)
	}
	for name, flags := range map[string][]string{
		"no certificate":    {"--cacert", ours.file},
		"another authority": {"--cacert", ours.file, "--cert", stranger.cert, "--key", stranger.key},
		"a wrong server":    {"--cacert", theirs.file, "--cert", nobody.cert, "--key", nobody.key},
	} {
		if output, err := curl("kv/range", `{"key":"Zm9v"}`, flags...); err == nil || strings.Contains(output, "header") {
			t.Errorf("%s: %v: %s", name, err, output)
		}
	}
}
