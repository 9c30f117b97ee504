//go:build vm

package vmtest

import (
	"context"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"ubcache/docs"
)

// exampleFails is what examples that are to fail say, in the comment behind them.
var exampleFails = regexp.MustCompile(`# fails: (.*)$`)

// TestAttributeExamples pastes every command of the manual's page on attributes, in order, on a machine
// as the page has it in mind: a cached device data that is mounted on /srv.
func TestAttributeExamples(t *testing.T) {
	OnlyFull(t)
	NeedKernel(t, "7.1")
	Limit(t, 8*time.Minute)
	examplesMachine(t)
	ran := 0
	for line := range strings.Lines(docs.Attributes) {
		command, ok := strings.CutPrefix(line, "    ")
		if !ok {
			continue
		}
		command = strings.TrimSpace(command)
		ran++
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", command)
		cmd.Dir = "/mnt"
		out, err := cmd.CombinedOutput()
		cancel()
		t.Logf("$ %s\n%s", command, out)
		want := exampleFails.FindStringSubmatch(command)
		switch {
		case want == nil && err != nil:
			t.Errorf("%s: %v", command, err)
		case want != nil && (err == nil || !strings.Contains(string(out), want[1])):
			t.Errorf("%s: %v, want %s", command, err, want[1])
		case strings.Contains(string(out), "not handled"):
			t.Errorf("%s: nobody handled something", command)
		}
	}
	if ran < 30 {
		t.Errorf("only %d examples were found", ran)
	}
}

// examplesMachine makes what the examples have: devices, mounts, files, a cgroup.
func examplesMachine(t *testing.T) {
	t.Helper()
	other := Slice(t, "slow", 512, 64) // before the cache, which has it to the end
	c := NewCache(t, Slice(t, "ssd", 0, 512))
	dev := c.Attach(t, Slice(t, "slow", 0, 256), "data", writeback...)
	kernelSource(t, c)
	Run(t, "mkfs.ext4", "-q", "-F", dev)
	Sh(t, "mkdir -p /srv && mount "+dev+" /srv && mkdir /srv/db")
	t.Cleanup(func() { Run(t, "umount", "/srv") })
	t.Chdir("/mnt")
	job := "[nightly]\nfilename=/srv/nightly\nsize=4M\nrw=write\nbs=64k\ndirect=1\n"
	for name, text := range map[string]string{
		"page.bin": strings.Repeat("precious", 512), "nightly.fio": job,
	} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	Sh(t, `cp page.bin /srv/page; dd if=/dev/urandom of=/srv/db/table bs=1M count=4 status=none; sync -f /srv
		mkdir -p /dev/disk/by-id /sys/fs/cgroup
		mountpoint -q /sys/fs/cgroup || mount -t cgroup2 none /sys/fs/cgroup
		mkdir -p /sys/fs/cgroup/batch.slice`)
	if err := os.Symlink(other, "/dev/disk/by-id/ata-OTHER"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove("/dev/disk/by-id/ata-OTHER") })
}
