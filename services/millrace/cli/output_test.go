package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/alecthomas/kong"

	"millrace/services/millrace/client"
)

func TestPrintTable(t *testing.T) {
	columns := []column{{"JOB", "job_id"}, {"FILES", "progress.total_files"}, {"OK", "ok"}, {"LIST", "list"}, {"GONE", "no.such.member"}}
	for _, c := range []struct{ raw, want string }{
		{`[]`, "JOB  FILES  OK  LIST  GONE\n"},
		{`{"job_id":"a\tb\nc","progress":{"total_files":1000000},"ok":true,"list":["x","y"]}`, "JOB      FILES    OK   LIST  GONE\na\\tb\\nc  1000000  yes  x,y   -\n"},
		{`{"job_id":"\u001b]0;x\u0007\u202egpj é 日本","ok":true}`, "JOB                       FILES  OK   LIST  GONE\n\\x1b]0;x\\a\\u202egpj é 日本  -      yes  -     -\n"},
		{`[{"job_id":"","progress":{"total_files":3},"ok":false},{"job_id":null}]`, "JOB  FILES  OK  LIST  GONE\n-    3      no  -     -\n-    -      -   -     -\n"},
	} {
		var b strings.Builder
		if err := printTable(&b, json.RawMessage(c.raw), columns); err != nil {
			t.Fatal(err)
		}
		if b.String() != c.want {
			t.Errorf("%s:\n%swant\n%s", c.raw, b.String(), c.want)
		}
	}
	if err := printTable(os.Stdout, json.RawMessage(`"text"`), columns); err == nil {
		t.Error("text is no table")
	}
}

func TestReadEvents(t *testing.T) {
	stream := "retry: 2000\n: connected\n\nid: 1-a\nevent: x.y\ndata: {\"a\":1}\n\n:\n\nid: 2-b\ndata:{\"a\":2}\n\nid: 3-c\ndata: cut off"
	var last string
	var got []string
	err := readEvents(strings.NewReader(stream), &last, func(data string) error { got = append(got, data); return nil })
	if err != nil || strings.Join(got, " ") != `{"a":1} {"a":2}` || last != "2-b" {
		t.Errorf("%v, last %s, %v", got, last, err)
	}
}

func TestTellStory(t *testing.T) {
	raw := `{"verdict":"It waits.","automations":[{"index_id":"idx_1","matches":false,"reason":"too short"}],
		"steps":[{"at":"2026-03-01T10:00:00.000Z","step":"arrival","text":"It arrived."}],"storage_error":"gone","notifications_searched_since":"2026-03-01T10:00:00.000Z"}`
	var b strings.Builder
	if err := tellStory(&b, json.RawMessage(raw)); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"It waits.", "idx_1 does not want it: too short", "arrival", "It arrived.", "could not be asked: gone", "were not looked at"} {
		if !strings.Contains(b.String(), part) {
			t.Errorf("nothing of %q in\n%s", part, b.String())
		}
	}
}

func TestReadAutomation(t *testing.T) {
	dir := t.TempDir()
	write := func(content string) string {
		name := filepath.Join(dir, "a")
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	for _, content := range []string{
		"index_id: idx_1\nconnector_id: c\nprompt_preset: {prompt_id: p}\n",
		`{"index_id": "idx_1", "connector_id": "c", "prompt_preset": {"prompt_id": "p"}}`,
	} {
		config, index, err := readAutomation(write(content))
		if err != nil || index != "idx_1" || config["connector_id"] != "c" || config["index_id"] != nil {
			t.Errorf("%v %s %v", config, index, err)
		}
		if _, err := json.Marshal(config); err != nil {
			t.Error(err)
		}
	}
	for content, word := range map[string]string{"connector_id: c": "index_id is missing", "a: [": "neither YAML nor JSON"} {
		if _, _, err := readAutomation(write(content)); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %v", content, err)
		}
	}
}

// Every command line that a person would type is understood.
func TestCommandLines(t *testing.T) {
	for _, line := range []string{
		"automation ls", "automation get idx_1", "automation apply a.yaml", "automation apply -f a.yaml", "automation pause idx_1", "automation resume idx_1",
		"automation flush idx_1 -o json", "automation extend idx_1 --by 10m", "automation extend idx_1 --until 2026-03-01T10:00:00Z", "automation drop idx_1 -o wide",
		"automation plan idx_1 --limit 10 -o wide",
		"connector create s3 b --region eu --access-key-id A --secret-access-key K --endpoint-url http://127.0.0.1:9000 --path-style",
		"connector create s3 b --access-key-id A --secret-access-key K --endpoint-url http://127.0.0.1:9000", "connector create azure c --account a --sas-token sig=x",
		"connector create azure c --account a --tenant-id t --client-id i --client-secret s", "connector create azure c --account a --account-key k --endpoint-url http://127.0.0.1:10000/a", "connector create gcs b --project p --credentials output.go",
		"connector get conn_1", "index ls", "index create Cameras", "index get idx_1", "index media idx_1 --limit 0", "index rm idx_1",
		"prompt ls", "prompt create Describe --text @ask.txt --schema @schema.json", "prompt get prm_1", "prompt rm prm_1",
		"run ls --index idx_1", "run create --prompt p --index idx_1", "run create --prompt p --video v1 --video v2", "run create --job job_1",
		"run get run_1", "run cancel run_1", "run results run_1", "run results run_1 vid_1", "run failed run_1",
		"export create --run run_1 --format csv --to conn_1 --subpath a", "export ls --type import_job", "export get exp_1", "export download exp_1 -f out.csv",
		"webhook ls", "webhook create https://h.example/x --event import_job.completed,export.ready --index idx_1", "webhook get wh_1", "webhook test wh_1",
		"webhook pause wh_1", "webhook resume wh_1", "webhook rotate wh_1", "webhook rm wh_1", "webhook events", "webhook deliveries wh_1 --status failed", "webhook retry dlv_1",
		"key create k --scope write --expires 90d -o json", "key ls -o wide", "key revoke key_1", "job create --connector c --index i -o json", "job get job_1 -o wide",
		"completion zsh", "complete -- job ls --st",
		"connector ls", "connector create dir /srv/drop --name Drop --scopes import,export", "connector test conn_1", "connector browse conn_1 --prefix a/ --pattern *.mp4", "connector rm conn_1",
		"job ls --status failed --automation", "job retry job_1", "job retry job_1 --path a.mp4 --watch", "job files job_1 --state failed -o json",
		"explain conn_1 a/b.mp4", "dead ls --limit 0", "dead replay dead_1", "dead rm dead_1", "events -f --type import_job.*,media.created",
	} {
		parser, err := kong.New(&CLI{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parser.Parse(strings.Fields(line)); err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
	for _, line := range []string{
		"automation extend idx_1", "job files", "connector ls -o xml", "explain conn_1", "run create --prompt p", "export create --run r --job j",
		"webhook create https://h.example/x", "prompt create x", "completion tcsh",
	} {
		parser, err := kong.New(&CLI{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parser.Parse(strings.Fields(line)); err == nil {
			t.Errorf("%s: understood", line)
		}
	}
}

// A stream that broke off goes on behind its last event, also when the server is away at first.
func TestFollowEvents(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32 // one connection after the other, but each in a goroutine of its own
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch asked.Add(1) {
		case 1:
			fmt.Fprint(w, "id: 1-a\ndata: one\n\n")
		case 2:
			panic(http.ErrAbortHandler)
		case 3:
			fmt.Fprintf(w, "id: 2-b\ndata: behind %s of %s\n\n", r.Header.Get("Last-Event-ID"), r.URL.Query().Get("type"))
		default:
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer s.Close()
	var got []string
	c := eventsCommand{Type: []string{"x.y", "z.*"}}
	c.URL = s.URL
	err := c.follow(t.Context(), func(data string) error { got = append(got, data); return nil })
	var refused *client.Problem
	if !errors.As(err, &refused) || refused.Status != http.StatusUnauthorized || strings.Join(got, ", ") != "one, behind 1-a of x.y,z.*" {
		t.Errorf("%v, %v", got, err)
	}
	s.Close()
	if err := c.follow(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("a server that was never there: %v", err)
	}
}

// A shell is told the commands, flags and values that may come next.
func TestComplete(t *testing.T) {
	parser, err := kong.New(&CLI{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ line, want, not string }{
		{"", "webhook,automation,up,completion", "complete"},
		{"web", "webhook,webhooks", "worker"},
		{"automation ", "apply,plan,flush", "up"},
		{"automation p", "pause,plan", "apply"},
		{"connector create ", "dir,gcs,s3,azure", "ls"},
		{"job ls --", "--status,--output,--api-key", "--path"},
		{"job ls -o ", "json,table,wide", "create"},
		{"job ls --output=w", "--output=wide", "--output=json"},
		{"job ls --status --limit --au", "--automation", "--url"}, // --limit is the value of --status
		{"job ls --automation --st", "--status", "--limit"},
		{"completion ", "bash,fish,zsh", "-"},
		{"export create --format c", "csv", "json"},
		{"job files job_1 ", "", "queued"},
	} {
		var b strings.Builder
		if err := complete(&b, parser.Model.Node, strings.Split(c.line, " ")); err != nil {
			t.Fatal(err)
		}
		var got []string
		for line := range strings.Lines(b.String()) {
			word, _, _ := strings.Cut(line, "\t")
			got = append(got, word)
		}
		for want := range strings.SplitSeq(c.want, ",") {
			if want != "" && !slices.Contains(got, want) || slices.Contains(got, c.not) {
				t.Errorf("%q: %v, want %s and not %s", c.line, got, c.want, c.not)
			}
		}
	}
	for shell, script := range completionScripts {
		if !strings.Contains(script, "millrace complete -- ") {
			t.Errorf("the script for %s asks nobody", shell)
		}
	}
}
