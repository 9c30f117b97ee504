package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const sample = `# kept
#
# kept too

[cache.main]
uuid = "u1"
device = "/dev/ssd"
discard = true
max-io = "512K"

[cache.main.backing.data]
uuid = "u2"
device = "/dev/disk/by-id/ata-x"
ublk-id = 3
mode = "writeback"
sequential-cutoff = "4M"
dirty-target = 10
dirty-max = 70
writeback-delay = "1m30s"
`

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ubcache.toml")
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRoundTrip(t *testing.T) {
	path := write(t, sample)
	if err := Edit(path, func(*File) error { return nil }); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != sample {
		t.Errorf("rewritten without a change:\n%s", got)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("permissions are %v (%v)", info.Mode(), err)
	}
}

func TestLoad(t *testing.T) {
	f, err := Load(write(t, sample))
	if err != nil {
		t.Fatal(err)
	}
	c := f.Caches["main"]
	b := c.Backings["data"]
	if c.MaxIO != 512<<10 || b.SequentialCutoff != 4<<20 || b.UblkID != 3 ||
		time.Duration(b.WritebackDelay) != 90*time.Second {
		t.Errorf("read %+v, %+v", c, b)
	}
	if name, ok := f.FindBacking("data"); !ok || name != "main" {
		t.Errorf("data is in %q", name)
	}
	if id := f.FreeUblkID(func(n int) bool { return n < 3 }); id != 4 {
		t.Errorf("free number %d, want 4", id)
	}
	empty, err := Load(filepath.Join(t.TempDir(), "none"))
	if err != nil || len(empty.Caches) != 0 {
		t.Errorf("a file that does not exist: %v, %v", empty, err)
	}
}

func TestErrors(t *testing.T) {
	for _, c := range []struct{ name, old, new, want string }{
		{"syntax", `mode = "writeback"`, `mode = `, "line 15"},
		{"unknown key", `ublk-id = 3`, `ublk-nr = 3`, `unknown key "cache.main.backing.data.ublk-nr"`},
		{"no device", `device = "/dev/ssd"`, ``, "cache main needs uuid and device"},
		{"bad name", `[cache.main.backing.data]`, `[cache.main.backing."a/b"]`, `name "a/b"`},
		{"bad size", `"512K"`, `"much"`, "is not a size"},
		{"bad copy", `discard = true`, `copy = "magic"`, "none of auto, copy, zero-copy"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := strings.Replace(sample, c.old, c.new, 1)
			if text == sample {
				t.Fatal("nothing replaced")
			}
			_, err := Load(write(t, text))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
		})
	}
	twice := sample + strings.Replace(sample[strings.Index(sample, "[cache.main]"):], "main", "b", 2)
	if _, err := Load(write(t, twice)); err == nil || !strings.Contains(err.Error(), "is in cache") {
		t.Errorf("a backing device in two caches: %v", err)
	}
}

func TestEditFails(t *testing.T) {
	path := write(t, sample)
	want := errors.New("no")
	err := Edit(path, func(f *File) error {
		f.Caches["main"].Device = "/dev/other"
		return want
	})
	if !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
	err = Edit(path, func(f *File) error {
		f.Caches["main"].UUID = ""
		return nil
	})
	if err == nil {
		t.Error("a file that contradicts itself was written")
	}
	if got, _ := os.ReadFile(path); string(got) != sample {
		t.Errorf("changed by an edit that failed:\n%s", got)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".ubcache-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestEditTogether makes sure that no edit of several at a time is lost.
func TestEditTogether(t *testing.T) {
	path := write(t, sample)
	var wg sync.WaitGroup
	const n = 20
	for i := range n {
		wg.Go(func() {
			err := Edit(path, func(f *File) error {
				f.Caches[fmt.Sprintf("c%d", i)] = &Cache{UUID: "u", Device: "/dev/x"}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	f, err := Load(path)
	if err != nil || len(f.Caches) != n+1 {
		t.Errorf("%d caches after %d edits, %v", len(f.Caches), n, err)
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{
		"0": 0, "512": 512, "4K": 4096, "4k": 4096, "1.5G": 3 << 29, "2MiB": 2 << 20, "3 TB": 3 << 40,
	} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%q is %d (%v), want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "K", "-1", "1X", "99999999999G", "1e400", "NaN"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%q is %d", text, got)
		}
	}
}

func FuzzSize(f *testing.F) {
	f.Add("4M")
	f.Add("1.5G")
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseSize(s)
		if err != nil {
			return
		}
		if back, err := ParseSize(n.String()); err != nil || back != n {
			t.Errorf("%q is %d, written as %s, which is %d (%v)", s, n, n, back, err)
		}
	})
}

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 30 * time.Second: "30s", time.Minute: "1m", time.Hour: "1h", 90 * time.Second: "1m30s",
		time.Hour + time.Second: "1h0m1s", 10 * time.Minute: "10m", 1500 * time.Millisecond: "1.5s",
	} {
		b, err := Duration(d).MarshalText()
		var back Duration
		if err != nil || string(b) != want || back.UnmarshalText(b) != nil || time.Duration(back) != d {
			t.Errorf("%s is written %s and read %s (%v)", d, b, time.Duration(back), err)
		}
	}
}
