package missed

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"ubcache/cache"
)

func TestRoundTrip(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	m := Of(cache.Missed{
		Cache: cache.UUID{1}, Backing: cache.UUID{2}, Name: "data", Epoch: 7, Dirty: 3,
	}, time.Now())
	if got, err := Read(dir, m.Cache, m.Backing); got != nil || err != nil {
		t.Fatalf("before there is one: %v, %v", got, err)
	}
	for range 2 { // the second replaces the first
		if err := Write(dir, m); err != nil {
			t.Fatal(err)
		}
		got, err := Read(dir, m.Cache, m.Backing)
		if err != nil || *got != *m {
			t.Fatalf("read %+v, %v; wrote %+v", got, err, m)
		}
		m.DirtyBlocks++
	}
	if list, _ := filepath.Glob(dir + "/missed/*"); len(list) != 1 {
		t.Errorf("left behind: %v", list)
	}
	for range 2 {
		if err := Remove(dir, m.Cache, m.Backing); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := Read(dir, m.Cache, m.Backing); got != nil || err != nil {
		t.Fatalf("after it was removed: %v, %v", got, err)
	}
}

// TestDamaged: what cannot be understood is not taken for no marker.
func TestDamaged(t *testing.T) {
	dir := t.TempDir()
	a, b := cache.UUID{1}.String(), cache.UUID{2}.String()
	path := Path(dir, a, b)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "{", `{"cache":"x"}`, `[]`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if m, err := Read(dir, a, b); err == nil {
			t.Errorf("%q is read as %+v", text, m)
		}
	}
}

func TestUnwritable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Write(file, &Marker{Cache: "a", Backing: "b"}); err == nil {
		t.Error("a marker below a file")
	}
}
