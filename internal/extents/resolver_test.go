package extents

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// observer has the updates of a resolver.
type observer struct {
	t       *testing.T
	r       *Resolver
	updates chan Update
	last    map[uint64]Update
}

func observe(t *testing.T) *observer {
	t.Helper()
	o := &observer{t: t, updates: make(chan Update, 1000), last: map[uint64]Update{}}
	var err error
	if o.r, err = NewResolver(func(u Update) { o.updates <- u }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.r.Close)
	o.tickEvery(time.Hour)
	return o
}

// tickEvery sets how often the resolver looks by itself. An observer begins with a period that no test sees
// the end of, so that what a test waits for is what the kernel has told of.
func (o *observer) tickEvery(period time.Duration) { o.r.do(func() { o.r.ticker.Reset(period) }) }

// until waits until the newest update of an id is as wished.
func (o *observer) until(id uint64, what string, limit time.Duration, wish func(u Update) bool) Update {
	o.t.Helper()
	timeout := time.After(limit)
	for {
		if u, ok := o.last[id]; ok && !u.Looking && wish(u) {
			return u
		}
		select {
		case u := <-o.updates:
			o.last[u.ID] = u
		case <-timeout:
			o.t.Fatalf("%s: not within %v; last %+v", what, limit, o.last[id])
		}
	}
}

// blocks wishes for a number of blocks.
func blocks(n int) func(Update) bool {
	return func(u Update) bool { return u.blocks() == n }
}

func (u Update) blocks() int {
	sum := int64(0)
	for _, r := range u.Ranges {
		sum += r.End - r.Off
	}
	return int(sum / 4096)
}

// soon is how fast a change must be seen, on a machine however slow.
const soon = 30 * time.Second

func TestFile(t *testing.T) {
	for _, partition := range []bool{false, true} {
		t.Run(fmt.Sprintf("partition=%t", partition), func(t *testing.T) {
			m, target := mount(t, partition)
			o := observe(t)
			m.Write("other", "o", 10)
			m.Write("a", "a", 50)
			o.r.Watch(Spec{ID: 1, Path: m.Path("a"), Target: target})
			u := o.until(1, "a file", soon, blocks(50))
			if n, others := onDevice(t, m, u, "a"); n != 50 || others != 0 || !u.Found || u.Files != 1 {
				t.Errorf("%d blocks of it and %d others at %+v", n, others, u)
			}
			if n, _ := onDevice(t, m, Update{Ranges: u.Ranges}, "o"); n != 0 {
				t.Errorf("%d blocks of another file", n)
			}
			if err := os.Truncate(m.Path("a"), 20*4096); err != nil {
				t.Fatal(err)
			}
			o.until(1, "cut", soon, blocks(20))
			m.Write("b", "b", 30)
			if err := os.Rename(m.Path("b"), m.Path("a")); err != nil {
				t.Fatal(err)
			}
			u = o.until(1, "replaced", soon, blocks(30))
			if n, others := onDevice(t, m, u, "b"); n != 30 || others != 0 {
				t.Errorf("replaced: %d blocks of it and %d others", n, others)
			}
			if err := os.Remove(m.Path("a")); err != nil {
				t.Fatal(err)
			}
			o.until(1, "removed", soon, blocks(0))
		})
	}
}

func TestFolder(t *testing.T) {
	m, target := mount(t, false)
	o := observe(t)
	for _, name := range []string{"in", "in/x", "in/x/y", "out"} {
		if err := os.Mkdir(m.Path(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m.Write("in/1", "d", 3)
	m.Write("in/x/y/2", "d", 4)
	m.Write("out/no", "n", 5)
	if err := os.Symlink("../out/no", m.Path("in/link")); err != nil {
		t.Fatal(err)
	}
	o.r.Watch(Spec{ID: 7, Path: m.Path("in"), Target: target})
	u := o.until(7, "folder", soon, blocks(7))
	if n, others := onDevice(t, m, u, "d"); n != 7 || others != 0 || u.Files != 2 {
		t.Errorf("%d blocks of them and %d others, %d files", n, others, u.Files)
	}
	m.Write("in/x/y/3", "d", 2)
	o.until(7, "a new file", soon, blocks(9))
	m.Write("out/z", "d", 6)
	for _, step := range []struct {
		what string
		do   error
		want int
	}{
		{"moved in", os.Rename(m.Path("out/z"), m.Path("in/z")), 15},
		{"a folder moved within", os.Rename(m.Path("in/x/y"), m.Path("in/y")), 15},
		{"a folder made", os.MkdirAll(m.Path("in/p/q/r"), 0o755), 15},
	} {
		if step.do != nil {
			t.Fatal(step.do)
		}
		o.until(7, step.what, soon, blocks(step.want))
	}
	m.Write("in/p/q/r/4", "d", 1)
	m.Write("in/y/5", "d", 1)
	u = o.until(7, "files in new and moved folders", soon, blocks(17))
	if n, others := onDevice(t, m, u, "d"); n != 17 || others != 0 || u.Files != 6 {
		t.Errorf("%d blocks of them and %d others, %d files", n, others, u.Files)
	}
	if err := os.Rename(m.Path("in/y"), m.Path("out/y")); err != nil {
		t.Fatal(err)
	}
	o.until(7, "a folder moved out", soon, blocks(10))
	m.Write("out/y/6", "d", 1)
	if err := os.RemoveAll(m.Path("in/p")); err != nil {
		t.Fatal(err)
	}
	u = o.until(7, "a folder removed", soon, blocks(9))
	if u.Files != 2 {
		t.Errorf("%d files left, want 2", u.Files)
	}
	if err := os.Rename(m.Path("in"), m.Path("in2")); err != nil {
		t.Fatal(err)
	}
	o.tickEvery(checkEvery)
	u = o.until(7, "the path is gone", soon, func(u Update) bool { return !u.Found })
	if len(u.Ranges) != 0 || u.Problem != "no such file or directory" {
		t.Errorf("gone: %+v", u)
	}
	if err := os.Rename(m.Path("in2"), m.Path("in")); err != nil {
		t.Fatal(err)
	}
	o.until(7, "the path is back", soon, blocks(9))
}

// TestUnsettled writes what has no place on the device until somebody asks for it.
func TestUnsettled(t *testing.T) {
	m, target := mount(t, false)
	o := observe(t)
	o.r.Watch(Spec{ID: 1, Path: m.At, Target: target})
	o.until(1, "an empty filesystem", soon, func(u Update) bool { return u.Found })
	if err := os.WriteFile(m.Path("lazy"), make([]byte, 8*4096), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.Path("inline"), []byte("small"), 0o644); err != nil {
		t.Fatal(err)
	}
	o.tickEvery(checkEvery)
	u := o.until(1, "written by itself", settleAfter+soon, blocks(8))
	if u.Files != 2 {
		t.Errorf("%d files, want 2", u.Files)
	}
}

// TestUnmount takes the filesystem away from a watched path and gives it back.
func TestUnmount(t *testing.T) {
	m, target := mount(t, false)
	o := observe(t)
	m.Write("a", "a", 5)
	o.r.Watch(Spec{ID: 1, Path: m.Path("a"), Target: target})
	o.until(1, "a file", soon, blocks(5))
	m.Run("umount", m.At)
	u := o.until(1, "unmounted", soon, blocks(0))
	if u.Found || u.Problem == "" {
		t.Errorf("unmounted: %+v", u)
	}
	m.Run("mount", m.Source, m.At)
	o.until(1, "mounted again", soon, blocks(5))
}

func TestElsewhere(t *testing.T) {
	m, target := mount(t, false)
	m.Write("a", "a", 1)
	o := observe(t)
	for id, c := range []struct {
		path   string
		target Device
		want   string
	}{
		{m.Path("a"), Device{259, 1 << 19}, "not on device 259:524288"},
		{m.Path("none"), target, "no such file or directory"},
		{"/proc/self/status", target, "not on a block device of its own"},
		{"/dev/null", target, ""},
	} {
		o.r.Watch(Spec{ID: uint64(id), Path: c.path, Target: c.target})
		u := o.until(uint64(id), c.path, soon, func(Update) bool { return true })
		if u.Found || u.Problem == "" || !strings.Contains(u.Problem, c.want) || len(u.Ranges) > 0 {
			t.Errorf("%s: %+v, want %q", c.path, u, c.want)
		}
	}
}

// TestSweep changes what inotify does not tell of: a file by way of its other name elsewhere.
func TestSweep(t *testing.T) {
	m, target := mount(t, false)
	o := observe(t)
	if err := os.Mkdir(m.Path("in"), 0o755); err != nil {
		t.Fatal(err)
	}
	m.Write("outside", "a", 5)
	if err := os.Link(m.Path("outside"), m.Path("in/a")); err != nil {
		t.Fatal(err)
	}
	o.r.Watch(Spec{ID: 1, Path: m.Path("in"), Target: target})
	o.until(1, "a folder", soon, blocks(5))
	if err := os.Truncate(m.Path("outside"), 4096); err != nil {
		t.Fatal(err)
	}
	o.r.do(func() { o.r.nextSweep = time.Now() })
	o.tickEvery(checkEvery)
	o.until(1, "the sweep", soon, blocks(1))
	o.r.Drop(1)
	o.r.do(func() {
		if len(o.r.watches.users) != 0 || len(o.r.trees) != 0 {
			t.Errorf("left after Drop: %d watches, %d trees", len(o.r.watches.users), len(o.r.trees))
		}
	})
}

// TestLostEvents makes as many changes at once as the kernel keeps, and more.
func TestLostEvents(t *testing.T) {
	m, target := mount(t, false)
	o := observe(t)
	m.Write("a", "a", 2)
	o.r.Watch(Spec{ID: 1, Path: m.At, Target: target})
	o.until(1, "a folder", soon, blocks(2))
	o.r.do(func() {
		// As if the queue had overflowed before it could tell of the file.
		m.Write("b", "b", 3)
		time.Sleep(quiet / 2)
		o.r.watches.take()
		o.r.watches.note([]byte{15: 0, 5: 0x40})
		select {
		case o.r.watches.wake <- struct{}{}:
		default:
		}
	})
	o.until(1, "after the loss", soon, blocks(5))
}

// TestShared watches a folder twice, and a file in it.
func TestShared(t *testing.T) {
	m, target := mount(t, false)
	o := observe(t)
	if err := os.Mkdir(m.Path("d"), 0o755); err != nil {
		t.Fatal(err)
	}
	m.Write("d/a", "a", 2)
	m.Write("d/b", "b", 3)
	o.r.Watch(Spec{ID: 1, Path: m.Path("d"), Target: target})
	o.r.Watch(Spec{ID: 2, Path: filepath.Join(m.At, "d/../d"), Target: target})
	o.r.Watch(Spec{ID: 3, Path: m.Path("d/a"), Target: target})
	o.until(1, "folder", soon, blocks(5))
	o.until(2, "folder again", soon, blocks(5))
	o.until(3, "file", soon, blocks(2))
	o.r.Drop(1)
	m.Write("d/a", "a", 7)
	o.until(2, "folder again, changed", soon, blocks(10))
	o.until(3, "file, changed", soon, blocks(7))
}
