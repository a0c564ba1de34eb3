package admin_test

import (
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"testing"

	"millrace/shared/topology"
)

// Event Grid is answered in its own way: both handshakes, lists taken apart, and never a status on which it gives up.
func TestEventGrid(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	azure := w.do("POST", "/connectors/azure", merged(azureBody(), obj{"storage_account": "drops", "container": "cams"})).want(201).str("connector_id")
	path := "/notifications/" + azure
	payload := func(name string) []byte {
		data, err := os.ReadFile("../scanner/testdata/notifications/azure-" + name)
		must(t, err)
		return data
	}
	aeg := func(kind string) map[string]string {
		return map[string]string{"Aeg-Event-Type": kind, "Content-Type": "application/json; charset=utf-8"}
	}

	a := w.do("POST", path, nil, request{raw: payload("validation.json"), header: aeg("SubscriptionValidation")}).want(200)
	if a.str("validationResponse") != "512d38b6-c7b8-40c8-89fe-f46f9e9622b6" {
		t.Errorf("handshake: %s", a.raw)
	}
	foreign := []byte(strings.ReplaceAll(string(payload("validation.json")), "storageAccounts/drops", "storageAccounts/others"))
	w.do("POST", path, nil, request{raw: foreign, header: aeg("SubscriptionValidation")}).refused(400, "notification_topic_unexpected")
	w.do("POST", path, nil, request{key: "-", raw: payload("validation.json"), header: aeg("SubscriptionValidation")}).refused(401, "authentication_invalid_api_key")

	origin := map[string]string{"WebHook-Request-Origin": "eventgrid.azure.net"}
	if a := w.do("OPTIONS", path, nil, request{header: origin}); a.status != 200 || a.header.Get("WebHook-Allowed-Origin") != "eventgrid.azure.net" ||
		a.header.Get("WebHook-Allowed-Rate") != "*" {
		t.Errorf("handshake of CloudEvents: %d %v", a.status, a.header)
	}
	if a := w.do("OPTIONS", path, nil, request{key: "-", header: origin}); a.status != 401 || a.header.Get("WebHook-Allowed-Origin") != "" {
		t.Errorf("without a key: %d %v", a.status, a.header)
	}
	w.do("OPTIONS", "/notifications/"+gone, nil, request{header: origin}).refused(404, "resource_connector_not_found")

	one := payload("put-block-list-cloudevents.json")
	w.do("POST", path, nil, request{key: "-", raw: one, header: aeg("Notification")}).refused(503, "authentication_invalid_api_key")
	w.do("POST", path, nil, request{key: "-", raw: one}).refused(401, "authentication_invalid_api_key")
	w.do("POST", path, nil, request{raw: one, header: aeg("Notification")}).want(200)
	list := append([]byte{'['}, one...)
	list = append(append(append(list, ','), payload("delete-file-cloudevents.json")...), ']')
	w.do("POST", path, nil, request{raw: list, header: aeg("Notification")}).want(200)
	w.do("POST", path, nil, request{raw: []byte(`[1,2]`)}).want(200) // as it is
	w.do("POST", path, nil, request{raw: []byte(`{"op":"deleted","path":"a"}`), header: map[string]string{
		"Content-Type": "application/json", "Ce-Specversion": "1.0", "Ce-Type": "com.example.file", "Ce-Source": "/uploader", "Ce-Id": "1",
	}}).want(200)
	var types []string
	for m, err := range w.bus.Scan(t.Context(), topology.Notifications, w.bus.Subject("notification", azure), 0) {
		must(t, err)
		var e struct{ Type string }
		_ = json.Unmarshal(m.Data, &e)
		types = append(types, e.Type)
	}
	if got := strings.Join(types, " "); got != "Microsoft.Storage.BlobCreated Microsoft.Storage.BlobCreated Microsoft.Storage.BlobDeleted  com.example.file" {
		t.Errorf("stored %q", got)
	}

	// A key in the query is good for notifications alone.
	if a := w.do("POST", path+"?code="+w.keys["admin"], nil, request{key: "-", raw: one}); a.status != http.StatusOK {
		t.Errorf("a key in the query: %d %s", a.status, a.raw)
	}
	w.do("GET", "/connectors?code="+w.keys["admin"], nil, request{key: "-"}).refused(401, "authentication_invalid_api_key")
}
