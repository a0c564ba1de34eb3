package admin_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"

	"millrace/services/admin"
	"millrace/shared/bucket"
	"millrace/shared/store"
)

func s3Body() obj {
	return obj{"name": "Archive", "bucket": "field-recordings", "region": "eu-central-1", "aws_access_key_id": "PLANTED-ID", "aws_secret_access_key": "PLANTED-SECRET"}
}

func azureBody() obj {
	return obj{"name": "Blobs", "storage_account": "acct", "container": "drops", "tenant_id": "PLANTED-T", "client_id": "PLANTED-C", "client_secret": "PLANTED-SECRET"}
}

func without(o obj, name string) obj {
	o = maps.Clone(o)
	delete(o, name)
	return o
}

// Credentials are sealed, and shown to nobody.
func TestCloudConnectors(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s3 := w.do("POST", "/connectors/s3", merged(s3Body(), obj{"endpoint_url": "https://minio.example.com", "force_path_style": true, "scopes": nil, "import_mode": nil})).want(201)
	if s3.str("region") != "eu-central-1" || s3.str("bucket") != "field-recordings" || s3.at("force_path_style") != true || s3.str("endpoint_url") == "" ||
		s3.str("import_mode") != "all" || s3.str("scopes", 0) != "import" || s3.at("storage_account") != nil || s3.str("status") != "active" {
		t.Errorf("s3: %s", s3.raw)
	}
	azure := w.do("POST", "/connectors/azure", azureBody()).want(201)
	if azure.str("storage_account") != "acct" || azure.str("container") != "drops" || azure.at("bucket") != nil {
		t.Errorf("azure: %s", azure.raw)
	}
	for _, c := range []answer{s3, azure} {
		id := c.str("connector_id")
		stored, _, err := w.connectors.Get(t.Context(), id)
		must(t, err)
		if _, err := w.keeper.Open(stored.Credentials, admin.CredentialsAAD(id)); err != nil || strings.Contains(stored.Credentials, "PLANTED") {
			t.Errorf("sealed as %q: %v", stored.Credentials, err)
		}
	}
	if strings.Contains(w.log.String()+string(s3.raw)+string(azure.raw), "PLANTED") {
		t.Error("credentials leak")
	}
}

func TestPatchConnector(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.do("POST", "/connectors/s3", s3Body()).want(201).str("connector_id")
	path := "/connectors/" + id
	_, _, err := w.connectors.Modify(t.Context(), id, func(c *store.Connector) error {
		c.Status, c.LastTestResult, c.LastTestError, c.LastTestedAt = "failed", "failed", "why", c.CreatedAt
		return nil
	})
	must(t, err)
	before := w.do("GET", path, nil)
	same := w.do("PATCH", path, obj{"name": before.str("name"), "import_mode": nil}).want(200)
	if same.str("updated_at") != before.str("updated_at") {
		t.Error("a change of nothing is a change")
	}
	a := w.do("PATCH", path, obj{"name": "Other", "scopes": []string{"import", "export"}, "import_mode": "new_only", "export_base_path": "out/"}).want(200)
	if a.str("name") != "Other" || a.str("import_mode") != "new_only" || a.str("export_base_path") != "out/" || a.str("scopes", 0) != "import" ||
		a.str("last_test_result") != "failed" || a.str("region") != "eu-central-1" {
		t.Errorf("changed: %s", a.raw)
	}
	if a := w.do("PATCH", path, obj{"export_base_path": ""}).want(200); a.at("export_base_path") != nil {
		t.Errorf("cleared: %s", a.raw)
	}
	old, _, err := w.connectors.Get(t.Context(), id)
	must(t, err)
	w.do("PATCH", path, obj{"aws_access_key_id": "PLANTED"}).refused(422, "validation_error", "aws_secret_access_key", "complete set")
	w.do("PATCH", path, obj{"client_secret": "PLANTED", "tenant_id": "PLANTED"}).refused(422, "validation_error", "client_secret", "does not belong")
	w.do("PATCH", path, obj{"credentials_file": obj{"private_key": "PLANTED"}}).refused(422, "validation_error", "credentials_file")
	w.do("PATCH", path, obj{"region": "us-east-1", "bucket": "b"}).refused(422, "validation_error", "region", "bucket", "cannot be changed")
	if now, _, err := w.connectors.Get(t.Context(), id); err != nil || now.Credentials != old.Credentials {
		t.Errorf("what was refused changed the credentials: %v", err)
	}
	a = w.do("PATCH", path, obj{"aws_access_key_id": "PLANTED-2", "aws_secret_access_key": "PLANTED-SECRET-2"}).want(200)
	if a.at("last_test_result") != nil || a.at("last_tested_at") != nil || a.str("status") != "active" {
		t.Errorf("new credentials are as good as untested: %s", a.raw)
	}
	if now, _, err := w.connectors.Get(t.Context(), id); err != nil || now.Credentials == old.Credentials {
		t.Errorf("the credentials are the old ones: %v", err)
	}

	raw, ct := gcsForm(t, account(nil), gcsParts...)
	gcs := "/connectors/" + w.do("POST", "/connectors/gcs", nil, request{raw: raw, header: map[string]string{"Content-Type": ct}}).want(201).str("connector_id")
	w.do("PATCH", gcs, obj{"credentials_file": json.RawMessage(account(obj{"type": "PLANTED"}))}).refused(422, "connector_credentials_invalid")
	w.do("PATCH", gcs, obj{"credentials_file": obj{"type": "service_account"}}).refused(422, "connector_credentials_invalid", "project_id")
	w.do("PATCH", gcs, obj{"credentials_file": obj{
		"type": "service_account", "project_id": "p", "private_key_id": "2", "private_key": "PLANTED-SECRET", "client_email": "e", "token_uri": "u",
	}}).want(200)
	if strings.Contains(w.log.String(), "PLANTED") {
		t.Error("credentials in the log")
	}
}

func TestDeleteConnector(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	path := "/connectors/" + f.connector
	w.do("DELETE", path, nil).refused(409, "connector_in_use", f.index)
	must(t, w.jobs.Put(t.Context(), "job_running", store.Job{ID: "job_running", Connector: f.connector, Status: store.JobImporting}))
	for _, index := range []string{f.index, f.calm} {
		w.do("PUT", "/indexes/"+index+"/automations/import", obj{"enabled": false, "connector_id": f.connector, "debounce_interval": "5m", "prompt_preset": nil}).want(200)
	}
	w.do("DELETE", path, nil).refused(409, "connector_in_use", "job_running")
	must(t, w.jobs.Put(t.Context(), "job_running", store.Job{ID: "job_running", Connector: f.connector, Status: store.JobCancelled}))
	first := w.do("DELETE", path, nil).want(200)
	w.do("GET", path, nil).refused(404, "resource_connector_not_found")
	if again := w.do("DELETE", path, nil).want(200); string(again.raw) != string(first.raw) {
		t.Errorf("a repetition: %s", again.raw)
	}
	w.do("DELETE", "/connectors/conn_never", nil).refused(404, "resource_connector_not_found")
	w.do("PATCH", path, obj{"name": "back"}).refused(404, "resource_connector_not_found")
	w.do("GET", "/videos/"+f.video, nil).want(200)
	if a := w.do("GET", "/indexes/"+f.index+"/automations/import", nil).want(200); !strings.Contains(a.str("last_error"), f.connector) {
		t.Errorf("an automation whose connector is gone: %s", a.raw)
	}
}

// A test that cannot even open the storage puts that on record.
func TestTestOfAConnectorWithoutADriver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.do("POST", "/connectors/azure", azureBody()).want(201).str("connector_id")
	w.sources.set(id, fmt.Errorf("open: %w", bucket.ErrNoBucket))
	a := w.do("POST", "/connectors/"+id+"/test", nil).want(200)
	c := w.do("GET", "/connectors/"+id, nil).want(200)
	if a.at("success") != false || a.str("error_message") == "" || c.str("status") != "failed" || c.str("last_test_result") != "failed" {
		t.Errorf("%s %s", a.raw, c.raw)
	}
	w.sources.set(id, nil)
	w.do("POST", "/connectors/"+id+"/test", nil).want(200)
	if c := w.do("GET", "/connectors/"+id, nil).want(200); c.str("status") != "active" || c.at("last_test_error") != nil {
		t.Errorf("after a good one: %s", c.raw)
	}
}
