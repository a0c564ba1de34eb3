package millrace_test

import (
	"maps"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"millrace/services/millrace"
	"millrace/services/millrace/client"
	"millrace/shared/bucket/azure/azuretest"
	"millrace/shared/bucket/faulttest"
	"millrace/shared/bucket/gcs/gcstest"
	"millrace/shared/bucket/s3/s3test"
)

// badStorage is what storage of one provider says that refuses us.
type badStorage struct {
	connect func(*pipeline) (connector string)
	inject  func(match func(*http.Request) bool, fault faulttest.Fault)
	heal    func()
	put     func(name string, data []byte)

	reads   func(*http.Request) bool
	tried   int // steps of a connector test that goes well
	refused []refusedStep
	spoiled map[string]spoilt // objects that cannot be had, by name
}

// refusedStep is an answer to a connector test, and what a person is told about it.
type refusedStep struct {
	name  string
	match func(*http.Request) bool // nil: all
	fault faulttest.Fault
	steps int      // that were tried
	says  []string // in the error; none: the test succeeds
}

type spoilt struct {
	fault  faulttest.Fault
	reason string
	says   []string // in the file's error
}

// Storage that refuses us: a connector test says which of its steps failed, why and what to do; and objects that cannot be
// had fail with a reason, while their neighbours are imported.
func TestBadStorage(t *testing.T) {
	t.Parallel()
	o := millrace.Options{Data: filepath.Join(t.TempDir(), "data"), HTTP: freeAddr(t), APIKey: apiKey, Executor: "nats"}
	o.Prefix, o.AllowEndpoint, o.Library.Library = "bad", []string{"127.0.0.1"}, "none"
	up, _ := inProcess(t, o)
	up()
	api := client.New("http://"+o.HTTP, apiKey)
	index := (&pipeline{t: t, api: api}).create("/indexes", "index_id", obj{"name": "Main"})
	for name, storage := range map[string]func(*testing.T) badStorage{"gcs": badGCS, "s3": badS3, "azure": badAzure} {
		t.Run(name, func(t *testing.T) {
			s := storage(t)
			p := &pipeline{t: t, api: api, index: index, exists: map[string][]byte{}}
			p.connector = s.connect(p)
			png := sample(t, "photo.png")
			s.put("fine.png", png)
			for _, r := range append(s.refused, refusedStep{name: "nothing", steps: s.tried}) {
				if r.fault != nil {
					match := r.match
					if match == nil {
						match = faulttest.Anything
					}
					s.inject(match, r.fault)
				}
				var said struct {
					Success bool
					Error   *string `json:"error_message"`
					Steps   []struct {
						What, Found string
						OK          bool
					}
				}
				must(t, api.Do(t.Context(), http.MethodPost, "/connectors/"+p.connector+"/test", nil, &said))
				s.heal()
				if said.Success != (r.says == nil) || said.Success != (said.Error == nil) || len(said.Steps) != r.steps {
					t.Errorf("%s: %+v, %s", r.name, said, value(said.Error))
					continue
				}
				for i, step := range said.Steps {
					if step.What == "" || step.Found == "" || step.OK != (said.Success || i < len(said.Steps)-1) {
						t.Errorf("%s: step %d: %+v", r.name, i, step)
					}
				}
				for _, word := range r.says {
					if !strings.Contains(*said.Error, word) {
						t.Errorf("%s says nothing of %q: %s", r.name, word, *said.Error)
					}
				}
			}

			want := map[string]string{"fine.png": "imported"}
			for name, spoilt := range s.spoiled {
				want[name] = "failed: " + spoilt.reason
				s.put(name, png)
				s.inject(func(r *http.Request) bool { return s.reads(r) && strings.HasSuffix(r.URL.Path, "/"+name) }, spoilt.fault)
			}
			j := p.follow(p.create("/import-jobs", "job_id", obj{"connector_id": p.connector, "index_id": index}), patience)
			if got := p.outcomes(j); !maps.Equal(got, want) {
				t.Errorf("%v, want %v", got, want)
			}
			for _, f := range j.Failed {
				for _, word := range s.spoiled[f["path"]].says {
					if !strings.Contains(f["error"], word) {
						t.Errorf("%s says nothing of %q: %s", f["path"], word, f["error"])
					}
				}
			}
		})
	}
}

func badGCS(t *testing.T) badStorage {
	s := gcstest.Start(t, "drops")
	key := s.Credentials(t)
	clock := func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		w.Header().Set("Date", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
		gcstest.Status(400, "invalid_grant", "Invalid JWT")(w, r, nil)
	}
	encrypted := gcstest.Status(400, "resourceIsEncryptedWithCustomerEncryptionKey", "The target object is encrypted by a customer-supplied encryption key.")
	return badStorage{
		connect: func(p *pipeline) (id string) {
			must(t, p.api.PostForm(t.Context(), "/connectors/gcs", map[string][]string{
				"name": {"Drops"}, "bucket": {"drops"}, "gcp_project_id": {"mine"}, "endpoint_url": {s.URL}, "import_mode": {"new_only"},
			}, "credentials_file", key, &struct {
				ID *string `json:"connector_id"`
			}{&id}))
			return id
		},
		inject: func(match func(*http.Request) bool, fault faulttest.Fault) { s.Inject(-1, match, fault) },
		heal:   s.Heal,
		put:    func(name string, data []byte) { s.Put("drops", name, data) },
		reads:  gcstest.Reads,
		tried:  3,
		refused: []refusedStep{
			{"a bucket of another project", gcstest.Listings, gcstest.Status(403, "forbidden", "x does not have access to the bucket."), 2,
				[]string{"storage.objects.list", "roles/storage.objectViewer", "another project than \"mine\""}},
			{"a right to list and not to read", gcstest.Reads, gcstest.Status(403, "forbidden", ""), 3,
				[]string{"Listing works, reading does not", "fine.png", "storage.objects.get", "roles/storage.objectViewer"}},
			{"no such bucket", gcstest.Listings, gcstest.Status(404, "notFound", "The specified bucket does not exist."), 2, []string{"\"drops\" does not exist"}},
			{"a bucket whose reader pays", gcstest.Listings, gcstest.Status(400, "required", "Bucket is a requester pays bucket but no user project provided."), 2,
				[]string{"user_project"}},
			{"a clock that is wrong", gcstest.Tokens, clock, 2, []string{"the clock of this machine is -"}},
			{"a key of KMS that is not ours", gcstest.Reads, gcstest.Status(403, "kmsPermissionDenied", "Permission denied on Cloud KMS key."), 3, nil},
		},
		spoiled: map[string]spoilt{"encrypted.png": {encrypted, "unreadable", []string{"customer-supplied encryption key"}}},
	}
}

func method(m string) func(*http.Request) bool {
	return func(r *http.Request) bool { return r.Method == m }
}

func badS3(t *testing.T) badStorage {
	s := s3test.Fake(t, "drops")
	return badStorage{
		connect: func(p *pipeline) string {
			return p.create("/connectors/s3", "connector_id", obj{
				"name": "Drops", "scopes": []string{"import", "export"}, "export_base_path": "out", "bucket": "drops", "endpoint_url": s.URL, "import_mode": "new_only",
				"aws_access_key_id": s3test.AccessKeyID, "aws_secret_access_key": s3test.SecretAccessKey,
			})
		},
		inject: func(match func(*http.Request) bool, fault faulttest.Fault) { s.Inject(-1, match, fault) },
		heal:   s.Heal,
		put:    func(name string, data []byte) { s.Put(t, "drops", name, data) },
		reads:  s3test.Reads,
		tried:  4,
		refused: []refusedStep{
			{"a bucket of another account", s3test.Listings, s3test.Status(403, "AccessDenied", "Access Denied"), 2, []string{"s3:ListBucket", "another account's"}},
			{"a right to list and not to read", s3test.Reads, s3test.Status(403, "AccessDenied", "Access Denied"), 3,
				[]string{"Listing works, reading does not", "fine.png", "s3:GetObject"}},
			{"no such bucket", nil, s3test.Status(404, "NoSuchBucket", "The specified bucket does not exist"), 2, []string{"\"drops\" does not exist"}},
			{"another region", nil, s3test.Status(301, "PermanentRedirect", "...", "X-Amz-Bucket-Region", "eu-west-1"), 2, []string{"it is in eu-west-1"}},
			{"a clock that is wrong", nil, s3test.Status(403, "RequestTimeTooSkewed", "..."), 2, []string{"the clock of this machine is wrong"}},
			{"an archived object", s3test.Reads, s3test.Status(403, "InvalidObjectState", "..."), 4, nil},
			{"a right to read and not to write", method(http.MethodPut), s3test.Status(403, "AccessDenied", "Access Denied"), 4,
				[]string{"Could not write an object", `"out/millrace-test-`, "s3:PutObject", "scope export"}},
		},
		spoiled: map[string]spoilt{
			"cold.png":      {s3test.Status(403, "InvalidObjectState", "The operation is not valid for the object's storage class"), "archived", []string{"restore it"}},
			"encrypted.png": {s3test.Status(400, "InvalidRequest", "The object was stored using a form of Server Side Encryption."), "unreadable", []string{"SSE-C"}},
		},
	}
}

func badAzure(t *testing.T) badStorage {
	s := azuretest.Start(t, "drops")
	return badStorage{
		connect: func(p *pipeline) string {
			return p.create("/connectors/azure", "connector_id", obj{
				"name": "Drops", "storage_account": s.Account, "container": "drops", "endpoint_url": s.URL, "account_key": s.Key, "import_mode": "new_only",
			})
		},
		inject: func(match func(*http.Request) bool, fault faulttest.Fault) { s.Inject(-1, match, fault) },
		heal:   s.Heal,
		put:    func(name string, data []byte) { s.Put("drops", name, data) },
		reads:  azuretest.Reads,
		tried:  3,
		refused: []refusedStep{
			{"no role", azuretest.Listings, azuretest.Status(403, "AuthorizationPermissionMismatch"), 2, []string{"Storage Blob Data Reader"}},
			{"a right to list and not to read", azuretest.Reads, azuretest.Status(403, "AuthorizationPermissionMismatch"), 3,
				[]string{"Listing works, reading does not", "fine.png", "Storage Blob Data Reader"}},
			{"no such container", nil, azuretest.Status(404, "ContainerNotFound"), 2, []string{"\"drops\"", "does not exist"}},
			{"a clock that is wrong", nil, azuretest.AtTime(time.Now().Add(-time.Hour), 403, "AuthenticationFailed"), 2, []string{"the clock of this machine is 1h"}},
			{"an archived blob", azuretest.Reads, azuretest.Status(409, "BlobArchived"), 3, nil},
		},
		spoiled: map[string]spoilt{
			"cold.png":      {azuretest.Status(409, "BlobArchived"), "archived", []string{"Hot"}},
			"encrypted.png": {azuretest.Status(409, "BlobUsesCustomerSpecifiedEncryption"), "unreadable", []string{"a key that its owner keeps"}},
		},
	}
}
