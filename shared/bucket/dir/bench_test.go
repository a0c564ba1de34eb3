package dir

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sync/errgroup"

	"millrace/shared/bucket"
)

// The yardsticks are what a person would type: cp for one big file after the other, cp by 16 for many small ones, and
// rclone where it is installed. MILLRACE_BENCH_DIR names a folder on the disk to measure; the default is the test's own.
// A virtual machine is slow to hand out memory for the first time, and whoever comes first pays: use -count.

func benchDir(b *testing.B) string {
	if dir := os.Getenv("MILLRACE_BENCH_DIR"); dir != "" {
		dir, err := os.MkdirTemp(dir, "bench")
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { os.RemoveAll(dir) })
		return dir
	}
	return b.TempDir()
}

func fixture(b *testing.B, root string, files int, size int64) {
	buf := make([]byte, 1<<20)
	random := rand.NewChaCha8([32]byte{})
	for i := range files {
		path := filepath.Join(root, fmt.Sprintf("%02x", i%256), fmt.Sprintf("%06d.bin", i))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			b.Fatal(err)
		}
		f, err := os.Create(path)
		if err != nil {
			b.Fatal(err)
		}
		for left := size; left > 0; left -= min(left, int64(len(buf))) {
			random.Read(buf)
			if _, err := f.Write(buf[:min(left, int64(len(buf)))]); err != nil {
				b.Fatal(err)
			}
		}
		f.Close()
	}
	syncAll(b)
}

func syncAll(b *testing.B) {
	if out, err := exec.Command("sync").CombinedOutput(); err != nil {
		b.Fatalf("sync: %v: %s", err, out)
	}
}

func shell(b *testing.B, script string, args ...string) {
	cmd := exec.Command("sh", append([]string{"-c", script, "sh"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
}

func benchmarkCopy(b *testing.B, files int, size int64, workers int, yardstick string) {
	root := benchDir(b)
	from := filepath.Join(root, "from")
	fixture(b, from, files, size)
	src, err := NewSource(from)
	if err != nil {
		b.Fatal(err)
	}
	var objects []bucket.Object
	for obj, err := range src.List(b.Context(), bucket.ListOptions{}) {
		if err != nil {
			b.Fatal(err)
		}
		objects = append(objects, obj)
	}
	// Each run has a folder of its own: some file systems are slow to make what was only just removed.
	runs, to := 0, ""
	fresh := func() {
		b.StopTimer()
		runs++
		to = filepath.Join(root, fmt.Sprintf("to-%d", runs))
		syncAll(b)
		b.StartTimer()
	}
	run := func(name string, one func(ctx context.Context, lib *Library, key string, obj bucket.Object) error) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(files) * size)
			for b.Loop() {
				fresh()
				lib, err := NewLibrary(LibraryConfig{Path: to})
				if err != nil {
					b.Fatal(err)
				}
				group, ctx := errgroup.WithContext(b.Context())
				group.SetLimit(workers)
				for i, obj := range objects {
					group.Go(func() error { return one(ctx, lib, fmt.Sprintf("%02x/%032x", i%256, i), obj) })
				}
				if err := group.Wait(); err != nil {
					b.Fatal(err)
				}
				if err := lib.Sync(b.Context()); err != nil {
					b.Fatal(err)
				}
				lib.Close()
			}
		})
	}
	yardsticks := map[string]string{"cp": yardstick}
	if _, err := exec.LookPath("rclone"); err == nil {
		yardsticks["rclone"] = fmt.Sprintf(`rclone copy --transfers %d "$1" "$2" && sync`, workers)
	}
	for name, script := range yardsticks {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(files) * size)
			for b.Loop() {
				fresh()
				shell(b, script, from, to)
			}
		})
	}
	run("put", func(ctx context.Context, lib *Library, key string, obj bucket.Object) error {
		r, err := src.Open(ctx, obj.Path, obj.Version, 0, -1)
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = lib.Put(ctx, key, r, obj.Want())
		return err
	})
	if !sharesBlocks(b) {
		return
	}
	run("copy", func(ctx context.Context, lib *Library, key string, obj bucket.Object) error {
		_, err := lib.CopyFrom(ctx, key, src, obj, nil)
		return err
	})
}

func BenchmarkCopySmall(b *testing.B) {
	benchmarkCopy(b, 10_000, 64<<10, 16,
		`cd "$1" && mkdir "$2" && find . -type d | (cd "$2" && xargs mkdir -p) && find . -type f | xargs -P 16 -n 64 cp --parents -t "$2" && sync`)
}

func BenchmarkCopyLarge(b *testing.B) {
	benchmarkCopy(b, 4, 512<<20, 4, `cp -r "$1" "$2" && sync`)
}

// BenchmarkSync shows what a round costs by the number of files it is about, each way.
func BenchmarkSync(b *testing.B) {
	for _, n := range []int{1, 4, 16, 32, 64, 256} {
		for _, way := range []string{"each", "whole"} {
			b.Run(fmt.Sprintf("%s/%d", way, n), func(b *testing.B) {
				lib, err := NewLibrary(LibraryConfig{Path: benchDir(b)})
				if err != nil {
					b.Fatal(err)
				}
				defer lib.Close()
				body := make([]byte, 64<<10)
				for i := 0; b.Loop(); i++ {
					b.StopTimer()
					keys := map[string]bool{}
					for j := range n {
						key := fmt.Sprintf("%02x/%08x", (i*n+j)%256, i*n+j)
						if _, err := lib.Put(b.Context(), key, newRepeat(body), bucket.Want{Size: -1}); err != nil {
							b.Fatal(err)
						}
						keys[key] = true
					}
					b.StartTimer()
					if way == "whole" {
						err = syncWhole(lib.sync.dir)
					} else {
						_, err = lib.sync.syncEach(keys)
					}
					if err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func newRepeat(body []byte) io.Reader { return io.LimitReader(repeat(body), int64(len(body))) }

type repeat []byte

func (r repeat) Read(p []byte) (int, error) { return copy(p, r), nil }
