package bench

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"millrace/services/scanner"
	"millrace/shared/bucket"
	"millrace/shared/bucket/gcs"
	"millrace/shared/match"
	"millrace/shared/store"
)

// bucketName is the bucket that is listed.
const bucketName = "rushes"

// storages are what is listed, each served by this process.
var storages = []largeStorage{
	{
		"Google's API", func(n int) http.Handler { return generator{n} },
		func(endpoint string) string {
			return fmt.Sprintf(`:gcs,anonymous=true,endpoint="%s/storage/v1/":%s`, endpoint, bucketName)
		},
	},
}

type largeStorage struct {
	name   string
	serve  func(objects int) (handler http.Handler)
	rclone func(endpoint string) (remote string)
}

// WriteNames lists the bucket at an endpoint as a scan does.
func WriteNames(ctx context.Context, endpoint string, w io.Writer) error {
	src, err := gcs.NewSource(ctx, gcs.Config{Bucket: bucketName, Endpoint: endpoint})
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	out := bufio.NewWriter(w)
	if err := listAll(ctx, src, func(path string) { _, _ = out.WriteString(path); _ = out.WriteByte('\n') }); err != nil {
		return err
	}
	return out.Flush()
}

func listAll(ctx context.Context, src bucket.Source, see func(path string)) error {
	everything, err := match.Compile("", "*", true)
	if err != nil {
		return err
	}
	conn := store.Connector{ID: "con_bench", Provider: "gcs"}
	for o, err := range (scanner.Config{ListRate: 1e6}).List(ctx, src, conn, everything) {
		if err != nil {
			return err
		}
		see(o.Path)
	}
	return nil
}

// lists measures how fast names come out of a large bucket, each time in a process of its own.
func lists(ctx context.Context, l *lab) ([]Row, error) {
	rclone, err := findProgram("rclone", l.program)
	if err != nil {
		l.say("no rclone: %v", err)
	}
	var rows []Row
	for _, s := range storages {
		of, err := l.listed(ctx, s, rclone)
		if err != nil {
			return nil, err
		}
		rows = append(rows, of...)
	}
	return rows, nil
}

// listed measures one storage. rclone is where that is; "": nowhere.
func (l *lab) listed(ctx context.Context, s largeStorage, rclone string) ([]Row, error) {
	n := l.size.objects
	endpoint, stop, err := serve(ctx, s.serve(n))
	if err != nil {
		return nil, err
	}
	defer stop()
	row := Row{
		What:   digits(float64(n)) + " objects of " + s.name + " listed",
		Beside: "`rclone lsf`",
		Target: Target{Ratio: true, AtLeast: true, N: 1.5},
		How: fmt.Sprintf("A server in the bench's process makes the answers up as they are asked for: %s objects in folders of a thousand, with the fields that were asked for. A process that does nothing else lists them and writes a line for each; so does the yardstick, the faster of `rclone lsf -R --files-only` with `--fast-list` and with `--checkers 32`.",
			digits(float64(n))),
	}
	if rclone == "" {
		row.Skipped = "no rclone: make bin/rclone"
		return []Row{row}, nil
	}
	var peak, theirPeak float64
	remote := s.rclone(endpoint)
	flags, err := l.fastest(ctx, n, rclone, remote)
	if err != nil {
		return nil, err
	}
	p, err := l.alternate(
		func(int) (rate float64, err error) {
			rate, peak, err = l.lines(ctx, n, l.program, "bench", "--names", endpoint)
			return rate, err
		},
		func(int) (rate float64, err error) {
			rate, theirPeak, err = l.lines(ctx, n, rclone, append(flags, remote)...)
			return rate, err
		})
	if err != nil {
		return nil, err
	}
	p.into(&row, "/s")
	_, idle, err := l.lines(ctx, 0, l.program, "bench", "--list")
	if err != nil {
		return nil, err
	}
	return []Row{row, {
		What:      digits(float64(n)) + " objects of " + s.name + " listed: growth of resident memory",
		Measured:  Quantity{peak - idle, "MB"},
		Yardstick: Quantity{theirPeak, "MB"},
		Beside:    "the whole of `rclone lsf` (" + strings.Join(flags[5:], " ") + ")",
		Target:    Target{N: 64, Unit: "MB"},
		How:       "The highest resident memory of that process, over that of one that only prints the list of figures.",
	}}, nil
}

// fastest returns the flags with which rclone lists fastest.
func (l *lab) fastest(ctx context.Context, n int, rclone, remote string) (flags []string, err error) {
	best := 0.0
	for _, more := range [][]string{{"--fast-list"}, {"--checkers", "32"}} {
		args := append([]string{"lsf", "-R", "--files-only", "--config", ""}, more...)
		rate, _, err := l.lines(ctx, n, rclone, append(args, remote)...)
		if err != nil {
			return nil, err
		}
		l.say("rclone %s: %s /s", strings.Join(more, " "), digits(rate))
		if rate > best {
			best, flags = rate, args
		}
	}
	return flags, nil
}

// lines runs a program that is to write n lines, and returns how many it wrote per second and its peak memory in MB.
func (l *lab) lines(ctx context.Context, n int, program string, args ...string) (rate, peak float64, err error) {
	cmd := exec.CommandContext(ctx, program, args...)
	var count lineCounter
	var words bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.Dir = environ(), &count, &words, l.dir
	start := time.Now()
	if peak, err = watched(cmd); err != nil {
		return 0, 0, fmt.Errorf("%s: %w: %s", program, err, words.Bytes())
	}
	rate = perSecond(n, start)
	if n > 0 && int(count) != n {
		return 0, 0, fmt.Errorf("%s wrote %d lines, not %d", program, count, n)
	}
	return rate, peak, nil
}

// watched runs a program and returns the peak of its resident memory in MB.
func watched(cmd *exec.Cmd) (peak float64, err error) {
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	// What the kernel tells of a process that has ended counts what it was forked from.
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case <-look.C:
			if _, p, err := resident(cmd.Process.Pid); err == nil {
				peak = p
			}
		case err := <-ended:
			return peak, err
		}
	}
}

type lineCounter int

func (c *lineCounter) Write(p []byte) (int, error) {
	*c += lineCounter(bytes.Count(p, []byte{'\n'}))
	return len(p), nil
}

// serve answers on a port of this machine until stop is called.
func serve(ctx context.Context, h http.Handler) (endpoint string, stop func(), err error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	go func() { _ = s.Serve(ln) }()
	return "http://" + ln.Addr().String(), func() { _ = s.Close() }, nil
}

// generator is the listing of Google's API over a bucket that it makes up: the parts that fake-gcs-server has as well,
// and of the fields those that were asked for.
type generator struct{ objects int }

// generated is when its objects came to be, in microseconds: their generations.
const generated = 1_760_000_000_000_000

func (g generator) path(i int) string { return string(g.appendPath(nil, i)) }

// appendPath appends the name of an object: their order is that of their numbers.
func (generator) appendPath(to []byte, i int) []byte {
	return fmt.Appendf(to, "2026/day-%04d/clip-%07d.mp4", i/1000, i)
}

// at returns the first object whose name is not before path.
func (g generator) at(path string) int {
	low, high := 0, g.objects
	for low < high {
		if mid := (low + high) / 2; g.path(mid) < path {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low
}

var listPath = "/storage/v1/b/" + bucketName + "/o"

func (g generator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != listPath {
		http.NotFound(w, r)
		return
	}
	q := r.URL.Query()
	prefix, delimiter := q.Get("prefix"), q.Get("delimiter")
	i := g.at(max(prefix, q.Get("startOffset")))
	if t := q.Get("pageToken"); t != "" {
		i, _ = strconv.Atoi(t)
	}
	few := strings.Contains(q.Get("fields"), "items")
	page := 1000
	if n, err := strconv.Atoi(q.Get("maxResults")); err == nil && n > 0 && n < page {
		page = n
	}
	var items, prefixes []byte
	var name []byte
	n := 0
	for ; i < g.objects && n < page; n++ {
		name = g.appendPath(name[:0], i)
		rest, ok := strings.CutPrefix(string(name), prefix)
		if !ok {
			i = g.objects
			break
		}
		if folder, _, below := strings.Cut(rest, "/"); below && delimiter == "/" {
			prefixes = fmt.Appendf(prefixes, `%q,`, prefix+folder+"/")
			i = g.at(prefix + folder + "0") // "0" comes behind "/"
			continue
		}
		items = g.appendItem(items, name, i, few)
		i++
	}
	out := append([]byte(`{"kind":"storage#objects"`), list(`,"items":[`, items)...)
	out = append(out, list(`,"prefixes":[`, prefixes)...)
	if i < g.objects {
		out = fmt.Appendf(out, `,"nextPageToken":"%d"`, i)
	}
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	_, _ = w.Write(append(out, '}'))
}

func list(head string, elements []byte) []byte {
	if len(elements) == 0 {
		return nil
	}
	return append(append([]byte(head), elements[:len(elements)-1]...), ']')
}

// appendItem appends an object as Google describes it.
func (generator) appendItem(to, name []byte, i int, few bool) []byte {
	const created = "2026-03-01T12:00:00.000Z"
	generation := generated + i
	to = fmt.Appendf(to, `{"name":"%s","generation":"%d","size":"%d","contentType":"video/mp4","crc32c":"yZRlqg==","timeCreated":"`+created+`"`,
		name, generation, 1<<20+i)
	if !few {
		api := "https://www.googleapis.com/storage/v1/b/" + bucketName + "/o/"
		to = fmt.Appendf(to, `,"kind":"storage#object","id":"%s/%s/%d","selfLink":"%s%s","mediaLink":"%s%s?generation=%d&alt=media","bucket":"%s","metageneration":"1","storageClass":"STANDARD","md5Hash":"rL0Y20zC+Fzt72VPzMSk2A==","etag":"CL/Xq4nq9f8CEAE=","updated":"`+created+`","timeStorageClassUpdated":"`+created+`"`,
			bucketName, name, generation, api, name, api, name, generation, bucketName)
	}
	return append(to, "},"...)
}
