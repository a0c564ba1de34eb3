package scanner

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"millrace/shared/event"
	"millrace/shared/store"
)

// Notifications as storage systems send them, one file each in testdata/notifications: PROVIDER-NAME.json, and beside it
// in PROVIDER-NAME.want what a connector of that provider makes of it.
func TestNotificationsOfTheWild(t *testing.T) {
	connectors := map[string]store.Connector{
		"gcs":   {Provider: "gcs", Bucket: "drop"},
		"s3":    {Provider: "s3", Bucket: "drop"},
		"azure": {Provider: "azure", StorageAccount: "drops", Container: "cams"},
	}
	seen := map[string]bool{}
	for _, name := range goldens(t) {
		provider, _, _ := strings.Cut(filepath.Base(name), "-")
		c, ok := connectors[provider]
		if !ok {
			t.Fatalf("%s is of no provider that has a connector here", name)
		}
		seen[provider] = true
		var want struct {
			Changes []event.Notification `json:"changes"`
			Ignored bool                 `json:"ignored"`
			Error   string               `json:"error"` // a part of it; such a notification goes to the dead letters
		}
		dec := json.NewDecoder(bytes.NewReader(readFile(t, strings.TrimSuffix(name, ".json")+".want")))
		dec.DisallowUnknownFields()
		must(t, dec.Decode(&want))
		got, err := decode(c, readFile(t, name))
		switch {
		case want.Ignored:
			if !errors.Is(err, errIgnored) {
				t.Errorf("%s: %+v, %v; want it ignored", name, got, err)
			}
		case want.Error != "":
			if err == nil || errors.Is(err, errIgnored) || !strings.Contains(err.Error(), want.Error) {
				t.Errorf("%s: %+v, %v; want %q", name, got, err, want.Error)
			}
		case err != nil || len(want.Changes) == 0 || !slices.Equal(got, want.Changes):
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, want.Changes)
		}
	}
	for provider := range connectors {
		if !seen[provider] {
			t.Errorf("there is nothing of %s", provider)
		}
	}
}

func goldens(t testing.TB) []string {
	t.Helper()
	names, err := filepath.Glob("testdata/notifications/*.json")
	must(t, err)
	return names
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(name)
	must(t, err)
	return data
}

func TestS3Order(t *testing.T) {
	order := []string{"0055AED6DCD90281E5", "0055aed6dcd90281e6", "0055AED6DCD90281E61", "0155AED6DCD90281"}
	for i := 1; i < len(order); i++ {
		if a, b := s3Order(order[i-1]), s3Order(order[i]); a == "" || a >= b {
			t.Errorf("%s as %q is not before %s as %q", order[i-1], a, order[i], b)
		}
	}
	for _, s := range []string{"", "A", "10", "not hexadecimal!!", strings.Repeat("0", 33)} {
		if got := s3Order(s); got != "" {
			t.Errorf("%q is an order: %q", s, got)
		}
	}
}
