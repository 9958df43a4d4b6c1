package deploy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// pair is a certificate with its key.
type pair struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// sign makes a certificate; without a signer one that signs itself.
func sign(t testing.TB, template x509.Certificate, signer *pair) pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	template.BasicConstraintsValid = true
	parent, parentKey := &template, key
	if signer != nil {
		parent, parentKey = signer.certificate, signer.key
	}
	made, err := x509.CreateCertificate(rand.Reader, &template, parent, &key.PublicKey, parentKey)
	check(t, err)
	certificate, err := x509.ParseCertificate(made)
	check(t, err)
	return pair{certificate, key}
}

// authority makes one that signs others.
func authority(t testing.TB, name string) pair {
	t.Helper()
	return sign(t, x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, KeyUsage: x509.KeyUsageCertSign}, nil)
}

// write stores a certificate, its key and who signed it.
func (p pair) write(t testing.TB, certificate, key string) {
	t.Helper()
	check(t, os.MkdirAll(filepath.Dir(certificate), 0o755))
	check(t, os.WriteFile(certificate, p.pem(), 0o644))
	encoded, err := x509.MarshalECPrivateKey(p.key)
	check(t, err)
	check(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: encoded}), 0o600))
}

func (p pair) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.certificate.Raw})
}

// writeCertificates does what cert-manager would: each Secret in a directory of its name.
func writeCertificates(t testing.TB, objects []runtime.Object, dir string) {
	t.Helper()
	// By the name of the Secret that holds them.
	authorities := map[string]pair{}
	issuers := map[string]*certmanager.Issuer{}
	for _, issuer := range of[*certmanager.Issuer](objects) {
		issuers[issuer.Name] = issuer
	}
	certificates := of[*certmanager.Certificate](objects)
	for _, certificate := range certificates {
		if certificate.Spec.IsCA {
			if issuers[certificate.Spec.IssuerRef.Name].Spec.SelfSigned == nil {
				t.Fatalf("the authority %s is not signed by itself", certificate.Name)
			}
			authorities[certificate.Spec.SecretName] = authority(t, certificate.Spec.CommonName)
		}
	}
	uses := map[certmanager.KeyUsage]x509.ExtKeyUsage{
		certmanager.UsageServerAuth: x509.ExtKeyUsageServerAuth, certmanager.UsageClientAuth: x509.ExtKeyUsageClientAuth,
	}
	for _, certificate := range certificates {
		spec := certificate.Spec
		if spec.IsCA {
			continue
		}
		signer, ok := authorities[issuers[spec.IssuerRef.Name].Spec.CA.SecretName]
		if !ok {
			t.Fatalf("nobody signs %s", certificate.Name)
		}
		template := x509.Certificate{
			Subject: pkix.Name{CommonName: spec.CommonName}, DNSNames: spec.DNSNames, KeyUsage: x509.KeyUsageDigitalSignature,
		}
		for _, address := range spec.IPAddresses {
			template.IPAddresses = append(template.IPAddresses, net.ParseIP(address))
		}
		for _, usage := range spec.Usages {
			use, ok := uses[usage]
			if !ok {
				t.Fatalf("%s is for %s", certificate.Name, usage)
			}
			template.ExtKeyUsage = append(template.ExtKeyUsage, use)
		}
		secret := filepath.Join(dir, spec.SecretName)
		sign(t, template, &signer).write(t, filepath.Join(secret, "tls.crt"), filepath.Join(secret, "tls.key"))
		check(t, os.WriteFile(filepath.Join(secret, "ca.crt"), signer.pem(), 0o644))
	}
}
