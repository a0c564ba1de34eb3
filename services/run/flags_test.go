package run

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"
)

type testCLI struct {
	ConfigFile
	HTTP  string        `name:"http" default:"default:1"`
	Dirs  []string      `name:"dir"`
	Every time.Duration `default:"1h"`
	Key   string        `secret:"yes"`
	Names

	ran bool
}

func (c *testCLI) Run(context.Context) error { c.ran = true; return nil }

// Flags go before the environment, the environment before the file, the file before defaults.
func TestPrecedence(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte("http: file:1\ndir: ['/a,b', /c]\nevery: 5m\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	parse := func(args ...string) testCLI {
		t.Helper()
		var c testCLI
		if code := Parse(&c, "test", "", args); code != 0 || !c.ran {
			t.Fatalf("%v: exit code %d", args, code)
		}
		return c
	}
	if c := parse(); c.HTTP != "default:1" || c.Every != time.Hour {
		t.Errorf("defaults: %+v", c)
	}
	c := parse("--config", file)
	if c.HTTP != "file:1" || c.Every != 5*time.Minute || len(c.Dirs) != 2 || c.Dirs[0] != "/a,b" {
		t.Errorf("file: %+v", c)
	}
	t.Setenv("MILLRACE_HTTP", "env:1")
	if c := parse("--config", file); c.HTTP != "env:1" || c.Every != 5*time.Minute {
		t.Errorf("environment: %+v", c)
	}
	if c := parse("--config", file, "--http", "flag:1"); c.HTTP != "flag:1" {
		t.Errorf("flag: %+v", c)
	}
}

func TestBadConfiguration(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"unknown": "htp: x\n", "no-yaml": "{\n", "type": "every: soon\n"} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if code := Parse(&testCLI{}, "test", "", []string{"--config", file}); code != 2 {
			t.Errorf("%s: exit code %d", name, code)
		}
	}
	if code := Parse(&testCLI{}, "test", "", []string{"--config", filepath.Join(dir, "nothing")}); code != 2 {
		t.Error("a missing file is accepted")
	}
}

func TestPrintHidesSecrets(t *testing.T) {
	var b bytes.Buffer
	c := testCLI{HTTP: "h", Key: "sk_secret", Every: time.Minute}
	if err := Print(&b, &c); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), "sk_secret") {
		t.Errorf("shows the key: %s", b.String())
	}
	var back map[string]any
	if err := yaml.Unmarshal(b.Bytes(), &back); err != nil || back["http"] != "h" || back["every"] != "1m0s" || back["key"] != "[redacted]" {
		t.Errorf("%v, %v", back, err)
	}
}
