package millrace_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"
)

// TestPowerCut cuts the power twice amid an import. What a disk holds at a moment is the file behind a loop device,
// copied while the process stands still: what the file system has not yet written is not in it. Store and library lie
// on that disk. What was acknowledged is there afterwards, and in the end it is as if nothing had happened. (A disk that
// loses what it has accepted is not to be had this way.)
func TestPowerCut(t *testing.T) {
	t.Parallel()
	const files, cuts = 120, 2
	up := newUp(t, "--executor", "exec="+countBytes)
	disk := newDisk(t, filepath.Dir(up.data)) // over everything but the files that are dropped, which are their uploader's
	inbox := t.TempDir()
	up.args[slices.Index(up.args, "--allow-dir")+1] = inbox
	up.start()
	up.waitReady(up.url)
	p := wire(t, up.api, inbox)
	p.automate(p.index, "1s", nil)
	p.pause()
	rnd := rand.New(rand.NewPCG(rand.Uint64(), 0))
	for i := range files {
		p.drop(fmt.Sprintf("%03d.png", i), picture(t, rnd, i))
	}
	p.pending(files)
	p.resume()
	j := p.nthJob(1)

	acknowledged, done := 0, 0
	for n := range cuts {
		asked := make(chan int)
		go func() { // until the power is gone
			k := acknowledged
			for p.api.Do(t.Context(), http.MethodPost, "/indexes", obj{"name": fmt.Sprint("Acknowledged ", n, " ", k)}, nil) == nil {
				k++
			}
			asked <- k
		}()
		within(t, patience, "the import goes on", func() error {
			must(t, p.api.Get(t.Context(), "/import-jobs/"+j.ID, &j))
			if now := settled(j); now <= done && !j.Done() {
				return fmt.Errorf("%d settled", now)
			}
			return nil
		})
		done = settled(j)
		select { // any moment
		case <-time.After(time.Duration(rnd.IntN(200)) * time.Millisecond):
		case <-up.exited:
			t.Fatal(up.ended())
		}
		disk.cut(up)
		acknowledged = <-asked
		up.start()
		up.waitReady(up.url)
		must(t, p.api.Get(t.Context(), "/import-jobs/"+j.ID, &j))
		if now := settled(j); now < done {
			t.Errorf("cut %d took the progress back from %d to %d", n, done, now)
		}
		there := p.indexes()
		delete(there, "Main")
		if len(there) < acknowledged {
			t.Errorf("after cut %d %d of %d acknowledged indexes are there", n, len(there), acknowledged)
		}
		acknowledged = len(there) // one more may have been stored than was answered
	}
	t.Logf("%d of %d files were settled at the last of %d cuts, and %d requests acknowledged", done, files, cuts, acknowledged)

	j = p.follow(j.ID, 2*patience)
	media := p.media(p.index)
	if len(j.Videos) != files || len(media) != files {
		t.Errorf("%d files came in and %d media are there, want %d", len(j.Videos), len(media), files)
	}
	p.genuine(up.library, j.Videos)
	p.followRun(p.nthRun(1), j, 2*patience)
	p.nthJob(1)
	up.stop()
	nothingHalfDone(t, up.library, media)
}

// disk is a file system in a file.
type disk struct {
	t            *testing.T
	image, mount string
}

// newDisk makes one and mounts it over a folder. It skips the test where that is not possible.
func newDisk(t *testing.T, mount string) *disk {
	t.Helper()
	d := &disk{t: t, image: filepath.Join(t.TempDir(), "disk"), mount: mount}
	f, err := os.Create(d.image)
	must(t, err)
	must(t, f.Truncate(1<<30))
	must(t, f.Close())
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", d.image).CombinedOutput(); err != nil {
		t.Skipf("needs mkfs.ext4: %v %s", err, out)
	}
	if out, err := d.on(); err != nil {
		t.Skipf("needs root and loop devices: %v %s", err, out)
	}
	t.Cleanup(d.off)
	return d
}

func (d *disk) on() ([]byte, error) {
	return exec.Command("mount", "-o", "loop", d.image, d.mount).CombinedOutput()
}

func (d *disk) off() { _ = syscall.Unmount(d.mount, syscall.MNT_DETACH) }

// cut ends up, and has the disk as it was at that moment.
func (d *disk) cut(up *allInOne) {
	d.t.Helper()
	must(d.t, up.cmd.Process.Signal(syscall.SIGSTOP))
	then := d.image + "-then"
	out, err := exec.Command("cp", "--sparse=always", d.image, then).CombinedOutput()
	if err != nil {
		d.t.Fatalf("copy the disk: %v %s", err, out)
	}
	up.kill()
	d.off()
	must(d.t, os.Remove(d.image))
	d.image = then
	if out, err := d.on(); err != nil {
		d.t.Fatalf("mount the copy: %v %s", err, out)
	}
}
