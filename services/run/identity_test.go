package run

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"millrace/shared/broker"
	"millrace/shared/topology"
)

const deployment = "../../deployments/nats"

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// certificates makes ca.crt, node.crt and node.key in dir; the node's is good for clients too.
func certificates(t *testing.T, dir string) {
	t.Helper()
	write := func(name, kind string, der []byte) {
		must(t, os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	must(t, err)
	write("ca.crt", "CERTIFICATE", der)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	der, err = x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "node"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, ca, key.Public(), caKey)
	must(t, err)
	write("node.crt", "CERTIFICATE", der)
	der, err = x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	write("node.key", "PRIVATE KEY", der)
}

// freePorts finds ports nobody listens on. They are held together until all are known, so that they differ.
func freePorts(t *testing.T, n int) (ports []int) {
	t.Helper()
	held := make([]net.Listener, n)
	for i := range held {
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
		must(t, err)
		held[i], ports = l, append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	for _, l := range held {
		must(t, l.Close())
	}
	return ports
}

// TestDeployedCluster starts three nodes from the files of deployments/nats as they are, and makes the streams as the admin.
func TestDeployedCluster(t *testing.T) {
	const nodes = 3
	ports := freePorts(t, 2*nodes)
	var routes, urls []string
	for i := range nodes {
		routes = append(routes, fmt.Sprintf("nats-route://127.0.0.1:%d", ports[nodes+i]))
		urls = append(urls, fmt.Sprintf("127.0.0.1:%d", ports[i]))
	}
	var passwords strings.Builder
	must(t, topology.Topology{Prefix: "millrace"}.WritePasswords(&passwords))
	_, password, ok := strings.Cut(passwords.String(), topology.PasswordVariable("admin")+": \"")
	password, _, _ = strings.Cut(password, "\"")
	if !ok || len(password) < 20 {
		t.Fatalf("password %q", password)
	}
	dir := t.TempDir()
	certificates(t, dir)
	for i := range nodes {
		conf := filepath.Join(dir, fmt.Sprint(i))
		must(t, os.Mkdir(conf, 0o700))
		for _, name := range []string{"server.conf", "accounts.conf"} {
			b, err := os.ReadFile(filepath.Join(deployment, name))
			must(t, err)
			must(t, os.WriteFile(filepath.Join(conf, name), b, 0o600))
		}
		must(t, os.WriteFile(filepath.Join(conf, "passwords.conf"), []byte(passwords.String()), 0o600))
		b, err := os.ReadFile(filepath.Join(deployment, "node.example.conf"))
		must(t, err)
		node := string(b)
		for name, value := range map[string]string{
			"NODE_NAME": fmt.Sprintf("%q", fmt.Sprint("n", i)), "NODE_LISTEN": fmt.Sprintf("%q", urls[i]), "NODE_MONITOR": `"127.0.0.1:-1"`,
			"NODE_STORE_DIR": fmt.Sprintf("%q", filepath.Join(conf, "store")), "NODE_MAX_STORE": "1GB",
			"NODE_CLUSTER_LISTEN": fmt.Sprintf("%q", routes[i][len("nats-route://"):]), "NODE_ROUTES": `["` + strings.Join(routes, `", "`) + `"]`,
			"NODE_TLS_CERT": fmt.Sprintf("%q", filepath.Join(dir, "node.crt")), "NODE_TLS_KEY": fmt.Sprintf("%q", filepath.Join(dir, "node.key")),
			"NODE_TLS_CA": fmt.Sprintf("%q", filepath.Join(dir, "ca.crt")),
		} {
			at := strings.Index("\n"+node, "\n"+name+":")
			if at < 0 {
				t.Fatalf("node.example.conf has no %s", name)
			}
			end := at + strings.Index(node[at:], "\n")
			node = node[:at] + name + ": " + value + node[end:]
		}
		must(t, os.WriteFile(filepath.Join(conf, "node.conf"), []byte(node), 0o600))
		opts, err := server.ProcessConfigFile(filepath.Join(conf, "server.conf"))
		must(t, err)
		const verified = tls.RequireAndVerifyClientCert
		if !opts.SyncAlways || opts.NoAuthUser != "" || opts.TLSConfig.ClientAuth != verified || opts.Cluster.TLSConfig.ClientAuth != verified {
			t.Errorf("node %d: writes are not synced, or somebody may connect unseen", i)
		}
		opts.NoSigs, opts.NoLog = true, true
		srv, err := server.NewServer(opts)
		must(t, err)
		srv.Start()
		t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	}

	identity := Identity{NATSCA: filepath.Join(dir, "ca.crt"), NATSCert: filepath.Join(dir, "node.crt"), NATSKey: filepath.Join(dir, "node.key")}
	url := "tls://admin:" + password + "@" + strings.Join(urls, ",tls://admin:"+password+"@")
	nc, err := broker.Dial(url, "test", identity.Options("admin")...)
	must(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	must(t, err)
	top := topology.Topology{Prefix: "millrace", Replicas: nodes}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for err := top.Apply(ctx, js); err != nil; err = top.Apply(ctx, js) { // until there is a leader
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}

	for name, options := range map[string]Identity{"a stranger's certificate": {}, "no certificate": {NATSCA: identity.NATSCA}} {
		if nc, err := broker.Dial(url, "test", options.Options("admin")...); err == nil {
			nc.Close()
			t.Errorf("connected with %s", name)
		}
	}
	if nc, err := broker.Dial("tls://"+urls[0], "test", identity.Options("admin")...); err == nil {
		nc.Close()
		t.Error("connected without a user")
	} else if strings.Contains(err.Error(), password) {
		t.Error(err)
	}
}
