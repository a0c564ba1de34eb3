package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"millrace/shared/event"
)

const (
	maxOutput = 4 << 20 // bytes of a result
	maxTail   = 4 << 10 // bytes of standard error that are kept
	maxReason = 1 << 10 // bytes of the line that is reported

	// lastWords is how long the pipes of a command that has ended are read: processes it left behind may hold them.
	lastWords = 2 * time.Second
)

// Input is what a command reads on its standard input.
type Input struct {
	Run    string          `json:"run_id"`
	Job    string          `json:"job_id,omitempty"`
	Index  string          `json:"index_id,omitempty"`
	Prompt event.Prompt    `json:"prompt"`
	Preset json.RawMessage `json:"prompt_preset"`
	Medium InputMedium     `json:"medium"`
}

// InputMedium is the medium of an Input.
type InputMedium struct {
	event.RunMedium
	Path string `json:"path,omitempty"` // absolute, when it is a file here
}

// outcome is what a command came to.
type outcome struct {
	result  json.RawMessage // an object
	failure string          // why it failed, "" if it did not
}

// errTooMuch is why a command that prints too much is killed.
var errTooMuch = fmt.Errorf("printed more than %d bytes", maxOutput)

// exec runs the command for one medium. An error means that it could not be run or that ctx ended.
func (w *Worker) exec(ctx context.Context, req event.RunRequested, m event.RunMedium) (outcome, error) {
	if m.URI == "" {
		return outcome{failure: "it is not known where the medium is kept"}, nil
	}
	target := m.URI
	path, isFile := w.media.Path(m.URI)
	if isFile {
		target = path
	}
	if strings.ContainsRune(target, 0) {
		return outcome{failure: "its URI cannot be passed to a command"}, nil
	}
	stdin, err := json.Marshal(Input{
		Run: req.Run, Job: req.Job, Index: req.Index, Prompt: req.Prompt, Preset: req.Preset,
		Medium: InputMedium{RunMedium: m, Path: path},
	})
	if err != nil {
		return outcome{}, fmt.Errorf("encode input: %w", err)
	}

	bounded, cancel := context.WithTimeout(ctx, w.cfg.Timeout)
	defer cancel()
	running, stop := context.WithCancelCause(bounded)
	defer stop(nil)
	stdout := &capped{most: maxOutput, full: func() { stop(errTooMuch) }}
	stderr := new(tail)
	// The words behind the command are $0, $1: arguments, which the shell does not parse.
	cmd := exec.CommandContext(running, "sh", "-c", w.cfg.Command, "millrace", target)
	cmd.Env = environment(os.Environ(), req, m, path)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), stdout, stderr
	cmd.WaitDelay = lastWords
	ownGroup(cmd)
	if err := cmd.Start(); err != nil {
		return outcome{}, fmt.Errorf("start command: %w", err)
	}
	err = cmd.Wait()
	killGroup(cmd) // what it left behind in the background
	if said := strings.TrimSpace(strings.ToValidUTF8(string(stderr.bytes()), "\uFFFD")); said != "" {
		w.env.Log.Info(said, "video_id", m.Video, "run_id", req.Run) //nolint:sloglint // the command's own words
	}

	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return outcome{}, ctx.Err()
	case errors.Is(context.Cause(running), errTooMuch):
		return outcome{failure: errTooMuch.Error()}, nil
	case bounded.Err() != nil:
		return outcome{failure: fmt.Sprintf("timed out after %s", w.cfg.Timeout)}, nil
	case errors.As(err, &exit):
		return outcome{failure: reason(exit.Error(), stderr.bytes())}, nil
	case err != nil && !errors.Is(err, exec.ErrWaitDelay): // that one ended well, its background did not
		return outcome{}, fmt.Errorf("run command: %w", err)
	}
	return outcome{result: result(stdout.bytes())}, nil
}

// ownPrefix starts the variables a command gets from us. The worker's own settings begin the same, may be secret, and
// are none of its business.
const ownPrefix = "MILLRACE_"

func environment(base []string, req event.RunRequested, m event.RunMedium, path string) []string {
	var env []string
	for _, v := range base {
		if !strings.HasPrefix(v, ownPrefix) {
			env = append(env, v)
		}
	}
	for _, v := range [][2]string{
		{"RUN_ID", req.Run}, {"INDEX_ID", req.Index}, {"VIDEO_ID", m.Video}, {"TITLE", m.Title},
		{"MEDIA_TYPE", m.MediaType}, {"MEDIA_URI", m.URI}, {"MEDIA_PATH", path},
	} {
		// The system has no way to pass a NUL, and a name in object storage may have one.
		env = append(env, ownPrefix+v[0]+"="+strings.ReplaceAll(v[1], "\x00", "\uFFFD"))
	}
	return env
}

// result makes a JSON object of what a command printed.
func result(stdout []byte) json.RawMessage {
	out := bytes.TrimSpace(bytes.ToValidUTF8(stdout, []byte("\uFFFD")))
	if len(out) == 0 {
		return json.RawMessage("{}")
	}
	if out[0] == '{' && json.Valid(out) {
		return out
	}
	text, _ := json.Marshal(map[string]string{"text": string(out)}) // cannot fail
	return text
}

// reason is the last line a failed command wrote, behind how it ended.
func reason(status string, stderr []byte) string {
	text := strings.TrimSpace(strings.ToValidUTF8(string(stderr), "\uFFFD"))
	line := strings.TrimSpace(text[strings.LastIndexByte(text, '\n')+1:])
	if line == "" {
		return status
	}
	if len(line) > maxReason {
		line = strings.ToValidUTF8(line[:maxReason], "") + "…"
	}
	return status + ": " + line
}

// capped keeps what is written up to a limit, and tells when there is more.
type capped struct {
	most int
	full func()

	mu  sync.Mutex // a pipe can still be read for a moment after Wait
	buf []byte
}

func (c *capped) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.buf)+len(p) > c.most {
		c.full()
		return 0, errTooMuch
	}
	c.buf = append(c.buf, p...)
	return len(p), nil
}

func (c *capped) bytes() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf
}

// tail keeps the end of what is written.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p[max(0, len(p)-maxTail):]...)
	if over := len(t.buf) - maxTail; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tail) bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf
}
