//go:build vm

package vmtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestReadme follows the README's quick start to the letter: first in front of a disk that has data,
// and back, then in front of an empty one. What a reader has and the VM has not is a compiler, sudo,
// and the names that udev makes.
func TestReadme(t *testing.T) {
	Limit(t, 5*time.Minute)
	guide := quickStart(t)
	ssd, disk := Disk(t, "ssd"), Disk(t, "slow")
	part := Slice(t, "slow4k", 16, 1024)
	for name, dev := range map[string]string{
		"nvme-MYSSD": ssd, "ata-MYDISK": disk, "ata-MYDISK-part1": part,
	} {
		byID(t, name, dev)
	}
	nothing(t)
	t.Cleanup(func() { nothing(t) })
	const dir = "/srv"
	t.Cleanup(func() { _, _ = Try(t, "umount", dir) })
	Run(t, "mkfs.ext4", "-q", "-F", part)
	Run(t, "mount", part, dir)
	tree := MakeTree(t, dir, 60, 1)

	guide.follow(t, "make && sudo make install")
	guide.follow(t, "ubcache format")
	guide.follow(t, "ubcache attach /dev/disk/by-id/ata-MYDISK-part1")
	tree.Compare(t, "what was on the disk", ListTree(t, dir))
	guide.follow(t, "ubcache set")
	more := MakeTree(t, filepath.Join(dir, "more"), 60, 2)
	guide.follow(t, "ubcache detach")
	more.Compare(t, "what was written while it was cached", ListTree(t, filepath.Join(dir, "more")))
	Run(t, "umount", dir)
	Run(t, "e2fsck", "-fn", part)

	guide.follow(t, "ubcache attach /dev/disk/by-id/ata-MYDISK --name")
	MakeTree(t, dir, 20, 3)
	guide.follow(t, "ubcache set")
	Run(t, "umount", dir)
	Run(t, "ubcache", "detach", "data")
	Run(t, "ubcache", "stop")
	Run(t, "ubcache", "check", ssd)
	guide.done(t)
}

// guide is the blocks of commands of a text, each with whether it has been followed.
type guide map[string]bool

func quickStart(t *testing.T) guide {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text2, found := strings.Cut(string(text), "\n## Quick start\n")
	text2, _, end := strings.Cut(text2, "\n## ")
	if !found || !end {
		t.Fatal("the README has no section Quick start")
	}
	g := guide{}
	block := ""
	for line := range strings.Lines(text2) {
		if command, ok := strings.CutPrefix(line, "    "); ok {
			block += command
			continue
		}
		if block != "" {
			g[block] = false
		}
		block = ""
	}
	return g
}

// follow runs the block that has those words. Of it the VM leaves out what builds, and sudo.
func (g guide) follow(t *testing.T, words string) {
	t.Helper()
	for block := range g {
		if !strings.Contains(block, words) {
			continue
		}
		g[block] = true
		for line := range strings.Lines(block) {
			if strings.HasPrefix(line, "make ") {
				continue // it is there already
			}
			fmt.Printf("$ %s", line)
			fmt.Println(Run(t, "bash", "-c", strings.TrimPrefix(line, "sudo ")))
			if strings.Contains(line, "ubcache format") {
				setKernelAttributes(t, "off") // see there
			}
		}
		return
	}
	t.Fatalf("the quick start has no commands with %q", words)
}

// done fails the test if the README has commands that nobody followed.
func (g guide) done(t *testing.T) {
	t.Helper()
	for block, followed := range g {
		if !followed {
			t.Errorf("these commands were not tried:\n%s", block)
		}
	}
}

// byID is a name as udev makes them.
func byID(t *testing.T, name, dev string) {
	t.Helper()
	const dir = "/dev/disk/by-id"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, name)
	if err := os.Symlink(dev, link); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(link) })
}
