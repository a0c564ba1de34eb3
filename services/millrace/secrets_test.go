package millrace_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"millrace/services/admin"
	"millrace/services/millrace/client"
	"millrace/shared/bucket/azure/azuretest"
	"millrace/shared/bucket/gcs/gcstest"
	"millrace/shared/topology"
)

// TestSecretsStayInside plants secrets that can be recognised, uses them in every way there is, and looks for them in
// everything that comes out: answers, logs at their most talkative, metrics, events, results, errors, and every byte of
// the data folder (I12).
func TestSecretsStayInside(t *testing.T) {
	const key, token, marker = "PLANTED-api-key-8f2c1b", "PLANTED-nats-token-77aa", "PLANTED-inside-the-credentials"
	const cloudKey = "PLANTED-key-of-another-cloud"
	const clientSecret = "PLANTED-client-secret-of-a-principal"
	accountKey := base64.StdEncoding.EncodeToString([]byte("PLANTED-account-key-of-azure"))
	const pushToken = "PLANTED-token-of-a-push"
	const jwt = "eyJhbGciOiJSUzI1NiJ9.UExBTlRFRC1pbi1hLXRva2Vu.UExBTlRFRA"
	storage := gcstest.Start(t, "bucket")
	storage.Put("bucket", "cloud.mp4", sample(t, "video.mp4"))
	azure := azuretest.Start(t, "drops")
	var account map[string]string
	must(t, json.Unmarshal(storage.Credentials(t), &account))
	account["marker"] = marker
	credentials, err := json.Marshal(account)
	must(t, err)
	private := strings.Split(account["private_key"], "\n")[2] // a line of the PEM block
	if len(private) < 40 {
		t.Fatalf("not a line of a private key: %q", private)
	}
	secrets := map[string]string{"API key": key, "NATS token": token, "credentials": marker, "private key": private, "cloud key": cloudKey, "account key": accountKey, "client secret": clientSecret, "push token": pushToken, "OIDC token": jwt}

	listen := freeAddr(t)
	// The executor's command prints its whole environment, which is where a key may come from too.
	env := `printf '{"bytes":%d,"env":"%s"}' "$(wc -c <"$1")" "$(env | tr -d '"\\' | tr '\n' ' ')"`
	up := newUp(t, "--nats-listen", listen, "--executor", "exec="+env, "--log-level", "debug", "--log-format", "json")
	for i, a := range up.args { // by the environment, as a service manager does it
		if a == "--api-key" {
			up.args = append(up.args[:i:i], up.args[i+2:]...)
			break
		}
	}
	up.env = []string{"MILLRACE_API_KEY=" + key, "MILLRACE_NATS_TOKEN=" + token}
	up.start()
	up.waitReady(up.url)
	up.api = client.New(up.url, key)
	p := wire(t, up.api, up.inbox)
	door, err := admin.ReadDoor(up.data)
	must(t, err)
	secrets["operator's token"] = door.Token

	var said bytes.Buffer // all answers
	call := func(method, path string, header http.Header, body []byte) response {
		t.Helper()
		if header == nil {
			header = http.Header{"X-Api-Key": {key}, "Content-Type": {"application/json"}}
		}
		res, err := send(t.Context(), method, up.url+path, header, body)
		must(t, err)
		path, _, _ = strings.Cut(path, "?") // what was asked is no answer
		fmt.Fprintf(&said, "%s %s: %d %v %s\n", method, path, res.status, res.header, res.body)
		return res
	}
	create := func(credentials []byte) (id string) {
		t.Helper()
		body, kind := form(t, map[string]string{"name": "Cloud", "bucket": "bucket", "gcp_project_id": "test", "endpoint_url": storage.URL}, credentials)
		res := call("POST", "/api/v2/connectors/gcs", http.Header{"X-Api-Key": {key}, "Content-Type": {kind}, "Idempotency-Key": {fmt.Sprint(said.Len())}}, body)
		var c struct {
			ID string `json:"connector_id"`
		}
		must(t, json.Unmarshal(res.body, &c))
		return c.ID
	}
	cloud := create(credentials)
	create([]byte(marker))                          // not JSON
	create(fmt.Appendf(nil, `{"type":%q}`, marker)) // not of a service account
	broken := create(bytes.Replace(credentials, []byte("-----BEGIN"), []byte("-----BEGAN"), 1))

	for _, c := range []struct{ method, path, body string }{
		{"POST", "/connectors/s3", `{"name":"S","bucket":"b","region":"r","aws_access_key_id":%q,"aws_secret_access_key":%[1]q}`},
		{"POST", "/connectors/s3", `{"name":5,"bucket":%q,"region":"r","aws_access_key_id":%[1]q,"aws_secret_access_key":{"x":%[1]q},"endpoint_url":"https://u:%[1]s@h"}`},
		{"POST", "/connectors/azure", `{"name":"A","storage_account":"millracedrops","container":"drops","tenant_id":"t","client_id":"c","client_secret":"` + clientSecret + `"}`},
		{"POST", "/connectors/azure", `{"name":"F","storage_account":"millracedrops","container":"drops","client_id":"c","client_secret":"` + clientSecret + `"}`},
		{"POST", "/connectors/azure", `{"name":"G","storage_account":"millracedrops","container":"drops","tenant_id":["` + clientSecret + `"],"client_id":5,"client_secret":"` + clientSecret + `"}`},
		{"POST", "/connectors/azure", `{"name":"B","storage_account":"ACCOUNT","container":"drops","endpoint_url":"ENDPOINT","sas_token":"sv=2026&sp=rl&sig=%s"}`},
		{"POST", "/connectors/azure", `{"name":"C","storage_account":"ACCOUNT","container":"drops","endpoint_url":"ENDPOINT","sas_token":"?%s"}`},
		{"POST", "/connectors/azure", `{"name":"E","storage_account":"ACCOUNT","container":"drops","endpoint_url":"ENDPOINT","account_key":"` + accountKey + `"}`},
		{"POST", "/connectors/azure", `{"name":"D","storage_account":"a/%s","container":{"x":%[1]q},"sas_token":[%[1]q],"client_secret":%[1]q}`},
		{"PATCH", "/connectors/" + cloud, `{"sas_token":%q,"client_secret":%[1]q}`},
		{"PATCH", "/connectors/" + cloud, `{"aws_secret_access_key":%q}`},
		{"PATCH", "/connectors/" + cloud, `{"credentials_file":{"type":"service_account","private_key":%q}}`},
	} {
		sent := strings.NewReplacer("ACCOUNT", azure.Account, "ENDPOINT", azure.URL, "%s", cloudKey, "%q", strconv.Quote(cloudKey), "%[1]s", cloudKey, "%[1]q", strconv.Quote(cloudKey)).Replace(c.body)
		res := call(c.method, "/api/v2"+c.path, nil, []byte(sent))
		var made struct {
			ID string `json:"connector_id"`
		}
		must(t, json.Unmarshal(res.body, &made))
		if made.ID != "" && c.method == "POST" && !strings.Contains(c.body, "tenant_id") { // whose log-in is on the internet
			call("POST", "/api/v2/connectors/"+made.ID+"/test", nil, nil)
			call("POST", "/api/v2/connectors/"+made.ID+"/browse", nil, nil)
			var told struct {
				Error *string `json:"storage_error"`
			}
			must(t, json.Unmarshal(call("GET", "/api/v2/explain?path=a.mp4&connector_id="+made.ID, nil, nil).body, &told))
			if told.Error == nil {
				t.Errorf("%s: a storage that refuses everything is not told", sent)
			}
		} else if made.ID != "" && c.method == "POST" {
			for body, status := range map[string]int{
				`{"client_secret":"` + clientSecret + `"}`:                                   422,
				`{"tenant_id":"t2","client_id":"c2","client_secret":"` + clientSecret + `"}`: 200,
			} {
				if res := call("PATCH", "/api/v2/connectors/"+made.ID, nil, []byte(body)); res.status != status {
					t.Errorf("%s: %d %s", body, res.status, res.body)
				}
			}
		}
	}

	// The secret of a webhook is shown to who makes it and to who rotates it, once, and to nobody else.
	shown := func(path, member string, body string) (id string) {
		t.Helper()
		res, err := send(t.Context(), "POST", up.url+path, http.Header{"X-Api-Key": {key}, "Content-Type": {"application/json"}, "Idempotency-Key": {path}}, []byte(body))
		must(t, err)
		var made map[string]any
		must(t, json.Unmarshal(res.body, &made))
		secret, _ := made[member].(string)
		if secret == "" {
			t.Fatalf("POST %s: %d without %s", path, res.status, member)
		}
		secrets[path+": "+member] = secret
		id, _ = made["webhook_id"].(string)
		return id
	}
	hook := shown("/api/v2/webhooks", "secret", `{"name":"H","url":"https://127.0.0.1:9/hook","events":["import_job.completed"]}`)
	call("POST", "/api/v2/webhooks/"+hook+"/test", nil, nil)
	shown("/api/v2/webhooks/"+hook+"/rotate-secret", "new_secret", "")
	call("POST", "/api/v2/webhooks/"+hook+"/test", nil, nil)
	call("PATCH", "/api/v2/webhooks/"+hook, nil, []byte(`{"name":"I"}`))

	p.automate(p.index, "1s", nil)
	p.drop("here.mp4", sample(t, "video.mp4"))
	j := p.nthJob(1)
	j = p.follow(j.ID, patience)
	run := p.nthRun(1)
	p.followRun(run, j, patience)
	call("GET", "/api/v2/prompt-runs/"+run+"/results?video_id="+j.Videos[0], nil, nil)

	body, err := json.Marshal(obj{"connector_id": cloud, "index_id": p.index})
	must(t, err)
	var job client.Job
	must(t, json.Unmarshal(call("POST", "/api/v2/import-jobs", nil, body).body, &job))
	if j = p.follow(job.ID, patience); len(j.Videos) != 1 {
		t.Errorf("nothing came from the cloud: %+v", j)
	}
	call("POST", "/api/v2/connectors/"+cloud+"/test", nil, nil)
	call("POST", "/api/v2/connectors/"+broken+"/test", nil, nil)
	call("POST", "/api/v2/connectors/"+broken+"/browse", nil, nil)
	storage.Revoke()
	call("POST", "/api/v2/connectors/"+cloud+"/test", nil, nil)
	call("POST", "/api/v2/connectors/"+cloud+"/browse", nil, nil)
	call("POST", "/api/v2/notifications/"+cloud, nil, []byte("rubbish"))
	// A push may bring a key, or a token of the storage's, in more than one place.
	for _, h := range []http.Header{
		{"Authorization": {"Bearer " + pushToken}}, {"X-Api-Key": {pushToken}}, {"Authorization": {"Bearer " + jwt}},
	} {
		call("POST", "/api/v2/notifications/"+cloud, h, []byte(`{"message":{"data":"e30="}}`))
	}
	call("POST", "/api/v2/notifications/"+cloud+"?token="+pushToken, nil, []byte("{}"))
	call("GET", "/api/v2/indexes/"+p.index+"/automations/import/plan", nil, nil)
	var export struct {
		ID string `json:"export_id"`
	}
	must(t, json.Unmarshal(call("POST", "/api/v2/exports/prompt-run/"+run, nil, nil).body, &export))
	link := func() { call("POST", "/api/v2/exports/"+export.ID+"/download-url", nil, nil) }
	link()
	for _, path := range []string{
		"/api/v2/connectors", "/api/v2/connectors/" + cloud, "/api/v2/indexes", "/api/v2/import-jobs", "/api/v2/prompt-runs",
		"/api/v2/indexes/" + p.index + "/videos", "/api/v2/indexes/" + p.index + "/automations/import", "/openapi.json",
		"/api/v2/automations", "/api/v2/dead", "/api/v2/explain?path=cloud.mp4&connector_id=" + cloud, "/api/v2/import-jobs/" + j.ID + "/files",
		"/api/v2/webhooks", "/api/v2/webhooks/" + hook, "/api/v2/webhooks/" + hook + "/deliveries", "/api/v2/exports", "/api/v2/exports/" + export.ID,
		"/metrics", "/readyz", "/healthz",
	} {
		call("GET", path, nil, nil)
	}
	call("GET", "/api/v2/connectors", http.Header{"X-Api-Key": {key + "x"}}, nil)
	call("GET", "/api/v2/connectors", http.Header{"Authorization": {"Bearer " + key}}, nil)

	if strings.Contains(said.String(), "tr -d") || !strings.Contains(said.String(), `"executor":"exec"`) {
		t.Error("an answer shows the executor's command, or none its kind")
	}
	places := map[string][]byte{"answers": said.Bytes()}
	nc := dial(t, "nats://"+token+"@"+listen)
	top := topology.Topology{Prefix: "millrace"}
	for _, s := range top.Streams() {
		for _, m := range stored(t, nc, s.Config.Name) {
			places[s.Name] = append(append(places[s.Name], fmt.Sprint(m.Subject, m.Header)...), m.Data...)
		}
	}
	if len(places[topology.Events]) == 0 || len(places[topology.DeadLetters]) == 0 || len(places[topology.Connectors]) == 0 {
		t.Error("there is nothing where secrets are looked for")
	}
	printed := start(t, append([]string{"up", "--print-config", "--api-key", key, "--nats-token", token}, up.args[1:]...)...)
	<-printed.exited
	if !strings.Contains(printed.output(), "[redacted]") {
		t.Errorf("--print-config: %s", printed.output())
	}
	places["--print-config"] = []byte(printed.output())
	up.stop()
	places["log"] = []byte(up.output())
	for _, dir := range []string{up.data, up.library} {
		must(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			places[path], err = os.ReadFile(path)
			return err
		}))
	}
	for place, content := range places {
		for what, secret := range secrets {
			if i := bytes.Index(content, []byte(secret)); i >= 0 {
				t.Errorf("the %s is in %s: …%q", what, place, content[max(0, i-120):i+len(secret)])
			}
		}
	}
	// The log is talkative enough to mean something, and names what failed.
	if log := up.output(); !strings.Contains(log, `"level":"DEBUG"`) || !strings.Contains(log, cloud) && !strings.Contains(log, "message is dead") {
		t.Errorf("the log says too little to be looked through: %.2000s", log)
	}
}
