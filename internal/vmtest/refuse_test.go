//go:build vm

package vmtest

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// refused is the exit status of what would do harm.
const refused = 3

// TestRefusals asks for everything that would do harm. Each is refused with one line, and neither
// the devices nor the configuration are changed by it.
func TestRefusals(t *testing.T) {
	for name, test := range map[string]func(*testing.T){
		"mounted": refuseMounted, "holder": refuseHolder, "content": refuseContent,
		"running": refuseRunning, "identity": refuseIdentity, "newer": refuseNewer,
		"not running": refuseNotRunning, "open": refuseOpen,
	} {
		t.Run(name, func(t *testing.T) {
			Limit(t, 2*time.Minute)
			test(t)
		})
	}
}

// unchanged runs refuse and fails the test if that changed the configuration or the head or tail
// of a device.
func unchanged(t *testing.T, devs []string, refuse func()) {
	t.Helper()
	before := headsAndTails(t, devs)
	refuse()
	for i, part := range headsAndTails(t, devs) {
		if !bytes.Equal(part, before[i]) {
			t.Errorf("a refused command changed part %d of %v", i, devs)
		}
	}
}

const endBytes = 2 << 20

func headsAndTails(t *testing.T, devs []string) (parts [][]byte) {
	t.Helper()
	conf, err := os.ReadFile(configPath)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	parts = append(parts, conf)
	for _, dev := range devs {
		f, err := os.Open(dev)
		if err != nil {
			t.Fatal(err)
		}
		for _, off := range []int64{0, SizeBytes(t, dev) - endBytes} {
			p := make([]byte, endBytes)
			if _, err := f.ReadAt(p, off); err != nil {
				t.Fatal(err)
			}
			parts = append(parts, p)
		}
		_ = f.Close()
	}
	return parts
}

func refuseMounted(t *testing.T) {
	dev, ssd := Slice(t, "slow", 0, 128), Slice(t, "ssd", 0, 128)
	c := NewCache(t, ssd)
	fileSystems[0].Create(t, dev)
	mounted(t, dev, func(dir string) {
		Run(t, "mount", "-o", "remount,ro", dir) // ext4 goes on initializing a new filesystem by itself
		unchanged(t, []string{dev}, func() {
			Refused(t, refused, "is mounted on "+dir, "format", dev, "--force", "--name=other")
			Refused(t, refused, "is mounted on "+dir, "attach", dev, "--name=data")
		})
	})
	path := c.Attach(t, dev, "data")
	mounted(t, path, func(dir string) {
		Refused(t, refused, "is mounted on "+dir, "stop")
		Refused(t, refused, "is mounted on "+dir, "detach", "data")
		// It goes on working: what was refused has not even begun.
		if err := os.WriteFile(dir+"/file", []byte("text"), 0o644); err != nil {
			t.Error(err)
		}
		Run(t, "sync", dir)
	})
	Ubcache(t, "detach", "data", "--cancel")
}

func refuseHolder(t *testing.T) {
	dev, ssd := Slice(t, "slow", 0, 128), Slice(t, "ssd", 0, 128)
	c := NewCache(t, ssd)
	path := c.Attach(t, dev, "data")
	Mapper(t, "holder", fmt.Sprintf("0 %d linear %s 0", SizeBytes(t, path)/512, path))
	Refused(t, refused, "in use by", "stop")
	other := Slice(t, "slow", 256, 128)
	Mapper(t, "held", fmt.Sprintf("0 1000 linear %s 0", other))
	unchanged(t, []string{other}, func() {
		Refused(t, refused, "in use by", "attach", other, "--name=other")
		Refused(t, refused, "in use by", "format", other, "--force", "--name=other")
	})
}

func refuseContent(t *testing.T) {
	ssd, other := Slice(t, "ssd", 0, 128), Slice(t, "ssd", 256, 128)
	for _, fs := range fileSystems[:2] {
		if fs.name == "xfs" {
			other = Slice(t, "ssd", 512, 320) // it does not make smaller ones
		}
		fs.Create(t, other)
		unchanged(t, []string{other}, func() {
			Refused(t, refused, fs.name+" filesystem", "format", other)
		})
		fs.Verify(t, other)
	}
	c := NewCache(t, ssd)
	c.Stop(t)
	unchanged(t, []string{ssd}, func() {
		Refused(t, refused, "cache", "format", ssd, "--name=other")
	})
	c.Start(t)
	// The SSD of a cache is no backing device either, and no header may hide a filesystem.
	fresh := Slice(t, "ssd", 1024, 128)
	Ubcache(t, "format", fresh, "--name=second")
	unchanged(t, []string{fresh, other}, func() {
		Refused(t, refused, "cache", "attach", fresh, "--cache=main", "--name=data")
		Refused(t, refused, "xfs filesystem", "attach", other, "--cache=main", "--name=data", "--header")
	})
	Sh(t, "sed -i '/cache.second/,$d' "+configPath)
}

func refuseRunning(t *testing.T) {
	c := NewCache(t, Slice(t, "ssd", 0, 128))
	pid := c.Status(t).PID
	Refused(t, refused, "already running", "start")
	Refused(t, refused, "", "check", c.SSD)
	Refused(t, refused, "", "format", c.SSD, "--force")
	if now := c.Status(t).PID; now != pid {
		t.Errorf("process %d runs instead of %d", now, pid)
	}
}

func refuseIdentity(t *testing.T) {
	c := NewCache(t, Slice(t, "ssd", 0, 128))
	c.Attach(t, Slice(t, "slow", 0, 128), "data", "--mode=writeback")
	c.Stop(t)
	right := strings.TrimSpace(Sh(t, "cat "+configPath))
	small := Slice(t, "slow", 256, 64)
	name := strings.Split(strings.Split(right, "[cache.main.backing.data]")[1], `device = "`)[1]
	name, _, _ = strings.Cut(name, `"`)
	wrong := strings.ReplaceAll(right, `"`+name+`"`, `"`+small+`"`)
	if err := os.WriteFile(configPath, []byte(wrong), 0o644); err != nil {
		t.Fatal(err)
	}
	unchanged(t, []string{c.SSD, small}, func() {
		Refused(t, refused, "instead of", "start")
	})
	if err := os.WriteFile(configPath, []byte(right+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	c.Start(t)
}

func refuseNewer(t *testing.T) {
	c := NewCache(t, Slice(t, "ssd", 0, 128))
	c.Stop(t)
	// The version is at byte 8 of both superblocks (cache/FORMAT.md).
	super := headsAndTails(t, []string{c.SSD})[1]
	patch := func(version byte) (found int) {
		f, err := os.OpenFile(c.SSD, os.O_WRONLY|os.O_SYNC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for off := 0; off < len(super); off += 4096 {
			if !bytes.HasPrefix(super[off:], []byte("UBCACHE\x01")) {
				continue
			}
			found++
			if _, err := f.WriteAt([]byte{version}, int64(off)+8); err != nil {
				t.Fatal(err)
			}
		}
		return found
	}
	old := super[bytes.Index(super, []byte("UBCACHE\x01"))+8]
	if patch(99) == 0 {
		t.Fatal("no superblock found")
	}
	unchanged(t, []string{c.SSD}, func() {
		Refused(t, refused, "newer", "start")
		Refused(t, refused, "", "format", c.SSD, "--name=other")
	})
	patch(old)
	c.Start(t)
}

func refuseNotRunning(t *testing.T) {
	c := NewCache(t, Slice(t, "ssd", 0, 128))
	c.Stop(t)
	const notRunning = 4
	for _, args := range [][]string{{"stats"}, {"status", "main"}, {"attach", Slice(t, "slow", 0, 64)}} {
		_, err := Try(t, "ubcache", args...)
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("exit status %d", notRunning)) {
			t.Errorf("ubcache %s: %v, expected exit status %d", strings.Join(args, " "), err, notRunning)
		}
	}
	Refused(t, 2, "", "set", "data")
	Refused(t, 2, "", "nonsense")
	c.Start(t)
}

// refuseOpen has a program that keeps the device open, without a mount or a holder.
func refuseOpen(t *testing.T) {
	c := NewCache(t, Slice(t, "ssd", 0, 128))
	path := c.Attach(t, Slice(t, "slow", 0, 128), "data")
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	Refused(t, refused, path+" is open", "stop")
	if _, err := f.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Errorf("read after a refused stop: %v", err)
	}
}
