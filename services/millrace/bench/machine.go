package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"millrace/shared/media"
)

// machine is what the numbers depend on.
type machine struct {
	cpu    string
	cores  int
	memory int64 // bytes
	kernel string
	fs     string
	fsync  time.Duration // median of one small write
	probe  bool          // ffprobe is installed
}

// look looks at the machine and at the volume of dir. Figures about durability mean nothing on one in memory, so that is
// refused.
func look(dir string) (machine, error) {
	m := machine{cores: runtime.GOMAXPROCS(0), probe: media.FindFFprobe() != ""}
	var err error
	if m.cpu, m.memory, m.kernel, err = hardware(); err != nil {
		return m, fmt.Errorf("look at the machine: %w", err)
	}
	if m.fs, err = fileSystem(dir); err != nil {
		return m, fmt.Errorf("file system of %s: %w", dir, err)
	}
	if m.fs == "tmpfs" || m.fs == "ramfs" {
		return m, fmt.Errorf("%s is in memory (%s), where nothing has to reach a disk: name a folder on one with --dir", dir, m.fs)
	}
	m.fsync, err = fsyncTime(dir)
	return m, err
}

// fsyncs is how often fsync is timed.
const fsyncs = 100

// fsyncTime is the median time to append 4 KiB to a file and see it on disk.
func fsyncTime(dir string) (time.Duration, error) {
	f, err := os.CreateTemp(dir, "fsync-")
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close(); _ = os.Remove(filepath.Clean(f.Name())) }()
	times := make([]float64, fsyncs)
	for i := range times {
		start := time.Now()
		if _, err := f.Write(make([]byte, 4<<10)); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
		times[i] = float64(time.Since(start))
	}
	return time.Duration(median(times)), nil
}

func (m machine) lines() [][2]string {
	probe := "not installed"
	if m.probe {
		probe = "installed, and used where the Go parsers leave something open"
	}
	return [][2]string{
		{"CPU", fmt.Sprintf("%s, %d cores used", m.cpu, m.cores)},
		{"Memory", fmt.Sprintf("%.0f GiB", float64(m.memory)/(1<<30))},
		{"Kernel", m.kernel},
		{"File system", m.fs},
		{"fsync of 4 KiB, median", m.fsync.Round(10 * time.Microsecond).String()},
		{"Go, nats-server", runtime.Version() + ", " + server.VERSION},
		{"ffprobe", probe},
		{"Broker", "embedded, every acknowledged write on disk (the default)"},
	}
}

func (m machine) String() string {
	return fmt.Sprintf("%s, %d cores, %.0f GiB, %s, %s, fsync %s", m.cpu, m.cores, float64(m.memory)/(1<<30), m.kernel, m.fs,
		m.fsync.Round(10*time.Microsecond))
}
