package recipe

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestEnsure(t *testing.T) {
	cache := t.TempDir()
	r := result{kind: "thing", label: "one", key: []string{"a", "b"}}
	builds := 0
	build := func(dir string) error {
		builds++
		return os.WriteFile(filepath.Join(dir, "file"), nil, 0o644)
	}
	first, err := r.ensure(cache, build)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := r.ensure(cache, build); err != nil || again != first || builds != 1 {
		t.Errorf("second time: %s, %v, %d builds", again, err, builds)
	}
	changed := result{kind: "thing", label: "one", key: []string{"ab"}}
	if other, err := changed.ensure(cache, build); err != nil || other == first || builds != 2 {
		t.Errorf("other key: %s, %v, %d builds", other, err, builds)
	}
	failing := result{kind: "thing", label: "two"}
	wanted := errors.New("wanted")
	if _, err := failing.ensure(cache, func(string) error { return wanted }); !errors.Is(err, wanted) {
		t.Errorf("failed build: %v", err)
	}
	left, _ := filepath.Glob(filepath.Join(cache, "thing", "two*"))
	if len(left) != 0 {
		t.Errorf("a failed build left %s", left)
	}
}

func TestPrune(t *testing.T) {
	cache := t.TempDir()
	old := filepath.Join(cache, "thing", "old")
	if err := os.MkdirAll(old, 0o755); err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(-2 * keepUnused)
	if err := os.Chtimes(old, long, long); err != nil {
		t.Fatal(err)
	}
	r := result{kind: "thing", label: "new"}
	if _, err := r.ensure(cache, func(string) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); !os.IsNotExist(err) {
		t.Error("a result unused for long is still there")
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	unlock, err := Lock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Lock(ctx, dir); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("locked twice: %v", err)
	}
	unlock()
	unlock, err = Lock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestBootModules(t *testing.T) {
	release := t.TempDir()
	for name, text := range map[string]string{
		"modules.dep": "k/other.ko.xz: k/base.ko.xz\n" +
			"k/virtio_blk.ko.xz: k/ring.ko.xz k/base.ko.xz\nk/ring.ko.xz: k/base.ko.xz\nk/base.ko.xz:\n",
		"k/virtio_blk.ko.xz": "blk", "k/ring.ko.xz": "ring", "k/base.ko.xz": "base",
	} {
		path := filepath.Join(release, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	k := Kernel{dir: t.TempDir()}
	if err := copyBootModules(release, filepath.Join(k.dir, "boot")); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, name := range k.BootModules() {
		names = append(names, filepath.Base(name))
	}
	want := "00-base.ko.xz 01-ring.ko.xz 02-virtio_blk.ko.xz"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("load order is %s, want %s", got, want)
	}
}
