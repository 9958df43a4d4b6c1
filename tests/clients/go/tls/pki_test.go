package tls

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// authority signs certificates; its own is in file.
type authority struct {
	dir         string
	file        string
	certificate *x509.Certificate
	key         crypto.Signer
}

// files are a certificate and its key.
type files struct{ cert, key string }

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("unexpected error: %v", err)
	}
}

func newKey(t testing.TB, useRSA bool) crypto.Signer {
	t.Helper()
	if useRSA {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		check(t, err)
		return key
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	return key
}

func writePEM(t testing.TB, path, kind string, der []byte) {
	t.Helper()
	// Beside and renamed, as tools that rotate certificates do.
	check(t, os.WriteFile(path+".new", pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	check(t, os.Rename(path+".new", path))
}

func writeKey(t testing.TB, path string, key crypto.Signer) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	check(t, err)
	writePEM(t, path, "PRIVATE KEY", der)
}

func newAuthority(t testing.TB, dir, name string) *authority {
	t.Helper()
	key := newKey(t, false)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	check(t, err)
	certificate, err := x509.ParseCertificate(der)
	check(t, err)
	file := filepath.Join(dir, name+".crt")
	writePEM(t, file, "CERTIFICATE", der)
	return &authority{dir: dir, file: file, certificate: certificate, key: key}
}

// node is a certificate for both sides of a connection on this machine.
func node() *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "node"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

// client is a certificate of alice.
func client() *x509.Certificate {
	template := node()
	template.Subject.CommonName, template.IPAddresses, template.DNSNames = "alice", nil, nil
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	return template
}

func (a *authority) sign(t testing.TB, name string, template *x509.Certificate) files {
	t.Helper()
	return a.signFor(t, name, template, newKey(t, false))
}

func (a *authority) signFor(t testing.TB, name string, template *x509.Certificate, key crypto.Signer) files {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	check(t, err)
	made := files{cert: filepath.Join(a.dir, name+".crt"), key: filepath.Join(a.dir, name+".key")}
	writeKey(t, made.key, key)
	writePEM(t, made.cert, "CERTIFICATE", der)
	return made
}

// revoke writes a list of revoked serial numbers, in etcd's form.
func (a *authority) revoke(t testing.TB, serials ...int64) string {
	t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}
	for _, serial := range serials {
		entry := x509.RevocationListEntry{SerialNumber: big.NewInt(serial), RevocationTime: time.Now()}
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, entry)
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.certificate, a.key)
	check(t, err)
	file := filepath.Join(a.dir, "revoked.crl")
	check(t, os.WriteFile(file, der, 0o600))
	return file
}

// selfSigned is an authority's certificate that is shown as one's own, as one command of openssl makes it.
func selfSigned(t testing.TB, dir, name string) files {
	t.Helper()
	key := newKey(t, true)
	template := node()
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, 0
	template.ExtKeyUsage = nil
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	check(t, err)
	made := files{cert: filepath.Join(dir, name+".crt"), key: filepath.Join(dir, name+".key")}
	writeKey(t, made.key, key)
	writePEM(t, made.cert, "CERTIFICATE", der)
	return made
}

func keyOf(t testing.TB, own files) crypto.Signer {
	t.Helper()
	bytes, err := os.ReadFile(own.key)
	check(t, err)
	block, _ := pem.Decode(bytes)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	check(t, err)
	return key.(crypto.Signer)
}
