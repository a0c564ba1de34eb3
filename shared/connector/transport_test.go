package connector

import (
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"millrace/shared/bucket"
	"millrace/shared/bucket/gcs/gcstest"
	"millrace/shared/secret"
	"millrace/shared/store"
)

// Endpoints in a connector lead nowhere that only this machine can reach, unless the operator allows it; nor does the
// place that a key says gives tokens.
func TestEndpointsAreGuarded(t *testing.T) {
	asked := 0
	inside := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	t.Cleanup(inside.Close)
	keeper, err := secret.Load(filepath.Join(t.TempDir(), "key"), true)
	if err != nil {
		t.Fatal(err)
	}
	sealed := func(id, plain string) string {
		s, err := keeper.Seal([]byte(plain), id+"/credentials")
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	port := inside.URL[strings.LastIndexByte(inside.URL, ':'):]
	tokens := string(gcstest.Start(t).Credentials(t)) // a key whose tokens come from this machine
	connectors := map[string]store.Connector{
		"s3":           {Provider: "s3", EndpointURL: inside.URL},
		"s3 by name":   {Provider: "s3", EndpointURL: "http://localhost" + port, ForcePathStyle: true},
		"s3 metadata":  {Provider: "s3", EndpointURL: "http://169.254.169.254"},
		"azure":        {Provider: "azure", EndpointURL: inside.URL + "/account"},
		"gcs":          {Provider: "gcs", EndpointURL: inside.URL},
		"gcs by token": {Provider: "gcs"},
	}
	stat := func(o *Opener, c store.Connector) error {
		c.ID, c.Bucket, c.StorageAccount, c.Container = "c", "bucket", "account", "container"
		c.Credentials = sealed(c.ID, map[string]string{
			"s3": `{"aws_access_key_id": "a", "aws_secret_access_key": "b"}`, "azure": `{"account_key": "a2V5"}`, "gcs": tokens,
		}[c.Provider])
		src, err := o.Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = src.Close() }()
		_, err = src.Stat(t.Context(), "a.mp4")
		return err
	}
	closed, err := New(Config{Keeper: keeper}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range connectors {
		err := stat(closed, c)
		if !errors.Is(err, ErrEndpoint) || !bucket.Permanent(err) || !strings.Contains(err.Error(), "--allow-endpoint") {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(err.Error(), "s3:") || strings.Contains(err.Error(), "storage.objects") {
			t.Errorf("%s asks for a permission where none would help: %v", name, err)
		}
	}
	if asked != 0 {
		t.Errorf("%d requests got through", asked)
	}
	overGRPC, err := New(Config{Keeper: keeper, GoogleGRPC: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"gcs", "gcs by token"} {
		if err := stat(overGRPC, connectors[name]); !errors.Is(err, ErrEndpoint) {
			t.Errorf("%s over gRPC: %v", name, err)
		}
	}
	open, err := New(Config{Keeper: keeper, AllowEndpoints: []string{"127.0.0.1"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"s3", "azure"} {
		asked = 0
		if err := stat(open, connectors[name]); errors.Is(err, ErrEndpoint) || asked == 0 {
			t.Errorf("%s where it is allowed: %v, after %d requests", name, err, asked)
		}
	}
}

func TestStorageCA(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(server.Close)
	file := filepath.Join(t.TempDir(), "ca.pem")
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(file, cert, 0o600); err != nil {
		t.Fatal(err)
	}
	for ca, trusted := range map[string]bool{"": false, file: true} {
		o, err := New(Config{CAFile: ca, AllowEndpoints: []string{"127.0.0.1"}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := o.Transport().RoundTrip(req)
		if err == nil {
			res.Body.Close()
		}
		if (err == nil) != trusted {
			t.Errorf("with certificates from %q: %v", ca, err)
		}
	}
	if err := os.WriteFile(file, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{file, file + "-none"} {
		if _, err := New(Config{CAFile: bad}, nil); err == nil || !strings.Contains(err.Error(), "--storage-ca") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
