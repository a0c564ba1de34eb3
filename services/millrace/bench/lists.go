package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"millrace/services/scanner"
	"millrace/shared/bucket"
	"millrace/shared/bucket/gcs"
	"millrace/shared/bucket/s3"
	"millrace/shared/match"
	"millrace/shared/store"
)

// bucketName is the bucket that is listed.
const bucketName = "rushes"

// storages are what is listed, each served by this process.
var storages = []largeStorage{
	{
		"Google's API", "gcs", func(n int) http.Handler { return generator{n} },
		func(endpoint string) string {
			return fmt.Sprintf(`:gcs,anonymous=true,endpoint="%s/storage/v1/":%s`, endpoint, bucketName)
		},
		func(ctx context.Context, endpoint string) (bucket.Source, error) {
			return gcs.NewSource(ctx, gcs.Config{Bucket: bucketName, Endpoint: endpoint})
		},
	},
	{
		"S3's API", "s3", func(n int) http.Handler { return s3Generator{generator{n}} },
		func(endpoint string) string {
			return fmt.Sprintf(`:s3,provider=Other,list_version=2,force_path_style=true,access_key_id=%s,secret_access_key=%s,region=%s,endpoint=%q:%s`,
				s3ID, s3Secret, gatewayRegion, endpoint, bucketName)
		},
		func(ctx context.Context, endpoint string) (bucket.Source, error) {
			return s3.NewSource(ctx, s3.Config{Bucket: bucketName, Endpoint: endpoint, AccessKeyID: s3ID, SecretAccessKey: s3Secret})
		},
	},
}

type largeStorage struct {
	name, kind string
	serve      func(objects int) (handler http.Handler)
	rclone     func(endpoint string) (remote string)
	source     func(ctx context.Context, endpoint string) (bucket.Source, error)
}

// WriteNames lists the bucket at an address, the kind of its API and where that is, as a scan does.
func WriteNames(ctx context.Context, address string, w io.Writer) error {
	kind, endpoint, _ := strings.Cut(address, "+")
	i := slices.IndexFunc(storages, func(s largeStorage) bool { return s.kind == kind })
	if i < 0 {
		return fmt.Errorf("%q is no address of a bucket", address)
	}
	src, err := storages[i].source(ctx, endpoint)
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
			rate, peak, err = l.lines(ctx, n, l.program, "bench", "--names", s.kind+"+"+endpoint)
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

// page calls item for each object, and folder for what stands for those below it, of a page from number i on. It returns
// where the next begins, which is g.objects when there is none.
func (g generator) page(i int, prefix, delimiter, most string, item func(name []byte, i int), folder func(string)) (next int) {
	page := 1000
	if n, err := strconv.Atoi(most); err == nil && n > 0 && n < page {
		page = n
	}
	var name []byte
	for n := 0; i < g.objects && n < page; n++ {
		name = g.appendPath(name[:0], i)
		rest, ok := strings.CutPrefix(string(name), prefix)
		if !ok {
			return g.objects
		}
		if below, _, is := strings.Cut(rest, "/"); is && delimiter == "/" {
			folder(prefix + below + "/")
			i = g.at(prefix + below + "0") // "0" comes behind "/"
			continue
		}
		item(name, i)
		i++
	}
	return i
}

func (g generator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != listPath {
		http.NotFound(w, r)
		return
	}
	q := r.URL.Query()
	prefix := q.Get("prefix")
	i := g.at(max(prefix, q.Get("startOffset")))
	if t := q.Get("pageToken"); t != "" {
		i, _ = strconv.Atoi(t)
	}
	few := strings.Contains(q.Get("fields"), "items")
	var items, prefixes []byte
	i = g.page(i, prefix, q.Get("delimiter"), q.Get("maxResults"),
		func(name []byte, i int) { items = g.appendItem(items, name, i, few) },
		func(folder string) { prefixes = fmt.Appendf(prefixes, `%q,`, folder) })
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

// s3Generator is the listing of S3's API, in its second version, over the same bucket.
type s3Generator struct{ generator }

func (g s3Generator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	w.Header().Set("Content-Type", "application/xml")
	out := []byte(xml.Header)
	switch {
	case strings.Trim(r.URL.Path, "/") != bucketName:
		http.NotFound(w, r)
		return
	case q.Has("versioning"):
		_, _ = w.Write(append(out, `<VersioningConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"/>`...))
		return
	}
	prefix := q.Get("prefix")
	i := g.at(prefix)
	if after := q.Get("start-after"); after >= prefix && after != "" {
		i = g.at(after + "\x00")
	}
	if t := q.Get("continuation-token"); t != "" {
		i, _ = strconv.Atoi(t)
	}
	spell := func(s string) string { return s }
	if q.Get("encoding-type") == "url" {
		spell = url.QueryEscape
	}
	var body []byte
	n := 0
	i = g.page(i, prefix, q.Get("delimiter"), q.Get("max-keys"),
		func(name []byte, i int) {
			n++
			body = fmt.Appendf(body, `<Contents><Key>%s</Key><LastModified>2026-03-01T12:00:00.000Z</LastModified><ETag>&quot;%032x&quot;</ETag><Size>%d</Size><StorageClass>STANDARD</StorageClass></Contents>`,
				spell(string(name)), i, 1<<20+i)
		},
		func(folder string) {
			n++
			body = fmt.Appendf(body, `<CommonPrefixes><Prefix>%s</Prefix></CommonPrefixes>`, spell(folder))
		})
	out = fmt.Appendf(out, `<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>%s</Name><Prefix>%s</Prefix><KeyCount>%d</KeyCount><MaxKeys>1000</MaxKeys>`,
		bucketName, spell(prefix), n)
	if q.Get("encoding-type") == "url" {
		out = append(out, `<EncodingType>url</EncodingType>`...)
	}
	if i < g.objects {
		out = fmt.Appendf(out, `<IsTruncated>true</IsTruncated><NextContinuationToken>%d</NextContinuationToken>`, i)
	} else {
		out = append(out, `<IsTruncated>false</IsTruncated>`...)
	}
	_, _ = w.Write(append(append(out, body...), `</ListBucketResult>`...))
}
