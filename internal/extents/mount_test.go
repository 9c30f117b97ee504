package extents

import (
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"ubcache/internal/extents/loopmount"
)

// mount mounts a filesystem and tells on which device it is, or its partition.
func mount(t *testing.T, partition bool) (*loopmount.Mount, Device) {
	t.Helper()
	m := loopmount.New(t, partition)
	var st unix.Stat_t
	if err := unix.Stat(m.Loop, &st); err != nil {
		t.Fatal(err)
	}
	return m, DeviceOf(st.Rdev)
}

// onDevice counts the blocks of the image that are full of text at the places of an update.
func onDevice(t *testing.T, m *loopmount.Mount, u Update, text string) (blocks, others int) {
	t.Helper()
	m.Run("sync")
	f, err := os.Open(m.Image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := bytes.Repeat([]byte(text), 4096)[:4096]
	b := make([]byte, 4096)
	for _, r := range u.Ranges {
		for off := r.Off; off < r.End; off += 4096 {
			if _, err := f.ReadAt(b, off); err != nil {
				t.Fatal(err)
			}
			if bytes.Equal(b, want) {
				blocks++
			} else {
				others++
			}
		}
	}
	return blocks, others
}
