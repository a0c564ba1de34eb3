package admin_test

import (
	"strings"
	"testing"

	"cloud.google.com/go/pubsub/v2/pstest"

	"millrace/services/admin"
	"millrace/shared/bucket/gcs/gcstest"
	conn "millrace/shared/connector"
)

// The machine's own credentials are for connectors only where the operator said so, and never for another server.
func TestConnectorsWithoutCredentials(t *testing.T) {
	create := func(w *world, more ...[2]string) answer {
		raw, ct := gcsForm(t, nil, append(gcsParts[:len(gcsParts):len(gcsParts)], more...)...)
		return w.do("POST", "/connectors/gcs", nil, request{raw: raw, header: map[string]string{"Content-Type": ct}})
	}
	create(newWorld(t)).refused(422, "validation_error", "credentials_file", "--machine-credentials")
	w := newWorld(t, func(c *admin.Config) { c.MachineCredentials = true })
	made := create(w, [2]string{"user_project", "payer-1"}).want(201)
	if made.str("user_project") != "payer-1" {
		t.Errorf("%s", made.raw)
	}
	if stored, _, err := w.connectors.Get(t.Context(), made.str("connector_id")); err != nil || stored.Credentials != "" {
		t.Errorf("%+v, %v", stored, err)
	}
	create(w, [2]string{"endpoint_url", "https://storage.example.com"}).refused(422, "validation_error", "credentials_file")
	create(w, [2]string{"user_project", "a/b"}).refused(422, "validation_error", "user_project")
}

// Whoever may not set up the cloud's side is told what to run; where it can be done it is, and the connector pulls.
func TestNotifyConnector(t *testing.T) {
	storage, pubsub := gcstest.Start(t, "drops"), pstest.NewServer()
	t.Cleanup(func() { _ = pubsub.Close() })
	w := newWorld(t)
	open := func(allow ...string) {
		var err error
		w.sources.opener, err = conn.New(conn.Config{Keeper: w.keeper, AllowEndpoints: allow, PubSubEndpoint: pubsub.Addr}, w.connectors)
		must(t, err)
	}
	connect := func(bucket string) string {
		raw, ct := gcsForm(t, storage.Credentials(t), [2]string{"name", "n"}, [2]string{"bucket", bucket}, [2]string{"gcp_project_id", "project-1"},
			[2]string{"endpoint_url", storage.URL})
		return w.do("POST", "/connectors/gcs", nil, request{raw: raw, header: map[string]string{"Content-Type": ct}}).want(201).str("connector_id")
	}
	id, nowhere := connect("drops"), connect("nowhere")
	open("127.0.0.1")
	told := w.do("POST", "/connectors/"+id+"/notify", obj{}).want(200)
	if told.at("done") != false || !strings.HasPrefix(told.str("steps", 3, "command"), "gcloud storage buckets notifications create gs://drops ") {
		t.Errorf("%s", told.raw)
	}
	if n := storage.Requests(gcstest.Anything); n != 0 {
		t.Errorf("%d requests for what was only to be told", n)
	}
	failed := w.do("POST", "/connectors/"+nowhere+"/notify", obj{"create": true}).want(200)
	if failed.at("done") != false || failed.at("steps", 2, "done") != true || failed.str("steps", 3, "error") == "" || failed.at("steps", 4, "done") != false {
		t.Errorf("%s", failed.raw)
	}
	if c := w.do("GET", "/connectors/"+nowhere, nil).want(200); c.at("subscription") != nil {
		t.Errorf("pulls although nothing is told: %s", c.raw)
	}
	done := w.do("POST", "/connectors/"+id+"/notify", obj{"create": true, "name": "drops-1"}).want(200)
	if done.at("done") != true || done.str("subscription") != "projects/project-1/subscriptions/drops-1" {
		t.Errorf("%s", done.raw)
	}
	if c := w.do("GET", "/connectors/"+id, nil).want(200); c.str("subscription") != "projects/project-1/subscriptions/drops-1" {
		t.Errorf("%s", c.raw)
	}
	w.do("POST", "/connectors/"+id+"/notify", obj{"name": "$(reboot)"}).refused(422, "validation_error", "name")
	w.do("POST", "/connectors/"+id+"/notify", obj{"subscription": "https://sqs.example.com/q"}).refused(422, "validation_error", "subscription")

	// Neither the bucket nor the place that gives tokens is asked where only this machine can reach it.
	open()
	before := storage.Requests(gcstest.Anything)
	shut := w.do("POST", "/connectors/"+id+"/notify", obj{"create": true}).want(200)
	if shut.at("done") != false || !strings.Contains(shut.str("steps", 3, "error"), "--allow-endpoint") || storage.Requests(gcstest.Anything) != before {
		t.Errorf("%d requests got through: %s", storage.Requests(gcstest.Anything)-before, shut.raw)
	}

	queue := w.do("POST", "/connectors/s3", s3Body()).want(201).str("connector_id")
	if told := w.do("POST", "/connectors/"+queue+"/notify", obj{"create": true}).want(200); told.at("done") != false || told.at("subscription") != nil ||
		!strings.Contains(told.str("steps", 0, "command"), "aws sqs create-queue --region eu-central-1 ") {
		t.Errorf("%s", told.raw)
	}
	const url = "https://sqs.eu-central-1.amazonaws.com/123456789012/drops"
	w.do("POST", "/connectors/"+queue+"/notify", obj{"subscription": url}).want(200)
	if c := w.do("GET", "/connectors/"+queue, nil).want(200); c.str("subscription") != url {
		t.Errorf("%s", c.raw)
	}
	w.do("PATCH", "/connectors/"+queue, obj{"subscription": url}).refused(422, "validation_error", "subscription", "notify")
}
