package azuretest

import (
	"bufio"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The package of Azurite and of all it needs, each with its checksum.
//
//go:embed azurite
var manifest embed.FS

// accounts is how many storages one test program may start: each is an account of its own of the one Azurite.
const accounts = 400

// key is that of every account.
var key = base64.StdEncoding.EncodeToString([]byte("not a secret: tests alone know it"))

func account(n int64) string { return fmt.Sprintf("storage%03d", n) }

var taken atomic.Int64

// errMissing says why there is no Azurite to test with.
var errMissing = errors.New("no Azurite")

// lifeline is Azurite's standard input. It ends with this program, and Azurite with it.
var lifeline io.Closer //nolint:unused // it is held, not used: collected as garbage it would be closed

// running starts Azurite once per test program.
var running = sync.OnceValues(start)

// azurite returns the address of the emulator. Where it cannot be had the test is skipped, and says why; in CI it fails.
func azurite(t testing.TB) *url.URL {
	t.Helper()
	at, err := running()
	if errors.Is(err, errMissing) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// startTime is ample: a machine that runs all other tests meanwhile needs half a minute.
const startTime = 3 * time.Minute

func start() (*url.URL, error) {
	node, err := exec.LookPath("node")
	if err != nil {
		return nil, fmt.Errorf("%w: Node.js is not installed", errMissing)
	}
	dir, err := install()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(node, "start.js", "--blobPort", "0", "--inMemoryPersistence", "--skipApiVersionCheck",
		"--disableTelemetry", "--disableProductStyleUrl", "--silent")
	cmd.Dir = dir
	var names []string
	for n := range int64(accounts) {
		names = append(names, account(n)+":"+key)
	}
	cmd.Env = append(os.Environ(), "AZURITE_ACCOUNTS="+strings.Join(names, ";"))
	cmd.Stderr = os.Stderr
	if lifeline, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start Azurite: %w", err)
	}
	late := time.AfterFunc(startTime, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if _, at, ok := strings.Cut(lines.Text(), "successfully listens on "); ok {
			go func() { _, _ = io.Copy(io.Discard, out) }()
			return url.Parse(at)
		}
	}
	return nil, fmt.Errorf("start Azurite: it ended, or did not listen within %s: %w", startTime, cmd.Wait())
}

// install returns the folder with Azurite in it. The first time it takes a minute: npm brings the packages of the lock
// file into the user's cache, under a name that is a function of that file.
func install() (string, error) {
	lock, err := manifest.ReadFile("azurite/package-lock.json")
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(lock)
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	cache = filepath.Join(cache, "millrace-tests")
	dir := filepath.Join(cache, "azurite-"+hex.EncodeToString(sum[:8]))
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	unlock, err := exclusive(dir + ".lock") // other test programs want it as well
	if err != nil {
		return "", err
	}
	defer unlock()
	done := filepath.Join(dir, "installed")
	if _, err := os.Stat(done); err == nil {
		return dir, renew(dir)
	}
	npm, err := exec.LookPath("npm")
	if err != nil {
		return "", fmt.Errorf("%w: npm is not installed", errMissing)
	}
	if err := unpack(dir); err != nil {
		return "", err
	}
	cmd := exec.Command(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: npm ci: %w: %s", errMissing, err, out)
	}
	return dir, os.WriteFile(done, nil, 0o644)
}

// renew brings the script up to date. It belongs to us and not to the packages.
func renew(dir string) error {
	script, err := manifest.ReadFile("azurite/start.js")
	if err != nil {
		return err
	}
	fresh := filepath.Join(dir, "start.js.new")
	if err := os.WriteFile(fresh, script, 0o644); err != nil {
		return err
	}
	return os.Rename(fresh, filepath.Join(dir, "start.js"))
}

func unpack(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	files, err := fs.Sub(manifest, "azurite")
	if err != nil {
		return err
	}
	return os.CopyFS(dir, files)
}
