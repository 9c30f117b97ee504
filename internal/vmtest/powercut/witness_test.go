//go:build vm

package powercut

import (
	"encoding/binary"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"ubcache/internal/vmtest"
)

// The witness is a disk that has nothing to do with the cache: how far each writer has come.

const witnessBytes = 4096 // of each writer, in a block of its own

// startWriters starts writers that note on the witness what is durable; only the power cut ends them.
func startWriters(t *testing.T, dir string, from []int64) *vmtest.Writers {
	t.Helper()
	disk, err := os.OpenFile(vmtest.RawDisk(t, "ssd4k"), os.O_RDWR|unix.O_DIRECT|unix.O_DSYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	notes, err := unix.Mmap(-1, 0, vmtest.WriterCount*witnessBytes, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	return vmtest.ContinueWriters(t, dir, from, func(i int, n int64) error {
		note := notes[i*witnessBytes:][:witnessBytes]
		binary.LittleEndian.PutUint64(note, uint64(n))
		_, err := disk.WriteAt(note, int64(i)*witnessBytes)
		return err
	})
}

func clearWitness(t *testing.T) {
	t.Helper()
	vmtest.Run(t, "dd", "if=/dev/zero", "of="+vmtest.RawDisk(t, "ssd4k"), "bs=4k",
		fmt.Sprint("count=", vmtest.WriterCount), "oflag=direct,dsync")
}

func readWitness(t *testing.T) (acked []int64) {
	t.Helper()
	f, err := os.Open(vmtest.RawDisk(t, "ssd4k"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, vmtest.WriterCount*witnessBytes)
	if _, err := f.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	for i := range vmtest.WriterCount {
		acked = append(acked, int64(binary.LittleEndian.Uint64(p[i*witnessBytes:])))
	}
	return acked
}
